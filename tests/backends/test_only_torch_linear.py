"""The linear cross-entropy under what PyTorch does to it: further derivatives, transforms, compilation, memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from test_linear import BIAS, OPTIONS, C, agree, expected, of_rows, problem

import lossbridge as lb
from lossbridge.frameworks import torch_blocks, torch_linear

LABELS = torch.from_numpy(problem()["labels"])
HIDDEN, WEIGHT = (torch.from_numpy(problem()[name]).double() for name in ("hidden", "weight"))
INPUTS = (HIDDEN, WEIGHT, torch.from_numpy(BIAS).double())


def leaves(*arrays: torch.Tensor) -> list[torch.Tensor]:
    return [x.clone().requires_grad_() for x in arrays]


def options(name: str) -> dict[str, Any]:
    given = {key: torch.from_numpy(x) if isinstance(x, np.ndarray) else x for key, x in OPTIONS[name].items()}
    given = {
        key: x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for key, x in given.items()
    }
    given.pop("bias", None)
    return {**given, "memory": of_rows(5, size=8)}


def loss(name: str, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return lb.linear_crossentropy(LABELS, hidden, weight, bias=bias, **options(name))


@pytest.mark.parametrize("name", ["plain", "all, mean by weight", "all, none"])
def test_first_and_second_derivatives(name) -> None:
    inputs = leaves(*INPUTS)
    assert torch.autograd.gradcheck(lambda *x: loss(name, *x), inputs)
    assert torch.autograd.gradgradcheck(lambda *x: loss(name, *x), inputs)


@pytest.mark.parametrize("name", ["plain", "all, none"])
def test_forward_mode_and_torch_func(name) -> None:
    steps = tuple(torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype) for x in INPUTS)
    _, moved = torch.func.jvp(lambda *x: loss(name, *x), INPUTS, steps)
    ahead, behind = (loss(name, *(x + h * s for x, s in zip(INPUTS, steps, strict=True))) for h in (1e-6, -1e-6))
    torch.testing.assert_close(moved, (ahead - behind) / 2e-6, rtol=1e-5, atol=1e-7)
    jacobian = torch.func.jacrev(lambda b: loss(name, *INPUTS[:2], b))(INPUTS[2])
    each = torch.func.vmap(lambda b: loss(name, *INPUTS[:2], b))(torch.stack([INPUTS[2], INPUTS[2] + 1]))
    torch.testing.assert_close(each[0], loss(name, *INPUTS))
    (expected,) = torch.autograd.grad(loss(name, *INPUTS[:2], b := INPUTS[2].clone().requires_grad_()).sum(), b)
    torch.testing.assert_close(jacobian.reshape(-1, C).sum(0), expected)


def test_backward_twice_gives_the_same() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        inputs = leaves(*(x.to(dtype) for x in INPUTS))
        value = loss("plain", *inputs) * 0.3
        first = torch.autograd.grad(value, inputs, retain_graph=True)
        second = torch.autograd.grad(value, inputs, retain_graph=True)
        for x in first:
            x.zero_()
        third = torch.autograd.grad(value, inputs)
        for x, y in zip(second, third, strict=True):
            assert torch.equal(x, y)
            assert x.abs().sum() > 0


@pytest.mark.parametrize(
    "needed", [(True, False, False), (False, True, False), (False, False, True), (False, True, True)]
)
def test_only_what_is_needed_is_computed(needed, monkeypatch) -> None:
    seen = []
    computed = torch_blocks.computed
    monkeypatch.setattr(torch_blocks, "computed", lambda *a: seen.append(a[3]) or computed(*a))
    inputs = [x.clone().requires_grad_(need) for x, need in zip(INPUTS, needed, strict=True)]
    loss("plain", *inputs).backward()
    exact = expected(problem(), {"bias": BIAS})[1]
    for x, need, name in zip(inputs, needed, exact, strict=True):
        assert (x.grad is not None) == need
        if need:
            np.testing.assert_allclose(x.grad, exact[name], rtol=0, atol=1e-14)
    assert seen == [needed]


def test_weights_that_need_a_gradient() -> None:
    weight = torch.linspace(0.5, 2, len(LABELS), dtype=torch.float64, requires_grad=True)

    def of(weight: torch.Tensor) -> torch.Tensor:
        return lb.linear_crossentropy(LABELS, HIDDEN, WEIGHT, sample_weight=weight, reduction="mean_with_sample_weight")

    assert torch.autograd.gradcheck(of, weight)


@pytest.mark.parametrize("name", ["plain", "all, mean", "all, none"])
def test_without_all_logits(name) -> None:
    """Of 2048 rows and 4096 classes the logits would take 32 MiB; a block takes 1."""
    rng = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 8, generator=rng).requires_grad_() for n in (2048, 4096))
    labels = torch.randint(0, 4096, (2048,), generator=rng)
    given = {} if name == "plain" else {"label_smoothing": 0.1, "softcap": 3.0, "ignore_class": 3}
    given |= {"reduction": "none"} if name.endswith("none") else {}
    sizes = []

    class Watched(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            found = function(*args, **(kwargs or {}))
            sizes.extend(
                x.nbytes for x in (found if isinstance(found, tuple) else (found,)) if isinstance(x, torch.Tensor)
            )
            return found

    before = torch_linear._refuses_blocks
    torch_linear._refuses_blocks = lambda call, under: ""
    try:
        with Watched():
            lb.linear_crossentropy(labels, hidden, weight, memory=1 << 20, **given).sum().backward()
    finally:
        torch_linear._refuses_blocks = before
    assert max(sizes) <= 2 << 20
    assert weight.grad is not None


def test_compiled_in_one_graph() -> None:
    compiled = torch.compile(lambda *x: loss("all, mean", *x) * 0.7, fullgraph=True)
    inputs = leaves(*INPUTS)
    value = compiled(*inputs)
    gradients = torch.autograd.grad(value, inputs)
    exact = expected(problem(), OPTIONS["all, mean"])
    scaled = (exact[0] * 0.7, {name: 0.7 * x for name, x in exact[1].items()})
    agree((value.detach().numpy(), dict(zip(exact[1], (x.numpy() for x in gradients), strict=True))), scaled, "float64")


@pytest.mark.parametrize("name", ["labels", "hidden", "weight", "sample_weight", "mask", "class_weight"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_arrays_changed_after_the_forward_pass(name, reduction) -> None:
    """PyTorch's error, or the gradient as it was."""
    arrays = {"labels": LABELS.clone(), "hidden": HIDDEN.clone(), "weight": WEIGHT * 1}
    more = {"mask": torch.ones(13, dtype=torch.bool), "sample_weight": torch.ones(13), "class_weight": torch.ones(C)}
    arrays |= {name: more[name].double() if name != "mask" else more[name]} if name in more else {}
    head = arrays["weight"].requires_grad_()

    def total() -> torch.Tensor:
        return lb.linear_crossentropy(**arrays, reduction=reduction, memory=of_rows(5, size=8)).sum()

    (before,) = torch.autograd.grad(total(), head)
    value = total()
    with torch.no_grad():
        arrays[name].zero_()
    for create_graph in (False, True):
        try:
            (gradient,) = torch.autograd.grad(value, head, retain_graph=True, create_graph=create_graph)
        except RuntimeError as error:
            assert "modified by an inplace operation" in str(error)  # noqa: PT017
            assert create_graph or reduction == "none"
        else:
            assert torch.equal(gradient, before) or (create_graph and torch.allclose(gradient, before))


def test_logits_are_float32_under_autocast() -> None:
    arrays = [x.float() for x in INPUTS]
    exact = expected(problem(), OPTIONS["bias"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        weights = torch.ones(13, requires_grad=True)
        value = lb.linear_crossentropy(LABELS, arrays[0], arrays[1], bias=arrays[2], sample_weight=weights)
    np.testing.assert_allclose(value.detach(), exact[0], rtol=1e-6)


def test_on_the_meta_device() -> None:
    hidden, weight = (x.to("meta").requires_grad_() for x in (HIDDEN, WEIGHT))
    lb.linear_crossentropy(LABELS.to("meta"), hidden, weight).backward()
    assert weight.grad.shape == weight.shape
