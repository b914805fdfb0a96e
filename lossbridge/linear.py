"""A call of the linear loss: the caller's arguments become a `Linear`, which a framework computes in blocks of rows."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Mapping
from typing import Any

from lossbridge import agreement, errors
from lossbridge.frameworks import is_traced_by_torch
from lossbridge.frameworks.framework import ArrayOps
from lossbridge.frameworks.linear_blocks import OF, Linear, with_divisor
from lossbridge.maths.ops import Array
from lossbridge.reduction import neutralise, reduced
from lossbridge.request import (
    COMMON,
    arrays_of,
    as_array,
    checked,
    common_framework,
    compute_dtype,
    constants,
    divided,
    dtype_of,
    framework_of,
    held_to,
    held_to_ranges,
    in_arrays,
    left_by_autograph,
    options_of,
    with_labels,
    with_weights,
)
from lossbridge.spec import PER_SAMPLE, Names, Request

NAMES = Names("labels", "hidden", leave_out="ignore_class= or mask=", soft="categorical_crossentropy of logits")

LayerArguments = tuple[Any, Any, int]  # weight, bias and the axis of its classes
Split = tuple[Any, Any, Any]  # how the classes are split over devices: group, classes, reduce_hidden
ALONE: Split = (None, None, True)

# What a call may return, and the column that it is computed from.
RETURNS: Mapping[str, str] = {
    "loss": "loss",
    "nll": "nll",
    "lse": "lse",
    "entropy": "entropy",
    "z_loss": "lse",
    "prediction": "prediction",
    "correct": "prediction",
}


@left_by_autograph
def run(
    labels: Any,
    hidden: Any,
    layer: LayerArguments,
    memory: int | None,
    split: Split = ALONE,
    returns: Any = "loss",
    names: Names = NAMES,
    **given: Any,
) -> Any:
    """The loss of a layer's classes, or what `returns` names. `given`: options of the loss of logits, and COMMON's."""
    given = {**COMMON, **OF.options, **given, "returns": returns}
    call, target = resolve(labels, hidden, layer, memory, given, split, names)
    wanted = names_of(returns)
    columns = dict.fromkeys(RETURNS[name] for name in wanted)
    found = [computed(call, target)] if list(columns) == ["loss"] else _beside(call, target, wanted, tuple(columns))
    if call.shard is not None:
        found = [call.request.framework.laid(x, hidden) for x in found]
    return found[0] if returns == "loss" else _record(wanted)(*found)


def names_of(returns: Any) -> tuple[str, ...]:
    """What is to be returned."""
    errors.returned(returns, tuple(RETURNS))
    return (returns,) if isinstance(returns, str) else tuple(returns)


def computed(call: Linear, like: Array) -> Array:
    """The loss; per-sample losses in the shape of `like`."""
    framework = call.request.framework
    found = framework.choose_linear(call).path.losses(call)
    return framework.ops.reshape_as(found, like) if call.request.reduction in PER_SAMPLE else found


_RECORDS: dict[tuple[str, ...], Any] = {}


def _record(names: tuple[str, ...]) -> Any:
    """The type of what is returned: one for the same names, or JAX would compile anew."""
    if names in _RECORDS:  # no functools.cache, of which torch.compile warns
        return _RECORDS[names]
    made = namedtuple("LinearCrossentropy", names)  # type: ignore[misc]
    if not is_traced_by_torch():
        _RECORDS[names] = made
    return made


def _beside(call: Linear, target: Array, names: tuple[str, ...], columns: tuple[str, ...]) -> list[Array]:
    """Each of these names, from one pass that gives every row its columns."""
    r, ops = call.request, call.request.framework.ops
    # A row of weight 0 is left out too.
    rows = r._replace(reduction="none", weight=None, counted=r.valid, normalizer=None)
    call = call._replace(request=rows, columns=columns)
    found = r.framework.choose_linear(call).path.losses(call)

    def made(name: str) -> Array:
        x = ops.column(found, columns.index(RETURNS[name]))
        if name == "loss":
            x = reduced(r, x)
            return ops.reshape_as(x, target) if r.reduction in PER_SAMPLE else x
        if name == "z_loss":
            x = (r.options.get("z_loss", 0.0) * x) * x  # x² may overflow
        elif name in ("prediction", "correct"):
            x = ops.cast(ops.stop_gradient(x), "int32")
            x = x if r.valid is None else ops.where(r.valid, x, -1)
            x = x if name == "prediction" else x == ops.cast(r.target, "int32")
        return ops.reshape_as(x, target)

    with ops.quiet():
        return [made(name) for name in names]


def resolve(
    labels: Any,
    hidden: Any,
    layer: LayerArguments,
    memory: int | None,
    given: Mapping[str, Any],
    split: Split = ALONE,
    names: Names = NAMES,
) -> tuple[Linear, Array]:
    """The call, and the labels, whose shape the losses have."""
    framework = framework_of(hidden, "hidden")
    if framework.shards is not None:
        labels, hidden, layer, given, split = framework.shards.local((labels, hidden, layer, given, split))
    group, classes, reduce_hidden = split
    if group is None and classes is None and reduce_hidden is True:
        return _resolved(labels, hidden, layer, memory, given, None, names)
    weight, _, classes_axis = layer
    if framework.shards is None:
        errors.no_groups(framework.name)

    def own() -> tuple[int, int, int]:
        errors.layer_options(classes_axis, memory)
        errors.switches({"reduce_hidden": reduce_hidden})
        shape = framework.ops.shape(as_array(framework.ops, "weight", weight))
        start, stop = (-1, -1) if classes is None else errors.own_classes(classes, shape, classes_axis)
        return start, stop, (shape[classes_axis] or 0) if len(shape) == 2 else 0

    meeting = framework.shards.meeting(split, hidden)
    return agreement.resolved(
        meeting, own, given, lambda sharded: _resolved(labels, hidden, layer, memory, given, sharded, names)
    )


def _resolved(
    labels: Any,
    hidden: Any,
    layer: LayerArguments,
    memory: int | None,
    given: Mapping[str, Any],
    sharded: Any,
    names: Names,
) -> tuple[Linear, Array]:
    """`sharded`: where classes are split over devices, the framework for this device's."""
    weight, bias, classes_axis = layer
    given = checked(given)
    errors.layer_options(classes_axis, memory)
    classes_axis, memory = int(classes_axis), None if memory is None else int(memory)
    others = {"labels": labels, "weight": weight, "bias": bias, **arrays_of(given, names)}
    framework = common_framework(hidden, "hidden", others)
    ops = framework.ops
    hidden = as_array(ops, "hidden", hidden)
    weight = parameter(ops, "weight", weight, hidden)
    bias = None if bias is None else parameter(ops, "bias", bias, hidden)
    target = as_array(ops, "labels", labels, hidden)
    named = {name: x for name, x in (("hidden", hidden), ("weight", weight), ("bias", bias)) if x is not None}
    classes, units = layer_sizes(ops, named, classes_axis, may_be_empty=sharded is not None)
    sizes = ops.shape(hidden)
    errors.hidden_labels(ops.shape(target), sizes)
    errors.label_dtype(dtype_of(ops, target), names)
    target = held_to(ops, "labels", target, hidden, len(sizes) - 1)
    shard, of_classes = None, weight
    if sharded is not None:
        shard, of_classes = sharded.shard, sharded.like_all_classes(weight, classes_axis)
        classes = shard.classes
    dtype, rule = compute_dtype(ops, hidden), OF.rules["logits"]["labels"]
    given = divided(given, dtype)
    options = options_of(ops, OF, rule, given, (of_classes, classes_axis, dtype), names._replace(pred="weight"))
    if options.get("class_weight") is not None:
        options["class_weight"] = ops.reshape(options["class_weight"], (1, -1))
    hidden = held_to_ranges(ops, hidden, dtype, options)
    r = Request(OF, rule, sharded or framework, target, hidden, len(sizes) - 1, dtype, options, given["reduction"])
    r = r._replace(constant=constants(ops, given, options), in_arrays=in_arrays(options))
    r = with_weights(r, given, names)
    r = with_labels(r, labels, given, names, classes)
    request = in_rows(r, r.target, units)._replace(target=ops.reshape(r.target, (-1,)))
    return with_divisor(Linear(request, weight, bias, classes_axis, classes, memory, shard)), target


