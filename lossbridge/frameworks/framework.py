"""What a framework owes the losses: the Protocol of its module, and what all such modules share. No framework."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import numpy as np

from lossbridge.maths.ops import Array, Ops, Shape
from lossbridge.reduction import neutralise
from lossbridge.spec import Request


class Arrays(Protocol):
    """How arrays come in."""

    def owns(self, x: object) -> bool: ...
    def asarray(self, x: Any, like: Array | None = None) -> Array:
        """`x` (own array, NumPy array, list, number) as an own array, on the device of `like`."""
        ...

    def concrete(self, x: Any) -> np.ndarray | None:
        """The values of `x` (own or NumPy) if they lie on the host, readable now; None if traced or on a device."""
        ...

    def shape(self, x: Array) -> Shape: ...
    def dtype(self, x: Array) -> str: ...
    def cast(self, x: Array, dtype: str) -> Array: ...
    def widest(self, x: Array) -> str:
        """The widest floating dtype that exists where `x` lies: float64, unless JAX or the device has none."""
        ...

    def quiet(self) -> AbstractContextManager[object]:
        """A context in which infinities and NaN pass without warnings."""
        ...


class ArrayOps(Arrays, Ops, Protocol):
    """`X_ops`: a framework's arithmetic, and how arrays come in."""

    # What needs no conversion: exact types of arrays, and NumPy's names of the usual dtypes.
    TYPES: tuple[type, ...]
    DTYPES: Mapping[Any, str]

    def same_sizes(self, x: Array, axes: list[int], like: Array, like_axes: list[int], words: str) -> Array:
        """`x`, with these axes held to the sizes of those of `like` when it runs, where sizes are unknown before."""
        ...


class Path(NamedTuple):
    """A way in which a framework computes the losses of a request and their gradients."""

    name: str
    losses: Callable[[Request], Array]  # of the samples; anything finite where nothing is valid
    value_words: str  # how the losses are computed, as `lossbridge.explain` says it
    gradient_words: str
    mean: Callable[[Request], Array] | None = None  # of the losses that count, without weights; where that is quicker


class Choice(NamedTuple):
    """The path that a request takes, and why not the faster ones: their names and the reasons."""

    path: Path
    why_not: tuple[tuple[str, str], ...] = ()


class Framework(Arrays, Protocol):
    """`on_X`: the paths of a framework, and how it runs."""

    name: str
    ops: ArrayOps

    def choose(self, r: Request) -> Choice:
        """The if-chain: the path of a request, as things are now (traced, on a device, differentiated)."""
        ...

    def chosen(self, request: Callable[[Array, Array], Request], target: Any, pred: Any, under: str) -> Choice:
        """The path of request(target, pred) with a gradient for pred, under one of the compilers or as things are."""
        ...

    def value_and_grad(self, function: Callable[[Array], Array], x: Array) -> tuple[Array, Array]:
        """function(x), and the gradient of its sum with respect to x."""
        ...

    # What the parity command, the benchmark and the tests need to run a framework that they know nothing of.
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


def prepared(ops: Ops, r: Request, target: Array, pred: Array) -> tuple[Array, Array]:
    """Both in the dtype of the computation, and harmless where nothing is valid. Labels stay as they are."""
    if len(ops.shape(target)) == len(ops.shape(pred)):
        target = neutralise(ops, ops.cast(target, r.dtype), r.valid, r.axis, 0.5)
    return target, neutralise(ops, ops.cast(pred, r.dtype), r.valid, r.axis, 0.5)


def by_formula(ops: Ops, r: Request, target: Array, pred: Array) -> Array:
    """The losses over ops, for the framework to differentiate."""
    target, pred = prepared(ops, r, target, pred)
    losses: Array = r.rule.value(ops, target, pred, r.axis, **r.options)[0]
    return losses
