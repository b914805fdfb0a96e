"""PyTorch on CPUs: losses and gradients by the native rows. Defines no loss.

A ratio's gradient is written with its value, for the upstream gradient 1, which is what a loss receives: backward then
hands the buffer out as it is. Everything else is written in backward, when the upstream gradient is known: a gradient
in half precision is rounded once, after it has been multiplied.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lossbridge.frameworks import framework
from lossbridge.frameworks import torch_ops as ops
from lossbridge.native import rows
from lossbridge.reduction import reduced
from lossbridge.spec import Request

# Fresh buffers of so many bytes get huge pages: below, PyTorch's memory has mostly been touched before.
HUGE = 1 << 24
HALVES = (torch.float16, torch.bfloat16)

# Predictions, target (dense ones are floating), which samples count, the option that holds one number a class, and the
# samples' weights, which only a ratio has.
Arrays = tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]


class Job(NamedTuple):
    """What is computed of the arrays. It holds none: autograd alone does."""

    call: rows.Call  # without addresses
    request: Request  # for the formula
    per_class: str  # the name of the option that is a tensor

    @property
    def is_ratio(self) -> bool:
        """Or the losses themselves."""
        return self.call.divides != rows.NO_SUM


def computed(job: Job, arrays: Arrays) -> Tensor:
    """The losses, or their ratio."""
    pred, target = arrays[:2]
    if not torch.is_grad_enabled() or not (pred.requires_grad or target.requires_grad):
        return value(job, arrays)
    if job.request.inplace_gradient:
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


def value(job: Job, arrays: Arrays, gradient: Tensor | None = None) -> Tensor:
    """The losses or their ratio; with the ratio, its gradient for the predictions where there is a buffer for it."""
    pred, is_ratio = arrays[0], job.is_ratio
    shape = () if is_ratio else _samples(job, pred)
    found = pred.new_empty(shape, dtype=torch.float32) if pred.dtype in HALVES else pred.new_empty(shape)
    if is_ratio:
        _run(job, arrays, result=found.data_ptr(), gradient=0 if gradient is None else gradient.data_ptr())
    else:
        _run(job, arrays, losses=found.data_ptr())
    return found


def gradients(job: Job, arrays: Arrays, upstream: Tensor, needs: tuple[bool, bool]) -> tuple[Tensor | None, ...]:
    """Of what flows back, for predictions and target."""
    in_place = job.request.inplace_gradient
    of_pred = (arrays[0].detach() if in_place else fresh(arrays[0])) if needs[0] else None
    of_target = fresh(arrays[1]) if needs[1] else None
    written = {
        "gradient": 0 if of_pred is None else of_pred.data_ptr(),
        "target_gradient": 0 if of_target is None else of_target.data_ptr(),
    }
    if job.is_ratio:
        _run(job, arrays, upstream=upstream.item(), **written)
    else:
        upstream = upstream.resolve_neg().contiguous()
        _run(job, arrays, upstream_each=upstream.data_ptr(), **written)
    if in_place and of_pred is not None:
        torch.autograd.graph.increment_version(of_pred)
    return of_pred, of_target


def _run(job: Job, arrays: Arrays, *, upstream: float = 1.0, upstream_each: int = 0, **written: int) -> None:
    """One call of the rows, which write to these addresses."""
    pred, target, counted, per_class, weight = arrays
    pred, target = pred.resolve_neg().contiguous(), target.resolve_neg().contiguous()
    call = job.call
    number, of_classes, of_counted, of_weight = call.per_class_number, 0, 0, 0
    if counted is not None:
        counted = counted.expand(_samples(job, pred)).contiguous()
        of_counted = counted.data_ptr()
    if weight is not None:
        weight = weight.expand(_samples(job, pred)).resolve_neg().contiguous()
        of_weight = weight.data_ptr()
    if per_class is not None:
        per_class = per_class.resolve_neg().contiguous()
        number, of_classes = (number, per_class.data_ptr()) if per_class.ndim else (per_class.item(), 0)
    rows.compute(
        *(*call[:7], pred.data_ptr(), target.data_ptr(), *call[9:18], number, of_classes),
        *(call.balanced, call.domain, of_counted, of_weight, call.divides, call.divisor, upstream, upstream_each),
        *(written.get("losses", 0), written.get("result", 0)),
        *(written.get("gradient", 0), written.get("target_gradient", 0), torch.get_num_threads()),
    )


def _samples(job: Job, pred: Tensor) -> tuple[int, ...]:
    shape, axis = pred.shape, job.request.axis
    return shape if axis is None else shape[:axis] + shape[axis + 1 :]


def fresh(like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Memory for a gradient, in C order."""
    x = torch.empty_like(like, dtype=dtype, memory_format=torch.contiguous_format)
    if x.nbytes >= HUGE and x.is_cpu and not rows.MISSING:
        rows.advise(x.data_ptr(), x.nbytes)
    return x


