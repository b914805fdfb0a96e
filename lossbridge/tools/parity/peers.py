"""Each library's functions beside `lossbridge.compat` and the registry's conventions, an option at a time.

`calls` lists what there is to call, from the registry alone; `problem` makes arrays for a call, and `runner` makes it,
of our function or of the library's own. `outcome` judges both for the parity command; the tests judge by 50 digits.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from lossbridge.backend import BACKENDS, Backend
from lossbridge.compat.deviations import DEVIATIONS
from lossbridge.conventions import PEERS, Convention, Peer
from lossbridge.tools.diagnosis.evaluate import Batch, Quantity, scalars, scale, weights
from lossbridge.tools.diagnosis.evaluate import arrays as convention_arrays
from lossbridge.tools.parity.check import Outcome, spacing

Array = np.ndarray

# Values to try of options that take any: a field of Convention, and its value.
_VALUES: Mapping[str, Any] = {"label_smoothing": 0.1, "alpha": 0.6, "gamma": 1.0, "base": 2.0, "axis": 1}
_IGNORED = -1  # the label to leave out
ULPS = 8  # in units in the last place: as near to the library's own as this, or nearer to the exact value
BY_CONVENTION = "by the convention"  # the mode of what no library judges
_MODULES = {
    "keras": ("keras.losses",),
    "torch": ("torch.nn.functional",),
    "optax": ("optax.losses",),
    "sklearn": ("sklearn.metrics",),
    "scipy": ("scipy.stats", "scipy.special"),
}


@dataclass(frozen=True)
class Call:
    """A function with options, and the convention that the registry gives them."""

    peer: Peer
    convention: Convention
    options: Mapping[str, Any] = field(default_factory=dict)  # "class_weight" and "sample_weight" stand for the arrays
    rank: int = 2
    ignored: int | None = None

    @property
    def name(self) -> str:
        said = [f"{key}={value!r}" for key, value in self.options.items()]
        return ", ".join([*(["images"] if self.rank > 2 else []), *said]) or "defaults"


@dataclass(frozen=True)
class Problem:
    """Arrays for a call. Predictions and weights are such as float32 holds."""

    target: Array | None
    pred: Array
    class_weight: Array
    sample_weight: Array


def calls(peer: Peer) -> Iterator[Call]:
    """With the defaults, with each option at each of its values, and with all of them at once."""
    single = [variant for name in peer.options for variant in _values(peer, name)]
    together: dict[str, tuple[str, Any, str]] = {name: (name, value, text) for name, value, text in single}
    chosen = [[], *([one] for one in single), *([list(together.values())] if len(together) > 1 else [])]
    for some in chosen:
        yield _call(peer, some)
    if peer.convention.axis == 1:
        yield replace(_call(peer, []), rank=3)


def _values(peer: Peer, name: str) -> Iterator[tuple[str, Any, str]]:
    known, default = peer.options[name], getattr(peer.convention, name)
    if isinstance(known, str):
        yield name, _VALUES[name], known.format(_VALUES[name])
        return
    for value, text in known.items():
        if name == "left_out" or value != default:
            yield name, value, text.format(ignored=_IGNORED)


def _call(peer: Peer, chosen: Sequence[tuple[str, Any, str]]) -> Call:
    fields = {name: value for name, value, _ in chosen}
    c = peer.convention.activated(fields.pop("activation", peer.convention.activation))
    options: dict[str, Any] = {}
    for _, _, text in chosen:
        key, _, value = text.partition("=")
        options[key] = value if value.endswith("_weight") else ast.literal_eval(value)
    rank = 3 if fields.get("axis") == 1 and peer.library != "scipy" else 2
    ignored = _IGNORED if "left_out" in fields else None
    return Call(peer, replace(c, **fields), options, rank, ignored)


def all_calls() -> list[Call]:
    """Of every function that another library has."""
    return [call for peer in PEERS if peer.library != "lossbridge" for call in calls(peer)]


def wanted(peer: Peer, names: Sequence[str]) -> bool:
    """Whether the function is one of those named, by its name or its library's; all are, if none is named."""
    return not names or peer.name in names or peer.library in names


