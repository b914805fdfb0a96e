"""PyTorch on CUDA: kernels in Triton for the softmax, divergence and Bernoulli rules of logits, as torch operators.

The kernels have been compiled for GPUs (sm_80, sm_90), but run by Triton's interpreter alone (TRITON_INTERPRET=1, on
the CPU), never on a GPU: the sizes of tiles are guesses, and no time has been measured.

This module has the operators, the rule of each, and their derivatives; triton_device.py has the kernels, with their
derivations. Importing either imports triton. The operators take arrays (N, V). Second derivatives, and those for
targets and class weights, are derivatives of the rule's value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
import triton
from torch import Tensor

from lossbridge.frameworks import torch_ops as ops
from lossbridge.maths import bernoulli, divergence, softmax
from lossbridge.maths.ops import ANYWHERE, Rule
from lossbridge.native import triton_device as device
from lossbridge.reduction import neutralise
from lossbridge.spec import Request

# Elements of a tile, eight per thread, and its largest number of columns.
TILE = 2048
COLUMNS = 2048
THREADS_OF_A_WARP = 32
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


# Operators. torch.compile, torch.export, autograd and torch.vmap see nothing below them. All losses take
#
#     (target, logits, valid, weight, numbers) -> losses (N,), statistics (N, S), column of the largest logit (N, K)
#
# with target integer labels (N,) or (N, V), logits (N, V), valid (N,), weight (V,), and numbers the options that are
# numbers; gradients take (grad (N,), target, logits, valid, weight, numbers, statistics, column) and return (N, V).


def _launch(kernel: Any, tiled: bool, logits: Tensor, *arguments: Any, **constants: Any) -> None:
    """Runs a kernel over the rows of `logits`; `tiled`: over blocks of its columns too."""
    rows, classes = logits.shape
    if rows == 0:
        return
    columns = min(triton.next_power_of_2(classes), COLUMNS)
    tile = TILE // columns
    grid = (triton.cdiv(rows, tile), triton.cdiv(classes, columns) if tiled else 1)
    warps = max(1, min(8, TILE // (8 * THREADS_OF_A_WARP)))
    with torch.cuda.device_of(logits):
        kernel[grid](*arguments, **constants, R=tile, C=columns, num_warps=warps)


def _dense(x: Tensor) -> Tensor:
    """`x` with contiguous classes, and any stride between rows."""
    return x if x.ndim == 1 or x.stride(-1) == 1 else x.contiguous()


def _contiguous(*arrays: Any) -> list[Any]:
    return [None if x is None else x.contiguous() for x in arrays]


def _smoothing(label_smoothing: float, classes: int) -> tuple[float, float]:
    return 1 - label_smoothing, label_smoothing / classes


def _scale(temperature: float) -> tuple[float, ...]:
    """log₂e/T, T·log 2 in two parts, the first of 9 bits, and 1/T, as float32."""
    product = temperature * math.log(2)
    bits = 2.0 ** (9 - math.frexp(product)[1])
    high = round(product * bits) / bits
    return tuple(float(np.float32(x)) for x in (1 / product, high, product - high, 1 / temperature))


def _results(logits: Tensor, statistics: int, columns: int) -> tuple[Tensor, Tensor, Tensor]:
    """Empty arrays: losses (N,), statistics (N, `statistics`), columns of the largest logits (N, `columns`)."""
    rows = logits.shape[0]
    losses = logits.new_empty((rows,), dtype=torch.float32)
    return losses, losses.new_empty((rows, statistics)), losses.new_empty((rows, columns), dtype=torch.int32)


@torch.library.custom_op("lossbridge::cross_entropy", mutates_args=())
def cross_entropy(
    target: Tensor, logits: Tensor, valid: Tensor | None, weight: Tensor | None, numbers: list[float]
) -> tuple[Tensor, Tensor, Tensor]:
    """numbers: label_smoothing."""
    target, logits = _dense(target), _dense(logits)
    arrays = (target, logits, *_contiguous(valid, weight), *_results(logits, 3, 1))
    strides = target.stride(0), logits.stride(0)
    labels = target.ndim == 1
    flags = {"LABELS": labels, "HARD": labels and numbers[0] == 0}
    smoothing = _smoothing(numbers[0], logits.shape[1])
    _launch(device.cross_entropy, False, logits, *arrays, *logits.shape, *strides, *smoothing, **flags)
    return arrays[4:]


@torch.library.custom_op("lossbridge::cross_entropy_gradient", mutates_args=())
def cross_entropy_gradient(
    grad: Tensor,
    target: Tensor,
    logits: Tensor,
    valid: Tensor | None,
    weight: Tensor | None,
    numbers: list[float],
    statistics: Tensor,
    column: Tensor,
) -> Tensor:
    target, logits = _dense(target), _dense(logits)
    gradient = logits.new_empty(logits.shape)
    arrays = (grad, target, logits, *_contiguous(valid, weight, statistics, column), gradient)
    strides = grad.stride(0), target.stride(0), logits.stride(0)
    smoothing = _smoothing(numbers[0], logits.shape[1])
    flags = {"LABELS": target.ndim == 1}
    _launch(device.cross_entropy_gradient, True, logits, *arrays, *logits.shape, *strides, *smoothing, **flags)
    return gradient


@torch.library.custom_op("lossbridge::kl_of_logits", mutates_args=())
def kl_of_logits(
    target: Tensor, logits: Tensor, valid: Tensor | None, weight: Tensor | None, numbers: list[float]
) -> tuple[Tensor, Tensor, Tensor]:
    """numbers: temperature."""
    target, logits = _dense(target), _dense(logits)
    losses, statistics, column = _results(logits, 6, 0)
    arrays = (target, logits, *_contiguous(valid), losses, statistics)
    strides = target.stride(0), logits.stride(0)
    _launch(device.kl, False, logits, *arrays, *logits.shape, *strides, _scale(numbers[0]))
    return losses * numbers[0] ** 2, statistics, column


@torch.library.custom_op("lossbridge::kl_of_logits_gradient", mutates_args=())
def kl_of_logits_gradient(
    grad: Tensor,
    target: Tensor,
    logits: Tensor,
    valid: Tensor | None,
    weight: Tensor | None,
    numbers: list[float],
    statistics: Tensor,
    column: Tensor,
) -> Tensor:
    target, logits, grad = _dense(target), _dense(logits), grad * numbers[0] ** 2
    gradient = logits.new_empty(logits.shape)
    arrays = (grad, target, logits, *_contiguous(valid, statistics), gradient)
    strides = grad.stride(0), target.stride(0), logits.stride(0)
    _launch(device.kl_gradient, True, logits, *arrays, *logits.shape, *strides, _scale(numbers[0]))
    return gradient


@torch.library.custom_op("lossbridge::bernoulli", mutates_args=())
def bernoulli_log_loss(
    target: Tensor, logits: Tensor, valid: Tensor | None, weight: Tensor | None, numbers: list[float]
) -> tuple[Tensor, Tensor, Tensor]:
    """Means over rows. numbers: pos_weight, label_smoothing."""
    target, logits = _dense(target), _dense(logits)
    losses, statistics, column = _results(logits, 0, 0)
    arrays = (target, logits, *_contiguous(valid), losses)
    scalars = (*logits.shape, target.stride(0), logits.stride(0), *_smoothing(numbers[1], 2), numbers[0])
    _launch(device.bernoulli, False, logits, *arrays, *scalars)
    return losses, statistics, column


@torch.library.custom_op("lossbridge::bernoulli_gradient", mutates_args=())
def bernoulli_log_loss_gradient(
    grad: Tensor,
    target: Tensor,
    logits: Tensor,
    valid: Tensor | None,
    weight: Tensor | None,
    numbers: list[float],
    statistics: Tensor,
    column: Tensor,
) -> Tensor:
    target, logits = _dense(target), _dense(logits)
    gradient = logits.new_empty(logits.shape)
    arrays = (grad, target, logits, *_contiguous(valid), gradient)
    strides = grad.stride(0), target.stride(0), logits.stride(0)
    _launch(
        device.bernoulli_gradient,
        True,
        logits,
        *arrays,
        *logits.shape,
        *strides,
        *_smoothing(numbers[1], 2),
        numbers[0],
    )
    return gradient


# The operators of each rule.


class Family(NamedTuple):
    """The operators of a rule, and the order of its options that are numbers, with the value that stands for None."""

    losses: Any
    gradient: Any
    rule: Rule
    numbers: tuple[tuple[str, float], ...]
    weight: str = ""  # the option that is one number a class


KERNELS: Mapping[str, Family] = {
    family.rule.name: family
    for family in (
        Family(
            cross_entropy, cross_entropy_gradient, softmax.DISTRIBUTIONS, (("label_smoothing", 0.0),), "class_weight"
        ),
        Family(cross_entropy, cross_entropy_gradient, softmax.LABELS, (("label_smoothing", 0.0),), "class_weight"),
        Family(kl_of_logits, kl_of_logits_gradient, divergence.LOGITS, (("temperature", 1.0),)),
        Family(
            bernoulli_log_loss,
            bernoulli_log_loss_gradient,
            bernoulli.LOGITS,
            (("pos_weight", 1.0), ("label_smoothing", 0.0)),
        ),
    )
}

cross_entropy.register_fake(lambda target, logits, *rest: _results(logits, 3, 1))
kl_of_logits.register_fake(lambda target, logits, *rest: _results(logits, 6, 0))
bernoulli_log_loss.register_fake(lambda target, logits, *rest: _results(logits, 0, 0))
for _gradient in (cross_entropy_gradient, kl_of_logits_gradient, bernoulli_log_loss_gradient):
    _gradient.register_fake(lambda grad, target, logits, *rest: logits.new_empty(logits.shape))


def refuses(r: Request) -> str:
    """Why no kernel computes this request; "" if one does."""
    family = KERNELS.get(r.rule.name)
    if family is None:
        return f"no Triton kernel for {r.rule.name}"
    if ops.forward_level() >= 0:
        return "forward-mode differentiation is on"  # which operators do not support
    if r.pred.dtype not in DTYPES:
        return f"the predictions are {ops.dtype(r.pred)}"
    if r.axis is not None and r.pred.shape[r.axis] == 0:
        return "there are no classes"
    if torch.compiler.is_compiling() and ops.is_nested():
        return "torch.compile loses derivatives of derivatives without a word"
    if r.rule.domains != ANYWHERE and not r.domain:
        return "targets may lie outside [0, 1]"
    if any(name in r.options for name in softmax.OF_LOGITS):
        return "the kernels scale no logits and have no z-loss"
    if any(isinstance(r.options.get(name), Tensor) for name, _ in family.numbers):
        return "pos_weight is an array"
    return ""


def losses(r: Request) -> Tensor:
    family, target, pred, axis = KERNELS[r.rule.name], r.target, r.pred, r.axis
    if axis is None:  # every entry is a row
        target, pred, axis = target.unsqueeze(-1), pred.unsqueeze(-1), pred.ndim
    classes = pred.shape[axis]
    sample_shape = pred.shape[:axis] + pred.shape[axis + 1 :]
    if target.ndim < pred.ndim:
        target = target.reshape(-1)
    else:
        target = target if target.dtype in DTYPES else target.float()
        target = target.movedim(axis, -1).reshape(-1, classes)
    valid = None if r.valid is None else r.valid.expand(sample_shape).reshape(-1)
    weight = r.options.get(family.weight)
    weight = None if weight is None else weight.reshape(-1)
    rows = pred.movedim(axis, -1).reshape(-1, classes)
    given = [(r.options.get(name), none) for name, none in family.numbers]
    numbers = tuple(float(none if x is None else x) for x, none in given)
    found: Tensor = _Losses.apply(target, rows, valid, weight, _Plan(family, numbers))[0]
    return found.reshape(sample_shape)


# Derivatives. Those that have no kernel are derivatives of the rule's value. One autograd.Function attaches the
# gradient, and one the gradient's derivative, because torch.func does not take operators with register_autograd.


class _Plan(NamedTuple):
    family: Family
    numbers: tuple[float, ...]


def _value(plan: _Plan, target: Tensor, logits: Tensor, valid: Tensor | None, weight: Tensor | None) -> Tensor:
    family = plan.family
    target = target.long() if target.ndim < logits.ndim else neutralise(ops, target.float(), valid, 1, 0.5)
    logits = neutralise(ops, logits.float(), valid, 1, 0.5)
    options: dict[str, Any] = {name: x for (name, _), x in zip(family.numbers, plan.numbers, strict=True)}
    if family.weight:
        options[family.weight] = weight
    losses: Tensor = family.rule.value(ops, target, logits, 1, **options)[0]
    return losses


def _pull(function: Callable[..., Any], arguments: tuple[Any, ...], which: list[int], grads: Any) -> dict[int, Any]:
    """The gradients of function(*arguments) for the arguments `which`, which can be differentiated again."""

    def of_chosen(*chosen: Any) -> Any:
        at = dict(zip(which, chosen, strict=True))
        return function(*(at.get(i, x) for i, x in enumerate(arguments)))

    _, pull = torch.func.vjp(of_chosen, *(arguments[i] for i in which))
    return dict(zip(which, pull(grads), strict=True))


class _Losses(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(target: Any, logits: Any, valid: Any, weight: Any, plan: _Plan) -> Any:
        return plan.family.losses(target, logits, valid, weight, plan.numbers)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        *arrays, ctx.plan = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*arrays, *output[1:])

    @staticmethod
    def backward(ctx: Any, grad: Any, *_: Any) -> Any:
        """The gradient for the logits by the kernel; for the target and the weight by the rule's value."""
        arrays, statistics, needs = ctx.saved_tensors[:4], ctx.saved_tensors[4:], ctx.needs_input_grad
        others = [i for i in (0, 3) if needs[i]]
        grads = {}
        if others:
            grads = _pull(lambda *arrays: _value(ctx.plan, *arrays), arrays, others, grad)
        if needs[1]:
            grads[1] = _Gradient.apply(grad, *arrays, *statistics, ctx.plan)
        return *(grads.get(i) for i in range(4)), None


