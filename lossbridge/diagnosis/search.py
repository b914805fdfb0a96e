"""Which conventions give an observed number, and which of those the data cannot tell apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lossbridge.diagnosis.evaluate import Array, Batch, Quantity, arrays, rounded, scalars, scale, sides
from lossbridge.diagnosis.hypotheses import Hypothesis

# Two conventions whose numbers differ by less are one to the data: float32 would not show it.
INDISTINCT = 1e-7
_FLOAT32 = 2e-6  # what sums of float32 may be off, relatively
_FLOAT64 = 1e-9
_TRIAL_ROWS = 24  # arrays are compared here first


@dataclass(frozen=True)
class Observation:
    """A number, or an array of them, and how far it may be off. `loose` is tried where `tight` fits nothing."""

    values: Array  # float64
    quantity: Quantity
    tight: float  # absolute for a scalar, relative to the largest entry for an array
    loose: float

    @staticmethod
    def of(observed: Any, quantity: Quantity) -> Observation:
        """A scalar is known to its digits as written: 1.18 is anything that rounds to it."""
        if isinstance(observed, str) or np.ndim(observed) == 0:
            text = observed.strip() if isinstance(observed, str) else repr(np.asarray(observed).item())
            x = float(text)
            if not math.isfinite(x):
                return Observation(np.float64(x), quantity, 0.0, 0.0)
            single = not isinstance(observed, str) and x == float(np.float32(x)) and _digits(text) > 9
            if isinstance(observed, np.generic | np.ndarray) and observed.dtype.itemsize < 8:
                single = True
            if single:
                return Observation(np.float64(x), quantity, _FLOAT32 * abs(x), _FLOAT32 * abs(x))
            half = 0.5 * 10.0 ** _last_place(text)
            tight = half * (1 + 1e-9) + _FLOAT64 * abs(x)
            return Observation(np.float64(x), quantity, tight, half + _FLOAT32 * abs(x))
        values = np.asarray(observed)
        precise = values.dtype == np.float64 and not (values == values.astype(np.float32)).all()
        loose = {2: 4e-3}.get(values.dtype.itemsize, 1e-5)
        return Observation(values.astype(np.float64), quantity, _FLOAT64 if precise else loose, loose)

    def fits(self, value: float, half: str | None, *, loose: bool) -> bool:
        """Whether a scalar is that one. `half`: the dtype that it was computed in, if a half one."""
        x, allowed = float(self.values), self.loose if loose else self.tight
        if not math.isfinite(x) or not math.isfinite(value):
            return value == x or (math.isnan(value) and math.isnan(x))
        if half is not None:  # it has few digits, and the last of them were lost on the way
            exact = float(rounded(np.float64(x), half))
            return abs(exact - x) <= allowed and abs(value - x) <= (4e-3 if half == "float16" else 3e-2) * abs(x)
        return abs(value - x) <= allowed


def _digits(text: str) -> int:
    return len(text.split("e")[0].replace(".", "").lstrip("-0"))


def _last_place(text: str) -> int:
    mantissa, _, exponent = text.lower().partition("e")
    decimals = len(mantissa.partition(".")[2])
    if decimals == 1 and mantissa.endswith(".0"):
        decimals = 0
    if _digits(text) > 15:
        return -300  # a float64 in full
    return int(exponent or 0) - decimals


@dataclass(frozen=True)
class Fit:
    """A hypothesis that gives what was observed, and by how much of the tolerance it is off."""

    hypothesis: Hypothesis
    values: tuple[Array, ...]  # a batch each
    misfit: float


def search(
    hypotheses: Sequence[Hypothesis],
    batches: Sequence[Batch],
    observations: Sequence[Observation],
    advance: Callable[[float], None] = lambda share: None,
) -> tuple[list[list[Fit]], list[Fit]]:
    """Classes of fitting hypotheses, the simplest first; and, where nothing fits, those that are nearest."""
    found: dict[int, list[Array]] = {i: [] for i in range(len(hypotheses))}
    off: dict[int, list[float]] = {i: [] for i in range(len(hypotheses))}
    loosely: dict[int, bool] = dict.fromkeys(range(len(hypotheses)), False)
    missed: dict[int, float] = {}
    for batch, observation in zip(batches, observations, strict=True):
        candidates = [hypotheses[i] for i in found]
        judged = (_scalars if observation.quantity == "scalar" else _arrays)(
            candidates, batch, observation, lambda share: advance(share / len(batches))
        )
        for i, (value, misfit, tight, loose) in zip(list(found), judged, strict=True):
            if value is None or not loose:
                missed[i] = misfit
                del found[i]
            else:
                found[i].append(value)
                off[i].append(misfit)
                loosely[i] |= not tight
    if any(not loosely[i] for i in found):
        found = {i: values for i, values in found.items() if not loosely[i]}
    fits = [Fit(hypotheses[i], tuple(values), max(off[i])) for i, values in found.items()]
    fits.sort(key=lambda fit: (fit.hypothesis.changes, fit.hypothesis.place))
    nearest = sorted(missed, key=lambda i: missed[i])
    finite = [i for i in nearest if math.isfinite(missed[i])]
    return classes(fits), [Fit(hypotheses[i], (), missed[i]) for i in finite if hypotheses[i].changes < 2][:3]


Judged = tuple[Array | None, float, bool, bool]  # value, relative misfit, fits tightly, fits loosely


def _scalars(
    hypotheses: Sequence[Hypothesis], batch: Batch, seen: Observation, advance: Callable[[float], None]
) -> list[Judged]:
    values = scalars(batch, [h.convention for h in hypotheses], advance)
    judged: list[Judged] = []
    x = float(seen.values)
    for h, value in zip(hypotheses, values, strict=True):
        half = h.convention.dtype if h.convention.dtype in ("float16", "bfloat16") else None
        misfit = 0.0 if value == x else abs(value - x) / (abs(x) or 1.0)
        judged.append(
            (value, misfit, seen.fits(value, half, loose=False), seen.fits(value, half, loose=True)),
        )
    return judged


def _arrays(
    hypotheses: Sequence[Hypothesis], batch: Batch, seen: Observation, advance: Callable[[float], None]
) -> list[Judged]:
    """On a few rows first; those that fit there, on all of them."""
    judged: list[Judged] = []
    known: dict[Any, Array] = {}
    for h in hypotheses:
        judged.append(_array(h, batch, seen, slice(0, _TRIAL_ROWS), known))
        advance(1 / len(hypotheses))
    known.clear()
    for i, (value, *_, loose) in enumerate(judged):
        if value is not None and loose:
            judged[i] = _array(hypotheses[i], batch, seen, slice(None), known)
    return judged


def _array(h: Hypothesis, batch: Batch, seen: Observation, index: slice, known: dict[Any, Array]) -> Judged:
    from lossbridge.diagnosis.evaluate import sums_key

    c = h.convention
    key = sums_key(c)
    if key not in known:
        known[key] = arrays(batch, c, seen.quantity, index)
    value = known[key] * scale(c, batch, seen.quantity)
    expected = as_rows(seen.values, batch, c.axis, seen.quantity)[index]
    if value.shape != expected.shape:
        return None, math.inf, False, False
    largest = np.nanmax(np.abs(seen.values), initial=0.0, where=np.isfinite(seen.values)) or 1.0
    with np.errstate(invalid="ignore"):
        same = (value == expected) | (np.isnan(value) & np.isnan(expected))
        gaps = np.where(same, 0.0, np.abs(value - expected) / np.maximum(np.abs(expected), 0.1 * largest))
    gap = float(np.nan_to_num(gaps, nan=math.inf).max(initial=0.0))
    return value, gap, gap <= seen.tight, gap <= seen.loose


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


def indistinct(a: Sequence[Array], b: Sequence[Array]) -> bool:
    for x, y in zip(a, b, strict=True):
        with np.errstate(invalid="ignore"):
            if np.shape(x) != np.shape(y):
                return False
            largest = np.max(np.abs(x), initial=0.0, where=np.isfinite(x))
            gap = np.abs(np.subtract(x, y)) > INDISTINCT * np.maximum(np.abs(x), 1e-3 * largest)
            same = np.equal(x, y) | (np.isnan(x) & np.isnan(y))
            if np.any(~same & (gap | ~np.isfinite(x) | ~np.isfinite(y))):
                return False
    return True


__all__ = ["Fit", "Observation", "classes", "indistinct", "search", "sides"]
