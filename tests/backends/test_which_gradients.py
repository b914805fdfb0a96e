"""What holds of every gradient: the value does not depend on which are asked for, and that of logits sums to 0.

With them arrays that are empty, or whose classes lie along an inner axis.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import mpmath
import numpy as np
import pytest

import lossbridge as lb
from lossbridge.frameworks import numpy_ops
from lossbridge.native import rows
from lossbridge.spec import LOSSES
from lossbridge.tools.parity.cases import cases

CASES = {
    f"{case.loss}, {case.name}, {case.dtype}": case
    for case in cases()
    if case.name.startswith(("float", "smoothing", "temperature", "mean by weight", "images", "gamma 0.5"))
}
assert {case.loss for case in CASES.values()} == set(LOSSES)


# The value and the gradients for some of a call's arrays, on each framework.

Call = Callable[..., Any]


def on_numpy(call: Call, arrays: Mapping[str, Any], asked: tuple[str, ...]) -> tuple[Any, dict[str, Any]]:
    leaves = {name: numpy_ops.Variable(np.asarray(arrays[name])) for name in asked}
    found = call(**{**arrays, **leaves})
    ones = np.ones_like(numpy_ops.value_of(found))
    return numpy_ops.value_of(found), {name: numpy_ops.pulled_back(found, x, ones) for name, x in leaves.items()}


def on_torch(call: Call, arrays: Mapping[str, Any], asked: tuple[str, ...]) -> tuple[Any, dict[str, Any]]:
    import torch

    leaves = {name: arrays[name].detach().requires_grad_() for name in asked}
    found = call(**{**arrays, **leaves})
    if not asked:
        return found, {}
    return found.detach(), dict(zip(asked, torch.autograd.grad(found.sum(), list(leaves.values())), strict=True))


def on_tensorflow(call: Call, arrays: Mapping[str, Any], asked: tuple[str, ...]) -> tuple[Any, dict[str, Any]]:
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch([arrays[name] for name in asked])
        found = call(**arrays)
    return found, dict(zip(asked, tape.gradient(found, [arrays[name] for name in asked]), strict=True))


def on_jax(call: Call, arrays: Mapping[str, Any], asked: tuple[str, ...]) -> tuple[Any, dict[str, Any]]:
    import jax

    if not asked:
        return call(**arrays), {}

    def summed(leaves: Mapping[str, Any]) -> tuple[Any, Any]:
        found = call(**{**arrays, **leaves})
        return found.sum(), found

    (_, found), gradients = jax.value_and_grad(summed, has_aux=True)({name: arrays[name] for name in asked})
    return found, gradients


ON = {"numpy": on_numpy, "torch": on_torch, "tensorflow": on_tensorflow, "jax": on_jax}


@pytest.mark.parametrize("name", CASES)
def test_the_value_does_not_depend_on_which_gradients_are_asked_for(lib, name) -> None:
    """Nor does a gradient. Bit for bit where the native rows compute them all; else within rounding."""
    case = CASES[name]
    rule = LOSSES[case.loss].rules[LOSSES[case.loss].form(case.options)]
    dense = case.y_true.dtype.kind == "f"
    with lib.b.scope(case.dtype, "cpu"):
        arrays = {"y_pred": lib.b.place(case.y_pred, case.dtype, "cpu")}
        arrays["y_true"] = lib.b.place(case.y_true, case.dtype if dense else "int32", "cpu")
        if "sample_weight" in case.options:
            arrays["sample_weight"] = lib.b.place(case.options["sample_weight"], "float32", "cpu")
        options = {key: x for key, x in case.options.items() if key != "sample_weight"}

        def call(**arrays: Any) -> Any:
            return getattr(lb, case.loss)(**named(case.loss, arrays), **options)

        of_target = [("y_true",), ("y_true", "y_pred")] if dense else []
        of_weight = [("sample_weight",)] if "sample_weight" in arrays else []
        value, _ = ON[lib.b.name](call, arrays, ())
        _, alone = ON[lib.b.name](call, arrays, ("y_pred",))
        for asked in [("y_pred",), *of_target, *of_weight]:
            found, gradients = ON[lib.b.name](call, arrays, asked)
            in_rows = "y_true" not in asked or any(r.name in rows.WITH_TARGET_GRADIENT for r in rule.values())
            exactly = in_rows and not rows.MISSING and asked != ("sample_weight",) and lib.b.name != "tensorflow"
            same(lib, found, value, case.compute_dtype, exactly)
            if "y_pred" in gradients:
                same(lib, gradients["y_pred"], alone["y_pred"], case.dtype, exactly)


def named(loss: str, arrays: Mapping[str, Any]) -> dict[str, Any]:
    names = LOSSES[loss].names
    return {{"y_true": names.target, "y_pred": names.pred}.get(name, name): x for name, x in arrays.items()}


def same(lib, found: Any, expected: Any, dtype: str, exactly: bool) -> None:
    found, expected = lib.b.to_numpy(found), lib.b.to_numpy(expected)
    if exactly:
        np.testing.assert_array_equal(found, expected)
    else:
        unit = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}[dtype]
        scale = float(np.max(np.abs(expected), initial=0, where=np.isfinite(expected)))
        np.testing.assert_allclose(found, expected, rtol=8 * unit, atol=8 * unit * scale)


# Gradients of logits.

PAIRS = {
    "one nat apart": ([0, 10], [0, 11]),
    "near": ([0, 16], [0, 16.1]),
    "saturated": ([0, 18], [0, 19]),
    "far": ([12, 0], [1e5, 0]),
    "equal": ([3, 1], [3, 1]),
    "far apart": ([30, 0], [0, 30]),
    "both saturated": ([0, 60], [0, 61]),
    "three classes": ([100, 99, 98], [100.001, 99, 97.999]),
    "with a large offset": ([1e4, 1e4 + 10], [1e4, 1e4 + 11]),
}


def softmax(z: Any) -> list[Any]:
    with mpmath.workdps(60):
        terms = [mpmath.exp(mpmath.mpf(float(x))) for x in z]
        return [term / mpmath.fsum(terms) for term in terms]


@pytest.mark.parametrize("how", ["eager", "compiled"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("loss", ["kl_divergence", "distillation_loss", "categorical_crossentropy"])
def test_a_gradient_of_logits_sums_to_0(lib, loss, dtype, how) -> None:
    """And has the digits that the dtype has, in its smallest entry too."""
    compilers = list(lib.b.compilers().values()) if how == "compiled" else [lambda function: function]
    options = {} if loss == "distillation_loss" else {"from_logits": True}
    wrong = []
    for compiler in compilers:
        for name, (teacher, student) in PAIRS.items():
            teacher, student = np.array([teacher], dtype), np.array([student], dtype)
            target = teacher
            if loss == "categorical_crossentropy":
                target = np.array([[float(p) for p in softmax(teacher[0])]], dtype)
            with lib.b.scope(dtype, "cpu"):
                step = compiler(lambda t, z: lb.value_and_grad(getattr(lb, loss))(t, z, **options))
                _, gradient = step(lib.b.place(target, dtype, "cpu"), lib.b.place(student, dtype, "cpu"))
                gradient = lib.b.to_numpy(gradient).astype(np.float64)[0]
            unit = np.finfo(dtype).eps
            right = abs(gradient.sum()) <= 4 * unit * np.abs(gradient).max() + rounding(target, loss, unit)
            with mpmath.workdps(60):
                exact = [float(q - p) for p, q in zip(softmax(teacher[0]), softmax(student[0]), strict=True)]
            if loss != "categorical_crossentropy":  # whose target is rounded
                right = right and np.allclose(gradient, exact, rtol=64 * unit, atol=1e-30)
            if not right:
                wrong.append((name, gradient.tolist(), exact))
    assert not wrong


def rounding(target: np.ndarray, loss: str, unit: float) -> float:
    """By how much a rounded distribution misses 1, and the rounding of probabilities near 1."""
    return abs(float(target.astype(np.float64).sum()) - 1) + unit if loss == "categorical_crossentropy" else 0.0


# Shapes.

EMPTY = [
    ((2, 3, 0), 1),
    ((0, 3), 1),
    ((0, 3, 2), 1),
    ((2, 0, 3), 2),
    ((3, 0), 0),
    ((2, 3, 4, 0), 1),
    ((2, 3, 0, 4), 1),
    ((2, 0, 3, 4), 2),
    ((0, 0, 3), -1),
]


@pytest.mark.parametrize(("shape", "axis"), EMPTY)
@pytest.mark.parametrize("loss", LOSSES)
def test_what_is_empty_has_the_loss_0_and_an_empty_gradient(lib, loss, shape, axis) -> None:
    record = LOSSES[loss]
    samples = tuple(n for i, n in enumerate(shape) if i != axis % len(shape))
    for form, rules in record.rules.items():
        for target in rules:
            options = {"from_logits": form == "logits"} if "from_logits" in record.options else {}
            labels = target == "labels"
            y_true = lib.array(np.zeros(samples if labels else shape, np.int32 if labels else np.float32))
            y_pred = lib.array(np.zeros(shape, np.float32))
            for how in (lambda function: function, *lib.b.compilers().values()):
                for reduction, value in (("mean", 0.0), ("sum", 0.0), ("none", None)):
                    step = how(
                        lambda t, z, reduction=reduction, options=options: lb.value_and_grad(getattr(lb, loss))(
                            t, z, axis=axis, reduction=reduction, **options
                        )
                    )
                    found, gradient = (lib.b.to_numpy(x) for x in step(y_true, y_pred))
                    assert gradient.shape == shape
                    if value is None:
                        elementwise = target in record.elementwise
                        assert found.shape == (shape if elementwise else samples)
                    else:
                        assert found == value
                        assert found.shape == ()
