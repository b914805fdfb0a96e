"""Entropies of discrete distributions: exact, one value a distribution, in bits unless `base` says otherwise.

Probabilities are neither clipped nor renormalised, and results are not averaged. Arguments are probabilities along
`axis`, arrays of any backend, of equal shapes; 0·log 0 = 0. Results are float64 if the last argument is float64, else
float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from lossbridge import errors
from lossbridge.maths import divergence
from lossbridge.maths.ops import Array, Ops
from lossbridge.request import as_array, common_framework, compute_dtype
from lossbridge.spec import Names


def entropy(p: Any, *, axis: int = -1, base: float = 2) -> Any:
    """Shannon entropy, H(P) = −Σ p log p: the mean surprise of P's events, in bits (base 2) or nats (base e).

    Args:
        p: probabilities, of shape (…, C, …) with C ≥ 2 along `axis`.
        base: of the logarithm; above 0 and not 1.

    Returns:
        The shape of p without `axis`.

    Raises:
        ValueError: shapes that do not fit, or an impossible base.
        TypeError: arrays of two libraries, or of no real numbers.

    >>> float(entropy([0.5, 0.25, 0.125, 0.125]))
    1.75

    Source: Shannon, A Mathematical Theory of Communication, 1948.
    """
    return _per_distribution(divergence.entropy, (p,), axis, base)


def cross_entropy(p: Any, q: Any, *, axis: int = -1, base: float = 2) -> Any:
    """H(P, Q) = −Σ p log q: the mean length of P's events in a code made for Q, in bits or nats.

    Args, Returns, Raises: as `entropy`; p and q have equal shapes. Infinite where P has mass and Q has none.

    >>> float(cross_entropy([0.5, 0.5], [0.25, 0.75], base=2).round(6))
    1.207519

    Source: Cover and Thomas, Elements of Information Theory, 2006, §5.4.
    """
    return _per_distribution(divergence.cross_entropy, (p, q), axis, base)


def relative_entropy(p: Any, q: Any, *, axis: int = -1, base: float = 2) -> Any:
    """KL(P ‖ Q) = Σ p log(p/q) = H(P, Q) − H(P): what Q's code costs more than P's own, in bits or nats.

    Args, Returns, Raises: as `entropy`; p and q have equal shapes. Not symmetric. Infinite where P has mass and Q none.

    >>> float(relative_entropy([0.5, 0.5], [0.25, 0.75]).round(6))
    0.207519

    Source: Kullback and Leibler, On Information and Sufficiency, 1951.
    """
    return _per_distribution(divergence.relative_entropy, (p, q), axis, base)


def perplexity(p: Any, q: Any = None, *, axis: int = -1) -> Any:
    """2^H(P), or 2^H(P, Q) with `q`: the number of equally likely events that would be as surprising. No unit.

    Args, Returns, Raises: as `entropy`.

    >>> round(float(perplexity([0.25, 0.25, 0.25, 0.25])), 6)
    4.0

    Source: Jelinek et al., Perplexity — a measure of the difficulty of speech recognition tasks, 1977.
    """

    def formula(ops: Ops, *arrays: Array) -> Array:
        *distributions, axis = arrays
        return ops.exp(divergence.cross_entropy(ops, distributions[0], distributions[-1], axis))

    return _per_distribution(formula, (p,) if q is None else (p, q), axis, math.e)


def _per_distribution(formula: Callable[..., Array], arrays: tuple[Any, ...], axis: int, base: float) -> Any:
    if not (isinstance(base, int | float) and 0 < base < math.inf and base != 1):
        raise ValueError(f"base is {base!r}; pass a number above 0 other than 1, such as 2 (bits) or math.e (nats)")
    names = ("p", "q")[: len(arrays)]
    ops = common_framework(arrays[-1], names[-1], dict(zip(names, arrays, strict=True))).ops
    last = as_array(ops, names[-1], arrays[-1])
    own = [*(as_array(ops, "p", x, last) for x in arrays[:-1]), last]
    shape = ops.shape(last)
    axis = errors.axis_of(ops.shape(own[0]), shape, axis, Names("p", names[-1]), at_least=2)
    errors.same_shape(ops.shape(own[0]), shape, Names("p", "q"), labels_fit=False)
    with ops.quiet():
        nats = formula(ops, *(ops.cast(x, compute_dtype(ops, last)) for x in own), axis)
        return nats if base == math.e else nats / math.log(base)
