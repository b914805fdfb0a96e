"""JAX: a derivative rule attached to its formula, over JAX's operations.

Derivatives of a gradient, of either mode and any order, and those for weights are derivatives of the rule's value.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from lossbridge.frameworks import jax_ops
from lossbridge.frameworks.framework import ready
from lossbridge.maths.ops import ANYWHERE, Array, Gradients, Residuals, Rule
from lossbridge.reduction import neutralise
from lossbridge.spec import Request

ops = jax_ops


class Plan(NamedTuple):
    """The static arguments of a request: XLA recompiles for each."""

    rule: Rule
    axis: int | None
    options: tuple[tuple[str, Any], ...]  # numbers
    domain: bool  # whether what lies outside the rule's domains is NaN


Needs = tuple[bool, bool]  # a gradient for the target, for the predictions
Weights = Mapping[str, Array]  # the options that are arrays


def plan_of(r: Request) -> tuple[Plan, Weights]:
    weights = {name: x for name, x in r.options.items() if isinstance(x, jax.Array)}
    numbers = tuple((name, x) for name, x in r.options.items() if name not in weights)
    return Plan(r.rule, r.axis, numbers, r.domain), weights


def losses(r: Request) -> Array:
    """The losses of a request whose rule has gradients."""
    plan, weights = plan_of(r)
    return _losses(plan, r.valid, r.target, r.pred, weights)


def value(plan: Plan, valid: Array | None, target: Array, pred: Array, weights: Weights) -> Array:
    """The losses by the formula, for JAX to differentiate."""
    target, pred = prepared(plan, valid, target, pred)
    found = plan.rule.value(ops, target, pred, plan.axis, **dict(plan.options), **weights)[0]
    return neutralise(ops, found, valid, None, 0.0)


@functools.partial(jax.jit, static_argnums=(0, 1))
def losses_and_gradients(
    plan: Plan, needs: Needs, valid: Array | None, target: Array, pred: Array, weights: Weights
) -> tuple[Array, Gradients]:
    """The losses, and the gradients of their sum in the dtype of the computation, by the rule."""
    found, residuals = _compute(plan, target, pred, weights)
    gradients = (
        None if x is None else neutralise(ops, x, valid, plan.axis, 0.0)
        for x in _gradients_of(plan, needs, *prepared(plan, None, target, pred), residuals, weights)
    )
    return neutralise(ops, found, valid, None, 0.0), (next(gradients), next(gradients))


def prepared(plan: Plan, valid: Array | None, target: Array, pred: Array) -> tuple[Array, Array]:
    """Both in the dtype of the computation, 0.5 where not valid, NaN outside their domain. Labels are unchanged."""
    domains, dtype = plan.rule.domains if plan.domain else ANYWHERE, _dtype(pred)
    if target.ndim == pred.ndim:
        target = ready(ops, target, dtype, domains[0], plan.axis, valid)
    return target, ready(ops, pred, dtype, domains[1], plan.axis, valid)


def floating(target: Array, pred: Array) -> tuple[Array, Array]:
    """Both in the dtype of the computation; labels unchanged."""
    dtype = _dtype(pred)
    return target.astype(dtype) if target.ndim == pred.ndim else target, pred.astype(dtype)


def _dtype(pred: Array) -> str:
    return "float64" if pred.dtype == "float64" else "float32"


# The attachment: losses, and losses with gradients, each with its own derivative.


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _losses(plan: Plan, valid: Array | None, target: Array, pred: Array, weights: Weights) -> Array:
    return _forward(plan, valid, target, pred, weights)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _losses_and_gradients(
    plan: Plan, needs: Needs, valid: Array | None, target: Array, pred: Array, weights: Weights
) -> Any:
    return losses_and_gradients(plan, needs, valid, target, pred, weights)


@functools.partial(jax.jit, static_argnums=0)
def _forward(plan: Plan, valid: Array | None, target: Array, pred: Array, weights: Weights) -> Array:
    return neutralise(ops, _compute(plan, target, pred, weights)[0], valid, None, 0.0)


@functools.partial(_losses.defjvp, symbolic_zeros=True)
def _losses_rule(plan: Plan, primals: Any, tangents: Any) -> tuple[Array, Array]:
    if not moves(tangents[1:]):
        found = _losses(plan, *primals)
        return found, jnp.zeros_like(found)
    needs = (moves(tangents[1]), moves(tangents[2]))
    found, gradients = _losses_and_gradients(plan, needs, *primals)
    return found, _moved(plan, gradients, primals, tangents)


@functools.partial(_losses_and_gradients.defjvp, symbolic_zeros=True)
def _gradients_rule(plan: Plan, needs: Needs, primals: Any, tangents: Any) -> tuple[Any, Any]:
    valid, arrays = primals[0], primals[1:]
    more = (needs[0] or moves(tangents[1]), needs[1] or moves(tangents[2]))
    found, gradients = _losses_and_gradients(plan, more, *primals)

    def derived(target: Array, pred: Array, weights: Weights) -> Any:
        def losses_of(target: Array, pred: Array) -> Array:
            return value(plan, valid, target, pred, weights)

        return _derived(losses_of, needs, *floating(target, pred))

    needed = tuple(x if need else None for x, need in zip(gradients, needs, strict=True))
    turned = derivative(derived, arrays, tangents[1:])
    return (found, needed), (_moved(plan, gradients, primals, tangents), turned)


def _moved(plan: Plan, gradients: Any, primals: Any, tangents: Any) -> Array:
    """The tangent of the losses: gradient times tangent, summed along the axis."""
    if moves(tangents[3]):
        return derivative(functools.partial(value, plan, primals[0]), primals[1:], tangents[1:])
    terms = [
        gradient * tangent if plan.axis is None else jnp.sum(gradient * tangent, plan.axis)
        for gradient, tangent in zip(gradients, tangents[1:3], strict=True)
        if moves(tangent)
    ]
    return sum(terms[1:], start=terms[0])


def _compute(plan: Plan, target: Array, pred: Array, weights: Weights) -> tuple[Array, Residuals]:
    return plan.rule.value(ops, *prepared(plan, None, target, pred), plan.axis, **dict(plan.options), **weights)


def _gradients_of(
    plan: Plan, needs: Needs, target: Array, pred: Array, residuals: Residuals, weights: Weights
) -> Gradients:
    options = {**dict(plan.options), **weights}
    if plan.rule.gradients is not None:
        return plan.rule.gradients(ops, target, pred, plan.axis, residuals, needs, **options)
    of_target, of_pred = _derived(
        lambda *pair: plan.rule.value(ops, *pair, plan.axis, **options)[0], needs, target, pred
    )
    return of_target, of_pred


def _derived(function: Callable[..., Array], needs: Needs, target: Array, pred: Array) -> Any:
    """The gradients of the sum of function(target, pred), by JAX."""
    pair = (target, pred)

    def total(*chosen: Array) -> Array:
        given = iter(chosen)
        return function(*(next(given) if need else x for need, x in zip(needs, pair, strict=True))).sum()

    chosen = [x for need, x in zip(needs, pair, strict=True) if need]
    found = iter(jax.grad(total, range(len(chosen)))(*chosen))
    return tuple(next(found) if need else None for need in needs)


def moves(tangents: Any) -> bool:
    return any(not isinstance(tangent, SymbolicZero) for tangent in jax.tree.leaves(tangents))


def derivative(function: Callable[..., Any], arrays: Any, tangents: Any) -> Any:
    """The directional derivative of function(*arrays) along the tangents."""
    leaves, tree = jax.tree.flatten(arrays)
    steps = tree.flatten_up_to(tangents)
    moving = [i for i, step in enumerate(steps) if moves(step)]

    def of_moving(*moved: Array) -> Any:
        at = dict(zip(moving, moved, strict=True))
        return function(*tree.unflatten([at.get(i, x) for i, x in enumerate(leaves)]))

    return jax.jvp(of_moving, [leaves[i] for i in moving], [steps[i] for i in moving])[1]
