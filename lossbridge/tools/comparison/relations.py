"""The known relations between two arrays: equal, rounded, transposed, softmax of the other, scaled, reordered, …

`relation` tries them from the plainest on. Labels have relations of their own, in target_relations.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import permutations
from typing import Literal

import numpy as np

from lossbridge.frameworks import numpy_ops as b
from lossbridge.maths import elementary, softmax
from lossbridge.tools.comparison.quantities import Array, Stage
from lossbridge.tools.diagnosis.canonical import holds
from lossbridge.tools.diagnosis.evaluate import rounded, same

Verdict = Literal["equal", "rounding", "related", "different"]
_UNITS = 16  # in the last place of a half-precision dtype, by which results computed in it may differ
_EPSILONS = {"bfloat16": 2.0**-7, "float16": 2.0**-10}
_MOST_AXES = 5


@dataclass(frozen=True)
class Gap:
    """The largest difference of two arrays.

    Absolute; relative to the entry, or to a tenth of the largest one; in ULP of float32 there; and where it is.
    """

    absolute: float
    relative: float
    ulp: float
    index: tuple[int, ...]

    @staticmethod
    def of(x: Array, y: Array) -> Gap:
        """Of arrays of one shape. Infinities and NaN differ from all but their like."""
        x, y = x.astype(np.float64), y.astype(np.float64)
        with np.errstate(all="ignore"):
            off = np.where(same(x, y), 0.0, np.abs(x - y))
            off = np.where(np.isnan(off), math.inf, off)
            size = np.maximum(np.abs(x), np.abs(y))
            largest = float(np.max(size, initial=0.0, where=np.isfinite(size)))
            size = np.maximum(size, largest / 10)
            relative = np.where(off == 0, 0.0, off / size)
            worst = np.unravel_index(int(relative.argmax()), x.shape)
            unit = float(np.spacing(np.float32(size[worst])))
        units = float(off[worst]) / unit if unit > 0 else math.inf if off[worst] else 0.0
        return Gap(float(off.max()), float(relative[worst]), units, tuple(int(i) for i in worst))


@dataclass(frozen=True)
class Relation:
    """How the second array follows from the first. `gap`: what is left when the relation is applied."""

    verdict: Verdict
    words: str
    gap: Gap
    form_only: bool = False  # the same numbers in another form: a layout, one-hot rows, …
    activation: bool = False
    classes: tuple[int, ...] = ()  # the order of classes
    samples: tuple[int, ...] = ()  # the order of samples

    @property
    def agrees(self) -> bool:
        return self.verdict in ("equal", "rounding")

    @property
    def plainness(self) -> int:
        return 2 if self.agrees or self.form_only else 1 if self.verdict == "related" else 0


@dataclass(frozen=True)
class Pair:
    """Two arrays with the names of their runs. `counts`: what a factor may be, in words."""

    x: Array
    y: Array
    a: str
    b: str
    tolerance: float
    counts: Mapping[str, float] = field(default_factory=dict)

    @property
    def swapped(self) -> Pair:
        return replace(self, x=self.y, y=self.x, a=self.b, b=self.a)

    def related(self, words: str, x: Array, y: Array | None = None, **more: object) -> Relation | None:
        """The relation, if `x`, which was made by it, is the second array."""
        y = self.y if y is None else y
        if x.shape != y.shape:
            return None
        gap = Gap.of(x, y)
        return Relation("related", words, gap, **more) if gap.relative <= self.tolerance else None  # type: ignore[arg-type]


Finder = Callable[[Pair], Relation | None]


def relation(pair: Pair, stage: Stage) -> Relation:
    """The plainest relation of two arrays that both hold real numbers."""
    found = plain(pair)
    if found is not None:
        return found
    for arrangement in _arrangements(pair, stage):
        for finder in FINDERS[stage]:
            found = finder(arrangement.pair) or _reversed(finder, arrangement.pair)
            if found is not None:
                words = "; ".join(filter(None, (found.words, arrangement.words)))
                return replace(found, words=words)
    return different(pair)


def plain(pair: Pair) -> Relation | None:
    """Equal, equal within rounding, or equal in another layout."""
    if pair.x.shape == pair.y.shape:
        gap = Gap.of(pair.x, pair.y)
        if gap.absolute == 0:
            return Relation("equal", _dtypes(pair), gap, form_only=True)
        if gap.relative <= pair.tolerance:
            return Relation("rounding", _dtypes(pair), gap)
        for dtype, epsilon in _EPSILONS.items():
            if gap.relative <= _UNITS * epsilon and _representable(pair.x, dtype) and _representable(pair.y, dtype):
                return Relation("rounding", f"both hold numbers of {dtype}, and agree to {_UNITS} of its units", gap)
    for arrangement in _arrangements(pair, "inputs"):
        if arrangement.words:
            found = pair.related(arrangement.words, arrangement.pair.x, form_only=True)
            if found is not None:
                return found
    return None


def different(pair: Pair) -> Relation:
    if pair.x.shape != pair.y.shape:
        words = f"{pair.a} has shape {pair.x.shape}, {pair.b} {pair.y.shape}"
        return Relation("different", words, Gap(math.nan, math.nan, math.nan, ()))
    gap = Gap.of(pair.x, pair.y)
    place = f" at [{', '.join(map(str, gap.index))}]" if gap.index else ""
    values = f"{pair.a} has {pair.x[gap.index]:.7g}{place}, {pair.b} {pair.y[gap.index]:.7g}"
    with np.errstate(invalid="ignore"):
        count = int((~same(pair.x.astype(np.float64), pair.y.astype(np.float64))).sum())
    return Relation("different", f"{values}; {count} of {pair.x.size} entries differ", gap)


def _dtypes(pair: Pair) -> str:
    """What an integer dtype on one side says; frameworks differ by it, and some refuse it."""
    kinds = [x.dtype.kind if x.dtype.kind not in "ui" else "i" for x in (pair.x, pair.y)]
    return f"{pair.a} holds {pair.x.dtype}, {pair.b} {pair.y.dtype}" if kinds[0] != kinds[1] else ""


def _representable(x: Array, dtype: str) -> bool:
    """Whether the dtype holds every number, and there are fractions among them, so that this is no chance."""
    x = x[np.isfinite(x)].astype(np.float64)
    return bool((x != np.round(x)).sum() > 3 and (rounded(x, dtype) == x).all())


def _reversed(finder: Finder, pair: Pair) -> Relation | None:
    found = finder(pair.swapped)
    if found is None:
        return None
    return replace(found, classes=_inverse(found.classes), samples=_inverse(found.samples))


def _inverse(order: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(np.argsort(order).tolist()) if order else ()


# Layouts.


@dataclass(frozen=True)
class _Arrangement:
    pair: Pair
    words: str


def _arrangements(pair: Pair, stage: Stage) -> Iterator[_Arrangement]:
    """The first array in the second's shape: as it is, without axes of size 1, with its axes in another order."""
    x, y = pair.x, pair.y
    if x.shape == y.shape:
        yield _Arrangement(pair, "")
    elif x.squeeze().shape == y.squeeze().shape:
        words = f"{pair.a} has shape {x.shape}, {pair.b} {y.shape}"
        yield _Arrangement(replace(pair, x=x.reshape(y.shape)), words)
    if not 1 < x.ndim == y.ndim <= _MOST_AXES or sorted(x.shape) != sorted(y.shape):
        return
    for order in permutations(range(x.ndim)):
        if order == tuple(range(x.ndim)) or tuple(x.shape[i] for i in order) != y.shape:
            continue
        if stage == "predictions" and x.shape == y.shape:
            continue  # a square that is transposed: too rare to be tried with every other relation
        words = "transposed" if x.ndim == 2 else f"{pair.b} has {possessive(pair.a)} axes in the order {order}"
        yield _Arrangement(replace(pair, x=x.transpose(order)), words)


