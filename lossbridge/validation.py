"""What is refused, and the words of every error. Reads shapes, dtypes and options; reads labels only on the host.

Each message is one line: what is wrong, what was found, what to do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lossbridge.backend import Array, Backend, Shape, backend_of
from lossbridge.reduction import MEANS, REDUCTIONS

_FLOATS = ("float16", "bfloat16", "float32", "float64")

# Other libraries' names of a reduction: whose, and ours.
_REDUCTIONS_ELSEWHERE = {
    "batchmean": ("PyTorch's", "sum_over_batch_size"),
    "elementwise_mean": ("PyTorch's", "mean"),
    "auto": ("Keras 2's", "sum_over_batch_size"),
}


class Names(NamedTuple):
    """What a function calls its arguments, for the words of the errors."""

    target: str = "y_true"
    pred: str = "y_pred"
    leave_out: str = "ignore_class= or mask="
    soft: str = "categorical_crossentropy"  # the function of one-hot and soft targets
    sparse: str = "sparse_categorical_crossentropy"
    classes_last: str = "axis=-1"  # what to pass where the classes lie along the last axis
    class_weight: str = "class_weight"


KERAS = Names()


def options(
    *,
    reduction: object,
    normalizer: object = None,
    epsilon: object = 0.0,
    label_smoothing: object = 0.0,
    temperature: object = 1.0,
    gamma: object = 0.0,
) -> None:
    reduction_name(reduction, REDUCTIONS, _REDUCTIONS_ELSEWHERE)
    if normalizer is not None and reduction not in MEANS:
        raise ValueError(
            f'normalizer is the denominator of a mean, and reduction={reduction!r} divides by nothing; use "mean", or '
            "leave out normalizer"
        )
    _number("epsilon", epsilon, lambda x: 0 <= x < 0.5, "in [0, 0.5); 0 means exact, without clipping")
    fraction("label_smoothing", label_smoothing)
    _number("temperature", temperature, lambda x: 0 < x < float("inf"), "above 0 and finite")
    _number("gamma", gamma, lambda x: 0 <= x < float("inf"), "at least 0 and finite")


def constructor_options(values: Mapping[str, Any]) -> None:
    """Those of a loss object's options that can be judged before the arrays are there."""
    numbers = ("reduction", "normalizer", "epsilon", "label_smoothing", "temperature", "gamma")
    options(**{name: values[name] for name in numbers if name in values})
    switches(**{name: values[name] for name in ("from_logits", "apply_class_balancing") if name in values})
    ignored_class(values.get("ignore_class"))
    if "axis" in values:
        integer_axis(values["axis"])
    if "alpha" in values and values["alpha"] is None:
        raise TypeError("alpha is None; pass one number, or one a class")


def reduction_name(name: object, names: Sequence[str | None], elsewhere: Mapping[Any, tuple[str, str]]) -> None:
    """`elsewhere`: what other libraries call it, whose name that is, and which of `names` is meant."""
    known = name is None or isinstance(name, str)
    if known and name in names:
        return
    if known and name in elsewhere:
        owner, meant = elsewhere[name]
        raise ValueError(f"reduction {name!r} is {owner} name; here it is {meant!r}")
    raise ValueError(f"unknown reduction {name!r}; use one of {', '.join(repr(name) for name in names)}")


def switches(**values: object) -> None:
    for name, value in values.items():
        if not isinstance(value, bool | np.bool_):
            raise TypeError(f"{name} is {value!r}; pass True or False")


def fraction(name: str, value: object) -> None:
    _number(name, value, lambda x: 0 <= x <= 1, "in [0, 1]")


def _number(name: str, value: Any, allowed: Any, words: str) -> None:
    if type(value) is float and allowed(value):
        return
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{name} is {type(value).__name__}; pass a Python number {words}")
    if not allowed(value):
        raise ValueError(f"{name} is {value}; pass a number {words}")


def common_backend(pred: Any, pred_name: str, others: dict[str, Any]) -> Backend:
    """The backend of the predictions. Other arrays must be its own, or of NumPy, lists, numbers, which it adopts."""
    backend = backend_of(pred, pred_name)
    for name, x in others.items():
        if x is not None:
            other = backend_of(x, name)
            if other.name not in (backend.name, "numpy"):
                raise TypeError(
                    f"{name} is of {other.name} and {pred_name} of {backend.name}: arrays of two libraries; "
                    "convert one (NumPy arrays and lists are converted for you)"
                )
    return backend


def adopt(b: Backend, name: str, x: Any, like: Array | None = None) -> Array:
    """`x` as an array of real numbers of this backend."""
    if x is None:
        raise TypeError(f"{name} is None; pass an array")
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"{name} is a NumPy masked array; pass its .data, and its mask inverted as mask=")
    try:
        array = b.asarray(x, like)
    except TypeError:
        raise TypeError(f"{name} is {type(x).__name__} of no real numbers; convert it to numbers") from None
    except ValueError:
        raise ValueError(f"{name} cannot be made an array of numbers; pass rows of equal length") from None
    _refuse_unreal(name, b.dtype(array))
    return array


