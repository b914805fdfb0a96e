"""`compare`: each relation is named, the first difference is blamed, and what changes nothing is not."""

from __future__ import annotations

import re

import numpy as np
import pytest

import lossbridge as lb

N, C, IN = 32, 10, 6


@pytest.fixture
def step() -> dict[str, np.ndarray]:
    """A training step of a model with one layer."""
    return make_step()


def make_step(**options) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    x, w = rng.normal(size=(N, IN)).astype(np.float32), rng.normal(size=(IN, C)).astype(np.float32)
    labels = rng.integers(0, C, N)
    return run_of(x, w, labels, **options)


def run_of(x, w, labels, *, use=None, **options) -> dict[str, np.ndarray]:
    logits = (x @ (w if use is None else use)).astype(np.float32)
    options = {"from_logits": True, **options}
    loss, gradient = lb.value_and_grad(lb.sparse_categorical_crossentropy)(labels, logits, **options)
    options.pop("reduction", None)
    losses = lb.sparse_categorical_crossentropy(labels, logits, reduction="none", **options)
    return {
        "inputs": x,
        "y_true": labels,
        "param_w": w,
        "y_pred": logits,
        "losses": losses,
        "loss": loss,
        "grad_w": x.T @ gradient,
    }


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return (e / e.sum(-1, keepdims=True)).astype(np.float32)


def first(a, b, **options) -> str:
    found = lb.compare(a, b, names=("keras", "torch"), **options)
    assert "\n" not in found.first
    assert str(found).startswith(found.first)
    return found.first


def relation(name: str, x, y) -> str:
    """The row of arrays of one name."""
    found = lb.compare({name: x}, {name: y}, names=("keras", "torch"))
    return str(found.rows[0])


# Nothing parts.


def test_equal_runs(step) -> None:
    found = lb.compare(step, step)
    assert found.first == "Nothing parts: all 7 quantities are equal."
    assert found.parts_at == ""
    assert [row.quantity for row in found.rows] == list(step)
    assert {row.verdict for row in found.rows} == {"equal"}
    assert found.losses == ()


def test_rounding_is_told_in_ulp(step) -> None:
    y_pred = step["y_pred"].copy()
    y_pred[3, 2] = np.nextafter(np.nextafter(y_pred[3, 2], np.float32(np.inf)), np.float32(np.inf))
    found = lb.compare(step, step | {"y_pred": y_pred})
    assert found.parts_at == ""
    assert found.first == "Nothing parts: the largest difference is 2 ULP of float32, in y_pred[3, 2]."
    assert str(found.rows[3]) == "equal within rounding, 2 ULP of float32"
    assert lb.compare(step, step | {"y_pred": y_pred}, tolerance=0).parts_at == "y_pred"


def test_nothing_of_the_callers_is_changed(step) -> None:
    before = {name: x.copy() for name, x in step.items()}
    other = step | {"y_pred": softmax(step["y_pred"]), "inputs": step["inputs"][::-1]}
    lb.compare(step, other)
    for name, x in before.items():
        np.testing.assert_array_equal(step[name], x)


def test_ordinary_differences_of_frameworks_do_not_part(step) -> None:
    """One-hot rows and labels, transposed kernels and gradients, probabilities and logits, each with the right loss."""
    p = softmax(step["y_pred"])
    keras = step | {"y_true": np.eye(C)[step["y_true"]], "y_pred": p}
    torch = step | {"param_w": step["param_w"].T, "grad_w": step["grad_w"].T}
    found = lb.compare(keras, torch, names=("keras", "torch"))
    assert found.parts_at == "", found
    text = str(found)
    for words in (
        "y_true    equal up to a known relation: torch holds labels, keras one-hot rows",
        "param_w   equal up to a known relation: transposed",
        "y_pred    equal up to a known relation: keras holds probabilities, the softmax of torch's logits",
        "grad_w    equal up to a known relation: transposed",
    ):
        assert words.replace("    ", " ").replace("   ", " ") in " ".join(text.split(" ")).replace("  ", " ").replace(
            "  ", " "
        ), text


# Where they part, in the order of a step.


