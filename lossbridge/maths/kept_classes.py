"""A teacher's k kept classes beside all logits of a student: each side as logits of these, and of the others together.

1. The bucket of the others: the student has log Σ_{j kept by nobody} e^(z_j), and the teacher log(1 − Σ t). With the
   largest t = e^a, 1 − Σ t = −(e^a − 1) − Σ of the other t, which does not cancel where a class is nearly certain.
2. The softmax of the k + 1 logits of a side is its distribution over them. So a divergence of logits is exact.
"""

from __future__ import annotations

from lossbridge.maths.elementary import infinite_where, nan_unless
from lossbridge.maths.ops import Array, Ops


def of_student(ops: Ops, logits: Array, indices: Array, axis: int, *, tail: bool) -> Array:
    """The logits of these classes, and with `tail` that of the bucket (1). NaN where a class is repeated or is none."""
    in_range = (indices >= 0) & (indices < ops.size(logits, axis, indices))
    indices = ops.where(in_range, indices, 0)
    chosen = ops.among(indices, logits, axis)
    count = ops.sum(ops.cast(chosen, "int32"), axis, keepdims=True)
    different = count == ops.size(indices, axis, count)
    if tail:  # else the bucket's would have to be rounded to their size
        logits = logits - ops.stop_gradient(ops.max(logits, axis))
    found = nan_unless(ops, in_range & different, ops.gather(logits, indices, axis))
    return ops.concatenate(found, _others(ops, logits, chosen, axis), axis) if tail else found


def of_teacher(ops: Ops, log_probs: Array, axis: int, slack: float, all_kept: Array | None) -> Array:
    """The logarithms of the probabilities, and of what they leave (1). NaN where they leave less than −slack.

    all_kept: whether there are no other classes, of shape (); None where it is known that there are.
    """
    top = ops.argmax(log_probs, axis)
    left = -ops.expm1(ops.take(log_probs, top, axis)) - ops.sum_but(ops.exp(log_probs), top, axis)
    left = ops.expand_dims(left, axis)
    left = left if all_kept is None else ops.where(all_kept, 0.0, left)
    nothing = left <= 0
    log_left = -infinite_where(ops, nothing, -ops.log(ops.where(nothing, 1.0, left)))
    return ops.concatenate(log_probs, nan_unless(ops, left >= -slack, log_left), axis)


def _others(ops: Ops, logits: Array, chosen: Array, axis: int) -> Array:
    """log Σ e^z of what is not chosen; −∞ of nothing."""
    lowest = -1.7e308 if ops.dtype(logits) == "float64" else -3.4e38
    top = ops.stop_gradient(ops.max(ops.where(chosen, lowest, logits), axis))
    top = ops.where(top > lowest, top, ops.where(top == top, 0.0, top))
    total = ops.sum(ops.where(chosen, 0.0, ops.exp(ops.where(chosen, top, logits) - top)), axis, keepdims=True)
    nothing = total == 0
    return top - infinite_where(ops, nothing, -ops.log(ops.where(nothing, 1.0, total)))
