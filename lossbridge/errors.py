"""What is refused, in one line: what is wrong, what was found, what to do.

Checks of options, shapes, dtypes and of values on the host, given as Python and NumPy data; nothing of a framework. A
function raises if its check fails, and otherwise returns.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from lossbridge.maths.ops import Domain, Shape
from lossbridge.spec import CHOICES, FRACTION, MEANS, NUMBERS, OF_MIXTURE, PER_CLASS, REDUCTIONS, SWITCHES, Names

FLOATS = ("float16", "bfloat16", "float32", "float64")

# A mask that nobody gave as mask=.
ATTACHED_MASK = "the mask that Keras' layers attached to y_pred"

# Other libraries' names of a reduction: the library, and our name.
_REDUCTIONS_ELSEWHERE = {
    "batchmean": ("PyTorch's", "sum_over_batch_size"),
    "elementwise_mean": ("PyTorch's", "mean"),
    "auto": ("Keras 2's", "sum_over_batch_size"),
}


# Options.


def options(values: Mapping[str, Any]) -> None:
    """Checks the options that need no arrays."""
    if "reduction" in values:
        reduction_name(values["reduction"], REDUCTIONS, _REDUCTIONS_ELSEWHERE)
        if values.get("normalizer") is not None and values["reduction"] not in MEANS:
            raise ValueError(
                f"normalizer is the denominator of a mean, and reduction={values['reduction']!r} divides by nothing; "
                'use "mean", or leave out normalizer'
            )
    for name in NUMBERS:
        if name in values and not (name == "softcap" and values[name] is None):
            number(name, values[name], *NUMBERS[name])
    for name in CHOICES:
        if name in values:
            choice(name, values[name], CHOICES[name])
    if values.get("kind", "jensen_shannon") != "jensen_shannon":
        without_mixture({name: values[name] for name in OF_MIXTURE if name in values}, values["kind"])
    switches({name: values[name] for name in SWITCHES if name in values})
    ignored_class(values.get("ignore_class"))
    if "axis" in values:
        integer_axis(values["axis"])
    for name in PER_CLASS:
        x = values.get(name)
        if isinstance(x, int) and abs(x) > sys.float_info.max:
            raise ValueError(f"{name} is {_short(x)}, and no float; pass a smaller number")
    if "alpha" in values and values["alpha"] is None:
        raise TypeError("alpha is None; pass one number, or one a class")
    if "apply_class_balancing" in values:
        fraction("alpha", values["alpha"])


def choice(name: str, value: Any, known: Sequence[str]) -> None:
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name} is {value!r}; use one of {', '.join(repr(x) for x in known)}")


def without_mixture(values: Mapping[str, Any], kind: str) -> None:
    """Options of the mixture, where there is none."""
    for name, x in values.items():
        if not isinstance(x, float | str) or x != OF_MIXTURE[name]:
            raise ValueError(
                f'{name} is for kind="jensen_shannon", and kind is {kind!r}; leave it out, or pass that kind'
            )


def without_logits(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Options of logits, where there are probabilities."""
    for name, x in values.items():
        if x is not defaults[name] and not (isinstance(x, int | float) and x == defaults[name]):
            raise ValueError(
                f"{name} is for logits, and from_logits is False; pass logits and from_logits=True, or leave it out"
            )


def reduction_name(name: object, names: Sequence[str | None], elsewhere: Mapping[Any, tuple[str, str]]) -> None:
    """`elsewhere`: of other libraries' names, the library and the one of `names` that is meant."""
    known = name is None or isinstance(name, str)
    if known and name in names:
        return
    if known and name in elsewhere:
        owner, meant = elsewhere[name]
        raise ValueError(f"reduction {name!r} is {owner} name; here it is {meant!r}")
    raise ValueError(f"unknown reduction {name!r}; use one of {', '.join(repr(name) for name in names)}")


