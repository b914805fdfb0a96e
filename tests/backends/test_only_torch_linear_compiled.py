"""The linear losses under torch.compile: by blocks, with the bits of an eager call, and in one program for any N."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import test_linear_distillation
import torch
from test_linear import ALL, BIAS, C, H, of_rows, problem
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

import lossbridge as lb
import lossbridge.torch as lt
from lossbridge.frameworks import on_torch, torch_blocks

pytestmark = pytest.mark.skipif(not on_torch.compilers(), reason="PyTorch compiles with a C++ compiler")
N = 13
LABELS, HIDDEN, WEIGHT = (torch.from_numpy(x) for x in problem().values())
INPUTS = (HIDDEN, WEIGHT, torch.from_numpy(BIAS))
GIVEN = {name: torch.as_tensor(x) if hasattr(x, "shape") else x for name, x in ALL.items() if name != "bias"}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "sum": {"reduction": "sum"},
    "none": {"reduction": "none"},
    "all, mean": {**GIVEN, "reduction": "mean"},
    "all, mean by weight": {**GIVEN, "reduction": "mean_with_sample_weight"},
    "all, none": {**GIVEN, "reduction": "none"},
    "normalizer": {"normalizer": torch.tensor(7.0)},
    "everything masked": {"mask": torch.zeros(N, dtype=torch.bool)},
    "one block": {"memory": None},
}
VALUE, GRADIENTS = "lossbridge.linear_value", "lossbridge.linear_gradients"
Loss = Callable[..., torch.Tensor]


def leaves(*arrays: torch.Tensor) -> list[torch.Tensor]:
    return [x.clone().requires_grad_() for x in arrays]


def loss_of(**options: Any) -> Loss:
    def loss(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return lb.linear_crossentropy(LABELS, hidden, weight, bias=bias, **{"memory": of_rows(5), **options})

    return loss


def compiled(loss: Any, backend: Any = "aot_eager", **options: Any) -> Any:
    torch.compiler.reset()
    return torch.compile(loss, fullgraph=True, backend=backend, **options)


def operators(loss: Any, *arrays: Any) -> list[str]:
    """Of the program that is compiled for a call, those of ours."""
    found: list[str] = []

    def collect(graph: Any, _: Any) -> Any:
        found.extend(str(node.target) for node in graph.graph.nodes if "lossbridge" in str(node.target))
        return graph.forward

    compiled(loss, collect)(*arrays)
    return found


def value_and_gradients(loss: Loss, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    value = loss(*inputs)
    upstream = torch.linspace(0.5, 2, value.numel(), dtype=value.dtype).reshape(value.shape)
    return [value.detach(), *torch.autograd.grad(value, [x for x in inputs if x.requires_grad], upstream)]


def assert_equal(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for x, y in zip(found, expected, strict=True):
        assert x.dtype == y.dtype
        assert torch.equal(x, y)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_bits_of_an_eager_call(options) -> None:
    loss, inputs = loss_of(**options), leaves(*INPUTS)
    assert operators(loss, *inputs) == [VALUE]
    assert_equal(value_and_gradients(compiled(loss), inputs), value_and_gradients(loss, inputs))


@pytest.mark.parametrize("name", ["plain", "all, none"])
def test_by_inductor(name) -> None:
    loss, inputs = loss_of(**OPTIONS[name]), leaves(*INPUTS)
    assert_equal(value_and_gradients(compiled(loss, "inductor"), inputs), value_and_gradients(loss, inputs))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["plain", "none"])
def test_other_dtypes(name, dtype) -> None:
    loss, inputs = loss_of(**OPTIONS[name]), leaves(*(x.to(dtype) for x in INPUTS))
    found = value_and_gradients(compiled(loss), inputs)
    assert [x.dtype for x in found[1:]] == 3 * [dtype]
    assert_equal(found, value_and_gradients(loss, inputs))


def test_classes_along_axis_1() -> None:
    def loss(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return lb.linear_crossentropy(LABELS, hidden, weight.T, classes_axis=1, memory=of_rows(5))

    inputs = leaves(HIDDEN, WEIGHT)
    assert operators(loss, *inputs) == [VALUE]
    assert_equal(value_and_gradients(compiled(loss), inputs), value_and_gradients(loss, inputs))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_options_that_are_tensors(reduction) -> None:
    """Their values may change without compiling anew."""
    numbers = {"softcap": torch.tensor(3.0), "z_loss": torch.tensor(0.1), "logit_scale": torch.tensor(0.5)}
    loss, inputs = loss_of(**numbers, reduction=reduction), leaves(*INPUTS)
    assert operators(loss, *inputs) == [VALUE]
    program = compiled(loss, counter := CompileCounterWithBackend("aot_eager"))
    for cap in (3.0, 2.0):
        numbers["softcap"].fill_(cap)
        for found, expected in zip(
            value_and_gradients(program, inputs), value_and_gradients(loss, inputs), strict=True
        ):
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert counter.frame_count == 1


def test_what_else_is_returned() -> None:
    names = ("loss", "nll", "lse", "entropy", "z_loss", "correct", "prediction")

    def found(hidden: torch.Tensor, weight: torch.Tensor) -> Any:
        return lb.linear_crossentropy(LABELS, hidden, weight, ignore_class=4, z_loss=0.1, returns=names)

    def loss(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        both = found(hidden, weight)
        return both.loss + (both.entropy * both.lse * both.nll).sum()

    inputs = leaves(HIDDEN, WEIGHT)
    assert operators(found, *inputs) == [VALUE]
    for x, y in zip(compiled(found)(*inputs), found(*inputs), strict=True):
        assert torch.equal(x, y)
    assert_equal(value_and_gradients(compiled(loss), inputs), value_and_gradients(loss, inputs))


@pytest.mark.parametrize("options", test_linear_distillation.KINDS, ids=lambda x: "-".join(map(str, x.values())))
def test_distillation(options) -> None:
    options = {"reduction": "none", **options} if options.get("kind") == "reverse" else options
    arrays = {name: torch.from_numpy(x).float() for name, x in test_linear_distillation.problem().items()}
    names = test_linear_distillation.STUDENT

    def loss(*inputs: torch.Tensor) -> torch.Tensor:
        given = {**arrays, **dict(zip(names, inputs, strict=True))}
        return lb.linear_distillation(**given, **options, memory=test_linear_distillation.BLOCKS)

    inputs = leaves(*(arrays[name] for name in names))
    assert operators(loss, *inputs) == [VALUE]
    assert_equal(value_and_gradients(compiled(loss), inputs), value_and_gradients(loss, inputs))


def test_log_probabilities_and_the_module() -> None:
    module = lt.LinearCrossEntropyLoss(H, C, label_smoothing=0.1)
    for loss, arrays in (
        (functools.partial(lb.linear_token_log_probs, LABELS), (HIDDEN, WEIGHT)),
        (lambda hidden: module(hidden, LABELS.long()), (HIDDEN,)),
        (lambda hidden, weight: lt.causal_lm_loss(labels=LABELS[None], hidden=hidden[None], weight=weight), INPUTS[:2]),
    ):
        inputs = leaves(*arrays)
        assert operators(loss, *inputs) == [VALUE]
        assert_equal(value_and_gradients(compiled(loss), inputs), value_and_gradients(loss, inputs))


# What is computed, and when.


@pytest.mark.parametrize("needed", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1), (0, 0, 0)])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_only_what_is_needed_is_computed(needed, reduction, monkeypatch) -> None:
    seen: list[tuple[bool, ...]] = []
    computed = torch_blocks.computed
    loss = loss_of(reduction=reduction)
    inputs = [x.clone().requires_grad_(bool(need)) for x, need in zip(INPUTS, needed, strict=True)]
    if any(needed):
        expected = value_and_gradients(loss, inputs)
    monkeypatch.setattr(torch_blocks, "computed", lambda *a: seen.append(a[3]) or computed(*a))
    if any(needed):
        assert_equal(value_and_gradients(compiled(loss), inputs), expected)
    else:
        assert torch.equal(compiled(loss)(*inputs), loss_of(reduction=reduction)(*inputs))
        seen.pop()
    nothing = (False, False, False)
    assert seen == ([nothing] if not any(needed) else [nothing, needed] if reduction == "none" else [needed])


@pytest.mark.parametrize("options", [{}, {"reduction": "none"}, {**GIVEN, "sample_weight": None, "mask": None}])
def test_one_program_for_any_number_of_rows(options) -> None:
    """Of 0 and of 1 PyTorch makes another."""

    def loss(labels: torch.Tensor, hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return lb.linear_crossentropy(labels, hidden, weight, memory=of_rows(5), **options)

    program = compiled(loss, counter := CompileCounterWithBackend("aot_eager"))
    for rows, programs in ((5, 1), (9, 1), (300, 1), (1, 2), (0, 3)):
        arrays = problem((rows,))
        labels, inputs = torch.from_numpy(arrays["labels"]), leaves(torch.from_numpy(arrays["hidden"]), WEIGHT)
        for x in (labels, inputs[0]):
            if rows > 1:
                torch._dynamo.mark_dynamic(x, 0)
        found = value_and_gradients(functools.partial(program, labels), inputs)
        assert_equal(found, value_and_gradients(functools.partial(loss, labels), inputs))
        assert counter.frame_count == programs


MEMORY = """
import resource, torch, lossbridge as lb
weight = torch.randn(30_000, 16, requires_grad=True)
def loss(labels, hidden):
    return lb.linear_crossentropy(labels, hidden, weight, reduction="REDUCTION", memory=1 << 22).sum()
