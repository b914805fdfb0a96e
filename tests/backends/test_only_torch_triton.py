"""The Triton kernels, run by Triton's interpreter on CPU tensors: nothing here needs a GPU, and nothing shows speed.

Triton reads TRITON_INTERPRET when it is imported, and torch.compile's own kernels must not be interpreted. So one test
runs this file again in a process of its own, where the functions named `interpreted_…` are the tests.
"""

from __future__ import annotations

import functools
import gc
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import lossbridge as lb
from lossbridge import backend
from lossbridge.backends import torch as b
from lossbridge.parity.cases import Case, cases
from lossbridge.parity.check import Runner

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if INTERPRETED:
    import triton
    import triton.language as tl

    from lossbridge.kernels import triton as kernels


def test_kernels_under_the_interpreter(tmp_path) -> None:
    options = ("-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-o", "python_functions=interpreted_*")
    # NumPy, which the interpreter computes with, warns of infinities that are selected away.
    command = [sys.executable, "-m", "pytest", *options, "-W", "ignore::RuntimeWarning", "--backend", "torch", __file__]
    run = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]


def test_nobody_else_imports_triton() -> None:
    code = """
import sys, torch, lossbridge
before = "triton" in sys.modules
z = torch.zeros(2, 3, requires_grad=True)
lossbridge.sparse_categorical_crossentropy(torch.tensor([0, 1]), z, from_logits=True).backward()
assert ("triton" in sys.modules) == before
assert "lossbridge.kernels.triton" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# The losses that have kernels, each with options of all kinds.

CLASS_WEIGHT = (0.5, 1, 2, 0, 3)
LOSSES = {
    "labels": functools.partial(lb.sparse_categorical_crossentropy, from_logits=True),
    "smoothed labels": functools.partial(lb.sparse_categorical_crossentropy, from_logits=True, label_smoothing=0.1),
    "distributions": functools.partial(lb.categorical_crossentropy, from_logits=True),
    "smoothed distributions": functools.partial(lb.categorical_crossentropy, from_logits=True, label_smoothing=0.1),
    "divergence": functools.partial(lb.kl_divergence, from_logits=True),
    "distillation": functools.partial(lb.distillation_loss, temperature=3.0),
}
losses = pytest.mark.parametrize("name", LOSSES)


def problem(name: str, rows: int, classes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A target, and logits of float32."""
    rng = np.random.default_rng(seed)
    z, u = (torch.tensor(x) for x in rng.normal(size=(2, rows, classes)).astype(np.float32))
    if "labels" in name:
        return torch.tensor(rng.integers(0, classes, rows)), z
    return (torch.softmax(u, -1) if "distributions" in name else u), z


def doubles(x: torch.Tensor) -> torch.Tensor:
    """float64, which no kernel takes: the formula is the reference."""
    return x.double() if x.is_floating_point() else x


def value_and_slope(loss, target, logits, **options) -> tuple[torch.Tensor, torch.Tensor]:
    logits = logits.detach().requires_grad_()
    value = loss(target, logits, reduction="none", **options)
    (slope,) = torch.autograd.grad(value, logits, torch.arange(1.0, 1 + value.numel()).reshape(value.shape).to(value))
    return value.detach(), slope


def assert_near(got, exact, rtol: float = 2e-6) -> None:
    """Relative to the largest entry of each row."""
    got, exact = got.double(), exact.double()
    scale = exact.abs().amax(-1, keepdim=True) if exact.ndim > 1 else exact.abs()
    assert ((got - exact).abs() <= rtol * scale + 1e-30).all(), (got, exact)


class Kernels(dict):
    """The kernels, counting the calls that they accept."""

    accepted = 0

    def get(self, name):
        kernel = super().get(name)
        return kernel and functools.partial(self.call, kernel)

    def call(self, kernel, *arguments, **options):
        loss = kernel(*arguments, **options)
        self.accepted += loss is not None
        return loss


@pytest.fixture(autouse=INTERPRETED)
def fast(monkeypatch) -> Kernels:
    found = Kernels(kernels.KERNELS)
    monkeypatch.setitem(backend.KERNELS, "torch", lambda: found)
    return found


