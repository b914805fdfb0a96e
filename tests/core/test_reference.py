"""The oracle against a second, independent one: mpmath at 120 digits, and derivatives by differences of that.

Nothing of lossbridge but the reference is used here, and no framework.
"""

import ast
import inspect
import sys
from pathlib import Path

import mpmath
import numpy as np
import pytest

from lossbridge import reference
from lossbridge.reference import Result

# A context of its own: mpmath.mp is shared by the whole process. 50 digits would do for everything but logits that
# are 160 apart, whose 1 - p has its first digit in the 70th place.
MP = mpmath.MPContext()
MP.dps = 120
STEP = MP.mpf(10) ** -30
INF, NAN = np.inf, np.nan

exact = np.frompyfunc(lambda v: MP.mpf(float(v)), 1, 1)
log, exp = np.frompyfunc(MP.log, 1, 1), np.frompyfunc(MP.exp, 1, 1)


# ------------------------------------------------------------------------------- the losses, in the plainest words


def bounds(o):
    dtype = np.dtype(o["precision"]).type
    return MP.mpf(float(dtype(o["epsilon"]))), MP.mpf(float(dtype(1 - o["epsilon"])))


def clip(p, low, high):
    return np.frompyfunc(lambda v: min(max(v, low), high), 1, 1)(p)


def softmax(z):
    return exp(z) / exp(z).sum(axis=-1, keepdims=True)


def sigmoid(x):
    return 1 / (1 + exp(-x))


def smoothed(t, o, classes):
    s = MP.mpf(o["label_smoothing"])
    return t * (1 - s) + s / classes


def shares(y, o):
    return softmax(y) if o["from_logits"] else clip(y / y.sum(axis=-1, keepdims=True), *bounds(o))


def mp_categorical(t, y, o):
    return -(weights_of(o["class_weight"]) * smoothed(t, o, t.shape[-1]) * log(shares(y, o))).sum(axis=-1)


def mp_categorical_focal(t, y, o):
    p = shares(y, o)
    return -(weights_of(o["alpha"]) * (1 - p) ** o["gamma"] * smoothed(t, o, t.shape[-1]) * log(p)).sum(axis=-1)


def mp_binary(t, y, o):
    p, t = sigmoid(y) if o["from_logits"] else clip(y, *bounds(o)), smoothed(t, o, 2)
    return -(weights_of(o["pos_weight"]) * t * log(p) + (1 - t) * log(1 - p)).sum(axis=-1) / t.shape[-1]


def mp_binary_focal(t, y, o):
    raw, t = sigmoid(y) if o["from_logits"] else y, smoothed(t, o, 2)
    p = raw if o["from_logits"] else clip(raw, *bounds(o))
    loss = -(t * log(p) + (1 - t) * log(1 - p)) * (1 - (t * raw + (1 - t) * (1 - raw))) ** o["gamma"]
    if o["apply_class_balancing"]:
        alpha = MP.mpf(o["alpha"])
        loss = loss * (t * alpha + (1 - t) * (1 - alpha))
    return loss.sum(axis=-1) / t.shape[-1]


def mp_log_loss_of_elements(t, y, o):
    p = sigmoid(y) if o["from_logits"] else clip(y, *bounds(o))
    return (-t * log(p) - (1 - t) * log(1 - p))[..., 0]


def mp_log_loss_of_labels(t, y, o):
    p = softmax(y) if o["from_logits"] else clip(y, *bounds(o))
    return -(t * log(p)).sum(axis=-1)


def mp_kl(t, y, o):
    if o["from_logits"]:
        t, p = softmax(t), softmax(y)
    else:
        t, p = clip(t, bounds(o)[0], 1), clip(y, bounds(o)[0], 1)
    return (t * log(t / p)).sum(axis=-1)


def mp_distillation(t, y, o):
    temperature = MP.mpf(o["temperature"])
    p, q = softmax(t / temperature), softmax(y / temperature)
    return temperature**2 * (p * log(p / q)).sum(axis=-1)


def mp_divergence(t, y, o):
    temperature, beta = MP.mpf(o["temperature"]), MP.mpf(o["beta"])
    p, q = softmax(t / temperature), softmax(y / temperature)
    forward, reverse = (p * log(p / q)).sum(axis=-1), (q * log(q / p)).sum(axis=-1)
    if o["kind"] == "total_variation":
        return temperature**2 * np.abs(p - q).sum(axis=-1) / 2
    if o["kind"] != "jensen_shannon":
        return temperature**2 * (forward if o["kind"] == "forward" else reverse)
    if o["scale"] == "divergence" and beta in (0, 1):
        return temperature**2 * (reverse if beta else forward)
    m = beta * p + (1 - beta) * q
    js = beta * (p * log(p / m)).sum(axis=-1) + (1 - beta) * (q * log(q / m)).sum(axis=-1)
    return temperature**2 * (js / (beta * (1 - beta)) if o["scale"] == "divergence" else js)


def weights_of(x):
    return exact(np.asarray(1.0 if x is None else x, dtype=float))


PER_SAMPLE = {
    "categorical_crossentropy": mp_categorical,
    "sparse_categorical_crossentropy": mp_categorical,
    "binary_crossentropy": mp_binary,
    "log_loss": mp_log_loss_of_elements,
    "log_loss of labels": mp_log_loss_of_labels,
    "kl_divergence": mp_kl,
    "distillation_loss": mp_distillation,
    "divergence": mp_divergence,
    "categorical_focal_crossentropy": mp_categorical_focal,
    "binary_focal_crossentropy": mp_binary_focal,
}
OF_LABELS = {"sparse_categorical_crossentropy", "log_loss of labels"}
LOSSES = list(PER_SAMPLE)


OF_BINARY = {"binary_crossentropy", "binary_focal_crossentropy", "log_loss"}
OF_LOGITS_ALONE = {"distillation_loss", "divergence"}
OF_PAIRS_OF_LOGITS = {"kl_divergence", *OF_LOGITS_ALONE}


def function(loss):
    return getattr(reference, loss.removesuffix(" of labels"))


def with_defaults(loss, options):
    parameters = inspect.signature(function(loss)).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY} | options


def mp_inputs(loss, y_true, y_pred, axis):
    """Targets and predictions as arrays of mpf with the class axis last; labels as one-hot rows."""
    y_true, y_pred = np.asarray(y_true), np.asarray(y_pred)
    if loss in OF_LABELS:
        y = np.moveaxis(y_pred, axis, -1)
        t = np.asarray(y_true[..., None] == np.arange(y.shape[-1]), dtype=float)
    elif loss == "log_loss":
        t, y = y_true[..., None], y_pred[..., None]
    else:
        t, y = np.moveaxis(y_true, axis, -1), np.moveaxis(y_pred, axis, -1)
    return exact(t), exact(y)


