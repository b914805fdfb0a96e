"""What a number says by itself of one thing that is in no list: a coefficient, a factor, a constant, the rows counted.

For the functions themselves, each with one thing unknown: the coefficient is solved for, and becomes a hypothesis where
it comes out round. How round a number must be depends on the digits that are given: see `_LARGEST_CHANCE`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from lossbridge.conventions import Convention
from lossbridge.tools.diagnosis.batch import Array, Batch
from lossbridge.tools.diagnosis.canonical import BINARY, DIVERGENCES, FOCAL, MIXTURES, Setting, canonical
from lossbridge.tools.diagnosis.evaluate import scalars
from lossbridge.tools.diagnosis.hypotheses import JENSEN_SHANNON, Hypothesis
from lossbridge.tools.diagnosis.search import MANY_DIGITS, Observation
from lossbridge.tools.diagnosis.weightings import FIRST_ROWS, LAST_ROWS, WEIGHTS_APART

# The chance that a number from anywhere has a root as round as one that is believed. Some ten roots are looked at.
_LARGEST_CHANCE = 5e-4
_USUAL = 1e-3  # the relative uncertainty with which a usual coefficient is believed
_OF_INVERSE = 0.2  # the share of that chance with which the inverse of a root is believed
_POINTS, _ROUNDS = 16, 8  # of the grid on which a root is bracketed, and of its refinement, at most
_NEAR = 1e-3  # of the tolerance: a root that gives the number as nearly is not refined further
_LARGE, _FEWER = 200_000, 2  # of a batch with so many elements half as many functions are tried, at half the points
_STEP = 1e-4  # relative, of the slope's difference quotient
_MOST_BASES = 8


@dataclass(frozen=True)
class Unknown:
    """A coefficient of a convention, between two bounds, both of one sign."""

    field: str
    low: float
    high: float
    usual: tuple[float, ...]  # believed with fewer digits
    also: Mapping[str, Any]  # what is changed with it
    also_of: Callable[[float], Mapping[str, Any]] = lambda x: {}
    digits: int = 3  # most that a round one has
    doubt: float = 1.0  # how much surer its value must be than that of others
    inverse: bool = False  # whether its inverse may be the round one, with two digits at most

    def of(self, own: Convention, x: float) -> Convention:
        changed: dict[str, Any] = {**self.also, **self.also_of(x), self.field: x}
        return replace(own, **changed)

    def grid(self, points: int) -> list[float]:
        """Logarithms of the coefficient, in which most losses are nearly linear."""
        return [float(x) for x in np.linspace(math.log(self.low), math.log(self.high), points)]


class _Root(NamedTuple):
    value: float
    uncertainty: float  # of the digits that were given

    @property
    def inverse(self) -> _Root:
        return _Root(1 / self.value, self.uncertainty / self.value**2)


def solved(
    known: Sequence[Hypothesis],
    batch: Batch,
    setting: Setting,
    seen: Observation,
    *,
    sure: bool = False,
    last: bool = False,
) -> list[Hypothesis]:
    """Hypotheses that give the observed number, besides the known ones.

    `sure`: more batches will be asked too. `last`: a constant is tried, which comes after everything else.
    """
    if setting.quantity != "scalar" or not math.isfinite(float(seen.values)) or not float(seen.values):
        return []
    bases = _bases(known, setting, few=not (sure or seen.has_many_digits))
    found: list[tuple[Hypothesis, Convention]] = []
    pairs: list[tuple[Hypothesis, Convention]] = []
    if last:
        found += _offsets(bases, batch, seen, sure)
    else:
        found += _coefficients(bases, batch, setting, seen, sure)
        found += _usual_values(bases, batch, seen, sure)
        found += _factors(bases, batch, seen)
    if not last and (seen.has_many_digits or sure):
        found += _rows(bases, batch, seen, sure)
        pairs += _pairs(bases, batch, setting, seen, sure)
    there = {h.convention for h in known}
    own = {id(h.preset): h.own for h in known}
    new: dict[Convention, Hypothesis] = {}
    for count, base, c in [*((1, *one) for one in found), *((2, *one) for one in pairs)]:
        here, start = canonical(c, setting), own[id(base.preset)]
        if here is not None and here not in there and here not in new:
            new[here] = replace(base, own=start, convention=here, changes=count + (base.own != start))
    return list(new.values())


def _bases(known: Sequence[Hypothesis], setting: Setting, *, few: bool) -> list[Hypothesis]:
    """The functions whose one thing is looked for: means, of each kind the best known, of likely costs first.

    `few`: for a number of few digits only those that the targets suggest.
    """
    found: dict[tuple[Any, ...], Hypothesis] = {}
    for h in known:
        c, of_hard = h.own, setting.hard and h.preset.peer.convention.cost in DIVERGENCES
        if h.changes or h.rarity or of_hard or c.undefined == "nan" or c.axis != -1:
            continue
        if c.divisor in ("one", "classes") or c.cost not in ("cross-entropy", "divergence", *BINARY, *FOCAL, *MIXTURES):
            continue
        key = c.cost, c.scale, c.activation, c.target_activation, c.alpha, c.divisor, c.sample_weight, c.class_weight
        found.setdefault(key, h)
    for h in list(found.values()):
        if h.own.cost == "divergence" and h.own.target_activation == "softmax":  # the student's from the teacher's
            found["swapped", h.own] = replace(h, own=replace(h.own, swapped=True))
    outcomes = setting.hard and not setting.labels and not setting.one_hot

    def unlikely(h: Hypothesis) -> tuple[bool, bool]:
        return (h.own.cost in BINARY) != outcomes, h.own.cost in FOCAL

    mixtures = [h for h in found.values() if h.own.cost in MIXTURES]
    every = sorted((h for h in found.values() if h.own.cost not in MIXTURES), key=unlikely)[:_MOST_BASES]
    return [h for h in every if not any(unlikely(h))] if few else [*every, *mixtures]


# Coefficients.


_TEMPERATURES = (0.5, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 20.0)
_SMOOTHINGS = (0.01, 0.02, 0.03, 0.05, 0.08, 0.1, 0.12, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)
_GAMMAS = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0)
_ALPHAS = (0.1, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9)
_POS_WEIGHTS = (0.5, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 20.0)
_BETAS = (0.1, 0.2, 0.25, 0.3, 0.7, 0.75, 0.8, 0.9)
_POWERS = tuple(10.0**-k for k in range(1, 21))


def _unknowns(c: Convention, setting: Setting) -> Iterator[Unknown]:
    logits = c.activation.startswith(("softmax", "sigmoid"))
    if c.cost in DIVERGENCES:
        if logits and c.target_activation == "softmax":
            yield Unknown("temperature", 0.1, 100, _TEMPERATURES, {}, lambda x: {"factor": x * x})
            yield Unknown("temperature", 0.1, 100, _TEMPERATURES, {})
        yield from _betas(c)
        return
    if c.cost in FOCAL:
        yield Unknown("gamma", 0.05, 20, _GAMMAS, {})
        if c.cost == "focal":
            yield Unknown("gamma", 0.05, 20, _GAMMAS, {"alpha": None})
        yield Unknown("alpha", 0.01, 0.999, _ALPHAS, {})
        yield Unknown("label_smoothing", 1e-3, 0.9, _SMOOTHINGS, {"smoothing_over": "K"})
        return
    if logits:
        yield Unknown("temperature", 0.05, 100, _TEMPERATURES, {}, inverse=c.cost == "cross-entropy")
        twice = f"{c.activation.split()[0]} twice"
        yield Unknown("temperature", 0.01, 100, (0.1, 0.5, 2.0), {"activation": twice}, doubt=0.2)
    yield Unknown("label_smoothing", 1e-3, 0.9, _SMOOTHINGS, {"smoothing_over": "K"})
    if c.cost in BINARY:
        yield Unknown("pos_weight", 0.01, 1000, _POS_WEIGHTS, {})
        if setting.classes > 2:
            yield Unknown("label_smoothing", 1e-3, 0.9, _SMOOTHINGS, {"smoothing_over": "C"})
    else:
        for over in ("K-1", "added"):
            yield Unknown("label_smoothing", 1e-3, 0.9, _SMOOTHINGS, {"smoothing_over": over}, doubt=0.3)
    if not logits:
        for clip in ("both", "added", "arguments"):
            yield Unknown("epsilon", 1e-20, 0.2, _POWERS, {"clip": clip}, digits=1)


def _betas(c: Convention) -> Iterator[Unknown]:
    """Of a Jensen–Shannon divergence; and in place of Kullback's, where no function here computes the other."""
    unknown = Unknown("beta", 0.01, 0.99, _BETAS, {}, digits=2, doubt=0.3)
    of_logits = (c.activation, c.target_activation, c.divisor) == ("softmax", "softmax", "samples")
    if c.cost == "jensen-shannon":
        yield unknown
        if c.scale == "mixture":
            yield replace(unknown, also={"crossed": True})
    elif c.cost == "divergence" and not c.swapped and not of_logits:
        for scale in ("mixture", "divergence"):
            yield replace(unknown, also={**JENSEN_SHANNON, "scale": scale})


