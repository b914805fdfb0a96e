"""PyTorch's eager paths, each forced: against the reference and against the formulas."""

from __future__ import annotations

import functools
import gc
import math
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import lossbridge as lb
import lossbridge.torch as lt
from lossbridge.frameworks import on_torch, torch_rows
from lossbridge.native import rows
from lossbridge.spec import LOSSES as RECORDS
from lossbridge.tools.parity import check
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
# Kinds of divergences whose gradients only the derivative rule gives with all digits.
BY_RULE = ("reverse", "jensen_shannon", "total_variation")


def test_every_case_on_every_path(lib, path) -> None:
    runner = Runner(lib.b)
    held = [case for case in SMALL_CASES if path != "formula" or case.options.get("kind") not in BY_RULE]
    faults = {f"{case.loss}, {case.name}": runner.run(case, "eager").fault for case in held}
    assert not {name: fault for name, fault in faults.items() if fault}


@pytest.mark.parametrize("path", ["formula"], indirect=True)
@pytest.mark.parametrize("kind", BY_RULE)
def test_divergences_differentiated_automatically(lib, path, kind) -> None:
    """Where rows are confident the gradient has its digits beside T and the difference of the logits, not its own."""
    for case in SMALL_CASES:
        if case.options.get("kind") != kind or case.dtype != "float32" or case.refused or not case.y_pred.size:
            continue
        arrays, static = check.placed(lib.b, case, "cpu")
        y_true, y_pred = arrays.pop("teacher_logits"), arrays.pop("student_logits")
        _, gradient = lb.value_and_grad(lb.divergence)(y_true, y_pred, **static, **arrays)
        right = torch.tensor(check.expected(case).gradient)
        finite = torch.isfinite(right).all(case.axis, keepdim=True)
        largest = (y_true - y_pred).nan_to_num(0, 0, 0).abs().amax(case.axis, keepdim=True)
        scale = float(case.options.get("temperature", 1.0)) + largest
        assert torch.where(finite, (gradient - right).abs() / scale, 0.0).max().item() <= 1e-6, case.name


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


