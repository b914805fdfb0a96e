"""The shared oracle: every loss as a textbook writes it, in NumPy float64, with its gradient in closed form.

It imports NumPy and the standard library alone, because it must share no code with what it judges. No derivative is
taken automatically or by differences. Accuracy matters more than speed.

The pipeline: predictions -> per-sample losses with their gradients -> weights -> one ratio. Inside, the class axis is
always the last one, and a gradient is that of one per-sample loss until `_reduce` applies weights and denominator.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "Result", "binary_crossentropy", "binary_focal_crossentropy", "categorical_crossentropy",
    "categorical_focal_crossentropy", "cross_entropy", "distillation_loss", "divergence", "entropy", "kl_divergence",
    "linear_crossentropy", "linear_distillation", "log_loss", "perplexity", "relative_entropy",
    "sparse_categorical_crossentropy", "topk_divergence",
]  # fmt: skip

Array = NDArray[np.float64]
MaybeArray = ArrayLike | None


@dataclass(frozen=True)
class Result:
    """A loss and its gradients. Where the loss is not reduced, the gradients are those of the sum of its entries."""

    value: Array | np.float64
    gradient: Array  # d value / d y_pred, of y_pred's shape
    target_gradient: Array | None  # d value / d y_true, of y_true's shape; None for integer labels


def _times(a: Array, b: Array) -> Array:
    """a * b, with 0 * inf = 0, because 0 log 0 = 0. NaN is passed on."""
    return np.where((a == 0) & np.isinf(b), 0.0, a * b)


def _others(x: Array) -> Array:
    """The sum over the last axis of every entry but this one, for entries >= 0."""
    # total - x_j cancels only where x_j is most of the total, so the sum for the largest entry is taken without it.
    is_top = np.arange(x.shape[-1]) == np.argmax(x, axis=-1)[..., np.newaxis]
    beside_top: Array = np.where(is_top, 0.0, x).sum(axis=-1, keepdims=True)
    return np.where(is_top, beside_top, x.sum(axis=-1, keepdims=True) - x)


def _clip(p: Array, low: float, high: float) -> tuple[Array, NDArray[np.bool_]]:
    """p within [low, high], and where its gradient passes: everywhere but strictly outside (a NaN is not outside)."""
    return np.clip(p, low, high), ~((p < low) | (p > high))


def _bounds(epsilon: float, precision: str) -> tuple[float, float]:
    """epsilon and 1 - epsilon, as a computation in this precision sees them: in float32, 1 - 1e-7 is 1 - 2**-23."""
    dtype = np.dtype(precision).type
    return float(dtype(epsilon)), float(dtype(1.0 - epsilon))


def _smooth(t: Array, smoothing: float, classes: int) -> Array:
    return t * (1.0 - smoothing) + smoothing / classes


# ------------------------------------------------------------------------- predictions and per-sample losses


class _Prediction(NamedTuple):
    """Probabilities over the last axis, and the pullback of their gradient to y_pred."""

    p: Array
    one_minus_p: Array
    nll: Array  # -log p
    inside: NDArray[np.bool_] | bool  # False where clipping stops the gradient
    pullback: Callable[[Array], Array]  # from g_c = -p_c (d loss / d p_c) to d loss / d y_pred


def _softmax(z: Array, temperature: float = 1.0) -> tuple[Array, Array, Array, Array]:
    """p = softmax(z / temperature): max z - z, the log of the sum of exp((z - max z) / temperature), p and 1 - p.

    NaN for a row of only -inf and for a row with +inf or NaN.
    """
    top = z.max(axis=-1, keepdims=True)
    below = np.where(np.isfinite(top), top - z, np.nan)
    e = np.exp(-below / temperature)
    others = _others(e)
    s = others.min(axis=-1, keepdims=True)  # the sum of e without that of the maximum, which is exactly 1
    return below, np.log1p(s), e / (1.0 + s), others / (1.0 + s)


def _from_logits(z: Array) -> _Prediction:
    """p = softmax(z); -log p_j = (max z - z_j) + log1p(s), both >= 0. dp_c/dz_j = p_c ([c = j] - p_j)."""
    below, log_total, p, one_minus_p = _softmax(z)
    return _Prediction(p, one_minus_p, below + log_total, True, lambda g: p * _others(g) - g * one_minus_p)


def _from_scaled_logits(x: Array, scale: float, cap: float | None, z_loss: float) -> tuple[_Prediction, Array, Array]:
    """p = softmax(z), z = scale x or cap tanh(scale x / cap); and z_loss lse(z)^2 with its derivative by x.

    dz/dx = scale (sech(scale x / cap))^2, dlse/dz_j = p_j.
    """
    z = scale * x if cap is None else cap * np.tanh(scale * x / cap)
    slope = np.full_like(x, scale) if cap is None else scale / np.cosh(scale * x / cap) ** 2
    of_z = _from_logits(z)
    lse = z.max(axis=-1) + of_z.nll.min(axis=-1)
    more, more_slope = z_loss * lse**2, slope * of_z.p * (2.0 * z_loss * lse)[..., np.newaxis]
    return of_z._replace(pullback=lambda g: slope * of_z.pullback(g)), more, more_slope


def _from_unnormalised(y: Array, low: float, high: float) -> _Prediction:
    """p = clip(y / S), S = sum(y). dp_c/dy_j = ([c = j] - p_c) / S."""
    others = _others(y)
    total = y + others
    ratio = y / total
    p, inside = _clip(ratio, low, high)
    # -log(y / S) near 1 loses the digits of 1 - p; log1p((S - y) / y) keeps them.
    exact = np.where(ratio > 0.5, np.log1p(others / y), -np.log(ratio))
    nll = np.where(inside, exact, -np.log(p))
    one_minus_p = np.where(inside, others / total, 1.0 - p)
    return _Prediction(p, one_minus_p, nll, inside, lambda g: (_others(g) - _times(g, others / y)) / total)


def _from_probabilities(y: Array, low: float, high: float) -> _Prediction:
    """p = clip(y)."""
    p, inside = _clip(y, low, high)
    return _Prediction(p, 1.0 - p, -np.log(p), inside, lambda g: -_times(g, 1.0 / p))


class _Samples(NamedTuple):
    loss: Array
    gradient: Array  # d loss / d y_pred, one axis more: the class axis, last
    target_gradient: Array | None  # d loss / d y_true
    mass: Array | float = 1.0  # the weight of a sample in mean_with_sample_weight, besides its sample_weight
    mass_gradient: Array | float = 0.0  # d mass / d y_true


def _categorical(
    t: Array, prediction: _Prediction, *, weight: Array | float = 1.0, gamma: float = 0.0, smoothing: float = 0.0
) -> _Samples:
    """sum_c weight_c t_c (1 - p_c)^gamma (-log p_c), t smoothed; gamma = 0 is the cross-entropy."""
    p, one_minus_p, nll, inside, pullback = prediction
    u = weight * _smooth(t, smoothing, t.shape[-1])
    focus = one_minus_p**gamma
    loss = _times(u, focus * nll).sum(axis=-1)
    # g = -p d/dp [u (1-p)^gamma (-log p)] = u (1-p)^gamma (gamma p (-log p) / (1-p) + 1), and (-log p) / (1-p) -> 1
    ratio = np.where(one_minus_p == 0, 1.0, nll / one_minus_p)
    g = u * focus * (gamma * _times(p, ratio) + 1.0)
    target_gradient = np.where((u == 0) & np.isinf(nll), 0.0, weight * focus * nll)
    return _Samples(loss, pullback(np.where(inside, g, 0.0)), (1.0 - smoothing) * target_gradient)


class _Bernoulli(NamedTuple):
    """The probability p of each label, element by element, with derivatives by y_pred."""

    p: Array  # never clipped
    one_minus_p: Array
    p_derivative: Array
    nll: Array  # -log p, of the clipped p
    nll_derivative: Array
    nll_complement: Array  # -log(1 - p), of the clipped p
    nll_complement_derivative: Array  # by y_pred too


def _bernoulli(y: Array, from_logits: bool, epsilon: float, precision: str) -> _Bernoulli:
    if from_logits:
        e = np.exp(-np.abs(y))
        large, small = 1.0 / (1.0 + e), e / (1.0 + e)
        p, one_minus_p = np.where(y >= 0, large, small), np.where(y >= 0, small, large)
        softplus, softplus_minus = np.maximum(y, 0.0) + np.log1p(e), np.maximum(-y, 0.0) + np.log1p(e)
        return _Bernoulli(p, one_minus_p, p * one_minus_p, softplus_minus, -one_minus_p, softplus, p)
    p, inside = _clip(y, *_bounds(epsilon, precision))
    by_p, by_complement = np.where(inside, -1.0 / p, 0.0), np.where(inside, 1.0 / (1.0 - p), 0.0)
    return _Bernoulli(y, 1.0 - y, np.ones_like(y), -np.log(p), by_p, -np.log1p(-p), by_complement)


def _binary(t: Array, b: _Bernoulli, pos_weight: Array | float = 1.0) -> tuple[Array, Array, Array]:
    """pos_weight t (-log p) + (1 - t) (-log(1 - p)) of each element, and its derivatives by y_pred and by t."""
    u = pos_weight * t
    loss = _times(u, b.nll) + _times(1.0 - t, b.nll_complement)
    gradient = _times(u, b.nll_derivative) + _times(1.0 - t, b.nll_complement_derivative)
    of_positive = np.where((u == 0) & np.isinf(b.nll), 0.0, pos_weight * b.nll)
    of_negative = np.where((t == 1) & np.isinf(b.nll_complement), 0.0, b.nll_complement)
    return loss, gradient, of_positive - of_negative


def _mean_of_elements(loss: Array, gradient: Array, target_gradient: Array) -> _Samples:
    n = loss.shape[-1]
    return _Samples(loss.sum(axis=-1) / n, gradient / n, target_gradient / n)


def _exp_remainder(u: Array) -> Array:
    """exp(u) - 1 - u = u^2/2 (1 + u/3 (1 + u/4 (...))), for |u| <= 1."""
    series = np.ones_like(u)
    for n in range(20, 2, -1):
        series = 1.0 + u / n * series
    return u * u / 2.0 * series


# With u = log(q/p), p log(p/q) = -p u = p (exp(u) - 1 - u) + (p - q). Entries with |u| <= 1 are summed in the latter
# form: its first term is >= 0 and exact for small u, whereas the terms -p u of a row have both signs and cancel.


def _divergence_terms(p: Array, u: Array) -> tuple[Array, NDArray[np.bool_]]:
    """p log(p/q) of each entry, less (p - q) where |u| <= 1; and where that is."""
    near = np.abs(u) <= 1.0
    return np.where(near, p * _exp_remainder(np.where(near, u, 0.0)), -_times(p, u)), near


def _divergence(p: Array, q: Array) -> tuple[Array, Array]:
    """sum p log(p/q) over the last axis, for p and q that need not sum to 1; and u = log(q/p)."""
    d = (q - p) / p
    u = np.where((p == 0) & (q == 0), 0.0, np.where(np.abs(d) <= 0.5, np.log1p(d), np.log(q / p)))
    terms, near = _divergence_terms(p, u)
    return terms.sum(axis=-1) + np.where(near, p - q, 0.0).sum(axis=-1), u


def _divergence_of_logits(a: Array, b: Array, temperature: float = 1.0) -> _Samples:
    """T^2 sum p log(p/q) with p = softmax(a/T), q = softmax(b/T). By b_j: T (q_j - p_j); by a_j: T p_j (-u_j - sum)."""

    p, q, u = _two_softmaxes(a, b, temperature)
    gap = _gap(p, q, u)
    terms, near = _divergence_terms(p, u)
    divergence = terms.sum(axis=-1) + np.where(near, 0.0, q - p).sum(axis=-1)
    return _Samples(temperature**2 * divergence, temperature * gap, temperature * _by_logits(p, -u))


def _two_softmaxes(a: Array, b: Array, temperature: float) -> tuple[Array, Array, Array]:
    """p = softmax(a/T), q = softmax(b/T), and u = log(q/p)."""
    (a_below, a_log_total, p, _), (b_below, b_log_total, q, _) = _softmax(a, temperature), _softmax(b, temperature)
    both_absent = np.isposinf(a_below) & np.isposinf(b_below)
    # Differences of logits before anything else: those of float32 logits are exact.
    u = np.where(both_absent, 0.0, (a_below - b_below) / temperature + (a_log_total - b_log_total))
    # p and q sum to 1; what their computed difference leaves is the rounding of the two log_total.
    return p, q, u - _gap(p, q, u).sum(axis=-1, keepdims=True)


def _gap(p: Array, q: Array, u: Array) -> Array:
    """q - p of u = log(q/p)."""
    return np.where(np.abs(u) <= 1.0, p * np.expm1(u), q - p)


def _exchanged(samples: _Samples) -> _Samples:
    assert samples.target_gradient is not None
    return samples._replace(gradient=samples.target_gradient, target_gradient=samples.gradient)


def _by_logits(p: Array, by_p: Array) -> Array:
    """p_j (g_j - sum p g): from derivatives by p = softmax(z), those by z. For p > 1/2, minus the sum of the others."""
    g = _times(p, by_p)
    found = g - p * g.sum(axis=-1, keepdims=True)
    others = np.where(p > 0.5, 0.0, found).sum(axis=-1, keepdims=True)
    return np.where(p > 0.5, -others, found)


def _jensen_shannon(a: Array, b: Array, beta: float, temperature: float) -> _Samples:
    """T^2 (beta sum p log(p/m) + (1 - beta) sum q log(q/m)), m = beta p + (1 - beta) q, p and q as above.

    beta (p - m) + (1 - beta) (q - m) = 0, so every entry may be p beta R(log m/p) + q (1 - beta) R(log m/q) with
    R(u) = exp(u) - 1 - u >= 0. By p the derivative is beta log(p/m), by q (1 - beta) log(q/m); a constant may be taken
    from these before those by logits, and that of the largest share is: where q lacks p's classes all are nearly alike.
    """
    p, q, u = _two_softmaxes(a, b, temperature)

    def log_of_mixture(share: float, rest: float, u: Array) -> Array:  # log(share + rest exp(u)), share + rest = 1
        more = rest * np.expm1(u)
        direct = np.where(more > -0.5, np.log1p(more), np.log(share + rest * np.exp(u)))
        return np.where(u > 700.0, np.logaddexp(math.log(share), math.log(rest) + u), direct)

    def less_leading(p: Array, share: float, rest: float, u: Array, log_ratio: Array) -> Array:
        k = np.argmax(p, axis=-1)[..., np.newaxis]
        top, step = np.take_along_axis(u, k, -1), u - np.take_along_axis(u, k, -1)
        apart = np.where(np.abs(step) < 1.0, np.exp(top) * np.expm1(step), np.exp(u) - np.exp(top))
        ratio = rest * apart / (share + rest * np.exp(top))  # m/p of each class over that of the largest, less 1
        return np.where(np.abs(ratio) < 0.5, np.log1p(ratio), log_ratio - np.take_along_axis(log_ratio, k, -1))

    def side(p: Array, share: float, rest: float, u: Array) -> tuple[Array, Array]:
        log_ratio = log_of_mixture(share, rest, u)
        near = np.abs(log_ratio) <= 1.0
        terms = np.where(near, p * _exp_remainder(np.where(near, log_ratio, 0.0)), (m - p) - _times(p, log_ratio))
        by_p = -share * less_leading(p, share, rest, u, log_ratio)
        return share * terms.sum(axis=-1), temperature * _by_logits(p, by_p)

    m = beta * p + (1.0 - beta) * q
    of_p, p_gradient = side(p, beta, 1.0 - beta, u)
    of_q, q_gradient = side(q, 1.0 - beta, beta, -u)
    return _Samples(temperature**2 * (of_p + of_q), q_gradient, p_gradient)


def _total_variation(a: Array, b: Array, temperature: float) -> _Samples:
    """T^2 / 2 sum |p - q|. With the signs s of p - q: by p_j s_j / 2, by q_j -s_j / 2, and by logits `_by_logits`.

    s_j - sum p s is taken as sum_i p_i (s_j - s_i): where p_j is nearly 1 the former would cancel.
    """
    p, q, u = _two_softmaxes(a, b, temperature)
    gap = _gap(p, q, u)

    def by_logits(p: Array) -> Array:
        more, same, less = (np.where(x, p, 0.0).sum(axis=-1, keepdims=True) for x in (gap < 0, gap == 0, gap > 0))
        of_more, of_less = 2.0 * less + same, -2.0 * more - same
        return temperature * p * np.where(gap < 0, of_more, np.where(gap > 0, of_less, less - more)) / 2.0

    rows = 0.0 * gap  # NaN for a row without a softmax
    loss = temperature**2 * np.abs(gap).sum(axis=-1) / 2.0
    return _Samples(loss, rows - by_logits(q), rows + by_logits(p))


# ------------------------------------------------------------------------------------- reduction and arguments


def _per_sample(x: MaybeArray, shape: tuple[int, ...]) -> Array:
    """A weight or a mask, broadcast to the per-sample shape: it has that shape, its leading axes, or is a scalar."""
    values = np.asarray(1.0 if x is None else x, dtype=np.float64)
    lead = values.shape
    while lead != shape[: len(lead)]:
        if lead[-1] != 1:
            raise ValueError(f"weight or mask of shape {values.shape} for per-sample shape {shape}")
        lead = lead[:-1]
    return np.broadcast_to(values.reshape(lead + (1,) * (len(shape) - len(lead))), shape)


def _reduce(
    samples: _Samples, axis: int, sample_weight: MaybeArray, mask: MaybeArray, normalizer: MaybeArray,
    reduction: str | None,
) -> Result:  # fmt: skip
    """sum(loss * weight * mask) / D; 0 for D = 0. Entries of weight 0 are selected away, NaN or not."""
    shape = samples.loss.shape
    valid = _per_sample(mask, shape) != 0
    weight = np.where(valid, _per_sample(sample_weight, shape), 0.0)

    def weighted(x: Array | float) -> Array:
        w = weight if np.ndim(x) <= weight.ndim else weight[..., np.newaxis]
        return np.where(w == 0, 0.0, w * x)

    def result(value: Array | np.float64, d: float, quotient: Array | float = 0.0) -> Result:
        def finish(gradient: Array) -> Array:
            return np.moveaxis(weighted(gradient) / d if d != 0 else np.zeros_like(gradient), -1, axis)

        of_target = samples.target_gradient
        return Result(value, finish(samples.gradient), None if of_target is None else finish(of_target - quotient))

    if reduction is None or reduction == "none":
        return result(weighted(samples.loss), 1.0)
    if reduction == "sum":
        return result(weighted(samples.loss).sum(), 1.0)
    if reduction not in ("mean", "sum_over_batch_size", "mean_with_sample_weight"):
        raise ValueError(f"unknown reduction {reduction!r}")
    by_weight = reduction == "mean_with_sample_weight" and normalizer is None
    if normalizer is not None:
        d = float(np.asarray(normalizer, dtype=np.float64))
    else:
        d = float(weighted(samples.mass).sum() if by_weight else valid.sum())
    value = weighted(samples.loss).sum() / d if d != 0 else np.float64(0.0)
    # With class weights D depends on the target: d(A/D) = (dA - (A/D) dD) / D. Where dD = 0, A/D may be inf.
    quotient = np.where(np.asarray(samples.mass_gradient) == 0, 0.0, value * samples.mass_gradient)
    return result(value, d, quotient if by_weight else 0.0)


def _dense(y_true: ArrayLike, y_pred: ArrayLike, axis: int) -> tuple[Array, Array]:
    """Both as new float64 arrays with the class axis last."""
    if np.shape(y_true) != np.shape(y_pred):
        raise ValueError(f"y_true has shape {np.shape(y_true)}, y_pred has shape {np.shape(y_pred)}")
    t, y = (np.ascontiguousarray(np.moveaxis(np.array(x, dtype=np.float64), axis, -1)) for x in (y_true, y_pred))
    return t, y


# How far rounding, or a step of finite differences, may leave a domain.
_ROUNDING = {"float16": 2.0**-8, "bfloat16": 2.0**-5}


def _fractions(x: Array, given: ArrayLike) -> Array:
    """x, of the array that was given, with NaN outside [0, 1]."""
    return np.where(x > 1.0 + _ROUNDING.get(np.asarray(given).dtype.name, 2.0**-12), np.nan, _shares(x, given))


def _shares(x: Array, given: ArrayLike) -> Array:
    """With NaN below 0."""
    outside = x < -_ROUNDING.get(np.asarray(given).dtype.name, 2.0**-12)
    return np.where(outside, np.nan, x)


def _one_hot(y_true: ArrayLike, y_pred: ArrayLike, axis: int) -> Array:
    """Labels as one-hot vectors along axis, of y_pred's shape; NaN throughout for a label out of range."""
    labels, shape = np.asarray(y_true), np.shape(y_pred)
    classes = shape[axis]
    one_hot: Array = (labels[..., np.newaxis] == np.arange(classes)).astype(np.float64)
    one_hot[(labels < 0) | (labels >= classes)] = np.nan
    one_hot = np.moveaxis(one_hot, -1, axis)
    if one_hot.shape != shape:
        raise ValueError(f"labels of shape {labels.shape} for predictions of shape {shape}, axis {axis}")
    return one_hot


