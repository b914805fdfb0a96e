"""`lossbridge.diagnose`: what it finds, what it says, what it refuses. Its arithmetic: test_conventions.py."""

from __future__ import annotations

import re
import subprocess
import sys
import time

import numpy as np
import pytest

import lossbridge as lb
from lossbridge.compat import keras, optax, scipy, sklearn
from lossbridge.compat import torch as pytorch
from lossbridge.tools.diagnosis import trial
from lossbridge.tools.diagnosis.calls import as_rows
from lossbridge.tools.diagnosis.reading import batch_of

RNG = np.random.default_rng(0)
N, C = 32, 5
LOGITS = RNG.normal(size=(N, C)).astype(np.float32)
P = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
LABELS = RNG.integers(0, C, N)
ONE_HOT = np.eye(C, dtype=np.float32)[LABELS]
SOFT = RNG.dirichlet(np.ones(C), N).astype(np.float32)
WEIGHT = RNG.uniform(0.5, 2, C).astype(np.float32)


def first(*arguments, **options) -> str:
    return lb.diagnose(*arguments, **options).classes[0].explanations[0].words


# What it finds: numbers that the libraries' functions give.


@pytest.mark.parametrize(
    ("y_true", "y_pred", "observed", "words"),
    [
        (ONE_HOT, P, keras.CategoricalCrossentropy()(ONE_HOT, P), "Keras' `CategoricalCrossentropy`"),
        (LABELS, LOGITS, pytorch.cross_entropy(LOGITS, LABELS), "from_logits=True"),
        (
            SOFT,
            P,
            pytorch.kl_div(np.log(P), SOFT),
            "PyTorch's `kl_div` of log(y_pred): divides by N·C; use `batchmean`, or multiply by C = 5",
        ),
        (LABELS, P, pytorch.cross_entropy(P, LABELS), "softmax applied to y_pred, which holds probabilities already"),
        (LABELS, P, pytorch.nll_loss(P, LABELS), "the logarithm missing"),
        (LABELS, LOGITS, keras.sparse_categorical_crossentropy(LABELS, LOGITS).mean(), "which holds logits, taken as"),
        (SOFT, P, lb.categorical_crossentropy(P, SOFT), "the arguments swapped"),
        (SOFT, P, lb.categorical_crossentropy(SOFT, P) / np.log(2), "logarithms to base 2 (bits)"),
        (LABELS, P, sklearn.log_loss(LABELS, P, normalize=False), "reduction='sum'"),
        (LABELS, LOGITS, pytorch.cross_entropy(LOGITS, LABELS, label_smoothing=0.1), "s = 0.1, s/K to every class"),
        (SOFT, P, np.exp(lb.categorical_crossentropy(SOFT, P)), "exp of it, the perplexity"),
    ],
)
def test_explanations(y_true, y_pred, observed, words) -> None:
    assert words in first(y_true, y_pred, np.float32(observed))


@pytest.mark.parametrize("seed", range(8))
def test_a_float32_printed_in_full_has_the_digits_of_one(seed) -> None:
    """`loss.item()` has 17 digits, 8 of which are known: what fits all of them does by chance."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(N, C)).astype(np.float32)
    targets = rng.dirichlet(np.ones(C), N).astype(np.float32)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    for observed, y_pred, words in (
        (pytorch.kl_div(np.log(p), targets), p, "PyTorch's `kl_div` of log(y_pred): divides by N·C"),
        (pytorch.cross_entropy(logits, targets, WEIGHT), logits, "PyTorch's `cross_entropy(weight=class_weight)`"),
    ):
        number = float(np.nextafter(np.float32(observed), np.float32(9)))  # as another order of sums may give
        for given in (number, repr(number)):
            classes = lb.diagnose(targets, y_pred, given, class_weight=WEIGHT).classes
            assert any(words in explanation.words for explanation in classes[0].explanations)


def test_a_float32_printed_short_has_the_digits_of_one() -> None:
    """NumPy prints 7 to 9 digits of it, and people 7 decimals: more than sums in float32 keep."""
    for seed in range(8):
        rng = np.random.default_rng(seed)
        count = rng.integers(200, 3000)
        logits = (3 * rng.normal(size=(count, 3))).astype(np.float32)
        labels = rng.integers(0, 3, count)
        exact = float(pytorch.cross_entropy(logits.astype(np.float64), labels, reduction="sum"))
        summed = float(np.float32(exact * (1 + 1e-7 * rng.uniform(-1, 1))))
        for text in (f"{summed:.3f}", f"{summed:.2f}", f"{summed / count:.7f}", str(np.float32(summed / count))):
            explanations = lb.diagnose(labels, logits, text).classes[0].explanations
            plain = "" if float(text) < 100 else ", reduction='sum'"
            words = f"Keras' `SparseCategoricalCrossentropy(from_logits=True{plain})`"
            assert words in {explanation.words for explanation in explanations}, text


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_half_precision(half) -> None:
    """What was computed in the predictions' dtype needs no explanation, and has calls."""
    torch = pytest.importorskip("torch")
    for seed in range(3):
        rng = np.random.default_rng(seed)
        logits = torch.tensor(2 * rng.normal(size=(N, C)), dtype=getattr(torch, half), requires_grad=True)
        labels = torch.tensor(rng.integers(0, C, N))
        loss = torch.nn.functional.cross_entropy(logits, labels)
        loss.backward()
        values = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        plain = "Keras' `SparseCategoricalCrossentropy(from_logits=True)`"
        for observed in (loss, loss.item(), f"{loss.item():.4f}"):
            found = lb.diagnose(labels, logits, observed).classes[0]
            assert found.explanations[0].words in (plain, f"{plain}, but computed in {half}")
            assert found.calls["torch"] == "F.cross_entropy(y_pred, y_true.long())"
        assert first(labels, logits, logits.grad) == plain
        assert (
            first(labels, logits, values)
            == "Keras' `SparseCategoricalCrossentropy(from_logits=True, reduction='none')`"
        )


