"""PyTorch: large fresh gradients on a CPU are advised to huge pages."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import pytest
import torch

import lossbridge as lb
from lossbridge.native import rows

if sys.platform == "linux":
    import resource

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
MIB = 1 << 20

pytestmark = pytest.mark.skipif(bool(rows.MISSING), reason=rows.MISSING)


def follows_advice() -> bool:
    """Whether the system gives huge pages to what is advised."""
    return sys.platform == "linux" and SETTING.exists() and "[never]" not in SETTING.read_text()


def faults(call) -> int:
    """The page faults of a call."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    result = call()
    after = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    del result
    return after - before


def problem(rows: int, classes: int):
    return torch.zeros(rows, dtype=torch.long), torch.zeros(rows, classes, requires_grad=True)


def step(target, logits):
    value = lb.sparse_categorical_crossentropy(target, logits, from_logits=True)
    return value, torch.autograd.grad(value, logits)


@pytest.mark.skipif(not follows_advice(), reason="this system has no huge pages to give")
def test_a_large_gradient_costs_few_page_faults() -> None:
    target, logits = problem(512, 32768)  # 64 MiB
    step(target, logits)  # what is allocated but once
    assert faults(lambda: step(target, logits)) < logits.nbytes / mmap.PAGESIZE / 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_large_buffers_alone_are_advised(monkeypatch, dtype) -> None:
    advised: list[int] = []
    monkeypatch.setattr(rows, "advise", lambda address, size: advised.append(size))
    count = 16 * MIB // dtype.itemsize // 1024
    for given, expected in (count - 1, []), (count, [16 * MIB]):
        target, logits = problem(given, 1024)
        step(target, logits.to(dtype))
        assert advised == expected
