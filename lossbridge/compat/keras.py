"""Keras' losses: its names, argument order (y_true, y_pred), defaults and results, on arrays of every backend.

Functions return one loss a sample, of y_pred's shape without `axis`; classes hold the options of a function, apply
weights and reduce. Where Keras' value is correct, this one is equal. Differences on purpose:

- float16 and bfloat16 are computed in float32, and so is the result of such input; that of a class made with
  dtype="float16" or "bfloat16" is rounded to it once. A list is a NumPy array, of float64;
- logits are exact and never clipped, confident rows and nearly equal distributions keep their digits, and an infinite
  loss of weight 0 is 0;
- where Keras' backends disagree, one rule holds: sparse labels take any `axis`; their probabilities are renormalised
  and then clipped, on TensorFlow too; the gradient at the bounds of clipping is that of the interior;
- labels are never cast to float. One out of range, or a fraction, is an error where it can be read, NaN where not;
- nothing is broadcast, except that the classes align ranks: weights (N,) apply to the rows of losses (N, T), weights
  (N, 1) leave losses (N,) their shape, and "mean_with_sample_weight" divides by each weight once a loss;
- entries that are masked, ignored or of weight 0 are selected away, not multiplied by 0: a NaN there does not count,
  and a mask is true or false, not a factor;
- no argument is written to;
- the mean and the sum of an empty batch are 0, not an empty array;
- options outside their range or of another type are an error; dtype is a name or a policy; alpha is one number, or
  (C,);
- Keras' settings of epsilon and floatx are not read (here 1e-7 and float32); nothing is divided by the number of
  replicas of tf.distribute. For Keras' trainer use `lossbridge.keras`.

On TensorFlow the losses go back to the logits behind a softmax or sigmoid, as Keras' do there: see `logits_behind`.

Losses are in nats.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from lossbridge import errors
from lossbridge.maths import softmax
from lossbridge.maths.ops import Array
from lossbridge.request import as_array, framework_of, run
from lossbridge.spec import LOSSES, Loss, Names, Reduction

__all__ = [
    "BinaryCrossentropy",
    "BinaryFocalCrossentropy",
    "CategoricalCrossentropy",
    "CategoricalFocalCrossentropy",
    "KLDivergence",
    "SparseCategoricalCrossentropy",
    "SparseCategoricalFocalCrossentropy",
    "binary_crossentropy",
    "binary_focal_crossentropy",
    "categorical_crossentropy",
    "categorical_focal_crossentropy",
    "kl_divergence",
    "sparse_categorical_crossentropy",
    "sparse_categorical_focal_crossentropy",
]

# What Keras has, and lossbridge's own functions have not.
SPARSE_FOCAL = LOSSES["categorical_focal_crossentropy"]._replace(
    name="sparse_categorical_focal_crossentropy",
    rules={
        "logits": {"labels": softmax.LABEL_FOCAL},
        "probabilities": {"labels": softmax.LABEL_FOCAL_PROBABILITIES},
    },
    options={"alpha": 0.25, "gamma": 2.0, "from_logits": False, "epsilon": 1e-7, "ignore_class": None},
    names=LOSSES["sparse_categorical_crossentropy"].names,
)
# lossbridge's own losses, which here also take one class, and as in Keras any number.
_LOSSES = {
    loss.name: loss._replace(outcomes=1, checked=False)
    for loss in (*LOSSES.values(), SPARSE_FOCAL)
    if loss.name not in ("log_loss", "distillation_loss")
}


def categorical_crossentropy(
    y_true: Any, y_pred: Any, from_logits: bool = False, label_smoothing: float = 0.0, axis: int = -1
) -> Any:
    """Cross-entropy of class distributions, Σ_c t_c (−log p_c), as keras.losses.categorical_crossentropy.

    Args:
        y_true: target distributions (one-hot or soft), of y_pred's shape.
        y_pred: probabilities, renormalised and then clipped; with `from_logits`, logits. Shape (…, C, …).
        label_smoothing: s in [0, 1]; targets become t·(1 − s) + s/C, C counted along `axis` (by Keras along the last).

    From logits Keras has false zeros: a logit that leads by 20 costs 2.0612e-9, in Keras 0.

    >>> categorical_crossentropy([[0, 1, 0], [0, 0, 1]], [[0.05, 0.95, 0], [0.1, 0.8, 0.1]]).round(7)
    array([0.0512933, 2.3025851])

    Source: Shannon, A Mathematical Theory of Communication, 1948.
    """
    return _samples(
        "categorical_crossentropy", y_true, y_pred, from_logits=from_logits, label_smoothing=label_smoothing, axis=axis
    )


def sparse_categorical_crossentropy(
    y_true: Any,
    y_pred: Any,
    from_logits: bool = False,
    ignore_class: int | None = None,
    axis: int = -1,
    label_smoothing: float = 0.0,
) -> Any:
    """Cross-entropy of integer class labels, −log p_y, as keras.losses.sparse_categorical_crossentropy.

    Args:
        y_true: labels from 0 to C − 1, of y_pred's shape without `axis`, or with a size of 1 there. Whole numbers in
            float32 or float64 count as integers.
        y_pred: probabilities or logits, as in `categorical_crossentropy`. Shape (…, C, …).
        ignore_class: a label (often −1 or −100) whose losses are 0. (The result carries no mask, as Keras' does.)
        label_smoothing: as in `categorical_crossentropy`; of Keras since 3.16.

    Keras on JAX gives 0 for the label −1; on TensorFlow it takes [3, 1] for [1, 1], and elsewhere for [0.75, 0.25].

    >>> sparse_categorical_crossentropy([1, 2, -1], [[0.05, 0.95, 0], [0.1, 0.8, 0.1], [1, 0, 0]], False, -1).round(7)
    array([0.0512933, 2.3025851, 0.       ])

    Source: as `categorical_crossentropy`.
    """
    y_pred = own("y_pred", y_pred)
    return _samples(
        "sparse_categorical_crossentropy",
        labels(own("y_true", y_true), y_pred, axis),
        y_pred,
        from_logits=from_logits,
        ignore_class=ignore_class,
        axis=axis,
        label_smoothing=label_smoothing,
    )


def binary_crossentropy(
    y_true: Any, y_pred: Any, from_logits: bool = False, label_smoothing: float = 0.0, axis: int = -1
) -> Any:
    """Mean over `axis` of −t log p − (1 − t) log(1 − p), as keras.losses.binary_crossentropy.

    Args:
        y_true: targets in [0, 1], of y_pred's shape.
        y_pred: probabilities, clipped; with `from_logits`, logits. Shape (…, C, …).
        label_smoothing: s in [0, 1]; targets become t·(1 − s) + s/2.

    For t = 0 the logit 40 costs 15.94 in Keras on NumPy, not 40, and −20 costs 0 on PyTorch, not 2.0612e-9.

    >>> binary_crossentropy([[0.0], [1.0]], [[40.0], [40.0]], from_logits=True).round(7)
    array([40.,  0.])

    Source: Bishop, Pattern Recognition and Machine Learning, 2006, §4.3.
    """
    return _samples(
        "binary_crossentropy", y_true, y_pred, from_logits=from_logits, label_smoothing=label_smoothing, axis=axis
    )


def kl_divergence(y_true: Any, y_pred: Any) -> Any:
    """Kullback-Leibler divergence Σ_c t_c log(t_c / p_c) along the last axis, as keras.losses.kl_divergence.

    Args:
        y_true: target distributions, of y_pred's shape.
        y_pred: predicted distributions, of shape (…, C). Both are clipped to [1e-7, 1] and not renormalised.

    Keras loses the digits of nearly equal distributions: [.2, .3, .5] and [.2001, .2999, .5] give 5.66e-8, there
    6.56e-8.

    >>> kl_divergence([[0.5, 0.5]], [[0.25, 0.75]]).round(7)
    array([0.143841])

    Source: Kullback and Leibler, On Information and Sufficiency, 1951.
    """
    return _samples("kl_divergence", y_true, y_pred)


def categorical_focal_crossentropy(
    y_true: Any,
    y_pred: Any,
    alpha: Any = 0.25,
    gamma: float = 2.0,
    from_logits: bool = False,
    label_smoothing: float = 0.0,
    axis: int = -1,
) -> Any:
    """Σ_c α_c t_c (1 − p_c)^γ (−log p_c), as keras.losses.categorical_focal_crossentropy.

    Args:
        y_true: target distributions (one-hot or soft), of y_pred's shape.
        y_pred: probabilities or logits, as in `categorical_crossentropy`. Shape (…, C, …).
        alpha: one number, or (C,), a weight a class, along `axis` (in Keras along the last).
        gamma: γ ≥ 0; 0 leaves α times the cross-entropy.
        label_smoothing: s in [0, 1]; targets become t·(1 − s) + s/C, C counted along `axis` (by Keras along the last).

    Keras clips the softmax of logits, which caps the loss of a class at 16.12 α; a logit that trails by 30 costs 30 α
    here.

    >>> categorical_focal_crossentropy([[0, 1, 0], [0, 0, 1]], [[0.05, 0.95, 0], [0.1, 0.8, 0.1]]).round(7)
    array([3.210000e-05, 4.662735e-01])

    Source: Lin et al., Focal Loss for Dense Object Detection, 2017.
    """
    return _samples(
        "categorical_focal_crossentropy",
        y_true,
        y_pred,
        alpha=alpha,
        gamma=gamma,
        from_logits=from_logits,
        label_smoothing=label_smoothing,
        axis=axis,
    )


def sparse_categorical_focal_crossentropy(
    y_true: Any,
    y_pred: Any,
    alpha: Any = 0.25,
    gamma: float = 2.0,
    from_logits: bool = False,
    ignore_class: int | None = None,
    axis: int = -1,
) -> Any:
    """α_y (1 − p_y)^γ (−log p_y) of labels y, as keras.losses.sparse_categorical_focal_crossentropy (Keras since 3.16).

    Args:
        y_true, ignore_class: as in `sparse_categorical_crossentropy`.
        y_pred, alpha, gamma: as in `categorical_focal_crossentropy`.

    >>> sparse_categorical_focal_crossentropy([1, 2], [[0.05, 0.95, 0], [0.1, 0.8, 0.1]]).round(7)
    array([3.210000e-05, 4.662735e-01])

    Source: as `categorical_focal_crossentropy`.
    """
    y_pred = own("y_pred", y_pred)
    return _samples(
        "sparse_categorical_focal_crossentropy",
        labels(own("y_true", y_true), y_pred, axis),
        y_pred,
        alpha=alpha,
        gamma=gamma,
        from_logits=from_logits,
        ignore_class=ignore_class,
        axis=axis,
    )


def binary_focal_crossentropy(
    y_true: Any,
    y_pred: Any,
    apply_class_balancing: bool = False,
    alpha: float = 0.25,
    gamma: float = 2.0,
    from_logits: bool = False,
    label_smoothing: float = 0.0,
    axis: int = -1,
) -> Any:
    """Binary cross-entropy times (1 − p_t)^γ, mean over `axis`, as keras.losses.binary_focal_crossentropy.

    p_t = t·p + (1 − t)·(1 − p).

    Args:
        y_true: targets in [0, 1], of y_pred's shape.
        y_pred: probabilities, clipped in the logarithm; with `from_logits`, logits. Shape (…, C, …).
        apply_class_balancing: multiply by alpha where t = 1 and 1 − alpha where t = 0.
        alpha: that weight, in [0, 1].
        gamma: γ ≥ 0.
        label_smoothing: s in [0, 1]; targets become t·(1 − s) + s/2.

    Keras, but on TensorFlow, clips the sigmoid of logits: for t = 0 the logit 40 costs 15.94 there, here 40. Its
    gradient at a certain and right prediction is NaN where γ < 1, here finite.

    >>> binary_focal_crossentropy([[1.0], [0.0]], [[0.9], [0.2]]).round(7)
    array([0.0010536, 0.0089257])

    Source: Lin et al., Focal Loss for Dense Object Detection, 2017.
    """
    return _samples(
        "binary_focal_crossentropy",
        y_true,
        y_pred,
        apply_class_balancing=apply_class_balancing,
        alpha=alpha,
        gamma=gamma,
        from_logits=from_logits,
        label_smoothing=label_smoothing,
        axis=axis,
    )


def _samples(name: str, y_true: Any, y_pred: Any, **options: Any) -> Any:
    y_pred, options = logits_behind(_LOSSES[name], own("y_pred", y_pred), options)
    return run(_LOSSES[name], y_true, y_pred, **options, reduction="none")


# Predictions, ranks and labels as Keras takes them, for `lossbridge.keras` too. Labels are never cast to float.


# The TensorFlow operation that makes a loss's probabilities of logits. Of the other losses Keras clips probabilities.
_ACTIVATIONS = {
    "categorical_crossentropy": "Softmax",
    "sparse_categorical_crossentropy": "Softmax",
    "binary_crossentropy": "Sigmoid",
    "binary_focal_crossentropy": "Sigmoid",
}


def logits_behind(loss: Loss, y_pred: Array, options: dict[str, Any]) -> tuple[Array, dict[str, Any]]:
    """On TensorFlow the logits of a softmax or sigmoid whose output y_pred is, and the options with from_logits.

    Clipped, a saturated output would have no gradient. The rule is that of Keras' own losses: the tensor has the logits
    that Keras' activations attach, or is, in a graph, what TensorFlow's operation gave. One that was cast or reshaped
    is unchanged; so is it with ignore_class, where Keras selects in it first, and with an epsilon of the caller's own.
    """
    activation, from_logits = _ACTIVATIONS.get(loss.name), options.get("from_logits", False)
    if activation is None or options.get("ignore_class") is not None or framework_of(y_pred).name != "tensorflow":
        return y_pred, options
    if options.get("epsilon") not in (None, loss.options["epsilon"]):
        return y_pred, options
    if from_logits and loss.name == "binary_focal_crossentropy":  # Keras takes the sigmoid of what it is given
        return y_pred, options
    logits, operation = getattr(y_pred, "_keras_logits", None), getattr(y_pred, "op", None)
    if logits is None and operation is not None and operation.type == activation:
        logits = operation.inputs[0]
    if logits is None:
        return y_pred, options
    if from_logits:
        warnings.warn(
            "from_logits=True, and y_pred is the output of a softmax or sigmoid; the loss is of the logits behind it, "
            "as in Keras on TensorFlow: leave out from_logits, or the activation",
            stacklevel=2,
        )
    return as_array(framework_of(y_pred).ops, "y_pred", logits, y_pred), {**options, "from_logits": True}


def with_attached_mask(names: Names) -> Names:
    """For calls without `mask=`, whose mask Keras' layers attached to y_pred."""
    return names._replace(mask=errors.ATTACHED_MASK, leave_out=names.leave_out.replace("mask=", "sample_weight 0"))


def own(name: str, x: Any) -> Array:
    """`x` as an array of its own library; lists and numbers are NumPy's."""
    return as_array(framework_of(x, name).ops, name, x)


def same_rank(y_true: Array, y_pred: Array) -> tuple[Array, Array]:
    """Both of one rank: where only one ends in an axis of size 1, a vector gets one too, else it is dropped."""
    b_true, b_pred = framework_of(y_true, "y_true").ops, framework_of(y_pred).ops
    true, pred = b_true.shape(y_true), b_pred.shape(y_pred)
    if len(pred) == len(true) + 1 and pred[-1] == 1:
        return (b_true.expand_dims(y_true, 1), y_pred) if len(true) == 1 else (y_true, without_last(y_pred, len(true)))
    if len(true) == len(pred) + 1 and true[-1] == 1:
        return (y_true, b_pred.expand_dims(y_pred, 1)) if len(pred) == 1 else (without_last(y_true, len(pred)), y_pred)
    return y_true, y_pred


def without_last(x: Array, rank: int, name: str = "y_pred") -> Array:
    """`x` without its last axis, if that has size 1 and `x` one axis more than `rank`."""
    b = framework_of(x, name).ops
    shape = b.shape(x)
    return b.squeeze(x, rank) if len(shape) == rank + 1 and shape[-1] == 1 else x


def labels(y_true: Array, y_pred: Array, axis: int, name: str = "y_true") -> Array:
    """Class labels as integers, without an axis of size 1 at `axis`. Outcomes unchanged."""
    errors.integer_axis(axis)
    b = framework_of(y_true, name).ops
    true, pred = b.shape(y_true), framework_of(y_pred).ops.shape(y_pred)
    if len(true) == len(pred) and true[axis:][:1] == (1,) != pred[axis:][:1]:
        y_true = b.squeeze(y_true, axis % len(true))
    if len(b.shape(y_true)) == len(pred) or b.dtype(y_true) not in ("float32", "float64"):
        return y_true
    known = b.concrete(y_true)
    if known is not None and (bad := np.isfinite(known) & (known != np.round(known))).any():
        index = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(
            f"{name} holds fractions ({known[index]} at index {index[0] if len(index) == 1 else index}), and class "
            "labels are integers; use CategoricalCrossentropy for targets"
        )
    # A fraction becomes −2³¹, which is out of range.
    small = b.where(b.abs(y_true) < 2.0**31, y_true, -(2.0**31))
    whole = b.cast(small, "int32")
    return b.where(b.cast(whole, b.dtype(y_true)) == y_true, whole, -(2**31))


# The classes.


class _Loss:
    """A function of lossbridge.losses with its options, checked when it is made, and saved in Keras' configs.

    A call takes (y_true, y_pred, sample_weight=None, *, mask=None); `call` returns per-sample losses.
    """

    name: str
    reduction: Reduction
    dtype: str

    def __init__(self, loss: str, arguments: dict[str, Any]) -> None:
        """`arguments`: the locals() of a constructor, which are its arguments, so that none is forgotten."""
        options = {name: _option(name, x) for name, x in arguments.items() if name not in ("self", "__class__")}
        errors.options(options)
        options["name"] = options["name"] or loss
        options["dtype"] = _compute_dtype(options["dtype"])
        self._function, self._arguments = loss, tuple(options)
        for name, value in options.items():
            setattr(self, name, value)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "call" in vars(cls):  # Keras calls `call` from __call__; here it would be ignored
            raise TypeError(f"{cls.__name__} overrides call, which __call__ does not go through; override __call__")

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None, *, mask: Any = None) -> Any:
        """The weighted and reduced loss, of y_pred cast to `dtype`, in that dtype.

        Args:
            sample_weight: of the per-sample shape (a last axis of size 1 may be added), its leading axes, or a number.
            mask: of such a shape; where it is False, the entry counts in neither value, gradient nor denominator. By
                default the one that Keras' layers attach to y_pred (JAX's tracers and NumPy's arrays have none).
        """
        given = mask is not None
        pred = own("y_pred", y_pred)
        b = framework_of(pred).ops
        dtype = b.widest(pred) if self.dtype == "float64" else self.dtype
        value = self._evaluate(
            y_true,
            b.cast(pred, dtype),
            sample_weight=sample_weight,
            mask=mask if given else getattr(y_pred, "_keras_mask", None),
            reduction=self.reduction,
            names=self._loss.names if given else with_attached_mask(self._loss.names),
        )
        return b.cast(value, dtype)

    @property
    def _loss(self) -> Loss:
        return _LOSSES[self._function]

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """The losses of the samples, without weights or mask, in y_pred's own precision."""
        return self._evaluate(y_true, own("y_pred", y_pred), reduction="none")

    def get_config(self) -> dict[str, Any]:
        """Every argument of the constructor, as Python numbers and lists, for `from_config` and Keras'."""
        return {name: _plain(getattr(self, name)) for name in self._arguments}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        """The loss of a config made here or by Keras."""
        return cls(**config)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={x!r}' for name, x in self.get_config().items())})"

    def _evaluate(
        self, y_true: Any, y_pred: Array, *, sample_weight: Any = None, mask: Any = None, **others: Any
    ) -> Any:
        options = {name: getattr(self, name) for name in self._arguments if name not in ("name", "reduction", "dtype")}
        y_true = own("y_true", y_true)
        if "labels" in self._loss.targets:
            y_true = labels(y_true, y_pred, options["axis"])
        else:
            y_true, y_pred = same_rank(y_true, y_pred)
        samples = len(framework_of(y_pred).ops.shape(y_pred)) - 1
        if sample_weight is not None:
            sample_weight = without_last(own("sample_weight", sample_weight), samples)
        if mask is not None:
            mask = without_last(own("mask", mask), samples)
        y_pred, options = logits_behind(self._loss, y_pred, options)
        return run(self._loss, y_true, y_pred, sample_weight=sample_weight, mask=mask, **options, **others)


