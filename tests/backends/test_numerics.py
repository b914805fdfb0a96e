"""numerics.md, line by line: rules whose figures stand there, each on this backend, values and gradients."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest

import lossbridge as lb
from lossbridge import information, reference
from lossbridge.spec import LOSSES

P = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]], np.float32)
Y = np.array([0, 1, 1], np.int32)
ONE_HOT = np.eye(3, dtype=np.float32)[Y]
W = np.array([1, 2, 5], np.float32)
INF = math.inf


def close(got, expected, relative=5e-7) -> None:
    np.testing.assert_allclose(got, expected, rtol=relative, atol=0)


# §2, the figures to beat.


def test_keras_example_to_the_bit(lib) -> None:
    y_true, y_pred = np.array([[0.0, 1, 0], [0, 0, 1]]), np.array([[0.05, 0.95, 0], [0.1, 0.8, 0.1]])
    functions = [lb.categorical_crossentropy, *(c(lb.categorical_crossentropy) for c in lib.b.compilers().values())]
    for function in functions:
        value = lib.b.to_numpy(function(lib.array(y_true), lib.array(y_pred)))
        assert value.dtype == np.float32
        assert value.shape == ()
        assert value == np.float32(1.1769392)
    per_sample = lib.value("categorical_crossentropy", y_true, y_pred, reduction="none")
    assert [f"{loss:.7f}" for loss in per_sample] == ["0.0512933", "2.3025851"]


def test_crossentropy_of_p(lib) -> None:
    close(lib.value("categorical_crossentropy", ONE_HOT, P), 0.7297521)
    close(lib.value("sparse_categorical_crossentropy", Y, P), 0.7297521)
    close(lib.value("log_loss", Y, P), 0.7297521)


def test_bits_and_perplexity_of_p(lib) -> None:
    bits = lib.b.to_numpy(information.cross_entropy(lib.array(ONE_HOT), lib.array(P))).mean()
    close(bits, 1.05281, 1e-5)
    close(2**bits, 2.07457, 1e-5)


@pytest.mark.parametrize("loss", ["categorical_crossentropy", "sparse_categorical_crossentropy"])
def test_class_weights(lib, loss) -> None:
    y = ONE_HOT if loss.startswith("c") else Y
    close(lib.value(loss, y, P, class_weight=W), 1.3406128)
    close(lib.value(loss, y, P, class_weight=W, reduction="mean_with_sample_weight"), 0.8043677)


WITH_MASS = [name for name, record in LOSSES.items() if record.mass]


@pytest.mark.parametrize(
    ("loss", "dropped"),
    [
        *((loss, "mask") for loss in WITH_MASS),
        *((loss, "ignore_class") for loss in WITH_MASS if "ignore_class" in LOSSES[loss].options),
    ],
)
def test_what_is_masked_has_no_class_weight_in_the_denominator(lib, loss, dropped) -> None:
    """Every sample that counts costs log 5, whatever it weighs, and so does their mean."""
    y, mask = np.array([2, 0, 1, 4]), np.array([True, False, True, False])
    options = {"mask": mask}
    if dropped == "ignore_class":
        options, y = {"ignore_class": 3}, np.where(mask, y, 3)
    target = y.astype(np.int32) if "labels" in LOSSES[loss].targets else np.eye(5, dtype=np.float32)[y]
    options |= {"from_logits": True, "class_weight": np.array([7, 1, 3, 5, 2], np.float32)}
    value, gradient = lib.value_and_grad(
        loss, target, np.zeros((4, 5), np.float32), **options, reduction="mean_with_sample_weight"
    )
    close(value, math.log(5))
    share = np.array([3 / 4, 0, 1 / 4, 0])[:, None]  # of the weights
    np.testing.assert_allclose(gradient, share * (0.2 - np.eye(5)[y]), rtol=5e-7)


def test_a_class_that_is_ignored_counts_nowhere(lib) -> None:
    """A class that is in range, and that other samples' predictions still share."""
    y, counted = np.array([1, 0, 2, 1], np.int32), [1, 2]
    z = np.random.default_rng(11).normal(size=(4, 3)).astype(np.float32)
    for form, options in ((z, {"from_logits": True}), (np.exp(z) / np.exp(z).sum(1, keepdims=True), {})):
        for reduction in ("mean", "sum"):
            exact = reference.sparse_categorical_crossentropy(y[counted], form[counted], **options, reduction=reduction)
            value, gradient = lib.value_and_grad(
                "sparse_categorical_crossentropy", y, form, **options, reduction=reduction, ignore_class=1
            )
            close(value, exact.value, 2e-6)
            close(gradient[counted], exact.gradient, 2e-6)
            np.testing.assert_array_equal(gradient[[0, 3]], 0)


def test_a_class_without_weight_costs_nothing_even_at_p_zero(lib) -> None:
    weight, one_hot = np.array([0, 1, 1], np.float32), np.eye(3, dtype=np.float32)[[0]]
    for y_pred, options in (
        ([[0, 0.5, 0.5]], {"epsilon": 0.0}),
        ([[-INF, 0, 0]], {"from_logits": True}),
    ):
        y_pred = np.array(y_pred, np.float32)
        for loss, y in (("categorical_crossentropy", one_hot), ("sparse_categorical_crossentropy", Y[:1])):
            value, gradient = lib.value_and_grad(loss, y, y_pred, class_weight=weight, **options)
            assert value == 0
            np.testing.assert_array_equal(gradient, 0)