def test_weights_and_their_denominator() -> None:
    weighted = pytorch.cross_entropy(LOGITS, LABELS, WEIGHT)
    assert first(LABELS, LOGITS, weighted, class_weight=WEIGHT) == "PyTorch's `cross_entropy(weight=class_weight)`"
    summed = pytorch.cross_entropy(LOGITS, LABELS, WEIGHT, reduction="sum") / N
    words = first(LABELS, LOGITS, np.float32(summed), class_weight=WEIGHT)
    assert "class_weight" in words
    assert "divided by the number of samples, N = 32" in words or "reduction" not in words


def test_ignored_labels() -> None:
    labels = np.where(np.arange(N) % 4 == 0, -100, LABELS)
    removed = pytorch.cross_entropy(LOGITS, labels)
    found = lb.diagnose(labels, LOGITS, removed)
    assert any("8 labels are -100, which is none of the classes" in warning for warning in found.warnings)
    assert found.classes[0].changes == 0
    counted = pytorch.cross_entropy(LOGITS, labels, reduction="sum") / N
    assert "still counted in the mean" in first(labels, LOGITS, np.float32(counted))


def test_an_ignored_label_may_be_a_class() -> None:
    """As that of padding often is: then it makes a difference whether it was left out."""
    found = lb.diagnose(LABELS, LOGITS, pytorch.cross_entropy(LOGITS, LABELS), ignore_class=0).classes[0]
    assert (
        found.explanations[0].words == "Keras' `SparseCategoricalCrossentropy(from_logits=True)`, but nothing left out"
    )
    assert found.calls["torch"] == "F.cross_entropy(y_pred, y_true.long())"


def test_numbers_that_are_none() -> None:
    """0·log 0, a mean over nothing, float16."""
    zero = np.where(ONE_HOT == 1, P, 0)
    with np.errstate(all="ignore"):
        naive = -(ONE_HOT * np.log(zero)).sum(1).mean()
    assert np.isnan(naive)
    found = lb.diagnose(ONE_HOT, zero, naive)
    # By themselves these functions give NaN here, and none that gives a number is said to.
    plain = [e.words for e in found.classes[0].explanations if not e.changes]
    assert plain[0] == "PyTorch's `cross_entropy` of log(y_pred)"
    assert not any("Keras" in words or "scikit-learn" in words for words in plain)
    found = lb.diagnose(np.full(N, -100), LOGITS, float("nan"))
    assert found.fits
    assert any("every label is -100" in warning for warning in found.warnings)
    infinite = np.where(ONE_HOT == 1, 0, P).astype(np.float16)
    found = lb.diagnose(ONE_HOT, infinite, float("inf"))
    assert "nothing clipped" in str(found) or found.classes[0].changes == 0


def test_per_sample_values_and_gradients() -> None:
    values = optax.softmax_cross_entropy(LOGITS, SOFT)
    assert lb.diagnose(SOFT, LOGITS, values).classes[0].changes == 0
    _, gradient = lb.value_and_grad(lb.categorical_crossentropy)(SOFT, LOGITS, from_logits=True, reduction="sum")
    assert "sum" in first(SOFT, LOGITS, gradient)
    # The gradient of Keras' probabilities, which are renormalised; PyTorch's NLL of their logarithms is another.
    _, gradient = lb.value_and_grad(lb.categorical_crossentropy)(ONE_HOT, P)
    found = lb.diagnose(ONE_HOT, P, gradient)
    assert "Keras' `CategoricalCrossentropy`" in found.classes[0].explanations[0].words
    elements = optax.sigmoid_binary_cross_entropy(LOGITS, ONE_HOT)
    found = lb.diagnose(ONE_HOT, LOGITS, elements, quantity="value").classes[0]
    assert found.explanations[0].words == "PyTorch's `binary_cross_entropy_with_logits(reduction='none')`"
    assert found.calls["optax"] == "optax.losses.sigmoid_binary_cross_entropy(y_pred, y_true)"


def test_values_and_gradients_in_words_and_calls() -> None:
    found = lb.diagnose(LABELS, LOGITS, pytorch.cross_entropy(LOGITS, LABELS, reduction="none")).classes[0]
    assert found.explanations[0].words == "Keras' `SparseCategoricalCrossentropy(from_logits=True, reduction='none')`"
    assert found.calls["keras"] == "keras.losses.sparse_categorical_crossentropy(y_true, y_pred, from_logits=True)"
    assert found.calls["torch"] == "F.cross_entropy(y_pred, y_true.long(), reduction='none')"
    outcomes = ONE_HOT[:, 0]
    values = pytorch.binary_cross_entropy(P[:, 0], outcomes, reduction="none")
    found = lb.diagnose(outcomes, P[:, 0], values).classes[0]
    assert found.explanations[0].words == "PyTorch's `binary_cross_entropy(reduction='none')`"
    values = pytorch.kl_div(np.log(P), SOFT, reduction="none").mean(-1)
    assert first(SOFT, P, values) == "PyTorch's `kl_div(reduction='none').mean(-1)` of log(y_pred)"
    _, gradient = lb.value_and_grad(lb.kl_divergence)(SOFT, LOGITS, from_logits=True, epsilon=0, reduction="sum")
    text = str(lb.diagnose(SOFT, LOGITS, gradient))
    assert "\n  the gradient for y_pred of\n" in text


