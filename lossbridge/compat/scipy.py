"""SciPy's entropies: its names, argument order, defaults and results, on arrays of every backend.

`entropy` is of scipy.stats, `rel_entr` and `kl_div` are of scipy.special. Where SciPy's value is correct, this
one is equal. Differences on purpose:

- nearly equal arguments keep their digits;
- gradients exist, and are finite wherever the value is;
- only a single number is broadcast;
- `axis` is one integer, or None for all entries, and `base` is not 1; `nan_policy` and `keepdims` are left out.

Results are float64 if an argument is float64, or both are integers, else float32. A NumPy array or list beside
an array of a framework is converted to that framework. In nats, unless `base` says otherwise.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lossbridge import errors
from lossbridge.frameworks.framework import ArrayOps
from lossbridge.maths import divergence
from lossbridge.maths.ops import Array, Ops, Residuals, Rule
from lossbridge.request import as_array, common_framework, framework_of, run
from lossbridge.spec import Loss, Names

__all__ = ["entropy", "kl_div", "rel_entr"]


def entropy(pk: Any, qk: Any = None, base: float | None = None, axis: int | None = 0) -> Any:
    """Σ p (−log p) of p = pk/Σpk, or with `qk` Σ p log(p/q) of q = qk/Σqk, as scipy.stats.entropy.

    Args:
        pk: probabilities, or counts, of shape (C, …) along `axis`.
        qk: of the same shape.
        base: of the logarithm; e if None.
        axis: of the distribution; by default the first.

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

    names = Names("pk", "pk" if qk is None else "qk")
    ops, p, q = _pair(pk, pk if qk is None else qk, names)
    if axis is None:
        p, q, axis = ops.reshape(p, (-1,)), ops.reshape(q, (-1,)), 0
    nats = run(_ENTROPY if qk is None else _RELATIVE_ENTROPY, p, q, names=names, axis=axis, reduction="none")
    return nats if base is None else nats / math.log(base)


def rel_entr(x: Any, y: Any) -> Any:
    """x·log(x/y), element by element, as scipy.special.rel_entr: 0 for x = 0 ≤ y, +∞ for x or y < 0, or y = 0 < x.

    Args:
        x, y: of equal shapes, or one a single number.

    >>> rel_entr([0.5, 0.0, 0.5], [0.25, 0.5, 0.0]).round(7)
    array([0.3465736, 0.       ,       inf])

    Source: Boyd and Vandenberghe, Convex Optimization, 2004, §3.2.6.
    """
    return _elements(_REL_ENTR, x, y)


def kl_div(x: Any, y: Any) -> Any:
    """x·log(x/y) − x + y, element by element, as scipy.special.kl_div: y for x = 0 ≤ y, +∞ as in `rel_entr`.

    Args:
        x, y: of equal shapes, or one a single number.

    SciPy loses the digits of nearly equal arguments: kl_div(1, 1 + 1e-8) is 5e-17, there 0.

    >>> kl_div([0.5, 0.0, 0.5], [0.25, 0.5, 0.0]).round(7)
    array([0.0965736, 0.5      ,       inf])

    Source: as `rel_entr`.
    """
    return _elements(_KL_DIV, x, y)


def _elements(loss: Loss, x: Any, y: Any) -> Any:
    names = Names("x", "y")
    ops, x, y = _pair(x, y, names)
    if not ops.shape(x):
        x = ops.broadcast_to(x, y)
    elif not ops.shape(y):
        y = ops.broadcast_to(y, x)
    return run(loss, x, y, names=names, reduction="none")


def _entropy(ops: Ops, p: Array, q: Array, axis: int) -> tuple[Array, Residuals]:
    return divergence.entropy_of_shares(ops, q, axis), ()  # q is p, and the one that is differentiated


def _relative_entropy(ops: Ops, p: Array, q: Array, axis: int) -> tuple[Array, Residuals]:
    return divergence.relative_entropy_of_shares(ops, p, q, axis), ()


def _rel_entr(ops: Ops, x: Array, y: Array, axis: None) -> tuple[Array, Residuals]:
    return divergence.relative_entropy_terms(ops, x, y), ()


def _kl_div(ops: Ops, x: Array, y: Array, axis: None) -> tuple[Array, Residuals]:
    return divergence.generalized_kl_terms(ops, x, y), ()


_ENTROPY = Loss("entropy", {"probabilities": {"distributions": Rule("entropy", _entropy)}}, {}, outcomes=0)
_RELATIVE_ENTROPY = Loss(
    "relative entropy",
    {"probabilities": {"distributions": Rule("relative entropy", _relative_entropy)}},
    {},
    outcomes=0,
)
_REL_ENTR = Loss(
    "rel_entr", {"probabilities": {"outcomes": Rule("rel_entr", _rel_entr)}}, {}, elementwise=("outcomes",)
)
_KL_DIV = Loss("kl_div", {"probabilities": {"outcomes": Rule("kl_div", _kl_div)}}, {}, elementwise=("outcomes",))


def _pair(x: Any, y: Any, names: Names) -> tuple[ArrayOps, Array, Array]:
    """Both as arrays of one backend, of the dtype of the result."""
    if framework_of(y, names.pred).name == "numpy":
        ops = common_framework(x, names.target, {names.pred: y}).ops
    else:
        ops = common_framework(y, names.pred, {names.target: x}).ops
    like = as_array(ops, names.target, next(z for z in (x, y) if ops.owns(z)))
    arrays = [as_array(ops, name, z, like) for name, z in ((names.target, x), (names.pred, y))]
    # Converted arrays and Python's numbers do not decide the dtype.
    decides = [ops.owns(z) and type(z) not in (bool, int, float) for z in (x, y)]
    floats = {
        ops.dtype(a) for a, counts in zip(arrays, decides, strict=True) if counts and errors.is_float(ops.dtype(a))
    }
    dtype = "float64" if "float64" in floats else "float32" if floats else ops.widest(like)
    return ops, ops.cast(arrays[0], dtype), ops.cast(arrays[1], dtype)