def mp_value(loss, t, y, o, kept=True):
    """The reduced loss (the sum of entries for reduction none), by the table in numerics.md."""
    losses = PER_SAMPLE[loss](t, y, o)
    shape = losses.shape

    def spread(x):
        x = np.asarray(1.0 if x is None else x, dtype=float)
        return np.broadcast_to(x.reshape(x.shape + (1,) * (len(shape) - x.ndim)), shape)

    keep = np.logical_and(spread(o["mask"]) != 0, kept)
    weight = np.where(keep, exact(spread(o["sample_weight"])), MP.mpf(0))
    total = (losses * weight).sum()
    if o["reduction"] in (None, "none", "sum"):
        return total
    if o["normalizer"] is not None:
        return total / MP.mpf(o["normalizer"])
    if o["reduction"] != "mean_with_sample_weight":
        return total / int(keep.sum())
    if o.get("class_weight") is not None:
        weight = weight * (weights_of(o["class_weight"]) * smoothed(t, o, t.shape[-1])).sum(axis=-1)
    return total / weight.sum()


def mp_gradient(value, x):
    """Central differences at 120 digits: an error of about 1e-60."""
    gradient = np.empty(x.shape, dtype=float)
    for i in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[i], down[i] = x[i] + STEP, x[i] - STEP
        gradient[i] = float((value(up) - value(down)) / (2 * STEP))
    return gradient


def approx(want, rel):
    return pytest.approx(want, rel=rel, abs=0)  # pytest's own abs=1e-12 would hide every small loss


def relative_error(got, want):
    return float(abs((MP.mpf(float(got)) - want) / want))


# --------------------------------------------------------------------------------------------------- random inputs


def distributions(rng, shape):
    p = rng.exponential(size=shape)
    return p / p.sum(axis=-1, keepdims=True)


def inputs(loss, options, shape=(4, 3), seed=0, dtype=np.float64, scale=3.0):
    """y_true, y_pred as a loss takes them, along the last axis; some probabilities are beyond the clip bounds."""
    rng = np.random.default_rng([seed, LOSSES.index(loss)])
    logits = options.get("from_logits", False) or loss in OF_LOGITS_ALONE
    y_pred = rng.normal(scale=scale, size=shape) if logits else distributions(rng, shape)
    if loss in OF_LABELS:
        y_true = rng.integers(shape[-1], size=shape[:-1])
    elif logits and loss in OF_PAIRS_OF_LOGITS:
        y_true = rng.normal(scale=scale, size=shape).astype(dtype)
    elif loss in OF_BINARY:
        y_true = rng.uniform(size=shape).astype(dtype)
        y_true.flat[:3] = 0, 1, 1
    else:
        y_true = distributions(rng, shape).astype(dtype)
        # One-hot rows; for the KL divergence not quite, whose upper bound, 1, would be a corner to differentiate at.
        y_true[0] = np.eye(shape[-1])[1] * (0.75 if loss == "kl_divergence" else 1.0)
    if not logits:
        y_pred[-1, ..., 0] = 0.0
        if loss in OF_BINARY:
            y_pred[-1, ..., 1] = 1.0
    return y_true, y_pred.astype(dtype)


CLASS_WEIGHT = [1.0, 0.0, 3.0]
WEIGHTED = {"sample_weight": [1.0, 2.0, 0.0, 0.5], "mask": [1, 1, 1, 0]}
OPTIONS = {
    "categorical_crossentropy": [
        {"label_smoothing": 0.1},
        {"class_weight": CLASS_WEIGHT},
        {"class_weight": CLASS_WEIGHT, "label_smoothing": 0.2, "reduction": "mean_with_sample_weight"},
        {"class_weight": CLASS_WEIGHT, "reduction": "mean_with_sample_weight", **WEIGHTED},
        {"class_weight": CLASS_WEIGHT, "reduction": "mean_with_sample_weight", "normalizer": 7.0},
        {"epsilon": 0.05},
    ],
    "sparse_categorical_crossentropy": [
        {"label_smoothing": 0.1},
        {"class_weight": CLASS_WEIGHT},
        {"class_weight": CLASS_WEIGHT, "label_smoothing": 0.2, "reduction": "mean_with_sample_weight"},
    ],
    "binary_crossentropy": [{"label_smoothing": 0.1}, {"pos_weight": 3.0}, {"pos_weight": CLASS_WEIGHT}],
    "log_loss": [{"epsilon": 0.05}],
    "log_loss of labels": [{"epsilon": 0.05}],
    "kl_divergence": [{"epsilon": 0.05}],
    "distillation_loss": [{"temperature": 2.5}, {"temperature": 0.5}],
    "divergence": [
        {"kind": "reverse", "temperature": 2.5},
        {"kind": "total_variation", "temperature": 0.5},
        {"kind": "jensen_shannon", "temperature": 2.5},
        *(
            {"kind": "jensen_shannon", "beta": beta, "scale": scale}
            for beta in (1e-6, 0.1, 0.9, 1 - 1e-6)
            for scale in ("mixture", "divergence")
        ),
        *({"kind": "jensen_shannon", "beta": beta, "scale": "divergence"} for beta in (0.0, 1.0)),
    ],
    "categorical_focal_crossentropy": [
        {"alpha": CLASS_WEIGHT, "label_smoothing": 0.1},
        {"gamma": 0.0},
        {"gamma": 0.5},
        {"gamma": 1.0, "epsilon": 0.05},
    ],
    "binary_focal_crossentropy": [
        {"apply_class_balancing": True, "label_smoothing": 0.1},
        {"apply_class_balancing": True, "alpha": 0.7, "gamma": 1.5},
        {"gamma": 0.0},
        {"gamma": 1.0, "epsilon": 0.05},
        {"gamma": 0.5, "label_smoothing": 0.1},
    ],
}
EVERYWHERE = [
    {},
    {"precision": "float32"},
    {"reduction": "sum", **WEIGHTED},
    {"reduction": "none", **WEIGHTED},
    {"reduction": "mean_with_sample_weight", **WEIGHTED},
    {"reduction": "mean", "normalizer": 7.0, **WEIGHTED},
]
TABLE = [
    (loss, options | ({"from_logits": True} if logits else {}))
    for loss in LOSSES
    for options in EVERYWHERE + OPTIONS[loss]
    for logits in ((False,) if loss in OF_LOGITS_ALONE else (False, True))
]


# ------------------------------------------------------------------------------------------------ against mpmath


