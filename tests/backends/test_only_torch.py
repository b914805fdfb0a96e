"""What PyTorch users do with a loss: autograd of any order, torch.compile, torch.func, torch.vmap."""

from __future__ import annotations

import functools
import gc
import itertools
import math
import shutil
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from problems import EDGES, PROBLEMS

import lossbridge as lb
from lossbridge import information
from lossbridge.frameworks import torch_ops as ops
from lossbridge.native import rows
from lossbridge.spec import LOSSES as RECORDS
from lossbridge.tools.parity.cases import LOSSES
from lossbridge.tools.parity.check import Runner

problems = pytest.mark.parametrize(
    ("loss", "y_true", "y_pred", "options"), [p[1:] for p in PROBLEMS], ids=[p[0] for p in PROBLEMS]
)


def tensors(y_true, y_pred):
    return torch.tensor(y_true, dtype=torch.int64 if y_true.dtype.kind == "i" else torch.float64), torch.tensor(y_pred)


@problems
def test_gradcheck_and_gradgradcheck(loss, y_true, y_pred, options) -> None:
    target, pred = tensors(y_true, y_pred)
    function = functools.partial(getattr(lb, loss), **options, reduction="none")
    if target.is_floating_point():
        inputs = (target.requires_grad_(), pred.requires_grad_())
    else:
        function, inputs = functools.partial(function, target), (pred.requires_grad_(),)
    # Forward mode too: torch.func.jvp and jacfwd need it.
    assert torch.autograd.gradcheck(function, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, inputs)


@problems
def test_vmap_and_func_grad_equal_the_batch(loss, y_true, y_pred, options) -> None:
    target, pred = tensors(y_true, y_pred)
    function = functools.partial(getattr(lb, loss), **options, reduction="sum")
    each = torch.vmap(function)(target, pred)
    torch.testing.assert_close(each.sum(), function(target, pred))
    slopes = torch.vmap(torch.func.grad(function, argnums=1))(target, pred)
    torch.testing.assert_close(slopes, torch.func.grad(function, argnums=1)(target, pred))
    leaf = pred.clone().requires_grad_()
    function(target, leaf).backward()
    torch.testing.assert_close(slopes, leaf.grad)


@pytest.mark.parametrize("loss", ["categorical_crossentropy", "sparse_categorical_crossentropy"])
def test_hessian_at_the_edges(loss) -> None:
    """Of softmax cross-entropy: diag(p) − p pᵀ, whatever the target."""
    y = torch.tensor([0, 1, 2])
    target = torch.nn.functional.one_hot(y).double() if loss == "categorical_crossentropy" else y
    for t, z in zip(target, torch.tensor(EDGES), strict=True):
        hessian = torch.func.hessian(lambda z, t=t: getattr(lb, loss)(t, z, from_logits=True))(z)
        p = torch.softmax(z, 0)
        torch.testing.assert_close(hessian, torch.diag(p) - torch.outer(p, p), rtol=1e-9, atol=1e-15)


def test_compiled_loss_and_its_backward() -> None:
    torch.manual_seed(0)
    weight = torch.randn(7, 5, requires_grad=True)
    x, y = torch.randn(11, 7), torch.randint(0, 5, (11,))

    def step(x, y):
        return lb.sparse_categorical_crossentropy(y, x @ weight, from_logits=True, ignore_class=0)

    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True)
    for n in (11, 8, 5):  # the second size compiles with a symbolic one, the third finds it
        (expected,) = torch.autograd.grad(step(x[:n], y[:n]), weight)
        (got,) = torch.autograd.grad(compiled(x[:n], y[:n]), weight)
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("loss", LOSSES)
def test_compiles_in_a_new_process(loss) -> None:
    """From a cold start: the first call of lossbridge is inside the compiled function."""
    program = f"""
import torch
import lossbridge as lb
y_true = torch.tensor([0, 1]) if "sparse" in "{loss}" else torch.eye(2)
y_pred = torch.full((2, 2), 0.25)
compiled = torch.compile(lambda t, p: lb.{loss}(t, p), fullgraph=True, backend="aot_eager")
value = compiled(y_true, y_pred)
torch.testing.assert_close(value, lb.{loss}(y_true, y_pred))
"""
    subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", program], check=True, timeout=600)


