"""Divergences of logits that a mixture bounds: the generalised Jensen-Shannon divergence, and the total variation.

t = softmax(z/T) of the target's logits, p = softmax(x/T), δ = log(t/p) as `lossbridge.maths.divergence` has it, with
its row-wide rounding taken out: Σ t (e^(−δ) − 1) is 0, so what is left of it is the rounding of the two log-sum-exps.

1. m = β t + (1 − β) p, JS = β KL(t ‖ m) + (1 − β) KL(p ‖ m). G = JS / (β (1 − β)) is KL(t ‖ p) at β = 0 and KL(p ‖ t)
   at β = 1.
2. G is the same with t and p exchanged and 1 − β in place of β. So b = min(β, 1 − β) ≤ 1/2, and with it q, o = p, t and
   d = δ, or q, o = t, p and d = −δ: d = log(o/q), m = q μ, μ = 1 + b (e^d − 1).
3. Class by class, with h(u) = (1 + u) log(1 + u) − u ≥ 0: G = Σ q (h(e^d − 1) − h(b (e^d − 1)) / b) / (1 − b), where
   q h(e^d − 1) = o f(d) and q h(μ − 1) = m f(log μ) with f of (1) there. For d < 1 the second is at most 0.6 of the
   first, so that nothing cancels.
4. For d ≥ 1 the two would cancel: G = Σ (o log(o/m) / (1 − b) − (o − q) ψ), ψ = log1p(w)/w and w = b (e^d − 1).
   log(o/m) = d − log1p(w), or −log(b + (1 − b) e^(−d)) where w ≥ 1.
5. ∂G/∂o = log(o/m) / (1 − b), ∂G/∂q = log(q/m) / b. By logits: T o_j (∂G/∂o_j − Σ o ∂G/∂o), and likewise of q.
6. A constant of the row may be taken from these derivatives, and that of the class k with the largest share is: classes
   whose derivatives are nearly the same would else leave rounding. Of ∂G/∂q it leaves −log1p(b y)/b, and of ∂G/∂o
   −log1p((1 − b) y)/(1 − b), with y = (e^(d_j) − e^(d_k)) / μ_k, and (e^(−d_j) − e^(−d_k)) / (b + (1 − b) e^(−d_k)).
   They are nearly the same where s = d_j − d_k is small, and y is of e^s − 1 there; and where both exponentials are
   small, because the other side nearly lacks both classes.
7. Total variation: ½ Σ |t − p|, t − p = −t (e^(−δ) − 1) near each other. By logits, with the signs s of t − p:
   ½ T t_j (s_j − Σ t s), where 1 − Σ t s is Σ t of the others twice over.
"""

from __future__ import annotations

from typing import Any

from lossbridge.maths.divergence import (
    at_most,
    both_sides,
    convex_terms,
    row_sums,
    series_of_remainder,
    summing_to_zero,
)
from lossbridge.maths.elementary import infinite_where, is_infinite
from lossbridge.maths.ops import Array, Gradients, Number, Ops, Residuals, Rule

# As log(o/q) of a class that one side lacks: e^(−1000) is 0, and 1000 times 0 is a number.
_ABSENT = 1000.0


def jensen_shannon(
    ops: Ops,
    target: Array,
    logits: Array,
    axis: int,
    *,
    beta: Number = 0.5,
    scale: str = "mixture",
    temperature: Number = 1.0,
) -> tuple[Array, Residuals]:
    """T² JS, or T² G with scale "divergence" (1)."""
    rows = _exact_rows(ops, target, logits, axis, temperature)
    b, q, o, d, infinite = _ordered(ops, beta, both_sides(ops, target, logits, rows, temperature))
    below = d < 1
    low, high = ops.where(below, d, 0.0), ops.where(below, 1.0, d)
    x, k = _below(ops, b, low)
    log_mu = b * k
    second = q * (1 + b * x) * (k * log_mu * series_of_remainder(ops, log_mu))
    of_o, psi = _above(ops, b, high)
    terms = ops.where(below, (convex_terms(ops, o, q, low) - second) / (1 - b), o * of_o / (1 - b) - (o - q) * psi)
    if scale == "divergence":
        terms = infinite_where(ops, infinite, terms)
    factor = temperature * temperature * scaling(beta, scale)
    return factor * ops.sum(terms, axis), rows