def test_smoothing_one_of_an_impossible_class(lib) -> None:
    """The label itself has no weight then, all others have."""
    logits = np.array([[-INF, 0, 1]], np.float32)
    for loss, y in (("categorical_crossentropy", ONE_HOT[:1]), ("sparse_categorical_crossentropy", Y[:1])):
        assert lib.value(loss, y, logits, from_logits=True, label_smoothing=1.0) == INF
        close(lib.value(loss, y, P[:1], label_smoothing=1.0, epsilon=0.0), -np.log(P[:1]).mean(), 1e-6)


@pytest.mark.parametrize(("alpha", "p", "t"), [(1.0, 1.0, 0.0), (0.0, 0.0, 1.0)])
def test_a_balance_of_zero_pays_for_an_infinite_cost(lib, alpha, p, t) -> None:
    balanced = {"apply_class_balancing": True, "alpha": alpha}
    logit = INF if p == 1 else -INF
    for y_pred, options in (([[p, 0.5]], {"epsilon": 0.0}), ([[logit, 0.0]], {"from_logits": True})):
        y_true = [[t, 1 - t]]
        value, gradient = lib.value_and_grad(
            "binary_focal_crossentropy", y_true, np.array(y_pred, np.float32), **balanced, **options
        )
        exact = reference.binary_focal_crossentropy(y_true, y_pred, **balanced, **options)
        close(value, exact.value, 1e-6)
        close(gradient, exact.gradient, 1e-6)


@pytest.mark.parametrize(("shape", "axis"), [((20_000, 2), 0), ((2, 20_000), 1), ((2, 20_000, 2), 1)])
def test_long_sums_keep_their_digits_along_any_axis(lib, shape, axis) -> None:
    rng = np.random.default_rng(10)
    z = rng.normal(size=shape).astype(np.float32)
    t = np.exp(z) / np.exp(z).sum(axis, keepdims=True)
    for loss in ("categorical_crossentropy", "binary_crossentropy"):
        exact = getattr(reference, loss)(t, z, from_logits=True, axis=axis, reduction="none")
        close(lib.value(loss, t, z, from_logits=True, axis=axis, reduction="none"), exact.value, 2e-6)


def test_sample_weights(lib) -> None:
    close(lib.value("sparse_categorical_crossentropy", Y, P, sample_weight=W), 2.9500506)
    by_weight = lib.value("sparse_categorical_crossentropy", Y, P, sample_weight=W, reduction="mean_with_sample_weight")
    close(by_weight, 1.1062690)


@pytest.mark.parametrize("loss", ["categorical_crossentropy", "sparse_categorical_crossentropy"])
def test_smoothing(lib, loss) -> None:
    close(lib.value(loss, ONE_HOT if loss.startswith("c") else Y, P, label_smoothing=0.1), 0.7992960)


@pytest.mark.parametrize("from_logits", [True, False])
@pytest.mark.parametrize(
    "loss",
    [name for name, loss in LOSSES.items() if "outcomes" in loss.targets and "label_smoothing" in loss.options],
)
def test_a_little_smoothing_has_all_its_digits(lib, loss, from_logits) -> None:
    """5e-7 of the other outcome: as 1 − the first, which is rounded, it would be 7 % off."""
    outcomes = np.array([[0], [1], [0], [1]], np.float32)
    far = np.float32(20) if from_logits else np.float32(1 - 2**-12)
    pred = np.where(outcomes == 1, far, -far if from_logits else 1 - far)
    options = {"label_smoothing": 1e-6, "from_logits": from_logits, "reduction": "none"}
    exact = getattr(reference, loss)(outcomes, pred, **options)
    value, gradient = lib.value_and_grad(loss, outcomes, pred, **options)
    close(value, exact.value, 5e-6)
    close(gradient, exact.gradient, 5e-6)


def test_bce_of_a_large_logit(lib) -> None:
    assert lib.value("binary_crossentropy", [[0.0]], [[40.0]], from_logits=True) == 40
    assert lib.grad("binary_crossentropy", [[0.0]], [[40.0]], from_logits=True) == 1


def test_bce_of_a_very_negative_logit_is_not_zero(lib) -> None:
    value, gradient = lib.value_and_grad("binary_crossentropy", [[0.0]], [[-20.0]], from_logits=True)
    close(value, 2.0611537e-9)
    close(gradient, [[2.0611537e-9]])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_bce_at_the_two_ends(lib, dtype) -> None:
    """1 − 1e-7 rounds to 1 − 2⁻²³ in float32, so that the ends differ."""
    one, zero = lib.array([[1.0]], dtype), lib.array([[0.0]], dtype)
    close(lib.value("binary_crossentropy", one, one), 1.1920930e-7)
    close(lib.value("binary_crossentropy", zero, one), 15.9424, 1e-5)
    close(lib.value("binary_crossentropy", one, zero), 16.1181, 1e-5)


@pytest.mark.parametrize("classes", [10, 1000])
@pytest.mark.parametrize("loss", ["categorical_crossentropy", "sparse_categorical_crossentropy", "log_loss"])
def test_confident_rows_have_no_false_zero(lib, loss, classes) -> None:
    rng = np.random.default_rng(0)
    n = 256
    logits = rng.normal(size=(n, classes)).astype(np.float32)
    y = rng.integers(0, classes, n).astype(np.int32)
    logits[np.arange(n), y] = (logits.max(1) + np.linspace(8, 30, n)).astype(np.float32)
    y_true = np.eye(classes, dtype=np.float32)[y] if loss == "categorical_crossentropy" else y
    got, slope = lib.value_and_grad(loss, y_true, logits, from_logits=True, reduction="none")
    exact = getattr(reference, loss)(y_true, logits, from_logits=True, reduction="none")
    assert (got > 0).all()
    close(got, exact.value, 2e-6)
    assert _row_error(slope, exact.gradient) <= 4e-6