def test_a_large_buffer_without_native_rows(monkeypatch) -> None:
    """Nothing is asked of the module that is not there."""
    monkeypatch.setattr(rows, "MISSING", "the native rows are not built")
    monkeypatch.delattr(rows, "_rows", raising=False)
    like = torch.empty(torch_rows.HUGE // 4)
    assert torch_rows.fresh(like).shape == like.shape


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
    """An error where a derivative reads them. The gradient of a mean or sum is there already, as PyTorch's is."""
    leaf = torch.zeros(300, 300, dtype=dtype, requires_grad=True)

    def changed(reduction: str) -> torch.Tensor:
        logits = leaf * 1
        target = torch.zeros(300, dtype=torch.int64)
        loss = lb.sparse_categorical_crossentropy(target, logits, from_logits=True, reduction=reduction)
        logits.add_(torch.arange(300))
        return loss.sum()

    exact = torch.full((300, 300), 1 / 300).index_fill_(1, torch.tensor([0]), 1 / 300 - 1) / 300
    torch.testing.assert_close(torch.autograd.grad(changed("mean"), leaf)[0], exact.to(dtype))
    torch.testing.assert_close(torch.autograd.grad(changed("sum"), leaf)[0], (300 * exact).to(dtype))
    for value, further in ((changed("none"), False), (changed("sum"), True), (changed("mean"), True)):
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


@needs_rows
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


@needs_rows
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


# What the native rows write, and when.

ROWS = pytest.mark.parametrize("loss", LOGITS[:4])


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_float16_gradient_is_rounded_after_it_is_multiplied(reduction) -> None:
    """By itself the one of these logits is 0 in float16."""
    z = torch.tensor([[0.0, -18.0]], dtype=torch.float16, requires_grad=True)
    loss = lb.sparse_categorical_crossentropy(torch.tensor([0]), z, from_logits=True, reduction=reduction)
    (loss.sum() * 65536).backward()
    torch.testing.assert_close(z.grad, torch.tensor([[-9.98e-4, 9.98e-4]], dtype=torch.float16))


@ROWS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_mean_times_anything(loss, dtype) -> None:
    target, z = problem(loss, 9, 40, dtype)
    z.requires_grad_()
    mean = getattr(lb, loss)(target, z, from_logits=True)
    exact = torch.autograd.grad(
        getattr(lb, loss)(target.double() if target.ndim == 2 else target, z.double(), from_logits=True), z
    )[0].double()
    for factor in (1.0, 0.5, -3.0, 0.0):
        found = torch.autograd.grad(factor * mean, z, retain_graph=True)[0]
        assert found.dtype == dtype
        torch.testing.assert_close(
            found.double(), factor * exact, rtol=1e-2 if dtype != torch.float32 else 1e-6, atol=1e-6
        )


def test_what_a_backward_hands_out_is_its_own() -> None:
    """Whoever changes a gradient in place changes no later one."""
    y, z = problem("sparse_categorical_crossentropy", 9, 40)
    loss = lb.sparse_categorical_crossentropy(y, z.requires_grad_(), from_logits=True)
    first = torch.autograd.grad(loss, z, retain_graph=True)[0]
    expected = first.clone()
    first.zero_()
    (twice,) = torch.autograd.grad(2 * loss, z, retain_graph=True)
    assert torch.equal(twice, 2 * expected)
    twice.zero_()
    assert torch.equal(torch.autograd.grad(loss, z)[0], expected)


@needs_rows
def test_the_buffer_of_a_mean_is_the_gradient() -> None:
    """Without a copy: hooks on saved tensors see its address."""
    y, z = problem("sparse_categorical_crossentropy", 9, 40)
    saved = {}

    def pack(x):
        saved[x.data_ptr()] = x.shape
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss = lb.sparse_categorical_crossentropy(y, z.requires_grad_(), from_logits=True)
    loss.backward()
    assert {y.data_ptr(), z.data_ptr(), z.grad.data_ptr()} == set(saved)


@ROWS
def test_saved_tensors_may_be_moved(loss) -> None:
    target, z = problem(loss, 9, 40)
    z.requires_grad_()
    for reduction in ("mean", "sum"):
        options = {"from_logits": True, "reduction": reduction}
        (expected,) = torch.autograd.grad(getattr(lb, loss)(target, z, **options), z)
        with torch.autograd.graph.saved_tensors_hooks(lambda x: x.detach().numpy().copy(), torch.from_numpy):
            value = getattr(lb, loss)(target, z, **options)
        assert torch.equal(torch.autograd.grad(value, z)[0], expected)


def test_a_dual_number_that_flows_back() -> None:
    """Forward mode over the backward pass alone."""
    y, z = problem("sparse_categorical_crossentropy", 5, 4)
    for reduction in ("mean", "none"):
        loss = lb.sparse_categorical_crossentropy(y, z.requires_grad_(), from_logits=True, reduction=reduction)
        (expected,) = torch.autograd.grad(loss, z, torch.full_like(loss, 3.0), retain_graph=True)
        with torch.autograd.forward_ad.dual_level():
            upstream = torch.autograd.forward_ad.make_dual(torch.ones_like(loss), torch.full_like(loss, 3.0))
            (found,) = torch.autograd.grad(loss, z, upstream)
            torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(found).tangent, expected)


def test_targets_of_other_dtypes() -> None:
    t, z = problem("binary_crossentropy", 5, 40)
    expected = slopes("binary_crossentropy", t, z)
    for dtype in (torch.bool, torch.int8, torch.int64, torch.float64, torch.bfloat16):
        found = slopes("binary_crossentropy", t.to(dtype), z)
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])


def test_a_view_that_is_negated_when_it_is_read() -> None:
    """The imaginary part of a conjugate: its memory has the other sign."""
    y, z = problem("sparse_categorical_crossentropy", 5, 40)
    negated = torch.complex(z, -z).conj().imag
    assert negated.is_neg()
    got = slopes("sparse_categorical_crossentropy", y, negated)
    for x, expected in zip(got, slopes("sparse_categorical_crossentropy", y, z), strict=True):
        torch.testing.assert_close(x, expected, rtol=0, atol=0)


@needs_rows
def test_large_buffers_get_huge_pages(monkeypatch) -> None:
    advised = []
    monkeypatch.setattr(rows, "advise", lambda address, size: advised.append((address, size)))
    monkeypatch.setattr(torch_rows, "HUGE", 4000)
    for n, expected in ((9, False), (25, True)):
        y, z = problem("sparse_categorical_crossentropy", n, 40)
        lb.sparse_categorical_crossentropy(y, z.requires_grad_(), from_logits=True).backward()
        assert advised == ([(z.grad.data_ptr(), 4000)] if expected else [])


