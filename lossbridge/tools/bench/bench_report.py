"""The bench command's tables, JSON file and HTML page; also reads the JSON file back. Measures nothing.

A table is made once, as rows of text, and then printed by rich or written as HTML.
"""

from __future__ import annotations

import html
import json
import math
import os
import platform
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table as RichTable
from rich.text import Text

from lossbridge.tools.bench import plots, targets
from lossbridge.tools.bench.cells import IMPORT, Cell
from lossbridge.tools.bench.contenders import OURS
from lossbridge.tools.bench.results import Outcome, Ratio, Run, Spread, bandwidth, limit_ms, ratios, slopes, spreads
from lossbridge.tools.processes import BackendRun
from lossbridge.tools.result_files import facts, page, svg, write_results

FORMAT = 1  # of the JSON file
MIB = 2**20


@dataclass(frozen=True)
class Table:
    """Rows of text; a row with a single entry is a heading. `good`: whether each row meets its limit, or None where it
    has none."""

    title: str
    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    good: Sequence[bool | None]
    legend: str = ""

    def shown(self) -> RichTable:
        table = RichTable(
            title=self.title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
        )
        for i, name in enumerate(self.head):
            table.add_column(name, no_wrap=0 < i < len(self.head) - 1)
        for row, good in zip(self.rows, self.good, strict=True):
            style = "bold" if len(row) == 1 else "red" if good is False else ""
            table.add_row(*(Text(entry) for entry in row), style=style)
        return table

    def html(self) -> str:
        head = "".join(f"<th>{html.escape(name)}</th>" for name in self.head)
        body = ""
        for row, good in zip(self.rows, self.good, strict=True):
            css = ' class="wrong"' if good is False else ""
            first, *rest = (html.escape(entry) for entry in row)
            cells = "".join(f"<td{css}>{entry}</td>" for entry in rest)
            span = f' colspan="{len(self.head)}"' if not rest else ""
            body += f"<tr><th{span}>{first}</th>{cells}</tr>\n"
        legend = f'<p class="legend">{html.escape(self.legend)}</p>\n' if self.legend else ""
        return f"<h2>{html.escape(self.title)}</h2>\n<table><tr>{head}</tr>\n{body}</table>\n{legend}"


def _number(x: float | None, form: str = ".2f") -> str:
    return "–" if x is None else "∞" if math.isinf(x) else format(x, form)


def _ms(x: float | None) -> str:
    return _number(x, ".3f" if x is not None and x < 1 else ".1f" if x is not None and x < 100 else ".0f")


def _short(cell: Cell) -> str:
    """A cell's name, short enough for a column in a terminal."""
    if cell.form == IMPORT:
        return IMPORT
    dtype = "" if cell.dtype == "float32" else f" {cell.dtype}"
    direction = "" if cell.backward else " forward"
    return f"{cell.form} {cell.rows}×{cell.classes}{dtype}{direction}{cell.circumstances}"


def _count(x: float | None) -> str:
    """A number of page faults in a few digits."""
    return _number(x and x / 1000, ".0f") + "k" if x and x >= 1000 else _number(x, ".0f")


def _in_sections(
    title: str, head: tuple[str, ...], rows: Iterable[tuple[str, tuple[str, ...], bool | None]], legend: str
) -> Table:
    """A table of (section, row, good), with a heading where the section changes."""
    shown: list[tuple[str, ...]] = []
    good: list[bool | None] = []
    last = ""
    for section, row, verdict in rows:
        if section != last:
            shown.append((section,))
            good.append(None)
        shown.append(row)
        good.append(verdict)
        last = section
    return Table(title, head, shown, good, legend)


def _library(name: str) -> str:
    """Of a peer: "torch" of F.cross_entropy."""
    first = name.split(".")[0]
    return "torch" if first == "F" else first


def ratio_table(runs: Sequence[Run]) -> Table:
    found = ratios(runs)
    missed = targets.above(found)

    def row(r: Ratio) -> tuple[str, ...]:
        ours, peer = r.ours, r.peer
        library = "–" if peer is None else _library(peer.name)
        times = _ms(ours.ms), _ms(ours.cpu_ms), _count(ours.faults)
        return _short(r.cell), r.way, *times, _number(r.wall), _number(r.cpu), _number(r.memory), library

    return _in_sections(
        "lossbridge and the best peer",
        ("cell", "way", "ms", "CPU", "faults", "ms ×", "CPU ×", "MiB ×", "peer"),
        [(r.backend, row(r), None if r.peer is None else r not in missed) for r in found if r.cell.sweep != "data"],
        "ms, CPU: our times of a call by the clock, and of all cores together; faults: page faults of a call.\n"
        "×: ratios of medians, ours over a peer's that runs in the same way: times over the fastest peer's, which is "
        "named, extra memory over the least.\n"
        "Forward and backward, float32, random data and one thread unless a cell says otherwise.\n"
        f"Red: memory, or CPU time (with two threads the clock's), above {targets.NEVER_ABOVE}.",
    )


