"""The Protocol of a framework's module, and what all such modules share. No framework."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import numpy as np

from lossbridge.maths.elementary import in_domain, rounding
from lossbridge.maths.ops import ANYWHERE, Array, Domain, Ops, Shape
from lossbridge.reduction import neutralise
from lossbridge.spec import Request


class Arrays(Protocol):
    """Conversion and inspection of arrays."""

    def owns(self, x: object) -> bool: ...
    def asarray(self, x: Any, like: Array | None = None) -> Array:
        """`x` (own array, NumPy array, list, number) as an own array, on the device of `like`. Raises Unreadable."""
        ...

    def concrete(self, x: Any) -> np.ndarray | None:
        """The values of `x` (own or NumPy); None if it is traced or not on the host."""
        ...

    def shape(self, x: Array) -> Shape: ...
    def dtype(self, x: Array) -> str: ...
    def cast(self, x: Array, dtype: str) -> Array: ...
    def widest(self, x: Array) -> str:
        """The widest floating dtype on the device of `x`: float64, unless JAX or the device lacks it."""
        ...

    def quiet(self) -> AbstractContextManager[object]:
        """A context in which infinities and NaN pass without warnings."""
        ...


class ArrayOps(Arrays, Ops, Protocol):
    """`X_ops`: a framework's arithmetic, with conversion and inspection of arrays."""

    # Arrays that need no conversion: their exact types, NumPy's names of the common dtypes, and their `layout`, where
    # arrays of one type have several.
    TYPES: tuple[type, ...]
    DTYPES: Mapping[Any, str]
    LAYOUT: Any

    def constant(self, x: Any) -> np.ndarray | None:
        """The values of `x`, as `concrete`, if nothing differentiates or records it either."""
        ...

    def same_sizes(self, x: Array, axes: list[int], like: Array, like_axes: list[int], words: str) -> Array:
        """`x`, with a check at run time that these axes have the sizes of `like`'s, if they are unknown before."""
        ...


class Path(NamedTuple):
    """A way in which a framework computes the losses of a request and their gradients."""

    name: str
    # Of a Request: per-sample losses; any finite number where not valid. Of a `linear_blocks.Linear`: its result.
    losses: Callable[[Any], Array]
    value_words: str  # how the losses are computed, as `lossbridge.explain` says it
    gradient_words: str
    ratio: Callable[[Request], Array] | None = None  # the whole of `reduction.reduce`, if faster


class Choice(NamedTuple):
    """The path that a request takes, and why not the faster ones: their names and the reasons."""

    path: Path
    why_not: tuple[tuple[str, str], ...] = ()


class Framework(Arrays, Protocol):
    """`on_X`: the paths of a framework, and how functions run and compile on it."""

    name: str
    ops: ArrayOps

    def choose(self, r: Request) -> Choice:
        """The if-chain: the path of a request in the current context (traced, on a device, differentiated)."""
        ...

    def chosen(self, request: Callable[[Array, Array], Request], target: Any, pred: Any, under: str) -> Choice:
        """The path of request(target, pred) with a gradient for pred, under a compiler or in the current context."""
        ...

    def value_and_grad(self, function: Callable[[Any], Array], x: Any) -> tuple[Array, Any]:
        """function(x), and the gradient of its sum with respect to x, which is an array or a tuple of arrays."""
        ...

    def choose_linear(self, call: Any, under: str = "") -> Choice:
        """The path of a `linear_blocks.Linear`, under a compiler or in the current context: it gives the loss, or
        the losses, (N,), differentiable in all its floats."""
        ...

    # Classes split over devices: a module of `meeting(split, hidden)`, an `agreement.Meeting`, and of
    # `local(call)`, which finds the group in the arrays. Or None.
    shards: Any

    # What the parity command, the benchmark and the tests need to run any framework.
    def compilers(self) -> Mapping[str, Callable[[Callable[..., Any]], Callable[..., Any]]]:
        """The framework's ways to compile a function on this machine, by name."""
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
        """A context in which this dtype exists (JAX has float64 only inside one) and this device computes."""
        ...

    def version(self) -> str: ...


class Unreadable(ValueError):
    """No array can be made of an argument. Holds the error to raise, and its text after the argument's name."""


def host_array(x: Any) -> np.ndarray:
    """An array of NumPy, a list, a number, or a column of pandas or polars, as a NumPy array in native byte order."""
    if type(x) is not np.ndarray:
        x = np.asarray(_numbers_of(x) if is_column(x) else x)
    if x.dtype.char in "gG":  # some frameworks would round it without a word
        words = f"has dtype {x.dtype}, and losses are computed in float64 at most; convert it to float64"
        raise Unreadable(TypeError, words)
    return x if x.dtype.isnative else x.astype(x.dtype.newbyteorder("="))


def is_column(x: object) -> bool:
    """Whether it is a Series or a DataFrame of pandas or polars."""
    return type(x).__name__ in ("Series", "DataFrame") and type(x).__module__.partition(".")[0] in ("pandas", "polars")


def _numbers_of(x: Any) -> np.ndarray:
    """Their NumPy array. What a nullable column lacks is no number, and NumPy would make NaN or an object of it."""
    if type(x).__name__ == "DataFrame":
        columns = x.get_columns() if hasattr(x, "get_columns") else [x.iloc[:, i] for i in range(x.shape[1])]
        return np.stack([_numbers_of(column) for column in columns], 1) if columns else np.empty(x.shape)
    if isinstance(x.dtype, np.dtype):
        return np.asarray(x)
    missing = np.asarray(x.is_null() if hasattr(x, "is_null") else x.isna())
    if missing.any():
        raise Unreadable(
            ValueError,
            f"misses a value at row {missing.argmax()}, and what is missing is no number; fill or drop it, or give a "
            "number there and leave it out with mask=",
        )
    number = getattr(x.dtype, "numpy_dtype", None)  # of pandas' nullable ones
    found = np.asarray(x.to_numpy() if number is None else x.to_numpy(dtype=number))
    if found.dtype.kind not in "fiub":
        words = f"is a column of {x.dtype}, which holds no real numbers; convert it to numbers"
        raise Unreadable(TypeError, words)
    return found


def prepared(ops: Ops, r: Request, target: Array, pred: Array) -> tuple[Array, Array]:
    """Both in the dtype of the computation, 0.5 where not valid, NaN outside their domain. Labels are unchanged."""
    domains = r.rule.domains if r.domain else ANYWHERE
    if len(ops.shape(target)) == len(ops.shape(pred)):
        target = ready(ops, target, r.dtype, domains[0], r.axis, r.valid)
    return target, ready(ops, pred, r.dtype, domains[1], r.axis, r.valid)


def ready(ops: Ops, x: Array, dtype: str, domain: Domain, axis: int | None, valid: Array | None) -> Array:
    """`x` in this dtype, 0.5 where not valid, NaN outside its domain."""
    slack = rounding(ops.dtype(x))
    return in_domain(ops, neutralise(ops, ops.cast(x, dtype), valid, axis, 0.5), domain, axis, slack)


def by_formula(ops: Ops, r: Request, target: Array, pred: Array) -> Array:
    """The losses by the formula, which the framework differentiates."""
    target, pred = prepared(ops, r, target, pred)
    losses: Array = r.rule.value(ops, target, pred, r.axis, **r.options)[0]
    return losses
