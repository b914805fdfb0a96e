"""Every registered case on this backend, eager and compiled, against the reference."""

from __future__ import annotations

import numpy as np
import pytest

import lossbridge as lb
from lossbridge.parity.cases import Case, cases
from lossbridge.parity.check import Runner, compile_key, expected, in_order, placed


@pytest.fixture(scope="module")
def runner(lib) -> Runner:
    return Runner(lib.b)


def _param(case: Case) -> pytest.ParameterSet:
    # Cases that share a compiled function go to one process of pytest-xdist.
    group = pytest.mark.xdist_group("-".join(compile_key(case)))
    return pytest.param(case, id=f"{case.loss}-{case.name}", marks=group)


@pytest.mark.parametrize("case", [_param(case) for case in in_order(cases())])
def test_every_case_agrees_with_the_reference(runner: Runner, case: Case) -> None:
    for mode in runner.modes():
        outcome = runner.run(case, mode)
        assert not outcome.fault, f"{mode}: {outcome.fault}"


WITH_FLOAT_TARGETS = [
    case
    for case in cases()
    if case.y_true.dtype.kind == "f" and case.dtype in ("float32", "float64") and case.y_pred.size < 100
]


@pytest.mark.parametrize("case", WITH_FLOAT_TARGETS, ids=lambda case: f"{case.loss}-{case.name}")
def test_gradient_with_respect_to_the_targets(lib, case: Case) -> None:
    exact = expected(case)
    with lib.b.scope(case.dtype, "cpu"):
        y_true, y_pred, arrays, static = placed(lib.b, case, "cpu")
        _, gradient = lib.b.value_and_grad(lambda t: getattr(lb, case.loss)(t, y_pred, **arrays, **static), y_true)
        assert lib.b.dtype(gradient) == case.dtype
        gradient = lib.b.to_numpy(gradient)
    value, slope = np.asarray(exact.value), exact.target_gradient
    row = -1 if case.axis is None else case.axis
    # A divergence's slope is a difference of numbers of the divergence's own size.
    size = np.expand_dims(np.abs(value), row) if value.ndim == slope.ndim - 1 else np.abs(value)
    with np.errstate(invalid="ignore"):
        largest = np.maximum(np.abs(slope).max(row, keepdims=True, initial=0), size)
        wrong = ~(np.abs(gradient - slope) <= 4e-6 * largest)
    assert not (wrong & np.isfinite(largest)).any()


def test_no_argument_is_changed(lib) -> None:
    arrays = {
        "y_true": np.eye(3, dtype=np.float32),
        "y_pred": np.full((3, 3), 0.3, np.float32),
        "sample_weight": np.array([1, 0, 2], np.float32),
        "mask": np.array([True, True, False]),
        "class_weight": np.array([1, 2, 3], np.float32),
    }
    placed_arrays = {name: lib.array(x) for name, x in arrays.items()}
    for _ in range(3):
        lb.categorical_crossentropy(**placed_arrays)
    for name, x in arrays.items():
        np.testing.assert_array_equal(lib.b.to_numpy(placed_arrays[name]), x)
