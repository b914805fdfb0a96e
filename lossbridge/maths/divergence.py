"""The divergence family: Kullback-Leibler divergences of logits and of probabilities, and entropies.

All divergences of nearly equal distributions use one function, `remainder`:

1. f(δ) = δ + e^(−δ) − 1 ≥ 0 with δ = log(t/p): t·f(δ) = t·log(t/p) − t + p. For |δ| ≤ 1 f is the series
   Σ_{n≥2} (−δ)^n / n!, which has full relative accuracy for small δ.
2. Of probabilities, where t is near p: Σ t·log(t/p) = Σ t·f(δ) + Σ (t − p), whose differences are exact.

Of logits z (target) and x, t = softmax(z/T), p = softmax(x/T):

3. δ_j = (z_j − z_top)/T − (x_j − x_top)/T + log Σ e^((x − x_top)/T) − log Σ e^((z − z_top)/T), with the maxima z_top
   and x_top. Where (z_j − x_j) − (z_top − x_top) has the smaller intermediate results, it replaces the first
   difference.
4. The logarithms of the sums are rounded, by the same η for the whole row: δ̂ = δ + η. F = Σ t·f(δ̂) and M = Σ t·δ̂
   give F − M = e^(−η) − 1, because Σ t = Σ p = 1. So KL = M − η = F − g(F − M) with g(x) = x − log1p(x) ≈ x²/2: η does
   not count to first order.
5. gradient = T (p − t), where near each other T t (e^(−δ) − 1), with η taken out of δ̂; for the target T t (δ − KL), of
   δ less that of the largest t, so that equal δ leave no rounding. A row sums to 0, so a class with t > 0.6 gets minus
   the sum of the others, which does not cancel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from lossbridge.maths.elementary import clip, infinite_where, is_number, neg_log
from lossbridge.maths.ops import Array, Gradients, Number, Ops, Residuals, Rule


def remainder(ops: Ops, delta: Array) -> Array:
    """δ + e^(−δ) − 1 for |δ| ≤ 1, to full relative accuracy (1)."""
    return delta * delta * series_of_remainder(ops, delta)


def series_of_remainder(ops: Ops, delta: Array) -> Array:
    """(δ + e^(−δ) − 1) / δ² for |δ| ≤ 1."""
    coefficients = remainder_series(ops.dtype(delta))
    series: Array = coefficients[-1]
    for coefficient in coefficients[-2::-1]:
        series = series * delta + coefficient
    return series


def remainder_series(dtype: str) -> list[float]:
    """The coefficients (−1)^n / n! of δ^(n−2)."""
    return [(-1) ** n / math.factorial(n) for n in range(2, 20 if dtype == "float64" else 12)]


# Of logits.


def kl_of_logits(
    ops: Ops, target: Array, logits: Array, axis: int, *, temperature: Number = 1.0
) -> tuple[Array, Residuals]:
    """T² KL(softmax(target/T) ‖ softmax(logits/T)), (3) and (4)."""
    top_t, top_p, lse_t, shift = rows = row_sums(ops, target, logits, axis, temperature)
    t, p, delta = _sides(ops, target, logits, rows, temperature)
    near = (ops.abs(delta) < 1) & (t > 0)
    first_order = t * delta
    terms = ops.where(near, t * remainder(ops, ops.where(near, delta, 0.0)), first_order + (p - t))
    f = ops.sum(terms, axis, keepdims=True)
    # (4), where KL is small enough for η to count; F − M = e^(−η) − 1, of which g is the series.
    small = f < 0.25
    f_minus_m = ops.stop_gradient(ops.where(small, f - ops.sum(first_order, axis, keepdims=True), 0.0))
    kl = f - f_minus_m * f_minus_m * (0.5 - f_minus_m * (1 / 3 - f_minus_m * 0.25))
    kl = ops.where(kl < 0, 0.0, kl)
    return ops.squeeze(temperature * temperature * kl, axis), (top_t, top_p, lse_t, shift + ops.log1p(f_minus_m))


def kl_of_logits_gradients(
    ops: Ops,
    target: Array,
    logits: Array,
    axis: int,
    residuals: Residuals,
    needs_input_grad: tuple[bool, bool],
    *,
    temperature: Number = 1.0,
) -> Gradients:
    """(5)"""
    t, p, delta = _sides(ops, target, logits, residuals, temperature)
    of_target = of_logits = None
    if needs_input_grad[0]:
        first_order = t * (delta - at_most(ops, t, delta, axis))
        gradient = first_order - t * ops.sum(first_order, axis, keepdims=True)
        of_target = summing_to_zero(ops, temperature * gradient, t, axis)
    if needs_input_grad[1]:
        near = (ops.abs(delta) < 1) & (t > 0)
        of_logits = ops.where(near, t * ops.expm1(-ops.where(near, delta, 0.0)), p - t)
        of_logits = summing_to_zero(ops, temperature * of_logits, t, axis)
    return of_target, of_logits


def _scaled(x: Array, temperature: Number) -> Array:
    return x if is_number(temperature, 1) else x / temperature


def _log_sum_exp(ops: Ops, x: Array, axis: int, temperature: Number) -> tuple[Array, Array]:
    """The maximum, and log Σ exp((x − maximum) / T)."""
    top = ops.stop_gradient(ops.max(x, axis))
    return top, ops.log(ops.sum(ops.exp(_scaled(x - top, temperature)), axis, keepdims=True))


def row_sums(ops: Ops, target: Array, logits: Array, axis: int, temperature: Number) -> tuple[Array, ...]:
    """The two maxima, log Σ exp of the target, and log Σ exp of the logits minus that."""
    top_t, lse_t = _log_sum_exp(ops, target, axis, temperature)
    top_p, lse_p = _log_sum_exp(ops, logits, axis, temperature)
    return top_t, top_p, lse_t, lse_p - lse_t


def _sides(
    ops: Ops, target: Array, logits: Array, rows: Sequence[Array], temperature: Number
) -> tuple[Array, Array, Array]:
    """As `both_sides`; δ̂ is 0 where t = 0."""
    t, p, delta = both_sides(ops, target, logits, rows, temperature)
    return t, p, ops.where(t == 0, 0.0, delta)


def both_sides(
    ops: Ops, target: Array, logits: Array, rows: Sequence[Array], temperature: Number
) -> tuple[Array, Array, Array]:
    """t, p and δ̂ (3), which is 0 where t = p = 0. `rows`: of `row_sums`."""
    top_t, top_p, lse_t, shift = rows
    below_t, below_p, across, across_tops = target - top_t, logits - top_p, target - logits, top_t - top_p
    across_is_smaller = ops.abs(across) + ops.abs(across_tops) < ops.abs(below_t) + ops.abs(below_p)
    delta = _scaled(ops.where(across_is_smaller, across - across_tops, below_t - below_p), temperature) + shift
    # The argument differs from that in _log_sum_exp, or XLA would store e^below for both.
    t = ops.exp(_scaled(below_t, temperature) - lse_t)
    p = ops.exp(_scaled(below_p, temperature) - (lse_t + shift))
    return t, p, ops.where((t == 0) & (p == 0), 0.0, delta)


def at_most(ops: Ops, share: Array, x: Array, axis: int) -> Array:
    """x of the class with the largest share."""
    return ops.expand_dims(ops.take(x, ops.argmax(share, axis), axis), axis)


def summing_to_zero(ops: Ops, gradient: Array, share: Array, axis: int) -> Array:
    """The gradient, that of a class with most of the row as minus the sum of the others."""
    leads = share > 0.6  # and not 1/2, which rounding may give to two classes
    others = ops.sum(ops.where(leads, 0.0, gradient), axis, keepdims=True)
    return ops.where(leads, -others, gradient)


# Of probabilities.


def kl_of_probabilities(ops: Ops, target: Array, pred: Array, axis: int, *, epsilon: Number) -> tuple[Array, Residuals]:
    """Σ t·log(t/p), both sides clipped to [ε, 1] (2)."""
    t, p = clip(ops, target, epsilon, 1.0), clip(ops, pred, epsilon, 1.0)
    return relative_entropy(ops, t, p, axis), ()


def kl_of_probabilities_gradients(
    ops: Ops,
    target: Array,
    pred: Array,
    axis: int,
    residuals: Residuals,
    needs_input_grad: tuple[bool, bool],
    *,
    epsilon: Number,
) -> Gradients:
    """log(t/p) + 1 and −t/p, where not clipped."""
    t, p = clip(ops, target, epsilon, 1.0), clip(ops, pred, epsilon, 1.0)
    of_target = of_pred = None
    if needs_input_grad[0]:
        inside = (target >= epsilon) & (target <= 1) & (t != 0)
        near, delta, logs = _log_ratio(ops, t, p)
        of_target = ops.where(inside, ops.where(near, delta, logs) + 1, ops.where(t == t, 0.0, t))
    if needs_input_grad[1]:
        inside = (pred >= epsilon) & (pred <= 1) & (t != 0)
        of_pred = ops.where(inside, -t / ops.where(t == 0, 1.0, p), ops.where(p == p, 0.0, p))
    return of_target, of_pred


def relative_entropy(ops: Ops, t: Array, p: Array, axis: int) -> Array:
    """Σ t·log(t/p), accurate where t and p are nearly equal (2)."""
    near, delta, logs = _log_ratio(ops, t, p)
    terms = t * ops.where(near, remainder(ops, delta), logs)
    return ops.sum(terms, axis) - ops.sum(ops.where(near, p - t, 0.0), axis)


def _log_ratio(ops: Ops, t: Array, p: Array) -> tuple[Array, Array, Array]:
    """Where |p − t| < t/4; log(t/p) there, to full relative accuracy, else 0; log t − log p elsewhere, 0 where t = 0.

    Where t = 0 and p is NaN the logarithms are NaN.

    Two arrays, because a merged one would multiply the infinite derivative of the one by the other's 0.
    """
    near = _near(t, p, -0.25, 0.25)
    none = near | ((t == 0) & (p == p))
    logs = ops.log(ops.where(none, 1.0, t)) - ops.log(ops.where(none, 1.0, p))
    return near, -ops.log1p(ops.where(near, p - t, 0.0) / ops.where(near, t, 1.0)), logs


def _near(t: Array, p: Array, low: float, high: float) -> Array:
    """Where p − t lies between t·low and t·high."""
    return (p - t > low * t) & (p - t < high * t)


def relative_entropy_of_shares(ops: Ops, t: Array, p: Array, axis: int) -> Array:
    """KL(t/Σt ‖ p/Σp) as Σ t·log(t/p) − t + p: Σ (p − t) is 0 but for rounding, and adding it makes every term ≥ 0."""
    t, p = (x / ops.sum(x, axis, keepdims=True) for x in (t, p))
    return ops.sum(generalized_kl_terms(ops, t, p), axis)


# Element by element.


def log_ratio(ops: Ops, t: Array, p: Array) -> Array:
    """log(t/p) of t, p ≥ 0, to full relative accuracy; 0 where t = 0 or p = 0.

    The gradient is that of log t − log p, because that of log(t/p) overflows for small numbers.
    """
    none = ((t == 0) & (p >= 0)) | (p == 0)
    t, p = ops.where(none, 1.0, t), ops.where(none, 1.0, p)
    logs = ops.log(t) - ops.log(p)
    t, p, rough = ops.stop_gradient(t), ops.stop_gradient(p), ops.stop_gradient(logs)
    near = _near(t, p, -0.5, 1.0)
    of_near = -ops.log1p(ops.where(near, p - t, 0.0) / ops.where(near, t, 1.0))
    ratio = t / p
    in_float_range = (ratio > 1e-30) & (ratio < 1e30)  # of float32
    exact = ops.where(near, of_near, ops.log(ops.where(in_float_range, ratio, 1.0)))
    return logs + ops.where(near | in_float_range, exact - rough, 0.0)


def relative_entropy_terms(ops: Ops, t: Array, p: Array) -> Array:
    """t·log(t/p); 0 where t = 0, +∞ where p = 0 < t, or one is negative."""
    return _unless_impossible(ops, t, p, t * log_ratio(ops, t, p))


def generalized_kl_terms(ops: Ops, t: Array, p: Array) -> Array:
    """t·log(t/p) − t + p without cancellation; p where t = 0, +∞ as in relative_entropy_terms."""
    return _unless_impossible(ops, t, p, convex_terms(ops, t, p, log_ratio(ops, t, p)))


def convex_terms(ops: Ops, t: Array | float, p: Array, delta: Array) -> Array:
    """t·δ − t + p = t·f(δ) of δ = log(t/p), without cancellation (1). Where t = 0, δ may be any finite number."""
    near = (ops.abs(delta) < 1) & (t > 0)
    return ops.where(near, t * remainder(ops, ops.where(near, delta, 0.0)), t * delta + (p - t))


def _unless_impossible(ops: Ops, t: Array, p: Array, terms: Array) -> Array:
    impossible = (t < 0) | (p < 0) | ((t > 0) & (p == 0))
    return infinite_where(ops, impossible & (t == t) & (p == p), terms)


# Of log-probabilities, not renormalised.


def kl_terms(ops: Ops, target: Array, log_p: Array, axis: int | None = None, *, log_target: bool) -> Array:
    """t·(log t − log p), class by class; `target` is t or log t. 0 where t = 0.

    The logarithms cancel where t and p are nearly equal, so that the caller should pass a wider dtype.
    """
    none = target == (-math.inf if log_target else 0)
    t = ops.exp(target) if log_target else target
    log_t = ops.where(none, 0.0, target) if log_target else ops.log(ops.where(none, 1.0, target))
    return ops.where(none, 0.0, t * (log_t - ops.where(none, 0.0, log_p)))


def generalized_kl_from_logs(ops: Ops, t: Array, log_p: Array, axis: int) -> Array:
    """Σ t·(log t − log p) − t + p."""
    none = t == 0
    delta = ops.where(none, 0.0, ops.log(ops.where(none, 1.0, t)) - ops.where(none, 0.0, log_p))
    return ops.sum(convex_terms(ops, t, ops.exp(log_p), delta), axis)


# Entropies.


def entropy(ops: Ops, p: Array, axis: int) -> Array:
    """Σ p (−log p)."""
    return cross_entropy(ops, p, p, axis)


def cross_entropy(ops: Ops, p: Array, q: Array, axis: int) -> Array:
    """Σ p (−log q)."""
    return ops.sum(p * neg_log(ops, p, q), axis)


def entropy_of_shares(ops: Ops, p: Array, axis: int) -> Array:
    """The entropy of p/Σp; −∞ where an entry is negative."""
    p = p / ops.sum(p, axis, keepdims=True)
    return -ops.sum(infinite_where(ops, p < 0, -p * neg_log(ops, p, p)), axis)


LOGITS = Rule("divergence of logits", kl_of_logits, kl_of_logits_gradients, ("temperature",))
PROBABILITIES = Rule(
    "divergence of probabilities",
    kl_of_probabilities,
    kl_of_probabilities_gradients,
    ("epsilon",),
    ("fractions", "shares"),
)
