"""PyTorch: the linear loss, block by block. Defines no loss.

A ratio's gradients are computed with its value, for the upstream gradient 1, so that the logits are computed once. Of
losses of rows, to each of which something else may flow back, the logits are computed again in the backward pass.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from lossbridge.frameworks import linear_blocks, torch_rows
from lossbridge.frameworks import torch_ops as ops
from lossbridge.frameworks.framework import Choice
from lossbridge.frameworks.linear_blocks import Linear
from lossbridge.spec import PER_SAMPLE, Request

Gradients = tuple[Tensor | None, ...]  # for hidden states, weight and bias, in the dtype of the computation


def choose(call: Linear, under: str = "") -> Choice:
    return linear_blocks.choice(BLOCKS, _refuses_blocks(call, under))


def _by_blocks(call: Linear) -> Tensor:
    r = call.request
    inputs = (r.pred, call.weight, call.bias)
    if not torch.is_grad_enabled() or not any(x is not None and x.requires_grad for x in inputs):
        return computed(call, r, inputs, (False,) * 3)[0]
    found: Tensor = ByBlocks.apply(*inputs, call._replace(request=r._replace(pred=None), weight=None, bias=None))
    return found


BLOCKS = linear_blocks.in_blocks(_by_blocks)


def _refuses_blocks(call: Linear, under: str) -> str:
    """What else is at work than reverse-mode differentiation for plain tensors of hidden states, weight and bias."""
    r = call.request
    if under or torch.compiler.is_compiling() or torch.jit.is_tracing() or ops.dispatch_modes():
        return "the call is traced"
    if ops.functorch_is_active() or ops.forward_level() >= 0:
        return "torch.func or forward mode transforms the call"
    arrays = (r.target, r.pred, call.weight, call.bias, r.weight, r.valid, r.normalizer)
    for x in (*arrays, *linear_blocks.of_teacher(call)):
        if x is not None and type(x) not in ops.TYPES:
            return "a tensor is of a subclass"
    others = (r.weight, r.normalizer, *r.options.values(), *linear_blocks.of_teacher(call))
    if torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in others):
        return linear_blocks.DIFFERENTIATED
    return ""


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
    elif columns or part.target is None:
        found = part.framework.value_and_grad(functools.partial(linear_blocks.of_logits, part, columns), z)
    else:
        found = part.framework.value_and_slopes(part._replace(pred=z))
    return found


class ByBlocks(torch.autograd.Function):
    """The loss of a call, or the losses of its rows. Further derivatives are those of the loss of all logits."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, call: Linear) -> Tensor:
        r, inputs = call.request, (hidden, weight, bias)
        ctx.call, ctx.per_sample = call, r.reduction in PER_SAMPLE
        ctx.dtypes = tuple(None if x is None else x.dtype for x in inputs)
        needs = (False,) * 3 if ctx.per_sample else ctx.needs_input_grad[:3]
        found, gradients = computed(call, r, inputs, needs)
        ctx.save_for_backward(*gradients, *inputs, *_arrays(r).values())
        return found

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        # Each is unpacked where it is read: only there is one that has been changed in place an error.
        saved = ops.raw_saved_tensors(ctx)
        further = torch.is_grad_enabled() or ops.forward_level() >= 0
        further = further or ops.is_batched(upstream) or ops.is_legacy_batched(upstream)
        found: Gradients
        if ctx.call.shard is not None and (ops.is_batched(upstream) or ops.is_legacy_batched(upstream)):
            raise NotImplementedError("many gradients at once are not computed over a group; ask for one at a time")
        if not (further or ctx.per_sample):
            found = tuple(x.unpack() for x in saved[:3])
            if ops.graph_is_kept() or upstream.device.type != "cpu" or upstream.item() != 1:
                found = tuple(None if x is None else x * upstream for x in found)
        else:
            needs = ctx.needs_input_grad[:3]
            inputs, arrays = (tuple(x.unpack() for x in part) for part in (saved[3:6], saved[6:]))
            call = ctx.call._replace(request=_with_arrays(ctx.call.request, arrays))
            if further:
                found = _by_whole(call, inputs, upstream, needs)
            else:
                found = computed(call, linear_blocks.pulled_back(call.request, upstream), inputs, needs)[1]
        return *(None if x is None else x.to(dtype) for x, dtype in zip(found, ctx.dtypes, strict=True)), None


def _arrays(r: Request) -> dict[str, Tensor]:
    """What of a request may be changed in place before the backward pass reads it."""
    named = (*r._asdict().items(), *r.options.items())
    return {name: x for name, x in named if isinstance(x, Tensor)}


def _with_arrays(r: Request, arrays: tuple[Tensor, ...]) -> Request:
    """The request with these for its `_arrays`."""
    named = dict(zip(_arrays(r), arrays, strict=True))
    fields = {name: x for name, x in named.items() if name in r._fields}
    return r._replace(**fields, options={name: named.get(name, x) for name, x in r.options.items()})


def _by_whole(call: Linear, inputs: tuple[Tensor | None, ...], upstream: Tensor, needs: tuple[bool, ...]) -> Gradients:
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
