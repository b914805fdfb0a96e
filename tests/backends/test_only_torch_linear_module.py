"""lossbridge.torch.LinearCrossEntropyLoss and its function, on the samples with which PyTorch tests its own."""

from __future__ import annotations

import importlib
import inspect
import sys
import types
import unittest
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lossbridge.torch as lt
from lossbridge import linear
from lossbridge.compat import torch as compat

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
# Relative to the largest entry: of the loss, which is float32 for half precision, and of gradients, rounded to it.
TOLERANCES = {
    torch.float64: (1e-12, 1e-12),
    torch.float32: (2e-6, 4e-6),
    torch.bfloat16: (2e-6, 2**-8),
    torch.float16: (2e-6, 2**-11),
}


@pytest.fixture(scope="module")
def samples() -> Any:
    """PyTorch's module of samples. It imports expecttest for the base class of tests that do not run here."""
    missing = "expecttest" not in sys.modules and importlib.util.find_spec("expecttest") is None
    if missing:
        sys.modules["expecttest"] = types.SimpleNamespace(TestCase=unittest.TestCase, ACCEPT=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield importlib.import_module("torch.testing._internal.common_methods_invocations")
    if missing:
        del sys.modules["expecttest"]


def wide(x: Any, dtype: torch.dtype = torch.float64) -> Any:
    """A tensor of floats as a leaf in this dtype; anything else as it is."""
    floats = isinstance(x, Tensor) and x.is_floating_point()
    return x.detach().to(dtype).requires_grad_(x.requires_grad) if floats else x


def assert_near(found: Tensor, exact: Tensor, tolerance: float) -> None:
    assert found.shape == exact.shape
    if exact.numel():
        size = exact.detach().abs().max() + 1e-30
        assert (found.detach().double() - exact.detach()).abs().max() <= tolerance * size


def assert_as_exact(ours: Any, exact: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    """`ours` is as near to `exact`, in float64, as the arguments' dtype allows, and so are its gradients."""
    bare = {name: wide(x) for name, x in options.items() if name != "options"}
    wide_arguments = tuple(map(wide, arguments))
    value, truth = ours(*arguments, **options), exact(*wide_arguments, **bare)
    dtype = arguments[0].dtype
    of_value, of_gradient = TOLERANCES[dtype]
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_near(value, truth, of_value)
    leaves = [
        [x for x in (*given, *more.values()) if isinstance(x, Tensor) and x.requires_grad]
        for given, more in ((arguments, options), (wide_arguments, bare))
    ]
    upstream = torch.randn(truth.shape, generator=torch.Generator().manual_seed(0)).double()
    gradients = torch.autograd.grad(value, leaves[0], upstream.to(value.dtype))
    truths = torch.autograd.grad(truth, leaves[1], upstream.to(value.dtype).double())
    for x, found, gradient in zip(leaves[0], gradients, truths, strict=True):
        assert found.dtype == x.dtype
        assert_near(found, gradient, of_gradient)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("which", ["reference", "chunked", "chunked_none"])
def test_samples_of_pytorch(samples, which, dtype) -> None:
    torch.manual_seed(0)
    kinds = {"reference": {}, "chunked": {"chunked": True}, "chunked_none": {"chunked": True, "chunked_none": True}}
    count = 0
    for sample in samples.sample_inputs_linear_cross_entropy(None, "cpu", dtype, True, **kinds[which]):
        arguments = (sample.input, *sample.args)
        assert_as_exact(compat.linear_cross_entropy, F.linear_cross_entropy, arguments, sample.kwargs)
        count += 1
    assert count > 70


def test_errors_of_pytorch(samples) -> None:
    for error in samples.error_inputs_linear_cross_entropy(None, "cpu"):
        sample = error.sample_input
        with pytest.raises(ValueError, match=r"\(|ignore_index") as raised:
            compat.linear_cross_entropy(sample.input, *sample.args, **sample.kwargs)
        assert len(str(raised.value).splitlines()) == 1


def modules(samples, dtype: torch.dtype) -> Iterator[tuple[Any, Any]]:
    """Arguments of the constructor and of the call."""
    of_modules = importlib.import_module("torch.testing._internal.common_modules")
    for x in of_modules.module_inputs_torch_nn_LinearCrossEntropyLoss(None, "cpu", dtype, True, True):
        yield x.constructor_input, x.forward_input


def test_samples_of_pytorchs_modules(samples) -> None:
    torch.manual_seed(0)
    count = 0
    for made, called in modules(samples, torch.float64):
        ours = lt.LinearCrossEntropyLoss(*made.args, **made.kwargs)
        theirs = nn.LinearCrossEntropyLoss(*made.args, **made.kwargs | {"options": None})
        theirs.load_state_dict(ours.state_dict())
        found, expected = ours(*called.args), theirs(*called.args)
        torch.testing.assert_close(found, expected, equal_nan=False)
        leaves = [(called.args[0], *m.parameters()) for m in (ours, theirs)]
        upstream = torch.ones_like(found)
        for a, b in zip(
            *(torch.autograd.grad(x, of, upstream) for x, of in zip((found, expected), leaves, strict=True)),
            strict=True,
        ):
            torch.testing.assert_close(a, b)
        count += 1
    assert count > 400


def test_constructor_and_state_are_those_of_torch() -> None:
    assert issubclass(lt.LinearCrossEntropyLoss, nn.LinearCrossEntropyLoss)
    ours, theirs = (inspect.signature(cls).parameters for cls in (lt.LinearCrossEntropyLoss, nn.LinearCrossEntropyLoss))
    assert {name: (p.kind, p.default) for name, p in ours.items()} == {
        name: (p.kind, p.default) for name, p in theirs.items()
    }
    made = {"out_features": (2,), "bias": True, "weight": torch.ones(5), "dtype": torch.float64}
    ours, theirs = lt.LinearCrossEntropyLoss(3, 5, **made), nn.LinearCrossEntropyLoss(3, 5, **made)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    ours.load_state_dict(theirs.state_dict())
    assert repr(ours) == repr(theirs)
    with pytest.raises(RuntimeError, match="label_smoothing to be in range"):
        lt.LinearCrossEntropyLoss(3, 5, label_smoothing=2.0)
    with pytest.raises(ValueError, match="Keras' name; here it is 'mean'"):
        lt.LinearCrossEntropyLoss(3, 5, reduction="sum_over_batch_size")


def test_the_mean_divides_by_the_weights_of_the_labels() -> None:
    """Without smoothing, also where the targets are smoothed; labels of any integer dtype, in any unit of weights."""
    torch.manual_seed(0)
    hidden, linear_weight = torch.randn(6, 4).double(), torch.randn(5, 4).double()
    target, weight = torch.tensor([0, 4, -100, 2, 1, 1]), torch.rand(5).double()
    for smoothing in (0.0, 0.1):
        given = {"weight": weight, "label_smoothing": smoothing}
        expected = F.linear_cross_entropy(hidden, linear_weight, target, **given)
        found = compat.linear_cross_entropy(hidden, linear_weight, target, **given)
        torch.testing.assert_close(found, expected)
        for unit in (1e-60, 1e60):
            in_float32 = compat.linear_cross_entropy(
                hidden.float(), linear_weight.float(), target.int(), weight=weight * unit, label_smoothing=smoothing
            )
            torch.testing.assert_close(in_float32.double(), expected, rtol=1e-5, atol=0)
    unsigned = torch.tensor([0, 4, 2, 1], dtype=torch.uint8)
    given = {"weight": weight, "label_smoothing": 0.1}
    torch.testing.assert_close(
        compat.linear_cross_entropy(hidden[:4], linear_weight, unsigned, **given),
        F.linear_cross_entropy(hidden[:4], linear_weight, unsigned.long(), **given),
    )


def test_which_calls_go_without_all_logits(monkeypatch) -> None:
    """Those of classes; batch_chunk_size is the number of rows in a block."""
    calls: list[Any] = []

    def watched(labels: Any, hidden: Any, layer: Any, memory: Any, **options: Any) -> Any:
        calls.append(memory)
        return run(labels, hidden, layer, memory, **options)

    run = linear.run
    monkeypatch.setattr(linear, "run", watched)
    hidden, target = torch.randn(6, 4), torch.zeros(6, dtype=torch.long)
    lt.LinearCrossEntropyLoss(4, 5, label_smoothing=0.1)(hidden, target)
    lt.LinearCrossEntropyLoss(4, 5, options=nn.LinearCrossEntropyOptions())(hidden, target)
    options = nn.LinearCrossEntropyOptions(batch_chunk_size=2, chunking_method=None)
    lt.LinearCrossEntropyLoss(4, 5, options=options)(hidden, target)
    lt.LinearCrossEntropyLoss(4, 5, options=options, dtype=torch.float64)(hidden.double(), target)
    assert calls == [None, None, 2 * 5 * 4, 2 * 5 * 8]
    lt.LinearCrossEntropyLoss(4, 5)(hidden, torch.full((6, 5), 0.2))
    lt.LinearCrossEntropyLoss(4, 5, out_features=(2,))(hidden, torch.zeros(6, 2, dtype=torch.long))
    assert len(calls) == 4
    with pytest.raises(TypeError, match="options is dict; pass a torch"):
        compat.linear_cross_entropy(hidden, torch.ones(5, 4), target, options={})


def test_what_pytorchs_blocks_refuse() -> None:
    """A second backward pass, a second derivative, and the gradient of torch.func."""
    torch.manual_seed(0)
    loss = lt.LinearCrossEntropyLoss(4, 5, options=nn.LinearCrossEntropyOptions()).double()
    plain = nn.LinearCrossEntropyLoss(4, 5).double()
    plain.load_state_dict(loss.state_dict())
    hidden, target = torch.randn(6, 4).double().requires_grad_(), torch.tensor([0, 4, -100, 2, 1, 1])
    value = loss(hidden, target)
    (expected,) = torch.autograd.grad(plain(hidden, target), hidden)
    for _ in range(2):
        (found,) = torch.autograd.grad(value, hidden, retain_graph=True)
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.func.grad(lambda x: loss(x, target))(hidden.detach()), expected)
    torch.autograd.gradgradcheck(lambda x: loss(x, target), hidden)


def test_a_mean_of_no_entries_is_zero() -> None:
    hidden = torch.randn(2, 3, requires_grad=True)
    for options in ({}, {"label_smoothing": 0.1}, {"weight": torch.tensor([0.0, 1.0, 1.0, 1.0])}):
        target = torch.tensor([-100, -100]) if "weight" not in options else torch.tensor([0, -100])
        value = lt.LinearCrossEntropyLoss(3, 4, **options)(hidden, target)
        assert value == 0
        (gradient,) = torch.autograd.grad(value, hidden)
        assert not gradient.any()
    assert lt.LinearCrossEntropyLoss(3, 4)(hidden[:0], target[:0]) == 0
    assert lt.LinearCrossEntropyLoss(3, 1)(hidden, torch.zeros(2, dtype=torch.long)) == 0  # one class is certain


def test_normalizer_is_the_denominator_of_a_mean() -> None:
    torch.manual_seed(0)
    hidden, target = torch.randn(2, 3), torch.tensor([0, 3])
    mean, total = lt.LinearCrossEntropyLoss(3, 4), lt.LinearCrossEntropyLoss(3, 4, reduction="sum")
    mean.load_state_dict(total.state_dict())
    for soft in (target, torch.rand(2, 4)):
        torch.testing.assert_close(mean(hidden, soft, normalizer=10), total(hidden, soft) / 10)
    with pytest.raises(ValueError, match="normalizer is the denominator of a mean"):
        total(hidden, target, normalizer=10)
