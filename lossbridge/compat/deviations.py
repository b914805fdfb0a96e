"""Where `lossbridge.compat` differs from the library on purpose: data, with an example each that a test runs on both.

The table of differences in the documentation is generated from it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

_INFINITY, _NAN = math.inf, math.nan

# A number (of several the first), a shape, the name of an error; "raises" any error, or "broadcasts".
Result = float | tuple[int, ...] | Literal["ValueError", "TypeError", "raises", "broadcasts"]


@dataclass(frozen=True)
class Deviation:
    """One call, and the results of the two."""

    function: str  # "torch.cross_entropy"
    words: str  # the rule, in one line
    arguments: tuple[Any, ...]  # nested lists, in the function's own order
    theirs: Result | Mapping[str, Result]  # for Keras one a backend; "elsewhere" is any other
    ours: Result
    options: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = "float32"  # of the floating-point arguments
    quantity: Literal["value", "gradient", "shape"] = "value"  # the gradient for the predictions
    also: tuple[str, ...] = ()  # other functions with the same rule
    always: bool = False  # it applies to all arrays with these options, so that the two are never compared
    until: str = ""  # the library's version that does as ours, if there is one
    newer: tuple[str, Mapping[str, Result]] | None = None  # from this version on it is that, on these backends

    def of_theirs(self, backend: str, *, newer: bool = False) -> Result:
        """On this backend of the library's own."""
        if newer and self.newer is not None and backend in self.newer[1]:
            return self.newer[1][backend]
        if isinstance(self.theirs, Mapping):
            return self.theirs.get(backend, self.theirs.get("elsewhere", "raises"))
        return self.theirs


