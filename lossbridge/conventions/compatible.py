"""The functions that `lossbridge.compat` follows, as conventions: Keras, PyTorch, scikit-learn, optax, SciPy, and ours.

The parity command and the tests compare each with `lossbridge.compat` and with the library itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lossbridge.conventions.convention import Activation, Convention, Options, Peer, Targets

_ORDER = ("target", "pred")
_REVERSED = ("pred", "target")
_LOGITS: Mapping[Any, str] = {"none": "", "softmax": "from_logits=True"}
_BINARY_LOGITS: Mapping[Any, str] = {"none": "", "sigmoid": "from_logits=True"}
_SMOOTHING = "label_smoothing={}"
_CLASS_WEIGHT: Mapping[Any, str] = {False: "", True: "class_weight=class_weight"}
_SAMPLE_WEIGHT: Mapping[Any, str] = {False: "", True: "sample_weight=sample_weight"}
_WEIGHT: Mapping[Any, str] = {False: "", True: "weight=class_weight"}
_PYTORCH_REDUCTIONS: Mapping[Any, str] = {"elements": "", "one": "reduction='sum'"}
_OURS: Mapping[Any, str] = {"samples": "", "one": "reduction='sum'", "weights": "reduction='mean_with_sample_weight'"}
_OUR_CLIP: Mapping[Any, str] = {"both": "", "none": ""}  # "none" is epsilon=0

_KERAS_CATEGORICAL = Convention(renormalise="predictions", clip="both", epsilon=1e-7)
_KERAS_BINARY = Convention("binary", clip="both", epsilon=1e-7, divisor="elements")
_KERAS_DIVERGENCE = Convention("divergence", clip="lower", epsilon=1e-7)
_FOCAL = Convention("focal", renormalise="predictions", clip="both", epsilon=1e-7, alpha=0.25, gamma=2.0)
_BINARY_FOCAL = Convention("binary focal", clip="both", epsilon=1e-7, gamma=2.0, divisor="elements")
_BALANCED: Mapping[Any, str] = {None: "", 0.25: "apply_class_balancing=True"}

_EPSILON: Options = {"clip": _OUR_CLIP, "epsilon": "epsilon={}"}
_OUR_COMMON: Options = {**_EPSILON, "axis": "axis={}", "sample_weight": _SAMPLE_WEIGHT, "divisor": _OURS}
_OUR_CATEGORICAL: Options = {"activation": _LOGITS, "label_smoothing": _SMOOTHING, **_OUR_COMMON}
_OUR_BINARY: Options = {
    "activation": _BINARY_LOGITS,
    "label_smoothing": _SMOOTHING,
    **_EPSILON,
    "sample_weight": _SAMPLE_WEIGHT,
    "divisor": {"elements": "", "classes": "reduction='sum'"},
}
_OUR_TRIALS: Options = {
    "activation": _BINARY_LOGITS,
    **_EPSILON,
    "sample_weight": _SAMPLE_WEIGHT,
    "divisor": {"elements": "", "one": "reduction='sum'", "weights": "reduction='mean_with_sample_weight'"},
}
_POS_WEIGHT: Options = {"pos_weight": "pos_weight={}"}
_OF_LOGITS: Options = {"logit_scale": "logit_scale={}", "softcap": "softcap={}", "z_loss": "z_loss={}"}
_FOCUS: Options = {"alpha": "alpha={}", "gamma": "gamma={}"}


def _ours(function: str, targets: Targets, convention: Convention, options: Options) -> Peer:
    return Peer("lossbridge", function, (targets,), _ORDER, convention, options, "scalar")


_LOSSBRIDGE = (
    _ours(
        "categorical_crossentropy",
        "distributions",
        _KERAS_CATEGORICAL,
        {**_OUR_CATEGORICAL, "class_weight": _CLASS_WEIGHT, **_OF_LOGITS},
    ),
    _ours(
        "sparse_categorical_crossentropy",
        "labels",
        _KERAS_CATEGORICAL,
        {
            **_OUR_CATEGORICAL,
            "class_weight": _CLASS_WEIGHT,
            "left_out": {"removed": "ignore_class={ignored}"},
            **_OF_LOGITS,
        },
    ),
    _ours("binary_crossentropy", "events", _KERAS_BINARY, {**_OUR_BINARY, **_POS_WEIGHT}),
    _ours("log_loss", "events", _KERAS_BINARY, _OUR_TRIALS),
    _ours("log_loss", "labels", Convention(clip="both", epsilon=1e-7), {"activation": _LOGITS, **_OUR_COMMON}),
    _ours("kl_divergence", "distributions", _KERAS_DIVERGENCE, {**_OUR_COMMON, "clip": {"lower": "", "none": ""}}),
    _ours(
        "kl_divergence",
        "distributions",
        Convention("divergence", activation="softmax", target_activation="softmax"),
        {"activation": {"softmax": "from_logits=True"}, "axis": "axis={}", "divisor": _OURS},
    ),
    _ours(
        "distillation_loss",
        "distributions",
        Convention("divergence", activation="softmax", target_activation="softmax"),
        {"temperature": "temperature={}", "axis": "axis={}", "divisor": _OURS},
    ),
    _ours(
        "divergence",
        "distributions",
        Convention("divergence", activation="softmax", target_activation="softmax"),
        {
            "cost": {
                "divergence": "",
                "jensen-shannon": "kind='jensen_shannon'",
                "total variation": "kind='total_variation'",
            },
            "swapped": {False: "", True: "kind='reverse'"},
            "beta": "beta={}",
            "scale": {"mixture": "", "divergence": "scale='divergence'"},
            "temperature": "temperature={}",
            "axis": "axis={}",
            "sample_weight": _SAMPLE_WEIGHT,
            "divisor": _OURS,
        },
    ),
    _ours("categorical_focal_crossentropy", "distributions", _FOCAL, {**_OUR_CATEGORICAL, **_FOCUS}),
    _ours(
        "binary_focal_crossentropy",
        "events",
        _BINARY_FOCAL,
        {**_OUR_BINARY, "alpha": _BALANCED, "gamma": "gamma={}"},
    ),
)


def _keras(
    function: str, cls: str, targets: Targets, convention: Convention, options: Options, note: str = ""
) -> tuple[Peer, Peer]:
    """The class, which reduces, and the function, which returns one value a sample."""
    mean = convention.divisor
    reductions = {mean: "", "one" if mean == "samples" else "classes": "reduction='sum'"}
    if mean == "samples":
        reductions["weights"] = "reduction='mean_with_sample_weight'"
    reducing = {
        **options,
        "divisor": reductions,
        "sample_weight": _SAMPLE_WEIGHT,
    }
    per_sample = convention
    if "left_out" in options:
        reducing["left_out"] = {"removed": "ignore_class={ignored}"}
        per_sample = replace(convention, left_out="zero")
    # Of labels on JAX, where Keras multiplies by their one-hot rows.
    nan: tuple[Activation, ...] = ("sigmoid",) if targets == "events" else ("softmax",)
    return (
        Peer("keras", cls, (targets,), _ORDER, replace(convention, dtype="float32"), reducing, "scalar", nan_under=nan),
        Peer("keras", function, (targets,), _ORDER, per_sample, options, note=note, nan_under=nan),
    )


_KERAS = (
    *_keras(
        "categorical_crossentropy",
        "CategoricalCrossentropy",
        "distributions",
        _KERAS_CATEGORICAL,
        {"activation": _LOGITS, "label_smoothing": _SMOOTHING, "axis": "axis={}"},
    ),
    *_keras(
        "sparse_categorical_crossentropy",
        "SparseCategoricalCrossentropy",
        "labels",
        _KERAS_CATEGORICAL,
        {"activation": _LOGITS, "axis": "axis={}", "left_out": {"zero": "ignore_class={ignored}"}},
        "A mean over the function's values counts the ignored ones; the class does not.",
    ),
    *_keras(
        "binary_crossentropy",
        "BinaryCrossentropy",
        "events",
        _KERAS_BINARY,
        {"activation": _BINARY_LOGITS, "label_smoothing": _SMOOTHING},
        "The mean along the last axis.",
    ),
    *_keras(
        "kl_divergence",
        "KLDivergence",
        "distributions",
        _KERAS_DIVERGENCE,
        {},
    ),
    *_keras(
        "categorical_focal_crossentropy",
        "CategoricalFocalCrossentropy",
        "distributions",
        _FOCAL,
        {
            "activation": _LOGITS,
            "label_smoothing": _SMOOTHING,
            **_FOCUS,
            "axis": "axis={}",
        },
    ),
    *_keras(
        "binary_focal_crossentropy",
        "BinaryFocalCrossentropy",
        "events",
        _BINARY_FOCAL,
        {
            "activation": _BINARY_LOGITS,
            "label_smoothing": _SMOOTHING,
            "alpha": _BALANCED,
            "gamma": "gamma={}",
        },
        "The mean along the last axis.",
    ),
)

_TORCH = (
    Peer(
        "torch",
        "cross_entropy",
        ("labels",),
        _REVERSED,
        Convention(activation="softmax", divisor="weights", axis=1),
        {
            "label_smoothing": _SMOOTHING,
            "class_weight": _WEIGHT,
            "left_out": {"removed": "ignore_index={ignored}"},
            "divisor": {"weights": "", "one": "reduction='sum'"},
        },
        "scalar",
        note="With class weights a mean of labels divides by Σ w_y.",
    ),
    Peer(
        "torch",
        "cross_entropy",
        ("distributions",),
        _REVERSED,
        Convention(activation="softmax", axis=1),
        {
            "label_smoothing": _SMOOTHING,
            "class_weight": _WEIGHT,
            "divisor": {"samples": "", "one": "reduction='sum'"},
        },
        "scalar",
        note="A mean of distributions divides by their number, also with class weights.",
        nan_under=("softmax",),
    ),
    Peer(
        "torch",
        "nll_loss",
        ("labels",),
        _REVERSED,
        Convention(activation="exp", divisor="weights", axis=1),
        {
            "class_weight": _WEIGHT,
            "left_out": {"removed": "ignore_index={ignored}"},
            "divisor": {"weights": "", "one": "reduction='sum'"},
        },
        "scalar",
    ),
    Peer(
        "torch",
        "kl_div",
        ("distributions",),
        _REVERSED,
        Convention("divergence", activation="exp", divisor="elements"),
        {
            "target_activation": {"none": "", "exp": "log_target=True"},
            "divisor": {"elements": "", "axis 0": "reduction='batchmean'", "one": "reduction='sum'"},
        },
        "scalar",
        note="The default 'mean' divides by the number of elements; 'batchmean' gives the divergence.",
        nan_under=("exp",),
    ),
    Peer(
        "torch",
        "binary_cross_entropy",
        ("events",),
        _REVERSED,
        Convention("binary", clip="arguments", epsilon=math.exp(-100), divisor="elements"),
        {"divisor": _PYTORCH_REDUCTIONS},
        "scalar",
    ),
    Peer(
        "torch",
        "binary_cross_entropy_with_logits",
        ("events",),
        _REVERSED,
        Convention("binary", activation="sigmoid", divisor="elements"),
        {"divisor": _PYTORCH_REDUCTIONS},
        "scalar",
        nan_under=("sigmoid",),
    ),
)

_OPTAX = (
    Peer(
        "optax",
        "softmax_cross_entropy",
        ("distributions",),
        _REVERSED,
        Convention(activation="softmax"),
        {"axis": "axis={}"},
        nan_under=("softmax",),
    ),
    Peer(
        "optax",
        "softmax_cross_entropy_with_integer_labels",
        ("labels",),
        _REVERSED,
        Convention(activation="softmax"),
        {"axis": "axis={}"},
    ),
    Peer(
        "optax",
        "safe_softmax_cross_entropy",
        ("distributions",),
        _REVERSED,
        Convention(activation="softmax"),
        note="0·∞ is 0.",
    ),
    Peer(
        "optax",
        "sigmoid_binary_cross_entropy",
        ("events",),
        _REVERSED,
        Convention("binary", activation="sigmoid", divisor="elements"),
        returns="elements",
        nan_under=("sigmoid",),
    ),
    Peer(
        "optax",
        "sigmoid_focal_loss",
        ("events",),
        _REVERSED,
        Convention("binary focal", activation="sigmoid", gamma=2.0, divisor="elements"),
        {"alpha": {None: "", 0.25: "alpha=0.25"}, "gamma": "gamma={}"},
        "elements",
        nan_under=("sigmoid",),
    ),
    Peer(
        "optax",
        "poly_loss_cross_entropy",
        ("distributions",),
        _REVERSED,
        Convention("poly", activation="softmax", alpha=2.0),
        {"alpha": "epsilon={}", "axis": "axis={}"},
        nan_under=("softmax",),
        note="epsilon is the coefficient of the first polynomial term, no clipping.",
    ),
    Peer(
        "optax",
        "kl_divergence",
        ("distributions",),
        _REVERSED,
        Convention("divergence", activation="exp"),
        {"axis": "axis={}"},
        nan_under=("exp",),
    ),
    Peer(
        "optax",
        "kl_divergence_with_log_targets",
        ("distributions",),
        _REVERSED,
        Convention("divergence", activation="exp", target_activation="exp"),
        {"axis": "axis={}"},
        nan_under=("exp",),
    ),
    Peer(
        "optax",
        "generalized_kl_divergence",
        ("distributions",),
        _REVERSED,
        Convention("convex divergence", activation="exp"),
        {"axis": "axis={}"},
        nan_under=("exp",),
        note="convex_kl_divergence is its older name.",
    ),
)

_NORMALIZE: Options = {
    "sample_weight": _SAMPLE_WEIGHT,
    "divisor": {"weights": "", "one": "normalize=False"},
}
_CLIPPED = Convention(clip="both", epsilon="machine", divisor="weights")
_RENORMALISED = Convention(renormalise="predictions", clip_first=True, clip="both", epsilon=1e-15, divisor="weights")

_SKLEARN = (
    Peer("sklearn", "log_loss", ("labels", "distributions"), _ORDER, _CLIPPED, _NORMALIZE, "scalar"),
    Peer("sklearn", "log_loss", ("events",), _ORDER, replace(_CLIPPED, cost="binary"), _NORMALIZE, "scalar"),
    Peer(
        "sklearn",
        "log_loss_before_1_5",
        ("labels", "distributions"),
        _ORDER,
        _RENORMALISED,
        _NORMALIZE,
        "scalar",
        note="Rows are renormalised after clipping.",
    ),
)

_SCIPY = (
    Peer(
        "scipy",
        "entropy",
        ("distributions",),
        _ORDER,
        Convention("divergence", renormalise="both", axis=0),
        {"base": "base={}", "axis": "axis={}"},
        "columns",
    ),
    Peer(
        "scipy",
        "entropy",
        ("none",),
        _ORDER,
        Convention("entropy", renormalise="both", axis=0),
        {"base": "base={}", "axis": "axis={}"},
        "columns",
        note="Of one argument: its entropy.",
    ),
    Peer(
        "scipy",
        "rel_entr",
        ("distributions",),
        _ORDER,
        Convention("divergence", divisor="elements"),
        returns="elements",
    ),
    Peer(
        "scipy",
        "kl_div",
        ("distributions",),
        _ORDER,
        Convention("convex divergence", divisor="elements"),
        returns="elements",
    ),
)

# The best known first: an explanation names the first that fits.
PEERS: tuple[Peer, ...] = (*_KERAS, *_TORCH, *_SKLEARN, *_OPTAX, *_LOSSBRIDGE, *_SCIPY)
