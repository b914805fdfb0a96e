"""What the parity command compiles without --all, and how it says how far it is."""

from __future__ import annotations

import io
import time
from types import SimpleNamespace

import pytest
from rich.console import Console

from lossbridge.request import COMMON
from lossbridge.spec import LOSSES
from lossbridge.tools import progress
from lossbridge.tools.parity import parity_worker
from lossbridge.tools.parity.cases import KERAS_EXAMPLE
from lossbridge.tools.parity.check import all_cases, compile_key, in_groups
from lossbridge.tools.parity.repeats import is_repeated, what_computes
from lossbridge.tools.parity.signatures import SIGNATURES

WHAT = tuple(dict.fromkeys(map(what_computes, all_cases())))


@pytest.mark.parametrize("what", WHAT)
def test_no_dtype_rank_or_option_is_left_out(what) -> None:
    every = [case for case in all_cases() if what_computes(case) == what]
    compiled = [case for case in every if not is_repeated(case)]
    dtypes = {case.dtype for case in every}
    assert {case.dtype for case in compiled} in (dtypes, dtypes - {"bfloat16"})
    assert dtypes == {case.dtype for case in compiled} or not what.startswith("linear")
    assert {case.y_pred.ndim for case in compiled} == {case.y_pred.ndim for case in every}
    options, left = ({name for case in some for name in case.options} for some in (every, compiled))
    # Which another function with this code does not take, or is of the code that applies it to every rule.
    assert options - left <= {"from_logits", *COMMON, *(name for case in every for name in SIGNATURES[case.loss].more)}


def test_every_loss_has_a_compiled_case_of_its_own_or_of_its_rule() -> None:
    compiled = {what_computes(case) for case in all_cases() if not is_repeated(case)}
    for loss in {case.loss for case in all_cases()}:
        rules = {what_computes(case) for case in all_cases() if case.loss == loss}
        assert rules <= compiled, loss


def test_what_repeats_is_not_compiled() -> None:
    every, compiled = (
        {compile_key(case) for case in all_cases() if everything or not is_repeated(case)}
        for everything in (True, False)
    )
    assert len(compiled) < 0.6 * len(every)


def test_weights_and_masks_are_compiled_for_labels_and_for_other_targets() -> None:
    for labels in (True, False):
        options = {
            name
            for case in all_cases()
            if not is_repeated(case) and (case.y_true.dtype.kind == "i") is labels and case.loss in LOSSES
            for name in case.options
        }
        assert options >= set(COMMON)


def test_the_keras_example_is_compiled() -> None:
    assert not is_repeated(KERAS_EXAMPLE)


REQUEST = {
    "losses": [],
    "dtypes": [],
    "file": None,
    "peers": False,
    "device": "cpu",
    "everything": False,
    "part": [0, 1],
}


@pytest.mark.parametrize("peers", [False, True])
def test_two_workers_do_all_between_them(peers) -> None:
    b = SimpleNamespace(compilers=lambda: {"compile": None}, name="numpy")
    whole, *halves = (
        [words for words, _ in parity_worker.jobs(b, {**REQUEST, "peers": peers, "part": part})[0]]
        for part in ([0, 1], [0, 2], [1, 2])
    )
    assert sorted(whole) == sorted([*halves[0], *halves[1]])
    assert 0.3 < len(halves[0]) / len(whole) < 0.7


def test_cases_of_one_compiled_function_go_to_one_worker() -> None:
    groups = in_groups(all_cases())
    assert len({compile_key(group[0]) for group in groups}) == len(groups)
    assert all(compile_key(case) == compile_key(group[0]) for group in groups for case in group)


def test_everything_is_compiled_on_demand() -> None:
    """And of a file of one's own."""
    b = SimpleNamespace(compilers=lambda: {"compile": None})
    request = {**REQUEST, "losses": ["log_loss"], "everything": True}
    cases = [case for case in all_cases() if case.loss == "log_loss"]
    compiled = [case for case in cases if not is_repeated(case)]
    assert len(parity_worker.jobs(b, request)[0]) == 2 * len(cases)
    assert len(parity_worker.jobs(b, {**request, "everything": False})[0]) == len(cases) + len(compiled)


def test_lines_where_there_is_no_terminal(monkeypatch) -> None:
    monkeypatch.setattr(progress, "SECONDS", 0.05)
    said = io.StringIO()
    with progress.progress(Console(file=said, width=40)) as bars:
        torch, _ = bars.add_task("torch", total=40), bars.add_task("jax", total=None)
        bars.advance(torch, 10)
        while "torch 25 %" not in said.getvalue():
            time.sleep(0.01)
    lines = said.getvalue().splitlines()
    assert "0 s: torch 25 %, jax starts" in lines
    assert all(line.count("s: torch") == 1 for line in lines)


def test_what_is_short_says_nothing() -> None:
    said = io.StringIO()
    with progress.progress(Console(file=said, width=40)) as bars:
        bars.advance(bars.add_task("torch", total=1), 1)
    assert said.getvalue() == ""


def test_bars_in_a_terminal(monkeypatch) -> None:
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    said = io.StringIO()
    with progress.progress(Console(file=said, width=80, force_terminal=True)) as bars:
        bars.advance(bars.add_task("torch", total=4), 1)
    assert "25%" in said.getvalue()
    assert "s: torch" not in said.getvalue()