# The attachment.


class ByRows(torch.autograd.Function):
    """The losses of a job, or their ratio. Further derivatives, and many at once, are those of the formula.

    Forward and setup_context in one function: apart they take 15 µs more, and nothing of torch.func comes here.
    """

    @staticmethod
    def forward(ctx: Any, pred: Tensor, target: Tensor, *others: Any) -> Tensor:
        *rest, job = others
        gradient, saved = None, pred
        if job.is_ratio and ctx.needs_input_grad[0]:
            if not job.request.inplace_gradient:
                gradient = fresh(pred)
            elif pred.dtype not in HALVES:  # which could not be multiplied later, and are written over in backward
                gradient, saved = pred.detach(), None
        found = value(job, (pred, target, *rest), gradient)
        if saved is None:
            torch.autograd.graph.increment_version(pred)
        ctx.job, ctx.spent = job, False
        ctx.save_for_backward(saved, target, *rest, gradient)
        return found

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        job, needs = ctx.job, ctx.needs_input_grad[:2]
        further = torch.is_grad_enabled() or torch.compiler.is_compiling() or ops.forward_level() >= 0
        further = further or ops.is_legacy_batched(upstream) or ops.is_batched(upstream)
        if job.request.inplace_gradient and needs[0]:
            if ctx.spent or further:
                raise RuntimeError(
                    "inplace_gradient=True has written the gradient over the logits, which a second backward or "
                    "derivative needs; leave it out"
                )
            ctx.spent = True
        # Each is unpacked where it is read: only there is one that has been changed in place an error.
        saved = ops.raw_saved_tensors(ctx)
        if not (further or needs[1]):
            found = _multiplied(saved[5].unpack(), upstream)
            if found is not None:
                return found, None, None, None, None, None
        pred, target, counted, per_class, weight = (x.unpack() for x in saved[:5])
        compute = by_formula if further else gradients
        found = compute(job, (pred, target, counted, per_class, weight), upstream, needs)
        return *found, None, None, None, None


def _multiplied(gradient: Tensor | None, upstream: Tensor) -> Tensor | None:
    """The gradient that was written with a ratio, times what flows back; None where the rows must be called again."""
    if gradient is None:
        return None
    factor = upstream.item()
    kept = ops.graph_is_kept()
    if factor == 1:
        return gradient.clone() if kept else gradient
    if gradient.dtype in HALVES or not math.isfinite(factor):
        return None
    return gradient * factor if kept else gradient.mul_(factor)


def by_formula(job: Job, arrays: Arrays, upstream: Tensor, needs: tuple[bool, bool]) -> tuple[Tensor | None, ...]:
    """As `gradients`, and differentiable."""
    pred, target, counted, per_class, weight = arrays
    create_graph = torch.is_grad_enabled()
    valid = counted if weight is None else weight != 0  # which it is where a sample does not count
    r = job.request._replace(target=target, pred=pred, valid=valid, counted=counted, weight=weight)
    if per_class is not None:
        r = r._replace(options={**r.options, job.per_class: per_class})
    with torch.enable_grad():
        found = reduced(r, framework.by_formula(ops, r, target, pred))
        inputs = [x for x, needed in zip((pred, target), needs, strict=True) if needed]
        found = torch.autograd.grad(found, inputs, upstream, create_graph=create_graph)
    of_inputs = iter(found)
    return tuple(next(of_inputs) if needed else None for needed in needs)
