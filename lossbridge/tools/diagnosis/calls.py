"""The call of a library's function that gives a convention's number, as text.

A call is put together from a convention, and then made on the batch with `lossbridge.compat`: what is printed gives
the number.
"""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from lossbridge import formulas
from lossbridge.backends import numpy as b
from lossbridge.conventions import PEERS, Convention, Peer
from lossbridge.tools.diagnosis.canonical import BINARY, DIVERGENCES, Setting
from lossbridge.tools.diagnosis.evaluate import Array, Batch, divisor, rounded, sides, whole

_ONE_ROW_OFF = 2e-5, 2e-6  # relative, absolute: of float32 against float64

# How each library writes what stands around a loss. NumPy's words go with the functions of scikit-learn and SciPy.
_WORDS: dict[str, dict[str, str]] = {
    "numpy": {
        "softmax": "scipy.special.softmax({x}, axis=-1)",
        "log_softmax": "scipy.special.log_softmax({x}, axis=-1)",
        "sigmoid": "scipy.special.expit({x})",
        "log": "np.log({x})",
        "exp": "np.exp({x})",
        "clip": "np.clip({x}, {low}, {high})",
        "share": "{x} / {x}.sum(-1, keepdims=True)",
        "one_hot": "np.eye({classes})[{x}]",
        "cast": "{x}.astype('{dtype}').astype('float32')",
        "sum": "{x}.sum()",
        "mean": "{x}.mean()",
        "row sums": "{x}.sum(-1)",
        "row means": "{x}.mean(-1)",
    },
    "torch": {
        "softmax": "torch.softmax({x}, -1)",
        "log_softmax": "torch.log_softmax({x}, -1)",
        "sigmoid": "torch.sigmoid({x})",
        "log": "torch.log({x})",
        "exp": "torch.exp({x})",
        "clip": "torch.clamp({x}, {low}, {high})",
        "share": "{x} / {x}.sum(-1, keepdim=True)",
        "one_hot": "F.one_hot({x}, {classes}).to(y_pred.dtype)",
        "cast": "{x}.to(torch.{dtype}).to(y_pred.dtype)",
        "row sums": "{x}.sum(-1)",
        "row means": "{x}.mean(-1)",
    },
    "keras": {
        "softmax": "keras.ops.softmax({x})",
        "log_softmax": "keras.ops.log_softmax({x})",
        "sigmoid": "keras.ops.sigmoid({x})",
        "log": "keras.ops.log({x})",
        "exp": "keras.ops.exp({x})",
        "clip": "keras.ops.clip({x}, {low}, {high})",
        "share": "{x} / keras.ops.sum({x}, -1, keepdims=True)",
        "one_hot": "keras.ops.one_hot({x}, {classes})",
        "cast": "keras.ops.cast(keras.ops.cast({x}, '{dtype}'), 'float32')",
        "sum": "keras.ops.sum({x})",
        "mean": "keras.ops.mean({x})",
        "row sums": "keras.ops.sum({x}, -1)",
        "row means": "keras.ops.mean({x}, -1)",
    },
    "optax": {
        "softmax": "jax.nn.softmax({x})",
        "log_softmax": "jax.nn.log_softmax({x})",
        "sigmoid": "jax.nn.sigmoid({x})",
        "log": "jnp.log({x})",
        "exp": "jnp.exp({x})",
        "clip": "jnp.clip({x}, {low}, {high})",
        "share": "{x} / {x}.sum(-1, keepdims=True)",
        "one_hot": "jax.nn.one_hot({x}, {classes})",
        "cast": "{x}.astype('{dtype}').astype('float32')",
        "sum": "{x}.sum()",
        "mean": "{x}.mean()",
        "row sums": "{x}.sum(-1)",
        "row means": "{x}.mean(-1)",
    },
}
PREFIXES = {
    "lossbridge": "lb.",
    "keras": "keras.losses.",
    "torch": "F.",
    "optax": "optax.losses.",
    "sklearn": "sklearn.metrics.",
}

