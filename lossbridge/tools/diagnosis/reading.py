"""The user's arrays as a batch, and what looks wrong with them. Refuses what cannot be read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lossbridge.backend import backend_of
from lossbridge.tools.diagnosis.evaluate import Array, Batch, Quantity
from lossbridge.validation import adopt

_LARGEST_LABEL = 2**53  # beyond, a float64 skips integers
_BROADCAST = 1000  # samples: their square is still a small batch


def array(x: Any, name: str) -> Array:
    """An array of any library, or a list, as NumPy's; bfloat16 as float32."""
    return _array(x, name)[0]


def _array(x: Any, name: str) -> tuple[Array, str]:
    """And its dtype."""
    b = backend_of(x, name)
    x = adopt(b, name, x)
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
    """The batch, and warnings. `moved`: the classes lie along axis 1, also where they could along the last."""
    true, true_dtype = _array(y_true, "y_true")
    pred, pred_dtype = _array(y_pred, "y_pred")
    rounding = 3e-2 if pred_dtype.endswith("float16") else 1e-4  # of sums over the classes
    given = {"y_true": _named("y_true", y_true), "y_pred": _named("y_pred", y_pred)}
    said: list[str] = []
    if not pred.ndim or (pred.ndim == 1 and not true.ndim and pred.size > 1):  # one outcome; one label
        true, pred = np.atleast_1d(true), pred[None]
        given = {"y_true": "np.atleast_1d(y_true)", "y_pred": "np.asarray(y_pred)[None]"}
    if not pred.size:
        raise ValueError(f"y_pred has shape {pred.shape}, which holds nothing; pass at least one sample")
    if true.ndim == pred.ndim and true.shape[-1] == 1 < pred.shape[-1] and true.shape[:-1] == pred.shape[:-1]:
        said.append(f"y_true has shape {true.shape}: read as labels, without its last axis")
        true, given["y_true"] = true[..., 0], given["y_true"] + "[..., 0]"
    if pred.ndim == true.ndim + 1 and pred.shape[-1] == 1 and pred.shape[:-1] == true.shape:
        said.append(
            f"y_true has shape {true.shape} and y_pred {pred.shape}: read as one outcome a sample; some libraries "
            f"broadcast these two to {(*true.shape, *true.shape[-1:])}"
        )
        true, given["y_true"] = true[..., None], given["y_true"] + "[..., None]"
    if true.ndim == pred.ndim + 1 and true.shape[-1] == 1 and true.shape[:-1] == pred.shape:
        said.append(f"y_true has shape {true.shape} and y_pred {pred.shape}: read as one outcome a sample")
        true, given["y_true"] = true[..., 0], given["y_true"] + "[..., 0]"
    labels = true.ndim == pred.ndim - 1
    if not labels and true.ndim != pred.ndim:
        raise ValueError(
            f"y_true has shape {true.shape} and y_pred {pred.shape}; give both the same shape, or labels of y_pred's "
            "shape without its last axis"
        )
    if moved or _has_classes_first(true, pred, rounding):
        said.append(f"y_pred has shape {pred.shape}: classes read along axis 1, and moved to the end")
        pred, given["y_pred"], moved = np.moveaxis(pred, 1, -1), "np.moveaxis(y_pred, 1, -1)", True
        if not labels:
            true, given["y_true"] = np.moveaxis(true, 1, -1), "np.moveaxis(y_true, 1, -1)"
    if true.shape != (pred.shape[:-1] if labels else pred.shape):
        what = "labels" if labels else "targets"
        expected = pred.shape[:-1] if labels else pred.shape
        raise ValueError(f"y_true has shape {true.shape}, and {what} for y_pred {pred.shape} have {expected}")
    ignored = _integer(ignore_class)
    dtype = pred.dtype if pred.dtype.kind == "f" else np.dtype(np.float64)
    if labels:
        true, ignored = _labels(true, pred.shape[-1], ignored, said)
        if "int" not in true_dtype:
            given["y_true"] += ".astype('int64')"
    else:
        if ignored is not None:
            raise ValueError(f"ignore_class is {ignored}, and y_true holds no labels; leave samples out with mask")
        _look_at_targets(true, pred, rounding, said)
        if true_dtype != dtype.name:
            given["y_true"] += f".astype('{dtype.name}')"
        true = true.astype(dtype)  # as libraries do
    if pred_dtype != dtype.name:
        given["y_pred"] += f".astype('{dtype.name}')"
    pred = pred.astype(dtype)
    distributions = labels or not np.isin(true, (0, 1)).all() or bool((true.sum(-1) == 1).all())
    _look_at_predictions(pred, said, rounding if distributions else np.inf)  # outcomes may have any sum
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
    if labels and ignored is not None and (true == ignored).all():
        said.append(f"every label is {ignored}, which is ignored: a mean over nothing (0 here, NaN in PyTorch)")
    if batch.mask is not None and not batch.mask.any():
        said.append("the mask leaves nothing: a mean over nothing (0 here, NaN in PyTorch)")
    return batch, said


