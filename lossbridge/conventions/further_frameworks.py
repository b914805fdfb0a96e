"""Further frameworks, as conventions: TensorFlow 1's losses, Paddle, MLX."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lossbridge.conventions.convention import Convention, Options, Peer, Seen

_ORDER = ("target", "pred")
_REVERSED = ("pred", "target")
_WEIGHT: Mapping[Any, str] = {False: "", True: "weight=class_weight"}
_SMOOTHING = "label_smoothing={}"
_SMOOTHED: Mapping[str, Any] = {"label_smoothing": 0.1}

_SOFTMAX = Convention(activation="softmax")
_LOGS_BY_WEIGHT = Convention(activation="exp", divisor="weights")
_SIGMOID = Convention("binary", activation="sigmoid", divisor="elements")
_BINARY_LOG_100 = Convention("binary", clip="arguments", epsilon=math.exp(-100), divisor="elements")
_DIVERGENCE_OF_ELEMENTS = Convention("divergence", activation="exp", divisor="elements")

# TensorFlow 1: a mean divides by the number of weights that are not 0; without weights that is every loss.
_TF1_WEIGHTS: Mapping[Any, str] = {False: "", True: "weights=sample_weight"}

_TF1_WEIGHTED: Options = {"sample_weight": {True: "weights=sample_weight"}}

_TF1 = (
    Peer(
        "tf1",
        "softmax_cross_entropy",
        ("distributions",),
        _ORDER,
        Convention(activation="softmax", divisor="nonzero weights"),
        {"label_smoothing": _SMOOTHING, "sample_weight": _TF1_WEIGHTS},
        "scalar",
        seen=(
            Seen("softmax_cross_entropy(T, X)", 0.95110291, "T", "X"),
            Seen("softmax_cross_entropy(S, X, label_smoothing=0.1)", 1.0231029, "S", "X", _SMOOTHED),
            Seen("softmax_cross_entropy(T, X, weights=w)", 2.4480596, "T", "X", sample_weight="w"),
        ),
    ),
    Peer(
        "tf1",
        "sparse_softmax_cross_entropy",
        ("labels",),
        _ORDER,
        Convention(activation="softmax", divisor="nonzero weights"),
        {"sample_weight": _TF1_WEIGHTS},
        "scalar",
        seen=(
            Seen("sparse_softmax_cross_entropy(y, X)", 0.95110291, "y", "X"),
            Seen("sparse_softmax_cross_entropy(y, X, weights=w)", 2.4480596, "y", "X", sample_weight="w"),
        ),
    ),
    Peer(
        "tf1",
        "sigmoid_cross_entropy",
        ("events",),
        _ORDER,
        _SIGMOID,
        {"label_smoothing": _SMOOTHING},
        "scalar",
        seen=(
            Seen("sigmoid_cross_entropy(T, X)", 0.95620126, "T", "X"),
            Seen("sigmoid_cross_entropy(T, X, label_smoothing=0.1)", 0.95564568, "T", "X", _SMOOTHED),
        ),
    ),
    Peer(
        "tf1",
        "log_loss",
        ("events",),
        _ORDER,
        Convention("binary", clip="added", epsilon=1e-7, divisor="elements"),
        {"epsilon": "epsilon={}"},
        "scalar",
        seen=(Seen("log_loss(t, q)", 8.2586746, "t", "q"),),
    ),
    Peer(
        "tf1",
        "log_loss",
        ("events",),
        _ORDER,
        Convention("binary", clip="added", epsilon=1e-7, divisor="nonzero weights"),
        _TF1_WEIGHTED,
        "scalar",
        seen=(Seen("log_loss(t, q, weights=w4)", 10.815637, "t", "q", sample_weight="w4"),),
    ),
    Peer(
        "tf1",
        "sigmoid_cross_entropy",
        ("events",),
        _ORDER,
        Convention("binary", activation="sigmoid", divisor="nonzero weights"),
        _TF1_WEIGHTED,
        "scalar",
        seen=(Seen("sigmoid_cross_entropy(t, z, weights=w4)", 0.47382435, "t", "z", sample_weight="w4"),),
    ),
    Peer(
        "tf1",
        "mean_squared_error",
        ("events", "distributions"),
        _ORDER,
        Convention("squared", divisor="elements"),
        {},
        "scalar",
        note="The squared error of probabilities.",
        seen=(
            Seen("mean_squared_error(S, P)", 0.024444444, "S", "P"),
            Seen("mean_squared_error(h, r)", 0.045000009, "h", "r"),
        ),
    ),
)

_PADDLE_SOFTMAX = Convention(activation="softmax", clip="lower", epsilon=math.exp(-64), divisor="weights")

_PADDLE = (
    Peer(
        "paddle",
        "cross_entropy",
        ("labels",),
        _REVERSED,
        replace(_PADDLE_SOFTMAX, divisor="samples", left_out="zero"),
        {"left_out": {"zero": "ignore_index={ignored}", "removed": "ignore_index={class}"}},
        "scalar",
        note="A mean counts the labels that are ignored, -100 by default. With ignore_index ≥ 0 it does not, unless "
        "there is smoothing: then nothing is ignored, and a mean divides by N·K.",
        seen=(
            Seen("cross_entropy(X, y)", 0.95110291, "y", "X"),
            Seen("cross_entropy(V, y)", 21.699537, "y", "V"),
            Seen("cross_entropy(X, y_left_out)", 0.88552493, "y_left_out", "X", ignored=-100),
            Seen("cross_entropy(X, y, ignore_index=1)", 0.41702998, "y", "X", {"left_out": "removed"}, ignored=1),
        ),
    ),
    Peer(
        "paddle",
        "cross_entropy",
        ("labels",),
        _REVERSED,
        _PADDLE_SOFTMAX,
        {"class_weight": {True: "weight=class_weight"}},
        "scalar",
        seen=(
            Seen("cross_entropy(X, y, weight=W)", 1.0579175, "y", "X", class_weight="W"),
            Seen(
                "cross_entropy(X, y_left_out, weight=W)", 1.6320397, "y_left_out", "X", class_weight="W", ignored=-100
            ),
        ),
    ),
    Peer(
        "paddle",
        "cross_entropy",
        ("labels",),
        _REVERSED,
        replace(_PADDLE_SOFTMAX, weighted="rows", label_smoothing=0.1),
        {"label_smoothing": {0.1: "label_smoothing=0.1"}, "class_weight": _WEIGHT},
        "scalar",
        note="Smoothed labels are soft targets, so that their class weights are weights of rows, Σ t·w.",
        seen=(
            Seen("cross_entropy(X, y, label_smoothing=0.1)", 1.011103, "y", "X"),
            Seen("cross_entropy(X, y, weight=W, label_smoothing=0.1)", 1.0955682, "y", "X", class_weight="W"),
        ),
    ),
    Peer(
        "paddle",
        "cross_entropy",
        ("distributions",),
        _REVERSED,
        replace(_PADDLE_SOFTMAX, weighted="rows"),
        {"label_smoothing": _SMOOTHING, "class_weight": _WEIGHT},
        "scalar",
        note="The class weights of soft targets are weights of rows, Σ t·w, and a mean divides by their sum.",
        seen=(
            Seen("cross_entropy(X, S, soft_label=True)", 0.96443629, "S", "X"),
            Seen("cross_entropy(X, S, soft_label=True, label_smoothing=0.1)", 1.0231029, "S", "X", _SMOOTHED),
            Seen("cross_entropy(X, S, soft_label=True, weight=W)", 0.91128451, "S", "X", class_weight="W"),
        ),
    ),
    Peer(
        "paddle",
        "nll_loss",
        ("labels",),
        _REVERSED,
        _LOGS_BY_WEIGHT,
        {"class_weight": _WEIGHT, "left_out": {"removed": "ignore_index={ignored}"}},
        "scalar",
        seen=(
            Seen("nll_loss(L, y)", 0.72975212, "y", "L"),
            Seen("nll_loss(L, y_left_out)", 0.98305643, "y_left_out", "L", ignored=-100),
            Seen("nll_loss(L, y, weight=W)", 0.80436766, "y", "L", class_weight="W"),
        ),
    ),
    Peer(
        "paddle",
        "kl_div",
        ("distributions",),
        _REVERSED,
        _DIVERGENCE_OF_ELEMENTS,
        {"divisor": {"elements": "", "samples": "reduction='batchmean'", "one": "reduction='sum'"}},
        "scalar",
        seen=(
            Seen("kl_div(L, S)", 0.039319638, "S", "L"),
            Seen("kl_div(L, S, reduction='batchmean')", 0.11795891, "S", "L", {"divisor": "samples"}),
        ),
    ),
    Peer(
        "paddle",
        "log_loss",
        ("events",),
        _REVERSED,
        Convention("binary", clip="added", epsilon=1e-4, divisor="elements"),
        {"epsilon": "epsilon={}"},
        "elements",
        note="ε is added in both logarithms.",
        seen=(Seen("log_loss(q[:, None], t[:, None].astype('float32')).mean()", 4.8047194, "t", "q"),),
    ),
    Peer(
        "paddle",
        "binary_cross_entropy",
        ("events",),
        _REVERSED,
        _BINARY_LOG_100,
        {},
        "scalar",
        seen=(Seen("binary_cross_entropy(q, t.astype('float32'))", 50.199627, "t", "q"),),
    ),
    Peer(
        "paddle",
        "binary_cross_entropy_with_logits",
        ("events",),
        _REVERSED,
        _SIGMOID,
        {},
        "scalar",
        seen=(Seen("binary_cross_entropy_with_logits(X, S)", 0.96064568, "S", "X"),),
    ),
    Peer(
        "paddle",
        "sigmoid_focal_loss",
        ("events",),
        _REVERSED,
        Convention("binary focal", activation="sigmoid", alpha=0.25, gamma=2.0, divisor="one"),
        {"divisor": {"one": "", "elements": "reduction='mean'"}, "alpha": "alpha={}", "gamma": "gamma={}"},
        "scalar",
        note="A sum by default.",
        seen=(
            Seen("sigmoid_focal_loss(X, T)", 3.700634, "T", "X"),
            Seen("sigmoid_focal_loss(X, T, reduction='mean')", 0.41118157, "T", "X", {"divisor": "elements"}),
        ),
    ),
)

_MLX = (
    Peer(
        "mlx",
        "cross_entropy",
        ("labels", "distributions"),
        _REVERSED,
        _SOFTMAX,
        {"label_smoothing": _SMOOTHING, "sample_weight": {False: "", True: "weights=sample_weight"}},
        note="A mean with weights divides by the number of samples.",
        seen=(
            Seen("cross_entropy(X, y).mean()", 0.95110291, "y", "X"),
            Seen("cross_entropy(X, S).mean()", 0.96443629, "S", "X"),
            Seen("cross_entropy(X, y, label_smoothing=0.1).mean()", 1.0111029, "y", "X", _SMOOTHED),
            Seen("cross_entropy(X, y, weights=w, reduction='mean')", 1.6320398, "y", "X", sample_weight="w"),
        ),
    ),
    Peer(
        "mlx",
        "nll_loss",
        ("labels",),
        _REVERSED,
        Convention(activation="exp"),
        seen=(Seen("nll_loss(L, y).mean()", 0.72975218, "y", "L"),),
    ),
    Peer(
        "mlx",
        "binary_cross_entropy",
        ("events",),
        _REVERSED,
        _SIGMOID,
        {},
        "scalar",
        seen=(
            Seen("binary_cross_entropy(X, T)", 0.95620137, "T", "X"),
            Seen("binary_cross_entropy(z, t)", 0.58300829, "t", "z"),
        ),
    ),
    Peer(
        "mlx",
        "binary_cross_entropy",
        ("events",),
        _REVERSED,
        _BINARY_LOG_100,
        {"activation": {"none": "with_logits=False"}},
        "scalar",
        seen=(Seen("binary_cross_entropy(q, t, with_logits=False)", 50.199627, "t", "q"),),
    ),
    Peer(
        "mlx",
        "kl_div_loss",
        ("distributions",),
        _REVERSED,
        Convention("divergence", activation="exp", target_activation="exp"),
        nan_under=("exp",),
        note="Both arguments hold logarithms.",
        seen=(Seen("kl_div_loss(L, M).mean()", 0.1179589, "M", "L"),),
    ),
)

FRAMEWORKS: tuple[Peer, ...] = (*_TF1, *_PADDLE, *_MLX)
