"""Weights, masks and denominators: one ratio, Σ l·w·m / D. Nothing of one loss, no framework.

What counts nothing (masked, ignored, of weight zero) is taken out by selection, twice: `neutralise` replaces it before
the maths and `reduce` after, so that a NaN or infinity there reaches neither value nor gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

from lossbridge.backend import Array, Backend

MEANS = ("sum_over_batch_size", "mean", "mean_with_sample_weight")
REDUCTIONS = (*MEANS, "sum", "none", None)


@dataclass(frozen=True)
class Entries:
    """What each per-sample loss counts. All three broadcast against the losses; None stands for one or true."""

    weight: Array | None
    counted: Array | None  # not masked, not ignored: what a mean divides by
    kept: Array | None  # counted, and of a weight that is not zero: what can be read at all


def entries(b: Backend, sample_weight: Array | None, mask: Array | None, valid: Array | None) -> Entries:
    """`mask`: non-zero keeps. `valid`: false where the label is one to ignore."""
    counted = None if mask is None else b.cast(mask, "bool")
    if valid is not None:
        counted = valid if counted is None else counted & valid
    kept = counted
    if sample_weight is not None:
        weighs = sample_weight != 0
        kept = weighs if counted is None else counted & weighs
        if counted is not None:
            sample_weight = b.where(counted, sample_weight, 0.0)  # a NaN where nothing counts is not even multiplied
    return Entries(sample_weight, counted, kept)


def neutralise(b: Backend, x: Array, kept: Array | None, axis: int | None, value: float) -> Array:
    """`x` with a harmless value where nothing is kept. `axis` is the one that `x` has and `kept` has not."""
    if kept is None:
        return x
    spread = axis is not None and len(b.shape(kept)) > 0
    return b.where(b.expand_dims(kept, axis) if axis is not None and spread else kept, x, value)


def reduce(
    b: Backend, loss: Array, entries: Entries, *, reduction: str | None, normalizer: Array | None, mass: Array | None
) -> Array:
    """The ratio. `mass` is what a sample counts under "mean_with_sample_weight" besides its weight (class weights)."""
    if entries.weight is not None:
        loss = loss * entries.weight
    if entries.kept is not None:
        loss = b.where(entries.kept, loss, 0.0)
    if reduction in ("none", None):
        return loss
    if reduction == "sum":
        return b.sum(loss)
    if normalizer is not None:
        denominator = normalizer
    elif reduction == "mean_with_sample_weight" and not (entries.weight is None and mass is None):
        denominator = _total_weight(b, loss, entries, mass)
    elif entries.counted is not None:
        denominator = b.cast(b.count(b.broadcast_to(entries.counted, loss)), b.dtype(loss))
    else:
        return b.mean(loss)
    nothing = denominator == 0
    return b.where(nothing, 0.0, b.sum(loss) / b.where(nothing, 1.0, denominator))


def _total_weight(b: Backend, loss: Array, entries: Entries, mass: Array | None) -> Array:
    weight = mass if entries.weight is None else entries.weight if mass is None else entries.weight * mass
    if entries.kept is not None:
        weight = b.where(entries.kept, weight, 0.0)
    return b.sum(b.broadcast_to(weight, loss))