# ------------------------------------------------------------------------------------------------------- losses


@np.errstate(all="ignore")
def categorical_crossentropy(
    y_true: ArrayLike, y_pred: ArrayLike, *, from_logits: bool = False, label_smoothing: float = 0.0, axis: int = -1,
    epsilon: float = 1e-7, class_weight: MaybeArray = None, sample_weight: MaybeArray = None, mask: MaybeArray = None,
    normalizer: MaybeArray = None, reduction: str | None = "sum_over_batch_size", precision: str = "float64",
    logit_scale: float = 1.0, softcap: float | None = None, z_loss: float = 0.0,
) -> Result:  # fmt: skip
    """Cross-entropy of target distributions: -sum_c w_c t_c log p_c.

    p = clip(y_pred / sum, epsilon, 1 - epsilon), or softmax(y_pred) exactly; t = y_true (1 - s) + s / C.
    y_true, y_pred: (..., C), C along axis; class_weight: (C,); per sample: (...). Source: Keras.
    """
    t, y = _dense(y_true, y_pred, axis)
    t, y = _fractions(t, y_true), y if from_logits else _shares(y, y_pred)
    more, more_slope = np.zeros(y.shape[:-1]), np.zeros_like(y)
    if from_logits:
        prediction, more, more_slope = _from_scaled_logits(y, logit_scale, softcap, z_loss)
    else:
        prediction = _from_unnormalised(y, *_bounds(epsilon, precision))
    w = np.asarray(1.0 if class_weight is None else class_weight, dtype=np.float64)
    samples = _categorical(t, prediction, weight=w, smoothing=label_smoothing)
    samples = samples._replace(loss=samples.loss + more, gradient=samples.gradient + more_slope)
    if class_weight is not None:
        mass = (w * _smooth(t, label_smoothing, t.shape[-1])).sum(axis=-1)
        samples = samples._replace(mass=mass, mass_gradient=(1.0 - label_smoothing) * w)
    return _reduce(samples, axis, sample_weight, mask, normalizer, reduction)


