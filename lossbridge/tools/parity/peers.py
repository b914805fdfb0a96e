"""The functions of other libraries, compared with `lossbridge.compat` and with the registry's conventions.

`calls` lists what to call, from the registry alone: each function with each option. `problem` makes arrays for a call,
`runner` makes the call with our function or the library's own, and `outcome` compares both for the parity command. The
tests compare with 50 exact digits instead.
"""

from __future__ import annotations

import functools
import importlib
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from lossbridge.compat.deviations import DEVIATIONS
from lossbridge.conventions import PEERS, Convention, Peer
from lossbridge.frameworks import FRAMEWORKS
from lossbridge.frameworks.framework import Framework
from lossbridge.tools.diagnosis.batch import WEIGHTS, Array, Batch, Quantity
from lossbridge.tools.diagnosis.calls import option
from lossbridge.tools.diagnosis.evaluate import arrays as convention_arrays
from lossbridge.tools.diagnosis.evaluate import scalars, scale, weights
from lossbridge.tools.diagnosis.expression import in_order, our_function
from lossbridge.tools.parity.check import Outcome, spacing
from lossbridge.tools.processes import installed

_OTHERS = [peer for peer in PEERS if peer.library != "lossbridge"]

# The value that is tried for options that take any, by the convention's field.
_VALUES: Mapping[str, Any] = {"label_smoothing": 0.1, "alpha": 0.6, "gamma": 1.0, "base": 2.0, "axis": 1}
_IGNORED = -1  # the label to ignore
_PROBLEMS = 5  # how many are compared for each call
ULPS = 8  # how far ours may be from the library's result, unless it is nearer to the exact one
BY_CONVENTION = "by the convention"  # the mode of a check that has no library's result to compare with
_MODULES = {
    "keras": ("keras.losses",),
    "torch": ("torch.nn.functional",),
    "optax": ("optax.losses",),
    "sklearn": ("sklearn.metrics",),
    "scipy": ("scipy.stats", "scipy.special"),
}


@dataclass(frozen=True)
class Call:
    """A function with options, and the convention that the registry states for them."""

    peer: Peer
    convention: Convention
    options: Mapping[str, Any] = field(default_factory=dict)  # "class_weight" and "sample_weight" stand for the arrays
    rank: int = 2
    ignored: int | None = None

    @property
    def name(self) -> str:
        options = [f"{key}={value!r}" for key, value in self.options.items()]
        return ", ".join([*(["images"] if self.rank > 2 else []), *options]) or "defaults"


@dataclass(frozen=True)
class Problem:
    """Arrays for a call. float32 represents the predictions and weights exactly."""

    target: Array | None
    pred: Array
    class_weight: Array
    sample_weight: Array


class _Choice(NamedTuple):
    """A field of the convention set to a value, and the option that sets it: "reduction='sum'"."""

    field: str
    value: Any
    text: str


def calls(peer: Peer) -> Iterator[Call]:
    """With the defaults, with each option at each of its values, and with all options at once."""
    single = [choice for field in peer.options for choice in _choices(peer, field)]
    together = list({choice.field: choice for choice in single}.values())
    for choices in [[], *([choice] for choice in single), *([together] if len(together) > 1 else [])]:
        yield _call(peer, choices)
    if peer.convention.axis == 1:
        yield replace(_call(peer, []), rank=3)


def _choices(peer: Peer, field: str) -> Iterator[_Choice]:
    texts, default = peer.options[field], getattr(peer.convention, field)
    if isinstance(texts, str):
        yield _Choice(field, _VALUES[field], texts.format(_VALUES[field]))
        return
    for value, text in texts.items():
        if field == "left_out" or value != default:
            yield _Choice(field, value, text.format(ignored=_IGNORED))


