"""TensorFlow: the primitives. Eager, tf.function, XLA, and shapes with unknown (None) sizes. No loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.eager import record  # who watches a tensor; there is no public way
from tensorflow.python.eager.forwardprop_util import pack_tangents

Array = Any

name = "tensorflow"

# Up to so many entries a sum costs less than the start of TensorFlow's operations, and of those of its gradient.
SMALL = 2**14


# Arrays as they come in.


def owns(x: object) -> bool:
    return isinstance(x, tf.Tensor | tf.Variable)


def asarray(x: Any, like: Array | None = None) -> Array:
    if isinstance(x, tf.Tensor | tf.Variable):
        return tf.convert_to_tensor(x)
    return tf.convert_to_tensor(np.asarray(x))  # through NumPy, so that Python floats keep their 53 bits


def concrete(x: Any) -> np.ndarray | None:
    if not isinstance(x, tf.Tensor | tf.Variable):
        return np.asarray(x)
    x = tf.convert_to_tensor(x)
    # Only eager tensors have numpy(); their device ends in CPU:0 or GPU:0.
    return x.numpy() if hasattr(x, "numpy") and "CPU" in x.device else None


def shape(x: Array) -> tuple[int | None, ...]:
    if x.shape.rank is None:
        raise ValueError("found a TensorFlow tensor of unknown rank; give it its rank with set_shape or ensure_shape")
    return tuple(x.shape)


def size(x: Array, axis: int, like: Array | None = None) -> Any:
    known = x.shape[axis]
    return tf.cast(tf.shape(x)[axis], (x if like is None else like).dtype) if known is None else known


def at_least_one(size: Any) -> Any:
    return tf.maximum(size, 1) if tf.is_tensor(size) else size or 1


def same_sizes(x: Array, axes: list[int], like: Array, like_axes: list[int], words: str) -> Array:
    unknown = [(i, j) for i, j in zip(axes, like_axes, strict=True) if x.shape[i] is None or like.shape[j] is None]
    if not unknown:
        return x
    sizes, like_sizes = tf.shape(x), tf.shape(like)
    found, wanted = tf.stack([sizes[i] for i, _ in unknown]), tf.stack([like_sizes[j] for _, j in unknown])
    with tf.control_dependencies([tf.debugging.assert_equal(found, wanted, message=words)]):
        # XLA drops assertions; an impossible shape stops it too.
        checked = tf.reshape(x, tf.where(tf.reduce_all(found == wanted), sizes, -2))
    checked.set_shape(x.shape)
    return checked


def dtype(x: Array) -> str:
    return str(x.dtype.name)


def cast(x: Array, dtype: str) -> Array:
    return tf.cast(x, dtype)


def widest(x: Array) -> str:
    return "float64"


# Arithmetic.

exp = tf.exp
expm1 = tf.math.expm1
log = tf.math.log
log1p = tf.math.log1p
power = tf.pow
abs = tf.abs
reshape = tf.reshape
expand_dims = tf.expand_dims
squeeze = tf.squeeze
stop_gradient = tf.stop_gradient


def where(condition: Array, x: Array, y: Array) -> Array:
    """tf.where, but a Python number takes the other side's dtype."""
    if not tf.is_tensor(x):
        x = tf.constant(x, y.dtype)
    if not tf.is_tensor(y):
        y = tf.constant(y, x.dtype)
    return tf.where(condition, x, y)


def sum(x: Array, axis: int | None = None, keepdims: bool = False) -> Array:
    rank = x.shape.rank
    if axis is None and not keepdims and _few(x):
        return _ratio_of_few(x, 1)
    if axis not in (None, rank - 1) and (x.shape[axis] or 0) > 256:
        # The rounding of a long sum adds up along any axis but the last.
        last = [i for i in range(rank) if i != axis] + [axis]
        total = tf.reduce_sum(tf.transpose(x, last), axis=-1)
        return tf.expand_dims(total, axis) if keepdims else total
    return tf.reduce_sum(x, axis=axis, keepdims=keepdims)


def on_host(*arrays: Array) -> bool:
    """Whether NumPy can read them where they lie, now."""
    return tf.executing_eagerly() and all("CPU" in x.device for x in arrays)


