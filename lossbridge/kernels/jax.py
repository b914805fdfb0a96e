"""JAX: faster ways to the per-sample losses of formulas.py (see Kernel in lossbridge/backend.py). No loss is defined.

On a CPU, XLA stores every array of classes that a `where` puts into a sum. So there are two ways to the sums here: most
run over blocks of rows, one after the other, whose arrays stay in the cache; those of the cross-entropies have no
`where`, but sums, products, minima and exponentials alone, which XLA sums up as it goes. A slope reads the inputs
again, and no array of classes is kept from the way forward.

Derivatives of a slope, of either mode and any order, are those of the formula; so are those for class weights.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from lossbridge import formulas
from lossbridge.backend import Array
from lossbridge.backends import jax as backend
from lossbridge.kernels import closed
from lossbridge.reduction import neutralise

# Class indices are compared as float32 numbers, which count no further.
MOST_CLASSES = 2**24
# Elements of a block: 1 MiB of float32, the cache of a core.
BLOCK = 2**18

# (axis, options): what XLA compiles anew for.
Static = tuple[int | None, tuple[tuple[str, Any], ...]]


def _loss(
    formula: Callable[..., Array], value: Callable[..., Any], slopes: Callable[..., Any], in_blocks: bool = True
) -> Callable[..., Array]:
    """A differentiable function of (target, pred, axis, kept, **options) that computes `formula`.

    `value` and `slopes` are as in closed.py, and may give anything where nothing is kept.
    """

    def plain(static: Static, kept: Array | None, target: Array, pred: Array, weights: Mapping[str, Array]) -> Array:
        axis, options = static
        target, pred = _floating(target, pred)
        if jnp.issubdtype(target.dtype, jnp.floating):
            target = neutralise(backend, target, kept, axis, 0.5)
        pred = neutralise(backend, pred, kept, axis, 0.5)
        return neutralise(backend, formula(backend, target, pred, axis, **dict(options), **weights), kept, None, 0.0)

    def known(static: Static, target: Array, pred: Array, weights: Mapping[str, Array]) -> Any:
        axis, options = static

        def at_once(target: Array, pred: Array, weights: Mapping[str, Array], axis: int | None = axis) -> Any:
            return value(backend, *_floating(target, pred), axis, **dict(options), **weights)

        if axis is None or not in_blocks or pred.size <= BLOCK:
            return at_once(target, pred, weights)
        return lax.platform_dependent(
            target, pred, weights, cpu=functools.partial(_in_blocks, at_once, axis), default=at_once
        )

    @functools.partial(jax.jit, static_argnums=0)
    def forward(static: Static, kept: Array | None, target: Array, pred: Array, weights: Mapping[str, Array]) -> Array:
        return neutralise(backend, known(static, target, pred, weights)[0], kept, None, 0.0)

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def both(
        static: Static,
        wanted: tuple[bool, bool],
        kept: Array | None,
        target: Array,
        pred: Array,
        weights: Mapping[str, Array],
    ) -> Any:
        axis, options = static
        loss, rows = known(static, target, pred, weights)
        found = slopes(backend, *_floating(target, pred), axis, rows, wanted, **dict(options), **weights)
        return (
            neutralise(backend, loss, kept, None, 0.0),
            tuple(None if x is None else neutralise(backend, x, kept, axis, 0.0) for x in found),
        )

    loss = jax.custom_jvp(forward, nondiff_argnums=(0,))
    loss_and_slopes = jax.custom_jvp(both, nondiff_argnums=(0, 1))

    def moved(static: Static, found: Any, primals: Any, tangents: Any) -> Array:
        """What the loss changes by, `found` being its slopes."""
        kept, arrays = primals[0], primals[1:]
        if _moves(tangents[3]):
            return _derivative(functools.partial(plain, static, kept), arrays, tangents[1:])
        axis = static[0]
        terms = [
            slope * tangent if axis is None else jnp.sum(slope * tangent, axis)
            for slope, tangent in zip(found, tangents[1:3], strict=True)
            if _moves(tangent)
        ]
        return sum(terms[1:], start=terms[0])

    def loss_rule(static: Static, primals: Any, tangents: Any) -> tuple[Array, Array]:
        wanted = tuple(_moves(tangent) for tangent in tangents[1:3])
        if not _moves(tangents[1:]):
            out = loss(static, *primals)
            return out, jnp.zeros_like(out)
        out, found = loss_and_slopes(static, wanted, *primals)
        return out, moved(static, found, primals, tangents)

    def slopes_rule(static: Static, wanted: tuple[bool, bool], primals: Any, tangents: Any) -> tuple[Any, Any]:
        kept, arrays = primals[0], primals[1:]
        needed = tuple(wants or _moves(tangent) for wants, tangent in zip(wanted, tangents[1:3], strict=True))
        out, found = loss_and_slopes(static, needed, *primals)

        def gradients(target: Array, pred: Array, weights: Mapping[str, Array]) -> Any:
            return _gradients(
                lambda target, pred: plain(static, kept, target, pred, weights), wanted, *_floating(target, pred)
            )

        of_wanted = tuple(slope if wants else None for slope, wants in zip(found, wanted, strict=True))
        turned = _derivative(gradients, arrays, tangents[1:])
        return (out, of_wanted), (moved(static, found, primals, tangents), turned)

    loss.defjvp(loss_rule, symbolic_zeros=True)
    loss_and_slopes.defjvp(slopes_rule, symbolic_zeros=True)

    def call(target: Array, pred: Array, axis: int | None, kept: Array | None, **options: Any) -> Array:
        weights = {name: x for name, x in options.items() if isinstance(x, jax.Array)}
        static = tuple((name, x) for name, x in options.items() if name not in weights)
        return loss((axis, static), kept, target, pred, weights)

    return call


def _floating(target: Array, pred: Array) -> tuple[Array, Array]:
    """In the dtype of the computation; labels as they are."""
    dtype = "float64" if pred.dtype == "float64" else "float32"
    return target.astype(dtype) if target.ndim == pred.ndim else target, pred.astype(dtype)


def _moves(tangents: Any) -> bool:
    return any(not isinstance(tangent, SymbolicZero) for tangent in jax.tree.leaves(tangents))


def _derivative(function: Callable[..., Any], arrays: Any, tangents: Any) -> Any:
    """That of function(*arrays) along the tangents."""
    leaves, tree = jax.tree.flatten(arrays)
    steps = tree.flatten_up_to(tangents)
    moving = [i for i, step in enumerate(steps) if _moves(step)]

    def of_moving(*moved: Array) -> Any:
        at = dict(zip(moving, moved, strict=True))
        return function(*tree.unflatten([at.get(i, x) for i, x in enumerate(leaves)]))

    return jax.jvp(of_moving, [leaves[i] for i in moving], [steps[i] for i in moving])[1]


def _in_blocks(value: Callable[..., Any], axis: int, target: Array, pred: Array, weights: Mapping[str, Array]) -> Any:
    """value(…), of one block of rows after the other. The last block reaches back over rows that it finds again."""
    shape = pred.shape
    rows, classes, inner = math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])
    step = max(1, BLOCK // (classes * inner))
    if step >= rows:
        return value(target, pred, weights)
    samples = (rows,) if inner == 1 else (rows, inner)
    dense = (rows, classes, *samples[1:])
    pred, target = pred.reshape(dense), target.reshape(dense if target.ndim == pred.ndim else samples)
    weights = {name: x.reshape((-1,) + (1,) * (len(dense) - 2)) if x.ndim else x for name, x in weights.items()}

    def block(start: Array) -> Any:
        return value(*(lax.dynamic_slice_in_dim(x, start, step) for x in (target, pred)), weights, 1)

    def fill(i: Array, found: Any) -> Any:
        start = jnp.minimum(i * step, rows - step)
        put = functools.partial(lax.dynamic_update_slice_in_dim, start_index=start, axis=0)
        return jax.tree.map(put, found, block(start))

    found = jax.tree.map(lambda x: jnp.zeros((rows, *x.shape[1:]), x.dtype), jax.eval_shape(block, 0))
    found = lax.fori_loop(0, -(-rows // step), fill, found)
    sample_shape, row_shape = shape[:axis] + shape[axis + 1 :], (*shape[:axis], 1, *shape[axis + 1 :])
    return jax.tree.map(lambda x: x.reshape(row_shape if x.ndim == len(dense) else sample_shape), found)


def _gradients(function: Callable[..., Array], wanted: tuple[bool, bool], target: Array, pred: Array) -> Any:
    """Of the sum of function(target, pred), for those of the two that are wanted."""
    pair = (target, pred)

    def total(*chosen: Array) -> Array:
        rest = iter(chosen)
        return function(*(next(rest) if wants else x for wants, x in zip(wanted, pair, strict=True))).sum()

    chosen = [x for wants, x in zip(wanted, pair, strict=True) if wants]
    found = iter(jax.grad(total, range(len(chosen)))(*chosen))
    return tuple(next(found) if wants else None for wants in wanted)


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


def _label_value(b: Any, labels: Array, z: Array, axis: int) -> tuple[Array, tuple[Array, ...]]:
    valid = (labels >= 0) & (labels < z.shape[axis])
    index = jnp.expand_dims(jnp.where(valid, labels, 0), axis)
    m = jnp.max(z, axis, keepdims=True)
    others = jnp.sum(jnp.exp(z - m) * _but(index.astype(z.dtype), z, axis), axis, keepdims=True)
    d = _at(z, index, axis) - m
    rest = others + jnp.expm1(d)  # nothing cancels: either the label has the maximum, or one of the others has
    loss = jnp.where(valid, jnp.squeeze(jnp.log1p(rest) - d, axis), math.nan)
    return loss, (valid, index, m, others, rest)


def _label_slopes(
    b: Any, labels: Array, z: Array, axis: int, known: tuple[Array, ...], wanted: tuple[bool, bool]
) -> Any:
    valid, index, m, others, rest = known
    scale = jnp.where(jnp.expand_dims(valid, axis), 1 / (1 + rest), 0.0)
    is_label = lax.broadcasted_iota(index.dtype, z.shape, axis) == index
    return None, jnp.where(is_label, -others * scale, jnp.exp(z - m) * scale)


_label_loss = _loss(
    functools.partial(formulas.label_log_loss, from_logits=True, epsilon=0.0),
    _label_value,
    _label_slopes,
    in_blocks=False,
)


# Distributions: Σ t (log S − d), S = 1 + o, o without the top.


def _dense_value(b: Any, t: Array, z: Array, axis: int) -> tuple[Array, tuple[Array, ...]]:
    m, m_top, m_loss, m_slope = _maximum(z, axis)
    top = _top(z, axis, m_top)
    others = jnp.sum(jnp.exp(z - m) * _but(top, z, axis), axis, keepdims=True)
    largest = jnp.finfo(z.dtype).max
    most = jnp.minimum(jnp.abs(t) * largest, largest) * largest  # ∞; 0 where t = 0, and an infinite cost is none
    loss = jnp.sum(t * jnp.minimum((m_loss - z) + jnp.log1p(others), most), axis)
    return loss, (top, others, m_slope)


def _dense_slopes(b: Any, t: Array, z: Array, axis: int, known: tuple[Array, ...], wanted: tuple[bool, bool]) -> Any:
    top, others, m = known
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
    return of_target, of_pred


_dense_loss = _loss(
    functools.partial(
        formulas.categorical_crossentropy, from_logits=True, label_smoothing=0.0, epsilon=0.0, class_weight=None
    ),
    _dense_value,
    _dense_slopes,
    in_blocks=False,
)


# Divergences and trials, in blocks.


def _of_formula(formula: Callable[..., Array]) -> Callable[..., Array]:
    """In blocks as it stands, with the slopes that JAX finds of it: where these need nothing of the rows."""

    def value(b: Any, target: Array, pred: Array, axis: int | None, **options: Any) -> tuple[Array, tuple[()]]:
        return formula(b, target, pred, axis, **options), ()

    def slopes(
        b: Any, target: Array, pred: Array, axis: int | None, known: Any, wanted: tuple[bool, bool], **options: Any
    ) -> Any:
        return _gradients(lambda *pair: formula(b, *pair, axis, **options), wanted, target, pred)

    return _loss(formula, value, slopes)


_kl_loss = _loss(functools.partial(formulas.kl_divergence, from_logits=False), closed.kl_value, closed.kl_slopes)
_distillation_loss = _loss(formulas.distillation_loss, closed.kl_of_logits_value, closed.kl_of_logits_slopes)
_binary_loss = _loss(formulas.binary_crossentropy, closed.bernoulli_value, closed.bernoulli_slopes)
_trials_loss = _loss(formulas.bernoulli_log_loss, closed.bernoulli_value, closed.bernoulli_slopes)
_focal_loss = _of_formula(formulas.categorical_focal_crossentropy)
_binary_focal_loss = _of_formula(formulas.binary_focal_crossentropy)


# The kernels.


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
    weight, z = _floating(target, pred)
    weight = formulas.smooth(backend, weight, z.shape[axis], label_smoothing)
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
    return None if _declined(pred, axis, from_logits) else _label_loss(labels, pred, axis, kept)


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
    return _label_loss(labels, pred, axis, kept)


def kl_divergence(
    plain: Callable[[Array, Array], Array],
    target: Array,
    pred: Array,
    axis: int,
    kept: Array | None,
    *,
    from_logits: bool,
    epsilon: float,
) -> Array | None:
    if from_logits:
        return _distillation_loss(target, pred, axis, kept, temperature=1.0)
    return _kl_loss(target, pred, axis, kept, epsilon=epsilon)


def _every_time(loss: Callable[..., Array]) -> Callable[..., Array]:
    def kernel(
        plain: Callable[[Array, Array], Array],
        target: Array,
        pred: Array,
        axis: int | None,
        kept: Array | None,
        **options: Any,
    ) -> Array:
        return loss(target, pred, axis, kept, **options)

    return kernel


KERNELS: dict[str, Any] = {
    "categorical_crossentropy": categorical_crossentropy,
    "label_log_loss": label_log_loss,
    "sparse_categorical_crossentropy": sparse_categorical_crossentropy,
    "kl_divergence": kl_divergence,
    "distillation_loss": _every_time(_distillation_loss),
    "binary_crossentropy": _every_time(_binary_loss),
    "bernoulli_log_loss": _every_time(_trials_loss),
    "categorical_focal_crossentropy": _every_time(_focal_loss),
    "binary_focal_crossentropy": _every_time(_binary_focal_loss),
}
