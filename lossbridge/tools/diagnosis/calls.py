"""The expression in each library that gives a convention's number, as text: the call of a function.

An expression is built from a convention and evaluated on the batch (expression.py), so that the printed call does give
the number. search.py decides which convention explains it.
"""

from __future__ import annotations

import ast
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from lossbridge.conventions import PEERS, Convention, Peer
from lossbridge.tools.diagnosis.batch import WEIGHTS, Array, Batch
from lossbridge.tools.diagnosis.canonical import BINARY, DIVERGENCES, FOCAL, MIXTURES, Setting
from lossbridge.tools.diagnosis.evaluate import as_read, divisor, whole
from lossbridge.tools.diagnosis.expression import AS_ARRAYS, Expression, Operation
from lossbridge.tools.diagnosis.weightings import ALL, WEIGHTS_APART

_Steps = tuple[Operation, ...]
_RTOL, _ATOL = 2e-5, 2e-6  # of a result in float32

# (the activation that the function applies, the convention's): the operations to apply to the argument first.
_CONVERSIONS: dict[tuple[str, str], tuple[str, ...]] = {
    ("none", "softmax"): ("softmax",),
    ("none", "sigmoid"): ("sigmoid",),
    ("none", "exp"): ("exp",),
    ("none", "softmax twice"): ("softmax", "softmax"),
    ("none", "sigmoid twice"): ("sigmoid", "sigmoid"),
    ("softmax", "softmax twice"): ("softmax",),
    ("softmax", "none"): ("log",),
    ("softmax", "exp"): (),
    ("sigmoid", "sigmoid twice"): ("sigmoid",),
    ("exp", "none"): ("log",),
    ("exp", "softmax"): ("log_softmax",),
    ("exp", "softmax twice"): ("softmax", "log_softmax"),
}

# Keras attaches the logits to the results of these operations, and on TensorFlow its losses use those instead.
_LEAVE_LOGITS = ("softmax", "sigmoid")


def as_rows(batch: Batch, c: Convention | None = None) -> tuple[Batch, str]:
    """The arrays that the calls take: samples along one axis, and float16 as float32, in which losses are computed.

    With a convention that leaves rows out, by a mask or by itself, they are those that are left, and the text is their
    index in the arrays that `given` makes.
    """
    whole = _flat(batch)
    if c is None:
        return whole, ""
    kept, index, given = batch.rows(-1).valid, "", dict(whole.given)
    if batch.mask is not None and c.left_out == "removed" and batch.mask.size == len(kept):
        kept, index = batch.mask.reshape(-1).astype(bool), "[mask]"
        given["mask"] = "np.asarray(mask, bool)" + (".reshape(-1)" if batch.mask.ndim > 1 else "")
    if c.rows != ALL and batch.weightings[c.rows].code:
        kept, index = batch.weightings[c.rows].weight > 0, batch.weightings[c.rows].code
    if not index:
        return whole, ""
    left = {name: getattr(whole, name) for name in ("y_true", "y_pred", "sample_weight")}
    rows = {name: x[kept] for name, x in left.items() if x is not None}
    return replace(whole, mask=None, given=given, **rows), index


