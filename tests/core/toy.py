"""A library of arrays with automatic differentiation, over NumPy: the framework that the second recipe adds.

It knows nothing of lossbridge. Functions have NumPy's names.
"""

from __future__ import annotations

import builtins
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

__version__ = "1.0"
_serial = itertools.count()


class Array:
    """Numbers, and where a gradient for them flows back to: (parent, pullback) of each parent that needs one."""

    __array_ufunc__ = None
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, data: Any, parents: Any = (), leaf: bool = False) -> None:
        self.data = np.asarray(data)
        self.parents = tuple((x, pull) for x, pull in parents if isinstance(x, Array) and x.needs_grad)
        self.needs_grad = leaf or bool(self.parents)
        self.serial = next(_serial)

    shape = property(lambda self: self.data.shape)
    dtype = property(lambda self: self.data.dtype)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(to_numpy(self), dtype)

    def __float__(self) -> float:
        return float(self.data)

    def __getitem__(self, index: Any) -> Array:
        def pulled(g: np.ndarray) -> np.ndarray:
            whole = np.zeros_like(self.data)
            np.add.at(whole, index, g)
            return whole

        return Array(self.data[index], [(self, pulled)])

    def __add__(self, y: Any) -> Array:
        return Array(self.data + data(y), [(self, lambda g: g), (y, lambda g: g)])

    def __sub__(self, y: Any) -> Array:
        return Array(self.data - data(y), [(self, lambda g: g), (y, lambda g: -g)])

    def __rsub__(self, y: Any) -> Array:
        return -self + y

    def __mul__(self, y: Any) -> Array:
        a, b = self.data, data(y)
        return Array(a * b, [(self, lambda g: g * b), (y, lambda g: g * a)])

    def __truediv__(self, y: Any) -> Array:
        a, b = self.data, data(y)
        return Array(a / b, [(self, lambda g: g / b), (y, lambda g: -g * (a / b) / b)])

    def __rtruediv__(self, y: Any) -> Array:
        a, b = data(y), self.data
        return Array(a / b, [(self, lambda g: -g * (a / b) / b)])

    def __neg__(self) -> Array:
        return Array(-self.data, [(self, lambda g: -g)])

    __radd__, __rmul__ = __add__, __mul__

    def __lt__(self, y: Any) -> Array:
        return Array(self.data < data(y))

    def __le__(self, y: Any) -> Array:
        return Array(self.data <= data(y))

    def __gt__(self, y: Any) -> Array:
        return Array(self.data > data(y))

    def __ge__(self, y: Any) -> Array:
        return Array(self.data >= data(y))

    def __eq__(self, y: Any) -> Any:
        return Array(self.data == data(y))

    def __ne__(self, y: Any) -> Any:
        return Array(self.data != data(y))

    def __and__(self, y: Any) -> Array:
        return Array(self.data & data(y))

    def __or__(self, y: Any) -> Array:
        return Array(self.data | data(y))

    __rand__, __ror__ = __and__, __or__

    def astype(self, dtype: str) -> Array:
        return Array(self.data.astype(_dtype(dtype)), [(self, lambda g: g)])


def data(x: Any) -> Any:
    return x.data if isinstance(x, Array) else x


def _dtype(name: str) -> np.dtype[Any]:
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def array(x: Any, dtype: str | None = None) -> Array:
    x = np.asarray(data(x))
    return Array(x if dtype is None else x.astype(_dtype(dtype)))


def to_numpy(x: Array) -> np.ndarray:
    return x.data.astype(np.float32) if x.dtype.name == "bfloat16" else x.data


# Differentiation.


def value_and_grad(function: Callable[[Any], Array], x: Any) -> tuple[Array, Any]:
    """function(x), and the gradient of the sum of its entries; x is an array, or a tuple of arrays."""
    leaves = tuple(Array(one.data, leaf=True) for one in (x if isinstance(x, tuple) else (x,)))
    result = function(leaves if isinstance(x, tuple) else leaves[0])
    nodes = {result.serial: result}
    gradients = {result.serial: np.ones_like(result.data)}
    with np.errstate(all="ignore"):
        while nodes and (serial := builtins.max(nodes)) > leaves[-1].serial:  # each before its parents
            g = gradients.pop(serial)
            for parent, pull in nodes.pop(serial).parents:
                carried = _sum_to(np.asarray(pull(g)), parent.shape).astype(parent.dtype, copy=False)
                before = gradients.get(parent.serial)
                gradients[parent.serial] = carried if before is None else before + carried
                nodes[parent.serial] = parent
    found = tuple(Array(gradients.get(leaf.serial, np.zeros_like(leaf.data))) for leaf in leaves)
    return Array(result.data), found if isinstance(x, tuple) else found[0]


