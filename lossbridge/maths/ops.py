"""The arithmetic that the formulas need of a framework, as a Protocol. No formula and no framework.

A framework's module has these functions under these names. Formulas use only them and the operators + - * / < > >= ==
!= & |. Axes are non-negative; a size in a shape is None where the framework does not know it yet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Protocol

Array = Any  # of NumPy, PyTorch, TensorFlow or JAX, which have no type in common; shapes are in the docstrings
Shape = tuple[int | None, ...]
Number = Array | float  # an option: a Python number, or an array of shape (), whose value may be traced

# What a value function saves for the gradients: arrays of size 1 along the axis.
Residuals = tuple[Array, ...]
# With respect to the target and the predictions, of their shapes; None where not needed.
Gradients = tuple[Array | None, Array | None]


class Ops(Protocol):
    """The arithmetic of one framework."""

    # Sizes and dtypes.
    def shape(self, x: Array) -> Shape: ...
    def size(self, x: Array, axis: int, like: Array | None = None) -> Any:
        """The size of an axis: an int where known, else a scalar array of the dtype of `like`, or of `x`."""
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
    def power(self, x: Array, exponent: Number) -> Array: ...
    def abs(self, x: Array) -> Array: ...
    def where(self, condition: Array, x: Array, y: Array) -> Array:
        """x where true, else y. One of the two may be a Python number, and is converted to the other's dtype."""
        ...

    def stop_gradient(self, x: Array) -> Array: ...

    # Sums.
    def sum(self, x: Array, axis: int | None = None, keepdims: bool = False) -> Array: ...
    def mean(self, x: Array) -> Array:
        """Of all entries; 0 for an empty array."""
        ...

    def count(self, condition: Array) -> Array:
        """The number of true entries, an integer."""
        ...

    def max(self, x: Array, axis: int) -> Array:
        """The maximum along the axis, which has size 1 in the result. Not differentiated."""
        ...

    # One class of each row. Labels lie in range.
    def argmax(self, x: Array, axis: int) -> Array: ...
    def take(self, x: Array, labels: Array, axis: int) -> Array:
        """x[..., labels, ...] along `axis`, which the result lacks."""
        ...

    def put(self, x: Array, labels: Array, values: Array, axis: int) -> Array:
        """`x` with the entry of each row's label replaced. Not differentiated."""
        ...

    def sum_but(self, x: Array, labels: Array, axis: int) -> Array:
        """The sum along `axis` of all entries except the label's, which has to be finite."""
        ...

    def lookup(self, values: Array, labels: Array) -> Array:
        """values[labels]; values holds one number a class, in any shape."""
        ...

    def one_hot(self, labels: Array, like: Array, axis: int) -> Array:
        """Boolean, of `like`'s shape: true where the index along `axis` is the label."""
        ...

    # Several classes of each row, and two arrays along an axis. Indices lie in range.
    def gather(self, x: Array, indices: Array, axis: int) -> Array:
        """x at these indices along `axis`, of the shape of `indices`, which has x's other sizes."""
        ...

    def among(self, indices: Array, like: Array, axis: int) -> Array:
        """Boolean, of `like`'s shape: true where the index along `axis` is one of the row's indices."""
        ...

    def concatenate(self, x: Array, y: Array, axis: int) -> Array: ...

    # Of matrices.
    def matmul(self, x: Array, y: Array, transpose: bool) -> Array:
        """x·y; with `transpose`, x·yᵀ."""
        ...

    # Shapes.
    def stack(self, arrays: Sequence[Array]) -> Array:
        """Arrays of one shape, beside one another along a new last axis."""
        ...

    def column(self, x: Array, which: int) -> Array:
        """x[..., which]"""
        ...

    def expand_dims(self, x: Array, axis: int) -> Array: ...
    def squeeze(self, x: Array, axis: int) -> Array:
        """`x` without this axis, of size 1."""
        ...

    def reshape(self, x: Array, shape: tuple[int, ...]) -> Array: ...
    def reshape_as(self, x: Array, like: Array) -> Array: ...
    def broadcast_to(self, x: Array, like: Array) -> Array: ...


# Where numbers may lie: anywhere, in [0, 1], or at 0 and above and not all 0 along the axis.
Domain = Literal["anywhere", "fractions", "shares"]
ANYWHERE: tuple[Domain, Domain] = ("anywhere", "anywhere")


class Rule(NamedTuple):
    """A per-sample loss, with its derivative where automatic differentiation is slower or less exact.

    value(ops, target, pred, axis, **options) -> losses, residuals
    gradients(ops, target, pred, axis, residuals, needs_input_grad, **options) -> gradients

    target, pred: in the dtype of the computation; the target of pred's shape, or integer labels of pred's shape without
    `axis`. losses: pred's shape without `axis`; with axis None every entry is a sample. needs_input_grad: a bool each
    for target and pred. The framework can differentiate a value any number of times, and gradients not at all.
    """

    name: str
    value: Callable[..., tuple[Array, Residuals]]
    gradients: Callable[..., Gradients] | None = None
    options: tuple[str, ...] = ()  # keyword arguments of both
    domains: tuple[Domain, Domain] = ANYWHERE  # of target and predictions
