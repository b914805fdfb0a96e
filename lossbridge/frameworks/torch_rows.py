"""PyTorch on CPUs: losses and gradients by the native rows. Defines no loss.

A mean's gradient is written with its value, for the upstream gradient 1, which is what a loss receives: backward then
hands the buffer out as it is. Everything else is written in backward, when the upstream gradient is known: a gradient
in half precision is rounded once, after it has been multiplied.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lossbridge.frameworks import torch_ops as ops
from lossbridge.frameworks.framework import by_formula
from lossbridge.native import rows
from lossbridge.reduction import reduced
from lossbridge.spec import Request

# Fresh buffers of so many bytes get huge pages: below, PyTorch's memory has mostly been touched before.
HUGE = 1 << 24
_HALVES = (torch.float16, torch.bfloat16)


class Arrays(NamedTuple):
    pred: Tensor
    target: Tensor
    valid: Tensor | None
    per_class: Tensor | None


class Job(NamedTuple):
    """What is computed of the arrays. It holds none: autograd alone does."""

    call: rows.Call  # without addresses
    request: Request  # for the formula
    per_class: str  # the name of the option that is a tensor
    averaged: bool


def computed(job: Job, arrays: tuple[Tensor, Tensor, Tensor | None, Tensor | None]) -> Tensor:
    """The losses of these `Arrays`, or their mean."""
    pred, target, _, _ = arrays
    if not torch.is_grad_enabled() or not (pred.requires_grad or target.requires_grad):
        return values(job, Arrays(*arrays), None)
    if job.request.inplace_gradient and pred.requires_grad:
        _refuse_in_place(pred)
    found: Tensor = ByRows.apply(*arrays, job)
    return found


def _refuse_in_place(pred: Tensor) -> None:
    base = ops.base_of(pred)
    if pred.is_leaf or (base is not None and base.is_leaf):
        raise ValueError(
            "inplace_gradient=True writes over the logits, and these are a leaf, whose values are yours; leave it out, "
            "or pass what a model computed"
        )
    if not pred.is_contiguous():
        raise ValueError(
            f"inplace_gradient=True writes over the logits, and these have strides {tuple(pred.stride())} for shape "
            f"{tuple(pred.shape)}; leave it out, or pass logits.contiguous()"
        )


# The calls of the rows.


def values(job: Job, arrays: Arrays, gradient: Tensor | None) -> Tensor:
    """The losses or their mean, with its gradient for the predictions where there is a buffer for it."""
    pred, r = arrays.pred, job.request
    dtype = torch.float64 if pred.dtype is torch.float64 else torch.float32
    if job.averaged:
        found = pred.new_empty((), dtype=dtype)
        _run(job, arrays, result=found.data_ptr(), gradient=_address(gradient))
    else:
        found = pred.new_empty(_of_samples(pred, r.axis), dtype=dtype)
        _run(job, arrays, losses=found.data_ptr())
    return found


def _of_samples(pred: Tensor, axis: int | None) -> tuple[int, ...]:
    return pred.shape if axis is None else pred.shape[:axis] + pred.shape[axis + 1 :]


def _gradients(job: Job, arrays: Arrays, upstream: Tensor, needs: tuple[bool, bool]) -> tuple[Tensor | None, ...]:
    """For predictions and target, of what flows back."""
    in_place = job.request.inplace_gradient
    of_pred = (arrays.pred.detach() if in_place else _fresh(arrays.pred)) if needs[0] else None
    of_target = _fresh(arrays.target) if needs[1] else None
    addresses = {"gradient": _address(of_pred), "target_gradient": _address(of_target)}
    if job.averaged:
        _run(job, arrays, upstream=upstream.item(), **addresses)
    else:
        upstream = upstream.resolve_neg().contiguous()
        _run(job, arrays, upstream_each=upstream.data_ptr(), **addresses)
    if in_place and of_pred is not None:
        torch.autograd.graph.increment_version(of_pred)
    return of_pred, of_target


def _run(job: Job, arrays: Arrays, **others: Any) -> None:
    """One call of the rows. `others`: its arguments besides those of job and arrays."""
    pred, target = arrays.pred.resolve_neg().contiguous(), arrays.target.resolve_neg().contiguous()
    valid, per_class = arrays.valid, arrays.per_class
    if valid is not None:
        valid = valid.expand(_of_samples(pred, job.request.axis)).contiguous()
        others["counted"] = valid.data_ptr()
    if per_class is not None and per_class.ndim == 0:
        others["per_class_number"] = per_class.item()
    elif per_class is not None:
        per_class = per_class.resolve_neg().contiguous()
        others["per_class"] = per_class.data_ptr()
    addresses = {"pred": pred.data_ptr(), "target": target.data_ptr()}
    rows.compute(*job.call._replace(threads=torch.get_num_threads(), **addresses, **others))


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def _fresh(like: Tensor) -> Tensor:
    """Memory in C order for a gradient."""
    x = torch.empty_like(like, memory_format=torch.contiguous_format)
    if x.nbytes >= HUGE:
        rows.advise(x.data_ptr(), x.nbytes)
    return x


# The attachment.


class ByRows(torch.autograd.Function):
    """The losses of a job, or their mean. Further derivatives, and many at once, are those of the formula.

    Forward and setup_context in one function: apart they take 15 µs more, and nothing of torch.func comes here.
    """

    @staticmethod
    def forward(
        ctx: Any, pred: Tensor, target: Tensor, valid: Tensor | None, per_class: Tensor | None, job: Job
    ) -> Tensor:
        arrays = Arrays(pred, target, valid, per_class)
        gradient = None
        in_place = job.request.inplace_gradient
        # Over the logits only what float32 can multiply afterwards: the others are needed once more.
        if job.averaged and ctx.needs_input_grad[0] and not (in_place and pred.dtype in _HALVES):
            gradient = pred.detach() if in_place else _fresh(pred)
        value = values(job, arrays, gradient)
        if in_place and gradient is not None:
            torch.autograd.graph.increment_version(gradient)
        ctx.job, ctx.spent = job, False
        overwritten = in_place and gradient is not None
        ctx.save_for_backward(None if overwritten else pred, target, valid, per_class, gradient)
        return value

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        job, needs = ctx.job, ctx.needs_input_grad[:2]
        in_place = job.request.inplace_gradient and needs[0]
        batched = ops.is_legacy_batched(upstream) or ops.is_batched(upstream)
        further = torch.is_grad_enabled() or batched or ops.forward_level() >= 0 or torch.compiler.is_compiling()
        if in_place and (ctx.spent or further):
            raise RuntimeError(
                "inplace_gradient=True has written the gradient over the logits, which a second backward or derivative "
                "needs; leave it out"
            )
        ctx.spent = True
        if further:
            return *_by_formula(job, ctx.saved_tensors, upstream, needs), None, None, None
        # One by one, as they are needed: logits that have been changed in place are an error where they are read.
        saved = ops.raw_saved_tensors(ctx)
        found = _written(saved[4].unpack(), upstream) if needs == (True, False) else None
        if found is not None:
            return found, None, None, None, None
        arrays = Arrays(*(x.unpack() for x in saved[:4]))
        return *_gradients(job, arrays, upstream, needs), None, None, None


def _written(gradient: Tensor | None, upstream: Tensor) -> Tensor | None:
    """The gradient that was written with the value, times the upstream gradient; None where it is computed anew."""
    if gradient is None:
        return None
    factor = upstream.item()
    keep = ops.graph_is_kept()
    if factor == 1:
        return gradient.clone() if keep else gradient
    if gradient.dtype in _HALVES or not math.isfinite(factor):
        return None
    return gradient * factor if keep else gradient.mul_(factor)


def _by_formula(
    job: Job, saved: tuple[Any, ...], upstream: Tensor, needs: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    pred, target, valid, per_class, _ = saved
    r = job.request._replace(pred=pred, target=target, valid=valid, counted=valid)
    if per_class is not None:
        r = r._replace(options={**r.options, job.per_class: per_class})
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        if not create_graph:
            r = r._replace(pred=pred.detach().requires_grad_(needs[0]), target=target.detach())
            r = r._replace(target=r.target.requires_grad_(needs[1]))
        found = by_formula(ops, r, r.target, r.pred)
        found = reduced(r, found) if job.averaged else found
        inputs = [x for x, needed in zip((r.pred, r.target), needs, strict=True) if needed]
        gradients = iter(
            torch.autograd.grad(found, inputs, upstream, create_graph=create_graph, materialize_grads=True)
        )
    of_pred, of_target = (next(gradients) if needed else None for needed in needs)
    return of_pred, of_target
