"""What a convention gives on a batch: the number, the per-sample values, or the gradient. NumPy, in float64.

Thousands of conventions are tried on one batch, so what they share is computed once: rows are taken in blocks that stay
in cache, and conventions that differ in the reduction alone share their sums. The wrong conventions are as welcome here
as the right ones; the pieces that a loss is built of come from formulas.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from lossbridge import formulas
from lossbridge.backends import numpy as b
from lossbridge.conventions import Convention

Array = np.ndarray
# A scalar; a value a row; a value an element; the gradient for y_pred.
Quantity = Literal["scalar", "samples", "elements", "gradient"]

_BLOCK = 100_000  # elements
HALVES = ("float16", "bfloat16")
_LARGEST_FLOAT16 = 65504.0


@dataclass(frozen=True)
class Batch:
    """Targets and predictions, with what weighs them. `labels`: y_true holds class indices."""

    y_true: Array
    y_pred: Array
    class_weight: Array | None = None
    sample_weight: Array | None = None
    mask: Array | None = None
    ignored: int | None = None  # a label
    half: str = ""  # the predictions' dtype as given, where it is a half
    moved: bool = False  # the arrays as given have the classes along axis 1
    shift: int = 0  # labels as given are higher by so much
    given: Mapping[str, str] = field(default_factory=dict)  # of arrays that were changed: how NumPy does it

    @cached_property
    def labels(self) -> bool:
        return self.y_true.ndim < self.y_pred.ndim

    def as_given(self) -> tuple[Array, Array]:
        """y_true and y_pred in the caller's form."""
        true = self.y_true + self.shift if self.shift else self.y_true
        if not self.moved:
            return true, self.y_pred
        return true if self.labels else np.moveaxis(true, -1, 1), np.moveaxis(self.y_pred, -1, 1)

    @property
    def form(self) -> tuple[bool, int, int]:
        """What batches that are searched together share."""
        return self.labels, self.y_pred.ndim, self.classes

    @property
    def classes(self) -> int:
        return self.y_pred.shape[-1] if self.y_pred.ndim > 1 else 1

    def rows(self, axis: int) -> Rows:
        known = self._layouts
        if axis not in known:
            known[axis] = Rows.of(self, axis)
        return known[axis]

    @cached_property
    def swapped(self) -> Batch:
        return replace(self, y_true=self.y_pred, y_pred=self.y_true)

    @cached_property
    def _layouts(self) -> dict[int, Rows]:
        return {}


@dataclass(frozen=True)
class Rows:
    """A batch as a matrix: a row a sample, a column a class. Where y_pred is a vector, one column."""

    target: Array  # (N, C), float64; labels one-hot, and zero where they are none
    pred: Array
    weight: Array | None  # (N,)
    class_weight: Array | None  # (C,)
    kept: Array  # (N,): not masked, not ignored
    invalid: Array  # (N,): a label that is no class, and none to ignore
    dtype: str  # in which a library computes with such predictions

    @staticmethod
    def of(batch: Batch, axis: int) -> Rows:
        def matrix(x: Array) -> Array:
            x = np.asarray(x, np.float64)
            return x[:, None] if x.ndim < 2 else np.moveaxis(x, axis, -1).reshape(-1, x.shape[axis])

        pred = matrix(np.atleast_1d(batch.y_pred))
        count, classes = pred.shape
        kept, invalid = np.ones(count, bool), np.zeros(count, bool)
        if batch.labels:
            flat = batch.y_true.reshape(-1)
            fits = (flat >= 0) & (flat < classes)
            target = np.zeros((count, classes))
            target[np.flatnonzero(fits), flat[fits].astype(np.int64)] = 1
            if batch.ignored is not None:
                kept = flat != batch.ignored
            invalid = ~fits & kept
        else:
            target = matrix(np.atleast_1d(batch.y_true))
        mask = _per_row(batch.mask, batch, axis, count)
        if mask is not None:
            kept = kept & mask.astype(bool)
        weight = _per_row(batch.sample_weight, batch, axis, count)
        class_weight = None if batch.class_weight is None else np.asarray(batch.class_weight, np.float64).reshape(-1)
        if class_weight is not None and class_weight.size != classes:
            class_weight = None
        dtype = "float64" if batch.y_pred.dtype == np.float64 else "float32"
        return Rows(target, pred, weight, class_weight, kept, invalid, dtype)

    def some(self, index: Any) -> Rows:
        weight = None if self.weight is None else self.weight[index]
        kept, invalid = self.kept[index], self.invalid[index]
        return replace(
            self, target=self.target[index], pred=self.pred[index], weight=weight, kept=kept, invalid=invalid
        )


