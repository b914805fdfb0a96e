"""The losses as `torch.nn.Module`s: constructors, checks and a call of a function. No maths.

Two families, which differ in their names and in the order of their arguments:

- PyTorch's names take (input, target). Each is a subclass of the class that it replaces, with its constructor, its
  attributes and its state_dict. `lossbridge.compat.torch` says what it computes, and where it differs from PyTorch.
- Keras' names take (y_true, y_pred), with the options of the functions in `lossbridge.losses`, which
  documents them. The call also takes `sample_weight` and `mask`. Options that hold one number a class are buffers, in
  PyTorch's default dtype if they are given as lists.

All raise ValueError for shapes that do not fit, options outside their range, labels out of range on the CPU (on other
devices, and compiled, their loss is NaN), and for swapped arguments, which show in targets that require a gradient
beside predictions that do not. They raise TypeError for predictions that are not tensors, or hold integers.

With `normalizer=` in the call a mean divides by that number, for accumulated gradients and data parallelism. Losses are
in nats; float16 and bfloat16 input gives a float32 loss, under autocast too.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lossbridge import errors, losses
from lossbridge.compat import torch as functional
from lossbridge.frameworks.torch_ops import dtype
from lossbridge.spec import Kind, Reduction, Scale

__all__ = [
    "BCELoss",
    "BCEWithLogitsLoss",
    "BinaryCrossentropy",
    "BinaryFocalCrossentropy",
    "CategoricalCrossentropy",
    "CategoricalFocalCrossentropy",
    "CrossEntropyLoss",
    "DistillationLoss",
    "Divergence",
    "KLDivLoss",
    "KLDivergence",
    "LinearCrossEntropyLoss",
    "LogLoss",
    "NLLLoss",
    "SparseCategoricalCrossentropy",
    "causal_lm_loss",
]


class _Loss(nn.Module):
    """What both families share: the repr, and the checks of the arguments' types and order."""

    def extra_repr(self) -> str:
        """The constructor's arguments that differ from their defaults, and the reduction."""
        shown = []
        ours = next(cls for cls in type(self).__mro__ if cls.__module__ == __name__)
        for name, parameter in inspect.signature(ours).parameters.items():
            value = getattr(self, name, parameter.default)
            if isinstance(value, Tensor):
                shown.append(f"{name}=tensor of shape {tuple(value.shape)}")
            elif name == "reduction" or value != parameter.default:
                shown.append(f"{name}={value!r}")
        return ", ".join(shown)

    def _check(self, true_name: str, true: Any, pred_name: str, pred: Any, *, either_may_learn: bool = False) -> None:
        own = type(self).__name__
        if not isinstance(pred, Tensor):
            raise TypeError(
                f"lossbridge.torch.{own} takes torch tensors, and {pred_name} is {type(pred).__module__}."
                f"{type(pred).__qualname__}; convert it, or use the functions of lossbridge, which take arrays of any "
                "library, or in Keras lossbridge.keras"
            )
        errors.floating(dtype(pred), pred_name, true_name)
        learns = isinstance(true, Tensor) and true.requires_grad and torch.is_grad_enabled()
        if learns and not pred.requires_grad and not either_may_learn:
            order = (true_name, pred_name) if isinstance(self, _KerasOrder) else (pred_name, true_name)
            raise ValueError(
                f"{true_name} requires a gradient and {pred_name} does not: the arguments are swapped; "
                f"lossbridge.torch.{own} takes ({', '.join(order)}) (if it is meant, use the functions of lossbridge)"
            )

    def __getattr__(self, name: str) -> Any:
        # Keras accepts any callable as a loss and reduces its result once more, which would misapply sample weights.
        # It first reads the attribute `name`.
        if name == "name" and sys._getframe(1).f_globals.get("__name__", "").startswith("keras."):
            own = type(self).__name__
            twin = f"lossbridge.keras.{own}" if isinstance(self, _KerasOrder) else "a loss of lossbridge.keras"
            raise TypeError(f"Keras was given lossbridge.torch.{own}, which is for PyTorch's own loops; use {twin}")
        return super().__getattr__(name)


class _PyTorchOrder(_Loss):
    """(input, target)."""

    reduction: str

    def _validate(self, *, batchmean: bool = False) -> None:
        functional.check_reduction(self.reduction, batchmean=batchmean)
        errors.ignored_class(getattr(self, "ignore_index", None), "ignore_index")