# Arrays.


def problem(call: Call, rng: np.random.Generator, *, rows: int = 5, classes: int = 4, scale: float = 2.0) -> Problem:
    """`scale`: of the logits that predictions are made of."""
    c, targets = call.convention, call.peer.targets[0]
    vector = "events" in call.peer.targets and call.peer.library == "sklearn"
    shape = (rows,) if vector else (rows, classes, 3) if call.rank == 3 else (rows, classes)
    axis = c.axis if len(shape) > 1 else 0
    per_sample = shape if vector else tuple(np.delete(shape, axis))

    def of_logits(activation: str, x: Array) -> Array:
        """What becomes a distribution, or outcomes, under the activation."""
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
    elif call.peer.library == "sklearn":  # which takes outcomes alone
        target = rng.integers(0, 2, shape)
        target[:2] = 0, 1
    else:
        target = rounded(of_logits(c.target_activation, rng.normal(size=shape) * 2))
    return Problem(target, pred, rounded(rng.random(shape[axis]) + 0.5), rounded(rng.random(per_sample) + 0.5))


# The functions.


@functools.cache
def own_function(library: str, function: str) -> Callable[..., Any] | None:
    """The library's; None where it is not installed, or has it no more."""
    if importlib.util.find_spec(library) is None:
        return None
    modules = [importlib.import_module(name) for name in _MODULES[library]]
    return next((getattr(module, function) for module in modules if hasattr(module, function)), None)


def missing(names: Sequence[str] = ()) -> list[str]:
    """The libraries that are not installed, of those whose names, or functions, are given; of all, if none is."""
    asked = {name.partition(".")[0] for name in names} or set(_MODULES)
    return [library for library in _MODULES if library in asked and importlib.util.find_spec(library) is None]


def keras_backend(backend: str) -> str:
    """Keras' own, beside arrays of this backend. On NumPy it has no gradients, and clips what others do not."""
    if backend != "numpy":
        return backend
    return next((name for name in ("tensorflow", "torch", "jax") if importlib.util.find_spec(name)), "numpy")


def our_function(library: str, function: str) -> Callable[..., Any]:
    return getattr(importlib.import_module(f"lossbridge.compat.{library}"), function)


def home(library: str) -> Backend:
    """The backend that the library's own functions compute on."""
    if library == "keras":
        import keras

        return BACKENDS[keras.config.backend()]()
    return BACKENDS[{"torch": "torch", "optax": "jax"}.get(library, "numpy")]()


def runner(
    b: Backend,
    function: Callable[..., Any],
    call: Call,
    dtype: str,
    device: str = "cpu",
    *,
    differentiable: bool = True,
    compiled: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda function: function,
) -> Callable[[Problem], tuple[Array, Array | None]]:
    """Makes the call on arrays of `b`: the value, and the gradient of its sum for the predictions."""
    label_dtype = "int64" if b.name == "torch" else "int32"  # PyTorch's own functions take no other

    def placed(x: Array) -> Any:
        return b.place(x, label_dtype if x.dtype.kind in "iu" else dtype, device)

    def loss(pred: Any, target: Any, arrays: Mapping[str, Any]) -> Any:
        # Copies, because Keras on PyTorch writes into the weights.
        options = {key: arrays[value] * 1 if value in arrays else value for key, value in call.options.items()}
        if call.peer.library == "sklearn":
            shape = b.shape(pred)
            options["labels"] = list(range(shape[1] or 0 if len(shape) > 1 else 2))
        positional = [pred] if target is None else [target, pred]
        if call.peer.arguments[0] == "pred":
            positional.reverse()
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
            warnings.simplefilter("ignore")  # of functions that libraries have renamed
            target = None if problem.target is None else placed(problem.target)
            weights = {name: placed(getattr(problem, name)) for name in ("class_weight", "sample_weight")}
            value, gradient = run(placed(problem.pred), target, weights)
            return np.asarray(b.to_numpy(value)), None if gradient is None else b.to_numpy(gradient)

    return evaluate


