"""Other interpretations of the caller's arrays, for a number that nothing explains: labels of the next step, events
turned, classes exchanged, …

Each gives arrays that are diagnosed once more. Depends on no convention.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from lossbridge.tools.diagnosis.batch import Array, Batch
from lossbridge.tools.diagnosis.reading import array

_BROADCAST = 1000  # most samples that are broadcast to a loss of every pair
# What is tried: everything, the functions themselves with nothing changed, what has the classes along another axis, or
# the functions with a constant added.
Depth = Literal["all", "plain", "another axis", "constants"]
_SOME, MANY = 2, 10  # alternatives
_EXCHANGED = 12  # most classes of which every pair is exchanged


@dataclass(frozen=True)
class Reading:
    """Another interpretation of the caller's arrays."""

    words: str
    y_true: Any
    y_pred: Any
    given: Mapping[str, str]  # NumPy code that makes these arrays from the caller's
    moved: bool = False  # for `batch_of`
    shift: int = 0
    mask: Array | None = None  # of what is left, where it leaves something out
    depth: Depth = "plain"
    alternatives: int = 1  # of many it is believed with five digits or more, of very many with six
    library: str = ""  # whose functions read arrays so, and so stand first

    def of(self, batch: Batch) -> Batch:
        """`batch`, which was read from these arrays, with the code that makes it from the caller's."""
        names = {*self.given, *batch.given}
        made = {n: batch.given.get(n, n).replace(n, self.given.get(n, n), 1) for n in names}
        return replace(batch, given=made, shift=self.shift)


def others(batch: Batch, y_true: Any, y_pred: Any) -> Iterator[Reading]:
    """The likely ones first."""
    true, pred = array(y_true, "y_true"), array(y_pred, "y_pred")
    yield from _of_vectors(true, pred)
    yield from _broadcast(true, pred)
    if batch.labels:
        yield from _of_labels(batch, y_true, y_pred)
    if not batch.labels or batch.classes == 2:
        yield from _turned(batch)
    yield from _counts(batch)
    yield from _exchanged(batch)


def _made(batch: Batch, **changed: str) -> dict[str, str]:
    """The code of the batch's arrays, with changes in which {} stands for the code before."""
    before = {name: batch.given.get(name, name) for name in ("y_true", "y_pred")}
    return {**batch.given, **{name: text.format(before[name]) for name, text in changed.items()}}


def _of_vectors(true: Array, pred: Array) -> Iterator[Reading]:
    outcomes = np.isin(true, (0, 1)).all() and true.sum() != 1
    if true.ndim == pred.ndim == 1 and pred.size > 1 and not outcomes:
        both = {name: f"np.asarray({name})[None]" for name in ("y_true", "y_pred")}
        words = "y_true and y_pred read as one distribution"
        rows = true[None], pred[None]
        yield Reading(words, *rows, both, depth="all", library="scipy")
        if (true >= 0).all() and (pred >= 0).all() and true.sum() > 0 and pred.sum() > 0:
            both = {name: f"np.asarray({name})[None] / np.sum({name})" for name in ("y_true", "y_pred")}
            words = "y_true and y_pred read as counts, which SciPy makes sum to 1"
            yield Reading(words, true[None] / true.sum(), pred[None] / pred.sum(), both, library="scipy")


def _broadcast(true: Array, pred: Array) -> Iterator[Reading]:
    count = pred.shape[0] if pred.ndim else 0
    if {true.shape, pred.shape} == {(count,), (count, 1)} and 1 < count <= _BROADCAST:
        shape = (count, count)
        yield Reading(
            f"y_true of shape {true.shape} and y_pred of shape {pred.shape} were broadcast to {shape}: a loss of every "
            "pair of samples",
            np.broadcast_to(true, shape),
            np.broadcast_to(pred, shape),
            {name: f"np.broadcast_to({name}, {shape})" for name in ("y_true", "y_pred")},
            depth="all",
        )