def check(loss, y_true, y_pred, options, rtol=1e-14, gradient_rtol=1e-13):
    """Value to rtol of itself, gradients to gradient_rtol of their largest entry."""
    got = function(loss)(y_true, y_pred, **options)
    o = with_defaults(loss, options)
    t, y = mp_inputs(loss, y_true, y_pred, o["axis"])

    def as_given(gradient):
        return gradient[..., 0] if loss == "log_loss" else np.moveaxis(gradient, -1, o["axis"])

    def assert_gradient(got, want):
        assert got.dtype == np.float64
        np.testing.assert_allclose(got, want, rtol=0, atol=gradient_rtol * np.abs(want).max())

    assert relative_error(np.sum(got.value), mp_value(loss, t, y, o)) <= rtol
    assert_gradient(got.gradient, as_given(mp_gradient(lambda x: mp_value(loss, t, x, o), y)))
    if loss in OF_LABELS:
        assert got.target_gradient is None
    else:
        assert_gradient(got.target_gradient, as_given(mp_gradient(lambda x: mp_value(loss, x, y, o), t)))


@pytest.mark.parametrize(("loss", "options"), TABLE, ids=str)
def test_value_and_gradients(loss, options):
    check(loss, *inputs(loss, options), options)


@pytest.mark.parametrize("loss", [loss for loss in LOSSES if loss != "log_loss"])
def test_class_axis_in_the_middle(loss):
    options = {"axis": 1, "sample_weight": [[1.0, 2.0, 0.5], [0.0, 1.0, 3.0]], "reduction": "mean"}
    y_true, y_pred = inputs(loss, options, shape=(2, 3, 4))
    y_pred = np.moveaxis(y_pred, -1, 1)
    check(loss, y_true if loss in OF_LABELS else np.moveaxis(y_true, -1, 1), y_pred, options)


# name: scale of the logits, offset. float32, where the reference promises the truth.
REGIMES = {"plain": (3.0, 0.0), "offset": (3.0, 1e4), "wide": (40.0, 0.0), "close": (1e-3, 0.0)}


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("loss", LOSSES)
def test_values_from_logits_have_all_their_digits(loss, regime):
    scale, offset = REGIMES[regime]
    options = {} if loss in OF_LOGITS_ALONE else {"from_logits": True}
    o = with_defaults(loss, options | {"reduction": "none"})
    for seed in range(4):
        y_true, y_pred = inputs(loss, options, shape=(8, 7), seed=seed, dtype=np.float32, scale=scale)
        y_pred = np.clip(y_pred, -80, 80) + np.float32(0.0 if loss in OF_BINARY else offset)
        got = function(loss)(y_true, y_pred, **options, reduction="none").value
        want = PER_SAMPLE[loss](*mp_inputs(loss, y_true, y_pred, -1), o)
        errors = np.frompyfunc(relative_error, 2, 1)(got, want)
        assert errors.max() <= 2e-15


@pytest.mark.parametrize("loss", [loss for loss in LOSSES if loss not in OF_LOGITS_ALONE])
def test_values_from_probabilities_have_all_their_digits(loss):
    options = {"epsilon": 0.0}
    o = with_defaults(loss, options)
    rng = np.random.default_rng(5)
    for power in (1, 3, 10):  # the higher, the more confident
        y_true, _ = inputs(loss, {}, shape=(8, 7))
        y_pred = distributions(rng, (8, 7)) ** power
        if loss not in OF_BINARY:
            y_pred /= y_pred.sum(axis=-1, keepdims=True)
        if loss == "kl_divergence":
            y_true = distributions(rng, (8, 7))
        y_pred = y_pred.astype(np.float32)
        got = function(loss)(y_true, y_pred, **options, reduction="none").value
        want = PER_SAMPLE[loss](*mp_inputs(loss, y_true, y_pred, -1), o)
        errors = np.frompyfunc(relative_error, 2, 1)(got, want)
        assert errors.max() <= 1e-15


@pytest.mark.parametrize("lead", [8, 20, 30, 80, 600])
@pytest.mark.parametrize("loss", ["sparse_categorical_crossentropy", "log_loss of labels", "binary_crossentropy"])
def test_confident_rows_are_never_zero(loss, lead):
    if loss == "binary_crossentropy":
        y_true, y_pred = [[1.0, 0.0]], [[float(lead), -lead - 0.5]]
    else:
        y_true, y_pred = [1], [[0.25, lead + 0.25, -1.0]]
    o = with_defaults(loss, {"from_logits": True})
    with MP.workdps(400):
        t, y = mp_inputs(loss, y_true, y_pred, -1)
        want = mp_value(loss, t, y, o)
        # The gradient of a nearly certain row is as small as its loss: p - 1 has its digits too.
        gradient = (sigmoid(y) - t) / 2 if loss == "binary_crossentropy" else softmax(y) - t
        got = function(loss)(y_true, y_pred, from_logits=True)
        assert relative_error(got.value, want) <= 1e-15
        assert np.frompyfunc(relative_error, 2, 1)(got.gradient, gradient).max() <= 1e-15


# The differences of float32 logits are exact. Those of float64 are not, which counts where they are small.
@pytest.mark.parametrize(("apart", "offset", "dtype", "rtol"), [
    (1e-1, 0.0, np.float32, 2e-15), (1e-3, 0.0, np.float32, 2e-15), (1e-6, 0.0, np.float32, 2e-15),
    (1e-2, 1e4, np.float32, 2e-15), (1e-3, 0.0, np.float64, 1e-13), (1e-5, 1e4, np.float64, 1e-11),
    (1e-6, 0.0, np.float64, 1e-9),
])  # fmt: skip
def test_near_equal_logits_keep_the_digits_of_their_divergence(apart, offset, dtype, rtol):
    rng = np.random.default_rng(1)
    teacher = (rng.normal(scale=3.0, size=(2, 500)) + offset).astype(dtype)
    student = (teacher + apart * rng.normal(size=teacher.shape)).astype(dtype)
    for temperature in (1.0, 3.0):
        o = {"temperature": temperature}
        want = mp_distillation(exact(teacher), exact(student), o)
        got = reference.distillation_loss(teacher, student, **o, reduction="none")
        assert np.frompyfunc(relative_error, 2, 1)(got.value, want).max() <= rtol
        p, q = softmax(exact(teacher) / MP.mpf(temperature)), softmax(exact(student) / MP.mpf(temperature))
        gradient = (MP.mpf(temperature) * (q - p)).astype(float)
        np.testing.assert_allclose(got.gradient, gradient, rtol=0, atol=max(rtol, 1e-13) * np.abs(gradient).max())


