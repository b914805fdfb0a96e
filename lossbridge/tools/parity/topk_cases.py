"""The cases of `topk_divergence`: y_true holds log-probabilities, y_pred logits, and the indices are an option."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from lossbridge.tools.parity.cases import DTYPES, Array, Case, Tolerance, round_to

_N, _C, _K = 8, 9, 3
# As of the divergence of logits; with the bucket on a scale of 1, because what the classes leave has the rounding of
# their sum.
_TOLERANCE = {True: Tolerance(16, 32, scale=1.0), False: Tolerance(16, 32)}


def _teacher(logits: Array, k: int) -> tuple[Array, Array]:
    """The k classes of the largest logits in each row, and their log-probabilities."""
    top = logits.max(-1, keepdims=True)
    log_probs = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
    indices = np.argsort(-logits, axis=-1)[..., :k]
    return indices.astype(np.int32), np.take_along_axis(log_probs, indices, -1)


def _given(name: str, indices: Array, log_probs: Array, logits: Array, dtype: str = "float32", **options: Any) -> Case:
    log_probs, logits = (round_to(x, dtype) for x in (log_probs, logits))
    tolerance = _TOLERANCE[options.get("tail", True)]
    return Case(name, "topk_divergence", log_probs, logits, {"indices": indices, **options}, dtype, tolerance)


def _case(
    name: str, *, k: int = _K, dtype: str = "float32", shape: tuple[int, ...] = (_N, _C), seed: int = 0, **options: Any
) -> Case:
    teacher, student = np.random.default_rng(seed).normal(size=(2, *shape))
    return _given(name, *_teacher(teacher, k), student, dtype, **options)


@functools.cache
def topk_cases() -> tuple[Case, ...]:
    return (*_usual(), *_boundaries(), *_not_counted(), *_outside())


def _usual() -> Iterator[Case]:
    for dtype in DTYPES:
        yield _case(dtype, dtype=dtype)
        yield _case(f"{dtype}, without the tail", dtype=dtype, tail=False)
    for tail in (True, False):
        words = "" if tail else ", without the tail"
        yield _case(f"one class{words}", k=1, seed=1, tail=tail)
        yield _case(f"all classes{words}", k=_C, seed=2, tail=tail)
    yield _case("50 of 1000 classes", k=50, shape=(4, 1000), reduction="none", seed=3)
    images = _case("images, axis 1", shape=(2, 3, 2, _C), seed=4, axis=1)
    sides = [np.moveaxis(x, -1, 1) for x in (images.y_true, images.y_pred, images.options["indices"])]
    yield replace(images, y_true=sides[0], y_pred=sides[1], options={**images.options, "indices": sides[2]})
    yield _case("empty batch", shape=(0, _C))


def _boundaries() -> Iterator[Case]:
    rng = np.random.default_rng(5)
    z, step = rng.normal(size=(2, _N, _C))
    certain = z + np.linspace(8, 25, _N)[:, np.newaxis] * (np.arange(_C) == 2)
    absent = np.where(np.arange(_C) % 4 == 1, -np.inf, 0.0)
    # Above the usual: without native rows e^x of x about −25 has 25 units of x's rounding; in near rows log t − log p
    # of logits 2 apart, and 1 − Σ t, round by 2⁻²⁴, 6e-6 of 1e-2, several times.
    rows = {
        "a certain class": (certain, certain + step, 64),
        "certain and wrong": (certain, np.roll(certain, 1, -1), 32),
        "far logits": (1e4 + z, step - 1e4, 32),
        "absent classes": (z + absent, step + absent, 32),
        "near rows": (z, z + 1e-2 * step, 500),
    }
    for name, (teacher, student, units) in rows.items():
        for tail in (True, False):
            words = "" if tail else ", without the tail"
            case = _given(f"{name}{words}", *_teacher(teacher, _K), student, tail=tail, reduction="none")
            value = case.tolerance.value if units == 32 else units
            yield replace(case, tolerance=replace(case.tolerance, value=value, gradient=units))


def _not_counted() -> Iterator[Case]:
    mask, weight = np.arange(_N) % 3 != 1, np.linspace(0, 3, _N).astype(np.float32)
    both = {"mask": mask, "sample_weight": weight}
    yield _case("sum", reduction="sum", seed=6)
    yield _case("weights, none", sample_weight=weight, reduction="none", seed=6)
    yield _case("mean by weight", **both, reduction="mean_with_sample_weight", seed=6)
    yield _case("normalizer", **both, normalizer=np.float32(7), seed=6)
    yield _case("all masked", mask=np.zeros(_N, bool), seed=6)
    for tail in (True, False):
        masked = _case(f"masked, anything there{'' if tail else ', without the tail'}", mask=mask, tail=tail, seed=6)
        masked.options["indices"][~mask] = [77, -1, 3]
        masked.y_true[~mask] = [np.nan, np.inf, 0]
        masked.y_pred[~mask] = np.inf
        yield masked


def _outside() -> Iterator[Case]:
    """One row lies outside."""
    for name, row in {
        "an index beyond the classes": [0, _C, 1],
        "an index below 0": [0, -1, 1],
        "twice": [2, 0, 2],
    }.items():
        case = replace(_case(name, reduction="none", seed=7), refused=True)
        case.options["indices"][2] = row
        yield case
    case = replace(_case("probabilities of more than 1", reduction="none", seed=7), refused=True)
    case.y_true[2] = [-0.5, -1, -2]
    yield case
