"""PyTorch: the blocks of the linear loss as operators, which torch.compile puts into its programs. Defines no loss.

Two: the loss, with its gradients for the upstream gradient 1 where losses are summed; and the gradients of the losses
of rows, to each of which something else flows back. An operator has numbers, strings and tensors as arguments.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lossbridge.frameworks import linear_blocks, torch_blocks
from lossbridge.frameworks import torch_ops as ops
from lossbridge.frameworks.linear_blocks import Layer, Linear
from lossbridge.spec import CHOICES, LOSSES, PER_SAMPLE, Request

_LOSSES = (linear_blocks.OF, LOSSES["divergence"])
_RULES = {rule.name: (loss, rule) for loss in _LOSSES for rule in (loss.kinds or loss.rules["logits"]).values()}
# words: of the rule, the reduction and the columns. plan: the axis of the classes, the memory or −1, whether the sides
# are exchanged, and which of the inputs need their gradients. options: those of the rule, in order; NaN for one that is
# not given, or is the tensor `per_class`, and ∞ for the next of `numbers`, those that are tensors.
_INPUTS = "Tensor hidden, Tensor weight, Tensor? bias"
_OTHERS = (
    "Tensor target, Tensor? sample_weight, Tensor? valid, Tensor? normalizer, Tensor? per_class, Tensor? numbers, "
    "Tensor? teacher_weight, Tensor? teacher_bias, str[] words, int[] plan, float[] options"
)
_COUNT = 11  # of the tensors
_LIBRARY = torch.library.Library("lossbridge", "FRAGMENT")
_LIBRARY.define(f"linear_value({_INPUTS}, {_OTHERS}) -> (Tensor, Tensor, Tensor, Tensor)")
_LIBRARY.define(f"linear_gradients(Tensor upstream, {_INPUTS}, {_OTHERS}) -> (Tensor, Tensor, Tensor)")


def computed(call: Linear) -> Tensor:
    """The loss of a call, or the losses of its rows, in what is being compiled."""
    r, teacher = call.request, call.teacher or Layer(None, None)
    inputs = (r.pred, call.weight, call.bias)
    per_class = r.options.get("class_weight")
    options, numbers = [], []
    for name in r.rule.options:
        x = r.options.get(name)
        if x is None or name == "class_weight":
            options.append(math.nan)
        elif isinstance(x, Tensor):
            numbers.append(x)
            options.append(math.inf)
        else:
            options.append(float(CHOICES[name].index(x) if name in CHOICES else x))
    stacked = torch.stack(numbers) if numbers else None
    arrays = (*inputs, r.target, r.weight, r.valid, r.normalizer, per_class, stacked, *teacher)
    words = [r.rule.name, "none" if r.reduction in PER_SAMPLE else r.reduction, *call.columns]
    recorded = torch.is_grad_enabled() and words[1] != "none"
    needs = [int(recorded and x is not None and x.requires_grad) for x in inputs]
    plan = [call.classes_axis, -1 if call.memory is None else call.memory, int(call.exchanged), *needs]
    found: Tensor = torch.ops.lossbridge.linear_value(*arrays, words, plan, options)[0]
    return found


def _call(framework: Any, arguments: tuple[Any, ...]) -> tuple[Linear, tuple[Tensor | None, ...]]:
    """The call of these arguments, without hidden states, weight and bias; and those."""
    if ops.forward_level() >= 0:  # PyTorch would lose the tangents without a word
        raise NotImplementedError("lossbridge's operators have no forward mode; call the loss outside torch.compile")
    hidden, weight, bias, target, sample_weight, valid, normalizer, per_class, numbers, *teacher = arguments[:_COUNT]
    words, plan, options = arguments[_COUNT:]
    loss, rule = _RULES[words[0]]
    given: dict[str, Any] = {} if per_class is None else {"class_weight": per_class}
    further = iter(() if numbers is None else numbers.unbind())
    for name, x in zip(rule.options, options, strict=True):
        if name in CHOICES:
            given[name] = CHOICES[name][int(x)]
        elif not math.isnan(x):
            given[name] = next(further) if math.isinf(x) else x
    request = Request(
        loss=loss,
        rule=rule,
        framework=framework,
        target=target,
        pred=None,
        axis=1,
        dtype="float64" if hidden.dtype == torch.float64 else "float32",
        options=given,
        reduction=words[1],
        normalizer=normalizer,
        weight=sample_weight,
        counted=valid,
        valid=valid,
        in_arrays="" if numbers is None else "options are arrays",
    )
    layer = None if teacher[0] is None else Layer(*teacher)
    call = Linear(
        request=request,
        weight=None,
        bias=None,
        classes_axis=plan[0],
        classes=weight.shape[plan[0]],
        memory=None if plan[1] < 0 else plan[1],
        teacher=layer,
        exchanged=bool(plan[2]),
        columns=tuple(words[2:]),
    )
    return call, (hidden, weight, bias)


def _dtype(hidden: Tensor) -> torch.dtype:
    """Of the computation."""
    return torch.promote_types(hidden.dtype, torch.float32)


def _filled(found: tuple[Tensor | None, ...], hidden: Tensor) -> tuple[Tensor, ...]:
    """A gradient that is not needed has no entries."""
    return tuple(hidden.new_empty(0) if x is None else x for x in found)


def _fake_gradients(inputs: tuple[Any, ...], needs: list[int]) -> tuple[Tensor, ...]:
    hidden = inputs[0]
    each = (x.new_empty(x.shape, dtype=_dtype(hidden)) if need else None for x, need in zip(inputs, needs, strict=True))
    return _filled(tuple(each), hidden)


# The value; with a sum, the gradients that are needed.


def _value(framework: Any, *arguments: Any) -> tuple[Tensor, ...]:
    call, inputs = _call(framework, arguments)
    needs = tuple(bool(need) for need in arguments[-2][3:])
    with ops.recording():  # a block's loss may be differentiated by it
        found, gradients = torch_blocks.computed(call, call.request, inputs, needs)
    return found, *_filled(gradients, arguments[0])


def _fake_value(*arguments: Any) -> tuple[Tensor, ...]:
    hidden, words, plan = arguments[0], *arguments[_COUNT : _COUNT + 2]
    columns = (len(words) - 2,) if words[2:] else ()
    shape = (hidden.shape[0], *columns) if words[1] == "none" else ()
    return hidden.new_empty(shape, dtype=_dtype(hidden)), *_fake_gradients(arguments[:3], plan[3:])


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.rest = inputs[_COUNT:]
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:_COUNT], *output[1:])


def _value_backward(framework: Any, ctx: Any, upstream: Tensor, *_: Any) -> tuple[Any, ...]:
    """Further derivatives are those of the loss of all logits."""
    arrays, gradients, needs = ctx.saved_tensors[:_COUNT], ctx.saved_tensors[_COUNT:], ctx.needs_input_grad[:3]
    words, plan, options = ctx.rest
    found: tuple[Tensor | None, ...]
    if torch.is_grad_enabled():
        call, inputs = _call(framework, (*arrays, *ctx.rest))
        found = torch_blocks.by_whole(call, inputs, upstream, needs)
    elif words[1] == "none":
        plan = [*plan[:3], *(int(need) for need in needs)]
        found = torch.ops.lossbridge.linear_gradients(upstream, *arrays, words, plan, options)
    else:
        found = tuple(x * upstream if need else None for x, need in zip(gradients, needs, strict=True))
    each = zip(found, arrays[:3], needs, strict=True)
    return *(x.to(like.dtype) if need and x is not None else None for x, like, need in each), *[None] * len(
        ctx.needs_input_grad[3:]
    )


# The gradients of losses of rows.


def _gradients(framework: Any, upstream: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    call, inputs = _call(framework, arguments)
    needs = tuple(bool(need) for need in arguments[-2][3:])
    request = linear_blocks.pulled_back(call.request, upstream)
    with ops.recording():
        gradients = torch_blocks.computed(call, request, inputs, needs)[1]
    return _filled(gradients, arguments[0])


def _gradients_backward(ctx: Any, *upstream: Any) -> None:
    raise NotImplementedError(
        "lossbridge's linear_gradients is not differentiated further; call the loss outside torch.compile"
    )


def define(framework: Any) -> None:
    """The operators, whose calls are this framework's: the module that chooses the path of a block's loss."""

    def of_framework(function: Any) -> Any:
        return lambda *arguments: function(framework, *arguments)

    for name, compute, fake, backward in (
        ("value", _value, _fake_value, of_framework(_value_backward)),
        ("gradients", _gradients, lambda _, *x: _fake_gradients(x[:3], x[-2][3:]), _gradients_backward),
    ):
        name = f"lossbridge::linear_{name}"
        torch.library.impl(name, "default", of_framework(compute), lib=_LIBRARY)
        torch.library.register_fake(name, fake, lib=_LIBRARY)
        saves = _save if name.endswith("value") else None
        torch.library.register_autograd(name, backward, setup_context=saves, lib=_LIBRARY)