class _Gradient(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        grad: Any, target: Any, logits: Any, valid: Any, weight: Any, statistics: Any, column: Any, plan: _Plan
    ) -> Any:
        return plan.family.gradient(grad, target, logits, valid, weight, plan.numbers, statistics, column)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.plan = inputs[7]
        ctx.save_for_backward(*inputs[:5])  # not the statistics, which the value computes again

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        def gradient(upstream: Any, *arrays: Any) -> Any:
            return _pull(lambda *arrays: _value(ctx.plan, *arrays), arrays, [1], upstream)[1]

        which = [i for i in range(5) if ctx.needs_input_grad[i]]
        grads = _pull(gradient, ctx.saved_tensors, which, grad)
        return *(grads.get(i) for i in range(5)), None, None, None


def _register_vmap(operator: Any, shared: int) -> None:
    """vmap adds rows; where it batches the argument `shared`, which all rows share, it loops instead."""

    def batched(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> Any:
        size = info.batch_size
        if in_dims[shared] is not None:
            each = [
                operator(
                    *(x.select(d, i) if isinstance(d, int) else x for x, d in zip(arguments, in_dims, strict=True))
                )
                for i in range(size)
            ]
            many = isinstance(each[0], tuple)
            output = tuple(map(torch.stack, zip(*each, strict=True))) if many else torch.stack(each)
        else:

            def rows(i: int, x: Any) -> Any:
                if not isinstance(x, torch.Tensor) or i == shared:
                    return x
                dim = in_dims[i]
                return (x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)).flatten(0, 1)

            output = operator(*(rows(i, x) for i, x in enumerate(arguments)))
            many = isinstance(output, tuple)
            output = tuple(x.unflatten(0, (size, -1)) for x in output) if many else output.unflatten(0, (size, -1))
        return output, (0,) * len(output) if many else 0

    operator.register_vmap(batched)


for _operator in (cross_entropy, kl_of_logits, bernoulli_log_loss):
    _register_vmap(_operator, shared=3)
for _operator in (cross_entropy_gradient, kl_of_logits_gradient, bernoulli_log_loss_gradient):
    _register_vmap(_operator, shared=4)
