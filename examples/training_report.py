"""The results of train_digits.py: its runs, the limits that they are checked against, the table and the picture."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from pictures import BLUE, GREEN, GREY, ORANGE, STYLE, plt, save
from rich import box
from rich.table import Table

NAMES = {"numpy": "NumPy", "torch": "PyTorch", "tensorflow": "TensorFlow", "jax": "JAX"}

# By how much the loss of a step may differ from NumPy's, relatively.
LIMITS = {"float64": 1e-9, "float32": 1e-3}


@dataclass
class Run:
    """One training: the loss of every step in nats, its duration, and the share of test images recognised."""

    backend: str
    dtype: str
    own_loss: bool  # the framework's own, not lossbridge's
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    accuracy: float | None = None  # None until the run has ended

    @property
    def label(self) -> str:
        return NAMES[self.backend] + (", own loss" if self.own_loss else "")


def differences(run: Run, runs: list[Run]) -> np.ndarray | None:
    """Of each step's loss, relative to NumPy's in the same dtype. None for NumPy itself, and where it did not run."""
    for numpy in runs:
        if numpy.backend == "numpy" and numpy.dtype == run.dtype and numpy is not run:
            expected = np.array(numpy.losses)
            return abs(np.array(run.losses) - expected) / abs(expected)
    return None


def faults(runs: list[Run]) -> list[str]:
    """A line for each run that leaves its limit."""
    lines = []
    for run in runs:
        found, limit = differences(run, runs), LIMITS[run.dtype]
        if found is not None and not np.all(found <= limit):  # written so that NaN is a fault
            first = int(np.argmin(found <= limit))
            lines.append(
                f"{run.label}, {run.dtype}: the loss of step {first + 1} differs from NumPy's by {found[first]:.1e}, "
                f"relatively; allowed is {short(limit)}"
            )
    return lines


def table(runs: list[Run]) -> Table:
    """Fits into 80 columns."""
    allowed = ", ".join(f"{short(limit)} in {dtype}" for dtype, limit in LIMITS.items())
    shown = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        caption=f"Difference: of any step's loss to NumPy's, relatively; allowed is {allowed}.",
        caption_justify="left",
    )
    for heading in ("framework", "dtype"):
        shown.add_column(heading, no_wrap=True)
    for heading in ("final loss\n(nats)", "test\naccuracy", "largest\ndifference", "one step\n(ms)"):
        shown.add_column(heading, no_wrap=True, justify="right")
    for dtype in LIMITS:
        for run in (run for run in runs if run.dtype == dtype):
            found = differences(run, runs)
            shown.add_row(
                run.label,
                dtype,
                f"{run.losses[-1]:.9f}",
                f"{run.accuracy:.2%}",
                "" if found is None else short(found.max()),
                f"{1000 * np.median(run.seconds[1:]):.2f}",
            )
        shown.add_section()
    return shown


def short(x: float) -> str:
    """One digit: 3e-6."""
    return f"{x:.0e}".replace("e-0", "e-")


def write_json(path: Path, runs: list[Run], wrong: list[str]) -> None:
    path.write_text(json.dumps({"runs": [asdict(run) for run in runs], "wrong": wrong}) + "\n", encoding="utf-8")


# Of lossbridge's loss, and of the framework's own; further colours of the same palette.
COLOURS = {
    "numpy": (GREY, ""),
    "torch": (ORANGE, "#E69F00"),
    "tensorflow": (BLUE, "#56B4E9"),
    "jax": (GREEN, "#CC79A7"),
}


def draw(runs: list[Run], path: Path) -> None:
    """The losses, and below them their differences to NumPy's, as they are: neither clipped nor smoothed."""
    with rc_context(STYLE):
        figure, (above, below) = plt.subplots(2, 1, figsize=(9, 6.4), sharex=True, layout="constrained")
        if runs:
            draw_losses(above, runs)
            draw_differences(below, runs)
        save(figure, path)


def draw_losses(axes: Axes, runs: list[Run]) -> None:
    """Curves that lie on one another: NumPy's broad and grey below, on it the dashes of the others in turn."""
    labels = list(dict.fromkeys(run.label for run in runs if run.backend != "numpy"))
    for run in runs:
        colour, steps = COLOURS[run.backend][run.own_loss], range(1, len(run.losses) + 1)
        if run.backend == "numpy":
            axes.plot(steps, run.losses, color=colour, linewidth=5)
        else:
            turn = (-8 * labels.index(run.label), (8, 8 * len(labels) - 8))
            axes.plot(steps, run.losses, color=colour, linewidth=1.6, linestyle=turn if labels[1:] else "-")
    for run in {run.label: run for run in runs}.values():
        axes.plot([], [], color=COLOURS[run.backend][run.own_loss], linewidth=4, label=run.label)
    axes.set(yscale="log", ylabel="loss of the batch (nats)")
    axes.set_title(f"The loss of every step: {len(runs)} curves, one on another")
    axes.legend(ncols=2)


def draw_differences(axes: Axes, runs: list[Run]) -> None:
    for run in runs:
        found = differences(run, runs)
        if found is not None:
            marker = "x" if run.own_loss else "."
            axes.plot(range(1, len(found) + 1), found, marker, color=COLOURS[run.backend][run.own_loss], markersize=3)
    for dtype in dict.fromkeys(run.dtype for run in runs):
        axes.axhline(LIMITS[dtype], color="black", linestyle="--", linewidth=1.2)
        place = {"xy": (1, LIMITS[dtype]), "xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
        axes.annotate(f"allowed in {dtype}: {short(LIMITS[dtype])}", xytext=(0, -5), ha="right", va="top", **place)
    axes.set(yscale="log", xlabel="step", ylabel="relative difference")
    axes.set_title("How far each is from NumPy's in the same dtype (equal losses have no place on this scale)")