# The same, made.
_MADE: dict[str, Callable[..., Array]] = {
    "softmax": lambda x: b.exp(-formulas.softmax_costs(b, x, x.ndim - 1)),
    "log_softmax": lambda x: -formulas.softmax_costs(b, x, x.ndim - 1),
    "sigmoid": lambda x: formulas.sigmoid(b, x)[0],
    "log": np.log,
    "exp": np.exp,
    "clip": lambda x, low, high: np.clip(x, low, high),
    "share": lambda x: x / x.sum(-1, keepdims=True),
    "one_hot": lambda x, classes: np.eye(classes, dtype=np.float32)[x],
    "cast": lambda x, dtype: rounded(x, dtype).astype(np.float32),
    "sum": np.sum,
    "mean": np.mean,
    "row sums": lambda x: np.sum(x, -1),
    "row means": lambda x: np.mean(x, -1),
}

# (what the function does to y_pred, what the convention does): what to hand over in place of y_pred.
_HANDED: dict[tuple[str, str], tuple[str, ...]] = {
    ("none", "softmax"): ("softmax",),
    ("none", "sigmoid"): ("sigmoid",),
    ("none", "exp"): ("exp",),
    ("none", "softmax twice"): ("softmax", "softmax"),
    ("none", "sigmoid twice"): ("sigmoid", "sigmoid"),
    ("softmax", "softmax twice"): ("softmax",),
    ("softmax", "none"): ("log",),
    ("sigmoid", "sigmoid twice"): ("sigmoid",),
    ("exp", "none"): ("log",),
    ("exp", "softmax"): ("log_softmax",),
    ("exp", "softmax twice"): ("softmax", "log_softmax"),
}

# On TensorFlow Keras' losses take the logits that these functions of its leave behind.
_LEAVE_LOGITS = ("softmax", "sigmoid")