def test_each_stage_is_blamed_before_those_after_it(step) -> None:
    other = {name: x for name, x in make_step(label_smoothing=0.1, reduction="sum").items()}
    noise = np.random.default_rng(5)
    changed = {
        "inputs": noise.normal(size=(N, IN)),
        "y_true": (step["y_true"] * 3 + 1) % 7,
        "param_w": noise.normal(size=(IN, C)),
        "y_pred": noise.normal(size=(N, C)),
        "losses": other["losses"],
        "loss": other["loss"],
        "grad_w": other["grad_w"],
    }
    places = list(changed)
    for i, name in enumerate(places):
        torch = step | {later: changed[later] for later in places[i:]}
        found = lb.compare(step, torch, names=("keras", "torch"))
        assert found.parts_at == name, found


def test_inputs_scaled_on_one_side() -> None:
    rng = np.random.default_rng(0)
    images, w, labels = rng.integers(0, 17, (N, IN)).astype(np.float32), rng.normal(size=(IN, C)), rng.integers(0, C, N)
    keras, torch = run_of(images / 16, w, labels), run_of(images, w, labels)
    assert first(keras, torch) == "They part at inputs: torch has keras' × 16."
    images[:] = rng.integers(0, 256, images.shape)
    assert "torch has keras' × 255" in first(run_of(images / 255, w, labels), run_of(images, w, labels))
    # Scaled inside of the other's model: the same predictions.
    torch = run_of(images / 255, w, labels) | {"inputs": images}
    assert lb.compare(run_of(images / 255, w, labels), torch).parts_at == ""


def test_softmax_is_fed_to_a_loss_of_logits(step) -> None:
    p = softmax(step["y_pred"])
    keras = {"y_true": step["y_true"], "y_pred": p, "loss": step["loss"]}
    torch = keras | {"loss": lb.sparse_categorical_crossentropy(step["y_true"], p, from_logits=True)}
    words = first(keras, torch)
    assert words.startswith(
        "They part at loss: torch computes PyTorch's `cross_entropy` of log(y_pred), but softmax applied to y_pred, "
        "which holds probabilities already; keras computes Keras' `SparseCategoricalCrossentropy`; keras' loss is, for "
        "torch, `F."
    )
    assert words.endswith("(torch.log(y_pred), y_true.long())`.")
    # The same, where the other side's y_pred holds logits.
    words = first({**step}, {**torch})
    assert words.startswith(
        "They part at y_pred: torch holds probabilities, the softmax of keras' logits; keras computes Keras' "
    )
    assert "softmax applied to y_pred, which holds probabilities already" in words


def test_logits_and_probabilities_alone_part_at_y_pred(step) -> None:
    words = first({"y_pred": softmax(step["y_pred"])}, {"y_pred": step["y_pred"]})
    assert words == "They part at y_pred: keras holds probabilities, the softmax of torch's logits."


def test_conventions_of_the_losses(step) -> None:
    torch = make_step(label_smoothing=0.1)
    words = first(step, torch)
    assert words.startswith("They part at losses: ")
    assert "label smoothing s = 0.1" in words
    short = {name: step[name] for name in ("y_true", "y_pred", "loss")}
    words = first(short, short | {"loss": torch["loss"]})
    assert words.startswith("They part at loss: ")
    assert "label smoothing s = 0.1" in words
    found = lb.compare(short, short | {"loss": torch["loss"]})
    assert "F.cross_entropy(y_pred, y_true.long(), label_smoothing=0.1)" in str(found)


def test_conventions_whose_predictions_are_of_different_kinds(step) -> None:
    """Each loss reads its own predictions rightly, and then differs in its smoothing: y_pred is not to blame."""
    keras = step | {"y_pred": softmax(step["y_pred"])}
    assert first(keras, make_step(label_smoothing=0.1)).startswith("They part at losses: ")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (
            lambda s: s["losses"].sum(),
            "× 32 = the number of samples; keras' is the mean of its losses, torch's is the sum",
        ),
        (lambda s: s["losses"].sum() / N / C, "÷ 320, the number of elements"),
        (lambda s: s["losses"].mean() / np.log(2), "× 1.4427 = 1 / ln 2, bits for nats"),
        (lambda s: -s["losses"].mean(), "torch has keras' × −1"),
        (lambda s: s["losses"].mean() * 1024, "torch has keras' × 1024"),
        (lambda s: s["losses"].mean() * 1.37, "a ratio of 1.37"),
    ],
)
def test_reductions(step, value, words) -> None:
    message = first(step, step | {"loss": value(step)})
    assert message.startswith("They part at loss: keras has ")
    assert words in message


