"""Rows of the public API: each loss with each of its options, at an unusual value, on a drawn batch of 32 rows.

The options are read from the signatures of `spec.LOSSES`, so that a new one without a value here is an error. Their
numbers are those of the functions themselves, which tests hold to the reference.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

import lossbridge as lb
from lossbridge.spec import LOSSES, OF_LOGITS, Loss
from lossbridge.tools.diagnosis.rows import numbers as n
from lossbridge.tools.diagnosis.rows.numbers import Array
from lossbridge.tools.diagnosis.rows.row import (
    ALPHA,
    CROSS_ENTROPY,
    DIVERGENCE,
    EPSILON,
    GAMMA,
    MIXTURE,
    POSITIVE,
    SMOOTHING,
    SOFTCAP,
    TEMPERATURE,
    TOTAL_VARIATION,
    Z_LOSS,
    Row,
    either,
    equals,
    every,
    over,
)

N, C = 32, 10


class Unusual(NamedTuple):
    """A value of an option, and how a true answer names it."""

    value: Any
    says: str  # empty: the loss is enough
    given: bool = False  # whether the user hands it to `diagnose` too
    also: Mapping[str, Any] = {}  # options without which it has no effect


_WEIGHT = n.weights(300, N)
_CLASS_WEIGHT = n.weights(301, C)
_MASK = np.arange(N) % 5 != 2

_MIXED = {"kind": "jensen_shannon"}

UNUSUAL: Mapping[str, tuple[Unusual, ...]] = {
    "temperature": (Unusual(2.5, equals(TEMPERATURE, 2.5)),),
    "pos_weight": (Unusual(3.0, equals(POSITIVE, 3)),),
    "gamma": (Unusual(1.5, equals(GAMMA, 1.5)),),
    "alpha": (Unusual(0.6, equals(ALPHA, 0.6), also={"apply_class_balancing": True}),),
    "apply_class_balancing": (Unusual(True, r"apply_class_balancing=True|α|alpha"),),
    "label_smoothing": (Unusual(0.15, equals(SMOOTHING, 0.15)),),
    "epsilon": (Unusual(1e-5, equals(EPSILON, 1e-5)),),
    "reduction": (
        Unusual("sum", r"sum|Σ"),
        Unusual("mean_with_sample_weight", r"sum of the weights|scikit-learn|mean_with_sample_weight|PyTorch"),
    ),
    "sample_weight": (Unusual(_WEIGHT, "weight", given=True),),
    "class_weight": (Unusual(_CLASS_WEIGHT, "weight", given=True),),
    "mask": (Unusual(_MASK, "", given=True),),
    "ignore_class": (Unusual(4, "", given=True),),
    "normalizer": (Unusual(47.0, over(47)),),
    "axis": (Unusual(0, r"axis 0|transpos|first axis|SciPy's `entropy\.mean\(\)`(?! of)"),),
    "logit_scale": (Unusual(2.5, equals(TEMPERATURE, 0.4)), Unusual(3.0, r"temperature T = 0\.333333 = 1/3\b")),
    "softcap": (Unusual(15.0, equals(SOFTCAP, 15)),),
    "z_loss": (Unusual(1e-4, equals(Z_LOSS, 1e-4)),),
    "kind": (
        Unusual("reverse", "reverse|swapped"),
        Unusual("jensen_shannon", MIXTURE),
        Unusual("total_variation", TOTAL_VARIATION),
    ),
    "beta": tuple(Unusual(beta, equals("β", beta), also=_MIXED) for beta in (0.1, 0.3, 0.9)),
    "scale": (Unusual("divergence", r"scale='divergence'|divided by β \(1 − β\)", also=_MIXED),),
    # What they hold says which form of the loss is meant; both forms are tried with every option.
    "from_logits": (),
    "inplace_gradient": (),
}


def api_rows() -> Iterator[Row]:
    """Each loss plain, and with each option; and the causal one, which is of PyTorch alone."""
    for loss in LOSSES.values():
        for form, targets in loss.rules.items():
            for target in targets:
                yield from _of_form(loss, form == "logits", target)
    yield from _causal()


def options_of(loss: Loss) -> Mapping[str, Any]:
    """The keyword arguments of the public function, with their defaults; each has unusual values."""
    parameters = inspect.signature(getattr(lb, loss.name)).parameters.values()
    found = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    for name in found:
        if name not in UNUSUAL:
            raise KeyError(f"option {name} of {loss.name} has no value in UNUSUAL: add one, and how it is named")
    return found


def _of_form(loss: Loss, logits: bool, target: str) -> Iterator[Row]:
    taken = options_of(loss)
    form = {"from_logits": logits} if "from_logits" in taken else {}
    y_true, y_pred = _batch(logits, target, edge=False)
    plain = _family(loss)
    where = f"{loss.name}, {target}, {'logits' if logits else 'probabilities'}"
    yield Row(5, where, y_true, y_pred, _value(loss, y_true, y_pred, form), plain, most=0)
    for name in taken:
        for unusual in UNUSUAL[name] if logits or name not in OF_LOGITS else ():
            edge = name == "epsilon"  # an ε shows where a probability is as small
            true, pred = _batch(logits, target, edge=edge)
            options = {name: unusual.value, **{k: v for k, v in unusual.also.items() if k in taken}}
            given = {name: unusual.value} if unusual.given else {}
            if name == "reduction" and unusual.value != "sum":
                options["sample_weight"] = given["sample_weight"] = _WEIGHT
            if name == "axis":
                true, pred = _transposed(true), pred.T.copy()
            value = _value(loss, true, pred, {**form, **options})
            # An option that changes nothing, such as the axis of elements, is not there to be named.
            without = {k: v for k, v in options.items() if k != name}
            shown = name == "axis" and target != "outcomes"
            shown = shown or not np.isclose(value, _value(loss, true, pred, {**form, **without}), 1e-9)
            says = unusual.says if shown and unusual.says else plain
            said = f"{name}={unusual.value if np.ndim(unusual.value) == 0 else '…'}"
            yield Row(5, f"{where}, {said}", true, pred, value, says, options=given)


def _family(loss: Loss) -> str:
    """How the names of its functions, and of those that give the same, are recognised."""
    if "focal" in loss.name:
        return "focal"
    if "divergence" in loss.name or "distillation" in loss.name:
        return either(DIVERGENCE, "distillation")
    return CROSS_ENTROPY if "entropy" in loss.name or "log_loss" in loss.name else loss.name


def _value(loss: Loss, y_true: Array, y_pred: Array, options: Mapping[str, Any]) -> float:
    exact = (x.astype(np.float64) if x.dtype.kind == "f" else x for x in (y_true, y_pred))
    return float(getattr(lb, loss.name)(*exact, **options))


def _batch(logits: bool, target: str, *, edge: bool) -> tuple[Array, Array]:
    """Targets of the kind and predictions of the form; at the `edge`, with probabilities too small for an ε."""
    y, x = n.labels(302, N, C)
    t, _ = n.outcomes(303, N, C)
    soft, other = n.soft(304, N, C)
    outcome = target == "outcomes"
    if edge and not logits:
        x[0, y[0]] = x[0, 0] = -25  # of which also a distribution has something
    targets = {"labels": y, "outcomes": t, "distributions": soft, "logits": other}
    squashed = n.sigmoid(x) if outcome else n.softmax(x)
    if edge and outcome:
        t[0] = 1
    return targets[target], x if logits else n.f32(squashed)


def _transposed(x: Array) -> Array:
    return x.T.copy() if x.ndim > 1 else x


def _causal() -> Iterator[Row]:
    """`lossbridge.torch.causal_lm_loss`: the logits at t predict the label at t + 1, and −100 counts nothing."""
    y, x = n.labels(305, 4, 8, C)
    y[0, 5:] = -100
    kept = y[:, 1:] >= 0
    losses = n.ce(x[:, :-1], np.maximum(y[:, 1:], 0))[kept]
    shifted = r"shift|t \+ 1|next|causal"
    yield Row(5, "causal_lm_loss", y, x, losses.mean(), shifted)
    divided = every(shifted, over(57))
    yield Row(5, "causal_lm_loss(num_items_in_batch=57)", y, x, losses.sum() / 57, divided, most=3)
