"""PyTorch's losses: its names, argument order (input, target), defaults and results, on arrays of every backend.

Where PyTorch's value is correct, this one is equal. Differences on purpose:

- float16 and bfloat16 input gives a float32 result, not a rounded one;
- float32 input with a float64 target is computed in float32;
- confident rows keep their digits, and divergences are computed in float64;
- a mean of no entries (all ignored, an empty batch), or whose weights sum to 0, is 0, not NaN;
- 0·log 0 is 0 in every gradient, and −∞ times zero weight is 0;
- `target` is never broadcast to `input`; `weight` and `pos_weight` of the binary losses are, as PyTorch documents;
- labels out of range, and input outside [0, 1], are an error where they can be read, else NaN; a target outside [0, 1]
  is an error where it can be read. A NaN gives NaN, where PyTorch raises;
- labels of every integer dtype, and arrays of different dtypes, are taken: float64 input gives a float64 result;
- binary_cross_entropy's gradient for a target is finite where input is 0 or 1;
- options outside their range are an error. Those after `weight` are keyword-only; size_average, reduce and
  "elementwise_mean", which PyTorch deprecates, are left out.

`normalizer`, which PyTorch lacks, is the denominator of a mean: see `lossbridge.losses`. Losses are in nats.
"""

from __future__ import annotations

from typing import Any

from lossbridge import errors
from lossbridge.frameworks.framework import ArrayOps
from lossbridge.maths import bernoulli, divergence, softmax
from lossbridge.maths.ops import Array, Ops, Residuals, Rule
from lossbridge.request import as_array, common_framework, compute_dtype, framework_of, run
from lossbridge.spec import LOSSES, Loss, Names, Reduction

__all__ = [
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "cross_entropy",
    "kl_div",
    "nll_loss",
]

NAMES = Names(
    "target",
    "input",
    leave_out="ignore_index=",
    soft="cross_entropy with floating-point targets of input's shape",
    sparse="cross_entropy with integer targets",
    classes_last="input.movedim(-1, 1) (in NumPy np.moveaxis), or use sparse_categorical_crossentropy",
    class_weight="weight",
)


def _kl_terms(ops: Ops, target: Array, log_p: Array, axis: None, *, log_target: bool) -> tuple[Array, Residuals]:
    return divergence.kl_terms(ops, target, log_p, log_target=log_target), ()


# A mean divides by Σ w_y of the labels, without smoothing.
_LABEL_MASS = softmax.LABEL_MASS._replace(options=("class_weight",))
# lossbridge's own losses, which here also take one class.
_CLASSES = LOSSES["sparse_categorical_crossentropy"]._replace(outcomes=1, checked=False, mass=_LABEL_MASS)
_DISTRIBUTIONS = LOSSES["categorical_crossentropy"]._replace(outcomes=1, checked=False)
_LOG_LIKELIHOOD = Loss(
    "nll_loss",
    {"probabilities": {"labels": softmax.LOG_LIKELIHOOD}},
    {"ignore_class": None, "class_weight": None},
    outcomes=1,
    mass=_LABEL_MASS,
)
_KL_TERMS = Loss(
    "kl_div",
    {"probabilities": {"outcomes": Rule("terms of the divergence", _kl_terms, options=("log_target",))}},
    {"log_target": False},
    elementwise=("outcomes",),
)
_FLOORED = Loss(
    "binary_cross_entropy",
    {"probabilities": {"outcomes": bernoulli.FLOORED}},
    {},
    elementwise=("outcomes",),
    checked=True,
)
_TRIALS = Loss(
    "binary_cross_entropy_with_logits",
    {"logits": {"outcomes": bernoulli.LOGITS}},
    {"pos_weight": None},
    elementwise=("outcomes",),
    per_class=(),  # pos_weight broadcasts to input's shape
)

# PyTorch's reductions, and ours.
_REDUCTIONS: dict[str, Reduction] = {"mean": "mean", "sum": "sum", "none": "none"}
_ELSEWHERE = {
    "sum_over_batch_size": ("Keras'", "mean"),
    "mean_with_sample_weight": ("Keras'", "mean"),
    "batchmean": ("KLDivLoss'", "mean"),
    "elementwise_mean": ("old PyTorch's", "mean"),
    None: ("Keras'", "none"),
}


def check_reduction(reduction: Any, *, batchmean: bool = False) -> Reduction:
    """Our name of one of PyTorch's reductions."""
    if batchmean and reduction == "batchmean":
        return "mean"
    known = (*_REDUCTIONS, "batchmean") if batchmean else tuple(_REDUCTIONS)
    errors.reduction_name(reduction, known, _ELSEWHERE)
    return _REDUCTIONS[reduction]


