"""The kinds of numbers that people ask about: small arrays whose right value is known, and what is said of each."""

from __future__ import annotations

import re
import time

import numpy as np
import pytest

import lossbridge as lb

X = np.float32([[1, 0, -1], [0.5, 2, 0], [0, 0.2, 0.4], [-1, 1, 1.5], [0.3, -0.2, 0.1]])
Y = np.array([0, 1, 0, 2, 2])
T, Q, W = np.float32([1, 0, 0, 1, 1]), np.float32([0.7, 0.2, 0.6, 0.45, 0.9]), np.float32([1, 2, 3, 4, 5])
MULTI = np.float32([[1, 0, 1], [0, 1, 0], [0, 0, 0], [1, 0, 0], [0, 0, 0]])  # 4 positives
P = np.exp(X) / np.exp(X).sum(-1, keepdims=True)
CERTAIN = [[0.9, 0.1], [0, 1], [0.3, 0.7]]
EVENTS, SCORES = [1, 0, 0, 1], [0.5, -1, 2, -0.3]
TEACHER, STUDENT = [[2, 0, -1], [0, 1, 0.5]], [[1, 0.5, -0.5], [0.2, 0.1, 0.9]]
SATURATED = np.float32(1 / (1 + np.exp(-np.float32([40, -1, 0.5]))))

# (y_true, y_pred, the number, what was used, the first line).
CASES = [
    # 2: a function that gives another number, or refuses the arrays, is not named.
    (MULTI, X, "2.608590", {}, r"optax's `sigmoid_binary_cross_entropy\.sum\(-1\)\.mean\(\)`$"),
    ([0.25, 1, 0.5], [0.3, 0.8, 0.6], "0.552717", {"sample_weight": [1, 2, 4]}, r"lossbridge's `log_loss\("),
    (T, Q, "1.439986", {"sample_weight": W}, r"Keras' `BinaryCrossentropy\(sample_weight=sample_weight\)`$"),
    (T, Q, "1.454534", {"sample_weight": W}, r"lossbridge's `log_loss\(sample_weight=sample_weight\)`$"),
    (np.eye(3)[Y].T, X.T, "0.727142", {}, r"Keras' .*, but classes along axis 0$"),
    # 3: a constant factor.
    (Y, X, "1.454285", {}, r", but multiplied by 2, as a deviance, or two accumulation steps$"),
    (Y, X, "0.908928", {}, r", but divided by the number of samples less one, N − 1 = 4$"),
    (Y, X, "0.145428", {}, r", but divided by the square of the number of samples, N² = 25$"),
    (Y, X, "744.593713", {}, r", but multiplied by 1024, as by loss scaling$"),
    (Y, X, "7.271423", {}, r", but summed, not averaged; multiplied by 2, as a deviance"),
    (MULTI, X, "3.260738", {}, r", but divided by the number of positives, or .* = 4$"),
    (MULTI, X, "0.822996", {}, r"Focal.*apply_class_balancing=True.*, but divided by the number of positives"),
    # 4: one coefficient that is in no list.
    (Y, X, "0.860913", {}, r", but temperature T = 2, the logits divided by it$"),
    (Y, X, "0.877142", {}, r", but label smoothing s = 0\.25, s/K to every class$"),
    ([0, 0, 1], CERTAIN, "1.689069", {}, r", but probabilities clipped to \[0\.01, 1 − 0\.01\]$"),
    (EVENTS, SCORES, "1.606372", {}, r", but pos_weight = 3$"),
    (EVENTS, SCORES, "0.570957", {}, r"Focal.*, but γ = 1\.5$"),
    (EVENTS, SCORES, "0.219698", {}, r"Focal.*, but α = 0\.6$"),
    # 5: distillation.
    (TEACHER, STUDENT, "0.224136", {}, r"temperature T = 2, both logits divided by it, the result times T²$"),
    # 7: which rows count.
    (Y, X, "0.638735", {}, r", but class 0 left out$"),
    (Y, X, "0.637443", {}, r", but the first 4 of 5 rows alone$"),
    (MULTI, X, "0.766678", {}, r", but only the positives, divided by their number, 4$"),
    # 8 and 9: means in two steps, and weights that follow from the labels, which here are the same.
    (Y, X, "0.657011", {}, r", but the mean of each class first, then that of the classes$"),
    (T, Q, "1.488430", {"class_weight": [1, 5]}, r"Keras' `BinaryCrossentropy`, but the class weights used$"),
    # 10: ε.
    ([0, 0, 1], CERTAIN, "12.434466", {}, r", but log\(p \+ 1e-16\)$"),
    ([0, 0, 1], CERTAIN, "7.061767", {}, r", but log\(p \+ 1e-09\)$"),
    # 14: a mask.
    (Y, X, "0.580953", {"mask": [1, 1, 0, 1, 1]}, r"Keras' `SparseCategoricalCrossentropy\(from_logits=True\)`$"),
    # 17: quantities near by.
    (Y, X, "0.835618", {}, r", but label smoothing s = 0\.1, s/K added to each wrong class, and nothing taken"),
    (Y, X, "0.777142", {}, r", but 0\.05 added, a constant such as a penalty$"),
    (T, Q, "0.160500", {}, r"the squared error \(t − p\)², as the Brier score"),
    ([[0.2, 0.8], [0.5, 0.5]], [[0.3, 0.7], [0.9, 0.1]], "0.054226", {}, r"the Jensen–Shannon divergence"),
]