def _flat(batch: Batch) -> Batch:
    changed: dict[str, Any] = {}
    given = dict(batch.given)
    shape = batch.y_pred.shape
    for name in ("y_true", "y_pred", "sample_weight"):
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
    """By library the shortest call that gives what one of the conventions gives on this batch, if there is one.

    The calls take the arrays of `as_rows`. For a gradient, they are those of the loss.
    """
    if setting.quantity == "gradient":
        setting = replace(setting, quantity="scalar")
    conventions = list(conventions)
    if not conventions:
        return {}
    (rows, index), how = as_rows(batch, conventions[0]), (conventions[0].left_out, conventions[0].rows)
    conventions = [c for c in conventions if (c.left_out, c.rows) == how or (c.rows == ALL and rows.mask is batch.mask)]
    # The setting may be that of several batches: only this one's weights, mask and ignored label are used.
    weights: dict[str, Any] = {name: getattr(batch, name) is not None for name in WEIGHTS}
    mask, ignored = rows.mask is not None, batch.ignored is not None
    row_setting = replace(setting, rank=min(setting.rank, 2), mask=mask, ignored=ignored, **weights)
    found: dict[str, list[tuple[str, Expression, Convention]]] = {}
    for c in conventions:
        c = c.but(dtype="exact") if c.dtype in (batch.half, "float32") else c  # calls compute in float32
        used = c.but(**{name: getattr(c, name) and given for name, given in weights.items()})
        apart = c.rows == WEIGHTS_APART  # which Keras does by itself
        if c.rows != ALL and not apart and not batch.weightings[c.rows].code:
            continue
        used = used.but(rows=ALL, sample_weight=True) if apart else used
        for peer in PEERS if not apart else (peer for peer in PEERS if peer.library == "keras"):
            for expression in _expressions(peer, used, batch, rows, row_setting):
                found.setdefault(peer.library, []).append((expression.text(index), expression, c))
    values: dict[Convention, Array] = {}
    shortest: dict[str, str] = {}
    for library, candidates in found.items():
        tried: set[str] = set()
        for text, expression, c in sorted(candidates, key=lambda candidate: len(candidate[0])):
            if text in tried or not text or len(tried) > 8:
                continue
            tried.add(text)
            if c not in values:
                values[c] = whole(batch, c, setting.quantity)
            if _gives(expression, rows, values[c]):
                shortest[library] = text
                break
    return shortest


def _gives(expression: Expression, batch: Batch, values: Array) -> bool:
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = expression.evaluate(batch)
    except (ValueError, TypeError, OverflowError, IndexError):
        return False  # the function raises for these arrays
    return found.size == values.size and np.allclose(found.ravel(), values.ravel(), _RTOL, _ATOL)


def _expressions(peer: Peer, c: Convention, batch: Batch, rows: Batch, setting: Setting) -> Iterator[Expression]:
    """The calls of the function that may give the convention, through options and operations around it.

    They take `rows`, which `setting` describes; the divisor is that of `batch`.
    """
    own = peer.convention.resolved(setting.machine_epsilon)
    if not _may_give(peer, c, setting):
        return
    activations = peer.options.get("activation", {})
    for activation in dict.fromkeys([own.activation, *(activations if isinstance(activations, Mapping) else ())]):
        options: dict[str, Any] = {}
        if activation != own.activation:
            assert isinstance(activations, Mapping)
            options |= option(activations[activation])
        pred = _pred(replace(own.activated(activation), cost=c.cost), c, peer, options)
        target = _target(own, c, peer, options, setting)
        if activation in peer.nan_under and _may_be_nan(c, setting, pred or ()):
            continue
        if own.renormalise != "no" and activation == "none" and _has_infinite_shares(peer, setting):
            continue
        if peer.library == "keras" and any(name in _LEAVE_LOGITS for name, _ in pred or ()):
            continue
        if pred is None or target is None or not _set_options(options, peer, own, c, rows, setting):
            continue
        pred, target = _finite(c, pred, target, as_read(c, rows))
        if c.dtype != "exact":
            cast = ("cast", {"dtype": c.dtype.split()[0]})
            if cast[1]["dtype"] == "bfloat16" and peer.library in ("lossbridge", "sklearn", "scipy"):
                continue
            pred, target = (cast, *pred), target if setting.hard else (cast, *target)
        if peer.library == "scipy" and peer.function == "entropy":
            options["axis"] = -1
        if peer.library == "sklearn" and setting.labels and len(np.unique(rows.y_true)) < setting.classes:
            options["labels"] = range(setting.classes)
        result: dict[str, Any] | None
        if setting.quantity == "scalar":
            result = _reduce_to_loss(peer, own, c, batch, options)
        else:
            result = _reduce_to_values(peer, own, c, setting, options)
        if result is None:
            continue
        squared = float(options.get("temperature", 1.0)) ** 2  # by which the function multiplies
        result["divisor"] = result.get("divisor", 1.0) * squared / c.factor
        result["base"] = c.base
        if "base" in peer.options and c.base != math.e:
            options["base"] = c.base
            result["base"] = math.e
        yield Expression(peer, target, pred, c.swapped, options, outcome=c.outcome, offset=c.offset, **result)