def test_an_option_that_is_a_number() -> None:
    """It is written, and handed over, as one."""
    found = lb.diagnose(ONE_HOT, LOGITS, np.float32(optax.sigmoid_focal_loss(LOGITS, ONE_HOT, alpha=0.25).mean()))
    assert found.classes[0].calls["optax"] == "optax.losses.sigmoid_focal_loss(y_pred, y_true, alpha=0.25).mean()"


def test_a_sum_of_outcomes_is_no_sum_in_keras() -> None:
    """Its losses are means along the last axis, which for outcomes (N,) is that of the samples."""
    outcomes = ONE_HOT[:, 0]
    summed = pytorch.binary_cross_entropy(P[:, 0], outcomes, reduction="sum")
    found = lb.diagnose(outcomes, P[:, 0], summed).classes[0]
    assert found.explanations[0].words == "PyTorch's `binary_cross_entropy(reduction='sum')`"
    assert found.calls["keras"] == "keras.losses.BinaryCrossentropy()(y_true, y_pred) * 32"


# Arrays that are not what they look like.

SEQUENCES = RNG.normal(size=(2, 3, C)).astype(np.float32)
STEPS = np.array([[0, 4, 2], [1, 1, 3]])


@pytest.mark.parametrize(
    ("y_true", "y_pred", "options"),
    [
        (LABELS, P, {}),
        (LABELS[:, None], P, {}),
        (LABELS.astype(np.float32), P, {}),
        (ONE_HOT.astype(int), P, {}),
        (SOFT.astype(np.float64), P, {}),
        (SOFT, P.astype(np.float16), {}),
        (ONE_HOT[:, 0], P[:, :1], {}),
        (ONE_HOT[:, :1], P[:, 0], {}),
        (STEPS, SEQUENCES, {"sample_weight": np.array([1.0, 2.0])}),
        (STEPS, SEQUENCES, {"sample_weight": np.array([[1.0], [2.0]])}),
        (LABELS, P, {"sample_weight": np.arange(N)[:, None]}),
        (STEPS, SEQUENCES.swapaxes(1, 2), {}),
        (SOFT[:6].reshape(2, 3, C).astype(np.float64), SEQUENCES, {"sample_weight": np.ones((2, 3))}),
        (np.array(2), LOGITS[0], {}),
        (ONE_HOT.astype(int).tolist(), P.tolist(), {}),
        (STEPS.tolist(), SEQUENCES.tolist(), {}),
    ],
)
def test_arrays_are_made_as_is_said(y_true, y_pred, options) -> None:
    """The calls are of what NumPy makes so of what was given."""
    given = {"y_true": y_true, "y_pred": y_pred, **options}
    rows = as_rows(batch_of(**given)[0])[0]
    assert rows.given.keys() <= given.keys()
    for name in given:
        np.testing.assert_array_equal(eval(rows.given.get(name, name), {"np": np, **given}), getattr(rows, name))


@pytest.mark.parametrize(
    ("y_true", "y_pred", "observed", "words", "said", "arrays"),
    [
        (
            ONE_HOT[:, 0],
            P[:, :1],
            -np.mean(ONE_HOT[:, 0] * np.log(P[:, :1]) + (1 - ONE_HOT[:, 0]) * np.log(1 - P[:, :1])),
            "Keras' `BinaryCrossentropy`",
            "y_true of shape (32,) and y_pred of shape (32, 1) were broadcast to (32, 32)",
            {"y_true": "np.broadcast_to(y_true, (32, 32))", "y_pred": "np.broadcast_to(y_pred, (32, 32))"},
        ),
        (
            SOFT[0],
            P[0],
            scipy.rel_entr(SOFT[0], P[0]).sum(),
            "SciPy's `entropy.mean()`",
            "y_true and y_pred read as one distribution",
            {"y_true": "np.asarray(y_true)[None]", "y_pred": "np.asarray(y_pred)[None]"},
        ),
        (
            np.arange(N) % C + 1,
            LOGITS,
            pytorch.cross_entropy(LOGITS, np.arange(N) % C),
            "Keras' `SparseCategoricalCrossentropy(from_logits=True)`",
            "the labels start at 1",
            {"y_true": "np.subtract(y_true, 1)"},
        ),
        (
            LABELS[:25].reshape(5, 5),
            LOGITS[:25].reshape(5, 5, C),
            pytorch.cross_entropy(LOGITS[:25].reshape(5, 5, C), LABELS[:25].reshape(5, 5)),
            "Keras' `SparseCategoricalCrossentropy(from_logits=True)`",
            "the classes lie along axis 1",
            {"y_true": "y_true.reshape(-1)", "y_pred": "np.moveaxis(y_pred, 1, -1).reshape(-1, 5)"},
        ),
        (
            LABELS,
            LOGITS,
            pytorch.nll_loss(np.log(np.exp(LOGITS) / np.exp(LOGITS).sum(0)), LABELS),
            "Keras' `CategoricalCrossentropy(from_logits=True)`, but classes along axis 0; "
            "divided by the number of classes, C = 32",
            "labels read as one-hot rows",
            {},  # no calls are given for another axis
        ),
    ],
)
def test_other_readings(y_true, y_pred, observed, words, said, arrays) -> None:
    """Where nothing explains the number, the arrays may be something else."""
    found = lb.diagnose(y_true, y_pred, np.float32(observed))
    assert found.classes[0].explanations[0].words == words
    assert any(said in warning for warning in found.warnings)
    assert found.arrays == arrays


