"""The user's arrays as a batch, and what looks wrong with them. Refuses what cannot be read."""

from __future__ import annotations

from typing import Any

import numpy as np

from lossbridge.backend import backend_of
from lossbridge.diagnosis.evaluate import Array, Batch, Quantity
from lossbridge.validation import adopt


def array(x: Any, name: str) -> Array:
    """An array of any library, or a list, as NumPy's; bfloat16 as float32."""
    b = backend_of(x, name)
    values = np.asarray(b.to_numpy(adopt(b, name, x)))
    return values.astype(np.float32) if values.dtype.name == "bfloat16" else values


def batch_of(
    y_true: Any,
    y_pred: Any,
    *,
    class_weight: Any = None,
    sample_weight: Any = None,
    mask: Any = None,
    ignore_class: int | None = None,
) -> tuple[Batch, list[str]]:
    """The batch, and warnings."""
    true, pred = array(y_true, "y_true"), array(y_pred, "y_pred")
    said: list[str] = []
    if not pred.ndim:
        true, pred = np.atleast_1d(true), pred[None]
    if not pred.size:
        raise ValueError(f"y_pred has shape {pred.shape}, which holds nothing; pass at least one sample")
    if true.ndim == pred.ndim and true.shape[-1] == 1 < pred.shape[-1] and true.shape[:-1] == pred.shape[:-1]:
        said.append(f"y_true has shape {true.shape}: read as labels, without its last axis")
        true = true[..., 0]
    if pred.ndim == true.ndim + 1 and pred.shape[-1] == 1 and pred.shape[:-1] == true.shape:
        said.append(
            f"y_true has shape {true.shape} and y_pred {pred.shape}: read as one outcome a sample; some libraries "
            f"broadcast these two to {(*true.shape, *true.shape[-1:])}"
        )
        true = true[..., None]
    if true.ndim == pred.ndim + 1 and true.shape[-1] == 1 and true.shape[:-1] == pred.shape:
        true = true[..., 0]
    labels = true.ndim == pred.ndim - 1
    if not labels and true.ndim != pred.ndim:
        raise ValueError(
            f"y_true has shape {true.shape} and y_pred {pred.shape}; give both the same shape, or labels of y_pred's "
            "shape without its last axis"
        )
    if labels and true.shape != pred.shape[:-1] and true.shape == pred.shape[:1] + pred.shape[2:]:
        said.append(f"y_pred has shape {pred.shape}: classes read along axis 1, and moved to the end")
        pred = np.moveaxis(pred, 1, -1)
    if true.shape != (pred.shape[:-1] if labels else pred.shape):
        what = "labels" if labels else "targets"
        expected = pred.shape[:-1] if labels else pred.shape
        raise ValueError(f"y_true has shape {true.shape}, and {what} for y_pred {pred.shape} have {expected}")
    if labels:
        true, ignore_class = _labels(true, pred.shape[-1], ignore_class, said)
    else:
        _look_at_targets(true, pred, said)
        true = true.astype(pred.dtype if pred.dtype.kind == "f" else np.float64)  # as libraries do
    _look_at_predictions(pred, said)
    batch = Batch(
        true,
        pred if pred.dtype.kind == "f" else pred.astype(np.float64),
        class_weight=_vector(class_weight, pred, "class_weight"),
        sample_weight=_per_sample(sample_weight, pred, "sample_weight"),
        mask=_per_sample(mask, pred, "mask"),
        ignored=ignore_class,
    )
    if labels and ignore_class is not None and (true == ignore_class).all():
        said.append(f"every label is {ignore_class}, which is ignored: a mean over nothing (0 here, NaN in PyTorch)")
    if batch.mask is not None and not batch.mask.any():
        said.append("the mask leaves nothing: a mean over nothing (0 here, NaN in PyTorch)")
    return batch, said


def _labels(true: Array, classes: int, ignored: int | None, said: list[str]) -> tuple[Array, int | None]:
    if true.dtype.kind == "f":
        if not (true == np.round(true)).all():
            raise ValueError("y_true holds fractions, and has no axis of classes: labels are integers")
        said.append(f"labels are {true.dtype.name}; libraries want integers")
    true = true.astype(np.int64)
    outside = true[(true < 0) | (true >= classes)]
    others = outside[outside != ignored] if ignored is not None else outside
    if ignored is None and outside.size and (outside == outside.flat[0]).all() and outside.flat[0] < 0:
        ignored = int(outside.flat[0])
        said.append(f"{outside.size} labels are {ignored}: taken as labels to ignore")
    elif others.size:
        index = int(np.flatnonzero(((true < 0) | (true >= classes)) & (true != ignored))[0])
        said.append(
            f"label {true.flat[index]} at position {index} is beyond the {classes} classes, 0 to {classes - 1}: "
            "PyTorch and TensorFlow refuse it, Keras on JAX counts 0, optax wraps round"
        )
    inside = true[(true != ignored)] if ignored is not None else true
    if inside.size > 1 and inside.min() == 1 and inside.max() == classes:
        said.append(f"labels run from 1 to {classes}: do they start at 1? here classes are 0 to {classes - 1}")
    return true, ignored