@pytest.mark.parametrize("classes", [10, 1000])
@pytest.mark.parametrize("case", ["normal", "±80", "offset 10⁴"])
def test_relative_error_of_losses_from_logits(lib, case, classes) -> None:
    rng = np.random.default_rng(1)
    logits = {
        "normal": rng.normal(size=(256, classes)),
        "±80": rng.uniform(-80, 80, size=(256, classes)),
        "offset 10⁴": 1e4 + rng.normal(size=(256, classes)),
    }[case].astype(np.float32)
    y = rng.integers(0, classes, 256).astype(np.int32)
    one_hot = np.eye(classes, dtype=np.float32)[y]
    for loss, y_true in (
        ("categorical_crossentropy", one_hot),
        ("sparse_categorical_crossentropy", y),
        ("log_loss", y),
        ("binary_crossentropy", one_hot),
        ("log_loss", one_hot),
    ):
        got, slope = lib.value_and_grad(loss, y_true, logits, from_logits=True, reduction="none")
        exact = getattr(reference, loss)(y_true, logits, from_logits=True, reduction="none")
        shown = exact.value > 1e-37
        assert (got[shown] > 0).all()
        close(got[shown], exact.value[shown], 2e-6)
        assert _row_error(slope, exact.gradient) <= 4e-6


def test_relative_error_at_50_000_classes(lib) -> None:
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(4, 50_000)).astype(np.float32)
    y = rng.integers(0, 50_000, 4).astype(np.int32)
    got, slope = lib.value_and_grad("sparse_categorical_crossentropy", y, logits, from_logits=True, reduction="none")
    exact = reference.sparse_categorical_crossentropy(y, logits, from_logits=True, reduction="none")
    close(got, exact.value, 2e-6)
    assert _row_error(slope, exact.gradient) <= 4e-6


def _row_error(got, exact) -> float:
    """Relative to the largest entry of the row, of those that float32 can tell from zero."""
    largest = np.maximum(np.abs(exact).max(-1, keepdims=True), 1e-37)
    return float((np.abs(got - exact) / largest).max())


def test_an_offset_costs_no_digits(lib) -> None:
    rng = np.random.default_rng(3)
    logits = (1e4 + rng.normal(size=(64, 10))).astype(np.float32)
    y = rng.integers(0, 10, 64).astype(np.int32)
    exact = reference.sparse_categorical_crossentropy(y, logits, from_logits=True, reduction="none").value
    close(lib.value("sparse_categorical_crossentropy", y, logits, from_logits=True, reduction="none"), exact, 1e-6)


@pytest.mark.parametrize("from_logits", [False, True])
@pytest.mark.parametrize("distance", [1e-2, 1e-3, 1e-4])
def test_kl_of_near_equal_rows(lib, from_logits, distance) -> None:
    rng = np.random.default_rng(4)
    z = rng.normal(size=(64, 10))
    a, b = z.astype(np.float32), (z + distance * rng.normal(size=z.shape)).astype(np.float32)
    if not from_logits:
        a, b = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (a, b))
    exact = reference.kl_divergence(a, b, from_logits=from_logits, reduction="none").value
    got = lib.value("kl_divergence", a, b, from_logits=from_logits, reduction="none")
    close(got, exact, 1e-3)
    assert (np.sign(got) == np.sign(exact)).all()
    equal = lib.value("kl_divergence", a, a, from_logits=from_logits, reduction="none")
    np.testing.assert_array_equal(equal, 0)


