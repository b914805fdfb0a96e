"""What the formulas share: clipping, smoothing, and logarithms of numbers that may be 0. No loss.

A framework may differentiate these lines automatically. So

- the argument of a logarithm or a division is guarded, because a guarded result would still have a NaN gradient;
- no two large terms are subtracted, neither in a value nor in its derivative, because that would cancel.
"""

from __future__ import annotations

from collections.abc import Callable

from lossbridge.maths.ops import Array, Domain, Number, Ops


def is_number(option: Array | float, number: float) -> bool:
    """Whether an option is this number, and no array, which may hold any."""
    return isinstance(option, int | float) and option == number


def clip(ops: Ops, x: Array, low: Number, high: Number) -> Array:
    """x in [low, high]; the gradient is 1 inside and at both bounds, 0 outside (frameworks differ at the bounds)."""
    return ops.where(x < low, low, ops.where(x > high, high, x))


def smooth(ops: Ops, target: Array, outcomes: float | Array, label_smoothing: Number) -> Array:
    """t·(1−s) + s/C."""
    if is_number(label_smoothing, 0):
        return target
    return target * (1 - label_smoothing) + label_smoothing / outcomes


def smooth_outcomes(ops: Ops, target: Array, label_smoothing: Number) -> tuple[Array, Array]:
    """t·(1−s) + s/2 and (1−t)·(1−s) + s/2. The latter is not computed as 1 − the former, which would lose digits."""
    return smooth(ops, target, 2, label_smoothing), smooth(ops, 1 - target, 2, label_smoothing)


def softplus(ops: Ops, x: Array) -> Array:
    """log(1 + e^x), to full relative accuracy for either sign of x, with the gradient sigmoid(x), at 0 too."""
    positive = x > 0
    return ops.where(positive, x, 0.0) + ops.log1p(ops.exp(ops.where(positive, -x, x)))


def sigmoid(ops: Ops, x: Array) -> tuple[Array, Array]:
    """p and 1 − p, each to full relative accuracy."""
    positive = x > 0
    small = ops.exp(ops.where(positive, -x, x))
    return ops.where(positive, 1.0, small) / (1 + small), ops.where(positive, small, 1.0) / (1 + small)


def in_range(ops: Ops, labels: Array, pred: Array, axis: int) -> tuple[Array, Array]:
    """Labels, with 0 in place of those out of range; and which are in range."""
    valid = (labels >= 0) & (labels < ops.size(pred, axis, labels))
    return ops.where(valid, labels, 0), valid


# 0·log 0 = 0: an infinite −log p of weight 0 does not count. For probabilities the argument of the logarithm is
# replaced, so that the gradient is finite too; for logits the loss is replaced, because its gradient is finite.


def neg_log(ops: Ops, weight: Array | float | None, p: Array) -> Array:
    """−log p; 0 where both p and the weight are 0. None: no weight is 0."""
    return -ops.log(_replaced(ops, weight, lambda p: p == 0, p, 1.0))


def neg_log_complement(ops: Ops, weight: Array, p: Array) -> Array:
    """−log(1 − p); 0 where both 1 − p and the weight are 0."""
    return -ops.log1p(-ops.where((weight == 0) & (p == 1), 0.0, p))


def zero_if_unweighted(ops: Ops, weight: Array | float | None, loss: Array) -> Array:
    """The loss; 0 in place of an infinity whose weight is 0."""
    return _replaced(ops, weight, is_infinite, loss, 0.0)


def _replaced(
    ops: Ops, weight: Array | float | None, is_bad: Callable[[Array], Array], x: Array, value: float
) -> Array:
    """x, with the value in place of what is bad and has the weight 0."""
    if weight is None:
        return x
    if isinstance(weight, int | float):  # its comparison is a bool, for which torch.jit.trace has no &
        return x if weight else ops.where(is_bad(x), value, x)
    return ops.where((weight == 0) & is_bad(x), value, x)


# Debuggers such as TensorFlow's check_numerics stop at any NaN or infinity, a constant of the graph too. So none is
# written down: each is computed where it is due.


def is_infinite(x: Array) -> Array:
    return (0.5 * x == x) & (x != 0)


def nan_unless(ops: Ops, valid: Array, x: Array) -> Array:
    """`x`; NaN, with the gradient 0, where not valid."""
    return ops.where(valid, x, 0.0) + _nan_where_not(ops, valid, x)


def _nan_where_not(ops: Ops, valid: Array, like: Array) -> Array:
    """log(−1) where not valid, else log 1 = 0."""
    return ops.log(2 * ops.cast(valid, ops.dtype(like)) - 1)


def infinite_where(ops: Ops, condition: Array, x: Array) -> Array:
    """`x`; ∞, with the gradient 0, where the condition holds."""
    return ops.where(condition, 0.0, x) - ops.log(1 - ops.cast(condition, ops.dtype(x)))


# Domains.


def rounding(dtype: str) -> float:
    """What rounding may add to 1, or leave of 0: four units in the last place of 1 in float16 and bfloat16.

    In other dtypes, what the steps of finite differences may as well: jax.test_util.check_grads takes 1e-4.
    """
    return {"float16": 2.0**-8, "bfloat16": 2.0**-5}.get(dtype, 2.0**-12)


def in_domain(ops: Ops, x: Array, domain: Domain, axis: int | None, slack: float) -> Array:
    """`x`; NaN where it lies outside by more than `slack`, and in rows of shares that are all 0."""
    if domain == "anywhere":
        return x
    value = ops.stop_gradient(x)
    inside = value > -slack
    if domain == "fractions":
        inside = inside & (value < 1 + slack)
    elif axis is not None:
        inside = inside & (ops.sum(value, axis, keepdims=True) != 0)
    return x + _nan_where_not(ops, inside, x)
