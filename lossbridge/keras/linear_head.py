"""The last layer of a classifier or language model, which adds its loss without the array of all logits. No maths.

A `keras.losses.Loss` sees what the model returns, and so the logits. This layer sees the hidden states and the labels.
"""

from __future__ import annotations

from typing import Any

import keras

# ---- Private interfaces of Keras, tried with 3.15 and 3.16. test_keras_head.py tests what each answers. ----
from keras.src.backend.common.masking import get_keras_mask  # Keras fills in `mask` of layers of one tensor alone
from keras.src.losses.loss import unscale_loss_for_distribution  # the trainer scales what a layer adds as a mean

# ---- End of the private interfaces. ----
from lossbridge import errors, losses
from lossbridge.compat.keras import labels as class_labels
from lossbridge.keras.arguments import check_options, given_array, saved_option, without_last_axis
from lossbridge.maths.ops import Array
from lossbridge.maths.softmax import scaled
from lossbridge.request import framework_of
from lossbridge.spec import MEANS, PER_SAMPLE, Reduction

# Of the constructor: the options of the loss, and what makes the layer.
_OF_LOSS = (
    *("label_smoothing", "ignore_class", "class_weight", "logit_scale", "softcap", "z_loss"),
    *("normalizer", "reduction", "memory"),
)
_OF_LAYER = (
    *("kernel_initializer", "bias_initializer", "kernel_regularizer", "bias_regularizer"),
    *("kernel_constraint", "bias_constraint"),
)