class CrossEntropyLoss(_PyTorchOrder, nn.CrossEntropyLoss):
    """Cross-entropy of logits, for torch.nn.CrossEntropyLoss.

    Shapes: input (C,), (N, C) or (N, C, …); target integer classes of input's shape without C, or
    probabilities of input's shape. A scalar, in nats; the shape of input without C for reduction "none".

    PyTorch returns exactly 0 for half of the rows whose logits lead by 8 to 30, 11.3125 for 11.2445 with bfloat16
    logits of 50 000 classes, and NaN for a mean of no entries; here they are right, and 0.

    With `inplace_gradient=True`, on the CPU and eager, the gradient is written over the logits, which are lost, so
    that no further memory is needed. Autograd raises RuntimeError where something else still needs them. On other
    devices, compiled, and without the native rows, it has no effect.

    Raises:
        ValueError: shapes that do not fit, `weight` that is not one a class, a label out of range on the CPU (on other
            devices, and compiled, its loss is NaN), target that requires a gradient where input does not,
            `inplace_gradient` for logits that are a leaf, or not contiguous.
        TypeError: integer logits, or no tensor.

    >>> loss = CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 5.0]), label_smoothing=0.1)
    >>> loss(torch.tensor([[2.0, 1.0, 0.1], [0.0, 3.0, 0.0]]), torch.tensor([0, 1]))
    tensor(0.5553)

    Source: lossbridge.compat.torch.cross_entropy.
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        *,
        inplace_gradient: bool = False,
    ) -> None:
        super().__init__(weight, size_average, ignore_index, reduce, reduction, label_smoothing)
        self._validate()
        errors.fraction("label_smoothing", label_smoothing)
        errors.switches({"inplace_gradient": inplace_gradient})
        self.inplace_gradient = inplace_gradient

    def forward(self, input: Tensor, target: Tensor, normalizer: Any = None) -> Tensor:
        self._check("target", target, "input", input)
        return functional.cross_entropy(
            input,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            normalizer=normalizer,
            inplace_gradient=self.inplace_gradient,
        )


class LinearCrossEntropyLoss(_PyTorchOrder, nn.LinearCrossEntropyLoss):
    """Cross-entropy of the classes of a linear layer that it holds, for torch.nn.LinearCrossEntropyLoss.

    Shapes: input (H,) or (N, H), H = in_features; target integer classes (), (N,) or (N, *out_features), or
    probabilities (C,) or (N, C, *out_features). A scalar, in nats; target's shape without C for reduction "none".

    Without the array of all logits, by `lossbridge.linear_crossentropy`. PyTorch's does without it where `options` asks
    for that, and then lacks label_smoothing, a second backward pass, further derivatives and torch.func; here all of
    them are right with and without `options`, whose batch_chunk_size is the number of rows in a block.

    Raises:
        ValueError: shapes that do not fit, a label out of range on the CPU (on other devices, and compiled, its loss is
            NaN), `ignore_index` beside probabilities.
        TypeError: integer input, or no tensor.
        RuntimeError: torch.nn's own, of a constructor's `weight` or `label_smoothing`.

    >>> loss = LinearCrossEntropyLoss(2, 3)
    >>> _ = loss.linear.weight.data.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
    >>> loss(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 2])).detach()
    tensor(0.8103)

    Source: lossbridge.compat.torch.linear_cross_entropy.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        out_features: tuple[int, ...] = (),
        bias: bool = False,
        device: Any = None,
        dtype: Any = None,
        reduction: str = "mean",
        weight: Tensor | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        options: Any = None,
    ) -> None:
        layer = {"out_features": out_features, "bias": bias, "device": device, "dtype": dtype}
        given = {"reduction": reduction, "weight": weight, "ignore_index": ignore_index}
        super().__init__(in_features, num_classes, **layer, **given, label_smoothing=label_smoothing, options=options)
        self._validate()
        errors.fraction("label_smoothing", label_smoothing)

    def extra_repr(self) -> str:
        return nn.LinearCrossEntropyLoss.extra_repr(self)

    def forward(self, input: Tensor, target: Tensor, normalizer: Any = None) -> Tensor:
        self._check("target", target, "input", input, either_may_learn=True)
        shape = (self.num_classes, *self.out_features)
        bias = self.linear.bias
        return functional.linear_cross_entropy(
            input,
            self.linear.weight.reshape(*shape, self.linear.in_features),
            target,
            linear_bias=None if bias is None else bias.reshape(shape),
            weight=self.weight,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            options=self.options,
            normalizer=normalizer,
        )


