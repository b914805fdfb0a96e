"""Per-sample losses, each formula once, over a backend's primitives.

No reduction, no weights or masks, no framework, no validation. Every function takes the backend first, works in the
dtype of its arguments (float32 or float64) and returns nats. `axis` is non-negative and holds the distribution.

Two habits keep the gradients right where the frameworks differentiate these lines by themselves:

- what enters a logarithm or a division is made harmless first (a guarded output would still have a NaN gradient);
- where two large terms would cancel, in a value or in its derivative, the line is written so that they never meet.
"""

from __future__ import annotations

import math

from lossbridge.backend import Array, Backend


def clip(b: Backend, x: Array, low: float, high: float) -> Array:
    """x in [low, high]; the gradient is 1 inside and at both bounds, 0 outside (frameworks differ at the bounds)."""
    return b.where(x < low, low, b.where(x > high, high, x))


def smooth(b: Backend, target: Array, outcomes: float | Array, label_smoothing: float) -> Array:
    """t·(1−s) + s/C."""
    return target * (1 - label_smoothing) + label_smoothing / outcomes if label_smoothing else target


def probabilities(b: Backend, pred: Array, axis: int, epsilon: float) -> Array:
    """Renormalised, then clipped to [ε, 1−ε]."""
    return clip(b, pred / b.sum(pred, axis, keepdims=True), epsilon, 1 - epsilon)


def softmax_costs(b: Backend, logits: Array, axis: int) -> Array:
    """−log softmax of every class, to full relative accuracy also where p is nearly 1.

    With d = z − max z and S = Σ exp d that is log S − d. A class that has more than half of S needs its digits, and
    those of its slope: its cost is log1p(Σ of the others / exp d). A row whose maximum is infinite, or NaN, is NaN.
    """
    d = logits - b.stop_gradient(b.max(logits, axis))
    e = b.exp(d)
    total = b.sum(e, axis, keepdims=True)
    leads = e > 0.5 * total
    leading = at(b, leads, e, axis)
    others = b.sum(b.where(leads, 0.0, e), axis, keepdims=True)
    return b.where(leads, b.log1p(others / b.where(leading == 0, 1.0, leading)), b.log(total) - d)


def softmax_cost(b: Backend, logits: Array, labels: Array, axis: int) -> Array:
    """−log softmax of one class a row, as in `softmax_costs`."""
    label = b.one_hot(labels, logits, axis)
    d = logits - b.stop_gradient(b.max(logits, axis))
    d_label = b.sum(b.where(label, d, 0.0), axis)
    e = b.exp(d_label)
    others = b.sum(b.where(label, 0.0, b.exp(d)), axis)
    leads = e > others
    return b.where(leads, b.log1p(others / b.where(leads, e, 1.0)), b.log(others + e) - d_label)


def at(b: Backend, one_hot: Array, x: Array, axis: int) -> Array:
    """x where `one_hot` is true; `axis` stays, with size 1."""
    return b.sum(b.where(one_hot, x, 0.0), axis, keepdims=True)


def softplus(b: Backend, x: Array) -> Array:
    """log(1 + exp x), to full relative accuracy on both sides, with gradient sigmoid(x) also at 0.

    −x and x take one logarithm each: at 0 their slopes then cancel exactly, also where a framework's reciprocal is off.
    """
    positive = x > 0
    return b.where(positive, x, 0.0) + b.log1p(b.exp(b.where(positive, -x, x)))


def sigmoid(b: Backend, x: Array) -> tuple[Array, Array]:
    """p and 1 − p, each to full relative accuracy."""
    positive = x > 0
    small = b.exp(b.where(positive, -x, x))
    return b.where(positive, 1.0, small) / (1 + small), b.where(positive, small, 1.0) / (1 + small)


# 0·log 0 = 0: where there is no weight, an infinite cost is none. In the argument of a logarithm, so that its slope is
# finite too; with logits in the cost itself, whose slope is finite anyway.


def log_cost(b: Backend, weight: Array | None, p: Array) -> Array:
    """−log p; where p = 0 has no weight, 0. None stands for a weight that is not 0."""
    return -b.log(p if weight is None else b.where((weight == 0) & (p == 0), 1.0, p))


def affordable(b: Backend, weight: Array | None, costs: Array) -> Array:
    """The costs; 0 in place of an infinity that has no weight."""
    return costs if weight is None else b.where((weight == 0) & (costs == math.inf), 0.0, costs)