def test_divergence_of_a_probability_above_one(lib) -> None:
    """It is clipped to 1, also in the gradient for the target."""
    t, p = np.array([[0.5, 0.25, 0.25]], np.float32), np.array([[1.5, 0.5, 0.25]], np.float32)
    exact = reference.kl_divergence(t, p)
    value, gradient = lib.value_and_grad("kl_divergence", t, p)
    close(value, exact.value, 1e-6)
    close(gradient, exact.gradient, 1e-6)
    close(lib.target_grad("kl_divergence", t, p), exact.target_gradient, 1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("loss", [name for name, record in LOSSES.items() if "logits" in record.targets])
def test_divergences_beyond_the_radius_of_their_series(lib, loss, dtype) -> None:
    """log(t/p) lies in 1 … 3: the series for |log(t/p)| ≤ 1 would be off by up to 1e-3 there."""
    apart = np.array([2, 2.5, 3, 3.5, -4, -3, -2])
    z, x = np.zeros((7, 2)), np.stack([np.zeros(7), apart], 1)
    options = {"from_logits": True} if "from_logits" in LOSSES[loss].options else {}
    for t, p in ((z, x), (x, z)):
        exact = getattr(reference, loss)(t, p, **options, reduction="none")
        with lib.b.scope(dtype, "cpu"):
            function = lb.value_and_grad(functools.partial(getattr(lb, loss), **options, reduction="none"))
            value, gradient = map(lib.b.to_numpy, function(lib.array(t, dtype), lib.array(p, dtype)))
        relative = 1e-6 if dtype == "float32" else 1e-14
        close(value, exact.value, relative)
        close(gradient, exact.gradient, relative)


def test_bfloat16_logits_of_50_000_classes(lib) -> None:
    """The loss is a float32, exact for the rounded logits (torch's bfloat16 result is off by 0.07)."""
    rng = np.random.default_rng(5)
    from lossbridge.tools.parity.cases import round_to

    logits = round_to(rng.normal(size=(2, 50_000)), "bfloat16")
    y = np.array([3, 40_000], np.int32)
    value = lib.value("sparse_categorical_crossentropy", y, lib.array(logits, "bfloat16"), from_logits=True)
    assert value.dtype == np.float32
    close(value, reference.sparse_categorical_crossentropy(y, logits, from_logits=True).value, 2e-6)


def test_no_label_wraps_round_to_a_class_or_to_the_ignored_one(lib) -> None:
    """2³² + 1 is no class 1, nor is 2⁶⁴ − 1 the ignored −1, in whatever integer they come."""
    for label, dtype in ((2**32 + 1, np.int64), (2**32 + 1, np.uint64), (2**64 - 1, np.uint64), (2**32 - 1, np.uint32)):
        y = np.array([0, label, 1], dtype)
        for options in ({}, {"ignore_class": -1}, {"ignore_class": 1}):
            with pytest.raises(ValueError, match=rf"label {label} at index 1"):
                lb.sparse_categorical_crossentropy(y, lib.array(P), **options)
        for compiled in lib.b.compilers().values():
            with lib.b.scope("int64", "cpu"):
                function = compiled(
                    lambda y, p: lb.sparse_categorical_crossentropy(y, p, reduction="none", ignore_class=-1)
                )
                values = lib.b.to_numpy(function(lib.b.asarray(y), lib.array(P)))
            assert np.isnan(values).tolist() == [False, True, False]


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.uint16, np.int64])
def test_labels_of_every_integer_dtype(lib, dtype) -> None:
    logits = np.random.default_rng(11).normal(size=(3, 200)).astype(np.float32)
    y = np.array([0, 120, 5], dtype)
    exact = reference.sparse_categorical_crossentropy(y, logits, from_logits=True).value
    for labels in (y, lib.b.asarray(y)):
        close(
            lib.b.to_numpy(lb.sparse_categorical_crossentropy(labels, lib.array(logits), from_logits=True)), exact, 1e-6
        )


@pytest.mark.parametrize(("dtype", "classes"), [("int8", 129), ("int8", 200), ("int8", 1000), ("int16", 40_000)])
@pytest.mark.parametrize("from_logits", [False, True])
def test_negative_labels_of_few_bits(lib, dtype, classes, from_logits) -> None:
    """As unsigned numbers they would be classes: −100 of int8 is 156."""
    x = np.random.default_rng(0).random((3, classes)).astype(np.float32)
    x = x if from_logits else x / x.sum(1, keepdims=True)
    labels = np.array([3, -100, 7], dtype)
    options = {"from_logits": from_logits}
    expected = lib.value("sparse_categorical_crossentropy", labels[[0, 2]].astype(np.int32), x[[0, 2]], **options)
    for y_true in (labels, lib.b.place(labels, dtype, "cpu")):
        got = lb.sparse_categorical_crossentropy(y_true, lib.array(x), ignore_class=-100, **options)
        close(lib.b.to_numpy(got), expected, 1e-6)
        with pytest.raises(ValueError, match="label -100 at index 1 is out of range"):
            lb.sparse_categorical_crossentropy(y_true, lib.array(x), **options)


@pytest.mark.parametrize("label", [-1, 3, 100])
def test_labels_out_of_range(lib, label) -> None:
    """An error where labels can be read, NaN for that sample alone where they are traced."""
    y = np.array([0, label, 1], np.int32)
    with pytest.raises(ValueError, match=rf"label {label} at index 1 is out of range"):
        lib.value("sparse_categorical_crossentropy", y, P)
    for compiled in lib.b.compilers().values():
        function = compiled(lambda y, p: lb.sparse_categorical_crossentropy(y, p, reduction="none"))
        values = lib.b.to_numpy(function(lib.array(y), lib.array(P)))
        assert np.isnan(values).tolist() == [False, True, False]
        close(values[[0, 2]], -np.log(P[[0, 2], [0, 1]]))
    for removed in ({"ignore_class": label}, {"mask": [True, False, True]}, {"sample_weight": [1.0, 0.0, 1.0]}):
        values = lib.value("sparse_categorical_crossentropy", y, P, **removed, reduction="none")
        close(values, [-math.log(P[0, 0]), 0, -math.log(P[2, 1])])


def test_images_with_classes_along_axis_1(lib) -> None:
    rng = np.random.default_rng(6)
    z = rng.normal(size=(2, 4, 3, 5)).astype(np.float32)
    y = rng.integers(0, 4, (2, 3, 5)).astype(np.int32)
    first = lib.value_and_grad("sparse_categorical_crossentropy", y, z, from_logits=True, axis=1)
    last = lib.value_and_grad("sparse_categorical_crossentropy", y, np.moveaxis(z, 1, -1).copy(), from_logits=True)
    close(first[0], last[0])
    close(first[1], np.moveaxis(last[1], -1, 1), 1e-6)


def test_three_calls_with_a_mask_and_a_weight_give_one_number(lib) -> None:
    weight, mask = lib.array(np.array([1, 2, 3], np.float32)), lib.array(np.array([True, False, True]))
    values = {
        float(lib.value("categorical_crossentropy", ONE_HOT, P, sample_weight=weight, mask=mask)) for _ in range(3)
    }
    assert len(values) == 1