class NLLLoss(_PyTorchOrder, nn.NLLLoss):
    """−w_y · input_y of log-probabilities, for torch.nn.NLLLoss.

    Shapes, results and errors as `CrossEntropyLoss`. A mean of float16 or bfloat16 is summed and returned in float32.

    >>> NLLLoss()(torch.tensor([[0.7, 0.2, 0.1]]).log(), torch.tensor([0]))
    tensor(0.3567)

    Source: lossbridge.compat.torch.nll_loss.
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__(weight, size_average, ignore_index, reduce, reduction)
        self._validate()

    def forward(self, input: Tensor, target: Tensor, normalizer: Any = None) -> Tensor:
        self._check("target", target, "input", input)
        return functional.nll_loss(
            input,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            normalizer=normalizer,
        )


class KLDivLoss(_PyTorchOrder, nn.KLDivLoss):
    """KL(target ‖ exp input) from log-probabilities, for torch.nn.KLDivLoss.

    Shapes: input and target alike, with the batch along axis 0. A scalar, in nats; input's shape for reduction "none".
    As in PyTorch the default reduction "mean" divides by the number of elements: the divergence is "batchmean".

    Computed in float64, because the logarithms of nearly equal distributions cancel; PyTorch computes in float32. (The
    rounding of float32 log-probabilities themselves remains; `KLDivergence(from_logits=True)` avoids it.) PyTorch's
    gradient of target is NaN where target = 0, here it is finite. target alone may require a gradient, as where q is
    fitted by KL(q ‖ p).

    >>> loss = KLDivLoss(reduction="batchmean")
    >>> loss(torch.tensor([[0.25, 0.75]]).log(), torch.tensor([[0.5, 0.5]]))
    tensor(0.1438)

    Source: lossbridge.compat.torch.kl_div.
    """

    def __init__(
        self,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: str = "mean",
        log_target: bool = False,
    ) -> None:
        super().__init__(size_average, reduce, reduction, log_target)
        self._validate(batchmean=True)
        errors.switches({"log_target": log_target})

    def forward(self, input: Tensor, target: Tensor, normalizer: Any = None) -> Tensor:
        self._check("target", target, "input", input, either_may_learn=True)
        return functional.kl_div(
            input, target, reduction=self.reduction, log_target=self.log_target, normalizer=normalizer
        )


class BCELoss(_PyTorchOrder, nn.BCELoss):
    """−t log p − (1 − t) log(1 − p) of probabilities, for torch.nn.BCELoss; logarithms are at least −100.

    Shapes: input and target alike; `weight` broadcasts to them. A scalar, in nats; input's shape for reduction "none".

    It works under autocast on CUDA, where PyTorch's raises. PyTorch's gradient is 0, not 1, for a certain and right
    prediction (p = t = 0), and vanishes for t = 0 below p = 1e-12; here it is 1.

    Raises:
        ValueError: shapes that do not fit, input or target outside [0, 1] where they can be read (elsewhere NaN for
            input), target that requires a gradient where input does not.
        TypeError: integer input, or no tensor.

    >>> BCELoss()(torch.tensor([0.9, 0.2, 0.6]), torch.tensor([1.0, 0.0, 1.0]))
    tensor(0.2798)

    Source: lossbridge.compat.torch.binary_cross_entropy.
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__(weight, size_average, reduce, reduction)
        self._validate()

    def forward(self, input: Tensor, target: Tensor, normalizer: Any = None) -> Tensor:
        self._check("target", target, "input", input)
        return functional.binary_cross_entropy(
            input, target, self.weight, reduction=self.reduction, normalizer=normalizer
        )