@pytest.mark.parametrize(("y_true", "y_pred", "number", "used", "words"), CASES)
def test_what_is_said_first(y_true, y_pred, number, used, words) -> None:
    found = lb.diagnose(y_true, y_pred, number, **used)
    assert found.fits
    assert re.search(words, found.classes[0].explanations[0].words), str(found)


# (y_true, y_pred, the number, how the arrays are read, the first line).
READINGS = [
    (Y[None], X[None], "1.162443", "compared with the next label along axis 1", r"from_logits=True\)`$"),
    (Y[None], X[None], "0.929954", "compared with the next label along axis 1", r"still counted in the mean$"),
    ([0, 1, 0, -1, -1], X, "0.727142", "negative labels wrap round", r"SparseCategoricalCrossentropy"),
    (T, Q, "1.244932", "the event reversed: 1 − y_true", r"Keras' `BinaryCrossentropy`$"),
    (Y, P, "1.187142", r"(columns of y_pred) with 0 and 1 exchanged", r"Keras' `SparseCategoricalCrossentropy`$"),
    ([0.1, 0.4, 0.5], [0.3, 0.3, 0.2], "0.240213", "read as one distribution", r"SciPy's `entropy\."),
    ([3, 5, 2], [4, 4, 4], "0.068959", "read as counts", r"SciPy's `entropy\."),
]


@pytest.mark.parametrize(("y_true", "y_pred", "number", "reading", "words"), READINGS)
def test_how_the_arrays_are_read(y_true, y_pred, number, reading, words) -> None:
    found = lb.diagnose(y_true, y_pred, number)
    assert reading in found.reading
    assert reading in str(found).splitlines()[0]
    assert re.search(words, found.classes[0].explanations[0].words), str(found)


def test_a_saturated_output_holds_no_loss() -> None:
    found = lb.diagnose([0, 0, 1], SATURATED, "13.595780")
    assert not found.fits
    assert "y_pred is saturated" in str(found).splitlines()[0]
    assert "the logits behind it" in str(found)


def test_no_call_is_printed_that_is_nan_in_the_library() -> None:
    """0·∞: PyTorch and optax take the product, `lossbridge.compat` leaves it out."""
    one_hot, p = np.float32([[1, 0, 0], [0, 1, 0]]), np.float32([[0.7, 0.3, 0], [0.2, 0.8, 0]])
    found = lb.diagnose(one_hot, p, "0.289909")
    assert {"lossbridge", "keras", "sklearn"} <= set(found.classes[0].calls)
    for library, call in found.classes[0].calls.items():
        assert library not in ("torch", "optax") or "+" in call or "clip" in call or "clamp" in call, call
    assert not any("torch" in e.words or "PyTorch" in e.words for e in found.classes[0].explanations if not e.changes)
    labels = lb.diagnose([0, 1], p, "0.289909")
    assert "F.nll_loss(torch.log(y_pred), y_true.long())" in labels.classes[0].calls["torch"]


