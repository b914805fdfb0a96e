"""Every registered case on this backend, eager and compiled, against the reference."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

import lossbridge as lb
from lossbridge.request import COMMON
from lossbridge.tools.parity.cases import LOSSES, Case, options_of
from lossbridge.tools.parity.check import Runner, all_cases, compile_key, expected, in_order, placed
from lossbridge.tools.parity.signatures import SIGNATURES


@pytest.fixture(scope="module")
def runner(lib) -> Runner:
    return Runner(lib.b)


def _kinds(case: Case) -> set[tuple[object, ...]]:
    """What a compiler may treat differently: every option of every loss, and every dtype and rank of both targets.

    What all losses share (weights, masks, reductions) counts once a target.
    """
    labels = case.y_true.dtype.kind == "i"
    kinds: set[tuple[object, ...]] = {(labels, case.dtype), (labels, case.y_true.ndim, case.y_pred.ndim)}
    for name, option in case.options.items():
        is_array = isinstance(option, np.ndarray | np.generic)
        form = "array" if is_array else option if isinstance(option, bool | str) else "number"
        kinds.add((labels if name in COMMON else case.loss, name, form))
    return kinds


def _covering(cases: Sequence[Case]) -> list[Case]:
    """A few cases, in which every kind occurs: the one with the most kinds that are missing, again and again."""
    missing, found = set().union(*map(_kinds, cases)), []
    while missing:
        found.append(max(cases, key=lambda case: len(_kinds(case) & missing)))
        missing -= _kinds(found[-1])
    return found


CASES = in_order(all_cases())


def _name(case: Case) -> str:
    return f"{case.loss}-{case.name}"


COVERING = set(map(_name, _covering(CASES)))


def _to_compile(case: Case) -> pytest.ParameterSet:
    """A compiler takes seconds for a case. Those that share a compiled function go to one process of pytest-xdist."""
    group = pytest.mark.xdist_group("-".join(compile_key(case)))
    more = [] if _name(case) in COVERING else [pytest.mark.exhaustive]
    return pytest.param(case, id=_name(case), marks=[group, *more])


@pytest.mark.parametrize("case", CASES, ids=_name)
def test_every_case_agrees_with_the_reference(runner: Runner, case: Case) -> None:
    outcome = runner.run(case, "eager")
    assert not outcome.fault, outcome.fault


@pytest.mark.parametrize("case", list(map(_to_compile, CASES)))
def test_compiled_cases_agree_with_the_reference(runner: Runner, case: Case) -> None:
    for mode in runner.modes()[1:]:
        outcome = runner.run(case, mode)
        assert not outcome.fault, f"{mode}: {outcome.fault}"


WITH_FLOAT_TARGETS = [
    case
    for case in all_cases()
    if case.y_true.dtype.kind == "f" and case.dtype in ("float32", "float64") and case.y_pred.size < 100
    if not case.refused
]


@pytest.mark.parametrize("case", WITH_FLOAT_TARGETS, ids=_name)
def test_gradient_with_respect_to_the_targets(lib, case: Case) -> None:
    exact = expected(case)
    target = SIGNATURES[case.loss].target
    with lib.b.scope(case.dtype, "cpu"):
        arrays, static = placed(lib.b, case, "cpu")
        _, gradient = lb.value_and_grad(getattr(lb, case.loss), of=target)(**arrays, **static)
        assert lib.b.dtype(gradient) == case.dtype
        gradient = lib.b.to_numpy(gradient)
    value, slope = np.asarray(exact.value), exact.target_gradient
    row = -1 if case.axis is None else case.axis
    # A divergence's slope is a difference of numbers of the divergence's own size.
    size = np.expand_dims(np.abs(value), row) if value.ndim == slope.ndim - 1 else np.abs(value)
    with np.errstate(invalid="ignore"):
        largest = np.maximum(np.abs(slope).max(row, keepdims=True, initial=0), size)
        wrong = ~(np.abs(gradient - slope) <= max(32, case.tolerance.gradient) * 2.0**-23 * largest)
    assert not (wrong & np.isfinite(largest)).any()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_no_argument_is_changed(lib, loss, reduction) -> None:
    labels = "labels" in LOSSES[loss]
    arrays = {
        "y_true": np.array([0, 1, 2], np.int32) if labels else np.eye(3, dtype=np.float32),
        "y_pred": np.full((3, 3), 0.3, np.float32),
        "sample_weight": np.array([1, 0, 2], np.float32),
        "mask": np.array([True, True, False]),
    }
    if "class_weight" in options_of(loss):
        arrays["class_weight"] = np.array([1, 2, 3], np.float32)
    given = {name: lib.array(x) for name, x in arrays.items()}
    y_true, y_pred = given.pop("y_true"), given.pop("y_pred")
    for _ in range(3):
        lb.value_and_grad(getattr(lb, loss))(y_true, y_pred, **given, reduction=reduction)
    for name, x in {"y_true": y_true, "y_pred": y_pred, **given}.items():
        np.testing.assert_array_equal(lib.b.to_numpy(x), arrays[name])
