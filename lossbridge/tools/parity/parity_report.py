"""The parity command's table, JSON file and HTML page. Judges nothing: each outcome states its fault."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from lossbridge.tools.parity import peers
from lossbridge.tools.parity.cases import KERAS_EXAMPLE
from lossbridge.tools.parity.check import EAGER, Outcome
from lossbridge.tools.processes import BackendRun
from lossbridge.tools.result_files import facts, page, svg, write_results

Runs = list[BackendRun[Outcome]]


@dataclass(frozen=True)
class Cell:
    """The table's entry for a loss on a backend. `good` is None where nothing ran."""

    lines: tuple[str, ...]
    good: bool | None


@dataclass(frozen=True)
class Row:
    labels: tuple[str, ...]  # line by line, as the cells
    cells: tuple[Cell, ...]
    bits: Cell


def rows(runs: Runs) -> list[Row]:
    """The Keras example, then one row per loss, in the order of the cases."""
    outcomes = [outcome for run in runs for outcome in run.outcomes]
    found = []
    if any(_is_example(outcome) for outcome in outcomes):
        cells = tuple(_example_cell(run) for run in runs)
        found.append(Row((KERAS_EXAMPLE.name,), cells, _bits_cell(filter(_is_example, outcomes))))
    for loss in dict.fromkeys(outcome.loss for outcome in outcomes):
        labels = (loss, "  gradient") if "." not in loss else _broken(loss)
        bits = _bits_cell(outcome for outcome in outcomes if outcome.loss == loss)
        found.append(Row(labels, tuple(_cell(run, loss) for run in runs), bits))
    return found


def _broken(name: str, width: int = 30) -> tuple[str, ...]:
    """A function's name; a long one on two lines, split after a point or an underscore."""
    if len(name) <= width:
        return (name,)
    at = max(name.rfind("_", 0, width), name.rfind(".", 0, width)) + 1
    return name[:at], f"  {name[at:]}"


def _is_example(outcome: Outcome) -> bool:
    return (outcome.loss, outcome.case) == (KERAS_EXAMPLE.loss, KERAS_EXAMPLE.name)


def _example_cell(run: BackendRun[Outcome]) -> Cell:
    outcomes = [outcome for outcome in run.outcomes if _is_example(outcome)]
    if not outcomes:
        return _empty_cell(run)
    values = dict.fromkeys("?" if o.result is None else str(np.float32(o.result)) for o in outcomes)
    return Cell(tuple(values), not any(o.fault for o in outcomes))


def _cell(run: BackendRun[Outcome], loss: str) -> Cell:
    outcomes = [outcome for outcome in run.outcomes if outcome.loss == loss]
    if not outcomes:
        return _empty_cell(run)
    faults = sum(bool(outcome.fault) for outcome in outcomes)
    worst = (_worst("value", outcomes), _worst("gradient", outcomes))
    return Cell((*worst, *([f"{faults} wrong"] if faults else [])), not faults)


def _bits_cell(outcomes: Iterable[Outcome]) -> Cell:
    """Whether eager values and gradients are equal bit for bit, on all backends that computed the case."""
    digests: dict[str, list[str]] = {}
    for outcome in outcomes:
        if outcome.mode == EAGER and outcome.digest:
            digests.setdefault(outcome.case, []).append(outcome.digest)
    compared = [found for found in digests.values() if len(found) > 1]
    if not compared:
        return Cell(("–",), None)
    differ = sum(len(set(found)) > 1 for found in compared)
    return Cell((str(differ), "diff"), None) if differ else Cell(("same",), True)


def _empty_cell(run: BackendRun[Outcome]) -> Cell:
    return Cell((run.status if run.status != "ran" else "–",), None)


def _worst(quantity: str, outcomes: list[Outcome]) -> str:
    """The largest error in ULP, and the largest relative one in float32 and float64 (float16 always has 5e-4)."""
    ulp = max(getattr(o, f"{quantity}_ulp") for o in outcomes)
    relative = [getattr(o, f"{quantity}_relative") for o in outcomes if o.dtype in ("float32", "float64")]
    text = _short(ulp, ".2g" if ulp < 99.5 else ".0f" if ulp < 9999.5 else ".0e")
    return f"{text} {_short(max(relative), '.0e')}" if relative else text


def _short(x: float, form: str) -> str:
    return "∞" if math.isinf(x) else format(x, form)


def table(runs: Runs) -> Table:
    """With four backends it fits into 80 columns, exactly."""
    shown = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    shown.add_column("loss", no_wrap=True)
    for run in runs:
        shown.add_column(f"{run.backend}\n{run.version.split('+')[0] or run.status}", no_wrap=True)
    shown.add_column("bits", no_wrap=True)
    for row in rows(runs):
        labels = Text("\n".join(row.labels))  # no markup: a file's name may hold brackets
        shown.add_row(labels, *(_coloured(cell) for cell in (*row.cells, row.bits)))
    return shown


def _coloured(cell: Cell) -> Text:
    return Text("\n".join(cell.lines), style={True: "", False: "red", None: "dim"}[cell.good])


@dataclass(frozen=True)
class About:
    """A table's title and legend."""

    title: str
    legend: str