class _Curve(NamedTuple):
    """What a base gives for an unknown coefficient."""

    base: Hypothesis
    unknown: Unknown

    def at(self, logarithm: float) -> Convention:
        return self.unknown.of(self.base.own, math.exp(logarithm))


class _Bracket(NamedTuple):
    curve: _Curve
    ends: tuple[float, float]  # logarithms
    misfits: tuple[float, float]  # of different sign


def _likelier(bases: Sequence[Hypothesis], batch: Batch) -> Sequence[Hypothesis]:
    """Fewer of them for a large batch."""
    return bases[: _MOST_BASES // _FEWER] if _is_large(batch) else bases


def _is_large(batch: Batch) -> bool:
    return batch.y_pred.size > _LARGE


def _coefficients(
    bases: Sequence[Hypothesis], batch: Batch, setting: Setting, seen: Observation, sure: bool
) -> Iterator[tuple[Hypothesis, Convention]]:
    curves = [_Curve(base, unknown) for base in _likelier(bases, batch) for unknown in _unknowns(base.own, setting)]
    if _is_large(batch):  # β alone, of the one divergence that has it
        curves += [_Curve(base, x) for base in bases if base.own.cost == "jensen-shannon" for x in _betas(base.own)]
    for curve, root in _roots(curves, batch, seen):
        chance = 1.0 if sure else _LARGEST_CHANCE * curve.unknown.doubt
        value = rounded(root, curve.unknown.usual, chance, curve.unknown.digits)
        if value is None and curve.unknown.inverse:
            scale = rounded(root.inverse, (), chance * _OF_INVERSE, 2)
            value = None if scale is None else 1 / scale
        if value is not None:
            yield curve.base, curve.unknown.of(curve.base.own, value)


# Of logits, at these values alone: to solve for others would find some by chance. Such temperatures are of cosines.
_USUAL_VALUES: Mapping[str, tuple[float, ...]] = {
    "z_loss": (1e-5, 5e-5, 1e-4, 5e-4, 1e-3, 1e-2),
    "softcap": (5.0, 10.0, 15.0, 20.0, 30.0, 50.0, 100.0),
    "temperature": (1 / 30, 1 / 64, 1 / 100),
}
_CLOSER = 5  # times likelier lie numbers of other causes as near to the plain loss as these
_APART = 20  # tolerances between what such a value gives and the plain loss, whose last digits may be wrong


def _is_softmax(c: Convention) -> bool:
    return (c.cost, c.activation) == ("cross-entropy", "softmax")


def _usual_values(
    bases: Sequence[Hypothesis], batch: Batch, seen: Observation, sure: bool
) -> Iterator[tuple[Hypothesis, Convention]]:
    target, loose = float(seen.values), seen.tight / abs(float(seen.values))
    tried: list[tuple[Hypothesis, Convention]] = []
    for base in _likelier(bases, batch):
        if _is_softmax(base.own):
            for field, usual in _USUAL_VALUES.items():
                if sure or 2 * len(usual) * loose * _CLOSER <= _LARGEST_CHANCE:
                    tried += [(base, replace(base.own, **{field: x})) for x in usual]  # type: ignore[arg-type]
    plain, values = scalars(batch, [*(base.own for base, _ in tried), *(c for _, c in tried)]).reshape(2, -1)
    for (base, c), without, value in zip(tried, plain, values, strict=True):
        if abs(value - target) <= seen.tight and (sure or abs(value - without) >= _APART * seen.tight):
            yield base, c


# Two that are set together, of values that are usual in both. So many pairs ask for digits: see `_PAIRS_CHANCE`.
_PAIRED = (
    ("temperature", (2.0, 3.0, 4.0, 5.0, 1.5, 0.5), "label_smoothing", (0.1, 0.05, 0.2, 0.01)),
    ("pos_weight", (2.0, 3.0, 4.0, 5.0, 10.0, 0.5), "label_smoothing", (0.1, 0.05, 0.2, 0.01)),
    ("gamma", (1.0, 1.5, 2.0, 3.0, 5.0), "alpha", (0.25, 0.5, 0.75, 0.6, 0.9)),
    ("softcap", (15.0, 20.0, 30.0, 50.0), "z_loss", (1e-4, 1e-3)),
    ("label_smoothing", (0.1, 0.05), "z_loss", (1e-4, 1e-3)),
)
_PAIRS_CHANCE = 1e-4  # that a number from anywhere fits one of them: none does at five digits


def _pairs(
    bases: Sequence[Hypothesis], batch: Batch, setting: Setting, seen: Observation, sure: bool
) -> Iterator[tuple[Hypothesis, Convention]]:
    loose = seen.tight / abs(float(seen.values))
    tried: list[tuple[Hypothesis, Convention]] = []
    for base in _likelier(bases, batch):
        fields = {unknown.field for unknown in _unknowns(base.own, setting)}
        fields |= set(_USUAL_VALUES) if _is_softmax(base.own) else set()
        for first, xs, second, ys in _PAIRED:
            chance = 2 * len(xs) * len(ys) * loose * (_CLOSER if second == "z_loss" else 1)
            if {first, second} <= fields and (sure or chance <= _PAIRS_CHANCE):
                tried += [(base, replace(base.own, **{first: x, second: y})) for x in xs for y in ys]  # type: ignore[arg-type]
    for (base, c), value in zip(tried, scalars(batch, [c for _, c in tried]), strict=True):
        if abs(value - float(seen.values)) <= seen.tight:
            yield base, c


def _roots(curves: Sequence[_Curve], batch: Batch, seen: Observation) -> Iterator[tuple[_Curve, _Root]]:
    """Where the curves take the observed number: bracketed on a grid, refined by the method of false position."""
    target = float(seen.values)
    points = _POINTS // _FEWER if _is_large(batch) else _POINTS
    grids = [curve.unknown.grid(points) for curve in curves]
    every = [curve.at(x) for curve, grid in zip(curves, grids, strict=True) for x in grid]
    values = scalars(batch, every) - target
    brackets: list[_Bracket] = []
    touching: list[tuple[_Curve, float]] = []
    for i, (curve, grid) in enumerate(zip(curves, grids, strict=True)):
        misfits = values[i * points : (i + 1) * points]
        touching += [(curve, x) for x in _usual_at_extrema(curve.unknown, grid, misfits)]
        for k in range(points - 1):
            if np.isfinite(misfits[k : k + 2]).all() and misfits[k] * misfits[k + 1] < 0:
                brackets.append(_Bracket(curve, (grid[k], grid[k + 1]), (float(misfits[k]), float(misfits[k + 1]))))
    for _ in range(_ROUNDS):
        brackets = _narrowed(brackets, batch, target, _NEAR * seen.tight)
    yield from _touched(touching, batch, seen)
    found = [(curve, low - below * (high - low) / (above - below)) for curve, (low, high), (below, above) in brackets]
    beside = [curve.at(x + step) for curve, x in found for step in (0, _STEP)]
    slopes = np.abs(np.diff(scalars(batch, beside).reshape(-1, 2))[:, 0]) / _STEP if beside else np.zeros(0)
    for (curve, value), slope in zip(found, slopes, strict=True):
        uncertainty = math.exp(value) * seen.tight / float(slope) if slope else math.inf
        yield curve, _Root(math.exp(value), uncertainty)


def _touched(
    touching: Sequence[tuple[_Curve, float]], batch: Batch, seen: Observation
) -> Iterator[tuple[_Curve, _Root]]:
    """Usual values that give the number where no slope says how well it tells them from others."""
    values = scalars(batch, [curve.at(x) for curve, x in touching]) if touching else ()
    for (curve, x), value in zip(touching, values, strict=True):
        if abs(value - float(seen.values)) <= seen.tight:
            # So that what is believed is as rarely chance as a usual value of `_usual_values`.
            chance = 2 * len(curve.unknown.usual) * seen.tight / abs(float(seen.values))
            yield curve, _Root(math.exp(x), math.exp(x) * chance * _USUAL / _LARGEST_CHANCE)


def _usual_at_extrema(unknown: Unknown, grid: Sequence[float], misfits: Array) -> Iterator[float]:
    """Logarithms of usual values near an extremum, where a curve takes a number twice between two points of the grid.

    Such as T² KL of logits divided by T, which is largest at a T of about 2.
    """
    near = [
        k
        for k in range(1, len(grid) - 1)
        if (misfits[k - 1 : k + 2] > 0).all() or (misfits[k - 1 : k + 2] < 0).all()
        if abs(misfits[k]) <= abs(misfits[k - 1 : k + 2]).min()
    ]
    for x in map(math.log, unknown.usual):
        if any(grid[k - 1] < x < grid[k + 1] for k in near):
            yield x


def _narrowed(brackets: Sequence[_Bracket], batch: Batch, target: float, near_enough: float) -> list[_Bracket]:
    """Each cut twice: where the chord crosses, and a little beyond, so that both ends draw near."""
    found = list(brackets)
    wide = [i for i, bracket in enumerate(brackets) if min(map(abs, bracket.misfits)) > near_enough]
    if not wide:
        return found
    inner: list[tuple[float, float]] = []
    for _, (low, high), (below, above) in (brackets[i] for i in wide):
        crossing = low - below * (high - low) / (above - below)
        beside = 0.02 * (high - low)
        inner.append((max(low, crossing - beside), min(high, crossing + beside)))
    conventions = [brackets[i].curve.at(x) for i, pair in zip(wide, inner, strict=True) for x in pair]
    values = scalars(batch, conventions) - target
    for k, (i, pair) in enumerate(zip(wide, inner, strict=True)):
        bracket = brackets[i]
        points = [bracket.ends[0], *pair, bracket.ends[1]]
        misfits = [bracket.misfits[0], *map(float, values[2 * k : 2 * k + 2]), bracket.misfits[1]]
        for j in range(3):
            if misfits[j] * misfits[j + 1] < 0:
                found[i] = _Bracket(bracket.curve, (points[j], points[j + 1]), (misfits[j], misfits[j + 1]))
                break
    return found


def rounded(root: _Root, usual: Sequence[float], largest_chance: float, most_digits: int = 3) -> float | None:
    """The round number that the root is within its uncertainty; None where it is none, or where it may be chance.

    The chance is the share of numbers that lie as near to one as round.
    """
    value, uncertainty = root
    if not (0 < value < math.inf and uncertainty < math.inf):
        return None
    for x in usual:
        if abs(value - x) <= uncertainty <= _USUAL * x * min(largest_chance / _LARGEST_CHANCE, 1.0):
            return x
    exponent = math.floor(math.log10(value))
    for digits in range(1, most_digits + 1):
        spacing = 10.0 ** (exponent - digits + 1)
        nearest = float(f"{value:.{digits - 1}e}")
        if abs(value - nearest) <= uncertainty:
            return nearest if 2 * uncertainty / spacing <= largest_chance else None
    return None


# A factor, a constant, and the rows that count.

MULTIPLIERS = (*range(2, 17), 25, 36, 49, 64, 81, 100, *(2**k for k in range(5, 17)), 1000)


def counts(batch: Batch) -> dict[float, str]:
    """What a sum may be divided by, besides the number of samples, elements and classes: in words."""
    rows, shape = batch.rows(-1), batch.y_pred.shape
    n, kept, classes = len(rows.valid), int(rows.valid.sum()), rows.pred.shape[1]
    found: dict[float, str] = {}

    def add(count: float, words: str) -> None:
        found[count] = f"{found[count]}, or {words}" if count in found else words

    positives, hard = float(rows.target[rows.valid].sum()), np.isin(rows.target, (0, 1)).all()
    if hard and not batch.labels and (classes == 1 or (rows.target.sum(1) != 1).any()):
        add(positives, "the number of positives")
        add(kept * classes - positives, "the number of negatives")
    add(kept - 1.0, "the number of samples less one, N − 1")
    add(kept * (kept - 1.0), "N (N − 1)")
    add(float(kept * kept), "the square of the number of samples, N²")
    add(kept * (classes - 1.0), "N (C − 1)")
    add(kept + 1.0, "the number of samples and one, N + 1")
    for axis in range(len(shape) - 1) if len(shape) > 2 else ():
        add(float(shape[axis]), f"the size of axis {axis}")
        add(float(n // shape[axis]), f"the number of samples without axis {axis}")
        add(float(shape[axis] * classes), f"the size of axis {axis} times C")
    if batch.labels:
        present = np.unique(batch.y_true.reshape(-1)[rows.valid])
        add(float(len(present)), "the number of classes that occur")
    known = {0.0, 1.0, float(n), float(kept), float(classes), float(kept * classes)}
    return {count: words for count, words in found.items() if count not in known and count > 0}


def _factors(bases: Sequence[Hypothesis], batch: Batch, seen: Observation) -> Iterator[tuple[Hypothesis, Convention]]:
    target, loose = float(seen.values), seen.tight / abs(float(seen.values))
    known = counts(batch)
    summed = [replace(base.own, divisor="one") for base in bases]
    plain, sums = scalars(batch, [*(base.own for base in bases), *summed]).reshape(2, -1)
    for base, mean, total in zip(bases, plain, sums, strict=True):
        if not (math.isfinite(mean) and mean):
            continue
        for count in known:
            if abs(target * count / total - 1) <= loose:
                yield base, replace(base.own, divisor="one", factor=1 / count)
        if abs(target / (2 * total) - 1) <= loose:
            yield base, replace(base.own, divisor="one", factor=2.0)
        for k in MULTIPLIERS:
            for factor in (k, 1 / k, -k, -1 / k):
                precise = k <= 64 or loose < MANY_DIGITS
                if precise and abs(target / (mean * factor) - 1) <= loose:
                    yield base, replace(base.own, factor=float(factor))
        # A normalizer: the tokens of the whole batch, of all processes. Of outcomes it divides means over the classes.
        for classes in {1, batch.classes if base.own.cost in BINARY else 1}:
            whole = round(float(total) / classes / target)
            near = whole > 1 and abs(total / (target * whole * classes) - 1) <= loose
            if near and whole * classes not in known and 2 * whole * loose <= _LARGEST_CHANCE:
                yield base, replace(base.own, divisor="one", factor=1 / (whole * classes))
        ratio = abs(target / mean)  # a weight of the whole
        scalar = rounded(_Root(ratio, ratio * loose), (), _LARGEST_CHANCE, 2) if base.own.divisor != "weights" else None
        if scalar is not None and 0.01 <= scalar < 2:
            yield base, replace(base.own, factor=scalar)
    yield from _of_positives(bases, batch, target, loose)


def _of_positives(
    bases: Sequence[Hypothesis], batch: Batch, target: float, loose: float
) -> Iterator[tuple[Hypothesis, Convention]]:
    """−t log p alone, over the number of positives, or −(1 − t) log(1 − p) over that of negatives."""
    rows = batch.rows(-1)
    positives = float(rows.target[rows.valid].sum())
    negatives = float(rows.valid.sum() * rows.target.shape[1] - positives)
    for base in bases:
        if base.own.cost == "binary" and positives and negatives and not batch.labels:
            of_positives = replace(base.own, cost="cross-entropy", divisor="one", factor=1 / positives)
            of_negatives = replace(base.own, pos_weight=0.0, divisor="one", factor=1 / negatives)
            for c, value in zip(
                (of_positives, of_negatives), scalars(batch, [of_positives, of_negatives]), strict=True
            ):
                if value and abs(target / value - 1) <= loose:
                    yield base, c


def _offsets(
    bases: Sequence[Hypothesis], batch: Batch, seen: Observation, sure: bool
) -> Iterator[tuple[Hypothesis, Convention]]:
    """A constant added. It fits every number, so that it comes last and must be very round."""
    target = float(seen.values)
    for base, mean in zip(bases, scalars(batch, [base.own for base in bases]), strict=True):
        if not math.isfinite(mean) or base.own.cost in FOCAL or base.own.divisor == "weights":
            continue
        difference = target - float(mean)
        if 0 < abs(difference) <= 10 * abs(mean):
            value = rounded(_Root(abs(difference), seen.tight), (), 1.0 if sure else _LARGEST_CHANCE)
            if value is not None:
                yield base, replace(base.own, offset=math.copysign(value, difference))


def _rows(
    bases: Sequence[Hypothesis], batch: Batch, seen: Observation, sure: bool
) -> Iterator[tuple[Hypothesis, Convention]]:
    plain = [base for base in bases if not (base.own.sample_weight or base.own.class_weight or base.own.cost in FOCAL)]
    ends = sure or seen.has_more_digits
    names = [name for name in batch.weightings if ends or not name.startswith((FIRST_ROWS, LAST_ROWS))]
    if batch.class_weight is not None:  # which then are those that were meant
        names = [name for name in names if "class" not in name or "alone" in name or "left out" in name]
    tried = [(base, replace(base.own, rows=name)) for base in plain[:2] for name in names if name != WEIGHTS_APART]
    values: Array = scalars(batch, [c for _, c in tried])
    for (base, c), value in zip(tried, values, strict=True):
        if abs(value - float(seen.values)) <= seen.tight:
            yield base, c
