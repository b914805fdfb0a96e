"""Plots of the sweeps: time over V, time over N, memory over V. One panel per backend, both axes logarithmic."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lossbridge.tools.bench.contenders import OURS
from lossbridge.tools.bench.results import Outcome, Run, bandwidth, size_of, sweeps

# Okabe and Ito's colours, which colour-blind readers can tell apart. The line style is that of the way.
_OURS, _PEERS, _LIMIT = ("#0072B2", "#56B4E9"), ("#D55E00", "#009E73", "#CC79A7", "#E69F00"), "#333333"
_STYLES = ("-", "--", ":")
_MARKERS = "osD^v"
_RC = {
    "font.family": "DejaVu Sans",  # ships with matplotlib
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "legend.frameon": False,
    "legend.fontsize": 8,
    "svg.fonttype": "path",
}
PLOTS = {"time_over_v": ("V", "ms"), "time_over_n": ("N", "ms"), "memory_over_v": ("V", "extra_bytes")}


def figures(runs: Sequence[Run], form: str) -> dict[str, Any]:
    """The plots of a form's sweeps, by file name."""
    import matplotlib as mpl

    mpl.use("Agg")
    found = {}
    with mpl.rc_context(_RC):
        for name, (sweep, quantity) in PLOTS.items():
            steps = [
                (run, s)
                for run in runs
                for f, swept, s in sweeps(run)
                if (f, swept) == (form, sweep) and any(getattr(m, quantity) for o in s for m in o.measurements)
            ]
            if steps:
                found[f"{name}_{form.lower().replace(',', '').replace(' ', '_')}"] = _figure(
                    form, sweep, quantity, steps
                )
    return found


def forms(runs: Sequence[Run]) -> list[str]:
    """The forms that have a sweep."""
    return list(dict.fromkeys(form for run in runs for form, _, _ in sweeps(run)))


def _figure(form: str, sweep: str, quantity: str, steps: list[tuple[Run, list[Outcome]]]) -> Any:
    from matplotlib.figure import Figure

    across = min(2, len(steps))
    down = -(-len(steps) // across)
    figure = Figure(figsize=(6.6 * across, 4.9 * down + 0.4), layout="constrained")
    panels = list(figure.subplots(down, across, squeeze=False, sharey=True).flat)
    for panel, (run, outcomes) in zip(panels, steps, strict=False):
        _panel(panel, run, outcomes, sweep, quantity)
    for panel in panels[len(steps) :]:
        figure.delaxes(panel)
    cell = steps[0][1][0].cell
    fixed = f"N = {cell.rows} rows" if sweep == "V" else f"V = {cell.classes} classes"
    what = "Time of a call" if quantity == "ms" else "Extra memory of a call"
    direction = "forward and backward" if cell.backward else "forward"
    figure.suptitle(f"{what}: {form}, {direction}, {cell.dtype}, {fixed}", fontsize=12)
    return figure


def _panel(panel: Any, run: Run, outcomes: list[Outcome], sweep: str, quantity: str) -> None:
    sizes = [size_of(o.cell) for o in outcomes]
    keys = list(dict.fromkeys((m.name, m.way) for o in outcomes for m in o.measurements if m.ms is not None))
    ways = list(dict.fromkeys(way for _, way in keys))
    peers = list(dict.fromkeys(name for name, _ in keys if not name.startswith(OURS)))
    own = list(dict.fromkeys(name for name, _ in keys if name.startswith(OURS)))
    for name, way in keys:
        ours = name in own
        color = _OURS[own.index(name) % 2] if ours else _PEERS[peers.index(name) % len(_PEERS)]
        points = [(size, o.get(name, way)) for size, o in zip(sizes, outcomes, strict=True)]
        measured = [(size, getattr(m, quantity)) for size, m in points if m is not None and getattr(m, quantity)]
        if not measured:
            continue
        scale = 1.0 if quantity == "ms" else 2.0**-20
        place = ways.index(way)
        look = {
            "color": color,
            "linestyle": _STYLES[place % len(_STYLES)],
            "marker": _MARKERS[place % len(_MARKERS)],
            "markersize": 4.5,
            "linewidth": 2.4 if ours else 1.4,
            "zorder": 3 if ours else 2,
            "label": f"{_shortened(name)}, {way}",
        }
        panel.plot([size for size, _ in measured], [x * scale for _, x in measured], **look)
    if quantity == "ms":
        limit = [o.cell.bytes / bandwidth(run) * 1e3 if bandwidth(run) else float("nan") for o in outcomes]
        words = f"limit: copy at {bandwidth(run) / 1e9:.0f} GB/s"
    else:
        limit, words = [o.cell.gradient_bytes / 2**20 for o in outcomes], "limit: the gradient alone"
    panel.plot(sizes, limit, color=_LIMIT, linewidth=1.2, linestyle=(0, (1, 1)), label=words)
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    panel.set_xticks(sizes, [str(size) for size in sizes])
    panel.minorticks_off()
    panel.set_title(f"{run.backend} {run.version.split('+')[0]}", loc="left")
    panel.set_xlabel("V, classes" if sweep == "V" else "N, rows")
    panel.set_ylabel("milliseconds" if quantity == "ms" else "MiB above the inputs")
    panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2)  # below the panel, where it hides no line


def _shortened(name: str, width: int = 30) -> str:
    return name if len(name) <= width else f"{name[: width - 1]}…"


def write_pngs(folder: Path, runs: Sequence[Run]) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for form in forms(runs):
        for name, figure in figures(runs, form).items():
            written.append(folder / f"{name}.png")
            figure.savefig(written[-1], dpi=130)
    return written
