"""NumPy: the primitives, and the small tape that gives them gradients. No loss.

NumPy has no automatic differentiation. `value_and_grad` hands the loss a `Variable` in place of the array; every
primitive that meets one notes how a gradient flows back through it. Plain arrays pass through untouched.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

Array = Any
Pullback = Callable[[np.ndarray], np.ndarray]

name = "numpy"


class Variable:
    """An array on the tape, with its parents and the function that carries a gradient back to each of them."""

    __slots__ = ("parents", "value")
    __array_ufunc__ = None  # array + Variable is then Variable.__radd__, not an object array
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, value: np.ndarray, parents: tuple[tuple[Variable, Pullback], ...] = ()) -> None:
        self.value = value
        self.parents = parents

    def __array__(self, *_: object, **__: object) -> np.ndarray:
        raise TypeError("a NumPy function was called inside value_and_grad; build the loss of lossbridge's and + - * /")

    def __array_function__(self, *_: object) -> object:
        return self.__array__()

    def __add__(self, other: Array) -> Array:
        return _record(self.value + _value(other), (self, lambda g: g), (other, lambda g: g))

    def __sub__(self, other: Array) -> Array:
        return _record(self.value - _value(other), (self, lambda g: g), (other, lambda g: -g))

    def __rsub__(self, other: Array) -> Array:
        return _record(_value(other) - self.value, (self, lambda g: -g))

    def __mul__(self, other: Array) -> Array:
        x, y = self.value, _value(other)
        return _record(x * y, (self, lambda g: g * y), (other, lambda g: g * x))

    def __truediv__(self, other: Array) -> Array:
        x, y = self.value, _value(other)
        return _record(x / y, (self, lambda g: g / y), (other, lambda g: -g * (x / y) / y))

    def __rtruediv__(self, other: Array) -> Array:
        x, y = _value(other), self.value
        return _record(x / y, (self, lambda g: -g * (x / y) / y))

    def __neg__(self) -> Array:
        return _record(-self.value, (self, lambda g: -g))

    __radd__ = __add__
    __rmul__ = __mul__

    def __lt__(self, other: Array) -> Array:
        return self.value < _value(other)

    def __gt__(self, other: Array) -> Array:
        return self.value > _value(other)

    def __ge__(self, other: Array) -> Array:
        return self.value >= _value(other)

    def __eq__(self, other: object) -> Array:
        return self.value == _value(other)

    def __ne__(self, other: object) -> Array:
        return self.value != _value(other)


def _value(x: Array) -> Array:
    return x.value if type(x) is Variable else x


def _record(value: Array, *inputs: tuple[Array, Pullback]) -> Array:
    """`value` itself if no input is on the tape; else a node that remembers those that are."""
    parents = tuple([parent for parent in inputs if type(parent[0]) is Variable])
    return Variable(np.asarray(value), parents) if parents else value


def _sum_to(gradient: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Undoes broadcasting: the gradient summed over the axes that `shape` does not have."""
    if gradient.shape == shape:
        return gradient
    gradient = gradient.sum(axis=tuple(range(gradient.ndim - len(shape))))
    stretched = tuple(i for i, n in enumerate(shape) if n == 1 and gradient.shape[i] != 1)
    return gradient.sum(axis=stretched, keepdims=True)


def value_and_grad(function: Callable[[Array], Array], x: np.ndarray) -> tuple[Array, np.ndarray]:
    leaf = Variable(x)
    result = function(leaf)
    if not isinstance(result, Variable):
        if np.asarray(result).dtype.kind not in "fiub":
            raise TypeError(f"the loss returned {type(result).__name__}; return one array of numbers")
        return result, np.zeros_like(x)
    return result.value[()], pulled_back(result, leaf, np.ones_like(result.value))


def pulled_back(result: Array, leaf: Variable, upstream: np.ndarray) -> np.ndarray:
    """The gradient that arrives at `leaf` when `upstream` flows back from `result`."""
    if not isinstance(result, Variable):
        return np.zeros_like(leaf.value)
    gradients = {id(result): upstream}
    with quiet():
        for node in _newest_first(result):
            gradient = gradients.pop(id(node)) if node is not leaf else gradients[id(leaf)]
            for parent, pullback in node.parents:
                carried = _sum_to(np.asarray(pullback(gradient)), parent.value.shape)
                carried = carried.astype(parent.value.dtype, copy=False)
                known = gradients.get(id(parent))
                gradients[id(parent)] = carried if known is None else known + carried
    if id(leaf) not in gradients:
        return np.zeros_like(leaf.value)
    gradient = gradients[id(leaf)]
    return gradient if gradient.flags.writeable else gradient.copy()  # broadcast from one number


def _newest_first(root: Variable) -> list[Variable]:
    """The nodes under `root`, each before its parents (depth-first, without recursion)."""
    order = [root]
    while len(order[-1].parents) == 1:  # mostly it is a chain
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


# Arrays as they come in.


def owns(x: object) -> bool:
    return isinstance(
        x, Variable | np.ndarray | np.generic | list | tuple | bool | int | float | complex | str | bytes
    ) or (hasattr(x, "__array__"))


def asarray(x: Any, like: Array | None = None) -> Array:
    if isinstance(x, Variable):
        return x
    return np.asarray(x)


def concrete(x: Any) -> np.ndarray | None:
    return np.asarray(_value(x))


def shape(x: Array) -> tuple[int | None, ...]:
    x = _value(x)
    return x.shape if type(x) is np.ndarray else np.shape(x)