def _option(name: str, x: Any) -> Any:
    """An option as a Python number, or an array of one number a class."""
    if isinstance(x, np.generic):
        return x.item()
    return x if name != "alpha" or x is None or isinstance(x, int | float) else own(name, x)


def _plain(x: Any) -> Any:
    return x if x is None or isinstance(x, str | int | float) else framework_of(x).to_numpy(x).tolist()


def _compute_dtype(dtype: Any) -> str:
    """The dtype of a name or of a Keras policy; by default float32."""
    name = "float32" if dtype is None else getattr(dtype, "compute_dtype", dtype)
    name = name.removeprefix("mixed_") if isinstance(name, str) else repr(name)
    if not errors.is_float(name):
        raise ValueError(f"dtype is {name}; pass 'float16', 'bfloat16', 'float32' or 'float64'")
    return name


class CategoricalCrossentropy(_Loss):
    """Cross-entropy of class distributions, Σ_c t_c (−log p_c), as keras.losses.CategoricalCrossentropy.

    y_true, y_pred: (…, C, …), the targets one-hot or soft. Per-sample losses: that shape without `axis`.

    Args:
        from_logits, label_smoothing, axis: see `categorical_crossentropy`.
        reduction: "sum_over_batch_size" or "mean" (divides by the number of unmasked entries), "sum", "none" or None,
            "mean_with_sample_weight" (divides by the sum of the weights).
        name: a label; None stands for the function's.
        dtype: y_pred is cast to it, by default, as in Keras, to float32, so that float64 predictions give float32; and
            so is the result, which a "float16" rounds once.

    >>> loss = CategoricalCrossentropy()
    >>> round(float(loss([[0, 1, 0], [0, 0, 1]], [[0.05, 0.95, 0], [0.1, 0.8, 0.1]], sample_weight=[0.3, 0.7])), 6)
    0.813599

    Source: `categorical_crossentropy`.
    """

    def __init__(
        self,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        axis: int = -1,
        reduction: Reduction = "sum_over_batch_size",
        name: str | None = "categorical_crossentropy",
        dtype: Any = None,
    ) -> None:
        super().__init__("categorical_crossentropy", locals())


