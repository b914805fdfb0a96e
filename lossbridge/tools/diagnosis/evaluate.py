"""What a convention gives on a batch: the loss, per-sample values, values per element, or the gradient, in float64.

Thousands of conventions are evaluated on one batch, so what they share is computed once: rows are processed in blocks
that fit the cache, and conventions that differ only in the reduction share their row sums. Wrong conventions are
evaluated like right ones. Softmax, sigmoid and logarithms come from lossbridge.maths.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, Literal

import numpy as np

from lossbridge.conventions import Convention
from lossbridge.frameworks import numpy_ops as b
from lossbridge.frameworks.on_numpy import value_and_grad
from lossbridge.maths import elementary, softmax

Array = np.ndarray
# The loss; one value per row; one per element; the gradient with respect to y_pred.
Quantity = Literal["scalar", "samples", "elements", "gradient"]

_BLOCK = 100_000  # elements
FLOAT16_DTYPES = ("float16", "bfloat16")
WEIGHTS = ("class_weight", "sample_weight")  # fields of a batch, and of a convention
_LARGEST_FLOAT16 = 65504.0


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
    def _rows(self) -> dict[int, Rows]:
        return {}


@dataclass(frozen=True)
class Rows:
    """A batch as matrices: one row per sample, one column per class; a single column where y_pred is a vector."""

    target: Array  # (N, C), float64; labels as one-hot rows, of zeros for labels out of range
    pred: Array
    weight: Array | None  # (N,)
    class_weight: Array | None  # (C,)
    valid: Array  # (N,): neither masked nor ignored
    out_of_range: Array  # (N,): the label is out of range, and not the one to ignore
    dtype: str  # of the libraries' computation with these predictions

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
        if class_weight is not None and class_weight.size != classes:
            class_weight = None
        dtype = "float64" if batch.y_pred.dtype == np.float64 else "float32"
        return Rows(target, pred, weight, class_weight, valid, out_of_range, dtype)

    def some(self, index: Any) -> Rows:
        names = ("target", "pred", "weight", "valid", "out_of_range")
        some: dict[str, Any] = {name: getattr(self, name)[index] for name in names if getattr(self, name) is not None}
        return replace(self, **some)


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


# One convention on some rows.


def terms(c: Convention, rows: Rows, pred: Any, memo: dict[Any, Any] | None = None) -> Any:
    """(rows, classes): the terms that are summed. `pred`: rows.pred, or the variable of a gradient; `memo`: a cache."""
    target, positive, negative = _factors(c, rows, memo)
    cost, complement_cost, p, unclipped = _costs(c, rows, pred, memo, target if memo is None else None)

    if c.cost == "entropy":
        return _product(c, p, cost)
    if c.cost == "binary":
        return _product(c, positive, cost) + _product(c, negative, complement_cost)
    if c.cost == "binary focal":
        if c.alpha is not None:
            balance = target * c.alpha + (1 - target) * (1 - c.alpha)
            positive, negative = positive * balance, negative * balance
        one_minus_p_t = target * (1 - unclipped) + (1 - target) * unclipped
        both = _product(c, positive, cost) + _product(c, negative, complement_cost)
        return softmax.modulated(b, one_minus_p_t, c.gamma, both)
    if c.cost == "focal":
        focal = softmax.modulated(b, 1 - p, c.gamma, _product(c, positive, cost))
        return (1.0 if c.alpha is None else c.alpha) * focal
    result = _product(c, positive, cost)
    if c.cost == "poly":
        return result + (c.alpha or 0.0) * (positive * (1 - p))
    if c.cost in ("divergence", "convex divergence"):
        result = result + _cached(memo, ("t log t", *_target_key(c)), lambda: _x_log_x(target))
        if c.cost == "convex divergence":
            result = result + (p - target)
    return result


def row_sums(c: Convention, rows: Rows, memo: dict[Any, Any]) -> Array:
    """(rows,): the sums of the terms, which are not stored for the two most frequent costs."""
    _, positive, negative = _factors(c, rows, memo)
    cost, complement_cost, *_ = _costs(c, rows, rows.pred, memo, None)
    key = ("finite", *_costs_key(c))
    finite = _cached(memo, key, lambda: bool(np.isfinite(cost).all() and np.isfinite(complement_cost).all()))
    if not finite or c.cost not in ("cross-entropy", "binary"):
        return np.asarray(terms(c, rows, rows.pred, memo).sum(1))
    sums = np.einsum("ij,ij->i", positive, cost)
    return sums + np.einsum("ij,ij->i", negative, complement_cost) if c.cost == "binary" else sums


def _factors(c: Convention, rows: Rows, memo: dict[Any, Any] | None) -> tuple[Any, Any, Any]:
    """t, and with the class weights the factors of −log p and of −log(1 − p): t w and (1 − t) w."""
    key = _target_key(c)
    target = _cached(memo, ("target", *key), lambda: _targets(c, rows.target, rows.dtype))
    weight = rows.class_weight if c.class_weight and rows.class_weight is not None else None
    positive = target if weight is None else _cached(memo, ("positive", *key), lambda: target * weight)
    if "binary" not in c.cost:
        return target, positive, None

    def complement() -> Any:
        return 1 - target if weight is None else (1 - target) * weight

    return target, positive, _cached(memo, ("negative", *key, c.class_weight), complement)


def _costs(c: Convention, rows: Rows, pred: Any, memo: dict[Any, Any] | None, guard: Any) -> tuple[Any, ...]:
    """−log p, −log(1 − p), p, and p before clipping.

    `guard`: the targets, if a gradient is taken: costs of target 0 are made finite, because the gradient of 0·∞ is NaN.
    """
    p, cost, complement_cost = _cached(memo, ("activated", c.activation, c.dtype), lambda: _activated(c, pred))

    def clipped() -> tuple[Any, ...]:
        return (*_clipped_costs(c, p, cost, complement_cost, guard, rows.dtype), p)

    found: tuple[Any, ...] = _cached(memo, ("costs", *_costs_key(c)), clipped)
    return found


def _cached(memo: dict[Any, Any] | None, key: Any, compute: Callable[[], Any]) -> Any:
    """At most 40 results; the oldest is dropped first."""
    if memo is None:
        return compute()
    if key not in memo:
        if len(memo) > 40:
            del memo[next(iter(memo))]
        memo[key] = compute()
    return memo[key]


def _product(c: Convention, factor: Any, cost: Any) -> Any:
    """factor · cost, where 0·∞ is 0 or NaN as the convention says."""
    product = factor * cost
    if c.undefined == "zero":
        values = b.concrete(cost)
        assert values is not None
        if not np.isfinite(values).all():
            return b.where(b.concrete(factor) == 0, 0.0, product)
    return product


def _x_log_x(x: Any) -> Any:
    return x * b.log(b.where(x == 0, 1.0, x))


def _target_key(c: Convention) -> tuple[Any, ...]:
    clips = (c.clip, c.epsilon) if c.cost == "divergence" else ()
    both = c.renormalise == "both"
    return (c.target_activation, c.label_smoothing, c.smoothing_over, c.dtype, both, clips, "binary" in c.cost)


def _targets(c: Convention, target: Any, dtype: str) -> Any:
    if c.dtype != "exact":
        target = rounded(target, c.dtype.split()[0])
    if c.target_activation == "softmax":
        target = b.exp(-softmax.neg_log_softmax(b, target, 1)[0])
    elif c.target_activation == "exp":
        target = b.exp(target)
    if c.renormalise == "both":
        target = target / b.sum(target, 1, keepdims=True)
    if c.cost == "divergence" and c.clip in ("both", "lower"):
        target = _clip(target, *_bounds(c, dtype))
    if not c.label_smoothing:
        return target
    s, outcomes = c.label_smoothing, 2 if "binary" in c.cost else b.size(target, 1)
    if c.smoothing_over == "K":
        return elementary.smooth(b, target, outcomes, s)
    return target * (1 - s) + (1 - target) * (s / (outcomes - 1) if outcomes > 1 else math.nan)


def _costs_key(c: Convention) -> tuple[Any, ...]:
    return (c.activation, c.renormalise, c.clip_first, c.clip, c.epsilon, c.logarithm, c.dtype)


def _activated(c: Convention, pred: Any) -> tuple[Any, Any, Any]:
    """p; and −log p and −log(1 − p) if they are computed from logits without a logarithm of p, else None."""
    x = rounded(pred, c.dtype.split()[0]) if c.dtype != "exact" else pred
    if c.activation == "softmax twice":
        x = b.exp(-softmax.neg_log_softmax(b, x, 1)[0])
    elif c.activation == "sigmoid twice":
        x = elementary.sigmoid(b, x)[0]
    if c.activation.startswith("softmax"):
        cost = softmax.neg_log_softmax(b, x, 1)[0]
        return b.exp(-cost), cost, None
    if c.activation.startswith("sigmoid"):
        return elementary.sigmoid(b, x)[0], elementary.softplus(b, -x), elementary.softplus(b, x)
    return (b.exp(x), -x, None) if c.activation == "exp" else (x, None, None)


def _clipped_costs(c: Convention, p: Any, cost: Any, complement_cost: Any, guard: Any, dtype: str) -> tuple[Any, ...]:
    """−log p, −log(1 − p), and p, renormalised and clipped."""
    changed = c.renormalise != "no" or c.clip in ("both", "lower", "added")
    if changed:
        if c.clip in ("both", "lower") and c.clip_first:
            p = _clip(p, *_bounds(c, dtype))
        if c.renormalise != "no":
            p = p / b.sum(p, 1, keepdims=True)
        if c.clip in ("both", "lower") and not c.clip_first:
            p = _clip(p, *_bounds(c, dtype))
    added = float(c.epsilon) if c.clip == "added" else 0.0
    if changed or cost is None:
        cost = elementary.neg_log(b, guard, p + added if added else p)
    if changed or complement_cost is None:
        other = None if guard is None else 1 - guard
        complement_cost = elementary.neg_log(b, other, 1 - p + added) if added else _complement_cost(other, p)
    if c.clip == "floor":
        cost = b.where(cost > 100.0, 100.0, cost)
        complement_cost = b.where(complement_cost > 100.0, 100.0, complement_cost)
    if c.logarithm == "missing":
        cost, complement_cost = -p, p - 1
    elif c.logarithm == "twice":
        cost, complement_cost = -b.log(cost), -b.log(complement_cost)
    return cost, complement_cost, p


def _clip(x: Any, low: float, high: float) -> Any:
    return np.clip(x, low, high) if isinstance(x, np.ndarray) else elementary.clip(b, x, low, high)


def _complement_cost(guard: Any, p: Any) -> Any:
    """−log(1 − p)."""
    if guard is not None:
        p = b.where((guard == 0) & (b.concrete(p) == 1), 0.0, p)
    return -b.log1p(-p)


def _bounds(c: Convention, dtype: str) -> tuple[float, float]:
    """ε and 1 − ε, rounded to the dtype of the computation: in float32 1 − 1e-7 is 1 − 2⁻²³."""
    low, high = float(c.epsilon), 1.0 if c.clip == "lower" else 1.0 - float(c.epsilon)
    if c.dtype in ("float32", *FLOAT16_DTYPES):
        dtype = c.dtype
    return float(rounded(np.float64(low), dtype)), float(rounded(np.float64(high), dtype))


def rounded(x: Any, dtype: str) -> Any:
    """`x` rounded to the dtype, as float64. The derivative of the rounding is taken to be 1."""
    values = b.concrete(x)
    assert values is not None
    with np.errstate(over="ignore"):
        if dtype == "bfloat16":
            mantissa, exponent = np.frexp(values)
            nearest = np.ldexp(np.rint(np.ldexp(mantissa, 8)), exponent - 8)
        else:
            nearest = values.astype(dtype).astype(np.float64)
    return nearest if isinstance(x, np.ndarray | np.generic) else x + (nearest - values)


def same(x: Any, y: Any) -> Array:
    """Where both are equal, or both NaN."""
    return (x == y) | (np.isnan(x) & np.isnan(y))


# Reduction.


def weights(c: Convention, rows: Rows) -> Array:
    """(rows,): the factor of each row's sum, 0 if the row is left out, else its sample weight."""
    weight = rows.valid.astype(np.float64) if c.left_out != "kept" else np.ones(len(rows.valid))
    return weight * rows.weight if c.sample_weight and rows.weight is not None else weight


