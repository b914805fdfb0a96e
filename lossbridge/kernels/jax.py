"""JAX: faster ways to the per-sample losses of formulas.py (see Kernel in lossbridge/backend.py). No loss is defined here.

XLA stores every array of classes that a `where` puts into a sum; what is sums, products, minima and exponentials alone
it sums up as it goes, on a CPU ten times as fast. So the sums here are written without `where`, and the slopes, where it
costs nothing, with it: a slope reads the inputs again, and no array of classes is kept from the way forward.

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
        found = tuple(None if x is None else neutralise(backend, x, kept, axis, 0.0) for x in found)
        return neutralise(backend, loss, kept, None, 0.0), found

    loss = jax.custom_jvp(forward, nondiff_argnums=(0,))
    loss_and_slopes = jax.custom_jvp(both, nondiff_argnums=(0, 1))

    def along(axis: int, found: Any, tangents: Any) -> Array:
        return sum(
            jnp.sum(slope * tangent, axis) for slope, tangent in zip(found, tangents, strict=True) if slope is not None
        )

    def loss_rule(axis: int, primals: Any, tangents: Any) -> tuple[Array, Array]:
        wanted = tuple(not isinstance(tangent, SymbolicZero) for tangent in tangents[1:])
        out, found = loss_and_slopes(axis, wanted, *primals)
        return out, along(axis, found, tangents[1:]) if any(wanted) else jnp.zeros_like(out)

    def slopes_rule(axis: int, wanted: tuple[bool, bool], primals: Any, tangents: Any) -> tuple[Any, Any]:
        kept, *arrays = primals
        moving = tuple(not isinstance(tangent, SymbolicZero) for tangent in tangents[1:])
        out, found = loss_and_slopes(axis, wanted, *primals)

        def gradients(*moved: Array) -> Any:
            rest = iter(moved)
            at = [next(rest) if moves else x for x, moves in zip(arrays, moving, strict=True)]
            return jax.grad(plain, argnums=[i for i in (2, 3) if wanted[i - 2]])(axis, kept, *at)

        _, turned = jax.jvp(
            gradients,
            [x for x, moves in zip(arrays, moving, strict=True) if moves],
            [x for x, moves in zip(tangents[1:], moving, strict=True) if moves],
        )
        rest = iter(turned)
        both_moving = tuple(slope if moves else None for slope, moves in zip(found, moving, strict=True))
        return (out, found), (
            along(axis, both_moving, tangents[1:]),
            tuple(next(rest) if wants else None for wants in wanted),
        )

    loss.defjvp(loss_rule, symbolic_zeros=True)
    loss_and_slopes.defjvp(slopes_rule, symbolic_zeros=True)
    return lambda target, pred, axis, kept: loss(axis, kept, target, pred)


# Sums over the classes.


def _indices(x: Array, axis: int) -> Array:
    return lax.expand_dims(
        jnp.arange(x.shape[axis], dtype=x.dtype), [i for i in range(x.ndim) if i != axis]
    )  # one row: to broadcast it costs nothing


def _but(index: Array, x: Array, axis: int) -> Array:
    """1; 0 at the index."""
    return jnp.minimum(jnp.abs(_indices(x, axis) - index), 1)


def _is(index: Array, x: Array, axis: int) -> Array:
    return lax.broadcasted_iota(x.dtype, x.shape, axis) == index


def _at(x: Array, index: Array, axis: int) -> Array:
    return jnp.take_along_axis(x, index, axis, mode="promise_in_bounds")


def _top(z: Array, axis: int) -> Array:
    """An index of the maximum, as a float; 0 of a row that has none."""
    steps = jnp.asarray(1e30, z.dtype)
    index = jnp.max(_indices(z, axis) - (jnp.max(z, axis, keepdims=True) - z) * steps, axis, keepdims=True)
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


def _softmax_parts(z: Array, axis: int) -> tuple[Array, Array, Array]:
    m, top = jnp.max(z, axis, keepdims=True), _top(z, axis)
    return m, top, jnp.sum(jnp.exp(z - m) * _but(top, z, axis), axis, keepdims=True)


def _dense_loss_of(t: Array, z: Array, axis: int, m: Array, others: Array) -> Array:
    largest = jnp.finfo(z.dtype).max
    most = jnp.minimum(jnp.abs(t) * largest, largest) * largest  # ∞; 0 where t = 0, and an infinite cost is none
    return jnp.sum(t * jnp.minimum((m - z) + jnp.log1p(others), most), axis)


def _dense_value(t: Array, z: Array, axis: int) -> Array:
    m, _, others = _softmax_parts(z, axis)
    return _dense_loss_of(t, z, axis, m, others)


def _dense_slopes(t: Array, z: Array, axis: int, wanted: tuple[bool, bool]) -> Any:
    m, top, others = _softmax_parts(z, axis)
    of_target = of_pred = None
    if wanted[0]:
        of_target = formulas.affordable(backend, t, (m - z) + jnp.log1p(others))
    if wanted[1]:
        t_top = _at(t, top.astype("int32"), axis)
        t_others = jnp.sum(t * _but(top, z, axis), axis, keepdims=True)
        scale = 1 / (1 + others)
        of_top = (t_others - t_top * others) * scale
        of_pred = jnp.where(_is(top, z, axis), of_top, jnp.exp(z - m) * ((t_others + t_top) * scale) - t)
    return _dense_loss_of(t, z, axis, m, others), (of_target, of_pred)


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
