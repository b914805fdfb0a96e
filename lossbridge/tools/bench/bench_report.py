"""The bench command's tables, JSON file and HTML page; also reads the JSON file back. Measures nothing.

A table is made once, as rows of text, and then printed by rich or written as HTML.
"""

from __future__ import annotations

import html
import json
import math
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table as RichTable
from rich.text import Text

from lossbridge.tools.bench import plots, targets
from lossbridge.tools.bench.cells import IMPORT, Cell
from lossbridge.tools.bench.results import Outcome, Ratio, Run, bandwidth, limit_ms, ratios, slopes
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
    return f"{cell.form} {cell.rows}×{cell.classes}{dtype}{'' if cell.backward else ' forward'}"


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


def ratio_table(runs: Sequence[Run]) -> Table:
    found = ratios(runs)
    missed = targets.above(found)

    def row(r: Ratio) -> tuple[str, ...]:
        over_copy = r.ours.ms / r.limit_ms if r.ours.ms and r.limit_ms else None
        library = "–" if r.peer is None else r.peer.name.split(".")[0]
        ratio, memory = _number(r.time), _number(r.memory)
        return _short(r.cell), r.way, _ms(r.ours.ms), _number(over_copy, ".1f"), ratio, memory, library

    return _in_sections(
        "lossbridge and the best peer",
        ("cell", "way", "ms", "/ copy", "time", "memory", "fastest"),
        [(r.backend, row(r), None if r.peer is None else r not in missed) for r in found],
        "Ratios of medians, ours over a peer's that runs in the same way: time over the fastest peer's, extra memory "
        "over the least. Forward and backward unless it says forward; float32 unless it names a dtype. / copy: our "
        f"time over that of a copy of the bytes that must move. Red: above {targets.NEVER_ABOVE}.",
    )


def target_table(runs: Sequence[Run]) -> Table:
    rows: list[tuple[str, tuple[str, ...], bool | None]] = []
    for judged in targets.judge(runs):
        t, first = judged.target, judged.target.case
        for limit in judged.limits:
            reached = None if judged.words else limit.reached
            verdict = judged.words or ("reached" if reached else "not reached")
            entries = first, limit.what, _number(limit.found, limit.form), format(limit.most, limit.form), verdict
            rows.append((t.backend, entries, reached))
            first = ""
    found = ratios(runs)
    for what in ("time", "memory") if found else ():
        above = targets.above(found, what)
        worst = getattr(above[0], what) if above else None
        words = f"{len(above)} above" if above else "reached"
        case = f"worst: {above[0].backend}, {_short(above[0].cell)}, {above[0].way}" if above else "all"
        rows.append(("any cell / best peer", (case, what, _number(worst), str(targets.NEVER_ABOVE), words), not above))
    return _in_sections(
        "Targets",
        ("ours / peer", "", "found", "≤", ""),
        rows,
        "Ratios, unless there is a unit. JAX: memory is what XLA plans for temporaries.",
    )


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
    return [table for table in (ratio_table(runs), growth_table(runs), target_table(runs)) if table.rows]


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
                    str(m.rounds),
                    _number(m.extra_bytes / MIB if m.extra_bytes is not None else None, ".0f"),
                    _number(m.value_error, ".0e"),
                    _number(m.gradient_error, ".0e"),
                    _ms(limit_ms(run, outcome.cell)),
                )
            )
            good.append(False if m.fault else None)
    head = ("cell", "contender", "way", "ms", "quartiles", "rounds", "extra MiB", "value", "gradient", "copy ms")
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
                "memory": r.memory,
                "peer": r.peer and r.peer.name,
                "limit_ms": r.limit_ms,
            }
            for r in ratios(runs)
        ],
        "targets": judged,
        "slopes": [asdict(s) for s in slopes(runs)],
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
        return [_run(one) for one in found["backends"]]
    except (KeyError, TypeError) as error:
        raise UnusableResults(f"{path} is damaged: {error}; write it again with lossbridge bench --json") from error


def _run(found: dict[str, Any]) -> Run:
    outcomes = [Outcome.of_dict(cell) for cell in found["cells"]]
    copied = {"copy_bytes_per_second": found.get("copy_bytes_per_second", 0)}
    return BackendRun(found["backend"], found["status"], found["version"], found["words"], outcomes, copied)


def write_json(path: Path, runs: Sequence[Run], device: str, quick: bool) -> None:
    write_results(path, content(runs, device, quick))


def write_html(path: Path, runs: Sequence[Run], device: str, verdict: Sequence[str]) -> None:
    """All tables and plots."""
    tables = [target_table(runs), ratio_table(runs), growth_table(runs)]
    figures = [svg(figure) for form in plots.forms(runs) for figure in plots.figures(runs, form).values()]
    details = [measurement_table(run) for run in runs if run.outcomes]
    parts = [*(t.html() for t in tables if t.rows), *figures, *(t.html() for t in details)]
    versions = {library: v for run in runs for library, v in run.facts.get("versions", {}).items()}
    machine = f"{processor()}, {os.cpu_count()} cores; {', '.join(f'{name} {v}' for name, v in versions.items())}"
    parts.append(f"<p><small>{html.escape(machine)}</small></p>")
    path.write_text(page("lossbridge bench", verdict, "\n".join(parts), device), encoding="utf-8")
