"""The records of a convention, one way to get a number, and of a peer, one library's function. Data, no arithmetic."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Cost = Literal[
    "cross-entropy",  # Σ_c t_c (−log p_c)
    "binary",  # −t log p − (1 − t) log(1 − p), class by class
    "divergence",  # Σ_c t_c log(t_c / p_c)
    "convex divergence",  # Σ_c t_c log(t_c / p_c) − t_c + p_c
    "focal",  # Σ_c α t_c (1 − p_c)^γ (−log p_c)
    "binary focal",  # (1 − p_t)^γ times "binary"
    "poly",  # "cross-entropy" + ε₁ Σ_c t_c (1 − p_c)
    "entropy",  # Σ_c p_c (−log p_c), of the predictions alone
    "squared",  # Σ_c (t_c − p_c)², the Brier score
    "jensen-shannon",  # Σ_c β t_c log(t_c / m_c) + (1 − β) p_c log(p_c / m_c), m = β t + (1 − β) p
    "total variation",  # ½ Σ_c |t_c − p_c|
]
# The function that makes an array probabilities. "exp": it holds their logarithms.
Activation = Literal["none", "softmax", "sigmoid", "exp", "softmax twice", "sigmoid twice"]
# "both": p to [ε, 1 − ε]; "lower": p to [ε, 1]; "added": log(p + ε); "arguments": log(max(·, ε)) of p and of 1 − p, of
# which PyTorch's log p ≥ −100 is one, with ε = e⁻¹⁰⁰.
Clip = Literal["none", "both", "lower", "added", "arguments"]
# What the sum is divided by. "samples": the number of rows, which lie along the axis of the classes; "classes": the
# size of that axis; "elements": the product; "weights": the sum of the rows' weights, "nonzero weights": their number;
# "axis 0": the size of axis 0; "squared samples": the square of their number.
Divisor = Literal["samples", "elements", "weights", "nonzero weights", "classes", "axis 0", "squared samples", "one"]


@dataclass(frozen=True)
class Convention:
    """How a number is computed from targets and predictions. Libraries, or users, differ in every field.

    No library differs in the fields after `divisor`; they are mistakes that are made between two libraries.
    """

    cost: Cost = "cross-entropy"
    activation: Activation = "none"  # of the predictions
    target_activation: Activation = "none"
    temperature: float = 1.0  # which logits are divided by
    softcap: float | None = None  # c: what a softmax is taken of is then c·tanh(z / c)
    z_loss: float = 0.0  # ζ: ζ·lse² is added to a row's loss, lse = log Σ e^z of what the softmax is taken of
    renormalise: Literal["no", "predictions", "both"] = "no"  # to the sum 1, before clipping …
    clip_first: bool = False  # … or after it
    clip: Clip = "none"
    epsilon: float | Literal["machine"] = 0.0  # "machine": of the predictions' dtype
    label_smoothing: float = 0.0
    # t (1 − s) + s/K, K being 2 for outcomes; s/(K − 1) to each wrong class; s/C for outcomes of C classes; "added" is
    # s/K to each wrong class, of which nothing is taken from the right one.
    smoothing_over: Literal["K", "K-1", "C", "added"] = "K"
    pos_weight: float = 1.0  # of the term −t log p of outcomes
    alpha: float | None = None
    gamma: float = 0.0
    beta: float = 0.5  # of the Jensen–Shannon divergence …
    scale: Literal["mixture", "divergence"] = "mixture"  # … which is divided by β (1 − β) if it is "divergence"
    crossed: bool = False  # … and whether its m is (1 − β) t + β p, as in TRL 0.14
    class_weight: bool = False  # whether the given ones are used …
    weighted: Literal["terms", "rows"] = "terms"  # … on the terms, t_c w_c (−log p_c), or on rows, by Σ_c t_c w_c
    sample_weight: bool = False
    left_out: Literal["removed", "zero", "kept"] = "removed"  # masked and ignored entries; "zero": counted, with loss 0
    base: float = math.e
    axis: int = -1
    divisor: Divisor = "samples"

    swapped: bool = False
    logarithm: Literal["once", "missing", "twice"] = "once"
    # "exact": no rounding but that of ε and 1 − ε, as float64 for float64 predictions, else as float32.
    dtype: Literal["exact", "float32", "float16 inputs", "bfloat16 inputs", "float16", "bfloat16"] = "exact"
    outcome: Literal["loss", "negated", "perplexity"] = "loss"
    undefined: Literal["zero", "nan"] = "zero"  # 0·∞, and a mean over nothing
    rows: str = "all"  # which rows count, and how much: a name of lossbridge.tools.diagnosis.weightings
    factor: float = 1.0  # of the whole …
    offset: float = 0.0  # … to which this is added

    def but(self, **changes: Any) -> Convention:
        """With these fields; itself if none changes, which saves most of the time of a search."""
        if all(getattr(self, name) == value for name, value in changes.items()):
            return self
        return replace(self, **changes)

    def activated(self, activation: Activation) -> Convention:
        """With another activation of the predictions, and without clipping, because logits are not clipped."""
        if activation == self.activation:
            return self
        return replace(self, activation=activation, clip="none", epsilon=0.0, renormalise="no")

    @property
    def logit_scale(self) -> float:
        """Which logits are multiplied by."""
        return 1 / self.temperature

    def resolved(self, machine_epsilon: float) -> Convention:
        """With ε as a number."""
        return replace(self, epsilon=machine_epsilon) if self.epsilon == "machine" else self


# By field of the convention: the code of the option that sets it, for each value, or as a format of the value. A label
# to ignore is "{ignored}"; "{class}", if it is one of the classes and is treated in another way.
Options = Mapping[str, Mapping[Any, str] | str]
Targets = Literal["labels", "distributions", "events", "none"]


@dataclass(frozen=True)
class Seen:
    """A number that a library gave. The names in the call are those of lossbridge.conventions.examples."""

    call: str  # the library's own code; benchmarks/measure_conventions.py evaluates it
    figure: float
    target: str  # the names of the two arrays …
    pred: str
    options: Mapping[str, Any] = field(default_factory=dict)  # … the fields of the convention that the call sets
    class_weight: str = ""  # … and the names of the weights that it uses
    sample_weight: str = ""
    ignored: int | None = None  # the label to ignore

    def convention(self, of: Convention) -> Convention:
        """A function's convention, with what the call sets."""
        weights = {"class_weight": bool(self.class_weight), "sample_weight": bool(self.sample_weight)}
        return replace(of, **{**weights, **self.options})


