"""What a loss keeps until its backward pass: all of it by save_for_backward, where PyTorch's hooks see it."""

from __future__ import annotations

import functools
import weakref

import pytest
import torch
from test_paths import FORMS, arrays
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

import lossbridge as lb
from lossbridge.frameworks import torch_rows
from lossbridge.native import rows

needs_rows = pytest.mark.skipif(bool(rows.MISSING), reason=rows.MISSING)
every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
SIZES = (3, 5), (650, 100), (660, 100), (2000, 1000)


def problem(form, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    target, pred = (torch.tensor(x) for x in arrays(form, *size, "float32"))
    return target, pred


def loss_of(form, **options):
    return functools.partial(getattr(lb, form.loss), **form.options, **options)


@every_form
def test_checkpointed_chunks_keep_nothing(form, monkeypatch) -> None:
    """Not one of four chunks' logits or gradients, until backward computes them again."""
    target, pred = problem(form, (6, 5))
    weight = torch.ones(5, requires_grad=True)
    made, fresh = [], torch_rows.fresh

    def noted(x: torch.Tensor) -> torch.Tensor:
        made.append(weakref.ref(x))
        return x

    def chunk(weight: torch.Tensor, bias: float) -> torch.Tensor:
        return loss_of(form)(target, noted(pred * weight + bias * pred))

    monkeypatch.setattr(torch_rows, "fresh", lambda like: noted(fresh(like)))
    losses = [checkpoint(chunk, weight, bias / 8, use_reentrant=False) for bias in range(4)]
    assert len(made) == (4 if rows.MISSING else 8)
    assert not any(ref() is not None for ref in made)
    (got,) = torch.autograd.grad(sum(losses), weight)
    (expected,) = torch.autograd.grad(sum(chunk(weight, bias / 8) for bias in range(4)), weight)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


@needs_rows
@every_form
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_hooks_see_all_that_is_kept(form, reduction) -> None:
    """Predictions and target, and of a mean the gradient: without them nothing can be computed, with them all."""
    target, pred = problem(form, (6, 5))
    pred.requires_grad_()
    kept = []

    def pack(x: torch.Tensor) -> int:
        kept.append(x.detach().clone())
        return len(kept) - 1

    with saved_tensors_hooks(pack, lambda place: kept[place]):
        value = loss_of(form, reduction=reduction)(target, pred * 1)
    # A product by a number keeps nothing.
    assert len(kept) == (3 if reduction == "mean" else 2)
    assert kept[0].shape == pred.shape
    assert kept[1].shape == target.shape
    expected = torch.autograd.grad(loss_of(form, reduction=reduction)(target, pred).sum(), pred)[0]
    assert torch.equal(torch.autograd.grad(value.sum(), pred, retain_graph=True)[0], expected)
    for x in kept:
        if x.is_floating_point():
            x.zero_()
    assert not torch.equal(torch.autograd.grad(value.sum(), pred)[0], expected)


@every_form
def test_saved_on_another_device(form) -> None:
    target, pred = problem(form, (6, 5))
    pred.requires_grad_()
    with save_on_cpu():
        value = loss_of(form)(target, pred * 1)
    (first,) = torch.autograd.grad(value, pred, create_graph=True)
    expected = torch.autograd.grad(loss_of(form)(target, pred), pred, create_graph=True)[0]
    torch.testing.assert_close(first, expected)
    second, expected = (torch.autograd.grad((x**2).sum(), pred)[0] for x in (first, expected))
    torch.testing.assert_close(second, expected)


@needs_rows
@every_form
def test_logits_changed_in_place_at_every_size(form) -> None:
    """The gradient of a mean is there already. That of losses reads the logits, which is an error and never wrong."""
    for size in SIZES:
        target, pred = problem(form, size)
        leaf = pred.requires_grad_()
        for reduction in ("mean", "sum", "none"):
            loss = loss_of(form, reduction=reduction)
            logits = leaf * 1
            value = loss(target, logits).sum()
            logits.mul_(0.5)
            if reduction == "none":
                with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                    torch.autograd.grad(value, leaf)
            else:
                (got,) = torch.autograd.grad(value, leaf)
                (expected,) = torch.autograd.grad(loss(target, leaf), leaf)
                assert torch.equal(got, expected)


@needs_rows
@every_form
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_changed_in_place(form, dtype) -> None:
    """The gradient is there for 1. Any other would be rounded twice: that is an error, at every size."""
    for size in SIZES:
        target, pred = problem(form, size)
        leaf = pred.to(dtype).requires_grad_()
        for factor in (1, 3):
            logits = leaf * 1
            value = loss_of(form)(target, logits) * factor
            logits.mul_(0.5)
            if factor == 1:
                (got,) = torch.autograd.grad(value, leaf)
                (expected,) = torch.autograd.grad(loss_of(form)(target, leaf), leaf)
                assert torch.equal(got, expected)
            else:
                with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                    torch.autograd.grad(value, leaf)
