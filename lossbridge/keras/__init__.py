"""Losses for Keras 3, on its TensorFlow, PyTorch and JAX backends: `keras.losses.Loss` objects.

A constructor takes Keras' own arguments in Keras' order, with Keras' defaults; further options are keyword-only.
A call takes (y_true, y_pred, sample_weight=None, *, normalizer=None). `_Loss` does the work; the classes after
it are signatures and docstrings. No maths. `LinearCrossentropyHead` is a layer, which adds its loss to the model's.

These arguments mean the same in every loss:

from_logits     y_pred holds logits: exact, never clipped. On TensorFlow the cross-entropies and binary focal loss go
                back to the logits behind a softmax or sigmoid layer, as Keras' own do there
axis            the axis that holds the classes; it is absent from the per-sample losses
reduction       "sum_over_batch_size" or "mean" (divides by the number of unmasked entries), "sum", "none" or None
                (per-sample values), "mean_with_sample_weight" (divides by the sum of the weights)
dtype           y_pred is cast to it, by default to keras.config.floatx(); results are float64 for float64, else float32
epsilon         probabilities are clipped to [epsilon, 1 - epsilon]; 0 means exact. keras.config.epsilon() is not read.
                With another than 1e-7 no loss goes back to logits
normalizer      the denominator of a mean, in place of the count: a number here, in the call also a scalar array, which
                overrides it (for accumulated gradients and data parallelism)

And these in every call:

sample_weight   of the per-sample shape (a last axis of size 1 may be added), or its leading axes, or one number
the mask        that Keras layers attach to y_pred (Masking, Embedding with mask_zero); entries that are masked or have
                weight 0 are selected away, so that a NaN there reaches neither value, gradient nor denominator

All raise ValueError for shapes that do not fit and for options outside their range, TypeError for predictions that are
no floating-point numbers or belong to another library than Keras runs on. Losses are in nats.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

# ---- Private interfaces of Keras, tried with 3.15 and 3.16. test_keras.py tests what each answers. ----
from keras.src.backend.common.masking import get_keras_mask  # as Keras' own losses do; there is no public function
from keras.src.losses.loss import scale_loss_for_distribution  # the trainer reverses this scaling when it reports

# ---- End of the private interfaces. ----
from lossbridge import errors
from lossbridge.compat.keras import SPARSE_FOCAL, labels, logits_behind, same_rank, with_attached_mask
from lossbridge.keras.arguments import check_options, given_array, saved_option, without_last_axis
from lossbridge.keras.linear_head import LinearCrossentropyHead
from lossbridge.maths.ops import Array
from lossbridge.request import common_framework, framework_of, run
from lossbridge.spec import LOSSES, MEANS, Kind, Loss, Reduction, Scale

__all__ = [
    "BinaryCrossentropy",
    "BinaryFocalCrossentropy",
    "CategoricalCrossentropy",
    "CategoricalFocalCrossentropy",
    "DistillationLoss",
    "Divergence",
    "KLDivergence",
    "LinearCrossentropyHead",
    "LogLoss",
    "SparseCategoricalCrossentropy",
    "SparseCategoricalFocalCrossentropy",
]


class _Loss(keras.losses.Loss):
    """A loss of lossbridge with its options: checked when it is made and saved with the model."""

    def __init__(self, loss: str, arguments: dict[str, Any]) -> None:
        """`arguments`: the locals() of a constructor, which are its arguments, so that none is forgotten."""
        options = {key: saved_option(key, x) for key, x in arguments.items() if key not in ("self", "__class__")}
        check_options(options)
        super().__init__(name=options.pop("name"), reduction=options.pop("reduction"), dtype=options.pop("dtype"))
        if not errors.is_float(self.dtype):
            raise ValueError(f"dtype is {self.dtype}; a loss computes in float16, bfloat16, float32 or float64")
        self._function = loss
        self._names = tuple(options)
        for key, value in options.items():
            setattr(self, key, value)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "call" in vars(cls):  # Keras calls `call` from __call__; here it would be ignored
            raise TypeError(
                f"{cls.__name__} overrides call, which lossbridge's losses do not go through; subclass "
                "keras.losses.Loss and call the function of lossbridge in it"
            )

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None, *, normalizer: Any = None) -> Any:
        if normalizer is None:
            normalizer = self.normalizer
        with keras.name_scope(self.name):
            value = self._evaluate(
                y_true,
                y_pred,
                sample_weight=sample_weight,
                mask=get_keras_mask(y_pred),
                normalizer=normalizer,
                reduction=self.reduction,
            )
            # tf.distribute sums gradients over its replicas, so the mean of each is divided by their number. A sum, and
            # a mean with a normalizer, which is the denominator of the whole batch, are added up unchanged.
            own_mean = self.reduction in MEANS and normalizer is None
            return scale_loss_for_distribution(value) if own_mean else value

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Per-sample losses, without weights or mask."""
        return self._evaluate(y_true, y_pred, normalizer=None, reduction="none")

    @property
    def _loss(self) -> Loss:
        return LOSSES.get(self._function, SPARSE_FOCAL)

    def get_config(self) -> dict[str, Any]:
        config = {**super().get_config(), "dtype": self.dtype, **self._options()}
        return {key: x.tolist() if isinstance(x, np.ndarray) else x for key, x in config.items()}

    def _options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self._names}

    def _evaluate(self, y_true: Any, y_pred: Any, *, sample_weight: Any = None, mask: Any = None, **other: Any) -> Any:
        options = {**self._options(), **other}
        learns = getattr(y_true, "requires_grad", False)  # of a tensor; a Keras variable may be a target
        y_true, y_pred = given_array(y_true, "y_true"), given_array(y_pred, "y_pred")
        self._refuse_predictions(y_pred, swapped=learns and not getattr(y_pred, "requires_grad", False))
        y_pred = keras.ops.convert_to_tensor(y_pred, dtype=self.dtype)
        common_framework(y_pred, "y_pred", {"y_true": y_true})
        if self._loss.targets != ("labels",):
            y_true, y_pred = same_rank(y_true, y_pred)
        if "labels" in self._loss.targets:
            y_true = labels(y_true, y_pred, options["axis"])
        samples = len(y_pred.shape) - 1
        if "outcomes" in self._loss.elementwise and len(y_true.shape) > samples:
            samples += 1  # one outcome an entry, not one label a row
        y_pred, options = logits_behind(self._loss, y_pred, options)
        return run(
            self._loss,
            y_true,
            y_pred,
            names=with_attached_mask(self._loss.names),
            sample_weight=without_last_axis(sample_weight, samples, "sample_weight"),
            mask=without_last_axis(mask, samples, "mask"),
            **options,
        )

    def _refuse_predictions(self, y_pred: Array, *, swapped: bool) -> None:
        framework, running = framework_of(y_pred), keras.backend.backend()
        if framework.name not in (running, "numpy"):
            ours = f"lossbridge.{'' if self._loss.name in LOSSES else 'compat.keras.'}{self._loss.name}"
            if framework.name == "torch":
                ours = f"lossbridge.torch.{type(self).__name__}"
            raise TypeError(
                f"y_pred is of {framework.name}, and Keras runs on {running}; set KERAS_BACKEND={framework.name} "
                f"before Keras is imported, or in a loop of your own use {ours}"
            )
        if not errors.is_float(framework.ops.dtype(y_pred)):
            raise TypeError(
                f"y_pred has dtype {framework.ops.dtype(y_pred)}, and logits and probabilities are floating-point "
                "numbers; were the arguments swapped? the order is (y_true, y_pred)"
            )
        if swapped:
            raise ValueError("y_true requires a gradient and y_pred does not; swap them: the order is (y_true, y_pred)")