def data_table(runs: Sequence[Run]) -> Table:
    found = spreads(runs)
    peers = {(s.backend, s.form, s.way): s for s in found if not s.name.startswith(OURS)}

    compared = [r for r in ratios(runs) if r.cell.sweep == "data" and r.time is not None]

    def row(s: Spread) -> tuple[str, ...]:
        key = s.backend, s.form, s.way
        peer = peers[key].factor if key in peers else None
        worst = max((r.time or 0.0 for r in compared if (r.backend, r.cell.form, r.way) == key), default=None)
        return s.form, s.way, _number(s.factor), s.slowest, s.fastest, str(s.kinds), _number(peer), _number(worst)

    ours = [s for s in found if s.name == OURS]
    return _in_sections(
        "How time depends on the data",
        ("loss", "way", "factor", "slowest", "fastest", "kinds", "peer's", "/ peer"),
        [(s.backend, row(s), s.factor <= targets.MOST_SPREAD) for s in ours],
        "factor: CPU time with the slowest kind of data over that with the fastest; data of which a third is ignored "
        "are never the fastest. peer's: the same of the framework's own function. / peer: our time over that of "
        f"this function, with the kind that is worst for us. Red: factor above {targets.MOST_SPREAD}.",
    )


def target_table(runs: Sequence[Run]) -> Table:
    rows: list[tuple[str, tuple[str, ...], bool | None]] = []
    every = targets.judge(runs)
    measured = [judged for judged in every if judged.words != targets.NOT_MEASURED]
    for judged in measured:
        t, first = judged.target, judged.target.case
        for limit in judged.limits:
            reached = None if judged.words else limit.reached
            verdict = judged.words or ("reached" if reached else "not reached")
            entries = first, limit.what, _number(limit.found, limit.form), format(limit.most, limit.form), verdict
            rows.append((t.backend, entries, reached))
            first = ""
    rows += _general(runs)
    left_out = len(every) - len(measured)
    return _in_sections(
        "Targets",
        ("ours / peer", "", "found", "≤", ""),
        rows,
        "Ratios, unless there is a unit: of CPU time on one thread; of the clock's where there are two."
        + (f" {left_out} more targets have cells that this run left out." if left_out else ""),
    )


def _general(runs: Sequence[Run]) -> Iterator[tuple[str, tuple[str, ...], bool | None]]:
    """The limits for every cell and every loss, of which the worst is shown; none where nothing was compared."""
    found = ratios(runs)
    for what in ("time", "memory"):
        compared = [r for r in found if getattr(r, what) is not None]
        if compared:
            worst = max(compared, key=lambda r: getattr(r, what))
            above = len(targets.above(compared, what))
            case = f"worst of {len(compared)}: {worst.backend}, {_short(worst.cell)}, {worst.way}"
            entries = case, what, _number(getattr(worst, what)), str(targets.NEVER_ABOVE)
            yield "any cell / best peer", (*entries, f"{above} above" if above else "reached"), not above
    ours = [s for s in spreads(runs) if s.name == OURS]
    if ours:
        slowest = max(ours, key=lambda s: s.factor)
        above = sum(s.factor > targets.MOST_SPREAD for s in ours)
        case = f"worst of {len(ours)}: {slowest.backend}, {slowest.form}, {slowest.way}, {slowest.slowest}"
        entries = case, "time", _number(slowest.factor), str(targets.MOST_SPREAD)
        yield "any loss, slowest / fastest data", (*entries, f"{above} above" if above else "reached"), not above


def growth_table(runs: Sequence[Run]) -> Table:
    return _in_sections(
        "How time grows",
        ("contender", "way", "overall", "at the end"),
        [
            (
                f"{s.backend}: {s.form}, {s.sweep} grows, {'N' if s.sweep == 'V' else 'V'} = {s.fixed}",
                (s.name, s.way, _number(s.overall), _number(s.end)),
                None,
            )
            for s in slopes(runs)
        ],
        "Exponent a of time ∝ size^a: fitted to the whole sweep, and between its two largest steps. 1: proportional; "
        "below 1: a fixed cost dominates small sizes.",
    )


def tables(runs: Sequence[Run]) -> list[Table]:
    """The tables that the command prints, those that have rows."""
    made = (ratio_table(runs), data_table(runs), growth_table(runs), target_table(runs))
    return [table for table in made if table.rows]


