"""PyTorch's attachment of the rows: whatever lies in memory, whichever derivative, whatever flows back."""

from __future__ import annotations

import pytest
import torch

import lossbridge as lb
import lossbridge.torch as lt
from lossbridge.native import rows

needs_rows = pytest.mark.skipif(bool(rows.MISSING), reason=rows.MISSING)
LAYOUTS = {
    "strided": lambda x: torch.stack([x, torch.full_like(x, torch.nan)], -1)[..., 0],
    "negated": lambda x: torch._neg_view(-x),  # as the imaginary part of a conjugate is, but contiguous
}


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("what", ["pred", "target", "weight", "class_weight", "upstream"])
def test_each_array_in_any_memory(layout, what) -> None:
    arrays = {
        "pred": random(4, 3, 5),
        "target": random(4, 3, 5, seed=1).softmax(-1),
        "weight": random(4, 3, seed=2).exp(),
        "class_weight": random(5, seed=3).exp(),
        "upstream": random(4, 3, seed=4),
    }

    def computed(pred, target, weight, class_weight, upstream) -> list[torch.Tensor]:
        pred, target = (x.detach().requires_grad_() for x in (pred, target))
        given = {"sample_weight": weight, "class_weight": class_weight, "from_logits": True}
        losses = lb.categorical_crossentropy(target, pred, reduction="none", **given)
        mean = lb.categorical_crossentropy(target.detach(), pred, reduction="mean_with_sample_weight", **given)
        # The negated number flows back as it is: no operation is between it and the loss.
        return [losses, mean, *torch.autograd.grad(losses, (target, pred), upstream), *torch.autograd.grad(mean, pred)]

    expected = computed(**arrays)
    found = computed(**{**arrays, what: LAYOUTS[layout](arrays[what])})
    for x, y in zip(found, expected, strict=True):
        assert torch.equal(x, y)


def test_weights_and_masks_of_whole_rows() -> None:
    labels, pred = torch.arange(12).reshape(4, 3) % 5, random(4, 3, 5)
    weight, mask = torch.tensor([1.0, 2, 0, 3]), torch.tensor([True, False, True, True])
    for short in ({"sample_weight": weight[:, None]}, {"mask": mask[:, None]}):
        full = {name: x.expand(4, 3).clone() for name, x in short.items()}
        for reduction in ("mean", "mean_with_sample_weight"):
            found = []
            for given in (short, full):
                leaf = pred.clone().requires_grad_()
                value = lb.sparse_categorical_crossentropy(labels, leaf, from_logits=True, reduction=reduction, **given)
                found.append((value.detach(), *torch.autograd.grad(value, leaf)))
            for x, y in zip(*found, strict=True):
                assert torch.equal(x, y)


@pytest.mark.parametrize("reduction", ["none", "mean", "mean_with_sample_weight", "sum"])
@pytest.mark.parametrize("left_out", ["mask", "weight", "both"])
def test_further_derivatives_of_what_counts(reduction, left_out) -> None:
    """A NaN that is left out reaches no derivative of any order; the others are those of the rows that count."""
    labels, pred = torch.arange(6) % 5, random(6, 5)
    weight, mask = torch.tensor([1.0, 2, 3, 1, 2, 1]), torch.ones(6, dtype=torch.bool)
    if left_out in ("weight", "both"):
        weight[1] = 0
    if left_out in ("mask", "both"):
        mask[4] = False
    counts = mask & (weight != 0)
    of_classes = torch.tensor([1.0, 2, 1, 3, 1])

    def derivatives(value, leaf) -> list[torch.Tensor]:
        (first,) = torch.autograd.grad(value.sum(), leaf, create_graph=True)
        return [first.detach(), torch.autograd.grad((first**2).sum(), leaf)[0]]

    leaf = torch.where(counts[:, None], pred, torch.nan).double().requires_grad_()
    given = {"sample_weight": weight, "mask": mask, "class_weight": of_classes, "from_logits": True}
    if reduction == "mean":
        given["normalizer"] = 5.0
    found = derivatives(lb.sparse_categorical_crossentropy(labels, leaf, reduction=reduction, **given), leaf)
    clean = pred[counts].double().requires_grad_()
    counted = weight[counts] * of_classes[labels[counts]]
    losses = counted * torch.nn.functional.cross_entropy(clean, labels[counts], reduction="none")
    divisor = {"mean": 5.0, "mean_with_sample_weight": counted.sum()}.get(reduction, 1.0)
    for x, y in zip(found, derivatives(losses / divisor, clean), strict=True):
        torch.testing.assert_close(x[counts], y, rtol=1e-6, atol=1e-9)
        assert not x[~counts].any()


@needs_rows
@pytest.mark.parametrize("factor", [torch.inf, torch.nan])
def test_what_does_not_count_stays_0_whatever_flows_back(factor) -> None:
    leaf = random(4, 5).requires_grad_()
    mask = torch.tensor([True, False, True, True])
    value = lb.sparse_categorical_crossentropy(torch.arange(4), leaf, from_logits=True, mask=mask)
    (found,) = torch.autograd.grad(value, leaf, torch.tensor(factor))
    assert not found[~mask].any()
    assert not found[mask].isfinite().any()


def test_a_gradient_for_the_target_alone() -> None:
    target, pred = random(4, 5, seed=1).softmax(-1).requires_grad_(), random(4, 5)
    for reduction in ("mean", "none"):
        value = lb.categorical_crossentropy(target, pred, from_logits=True, reduction=reduction).sum()
        (found,) = torch.autograd.grad(value, target)
        expected = -pred.log_softmax(-1) / (4 if reduction == "mean" else 1)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gradients_for_both(reduction) -> None:
    """As each alone."""
    target, pred = random(4, 5, seed=1).softmax(-1), random(4, 5)

    def gradients(*needed: bool) -> tuple[torch.Tensor, ...]:
        leaves = [x.clone().requires_grad_(need) for x, need in zip((target, pred), needed, strict=True)]
        value = lb.categorical_crossentropy(*leaves, from_logits=True, reduction=reduction).sum()
        return torch.autograd.grad(2 * value, [x for x in leaves if x.requires_grad])

    for found, expected in zip(gradients(True, True), gradients(True, False) + gradients(False, True), strict=True):
        assert torch.equal(found, expected)


def test_many_that_flow_back_to_a_mean() -> None:
    leaf = random(4, 5).requires_grad_()
    value = lb.sparse_categorical_crossentropy(torch.arange(4), leaf, from_logits=True)
    factors = torch.tensor([1.0, -2, 0])
    found = torch.vmap(lambda x: torch.autograd.grad(value, leaf, x, retain_graph=True)[0])(factors)
    torch.testing.assert_close(found, factors[:, None, None] * torch.autograd.grad(value, leaf)[0])


# Over the logits.


@needs_rows
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_who_else_needs_the_logits_is_told(dtype) -> None:
    """PyTorch sees that they are written over: in halves in the backward pass, when all that flows back is known."""
    leaf = random(4, 5).to(dtype).requires_grad_()
    logits = leaf * 1
    other = logits * logits
    value = lt.CrossEntropyLoss(inplace_gradient=True)(logits, torch.arange(4))
    expected = torch.autograd.grad(3 * lt.CrossEntropyLoss()(leaf, torch.arange(4)), leaf)[0]
    found = torch.autograd.grad(3 * value, leaf)[0]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        other.sum().backward()