# The losses.


@keras.saving.register_keras_serializable(package="lossbridge")
class CategoricalCrossentropy(_Loss):
    """Cross-entropy of class distributions, Σ_c w_c t_c (−log p_c), in nats.

    y_true, y_pred: (…, C, …), the targets one-hot or soft. Per-sample losses: that shape without `axis`.

    Args:
        label_smoothing: s in [0, 1]; targets become t·(1 − s) + s/C, C counted along `axis` (by Keras along the last).
        class_weight: (C,), the w_c. fit(class_weight=) instead weights whole samples.
        from_logits, axis, reduction, name, dtype, epsilon, normalizer: see `lossbridge.keras`.

    A logit that leads by 20 costs 2.06e-9, in Keras 0.

    >>> loss = CategoricalCrossentropy()
    >>> round(float(loss([[0, 1, 0], [0, 0, 1]], [[0.05, 0.95, 0.0], [0.1, 0.8, 0.1]])), 5)
    1.17694

    Source: Shannon, A Mathematical Theory of Communication, 1948; keras.losses.CategoricalCrossentropy.
    """

    def __init__(
        self,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        axis: int = -1,
        reduction: Reduction = "sum_over_batch_size",
        name: str | None = "categorical_crossentropy",
        dtype: Any = None,
        *,
        epsilon: float = 1e-7,
        class_weight: Any = None,
        normalizer: float | None = None,
    ) -> None:
        super().__init__("categorical_crossentropy", locals())


