"""Weights, masks and denominators: one ratio, Σ l·w·m / D. Nothing of one loss, and no framework.

What does not count (masked, ignored, of weight 0) is taken out by selection, twice: `neutralise` replaces it before the
maths and `reduce` after, so that a NaN or infinity there reaches neither value nor gradient.
"""

from __future__ import annotations

import sys

from lossbridge.maths.elementary import is_infinite
from lossbridge.maths.ops import Array, Ops
from lossbridge.spec import PER_SAMPLE, Request


def counting(r: Request, counts: Array) -> Request:
    """The request without the samples where `counts` is false: masked, or of an ignored label."""
    ops, weight = r.framework.ops, r.weight
    if weight is not None:
        weight = ops.where(counts, weight, 0.0)  # a NaN there is not even multiplied
    counted = counts if r.counted is None else r.counted & counts
    return r._replace(weight=weight, counted=counted, valid=counts if r.valid is None else r.valid & counts)


def weighted(r: Request, sample_weight: Array) -> Request:
    """The request with these weights; those of 0 are as if masked, but for the denominator."""
    nonzero = sample_weight != 0
    return r._replace(weight=sample_weight, valid=nonzero if r.valid is None else r.valid & nonzero)


def unit_of(ops: Ops, weight: Array, whole: bool) -> Array:
    """A power of two that brings weights of float64 to where float32 has them, 1 where it has them already.

    By the largest where `whole` says that every weight counts. Else by all together: one that is masked may hold
    anything.
    """
    size = ops.stop_gradient(ops.reshape(ops.abs(weight), (-1,)))
    size = ops.where(is_infinite(size) | (size != size), 0.0, size)
    if ops.shape(size)[0] == 0:
        return 1.0
    largest = ops.max(size, 0)
    if not whole:
        smallest = -ops.max(ops.where(size > 0, -size, -sys.float_info.max), 0)
        largest = ops.where(largest < 1, largest, ops.where(smallest > 1, smallest, 1.0))
    unit = ops.where(largest < 0, largest, 1.0)
    for power in range(120, 961, 120):  # no step reads the one before twice: torch.compile would write it out twice
        unit = ops.where(largest < 2.0 ** (60 - power), 2.0**power, unit)
        unit = ops.where(largest >= 2.0 ** (power - 60), 2.0**-power, unit)
    return ops.reshape(unit, ())


def neutralise(ops: Ops, x: Array, valid: Array | None, axis: int | None, value: float) -> Array:
    """`x` with a harmless value where it is not valid. `axis` is the one that `x` has and `valid` has not."""
    if valid is None:
        return x
    if axis is not None and len(ops.shape(valid)) > 0:
        valid = ops.expand_dims(valid, axis)
    return ops.where(valid, x, value)


def reduce(r: Request) -> Array:
    """The ratio of a request's losses, which a path of its framework computes."""
    path = r.framework.choose(r).path
    if path.ratio is not None:
        return path.ratio(r)
    with r.framework.ops.quiet():
        return reduced(r, path.losses(r))


def reduced(r: Request, losses: Array) -> Array:
    """The ratio of these losses of a request."""
    ops = r.framework.ops
    if r.weight is not None:
        losses = losses * r.weight
    if r.valid is not None:
        losses = ops.where(r.valid, losses, 0.0)
    if r.reduction in PER_SAMPLE:
        return losses
    if r.reduction == "sum":
        return ops.sum(losses)
    if r.normalizer is None and r.counted is None and not by_weight(r):
        return ops.mean(losses)
    divisor = denominator(ops, r, losses)
    empty = divisor == 0
    return ops.where(empty, 0.0, ops.sum(losses) / ops.where(empty, 1.0, divisor))


def by_weight(r: Request) -> bool:
    """Whether the denominator is a sum of weights, with the mean_with_sample_weight."""
    return r.reduction == "mean_with_sample_weight" and (r.weight is not None or has_mass(r))


def has_mass(r: Request) -> bool:
    """Whether a sample counts by its class weights too in such a denominator."""
    return r.loss.mass is not None and r.options.get("class_weight") is not None


def denominator(ops: Ops, r: Request, losses: Array) -> Array:
    """What a mean divides by. `losses`: of whose shape and dtype only."""
    if r.normalizer is not None:
        return r.normalizer
    if not by_weight(r):
        return ops.cast(ops.count(ops.broadcast_to(r.counted, losses)), ops.dtype(losses))
    if has_mass(r):
        return total_weight(r)
    weight = r.weight if r.valid is None else ops.where(r.valid, r.weight, 0.0)
    return ops.sum(ops.broadcast_to(weight, losses))


def total_weight(r: Request) -> Array:
    """The sum of what the samples count: Σ_c w_c t_c, times their weights."""
    mass = r.loss.mass
    assert mass is not None
    options = {name: r.options[name] for name in mass.options if name in r.options}
    pred = r.framework.ops.stop_gradient(r.pred)  # of which only the shape counts
    return reduce(r._replace(rule=mass, pred=pred, options=options, reduction="sum", normalizer=None))
