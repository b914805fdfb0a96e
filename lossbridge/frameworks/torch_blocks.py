"""PyTorch: the loss and the gradients of a linear call, block by block. Defines no loss, and attaches no derivative."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from lossbridge.frameworks import linear_blocks, torch_rows
from lossbridge.frameworks import torch_ops as ops
from lossbridge.frameworks.linear_blocks import Linear
from lossbridge.spec import PER_SAMPLE, Request

Gradients = tuple[Tensor | None, ...]  # for hidden states, weight and bias, in the dtype of the computation


def computed(
    call: Linear, r: Request, inputs: tuple[Tensor | None, ...], needs: tuple[bool, ...]
) -> tuple[Tensor, Gradients]:
    """The loss, or the losses of the rows, of the request `r`; and the gradients for the inputs that need one."""
    dtype = getattr(torch, r.dtype)
    with torch.no_grad():
        hidden, weight, bias = (None if x is None else x.detach().to(dtype) for x in inputs)
        assert hidden is not None
        assert weight is not None
        classes_first = weight if call.classes_axis == 0 else weight.T
        count, rows = len(hidden), call.rows(len(hidden))
        losses = hidden.new_zeros(call.shape(count)) if r.reduction in PER_SAMPLE else None
        total = hidden.new_zeros((), dtype=getattr(torch, ops.widest(hidden)))
        of_hidden, of_weight, of_bias = (
            torch_rows.fresh(x) if need and x is not None else None
            for need, x in zip(needs, (hidden, weight, bias), strict=True)
        )
        if count == 0:
            for x in (of_weight, of_bias):
                if x is not None:
                    x.zero_()
        room = hidden.new_empty((min(rows, count), len(classes_first)))
        for start in range(0, count, rows):
            block = slice(start, start + rows)
            z = torch.mm(hidden[block], classes_first.T, out=room[: len(hidden[block])])
            if bias is not None:
                z += bias
            part = linear_blocks.with_teacher(call, linear_blocks.of_rows(r, block))
            value, slopes = _value_and_slopes(part, call.columns, z, any(needs))
            if losses is not None:
                losses[block] = value
            else:
                total += value
            if of_hidden is not None:
                torch.mm(slopes, classes_first, out=of_hidden[block])
            if of_weight is not None:
                of_classes = of_weight if call.classes_axis == 0 else of_weight.T
                of_classes.addmm_(slopes.T, hidden[block], beta=int(start > 0))
            if of_bias is not None:
                of_bias.add_(slopes.sum(0)) if start else of_bias.copy_(slopes.sum(0))
        if call.shard is not None and of_hidden is not None:
            r.framework.join(of_hidden)
        return total.to(dtype) if losses is None else losses, (of_hidden, of_weight, of_bias)


def _value_and_slopes(
    part: Request, columns: tuple[str, ...], z: Tensor, differentiated: bool
) -> tuple[Tensor, Tensor]:
    """Of the loss of a block; the slopes may lie where the logits were."""
    found: tuple[Tensor, Tensor]
    if not differentiated:
        found = linear_blocks.of_logits(part, columns, z), z
    elif columns:
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
