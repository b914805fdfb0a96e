"""TensorFlow: arithmetic, conversion of arrays, and the private interfaces that are used.

Eager, in a tf.function, under XLA, and with sizes that are unknown (None).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.autograph.core import ag_ctx, config, converter
from tensorflow.python.autograph.impl.api import converted_call
from tensorflow.python.eager import record
from tensorflow.python.eager.forwardprop_util import pack_tangents
from tensorflow.python.framework.ops import EagerTensor

from lossbridge.frameworks.framework import Unreadable, host_array
from lossbridge.maths.ops import Array, Shape

# ---- Private interfaces of TensorFlow, tried with 2.21; test_only_tensorflow.py tests the positive answer. ----

is_recorded = record.should_record_backprop  # whether a tape watches one of these tensors
record_operation = record.record_operation


def in_forward_mode(*arrays: Array) -> bool:
    """Whether a tf.autodiff.ForwardAccumulator watches them; it ignores custom gradients."""
    return bool(pack_tangents(list(arrays)).tangents)


def from_numpy(x: np.ndarray, like: Array) -> Array:
    """`x` as a tensor on the device of `like`, without a copy where it is aligned to 64 bytes: nobody may write to it.

    tf.convert_to_tensor always copies, and takes twice as long for a scalar.
    """
    return EagerTensor(x, like.device, None)


def in_branch_of_cond() -> bool:
    """Whether a gradient may be taken where no custom gradient of the branch is known, nor a compiled function's."""
    graph = tf.compat.v1.get_default_graph()
    while graph is not None and type(graph).__name__ != "CondBranchFuncGraph":
        graph = getattr(graph, "outer_graph", None)
    return graph is not None


# AutoGraph rewrites no function of lossbridge. (Until this is imported, request.left_by_autograph sees to it.)
config.CONVERSION_RULES = (config.DoNotConvert("lossbridge"), *config.CONVERSION_RULES)


def call_rewritten(function: Callable[[Any], Any], x: Any) -> Any:
    """function(x), where AutoGraph may rewrite this function of lossbridge, because it calls one of the user's."""
    now = ag_ctx.control_status_ctx().options
    features = getattr(now, "optional_features", now)
    options = converter.ConversionOptions(recursive=True, user_requested=True, optional_features=features)
    return converted_call(function, (x,), None, options=options)


# ---- End of the private interfaces. ----

TYPES, LAYOUT = (EagerTensor,), None
DTYPES = {
    getattr(tf, name): name
    for name in ("float32", "bfloat16", "float16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool")
}
quiet = nullcontext

# Up to so many entries a sum takes less time than the start of TensorFlow's operations for it and its gradient.
SMALL = 2**14


OF_UNKNOWN_RANK = "has an unknown rank; say how many axes it has, as with tf.ensure_shape(x, [None, None]) for two"


# Conversion and inspection of arrays.


def owns(x: object) -> bool:
    return isinstance(x, tf.Tensor | tf.Variable)


def asarray(x: Any, like: Array | None = None) -> Array:
    if isinstance(x, tf.Tensor | tf.Variable):
        if x.shape.rank is None:
            raise Unreadable(ValueError, OF_UNKNOWN_RANK)
        return tf.convert_to_tensor(x)
    return tf.convert_to_tensor(host_array(x))  # through NumPy, so that Python floats keep their 53 bits


def concrete(x: Any) -> np.ndarray | None:
    if not isinstance(x, tf.Tensor | tf.Variable):
        return host_array(x)
    x = tf.convert_to_tensor(x)
    # Only eager tensors have numpy(); their device ends in CPU:0 or GPU:0.
    return x.numpy() if hasattr(x, "numpy") and "CPU" in x.device else None


def constant(x: Any) -> np.ndarray | None:
    x = tf.convert_to_tensor(x) if owns(x) else asarray(x)
    return None if is_recorded([x]) or in_forward_mode(x) else concrete(x)


def shape(x: Array) -> Shape:
    if x.shape.rank is None:
        raise ValueError(f"a TensorFlow tensor {OF_UNKNOWN_RANK}")
    return tuple(x.shape)


def size(x: Array, axis: int, like: Array | None = None) -> Any:
    known = x.shape[axis]
    return tf.cast(tf.shape(x)[axis], (x if like is None else like).dtype) if known is None else known


def same_sizes(x: Array, axes: list[int], like: Array, like_axes: list[int], words: str) -> Array:
    unknown = [(i, j) for i, j in zip(axes, like_axes, strict=True) if x.shape[i] is None or like.shape[j] is None]
    if not unknown:
        return x
    sizes, like_sizes = tf.shape(x), tf.shape(like)
    found, expected = tf.stack([sizes[i] for i, _ in unknown]), tf.stack([like_sizes[j] for _, j in unknown])
    with tf.control_dependencies([tf.debugging.assert_equal(found, expected, message=words)]):
        # XLA drops assertions, but raises for an impossible shape.
        checked = tf.reshape(x, tf.where(tf.reduce_all(found == expected), sizes, -2))
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
        # Along axes other than the last the rounding error of a sum grows with its length.
        last = [i for i in range(rank) if i != axis] + [axis]
        total = tf.reduce_sum(tf.transpose(x, last), axis=-1)
        return tf.expand_dims(total, axis) if keepdims else total
    return tf.reduce_sum(x, axis=axis, keepdims=keepdims)