KERAS: tuple[Deviation, ...] = (
    Deviation(
        "keras.categorical_crossentropy",
        "Confident rows keep their digits.",
        ([[1.0, 0.0]], [[20.0, 0.0]]),
        theirs=0.0,
        ours=2.0611537e-9,
        options={"from_logits": True},
    ),
    Deviation(
        "keras.sparse_categorical_crossentropy",
        "Confident rows keep their digits.",
        ([0], [[20.0, 0.0]]),
        theirs=0.0,
        ours=2.0611537e-9,
        options={"from_logits": True},
    ),
    Deviation(
        "keras.categorical_crossentropy",
        "A logit of −∞ is the probability 0, which costs nothing where the target is 0.",
        ([[1.0, 0.0]], [[0.0, -_INFINITY]]),
        theirs=_NAN,
        ours=0.0,
        options={"from_logits": True},
    ),
    Deviation(
        "keras.categorical_crossentropy",
        "float16 and bfloat16 are computed in float32, and so is the result; a class of such a dtype rounds it once.",
        ([[1.0, 0.0]], [[0.7, 0.3]]),
        theirs=0.3564453,
        ours=0.35664,
        dtype="float16",
    ),
    Deviation(
        "keras.categorical_crossentropy",
        "Options lie in their range.",
        ([[1.0, 0.0]], [[0.7, 0.3]]),
        theirs=1.2039728,
        ours="ValueError",
        options={"label_smoothing": 2.0},
        also=("keras.CategoricalCrossentropy", "keras.binary_crossentropy", "keras.BinaryCrossentropy"),
        until="3.16",
    ),
    Deviation(
        "keras.categorical_focal_crossentropy",
        "Options lie in their range.",
        ([[1.0, 0.0]], [[0.7, 0.3]]),
        theirs=0.1474867,
        ours="ValueError",
        options={"label_smoothing": 2.0},
        also=(
            "keras.CategoricalFocalCrossentropy",
            "keras.binary_focal_crossentropy",
            "keras.BinaryFocalCrossentropy",
        ),
    ),
    Deviation(
        "keras.categorical_focal_crossentropy",
        "Options lie in their range.",
        ([[1.0, 0.0]], [[0.7, 0.3]]),
        theirs=0.2972291,
        ours="ValueError",
        options={"gamma": -1.0},
        also=(
            "keras.CategoricalFocalCrossentropy",
            "keras.binary_focal_crossentropy",
            "keras.BinaryFocalCrossentropy",
        ),
    ),
    Deviation(
        "keras.BinaryFocalCrossentropy",
        "Options lie in their range.",
        ([[0.0]], [[0.7]]),
        theirs=-5.3095512,
        ours="ValueError",
        options={"alpha": 10.0, "apply_class_balancing": True},
        also=("keras.binary_focal_crossentropy",),
    ),
    Deviation(
        "keras.CategoricalCrossentropy",
        "Smoothing counts the classes along axis, not along the last.",
        ([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]], [[0.7, 0.1], [0.2, 0.8], [0.1, 0.1]]),
        theirs=0.4883436,
        ours=0.4125352,
        options={"label_smoothing": 0.1, "axis": 0},
        also=(
            "keras.categorical_crossentropy",
            "keras.CategoricalFocalCrossentropy",
            "keras.categorical_focal_crossentropy",
        ),
        always=True,
        until="3.16",
    ),
    Deviation(
        "keras.CategoricalCrossentropy",
        "Entries that are masked or have weight 0 are selected away: a NaN there does not count.",
        ([[1.0, 0.0], [0.0, 1.0]], [[0.7, 0.3], [float("nan"), 0.3]], [1.0, 0.0]),
        theirs=_NAN,
        ours=0.1783375,
    ),
    Deviation(
        "keras.CategoricalCrossentropy",
        "Weights (N,) apply to the rows of losses (N, T).",
        ([[[1.0, 0.0], [1.0, 0.0]]] * 2, [[[0.5, 0.5], [0.9, 0.1]]] * 2, [1.0, 2.0]),
        theirs=0.4519341,
        ours=0.5988807,
    ),
    Deviation(
        "keras.CategoricalCrossentropy",
        "Weights (T,) are not broadcast to losses (N, T).",
        ([[[1.0, 0.0]] * 3] * 2, [[[0.5, 0.5]] * 3] * 2, [1.0, 2.0, 3.0]),
        theirs=1.3862944,
        ours="ValueError",
    ),
    Deviation(
        "keras.CategoricalCrossentropy",
        "Weights (N, 1) leave losses (N,) their shape, which Keras makes (N, 1).",
        ([[1.0, 0.0]], [[0.7, 0.3]], [[1.0]]),
        theirs=(1, 1),
        ours=(1,),
        options={"reduction": "none"},
        quantity="shape",
    ),
    Deviation(
        "keras.CategoricalCrossentropy",
        "A weight that applies to several losses counts once for each in the denominator of mean_with_sample_weight.",
        ([[[1.0, 0.0]] * 3] * 2, [[[0.5, 0.5]] * 3] * 2, [[1.0], [2.0]]),
        theirs=2.0794415,
        ours=0.6931472,
        options={"reduction": "mean_with_sample_weight"},
    ),
    Deviation(
        "keras.sparse_categorical_crossentropy",
        "A label that is no class is an error where it can be read, else NaN.",
        ([-1], [[0.7, 0.2, 0.1]]),
        theirs={"numpy": 0.0, "jax": 0.0, "elsewhere": "raises"},
        ours="ValueError",
    ),
    Deviation(
        "keras.sparse_categorical_crossentropy",
        "A label that is a fraction is an error where it can be read, else NaN.",
        ([1.5], [[0.7, 0.2, 0.1]]),
        theirs=1.6094379,
        ours="ValueError",
    ),
    Deviation(
        "keras.sparse_categorical_crossentropy",
        "Labels in float16 or bfloat16, which round them, are refused.",
        ([1.0], [[0.7, 0.2, 0.1]]),
        theirs={"numpy": 1.6084620, "elsewhere": 1.6094379},
        ours="TypeError",
        dtype="bfloat16",
    ),
    Deviation(
        "keras.SparseCategoricalCrossentropy",
        "Labels are not cast to the dtype of the loss, which may round them to other labels.",
        ([257], [[0.0] * 257 + [5.0] + [0.0] * 42]),
        theirs={"tensorflow": 6.125, "numpy": 6.0625, "elsewhere": 6.09375},
        ours=1.1015625,
        options={"from_logits": True, "dtype": "bfloat16"},
    ),
    Deviation(
        "keras.sparse_categorical_crossentropy",
        "Labels take any axis, on every backend.",
        ([0], [[0.7], [0.2], [0.1]]),
        theirs={"torch": 0.3566749, "elsewhere": "raises"},
        ours=0.3566749,
        options={"axis": 0},
        also=("keras.SparseCategoricalCrossentropy",),
        always=True,
    ),
    Deviation(
        "keras.sparse_categorical_crossentropy",
        "Probabilities are renormalised, then clipped, on every backend.",
        ([0], [[3.0, 1.0]]),
        theirs={"tensorflow": 0.6931472, "elsewhere": 0.2876821},
        ours=0.2876821,
    ),
    Deviation(
        "keras.binary_crossentropy",
        "Logits are never clipped.",
        ([[0.0]], [[40.0]]),
        theirs={"numpy": 15.942385, "elsewhere": 40.0},
        ours=40.0,
        options={"from_logits": True},
    ),
    Deviation(
        "keras.binary_crossentropy",
        "Confident outcomes keep their digits.",
        ([[0.0]], [[-20.0]]),
        theirs={"torch": 0.0, "numpy": 1.1920930e-7, "elsewhere": 2.0611537e-9},
        ours=2.0611537e-9,
        options={"from_logits": True},
    ),
    Deviation(
        "keras.binary_crossentropy",
        "Logits of ±∞ are the probabilities 1 and 0.",
        ([[0.0]], [[-_INFINITY]]),
        theirs={"numpy": 1.1920930e-7, "elsewhere": _NAN},
        ours=0.0,
        options={"from_logits": True},
    ),
    Deviation(
        "keras.binary_crossentropy",
        "Clipping works in float16 and bfloat16 too.",
        ([[1.0]], [[1.0]]),
        theirs={"torch": 0.0, "elsewhere": _NAN},
        ours=1.1920930e-7,
        dtype="float16",
    ),
    Deviation(
        "keras.binary_crossentropy",
        "At the bounds of clipping the gradient is that of the interior.",
        ([[1.0]], [[1e-7]]),
        theirs={"jax": -5e6, "elsewhere": -1e7},
        ours=-1e7,
        quantity="gradient",
    ),
    Deviation(
        "keras.binary_crossentropy",
        "Integer predictions are computed in float32, and so are their targets.",
        ([[1.0, 0.5]], [[1, 0]]),
        theirs={"numpy": 1e-7, "jax": 1.1920930e-7, "elsewhere": "raises"},
        newer=("3.16", {"numpy": 1.1920930e-7}),
        ours=4.0295239,
        also=(
            "keras.categorical_crossentropy",
            "keras.kl_divergence",
            "keras.categorical_focal_crossentropy",
            "keras.binary_focal_crossentropy",
        ),
    ),
    Deviation(
        "keras.binary_crossentropy",
        "The axis is one integer.",
        ([[1.0, 0.0]], [[0.9, 0.2]]),
        theirs=0.1642521,
        ours="TypeError",
        options={"axis": None},
        also=(
            "keras.categorical_crossentropy",
            "keras.categorical_focal_crossentropy",
            "keras.binary_focal_crossentropy",
        ),
    ),
    Deviation(
        "keras.kl_divergence",
        "Near-equal distributions keep their digits.",
        ([[0.2, 0.3, 0.5]], [[0.2001, 0.2999, 0.5]]),
        theirs=6.56e-8,
        ours=5.656957e-8,
    ),
    Deviation(
        "keras.kl_divergence",
        "Nothing is broadcast.",
        ([0.5, 0.5], [[0.25, 0.75]]),
        theirs=0.143841,
        ours="ValueError",
    ),
    Deviation(
        "keras.categorical_focal_crossentropy",
        "The softmax of logits is not clipped.",
        ([[0.0, 1.0]], [[30.0, 0.0]]),
        theirs=4.029523,
        ours=7.5,
        options={"from_logits": True},
    ),
    Deviation(
        "keras.CategoricalFocalCrossentropy",
        "Weights of classes lie along axis, not along the last.",
        ([[1.0, 1.0], [0.0, 0.0]], [[0.6, 0.5], [0.4, 0.5]]),
        theirs=0.3007962,
        ours=0.1275094,
        options={"alpha": [1.0, 3.0], "axis": 0},
    ),
    Deviation(
        "keras.binary_focal_crossentropy",
        "The sigmoid of logits is not clipped.",
        ([[0.0]], [[40.0]]),
        theirs={"tensorflow": 40.0, "elsewhere": 15.942385},
        ours=40.0,
        options={"from_logits": True},
    ),
    Deviation(
        "keras.binary_focal_crossentropy",
        "Below γ = 1 the gradient of a certain and right prediction is finite.",
        ([[1.0]], [[1.0]]),
        theirs=_NAN,
        ours=0.0,
        options={"gamma": 0.5},
        quantity="gradient",
    ),
)