def categorical_crossentropy(
    b: Backend,
    target: Array,
    pred: Array,
    axis: int,
    *,
    from_logits: bool,
    label_smoothing: float,
    epsilon: float,
    class_weight: Array | None,
) -> Array:
    """Σ_c w_c t_c (−log p_c)."""
    weight = smooth(b, target, b.size(pred, axis), label_smoothing)
    if class_weight is not None:
        weight = class_weight * weight
    if from_logits:
        costs = affordable(b, weight, softmax_costs(b, pred, axis))
    else:
        costs = log_cost(b, weight, probabilities(b, pred, axis, epsilon))
    return b.sum(weight * costs, axis)


def class_mass(
    b: Backend, target: Array, pred: Array, axis: int, *, label_smoothing: float, class_weight: Array
) -> Array:
    """Σ_c w_c t_c: what a sample counts for when a mean divides by the weights."""
    return b.sum(class_weight * smooth(b, target, b.size(pred, axis), label_smoothing), axis)


def sparse_categorical_crossentropy(
    b: Backend,
    labels: Array,
    pred: Array,
    axis: int,
    *,
    from_logits: bool,
    label_smoothing: float,
    epsilon: float,
    class_weight: Array | None,
) -> Array:
    """w_y (−log p_y); smoothed, (1−s) times that and s times the cross-entropy of the uniform distribution.

    A label out of range gives NaN.
    """
    index, valid = _in_range(b, labels, pred, axis)
    weight = None
    if class_weight is not None:
        weight = (1 - label_smoothing) * _label_weight(b, class_weight, index, pred, axis)
    elif label_smoothing:
        weight = 1 - label_smoothing
    if from_logits:
        cost = affordable(b, weight, softmax_cost(b, pred, index, axis))
    else:
        share = b.take(pred, index, axis) / b.sum(pred, axis)
        cost = log_cost(b, weight, clip(b, share, epsilon, 1 - epsilon))
    if weight is not None:
        cost = weight * cost
    if label_smoothing:
        uniform = categorical_crossentropy(
            b,
            1 / b.size(pred, axis),
            pred,
            axis,
            from_logits=from_logits,
            label_smoothing=0.0,
            epsilon=epsilon,
            class_weight=class_weight,
        )
        cost = cost + label_smoothing * uniform
    return b.where(valid, cost, math.nan)


def sparse_class_mass(
    b: Backend, labels: Array, pred: Array, axis: int, *, label_smoothing: float, class_weight: Array
) -> Array:
    """Σ_c w_c t_c of smoothed labels: (1−s)·w_y + s/C·Σ_c w_c."""
    index, _ = _in_range(b, labels, pred, axis)
    mass = _label_weight(b, class_weight, index, pred, axis)
    if not label_smoothing:
        return mass
    return (1 - label_smoothing) * mass + label_smoothing / b.size(pred, axis) * b.sum(class_weight)


def _in_range(b: Backend, labels: Array, pred: Array, axis: int) -> tuple[Array, Array]:
    """Labels fit to index with, and which of them were so from the start."""
    valid = (labels >= 0) & (labels < b.size(pred, axis, labels))
    return b.where(valid, labels, 0), valid


def _label_weight(b: Backend, class_weight: Array, index: Array, pred: Array, axis: int) -> Array:
    """w_y."""
    return b.take(b.broadcast_to(class_weight, pred), index, axis)


def label_log_loss(b: Backend, labels: Array, pred: Array, axis: int, *, from_logits: bool, epsilon: float) -> Array:
    """−log p_y, without renormalisation."""
    labels, valid = _in_range(b, labels, pred, axis)
    if from_logits:
        cost = softmax_cost(b, pred, labels, axis)
    else:
        cost = -b.log(clip(b, b.take(pred, labels, axis), epsilon, 1 - epsilon))
    return b.where(valid, cost, math.nan)


def negative_log_likelihood(b: Backend, labels: Array, log_p: Array, axis: int, *, class_weight: Array | None) -> Array:
    """−w_y log p_y of log-probabilities as they come."""
    index, valid = _in_range(b, labels, log_p, axis)
    cost = -b.take(log_p, index, axis)
    if class_weight is not None:
        weight = _label_weight(b, class_weight, index, log_p, axis)
        cost = weight * affordable(b, weight, cost)
    return b.where(valid, cost, math.nan)


