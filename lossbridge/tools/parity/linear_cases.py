"""The cases of the linear cross-entropy, which is no loss of the registry: y_pred holds hidden states.

Hidden states, weight and bias are multiples of 1/8, so that every logit is exact in float32 and in each sum's order.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

from lossbridge.tools.parity.cases import DTYPES, Array, Case, Tolerance

NAME = "linear_crossentropy"
LAYER = ("weight", "bias")  # the options whose gradients are compared too
_N, _H, _C = 13, 6, 11
_BLOCKS = 5 * _C * 4  # bytes: three blocks in float32


def _eighths(*shape: int, seed: int) -> Array:
    return np.random.default_rng(seed).integers(-16, 17, size=shape) / 8


def _case(name: str, *, dtype: str = "float32", shape: tuple[int, ...] = (_N,), **options: Any) -> Case:
    floats = np.float64 if dtype == "float64" else np.float32
    labels = np.random.default_rng(3).integers(0, _C, size=shape).astype(np.int32)
    layer = {"weight": _eighths(_C, _H, seed=2), **options}
    layer = {option: x.astype(floats) if option in LAYER else x for option, x in layer.items()}
    return Case(name, NAME, labels, _eighths(*shape, _H, seed=1).astype(floats), layer, dtype, Tolerance())


@functools.cache
def linear_cases() -> tuple[Case, ...]:
    return tuple(_linear_cases())


def _linear_cases() -> Iterator[Case]:
    for dtype in DTYPES:
        yield _case(dtype, dtype=dtype)
    bias = _eighths(_C, seed=4)
    class_weight = np.linspace(0, 2, _C).astype(np.float32)
    weight = np.where(np.arange(_N) % 4 == 1, 0, np.linspace(0.2, 3, _N)).astype(np.float32)
    mask = np.arange(_N) % 3 != 2
    every: dict[str, Any] = {"bias": bias, "label_smoothing": 0.1, "class_weight": class_weight, "ignore_class": 4}
    every |= {"logit_scale": 0.5, "softcap": 3.0, "z_loss": 0.1, "sample_weight": weight, "mask": mask}
    yield _case("bias, in blocks", bias=bias, memory=_BLOCKS)
    yield _case("classes along axis 1, in blocks", weight=_eighths(_H, _C, seed=2), classes_axis=1, memory=_BLOCKS)
    yield _case("scaled, capped, z-loss", logit_scale=0.5, softcap=3.0, z_loss=0.1)
    yield _case("all options, mean by weight, in blocks", **every, reduction="mean_with_sample_weight", memory=_BLOCKS)
    yield _case("all options, none, in blocks", **every, reduction="none", memory=_BLOCKS)
    yield _case("sequences, sum", shape=(3, 4), reduction="sum")
    yield _case("empty batch", shape=(0,))
    yield _case("all masked", mask=np.zeros(_N, bool))
    yield _case("normalizer", normalizer=np.float32(7))
    masked = _case("masked, NaN there, in blocks", mask=mask, memory=_BLOCKS)
    masked.y_pred[~mask] = np.array([np.nan, np.inf, -np.inf, 1e38, 0, 1], np.float32)
    masked.y_true[~mask] = -7
    yield masked
