"""Less known and older frameworks, as conventions: MindSpore, tinygrad, ONNX's operators, MXNet, Chainer, thinc."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lossbridge.conventions.convention import Convention, Options, Peer, Seen

_REVERSED = ("pred", "target")
_WEIGHT: Mapping[Any, str] = {False: "", True: "weight=class_weight"}
_SMOOTHING = "label_smoothing={}"
_SMOOTHED: Mapping[str, Any] = {"label_smoothing": 0.1}

_SOFTMAX = Convention(activation="softmax")
_SOFTMAX_BY_WEIGHT = Convention(activation="softmax", divisor="weights")
_LOGS_BY_WEIGHT = Convention(activation="exp", divisor="weights")
_SIGMOID = Convention("binary", activation="sigmoid", divisor="elements")
_DIVERGENCE_OF_ELEMENTS = Convention("divergence", activation="exp", divisor="elements")

_MINDSPORE = (
    Peer(
        "mindspore",
        "cross_entropy",
        ("labels",),
        _REVERSED,
        _SOFTMAX_BY_WEIGHT,
        {
            "label_smoothing": _SMOOTHING,
            "class_weight": _WEIGHT,
            "left_out": {"removed": "ignore_index={ignored}"},
        },
        "scalar",
        seen=(
            Seen("cross_entropy(X, y)", 0.95110273, "y", "X"),
            Seen("cross_entropy(X, y, weight=W)", 1.0579174, "y", "X", class_weight="W"),
            Seen("cross_entropy(X, y, label_smoothing=0.1)", 1.0111027, "y", "X", _SMOOTHED),
        ),
    ),
    Peer(
        "mindspore",
        "kl_div",
        ("distributions",),
        _REVERSED,
        _DIVERGENCE_OF_ELEMENTS,
        {"divisor": {"elements": "", "samples": "reduction='batchmean'"}},
        "scalar",
        seen=(
            Seen("kl_div(L, S)", 0.039319638, "S", "L"),
            Seen("kl_div(L, S, reduction='batchmean')", 0.11795891, "S", "L", {"divisor": "samples"}),
        ),
    ),
    Peer(
        "mindspore",
        "binary_cross_entropy",
        ("events",),
        _REVERSED,
        Convention("binary", clip="added", epsilon=1e-12, divisor="elements"),
        {},
        "scalar",
        seen=(Seen("binary_cross_entropy(q, t.astype(float32), None)", 14.015138, "t", "q"),),
    ),
)

_TINYGRAD = (
    Peer(
        "tinygrad",
        "sparse_categorical_crossentropy",
        ("labels",),
        _REVERSED,
        _SOFTMAX,
        {"label_smoothing": _SMOOTHING},
        "scalar",
        seen=(
            Seen("X.sparse_categorical_crossentropy(y).item()", 0.95110297, "y", "X"),
            Seen("X.sparse_categorical_crossentropy(y, label_smoothing=0.1).item()", 1.011103, "y", "X", _SMOOTHED),
        ),
    ),
    Peer(
        "tinygrad",
        "cross_entropy",
        ("labels", "distributions"),
        _REVERSED,
        _SOFTMAX,
        {"label_smoothing": _SMOOTHING},
        "scalar",
        seen=(
            Seen("X.cross_entropy(y).item()", 0.95110297, "y", "X"),
            Seen("X.cross_entropy(S, label_smoothing=0.1).item()", 1.023103, "S", "X", _SMOOTHED),
        ),
    ),
    Peer(
        "tinygrad",
        "nll_loss",
        ("labels",),
        _REVERSED,
        _LOGS_BY_WEIGHT,
        {"class_weight": _WEIGHT, "left_out": {"removed": "ignore_index={ignored}"}},
        "scalar",
        seen=(Seen("L.nll_loss(y, weight=W).item()", 0.80436766, "y", "L", class_weight="W"),),
    ),
    Peer(
        "tinygrad",
        "binary_crossentropy",
        ("events",),
        _REVERSED,
        Convention("binary", divisor="elements"),
        {},
        "scalar",
        nan_under=("none",),
        note="No ε: NaN where a probability is 0 or 1.",
        seen=(Seen("P.binary_crossentropy(T).item()", 0.42976844, "T", "P"),),
    ),
    Peer(
        "tinygrad",
        "binary_crossentropy_logits",
        ("events",),
        _REVERSED,
        _SIGMOID,
        {},
        "scalar",
        seen=(Seen("X.binary_crossentropy_logits(T).item()", 0.95620114, "T", "X"),),
    ),
)

_OPERATOR: Options = {
    "class_weight": {False: "", True: "weights=class_weight"},
    "left_out": {"removed": "ignore_index={ignored}"},
    "divisor": {"weights": "", "one": "reduction='sum'"},
}

_ONNX = (
    Peer(
        "onnx",
        "SoftmaxCrossEntropyLoss",
        ("labels",),
        _REVERSED,
        _SOFTMAX_BY_WEIGHT,
        _OPERATOR,
        "scalar",
        note="Where every label is ignored, NaN.",
        seen=(
            Seen("SoftmaxCrossEntropyLoss(X, y)", 0.95110291, "y", "X"),
            Seen("SoftmaxCrossEntropyLoss(X, y, W)", 1.0579175, "y", "X", class_weight="W"),
            Seen(
                "SoftmaxCrossEntropyLoss(X, y_left_out, ignore_index=-100)", 1.3282872, "y_left_out", "X", ignored=-100
            ),
            Seen("SoftmaxCrossEntropyLoss(X, y, reduction='sum')", 2.8533087, "y", "X", {"divisor": "one"}),
        ),
    ),
    Peer(
        "onnx",
        "NegativeLogLikelihoodLoss",
        ("labels",),
        _REVERSED,
        _LOGS_BY_WEIGHT,
        _OPERATOR,
        "scalar",
        seen=(
            Seen("NegativeLogLikelihoodLoss(L, y)", 0.72975212, "y", "L"),
            Seen("NegativeLogLikelihoodLoss(L, y, W)", 0.80436766, "y", "L", class_weight="W"),
        ),
    ),
)

# onnx.reference, which evaluates a model with NumPy.
_ONNX_REFERENCE = tuple(replace(peer, library="onnx_reference", note="") for peer in _ONNX)

_THINC = (
    Peer(
        "thinc",
        "CategoricalCrossentropy",
        ("labels", "distributions"),
        _REVERSED,
        Convention("squared", divisor="squared samples", smoothing_over="K-1"),
        {
            "divisor": {"squared samples": "", "one": "normalize=False"},
            "label_smoothing": _SMOOTHING,
        },
        "scalar",
        note="The sum of the squares of its gradient, whatever its name says. Smoothing is of labels alone.",
        seen=(
            Seen("CategoricalCrossentropy().get_loss(P, y)", 0.13777779, "y", "P"),
            Seen("CategoricalCrossentropy().get_loss(P, S)", 0.024444446, "S", "P"),
            Seen("CategoricalCrossentropy(normalize=False).get_loss(P, y)", 1.2400001, "y", "P", {"divisor": "one"}),
            Seen("CategoricalCrossentropy(label_smoothing=0.1).get_loss(P, y)", 0.09944444, "y", "P", _SMOOTHED),
        ),
    ),
)

_CHAINER = (
    Peer(
        "chainer",
        "softmax_cross_entropy",
        ("labels", "distributions"),
        _REVERSED,
        _SOFTMAX,
        {
            "class_weight": {False: "", True: "class_weight=class_weight"},
            "left_out": {"removed": "ignore_label={ignored}"},
        },
        "scalar",
        note="A mean with class weights divides by the number of labels that are not ignored; -1 is ignored.",
        seen=(
            Seen("softmax_cross_entropy(X, y)", 0.95110309, "y", "X"),
            Seen("softmax_cross_entropy(X, y, class_weight=W)", 1.763196, "y", "X", class_weight="W"),
            Seen("softmax_cross_entropy(X, y_of_minus_1)", 1.3282875, "y_of_minus_1", "X", ignored=-1),
            Seen("softmax_cross_entropy(X, S)", 0.96443641, "S", "X"),
        ),
    ),
    Peer(
        "chainer",
        "sigmoid_cross_entropy",
        ("events",),
        _REVERSED,
        _SIGMOID,
        {},
        "scalar",
        note="A mean leaves out labels of -1.",
        seen=(Seen("sigmoid_cross_entropy(X, T.astype('i'))", 0.9562012, "T", "X"),),
    ),
)

_MXNET = (
    Peer(
        "mxnet",
        "SoftmaxCELoss",
        ("labels", "distributions"),
        _REVERSED,
        _SOFTMAX,
        seen=(
            Seen("SoftmaxCELoss()(X, y)", 0.95110273, "y", "X"),
            Seen("SoftmaxCELoss(sparse_label=False)(X, S)", 0.96443605, "S", "X"),
        ),
    ),
    Peer(
        "mxnet",
        "KLDivLoss",
        ("distributions",),
        _REVERSED,
        Convention("divergence", activation="exp"),
        seen=(Seen("KLDivLoss()(L, S)", 0.11795891, "S", "L"),),
    ),
    Peer(
        "mxnet",
        "SigmoidBCELoss",
        ("events",),
        _REVERSED,
        _SIGMOID,
        {"pos_weight": "pos_weight={}"},
        note="The mean of each row's terms.",
        seen=(Seen("SigmoidBCELoss()(X, T)", 0.95620126, "T", "X"),),
    ),
    Peer(
        "mxnet",
        "SigmoidBCELoss",
        ("events",),
        _REVERSED,
        Convention("binary", clip="added", epsilon=1e-12, divisor="elements"),
        {"activation": {"none": "from_sigmoid=True"}},
        note="The mean of each row's terms.",
        seen=(Seen("SigmoidBCELoss(from_sigmoid=True)(q.reshape((4, 1)), t.reshape((4, 1)))", 14.015138, "t", "q"),),
    ),
    Peer(
        "mxnet",
        "CrossEntropy",
        ("labels",),
        ("target", "pred"),
        Convention(clip="added", epsilon=1e-12),
        {},
        "scalar",
        note="A metric.",
        seen=(Seen("CrossEntropy(y, P)", 0.72975214, "y", "P"),),
    ),
)

ENGINES: tuple[Peer, ...] = (*_MINDSPORE, *_TINYGRAD, *_ONNX, *_ONNX_REFERENCE, *_THINC, *_CHAINER, *_MXNET)
