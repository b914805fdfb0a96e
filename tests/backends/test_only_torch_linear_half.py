"""The linear losses in half precision, on a device that multiplies it into float32: a stand-in for CUDA.

They have not been run on a GPU.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import test_linear_distillation
import torch
from test_linear import OPTIONS, C, agree, expected, found, of_rows, problem

import lossbridge as lb
from lossbridge.frameworks import torch_blocks
from lossbridge.frameworks.torch_rows import HALVES

HALF = pytest.mark.parametrize("dtype", HALVES, ids=str)
NAMES = {torch.float16: "float16", torch.bfloat16: "bfloat16"}


def multiply_as_cuda(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Matrices of half precision are multiplied as on CUDA. The products' shapes, and where the factors lie."""
    made: list[tuple[Any, ...]] = []

    def addmm(
        x: torch.Tensor,
        y: torch.Tensor,
        z: torch.Tensor,
        *,
        out_dtype: torch.dtype,
        beta: int,
        out: torch.Tensor,
    ) -> torch.Tensor:
        assert y.dtype == z.dtype
        assert y.dtype in HALVES
        assert x is out
        assert out.dtype == out_dtype == torch.float32
        made.append((out.shape, y.data_ptr(), z.data_ptr()))
        product = torch.mm(y.float(), z.float())
        return out.copy_(product + beta * x if beta else product)

    monkeypatch.setattr(torch, "addmm", addmm)
    monkeypatch.setattr(torch_blocks, "_multiplies_halves", lambda h, w: h.dtype == w.dtype and h.dtype in HALVES)
    return made


@pytest.fixture
def products(monkeypatch) -> list[tuple[Any, ...]]:
    return multiply_as_cuda(monkeypatch)


def near(result: Any, exact: Any, dtype: torch.dtype, words: str = "") -> None:
    """Slopes are rounded to half precision too: of each gradient the error beside all of it, and the largest."""
    agree((result[0], {}), exact, NAMES[dtype], words)
    step = torch.finfo(dtype).eps
    for name, gradient in result[1].items():
        right = exact[1][name]
        size = np.sqrt(np.mean(np.square(right)))
        assert np.sqrt(np.mean(np.square(gradient - right))) <= step / 2 * size, (words, name)
        np.testing.assert_allclose(gradient, right, rtol=0, atol=step * np.abs(right).max(initial=0), err_msg=name)


@HALF
@pytest.mark.parametrize("rows", [1, 5, None])
def test_values_and_gradients(lib, products, dtype, rows) -> None:
    for name, options in OPTIONS.items():
        products.clear()
        given = options if rows is None else {**options, "memory": of_rows(rows)}
        near(found(lib, problem(), given, NAMES[dtype]), expected(problem(), options), dtype, name)
        assert {shape[0] for shape, *_ in products} <= {rows or 13, 13 % (rows or 13), C}
        assert products


@HALF
@pytest.mark.parametrize("name", ["plain", "all, mean", "all, none"])
def test_classes_along_axis_1(lib, products, dtype, name) -> None:
    exact = expected(problem(), OPTIONS[name])
    exact[1]["weight"] = exact[1]["weight"].T
    arguments = problem()
    arguments["weight"] = np.ascontiguousarray(arguments["weight"].T)
    near(found(lib, arguments, {**OPTIONS[name], "classes_axis": 1, "memory": of_rows(5)}, NAMES[dtype]), exact, dtype)


def large(dtype: torch.dtype) -> tuple[torch.Tensor, list[torch.Tensor]]:
    rng = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 64, generator=rng).to(dtype) for n in (512, 1000))
    return torch.randint(0, 1000, (512,), generator=rng), [hidden.requires_grad_(), (weight / 8).requires_grad_()]


def relative(x: torch.Tensor, exact: torch.Tensor) -> float:
    return float((x.double() - exact).norm() / exact.norm())


