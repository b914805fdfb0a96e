"""NumPy: arithmetic, the small tape that differentiates it, and conversion of arrays.

NumPy has no automatic differentiation. `on_numpy.value_and_grad` passes a `Variable` to the loss in place of the array;
every operation on one records how to pass a gradient back. Operations on plain arrays record nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from lossbridge.frameworks.framework import host_array, is_column
from lossbridge.maths.ops import Array, Number, Shape

Pullback = Callable[[np.ndarray], np.ndarray]

TYPES: tuple[type, ...] = (np.ndarray,)
LAYOUT = None
DTYPES: Mapping[Any, str] = {
    np.dtype(name): name for name in ("float32", "float64", "float16", "int64", "int32", "uint8", "bool")
}


class Variable:
    """An array on the tape, with its parents and the pullback of the gradient to each of them.

    `buffer`: where the gradient for it may be computed, by the first who takes it. `of_one`: the gradient for its only
    parent where 1 flows back, if it is known already.
    """

    __slots__ = ("buffer", "of_one", "parents", "value")
    __array_ufunc__ = None  # so that array + Variable calls Variable.__radd__ and makes no object array
    __hash__ = None  # type: ignore[assignment]

    def __init__(
        self,
        value: np.ndarray,
        parents: tuple[tuple[Variable, Pullback], ...] = (),
        buffer: np.ndarray | None = None,
    ) -> None:
        self.value = value
        self.parents = parents
        self.buffer = buffer
        self.of_one: np.ndarray | None = None

    def take_buffer(self) -> np.ndarray | None:
        buffer, self.buffer = self.buffer, None
        return buffer

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.value.dtype

    def __array__(self, *_: object, **__: object) -> np.ndarray:
        raise TypeError("a NumPy function was called inside value_and_grad; build the loss of lossbridge's and + - * /")

    def __array_function__(self, *_: object) -> object:
        return self.__array__()

    def __add__(self, other: Array) -> Array:
        return record(self.value + value_of(other), (self, lambda g: g), (other, lambda g: g))

    def __sub__(self, other: Array) -> Array:
        return record(self.value - value_of(other), (self, lambda g: g), (other, lambda g: -g))

    def __rsub__(self, other: Array) -> Array:
        return record(value_of(other) - self.value, (self, lambda g: -g))

    def __mul__(self, other: Array) -> Array:
        x, y = self.value, value_of(other)
        return record(x * y, (self, lambda g: g * y), (other, lambda g: g * x))

    def __truediv__(self, other: Array) -> Array:
        x, y = self.value, value_of(other)
        return record(x / y, (self, lambda g: g / y), (other, lambda g: -g * (x / y) / y))

    def __rtruediv__(self, other: Array) -> Array:
        x, y = value_of(other), self.value
        return record(x / y, (self, lambda g: -g * (x / y) / y))

    def __neg__(self) -> Array:
        return record(-self.value, (self, lambda g: -g))

    __radd__ = __add__
    __rmul__ = __mul__

    def __lt__(self, other: Array) -> Array:
        return self.value < value_of(other)

    def __gt__(self, other: Array) -> Array:
        return self.value > value_of(other)

    def __le__(self, other: Array) -> Array:
        return self.value <= value_of(other)

    def __ge__(self, other: Array) -> Array:
        return self.value >= value_of(other)

    def __eq__(self, other: object) -> Array:
        return self.value == value_of(other)

    def __ne__(self, other: object) -> Array:
        return self.value != value_of(other)


def value_of(x: Array) -> Array:
    """The array: that of a Variable, or `x` itself."""
    return x.value if type(x) is Variable else x


def record(value: Array, *inputs: tuple[Array, Pullback]) -> Array:
    """`value` itself if no input is on the tape; else a node with those that are as its parents."""
    parents = tuple([parent for parent in inputs if type(parent[0]) is Variable])
    return Variable(np.asarray(value), parents) if parents else value


def _sum_to(gradient: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The gradient summed over the axes along which an input of this shape was broadcast."""
    if gradient.shape == shape:
        return gradient
    gradient = gradient.sum(axis=tuple(range(gradient.ndim - len(shape))))
    broadcast = tuple(i for i, n in enumerate(shape) if n == 1 and gradient.shape[i] != 1)
    return gradient.sum(axis=broadcast, keepdims=True)


def pulled_back(result: Array, leaf: Variable, upstream: np.ndarray) -> np.ndarray:
    """The gradient at `leaf` for the gradient `upstream` at `result`."""
    return all_pulled_back(result, (leaf,), upstream)[0]