TORCH: tuple[Deviation, ...] = (
    Deviation(
        "torch.cross_entropy",
        "Confident rows keep their digits.",
        ([[20.0, 0.0]], [0]),
        theirs=0.0,
        ours=2.0611537e-9,
        also=("torch.linear_cross_entropy",),
    ),
    Deviation(
        "torch.cross_entropy",
        "A mean of no entries is 0.",
        ([[1.0, 0.0]], [-100]),
        theirs=_NAN,
        ours=0.0,
        also=("torch.linear_cross_entropy",),
    ),
    Deviation(
        "torch.cross_entropy",
        "A mean whose weights sum to 0 is 0.",
        ([[1.0, 0.0]], [0], [0.0, 1.0]),
        theirs=_NAN,
        ours=0.0,
        also=("torch.linear_cross_entropy",),
    ),
    Deviation(
        "torch.cross_entropy",
        "−∞ times a target of 0 is 0.",
        ([[0.0, -_INFINITY]], [[1.0, 0.0]]),
        theirs=_NAN,
        ours=0.0,
    ),
    Deviation(
        "torch.cross_entropy",
        "float16 and bfloat16 are computed in float32, and so is the result.",
        ([[1.2, -0.8, -0.5]], [0]),
        theirs=0.2763672,
        ours=0.2761027,
        dtype="float16",
    ),
    Deviation(
        "torch.cross_entropy",
        "Options that PyTorch deprecates are left out.",
        ([[1.0, 0.0]], [0]),
        theirs=0.3132617,
        ours="TypeError",
        options={"size_average": False},
        also=("torch.nll_loss", "torch.kl_div", "torch.binary_cross_entropy", "torch.binary_cross_entropy_with_logits"),
    ),
    Deviation(
        "torch.linear_cross_entropy",
        "Logits of float16 and bfloat16 are float32 out of the product, and so is the result.",
        ([[1.2, -0.8]], [[1.0, 0.5], [0.3, 2.0]], [0]),
        theirs=0.1221313,
        ours=0.1222678,
        dtype="float16",
    ),
    Deviation(
        "torch.linear_cross_entropy",
        "Integer targets of every dtype are classes.",
        ([[1.2, -0.8]], [[1.0, 0.5], [0.3, 2.0]], [True]),
        theirs="raises",
        ours=2.1622430,
        also=("torch.cross_entropy", "torch.nll_loss"),
    ),
    Deviation(
        "torch.binary_cross_entropy",
        "Integer targets, and those of another dtype, are taken.",
        ([0.9], [1]),
        theirs="raises",
        ours=0.1053605,
        also=("torch.kl_div", "torch.binary_cross_entropy_with_logits"),
    ),
    Deviation(
        "torch.binary_cross_entropy",
        "A NaN gives NaN.",
        ([_NAN], [1.0]),
        theirs="raises",
        ours=_NAN,
    ),
    Deviation(
        "torch.kl_div",
        "A target is not broadcast to the input.",
        ([[-0.7, -0.7]], [0.5, 0.5]),
        theirs="broadcasts",
        ours="ValueError",
    ),
    Deviation(
        "torch.binary_cross_entropy",
        "The gradient does not vanish where p = t = 0.",
        ([0.0], [0.0]),
        theirs=0.0,
        ours=1.0,
        quantity="gradient",
    ),
    Deviation(
        "torch.binary_cross_entropy_with_logits",
        "Confident outcomes keep their digits.",
        ([-20.0], [0.0]),
        theirs=0.0,
        ours=2.0611537e-9,
    ),
)

