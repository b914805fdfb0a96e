"""JAX: the primitives. Eager and under jit, grad, vmap, jacfwd and their compositions. No loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = Any

name = "jax"


# Arrays as they come in.


def owns(x: object) -> bool:
    return isinstance(x, jax.Array)


def asarray(x: Any, like: Array | None = None) -> Array:
    if isinstance(x, jax.Array):
        return x
    x = np.asarray(x)
    if x.dtype.name in ("int64", "uint64") and not jax.config.jax_enable_x64:
        x = np.clip(x, -(2**31), 2**31 - 1).astype(np.int32)  # JAX would let them wrap round
    return jnp.asarray(x)


def concrete(x: Any) -> np.ndarray | None:
    if not isinstance(x, jax.Array):
        return np.asarray(x)
    if isinstance(x, jax.core.Tracer) or not x.is_fully_addressable:
        return None
    return np.asarray(x) if all(device.platform == "cpu" for device in x.devices()) else None


def shape(x: Array) -> tuple[int | None, ...]:
    return tuple(x.shape)


def size(x: Array, axis: int, like: Array | None = None) -> Any:
    return x.shape[axis]


def at_least_one(size: int) -> int:
    return size or 1


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
    return jnp.sum(x) / at_least_one(x.size)


def max(x: Array, axis: int) -> Array:
    return jnp.max(x, axis=axis, keepdims=True)


def argmax(x: Array, axis: int) -> Array:
    return jnp.argmax(x, axis=axis)


def take(x: Array, labels: Array, axis: int) -> Array:
    return jnp.take_along_axis(x, jnp.expand_dims(labels, axis), axis=axis, mode="promise_in_bounds").squeeze(axis)


def one_hot(labels: Array, like: Array, axis: int) -> Array:
    return jax.lax.broadcasted_iota(labels.dtype, like.shape, axis) == jnp.expand_dims(labels, axis)


def broadcast_to(x: Array, like: Array) -> Array:
    return jnp.broadcast_to(x, like.shape)


# Running.

quiet = nullcontext


def value_and_grad(function: Callable[[Array], Array], x: Array) -> tuple[Array, Array]:
    def summed(x: Array) -> tuple[Array, Array]:
        value = function(x)
        return value.sum(), value

    (_, value), gradient = jax.value_and_grad(summed, has_aux=True)(x)
    return value, gradient


def compilers() -> Mapping[str, Callable[[Callable[..., Any]], Callable[..., Any]]]:
    return {"jit": jax.jit}


def devices() -> list[str]:
    kinds = {device.platform for device in jax.devices()} | {"cpu"}
    return sorted({"gpu": "cuda"}.get(kind, kind) for kind in kinds)


def place(x: np.ndarray, dtype: str, device: str) -> Array:
    return jax.device_put(jnp.asarray(x, dtype=dtype), jax.devices(device)[0])


def to_numpy(x: Array) -> np.ndarray:
    x = np.asarray(x)
    return x.astype(np.float32) if x.dtype.name == "bfloat16" else x


def scope(dtype: str, device: str) -> AbstractContextManager[object]:
    return jax.enable_x64(True) if dtype in ("float64", "int64") else nullcontext()


def version() -> str:
    return str(jax.__version__)
