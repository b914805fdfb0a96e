"""Every function of lossbridge.compat, with every option of the registry: against the library's own, and 50 digits.

The registry of conventions decides what is called. What is particular to a library stands in its own file.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from exact import Problem, matrix
from hypothesis import given, settings
from hypothesis import strategies as st
from peers import EXAMPLES, assert_as_good, near

from lossbridge.backend import Backend
from lossbridge.parity import peers

CALLS = peers.all_calls()
every_call = pytest.mark.parametrize("call", CALLS, ids=[f"{call.peer.name}-{call.name}" for call in CALLS])


def exact(call: peers.Call, arrays: peers.Problem) -> Problem:
    """The registry's convention on these arrays."""
    axis, target, kept = call.convention.axis, arrays.target, None
    if target is not None and target.ndim < arrays.pred.ndim:  # labels
        kept = target != call.ignored
        classes = np.arange(arrays.pred.shape[axis])
        target = np.moveaxis(np.where(kept, target, -1)[..., None] == classes, -1, axis).astype(np.float32)
    return Problem(
        call.convention,
        arrays.pred if target is None else target,
        arrays.pred,
        class_weight=arrays.class_weight,
        sample_weight=arrays.sample_weight,
        kept=kept,
    )


def compiled(b: Backend) -> Any:
    """The backend's first compiler, where it takes less time than 200 eager calls."""
    return None if b.name == "torch" else next(iter(b.compilers().values()), None)


def run(b: Backend, function: Any, call: peers.Call, **options: Any) -> Any:
    found = compiled(b)
    return peers.runner(b, function, call, "float32", **({} if found is None else {"compiled": found}), **options)


@every_call
def test_value_and_gradient_are_the_librarys(lib, call: peers.Call) -> None:
    name, returns, axis = (call.peer.library, call.peer.function), call.peer.returns, call.convention.axis
    unit = 1.0 if call.convention.activation == "none" else 0.0  # near p = 1 the rounding of p is that of 1
    ours = run(lib.b, peers.our_function(*name), call)
    own, theirs = peers.own_function(*name), None
    if own is not None:
        home = peers.home(call.peer.library)
        theirs = run(home, own, call, differentiable=home.name != "numpy")

    @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None)
    @given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([0.1, 1.0, 3.0, 8.0]))
    def holds(seed: int, scale: float) -> None:
        arrays = peers.problem(call, np.random.default_rng(seed), scale=scale)
        value, gradient = ours(arrays)
        their_value, their_gradient = (None, None) if theirs is None else theirs(arrays)
        size = np.maximum(np.abs(value), unit)
        if their_value is None or not near(value, their_value, size=size):
            assert_as_good(value, their_value, exact(call, arrays).value(returns).reshape(value.shape), size=size)
        rows = matrix(gradient, axis)
        their_rows = None if their_gradient is None else matrix(their_gradient, axis)
        if their_rows is None or not near(rows, their_rows, size=np.abs(their_rows).max(1, keepdims=True)):
            slopes, sizes = exact(call, arrays).gradient(returns)
            assert_as_good(rows, their_rows, slopes, size=sizes.max(1, keepdims=True))

    holds()