# The functions on the device.

if INTERPRETED:

    @triton.jit
    def _apply(x, y, FUNCTION: tl.constexpr, N: tl.constexpr):
        i = tl.arange(0, N)
        tl.store(y + i, FUNCTION(tl.load(x + i)))


def applied(function, x: np.ndarray) -> np.ndarray:
    y = torch.empty(x.size)
    _apply[(1,)](torch.tensor(x), y, function, x.size)
    return y.numpy().astype(np.float64)


def interpreted_functions_of_the_device_keep_their_digits() -> None:
    x = -np.geomspace(1e-8, 86, 1024).astype(np.float32)
    np.testing.assert_allclose(applied(kernels._exp, x), np.exp(x.astype(float)), rtol=2e-7)
    ends = np.array([0, -104, -200, -1e30, -np.inf, np.nan, -87.3, -103], np.float32)
    np.testing.assert_allclose(applied(kernels._exp, ends), np.exp(ends.astype(float)), rtol=2e-7, atol=2e-45)
    x = np.concatenate([np.geomspace(1e-30, 1e30, 512), -np.geomspace(1e-30, 0.9, 512)]).astype(np.float32)
    np.testing.assert_allclose(applied(kernels._log1p, x), np.log1p(x.astype(float)), rtol=3e-7)
    x = np.concatenate([np.geomspace(1e-15, 1, 512), -np.geomspace(1e-15, 1, 512)]).astype(np.float32)
    wide = x.astype(np.longdouble)
    exact = np.where(abs(x) < 1e-3, wide**2 / 2 - wide**3 / 6 + wide**4 / 24, wide + np.expm1(-wide))
    np.testing.assert_allclose(applied(kernels._remainder, x), exact.astype(float), rtol=4e-7)


# Values and gradients.

CONCERNED = [case for case in cases() if case.dtype != "float64" and case.options.get("from_logits", True)]
CONCERNED = [case for case in CONCERNED if case.loss in ("kl_divergence", "distillation_loss") or "crossentropy" in case.loss or "label" in case.loss or case.loss == "log_loss"]
CONCERNED = [case for case in CONCERNED if "focal" not in case.loss and "binary" not in case.loss and case.axis is not None]


@pytest.mark.parametrize("tile", [2048, 4])
@pytest.mark.parametrize("case", CONCERNED, ids=lambda case: f"{case.loss}-{case.name}")
def interpreted_cases_agree_with_the_reference(monkeypatch, fast, case: Case, tile: int) -> None:
    if tile == 4 and case.y_pred.size > 100:  # a program a row would take the interpreter minutes
        return
    monkeypatch.setattr(kernels, "TILE", tile)
    outcome = Runner(b).run(case, "eager")
    assert not outcome.fault, outcome.fault
    assert fast.accepted


@losses
@pytest.mark.parametrize("classes", [1, 2, 3, 31, 32, 33, 1000])
@pytest.mark.parametrize("rows", [0, 1, 7])
def interpreted_shapes(monkeypatch, fast, name: str, classes: int, rows: int) -> None:
    monkeypatch.setattr(kernels, "TILE", 256)
    target, z = problem(name, rows, classes)
    axis, options = (1, {"axis": 1}) if classes > 1 else (0, {"axis": 0})
    if classes == 1:  # refused by the losses, so as one column of another axis
        target, z = (target.reshape(1, -1), z.reshape(1, 1, -1).expand(1, 2, rows)) if target.ndim == 1 else (target.reshape(1, 1, -1).expand(1, 2, rows), z.reshape(1, 1, -1).expand(1, 2, rows))
        options = {"axis": 1}
    del axis
    value, slope = value_and_slope(LOSSES[name], target, z, **options)
    exact_value, exact_slope = value_and_slope(LOSSES[name], doubles(target), doubles(z), **options)
    assert fast.accepted == 1
    assert value.dtype == slope.dtype == torch.float32
    assert_near(value, exact_value)
    assert_near(slope, exact_slope)