def _has_classes_first(true: Array, pred: Array, rounding: float) -> bool:
    """As PyTorch has those of images: labels say so by their shape, distributions by what sums to 1."""
    if true.ndim == pred.ndim - 1:
        return true.shape != pred.shape[:-1] and true.shape == pred.shape[:1] + pred.shape[2:]
    if pred.ndim < 3 or true.shape != pred.shape:
        return False
    sums = [np.abs(true.astype(np.float64).sum(axis) - 1) <= rounding for axis in (1, -1)]
    return bool(sums[0].all() and not sums[1].all())


def _named(name: str, x: Any) -> str:
    """As NumPy's array."""
    return name if hasattr(x, "ndim") else f"np.asarray({name})"


def _integer(ignored: Any) -> int | None:
    if ignored is not None and (isinstance(ignored, bool) or not isinstance(ignored, int | np.integer)):
        raise TypeError(f"ignore_class is {ignored!r}; pass a label, an integer")
    return None if ignored is None else int(ignored)


def _labels(true: Array, classes: int, ignored: int | None, said: list[str]) -> tuple[Array, int | None]:
    if true.dtype.kind == "f":
        if not np.isfinite(true).all():
            bad = _first(~np.isfinite(true))
            raise ValueError(f"y_true holds {true[bad]} at index {_text(bad)}: labels are integers")
        if not (true == np.round(true)).all():
            raise ValueError("y_true holds fractions, and has no axis of classes: labels are integers")
        if (np.abs(true) > _LARGEST_LABEL).any():
            raise ValueError(f"y_true holds {true.flat[np.abs(true).argmax()]:g}, which is no label; pass integers")
        said.append(f"labels are {true.dtype.name}; libraries want integers")
    true = true.astype(np.int64)
    outside = true[(true < 0) | (true >= classes)]
    others = outside[outside != ignored] if ignored is not None else outside
    inside = true[(true != ignored)] if ignored is not None else true
    from_one = inside.size > 1 and inside.min() == 1 and inside.max() == classes
    if ignored is None and outside.size and (outside == outside.flat[0]).all() and not from_one:
        ignored = int(outside.flat[0])
        said.append(
            f"{outside.size} labels are {ignored}, which is none of the classes 0 to {classes - 1}: taken as labels to "
            "ignore"
        )
    elif others.size:
        index = int(np.flatnonzero(((true < 0) | (true >= classes)) & (true != ignored))[0])
        said.append(
            f"label {true.flat[index]} at position {index} is beyond the {classes} classes, 0 to {classes - 1}: "
            "PyTorch and TensorFlow refuse it, Keras on JAX counts 0, optax wraps round"
        )
    if from_one:
        said.append(f"labels run from 1 to {classes}: do they start at 1? here classes are 0 to {classes - 1}")
    return true, ignored


