"""JAX: faster ways to the per-sample losses of formulas.py (see Kernel in lossbridge/backend.py). No loss is defined.

On a CPU, XLA stores every array of classes that a `where` puts into a sum; sums, products, minima and exponentials
alone it sums up as it goes, several times as fast. So the sums here are written without `where`; slopes, where it costs
nothing, with it. A slope reads the inputs again, and no array of classes is kept from the way forward.

Derivatives of a slope, of either mode and any order, are those of the formula.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from lossbridge import formulas
from lossbridge.backend import Array
from lossbridge.backends import jax as backend
from lossbridge.reduction import neutralise

# Class indices are compared as float32 numbers, which count no further.
MOST_CLASSES = 2**24


def _loss(
    formula: Callable[[Array, Array, int], Array],
    value: Callable[[Array, Array, int], Array],
    slopes: Callable[[Array, Array, int, tuple[bool, bool]], tuple[Array, tuple[Array | None, Array | None]]],
) -> Callable[[Array, Array, int, Array | None], Array]:
    """A differentiable function of (target, pred, axis, kept) that computes `formula`.

    `value` gives the per-sample losses; `slopes` these, and the derivatives with respect to those of target and pred
    that are wanted. Both may give anything where nothing is kept.
    """

    def plain(axis: int, kept: Array | None, target: Array, pred: Array) -> Array:
        if jnp.issubdtype(target.dtype, jnp.floating):
            target = neutralise(backend, target, kept, axis, 0.5)
        return formula(target, neutralise(backend, pred, kept, axis, 0.5), axis).sum()

    @functools.partial(jax.jit, static_argnums=0)
    def forward(axis: int, kept: Array | None, target: Array, pred: Array) -> Array:
        return neutralise(backend, value(target, pred, axis), kept, None, 0.0)

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def both(axis: int, wanted: tuple[bool, bool], kept: Array | None, target: Array, pred: Array) -> Any:
        loss, found = slopes(target, pred, axis, wanted)
        return (
            neutralise(backend, loss, kept, None, 0.0),
            tuple(None if x is None else neutralise(backend, x, kept, axis, 0.0) for x in found),
        )

    loss = jax.custom_jvp(forward, nondiff_argnums=(0,))
    loss_and_slopes = jax.custom_jvp(both, nondiff_argnums=(0, 1))

    def along(axis: int, found: Any, tangents: Any) -> Array:
        return sum(
            jnp.sum(slope * tangent, axis) for slope, tangent in zip(found, tangents, strict=True) if slope is not None
        )

    def loss_rule(axis: int, primals: Any, tangents: Any) -> tuple[Array, Array]:
        wanted = tuple(_moves(tangent) for tangent in tangents[1:])
        out, found = loss_and_slopes(axis, wanted, *primals)
        return out, along(axis, found, tangents[1:]) if any(wanted) else jnp.zeros_like(out)

    def slopes_rule(axis: int, wanted: tuple[bool, bool], primals: Any, tangents: Any) -> tuple[Any, Any]:
        kept, *arrays = primals
        moving = tuple(_moves(tangent) for tangent in tangents[1:])
        needed = tuple(wants or moves for wants, moves in zip(wanted, moving, strict=True))
        out, found = loss_and_slopes(axis, needed, *primals)

        def gradients(*moved: Array) -> Any:
            rest = iter(moved)
            at = [next(rest) if moves else x for x, moves in zip(arrays, moving, strict=True)]
            slopes = iter(jax.grad(plain, [i for i in (2, 3) if wanted[i - 2]])(axis, kept, *at))
            return tuple(next(slopes) if wants else None for wants in wanted)

        _, turned = jax.jvp(gradients, *(_only(moving, x) for x in (arrays, tangents[1:])))
        of_wanted = tuple(slope if wants else None for slope, wants in zip(found, wanted, strict=True))
        of_moving = tuple(slope if moves else None for slope, moves in zip(found, moving, strict=True))
        return (out, of_wanted), (along(axis, of_moving, tangents[1:]), turned)

    loss.defjvp(loss_rule, symbolic_zeros=True)
    loss_and_slopes.defjvp(slopes_rule, symbolic_zeros=True)
    return lambda target, pred, axis, kept: loss(axis, kept, target, pred)


def _moves(tangent: Any) -> bool:
    return not isinstance(tangent, SymbolicZero)


def _only(chosen: tuple[bool, ...], arrays: Any) -> tuple[Array, ...]:
    return tuple(x for x, wanted in zip(arrays, chosen, strict=True) if wanted)


# Sums over the classes. Where two of them, or a sum and a slope, begin alike, XLA stores the beginning: so each counts
# from a maximum of its own (the same number but for infinities, whose rows the sum of exponentials makes NaN), and each
# leaves out an index by a constant of its own.


def _indices(x: Array, axis: int) -> Array:
    """One row: to broadcast it costs nothing."""
    return lax.expand_dims(jnp.arange(x.shape[axis], dtype=x.dtype), [i for i in range(x.ndim) if i != axis])


def _but(index: Array, x: Array, axis: int, constant: int = 1) -> Array:
    """The constant; 0 at the index."""
    return jnp.minimum(jnp.abs(_indices(x, axis) * constant - index * constant), constant)


def _at(x: Array, index: Array, axis: int) -> Array:
    return jnp.take_along_axis(x, index, axis, mode="promise_in_bounds")


def _maximum(z: Array, axis: int) -> tuple[Array, Array, Array, Array]:
    """The maximum, four times; the first one as it is."""
    m, largest = jnp.max(z, axis, keepdims=True), jnp.finfo(z.dtype).max
    return m, jnp.minimum(m, largest), jnp.maximum(m, -largest), jnp.clip(m, -largest, largest)


def _top(z: Array, axis: int, m: Array) -> Array:
    """An index of the maximum, as a float; 0 of a row that has none."""
    index = jnp.max(_indices(z, axis) - (m - z) * jnp.asarray(1e30, z.dtype), axis, keepdims=True)
    return jnp.where(index >= 0, index, 0.0)


# Labels: −log p_y. With m = max z, e = exp(z − m) and o = Σ_{j≠y} e_j, p_y is e_y/(o + e_y).


def _label_parts(labels: Array, z: Array, axis: int) -> tuple[Array, ...]:
    valid = (labels >= 0) & (labels < z.shape[axis])
    index = jnp.expand_dims(jnp.where(valid, labels, 0), axis)
    m = jnp.max(z, axis, keepdims=True)
    others = jnp.sum(jnp.exp(z - m) * _but(index.astype(z.dtype), z, axis), axis, keepdims=True)
    d = _at(z, index, axis) - m
    rest = others + jnp.expm1(d)  # nothing cancels: either the label has the maximum, or one of the others has
    loss = jnp.where(valid, jnp.squeeze(jnp.log1p(rest) - d, axis), math.nan)
    return loss, valid, index, m, others, rest


def _label_value(labels: Array, z: Array, axis: int) -> Array:
    return _label_parts(labels, z, axis)[0]


def _label_slopes(labels: Array, z: Array, axis: int, wanted: tuple[bool, bool]) -> Any:
    loss, valid, index, m, others, rest = _label_parts(labels, z, axis)
    scale = jnp.where(jnp.expand_dims(valid, axis), 1 / (1 + rest), 0.0)
    is_label = lax.broadcasted_iota(index.dtype, z.shape, axis) == index
    return loss, (None, jnp.where(is_label, -others * scale, jnp.exp(z - m) * scale))


def _label_formula(labels: Array, z: Array, axis: int) -> Array:
    return formulas.label_log_loss(backend, labels, z, axis, from_logits=True, epsilon=0.0)


_label_loss = _loss(_label_formula, _label_value, _label_slopes)


# Distributions: Σ t (log S − d), S = 1 + o, o without the top.


def _dense_parts(t: Array, z: Array, axis: int) -> tuple[Array, ...]:
    m, m_top, m_loss, m_slope = _maximum(z, axis)
    top = _top(z, axis, m_top)
    others = jnp.sum(jnp.exp(z - m) * _but(top, z, axis), axis, keepdims=True)
    largest = jnp.finfo(z.dtype).max
    most = jnp.minimum(jnp.abs(t) * largest, largest) * largest  # ∞; 0 where t = 0, and an infinite cost is none
    loss = jnp.sum(t * jnp.minimum((m_loss - z) + jnp.log1p(others), most), axis)
    return loss, top, others, m_slope


def _dense_value(t: Array, z: Array, axis: int) -> Array:
    return _dense_parts(t, z, axis)[0]


def _dense_slopes(t: Array, z: Array, axis: int, wanted: tuple[bool, bool]) -> Any:
    loss, top, others, m = _dense_parts(t, z, axis)
    of_target = of_pred = None
    if wanted[0]:
        of_target = formulas.affordable(backend, t, (m - z) + jnp.log1p(others))
    if wanted[1]:
        index = top.astype("int32")
        t_top, scale = _at(t, index, axis), 1 / (1 + others)
        t_others = jnp.sum(t * _but(top, z, axis, 2), axis, keepdims=True) / 2
        of_top = (t_others - t_top * others) * scale
        is_top = lax.broadcasted_iota("int32", z.shape, axis) == index
        of_pred = jnp.where(is_top, of_top, jnp.exp(z - m) * ((t_others + t_top) * scale) - t)
    return loss, (of_target, of_pred)


def _dense_formula(t: Array, z: Array, axis: int) -> Array:
    return formulas.categorical_crossentropy(
        backend, t, z, axis, from_logits=True, label_smoothing=0.0, epsilon=0.0, class_weight=None
    )


_dense_loss = _loss(_dense_formula, _dense_value, _dense_slopes)


# The kernels.


def _floating(pred: Array) -> Array:
    return pred if pred.dtype == "float64" else pred.astype("float32")


def _declined(pred: Array, axis: int, from_logits: bool) -> bool:
    return not from_logits or not 0 < pred.shape[axis] < MOST_CLASSES


def categorical_crossentropy(
    plain: Callable[[Array, Array], Array],
    target: Array,
    pred: Array,
    axis: int,
    kept: Array | None,
    *,
    from_logits: bool,
    label_smoothing: float,
    epsilon: float,
    class_weight: Array | None,
) -> Array | None:
    if _declined(pred, axis, from_logits):
        return None
    z = _floating(pred)
    weight = formulas.smooth(backend, target.astype(z.dtype), z.shape[axis], label_smoothing)
    return _dense_loss(weight if class_weight is None else class_weight * weight, z, axis, kept)


def label_log_loss(
    plain: Callable[[Array, Array], Array],
    labels: Array,
    pred: Array,
    axis: int,
    kept: Array | None,
    *,
    from_logits: bool,
    epsilon: float,
) -> Array | None:
    return None if _declined(pred, axis, from_logits) else _label_loss(labels, _floating(pred), axis, kept)


def sparse_categorical_crossentropy(
    plain: Callable[[Array, Array], Array],
    labels: Array,
    pred: Array,
    axis: int,
    kept: Array | None,
    *,
    from_logits: bool,
    label_smoothing: float,
    epsilon: float,
    class_weight: Array | None,
) -> Array | None:
    if _declined(pred, axis, from_logits) or label_smoothing or class_weight is not None:
        return None
    return _label_loss(labels, _floating(pred), axis, kept)


KERNELS: dict[str, Any] = {
    "categorical_crossentropy": categorical_crossentropy,
    "label_log_loss": label_log_loss,
    "sparse_categorical_crossentropy": sparse_categorical_crossentropy,
}