def _per_row(x: Array | None, batch: Batch, axis: int, count: int) -> Array | None:
    """A weight or mask of the samples' shape, or its leading axes, one number a row; None if it is of another axis'."""
    shape = batch.y_pred.shape
    samples = tuple(np.delete(shape, axis)) if len(shape) > 1 else shape
    if x is None or x.shape != samples[: x.ndim]:
        return None
    x = np.asarray(x, np.float64).reshape(x.shape + (1,) * (len(samples) - x.ndim))
    return np.broadcast_to(x, samples).reshape(count)


# One convention on some rows.


def terms(c: Convention, rows: Rows, pred: Any, memo: dict[Any, Any] | None = None) -> Any:
    """(rows, classes): what is summed. `pred`: rows.pred, or a gradient's variable. `memo` keeps what is shared."""
    target, share, counter = _shares(c, rows, memo)
    costs, rest, p, unclipped = _all_costs(c, rows, pred, memo, target if memo is None else None)

    if c.cost == "entropy":
        return _product(c, p, costs)
    if c.cost == "binary":
        return _product(c, share, costs) + _product(c, counter, rest)
    if c.cost == "binary focal":
        if c.alpha is not None:
            balance = target * c.alpha + (1 - target) * (1 - c.alpha)
            share, counter = share * balance, counter * balance
        left = target * (1 - unclipped) + (1 - target) * unclipped
        return formulas.modulated(b, left, c.gamma, _product(c, share, costs) + _product(c, counter, rest))
    if c.cost == "focal":
        return (1.0 if c.alpha is None else c.alpha) * formulas.modulated(b, 1 - p, c.gamma, _product(c, share, costs))
    result = _product(c, share, costs)
    if c.cost == "poly":
        return result + (c.alpha or 0.0) * (share * (1 - p))
    if c.cost in ("divergence", "convex divergence"):
        result = result + _remembered(memo, ("negentropy", *_target_key(c)), lambda: _x_log_x(target))
        if c.cost == "convex divergence":
            result = result + (p - target)
    return result


def row_sums(c: Convention, rows: Rows, memo: dict[Any, Any]) -> Array:
    """The sums of the terms; of the plain losses without writing the terms down."""
    _, share, counter = _shares(c, rows, memo)
    costs, rest, *_ = _all_costs(c, rows, rows.pred, memo, None)
    kept = ("finite", *_costs_key(c))
    finite = _remembered(memo, kept, lambda: bool(np.isfinite(costs).all() and np.isfinite(rest).all()))
    if not finite or c.cost not in ("cross-entropy", "binary"):
        return np.asarray(terms(c, rows, rows.pred, memo).sum(1))
    sums = np.einsum("ij,ij->i", share, costs)
    return sums + np.einsum("ij,ij->i", counter, rest) if c.cost == "binary" else sums


def _shares(c: Convention, rows: Rows, memo: dict[Any, Any] | None) -> tuple[Any, Any, Any]:
    """The targets; what the costs of each class are multiplied by, and those of its contrary."""
    key = _target_key(c)
    target = _remembered(memo, ("target", *key), lambda: _targets(c, rows.target, rows.dtype))
    weight = rows.class_weight if c.class_weight and rows.class_weight is not None else None
    share = target if weight is None else _remembered(memo, ("share", *key), lambda: target * weight)
    if "binary" not in c.cost:
        return target, share, None
    return target, share, _remembered(memo, ("counter", *key, c.class_weight), lambda: _contrary(target, weight))


def _contrary(target: Any, weight: Array | None) -> Any:
    return 1 - target if weight is None else (1 - target) * weight


def _all_costs(c: Convention, rows: Rows, pred: Any, memo: dict[Any, Any] | None, guard: Any) -> tuple[Any, ...]:
    """−log p, −log(1 − p), p, and p before it is clipped.

    `guard`: the targets, for a gradient, which no infinity may enter.
    """
    p, costs, rest = _remembered(memo, ("activated", c.activation, c.dtype), lambda: _activated(c, pred))

    def clipped() -> tuple[Any, ...]:
        return (*_costs(c, p, costs, rest, guard, rows.dtype), p)

    found: tuple[Any, ...] = _remembered(memo, ("costs", *_costs_key(c)), clipped)
    return found


def _remembered(memo: dict[Any, Any] | None, key: Any, compute: Callable[[], Any]) -> Any:
    """A small memory, the oldest entry of which goes first."""
    if memo is None:
        return compute()
    if key not in memo:
        if len(memo) > 40:
            del memo[next(iter(memo))]
        memo[key] = compute()
    return memo[key]