@HALF
@pytest.mark.parametrize("rows", [16, 200, 512])
@pytest.mark.parametrize("options", [{}, {"reduction": "none"}, {"returns": ("loss", "entropy")}])
def test_the_weights_gradient_is_as_exact_in_any_block(products, dtype, rows, options) -> None:
    labels, inputs = large(dtype)

    def gradients(arrays: list[torch.Tensor], **more: Any) -> tuple[torch.Tensor, ...]:
        loss = lb.linear_crossentropy(labels, *arrays, **options, **more)
        loss = loss.loss + loss.entropy.mean() if "returns" in options else loss.mean()
        return torch.autograd.grad(loss * 1000, arrays)  # beside which float16 has its digits

    exact = gradients([x.detach().double().requires_grad_() for x in inputs])
    limits = (4e-4, 4e-4)
    if dtype == torch.bfloat16:  # slopes of an entropy are all of a size, and each is rounded
        limits = (2.5e-3, 2.5e-3 if "returns" in options else 2e-3)
    for x, right, limit in zip(gradients(inputs, memory=rows * 4000), exact, limits, strict=True):
        assert x.dtype == dtype
        assert relative(x, right) < limit
    assert {addresses[1] for _, *addresses in products} >= {x.data_ptr() for x in inputs}  # not cast


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("size", [1e6, 1e-6])
def test_no_weight_meets_slopes_of_float16(reduction, size) -> None:
    """Which would overflow or underflow: neither what flows back nor the weights of samples."""
    labels, inputs = large(torch.float16)
    weights = torch.linspace(0.5, 1, 512) * size

    def gradients(arrays: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        loss = lb.linear_crossentropy(labels, *arrays, sample_weight=weights, reduction=reduction, memory=400_000)
        return torch.autograd.grad(loss.sum() * ((512 if reduction == "mean" else 1) / size), arrays)

    exact = gradients([x.detach().double().requires_grad_() for x in inputs])
    for x, right in zip(gradients(inputs), exact, strict=True):
        assert relative(x, right) < 4e-4


@HALF
@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("weights", [[0.0], [1.0, -1.0], [torch.inf, *[1.0] * 511]], ids=["0", "sum 0", "infinite"])
def test_weights_that_are_no_unit(dtype, weights) -> None:
    weights = torch.tensor(weights).repeat(512 // len(weights))
    labels, inputs = large(dtype)
    loss = lb.linear_crossentropy(labels, *inputs, sample_weight=weights, reduction="mean_with_sample_weight")
    wide = [x.detach().float().requires_grad_() for x in inputs]
    exact = lb.linear_crossentropy(labels, *wide, sample_weight=weights, reduction="mean_with_sample_weight")
    torch.testing.assert_close(loss, exact, equal_nan=True)
    for x, y in zip(torch.autograd.grad(loss, inputs), torch.autograd.grad(exact, wide), strict=True):
        assert torch.equal(x.isnan().any(), y.isnan().any())
        assert weights.sum() or not x.any()


@HALF
def test_distillation(products, dtype) -> None:
    arrays = {name: torch.from_numpy(x).to(dtype) for name, x in test_linear_distillation.problem().items()}
    names = test_linear_distillation.STUDENT

    def gradients(dtype: torch.dtype) -> list[torch.Tensor]:
        given = {name: x.to(dtype).requires_grad_(name in names) for name, x in arrays.items()}
        loss = lb.linear_distillation(**given, memory=test_linear_distillation.BLOCKS)
        return [loss.detach(), *torch.autograd.grad(loss, [given[name] for name in names])]

    for x, right in zip(gradients(dtype), gradients(torch.float64), strict=True):
        assert relative(x, right) < torch.finfo(dtype).eps / 2
    assert products


@HALF
def test_compiled(products, dtype) -> None:
    """The operator computes as an eager call does."""
    labels, inputs = large(dtype)
    torch.compiler.reset()
    compiled = torch.compile(lb.linear_crossentropy, fullgraph=True, backend="aot_eager")
    for reduction in ("mean", "none"):
        each = [
            torch.autograd.grad(loss(labels, *inputs, reduction=reduction, memory=400_000).mean() * 100, inputs)
            for loss in (compiled, lb.linear_crossentropy)
        ]
        for x, y in zip(*each, strict=True):
            assert torch.equal(x, y)
    assert products


def test_pytorch_multiplies_so() -> None:
    """Its signature, on a device without numbers; and that this device does not."""
    x, y, out = (torch.empty(shape, dtype=torch.bfloat16, device="meta") for shape in ((2, 3), (3, 4), (2, 4)))
    out = out.float()
    torch_blocks._multiply(x, y, out, add=True)
    assert not torch_blocks._multiplies_halves(x, y)
