"""Libraries over PyTorch, as conventions: timm, torchvision, MONAI, Kornia, segmentation-models, fastai, metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lossbridge.conventions.convention import Convention, Options, Peer, Seen

_ORDER = ("target", "pred")
_REVERSED = ("pred", "target")
_SOFTMAX = Convention(activation="softmax")
_SMOOTHED = Convention(activation="softmax", label_smoothing=0.1)
_SIGMOID = Convention("binary", activation="sigmoid", divisor="elements")
# A focal loss of every class: a mean divides by N·K.
_FOCAL = Convention("focal", activation="softmax", gamma=2.0, divisor="elements")
_BINARY_FOCAL = Convention("binary focal", activation="sigmoid", gamma=2.0, divisor="elements")
_FOCUS: Options = {"alpha": "alpha={}", "gamma": "gamma={}"}
_MEAN_OF_ELEMENTS: Mapping[Any, str] = {"elements": "reduction='mean'", "one": "reduction='sum'"}

_TIMM = (
    Peer(
        "timm",
        "LabelSmoothingCrossEntropy",
        ("labels",),
        _REVERSED,
        _SMOOTHED,
        {"label_smoothing": "smoothing={}"},
        "scalar",
        seen=(
            Seen("LabelSmoothingCrossEntropy()(X, y)", 1.0111029, "y", "X"),
            Seen("LabelSmoothingCrossEntropy(smoothing=0.2)(X, y)", 1.071103, "y", "X", {"label_smoothing": 0.2}),
        ),
    ),
    Peer(
        "timm",
        "SoftTargetCrossEntropy",
        ("distributions",),
        _REVERSED,
        _SOFTMAX,
        {},
        "scalar",
        seen=(Seen("SoftTargetCrossEntropy()(X, S)", 0.96443629, "S", "X"),),
    ),
    Peer(
        "timm",
        "BinaryCrossEntropy",
        ("labels",),
        _REVERSED,
        replace(_SIGMOID, label_smoothing=0.1, smoothing_over="C"),
        {"label_smoothing": "smoothing={}"},
        "scalar",
        note="Labels are one outcome a class, smoothed to 1 − s + s/K and s/K; targets of a row each are not smoothed.",
        seen=(
            Seen("BinaryCrossEntropy()(X, y)", 0.9762013, "y", "X"),
            Seen("BinaryCrossEntropy(smoothing=0.2)(X, y)", 0.99620122, "y", "X", {"label_smoothing": 0.2}),
        ),
    ),
    Peer(
        "timm",
        "BinaryCrossEntropy",
        ("events",),
        _REVERSED,
        _SIGMOID,
        {},
        "scalar",
        seen=(Seen("BinaryCrossEntropy()(X, S)", 0.96064568, "S", "X"),),
    ),
)

_TORCHVISION = (
    Peer(
        "torchvision",
        "sigmoid_focal_loss",
        ("events",),
        _REVERSED,
        replace(_BINARY_FOCAL, alpha=0.25),
        {"divisor": _MEAN_OF_ELEMENTS, **_FOCUS},
        "scalar",
        note="It reduces nothing by default; α < 0 is none.",
        seen=(
            Seen("sigmoid_focal_loss(X, T, reduction='mean')", 0.41118157, "T", "X"),
            Seen("sigmoid_focal_loss(X, T, alpha=-1, reduction='mean')", 0.55008769, "T", "X", {"alpha": None}),
            Seen("sigmoid_focal_loss(X, T, reduction='sum')", 3.7006342, "T", "X", {"divisor": "one"}),
        ),
    ),
)

_MONAI = (
    Peer(
        "monai",
        "FocalLoss",
        ("labels", "distributions"),
        _REVERSED,
        _FOCAL,
        {"activation": {"softmax": "use_softmax=True"}, "gamma": "gamma={}"},
        "scalar",
        note="Labels need to_onehot_y=True. A number α weighs class 0 by 1 − α, the others by α.",
        seen=(
            Seen("FocalLoss(use_softmax=True)(X, T)", 0.20474023, "T", "X"),
            Seen("FocalLoss(use_softmax=True, to_onehot_y=True)(X, y[:, None])", 0.20474023, "y", "X"),
            Seen("FocalLoss(use_softmax=True, gamma=0)(X, T)", 0.3170343, "T", "X", {"gamma": 0.0}),
        ),
    ),
    Peer(
        "monai",
        "FocalLoss",
        ("events",),
        _REVERSED,
        _BINARY_FOCAL,
        {"gamma": "gamma={}"},
        "scalar",
        note="One outcome a class by default. Labels need to_onehot_y=True.",
        seen=(Seen("FocalLoss()(X, T)", 0.55008769, "T", "X"),),
    ),
    Peer(
        "monai",
        "FocalLoss",
        ("labels",),
        _REVERSED,
        _BINARY_FOCAL,
        {"gamma": "gamma={}"},
        "scalar",
        seen=(Seen("FocalLoss(to_onehot_y=True)(X, y[:, None])", 0.55008769, "y", "X"),),
    ),
)

_KORNIA = (
    Peer(
        "kornia",
        "focal_loss",
        ("labels",),
        _REVERSED,
        _FOCAL,
        {"divisor": _MEAN_OF_ELEMENTS, "gamma": "gamma={}"},
        "scalar",
        note="α=None. A number α weighs class 0 by 1 − α, the others by α.",
        seen=(
            Seen("focal_loss(X, y, alpha=None, gamma=2.0, reduction='mean')", 0.20474023, "y", "X"),
            Seen("focal_loss(X, y, alpha=None, gamma=2.0, reduction='sum')", 1.8426621, "y", "X", {"divisor": "one"}),
        ),
    ),
    Peer(
        "kornia",
        "binary_focal_loss_with_logits",
        ("events",),
        _REVERSED,
        replace(_BINARY_FOCAL, alpha=0.25),
        {"divisor": _MEAN_OF_ELEMENTS, **_FOCUS},
        "scalar",
        seen=(
            Seen("binary_focal_loss_with_logits(X, T, alpha=0.25, gamma=2.0, reduction='mean')", 0.41118157, "T", "X"),
        ),
    ),
    Peer(
        "kornia",
        "kl_div_loss_2d",
        ("distributions",),
        _REVERSED,
        Convention("divergence"),
        {},
        "scalar",
        note="Of heat maps, whose rows and columns are the classes.",
        seen=(Seen("kl_div_loss_2d(P[:, None, None], S[:, None, None])", 0.11795888, "S", "P"),),
    ),
    Peer(
        "kornia",
        "js_div_loss_2d",
        ("distributions",),
        _REVERSED,
        Convention("jensen-shannon"),
        {},
        "scalar",
        note="Of heat maps, whose rows and columns are the classes.",
        seen=(Seen("js_div_loss_2d(P[:, None, None], S[:, None, None])", 0.027746076, "S", "P"),),
    ),
)

_SMP = (
    Peer(
        "smp",
        "SoftCrossEntropyLoss",
        ("labels",),
        _REVERSED,
        replace(_SOFTMAX, left_out="zero"),
        {"label_smoothing": "smooth_factor={}", "left_out": {"zero": "ignore_index={ignored}"}},
        "scalar",
        note="A mean counts the ignored labels; -100 is ignored. Its default, smooth_factor=None, raises a TypeError.",
        seen=(
            Seen("SoftCrossEntropyLoss(smooth_factor=0.0)(X, y)", 0.95110291, "y", "X"),
            Seen("SoftCrossEntropyLoss(smooth_factor=0.1)(X, y)", 1.0111029, "y", "X", {"label_smoothing": 0.1}),
            Seen("SoftCrossEntropyLoss(smooth_factor=0.0)(X, y_left_out)", 0.88552481, "y_left_out", "X", ignored=-100),
        ),
    ),
    Peer(
        "smp",
        "FocalLoss",
        ("labels",),
        _REVERSED,
        _BINARY_FOCAL,
        {"alpha": "alpha={}", "gamma": "gamma={}"},
        "scalar",
        note="In the mode 'multiclass': one outcome a class.",
        seen=(Seen("FocalLoss('multiclass')(X, y)", 0.55008775, "y", "X"),),
    ),
    Peer(
        "smp",
        "FocalLoss",
        ("events",),
        _REVERSED,
        _BINARY_FOCAL,
        {"alpha": "alpha={}", "gamma": "gamma={}"},
        "scalar",
        note="In the modes 'binary' and 'multilabel'.",
        seen=(Seen("FocalLoss('multilabel')(X, T)", 0.55008775, "T", "X"),),
    ),
    Peer(
        "smp",
        "SoftBCEWithLogitsLoss",
        ("events",),
        _REVERSED,
        _SIGMOID,
        {},
        "scalar",
        seen=(Seen("SoftBCEWithLogitsLoss()(X, T)", 0.95620126, "T", "X"),),
    ),
)

_FASTAI = (
    Peer(
        "fastai",
        "LabelSmoothingCrossEntropy",
        ("labels",),
        _REVERSED,
        _SMOOTHED,
        {"label_smoothing": "eps={}"},
        "scalar",
        note="Class weights weigh the term of the label alone, which is divided by their sum; the uniform term by N.",
        seen=(Seen("LabelSmoothingCrossEntropy()(X, y)", 1.0111029, "y", "X"),),
    ),
    Peer(
        "fastai",
        "FocalLoss",
        ("labels",),
        _REVERSED,
        Convention("focal", activation="softmax", gamma=2.0),
        {"gamma": "gamma={}"},
        "scalar",
        note="With class weights p_t is exp(−w·loss).",
        seen=(Seen("FocalLoss()(X, y)", 0.61422068, "y", "X"),),
    ),
    Peer(
        "fastai",
        "CrossEntropyLossFlat",
        ("labels",),
        _REVERSED,
        Convention(activation="softmax", divisor="weights"),
        {"class_weight": {False: "", True: "weight=class_weight"}},
        "scalar",
        seen=(
            Seen("CrossEntropyLossFlat()(X, y)", 0.95110291, "y", "X"),
            Seen("CrossEntropyLossFlat(weight=W)(X, y)", 1.0579175, "y", "X", class_weight="W"),
        ),
    ),
)

_TORCHMETRICS = (
    Peer(
        "torchmetrics",
        "kl_divergence",
        ("distributions",),
        _ORDER,
        Convention("divergence", renormalise="both"),
        {"divisor": {"samples": "", "one": "reduction='sum'"}},
        "scalar",
        seen=(Seen("kl_divergence(S, P)", 0.1179589, "S", "P"),),
    ),
    Peer(
        "torchmetrics",
        "perplexity",
        ("labels",),
        _REVERSED,
        Convention(activation="softmax", outcome="perplexity"),
        {"left_out": {"removed": "ignore_index={ignored}"}},
        "scalar",
        note="The softmax is applied always, also to probabilities.",
        seen=(
            Seen("perplexity(X[None], y[None])", 2.5885632, "y", "X"),
            Seen("perplexity(P[None], y[None])", 2.4662535, "y", "P", {"activation": "softmax"}),
        ),
    ),
)

_IGNITE = (
    Peer(
        "ignite",
        "KLDivergence",
        ("distributions",),
        _REVERSED,
        Convention("divergence", activation="softmax", target_activation="softmax"),
        {},
        "scalar",
        note="A metric. Both arguments hold logits.",
        seen=(Seen("KLDivergence(X, M)", 0.10889273, "M", "X"),),
    ),
    Peer(
        "ignite",
        "JSDivergence",
        ("distributions",),
        _REVERSED,
        Convention("jensen-shannon", activation="softmax", target_activation="softmax"),
        {},
        "scalar",
        note="A metric. Both arguments hold logits.",
        seen=(Seen("JSDivergence(X, M)", 0.02276465, "M", "X"),),
    ),
)

OF_TORCH: tuple[Peer, ...] = (
    *_TIMM,
    *_TORCHVISION,
    *_MONAI,
    *_KORNIA,
    *_SMP,
    *_FASTAI,
    *_TORCHMETRICS,
    *_IGNITE,
)
