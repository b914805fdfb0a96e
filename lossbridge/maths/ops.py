"""What the formulas need of a framework: the Protocol of its arithmetic. No formula and no framework.

A framework's module has these functions under these names. Formulas use them and the operators + - * / < > >= == != &
|, nothing else. Axes are non-negative; shapes may hold None where the framework does not know a size yet.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

Array = Any  # of NumPy, PyTorch, TensorFlow or JAX
Shape = tuple[int | None, ...]

# What a value function keeps for the gradients: a few numbers a row.
Residuals = tuple[Array, ...]
# With respect to the target and the predictions. None where none is needed.
Gradients = tuple[Array | None, Array | None]


class Ops(Protocol):
    """The arithmetic of one framework."""

    # Sizes and dtypes.
    def shape(self, x: Array) -> Shape: ...
    def size(self, x: Array, axis: int, like: Array | None = None) -> Any:
        """Length of an axis: an int where known, else a scalar of the dtype of `like` (without one, of `x`)."""
        ...

    def dtype(self, x: Array) -> str:
        """NumPy's name of the dtype: float32, bfloat16, int64, bool, …"""
        ...

    def cast(self, x: Array, dtype: str) -> Array: ...

    # Element by element.
    def exp(self, x: Array) -> Array: ...
    def expm1(self, x: Array) -> Array: ...
    def log(self, x: Array) -> Array: ...
    def log1p(self, x: Array) -> Array: ...
    def power(self, x: Array, exponent: float) -> Array: ...
    def abs(self, x: Array) -> Array: ...
    def where(self, condition: Array, x: Array, y: Array) -> Array:
        """x where true, else y; one of them may be a Python number, which takes the other's dtype."""
        ...

    def stop_gradient(self, x: Array) -> Array: ...

    # Sums.
    def sum(self, x: Array, axis: int | None = None, keepdims: bool = False) -> Array: ...
    def mean(self, x: Array) -> Array:
        """Of all entries; 0 of none."""
        ...

    def count(self, condition: Array) -> Array:
        """How many entries are true, counted in integers."""
        ...

    def max(self, x: Array, axis: int) -> Array:
        """Largest along the axis, which stays, with size 1. Without a gradient."""
        ...

    # One class of each row. Labels lie in range.
    def argmax(self, x: Array, axis: int) -> Array: ...
    def take(self, x: Array, labels: Array, axis: int) -> Array:
        """x[..., labels, ...] along `axis`, which goes away."""
        ...

    def put(self, x: Array, labels: Array, values: Array, axis: int) -> Array:
        """`x` with the entry of each row's label replaced. Without a gradient."""
        ...

    def sum_but(self, x: Array, labels: Array, axis: int) -> Array:
        """The sum along `axis`, which goes away, of all entries but the label's, which is finite."""
        ...

    def lookup(self, values: Array, labels: Array) -> Array:
        """values[labels] of one number a class, whatever the shape they are in."""
        ...

    def one_hot(self, labels: Array, like: Array, axis: int) -> Array:
        """Boolean, of `like`'s shape: true where the index along `axis` is the label."""
        ...

    # Shapes.
    def expand_dims(self, x: Array, axis: int) -> Array: ...
    def squeeze(self, x: Array, axis: int) -> Array:
        """`x` without this axis, of size 1."""
        ...

    def reshape(self, x: Array, shape: tuple[int, ...]) -> Array: ...
    def broadcast_to(self, x: Array, like: Array) -> Array: ...


class Rule(NamedTuple):
    """A loss of a sample, and its derivative where automatic differentiation is slower or less exact.

    value(ops, target, pred, axis, **options) -> losses, residuals
    gradients(ops, target, pred, axis, residuals, needs_input_grad, **options) -> gradients

    with target and predictions in the dtype of the computation, `needs_input_grad` for the two of them, and losses of
    pred's shape without `axis`; axis None: every entry is a sample. A value can be differentiated any number of times
    by the framework itself; gradients cannot.
    """

    name: str
    value: Callable[..., tuple[Array, Residuals]]
    gradients: Callable[..., Gradients] | None = None
    options: tuple[str, ...] = ()  # what both take by name
