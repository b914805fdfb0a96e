"""Losses and their slopes in closed form, over a backend's primitives: for kernels that bring their own derivative.

They equal what formulas.py defines and what a framework would derive of it, with fewer passes: nothing here is ever
differentiated, so that a series may stand for five exponentials. No reduction over samples, no framework.

Of each loss there are two functions. With `target` and `pred` in the dtype of the computation,

    value(b, target, pred, axis, **options) -> the per-sample losses, and what is known of the rows
    slopes(b, target, pred, axis, known, wanted, **options) -> their derivatives for each entry of target and of pred

where `wanted` says which of the two, and None stands for the other. axis None: every entry is a sample.
"""

from __future__ import annotations

import math
from typing import Any

from lossbridge import formulas
from lossbridge.backend import Array, Backend

Known = tuple[Any, ...]
Wanted = tuple[bool, bool]
Slopes = tuple[Array | None, Array | None]


# Cross-entropy of logits and distributions, or labels. With m = z_k the largest logit and s = Σ_{j≠k} exp(z_j − m) it
# is Σ w (m − z) + (Σ w)·log1p(s), and p_k − 1 is −s/(1 + s).


def dense_value(
    b: Backend,
    target: Array,
    logits: Array,
    axis: int,
    *,
    label_smoothing: float = 0.0,
    class_weight: Array | None = None,
) -> tuple[Array, Known]:
    weight = _class_weights(b, target, logits, axis, label_smoothing, class_weight)
    m = b.max(logits, axis)
    # A class that shares the maximum counts 1, so that no index of one has to be looked for.
    is_top = logits == m
    s = b.sum(b.where(is_top, 0.0, b.exp(logits - m)), axis, keepdims=True)
    s = s + (b.sum(b.cast(is_top, b.dtype(logits)), axis, keepdims=True) - 1) + (m - m)
    mass, others = b.sum(weight, axis, keepdims=True), b.sum(b.where(is_top, 0.0, weight), axis, keepdims=True)
    fall = b.sum(b.where(weight == 0, 0.0, weight * (m - logits)), axis, keepdims=True)
    loss = _of_labels(b, target, logits, axis, fall + mass * b.log1p(s), math.nan)
    return b.squeeze(loss, axis), (m, s, mass, others)


def dense_slopes(
    b: Backend,
    target: Array,
    logits: Array,
    axis: int,
    known: Known,
    wanted: Wanted,
    *,
    label_smoothing: float = 0.0,
    class_weight: Array | None = None,
) -> Slopes:
    m, s, mass, others = known
    weight = _class_weights(b, target, logits, axis, label_smoothing, class_weight)
    of_target = of_pred = None
    if wanted[0]:
        of_target = formulas.affordable(b, weight, (m - logits) + b.log1p(s)) * (1 - label_smoothing)
        of_target = of_target if class_weight is None else class_weight * of_target
    if wanted[1]:
        leads = (logits == m) & (s < 1)  # alone: p − 1 would cancel
        of_pred = b.where(leads, (others - weight * s) / (1 + s), b.exp(logits - m) * (mass / (1 + s)) - weight)
        of_pred = _of_labels(b, target, logits, axis, of_pred, 0.0)
    return of_target, of_pred


def _class_weights(
    b: Backend, target: Array, logits: Array, axis: int, label_smoothing: float, class_weight: Array | None
) -> Array:
    if len(b.shape(target)) == len(b.shape(logits)):
        weight = formulas.smooth(b, target, b.size(logits, axis), label_smoothing)
    else:
        is_label = b.cast(b.one_hot(target, logits, axis), b.dtype(logits))
        weight = formulas.smooth(b, is_label, b.size(logits, axis), label_smoothing)
    return weight if class_weight is None else class_weight * weight


def _of_labels(b: Backend, target: Array, logits: Array, axis: int, x: Array, value: float) -> Array:
    """`x`; the value in its place where labels are out of range."""
    if len(b.shape(target)) == len(b.shape(logits)):
        return x
    valid = (target >= 0) & (target < b.size(logits, axis, target))
    return b.where(b.expand_dims(valid, axis), x, value)


# Bernoulli trials: positive·softplus(−x) + negative·softplus(x), softplus(x) being max(x, 0) + log1p(exp −|x|); of
# probabilities −positive·log p − negative·log(1 − p). Along an axis their mean.


def bernoulli_value(
    b: Backend,
    target: Array,
    pred: Array,
    axis: int | None,
    *,
    from_logits: bool,
    epsilon: float = 0.0,
    label_smoothing: float = 0.0,
    pos_weight: Array | float | None = None,
) -> tuple[Array, Known]:
    positive, negative = _trials(b, target, label_smoothing, pos_weight)
    if from_logits:
        above, below = b.where(pred > 0, pred, 0.0), b.where(pred < 0, pred, 0.0)
        costs = (positive + negative) * b.log1p(b.exp(-b.abs(pred)))
        costs = costs - b.where(positive == 0, 0.0, positive * below) + b.where(negative == 0, 0.0, negative * above)
    else:
        p = formulas.clip(b, pred, epsilon, 1 - epsilon)
        of_positive, of_negative = b.log(p), b.log1p(-p)
        if epsilon == 0:  # 0·log 0 = 0
            of_positive = b.where((positive == 0) & (p == 0), 0.0, of_positive)
            of_negative = b.where((negative == 0) & (p == 1), 0.0, of_negative)
        costs = -(positive * of_positive + negative * of_negative)
    return costs if axis is None else b.sum(costs, axis) / b.size(pred, axis), ()