CHECKPOINTED = """
import resource, sys, torch, lossbridge as lb
from torch.utils.checkpoint import checkpoint
hidden, weight = torch.randn(2048, 16, requires_grad=True), torch.randn(16, 30_000, requires_grad=True)
labels = torch.randint(0, 30_000, (2048,))
losses = {
    "ours": lambda y, z: lb.sparse_categorical_crossentropy(y, z, from_logits=True, reduction="REDUCTION"),
    "theirs": lambda y, z: torch.nn.functional.cross_entropy(z, y, reduction="REDUCTION"),
}
loss = losses[sys.argv[1]]
loss(labels[:1], hidden[:1] @ weight).sum().backward()  # what the first call imports
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
parts = zip(labels.split(512), hidden.split(512))
sum(checkpoint(lambda y, h: loss(y, h @ weight).sum(), y, h, use_reentrant=False) for y, h in parts).backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@needs_rows
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_checkpointed_loss_of_chunks_takes_no_more_memory_than_pytorchs(reduction) -> None:
    def peak(name: str) -> int:
        program = [sys.executable, "-c", CHECKPOINTED.replace("REDUCTION", reduction), name]
        return int(subprocess.run(program, check=True, capture_output=True, text=True, timeout=300).stdout)

    assert peak("ours") <= 1.05 * peak("theirs")


# Compiled: the operators.


@pytest.fixture
def _operator(monkeypatch) -> None:
    """Also for few entries."""
    monkeypatch.setattr(on_torch, "OPERATOR", 0)
    torch.compiler.reset()


def operators(function, *arrays) -> list[str]:
    """Of the program that is compiled for a call, those of ours."""
    found = []

    def count(graph, _):
        found.extend(str(node.target) for node in graph.graph.nodes if "lossbridge" in str(node.target))
        return graph.forward

    torch.compile(function, fullgraph=True, backend=count)(*arrays)
    return found


FORMS = [
    (loss.name, kind, target) for loss in RECORDS.values() for kind, rules in loss.rules.items() for target in rules
]


@needs_rows
@pytest.mark.usefixtures("_operator")
@pytest.mark.parametrize(("loss", "kind", "target"), FORMS)
def test_every_form_as_an_operator(loss, kind, target) -> None:
    g = torch.Generator().manual_seed(0)
    z, other = torch.randn(2, 7, 5, generator=g, dtype=torch.float64)
    pred = (z if kind == "logits" else z.softmax(1)).requires_grad_()
    y = {"labels": torch.arange(7) % 5, "logits": other}.get(target, other.softmax(1))
    options = {"from_logits": kind == "logits"} if "from_logits" in RECORDS[loss].options else {}
    weighted = {"class_weight": torch.linspace(0.5, 2, 5)} if "class_weight" in RECORDS[loss].options else {}
    mask = torch.arange(7) != 3 if target != "outcomes" else None

    def function(y, pred):
        function = getattr(lb, loss)
        plain = function(y, pred, **options, mask=mask)
        return plain + function(y, pred, **options, **weighted, reduction="none").square().mean()

    assert operators(function, y, pred) == 2 * ["lossbridge.rows_value"]
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    inputs = [x.requires_grad_() for x in (y, pred) if x.is_floating_point()]
    if target != "labels" and not has_target_gradient(loss, kind, target):
        inputs = [pred]
        y.requires_grad_(False)
    value, expected = compiled(y, pred), function(y, pred)
    torch.testing.assert_close(value, expected)
    for got, want in zip(torch.autograd.grad(value, inputs), torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(got, want)


def has_target_gradient(loss: str, kind: str, target: str) -> bool:
    return RECORDS[loss].rules[kind][target].name in rows.WITH_TARGET_GRADIENT


@needs_rows
def test_the_operator_is_for_large_and_for_dynamic_sizes() -> None:
    function = functools.partial(lb.sparse_categorical_crossentropy, from_logits=True)
    ours = ["lossbridge.rows_value"]
    for sizes, dynamic, expected in (((9, 40), False, []), ((700, 1000), False, ours), ((9, 40), True, ours)):
        y, z = problem("sparse_categorical_crossentropy", *sizes)
        torch.compiler.reset()
        found = []

        def count(graph, _, found=found):
            found.extend(str(node.target) for node in graph.graph.nodes if "lossbridge" in str(node.target))
            return graph.forward

        torch.compile(function, fullgraph=True, backend=count, dynamic=dynamic)(y, z)
        assert found == expected


@needs_rows
@pytest.mark.usefixtures("_operator")
@ROWS
def test_further_derivatives_of_an_operator(loss) -> None:
    """Of two orders, forward mode and torch.func: right, or an error, and never 0 in silence."""
    target, z = problem(loss, 5, 4, torch.float64)

    def function(z):
        return getattr(lb, loss)(target, z.sin(), from_logits=True)

    def curvature(function):
        leaf = z.clone().requires_grad_()
        slope = torch.autograd.grad(function(leaf), leaf, create_graph=True)[0]
        return torch.autograd.grad((slope**2).sum(), leaf)[0]

    assert operators(function, z)
    compiled = torch.compile(function, fullgraph=True, backend="eager")
    torch.testing.assert_close(curvature(compiled), curvature(function))
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        curvature(torch.compile(function, fullgraph=True, backend="aot_eager"))
    for transform in (torch.func.grad, torch.func.hessian):
        torch.testing.assert_close(transform(compiled)(z), transform(function)(z))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(z, z)
        found, expected = (torch.autograd.forward_ad.unpack_dual(f(dual)).tangent for f in (compiled, function))
        torch.testing.assert_close(found, expected)
    for transform in (torch.func.grad, torch.func.hessian, torch.func.jacfwd):
        within = torch.compile(transform(function), backend="eager")
        torch.testing.assert_close(within(z), transform(function)(z))


@needs_rows
@pytest.mark.usefixtures("_operator")
def test_operators_under_vmap_and_by_hand() -> None:
    y, z = problem("sparse_categorical_crossentropy", 12, 4, torch.float64)
    y, z = y.reshape(3, 4), z.reshape(3, 4, 4)
    plan, options = [0, 1, 1, 0], [0.0, *[math.nan] * 4]

    def by_operator(y, z):
        return torch.ops.lossbridge.rows_value(z, y, None, None, plan, options)

    each = zip(y, z, strict=True)
    expected = torch.stack([lb.sparse_categorical_crossentropy(*both, from_logits=True) for both in each])
    torch.testing.assert_close(torch.vmap(by_operator)(y, z), expected)
    with pytest.raises(NotImplementedError, match="have no forward mode"):
        torch.func.jvp(functools.partial(by_operator, y[0]), (z[0],), (z[0],))
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    leaf = z[0].clone().requires_grad_()
    torch.library.opcheck(torch.ops.lossbridge.rows_value, (leaf, y[0], None, None, plan, options), test_utils=tests)
    upstream = torch.ones((), dtype=torch.float64)
    arguments = (upstream, leaf, y[0], None, None, [*plan, 1, 0], options)
    torch.library.opcheck(torch.ops.lossbridge.rows_gradients, arguments, test_utils=tests)


@needs_rows
@pytest.mark.usefixtures("_operator")
@pytest.mark.parametrize("strict", [True, False])
def test_an_exported_program_needs_no_lossbridge(strict) -> None:
    class Loss(torch.nn.Module):
        def forward(self, y, z):
            return lb.sparse_categorical_crossentropy(y, z, from_logits=True)

    y, z = problem("sparse_categorical_crossentropy", 12, 4)
    sizes = {0: torch.export.Dim("n")}
    program = torch.export.export(Loss(), (y, z), dynamic_shapes=(sizes, sizes), strict=strict)
    assert not [node for node in program.graph.nodes if "lossbridge" in str(node.target)]
    torch.testing.assert_close(program.module()(y[:5], z[:5]), Loss()(y[:5], z[:5]))


FIRST_CALL = """
import torch, lossbridge as lb
class Loss(torch.nn.Module):
    def forward(self, y, z):
        both = lb.linear_crossentropy(y, z, z[:5], returns=("nll", "entropy"))
        return lb.sparse_categorical_crossentropy(y, z, from_logits=True) + both.nll + both.entropy
call = torch.zeros(12, dtype=torch.int64), torch.randn(12, 4)
"""
EXPORTED = "torch.export.export(Loss(), call, strict=STRICT)"
COMPILED = """
from torch._dynamo.testing import CompileCounterWithBackend
counter = CompileCounterWithBackend("eager")
loss = torch.compile(Loss(), backend=counter)
loss(*call), loss(*call)
assert counter.frame_count == 1, counter.frame_count
"""


HOW = {"compiled": COMPILED, "exported": EXPORTED.replace("STRICT", "False")}
HOW["exported strictly"] = EXPORTED.replace("STRICT", "True")


@pytest.mark.parametrize("how", HOW.values(), ids=HOW)
def test_the_first_call_of_a_process_is_traced(how) -> None:
    """What it remembers is no part of a program: no warning, and nothing is compiled twice."""
    subprocess.run([sys.executable, "-W", "error", "-c", FIRST_CALL + how], check=True, timeout=300)
