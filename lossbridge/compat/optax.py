"""Optax' losses: its names, argument order (logits, labels), defaults and results, on arrays of every backend.

Nothing is reduced: one loss a sample, of logits' shape without `axis`; the sigmoid losses return one an element. Where
Optax' value is correct, this one is equal. Differences on purpose:

- float16 and bfloat16 logits give a float32 result, not a rounded one; float32 logits with float64 labels are computed
  in float32;
- confident rows, shifted logits and nearly equal distributions keep their digits; divergences are computed in float64;
- 0·log 0 is 0 in every gradient, and −∞ times a label of 0 is 0;
- labels are never broadcast to the logits, nor is `where`, which has their shape, or a size of 1 along `axis`; the
  softmax losses also take one without that axis;
- an integer label that `where` excludes has the probability 0, and costs +∞;
- integer labels out of range are an error where they can be read, else NaN;
- several axes must be neighbours; with integer labels, in ascending order;
- alpha, gamma and poly's epsilon are Python numbers, alpha in [0, 1] and gamma at least 0; boolean labels are 0 and 1.

Losses are in nats.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lossbridge import errors
from lossbridge.frameworks.framework import ArrayOps
from lossbridge.maths import bernoulli, divergence, softmax
from lossbridge.maths.elementary import zero_if_unweighted
from lossbridge.maths.ops import Array, Ops, Residuals, Rule
from lossbridge.request import as_array, common_framework, compute_dtype, held_to, run
from lossbridge.spec import LOSSES, Loss, Names

__all__ = [
    "convex_kl_divergence",
    "generalized_kl_divergence",
    "kl_divergence",
    "kl_divergence_with_log_targets",
    "poly_loss_cross_entropy",
    "safe_softmax_cross_entropy",
    "sigmoid_binary_cross_entropy",
    "sigmoid_focal_loss",
    "softmax_cross_entropy",
    "softmax_cross_entropy_with_integer_labels",
]

Axis = int | tuple[int, ...] | None

NAMES = Names(
    "labels",
    "logits",
    leave_out="where=",
    soft="softmax_cross_entropy",
    sparse="softmax_cross_entropy_with_integer_labels",
)
KL_NAMES = NAMES._replace(target="targets", pred="log_predictions")


# lossbridge's own losses of logits, which here also take one class.
_CLASSES = LOSSES["sparse_categorical_crossentropy"]._replace(outcomes=1, checked=False)
_DISTRIBUTIONS = LOSSES["categorical_crossentropy"]._replace(outcomes=1, checked=False)
_TRIALS = Loss(
    "sigmoid_binary_cross_entropy", {"logits": {"outcomes": bernoulli.LOGITS}}, {}, elementwise=("outcomes",)
)
_FOCAL_TRIALS = Loss(
    "sigmoid_focal_loss",
    {"logits": {"outcomes": bernoulli.FOCAL}},
    {},
    elementwise=("outcomes",),
    scalar_per_class=True,
)


def _poly(ops: Ops, target: Array, logits: Array, axis: int, *, coefficient: float) -> tuple[Array, Residuals]:
    """Σ_c t_c (−log p_c + ε (1 − p_c)), ε being the coefficient.

    Computed as (−log p − (1 − p)) + (1 + ε) (1 − p), whose first part is `convex_terms`, so that ε = −1 does not
    cancel.
    """
    neg_log_p = zero_if_unweighted(ops, target, softmax.neg_log_softmax(ops, logits, axis)[0])
    one_minus_p = softmax.complement(ops, neg_log_p)
    convex = divergence.convex_terms(ops, 1.0, 1 - one_minus_p, neg_log_p)
    return ops.sum(target * (convex + (1 + coefficient) * one_minus_p), axis), ()


def _kl(ops: Ops, target: Array, log_p: Array, axis: int) -> tuple[Array, Residuals]:
    return ops.sum(divergence.kl_terms(ops, target, log_p, log_target=False), axis), ()


def _kl_of_logs(ops: Ops, log_target: Array, log_p: Array, axis: int) -> tuple[Array, Residuals]:
    return ops.sum(divergence.kl_terms(ops, log_target, log_p, log_target=True), axis), ()


def _generalized_kl(ops: Ops, target: Array, log_p: Array, axis: int) -> tuple[Array, Residuals]:
    return divergence.generalized_kl_from_logs(ops, target, log_p, axis), ()


def _record(name: str, rule: Rule) -> Loss:
    return Loss(name, {"probabilities": {"distributions": rule}}, {}, outcomes=1)


_POLY = _record("poly_loss_cross_entropy", Rule("poly cross-entropy", _poly, options=("coefficient",)))
_KL = _record("kl_divergence", Rule("divergence of log-probabilities", _kl))
_KL_OF_LOGS = _record("kl_divergence_with_log_targets", Rule("divergence of two log-probabilities", _kl_of_logs))
_GENERALIZED_KL = _record("generalized_kl_divergence", Rule("generalized divergence", _generalized_kl))


def softmax_cross_entropy(logits: Any, labels: Any, axis: Axis = -1, where: Any = None) -> Any:
    """Cross-entropy of class distributions, Σ_c t_c (−log softmax(logits)_c), as optax.softmax_cross_entropy.

    Args:
        logits: of shape (…, C, …), floating-point.
        labels: target distributions t (one-hot or soft), of logits' shape.
        axis: of the classes; several neighbouring axes, or None for all, count as one.
        where: of logits' shape, or without `axis`: false entries take part neither in the softmax nor in the sum. A row
            without true entries is 0.

    A logit that leads by 20 costs 2.0612e-9, in Optax 0.

    >>> softmax_cross_entropy([[1.2, -0.8, -0.5], [0.9, -1.2, 1.1]], [[1, 0, 0], [0, 1, 0]]).round(4)
    array([0.2761, 2.9518])

    Source: Shannon, A Mathematical Theory of Communication, 1948.
    """
    return _distributions(_DISTRIBUTIONS, logits, labels, axis, where, from_logits=True)


def softmax_cross_entropy_with_integer_labels(
    logits: Any, labels: Any, axis: int | tuple[int, ...] = -1, where: Any = None
) -> Any:
    """Cross-entropy of integer classes, −log softmax(logits)_y, as optax.softmax_cross_entropy_with_integer_labels.

    Args:
        logits: of shape (…, C, …), floating-point.
        labels: classes y from 0 to C − 1, of logits' shape without `axis`; along several axes, flat indices.
        axis, where: as in `softmax_cross_entropy`; `axis` is not None.

    Optax loses the digits of large logits, takes −1 for the last class, and where `where` excludes the label gives the
    log-sum-exp of the others less its logit, which may be negative; here +∞.

    >>> softmax_cross_entropy_with_integer_labels([[1.2, -0.8, -0.5], [0.9, -1.2, 1.1]], [0, 1]).round(4)
    array([0.2761, 2.9518])

    Source: as `softmax_cross_entropy`.
    """
    if axis is None:
        raise TypeError("axis is None, and integer labels name a class along given axes; pass an integer or a tuple")
    if isinstance(axis, tuple) and list(axis) != sorted(axis):
        raise ValueError(f"axis {axis} is not in ascending order, in which flat labels count; transpose the logits")
    ops, pred = _predictions(logits, labels, NAMES)
    arrays = as_array(ops, "labels", labels, pred), pred
    return _losses(ops, _CLASSES, arrays, axis, where, NAMES, from_logits=True)


def safe_softmax_cross_entropy(logits: Any, labels: Any) -> Any:
    """`softmax_cross_entropy` along the last axis, as optax.safe_softmax_cross_entropy.

    Args:
        logits: of shape (…, C), floating-point. −∞ where the label is 0 costs nothing, as in `softmax_cross_entropy`;
            here also in rows of −∞ alone, as padding has.
        labels: target distributions, of logits' shape.

    >>> safe_softmax_cross_entropy([[0.0, -math.inf, 0.0]], [[1.0, 0.0, 0.0]]).round(7)
    array([0.6931472])

    Source: as `softmax_cross_entropy`.
    """

    ops, pred = _predictions(logits, labels, NAMES)
    target = _targets(ops, labels, pred, NAMES, floating=False)
    if ops.shape(pred):
        axis = len(ops.shape(pred)) - 1
        unlabelled = ops.expand_dims(ops.sum(ops.cast(target != 0, "int32"), axis) == 0, axis)
        pred = ops.where(unlabelled, 0.0, pred)  # also where all logits are −∞
    return _losses(ops, _DISTRIBUTIONS, (target, pred), -1, None, NAMES, from_logits=True)


def poly_loss_cross_entropy(
    logits: Any, labels: Any, *, epsilon: float = 2.0, axis: Axis = -1, where: Any = None
) -> Any:
    """Σ_c t_c (−log p_c + ε (1 − p_c)) of p = softmax(logits), as optax.losses.poly_loss_cross_entropy.

    Args:
        logits: of shape (…, C, …), floating-point.
        labels: target distributions t, floating-point, of logits' shape.
        epsilon: ε, the coefficient of the first polynomial term; no clipping.
        axis, where: as in `softmax_cross_entropy`.

    Optax loses the digits of confident rows: with ε = −1 a logit that leads by 8 costs 5.624e-8, in Optax 6.295e-8.

    >>> poly_loss_cross_entropy([[1.2, -0.8, -0.5]], [[1.0, 0.0, 0.0]]).round(4)
    array([0.7587])

    Source: Leng et al., PolyLoss: A Polynomial Expansion Perspective of Classification Loss Functions, 2022.
    """
    if isinstance(epsilon, bool) or not isinstance(epsilon, int | float | np.integer | np.floating):
        raise TypeError(f"epsilon is {epsilon!r}; pass a Python number, the coefficient of 1 - p")
    if not math.isfinite(epsilon):
        raise ValueError(f"epsilon is {epsilon}; pass a finite number, the coefficient of 1 - p")
    return _distributions(_POLY, logits, labels, axis, where, floating=True, coefficient=epsilon)


def sigmoid_binary_cross_entropy(logits: Any, labels: Any) -> Any:
    """t·softplus(−x) + (1 − t)·softplus(x), element by element, as optax.sigmoid_binary_cross_entropy.

    Args:
        logits: x, floating-point, of any shape.
        labels: t in [0, 1], of logits' shape.

    >>> print(f"{sigmoid_binary_cross_entropy([-20.0], [0.0])[0]:.4e}")
    2.0612e-09

    Source: Goodfellow et al., Deep Learning, 2016, §6.2.2.2.
    """
    _, pred = _predictions(logits, labels, NAMES)
    return run(_TRIALS, labels, pred, names=NAMES, reduction="none")


def sigmoid_focal_loss(logits: Any, labels: Any, *, alpha: float | None = None, gamma: float = 2.0) -> Any:
    """`sigmoid_binary_cross_entropy` times (1 − p_t)^γ, p_t = t·p + (1 − t)·(1 − p), as optax.sigmoid_focal_loss.

    Args:
        logits: floating-point, of any shape.
        labels: t in [0, 1], of logits' shape.
        alpha: in [0, 1]: multiplies by α·t + (1 − α)·(1 − t).
        gamma: γ ≥ 0.

    Optax' gradient lacks a term for labels of exactly 0 or 1.

    >>> sigmoid_focal_loss([2.0, -1.0], [1.0, 1.0], alpha=0.25).round(7)
    array([0.0004509, 0.1754671])

    Source: Lin et al., Focal Loss for Dense Object Detection, 2017.
    """
    errors.options({"gamma": gamma})
    _, pred = _predictions(logits, labels, NAMES)
    balanced = {"apply_class_balancing": alpha is not None, "alpha": 0.0 if alpha is None else alpha}
    return run(_FOCAL_TRIALS, labels, pred, names=NAMES, gamma=gamma, **balanced, reduction="none")


def kl_divergence(log_predictions: Any, targets: Any, axis: Axis = -1, where: Any = None) -> Any:
    """KL(t ‖ exp(log_predictions)) = Σ_c t_c (log t_c − log p_c), as optax.kl_divergence.

    Args:
        log_predictions: log-probabilities, of shape (…, C, …).
        targets: probabilities t, floating-point, of that shape.
        axis: of the classes; several neighbouring axes, or None for all, count as one.
        where: of that shape: false entries take no part in the sum.

    Computed in float64, where it exists, because the two logarithms nearly cancel; the result is float32 unless
    log_predictions is float64. Optax computes in the arguments' dtype, and its gradient for t = 0 is NaN.

    >>> kl_divergence([[math.log(0.25), math.log(0.75)]], [[0.5, 0.5]]).round(7)
    array([0.143841])

    Source: Kullback and Leibler, On Information and Sufficiency, 1951.
    """
    return _divergence(_KL, log_predictions, targets, axis, where, KL_NAMES)


def kl_divergence_with_log_targets(log_predictions: Any, log_targets: Any, axis: Axis = -1, where: Any = None) -> Any:
    """`kl_divergence` of log-probabilities on both sides, as optax.losses.kl_divergence_with_log_targets.

    Args:
        log_predictions, axis, where: as in `kl_divergence`.
        log_targets: log t, of the same shape; −∞ is the probability 0, which costs nothing (in Optax NaN).

    >>> kl_divergence_with_log_targets([[math.log(0.25), math.log(0.75)]], [[math.log(0.5), math.log(0.5)]]).round(7)
    array([0.143841])

    Source: as `kl_divergence`.
    """
    names = KL_NAMES._replace(target="log_targets")
    return _divergence(_KL_OF_LOGS, log_predictions, log_targets, axis, where, names)


def generalized_kl_divergence(log_predictions: Any, targets: Any, axis: Axis = -1, where: Any = None) -> Any:
    """Σ_c t_c (log t_c − log p_c) − t_c + p_c, never negative, as optax.losses.generalized_kl_divergence.

    Args:
        log_predictions, targets, axis, where: as in `kl_divergence`; neither side has to sum to 1.

    Optax loses the digits of nearly equal distributions, and gives negative values.

    >>> generalized_kl_divergence([[math.log(0.25), math.log(0.5)]], [[0.5, 0.5]]).round(7)
    array([0.0965736])

    Source: Boyd and Vandenberghe, Convex Optimization, 2004, p. 90.
    """
    return _divergence(_GENERALIZED_KL, log_predictions, targets, axis, where, KL_NAMES)


def convex_kl_divergence(log_predictions: Any, targets: Any, axis: Axis = -1, where: Any = None) -> Any:
    """Σ_c t_c (log t_c − log p_c) − t_c + p_c, as optax.convex_kl_divergence: `generalized_kl_divergence`'s older name.

    >>> convex_kl_divergence([[math.log(0.25), math.log(0.5)]], [[0.5, 0.5]]).round(7)
    array([0.0965736])

    Source: as `generalized_kl_divergence`.
    """
    return generalized_kl_divergence(log_predictions, targets, axis, where)


def _predictions(logits: Any, labels: Any, names: Names) -> tuple[ArrayOps, Array]:
    ops = common_framework(logits, names.pred, {names.target: labels}).ops
    pred = as_array(ops, names.pred, logits)
    errors.floating(ops.dtype(pred), names.pred, names.target)
    return ops, pred


def _targets(ops: ArrayOps, labels: Any, pred: Array, names: Names, *, floating: bool) -> Array:
    """`floating`: Optax takes no integers."""
    target = as_array(ops, names.target, labels, pred)
    if floating:
        errors.floating(ops.dtype(target), names.target, names.pred)
    errors.same_shape(ops.shape(target), ops.shape(pred), names, labels_fit=True)
    return held_to(ops, names.target, target, pred, None)


def _distributions(
    loss: Loss, logits: Any, labels: Any, axis: Axis, where: Any, *, floating: bool = False, **options: Any
) -> Any:
    ops, pred = _predictions(logits, labels, NAMES)
    target = _targets(ops, labels, pred, NAMES, floating=floating)
    return _losses(ops, loss, (target, pred), axis, where, NAMES, **options)


def _divergence(loss: Loss, log_predictions: Any, targets: Any, axis: Axis, where: Any, names: Names) -> Any:
    """In the widest dtype, because the logarithms in kl_terms nearly cancel."""
    ops, pred = _predictions(log_predictions, targets, names)
    target = _targets(ops, targets, pred, names, floating=True)
    losses = _losses(ops, loss, (target, ops.cast(pred, ops.widest(pred))), axis, where, names)
    return ops.cast(losses, compute_dtype(ops, pred))


def _losses(
    ops: ArrayOps, loss: Loss, arrays: tuple[Array, Array], axis: Axis, where: Any, names: Names, **options: Any
) -> Any:
    """`arrays`: the target and the predictions."""
    target, pred = arrays
    rank, of_labels = len(ops.shape(pred)), loss is _CLASSES
    of_rows = False  # whether `where` lacks the axis of the classes
    if where is not None:
        common_framework(pred, names.pred, {"where": where})
        where = ops.cast(as_array(ops, "where", where, pred), "bool")
        of_rows = loss in (_CLASSES, _DISTRIBUTIONS, _POLY) and len(ops.shape(where)) < rank
    if not isinstance(axis, int | np.integer):
        axes = _neighbours(ops, target, pred, tuple(range(rank)) if axis is None else axis, names)
        if where is not None and not of_rows:
            where = _merged(ops, _fitting(ops, where, pred, axes, names), axes)
        target = target if of_labels else _merged(ops, target, axes)
        pred, axis = _merged(ops, pred, axes), axes[0]
    axis = errors.axis_of(ops.shape(target), ops.shape(pred), axis, names, at_least=1)

    if where is not None and of_rows:
        samples = tuple(n for i, n in enumerate(ops.shape(pred)) if i != axis)
        errors.same_shape(ops.shape(where), samples, Names("where", "the losses"), labels_fit=False)
    elif where is not None:
        selected, where = _selection(ops, _fitting(ops, where, pred, (axis,), names), axis)
        pred = ops.where(selected, pred, -math.inf)
        if not of_labels:  # excluded, a target has the probability 0
            target = ops.where(selected, target, -math.inf if loss is _KL_OF_LOGS else 0)
    return run(loss, target, pred, names=names, axis=axis, mask=where, reduction="none", **options)


def _selection(ops: ArrayOps, where: Array, axis: int) -> tuple[Array, Array]:
    """Which entries are summed, and which rows are valid. A row without true entries sums all, and is invalid."""
    left = ops.sum(ops.cast(where, "int32"), axis)
    return where | ops.expand_dims(left == 0, axis), left != 0


def _fitting(ops: ArrayOps, where: Array, pred: Array, axes: tuple[int, ...], names: Names) -> Array:
    """`where`, of the shape of the predictions, or with a size of 1 along these axes."""
    shape, full_shape = ops.shape(where), ops.shape(pred)
    of_size_1 = axes if len(shape) == len(full_shape) and all(shape[axis] == 1 for axis in axes) else ()
    filled = tuple(full_shape[axis] if axis in of_size_1 else n for axis, n in enumerate(shape))
    errors.same_shape(filled, full_shape, Names("where", names.pred), labels_fit=False)
    return held_to(ops, "where", where, pred, None, [i for i in range(len(shape)) if i not in of_size_1])


def _neighbours(ops: ArrayOps, target: Array, pred: Array, axes: Any, names: Names) -> tuple[int, ...]:
    """These axes, non-negative and in order."""
    if not isinstance(axes, tuple):
        raise TypeError(f"axis is {type(axes).__name__}; pass an integer, a tuple of them, or None for all axes")
    found = sorted(errors.axis_of(ops.shape(target), ops.shape(pred), axis, names, at_least=1) for axis in axes)
    if not found:
        raise ValueError(f"axis {axes} names no axis of {names.pred}, of shape {ops.shape(pred)}; name one at least")
    if found != list(range(found[0], found[0] + len(found))):
        raise ValueError(
            f"axes {axes} do not lie side by side in {names.pred}, of shape {ops.shape(pred)}; transpose it"
        )
    return tuple(found)


def _merged(ops: ArrayOps, x: Array, axes: tuple[int, ...]) -> Array:
    """`x` with these neighbouring axes as one."""
    shape = ops.shape(x)
    size: int | None = 1
    for axis in axes:
        n = shape[axis]
        size = None if size is None or n is None else size * n
    merged = [-1 if n is None else n for n in (*shape[: axes[0]], size, *shape[axes[-1] + 1 :])]
    if merged.count(-1) > 1:
        raise ValueError(f"axes {axes} cannot be merged: shape {shape} leaves several sizes unknown; set all but one")
    return ops.reshape(x, tuple(merged))