def test_a_loss_that_is_another_by_a_factor_is_not_called_equal(step) -> None:
    found = lb.compare(step, step | {"loss": step["losses"].sum()})
    assert "\n  loss     different by a known relation: a has " in str(found)
    assert str(found.rows[4]) == "equal"


def test_a_reduction_without_values_a_sample(step) -> None:
    short = {name: step[name] for name in ("y_true", "y_pred", "loss")}
    message = first(short, short | {"loss": step["losses"].sum()})
    assert "torch has keras' × 32 = the number of samples; keras computes Keras' " in message


def test_a_printed_loss_has_only_its_digits(step) -> None:
    short = {name: step[name] for name in ("y_true", "y_pred", "loss")}
    assert lb.compare(short, short | {"loss": f"{step['loss']:.4g}"}).parts_at == ""
    assert lb.compare(short, short | {"loss": round(float(step["loss"]), 4)}).parts_at == ""
    assert lb.compare(short, short | {"loss": f"{step['loss'] * 1.01:.4g}"}).parts_at == "loss"


def test_one_side_alone_is_explained(step) -> None:
    torch = {"y_true": step["y_true"], "y_pred": step["y_pred"]}
    found = lb.compare(step, torch, names=("keras", "torch"))
    assert found.parts_at == ""
    assert "keras computes Keras' `SparseCategoricalCrossentropy(from_logits=True" in str(found)
    assert "only in keras: inputs" in str(found)


def test_a_loss_that_nothing_explains(step) -> None:
    short = {name: step[name] for name in ("y_true", "y_pred", "loss")}
    message = first(short, short | {"loss": 7777.777})
    assert re.search(r"torch computes nothing that is known \(nothing fits, of \d+ conventions\);", message), message


def test_what_holds_of_both_losses_is_said_once(step) -> None:
    short = {name: step[name] for name in ("y_true", "y_pred")}
    for mine, other in ((short, "nothing that is known (nothing fits, of "), ({}, "a loss that cannot be explained")):
        found = lb.compare(mine | {"loss": 13.123}, mine | {"loss": 7777.777}, names=("keras", "torch"))
        assert f"; keras and torch compute {other}" in found.first
        assert str(found).count(other) == 1


def test_a_mean_that_divides_by_the_class_weights_of_the_labels(step) -> None:
    """PyTorch's cross_entropy(weight=) does; Keras divides by the samples."""
    weight = np.arange(1.0, C + 1)
    total = weight[step["y_true"]].sum()
    losses = step["losses"] * weight[step["y_true"]]
    keras = step | {"class_weight": weight, "losses": losses, "loss": losses.mean()}
    words = f"torch's is the sum of its losses ÷ {total:.7g}, the sum of the labels' class weights."
    assert first(keras, keras | {"loss": losses.sum() / total}).endswith(f"keras' is the mean of its losses, {words}")
    one_hot = {"y_true": np.eye(C)[step["y_true"]]}
    assert first(keras | one_hot, keras | one_hot | {"loss": losses.sum() / total}).endswith(words)


# Parameters.