class SparseCategoricalCrossentropy(_Loss):
    """Cross-entropy of integer class labels, −log p_y, as keras.losses.SparseCategoricalCrossentropy.

    y_true: labels from 0 to C − 1, of y_pred's shape without `axis`, or with a size of 1 there. y_pred: (…, C, …).

    Args:
        ignore_class: a label (often −1 or −100) whose entries are left out, as by a mask.
        from_logits, axis, label_smoothing: see `sparse_categorical_crossentropy`.
        reduction, name, dtype: see `CategoricalCrossentropy`.

    Keras casts labels to `dtype`, and bfloat16 turns 257 into 256; here they are not cast.

    >>> loss = SparseCategoricalCrossentropy(ignore_class=-1)
    >>> round(float(loss([1, 2, -1], [[0.05, 0.95, 0], [0.1, 0.8, 0.1], [1, 0, 0]])), 6)
    1.176939

    Source: `sparse_categorical_crossentropy`.
    """

    def __init__(
        self,
        from_logits: bool = False,
        ignore_class: int | None = None,
        reduction: Reduction = "sum_over_batch_size",
        axis: int = -1,
        label_smoothing: float = 0.0,
        name: str | None = "sparse_categorical_crossentropy",
        dtype: Any = None,
    ) -> None:
        super().__init__("sparse_categorical_crossentropy", locals())

    def get_config(self) -> dict[str, Any]:
        """Every argument of the constructor; without a label_smoothing of 0, which Keras before 3.16 does not know."""
        config = super().get_config()
        if not config["label_smoothing"]:
            del config["label_smoothing"]
        return config