def test_other_readings_keep_the_form_of_the_arrays() -> None:
    """Gradients are moved with their arrays; a probe is such as the caller's code takes."""
    logits, labels = LOGITS[:25].reshape(5, 5, C), LABELS[:25].reshape(5, 5)
    _, gradient = lb.value_and_grad(lambda t, x: pytorch.cross_entropy(x, t))(labels, logits)
    assert first(labels, logits, gradient) == "Keras' `SparseCategoricalCrossentropy(from_logits=True)`"
    probe = lb.diagnose(labels, logits, np.float32(pytorch.cross_entropy(logits, labels))).probe()
    assert probe is not None
    assert np.float32(pytorch.cross_entropy(probe.y_pred, probe.y_true)) == pytest.approx(probe.predictions[0][1])
    labels = (np.arange(N) % C + 1)[:, None].astype(np.float64)
    found = lb.diagnose(labels, LOGITS, np.float32(pytorch.cross_entropy(LOGITS, np.arange(N) % C)))
    assert found.arrays == {"y_true": "np.subtract(y_true[..., 0].astype('int64'), 1)"}
    probe = found.probe()
    assert probe is not None
    assert set(probe.y_true) == set(range(1, C + 1))


def test_distributions_of_images() -> None:
    """With the classes along axis 1, which is what sums to 1."""
    logits = RNG.normal(size=(2, 4, 3, 5)).astype(np.float32)
    targets = np.moveaxis(RNG.dirichlet(np.ones(4), (2, 3, 5)), -1, 1).astype(np.float32)
    found = lb.diagnose(targets, logits, pytorch.cross_entropy(logits, targets))
    assert found.classes[0].explanations[0].words == "Keras' `CategoricalCrossentropy(from_logits=True)`"
    assert found.arrays["y_true"] == "np.moveaxis(y_true, 1, -1).reshape(-1, 4)"
    values = pytorch.cross_entropy(logits, targets, reduction="none")
    assert first(targets, logits, values) == "Keras' `CategoricalCrossentropy(from_logits=True, reduction='none')`"
    words = first(
        targets, logits, pytorch.kl_div(np.log(np.exp(logits) / np.exp(logits).sum(1, keepdims=True)), targets)
    )
    assert "multiply by C = 4 (`batchmean` divides by the size of axis 0, 2, alone)" in words


# Several batches.


def test_several_batches_narrow_the_explanations() -> None:
    batches = [(LABELS[i : i + 8], P[i : i + 8]) for i in (0, 8, 16, 24)]
    seen = [float(f"{lb.sparse_categorical_crossentropy(*batch, label_smoothing=0.1):.2g}") for batch in batches]
    alone = lb.diagnose(*batches[0], seen[0])
    together = lb.diagnose(*batches[0], seen[0], more=[(*b, x) for b, x in zip(batches[1:], seen[1:], strict=True)])
    left, before = (
        {e.convention for group in found.classes for e in group.explanations} for found in (together, alone)
    )
    assert left < before
    assert any("label smoothing s = 0.1" in e.words for group in together.classes for e in group.explanations)
    weights = RNG.uniform(0.5, 2, 8)
    weighted = float(lb.sparse_categorical_crossentropy(*batches[1], sample_weight=weights))
    found = lb.diagnose(
        *batches[0],
        float(lb.sparse_categorical_crossentropy(*batches[0], sample_weight=weights)),
        sample_weight=weights,
        more=[(*batches[1], weighted, {"sample_weight": weights})],
    )
    assert "sample_weight" in found.classes[0].explanations[0].words


def test_what_only_a_further_batch_has_counts() -> None:
    weight = RNG.uniform(1, 2, 16)
    plain = pytorch.cross_entropy(LOGITS[:16], LABELS[:16])
    weighted = keras.SparseCategoricalCrossentropy(True, reduction="mean_with_sample_weight")
    weighted = weighted(LABELS[16:], LOGITS[16:], weight)
    further = (LABELS[16:], LOGITS[16:], float(weighted), {"sample_weight": weight})
    words = first(LABELS[:16], LOGITS[:16], float(plain), more=[further])
    assert "reduction='mean_with_sample_weight', sample_weight=sample_weight" in words
    labels = np.where(np.arange(16) % 4 == 0, -100, LABELS[16:])
    counted = float(pytorch.cross_entropy(LOGITS[16:], labels, reduction="sum") / 16)
    words = first(LABELS[:16], LOGITS[:16], float(plain), more=[(labels, LOGITS[16:], counted)])
    assert "still counted in the mean" in words


def test_calls_are_of_the_first_batch_and_probes_of_all() -> None:
    x = np.array([[2, -1, 0.5], [0, 1, -1], [1, 2, 3]], np.float32)
    labels = [0, 1, -100]
    seen = [float(pytorch.cross_entropy(x, y)) for y in ([0, 1, 2], labels)]
    found = lb.diagnose([0, 1, 2], x, seen[0], more=[(labels, x, seen[1])])
    assert found.classes[0].calls["torch"] == "F.cross_entropy(y_pred, y_true.long())"
    probe = found.probe()
    assert probe is not None
    assert -100 in probe.y_true
    mask = np.array([True, True, False])
    further = ([0, 1, 2], x, float(pytorch.cross_entropy(x[:2], [0, 1])), {"mask": mask})
    found = lb.diagnose([0, 1, 2], x, seen[0], more=[further])
    assert found.classes[0].calls["torch"] == "F.cross_entropy(y_pred, y_true.long())"
    probe = found.probe()
    assert probe is not None
    assert probe.mask is not None


