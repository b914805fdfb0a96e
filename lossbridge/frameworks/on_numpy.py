"""NumPy: which path computes a request, and how NumPy runs. Defines no loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from lossbridge.frameworks import numpy_linear, numpy_ops, numpy_rows
from lossbridge.frameworks.framework import Choice, Path, by_formula, prepared
from lossbridge.maths.ops import Array
from lossbridge.reduction import neutralise
from lossbridge.spec import Request

name = "numpy"
ops = numpy_ops
# Conversion and inspection of arrays.
asarray, cast, concrete, dtype = ops.asarray, ops.cast, ops.concrete, ops.dtype
owns, quiet, shape, widest = ops.owns, ops.quiet, ops.shape, ops.widest


# The paths, the fastest first.


def choose(r: Request) -> Choice:
    """The first that does not refuse the request."""
    no_rows = numpy_rows.refuses(r)
    if not no_rows:
        return Choice(PATHS["rows"])
    no_rule = "" if r.rule.gradients else f"no derivative rule is written for {r.rule.name}"
    if any(type(x) is ops.Variable for x in r.options.values()):
        no_rule = "an option is differentiated"
    if not no_rule:
        return Choice(PATHS["rule"], (("rows", no_rows),))
    return Choice(PATHS["formula"], (("rows", no_rows), ("rule", no_rule)))


def chosen(request: Callable[[Array, Array], Request], target: Any, pred: Any, under: str) -> Choice:
    return choose(request(target, pred))


def _by_rule(r: Request) -> Array:
    """One node of the tape for the whole loss, with the gradients of the rule."""
    rule, axis, inputs = r.rule, r.axis, (r.target, r.pred)
    target, pred = prepared(ops, r, ops.value_of(r.target), ops.value_of(r.pred))
    found, residuals = rule.value(ops, target, pred, axis, **r.options)

    def pullback(which: int) -> Callable[[Array], Array]:
        def pulled(upstream: Array) -> Array:
            assert rule.gradients is not None
            needs = (which == 0, which == 1)
            gradient = rule.gradients(ops, target, pred, axis, residuals, needs, **r.options)[which]
            upstream = upstream if axis is None else np.expand_dims(upstream, axis)
            return neutralise(ops, gradient * upstream, r.valid, axis, 0.0)

        return pulled

    return ops.record(found, *((x, pullback(which)) for which, x in enumerate(inputs)))


def _by_formula(r: Request) -> Array:
    return by_formula(ops, r, r.target, r.pred)


PATHS: Mapping[str, Path] = {
    path.name: path
    for path in (
        Path(
            "rows",
            numpy_rows.losses,
            "native rows, which compute the ratio in one pass",
            "written in the same pass",
            ratio=numpy_rows.ratio,
        ),
        Path("rule", _by_rule, "the formula, over NumPy's operations", "the derivative rule, over NumPy's operations"),
        Path(
            "formula",
            _by_formula,
            "the formula, over NumPy's operations",
            "automatic differentiation, by a tape of NumPy's operations",
        ),
    )
}


choose_linear = numpy_linear.choose
shards: Any = None  # no classes are split over devices


# Running.


def value_and_grad(function: Callable[[Any], Array], x: Any, buffer: np.ndarray | None = None) -> tuple[Array, Any]:
    """`buffer`: where the gradient goes, of x's shape and dtype. It may be `x`, if `function` is one loss."""
    if isinstance(x, tuple):
        leaves = tuple(ops.Variable(one) for one in x)
        result = function(leaves)
        value = ops.value_of(result)
        return value[()], ops.all_pulled_back(result, leaves, np.ones_like(value))
    leaf = ops.Variable(x, buffer=buffer)
    result = function(leaf)
    if not isinstance(result, ops.Variable):
        if np.asarray(result).dtype.kind not in "fiub":
            raise TypeError(f"the loss returned {type(result).__name__}; return one array of numbers")
        value, gradient = result, np.zeros_like(x)
    elif result.of_one is not None and result.parents[0][0] is leaf:
        value, gradient = result.value[()], result.of_one
    else:
        value, gradient = result.value[()], ops.pulled_back(result, leaf, np.ones_like(result.value))
    if buffer is None or gradient is buffer:
        return value, gradient
    np.copyto(buffer, gradient)
    return value, buffer


def compilers() -> Mapping[str, Callable[[Callable[..., Any]], Callable[..., Any]]]:
    return {}


def devices() -> list[str]:
    return ["cpu"]


def place(x: np.ndarray, dtype: str, device: str) -> Array:
    if dtype == "bfloat16":
        import ml_dtypes

        return x.astype(ml_dtypes.bfloat16)
    return x.astype(dtype)


def to_numpy(x: Array) -> np.ndarray:
    x = np.asarray(x)
    return x.astype(np.float32) if x.dtype.name == "bfloat16" else x


def scope(dtype: str, device: str) -> AbstractContextManager[object]:
    return nullcontext()


def version() -> str:
    return np.__version__