def jensen_shannon_gradients(
    ops: Ops,
    target: Array,
    logits: Array,
    axis: int,
    residuals: Residuals,
    needs_input_grad: tuple[bool, bool],
    **options: Any,
) -> Gradients:
    """(5) and (6). `options`: those of the value."""
    beta, scale, temperature = _options(**options)
    b, q, o, d, infinite = _ordered(ops, beta, both_sides(ops, target, logits, residuals, temperature))
    below = d < 1
    low, high = ops.where(below, d, 0.0), ops.where(below, 1.0, d)
    _, k = _below(ops, b, low)
    of_o, psi = _above(ops, b, high)
    by_o = ops.where(below, low - b * k, of_o) / (1 - b)
    if scale == "divergence":
        by_o = infinite_where(ops, infinite, by_o)
    factor = temperature * scaling(beta, scale)

    def of_logits(share: Array, terms: Array) -> Array:
        gradient = terms - share * ops.sum(terms, axis, keepdims=True)
        return factor * summing_to_zero(ops, gradient, share, axis)

    grown = -(o - q) * psi
    by_q = ops.where(below, -k, 0.0) + ops.where(below, 0.0, grown) / ops.where(q > 0, q, 1.0)
    leading_q, leading_o = at_most(ops, q, by_q, axis), at_most(ops, o, by_o, axis)
    near_q, near_o = _less_leading(ops, b, (q, o, d), axis)
    far_q = ops.where(below, q * (by_q - leading_q), grown - q * leading_q)
    of_q = of_logits(q, ops.where(near_q[0], q * near_q[1], far_q))
    of_o = of_logits(o, o * ops.where(near_o[0], near_o[1], by_o - leading_o))
    first, second = _chosen(ops, beta <= 0.5, (of_o, of_q), (of_q, of_o))
    return first if needs_input_grad[0] else None, second if needs_input_grad[1] else None


def total_variation(
    ops: Ops, target: Array, logits: Array, axis: int, *, temperature: Number = 1.0
) -> tuple[Array, Residuals]:
    """T² ½ Σ |t − p| (7)."""
    rows = _exact_rows(ops, target, logits, axis, temperature)
    _, _, gap = _gap(ops, target, logits, rows, temperature)
    return temperature * temperature * 0.5 * ops.sum(ops.abs(gap), axis), rows


def total_variation_gradients(
    ops: Ops,
    target: Array,
    logits: Array,
    axis: int,
    residuals: Residuals,
    needs_input_grad: tuple[bool, bool],
    *,
    temperature: Number = 1.0,
) -> Gradients:
    """(7); 0 is the derivative of |0|."""
    t, p, gap = _gap(ops, target, logits, residuals, temperature)
    more, less = gap > 0, gap < 0
    either = more | less

    def of_logits(share: Array, sign: float) -> Array:
        over = ops.sum(ops.where(more, share, 0.0), axis, keepdims=True)
        under = ops.sum(ops.where(less, share, 0.0), axis, keepdims=True)
        rest = ops.sum(ops.where(either, 0.0, share), axis, keepdims=True)
        slope = ops.where(more, 2 * under + rest, ops.where(less, -2 * over - rest, under - over))
        return (0.5 * sign) * temperature * (share * slope)

    return of_logits(t, 1.0) if needs_input_grad[0] else None, of_logits(p, -1.0) if needs_input_grad[1] else None


# The two sides.


def _exact_rows(ops: Ops, target: Array, logits: Array, axis: int, temperature: Number) -> Residuals:
    """What `both_sides` needs of the rows, such that Σ t (e^(−δ) − 1) = 0."""
    top_t, top_p, lse_t, shift = rows = row_sums(ops, target, logits, axis, temperature)
    _, _, gap = _gap(ops, target, logits, rows, temperature)
    return top_t, top_p, lse_t, shift + ops.log1p(ops.stop_gradient(-ops.sum(gap, axis, keepdims=True)))


def _gap(ops: Ops, target: Array, logits: Array, rows: Residuals, temperature: Number) -> tuple[Array, Array, Array]:
    """t, p and t − p, without cancellation."""
    t, p, delta = both_sides(ops, target, logits, rows, temperature)
    near = (ops.abs(delta) < 1) & (t > 0)
    return t, p, ops.where(near, -t * ops.expm1(-ops.where(near, delta, 0.0)), t - p)


