"""How often a diagnosis answers what people ask: `python -m lossbridge.tools.diagnosis.row_trial`.

Each row of `rows` is a number that plain NumPy gives, printed with a few digits, and how a true answer reads. Unlike
`trial`, which asks for the conventions that the search knows, this can fail because it knows too few. The public API is
asked after in the same way (`api_trial`), and numbers that no convention gives show how often one fits by chance.
"""

from __future__ import annotations

import re
import statistics
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import typer
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from lossbridge.tools.diagnosis import Diagnosis, Explanation, diagnose
from lossbridge.tools.diagnosis.api_trial import api_rows
from lossbridge.tools.diagnosis.reading import batch_of
from lossbridge.tools.diagnosis.rows import GROUPS, KINDS, Row
from lossbridge.tools.diagnosis.rows import numbers as n
from lossbridge.tools.diagnosis.rows.row import printed

_TIES, _FURTHER = 4, 3  # printed besides the first line: explanations of its class, and further classes


@dataclass(frozen=True)
class Outcome:
    """What was said of a row."""

    row: Row
    first: bool  # the first line is true, and so are its calls
    shown: bool  # something true is printed
    nothing: bool  # nothing fits, or the arrays were refused
    wrong: bool  # the first line, or one of its calls, is untrue
    seconds: float  # of processors, which a busy machine does not change
    said: str


def ask(row: Row) -> Outcome:
    """Diagnoses the number of the row."""
    started = time.process_time()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = diagnose(row.y_true, row.y_pred, row.text, **row.options)
    except (ValueError, TypeError) as error:
        return Outcome(row, False, False, True, False, time.process_time() - started, f"raises: {error}")
    seconds = time.process_time() - started
    if not row.fits:
        return _of_what_fits_nothing(row, found, seconds)
    if not found.fits:
        return Outcome(row, False, False, True, False, seconds, str(found))
    readings = _readings(row, found)
    lines = list(_printed(found))
    first, *others = ((_is_true(row, e, readings), _refuses(row, e.words)) for e in lines)
    calls = [f"{library} {text}" for library, text in found.classes[0].calls.items()]
    refused = first[1] or any(_refuses(row, call) for call in calls)
    called = not row.called or any(re.search(row.called, call) for call in calls)
    said = "\n".join([lines[0].words, *readings, *calls])
    lesser = bool(row.lesser) and re.search(row.lesser, lines[0].words, re.IGNORECASE) is not None
    return Outcome(
        row,
        first=first[0] and called and not refused,
        shown=first[0] or any(true and not refused for true, refused in others),
        nothing=False,
        wrong=refused or not (first[0] or lesser),
        seconds=seconds,
        said=said,
    )


def _of_what_fits_nothing(row: Row, found: Diagnosis, seconds: float) -> Outcome:
    """The truth may stand anywhere in what is printed."""
    said = str(found)
    true = _says(row, said) and not _refuses(row, said)
    return Outcome(row, true, true, not found.fits and not true, found.fits and not true, seconds, said)


def _printed(found: Diagnosis) -> Iterator[Explanation]:
    """The explanations that are printed, in this order."""
    yield from found.classes[0].explanations[: 1 + _TIES]
    for group in found.classes[1 : 1 + _FURTHER]:
        yield group.explanations[0]


def _readings(row: Row, found: Diagnosis) -> list[str]:
    """How the arrays were read, as the first line says; without the warnings that they cause with any number."""
    options = {name: x for name, x in row.options.items() if name != "more"}
    try:
        _, of_data = batch_of(row.y_true, row.y_pred, **options)
    except (ValueError, TypeError):
        of_data = []
    return [warning for warning in found.warnings if warning not in of_data or warning == found.reading]


def _is_true(row: Row, explanation: Explanation, readings: Sequence[str]) -> bool:
    return explanation.changes <= row.most and _says(row, "\n".join([explanation.words, *readings]))


def _says(row: Row, text: str) -> bool:
    return re.search(row.says, text, re.IGNORECASE | re.DOTALL) is not None


def _refuses(row: Row, text: str) -> bool:
    return bool(row.refused) and re.search(row.refused, text, re.IGNORECASE | re.MULTILINE) is not None


# Numbers from outside.