@np.errstate(all="ignore")
def sparse_categorical_crossentropy(
    y_true: ArrayLike, y_pred: ArrayLike, *, from_logits: bool = False, label_smoothing: float = 0.0, axis: int = -1,
    epsilon: float = 1e-7, class_weight: MaybeArray = None, sample_weight: MaybeArray = None, mask: MaybeArray = None,
    normalizer: MaybeArray = None, reduction: str | None = "sum_over_batch_size", precision: str = "float64",
    logit_scale: float = 1.0, softcap: float | None = None, z_loss: float = 0.0,
    ignore_class: int | None = None,
) -> Result:  # fmt: skip
    """Cross-entropy of integer labels: categorical_crossentropy of their one-hot rows.

    A label out of range gives NaN; samples labelled ignore_class are left out, and not counted.
    y_true: (...) integers; y_pred: (..., C), C along axis; per sample: (...). Source: Keras.
    """
    t, labels = _one_hot(y_true, y_pred, axis), np.asarray(y_true)
    valid = _per_sample(mask, labels.shape) != 0
    if ignore_class is not None:
        valid = valid & (labels != ignore_class)
    result = categorical_crossentropy(
        t, y_pred, from_logits=from_logits, label_smoothing=label_smoothing, axis=axis, epsilon=epsilon,
        class_weight=class_weight, sample_weight=sample_weight, mask=valid, normalizer=normalizer, reduction=reduction,
        precision=precision, logit_scale=logit_scale, softcap=softcap, z_loss=z_loss,
    )  # fmt: skip
    return replace(result, target_gradient=None)