class BCEWithLogitsLoss(_PyTorchOrder, nn.BCEWithLogitsLoss):
    """t·softplus(−x)·pos_weight + (1 − t)·softplus(x) of logits, for torch.nn.BCEWithLogitsLoss.

    Shapes: input and target alike; `weight` and `pos_weight` broadcast to them. A scalar, in nats; input's shape for
    reduction "none". Errors as `BCELoss`.

    PyTorch returns 0 for x = −20, t = 0; here it is 2.0612e-9.

    >>> BCEWithLogitsLoss()(torch.tensor([-20.0]), torch.tensor([0.0]))
    tensor(2.0612e-09)

    Source: lossbridge.compat.torch.binary_cross_entropy_with_logits.
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: str = "mean",
        pos_weight: Tensor | None = None,
    ) -> None:
        super().__init__(weight, size_average, reduce, reduction, pos_weight)
        self._validate()

    def forward(self, input: Tensor, target: Tensor, normalizer: Any = None) -> Tensor:
        self._check("target", target, "input", input)
        return functional.binary_cross_entropy_with_logits(
            input,
            target,
            self.weight,
            reduction=self.reduction,
            pos_weight=self.pos_weight,
            normalizer=normalizer,
        )


class _KerasOrder(_Loss):
    """(y_true, y_pred). A function with its options; arrays among them are buffers, which `.to()` moves."""

    _names = ("y_true", "y_pred")
    _arrays = ("class_weight", "pos_weight", "alpha")

    def __init__(self, function: Callable[..., Any], arguments: dict[str, Any]) -> None:
        """`arguments`: the locals() of a constructor, which are its arguments, so that none is forgotten."""
        super().__init__()
        options = {name: x for name, x in arguments.items() if name not in ("self", "__class__")}
        errors.options(options)
        self._function, self._options = function, tuple(options)
        for name, value in options.items():
            if name not in self._arrays or isinstance(value, int | float):
                setattr(self, name, value)
            else:
                self.register_buffer(name, _per_class(name, value))

    def forward(
        self, y_true: Any, y_pred: Tensor, sample_weight: Any = None, mask: Any = None, normalizer: Any = None
    ) -> Tensor:
        """See `lossbridge.losses` for what weights, mask and normalizer mean."""
        self._check(self._names[0], y_true, self._names[1], y_pred)
        options = {name: getattr(self, name) for name in self._options}
        return self._function(y_true, y_pred, sample_weight=sample_weight, mask=mask, normalizer=normalizer, **options)


def _per_class(name: str, value: Any) -> Tensor | None:
    """A tensor unchanged, as in torch.nn; a list or an array as a tensor."""
    if value is None or isinstance(value, Tensor):
        return value
    try:
        return torch.tensor(value)
    except (RuntimeError, TypeError, ValueError):
        raise TypeError(f"{name} is {type(value).__name__} of no numbers; give it one number a class") from None


class CategoricalCrossentropy(_KerasOrder):
    """Cross-entropy of class distributions, Σ_c w_c t_c (−log p_c), in nats.

    y_true, y_pred: (…, C, …), the targets one-hot or soft. Per-sample losses: that shape without `axis`.

    >>> loss = CategoricalCrossentropy()
    >>> loss(torch.tensor([[0, 1, 0], [0, 0, 1]]), torch.tensor([[0.05, 0.95, 0], [0.1, 0.8, 0.1]]))
    tensor(1.1769)

    Source: lossbridge.categorical_crossentropy.
    """

    def __init__(
        self,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        axis: int = -1,
        reduction: Reduction = "sum_over_batch_size",
        *,
        epsilon: float = 1e-7,
        class_weight: Any = None,
        logit_scale: float = 1.0,
        softcap: float | None = None,
        z_loss: float = 0.0,
    ) -> None:
        super().__init__(losses.categorical_crossentropy, locals())


class SparseCategoricalCrossentropy(_KerasOrder):
    """Cross-entropy of integer class labels, w_y (−log p_y), in nats.

    y_true: labels from 0 to C − 1, of y_pred's shape without `axis`. y_pred: (…, C, …).

    >>> loss = SparseCategoricalCrossentropy(ignore_class=-1)
    >>> loss(torch.tensor([1, 2, -1]), torch.tensor([[0.05, 0.95, 0], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]]))
    tensor(1.1769)

    Source: lossbridge.sparse_categorical_crossentropy.
    """

    def __init__(
        self,
        from_logits: bool = False,
        ignore_class: int | None = None,
        reduction: Reduction = "sum_over_batch_size",
        axis: int = -1,
        *,
        label_smoothing: float = 0.0,
        epsilon: float = 1e-7,
        class_weight: Any = None,
        logit_scale: float = 1.0,
        softcap: float | None = None,
        z_loss: float = 0.0,
    ) -> None:
        super().__init__(losses.sparse_categorical_crossentropy, locals())


class BinaryCrossentropy(_KerasOrder):
    """Cross-entropy of independent outcomes, −t log p − (1 − t) log(1 − p), averaged over `axis`, in nats.

    y_true, y_pred: (…, C, …), the targets in [0, 1]. Per-sample losses: that shape without `axis`.

    >>> BinaryCrossentropy(from_logits=True)(torch.tensor([[0.0], [1.0]]), torch.tensor([[40.0], [40.0]]))
    tensor(20.)

    Source: lossbridge.binary_crossentropy.
    """

    def __init__(
        self,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        axis: int = -1,
        reduction: Reduction = "sum_over_batch_size",
        *,
        epsilon: float = 1e-7,
        pos_weight: Any = None,
    ) -> None:
        super().__init__(losses.binary_crossentropy, locals())


class KLDivergence(_KerasOrder):
    """Kullback-Leibler divergence Σ_c t_c log(t_c / p_c), in nats.

    y_true, y_pred: (…, C, …), distributions, or with `from_logits` logits. Per-sample losses: without `axis`.

    >>> KLDivergence()(torch.tensor([[0.5, 0.5]]), torch.tensor([[0.25, 0.75]]))
    tensor(0.1438)

    Source: lossbridge.kl_divergence.
    """

    def __init__(
        self,
        reduction: Reduction = "sum_over_batch_size",
        *,
        from_logits: bool = False,
        axis: int = -1,
        epsilon: float = 1e-7,
    ) -> None:
        super().__init__(losses.kl_divergence, locals())


class LogLoss(_KerasOrder):
    """Negative log-likelihood of labels, in nats; probabilities are never renormalised.

    y_true of y_pred's shape: outcomes in [0, 1], each entry a sample; or without `axis`: integer class labels.

    >>> LogLoss()(torch.tensor([1, 0, 1]), torch.tensor([0.9, 0.2, 0.6]))
    tensor(0.2798)

    Source: lossbridge.log_loss.
    """

    def __init__(
        self,
        from_logits: bool = False,
        axis: int = -1,
        reduction: Reduction = "sum_over_batch_size",
        *,
        epsilon: float = 1e-7,
    ) -> None:
        super().__init__(losses.log_loss, locals())


class DistillationLoss(_KerasOrder):
    """T² · KL(softmax(teacher/T) ‖ softmax(student/T)), in nats.

    Takes (teacher_logits, student_logits), both (…, C, …). Per-sample losses: that shape without `axis`.

    >>> DistillationLoss(temperature=2.0)(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]]))
    tensor(1.8485)

    Source: lossbridge.distillation_loss.
    """

    _names = ("teacher_logits", "student_logits")

    def __init__(self, temperature: float = 1.0, axis: int = -1, reduction: Reduction = "sum_over_batch_size") -> None:
        super().__init__(losses.distillation_loss, locals())


class Divergence(_KerasOrder):
    """A divergence of softmax(teacher/T) and softmax(student/T), times T², in nats: which, `kind` says.

    Takes (teacher_logits, student_logits), both (…, C, …). Per-sample losses: that shape without `axis`.

    >>> Divergence("jensen_shannon")(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]]))
    tensor(0.3278)

    Source: lossbridge.divergence.
    """

    _names = ("teacher_logits", "student_logits")

    def __init__(
        self,
        kind: Kind = "forward",
        beta: float = 0.5,
        scale: Scale = "mixture",
        temperature: float = 1.0,
        axis: int = -1,
        reduction: Reduction = "sum_over_batch_size",
    ) -> None:
        super().__init__(losses.divergence, locals())


class CategoricalFocalCrossentropy(_KerasOrder):
    """Focal loss: down-weights examples that are already classified well. Σ_c α_c t_c (1 − p_c)^γ (−log p_c), in nats.

    y_true, y_pred: (…, C, …), the targets one-hot or soft. Per-sample losses: that shape without `axis`.

    >>> loss = CategoricalFocalCrossentropy()
    >>> loss(torch.tensor([[0, 1, 0], [0, 0, 1]]), torch.tensor([[0.05, 0.95, 0], [0.1, 0.8, 0.1]]))
    tensor(0.2332)

    Source: lossbridge.categorical_focal_crossentropy.
    """

    def __init__(
        self,
        alpha: Any = 0.25,
        gamma: float = 2.0,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        axis: int = -1,
        reduction: Reduction = "sum_over_batch_size",
        *,
        epsilon: float = 1e-7,
    ) -> None:
        super().__init__(losses.categorical_focal_crossentropy, locals())


class BinaryFocalCrossentropy(_KerasOrder):
    """Binary cross-entropy times (1 − p_t)^γ, p_t = t·p + (1 − t)·(1 − p); mean over `axis`, in nats.

    y_true, y_pred: (…, C, …), the targets in [0, 1]. Per-sample losses: that shape without `axis`.

    >>> BinaryFocalCrossentropy()(torch.tensor([[1.0], [0.0]]), torch.tensor([[0.9], [0.2]]))
    tensor(0.0050)

    Source: lossbridge.binary_focal_crossentropy.
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
        *,
        epsilon: float = 1e-7,
    ) -> None:
        super().__init__(losses.binary_focal_crossentropy, locals())


