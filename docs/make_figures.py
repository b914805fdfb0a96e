"""Draws the pictures of theory.md into docs/figures: `python docs/make_figures.py`.

Needs NumPy and matplotlib and nothing of lossbridge, so that a picture is a second, independent look at a formula.
"""

from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

FIGURES = Path(__file__).parent / "figures"

# Okabe and Ito's palette stays distinct under the common colour deficiencies; line styles repeat the distinction.
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#555555"

STYLE = {
    "figure.figsize": (7.0, 3.8),
    "figure.dpi": 150,
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same picture on every machine
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#E4E4E4",
    "axes.titlesize": 11,
    "lines.linewidth": 2.2,
    "legend.edgecolor": "none",
    "legend.framealpha": 1,
}

SKEWED = np.array([1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 64, 1 / 64, 1 / 64, 1 / 64])
BALANCED = np.full(8, 1 / 8)
REPORTS = ["sun", "cloud", "rain", "wind", "fog", "snow", "hail", "storm"]


def cross_entropy(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Mean code length, in bits, of p's events under q's code, along the last axis; p and q hold no zeros."""
    return -(p * np.log2(q)).sum(-1)


def relative_entropy(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """What q's code costs beyond p's own, in bits."""
    return cross_entropy(p, q) - cross_entropy(p, p)


def coins(heads: np.ndarray) -> np.ndarray:
    """One distribution (heads, tails) a row."""
    return np.stack([heads, 1 - heads], axis=-1)


def surprisal() -> Figure:
    figure, axes = plt.subplots()
    p = np.linspace(0.008, 1, 500)
    axes.plot(p, -np.log2(p), color=BLUE)
    marked = {"1/64: 6 bits": 1 / 64, "1/8: 3 bits": 1 / 8, "1/4: 2 bits": 1 / 4, "1/2: 1 bit": 1 / 2, "1: 0 bits": 1}
    for label, point in marked.items():
        axes.plot(point, -np.log2(point), "o", color=ORANGE, clip_on=False)
        axes.annotate(label, (point, -np.log2(point)), xytext=(8, 6), textcoords="offset points")
    axes.set(xlabel="probability p of the event", ylabel="surprisal (bits)", xlim=(0, 1.18), ylim=(0, 7))
    axes.set_xticks(np.linspace(0, 1, 6))
    nats = axes.secondary_yaxis("right", functions=(lambda bits: bits * np.log(2), lambda nats: nats / np.log(2)))
    nats.set_ylabel("surprisal (nats)")
    return figure


def coin_entropy() -> Figure:
    figure, axes = plt.subplots()
    heads = np.linspace(1e-9, 1 - 1e-9, 501)
    axes.plot(heads, cross_entropy(coins(heads), coins(heads)), color=BLUE)
    for bias in (0.5, 0.9, 0.99):
        coin = coins(np.array(bias))
        bits = cross_entropy(coin, coin)
        axes.plot(bias, bits, "o", color=ORANGE)
        right = bias == 0.5
        axes.annotate(
            f"{bias:g}: {bits:.3f} bits",
            (bias, bits),
            xytext=(0, 7) if right else (-9, -4),
            textcoords="offset points",
            ha="center" if right else "right",
        )
    axes.set(xlabel="probability of heads", ylabel="entropy of one toss (bits)", xlim=(-0.02, 1.02), ylim=(0, 1.15))
    return figure


def eight_events() -> Figure:
    figure, panels = plt.subplots(1, 2, sharey=True)
    draw_distribution(panels[0], SKEWED, "skewed", BLUE)
    draw_distribution(panels[1], BALANCED, "balanced", ORANGE)
    panels[0].set_ylabel("probability")
    return figure


def draw_distribution(axes: Axes, p: np.ndarray, name: str, color: str) -> None:
    axes.bar(REPORTS, p, color=color)
    axes.set_title(f"{name}: entropy {cross_entropy(p, p):.0f} bits, perplexity {2 ** cross_entropy(p, p):.0f}")
    axes.tick_params(axis="x", rotation=60)
    axes.grid(axis="x", visible=False)


def cross_entropy_split() -> Figure:
    figure, axes = plt.subplots()
    codes = {
        "Q = P": SKEWED,
        "half P,\nhalf balanced": (SKEWED + BALANCED) / 2,
        "balanced": BALANCED,
        "P in reverse\norder": SKEWED[::-1],
    }
    floor = cross_entropy(SKEWED, SKEWED)
    totals = np.array([cross_entropy(SKEWED, q) for q in codes.values()])
    axes.bar(list(codes), floor, color=BLUE, width=0.6, label="H(P): what the events themselves cost")
    axes.bar(
        list(codes), totals - floor, bottom=floor, color=ORANGE, width=0.6, label="KL(P‖Q): what the wrong code adds"
    )
    for position, total in enumerate(totals):
        axes.annotate(f"{total:.2f}", (position, total), xytext=(0, 4), textcoords="offset points", ha="center")
    axes.set(xlabel="whose code is used, Q", ylabel="cross-entropy H(P, Q) (bits)", ylim=(0, 7))
    axes.grid(axis="x", visible=False)
    axes.legend(loc="upper left")
    return figure


def kl_directions() -> Figure:
    figure, axes = plt.subplots()
    heads = np.linspace(0.001, 0.999, 999)
    fair, biased = coins(np.full_like(heads, 0.5)), coins(heads)
    axes.plot(heads, relative_entropy(fair, biased), color=BLUE, label="KL(P‖Q): grows without bound at the ends")
    axes.plot(heads, relative_entropy(biased, fair), "--", color=ORANGE, label="KL(Q‖P): never above 1 bit")
    p, q = coins(np.array(0.5)), coins(np.array(0.9))
    for bits, beside in [(relative_entropy(p, q), (-44, 4)), (relative_entropy(q, p), (8, -13))]:
        axes.plot(0.9, bits, "o", color=GREY)
        axes.annotate(f"{bits:.3f}", (0.9, bits), xytext=beside, textcoords="offset points")
    axes.set(
        xlabel="Q's probability of heads (P is the fair coin)",
        ylabel="KL divergence (bits)",
        xlim=(0, 1),
        ylim=(0, 3.5),
    )
    axes.legend(loc="upper center")
    return figure


def epsilon_clip() -> Figure:
    figure, axes = plt.subplots()
    epsilon = 1e-7
    p = np.logspace(-10, 0, 601)
    axes.plot(p, -np.log(p), "--", color=ORANGE, label="exact: −ln p")
    axes.plot(p, -np.log(np.clip(p, epsilon, 1 - epsilon)), color=BLUE, label="clipped at ε = 1e-7")
    ceiling = -np.log(epsilon)
    axes.annotate(
        f"flat at {ceiling:.2f} nats:\nno gradient here", (2e-10, ceiling), xytext=(2e-10, 11), va="center", color=BLUE
    )
    axes.set(
        xscale="log",
        xlabel="probability p given to the true class",
        ylabel="loss (nats)",
        xlim=(1e-10, 1),
        ylim=(0, 24),
    )
    axes.legend(loc="upper right")
    return figure


PICTURES: list[Callable[[], Figure]] = [
    surprisal,
    coin_entropy,
    eight_events,
    cross_entropy_split,
    kl_directions,
    epsilon_clip,
]


def main() -> None:
    FIGURES.mkdir(exist_ok=True)
    with mpl.rc_context(STYLE):
        for picture in PICTURES:
            figure = picture()
            figure.tight_layout()
            # matplotlib writes its own version into a PNG unless told not to: the file would change with each release.
            figure.savefig(FIGURES / f"{picture.__name__}.png", metadata={"Software": None})
            plt.close(figure)


if __name__ == "__main__":
    main()