def test_float16_mean_of_70000_ones(lib) -> None:
    """70 000 is more than float16 holds. A logit of 40 against 0 costs 40."""
    y_pred = lib.array(np.full(70_000, 40.0), "float16")
    assert lib.value("log_loss", np.zeros(70_000, np.float32), y_pred, from_logits=True, sample_weight=1 / 40) == 1


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("reduction", ["mean", "mean_with_sample_weight", "sum"])
@pytest.mark.parametrize("masked", [False, True])
def test_400_000_rows_of_half_precision(lib, dtype, reduction, masked) -> None:
    """Neither their sum nor their number is one of float16, and bfloat16 would stop counting at 256."""
    rows = 400_000
    options = {"mask": np.arange(rows) % 2 == 0} if masked else {}
    if reduction == "mean_with_sample_weight":
        options["sample_weight"] = np.ones(rows, np.float32)
    y, z = np.zeros(rows, np.int32), lib.array(np.zeros((rows, 2)), dtype)
    counted = rows // 2 if masked else rows
    divisor = 1 if reduction == "sum" else counted
    value, gradient = lib.value_and_grad(
        "sparse_categorical_crossentropy", y, z, from_logits=True, **options, reduction=reduction
    )
    assert value.dtype == np.float32
    close(value, counted * math.log(2) / divisor, 2e-6)
    slope = np.zeros((rows, 2))
    slope[:: 2 if masked else 1] = [-0.5 / divisor, 0.5 / divisor]
    # float16 has 2^-24 and its multiples there.
    np.testing.assert_allclose(gradient.astype(np.float64), slope, rtol=2**-8, atol=2**-25)


@pytest.mark.parametrize("epsilon", [0.0, 1e-7])
def test_kl_gradient_at_t_zero_is_finite(lib, epsilon) -> None:
    t, p = np.array([[0.0, 0.5, 0.5]], np.float32), np.array([[0.2, 0.3, 0.5]], np.float32)
    gradient = lib.target_grad("kl_divergence", t, p, epsilon=epsilon)
    assert np.isfinite(gradient).all()
    assert gradient[0, 0] == 0
    close(gradient[0, 1:], np.log(t[0, 1:] / p[0, 1:]) + 1, 1e-6)


def test_bce_gradient_at_p_equal_epsilon(lib) -> None:
    epsilon = np.float32(1e-7)
    close(lib.grad("binary_crossentropy", [[1.0]], np.array([[epsilon]])), [[-1e7]])
    below = np.nextafter(epsilon, np.float32(0))
    assert lib.grad("binary_crossentropy", [[1.0]], np.array([[below]])) == 0
    one = np.float32(1) - np.float32(2.0**-23)
    close(lib.grad("binary_crossentropy", [[0.0]], np.array([[one]])), [[2.0**23]])
    assert lib.grad("binary_crossentropy", [[0.0]], np.array([[1.0]])) == 0


def test_gradient_of_renormalised_crossentropy(lib) -> None:
    gradient = lib.grad("categorical_crossentropy", [[1.0, 0, 0]], np.array([[0.7, 0.2, 0.1]], np.float32))
    close(gradient, [[1 - 1 / 0.7, 1, 1]], 1e-6)


def test_gradient_accumulation(lib) -> None:
    """Losses [4] and then nine of [1]: the mean of the two means is 2.5, the mean of all is 1.3."""
    p = np.exp(-np.array([4.0] + 9 * [1.0]))[:, None]
    y_pred = np.concatenate([p, 1 - p], axis=1).astype(np.float32)
    y = np.zeros(10, np.int32)
    full = lib.value("sparse_categorical_crossentropy", y, y_pred)
    parts = [
        lib.value("sparse_categorical_crossentropy", y[rows], y_pred[rows], normalizer=10)
        for rows in (slice(0, 1), slice(1, 10))
    ]
    close(sum(parts), 1.3)
    close(full, 1.3)


# §1, the rules.


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_precision(lib, dtype) -> None:
    with lib.b.scope(dtype, "cpu"):
        y_pred = lib.array(P, dtype)
        value, gradient = lb.value_and_grad(lb.categorical_crossentropy)(lib.array(ONE_HOT), y_pred)
        assert lib.b.dtype(lib.b.asarray(value)) == ("float64" if dtype == "float64" else "float32")
        assert lib.b.dtype(gradient) == dtype


def test_integers_and_booleans_are_cast(lib) -> None:
    y_true = lib.array(np.eye(2, dtype=np.int32))
    for y_pred in (lib.array(np.array([[3, 1], [0, 2]], np.int32)), lib.array(np.array([[True, False], [True, True]]))):
        value = lib.b.to_numpy(lb.categorical_crossentropy(y_true, y_pred, from_logits=True))
        assert value.dtype == np.float32
    exact = reference.categorical_crossentropy(np.eye(2), [[1, 0], [1, 1]], from_logits=True).value
    close(value, exact)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_integer_labels_are_never_rounded(lib, dtype) -> None:
    """bfloat16 has no 257."""
    logits = np.zeros((1, 300), np.float32)
    logits[0, 257] = 8
    labels = lib.array(np.array([257], np.int32))
    loss = lib.value("sparse_categorical_crossentropy", labels, lib.array(logits, dtype), from_logits=True)
    close(loss, math.log1p(299 * math.exp(-8)), 1e-6)


