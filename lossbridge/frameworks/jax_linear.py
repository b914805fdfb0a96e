"""JAX: the linear loss, block by block, in a scan. Defines no loss.

A ratio's derivative along a step of hidden states, weight and bias is ⟨G_h, ḣ⟩ + ⟨G_W, Ẇ⟩ + ⟨G_b, ḃ⟩, so that reverse
and forward mode, and derivatives of derivatives, come of one rule, and what does not move costs nothing. Losses of
rows, and derivatives for weights and options, are differentiated by JAX, which computes the logits of a block again.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lossbridge.frameworks import jax_ops, jax_rows, jax_rules, linear_blocks
from lossbridge.frameworks.framework import Choice
from lossbridge.frameworks.linear_blocks import Linear
from lossbridge.maths.ops import Array, Rule
from lossbridge.spec import LOSSES, PER_SAMPLE, Reduction, Request

ops = jax_ops

INPUTS = ("hidden", "weight", "bias")  # whose gradients are computed with the loss
OF_ROWS = ("hidden", "target", "sample_weight", "counted", "valid")
Arrays = Mapping[str, Any]


class Form(NamedTuple):
    """What of a call is static: XLA compiles for each."""

    options: tuple[tuple[str, Any], ...]  # numbers
    reduction: Reduction
    dtype: str
    classes_axis: int
    rows: int  # of a block
    loss: str
    rule: Rule
    columns: tuple[str, ...]
    exchanged: bool
    framework: Any  # on_jax
    in_arrays: str
    group: Any = None  # the mesh axis that the classes are split over, where they are


def choose(call: Linear, under: str = "") -> Choice:
    return linear_blocks.choice(BLOCKS, _refuses_blocks(call))


def _refuses_blocks(call: Linear) -> str:
    hidden = call.request.pred
    if not isinstance(hidden.shape[0], int):
        return "the number of rows is a symbol"
    arrays = (hidden, call.weight)
    if any(axis is not None for x in arrays for axis in jax.typeof(x).sharding.spec):
        return "the types of the arrays say how they are split over devices"
    return ""


def _by_blocks(call: Linear) -> Array:
    r = call.request
    numbers = tuple((name, x) for name, x in r.options.items() if not isinstance(x, jax.Array))
    form = Form(
        options=numbers,
        reduction=r.reduction,
        dtype=r.dtype,
        classes_axis=call.classes_axis,
        rows=call.rows(r.pred.shape[0]),
        loss=r.loss.name,
        rule=r.rule,
        columns=call.columns,
        exchanged=call.exchanged,
        framework=r.framework,
        in_arrays=r.in_arrays,
        group=None if call.shard is None else r.framework.devices.name,
    )
    teacher = call.teacher or linear_blocks.Layer(None, None)
    arrays = {
        "hidden": r.pred,
        "weight": call.weight,
        "bias": call.bias,
        "target": r.target,
        "sample_weight": r.weight,
        "counted": r.counted,
        "valid": r.valid,
        "normalizer": r.normalizer,
        "teacher_weight": teacher.weight,
        "teacher_bias": teacher.bias,
        "options": {name: x for name, x in r.options.items() if isinstance(x, jax.Array)},
    }
    return _loss(form, {name: x for name, x in arrays.items() if x is not None})


BLOCKS = linear_blocks.in_blocks(_by_blocks)


def _request(form: Form, arrays: Arrays) -> Request:
    """Of the rows of these arrays, without their logits."""
    request = Request(
        loss=LOSSES[form.loss],
        rule=form.rule,
        framework=form.framework,
        target=arrays["target"],
        pred=None,
        axis=1,
        dtype=form.dtype,
        options={**dict(form.options), **arrays["options"]},
        reduction=form.reduction,
        normalizer=arrays.get("normalizer"),
        weight=arrays.get("sample_weight"),
        counted=arrays.get("counted"),
        valid=arrays.get("valid"),
        in_arrays=form.in_arrays,
    )
    if "teacher_weight" not in arrays:
        return request
    of_teacher = _logits(form, request.target, arrays["teacher_weight"], arrays.get("teacher_bias"))
    return linear_blocks.beside(request, of_teacher, form.exchanged)


def _logits(form: Form, hidden: Array, weight: Array, bias: Array | None) -> Array:
    """z = W h + b of some rows, which a product of halves gives in float32."""
    if hidden.dtype != weight.dtype:
        hidden, weight = hidden.astype(form.dtype), weight.astype(form.dtype)
    z = _product(form, hidden, weight, 1, 1 - form.classes_axis)
    return z if bias is None else z + bias.astype(form.dtype)


def _product(form: Form, x: Array, y: Array, of_x: int, of_y: int) -> Array:
    """Summed over these axes, in the dtype of the computation."""
    return lax.dot_general(x, y, (((of_x,), (of_y,)), ((), ())), preferred_element_type=jnp.dtype(form.dtype))


def _times_weight(form: Form, slopes: Array, weight: Array) -> Array:
    """A bfloat16 weight is not cast as a whole: slopes have its range, and two bfloat16 numbers have their digits."""
    if weight.dtype == slopes.dtype:
        return _product(form, slopes, weight, 1, form.classes_axis)
    high = lax.reduce_precision(slopes, exponent_bits=8, mantissa_bits=7)  # XLA may leave out a cast there and back
    first, rest = (_product(form, x.astype(weight.dtype), weight, 1, form.classes_axis) for x in (high, slopes - high))
    return first + rest


def _in_blocks(form: Form, arrays: Arrays) -> dict[str, Array]:
    """The arrays of rows, as (blocks, rows, …); the last block is filled with rows that do not count."""
    count = arrays["hidden"].shape[0]
    blocks = max(1, -(-count // form.rows))
    lacking = blocks * form.rows - count
    found = {name: arrays[name] for name in OF_ROWS if name in arrays}
    if lacking:
        everywhere = jnp.ones((count,), bool)
        found |= {name: found.get(name, everywhere) for name in ("counted", "valid")}
        found = {name: jnp.pad(x, [(0, lacking), *[(0, 0)] * (x.ndim - 1)]) for name, x in found.items()}
    return {name: x.reshape(blocks, form.rows, *x.shape[1:]) for name, x in found.items()}


def _joined(found: Array, arrays: Arrays) -> Array:
    """Of blocks, the rows that there were."""
    return found.reshape(-1, *found.shape[2:])[: arrays["hidden"].shape[0]]


@functools.partial(jax.jit, static_argnums=0)
def _value(form: Form, arrays: Arrays) -> Array:
    """The loss, or the losses of the rows, for JAX to differentiate."""

    @jax.checkpoint
    def of_block(block: Arrays) -> Array:
        part = {**arrays, **block}
        z = _logits(form, part["hidden"], part["weight"], part.get("bias"))
        return linear_blocks.of_logits(_request(form, part), form.columns, z)

    found = lax.map(of_block, _in_blocks(form, arrays))
    return _joined(found, arrays) if form.reduction in PER_SAMPLE else ops.sum(found)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _value_and_gradients(form: Form, needs: tuple[str, ...], arrays: Arrays) -> tuple[Array, dict[str, Array]]:
    """A ratio, and its gradients in the dtype of the computation."""
    leaves, structure = jax.tree.flatten(arrays)
    arrays = jax.tree.unflatten(structure, jax_rows.equally_varying(leaves, but=form.group))
    if arrays["weight"].dtype != jnp.bfloat16:
        arrays = {**arrays, "weight": arrays["weight"].astype(form.dtype)}
    sums = {name: jnp.zeros_like(arrays[name], form.dtype) for name in needs if name != "hidden"}

    def of_block(sums: dict[str, Array], block: Arrays) -> Any:
        part = {**arrays, **block}
        request, hidden = _request(form, part), block["hidden"]

        def of_logits(z: Array) -> Array:
            return linear_blocks.of_logits(request, (), z)

        value, slopes = jax.value_and_grad(of_logits)(_logits(form, hidden, part["weight"], part.get("bias")))
        of_hidden: tuple[Array, ...] = ()
        if "hidden" in needs:
            of_hidden = (_times_weight(form, slopes, part["weight"]),)
        more = dict(sums)
        if "weight" in needs:
            sides = slopes, hidden.astype(form.dtype)
            more["weight"] += _product(form, *(sides if form.classes_axis == 0 else sides[::-1]), 0, 0)
        if "bias" in needs:
            more["bias"] += ops.sum(slopes, 0)
        return more, (value, *of_hidden)

    found, (values, *of_hidden) = lax.scan(of_block, sums, _in_blocks(form, arrays))
    if of_hidden:
        found["hidden"] = _joined(of_hidden[0], arrays)
    return ops.sum(values), found


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _loss(form: Form, arrays: Arrays) -> Array:
    return _value(form, arrays)


@functools.partial(_loss.defjvp, symbolic_zeros=True)
def _loss_rule(form: Form, primals: tuple[Arrays], tangents: tuple[Arrays]) -> tuple[Array, Array]:
    (arrays,), (steps,) = primals, tangents
    moving = tuple(name for name in arrays if jax_rules.moves(steps[name]))
    if form.reduction in PER_SAMPLE or not set(moving) <= set(INPUTS):

        def value(arrays: Arrays) -> Array:
            return _value(
                form, {**arrays, **{name: arrays[name].astype(form.dtype) for name in INPUTS if name in arrays}}
            )

        # In float32 also of halves: there what the blocks send back to the weight is added up.
        return value(arrays), jax_rules.derivative(value, (arrays,), (steps,))
    found, gradients = _value_and_gradients(form, moving, arrays)
    terms = [ops.sum(gradients[name] * steps[name].astype(form.dtype)) for name in moving]
    total = sum(terms[1:], start=terms[0])
    return found, total if form.group is None else lax.psum(total, form.group)