loss = torch.compile(loss, fullgraph=True, dynamic=True)
def step(rows):
    loss(torch.zeros(rows, dtype=torch.int64), torch.randn(rows, 16, requires_grad=True)).backward()
step(64)  # what is imported and compiled
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
step(4096)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_there_is_no_array_of_all_logits(reduction) -> None:
    """Which would take 480 MB."""
    program = [sys.executable, "-c", MEMORY.replace("REDUCTION", reduction)]
    found = subprocess.run(program, check=True, capture_output=True, text=True, timeout=300).stdout
    assert int(found) < 64 << 10  # KiB


# What an operator does not do.


def test_what_goes_by_all_logits() -> None:
    """A weight of samples that needs a gradient, an operator for which would lose it."""
    weights = torch.ones(N, requires_grad=True)

    def loss(weights: torch.Tensor) -> torch.Tensor:
        return lb.linear_crossentropy(LABELS, HIDDEN, WEIGHT, sample_weight=weights)

    assert operators(loss, weights) == []
    for found, expected in zip(
        value_and_gradients(compiled(loss), [weights]), value_and_gradients(loss, [weights]), strict=True
    ):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_further_derivatives(reduction) -> None:
    """Right, or an error, and never 0 in silence."""
    inputs = [x.double() for x in INPUTS]

    def loss(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return loss_of(softcap=3.0, reduction=reduction)(hidden.sin(), weight, bias)

    def curvature(loss: Loss) -> list[torch.Tensor]:
        arrays = leaves(*inputs)
        first = torch.autograd.grad(loss(*arrays).square().sum(), arrays, create_graph=True)
        return list(torch.autograd.grad(sum(x.square().sum() for x in first), arrays))

    for x, y in zip(curvature(compiled(loss, "eager")), curvature(loss), strict=True):
        torch.testing.assert_close(x, y)
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        curvature(compiled(loss))

    def of_hidden(hidden: torch.Tensor) -> torch.Tensor:
        return loss(hidden, *inputs[1:]).sum()

    program = compiled(of_hidden, "eager")
    for transform in (torch.func.grad, torch.func.hessian):
        torch.testing.assert_close(transform(program)(inputs[0]), transform(of_hidden)(inputs[0]))
    for transform in (torch.func.grad, torch.func.hessian, torch.func.jacfwd):
        within = compiled(transform(of_hidden), "eager")
        torch.testing.assert_close(within(inputs[0]), transform(of_hidden)(inputs[0]))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(inputs[0], inputs[0])
        found, expected = (torch.autograd.forward_ad.unpack_dual(f(dual)).tangent for f in (program, of_hidden))
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_many_gradients_at_once_and_recomputation(reduction) -> None:
    loss, inputs = loss_of(reduction=reduction), leaves(*INPUTS)
    values = compiled(loss)(*inputs), loss(*inputs)
    upstream = torch.randn(3, *values[1].shape, generator=torch.Generator().manual_seed(0))
    for x, y in zip(
        *(torch.autograd.grad(value, inputs, upstream, is_grads_batched=True) for value in values), strict=True
    ):
        torch.testing.assert_close(x, y)
    recomputed = compiled(functools.partial(checkpoint, loss, use_reentrant=False))
    assert_equal(value_and_gradients(recomputed, inputs), value_and_gradients(loss, inputs))
    with torch.inference_mode():
        assert torch.equal(compiled(loss)(*inputs), loss(*inputs))


def test_operators_by_hand() -> None:
    inputs = leaves(*INPUTS)
    for reduction in ("sum", "none"):
        needs = [0, 0, 0] if reduction == "none" else [1, 1, 1]
        rest = (["softmax of labels", reduction], [0, of_rows(5), 0, *needs], 5 * [torch.nan])
        arguments = (*inputs, LABELS, *[None] * 7, *rest)
        tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
        torch.library.opcheck(torch.ops.lossbridge.linear_value, arguments, test_utils=tests)
        with pytest.raises(NotImplementedError, match="have no forward mode"):
            torch.func.jvp(
                lambda x, arguments=arguments: torch.ops.lossbridge.linear_value(x, *arguments[1:])[0],
                (HIDDEN,),
                (HIDDEN,),
            )
    rest[1][3:] = [1, 0, 1]
    arguments = (torch.ones(N), *inputs, LABELS, *[None] * 7, *rest)
    found = torch.ops.lossbridge.linear_gradients(*arguments)
    assert [x.shape for x in found] == [HIDDEN.shape, (0,), (C,)]
    with pytest.raises(NotImplementedError, match="not differentiated further"):
        found[0].sum().backward()
    torch.library.opcheck(
        torch.ops.lossbridge.linear_gradients, arguments, test_utils=("test_schema", "test_faketensor")
    )


@pytest.mark.parametrize("strict", [True, False])
def test_an_exported_program_needs_no_lossbridge(strict) -> None:
    class Module(torch.nn.Module):
        def forward(self, labels: torch.Tensor, hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            return lb.linear_crossentropy(labels, hidden, weight, reduction="none")

    lb.linear_crossentropy(LABELS, HIDDEN, WEIGHT)
    rows = {0: torch.export.Dim("n")}
    program = torch.export.export(Module(), (LABELS, HIDDEN, WEIGHT), dynamic_shapes=(rows, rows, None), strict=strict)
    assert not [node for node in program.graph.nodes if "lossbridge" in str(node.target)]
    fewer = LABELS[:5], HIDDEN[:5], WEIGHT
    torch.testing.assert_close(program.module()(*fewer), Module()(*fewer))