def chance_fits(count: int) -> dict[int, tuple[int, int]]:
    """By the digits printed: how many of so many numbers near the plain loss, which nothing should explain, fit."""
    rng = np.random.default_rng(0)
    batches = list(_ordinary_batches(min(count, 250)))
    fits = dict.fromkeys((3, 4, 5), 0)
    for i in track(range(count), "chance", console=Console(stderr=True)):
        y_true, y_pred, loss = batches[i % len(batches)]
        number = loss * 3 ** rng.uniform(-1, 1)
        for digits in sorted(fits, reverse=True):
            fits[digits] += diagnose(y_true, y_pred, printed(number, digits)).fits
    return {digits: (fitting, count) for digits, fitting in fits.items()}


def _ordinary_batches(count: int) -> Iterator[tuple[Any, Any, float]]:
    """Targets, predictions, and the plain loss; of five kinds in turn."""
    for seed in range(count):
        y, x = n.labels(1000 + seed, 32, 10)
        t, logits = n.outcomes(1000 + seed, 32)
        soft, p = n.soft(1000 + seed, 32, 10)[0], n.f32(n.softmax(x))
        yield (
            (y, x, n.ce(x, y).mean()),
            (y, p, n.nll(p, y).mean()),
            (n.one_hot(y, 10), p, n.nll(p, y).mean()),
            (soft, x, n.soft_ce(x, soft).mean()),
            (t, n.f32(n.sigmoid(logits)), n.bce_logits(t, logits).mean()),
        )[seed % 5]


# Tables.


def table(title: str, outcomes: Sequence[Outcome]) -> Table:
    found = Table("kind", title=title, box=box.MARKDOWN)
    for heading in ("rows", "first", "shown", "nothing", "wrong first", "median CPU s", "worst CPU s"):
        found.add_column(heading, justify="right", no_wrap=True)
    for kind, name in KINDS.items():
        group = [outcome for outcome in outcomes if outcome.row.kind == kind]
        if group:
            found.add_row(f"{kind} {name}", *_cells(group))
    found.add_row("all", *_cells(outcomes))
    found.add_row("all, of 100", "", *(f"{100 * share:.1f}" for share in shares(outcomes)), "", "")
    return found


def shares(outcomes: Sequence[Outcome]) -> tuple[float, float, float, float]:
    """Of the rows: true first, shown, nothing said, wrong first."""
    counts = _counts(outcomes)
    return tuple(count / len(outcomes) for count in counts)  # type: ignore[return-value]


def _counts(outcomes: Sequence[Outcome]) -> list[int]:
    return [sum(getattr(o, name) for o in outcomes) for name in ("first", "shown", "nothing", "wrong")]


def _cells(outcomes: Sequence[Outcome]) -> list[str]:
    seconds = [outcome.seconds for outcome in outcomes]
    times = (statistics.median(seconds), max(seconds))
    return [str(len(outcomes)), *map(str, _counts(outcomes)), *(f"{x:.2f}" for x in times)]


def _print_misses(console: Console, outcomes: Sequence[Outcome]) -> None:
    for o in outcomes:
        if not o.first:
            state = "wrong" if o.wrong else "nothing" if o.nothing else "shown" if o.shown else "no call"
            console.print(f"\n{o.row.kind} {o.row.name}, {o.row.text}: {state}", markup=False, style="bold")
            console.print(o.said, markup=False, soft_wrap=True)


def main(
    misses: Annotated[bool, typer.Option(help="List the rows that were not first, with what was said.")] = False,
    chance: Annotated[int, typer.Option(help="Also try so many numbers that nothing should explain.")] = 0,
    kind: Annotated[list[int] | None, typer.Option(help="Only rows of this kind; may be repeated.")] = None,
    api: Annotated[bool, typer.Option(help="Also the public losses with each of their options.")] = True,
) -> None:
    """How often `lossbridge.diagnose` answers what people ask."""
    console = Console(width=130)
    groups = dict(GROUPS)
    if api and not kind:
        groups["public API"] = tuple(api_rows())
    for title, rows in groups.items():
        chosen = [row for row in rows if not kind or row.kind in kind]
        if not chosen:
            continue
        outcomes = [ask(row) for row in track(chosen, title, console=Console(stderr=True))]
        console.print(table(title, outcomes))
        if misses:
            _print_misses(console, outcomes)
    if chance:
        for digits, (fitting, count) in chance_fits(chance).items():
            console.print(f"by chance, at {digits} digits: {fitting} of {count}")


if __name__ == "__main__":
    typer.run(main)