def _refuse_unreal(name: str, dtype: str) -> None:
    if dtype not in (*_FLOATS, "bool") and not dtype.startswith(("int", "uint")):
        hint = "take the real part or the modulus" if dtype.startswith("complex") else "convert it to numbers"
        raise TypeError(f"{name} has dtype {dtype}, which holds no real numbers that a loss can use; {hint}")


def compute_dtype(dtype: str) -> str:
    return "float64" if dtype == "float64" else "float32"


def is_float(dtype: str) -> bool:
    return dtype in _FLOATS


def integer_axis(axis: Any) -> None:
    if isinstance(axis, bool) or not isinstance(axis, int | np.integer):
        raise TypeError(f"axis is {type(axis).__name__}; pass one integer")


def axis_of(y_true: Shape, shape: Shape, axis: Any, names: Names, *, at_least: int) -> int:
    """The non-negative axis of the predictions that holds `at_least` outcomes."""
    integer_axis(axis)
    rank = len(shape)
    if not -rank <= axis < rank:
        hint = f"use {-rank} to {rank - 1}" if rank else "pass an array with an axis of outcomes"
        raise ValueError(f"axis {axis} is out of range: {names.pred} has shape {_text(shape)}; {hint}")
    size = shape[axis]
    if size is not None and size < at_least:
        hint = "there is nothing to average; name another axis"
        if at_least > 1:
            hint = "a distribution needs two classes; one probability an entry is for binary_crossentropy, or log_loss "
            hint += "on equal shapes"
        found = f"{names.pred} has shape {_text(shape)} and {names.target} {_text(y_true)}"
        raise ValueError(f"axis {axis} has size {size}: {found}; {hint}")
    return int(axis % rank)


def same_shape(y_true: Shape, y_pred: Shape, names: Names, *, labels_fit: bool) -> None:
    if _agree(y_true, y_pred):
        return
    found = f"{names.target} has shape {_text(y_true)} and {names.pred} {_text(y_pred)}, and nothing is broadcast"
    if len(y_true) + 1 == len(y_pred) and y_pred[-1] == 1 and _agree(y_true, y_pred[:-1]):
        hint = f"reshape one to the other, as with {names.pred}[..., 0]"
    elif len(y_true) == len(y_pred) + 1 and y_true[-1] == 1 and _agree(y_true[:-1], y_pred):
        hint = f"reshape one to the other, as with {names.target}[..., 0]"
    elif labels_fit and len(y_true) + 1 == len(y_pred):
        hint = f"for integer class labels use {names.sparse}"
    else:
        hint = "give both the same shape"
    raise ValueError(f"{found}; {hint}")


def label_shape(y_true: Shape, expected: Shape, y_pred: Shape, axis: int, names: Names) -> None:
    if _agree(y_true, expected):
        return
    found = (
        f"{names.target} has shape {_text(y_true)} and {names.pred} {_text(y_pred)} with its classes along axis {axis}"
    )
    if _agree(y_true, y_pred):
        hint = f"one-hot or soft targets go to {names.soft}"
    elif len(y_true) == len(expected) + 1 and y_true[-1] == 1:
        hint = f"labels must have shape {_text(expected)}: drop the last axis with {names.target}[..., 0]"
    elif len(y_true) == len(y_pred) + 1 and y_true[-1] == 1:
        hint = "labels lack the axis of the classes; for trials give both the same shape, as with "
        hint += f"{names.target}[..., 0]"
    elif _agree(y_true, y_pred[:-1]):
        hint = f"for classes along the last axis pass {names.classes_last}"
    else:
        hint = f"labels must have shape {_text(expected)}"
    raise ValueError(f"{found}; {hint}")


def label_dtype(dtype: str, names: Names) -> None:
    if is_float(dtype):
        raise TypeError(
            f"{names.target} has dtype {dtype}, and class labels are integers; convert them, "
            f"or for one-hot or soft targets use {names.soft}"
        )


def floating(dtype: str, name: str, other: str) -> None:
    """For losses that, as their framework's own, take no integers as predictions."""
    if not is_float(dtype):
        raise TypeError(
            f"{name} has dtype {dtype}, and logits and probabilities are floating-point; convert it, "
            f"or swap {name} and {other} if they came in the wrong order"
        )


def ignored_class(value: Any, name: str = "ignore_class") -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | np.integer)):
        raise TypeError(f"{name} is {type(value).__name__}; pass an integer label or None")


def representable(label: int, dtype: str) -> bool:
    """Whether labels of this integer dtype can be that one: unsigned ones are never −1."""
    if dtype == "bool":
        return label in (0, 1)
    bits = int(dtype.lstrip("uint"))
    unsigned = dtype.startswith("u")
    low, high = (0, 2**bits) if unsigned else (-(2 ** (bits - 1)), 2 ** (bits - 1))
    # An unsigned 32-bit label above the signed range is no class, and cannot be told from others that are none.
    return low <= label < min(high, 2**31 if bits == 32 else 2**63)


