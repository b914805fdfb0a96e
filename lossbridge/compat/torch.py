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

from lossbridge import errors, linear
from lossbridge.frameworks.framework import ArrayOps
from lossbridge.maths import bernoulli, divergence, softmax
from lossbridge.maths.ops import Array, Ops, Residuals, Rule, Shape
from lossbridge.request import as_array, common_framework, compute_dtype, dtype_of, framework_of, run
from lossbridge.spec import LOSSES, Loss, Names, Reduction

__all__ = [
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "cross_entropy",
    "kl_div",
    "linear_cross_entropy",
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
    if not _holds_probabilities(ops, as_array(ops, "target", target, pred), ops.shape(pred)):
        return _of_classes(_CLASSES, target, pred, ours, NAMES, ignore_class=ignore_index, **given)
    if ignore_index is not None and ignore_index >= 0:
        raise ValueError(f"ignore_index={ignore_index} is for integer targets, and target holds probabilities")
    return run(_DISTRIBUTIONS, target, pred, names=NAMES, reduction=ours, **given)


def _holds_probabilities(ops: ArrayOps, target: Array, shape: Shape, of: str = "input") -> bool:
    """Whether the target is floating-point. Raises if it is neither classes nor probabilities.

    `shape`: of the logits, which are what the caller knows as `of`.
    """
    dtype = ops.dtype(target)
    soft = errors.is_float(dtype)
    if soft and len(ops.shape(target)) + 1 == len(shape):
        raise TypeError(
            f"target has dtype {dtype} and no axis of classes: classes are integers; convert them, or pass "
            f"probabilities of the shape of {of}"
        )
    if not soft and shape and ops.shape(target) == shape:
        raise TypeError(
            f"target has the shape of {of} and dtype {dtype}: probabilities are floating-point; convert them, or pass "
            f"classes, of that shape without C"
        )
    return soft


def linear_cross_entropy(
    input: Any,
    linear_weight: Any,
    target: Any,
    *,
    linear_bias: Any = None,
    weight: Any = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: Any = None,
    normalizer: Any = None,
) -> Any:
    """cross_entropy(linear(input, linear_weight, linear_bias), target), as torch.nn.functional.linear_cross_entropy.

    Without the array of all logits, by `lossbridge.linear_crossentropy`; but by all of them where they are not what
    takes the memory: for probabilities, which are as many, and for a loss in K dimensions.

    Args:
        input: hidden states of shape (H,) or (N, H).
        linear_weight: (C, H), or (C, d1, …, dK, H) for logits of shape (N, C, d1, …, dK).
        target: integer classes, of the logits' shape without C; or probabilities (floating-point) of the logits' shape.
        linear_bias: of linear_weight's shape without its last axis.
        weight: (C,), the w_c. A mean of integer targets divides by Σ w_y, one of probabilities by their number.
        ignore_index: an integer target whose entries are left out; None is −100.
        label_smoothing: s in [0, 1]; targets become t·(1 − s) + s/C.
        options: a torch.nn.LinearCrossEntropyOptions, of which batch_chunk_size is the number of rows in a block. The
            others choose between time, memory and digits, of which the result here has all.

    >>> hidden, linear_weight = [[1.0, 0.0], [0.0, 2.0]], [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]
    >>> round(float(linear_cross_entropy(hidden, linear_weight, [0, 2])), 7)
    0.8103092
    """
    ours = check_reduction(reduction)
    errors.options({"label_smoothing": label_smoothing, "reduction": ours, "normalizer": normalizer})
    errors.ignored_class(ignore_index, "ignore_index")
    common_framework(input, "input", {"linear_weight": linear_weight, "linear_bias": linear_bias, "weight": weight})
    ops, pred, _ = _input(input, target)
    layer, bias = _linear_layer(ops, pred, linear_weight, linear_bias)
    each = None if weight is None else _one_a_class(ops, weight, pred, ops.shape(layer)[0])
    memory = _memory_of_rows(options, ops, pred, layer)
    shape = (*ops.shape(pred)[:-1], *ops.shape(layer)[:-1])  # of the logits
    labels = as_array(ops, "target", target, pred)
    soft = _holds_probabilities(ops, labels, shape, "the logits")
    if soft and ignore_index is not None:
        raise ValueError(f"ignore_index={ignore_index} is for integer targets, and target holds probabilities")
    ignored = -100 if ignore_index is None else ignore_index
    given = {"label_smoothing": label_smoothing, "normalizer": normalizer}
    if soft or len(ops.shape(layer)) > 2:
        given |= {"reduction": reduction, "ignore_index": ignored}
        return cross_entropy(_logits(ops, pred, layer, bias), target, weight, **given)
    if not errors.agree(ops.shape(labels), shape[:-1]):
        errors.label_shape(ops.shape(labels), shape[:-1], shape, -1, NAMES._replace(pred="the logits"))
    if ours == "mean" and normalizer is None and each is not None:
        given["normalizer"] = _label_weight(ops, labels, layer, each, ignored)
    given |= {"reduction": ours, "ignore_class": ignored, "class_weight": weight}
    return linear.run(target, pred, (layer, bias, 0), memory, names=NAMES, **given)


def _linear_layer(ops: ArrayOps, pred: Array, weight: Any, bias: Any) -> tuple[Array, Array | None]:
    """Weight and bias as arrays of the framework. Raises where they and the input make no logits."""
    found = {"linear_weight": linear.parameter(ops, "linear_weight", weight, pred)}
    if bias is not None:
        found["linear_bias"] = linear.parameter(ops, "linear_bias", bias, pred)
    for name, x in found.items():
        dtype = ops.dtype(x)
        errors.floating(dtype, name, "target")
        if (dtype == "float64") != (ops.dtype(pred) == "float64"):
            raise TypeError(f"{name} is {dtype} and input {ops.dtype(pred)}; convert one, nothing is cast to float64")
    hidden, sizes = ops.shape(pred), ops.shape(found["linear_weight"])
    shapes = f"input has shape {errors.text(hidden)} and linear_weight {errors.text(sizes)}"
    if len(hidden) not in (1, 2) or len(sizes) < 2:
        raise ValueError(
            f"{shapes}; pass (H,) or (N, H), and (C, H) or (C, …, H) (lossbridge.linear_crossentropy takes hidden "
            "states with any axes before H)"
        )
    if None in sizes:
        raise ValueError(f"{shapes}; the weight's sizes must be known where the graph is built")
    if not errors.agree(hidden[-1:], sizes[-1:]):
        raise ValueError(f"{shapes}; their last axes must be equal, that of the hidden units")
    if len(sizes) > 2 and len(hidden) == 1:
        raise ValueError(f"{shapes}; a loss in several dimensions takes a batch, (N, H)")
    if bias is not None and not errors.agree(ops.shape(found["linear_bias"]), sizes[:-1]):
        raise ValueError(
            f"linear_bias has shape {errors.text(ops.shape(found['linear_bias']))} and linear_weight "
            f"{errors.text(sizes)}; give it {errors.text(sizes[:-1])}"
        )
    return found["linear_weight"], found.get("linear_bias")


def _one_a_class(ops: ArrayOps, weight: Any, pred: Array, classes: int | None) -> Array:
    each = as_array(ops, "weight", weight, pred)
    each = each if ops.dtype(each) == "float64" else ops.cast(each, compute_dtype(ops, pred))
    if not errors.agree(ops.shape(each), (classes,)):
        raise ValueError(f"weight has shape {errors.text(ops.shape(each))}; give it one number a class, ({classes},)")
    return each


def _memory_of_rows(options: Any, ops: ArrayOps, pred: Array, weight: Array) -> int | None:
    """The bytes of a block's logits, where the options say how many rows it has."""
    if options is None:
        return None
    if not hasattr(options, "batch_chunk_size"):
        raise TypeError(f"options is {type(options).__name__}; pass a torch.nn.LinearCrossEntropyOptions, or None")
    rows, classes = options.batch_chunk_size, ops.shape(weight)[0]
    if rows is None or not classes:
        return None
    return int(rows) * classes * (8 if compute_dtype(ops, pred) == "float64" else 4)


def _logits(ops: ArrayOps, pred: Array, weight: Array, bias: Array | None) -> Array:
    """(C, …) of (H,), (N, C, …) of (N, H), in the dtype of the computation."""
    dtype = compute_dtype(ops, pred)
    sizes: tuple[Any, ...] = ops.shape(weight)
    batch = (-1,) if len(ops.shape(pred)) > 1 else ()
    rows = ops.reshape(ops.cast(pred, dtype), (-1, sizes[-1]))
    z = ops.matmul(rows, ops.reshape(ops.cast(weight, dtype), (-1, sizes[-1])), True)
    if bias is not None:
        z = z + ops.reshape(ops.cast(bias, dtype), (1, -1))
    return ops.reshape(z, (*batch, *sizes[:-1]))


def _label_weight(ops: ArrayOps, labels: Array, linear_weight: Array, weight: Array, ignored: int) -> Array:
    """Σ w_y of the labels that count."""
    dtype = dtype_of(ops, labels)
    wide = ops.cast(labels, "int64" if dtype in ("int64", "uint64") else "int32")
    each = _LABEL_MASS.value(ops, wide, linear_weight, 0, class_weight=weight)[0]
    if errors.representable(ignored, dtype):
        each = ops.where(wide != ignored, each, 0.0)
    return ops.sum(each)


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