def test_epsilon_zero_is_exact(lib) -> None:
    options = {"epsilon": 0.0, "reduction": "none"}
    p = np.array([[1.0, 0, 0], [0.5, 0.5, 0], [0, 0, 1]], np.float32)
    t = np.array([[1.0, 0, 0], [1, 0, 0], [1, 0, 0]], np.float32)
    value, gradient = lib.value_and_grad("categorical_crossentropy", t, p, **options)
    close(value, [0, math.log(2), INF])
    assert np.isfinite(gradient[:2]).all()
    close(lib.value("sparse_categorical_crossentropy", np.array([0, 0, 0], np.int32), p, **options), value)
    close(lib.value("kl_divergence", t, p, **options), value)
    close(lib.value("log_loss", np.array([0, 0, 0], np.int32), p, **options), value)
    close(lib.value("log_loss", [1.0, 0, 1], np.array([1.0, 0, 0], np.float32), **options), [0, 0, INF])
    close(lib.value("categorical_focal_crossentropy", t, p, alpha=1, gamma=1, **options), [0, math.log(2) / 2, INF])


@pytest.mark.parametrize("loss", ["categorical_crossentropy", "categorical_focal_crossentropy"])
def test_infinite_logits_of_distributions(lib, loss) -> None:
    logits = np.array([[0, 1, -INF], [-INF, 0, 1], [-INF, -INF, -INF], [INF, 0, 0], [math.nan, 0, 0]], np.float32)
    t = np.tile(np.array([1.0, 0, 0], np.float32), (5, 1))
    value, gradient = lib.value_and_grad(loss, t, logits, from_logits=True, reduction="none")
    assert np.isfinite(value[0])
    assert value[1] == INF
    assert np.isnan(value[2:]).all()
    assert np.isfinite(gradient[0]).all()
    assert gradient[0, 2] == 0


def test_infinite_logits_of_labels_and_divergences(lib) -> None:
    logits = np.array([[0, 1, -INF], [-INF, 0, 1], [-INF, -INF, -INF], [INF, 0, 0], [math.nan, 0, 0]], np.float32)
    for loss in ("sparse_categorical_crossentropy", "log_loss"):
        value, gradient = lib.value_and_grad(loss, np.zeros(5, np.int32), logits, from_logits=True, reduction="none")
        close(value, [math.log1p(math.e), INF, math.nan, math.nan, math.nan])
        close(gradient[0], [-1 / (1 + math.exp(-1)), 1 / (1 + math.exp(-1)), 0], 1e-6)
    teacher = np.tile(np.array([0, 1, -INF], np.float32), (5, 1))
    value, gradient = lib.value_and_grad("distillation_loss", teacher, logits, reduction="none")
    assert value[0] == 0
    assert value[1] == INF
    assert np.isnan(value[2:]).all()
    np.testing.assert_array_equal(gradient[0], 0)


def test_infinite_binary_logits_are_certain_outcomes(lib) -> None:
    x = np.array([-INF, -INF, INF, INF, math.nan], np.float32)
    t = np.array([0.0, 1, 0, 1, 1], np.float32)
    value, gradient = lib.value_and_grad("log_loss", t, x, from_logits=True, reduction="none")
    close(value, [0, INF, INF, 0, math.nan])
    assert gradient[0] == gradient[3] == 0


REDUCTIONS = {
    "sum_over_batch_size": lambda loss, w, m: (loss * w * m).sum() / m.sum(),
    "mean": lambda loss, w, m: (loss * w * m).sum() / m.sum(),
    "mean_with_sample_weight": lambda loss, w, m: (loss * w * m).sum() / (w * m).sum(),
    "sum": lambda loss, w, m: (loss * w * m).sum(),
    "none": lambda loss, w, m: loss * w * m,
    None: lambda loss, w, m: loss * w * m,
}


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_reductions(lib, reduction) -> None:
    mask = np.array([True, False, True])
    loss = -np.log(P[np.arange(3), Y])
    got = lib.value("sparse_categorical_crossentropy", Y, P, sample_weight=W, mask=mask, reduction=reduction)
    close(got, REDUCTIONS[reduction](loss, W, mask))
    without = lib.value("sparse_categorical_crossentropy", Y, P, reduction=reduction)
    close(without, REDUCTIONS[reduction](loss, np.ones(3), np.ones(3)))


@pytest.mark.parametrize("reduction", ["mean", "sum_over_batch_size", "mean_with_sample_weight"])
def test_normalizer_is_the_denominator(lib, reduction) -> None:
    total = lib.value("sparse_categorical_crossentropy", Y, P, sample_weight=W, reduction="sum")
    for normalizer in (7, 7.0, lib.array(np.float32(7))):
        options = {"sample_weight": W, "reduction": reduction, "normalizer": normalizer}
        close(lib.value("sparse_categorical_crossentropy", Y, P, **options), total / 7)
    assert lib.value("sparse_categorical_crossentropy", Y, P, reduction=reduction, normalizer=0) == 0


@pytest.mark.parametrize("reduction", ["mean", "mean_with_sample_weight", "sum"])
def test_nothing_counted_gives_zero(lib, reduction) -> None:
    for options in ({"mask": np.zeros(3, bool)}, {"sample_weight": np.zeros(3, np.float32)}):
        value, gradient = lib.value_and_grad("categorical_crossentropy", ONE_HOT, P, **options, reduction=reduction)
        assert value == 0
        np.testing.assert_array_equal(gradient, 0)