def possessive(name: str) -> str:
    return f"{name}'" if name.endswith("s") else f"{name}'s"


# Relations of values. Each is tried in both directions.


def in_half_precision(pair: Pair) -> Relation | None:
    """The second array was rounded to, or computed in, float16 or bfloat16."""
    x, y = pair.x, pair.y
    for dtype, epsilon in _EPSILONS.items():
        if x.dtype.kind != "f" or y.dtype.kind != "f" or not _representable(y, dtype):
            continue
        gap = Gap.of(x, y)
        near = rounded(x.astype(np.float64), dtype)
        if np.array_equal(near, y.astype(np.float64), equal_nan=True):
            words = f"{pair.b} holds {possessive(pair.a)} rounded to {dtype}; compute both in one dtype"
            return Relation("related", words, gap)
        if gap.relative <= _UNITS * epsilon:
            words = f"{pair.b} holds numbers of {dtype}, up to {gap.relative:.1g} off; compute both in one dtype"
            return Relation("related", words, gap)
    return None


def by_activation(pair: Pair) -> Relation | None:
    """The second array is the first's softmax, sigmoid, logarithm, …"""
    x, y = pair.x.astype(np.float64), pair.y.astype(np.float64)
    kind = holds(pair.x)
    with np.errstate(all="ignore"):
        if kind == "probabilities":
            return None  # tried from the other side
        if kind == "log-probabilities":
            words = f"{pair.a} holds log-probabilities, {pair.b} probabilities, without the logarithm"
            return pair.related(words, np.exp(x), y, activation=True)
        found = None
        if x.ndim > 1 and x.shape[-1] > 1 and kind == "logits":
            cost = softmax.neg_log_softmax(b, x, x.ndim - 1)[0]
            words = f"{pair.b} holds probabilities, the softmax of {possessive(pair.a)} logits"
            found = pair.related(words, np.exp(-cost), y, activation=True)
            words = f"{pair.b} holds log-probabilities, the log_softmax of {possessive(pair.a)} logits"
            found = found or pair.related(words, -cost, y, activation=True) or _softmax_of_scaled(pair, x, y)
        words = f"{pair.b} holds probabilities, the sigmoid of {possessive(pair.a)} logits"
        return found or pair.related(words, np.asarray(elementary.sigmoid(b, x)[0]), y, activation=True)


