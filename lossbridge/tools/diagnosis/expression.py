"""A call of a library's function with operations around it: as text, and evaluated with `lossbridge.compat`.

What is printed is what was evaluated. Which expression gives a convention's number is decided in calls.py.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lossbridge.conventions import Peer
from lossbridge.frameworks import numpy_ops as b
from lossbridge.maths import elementary, softmax
from lossbridge.tools.diagnosis.batch import WEIGHTS, Array, Batch
from lossbridge.tools.diagnosis.evaluate import rounded

# How each library writes an operation around a loss. NumPy's code goes with the functions of scikit-learn and SciPy.
_METHODS = {
    "normalise": "{x} / {x}.sum(-1, keepdims=True)",
    "cast": "{x}.astype('{dtype}').astype('float32')",
    "sum": "{x}.sum()",
    "mean": "{x}.mean()",
    "row sums": "{x}.sum(-1)",
    "row means": "{x}.mean(-1)",
    "divide": "{x} / {by}",
    "cap": "{at} * np.tanh({x} / {at})",
    "add": "{x} + {epsilon}",
}
_CODE: dict[str, dict[str, str]] = {
    "numpy": _METHODS
    | {
        "softmax": "scipy.special.softmax({x}, axis=-1)",
        "log_softmax": "scipy.special.log_softmax({x}, axis=-1)",
        "sigmoid": "scipy.special.expit({x})",
        "log": "np.log({x})",
        "exp": "np.exp({x})",
        "clip": "np.clip({x}, {low}, {high})",
        "one_hot": "np.eye({classes})[{x}]",
    },
    "torch": _METHODS
    | {
        "softmax": "torch.softmax({x}, -1)",
        "log_softmax": "torch.log_softmax({x}, -1)",
        "sigmoid": "torch.sigmoid({x})",
        "log": "torch.log({x})",
        "exp": "torch.exp({x})",
        "clip": "torch.clamp({x}, {low}, {high})",
        "normalise": "{x} / {x}.sum(-1, keepdim=True)",
        "one_hot": "F.one_hot({x}, {classes}).to(y_pred.dtype)",
        "cast": "{x}.to(torch.{dtype}).to(y_pred.dtype)",
        "cap": "{at} * torch.tanh({x} / {at})",
    },
    "keras": {
        "softmax": "keras.ops.softmax({x})",
        "log_softmax": "keras.ops.log_softmax({x})",
        "sigmoid": "keras.ops.sigmoid({x})",
        "log": "keras.ops.log({x})",
        "exp": "keras.ops.exp({x})",
        "clip": "keras.ops.clip({x}, {low}, {high})",
        "normalise": "{x} / keras.ops.sum({x}, -1, keepdims=True)",
        "one_hot": "keras.ops.one_hot({x}, {classes})",
        "cast": "keras.ops.cast(keras.ops.cast({x}, '{dtype}'), 'float32')",
        "sum": "keras.ops.sum({x})",
        "mean": "keras.ops.mean({x})",
        "row sums": "keras.ops.sum({x}, -1)",
        "row means": "keras.ops.mean({x}, -1)",
        "divide": "{x} / {by}",
        "cap": "{at} * keras.ops.tanh({x} / {at})",
        "add": "{x} + {epsilon}",
    },
    "optax": _METHODS
    | {
        "softmax": "jax.nn.softmax({x})",
        "log_softmax": "jax.nn.log_softmax({x})",
        "sigmoid": "jax.nn.sigmoid({x})",
        "log": "jnp.log({x})",
        "exp": "jnp.exp({x})",
        "clip": "jnp.clip({x}, {low}, {high})",
        "one_hot": "jax.nn.one_hot({x}, {classes})",
        "cap": "{at} * jnp.tanh({x} / {at})",
    },
}
PREFIXES = {
    "lossbridge": "lb.",
    "keras": "keras.losses.",
    "torch": "F.",
    "optax": "optax.losses.",
    "sklearn": "sklearn.metrics.",
}
# Options of one number that the library takes as an array: how they are written. The registry holds numbers alone.
AS_ARRAYS = {("torch.binary_cross_entropy_with_logits", "pos_weight"): "pos_weight=torch.tensor({})"}

# The same operations in NumPy.
_COMPUTE: dict[str, Callable[..., Array]] = {
    "softmax": lambda x: b.exp(-softmax.neg_log_softmax(b, x, x.ndim - 1)[0]),
    "log_softmax": lambda x: -softmax.neg_log_softmax(b, x, x.ndim - 1)[0],
    "sigmoid": lambda x: elementary.sigmoid(b, x)[0],
    "log": np.log,
    "exp": np.exp,
    "clip": lambda x, low, high: np.clip(x, low, high),
    "normalise": lambda x: x / x.sum(-1, keepdims=True),
    "one_hot": lambda x, classes: np.eye(classes, dtype=np.float32)[x],
    "cast": lambda x, dtype: rounded(x, dtype).astype(np.float32),
    "sum": np.sum,
    "mean": np.mean,
    "row sums": lambda x: np.sum(x, -1),
    "row means": lambda x: np.mean(x, -1),
    "divide": lambda x, by: x / x.dtype.type(by),
    "cap": lambda x, at: x.dtype.type(at) * np.tanh(x / x.dtype.type(at)),
    "add": lambda x, epsilon: x + x.dtype.type(epsilon),
}

Operation = tuple[str, Mapping[str, Any]]  # a name in _COMPUTE, and its arguments


@dataclass(frozen=True)
class Expression:
    """A call of a function, with the operations on its arguments and on its result."""

    peer: Peer
    target: tuple[Operation, ...]
    pred: tuple[Operation, ...]
    swapped: bool
    options: Mapping[str, Any] = field(default_factory=dict)  # "class_weight" and "sample_weight" stand for the arrays
    reduction: str = ""  # an operation's name
    divisor: float = 1.0
    base: float = math.e
    outcome: str = "loss"
    offset: float = 0.0

    def text(self, index: str = "") -> str:
        """The code; empty where an array would have to be written twice. `index`: of the rows, such as "[mask]"."""
        code = _CODE.get(self.peer.library, _CODE["numpy"])
        target, pred = ("y_pred", "y_true") if self.swapped else ("y_true", "y_pred")
        target, pred = target + index, pred + index
        target, pred = _applied(code, self.target, target), _applied(code, self.pred, pred)
        if not (target and pred):
            return ""
        if self.peer.library == "torch" and "labels" in self.peer.targets and not self.target:
            target += ".long()"
        arguments = in_order(self.peer, target, pred)
        constructor, call = self._split_options()
        text = _name(self.peer)
        if self.peer.is_class:
            text += f"({', '.join(_keywords(self.peer, constructor, index))})"
        text += f"({', '.join([*arguments, *_keywords(self.peer, call, index)])})"
        if self.reduction:
            text = code[self.reduction].format(x=text)
        if self.divisor < 0:
            text = f"-{text}"
        if abs(self.divisor) != 1:
            size = abs(self.divisor)
            text += f" / {size:.10g}" if size > 1 else f" * {1 / size:.10g}"
        if self.base != math.e and self.outcome != "perplexity":
            text += f" / math.log({self.base:g})"
        if self.offset:
            return f"{text} {'+' if self.offset > 0 else '-'} {abs(self.offset):.10g}"
        if self.outcome == "perplexity":
            return f"math.exp({text})"
        return text if self.outcome == "loss" else f"-({text})" if " / " in text else f"-{text}"

    def evaluate(self, batch: Batch) -> Array:
        """The loss, or the values, with the function of `lossbridge.compat`."""
        target, pred = (batch.y_pred, batch.y_true) if self.swapped else (batch.y_true, batch.y_pred)
        for name, arguments in self.target:
            target = _COMPUTE[name](target, **arguments)
        for name, arguments in self.pred:
            pred = _COMPUTE[name](pred, **arguments)
        constructor, call = (
            {name: getattr(batch, x) if x in WEIGHTS else x for name, x in options.items()}
            for options in self._split_options()
        )
        function = our_function(self.peer.library, self.peer.function)
        if self.peer.is_class:
            function = function(**constructor)
        value = function(*in_order(self.peer, target, pred), **call)
        if self.reduction:
            value = _COMPUTE[self.reduction](value)
        result = np.asarray(value, np.float64) / self.divisor
        if self.outcome == "perplexity":
            return np.exp(result)
        return result / math.log(self.base) * (-1 if self.outcome == "negated" else 1) + self.offset

    def _split_options(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The options for a class's constructor, and those for the call."""
        constructor = {name: x for name, x in self.options.items() if self.peer.is_class and name != "sample_weight"}
        return constructor, {name: x for name, x in self.options.items() if name not in constructor}


