"""The losses of two runs: whether they agree, how they were reduced, and which convention each is, by `diagnose`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from lossbridge.tools.comparison.quantities import Run
from lossbridge.tools.comparison.relations import Gap, Pair, Relation, by_factor, factor_name, possessive
from lossbridge.tools.diagnosis.canonical import holds
from lossbridge.tools.diagnosis.diagnosis import Diagnosis, Explanation, diagnose
from lossbridge.tools.diagnosis.reading import batch_of
from lossbridge.tools.diagnosis.search import Observation
from lossbridge.tools.diagnosis.wording import LIBRARIES

_READS = {"probabilities": ("none",), "logits": ("softmax", "sigmoid"), "log-probabilities": ("exp", "softmax")}
_NAMED_AFTER = {"keras": ("keras", "tensorflow"), "torch": ("torch",), "optax": ("jax", "optax", "flax")}


@dataclass(frozen=True)
class RunLoss:
    """What one side's loss is. `diagnosis` is None where nothing could be diagnosed; `problem` says why."""

    run: Run
    diagnosis: Diagnosis | None = None
    problem: str = ""
    reading: str = ""  # how the arrays were read, where not as they are
    explanation: Explanation | None = None
    reduction: str = ""  # of its own values a sample: "the mean of its losses"

    @cached_property
    def words(self) -> str:
        if self.explanation is not None:
            return "; ".join(filter(None, (self.explanation.words, self.reading)))
        if self.diagnosis is None:
            return self.problem
        return f"nothing that is known (nothing fits, of {self.diagnosis.tried} conventions)"

    @property
    def reads_right(self) -> bool:
        """Whether the convention takes y_pred as what it holds."""
        if self.explanation is None or self.diagnosis is None:
            return False
        kind = holds(self.diagnosis.batches[0].y_pred)
        return self.explanation.convention.activation in _READS[kind]

    def sentence(self) -> str:
        return f"{self.run.name} computes {self.words}"


def sentences(sides: Sequence[RunLoss]) -> list[str]:
    """What each side computes, and once where that is the same and nothing explains it."""
    if len(sides) == 2 and sides[0].explanation is None and sides[0].words == sides[1].words:
        return [f"{' and '.join(side.run.name for side in sides)} compute {sides[0].words}"]
    return [side.sentence() for side in sides]


def run_loss(run: Run, *, reduced: bool = False) -> RunLoss:
    """Diagnoses the values a sample, or, where there are none or `reduced` asks for it, the loss."""
    own = run.arrays
    pred = own.get("y_pred", own.get("logits"))
    which = "loss" if "losses" not in own or (reduced and "loss" in own) else "losses"
    observed = own.get(which)
    if observed is None or pred is None or "y_true" not in own:
        missing = [name for name in ("y_true", "y_pred", "loss") if name not in own]
        return RunLoss(run, problem=f"a loss that cannot be explained without {' and '.join(missing) or 'its arrays'}")
    weights = {name: own[name] for name in ("class_weight", "sample_weight", "mask") if name in own}
    quantity = "value" if which == "losses" else None
    try:
        found = diagnose(own["y_true"], pred, observed, quantity=quantity, **weights)
        plain, _ = batch_of(own["y_true"], pred, **weights)
    except (ValueError, TypeError) as error:
        return RunLoss(run, problem=f"a loss that cannot be explained ({error})")
    other = found.fits and found.batches[0].given != plain.given  # then the last warning says what was done
    reading = f"its {found.warnings[-1]}" if other and found.warnings else ""
    return RunLoss(run, found, reading=reading, explanation=_explanation(found, run), reduction=reduction(run))


def _libraries(name: str) -> list[str]:
    """The libraries that a run is named after."""
    return [library for library, names in _NAMED_AFTER.items() if any(one in name.lower() for one in names)]


def _explanation(found: Diagnosis, run: Run) -> Explanation | None:
    """Of those that this data cannot tell apart and that change as little, the first of the run's own library."""
    if not found.fits:
        return None
    first, *others = found.classes[0].explanations
    own = tuple(LIBRARIES[library] for library in _libraries(run.name))
    alike = [first, *(other for other in others if other.changes == first.changes)]
    return next((one for one in alike if own and one.words.startswith(own)), first)