@dataclass(frozen=True)
class _LinearResult(Result):
    """A loss of hidden states: `gradient` is theirs."""

    weight_gradient: Array
    bias_gradient: Array


@np.errstate(all="ignore")
def linear_crossentropy(
    y_true: ArrayLike, hidden: ArrayLike, weight: ArrayLike, *, bias: MaybeArray = None, classes_axis: int = 0,
    **options: Any,
) -> _LinearResult:  # fmt: skip
    """sparse_categorical_crossentropy of the logits z = W h + b. With G its gradient: G W, G^T h and sum G.

    Rows without a loss have the gradient 0, whatever their hidden state is.
    y_true: (...) integers; hidden: (..., H); weight: (C, H), or (H, C) with classes_axis 1; bias: (C,).
    """
    h, w = np.asarray(hidden, np.float64), np.moveaxis(np.asarray(weight, np.float64), classes_axis, 0)
    z = h @ w.T + (0.0 if bias is None else np.asarray(bias, np.float64))
    result = sparse_categorical_crossentropy(y_true, z, from_logits=True, **options)
    g, rows = result.gradient.reshape(-1, len(w)), h.reshape(-1, h.shape[-1])
    rows = np.where((g == 0).all(axis=-1, keepdims=True), 0.0, rows)
    of_weight = np.moveaxis(g.T @ rows, 0, classes_axis)
    return _LinearResult(result.value, (g @ w).reshape(h.shape), None, of_weight, g.sum(axis=0))