def in_order(peer: Peer, target: Any, pred: Any) -> list[Any]:
    """The positional arguments, in the function's order."""
    if peer.targets == ("none",):
        return [pred]
    return [target, pred] if peer.arguments[0] == "target" else [pred, target]


def _applied(code: Mapping[str, str], operations: Iterable[Operation], x: str) -> str:
    """`x` with the operations around it; empty where a longer expression would have to be written twice."""
    for name, arguments in operations:
        if name == "normalise" and ("(" in x or " " in x):
            return ""
        texts = {key: value if isinstance(value, str) else f"{value:.10g}" for key, value in arguments.items()}
        if name == "clip" and 0 < arguments["high"] < 1:
            texts["high"] = f"1 - {arguments['low']:.10g}"
        compound = name in ("clip", "divide", "cap", "add") and any(sign in x for sign in (" / ", " + "))
        x = code[name].format(x=f"({x})" if compound else x, **texts)
    return x


def _keywords(peer: Peer, options: Mapping[str, Any], index: str) -> list[str]:
    def text(x: Any) -> str:
        if isinstance(x, str) and x == "sample_weight":
            return x + index
        return f"range({len(x)})" if isinstance(x, range) else x if x in WEIGHTS else repr(x)

    return [AS_ARRAYS.get((peer.name, name), f"{name}={{}}").format(text(x)) for name, x in options.items()]


def _name(peer: Peer) -> str:
    if peer.function == "log_loss_before_1_5":
        return "lossbridge.compat.sklearn.log_loss_before_1_5"
    if peer.library == "scipy":
        return f"scipy.{'stats' if peer.function == 'entropy' else 'special'}.{peer.function}"
    return PREFIXES[peer.library] + peer.function


def our_function(library: str, function: str) -> Callable[..., Any]:
    """lossbridge's own function, or that of `lossbridge.compat`."""
    module = "lossbridge.losses" if library == "lossbridge" else f"lossbridge.compat.{library}"
    return getattr(importlib.import_module(module), function)