def _call(peer: Peer, choices: Sequence[_Choice]) -> Call:
    fields = {choice.field: choice.value for choice in choices}
    c = peer.convention.activated(fields.pop("activation", peer.convention.activation))
    options = {name: value for choice in choices for name, value in option(choice.text).items()}
    rank = 3 if fields.get("axis") == 1 and peer.library != "scipy" else 2
    ignored = _IGNORED if "left_out" in fields else None
    return Call(peer, replace(c, **fields), options, rank, ignored)


def all_calls() -> list[Call]:
    """The calls of every function of another library."""
    return [call for peer in _OTHERS for call in calls(peer)]


def libraries() -> list[str]:
    return list(dict.fromkeys(peer.library for peer in _OTHERS))


def names() -> list[str]:
    """What --loss may name: a library, or a function."""
    return list(dict.fromkeys([*libraries(), *(peer.name for peer in _OTHERS)]))


def selected(peer: Peer, names: Sequence[str]) -> bool:
    """Whether the function or its library is named; true if none is."""
    return not names or peer.name in names or peer.library in names


# Arrays.


def problem(call: Call, rng: np.random.Generator, *, scale: float = 2.0) -> Problem:
    """Random arrays of the kind that the function takes. `scale`: the standard deviation of the logits."""
    c, targets = call.convention, call.peer.targets[0]
    vector = "events" in call.peer.targets and call.peer.library == "sklearn"
    shape = (5,) if vector else (5, 4, 3) if call.rank == 3 else (5, 4)
    axis = c.axis if len(shape) > 1 else 0
    per_sample = shape if vector else tuple(np.delete(shape, axis))

    def of_logits(activation: str, x: Array) -> Array:
        """An array that the activation makes a distribution, or outcomes."""
        if activation in ("softmax", "sigmoid"):
            return x
        if "binary" in c.cost:
            p = 1 / (1 + np.exp(-x))
        else:
            p = np.exp(x - x.max(axis, keepdims=True))
            p = p / p.sum(axis, keepdims=True)
        return np.log(p) if activation == "exp" else p

    def rounded(x: Array) -> Array:
        return x.astype(np.float32)

    pred = rounded(of_logits(c.activation, rng.normal(size=shape) * scale))
    target: Array | None
    if targets == "labels":
        target = rng.integers(0, shape[axis], per_sample)
        if call.ignored is not None:
            target.flat[0] = call.ignored
    elif targets == "none":
        target = None
    elif call.peer.library == "sklearn":  # it takes outcomes of 0 and 1 only
        target = rng.integers(0, 2, shape)
        target[:2] = 0, 1
    else:
        target = rounded(of_logits(c.target_activation, rng.normal(size=shape) * 2))
    return Problem(target, pred, rounded(rng.random(shape[axis]) + 0.5), rounded(rng.random(per_sample) + 0.5))


# The functions.


@functools.cache
def own_function(library: str, function: str) -> Callable[..., Any] | None:
    """The library's function; None where the library is not installed, or no longer has it."""
    if not installed(library):
        return None
    modules = [importlib.import_module(name) for name in _MODULES[library]]
    return next((getattr(module, function) for module in modules if hasattr(module, function)), None)


def missing(names: Sequence[str] = ()) -> list[str]:
    """The libraries that are not installed, of those that are named, or of all if none is."""
    named = {name.partition(".")[0] for name in names} or set(_MODULES)
    return [library for library in _MODULES if library in named and not installed(library)]


def home(library: str) -> Framework:
    """The backend whose arrays the library's own functions take."""
    if library == "keras":
        import keras

        return FRAMEWORKS[keras.config.backend()]()
    return FRAMEWORKS[{"torch": "torch", "optax": "jax"}.get(library, "numpy")]()