@keras.saving.register_keras_serializable(package="lossbridge")
class SparseCategoricalCrossentropy(_Loss):
    """Cross-entropy of integer class labels, w_y (−log p_y), in nats.

    y_true: labels from 0 to C − 1, of y_pred's shape without `axis`, or with a size of 1 there. y_pred: (…, C, …).

    Args:
        ignore_class: a label (often −1 or −100) whose entries are left out, as by a mask.
        label_smoothing: s in [0, 1], of Keras since 3.16; no one-hot array is built for it.
        class_weight: (C,), the w_c. fit(class_weight=) instead weights whole samples.
        from_logits, axis, reduction, name, dtype, epsilon, normalizer: see `lossbridge.keras`.

    A label out of range is an error where it can be read, else a NaN loss; Keras on JAX gives 0. `axis` works on every
    backend, in Keras on PyTorch only, and labels are never cast to float.

    >>> loss = SparseCategoricalCrossentropy()
    >>> round(float(loss([1, 2], [[0.05, 0.95, 0.0], [0.1, 0.8, 0.1]])), 5)
    1.17694

    Source: as `CategoricalCrossentropy`; keras.losses.SparseCategoricalCrossentropy.
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
        *,
        epsilon: float = 1e-7,
        class_weight: Any = None,
        normalizer: float | None = None,
    ) -> None:
        super().__init__("sparse_categorical_crossentropy", locals())


@keras.saving.register_keras_serializable(package="lossbridge")
class BinaryCrossentropy(_Loss):
    """Cross-entropy of independent outcomes, −t log p − (1 − t) log(1 − p), averaged over `axis`, in nats.

    y_true, y_pred: (…, C, …), the targets in [0, 1]; (N,) goes with (N, 1). Per-sample losses: without `axis`.

    Args:
        label_smoothing: s in [0, 1]; targets become t·(1 − s) + s/2.
        pos_weight: one number, or (C,): multiplies the term of t.
        from_logits, axis, reduction, name, dtype, epsilon, normalizer: see `lossbridge.keras`.

    For t = 0 a logit of −20 costs 2.06e-9, in Keras on PyTorch 0.

    >>> loss = BinaryCrossentropy(from_logits=True)
    >>> round(float(loss([0.0, 1.0], [[1.0], [1.0]])), 5)
    0.81326

    Source: keras.losses.BinaryCrossentropy; pos_weight of torch.nn.BCEWithLogitsLoss.
    """

    def __init__(
        self,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        axis: int = -1,
        reduction: Reduction = "sum_over_batch_size",
        name: str | None = "binary_crossentropy",
        dtype: Any = None,
        *,
        epsilon: float = 1e-7,
        pos_weight: Any = None,
        normalizer: float | None = None,
    ) -> None:
        super().__init__("binary_crossentropy", locals())


@keras.saving.register_keras_serializable(package="lossbridge")
class KLDivergence(_Loss):
    """Kullback-Leibler divergence Σ_c t_c log(t_c / p_c) of the targets from the predictions, in nats.

    y_true, y_pred: (…, C, …), both clipped to [epsilon, 1]. Per-sample losses: that shape without `axis`.

    Args:
        from_logits: both are logits, the targets too.
        axis, reduction, name, dtype, epsilon, normalizer: see `lossbridge.keras`.

    Nearly equal distributions keep their digits: [.2, .3, .5] and [.2001, .2999, .5] give 5.66e-8, in Keras 6.56e-8.

    >>> round(float(KLDivergence()([[0.5, 0.5]], [[0.25, 0.75]])), 5)
    0.14384

    Source: Kullback and Leibler, On Information and Sufficiency, 1951; keras.losses.KLDivergence.
    """

    def __init__(
        self,
        reduction: Reduction = "sum_over_batch_size",
        name: str | None = "kl_divergence",
        dtype: Any = None,
        *,
        from_logits: bool = False,
        axis: int = -1,
        epsilon: float = 1e-7,
        normalizer: float | None = None,
    ) -> None:
        super().__init__("kl_divergence", locals())


@keras.saving.register_keras_serializable(package="lossbridge")
class LogLoss(_Loss):
    """Negative log-likelihood of labels, in nats; probabilities are never renormalised. Keras has no such loss.

    y_true of y_pred's shape: outcomes in [0, 1], each entry a sample (where BinaryCrossentropy averages over `axis`).
    y_true without the axis of y_pred's classes, or with a size of 1 there: integer class labels.

    Args:
        from_logits, axis, reduction, name, dtype, epsilon, normalizer: see `lossbridge.keras`.

    >>> round(float(LogLoss()([1, 0, 1], [0.9, 0.2, 0.6])), 5)
    0.27978

    Source: Bishop, Pattern Recognition and Machine Learning, 2006, §4.3; conventions of sklearn.metrics.log_loss.
    """

    def __init__(
        self,
        from_logits: bool = False,
        axis: int = -1,
        reduction: Reduction = "sum_over_batch_size",
        name: str | None = "log_loss",
        dtype: Any = None,
        *,
        epsilon: float = 1e-7,
        normalizer: float | None = None,
    ) -> None:
        super().__init__("log_loss", locals())


@keras.saving.register_keras_serializable(package="lossbridge")
class DistillationLoss(_Loss):
    """T² · KL(softmax(teacher/T) ‖ softmax(student/T)), in nats; T² keeps the gradient's size independent of T.

    y_true: the teacher's logits, y_pred: the student's, (…, C, …). Per-sample losses: that shape without `axis`.

    Args:
        temperature: T > 0.
        axis, reduction, name, dtype, normalizer: see `lossbridge.keras`.

    >>> round(float(DistillationLoss(temperature=2.0)([[2.0, 0.0]], [[0.0, 2.0]])), 5)
    1.84847

    Source: Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network, 2015.
    """

    def __init__(
        self,
        temperature: float = 1.0,
        axis: int = -1,
        reduction: Reduction = "sum_over_batch_size",
        name: str | None = "distillation_loss",
        dtype: Any = None,
        *,
        normalizer: float | None = None,
    ) -> None:
        super().__init__("distillation_loss", locals())


@keras.saving.register_keras_serializable(package="lossbridge")
class Divergence(_Loss):
    """A divergence of softmax(teacher/T) and softmax(student/T), times T², in nats: which, `kind` says.

    y_true: the teacher's logits, y_pred: the student's, (…, C, …). Per-sample losses: that shape without `axis`.

    Args:
        kind, beta, scale, temperature: see `lossbridge.divergence`.
        axis, reduction, name, dtype, normalizer: see `lossbridge.keras`.

    >>> round(float(Divergence("jensen_shannon")([[2.0, 0.0]], [[0.0, 2.0]])), 5)
    0.32781

    Source: Lin, Divergence Measures Based on the Shannon Entropy, 1991.
    """

    def __init__(
        self,
        kind: Kind = "forward",
        beta: float = 0.5,
        scale: Scale = "mixture",
        temperature: float = 1.0,
        axis: int = -1,
        reduction: Reduction = "sum_over_batch_size",
        name: str | None = "divergence",
        dtype: Any = None,
        *,
        normalizer: float | None = None,
    ) -> None:
        super().__init__("divergence", locals())


@keras.saving.register_keras_serializable(package="lossbridge")
class CategoricalFocalCrossentropy(_Loss):
    """Focal loss: down-weights examples that are already classified well. Σ_c α_c t_c (1 − p_c)^γ (−log p_c), in nats.

    y_true, y_pred: (…, C, …), the targets one-hot or soft. Per-sample losses: that shape without `axis`.

    Args:
        alpha: one number, or (C,), a weight a class.
        gamma: γ ≥ 0; 0 leaves α times the cross-entropy.
        label_smoothing: s in [0, 1]; targets become t·(1 − s) + s/C, C counted along `axis` (by Keras along the last).
        from_logits, axis, reduction, name, dtype, epsilon, normalizer: see `lossbridge.keras`.

    Logits are exact here; Keras clips their softmax, which caps the loss of a class at 16.1 α.

    >>> loss = CategoricalFocalCrossentropy()
    >>> round(float(loss([[0, 1, 0], [0, 0, 1]], [[0.05, 0.95, 0.0], [0.1, 0.8, 0.1]])), 5)
    0.23315

    Source: Lin et al., Focal Loss for Dense Object Detection, 2017; keras.losses.CategoricalFocalCrossentropy.
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
        *,
        epsilon: float = 1e-7,
        normalizer: float | None = None,
    ) -> None:
        super().__init__("categorical_focal_crossentropy", locals())


