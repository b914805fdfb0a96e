"""What a backend owes the losses, which backends there are, and which one an array belongs to.

A backend is a module of `lossbridge.backends`: functions over one framework's arrays, no loss. No framework is imported
here before one of its arrays arrives.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np

Array = Any
Shape = tuple[int | None, ...]


class Backend(Protocol):
    """The functions of a backend module. Formulas use these and the operators + - * / < > >= == != & |, nothing else.

    Shapes may hold None where the framework does not know a size yet. Axes are non-negative.
    """

    name: str

    # Arrays as they come in.
    def owns(self, x: object) -> bool: ...
    def asarray(self, x: Any, like: Array | None = None) -> Array:
        """`x` (own array, NumPy array, list, number) as an own array, on the device of `like`."""
        ...

    def concrete(self, x: Any) -> np.ndarray | None:
        """The values of `x` (own or NumPy) if they lie on the host, readable now; None if traced or on a device."""
        ...

    def shape(self, x: Array) -> Shape: ...
    def size(self, x: Array, axis: int, like: Array | None = None) -> Any:
        """Length of an axis: an int where known, else a scalar of the dtype of `like` (without one, of `x`)."""
        ...

    def at_least_one(self, size: Any) -> Any:
        """max(size, 1), of a size or a product of sizes."""
        ...

    def same_sizes(self, x: Array, axes: list[int], like: Array, like_axes: list[int], words: str) -> Array:
        """`x`, with these axes held to the sizes of those of `like` when it runs, where sizes are unknown before."""
        ...

    def dtype(self, x: Array) -> str:
        """NumPy's name of the dtype: float32, bfloat16, int64, bool, …"""
        ...

    def cast(self, x: Array, dtype: str) -> Array: ...
    def widest(self, x: Array) -> str:
        """The widest floating dtype that exists where `x` lies: float64, unless JAX or the device has none."""
        ...

    # Arithmetic.
    def exp(self, x: Array) -> Array: ...
    def expm1(self, x: Array) -> Array: ...
    def log(self, x: Array) -> Array: ...
    def log1p(self, x: Array) -> Array: ...
    def power(self, x: Array, exponent: float) -> Array: ...
    def abs(self, x: Array) -> Array: ...
    def where(self, condition: Array, x: Array, y: Array) -> Array:
        """x where true, else y; one of them may be a Python number, which takes the other's dtype."""
        ...

    def sum(self, x: Array, axis: int | None = None, keepdims: bool = False) -> Array: ...
    def mean(self, x: Array) -> Array:
        """Of all entries; 0 of none."""
        ...

    def count(self, condition: Array) -> Array:
        """How many entries are true, counted in integers."""
        ...

    def max(self, x: Array, axis: int) -> Array:
        """Largest along the axis, which stays, with size 1. Of no gradient: for what is not differentiated."""
        ...

    def argmax(self, x: Array, axis: int) -> Array: ...
    def take(self, x: Array, labels: Array, axis: int) -> Array:
        """x[..., labels, ...] along `axis`, which goes away. Labels lie in range."""
        ...

    def one_hot(self, labels: Array, like: Array, axis: int) -> Array:
        """Boolean, of `like`'s shape: true where the index along `axis` is the label."""
        ...

    def expand_dims(self, x: Array, axis: int) -> Array: ...
    def squeeze(self, x: Array, axis: int) -> Array:
        """`x` without this axis, of size 1."""
        ...

    def reshape(self, x: Array, shape: tuple[int, ...]) -> Array: ...
    def broadcast_to(self, x: Array, like: Array) -> Array: ...
    def stop_gradient(self, x: Array) -> Array: ...

    # Running.
    def quiet(self) -> AbstractContextManager[object]:
        """A context in which infinities and NaN pass without warnings."""
        ...

    def value_and_grad(self, function: Callable[[Array], Array], x: Array) -> tuple[Array, Array]:
        """function(x), and the gradient of its sum with respect to x."""
        ...

    # What the parity command and the tests need to run a backend that they know nothing of.
    def compilers(self) -> Mapping[str, Callable[[Callable[..., Any]], Callable[..., Any]]]:
        """The framework's ways to compile a function, by name."""
        ...

    def devices(self) -> list[str]:
        """Kinds of device present: cpu, cuda, …"""
        ...

    def place(self, x: np.ndarray, dtype: str, device: str) -> Array:
        """A NumPy array as an own array of that dtype on that device."""
        ...

    def to_numpy(self, x: Array) -> np.ndarray:
        """Back to NumPy; bfloat16 as float32."""
        ...

    def scope(self, dtype: str, device: str) -> AbstractContextManager[object]:
        """A context in which this dtype can exist (JAX has no float64 outside one) and this device computes."""
        ...

    def version(self) -> str: ...