@pytest.mark.parametrize(("dtype", "rtol"), [(np.float32, 2e-15), (np.float64, 1e-12)])
@pytest.mark.parametrize("apart", [1e-1, 1e-3, 1e-5, 1e-6])
def test_near_equal_probabilities_keep_the_digits_of_their_divergence(apart, dtype, rtol):
    rng = np.random.default_rng(2)
    t = distributions(rng, (3, 500))
    p = t * (1 + apart * rng.normal(size=t.shape))
    t, p = t.astype(dtype), (p / p.sum(axis=-1, keepdims=True)).astype(dtype)
    o = {"from_logits": False, "epsilon": 0.0, "precision": "float64"}
    want = mp_kl(exact(t), exact(p), o)
    got = reference.kl_divergence(t, p, epsilon=0.0, reduction="none").value
    assert np.frompyfunc(relative_error, 2, 1)(got, want).max() <= rtol
    in_nats = reference.relative_entropy(t, p, base=np.e)
    np.testing.assert_array_equal(in_nats, got)


def test_fifty_thousand_classes():
    z = np.random.default_rng(3).normal(size=(2, 50_000)).astype(np.float32)
    z[1] = np.sort(z[1])
    got = reference.sparse_categorical_crossentropy([7, 49_999], z, from_logits=True, reduction="none").value
    fast = mpmath.MPContext()  # 50 digits
    fast.dps = 50
    for i, label in enumerate([7, 49_999]):
        want = fast.log(sum(fast.exp(fast.mpf(float(v))) for v in z[i])) - float(z[i, label])
        assert relative_error(got[i], want) <= 1e-15


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_jensen_shannon_of_disjoint_rows_has_a_gradient_with_digits(scale, beta):
    """Where each side nearly lacks the other's classes, all its derivatives are nearly the same."""
    rng = np.random.default_rng(10)
    teacher, student = (scale * rng.normal(size=(2, 12, 40))).astype(np.float32)
    p, q = softmax(exact(teacher)), softmax(exact(student))
    b = MP.mpf(beta)
    m = b * p + (1 - b) * q
    found = reference.divergence(teacher, student, kind="jensen_shannon", beta=beta, reduction="none")
    for share, factor, gradient in ((p, b, found.target_gradient), (q, 1 - b, found.gradient)):
        terms = share * log(share / m)
        wanted = (factor * (terms - share * terms.sum(axis=-1, keepdims=True))).astype(float)
        largest = np.abs(wanted).max(axis=-1, keepdims=True)
        assert (np.abs(gradient - wanted) <= 1e-12 * largest).all()


# ------------------------------------------------------------------------------------ of layers, of kept classes