@keras.saving.register_keras_serializable(package="lossbridge")
class SparseCategoricalFocalCrossentropy(_Loss):
    """Focal loss of integer class labels, α_y (1 − p_y)^γ (−log p_y), in nats; of Keras since 3.16.

    y_true: labels, y_pred: (…, C, …), as in `SparseCategoricalCrossentropy`.

    Args:
        alpha, gamma: as in `CategoricalFocalCrossentropy`.
        ignore_class: a label (often −1 or −100) whose entries are left out, as by a mask.
        from_logits, axis, reduction, name, dtype, epsilon, normalizer: see `lossbridge.keras`.

    >>> loss = SparseCategoricalFocalCrossentropy()
    >>> round(float(loss([1, 2], [[0.05, 0.95, 0.0], [0.1, 0.8, 0.1]])), 5)
    0.23315

    Source: as `CategoricalFocalCrossentropy`; keras.losses.SparseCategoricalFocalCrossentropy.
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
        *,
        epsilon: float = 1e-7,
        normalizer: float | None = None,
    ) -> None:
        super().__init__(SPARSE_FOCAL.name, locals())


@keras.saving.register_keras_serializable(package="lossbridge")
class BinaryFocalCrossentropy(_Loss):
    """Binary cross-entropy times (1 − p_t)^γ, p_t = t·p + (1 − t)·(1 − p); mean over `axis`, in nats.

    y_true, y_pred: (…, C, …), the targets in [0, 1]; (N,) goes with (N, 1). Per-sample losses: without `axis`.

    Args:
        apply_class_balancing: multiply by alpha where t = 1 and 1 − alpha where t = 0.
        alpha: that weight, in [0, 1].
        gamma: γ ≥ 0.
        label_smoothing: s in [0, 1]; targets become t·(1 − s) + s/2.
        from_logits, axis, reduction, name, dtype, epsilon, normalizer: see `lossbridge.keras`.

    Logits are exact here; Keras on PyTorch and JAX clips their sigmoid, which caps the loss at 16.1.

    >>> round(float(BinaryFocalCrossentropy()([[1.0], [0.0]], [[0.9], [0.2]])), 5)
    0.00499

    Source: Lin et al., Focal Loss for Dense Object Detection, 2017; keras.losses.BinaryFocalCrossentropy.
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
        *,
        epsilon: float = 1e-7,
        normalizer: float | None = None,
    ) -> None:
        super().__init__("binary_focal_crossentropy", locals())