def bernoulli_slopes(
    b: Backend,
    target: Array,
    pred: Array,
    axis: int | None,
    known: Known,
    wanted: Wanted,
    *,
    from_logits: bool,
    epsilon: float = 0.0,
    label_smoothing: float = 0.0,
    pos_weight: Array | float | None = None,
) -> Slopes:
    positive, negative = _trials(b, target, label_smoothing, pos_weight)
    count = 1 if axis is None else b.size(pred, axis)
    inside, p = None, pred
    if not from_logits:
        inside = (pred >= epsilon) & (pred <= 1 - epsilon)
        p = formulas.clip(b, pred, epsilon, 1 - epsilon)
    of_target = of_pred = None
    if wanted[0]:
        if inside is None:
            of_positive = formulas.affordable(b, positive, formulas.softplus(b, -pred))
            of_negative = formulas.affordable(b, negative, formulas.softplus(b, pred))
        else:
            of_positive = formulas.log_cost(b, positive, p)
            of_negative = -b.log1p(-b.where((negative == 0) & (p == 1), 0.0, p))
        if pos_weight is not None:
            of_positive = pos_weight * of_positive
        of_target = (of_positive - of_negative) * ((1 - label_smoothing) / count)
    if wanted[1]:
        if inside is None:
            shares, rest = formulas.sigmoid(b, pred)
            of_pred = negative * shares - positive * rest
        else:
            none = (positive == 0) & (p == 0)
            all_of_it = (negative == 0) & (p == 1)
            of_pred = b.where(all_of_it, 0.0, negative / b.where(all_of_it, 1.0, 1 - p))
            of_pred = of_pred - b.where(none, 0.0, positive / b.where(none, 1.0, p))
            of_pred = b.where(inside, of_pred, b.where(p == p, 0.0, p))
        of_pred = of_pred / count
    return of_target, of_pred


def _trials(b: Backend, target: Array, label_smoothing: float, pos_weight: Array | float | None) -> tuple[Array, Array]:
    """What counts for the outcome, and what against it."""
    positive = formulas.smooth(b, target, 2, label_smoothing)
    negative = formulas.smooth(b, 1 - target, 2, label_smoothing)
    return positive if pos_weight is None else pos_weight * positive, negative


# KL divergence of probabilities. With r = (p − t)/t a term t·log(t/p) is t·(r − log1p(r)) − (p − t); where the two are
# near each other the first is a series, and of the second the differences are exact: as in formulas.relative_entropy.


def kl_value(b: Backend, target: Array, pred: Array, axis: int, *, epsilon: float) -> tuple[Array, Known]:
    t, p = formulas.clip(b, target, epsilon, 1.0), formulas.clip(b, pred, epsilon, 1.0)
    near, difference, excess, log_ratio = _log_ratio_parts(b, t, p, epsilon)
    terms = t * b.where(near, excess, log_ratio)
    return b.sum(terms, axis) - b.sum(b.where(near, difference, 0.0), axis), ()


def kl_slopes(
    b: Backend, target: Array, pred: Array, axis: int, known: Known, wanted: Wanted, *, epsilon: float
) -> Slopes:
    t, p = formulas.clip(b, target, epsilon, 1.0), formulas.clip(b, pred, epsilon, 1.0)
    of_target = of_pred = None
    if wanted[0]:
        near, difference, excess, log_ratio = _log_ratio_parts(b, t, p, epsilon)
        ratio = b.where(near, excess - difference / b.where(near, t, 1.0), log_ratio)
        inside = (target >= epsilon) & (target <= 1)
        of_target = b.where(inside & (t != 0), ratio + 1, b.where(t == t, 0.0, t))
    if wanted[1]:
        none = t == 0
        inside = (pred >= epsilon) & (pred <= 1) & (t != 0)
        of_pred = b.where(inside, -t / b.where(none, 1.0, p), b.where(p == p, 0.0, p))
    return of_target, of_pred


def _log_ratio_parts(b: Backend, t: Array, p: Array, epsilon: float) -> tuple[Array, Array, Array, Array]:
    """Where p is near t; p − t; there r − log1p(r); elsewhere log(t/p), and 0 where t = 0."""
    difference = p - t
    near = (difference > -0.25 * t) & (difference < 0.25 * t)
    r = b.where(near, difference, 0.0) / b.where(near, t, 1.0)
    # With q = r/(2 + r), log1p(r) = 2·artanh(q), so r − log1p(r) = q·r − 2q³·(1/3 + q²/5 + q⁴/7 + …).
    q = r / (2 + r)
    square = q * q
    excess = q * (r - 2 * square * _polynomial(square, _ARTANH[: 10 if b.dtype(t) == "float64" else 4]))
    apart = near | (t == 0)
    if epsilon > 1e-30:
        log_ratio = b.log(b.where(apart, 1.0, t / p))
    else:  # a quotient of small numbers may leave the range of float32
        log_ratio = b.log(b.where(apart, 1.0, t)) - b.log(b.where(apart, 1.0, p))
    return near, difference, excess, log_ratio


