"""Reads the caller's arrays as a batch: raises for what cannot be read, and warns of what looks wrong.

Depends on no convention.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lossbridge.request import as_array, framework_of
from lossbridge.tools.diagnosis.batch import Array, Batch, Quantity
from lossbridge.tools.printed_number import is_number

ALONG_AXIS_0 = "classes read along axis 0, and moved to the end"
OUTSIDE = "y_pred holds values outside [0, 1]"
_LARGEST_LABEL = 2**53  # float64 does not represent every larger integer


def array(x: Any, name: str) -> Array:
    """An array of any framework, or a list, as a NumPy array; bfloat16 becomes float32."""
    return _array(x, name)[0]


def _array(x: Any, name: str) -> tuple[Array, str]:
    """The NumPy array, and the dtype that was given."""
    b = framework_of(x, name)
    x = as_array(b.ops, name, x)
    values = np.asarray(b.to_numpy(x))
    return values.astype(np.float32) if values.dtype.name == "bfloat16" else values, b.dtype(x)


def batch_of(
    y_true: Any,
    y_pred: Any,
    *,
    class_weight: Any = None,
    sample_weight: Any = None,
    mask: Any = None,
    ignore_class: int | None = None,
    moved: bool = False,
) -> tuple[Batch, list[str]]:
    """The batch, and warnings. `moved`: the classes lie along axis 1 even where they could lie along the last."""
    (true, true_dtype), (pred, pred_dtype) = _array(y_true, "y_true"), _array(y_pred, "y_pred")
    rounding = 3e-2 if pred_dtype.endswith("float16") else 1e-4  # the error of a sum over the classes
    given = {"y_true": _code("y_true", y_true), "y_pred": _code("y_pred", y_pred)}
    warnings: list[str] = []
    if true.ndim == 1 and pred.ndim == 2 and true.shape == pred.shape[1:] and true.shape != pred.shape[:1]:
        warnings.append(f"y_pred has shape {pred.shape}: {ALONG_AXIS_0}")
        pred, given["y_pred"] = pred.T, given["y_pred"] + ".T"
    true, pred = _match_axes(true, pred, given, warnings)
    moved = moved or _has_classes_first(true, pred, rounding)
    if moved:
        warnings.append(f"y_pred has shape {pred.shape}: classes read along axis 1, and moved to the end")
        pred, given["y_pred"] = np.moveaxis(pred, 1, -1), "np.moveaxis(y_pred, 1, -1)"
        if true.ndim == pred.ndim:
            true, given["y_true"] = np.moveaxis(true, 1, -1), "np.moveaxis(y_true, 1, -1)"
    _refuse_other_shapes(true, pred)
    ignored = _integer(ignore_class)
    pred = pred.astype(pred.dtype if pred.dtype.kind == "f" else np.float64)
    if true.ndim < pred.ndim:
        true, ignored = _labels(true, pred.shape[-1], ignored, warnings)
    elif ignored is not None:
        raise ValueError(f"ignore_class is {ignored}, and y_true holds no labels; leave samples out with mask")
    else:
        _warn_of_targets(true, rounding, warnings)
        true = true.astype(pred.dtype)  # as the libraries do
    for name, x, dtype in (("y_true", true, true_dtype), ("y_pred", pred, pred_dtype)):
        if dtype != x.dtype.name and not (x.dtype.kind == "i" and "int" in dtype):  # libraries take every integer dtype
            given[name] += f".astype('{x.dtype.name}')"
    distributions = true.ndim < pred.ndim or not np.isin(true, (0, 1)).all() or (true.sum(-1) == 1).all()
    _warn_of_predictions(pred, rounding if distributions else np.inf, warnings)  # other outcomes need not sum to 1
    weight, given["sample_weight"] = _per_sample(sample_weight, pred, "sample_weight")
    batch = Batch(
        true,
        pred,
        class_weight=_vector(class_weight, pred, "class_weight"),
        sample_weight=weight,
        mask=_mask(mask, pred),
        ignored=ignored,
        half=pred_dtype if pred_dtype.endswith("float16") else "",
        moved=moved,
        given={name: text for name, text in given.items() if text != name},
    )
    if batch.labels and ignored is not None and (true == ignored).all():
        warnings.append(f"every label is {ignored}, which is ignored: a mean over nothing (0 here, NaN in PyTorch)")
    if batch.mask is not None and not batch.mask.any():
        warnings.append("the mask leaves nothing: a mean over nothing (0 here, NaN in PyTorch)")
    return batch, warnings


def _match_axes(true: Array, pred: Array, given: dict[str, str], warnings: list[str]) -> tuple[Array, Array]:
    """Adds the sample axis to a single sample, and drops or adds an axis of size 1 that only one array has."""
    if not pred.ndim or (pred.ndim == 1 and not true.ndim and pred.size > 1):  # one outcome, or one label
        true, pred = np.atleast_1d(true), pred[None]
        given |= {"y_true": "np.atleast_1d(y_true)", "y_pred": "np.asarray(y_pred)[None]"}
    if not pred.size:
        raise ValueError(f"y_pred has shape {pred.shape}, which holds nothing; pass at least one sample")
    one_outcome = f"y_true has shape {true.shape} and y_pred {pred.shape}: read as one outcome per sample"
    if true.ndim == pred.ndim and true.shape[-1] == 1 < pred.shape[-1] and true.shape[:-1] == pred.shape[:-1]:
        warnings.append(f"y_true has shape {true.shape}: read as labels, without its last axis")
        true, given["y_true"] = true[..., 0], given["y_true"] + "[..., 0]"
    elif pred.shape == (*true.shape, 1):
        broadcast = (*true.shape, *true.shape[-1:])
        warnings.append(f"{one_outcome}; some libraries broadcast these two to {broadcast}")
        true, given["y_true"] = true[..., None], given["y_true"] + "[..., None]"
    elif true.shape == (*pred.shape, 1):
        warnings.append(one_outcome)
        true, given["y_true"] = true[..., 0], given["y_true"] + "[..., 0]"
    if true.ndim not in (pred.ndim - 1, pred.ndim):
        raise ValueError(
            f"y_true has shape {true.shape} and y_pred {pred.shape}; give both the same shape, or labels of y_pred's "
            "shape without its last axis"
        )
    return true, pred


def _refuse_other_shapes(true: Array, pred: Array) -> None:
    labels = true.ndim < pred.ndim
    expected = pred.shape[:-1] if labels else pred.shape
    if true.shape != expected:
        what = "labels" if labels else "targets"
        raise ValueError(f"y_true has shape {true.shape}, and {what} for y_pred {pred.shape} have {expected}")


def _has_classes_first(true: Array, pred: Array, rounding: float) -> bool:
    """Whether the classes lie along axis 1, as PyTorch's do: by the labels' shape, or by the axis that sums to 1."""
    if true.ndim == pred.ndim - 1:
        return true.shape != pred.shape[:-1] and true.shape == pred.shape[:1] + pred.shape[2:]
    if pred.ndim < 3 or true.shape != pred.shape:
        return False
    sums = [np.abs(true.astype(np.float64).sum(axis) - 1) <= rounding for axis in (1, -1)]
    return bool(sums[0].all() and not sums[1].all())


def _code(name: str, x: Any) -> str:
    """NumPy code for the argument `name` as an array."""
    return name if hasattr(x, "ndim") else f"np.asarray({name})"


def _integer(ignored: Any) -> int | None:
    if ignored is not None and (isinstance(ignored, bool) or not isinstance(ignored, int | np.integer)):
        raise TypeError(f"ignore_class is {ignored!r}; pass a label, an integer")
    return None if ignored is None else int(ignored)


def _labels(true: Array, classes: int, ignored: int | None, warnings: list[str]) -> tuple[Array, int | None]:
    """The labels as int64, and the label to ignore: the one that is given, or the only one out of range."""
    if true.dtype.kind == "f":
        if not np.isfinite(true).all():
            bad = _first_index(~np.isfinite(true))
            raise ValueError(f"y_true holds {true[bad]} at index {_text(bad)}: labels are integers")
        if not (true == np.round(true)).all():
            raise ValueError("y_true holds fractions, and has no axis of classes: labels are integers")
        if (np.abs(true) > _LARGEST_LABEL).any():
            raise ValueError(f"y_true holds {true.flat[np.abs(true).argmax()]:g}, which is no label; pass integers")
        warnings.append(f"labels are {true.dtype.name}; libraries want integers")
    true = true.astype(np.int64)
    outside = true[(true < 0) | (true >= classes)]
    others = outside[outside != ignored] if ignored is not None else outside
    inside = true[(true != ignored)] if ignored is not None else true
    from_one = inside.size > 1 and inside.min() == 1 and inside.max() == classes
    if ignored is None and outside.size and (outside == outside.flat[0]).all() and not from_one:
        ignored = int(outside.flat[0])
        warnings.append(
            f"{outside.size} labels are {ignored}, which is none of the classes 0 to {classes - 1}: taken as labels to "
            "ignore"
        )
    elif others.size:
        index = int(np.flatnonzero(((true < 0) | (true >= classes)) & (true != ignored))[0])
        warnings.append(
            f"label {true.flat[index]} at position {index} is beyond the {classes} classes, 0 to {classes - 1}: "
            "PyTorch and TensorFlow refuse it, Keras on JAX counts 0, optax wraps round"
        )
    if from_one:
        warnings.append(f"labels run from 1 to {classes}: do they start at 1? here classes are 0 to {classes - 1}")
    return true, ignored


def _warn_of_targets(true: Array, rounding: float, warnings: list[str]) -> None:
    matrix = true.ndim > 1 and true.shape[-1] > 1
    hard = bool(np.isin(true, (0, 1)).all())
    if np.isnan(true).any():
        warnings.append(f"y_true holds NaN, first at index {_text(_first_index(np.isnan(true)))}")
    elif not matrix and not hard and len(np.unique(true)) == 2:
        low, high = np.unique(true)
        warnings.append(f"y_true holds {low:g} and {high:g}: outcomes are 0 and 1")
    elif true.dtype.kind in "iub" and matrix and hard and (true.sum(-1) == 1).all():
        warnings.append("y_true is one-hot and of integers: a function of labels would read its 0 and 1 as classes")
    elif true.dtype.kind in "iub" and not hard:
        warnings.append("y_true holds integers other than 0 and 1 in y_pred's shape: labels of another axis?")
    elif ((true < 0) | (true > 1)).any():
        warnings.append("y_true holds values outside [0, 1]: logits or log-probabilities?")
    elif matrix and hard and not (true.sum(-1) == 1).all():
        warnings.append(
            "rows of y_true do not hold a single 1: one outcome per class, not a distribution over the classes"
        )
    elif matrix and not hard:
        _warn_of_sums(true, "y_true", rounding, warnings)


def _warn_of_predictions(pred: Array, rounding: float, warnings: list[str]) -> None:
    bad = ~np.isfinite(pred)
    if bad.any():
        index = _first_index(bad)
        cost = "off the target it costs nothing" if pred[index] == -np.inf else "no loss is finite there"
        warnings.append(f"y_pred holds {pred[index]} at index {_text(index)}: {cost}, unless it is masked")
    if (pred > 1).any() or (pred < 0).any():
        finite = pred[np.isfinite(pred)]
        kind = "log-probabilities, or logits" if (pred <= 0).all() else "logits?"
        span = f", from {finite.min():.4g} to {finite.max():.4g}" if finite.size else ""
        warnings.append(f"{OUTSIDE}{span}: {kind}")
        if pred.dtype == np.float16 and finite.size and np.abs(finite).max() > 11:
            warnings.append("exp of more than 11.09 overflows in float16")
        return
    if pred.ndim > 1 and pred.shape[-1] > 1:
        _warn_of_sums(pred, "y_pred", rounding, warnings)
    count = int((pred == 0).sum())
    if count:
        warnings.append(
            f"{count} of y_pred are exactly 0, first at index {_text(_first_index(pred == 0))}: −log 0 is infinite "
            "where nothing is clipped, and 0·log 0 is NaN in IEEE arithmetic"
        )
    if pred.dtype == np.float16 and ((pred == 0) | (pred == 1)).any():
        warnings.append("y_pred is float16 and holds 0 or 1: 1 − 1e-7 rounds to 1 there, so that clipping does nothing")


def _warn_of_sums(x: Array, name: str, rounding: float, warnings: list[str]) -> None:
    sums = x.astype(np.float64).sum(-1)
    off = ~(np.abs(sums - 1) <= rounding)
    if off.any() and np.isfinite(sums).all():
        index = _first_index(off)
        what = f"{int(off.sum())} of {off.size} rows" if off.size > 1 else "the row"
        warnings.append(
            f"{what} of {name} do not sum to 1 along the last axis (row {_text(index)} to {sums[index]:.6g}): "
            "outcomes, another axis, or not normalised"
        )


def _first_index(where: Array) -> tuple[int, ...]:
    return tuple(int(i) for i in np.argwhere(where)[0])


def _text(index: tuple[int, ...]) -> str:
    return str(index[0]) if len(index) == 1 else str(index)


def _vector(x: Any, pred: Array, name: str) -> Array | None:
    if x is None:
        return None
    values = array(x, name).astype(np.float64)
    classes = pred.shape[-1] if pred.ndim > 1 else 1
    if values.shape != (classes,) and not (classes == 1 and values.shape == (2,)):
        both = ", or (2,) for the outcomes 0 and 1" if classes == 1 else ""
        raise ValueError(f"{name} has shape {values.shape}; give one number a class, ({classes},){both}")
    return _checked_weights(values, name)


def _per_sample(x: Any, pred: Array, name: str) -> tuple[Array | None, str]:
    """The weight, and the NumPy code that makes it from the argument."""
    if x is None:
        return None, name
    values, text = array(x, name).astype(np.float64), _code(name, x)
    samples = pred.shape[:-1] if pred.ndim > 1 else pred.shape
    while values.ndim > 1 and values.shape[-1] == 1 and values.shape != samples[: values.ndim]:
        values, text = values[..., 0], f"{text}[..., 0]"
    if values.shape != samples[: values.ndim]:
        raise ValueError(f"{name} has shape {values.shape}, and samples have {samples}; give it that shape")
    return _checked_weights(values, name), text


def _checked_weights(values: Array, name: str) -> Array:
    bad = ~(np.isfinite(values) & (values >= 0))
    if bad.any():
        index = _first_index(bad)
        raise ValueError(f"{name} holds {values[index]:g} at index {_text(index)}; weights are finite and at least 0")
    return values


def _mask(x: Any, pred: Array) -> Array | None:
    values, _ = _per_sample(x, pred, "mask")
    if values is not None and not np.isin(values, (0, 1)).all():
        raise ValueError("mask holds numbers other than 0 and 1; pass true where a sample counts")
    return values


def saturated(batch: Batch) -> bool:
    """Whether a probability is exactly 0 or 1 against its hard target, so that its loss is what clipping makes it."""
    rows = batch.rows(-1)
    hard = np.isin(rows.target, (0, 1))
    return bool((((rows.pred == 0) & (rows.target == 1)) | ((rows.pred == 1) & (rows.target == 0)))[hard].any())


def quantities(observed: Any, batch: Batch, declared: str | None) -> tuple[Any, list[Quantity]]:
    """The observed number or array, and the quantities that it may be. `declared`: "gradient", "value", or None."""
    if isinstance(observed, bool) or observed is None:
        raise TypeError(f"observed is {observed}; pass the number to explain, or an array of them")
    pred = batch.y_pred.shape
    samples = pred[:-1] if len(pred) > 1 else pred
    found: list[Quantity] = []
    if isinstance(observed, str | int | float) and not isinstance(observed, np.generic):
        try:
            if isinstance(observed, str) and not is_number(observed):
                raise ValueError
            number = float(observed)
        except (ValueError, OverflowError):
            raise ValueError(
                f"observed is {str(observed)[:40]!r}, which is no number; pass one, as 1.1769392"
            ) from None
        values: Any = observed if isinstance(observed, str) else number
        shape: tuple[int, ...] = ()
    else:
        values = array(observed, "observed")
        if batch.moved and values.shape == batch.as_given()[1].shape:
            values = np.moveaxis(values, 1, -1)
        shape = values.shape
    if shape in (samples, (*samples, 1)):
        found.append("samples")
        values = values.reshape(samples) if shape != pred else values
    if shape == pred:
        found += ["gradient"] if found else ["gradient", "elements"]
    if declared is not None:
        found = [q for q in found if (q == "gradient") == (declared == "gradient")]
    elif not found and math.prod(shape) == 1:
        found, values = ["scalar"], values.reshape(()) if shape else values
    if not found:
        what = "observed" if declared is None else f"observed as a {declared}"
        raise ValueError(
            f"{what} has shape {shape}; pass a scalar, per-sample values {samples}, or an array of y_pred's "
            f"shape {pred}"
        )
    return values, found