class BinaryCrossentropy(_Loss):
    """Mean over `axis` of −t log p − (1 − t) log(1 − p), as keras.losses.BinaryCrossentropy.

    y_true, y_pred: (…, C, …), the targets in [0, 1]; (N,) goes with (N, 1). Per-sample losses: without `axis`.

    Args:
        from_logits, label_smoothing, axis: see `binary_crossentropy`.
        reduction, name, dtype: see `CategoricalCrossentropy`.

    >>> round(float(BinaryCrossentropy(from_logits=True)([0.0, 1.0], [[1.0], [1.0]])), 6)
    0.813262

    Source: `binary_crossentropy`.
    """

    def __init__(
        self,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        axis: int = -1,
        reduction: Reduction = "sum_over_batch_size",
        name: str | None = "binary_crossentropy",
        dtype: Any = None,
    ) -> None:
        super().__init__("binary_crossentropy", locals())


class KLDivergence(_Loss):
    """Kullback-Leibler divergence Σ_c t_c log(t_c / p_c) along the last axis, as keras.losses.KLDivergence.

    y_true, y_pred: (…, C), both clipped to [1e-7, 1]. Per-sample losses: that shape without the last axis.

    Args:
        reduction, name, dtype: see `CategoricalCrossentropy`.

    >>> round(float(KLDivergence()([[0.5, 0.5]], [[0.25, 0.75]])), 6)
    0.143841

    Source: `kl_divergence`.
    """

    def __init__(
        self,
        reduction: Reduction = "sum_over_batch_size",
        name: str | None = "kl_divergence",
        dtype: Any = None,
    ) -> None:
        super().__init__("kl_divergence", locals())