@keras.saving.register_keras_serializable(package="lossbridge")
class LinearCrossentropyHead(keras.layers.Layer):
    """A Dense layer without activation that adds the cross-entropy of its classes to the model's loss, in nats.

    With labels, `head(hidden, labels)`, it adds the loss by `add_loss`, computed without the array of all logits by
    `lossbridge.linear_crossentropy`, and returns the hidden states. Without, `head(hidden)`, it returns the logits.

    Call arguments:
        inputs: hidden states (…, H). A mask that Keras' layers attached to them leaves entries out of the loss.
        labels: integer labels from 0 to units − 1, of inputs' shape without the last axis, or with a size of 1 there.
        sample_weight: of labels' shape, or its leading axes. (fit(sample_weight=) does not reach a layer.)
        mask: of such a shape, in place of the attached one.

    Args:
        units: the number of classes.
        use_bias, kernel_initializer, bias_initializer, kernel_regularizer, bias_regularizer, kernel_constraint,
            bias_constraint: as in keras.layers.Dense, whose weights it has.
        label_smoothing, ignore_class, class_weight, z_loss, memory: see `lossbridge.linear_crossentropy`.
        logit_scale, softcap: see there; they hold for the logits that the layer returns, too.
        normalizer: the denominator of a mean, in place of the count; a number.
        reduction: "sum_over_batch_size", "mean", "mean_with_sample_weight" or "sum".
        **layer: name, dtype and trainable, as every layer of Keras has them.

    Raises:
        ValueError: shapes that do not fit, or an option outside its range.
        TypeError: an option of the wrong type.

    >>> head = LinearCrossentropyHead(3, kernel_initializer="ones")
    >>> hidden = keras.ops.ones((4, 2))
    >>> _ = head(hidden, keras.ops.convert_to_tensor([0, 1, 2, 0]))
    >>> print(keras.ops.convert_to_numpy(head.losses[0]).round(4), tuple(head(hidden).shape))
    1.0986 (4, 3)

    Source: lossbridge.linear_crossentropy; keras.layers.Dense.
    """

    def __init__(
        self,
        units: int,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        kernel_constraint: Any = None,
        bias_constraint: Any = None,
        *,
        label_smoothing: float = 0.0,
        ignore_class: int | None = None,
        class_weight: Any = None,
        logit_scale: float = 1.0,
        softcap: float | None = None,
        z_loss: float = 0.0,
        normalizer: float | None = None,
        reduction: Reduction = "sum_over_batch_size",
        memory: int | None = None,
        **layer: Any,
    ) -> None:
        given = locals()
        # What is cast is cast in `call`: Keras would round sample weights to the layer's dtype.
        super().__init__(autocast=False, **layer)
        if not errors.is_integer(units) or units < 1:
            raise ValueError(f"units is {units!r}; pass the number of classes, an integer above 0")
        errors.switches({"use_bias": use_bias})
        errors.layer_options(1, memory)
        options = {name: saved_option(name, given[name]) for name in _OF_LOSS}
        check_options(options)
        if reduction in PER_SAMPLE:
            raise ValueError(
                f"reduction is {reduction!r}, and a layer adds one number to the loss; use a mean or a sum"
            )
        if not errors.is_float(self.compute_dtype):
            raise ValueError(f"dtype is {self.compute_dtype}; a layer computes in a floating-point dtype")
        self.units, self.use_bias = int(units), use_bias
        self._options = options
        for name in _OF_LAYER:
            kind = getattr(keras, f"{name.partition('_')[2]}s")  # keras.initializers, …
            setattr(self, name, kind.get(given[name]))
        self.supports_masking = True

    def build(self, input_shape: Any) -> None:
        for name, shape in (("kernel", (input_shape[-1], self.units)), ("bias", (self.units,))):
            made = {kind: getattr(self, f"{name}_{kind}") for kind in ("initializer", "regularizer", "constraint")}
            weight = self.add_weight(name=name, shape=shape, **made) if name == "kernel" or self.use_bias else None
            setattr(self, name, weight)
        self.input_spec = keras.layers.InputSpec(min_ndim=2, axes={-1: input_shape[-1]})

    def call(self, inputs: Array, labels: Any = None, sample_weight: Any = None, mask: Any = None) -> Array:
        mask = get_keras_mask(inputs) if mask is None else mask
        hidden = keras.ops.cast(inputs, self.compute_dtype)
        kernel, bias = (None if x is None else self._cast(x) for x in (self.kernel, self.bias))
        if labels is None:
            return self._logits(hidden, kernel, bias)
        samples = len(inputs.shape) - 1
        options = self._options | {"bias": bias, "classes_axis": 1}
        loss = losses.linear_crossentropy(
            class_labels(given_array(labels, "labels"), hidden, -1, "labels"),
            hidden,
            kernel,
            sample_weight=without_last_axis(sample_weight, samples, "sample_weight"),
            mask=without_last_axis(mask, samples, "mask"),
            **options,
        )
        # tf.distribute sums gradients over its replicas, so the trainer divides what layers add by their number. A sum,
        # and a mean with a normalizer, which is the denominator of the whole batch, are added up unchanged.
        own_mean = options["reduction"] in MEANS and options["normalizer"] is None
        self.add_loss(loss if own_mean else unscale_loss_for_distribution(loss))
        return inputs

    def _cast(self, variable: Any) -> Array:
        return keras.ops.cast(keras.ops.convert_to_tensor(variable), self.compute_dtype)

    def _logits(self, hidden: Array, kernel: Array, bias: Array | None) -> Array:
        z = keras.ops.matmul(hidden, kernel)
        ops, scale, cap = framework_of(z).ops, self._options["logit_scale"], self._options["softcap"]
        return scaled(ops, z if bias is None else z + bias, scale, cap)

    def compute_output_spec(
        self, inputs: Any, labels: Any = None, sample_weight: Any = None, mask: Any = None
    ) -> keras.KerasTensor:
        if labels is None:
            return keras.KerasTensor((*inputs.shape[:-1], self.units), dtype=self.compute_dtype)
        return keras.KerasTensor(inputs.shape, dtype=inputs.dtype)

    def get_config(self) -> dict[str, Any]:
        config = {**super().get_config(), "units": self.units, "use_bias": self.use_bias}
        for name in _OF_LAYER:
            kind = getattr(keras, f"{name.partition('_')[2]}s")
            config[name] = kind.serialize(getattr(self, name))
        return config | {key: x.tolist() if hasattr(x, "tolist") else x for key, x in self._options.items()}