def runner(
    b: Framework,
    function: Callable[..., Any],
    call: Call,
    dtype: str,
    device: str = "cpu",
    *,
    differentiable: bool = True,
    compiled: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda function: function,
) -> Callable[[Problem], tuple[Array, Array | None]]:
    """The call as a function of a problem: its value, and the gradient of the value's sum for the predictions."""
    label_dtype = "int64" if b.name == "torch" else "int32"  # PyTorch's own functions take int64 only

    def placed(x: Array) -> Any:
        return b.place(x, label_dtype if x.dtype.kind in "iu" else dtype, device)

    def loss(pred: Any, target: Any, arrays: Mapping[str, Any]) -> Any:
        # Weights are copied, because Keras on PyTorch writes into them.
        options = {key: arrays[value] * 1 if value in arrays else value for key, value in call.options.items()}
        if call.peer.library == "sklearn":
            shape = b.shape(pred)
            options["labels"] = list(range(shape[1] or 0 if len(shape) > 1 else 2))
        positional = in_order(call.peer, target, pred)
        if not call.peer.is_class:
            return function(*positional, **options)
        made = {key: value for key, value in options.items() if key != "sample_weight"} | {"dtype": dtype}
        return function(**made)(*positional, options.get("sample_weight"))

    def both(pred: Any, *others: Any) -> Any:
        if not differentiable:
            return loss(pred, *others), None
        return b.value_and_grad(lambda pred: loss(pred, *others), pred)

    run = compiled(both)

    def evaluate(problem: Problem) -> tuple[Array, Array | None]:
        with b.scope(dtype, device), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about functions that libraries have renamed
            target = None if problem.target is None else placed(problem.target)
            weights = {name: placed(getattr(problem, name)) for name in WEIGHTS}
            value, gradient = run(placed(problem.pred), target, weights)
            return np.asarray(b.to_numpy(value)), None if gradient is None else b.to_numpy(gradient)

    return evaluate


# The comparison.


def by_convention(call: Call, arrays: Problem) -> tuple[Array, Array, Array]:
    """The registry's convention in float64: value, gradient, and the size at which the gradient's ULP are counted."""
    c, pred = call.convention.resolved(float(np.finfo(np.float32).eps)), arrays.pred
    target = pred if arrays.target is None else arrays.target
    batch = Batch(target, pred, arrays.class_weight, arrays.sample_weight, None, call.ignored)
    rows, axis = batch.rows(c.axis), c.axis if pred.ndim > 1 else 0
    returns: Quantity = "samples" if call.peer.returns == "columns" else call.peer.returns
    if returns == "scalar":
        value, factor = scalars(batch, [c])[0], scale(c, batch, "gradient")
    else:
        factor = scale(c, batch, returns)
        value = convention_arrays(batch, c, returns, slice(None)) * factor
        value = value.reshape(np.delete(pred.shape, axis) if returns == "samples" else pred.shape)
    gradient = convention_arrays(batch, c, "gradient", slice(None)) * factor
    sizes = np.abs(gradient)
    if c.activation in ("softmax", "sigmoid"):  # the gradient is p − t, and t is rounded too
        sizes = np.maximum(sizes, np.abs(rows.target * factor * weights(c, rows)[:, None]))
    sizes = np.broadcast_to(sizes.max(1, keepdims=True), sizes.shape)

    def as_pred(x: Array) -> Array:
        return np.moveaxis(x.reshape(*np.delete(pred.shape, axis), -1), -1, axis).reshape(pred.shape)

    return np.asarray(value), as_pred(gradient), as_pred(sizes)


