"""JAX: the native rows as two primitives, over a foreign function of XLA (rows/xla.cpp). Defines no loss.

`rows` computes losses, and gradients times what flows back to each loss, in one pass. `tangent` is the linear map from
a tangent of an argument to that of the losses; its transpose is `rows` with a gradient. So XLA sees two calls for a
loss and its gradient, and no array of the inputs' size but the gradient.

The two would read the inputs twice. Therefore the first already writes the gradient for the upstream that the reduction
will send back if the loss itself is what is differentiated (`expected`). The second returns that array if this upstream
came, to the bit, and else computes.

Derivatives of a gradient and those for weights are derivatives of the formula. On other devices than CPUs, in exported
programs, and where XLA splits arrays in ways that the rows do not follow, XLA is given the derivative rule instead.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.interpreters import ad, batching, mlir

from lossbridge.frameworks import jax_ops, jax_rules
from lossbridge.frameworks.jax_rules import Plan
from lossbridge.maths.ops import Array
from lossbridge.native import rows as native
from lossbridge.reduction import neutralise
from lossbridge.spec import Request

ops = jax_ops

# The functions' names in XLA's programs. The second is jax_ratio's.
TARGET, RATIO = "lossbridge_rows", "lossbridge_ratio"
# The arrays of a call, in order: those that the handler takes after the first two have the bits 1, 2, 4 and 8. Of
# `written`, which comes with `expected`, the result takes the memory.
ARRAYS = ("pred", "target", "per_class", "valid", "upstream", "expected", "written")
# The results, in order: bits 1, 2 and 4.
LOSSES, GRADIENT, TARGET_GRADIENT = RESULTS = ("losses", "gradient", "target_gradient")


class Call(NamedTuple):
    """The static arguments of both primitives."""

    plan: Plan
    per_class: str  # the name of the option that is an array; "" for none
    given: tuple[str, ...]  # of ARRAYS
    wanted: tuple[str, ...] = (LOSSES,)  # of RESULTS


def _registered() -> str:
    """Why XLA has not got the rows; "" if it has."""
    if native.MISSING:
        return native.MISSING
    try:
        for name, handler in zip((TARGET, RATIO), native.xla_handlers(), strict=True):
            jax.ffi.register_ffi_target(name, handler, platform="cpu")
    except Exception as error:  # of another version of the interface
        return f"XLA does not take the native rows: {error}"
    jax.ffi.register_ffi_target_as_batch_partitionable(TARGET)
    return ""


MISSING = _registered()


# The path.


def refuses(r: Request) -> str:
    """Why the rows do not compute a request; "" if they do."""
    if MISSING:
        return MISSING
    dense = r.target.ndim == r.pred.ndim
    refused = native.refuses(r.rule, _float(r.pred, r.dtype), _float(r.target, r.dtype) if dense else "int32")
    if refused:
        return refused
    if r.in_arrays:
        return r.in_arrays
    if not _on_cpu(r.pred):
        return "the arrays are not on a CPU"
    if r.axis is not None and not r.pred.shape[r.axis]:
        return "there are no classes"
    if any(kind == jax.sharding.AxisType.Explicit for kind in jax.typeof(r.pred).sharding.mesh.axis_types):
        return "the types of the arrays say how they are split over devices"
    arrays = [name for name, x in r.options.items() if isinstance(x, jax.Array)]
    if len(arrays) > (r.axis is not None):
        return f"{' and '.join(arrays)} are arrays"
    return ""


def _on_cpu(x: Array) -> bool:
    if isinstance(x, jax.core.Tracer):
        return jax.default_backend() == "cpu"
    return all(device.platform == "cpu" for device in x.devices())


def _float(x: Array, dtype: str) -> str:
    """The dtype in which the rows read `x`: its own, if it is floating."""
    return str(x.dtype.name) if jnp.issubdtype(x.dtype, jnp.floating) else dtype


def samples(r: Request) -> tuple[int, ...]:
    """The shape of the losses."""
    return tuple(size for axis, size in enumerate(r.pred.shape) if axis != r.axis)


def losses(r: Request, expected: Array | None = None) -> Array:
    """`expected`: what the reduction will send back to the losses, if they are not differentiated otherwise."""
    plan, weights = jax_rules.plan_of(r)
    pred, target = r.pred, r.target
    if not jnp.issubdtype(pred.dtype, jnp.floating):
        pred = pred.astype(r.dtype)
    if target.ndim == pred.ndim and not jnp.issubdtype(target.dtype, jnp.floating):
        target = target.astype(r.dtype)
    arrays = {"pred": pred, "target": target}
    for x in weights.values():
        arrays["per_class"] = jnp.broadcast_to(
            x, tuple(size if axis == plan.axis else 1 for axis, size in enumerate(pred.shape))
        )
    if r.valid is not None:
        arrays["valid"] = jnp.broadcast_to(r.valid, samples(r))
    compiled = isinstance(expected, jax.core.Tracer)  # eagerly, what is written would be copied
    if expected is not None and compiled and plan.axis is not None:
        arrays["expected"] = lax.stop_gradient(expected)
    return _rows(Call(plan, next(iter(weights), ""), tuple(arrays)), arrays)[0]


def _rows(call: Call, arrays: Mapping[str, Array], *wanted: str) -> list[Array]:
    """The wanted results, else those of `call`; `arrays` has what `call.given` says, and what is new."""
    given = tuple(name for name in ARRAYS if name in arrays)
    found: list[Array] = rows.bind(
        *equally_varying([arrays[name] for name in given]),
        call=call._replace(given=given, wanted=wanted or call.wanted),
    )
    return found


def equally_varying(arrays: Sequence[Array], but: Any = None) -> list[Array]:
    """Under shard_map: all of them as different on each device as one of them is, along all mesh axes but this."""
    types = [jax.typeof(x).mat.varying for x in arrays]
    every = frozenset().union(*types) - frozenset((but,) if isinstance(but, str) else but or ())
    return [
        lax.pcast(x, tuple(every - has), to="varying") if every - has else x
        for x, has in zip(arrays, types, strict=True)
    ]


# The primitives, and what they compute.

rows = jax.extend.core.Primitive("lossbridge_rows")
rows.multiple_results = True
tangent = jax.extend.core.Primitive("lossbridge_tangent")


@functools.partial(jax.jit, static_argnames="call")
def _rows_eagerly(*arrays: Array, call: Call) -> list[Array]:
    return rows.bind(*arrays, call=call)


@functools.partial(jax.jit, static_argnames=("call", "of"))
def _tangent_eagerly(step: Array, *arrays: Array, call: Call, of: str) -> Array:
    return tangent.bind(step, *arrays, call=call, of=of)


rows.def_impl(_rows_eagerly)
tangent.def_impl(_tangent_eagerly)


@rows.def_abstract_eval
def _types(*types: Any, call: Call) -> list[Any]:
    return [_type(types, call, name) for name in call.wanted]


@tangent.def_abstract_eval
def _tangent_type(step: Any, *types: Any, call: Call, of: str) -> Any:
    return _type(types, call, LOSSES)


def _type(types: Sequence[Any], call: Call, result: str) -> Any:
    pred, target = types[:2]
    if result == GRADIENT:
        return pred
    if result == TARGET_GRADIENT:
        return target
    sizes = [
        (size, over)
        for i, (size, over) in enumerate(zip(pred.shape, pred.sharding.spec, strict=True))
        if i != call.plan.axis
    ]
    return pred.update(
        shape=tuple(size for size, _ in sizes),
        dtype=np.dtype("float64" if pred.dtype == "float64" else "float32"),
        weak_type=False,
        sharding=pred.sharding.update(spec=jax.sharding.PartitionSpec(*(over for _, over in sizes))),
    )


def _by_formula(call: Call, arrays: Mapping[str, Array]) -> list[Array]:
    """The results of `rows` by the formula, for JAX to differentiate."""

    def value(pred: Array, target: Array) -> Array:
        return _value(call, {**arrays, "pred": pred, "target": target})

    found, pullback = jax.vjp(value, arrays["pred"], arrays["target"])
    gradients = pullback(arrays.get("upstream", jnp.ones_like(found))) if call.wanted != (LOSSES,) else (None, None)
    results = dict(zip(RESULTS, (found, *gradients), strict=True))
    return [results[name] for name in call.wanted]


def _value(call: Call, arrays: Mapping[str, Array]) -> Array:
    weights = {call.per_class: arrays["per_class"]} if call.per_class else {}
    return jax_rules.value(call.plan, arrays.get("valid"), arrays["target"], arrays["pred"], weights)


def _by_rule(*given: Array, call: Call) -> list[Array]:
    """The results of `rows` by the derivative rule, for XLA to compile."""
    arrays = dict(zip(call.given, given, strict=True))
    weights = {call.per_class: arrays["per_class"]} if call.per_class else {}
    needs = (TARGET_GRADIENT in call.wanted, GRADIENT in call.wanted)
    target, pred, valid = arrays["target"], arrays["pred"], arrays.get("valid")
    found, gradients = jax_rules.losses_and_gradients(call.plan, needs, valid, target, pred, weights)
    upstream = arrays.get("upstream")
    if upstream is not None and call.plan.axis is not None:
        upstream = jnp.expand_dims(upstream, call.plan.axis)

    def times_upstream(gradient: Array | None, x: Array) -> Array | None:
        if gradient is None:
            return None
        gradient = gradient if upstream is None else gradient * upstream
        return neutralise(ops, gradient, valid, call.plan.axis, 0.0).astype(x.dtype)

    of_target, of_pred = gradients
    results = (found, times_upstream(of_pred, pred), times_upstream(of_target, target))
    return [dict(zip(RESULTS, results, strict=True))[name] for name in call.wanted]


def _tangent_by_rows(step: Array, *given: Array, call: Call, of: str) -> Array:
    arrays = dict(zip(call.given, given, strict=True))
    arrays = {name: x for name, x in arrays.items() if name not in ("expected", "written")}
    arrays["target"], arrays["pred"] = jax_rules.floating(arrays["target"], arrays["pred"])
    (gradient,) = _rows(call, arrays, GRADIENT if of == "pred" else TARGET_GRADIENT)
    moved = gradient * step.astype(gradient.dtype)
    return moved if call.plan.axis is None else jnp.sum(moved, call.plan.axis)


# Derivatives.


def _rows_jvp(primals: Sequence[Array], tangents: Sequence[Any], *, call: Call) -> tuple[Any, Any]:
    arrays = dict(zip(call.given, primals, strict=True))
    moving = {name: x for name, x in zip(call.given, tangents, strict=True) if not isinstance(x, ad.Zero)}
    known = ("pred", "target") if call.plan.rule.name in native.WITH_TARGET_GRADIENT else ("pred",)
    if call.wanted != (LOSSES,) or not set(moving) <= set(known):
        return _rows(call, arrays), _derivative(_by_formula, call, arrays, moving)
    if set(moving) == {"pred"} and "expected" in arrays and isinstance(arrays["pred"], jax.core.Tracer):
        upstream = {"upstream": arrays["expected"]}
        first = {name: x for name, x in arrays.items() if name != "expected"} | upstream
        found, arrays["written"] = _rows(call, first, LOSSES, GRADIENT)
    else:
        arrays.pop("expected", None)
        (found,) = _rows(call, {**arrays})
    terms = [_tangent(call, arrays, name, step) for name, step in moving.items()]
    return [found], [sum(terms[1:], start=terms[0])]


def _tangent(call: Call, arrays: Mapping[str, Array], of: str, step: Array) -> Array:
    given = tuple(name for name in ARRAYS if name in arrays)
    step, *values = equally_varying([step, *(arrays[name] for name in given)])
    found: Array = tangent.bind(step, *values, call=call._replace(given=given), of=of)
    return found


def _derivative(function: Any, call: Call, arrays: Mapping[str, Array], moving: Mapping[str, Array]) -> Any:
    """The directional derivative of function(call, arrays)."""

    def of_moving(moved: Mapping[str, Array]) -> Any:
        return function(call, {**arrays, **moved})

    return jax.jvp(of_moving, ({name: arrays[name] for name in moving},), (dict(moving),))[1]


def _tangent_jvp(primals: Sequence[Array], tangents: Sequence[Any], *, call: Call, of: str) -> tuple[Array, Any]:
    step, turn = primals[0], tangents[0]
    arrays = dict(zip(call.given, primals[1:], strict=True))
    moving = {name: x for name, x in zip(call.given, tangents[1:], strict=True) if not isinstance(x, ad.Zero)}

    def moved(call: Call, arrays: Mapping[str, Array]) -> Array:
        return _derivative(_value, call, arrays, {of: step})

    terms = [] if isinstance(turn, ad.Zero) else [_tangent(call, arrays, of, turn)]
    if moving:
        terms.append(_derivative(moved, call, arrays, moving))
    return _tangent(call, arrays, of, step), sum(terms[1:], start=terms[0])


def _tangent_transpose(upstream: Any, step: Any, *given: Array, call: Call, of: str) -> list[Any]:
    if isinstance(upstream, ad.Zero):
        return [ad.Zero(step.aval), *(None for _ in given)]
    arrays = dict(zip(call.given, given, strict=True))
    wanted = GRADIENT if of == "pred" else TARGET_GRADIENT
    return [*_rows(call, {**arrays, "upstream": upstream}, wanted), *(None for _ in given)]


ad.primitive_jvps[rows] = _rows_jvp
ad.primitive_jvps[tangent] = _tangent_jvp
ad.primitive_transposes[tangent] = _tangent_transpose


# Batches: one more axis before the others, so that there are more rows.


def _rows_in_batches(arrays: Sequence[Array], axes: Sequence[int | None], *, call: Call) -> tuple[Any, Any]:
    def bind(*arrays: Array, call: Call) -> Any:
        return rows.bind(*arrays, call=call)

    found = _in_batches(bind, arrays, axes, call.given, call)
    return found, (0,) * len(found)


def _tangent_in_batches(
    arrays: Sequence[Array], axes: Sequence[int | None], *, call: Call, of: str
) -> tuple[Array, int]:
    def bind(*arrays: Array, call: Call) -> Any:
        return tangent.bind(*arrays, call=call, of=of)

    return _in_batches(bind, arrays, axes, ("step", *call.given), call), 0


def _in_batches(
    bind: Any, arrays: Sequence[Array], axes: Sequence[int | None], names: Sequence[str], call: Call
) -> Any:
    named = {
        name: x if axis is None else jnp.moveaxis(x, axis, 0) for name, x, axis in zip(names, arrays, axes, strict=True)
    }
    batched = {name for name, axis in zip(names, axes, strict=True) if axis is not None}
    if "per_class" in batched:  # the rows of one call have one such array

        def one(of_one: Mapping[str, Array]) -> Any:
            return bind(*(of_one.get(name, x) for name, x in named.items()), call=call)

        return lax.map(one, {name: named[name] for name in batched})
    size = named[next(iter(batched))].shape[0]
    for name in set(named) - batched - {"per_class"}:
        named[name] = jnp.broadcast_to(named[name], (size, *named[name].shape))
    axis = None if call.plan.axis is None else call.plan.axis + 1
    return bind(*named.values(), call=call._replace(plan=call.plan._replace(axis=axis)))


batching.primitive_batchers[rows] = _rows_in_batches
batching.primitive_batchers[tangent] = _tangent_in_batches


# Lowering to XLA. This section uses what JAX does not document: `LoweringRuleContext` with the parameters of an export
# and the number of devices, and the two attributes by which jaxlib's own functions are split (seen in JAX 0.10.2).


def _lower(context: Any, *values: Any, call: Call) -> Any:
    if not _takes_rows(context, call):
        return _lower_by_rule(context, *values, call=call)
    in_place = "written" in call.given and call.wanted == (GRADIENT,)
    unused = () if in_place else ("expected", "written")
    used = [i for i, name in enumerate(call.given) if name not in unused]
    context = context.replace(avals_in=[context.avals_in[i] for i in used])
    given = [call.given[i] for i in used]
    rule = jax.ffi.ffi_lowering(
        TARGET,
        operand_output_aliases={given.index("written"): 0} if in_place else None,
        extra_attributes=_split(context, call),
    )
    return rule(context, *(values[i] for i in used), **_attributes(call, given))


def _attributes(call: Call, given: Sequence[str]) -> dict[str, np.ndarray]:
    """As rows/xla.cpp takes them."""
    options = dict(call.plan.options)
    per_class = next((x for name in native.PER_CLASS if (x := options.get(name)) is not None), 1.0)
    arguments = sum(1 << i for i, name in enumerate(ARRAYS[2:6]) if name in given)
    results = sum(1 << i for i, name in enumerate(RESULTS) if name in call.wanted)
    axis = -1 if call.plan.axis is None else call.plan.axis
    balanced = options.get("apply_class_balancing", False)
    integers = (
        native.RULES[call.plan.rule.name],
        axis,
        balanced,
        call.plan.domain,
        native.threads(),
        arguments,
        results,
    )
    defaults = {"label_smoothing": 0.0, "epsilon": 0.0, "temperature": 1.0, "gamma": 0.0}
    defaults |= {"logit_scale": 1.0, "softcap": 0.0, "z_loss": 0.0}
    numbers = (
        *(options.get(name, default) for name, default in defaults.items()),
        *native.of_mixture(options),
        per_class,
    )
    return {"integers": np.array(integers, np.int64), "numbers": np.array(numbers, np.float64)}


def _takes_rows(context: Any, call: Call) -> bool:
    if context.module_context.lowering_parameters.for_export:
        return False  # who loads the program may not have the rows
    splits = call.plan.axis and "per_class" not in call.given and context.avals_in[0].ndim <= len(_LETTERS)
    return bool(splits) or devices(context) == 1


# As Shardy names the axes of a rule.
_LETTERS = ("i", "j", "k", "l", "m", "n", "o", "p", "q", "r", "s", "t", "u", "v", "w", "x", "y", "z")


def devices(context: Any) -> int:
    """Over how many devices XLA splits the arrays."""
    axes = context.module_context.axis_context
    if isinstance(axes, mlir.SPMDAxisContext):
        return 1 if set(axes.manual_axes) == set(axes.mesh.axis_names) else int(axes.mesh.size)
    return int(getattr(axes, "num_devices", 1))


def _split(context: Any, call: Call) -> dict[str, Any] | None:
    """The attributes that let XLA split the axes before that of the classes over the devices."""
    if devices(context) == 1:
        return None
    axis, sizes = call.plan.axis, context.avals_in[0].shape

    def letters(dense: bool) -> str:
        return f"[{', '.join(x for i, x in enumerate(_LETTERS[: len(sizes)]) if dense or i != axis)}]"

    arguments = ", ".join(letters(x.ndim == len(sizes)) for x in context.avals_in)
    results = ", ".join(letters(name != LOSSES) for name in call.wanted)
    factors = ", ".join(f"{x}={size}" for x, size in zip(_LETTERS, sizes, strict=False))
    whole = ", ".join(_LETTERS[axis : len(sizes)])
    rule = f"({arguments})->({results}) {{{factors}}} need_replication={{{whole}}}"
    return {
        "mhlo.frontend_attributes": mlir.ir_attribute({"num_batch_dims": str(axis)}),
        "sdy.sharding_rule": mlir.ir.Attribute.parse(f"#sdy.op_sharding_rule<{rule}>"),
    }


def _lower_by_rule(context: Any, *values: Any, call: Call) -> Any:
    return mlir.lower_fun(functools.partial(_by_rule, call=call), multiple_results=True)(context, *values)


mlir.register_lowering(rows, _lower, platform="cpu")
mlir.register_lowering(rows, _lower_by_rule)
mlir.register_lowering(tangent, mlir.lower_fun(_tangent_by_rows, multiple_results=False))
