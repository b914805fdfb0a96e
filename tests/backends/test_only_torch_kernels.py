"""PyTorch's eager paths, each forced: against the reference and against the formulas."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import lossbridge as lb
import lossbridge.torch as lt
from lossbridge.frameworks import on_torch
from lossbridge.native import rows
from lossbridge.tools.parity.cases import cases
from lossbridge.tools.parity.check import Runner

LOGITS = [
    "sparse_categorical_crossentropy",
    "categorical_crossentropy",
    "kl_divergence",
    "binary_crossentropy",
    "log_loss",
]


needs_rows = pytest.mark.skipif(bool(rows.MISSING), reason=rows.MISSING)


def force(path: str, monkeypatch) -> None:
    """Takes away the paths that are faster."""
    if path != "rows":
        monkeypatch.setattr(rows, "RULES", {})
    if path == "formula":
        monkeypatch.setattr(on_torch, "_refuses_rule", lambda r, compiled: "it is forced")


@pytest.fixture(params=[pytest.param("rows", marks=needs_rows), "rule", "formula"])
def path(request, monkeypatch) -> str:
    force(request.param, monkeypatch)
    return request.param


SMALL_CASES = [case for case in cases() if case.y_pred.size < 1e5]


def test_every_case_on_every_path(lib, path) -> None:
    runner = Runner(lib.b)
    faults = {f"{case.loss}, {case.name}": runner.run(case, "eager").fault for case in SMALL_CASES}
    assert not {name: fault for name, fault in faults.items() if fault}


def problem(loss: str, n: int, classes: int, dtype: torch.dtype = torch.float32, seed: int = 0):
    """Targets and logits of a loss."""
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(n, classes, generator=g).to(dtype)
    other = torch.randn(n, classes, generator=g).to(dtype)
    if loss == "sparse_categorical_crossentropy":
        return torch.randint(0, classes, (n,), generator=g), z
    target = {
        "categorical_crossentropy": lambda: torch.softmax(other.float(), 1).to(dtype),
        "kl_divergence": lambda: other,
        "binary_crossentropy": lambda: (other > 0).to(dtype),
        "log_loss": lambda: (other > 0).to(dtype),
    }
    return target[loss](), z


def slopes(loss: str, target, pred, **options):
    leaf = pred.detach().clone().requires_grad_() if pred.is_contiguous() else pred.detach().requires_grad_()
    value = getattr(lb, loss)(target, leaf, from_logits=True, reduction="none", **options)
    weights = torch.linspace(0.5, 2, value.numel()).reshape(value.shape).to(value.dtype)
    return value.detach(), torch.autograd.grad(value, leaf, weights)[0]


def exactly(loss: str, target, pred, monkeypatch, **options):
    """By the formula, in float64."""
    with monkeypatch.context() as patch:
        force("formula", patch)
        target = target.double() if target.is_floating_point() else target
        return slopes(loss, target, pred.double(), **options)


def assert_right(got, exact, dtype=torch.float32) -> None:
    value, gradient = got
    torch.testing.assert_close(value.double(), exact[0], rtol=2e-6, atol=2e-6)
    assert gradient.dtype == dtype
    tolerance = {torch.float32: 2e-6, torch.float64: 1e-13}.get(dtype, 2e-3 if dtype == torch.float16 else 1e-2)
    largest = exact[1].abs().amax(-1, keepdim=True).clamp_min(1e-3)
    assert ((gradient.double() - exact[1]).abs() <= tolerance * largest).all()


@pytest.mark.parametrize("loss", LOGITS)
@pytest.mark.parametrize("classes", [2, 3, 31, 32, 33, 1000, 32_768, 50_257, 128_256])
def test_sizes(loss, classes, path, monkeypatch) -> None:
    for n in (1, 7):
        if classes > 1000 and n == 7:
            continue
        target, pred = problem(loss, n, classes)
        assert_right(slopes(loss, target, pred), exactly(loss, target, pred, monkeypatch))


@pytest.mark.parametrize("loss", LOGITS)
def test_nothing_and_one(loss, path) -> None:
    target, pred = problem(loss, 0, 5)
    value, gradient = slopes(loss, target, pred)
    assert value.numel() == gradient.numel() == 0
    one_class = lt.CrossEntropyLoss()(torch.zeros(3, 1, requires_grad=True), torch.zeros(3, dtype=torch.int64))
    assert one_class == 0


@pytest.mark.parametrize("loss", LOGITS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(loss, dtype, path, monkeypatch) -> None:
    target, pred = problem(loss, 7, 33, dtype)
    assert_right(slopes(loss, target, pred), exactly(loss, target, pred, monkeypatch), dtype)


STRIDES = {
    "transposed": lambda x: x.t().contiguous().t(),
    "sliced columns": lambda x: torch.cat([x, torch.full_like(x, torch.nan)], 1)[:, : x.shape[1]],
    "sliced rows": lambda x: torch.stack([x, torch.full_like(x, torch.nan)], 1).flatten(0, 1)[::2],
    "expanded": lambda x: x[:1].expand(x.shape),
}


@pytest.mark.parametrize("loss", LOGITS)
@pytest.mark.parametrize("strides", STRIDES)
def test_strides(loss, strides, path, monkeypatch) -> None:
    target, pred = problem(loss, 6, 5)
    pred = STRIDES[strides](pred)
    if target.ndim == 2:
        target = STRIDES[strides](target)
    before = pred.clone()
    assert_right(slopes(loss, target, pred), exactly(loss, target.clone(), before.clone(), monkeypatch))
    assert torch.equal(pred, before)


@pytest.mark.parametrize("loss", LOGITS[:4])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_images(loss, layout, path, monkeypatch) -> None:
    target, pred = problem(loss, 2 * 3 * 4, 5)
    pred = pred.reshape(2, 3, 4, 5).permute(0, 3, 1, 2).contiguous(memory_format=layout)
    target = target.reshape(2, 3, 4) if target.ndim == 1 else target.reshape(2, 3, 4, 5).permute(0, 3, 1, 2)
    mask = torch.arange(24).reshape(2, 3, 4) % 3 > 0
    pred = torch.where(mask[:, None], pred, torch.nan)
    got = slopes(loss, target, pred, axis=1, mask=mask)
    assert_right(got, exactly(loss, target, pred, monkeypatch, axis=1, mask=mask))
    assert not got[1].movedim(1, -1)[~mask].any()


@pytest.mark.parametrize("loss", LOGITS)
def test_a_second_backward_and_a_second_derivative(loss, path, monkeypatch) -> None:
    target, pred = problem(loss, 7, 5)
    leaf = pred.clone().requires_grad_()
    value = getattr(lb, loss)(target, leaf, from_logits=True)
    first = torch.autograd.grad(value, leaf, retain_graph=True)[0]
    second = torch.autograd.grad(value, leaf)[0]
    torch.testing.assert_close(first, second, rtol=0, atol=0)

    def curvature(leaf):
        value = getattr(lb, loss)(target.to(leaf.dtype) if target.ndim == 2 else target, leaf, from_logits=True)
        slope = torch.autograd.grad(value, leaf, create_graph=True)[0]
        return torch.autograd.grad((slope * torch.arange(5.0, dtype=leaf.dtype)).sum(), leaf)[0]

    got = curvature(pred.clone().requires_grad_())
    with monkeypatch.context() as patch:
        force("formula", patch)
        exact = curvature(pred.double().requires_grad_())
    torch.testing.assert_close(got.double(), exact, rtol=1e-4, atol=1e-6)


@needs_rows
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_changed_before_backward(dtype) -> None:
    """An error where a derivative reads them. The gradient of a mean is there already, as PyTorch's is."""
    leaf = torch.zeros(300, 300, dtype=dtype, requires_grad=True)

    def changed(reduction: str) -> torch.Tensor:
        logits = leaf * 1
        target = torch.zeros(300, dtype=torch.int64)
        loss = lb.sparse_categorical_crossentropy(target, logits, from_logits=True, reduction=reduction)
        logits.add_(torch.arange(300))
        return loss.sum()

    exact = torch.full((300, 300), 1 / 300).index_fill_(1, torch.tensor([0]), 1 / 300 - 1) / 300
    torch.testing.assert_close(torch.autograd.grad(changed("mean"), leaf)[0], exact.to(dtype))
    for value, further in ((changed("none"), False), (changed("sum"), False), (changed("mean"), True)):
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            torch.autograd.grad(value, leaf, create_graph=further)
    if dtype == torch.bfloat16:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            (2 * changed("mean")).backward()


