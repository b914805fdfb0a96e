"""What the parity command shows: the table, the JSON file and the HTML page. Judges nothing."""

from __future__ import annotations

import html
import io
import json
import math
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

import lossbridge
from lossbridge.tools.parity import peers
from lossbridge.tools.parity.cases import KERAS_EXAMPLE
from lossbridge.tools.parity.check import Outcome
from lossbridge.tools.parity.processes import BackendRun

Runs = list[BackendRun[Outcome]]


@dataclass(frozen=True)
class Cell:
    """A loss on a backend: what the table says of it. `good` is None where nothing ran."""

    lines: tuple[str, ...]
    good: bool | None


@dataclass(frozen=True)
class Row:
    labels: tuple[str, ...]  # beside the cells' lines
    cells: tuple[Cell, ...]


def rows(runs: Runs) -> list[Row]:
    """The Keras example first, then a row a loss, in the order of the cases."""
    outcomes = [outcome for run in runs for outcome in run.outcomes]
    found = []
    if any(_is_example(outcome) for outcome in outcomes):
        found.append(Row((KERAS_EXAMPLE.name,), tuple(_example_cell(run) for run in runs)))
    for loss in dict.fromkeys(outcome.loss for outcome in outcomes):
        labels = (loss, "  gradient") if "." not in loss else _in_two(loss)
        found.append(Row(labels, tuple(_cell(run, loss) for run in runs)))
    return found


def _in_two(name: str, width: int = 30) -> tuple[str, ...]:
    """A long name of a function, broken behind a point or an underscore."""
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


def _empty_cell(run: BackendRun[Outcome]) -> Cell:
    return Cell((run.status if run.status != "ran" else "–",), None)


def _worst(quantity: str, outcomes: list[Outcome]) -> str:
    """In units in the last place; and relative, of full precision (half the rounding of float16 is no news)."""
    ulp = max(getattr(o, f"{quantity}_ulp") for o in outcomes)
    full = [getattr(o, f"{quantity}_relative") for o in outcomes if o.dtype in ("float32", "float64")]
    return _short(ulp, ".2g" if ulp < 99.5 else ".0f" if ulp < 9999.5 else ".0e") + (
        f" {_short(max(full), '.0e')}" if full else ""
    )


def _short(x: float, form: str) -> str:
    return "∞" if math.isinf(x) else format(x, form)


def table(runs: Runs) -> Table:
    """Fits into 80 columns with four backends."""
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    shown.add_column("loss", no_wrap=True)
    for run in runs:
        shown.add_column(f"{run.backend}\n{run.version.split('+')[0] or run.status}", no_wrap=True)
    for row in rows(runs):
        shown.add_row("\n".join(row.labels), *(_coloured(cell) for cell in row.cells))
    return shown


def _coloured(cell: Cell) -> str:
    text = "\n".join(cell.lines)
    return text if cell.good else f"[red]{text}[/red]" if cell.good is False else f"[dim]{text}[/dim]"


@dataclass(frozen=True)
class About:
    """The words around a table."""

    title: str
    legend: str


CASES = About(
    "Worst error against the reference: units in the last place, relative",
    "Eager and compiled. Units of float32 or float64 for values, at the exact value, or at 1 where probabilities go "
    "in; of the input's dtype for gradients, at the row's largest entry. Relative to the same, in float32 and float64. "
    "Each case states its own tolerance; float16 and bfloat16 are judged on their rounded inputs.",
)
PEERS = About(
    "lossbridge.compat beside the libraries' own functions: units in the last place, relative",
    f"Value above, gradient below, in float32; units as of the losses. Within {peers.ULPS} of the library's own, or "
    "nearer than it to what it gives in float64, whose distance then counts. Departures: docs/conventions.md.",
)


def not_by_a_library(runs: Runs) -> list[str]:
    """In words, the peers' functions with calls that only the registry's convention has judged."""
    judged = [o for run in runs for o in run.outcomes if o.mode == peers.BY_CONVENTION]
    names = dict.fromkeys(outcome.loss for outcome in judged)
    what = f"{len(judged)} checks, of calls of {', '.join(names)}"
    return [f"beside the convention alone, without a library's own result: {what}"] if judged else []


