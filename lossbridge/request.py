"""A call of a loss: the caller's arguments become a frozen Request, each resolved once.

Every loss, here and in `lossbridge.compat`, calls `run`: it resolves the arguments and raises for wrong ones, then
reduces the losses that the framework computes. Common values are accepted without a call into `errors` or the
framework.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np

from lossbridge import errors
from lossbridge.frameworks import FRAMEWORKS, is_traced_by_torch, numpy_ops
from lossbridge.frameworks.framework import ArrayOps, Framework, Unreadable
from lossbridge.maths.elementary import nan_unless, rounding
from lossbridge.maths.ops import ANYWHERE, Array, Rule, Shape
from lossbridge.reduction import counting, neutralise, reduce, unit_of, weighted
from lossbridge.spec import (
    CHOICES,
    FRACTION,
    MEANS,
    NUMBERS,
    OF_LOGITS,
    PER_CLASS,
    REDUCTIONS,
    SWITCHES,
    Loss,
    Names,
    Request,
    Target,
)

# The options of all losses, with their defaults.
COMMON: Mapping[str, Any] = {
    "axis": -1,
    "sample_weight": None,
    "mask": None,
    "normalizer": None,
    "reduction": "sum_over_batch_size",
}
_NUMBERS = (*NUMBERS, *PER_CLASS)  # options that are one number, or may be
_FLOAT32 = np.finfo(np.float32)
_NO_ARRAY = (float, type(None))
_ARRAYS = ("sample_weight", "mask", "normalizer", *_NUMBERS)

Entry = TypeVar("Entry", bound=Any)


def left_by_autograph(function: Entry) -> Entry:
    """The function, which TensorFlow's AutoGraph does not rewrite, nor what it calls.

    Nothing here branches on a tensor, and to rewrite what one call needs takes seconds. It is a private interface of
    TensorFlow, which may be imported later; test_only_tensorflow.py tests it.
    """
    function.autograph_info__ = {}
    return function


@left_by_autograph
def run(loss: Loss, y_true: Any, y_pred: Any, *, names: Names | None = None, **given: Any) -> Any:
    """The loss of these arrays. `given`: its options by name, and those of COMMON."""
    r = resolve(loss, y_true, y_pred, names or loss.names, {**COMMON, **given})
    found = reduce(r)
    if r.domain and r.rule.domains != ANYWHERE:
        _refuse_outside(r, found, names or loss.names)
    return found


def resolve(loss: Loss, y_true: Any, y_pred: Any, names: Names, given: Mapping[str, Any]) -> Request:
    given = checked(given)
    framework = common_framework(y_pred, names.pred, {names.target: y_true, **arrays_of(given, names)})
    ops = framework.ops
    pred = as_array(ops, names.pred, y_pred)
    target = as_array(ops, names.target, y_true, pred)
    kind, rule = rule_of(loss, given, len(target.shape) != len(pred.shape))
    axis = None if kind in loss.elementwise else _axis(loss, target, pred, given["axis"], names)
    _check_target(ops, loss, kind, (target, pred), (axis, given["axis"]), names)
    target = held_to(ops, names.target, target, pred, axis if kind == "labels" else None)
    dtype = compute_dtype(ops, pred)
    given = divided(given, dtype)
    options = options_of(ops, loss, rule, given, (pred, axis, dtype), names)
    request = Request(
        loss=loss,
        rule=rule,
        framework=framework,
        target=target,
        pred=held_to_ranges(ops, pred, dtype, options),
        axis=axis,
        dtype=dtype,
        options=options,
        reduction=given["reduction"],
        constant=constants(ops, given, options),
        in_arrays=in_arrays(options),
        domain=loss.checked,
        inplace_gradient=given.get("inplace_gradient", False),
    )
    if not given["sample_weight"] is given["mask"] is given["normalizer"] is None:
        request = with_weights(request, given, names)
    if given.get("kind") == "reverse":
        request = _exchanged(request)
    if kind != "labels":
        return request
    return with_labels(request, y_true, given, names, 0 if axis is None else pred.shape[axis] or 0)


def without_target(loss: Loss, y_pred: Any, given: Mapping[str, Any]) -> Request:
    """Of a loss of labels that does not read them: any labels stand in their place."""
    ops = framework_of(y_pred, loss.names.pred).ops
    pred = as_array(ops, loss.names.pred, y_pred)
    given = {**COMMON, **given}
    axis = errors.axis_of((), ops.shape(pred), given["axis"], loss.names, at_least=0)
    errors.has_classes(loss.names.pred, ops.shape(pred), axis)
    return resolve(loss, ops.argmax(pred, axis), pred, loss.names, given)


def checked(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options, with Python numbers where they can be read."""
    if given["normalizer"] is None and _are_valid(given):
        return given
    given = {name: _read(name, x) if name in _NUMBERS else x for name, x in given.items()}
    errors.options(given)
    return given


