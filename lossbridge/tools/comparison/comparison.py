"""`compare`: where two runs of one training step part first. Decides which difference is to blame, and formats it.

What belongs together is decided in quantities.py, how two arrays are related in relations.py and target_relations.py,
what a loss is in run_losses.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lossbridge.tools.comparison.quantities import Run, Shared, Stage, shared
from lossbridge.tools.comparison.relations import Pair, Relation, relation
from lossbridge.tools.comparison.run_losses import (
    RunLoss,
    calls_of,
    loss_relation,
    reductions_differ,
    remedy,
    run_loss,
    sentences,
)
from lossbridge.tools.comparison.target_relations import target_relation
from lossbridge.tools.diagnosis.diagnosis import table

_TOLERANCE = 1e-5
# What shows whether a difference in a stage matters.
_AFTER: dict[Stage, Stage | None] = {
    "inputs": "predictions",
    "parameters": "predictions",
    "targets": "loss",
    "predictions": "loss",
    "weights": "loss",
}
_ADVICE = {
    "inputs": "feed both runs the same batch, with the same preprocessing",
    "targets": "feed both runs the same batch",
    "parameters": "start both runs from the same parameters",
    "weights": "pass the same to both",
    "losses": "",
    "loss": "",
    "gradients": "compare the reduction, and what is detached or clipped before the step",
}


@dataclass(frozen=True)
class Row:
    """A quantity that both runs have, and how the second run's follows from the first's."""

    quantity: str
    stage: Stage
    relation: Relation
    square: bool = False  # a square matrix of parameters, whose layout its shape does not show
    aligned: bool = False  # the first run's samples were put in the second's order before

    @property
    def verdict(self) -> str:
        """In words."""
        found = self.relation
        in_another_form = self.stage not in ("losses", "loss")  # a loss has one: a factor makes it another
        texts = {
            "equal": "equal",
            "rounding": f"equal within rounding, {_ulp(found.gap.ulp)}",
            "related": "equal up to a known relation" if in_another_form else "different by a known relation",
            "different": "different"
            + (f" by up to {found.gap.absolute:.3g}" if math.isfinite(found.gap.absolute) else ""),
        }
        return texts[found.verdict]

    def __str__(self) -> str:
        return f"{self.verdict}: {self.relation.words}" if self.relation.words else self.verdict


@dataclass(frozen=True, repr=False)
class Comparison:
    """Where two runs part. Print it: the first line can be acted upon.

    `parts_at`: the quantity; empty where nothing parts. `rows`: what was compared, in the order of a training step.
    `losses`: what each side's loss is, where that was looked for.
    """

    first: str
    parts_at: str
    rows: tuple[Row, ...]
    losses: tuple[RunLoss, ...]
    notes: tuple[str, ...]
    runs: tuple[Run, Run]

    def __str__(self) -> str:
        width = max(len(row.quantity) for row in self.rows) if self.rows else 0
        lines = [self.first, *(f"  {row.quantity:<{width}}  {row}" for row in self.rows)]
        for side in self.losses:
            calls = calls_of(side)
            if calls or side.words not in self.first:
                lines += [side.sentence(), *table(calls)]
        return "\n".join([*lines, *self.notes])

    __repr__ = __str__


def compare(a: Any, b: Any, *, names: tuple[str, str] | None = None, tolerance: float = _TOLERANCE) -> Comparison:
    """Finds where two runs of one training step part first, in the order in which the step computes.

    Args:
        a, b: the arrays of each run by name, of any framework; or the name of an .npz, .csv or .parquet file with them:
            `inputs`, `input_…` or `x`: what the model is fed, of any shape, the samples along axis 0;
            `y_true`: labels (N,), or targets of y_pred's shape;
            `param_…` or `weight_…`: parameters, with the same names on both sides, or in the same order;
            `logits`, `y_pred`: (N, C), (N,) or (N, …, C);
            `sample_weight` (N,), `class_weight` (C,), `mask` (N,), of which 1 counts;
            `losses` (N,), in nats; `loss`, a number, exact to its digits where it is a text or a Python number;
            `grad_…`: gradients of one step.
            What only one side has is not compared.
        names: what to call the two runs; by default the files' names, or "a" and "b".
        tolerance: the relative difference, of an entry or of a tenth of the array's largest, that counts as rounding.

    Returns:
        A Comparison. Print it. `.parts_at` is the quantity at which they part, or empty; `.rows` holds all of them.

    Raises:
        ValueError: an array's name is unknown, the two have no array in common, an array is empty, or a file cannot be
            read. TypeError: an array does not hold real numbers.

    >>> logits = np.array([[2.0, 1.0, 0.1], [0.3, 2.5, 0.2]])
    >>> p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    >>> mine, ported = {"y_true": [0, 1], "y_pred": logits}, {"y_true": [[1, 0, 0], [0, 1, 0]], "y_pred": p}
    >>> print(compare(mine, ported))
    They part at y_pred: b holds probabilities, the softmax of a's logits.
      y_true  equal up to a known relation: a holds labels, b one-hot rows
      y_pred  equal up to a known relation: b holds probabilities, the softmax of a's logits

    Source: the relations of docs/compare.md; losses are explained by `diagnose`.
    """
    _check_tolerance(tolerance)
    called = _names(a, b, names)
    left, right = Run.of(a, called[0]), Run.of(b, called[1])
    pairs, notes = shared(left, right)
    losses = any("loss" in run.arrays or "losses" in run.arrays for run in (left, right))
    if not pairs and not losses:
        held = [f"{run.name} holds {', '.join(run.arrays)}" for run in (left, right)]
        raise ValueError(f"{held[0]} and {held[1]}, which have no name in common; give both y_true, y_pred, loss, …")
    rows = _judged(_rows(pairs, left, right, tolerance))
    sides = _losses(rows, left, right)
    place = _parting(rows, sides)
    first = _first_words(rows, place, sides)
    return Comparison(
        first, "" if place is None else rows[place].quantity, tuple(rows), sides, tuple(notes), (left, right)
    )


def _check_tolerance(x: Any) -> None:
    if isinstance(x, bool) or not isinstance(x, int | float | np.floating):
        raise TypeError(f"tolerance is {x!r}; pass one number")
    if not 0 <= x < 1:
        raise ValueError(f"tolerance is {x}; pass a number from 0 to below 1")


def _names(a: Any, b: Any, names: Any) -> tuple[str, str]:
    if names is not None:
        if len(names) != 2 or not all(isinstance(name, str) and name for name in names) or names[0] == names[1]:
            raise ValueError(f"names is {names!r}; pass two different names, as ('keras', 'torch')")
        return names[0], names[1]
    stems = [Path(x).stem if isinstance(x, str | Path) else name for x, name in ((a, "a"), (b, "b"))]
    if stems[0] == stems[1]:
        stems = [str(x) if isinstance(x, str | Path) else name for x, name in ((a, "a"), (b, "b"))]
    return (stems[0], stems[1]) if stems[0] != stems[1] else ("the first", "the second")


# What was compared.


def _rows(pairs: Sequence[Shared], a: Run, b: Run, tolerance: float) -> list[Row]:
    """Samples in another order are put in order for what follows, where it is in that order too."""
    rows: list[Row] = []
    order: tuple[int, ...] = ()
    counts = {**a.counts(), **b.counts()}
    for one in pairs:
        if one.stage == "loss":
            rows.append(Row(one.quantity, one.stage, loss_relation(a, b)))
            continue
        pair = Pair(one.x, one.y, a.name, b.name, tolerance, counts)
        found, aligned = _relation(pair, one.stage), False
        if order and one.stage not in ("parameters", "gradients") and one.x.shape[:1] == (len(order),):
            in_order = _relation(replace(pair, x=one.x[list(order)]), one.stage)
            aligned = in_order.plainness >= found.plainness
            found = in_order if aligned else found
        order = order or found.samples
        square = one.stage == "parameters" and _square(one.x)
        rows.append(Row(one.quantity, one.stage, found, square=square, aligned=aligned))
    return rows


def _relation(pair: Pair, stage: Stage) -> Relation:
    return target_relation(pair) if stage == "targets" else relation(pair, stage)


def _square(x: Any) -> bool:
    return x.ndim == 2 and x.shape[0] == x.shape[1] > 1 and not np.array_equal(x, x.T)


def _judged(rows: list[Row]) -> list[Row]:
    """With what several quantities say together: the same order of samples or classes in all, and square matrices."""
    per_sample = [row for row in rows if row.stage in ("inputs", "targets", "predictions")]
    reordered = [row for row in per_sample if row.relation.samples]
    together = len(reordered) == 1 < len(per_sample) and all(row.aligned for row in per_sample if row not in reordered)
    with_classes = [row for row in rows if row.stage in ("targets", "predictions")]
    renamed = len({row.stage for row in with_classes}) == 2 and len({row.relation.classes for row in with_classes}) == 1
    judged = []
    for row in _square_judged(rows):
        found = row.relation
        if (together and found.samples) or (renamed and found.classes):
            row = replace(row, relation=replace(found, form_only=True))
        judged.append(row)
    return judged


def _square_judged(rows: list[Row]) -> list[Row]:
    """A square matrix that is equal where the others are transposed, or transposed where the others are equal."""
    known = [row for row in rows if row.stage == "parameters" and row.relation.verdict != "different"]
    layouts = {
        "transposed" in row.relation.words for row in known if not row.square and len(row.relation.gap.index) == 2
    }
    if len(layouts) != 1:
        return rows
    transposed = layouts.pop()
    judged = []
    for row in rows:
        found = row.relation
        if row.square and transposed and found.agrees:
            words = "not transposed, as the other matrices are: transpose it"
            found = replace(found, verdict="related", words=words, form_only=False)
        elif row.square and not transposed and "transposed" in found.words:
            words = "transposed, and the other matrices are not: transpose it back"
            found = replace(found, words=words, form_only=False)
        judged.append(replace(row, relation=found))
    return judged


# Which of them is to blame.


def _losses(rows: Sequence[Row], a: Run, b: Run) -> tuple[RunLoss, ...]:
    """What each side's loss is: where they differ, or only one side has one."""
    compared = [row for row in rows if row.stage in ("losses", "loss")]
    if compared and all(row.relation.agrees for row in compared):
        return ()
    sides = [run for run in (a, b) if "loss" in run.arrays or "losses" in run.arrays]
    alike = any(row.stage == "losses" and row.relation.agrees for row in compared)  # then their reductions differ
    return tuple(run_loss(run, reduced=alike) for run in sides)