def test_a_square_kernel_that_was_not_transposed() -> None:
    rng = np.random.default_rng(0)
    x, square, out = rng.normal(size=(N, 6)), rng.normal(size=(6, 6)), rng.normal(size=(6, C))
    labels = rng.integers(0, C, N)

    def run(hidden, other, *, transposed):
        step = run_of(np.tanh(x @ hidden), out, labels)
        del step["param_w"]
        return step | {"inputs": x, "param_1": other, "param_2": out.T if transposed else out}

    keras = run(square, square, transposed=False)
    assert lb.compare(keras, run(square, square.T, transposed=True)).parts_at == ""
    wrong = run(square.T, square, transposed=True)
    words = "They part at param_1: not transposed, as the other matrices are: transpose it."
    assert first(keras, wrong) == words
    wrong = run(square.T, square.T, transposed=False)
    assert "param_1: transposed, and the other matrices are not" in first(keras, wrong)
    # Alone, its layout is not known: it is asked for.
    labels = labels % 6
    keras = run_of(x, np.eye(6) + square, labels)
    torch = run_of(x, np.eye(6) + square, labels, use=(np.eye(6) + square).T)
    assert "param_w is square: Keras' kernels are (in, out)" in first(keras, torch)


def test_parameters_of_other_names_are_paired_in_order(step) -> None:
    keras = {"param_dense/kernel": step["param_w"], "param_dense/bias": np.arange(10.0)}
    torch = {"param_fc.weight": step["param_w"].T, "param_fc.bias": np.arange(10.0)}
    found = lb.compare(keras, torch)
    assert [row.quantity for row in found.rows] == [
        "param_dense/kernel / param_fc.weight",
        "param_dense/bias / param_fc.bias",
    ]
    assert found.parts_at == ""


# Relations, one by one.

R = np.random.default_rng(3)
X = R.normal(size=(16, 5))
P = softmax(X)
IMAGES = R.uniform(size=(8, 4, 5, 3))
LABELS = R.integers(0, 4, 40)
OUTCOMES = R.integers(0, 2, 24)
ORDER = R.permutation(16)


def bfloat16(x):
    return (np.float32(x).view(np.uint32) + 0x8000 & 0xFFFF0000).astype(np.uint32).view(np.float32)


