"""SciPy's entropies: its names, argument order, defaults and results, on arrays of every backend.

`entropy` is of scipy.stats, `rel_entr` and `kl_div` are of scipy.special. A value that SciPy computes correctly comes
out the same. What differs, on purpose:

- nearly equal arguments keep their digits;
- gradients exist, and are finite wherever the value is;
- nothing is broadcast but a single number;
- `axis` is one integer, or None for all entries, and `base` is not 1; `nan_policy` and `keepdims` are left out.

Results are float64 if an argument is float64, or both are integers, else float32. An array of a framework decides for a
NumPy array or list beside it, whichever comes first. In nats, unless `base` says otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from lossbridge import formulas, validation
from lossbridge.backend import Array, Backend, backend_of
from lossbridge.losses import evaluate
from lossbridge.validation import Names

__all__ = ["entropy", "kl_div", "rel_entr"]


def entropy(pk: Any, qk: Any = None, base: float | None = None, axis: int | None = 0) -> Any:
    """Σ p (−log p) of p = pk/Σpk, or with `qk` Σ p log(p/q) of q = qk/Σqk, as scipy.stats.entropy.

    Args:
        pk: probabilities, or counts, of shape (C, …) along `axis`.
        qk: of the same shape.
        base: of the logarithm; e if None.
        axis: of the distribution; the first, if nothing else is said.

    A negative entry gives −∞, with `qk` +∞. SciPy loses the digits of nearly equal distributions, and gives negative
    values.

    >>> float(entropy([2, 1, 1], base=2))
    1.5
    >>> round(float(entropy([0.5, 0.5], [0.25, 0.75])), 7)
    0.143841

    Source: Cover and Thomas, Elements of Information Theory, 2006, §2.
    """
    number = isinstance(base, int | float | np.integer | np.floating) and not isinstance(base, bool)
    if base is not None and not (number and 0 < base < math.inf and base != 1):
        raise ValueError(f"base is {base!r}; pass a number above 0 other than 1, such as 2 (bits), or None (nats)")

    def formula(b: Backend, p: Array, q: Array, axis: int) -> Any:
        cost = (
            formulas.entropy_of_shares(b, p, axis) if qk is None else formulas.relative_entropy_of_shares(b, p, q, axis)
        )
        return cost if base is None else cost / math.log(base)

    names = Names("pk", "pk" if qk is None else "qk")
    b, p, q = _pair(pk, pk if qk is None else qk, names)
    if axis is None:
        p, q, axis = b.reshape(p, (-1,)), b.reshape(q, (-1,)), 0
    return evaluate(formula, p, q, axis, None, None, None, "none", outcomes=0, names=names)


def rel_entr(x: Any, y: Any) -> Any:
    """x·log(x/y), element by element, as scipy.special.rel_entr: 0 for x = 0 ≤ y, +∞ for x or y < 0, or y = 0 < x.

    Args:
        x, y: of equal shapes, or one a single number.

    >>> rel_entr([0.5, 0.0, 0.5], [0.25, 0.5, 0.0]).round(7)
    array([0.3465736, 0.       ,       inf])

    Source: Boyd and Vandenberghe, Convex Optimization, 2004, §3.2.6.
    """
    return _elements(formulas.relative_entropy_terms, x, y)


def kl_div(x: Any, y: Any) -> Any:
    """x·log(x/y) − x + y, element by element, as scipy.special.kl_div: y for x = 0 ≤ y, +∞ as in `rel_entr`.

    Args:
        x, y: of equal shapes, or one a single number.

    SciPy loses the digits of nearly equal arguments: kl_div(1, 1 + 1e-8) is 5e-17, there 0.

    >>> kl_div([0.5, 0.0, 0.5], [0.25, 0.5, 0.0]).round(7)
    array([0.0965736, 0.5      ,       inf])

    Source: as `rel_entr`.
    """
    return _elements(formulas.generalized_kl_terms, x, y)


def _elements(cost: Callable[..., Array], x: Any, y: Any) -> Any:
    def formula(b: Backend, x: Array, y: Array, axis: None) -> Any:
        return cost(b, x, y)

    names = Names("x", "y")
    b, x, y = _pair(x, y, names)
    if not b.shape(x):
        x = b.broadcast_to(x, y)
    elif not b.shape(y):
        y = b.broadcast_to(y, x)
    return evaluate(formula, x, y, 0, None, None, None, "none", elementwise=True, names=names)


def _pair(x: Any, y: Any, names: Names) -> tuple[Backend, Array, Array]:
    """Both as arrays of one backend, of the dtype of the result."""
    if backend_of(y, names.pred).name == "numpy":
        b = validation.common_backend(x, names.target, {names.pred: y})
    else:
        b = validation.common_backend(y, names.pred, {names.target: x})
    like = validation.adopt(b, names.target, next(z for z in (x, y) if b.owns(z)))
    arrays = [validation.adopt(b, name, z, like) for name, z in ((names.target, x), (names.pred, y))]
    # What is converted, and Python's numbers, have no say.
    decide = [b.owns(z) and type(z) not in (bool, int, float) for z in (x, y)]
    floats = {
        b.dtype(a) for a, counts in zip(arrays, decide, strict=True) if counts and validation.is_float(b.dtype(a))
    }
    dtype = "float64" if "float64" in floats else "float32" if floats else b.widest(like)
    return b, b.cast(arrays[0], dtype), b.cast(arrays[1], dtype)
