"""PyTorch: which path computes a linear call, and how autograd gets the gradients of blocks. Defines no loss.

A ratio's gradients are computed with its value, for the upstream gradient 1, so that the logits are computed once. Of
losses of rows, to each of which something else may flow back, the logits are computed again in the backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lossbridge.frameworks import linear_blocks, torch_blocks, torch_linear_operator
from lossbridge.frameworks import torch_ops as ops
from lossbridge.frameworks.framework import Choice
from lossbridge.frameworks.linear_blocks import Linear
from lossbridge.frameworks.torch_blocks import Gradients
from lossbridge.spec import PER_SAMPLE, Request


def choose(call: Linear, under: str = "") -> Choice:
    return linear_blocks.choice(BLOCKS, _refuses_blocks(call, under))


def _by_blocks(call: Linear) -> Tensor:
    if torch.compiler.is_compiling():
        return torch_linear_operator.computed(call)
    r = call.request
    inputs = (r.pred, call.weight, call.bias)
    if not torch.is_grad_enabled() or not any(x is not None and x.requires_grad for x in inputs):
        return torch_blocks.computed(call, r, inputs, (False,) * 3)[0]
    found: Tensor = ByBlocks.apply(*inputs, call._replace(request=r._replace(pred=None), weight=None, bias=None))
    return found


BLOCKS = linear_blocks.in_blocks(_by_blocks)


def _refuses_blocks(call: Linear, under: str) -> str:
    """What else is at work than reverse-mode differentiation for plain tensors of hidden states, weight and bias."""
    r = call.request
    compiling = torch.compiler.is_compiling()
    if compiling and torch.compiler.is_exporting():
        return "what torch.export writes runs without lossbridge"
    if not (under or compiling) and (torch.jit.is_tracing() or ops.dispatch_modes()):
        return "the call is traced"
    if ops.is_transformed():
        return "torch.func or forward mode transforms the call"
    arrays = (r.target, r.pred, call.weight, call.bias, r.weight, r.valid, r.normalizer)
    for x in (*arrays, *linear_blocks.of_teacher(call)):
        if x is not None and type(x) not in ops.TYPES:
            return "a tensor is of a subclass"
    others = (r.weight, r.normalizer, *r.options.values(), *linear_blocks.of_teacher(call))
    if torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in others):
        return linear_blocks.DIFFERENTIATED
    return ""


class ByBlocks(torch.autograd.Function):
    """The loss of a call, or the losses of its rows. Further derivatives are those of the loss of all logits."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, call: Linear) -> Tensor:
        r, inputs = call.request, (hidden, weight, bias)
        ctx.call, ctx.per_sample = call, r.reduction in PER_SAMPLE
        ctx.dtypes = tuple(None if x is None else x.dtype for x in inputs)
        needs = (False,) * 3 if ctx.per_sample else ctx.needs_input_grad[:3]
        found, gradients = torch_blocks.computed(call, r, inputs, needs)
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
                found = torch_blocks.by_whole(call, inputs, upstream, needs)
            else:
                found = torch_blocks.computed(call, linear_blocks.pulled_back(call.request, upstream), inputs, needs)[1]
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