def divisor(c: Convention, batch: Batch, rows: Rows) -> float:
    """What the sum over all rows is divided by."""
    classes = rows.pred.shape[1]
    count = float(rows.valid.sum()) if c.left_out == "removed" else float(len(rows.valid))
    if c.divisor == "weights":
        weight = weights(c, rows)
        if c.class_weight and rows.class_weight is not None:
            weight = weight * (rows.target @ rows.class_weight)
        return float(weight.sum())
    sizes = {
        "samples": count,
        "elements": count * classes,
        "classes": float(classes),
        "axis 0": float(batch.y_pred.shape[0]) if batch.y_pred.ndim else 1.0,
        "one": 1.0,
    }
    return sizes[c.divisor]


def finish(c: Convention, total: float, denominator: float) -> float:
    """The loss, from the sum over all rows and its divisor."""
    empty_mean = math.nan if c.undefined == "nan" else 0.0
    value = total / denominator / math.log(c.base) if denominator else empty_mean
    if c.dtype == "float16" and abs(total) > _LARGEST_FLOAT16:
        value = math.copysign(math.inf, total)  # the sum overflows
    if c.outcome == "negated":
        value = -value
    elif c.outcome == "perplexity":
        value = math.inf if value > 700 else math.exp(value * math.log(c.base))
    return float(rounded(np.float64(value), c.dtype)) if c.dtype in FLOAT16_DTYPES else value