def all_pulled_back(result: Array, leaves: tuple[Variable, ...], upstream: np.ndarray) -> tuple[np.ndarray, ...]:
    """The gradients at the leaves."""
    if not isinstance(result, Variable):
        return tuple(np.zeros_like(leaf.value) for leaf in leaves)
    gradients, kept = {id(result): upstream}, {id(leaf) for leaf in leaves}
    with quiet():
        for node in _newest_first(result):
            gradient = gradients[id(node)] if id(node) in kept else gradients.pop(id(node))
            for parent, pullback in node.parents:
                carried = _sum_to(np.asarray(pullback(gradient)), parent.value.shape)
                carried = carried.astype(parent.value.dtype, copy=False)
                known = gradients.get(id(parent))
                gradients[id(parent)] = carried if known is None else known + carried
    found = (gradients[id(leaf)] if id(leaf) in gradients else np.zeros_like(leaf.value) for leaf in leaves)
    return tuple(x if x.flags.writeable else x.copy() for x in found)  # a read-only broadcast of one number


def _newest_first(root: Variable) -> list[Variable]:
    """The nodes under `root`, each before its parents (depth-first, without recursion)."""
    order = [root]
    while len(order[-1].parents) == 1:  # most graphs are a chain
        order.append(order[-1].parents[0][0])
    if not order[-1].parents:
        return order
    order = []
    seen = {id(root)}
    stack = [(root, iter(root.parents))]
    while stack:
        node, parents = stack[-1]
        for parent, _ in parents:
            if id(parent) not in seen:
                seen.add(id(parent))
                stack.append((parent, iter(parent.parents)))
                break
        else:
            order.append(node)
            stack.pop()
    return order[::-1]


# Conversion and inspection of arrays.


def owns(x: object) -> bool:
    return isinstance(
        x, Variable | np.ndarray | np.generic | list | tuple | bool | int | float | complex | str | bytes
    ) or is_column(x)


def asarray(x: Any, like: Array | None = None) -> Array:
    return x if isinstance(x, Variable) else host_array(x)


def concrete(x: Any) -> np.ndarray | None:
    return host_array(value_of(x))


def constant(x: Any) -> np.ndarray | None:
    return None if type(x) is Variable else np.asarray(x)


def shape(x: Array) -> Shape:
    x = value_of(x)
    return x.shape if type(x) is np.ndarray else np.shape(x)


def size(x: Array, axis: int, like: Array | None = None) -> int:
    return int(value_of(x).shape[axis])


def same_sizes(x: Array, axes: list[int], like: Array, like_axes: list[int], words: str) -> Array:
    return x  # shapes are always known


def dtype(x: Array) -> str:
    return DTYPES.get(x.dtype) or _name(x.dtype)


@functools.cache
def _name(dtype: np.dtype[Any]) -> str:
    return str(dtype.name)  # cached, because NumPy builds the string each time, in 3 µs


def cast(x: Array, dtype: str) -> Array:
    if _name(value_of(x).dtype) == dtype:
        return x
    return record(value_of(x).astype(dtype), (x, lambda g: g))


def widest(x: Array) -> str:
    return "float64"


# Arithmetic.


def quiet() -> AbstractContextManager[object]:
    return np.errstate(all="ignore")


def exp(x: Array) -> Array:
    y = np.exp(value_of(x))
    return record(y, (x, lambda g: g * y))


def expm1(x: Array) -> Array:
    v = value_of(x)
    return record(np.expm1(v), (x, lambda g: g * np.exp(v)))


def log(x: Array) -> Array:
    v = value_of(x)
    return record(np.log(v), (x, lambda g: g / v))


def log1p(x: Array) -> Array:
    v = value_of(x)
    return record(np.log1p(v), (x, lambda g: g / (1 + v)))


def power(x: Array, exponent: Number) -> Array:
    v, n = value_of(x), value_of(exponent)
    y = v**n
    return record(y, (x, lambda g: g * n * v ** (n - 1)), (exponent, lambda g: g * y * np.log(v)))


def abs(x: Array) -> Array:
    v = value_of(x)
    return record(np.abs(v), (x, lambda g: g * np.sign(v)))


def where(condition: Array, x: Array | float, y: Array | float) -> Array:
    v, w = value_of(x), value_of(y)
    if isinstance(w, int | float) and hasattr(v, "dtype"):  # with bfloat16 NumPy would promote to float64
        w = v.dtype.type(w)
    elif isinstance(v, int | float) and hasattr(w, "dtype"):
        v = w.dtype.type(v)
    return record(
        np.asarray(np.where(condition, v, w))[()],
        (x, lambda g: np.where(condition, g, g.dtype.type(0))),
        (y, lambda g: np.where(condition, g.dtype.type(0), g)),
    )


