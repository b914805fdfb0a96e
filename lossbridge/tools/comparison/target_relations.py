"""The known relations between two runs' targets: one-hot rows, a shift, another order of classes, smoothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lossbridge.tools.comparison.quantities import Array
from lossbridge.tools.comparison.relations import Gap, Pair, Relation, plain, possessive, relation


def target_relation(pair: Pair) -> Relation:
    """The plainest relation of two arrays of labels, one-hot rows, distributions or outcomes."""
    found = plain(pair)
    if found is not None:
        return found
    if pair.x.ndim + 1 == pair.y.ndim:
        found = _labels_and_rows(pair)
    elif pair.y.ndim + 1 == pair.x.ndim:
        found = _labels_and_rows(pair.swapped)
        if found is not None and found.classes:
            found = replace(found, classes=tuple(np.argsort(found.classes).tolist()))
    elif pair.x.shape == pair.y.shape:
        found = _smoothed(pair) or _smoothed(pair.swapped)
        if found is None and _whole(pair.x) and _whole(pair.y):
            found = between_labels(pair)
    return found or relation(pair, "targets")


def _whole(x: Array) -> bool:
    return bool(np.isfinite(x).all() and (x == np.round(x)).all())


def _related(pair: Pair, words: str, **more: object) -> Relation:
    zero = np.zeros(pair.x.shape)
    return Relation("related", words, Gap.of(zero, zero), **more)  # type: ignore[arg-type]


def _labels_and_rows(pair: Pair) -> Relation | None:
    """The first array holds labels, the second rows."""
    labels, rows = pair.x, pair.y.astype(np.float64)
    if labels.shape != rows.shape[:-1] or not _whole(labels) or rows.shape[-1] < 2:
        return None
    own = rows.argmax(-1)
    one_hot = np.eye(rows.shape[-1])[own]
    words = f"{pair.a} holds labels, {pair.b} one-hot rows"
    labelled = replace(pair, x=labels, y=own)
    smoothed = _smoothed(replace(pair, x=one_hot, y=rows))
    if smoothed is not None:
        if np.array_equal(labels, own):
            return smoothed
        return None
    if not np.array_equal(one_hot, rows):
        return None
    if np.array_equal(labels, own):
        return _related(pair, words, form_only=True)
    found = between_labels(labelled)
    return None if found is None else replace(found, words=f"{found.words} ({words})")


def _smoothed(pair: Pair) -> Relation | None:
    """The second array's rows are the first's with label smoothing."""
    x, y = pair.x.astype(np.float64), pair.y.astype(np.float64)
    if x.shape != y.shape or x.ndim < 1 or not np.isfinite(x).all() or not np.isfinite(y).all():
        return None
    outcomes = 2 if x.ndim < 2 or x.shape[-1] == 1 or not np.allclose(x.sum(-1), 1) else x.shape[-1]
    if not (x == 0).any() or y.min() <= 0:
        return None
    s = float(y[x == 0].mean() * outcomes)
    if not 0 < s < 1:
        return None
    words = f"{pair.b} has {possessive(pair.a)} targets with label smoothing {s:.4g} in them already"
    return pair.related(words, x * (1 - s) + s / outcomes, y)


def between_labels(pair: Pair) -> Relation | None:
    """Of two arrays of integers of one shape that are not equal."""
    x, y = pair.x.astype(np.float64), pair.y.astype(np.float64)
    if np.isin(x, (0, 1)).all() and np.array_equal(y, 1 - x):
        words = f"{pair.b} has 1 where {pair.a} has 0: the other outcome counts as the event"
        return _related(pair, words, classes=(1, 0))
    for p in (pair, pair.swapped):
        if np.isin(p.x, (0, 1)).all() and np.array_equal(p.y, 2.0 * p.x - 1):
            return _related(pair, f"{p.b} holds −1 and 1 where {p.a} holds 0 and 1; losses take 0 and 1")
    offset = y.flat[0] - x.flat[0]
    if np.array_equal(y, x + offset) and x.size > 1:
        higher, lower = (pair.b, pair.a) if offset > 0 else (pair.a, pair.b)
        start = f": {possessive(higher)} start at 1" if abs(offset) == 1 else ""
        return _related(pair, f"{higher} has {possessive(lower)} labels + {abs(offset):g}{start}")
    return _ignored(pair, x, y) or _one_position_later(pair, x, y) or _renumbered(pair, x, y) or _shuffled(pair, x, y)


def _ignored(pair: Pair, x: Array, y: Array) -> Relation | None:
    """What is left out has another label."""
    other = x != y
    left, right = np.unique(x[other]), np.unique(y[other])
    if len(left) != 1 or len(right) != 1 or (x[~other] == left[0]).any() or (y[~other] == right[0]).any():
        return None
    if left[0] >= 0 and right[0] >= 0:
        return None
    return _related(pair, f"what {pair.a} labels {left[0]:g}, {pair.b} labels {right[0]:g}: is it ignored by both?")


def _one_position_later(pair: Pair, x: Array, y: Array) -> Relation | None:
    for p, first, second in ((pair, x, y), (pair.swapped, y, x)):
        if first.ndim and first.shape[-1] > 4 and np.array_equal(first[..., 1:], second[..., :-1]):
            return _related(
                pair,
                f"{p.b} has {possessive(p.a)} labels one position earlier: shifted once more, as for the next token",
            )
    return None


def _renumbered(pair: Pair, x: Array, y: Array) -> Relation | None:
    """One class for each other class."""
    matches = np.unique(np.stack([x.ravel(), y.ravel()]), axis=1)
    classes = matches.shape[1]
    one_to_one = len(np.unique(matches[0])) == len(np.unique(matches[1])) == classes
    if not one_to_one or x.size < 2 * classes or classes < 2:
        return None  # with fewer samples any labels would fit
    moved = [f"{a:g} → {b:g}" for a, b in matches.T.tolist() if a != b]
    shown = ", ".join(moved[:6]) + (", …" if len(moved) > 6 else "")
    words = f"{pair.b} numbers {possessive(pair.a)} classes in another order: {shown}"
    # The order in which the columns of the first are the second's, where every class occurs.
    order = np.argsort(matches[1]) if np.array_equal(np.sort(matches[1]), matches[0]) else np.zeros(0, np.int64)
    whole = order.size and np.array_equal(matches[0], np.arange(classes))
    return _related(pair, words, classes=tuple(order.tolist()) if whole else ())


def _shuffled(pair: Pair, x: Array, y: Array) -> Relation | None:
    if x.size > 4 and np.array_equal(np.sort(x, None), np.sort(y, None)):
        return _related(
            pair, f"{pair.b} has as many of each label as {pair.a}, in another order: were samples shuffled?"
        )
    return None


__all__ = ["between_labels", "target_relation"]