RELATIONS = {
    "layout of images": (
        "inputs",
        IMAGES,
        IMAGES.transpose(0, 3, 1, 2),
        "torch has keras' axes in the order (0, 3, 1, 2)",
    ),
    "channels": ("inputs", IMAGES, IMAGES[..., ::-1], "torch has keras' classes in another order: 2, 1, 0"),
    "channels along axis 1": (
        "x",
        IMAGES.transpose(0, 3, 1, 2),
        IMAGES.transpose(0, 3, 1, 2)[:, ::-1],
        "keras' channels in another order",
    ),
    "from −1 to 1": ("inputs", IMAGES, 2 * IMAGES - 1, "torch has 2 times keras' -1"),
    "standardised": ("inputs", X, (X - X.mean(0)) / X.std(0), "as by a standardisation"),
    "shuffled": ("inputs", X, X[ORDER], "samples in another order; feed both without shuffling"),
    "images, layout and scale": (
        "inputs",
        IMAGES,
        IMAGES.transpose(0, 3, 1, 2) * 255,
        "torch has keras' × 255; torch has keras' axes in the order",
    ),
    "bfloat16": ("inputs", np.float32(X), bfloat16(X), "torch holds keras' rounded to bfloat16"),
    "float16": ("inputs", np.float16(X), np.float32(X), "keras holds torch's rounded to float16"),
    "other inputs": ("inputs", X, R.normal(size=X.shape), "different by up to"),
    "other shape": ("inputs", X, X[:4], "different: keras has shape (16, 5), torch (4, 5)"),
    "one-hot": ("y_true", np.eye(4)[LABELS], LABELS, "torch holds labels, keras one-hot rows"),
    "column of labels": ("y_true", LABELS, LABELS[:, None], "keras has shape (40,), torch (40, 1)"),
    "labels from 1": ("y_true", LABELS, LABELS + 1, "torch has keras' labels + 1: torch's start at 1"),
    "one-hot, from 1": ("y_true", np.eye(5)[LABELS], LABELS + 1, "torch has keras' labels + 1"),
    "float labels": ("y_true", LABELS, LABELS.astype(np.float32), "equal: keras holds int64, torch float32"),
    "renumbered": ("y_true", LABELS, np.array([2, 0, 3, 1])[LABELS], "classes in another order: 0 → 2, 1 → 0, 2 → 3"),
    "the other event": ("y_true", OUTCOMES, 1 - OUTCOMES, "the other outcome counts as the event"),
    "−1 and 1": ("y_true", 2 * OUTCOMES - 1, OUTCOMES, "keras holds −1 and 1 where torch holds 0 and 1"),
    "ignored": (
        "y_true",
        np.where(LABELS == 0, -1, LABELS),
        np.where(LABELS == 0, -100, LABELS),
        "what keras labels -1, torch labels -100: is it ignored by both?",
    ),
    "next token": ("y_true", LABELS.reshape(4, 10)[:, :-1], LABELS.reshape(4, 10)[:, 1:], "one position earlier"),
    "labels shuffled": ("y_true", LABELS, R.permutation(LABELS), "as many of each label"),
    "smoothed": ("y_true", np.eye(4)[LABELS], np.eye(4)[LABELS] * 0.9 + 0.025, "label smoothing 0.1 in them already"),
    "labels, smoothed": ("y_true", LABELS, np.eye(4)[LABELS] * 0.9 + 0.025, "label smoothing 0.1 in them already"),
    "outcomes, smoothed": (
        "y_true",
        OUTCOMES * 0.8 + 0.1,
        OUTCOMES,
        "keras has torch's targets with label smoothing 0.2",
    ),
    "softmax": ("y_pred", X, P, "torch holds probabilities, the softmax of keras' logits"),
    "softmax of T": ("y_pred", X, softmax(X / 2), "torch holds the softmax of keras' logits ÷ 2, a temperature"),
    "log_softmax": ("logits", np.log(P), X, "keras holds log-probabilities, the log_softmax of torch's logits"),
    "log": ("y_pred", P, np.log(P), "torch holds log-probabilities, keras probabilities"),
    "sigmoid": ("y_pred", 1 / (1 + np.exp(-X)), X, "keras holds probabilities, the sigmoid of torch's logits"),
    "sigmoid of a vector": ("y_pred", X[:, 0], 1 / (1 + np.exp(-X[:, 0])), "the sigmoid of keras' logits"),
    "classes along axis 1": (
        "y_pred",
        R.normal(size=(4, 6, 5)),
        None,
        "torch has keras' axes in the order (0, 2, 1)",
    ),
    "classes permuted": (
        "y_pred",
        X,
        X[:, [4, 3, 2, 0, 1]],
        "torch has keras' classes in another order: 4, 3, 2, 0, 1",
    ),
    "temperature": ("logits", X / 2, X, "torch has keras' × 2"),
    "a constant a row": ("logits", X, X + np.arange(16.0)[:, None], "a constant a row, which softmax does not see"),
    "computed in bfloat16": (
        "y_pred",
        np.float32(X),
        bfloat16(X * 1.01),
        "torch holds numbers of bfloat16, up to 0.01 off",
    ),
    "both in bfloat16": ("y_pred", bfloat16(X), bfloat16(X * 1.01), "equal within rounding"),
    "transposed kernel": ("param_1", X, X.T, "equal up to a known relation: transposed"),
    "convolution": ("param_1", R.normal(size=(3, 3, 2, 7)), None, "in the order (3, 2, 0, 1)"),
    "inverted mask": ("mask", OUTCOMES.astype(bool), OUTCOMES == 0, "torch has 1 where keras has 0: one of them marks"),
    "normalised weights": ("sample_weight", np.arange(1.0, 6), np.arange(1.0, 6) / 15, "keras has torch's × 15"),
    "losses in bits": ("losses", np.arange(1.0, 6), np.arange(1.0, 6) / np.log(2), "1 / ln 2, bits for nats"),
    "gradient of a sum": ("grad_w", X, X * 32, "torch has keras' × 32"),
    "clipped gradient": ("gradient", X, X / np.sqrt((X**2).sum()), "clipped to the norm 1"),
    "NaN": ("y_pred", X, np.where(X[3, 2] == X, np.nan, X), "different: keras has -0.23855"),
    "two infinities": ("logits", np.array([-np.inf, 1.5]), np.array([-np.inf, 1.5]), "equal"),
}
RELATIONS["classes along axis 1"] = (
    *RELATIONS["classes along axis 1"][:2],
    RELATIONS["classes along axis 1"][1].transpose(0, 2, 1),
    RELATIONS["classes along axis 1"][3],
)
RELATIONS["convolution"] = (
    *RELATIONS["convolution"][:2],
    RELATIONS["convolution"][1].transpose(3, 2, 0, 1),
    RELATIONS["convolution"][3],
)


