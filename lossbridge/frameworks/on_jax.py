"""JAX: which path computes a request, and how JAX runs. Defines no loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lossbridge.frameworks import jax_linear, jax_ops, jax_ratio, jax_rows, jax_rules, jax_shards
from lossbridge.frameworks.framework import Choice, Path, by_formula
from lossbridge.maths import softmax
from lossbridge.maths.ops import Array
from lossbridge.spec import Request

name = "jax"
ops = jax_ops
# Conversion and inspection of arrays.
asarray, cast, concrete, dtype = ops.asarray, ops.cast, ops.concrete, ops.dtype
owns, quiet, shape, widest = ops.owns, ops.quiet, ops.shape, ops.widest

# Class indices are compared in float32, which represents all integers up to this.
MOST_CLASSES = 2**24


# The paths, the fastest first.


def choose(r: Request) -> Choice:
    """The first that does not refuse the request."""
    no_rows = jax_rows.refuses(r)
    if not no_rows:
        return Choice(PATHS["rows"])
    no_rule = _refuses_rule(r)
    if not no_rule:
        return Choice(PATHS["rule"], (("rows", no_rows),))
    return Choice(PATHS["formula"], (("rows", no_rows), ("rule", no_rule)))


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


def _by_formula(r: Request) -> Array:
    return by_formula(ops, r, r.target, r.pred)


PATHS: Mapping[str, Path] = {
    path.name: path
    for path in (
        Path(
            "rows",
            jax_rows.losses,
            "the native rows, called by XLA, in one pass over the rows",
            "written in the same pass where the loss is differentiated as it is, else in a second one",
            jax_ratio.ratio,
        ),
        Path(
            "rule",
            jax_rules.losses,
            "the formula, over JAX's operations",
            "the derivative rule, over JAX's operations",
        ),
        Path(
            "formula",
            _by_formula,
            "the formula, over JAX's operations",
            "automatic differentiation, of the formula",
        ),
    )
}


choose_linear = jax_linear.choose
shards = jax_shards


# Running.


def value_and_grad(function: Callable[[Any], Array], x: Any) -> tuple[Array, Any]:
    def summed(x: Array) -> tuple[Array, Array]:
        value = function(x)
        return value.sum(), value

    (_, value), gradient = jax.value_and_grad(summed, has_aux=True)(x)
    result = concrete(value)
    if result is not None and np.isnan(result).any():
        function(x)  # which can be read now: so an error says what is outside its domain
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