def size(x: Array, axis: int, like: Array | None = None) -> int:
    return int(_value(x).shape[axis])


def at_least_one(size: int) -> int:
    return size or 1


def same_sizes(x: Array, axes: list[int], like: Array, like_axes: list[int], words: str) -> Array:
    return x  # shapes are always known


def dtype(x: Array) -> str:
    return _name(_value(x).dtype)


@functools.cache
def _name(dtype: np.dtype[Any]) -> str:
    return str(dtype.name)  # which NumPy puts together anew each time, in 3 µs


def cast(x: Array, dtype: str) -> Array:
    if _name(_value(x).dtype) == dtype:
        return x
    return _record(_value(x).astype(dtype), (x, lambda g: g))


def widest(x: Array) -> str:
    return "float64"


# Arithmetic.


def exp(x: Array) -> Array:
    y = np.exp(_value(x))
    return _record(y, (x, lambda g: g * y))


def expm1(x: Array) -> Array:
    v = _value(x)
    return _record(np.expm1(v), (x, lambda g: g * np.exp(v)))


def log(x: Array) -> Array:
    v = _value(x)
    return _record(np.log(v), (x, lambda g: g / v))


def log1p(x: Array) -> Array:
    v = _value(x)
    return _record(np.log1p(v), (x, lambda g: g / (1 + v)))


def power(x: Array, exponent: float) -> Array:
    v = _value(x)
    return _record(v**exponent, (x, lambda g: g * exponent * v ** (exponent - 1)))


def abs(x: Array) -> Array:
    v = _value(x)
    return _record(np.abs(v), (x, lambda g: g * np.sign(v)))


def where(condition: Array, x: Array | float, y: Array | float) -> Array:
    return _record(
        np.asarray(np.where(condition, _value(x), _value(y)))[()],
        (x, lambda g: np.where(condition, g, g.dtype.type(0))),
        (y, lambda g: np.where(condition, g.dtype.type(0), g)),
    )


def sum(x: Array, axis: int | None = None, keepdims: bool = False) -> Array:
    v = _value(x)

    def pullback(g: np.ndarray) -> np.ndarray:
        if axis is None and g.dtype.isbuiltin == 1:
            # As broadcast_to, in a tenth of its time.
            everywhere = np.ndarray(v.shape, g.dtype, g, strides=(0,) * v.ndim)
            everywhere.flags.writeable = False
            return everywhere
        return np.broadcast_to(g if axis is None or keepdims else np.expand_dims(g, axis), v.shape)

    if axis is not None and axis != v.ndim - 1 and v.shape[axis] > 256:
        # NumPy sums pairwise along the last axis alone; elsewhere the rounding of a long sum adds up.
        total = np.sum(np.ascontiguousarray(np.moveaxis(v, axis, -1)), axis=-1)
        return _record(np.expand_dims(total, axis) if keepdims else total, (x, pullback))
    return _record(v.sum(axis=axis, keepdims=keepdims), (x, pullback))


def mean(x: Array) -> Array:
    return sum(x) / at_least_one(_value(x).size)


def count(condition: Array) -> Array:
    return np.sum(condition)


def max(x: Array, axis: int) -> Array:
    return np.max(_value(x), axis=axis, keepdims=True)


def argmax(x: Array, axis: int) -> Array:
    return np.argmax(_value(x), axis=axis)


def take(x: Array, labels: Array, axis: int) -> Array:
    v, index = _value(x), np.expand_dims(labels, axis)

    def pullback(g: np.ndarray) -> np.ndarray:
        gradient = np.zeros(v.shape, g.dtype)
        np.put_along_axis(gradient, index, np.expand_dims(g, axis), axis)
        return gradient

    return _record(np.take_along_axis(v, index, axis).squeeze(axis), (x, pullback))


def one_hot(labels: Array, like: Array, axis: int) -> Array:
    rank = np.ndim(_value(like))
    classes = np.arange(size(like, axis)).reshape([-1 if i == axis else 1 for i in range(rank)])
    return classes == np.expand_dims(labels, axis)


def expand_dims(x: Array, axis: int) -> Array:
    return _record(np.expand_dims(_value(x), axis), (x, lambda g: np.squeeze(g, axis)))


def squeeze(x: Array, axis: int) -> Array:
    return _record(np.squeeze(_value(x), axis), (x, lambda g: np.expand_dims(g, axis)))


def reshape(x: Array, shape: tuple[int, ...]) -> Array:
    v = _value(x)
    return _record(v.reshape(shape), (x, lambda g: g.reshape(v.shape)))


def broadcast_to(x: Array, like: Array) -> Array:
    return _record(np.broadcast_to(_value(x), _value(like).shape), (x, lambda g: g))


def stop_gradient(x: Array) -> Array:
    return _value(x)


# Running.


def quiet() -> AbstractContextManager[object]:
    return np.errstate(all="ignore")


def compilers() -> Mapping[str, Callable[[Callable[..., Any]], Callable[..., Any]]]:
    return {}


def devices() -> list[str]:
    return ["cpu"]


def place(x: np.ndarray, dtype: str, device: str) -> Array:
    if dtype == "bfloat16":
        import ml_dtypes

        return x.astype(ml_dtypes.bfloat16)
    return x.astype(dtype)


def to_numpy(x: Array) -> np.ndarray:
    x = np.asarray(x)
    return x.astype(np.float32) if x.dtype.name == "bfloat16" else x


def scope(dtype: str, device: str) -> AbstractContextManager[object]:
    return nullcontext()


def version() -> str:
    return np.__version__