def _may_give(peer: Peer, c: Convention, setting: Setting) -> bool:
    """Whether the function computes such a loss of such arrays."""
    if c.cost not in _costs(peer, setting) or c.axis != -1 or c.undefined != "zero":
        return False
    if c.dtype in ("float16", "bfloat16", "float32"):
        return False
    if setting.labels and not {"labels", "distributions"} & set(peer.targets):
        return False
    if not setting.labels and (peer.targets == ("labels",) or (peer.targets == ("none",) and c.cost != "entropy")):
        return False
    if setting.events_only and (c.cost not in BINARY or "softmax" in c.activation):
        return False
    outcomes = setting.pred_holds if c.swapped else setting.true_holds
    if peer.library == "keras" and c.cost in BINARY and outcomes != "probabilities":
        return False  # on PyTorch, Keras refuses such targets
    # A power of a number below 0.
    return not (peer.library == "optax" and c.cost in FOCAL and outcomes != "probabilities")


def _costs(peer: Peer, setting: Setting) -> set[str]:
    """Those that the function computes: by an option, of hard targets, or with γ = 0."""
    cost = peer.convention.cost
    costs = {cost, *peer.options.get("cost", {})}
    if cost == "divergence" and setting.hard:
        costs.add("cross-entropy")
    if cost in FOCAL:
        costs.add("cross-entropy" if cost == "focal" else "binary")
    return costs


def _finite(c: Convention, pred: _Steps, target: _Steps, read: Batch) -> tuple[_Steps, _Steps]:
    """Without the logarithm of 0, of which NumPy warns: a divergence that is a mixture's needs no more than 1e-30."""

    def bounded(operations: _Steps, x: Array) -> _Steps:
        *before, last = operations or (("", {}),)
        if c.cost not in MIXTURES or last[0] != "log" or not (before or (x == 0).any()):
            return operations
        return (*before, ("clip", {"low": 1e-30, "high": 1}), last)

    return bounded(pred, read.y_pred), bounded(target, read.y_true)


def _may_be_nan(c: Convention, setting: Setting, pred: Iterable[Operation]) -> bool:
    """Whether the library may compute 0·∞ here: nothing bounds its logarithms. `lossbridge.compat` does not."""
    bounded = setting.pred_holds == "probabilities" and c.activation != "none"
    names = {name for name, _ in pred}
    infinite = setting.pred_holds != "probabilities"
    clipped = names & {"clip", "add", "cap"} and not (infinite and "normalise" in names)  # ∞/∞ is NaN before
    return setting.extreme and not bounded and not clipped


def _has_infinite_shares(peer: Peer, setting: Setting) -> bool:
    """Whether a function that divides by the sum of a row's predictions computes ∞/∞ for a class of target 0: a dense
    one, and on JAX also that of Keras for labels."""
    dense = not setting.labels or peer.library == "keras"
    return setting.extreme and setting.pred_holds != "probabilities" and dense


def option(text: str) -> dict[str, Any]:
    """ "reduction='sum'" as a keyword and its value; the names of weights stay texts."""
    name, _, value = text.partition("=")
    return {name: value if value in WEIGHTS else ast.literal_eval(value)} if text else {}


