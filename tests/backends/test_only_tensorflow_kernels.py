"""The kernels of TensorFlow: every registered case on each of their roads, sizes, derivatives, masks, threads."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import tensorflow as tf

import lossbridge as lb
from lossbridge.backends import tensorflow as b
from lossbridge.kernels import tensorflow as kernels
from lossbridge.parity.cases import Case, cases
from lossbridge.parity.check import Runner, compile_key

SPARSE = "sparse_categorical_crossentropy"


@pytest.fixture
def no_traces(monkeypatch) -> None:
    """Nothing traced before, and room for all."""
    monkeypatch.setattr(kernels, "_traced", {})
    monkeypatch.setattr(kernels, "TRACES", 10**6)


def _of_logits(case: Case) -> bool:
    return case.loss == SPARSE and case.options.get("from_logits", False)


@pytest.mark.parametrize("case", [case for case in cases() if _of_logits(case)], ids=lambda case: case.name)
def test_cases_in_xla(case: Case, monkeypatch) -> None:
    monkeypatch.setattr(kernels, "XLA_ELEMENTS", 0)
    runner = Runner(b)
    for mode in b.compilers():
        outcome = runner.run(case, mode)
        assert not outcome.fault, f"{mode}: {outcome.fault}"