OPTAX: tuple[Deviation, ...] = (
    Deviation(
        "optax.softmax_cross_entropy",
        "Confident rows keep their digits.",
        ([[20.0, 0.0]], [[1.0, 0.0]]),
        theirs=0.0,
        ours=2.0611537e-9,
    ),
    Deviation(
        "optax.softmax_cross_entropy_with_integer_labels",
        "Large logits keep the digits of their differences.",
        ([[10001.0, 10000.0]], [1]),
        theirs=1.3134766,
        ours=1.3132617,
    ),
    Deviation(
        "optax.poly_loss_cross_entropy",
        "Confident rows keep their digits.",
        ([[8.0, 0.0]], [[1.0, 0.0]]),
        theirs=6.295159e-8,
        ours=5.624242e-8,
        options={"epsilon": -1.0},
    ),
    Deviation(
        "optax.generalized_kl_divergence",
        "Nearly equal distributions keep their digits.",
        ([[-1.608938, -1.2043062, -0.6931472]], [[0.2, 0.3, 0.5]]),
        theirs=2.0867446e-8,
        ours=4.1675e-8,
    ),
    Deviation(
        "optax.softmax_cross_entropy",
        "−∞ times a label of 0 is 0.",
        ([[0.0, -_INFINITY]], [[1.0, 0.0]]),
        theirs=_NAN,
        ours=0.0,
    ),
    Deviation(
        "optax.sigmoid_binary_cross_entropy",
        "−∞ times a label of 0 is 0.",
        ([-_INFINITY], [0.0]),
        theirs=_NAN,
        ours=0.0,
    ),
    Deviation(
        "optax.kl_divergence",
        "A probability of 0 on both sides costs nothing.",
        ([[0.0, -_INFINITY]], [[1.0, 0.0]]),
        theirs=_NAN,
        ours=0.0,
    ),
    Deviation(
        "optax.kl_divergence_with_log_targets",
        "A probability of 0 on both sides costs nothing.",
        ([[0.0, -_INFINITY]], [[0.0, -_INFINITY]]),
        theirs=_NAN,
        ours=0.0,
    ),
    Deviation(
        "optax.softmax_cross_entropy",
        "float16 and bfloat16 are computed in float32, and so is the result.",
        ([[1.2, -0.8, -0.5]], [[1.0, 0.0, 0.0]]),
        theirs=0.2763672,
        ours=0.2761027,
        dtype="float16",
    ),
    Deviation(
        "optax.softmax_cross_entropy",
        "Labels are not broadcast to the logits.",
        ([[1.0, 2.0], [3.0, 4.0]], [1.0, 0.0]),
        theirs="broadcasts",
        ours="ValueError",
    ),
    Deviation(
        "optax.kl_divergence",
        "where is not broadcast; Optax broadcasts it along the last axis.",
        ([[-0.7, -0.7], [-0.7, -0.7]], [[0.5, 0.5], [0.5, 0.5]]),
        theirs="broadcasts",
        ours="ValueError",
        options={"where": [True, False]},
    ),
    Deviation(
        "optax.softmax_cross_entropy_with_integer_labels",
        "A label out of range is an error where it can be read, else NaN.",
        ([[0.0, 1.0, 2.0]], [-1]),
        theirs=0.4076059,
        ours="ValueError",
    ),
    Deviation(
        "optax.softmax_cross_entropy_with_integer_labels",
        "A label that where excludes has the probability 0.",
        ([[0.0, 2.0]], [1]),
        theirs=-2.0,
        ours=_INFINITY,
        options={"where": [[True, False]]},
    ),
    Deviation(
        "optax.softmax_cross_entropy_with_integer_labels",
        "Boolean labels count as 0 and 1.",
        ([[0.0, 1.0]], [True]),
        theirs="raises",
        ours=0.3132617,
    ),
    Deviation(
        "optax.softmax_cross_entropy",
        "Several axes lie side by side.",
        ([[[1.0, 2.0]], [[3.0, 4.0]]], [[[1.0, 0.0]], [[0.0, 0.0]]]),
        theirs=3.4401896,
        ours="ValueError",
        options={"axis": (0, 2)},
    ),
    Deviation(
        "optax.softmax_cross_entropy_with_integer_labels",
        "Several axes are in ascending order.",
        ([[0.0, 1.0], [2.0, 3.0]], 1),
        theirs=1.4401898,
        ours="ValueError",
        options={"axis": (1, 0)},
    ),
    Deviation(
        "optax.sigmoid_focal_loss",
        "Options lie in their range.",
        ([0.0], [1.0]),
        theirs=0.3465736,
        ours="ValueError",
        options={"alpha": 2.0},
    ),
)