def bernoulli_log_loss(
    b: Backend,
    target: Array,
    pred: Array,
    axis: None = None,
    *,
    from_logits: bool,
    epsilon: float,
    label_smoothing: float = 0.0,
    pos_weight: Array | None = None,
    weight: Array | None = None,
) -> Array:
    """t·(−log p)·pos_weight + (1−t)·(−log(1−p)), element by element, times `weight`."""
    positive, negative = _outcomes(b, target, label_smoothing)
    if pos_weight is not None:
        positive = pos_weight * positive
    if weight is not None:
        positive, negative = weight * positive, weight * negative
    if from_logits:
        cost_positive = affordable(b, positive, softplus(b, -pred))
        cost_negative = affordable(b, negative, softplus(b, pred))
    else:
        p = clip(b, pred, epsilon, 1 - epsilon)
        cost_positive = log_cost(b, positive, p)
        cost_negative = -b.log1p(-b.where((negative == 0) & (p == 1), 0.0, p))
    return positive * cost_positive + negative * cost_negative


def _outcomes(b: Backend, target: Array, label_smoothing: float) -> tuple[Array, Array]:
    """t and 1 − t, each smoothed by itself: the difference from 1 would have lost digits of the smaller."""
    return smooth(b, target, 2, label_smoothing), smooth(b, 1 - target, 2, label_smoothing)


# Where a probability is less than this, PyTorch's binary cross-entropy stops its gradient from growing.
_TINY = 1e-12


def floored_log_loss(b: Backend, target: Array, p: Array, axis: None = None) -> Array:
    """The Bernoulli log loss with logarithms of at least −100 and slopes of at most 1e12. NaN outside [0, 1].

    The rule of PyTorch's BCELoss: finite everywhere, and at p = 0 not flat, as a clipped logarithm would be.
    """
    rest = 1 - p
    cost_positive = _floored(b, p, -b.log(b.where(p < _TINY, 1.0, p)))
    cost_negative = _floored(b, rest, -b.log1p(-b.where(rest < _TINY, 0.0, p)))
    cost = target * cost_positive + (1 - target) * cost_negative
    return b.where((p < 0) | (p > 1), math.nan, cost)


def _floored(b: Backend, p: Array, cost: Array) -> Array:
    """`cost`, and where p < 1e-12 min(−log p, 100), whose slope shall be −1e12."""
    value = b.stop_gradient(p)
    floor = -b.log(b.where((value > 0) & (value < _TINY), value, 1.0))
    floor = b.where((value > 0) & (floor < 100), floor, 100.0)
    return b.where(p < _TINY, floor + (value - p) / _TINY, cost)


def binary_crossentropy(
    b: Backend,
    target: Array,
    pred: Array,
    axis: int,
    *,
    from_logits: bool,
    label_smoothing: float,
    epsilon: float,
    pos_weight: Array | None,
) -> Array:
    """Mean over `axis` of the Bernoulli log losses."""
    costs = bernoulli_log_loss(
        b,
        target,
        pred,
        from_logits=from_logits,
        epsilon=epsilon,
        label_smoothing=label_smoothing,
        pos_weight=pos_weight,
    )
    return _mean(b, costs, axis)


def _mean(b: Backend, x: Array, axis: int) -> Array:
    return b.sum(x, axis) / b.size(x, axis)


def costs_and_rest(b: Backend, weight: Array, pred: Array, axis: int, *, epsilon: float) -> tuple[Array, Array]:
    """−log p of every class, and 1 − p, of shares, with all digits also where p is nearly 1: from the others' sum.

    A plain quotient near 1 has lost the digits of 1 − p, which a focal loss squares.
    """
    top = b.one_hot(b.argmax(pred, axis), pred, axis)
    others = b.sum(b.where(top, 0.0, pred), axis, keepdims=True)
    total = b.sum(pred, axis, keepdims=True)
    share = pred / total
    confident = top & (share > 0.5) & (share < 1 - epsilon)
    odds = b.where(confident, others, 0.0) / b.where(confident, pred, 1.0)
    p = clip(b, share, epsilon, 1 - epsilon)
    costs = b.where(confident, b.log1p(odds), log_cost(b, weight, p))
    return costs, b.where(confident, others / total, 1 - p)


def rest_of(b: Backend, costs: Array) -> Array:
    """1 − p, of −log p, to full relative accuracy, and so its slope p: frameworks take that of expm1 for expm1 + 1."""
    cheap = costs < 0.5
    return b.where(cheap, -b.expm1(-b.where(cheap, costs, 0.0)), 1 - b.exp(-costs))