def cross_entropy(
    input: Any,
    target: Any,
    weight: Any = None,
    *,
    ignore_index: int | None = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    normalizer: Any = None,
    inplace_gradient: bool = False,
) -> Any:
    """Cross-entropy of logits, w_y (−log softmax(input)_y), as torch.nn.functional.cross_entropy.

    Args:
        input: logits of shape (C,), (N, C) or (N, C, …).
        target: integer classes, of input's shape without C; or probabilities (floating-point) of input's shape.
        weight: (C,), the w_c. A mean of integer targets divides by Σ w_y, one of probabilities by their number.
        ignore_index: an integer target whose entries are left out.
        label_smoothing: s in [0, 1]; targets become t·(1 − s) + s/C.
        inplace_gradient: see `lossbridge.torch.CrossEntropyLoss`.

    >>> round(float(cross_entropy([[2.0, 1.0, 0.1], [0.0, 3.0, 0.0]], [0, 1], [1.0, 2.0, 5.0])), 7)
    0.202292
    """
    ours = check_reduction(reduction)
    errors.options({"label_smoothing": label_smoothing, "inplace_gradient": inplace_gradient})
    errors.ignored_class(ignore_index, "ignore_index")
    ops, pred, axis = _input(input, target)
    given = {
        "axis": axis,
        "from_logits": True,
        "label_smoothing": label_smoothing,
        "class_weight": weight,
        "normalizer": normalizer,
        "inplace_gradient": inplace_gradient and framework_of(input).name == "torch",
    }
    if not _holds_probabilities(ops, as_array(ops, "target", target, pred), pred):
        return _of_classes(_CLASSES, target, pred, ours, NAMES, ignore_class=ignore_index, **given)
    if ignore_index is not None and ignore_index >= 0:
        raise ValueError(f"ignore_index={ignore_index} is for integer targets, and target holds probabilities")
    return run(_DISTRIBUTIONS, target, pred, names=NAMES, reduction=ours, **given)


def _holds_probabilities(ops: ArrayOps, target: Array, pred: Array) -> bool:
    """Whether the target is floating-point. Raises if it is neither classes nor probabilities."""
    dtype, shape = ops.dtype(target), ops.shape(pred)
    soft = errors.is_float(dtype)
    if soft and len(ops.shape(target)) + 1 == len(shape):
        raise TypeError(
            f"target has dtype {dtype} and no axis of classes: classes are integers; convert them, or pass "
            "probabilities of input's shape"
        )
    if not soft and shape and ops.shape(target) == shape:
        raise TypeError(
            f"target has input's shape and dtype {dtype}: probabilities are floating-point; convert them, or pass "
            "classes, of input's shape without C"
        )
    return soft


def nll_loss(
    input: Any,
    target: Any,
    weight: Any = None,
    *,
    ignore_index: int | None = -100,
    reduction: str = "mean",
    normalizer: Any = None,
) -> Any:
    """−w_y · input_y of log-probabilities, as torch.nn.functional.nll_loss. A mean divides by Σ w_y.

    Args:
        input: log-probabilities of shape (C,), (N, C) or (N, C, …).
        target: integer classes, of input's shape without C.
        weight: (C,), the w_c.
        ignore_index: a target whose entries are left out.

    >>> import math
    >>> round(float(nll_loss([[math.log(0.7), math.log(0.3)]], [0])), 7)
    0.3566749
    """
    ours = check_reduction(reduction)
    errors.options({"reduction": ours, "normalizer": normalizer})
    errors.ignored_class(ignore_index, "ignore_index")
    _, pred, axis = _input(input, target)
    names = NAMES._replace(soft="kl_div, which takes log-probabilities too")
    given = {"axis": axis, "class_weight": weight, "normalizer": normalizer, "ignore_class": ignore_index}
    return _of_classes(_LOG_LIKELIHOOD, target, pred, ours, names, **given)