# Judgement.


def by_convention(call: Call, arrays: Problem) -> tuple[Array, Array, Array]:
    """What the registry's convention gives in float64: the value, the gradient, and the size of what it is made of."""
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
    slopes = convention_arrays(batch, c, "gradient", slice(None)) * factor
    sizes = np.abs(slopes)
    if c.activation in ("softmax", "sigmoid"):  # the difference of shares and targets
        sizes = np.maximum(sizes, np.abs(rows.target * factor * weights(c, rows)[:, None]))
    sizes = np.broadcast_to(sizes.max(1, keepdims=True), sizes.shape)

    def as_pred(x: Array) -> Array:
        return np.moveaxis(x.reshape(*np.delete(pred.shape, axis), -1), -1, axis).reshape(pred.shape)

    return np.asarray(value), as_pred(slopes), as_pred(sizes)


def outcome(b: Backend, call: Call, device: str = "cpu", *, problems: int = 5) -> Outcome:
    """Ours beside the library's own, on the CPU, on a few float32 problems: the worst distance, and what is wrong.

    Where ours is further than `ULPS` from the library's, it has to be nearer to what the library itself gives in
    float64, and its distance from that counts. Where there is no library to compare with, the convention is the judge,
    and stands as the mode.
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
        unit = 1.0 if call.convention.activation == "none" else 0.0  # near p = 1 the rounding of p is that of 1
        for seed in range(problems):
            arrays = problem(call, np.random.default_rng(seed))
            *exact, sizes = by_convention(call, arrays)
            found, other = ours(arrays), (None, None) if theirs is None else theirs(arrays)
            if exactly is not None:
                value, slope = exactly(arrays)
                exact = [value, differences(exactly, arrays) if slope is None else slope]
            for i, size in enumerate((np.maximum(np.abs(exact[0]), unit), sizes)):
                distance, relative, fault = _distance(found[i], other[i], exact[i], size)
                worst[i] = np.maximum(worst[i], (distance, relative))
                faults += [f"{('value', 'gradient')[i]} {fault}"] if fault else []
    except Exception as error:
        fault = f"{type(error).__name__}: {error}".splitlines()[0]
        return Outcome(call.peer.name, call.name, mode, "float32", fault=fault)
    return Outcome(
        call.peer.name,
        call.name,
        mode,
        "float32",
        value_ulp=float(worst[0, 0]),
        value_relative=float(worst[0, 1]),
        gradient_ulp=float(worst[1, 0]),
        gradient_relative=float(worst[1, 1]),
        fault="; ".join(faults[:2]),
    )


def differences(function: Callable[[Problem], tuple[Array, Array | None]], arrays: Problem) -> Array:
    """The gradient of a function of probabilities that gives none, to 8 digits, from its values in float64."""
    slope = np.empty(arrays.pred.shape)
    for index in np.ndindex(*slope.shape):
        p = abs(float(arrays.pred[index]))
        sides, step = [], 1e-4 * max(min(p, abs(1 - p)), 1e-6)  # costs bend near 0 and near 1
        for sign in (1, -1):
            pred = arrays.pred.astype(np.float64)
            pred[index] += sign * step
            sides.append(function(replace(arrays, pred=pred))[0].sum())
        slope[index] = (sides[0] - sides[1]) / (2 * step)
    return slope


def _distance(ours: Array | None, theirs: Array | None, exact: Array, size: Array) -> tuple[float, float, str]:
    """The worst, in units in the last place at `size`, and relative to it; and what is wrong."""
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
    """Whether the table of departures lets the call be compared with the library's own on this backend of its."""
    of_the_call = [d for d in DEVIATIONS if d.always and call.peer.name in (d.function, *d.also)]
    return all(d.of_theirs(backend) == d.ours for d in of_the_call if set(d.options) <= set(call.options))