def test_divergences_near_and_far(monkeypatch) -> None:
    """Rows of every distance in one block: each is computed in its own way."""
    g = torch.Generator().manual_seed(1)
    z = torch.randn(9, 1000, generator=g)
    distance = torch.tensor([0, 1e-6, 1e-4, 1e-2, 0.1, 0.4, 1, 10, 100])[:, None]
    x = z + distance * torch.randn(9, 1000, generator=g)
    value, gradient = slopes("kl_divergence", z, x)
    exact = exactly("kl_divergence", z, x, monkeypatch)
    assert value[0] == 0
    torch.testing.assert_close(value.double()[1:], exact[0][1:], rtol=2e-6, atol=0)
    largest = exact[1].abs().amax(1, keepdim=True)
    assert ((gradient - exact[1]).abs() <= 2e-6 * largest).all()


# In place.


def test_the_gradient_is_written_over_the_logits() -> None:
    g = torch.Generator().manual_seed(2)
    weight = torch.randn(20, 50, generator=g, requires_grad=True)
    x, y = torch.randn(8, 20, generator=g), torch.randint(0, 50, (8,), generator=g)
    y[3] = -100
    expected = torch.autograd.grad(torch.nn.functional.cross_entropy(x @ weight, y), weight)[0]
    logits = x @ weight
    logits.retain_grad()
    lt.CrossEntropyLoss(inplace_gradient=True)(logits, y).backward()
    torch.testing.assert_close(weight.grad, expected)
    assert torch.equal(logits, logits.grad)