def test_y_pred_decides_the_device() -> None:
    """A meta tensor stands for a device that this machine lacks: shapes go through, values are never read."""
    pred = torch.zeros(4, 3, device="meta")
    loss = lb.categorical_crossentropy(np.eye(4, 3), pred, sample_weight=[1, 2, 3, 4])
    assert loss.device.type == "meta"
    assert lb.sparse_categorical_crossentropy(torch.zeros(4, dtype=torch.int64, device="meta"), pred).shape == ()


def test_arrays_that_cannot_be_written_to() -> None:
    """torch.as_tensor would warn; warnings are errors here."""
    y_true = np.eye(3, dtype=np.float32)
    y_true.flags.writeable = False
    lb.categorical_crossentropy(y_true, torch.full((3, 3), 1 / 3))


def test_value_and_grad_composes() -> None:
    target, pred = torch.eye(3), torch.full((3, 3), 1 / 3)
    both = lambda t, p: lb.categorical_crossentropy(t, p) + 2 * lb.kl_divergence(t, p)  # noqa: E731
    value, gradient = lb.value_and_grad(both)(target, pred)
    leaf = pred.clone().requires_grad_()
    expected = both(target, leaf)
    expected.backward()
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(gradient, leaf.grad)
    assert pred.grad is None


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize(("rows", "classes"), [(3, 5), (64, 2000)])
@pytest.mark.parametrize("loss", ["sparse_categorical_crossentropy", "categorical_crossentropy", "kl_divergence"])
def test_nothing_outlives_the_loss(loss, rows, classes, reduction) -> None:
    """Neither logits nor gradient, without the collector of circles: a step's memory is the next step's."""
    target = torch.zeros(rows, dtype=torch.int64) if loss.startswith("sparse") else torch.zeros(rows, classes)
    gc.disable()
    try:
        for backward in (False, True):
            logits = torch.randn(rows, classes, requires_grad=True)
            value = getattr(lb, loss)(target, logits, from_logits=True, reduction=reduction)
            alive = [weakref.ref(logits)]
            if backward:
                value.sum().backward()
                alive.append(weakref.ref(logits.grad))
            del logits, value
            assert [ref() for ref in alive] == [None] * len(alive)
    finally:
        gc.enable()


def test_second_derivative_where_a_probability_is_0() -> None:
    p = torch.tensor([[0.5, 0.5, 0.0]], dtype=torch.float64)
    q = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    for divergence in (information.relative_entropy, functools.partial(lb.kl_divergence, epsilon=0.0)):
        (first,) = torch.autograd.grad(divergence(p, q).sum(), q, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), q)
        assert first[0, 1] == -math.inf
        assert second[0, 1] == math.inf
        assert second[0, 0].isfinite()


@pytest.mark.parametrize("loss", LOSSES)
def test_dtype_of_a_tangent(loss) -> None:
    pred = torch.tensor([0.2, 0.8])
    target = torch.tensor(1) if loss.startswith("sparse") else torch.tensor([0.4, 0.6])
    for form in [{"from_logits": True}, {}] if "from_logits" in RECORDS[loss].options else [{}]:
        function = functools.partial(getattr(lb, loss), target, **form)
        value, tangent = torch.func.jvp(function, (pred,), (pred,))
        assert value.dtype == tangent.dtype == torch.float32


def test_explained_inside_a_transform() -> None:
    paths = []

    def ask(logits):
        paths.append(lb.explain(lb.kl_divergence, torch.zeros_like(logits), logits, from_logits=True).path)
        return logits

    x = torch.zeros(2, 3, 4)
    torch.vmap(ask)(x)
    torch.func.jvp(ask, (x,), (x,))
    torch.func.grad(lambda x: ask(x).sum())(x)
    assert paths == ["formula"] * 3


# The private interfaces that lossbridge.frameworks.torch_ops marks: the positive answer of each. What a new release of
# PyTorch renames or leaves empty fails here; else it would be a slower path that nobody sees.