def _product(c: Convention, weight: Any, costs: Any) -> Any:
    """weight · costs, in which 0·∞ is what the convention says."""
    product = weight * costs
    if c.undefined == "zero":
        values = b.concrete(costs)
        assert values is not None
        if not np.isfinite(values).all():
            return b.where(b.concrete(weight) == 0, 0.0, product)
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
        target = b.exp(-formulas.softmax_costs(b, target, 1))
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
        return formulas.smooth(b, target, outcomes, s)
    return target * (1 - s) + (1 - target) * (s / (outcomes - 1) if outcomes > 1 else math.nan)


def _costs_key(c: Convention) -> tuple[Any, ...]:
    return (c.activation, c.renormalise, c.clip_first, c.clip, c.epsilon, c.logarithm, c.dtype)


def _activated(c: Convention, pred: Any) -> tuple[Any, Any, Any]:
    """p, and where they come without a logarithm of it −log p and −log(1 − p)."""
    x = rounded(pred, c.dtype.split()[0]) if c.dtype != "exact" else pred
    if c.activation == "softmax twice":
        x = b.exp(-formulas.softmax_costs(b, x, 1))
    elif c.activation == "sigmoid twice":
        x = formulas.sigmoid(b, x)[0]
    if c.activation.startswith("softmax"):
        costs = formulas.softmax_costs(b, x, 1)
        return b.exp(-costs), costs, None
    if c.activation.startswith("sigmoid"):
        return formulas.sigmoid(b, x)[0], formulas.softplus(b, -x), formulas.softplus(b, x)
    return (b.exp(x), -x, None) if c.activation == "exp" else (x, None, None)


def _costs(c: Convention, p: Any, costs: Any, rest: Any, guard: Any, dtype: str) -> tuple[Any, Any, Any]:
    """−log p, −log(1 − p), and p, renormalised and clipped."""
    moved = c.renormalise != "no" or c.clip in ("both", "lower", "added")
    if moved:
        if c.clip in ("both", "lower") and c.clip_first:
            p = _clip(p, *_bounds(c, dtype))
        if c.renormalise != "no":
            p = p / b.sum(p, 1, keepdims=True)
        if c.clip in ("both", "lower") and not c.clip_first:
            p = _clip(p, *_bounds(c, dtype))
    more = float(c.epsilon) if c.clip == "added" else 0.0
    if moved or costs is None:
        costs = formulas.log_cost(b, guard, p + more if more else p)
    if moved or rest is None:
        other = None if guard is None else 1 - guard
        rest = formulas.log_cost(b, other, 1 - p + more) if more else _rest(other, p)
    if c.clip == "floor":
        costs, rest = b.where(costs > 100.0, 100.0, costs), b.where(rest > 100.0, 100.0, rest)
    if c.logarithm == "missing":
        costs, rest = -p, p - 1
    elif c.logarithm == "twice":
        costs, rest = -b.log(costs), -b.log(rest)
    return costs, rest, p


def _clip(x: Any, low: float, high: float) -> Any:
    return np.clip(x, low, high) if isinstance(x, np.ndarray) else formulas.clip(b, x, low, high)


def _rest(guard: Any, p: Any) -> Any:
    if guard is not None:
        p = b.where((guard == 0) & (b.concrete(p) == 1), 0.0, p)
    return -b.log1p(-p)


def _bounds(c: Convention, dtype: str) -> tuple[float, float]:
    """ε and 1 − ε, as the dtype of the computation holds them: in float32 1 − 1e-7 is 1 − 2⁻²³."""
    low, high = float(c.epsilon), 1.0 if c.clip == "lower" else 1.0 - float(c.epsilon)
    if c.dtype in ("float32", *HALVES):
        dtype = c.dtype
    return float(rounded(np.float64(low), dtype)), float(rounded(np.float64(high), dtype))


def rounded(x: Any, dtype: str) -> Any:
    """To that dtype, and back. Of a gradient's variable the value is rounded, and its slope is 1."""
    values = b.concrete(x)
    assert values is not None
    with np.errstate(over="ignore"):
        if dtype == "bfloat16":
            mantissa, exponent = np.frexp(values)
            nearest = np.ldexp(np.rint(np.ldexp(mantissa, 8)), exponent - 8)
        else:
            nearest = values.astype(dtype).astype(np.float64)
    return nearest if isinstance(x, np.ndarray | np.generic) else x + (nearest - values)


# Reduction.


def weights(c: Convention, rows: Rows) -> Array:
    """What each row's sum is multiplied by."""
    weight = rows.kept.astype(np.float64) if c.left_out != "kept" else np.ones(len(rows.kept))
    return weight * rows.weight if c.sample_weight and rows.weight is not None else weight


