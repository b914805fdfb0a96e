"""scikit-learn's log loss: its name, argument order (y_true, y_proba), defaults and result, on arrays of every backend.

`log_loss` clips and does not renormalise, as scikit-learn since 1.5; `log_loss_before_1_5` does both. Where
scikit-learn's value is correct, this one is equal. Differences on purpose:

- the result is a scalar array of y_proba's library, not a Python float, and has gradients;
- float16 and bfloat16 are clipped at their own machine epsilon and computed in float32;
- the probability of the lesser of two labels keeps its digits where it is nearly 1;
- a NaN gives NaN, and a mean of no samples, or whose weights sum to 0, is 0: scikit-learn raises;
- samples of weight 0 are left out, also where they are NaN, and one number as weight is that of every sample;
- labels that cannot be read on the host (traced, or on an accelerator) are compared with `labels`, or without those
  taken as columns, 0 to C − 1; a label that is none of them gives NaN;
- an indicator matrix needs y_proba of its shape, not one column of probabilities;
- weights may be NaN or infinite, which the loss then is too; labels that mix texts and numbers are an error;
- y_true may have shape (N, 1), and `y_pred`, the older name of `y_proba`, gives no warning.

Losses are in nats.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from lossbridge import errors
from lossbridge.frameworks.framework import ArrayOps
from lossbridge.maths import bernoulli, divergence, softmax
from lossbridge.maths.elementary import clip, nan_unless
from lossbridge.maths.ops import Array, Ops, Residuals, Rule
from lossbridge.request import as_array, common_framework, compute_dtype, run
from lossbridge.spec import Loss, Names

__all__ = ["log_loss", "log_loss_before_1_5"]


def _of_matrix(ops: Ops, target: Array, p: Array, axis: int, *, epsilon: float) -> tuple[Array, Residuals]:
    return divergence.cross_entropy(ops, target, clip(ops, p, epsilon, 1 - epsilon), axis), ()


def _renormalised_matrix(ops: Ops, target: Array, p: Array, axis: int, *, epsilon: float) -> tuple[Array, Residuals]:
    p = clip(ops, p, epsilon, 1 - epsilon)
    return softmax.crossentropy_of_probabilities(ops, target, p, axis, epsilon=0.0)


def _renormalised_labels(ops: Ops, labels: Array, p: Array, axis: int, *, epsilon: float) -> tuple[Array, Residuals]:
    p = clip(ops, p, epsilon, 1 - epsilon)
    return softmax.label_crossentropy_of_probabilities(ops, labels, p, axis, epsilon=0.0)


# By the kind of y_true, and whether rows are renormalised.
_LOSSES = {
    ("trials", False): Loss(
        "log_loss",
        {"probabilities": {"outcomes": bernoulli.PROBABILITIES}},
        {},
        elementwise=("outcomes",),
        checked=True,
    ),
    ("labels", False): Loss("log_loss", {"probabilities": {"labels": softmax.LOG_LOSS}}, {}, checked=True),
    ("matrix", False): Loss(
        "log_loss",
        {"probabilities": {"distributions": Rule("log loss of a matrix", _of_matrix, options=("epsilon",))}},
        {},
    ),
    ("labels", True): Loss(
        "log_loss_before_1_5",
        {"probabilities": {"labels": Rule("renormalised labels", _renormalised_labels, options=("epsilon",))}},
        {},
    ),
    ("matrix", True): Loss(
        "log_loss_before_1_5",
        {"probabilities": {"distributions": Rule("renormalised matrix", _renormalised_matrix, options=("epsilon",))}},
        {},
    ),
}
_LOSSES["trials", True] = _LOSSES["trials", False]

_MACHINE_EPSILON = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23, "float64": 2.0**-52}


def log_loss(
    y_true: Any,
    y_proba: Any = None,
    *,
    normalize: bool = True,
    sample_weight: Any = None,
    labels: Any = None,
    y_pred: Any = "deprecated",
) -> Any:
    """Mean of −log p_y, y being the true label, as sklearn.metrics.log_loss.

    Args:
        y_true: (N,), labels of any kind; sorted, they stand for the columns of y_proba. Or (N, C), an indicator matrix
            of 0 and 1.
        y_proba: probabilities, (N, C), clipped to [ε, 1 − ε] with the machine epsilon of their dtype; or (N,), (N, 1),
            of the greater of two labels.
        normalize: divide by the number of samples, or the sum of their weights.
        sample_weight: (N,).
        labels: all labels, where y_true may lack some.
        y_pred: y_proba's older name.

    >>> round(float(log_loss(["spam", "ham", "ham", "spam"], [[0.1, 0.9], [0.9, 0.1], [0.8, 0.2], [0.35, 0.65]])), 7)
    0.2161619

    Source: Bishop, Pattern Recognition and Machine Learning, 2006, §4.3.
    """
    if not (isinstance(y_pred, str) and y_pred == "deprecated"):
        if y_proba is not None:
            raise ValueError("y_pred is the older name of y_proba, and both are given; pass y_proba alone")
        y_proba = y_pred
    return _log_loss(y_true, y_proba, "y_proba", "auto", normalize, sample_weight, labels, renormalised=False)


def log_loss_before_1_5(
    y_true: Any,
    y_pred: Any,
    *,
    eps: float | str = 1e-15,
    normalize: bool = True,
    sample_weight: Any = None,
    labels: Any = None,
) -> Any:
    """Mean of −log(p_y / Σ_c p_c) of clipped probabilities, as sklearn.metrics.log_loss up to 1.4.

    Args:
        y_true, normalize, sample_weight, labels: as in `log_loss`.
        y_pred: as y_proba in `log_loss`, but clipped to [eps, 1 − eps], and then divided by the sum over a row.
        eps: "auto" is the machine epsilon of y_pred's dtype, the default of 1.2 to 1.4.

    >>> round(float(log_loss_before_1_5([0, 1], [[0.6, 0.2], [0.2, 0.6]])), 7)
    0.2876821

    Source: as `log_loss`.
    """
    if not (isinstance(eps, str) and eps == "auto"):
        errors.options({"epsilon": eps})
    return _log_loss(y_true, y_pred, "y_pred", eps, normalize, sample_weight, labels, renormalised=True)


def _log_loss(
    y_true: Any,
    y_proba: Any,
    name: str,
    epsilon: float | str,
    normalize: bool,
    sample_weight: Any,
    labels: Any,
    *,
    renormalised: bool,
) -> Any:
    errors.switches({"normalize": normalize})
    ops = common_framework(y_proba, name, {"y_true": y_true, "sample_weight": sample_weight}).ops
    pred = as_array(ops, name, y_proba)
    if not errors.is_float(ops.dtype(pred)):
        pred = ops.cast(pred, ops.widest(pred))
    shape = ops.shape(pred)
    if len(shape) not in (1, 2):
        raise ValueError(f"{name} has shape {shape}; pass (N, C), or (N,) of the greater of two labels")
    one_column = len(shape) == 1 or shape[1] == 1
    if isinstance(epsilon, str):
        epsilon = _MACHINE_EPSILON[ops.dtype(pred)]

    values = ops.concrete(y_proba)
    if values is not None and not _are_distributions(values):
        errors.probabilities_in_range(values, name, "logits go through a softmax or sigmoid first")
        if not one_column and not renormalised:
            _warn_of_sums(values, name)
    columns = _columns(ops, y_true, pred, labels, 2 if one_column else shape[1], name)
    target = as_array(ops, "y_true", columns, pred)
    kind = "matrix" if len(ops.shape(target)) == 2 else "trials" if one_column else "labels"
    names = Names("y_true", name)
    if kind == "trials":
        pred = ops.reshape(pred, (-1,))
        errors.same_shape(ops.shape(target), ops.shape(pred), names, labels_fit=True)
        pred = nan_unless(ops, (target == 0) | (target == 1), pred)  # for a label that is neither
    return run(
        _LOSSES[kind, renormalised],
        target,
        pred,
        names=names,
        sample_weight=sample_weight,
        epsilon=epsilon,
        reduction="mean_with_sample_weight" if normalize else "sum",
    )


_BLOCK = 2**17  # entries that stay in the cache


def _are_distributions(p: np.ndarray) -> bool:
    """Whether all rows clearly lie in [0, 1] and sum to 1: one pass, in blocks that stay in the cache."""
    if p.ndim != 2 or not p.size:
        return False
    dtype = np.float64 if p.dtype == np.float64 else np.float32
    doubt = 0.5 * _tolerance_of_sums(p)
    rows = max(1, _BLOCK // p.shape[1])
    for some in (p[start : start + rows] for start in range(0, len(p), rows)):
        if not (some.min() >= 0 and some.max() <= 1 and (np.abs(some.sum(1, dtype=dtype) - 1) <= doubt).all()):
            return False
    return True


def _tolerance_of_sums(p: np.ndarray) -> float:
    return float(_MACHINE_EPSILON.get(p.dtype.name, 2.0**-52) ** 0.5)


def _warn_of_sums(p: np.ndarray, name: str) -> None:
    sums = np.asarray(p, np.float64).sum(1)
    off = np.abs(sums - 1) > _tolerance_of_sums(p)
    if off.any():
        row = int(np.argmax(off))
        message = f"{name} sums to {sums[row]:.6g} in row {row}, not to 1; pass probabilities of all labels"
        warnings.warn(message, UserWarning, stacklevel=4)


def _columns(ops: ArrayOps, y_true: Any, pred: Array, labels: Any, columns: int | None, name: str) -> Array:
    """The column of each label, (N,); an indicator matrix, (N, C), unchanged."""
    if y_true is None:
        raise TypeError("y_true is None; pass labels, or an indicator matrix")
    _refuse_mixed("y_true", y_true)
    values = ops.concrete(y_true)
    x = as_array(ops, "y_true", y_true, pred) if values is None else None
    shape = ops.shape(x) if values is None else values.shape
    if len(shape) == 2 and shape[1] != 1:
        if labels is not None:
            raise ValueError(f"the columns of y_true, of shape {shape}, are the labels themselves; leave out labels=")
        if values is not None and values.dtype.kind in "iuf":
            soft = "no entry of an indicator matrix; soft targets go to categorical_crossentropy"
            _refuse(values, (values != 0) & (values != 1), soft)
        return y_true
    classes = None if labels is None else _sorted(ops, labels)
    if classes is not None and columns not in (None, len(classes)):
        raise ValueError(f"labels holds {len(classes)} labels, and {name} has columns for {columns}; pass one a column")
    if values is not None:
        return _found(_text(values.reshape(-1) if len(shape) == 2 else values), classes, columns, name)
    x = ops.reshape(x, (-1,)) if len(shape) == 2 else x
    return x if classes is None else _compared(ops, x, pred, classes)


def _refuse_mixed(name: str, x: Any) -> None:
    """Raises for labels without an order, and for those that NumPy would convert to texts."""
    while isinstance(x, list | tuple) and len(x) and isinstance(x[0], list | tuple):
        x = [one for row in x for one in row]
    if isinstance(x, list | tuple) or (isinstance(x, np.ndarray) and x.dtype == object):
        known = {isinstance(one, str | bytes): one for one in x}
        strange = [one for one in x if not isinstance(one, str | bytes | bool | int | float | np.generic)]
        if strange and not hasattr(strange[0], "shape"):
            raise TypeError(f"{name} holds {strange[0]!r}; labels are texts, or numbers")
        if len(known) > 1:
            raise TypeError(f"{name} holds {known[True]!r} and {known[False]!r}; labels are all texts, or all numbers")


def _sorted(ops: ArrayOps, labels: Any) -> list[Any]:
    _refuse_mixed("labels", labels)
    of_python = isinstance(labels, list | tuple | range)
    values = labels if of_python else ops.concrete(labels)
    if values is None:
        raise TypeError("labels cannot be read, because it is traced or on an accelerator; pass a list")
    flat = not any(isinstance(one, list | tuple) for one in values) if of_python else getattr(values, "ndim", 0) == 1
    if not flat:
        raise ValueError(f"labels has shape {np.shape(values)}; pass a list, one label a column")
    given = list(values) if of_python else _text(values).tolist()
    classes = sorted(set(given))
    if len(classes) < 2:
        raise ValueError(f"labels holds {classes}, and log loss needs two labels at least; pass all of them")
    if given != classes:
        message = f"labels {given} count in sorted order, as the columns have to: {classes}; pass them so"
        warnings.warn(message, UserWarning, stacklevel=5)
    return classes


def _text(values: np.ndarray) -> np.ndarray:
    """TensorFlow's strings are bytes."""
    if values.dtype.kind not in "OS":
        return values
    return np.array([x.decode() if isinstance(x, bytes) else x for x in values.tolist()])


