"""PyTorch on CPUs: the native rows as operators, which torch.compile puts into its programs. Defines no loss.

Two for all rules. An operator has numbers and tensors as arguments, so that a job goes through it as two lists. Losses
are computed in the forward pass and gradients in the backward pass, when the upstream gradient is known: to write them
before would mean to multiply them afterwards, into memory of their own.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lossbridge.frameworks import torch_ops as ops
from lossbridge.frameworks import torch_rows
from lossbridge.frameworks.torch_rows import Job
from lossbridge.native import rows
from lossbridge.spec import CHOICES, LOSSES, Request

_RULES = {rows.RULES[rule.name]: rule for loss in LOSSES.values() for x in loss.rules.values() for rule in x.values()}
_RULES |= {rows.RULES[rule.name]: rule for loss in LOSSES.values() for rule in loss.kinds.values()}
_RULES |= {rows.RULES[loss.mass.name]: loss.mass for loss in LOSSES.values() if loss.mass is not None}
# plan: number of the rule, axis or −1, whether the mean is taken, whether the domain is checked, and, of gradients,
# whether predictions and target need theirs. options: those of the rule, in order; NaN for one that is not given, or is
# the tensor `per_class`, and the number of a word.
_ARGUMENTS = "Tensor pred, Tensor target, Tensor? valid, Tensor? per_class, int[] plan, float[] options"
_LIBRARY = torch.library.Library("lossbridge", "DEF")
_LIBRARY.define(f"rows_value({_ARGUMENTS}) -> Tensor")
_LIBRARY.define(f"rows_gradients(Tensor upstream, {_ARGUMENTS}) -> (Tensor, Tensor)")


def computed(r: Request, per_class: Tensor | None, averaged: bool) -> Tensor:
    """The losses of a request, or their mean, in what is being compiled. `per_class`: its option of tensors."""
    pred, target = r.pred, r.target
    if target.ndim == pred.ndim and not target.is_floating_point():
        target = ops.cast(target, r.dtype)
    rule = rows.RULES[r.rule.name]
    plan = [rule, -1 if r.axis is None else r.axis, int(averaged), int(r.domain)]
    options = [_as_number(name, r.options.get(name)) for name in _RULES[rule].options]
    found: Tensor = torch.ops.lossbridge.rows_value(pred, target, r.valid, per_class, plan, options)
    return found


def _as_number(name: str, x: Any) -> float:
    if name in CHOICES:
        return float(CHOICES[name].index(x))
    return math.nan if x is None or isinstance(x, Tensor) else float(x)


def _job(pred: Tensor, target: Tensor, has_per_class: bool, plan: list[int], options: list[float]) -> Job:
    if ops.forward_level() >= 0:  # PyTorch would lose the tangents without a word
        raise NotImplementedError("lossbridge's operators have no forward mode; call the loss outside torch.compile")
    rule, axis = _RULES[plan[0]], None if plan[1] < 0 else plan[1]
    given: dict[str, Any] = {name: x for name, x in zip(rule.options, options, strict=True) if not math.isnan(x)}
    if "apply_class_balancing" in given:
        given["apply_class_balancing"] = bool(given["apply_class_balancing"])
    given |= {name: words[int(given[name])] for name, words in CHOICES.items() if name in given}
    per_class = next(name for name in rule.options if name in rows.PER_CLASS) if has_per_class else ""
    request = Request(
        loss=None,  # type: ignore[arg-type]  # the formula of a job asks for none
        rule=rule,
        framework=torch_rows,  # for its operations
        target=None,
        pred=None,
        axis=axis,
        dtype="float64" if pred.dtype == torch.float64 else "float32",
        options=given,
        reduction="mean" if plan[2] else "none",
        domain=bool(plan[3]),
    )
    dtypes = ops.DTYPES[pred.dtype], ops.DTYPES[target.dtype]
    divides = rows.COUNTED if plan[2] else rows.NO_SUM
    call = rows.call(request, pred.shape, dtypes, (0, 0), divides=divides)
    return Job(call, request, per_class)


# The value.


def _value(
    pred: Tensor,
    target: Tensor,
    valid: Tensor | None,
    per_class: Tensor | None,
    plan: list[int],
    options: list[float],
) -> Tensor:
    job = _job(pred, target, per_class is not None, plan, options)
    return torch_rows.value(job, (pred, target, valid, per_class, None))


def _fake_value(pred: Tensor, target: Tensor, valid: Any, per_class: Any, plan: list[int], options: Any) -> Tensor:
    shape, axis = pred.shape, plan[1]
    samples = shape if axis < 0 else shape[:axis] + shape[axis + 1 :]
    return pred.new_empty((() if plan[2] else samples), dtype=torch.promote_types(pred.dtype, torch.float32))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *arrays, ctx.plan, ctx.options = inputs
    ctx.save_for_backward(*arrays)


def _value_backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
    needs = [bool(x) for x in ctx.needs_input_grad[:2]]
    plan = [*ctx.plan, *(int(x) for x in needs)]
    found = torch.ops.lossbridge.rows_gradients(upstream, *ctx.saved_tensors, plan, ctx.options)
    of_inputs = (x if needed else None for x, needed in zip(found, needs, strict=True))
    return *of_inputs, None, None, None, None


# Its gradients; one that is not needed has no entries.


def _gradients(
    upstream: Tensor,
    pred: Tensor,
    target: Tensor,
    valid: Tensor | None,
    per_class: Tensor | None,
    plan: list[int],
    options: list[float],
) -> tuple[Tensor, Tensor]:
    job = _job(pred, target, per_class is not None, plan, options)
    needs = bool(plan[4]), bool(plan[5])
    of_pred, of_target = torch_rows.gradients(job, (pred, target, valid, per_class, None), upstream, needs)
    return pred.new_empty(0) if of_pred is None else of_pred, pred.new_empty(0) if of_target is None else of_target


def _fake_gradients(
    upstream: Tensor, pred: Tensor, target: Tensor, valid: Any, per_class: Any, plan: list[int], options: Any
) -> tuple[Tensor, ...]:
    return tuple(
        torch.empty_like(x, memory_format=torch.contiguous_format) if needed else pred.new_empty(0)
        for x, needed in zip((pred, target), plan[4:], strict=True)
    )


def _gradients_backward(ctx: Any, *upstream: Tensor) -> tuple[Any, ...]:
    """By the formula, which can be differentiated any number of times."""
    first, pred, target, valid, per_class = ctx.saved_tensors
    create_graph = torch.is_grad_enabled()
    needs = bool(ctx.plan[4]), bool(ctx.plan[5])
    job = _job(pred, target, per_class is not None, ctx.plan, ctx.options)
    needed = ctx.needs_input_grad[:3]
    with torch.enable_grad():
        found = torch_rows.by_formula(job, (pred, target, valid, per_class, None), first, needs)
        outputs = [(x, v) for x, v in zip(found, upstream, strict=True) if x is not None and x.requires_grad]
        inputs = [x for x, wanted in zip((first, pred, target), needed, strict=True) if wanted]
        second = iter(
            torch.autograd.grad(
                [x for x, _ in outputs],
                inputs,
                [v for _, v in outputs],
                create_graph=create_graph,
                materialize_grads=True,
            )
        )
    return *(next(second) if wanted else None for wanted in needed), None, None, None, None


for _name, _compute, _fake, _backward in (
    ("lossbridge::rows_value", _value, _fake_value, _value_backward),
    ("lossbridge::rows_gradients", _gradients, _fake_gradients, _gradients_backward),
):
    torch.library.impl(_name, "CPU", _compute, lib=_LIBRARY)
    torch.library.register_fake(_name, _fake, lib=_LIBRARY)
    torch.library.register_autograd(_name, _backward, setup_context=_save, lib=_LIBRARY)
