"""Small batches (probes) on which conventions give different numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lossbridge.conventions import Convention
from lossbridge.tools.diagnosis.batch import Batch, Quantity
from lossbridge.tools.diagnosis.canonical import Setting, holds
from lossbridge.tools.diagnosis.evaluate import scalars, whole

# Probabilities of the true class, around every ε in use.
_SATURATED = (3e-4, 3e-6, 4e-7, 3e-8, 3e-9, 3e-11, 3e-13, 1e-15, 1e-20)
_VISIBLE = 1e-4  # the relative difference of two numbers that five printed digits show
_KINDS = ("ordinary", "saturated", "certain", "zeros", "unnormalised", "logits", "saturated logits", "logarithms")


def probes(batch: Batch) -> list[Batch]:
    """One batch of each kind, of the form of `batch` and with as many classes."""
    return [_probe(batch, kind, np.random.default_rng(0)) for kind in _KINDS]


def _probe(batch: Batch, kind: str, rng: np.random.Generator) -> Batch:
    vector = batch.y_pred.ndim < 2
    classes = 1 if vector else batch.y_pred.shape[-1]
    middle = tuple(min(size, 3) for size in batch.y_pred.shape[1:-1])
    count = 5 if kind in ("ordinary", "unnormalised", "logits") else len(_SATURATED)
    if 1 < classes < 12:  # every class occurs, and there are more rows than classes, even if one is ignored
        count = max(count, classes + 2)
    logits = rng.normal(size=(count, *middle, classes)) * 1.5
    pred = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True) if classes > 1 else 1 / (1 + np.exp(-logits))
    labels = rng.integers(0, max(classes, 2), (count, *middle))
    labels[:classes, ...] = np.arange(min(classes, count)).reshape(-1, *[1] * len(middle))
    if kind == "logits":
        pred = logits
    elif kind == "unnormalised":
        pred = pred * rng.uniform(0.3, 0.9, (count, *middle, 1))
    elif kind != "ordinary":
        for i, small in enumerate(_SATURATED):
            value = {"certain": 1.0, "zeros": 0.0}.get(kind, small)
            spot = (i,) + (0,) * len(middle)
            if classes > 1:
                pred[spot] = (1 - value) / (classes - 1)
                pred[(*spot, labels[spot])] = value
            else:
                pred[spot] = value if labels[spot] else 1 - value
        if kind in ("saturated logits", "logarithms"):
            of_logits = kind == "saturated logits"
            log_complement = np.log1p(-np.minimum(pred, 1 - 1e-16)) if of_logits and classes == 1 else 0.0
            pred = np.log(pred) - log_complement + (3 if of_logits and classes > 1 else 0)
            pred[-1] = np.where(pred[-1] == pred[-1].min(), -200.0, pred[-1])  # below PyTorch's bound of −100
    return _of_form(batch, pred, labels, rng)


def _of_form(batch: Batch, pred: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> Batch:
    """With targets like those of `batch`, labels, hard or soft, and with weights and a mask where it has them."""
    classes = pred.shape[-1]
    if batch.y_pred.ndim < 2:
        y_true, pred = labels.reshape(-1).astype(float), pred.reshape(-1)
    elif batch.labels:
        y_true = labels
        if batch.ignored is not None:
            y_true = y_true.copy()
            y_true.reshape(-1)[1] = batch.ignored
    elif classes == 1:
        y_true = labels[..., None].astype(float)
    else:
        setting = Setting.of(batch, "scalar")
        y_true = np.eye(classes)[labels] if setting.hard else rng.dirichlet(np.full(classes, 2.0), labels.shape)
        if setting.hard and not setting.one_hot:
            y_true = np.maximum(y_true, rng.integers(0, 2, y_true.shape))
        if setting.true_holds != "probabilities":
            y_true = np.log(y_true) + (1 if setting.true_holds == "logits" else 0)
    rows = labels.shape
    mask = None
    if batch.mask is not None:
        mask = rng.random(rows) < 0.7
        mask.reshape(-1)[0] = False
    weight = None if batch.sample_weight is None else rng.integers(1, 6, rows).astype(float)
    dtype = np.float64 if batch.y_pred.dtype == np.float64 else np.float32
    if y_true.dtype.kind == "f":
        y_true = y_true.astype(dtype)
    return replace(batch, y_true=y_true, y_pred=pred.astype(dtype), sample_weight=weight, mask=mask, given={})


def separating(batch: Batch, conventions: Sequence[Convention], quantity: Quantity) -> tuple[Batch, list[float]] | None:
    """The probe that tells most conventions apart, and their numbers on it; None where none tells any apart.

    Its predictions hold what those of `batch` hold, because the caller's loss may refuse anything else. The numbers are
    the losses; where the quantity is an array of values, their mean.
    """
    best: tuple[Batch, list[float]] | None = None
    most = 1
    for probe in probes(batch):
        if holds(probe.y_pred) != holds(batch.y_pred):
            continue
        if quantity in ("scalar", "gradient"):
            values = [float(x) for x in scalars(probe, conventions)]
        else:
            values = [float(whole(probe, c, quantity).mean()) for c in conventions]
        groups = _distinct(values)
        if groups > most:
            best, most = (probe, values), groups
    return best


def _distinct(values: Sequence[float]) -> int:
    """The number of values that five printed digits tell apart."""
    different: list[float] = []
    for x in values:
        if not any(x == y or (x != x and y != y) or abs(x - y) <= _VISIBLE * max(abs(x), 1e-2) for y in different):
            different.append(x)
    return len(different)