def _pred(own: Convention, c: Convention, peer: Peer, options: dict[str, Any]) -> tuple[Operation, ...] | None:
    """The operations on y_pred that make activation, renormalisation and clipping the convention's; None if none do."""
    if c.temperature != 1 or c.softcap is not None:
        return _scaled(own, c, peer, options)
    if c.clip == "arguments" and c.cost not in BINARY:
        c = replace(c, clip="lower")  # of terms −log p alone it is that
    operations: tuple[Operation, ...] = ()
    if c.logarithm == "twice" or (c.logarithm == "missing" and own.activation != "exp"):
        return None
    if c.logarithm == "missing" and c.activation == "none":
        return operations if _same_clip(own, c) else None
    if c.logarithm == "missing":  # the function takes log-probabilities, and is given probabilities
        return (("softmax" if "softmax" in c.activation else "sigmoid", {}),) if _same_clip(own, c) else None
    if own.activation != c.activation:
        conversion = _CONVERSIONS.get((own.activation, c.activation))
        if conversion is None:
            return None
        operations = tuple((name, {}) for name in conversion)
        if own.activation == "softmax":  # softmax of logarithms renormalises, which of most rows changes nothing
            own = replace(own, renormalise=c.renormalise if c.cost in MIXTURES else "predictions")
    if _same_clip(own, c):
        return operations
    clips = peer.options.get("clip", {})
    has_epsilon = "epsilon" in peer.options and own.renormalise == c.renormalise and own.clip_first == c.clip_first
    if has_epsilon and isinstance(clips, Mapping) and c.clip in clips and own.clip != "none":
        options["epsilon"] = 0 if c.clip == "none" else c.epsilon
        return operations
    if own.clip != "none" or own.renormalise != "no" or c.clip_first or c.clip == "arguments":
        return None
    if c.clip == "added":
        of_logarithm = [name for name, _ in operations] == ["log"] and c.cost not in BINARY and c.renormalise == "no"
        return (("add", {"epsilon": c.epsilon}), *operations) if of_logarithm else None
    before: tuple[Operation, ...] = ()
    if c.renormalise == "predictions":
        before = (("normalise", {}),)
    elif c.renormalise == "both":
        return None
    if c.clip != "none":
        if c.cost in DIVERGENCES:
            return None  # the targets would have to be clipped too
        before += (("clip", {"low": c.epsilon, "high": 1 if c.clip == "lower" else 1 - float(c.epsilon)}),)
    last = operations[-1:] if operations and operations[-1][0] == "log" else ()
    return (*operations[: len(operations) - len(last)], *before, *last) if own.activation in ("none", "exp") else None


def _scaled(own: Convention, c: Convention, peer: Peer, options: dict[str, Any]) -> tuple[Operation, ...] | None:
    """The operations where the logits are divided by a temperature, then capped, before the last softmax or sigmoid."""
    operations = _pred(own, replace(c, temperature=1.0, softcap=None), peer, options)
    if "temperature" in peer.options:
        return operations  # see _set_options
    if operations is None or not c.activation.startswith(("softmax", "sigmoid")):
        return None
    first = 1 if c.activation.endswith("twice") else 0
    if first and not operations:
        return None
    steps: list[Operation] = [("divide", {"by": c.temperature})] if c.temperature != 1 else []
    if c.softcap is not None and peer.library == "lossbridge":
        if "softcap" not in peer.options or operations:
            return None  # other functions, or forms, have it
        options["softcap"] = c.softcap
    elif c.softcap is not None:
        steps.append(("cap", {"at": c.softcap}))
    return (*operations[:first], *steps, *operations[first:])


def _same_clip(own: Convention, c: Convention) -> bool:
    names = ("renormalise", "clip", "epsilon", "clip_first")
    return all(getattr(own, name) == getattr(c, name) for name in names)


def _target(
    own: Convention, c: Convention, peer: Peer, options: dict[str, Any], setting: Setting
) -> tuple[Operation, ...] | None:
    """The operations on y_true; None if none make its activation the convention's."""
    operations: tuple[Operation, ...] = ()
    if setting.labels and "labels" not in peer.targets:
        operations = (("one_hot", {"classes": setting.classes}),)
    if c.temperature != 1 and c.target_activation == "softmax" and "temperature" not in peer.options:
        operations = (*operations, ("divide", {"by": c.temperature}))
    if c.target_activation == own.target_activation:
        return operations
    texts = peer.options.get("target_activation", {})
    if isinstance(texts, Mapping) and c.target_activation in texts:
        options |= option(texts[c.target_activation])
        return operations
    conversion = _CONVERSIONS.get((own.target_activation, c.target_activation))
    if conversion == ("log",) and setting.hard and c.cost not in MIXTURES:
        return None  # −∞ wherever the target is 0, and NumPy warns of it
    return None if conversion is None else (*operations, *((name, {}) for name in conversion))


