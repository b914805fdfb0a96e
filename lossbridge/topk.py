"""A call of the divergence of a teacher's kept classes: both sides become logits of k + 1 classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lossbridge import errors
from lossbridge.maths import kept_classes
from lossbridge.maths.elementary import rounding
from lossbridge.maths.ops import Array
from lossbridge.reduction import neutralise, reduce
from lossbridge.request import (
    COMMON,
    arrays_of,
    as_array,
    checked,
    common_framework,
    compute_dtype,
    dtype_of,
    held_to,
    left_by_autograph,
    with_weights,
)
from lossbridge.spec import LOSSES, Names, Request

OF = LOSSES["distillation_loss"]
NAMES = Names("log_probs", "student_logits")


@left_by_autograph
def run(indices: Any, log_probs: Any, student_logits: Any, tail: Any, **given: Any) -> Any:
    """`given`: the options of COMMON."""
    return reduce(resolve(indices, log_probs, student_logits, tail, given))


def resolve(indices: Any, log_probs: Any, student_logits: Any, tail: Any, given: Mapping[str, Any]) -> Request:
    errors.switches({"tail": tail})
    options = checked({**COMMON, **given})
    others = {"indices": indices, "log_probs": log_probs, **arrays_of(options, NAMES)}
    framework = common_framework(student_logits, "student_logits", others)
    ops = framework.ops
    student = as_array(ops, "student_logits", student_logits)
    teacher = as_array(ops, "log_probs", log_probs, student)
    places = as_array(ops, "indices", indices, student)
    shape = ops.shape(student)
    axis = errors.axis_of(ops.shape(teacher), shape, options["axis"], NAMES, at_least=1)
    errors.kept_shapes({"indices": ops.shape(places), "log_probs": ops.shape(teacher)}, shape, axis)
    errors.index_dtype(dtype_of(ops, places))
    for name, x in (("indices", places), ("log_probs", teacher)):
        held_to(ops, name, x, student, None, [i for i in range(len(shape)) if i != axis])
    dtype = compute_dtype(ops, student)
    rule, reduction = OF.rules["logits"]["logits"], options["reduction"]
    r = Request(OF, rule, framework, teacher, student, axis, dtype, {"temperature": 1.0}, reduction)
    r = with_weights(r, options, NAMES)
    slack = rounding(dtype_of(ops, teacher))
    _refuse_values(r, places, tail, slack)
    sizes = ops.shape(places)[axis], shape[axis]
    tail = bool(tail) and (None in sizes or sizes[0] != sizes[1])  # where all are kept there are no others
    with ops.quiet():
        # What is not valid gets a row without a NaN: any logits, and probabilities that are nearly 0.
        student = neutralise(ops, ops.cast(student, dtype), r.valid, axis, 0.5)
        teacher = neutralise(ops, ops.cast(teacher, dtype), r.valid, axis, -60.0)
        wide = "int64" if dtype_of(ops, places) in ("int64", "uint64") else "int32"
        places = neutralise(ops, ops.cast(places, wide), r.valid, axis, 0)
        pred = kept_classes.of_student(ops, student, places, axis, tail=tail)
        all_kept = ops.size(places, axis) == ops.size(student, axis, places) if None in sizes else None
        target = kept_classes.of_teacher(ops, teacher, axis, slack, all_kept) if tail else teacher
    return r._replace(target=target, pred=pred)


def _refuse_values(r: Request, indices: Array, tail: Any, slack: float) -> None:
    """Raises for the first row that counts and is wrong, where it can be read."""
    ops, axis = r.framework.ops, r.axis
    assert axis is not None
    valid = None if r.valid is None else ops.concrete(r.valid)
    if r.valid is not None and valid is None:
        return
    values, log_probs = ops.concrete(indices), ops.concrete(r.target)
    if values is not None:
        errors.kept_indices(values, ops.shape(r.pred)[axis] or 0, axis, valid)
    if tail and log_probs is not None:
        errors.kept_mass(log_probs, slack, axis, valid)