@pytest.mark.parametrize("name", RELATIONS)
def test_relations(name) -> None:
    quantity, x, y, words = RELATIONS[name]
    assert words in relation(quantity, x, y)


def test_no_relation_is_found_by_chance() -> None:
    """Between arrays that have none."""
    rng = np.random.default_rng(8)
    for shape in ((3,), (4, 2), (16, 3), (5, 5)):
        for quantity in ("inputs", "y_pred", "param_a", "sample_weight", "losses", "grad_a"):
            x, y = rng.normal(size=shape), rng.normal(size=shape)
            assert relation(quantity, x, y).startswith("different"), (quantity, shape)
    for _ in range(50):
        x, y = rng.integers(0, 10, (2, 16))
        assert relation("y_true", x, y).startswith("different")


def test_samples_in_one_other_order_throughout(step) -> None:
    order = np.random.default_rng(0).permutation(N)
    torch = step | {name: step[name][order] for name in ("inputs", "y_true", "y_pred", "losses")}
    found = lb.compare(step, torch)
    assert found.parts_at == "", found
    torch["y_true"] = step["y_true"]  # labels that were not shuffled with the inputs
    assert first(step, torch).startswith("They part at inputs: torch has keras' samples in another order")


def test_classes_in_one_other_order_throughout(step) -> None:
    order = np.random.default_rng(0).permutation(C)
    torch = step | {"y_pred": step["y_pred"][:, order], "y_true": np.argsort(order)[step["y_true"]]}
    del torch["param_w"], torch["grad_w"]
    assert lb.compare(step, torch).parts_at == ""
    torch = torch | {"y_true": step["y_true"]}
    torch["losses"] = lb.sparse_categorical_crossentropy(
        torch["y_true"], torch["y_pred"], from_logits=True, reduction="none"
    )
    torch["loss"] = torch["losses"].mean()
    assert first(step, torch).startswith("They part at y_pred: torch has keras' classes in another order")


def test_the_other_outcome_throughout() -> None:
    """Cats are 0 and dogs 1, or the other way round."""
    p = np.random.default_rng(0).uniform(0.1, 0.9, 24)
    loss = float(-np.log(np.where(OUTCOMES == 1, p, 1 - p)).mean())
    keras = {"y_true": OUTCOMES, "y_pred": p, "loss": loss}
    assert lb.compare(keras, {"y_true": 1 - OUTCOMES, "y_pred": 1 - p, "loss": loss}).parts_at == ""
    words = first(keras, {"y_true": OUTCOMES, "y_pred": 1 - p, "loss": loss + 1})
    assert words.startswith("They part at y_pred: torch predicts the outcome that keras does not count as the event")


def test_a_broadcast_of_one_side_is_told() -> None:
    rng = np.random.default_rng(0)
    p = rng.uniform(0.05, 0.95, 24).astype(np.float32)

    def loss(t, p):
        return np.float32(-(t * np.log(p) + (1 - t) * np.log(1 - p)).mean())

    keras = {"y_true": OUTCOMES, "y_pred": p, "loss": loss(OUTCOMES, p)}
    torch = {"y_true": OUTCOMES, "y_pred": p[:, None], "loss": loss(OUTCOMES[None], p[:, None])}
    assert "its y_true of shape (24,) and y_pred of shape (24, 1) were broadcast to (24, 24)" in first(keras, torch)


def test_a_mask_that_is_inverted(step) -> None:
    mask = np.arange(N) % 4 != 0
    keras = step | {"mask": mask, "loss": step["losses"][mask].mean()}
    torch = step | {"mask": ~mask, "loss": step["losses"][~mask].mean()}
    assert first(keras, torch).startswith("They part at mask: torch has 1 where keras has 0")
    # A library's own way of saying the same.
    assert lb.compare(keras, keras | {"mask": ~mask}).parts_at == ""