def test_empty_batch(lib) -> None:
    empty = np.zeros((0, 3), np.float32)
    for loss in LOSSES:
        y_true = np.zeros((0,), np.int32) if LOSSES[loss].targets == ("labels",) else empty
        for reduction, shape in (("mean", ()), ("sum", ()), ("none", (0, 3) if loss == "log_loss" else (0,))):
            value, gradient = lib.value_and_grad(loss, y_true, empty, reduction=reduction)
            assert value.shape == shape
            assert not value.any()
            assert gradient.shape == (0, 3)


@pytest.mark.parametrize("shape", [(4, 3), (4,), (4, 1), ()])
def test_shapes_of_weights(lib, shape) -> None:
    rng = np.random.default_rng(7)
    logits, y = rng.normal(size=(4, 3, 5)).astype(np.float32), rng.integers(0, 5, (4, 3)).astype(np.int32)
    weight = rng.uniform(0.5, 2, shape).astype(np.float32)
    full = np.broadcast_to(weight.reshape(weight.shape + (1,) * (2 - weight.ndim)), (4, 3)).copy()
    options = {"from_logits": True, "reduction": "mean_with_sample_weight"}
    by_row = lib.value("sparse_categorical_crossentropy", y, logits, sample_weight=weight, **options)
    close(by_row, lib.value("sparse_categorical_crossentropy", y, logits, sample_weight=full, **options), 1e-6)


@pytest.mark.parametrize("dtype", ["bool", "int32", "float32"])
def test_masks_of_any_dtype(lib, dtype) -> None:
    mask = lib.array(np.array([1, 0, 1]), dtype)
    close(lib.value("categorical_crossentropy", ONE_HOT, P, mask=mask), -np.log(P[[0, 2], [0, 1]]).mean())


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("poison", [math.nan, INF, -INF])
def test_nothing_leaks_from_masked_entries(lib, loss, poison) -> None:
    y_true = Y.copy() if LOSSES[loss].targets == ("labels",) else ONE_HOT.copy()
    y_pred = P.copy()
    y_pred[1] = poison
    if y_true.ndim == 2:
        y_true[1] = poison
    mask = np.array([True, False, True])
    if loss == "log_loss":
        mask = np.repeat(mask[:, None], 3, axis=1)
    value, gradient = lib.value_and_grad(loss, y_true, y_pred, mask=mask)
    clean = lib.value_and_grad(loss, np.delete(y_true, 1, 0), np.delete(y_pred, 1, 0))
    close(value, clean[0], 1e-6)
    np.testing.assert_array_equal(gradient[1], 0)
    close(np.delete(gradient, 1, 0), clean[1], 1e-6)


def test_log_loss_does_not_renormalise(lib) -> None:
    doubled = np.array([[0.8, 0.4]], np.float32)
    close(lib.value("log_loss", np.array([1], np.int32), doubled), -math.log(np.float32(0.4)))
    close(lib.grad("log_loss", np.array([1], np.int32), doubled), [[0, -1 / 0.4]])
    close(lib.value("sparse_categorical_crossentropy", np.array([1], np.int32), doubled), math.log(3))


def test_binary_crossentropy_averages_its_axis(lib) -> None:
    t, p = np.array([[1.0, 0], [0, 0]], np.float32), np.array([[0.9, 0.2], [0.5, 0.1]], np.float32)
    each = -np.log(np.where(t == 1, p, 1 - p))
    close(lib.value("binary_crossentropy", t, p, reduction="none"), each.mean(1), 1e-6)
    close(lib.value("binary_crossentropy", t, p, reduction="none", axis=0), each.mean(0), 1e-6)


def test_pos_weight(lib) -> None:
    t, x = np.array([[1.0, 0, 1]], np.float32), np.array([[0.5, -1, 2]], np.float32)
    softplus = np.log1p(np.exp(x))
    for weight in (3.0, np.array([3, 4, 5], np.float32)):
        exact = (t * weight * (softplus - x) + (1 - t) * softplus).mean()
        close(lib.value("binary_crossentropy", t, x, from_logits=True, pos_weight=weight), exact, 1e-6)


def test_distillation_is_the_tempered_divergence(lib) -> None:
    rng = np.random.default_rng(8)
    teacher, student = rng.normal(size=(2, 4, 5)).astype(np.float32)
    exact = 9 * reference.kl_divergence(teacher / 3, student / 3, from_logits=True).value
    close(lib.value("distillation_loss", teacher, student, temperature=3.0), exact, 1e-6)


def test_focal_losses_of_gamma_zero_are_crossentropies(lib) -> None:
    for p in (P, ONE_HOT):  # at p = 1 too, where 1 − p is 0
        close(
            lib.value("categorical_focal_crossentropy", ONE_HOT, p, alpha=1.0, gamma=0.0),
            lib.value("categorical_crossentropy", ONE_HOT, p),
        )
        close(
            lib.value("binary_focal_crossentropy", ONE_HOT, p, gamma=0.0), lib.value("binary_crossentropy", ONE_HOT, p)
        )


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_focal_losses_of_certain_predictions(lib, gamma) -> None:
    """1 − p = 0: no loss and no gradient, although (1 − p)^γ has an infinite slope for γ < 1."""
    certain = {"epsilon": 0.0, "gamma": gamma}
    beyond = 200 * ONE_HOT - 100  # exp(−200) is 0 in float32
    for loss, y_pred, options in (
        ("categorical_focal_crossentropy", ONE_HOT, certain),
        ("binary_focal_crossentropy", ONE_HOT, certain),
        ("categorical_focal_crossentropy", beyond, {"gamma": gamma, "from_logits": True}),
        ("binary_focal_crossentropy", beyond, {"gamma": gamma, "from_logits": True}),
    ):
        value, gradient = lib.value_and_grad(loss, ONE_HOT, y_pred, **options)
        assert value <= 1e-37
        assert np.abs(gradient).max() <= 1e-37  # and no NaN


