"""JAX: which path computes a request, how a rule is attached, and how JAX runs. Defines no loss.

On a CPU, XLA stores every array of the inputs' size that is the result of a `where` inside a sum. So a rule runs over
one block of rows after another, whose arrays fit the cache. Labels need no blocks, because their sum has no `where`
(see `jax_ops.sum_but`). A gradient reads the inputs again, and no array of their size is saved by the forward pass. On
other devices XLA fuses more, and there are no blocks.

Derivatives of a gradient, of either mode and any order, and those for weights are derivatives of the rule's value.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import SymbolicZero

from lossbridge.frameworks import jax_ops
from lossbridge.frameworks.framework import Choice, Path, by_formula
from lossbridge.maths import bernoulli, divergence, softmax
from lossbridge.maths.ops import Array, Rule
from lossbridge.reduction import neutralise
from lossbridge.spec import Request

name = "jax"
ops = jax_ops
# Conversion and inspection of arrays.
asarray, cast, concrete, dtype = ops.asarray, ops.cast, ops.concrete, ops.dtype
owns, quiet, shape, widest = ops.owns, ops.quiet, ops.shape, ops.widest

# Class indices are compared in float32, which represents all integers up to this.
MOST_CLASSES = 2**24
# Elements of a block: 1 MiB of float32, which fits a core's cache.
BLOCK = 2**18
# Up to so many classes XLA fuses the sum of products for labels; above, it takes four times as long as a plain sum.
SUMMED_AT_ONCE = 2**15

# Rules without gradients that are faster in blocks too; JAX differentiates each block.
DERIVED_IN_BLOCKS = tuple(
    rule.name for rule in (softmax.FOCAL, softmax.FOCAL_PROBABILITIES, bernoulli.FOCAL, bernoulli.FOCAL_PROBABILITIES)
)


# The paths, the fastest first.


def choose(r: Request) -> Choice:
    """The first that does not refuse the request."""
    no_rule = _refuses_rule(r)
    if not no_rule:
        return Choice(PATHS["rule"])
    no_blocks = _refuses_blocks(r)
    if not no_blocks:
        return Choice(PATHS["blocks"], (("rule", no_rule),))
    return Choice(PATHS["formula"], (("rule", no_rule), ("blocks", no_blocks)))


def chosen(request: Callable[[Array, Array], Request], target: Any, pred: Any, under: str) -> Choice:
    found: list[Choice] = []

    def traced(pred: Array) -> Array:
        found.append(choose(request(target, pred)))
        return pred

    jax.eval_shape(traced, pred)
    return found[0]


def _refuses_rule(r: Request) -> str:
    if r.rule.gradients is None:
        return f"no derivative rule is written for {r.rule.name}"
    if r.axis is not None and not r.pred.shape[r.axis]:
        return "there are no classes"
    if r.rule is softmax.LABELS and r.pred.shape[r.axis] >= MOST_CLASSES:
        return "float32 does not count so many classes"
    return ""


def _refuses_blocks(r: Request) -> str:
    if r.rule.name not in DERIVED_IN_BLOCKS:
        return f"{r.rule.name} is no faster in blocks of rows"
    return "there are no classes" if r.axis is not None and not r.pred.shape[r.axis] else ""


def _by_rule(r: Request) -> Array:
    weights = {name: x for name, x in r.options.items() if isinstance(x, jax.Array)}
    numbers = tuple((name, x) for name, x in r.options.items() if name not in weights)
    plan = _Plan(r.rule, r.axis, numbers, _pays_in_blocks(r))
    return _losses(plan, r.valid, r.target, r.pred, weights)


def _by_formula(r: Request) -> Array:
    return by_formula(ops, r, r.target, r.pred)


PATHS: Mapping[str, Path] = {
    path.name: path
    for path in (
        Path(
            "rule",
            _by_rule,
            "the formula, over JAX's operations, large arrays on a CPU in blocks of rows",
            "the derivative rule, over JAX's operations",
        ),
        Path(
            "blocks",
            _by_rule,
            "the formula, over JAX's operations, large arrays on a CPU in blocks of rows",
            "automatic differentiation, of each block",
        ),
        Path(
            "formula",
            _by_formula,
            "the formula, over JAX's operations",
            "automatic differentiation, of the formula",
        ),
    )
}


# One attachment of a derivative, for all rules: losses, and losses with gradients, each with its own derivative.


class _Plan(NamedTuple):
    """The static arguments: XLA recompiles for each."""

    rule: Rule
    axis: int | None
    options: tuple[tuple[str, Any], ...]  # numbers
    in_blocks: bool

    @property
    def gradients_in_blocks(self) -> bool:
        """Faster where the value already computes most of a gradient."""
        return self.rule == divergence.LOGITS  # compared by value, because JAX copies it


Needs = tuple[bool, bool]


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _losses(plan: _Plan, valid: Array | None, target: Array, pred: Array, weights: Mapping[str, Array]) -> Array:
    return _forward(plan, valid, target, pred, weights)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _losses_and_gradients(
    plan: _Plan, needs: Needs, valid: Array | None, target: Array, pred: Array, weights: Mapping[str, Array]
) -> Any:
    return _forward_and_gradients(plan, needs, valid, target, pred, weights)


@functools.partial(jax.jit, static_argnums=0)
def _forward(plan: _Plan, valid: Array | None, target: Array, pred: Array, weights: Mapping[str, Array]) -> Array:
    return neutralise(ops, _compute(plan, None, target, pred, weights)[0], valid, None, 0.0)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _forward_and_gradients(
    plan: _Plan, needs: Needs, valid: Array | None, target: Array, pred: Array, weights: Mapping[str, Array]
) -> Any:
    losses, found = _compute(plan, needs if plan.gradients_in_blocks else None, target, pred, weights)
    if not plan.gradients_in_blocks:
        found = _gradients_of(plan, needs, *_floating(target, pred), plan.axis, found, weights)
    gradients = (None if x is None else neutralise(ops, x, valid, plan.axis, 0.0) for x in found)
    return neutralise(ops, losses, valid, None, 0.0), tuple(gradients)


@functools.partial(_losses.defjvp, symbolic_zeros=True)
def _losses_rule(plan: _Plan, primals: Any, tangents: Any) -> tuple[Array, Array]:
    if not _moves(tangents[1:]):
        losses = _losses(plan, *primals)
        return losses, jnp.zeros_like(losses)
    needs = (_moves(tangents[1]), _moves(tangents[2]))
    losses, gradients = _losses_and_gradients(plan, needs, *primals)
    return losses, _moved(plan, gradients, primals, tangents)


@functools.partial(_losses_and_gradients.defjvp, symbolic_zeros=True)
def _gradients_rule(plan: _Plan, needs: Needs, primals: Any, tangents: Any) -> tuple[Any, Any]:
    valid, arrays = primals[0], primals[1:]
    more = (needs[0] or _moves(tangents[1]), needs[1] or _moves(tangents[2]))
    losses, found = _losses_and_gradients(plan, more, *primals)

    def gradients(target: Array, pred: Array, weights: Mapping[str, Array]) -> Any:
        def value(target: Array, pred: Array) -> Array:
            return _value(plan, valid, target, pred, weights)

        return _derived(value, needs, *_floating(target, pred))

    needed = tuple(x if need else None for x, need in zip(found, needs, strict=True))
    turned = _derivative(gradients, arrays, tangents[1:])
    return (losses, needed), (_moved(plan, found, primals, tangents), turned)


def _moved(plan: _Plan, gradients: Any, primals: Any, tangents: Any) -> Array:
    """The tangent of the losses: gradient times tangent, summed along the axis."""
    if _moves(tangents[3]):
        return _derivative(functools.partial(_value, plan, primals[0]), primals[1:], tangents[1:])
    terms = [
        gradient * tangent if plan.axis is None else jnp.sum(gradient * tangent, plan.axis)
        for gradient, tangent in zip(gradients, tangents[1:3], strict=True)
        if _moves(tangent)
    ]
    return sum(terms[1:], start=terms[0])


def _value(plan: _Plan, valid: Array | None, target: Array, pred: Array, weights: Mapping[str, Array]) -> Array:
    """The losses by the formula, for JAX to differentiate."""
    target, pred = _floating(target, pred)
    if jnp.issubdtype(target.dtype, jnp.floating):
        target = neutralise(ops, target, valid, plan.axis, 0.5)
    pred = neutralise(ops, pred, valid, plan.axis, 0.5)
    losses = plan.rule.value(ops, target, pred, plan.axis, **dict(plan.options), **weights)[0]
    return neutralise(ops, losses, valid, None, 0.0)


def _compute(plan: _Plan, needs: Needs | None, target: Array, pred: Array, weights: Mapping[str, Array]) -> Any:
    """The losses and the residuals; with `needs`, the losses and the gradients."""

    def at_once(target: Array, pred: Array, weights: Mapping[str, Array], axis: int | None = plan.axis) -> Any:
        target, pred = _floating(target, pred)
        losses, residuals = plan.rule.value(ops, target, pred, axis, **dict(plan.options), **weights)
        if needs is None:
            return losses, residuals
        return losses, _gradients_of(plan, needs, target, pred, axis, residuals, weights)

    if plan.axis is None or not plan.in_blocks:
        return at_once(target, pred, weights)
    in_blocks = functools.partial(_in_blocks, at_once, plan.axis)
    return lax.platform_dependent(target, pred, weights, cpu=in_blocks, default=at_once)


def _gradients_of(
    plan: _Plan,
    needs: Needs,
    target: Array,
    pred: Array,
    axis: int | None,
    residuals: Any,
    weights: Mapping[str, Array],
) -> Any:
    options = {**dict(plan.options), **weights}
    if plan.rule.gradients is not None:
        return plan.rule.gradients(ops, target, pred, axis, residuals, needs, **options)
    return _derived(lambda *pair: plan.rule.value(ops, *pair, axis, **options)[0], needs, target, pred)


def _derived(function: Callable[..., Array], needs: Needs, target: Array, pred: Array) -> Any:
    """The gradients of the sum of function(target, pred), by JAX."""
    pair = (target, pred)

    def total(*chosen: Array) -> Array:
        given = iter(chosen)
        return function(*(next(given) if need else x for need, x in zip(needs, pair, strict=True))).sum()

    chosen = [x for need, x in zip(needs, pair, strict=True) if need]
    found = iter(jax.grad(total, range(len(chosen)))(*chosen))
    return tuple(next(found) if need else None for need in needs)


def _floating(target: Array, pred: Array) -> tuple[Array, Array]:
    """Both in the dtype of the computation; labels unchanged."""
    dtype = "float64" if pred.dtype == "float64" else "float32"
    return target.astype(dtype) if target.ndim == pred.ndim else target, pred.astype(dtype)


def _moves(tangents: Any) -> bool:
    return any(not isinstance(tangent, SymbolicZero) for tangent in jax.tree.leaves(tangents))


def _derivative(function: Callable[..., Any], arrays: Any, tangents: Any) -> Any:
    """The directional derivative of function(*arrays) along the tangents."""
    leaves, tree = jax.tree.flatten(arrays)
    steps = tree.flatten_up_to(tangents)
    moving = [i for i, step in enumerate(steps) if _moves(step)]

    def of_moving(*moved: Array) -> Any:
        at = dict(zip(moving, moved, strict=True))
        return function(*tree.unflatten([at.get(i, x) for i, x in enumerate(leaves)]))

    return jax.jvp(of_moving, [leaves[i] for i in moving], [steps[i] for i in moving])[1]


# Blocks of rows.


def _pays_in_blocks(r: Request) -> bool:
    """Whether the input is large and on one device: a loop over sharded rows would gather them on every device.

    Under jit the sharding is unknown, so that the number of devices decides.
    """
    pred = r.pred
    if r.axis is None:
        return False
    plain_labels = not r.options.get("label_smoothing") and r.options.get("class_weight") is None
    if r.rule is softmax.LABELS and plain_labels and pred.shape[r.axis] <= SUMMED_AT_ONCE:
        return False
    on_a_mesh = not jax.typeof(pred).sharding.mesh.empty  # under shard_map, or explicitly
    if on_a_mesh or jax.device_count() > 1 or not all(isinstance(size, int) for size in pred.shape):
        return False
    return bool(pred.size > BLOCK)


def _in_blocks(value: Callable[..., Any], axis: int, target: Array, pred: Array, weights: Mapping[str, Array]) -> Any:
    """value(…) of one block of rows after another. The last block overlaps the one before: all have one size."""
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

    def write(i: Array, found: Any) -> Any:
        start = jnp.minimum(i * step, rows - step)
        put = functools.partial(lax.dynamic_update_slice_in_dim, start_index=start, axis=0)
        return jax.tree.map(put, found, block(start))

    found = jax.tree.map(lambda x: jnp.zeros((rows, *x.shape[1:]), x.dtype), jax.eval_shape(block, 0))
    found = lax.fori_loop(0, -(-rows // step), write, found)

    def reshaped(x: Array) -> Array:
        of_rows = x.shape[1:2] if x.ndim == len(dense) else ()
        return x.reshape(shape[:axis] + of_rows + shape[axis + 1 :])

    return jax.tree.map(reshaped, found)


# Running.


def value_and_grad(function: Callable[[Array], Array], x: Array) -> tuple[Array, Array]:
    def summed(x: Array) -> tuple[Array, Array]:
        value = function(x)
        return value.sum(), value

    (_, value), gradient = jax.value_and_grad(summed, has_aux=True)(x)
    return value, gradient


def compilers() -> Mapping[str, Callable[[Callable[..., Any]], Callable[..., Any]]]:
    return {"jit": jax.jit}


def devices() -> list[str]:
    kinds = {device.platform for device in jax.devices()} | {"cpu"}
    return sorted({"gpu": "cuda"}.get(kind, kind) for kind in kinds)


def place(x: np.ndarray, dtype: str, device: str) -> Array:
    return jax.device_put(jnp.asarray(x, dtype=dtype), jax.devices(device)[0])


def to_numpy(x: Array) -> np.ndarray:
    x = np.asarray(x)
    return x.astype(np.float32) if x.dtype.name == "bfloat16" else x


def scope(dtype: str, device: str) -> AbstractContextManager[object]:
    return jax.enable_x64(True) if dtype in ("float64", "int64") else nullcontext()


def version() -> str:
    return str(jax.__version__)