def modulated(b: Backend, rest: Array, gamma: float, costs: Array) -> Array:
    """(1−p)^γ · cost, where rest = 1 − p. No rest means no cost and no gradient, also where γ < 1."""
    if gamma == 0:
        return costs
    none_left = rest == 0
    return b.where(none_left, 0.0, b.power(b.where(none_left, 1.0, rest), gamma) * costs)


def categorical_focal_crossentropy(
    b: Backend,
    target: Array,
    pred: Array,
    axis: int,
    *,
    alpha: Array,
    gamma: float,
    from_logits: bool,
    label_smoothing: float,
    epsilon: float,
) -> Array:
    """Σ_c α t_c (1−p_c)^γ (−log p_c)."""
    weight = alpha * smooth(b, target, b.size(pred, axis), label_smoothing)
    if from_logits:
        costs = affordable(b, weight, softmax_costs(b, pred, axis))
        rest = rest_of(b, costs)
    else:
        costs, rest = costs_and_rest(b, weight, pred, axis, epsilon=epsilon)
    return b.sum(weight * modulated(b, rest, gamma, costs), axis)


def binary_focal_crossentropy(
    b: Backend,
    target: Array,
    pred: Array,
    axis: int,
    *,
    apply_class_balancing: bool,
    alpha: float,
    gamma: float,
    from_logits: bool,
    label_smoothing: float,
    epsilon: float,
) -> Array:
    """Mean over `axis` of the focal losses of Bernoulli trials."""
    costs = bernoulli_focal_loss(
        b,
        target,
        pred,
        alpha=alpha if apply_class_balancing else None,
        gamma=gamma,
        from_logits=from_logits,
        label_smoothing=label_smoothing,
        epsilon=epsilon,
    )
    return _mean(b, costs, axis)


def bernoulli_focal_loss(
    b: Backend,
    target: Array,
    pred: Array,
    *,
    alpha: float | None,
    gamma: float,
    from_logits: bool,
    epsilon: float,
    label_smoothing: float = 0.0,
) -> Array:
    """(1−p_t)^γ times the Bernoulli log loss, p_t being the probability given to the truth; with α, balanced by it.

    As in Keras, p_t is not clipped.
    """
    positive, negative = _outcomes(b, target, label_smoothing)
    costs = bernoulli_log_loss(
        b,
        target,
        pred,
        from_logits=from_logits,
        epsilon=epsilon,
        label_smoothing=label_smoothing,
        weight=None if alpha is None else positive * alpha + negative * (1 - alpha),
    )
    p, rest_of_p = sigmoid(b, pred) if from_logits else (pred, 1 - pred)
    return modulated(b, positive * rest_of_p + negative * p, gamma, costs)


def poly_crossentropy(b: Backend, target: Array, logits: Array, axis: int, *, coefficient: float) -> Array:
    """Σ_c t_c (−log p_c + ε (1 − p_c)), ε being the coefficient.

    As (−log p − (1 − p)) + (1 + ε) (1 − p), whose first part is one remainder: for ε = −1 it is all that is left.
    """
    costs = affordable(b, target, softmax_costs(b, logits, axis))
    rest = rest_of(b, costs)
    return b.sum(target * (convex_terms(b, 1.0, 1 - rest, costs) + (1 + coefficient) * rest), axis)


def entropy(b: Backend, p: Array, axis: int) -> Array:
    """Σ p (−log p)."""
    return cross_entropy(b, p, p, axis)


def entropy_of_shares(b: Backend, p: Array, axis: int) -> Array:
    """The entropy of p/Σp; −∞ where a share is negative."""
    p = p / b.sum(p, axis, keepdims=True)
    return b.sum(b.where(p < 0, -math.inf, p * log_cost(b, p, p)), axis)


def cross_entropy(b: Backend, p: Array, q: Array, axis: int) -> Array:
    """Σ p (−log q)."""
    return b.sum(p * log_cost(b, p, q), axis)


def relative_entropy(b: Backend, t: Array, p: Array, axis: int) -> Array:
    """Σ t·log(t/p), with all its digits where t and p are nearly equal.

    There t·log(t/p) = t·(δ + exp(−δ) − 1) + (t − p), with δ = log(t/p): the second-order part, which is what remains of
    the sum, apart from the first-order part, whose differences are exact and nearly sum to zero.
    """
    near, difference, delta = _near_log_ratio(b, t, p, -0.25, 0.25)
    counts_nothing = near | (t == 0)
    log_t = b.log(b.where(counts_nothing, 1.0, t))
    log_p = b.log(b.where(counts_nothing, 1.0, p))
    terms = t * b.where(near, _delta_plus_expm1(b, delta), log_t - log_p)
    return b.sum(terms, axis) - b.sum(b.where(near, difference, 0.0), axis)