def assert_derivative(value, x, gradient):
    """By central differences in float64, which have ten digits."""
    wanted = np.empty(x.shape)
    for i in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[i], down[i] = x[i] + 1e-6, x[i] - 1e-6
        wanted[i] = (value(up) - value(down)) / 2e-6
    np.testing.assert_allclose(gradient, wanted, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("classes_axis", [0, 1])
def test_linear_losses_are_the_losses_of_their_logits(classes_axis):
    rng = np.random.default_rng(8)
    of_teacher, w_teacher, b_teacher, h, w, b = (
        rng.normal(size=size) for size in ((2, 3, 4), (6, 4), (6,), (2, 3, 5), (6, 5), (6,))
    )
    labels, options = rng.integers(0, 6, (2, 3)), {"sample_weight": rng.uniform(0, 2, (2, 3)), "reduction": "mean"}
    sides = [np.moveaxis(x, 0, classes_axis) for x in (w_teacher, w)]

    def crossentropy(h, w, b, **more):
        return reference.linear_crossentropy(labels, h, w, bias=b, classes_axis=classes_axis, **options, **more)

    def distillation(h, w, b, teacher=of_teacher):
        return reference.linear_distillation(
            teacher, sides[0], h, w, teacher_bias=b_teacher, student_bias=b, classes_axis=classes_axis,
            kind="jensen_shannon", temperature=2.0, **options,
        )  # fmt: skip

    z, z_teacher = h @ w.T + b, of_teacher @ w_teacher.T + b_teacher
    found = crossentropy(h, sides[1], b, softcap=2.0)
    wanted = reference.sparse_categorical_crossentropy(labels, z, from_logits=True, softcap=2.0, **options)
    assert found.value == approx(wanted.value, rel=1e-14)
    found = distillation(h, sides[1], b)
    wanted = reference.divergence(z_teacher, z, kind="jensen_shannon", temperature=2.0, **options)
    assert found.value == approx(wanted.value, rel=1e-14)
    assert_derivative(lambda x: distillation(h, sides[1], b, x).value, of_teacher, found.target_gradient)
    for loss in (crossentropy, distillation):
        found = loss(h, sides[1], b)
        assert_derivative(lambda x, loss=loss: loss(x, sides[1], b).value, h, found.gradient)
        assert_derivative(lambda x, loss=loss: loss(h, x, b).value, sides[1], found.weight_gradient)
        assert_derivative(lambda x, loss=loss: loss(h, sides[1], x).value, b, found.bias_gradient)


@pytest.mark.parametrize("tail", [True, False])
def test_kept_classes(tail):
    """That it has its digits is compared with mpmath in tests/backends/test_topk_divergence.py."""
    rng = np.random.default_rng(9)
    indices, log_t = np.array([[2, 0], [4, 3]]), np.log([[0.5, 0.2], [0.1, 0.7]])
    z = rng.normal(size=(2, 5))
    t, p = np.exp(log_t), np.take_along_axis(np.exp(z) / np.exp(z).sum(-1, keepdims=True), indices, -1)
    left, others = 1 - t.sum(-1, keepdims=True), 1 - p.sum(-1, keepdims=True)
    t, p = (np.concatenate(x, -1) if tail else x[0] / x[0].sum(-1, keepdims=True) for x in ((t, left), (p, others)))
    found = reference.topk_divergence(indices, log_t, z, tail=tail)
    assert found.value == approx((t * np.log(t / p)).sum(-1).mean(), rel=1e-12)
    assert_derivative(lambda x: reference.topk_divergence(indices, log_t, x, tail=tail).value, z, found.gradient)
    assert_derivative(lambda x: reference.topk_divergence(indices, x, z, tail=tail).value, log_t, found.target_gradient)


def test_kept_classes_that_are_none():
    z, log_t = np.zeros((4, 5)), np.log([[0.5, 0.2], [0.1, 0.7], [0.1, 0.2], [0.9, 0.7]])
    indices = [[0, 5], [-1, 2], [3, 3], [0, 1]]
    assert np.isnan(reference.topk_divergence(indices, log_t, z, reduction="none").value).all()
    masked = reference.topk_divergence(indices, log_t, z, mask=np.zeros(4, bool))
    assert masked.value == 0
    assert not masked.gradient.any()


# --------------------------------------------------------------------------------- worked by hand (numerics.md, 2)

P = [[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]]
Y = [0, 1, 1]
ONE_HOT = [[1, 0, 0], [0, 1, 0], [0, 1, 0]]
W = [1.0, 2.0, 5.0]
KERAS_T, KERAS_P = [[0, 1, 0], [0, 0, 1]], [[0.05, 0.95, 0], [0.1, 0.8, 0.1]]
LOG = np.log

L7, L8, L2 = -LOG(0.7), -LOG(0.8), -LOG(0.2)  # the losses of P's rows

# Options; the value; the figure in numerics.md, most of which float32 libraries printed: hence 2e-7.
WORKED = [
    ({}, (L7 + L8 + L2) / 3, 0.7297521),
    ({"class_weight": W}, (L7 + 2 * L8 + 2 * L2) / 3, 1.3406128),
    ({"class_weight": W, "reduction": "mean_with_sample_weight"}, (L7 + 2 * L8 + 2 * L2) / 5, 0.8043677),
    ({"sample_weight": W}, (L7 + 2 * L8 + 5 * L2) / 3, 2.9500506),
    ({"sample_weight": W, "reduction": "mean_with_sample_weight"}, (L7 + 2 * L8 + 5 * L2) / 8, 1.1062690),
    ({"label_smoothing": 0.1},
     (0.9 * (L7 + L8 + L2) - 0.1 / 3 * LOG([0.7 * 0.2 * 0.1, 0.1 * 0.8 * 0.1, 0.2 * 0.2 * 0.6]).sum()) / 3, 0.7992960),
    ({"reduction": "sum"}, L7 + L8 + L2, None),
    ({"normalizer": 10}, (L7 + L8 + L2) / 10, None),
    ({"mask": [1, 0, 1]}, (L7 + L2) / 2, None),
    ({"mask": [True, False, True], "reduction": "mean_with_sample_weight", "sample_weight": [1, NAN, 3]},
     (L7 + 3 * L2) / 4, None),
    ({"sample_weight": [1, 0, 1]}, (L7 + L2) / 3, None),
    ({"sample_weight": 2.0, "reduction": None}, [2 * L7, 2 * L8, 2 * L2], None),
    ({"mask": [0, 1, 1], "reduction": "none"}, [0, L8, L2], None),
]  # fmt: skip


@pytest.mark.parametrize(("options", "want", "figure"), WORKED, ids=str)
def test_cross_entropy_worked_by_hand(options, want, figure):
    sparse = reference.sparse_categorical_crossentropy(Y, P, **options)
    dense = reference.categorical_crossentropy(ONE_HOT, P, **options)
    np.testing.assert_allclose(sparse.value, want, rtol=2e-15)
    assert figure is None or sparse.value == approx(figure, rel=2e-7)
    np.testing.assert_array_equal(sparse.value, dense.value)
    np.testing.assert_array_equal(sparse.gradient, dense.gradient)
    if not {"class_weight", "label_smoothing"} & options.keys():
        np.testing.assert_allclose(reference.log_loss(Y, P, **options).value, want, rtol=2e-15)


def test_keras_example():
    got = reference.categorical_crossentropy(KERAS_T, KERAS_P, reduction="none").value
    np.testing.assert_allclose(got, -LOG([0.95, 0.1]), rtol=1e-15)
    np.testing.assert_allclose(got, [0.05129331, 2.3025851], rtol=4e-7)  # as Keras prints them, in float32
    assert reference.categorical_crossentropy(KERAS_T, KERAS_P).value == approx(1.1769392, rel=1e-7)


def test_gradient_renormalises_where_log_loss_does_not():
    p = [0.7, 0.2, 0.1]
    np.testing.assert_allclose(reference.categorical_crossentropy([1, 0, 0], p).gradient, [-3 / 7, 1, 1], rtol=1e-14)
    np.testing.assert_allclose(reference.log_loss(0, p).gradient, [-1 / 0.7, 0, 0], rtol=1e-14)


def test_binary_worked_by_hand():
    def bce(t, p, **options):
        return float(reference.binary_crossentropy([t], [p], **options).value)

    assert bce(0, 40, from_logits=True) == 40
    assert bce(0, -20, from_logits=True) == approx(2.0611536203143807e-9, rel=1e-15)  # 2.0611537e-9 in float32
    assert bce(1, 0.0, precision="float32") == approx(16.1181, rel=4e-6)
    assert bce(0, 1.0, precision="float32") == approx(15.9424, rel=4e-6)
    assert bce(1, np.float16(1), precision="float32") == approx(2.0**-23, rel=1e-6)
    assert bce(0, 1.0) == approx(16.1181, rel=4e-6)
    assert bce(0, 3e-6) == approx(3e-6 + 4.5e-12 + 9e-18, rel=1e-15)
    assert reference.log_loss([1, 0], [0.9, 0.2]).value == approx(-(LOG(0.9) + LOG(0.8)) / 2, rel=1e-15)
    assert reference.log_loss(1, 0.3).value == approx(-LOG(0.3), rel=1e-15)
    t, p = [[1, 0], [0, 1]], [[0.9, 0.2], [0.4, 0.3]]
    elements = reference.log_loss(t, p, sample_weight=[[2], [1]], reduction="none").value
    np.testing.assert_allclose(elements, [[-2 * LOG(0.9), -2 * LOG(0.8)], [-LOG(0.6), -LOG(0.3)]], rtol=1e-14)


def test_focal_worked_by_hand():
    categorical = reference.categorical_focal_crossentropy
    assert categorical([0, 1, 0], [0.1, 0.8, 0.1]).value == approx(0.25 * 0.2**2 * -LOG(0.8), rel=1e-14)
    by_class = categorical([0, 1, 0], [1, 8, 1], alpha=[1, 3, 5], gamma=1)
    assert by_class.value == approx(3 * 0.2 * -LOG(0.8), rel=1e-14)

    binary = reference.binary_focal_crossentropy
    assert binary([1, 0], [0.9, 0.2]).value == approx((0.1**2 * -LOG(0.9) + 0.2**2 * -LOG(0.8)) / 2, rel=1e-14)
    assert binary([1, 0], [0.9, 0.2], apply_class_balancing=True).value == approx(
        (0.25 * 0.1**2 * -LOG(0.9) + 0.75 * 0.2**2 * -LOG(0.8)) / 2, rel=1e-14
    )
    # The factor is of the p that was given, the logarithm of the clipped one.
    assert binary([1], [0.0]).value == approx(-LOG(1e-7), rel=1e-15)
    assert binary([1], [1.0]).value == 0


def test_divergences_worked_by_hand():
    want = 0.5 * LOG(0.5 / 0.25) + 0.5 * LOG(0.5 / 0.75)
    assert reference.kl_divergence([0.5, 0.5], [0.25, 0.75]).value == approx(want, rel=1e-14)
    t, p = LOG([0.5, 0.5]), LOG([0.25, 0.75]) + 9
    assert reference.kl_divergence(t, p, from_logits=True).value == approx(want, rel=1e-14)
    assert reference.distillation_loss(3 * t, 3 * p, temperature=3).value == approx(9 * want, rel=1e-14)
    # Not renormalised: sum p log(p/q) of what was given.
    assert reference.kl_divergence([0.5, 0.25], [0.25, 0.25]).value == approx(0.5 * LOG(2), rel=1e-14)


def test_information():
    bits = reference.cross_entropy(np.eye(3)[Y], P)
    assert bits.mean() == approx(1.05281, rel=5e-6)
    assert 2 ** bits.mean() == approx(2.07457, rel=4e-6)
    np.testing.assert_allclose(reference.perplexity(np.eye(3)[Y], P), [1 / 0.7, 1 / 0.8, 1 / 0.2], rtol=1e-15)
    assert reference.entropy(np.full(8, 1 / 8)) == 3
    assert reference.entropy(np.full(8, 1 / 8), base=8) == 1
    assert reference.perplexity(np.full(8, 1 / 8)) == approx(8, rel=1e-15)
    assert reference.entropy([0.0, 1.0, 0.0]) == 0
    assert reference.relative_entropy([0.5, 0.5], [0.25, 0.75], base=4) == approx(
        reference.relative_entropy([0.5, 0.5], [0.25, 0.75]) / 2, rel=1e-15
    )
    p, q = np.array([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]]), np.array([[0.25, 0.5, 0.25], [0.5, 0.0, 0.5]])
    np.testing.assert_array_equal(reference.cross_entropy(p, q), [1.5, INF])
    np.testing.assert_array_equal(reference.relative_entropy(p, q), [0.5, INF])
    np.testing.assert_array_equal(reference.relative_entropy(p.T, q.T, axis=0), [0.5, INF])
    np.testing.assert_array_equal(reference.perplexity(p.T, axis=0), [2, 1])
    for result in (reference.entropy(p), reference.perplexity(p, q), reference.relative_entropy(p, q)):
        assert result.dtype == np.float64
        assert result.shape == (2,)