def test_the_nearest_of_several_batches_fits_most_of_them() -> None:
    seen = [float(pytorch.cross_entropy(LOGITS[i : i + 16], LABELS[i : i + 16])) for i in (0, 16)]
    found = lb.diagnose(LABELS[:16], LOGITS[:16], seen[0], more=[(LABELS[16:], LOGITS[16:], seen[1] * 1.0001)])
    assert not found.fits
    assert any("fits 1 of the batches, then gives" in words for words in found.nearest)
    assert any("; the number is 1.0001 times that" in words for words in found.nearest)


@pytest.mark.parametrize(
    ("y_true", "y_pred", "observed"),
    [
        (LABELS, LOGITS, pytorch.cross_entropy(LOGITS, LABELS)),
        (SOFT, LOGITS, pytorch.cross_entropy(LOGITS, SOFT)),
        (STEPS, SEQUENCES, pytorch.cross_entropy(SEQUENCES.reshape(-1, C), STEPS.reshape(-1))),
        (STEPS, SEQUENCES.swapaxes(1, 2), pytorch.cross_entropy(SEQUENCES.swapaxes(1, 2), STEPS)),
        (ONE_HOT, P, lb.categorical_crossentropy(ONE_HOT, P)),
        (SOFT, np.log(P), lb.categorical_crossentropy(SOFT, P)),
    ],
)
def test_there_is_a_probe_of_every_kind(y_true, y_pred, observed) -> None:
    found = lb.diagnose(y_true, y_pred, float(observed))
    probe = found.probe()
    assert probe is not None
    assert len({f"{value:.4g}" for _, value in probe.predictions}) > 3
    assert probe.y_pred.ndim == y_pred.ndim
    again = lb.diagnose(probe.y_true, probe.y_pred, np.float32(probe.predictions[0][1]))
    assert probe.predictions[0][0] in {e.words for e in again.classes[0].explanations}


def test_what_the_data_cannot_tell_a_probe_can() -> None:
    found = lb.diagnose(LABELS, P, float(lb.sparse_categorical_crossentropy(LABELS, P)))
    assert "This data cannot tell it from" in str(found)
    probe = found.probe()
    assert probe is not None
    predicted = dict(probe.predictions)
    assert len({f"{value:.5g}" for value in predicted.values()}) > 3
    for words, call in {
        "Keras' `SparseCategoricalCrossentropy`": keras.SparseCategoricalCrossentropy(),
        "PyTorch's `cross_entropy` of log(y_pred)": lambda t, p: pytorch.cross_entropy(np.log(p), t),
        "scikit-learn's `log_loss`": lambda t, p: sklearn.log_loss(t, p, labels=list(range(C))),
    }.items():
        value = call(probe.y_true, probe.y_pred)
        assert float(value) == pytest.approx(predicted[words], rel=1e-5), words
        again = lb.diagnose(probe.y_true, probe.y_pred, np.float32(value))
        assert again.classes[0].explanations[0].words == words
    assert "y_pred = [[" in str(probe)
    assert repr(probe) == str(probe)
    assert repr(found) == str(found)


def test_nothing_fits() -> None:
    found = lb.diagnose(LABELS, P, 123456.789)
    assert not found.fits
    assert found.probe() is None
    assert len(found.nearest) == 3
    assert "nothing fits, of" in str(found)
    assert all("; the number is" in words and "times that, or +12" in words for words in found.nearest)
    assert "Pass what was used, if you know it: temperature=" in str(found)


def test_what_was_meant() -> None:
    found = lb.diagnose(SOFT, P, pytorch.kl_div(np.log(P), SOFT), expected="torch.kl_div(reduction='batchmean')")
    value = float(pytorch.kl_div(np.log(P), SOFT, reduction="batchmean"))
    assert f"Meant: PyTorch's `kl_div(reduction='batchmean')` of log(y_pred), which gives {value:.6g}" in str(found)
    assert "F.kl_div(torch.log(y_pred), y_true, reduction='batchmean')" in str(found)
    with pytest.raises(ValueError, match=r"expected 'torch.kldiv' is unknown .*; did you mean .*torch.kl_div"):
        lb.diagnose(SOFT, P, 1.0, expected="torch.kldiv")


@pytest.mark.parametrize(
    ("observed", "fits"), [("1.18", True), ("1.2", True), ("1.1769", True), ("1.1771", False), (1.1769392, True)]
)
def test_digits_are_taken_as_written(observed, fits) -> None:
    y_true, y_pred = [[0, 1, 0], [0, 0, 1]], [[0.05, 0.95, 0.0], [0.1, 0.8, 0.1]]
    found = lb.diagnose(y_true, y_pred, observed)
    assert ("Keras' `CategoricalCrossentropy`" in {e.words for g in found.classes for e in g.explanations}) is fits


@pytest.mark.parametrize(
    ("expected", "words"),
    [
        ('F.kl_div(reduction="batchmean")', "PyTorch's `kl_div(reduction='batchmean')` of log(y_pred), which"),
        (
            "F.kl_div(torch.log(y_pred), y_true, reduction='batchmean')",
            "`kl_div(reduction='batchmean')` of log(y_pred)",
        ),
        ("torch.nn.KLDivLoss(reduction='mean', log_target=False)", "PyTorch's `kl_div` of log(y_pred), which"),
        ("lb.kl_divergence", "lossbridge's `kl_divergence`, which"),
        (
            "keras.losses.CategoricalCrossentropy(label_smoothing=0.1)(y_true, y_pred)",
            "with label_smoothing=0.1, which",
        ),
        ("tf.keras.losses.CategoricalCrossentropy(from_logits=False)", "Keras' `CategoricalCrossentropy`, which"),
        (
            "keras.CategoricalCrossentropy(False, 0.1)",
            "Keras' `CategoricalCrossentropy` with label_smoothing=0.1, which",
        ),
        (
            "keras.CategoricalCrossentropy()(y_true, y_pred, sample_weight)",
            "Keras' `CategoricalCrossentropy(sample_weight=sample_weight)`, which",
        ),
        ("scipy.stats.entropy(y_true, y_pred, 2, axis=1)", "SciPy's `entropy.mean()` with axis=1, base=2, which"),
        ("scipy.special.rel_entr.sum()", "SciPy's `rel_entr.sum()`, which"),
        ("scipy.stats.entropy(base=2, axis=1)", "SciPy's `entropy.mean()` with base=2, axis=1, which"),
        ("lb.categorical_crossentropy(y_true, y_pred, epsilon=0)", "lossbridge's `categorical_crossentropy` with eps"),
        (
            "keras.CategoricalCrossentropy(sample_weight=sample_weight, reduction='sum')",
            "Keras' `CategoricalCrossentropy(reduction='sum', sample_weight=sample_weight)`, which",
        ),
    ],
)
def test_what_was_meant_is_called_as_in_code(expected, words) -> None:
    found = lb.diagnose(SOFT, P, 1.0, expected=expected, sample_weight=np.arange(N))
    assert words in found.meant