def sum(x: Array, axis: int | None = None, keepdims: bool = False) -> Array:
    v = value_of(x)

    def pullback(g: np.ndarray) -> np.ndarray:
        if axis is None and g.dtype.isbuiltin == 1:
            # As np.broadcast_to, in a tenth of its time.
            everywhere = np.ndarray(v.shape, g.dtype, g, strides=(0,) * v.ndim)
            everywhere.flags.writeable = False
            return everywhere
        return np.broadcast_to(g if axis is None or keepdims else np.expand_dims(g, axis), v.shape)

    if axis is not None and axis != v.ndim - 1 and v.shape[axis] > 256:
        # NumPy sums pairwise along the last axis only; along others the rounding error grows with the length.
        total = np.sum(np.ascontiguousarray(np.moveaxis(v, axis, -1)), axis=-1)
        return record(np.expand_dims(total, axis) if keepdims else total, (x, pullback))
    return record(v.sum(axis=axis, keepdims=keepdims), (x, pullback))


def mean(x: Array) -> Array:
    return sum(x) / (value_of(x).size or 1)


def count(condition: Array) -> Array:
    return np.sum(condition)


def max(x: Array, axis: int) -> Array:
    return np.max(value_of(x), axis=axis, keepdims=True)


def argmax(x: Array, axis: int) -> Array:
    return np.argmax(value_of(x), axis=axis)


def take(x: Array, labels: Array, axis: int) -> Array:
    v, index = value_of(x), np.expand_dims(labels, axis)

    def pullback(g: np.ndarray) -> np.ndarray:
        gradient = np.zeros(v.shape, g.dtype)
        np.put_along_axis(gradient, index, np.expand_dims(g, axis), axis)
        return gradient

    return record(np.take_along_axis(v, index, axis).squeeze(axis), (x, pullback))


def put(x: Array, labels: Array, values: Array, axis: int) -> Array:
    replaced = value_of(x).copy()
    np.put_along_axis(replaced, np.expand_dims(labels, axis), values, axis)
    return replaced


def sum_but(x: Array, labels: Array, axis: int) -> Array:
    return sum(where(one_hot(labels, x, axis), 0.0, x), axis)


def lookup(values: Array, labels: Array) -> Array:
    return value_of(values).reshape(-1)[labels]


def one_hot(labels: Array, like: Array, axis: int) -> Array:
    rank = np.ndim(value_of(like))
    classes = np.arange(size(like, axis)).reshape([-1 if i == axis else 1 for i in range(rank)])
    return classes == np.expand_dims(labels, axis)


def gather(x: Array, indices: Array, axis: int) -> Array:
    v = value_of(x)

    def pullback(g: np.ndarray) -> np.ndarray:
        gradient = np.zeros(v.shape, g.dtype)
        np.put_along_axis(gradient, indices, g, axis)
        return gradient

    return record(np.take_along_axis(v, indices, axis), (x, pullback))


def among(indices: Array, like: Array, axis: int) -> Array:
    found = np.zeros(np.shape(value_of(like)), bool)
    np.put_along_axis(found, indices, True, axis)
    return found


def concatenate(x: Array, y: Array, axis: int) -> Array:
    v, w = value_of(x), value_of(y)
    size = v.shape[axis]
    return record(
        np.concatenate([v, w], axis),
        (x, lambda g: np.split(g, [size], axis)[0]),
        (y, lambda g: np.split(g, [size], axis)[1]),
    )


def matmul(x: Array, y: Array, transpose: bool) -> Array:
    v, w = value_of(x), value_of(y)
    w = w.T if transpose else w

    def of_y(g: np.ndarray) -> np.ndarray:
        gradient: np.ndarray = v.T @ g
        return gradient.T if transpose else gradient

    return record(v @ w, (x, lambda g: g @ w.T), (y, of_y))


def stack(arrays: Sequence[Array]) -> Array:
    def of_one(which: int) -> Callable[[np.ndarray], np.ndarray]:
        return lambda g: g[..., which]

    found = np.stack([value_of(x) for x in arrays], -1)
    return record(found, *((x, of_one(which)) for which, x in enumerate(arrays)))


def column(x: Array, which: int) -> Array:
    def pulled(g: np.ndarray) -> np.ndarray:
        whole = np.zeros_like(value_of(x))
        whole[..., which] = g
        return whole

    return record(value_of(x)[..., which], (x, pulled))


def expand_dims(x: Array, axis: int) -> Array:
    return record(np.expand_dims(value_of(x), axis), (x, lambda g: np.squeeze(g, axis)))


def squeeze(x: Array, axis: int) -> Array:
    return record(np.squeeze(value_of(x), axis), (x, lambda g: np.expand_dims(g, axis)))


def reshape(x: Array, shape: tuple[int, ...]) -> Array:
    v = value_of(x)
    return record(v.reshape(shape), (x, lambda g: g.reshape(v.shape)))


def reshape_as(x: Array, like: Array) -> Array:
    return reshape(x, np.shape(value_of(like)))


def broadcast_to(x: Array, like: Array) -> Array:
    return record(np.broadcast_to(value_of(x), value_of(like).shape), (x, lambda g: g))


def stop_gradient(x: Array) -> Array:
    return value_of(x)
