"""What the native rows compute, in 500 bits: losses and gradients of one row, as a textbook writes them.

Shares no code with lossbridge, and is slow. Enough bits for a divergence of 1e-30 between logits that lead by 40.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import mpmath

mp = mpmath.MPContext()
mp.prec = 500
Number = Any
Row = list[Number]


class Truth(NamedTuple):
    """A loss, its gradients, and what besides their own size the errors of their entries may be relative to."""

    loss: Number
    of_pred: Row
    scale: Row
    of_target: Row | None = None
    scale_of_target: Row | None = None


def number(x: Any) -> Number:
    return mp.mpf(float(x))


def product(a: Number, b: Number) -> Number:
    """0·∞ = 0."""
    return mp.mpf(0) if a == 0 or b == 0 else a * b


def dot(a: Row, b: Row) -> Number:
    return mp.fsum(product(x, y) for x, y in zip(a, b, strict=True))


def log_softmax(z: Row) -> tuple[Row, Row]:
    """p, and −log p."""
    top = max(z)
    e = [mp.exp(x - top) for x in z]
    total = mp.fsum(e)
    return [x / total for x in e], [mp.log(total) + top - x for x in z]


def softmax(z: Row, weights: Row, per_target: Row) -> Truth:
    """Cross-entropy of logits and the weights of the classes; `per_target`: what a weight is, per target."""
    p, cost = log_softmax(z)
    total = mp.fsum(weights)
    free = [w == 0 and c == mp.inf for w, c in zip(weights, cost, strict=True)]
    of_target = [mp.mpf(0) if none else k * c for none, k, c in zip(free, per_target, cost, strict=True)]
    return Truth(
        dot(weights, cost), [q * total - w for q, w in zip(p, weights, strict=True)], weights, of_target, of_target
    )


def modulated(cost: Number, p: Number, q: Number, gamma: float) -> tuple[Number, Number]:
    """q^γ·cost, and its derivative by the cost."""
    if gamma == 0:
        return cost, mp.mpf(1)
    if q == 0:
        return mp.mpf(0), mp.mpf(0)
    return q**gamma * cost, q**gamma + gamma * q ** (gamma - 1) * product(p, cost)


def softmax_focal(z: Row, weights: Row, gamma: float) -> Truth:
    p, cost = log_softmax(z)
    rest = [mp.fsum(p[:k] + p[k + 1 :]) for k in range(len(p))]
    both = [modulated(c, x, q, gamma) for c, x, q in zip(cost, p, rest, strict=True)]
    turns = [product(w, slope) for w, (_, slope) in zip(weights, both, strict=True)]
    gradient = [x * mp.fsum(turns) - u for x, u in zip(p, turns, strict=True)]
    return Truth(dot(weights, [value for value, _ in both]), gradient, [mp.mpf(1)] * len(p))


def probabilities(x: Row, weights: Row, bounds: tuple[Number, Number], gamma: float = 0) -> Truth:
    """Renormalised, and clipped to the bounds."""
    total = mp.fsum(x)
    low, high = bounds
    loss, turns = mp.mpf(0), []
    for w, y in zip(weights, x, strict=True):
        p = y / total
        clipped = min(max(p, low), high)
        cost = -mp.log(clipped) if clipped else mp.inf
        value, slope = modulated(cost, clipped, 1 - clipped, gamma)
        loss += product(w, value)
        turns.append(product(w, slope) if low <= p <= high else mp.mpf(0))
    gradient = [(mp.fsum(turns) - (u * total / y if u else 0)) / total for u, y in zip(turns, x, strict=True)]
    return Truth(loss, gradient, [abs(g) for g in gradient])


def log_loss(x: Row, label: int, bounds: tuple[Number, Number]) -> Truth:
    low, high = bounds
    p = min(max(x[label], low), high)
    gradient = [-1 / p if j == label and low <= y <= high else mp.mpf(0) for j, y in enumerate(x)]
    return Truth(-mp.log(p), gradient, gradient)


def outcomes(t: Number, smoothing: float, pos_weight: float) -> tuple[Number, Number]:
    keep, add = 1 - number(smoothing), number(smoothing) / 2
    return (t * keep + add) * number(pos_weight), (1 - t) * keep + add


def of_logit(x: Number) -> tuple[Number, Number, Number, Number]:
    """p, 1 − p, −log p, −log(1 − p)."""
    p, q = 1 / (1 + mp.exp(-x)), 1 / (1 + mp.exp(x))
    positive = mp.log1p(mp.exp(-x)) if x > -mp.inf else mp.inf
    negative = mp.log1p(mp.exp(x)) if x < mp.inf else mp.inf
    return p, q, positive, negative


def of_probability(x: Number, bounds: tuple[Number, Number]) -> tuple[Number, Number, Number, Number]:
    p = min(max(x, bounds[0]), bounds[1])
    return p, 1 - p, -mp.log(p) if p else mp.inf, -mp.log(1 - p) if p != 1 else mp.inf


def bernoulli(x: Number, t: Number, smoothing: float, pos_weight: float, bounds: Any = None) -> Truth:
    """Of a logit, or with bounds of a probability."""
    positive, negative = outcomes(t, smoothing, pos_weight)
    p, q, of_positive, of_negative = of_logit(x) if bounds is None else of_probability(x, bounds)
    loss = product(positive, of_positive) + product(negative, of_negative)
    of_target = (product(number(pos_weight), of_positive) - of_negative) * (1 - number(smoothing))
    if bounds is None:
        return Truth(
            loss, [negative * p - positive * q], [t * number(pos_weight)], [of_target], [of_positive + of_negative]
        )
    inside = bounds[0] <= x <= bounds[1]
    gradient = (product(negative, 1 / q) if negative else 0) - (product(positive, 1 / p) if positive else 0)
    return Truth(loss, [gradient if inside else mp.mpf(0)], [abs(gradient)], [of_target], [of_positive + of_negative])


def bernoulli_focal(x: Number, t: Number, options: dict[str, Any], bounds: Any = None) -> Truth:
    """As Keras: p is not clipped in the factor."""
    gamma, alpha = options["gamma"], number(options["per_class_number"])
    positive, negative = outcomes(t, 0, 1)
    balance = alpha * positive + (1 - alpha) * negative if options["balanced"] else mp.mpf(1)
    plain = bernoulli(x, t, 0, 1, bounds)
    loss, slope = balance * plain.loss, balance * plain.of_pred[0]
    p, q = of_logit(x)[:2] if bounds is None else (x, 1 - x)
    miss = positive * q + negative * p
    if gamma == 0:
        return Truth(loss, [slope], [mp.mpf(1)])
    if miss == 0:
        return Truth(mp.mpf(0), [mp.mpf(0)], [mp.mpf(1)])
    turn = (negative - positive) * (p * q if bounds is None else 1)
    gradient = miss**gamma * slope + gamma * miss ** (gamma - 1) * turn * loss
    return Truth(miss**gamma * loss, [gradient], [mp.mpf(1) if bounds is None else abs(gradient)])


def divergence(z: Row, x: Row, temperature: float) -> Truth:
    """T² KL(softmax(z/T) ‖ softmax(x/T))."""
    by = number(temperature)
    t, of_t = log_softmax([a / by for a in z])
    p, of_p = log_softmax([a / by for a in x])
    ratio = [b - a if weight else mp.mpf(0) for weight, a, b in zip(t, of_t, of_p, strict=True)]
    kl = dot(t, ratio)
    of_target = [by * product(a, d - kl) for a, d in zip(t, ratio, strict=True)]
    scale = [by * a for a in t]
    return Truth(by**2 * kl, [by * (b - a) for a, b in zip(t, p, strict=True)], scale, of_target, scale)


def by_logits(share: Row, by_share: Row) -> Row:
    """r_j (g_j − Σ r g) of derivatives by the shares r."""
    mean = dot(share, by_share)
    return [product(r, g - mean) for r, g in zip(share, by_share, strict=True)]


def jensen_shannon(z: Row, x: Row, beta: float, temperature: float) -> Truth:
    """T² (β KL(t ‖ m) + (1 − β) KL(p ‖ m)) / (β (1 − β)), m = β t + (1 − β) p, 0 < β < 1."""
    by, of_t = number(temperature), number(beta)
    of_p = 1 - of_t
    t, p = (log_softmax([a / by for a in side])[0] for side in (z, x))
    m = [of_t * a + of_p * b for a, b in zip(t, p, strict=True)]
    sides = []
    for share, other in ((t, of_p), (p, of_t)):
        logs = [mp.log(a / b) if a else mp.mpf(0) for a, b in zip(share, m, strict=True)]
        gradient = [by * g for g in by_logits(share, [log / other for log in logs])]
        sides.append((dot(share, logs) / other, gradient, [by * a for a in share]))
    (t_part, *of_target), (p_part, *of_pred) = sides
    return Truth(by**2 * (t_part + p_part), *of_pred, *of_target)


def total_variation(z: Row, x: Row, temperature: float) -> Truth:
    """T² ½ Σ |t − p|."""
    by = number(temperature)
    t, p = (log_softmax([a / by for a in side])[0] for side in (z, x))
    signs = [mp.sign(a - b) for a, b in zip(t, p, strict=True)]
    of_target, of_pred = ([sign * by * g / 2 for g in by_logits(r, signs)] for r, sign in ((t, 1), (p, -1)))
    loss = by**2 * mp.fsum(abs(a - b) for a, b in zip(t, p, strict=True)) / 2
    return Truth(loss, of_pred, [by * b for b in p], of_target, [by * a for a in t])


def divergence_of_probabilities(target: Row, pred: Row, epsilon: Number) -> Truth:
    def clipped(x: Row) -> Row:
        return [min(max(a, epsilon), mp.mpf(1)) for a in x]

    def inside(x: Number) -> bool:
        return epsilon <= x <= 1

    t, p = clipped(target), clipped(pred)
    logs = [mp.log(a / b) if a else mp.mpf(0) for a, b in zip(t, p, strict=True)]
    of_pred = [-a / b if inside(y) and a else mp.mpf(0) for a, b, y in zip(t, p, pred, strict=True)]
    of_target = [k + 1 if inside(y) and a else mp.mpf(0) for a, k, y in zip(t, logs, target, strict=True)]
    return Truth(dot(t, logs), of_pred, [abs(g) for g in of_pred], of_target, of_target)