def _softmax_of_scaled(pair: Pair, x: Array, y: Array) -> Relation | None:
    """softmax(x / T)."""
    if holds(pair.y) != "probabilities" or (y <= 0).any() or x.shape != y.shape:
        return None
    x, log_p = x - x.mean(-1, keepdims=True), np.log(y)
    log_p = log_p - log_p.mean(-1, keepdims=True)
    factor = _least_squares(x, log_p)
    if not (math.isfinite(factor) and factor > 0) or abs(factor - 1) < 1e-4:
        return None
    cost = softmax.neg_log_softmax(b, x * factor, x.ndim - 1)[0]
    how = _factor_words(factor, {})
    return pair.related(
        f"{pair.b} holds the softmax of {possessive(pair.a)} logits {how}, a temperature", np.exp(-cost), y
    )


def by_factor(pair: Pair) -> Relation | None:
    """The second array is the first times a number."""
    x, y = pair.x.astype(np.float64), pair.y.astype(np.float64)
    factor = _least_squares(x, y)
    if x.size < 2 or not math.isfinite(factor) or factor == 0 or abs(factor) < 1:
        return None  # a factor below 1 is found in the other direction
    return pair.related(f"{pair.b} has {possessive(pair.a)} {_factor_words(factor, pair.counts)}", x * factor, y)


def _least_squares(x: Array, y: Array) -> float:
    finite = np.isfinite(x) & np.isfinite(y)
    square = float((x[finite] ** 2).sum())
    return float((x[finite] * y[finite]).sum()) / square if square else math.nan


def _factor_words(factor: float, counts: Mapping[str, float]) -> str:
    """× 16, ÷ 255, × 32 = the number of samples."""
    sign, size = ("−" if factor < 0 else ""), abs(factor)
    up = size >= 1
    size = size if up else 1 / size
    nearest = round(size)
    text = f"{nearest}" if nearest and abs(size / nearest - 1) < 1e-5 else f"{size:.6g}"
    named = factor_name(size, counts)
    return f"{'×' if up else '÷'} {sign}{text}" + (f" = {named}" if named else "")


def factor_name(size: float, counts: Mapping[str, float], tolerance: float = 1e-5) -> str:
    """Which count, or ratio of two counts, a factor above 1 is."""
    for words, count in counts.items():
        if count > 1 and abs(size / count - 1) <= tolerance:
            return words
    for words, count in counts.items():
        for other, divisor in counts.items():
            if count != divisor and divisor > 1 and abs(size * divisor / count - 1) <= tolerance:
                return f"{words} ÷ {other}"
    if size > 1.001 and abs(size * math.log(2) - 1) <= tolerance:
        return "1 / ln 2, bits for nats"
    if abs(size / math.log(10) - 1) <= tolerance:
        return "ln 10, nats for logarithms to base 10"
    return ""


def by_norm(pair: Pair) -> Relation | None:
    """A gradient that was clipped to a norm."""
    norm = float(np.sqrt((pair.y.astype(np.float64) ** 2).sum()))
    nearest = float(f"{norm:.2g}")
    found = by_factor(pair.swapped)  # clipping makes it smaller
    if found is None or "=" in found.words or not nearest or abs(norm / nearest - 1) > 1e-5:
        return None
    return replace(found, words=f"{pair.b} has {possessive(pair.a)} gradient, clipped to the norm {nearest:g}")


