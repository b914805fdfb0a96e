"""The picture of a loss sample by sample, twice, and of the difference; as SVG for a page. Knows no conventions."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

from lossbridge.tools.result_files import svg

MOST_SAMPLES = 1000  # dots in a picture
_COLOURS = ("#1a7f37", "#8250df", "#bc4c00")


@dataclass(frozen=True)
class SamplePlot:
    """A picture, and the sentence below it. `html` is empty where there is nothing to draw."""

    html: str
    caption: str


def sample_plot(
    first: np.ndarray, second: np.ndarray, names: tuple[str, str], what: str = "loss in nats"
) -> SamplePlot:
    """Two values a sample, and second − first. Values that are not finite are counted, and not drawn."""
    x, y = np.asarray(first, np.float64).reshape(-1), np.asarray(second, np.float64).reshape(-1)
    if x.shape != y.shape or not x.size:
        return SamplePlot("", "")
    finite = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    some = finite
    if finite.size > MOST_SAMPLES:
        some = finite[np.linspace(0, finite.size - 1, MOST_SAMPLES).astype(np.int64)]
    if not some.size:
        return SamplePlot("", "No sample has finite values on both sides: nothing is drawn.")
    caption = _caption(x[finite], y[finite], names)
    if finite.size < x.size:
        caption += f" {x.size - finite.size} samples have values that are not finite, and are not drawn."
    if some.size < finite.size:
        caption += f" Drawn are {some.size} of {finite.size} samples, evenly spaced."
    return SamplePlot(_drawn(some, x[some], y[some], names, what), caption)


def _caption(x: np.ndarray, y: np.ndarray, names: tuple[str, str]) -> str:
    off = np.abs(y - x)
    worst = int(off.argmax())
    if off[worst] <= 1e-6 * max(float(np.abs(x).max()), 1e-30):
        return f"Sample by sample, {names[0]} and {names[1]} give the same."
    alike = int((off <= 1e-6 * np.maximum(np.abs(x), np.abs(x).max() / 10)).sum())
    text = f"The largest difference is {off[worst]:.4g}: {names[0]} {x[worst]:.6g}, {names[1]} {y[worst]:.6g}."
    return f"{text} {alike} of {x.size} samples are the same." if alike else text


def _drawn(places: np.ndarray, x: np.ndarray, y: np.ndarray, names: tuple[str, str], what: str) -> str:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (values, gaps) = plt.subplots(
        2, 1, figsize=(7.2, 5.2), sharex=True, layout="constrained", height_ratios=(3, 2)
    )
    values.plot(places, x, "o", color=_COLOURS[0], markersize=5, markerfacecolor="none", label=_short(names[0]))
    values.plot(places, y, ".", color=_COLOURS[1], markersize=4, label=_short(names[1]))
    values.set_ylabel(_short(what, 28))
    gaps.axhline(0, color="0.6", linewidth=0.8)
    gaps.vlines(places, 0, y - x, color=_COLOURS[2], linewidth=1.2)
    gaps.set_ylabel(f"{_short(names[1])} − {_short(names[0])}")
    gaps.set_xlabel("sample")
    gaps.xaxis.get_major_locator().set_params(integer=True)
    for panel in (values, gaps):
        panel.grid(alpha=0.3)
        panel.margins(x=0.02)
    figure.legend(*values.get_legend_handles_labels(), loc="outside upper left", frameon=False, ncols=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a name's letters that the font lacks
        picture = svg(figure)
    plt.close(figure)
    return picture


def _short(name: str, width: int = 20) -> str:
    """A name in which Matplotlib finds no formula."""
    name = name if len(name) <= width else name[: width - 1] + "…"
    return name.replace("$", r"\$").replace("\n", " ")
