"""What a convention gives on a batch: the loss, per-sample values, values per element, or the gradient, in float64.

Thousands of conventions are evaluated on one batch, so what they share is computed once: rows are processed in blocks
that fit the cache, and conventions that differ only in the reduction share their row sums. Wrong conventions are
evaluated like right ones. Softmax, sigmoid and logarithms come from lossbridge.maths.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from functools import partial
from operator import attrgetter
from typing import Any

import numpy as np

from lossbridge.conventions import Convention
from lossbridge.frameworks import numpy_ops as b
from lossbridge.frameworks.on_numpy import value_and_grad
from lossbridge.losses import sparse_categorical_crossentropy
from lossbridge.maths import elementary, softmax
from lossbridge.tools.diagnosis.batch import Array, Batch, Quantity, Rows
from lossbridge.tools.diagnosis.weightings import ALL

_BLOCK = 100_000  # elements
FLOAT16_DTYPES = ("float16", "bfloat16")
_LARGEST_FLOAT16 = 65504.0
_CLIPS = ("both", "lower")  # of p itself


# One convention on some rows.


def terms(c: Convention, rows: Rows, pred: Any, memo: dict[Any, Any] | None = None) -> Any:
    """(rows, classes): the terms that are summed. `pred`: rows.pred, or the variable of a gradient; `memo`: a cache."""
    target, positive, negative = _factors(c, rows, memo)
    cost, complement_cost, p, unclipped = _costs(c, rows, pred, memo, target if memo is None else None)

    if c.cost == "entropy":
        return _product(c, p, cost)
    if c.cost == "squared":
        return (target - p) * (target - p)
    if c.cost == "jensen-shannon":
        return _jensen_shannon(c, target, p, memo)
    if c.cost == "total variation":
        return 0.5 * b.abs(target - p)
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


def _jensen_shannon(c: Convention, target: Any, p: Any, memo: dict[Any, Any] | None) -> Any:
    """β t log t + (1 − β) p log p − (β t + (1 − β) p) log m."""
    of_target = _cached(memo, ("t log t", *_target_key(c)), lambda: _x_log_x(target))
    of_pred = _cached(memo, ("p log p", *_costs_key(c)), lambda: _x_log_x(p))
    beta, other = c.beta, 1 - c.beta
    both = beta * target + other * p
    of_both = _x_log_x(both) if not c.crossed else both * _log_of_positive(other * target + beta * p)
    terms = beta * of_target + other * of_pred - of_both
    return terms / (beta * other) if c.scale == "divergence" else terms


def row_sums(c: Convention, rows: Rows, memo: dict[Any, Any]) -> Array:
    """(rows,): the sums of the terms, of which as few are computed as the convention allows."""
    if _only_label_counts(c, rows, memo):
        of_softmax = _softmax_losses(c, rows, memo)
        sums = terms(c, rows.at_label, rows.pred, memo)[:, 0] if of_softmax is None else of_softmax
    elif c.cost in ("cross-entropy", "binary") and _finite_costs(c, rows, memo):
        sums = _smoothed_sums(c, rows, memo)
    else:
        sums = terms(c, rows, rows.pred, memo).sum(1)
    if _are_weighted(c, rows):
        sums = sums * _row_weights(c, rows, memo)
    return np.asarray(sums + c.z_loss * _squared_lse(c, rows.pred, memo) if c.z_loss else sums)


def _squared_lse(c: Convention, pred: Any, memo: dict[Any, Any] | None) -> Any:
    """(rows,): lse², lse = log Σ e^z."""

    def square() -> Any:
        m, total, _ = softmax.neg_log_softmax(b, _scaled(c, _logits_once(c, pred, memo)), 1)[1]
        lse = b.squeeze(m + b.log(total), 1)
        return lse * lse

    return _cached(memo, ("lse²", *_activation_key(c)), square)


def _only_label_counts(c: Convention, rows: Rows, memo: dict[Any, Any]) -> bool:
    """Whether the terms of the other classes are 0, whatever is predicted for them."""
    if rows.label is None or c.cost not in ("cross-entropy", "focal", "poly") or c.undefined == "nan":
        return False
    if c.label_smoothing or c.target_activation != "none" or c.renormalise == "both":
        return False

    def proper() -> bool:
        p = _probabilities(c, rows, rows.pred, memo)
        return bool((p >= 0).all() and (p <= 1).all())

    # 0 · p of what is no probability may be NaN.
    return c.cost == "cross-entropy" or bool(_cached(memo, ("proper", *_activation_key(c)), proper))


def _softmax_losses(c: Convention, rows: Rows, memo: dict[Any, Any]) -> Array | None:
    """−log softmax of the labels by lossbridge's row kernels, in a tenth of the time; None if c is not that.

    Temperatures are solved for, each of which is another softmax of the whole batch.
    """
    if _uses_probabilities(c) or c.cost != "cross-entropy" or not c.activation.startswith("softmax"):
        return None
    x = _logits_once(c, rows.pred, memo)
    if c.logarithm != "once" or not _cached(memo, ("finite x", *_logits_key(c)), lambda: bool(np.isfinite(x).all())):
        return None

    def of_labels() -> Any:
        return sparse_categorical_crossentropy(
            rows.label, _cooled(c, x), from_logits=True, softcap=c.softcap, reduction="none"
        )

    losses = _cached(memo, ("of labels", *_activation_key(c)), of_labels)
    _, positive, _ = _factors(c, rows.at_label, memo)
    return np.asarray(losses * positive[:, 0])


def _finite_costs(c: Convention, rows: Rows, memo: dict[Any, Any]) -> bool:
    cost, complement_cost, *_ = _costs(c, rows, rows.pred, memo, None)

    def finite() -> bool:
        return bool(np.isfinite(cost).all() and (complement_cost is None or np.isfinite(complement_cost).all()))

    return bool(_cached(memo, ("finite", *_costs_key(c)), finite))


def _smoothed_sums(c: Convention, rows: Rows, memo: dict[Any, Any]) -> Array:
    """Σ t (−log p), and of outcomes Σ (1 − t) (−log(1 − p)) with it, in which smoothed targets are linear."""
    plain = c.but(label_smoothing=0.0, smoothing_over="K", pos_weight=1.0)
    _, positive, negative = _factors(plain, rows, memo)
    cost, complement_cost, *_ = _costs(c, rows, rows.pred, memo, None)
    of_event, of_other = _class_weights(c, rows)
    part, uniform = _smoothing(c, rows.pred.shape[1])
    key = (*_costs_key(c), *_target_key(plain), c.class_weight and c.weighted == "terms")

    def sums(name: str, factor: Array, cost: Array, weight: Array | None, uniform: float) -> Array:
        of_target = _cached(memo, (name, *key), lambda: np.einsum("ij,ij->i", factor, cost))
        if not c.label_smoothing:
            return np.asarray(of_target)
        of_all = _cached(memo, (f"{name}, all", *key), lambda: cost.sum(1) if weight is None else cost @ weight)
        return np.asarray(part * of_target + uniform * of_all)

    found = sums("positive sums", positive, cost, of_event, uniform) * (c.pos_weight if "binary" in c.cost else 1.0)
    if c.cost != "binary":
        return found
    return found + sums("negative sums", negative, complement_cost, of_other, 1 - part - uniform)


def _are_weighted(c: Convention, rows: Rows) -> bool:
    """Whether the class weights are those of rows."""
    return c.class_weight and c.weighted == "rows" and rows.class_weight is not None


def _row_weights(c: Convention, rows: Rows, memo: dict[Any, Any]) -> Array:
    """(rows,): Σ_c t_c w_c."""
    return np.asarray(_factors(c, rows, memo)[0] @ rows.class_weight)


def _factors(c: Convention, rows: Rows, memo: dict[Any, Any] | None) -> tuple[Any, Any, Any]:
    """t, and with the class weights the factors of −log p and of −log(1 − p): t w and (1 − t) w."""
    of_event, of_other = _class_weights(c, rows)
    key = (*_target_key(c), rows.column is None)
    target = _cached(memo, ("target", *key), lambda: _targets(c, rows.target, rows.dtype))
    positive = target if of_event is None else _cached(memo, ("positive", *key), lambda: target * of_event)
    if "binary" not in c.cost:
        return target, positive, None
    if c.pos_weight != 1:
        positive = positive * c.pos_weight

    def complement() -> Any:
        return 1 - target if of_other is None else (1 - target) * of_other

    return target, positive, _cached(memo, ("negative", *key, c.class_weight), complement)


def _class_weights(c: Convention, rows: Rows) -> tuple[Array | None, Array | None]:
    """Of the terms −t log p, and of −(1 − t) log(1 − p)."""
    weight = rows.class_weight if c.class_weight and c.weighted == "terms" else None
    return (weight[1:], weight[:1]) if weight is not None and rows.of_outcomes else (weight, weight)


def _costs(c: Convention, rows: Rows, pred: Any, memo: dict[Any, Any] | None, guard: Any) -> tuple[Any, ...]:
    """−log p, −log(1 − p), p, and p before clipping; None for those that the convention's cost does not use.

    `guard`: the targets, if a gradient is taken: costs of target 0 are made finite, because the gradient of 0·∞ is NaN.
    """

    used = _uses_probabilities(c)

    def clipped() -> tuple[Any, ...]:
        _, cost, complement_cost = _activated_once(c, pred, memo)
        unclipped = _probabilities(c, rows, pred, memo) if used else None
        p = _renormalised(c, rows, pred, memo) if used else None
        if rows.column is not None:
            cost, unclipped, p = (None if x is None else x[rows.column] for x in (cost, unclipped, p))
        return (*_clipped_costs(c, p, cost, complement_cost, guard, rows.dtype), unclipped)

    found: tuple[Any, ...] = _cached(memo, ("costs", *_costs_key(c), used, rows.column is None), clipped)
    return found


def _uses_probabilities(c: Convention) -> bool:
    """Whether p is used, and not only −log p and −log(1 − p) of the logits."""
    if _changes_probabilities(c) or c.activation == "none" or c.logarithm == "missing":
        return True
    if c.cost == "binary":
        return not c.activation.startswith("sigmoid")
    return c.cost not in ("cross-entropy", "divergence")


def _changes_probabilities(c: Convention) -> bool:
    """Whether a logarithm is taken of what p became."""
    return c.renormalise != "no" or c.clip in (*_CLIPS, "added")


def _activated_once(c: Convention, pred: Any, memo: dict[Any, Any] | None) -> tuple[Any, Any, Any]:
    found: tuple[Any, Any, Any] = _cached(
        memo, ("activated", *_activation_key(c)), lambda: _activated(c, _logits_once(c, pred, memo))
    )
    return found


def _logits_once(c: Convention, pred: Any, memo: dict[Any, Any] | None) -> Any:
    return _cached(memo, ("logits", *_logits_key(c)), lambda: _logits(c, pred))


def _probabilities(c: Convention, rows: Rows, pred: Any, memo: dict[Any, Any] | None) -> Any:
    """p, before it is renormalised or clipped."""
    p, cost, complement_cost = _activated_once(c, pred, memo)
    if p is not None:
        return p

    def of_logits() -> Any:
        if complement_cost is None:
            return b.exp(-cost)
        return elementary.sigmoid(b, _cooled(c, _logits_once(c, pred, memo)))[0]

    return _cached(memo, ("p", *_activation_key(c)), of_logits)


def _renormalised(c: Convention, rows: Rows, pred: Any, memo: dict[Any, Any] | None) -> Any:
    """p with what needs the whole row: its sum, and a clip before that."""
    if c.renormalise == "no":
        return _probabilities(c, rows, pred, memo)
    first = (c.clip, c.epsilon) if c.clip_first and c.clip in _CLIPS else ()

    def quotient() -> Any:
        p = _probabilities(c, rows, pred, memo)
        p = _clip(p, *_bounds(c, rows.dtype)) if first else p
        return p / b.sum(p, 1, keepdims=True)

    return _cached(memo, ("renormalised", *_activation_key(c), *first), quotient)


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
    return x * _log_of_positive(x)


def _log_of_positive(x: Any) -> Any:
    """log x; of 0 it is 0."""
    return b.log(b.where(x == 0, 1.0, x))


def _target_key(c: Convention) -> tuple[Any, ...]:
    clips = (c.clip, c.epsilon) if c.cost == "divergence" else ()
    both = c.renormalise == "both"
    temperature = c.temperature if c.target_activation == "softmax" else 1.0
    smoothing = (c.label_smoothing, c.smoothing_over)
    return (c.target_activation, temperature, *smoothing, c.dtype, both, clips, "binary" in c.cost)


def _targets(c: Convention, target: Any, dtype: str) -> Any:
    if c.dtype != "exact":
        target = rounded(target, c.dtype.split()[0])
    if c.target_activation == "softmax":
        target = b.exp(-softmax.neg_log_softmax(b, _cooled(c, target), 1)[0])
    elif c.target_activation == "exp":
        target = b.exp(target)
    if c.renormalise == "both":
        target = target / b.sum(target, 1, keepdims=True)
    if c.cost == "divergence" and c.clip in _CLIPS:
        target = _clip(target, *_bounds(c, dtype))
    if not c.label_smoothing:
        return target
    part, uniform = _smoothing(c, b.size(target, 1))
    return target * part + uniform


def _smoothing(c: Convention, classes: int) -> tuple[float, float]:
    """The smoothed target is t times the first, and the second."""
    s, outcomes = c.label_smoothing, 2 if "binary" in c.cost and c.smoothing_over != "C" else classes
    if c.smoothing_over == "added":
        return 1 - s / outcomes, s / outcomes
    if c.smoothing_over == "K-1":
        each = s / (outcomes - 1) if outcomes > 1 else math.nan
        return 1 - s - each, each
    return 1 - s, s / outcomes


def _costs_key(c: Convention) -> tuple[Any, ...]:
    of_p = (c.renormalise, c.clip_first, c.clip, c.epsilon, c.logarithm)
    return (*_activation_key(c), *of_p, "binary" in c.cost)


def _activation_key(c: Convention) -> tuple[Any, ...]:
    return c.temperature, c.softcap, *_logits_key(c)


def _logits_key(c: Convention) -> tuple[Any, ...]:
    return c.activation, c.dtype


def _cooled(c: Convention, logits: Any) -> Any:
    return logits if c.temperature == 1 else logits / c.temperature


def _scaled(c: Convention, logits: Any) -> Any:
    """What the softmax is taken of: the logits divided by the temperature, then capped."""
    z = _cooled(c, logits)
    return z if c.softcap is None else softmax.scaled(b, z, 1.0, c.softcap)


def _logits(c: Convention, pred: Any) -> Any:
    """What the activation, or the second one, is applied to, before a temperature."""
    x = rounded(pred, c.dtype.split()[0]) if c.dtype != "exact" else pred
    if c.activation == "softmax twice":
        return b.exp(-softmax.neg_log_softmax(b, x, 1)[0])
    return elementary.sigmoid(b, x)[0] if c.activation == "sigmoid twice" else x


def _activated(c: Convention, x: Any) -> tuple[Any, Any, Any]:
    """p; or −log p and −log(1 − p) where they need no logarithm of p."""
    if c.activation.startswith("softmax"):
        cost = softmax.neg_log_softmax(b, _scaled(c, x), 1)[0]
        return None, cost, None
    if c.activation.startswith("sigmoid"):
        x = _cooled(c, x)
        return None, elementary.softplus(b, -x), elementary.softplus(b, x)
    return (None, -x, None) if c.activation == "exp" else (x, None, None)


def _clipped_costs(c: Convention, p: Any, cost: Any, complement_cost: Any, guard: Any, dtype: str) -> tuple[Any, ...]:
    """−log p, −log(1 − p), and p, which was renormalised, clipped."""
    changed = _changes_probabilities(c)
    if c.clip in _CLIPS and not (c.clip_first and c.renormalise != "no"):
        p = _clip(p, *_bounds(c, dtype))
    added = float(c.epsilon) if c.clip == "added" else 0.0
    if changed or cost is None:
        cost = elementary.neg_log(b, guard, p + added if added else p)
    if "binary" not in c.cost:
        complement_cost = None
    elif changed or complement_cost is None:
        other = None if guard is None else 1 - guard
        complement_cost = elementary.neg_log(b, other, 1 - p + added) if added else _complement_cost(other, p)
    if c.clip == "arguments":
        largest = -math.log(float(c.epsilon)) if float(c.epsilon) else math.inf
        cost = b.where(cost > largest, largest, cost)
        if complement_cost is not None:
            complement_cost = b.where(complement_cost > largest, largest, complement_cost)
    if c.logarithm == "missing":
        cost, complement_cost = -p, p - 1
    elif c.logarithm == "twice":
        cost, complement_cost = -b.log(cost), None if complement_cost is None else -b.log(complement_cost)
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
    if c.rows != ALL:
        return rows.weighting(c.rows).weight
    weight = rows.valid.astype(np.float64) if c.left_out != "kept" else np.ones(len(rows.valid))
    return weight * rows.weight if c.sample_weight and rows.weight is not None else weight


def divisor(c: Convention, batch: Batch, rows: Rows) -> float:
    """What the sum over all rows is divided by."""
    classes = rows.pred.shape[1]
    if c.rows != ALL:
        return (
            1.0 if c.divisor == "one" else rows.weighting(c.rows).divisor * (classes if c.divisor == "elements" else 1)
        )
    count = float(rows.valid.sum()) if c.left_out == "removed" else float(len(rows.valid))
    if c.divisor in ("weights", "nonzero weights"):
        weight = weights(c, rows)
        if c.class_weight and rows.class_weight is not None:
            weight = weight * _by_class(c, rows)
        return float(weight.sum() if c.divisor == "weights" else (weight != 0).sum())
    sizes = {
        "samples": count,
        "elements": count * classes,
        "classes": float(classes),
        "axis 0": float(batch.y_pred.shape[0]) if batch.y_pred.ndim else 1.0,
        "squared samples": count * count,
        "one": 1.0,
    }
    return sizes[c.divisor]


def _by_class(c: Convention, rows: Rows) -> Array:
    """(rows,): the class weight that each row counts by."""
    assert rows.class_weight is not None
    if rows.of_outcomes:
        return np.asarray(rows.class_weight[0] * (1 - rows.target[:, 0]) + rows.class_weight[1] * rows.target[:, 0])
    return _row_weights(c, rows, {}) if c.weighted == "rows" else np.asarray(rows.target @ rows.class_weight)


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
    value = value * c.factor + c.offset
    return float(rounded(np.float64(value), c.dtype)) if c.dtype in FLOAT16_DTYPES else value


_OF_REDUCTION = ("base", "divisor", "outcome", "factor", "offset")
_of_sums = attrgetter(*(f.name for f in fields(Convention) if f.name not in _OF_REDUCTION))


def sums_key(c: Convention) -> tuple[Any, ...]:
    """The fields of `c` but those of the reduction: conventions with equal keys have the same row sums."""
    key: tuple[Any, ...] = _of_sums(c)
    return key


def as_read(c: Convention, batch: Batch) -> Batch:
    """The batch, with targets and predictions swapped if the convention swaps them."""
    return batch.swapped if c.swapped else batch


# Many conventions.


def scalars(
    batch: Batch, conventions: Sequence[Convention], advance: Callable[[float], None] = lambda fraction: None
) -> Array:
    """The loss under each convention. `advance` is called with the fraction of the work of each step."""
    groups: dict[tuple[int, bool], dict[Any, Convention]] = {}  # one convention for each key
    keys = [sums_key(c) for c in conventions]
    for c, key in zip(conventions, keys, strict=True):
        groups.setdefault((c.axis, c.swapped), {}).setdefault(key, c)
    work = sum(len(group) for group in groups.values())
    totals: dict[Any, float] = {}  # by key
    with np.errstate(all="ignore"), ThreadPoolExecutor(2) as pool:
        for (axis, swap), group in groups.items():
            rows = (batch.swapped if swap else batch).rows(axis)
            # Sorted, so that neighbours share cached costs and targets.
            order = sorted(group.items(), key=lambda one: tuple(map(str, _costs_key(one[1]) + _target_key(one[1]))))
            step = max(1, _BLOCK // max(rows.pred.shape[1], 1))
            blocks = [rows.some(slice(i, i + step)) for i in range(0, len(rows.pred), step)]
            total = np.zeros(len(order))
            each = pool.map if len(blocks) > 1 else map  # threads take longer to start than a small batch
            for sums in each(partial(_block_sums, [c for _, c in order]), blocks):
                total += sums
                advance(len(group) / work / len(blocks))
            totals |= {key: x for (key, _), x in zip(order, total.tolist(), strict=True)}
        found = np.empty(len(conventions))
        denominators: dict[Any, float] = {}
        for i, (c, key) in enumerate(zip(conventions, keys, strict=True)):
            read = as_read(c, batch)
            smoothing = c.label_smoothing if c.weighted == "rows" else 0.0
            what = (c.divisor, c.left_out, c.sample_weight, c.class_weight, c.axis, c.swapped, c.rows, smoothing)
            if what not in denominators:
                denominators[what] = divisor(c, read, read.rows(c.axis))
            found[i] = finish(c, totals[key], denominators[what])
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
        if _are_weighted(c, rows):
            weight = weight * _row_weights(c, rows, {})

        def loss(x: Any) -> Any:
            x = b.where(weight[:, None] == 0, 0.5, x)  # a NaN of what is left out would reach its slope
            given, pred = (replace(rows, target=x), rows.pred) if c.swapped else (rows, x)
            losses = b.sum(terms(c, given, pred), 1)
            losses = losses + c.z_loss * _squared_lse(c, pred, None) if c.z_loss else losses
            return b.sum(losses * weight)

        return value_and_grad(loss, rows.target if c.swapped else rows.pred)[1]


def scale(c: Convention, batch: Batch, quantity: Quantity) -> float:
    """The factor that `arrays` leaves out."""
    read = as_read(c, batch)
    factor = (-c.factor if c.outcome == "negated" else c.factor) / math.log(c.base)
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
