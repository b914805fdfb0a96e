"""The cases of the losses of linear layers: y_pred holds hidden states, weights and biases are among the options.

All these are multiples of 1/8, so that every logit is exact in float32 and in each sum's order.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from lossbridge.tools.parity.cases import DTYPES, KINDS, Array, Case, Tolerance

_N, _H, _C = 13, 6, 11
_OF_TEACHER = 5  # units
_BLOCKS = 5 * _C * 4  # bytes: three blocks in float32
_MASK = np.arange(_N) % 3 != 2
_WEIGHT = np.where(np.arange(_N) % 4 == 1, 0, np.linspace(0.2, 3, _N)).astype(np.float32)
_NOTHING = np.array([np.nan, np.inf, -np.inf, 1e38, 0, 1], np.float32)  # a hidden state that is not read


def _eighths(*shape: int, seed: int) -> Array:
    return np.random.default_rng(seed).integers(-16, 17, size=shape) / 8


@functools.cache
def linear_cases() -> tuple[Case, ...]:
    return (*_of_crossentropy(), *_of_distillation())


def _crossentropy(name: str, *, dtype: str = "float32", shape: tuple[int, ...] = (_N,), **options: Any) -> Case:
    labels = np.random.default_rng(3).integers(0, _C, size=shape).astype(np.int32)
    layer = {"weight": _eighths(_C, _H, seed=2), **options}
    return _case("linear_crossentropy", name, labels, _eighths(*shape, _H, seed=1), layer, dtype, Tolerance())


def _case(
    loss: str, name: str, y_true: Array, hidden: Array, options: dict[str, Any], dtype: str, tolerance: Tolerance
) -> Case:
    """Hidden states, weights and biases in the type that holds the numbers of `dtype`."""
    floats = np.float64 if dtype == "float64" else np.float32
    options = {
        option: x.astype(floats) if isinstance(x, Array) and x.dtype == np.float64 else x
        for option, x in options.items()
    }
    y_true = y_true if y_true.dtype.kind == "i" else y_true.astype(floats)
    return Case(name, loss, y_true, hidden.astype(floats), options, dtype, tolerance)


def _of_crossentropy() -> Iterator[Case]:
    case = _crossentropy
    for dtype in DTYPES:
        yield case(dtype, dtype=dtype)
    bias = _eighths(_C, seed=4)
    class_weight = np.linspace(0, 2, _C).astype(np.float32)
    every: dict[str, Any] = {"bias": bias, "label_smoothing": 0.1, "class_weight": class_weight, "ignore_class": 4}
    every |= {"logit_scale": 0.5, "softcap": 3.0, "z_loss": 0.1, "sample_weight": _WEIGHT, "mask": _MASK}
    yield case("bias, in blocks", bias=bias, memory=_BLOCKS)
    yield case("classes along axis 1, in blocks", weight=_eighths(_H, _C, seed=2), classes_axis=1, memory=_BLOCKS)
    yield case("scaled, capped, z-loss", logit_scale=0.5, softcap=3.0, z_loss=0.1)
    numbers: dict[str, Any] = {"logit_scale": np.float32(0.5), "softcap": np.float32(3), "z_loss": np.float32(0.1)}
    yield case("scale, cap and z-loss in arrays", **numbers, label_smoothing=np.float32(0.1))
    yield case("all options, mean by weight, in blocks", **every, reduction="mean_with_sample_weight", memory=_BLOCKS)
    yield case("all options, none, in blocks", **every, reduction="none", memory=_BLOCKS)
    yield case("sequences, sum", shape=(3, 4), reduction="sum")
    yield case("empty batch", shape=(0,))
    yield case("all masked", mask=np.zeros(_N, bool))
    yield case("normalizer", normalizer=np.float32(7))
    masked = case("masked, NaN there, in blocks", mask=_MASK, memory=_BLOCKS)
    masked.y_pred[~_MASK] = _NOTHING
    masked.y_true[~_MASK] = -7
    yield masked


def _distillation(name: str, *, dtype: str = "float32", shape: tuple[int, ...] = (_N,), **options: Any) -> Case:
    layers = {
        "teacher_weight": _eighths(_C, _OF_TEACHER, seed=5),
        "student_weight": _eighths(_C, _H, seed=2),
        "memory": 2 * _BLOCKS,  # both sides' logits
        **options,
    }
    teacher, student = _eighths(*shape, _OF_TEACHER, seed=6), _eighths(*shape, _H, seed=1)
    # As of the divergence of logits.
    return _case("linear_distillation", name, teacher, student, layers, dtype, Tolerance(16, 32))


def _of_distillation() -> Iterator[Case]:
    case = _distillation
    for dtype in DTYPES:
        yield case(dtype, dtype=dtype)
    biases: dict[str, Any] = {"teacher_bias": _eighths(_C, seed=7), "student_bias": _eighths(_C, seed=4)}
    for kind, options in KINDS.items():
        yield case(kind, **options)
        yield case(f"{kind}, biases, temperature 3, float16", **options, **biases, temperature=3.0, dtype="float16")
        yield case(f"{kind}, mean by weight", **options, reduction="mean_with_sample_weight", sample_weight=_WEIGHT)
    yield case("in one block", memory=1 << 20)
    yield case("biases", **biases)
    of_axis_1 = case("classes along axis 1", classes_axis=1)
    turned = {name: x.T for name, x in of_axis_1.options.items() if name.endswith("weight")}
    yield replace(of_axis_1, options={**of_axis_1.options, **turned})
    yield case("temperature in an array", temperature=np.float32(3))
    mixed = case("β in an array", kind="jensen_shannon", beta=np.float32(0.25))
    # Compiled, PyTorch and TensorFlow differentiate automatically, with digits beside T: one row's gradient is 6e-4.
    yield replace(mixed, tolerance=Tolerance(16, 128))
    yield case("sequences, sum", shape=(3, 4), reduction="sum")
    yield case("weights, none", sample_weight=_WEIGHT, mask=_MASK, reduction="none")
    yield case("empty batch", shape=(0,))
    yield case("all masked", mask=np.zeros(_N, bool))
    yield case("normalizer", normalizer=np.float32(7))
    masked = case("masked, NaN there", mask=_MASK)
    masked.y_pred[~_MASK] = _NOTHING
    masked.y_true[~_MASK] = _NOTHING[:_OF_TEACHER]
    yield masked