def test_predictions_that_differ_say_what_to_look_at(step) -> None:
    other = {"y_pred": np.random.default_rng(9).normal(size=(N, C))}
    assert "add inputs and param_… to both" in first({"y_pred": step["y_pred"]}, other)
    assert "inputs and parameters agree, so a layer differs" in first(step, step | other)
    assert "add param_… to both" in first(
        {name: step[name] for name in ("inputs", "y_pred")}, other | {"inputs": step["inputs"]}
    )


# What it takes, and refuses.


def test_files_and_mappings(step, tmp_path) -> None:
    np.savez(tmp_path / "keras.npz", **step)
    np.savez(tmp_path / "torch.npz", **make_step(reduction="sum"))
    found = lb.compare(tmp_path / "keras.npz", str(tmp_path / "torch.npz"))
    assert found.first.startswith("They part at loss: keras has ")
    with np.load(tmp_path / "keras.npz") as arrays:
        assert lb.compare(arrays, step).parts_at == ""


def test_files_of_one_name_in_two_folders(step, tmp_path) -> None:
    for folder in ("keras", "torch"):
        (tmp_path / folder).mkdir()
        np.savez(tmp_path / folder / "run.npz", y_pred=step["y_pred"])
    found = lb.compare(tmp_path / "keras" / "run.npz", tmp_path / "torch" / "run.npz")
    assert [run.name for run in found.runs] == [str(tmp_path / name / "run.npz") for name in ("keras", "torch")]


def test_lists_are_arrays() -> None:
    assert lb.compare({"y_pred": [[1, 2]], "loss": 1}, {"y_pred": [[1, 2]], "loss": 1}).parts_at == ""


@pytest.mark.parametrize(
    ("a", "b", "options", "error", "words"),
    [
        ({"y_pred": [1.0]}, {"loss": "x"}, {}, ValueError, "b: loss is 'x', which is no number; pass one"),
        ({"y_pred": [1.0]}, {"loss": "1_0"}, {}, ValueError, "b: loss is '1_0', which is no number; pass one"),
        ({"pred": [1.0]}, {"y_pred": [1.0]}, {}, ValueError, "a holds pred, which is not known here; name the arrays"),
        ({}, {"y_pred": [1.0]}, {}, ValueError, "a holds no arrays; name the arrays inputs, y_true, "),
        (
            {"y_true": [1]},
            {"y_pred": [1.0]},
            {},
            ValueError,
            "a holds y_true and b holds y_pred, which have no name in",
        ),
        ({"y_pred": []}, {"y_pred": []}, {}, ValueError, "a: y_pred has shape (0,), which holds nothing; leave it out"),
        ({"loss": [[1, 2]]}, {"loss": 1}, {}, ValueError, "a: loss has shape (1, 2); pass one number"),
        (3, {"y_pred": [1.0]}, {}, TypeError, "a is int; pass a mapping of names to arrays, or an .npz file's name"),
        ({1: [1.0]}, {"y_pred": [1.0]}, {}, TypeError, "a has names that are no texts"),
        ({"y_pred": ["a"]}, {"y_pred": [1.0]}, {}, TypeError, "a: y_pred"),
        ({"y_pred": [1j]}, {"y_pred": [1.0]}, {}, TypeError, "a: y_pred"),
        ("nowhere.npz", {"y_pred": [1.0]}, {}, ValueError, "nowhere.npz cannot be read"),
        ({"y_pred": [1.0]}, {"y_pred": [1.0]}, {"tolerance": 1}, ValueError, "tolerance is 1; pass a number from 0"),
        ({"y_pred": [1.0]}, {"y_pred": [1.0]}, {"tolerance": "1"}, TypeError, "tolerance is '1'; pass one number"),
        ({"y_pred": [1.0]}, {"y_pred": [1.0]}, {"names": ("a", "a")}, ValueError, "pass two different names"),
    ],
)
def test_bad_input(a, b, options, error, words) -> None:
    with pytest.raises(error) as raised:
        lb.compare(a, b, **options)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)
