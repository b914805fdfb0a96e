"""Which rows people count, and how much, besides the weights that they give: classes left out, means in two steps, …

Each is one weight a row and a divisor, so that it goes with every loss. Evaluates no loss.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

Array = np.ndarray

_MOST_CLASSES = 64  # of which each in turn is left out
_MOST_ROWS = 64  # of which every number of first rows is tried, above only multiples of usual batch sizes
_BATCH_SIZES = (2, 4, 8, 10, 16, 20, 32, 50, 64, 100, 128, 200, 256, 500, 512, 1000, 1024)

ALL = "all"
WEIGHTS_APART = "the mean of the losses times the mean of the weights"
FIRST_ROWS = "the first"  # how the words of those begin, whose number is large


class Weighting(NamedTuple):
    """The loss is Σ weight · loss / divisor. The rows that are left out have weight 0."""

    weight: Array  # (N,)
    divisor: float
    code: str = ""  # the index of the rows that are left, where those count alike; {labels} stands for y_true


def weightings(
    shape: tuple[int, ...], valid: Array, labels: Array | None, classes: int, sample_weight: Array | None
) -> dict[str, Weighting]:
    """By their words. `shape`: of the samples, whose N in C order are the rows; `labels`: (N,), where there are any."""
    found = dict(_of_positions(shape, valid))
    if labels is not None:
        found |= dict(_of_classes(labels, classes, valid))
    if sample_weight is not None and valid.any():
        found[WEIGHTS_APART] = Weighting(valid * sample_weight[valid].mean(), float(valid.sum()))
    return found


def _of_classes(labels: Array, classes: int, valid: Array) -> Iterator[tuple[str, Weighting]]:
    inside = valid & (labels >= 0) & (labels < classes)
    own = np.where(inside, labels, 0)
    counts = np.bincount(own[inside], minlength=classes)
    present = np.flatnonzero(counts)
    if len(present) < 2:
        return
    total = float(inside.sum())
    if len(present) <= _MOST_CLASSES:
        for k in present:
            rest = inside & (labels != k)
            yield f"class {k} left out", Weighting(rest.astype(float), float(rest.sum()), f"[{{labels}} != {k}]")
        for k in present:
            alone = inside & (labels == k)
            yield f"class {k} alone", Weighting(alone.astype(float), float(alone.sum()), f"[{{labels}} == {k}]")
    with np.errstate(divide="ignore"):
        inverse = np.where(counts > 0, 1 / counts, 0.0)
        weights = {
            "N/(C·n_c), balanced": total / classes * inverse,
            "1/n_c": inverse,
            "1/√n_c": np.sqrt(inverse),
            "N/n_c": total * inverse,
        }
    means = Weighting(inside * inverse[own], float(len(present)))
    yield "the mean of each class first, then that of the classes", means
    for words, weight in weights.items():
        rows = inside * weight[own]
        yield f"class weights {words}, divided by N", Weighting(rows, total)
        if words != "N/n_c":
            yield f"class weights {words}, divided by their sum", Weighting(rows, float(rows.sum()))


def _of_positions(shape: tuple[int, ...], valid: Array) -> Iterator[tuple[str, Weighting]]:
    count = len(valid)
    for axis in range(len(shape)) if len(shape) > 1 else ():
        # Uneven groups, without which this is the plain mean.
        group = np.indices(shape)[axis]
        other = " and ".join(str(i) for i in range(len(shape)) if i != axis)
        sizes = np.bincount(group.reshape(-1)[valid], minlength=shape[axis])
        if len(set(sizes[sizes > 0])) > 1:
            yield f"the mean over axis {other} first, then over axis {axis}", _grouped(group.reshape(-1), valid)
    for size in _BATCH_SIZES:
        group = np.arange(count) // size
        sizes = np.bincount(group[valid])
        if size < count and len(set(sizes[sizes > 0])) > 1:
            yield f"the mean of each batch of {size} rows first, then that of the batches", _grouped(group, valid)
    firsts = range(count - 1, count // 2, -1) if count <= _MOST_ROWS else (count // b * b for b in _BATCH_SIZES)
    for k in dict.fromkeys((count - 1, *firsts)):
        first = valid & (np.arange(count) < k)
        if 0 < k < count and first.any():
            code = f"[:{k}]" if valid.all() else ""
            yield f"{FIRST_ROWS} {k} of {count} rows alone", Weighting(first.astype(float), float(first.sum()), code)


def _grouped(group: Array, valid: Array) -> Weighting:
    """The mean of the groups' means, of groups that have a row."""
    sizes = np.bincount(group[valid], minlength=int(group.max()) + 1)
    return Weighting(np.where(valid, 1 / np.maximum(sizes, 1)[group], 0.0), float((sizes > 0).sum()))
