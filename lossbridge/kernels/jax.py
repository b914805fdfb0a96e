"""JAX: faster ways to the per-sample losses of formulas.py (see Kernel in lossbridge/backend.py). No loss is defined.

On a CPU, XLA stores every array of classes that a `where` puts into a sum. So there are two ways to the sums here: most
run over blocks of rows, one after the other, whose arrays stay in the cache; that of labels has no `where`, but
products, minima and exponentials alone, which XLA sums up as it goes. A slope reads the inputs again, and no array of
classes is kept from the way forward. Elsewhere than on a CPU XLA fuses more, and there are no blocks.

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

# Classes up to which XLA sums up the products of labels as it goes; of more it takes four times as long as of a sum.
SUMMED_AT_ONCE = 2**15

# (axis, options): what XLA compiles anew for.
Static = tuple[int | None, tuple[tuple[str, Any], ...]]


def _loss(
    formula: Callable[..., Array],
    value: Callable[..., Any],
    slopes: Callable[..., Any],
    *,
    in_blocks: bool = True,
    slopes_in_blocks: bool = False,
) -> Callable[..., Array]:
    """A differentiable function of (target, pred, axis, kept, **options) that computes `formula`.

    `value` and `slopes` are as in closed.py, and may give anything where nothing is kept. `slopes_in_blocks` pays where
    most of a slope has been computed for the value.
    """

    def plain(static: Static, kept: Array | None, target: Array, pred: Array, weights: Mapping[str, Array]) -> Array:
        axis, options = static
        target, pred = _floating(target, pred)
        if jnp.issubdtype(target.dtype, jnp.floating):
            target = neutralise(backend, target, kept, axis, 0.5)
        pred = neutralise(backend, pred, kept, axis, 0.5)
        return neutralise(backend, formula(backend, target, pred, axis, **dict(options), **weights), kept, None, 0.0)

    def compute(
        static: Static, wanted: tuple[bool, bool] | None, target: Array, pred: Array, weights: Mapping[str, Array]
    ) -> Any:
        """The losses, and what is known of the rows; if wanted, the slopes instead."""
        axis, options = static

        def at_once(target: Array, pred: Array, weights: Mapping[str, Array], axis: int | None = axis) -> Any:
            target, pred = _floating(target, pred)
            loss, known = value(backend, target, pred, axis, **dict(options), **weights)
            if wanted is None:
                return loss, known
            return loss, slopes(backend, target, pred, axis, known, wanted, **dict(options), **weights)

        if axis is None or not in_blocks or not _goes_in_blocks(pred):
            return at_once(target, pred, weights)
        return lax.platform_dependent(
            target, pred, weights, cpu=functools.partial(_in_blocks, at_once, axis), default=at_once
        )

    @functools.partial(jax.jit, static_argnums=0)
    def forward(static: Static, kept: Array | None, target: Array, pred: Array, weights: Mapping[str, Array]) -> Array:
        return neutralise(backend, compute(static, None, target, pred, weights)[0], kept, None, 0.0)

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
        loss, found = compute(static, wanted if slopes_in_blocks else None, target, pred, weights)
        if not slopes_in_blocks:
            found = slopes(backend, *_floating(target, pred), axis, found, wanted, **dict(options), **weights)
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


def _goes_in_blocks(pred: Array) -> bool:
    """Whether it is large, and lies on one device: a loop over rows that are shared out would gather them on each.

    Which of them are is hidden under jit, so that the number of devices decides.
    """
    on_a_mesh = not jax.typeof(pred).sharding.mesh.empty  # under shard_map, or explicitly
    if on_a_mesh or jax.device_count() > 1 or not all(isinstance(size, int) for size in pred.shape):
        return False
    return bool(pred.size > BLOCK)


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

    def as_before(x: Array) -> Array:
        of_rows = x.shape[1:2] if x.ndim == len(dense) else ()
        return x.reshape(shape[:axis] + of_rows + shape[axis + 1 :])

    return jax.tree.map(as_before, found)


def _gradients(function: Callable[..., Array], wanted: tuple[bool, bool], target: Array, pred: Array) -> Any:
    """Of the sum of function(target, pred), for those of the two that are wanted."""
    pair = (target, pred)

    def total(*chosen: Array) -> Array:
        rest = iter(chosen)
        return function(*(next(rest) if wants else x for wants, x in zip(wanted, pair, strict=True))).sum()

    chosen = [x for wants, x in zip(wanted, pair, strict=True) if wants]
    found = iter(jax.grad(total, range(len(chosen)))(*chosen))
    return tuple(next(found) if wants else None for wants in wanted)


# Labels, all at once: −log p_y. With m = max z, e = exp(z − m) and o = Σ_{j≠y} e_j, p_y is e_y/(o + e_y).


def _but(index: Array, x: Array, axis: int) -> Array:
    """1; 0 at the index. XLA counts in float32 without storing anything, in float64 it would."""
    places = lax.broadcasted_iota("float32", x.shape, axis).astype(x.dtype)
    return jnp.minimum(jnp.abs(places - index), 1)


def _at(x: Array, index: Array, axis: int) -> Array:
    return jnp.take_along_axis(x, index, axis, mode="promise_in_bounds")


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


# In blocks: distributions, and labels with smoothing or weights.


def _dense_formula(b: Any, target: Array, z: Array, axis: int, *, class_weight: Any = None, **options: Any) -> Array:
    labels = target.ndim < z.ndim
    formula = formulas.sparse_categorical_crossentropy if labels else formulas.categorical_crossentropy
    return formula(b, target, z, axis, from_logits=True, epsilon=0.0, class_weight=class_weight, **options)


_dense_loss = _loss(_dense_formula, closed.dense_value, closed.dense_slopes)


# In blocks: divergences, trials and focal losses.


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
_distillation_loss = _loss(
    formulas.distillation_loss, closed.kl_of_logits_value, closed.kl_of_logits_slopes, slopes_in_blocks=True
)
_binary_loss = _loss(formulas.binary_crossentropy, closed.bernoulli_value, closed.bernoulli_slopes)
_trials_loss = _loss(formulas.bernoulli_log_loss, closed.bernoulli_value, closed.bernoulli_slopes)
_focal_loss = _of_formula(formulas.categorical_focal_crossentropy)
_binary_focal_loss = _of_formula(formulas.binary_focal_crossentropy)


# The kernels.


def _given(class_weight: Array | None) -> dict[str, Array]:
    return {} if class_weight is None else {"class_weight": class_weight}


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
    if not from_logits or not pred.shape[axis]:
        return None
    return _dense_loss(target, pred, axis, kept, label_smoothing=label_smoothing, **_given(class_weight))


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
    return None if _declined(pred, axis, from_logits) else _of_labels(labels, pred, axis, kept)


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
    if _declined(pred, axis, from_logits):
        return None
    if label_smoothing or class_weight is not None:
        return _dense_loss(labels, pred, axis, kept, label_smoothing=label_smoothing, **_given(class_weight))
    return _of_labels(labels, pred, axis, kept)


def _of_labels(labels: Array, pred: Array, axis: int, kept: Array | None) -> Array:
    if pred.shape[axis] > SUMMED_AT_ONCE and _goes_in_blocks(pred):
        return _dense_loss(labels, pred, axis, kept, label_smoothing=0.0)
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
