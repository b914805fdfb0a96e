"""Finds the hypotheses that give an observed number, and groups those that the data cannot tell apart.

Defines the tolerances. Conventions are evaluated in evaluate.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from lossbridge.tools.diagnosis.batch import Array, Batch, Quantity
from lossbridge.tools.diagnosis.evaluate import arrays, rounded, same, scalars, scale, sums_key
from lossbridge.tools.diagnosis.hypotheses import Hypothesis

MANY_DIGITS, MORE_DIGITS = 5.5e-5, 5.5e-6  # the relative tolerances of five digits and of six
INDISTINCT = 1e-7  # relative difference of two numbers that float32 does not resolve
# Relative errors of a loss computed in a dtype, at most.
_FLOAT64, _FLOAT32, _FLOAT16 = 1e-9, 2e-6, 1e-3
_FLOAT32_SUM = 5e-7  # of most sums in float32
_FLOAT16_COMPUTED = {"float16": 4e-3, "bfloat16": 3e-2}  # where intermediate results are rounded to the dtype too
_AROUND = 0.1  # the relative distance within which hypotheses are counted
_ENTRY = 1e-5  # of an array's entry in float32
_ZERO = 6e-8  # absolute, in float32, where 1 − p cancels
_FLOAT32_DIGITS, _FLOAT64_DIGITS = 9, 15  # a number of that dtype with more digits is printed in full, not rounded
_FEW, _MANY = 2_400, 100_000  # arrays are compared on rows with so many elements: few first, then many

Value = Array | float


@dataclass(frozen=True)
class Observation:
    """An observed number or array with its tolerances. `loose` is used where nothing fits within `tight`."""

    values: Array  # float64
    quantity: Quantity
    tight: float  # absolute for a scalar; for an array relative to each entry, or to a tenth of the largest
    loose: float
    sure: bool  # it has so many digits that a fit within `tight` is no chance

    @cached_property
    def largest(self) -> float:
        """The largest finite magnitude; 1 if that is 0."""
        return float(np.max(np.abs(self.values), initial=0.0, where=np.isfinite(self.values))) or 1.0

    @property
    def has_many_digits(self) -> bool:
        """Five or more: then what has some alternatives can be believed."""
        return self.tight <= MANY_DIGITS * abs(float(self.values))

    @property
    def has_more_digits(self) -> bool:
        """Six or more: then what has many can."""
        return self.tight <= MORE_DIGITS * abs(float(self.values))

    @staticmethod
    def of(observed: Any, quantity: Quantity, *, dtype: str = "float64") -> Observation:
        """A text or a Python number is exact to half a unit of its last digit: 1.18 is anything that rounds to it.

        Arrays and NumPy scalars have the rounding errors of their dtype. `dtype`: the predictions' dtype, in which a
        printed number may have been computed.
        """
        typed = isinstance(observed, str | int | float) and not isinstance(observed, np.generic)
        values = np.asarray(float(observed) if typed else observed)
        if not values.ndim and not np.isfinite(values):
            return Observation(values.astype(np.float64), quantity, 0.0, 0.0, True)
        text = str(observed).strip() if typed else ""
        single = bool((values == _single(values)).all())
        if single and _digits(text) > _FLOAT32_DIGITS:
            typed = False  # a float32 printed in full
        loose = _FLOAT16 if values.dtype == np.float16 else _FLOAT32
        precise = values.dtype == np.float64 and not single
        values = values.astype(np.float64)
        if values.ndim:
            loose = max(loose, _ENTRY)
            tight = _FLOAT64 if precise else loose
            return Observation(values, quantity, tight, max(loose, _FLOAT16_COMPUTED.get(dtype, 0.0)), precise)
        x = abs(float(values))
        if not typed:
            return Observation(values, quantity, (_FLOAT64 if precise else loose) * x, loose * x + _ZERO, precise)
        sure = _digits(text) > _FLOAT32_DIGITS
        rounding = 0.5 * 10.0 ** _last_place(text) if x and _digits(text) <= _FLOAT64_DIGITS else 0.0
        tight = _FLOAT64 if sure or dtype == "float64" else _FLOAT32_SUM
        return Observation(values, quantity, rounding + tight * x, rounding + _FLOAT32 * x + _ZERO, sure)


def _single(x: Array) -> Array:
    with np.errstate(over="ignore"):
        return x.astype(np.float32)


def _digits(text: str) -> int:
    """The number of significant digits."""
    return len(text.lower().partition("e")[0].replace(".", "").lstrip("+-0"))


def _last_place(text: str) -> int:
    """The exponent of 10 of the last digit."""
    mantissa, _, exponent = text.lower().partition("e")
    return int(exponent or 0) - len(mantissa.partition(".")[2])


@dataclass(frozen=True)
class Fit:
    """A hypothesis with what it gives."""

    hypothesis: Hypothesis
    values: tuple[Value, ...]  # one per batch, up to the first batch that it does not fit
    misfit: float  # the largest relative difference
    last: Value = math.nan  # what it gives on the batch that it does not fit

    @property
    def distance(self) -> tuple[int, float]:
        """Smaller if it fits more of the batches, then for a smaller difference."""
        return -len(self.values), self.misfit


@dataclass(frozen=True)
class Comparison:
    """What hypotheses give on a batch, compared with what was observed."""

    values: Sequence[Value]
    misfit: Array  # relative; infinite where the shapes differ
    tight: Array
    loose: Array
    sharp: Array  # fits within `loose` of the observation, not only within the tolerance of float16 or bfloat16


def search(
    hypotheses: Sequence[Hypothesis],
    batches: Sequence[Batch],
    observations: Sequence[Observation],
    advance: Callable[[float], None] = lambda fraction: None,
    *,
    values: Sequence[Array] | None = None,
) -> tuple[list[list[Fit]], list[Fit]]:
    """Classes of fitting hypotheses, the simplest first; or, where nothing fits, the nearest hypotheses.

    `values`: what all hypotheses give on each batch, if that has been computed before.
    """
    left = np.arange(len(hypotheses))
    dtypes = np.array([h.convention.dtype for h in hypotheses], str)
    fitting: list[list[Value]] = [[] for _ in hypotheses]
    last: list[Value] = [math.nan] * len(hypotheses)  # on the last batch that each was compared with
    misfit = np.zeros(len(hypotheses))
    tight, sharp = np.ones((2, len(hypotheses)), bool)

    def step(fraction: float) -> None:
        advance(fraction / len(batches))

    for k, (batch, seen) in enumerate(zip(batches, observations, strict=True)):
        some = [hypotheses[i] for i in left.tolist()] if len(left) < len(hypotheses) else hypotheses
        if values is not None:
            compared = _compare_numbers(dtypes[left], values[k][left], seen)
        elif seen.quantity == "scalar":
            compared = _compare_numbers(dtypes[left], scalars(batch, [h.convention for h in some], step), seen)
        else:
            compared = _compare_arrays(some, batch, seen, step)
        misfit[left] = np.maximum(misfit[left], compared.misfit)
        tight[left] &= compared.tight
        sharp[left] &= compared.sharp
        for i, value, fits in zip(left.tolist(), compared.values, compared.loose, strict=True):
            last[i] = value
            if fits:
                fitting[i].append(value)
        left = left[compared.loose]
    if tight[left].any():  # then a loose fit is used only if it is simpler, and the tight one may be chance
        fewest = min(hypotheses[i].changes for i in left[tight[left]].tolist())
        sure = any(seen.sure for seen in observations)
        simpler = np.array([not sure and hypotheses[i].changes < fewest for i in left.tolist()])
        left = left[tight[left] | simpler]
    if left.size:

        def order(i: int) -> tuple[Any, ...]:
            h = hypotheses[i]
            # A number that bfloat16 holds is 8 times likelier from it than from float16, which holds it too.
            rough = () if sharp[i] else (h.convention.dtype != "bfloat16", misfit[i])
            return h.strangeness, not sharp[i], rough, h.place

        ranked = sorted(left.tolist(), key=order)
        return classes([Fit(hypotheses[i], tuple(fitting[i]), float(misfit[i])) for i in ranked]), []
    return [], _nearest([Fit(h, tuple(fitting[i]), float(misfit[i]), last[i]) for i, h in enumerate(hypotheses)])


def _nearest(fits: Sequence[Fit]) -> list[Fit]:
    """Three functions with nothing changed; of those that give the same the best known."""
    found: list[Fit] = []
    plain = [fit for fit in fits if not (fit.hypothesis.changes or fit.hypothesis.rarity)]
    for fit in sorted((fit for fit in plain if math.isfinite(fit.misfit)), key=lambda fit: fit.hypothesis.place):
        if not any(indistinct(fit.values, other.values) and _indistinct(fit.last, other.last) for other in found):
            found.append(fit)
    return sorted(found, key=lambda fit: fit.distance)[:3]


def by_chance(hypotheses: Sequence[Hypothesis], batch: Batch, seen: Observation) -> float:
    """How many of these fit a number near the observed one that has nothing to do with them."""
    x = abs(float(seen.values))
    if not (x and math.isfinite(x)):
        return 0.0
    values = np.unique(scalars(batch, [h.convention for h in hypotheses]))
    around = values[(values > x * (1 - _AROUND)) & (values < x * (1 + _AROUND))]
    apart = np.count_nonzero(np.diff(around) > INDISTINCT * x) + bool(around.size)
    return float(apart * seen.tight / (_AROUND * x))


def _compare_numbers(dtypes: Array, values: Array, seen: Observation) -> Comparison:
    """`dtypes`: in which the hypotheses compute."""
    x = float(seen.values)
    size = abs(x) if x and math.isfinite(x) else 1.0
    with np.errstate(all="ignore"):
        off = np.where(same(values, x), 0.0, np.abs(values - x))
        off[np.isnan(off)] = math.inf
        misfit = off / size
    tight, loose = off <= seen.tight, off <= seen.loose
    sharp = loose
    for dtype, tolerance in _FLOAT16_COMPUTED.items() if math.isfinite(x) else ():
        # A number computed in the dtype is representable in it, and carries the errors of the intermediate results.
        computed = dtypes == dtype
        exact = abs(float(rounded(np.float64(x), dtype)) - x)
        near = off <= tolerance * abs(x)
        tight = np.where(computed, near & (exact <= seen.tight), tight)
        loose = np.where(computed, near & (exact <= seen.loose), loose)
    return Comparison(values.tolist(), misfit, tight, loose, sharp)


def _compare_arrays(
    hypotheses: Sequence[Hypothesis], batch: Batch, seen: Observation, advance: Callable[[float], None]
) -> Comparison:
    """All hypotheses on a few rows; those that fit there on many rows."""
    values: list[Value] = [math.nan] * len(hypotheses)
    misfit = np.zeros(len(hypotheses))
    for elements in (_FEW, _MANY):
        memo: dict[Any, Array] = {}
        rows: dict[int, Array] = {}
        for i in np.flatnonzero(misfit <= seen.loose).tolist():
            axis = hypotheses[i].convention.axis
            if axis not in rows:
                rows[axis] = representative(batch.rows(axis).pred, elements)
            value, misfit[i] = _compare_array(hypotheses[i], batch, seen, rows[axis], memo)
            if elements == _MANY:
                values[i] = value
            else:
                advance(1 / len(hypotheses))
    return Comparison(values, misfit, misfit <= seen.tight, misfit <= seen.loose, np.ones(len(hypotheses), bool))


def _compare_array(
    h: Hypothesis, batch: Batch, seen: Observation, index: Any, memo: dict[Any, Array]
) -> tuple[Array, float]:
    """The values of some rows, and their largest relative difference from the observed ones."""
    c = h.convention
    key = sums_key(c)
    if key not in memo:
        memo[key] = arrays(batch, c, seen.quantity, index)
    value = memo[key] * scale(c, batch, seen.quantity)
    observed = as_rows(seen.values, batch, c.axis, seen.quantity)
    if len(observed) != len(batch.rows(c.axis).pred):
        return value, math.inf  # the observed values are of the samples along another axis
    expected = observed[index]
    if value.shape != expected.shape:
        return value, math.inf
    size = np.maximum(np.abs(expected), 0.1 * seen.largest)
    with np.errstate(invalid="ignore"):
        gaps = np.where(same(value, expected), 0.0, np.abs(value - expected) / size)
    return value, float(np.nan_to_num(gaps, nan=math.inf).max(initial=0.0))


def representative(pred: Array, elements: int) -> Array:
    """The indices of representative rows: half of them evenly spaced, half with the most extreme predictions."""
    spaced = max(elements // pred.shape[1], 8) // 2
    if len(pred) <= 2 * spaced:
        return np.arange(len(pred))
    highest, lowest = pred.max(1), pred.min(1)
    large = np.argsort(np.maximum(highest, -lowest), kind="stable")[-(spaced // 2) :]
    small = np.argsort(np.abs(pred).min(1), kind="stable")[: spaced // 2]
    return np.unique(np.concatenate([np.linspace(0, len(pred) - 1, spaced).astype(np.int64), large, small]))


def as_rows(x: Array, batch: Batch, axis: int, quantity: Quantity) -> Array:
    """An observed array as rows, in the layout of `evaluate.arrays`."""
    if quantity == "samples":
        return x.reshape(-1)
    return x[:, None] if x.ndim < 2 else np.moveaxis(x, axis, -1).reshape(-1, x.shape[axis])


def classes(fits: Sequence[Fit]) -> list[list[Fit]]:
    """Groups of fits that the data cannot tell apart, in the order of their first members."""
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
    """Whether float32 shows no difference between what two conventions give on each batch."""
    return len(a) == len(b) and all(_indistinct(x, y) for x, y in zip(a, b, strict=True))


def _indistinct(x: Value, y: Value) -> bool:
    if isinstance(x, float) and isinstance(y, float):  # a fast path: thousands of these are compared
        if math.isfinite(x) and math.isfinite(y):
            return abs(x - y) <= INDISTINCT * abs(x)
        return x == y or (math.isnan(x) and math.isnan(y))
    x, y = np.asarray(x), np.asarray(y)
    if x.shape != y.shape:
        return False
    finite = np.isfinite(x) & np.isfinite(y)
    largest = np.max(np.abs(x), initial=0.0, where=finite)
    with np.errstate(invalid="ignore"):
        near = finite & (np.abs(x - y) <= INDISTINCT * np.maximum(np.abs(x), 1e-3 * largest))
        return bool((same(x, y) | near).all())