@np.errstate(all="ignore")
def linear_distillation(
    teacher_hidden: ArrayLike, teacher_weight: ArrayLike, y_pred: ArrayLike, weight: ArrayLike, *,
    teacher_bias: MaybeArray = None, student_bias: MaybeArray = None, classes_axis: int = 0, **options: Any,
) -> _LinearResult:  # fmt: skip
    """divergence of the logits z = W h + b of two layers. With G its gradient: G W, G^T h and sum G, of the student.

    target_gradient: G W of the teacher, with G by its logits. Rows without a loss have the gradient 0.
    Hidden states: (..., H); weights: (C, H), or (H, C) with classes_axis 1; biases: (C,).
    """

    def side(hidden: ArrayLike, weight: ArrayLike, bias: MaybeArray) -> tuple[Array, Array, Array]:
        h, w = np.asarray(hidden, np.float64), np.moveaxis(np.asarray(weight, np.float64), classes_axis, 0)
        return h, w, h @ w.T + (0.0 if bias is None else np.asarray(bias, np.float64))

    _, w_teacher, z_teacher = side(teacher_hidden, teacher_weight, teacher_bias)
    h, w, z = side(y_pred, weight, student_bias)
    result = divergence(z_teacher, z, **options)
    assert result.target_gradient is not None
    g, rows = result.gradient.reshape(-1, len(w)), h.reshape(-1, h.shape[-1])
    rows = np.where((g == 0).all(axis=-1, keepdims=True), 0.0, rows)
    of_weight, of_teacher = np.moveaxis(g.T @ rows, 0, classes_axis), result.target_gradient @ w_teacher
    return _LinearResult(result.value, (g @ w).reshape(h.shape), of_teacher, of_weight, g.sum(axis=0))