def sums_key(c: Convention) -> Convention:
    """`c` with the fields of the reduction reset: conventions with equal keys have the same row sums."""
    return replace(c, base=math.e, divisor="samples", outcome="loss")


def as_read(c: Convention, batch: Batch) -> Batch:
    """The batch, with targets and predictions swapped if the convention swaps them."""
    return batch.swapped if c.swapped else batch


# Many conventions.


def scalars(
    batch: Batch, conventions: Sequence[Convention], advance: Callable[[float], None] = lambda fraction: None
) -> Array:
    """The loss under each convention. `advance` is called with the fraction of the work of each step."""
    groups: dict[tuple[int, bool], dict[Convention, int]] = {}
    keys = [sums_key(c) for c in conventions]
    for key in keys:
        group = groups.setdefault((key.axis, key.swapped), {})
        group.setdefault(key, len(group))
    work = sum(len(group) for group in groups.values())
    totals: dict[tuple[int, bool], Array] = {}
    with np.errstate(all="ignore"), ThreadPoolExecutor(2) as pool:
        for (axis, swap), group in groups.items():
            rows = (batch.swapped if swap else batch).rows(axis)
            # Sorted, so that neighbours share cached costs and targets.
            order = sorted(group, key=lambda c: tuple(map(str, _costs_key(c) + _target_key(c))))
            step = max(1, _BLOCK // max(rows.pred.shape[1], 1))
            blocks = [rows.some(slice(i, i + step)) for i in range(0, len(rows.pred), step)]
            total = np.zeros(len(order))
            for sums in pool.map(partial(_block_sums, order), blocks):
                total += sums
                advance(len(group) / work / len(blocks))
            place = {c: i for i, c in enumerate(order)}
            totals[axis, swap] = total[[place[c] for c in group]]
        found = np.empty(len(conventions))
        denominators: dict[Any, float] = {}
        for i, (c, key) in enumerate(zip(conventions, keys, strict=True)):
            read = as_read(c, batch)
            what = (c.divisor, c.left_out, c.sample_weight, c.class_weight, c.axis, c.swapped)
            if what not in denominators:
                denominators[what] = divisor(c, read, read.rows(c.axis))
            total = totals[c.axis, c.swapped][groups[c.axis, c.swapped][key]]
            found[i] = finish(c, float(total), denominators[what])
    return found


def _block_sums(conventions: Iterable[Convention], rows: Rows) -> Array:
    memo: dict[Any, Any] = {}
    with np.errstate(all="ignore"):
        return np.array([_weighted_losses(c, rows, memo).sum() for c in conventions])


def _weighted_losses(c: Convention, rows: Rows, memo: dict[Any, Any]) -> Array:
    """(rows,): a loss of weight 0 is 0, also if it is infinite or NaN; that of a label out of range is NaN."""
    losses = row_sums(c, rows, memo)
    if rows.out_of_range.any():
        losses = np.where(rows.out_of_range, np.nan, losses)
    weight = weights(c, rows)
    return np.where(weight == 0, 0.0, losses * weight)


def arrays(batch: Batch, c: Convention, quantity: Quantity, index: Any) -> Array:
    """The values of some rows, of their elements, or the gradient (rows, classes), all without the factor `scale`."""
    rows = as_read(c, batch).rows(c.axis).some(index)
    with np.errstate(all="ignore"):
        if quantity == "samples":
            return _weighted_losses(c, rows, {})
        if quantity == "elements":
            return np.asarray(terms(c, rows, rows.pred, {}))
        weight = weights(c, rows)

        def loss(x: Any) -> Any:
            given = replace(rows, target=x) if c.swapped else rows
            return b.sum(b.sum(terms(c, given, rows.pred if c.swapped else x), 1) * weight)

        return value_and_grad(loss, rows.target if c.swapped else rows.pred)[1]


def scale(c: Convention, batch: Batch, quantity: Quantity) -> float:
    """The factor that `arrays` leaves out."""
    read = as_read(c, batch)
    factor = (-1.0 if c.outcome == "negated" else 1.0) / math.log(c.base)
    if quantity == "gradient":
        denominator = divisor(c, read, read.rows(c.axis))
        return factor / denominator if denominator else 0.0
    if quantity == "samples" and c.divisor == "elements":
        return factor / read.rows(c.axis).pred.shape[1]
    return factor


def whole(batch: Batch, c: Convention, quantity: Quantity) -> Array:
    """The loss, or the whole array as rows."""
    if quantity == "scalar":
        return scalars(batch, [c])
    return arrays(batch, c, quantity, slice(None)) * scale(c, batch, quantity)
