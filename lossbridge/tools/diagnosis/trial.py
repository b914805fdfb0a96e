"""How often a diagnosis finds the true convention: `python -m lossbridge.tools.diagnosis.trial`.

Every hypothesis is evaluated, its number is given to the search, and the rank of the class that holds the hypothesis is
counted: once on the probes, with the exact number; once on an ordinary batch of 32 rows and 10 classes in float32, with
the number rounded to 5 digits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial

import numpy as np
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from lossbridge.tools.diagnosis.batch import Array, Batch
from lossbridge.tools.diagnosis.canonical import Setting
from lossbridge.tools.diagnosis.evaluate import scalars
from lossbridge.tools.diagnosis.hypotheses import Hypothesis, hypotheses
from lossbridge.tools.diagnosis.probes import probes
from lossbridge.tools.diagnosis.reading import batch_of
from lossbridge.tools.diagnosis.search import Fit, Observation, search

N, C = 32, 10


@dataclass(frozen=True)
class Score:
    """Counts of hypotheses on one kind of data."""

    kind: str
    tried: int
    probe_first: int  # on the probes: found in the first class
    probe_simplest: int  # and with as few changes as its first explanation
    ordinary: int  # finite on the ordinary batch
    ordinary_three: int  # of these: found in the first three classes


def ordinary_batches() -> Iterator[tuple[str, Batch]]:
    """Batches as users have them: a kind of targets with a kind of predictions."""
    rng = np.random.default_rng(0)
    logits = (2 * rng.normal(size=(N, C))).astype(np.float32)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    outcome_p = (1 / (1 + np.exp(-logits))).astype(np.float32)
    labels = rng.integers(0, C, N)
    soft = rng.dirichlet(np.ones(C), N).astype(np.float32)
    events = rng.integers(0, 2, (N, C)).astype(np.float32)
    weights = {"class_weight": rng.uniform(0.5, 2, C), "sample_weight": rng.uniform(0.5, 2, N), "ignore_class": -1}
    some_ignored = np.where(np.arange(N) % 8 == 0, -1, labels)
    kinds: dict[str, tuple[Array, Array, dict[str, object]]] = {
        "labels, probabilities": (labels, p, {}),
        "labels, logits": (labels, logits, {}),
        "labels, logits, weights, some ignored": (some_ignored, logits, weights),
        "one-hot, probabilities": (np.eye(C, dtype=np.float32)[labels], p, {}),
        "distributions, probabilities": (soft, p, {}),
        "distributions, logits": (soft, logits, {}),
        "distributions, log-probabilities": (soft, np.log(p), {}),
        "outcomes (N, C), probabilities": (events, outcome_p, {}),
        "outcomes (N,), probabilities": (events[:, 0], outcome_p[:, 0], {}),
        "outcomes (N,), logits": (events[:, 0], logits[:, 0], {}),
    }
    for kind, (y_true, y_pred, options) in kinds.items():
        yield kind, batch_of(y_true, y_pred, **options)[0]  # type: ignore[arg-type]


def score(kind: str, batch: Batch, *, every: int = 1, advance: Callable[[], None] = lambda: None) -> Score:
    """Tries one in `every` hypotheses, in no order: those that lie together in theirs are alike."""
    candidates = hypotheses(Setting.of(batch, "scalar"))
    conventions = [h.convention for h in candidates]
    separating = probes(batch)
    exact = [scalars(probe, conventions) for probe in separating]
    values = scalars(batch, conventions)
    tried = first = simplest = finite = three = 0
    for i in np.random.default_rng(0).permutation(len(candidates))[::every]:
        h = candidates[i]
        tried += 1
        observed = [Observation.of(numbers[i], "scalar") for numbers in exact]
        classes, _ = search(candidates, separating, observed, values=exact)
        if _rank(h, classes) == 0:
            first += 1
            simplest += classes[0][0].hypothesis.changes == h.changes
        if np.isfinite(values[i]):
            finite += 1
            rounded = Observation.of(f"{values[i]:.5g}", "scalar", dtype="float32")
            classes, _ = search(candidates, [batch], [rounded], values=[values])
            three += _rank(h, classes) < 3
        advance()
    return Score(kind, tried, first, simplest, finite, three)


def _rank(h: Hypothesis, classes: Sequence[Sequence[Fit]]) -> float:
    """The index of the class that holds `h`; infinite where none does."""
    return next((i for i, group in enumerate(classes) if any(fit.hypothesis is h for fit in group)), math.inf)


def main() -> None:
    table = Table("data", box=box.MARKDOWN)
    for heading in ("conventions", "probes: first class", "as simple as its first", "ordinary: first 3 classes"):
        table.add_column(heading, justify="right", no_wrap=True)
    scores = []
    with Progress(console=Console(stderr=True)) as progress:
        for kind, batch in ordinary_batches():
            bar = progress.add_task(kind, total=len(hypotheses(Setting.of(batch, "scalar"))))
            scores.append(score(kind, batch, advance=partial(progress.advance, bar)))
    total = Score("all", *(sum(getattr(s, f.name) for s in scores) for f in fields(Score)[1:]))
    for s in (*scores, total):
        fractions = (s.probe_first / s.tried, s.probe_simplest / s.tried, s.ordinary_three / s.ordinary)
        table.add_row(s.kind, str(s.tried), *(f"{math.floor(1000 * x) / 10} %" for x in fractions))
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