def _set_options(
    options: dict[str, Any], peer: Peer, own: Convention, c: Convention, batch: Batch, setting: Setting
) -> bool:
    """Sets the options for what is left out, smoothing, focal loss and weights. False where the function has none."""
    if setting.left_out and c.left_out != "kept":
        texts = peer.options.get("left_out")
        text = None
        if isinstance(texts, Mapping) and batch.mask is None:
            text = texts.get(c.left_out, texts.get("removed") if c.left_out == "zero" else None)
        if text is None:
            return False
        name, _, _ = text.partition("=")
        options[name] = batch.ignored
    if c.label_smoothing:
        if "label_smoothing" not in peer.options:
            return False
        outcomes = 2 if c.cost in BINARY else setting.classes
        factor = 1.0 if c.smoothing_over == "K" else outcomes / (outcomes - 1)
        options["label_smoothing"] = round(c.label_smoothing * factor, 10)
    for name in ("cost", "alpha", "gamma", "beta", "scale", "crossed", "temperature", "pos_weight", "z_loss", *WEIGHTS):
        value, texts = getattr(c, name), AS_ARRAYS.get((peer.name, name), peer.options.get(name))
        if value == getattr(own, name):
            continue
        if isinstance(texts, Mapping) and value in texts:
            options |= option(texts[value])
        elif name == "alpha" and isinstance(texts, Mapping) and 0.25 in texts:  # a switch whose default that is
            options |= {**option(texts[0.25]), "alpha": value}
        elif isinstance(texts, str):
            options[texts.partition("=")[0]] = 1.0 if value is None else value
        elif name not in ("cost", "temperature"):  # which the function computes of such targets, or its arguments have
            return False
    return True


def _reduce_to_loss(
    peer: Peer, own: Convention, c: Convention, batch: Batch, options: dict[str, Any]
) -> dict[str, Any]:
    """The reduction and divisor that make the result the loss. Uses the function's own reduction where it has one."""
    read = as_read(c, batch)
    number = divisor(c, read, read.rows(-1))
    classes = batch.y_pred.shape[-1]
    events = batch.y_pred.ndim < 2
    if peer.returns == "scalar":
        texts = peer.options.get("divisor", {})
        assert isinstance(texts, Mapping)
        same = [c.divisor]
        if c.divisor == "samples":
            same += [] if c.class_weight or c.sample_weight else ["weights"]
            same += ["axis 0"] if batch.y_pred.ndim == 2 else ["elements"] if events else []
        counts_all = c.left_out == "zero" and "zero" not in peer.options.get("left_out", {"zero": ""})
        if counts_all or (c.divisor == "axis 0" and batch.y_pred.ndim > 2):
            same = []  # the function's own mean divides by another number
        for name in same:
            if name in texts:
                options |= option(texts[name])
                return {}
        if "one" in texts:
            options |= option(texts["one"])
            return {"divisor": number}
        if events:
            return {"divisor": number / len(batch.y_pred)}  # of the mean over all outcomes
        options |= option(texts["classes"])  # the sum of the means over the classes
        return {"divisor": number / classes}
    class_means = own.divisor == "elements" and peer.returns == "samples"  # each value is a mean over the classes
    own_mean = "elements" if peer.returns == "elements" or class_means else "samples"
    if c.divisor == own_mean or (events and c.divisor == "samples"):
        return {"reduction": "mean"}
    return {"reduction": "sum", "divisor": number / classes if class_means else number}


def _reduce_to_values(
    peer: Peer, own: Convention, c: Convention, setting: Setting, options: dict[str, Any]
) -> dict[str, Any] | None:
    """The reduction and divisor that make the result one value per sample or element; None where none do."""
    if peer.library == "sklearn":
        return None
    if peer.returns == "scalar":
        options["reduction"] = "none"
    per_element = setting.quantity == "elements" or setting.rank < 2
    if peer.elementwise:
        return {} if per_element else {"reduction": "row means" if c.divisor == "elements" else "row sums"}
    if per_element:
        return None
    if own.divisor == "elements":  # each value is a mean over the classes
        return {} if c.divisor == "elements" else {"divisor": 1 / setting.classes}
    return {"divisor": float(setting.classes)} if c.divisor == "elements" else {}
