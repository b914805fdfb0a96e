"""The Triton kernels, run by Triton's interpreter on CPU tensors: no GPU is needed, and nothing is said of speed.

Triton reads TRITON_INTERPRET when it is imported, and torch.compile's own kernels must not be interpreted. So one test
runs this file again in a process of its own, where the functions named `interpreted_…` are the tests.
"""

from __future__ import annotations

import functools
import gc
import math
import os
import subprocess
import sys

import mpmath
import numpy as np
import pytest
import torch
from test_only_torch_linear_half import multiply_as_cuda

import lossbridge as lb
from lossbridge.frameworks import on_torch
from lossbridge.spec import LOSSES as RECORDS
from lossbridge.spec import OF_LOGITS, Request
from lossbridge.tools.parity.cases import Case, cases
from lossbridge.tools.parity.check import Runner

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if INTERPRETED:
    import triton
    from triton.runtime import interpreter

    from lossbridge.native import triton_kernels as kernels


@pytest.mark.parametrize("which", ["not exhaustive", pytest.param("exhaustive", marks=pytest.mark.exhaustive)])
def test_kernels_under_the_interpreter(which) -> None:
    options = ("-q", "-m", which, "-p", "no:cacheprovider", "-p", "no:xdist", "-o", "python_functions=interpreted_*")
    # NumPy, which the interpreter computes with, warns of infinities that are selected away.
    command = [sys.executable, "-m", "pytest", *options, "-W", "ignore::RuntimeWarning", "--backend", "torch", __file__]
    run = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]


def test_kernels_compile_for_a_gpu(tmp_path) -> None:
    """To machine code, which needs no GPU and knows types that the interpreter does not check."""
    code = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from lossbridge.native import triton_device as device, triton_kernels as kernels

usual = dict.fromkeys(["hit", "term", "pos_weight"], "fp32") | {"scale": ("fp32",) * 4}
usual |= dict.fromkeys(["loss", "stats", "grad"], "*fp32")
usual |= {"top": "*i32", "logits": "*bf16", "gradient": "*bf16"}

def compiled(kernel, R, **given):
    constants = {"R": R, "C": kernels.TILE // R, **{n: x for n, x in given.items() if not isinstance(x, str)}}
    types = {n: "constexpr" if n in constants else {**usual, **given}.get(n, "i32") for n in kernel.arg_names}
    constants = {(kernel.arg_names.index(n),): x for n, x in constants.items() if n in kernel.arg_names}
    source = ASTSource(kernel, types, constants, {})
    assert triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8}).asm["cubin"]

nothing, everything = {"valid_rows": None, "class_weight": None}, {"valid_rows": "*i1", "class_weight": "*fp32"}
for R in (1, 128):
    for kernel in (device.cross_entropy, device.cross_entropy_gradient):
        compiled(kernel, R, target="*i64", LABELS=True, HARD=True, **nothing)
        compiled(kernel, R, target="*i32", LABELS=True, HARD=False, **everything)
        compiled(kernel, R, target="*fp16", LABELS=False, HARD=False, **everything)
    for kernel in (device.kl, device.kl_gradient, device.bernoulli, device.bernoulli_gradient):
        compiled(kernel, R, target="*bf16", valid_rows=None)
        compiled(kernel, R, target="*fp32", valid_rows="*i1")
"""
    env = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]


def test_nobody_else_imports_triton() -> None:
    code = """
import sys, torch, lossbridge
before = "triton" in sys.modules
z = torch.zeros(2, 3, requires_grad=True)
lossbridge.sparse_categorical_crossentropy(torch.tensor([0, 1]), z, from_logits=True).backward()
assert ("triton" in sys.modules) == before
assert "lossbridge.native.triton_kernels" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# The losses that have kernels.

