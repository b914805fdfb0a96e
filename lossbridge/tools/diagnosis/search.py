"""Which conventions give an observed number, and which of those the data cannot tell apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from lossbridge.tools.diagnosis.evaluate import Array, Batch, Quantity, arrays, rounded, scalars, scale, sums_key
from lossbridge.tools.diagnosis.hypotheses import Hypothesis

# Two conventions whose numbers differ by less are one to the data: float32 would not show it.
INDISTINCT = 1e-7
# What sums of a dtype may be off, relatively; in float32 also an entry of an array, and where 1 − p has no digits.
_FLOAT64, _FLOAT32, _FLOAT16 = 1e-9, 2e-6, 1e-3
_FLOAT32_SUM = 5e-7  # what a sum in float32 commonly is
_ENTRY, _ZERO = 1e-5, 6e-8
_FLOAT32_DIGITS, _FLOAT64_DIGITS = 9, 15  # a number with more, in the dtype, is not rounded to them
_HALF_OFF = {"float16": 4e-3, "bfloat16": 3e-2}  # and what is computed in a half dtype, also an entry of an array
# Arrays are compared on rows of so many elements: a few first, and where those fit on more.
_FEW, _MANY = 2_400, 100_000

Value = Array | float


@dataclass(frozen=True)
class Observation:
    """A number, or an array of them, and how far it may be off. `loose` is tried where `tight` fits nothing."""

    values: Array  # float64
    quantity: Quantity
    tight: float  # absolute for a scalar, relative to the largest entry for an array
    loose: float
    sure: bool  # what fits tightly is the truth: so many digits agree with nothing by chance

    @cached_property
    def largest(self) -> float:
        """The size of the largest entry."""
        return float(np.max(np.abs(self.values), initial=0.0, where=np.isfinite(self.values))) or 1.0

    @staticmethod
    def of(observed: Any, quantity: Quantity, *, dtype: str = "float64") -> Observation:
        """A text or a Python number is known to its digits as written: 1.18 is anything that rounds to it.

        Arrays, and NumPy's scalars, were computed: they are off by what their dtype loses. `dtype`: of the predictions,
        in which a number that was printed may have been computed too.
        """
        typed = isinstance(observed, str | int | float) and not isinstance(observed, np.generic)
        values = np.asarray(float(observed) if typed else observed)
        if not values.ndim and not np.isfinite(values):
            return Observation(values.astype(np.float64), quantity, 0.0, 0.0, True)
        text = str(observed).strip() if typed else ""
        single = bool((values == _single(values)).all())
        if single and _digits(text) > _FLOAT32_DIGITS:
            typed = False  # a float32 in full
        loose = _FLOAT16 if values.dtype == np.float16 else _FLOAT32
        precise = values.dtype == np.float64 and not single
        values = values.astype(np.float64)
        if values.ndim:
            loose = max(loose, _ENTRY)
            tight = _FLOAT64 if precise else loose
            return Observation(values, quantity, tight, max(loose, _HALF_OFF.get(dtype, 0.0)), precise)
        x = abs(float(values))
        if not typed:
            return Observation(values, quantity, (_FLOAT64 if precise else loose) * x, loose * x + _ZERO, precise)
        sure = _digits(text) > _FLOAT32_DIGITS
        half = 0.5 * 10.0 ** _last_place(text) if x and _digits(text) <= _FLOAT64_DIGITS else 0.0
        tight = _FLOAT64 if sure or dtype == "float64" else _FLOAT32_SUM
        return Observation(values, quantity, half + tight * x, half + _FLOAT32 * x + _ZERO, sure)


def _single(x: Array) -> Array:
    with np.errstate(over="ignore"):
        return x.astype(np.float32)


def _digits(text: str) -> int:
    """How many there are, of those that count."""
    return len(text.lower().partition("e")[0].replace(".", "").lstrip("+-0"))


def _last_place(text: str) -> int:
    """The power of ten of the last digit."""
    mantissa, _, exponent = text.lower().partition("e")
    return int(exponent or 0) - len(mantissa.partition(".")[2])


@dataclass(frozen=True)
class Fit:
    """A hypothesis that gives what was observed."""

    hypothesis: Hypothesis
    values: tuple[Value, ...]  # a batch each, up to the first that it does not fit
    misfit: float  # the worst, relatively

    @property
    def distance(self) -> tuple[int, float]:
        """How near it comes: nearer what fits more of the batches."""
        return -len(self.values), self.misfit


@dataclass(frozen=True)
class Judged:
    """What hypotheses give on a batch, and which of them give what was observed."""

    values: Sequence[Value]
    misfit: Array  # relative; infinite where the values have another shape
    tight: Array
    loose: Array
    sharp: Array  # not by the leeway that a half dtype is given


def search(
    hypotheses: Sequence[Hypothesis],
    batches: Sequence[Batch],
    observations: Sequence[Observation],
    advance: Callable[[float], None] = lambda share: None,
    *,
    known: Sequence[Array] | None = None,
) -> tuple[list[list[Fit]], list[Fit]]:
    """Classes of fitting hypotheses, the simplest first; and, where nothing fits, those that are nearest.

    `known`: what all hypotheses give on each batch, where that was computed before.
    """
    left = np.arange(len(hypotheses))
    values: list[list[Value]] = [[] for _ in hypotheses]
    misfit = np.zeros(len(hypotheses))
    tight, sharp = np.ones((2, len(hypotheses)), bool)
    for k, (batch, seen) in enumerate(zip(batches, observations, strict=True)):
        some = [hypotheses[i] for i in left.tolist()]

        def step(share: float) -> None:
            advance(share / len(batches))

        if known is not None:
            judged = _numbers(some, known[k][left], seen)
        elif seen.quantity == "scalar":
            judged = _numbers(some, scalars(batch, [h.convention for h in some], step), seen)
        else:
            judged = _arrays(some, batch, seen, step)
        misfit[left] = np.maximum(misfit[left], judged.misfit)
        tight[left] &= judged.tight
        sharp[left] &= judged.sharp
        for i, value, fits in zip(left.tolist(), judged.values, judged.loose, strict=True):
            if fits:
                values[i].append(value)
        left = left[judged.loose]
    if tight[left].any():
        fewest = min(hypotheses[i].changes for i in left[tight[left]].tolist())
        sure = any(seen.sure for seen in observations)
        simpler = np.array([not sure and hypotheses[i].changes < fewest for i in left.tolist()])
        left = left[tight[left] | simpler]
    if left.size:

        def order(i: int) -> tuple[Any, ...]:
            h = hypotheses[i]
            return h.strangeness, not sharp[i], 0.0 if sharp[i] else misfit[i], h.place

        ranked = sorted(left.tolist(), key=order)
        return classes([Fit(hypotheses[i], tuple(values[i]), float(misfit[i])) for i in ranked]), []
    near = [Fit(h, tuple(values[i]), float(misfit[i])) for i, h in enumerate(hypotheses) if h.changes < 2]
    return [], sorted((fit for fit in near if math.isfinite(fit.misfit)), key=lambda fit: fit.distance)[:3]


def _numbers(hypotheses: Sequence[Hypothesis], values: Array, seen: Observation) -> Judged:
    x = float(seen.values)
    size = abs(x) if x and math.isfinite(x) else 1.0
    with np.errstate(all="ignore"):
        off = np.where((values == x) | (np.isnan(values) & math.isnan(x)), 0.0, np.abs(values - x))
        off[np.isnan(off)] = math.inf
        misfit = off / size
    tight, loose = off <= seen.tight, off <= seen.loose
    sharp = loose
    for half, share in _HALF_OFF.items() if math.isfinite(x) else ():
        # What was computed in it has few digits, and the last of them were lost on the way.
        computed = np.array([h.convention.dtype == half for h in hypotheses], bool)
        exact = abs(float(rounded(np.float64(x), half)) - x)
        near = off <= share * abs(x)
        tight = np.where(computed, near & (exact <= seen.tight), tight)
        loose = np.where(computed, near & (exact <= seen.loose), loose)
    return Judged(values.tolist(), misfit, tight, loose, sharp)


def _arrays(
    hypotheses: Sequence[Hypothesis], batch: Batch, seen: Observation, advance: Callable[[float], None]
) -> Judged:
    """On a few rows first; those that fit there, on many."""
    values: list[Value] = [math.nan] * len(hypotheses)
    misfit = np.zeros(len(hypotheses))
    for elements in (_FEW, _MANY):
        memo: dict[Any, Array] = {}
        rows: dict[int, Array] = {}
        for i in np.flatnonzero(misfit <= seen.loose).tolist():
            axis = hypotheses[i].convention.axis
            if axis not in rows:
                rows[axis] = chosen(batch.rows(axis).pred, elements)
            value, misfit[i] = _array(hypotheses[i], batch, seen, rows[axis], memo)
            if elements == _MANY:
                values[i] = value
            else:
                advance(1 / len(hypotheses))
    return Judged(values, misfit, misfit <= seen.tight, misfit <= seen.loose, np.ones(len(hypotheses), bool))


def _array(h: Hypothesis, batch: Batch, seen: Observation, index: Any, memo: dict[Any, Array]) -> tuple[Array, float]:
    """The values of some rows, and how far they are off."""
    c = h.convention
    key = sums_key(c)
    if key not in memo:
        memo[key] = arrays(batch, c, seen.quantity, index)
    value = memo[key] * scale(c, batch, seen.quantity)
    observed = as_rows(seen.values, batch, c.axis, seen.quantity)
    if len(observed) != len(batch.rows(c.axis).pred):
        return value, math.inf  # values of the samples along another axis
    expected = observed[index]
    if value.shape != expected.shape:
        return value, math.inf
    with np.errstate(invalid="ignore"):
        same = (value == expected) | (np.isnan(value) & np.isnan(expected))
        gaps = np.where(same, 0.0, np.abs(value - expected) / np.maximum(np.abs(expected), 0.1 * seen.largest))
    return value, float(np.nan_to_num(gaps, nan=math.inf).max(initial=0.0))


def chosen(pred: Array, elements: int) -> Array:
    """The numbers of rows that stand for all: half of them spread, half with the most extreme predictions."""
    half = max(elements // pred.shape[1], 8) // 2
    if len(pred) <= 2 * half:
        return np.arange(len(pred))
    highest, lowest = pred.max(1), pred.min(1)
    extreme = np.argsort(np.maximum(highest, -lowest), kind="stable")[-(half // 2) :]
    small = np.argsort(np.abs(pred).min(1), kind="stable")[: half // 2]
    return np.unique(np.concatenate([np.linspace(0, len(pred) - 1, half).astype(np.int64), extreme, small]))


def as_rows(x: Array, batch: Batch, axis: int, quantity: Quantity) -> Array:
    """An observed array as rows, in the order of `arrays`."""
    if quantity == "samples":
        return x.reshape(-1)
    return x[:, None] if x.ndim < 2 else np.moveaxis(x, axis, -1).reshape(-1, x.shape[axis])


def classes(fits: Sequence[Fit]) -> list[list[Fit]]:
    """Fits in groups that the data cannot tell apart. The order of the first of each is kept."""
    groups: list[list[Fit]] = []
    for fit in fits:
        for group in groups:
            if indistinct(group[0].values, fit.values):
                group.append(fit)
                break
        else:
            groups.append([fit])
    return groups


def indistinct(a: Sequence[Value], b: Sequence[Value]) -> bool:
    """Whether the numbers of two conventions, a batch each, are the same to the eye of float32."""
    return all(_alike(x, y) for x, y in zip(a, b, strict=True))


def _alike(x: Value, y: Value) -> bool:
    if isinstance(x, float) and isinstance(y, float):  # thousands of these are compared
        if math.isfinite(x) and math.isfinite(y):
            return abs(x - y) <= INDISTINCT * abs(x)
        return x == y or (math.isnan(x) and math.isnan(y))
    x, y = np.asarray(x), np.asarray(y)
    if x.shape != y.shape:
        return False
    finite = np.isfinite(x) & np.isfinite(y)
    largest = np.max(np.abs(x), initial=0.0, where=finite)
    with np.errstate(invalid="ignore"):
        same = (x == y) | (np.isnan(x) & np.isnan(y))
        return bool((same | (finite & (np.abs(x - y) <= INDISTINCT * np.maximum(np.abs(x), 1e-3 * largest)))).all())