def _agree(rows: Sequence[Row], stage: Stage) -> bool | None:
    """Whether all quantities of a stage are the same but for their form; None where there is none."""
    stages = ("losses", "loss") if stage == "loss" else (stage,)
    found = [row.relation for row in rows if row.stage in stages]
    return all(r.agrees or r.form_only or (r.activation and stage == "predictions") for r in found) if found else None


def _parting(rows: Sequence[Row], losses: Sequence[RunLoss]) -> int | None:
    """The place of the first row that is to blame: not one that changes nothing in what is computed from it."""
    for place, row in enumerate(rows):
        found = row.relation
        if found.agrees or found.form_only:
            continue
        after = _AFTER.get(row.stage) if not found.samples else None
        if found.verdict == "related" and after is not None and _agree(rows, after):
            continue
        if found.activation and len(losses) == 2 and all(side.reads_right for side in losses):
            continue  # each side's loss takes its own predictions as what they are
        return place
    return None


# In words.


def _first_words(rows: Sequence[Row], place: int | None, losses: tuple[RunLoss, ...]) -> str:
    if place is None:
        return _nothing_parts(rows, losses)
    row = rows[place]
    words = row.relation.words
    if row.stage in ("losses", "loss"):
        words = _loss_words(rows, place, losses)
    elif row.relation.activation:
        words = "; ".join([words, *sentences(losses)])
    elif row.relation.verdict == "different":
        advice = _after_equal_models(rows) if row.stage == "predictions" else _ADVICE[row.stage]
        words = "; ".join(filter(None, (words, advice)))
    return f"They part at {row.quantity}: {words.rstrip('.?')}{'?' if words.endswith('?') else '.'}"