def _of_labels(batch: Batch, y_true: Any, y_pred: Any) -> Iterator[Reading]:
    labels, classes, pred = batch.y_true, batch.classes, batch.y_pred
    if labels.min() == 1 and labels.max() <= classes:
        given = _made(batch, y_true="np.subtract({}, 1)")
        yield Reading("the labels start at 1", labels - 1, pred, given, shift=1, depth="all")
    if pred.ndim > 2 and pred.shape[1] == pred.shape[-1] and not batch.moved:
        yield Reading("the classes lie along axis 1", y_true, y_pred, {}, moved=True, depth="all")
    if (labels < 0).any() and (labels >= -classes).all() and (labels < classes).all():
        words = "negative labels wrap round, as in optax and NumPy: −1 is the last class"
        yield Reading(words, labels % classes, pred, _made(batch, y_true=f"np.mod({{}}, {classes})"))
    yield from _shifted(batch)
    inside = bool(((labels >= 0) & (labels < classes)).all())
    if labels.ndim == 1 and inside:
        dtype = pred.dtype
        given = _made(batch, y_true=f"np.eye({classes}, dtype='{dtype.name}')[{{}}]")
        one_hot = np.eye(classes, dtype=dtype)[labels]
        words = "labels read as one-hot rows"
        yield Reading(words, one_hot, pred, given, depth="another axis")
    if classes > 10 and inside:
        order = np.array(sorted(range(classes), key=str))
        words = "the columns of y_pred in the order of labels sorted as texts: 0, 1, 10, 11, …, 2, …"
        code = f"{{}}[..., np.argsort(sorted(range({classes}), key=str))]"
        yield Reading(words, labels, pred[..., np.argsort(order)], _made(batch, y_pred=code))


def _shifted(batch: Batch) -> Iterator[Reading]:
    """Predictions compared with the labels of the next or the previous position, of which the last has none."""
    labels = batch.y_true
    for axis in reversed(range(labels.ndim)):
        size = labels.shape[axis]
        for step, which in ((-1, "next"), (1, "previous")) if size > 1 else ():
            position = np.arange(size).reshape([-1 if i == axis else 1 for i in range(labels.ndim)])
            kept = np.broadcast_to(position < size - 1 if step < 0 else position > 0, labels.shape)
            shifted = np.roll(labels, step, axis)
            words = f"each prediction is compared with the {which} label along axis {axis} (a shift of labels in time)"
            given = _made(batch, y_true=f"np.roll({{}}, {step}, {axis})")
            # A language model's, whose sum may be divided by the tokens of several batches.
            depth: Depth = "all" if step < 0 and 0 < axis == labels.ndim - 1 else "plain"
            some = _SOME if labels.ndim < 2 else 1
            yield Reading(words, shifted, batch.y_pred, given, mask=kept, depth=depth, alternatives=some)


def _turned(batch: Batch) -> Iterator[Reading]:
    """Outcomes of the other event."""
    true = batch.y_true
    distributions = batch.classes > 1 and not batch.labels and np.allclose(true.sum(-1), 1, atol=1e-2)
    if ((true >= 0) & (true <= 1)).all() and not distributions:
        words = "the event reversed: 1 − y_true, the probability being that of the other outcome"
        yield Reading(words, 1 - true, batch.y_pred, _made(batch, y_true="1 - {}"))


def _counts(batch: Batch) -> Iterator[Reading]:
    true, pred = (np.asarray(x, np.float64) for x in (batch.y_true, batch.y_pred))
    if (
        not batch.labels
        and pred.ndim > 1
        and (true >= 0).all()
        and (pred >= 0).all()
        and max(true.max(), pred.max()) > 1
    ):
        sums = true.sum(-1, keepdims=True), pred.sum(-1, keepdims=True)
        if all((total > 0).all() for total in sums):
            code = "{0} / np.sum({0}, -1, keepdims=True)"
            words = "y_true and y_pred read as counts, which SciPy makes sum to 1"
            yield Reading(
                words, true / sums[0], pred / sums[1], _made(batch, y_true=code, y_pred=code), library="scipy"
            )


def _exchanged(batch: Batch) -> Iterator[Reading]:
    """The columns of y_pred in another order than the labels'."""
    classes = batch.classes
    orders = {tuple(range(classes))[::-1]: "reversed"}
    if classes <= _EXCHANGED:
        for i, j in itertools.combinations(range(classes), 2):
            order = list(range(classes))
            order[i], order[j] = j, i
            orders[tuple(order)] = f"with {i} and {j} exchanged"
    if classes <= 4:
        for other in itertools.permutations(range(classes)):
            orders.setdefault(other, f"in the order {', '.join(map(str, other))}")
    orders.pop(tuple(range(classes)), None)
    for columns, how in orders.items() if classes > 1 else ():
        code = f"{{}}[..., {list(columns)}]" if classes <= _EXCHANGED else "{}[..., ::-1]"
        pred = batch.y_pred[..., list(columns)]
        words = f"the classes (columns of y_pred) {how}"
        yield Reading(words, batch.y_true, pred, _made(batch, y_pred=code), alternatives=len(orders))
