"""Small batches on which conventions give different numbers. Made of plain numbers, which float32 holds too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lossbridge.conventions import Convention
from lossbridge.diagnosis.evaluate import Batch, scalars
from lossbridge.diagnosis.hypotheses import Setting
from lossbridge.diagnosis.search import indistinct

# What the target is given: around every ε in use.
_SATURATED = (3e-4, 3e-6, 4e-7, 3e-8, 3e-9, 3e-11, 3e-13, 1e-15, 1e-20)


def probes(batch: Batch) -> list[Batch]:
    """Batches of the form of `batch` and its number of classes: ordinary, saturated, not summing to 1, logits, zeros."""
    rng = np.random.default_rng(0)
    vector = batch.y_pred.ndim < 2
    classes = 1 if vector else batch.y_pred.shape[-1]
    middle = batch.y_pred.shape[1:-1]
    found = []
    for kind in ("ordinary", "saturated", "unnormalised", "logits", "zeros"):
        count = len(_SATURATED) if kind in ("saturated", "zeros") else 5
        logits = rng.normal(size=(count, *middle, classes)) * 1.5
        shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True) if classes > 1 else 1 / (1 + np.exp(-logits))
        labels = rng.integers(0, max(classes, 2), (count, *middle))
        if kind == "logits":
            pred = logits
        elif kind == "unnormalised":
            pred = shares * rng.uniform(0.3, 0.9, (count, *middle, 1))
        else:
            pred = shares
        if kind in ("saturated", "zeros"):
            pred = pred.copy()
            for i, small in enumerate(_SATURATED):
                value = small if kind == "saturated" else 0.0
                spot = (i,) + (0,) * len(middle)
                if classes > 1:
                    pred[spot] = (1 - value) / (classes - 1)
                    pred[(*spot, labels[spot])] = value
                else:
                    pred[spot] = value if labels[spot] else 1 - value
        found.append(_of_form(batch, pred, labels, rng))
    return found


def _of_form(batch: Batch, pred: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> Batch:
    """Targets as those of `batch`: labels, hard or soft; and weights where it has any."""
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
        hard = np.isin(batch.y_true, (0, 1)).all()
        y_true = np.eye(classes)[labels] if hard else rng.dirichlet(np.full(classes, 2.0), labels.shape)
    rows = labels.shape
    mask = None
    if batch.mask is not None:
        mask = rng.random(rows) < 0.7
        mask.reshape(-1)[0] = False
    weight = None if batch.sample_weight is None else rng.integers(1, 6, rows).astype(float)
    return replace(batch, y_true=y_true, y_pred=pred, sample_weight=weight, mask=mask)


def separating(batch: Batch, conventions: Sequence[Convention]) -> tuple[Batch, list[float]] | None:
    """The probe on which most of the conventions differ from one another, and their numbers; None where none do."""
    best: tuple[Batch, list[float]] | None = None
    most = 1
    for probe in probes(batch):
        values = [float(x) for x in scalars(probe, conventions)]
        groups = distinct(values)
        if groups > most:
            best, most = (probe, values), groups
    return best


def distinct(values: Sequence[float]) -> int:
    """How many different numbers there are."""
    kept: list[float] = []
    for x in values:
        if not any(indistinct((np.float64(x),), (np.float64(y),)) for y in kept):
            kept.append(x)
    return len(kept)


def scalar_setting(batch: Batch) -> Setting:
    return Setting.of(batch, "scalar")