def on_host(*arrays: Array) -> bool:
    """Whether the call is eager and NumPy can read them without a copy."""
    return tf.executing_eagerly() and all("CPU" in x.device for x in arrays)


def recorded(result: np.ndarray, x: Array, pulled_back: Callable[[np.ndarray], np.ndarray], gradient: Any) -> Array:
    """The result of NumPy's operations on `x`, as a tensor with a gradient.

    The gradient is computed by `pulled_back`, or by `gradient`, of TensorFlow's operations, where it is itself
    differentiated or traced.
    """
    tensor = from_numpy(result, x)

    def backward(upstream: Array) -> list[Array]:
        if not on_host(upstream) or is_recorded([upstream, x]):
            return [gradient(upstream)]
        return [from_numpy(pulled_back(np.asarray(upstream)), x)]

    record_operation("lossbridge", [tensor], [x], backward)
    return tensor


def mean(x: Array) -> Array:
    count = x.shape.num_elements()
    if _few(x):
        return _ratio_of_few(x, count or 1)
    return sum(x) / (tf.maximum(tf.cast(tf.size(x), x.dtype), 1) if count is None else count or 1)


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
    if rank == 1:  # the gradient of tf.gather would be IndexedSlices, not a tensor
        return sum(where(one_hot(labels, x, 0), x, 0.0))
    if axis != rank - 1:
        x = tf.transpose(x, [i for i in range(rank) if i != axis] + [axis])
    return tf.gather(x, labels, axis=rank - 1, batch_dims=rank - 1)


def put(x: Array, labels: Array, values: Array, axis: int) -> Array:
    if x.shape.rank != 2 or axis != 1:
        return where(one_hot(labels, x, axis), values, x)
    return tf.tensor_scatter_nd_update(x, _places(labels), values[:, 0])


def sum_but(x: Array, labels: Array, axis: int) -> Array:
    if x.shape.rank != 2 or axis != 1:
        return sum(where(one_hot(labels, x, axis), 0.0, x), axis)
    return sum(tf.tensor_scatter_nd_update(x, _places(labels), tf.zeros_like(x[:, 0])), 1)


def _places(labels: Array) -> Array:
    """The (row, column) of each row's label, as int32: tf.vectorized_map converts no scatter by int64."""
    return tf.stack([tf.range(tf.size(labels)), tf.cast(labels, tf.int32)], axis=1)


def lookup(values: Array, labels: Array) -> Array:
    return tf.gather(tf.reshape(values, [-1]), labels)


def one_hot(labels: Array, like: Array, axis: int) -> Array:
    classes = tf.range(size(like, axis, labels), dtype=labels.dtype)
    return tf.reshape(classes, [-1 if i == axis else 1 for i in range(like.shape.rank)]) == tf.expand_dims(labels, axis)


def stack(arrays: Sequence[Array]) -> Array:
    return tf.stack(arrays, -1)


def column(x: Array, which: int) -> Array:
    return x[..., which]


def gather(x: Array, indices: Array, axis: int) -> Array:
    to, back = _last(x.shape.rank, axis)
    found = tf.gather(tf.transpose(x, to), tf.transpose(indices, to), axis=-1, batch_dims=x.shape.rank - 1)
    return tf.transpose(found, back)


def among(indices: Array, like: Array, axis: int) -> Array:
    to, back = _last(like.shape.rank, axis)
    rows, sizes = tf.transpose(indices, to), tf.shape(tf.transpose(like, to))
    kept = tf.shape(rows)[-1]
    places = tf.cast(tf.reshape(rows, [-1, kept]), tf.int32)
    count = tf.shape(places)[0]
    places = tf.stack([tf.broadcast_to(tf.range(count)[:, None], [count, kept]), places], axis=-1)
    found = tf.scatter_nd(tf.reshape(places, [-1, 2]), tf.ones([count * kept], tf.int32), [count, sizes[-1]])
    return tf.transpose(tf.reshape(found > 0, sizes), back)


def _last(rank: int, axis: int) -> tuple[list[int], list[int]]:
    """The permutation that brings an axis to the end, and the one back."""
    to = [i for i in range(rank) if i != axis] + [axis]
    return to, [to.index(i) for i in range(rank)]


def concatenate(x: Array, y: Array, axis: int) -> Array:
    return tf.concat([x, y], axis)


def matmul(x: Array, y: Array, transpose: bool) -> Array:
    return tf.linalg.matmul(x, y, transpose_b=transpose)


def reshape_as(x: Array, like: Array) -> Array:
    return tf.ensure_shape(tf.reshape(x, tf.shape(like)), like.shape)


def broadcast_to(x: Array, like: Array) -> Array:
    return tf.broadcast_to(x, tf.shape(like))