def _ordered(ops: Ops, beta: Number, sides: tuple[Array, Array, Array]) -> tuple[Number, Array, Array, Array, Array]:
    """b, q, o and d (2), finite; and where G is infinite, because b = 0 and q lacks a class of o."""
    t, p, delta = sides
    first = beta <= 0.5
    b, q, o, d = _chosen(ops, first, (beta, p, t, delta), (1 - beta, t, p, -delta))
    absent = is_infinite(d)
    (infinite,) = _chosen(ops, b == 0, (absent & (d > 0),), (d < d,))  # else nowhere
    return b, q, o, ops.where(absent, ops.where(d > 0, _ABSENT, -_ABSENT + 0 * o), d), infinite


def _options(beta: Number = 0.5, scale: str = "mixture", temperature: Number = 1.0) -> tuple[Number, str, Number]:
    return beta, scale, temperature


def _chosen(ops: Ops, first: Any, these: tuple[Any, ...], those: tuple[Any, ...]) -> tuple[Any, ...]:
    if isinstance(first, bool):
        return these if first else those
    return tuple(ops.where(first, x, y) for x, y in zip(these, those, strict=True))


def _less_leading(
    ops: Ops, b: Number, sides: tuple[Array, Array, Array], axis: int
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """∂G/∂q less that of the largest q, and ∂G/∂o less that of the largest o (6): where (6) has it, and what."""
    q, o, d = sides
    most, found = _largest_exponent(ops, d), []
    for share, sign, part, rest in ((q, 1, b, 1 - b), (o, -1, 1 - b, b)):
        leading = at_most(ops, share, d, axis)
        mu = 1 + b * ops.expm1(ops.where(leading > most, most, leading))
        s = d - leading
        near = ops.abs(s) < 1
        step = ops.expm1(sign * ops.where(near, s, 0.0))
        of_leading = ops.exp(sign * leading)  # at most C, because the leading share is at least 1/C
        y = of_leading / mu * step if sign == 1 else step / mu
        below = sign * d < 1
        nu = rest + part * of_leading
        apart = (ops.exp(ops.where(below, sign * d, 0.0)) - of_leading) / ops.where(nu > 0, nu, 1.0)
        alike = below & (nu > 0) & (ops.abs(part * apart) < 0.6)
        y = ops.where(near, y, ops.where(alike, apart, 0.0))
        found.append((near | alike, -y * _log1p_over(ops, part * y)))
    return found[0], found[1]


def scaling(beta: Number, scale: str) -> Number:
    return 1.0 if scale == "divergence" else beta * (1 - beta)


# Logarithms of the mixture.


def _below(ops: Ops, b: Number, d: Array) -> tuple[Array, Array]:
    """e^d − 1, and log μ / b, for d < 1."""
    x = ops.expm1(d)
    return x, x * _log1p_over(ops, b * x)


def _above(ops: Ops, b: Number, d: Array) -> tuple[Array, Array]:
    """log(o/m) and ψ, for d ≥ 1 (4). Above the largest exponent, w grows by e^(the excess)."""
    most = _largest_exponent(ops, d)
    excess = ops.where(d > most, d - most, 0.0)
    w = b * ops.expm1(ops.where(d > most, most, d))
    large = w >= 1
    log_mu = ops.log1p(w)
    grown = ops.exp(-excess) * (log_mu + excess) / ops.where(large, w, 1.0)
    psi = ops.where(large, grown, _log1p_over(ops, ops.where(large, 0.0, w)))
    share = b + (1 - b) * ops.exp(-d)
    return ops.where(large, -ops.log(ops.where(large, share, 1.0)), d - log_mu), psi


def _largest_exponent(ops: Ops, d: Array) -> float:
    return 700.0 if ops.dtype(d) == "float64" else 88.0


def _log1p_over(ops: Ops, w: Array) -> Array:
    """log(1 + w) / w, and its derivative at 0 too."""
    small = ops.abs(w) < 2.0**-7
    v = ops.where(small, w, 0.0)
    series: Array = 1 / 9 + 0 * v
    for n in range(8, 0, -1):
        series = 1 / n - v * series
    large = ops.where(small, 1.0, w)
    return ops.where(small, series, ops.log1p(large) / large)


JENSEN_SHANNON = Rule(
    "Jensen-Shannon divergence of logits", jensen_shannon, jensen_shannon_gradients, ("beta", "scale", "temperature")
)
TOTAL_VARIATION = Rule("total variation of logits", total_variation, total_variation_gradients, ("temperature",))