@dataclass(frozen=True)
class Peer:
    """One function of one library."""

    library: str  # a module of lossbridge.compat, "lossbridge", or one of the further libraries
    function: str
    targets: tuple[Targets, ...]  # integer labels, distributions over classes, outcomes in [0, 1]
    arguments: tuple[str, str]  # the order of the first two: "target" and "pred"
    convention: Convention  # with the defaults
    options: Options = field(default_factory=dict)
    returns: Literal["scalar", "samples", "elements", "columns"] = "samples"  # "columns": one value a column
    note: str = ""
    nan_under: tuple[Activation, ...] = ()  # the activations with which its 0·∞ is NaN
    version: str = ""  # of a further library: the one that was run, which gave what was seen
    seen: tuple[Seen, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.library}.{self.function}"

    @property
    def is_further(self) -> bool:
        """Whether it is of a library that `lossbridge.compat` does not follow, and that fewer people have."""
        return bool(self.version)

    @property
    def elementwise(self) -> bool:
        """Whether it returns one value an element if it does not reduce."""
        return self.returns == "elements" or (self.library == "torch" and self.convention.divisor == "elements")

    @property
    def is_class(self) -> bool:
        """Whether it is a class: constructed with its options, and called with arrays and weights."""
        return self.function[0].isupper()