def _near_log_ratio(b: Backend, t: Array, p: Array, low: float, high: float) -> tuple[Array, Array, Array]:
    """Where p − t lies between t·low and t·high; p − t; and there log(t/p) with all its digits, elsewhere 0."""
    difference = p - t
    near = (difference > low * t) & (difference < high * t)
    return near, difference, -b.log1p(b.where(near, difference, 0.0) / b.where(near, t, 1.0))


def log_ratio(b: Backend, t: Array, p: Array) -> Array:
    """log(t/p) of t, p ≥ 0, to full relative accuracy; 0 where t = 0 or p = 0.

    The slope is that of log t − log p: of a quotient of small numbers it overflows.
    """
    none = ((t == 0) & (p >= 0)) | (p == 0)
    t, p = b.where(none, 1.0, t), b.where(none, 1.0, p)
    logs = b.log(t) - b.log(p)
    t, p, rough = b.stop_gradient(t), b.stop_gradient(p), b.stop_gradient(logs)
    near, _, delta = _near_log_ratio(b, t, p, -0.5, 1.0)
    ratio = t / p
    plain = (ratio > 1e-30) & (ratio < 1e30)  # outside it may have left the range of float32
    exact = b.where(near, delta, b.log(b.where(plain, ratio, 1.0)))
    return logs + b.where(near | plain, exact - rough, 0.0)


def relative_entropy_terms(b: Backend, t: Array, p: Array) -> Array:
    """t·log(t/p), element by element; 0 where t = 0, +∞ where p = 0 < t, or one is negative."""
    return _unless_impossible(b, t, p, t * log_ratio(b, t, p))


def generalized_kl_terms(b: Backend, t: Array, p: Array) -> Array:
    """t·log(t/p) − t + p, element by element, with all its digits; p where t = 0, +∞ as in relative_entropy_terms."""
    return _unless_impossible(b, t, p, convex_terms(b, t, p, log_ratio(b, t, p)))


def _unless_impossible(b: Backend, t: Array, p: Array, terms: Array) -> Array:
    impossible = (t < 0) | (p < 0) | ((t > 0) & (p == 0))
    return b.where(impossible & (t == t) & (p == p), math.inf, terms)


def relative_entropy_of_shares(b: Backend, t: Array, p: Array, axis: int) -> Array:
    """KL(t/Σt ‖ p/Σp). The terms' first-order parts sum to zero, and are left out: they are rounding alone."""
    t, p = (x / b.sum(x, axis, keepdims=True) for x in (t, p))
    return b.sum(generalized_kl_terms(b, t, p), axis)


def convex_terms(b: Backend, t: Array | float, p: Array, delta: Array) -> Array:
    """t·δ − t + p = t·(δ + exp(−δ) − 1), of δ = log(t/p), without cancellation. Where t = 0, any finite δ will do.

    f(δ) = δ + exp(−δ) − 1 is 2·f(δ/2) + (exp(−δ/2) − 1)², and so is f(δ/2): sums of positive terms.
    """
    near = (b.abs(delta) < 1) & (t > 0)
    quarter = 0.25 * b.where(near, delta, 0.0)
    fall = b.expm1(-quarter)
    fall_of_half = fall * (2 + fall)
    remainder = 4 * _delta_plus_expm1(b, quarter) + 2 * fall * fall + fall_of_half * fall_of_half
    return b.where(near, t * remainder, t * delta + (p - t))


def generalized_kl_from_logs(b: Backend, t: Array, log_p: Array, axis: int) -> Array:
    """Σ t·(log t − log p) − t + p, of log-probabilities as they come."""
    none = t == 0
    delta = b.where(none, 0.0, b.log(b.where(none, 1.0, t)) - b.where(none, 0.0, log_p))
    return b.sum(convex_terms(b, t, b.exp(log_p), delta), axis)


def kl_terms(b: Backend, target: Array, log_p: Array, axis: None = None, *, log_target: bool) -> Array:
    """t·(log t − log p), class by class, of log-probabilities as they come; `target` is t or log t. 0 where t = 0.

    The logarithms nearly cancel where t and p are nearly equal; the caller's dtype has to have digits to spare.
    """
    none = target == (-math.inf if log_target else 0)
    t = b.exp(target) if log_target else target
    log_t = b.where(none, 0.0, target) if log_target else b.log(b.where(none, 1.0, target))
    return b.where(none, 0.0, t * (log_t - b.where(none, 0.0, log_p)))


