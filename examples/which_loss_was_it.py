"""Which loss did this log come from? `python examples/which_loss_was_it.py`

A log holds a number, and not which function computed it, how it was reduced, or what it took the predictions for. But
one batch was saved. `lb.diagnose` computes on it what the libraries compute, and names what gives the number. The logs
here are made by the libraries' own functions, so that each answer can be judged.
Needs: pip install 'lossbridge[torch,jax,keras]' optax scikit-learn matplotlib

Below: the saved batches, what the runs computed, three steps, the picture. Keras runs on JAX.
"""

import argparse
import os
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

os.environ |= {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}

import jax
import keras
import numpy as np
import optax
import sklearn.metrics
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from pictures import GREY, ORANGE, STYLE, plt, save
from torch.nn import functional as F

import lossbridge as lb

CLASSES, BATCH = 10, 64
CLASS_WEIGHT = np.array([1, 1, 1, 1, 1, 1, 1, 1, 3, 2], np.float32)

Data = tuple[np.ndarray, np.ndarray]  # labels (N,), logits (N, 10)
Loss = Callable[[np.ndarray, np.ndarray], float]


def saved_batches() -> tuple[Data, Data]:
    """Two of a classifier of handwritten digits. In the second, the surest prediction has a wrong label."""
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression

    images, labels = load_digits(return_X_y=True)
    classifier = LogisticRegression(C=10, max_iter=3000).fit(images[:900] / 16, labels[:900])
    # Rounded, as a text file holds them: so they are the same on every machine.
    logits = classifier.decision_function(images[900 : 900 + 2 * BATCH] / 16).round(2).astype(np.float32)
    (first, second), (z, others) = np.split(labels[900 : 900 + 2 * BATCH].copy(), 2), np.split(logits, 2)
    surest = np.ptp(others, axis=1).argmax()
    second[surest] = others[surest].argmin()
    return (first, z), (second, others)


def softmax(logits: np.ndarray) -> np.ndarray:
    return np.array(jax.nn.softmax(logits))


# What the runs computed.


def logs(labels: np.ndarray, logits: np.ndarray) -> dict[str, str]:
    """What each run logged for the batch. Its name says what is to be found."""
    y, z, one_hot = torch.from_numpy(labels), torch.from_numpy(logits), np.eye(CLASSES, dtype=np.float32)[labels]
    smoothed = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)
    weighted = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    per_sample = optax.softmax_cross_entropy_with_integer_labels
    numbers = {
        "torch: plain": F.cross_entropy(z, y),
        "keras: label smoothing": smoothed(one_hot, logits),
        "torch: class weights": F.cross_entropy(z, y, weight=torch.from_numpy(CLASS_WEIGHT)),
        "keras: class weights": weighted(labels, logits, sample_weight=CLASS_WEIGHT[labels]),  # as fit(class_weight=)
        "optax: summed": per_sample(logits, labels).sum(),
        "optax: at temperature 2": per_sample(logits / 2, labels).mean(),
        "torch: of probabilities": F.cross_entropy(z.softmax(-1), y),
        "sklearn: in bits": sklearn.metrics.log_loss(labels, softmax(logits), labels=range(CLASSES)) / np.log(2),
    }
    return {name: f"{float(number):.6f}" for name, number in numbers.items()}


# The same loss of probabilities in three libraries, but where a probability is nearly 0.
OF_PROBABILITIES: dict[str, Loss] = {
    "Keras": lambda labels, p: float(keras.losses.SparseCategoricalCrossentropy()(labels, p)),
    "PyTorch": lambda labels, p: F.nll_loss(torch.from_numpy(p).log(), torch.from_numpy(labels)).item(),
    "scikit-learn": lambda labels, p: sklearn.metrics.log_loss(labels, p, labels=range(CLASSES)),
}


# The steps.