def _look_at_targets(true: Array, pred: Array, said: list[str]) -> None:
    if true.dtype.kind in "iub" and pred.ndim > 1 and pred.shape[-1] > 1:
        if np.isin(true, (0, 1)).all() and (true.sum(-1) == 1).all():
            said.append("y_true is one-hot and of integers: a function of labels would read its 0 and 1 as classes")
        elif not np.isin(true, (0, 1)).all():
            said.append("y_true holds integers other than 0 and 1 in y_pred's shape: labels of another axis?")
    if ((true < 0) | (true > 1)).any():
        said.append("y_true holds values outside [0, 1]: logits or log-probabilities?")
    elif true.ndim > 1 and true.shape[-1] > 1 and true.dtype.kind == "f":
        _look_at_sums(true, "y_true", said)
    if np.isnan(true).any():
        said.append(f"y_true holds NaN, first at index {_first(np.isnan(true))}")


def _look_at_predictions(pred: Array, said: list[str]) -> None:
    bad = ~np.isfinite(pred)
    if bad.any():
        index = _first(bad)
        said.append(f"y_pred holds {pred[index]} at index {_text(index)}: no loss is finite there, unless it is masked")
    if (pred > 1).any() or (pred < 0).any():
        kind = "log-probabilities, or logits" if (pred <= 0).all() else "logits?"
        said.append(f"y_pred holds values outside [0, 1], from {np.nanmin(pred):.4g} to {np.nanmax(pred):.4g}: {kind}")
        if pred.dtype == np.float16 and np.nanmax(np.abs(pred)) > 11:
            said.append("exp of more than 11.09 overflows in float16")
        return
    if pred.ndim > 1 and pred.shape[-1] > 1:
        _look_at_sums(pred, "y_pred", said)
    count = int((pred == 0).sum())
    if count:
        said.append(
            f"{count} of y_pred are exactly 0, first at index {_text(_first(pred == 0))}: −log 0 is infinite where "
            "nothing is clipped, and 0·log 0 is NaN in plain arithmetic"
        )
    if pred.dtype == np.float16 and ((pred == 0) | (pred == 1)).any():
        said.append("y_pred is float16 and holds 0 or 1: 1 − 1e-7 rounds to 1 there, so that clipping does nothing")


def _look_at_sums(x: Array, name: str, said: list[str]) -> None:
    sums = x.astype(np.float64).sum(-1)
    off = ~(np.abs(sums - 1) <= (3e-2 if x.dtype == np.float16 else 1e-4))
    if off.any() and np.isfinite(sums).all():
        index = _first(off)
        what = f"{int(off.sum())} of {off.size} rows" if off.size > 1 else "the row"
        said.append(
            f"{what} of {name} do not sum to 1 along the last axis (row {_text(index)} to {sums[index]:.6g}): "
            "outcomes, another axis, or not normalised"
        )


def _first(where: Array) -> tuple[int, ...]:
    return tuple(int(i) for i in np.argwhere(where)[0])


def _text(index: tuple[int, ...]) -> str:
    return str(index[0]) if len(index) == 1 else str(index)


def _vector(x: Any, pred: Array, name: str) -> Array | None:
    if x is None:
        return None
    values = array(x, name).astype(np.float64)
    classes = pred.shape[-1] if pred.ndim > 1 else 1
    if values.shape != (classes,):
        raise ValueError(f"{name} has shape {values.shape}; give one number a class, ({classes},)")
    return values


def _per_sample(x: Any, pred: Array, name: str) -> Array | None:
    if x is None:
        return None
    values = array(x, name).astype(np.float64)
    samples = pred.shape[:-1] if pred.ndim > 1 else pred.shape
    while values.ndim > 1 and values.shape[-1] == 1 and values.shape != samples[: values.ndim]:
        values = values[..., 0]
    if values.shape != samples[: values.ndim]:
        raise ValueError(f"{name} has shape {values.shape}, and samples have {samples}; give it that shape")
    return values


def quantities(observed: Any, batch: Batch, said: str | None) -> tuple[Any, list[Quantity]]:
    """The observed number or array, and what it may be."""
    if isinstance(observed, str):
        try:
            float(observed)
        except ValueError:
            raise ValueError(f"observed is {observed!r}, which is no number; pass one, as 1.1769392") from None
        return observed, ["scalar"]
    if isinstance(observed, bool) or observed is None:
        raise TypeError(f"observed is {observed}; pass the number to explain, or an array of them")
    if isinstance(observed, int | float):
        return float(observed), ["scalar"]
    values = array(observed, "observed")
    if not values.ndim:
        return values, ["scalar"]
    pred = batch.y_pred.shape
    samples = pred[:-1] if len(pred) > 1 else pred
    known: list[Quantity] = []
    if values.shape == samples or values.shape == (*samples, 1):
        known.append("samples")
        values = values.reshape(samples) if values.shape != pred else values
    if values.shape == pred:
        known.append("gradient")
        if "samples" not in known:
            known.append("elements")
    if said is not None:
        known = [q for q in known if (q == "gradient") == (said == "gradient")]
    if not known:
        what = "a gradient" if said == "gradient" else "observed"
        raise ValueError(
            f"{what} has shape {values.shape}; pass a scalar, per-sample values {samples}, or an array of y_pred's "
            f"shape {pred}"
        )
    return values, known