# One line a backend. Literal imports inside functions: torch.compile can trace them, importlib it cannot.


def _numpy() -> Backend:
    from lossbridge.backends import numpy

    return numpy


def _torch() -> Backend:
    from lossbridge.backends import torch

    return torch


def _tensorflow() -> Backend:
    from lossbridge.backends import tensorflow

    return tensorflow


def _jax() -> Backend:
    from lossbridge.backends import jax

    return jax


# The key is also the name of the framework's top-level module. NumPy stands last: it also takes lists and scalars.
BACKENDS: dict[str, Callable[[], Backend]] = {
    "torch": _torch,
    "tensorflow": _tensorflow,
    "jax": _jax,
    "numpy": _numpy,
}

_backend_of_type: dict[type, Backend] = {}  # a cache: a type's backend never changes


def backend_of(x: object, name: str = "y_pred") -> Backend:
    """The backend that an array belongs to; lists and Python numbers are NumPy's.

    Exact types are cached, because a JAX tracer's type is no subclass of jax.Array although isinstance says so.
    """
    backend = _backend_of_type.get(type(x))
    if backend is not None:
        return backend
    for framework, load in BACKENDS.items():
        if framework in sys.modules and load().owns(x):
            _backend_of_type[type(x)] = load()
            return load()
    raise TypeError(
        f"{name} is {type(x).__module__}.{type(x).__qualname__}, which is no array of {', '.join(sorted(BACKENDS))}; "
        "pass an array, a list or a number"
    )


# Faster ways to the same per-sample losses, by the formula's name. A kernel is called as
#
#     kernel(plain, target, pred, axis, kept, **what the formula takes by name)
#
# with the arrays as they came (uncast; labels are indices, and 0 where nothing is kept), `kept` false where an entry
# counts nothing whatever stands there, or None, and `plain(target, pred)`, the formula on the same arrays, which it
# differentiates where more than a first derivative is asked for. It returns per-sample losses in the dtype of the
# computation, any finite number where nothing is kept, or None where the formula is to be used. axis None: every entry
# is a sample.
Kernel = Callable[..., Array | None]


def _torch_kernels() -> Mapping[str, Kernel]:
    from lossbridge.kernels import torch

    return torch.KERNELS


def _tensorflow_kernels() -> Mapping[str, Kernel]:
    from lossbridge.kernels import tensorflow

    return tensorflow.KERNELS


def _jax_kernels() -> Mapping[str, Kernel]:
    from lossbridge.kernels import jax

    return jax.KERNELS


def _numpy_kernels() -> Mapping[str, Kernel]:
    from lossbridge.kernels import numpy

    return numpy.KERNELS


# Backends without a line here use the formulas.
KERNELS: dict[str, Callable[[], Mapping[str, Kernel]]] = {
    "torch": _torch_kernels,
    "tensorflow": _tensorflow_kernels,
    "jax": _jax_kernels,
    "numpy": _numpy_kernels,
}


def kernels_of(b: Backend) -> Mapping[str, Kernel]:
    load = KERNELS.get(b.name)
    return {} if load is None else load()


# Whole losses of a few numbers, where the checks and the steps of the usual road take several times as long as the
# arithmetic. By the formula's name; without weights, masks and arrays of options. A shortcut is called as
#
#     shortcut(y_true, y_pred, axis, ignore_class, reduction, **options)
#
# with what the user gave, and returns the result, or None where it has any doubt: then the usual road refuses, or does.
Shortcut = Callable[..., Array | None]


def _torch_shortcuts() -> Mapping[str, Shortcut]:
    from lossbridge.kernels import torch_small

    return torch_small.SHORTCUTS


SHORTCUTS: dict[str, Callable[[], Mapping[str, Shortcut]]] = {"torch": _torch_shortcuts}


def shortcuts_of(b: Backend) -> Mapping[str, Shortcut]:
    load = SHORTCUTS.get(b.name)
    return {} if load is None else load()
