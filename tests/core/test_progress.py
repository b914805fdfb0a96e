"""What the parity command compiles without --all, and how it says how far it is."""

from __future__ import annotations

import io
import time
from types import SimpleNamespace

import pytest
from rich.console import Console

from lossbridge.tools import progress
from lossbridge.tools.parity import parity_worker
from lossbridge.tools.parity.cases import KERAS_EXAMPLE
from lossbridge.tools.parity.check import all_cases, compile_key
from lossbridge.tools.parity.repeats import is_repeated

LOSSES = tuple(dict.fromkeys(case.loss for case in all_cases()))


def kinds(cases: list) -> set:
    return {(case.dtype, case.y_true.ndim == case.y_pred.ndim, case.options.get("from_logits")) for case in cases}


@pytest.mark.parametrize("loss", LOSSES)
def test_no_dtype_form_or_option_is_left_out(loss) -> None:
    every = [case for case in all_cases() if case.loss == loss]
    compiled = [case for case in every if not is_repeated(case)]
    assert kinds(compiled) == kinds(every)
    for form in (True, False, None):
        options, left = (
            {name for case in some if case.options.get("from_logits") == form for name in case.options}
            for some in (every, compiled)
        )
        assert options == left
    assert len({compile_key(case) for case in compiled}) < 0.9 * len({compile_key(case) for case in every})


def test_the_keras_example_is_compiled() -> None:
    assert not is_repeated(KERAS_EXAMPLE)


def test_everything_is_compiled_on_demand() -> None:
    """And of a file of one's own."""
    b = SimpleNamespace(compilers=lambda: {"compile": None})
    request = {"losses": ["log_loss"], "dtypes": [], "file": None, "peers": False, "device": "cpu", "everything": True}
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