def in_forward_mode(*arrays: Array) -> bool:
    """Whether it is at work on them: it is not served by gradients of one's own."""
    return bool(pack_tangents(list(arrays)).tangents)


def recorded(result: np.ndarray, x: Array, pulled_back: Callable[[np.ndarray], np.ndarray], slope: Any) -> Array:
    """What NumPy made of `x`, for tapes: the gradient comes from `pulled_back`; from `slope`, of TensorFlow's
    operations, where it is differentiated in its turn, or traced.
    """
    tensor = tf.convert_to_tensor(result)

    def backward(upstream: Array) -> list[Array]:
        if not on_host(upstream) or record.should_record_backprop([upstream, x]):
            return [slope(upstream)]
        return [tf.convert_to_tensor(pulled_back(np.asarray(upstream)))]

    record.record_operation("lossbridge", [tensor], [x], backward)
    return tensor


def mean(x: Array) -> Array:
    count = x.shape.num_elements()
    if _few(x):
        return _ratio_of_few(x, count or 1)
    return sum(x) / at_least_one(tf.cast(tf.size(x), x.dtype) if count is None else count)


def _few(x: Array) -> bool:
    return on_host(x) and x.shape.num_elements() <= SMALL and not in_forward_mode(x)


def _ratio_of_few(x: Array, divisor: int) -> Array:
    values = np.asarray(x)
    count = values.dtype.type(divisor)
    with np.errstate(all="ignore"):
        ratio = values.sum() / count
    return recorded(
        ratio,
        x,
        lambda upstream: np.full(values.shape, upstream / count),
        lambda upstream: tf.broadcast_to(upstream / divisor, tf.shape(x)),
    )


def count(condition: Array) -> Array:
    return tf.math.count_nonzero(condition)


def max(x: Array, axis: int) -> Array:
    return tf.reduce_max(x, axis=axis, keepdims=True)


def argmax(x: Array, axis: int) -> Array:
    return tf.argmax(x, axis=axis)


def take(x: Array, labels: Array, axis: int) -> Array:
    rank = x.shape.rank
    if rank == 1:  # tf.gather's gradient would be no tensor, but IndexedSlices
        return sum(where(one_hot(labels, x, 0), x, 0.0))
    if axis != rank - 1:
        x = tf.transpose(x, [i for i in range(rank) if i != axis] + [axis])
    return tf.gather(x, labels, axis=rank - 1, batch_dims=rank - 1)


def one_hot(labels: Array, like: Array, axis: int) -> Array:
    classes = tf.range(size(like, axis, labels), dtype=labels.dtype)
    return tf.reshape(classes, [-1 if i == axis else 1 for i in range(like.shape.rank)]) == tf.expand_dims(labels, axis)


def broadcast_to(x: Array, like: Array) -> Array:
    return tf.broadcast_to(x, tf.shape(like))


# Running.

quiet = nullcontext


def value_and_grad(function: Callable[[Array], Array], x: Array) -> tuple[Array, Array]:
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = function(x)
    return value, tape.gradient(value, x, unconnected_gradients=tf.UnconnectedGradients.ZERO)


def compilers() -> Mapping[str, Callable[[Callable[..., Any]], Callable[..., Any]]]:
    return {"function": tf.function, "jit_compile": partial(tf.function, jit_compile=True)}


def devices() -> list[str]:
    kinds = {device.device_type for device in tf.config.list_logical_devices()}
    return sorted({"GPU": "cuda"}.get(kind, kind.lower()) for kind in kinds)


def place(x: np.ndarray, dtype: str, device: str) -> Array:
    with tf.device(_device_name(device)):
        return tf.constant(x, dtype=dtype)


def _device_name(device: str) -> str:
    return "GPU" if device == "cuda" else device.upper()


def to_numpy(x: Array) -> np.ndarray:
    x = np.asarray(x)
    return x.astype(np.float32) if x.dtype.name == "bfloat16" else x


def scope(dtype: str, device: str) -> AbstractContextManager[object]:
    return tf.device(_device_name(device))


def version() -> str:
    return str(tf.__version__)