def kl_div(
    input: Any,
    target: Any,
    *,
    reduction: str = "mean",
    log_target: bool = False,
    normalizer: Any = None,
) -> Any:
    """KL(target ‖ exp input), element by element, target·(log target − input), as torch.nn.functional.kl_div.

    Args:
        input: log-probabilities, of any shape.
        target: probabilities of input's shape; with `log_target`, log-probabilities.
        reduction: "batchmean" divides by the size of axis 0, which is the divergence; PyTorch's default "mean" divides
            by the number of elements, which is not.

    Computed in float64, where it exists, because the two logarithms nearly cancel; the result is float32 unless input
    is float64.

    >>> import math
    >>> log_p = [[math.log(0.25), math.log(0.75)]]
    >>> round(float(kl_div(log_p, [[0.5, 0.5]], reduction="batchmean")), 7)
    0.143841
    """
    ours = check_reduction(reduction, batchmean=True)
    errors.options({"reduction": ours, "normalizer": normalizer})
    errors.switches({"log_target": log_target})
    ops, pred, _ = _input(input, target)
    if reduction == "batchmean" and normalizer is None:
        normalizer = ops.size(pred, 0) if ops.shape(pred) else 1

    wide = ops.cast(pred, ops.widest(pred))
    given = {"log_target": log_target, "normalizer": normalizer, "reduction": ours}
    loss = run(_KL_TERMS, target, wide, names=NAMES, **given)
    return ops.cast(loss, compute_dtype(ops, pred))


def binary_cross_entropy(
    input: Any, target: Any, weight: Any = None, *, reduction: str = "mean", normalizer: Any = None
) -> Any:
    """−t log p − (1 − t) log(1 − p), element by element, as torch.nn.functional.binary_cross_entropy.

    Logarithms are at least −100 and their derivatives at most 1e12, as in PyTorch.

    Args:
        input: probabilities p, of any shape.
        target: t in [0, 1], of input's shape.
        weight: multiplies each loss; broadcast to input's shape. Does not change the denominator of a mean.

    >>> round(float(binary_cross_entropy([0.9, 0.2, 0.6], [1.0, 0.0, 1.0])), 7)
    0.2797766
    """
    ours = check_reduction(reduction)
    errors.options({"reduction": ours, "normalizer": normalizer})
    ops, pred, _ = _input(input, target)
    hint = "for logits use binary_cross_entropy_with_logits (BCEWithLogitsLoss)"
    errors.probabilities_in_range(ops.concrete(pred), "input", hint)
    errors.probabilities_in_range(ops.concrete(target), "target", "give each its share of the outcome 1")
    each = None if weight is None else _spread(ops, "weight", weight, pred)
    return run(_FLOORED, target, pred, names=NAMES, sample_weight=each, normalizer=normalizer, reduction=ours)


def binary_cross_entropy_with_logits(
    input: Any,
    target: Any,
    weight: Any = None,
    *,
    reduction: str = "mean",
    pos_weight: Any = None,
    normalizer: Any = None,
) -> Any:
    """t·softplus(−x)·pos_weight + (1 − t)·softplus(x), as torch.nn.functional.binary_cross_entropy_with_logits.

    Args:
        input: logits x, of any shape.
        target: t in [0, 1], of input's shape.
        weight: multiplies each loss; broadcast to input's shape. Does not change the denominator of a mean.
        pos_weight: multiplies the term of t; broadcast to input's shape, often (C,).

    >>> print(f"{float(binary_cross_entropy_with_logits([-20.0], [0.0])):.4e}")
    2.0612e-09
    """
    ours = check_reduction(reduction)
    errors.options({"reduction": ours, "normalizer": normalizer})
    ops, pred, _ = _input(input, target)
    given = {
        "pos_weight": None if pos_weight is None else _spread(ops, "pos_weight", pos_weight, pred),
        "sample_weight": None if weight is None else _spread(ops, "weight", weight, pred),
        "normalizer": normalizer,
        "reduction": ours,
    }
    return run(_TRIALS, target, pred, names=NAMES, **given)


def _input(input: Any, target: Any) -> tuple[ArrayOps, Array, int]:
    """The ops of the framework, the input as its array, and the axis of the classes."""
    ops = common_framework(input, "input", {"target": target}).ops
    pred = as_array(ops, "input", input)
    errors.floating(ops.dtype(pred), "input", "target")
    return ops, pred, 1 if len(pred.shape) > 1 else 0


def _of_classes(loss: Loss, target: Any, pred: Array, reduction: Reduction, names: Names, **given: Any) -> Any:
    """A mean divides by Σ w_y."""
    reduction = "mean_with_sample_weight" if reduction == "mean" else reduction
    return run(loss, target, pred, names=names, reduction=reduction, **given)


def _spread(ops: ArrayOps, name: str, x: Any, pred: Array) -> Array:
    """`x` broadcast to the shape of the input, in the dtype of the computation."""
    x = as_array(ops, name, x, pred)
    errors.broadcastable(name, ops.shape(x), "input", ops.shape(pred))
    return ops.broadcast_to(ops.cast(x, compute_dtype(ops, pred)), pred)