def test_a_mask_and_left_out_rows_have_calls() -> None:
    found = lb.diagnose(Y, X, "0.580953", mask=[1, 1, 0, 1, 1])
    assert found.arrays == {"mask": "np.asarray(mask, bool)"}
    assert found.classes[0].calls["torch"] == "F.cross_entropy(y_pred[mask], y_true[mask].long())"
    found = lb.diagnose(Y, X, "0.638735")
    assert found.classes[0].calls["torch"] == "F.cross_entropy(y_pred[y_true != 0], y_true[y_true != 0].long())"


def test_few_digits_say_how_many_fit_by_chance() -> None:
    found = lb.diagnose(Y, X, "0.74")
    assert found.by_chance > 1
    assert "So few digits say little: about" in str(found)
    assert lb.diagnose(Y, X, "0.860913").by_chance == 0


@pytest.mark.parametrize("digits", [5, 6, 9])
def test_a_temperature_near_which_the_loss_is_largest(digits) -> None:
    """T² KL takes such a number twice, at temperatures near each other."""
    rng = np.random.default_rng(5)
    teacher, student = rng.normal(size=(2, 6, 9))
    loss = {t: float(lb.distillation_loss(teacher, student, temperature=t)) for t in (1.5, 2.0, 3.0)}
    assert loss[2.0] > max(loss[1.5], loss[3.0])
    words = lb.diagnose(teacher, student, f"{loss[2.0]:.{digits}f}").classes[0].explanations[0].words
    assert "temperature T = 2, both logits divided by it, the result times T²" in words


def test_a_coefficient_that_is_named() -> None:
    number = lb.sparse_categorical_crossentropy(Y, X / 1.737, from_logits=True, reduction="sum")
    words = lb.diagnose(Y, X, number, temperature=1.737).classes[0].explanations[0].words
    assert "temperature T = 1.737" in words
    with pytest.raises(ValueError, match=r"alpha is 1.5; pass a number between 0 and 1$"):
        lb.diagnose(Y, X, "1", alpha=1.5)


@pytest.mark.parametrize(
    ("y_true", "y_pred", "number", "coefficients"),
    [
        (Y, X, "0.9369223", ("temperature T = 3", "label smoothing s = 0.05")),
        (EVENTS, SCORES, "0.2524803", ("γ = 1.5", "α = 0.6")),
        (EVENTS, SCORES, "1.5991655", ("pos_weight = 3", "label smoothing s = 0.1")),
    ],
)
def test_two_coefficients_are_found_at_once_where_the_digits_allow(y_true, y_pred, number, coefficients) -> None:
    first = lb.diagnose(y_true, y_pred, number).classes[0].explanations[0]
    assert first.changes == 2
    assert all(words in first.words for words in coefficients), first.words
    assert not lb.diagnose(y_true, y_pred, number[:-3]).fits


WIDE = 5 * np.random.default_rng(0).normal(size=(32, 10))
WIDE_LABELS = np.random.default_rng(1).integers(0, 10, 32)
SOFTCAP = ", but softcap c = 30, the logits z taken as c·tanh(z / c)"
Z_LOSS = ", but z-loss ζ = 0.0001, ζ·lse² added, lse = log Σ exp z"