def kl_divergence(b: Backend, target: Array, pred: Array, axis: int, *, from_logits: bool, epsilon: float) -> Array:
    """Σ t·log(t/p), both sides clipped to [ε, 1]; from logits exact."""
    if from_logits:
        return kl_from_logits(b, target, pred, axis)
    return relative_entropy(b, clip(b, target, epsilon, 1.0), clip(b, pred, epsilon, 1.0), axis)


def kl_from_logits(b: Backend, target: Array, pred: Array, axis: int, *, temperature: float = 1.0) -> Array:
    """KL(softmax(target/T) ‖ softmax(pred/T)) = Σ (t·δ + p − t) with δ = log t − log p; every term is ≥ 0.

    Where the two sides are nearly equal, δ comes from the differences of the logits, which are exact there, and the
    term is t·(δ + exp(−δ) − 1) as one remainder: neither cancels.
    """
    # Classes without probability on both sides (masked by −∞) take no part.
    neither = (target == -math.inf) & (pred == -math.inf)
    costs_t = softmax_costs(b, target / temperature if temperature != 1 else target, axis)
    costs_p = softmax_costs(b, pred / temperature if temperature != 1 else pred, axis)
    t, p = b.exp(-costs_t), b.exp(-costs_p)

    # e: what the logits differ by, less what they differ by at k, the target's largest; zero where both are −∞. Either
    # order of the subtractions is right, the one through smaller numbers is the more exact.
    top = b.one_hot(b.argmax(target, axis), target, axis)
    z_t, z_p = b.where(neither, 0.0, target), b.where(neither, 0.0, pred)
    across, down_t, down_p = z_t - z_p, z_t - at(b, top, z_t, axis), z_p - at(b, top, z_p, axis)
    across_top = at(b, top, across, axis)
    across_is_smaller = b.abs(across) + b.abs(across_top) < b.abs(down_t) + b.abs(down_p)
    e = b.where(neither, 0.0, b.where(across_is_smaller, across - across_top, down_t - down_p) / temperature)

    # δ_j = e_j + log Σ_i t_i exp(−e_i). Where e is large, t·exp(−e) is found from p without overflow.
    close = b.abs(e) < 0.25
    e_close = b.where(close, e, 0.0)
    log_far = at(b, top, costs_p - costs_t, axis) - costs_p
    far = b.exp(b.where(close | neither | (log_far > 1), 1.0, log_far))
    sum_minus_one = b.sum(b.where(close, t * b.expm1(-e_close), far - t), axis, keepdims=True)
    row_is_close = b.abs(sum_minus_one) < 0.5
    delta_close = e_close + b.log1p(b.where(row_is_close, sum_minus_one, 0.0))
    near = close & row_is_close & (b.abs(delta_close) < 0.25)

    far_delta = b.where(near | (t == 0), 0.0, costs_p - costs_t)
    near_terms = t * _delta_plus_expm1(b, b.where(near, delta_close, 0.0))
    return b.sum(b.where(near, near_terms, t * far_delta + (p - t)), axis)


def distillation_loss(b: Backend, target: Array, pred: Array, axis: int, *, temperature: float) -> Array:
    """T² · KL(softmax(target/T) ‖ softmax(pred/T))."""
    return temperature**2 * kl_from_logits(b, target, pred, axis, temperature=temperature)


# Gauss-Jacobi quadrature of five points for the weight 1 − s on [0, 1]: (s, weight).
_QUADRATURE = (
    (0.0398098570514687423, 0.0967815902266516793),
    (0.198013417873608173, 0.167174638094369565),
    (0.437974810247386144, 0.146386987084669809),
    (0.695464273353636095, 0.0739088700726166704),
    (0.901464914201173574, 0.0157479145216922762),
)


def _delta_plus_expm1(b: Backend, delta: Array) -> Array:
    """δ + exp(−δ) − 1 for |δ| < 0.3, to full relative accuracy: the remainder δ² ∫₀¹ (1 − s) exp(−s δ) ds.

    All terms are positive, and five points leave less than the rounding of float64. (As a power series torch.compile
    needs minutes for its derivative: each of the nested terms is expanded anew.)
    """
    integral = sum(weight * b.exp(-s * delta) for s, weight in _QUADRATURE)
    return delta * delta * integral