def test_what_was_meant_by_place() -> None:
    """As the class itself gives it."""
    meant = f"gives {float(keras.SparseCategoricalCrossentropy(True)(LABELS, LOGITS)):.9f}"[:12]
    for expected in ("keras.SparseCategoricalCrossentropy(True)", "keras.sparse_categorical_crossentropy(y, p, True)"):
        assert meant in lb.diagnose(LABELS, LOGITS, 1.0, expected=expected).meant


def test_what_was_meant_of_values() -> None:
    values = pytorch.cross_entropy(LOGITS, LABELS, reduction="none")
    found = lb.diagnose(LABELS, LOGITS, values, expected="F.cross_entropy(reduction='none')")
    assert found.meant.startswith("Meant: PyTorch's `cross_entropy`\n")
    assert "F.cross_entropy(y_pred, y_true.long(), reduction='none')" in found.meant


@pytest.mark.parametrize(
    ("expected", "words"),
    [
        ("torch.cross_entropy(label_smoothing=1.2.3)", "which is no call; pass one, such as 'torch.kl_div'"),
        (
            "torch.cross_entropy(label_smoothing=2)",
            "expected names label_smoothing=2, which torch.cross_entropy does not",
        ),
        (
            "torch.cross_entropy(label_smoothing=x)",
            "expected names label_smoothing=x, which torch.cross_entropy does not",
        ),
        ("lb.log_loss(epsilon=5)", "expected names epsilon=5, which lossbridge.log_loss does not take; correct it"),
        ("keras.SparseCategoricalCrossentropy(axis=1.5)", "expected names axis=1.5, which"),
        (
            "torch.cross_entropy(weight=class_weight)",
            "names weight=class_weight, and none is given; pass class_weight=",
        ),
        ("torch.cross_entropy(weight=w)", "expected names weight=w, and none is given; pass class_weight= too"),
        ("torch.cross_entropy(ignore_index=0)", "expected names ignore_index=0; pass ignore_class=0 too"),
        ("torch.cross_entropy(label_smoothing=.1, label_smoothing=.2)", "names label_smoothing twice; name it once"),
        ("keras.SparseCategoricalCrossentropy(True, from_logits=True)", "names from_logits twice; name it once"),
        ("keras.SparseCategoricalCrossentropy(axis=True)", "expected names axis=True, which"),
        ("torch.nn.CrossEntropyLoss(w)", "expected names weight=w, and none is given; pass class_weight= too"),
        ("torch.nn.CrossEntropyLoss(None, True)", "gives True by its place; name it, as in axis=-1"),
        ("F.cross_entropy(y_pred, y_true, None, None, 0)", "gives None by its place; name it"),
        ("F.cross_entropy('sum')", "gives 'sum' by its place; name it"),
        ("lb.log_loss(y_true, y_pred, True)", "gives True by its place; name it"),
        ("keras.SparseCategoricalCrossentropy(foo=1)", "is unknown for such arrays; did you mean"),
        ("lambda: 3", "'lambda: 3' is unknown for such arrays; did you mean"),
    ],
)
def test_what_cannot_be_meant(expected, words) -> None:
    with pytest.raises(ValueError, match=re.escape(words)) as raised:
        lb.diagnose(LABELS, LOGITS, 1.0, expected=expected)
    assert len(str(raised.value).splitlines()) == 1


def test_what_was_meant_with_a_label_left_out() -> None:
    ignoring = f"{float(pytorch.cross_entropy(LOGITS, LABELS, ignore_index=0)):.9g}"
    found = lb.diagnose(LABELS, LOGITS, 1.0, ignore_class=0, expected="F.cross_entropy(ignore_index=0)")
    assert f"with ignore_index=0, which gives {ignoring[:7]}" in found.meant
    plain = f"{float(pytorch.cross_entropy(LOGITS, LABELS)):.9g}"
    assert f"gives {plain[:7]}" in lb.diagnose(LABELS, LOGITS, 1.0, expected="F.cross_entropy(ignore_index=-100)").meant


def test_an_epsilon_of_your_own() -> None:
    y_pred = np.where(ONE_HOT == 1, np.float32(1e-5), P)
    observed = lb.categorical_crossentropy(ONE_HOT, y_pred, epsilon=3e-4)
    assert "clipped to [0.0003, 1 − 0.0003]" in first(ONE_HOT, y_pred, observed)
    observed = lb.categorical_crossentropy(ONE_HOT, y_pred, epsilon=3.217e-4)  # not round
    assert not any(
        "0.000322" in e.words for g in lb.diagnose(ONE_HOT, y_pred, observed).classes for e in g.explanations
    )
    assert "clipped to [0.000322, 1 − 0.000322]" in first(ONE_HOT, y_pred, observed, epsilon=3.217e-4)