def test_private_torch_func() -> None:
    answers = {}

    def ask(x):
        answers.update(active=ops.functorch_is_active(), depth=ops.functorch_depth(), batched=ops.is_batched(x))
        return x

    assert (ops.functorch_is_active(), ops.functorch_depth(), ops.is_batched(torch.ones(2))) == (False, 0, False)
    torch.vmap(torch.vmap(ask))(torch.ones(2, 3))
    assert answers == {"active": True, "depth": 2, "batched": True}


def test_private_batches_of_gradients() -> None:
    answers = []

    class Ask(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, upstream):
            answers.append(ops.is_legacy_batched(upstream))
            return upstream

    x = torch.ones(3, requires_grad=True)
    torch.autograd.grad(Ask.apply(x), x, torch.ones(3))
    torch.autograd.grad(Ask.apply(x), x, torch.eye(3), is_grads_batched=True)
    assert answers == [False, True]


def test_private_dispatch_modes() -> None:
    answers = [ops.dispatch_modes()]

    def ask(x):
        answers.append(ops.dispatch_modes())
        return x + 1

    torch.fx.experimental.proxy_tensor.make_fx(ask)(torch.ones(2))
    assert answers[0] == 0 < answers[1]


def test_private_forward_mode() -> None:
    assert ops.forward_level() == -1
    with torch.autograd.forward_ad.dual_level():
        assert ops.forward_level() == 0


def test_private_saved_tensors() -> None:
    """Each is unpacked alone, and the graph is kept only where it is asked for."""
    answers = []

    class Ask(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, y):
            ctx.save_for_backward(x, y, None)
            return x * y

        @staticmethod
        def backward(ctx, upstream):
            first, second, none = ops.raw_saved_tensors(ctx)
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                first.unpack()
            answers.append((second.unpack().item(), none.unpack(), ops.graph_is_kept()))
            return upstream, None

    leaf, y = torch.ones((), requires_grad=True), torch.full((), 3.0)
    x = leaf * 1
    value = Ask.apply(x, y)
    x.add_(1)
    value.backward(retain_graph=True)
    value.backward()
    assert answers == [(3.0, None, True), (3.0, None, False)]


def test_private_base() -> None:
    x = torch.ones(2, 3)
    assert ops.base_of(x) is None
    assert ops.base_of(x[0]) is x


@pytest.mark.parametrize(
    ("compiler", "transform", "once", "nested", "transformed"),
    [
        ("inductor", lambda f: f, True, False, False),
        ("inductor", torch.vmap, True, False, True),
        ("inductor", lambda f: torch.vmap(torch.vmap(f)), False, True, True),
        ("aot_eager", lambda f: f, False, False, False),
    ],
    ids=["alone", "vmap", "nested", "another compiler"],
)
def test_private_answers_while_compiling(compiler, transform, once, nested, transformed) -> None:
    def ask(x):
        answers = ops.differentiated_once(), ops.is_nested(), ops.is_transformed()
        return x + sum(2.0**bit for bit, answer in enumerate(answers) if answer)

    torch.compiler.reset()
    compiled = torch.compile(transform(ask), fullgraph=True, backend=compiler)
    assert compiled(torch.zeros(2, 3)).unique().item() == once + 2 * nested + 4 * transformed


def test_private_recording_in_an_operator() -> None:
    @torch.library.custom_op("lossbridge_test::ask", mutates_args=())
    def ask(x: torch.Tensor) -> torch.Tensor:
        leaf = x.detach().requires_grad_()
        with torch.enable_grad():
            assert not (leaf * leaf).requires_grad
            with ops.recording():
                return torch.autograd.grad((leaf * leaf).sum(), leaf)[0]

    ask.register_autograd(lambda ctx, upstream: upstream)
    assert ask(torch.tensor([3.0], requires_grad=True)).item() == 6