def arrays_of(given: Mapping[str, Any], names: Names) -> dict[str, Any]:
    """The options that may be arrays, by the names that the caller knows."""
    return {_called(name, names): given[name] for name in _ARRAYS if type(given.get(name)) not in _NO_ARRAY}


def _are_valid(given: Mapping[str, Any]) -> bool:
    """Whether these options are certainly valid, so that `errors` need not check them."""
    for name, x in given.items():
        if name in NUMBERS:
            low, high, _ = NUMBERS[name]
            right = low <= x <= high if type(x) is float else x is None and name == "softcap"
        elif name in SWITCHES:
            right = type(x) is bool
        elif name == "reduction":
            right = x is None or (type(x) is str and x in REDUCTIONS)
        elif name in CHOICES:
            right = False  # two of them are looked at together
        elif name == "alpha":
            right = type(x) is float and 0 <= x <= 1
        elif name in PER_CLASS:
            right = x is None or not (type(x) is int or errors.is_scalar(x))
        else:
            right = name != "ignore_class" or x is None or type(x) is int
        if not right:
            return False
    return True


def _read(name: str, x: Any) -> Any:
    """The Python number that a NumPy scalar or an array of shape () holds; `x` if it is none, or its value is traced.

    So an option's dtype decides nothing, and the fastest paths take it.
    """
    if not errors.is_scalar(x):
        return x
    value = framework_of(x, name).ops.constant(x)
    if value is None:
        return x
    return float(value) if value.dtype.kind in "iufV" else value.item()  # V: bfloat16


def _called(name: str, names: Names) -> str:
    return {"class_weight": names.class_weight, "mask": names.mask}.get(name, name)


# Arrays.


_framework_of_type: dict[type, Framework] = {}  # a cache: the framework of a type never changes


def framework_of(x: object, name: str = "y_pred") -> Framework:
    """The framework that an array belongs to; lists and Python numbers are NumPy's.

    Exact types are cached, because a JAX tracer's type is no subclass of jax.Array although isinstance says so.
    """
    framework = _framework_of_type.get(type(x))
    if framework is not None:
        return framework
    for module, load in FRAMEWORKS.items():
        if sys.modules.get(module) is not None and _owns(module, load, x):
            if not is_traced_by_torch():  # torch.export warns of what changes, and torch.compile compiles anew for it
                _framework_of_type[type(x)] = load()
            return load()
    return errors.foreign_array(name, x, sorted(FRAMEWORKS))


def _owns(module: str, load: Callable[[], Framework], x: object) -> bool:
    try:
        return load().ops.owns(x)
    except (ImportError, AttributeError):  # another module of this name, or one that is not imported to its end
        if module in (of.__module__.partition(".")[0] for of in type(x).__mro__):
            raise
        return False


def common_framework(pred: Any, pred_name: str, others: Mapping[str, Any]) -> Framework:
    """The framework of the predictions; others are its own arrays, or NumPy arrays, lists and numbers to convert."""
    framework = framework_of(pred, pred_name)
    for name, x in others.items():
        if x is not None and type(x) not in (type(pred), float, int):
            other = framework_of(x, name)
            if other.name not in (framework.name, "numpy"):
                raise TypeError(
                    f"{name} is of {other.name} and {pred_name} of {framework.name}: arrays of two libraries; "
                    "convert one (NumPy arrays and lists are converted for you)"
                )
    return framework


def as_array(ops: ArrayOps, name: str, x: Any, like: Array | None = None) -> Array:
    """`x` as an array of real numbers of this framework."""
    plain = type(x) in ops.TYPES and x.dtype in ops.DTYPES and (like is None or type(like) in ops.TYPES)
    if plain and (ops.LAYOUT is None or (x.layout is ops.LAYOUT and not x.is_nested)):
        return x
    if x is None:
        raise TypeError(f"{name} is None; pass an array")
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"{name} is a NumPy masked array; pass its .data, and its mask inverted as mask=")
    entry = x
    while type(entry) in (list, tuple) and entry:
        entry = entry[0]
    if entry is not x:
        framework_of(entry, f"{name}[0]")
    try:
        array = ops.asarray(x, like)
    except Unreadable as error:
        kind, words = error.args
        raise kind(f"{name} {words}") from None
    except (TypeError, ValueError) as error:
        errors.no_array(name, x, error)
    errors.real_numbers(name, ops.dtype(array))
    return array


