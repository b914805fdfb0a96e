"""JAX: arithmetic, and conversion of arrays. Eager and under jit, grad, vmap, jacfwd and their compositions."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lossbridge.frameworks.framework import host_array
from lossbridge.maths.ops import Array, Shape

TYPES: tuple[type, ...] = ()  # the types of tracers are no subclasses of jax.Array
LAYOUT = None
DTYPES = {np.dtype(name): name for name in ("float32", "bfloat16", "float16", "float64", "int64", "int32", "bool")}
quiet = nullcontext


# Conversion and inspection of arrays.


def owns(x: object) -> bool:
    return isinstance(x, jax.Array)


def asarray(x: Any, like: Array | None = None) -> Array:
    if isinstance(x, jax.Array):
        return x
    x = host_array(x)
    if x.dtype.name in ("int64", "uint64") and not jax.config.jax_enable_x64:
        x = np.clip(x, -(2**31), 2**31 - 1).astype(np.int32)  # in JAX they would wrap round
    return jnp.asarray(x)


def concrete(x: Any) -> np.ndarray | None:
    if not isinstance(x, jax.Array):
        return host_array(x)
    if isinstance(x, jax.core.Tracer) or not x.is_fully_addressable:
        return None
    return np.asarray(x) if all(device.platform == "cpu" for device in x.devices()) else None


constant = concrete


def shape(x: Array) -> Shape:
    return tuple(x.shape)


def size(x: Array, axis: int, like: Array | None = None) -> Any:
    return x.shape[axis]


def same_sizes(x: Array, axes: list[int], like: Array, like_axes: list[int], words: str) -> Array:
    return x  # shapes are always known


def dtype(x: Array) -> str:
    return str(x.dtype.name)


def cast(x: Array, dtype: str) -> Array:
    return x.astype(dtype)


def widest(x: Array) -> str:
    return "float64" if jax.config.jax_enable_x64 else "float32"


# Arithmetic.

exp = jnp.exp
expm1 = jnp.expm1
log = jnp.log
log1p = jnp.log1p
power = jnp.power
abs = jnp.abs
where = jnp.where
reshape = jnp.reshape
expand_dims = jnp.expand_dims
squeeze = jnp.squeeze
count = jnp.count_nonzero
stop_gradient = jax.lax.stop_gradient


def sum(x: Array, axis: int | None = None, keepdims: bool = False) -> Array:
    return jnp.sum(x, axis=axis, keepdims=keepdims)


def mean(x: Array) -> Array:
    return jnp.sum(x) / (x.size or 1)


def max(x: Array, axis: int) -> Array:
    return jnp.max(x, axis=axis, keepdims=True)


def argmax(x: Array, axis: int) -> Array:
    return jnp.argmax(x, axis=axis)


def take(x: Array, labels: Array, axis: int) -> Array:
    if jax.typeof(x).sharding.spec[axis] is not None:  # split over devices, by its type: no class is gathered
        return sum(jnp.where(one_hot(labels, x, axis), x, 0), axis)
    return jnp.take_along_axis(x, jnp.expand_dims(labels, axis), axis=axis, mode="promise_in_bounds").squeeze(axis)


def put(x: Array, labels: Array, values: Array, axis: int) -> Array:
    return jnp.where(one_hot(labels, x, axis), values, x)


def sum_but(x: Array, labels: Array, axis: int) -> Array:
    """Σ x·[c ≠ label] as a product, which XLA on a CPU fuses into the sum; the result of a `where` it would store.

    Classes are counted in float32, which XLA fuses too; float64 it would store.
    """
    classes = jax.lax.broadcasted_iota("float32", x.shape, axis).astype(x.dtype)
    differs = jnp.minimum(jnp.abs(classes - jnp.expand_dims(labels, axis).astype(x.dtype)), 1)
    return jnp.sum(x * differs, axis)


def lookup(values: Array, labels: Array) -> Array:
    values = values.reshape(-1)
    over = jax.typeof(labels).sharding
    if not any(over.spec) and jax.typeof(values).sharding.spec[0] is None:
        return values[labels]
    values = jax.sharding.reshard(values, jax.sharding.PartitionSpec(None))  # a gather takes none that are split
    return values.at[labels].get(out_sharding=over, mode="promise_in_bounds")


def one_hot(labels: Array, like: Array, axis: int) -> Array:
    return jax.lax.broadcasted_iota(labels.dtype, like.shape, axis) == jnp.expand_dims(labels, axis)


def stack(arrays: Sequence[Array]) -> Array:
    return jnp.stack(arrays, -1)


def column(x: Array, which: int) -> Array:
    return x[..., which]


def gather(x: Array, indices: Array, axis: int) -> Array:
    return jnp.take_along_axis(x, indices, axis=axis, mode="promise_in_bounds")


def among(indices: Array, like: Array, axis: int) -> Array:
    return jnp.put_along_axis(jnp.zeros(like.shape, bool), indices, True, axis=axis, inplace=False)


def concatenate(x: Array, y: Array, axis: int) -> Array:
    return jnp.concatenate([x, y], axis=axis)


def matmul(x: Array, y: Array, transpose: bool) -> Array:
    return x @ (y.T if transpose else y)


def reshape_as(x: Array, like: Array) -> Array:
    return x.reshape(like.shape)


def broadcast_to(x: Array, like: Array) -> Array:
    return jnp.broadcast_to(x, like.shape)