# ------------------------------------------------------------------------------------------------------ boundaries


def assert_result(got, value, gradient, target_gradient=None, rtol=1e-12):
    np.testing.assert_allclose(got.value, value, rtol=rtol)
    np.testing.assert_allclose(got.gradient, gradient, rtol=rtol)
    if target_gradient is not None:
        np.testing.assert_allclose(got.target_gradient, target_gradient, rtol=rtol, atol=1e-15)


def test_clipped_gradients_stop_strictly_outside_the_bounds():
    below, above = np.nextafter(1e-7, 0), np.nextafter(1e-7, 1)
    for p, want in ((1e-7, -1e7), (below, 0), (0, 0), (above, -1e7)):
        np.testing.assert_allclose(reference.binary_crossentropy([1], [p]).gradient, [want], rtol=1e-12)
        np.testing.assert_allclose(reference.log_loss([1], [p]).gradient, [want], rtol=1e-12)
        np.testing.assert_allclose(reference.log_loss(0, [p]).gradient, [want], rtol=1e-12)
        of_first = reference.kl_divergence([1, 0], [p, 1]).gradient[0]  # alone, p = 0 would be no distribution
        np.testing.assert_allclose(of_first, want, rtol=1e-12)
    # bounds 1/8 and 7/8 are exact, and so are the quotients
    on = {"epsilon": 0.125}
    assert_result(reference.binary_crossentropy([0], [0.875], **on), LOG(8), [8])
    assert_result(reference.binary_crossentropy([0], [0.876], **on), LOG(8), [0])
    assert_result(reference.categorical_crossentropy([0, 1], [0.875, 0.125], **on), LOG(8), [1, -7], LOG([8 / 7, 8]))
    assert_result(reference.categorical_crossentropy([0, 1], [0.876, 0.124], **on), LOG(8), [0, 0], LOG([8 / 7, 8]))
    by_target = [1 - LOG(8), 1 + LOG(8)]
    assert_result(reference.kl_divergence([0.125, 1], [1, 0.125], **on), 0.875 * LOG(8), [-0.125, -8], by_target)
    assert_result(reference.kl_divergence([0.124, 1], [2, 0.124], **on), 0.875 * LOG(8), [0, 0], [0, LOG(8) + 1])


def test_bounds_are_rounded_to_the_precision():
    p = [1 - 2.0**-23, 1 - 2.0**-24]  # the second is above the float32 bound, both are below the float64 one
    single = reference.binary_crossentropy([0, 0], p, precision="float32", reduction="sum").gradient
    np.testing.assert_allclose(single, [2.0**22, 0], rtol=1e-12)
    lower = float(np.float32(1e-7))
    single = reference.binary_crossentropy([1], [lower], precision="float32")
    assert_result(single, -LOG(lower), [-1 / lower])


@pytest.mark.parametrize(("t", "p", "value", "gradient"), [
    ([0, 1], [0.0, 1.0], 0, [1, 0]),
    ([0, 1, 0], [0.0, 0.5, 0.5], LOG(2), [1, -1, 1]),
    ([0.5, 0.5], [0.0, 1.0], INF, None),
])  # fmt: skip
def test_epsilon_zero_is_exact(t, p, value, gradient):
    got = reference.categorical_crossentropy(t, p, epsilon=0.0)
    assert got.value == approx(value, rel=1e-15)
    if gradient is not None:
        np.testing.assert_allclose(got.gradient, gradient)
        assert got.target_gradient[0] == 0
        assert np.isfinite(got.target_gradient).all()
        for loss in (reference.kl_divergence, reference.categorical_focal_crossentropy):
            other = loss(t, p, epsilon=0.0)
            assert np.isfinite(other.value)
            assert np.isfinite(other.gradient).all()
            assert np.isfinite(other.target_gradient).all()
    else:
        assert reference.kl_divergence(t, p, epsilon=0.0).value == INF
        assert reference.categorical_focal_crossentropy(t, p, epsilon=0.0).value == INF


@pytest.mark.parametrize("loss", ["binary_crossentropy", "binary_focal_crossentropy", "log_loss"])
def test_binary_epsilon_zero_is_exact(loss):
    got = function(loss)([0.0, 1.0, 0.5], [0.0, 1.0, 0.5], epsilon=0.0)
    for part in (got.value, got.gradient, got.target_gradient):
        assert np.isfinite(part).all()
    assert function(loss)([0.0], [0.0], epsilon=0.0).value == 0
    assert function(loss)([1.0], [0.0], epsilon=0.0).value == INF
    assert function(loss)([0.0], [1.0], epsilon=0.0).value == INF