def dtype_of(ops: ArrayOps, x: Array) -> str:
    """NumPy's name of the dtype."""
    return ops.DTYPES.get(x.dtype) or ops.dtype(x)


def compute_dtype(ops: ArrayOps, pred: Array) -> str:
    """The dtype of the computation and of the result."""
    return "float64" if dtype_of(ops, pred) == "float64" else "float32"


def number(
    ops: ArrayOps, name: str, x: Any, pred: Array, dtype: str, *, unit: bool = False, whole: bool = False
) -> Array:
    """Weights or a denominator as an array of this dtype; with `unit`, in any unit. `whole`: every weight counts."""
    if unit and not ops.owns(x) and ops.widest(pred) != "float64":  # JAX may lack it
        with numpy_ops.quiet():
            x = numpy_ops.cast(_near_one(numpy_ops, as_array(numpy_ops, name, x), dtype, whole), dtype)
    x = as_array(ops, name, x, pred)
    with ops.quiet():  # a number may be too large for it
        return ops.cast(_near_one(ops, x, dtype, whole) if unit else x, dtype)


def _any_unit(given: Mapping[str, Any]) -> bool:
    """Whether the result does not depend on the weights' unit."""
    return given["reduction"] == "mean_with_sample_weight" and given["normalizer"] is None


def _near_one(ops: ArrayOps, weight: Array, dtype: str, whole: bool) -> Array:
    """Weights of float64 that are to become float32, in a unit in which that neither underflows nor overflows."""
    if dtype == "float64" or dtype_of(ops, weight) != "float64":
        return weight
    values = ops.concrete(weight)
    if values is not None:
        unit = float(unit_of(numpy_ops, values, whole))
        return weight if unit == 1 else weight * unit
    return weight * unit_of(ops, weight, whole)


def divided(given: Mapping[str, Any], dtype: str) -> Mapping[str, Any]:
    """The options; weights that only float64 has are divided by the normalizer, in whose unit they are.

    Where their values are known, and nothing differentiates the normalizer.
    """
    if given["normalizer"] is None or given["reduction"] not in MEANS or dtype == "float64":
        return given
    lost = {}
    for name in ("sample_weight", "class_weight"):
        if given.get(name) is None:
            continue
        ops = framework_of(given[name], name).ops
        weight = as_array(ops, name, given[name])
        values = ops.concrete(weight)
        if values is None or values.dtype != np.float64:
            continue
        size = np.abs(values[np.isfinite(values) & (values != 0)])
        if size.size and (size.min() < _FLOAT32.tiny or size.max() > _FLOAT32.max):
            lost[name] = weight, values
    if not lost:  # before the normalizer is read: a program that is being compiled would be made for this number alone
        return given
    by = framework_of(given["normalizer"], "normalizer").ops.constant(given["normalizer"])
    if by is None or by.shape or not by:
        return given
    found, divisor = dict(given), float(by)
    for name, (weight, values) in lost.items():
        found["normalizer"] = 1.0
        if name == [*lost][-1]:
            found[name] = weight / divisor
        else:  # the other's share of the unit
            unit = float(unit_of(numpy_ops, values, True))
            found[name], divisor = weight * unit, divisor * unit
    return found


# The loss, its axis, and whether the target fits.


def rule_of(loss: Loss, given: Mapping[str, Any], other_rank: bool) -> tuple[Target, Rule]:
    """The kind of target and its rule. Where a loss takes labels and outcomes, labels have one axis less."""
    from_logits = given.get("from_logits") or "probabilities" not in loss.rules
    rules = loss.rules["logits" if from_logits else "probabilities"]
    kind: Target = ("labels" if other_rank else "outcomes") if len(rules) > 1 else next(iter(rules))
    return kind, loss.kinds[given["kind"]] if loss.kinds else rules[kind]


def _exchanged(r: Request) -> Request:
    """The request whose target is these predictions. Its dtype stays theirs."""
    ops, of_target = r.framework.ops, r.target
    dtype = dtype_of(ops, of_target)
    if not errors.is_float(dtype) or (dtype == "float64") != (r.dtype == "float64"):
        of_target = ops.cast(of_target, r.dtype)
    return r._replace(target=r.pred, pred=of_target)


def _axis(loss: Loss, target: Array, pred: Array, axis: Any, names: Names) -> int:
    rank = len(pred.shape)
    if type(axis) is int and -rank <= axis < rank:
        size = pred.shape[axis]
        if size is not None and size >= loss.outcomes:
            return axis % rank
    return errors.axis_of(tuple(target.shape), tuple(pred.shape), axis, names, at_least=loss.outcomes)


