"""TensorFlow: the linear loss, block by block, in a loop. Defines no loss.

As on PyTorch, a ratio's gradients are computed with its value where a tape watches, so that the logits are computed
once; else, and for losses of rows, the logits are computed again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import tensorflow as tf

from lossbridge.frameworks import linear_blocks
from lossbridge.frameworks import tensorflow_ops as ops
from lossbridge.frameworks.framework import Choice
from lossbridge.frameworks.linear_blocks import Linear
from lossbridge.maths.ops import Array
from lossbridge.spec import PER_SAMPLE, Request

_custom_gradient: Callable[[Callable[..., Any]], Callable[..., Any]] = tf.custom_gradient  # for the type checker


def choose(call: Linear, under: str = "") -> Choice:
    return linear_blocks.choice(BLOCKS, _refuses_blocks(call))


def _refuses_blocks(call: Linear) -> str:
    r = call.request
    inputs = [x for x in (r.pred, call.weight, call.bias) if x is not None]
    others = [r.weight, r.normalizer, *r.options.values(), *linear_blocks.of_teacher(call)]
    others = [x for x in others if tf.is_tensor(x)]
    if ops.in_forward_mode(*inputs, *others):
        return "forward-mode differentiation is on"
    return linear_blocks.DIFFERENTIATED if ops.is_recorded(others) else ""


def _by_blocks(call: Linear) -> Array:
    r = call.request
    inputs = [x for x in (r.pred, call.weight, call.bias) if x is not None]
    at_once = r.reduction not in PER_SAMPLE and ops.is_recorded(inputs)

    @_custom_gradient
    def differentiable(*inputs: Array) -> Any:
        stopped = [tf.stop_gradient(x) for x in inputs]
        found, gradients = _computed(call, r, stopped, at_once)

        def backward(upstream: Array) -> Any:
            return _gradients(call, upstream, gradients, inputs)

        return found, backward

    return differentiable(*inputs)


BLOCKS = linear_blocks.in_blocks(_by_blocks)


def _gradients(call: Linear, upstream: Array, known: list[Array], inputs: tuple[Array, ...]) -> list[Array]:
    """The gradients for the inputs of what flows back. `known`: those for 1, or none."""
    r = call.request

    @_custom_gradient
    def differentiable(upstream: Array, *inputs: Array) -> Any:
        factor = tf.stop_gradient(upstream)
        stopped = [tf.stop_gradient(x) for x in inputs]
        if r.reduction in PER_SAMPLE:
            found = _computed(call, linear_blocks.pulled_back(r, factor), stopped, True)[1]
        else:
            found = [x * factor for x in known or _computed(call, r, stopped, True)[1]]
        cast = [tf.cast(x, of.dtype) for x, of in zip(found, inputs, strict=True)]
        return cast, partial(_second_gradients, call, upstream, inputs)

    found = differentiable(upstream, *inputs)
    return found if isinstance(found, list) else list(found)


def _second_gradients(call: Linear, upstream: Array, inputs: tuple[Array, ...], *cotangents: Array) -> list[Array]:
    """The gradients of the gradients, with respect to upstream and the inputs, by the loss of all logits."""
    zero = tf.UnconnectedGradients.ZERO
    with tf.GradientTape() as outer:
        outer.watch([upstream, *inputs])
        with tf.GradientTape() as inner:
            inner.watch(inputs)
            value = linear_blocks.whole(_with(call, inputs))
        gradients = inner.gradient(value, list(inputs), upstream, unconnected_gradients=zero)
    found: list[Array] = outer.gradient(gradients, [upstream, *inputs], list(cotangents), unconnected_gradients=zero)
    return found


def _with(call: Linear, inputs: Any) -> Linear:
    hidden, weight, *bias = inputs
    return call._replace(request=call.request._replace(pred=hidden), weight=weight, bias=bias[0] if bias else None)


def _computed(call: Linear, r: Request, inputs: list[Array], differentiated: bool) -> tuple[Array, list[Array]]:
    """The loss, or the losses of the rows, of the request `r`; and the gradients for the inputs."""
    hidden, weight, *bias = (tf.cast(x, r.dtype) for x in inputs)
    count = ops.size(hidden, 0, tf.constant(0))
    rows, blocks = _sizes(call, count)
    per_sample = r.reduction in PER_SAMPLE
    lacking = blocks * rows - count
    arrays = {"pred": hidden, "target": r.target, "weight": r.weight, "counted": r.counted, "valid": r.valid}
    arrays = {name: x for name, x in arrays.items() if x is not None}
    if not isinstance(lacking, int) or lacking:
        everywhere = tf.ones([count], tf.bool)
        arrays |= {name: arrays.get(name, everywhere) for name in ("counted", "valid")}
        arrays = {name: tf.pad(x, [[0, lacking], *[[0, 0]] * (x.shape.rank - 1)]) for name, x in arrays.items()}
    arrays = {name: tf.reshape(x, tf.concat([[blocks, rows], tf.shape(x)[1:]], 0)) for name, x in arrays.items()}

    def of_block(i: Array, value: Array, of_hidden: Any, of_weight: Array, of_bias: Array) -> Any:
        block = {name: x[i] for name, x in arrays.items()}
        h = tf.ensure_shape(block.pop("pred"), [None, hidden.shape[1]])
        z = tf.linalg.matmul(h, weight, transpose_b=call.classes_axis == 0)
        z = z + bias[0] if bias else z
        part = linear_blocks.with_teacher(call, r._replace(**block))
        of_logits = partial(linear_blocks.of_logits, part, call.columns)
        if not differentiated:
            found = of_logits(z)
        else:
            found, slopes = r.framework.value_and_grad(of_logits, z)
            of_hidden = of_hidden.write(i, tf.linalg.matmul(slopes, weight, transpose_b=call.classes_axis == 1))
            x, y = (slopes, h) if call.classes_axis == 0 else (h, slopes)
            of_weight += tf.linalg.matmul(x, y, transpose_a=True)
            of_bias = of_bias + tf.reduce_sum(slopes, 0) if bias else of_bias
        return i + 1, value.write(i, found), of_hidden, of_weight, of_bias

    start = (
        tf.constant(0),
        tf.TensorArray(r.dtype, blocks),
        tf.TensorArray(r.dtype, blocks if differentiated else 0),
        tf.zeros_like(weight) if differentiated else tf.zeros([], r.dtype),
        tf.zeros_like(bias[0]) if differentiated and bias else tf.zeros([], r.dtype),
    )
    _, value, of_hidden, of_weight, of_bias = tf.while_loop(
        lambda i, *_: i < blocks, of_block, start, parallel_iterations=1
    )
    found = value.stack()
    found = tf.reshape(found, call.shape(-1))[:count] if per_sample else tf.reduce_sum(found)
    if not differentiated:
        return found, []
    joined = tf.reshape(of_hidden.stack(), tf.concat([[blocks * rows], tf.shape(hidden)[1:]], 0))[:count]
    return found, [joined, of_weight, *([of_bias] if bias else [])]


def _sizes(call: Linear, count: Any) -> tuple[Any, Any]:
    """The rows of a block and the number of blocks, at least one each. `count`: an int, or a tensor if unknown."""
    if isinstance(count, int):
        rows = call.rows(count)
        return rows, max(1, -(-count // rows))
    blocks = tf.maximum(1, (count + call.most_rows - 1) // call.most_rows)
    return tf.maximum(1, (count + blocks - 1) // blocks), blocks