CASES = About(
    "Worst error against the reference: units in the last place (ULP), then relative",
    """\
Cases: each runs eagerly; of those that compile the same code one is compiled, with --all every one.
Values: ULP of float32 or float64 at the exact value, or at 1 where probabilities go in.
Gradients: ULP of the input's dtype at the row's largest entry.
Relative: to the same number, in float32 and float64 alone.
Wrong: above the tolerance that the case itself states.
Bits: whether eager values and gradients are the same on all backends, or in how many cases they differ.""",
)
PEERS = About(
    "lossbridge.compat compared with the libraries' own functions: units in the last place (ULP), then relative",
    f"""\
Cells: the value above, the gradient below, in float32; ULP as for the losses.
Wrong: ours is neither within {peers.ULPS} ULP of the library's result nor nearer to its result in float64 than that is.
Known deviations: docs/conventions.md.""",
)


def by_convention_only(runs: Runs) -> list[str]:
    """One line that names the functions of which some calls were compared with the registry's convention only."""
    outcomes = [o for run in runs for o in run.outcomes if o.mode == peers.BY_CONVENTION]
    names = dict.fromkeys(outcome.loss for outcome in outcomes)
    what = f"{len(outcomes)} checks, of calls of {', '.join(names)}"
    return [f"compared with the convention only, not with a library's own result: {what}"] if outcomes else []


def compiled(runs: Runs) -> list[str]:
    """One line that says what ran otherwise than eagerly."""
    modes = {run.backend: [*dict.fromkeys(o.mode for o in run.outcomes if o.mode != EAGER)] for run in runs}
    named = [f"{backend} ({', '.join(found)})" for backend, found in modes.items() if found]
    return [f"compiled: {', '.join(named) or 'nothing'}"]


def closing_lines(runs: Runs, named: Iterable[str]) -> list[str]:
    """Faults, then the backends that did not run, then the verdict."""
    lines = []
    for run in runs:
        for fault in run.faults[:8]:
            lines.append(f"{run.backend}, {fault.mode}: {fault.loss}, {fault.case}, {fault.dtype}: {fault.fault}")
        if len(run.faults) > 8:
            lines.append(f"{run.backend}: and {len(run.faults) - 8} more")
        lines += run.absence(named)
    checks = sum(len(run.outcomes) for run in runs)
    wrong = sum(len(run.faults) for run in runs)
    agreeing = [run.backend for run in runs if run.agreed]
    lines.append(f"{checks} checks, {wrong} wrong; in full agreement: {', '.join(agreeing) or 'none'}")
    return lines


def write_json(path: Path, runs: Runs, device: str, agreed: bool) -> None:
    content = {
        **facts(device),
        "agreed": agreed,
        "backends": [{**run.as_dict(), "outcomes": [outcome.as_dict() for outcome in run.outcomes]} for run in runs],
    }
    write_results(path, content)


def write_html(
    path: Path, runs: Runs, device: str, named: Iterable[str], about: About, *, more: Iterable[str] = ()
) -> None:
    """The table with its legend, and the plot."""
    head = "".join(
        f"<th>{html.escape(run.backend)}<br><small>{html.escape(run.version or run.status)}</small></th>"
        for run in runs
    )
    body = ""
    for row in rows(runs):
        cells = ""
        for cell in (*row.cells, row.bits):
            css = {True: "good", False: "wrong", None: "none"}[cell.good]
            cells += f'<td class="{css}">' + "<br>".join(html.escape(line) for line in cell.lines) + "</td>"
        labels = "<br>".join(html.escape(label.strip()) for label in row.labels)
        body += f"<tr><th>{labels}</th>{cells}</tr>\n"
    table = (
        f"<table><caption>{html.escape(about.title)}</caption><tr><th>loss</th>{head}<th>bits</th></tr>\n{body}</table>"
    )
    content = f'{table}\n<p class="legend">{html.escape(about.legend)}</p>\n{_plot(runs)}'
    verdict = (*more, *closing_lines(runs, named))
    path.write_text(page("lossbridge parity", verdict, content, device), encoding="utf-8")


def _plot(runs: Runs) -> str:
    """Every check as a dot at its error, one row per loss, one panel for values and one for gradients."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    losses = list(dict.fromkeys(outcome.loss for run in runs for outcome in run.outcomes))
    if not losses:
        return ""
    shown = [run for run in runs if run.outcomes]
    figure, panels = plt.subplots(1, 2, figsize=(12, 1.2 + 0.55 * len(losses)), sharey=True, layout="constrained")
    for panel, quantity in zip(panels, ("value", "gradient"), strict=True):
        for i, run in enumerate(shown):
            errors = np.array([getattr(o, f"{quantity}_ulp") for o in run.outcomes], float)
            rows = np.array([losses.index(o.loss) for o in run.outcomes])
            height = rows + (i - (len(shown) - 1) / 2) * 0.18
            finite = np.clip(np.nan_to_num(errors, posinf=1e9), 1e-2, 1e9)
            panel.plot(finite, height, "o", markersize=3, alpha=0.5, markeredgewidth=0, label=run.backend)
        panel.set_xscale("log")
        panel.set_xlabel(f"error of the {quantity} in ulp (left edge: 0.01 or less)")
        panel.axvline(1, color="0.6", linewidth=0.8)
        panel.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(losses)), losses)
    panels[0].invert_yaxis()
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=len(shown), frameon=False)
    picture = svg(figure)
    plt.close(figure)
    return picture