def custom_gradient(function: Callable[..., Any]) -> Callable[..., Array]:
    """Of function(*arrays) -> value, pullback, where pullback(upstream, needs) gives a gradient for each array."""

    def call(*arrays: Array) -> Array:
        value, pullback = function(*(Array(x.data) for x in arrays))
        needs = tuple(x.needs_grad for x in arrays)

        def pull(g: Any, which: int) -> Any:
            return pullback(Array(g), tuple(need and i == which for i, need in enumerate(needs)))[which].data

        return Array(value.data, [(x, lambda g, i=i: pull(g, i)) for i, x in enumerate(arrays)])

    return call


def stop_gradient(x: Array) -> Array:
    return Array(x.data)


def _sum_to(g: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Undoes broadcasting."""
    g = g.sum(tuple(range(g.ndim - len(shape))))
    return g.sum(tuple(i for i, n in enumerate(shape) if n == 1 and g.shape[i] != 1), keepdims=True)


# Functions.


def exp(x: Array) -> Array:
    y = np.exp(x.data)
    return Array(y, [(x, lambda g: g * y)])


def expm1(x: Array) -> Array:
    return Array(np.expm1(x.data), [(x, lambda g: g * np.exp(x.data))])


def log(x: Array) -> Array:
    return Array(np.log(x.data), [(x, lambda g: g / x.data)])


def log1p(x: Array) -> Array:
    return Array(np.log1p(x.data), [(x, lambda g: g / (1 + x.data))])


def power(x: Array, n: float) -> Array:
    return Array(x.data**n, [(x, lambda g: g * n * x.data ** (n - 1))])


def abs(x: Array) -> Array:
    return Array(np.abs(x.data), [(x, lambda g: g * np.sign(x.data))])


def where(condition: Array, x: Any, y: Any) -> Array:
    c, a, b = condition.data, data(x), data(y)
    a, b = (b.dtype.type(a), b) if isinstance(a, int | float) else (a, a.dtype.type(b) if np.isscalar(b) else b)
    return Array(np.where(c, a, b), [(x, lambda g: np.where(c, g, 0)), (y, lambda g: np.where(c, 0, g))])


def sum(x: Array, axis: int | None = None, keepdims: bool = False) -> Array:
    def pull(g: np.ndarray) -> np.ndarray:
        return np.broadcast_to(g if axis is None or keepdims else np.expand_dims(g, axis), x.shape)

    if axis is None or axis == x.data.ndim - 1:
        return Array(x.data.sum(axis=axis, keepdims=keepdims), [(x, pull)])
    total = np.ascontiguousarray(np.moveaxis(x.data, axis, -1)).sum(-1)  # NumPy sums pairwise along the last axis alone
    return Array(np.expand_dims(total, axis) if keepdims else total, [(x, pull)])


def max(x: Array, axis: int, keepdims: bool = False) -> Array:
    return Array(x.data.max(axis=axis, keepdims=keepdims))


def argmax(x: Array, axis: int) -> Array:
    return Array(x.data.argmax(axis=axis))


def count_nonzero(x: Array) -> Array:
    return Array(np.count_nonzero(x.data))


def take(x: Array, index: Array) -> Array:
    return Array(x.data[index.data])


def arange(n: int) -> Array:
    return Array(np.arange(n))


def stack(arrays: Any, axis: int) -> Array:
    found = np.stack([x.data for x in arrays], axis)
    return Array(found, [(x, lambda g, i=i: np.take(g, i, axis)) for i, x in enumerate(arrays)])


def matmul(x: Array, y: Array) -> Array:
    return Array(x.data @ y.data, [(x, lambda g: g @ y.data.T), (y, lambda g: x.data.T @ g)])


def take_along_axis(x: Array, index: Array, axis: int) -> Array:
    def pull(g: np.ndarray) -> np.ndarray:
        found = np.zeros_like(x.data)
        np.put_along_axis(found, index.data, g, axis)
        return found

    return Array(np.take_along_axis(x.data, index.data, axis), [(x, pull)])


def concatenate(x: Array, y: Array, axis: int) -> Array:
    size = x.shape[axis]
    pulls = [(x, lambda g: np.split(g, [size], axis)[0]), (y, lambda g: np.split(g, [size], axis)[1])]
    return Array(np.concatenate([x.data, y.data], axis), pulls)


def transpose(x: Array) -> Array:
    return Array(x.data.T, [(x, lambda g: g.T)])


def expand_dims(x: Array, axis: int) -> Array:
    return Array(np.expand_dims(x.data, axis), [(x, lambda g: g.squeeze(axis))])


def squeeze(x: Array, axis: int) -> Array:
    return Array(x.data.squeeze(axis), [(x, lambda g: np.expand_dims(g, axis))])


def reshape(x: Array, shape: tuple[int, ...]) -> Array:
    return Array(x.data.reshape(shape), [(x, lambda g: g.reshape(x.shape))])


def broadcast_to(x: Array, shape: tuple[int, ...]) -> Array:
    return Array(np.broadcast_to(x.data, shape), [(x, lambda g: g)])
