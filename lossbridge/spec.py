"""The records of losses and of calls, as data. No arithmetic, and nothing of a framework.

`LOSSES` is the one registry: the public functions, their checks, the parity cases, the vectors, the benchmark and the
generated tests read it. A loss that lacks an entry somewhere fails a test that names it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

from lossbridge.maths import bernoulli, divergence, mixture, softmax
from lossbridge.maths.ops import Array, Rule

# The target of a loss: integer classes, class distributions, outcomes in [0, 1], or logits.
Target = Literal["labels", "distributions", "outcomes", "logits"]
# Its predictions.
Form = Literal["logits", "probabilities"]

# Of `divergence`: which one, and what the Jensen-Shannon divergence is multiplied by.
Kind = Literal["forward", "reverse", "jensen_shannon", "total_variation"]
Scale = Literal["mixture", "divergence"]

Reduction = Literal["sum_over_batch_size", "mean", "sum", "mean_with_sample_weight", "none"] | None
MEANS = ("sum_over_batch_size", "mean", "mean_with_sample_weight")
PER_SAMPLE = ("none", None)  # the result is the losses themselves, and no sum of them
REDUCTIONS = (*MEANS, "sum", *PER_SAMPLE)

FRACTION = (0.0, 1.0, "in [0, 1]")
# Options that are numbers: the smallest and the largest allowed, and the range in words. Between these T and T² have
# their digits in float32, and no gradient multiplies an infinite γ by 0.
NUMBERS: Mapping[str, tuple[float, float, str]] = {
    "epsilon": (0.0, math.nextafter(0.5, 0.0), "in [0, 0.5); 0 means exact, without clipping"),
    "label_smoothing": FRACTION,
    "temperature": (1e-8, 1e15, "in [1e-8, 1e15]"),
    "beta": FRACTION,
    "gamma": (0.0, 1e15, "in [0, 1e15]"),
    "logit_scale": (1e-8, 1e15, "in [1e-8, 1e15]"),
    "softcap": (1e-8, 1e15, "in [1e-8, 1e15], or None for no cap"),
    "z_loss": (0.0, 1e15, "in [0, 1e15]"),
}
# Options that are one of these words.
CHOICES: Mapping[str, tuple[str, ...]] = {"kind": get_args(Kind), "scale": get_args(Scale)}
OF_MIXTURE = {"beta": 0.5, "scale": "mixture"}  # of the kind jensen_shannon alone, with their defaults
OF_LOGITS = softmax.OF_LOGITS
SWITCHES = ("from_logits", "apply_class_balancing", "inplace_gradient")
PER_CLASS = ("class_weight", "pos_weight", "alpha")  # arrays of one number a class


class Names(NamedTuple):
    """The names of a function's arguments, for the texts of errors."""

    target: str = "y_true"
    pred: str = "y_pred"
    leave_out: str = "mask="  # the argument by which a sample does not count
    soft: str = "categorical_crossentropy"  # the function of one-hot and soft targets
    sparse: str = "sparse_categorical_crossentropy"
    classes_last: str = "axis=-1"  # the option for classes along the last axis
    class_weight: str = "class_weight"
    mask: str = "mask"


class Loss(NamedTuple):
    """A loss: its rules by form of the predictions and kind of target, its options, and what they may hold."""

    name: str
    rules: Mapping[Form, Mapping[Target, Rule]]
    options: Mapping[str, Any]  # by name, with their defaults; without those that all losses take
    names: Names = Names()
    outcomes: int = 2  # the smallest size of the axis
    elementwise: tuple[Target, ...] = ()  # with these targets every entry is a sample, and axis is ignored
    per_class: tuple[str, ...] = PER_CLASS  # options that hold one number a class
    scalar_per_class: bool = False  # or one number for all
    mass: Rule | None = None  # the weight of each sample in "mean_with_sample_weight", besides its sample_weight
    checked: bool = False  # whether targets and predictions must lie in the rule's domains
    kinds: Mapping[str, Rule] = {}  # the rule by the option `kind`; "reverse" exchanges the sides

    @property
    def targets(self) -> tuple[Target, ...]:
        return tuple(dict.fromkeys(target for rules in self.rules.values() for target in rules))

    def form(self, options: Mapping[str, Any]) -> Form:
        """The form of the predictions with these options."""
        return "logits" if options.get("from_logits") or "probabilities" not in self.rules else "probabilities"