@np.errstate(all="ignore")
def binary_crossentropy(
    y_true: ArrayLike, y_pred: ArrayLike, *, from_logits: bool = False, label_smoothing: float = 0.0, axis: int = -1,
    epsilon: float = 1e-7, pos_weight: MaybeArray = None, sample_weight: MaybeArray = None, mask: MaybeArray = None,
    normalizer: MaybeArray = None, reduction: str | None = "sum_over_batch_size", precision: str = "float64",
) -> Result:  # fmt: skip
    """Cross-entropy of independent labels: the mean over axis of -pos_weight t log p - (1 - t) log(1 - p).

    p = clip(y_pred, epsilon, 1 - epsilon), or sigmoid(y_pred) exactly; t = y_true (1 - s) + s / 2.
    y_true, y_pred: (..., C), C along axis; pos_weight: scalar or (C,); per sample: (...). Source: Keras, PyTorch.
    """
    t, y = _dense(y_true, y_pred, axis)
    t, y = _fractions(t, y_true), y if from_logits else _fractions(y, y_pred)
    b = _bernoulli(y, from_logits, epsilon, precision)
    weight = np.asarray(1.0 if pos_weight is None else pos_weight, dtype=np.float64)
    loss, gradient, target_gradient = _binary(_smooth(t, label_smoothing, 2), b, weight)
    samples = _mean_of_elements(loss, gradient, (1.0 - label_smoothing) * target_gradient)
    return _reduce(samples, axis, sample_weight, mask, normalizer, reduction)


@np.errstate(all="ignore")
def log_loss(
    y_true: ArrayLike, y_pred: ArrayLike, *, from_logits: bool = False, axis: int = -1, epsilon: float = 1e-7,
    sample_weight: MaybeArray = None, mask: MaybeArray = None, normalizer: MaybeArray = None,
    reduction: str | None = "sum_over_batch_size", precision: str = "float64",
) -> Result:  # fmt: skip
    """Negative log-likelihood of labels, p clipped to [epsilon, 1 - epsilon] and never renormalised.

    y_pred of y_true's shape: -t log p - (1 - t) log(1 - p) of each element, which is a sample; axis has no meaning.
    y_pred with one axis more, C along axis: -log p_label; per sample: y_true's shape. Source: scikit-learn, Keras.
    """
    if np.ndim(y_true) == np.ndim(y_pred):
        t, y = _dense(np.expand_dims(y_true, -1), np.expand_dims(y_pred, -1), -1)
        t, y = _fractions(t, y_true), y if from_logits else _fractions(y, y_pred)
        samples = _mean_of_elements(*_binary(t, _bernoulli(y, from_logits, epsilon, precision)))
        r = _reduce(samples, -1, sample_weight, mask, normalizer, reduction)
        return Result(r.value, r.gradient[..., 0], None if r.target_gradient is None else r.target_gradient[..., 0])
    t, y = _dense(_one_hot(y_true, y_pred, axis), y_pred, axis)
    y = y if from_logits else np.where(t == 0, y, _fractions(y, y_pred))
    prediction = _from_logits(y) if from_logits else _from_probabilities(y, *_bounds(epsilon, precision))
    samples = _categorical(t, prediction)._replace(target_gradient=None)
    return _reduce(samples, axis, sample_weight, mask, normalizer, reduction)


@np.errstate(all="ignore")
def kl_divergence(
    y_true: ArrayLike, y_pred: ArrayLike, *, from_logits: bool = False, axis: int = -1, epsilon: float = 1e-7,
    sample_weight: MaybeArray = None, mask: MaybeArray = None, normalizer: MaybeArray = None,
    reduction: str | None = "sum_over_batch_size", precision: str = "float64",
) -> Result:  # fmt: skip
    """Kullback-Leibler divergence of y_pred from y_true: sum_c t_c log(t_c / p_c).

    t, p = y_true, y_pred clipped to [epsilon, 1]; from_logits: t, p = softmax(y_true), softmax(y_pred) exactly.
    y_true, y_pred: (..., C), C along axis; per sample: (...). Source: Kullback & Leibler 1951; clipping as in Keras.
    """
    a, b = _dense(y_true, y_pred, axis)
    if from_logits:
        return _reduce(_divergence_of_logits(a, b), axis, sample_weight, mask, normalizer, reduction)
    a, b = _fractions(a, y_true), np.where((b == 0).all(axis=-1, keepdims=True), np.nan, _shares(b, y_pred))
    low, _ = _bounds(epsilon, precision)
    (t, t_inside), (p, p_inside) = _clip(a, low, 1.0), _clip(b, low, 1.0)
    loss, u = _divergence(t, p)
    gradient = np.where(p_inside, -_times(t, 1.0 / p), 0.0)
    # At t = 0 (only with epsilon = 0) the term is selected away, so its derivative by t is 0, not log 0.
    target_gradient = np.where(t_inside & (t != 0), 1.0 - u, 0.0)
    return _reduce(_Samples(loss, gradient, target_gradient), axis, sample_weight, mask, normalizer, reduction)


@np.errstate(all="ignore")
def distillation_loss(
    y_true: ArrayLike, y_pred: ArrayLike, *, temperature: float = 1.0, axis: int = -1, sample_weight: MaybeArray = None,
    mask: MaybeArray = None, normalizer: MaybeArray = None, reduction: str | None = "sum_over_batch_size",
    precision: str = "float64",
) -> Result:  # fmt: skip
    """Knowledge distillation: T^2 KL(softmax(teacher / T) || softmax(student / T)).

    y_true: the teacher's logits, y_pred: the student's, (..., C), C along axis; per sample: (...). Nothing is
    clipped, so precision changes nothing. Source: Hinton, Vinyals & Dean 2015.
    """
    teacher, student = _dense(y_true, y_pred, axis)
    samples = _divergence_of_logits(teacher, student, temperature)
    return _reduce(samples, axis, sample_weight, mask, normalizer, reduction)


