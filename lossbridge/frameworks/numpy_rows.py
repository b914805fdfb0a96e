"""NumPy: a request as one call of the native rows, which compute the ratio and its gradients together. No arithmetic.

The gradients are those for 1 flowing back, as `value_and_grad` has it. Where something else does, the rows are called
again with it: multiplying what is there would round a gradient of half precision twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

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
    if r.axis is None and rows.per_class(r.options)[1] is not None:
        return "an option is no array of one number a class"
    return rows.refuses(r.rule, r.dtype, r.dtype)  # arrays of other dtypes are cast


def ratio(r: Request) -> Array:
    """The ratio of a request, recorded on the tape if target or predictions are on it."""
    inputs = (r.target, r.pred)
    needs = type(r.target) is ops.Variable, type(r.pred) is ops.Variable
    done = computed(r, needs, _free_buffer(r) if needs[1] else None)

    def pullback(which: int) -> Callable[[np.ndarray], np.ndarray]:
        def pulled(upstream: np.ndarray) -> np.ndarray:
            gradient = done.gradients[which]
            assert gradient is not None
            if not is_one(upstream):
                again(done, upstream, which, gradient)
            return gradient

        return pulled

    found = ops.record(done.ratio, *((x, pullback(which)) for which, x in enumerate(inputs)))
    of_pred = done.gradients[1]
    if of_pred is not None and not needs[0] and of_pred.dtype == r.pred.dtype:
        found.of_one = of_pred
    return found


def _free_buffer(r: Request) -> np.ndarray | None:
    """Where the gradient for the predictions may go. Not over those that an error would be about."""
    buffer: np.ndarray | None = r.pred.take_buffer()
    is_read_again = r.domain and r.rule.domains[1] != "anywhere"
    return None if is_read_again and np.may_share_memory(buffer, r.pred.value) else buffer


def losses(r: Request) -> Array:
    return ratio(r._replace(reduction="none", weight=None, counted=r.valid))


def computed(r: Request, needs: tuple[bool, bool], buffer: np.ndarray | None = None) -> Computed:
    """Runs the rows. `needs`: whether target and predictions need a gradient; `buffer`: where the latter may go."""
    pred, dtype, of_pred = _readable(ops.value_of(r.pred), r.dtype)
    target = ops.value_of(r.target)
    target, target_dtype, of_target = _readable(target, "" if target.ndim < pred.ndim else r.dtype)
    gradients = (
        np.empty(target.shape, target.dtype) if needs[0] else None,
        _buffer_for(pred, buffer) if needs[1] else None,
    )
    axis = r.axis
    samples = pred.shape if axis is None else pred.shape[:axis] + pred.shape[axis + 1 :]
    number, per_class = rows.per_class(r.options)
    divides, divisor = rows.divides(r)
    found = np.empty(samples if divides == rows.NO_SUM else (), r.dtype)
    call = rows.call(
        r,
        pred.shape,
        (dtype, target_dtype),
        (of_pred, of_target),
        per_class_number=number,
        per_class=0 if per_class is None else np.ascontiguousarray(per_class),
        counted=0 if r.counted is None else _per_sample(r.counted, samples),
        weight=0 if r.weight is None else _per_sample(r.weight, samples),
        divides=divides,
        divisor=float(divisor),
        losses=found if divides == rows.NO_SUM else 0,
        result=0 if divides == rows.NO_SUM else found,
        gradient=_memory(gradients[1], dtype),
        target_gradient=_memory(gradients[0], target_dtype),
        threads=rows.threads() if pred.size >= SMALL else 1,
    )
    rows.run(call)
    return Computed(call, found[()], gradients)


def is_one(upstream: np.ndarray) -> bool:
    return bool(upstream == 1 if upstream.ndim == 0 else (upstream == 1).all())


def again(done: Computed, upstream: np.ndarray, which: int, gradient: np.ndarray) -> None:
    """The gradient for target (0) or predictions (1), where this is what flows back."""
    memory = _memory(gradient, ops.dtype(gradient))
    call = done.call._replace(losses=0, result=0, gradient=0, target_gradient=0)
    call = call._replace(gradient=memory) if which else call._replace(target_gradient=memory)
    if upstream.ndim == 0:
        call = call._replace(upstream=float(upstream))
    else:
        call = call._replace(upstream_each=np.ascontiguousarray(upstream, done.ratio.dtype))
    rows.run(call)


def _readable(x: np.ndarray, dtype: str) -> tuple[np.ndarray, str, rows.Memory]:
    """The array itself if the rows can read it, else a copy, of this dtype if it is not floating ("": labels).

    And the name of its dtype, and what lends its memory.
    """
    name = ops.dtype(x)
    cast = dtype and name not in rows.FLOATS
    if cast or not x.flags.c_contiguous or not x.dtype.isnative:
        x = np.asarray(x, np.dtype(dtype) if cast else x.dtype.newbyteorder("="), order="C")
        name = ops.dtype(x)
    return x, name, _memory(x, name)


def _memory(x: np.ndarray | None, dtype: str) -> rows.Memory:
    """What lends its memory to the rows; arrays of bfloat16 do not."""
    if x is None:
        return 0
    return x.view(np.uint16) if dtype == "bfloat16" else x


def _buffer_for(x: np.ndarray, buffer: np.ndarray | None) -> np.ndarray:
    return np.empty(x.shape, x.dtype) if buffer is None or buffer.dtype != x.dtype else buffer


def _per_sample(x: Array, samples: tuple[int, ...]) -> np.ndarray:
    return np.asarray(np.broadcast_to(x, samples), order="C")