# What it says of the data.


@pytest.mark.parametrize(
    ("y_true", "y_pred", "words"),
    [
        (LABELS + 1, P, "label 5 at position"),
        (np.arange(N) % C + 1, P, "labels run from 1 to 5: do they start at 1?"),
        (LABELS, P * 0.9, "rows of y_pred do not sum to 1"),
        (LABELS, LOGITS, "y_pred holds values outside [0, 1]"),
        (LABELS.astype(np.float32), P, "labels are float32; libraries want integers"),
        (ONE_HOT.astype(int), P, "y_true is one-hot and of integers"),
        (SOFT * 2, P, "y_true holds values outside [0, 1]"),
        (LABELS[:, None], P, "y_true has shape (32, 1): read as labels"),
        (ONE_HOT[:, 0], P[:, :1], "some libraries broadcast these two to (32, 32)"),
        (ONE_HOT, np.where(P < 0.1, 0, P), "of y_pred are exactly 0"),
        (LABELS, np.where(np.arange(C) == 1, np.nan, P), "y_pred holds nan at index (0, 1)"),
        (LABELS.reshape(8, 4), P.reshape(8, 4, C).swapaxes(1, 2), "classes read along axis 1"),
        (np.where(LABELS == 0, 255, LABELS), P, "labels are 255, which is none of the classes 0 to 4"),
        ((P > 0.2).astype(np.float32), P, "rows of y_true do not hold a single 1"),
        (ONE_HOT[:, 0] * 2 - 1, P[:, 0], "y_true holds -1 and 1: outcomes are 0 and 1"),
        (LABELS, np.where(LOGITS > 1, LOGITS, -np.inf), "-inf at index (0, 0): off the target it costs nothing"),
    ],
)
def test_warnings(y_true, y_pred, words) -> None:
    found = lb.diagnose(y_true, y_pred, 7777.777)
    assert any(words in warning for warning in found.warnings), found.warnings
    assert f"Warning: {found.warnings[0]}" in str(found)


def test_logits_are_no_surprise_where_they_explain_the_number() -> None:
    words = "y_pred holds values outside [0, 1]"
    assert words not in str(lb.diagnose(LABELS, LOGITS, lb.log_loss(LABELS, LOGITS, from_logits=True)))
    assert words in str(lb.diagnose(LABELS, LOGITS, 7777.777))


def test_no_logarithm_of_one_hot_rows_is_printed() -> None:
    found = lb.diagnose(ONE_HOT, LOGITS, lb.categorical_crossentropy(ONE_HOT, LOGITS, from_logits=True))
    assert found.classes[0].calls["lossbridge"] == "lb.categorical_crossentropy(y_true, y_pred, from_logits=True)"


def test_what_is_changed_is_not_said_to_be_as_it_was() -> None:
    """γ = 2 is of MONAI's FocalLoss, which alone takes labels for the outcomes of all classes; here γ = 0."""
    number = lb.binary_crossentropy(ONE_HOT, LOGITS, from_logits=True)
    words = lb.diagnose(LABELS, LOGITS, f"{number:.6f}").classes[0].explanations[0].words
    assert words == f"MONAI's `FocalLoss`: divided by the number of elements, N·C = {LOGITS.size}; and γ = 0"


def test_no_warning_where_nothing_is_wrong() -> None:
    import ml_dtypes

    for y_true, y_pred in ((LABELS, P), (ONE_HOT, P), (SOFT, P), (LABELS, P.astype(ml_dtypes.bfloat16))):
        assert lb.diagnose(y_true, y_pred, 1.0).warnings == ()


def test_nothing_that_is_finite() -> None:
    labels = np.where(np.arange(N) < 2, -1 - np.arange(N), LABELS)
    found = lb.diagnose(labels, LOGITS, 1.5)
    assert found.nearest == ()
    assert "none of which gives a finite number for this data" in str(found)