def _loss_words(rows: Sequence[Row], place: int, losses: tuple[RunLoss, ...]) -> str:
    """How the losses are reduced, or which conventions they follow, the stranger one first; and how it is mended."""
    words = rows[place].relation.words
    if len(losses) < 2:
        return words
    reductions = reductions_differ(*losses) if _agree(rows[:place], "loss") else ""
    if reductions:
        return f"{words}; {reductions}"
    sides = sorted(losses, key=lambda side: -math.inf if side.explanation is None else -side.explanation.changes)
    explained = all(side.explanation is not None for side in sides)
    numbers = [] if explained and rows[place].relation.verdict == "different" else [words]
    same_arrays = all(row.relation.agrees for row in rows if row.stage in ("targets", "predictions"))
    return "; ".join([*numbers, *sentences(sides), *(remedy(*sides) if same_arrays else [])])


def _after_equal_models(rows: Sequence[Row]) -> str:
    """What to look at where predictions differ."""
    stages: dict[str, Stage] = {"inputs": "inputs", "param_…": "parameters"}
    missing = [what for what, stage in stages.items() if _agree(rows, stage) is None]
    if missing:
        return f"add {' and '.join(missing)} to both, which shows whether they part before"
    squares = [row.quantity for row in rows if row.square]
    if squares:
        return (
            f"inputs and parameters agree; {', '.join(squares)} is square: Keras' kernels are (in, out), PyTorch's "
            "(out, in), so is one of the two to be transposed?"
        )
    return "inputs and parameters agree, so a layer differs: its activation, its ε, padding, dropout or training mode"


def _nothing_parts(rows: Sequence[Row], losses: tuple[RunLoss, ...]) -> str:
    if not rows:
        return f"Nothing was compared: {'; '.join(sentences(losses))}."
    related = [row.quantity for row in rows if row.relation.verdict == "related"]
    but = f" (up to a known relation: {', '.join(related)})" if related else ""
    worst = max(rows, key=lambda row: row.relation.gap.ulp if math.isfinite(row.relation.gap.ulp) else -1.0)
    gap = worst.relation.gap
    if gap.ulp < 0.01:
        what = f"all {len(rows)} quantities are" if len(rows) > 1 else f"{worst.quantity} is"
        return f"Nothing parts: {what} equal{but}."
    place = f"[{', '.join(map(str, gap.index))}]" if gap.index else ""
    return f"Nothing parts: the largest difference is {_ulp(gap.ulp)}, in {worst.quantity}{place}{but}."


def _ulp(x: float) -> str:
    return f"{x:.2g} ULP of float32" if x < 99.5 else f"{x:.0f} ULP of float32"


__all__ = ["Comparison", "Row", "compare"]