def outcome(b: Framework, call: Call, device: str = "cpu") -> Outcome:
    """Compares our function with the library's own, which runs on the CPU, on a few float32 problems.

    Where ours is more than `ULPS` from the library's result, it must be nearer to the library's float64 result than the
    library's float32 result is, and its distance from the float64 result counts. Without the library, the convention's
    float64 result is used, and the mode says so.
    """
    name, mode = (call.peer.library, call.peer.function), "eager"
    try:
        ours, theirs, exactly = runner(b, our_function(*name), call, "float32", device), None, None
        own, own_backend = own_function(*name), home(name[0])
        if own is not None and compared(call, own_backend.name):
            differentiable = own_backend.name != "numpy"
            theirs = runner(own_backend, own, call, "float32", differentiable=differentiable)
            exactly = runner(own_backend, own, call, "float64", differentiable=differentiable)
        else:
            mode = BY_CONVENTION
        worst, faults = np.zeros((2, 2)), []
        least = 1.0 if call.convention.activation == "none" else 0.0  # near p = 1, p is rounded as 1 is
        for seed in range(_PROBLEMS):
            arrays = problem(call, np.random.default_rng(seed))
            *exact, sizes = by_convention(call, arrays)
            found, other = ours(arrays), (None, None) if theirs is None else theirs(arrays)
            if exactly is not None:
                value, gradient = exactly(arrays)
                exact = [value, finite_differences(exactly, arrays) if gradient is None else gradient]
            for i, size in enumerate((np.maximum(np.abs(exact[0]), least), sizes)):
                distance, relative, fault = _distance(found[i], other[i], exact[i], size)
                worst[i] = np.maximum(worst[i], (distance, relative))
                faults += [f"{('value', 'gradient')[i]} {fault}"] if fault else []
    except Exception as error:
        fault = f"{type(error).__name__}: {error}".splitlines()[0]
        return Outcome(call.peer.name, call.name, mode, "float32", fault=fault)
    (value_ulp, value_relative), (gradient_ulp, gradient_relative) = worst.tolist()
    errors = value_ulp, value_relative, gradient_ulp, gradient_relative
    return Outcome(call.peer.name, call.name, mode, "float32", *errors, fault="; ".join(faults[:2]))


def finite_differences(function: Callable[[Problem], tuple[Array, Array | None]], arrays: Problem) -> Array:
    """The gradient of a function of probabilities, to 8 digits, from its values in float64."""
    gradient = np.empty(arrays.pred.shape)
    for index in np.ndindex(*gradient.shape):
        p = abs(float(arrays.pred[index]))
        values, step = [], 1e-4 * max(min(p, abs(1 - p)), 1e-6)  # near 0 and 1 the curvature is large
        for sign in (1, -1):
            pred = arrays.pred.astype(np.float64)
            pred[index] += sign * step
            values.append(function(replace(arrays, pred=pred))[0].sum())
        gradient[index] = (values[0] - values[1]) / (2 * step)
    return gradient


def _distance(ours: Array | None, theirs: Array | None, exact: Array, size: Array) -> tuple[float, float, str]:
    """The largest distance, in ULP at `size` and relative to it; and what is wrong, or an empty text."""
    assert ours is not None
    theirs = exact if theirs is None else theirs
    if ours.shape != exact.shape or theirs.shape != exact.shape:
        return math.inf, math.inf, f"has shape {ours.shape}, the library's {theirs.shape}"
    unit = spacing(size, "float32")
    with np.errstate(invalid="ignore"):
        off = np.where(ours == theirs, 0.0, np.abs(ours - theirs.astype(np.float64)) / unit)
        from_exact = np.where(ours == exact, 0.0, np.abs(ours - exact) / unit)
        as_near = from_exact <= np.abs(theirs - exact) / unit
    error = np.where(off <= ULPS, off, from_exact)
    wrong = ~((off <= ULPS) | as_near)
    where = ""
    if wrong.any():
        index = tuple(int(i) for i in np.argwhere(wrong)[0])
        where = f"{ours[index]:.9g}{f' at {index}' if index else ''}, the library's {theirs[index]:.9g}"
    relative = np.divide(error * unit, size, out=np.zeros_like(error), where=size > 0)
    return float(error.max(initial=0.0)), float(relative.max(initial=0.0)), where


def compared(call: Call, backend: str) -> bool:
    """Whether the call can be compared: no listed deviation of the library on this backend concerns its options."""
    of_the_call = [d for d in DEVIATIONS if d.always and call.peer.name in (d.function, *d.also)]
    return all(d.of_theirs(backend) == d.ours for d in of_the_call if set(d.options) <= set(call.options))