def all_in_range(labels: np.ndarray, classes: int) -> bool:
    return not labels.size or (bool(labels.min() >= 0) and bool(labels.max() < classes))


def labels_in_range(labels: np.ndarray, classes: int, kept: np.ndarray | None, names: Names) -> None:
    """Refuses the first label that is no class and is not left out."""
    bad = (labels < 0) | (labels >= classes)
    if kept is not None:
        bad = bad & np.broadcast_to(kept, labels.shape)
    if bad.any():
        index = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(
            f"label {labels[index]}{_place(index)} is out of range: there are {classes} classes, 0 to {classes - 1}; "
            f"correct it, or leave it out with {names.leave_out}"
        )


def probabilities_in_range(values: np.ndarray | None, name: str, hint: str) -> None:
    """Refuses the first that is outside [0, 1], where values can be read. NaN passes: the loss shows it."""
    if values is None:
        return
    bad = (values < 0) | (values > 1)
    if bad.any():
        index = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(f"{name} holds {values[index]}{_place(index)}, and probabilities lie in [0, 1]; {hint}")


def _place(index: tuple[int, ...]) -> str:
    return f" at index {index[0] if len(index) == 1 else index}" if index else ""


def held_to(b: Backend, name: str, x: Array, pred: Array, row: int | None, axes: list[int] | None = None) -> Array:
    """`x`, of the axes of `pred` without `row`, held to their sizes when it runs, where they are unknown until then.

    `axes`: only these; the others are meant to broadcast.
    """
    if None not in b.shape(x) and None not in b.shape(pred):
        return x
    pred_axes = [axis for axis in range(len(b.shape(pred))) if axis != row]
    held = list(range(len(b.shape(x)))) if axes is None else axes
    words = f"{name} and the predictions differ in sizes that were unknown until now, and nothing is broadcast"
    return b.same_sizes(x, held, pred, [pred_axes[axis] for axis in held], words)


def per_sample(b: Backend, name: str, x: Array, pred: Array, row: int | None) -> Array:
    """`x` reshaped to broadcast against the per-sample losses: their shape, its leading axes, or a scalar."""
    shape = b.shape(x)
    sample_shape = tuple(size for axis, size in enumerate(b.shape(pred)) if axis != row)
    if len(shape) <= len(sample_shape):
        leading = shape
        while len(leading) > 1 and leading[-1] == 1 and not _agree(leading, sample_shape[: len(leading)]):
            leading = leading[:-1]
        if _agree(leading, sample_shape[: len(leading)]):
            for _ in range(len(sample_shape) - len(shape) if shape else 0):
                x = b.expand_dims(x, len(b.shape(x)))
            # Sizes of 1 behind the first axis weigh whole rows.
            return held_to(b, name, x, pred, row, [i for i, size in enumerate(b.shape(x)) if i == 0 or size != 1])
    raise ValueError(
        f"{name} has shape {_text(shape)} and the per-sample losses {_text(sample_shape)}; "
        "give it that shape, its leading axes, or one number"
    )


def per_class(b: Backend, name: str, x: Array, pred: Array, row: int | None, scalar: bool, names: Names) -> Array:
    """`x` of shape (C,) reshaped to lie along axis `row` of `pred`; a scalar passes where `scalar` allows it."""
    shape, y_pred = b.shape(x), b.shape(pred)
    if scalar and not shape:
        return x
    if row is None or len(shape) != 1 or not _agree(shape, (y_pred[row],)):
        raise ValueError(
            f"{name} has shape {_text(shape)}, and axis {row} of {names.pred}, of shape {_text(y_pred)}, holds the "
            f"classes; give {name} one number a class{', or a single number' if scalar else ''}"
        )
    x = b.reshape(x, tuple(-1 if i == row else 1 for i in range(len(y_pred))))
    return held_to(b, name, x, pred, None, [row])


def broadcastable(name: str, shape: Shape, onto_name: str, onto: Shape) -> None:
    """Against the last axes, as NumPy and PyTorch broadcast; `onto` keeps its shape."""
    last = onto[len(onto) - len(shape) :]
    if len(shape) > len(onto) or not all(
        m == 1 or m is None or n is None or m == n for m, n in zip(shape, last, strict=True)
    ):
        raise ValueError(
            f"{name} has shape {_text(shape)}, which does not broadcast to {onto_name}'s, {_text(onto)}; give it "
            f"{onto_name}'s shape, or its last axes"
        )


def scalar(b: Backend, name: str, x: Array) -> Array:
    if b.shape(x):
        raise ValueError(f"{name} has shape {_text(b.shape(x))}; pass one number or a scalar array")
    return x


def _agree(a: Shape, b: Shape) -> bool:
    """Equal shapes, where an unknown size (None) agrees with any."""
    return len(a) == len(b) and all(m is None or n is None or m == n for m, n in zip(a, b, strict=True))


def _text(shape: Shape) -> str:
    return f"({', '.join(str(n) for n in shape)}{',' if len(shape) == 1 else ''})"
