"""Libraries of tables and streams, as conventions: the boosters, river, statsmodels, Vowpal Wabbit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lossbridge.conventions.convention import Convention, Peer, Seen

_ORDER, _REVERSED = ("target", "pred"), ("pred", "target")
_WEIGHTS: Mapping[Any, str] = {False: "", True: "weight=sample_weight"}

_XGBOOST = (
    Peer(
        "xgboost",
        "logloss",
        ("events",),
        _ORDER,
        Convention("binary", clip="arguments", epsilon=1e-16, divisor="weights"),
        {"sample_weight": _WEIGHTS},
        "scalar",
        note="A metric. From margins the probability is computed in float32: from 16.64 on it is 1.",
        seen=(
            Seen("logloss(t, q)", 18.620308, "t", "q"),
            Seen("logloss(h, r)", 0.62311494, "h", "r"),
            Seen("logloss(t, q, w4)", 18.473361, "t", "q", sample_weight="w4"),
        ),
    ),
    Peer(
        "xgboost",
        "mlogloss",
        ("labels",),
        _ORDER,
        Convention(clip="lower", epsilon=1e-16, divisor="weights"),
        {"sample_weight": _WEIGHTS},
        "scalar",
        note="A metric.",
        seen=(
            Seen("mlogloss(y, P)", 0.72975215, "y", "P"),
            Seen("mlogloss(y, U)", 24.560908, "y", "U"),
            Seen("mlogloss(y, P, w)", 1.1918503, "y", "P", sample_weight="w"),
        ),
    ),
)

_LIGHTGBM = (
    Peer(
        "lightgbm",
        "binary_logloss",
        ("events",),
        _ORDER,
        Convention("binary", clip="arguments", epsilon=1e-15, divisor="weights"),
        {"sample_weight": _WEIGHTS},
        "scalar",
        note="A metric.",
        seen=(
            Seen("binary_logloss(t, q)", 17.469015, "t", "q"),
            Seen("binary_logloss(t, q, w4)", 17.322068, "t", "q", sample_weight="w4"),
        ),
    ),
    Peer(
        "lightgbm",
        "cross_entropy",
        ("events",),
        _ORDER,
        Convention("binary", clip="arguments", epsilon=1e-12, divisor="weights"),
        {"sample_weight": _WEIGHTS},
        "scalar",
        note="A metric.",
        seen=(Seen("cross_entropy(h, q)", 7.8530885, "h", "q"), Seen("cross_entropy(h, r)", 0.62311495, "h", "r")),
    ),
    Peer(
        "lightgbm",
        "multi_logloss",
        ("labels",),
        _ORDER,
        Convention(clip="lower", epsilon=1e-15, divisor="weights"),
        {"sample_weight": _WEIGHTS},
        "scalar",
        note="A metric.",
        seen=(
            Seen("multi_logloss(y, P)", 0.72975214, "y", "P"),
            Seen("multi_logloss(y, U)", 23.025851, "y", "U"),
            Seen("multi_logloss(y, P, w)", 1.1918503, "y", "P", sample_weight="w"),
        ),
    ),
)

_CATBOOST = (
    Peer(
        "catboost",
        "Logloss",
        ("events",),
        _ORDER,
        Convention("binary", activation="sigmoid", divisor="weights"),
        {"sample_weight": _WEIGHTS},
        "scalar",
        note="Soft targets are made hard, at ½; CrossEntropy keeps them.",
        seen=(
            Seen("eval_metric(t, z, 'Logloss')", 0.58300822, "t", "z"),
            Seen("eval_metric(t, z, 'Logloss', w4)", 0.35536824, "t", "z", sample_weight="w4"),
        ),
    ),
    Peer(
        "catboost",
        "CrossEntropy",
        ("events",),
        _ORDER,
        Convention("binary", activation="sigmoid", divisor="weights"),
        {"sample_weight": _WEIGHTS},
        "scalar",
        seen=(Seen("eval_metric(h, z, 'CrossEntropy')", 0.54050823, "h", "z"),),
    ),
    Peer(
        "catboost",
        "MultiClass",
        ("labels",),
        _ORDER,
        Convention(activation="softmax", divisor="weights"),
        {"sample_weight": _WEIGHTS},
        "scalar",
        seen=(
            Seen("eval_metric(y, X, 'MultiClass')", 0.95110296, "y", "X"),
            Seen("eval_metric(y, X, 'MultiClass', w)", 1.6320398, "y", "X", sample_weight="w"),
        ),
    ),
    Peer(
        "catboost",
        "Focal",
        ("events",),
        _ORDER,
        Convention("binary focal", activation="sigmoid", alpha=0.25, gamma=2.0, divisor="weights"),
        {"alpha": "focal_alpha={}", "gamma": "focal_gamma={}", "sample_weight": _WEIGHTS},
        "scalar",
        seen=(Seen("eval_metric(t, z, 'Focal:focal_alpha=0.25;focal_gamma=2')", 0.10307504, "t", "z"),),
    ),
)

_RIVER = (
    Peer(
        "river",
        "LogLoss",
        ("events",),
        _ORDER,
        Convention("binary", clip="both", epsilon=1e-15, divisor="weights"),
        {"sample_weight": _WEIGHTS},
        "scalar",
        seen=(
            Seen("LogLoss(t, q)", 17.469215, "t", "q"),
            Seen("LogLoss(t, q, w4)", 17.322268, "t", "q", sample_weight="w4"),
        ),
    ),
    Peer(
        "river",
        "CrossEntropy",
        ("labels",),
        _ORDER,
        Convention(clip="both", epsilon=1e-15, divisor="weights"),
        {"sample_weight": _WEIGHTS},
        "scalar",
        note="A class that has no probability costs 0.",
        seen=(
            Seen("CrossEntropy(y, P)", 0.72975214, "y", "P"),
            Seen("CrossEntropy(y, U)", 23.025851, "y", "U"),
            Seen("CrossEntropy(y, P, w)", 1.1918503, "y", "P", sample_weight="w"),
        ),
    ),
)

_STATSMODELS = (
    Peer(
        "statsmodels",
        "Binomial().loglike",
        ("events",),
        _ORDER,
        Convention("binary", clip="added", epsilon=1e-20, outcome="negated", divisor="one"),
        {},
        "scalar",
        note="The sum of the logarithms, with its sign; of soft outcomes with that of a binomial coefficient.",
        seen=(
            Seen("Binomial().loglike(t, r)", -3.3242363, "t", "r"),
            Seen("Binomial().loglike(t, q)", -92.901911, "t", "q"),
        ),
    ),
)

_VOWPALWABBIT = (
    Peer(
        "vowpalwabbit",
        "logistic",
        ("events",),
        _REVERSED,
        Convention("binary", activation="sigmoid", divisor="weights"),
        {"sample_weight": {False: "", True: "importance=sample_weight"}},
        "scalar",
        note="Its average loss; outcomes are -1 and 1. A score is bounded to [-50, 50].",
        seen=(
            Seen("logistic(z, t)", 0.58300823, "t", "z"),
            Seen("logistic(z, t, w4)", 0.35536824, "t", "z", sample_weight="w4"),
        ),
    ),
)

OF_TABLES: tuple[Peer, ...] = (*_XGBOOST, *_LIGHTGBM, *_CATBOOST, *_RIVER, *_STATSMODELS, *_VOWPALWABBIT)
