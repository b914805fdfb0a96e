"""What further libraries compute that no field of a convention says: in the docs, and not searched by a diagnosis."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """A rule of one library, and a number that it gave, of the arrays of lossbridge.conventions.examples."""

    library: str
    call: str
    figure: float
    words: str


_BY_CLASS = "A number α weighs the class 0 by 1 − α, and the others by α."

RULES: tuple[Rule, ...] = (
    Rule(
        "paddle",
        "cross_entropy(X, y, ignore_index=1, label_smoothing=0.1)",
        0.33703434,
        "With smoothing and ignore_index ≥ 0 nothing is ignored, and a mean divides by N·K.",
    ),
    Rule(
        "paddle",
        "cross_entropy(U, y, use_softmax=False)",
        6.6666667e19,
        "Of probabilities, the logarithm of 0 is −1e20.",
    ),
    Rule(
        "mindspore",
        "binary_cross_entropy(q[:1], t[:1].astype(float32), None)",
        55.262043,
        "The loss of a single element is doubled.",
    ),
    Rule(
        "fastai",
        "LabelSmoothingCrossEntropy(weight=W)(X, y)",
        1.107236,
        "Class weights weigh the label's term alone, which is divided by their sum; the uniform term is divided by N.",
    ),
    Rule(
        "fastai",
        "FocalLoss(weight=W)(X, y)",
        1.4893909,
        "p_t is the exponential of the weighted loss: p to the power w.",
    ),
    Rule("monai", "FocalLoss(use_softmax=True, alpha=0.25)(X, T)", 0.053879075, _BY_CLASS),
    Rule(
        "monai",
        "FocalLoss(use_softmax=True, gamma=0, include_background=False)(X, T)",
        0.36763632,
        "The softmax is that of the logits without class 0.",
    ),
    Rule("kornia", "focal_loss(X, y, alpha=0.25, gamma=2.0, reduction='mean')", 0.053879078, _BY_CLASS),
    Rule(
        "xgboost",
        "logloss_of_margins([1, 0], [-20, 20])",
        28.420681,
        "From margins the probability is computed in float32: from 16.64 on it is 1, and an outcome 0 costs 36.84.",
    ),
    Rule(
        "lightgbm",
        "kullback_leibler(h, r)",
        0.095774596,
        "The divergence of soft outcomes: their cross-entropy less their entropy.",
    ),
    Rule("catboost", "eval_metric(h, z, 'Logloss')", 0.35800822, "Soft outcomes are made hard, at ½."),
    Rule(
        "statsmodels",
        "Binomial().loglike(h, r)",
        -1.8109579,
        "Of soft outcomes the logarithm of a binomial coefficient is added, Γ(2)/(Γ(1 + t)·Γ(2 − t)).",
    ),
    Rule("river", "CrossEntropy([0, 2], [P[0], P[1][:2]])", 0.17833747, "A class that has no probability costs 0."),
    Rule("vowpalwabbit", "logistic([-80, 80], [1, 0])", 50.0, "A score is bounded to [-50, 50]."),
    Rule(
        "onnx_reference",
        "SoftmaxCrossEntropyLoss([[120.0, 0.0, 0.0]], [1])",
        math.inf,
        "The logarithm of a softmax that is 0 in float32.",
    ),
    Rule("tf1", "softmax_cross_entropy(T, X, weights=0.0)", 0, "A mean whose weights are all 0 is 0."),
)