@pytest.mark.parametrize("loss", ["binary_crossentropy", "binary_focal_crossentropy", "log_loss"])
def test_infinite_binary_logits_are_certain(loss):
    one, two = function(loss), {"from_logits": True}
    for x, t in ((INF, 1), (-INF, 0)):
        assert_result(one([t], [x], **two), 0, [0], [0])
        assert one([1 - t], [x], **two).value == INF
        assert np.isfinite(one([1 - t], [x], **two).gradient).all()
    assert np.isnan(one([1], [NAN], **two).value)


@pytest.mark.parametrize("loss", ["categorical_crossentropy", "categorical_focal_crossentropy"])
def test_infinite_logits(loss):
    def call(t, z):
        plain = {"alpha": 1, "gamma": 0} if "focal" in loss else {}
        return function(loss)(t, z, from_logits=True, **plain)

    assert_result(call([0, 1, 0], [-INF, 0.0, 0.0]), LOG(2), [0, -0.5, 0.5], [0, LOG(2), LOG(2)])
    assert call([0, 1], [0.0, -INF]).value == INF
    assert call([0, 1], [-INF, 3.0]).value == 0
    for row in ([-INF, -INF], [0.0, INF], [0.0, NAN]):
        got = call([0, 1], row)
        assert np.isnan(got.value)
        assert np.isnan(got.gradient).all()
    assert call([0, 1], [1e30, -1e30]).value == 2e30
    np.testing.assert_array_equal(call([0, 1], [1e30, -1e30]).gradient, [1, -1])


@pytest.mark.parametrize("loss", sorted(OF_PAIRS_OF_LOGITS))
def test_infinite_logits_on_two_sides(loss):
    def call(a, b):
        return function(loss)(a, b, **({"from_logits": True} if loss == "kl_divergence" else {}))

    both, alone = call([-INF, 0.0, 1.0], [-INF, 1.0, 0.0]), call([0.0, 1.0], [1.0, 0.0])
    assert_result(both, alone.value, [0, *alone.gradient], [0, *alone.target_gradient])
    assert_result(call([-INF, 0.0], [0.0, 0.0]), LOG(2), [0.5, -0.5], [0, 0])
    assert call([0.0, 0.0], [-INF, 0.0]).value == INF
    assert call([1e30, 0.0], [0.0, 1e30]).value == 1e30
    for row in ([-INF, -INF], [0.0, INF], [0.0, NAN]):
        assert np.isnan(call(row, [0.0, 0.0]).value)
        assert np.isnan(call([0.0, 0.0], row).value)
        assert np.isnan(call([0.0, 0.0], row).gradient).all()


def test_divergence_of_equal_rows_is_zero():
    z = np.random.default_rng(4).normal(size=(3, 9)) * 30
    assert_result(reference.kl_divergence(z, z, from_logits=True), 0, np.zeros((3, 9)), np.zeros((3, 9)))
    assert_result(reference.distillation_loss(z, z, temperature=3), 0, np.zeros((3, 9)), np.zeros((3, 9)))


def test_binary_focal_where_its_factor_vanishes():
    t, p = [[0.0, 1.0, 0.3]], [[0.0, 1.0, 0.4]]
    plain, focal = reference.binary_crossentropy(t, p), reference.binary_focal_crossentropy(t, p, gamma=0.0)
    assert_result(focal, plain.value, plain.gradient, plain.target_gradient)
    steep = reference.binary_focal_crossentropy(t, p, gamma=0.5)
    np.testing.assert_array_equal(steep.gradient[0, :2], 0)  # the true slope, of x^0.5 at 0, is infinite
    assert np.isfinite(steep.target_gradient).all()
    # alpha = 0 gives positives no weight, so that an impossible one costs nothing
    none = {"apply_class_balancing": True, "alpha": 0.0}
    for certain in ({"from_logits": True}, {"epsilon": 0.0}):
        x = [-INF] if "from_logits" in certain else [0.0]
        assert_result(reference.binary_focal_crossentropy([1.0], x, **none, **certain), 0, [0], [0])


def test_an_infinite_row_leaves_the_gradients_of_the_others_alone():
    t, p = [[0.0, 1.0], [0.5, 0.5]], [[1.0, 0.0], [0.25, 0.75]]
    for reduction in ("sum", "mean", "mean_with_sample_weight"):
        got = reference.categorical_crossentropy(t, p, epsilon=0.0, reduction=reduction)
        assert got.value == INF
        n = 1 if reduction == "sum" else 2
        np.testing.assert_allclose(got.gradient[1], [-1 / n, 1 / 3 / n], rtol=1e-14)
        np.testing.assert_allclose(got.target_gradient[1], -LOG([0.25, 0.75]) / n, rtol=1e-14)


# ------------------------------------------------------------------------------ weights, masks, labels, reductions