def _check_target(
    ops: ArrayOps, loss: Loss, kind: Target, arrays: tuple[Array, Array], axes: tuple[int | None, int], names: Names
) -> None:
    """Raises for a target of wrong shape or dtype. `axes`: the non-negative axis, and the axis as given."""
    target, pred = tuple(arrays[0].shape), tuple(arrays[1].shape)
    axis, given = axes
    if kind == "labels":
        expected = pred if axis is None else pred[:axis] + pred[axis + 1 :]
        if target != expected:
            errors.label_shape(target, expected, pred, given, names)
        errors.label_dtype(dtype_of(ops, arrays[0]), names)
    elif target != pred:
        errors.same_shape(target, pred, names, labels_fit=kind != "outcomes")


def held_to(ops: ArrayOps, name: str, x: Array, pred: Array, row: int | None, axes: list[int] | None = None) -> Array:
    """`x`, whose axes are those of `pred` without `row`, with a check at run time of sizes that are unknown before.

    `axes`: those to check; the others may broadcast.
    """
    if None not in tuple(x.shape) and None not in tuple(pred.shape):
        return x
    pred_axes = [axis for axis in range(len(pred.shape)) if axis != row]
    held = list(range(len(x.shape))) if axes is None else axes
    words = f"{name} and the predictions differ in sizes that were unknown until now, and nothing is broadcast"
    return ops.same_sizes(x, held, pred, [pred_axes[axis] for axis in held], words)


# Options, weights, masks and labels.


def options_of(
    ops: ArrayOps,
    loss: Loss,
    rule: Rule,
    given: Mapping[str, Any],
    predictions: tuple[Array, int | None, str],
    names: Names,
) -> dict[str, Any]:
    """The rule's keyword arguments; per-class arrays lie along the axis. `predictions`: array, axis, dtype."""
    options = {}
    for name in rule.options:
        if name not in given and name not in loss.options:
            continue  # the rule's own default
        x = given[name] if name in given else loss.options[name]
        if name in OF_LOGITS and (x is None or (type(x) is float and x == loss.options[name])):
            continue
        pred, axis, dtype = predictions
        if name in loss.per_class and x is not None and not (loss.scalar_per_class and isinstance(x, int | float)):
            x = number(ops, _called(name, names), x, pred, dtype, unit=loss.mass is not None and _any_unit(given))
            x = _per_class(ops, _called(name, names), x, (pred, axis), loss.scalar_per_class, names)
        elif name in NUMBERS and not isinstance(x, int | float):  # traced, or differentiated
            x = number(ops, name, x, pred, dtype)
        options[name] = x
    if "z_loss" in given and "z_loss" not in rule.options:
        errors.without_logits({name: given[name] for name in OF_LOGITS if name in given}, OF_LOGITS)
    return options


def constants(ops: ArrayOps, given: Mapping[str, Any], options: Mapping[str, Any]) -> tuple[str, ...]:
    """The arrays among the options that are NumPy's or lists: nothing differentiates them."""
    return tuple(x for x in PER_CLASS if options.get(x) is not None and not ops.owns(given.get(x)))


def in_arrays(options: Mapping[str, Any]) -> str:
    """Why the options are not all known; "" if they are."""
    arrays = [x for x, of in options.items() if type(of) is not float and x in NUMBERS and not isinstance(of, int)]
    return f"{' and '.join(arrays)} may change without compiling anew" if arrays else ""


def held_to_ranges(ops: ArrayOps, pred: Array, dtype: str, options: Mapping[str, Any]) -> Array:
    """The predictions; NaN if an option whose value is traced is out of its range."""
    for name, x in options.items():
        of_one = name == "alpha" and "apply_class_balancing" in options
        if type(x) is not float and (of_one or name in NUMBERS) and not isinstance(x, int):
            low, high, _ = FRACTION if of_one else NUMBERS[name]
            pred = pred if errors.is_float(dtype_of(ops, pred)) else ops.cast(pred, dtype)
            pred = nan_unless(ops, (x >= low) & (x <= high), pred)
    return pred


