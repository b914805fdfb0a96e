"""NumPy: a request as one call of the native rows, which compute the ratio and its gradients together. No arithmetic.

The gradients are those for 1 flowing back, as `value_and_grad` has it. Where something else does, the rows are called
again with it: multiplying what is there would round a gradient of half precision twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from lossbridge.frameworks import numpy_ops as ops
from lossbridge.maths.ops import Array
from lossbridge.native import rows
from lossbridge.reduction import has_mass
from lossbridge.spec import Request

# Below so many entries the rows use one thread, and how many there are need not be asked.
SMALL = 1 << 16


class Computed(NamedTuple):
    """A call that was run: the ratio, and the gradients for target and predictions, where they were needed."""

    call: rows.Call
    ratio: Array
    gradients: tuple[np.ndarray | None, np.ndarray | None]


def refuses(r: Request) -> str:
    """Why the rows do not compute this request; "" if they do."""
    if type(r.target) is ops.Variable:
        if r.rule.name not in rows.WITH_TARGET_GRADIENT:
            return f"the native rows for {r.rule.name} have no gradient for the target"
        if r.reduction == "mean_with_sample_weight" and has_mass(r):
            return "the denominator is differentiated"
    for x in (r.weight, r.normalizer, *r.options.values()):
        if type(x) is ops.Variable:
            return "a weight is differentiated"
    return rows.refuses(r.rule, r.dtype, r.dtype)  # arrays of other dtypes are cast


def ratio(r: Request) -> Array:
    """The ratio of a request, recorded on the tape if target or predictions are on it."""
    inputs = (r.target, r.pred)
    needs = type(r.target) is ops.Variable, type(r.pred) is ops.Variable
    done = computed(r, needs, r.pred.take_buffer() if needs[1] else None)

    def pullback(which: int) -> Callable[[np.ndarray], np.ndarray]:
        def pulled(upstream: np.ndarray) -> np.ndarray:
            gradient = done.gradients[which]
            assert gradient is not None
            if not (upstream == 1 if upstream.ndim == 0 else (upstream == 1).all()):
                again(done, upstream, which, gradient)
            return gradient

        return pulled

    return ops.record(done.ratio, *((x, pullback(which)) for which, x in enumerate(inputs)))


def losses(r: Request) -> Array:
    return ratio(r._replace(reduction="none", weight=None, counted=r.valid))


def computed(r: Request, needs: tuple[bool, bool], buffer: np.ndarray | None = None) -> Computed:
    """Runs the rows. `needs`: whether target and predictions need a gradient; `buffer`: where the latter may go."""
    target, pred = ops.value_of(r.target), ops.value_of(r.pred)
    target = _readable(target, "" if target.ndim < pred.ndim else r.dtype)
    pred = _readable(pred, r.dtype)
    shape, axis = pred.shape, r.axis
    samples = shape if axis is None else shape[:axis] + shape[axis + 1 :]
    divides, divisor = rows.divides(r)
    found = np.empty(() if divides else samples, r.dtype)
    of_target = np.empty(target.shape, target.dtype) if needs[0] else None
    if not needs[1]:
        buffer = None
    elif buffer is None or buffer.dtype != pred.dtype:
        buffer = np.empty(shape, pred.dtype)
    call = rows.call(
        r,
        shape,
        (ops.dtype(pred), ops.dtype(target)),
        (_memory(pred), _memory(target)),
        per_class=_memory(_readable(rows.per_class(r.options), r.dtype)),
        counted=_per_sample(r.counted, samples),
        weight=_per_sample(r.weight, samples),
        divides=divides,
        divisor=float(divisor),
        result=found if divides else 0,
        losses=0 if divides else found,
        gradient=_memory(buffer),
        target_gradient=_memory(of_target),
        threads=rows.threads() if pred.size >= SMALL else 1,
    )
    rows.run(call)
    return Computed(call, found[()], (of_target, buffer))


def again(done: Computed, upstream: np.ndarray, which: int, gradient: np.ndarray) -> None:
    """The gradient for target (0) or predictions (1), where this is what flows back."""
    call = done.call._replace(losses=0, result=0, gradient=0, target_gradient=0)
    call = call._replace(gradient=_memory(gradient)) if which else call._replace(target_gradient=_memory(gradient))
    if upstream.ndim == 0:
        call = call._replace(upstream=float(upstream))
    else:
        call = call._replace(upstream_each=np.ascontiguousarray(upstream, done.ratio.dtype))
    rows.run(call)


def _readable(x: np.ndarray | None, dtype: str = "") -> Any:
    """The array itself if the rows can read it, else a copy; in `dtype` where that is given and `x` is not floating."""
    if x is None:
        return None
    cast = dtype and ops.dtype(x) not in rows.FLOATS
    if not cast and x.flags.c_contiguous and x.dtype.isnative:
        return x
    return np.asarray(x, np.dtype(dtype) if cast else x.dtype.newbyteorder("="), order="C")


def _per_sample(x: Array | None, samples: tuple[int, ...]) -> rows.Memory:
    return 0 if x is None else np.asarray(np.broadcast_to(x, samples), order="C")


def _memory(x: np.ndarray | None) -> rows.Memory:
    """What lends its memory to the rows; bfloat16 arrays do not."""
    if x is None:
        return 0
    return x.view(np.uint16) if ops.dtype(x) == "bfloat16" else x