# What it refuses.


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        (([], [], 1.0), {}, ValueError, "y_pred has shape .0,., which holds nothing; pass at least one sample"),
        (
            (LABELS[:3], P, 1.0),
            {},
            ValueError,
            r"y_true has shape \(3,\), and labels for y_pred \(32, 5\) have \(32,\)",
        ),
        ((SOFT[:, :3], P, 1.0), {}, ValueError, r"y_true has shape \(32, 3\), and targets for y_pred"),
        ((LABELS, P[0], 1.0), {}, ValueError, "y_true has shape"),
        ((LABELS, P, "one"), {}, ValueError, "observed is 'one', which is no number"),
        ((LABELS, P, None), {}, TypeError, "observed is None; pass the number to explain"),
        (
            (LABELS, P, np.ones(3)),
            {},
            ValueError,
            r"observed has shape \(3,\); pass a scalar, per-sample values \(32,\)",
        ),
        ((LABELS, P, 1.0), {"quantity": "slope"}, ValueError, "quantity is 'slope'; use 'gradient' or 'value'"),
        ((LABELS + 0.5, P, 1.0), {}, ValueError, "y_true holds fractions, and has no axis of classes"),
        (
            (LABELS, P, 1.0),
            {"class_weight": [1.0, 2.0]},
            ValueError,
            r"class_weight has shape \(2,\); give one number a",
        ),
        ((LABELS, P, 1.0), {"sample_weight": np.ones(3)}, ValueError, r"sample_weight has shape \(3,\), and samples"),
        ((LABELS, P, 1.0), {"more": [(LABELS, P)]}, ValueError, "more holds 2 things; give .y_true, y_pred, observed."),
        ((LABELS, P, 1.0), {"more": [(SOFT, P, 1.0)]}, ValueError, "of another form than the first"),
        ((LABELS, ["a", "b"], 1.0), {}, TypeError, "y_pred"),
        ((np.full(N, np.nan), P, 1.0), {}, ValueError, "y_true holds nan at index 0: labels are integers"),
        ((np.full(N, 1e30), P, 1.0), {}, ValueError, r"y_true holds 1e\+30, which is no label"),
        ((LABELS, P, 10**400), {}, ValueError, "which is no number"),
        *(
            ((LABELS, P, text), {}, ValueError, "which is no number; pass one, as 1.1769392")
            for text in ("1_0", "0x10", "1e1_0", "１.５", "٣", "1,5", "1e", ".", "")
        ),
        ((LABELS, P, 1.0), {"quantity": "gradient"}, ValueError, r"observed as a gradient has shape \(\); pass"),
        ((LABELS, P, 1.0), {"label_smoothing": "a"}, TypeError, "label_smoothing is 'a'; pass one number"),
        ((LABELS, P, 1.0), {"label_smoothing": 2}, ValueError, "label_smoothing is 2; pass a number between 0 and 1"),
        ((LABELS, P, 1.0), {"epsilon": -1}, ValueError, "epsilon is -1; pass a number between 0 and 0.5"),
        ((LABELS, P, 1.0), {"ignore_class": True}, TypeError, "ignore_class is True; pass a label, an integer"),
        ((SOFT, P, 1.0), {"ignore_class": 1}, ValueError, "ignore_class is 1, and y_true holds no labels"),
        ((LABELS, P, 1.0), {"class_weight": [1, 1, -1, 1, 1]}, ValueError, "class_weight holds -1 at index 2; weights"),
        ((LABELS, P, 1.0), {"sample_weight": [np.nan] * N}, ValueError, "sample_weight holds nan at index 0; weights"),
        ((LABELS, P, 1.0), {"mask": [0.5] * N}, ValueError, "mask holds numbers other than 0 and 1"),
        ((LABELS, P, 1.0), {"expected": 3}, TypeError, "expected is 3; pass a text"),
        ((LABELS, P, 1.0), {"expected": "foo"}, ValueError, "'foo' is unknown for such arrays; did you mean "),
        ((LABELS, P, 1.0), {"more": None}, TypeError, "more is None; pass a list"),
        ((LABELS, P, 1.0), {"more": [5]}, ValueError, "more holds a int; give"),
        ((LABELS, P, 1.0), {"more": [(LABELS, P, 1.0, {"foo": 1})]}, ValueError, "the fourth entry of a further batch"),
        ((LABELS, P, 1.0), {"more": [(LABELS[:3], P, 1.0)]}, ValueError, r"further batch 1: y_true has shape \(3,\)"),
        (
            (LABELS, P, 1.0),
            {"more": [(LABELS % 3, P[:, :3], 1.0)]},
            ValueError,
            "further batch 1: it is of another form",
        ),
    ],
)
def test_errors(arguments, options, error, words) -> None:
    with pytest.raises(error, match=words) as raised:
        lb.diagnose(*arguments, **options)
    assert len(str(raised.value).splitlines()) == 1


def test_nothing_given_is_changed() -> None:
    arrays = {"y_true": SOFT.copy(), "y_pred": P.copy(), "class_weight": WEIGHT.copy()}
    before = {name: x.copy() for name, x in arrays.items()}
    for x in arrays.values():
        x.flags.writeable = False
    lb.diagnose(arrays["y_true"], arrays["y_pred"], 1.0, class_weight=arrays["class_weight"])
    for name, x in arrays.items():
        np.testing.assert_array_equal(x, before[name])


# How large, and how often right.


def test_progress_is_told() -> None:
    shares: list[float] = []
    lb.diagnose(SOFT, P, 1.0, advance=shares.append)
    assert len(shares) > 1
    assert sum(shares) == pytest.approx(1)


LARGE = """
import resource, sys, numpy as np, lossbridge as lb
rng = np.random.default_rng(0)
logits = rng.normal(size=(10_000, 100)).astype(np.float32)
targets = rng.dirichlet(np.ones(100), 10_000).astype(np.float32)
start = resource.getrusage(resource.RUSAGE_SELF)
found = lb.diagnose(targets, logits, float(lb.categorical_crossentropy(targets, logits, from_logits=True)))
end = resource.getrusage(resource.RUSAGE_SELF)
assert found.classes[0].changes == 0
print(end.ru_utime + end.ru_stime - start.ru_utime - start.ru_stime, end.ru_maxrss / 1024)
"""


def test_a_large_batch_takes_seconds_and_little_memory() -> None:
    """10 000 × 100: under 10 s on two cores (20 s of one), and under 1 GiB with the whole process."""
    started = time.monotonic()
    result = subprocess.run([sys.executable, "-c", LARGE], capture_output=True, text=True, check=True)
    seconds, mebibytes = map(float, result.stdout.split())
    assert seconds < 20, f"{time.monotonic() - started:.1f} s by the clock"
    assert mebibytes < 1024


KINDS = dict(trial.ordinary_batches())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("every", [12, pytest.param(4, marks=pytest.mark.exhaustive)])
def test_hidden_answers(kind, every) -> None:
    """One hypothesis in `every`; `python -m lossbridge.tools.diagnosis.trial` tries all of them."""
    score = trial.score(kind, KINDS[kind], every=every)
    assert score.probe_first == score.tried > 400 / every
    assert score.probe_simplest >= 0.95 * score.tried
    assert score.ordinary_three >= 0.9 * score.ordinary