def calls_of(side: RunLoss) -> dict[str, str]:
    """By library the calls that give a side's loss."""
    if side.diagnosis is None or not side.diagnosis.fits:
        return {}
    return side.diagnosis.classes[0].calls


def remedy(wrong: RunLoss, right: RunLoss) -> list[str]:
    """The call of the wrong side's library that gives the other's loss, if only the wrong side changes something."""
    if wrong.explanation is None or right.explanation is None or wrong.explanation.changes <= right.explanation.changes:
        return []
    calls = calls_of(right)
    return [
        f"{possessive(right.run.name)} loss is, for {wrong.run.name}, `{calls[library]}`"
        for library in _libraries(wrong.run.name)
        if library in calls
    ]


def reduction(run: Run) -> str:
    """How the loss follows from the run's own values a sample; empty where it is not known."""
    losses, loss = run.arrays.get("losses"), run.arrays.get("loss")
    if losses is None or loss is None:
        return ""
    seen = Observation.of(loss, "scalar", dtype="float32")
    for words, value in _reductions(losses.astype(np.float64), run):
        if abs(value - float(seen.values)) <= seen.loose + 1e-6 * abs(value):
            return words
    return ""


def _reductions(losses: Any, run: Run) -> Iterator[tuple[str, float]]:
    total = float(losses.sum())
    weight, mask = run.arrays.get("sample_weight"), run.arrays.get("mask")
    yield "the mean of its losses", total / losses.size
    yield "the sum of its losses", total
    for words, count in run.counts().items():
        yield f"the sum of its losses ÷ {count:.7g}, {words}", total / count
    if mask is not None and mask.shape == losses.shape and mask.any():
        yield "the mean of those losses that the mask counts", float(losses[mask != 0].mean())
    if weight is not None and weight.shape == losses.shape and weight.any():
        weighted = float((losses * weight).sum())
        yield "the mean of its losses times their weights", weighted / losses.size
        yield "the weighted sum of its losses ÷ the sum of the weights", weighted / float(weight.sum())


def loss_relation(a: Run, b: Run) -> Relation:
    """Of two numbers, of which each has the digits that it was printed with, or the precision of float32."""
    x, y = a.arrays["loss"], b.arrays["loss"]
    seen = [Observation.of(z, "scalar", dtype="float32") for z in (x, y)]
    values = [np.asarray(one.values, np.float64) for one in seen]
    gap = Gap.of(*values)
    if gap.absolute == 0:
        return Relation("equal", "", gap)
    if gap.absolute <= seen[0].loose + seen[1].loose:
        return Relation("rounding", "", gap)
    shown = f"{a.name} has {_shown(x)}, {b.name} {_shown(y)}"
    pair = Pair(np.repeat(values[0], 2), np.repeat(values[1], 2), a.name, b.name, 1e-5, {**a.counts(), **b.counts()})
    larger = pair if abs(values[1]) >= abs(values[0]) else pair.swapped
    size = abs(float(larger.y[0]) / float(larger.x[0])) if larger.x[0] else math.nan
    named = factor_name(size, pair.counts) if math.isfinite(size) else ""
    found = by_factor(larger) if named or (values[0] == -values[1]) or _power(size) else None
    if found is None:
        return Relation("different", f"{shown}, a ratio of {_ratio(size)}", gap)
    return Relation("related", f"{shown}: {found.words}", gap)


def _ratio(size: float) -> str:
    return f"{size:.6g}" if math.isfinite(size) else "∞"


def _power(size: float) -> bool:
    """A whole power of 2, as of scaled or accumulated losses."""
    if not math.isfinite(size) or size < 2 - 1e-5:
        return False
    exponent = round(math.log2(size))
    return abs(size / 2.0**exponent - 1) < 1e-5


def _shown(x: Any) -> str:
    return str(x) if isinstance(x, str | int) else f"{float(x):.9g}"


def reductions_differ(a: RunLoss, b: RunLoss) -> str:
    """Where the values a sample agree: how each is reduced."""
    if not (a.reduction and b.reduction) or a.reduction == b.reduction:
        return ""
    return f"{possessive(a.run.name)} is {a.reduction}, {possessive(b.run.name)} is {b.reduction}"
