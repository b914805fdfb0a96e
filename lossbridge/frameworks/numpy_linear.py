"""NumPy: the linear loss, block by block. Defines no loss."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from lossbridge.frameworks import linear_blocks
from lossbridge.frameworks import numpy_ops as ops
from lossbridge.frameworks.framework import Choice
from lossbridge.frameworks.linear_blocks import Linear
from lossbridge.maths.ops import Array
from lossbridge.spec import PER_SAMPLE, Request

# Bytes of a part of the weight's gradient, to which a block's share is added while it is in the cache.
PART = 1 << 22


class Computed(NamedTuple):
    """The loss, or the losses of the rows; and the gradients for hidden states, weight and bias that were needed."""

    value: Array
    gradients: tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]


def choose(call: Linear, under: str = "") -> Choice:
    r = call.request
    differentiated = any(
        type(x) is ops.Variable for x in (r.weight, r.normalizer, *r.options.values(), *linear_blocks.of_teacher(call))
    )
    return linear_blocks.choice(BLOCKS, linear_blocks.DIFFERENTIATED if differentiated else "")


def _by_blocks(call: Linear) -> Array:
    r = call.request
    inputs = (r.pred, call.weight, call.bias)
    needs = tuple(type(x) is ops.Variable for x in inputs)
    per_sample = r.reduction in PER_SAMPLE
    done = computed(call, r, (False,) * 3 if per_sample else needs)
    of_upstream: list[tuple[np.ndarray, Computed]] = []  # the last that flowed back, which comes once for each input

    def pullback(which: int) -> Callable[[np.ndarray], np.ndarray]:
        def pulled(upstream: np.ndarray) -> np.ndarray:
            if per_sample:
                if not of_upstream or of_upstream[0][0] is not upstream:
                    of_upstream[:] = [(upstream, computed(call, linear_blocks.pulled_back(r, upstream), needs))]
                gradient = of_upstream[0][1].gradients[which]
            else:
                gradient = done.gradients[which]
            assert gradient is not None
            return gradient if per_sample or upstream == 1 else gradient * upstream

        return pulled

    return ops.record(done.value, *((x, pullback(which)) for which, x in enumerate(inputs)))


BLOCKS = linear_blocks.in_blocks(_by_blocks)


def computed(call: Linear, r: Request, needs: tuple[bool, ...]) -> Computed:
    """Of the request `r`, whose arrays may differ from the call's."""
    hidden, weight = (np.asarray(ops.value_of(x), r.dtype) for x in (r.pred, call.weight))
    bias = None if call.bias is None else np.asarray(ops.value_of(call.bias), r.dtype)
    classes_first = weight if call.classes_axis == 0 else weight.T
    count = len(hidden)
    rows = call.rows(count)
    losses = np.zeros(call.shape(count), r.dtype) if r.reduction in PER_SAMPLE else None
    total = 0.0
    of_hidden = np.empty_like(hidden) if needs[0] else None
    of_weight = np.zeros_like(weight) if needs[1] else None
    of_bias = np.zeros_like(bias) if needs[2] and bias is not None else None
    room = np.empty((min(rows, count), call.classes), r.dtype)
    for start in range(0, count, rows):
        h = hidden[start : start + rows]
        z = np.matmul(h, classes_first.T, out=room[: len(h)])
        if bias is not None:
            z += bias
        part = linear_blocks.with_teacher(call, linear_blocks.of_rows(r, slice(start, start + rows)))
        value, slopes = _value_and_slopes(part, call.columns, z, any(needs))
        if losses is not None:
            losses[start : start + rows] = value
        else:
            total += float(value)
        if of_hidden is not None:
            np.matmul(slopes, classes_first, out=of_hidden[start : start + rows])
        if of_weight is not None:
            _add_product(of_weight, *((slopes, h) if call.classes_axis == 0 else (h, slopes)))
        if of_bias is not None:
            of_bias += slopes.sum(0)
    return Computed(np.dtype(r.dtype).type(total) if losses is None else losses, (of_hidden, of_weight, of_bias))


def _value_and_slopes(
    part: Request, columns: tuple[str, ...], z: np.ndarray, differentiated: bool
) -> tuple[Array, Any]:
    """Of the loss of a block; the slopes may lie where the logits were."""
    value = functools.partial(linear_blocks.of_logits, part, columns)
    if not differentiated:
        return value(z), None
    buffer = None if columns or part.target is None else z  # the rows write over predictions, and over no target
    found: tuple[Array, Any] = part.framework.value_and_grad(value, z, buffer)
    return found


def _add_product(total: np.ndarray, x: np.ndarray, y: np.ndarray) -> None:
    """total += xᵀ y"""
    step = max(1, PART // max(1, total.shape[1] * total.itemsize))
    for start in range(0, len(total), step):
        total[start : start + step] += x[:, start : start + step].T @ y
