"""PyTorch: large fresh buffers on a CPU are advised to huge pages."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import pytest
import torch

import lossbridge as lb
from lossbridge.native import huge_pages

if sys.platform == "linux":
    import resource

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
MIB = 1 << 20


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


def step(target, logits, loss=lb.sparse_categorical_crossentropy):
    value = loss(target, logits, from_logits=True)
    return value, torch.autograd.grad(value, logits)


@pytest.mark.skipif(not follows_advice(), reason="this system has no huge pages to give")
def test_a_large_gradient_costs_few_page_faults() -> None:
    target, logits = problem(512, 32768)  # 64 MiB
    step(target, logits)  # what is allocated but once
    assert faults(lambda: step(target, logits)) < logits.nbytes / mmap.PAGESIZE / 4


@pytest.fixture
def advised(monkeypatch) -> list[tuple[int, int]]:
    """(address, bytes) of all advice from now on, which is not given."""
    found: list[tuple[int, int]] = []
    monkeypatch.setattr(huge_pages, "_MADVISE", lambda start, size, advice: found.append((start, size)))
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_large_buffers_alone_are_advised(advised, dtype) -> None:
    rows = 16 * MIB // dtype.itemsize // 1024
    target, logits = problem(rows - 1, 1024)
    step(target, logits.to(dtype))
    assert not advised
    target, logits = problem(rows, 1024)
    step(target, logits.to(dtype))
    assert len(advised) == 1


def test_only_what_is_allocated_is_advised(advised) -> None:
    target, logits = problem(4096, 1024)
    with torch.no_grad():
        lb.sparse_categorical_crossentropy(target, logits, from_logits=True)
    assert not advised


def test_losses_as_large_as_the_gradient_are_advised_too(advised) -> None:
    _, logits = problem(4096, 1024)
    step(torch.zeros_like(logits), logits, lb.log_loss)
    assert [size > 15 * MIB for _, size in advised] == [True, True]


def test_whole_pages_inside_the_buffer(advised) -> None:
    page = mmap.PAGESIZE
    huge_pages.advise(3 * page + 64, huge_pages.LEAST)
    assert advised == [(4 * page, huge_pages.LEAST - page)]
    huge_pages.advise(3 * page, huge_pages.LEAST)
    assert advised[1] == (3 * page, huge_pages.LEAST)


@pytest.mark.parametrize("madvise", [None, lambda *_: -1])
def test_a_system_without_huge_pages(monkeypatch, madvise) -> None:
    """No madvise, as on Windows, and one that refuses."""
    target, logits = problem(4096, 1024)
    value, (gradient,) = step(target, logits)
    monkeypatch.setattr(huge_pages, "_MADVISE", madvise)
    again, (same,) = step(target, logits)
    assert torch.equal(value, again)
    assert torch.equal(gradient, same)


def test_no_madvise_is_found_where_there_is_none(monkeypatch) -> None:
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    assert huge_pages._madvise() is None
