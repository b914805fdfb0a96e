"""How the examples' pictures look, as those of docs/make_figures.py."""

from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

mpl.use("Agg")

import matplotlib.pyplot as plt

# Okabe and Ito's palette stays distinct under the common colour deficiencies.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#BBBBBB"
STYLE = {
    "figure.dpi": 150,
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same picture on every machine
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#E4E4E4",
    "axes.titlesize": 11,
    "legend.edgecolor": "none",
    "legend.framealpha": 1,
}


def save(figure: Figure, path: Path) -> None:
    # matplotlib writes its own version into a PNG unless told not to: the file would change with each release.
    figure.savefig(path, format="png", metadata={"Software": None})
    plt.close(figure)
