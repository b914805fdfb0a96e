"""Gradients in float16 and bfloat16: computed and multiplied in float32, and rounded once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_paths import FORMS, arrays

import lossbridge as lb
from lossbridge import reference

N = 12
HALVES = (torch.float16, torch.bfloat16)
# What flows back: into a mean, or a number a row.
UPSTREAM = {"loss scaling": 65536.0, "accumulation": 0.3, "one a row": None}


def inputs(form, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    target, pred = (torch.tensor(x) for x in arrays(form, N, 5, "float32"))
    if form.logits:
        pred[::3] *= 6  # confident rows, whose gradients are small
    return target if form.target == "labels" else target.to(dtype), pred.to(dtype)


def exact(form, target: torch.Tensor, pred: torch.Tensor, upstream) -> tuple[np.ndarray, np.ndarray | None]:
    """Of these rounded inputs, in float64: the gradients of predictions and target, times what flows back."""
    options = form.options | {"reduction": "mean" if np.ndim(upstream) == 0 else "none"}
    target = target if form.target == "labels" else target.double()
    found = getattr(reference, form.loss)(target.numpy(), pred.double().numpy(), **options, precision="float32")
    upstream = upstream if np.ndim(upstream) in (0, pred.ndim) else upstream[:, None]
    of_target = found.target_gradient
    return found.gradient * upstream, None if of_target is None else of_target * upstream


def assert_rounded_once(got: torch.Tensor, exact: np.ndarray, allowed: np.ndarray) -> None:
    """Half a unit in the last place, besides what float32 may be wrong by."""
    info = torch.finfo(got.dtype)
    exponent = np.floor(np.log2(np.maximum(np.abs(exact), info.smallest_normal)))
    half_unit = 0.5 * info.eps * 2.0**exponent
    error = np.abs(got.double().numpy() - exact)
    worst = (error / (half_unit + 2.0**-20 * np.abs(exact) + allowed)).max()
    assert worst <= 1, worst


def soft_part(form, target: torch.Tensor) -> np.ndarray:
    """Of p − t, the t at which the two may cancel."""
    if form.target == "labels":
        return np.array(0.1 if form.smoothed else 0.0)
    t = target.double()
    t = torch.softmax(t, 1) if form.target == "logits" else t
    return torch.where(t == 1, 0.0, t).numpy()


def check(form, dtype: torch.dtype, case: str, loss) -> None:
    target, pred = inputs(form, dtype)
    leaves = [pred.requires_grad_(), *([target.requires_grad_()] if target.is_floating_point() else [])]
    value = loss(target, pred)
    factor = UPSTREAM[case]
    upstream = torch.full((), factor) if factor else torch.rand(value.shape, generator=torch.manual_seed(1)) * 3000
    assert value.dtype == torch.float32
    found = torch.autograd.grad(value, leaves, upstream)
    rights = exact(form, target.detach(), pred.detach(), upstream.double().numpy())
    per_entry = upstream if upstream.ndim in (0, pred.ndim) else upstream[:, None]
    allowed = 2.0**-21 * soft_part(form, target.detach()) * per_entry.double().numpy()
    for got, right in zip(found, rights, strict=False):
        assert got.dtype == dtype
        inside = np.abs(right) < torch.finfo(dtype).max / 2  # float16 ends at 65504
        spread = np.broadcast_to(allowed, right.shape)
        assert_rounded_once(got[torch.tensor(inside)], right[inside], spread[inside])


def called(form, case: str):
    reduction = "mean" if UPSTREAM[case] else "none"
    return lambda target, pred: getattr(lb, form.loss)(target, pred, **form.options, reduction=reduction)


@pytest.mark.parametrize("case", UPSTREAM)
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_rounded_once(form, dtype, case) -> None:
    check(form, dtype, case, called(form, case))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(
    "name", ["sparse_categorical_crossentropy, labels, logits", "binary_crossentropy, outcomes, logits"]
)
def test_rounded_once_when_compiled(name, dtype) -> None:
    """By the operations of the rule, and by the operator, which dynamic sizes get."""
    for case, dynamic in (("loss scaling", False), ("one a row", True)):
        torch.compiler.reset()
        check(FORMS[name], dtype, case, torch.compile(called(FORMS[name], case), fullgraph=True, dynamic=dynamic))


def test_what_float16_alone_would_lose() -> None:
    x = torch.tensor([[0.0, -18.0]]).half().requires_grad_()
    (lb.sparse_categorical_crossentropy(torch.tensor([0]), x, from_logits=True) * 65536).backward()
    p = 1 / (1 + np.exp(18.0))
    torch.testing.assert_close(x.grad.double().numpy(), 65536 * p * np.array([[-1.0, 1.0]]), rtol=2**-11, atol=0)
    x = torch.full((1, 1000), -12.0).half().requires_grad_()
    (lb.binary_crossentropy(torch.zeros(1, 1000), x, from_logits=True) * 65536).backward()
    expected = np.full((1, 1000), 65536 / 1000 / (1 + np.exp(12.0)))
    torch.testing.assert_close(x.grad.double().numpy(), expected, rtol=2**-11, atol=0)
