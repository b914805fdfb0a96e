"""PyTorch on CUDA: kernels in Triton for the softmax and Bernoulli losses of formulas.py, as torch operators.

So far this has been compiled for GPUs (sm_80, sm_90), but run by Triton's interpreter alone (TRITON_INTERPRET=1, on the
CPU), never on a GPU: the sizes of tiles are guesses, and no time has been taken.

Importing this module imports triton. From top to bottom: operators, their derivatives, KERNELS; what runs on the device
is in triton_device.py. The operators take (N, V). Second derivatives, and those for targets and class weights, are the
plain formula's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton

from lossbridge import formulas
from lossbridge.backends import torch as b
from lossbridge.kernels import triton_device as device
from lossbridge.reduction import neutralise

# Elements of a tile, eight a thread, and its most columns.
TILE = 2048
COLUMNS = 2048
THREADS_OF_A_WARP = 32
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


# Operators. Only these are seen by torch.compile, torch.export, autograd and torch.vmap.


def _launch(kernel: Any, tiled: bool, logits: torch.Tensor, *arguments: Any, **constants: Any) -> None:
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


def _dense(x: torch.Tensor) -> torch.Tensor:
    """With neighbouring classes; rows may lie anywhere."""
    return x if x.ndim == 1 or x.stride(-1) == 1 else x.contiguous()


def _contiguous(*arrays: Any) -> list[Any]:
    return [None if x is None else x.contiguous() for x in arrays]


def _smoothing(label_smoothing: float, classes: int) -> tuple[float, float]:
    return 1 - label_smoothing, label_smoothing / classes


@torch.library.custom_op("lossbridge::cross_entropy", mutates_args=())
def cross_entropy(
    target: torch.Tensor,
    logits: torch.Tensor,
    kept: torch.Tensor | None,
    class_weight: torch.Tensor | None,
    label_smoothing: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Per-row losses, and what the gradient needs. Labels (N,) of integers, or weights (N, V); kept (N,); (V,)."""
    target, logits = _dense(target), _dense(logits)
    kept, class_weight = _contiguous(kept, class_weight)
    loss, stats, top = _statistics(logits)
    _launch(
        device.cross_entropy,
        False,
        logits,
        target,
        logits,
        kept,
        class_weight,
        loss,
        stats,
        top,
        *logits.shape,
        target.stride(0),
        logits.stride(0),
        *_smoothing(label_smoothing, logits.shape[1]),
        LABELS=target.ndim == 1,
        HARD=target.ndim == 1 and label_smoothing == 0,
    )
    return loss, stats, top


@torch.library.custom_op("lossbridge::cross_entropy_slope", mutates_args=())
def cross_entropy_slope(
    grad: torch.Tensor,
    target: torch.Tensor,
    logits: torch.Tensor,
    kept: torch.Tensor | None,
    class_weight: torch.Tensor | None,
    label_smoothing: float,
    stats: torch.Tensor,
    top: torch.Tensor,
) -> torch.Tensor:
    target, logits = _dense(target), _dense(logits)
    kept, class_weight, stats, top = _contiguous(kept, class_weight, stats, top)
    slope = logits.new_empty(logits.shape)
    _launch(
        device.cross_entropy_slope,
        True,
        logits,
        grad,
        target,
        logits,
        kept,
        class_weight,
        stats,
        top,
        slope,
        *logits.shape,
        grad.stride(0),
        target.stride(0),
        logits.stride(0),
        *_smoothing(label_smoothing, logits.shape[1]),
        LABELS=target.ndim == 1,
    )
    return slope


