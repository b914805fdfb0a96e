"""The Bernoulli family: log losses of independent outcomes, of logits or probabilities, and focal.

Targets t; P = pos_weight·t, N = 1 − t (both smoothed). The loss is the mean along the axis, or with axis None of each
entry:

1. Of logits: P·softplus(−x) + N·softplus(x) = (P + N)·log1p(e^(−|x|)) − P·min(x, 0) + N·max(x, 0). All terms are ≥ 0.
2. gradient = N·p − P·(1 − p), with p = sigmoid(x) and 1 − p = sigmoid(−x) computed separately.
3. Of probabilities p clipped to [ε, 1 − ε]: −P·log p − N·log1p(−p), gradient = N/(1 − p) − P/p where not clipped.
4. Focal: (1 − p_t)^γ times (1) or (3), with 1 − p_t = t·(1 − p) + (1 − t)·p.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lossbridge.maths.elementary import (
    clip,
    is_infinite,
    neg_log,
    neg_log_complement,
    sigmoid,
    smooth_outcomes,
    softplus,
    zero_if_unweighted,
)
from lossbridge.maths.ops import Array, Domain, Gradients, Number, Ops, Residuals, Rule
from lossbridge.maths.softmax import modulated

Weight = Array | float | None


def log_loss(
    ops: Ops,
    target: Array,
    logits: Array,
    axis: int | None,
    *,
    label_smoothing: Number = 0.0,
    pos_weight: Weight = None,
) -> tuple[Array, Residuals]:
    """(1)"""
    positive, negative = _outcomes(ops, target, label_smoothing, pos_weight)
    return _mean(ops, _of_logits(ops, positive, negative, logits), axis), ()


def log_loss_gradients(
    ops: Ops,
    target: Array,
    logits: Array,
    axis: int | None,
    residuals: Residuals,
    needs_input_grad: tuple[bool, bool],
    *,
    label_smoothing: Number = 0.0,
    pos_weight: Weight = None,
) -> Gradients:
    """(2); for the target the difference of the terms that P and N multiply."""
    positive, negative = _outcomes(ops, target, label_smoothing, pos_weight)
    of_target = of_logits = None
    if needs_input_grad[0]:
        of_positive = zero_if_unweighted(ops, positive, softplus(ops, -logits))
        of_negative = zero_if_unweighted(ops, negative, softplus(ops, logits))
        of_target = _target_gradient(of_positive, of_negative, label_smoothing, pos_weight)
    if needs_input_grad[1]:
        p, one_minus_p = sigmoid(ops, logits)
        of_logits = negative * p - positive * one_minus_p
    return _divided(ops, (of_target, of_logits), logits, axis)


def log_loss_of_probabilities(
    ops: Ops,
    target: Array,
    pred: Array,
    axis: int | None,
    *,
    epsilon: Number,
    label_smoothing: Number = 0.0,
    pos_weight: Weight = None,
) -> tuple[Array, Residuals]:
    """(3)"""
    positive, negative = _outcomes(ops, target, label_smoothing, pos_weight)
    return _mean(ops, _of_probabilities(ops, positive, negative, pred, epsilon), axis), ()


def log_loss_of_probabilities_gradients(
    ops: Ops,
    target: Array,
    pred: Array,
    axis: int | None,
    residuals: Residuals,
    needs_input_grad: tuple[bool, bool],
    *,
    epsilon: Number,
    **options: Any,
) -> Gradients:
    """(3); `options`: label_smoothing and pos_weight."""
    positive, negative = _outcomes(ops, target, **options)
    p = clip(ops, pred, epsilon, 1 - epsilon)
    of_target = of_pred = None
    if needs_input_grad[0]:
        of_target = _target_gradient(neg_log(ops, positive, p), neg_log_complement(ops, negative, p), **options)
    if needs_input_grad[1]:
        of_pred = _quotient(ops, negative, 1 - p) - _quotient(ops, positive, p)
        inside = (pred >= epsilon) & (pred <= 1 - epsilon)
        of_pred = ops.where(inside, of_pred, ops.where(p == p, 0.0, p))
    return _divided(ops, (of_target, of_pred), pred, axis)


def focal(ops: Ops, target: Array, logits: Array, axis: int | None, **options: Any) -> tuple[Array, Residuals]:
    """(4) of logits; with class balancing times α t + (1 − α)(1 − t)."""

    def log_loss(positive: Array, negative: Array) -> Array:
        return _of_logits(ops, positive, negative, logits)

    return _mean(ops, _modulated(ops, target, sigmoid(ops, logits), log_loss, **options), axis), ()


def focal_of_probabilities(
    ops: Ops, target: Array, pred: Array, axis: int | None, *, epsilon: Number, **options: Any
) -> tuple[Array, Residuals]:
    """(4) of probabilities. As in Keras, p_t is not clipped."""

    def log_loss(positive: Array, negative: Array) -> Array:
        return _of_probabilities(ops, positive, negative, pred, epsilon)

    return _mean(ops, _modulated(ops, target, (pred, 1 - pred), log_loss, **options), axis), ()


def _modulated(
    ops: Ops,
    target: Array,
    probabilities: tuple[Array, Array],
    log_loss: Callable[[Array, Array], Array],
    *,
    gamma: Number,
    alpha: Array | float,
    apply_class_balancing: bool,
    label_smoothing: Number = 0.0,
) -> Array:
    """`probabilities`: p and 1 − p. `log_loss`: the loss of given P and N."""
    p, one_minus_p = probabilities
    positive, negative = smooth_outcomes(ops, target, label_smoothing)
    balance = positive * alpha + negative * (1 - alpha) if apply_class_balancing else 1
    loss = log_loss(balance * positive, balance * negative)
    return modulated(ops, positive * one_minus_p + negative * p, gamma, loss)


def _outcomes(ops: Ops, target: Array, label_smoothing: Number = 0.0, pos_weight: Weight = None) -> tuple[Array, Array]:
    """P and N."""
    positive, negative = smooth_outcomes(ops, target, label_smoothing)
    return positive if pos_weight is None else pos_weight * positive, negative


def _of_logits(ops: Ops, positive: Array, negative: Array, x: Array) -> Array:
    """(1). At x = 0 all three terms have their left derivative, so that they add up to (2)."""
    above = x > 0
    low, high = ops.where(above, 0.0, x), ops.where(above, x, 0.0)
    # 0·∞ = 0 by replacing the argument, because the product would also have a NaN gradient.
    low = ops.where((positive == 0) & is_infinite(low), 0.0, low)
    high = ops.where((negative == 0) & is_infinite(high), 0.0, high)
    small = ops.log1p(ops.exp(ops.where(above, -x, x)))
    return (positive + negative) * small - positive * low + negative * high


def _of_probabilities(ops: Ops, positive: Array, negative: Array, pred: Array, epsilon: Number) -> Array:
    """(3)"""
    p = clip(ops, pred, epsilon, 1 - epsilon)
    return positive * neg_log(ops, positive, p) + negative * neg_log_complement(ops, negative, p)


def _target_gradient(
    of_positive: Array, of_negative: Array, label_smoothing: Number = 0.0, pos_weight: Weight = None
) -> Array:
    if pos_weight is not None:
        of_positive = pos_weight * of_positive
    return (of_positive - of_negative) * (1 - label_smoothing)


def _quotient(ops: Ops, weight: Array, p: Array) -> Array:
    """weight / p; 0 / 0 = 0."""
    neither = (weight == 0) & (p == 0)
    return ops.where(neither, 0.0, weight / ops.where(neither, 1.0, p))


def _mean(ops: Ops, losses: Array, axis: int | None) -> Array:
    return losses if axis is None else ops.sum(losses, axis) / ops.size(losses, axis)


def _divided(ops: Ops, gradients: Gradients, pred: Array, axis: int | None) -> Gradients:
    """The gradients of a mean along the axis."""
    if axis is None:
        return gradients
    count = ops.size(pred, axis)
    of_target, of_pred = gradients
    return None if of_target is None else of_target / count, None if of_pred is None else of_pred / count


# Below this probability PyTorch's binary cross-entropy has a constant gradient.
_TINY = 1e-12


def floored_log_loss(ops: Ops, target: Array, p: Array, axis: int | None) -> tuple[Array, Residuals]:
    """The log loss with logarithms of at least −100 and derivatives of at most 1e12.

    The rule of PyTorch's BCELoss: finite everywhere, with a gradient at p = 0, where a clipped logarithm has none.
    """
    one_minus_p = 1 - p
    of_positive = _floored(ops, p, -ops.log(ops.where(p < _TINY, 1.0, p)))
    of_negative = _floored(ops, one_minus_p, -ops.log1p(-ops.where(one_minus_p < _TINY, 0.0, p)))
    return target * of_positive + (1 - target) * of_negative, ()


def _floored(ops: Ops, p: Array, neg_log_p: Array) -> Array:
    """−log p; where p < 1e-12, min(−log p, 100) with the derivative −1e12."""
    value = ops.stop_gradient(p)
    floor = -ops.log(ops.where((value > 0) & (value < _TINY), value, 1.0))
    floor = ops.where((value > 0) & (floor < 100), floor, 100.0)
    return ops.where(p < _TINY, floor + (value - p) / _TINY, neg_log_p)


_OF_LOGITS: tuple[Domain, Domain] = ("fractions", "anywhere")
_OF_PROBABILITIES: tuple[Domain, Domain] = ("fractions", "fractions")

LOGITS = Rule("Bernoulli of logits", log_loss, log_loss_gradients, ("label_smoothing", "pos_weight"), _OF_LOGITS)
PROBABILITIES = Rule(
    "Bernoulli of probabilities",
    log_loss_of_probabilities,
    log_loss_of_probabilities_gradients,
    ("epsilon", "label_smoothing", "pos_weight"),
    _OF_PROBABILITIES,
)
FOCAL = Rule(
    "focal Bernoulli of logits",
    focal,
    options=("gamma", "alpha", "apply_class_balancing", "label_smoothing"),
    domains=_OF_LOGITS,
)
FOCAL_PROBABILITIES = Rule(
    "focal Bernoulli of probabilities",
    focal_of_probabilities,
    options=("gamma", "alpha", "apply_class_balancing", "epsilon", "label_smoothing"),
    domains=_OF_PROBABILITIES,
)
FLOORED = Rule("floored Bernoulli of probabilities", floored_log_loss, domains=_OF_PROBABILITIES)