def test_in_place_errors() -> None:
    loss = lt.CrossEntropyLoss(inplace_gradient=True)
    y = torch.tensor([0, 1])
    leaf = torch.zeros(2, 3, requires_grad=True)
    with pytest.raises(ValueError, match="are a leaf, whose values are yours"):
        loss(leaf, y)
    with pytest.raises(ValueError, match="are a leaf, whose values are yours"):
        loss(leaf.view(3, 2).view(2, 3), y)
    with pytest.raises(ValueError, match=r"strides \(1, 3\) for shape \(3, 2\)"):
        loss((leaf * 1).t(), torch.tensor([0, 1, 0]))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss(torch.exp(leaf), y).backward()  # exp needs its result
    value = loss(leaf * 1, y)
    value.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="needs; leave it out"):
        value.backward()
    with pytest.raises(RuntimeError, match="needs; leave it out"):
        torch.autograd.grad(loss(leaf * 1, y), leaf, create_graph=True)
    with pytest.raises(TypeError, match="inplace_gradient is 1"):
        lt.CrossEntropyLoss(inplace_gradient=1)
    with torch.no_grad():
        logits = torch.ones(2, 3)
        loss(logits, y)
        assert torch.equal(logits, torch.ones(2, 3))  # no gradient, nothing written


# Running.


def large():
    target, pred = problem("sparse_categorical_crossentropy", 700, 1000, seed=3)
    return slopes("sparse_categorical_crossentropy", target, pred)


def test_the_same_bits_from_run_to_run_and_from_thread_to_thread() -> None:
    first = large()
    with ThreadPoolExecutor(4) as pool:
        for value, gradient in pool.map(lambda _: large(), range(8)):
            assert torch.equal(value, first[0])
            assert torch.equal(gradient, first[1])