def causal_lm_loss(
    outputs: Any = None,
    labels: Tensor | None = None,
    num_items_in_batch: Any = None,
    *,
    hidden: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
) -> Tensor:
    """Next-token cross-entropy, in nats: the `compute_loss_func` of Hugging Face's Trainer.

    Args:
        outputs: what the model returned: an object with `logits`, a mapping or tuple that holds them, or the logits,
            of shape (N, T, V). Or None, with `hidden` and `weight`.
        labels: token ids (N, T), unshifted: the logits at t predict the label at t + 1. Labels of −100 are ignored.
        num_items_in_batch: the denominator: the number of labels of an optimiser's step, over all accumulated
            micro-batches and all processes. Without it, the number of labels here that are not ignored.
        hidden: the last hidden states (N, T, H), from which the loss is computed without the logits, by
            `lossbridge.linear_crossentropy`.
        weight, bias: with `hidden`, those of the head that would make the logits, (V, H) and (V,).
        logit_scale, softcap: as in `lossbridge.linear_crossentropy`; of heads that scale and cap their logits.

    >>> logits = torch.zeros(1, 3, 5)
    >>> causal_lm_loss(logits, torch.tensor([[1, 2, -100]]))
    tensor(1.6094)
    >>> causal_lm_loss(labels=torch.tensor([[1, 2, -100]]), hidden=torch.ones(1, 3, 2), weight=torch.zeros(5, 2))
    tensor(1.6094)

    Source: the accumulation that Trainer expects of a `compute_loss_func`.
    """
    if (outputs is None) == (hidden is None) or (hidden is None) != (weight is None):
        raise TypeError("pass outputs, which hold the logits; or hidden= and weight=, without outputs")
    if hidden is None and bias is not None:
        raise TypeError("bias is of the head that hidden= goes through, and outputs hold its logits; leave it out")
    labels = _tensor("labels", labels, "a tensor of the token ids, with -100 where none is to be predicted")
    if hidden is None:
        pred = _tensor("outputs", _logits_of(outputs), "logits, a tuple that starts with them, or what holds logits")
    else:
        pred = _tensor("hidden", hidden, "a tensor")
    errors.floating(dtype(pred), "outputs" if hidden is None else "hidden", "labels")
    if isinstance(num_items_in_batch, Tensor):
        # With several devices in one process Trainer passes the same count once per device.
        num_items_in_batch = num_items_in_batch.reshape(-1)[0].to(pred.device)
    # The labels are shifted, not the logits: slicing the logits would copy them, and pad their gradient.
    if not labels.dtype.is_signed and labels.dtype != torch.bool:
        labels = labels.long()  # −100 has to be one of its values
    shifted = nn.functional.pad(labels, (0, 1), value=-100)[..., 1:].to(pred.device)
    given = {"ignore_class": -100, "normalizer": num_items_in_batch, "logit_scale": logit_scale, "softcap": softcap}
    if hidden is not None:
        return losses.linear_crossentropy(shifted, hidden, weight, bias=bias, **given)
    return losses.sparse_categorical_crossentropy(shifted, pred, from_logits=True, **given)


def _tensor(name: str, x: Any, words: str) -> Tensor:
    if not isinstance(x, Tensor):
        kind = "None" if x is None else f"{type(x).__module__}.{type(x).__qualname__}"
        raise TypeError(f"{name} is {kind}; pass {words}")
    return x


def _logits_of(outputs: Any) -> Any:
    """The logits; `outputs` where it holds none."""
    if isinstance(outputs, Mapping):
        return outputs.get("logits", outputs)
    if isinstance(outputs, tuple | list) and outputs and not hasattr(outputs, "logits"):
        return outputs[0]
    return getattr(outputs, "logits", outputs)