# q² < 0.021: four terms leave 1e-8, ten 1e-18.
_ARTANH = [1 / (2 * n + 3) for n in range(10)]


def _polynomial(x: Array, coefficients: list[float]) -> Array:
    result: Array = coefficients[-1]
    for coefficient in coefficients[-2::-1]:
        result = result * x + coefficient
    return result


# KL(t ‖ p) of t = softmax(z/T), p = softmax(x/T). With δ̂ = δ + η, δ = log(t/p) and η the rounding of the two logarithms
# of sums, the same for a whole row: F = Σ t·(δ̂ + exp(−δ̂) − 1), whose terms are ≥ 0, and M = Σ t δ̂ give
# Σ t exp(−δ̂) − 1 = F − M = exp(−η) − 1 and KL = M − η = M + log1p(F − M). The latter for small F as F − g(F − M),
# g(x) = x − log1p(x) ≈ x²/2: nothing cancels, and the digits of nearly equal rows remain.


def kl_of_logits_value(
    b: Backend, target: Array, logits: Array, axis: int, *, temperature: float = 1.0
) -> tuple[Array, Known]:
    m_t, m_p = b.max(target, axis), b.max(logits, axis)
    log_t = b.log(b.sum(b.exp(_scaled(target - m_t, temperature)), axis, keepdims=True))
    log_p = b.log(b.sum(b.exp(_scaled(logits - m_p, temperature)), axis, keepdims=True))
    shift = log_p - log_t
    t, p, delta = _two_sides(b, target, logits, (m_t, m_p, log_t, shift), temperature)
    first = b.where(t == 0, 0.0, t * delta)
    near = b.abs(delta) < 1
    terms = b.where(near, t * _remainder(b, b.where(near, delta, 0.0)), first + (p - t))
    value = b.sum(terms, axis, keepdims=True)
    close = value < 0.25
    drift = b.where(close, value - b.sum(first, axis, keepdims=True), 0.0)  # exp(−η) − 1
    value = b.where(close, value - drift * drift * (0.5 - drift * (1 / 3 - drift * 0.25)), value)
    value = b.where(value < 0, 0.0, value)
    return temperature**2 * b.squeeze(value, axis), (m_t, m_p, log_t, shift + b.log1p(drift), value)


def kl_of_logits_slopes(
    b: Backend,
    target: Array,
    logits: Array,
    axis: int,
    known: Known,
    wanted: Wanted,
    *,
    temperature: float = 1.0,
) -> Slopes:
    """T²·(p − t)/T, where they are near each other as t·(exp(−δ) − 1); for the target T²·t·(δ − KL)/T."""
    *rows, value = known
    t, p, delta = _two_sides(b, target, logits, tuple(rows), temperature)
    of_target = of_pred = None
    if wanted[0]:
        of_target = temperature * b.where(t == 0, 0.0, t * (delta - value))
    if wanted[1]:
        near = b.abs(delta) < 1
        of_pred = temperature * b.where(near, t * b.expm1(-b.where(near, delta, 0.0)), p - t)
    return of_target, of_pred


def _scaled(x: Array, temperature: float) -> Array:
    return x if temperature == 1 else x / temperature


def _two_sides(b: Backend, target: Array, logits: Array, rows: Known, temperature: float) -> tuple[Array, Array, Array]:
    """t, p and log(t/p), with the same η. Both orders of subtraction are right, that of smaller numbers is exacter."""
    m_t, m_p, log_t, shift = rows
    down_t, down_p, across, across_top = target - m_t, logits - m_p, target - logits, m_t - m_p
    across_is_smaller = b.abs(across) + b.abs(across_top) < b.abs(down_t) + b.abs(down_p)
    delta = _scaled(b.where(across_is_smaller, across - across_top, down_t - down_p), temperature)
    # (A compiler would keep an array of exp(down) beside that of its sum, if the two began alike.)
    t, p = b.exp(_scaled(down_t, temperature) - log_t), b.exp(_scaled(down_p, temperature) - (log_t + shift))
    return t, p, delta + shift


def _remainder(b: Backend, x: Array) -> Array:
    """x + exp(−x) − 1 of |x| ≤ 1."""
    return x * x * _polynomial(x, remainder_series(b.dtype(x)))


def remainder_series(dtype: str) -> list[float]:
    """exp(−x) − 1 + x = x² Σ_n (−x)^n / (n + 2)!, to the last digit for |x| ≤ 1."""
    return [(-1) ** n / math.factorial(n + 2) for n in range(18 if dtype == "float64" else 10)]