def _per_class(
    ops: ArrayOps, name: str, x: Array, along: tuple[Array, int | None], scalar: bool, names: Names
) -> Array:
    """`x` of shape (C,) reshaped to lie along an axis of the predictions; one number passes where `scalar` says so."""
    pred, axis = along
    shape, of_pred = ops.shape(x), ops.shape(pred)
    if scalar and not shape:
        return x
    if axis is None or len(shape) != 1 or not errors.agree(shape, (of_pred[axis],)):
        errors.per_class_shape(name, shape, of_pred, axis, names, scalar=scalar)
    assert axis is not None
    x = ops.reshape(x, tuple(-1 if i == axis else 1 for i in range(len(of_pred))))
    return held_to(ops, name, x, pred, None, [axis])


def with_labels(r: Request, y_true: Any, given: Mapping[str, Any], names: Names, classes: int) -> Request:
    """The weighted request with labels cast to indices, and without those to ignore. `classes`: 0 if not known."""
    ops = r.framework.ops
    dtype = dtype_of(ops, r.target)
    ignored = given.get("ignore_class")
    if ignored is not None and not errors.representable(ignored, dtype):
        ignored = None
    readable = ops.concrete(y_true)
    in_range = readable is not None and errors.all_in_range(readable, classes)
    if in_range and ignored is not None and not 0 <= ignored < classes:
        ignored = None  # no label has this value
    # Wide enough that no label wraps round to a class. Large unsigned labels become negative, which is out of range.
    wide = "int64" if dtype in ("int64", "uint64") else "int32"
    target = r.target if dtype == wide else ops.cast(r.target, wide)
    if ignored is not None:
        r = counting(r, target != ignored)
    if readable is not None and classes and not in_range:
        valid = None if r.valid is None else ops.concrete(r.valid)
        if r.valid is None or valid is not None:  # then it is known which labels count
            errors.labels_in_range(readable, classes, valid, names)
    if r.valid is not None:
        target = neutralise(ops, target, r.valid, None, 0)
    return r if target is r.target else r._replace(target=target)


def with_weights(r: Request, given: Mapping[str, Any], names: Names) -> Request:
    """The request with weights, mask and denominator."""
    ops = r.framework.ops
    weight, mask, normalizer = given["sample_weight"], given["mask"], given["normalizer"]
    if weight is not None:
        whole = mask is None and given.get("ignore_class") is None
        weight = number(ops, "sample_weight", weight, r.pred, r.dtype, unit=_any_unit(given), whole=whole)
        r = weighted(r, _per_sample(ops, "sample_weight", weight, r.pred, r.axis))
    if mask is not None:
        mask = _per_sample(ops, names.mask, as_array(ops, names.mask, mask, r.pred), r.pred, r.axis)
        r = counting(r, ops.cast(mask, "bool"))
    if normalizer is not None:
        normalizer = number(ops, "normalizer", normalizer, r.pred, r.dtype)
        errors.scalar("normalizer", ops.shape(normalizer))
        r = r._replace(normalizer=normalizer)
    return r


def _refuse_outside(r: Request, found: Array, names: Names) -> None:
    """Raises for the first number outside the rule's domains, if it can be read.

    It has made the result NaN. So the arrays need not be looked at where the result is read and is another number.
    """
    ops = r.framework.ops
    result, valid = ops.concrete(found), None if r.valid is None else ops.concrete(r.valid)
    if (result is not None and not errors.has_nan(result)) or (valid is None and r.valid is not None):
        return
    for name, x, domain in zip((names.target, names.pred), (r.target, r.pred), r.rule.domains, strict=True):
        values = None if domain == "anywhere" else ops.concrete(x)
        if values is not None:
            limits, samples = (domain, rounding(ops.dtype(x))), (r.axis, valid)
            errors.in_domain(name, values, limits, samples, "logits" in r.loss.rules, names)


def _per_sample(ops: ArrayOps, name: str, x: Array, pred: Array, row: int | None) -> Array:
    """`x` reshaped to broadcast against the losses of the samples: their shape, its leading axes, or a scalar."""
    shape = ops.shape(x)
    sample_shape: Shape = tuple(size for axis, size in enumerate(ops.shape(pred)) if axis != row)
    leading = shape
    while 1 < len(leading) <= len(sample_shape) and leading[-1] == 1:
        if errors.agree(leading, sample_shape[: len(leading)]):
            break
        leading = leading[:-1]
    if len(shape) > len(sample_shape) or not errors.agree(leading, sample_shape[: len(leading)]):
        errors.per_sample_shape(name, shape, sample_shape)
    for _ in range(len(sample_shape) - len(shape) if shape else 0):
        x = ops.expand_dims(x, len(ops.shape(x)))
    # Sizes of 1 after the first axis broadcast over whole rows.
    return held_to(ops, name, x, pred, row, [i for i, size in enumerate(ops.shape(x)) if i == 0 or size != 1])
