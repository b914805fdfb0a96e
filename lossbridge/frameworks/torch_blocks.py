"""PyTorch: the loss and the gradients of a linear call, block by block. Defines no loss, and attaches no derivative."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from lossbridge.frameworks import linear_blocks, torch_rows
from lossbridge.frameworks import torch_ops as ops
from lossbridge.frameworks.linear_blocks import Layer, Linear
from lossbridge.spec import PER_SAMPLE, Request

Gradients = tuple[Tensor | None, ...]  # for hidden states, weight and bias, in the dtype of the computation


def computed(
    call: Linear, r: Request, inputs: tuple[Tensor | None, ...], needs: tuple[bool, ...]
) -> tuple[Tensor, Gradients]:
    """The loss, or the losses of the rows, of the request `r`; and the gradients for the inputs that need one."""
    hidden, weight, bias = inputs
    assert hidden is not None
    assert weight is not None
    with torch.no_grad():
        if not (any(needs) and _multiplies_halves(hidden, weight)):
            return _by_blocks(call, r, (hidden, weight, bias), needs)
        r, factor = _in_units(r)
        found, gradients = _by_blocks(call, r, (hidden, weight, bias), needs)
        for x in gradients:
            if x is not None:
                x *= factor
        return found * factor, gradients


def _by_blocks(
    call: Linear, r: Request, inputs: tuple[Tensor, Tensor, Tensor | None], needs: tuple[bool, ...]
) -> tuple[Tensor, Gradients]:
    dtype = getattr(torch, r.dtype)
    hidden, layer = _ready(inputs[0], Layer(*inputs[1:]), call.classes_axis, dtype)
    of_teacher, teacher = None, call.teacher
    if teacher is not None:
        of_teacher, teacher = _ready(r.target, teacher, call.classes_axis, dtype)
    count, rows = len(hidden), call.rows(len(hidden))
    losses = hidden.new_zeros(call.shape(count), dtype=dtype) if r.reduction in PER_SAMPLE else None
    total = hidden.new_zeros((), dtype=getattr(torch, ops.widest(hidden)))
    of_hidden, of_weight, of_bias = (
        torch_rows.fresh(x, dtype) if need and x is not None else None for need, x in zip(needs, inputs, strict=True)
    )
    if count == 0:
        for x in (of_weight, of_bias):
            if x is not None:
                x.zero_()
    room = hidden.new_empty((min(rows, count), len(layer.weight)), dtype=dtype)
    for start in range(0, count, rows):
        block = slice(start, start + rows)
        z = _logits(hidden[block], layer, room[: len(hidden[block])])
        part = linear_blocks.of_rows(r, block)
        if of_teacher is not None and teacher is not None:
            part = linear_blocks.beside(part, _logits(of_teacher[block], teacher, torch.empty_like(z)), call.exchanged)
        value, slopes = _value_and_slopes(part, call.columns, z, any(needs))
        if losses is not None:
            losses[block] = value
        else:
            total += value
        if of_bias is not None:
            of_bias.add_(slopes.sum(0)) if start else of_bias.copy_(slopes.sum(0))
        if of_hidden is not None or of_weight is not None:
            slopes = slopes.to(hidden.dtype)
        if of_hidden is not None:
            _multiply(slopes, layer.weight, of_hidden[block])
        if of_weight is not None:
            of_classes = of_weight if call.classes_axis == 0 else of_weight.T
            _multiply(slopes.T, hidden[block], of_classes, add=start > 0)
    if call.shard is not None and of_hidden is not None:
        r.framework.join(of_hidden)
    return total.to(dtype) if losses is None else losses, (of_hidden, of_weight, of_bias)


# Matrix products.


def _multiplies_halves(hidden: Tensor, weight: Tensor) -> bool:
    """Whether the device multiplies half precision into float32, so that no weight is cast as a whole."""
    return hidden.is_cuda and hidden.dtype == weight.dtype and hidden.dtype in torch_rows.HALVES


def _ready(hidden: Tensor, layer: Layer, classes_axis: int, dtype: torch.dtype) -> tuple[Tensor, Layer]:
    """Hidden states and a layer whose classes come first, in the dtype in which they are multiplied."""
    multiplied = hidden.dtype if _multiplies_halves(hidden, layer.weight) else dtype
    weight = layer.weight.detach().to(multiplied)
    bias = None if layer.bias is None else layer.bias.detach().to(dtype)
    return hidden.detach().to(multiplied), Layer(weight if classes_axis == 0 else weight.T, bias)


def _logits(hidden: Tensor, layer: Layer, out: Tensor) -> Tensor:
    _multiply(hidden, layer.weight.T, out)
    if layer.bias is not None:
        out += layer.bias
    return out


def _multiply(x: Tensor, y: Tensor, out: Tensor, *, add: bool = False) -> None:
    """Writes the product of two matrices, or adds it to what is there, in the dtype of `out`."""
    if x.dtype == out.dtype:
        out.addmm_(x, y, beta=int(add))
    else:
        torch.addmm(out, x, y, out_dtype=out.dtype, beta=int(add), out=out)


def _in_units(r: Request) -> tuple[Request, Tensor]:
    """The sum of the losses with weights of at most 1, and what its value and gradients are to be multiplied by.

    Slopes in half precision would overflow with what flows back, and underflow divided by the number of rows.
    """
    factor = torch.ones((), dtype=getattr(torch, r.dtype), device=r.target.device)
    weight = r.weight
    if weight is not None and weight.numel():
        largest = weight.abs().amax()
        factor = torch.where(largest.isfinite() & (largest > 0), largest, 1.0)
        weight = weight / factor
    if r.normalizer is not None:
        factor = torch.where(r.normalizer == 0, 0.0, factor / torch.where(r.normalizer == 0, 1.0, r.normalizer))
    return r._replace(weight=weight, reduction="sum", normalizer=None), factor


def _value_and_slopes(
    part: Request, columns: tuple[str, ...], z: Tensor, differentiated: bool
) -> tuple[Tensor, Tensor]:
    """Of the loss of a block; the slopes may lie where the logits were."""
    found: tuple[Tensor, Tensor]
    if not differentiated:
        found = linear_blocks.of_logits(part, columns, z), z
    elif columns or part.target is None:
        found = part.framework.value_and_grad(functools.partial(linear_blocks.of_logits, part, columns), z)
    else:
        found = part.framework.value_and_slopes(part._replace(pred=z))
    return found


def by_whole(call: Linear, inputs: tuple[Tensor | None, ...], upstream: Tensor, needs: tuple[bool, ...]) -> Gradients:
    """The gradients by the loss of all logits, which can be differentiated again."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        if not create_graph:
            inputs = tuple(
                x if x is None else x.detach().requires_grad_(need) for x, need in zip(inputs, needs, strict=True)
            )
        hidden, weight, bias = inputs
        found = linear_blocks.whole(call._replace(request=call.request._replace(pred=hidden), weight=weight, bias=bias))
        wanted = [x for x, need in zip(inputs, needs, strict=True) if need]
        gradients = iter(
            torch.autograd.grad(found, wanted, upstream, create_graph=create_graph, materialize_grads=True)
        )
    return tuple(next(gradients) if need else None for need in needs)