@pytest.mark.parametrize("base", [2, math.e, 10])
def test_entropies(lib, base) -> None:
    rng = np.random.default_rng(9)
    p, q = rng.dirichlet(np.ones(6), (2, 50)).astype(np.float32)
    p[:, 0] = 0
    arrays = lib.array(p), lib.array(q)
    h = lib.b.to_numpy(information.entropy(arrays[0], base=base))
    h_pq = lib.b.to_numpy(information.cross_entropy(*arrays, base=base))
    kl = lib.b.to_numpy(information.relative_entropy(*arrays, base=base))
    close(h, reference.entropy(p, base=base), 1e-6)
    close(h_pq, reference.cross_entropy(p, q, base=base), 1e-6)
    # These rows do not sum to 1, so that a divergence may be small by cancellation: a few units of what it is made of.
    assert (np.abs(kl - reference.relative_entropy(p, q, base=base)) <= 4e-7 * h_pq).all()
    close(h_pq, h + kl, 4e-7)
    reverse = lib.b.to_numpy(information.relative_entropy(arrays[1] + 0.1, arrays[0] + 0.1, base=base))
    forward = lib.b.to_numpy(information.relative_entropy(arrays[0] + 0.1, arrays[1] + 0.1, base=base))
    assert (np.abs(reverse - forward) > 1e-4).mean() > 0.9
    close(lib.b.to_numpy(information.perplexity(arrays[0])), 2 ** reference.entropy(p), 2e-6)
    close(lib.b.to_numpy(information.perplexity(*arrays)), 2 ** reference.cross_entropy(p, q), 2e-6)


def test_entropies_at_the_edge(lib) -> None:
    p, q = lib.array(np.array([1.0, 0], np.float32)), lib.array(np.array([0.0, 1], np.float32))
    assert lib.b.to_numpy(information.entropy(p)) == 0
    assert lib.b.to_numpy(information.cross_entropy(p, q)) == INF
    assert lib.b.to_numpy(information.relative_entropy(p, q)) == INF
    assert lib.b.to_numpy(information.relative_entropy(p, p)) == 0


def test_arrays_of_numpy_and_lists_adopt_the_library(lib) -> None:
    value = lb.categorical_crossentropy(
        ONE_HOT.tolist(), lib.array(P), sample_weight=W, mask=[1, 1, 1], class_weight=[1, 1, 1]
    )
    assert lib.b.owns(value)
    close(lib.b.to_numpy(value), 2.9500506)
    close(lib.b.to_numpy(lb.sparse_categorical_crossentropy(Y.astype(np.int64), lib.array(P))), 0.7297521)


@pytest.mark.parametrize("loss", ["sparse_categorical_crossentropy", "kl_divergence", "binary_crossentropy"])
@pytest.mark.parametrize("size", [3, 40_000])
def test_the_weight_of_what_is_masked_may_be_nan(lib, loss, size):
    """Also where something else than a mean's factor flows back."""
    rng = np.random.default_rng(40)
    y_pred = rng.normal(size=(4, size)).astype(np.float32)
    labels = loss.startswith("sparse")
    y_true = np.arange(4).astype(np.int32) % 3 if labels else rng.random((4, size)).astype(np.float32)
    options = {"mask": lib.array(np.array([True, False, True, True])), "from_logits": True}
    weight = np.array([1, np.nan, 2, 3], np.float32)
    true, pred = lib.array(y_true), lib.array(y_pred)

    def doubled(pred, weight):
        return getattr(lb, loss)(true, pred, sample_weight=lib.array(weight), **options) * 2.0

    value, gradient = (lib.b.to_numpy(x) for x in lib.b.value_and_grad(lambda pred: doubled(pred, weight), pred))
    right = lib.b.value_and_grad(lambda pred: doubled(pred, np.nan_to_num(weight)), pred)
    np.testing.assert_allclose(value, lib.b.to_numpy(right[0]), rtol=1e-6)
    np.testing.assert_allclose(gradient, lib.b.to_numpy(right[1]), rtol=1e-5, atol=1e-9)
    assert not gradient[1].any()


def test_a_clipped_probability_has_no_slope_beside_a_nan(lib):
    p = np.array([[0.0, 1.0], [np.nan, np.nan], [0.3, 0.7]], np.float32)
    t = np.array([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0]], np.float32)
    for loss in ("binary_crossentropy", "kl_divergence"):
        gradient = lib.grad(loss, t, p, mask=np.array([True, False, True]))
        assert not gradient[1].any()
        assert not gradient[0, 0]
        assert gradient[2].any()


@pytest.mark.parametrize("loss", ["log_loss", "kl_divergence", "binary_crossentropy"])
def test_slopes_of_small_float16_probabilities_are_finite(lib, loss):
    p = np.full((100, 4), 0.5, np.float16)
    p[0, 0] = 1e-5
    gradient = lib.grad(loss, np.ones_like(p), p)
    exact = np.asarray(getattr(reference, loss)(np.ones_like(p), p.astype(np.float32)).gradient)
    np.testing.assert_allclose(gradient, exact, rtol=2e-3)