def closing_lines(runs: Runs, named: Iterable[str]) -> list[str]:
    """Faults, then what did not run, then the verdict."""
    lines = []
    for run in runs:
        for fault in run.faults[:8]:
            lines.append(f"{run.backend}, {fault.mode}: {fault.loss}, {fault.case}, {fault.dtype}: {fault.fault}")
        if len(run.faults) > 8:
            lines.append(f"{run.backend}: and {len(run.faults) - 8} more")
        if run.status != "ran":
            asked = " (asked for)" if run.backend in named and run.status == "missing" else ""
            lines.append(f"{run.backend}: {run.status}{asked}: {run.words}")
    checks = sum(len(run.outcomes) for run in runs)
    wrong = sum(len(run.faults) for run in runs)
    agreeing = [run.backend for run in runs if run.agreed]
    lines.append(f"{checks} checks, {wrong} wrong; in full agreement: {', '.join(agreeing) or 'none'}")
    return lines


def write_json(path: Path, runs: Runs, device: str, agreed: bool) -> None:
    content = {
        **facts(device),
        "agreed": agreed,
        "backends": [
            {
                "backend": run.backend,
                "version": run.version,
                "status": run.status,
                "words": run.words,
                "outcomes": [outcome.as_dict() for outcome in run.outcomes],
            }
            for run in runs
        ],
    }
    dump(path, content)


def facts(device: str) -> dict[str, Any]:
    """What a file of results says of where they are from."""
    return {
        "lossbridge": lossbridge.__version__,
        "machine": platform.platform(),
        "python": platform.python_version(),
        "device": device,
    }


def dump(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(_finite(content), indent=1, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def _finite(x: Any) -> Any:
    """JSON has no infinity: an error without bound becomes null."""
    if isinstance(x, dict):
        return {name: _finite(entry) for name, entry in x.items()}
    if isinstance(x, list | tuple):
        return [_finite(entry) for entry in x]
    return None if isinstance(x, float) and not math.isfinite(x) else x


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #1b1f24 }}
table {{ border-collapse: collapse; margin: 1rem 0 }}
th, td {{ border: 1px solid #d0d7de; padding: .35rem .7rem; text-align: left; vertical-align: top }}
td {{ white-space: nowrap }}
th {{ background: #f6f8fa }}
tr th:first-child::first-line {{ color: #1b1f24 }}
tr th:first-child {{ color: #57606a; font-weight: 500 }}
caption {{ text-align: left; white-space: nowrap; padding-bottom: .4rem; color: #57606a }}
td {{ font-variant-numeric: tabular-nums }}
td.wrong {{ background: #ffebe9; color: #82071e }}
td.none {{ color: #6e7781 }}
small, p.legend {{ color: #57606a }}
svg {{ max-width: 100%; height: auto }}
</style>
<h1>{title}</h1>
<p>{verdict}</p>
{content}
<p><small>lossbridge {version}, {machine}, Python {python}, device {device}</small></p>
</html>
"""


def page(title: str, verdict: Iterable[str], content: str, device: str) -> str:
    """An HTML page that needs no other file. `verdict`: lines of text, `content`: HTML."""
    return _PAGE.format(
        title=html.escape(title),
        verdict="<br>".join(html.escape(line) for line in verdict),
        content=content,
        version=lossbridge.__version__,
        machine=html.escape(platform.platform()),
        python=platform.python_version(),
        device=html.escape(device),
    )


def write_html(
    path: Path, runs: Runs, device: str, named: Iterable[str], about: About, *, more: Iterable[str] = ()
) -> None:
    """One page that needs no other file."""
    head = "".join(
        f"<th>{html.escape(run.backend)}<br><small>{html.escape(run.version or run.status)}</small></th>"
        for run in runs
    )
    body = ""
    for row in rows(runs):
        cells = ""
        for cell in row.cells:
            css = {True: "good", False: "wrong", None: "none"}[cell.good]
            cells += f'<td class="{css}">' + "<br>".join(html.escape(line) for line in cell.lines) + "</td>"
        labels = "<br>".join(html.escape(label.strip()) for label in row.labels)
        body += f"<tr><th>{labels}</th>{cells}</tr>\n"
    table = f"<table><caption>{html.escape(about.title)}</caption><tr><th>loss</th>{head}</tr>\n{body}</table>"
    content = f'{table}\n<p class="legend">{html.escape(about.legend)}</p>\n{_plot(runs)}'
    verdict = (*more, *closing_lines(runs, named))
    path.write_text(page("lossbridge parity", verdict, content, device), encoding="utf-8")


def _plot(runs: Runs) -> str:
    """Every check as a dot: its error over its loss, a panel for values and one for gradients, as SVG."""
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


def svg(figure: Any) -> str:
    """The picture as a part of a page."""
    picture = io.StringIO()
    figure.savefig(picture, format="svg", metadata={"Date": None})
    return picture.getvalue()[picture.getvalue().index("<svg") :]