def in_rows(r: Request, like: Array, units: int) -> Request:
    """The request with all axes before the units as one. `like`: has the losses' shape. The target stays as it is."""
    ops = r.framework.ops
    weight, counted, valid = (
        None if x is None else ops.reshape(ops.broadcast_to(x, like), (-1,)) for x in (r.weight, r.counted, r.valid)
    )
    return r._replace(pred=flat(ops, r.pred, units, valid), axis=1, weight=weight, counted=counted, valid=valid)


def flat(ops: ArrayOps, hidden: Array, units: int, valid: Array | None) -> Array:
    """Hidden states of shape (N, H), 0 in rows that are not valid."""
    return neutralise(ops, ops.reshape(hidden, (-1, units)), valid, 1, 0.0)


def layer_sizes(
    ops: ArrayOps, arrays: Mapping[str, Array], classes_axis: int, side: str = "", *, may_be_empty: bool = False
) -> tuple[int, int]:
    """The numbers of classes and of units. Raises where hidden states, weight and bias do not fit one another.

    `side`: stands before their names in errors; `may_be_empty`: a shard without classes.
    """
    errors.layer_dtypes({name: dtype_of(ops, x) for name, x in arrays.items()}, side)
    shapes = {name: ops.shape(x) for name, x in arrays.items()}
    errors.layer_shapes(shapes, classes_axis, side, may_be_empty=may_be_empty)
    classes, units = shapes["weight"][classes_axis], shapes["weight"][1 - classes_axis]
    assert classes is not None
    assert units is not None
    return classes, units


def parameter(ops: ArrayOps, name: str, x: Any, hidden: Array) -> Array:
    """The layer's array of this name. Python numbers have no dtype, and take that of the computation."""
    array = as_array(ops, name, x, hidden)
    return ops.cast(array, compute_dtype(ops, hidden)) if isinstance(x, list | tuple | float | int) else array