CLASS_WEIGHT = (0.5, 1, 2, 0, 3)
LOSSES = {
    "labels": functools.partial(lb.sparse_categorical_crossentropy, from_logits=True),
    "smoothed labels": functools.partial(lb.sparse_categorical_crossentropy, from_logits=True, label_smoothing=0.1),
    "distributions": functools.partial(lb.categorical_crossentropy, from_logits=True),
    "smoothed distributions": functools.partial(lb.categorical_crossentropy, from_logits=True, label_smoothing=0.1),
    "divergence": functools.partial(lb.kl_divergence, from_logits=True),
    "distillation": functools.partial(lb.distillation_loss, temperature=3.0),
    "trials": functools.partial(lb.binary_crossentropy, from_logits=True),
    "weighted trials": functools.partial(lb.binary_crossentropy, from_logits=True, pos_weight=2.5, label_smoothing=0.1),
}
WITH_KERNELS = (
    "categorical_crossentropy",
    "sparse_categorical_crossentropy",
    "log_loss",
    "kl_divergence",
    "distillation_loss",
    "binary_crossentropy",
)
losses = pytest.mark.parametrize("name", LOSSES)
# One of each of the three families of kernels; the others in `exhaustive`.
FAMILIES = ("smoothed labels", "divergence", "weighted trials")
mostly_families = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in FAMILIES else [pytest.mark.exhaustive]) for name in LOSSES]
)
BY_CLASS = [name for name in LOSSES if "labels" in name or "distributions" in name]  # that take class weights