def divisor(c: Convention, batch: Batch, rows: Rows) -> float:
    classes = rows.pred.shape[1]
    count = float(rows.kept.sum()) if c.left_out == "removed" else float(len(rows.kept))
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
    """The number, of the sum and what divides it."""
    nothing = math.nan if c.undefined == "nan" else 0.0
    value = total / denominator / math.log(c.base) if denominator else nothing
    if c.dtype == "float16" and abs(total) > _LARGEST_FLOAT16:
        value = math.copysign(math.inf, total)  # the sum did not fit
    if c.outcome == "negated":
        value = -value
    elif c.outcome == "perplexity":
        value = math.inf if value > 700 else math.exp(value * math.log(c.base))
    return float(rounded(np.float64(value), c.dtype)) if c.dtype in HALVES else value


def sums_key(c: Convention) -> Convention:
    """`c` without what only the reduction reads: conventions of one key share their sums."""
    return replace(c, base=math.e, divisor="samples", outcome="loss")


def sides(c: Convention, batch: Batch) -> Batch:
    """The batch as the convention reads it."""
    return batch.swapped if c.swapped else batch


# Many conventions.


def scalars(
    batch: Batch, conventions: Sequence[Convention], advance: Callable[[float], None] = lambda share: None
) -> Array:
    """The number of each. `advance` is told the share of the work that each step was."""
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
            # Neighbours share their costs.
            order = sorted(group, key=lambda c: tuple(map(str, _costs_key(c) + _target_key(c))))
            step = max(1, _BLOCK // max(rows.pred.shape[1], 1))
            blocks = [rows.some(slice(i, i + step)) for i in range(0, len(rows.pred), step)]

            def one(block: Rows, order: list[Convention] = order) -> Array:
                return _block_sums(order, block)

            total = np.zeros(len(order))
            for sums in pool.map(one, blocks):
                total += sums
                advance(len(group) / work / len(blocks))
            place = {c: i for i, c in enumerate(order)}
            totals[axis, swap] = total[[place[c] for c in group]]
        found = np.empty(len(conventions))
        denominators: dict[Any, float] = {}
        for i, (c, key) in enumerate(zip(conventions, keys, strict=True)):
            side = sides(c, batch)
            what = (c.divisor, c.left_out, c.sample_weight, c.class_weight, c.axis, c.swapped)
            if what not in denominators:
                denominators[what] = divisor(c, side, side.rows(c.axis))
            total = totals[c.axis, c.swapped][groups[c.axis, c.swapped][key]]
            found[i] = finish(c, float(total), denominators[what])
    return found


def _block_sums(conventions: Iterable[Convention], rows: Rows) -> Array:
    memo: dict[Any, Any] = {}
    with np.errstate(all="ignore"):
        return np.array([_weighed(c, rows, memo).sum() for c in conventions])


def _weighed(c: Convention, rows: Rows, memo: dict[Any, Any]) -> Array:
    losses = row_sums(c, rows, memo)
    if rows.invalid.any():
        losses = np.where(rows.invalid, np.nan, losses)
    if c.left_out != "kept" and not rows.kept.all():
        losses = np.where(rows.kept, losses, 0.0)
    if c.sample_weight and rows.weight is not None:
        losses = np.where(rows.weight == 0, 0.0, losses * rows.weight)
    return losses


def arrays(batch: Batch, c: Convention, quantity: Quantity, index: Any) -> Array:
    """Unscaled: the values of some rows, of their elements, or their gradient, which is (rows, classes)."""
    rows = sides(c, batch).rows(c.axis).some(index)
    with np.errstate(all="ignore"):
        if quantity == "samples":
            return _weighed(c, rows, {})
        if quantity == "elements":
            return np.asarray(terms(c, rows, rows.pred, {}))
        weight = weights(c, rows)

        def loss(x: Any) -> Any:
            read = replace(rows, target=x) if c.swapped else rows
            return b.sum(b.sum(terms(c, read, rows.pred if c.swapped else x), 1) * weight)

        return b.value_and_grad(loss, rows.target if c.swapped else rows.pred)[1]


def scale(c: Convention, batch: Batch, quantity: Quantity) -> float:
    """What `arrays` are multiplied by."""
    side = sides(c, batch)
    factor = (-1.0 if c.outcome == "negated" else 1.0) / math.log(c.base)
    if quantity == "gradient":
        denominator = divisor(c, side, side.rows(c.axis))
        return factor / denominator if denominator else 0.0
    if quantity == "samples" and c.divisor == "elements":
        return factor / side.rows(c.axis).pred.shape[1]
    return factor


def whole(batch: Batch, c: Convention, quantity: Quantity) -> Array:
    """All of what a convention gives: the number, or the array as rows."""
    if quantity == "scalar":
        return scalars(batch, [c])
    return arrays(batch, c, quantity, slice(None)) * scale(c, batch, quantity)
