"""JAX: the ratio of a request's losses, Σ l·w / D, as the native rows add it up. Defines no loss.

XLA adds in another order from version to version, and divides by a constant as it likes. So the sum, the division and
each sample's share w/D, which flows back to its loss, come of one function of the rows (`reduce` in rows/rows.h).
Derivatives for weights and denominator are those of the formula, and so is everything where XLA splits the samples over
devices.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
from jax.interpreters import ad, batching, mlir

from lossbridge.frameworks import jax_rows
from lossbridge.maths.ops import Array
from lossbridge.native import rows as native
from lossbridge.reduction import reduced
from lossbridge.spec import PER_SAMPLE, Loss, Reduction, Request

# The arrays of a call, in order: the losses or zeros of their shape, then those that the handler counts by 1, 2 and 4.
ARRAYS = ("losses", "weight", "counted", "normalizer")


class Call(NamedTuple):
    """The static arguments of the primitive."""

    reduction: Reduction
    divides: int  # as `native.divides` says it
    given: tuple[str, ...]  # of ARRAYS
    shares: bool = False  # instead of the ratio


def ratio(r: Request) -> Array:
    if r.reduction in PER_SAMPLE:
        return reduced(r, jax_rows.losses(r))
    samples = jax_rows.samples(r)
    arrays = {"losses": jnp.zeros(samples, r.dtype)}
    if r.weight is not None:
        arrays["weight"] = jnp.broadcast_to(r.weight, samples)
    if r.counted is not None:
        arrays["counted"] = jnp.broadcast_to(r.counted, samples)
    divides, divisor = native.divides(r)
    if r.reduction != "sum" and divides == native.GIVEN:
        arrays["normalizer"] = divisor
    call = Call(r.reduction, divides, tuple(arrays))
    expected = _shares(call, arrays)
    return _bind(call, {**arrays, "losses": jax_rows.losses(r, expected)})


def _bind(call: Call, arrays: Mapping[str, Array]) -> Array:
    found: Array = sums.bind(*jax_rows.equally_varying([arrays[name] for name in call.given]), call=call)
    return found


def _shares(call: Call, arrays: Mapping[str, Array]) -> Array:
    losses = arrays["losses"]
    if call.given != ("losses",) or not isinstance(losses.size, int):  # a symbol in what is exported
        return _bind(call._replace(shares=True), arrays)
    return jnp.full_like(losses, 1 if call.reduction == "sum" else 1 / max(1, losses.size))


sums = jax.extend.core.Primitive("lossbridge_ratio")


@functools.partial(jax.jit, static_argnames="call")
def _eagerly(*arrays: Array, call: Call) -> Array:
    found: Array = sums.bind(*arrays, call=call)
    return found


sums.def_impl(_eagerly)


@sums.def_abstract_eval
def _type(losses: Any, *others: Any, call: Call) -> Any:
    if call.shares:
        return losses
    return losses.update(shape=(), sharding=losses.sharding.update(spec=jax.sharding.PartitionSpec()))


def _by_formula(*given: Array, call: Call) -> Array:
    arrays = dict(zip(call.given, given, strict=True))
    losses, weight, counted = arrays["losses"], arrays.get("weight"), arrays.get("counted")
    r = _NOTHING._replace(
        reduction=call.reduction,
        weight=weight,
        counted=counted,
        valid=counted,
        normalizer=arrays.get("normalizer"),
    )

    def value(losses: Array) -> Array:
        return reduced(r, losses)

    return jax.grad(value)(losses) if call.shares else value(losses)


# What `reduced` does not read of a request.
_NOTHING = Request(Loss("", {}, {}), None, jax_rows, None, None, None, "", {}, None)  # type: ignore[arg-type]


# Derivatives. In the losses the ratio is linear, and the shares do not depend on them.


def _jvp(primals: Sequence[Array], tangents: Sequence[Any], *, call: Call) -> tuple[Array, Any]:
    arrays = dict(zip(call.given, primals, strict=True))
    found = _bind(call, arrays)
    moving = {name: x for name, x in zip(call.given, tangents, strict=True) if not isinstance(x, ad.Zero)}
    step = moving.pop("losses", None)
    terms = []
    if step is not None and not call.shares:
        terms.append(jnp.sum(_shares(call, arrays) * step))
    if moving:

        def of_moving(moved: Mapping[str, Array]) -> Array:
            return _by_formula(*({**arrays, **moved}[name] for name in call.given), call=call)

        terms.append(jax.jvp(of_moving, ({name: arrays[name] for name in moving},), (moving,))[1])
    return found, sum(terms[1:], start=terms[0]) if terms else ad.Zero(jax.typeof(found).to_tangent_aval())


ad.primitive_jvps[sums] = _jvp


def _in_batches(arrays: Sequence[Array], axes: Sequence[int | None], *, call: Call) -> tuple[Array, int]:
    return jax.vmap(functools.partial(_by_formula, call=call), axes)(*arrays), 0


batching.primitive_batchers[sums] = _in_batches


def _lower(context: Any, *values: Any, call: Call) -> Any:
    exported = context.module_context.lowering_parameters.for_export
    if jax_rows.MISSING or exported or jax_rows.devices(context) != 1:
        return _lower_by_formula(context, *values, call=call)
    arguments = sum(1 << i for i, name in enumerate(ARRAYS[1:]) if name in call.given) | (8 if call.shares else 0)
    integers = np.array((call.divides, native.threads(), arguments), np.int64)
    return jax.ffi.ffi_lowering(jax_rows.RATIO)(context, *values, integers=integers)


_lower_by_formula = mlir.lower_fun(_by_formula, multiple_results=False)
mlir.register_lowering(sums, _lower, platform="cpu")
mlir.register_lowering(sums, _lower_by_formula)