def by_affine_map(pair: Pair) -> Relation | None:
    """The second array is c · first + d, with one c and d for all, or one for each column."""
    x, y = pair.x.astype(np.float64), pair.y.astype(np.float64)
    if x.size < 4 or not (np.isfinite(x).all() and np.isfinite(y).all()):
        return None
    for axis in (None, 0):
        if axis == 0 and (x.ndim < 2 or x.shape[0] < 4):
            continue
        mean, other = x.mean(axis, keepdims=True), y.mean(axis, keepdims=True)
        square = ((x - mean) ** 2).sum(axis, keepdims=True)
        with np.errstate(all="ignore"):
            factor = np.where(square > 0, ((x - mean) * (y - other)).sum(axis, keepdims=True) / square, 0.0)
        mapped = factor * (x - mean) + other
        if axis is None:
            shift = float((other - factor * mean).squeeze())
            words = f"{pair.b} has {float(factor.squeeze()):.6g} times {possessive(pair.a)} {shift:+.6g}"
        else:
            words = f"each column of {pair.b} is scaled and shifted from {possessive(pair.a)}, as by a standardisation"
        found = pair.related(f"{words}; feed both the same", mapped, y)
        if found is not None and (axis is None or (factor != 0).any()):
            return found
    return None


def by_row_constants(pair: Pair) -> Relation | None:
    """Logits that differ by one number a row, which softmax removes."""
    x, y = pair.x.astype(np.float64), pair.y.astype(np.float64)
    if x.ndim < 2 or x.shape[-1] < 3 or holds(pair.x) != "logits":
        return None
    with np.errstate(invalid="ignore"):
        shift = (y - x).mean(-1, keepdims=True)
        return pair.related("they differ by a constant a row, which softmax does not see", x + shift, y, form_only=True)


def by_order_of_classes(pair: Pair) -> Relation | None:
    """The last axis, or that of channels, in another order."""
    for axis in (-1, 1) if pair.x.ndim > 2 else (-1,):
        if pair.x.ndim < 2 or pair.x.shape != pair.y.shape or pair.x.shape[axis] < 2:
            continue
        order = _order(np.moveaxis(pair.x, axis, 0), np.moveaxis(pair.y, axis, 0))
        if order is None:
            continue
        what = "classes" if axis == -1 else "channels"
        shown = f": {', '.join(map(str, order.tolist()))}" if order.size <= 12 else ""
        words = f"{pair.b} has {possessive(pair.a)} {what} in another order{shown}"
        classes = tuple(order.tolist()) if axis == -1 else ()
        found = pair.related(words, pair.x.take(order, axis), classes=classes)
        if found is not None:
            return found
    return None


def by_order_of_samples(pair: Pair) -> Relation | None:
    if pair.x.shape != pair.y.shape or pair.x.ndim < 1 or len(pair.x) < 3:
        return None
    order = _order(pair.x, pair.y)
    if order is None:
        return None
    words = f"{pair.b} has {possessive(pair.a)} samples in another order; feed both without shuffling"
    return pair.related(words, pair.x[order], samples=tuple(order.tolist()))


def _order(x: Array, y: Array) -> Array | None:
    """The order in which x's entries along axis 0 are y's, if there is one: both are sorted by a random projection."""
    x, y = (z.reshape(len(z), -1).astype(np.float64) for z in (x, y))
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return None
    direction = np.random.default_rng(0).normal(size=x.shape[1])
    order = np.empty(len(x), np.int64)
    order[np.argsort(y @ direction, kind="stable")] = np.argsort(x @ direction, kind="stable")
    return order


def by_complement(pair: Pair) -> Relation | None:
    """A mask, or outcomes, with 0 and 1 exchanged."""
    if not np.isin(pair.x, (0, 1)).all():
        return None
    words = f"{pair.b} has 1 where {pair.a} has 0: one of them marks what is left out; invert it"
    return pair.related(words, 1 - pair.x.astype(np.float64))


def by_other_outcome(pair: Pair) -> Relation | None:
    """Of one outcome a sample: 1 − p, or logits of the other sign."""
    if pair.x.ndim > 1 and pair.x.shape[-1] > 1:
        return None
    x = pair.x.astype(np.float64)
    turned = 1 - x if holds(pair.x) == "probabilities" else -x
    return pair.related(
        f"{pair.b} predicts the outcome that {pair.a} does not count as the event", turned, classes=(1, 0)
    )


FINDERS: Mapping[Stage, tuple[Finder, ...]] = {
    "inputs": (in_half_precision, by_factor, by_affine_map, by_order_of_samples, by_order_of_classes),
    "targets": (in_half_precision, by_order_of_classes, by_order_of_samples),
    "parameters": (in_half_precision, by_factor),
    "predictions": (
        in_half_precision,
        by_activation,
        by_row_constants,
        by_other_outcome,
        by_order_of_classes,
        by_order_of_samples,
        by_factor,
    ),
    "weights": (by_complement, by_factor, in_half_precision),
    "losses": (in_half_precision, by_factor, by_order_of_samples),
    "loss": (),
    "gradients": (in_half_precision, by_norm, by_factor),
}
