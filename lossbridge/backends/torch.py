"""PyTorch: the primitives. Eager, torch.compile, torch.func and torch.vmap. No loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch

Array = Any

name = "torch"


# Arrays as they come in.


def owns(x: object) -> bool:
    return isinstance(x, torch.Tensor | torch.SymInt)  # SymInt: a size that is not known while tracing


def asarray(x: Any, like: Array | None = None) -> Array:
    if isinstance(x, torch.Tensor):
        return x
    device = None if like is None else like.device
    if isinstance(x, int | torch.SymInt) and not isinstance(x, bool):
        return torch.full((), x, dtype=torch.int64, device=device)  # through NumPy each value would compile anew
    if isinstance(x, float):
        return torch.tensor(x, dtype=torch.float64, device=device)
    x = np.asarray(x)
    if torch.compiler.is_compiling():
        return torch.as_tensor(x, device=device)
    if x.dtype.name == "bfloat16":  # ml_dtypes' bfloat16 is unknown to torch; float32 holds it exactly
        x = x.astype(np.float32)
    # A copy: torch shares memory with arrays, and warns of those that cannot be written to.
    return torch.tensor(x, device=device)


def concrete(x: Any) -> np.ndarray | None:
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return None
    if not isinstance(x, torch.Tensor):
        return np.asarray(x)
    if x.device.type != "cpu":
        return None
    try:
        return x.detach().numpy()
    except (RuntimeError, TypeError):  # inside torch.vmap, a fake tensor, or a dtype that NumPy does not know
        return None


def shape(x: Array) -> tuple[int | None, ...]:
    return tuple(x.shape)


def size(x: Array, axis: int, like: Array | None = None) -> Any:
    return x.shape[axis]


def at_least_one(size: Any) -> Any:
    return torch.sym_max(size, 1) if torch.compiler.is_compiling() else size or 1


def same_sizes(x: Array, axes: list[int], like: Array, like_axes: list[int], words: str) -> Array:
    return x  # shapes are always known


def dtype(x: Array) -> str:
    return str(x.dtype).removeprefix("torch.")


def cast(x: Array, dtype: str) -> Array:
    return x.to(getattr(torch, dtype))


def widest(x: Array) -> str:
    return "float32" if x.device.type == "mps" else "float64"


# Arithmetic.

exp = torch.exp
log = torch.log
log1p = torch.log1p
power = torch.pow
abs = torch.abs
where = torch.where
reshape = torch.reshape


def expm1(x: Array) -> Array:
    # torch.compile writes expm1 as exp(x) - 1 on CPUs, which has no digits near 0; this equal has them.
    return torch.tanh(0.5 * x) * (torch.exp(x) + 1) if torch.compiler.is_compiling() else torch.expm1(x)


def sum(x: Array, axis: int | None = None, keepdims: bool = False) -> Array:
    return torch.sum(x) if axis is None else torch.sum(x, dim=axis, keepdim=keepdims)


def mean(x: Array) -> Array:
    return torch.sum(x) / at_least_one(x.numel())


def count(condition: Array) -> Array:
    return torch.sum(condition)


def max(x: Array, axis: int) -> Array:
    return torch.amax(x, dim=axis, keepdim=True)


def argmax(x: Array, axis: int) -> Array:
    return torch.argmax(x, dim=axis)


def take(x: Array, labels: Array, axis: int) -> Array:
    if torch.compiler.is_compiling():  # a sum fuses with what computes x, and its gradient is no scatter into zeros
        return torch.sum(torch.where(one_hot(labels, x, axis), x, 0.0), dim=axis)
    return torch.gather(x, axis, labels.unsqueeze(axis)).squeeze(axis)


def one_hot(labels: Array, like: Array, axis: int) -> Array:
    classes = torch.arange(like.shape[axis], device=like.device)
    return classes.reshape([-1 if i == axis else 1 for i in range(like.ndim)]) == labels.unsqueeze(axis)


def expand_dims(x: Array, axis: int) -> Array:
    return x.unsqueeze(axis)


def squeeze(x: Array, axis: int) -> Array:
    return x.squeeze(axis)


def broadcast_to(x: Array, like: Array) -> Array:
    return x.expand(like.shape)


def stop_gradient(x: Array) -> Array:
    return x.detach()


# Running.

quiet = nullcontext


def value_and_grad(function: Callable[[Array], Array], x: Array) -> tuple[Array, Array]:
    traced = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    if not traced and not (torch.is_grad_enabled() and x.requires_grad):
        leaf = x.detach().requires_grad_()
        with torch.enable_grad():
            value = function(leaf)
            if not value.requires_grad:  # it does not depend on x
                return value, torch.zeros_like(x)
            (gradient,) = torch.autograd.grad(value.sum(), leaf, materialize_grads=True)
        return value.detach(), gradient

    def summed(x: Array) -> tuple[Array, Array]:  # what composes with torch.func, and with an outer graph
        value = function(x)
        return value.sum(), value

    gradient, (_, value) = torch.func.grad_and_value(summed, has_aux=True)(x)
    return value, gradient


def compilers() -> Mapping[str, Callable[[Callable[..., Any]], Callable[..., Any]]]:
    def compile(function: Callable[..., Any]) -> Callable[..., Any]:
        torch.compiler.reset()  # every function starts cold: compiled ones that share a line of code would add up
        return torch.compile(function, fullgraph=True)

    return {"compile": compile}


def devices() -> list[str]:
    return ["cpu", *(["cuda"] if torch.cuda.is_available() else []), *(["mps"] if torch.mps.is_available() else [])]


def place(x: np.ndarray, dtype: str, device: str) -> Array:
    return torch.tensor(x, dtype=getattr(torch, dtype), device=device)


def to_numpy(x: Array) -> np.ndarray:
    x = torch.as_tensor(x).detach().cpu()
    return (x.float() if x.dtype == torch.bfloat16 else x).numpy()


def scope(dtype: str, device: str) -> AbstractContextManager[object]:
    return nullcontext()


def version() -> str:
    return str(torch.__version__)