SKLEARN: tuple[Deviation, ...] = (
    Deviation(
        "sklearn.log_loss",
        "A probability of the lesser label near 1 keeps its digits.",
        ([0, 0], [1e-5, 3e-6]),
        theirs=6.4969336e-6,
        ours=6.5000272e-6,
        options={"labels": [0, 1]},
    ),
    Deviation(
        "sklearn.log_loss",
        "float16 is clipped as it comes, and computed in float32.",
        ([0, 1], [0.3, 0.6]),
        theirs=0.4335938,
        ours=0.4337038,
        dtype="float16",
    ),
    Deviation(
        "sklearn.log_loss",
        "A NaN gives NaN.",
        ([0, 1], [float("nan"), 0.5]),
        theirs="raises",
        ours=_NAN,
    ),
    Deviation(
        "sklearn.log_loss",
        "Samples of weight 0 are left out, also where they are NaN.",
        ([0, 1], [float("nan"), 0.5]),
        theirs="raises",
        ours=0.6931472,
        options={"sample_weight": [0.0, 1.0]},
    ),
    Deviation(
        "sklearn.log_loss",
        "A mean whose weights sum to 0 is 0.",
        ([0, 1], [0.5, 0.5]),
        theirs="raises",
        ours=0.0,
        options={"sample_weight": [0.0, 0.0]},
    ),
    Deviation(
        "sklearn.log_loss",
        "A mean of no samples is 0.",
        ([], []),
        theirs="raises",
        ours=0.0,
        options={"labels": [0, 1]},
    ),
    Deviation(
        "sklearn.log_loss",
        "One number as weight is the weight of every sample.",
        ([0, 1], [0.3, 0.6]),
        theirs="raises",
        ours=0.4337503,
        options={"sample_weight": 2.0},
    ),
    Deviation(
        "sklearn.log_loss",
        "A weight of NaN makes the loss NaN.",
        ([0, 1], [0.3, 0.6]),
        theirs="raises",
        ours=_NAN,
        options={"sample_weight": [1.0, _NAN]},
    ),
    Deviation(
        "sklearn.log_loss",
        "An indicator matrix needs probabilities of its shape.",
        ([[1, 0], [0, 1]], [0.3, 0.6]),
        theirs=0.4337503,
        ours="ValueError",
    ),
)