class CategoricalFocalCrossentropy(_Loss):
    """Σ_c α_c t_c (1 − p_c)^γ (−log p_c), as keras.losses.CategoricalFocalCrossentropy.

    y_true, y_pred: (…, C, …), the targets one-hot or soft. Per-sample losses: that shape without `axis`.

    Args:
        alpha, gamma, from_logits, label_smoothing, axis: see `categorical_focal_crossentropy`.
        reduction, name, dtype: see `CategoricalCrossentropy`.

    >>> loss = CategoricalFocalCrossentropy()
    >>> round(float(loss([[0, 1, 0], [0, 0, 1]], [[0.05, 0.95, 0], [0.1, 0.8, 0.1]])), 6)
    0.233153

    Source: `categorical_focal_crossentropy`.
    """

    def __init__(
        self,
        alpha: Any = 0.25,
        gamma: float = 2.0,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        axis: int = -1,
        reduction: Reduction = "sum_over_batch_size",
        name: str | None = "categorical_focal_crossentropy",
        dtype: Any = None,
    ) -> None:
        super().__init__("categorical_focal_crossentropy", locals())


class SparseCategoricalFocalCrossentropy(_Loss):
    """α_y (1 − p_y)^γ (−log p_y) of labels, as keras.losses.SparseCategoricalFocalCrossentropy (Keras since 3.16).

    y_true: labels, y_pred: (…, C, …), as in `SparseCategoricalCrossentropy`.

    Args:
        alpha, gamma, from_logits, ignore_class, axis: see `sparse_categorical_focal_crossentropy`.
        reduction, name, dtype: see `CategoricalCrossentropy`.

    >>> loss = SparseCategoricalFocalCrossentropy()
    >>> round(float(loss([1, 2], [[0.05, 0.95, 0], [0.1, 0.8, 0.1]])), 6)
    0.233153

    Source: `sparse_categorical_focal_crossentropy`.
    """

    def __init__(
        self,
        alpha: Any = 0.25,
        gamma: float = 2.0,
        from_logits: bool = False,
        ignore_class: int | None = None,
        axis: int = -1,
        reduction: Reduction = "sum_over_batch_size",
        name: str | None = "sparse_categorical_focal_crossentropy",
        dtype: Any = None,
    ) -> None:
        super().__init__("sparse_categorical_focal_crossentropy", locals())


class BinaryFocalCrossentropy(_Loss):
    """Binary cross-entropy times (1 − p_t)^γ, mean over `axis`, as keras.losses.BinaryFocalCrossentropy.

    y_true, y_pred: (…, C, …), the targets in [0, 1]; (N,) goes with (N, 1). Per-sample losses: without `axis`.

    Args:
        apply_class_balancing, alpha, gamma, from_logits, label_smoothing, axis: see `binary_focal_crossentropy`.
        reduction, name, dtype: see `CategoricalCrossentropy`.

    >>> round(float(BinaryFocalCrossentropy()([[1.0], [0.0]], [[0.9], [0.2]])), 6)
    0.00499

    Source: `binary_focal_crossentropy`.
    """

    def __init__(
        self,
        apply_class_balancing: bool = False,
        alpha: float = 0.25,
        gamma: float = 2.0,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        axis: int = -1,
        reduction: Reduction = "sum_over_batch_size",
        name: str | None = "binary_focal_crossentropy",
        dtype: Any = None,
    ) -> None:
        super().__init__("binary_focal_crossentropy", locals())