def test_private_knowledge_of_sizes() -> None:
    """A size is known until a second one comes; then a question about it compiles nothing anew."""
    programs = []

    def ask(x):
        return x + (1.0 if ops.is_known(x.numel() < 100) else 2.0)

    def count(graph, _):
        programs.append(graph)
        return graph.forward

    torch.compiler.reset()
    compiled = torch.compile(ask, fullgraph=True, backend=count)
    assert [compiled(torch.zeros(size))[0].item() for size in (5, 6, 7, 200, 8)] == [1, 2, 2, 2, 2]
    assert len(programs) == 2


# The way of one call.


@pytest.mark.skipif(bool(rows.MISSING), reason=rows.MISSING)
def test_the_way_of_a_call_is_short_and_straight() -> None:
    """categorical_crossentropy enters six files at most, none of them twice; then its result is looked at."""
    root = str(Path(lb.__file__).parent)
    target = torch.softmax(torch.zeros(4096, 1000), 1)
    pred = torch.zeros(4096, 1000, requires_grad=True)
    entered = []

    def note(frame, event, _):
        if event == "call" and frame.f_code.co_filename.startswith(root):
            entered.append(frame.f_code.co_filename.removeprefix(root))

    def call():
        lb.categorical_crossentropy(target, pred, from_logits=True).backward()

    call()  # what the first call imports
    threading.setprofile(note)
    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    visits = [file for file, _ in itertools.groupby(entered)]
    look = visits.index("/errors.py")
    assert visits[look - 2 : look] == ["/request.py", "/frameworks/torch_ops.py"]
    way, backward = visits[: look - 2], visits[look + 1 :]
    assert len(way) == len(set(way)) <= 6
    assert len(backward) == len(set(backward)) <= 3
    assert len(entered) <= 60


@pytest.mark.skipif(bool(rows.MISSING), reason=rows.MISSING)
def test_subnormal_gradients_where_pytorch_flushes_them() -> None:
    logits = torch.tensor([[0.0, -90.0]], requires_grad=True)  # e^−90 is subnormal
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor does not flush")
    try:
        loss = lb.sparse_categorical_crossentropy(torch.tensor([0]), logits, from_logits=True)
        (gradient,) = torch.autograd.grad(loss, logits)
    finally:
        torch.set_flush_denormal(False)
    assert gradient.tolist() == [[-loss.item(), loss.item()]]
    assert 0 < loss.item() < 1e-38


def test_without_a_cpp_compiler_everything_runs_eagerly(lib, monkeypatch, tmp_path) -> None:
    assert Runner(lib.b).modes() == ["eager", *(["compile"] if shutil.which("g++") else [])]
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert Runner(lib.b).modes() == ["eager"]
    monkeypatch.setenv("CXX", sys.executable)  # a program that is there
    assert Runner(lib.b).modes() == ["eager", "compile"]


@pytest.mark.parametrize(
    ("loss", "option"),
    [
        ("distillation_loss", "temperature"),
        ("binary_focal_crossentropy", "gamma"),
        ("categorical_crossentropy", "label_smoothing"),
    ],
)
def test_an_annealed_option_compiles_once(loss, option) -> None:
    """As a tensor; the derivative for it is right too."""
    torch.compiler.reset()
    rng = np.random.default_rng(0)
    target, pred = (torch.tensor(rng.dirichlet(np.ones(5), 3), dtype=torch.float32) for _ in range(2))
    function = functools.partial(getattr(lb, loss), target)
    function(pred, **{option: torch.tensor(0.9)})  # the first call of a process notes what types it met

    def step(pred, x):
        return torch.autograd.grad(function(pred, **{option: x}), (pred, x))

    compiled = torch.compile(lambda pred, x: function(pred, **{option: x}), fullgraph=True)
    pred.requires_grad_()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for at in (0.9, 0.5, 0.25):
            x = torch.tensor(at, requires_grad=True)
            found = torch.autograd.grad(compiled(pred, x), (pred, x))
            for got, wanted in zip(found, step(pred, x), strict=True):
                torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-7)
            plain = torch.autograd.grad(function(pred, **{option: at}), pred)[0]
            torch.testing.assert_close(found[0], plain, rtol=1e-5, atol=1e-7)
