"""PyTorch's losses: its names, argument order (input, target), defaults and results, on arrays of every backend.

A value that PyTorch computes correctly comes out the same. What differs, on purpose:

- float16 and bfloat16 input gives a float32 result, not a rounded one;
- float32 input beside a float64 target, too, is computed in float32;
- confident rows keep their digits, and divergences are computed in float64;
- a mean over nothing (all ignored, an empty batch), or whose weights sum to 0, is 0, not NaN;
- 0·log 0 is 0 in every gradient, and −∞ times zero weight is 0;
- `target` is never broadcast to `input`; `weight` and `pos_weight` of the binary losses are, as PyTorch documents;
- labels out of range, and input outside [0, 1], are an error where they can be read, NaN where not; so is, where it can
  be read, a target outside [0, 1]. A NaN gives NaN, where PyTorch raises;
- labels of every integer dtype, and arrays of different dtypes, are taken: float64 input gives a float64 result;
- binary_cross_entropy's gradient for a target is finite where input is 0 or 1;
- options outside their range are an error. Those after `weight` go by their names; size_average, reduce and
  "elementwise_mean", which PyTorch deprecates, are left out.

`normalizer`, which PyTorch lacks, is the denominator of a mean: see `lossbridge.losses`. Losses are in nats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from lossbridge import formulas, validation
from lossbridge.backend import Array, Backend
from lossbridge.losses import Reduction, evaluate
from lossbridge.validation import Names

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
    validation.reduction_name(reduction, known, _ELSEWHERE)
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
    validation.options(reduction=ours, normalizer=normalizer, label_smoothing=label_smoothing)
    validation.ignored_class(ignore_index, "ignore_index")
    b, pred, axis = _input(input, target)
    inplace_gradient = inplace_gradient and b.name == "torch"
    labels = validation.adopt(b, "target", target, pred)
    soft = validation.is_float(b.dtype(labels))
    if soft and len(b.shape(labels)) + 1 == len(b.shape(pred)):
        raise TypeError(
            f"target has dtype {b.dtype(labels)} and no axis of classes: classes are integers; convert them, or pass "
            "probabilities of input's shape"
        )
    if not soft and b.shape(pred) and b.shape(labels) == b.shape(pred):
        raise TypeError(
            f"target has input's shape and dtype {b.dtype(labels)}: probabilities are floating-point; convert them, or "
            "pass classes, of input's shape without C"
        )

    validation.switches(inplace_gradient=inplace_gradient)
    options: dict[str, Any] = {"from_logits": True, "label_smoothing": label_smoothing, "epsilon": 0.0}
    if not soft:
        cost = formulas.sparse_categorical_crossentropy
        return _of_labels(
            cost, target, pred, axis, weight, normalizer, ours, ignore_index, NAMES, options, inplace_gradient
        )
    if ignore_index is not None and ignore_index >= 0:
        raise ValueError(f"ignore_index={ignore_index} is for integer targets, and target holds probabilities")

    return evaluate(
        formulas.categorical_crossentropy,
        target,
        pred,
        axis,
        None,
        None,
        normalizer,
        ours,
        outcomes=1,
        options=options,
        per_class={"class_weight": weight},
        inplace_gradient=inplace_gradient,
        names=NAMES,
    )


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
    validation.options(reduction=ours, normalizer=normalizer)
    validation.ignored_class(ignore_index, "ignore_index")
    _, pred, axis = _input(input, target)
    names = NAMES._replace(soft="kl_div, which takes log-probabilities too")
    cost = formulas.negative_log_likelihood
    return _of_labels(cost, target, pred, axis, weight, normalizer, ours, ignore_index, names, {})


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
    validation.options(reduction=ours, normalizer=normalizer)
    validation.switches(log_target=log_target)
    b, pred, _ = _input(input, target)
    if reduction == "batchmean" and normalizer is None:
        normalizer = b.size(pred, 0) if b.shape(pred) else 1

    options = {"log_target": log_target}
    loss = _of_elements(formulas.kl_terms, target, b, b.cast(pred, b.widest(pred)), None, normalizer, ours, options)
    return b.cast(loss, validation.compute_dtype(b.dtype(pred)))


def binary_cross_entropy(
    input: Any, target: Any, weight: Any = None, *, reduction: str = "mean", normalizer: Any = None
) -> Any:
    """−t log p − (1 − t) log(1 − p), element by element, as torch.nn.functional.binary_cross_entropy.

    Logarithms are at least −100 and their slopes at most 1e12, as in PyTorch.

    Args:
        input: probabilities p, of any shape.
        target: t in [0, 1], of input's shape.
        weight: multiplies each loss; broadcast to input's shape. Does not change the denominator of a mean.

    >>> round(float(binary_cross_entropy([0.9, 0.2, 0.6], [1.0, 0.0, 1.0])), 7)
    0.2797766
    """
    ours = check_reduction(reduction)
    validation.options(reduction=ours, normalizer=normalizer)
    b, pred, _ = _input(input, target)
    hint = "for logits use binary_cross_entropy_with_logits (BCEWithLogitsLoss)"
    validation.probabilities_in_range(b.concrete(pred), "input", hint)
    validation.probabilities_in_range(b.concrete(target), "target", "give each its share of the outcome 1")
    return _of_elements(formulas.floored_log_loss, target, b, pred, weight, normalizer, ours, {})


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
    validation.options(reduction=ours, normalizer=normalizer)
    b, pred, _ = _input(input, target)
    positive = None if pos_weight is None else _spread(b, "pos_weight", pos_weight, pred)
    options = {"from_logits": True, "epsilon": 0.0, "pos_weight": positive}
    return _of_elements(formulas.bernoulli_log_loss, target, b, pred, weight, normalizer, ours, options)


def _input(input: Any, target: Any) -> tuple[Backend, Array, int]:
    """The backend, the input as its array, and the axis of the classes."""
    b = validation.common_backend(input, "input", {"target": target})
    pred = validation.adopt(b, "input", input)
    validation.floating(b.dtype(pred), "input", "target")
    return b, pred, 1 if len(b.shape(pred)) > 1 else 0


def _of_labels(
    formula: Callable[..., Array],
    target: Any,
    pred: Array,
    axis: int,
    weight: Any,
    normalizer: Any,
    reduction: Reduction,
    ignore_index: int | None,
    names: Names,
    options: Mapping[str, Any],
    inplace_gradient: bool = False,
) -> Any:
    """`formula`: of classes. A mean divides by Σ w_y, in which, unlike in the losses, nothing is smoothed."""
    return evaluate(
        formula,
        target,
        pred,
        axis,
        None,
        None,
        normalizer,
        "mean_with_sample_weight" if reduction == "mean" else reduction,
        labels=True,
        ignore_class=ignore_index,
        outcomes=1,
        options=options,
        per_class={"class_weight": weight},
        mass=None if weight is None else partial(formulas.sparse_class_mass, label_smoothing=0.0),
        inplace_gradient=inplace_gradient,
        names=names,
    )


def _of_elements(
    formula: Callable[..., Array],
    target: Any,
    b: Backend,
    pred: Array,
    weight: Any,
    normalizer: Any,
    reduction: Reduction,
    options: Mapping[str, Any],
) -> Any:
    """`formula`: of elements."""
    each = None if weight is None else _spread(b, "weight", weight, pred)
    return evaluate(
        formula,
        target,
        pred,
        0,
        each,
        None,
        normalizer,
        reduction,
        elementwise=True,
        options=options,
        names=NAMES,
    )


def _spread(b: Backend, name: str, x: Any, pred: Array) -> Array:
    """`x` broadcast to the shape of the input, in the dtype of the computation."""
    x = validation.adopt(b, name, x, pred)
    validation.broadcastable(name, b.shape(x), "input", b.shape(pred))
    return b.broadcast_to(b.cast(x, validation.compute_dtype(b.dtype(pred))), pred)
