"""The softmax family: cross-entropies of logits or of probabilities, for labels or distributions, and focal losses.

Logits z; weights ω_j ≥ 0 (targets, smoothed, times class weights), Ω = Σ ω:

1. m = max z, e_j = e^(z_j − m), S = Σ e. −log p_j = log S + m − z_j, loss = Σ_j ω_j (−log p_j).
2. If S < 2, one class k has e_k = 1 > S/2, and log S would lose the digits of S − 1. With R = Σ_{j≠k} e_j its
   −log p_k = log1p(R / e_k).
3. gradient_j = p_j Ω − ω_j. For the k of (2) that would cancel; it is (Ω − ω_k) − Ω R / S, with Ω − ω_k = Σ_{j≠k} ω_j.
4. One label y, o = Σ_{j≠y} e_j: loss = log1p(o / e_y) where e_y > o, else log(o + e_y) + m − z_y.
   gradient_j = e_j / (o + e_y), gradient_y = −o / (o + e_y).
5. Probabilities x: p = clip(x / Σx, ε, 1 − ε), loss = Σ_j ω_j (−log p_j), differentiated automatically.
6. Focal, of either: loss = Σ_j α_j ω_j (1 − p_j)^γ (−log p_j), differentiated automatically.
7. Scaled and capped logits x: z = a x, or z = c tanh(a x / c); dz/dx = a, or a·4u / (1 + u)² with u = e^(−2 |a x| / c).
8. z-loss: loss + ζ lse², lse = m + log S; gradient_j + 2 ζ lse p_j.
9. Entropy: H = Σ_j p_j (−log p_j), gradient_j = p_j (E − d_j) with d_j = z_j − m and E = Σ p d: where all p are nearly
   equal, H − (−log p_j) would cancel.
10. lse = m + log S, where one class k has e_k = 1 > S/2 m + log1p(R); gradient_j = p_j.

Automatic differentiation treats m as a constant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lossbridge.maths.elementary import clip, in_range, is_number, nan_unless, neg_log, smooth, zero_if_unweighted
from lossbridge.maths.ops import Array, Gradients, Number, Ops, Residuals, Rule

# Logits and distributions.


def crossentropy(
    ops: Ops,
    target: Array,
    logits: Array,
    axis: int,
    *,
    label_smoothing: Number = 0.0,
    class_weight: Array | None = None,
) -> tuple[Array, Residuals]:
    """Σ_c w_c t_c (−log p_c), (1) and (2)."""
    weight = _target_weights(ops, target, logits, axis, label_smoothing, class_weight)
    neg_log_p, rows = neg_log_softmax(ops, logits, axis)
    loss = ops.sum(weight * zero_if_unweighted(ops, weight, neg_log_p), axis)
    return loss, (*rows, *_masses(ops, weight, logits, rows, axis))


def crossentropy_gradients(
    ops: Ops,
    target: Array,
    logits: Array,
    axis: int,
    residuals: Residuals,
    needs_input_grad: tuple[bool, bool],
    *,
    label_smoothing: Number = 0.0,
    class_weight: Array | None = None,
) -> Gradients:
    """(3)"""
    m, total, others, *masses = residuals
    weight = _target_weights(ops, target, logits, axis, label_smoothing, class_weight)
    of_target = of_logits = None
    if needs_input_grad[0]:
        log_total = ops.where(total < 2, ops.log1p(others), ops.log(total))
        of_target = zero_if_unweighted(ops, weight, (m - logits) + log_total) * (1 - label_smoothing)
        of_target = of_target if class_weight is None else class_weight * of_target
    if needs_input_grad[1]:
        of_logits = _gradient(ops, weight, logits, (m, total, others), (masses[0], masses[1]))
    return of_target, of_logits


def class_mass(
    ops: Ops, target: Array, pred: Array, axis: int, *, label_smoothing: Number = 0.0, class_weight: Array
) -> tuple[Array, Residuals]:
    """Σ_c w_c t_c: the weight of a sample in "mean_with_sample_weight"."""
    return ops.sum(_target_weights(ops, target, pred, axis, label_smoothing, class_weight), axis), ()


def neg_log_softmax(ops: Ops, logits: Array, axis: int) -> tuple[Array, Residuals]:
    """−log p of every class (1, 2); and m, S and R. NaN in rows whose maximum is infinite or NaN."""
    m = ops.stop_gradient(ops.max(logits, axis))
    d = logits - m
    e = ops.exp(d)
    top = logits == m  # if several classes share the maximum, S ≥ 2
    e_top = ops.sum(ops.where(top, e, 0.0), axis, keepdims=True)
    others = ops.sum(ops.where(top, 0.0, e), axis, keepdims=True)
    total = others + e_top
    one_leads = total < 2
    of_leading = ops.log1p(others / ops.where(one_leads, e_top, 1.0))
    return ops.where(top & one_leads, of_leading, ops.log(total) - d), (m, total, others)


def _target_weights(
    ops: Ops, target: Array, pred: Array, axis: int, label_smoothing: Number, class_weight: Array | None
) -> Array:
    """ω"""
    weight = smooth(ops, target, ops.size(pred, axis), label_smoothing)
    return weight if class_weight is None else class_weight * weight


def _masses(ops: Ops, weight: Array, logits: Array, rows: Residuals, axis: int) -> Residuals:
    """Ω, and the sum of ω over the classes below the maximum."""
    mass = ops.sum(weight, axis, keepdims=True)
    return mass, ops.sum(ops.where(logits == rows[0], 0.0, weight), axis, keepdims=True)


def _gradient(ops: Ops, weight: Array, logits: Array, rows: Residuals, masses: Residuals) -> Array:
    """(3)"""
    m, total, others = rows
    mass, mass_of_others = masses
    leading = (logits == m) & (total < 2)
    return ops.where(leading, mass_of_others - mass * (others / total), ops.exp(logits - m) * (mass / total) - weight)


# Logits and labels.


def label_crossentropy(
    ops: Ops,
    labels: Array,
    logits: Array,
    axis: int,
    *,
    label_smoothing: Number = 0.0,
    class_weight: Array | None = None,
) -> tuple[Array, Residuals]:
    """(1 − s) w_y (−log p_y) + s/C Σ_c w_c (−log p_c), (4).

    NaN for a label out of range.
    """
    index, valid = in_range(ops, labels, logits, axis)
    m = ops.stop_gradient(ops.max(logits, axis))
    d_label = ops.take(logits, index, axis) - ops.squeeze(m, axis)
    e_label = ops.exp(d_label)
    others = ops.sum_but(ops.exp(logits - m), index, axis)
    leads = e_label > others
    loss = ops.where(leads, ops.log1p(others / ops.where(leads, e_label, 1.0)), ops.log(others + e_label) - d_label)
    weight = _label_weight(ops, index, label_smoothing, class_weight)
    if weight is not None:
        loss = weight * zero_if_unweighted(ops, weight, loss)
    rows: Residuals = (m, ops.expand_dims(others + e_label, axis), ops.expand_dims(others, axis))
    if not is_number(label_smoothing, 0):
        term = _smoothing_term(ops, logits, axis, label_smoothing, class_weight)
        neg_log_p, rows = neg_log_softmax(ops, logits, axis)
        loss = loss + ops.sum(term * zero_if_unweighted(ops, term, neg_log_p), axis)
    return nan_unless(ops, valid, loss), rows


def label_crossentropy_gradients(
    ops: Ops,
    labels: Array,
    logits: Array,
    axis: int,
    residuals: Residuals,
    needs_input_grad: tuple[bool, bool],
    *,
    label_smoothing: Number = 0.0,
    class_weight: Array | None = None,
) -> Gradients:
    """(4), and with smoothing (3)."""
    m, total, others = residuals
    index, valid = in_range(ops, labels, logits, axis)
    valid = ops.expand_dims(valid, axis)
    weight = _label_weight(ops, index, label_smoothing, class_weight)
    if is_number(label_smoothing, 0):  # (4)
        scale = ops.where(valid, 1 / total, 0.0)
        scale = scale if class_weight is None else scale * ops.expand_dims(weight, axis)
        return None, ops.put(ops.exp(logits - m) * scale, index, -others * scale, axis)
    weights = _smoothing_term(ops, logits, axis, label_smoothing, class_weight)
    of_label = weight if class_weight is None else ops.expand_dims(weight, axis)
    weights = weights + of_label * ops.cast(ops.one_hot(index, logits, axis), ops.dtype(logits))
    gradient = _gradient(ops, weights, logits, residuals, _masses(ops, weights, logits, residuals, axis))
    return None, ops.where(valid, gradient, 0.0)


def label_mass(
    ops: Ops, labels: Array, pred: Array, axis: int, *, label_smoothing: Number = 0.0, class_weight: Array
) -> tuple[Array, Residuals]:
    """Σ_c w_c t_c of smoothed labels: (1−s)·w_y + s/C·Σ_c w_c."""
    index, _ = in_range(ops, labels, pred, axis)
    mass = _label_weight(ops, index, label_smoothing, class_weight)
    if is_number(label_smoothing, 0):
        return mass, ()
    return mass + label_smoothing / ops.size(pred, axis) * ops.sum(class_weight), ()


def _label_weight(ops: Ops, index: Array, label_smoothing: Number, class_weight: Array | None) -> Array | float | None:
    """(1−s)·w_y; None if it is 1."""
    if class_weight is None:
        return None if is_number(label_smoothing, 0) else 1 - label_smoothing
    weight = ops.lookup(class_weight, index)
    return weight if is_number(label_smoothing, 0) else (1 - label_smoothing) * weight


def _smoothing_term(ops: Ops, pred: Array, axis: int, label_smoothing: Number, class_weight: Array | None) -> Array:
    """s/C·w_c"""
    term = label_smoothing / ops.size(pred, axis)
    return term if class_weight is None else term * class_weight


# What has no target: labels of any class stand in its place.


def entropy(ops: Ops, labels: Array, logits: Array, axis: int) -> tuple[Array, Residuals]:
    """Σ_c p_c (−log p_c), (9)."""
    neg_log_p, rows = neg_log_softmax(ops, logits, axis)
    p = ops.exp(logits - rows[0]) / rows[1]
    return ops.sum(p * zero_if_unweighted(ops, p, neg_log_p), axis), rows


def entropy_gradients(
    ops: Ops, labels: Array, logits: Array, axis: int, residuals: Residuals, needs_input_grad: tuple[bool, bool]
) -> Gradients:
    """(9)"""
    m, total, _ = residuals
    d = logits - m
    p = ops.exp(d) / total
    d = zero_if_unweighted(ops, p, d)
    return None, p * (ops.sum(p * d, axis, keepdims=True) - d)


def log_sum_exp(ops: Ops, labels: Array, logits: Array, axis: int) -> tuple[Array, Residuals]:
    """log Σ_c e^(z_c), (10)."""
    m, total, others = neg_log_softmax(ops, logits, axis)[1]
    lse = m + ops.where(total < 2, ops.log1p(others), ops.log(total))
    return ops.squeeze(lse, axis), (m, total, others)


def log_sum_exp_gradients(
    ops: Ops, labels: Array, logits: Array, axis: int, residuals: Residuals, needs_input_grad: tuple[bool, bool]
) -> Gradients:
    """(10)"""
    m, total, _ = residuals
    return None, ops.exp(logits - m) / total


def prediction(ops: Ops, labels: Array, logits: Array, axis: int) -> tuple[Array, Residuals]:
    """The class of the largest logit, the first of several, as a float, which has every integer up to 2^24."""
    return ops.cast(ops.argmax(ops.stop_gradient(logits), axis), ops.dtype(logits)), ()


# Scaled and capped logits, and the z-loss.

# Options that mean nothing without logits, with the values for which nothing is done.
OF_LOGITS: Mapping[str, Any] = {"logit_scale": 1.0, "softcap": None, "z_loss": 0.0}


def of_scaled(rule: Rule) -> Rule:
    """The rule of logits that are scaled and capped first (7), with the z-loss (8)."""

    def value(ops: Ops, target: Array, logits: Array, axis: int, **options: Any) -> tuple[Array, Residuals]:
        z_loss = options.pop("z_loss", 0.0)
        z = scaled(ops, logits, options.pop("logit_scale", 1.0), options.pop("softcap", None))
        loss, residuals = rule.value(ops, target, z, axis, **options)
        if not is_number(z_loss, 0):
            lse = ops.squeeze(residuals[0] + ops.log(residuals[1]), axis)
            loss = loss + z_loss * (lse * lse)
        return loss, residuals

    def gradients(
        ops: Ops,
        target: Array,
        logits: Array,
        axis: int,
        residuals: Residuals,
        needs: tuple[bool, bool],
        **options: Any,
    ) -> Gradients:
        assert rule.gradients is not None
        z_loss = options.pop("z_loss", 0.0)
        scale, cap = options.pop("logit_scale", 1.0), options.pop("softcap", None)
        z = scaled(ops, logits, scale, cap)
        of_target, gradient = rule.gradients(ops, target, z, axis, residuals, needs, **options)
        if gradient is None:
            return of_target, None
        if not is_number(z_loss, 0):
            m, total = residuals[:2]
            more = ops.exp(z - m) * (2 * z_loss * (m + ops.log(total)) / total)
            if len(ops.shape(target)) < len(ops.shape(z)):
                more = ops.where(ops.expand_dims(in_range(ops, target, z, axis)[1], axis), more, 0.0)
            gradient = gradient + more
        gradient = gradient if is_number(scale, 1) else gradient * scale
        if cap is not None:
            u = ops.exp(-2 * (ops.abs(logits * scale) / cap))
            gradient = gradient * (4 * u / ((1 + u) * (1 + u)))
        return of_target, gradient

    by_rule = None if rule.gradients is None else gradients
    return rule._replace(value=value, gradients=by_rule, options=(*rule.options, *OF_LOGITS))


def scaled(ops: Ops, logits: Array, logit_scale: Number, softcap: Number | None) -> Array:
    """z of (7), differentiated to full accuracy where tanh is near ±1 too."""
    z = logits if is_number(logit_scale, 1) else logits * logit_scale
    if softcap is None:
        return z
    negative = z < 0
    size = 2 * (ops.where(negative, -z, z) / softcap)
    tanh = complement(ops, size) / (1 + ops.exp(-size))
    return ops.where(negative, -tanh, tanh) * softcap


# Probabilities, renormalised along the axis and clipped to [ε, 1 − ε].


def crossentropy_of_probabilities(
    ops: Ops,
    target: Array,
    pred: Array,
    axis: int,
    *,
    epsilon: Number,
    label_smoothing: Number = 0.0,
    class_weight: Array | None = None,
) -> tuple[Array, Residuals]:
    """Σ_c w_c t_c (−log p_c), (5)."""
    weight = _target_weights(ops, target, pred, axis, label_smoothing, class_weight)
    return ops.sum(weight * neg_log(ops, weight, _probabilities(ops, pred, axis, epsilon)), axis), ()


def label_crossentropy_of_probabilities(
    ops: Ops,
    labels: Array,
    pred: Array,
    axis: int,
    *,
    epsilon: Number,
    label_smoothing: Number = 0.0,
    class_weight: Array | None = None,
) -> tuple[Array, Residuals]:
    """(1 − s) w_y (−log p_y) + s/C Σ_c w_c (−log p_c), (5). NaN for a label out of range."""
    index, valid = in_range(ops, labels, pred, axis)
    weight = _label_weight(ops, index, label_smoothing, class_weight)
    p = ops.take(pred, index, axis) / ops.sum(pred, axis)
    loss = neg_log(ops, weight, clip(ops, p, epsilon, 1 - epsilon))
    if weight is not None:
        loss = weight * loss
    if not is_number(label_smoothing, 0):
        term = _smoothing_term(ops, pred, axis, label_smoothing, class_weight)
        loss = loss + ops.sum(term * neg_log(ops, term, _probabilities(ops, pred, axis, epsilon)), axis)
    return nan_unless(ops, valid, loss), ()


def _probabilities(ops: Ops, pred: Array, axis: int, epsilon: Number) -> Array:
    return clip(ops, pred / ops.sum(pred, axis, keepdims=True), epsilon, 1 - epsilon)


# Probabilities and log-probabilities of labels, not renormalised.


def label_log_loss(ops: Ops, labels: Array, pred: Array, axis: int, *, epsilon: Number) -> tuple[Array, Residuals]:
    """−log p_y, clipped and not renormalised; NaN for a label out of range."""
    index, valid = in_range(ops, labels, pred, axis)
    loss = -ops.log(clip(ops, ops.take(pred, index, axis), epsilon, 1 - epsilon))
    return nan_unless(ops, valid, loss), ()


def negative_log_likelihood(
    ops: Ops, labels: Array, log_p: Array, axis: int, *, class_weight: Array | None = None
) -> tuple[Array, Residuals]:
    """−w_y log p_y; NaN for a label out of range."""
    index, valid = in_range(ops, labels, log_p, axis)
    loss = -ops.take(log_p, index, axis)
    if class_weight is not None:
        weight = ops.lookup(class_weight, index)
        loss = weight * zero_if_unweighted(ops, weight, loss)
    return nan_unless(ops, valid, loss), ()


# Focal: Σ_c α t_c (1 − p_c)^γ (−log p_c).


def focal(
    ops: Ops,
    target: Array,
    logits: Array,
    axis: int,
    *,
    alpha: Array,
    gamma: Number,
    label_smoothing: Number = 0.0,
) -> tuple[Array, Residuals]:
    """(6) of logits."""
    weight = alpha * smooth(ops, target, ops.size(logits, axis), label_smoothing)
    neg_log_p, _ = neg_log_softmax(ops, logits, axis)
    loss = zero_if_unweighted(ops, weight, neg_log_p)
    return ops.sum(weight * modulated(ops, complement(ops, loss), gamma, loss), axis), ()


def focal_of_probabilities(
    ops: Ops,
    target: Array,
    pred: Array,
    axis: int,
    *,
    alpha: Array,
    gamma: Number,
    epsilon: Number,
    label_smoothing: Number = 0.0,
) -> tuple[Array, Residuals]:
    """(6) of probabilities."""
    weight = alpha * smooth(ops, target, ops.size(pred, axis), label_smoothing)
    loss, one_minus_p = _neg_log_and_complement(ops, weight, pred, axis, epsilon)
    return ops.sum(weight * modulated(ops, one_minus_p, gamma, loss), axis), ()


def of_label(dense: Callable[..., tuple[Array, Residuals]]) -> Callable[..., tuple[Array, Residuals]]:
    """A loss of distributions as one of labels, by their one-hot target. NaN for a label out of range."""

    def loss_of_label(ops: Ops, labels: Array, pred: Array, axis: int, **options: Any) -> tuple[Array, Residuals]:
        index, valid = in_range(ops, labels, pred, axis)
        target = ops.cast(ops.one_hot(index, pred, axis), ops.dtype(pred))
        loss, residuals = dense(ops, target, pred, axis, **options)
        return nan_unless(ops, valid, loss), residuals

    return loss_of_label


def modulated(ops: Ops, one_minus_p: Array, gamma: Number, loss: Array) -> Array:
    """(1 − p)^γ · loss. Loss and gradient are 0 where 1 − p = 0, for γ < 1 too."""
    if is_number(gamma, 0):
        return loss
    certain = one_minus_p == 0
    if not isinstance(gamma, int | float):
        certain = certain & (gamma > 0)
    return ops.where(certain, 0.0, ops.power(ops.where(certain, 1.0, one_minus_p), gamma) * loss)


def complement(ops: Ops, neg_log_p: Array) -> Array:
    """1 − p from −log p. It and its derivative p have full relative accuracy (frameworks derive expm1 as expm1 + 1)."""
    near_one = neg_log_p < 0.5
    return ops.where(near_one, -ops.expm1(-ops.where(near_one, neg_log_p, 0.0)), 1 - ops.exp(-neg_log_p))


def _neg_log_and_complement(ops: Ops, weight: Array, pred: Array, axis: int, epsilon: Number) -> tuple[Array, Array]:
    """−log p and 1 − p of every class; where p > 1/2, from the sum o of the other classes: log1p(o/x) and o/Σx.

    1 − p of the rounded quotient p = x/Σx would lose digits, and a focal loss raises it to γ.
    """
    top = ops.one_hot(ops.argmax(pred, axis), pred, axis)
    others = ops.sum(ops.where(top, 0.0, pred), axis, keepdims=True)
    total = ops.sum(pred, axis, keepdims=True)
    p = pred / total
    confident = top & (p > 0.5) & (p < 1 - epsilon)
    odds = ops.where(confident, others, 0.0) / ops.where(confident, pred, 1.0)
    clipped = clip(ops, p, epsilon, 1 - epsilon)
    loss = ops.where(confident, ops.log1p(odds), neg_log(ops, weight, clipped))
    return loss, ops.where(confident, others / total, 1 - clipped)


DISTRIBUTIONS = of_scaled(
    Rule(
        "softmax of distributions",
        crossentropy,
        crossentropy_gradients,
        ("label_smoothing", "class_weight"),
        ("fractions", "anywhere"),
    )
)
LABELS = of_scaled(
    Rule("softmax of labels", label_crossentropy, label_crossentropy_gradients, ("label_smoothing", "class_weight"))
)
ENTROPY = of_scaled(Rule("entropy of logits", entropy, entropy_gradients))
LOG_SUM_EXP = of_scaled(Rule("log-sum-exp of logits", log_sum_exp, log_sum_exp_gradients))
PREDICTION = of_scaled(Rule("largest logit", prediction))
PROBABILITIES = Rule(
    "probabilities of distributions",
    crossentropy_of_probabilities,
    options=("epsilon", "label_smoothing", "class_weight"),
    domains=("fractions", "shares"),
)
LABEL_PROBABILITIES = Rule(
    "probabilities of labels",
    label_crossentropy_of_probabilities,
    options=("epsilon", "label_smoothing", "class_weight"),
    domains=("anywhere", "shares"),
)
LOG_LOSS = Rule("log loss of labels", label_log_loss, options=("epsilon",), domains=("anywhere", "fractions"))
# No losses: the denominators by class weights.
LABEL_MASS = Rule("class weight of labels", label_mass, options=("label_smoothing", "class_weight"))
CLASS_MASS = Rule("class weight of distributions", class_mass, options=("label_smoothing", "class_weight"))
LOG_LIKELIHOOD = Rule("negative log-likelihood", negative_log_likelihood, options=("class_weight",))
FOCAL = Rule("focal softmax", focal, options=("alpha", "gamma", "label_smoothing"), domains=("fractions", "anywhere"))
FOCAL_PROBABILITIES = Rule(
    "focal probabilities",
    focal_of_probabilities,
    options=("alpha", "gamma", "epsilon", "label_smoothing"),
    domains=("fractions", "shares"),
)
LABEL_FOCAL = Rule("focal softmax of labels", of_label(focal), options=("alpha", "gamma"))
LABEL_FOCAL_PROBABILITIES = Rule(
    "focal probabilities of labels",
    of_label(focal_of_probabilities),
    options=("alpha", "gamma", "epsilon"),
    domains=("anywhere", "shares"),
)