def problem(name: str, rows: int, classes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A target, and logits of float32."""
    rng = np.random.default_rng(seed)
    z, u = (torch.tensor(x) for x in rng.normal(size=(2, rows, classes)).astype(np.float32))
    if "labels" in name:
        return torch.tensor(rng.integers(0, classes, rows)), z
    if "trials" in name:
        return torch.sigmoid(u), z
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


class Kernels:
    """Counts the calls that the kernels take."""

    accepted = 0

    def losses(self, r: Request) -> torch.Tensor:
        self.accepted += 1
        return kernels.losses(r)


@pytest.fixture(autouse=INTERPRETED)
def fast(monkeypatch) -> Kernels:
    """Tensors of the CPU go to the kernels, as those of CUDA would."""
    found = Kernels()
    monkeypatch.setattr(on_torch, "_refuses_triton", lambda r: kernels.refuses(r))
    triton_path = on_torch.PATHS["triton"]._replace(losses=found.losses)
    monkeypatch.setattr(on_torch, "PATHS", {**on_torch.PATHS, "triton": triton_path})
    return found


# The path.


@losses
def interpreted_the_kernels_are_the_path(name, fast, monkeypatch) -> None:
    """They run, and `lb.explain` says so; without its family this loss takes another, and that is said too."""
    target, logits = problem(name, 3, 5)
    loss = LOSSES[name]

    explained = functools.partial(lb.explain, loss.func, target, logits, **loss.keywords)
    loss(target, logits)
    assert (explained().path, fast.accepted) == ("triton", 1)
    families = dict(kernels.KERNELS)
    missed = []
    for rule in families:
        monkeypatch.setattr(kernels, "KERNELS", {name: x for name, x in families.items() if name != rule})
        if explained().path != "triton":
            assert explained().why_not["triton"] == f"no Triton kernel for {rule}"
            loss(target, logits)
            missed.append(rule)
    assert (len(missed), fast.accepted) == (1, 1)


# Values and gradients.

CONCERNED = [
    case
    for case in cases()
    if case.loss in WITH_KERNELS
    and case.dtype != "float64"
    and np.ndim(case.options.get("pos_weight", 0)) == 0
    and case.options.get("from_logits", case.loss == "distillation_loss")
    and not set(OF_LOGITS) & set(case.options)  # which the kernels refuse
]


# Boundaries once more in two blocks of columns.
@pytest.mark.parametrize(
    ("case", "columns"),
    [(case, 2048) for case in CONCERNED]
    + [(case, 4) for case in CONCERNED if case.options.get("reduction") == "none" and case.y_pred.size <= 40],
    ids=lambda x: f"{x.loss}-{x.name}" if isinstance(x, Case) else f"{x}",
)
def interpreted_cases_agree_with_the_reference(monkeypatch, fast, case: Case, columns: int) -> None:
    monkeypatch.setattr(kernels, "COLUMNS", columns)
    outcome = Runner(on_torch).run(case, "eager")
    assert not outcome.fault, outcome.fault
    assert fast.accepted or (case.refused and "label" in case.name)  # which is seen before a path is chosen


@losses
@pytest.mark.parametrize("classes", [3, 32, 1000])
@pytest.mark.parametrize("rows", [0, 1, 7])
def interpreted_shapes(monkeypatch, fast, name: str, classes: int, rows: int) -> None:
    monkeypatch.setattr(kernels, "COLUMNS", 512)
    assert_right(fast, LOSSES[name], *problem(name, rows, classes))


def assert_right(fast: Kernels, loss, target, logits, rtol: float = 2e-6, **options) -> None:
    before = fast.accepted
    value, slope = value_and_slope(loss, target, logits, **options)
    assert fast.accepted == before + 1
    assert value.dtype == torch.float32
    assert slope.dtype == logits.dtype
    exact_value, exact_slope = value_and_slope(loss, doubles(target), doubles(logits), **options)
    assert_near(value, exact_value)
    assert_near(slope, exact_slope, rtol)


@losses
def interpreted_beyond_32_bits(monkeypatch, name: str) -> None:
    """The last rows of arrays of 2³¹ elements and a few: 4 GiB each, of which no other page is touched."""
    rows, few = 2**20 + 4, 4
    target, z = problem(name, few, 2048)
    far = torch.empty(rows, 2048, dtype=torch.float16)
    far[-few:] = z
    if target.is_floating_point():
        far_target = torch.empty_like(far)
        far_target[-few:] = target
        target = target.half()
    else:
        far_target = torch.zeros(rows, dtype=target.dtype)
        far_target[-few:] = target
    record = RECORDS[LOSSES[name].func.__name__]
    (rule,) = record.rules["logits"].values()
    options = {**record.options, **LOSSES[name].keywords}
    options = {name: options[name] for name in rule.options if name in options}

    def both(target, logits):
        logits.requires_grad_()
        losses = kernels.losses(Request(record, rule, on_torch, target, logits, 1, "float32", options, "none"))
        (slope,) = torch.autograd.grad(losses, logits, torch.ones(len(logits)))
        return losses.detach(), slope

    loss, slope = both(target, z.half())
    for i in range(few):
        # One program in place of a million: that of the row near the end.
        with monkeypatch.context() as patch:
            patch.setattr(triton, "cdiv", lambda *_: 1)
            number = interpreter.InterpreterBuilder.create_get_program_id

            def shifted(self, axis, row=rows - few + i, number=number):
                handle = number(self, axis)
                return handle if axis else type(handle)(handle.data + np.int32(row), handle.dtype)

            patch.setattr(interpreter.InterpreterBuilder, "create_get_program_id", shifted)
            far_loss, far_slope = both(far_target, far.detach())
        assert far_loss[i - few] == loss[i]
        assert torch.equal(far_slope[i - few], slope[i])


def sparse(labels, logits, valid=None, class_weight=None, label_smoothing=0.0) -> torch.Tensor:
    """The kernel without the checks of the public loss, which refuses bad labels of CPU tensors."""
    plan = kernels._Plan(kernels.KERNELS["softmax of labels"], (label_smoothing,))
    return kernels._Losses.apply(labels, logits, valid, class_weight, plan)[0]


@pytest.mark.parametrize("divergence", [False, True])
def interpreted_one_class_costs_nothing(divergence: bool) -> None:
    z = torch.tensor([[3.0], [-4.0]], requires_grad=True)
    plan = kernels._Plan(kernels.KERNELS["divergence of logits"], (1.0,))
    kl = kernels._Losses.apply(-z.detach(), z, None, None, plan)[0]
    value = kl if divergence else sparse(torch.tensor([0, 0]), z)
    value.sum().backward()
    assert value.tolist() == [0.0, 0.0]
    assert z.grad.tolist() == [[0.0], [0.0]]


@losses
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def interpreted_halves(fast, name: str, dtype: torch.dtype) -> None:
    """Computed in float32, multiplied by what flows back, rounded once. The interpreter cuts bfloat16 off instead."""
    target, z = problem(name, 7, 33)
    target = target.to(dtype) if target.is_floating_point() else target
    value, slope = value_and_slope(LOSSES[name], target, z.to(dtype))
    wide = target.float() if target.is_floating_point() else target
    exact_value, exact_slope = value_and_slope(LOSSES[name], wide, z.to(dtype).float())
    assert torch.equal(value, exact_value)
    if dtype == torch.bfloat16:
        exact_slope = (exact_slope.view(torch.int32) & -(2**16)).view(torch.float32)
    assert torch.equal(slope, exact_slope.to(dtype))
    assert fast.accepted == 2


# Accuracy, beside 50 digits.

REGIMES = {
    "80": lambda rng, shape: rng.uniform(-80, 80, shape),
    "offset": lambda rng, shape: 1e4 + 3 * rng.normal(size=shape),
    "about 208": lambda rng, shape: 208 + 3 * rng.normal(size=shape),
    "lead 8": lambda rng, shape: leading(8, rng.normal(size=shape)),
    "lead 40": lambda rng, shape: leading(40, rng.normal(size=shape)),
    "lead 15 at 60": lambda rng, shape: leading(15, 60 + rng.normal(size=shape)),
    "ascending": lambda rng, shape: np.sort(rng.uniform(-50, 50, shape)),
    "equal": lambda rng, shape: leading(11, np.full(shape, rng.normal())),
}
# The last ones in blocks of columns.
sizes = pytest.mark.parametrize(
    ("classes", "columns"),
    [(2, 2048), (31, 2048), (33, 8), (1000, 256), pytest.param(5000, 2048, marks=pytest.mark.exhaustive)],
)


def leading(lead: float, z: np.ndarray) -> np.ndarray:
    z[:, z.shape[1] // 3] = z.max(1) + lead
    return z


def regimes(rng, classes: int) -> np.ndarray:
    rows = max(1, min(25, 165 // classes))
    return np.concatenate([draw(rng, (rows, classes)) for draw in REGIMES.values()]).astype(np.float32)


def log_softmax(z: np.ndarray) -> np.ndarray:
    """Rows of mpmath's numbers, whose leading class is computed without the others' cancelling."""
    z = z - z.max(1, keepdims=True)
    return z - LOG(EXP(z).sum(1, keepdims=True))


mpmath.mp.dps = 50
LOG, EXP, NUMBER = (np.frompyfunc(f, 1, 1) for f in (mpmath.log, mpmath.exp, mpmath.mpf))


def numbers(x: torch.Tensor | np.ndarray) -> np.ndarray:
    return NUMBER(np.asarray(x, float))


def assert_within(bound: float, got: torch.Tensor, exact: np.ndarray, scale: np.ndarray | None = None) -> None:
    """`bound` in units in the last place of `exact`, or times `scale`. Subnormal numbers do not count."""
    unit = np.spacing(abs(exact).astype(np.float32)) if scale is None else scale
    wrong = abs(numbers(got) - exact) > bound * unit + 2.0**-126
    assert not wrong.any(), (np.argwhere(wrong), got.numpy()[wrong], exact[wrong])


@sizes
def interpreted_softmax_to_the_last_place(monkeypatch, classes: int, columns: int) -> None:
    """Losses to 4 ULP, of labels and of distributions; gradients to 5·2⁻²⁴(|g| + t), that of the label to 4 ULP."""
    monkeypatch.setattr(kernels, "COLUMNS", columns)
    rng = np.random.default_rng(classes)
    z = regimes(rng, classes)
    labels = np.where(np.arange(len(z)) % 2, z.argmax(1), rng.integers(0, classes, len(z)))
    one_hot, rows = np.eye(classes)[labels], np.arange(len(z))
    soft = torch.softmax(torch.tensor(3 * rng.normal(size=z.shape)), 1).float()
    log_p = log_softmax(numbers(z))
    p = EXP(log_p)
    for target, t in ((torch.tensor(labels), numbers(one_hot)), (soft, numbers(soft))):
        value, *saved = kernels.cross_entropy(target, torch.tensor(z), None, None, [0.0])
        gradient = kernels.cross_entropy_gradient(
            torch.ones(len(z)), target, torch.tensor(z), None, None, [0.0], *saved
        )
        assert_within(4, value, -(t * log_p).sum(1))
        exact = p * t.sum(1, keepdims=True) - t
        assert_within(5 * 2.0**-24, gradient, exact, abs(exact) + t)
        if target is not soft:
            others = np.where(one_hot, 0, p).sum(1)
            assert_within(4, gradient[rows, labels], -others)


@sizes
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def interpreted_divergence_to_the_last_place(monkeypatch, classes: int, columns: int, temperature: float) -> None:
    """Values to 6 ULP, of rows as near as one ULP; gradients to 5·2⁻²⁴(|g| + t)."""
    monkeypatch.setattr(kernels, "COLUMNS", columns)
    rng = np.random.default_rng(classes)
    u, v = regimes(rng, classes), regimes(rng, classes)
    for i, distance in enumerate((1, 0.1, 1e-3)):
        v[i::5] = u[i::5] + distance * rng.normal(size=v[i::5].shape)
    v[3::5] = np.nextafter(u, rng.choice([-np.inf, np.inf], u.shape).astype(np.float32))[3::5]
    arrays = torch.tensor(u), torch.tensor(v)
    value, *saved = kernels.kl_of_logits(*arrays, None, None, [temperature])
    gradient = kernels.kl_of_logits_gradient(torch.ones(len(u)), *arrays, None, None, [temperature], *saved)
    log_t, log_p = log_softmax(numbers(u) / temperature), log_softmax(numbers(v) / temperature)
    t = EXP(log_t)
    assert_within(6, value, temperature**2 * (t * (log_t - log_p)).sum(1))
    exact = temperature * (EXP(log_p) - t)
    assert_within(5 * 2.0**-24, gradient, exact, abs(exact) + temperature * t)


@pytest.mark.parametrize("classes", [1, 33])
def interpreted_bernoulli_to_the_last_place(classes: int) -> None:
    """Losses to 4 ULP; gradients to 5·2⁻²⁴(|g| + t/V)."""
    rng = np.random.default_rng(classes)
    x = (rng.normal(size=(99, classes)) * np.geomspace(1e-3, 30, 99)[:, None]).astype(np.float32)
    t = np.where(rng.random(x.shape) < 0.5, x > 0, rng.random(x.shape)).astype(np.float32)
    arrays = torch.tensor(t), torch.tensor(x), None, None, [1.0, 0.0]
    value, *saved = kernels.bernoulli_log_loss(*arrays)
    gradient = kernels.bernoulli_log_loss_gradient(torch.ones(99), *arrays, *saved)
    e, t = EXP(-numbers(x)), numbers(t)
    assert_within(4, value, (LOG(1 + e) + (1 - t) * numbers(x)).mean(1))
    exact = (1 / (1 + e) - t) / classes
    assert_within(5 * 2.0**-24, gradient, exact, abs(exact) + t / classes)


@losses
@pytest.mark.parametrize("layout", ["transposed", "sliced", "expanded", "images"])
def interpreted_layouts(fast, name: str, layout: str) -> None:
    target, z = problem(name, 12, 6)
    options = {}
    if layout == "transposed":
        z = z.T.contiguous().T
    elif layout == "sliced":
        wide = torch.full((24, 14), torch.nan)
        wide[::2, 1:13:2] = z
        z = wide[::2, 1:13:2]
    elif layout == "expanded":
        target, z = target[:1].expand(12, *target.shape[1:]), z[:1].expand(12, 6)
    else:
        options = {"axis": 1}
        z = z.reshape(2, 3, 2, 6).movedim(-1, 1)
        target = target.reshape(2, 3, 2) if target.ndim == 1 else target.reshape(2, 3, 2, 6).movedim(-1, 1)
    assert_right(fast, LOSSES[name], target, z, **options)


def interpreted_targets_of_other_dtypes(fast) -> None:
    target, z = problem("distributions", 4, 6)
    exact = LOSSES["distributions"](target.double(), z.double())
    assert float(LOSSES["distributions"](target.double(), z)) == pytest.approx(float(exact), rel=1e-6)
    hard = torch.nn.functional.one_hot(torch.tensor([0, 1, 2, 5]), 6)
    assert LOSSES["distributions"](hard, z) == LOSSES["labels"](hard.argmax(-1).to(torch.uint8), z)
    assert fast.accepted == 3


def interpreted_what_is_declined(fast) -> None:
    target, z = problem("distributions", 4, 6)
    lb.categorical_crossentropy(target, torch.softmax(z, -1))
    lb.kl_divergence(target, torch.softmax(z, -1))
    lb.categorical_crossentropy(target, z.double(), from_logits=True)
    lb.categorical_crossentropy(target, z.long(), from_logits=True)
    lb.binary_crossentropy(target, torch.sigmoid(z))
    lb.binary_crossentropy(target, z, from_logits=True, pos_weight=torch.full((6,), 2.0))
    assert not fast.accepted


def interpreted_trials_one_by_one(fast) -> None:
    loss = functools.partial(lb.log_loss, from_logits=True)
    target, z = problem("trials", 7, 33)
    assert_right(fast, loss, target, z)
    assert_right(fast, loss, target[0, 0], z[0, 0])
    assert_right(fast, loss, target.half()[:, ::2], z.half()[:, ::2], rtol=2 * torch.finfo(torch.float16).eps)
    kept = torch.arange(7 * 33).reshape(7, 33) % 3 > 0
    value, slope = value_and_slope(loss, target.where(kept, np.nan), z.where(kept, np.inf), mask=kept)
    expected, expected_slope = value_and_slope(loss, target, z)
    assert torch.equal(value, expected.where(kept, 0))
    assert torch.equal(slope, expected_slope.where(kept, 0))


def interpreted_trials_at_infinity() -> None:
    z = torch.tensor([-np.inf, -np.inf, np.inf, np.inf, np.nan, 0.0], requires_grad=True)
    t = torch.tensor([0.0, 0.5, 1.0, 0.5, 0.0, 0.5])
    value = lb.log_loss(t, z, from_logits=True, reduction="none")
    value[:4].sum().backward()
    exact = torch.tensor([0, math.inf, 0, math.inf, math.nan, math.log(2)])
    torch.testing.assert_close(value.detach(), exact, equal_nan=True)
    assert z.grad[:4].tolist() == [0.0, -0.5, 0.0, 0.5]


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def interpreted_labels_out_of_range_are_nan_alone(label_smoothing: float, dtype: torch.dtype) -> None:
    _, z = problem("labels", 6, 5)
    z.requires_grad_()
    good = torch.tensor([0, 1, 2, 3, 4, 0], dtype=dtype)
    bad = good.clone()
    bad[1], bad[3], bad[4] = 5, -1, torch.iinfo(dtype).min
    weight = torch.tensor(CLASS_WEIGHT)
    for class_weight in (None, weight):
        options = {"class_weight": class_weight, "label_smoothing": label_smoothing}
        expected = sparse(good, z, **options)
        value = sparse(bad, z, **options)
        is_bad = torch.tensor([False, True, False, True, True, False])
        assert torch.equal(value.isnan(), is_bad)
        assert torch.equal(value[~is_bad], expected[~is_bad])
        (slope,) = torch.autograd.grad(value.sum(), z)
        (expected_slope,) = torch.autograd.grad(expected.sum(), z)
        assert torch.equal(slope, torch.where(is_bad[:, None], 0, expected_slope))


@losses
def interpreted_dropped_rows_reach_nothing(fast, name: str) -> None:
    target, z = problem(name, 6, 5)
    kept = torch.tensor([True, False, True, True, False, True])
    spoilt = torch.where(kept[:, None], z, torch.tensor([np.nan, np.inf, -np.inf, 0, 1]))
    if target.is_floating_point():
        target = torch.where(kept[:, None], target, np.nan)
    value, slope = value_and_slope(LOSSES[name], target, spoilt, mask=kept)
    alone, alone_slope = value_and_slope(LOSSES[name], target[kept], z[kept])
    assert torch.equal(value[kept], alone)
    assert not value[~kept].any()
    assert not slope[~kept].any()
    scale = torch.arange(1.0, 7)[kept] / torch.arange(1.0, 5)
    torch.testing.assert_close(slope[kept], alone_slope * scale[:, None], rtol=1e-6, atol=0)
    assert fast.accepted == 2


def interpreted_masks_and_class_weights_of_any_stride(fast) -> None:
    target, z = problem("labels", 6, 5)
    spread = torch.stack([torch.tensor(CLASS_WEIGHT), torch.full((5,), torch.nan)], 1)[:, 0]
    loss = functools.partial(LOSSES["labels"], target, z)
    assert torch.equal(loss(class_weight=spread), loss(class_weight=spread.clone()))
    one = torch.tensor(True)
    assert torch.equal(loss(mask=one), loss())
    assert torch.equal(loss(mask=~one), torch.tensor(0.0))
    assert torch.equal(loss(mask=one.expand(6)), loss())
    alternating = torch.arange(12).reshape(6, 2)[:, 0] % 4 == 0
    assert torch.equal(loss(mask=alternating), LOSSES["labels"](target[alternating], z[alternating]))
    assert fast.accepted == 9


# Derivatives.


@losses
def interpreted_second_derivatives(fast, name: str) -> None:
    target, z = problem(name, 3, 5)
    loss, wide = LOSSES[name], z.double()

    def slope(z):
        return torch.func.grad(loss, argnums=1)(target if z.dtype == torch.float32 else doubles(target), z)

    def bend(z):
        return torch.func.grad(lambda z: slope(z).square().sum())(z)

    def bend_of_autograd(z):
        z = z.detach().requires_grad_()
        (first,) = torch.autograd.grad(loss(target, z), z, create_graph=True)
        return torch.autograd.grad(first.square().sum(), z)[0]

    exact = bend(wide)
    for got in (bend(z), bend_of_autograd(z)):
        torch.testing.assert_close(got.double(), exact, rtol=1e-5, atol=1e-7)
    third = torch.func.grad(lambda z: bend(z).square().sum())
    torch.testing.assert_close(third(z).double(), third(wide), rtol=1e-4, atol=1e-7)
    exact = torch.func.hessian(loss, argnums=1)(doubles(target), wide)
    for hessian in (torch.func.hessian, lambda f, argnums: torch.func.jacrev(torch.func.jacrev(f, argnums), argnums)):
        torch.testing.assert_close(hessian(loss, argnums=1)(target, z).double(), exact, rtol=1e-5, atol=1e-7)
    assert fast.accepted


@losses
def interpreted_gradients_of_targets_and_class_weights(name: str) -> None:
    target, z = problem(name, 3, 5)
    loss, others = LOSSES[name], []
    if name in BY_CLASS:
        others = [torch.tensor(CLASS_WEIGHT)]

    def slopes(*arrays):
        arrays = [x.detach().requires_grad_(x.is_floating_point()) for x in arrays]
        options = {"class_weight": arrays[2]} if len(arrays) > 2 else {}
        first = torch.autograd.grad(
            loss(*arrays[:2], **options), [x for x in arrays if x.requires_grad], create_graph=True
        )
        wanted = [x for x in arrays if x.requires_grad]
        second = torch.autograd.grad(sum(x.square().sum() for x in first), wanted)
        return [x.detach().double() for x in (*first, *second)]

    got, exact = slopes(target, z, *others), slopes(*map(doubles, (target, z, *others)))
    torch.testing.assert_close(got, exact, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def interpreted_blocks_of_the_linear_loss(monkeypatch, fast, dtype: torch.dtype, reduction: str) -> None:
    """Slopes in float32 by the kernels, of logits that are the product of matrices in half precision."""
    products = multiply_as_cuda(monkeypatch)
    monkeypatch.setattr(on_torch, "_refuses_rows", lambda r, compiled: "the tensors are as on CUDA")
    g = torch.Generator().manual_seed(0)
    inputs = [torch.randn(n, 8, generator=g).to(dtype).requires_grad_() for n in (12, 300)]
    labels = torch.randint(0, 300, (12,), generator=g)

    def gradients(arrays: list[torch.Tensor]) -> list[torch.Tensor]:
        loss = lb.linear_crossentropy(labels, *arrays, reduction=reduction, ignore_class=3, memory=5 * 1200)
        return [loss.detach(), *torch.autograd.grad(loss.mean() * 10, arrays)]

    found = gradients(inputs)
    assert fast.accepted == (3 if reduction == "mean" else 6)  # the losses of rows first, then their gradients
    assert products
    fast.accepted = 0
    exact = gradients([x.detach().double().requires_grad_() for x in inputs])
    assert not fast.accepted
    torch.testing.assert_close(found[0].double(), exact[0], rtol=1e-6, atol=1e-6)
    for x, right in zip(found[1:], exact[1:], strict=True):
        assert (x - right).norm() < torch.finfo(dtype).eps / 2 * right.norm()


@losses
def interpreted_vmap(fast, name: str) -> None:
    target, z = problem(name, 6, 5)
    loss = functools.partial(LOSSES[name], reduction="none")
    slope = torch.func.grad(LOSSES[name], argnums=1)
    stacked = target.reshape(2, 3, *target.shape[1:]), z.reshape(2, 3, 5)
    assert torch.equal(torch.vmap(loss)(*stacked).flatten(), loss(target, z))
    each = torch.stack([slope(t, x) for t, x in zip(*stacked, strict=True)])
    assert torch.equal(torch.vmap(slope)(*stacked), each)
    across = torch.vmap(loss, in_dims=(None, 2))(target[:3], torch.stack([z[:3], z[3:]], 2))
    assert torch.equal(across, torch.stack([loss(target[:3], x) for x in (z[:3], z[3:])]))
    if name in BY_CLASS:
        weights = torch.tensor([CLASS_WEIGHT, CLASS_WEIGHT[::-1]])
        weighted = torch.vmap(lambda w: loss(target, z, class_weight=w))(weights)
        assert torch.equal(weighted, torch.stack([loss(target, z, class_weight=w) for w in weights]))
    assert fast.accepted


# Torch's machinery.

CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


@pytest.mark.parametrize("name", ["softmax of labels", "divergence of logits", "Bernoulli of logits"])
@pytest.mark.parametrize("valid", [None, torch.tensor([True, False, True])])
def interpreted_opcheck(name: str, valid) -> None:
    labels, z = problem("labels", 3, 5)
    soft = torch.softmax(z.flip(0), -1)
    calls = {
        "softmax of labels": [
            (labels, z, valid, None, [0.0]),
            (labels, z.half(), valid, torch.tensor(CLASS_WEIGHT), [0.1]),
            (soft, z, valid, None, [0.1]),
        ],
        "divergence of logits": [(soft, z, valid, None, [2.0])],
        "Bernoulli of logits": [(soft, z, valid, None, [1.0, 0.0]), (soft, z.half(), valid, None, [2.0, 0.1])],
    }
    family = kernels.KERNELS[name]
    for call in calls[name]:
        torch.library.opcheck(family.losses, call, test_utils=CHECKS)
        _, *statistics = family.losses(*call)
        torch.library.opcheck(family.gradient, (torch.rand(3), *call, *statistics), test_utils=CHECKS)


@mostly_families
def interpreted_compiled(fast, name: str) -> None:
    target, z = problem(name, 3, 5)
    loss = LOSSES[name]
    expected, slope = lb.value_and_grad(loss)(target, z)
    torch.compiler.reset()
    value = torch.compile(loss, fullgraph=True, backend="aot_eager")(target, z.requires_grad_())
    value.backward()
    assert torch.equal(value, expected)
    assert torch.equal(z.grad, slope)
    both = torch.compile(lb.value_and_grad(loss), fullgraph=True, backend="aot_eager", dynamic=True)
    for got, wanted in zip(both(target, z.detach()), (expected, slope), strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize(
    "name",
    [
        "divergence",
        *(pytest.param(name, marks=pytest.mark.exhaustive) for name in ("smoothed labels", "weighted trials")),
    ],
)
def interpreted_compiled_transforms(name: str) -> None:
    target, z = problem(name, 3, 5)
    loss = LOSSES[name]

    def slope(z):
        return torch.func.grad(loss, argnums=1)(target, z)

    functions = [
        lambda z: torch.vmap(lambda z: loss(target, z))(torch.stack([z, 2 * z])),
        lambda z: torch.vmap(slope)(torch.stack([z, 2 * z])),
        lambda z: torch.func.grad(lambda z: slope(z).square().sum())(z),
        lambda z: torch.func.jacrev(slope)(z),
        lambda z: torch.func.hessian(lambda z: loss(target, z))(z),
        lambda z: torch.func.jvp(slope, (z,), (torch.ones_like(z),))[1],
    ]
    for function in functions:
        torch.compiler.reset()
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(z), function(z), rtol=1e-5, atol=1e-6)


def interpreted_exported(fast) -> None:
    class Model(torch.nn.Module):
        def forward(self, target, logits):
            return LOSSES["labels"](target, logits)

    target, z = problem("labels", 3, 5)
    program = torch.export.export(Model(), (target, z))
    assert "lossbridge.cross_entropy" in str(program.graph)
    assert torch.equal(program.module()(target, z), LOSSES["labels"](target, z))


@mostly_families
def interpreted_repeatable_without_growth(name: str) -> None:
    target, z = problem(name, 3, 33)
    first = value_and_slope(LOSSES[name], target, z)

    def living() -> int:
        gc.collect()
        return sum(issubclass(type(x), torch.Tensor) for x in gc.get_objects())

    before = living()
    for _ in range(5):
        again = value_and_slope(LOSSES[name], target, z)
        assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
    del again
    assert living() <= before