SCIPY: tuple[Deviation, ...] = (
    Deviation(
        "scipy.kl_div",
        "Nearly equal arguments keep their digits.",
        ([1.0], [1.00000001]),
        theirs=0.0,
        ours=4.9999999e-17,
        dtype="float64",
    ),
    Deviation(
        "scipy.entropy",
        "Nearly equal distributions keep their digits.",
        ([0.2, 0.3, 0.5], [0.2000001, 0.2999999, 0.5]),
        theirs=4.1694418e-14,
        ours=4.1666662e-14,
        dtype="float64",
    ),
    Deviation(
        "scipy.rel_entr",
        "Only a single number is broadcast.",
        ([[0.5, 0.5], [0.5, 0.5]], [0.5, 0.25]),
        theirs="broadcasts",
        ours="ValueError",
    ),
    Deviation(
        "scipy.rel_entr",
        "The arguments of NumPy's ufuncs (out, where, dtype, …) are left out.",
        ([0.5], [0.25]),
        theirs=0.3465736,
        ours="TypeError",
        options={"dtype": "float32"},
        also=("scipy.kl_div",),
    ),
    Deviation(
        "scipy.entropy",
        "axis is one integer, or None.",
        ([[0.5, 0.5]],),
        theirs=0.6931472,
        ours="TypeError",
        options={"axis": (0, 1)},
    ),
    Deviation(
        "scipy.entropy",
        "qk is not broadcast to pk.",
        ([2.0, 1.0, 1.0], 1.0),
        theirs=0.0588915,
        ours="ValueError",
    ),
    Deviation(
        "scipy.entropy",
        "One number is no distribution.",
        (0.5,),
        theirs=0.0,
        ours="ValueError",
    ),
    Deviation(
        "scipy.entropy",
        "Logarithms have no base 1.",
        ([0.5, 0.5],),
        theirs=_INFINITY,
        ours="ValueError",
        options={"base": 1},
    ),
    Deviation(
        "scipy.entropy",
        "SciPy's nan_policy and keepdims are left out.",
        ([0.5, 0.5],),
        theirs=0.6931472,
        ours="TypeError",
        options={"keepdims": True},
    ),
)

DEVIATIONS = (*KERAS, *TORCH, *OPTAX, *SKLEARN, *SCIPY)