Word = tuple[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Call:
    """A function on y_true and y_pred as its words make them, and what is done to the result."""

    peer: Peer
    target: tuple[Word, ...]
    pred: tuple[Word, ...]
    swapped: bool
    options: Mapping[str, Any] = field(default_factory=dict)  # "class_weight" and "sample_weight" stand for the arrays
    reduced: str = ""  # a word for what is done to values
    divisor: float = 1.0
    base: float = math.e
    outcome: str = "loss"

    def text(self) -> str:
        """Empty where it would be too long to be read."""
        words = _WORDS.get(self.peer.library, _WORDS["numpy"])
        target, pred = ("y_pred", "y_true") if self.swapped else ("y_true", "y_pred")
        target, pred = _written(words, self.target, target), _written(words, self.pred, pred)
        if not (target and pred):
            return ""
        if self.peer.library == "torch" and "labels" in self.peer.targets and not self.target:
            target += ".long()"
        arguments = [pred] if self.peer.targets == ("none",) else [target, pred]
        if self.peer.arguments[0] == "pred":
            arguments.reverse()
        made = {name: value for name, value in self.options.items() if not (self.peer.is_class and name == _WEIGHT)}
        called = {name: value for name, value in self.options.items() if name not in made}
        if self.peer.is_class:
            text = f"{_name(self.peer)}({_keywords(made)})({', '.join([*arguments, *_keywords(called, split=True)])})"
        else:
            text = f"{_name(self.peer)}({', '.join([*arguments, *_keywords(made, split=True)])})"
        if self.reduced:
            text = words[self.reduced].format(x=text)
        if self.divisor != 1:
            text += f" / {self.divisor:.10g}" if self.divisor > 1 else f" * {1 / self.divisor:.10g}"
        if self.base != math.e and self.outcome != "perplexity":
            text += f" / math.log({self.base:g})"
        if self.outcome == "perplexity":
            return f"math.exp({text})"
        return text if self.outcome == "loss" else f"-({text})" if " / " in text else f"-{text}"

    def made(self, batch: Batch) -> Array:
        """The number, or the values, with the function of `lossbridge.compat`."""
        target, pred = (batch.y_pred, batch.y_true) if self.swapped else (batch.y_true, batch.y_pred)
        for name, given in self.target:
            target = _MADE[name](target, **given)
        for name, given in self.pred:
            pred = _MADE[name](pred, **given)
        options = {name: getattr(batch, x) if x in WEIGHTS else x for name, x in self.options.items()}
        arguments = [pred] if self.peer.targets == ("none",) else [target, pred]
        if self.peer.arguments[0] == "pred":
            arguments.reverse()
        function = function_of(self.peer)
        if self.peer.is_class:
            weight = options.pop(_WEIGHT, None)
            value = function(**options)(*arguments, weight)
        else:
            value = function(*arguments, **options)
        if self.reduced:
            value = _MADE[self.reduced](value)
        result = np.asarray(value, np.float64) / self.divisor
        if self.outcome == "perplexity":
            return np.exp(result)
        return result / math.log(self.base) * (-1 if self.outcome == "negated" else 1)


_WEIGHT = "sample_weight"
WEIGHTS = ("class_weight", _WEIGHT)


def _written(words: Mapping[str, str], made: Iterable[Word], x: str) -> str:
    for name, given in made:
        if name == "share" and "(" in x:
            return ""
        shown = {key: value if isinstance(value, str) else f"{value:.10g}" for key, value in given.items()}
        if name == "clip" and 0 < given["high"] < 1:
            shown["high"] = f"1 - {given['low']:.10g}"
        x = words[name].format(x=f"({x})" if name == "clip" and "/" in x else x, **shown)
    return x


def _keywords(options: Mapping[str, Any], *, split: bool = False) -> Any:
    def text(x: Any) -> str:
        return f"range({len(x)})" if isinstance(x, range) else x if x in WEIGHTS else repr(x)

    texts = [f"{name}={text(x)}" for name, x in options.items()]
    return texts if split else ", ".join(texts)


def _name(peer: Peer) -> str:
    if peer.function == "log_loss_before_1_5":
        return "lossbridge.compat.sklearn.log_loss_before_1_5"
    if peer.library == "scipy":
        return f"scipy.{'stats' if peer.function == 'entropy' else 'special'}.{peer.function}"
    return PREFIXES[peer.library] + peer.function


def function_of(peer: Peer) -> Callable[..., Any]:
    """Ours."""
    module = "lossbridge.losses" if peer.library == "lossbridge" else f"lossbridge.compat.{peer.library}"
    return getattr(importlib.import_module(module), peer.function)


def as_rows(batch: Batch) -> Batch:
    """The arrays that calls are made on: samples along one axis; and halves as float32, in which they are computed."""
    changed: dict[str, Any] = {}
    given = dict(batch.given)
    shape = batch.y_pred.shape
    for name in ("y_true", "y_pred", _WEIGHT):
        x = getattr(batch, name)
        if x is None:
            continue
        text = given.get(name, name)
        if x.dtype == np.float16:
            x, text = x.astype(np.float32), f"{text}.astype('float32')"
        if len(shape) > 2 and x.ndim < len(shape) - 1:  # a weight for several samples
            text = f"np.broadcast_to({text}{'[..., None]' * (len(shape) - 1 - x.ndim)}, {shape[:-1]})"
            x = np.broadcast_to(x.reshape(x.shape + (1,) * (len(shape) - 1 - x.ndim)), shape[:-1])
        if len(shape) > 2:
            form: tuple[int, ...] = (-1, shape[-1]) if x.ndim == len(shape) else (-1,)
            x, text = x.reshape(form), f"{text}.reshape({', '.join(map(str, form))})"
        changed[name] = x
        if text != name:
            given[name] = text
    return replace(batch, **changed, given=dict(sorted(given.items(), reverse=True)))


def texts(conventions: Iterable[Convention], batch: Batch, setting: Setting) -> dict[str, str]:
    """In each library the shortest call that gives what one of the conventions gives for this batch, if there is one.

    Of arrays as `as_rows` makes them. For a gradient, the calls of the losses.
    """
    if setting.quantity == "gradient":
        setting = replace(setting, quantity="scalar")
    rows = as_rows(batch)
    # Further batches may have weights, or something left out, where this one has none.
    weights: dict[str, Any] = {name: getattr(batch, name) is not None for name in WEIGHTS}
    mask, ignored = batch.mask is not None, batch.ignored is not None
    row_setting = replace(setting, rank=min(setting.rank, 2), mask=mask, ignored=ignored, **weights)
    found: dict[str, list[tuple[str, Call, Convention]]] = {}
    for c in conventions:
        c = c.but(dtype="exact") if c.dtype == batch.half else c  # what is a half is computed in float32 here
        used = c.but(**{name: getattr(c, name) and given for name, given in weights.items()})
        for peer in PEERS:
            for call in calls(peer, used, batch, rows, row_setting):
                found.setdefault(peer.library, []).append((call.text(), call, c))
    values: dict[Convention, Array] = {}
    shortest: dict[str, str] = {}
    for library, known in found.items():
        tried: set[str] = set()
        for text, call, c in sorted(known, key=lambda one: len(one[0])):
            if text in tried or not text or len(tried) > 8:
                continue
            tried.add(text)
            if c not in values:
                values[c] = whole(batch, c, setting.quantity)
            if _gives(call, rows, values[c]):
                shortest[library] = text
                break
    return shortest


def _gives(call: Call, batch: Batch, values: Array) -> bool:
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = call.made(batch)
    except (ValueError, TypeError, OverflowError, IndexError):
        return False  # the function refuses these arrays
    relative, absolute = _ONE_ROW_OFF
    return found.size == values.size and np.allclose(found.ravel(), values.ravel(), relative, absolute)


def calls(peer: Peer, c: Convention, batch: Batch, rows: Batch, setting: Setting) -> Iterator[Call]:
    """Those that the function's options, and a word around it, may bring to the convention.

    Of `rows`; what the sum is divided by is that of the batch as it is. `setting`: of the rows.
    """
    own = peer.convention.resolved(setting.machine_epsilon)
    costs = {own.cost, "cross-entropy"} if own.cost == "divergence" and setting.hard else {own.cost}
    if own.cost in ("focal", "binary focal"):
        costs.add("cross-entropy" if own.cost == "focal" else "binary")
    if c.cost not in costs or c.axis != -1 or c.dtype in ("float16", "bfloat16", "float32") or c.undefined != "zero":
        return
    if setting.labels and not {"labels", "distributions"} & set(peer.targets):
        return
    if not setting.labels and (peer.targets == ("labels",) or (peer.targets == ("none",) and c.cost != "entropy")):
        return
    if setting.events_only and (c.cost not in BINARY or "softmax" in c.activation):
        return
    outcomes = setting.pred_holds if c.swapped else setting.true_holds
    if peer.library == "keras" and c.cost in BINARY and outcomes != "probabilities":
        return  # on PyTorch Keras refuses such targets
    activations = peer.options.get("activation", {})
    for activation in dict.fromkeys([own.activation, *(activations if isinstance(activations, Mapping) else ())]):
        options: dict[str, Any] = {}
        if activation != own.activation:
            assert isinstance(activations, Mapping)
            options |= _option(activations[activation])
        pred = _pred(replace(own.activated(activation), cost=c.cost), c, peer, options)
        target = _target(own, c, peer, options, setting)
        if peer.library == "keras" and any(name in _LEAVE_LOGITS for name, _ in pred or ()):
            continue
        if pred is None or target is None or not _set(options, peer, own, c, rows, setting):
            continue
        if c.dtype != "exact":
            cast = ("cast", {"dtype": c.dtype.split()[0]})
            if cast[1]["dtype"] == "bfloat16" and peer.library in ("lossbridge", "sklearn", "scipy"):
                continue
            pred, target = (cast, *pred), target if setting.hard else (cast, *target)
        if peer.library == "scipy" and peer.function == "entropy":
            options["axis"] = -1
        if peer.library == "sklearn" and setting.labels and len(np.unique(rows.y_true)) < setting.classes:
            options["labels"] = range(setting.classes)
        scalar = setting.quantity == "scalar"
        found = _reduced(peer, own, c, batch, options) if scalar else _kept(peer, own, c, setting, options)
        if found is None:
            continue
        if "base" in peer.options and c.base != math.e:
            options["base"] = c.base
            found["base"] = math.e
        yield Call(peer, target, pred, c.swapped, options, outcome=c.outcome, **({"base": c.base} | found))


def _option(text: str) -> dict[str, Any]:
    """ "reduction='sum'" as a keyword and its value."""
    if not text:
        return {}
    name, _, value = text.partition("=")
    return {name: value if value in WEIGHTS else {"True": True, "False": False}.get(value, value.strip("'"))}


def _pred(own: Convention, c: Convention, peer: Peer, options: dict[str, Any]) -> tuple[Word, ...] | None:
    """What y_pred is made, so that activation, renormalisation and clipping are the convention's."""
    words: tuple[Word, ...] = ()
    if c.logarithm == "twice" or (c.logarithm == "missing" and own.activation != "exp"):
        return None
    if c.logarithm == "missing" and c.activation == "none":
        return words if _same_clip(own, c) else None
    wanted = c.activation
    if c.logarithm == "missing":  # it takes logarithms, and is given none
        return (("softmax" if "softmax" in wanted else "sigmoid", {}),) if _same_clip(own, c) else None
    if own.activation != wanted:
        handed = _HANDED.get((own.activation, wanted))
        if handed is None:
            return None
        words = tuple((name, {}) for name in handed)
        if own.activation == "softmax":  # of logarithms: it renormalises
            own = replace(own, renormalise="predictions")
    if _same_clip(own, c):
        return words
    clips = peer.options.get("clip", {})
    taken = "epsilon" in peer.options and own.renormalise == c.renormalise and own.clip_first == c.clip_first
    if taken and isinstance(clips, Mapping) and c.clip in clips and own.clip != "none":
        options["epsilon"] = 0 if c.clip == "none" else c.epsilon
        return words
    if own.clip != "none" or own.renormalise != "no" or c.clip_first or c.clip in ("floor", "added"):
        return None
    before: tuple[Word, ...] = ()
    if c.renormalise == "predictions":
        before = (("share", {}),)
    elif c.renormalise == "both":
        return None
    if c.clip != "none":
        if c.cost in DIVERGENCES:
            return None  # the targets would have to be clipped too
        before += (("clip", {"low": c.epsilon, "high": 1 if c.clip == "lower" else 1 - float(c.epsilon)}),)
    last = words[-1:] if words and words[-1][0] == "log" else ()
    return (*words[: len(words) - len(last)], *before, *last) if own.activation in ("none", "exp") else None


def _same_clip(own: Convention, c: Convention) -> bool:
    names = ("renormalise", "clip", "epsilon", "clip_first")
    return all(getattr(own, name) == getattr(c, name) for name in names)


def _target(
    own: Convention, c: Convention, peer: Peer, options: dict[str, Any], setting: Setting
) -> tuple[Word, ...] | None:
    words: tuple[Word, ...] = ()
    if setting.labels and "labels" not in peer.targets:
        words = (("one_hot", {"classes": setting.classes}),)
    if c.target_activation == own.target_activation:
        return words
    known = peer.options.get("target_activation", {})
    if isinstance(known, Mapping) and c.target_activation in known:
        options |= _option(known[c.target_activation])
        return words
    handed = _HANDED.get((own.target_activation, c.target_activation))
    return None if handed is None else (*words, *((name, {}) for name in handed))


def _set(options: dict[str, Any], peer: Peer, own: Convention, c: Convention, batch: Batch, setting: Setting) -> bool:
    """Whether the other fields can be set; they then are."""
    if setting.left_out and c.left_out != "kept":
        known = peer.options.get("left_out")
        text = None
        if isinstance(known, Mapping) and batch.mask is None:
            text = known.get(c.left_out, known.get("removed") if c.left_out == "zero" else None)
        if text is None:
            return False
        name, _, _ = text.partition("=")
        options[name] = batch.ignored
    if c.label_smoothing:
        if "label_smoothing" not in peer.options:
            return False
        outcomes = 2 if c.cost in BINARY else setting.classes
        whole = 1.0 if c.smoothing_over == "K" else outcomes / (outcomes - 1)
        options["label_smoothing"] = round(c.label_smoothing * whole, 10)
    for name in ("alpha", "gamma", "class_weight", "sample_weight"):
        wanted, known = getattr(c, name), peer.options.get(name)
        if wanted == getattr(own, name):
            continue
        if isinstance(known, Mapping) and wanted in known:
            options |= _option(known[wanted])
        elif isinstance(known, str):
            options[known.partition("=")[0]] = 1.0 if wanted is None else wanted
        else:
            return False
    return True


def _reduced(peer: Peer, own: Convention, c: Convention, batch: Batch, options: dict[str, Any]) -> dict[str, Any]:
    """What is done to the result to make it the number; sets the function's own option for it."""
    side = sides(c, batch)
    number = divisor(c, side, side.rows(-1))
    classes = batch.y_pred.shape[-1]
    events = batch.y_pred.ndim < 2
    if peer.returns == "scalar":
        known = peer.options.get("divisor", {})
        assert isinstance(known, Mapping)
        same = [c.divisor]
        if c.divisor == "samples":
            same += [] if c.class_weight or c.sample_weight else ["weights"]
            same += ["axis 0"] if batch.y_pred.ndim == 2 else ["elements"] if events else []
        counted = c.left_out == "zero" and "zero" not in peer.options.get("left_out", {"zero": ""})
        if counted or (c.divisor == "axis 0" and batch.y_pred.ndim > 2):
            same = []  # the function's own mean divides by another number
        for name in same:
            if name in known:
                options |= _option(known[name])
                return {}
        if "one" in known:
            options |= _option(known["one"])
            return {"divisor": number}
        if events:
            return {"divisor": number / len(batch.y_pred)}  # a mean over them
        options |= _option(known["classes"])  # a sum of means over the classes
        return {"divisor": number / classes}
    rows = own.divisor == "elements" and peer.returns == "samples"  # values are means over the classes
    natural = "elements" if peer.returns == "elements" or rows else "samples"
    if c.divisor == natural or (events and c.divisor == "samples"):
        return {"reduced": "mean"}
    return {"reduced": "sum", "divisor": number / classes if rows else number}


def _kept(
    peer: Peer, own: Convention, c: Convention, setting: Setting, options: dict[str, Any]
) -> dict[str, Any] | None:
    """What is done to the result to make it values a sample, or an element; None where it gives no such."""
    if peer.library == "sklearn":
        return None
    if peer.returns == "scalar":
        options["reduction"] = "none"
    single = setting.quantity == "elements" or setting.rank < 2
    if peer.elementwise:
        return {} if single else {"reduced": "row means" if c.divisor == "elements" else "row sums"}
    if single:
        return None
    if own.divisor == "elements":  # means over the classes
        return {} if c.divisor == "elements" else {"divisor": 1 / setting.classes}
    return {"divisor": float(setting.classes)} if c.divisor == "elements" else {}
