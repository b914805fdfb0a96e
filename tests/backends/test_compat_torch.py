"""lossbridge.compat.torch on every backend, against PyTorch's own functions. (Against exact values: on torch alone.)"""

from __future__ import annotations

import functools

import numpy as np
import peers
import pytest
import torch

from lossbridge.compat import torch as compat

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(6, 4, 2)) * 3
LABELS = np.array([[0, 3], [1, -100], [2, 2], [-100, 0], [3, 1], [1, 1]])
P = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
Q = P[::-1].copy()
WEIGHT = np.array([0.5, 1.0, 2.0, 4.0])

# (function, input, target, options)
CALLS = [
    *[
        ("cross_entropy", LOGITS, target, {"weight": weight, "label_smoothing": smoothing})
        for target in (LABELS, Q)
        for weight in (None, WEIGHT)
        for smoothing in (0.0, 0.1)
    ],
    ("cross_entropy", LOGITS[0, :, 0], np.array(2), {}),
    ("nll_loss", np.log(P), LABELS, {}),
    ("nll_loss", np.log(P), LABELS % 4, {"weight": WEIGHT, "ignore_index": 1}),
    ("kl_div", np.log(P), Q, {}),
    ("kl_div", np.log(P), np.log(Q), {"log_target": True}),
    ("kl_div", np.log(P), Q, {"reduction": "batchmean"}),
    ("binary_cross_entropy", P, Q, {}),
    ("binary_cross_entropy", P, Q.round(), {"weight": RNG.random((4, 1))}),
    ("binary_cross_entropy", np.array([0.0, 1.0, 0.0]), np.array([1.0, 0.0, 0.5]), {}),
    ("binary_cross_entropy_with_logits", LOGITS, Q, {}),
    (
        "binary_cross_entropy_with_logits",
        LOGITS,
        Q,
        {"weight": RNG.random((6, 1, 2)), "pos_weight": RNG.random((4, 1))},
    ),
]
calls = pytest.mark.parametrize(
    ("name", "x", "target", "options"), CALLS, ids=[f"{c[0]}-{i}" for i, c in enumerate(CALLS)]
)
pytestmark = pytest.mark.filterwarnings("ignore:reduction. 'mean' divides the total loss")  # PyTorch, of its kl_div


def of_torch(name, x, target, options):
    tensors = {key: torch.tensor(v) if isinstance(v, np.ndarray) else v for key, v in options.items()}
    target = torch.tensor(target, dtype=torch.float64 if target.dtype.kind == "f" else torch.int64)
    leaf = torch.tensor(x, requires_grad=True)
    value = getattr(torch.nn.functional, name)(leaf, target, **tensors)
    value.sum().backward()
    return value.detach().numpy(), leaf.grad.numpy()


@calls
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_value_and_gradient_are_pytorchs(lib, name, x, target, options, reduction) -> None:
    options = {"reduction": reduction} | options
    function = functools.partial(getattr(compat, name), **options)
    with lib.b.scope("float64", "cpu"):
        arrays = lib.array(x, "float64"), lib.array(target, "float64" if target.dtype.kind == "f" else "int64")
        value, gradient = lib.b.value_and_grad(lambda x: function(x, arrays[1]), arrays[0])
        expected, slope = of_torch(name, x, target, options)
        np.testing.assert_allclose(lib.b.to_numpy(value), expected, rtol=1e-12)
        np.testing.assert_allclose(lib.b.to_numpy(gradient), slope, rtol=1e-8, atol=1e-14)  # its 1e-12 is a float32


@pytest.mark.parametrize(("name", "x", "target", "options"), peers.to_compile(CALLS))
def test_compiled(lib, name, x, target, options) -> None:
    function = functools.partial(getattr(compat, name), **options)
    expected, _ = of_torch(name, x, target, options)
    with lib.b.scope("float64", "cpu"):
        arrays = lib.array(x, "float64"), lib.array(target, "float64" if target.dtype.kind == "f" else "int64")
        for compile in lib.b.compilers().values():
            np.testing.assert_allclose(lib.b.to_numpy(compile(function)(*arrays)), expected, rtol=1e-12)


@calls
def test_float32(lib, name, x, target, options) -> None:
    target = lib.array(target, "float32" if target.dtype.kind == "f" else "int32")
    value = getattr(compat, name)(lib.array(x, "float32"), target, **options)
    assert lib.b.dtype(value) == "float32"
    np.testing.assert_allclose(lib.b.to_numpy(value), of_torch(name, x, lib.b.to_numpy(target), options)[0], rtol=2e-6)


def test_the_gradient_of_pytorchs_convention(lib) -> None:
    """Of the very logarithm: nothing is renormalised, where Keras' gradient is [−.4286, 1, 1]."""
    p = lib.array([[0.7, 0.2, 0.1]])
    _, gradient = lib.b.value_and_grad(lambda p: compat.nll_loss(lib.b.log(p), lib.array([0])), p)
    np.testing.assert_allclose(lib.b.to_numpy(gradient), [[-1 / 0.7, 0, 0]], rtol=1e-6)


def test_errors(lib) -> None:
    x, labels = lib.array(LOGITS), lib.array(LABELS)
    with pytest.raises(TypeError, match="input has dtype int32, and logits and probabilities are floating-point"):
        compat.cross_entropy(labels, labels)
    with pytest.raises(
        ValueError, match="target has shape \\(6,\\) and input \\(6, 4, 2\\) with its classes along axis 1"
    ):
        compat.cross_entropy(x, labels[:, 0])
    with pytest.raises(TypeError, match=r"target has dtype float32, and class labels are integers.*kl_div"):
        compat.nll_loss(x, lib.array(LABELS.astype(np.float32)))
    with pytest.raises(
        ValueError, match="weight has shape \\(6,\\), which does not broadcast to input's, \\(6, 4, 2\\)"
    ):
        compat.binary_cross_entropy_with_logits(x, lib.array(Q), lib.array(np.ones(6)))
    with pytest.raises(ValueError, match="'sum_over_batch_size' is Keras' name; here it is 'mean'"):
        compat.kl_div(x, lib.array(Q), reduction="sum_over_batch_size")
    with pytest.raises(ValueError, match=r"input holds .* at index \(0, 3, 0\)"):
        compat.binary_cross_entropy(lib.array(np.abs(LOGITS) / 2), lib.array(Q))
