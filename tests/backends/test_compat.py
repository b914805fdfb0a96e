"""Every function of lossbridge.compat, with every option of the registry: against the library's own, and 50 digits.

The registry of conventions decides what is called. What is particular to a library stands in its own file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from exact import Problem, matrix
from peers import assert_as_good, near, near_rows

from lossbridge.frameworks.framework import Framework
from lossbridge.tools.parity import peers

CALLS = peers.all_calls()
# Which random problems, of a function and its options.
EXAMPLES = [
    pytest.param(range(20), id="some"),
    pytest.param(range(20, 200), id="more", marks=pytest.mark.exhaustive),
]
every_call = pytest.mark.parametrize("call", CALLS, ids=[f"{call.peer.name}-{call.name}" for call in CALLS])


def exact(call: peers.Call, arrays: peers.Problem) -> Problem:
    """The registry's convention on these arrays."""
    axis, target, kept = call.convention.axis, arrays.target, None
    if target is not None and target.ndim < arrays.pred.ndim:  # labels
        kept = target != call.ignored
        classes = np.arange(arrays.pred.shape[axis])
        target = np.moveaxis(np.where(kept, target, -1)[..., None] == classes, -1, axis).astype(np.float32)
    return Problem(
        call.convention.resolved(float(np.finfo(np.float32).eps)),
        arrays.pred if target is None else target,
        arrays.pred,
        class_weight=arrays.class_weight,
        sample_weight=arrays.sample_weight,
        kept=kept,
    )


def at_a_bound(call: peers.Call, arrays: peers.Problem) -> bool:
    """Whether a probability is clipped or not by its rounding alone: then so are gradients there or not."""
    c = call.convention.resolved(float(np.finfo(np.float32).eps))
    if c.clip not in ("both", "lower") or c.activation != "none":
        return False
    p = matrix(arrays.pred, c.axis).astype(np.float64)
    p = p / p.sum(1, keepdims=True) if c.renormalise != "no" else p
    high = np.float64(np.float32(1 - float(c.epsilon)))
    near_low = np.abs(p / float(c.epsilon) - 1) < 1e-6
    return bool((near_low | (np.abs(p - high) < 2e-7) if c.clip == "both" else near_low).any())


def problem(call: peers.Call, seed: int, scales: Sequence[float]) -> peers.Problem:
    """A random one; the scales take turns."""
    rng, scale = np.random.default_rng(seed), scales[seed % len(scales)]
    while at_a_bound(call, arrays := peers.problem(call, rng, scale=scale)):
        pass
    return arrays


def compiled(b: Framework) -> Any:
    """The backend's first compiler, where it takes less time than the eager calls."""
    return None if b.name == "torch" else next(iter(b.compilers().values()), None)


def run(b: Framework, function: Any, call: peers.Call, **options: Any) -> Any:
    found = compiled(b)
    return peers.runner(b, function, call, "float32", **({} if found is None else {"compiled": found}), **options)


@every_call
@pytest.mark.parametrize("seeds", EXAMPLES)
def test_value_and_gradient_are_the_librarys(lib, call: peers.Call, seeds: range) -> None:
    name, returns, axis = (call.peer.library, call.peer.function), call.peer.returns, call.convention.axis
    # The square of a difference that was rounded: ours and theirs are within 10 of the exact value, on either side.
    ulps = 12 if call.convention.cost == "binary focal" else 8
    # Near p = 1 the rounding of p is that of 1; so is that of logarithms whose difference no float64 keeps.
    cancels = "divergence" in call.convention.cost and lib.b.widest(lib.array([0.5])) == "float32"
    unit = 1.0 if call.convention.activation == "none" or cancels else 0.0
    ours = run(lib.b, peers.our_function(*name), call)
    own, theirs = peers.own_function(*name), None
    home = peers.home(call.peer.library)
    if own is not None and peers.compared(call, home.name):
        theirs = run(home, own, call, differentiable=home.name != "numpy")

    # Of large logits an exponential loses digits, in every library: where there is none, logits are small.
    scales = [0.1, 1.0, 3.0, *([] if theirs is None else [8.0])]
    for seed in seeds:
        arrays = problem(call, seed, scales)
        try:
            value, gradient = ours(arrays)
            their_value, their_gradient = (None, None) if theirs is None else theirs(arrays)
            size = np.maximum(np.abs(value), unit)
            if their_value is None or not near(value, their_value, size=size):
                truth = exact(call, arrays).value(returns).reshape(value.shape)
                assert_as_good(value, their_value, truth, size=size, ulps=ulps)
            rows = matrix(gradient, axis)
            their_rows = None if their_gradient is None else matrix(their_gradient, axis)
            off = np.ones(len(rows), bool)
            if their_rows is not None:
                off = ~near_rows(rows, their_rows)
            if off.any():  # 50 digits are slow: they judge the rows that need a judge
                slopes, sizes = exact(call, arrays).gradient(returns, off)
                others = None if their_rows is None else their_rows[off]
                assert_as_good(rows[off], others, slopes[off], size=sizes[off].max(1, keepdims=True), ulps=ulps)
        except AssertionError as error:
            error.add_note(f"the arrays of seed {seed}")
            raise