def _look_at_targets(true: Array, pred: Array, rounding: float, said: list[str]) -> None:
    matrix = true.ndim > 1 and true.shape[-1] > 1
    hard = bool(np.isin(true, (0, 1)).all())
    if np.isnan(true).any():
        said.append(f"y_true holds NaN, first at index {_text(_first(np.isnan(true)))}")
    elif not matrix and not hard and len(np.unique(true)) == 2:
        low, high = np.unique(true)
        said.append(f"y_true holds {low:g} and {high:g}: outcomes are 0 and 1")
    elif true.dtype.kind in "iub" and matrix and hard and (true.sum(-1) == 1).all():
        said.append("y_true is one-hot and of integers: a function of labels would read its 0 and 1 as classes")
    elif true.dtype.kind in "iub" and not hard:
        said.append("y_true holds integers other than 0 and 1 in y_pred's shape: labels of another axis?")
    elif ((true < 0) | (true > 1)).any():
        said.append("y_true holds values outside [0, 1]: logits or log-probabilities?")
    elif matrix and hard and not (true.sum(-1) == 1).all():
        said.append("rows of y_true do not hold a single 1: an outcome a class, not a distribution over them")
    elif matrix and not hard:
        _look_at_sums(true, "y_true", rounding, said)


def _look_at_predictions(pred: Array, said: list[str], rounding: float) -> None:
    bad = ~np.isfinite(pred)
    if bad.any():
        index = _first(bad)
        cost = "off the target it costs nothing" if pred[index] == -np.inf else "no loss is finite there"
        said.append(f"y_pred holds {pred[index]} at index {_text(index)}: {cost}, unless it is masked")
    if (pred > 1).any() or (pred < 0).any():
        known = pred[np.isfinite(pred)]
        kind = "log-probabilities, or logits" if (pred <= 0).all() else "logits?"
        span = f", from {known.min():.4g} to {known.max():.4g}" if known.size else ""
        said.append(f"y_pred holds values outside [0, 1]{span}: {kind}")
        if pred.dtype == np.float16 and known.size and np.abs(known).max() > 11:
            said.append("exp of more than 11.09 overflows in float16")
        return
    if pred.ndim > 1 and pred.shape[-1] > 1:
        _look_at_sums(pred, "y_pred", rounding, said)
    count = int((pred == 0).sum())
    if count:
        said.append(
            f"{count} of y_pred are exactly 0, first at index {_text(_first(pred == 0))}: −log 0 is infinite where "
            "nothing is clipped, and 0·log 0 is NaN in plain arithmetic"
        )
    if pred.dtype == np.float16 and ((pred == 0) | (pred == 1)).any():
        said.append("y_pred is float16 and holds 0 or 1: 1 − 1e-7 rounds to 1 there, so that clipping does nothing")


def _look_at_sums(x: Array, name: str, rounding: float, said: list[str]) -> None:
    sums = x.astype(np.float64).sum(-1)
    off = ~(np.abs(sums - 1) <= rounding)
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
    return _weighing(values, name)


def _per_sample(x: Any, pred: Array, name: str) -> tuple[Array | None, str]:
    """And how NumPy makes it of what was given."""
    if x is None:
        return None, name
    values, text = array(x, name).astype(np.float64), _named(name, x)
    samples = pred.shape[:-1] if pred.ndim > 1 else pred.shape
    while values.ndim > 1 and values.shape[-1] == 1 and values.shape != samples[: values.ndim]:
        values, text = values[..., 0], f"{text}[..., 0]"
    if values.shape != samples[: values.ndim]:
        raise ValueError(f"{name} has shape {values.shape}, and samples have {samples}; give it that shape")
    return _weighing(values, name), text


def _weighing(values: Array, name: str) -> Array:
    bad = ~(np.isfinite(values) & (values >= 0))
    if bad.any():
        index = _first(bad)
        raise ValueError(f"{name} holds {values[index]:g} at index {_text(index)}; weights are finite and at least 0")
    return values