def measurement_table(run: Run) -> Table:
    """Every measurement of a backend, for the page."""
    rows, good = [], []
    for outcome in run.outcomes:
        for m in outcome.measurements:
            spread = f"{_ms(m.low_ms)} – {_ms(m.high_ms)}" if m.ms is not None else m.fault
            rows.append(
                (
                    _short(outcome.cell),
                    m.name,
                    m.way,
                    _ms(m.ms),
                    spread,
                    _ms(m.cpu_ms),
                    _count(m.faults),
                    str(m.rounds),
                    _number(m.extra_bytes / MIB if m.extra_bytes is not None else None, ".0f"),
                    _number(m.value_error, ".0e"),
                    _number(m.gradient_error, ".0e"),
                    _ms(limit_ms(run, outcome.cell)),
                )
            )
            good.append(False if m.fault else None)
    times = ("ms", "quartiles", "CPU", "faults", "rounds")
    head = ("cell", "contender", "way", *times, "extra MiB", "value", "gradient", "copy ms")
    speed = f", copies at {bandwidth(run) / 1e9:.0f} GB/s" if bandwidth(run) else ""
    legend = "value, gradient: relative errors, checked before any timing; a contender that is wrong is not timed."
    return Table(f"{run.backend} {run.version}{speed}", head, rows, good, legend)


def closing_lines(runs: Sequence[Run], named: Iterable[str]) -> list[str]:
    """Faults, the backends that did not run, then the totals."""
    lines = []
    for run in runs:
        lines += [f"{run.backend}: {o.cell.name}: {o.fault}" for o in run.faults]
        lines += run.absence(named)
    cells = sum(len(run.outcomes) for run in runs)
    wrong = sum(bool(m.fault) for run in runs for o in run.outcomes for m in o.measurements)
    lines.append(f"{cells} cells, {wrong} contenders not timed")
    return lines


# Files.


def content(runs: Sequence[Run], device: str, quick: bool) -> dict[str, Any]:
    judged = [asdict(j) | {"reached": j.reached, "cell": j.target.cell.name} for j in targets.judge(runs)]
    return {
        "format": FORMAT,
        **facts(device),
        "processor": processor(),
        "cores": os.cpu_count(),
        "quick": quick,
        "backends": [
            {**run.as_dict(), **run.facts, "cells": [outcome.as_dict() for outcome in run.outcomes]} for run in runs
        ],
        "ratios": [
            {
                "backend": r.backend,
                "cell": r.cell.name,
                "way": r.way,
                "time": r.time,
                "wall": r.wall,
                "cpu": r.cpu,
                "memory": r.memory,
                "peer": r.peer and r.peer.name,
                "limit_ms": r.limit_ms,
            }
            for r in ratios(runs)
        ],
        "targets": judged,
        "slopes": [asdict(s) for s in slopes(runs)],
        "spreads": [asdict(s) for s in spreads(runs)],
    }


def processor() -> str:
    """The processor's name, where the system says it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")


class UnusableResults(ValueError):
    """The file does not hold results of this command. The message is one line."""


def read(path: Path) -> list[Run]:
    """The runs in the JSON file of an earlier run."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UnusableResults(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UnusableResults(f"{path} is no JSON file; give one that lossbridge bench --json wrote") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT or "backends" not in found:
        raise UnusableResults(f"{path} is no result of this lossbridge bench; give one that its --json wrote")
    try:
        return [_run(one, found.get("cores", 1)) for one in found["backends"]]
    except (KeyError, TypeError) as error:
        raise UnusableResults(f"{path} is damaged: {error}; write it again with lossbridge bench --json") from error


def _run(found: dict[str, Any], cores: int) -> Run:
    """Older files name no threads: all cores were used."""
    cells = [{**one, "cell": {"threads": cores, **one["cell"]}} for one in found["cells"]]
    speed = found.get("copy_bytes_per_second", {})
    copied = {"copy_bytes_per_second": speed if isinstance(speed, dict) else {str(cores): speed}}
    outcomes = [Outcome.of_dict(cell) for cell in cells]
    return BackendRun(found["backend"], found["status"], found["version"], found["words"], outcomes, copied)


def write_json(path: Path, runs: Sequence[Run], device: str, quick: bool) -> None:
    write_results(path, content(runs, device, quick))


def write_html(path: Path, runs: Sequence[Run], device: str, verdict: Sequence[str]) -> None:
    """All tables and plots."""
    tables = [target_table(runs), ratio_table(runs), data_table(runs), growth_table(runs)]
    figures = [svg(figure) for form in plots.forms(runs) for figure in plots.figures(runs, form).values()]
    details = [measurement_table(run) for run in runs if run.outcomes]
    parts = [*(t.html() for t in tables if t.rows), *figures, *(t.html() for t in details)]
    versions = {library: v for run in runs for library, v in run.facts.get("versions", {}).items()}
    machine = f"{processor()}, {os.cpu_count()} cores; {', '.join(f'{name} {v}' for name, v in versions.items())}"
    parts.append(f"<p><small>{html.escape(machine)}</small></p>")
    path.write_text(page("lossbridge bench", verdict, "\n".join(parts), device), encoding="utf-8")
