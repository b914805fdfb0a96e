"""compat.torch.linear_cross_entropy on every backend, against PyTorch's own. (On its samples: on torch alone.)"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import peers
import pytest
import torch

from lossbridge.compat.torch import linear_cross_entropy

RNG = np.random.default_rng(0)
HIDDEN, LAYER, BIAS = RNG.normal(size=(6, 3)), RNG.normal(size=(5, 3)), RNG.normal(size=5)
DEEP, DEEP_BIAS = RNG.normal(size=(5, 2, 3)), RNG.normal(size=(5, 2))  # logits of shape (6, 5, 2)
LABELS = np.array([0, 4, -100, 2, 1, 1])
DEEP_LABELS = np.stack([LABELS, LABELS[::-1]], 1)
SOFT = RNG.dirichlet(np.ones(5), 6)
WEIGHT = np.array([0.5, 1.0, 2.0, 4.0, 0.25])

# (hidden, linear_weight, target, options)
CALLS = [
    *[
        (HIDDEN, LAYER, target, {"weight": weight, "label_smoothing": smoothing, "linear_bias": bias})
        for target in (LABELS, SOFT)
        for weight in (None, WEIGHT)
        for smoothing in (0.0, 0.1)
        for bias in (None, BIAS)
    ],
    (HIDDEN, LAYER, np.abs(LABELS) % 5, {"ignore_index": 1, "weight": WEIGHT}),
    (HIDDEN[0], LAYER, np.array(2), {"linear_bias": BIAS}),
    (HIDDEN[0], LAYER, SOFT[0], {}),
    (HIDDEN, DEEP, DEEP_LABELS, {"linear_bias": DEEP_BIAS, "weight": WEIGHT}),
    (HIDDEN, DEEP, RNG.dirichlet(np.ones(5), (6, 2)).swapaxes(1, 2), {"linear_bias": DEEP_BIAS}),
]
calls = pytest.mark.parametrize(("hidden", "layer", "target", "options"), CALLS)


def of_torch(hidden: Any, layer: Any, target: Any, options: dict[str, Any]) -> tuple[np.ndarray, list[np.ndarray]]:
    """In float64: the value, and the gradients for hidden, layer and bias."""
    tensors = {key: torch.tensor(x) if isinstance(x, np.ndarray) else x for key, x in options.items()}
    leaves = [torch.tensor(x, requires_grad=True) for x in (hidden, layer)]
    if tensors.get("linear_bias") is not None:
        leaves.append(tensors["linear_bias"].requires_grad_())
    value = torch.nn.functional.linear_cross_entropy(*leaves[:2], torch.tensor(target), **tensors)
    value.sum().backward()
    return value.detach().numpy(), [x.grad.numpy() for x in leaves]


def gradients(lib: Any, target: Any, leaves: list[Any], options: dict[str, Any]) -> tuple[Any, list[np.ndarray]]:
    """The value, and the gradients for hidden, layer and, where there is one, bias."""

    def loss(arrays: Any) -> Any:
        given = {"linear_bias": arrays[2]} if len(arrays) > 2 else {}
        return linear_cross_entropy(arrays[0], arrays[1], target, **options | given)

    value, found = lib.b.value_and_grad(loss, tuple(leaves))
    return value, [lib.b.to_numpy(x) for x in found]


def leaves_of(lib: Any, hidden: Any, layer: Any, options: dict[str, Any], dtype: str) -> list[Any]:
    arrays = (hidden, layer, options.get("linear_bias"))
    return [lib.array(x, dtype) for x in arrays if x is not None]


@calls
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_value_and_gradients_are_pytorchs(lib, hidden, layer, target, options, reduction) -> None:
    options = options | {"reduction": reduction}
    with lib.b.scope("float64", "cpu"):
        labels = lib.array(target, "float64" if target.dtype.kind == "f" else "int64")
        placed = {key: lib.array(x, "float64") if isinstance(x, np.ndarray) else x for key, x in options.items()}
        value, found = gradients(lib, labels, leaves_of(lib, hidden, layer, options, "float64"), placed)
        expected, slopes = of_torch(hidden, layer, target, options)
        np.testing.assert_allclose(lib.b.to_numpy(value), expected, rtol=1e-12)
        for slope, exact in zip(found, slopes, strict=True):
            np.testing.assert_allclose(slope, exact, rtol=1e-10, atol=1e-14)


@calls
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_narrow_dtypes(lib, hidden, layer, target, options, dtype) -> None:
    """The result is float32, and as exact as that allows on inputs that are rounded."""
    labels = lib.array(target, "float32" if target.dtype.kind == "f" else "int32")
    placed = {key: lib.array(x, dtype) if isinstance(x, np.ndarray) else x for key, x in options.items()}
    leaves = leaves_of(lib, hidden, layer, options, dtype)
    value, found = gradients(lib, labels, leaves, placed)
    assert lib.b.dtype(value) == "float32"
    rounded = {key: lib.b.to_numpy(x).astype(float) if hasattr(x, "dtype") else x for key, x in placed.items()}
    wide = [lib.b.to_numpy(x).astype(float) for x in leaves[:2]]
    of_target = lib.b.to_numpy(labels).astype(float) if target.dtype.kind == "f" else target
    expected, slopes = of_torch(*wide, of_target, rounded)
    np.testing.assert_allclose(lib.b.to_numpy(value), expected, rtol=2e-6)
    unit = {"float32": 4e-6, "bfloat16": 2**-8, "float16": 2**-11}[dtype]
    for slope, exact, leaf in zip(found, slopes, leaves, strict=True):
        assert slope.shape == tuple(lib.b.shape(leaf))
        np.testing.assert_allclose(slope, exact, rtol=0, atol=unit * np.abs(exact).max())


# A compiler takes seconds for a call: `tests` has one each of classes, probabilities and several dimensions.
@pytest.mark.parametrize(
    ("hidden", "layer", "target", "options"),
    [pytest.param(*call, marks=[] if i in (7, 15, 19) else [pytest.mark.exhaustive]) for i, call in enumerate(CALLS)],
)
def test_compiled(lib, hidden, layer, target, options) -> None:
    expected, _ = of_torch(hidden, layer, target, options)
    function = functools.partial(linear_cross_entropy, **options)
    with lib.b.scope("float64", "cpu"):
        labels = lib.array(target, "float64" if target.dtype.kind == "f" else "int64")
        arrays = lib.array(hidden, "float64"), lib.array(layer, "float64")
        compilers = lib.b.compilers() if hidden.ndim == 1 else {**lib.b.compilers(), **of_any_batch(lib, layer)}
        for compiler in compilers.values():
            np.testing.assert_allclose(lib.b.to_numpy(compiler(function)(*arrays, labels)), expected, rtol=1e-12)


def of_any_batch(lib: Any, layer: np.ndarray) -> dict[str, Any]:
    """TensorFlow's graphs of unknown batch size; the layer's sizes are known."""
    if lib.b.name != "tensorflow":
        return {}
    found = peers.compilers(lib)["unknown batch size"]
    weight = lib.array(layer, "float64")
    return {"unknown": lambda function: lambda x, _, y: found(lambda x, y: function(x, weight, y))(x, y)}


def test_errors(lib) -> None:
    hidden, layer, labels = lib.array(HIDDEN), lib.array(LAYER), lib.array(LABELS)
    with pytest.raises(TypeError, match="input has dtype int32"):
        linear_cross_entropy(labels, layer, labels)
    with pytest.raises(TypeError, match=r"linear_weight has dtype int32.* swap linear_weight and target"):
        linear_cross_entropy(hidden, labels, layer)
    with pytest.raises(ValueError, match=r"target has shape \(2,\) and the logits \(6, 5\).*must have shape \(6,\)"):
        linear_cross_entropy(hidden, layer, labels[:2])
    with pytest.raises(TypeError, match="target has dtype float32 and no axis of classes"):
        linear_cross_entropy(hidden, layer, lib.array(LABELS.astype(np.float32)))
    with pytest.raises(TypeError, match="target has the shape of the logits and dtype int32"):
        linear_cross_entropy(hidden, layer, lib.array(np.zeros((6, 5), np.int32)))
    with pytest.raises(ValueError, match=r"weight has shape \(3,\); give it one number a class, \(5,\)"):
        linear_cross_entropy(hidden, layer, labels, weight=lib.array(np.ones(3)))
    with pytest.raises(ValueError, match="ignore_index=-100 is for integer targets, and target holds probabilities"):
        linear_cross_entropy(hidden, layer, lib.array(SOFT), ignore_index=-100)
    with pytest.raises(ValueError, match="'sum_over_batch_size' is Keras' name; here it is 'mean'"):
        linear_cross_entropy(hidden, layer, labels, reduction="sum_over_batch_size")
    with pytest.raises(ValueError, match=r"label 9 at index 2 is out of range.*, or leave it out with ignore_index=$"):
        linear_cross_entropy(hidden, layer, lib.array(np.array([0, 1, 9, 2, 3, 4])))
    with lib.b.scope("float64", "cpu"), pytest.raises(TypeError, match="linear_weight is float64 and input float32"):
        linear_cross_entropy(hidden, lib.array(LAYER, "float64"), labels)


def test_lists_take_the_dtype_of_the_input(lib) -> None:
    found = linear_cross_entropy(
        lib.array(HIDDEN), LAYER.tolist(), LABELS.tolist(), linear_bias=BIAS.tolist(), weight=WEIGHT.tolist()
    )
    expected, _ = of_torch(HIDDEN, LAYER, LABELS, {"linear_bias": BIAS, "weight": WEIGHT})
    np.testing.assert_allclose(lib.b.to_numpy(found), expected, rtol=1e-6)
