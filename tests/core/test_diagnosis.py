"""`lossbridge.diagnose`: what it finds, what it says, what it refuses. Its arithmetic: test_conventions.py."""

from __future__ import annotations

import resource
import subprocess
import sys
import time

import numpy as np
import pytest

import lossbridge as lb
from lossbridge.compat import keras, optax, sklearn
from lossbridge.compat import torch as pytorch
from lossbridge.diagnosis import trial

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
    assert "8 labels are -100: taken as labels to ignore" in found.warnings
    assert found.classes[0].changes == 0
    counted = pytorch.cross_entropy(LOGITS, labels, reduction="sum") / N
    assert "still counted in the mean" in first(labels, LOGITS, np.float32(counted))


def test_numbers_that_are_none() -> None:
    """0·log 0, a mean over nothing, float16."""
    zero = np.where(ONE_HOT == 1, P, 0)
    with np.errstate(all="ignore"):
        naive = -(ONE_HOT * np.log(zero)).sum(1).mean()
    assert np.isnan(naive)
    found = lb.diagnose(ONE_HOT, zero, naive)
    assert "0·∞, and a mean over nothing, left undefined" in found.classes[0].explanations[0].words
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
    assert "optax's `sigmoid_binary_cross_entropy" in str(lb.diagnose(ONE_HOT, LOGITS, elements, quantity="value"))


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
    assert "off, relatively" in str(found)


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
    ],
)
def test_warnings(y_true, y_pred, words) -> None:
    found = lb.diagnose(y_true, y_pred, 1.0)
    assert any(words in warning for warning in found.warnings), found.warnings
    assert f"Warning: {found.warnings[0]}" in str(found)


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
    assert resource.getpagesize() > 0


KINDS = dict(trial.ordinary_batches())


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_answers(kind) -> None:
    """One hypothesis in four, as `python -m lossbridge.diagnosis.trial` tries all of them."""
    score = trial.score(kind, KINDS[kind], every=4)
    assert score.probe_first == score.tried > 100
    assert score.probe_simplest >= 0.95 * score.tried
    assert score.ordinary_three >= 0.9 * score.ordinary