def name_each(labels: np.ndarray, logits: np.ndarray) -> dict[str, tuple[str, str]]:
    """1. Of each run: its number, and the call that gives it, of the run's own library where that has one."""
    named = {}
    for run, number in logs(labels, logits).items():
        found = lb.diagnose(labels, logits, number, class_weight=CLASS_WEIGHT).classes[0]
        call = found.calls.get(run.split(":")[0], found.calls["lossbridge"])
        print(f"{run:24} {number}\n  {found.explanations[0].words}\n  {call}")
        named[run] = number, call
    return named


def tell_apart(*batches: Data) -> dict[str, list[str]]:
    """2. A number that several explain, and a second one that decides. Of each library: what it gives for both."""
    given = [(labels, softmax(logits)) for labels, logits in batches]
    numbers = {name: [f"{loss(*batch):.6f}" for batch in given] for name, loss in OF_PROBABILITIES.items()}
    (first, second), logged = given, numbers["Keras"]
    alone = lb.diagnose(*first, logged[0])
    both = lb.diagnose(*first, logged[0], more=[(*second, logged[1])])
    print(f"\n{logged[0]} was logged for the probabilities of the first batch, {logged[1]} for those of the second.")
    for name, (one, other) in numbers.items():
        print(f"  {name:12}  {one}  {other}")
    counts = [sum(len(group.explanations) for group in found.classes) for found in (alone, both)]
    print(f"The first number has {counts[0]} explanations, both have {counts[1]}; first of those:")
    print(f"  {both.classes[0].explanations[0].words}")
    return numbers


def fail(labels: np.ndarray, logits: np.ndarray) -> None:
    """3. The run's loss has a penalty of the weights, as Keras adds that of a regulariser. The batch cannot hold it."""
    penalty = 0.0123456
    number = f"{F.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels)) + penalty:.6f}"
    print(f"\nA penalty of the weights, {penalty}, is in this one:\n{lb.diagnose(labels, logits, number)}")


# The picture.


def draw(named: dict[str, tuple[str, str]], numbers: dict[str, list[str]], path: Path) -> None:
    with rc_context(STYLE | {"font.size": 9}):
        figure, (above, below) = plt.subplots(2, 1, figsize=(10, 6), layout="constrained", height_ratios=(8, 3))
        logged = [float(number) for number, _ in named.values()]
        for place, number in enumerate(logged):
            above.plot(logged, [place] * len(logged), "o", color=GREY, markersize=4)
            above.plot(number, place, "D", color=ORANGE)
        label(above, list(named), [textwrap.fill(call, 62) for _, call in named.values()])
        above.set(xscale="log", title="Eight runs, one batch: what each logged, and the call that gives it")

        for number in numbers["Keras"]:
            below.axvline(float(number), color=ORANGE, linestyle="--")
        for place, pair in enumerate(numbers.values()):
            below.plot([float(number) for number in pair], [place] * 2, "o", color="black", markersize=4)
        label(below, list(numbers), [f"gives {first} and {second}" for first, second in numbers.values()])
        below.set(xlabel="loss", title="A number that three explain, and one that only Keras explains")
        save(figure, path)


def label(axes: Axes, left: list[str], right: list[str]) -> None:
    """Words at both ends of every line of the picture."""
    axes.set_yticks(range(len(left)), left)
    axes.set_ylim(len(left) - 0.5, -0.5)
    beside = axes.secondary_yaxis("right")
    beside.set_yticks(range(len(right)), right)
    beside.tick_params(length=0, labelsize=8)
    beside.spines["right"].set_visible(False)


def main(out: Path) -> None:
    first, second = saved_batches()
    named = name_each(*first)
    numbers = tell_apart(first, second)
    fail(*first)
    draw(named, numbers, out)
    print(f"picture: {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Finds the losses behind the numbers of logs.")
    parser.add_argument("--out", type=Path, default="which_loss_was_it.png", help="The picture to write.")
    sys.exit(main(parser.parse_args().out))