@pytest.mark.parametrize("out", [{"mask": [1, 0, 1, 1]}, {"sample_weight": [1, 0, 1, 1]}], ids=str)
@pytest.mark.parametrize("reduction", ["none", "sum", "mean", "mean_with_sample_weight"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_what_has_no_weight_reaches_nothing(loss, reduction, out, bad):
    """Rows 0, 2 and 3 alone give the same: bad values in row 1 reach neither value nor gradient."""
    y_true, y_pred = inputs(loss, {})
    rest = [0, 2, 3]
    alone = function(loss)(y_true[rest], y_pred[rest], reduction=reduction)
    y_pred[1] = bad
    if loss not in OF_LABELS:
        y_true[1] = bad
    got = function(loss)(y_true, y_pred, reduction=reduction, **out)
    if reduction == "mean" and "sample_weight" in out:  # a weight of 0 is still counted
        alone = Result(alone.value * 0.75, alone.gradient * 0.75, alone.target_gradient)
    value = got.value if reduction != "none" else got.value[rest]
    np.testing.assert_allclose(value, alone.value, rtol=1e-15)
    np.testing.assert_allclose(got.gradient[rest], alone.gradient, rtol=1e-14)
    np.testing.assert_array_equal(got.gradient[1], 0)
    if loss not in OF_LABELS:
        np.testing.assert_array_equal(got.target_gradient[1], 0)


def test_weights_spread_over_leading_axes():
    t, y = inputs("categorical_crossentropy", {}, shape=(2, 3, 4))
    per_sample = reference.categorical_crossentropy(t, y, reduction="none").value
    rows = np.array([2.0, 0.5])
    for weight in (rows, rows[:, None], np.repeat(rows[:, None], 3, axis=1)):
        got = reference.categorical_crossentropy(t, y, sample_weight=weight, reduction="none").value
        np.testing.assert_allclose(got, per_sample * rows[:, None], rtol=1e-15)
        got = reference.categorical_crossentropy(t, y, mask=weight > 1).value
        np.testing.assert_allclose(got, per_sample[0].mean(), rtol=1e-15)
    for weight in (np.ones(3), np.ones((1, 3)), np.ones((2, 3, 4)), np.ones((2, 2))):
        with pytest.raises(ValueError, match=r"\(2, 3\)"):
            reference.categorical_crossentropy(t, y, sample_weight=weight)


def test_no_denominator_gives_zero():
    for options in (
        {"mask": [0, 0, 0]}, {"mask": [0, 0, 0], "reduction": "mean_with_sample_weight"},
        {"sample_weight": [0, 0, 0], "reduction": "mean_with_sample_weight"}, {"sample_weight": [0, 0, 0]},
        {"normalizer": 0}, {"mask": False, "reduction": "sum"},
        {"sample_weight": [1, -1, 0], "reduction": "mean_with_sample_weight"},
    ):  # fmt: skip
        assert_result(reference.categorical_crossentropy(ONE_HOT, P, **options), 0, np.zeros((3, 3)), np.zeros((3, 3)))
    ignored = reference.sparse_categorical_crossentropy([-1, -1, -1], P, ignore_class=-1)
    assert_result(ignored, 0, np.zeros((3, 3)))


@pytest.mark.parametrize("reduction", ["mean", "sum_over_batch_size", "sum", "mean_with_sample_weight"])
@pytest.mark.parametrize("loss", LOSSES)
def test_empty_batch(loss, reduction):
    y_true = np.zeros((0,), dtype=int) if loss in OF_LABELS else np.zeros((0, 3))
    got = function(loss)(y_true, np.zeros((0, 3)), reduction=reduction)
    assert got.value == 0
    assert np.ndim(got.value) == 0
    assert got.gradient.shape == (0, 3)
    assert function(loss)(y_true, np.zeros((0, 3)), reduction="none").value.size == 0


def test_normalizer_makes_gradient_accumulation_right():
    # Sums of losses 4 and 9 over 10 samples in two batches: 1.3, where the mean of the two means is 2.5.
    z = LOG([np.expm1(4.0), np.expm1(1.0)])
    first = reference.binary_crossentropy([[0]], [[z[0]]], from_logits=True, normalizer=10)
    second = reference.binary_crossentropy(np.zeros((9, 1)), np.full((9, 1), z[1]), from_logits=True, normalizer=10)
    assert first.value + second.value == approx(1.3, rel=1e-14)


def test_labels():
    rows = reference.sparse_categorical_crossentropy([0, 3, -1, 1], [*P, P[0]], reduction="none")
    np.testing.assert_array_equal(np.isnan(rows.value), [False, True, True, False])
    np.testing.assert_array_equal(np.isnan(rows.gradient).all(axis=1), [False, True, True, False])
    np.testing.assert_array_equal(np.isnan(rows.gradient).any(axis=1), [False, True, True, False])
    assert np.isnan(reference.sparse_categorical_crossentropy([0, 3], P[:2]).value)
    assert np.isnan(reference.log_loss([0, 3], P[:2]).value)
    for ignored in (-1, 255, 2):  # out of range or in range
        got = reference.sparse_categorical_crossentropy([0, ignored, 1], P, ignore_class=ignored, label_smoothing=0.1)
        alone = reference.sparse_categorical_crossentropy([0, 1], [P[0], P[2]], label_smoothing=0.1)
        assert_result(got, alone.value, [alone.gradient[0], [0, 0, 0], alone.gradient[1]], rtol=1e-15)
    small = reference.sparse_categorical_crossentropy(np.array(Y, dtype=np.uint8), P, ignore_class=-1)
    assert small.value == reference.sparse_categorical_crossentropy(Y, P).value


def test_zero_and_one_dimensional_inputs():
    assert reference.sparse_categorical_crossentropy(1, P[0]).value == approx(-LOG(0.2), rel=1e-15)
    assert reference.binary_crossentropy([1, 0], [0.9, 0.2], reduction="none").value.shape == ()
    assert reference.log_loss(1, 0.3).gradient.shape == ()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int64, np.bool_])
def test_every_real_dtype_is_taken_at_its_value(dtype):
    rng = np.random.default_rng(6)
    y_true, y_pred = rng.uniform(size=(4, 3)).round().astype(dtype), rng.uniform(0, 2, size=(4, 3)).astype(dtype)
    for name in ("categorical_crossentropy", "binary_crossentropy"):
        got = function(name)(y_true, y_pred, from_logits=True)
        want = function(name)(y_true.astype(float).tolist(), y_pred.astype(float).tolist(), from_logits=True)
        assert_result(got, want.value, want.gradient, want.target_gradient, rtol=0)
        assert got.gradient.dtype == got.target_gradient.dtype == np.float64


@pytest.mark.parametrize("loss", LOSSES)
def test_inputs_are_never_changed(loss):
    y_true, y_pred = inputs(loss, {})
    weight, mask = np.array([1.0, 2.0, 0.0, NAN]), np.array([1, 1, 1, 0])
    arrays = [y_true, y_pred, weight, mask]
    copies = [a.copy() for a in arrays]
    for a in arrays:
        a.flags.writeable = False
    for _ in range(3):
        got = function(loss)(y_true, y_pred, sample_weight=weight, mask=mask)
        assert np.isfinite(got.value)
        assert not any(np.shares_memory(got.gradient, a) for a in arrays)
    for a, copy in zip(arrays, copies, strict=True):
        np.testing.assert_array_equal(a, copy)


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"\(3,\).*\(3, 1\)"):
        reference.binary_crossentropy(np.zeros(3), np.zeros((3, 1)))
    with pytest.raises(ValueError, match=r"\(3, 1\).*\(3, 3\)"):
        reference.sparse_categorical_crossentropy(np.zeros((3, 1), dtype=int), P)
    with pytest.raises(ValueError, match="batchmean"):
        reference.kl_divergence(P, P, reduction="batchmean")


# -------------------------------------------------------------------------------------------------------- the file


def test_imports_numpy_and_the_standard_library_only():
    imported = set()
    for node in ast.walk(ast.parse(Path(reference.__file__).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import is one of lossbridge"
            imported.add(node.module.partition(".")[0])
    assert "lossbridge" not in imported
    assert imported - sys.stdlib_module_names == {"numpy"}


def test_public_names():
    defined = {
        name
        for name, thing in vars(reference).items()
        if not name.startswith("_") and getattr(thing, "__module__", None) == reference.__name__
    }
    assert defined == set(reference.__all__)
    assert {function(loss).__name__ for loss in LOSSES} <= defined
    for name in defined:
        assert getattr(reference, name).__doc__