class Request(NamedTuple):
    """A call of a loss, each thing resolved once.

    The arrays are the framework's own and not cast. Where `valid` is false they may hold anything, except labels, which
    are indices, and 0 there.
    """

    loss: Loss
    rule: Rule
    framework: Any  # a module of lossbridge.frameworks
    target: Array
    pred: Array
    axis: int | None  # None: every entry is a sample
    dtype: str  # of the computation and of the result
    options: Mapping[str, Any]  # the rule's keyword arguments
    reduction: Reduction
    normalizer: Array | None = None
    # These three broadcast against the losses; None stands for 1 or true.
    weight: Array | None = None
    counted: Array | None = None  # not masked, not ignored: what a mean divides by
    valid: Array | None = None  # counted, and of nonzero weight: only these entries are read
    constant: tuple[str, ...] = ()  # the arrays among the options that no framework can differentiate: NumPy's, lists
    in_arrays: str = ""  # why no path does that takes numbers for options: some are arrays, whose values may change
    domain: bool = False  # what lies outside the rule's domains makes its sample NaN
    inplace_gradient: bool = False  # the gradient may be written over the predictions


_PROBABILITIES = {"from_logits": False, "epsilon": 1e-7}
_SMOOTHED = {**_PROBABILITIES, "label_smoothing": 0.0}
_LABELS = Names(leave_out="ignore_class= or mask=")
_OF_LOGITS = Names("teacher_logits", "student_logits")

LOSSES: Mapping[str, Loss] = {
    loss.name: loss._replace(checked=True)
    for loss in (
        Loss(
            "categorical_crossentropy",
            {
                "logits": {"distributions": softmax.DISTRIBUTIONS},
                "probabilities": {"distributions": softmax.PROBABILITIES},
            },
            {**_SMOOTHED, "class_weight": None, **OF_LOGITS},
            mass=softmax.CLASS_MASS,
        ),
        Loss(
            "sparse_categorical_crossentropy",
            {"logits": {"labels": softmax.LABELS}, "probabilities": {"labels": softmax.LABEL_PROBABILITIES}},
            {**_SMOOTHED, "ignore_class": None, "class_weight": None, **OF_LOGITS},
            names=_LABELS,
            mass=softmax.LABEL_MASS,
        ),
        Loss(
            "binary_crossentropy",
            {"logits": {"outcomes": bernoulli.LOGITS}, "probabilities": {"outcomes": bernoulli.PROBABILITIES}},
            {**_SMOOTHED, "pos_weight": None},
            outcomes=1,
            scalar_per_class=True,
        ),
        Loss(
            "log_loss",
            {
                "logits": {"labels": softmax.LABELS, "outcomes": bernoulli.LOGITS},
                "probabilities": {"labels": softmax.LOG_LOSS, "outcomes": bernoulli.PROBABILITIES},
            },
            _PROBABILITIES,
            elementwise=("outcomes",),
        ),
        Loss(
            "kl_divergence",
            {"probabilities": {"distributions": divergence.PROBABILITIES}, "logits": {"logits": divergence.LOGITS}},
            _PROBABILITIES,
        ),
        Loss("distillation_loss", {"logits": {"logits": divergence.LOGITS}}, {"temperature": 1.0}, names=_OF_LOGITS),
        Loss(
            "divergence",
            {"logits": {"logits": divergence.LOGITS}},
            {"kind": "forward", **OF_MIXTURE, "temperature": 1.0},
            names=_OF_LOGITS,
            kinds={
                "forward": divergence.LOGITS,
                "reverse": divergence.LOGITS,
                "jensen_shannon": mixture.JENSEN_SHANNON,
                "total_variation": mixture.TOTAL_VARIATION,
            },
        ),
        Loss(
            "categorical_focal_crossentropy",
            {
                "logits": {"distributions": softmax.FOCAL},
                "probabilities": {"distributions": softmax.FOCAL_PROBABILITIES},
            },
            {"alpha": 0.25, "gamma": 2.0, **_SMOOTHED},
            scalar_per_class=True,
        ),
        Loss(
            "binary_focal_crossentropy",
            {"logits": {"outcomes": bernoulli.FOCAL}, "probabilities": {"outcomes": bernoulli.FOCAL_PROBABILITIES}},
            {"apply_class_balancing": False, "alpha": 0.25, "gamma": 2.0, **_SMOOTHED},
            outcomes=1,
            scalar_per_class=True,
        ),
    )
}

# No loss: it has no target, and labels that stand in its place are not read.
ENTROPY = Loss(
    "entropy_from_logits", {"logits": {"labels": softmax.ENTROPY}}, OF_LOGITS, names=Names(pred="logits"), outcomes=1
)