@pytest.mark.parametrize(
    ("options", "words", "calls"),
    [
        (
            {"softcap": 30.0},
            SOFTCAP,
            {
                "lossbridge": "lb.sparse_categorical_crossentropy(y_true, y_pred, from_logits=True, softcap=30.0)",
                "torch": "F.cross_entropy(30 * torch.tanh(y_pred / 30), y_true.long())",
            },
        ),
        (
            {"z_loss": 1e-4},
            Z_LOSS,
            {"lossbridge": "lb.sparse_categorical_crossentropy(y_true, y_pred, from_logits=True, z_loss=0.0001)"},
        ),
        ({"softcap": 30.0, "z_loss": 1e-4}, SOFTCAP + Z_LOSS.replace(", but", ";"), None),
        ({"label_smoothing": 0.1, "z_loss": 1e-3}, "s = 0.1, s/K to every class; z-loss ζ = 0.001", None),
        ({"logit_scale": 2.5}, ", but temperature T = 0.4, the logits divided by it", None),
        ({"logit_scale": 3.0}, ", but temperature T = 0.333333 = 1/3, the logits divided by it", None),
    ],
)
def test_options_of_logits(options, words, calls) -> None:
    number = lb.sparse_categorical_crossentropy(WIDE_LABELS, WIDE, from_logits=True, **options)
    found = lb.diagnose(WIDE_LABELS, WIDE.astype(np.float32), f"{number:.7g}").classes[0]
    assert words in found.explanations[0].words
    assert not any("logit_scale" in explanation.words for explanation in found.explanations)
    if calls is not None:
        assert calls.items() <= found.calls.items()
        assert ("torch" in found.calls) is ("torch" in calls)  # it has no z-loss


def test_options_of_logits_are_believed_at_usual_values_alone() -> None:
    """And where the number is so far from the plain one that its last digits may be wrong."""
    for options in ({"softcap": 23.7}, {"z_loss": 3.3e-4}, {"softcap": 1000.0}, {"z_loss": 1e-7}):
        number = lb.sparse_categorical_crossentropy(WIDE_LABELS, WIDE, from_logits=True, **options)
        for digits in (5, 6, 7):
            found = lb.diagnose(WIDE_LABELS, WIDE, f"{number:.{digits}g}")
            said = [e.words for group in found.classes for e in group.explanations]
            assert not any("softcap" in words or "z-loss" in words for words in said)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"softcap": 23.7}, "softcap c = 23.7,"),
        ({"z_loss": 3.3e-4}, "z-loss ζ = 0.00033,"),
        ({"logit_scale": 1.737}, "temperature T = 0.575705, the logits divided by it"),
    ],
)
def test_options_of_logits_that_are_named(options, words) -> None:
    target = np.eye(10)[WIDE_LABELS]
    for reduction in ("sum", "none"):
        given = {**options, "from_logits": True, "reduction": reduction}
        values = lb.categorical_crossentropy(target, WIDE, **given)
        found = lb.diagnose(target, WIDE, values, **options)
        assert words in found.classes[0].explanations[0].words
        assert found.classes[0].calls["lossbridge"]
        _, gradient = lb.value_and_grad(lb.categorical_crossentropy)(target, WIDE, **{**given, "reduction": "sum"})
        assert words in lb.diagnose(target, WIDE, gradient, **options).classes[0].explanations[0].words


def test_options_of_logits_that_were_meant() -> None:
    options = {"from_logits": True, "logit_scale": 2.0, "softcap": 30.0, "z_loss": 1e-4}
    code = ", ".join(f"{name}={value}" for name, value in options.items())
    number = lb.sparse_categorical_crossentropy(WIDE_LABELS, WIDE, **options)
    found = lb.diagnose(WIDE_LABELS, WIDE, "1.0", expected=f"lb.sparse_categorical_crossentropy({code})")
    assert f"which gives {number:.9g}" in found.meant
    assert "lb.sparse_categorical_crossentropy(y_true, y_pred / 0.5, from_logits=True, softcap=30.0" in found.meant
    with pytest.raises(ValueError, match="expected names softcap=0, which lossbridge"):
        lb.diagnose(WIDE_LABELS, WIDE, "1", expected="lb.sparse_categorical_crossentropy(from_logits=True, softcap=0)")
    with pytest.raises(ValueError, match=r"z_loss is -1; pass a number between 0 and 1e\+15$"):
        lb.diagnose(WIDE_LABELS, WIDE, "1", z_loss=-1)


@pytest.mark.parametrize("number", ["2.3456", "1.2987"])
def test_it_takes_a_second_whether_it_finds_anything_or_not(number) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(32, 10)).astype(np.float32), rng.integers(0, 10, 32)
    lb.diagnose(y, x, number)
    start = time.process_time()
    lb.diagnose(y, x, number)
    assert time.process_time() - start < 6  # 1.5 s on a quiet machine, which a test's is not
