"""PyTorch under torch.compile: derivatives in closed form, which compile to fewer passes than those of the formulas.

The compiler fuses each direction into loops over the inputs; between them only numbers a row are kept. Labels alone
have no kernel here: of their formula the compiler makes what it makes of PyTorch's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lossbridge.backends import torch as b
from lossbridge.kernels import closed
from lossbridge.reduction import neutralise


@torch.compiler.assume_constant_result  # it is: what is compiled belongs to one compiler and one nesting
def differentiated_once() -> bool:
    """Whether nobody can ask for more than a first derivative of what is being compiled.

    Of an autograd.Function the compiler loses further ones without a word, under more than one transform of torch.func
    and with other backends than Inductor, which refuses them.
    """
    from torch._dynamo.symbolic_convert import InstructionTranslator

    try:
        compiler = InstructionTranslator.current_tx().output.compiler_fn
    except AttributeError:  # torch.export without Dynamo
        return False
    transforms = torch._C._functorch.get_dynamic_layer_stack_depth()
    within = getattr(torch._dynamo.config, "trace_autograd_ops", False)
    forward_mode = torch.autograd.forward_ad._current_level >= 0
    return getattr(compiler, "_compiler_name", "") == "inductor" and transforms <= 1 and not within and not forward_mode


def _upstream(grad: Tensor, axis: int | None, slopes: closed.Slopes) -> tuple[Tensor | None, Tensor | None]:
    grad = grad if axis is None else grad.unsqueeze(axis)
    of_target, of_pred = slopes
    return None if of_target is None else grad * of_target, None if of_pred is None else grad * of_pred


# Written out one by one: torch.compile follows no function that is made by another.


class _Dense(torch.autograd.Function):
    @staticmethod
    def forward(
        target: Tensor, pred: Tensor, axis: int, label_smoothing: float, class_weight: Tensor | None
    ) -> tuple[Tensor, ...]:
        loss, known = closed.dense_value(
            b, target, pred, axis, label_smoothing=label_smoothing, class_weight=class_weight
        )
        return loss, *known

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        target, pred, ctx.axis, ctx.label_smoothing, class_weight = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(target, pred, class_weight, *output[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> Any:
        target, pred, class_weight, *known = ctx.saved_tensors
        options = {"label_smoothing": ctx.label_smoothing, "class_weight": class_weight}
        wanted = ctx.needs_input_grad[:2]
        slopes = closed.dense_slopes(b, target, pred, ctx.axis, tuple(known), wanted, **options)
        return *_upstream(grad, ctx.axis, slopes), None, None, None


class _Bernoulli(torch.autograd.Function):
    @staticmethod
    def forward(
        target: Tensor,
        pred: Tensor,
        axis: int | None,
        from_logits: bool,
        epsilon: float,
        label_smoothing: float,
        pos_weight: Tensor | float | None,
    ) -> Tensor:
        options: dict[str, Any] = {"from_logits": from_logits, "epsilon": epsilon, "label_smoothing": label_smoothing}
        return closed.bernoulli_value(b, target, pred, axis, **options, pos_weight=pos_weight)[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        target, pred, ctx.axis, ctx.from_logits, ctx.epsilon, ctx.label_smoothing, pos_weight = inputs
        ctx.number = None if isinstance(pos_weight, Tensor) else pos_weight
        ctx.save_for_backward(target, pred, pos_weight if isinstance(pos_weight, Tensor) else None)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        target, pred, pos_weight = ctx.saved_tensors
        options = {"from_logits": ctx.from_logits, "epsilon": ctx.epsilon, "label_smoothing": ctx.label_smoothing}
        options["pos_weight"] = ctx.number if pos_weight is None else pos_weight
        slopes = closed.bernoulli_slopes(b, target, pred, ctx.axis, (), ctx.needs_input_grad[:2], **options)
        return *_upstream(grad, ctx.axis, slopes), None, None, None, None, None


class _Kl(torch.autograd.Function):
    @staticmethod
    def forward(target: Tensor, pred: Tensor, axis: int, epsilon: float) -> Tensor:
        return closed.kl_value(b, target, pred, axis, epsilon=epsilon)[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        target, pred, ctx.axis, ctx.epsilon = inputs
        ctx.save_for_backward(target, pred)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        target, pred = ctx.saved_tensors
        slopes = closed.kl_slopes(b, target, pred, ctx.axis, (), ctx.needs_input_grad[:2], epsilon=ctx.epsilon)
        return *_upstream(grad, ctx.axis, slopes), None, None


class _KlOfLogits(torch.autograd.Function):
    @staticmethod
    def forward(target: Tensor, pred: Tensor, axis: int, temperature: float) -> tuple[Tensor, ...]:
        loss, known = closed.kl_of_logits_value(b, target, pred, axis, temperature=temperature)
        return loss, *known

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        target, pred, ctx.axis, ctx.temperature = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(target, pred, *output[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> Any:
        target, pred, *known = ctx.saved_tensors
        wanted, options = ctx.needs_input_grad[:2], {"temperature": ctx.temperature}
        slopes = closed.kl_of_logits_slopes(b, target, pred, ctx.axis, tuple(known), wanted, **options)
        return *_upstream(grad, ctx.axis, slopes), None, None


# Kernels as lossbridge.backend defines them.


def _ready(target: Tensor, pred: Tensor, axis: int | None, kept: Tensor | None) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if pred.dtype == torch.float64 else torch.float32
    return neutralise(b, target.to(dtype), kept, axis, 0.5), neutralise(b, pred.to(dtype), kept, axis, 0.5)


def _of_distributions(
    plain: Any,
    target: Tensor,
    pred: Tensor,
    axis: int,
    kept: Tensor | None,
    *,
    from_logits: bool,
    epsilon: float,
    label_smoothing: float,
    class_weight: Tensor | None,
) -> Tensor | None:
    if not from_logits or (class_weight is not None and class_weight.requires_grad):
        return None
    target, pred = _ready(target, pred, axis, kept)
    return _Dense.apply(target, pred, axis, label_smoothing, class_weight)[0]


def _binary(
    plain: Any,
    target: Tensor,
    pred: Tensor,
    axis: int | None,
    kept: Tensor | None,
    *,
    from_logits: bool,
    epsilon: float,
    label_smoothing: float = 0.0,
    pos_weight: Any = None,
    weight: Any = None,
) -> Tensor | None:
    if weight is not None or (isinstance(pos_weight, Tensor) and pos_weight.requires_grad):
        return None
    target, pred = _ready(target, pred, axis, kept)
    return _Bernoulli.apply(target, pred, axis, from_logits, epsilon, label_smoothing, pos_weight)


def _kl_divergence(
    plain: Any, target: Tensor, pred: Tensor, axis: int, kept: Tensor | None, *, from_logits: bool, epsilon: float
) -> Tensor:
    target, pred = _ready(target, pred, axis, kept)
    if from_logits:
        return _KlOfLogits.apply(target, pred, axis, 1.0)[0]
    return _Kl.apply(target, pred, axis, epsilon)


def _distillation_loss(
    plain: Any, target: Tensor, pred: Tensor, axis: int, kept: Tensor | None, *, temperature: float
) -> Tensor:
    target, pred = _ready(target, pred, axis, kept)
    return _KlOfLogits.apply(target, pred, axis, temperature)[0]


KERNELS: dict[str, Callable[..., Tensor | None]] = {
    "categorical_crossentropy": _of_distributions,
    "kl_divergence": _kl_divergence,
    "distillation_loss": _distillation_loss,
    "binary_crossentropy": _binary,
    "bernoulli_log_loss": _binary,
}