def test_after_a_fork() -> None:
    """In a process of its own, in which no other framework has threads that a fork would lose."""
    program = """
import os, torch, lossbridge as lb
torch.manual_seed(0)
z, y = torch.randn(700, 1000, requires_grad=True), torch.zeros(700, dtype=torch.int64)
loss = lambda: lb.sparse_categorical_crossentropy(y, z, from_logits=True)
size = lambda: torch.autograd.grad(loss(), z)[0].abs().sum().item()
before = size()
child = os.fork()
if not child:
    torch.set_num_threads(1)  # PyTorch's own threads do not survive a fork
    os._exit(0 if abs(size() - before) < 1e-5 else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_no_memory_is_kept() -> None:
    target, pred = problem("sparse_categorical_crossentropy", 64, 100)
    leaf = pred.requires_grad_()

    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(x), torch.Tensor) for x in gc.get_objects())

    def step() -> None:
        leaf.grad = None
        lb.sparse_categorical_crossentropy(target, leaf, from_logits=True).backward()

    step()
    before = tensors()
    gc.disable()  # nothing may wait for the collector
    try:
        for _ in range(1000):
            step()
    finally:
        gc.enable()
    assert tensors() <= before


# Small batches.


def test_small_batches_of_bad_labels_and_of_nothing() -> None:
    z = problem("sparse_categorical_crossentropy", 3, 5)[1].requires_grad_()
    for bad in (-100, -1, 5):
        with pytest.raises(ValueError, match=f"label {bad} at index 1 is out of range"):
            lb.sparse_categorical_crossentropy(torch.tensor([0, bad, 1]), z, from_logits=True)
    ignored = torch.full((3,), -100)
    loss = lb.sparse_categorical_crossentropy(ignored, z, from_logits=True, ignore_class=-100)
    assert loss == 0
    assert not torch.autograd.grad(loss, z)[0].any()


def test_small_batches_with_bad_options() -> None:
    z = problem("sparse_categorical_crossentropy", 3, 5)[1]
    y = torch.tensor([0, 1, 2])
    for axis in (1.0, True):
        with pytest.raises(TypeError, match="pass one integer"):
            lb.sparse_categorical_crossentropy(y, z, from_logits=True, axis=axis)
    with pytest.raises(ValueError, match="is out of range"):
        lb.sparse_categorical_crossentropy(torch.tensor([0, -(2**62), 1]), z, from_logits=True)
    expected = lb.sparse_categorical_crossentropy(y, z, from_logits=True)
    assert lb.sparse_categorical_crossentropy(y, z, from_logits=True, ignore_class=2**70) == expected


# What else PyTorch does with a loss.


@pytest.mark.parametrize("loss", LOGITS[:4])
def test_many_gradients_at_once(loss) -> None:
    target, z = problem(loss, 5, 40)

    def rows(z: torch.Tensor) -> torch.Tensor:
        return getattr(lb, loss)(target, z, from_logits=True, reduction="none")

    at_once = torch.autograd.functional.jacobian(rows, 30 * z, vectorize=True)
    torch.testing.assert_close(at_once, torch.autograd.functional.jacobian(rows, 30 * z), rtol=1e-5, atol=1e-6)


@needs_rows
def test_labels_changed_before_backward() -> None:
    """As with logits: an error where they are read."""
    y, z = problem("sparse_categorical_crossentropy", 300, 30)
    z.requires_grad_()
    loss = lb.sparse_categorical_crossentropy(y, z, from_logits=True)
    losses = lb.sparse_categorical_crossentropy(y, z, from_logits=True, reduction="none")
    expected = torch.autograd.grad(loss, z, retain_graph=True)[0]
    y.zero_()
    assert torch.equal(torch.autograd.grad(loss, z)[0], expected)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        losses.sum().backward()


def test_targets_are_freed_with_the_gradient() -> None:
    target, z = problem("categorical_crossentropy", 300, 30)
    loss = lb.categorical_crossentropy(target, z.requires_grad_(), from_logits=True)
    loss.backward()
    there = weakref.ref(target)
    del target
    assert there() is None


def test_another_default_device() -> None:
    y, z = problem("sparse_categorical_crossentropy", 300, 30)
    expected = lb.sparse_categorical_crossentropy(y, z, from_logits=True)
    with torch.device("meta"):
        assert lb.sparse_categorical_crossentropy(y, z, from_logits=True) == expected


@pytest.mark.parametrize("loss", LOGITS[1:4])
def test_second_derivatives_of_what_dynamo_runs_without_a_compiler(loss) -> None:
    target, z = problem(loss, 5, 4)

    def curvature(function) -> torch.Tensor:
        leaf = z.clone().requires_grad_()
        slope = torch.autograd.grad(function(leaf), leaf, create_graph=True)[0]
        return torch.autograd.grad((slope**2).sum(), leaf)[0]

    def function(z: torch.Tensor) -> torch.Tensor:
        return getattr(lb, loss)(target, z.sin(), from_logits=True)

    torch.testing.assert_close(curvature(torch.compile(function, backend="eager")), curvature(function))


@pytest.mark.parametrize(("backend", "by_rule"), [("inductor", True), ("eager", False)])
def test_rules_are_for_inductor(backend, by_rule, monkeypatch) -> None:
    taken = []
    rule = on_torch.PATHS["rule"]

    def watched(r):
        taken.append(True)
        return rule.losses(r)

    monkeypatch.setattr(on_torch, "PATHS", {**on_torch.PATHS, "rule": rule._replace(losses=watched)})
    torch._dynamo.reset()
    target, z = problem("kl_divergence", 5, 4)
    compiled = torch.compile(lambda z: lb.kl_divergence(target, z, from_logits=True), backend=backend, fullgraph=True)
    torch.testing.assert_close(compiled(z), lb.kl_divergence(target, z, from_logits=True))
    assert bool(taken) == by_rule
