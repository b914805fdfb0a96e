"""A call of the distillation of two linear layers: a `Linear` whose target is the teacher's hidden states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lossbridge import errors
from lossbridge.frameworks.framework import ArrayOps
from lossbridge.frameworks.linear_blocks import Layer, Linear, with_divisor
from lossbridge.linear import computed, flat, in_rows, layer_sizes, parameter
from lossbridge.maths.ops import Array
from lossbridge.request import (
    COMMON,
    arrays_of,
    as_array,
    checked,
    common_framework,
    compute_dtype,
    divided,
    held_to,
    held_to_ranges,
    in_arrays,
    left_by_autograph,
    options_of,
    with_weights,
)
from lossbridge.spec import LOSSES, Names, Request

OF = LOSSES["divergence"]
NAMES = Names("teacher_hidden", "student_hidden")
# Of the teacher and of the student: hidden states, weight and bias.
Side = tuple[Any, Any, Any]


@left_by_autograph
def run(teacher: Side, student: Side, classes_axis: int, memory: int | None, **given: Any) -> Any:
    """`given`: options of the divergence of logits by name, and those of COMMON."""
    return computed(*resolve(teacher, student, (classes_axis, memory), {**COMMON, **OF.options, **given}))


def resolve(teacher: Side, student: Side, layout: tuple[Any, Any], given: Mapping[str, Any]) -> tuple[Linear, Array]:
    """The call, and an array of the losses' shape. `layout`: the axis of the classes, and the bytes of a block."""
    given = checked(given)
    errors.layer_options(*layout)
    classes_axis, memory = int(layout[0]), None if layout[1] is None else int(layout[1])
    named = {
        f"{side}_{part}": x
        for side, arrays in (("teacher", teacher), ("student", student))
        for part, x in zip(("hidden", "weight", "bias"), arrays, strict=True)
    }
    framework = common_framework(student[0], NAMES.pred, {**named, **arrays_of(given, NAMES)})
    ops = framework.ops
    hidden = as_array(ops, NAMES.pred, student[0])
    given_arrays = {name: x for name, x in named.items() if x is not None or not name.endswith("bias")}
    own = {name: parameter(ops, name, x, hidden) for name, x in given_arrays.items()}
    own[NAMES.pred] = hidden
    of_teacher, of_student = (_sizes(ops, own, side, classes_axis) for side in ("teacher", "student"))
    shape = ops.shape(hidden)
    errors.two_layers(ops.shape(own[NAMES.target]), shape, of_teacher[0], of_student[0])
    axis = len(shape) - 1
    target = held_to(ops, NAMES.target, own[NAMES.target], hidden, None, list(range(axis)))
    dtype = compute_dtype(ops, hidden)
    given = divided(given, dtype)
    rule, exchanged = OF.kinds[given["kind"]], given["kind"] == "reverse"
    options = options_of(ops, OF, rule, given, (own["student_weight"], classes_axis, dtype), NAMES)
    pred = held_to_ranges(ops, hidden, dtype, options)
    r = Request(OF, rule, framework, target, pred, axis, dtype, options, given["reduction"])
    r = with_weights(r._replace(in_arrays=in_arrays(options)), given, NAMES)
    like = ops.column(hidden, 0)
    classes, units = of_student
    request = in_rows(r, like, units)
    request = request._replace(target=flat(ops, target, of_teacher[1], request.valid))
    layer = Layer(own["teacher_weight"], own.get("teacher_bias"))
    weight, bias = own["student_weight"], own.get("student_bias")
    call = Linear(request, weight, bias, classes_axis, classes, memory, teacher=layer, exchanged=exchanged)
    return with_divisor(call), like


def _sizes(ops: ArrayOps, own: Mapping[str, Array], side: str, classes_axis: int) -> tuple[int, int]:
    """The numbers of classes and of units of a side."""
    of_side = {name.partition("_")[2]: x for name, x in own.items() if name.startswith(side)}
    return layer_sizes(ops, of_side, classes_axis, side)
