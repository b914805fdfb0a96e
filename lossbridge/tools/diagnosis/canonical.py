"""The canonical form of a convention on a kind of data: conventions that give the same number there get the same form.

Conventions that no data of the kind tells apart are one hypothesis, explained in the simplest way. Nothing is evaluated
here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lossbridge.conventions import Convention
from lossbridge.tools.diagnosis.batch import Batch, Quantity
from lossbridge.tools.diagnosis.weightings import ALL

BINARY = ("binary", "binary focal")
FOCAL = ("focal", "binary focal")
MIXTURES = ("jensen-shannon", "total variation")  # in which both sides count alike
DIVERGENCES = ("divergence", "convex divergence", *MIXTURES)
SMOOTHINGS = (0.1, 0.05, 0.2, 0.01)
_WITHOUT_LOGARITHM = ("squared", *MIXTURES)  # or with none that is changed
Holds = Literal["probabilities", "logits", "log-probabilities"]
_SOFTMAX = ("softmax", "softmax twice")
_CLIPS = ("both", "lower")


@dataclass(frozen=True)
class Setting:
    """The properties of one or several batches on which the canonical form depends."""

    labels: bool
    rank: int
    classes: int  # along the last axis
    pred_holds: Holds
    true_holds: Holds
    machine_epsilon: float
    hard: bool  # targets are 0 or 1
    one_hot: bool  # and each row has a single 1
    class_weight: bool
    sample_weight: bool
    zero_weight: bool  # a weight is 0
    mask: bool
    ignored: bool  # there is a label to ignore
    ignored_class: bool  # and it is one of the classes
    finite: bool  # the number to explain is finite
    extreme: bool  # 0·∞ may occur: a prediction is the probability 0 or 1, or an infinite logit
    double: bool  # the predictions are float64
    half: str  # "float16" or "bfloat16" if that is the dtype of the predictions
    quantity: Quantity
    one_row: bool = False  # two vectors, read as distributions
    library: str = ""  # whose functions stand first
    given: tuple[tuple[str, float], ...] = ()  # the field of a convention, and what may have been used

    @staticmethod
    def of(
        batch: Batch,
        quantity: Quantity,
        *,
        more: Iterable[Batch] = (),
        finite: bool = True,
        given: Mapping[str, float] | None = None,
        library: str = "",
    ) -> Setting:
        """The setting of a batch and of further ones of the same form."""
        batches = (batch, *more)
        dtype, ignored = batch.y_pred.dtype, batch.ignored
        hard = all(b.labels or np.isin(b.y_true, (0, 1)).all() for b in batches)
        return Setting(
            labels=batch.labels,
            rank=batch.y_pred.ndim,
            classes=batch.classes,
            pred_holds=_held(b.y_pred for b in batches),
            true_holds="probabilities" if batch.labels else _held(b.y_true for b in batches),
            machine_epsilon=float(np.finfo(dtype).eps) if dtype.kind == "f" else float(np.finfo(np.float64).eps),
            hard=hard,
            one_hot=hard and all(b.labels or (b.y_true.sum(-1) == 1).all() for b in batches),
            class_weight=batch.class_weight is not None,
            sample_weight=any(b.sample_weight is not None for b in batches),
            zero_weight=any(
                (w == 0).any() for b in batches for w in (b.sample_weight, b.class_weight) if w is not None
            ),
            mask=any(b.mask is not None for b in batches),
            ignored=any(b.ignored is not None for b in batches),
            ignored_class=ignored is not None and 0 <= ignored < batch.classes,
            finite=finite,
            extreme=any(_extreme(b) for b in batches),
            double=dtype == np.float64,
            half=batch.half,
            quantity=quantity,
            one_row=batch.y_pred.ndim == 2 and len(batch.y_pred) == 1,
            library=library,
            given=tuple((given or {}).items()),
        )

    def tried(self, name: str, usual: Iterable[float]) -> tuple[float, ...]:
        """The number that may have been used, where one is given, and the usual ones."""
        return tuple(dict.fromkeys((*(x for field, x in self.given if field == name), *usual)))

    @property
    def events_only(self) -> bool:
        """Whether each sample is one outcome, without a distribution over classes."""
        return self.rank < 2 or self.classes == 1

    @property
    def left_out(self) -> bool:
        return self.mask or self.ignored


def _extreme(batch: Batch) -> bool:
    pred, kept = batch.y_pred, batch.rows(-1).valid
    bounds = (0, 1, np.inf, -np.inf) if holds(pred) == "probabilities" else (np.inf, -np.inf)
    return not kept.any() or any(bool((pred == bound).any()) for bound in bounds)


def holds(x: np.ndarray) -> Holds:
    """What the numbers can be, by their range and their sums."""
    finite = x[np.isfinite(x)]
    if ((finite >= 0) & (finite <= 1)).all():
        return "probabilities"
    if x.ndim > 1 and x.shape[-1] > 1 and (finite <= 0).all():
        with np.errstate(over="ignore", invalid="ignore"):
            sums = np.exp(x.astype(np.float64)).sum(-1)
        if (np.abs(sums - 1) < 1e-2).all():
            return "log-probabilities"
    return "logits"


def _held(arrays: Iterable[np.ndarray]) -> Holds:
    """What all of the arrays can be."""
    kinds = {holds(x) for x in arrays}
    return kinds.pop() if len(kinds) == 1 else "logits"


def canonical(c: Convention, setting: Setting) -> Convention | None:
    """`c` with every field reset that has no effect in this setting; None if `c` is impossible in it."""
    rank = max(setting.rank, 1)
    if not -rank <= c.axis < rank:
        return None
    c = c.resolved(setting.machine_epsilon).but(axis=-1 if c.axis % rank == rank - 1 else c.axis % rank)
    c = _weights(c, setting)
    if not _sensible(c, setting):
        return None
    c = _options(c, setting)
    c = _costs(c, setting)
    c = _axis(c, setting)
    return _reduction(c, setting)


def _weights(c: Convention, setting: Setting) -> Convention:
    class_weight, sample_weight = c.class_weight and setting.class_weight, c.sample_weight and setting.sample_weight
    left_out, divisor = c.left_out if setting.left_out else "removed", c.divisor
    if divisor in ("weights", "nonzero weights") and not (class_weight or sample_weight):
        divisor, left_out = "samples", "removed" if left_out == "zero" else left_out
    if divisor == "nonzero weights" and not setting.zero_weight:
        divisor = "samples"
    if c.rows != ALL:
        sample_weight, left_out = False, "removed"  # it has them
        divisor = "samples" if divisor in ("weights", "nonzero weights") else divisor
    by_rows = class_weight and not (setting.one_hot and not c.label_smoothing)
    weights = {"class_weight": class_weight, "sample_weight": sample_weight}
    return c.but(**weights, left_out=left_out, divisor=divisor, weighted=c.weighted if by_rows else "terms")


def _sensible(c: Convention, setting: Setting) -> bool:
    other_target = c.swapped or c.target_activation != "none"
    if setting.labels and (other_target or c.axis != -1):
        return False
    if c.rows != ALL and (c.axis != -1 or c.swapped):
        return False
    if c.axis != -1 and (c.class_weight or c.sample_weight or setting.left_out):
        return False  # weights and masks are given for rows along the last axis
    if c.axis != -1 and c.divisor == "squared samples":
        return False
    if c.cost in _WITHOUT_LOGARITHM and (c.clip != "none" or c.logarithm != "once" or c.class_weight):
        return False
    if c.cost in ("squared", "total variation") and (c.base != math.e or c.outcome == "perplexity"):
        return False
    if setting.events_only and (c.cost not in (*BINARY, "squared") or c.smoothing_over == "C"):
        return False
    if setting.events_only and c.activation in _SOFTMAX and c.logarithm != "once":
        return False
    if setting.rank < 2 and c.divisor == "classes" and setting.quantity in ("scalar", "gradient"):
        return False  # a vector has no axis of classes
    if c.cost == "entropy" and (other_target or c.label_smoothing):
        return False
    if c.cost in BINARY and (c.renormalise != "no" or c.target_activation != "none"):
        return False
    if c.cost in DIVERGENCES and (c.label_smoothing or c.class_weight):
        return False
    if (c.softcap or c.z_loss) and (c.cost, c.activation) != ("cross-entropy", "softmax"):
        return False  # options of logits, which no other loss has
    if c.z_loss and (c.weighted == "rows" or setting.quantity == "elements"):
        return False  # it is of whole rows, and no class weight multiplies it
    certain = c.swapped and setting.hard and c.activation == "none" and c.clip == "none"
    if setting.finite and certain and c.logarithm != "missing":
        return False  # it computes log 0
    return setting.quantity == "scalar" or (c.outcome == "loss" and not c.offset) or c.outcome == "negated"


def _options(c: Convention, setting: Setting) -> Convention:
    """Resets options that have no effect without another."""
    epsilon = float(c.epsilon)
    if c.clip == "none":
        epsilon = 0.0
    clip = c.clip if epsilon else "none"
    targets_too = clip in _CLIPS and c.cost == "divergence"
    if clip in (*_CLIPS, "arguments") and not targets_too and _smallest(c, setting) > max(epsilon, 1e-40):
        clip, epsilon = "none", 0.0  # no probability is as small
    if clip == "arguments" and epsilon > 1e-30 and c.cost in ("cross-entropy", "focal", "poly"):
        clip = "lower"  # there is no 1 − p
    cost, gamma, alpha = c.cost, c.gamma, c.alpha
    if cost in FOCAL and gamma == 0 and alpha is None:
        cost = "binary" if cost == "binary focal" else "cross-entropy"
    dtype = c.dtype
    if dtype == f"{setting.half} inputs" or (dtype == "float32" and not setting.double):
        dtype = "exact"  # the inputs have that dtype already
    if cost not in FOCAL:
        gamma, alpha = 0.0, alpha if cost == "poly" else None
    return c.but(
        cost=cost,
        clip=clip,
        epsilon=epsilon,
        clip_first=c.clip_first and clip in _CLIPS and c.renormalise != "no",
        smoothing_over=_smoothing_over(c, setting) if c.label_smoothing else "K",
        temperature=c.temperature if _takes_logits(c) else 1.0,
        pos_weight=c.pos_weight if cost in BINARY else 1.0,
        undefined=c.undefined if _may_be_infinite(c, setting) and clip == "none" else "zero",
        gamma=gamma,
        alpha=alpha,
        beta=c.beta if cost == "jensen-shannon" else 0.5,
        scale=c.scale if cost == "jensen-shannon" else "mixture",
        crossed=c.crossed and cost == "jensen-shannon" and c.beta != 0.5,
        base=math.e if c.outcome == "perplexity" else c.base,
        dtype=dtype,
    )


def _may_be_infinite(c: Convention, setting: Setting) -> bool:
    return setting.extreme and (setting.pred_holds != "probabilities" or c.activation == "none")


def _smoothing_over(c: Convention, setting: Setting) -> Literal["K", "K-1", "C", "added"]:
    """Of distributions, and of outcomes in two classes, K is C."""
    if c.smoothing_over == "C" and (c.cost not in BINARY or setting.classes == 2):
        return "K"
    return c.smoothing_over


def _takes_logits(c: Convention) -> bool:
    return c.activation.startswith(("softmax", "sigmoid")) or c.target_activation == "softmax"


def _smallest(c: Convention, setting: Setting) -> float:
    """A lower bound of p and 1 − p; 0 where there is none."""
    if c.activation == "sigmoid twice":
        return 0.25  # the second sigmoid is of a number in [0, 1]
    if c.activation == "softmax twice":
        return 1 / (math.e * max(setting.classes, 1)) if not setting.events_only else 0.0
    return 0.0


def _costs(c: Convention, setting: Setting) -> Convention:
    """Replaces formulas by simpler ones that are algebraically equal."""
    renormalise, other_target = c.renormalise, c.target_activation != "none" or c.swapped
    no_zero_rows = c.left_out != "kept" or not setting.left_out  # which a label out of range has
    if renormalise == "both" and setting.one_hot and c.axis == -1 and not other_target and no_zero_rows:
        renormalise = "predictions"
    if not c.clip_first:
        if c.activation in _SOFTMAX and (renormalise == "predictions" or c.target_activation == "softmax"):
            renormalise = "no"
        elif c.activation == "exp" and renormalise == "predictions":
            c, renormalise = c.but(activation="softmax"), "no"
        elif c.activation == "exp" and renormalise == "both" and c.target_activation == "exp":
            c, renormalise = c.but(activation="softmax", target_activation="softmax"), "no"
    c = c.but(renormalise=renormalise)
    unclipped = c.clip == "none" and renormalise == "no"
    if c.activation == "none" and c.logarithm == "missing" and unclipped and c.cost in ("cross-entropy", "divergence"):
        c = c.but(activation="exp", logarithm="once")
    if c.cost == "divergence" and setting.hard and not other_target and renormalise != "both" and c.clip not in _CLIPS:
        c = c.but(cost="cross-entropy")  # t log t = 0
    if c.cost in MIXTURES and c.activation == c.target_activation and c.renormalise != "predictions" and c.swapped:
        c = c.but(swapped=False, beta=round(1 - c.beta, 12))
    product = c.activation == "exp" if c.cost == "cross-entropy" else c.logarithm == "missing" and c.cost == "binary"
    targets_unchanged = c.target_activation == "none" and not c.label_smoothing and not c.class_weight
    if product and unclipped and targets_unchanged and c.activation in ("exp", "none"):
        c = c.but(swapped=False)  # Σ t x is symmetric
    return c


def _axis(c: Convention, setting: Setting) -> Convention:
    """For elementwise costs on a matrix, the axis only decides what the sum is divided by."""
    if setting.rank != 2 or c.axis == -1:
        return c
    elementwise = c.activation not in _SOFTMAX and c.target_activation != "softmax" and c.renormalise == "no"
    if elementwise and (c.cost in BINARY or not c.label_smoothing):
        other = {"samples": "classes", "classes": "samples", "axis 0": "samples"}
        return c.but(axis=-1, divisor=other.get(c.divisor, c.divisor))
    return c.but(divisor="classes") if c.divisor == "axis 0" else c


def _reduction(c: Convention, setting: Setting) -> Convention:
    divisor, left_out = c.divisor, c.left_out
    if setting.quantity in ("scalar", "gradient"):
        if setting.rank < 2 and divisor == "elements":
            divisor = "samples"
        if divisor == "axis 0" and setting.rank < 3 and c.axis == -1:  # it counts rows that are left out too
            divisor, left_out = "samples", "zero" if left_out == "removed" and setting.left_out else left_out
        if left_out == "zero" and divisor not in ("samples", "elements", "squared samples"):
            left_out = "removed"
    elif setting.quantity == "samples":
        if divisor not in ("samples", "elements", "weights") or setting.rank < 2:
            divisor = "samples"
    else:
        divisor = "samples"
    # The one-hot row of a label out of range is 0, and with these costs its loss is too.
    zero_target = not setting.mask and not setting.ignored_class and not c.label_smoothing
    zero_loss = c.cost in ("cross-entropy", "focal", "poly") or (
        c.cost == "divergence" and c.clip not in _CLIPS and c.renormalise != "both"
    )
    zero_weight = divisor not in ("weights", "nonzero weights") or c.class_weight
    if left_out == "kept" and zero_target and zero_loss and zero_weight and c.undefined == "zero":
        left_out = "zero" if divisor in ("samples", "elements") else "removed"
    return c.but(divisor=divisor, left_out=left_out)