@np.errstate(all="ignore")
def divergence(
    y_true: ArrayLike, y_pred: ArrayLike, *, kind: str = "forward", beta: float = 0.5, scale: str = "mixture",
    temperature: float = 1.0, axis: int = -1, sample_weight: MaybeArray = None, mask: MaybeArray = None,
    normalizer: MaybeArray = None, reduction: str | None = "sum_over_batch_size", precision: str = "float64",
) -> Result:  # fmt: skip
    """A divergence of t = softmax(teacher / T) and p = softmax(student / T), times T^2.

    forward: KL(t || p); reverse: KL(p || t); total_variation: sum |t - p| / 2; jensen_shannon: beta KL(t || m) +
    (1 - beta) KL(p || m), m = beta t + (1 - beta) p, or with scale "divergence" that / (beta (1 - beta)), whose limits
    at 0 and 1 are forward and reverse. y_true, y_pred and precision as in distillation_loss. Source: Lin 1991.
    """
    a, b = _dense(y_true, y_pred, axis)
    beta = float(beta)
    if kind == "forward" or (kind == "jensen_shannon" and scale == "divergence" and beta == 0):
        samples = _divergence_of_logits(a, b, temperature)
    elif kind == "reverse" or (kind == "jensen_shannon" and scale == "divergence" and beta == 1):
        samples = _exchanged(_divergence_of_logits(b, a, temperature))
    elif kind == "total_variation":
        samples = _total_variation(a, b, temperature)
    elif beta in (0, 1):
        p, q, _ = _two_softmaxes(a, b, temperature)
        samples = _Samples(0.0 * (p + q).sum(axis=-1), 0.0 * (p + q), 0.0 * (p + q))
    else:
        samples = _jensen_shannon(a, b, beta, temperature)
        if scale == "divergence":
            k = beta * (1.0 - beta)
            assert samples.target_gradient is not None
            samples = _Samples(samples.loss / k, samples.gradient / k, samples.target_gradient / k)
    return _reduce(samples, axis, sample_weight, mask, normalizer, reduction)


@np.errstate(all="ignore")
def topk_divergence(
    indices: ArrayLike, y_true: ArrayLike, y_pred: ArrayLike, *, tail: bool = True, axis: int = -1,
    sample_weight: MaybeArray = None, mask: MaybeArray = None, normalizer: MaybeArray = None,
    reduction: str | None = "sum_over_batch_size", precision: str = "float64",
) -> Result:  # fmt: skip
    """KL of k classes and a bucket: sum_k t_k log(t_k / p_k) + T log(T / P).

    T = 1 - sum_k t_k, P = the sum of the other p. Without the tail, KL(t / sum t || p / sum p) of the k classes.
    y_true: their log t, (..., k) as indices, k along axis; y_pred: logits, (..., V). By log t_j:
    t_j (log(t_j / p_j) - log(T / P)), or of the normalised t and p t_j (log(t_j / p_j) - KL); by a kept logit
    p_j - t_j, by another p_j - T p_j / P, or 0. Precision changes nothing. NaN where an index is out of range or stands
    twice in a row, and for T < 0.
    """
    z, log_t = (np.moveaxis(np.array(x, dtype=np.float64), axis, -1) for x in (y_pred, y_true))
    places = np.moveaxis(np.asarray(indices), axis, -1)
    outside = (places < 0) | (places >= z.shape[-1])
    repeated = np.diff(np.sort(places, axis=-1), axis=-1) == 0
    wrong = (outside.any(axis=-1) | repeated.any(axis=-1))[..., np.newaxis]
    places = np.where(outside, 0, places)
    chosen = np.zeros(z.shape, bool)
    np.put_along_axis(chosen, places, True, -1)
    of_kept = np.take_along_axis(z, places, -1)
    rest = np.where(chosen, -np.inf, z)
    top = rest.max(axis=-1, keepdims=True)
    top = np.where(np.isneginf(top), 0.0, top)
    e = np.exp(rest - top)
    total = e.sum(axis=-1, keepdims=True)
    student, teacher = of_kept, log_t
    if tail and places.shape[-1] < z.shape[-1]:
        largest = np.arange(log_t.shape[-1]) == np.argmax(log_t, axis=-1)[..., np.newaxis]
        left = -np.where(largest, np.expm1(log_t), np.exp(log_t)).sum(axis=-1, keepdims=True)
        wrong = wrong | (left < -_ROUNDING.get(np.asarray(y_true).dtype.name, 2.0**-12))
        student = np.concatenate([of_kept, top + np.log(total)], axis=-1)
        teacher = np.concatenate([log_t, np.log(np.maximum(left, 0.0))], axis=-1)
    samples = _divergence_of_logits(teacher, np.where(wrong, np.nan, student))
    k = places.shape[-1]
    assert samples.target_gradient is not None
    t = np.exp(log_t - np.log(np.exp(teacher).sum(axis=-1, keepdims=True)))
    by_log_t = samples.target_gradient[..., :k]
    gradient = np.zeros_like(z)
    if student.shape[-1] > k:
        of_bucket = samples.gradient[..., k:]
        gradient = np.where(total > 0, of_bucket * e / total, 0.0)
        # Of log t_j the bucket's logarithm has the derivative -t_j / T.
        by_log_t = by_log_t - _times(t / np.exp(teacher[..., k:]), samples.target_gradient[..., k:])
    np.put_along_axis(gradient, places, samples.gradient[..., :k], -1)
    found = _reduce(_Samples(samples.loss, gradient, None), axis, sample_weight, mask, normalizer, reduction)
    of_teacher = _reduce(_Samples(samples.loss, by_log_t, None), axis, sample_weight, mask, normalizer, reduction)
    return replace(found, target_gradient=of_teacher.gradient)