def switches(values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if not isinstance(value, bool | np.bool_):
            raise TypeError(f"{name} is {value!r}; pass True or False")


def fraction(name: str, value: Any) -> None:
    number(name, value, *FRACTION)


def number(name: str, value: Any, low: float, high: float, words: str) -> None:
    if is_scalar(value) and not isinstance(value, np.generic):
        return  # an array; if it can be read, `request` has done so
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{name} is {type(value).__name__}; pass a Python number {words}")
    if not isinstance(value, int):
        value = float(value)  # compared in its own dtype, the limits would be cast to it
    if not low <= value <= high:
        raise ValueError(f"{name} is {_short(value)}; pass a number {words}")


def is_scalar(x: Any) -> bool:
    """Whether `x` is a NumPy scalar, or any library's array of shape ()."""
    if type(x) in (bool, int, float) or not hasattr(x, "dtype"):
        return False
    if hasattr(x, "ndim"):  # PyTorch's nested tensors have no shape
        return bool(x.ndim == 0)
    return tuple(getattr(x, "shape", (0,))) == ()


def _short(value: float) -> str:
    """A number as text: an integer may have thousands of digits."""
    if not isinstance(value, int) or abs(value) < 2**64:
        return str(value)
    return f"an integer {'above 2**64' if value > 0 else 'below -2**64'}"


def is_float(dtype: str) -> bool:
    return dtype in FLOATS


def integer_axis(axis: Any) -> None:
    if not is_integer(axis):
        raise TypeError(f"axis is {type(axis).__name__}; pass one integer")


def axis_of(y_true: Shape, shape: Shape, axis: Any, names: Names, *, at_least: int) -> int:
    """The non-negative axis of the predictions that holds `at_least` outcomes."""
    integer_axis(axis)
    rank = len(shape)
    if not -rank <= axis < rank:
        hint = f"use {-rank} to {rank - 1}" if rank else "pass an array with an axis of outcomes"
        raise ValueError(f"axis {axis} is out of range: {names.pred} has shape {text(shape)}; {hint}")
    size = shape[axis]
    if size is not None and size < at_least:
        hint = "there is nothing to average; name another axis"
        if at_least > 1:
            hint = "a distribution needs two classes; one probability an entry is for binary_crossentropy, or log_loss "
            hint += "on equal shapes"
        found = f"{names.pred} has shape {text(shape)} and {names.target} {text(y_true)}"
        raise ValueError(f"axis {axis} has size {size}: {found}; {hint}")
    return int(axis % rank)


def has_classes(name: str, shape: Shape, axis: int) -> None:
    if shape[axis] == 0:
        raise ValueError(f"{name} has shape {text(shape)}, and no class along axis {axis}; name another axis")


def same_shape(y_true: Shape, y_pred: Shape, names: Names, *, labels_fit: bool) -> None:
    if agree(y_true, y_pred):
        return
    found = f"{names.target} has shape {text(y_true)} and {names.pred} {text(y_pred)}, and nothing is broadcast"
    if len(y_true) + 1 == len(y_pred) and y_pred[-1] == 1 and agree(y_true, y_pred[:-1]):
        hint = f"reshape one to the other, as with {names.pred}[..., 0]"
    elif len(y_true) == len(y_pred) + 1 and y_true[-1] == 1 and agree(y_true[:-1], y_pred):
        hint = f"reshape one to the other, as with {names.target}[..., 0]"
    elif labels_fit and len(y_true) + 1 == len(y_pred):
        hint = f"for integer class labels use {names.sparse}"
    else:
        hint = "give both the same shape"
    raise ValueError(f"{found}; {hint}")


def label_shape(y_true: Shape, expected: Shape, y_pred: Shape, axis: int, names: Names) -> None:
    if agree(y_true, expected):
        return
    found = (
        f"{names.target} has shape {text(y_true)} and {names.pred} {text(y_pred)} with its classes along axis {axis}"
    )
    if agree(y_true, y_pred):
        hint = f"one-hot or soft targets go to {names.soft}"
    elif len(y_true) == len(expected) + 1 and y_true[-1] == 1:
        hint = f"labels must have shape {text(expected)}: drop the last axis with {names.target}[..., 0]"
    elif len(y_true) == len(y_pred) + 1 and y_true[-1] == 1:
        hint = "labels lack the axis of the classes; for trials give both the same shape, as with "
        hint += f"{names.target}[..., 0]"
    elif agree(y_true, y_pred[:-1]):
        hint = f"for classes along the last axis pass {names.classes_last}"
    else:
        hint = f"labels must have shape {text(expected)}"
    raise ValueError(f"{found}; {hint}")


def is_integer(x: Any) -> bool:
    return isinstance(x, int | np.integer) and not isinstance(x, bool)


def layer_options(classes_axis: Any, memory: Any) -> None:
    if not is_integer(classes_axis) or classes_axis not in (0, 1):
        raise ValueError(
            f"classes_axis is {classes_axis!r}; pass 0 for a weight of shape (classes, hidden), as torch.nn.Linear and "
            "embeddings have it, or 1 for (hidden, classes), as Keras and Flax"
        )
    if memory is not None and (not is_integer(memory) or memory < 1):
        raise ValueError(f"memory is {memory!r}; pass the bytes that a block of logits may take, or None")


def returned(returns: Any, names: Sequence[str]) -> None:
    """`returns` of the linear loss: "loss", or some of these names."""
    if type(returns) is str and returns == "loss":
        return
    if isinstance(returns, str) or not isinstance(returns, Sequence) or not returns:
        raise ValueError(f'returns is {returns!r}; pass "loss", or a tuple of names out of {", ".join(names)}')
    for name in returns:
        if name not in names:
            raise ValueError(f"returns names {name!r}; pass names out of {', '.join(names)}")
        if list(returns).count(name) > 1:
            raise ValueError(f"returns names {name!r} twice; leave one out")


def layer_dtypes(dtypes: Mapping[str, str], side: str = "") -> None:
    """Of hidden states, weight and bias: floating, and float64 all or none. `side`: before the arguments' names."""
    of = f"{side}_" if side else ""
    for name, dtype in dtypes.items():
        if not is_float(dtype):
            swapped = (
                ", or swap labels and hidden if they came in the wrong order" if name == "hidden" and not of else ""
            )
            raise TypeError(
                f"{of}{name} has dtype {dtype}, and a linear layer's arrays are floating-point; convert it{swapped}"
            )
        if (dtype == "float64") != (dtypes["hidden"] == "float64"):
            raise TypeError(
                f"{of}{name} is {dtype} and {of}hidden {dtypes['hidden']}; convert one, nothing is cast to float64"
            )


def layer_shapes(shapes: Mapping[str, Shape], classes_axis: int, side: str = "", *, may_be_empty: bool = False) -> None:
    """Of hidden states, weight and bias. `side`: see `layer_dtypes`; `may_be_empty`: a shard without classes."""
    of = f"{side}_" if side else ""
    hidden, weight = shapes["hidden"], shapes["weight"]
    if len(weight) == 2 and None in weight:
        raise ValueError(f"{of}weight has shape {text(weight)}; its sizes must be known where the graph is built")
    if len(weight) != 2 or not hidden:
        raise ValueError(
            f"{of}hidden has shape {text(hidden)} and {of}weight {text(weight)}; a weight has two axes, and hidden "
            f"states one more than the {'losses' if side else 'labels'}, the last"
        )
    if 0 in (weight[1 - classes_axis : 2 - classes_axis] if may_be_empty else weight):
        raise ValueError(f"{of}weight has shape {text(weight)}; a layer has at least one class and one unit")
    if not agree((hidden[-1],), (weight[1 - classes_axis],)):
        hint = "make them equal"
        if agree((hidden[-1],), (weight[classes_axis],)):
            hint = f"its classes lie along the other axis: pass classes_axis={1 - classes_axis}, or {of}weight.T"
        raise ValueError(
            f"{of}hidden has shape {text(hidden)}, with {hidden[-1]} units, and {of}weight {text(weight)}, with "
            f"{weight[1 - classes_axis]} along axis {1 - classes_axis}; {hint}"
        )
    bias, classes = shapes.get("bias"), weight[classes_axis]
    if bias is not None and not agree(bias, (classes,)):
        raise ValueError(
            f"{of}bias has shape {text(bias)} and {of}weight {text(weight)}; a bias has one number a class, "
            f"({classes},)"
        )


def two_layers(teacher: Shape, student: Shape, of_teacher: int, of_student: int) -> None:
    """Of two sides' hidden states, and their numbers of classes."""
    if not agree(teacher[:-1], student[:-1]):
        raise ValueError(
            f"teacher_hidden has shape {text(teacher)} and student_hidden {text(student)}; they may differ in the last "
            "axis, that of the units, alone"
        )
    if of_teacher != of_student:
        raise ValueError(
            f"the teacher has {of_teacher} classes and the student {of_student}; a divergence needs the same ones"
        )


def hidden_labels(labels: Shape, hidden: Shape) -> None:
    if not agree(labels, hidden[:-1]):
        hint = f"labels must have shape {text(hidden[:-1])}"
        if agree(labels, (*hidden[:-1], 1)):
            hint = "drop the last axis with labels[..., 0]"
        raise ValueError(
            f"labels has shape {text(labels)} and hidden {text(hidden)}, whose last axis is that of the units; {hint}"
        )


# Of a layer whose classes are split over devices. A rank is one of the group's.


def no_groups(framework: str) -> None:
    raise ValueError(
        "group=, classes= and reduce_hidden= split the classes over PyTorch's process groups and JAX' meshes, and "
        f"hidden is of {framework}; leave them out"
    )


def own_classes(classes: Any, shape: Shape, classes_axis: int) -> tuple[int, int]:
    """The first class and the last + 1. `shape`: the weight's."""
    if not (isinstance(classes, list | tuple) and len(classes) == 2 and all(map(is_integer, classes))):
        raise TypeError(f"classes is {classes!r}; pass (start, stop), the classes of this rank's weight")
    start, stop = map(int, classes)
    if not 0 <= start <= stop or stop >= 2**31:
        raise ValueError(f"classes is ({start}, {stop}); pass (start, stop) with 0 ≤ start ≤ stop")
    if len(shape) == 2 and shape[classes_axis] != stop - start:
        raise ValueError(
            f"classes is ({start}, {stop}) and weight has shape {text(shape)}; give it {stop - start} along axis "
            f"{classes_axis}"
        )
    return start, stop


def other_ranks(ranks: Sequence[int]) -> None:
    """Those that refuse their arguments."""
    if ranks:
        raise ValueError(f"{_ranks(ranks)} of the group refused the arguments of this call; the error there says why")


def said_by_all(said: Sequence[bool]) -> None:
    if not all(said):
        without = [rank for rank, is_said in enumerate(said) if not is_said]
        raise ValueError(f"{_ranks(without)} of the group passed no classes=, and others did; pass it on all, or none")


def shards(of_ranks: Sequence[tuple[int, int]]) -> None:
    """Classes of every rank: all of them once."""
    found = ", ".join(f"rank {rank} ({start}, {stop})" for rank, (start, stop) in enumerate(of_ranks))
    known = 0
    for start, stop in sorted(of_ranks):
        if start != known and start < stop:
            wrong = f"class {start} is on two ranks" if start < known else f"class {known} is on no rank"
            raise ValueError(f"{wrong} of the group: {found}; pass classes= that meet without gap and overlap, from 0")
        known = max(known, stop)
    if known == 0:
        raise ValueError(f"no rank of the group has a class: {found}; a layer has at least one")


def alike(names: Sequence[str], of_ranks: Sequence[Sequence[int]]) -> None:
    """Checksums of what is alike on all ranks, by these names."""
    for i, name in enumerate(names):
        others = [rank for rank, sums in enumerate(of_ranks) if sums[i] != of_ranks[0][i]]
        if others:
            raise ValueError(
                f"{name}: {_ranks(others)} of the group differs from rank 0; all but weight, bias and classes= are "
                "alike on every rank"
            )


def _ranks(ranks: Sequence[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"each of the ranks {', '.join(map(str, ranks))}"


def label_dtype(dtype: str, names: Names) -> None:
    if is_float(dtype):
        raise TypeError(
            f"{names.target} has dtype {dtype}, and class labels are integers; convert them, "
            f"or for one-hot or soft targets use {names.soft}"
        )


def floating(dtype: str, name: str, other: str) -> None:
    """For losses that take no integer predictions, as in their framework."""
    if not is_float(dtype):
        raise TypeError(
            f"{name} has dtype {dtype}, and logits and probabilities are floating-point; convert it, "
            f"or swap {name} and {other} if they came in the wrong order"
        )


def ignored_class(value: Any, name: str = "ignore_class") -> None:
    if value is not None and not is_integer(value):
        raise TypeError(f"{name} is {type(value).__name__}; pass an integer label or None")


def representable(label: int, dtype: str) -> bool:
    """Whether this integer dtype can hold the label; an unsigned one cannot hold −1."""
    if dtype == "bool":
        return label in (0, 1)
    bits = int(dtype.lstrip("uint"))
    unsigned = dtype.startswith("u")
    low, high = (0, 2**bits) if unsigned else (-(2 ** (bits - 1)), 2 ** (bits - 1))
    # Labels are cast to int32, in which unsigned labels above its range become negative, and so out of range.
    return low <= label < min(high, 2**31 if bits == 32 else 2**63)


_UNSIGNED = {size: np.dtype(f"u{size}") for size in (1, 2, 4, 8)}


def all_in_range(labels: np.ndarray, classes: int) -> bool:
    if not labels.size:
        return True
    if labels.dtype.kind == "i" and labels.dtype.isnative and classes < 1 << (8 * labels.itemsize - 1):
        # As unsigned integers, negative labels are above all classes: one pass instead of two.
        labels = labels.view(_UNSIGNED[labels.itemsize])
    return bool(labels.max() < classes and (labels.dtype.kind != "i" or labels.min() >= 0))


def labels_in_range(labels: np.ndarray, classes: int, valid: np.ndarray | None, names: Names) -> None:
    """Raises for the first valid label that is out of range."""
    bad = (labels < 0) | (labels >= classes)
    if valid is not None:
        bad = bad & np.broadcast_to(valid, labels.shape)
    if bad.any():
        index = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(
            f"label {labels[index]}{_place(index)} is out of range: there are {classes} classes, 0 to {classes - 1}; "
            f"correct it, or leave it out with {names.leave_out}"
        )


def kept_shapes(shapes: Mapping[str, Shape], student: Shape, axis: int) -> None:
    """Of a teacher's kept classes, k along the axis, beside the student's logits."""
    indices, log_probs = shapes["indices"], shapes["log_probs"]
    rows = student[:axis] + student[axis + 1 :]
    fits = len(indices) == len(student) and agree(indices[:axis] + indices[axis + 1 :], rows)
    if not fits or not agree(indices, log_probs):
        raise ValueError(
            f"indices has shape {text(indices)}, log_probs {text(log_probs)} and student_logits {text(student)}; the "
            f"first two have the student's shape, with the k kept classes along axis {axis}"
        )
    kept, classes = indices[axis], student[axis]
    if kept == 0 or (kept is not None and classes is not None and kept > classes):
        raise ValueError(f"{kept} classes are kept of {classes}; keep at least 1, and no more than there are")


def index_dtype(dtype: str) -> None:
    if is_float(dtype) or dtype == "bool":
        raise TypeError(f"indices has dtype {dtype}, and indices of classes are integers; convert them")


def kept_indices(indices: np.ndarray, classes: int, axis: int, valid: np.ndarray | None) -> None:
    """Raises for the first row that counts and has an index out of range, or one twice."""
    rows = np.sort(np.moveaxis(indices, axis, -1), axis=-1)
    outside = ((rows < 0) | (rows >= classes)).any(-1)
    twice = (rows[..., 1:] == rows[..., :-1]).any(-1)
    for bad, words in (
        (outside, f"there are {classes} classes, 0 to {classes - 1}"),
        (twice, "one stands there twice"),
    ):
        bad = bad if valid is None else bad & np.broadcast_to(valid, bad.shape)
        if bad.any():
            place = tuple(int(i) for i in np.argwhere(bad)[0])
            shown = ", ".join(str(x) for x in rows[place][:8])
            raise ValueError(
                f"indices{_place(place)}, sorted, are {shown}{', …' if rows.shape[-1] > 8 else ''}, and {words}; "
                "correct them, or leave the row out with mask="
            )


def kept_mass(log_probs: np.ndarray, slack: float, axis: int, valid: np.ndarray | None) -> None:
    """Raises for the first row that counts and has more than all of the probability."""
    with np.errstate(over="ignore"):
        mass = np.exp(np.moveaxis(log_probs, axis, -1).astype(np.float64)).sum(-1)
    bad = mass > 1 + slack
    bad = bad if valid is None else bad & np.broadcast_to(valid, bad.shape)
    if bad.any():
        place = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(
            f"the probabilities of log_probs{_place(place)} sum to {mass[place]:.6g}; pass the logarithms of a "
            "teacher's probabilities (its log_softmax), or tail=False for numbers that are not normalised"
        )


def has_nan(values: np.ndarray) -> bool:
    return math.isnan(values) if values.ndim == 0 else bool(values.size and np.isnan(np.min(values)))


def in_domain(
    name: str,
    values: np.ndarray,
    domain: tuple[Domain, float],
    samples: tuple[int | None, np.ndarray | None],
    takes_logits: bool,
    names: Names,
) -> None:
    """Raises for the first number outside the domain, of a sample that counts. NaN is accepted: the loss is NaN too.

    `domain`: with what rounding may add to it; `samples`: the axis of their numbers, and which count.
    """
    (kind, rounding), (axis, valid), is_target = domain, samples, name == names.target
    bad = values < -rounding
    if kind == "fractions":
        bad |= values > 1 + rounding
    if valid is not None:
        valid = np.expand_dims(valid, axis) if axis is not None and valid.ndim else valid
        bad = bad & valid
    if not bad.any():
        if kind == "shares" and axis is not None:
            _refuse_zeros(name, values, axis, valid, names)
        return
    index = tuple(int(i) for i in np.argwhere(bad)[0])
    words = "targets lie in [0, 1]" if is_target else "probabilities lie in [0, 1]"
    words = "probabilities are not negative" if kind == "shares" else words
    if not is_target:
        hint = "for logits pass from_logits=True" if takes_logits else "logits go through a sigmoid or softmax first"
    elif values.min() == -1 and values.max() == 1:
        hint = "labels of -1 and 1 become 0 and 1 by (y + 1) / 2"
    elif values.max() == 255:
        hint = "divide a mask of 0 and 255 by 255"
    else:
        hint = f"correct it, or leave its sample out with {names.leave_out}"
    raise ValueError(f"{name} holds {values[index]!s}{_place(index)}, and {words}; {hint}")


def _refuse_zeros(name: str, values: np.ndarray, axis: int, valid: np.ndarray | None, names: Names) -> None:
    """Raises for the first row of zeros that counts."""
    empty = ~values.any(axis)
    empty = empty if valid is None else empty & np.squeeze(valid, axis if valid.ndim else None)
    if empty.any():
        place = _place(tuple(int(i) for i in np.argwhere(empty)[0]))
        raise ValueError(
            f"{name} is 0 for all outcomes{place}, which is no distribution; correct it, or leave its sample out with "
            f"{names.leave_out}"
        )


def probabilities_in_range(values: np.ndarray | None, name: str, hint: str) -> None:
    """Raises for the first value outside [0, 1], if values can be read. NaN is accepted: the loss is NaN too."""
    if values is None:
        return
    bad = (values < 0) | (values > 1)
    if bad.any():
        index = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(f"{name} holds {values[index]}{_place(index)}, and probabilities lie in [0, 1]; {hint}")


def _place(index: tuple[int, ...]) -> str:
    return f" at index {index[0] if len(index) == 1 else index}" if index else ""


def broadcastable(name: str, shape: Shape, onto_name: str, onto: Shape) -> None:
    """Whether `shape` broadcasts to `onto`, by the rules of NumPy and PyTorch."""
    last = onto[len(onto) - len(shape) :]
    if len(shape) > len(onto) or not all(
        m == 1 or m is None or n is None or m == n for m, n in zip(shape, last, strict=True)
    ):
        raise ValueError(
            f"{name} has shape {text(shape)}, which does not broadcast to {onto_name}'s, {text(onto)}; give it "
            f"{onto_name}'s shape, or its last axes"
        )


def per_sample_shape(name: str, shape: Shape, sample_shape: Shape) -> None:
    hint = "give it that shape, its leading axes, or one number"
    if name == ATTACHED_MASK:
        hint = "give y_true the shape of y_pred, or have the model drop the mask (as mask_zero=False of Embedding does)"
    raise ValueError(f"{name} has shape {text(shape)} and the per-sample losses {text(sample_shape)}; {hint}")


def per_class_shape(name: str, shape: Shape, y_pred: Shape, axis: int | None, names: Names, *, scalar: bool) -> None:
    raise ValueError(
        f"{name} has shape {text(shape)}, and axis {axis} of {names.pred}, of shape {text(y_pred)}, holds the "
        f"classes; give {name} one number a class{', or a single number' if scalar else ''}"
    )


def scalar(name: str, shape: Shape) -> None:
    if shape:
        raise ValueError(f"{name} has shape {text(shape)}; pass one number or a scalar array")


# The call that makes a NumPy array of another library's, where it is not numpy.asarray(x).
_CONVERSIONS = {
    "paddle": "{}.numpy(), and of bfloat16 {}.astype('float32').numpy()",
    "mlx": "numpy.array({}), and of bfloat16 numpy.array({}.astype(mlx.core.float32))",
    "cupy": "cupy.asnumpy({})",
    "cupyx": "{}.toarray().get()",
    "dask": "{}.compute()",
    "tinygrad": "{}.numpy()",
    "mindspore": "{}.asnumpy()",
    "mxnet": "{}.asnumpy()",
    "oneflow": "{}.numpy()",
    "jittor": "{}.numpy()",
    "dpnp": "{}.asnumpy()",
    "xarray": "{}.to_numpy()",
    "pyarrow": "{}.to_numpy(zero_copy_only=False)",
    "cudf": "{}.to_numpy()",
    "pandas": "{}.to_numpy()",
    "polars": "{}.collect()",
    "scipy": "{}.toarray()",
    "sparse": "{}.todense()",
    "keras": "{}.value",
}


def foreign_array(name: str, x: object, known: Sequence[str]) -> NoReturn:
    """For what belongs to none of the frameworks."""
    owner = type(x).__module__.partition(".")[0]
    found = f"{name} is {type(x).__module__}.{type(x).__qualname__}, which is no array of {', '.join(known)}"
    call = _CONVERSIONS.get(owner) or ("numpy.asarray({})" if hasattr(x, "__array__") else "")
    if not call:
        raise TypeError(f"{found}; pass an array, a list or a number")
    raise TypeError(f"{found}, and would get no gradient; pass {call.replace('{}', name)}")


def no_array(name: str, x: object, error: Exception) -> NoReturn:
    """For what could not be converted, which failed with this error."""
    try:
        real_numbers(name, str(np.asarray(x).dtype.name))
    except ValueError:
        raise ValueError(f"{name} cannot be made an array of numbers; pass rows of equal length") from None
    reason = str(error).partition("\n")[0]
    raise TypeError(f"{name} is {type(x).__name__} that cannot be converted: {reason}") from None


def real_numbers(name: str, dtype: str) -> None:
    if dtype in (*FLOATS, "bool") or dtype.startswith(("int", "uint")):
        return
    if dtype.startswith("complex"):
        found, hint = "whose numbers are not real", "take the real part or the modulus"
    elif dtype.startswith("float"):
        found, hint = "which losses do not read", "convert it to float32 or bfloat16"
    elif dtype == "object":
        found, hint = "which may hold anything", "convert it to numbers"
    else:
        found, hint = "which holds no real numbers", "convert it to numbers"
    raise TypeError(f"{name} has dtype {dtype}, {found}; {hint}")


def gradient_buffer(out: Any, pred: np.ndarray, others: Mapping[str, Any], *, may_be_pred: bool) -> None:
    """`others`: the other arguments, which the gradient must not overwrite."""
    wanted = f"pass a C-contiguous, writable array of shape {text(pred.shape)} and dtype {pred.dtype}"
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out is {type(out).__name__}; {wanted}")
    if out.shape != pred.shape or out.dtype != pred.dtype:
        raise ValueError(f"out has shape {text(out.shape)} and dtype {out.dtype}; {wanted}")
    if not (out.flags.c_contiguous and out.flags.writeable):
        raise ValueError(f"out is {'not C-contiguous' if out.flags.writeable else 'read-only'}; {wanted}")
    for name, x in others.items():
        if isinstance(x, np.ndarray) and np.may_share_memory(out, x):
            raise ValueError(f"out shares memory with {name}; pass another array")
    if np.may_share_memory(out, pred):
        if not may_be_pred:
            raise ValueError("out shares memory with y_pred, which this loss may read again; pass another array")
        if out.ctypes.data != pred.ctypes.data or not pred.flags.c_contiguous:
            raise ValueError("out overlaps y_pred; pass y_pred itself, or another array")


def agree(a: Shape, b: Shape) -> bool:
    """Equal shapes, where an unknown size (None) agrees with any."""
    return len(a) == len(b) and all(m is None or n is None or m == n for m, n in zip(a, b, strict=True))


def text(shape: Shape) -> str:
    return f"({', '.join(str(n) for n in shape)}{',' if len(shape) == 1 else ''})"
