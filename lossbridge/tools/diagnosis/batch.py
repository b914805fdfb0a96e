"""The caller's arrays as the diagnosis reads them: `Batch`, and its rows as matrices in float64."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from lossbridge.tools.diagnosis.weightings import Weighting, weightings

Array = np.ndarray
# The loss; one value per row; one per element; the gradient with respect to y_pred.
Quantity = Literal["scalar", "samples", "elements", "gradient"]
WEIGHTS = ("class_weight", "sample_weight")  # fields of a batch, and of a convention


@dataclass(frozen=True)
class Batch:
    """Targets and predictions, with weights and mask. `labels`: y_true holds class indices."""

    y_true: Array
    y_pred: Array
    class_weight: Array | None = None
    sample_weight: Array | None = None
    mask: Array | None = None
    ignored: int | None = None  # the label to ignore
    half: str = ""  # "float16" or "bfloat16" if that is the dtype of the given predictions
    moved: bool = False  # in the caller's arrays the classes lie along axis 1
    shift: int = 0  # the caller's labels are larger by this number
    given: Mapping[str, str] = field(default_factory=dict)  # NumPy code that makes an array here from the caller's

    @cached_property
    def labels(self) -> bool:
        return self.y_true.ndim < self.y_pred.ndim

    def as_given(self) -> tuple[Array, Array]:
        """y_true and y_pred in the caller's layout."""
        true = self.y_true + self.shift if self.shift else self.y_true
        if not self.moved:
            return true, self.y_pred
        return true if self.labels else np.moveaxis(true, -1, 1), np.moveaxis(self.y_pred, -1, 1)

    @property
    def form(self) -> tuple[bool, int, int]:
        """Equal for batches that can be searched together."""
        return self.labels, self.y_pred.ndim, self.classes

    @property
    def classes(self) -> int:
        return self.y_pred.shape[-1] if self.y_pred.ndim > 1 else 1

    def rows(self, axis: int) -> Rows:
        """With the classes along `axis`. Cached."""
        if axis not in self._rows:
            self._rows[axis] = Rows.of(self, axis)
        return self._rows[axis]

    @cached_property
    def swapped(self) -> Batch:
        return replace(self, y_true=self.y_pred, y_pred=self.y_true)

    @cached_property
    def weightings(self) -> Mapping[str, Weighting]:
        """Of the rows along the last axis."""
        rows = self.rows(-1)
        labels = self.y_true.reshape(-1) if self.labels else None
        target = rows.target
        if labels is None and np.isin(target, (0, 1)).all():
            if target.shape[1] == 1:
                labels = target[:, 0].astype(np.int64)
            elif (target.sum(1) == 1).all():
                labels = target.argmax(1)
        shape = self.y_pred.shape[:-1] if self.y_pred.ndim > 1 else self.y_pred.shape
        return weightings(shape, rows.valid, labels, self.classes, rows.weight)

    @cached_property
    def _rows(self) -> dict[int, Rows]:
        return {}


@dataclass(frozen=True)
class Rows:
    """A batch as matrices: one row per sample, one column per class; a single column where y_pred is a vector."""

    target: Array  # (N, C), float64; labels as one-hot rows, of zeros for labels out of range
    pred: Array
    weight: Array | None  # (N,)
    class_weight: Array | None  # (C,); or (2,), of the outcomes 0 and 1, where there is a single column
    valid: Array  # (N,): neither masked nor ignored
    out_of_range: Array  # (N,): the label is out of range, and not the one to ignore
    dtype: str  # of the libraries' computation with these predictions
    label: Array | None = None  # (N,): of one-hot rows and those of zeros, the place of the 1, or 0
    column: Any = None  # of what is computed from pred: the one entry of each row that target has; None: all
    indices: Any = None  # of these rows in the batch; None: all
    batch: Batch | None = None  # that they are of, where they lie along its last axis

    @staticmethod
    def of(batch: Batch, axis: int) -> Rows:
        def matrix(x: Array) -> Array:
            x = np.asarray(x, np.float64)
            return x[:, None] if x.ndim < 2 else np.moveaxis(x, axis, -1).reshape(-1, x.shape[axis])

        pred = matrix(np.atleast_1d(batch.y_pred))
        count, classes = pred.shape
        valid, out_of_range = np.ones(count, bool), np.zeros(count, bool)
        if batch.labels:
            flat = batch.y_true.reshape(-1)
            fits = (flat >= 0) & (flat < classes)
            target = np.zeros((count, classes))
            target[np.flatnonzero(fits), flat[fits].astype(np.int64)] = 1
            if batch.ignored is not None:
                valid = flat != batch.ignored
            out_of_range = ~fits & valid
        else:
            target = matrix(np.atleast_1d(batch.y_true))
        mask = _per_row(batch.mask, batch, axis, count)
        if mask is not None:
            valid = valid & mask.astype(bool)
        weight = _per_row(batch.sample_weight, batch, axis, count)
        class_weight = None if batch.class_weight is None else np.asarray(batch.class_weight, np.float64).reshape(-1)
        of_outcomes = class_weight is not None and class_weight.size == 2 and classes == 1
        if class_weight is not None and class_weight.size != classes and not of_outcomes:
            class_weight = None
        dtype = "float64" if batch.y_pred.dtype == np.float64 else "float32"
        of = batch if axis in (-1, batch.y_pred.ndim - 1) else None
        label = _places(target) if classes > 1 else None
        return Rows(target, pred, weight, class_weight, valid, out_of_range, dtype, label, batch=of)

    @cached_property
    def at_label(self) -> Rows:
        """With the entry of the label alone."""
        assert self.label is not None
        column = np.arange(len(self.label))[:, None], self.label[:, None]
        weight = None if self.class_weight is None else self.class_weight[column[1]]
        return replace(self, target=self.target[column], class_weight=weight, column=column)

    def weighting(self, name: str) -> Weighting:
        """A named one of the batch, for these rows."""
        assert self.batch is not None
        whole = self.batch.weightings[name]
        return whole if self.indices is None else whole._replace(weight=whole.weight[self.indices])

    @property
    def of_outcomes(self) -> bool:
        """Whether the class weights are those of the outcomes 0 and 1."""
        return self.class_weight is not None and self.class_weight.size == 2 and self.pred.shape[1] == 1

    def some(self, index: Any) -> Rows:
        names = ("target", "pred", "weight", "valid", "out_of_range", "label")
        some: dict[str, Any] = {name: getattr(self, name)[index] for name in names if getattr(self, name) is not None}
        return replace(self, indices=index, **some)


def _places(target: Array) -> Array | None:
    """Of the 1 in each row; None if there are other numbers than 0 and 1, or several of these."""
    hard = bool(((target == 0) | (target == 1)).all()) and bool((target.sum(1) <= 1).all())
    return target.argmax(1) if hard else None


def _per_row(x: Array | None, batch: Batch, axis: int, count: int) -> Array | None:
    """A weight or mask, of the samples' shape or its leading axes, as one number per row.

    None if it has another shape, as weights for rows along another axis have.
    """
    shape = batch.y_pred.shape
    samples = tuple(np.delete(shape, axis)) if len(shape) > 1 else shape
    if x is None or x.shape != samples[: x.ndim]:
        return None
    x = np.asarray(x, np.float64).reshape(x.shape + (1,) * (len(samples) - x.ndim))
    return np.broadcast_to(x, samples).reshape(count)