@np.errstate(all="ignore")
def categorical_focal_crossentropy(
    y_true: ArrayLike, y_pred: ArrayLike, *, alpha: ArrayLike = 0.25, gamma: float = 2.0, from_logits: bool = False,
    label_smoothing: float = 0.0, axis: int = -1, epsilon: float = 1e-7, sample_weight: MaybeArray = None,
    mask: MaybeArray = None, normalizer: MaybeArray = None, reduction: str | None = "sum_over_batch_size",
    precision: str = "float64",
) -> Result:  # fmt: skip
    """Focal loss over classes: sum_c alpha_c (1 - p_c)^gamma t_c (-log p_c).

    p and t as in categorical_crossentropy. y_true, y_pred: (..., C), C along axis; alpha: scalar or (C,);
    per sample: (...). Source: Lin et al. 2017, as in Keras.
    """
    t, y = _dense(y_true, y_pred, axis)
    t, y = _fractions(t, y_true), y if from_logits else _shares(y, y_pred)
    prediction = _from_logits(y) if from_logits else _from_unnormalised(y, *_bounds(epsilon, precision))
    weight = np.asarray(alpha, dtype=np.float64)
    samples = _categorical(t, prediction, weight=weight, gamma=gamma, smoothing=label_smoothing)
    return _reduce(samples, axis, sample_weight, mask, normalizer, reduction)


@np.errstate(all="ignore")
def binary_focal_crossentropy(
    y_true: ArrayLike, y_pred: ArrayLike, *, apply_class_balancing: bool = False, alpha: float = 0.25,
    gamma: float = 2.0, from_logits: bool = False, label_smoothing: float = 0.0, axis: int = -1, epsilon: float = 1e-7,
    sample_weight: MaybeArray = None, mask: MaybeArray = None, normalizer: MaybeArray = None,
    reduction: str | None = "sum_over_batch_size", precision: str = "float64",
) -> Result:  # fmt: skip
    """Focal loss of independent labels: the mean over axis of balance (1 - p_t)^gamma bce.

    bce as in binary_crossentropy; 1 - p_t = t (1 - p) + (1 - t) p with p never clipped; balance = t alpha +
    (1 - t) (1 - alpha), or 1. y_true, y_pred: (..., C), C along axis; per sample: (...). Lin et al. 2017, as in Keras.
    """
    t, y = _dense(y_true, y_pred, axis)
    t, y = _fractions(t, y_true), y if from_logits else _fractions(y, y_pred)
    t = _smooth(t, label_smoothing, 2)
    b = _bernoulli(y, from_logits, epsilon, precision)
    bce, bce_derivative, bce_target_derivative = _binary(t, b)
    balance = t * alpha + (1.0 - t) * (1.0 - alpha) if apply_class_balancing else np.ones_like(t)
    bce = np.where((balance == 0) & np.isinf(bce), 0.0, bce)
    balance_by_t = 2.0 * alpha - 1.0 if apply_class_balancing else 0.0
    miss = t * b.one_minus_p + (1.0 - t) * b.p  # 1 - p_t; by p it is 1 - 2t, by t it is (1 - p) - p
    focus = miss**gamma
    # At miss = 0 the derivative is infinite for 0 < gamma < 1, and 0 for gamma = 0: 0 is selected for both.
    focus_by_p = np.where((miss == 0) & (gamma < 1), 0.0, gamma * miss ** (gamma - 1.0))
    gradient = _times(balance, focus_by_p * (1.0 - 2.0 * t) * _times(b.p_derivative, bce) + focus * bce_derivative)
    target_gradient = _times(balance, focus_by_p * (b.one_minus_p - b.p) * bce + focus * bce_target_derivative)
    target_gradient = (1.0 - label_smoothing) * (target_gradient + balance_by_t * focus * bce)
    samples = _mean_of_elements(balance * focus * bce, gradient, target_gradient)
    return _reduce(samples, axis, sample_weight, mask, normalizer, reduction)


# -------------------------------------------------------------------------------------------------- information


@np.errstate(all="ignore")
def entropy(p: ArrayLike, *, axis: int = -1, base: float = 2) -> Array:
    """Entropy -sum_c p_c log p_c, in bits for base 2. p: (..., C) -> (...). Source: Shannon 1948."""
    return cross_entropy(p, p, axis=axis, base=base)


@np.errstate(all="ignore")
def cross_entropy(p: ArrayLike, q: ArrayLike, *, axis: int = -1, base: float = 2) -> Array:
    """Cross-entropy -sum_c p_c log q_c, in bits for base 2. p, q: (..., C) -> (...). Source: Shannon 1948."""
    mass, other = _dense(p, q, axis)
    return np.asarray(_times(mass, -np.log(other)).sum(axis=-1) / math.log(base))


@np.errstate(all="ignore")
def relative_entropy(p: ArrayLike, q: ArrayLike, *, axis: int = -1, base: float = 2) -> Array:
    """Relative entropy sum_c p_c log(p_c / q_c), base 2: bits. p, q: (..., C) -> (...). Kullback & Leibler 1951."""
    return np.asarray(_divergence(*_dense(p, q, axis))[0] / math.log(base))


@np.errstate(all="ignore")
def perplexity(p: ArrayLike, q: MaybeArray = None, *, axis: int = -1) -> Array:
    """exp of the entropy of p in nats, or of the cross-entropy of p and q. p, q: (..., C) -> (...). Shannon 1948."""
    return np.asarray(np.exp(cross_entropy(p, p if q is None else q, axis=axis, base=math.e)))