def _found(values: np.ndarray, classes: list[Any] | None, columns: int | None, name: str) -> np.ndarray:
    """The index of each value among the sorted classes; without given classes, among the values found."""
    if values.dtype.kind == "f":
        _refuse(values, values != np.floor(values), "no label; soft targets go to binary_crossentropy")
    found = np.unique(values)
    if classes is None:
        classes = found.tolist()
        if len(classes) == 1:
            raise ValueError(f"y_true holds one label alone, {classes[0]!r}; pass all labels as labels=")
        if classes and columns not in (None, len(classes)):
            raise ValueError(
                f"y_true holds {len(classes)} labels, and {name} has columns for {columns}; pass all labels as labels="
            )
    _refuse(values, ~np.isin(values, classes), f"not among the labels {classes}; correct it, or add it to them")
    return np.searchsorted(classes, values)


def _compared(ops: ArrayOps, x: Array, pred: Array, classes: list[Any]) -> Array:
    """As `_found`, of values that cannot be read; −1, which is out of range, for those that are no class."""
    numbers = as_array(ops, "labels", classes, pred)
    if errors.is_float(ops.dtype(x)) or errors.is_float(ops.dtype(numbers)):
        dtype = compute_dtype(ops, pred)
    else:
        dtype = "int64" if ops.dtype(x) in ("int64", "uint64") else "int32"
    equal = ops.expand_dims(ops.cast(x, dtype), 1) == ops.reshape(ops.cast(numbers, dtype), (1, -1))
    equal = ops.cast(equal, "int32")
    return ops.where(ops.sum(equal, 1) > 0, ops.argmax(equal, 1), -1)


def _refuse(values: np.ndarray, bad: np.ndarray, words: str) -> None:
    if bad.any():
        index = tuple(int(i) for i in np.argwhere(bad)[0])
        place = index[0] if len(index) == 1 else index
        raise ValueError(f"y_true holds {values.item(index)!r} at index {place}, {words}")