@torch.library.custom_op("lossbridge::kl_from_logits", mutates_args=())
def kl_from_logits(
    target: torch.Tensor, logits: torch.Tensor, kept: torch.Tensor | None, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Per-row divergences of two logit arrays (N, V), and what the gradient needs."""
    target, logits = _dense(target), _dense(logits)
    (kept,) = _contiguous(kept)
    loss, stats, _ = _statistics(logits)
    strides = target.stride(0), logits.stride(0)
    _launch(device.kl, False, logits, target, logits, kept, loss, stats, *logits.shape, *strides, 1 / temperature)
    return loss, stats


@torch.library.custom_op("lossbridge::kl_from_logits_slope", mutates_args=())
def kl_from_logits_slope(
    grad: torch.Tensor,
    target: torch.Tensor,
    logits: torch.Tensor,
    kept: torch.Tensor | None,
    temperature: float,
    stats: torch.Tensor,
) -> torch.Tensor:
    target, logits = _dense(target), _dense(logits)
    kept, stats = _contiguous(kept, stats)
    slope = logits.new_empty(logits.shape)
    strides = grad.stride(0), target.stride(0), logits.stride(0)
    arguments = (grad, target, logits, kept, stats, slope, *logits.shape, *strides, 1 / temperature)
    _launch(device.kl_slope, True, logits, *arguments)
    return slope


@torch.library.custom_op("lossbridge::bernoulli", mutates_args=())
def bernoulli(
    target: torch.Tensor,
    logits: torch.Tensor,
    kept: torch.Tensor | None,
    pos_weight: float,
    label_smoothing: float,
) -> torch.Tensor:
    """Means over rows of the log losses of Bernoulli trials, of outcomes and logits (N, V)."""
    target, logits = _dense(target), _dense(logits)
    (kept,) = _contiguous(kept)
    loss = _losses(logits)
    numbers = (*logits.shape, target.stride(0), logits.stride(0), *_smoothing(label_smoothing, 2), pos_weight)
    _launch(device.bernoulli, False, logits, target, logits, kept, loss, *numbers)
    return loss


@torch.library.custom_op("lossbridge::bernoulli_slope", mutates_args=())
def bernoulli_slope(
    grad: torch.Tensor,
    target: torch.Tensor,
    logits: torch.Tensor,
    kept: torch.Tensor | None,
    pos_weight: float,
    label_smoothing: float,
) -> torch.Tensor:
    target, logits = _dense(target), _dense(logits)
    (kept,) = _contiguous(kept)
    slope = logits.new_empty(logits.shape)
    strides = grad.stride(0), target.stride(0), logits.stride(0)
    numbers = (*logits.shape, *strides, *_smoothing(label_smoothing, 2), pos_weight)
    _launch(device.bernoulli_slope, True, logits, grad, target, logits, kept, slope, *numbers)
    return slope


def _losses(logits: torch.Tensor) -> torch.Tensor:
    return logits.new_empty(logits.shape[:1], dtype=torch.float32)


def _statistics(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Losses, four numbers a row, and the column of the largest logit; empty."""
    rows, loss = logits.shape[0], _losses(logits)
    return loss, loss.new_empty((rows, 4)), loss.new_empty((rows,), dtype=torch.int32)


cross_entropy.register_fake(lambda target, logits, kept, class_weight, label_smoothing: _statistics(logits))
kl_from_logits.register_fake(lambda target, logits, kept, temperature: _statistics(logits)[:2])
bernoulli.register_fake(lambda target, logits, *rest: _losses(logits))
cross_entropy_slope.register_fake(lambda grad, target, logits, *rest: logits.new_empty(logits.shape))
kl_from_logits_slope.register_fake(lambda grad, target, logits, *rest: logits.new_empty(logits.shape))
bernoulli_slope.register_fake(lambda grad, target, logits, *rest: logits.new_empty(logits.shape))


# Derivatives. What no kernel gives is that of the plain formula, on the same arguments.


def _plain_cross_entropy(target: Any, logits: Any, kept: Any, class_weight: Any, label_smoothing: float) -> Any:
    labels = target.ndim == 1
    formula: Any = formulas.sparse_categorical_crossentropy if labels else formulas.categorical_crossentropy
    if not labels:
        target = neutralise(b, target.float(), kept, 1, 0.5)
    logits = neutralise(b, logits.float(), kept, 1, 0.5)
    options = {"from_logits": True, "label_smoothing": label_smoothing, "epsilon": 0.0}
    return formula(b, target.long() if labels else target, logits, 1, **options, class_weight=class_weight)


def _plain_kl(target: Any, logits: Any, kept: Any, temperature: float) -> Any:
    target, logits = (neutralise(b, x.float(), kept, 1, 0.5) for x in (target, logits))
    return formulas.kl_from_logits(b, target, logits, 1, temperature=temperature)


def _plain_bernoulli(target: Any, logits: Any, kept: Any, option: tuple[float, float]) -> Any:
    target, logits = (neutralise(b, x.float(), kept, 1, 0.5) for x in (target, logits))
    pos_weight, label_smoothing = option
    options: Any = {"from_logits": True, "label_smoothing": label_smoothing, "epsilon": 0.0, "pos_weight": pos_weight}
    return formulas.binary_crossentropy(b, target, logits, 1, **options)


def _pull(function: Callable[..., Any], arguments: tuple[Any, ...], which: list[int], grads: Any) -> dict[int, Any]:
    """The gradients of function(*arguments) for the arguments `which`. They can be differentiated again."""

    def of_chosen(*chosen: Any) -> Any:
        at = dict(zip(which, chosen, strict=True))
        return function(*(at.get(i, x) for i, x in enumerate(arguments)))

    _, pull = torch.func.vjp(of_chosen, *(arguments[i] for i in which))
    return dict(zip(which, pull(grads), strict=True))


# By autograd.Function, since torch.func refuses the operators of register_autograd; each written out in the module,
# since torch.compile follows no others. The first input is the number among the operators' arguments, or the numbers.


def _save_slope(ctx: Any, inputs: tuple[Any, ...], count: int) -> None:
    ctx.option = inputs[0]
    ctx.save_for_backward(*inputs[1 : count + 2])  # not the statistics: the formula has its own


def _second_derivatives(ctx: Any, grad: Any, plain: Callable[..., Any], count: int) -> Any:
    """Those of the gradient for the logits, for the incoming gradient and the `count` arrays."""

    def slope(grad: Any, *arrays: Any) -> Any:
        return _pull(lambda *arrays: plain(*arrays, ctx.option), arrays, [1], grad)[1]

    wanted = ctx.needs_input_grad[1:]
    which = [i for i in range(count + 1) if wanted[i]]
    grads = _pull(slope, ctx.saved_tensors, which, grad)
    return None, *(grads.get(i) for i in range(len(wanted)))


def _save_loss(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    ctx.option = inputs[0]
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*inputs[1:], *output[1:])


def _derivatives(ctx: Any, grad: Any, slope: Callable[..., Any], plain: Callable[..., Any], count: int) -> Any:
    """slope(grad, arrays, statistics) for the logits, the second of `count` arrays; for the others the formula's."""
    wanted = ctx.needs_input_grad[1:]
    others = [i for i in range(count) if wanted[i] and i != 1]
    grads = {}
    if others:
        grads = _pull(lambda *arrays: plain(*arrays, ctx.option), ctx.saved_tensors[:count], others, grad)
    if wanted[1]:
        grads[1] = slope(ctx.option, grad, *ctx.saved_tensors)
    return None, *(grads.get(i) for i in range(count))


class _CrossEntropySlope(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        option: float, grad: Any, target: Any, logits: Any, kept: Any, weight: Any, stats: Any, top: Any
    ) -> Any:
        return cross_entropy_slope(grad, target, logits, kept, weight, option, stats, top)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _save_slope(ctx, inputs, 4)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return _second_derivatives(ctx, grad, _plain_cross_entropy, 4)


class _CrossEntropy(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(option: float, target: Any, logits: Any, kept: Any, weight: Any) -> Any:
        return cross_entropy(target, logits, kept, weight, option)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _save_loss(ctx, inputs, output)

    @staticmethod
    def backward(ctx: Any, grad: Any, *_: Any) -> Any:
        return _derivatives(ctx, grad, _CrossEntropySlope.apply, _plain_cross_entropy, 4)


class _KlSlope(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(option: float, grad: Any, target: Any, logits: Any, kept: Any, stats: Any) -> Any:
        return kl_from_logits_slope(grad, target, logits, kept, option, stats)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _save_slope(ctx, inputs, 3)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return _second_derivatives(ctx, grad, _plain_kl, 3)


class _Kl(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(option: float, target: Any, logits: Any, kept: Any) -> Any:
        return kl_from_logits(target, logits, kept, option)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _save_loss(ctx, inputs, output)

    @staticmethod
    def backward(ctx: Any, grad: Any, *_: Any) -> Any:
        return _derivatives(ctx, grad, _KlSlope.apply, _plain_kl, 3)


class _BernoulliSlope(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(option: tuple[float, float], grad: Any, target: Any, logits: Any, kept: Any) -> Any:
        return bernoulli_slope(grad, target, logits, kept, *option)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _save_slope(ctx, inputs, 3)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return _second_derivatives(ctx, grad, _plain_bernoulli, 3)


class _Bernoulli(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(option: tuple[float, float], target: Any, logits: Any, kept: Any) -> Any:
        return (bernoulli(target, logits, kept, *option),)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        _save_loss(ctx, inputs, output)

    @staticmethod
    def backward(ctx: Any, grad: Any, *_: Any) -> Any:
        return _derivatives(ctx, grad, _BernoulliSlope.apply, _plain_bernoulli, 3)


def _register_vmap(operator: Any, shared: int | None = None) -> None:
    """A batch is more rows; only one of the argument `shared`, which all rows have in common, is a loop."""

    def batched(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> Any:
        size = info.batch_size
        if shared is not None and in_dims[shared] is not None:
            each = [
                operator(*(x if dim is None else x.select(dim, i) for x, dim in zip(arguments, in_dims, strict=True)))
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


_register_vmap(cross_entropy, shared=3)
_register_vmap(cross_entropy_slope, shared=4)
_register_vmap(kl_from_logits)
_register_vmap(kl_from_logits_slope)
_register_vmap(bernoulli)
_register_vmap(bernoulli_slope)


# Kernels as lossbridge.backend defines them: `plain` is not needed, since the operators differentiate the formula.


@torch.compiler.assume_constant_result  # it is: what is compiled belongs to one nesting
def _nested() -> bool:
    """Whether more than one transform of torch.func is at work."""
    return bool(torch._C._functorch.get_dynamic_layer_stack_depth() > 1)


def _loss_of_rows(losses: Any, target: Any, pred: Any, axis: int, kept: Any, option: Any, *arrays: Any) -> Any:
    """The losses of rows, in the shape of the samples; None where the formula is to be used."""
    forward_mode = torch.autograd.forward_ad._current_level >= 0  # operators have no such derivative
    if forward_mode or pred.dtype not in DTYPES or pred.shape[axis] == 0:
        return None
    # torch.compile loses derivatives of derivatives of an autograd.Function, without a word.
    if torch.compiler.is_compiling() and _nested():
        return None
    classes = pred.shape[axis]
    sample_shape = pred.shape[:axis] + pred.shape[axis + 1 :]
    if target.ndim < pred.ndim:
        target = target.reshape(-1)
    else:
        target = target if target.dtype in DTYPES else target.float()
        target = target.movedim(axis, -1).reshape(-1, classes)
    if kept is not None:
        kept = kept.expand(sample_shape).reshape(-1)
    pred = pred.movedim(axis, -1).reshape(-1, classes)
    loss = losses.apply(option, target, pred, kept, *arrays)[0]
    return loss.reshape(sample_shape)


def _crossentropy_kernel(
    plain: Any,
    target: Any,
    pred: Any,
    axis: int,
    kept: Any,
    *,
    from_logits: bool,
    label_smoothing: float = 0.0,
    epsilon: float = 0.0,
    class_weight: Any = None,
) -> Any:
    if not from_logits:
        return None
    weight = None if class_weight is None else class_weight.reshape(-1)
    return _loss_of_rows(_CrossEntropy, target, pred, axis, kept, float(label_smoothing), weight)


def _kl_divergence_kernel(
    plain: Any, target: Any, pred: Any, axis: int, kept: Any, *, from_logits: bool, epsilon: float = 0.0
) -> Any:
    return _loss_of_rows(_Kl, target, pred, axis, kept, 1.0) if from_logits else None


def _distillation_kernel(plain: Any, target: Any, pred: Any, axis: int, kept: Any, *, temperature: float) -> Any:
    loss = _loss_of_rows(_Kl, target, pred, axis, kept, float(temperature))
    return None if loss is None else temperature**2 * loss


def _binary_kernel(
    plain: Any,
    target: Any,
    pred: Any,
    axis: int | None,
    kept: Any,
    *,
    from_logits: bool,
    label_smoothing: float = 0.0,
    epsilon: float = 0.0,
    pos_weight: Any = None,
    weight: Any = None,
) -> Any:
    if not from_logits or weight is not None or not (pos_weight is None or isinstance(pos_weight, int | float)):
        return None
    option = 1.0 if pos_weight is None else float(pos_weight), float(label_smoothing)
    if axis is None:  # every entry is a row
        target, pred, axis = target.unsqueeze(-1), pred.unsqueeze(-1), pred.ndim
    return _loss_of_rows(_Bernoulli, target, pred, axis, kept, option)


KERNELS: dict[str, Callable[..., Any]] = {
    "categorical_crossentropy": _crossentropy_kernel,
    "sparse_categorical_crossentropy": _crossentropy_kernel,
    "label_log_loss": _crossentropy_kernel,
    "kl_divergence": _kl_divergence_kernel,
    "distillation_loss": _distillation_kernel,
    "binary_crossentropy": _binary_kernel,
    "bernoulli_log_loss": _binary_kernel,
}