def _mask(x: Any, pred: Array) -> Array | None:
    values, _ = _per_sample(x, pred, "mask")
    if values is not None and not np.isin(values, (0, 1)).all():
        raise ValueError("mask holds numbers other than 0 and 1; pass true where a sample counts")
    return values


@dataclass(frozen=True)
class Reading:
    """Another thing that arrays may have been taken for: in words, and how NumPy makes it of them."""

    words: str
    y_true: Any
    y_pred: Any
    given: Mapping[str, str]
    moved: bool = False  # for `batch_of`
    shift: int = 0
    for_another_axis: bool = False  # with the classes where they were, it would tell nothing new

    def of(self, batch: Batch) -> Batch:
        """The batch that was read of it, made of the caller's arrays."""
        names = {*self.given, *batch.given}
        made = {n: batch.given.get(n, n).replace(n, self.given.get(n, n), 1) for n in names}
        return replace(batch, given=made, shift=self.shift)


def others(batch: Batch, y_true: Any, y_pred: Any) -> Iterator[Reading]:
    """What else the arrays may be, where nothing explains the number."""
    true, pred = array(y_true, "y_true"), array(y_pred, "y_pred")
    if true.ndim == pred.ndim == 1 and pred.size > 1:
        both = {name: f"np.asarray({name})[None]" for name in ("y_true", "y_pred")}
        yield Reading("y_true and y_pred read as one distribution", true[None], pred[None], both)
    count = pred.shape[0] if pred.ndim else 0
    if {true.shape, pred.shape} == {(count,), (count, 1)} and 1 < count <= _BROADCAST:
        shape = (count, count)
        yield Reading(
            f"y_true of shape {true.shape} and y_pred of shape {pred.shape} were broadcast to {shape}: a loss of every "
            "pair of samples",
            np.broadcast_to(true, shape),
            np.broadcast_to(pred, shape),
            {name: f"np.broadcast_to({name}, {shape})" for name in ("y_true", "y_pred")},
        )
    if not batch.labels:
        return
    labels, classes = batch.y_true, batch.classes
    as_read = batch.given.get("y_true", "y_true")
    if labels.min() == 1 and labels.max() <= classes:
        given = {**batch.given, "y_true": f"np.subtract({as_read}, 1)"}
        yield Reading("the labels start at 1", labels - 1, batch.y_pred, given, shift=1)
    if pred.ndim > 2 and pred.shape[1] == pred.shape[-1] and not batch.moved:
        yield Reading("the classes lie along axis 1", y_true, y_pred, {}, moved=True)
    if labels.ndim == 1 and ((labels >= 0) & (labels < classes)).all():
        dtype = batch.y_pred.dtype
        given = {**batch.given, "y_true": f"np.eye({classes}, dtype='{dtype.name}')[{as_read}]"}
        one_hot = np.eye(classes, dtype=dtype)[labels]
        yield Reading("labels read as one-hot rows", one_hot, batch.y_pred, given, for_another_axis=True)


def quantities(observed: Any, batch: Batch, said: str | None) -> tuple[Any, list[Quantity]]:
    """The observed number or array, and what it may be."""
    if isinstance(observed, bool) or observed is None:
        raise TypeError(f"observed is {observed}; pass the number to explain, or an array of them")
    pred = batch.y_pred.shape
    samples = pred[:-1] if len(pred) > 1 else pred
    known: list[Quantity] = []
    if isinstance(observed, str | int | float) and not isinstance(observed, np.generic):
        try:
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
        known.append("samples")
        values = values.reshape(samples) if shape != pred else values
    if shape == pred:
        known += ["gradient"] if known else ["gradient", "elements"]
    if said is not None:
        known = [q for q in known if (q == "gradient") == (said == "gradient")]
    elif not known and math.prod(shape) == 1:
        known, values = ["scalar"], values.reshape(()) if shape else values
    if not known:
        what = "observed" if said is None else f"observed as a {said}"
        raise ValueError(
            f"{what} has shape {shape}; pass a scalar, per-sample values {samples}, or an array of y_pred's "
            f"shape {pred}"
        )
    return values, known
