"""PyTorch: arithmetic, how arrays come in, how a derivative is attached, and the private interfaces that are asked."""

from __future__ import annotations

import operator
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.autograd import forward_ad

from lossbridge.frameworks.framework import Unreadable, host_array
from lossbridge.maths.ops import Array, Rule, Shape

# ---- Private interfaces of PyTorch, tried with 2.13. test_only_torch.py tests the positive answer of each. ----

functorch_is_active = torch._C._are_functorch_transforms_active
functorch_depth = torch._C._functorch.get_dynamic_layer_stack_depth
is_batched = torch._C._functorch.is_batchedtensor
is_legacy_batched = torch._C._functorch.is_legacy_batchedtensor
dispatch_modes = torch._C._len_torch_dispatch_stack  # something looks at every operation: make_fx, say


def base_of(x: torch.Tensor) -> torch.Tensor | None:
    """The tensor that `x` is a view of."""
    return x._base


# The nesting of forward-mode differentiation, −1 outside.
forward_level = partial(getattr, forward_ad, "_current_level")


def differentiated_once() -> bool:
    """Whether nobody can ask for more than a first derivative of what is being compiled.

    Of an autograd.Function torch.compile loses further ones without a word, under more than one transform of torch.func
    and with other compilers than Inductor, which refuses them.
    """
    from torch._dynamo.symbolic_convert import InstructionTranslator

    try:
        compiler = InstructionTranslator.current_tx().output.compiler_fn
    except AttributeError:  # torch.export without Dynamo
        return False
    within = getattr(torch._dynamo.config, "trace_autograd_ops", False)
    by_inductor = getattr(compiler, "_compiler_name", "") == "inductor"
    return by_inductor and functorch_depth() <= 1 and not within and forward_level() < 0


def is_nested() -> bool:
    """Whether more than one transform of torch.func is at work."""
    return bool(functorch_depth() > 1)


def is_transformed() -> bool:
    """Whether torch.func or forward mode is at work."""
    return bool(functorch_depth() > 0 or forward_level() >= 0)


def is_known(condition: Any) -> bool:
    """Whether a condition on sizes holds for all that a program which is being compiled can meet. It guards nothing."""
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return statically_known_true(condition)


# As torch.compiler.assume_constant_result does, which imports torch._dynamo. They are constant: what is compiled
# has one compiler and one nesting.
for _function in (differentiated_once, is_nested, is_transformed):
    _function._dynamo_marked_constant = True  # type: ignore[attr-defined]


# Of the context of an autograd.Function: each is unpacked alone, which is when an in-place change is noticed.
raw_saved_tensors = operator.attrgetter("_raw_saved_tensors")
# Whether what is saved for the backward pass at work will be asked for again.
graph_is_kept = torch._C._autograd._get_current_graph_task_keep_graph


def recording() -> Any:
    """A context in which autograd is at work inside an operator too, which PyTorch calls below it."""
    included, excluded = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()
    recorded = excluded.remove(torch._C.DispatchKey.AutogradFunctionality)
    return torch._C._ForceDispatchKeyGuard(included, recorded)


# ---- End of the private interfaces. ----

TYPES = (torch.Tensor, torch.nn.Parameter)
LAYOUT = torch.strided
DTYPES = {
    getattr(torch, name): name
    for name in ("float32", "bfloat16", "float16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool")
}
quiet = nullcontext

# Arrays as they come in.


def owns(x: object) -> bool:
    return isinstance(x, torch.Tensor | torch.SymInt)  # SymInt: a size that is not known while tracing


def asarray(x: Any, like: Array | None = None) -> Array:
    if isinstance(x, torch.Tensor):
        _refuse_layout(x, like)
    if like is not None and is_distributed(like) and not is_distributed(x):
        return replicated(asarray(x, like.to_local()), like.device_mesh)
    if isinstance(x, torch.Tensor):
        return x
    device = None if like is None else like.device
    if isinstance(x, int | torch.SymInt) and not isinstance(x, bool):
        return torch.full((), x, dtype=torch.int64, device=device)  # through NumPy each value would compile anew
    if isinstance(x, float):
        return torch.tensor(x, dtype=torch.float64, device=device)
    if torch.compiler.is_compiling():
        return torch.as_tensor(np.asarray(x), device=device)
    x = host_array(x)
    if x.dtype.name == "bfloat16":  # ml_dtypes' bfloat16 is unknown to torch; float32 holds it exactly
        x = x.astype(np.float32)
    # A copy: torch shares memory with arrays, and warns of those that cannot be written to.
    return torch.tensor(x, device=device)


def _refuse_layout(x: torch.Tensor, like: Array | None) -> None:
    if hasattr(x, "get_mask"):
        raise Unreadable(TypeError, "is a torch.masked tensor; pass its get_data(), and its get_mask() as mask=")
    if x.is_nested:
        raise Unreadable(TypeError, "is a nested tensor; pass it padded (to_padded_tensor), and the padding as mask=")
    if x.layout is not LAYOUT:
        raise Unreadable(TypeError, "is a sparse tensor; pass its to_dense()")
    if like is not None and is_distributed(x) and not is_distributed(like):
        raise Unreadable(TypeError, "is a DTensor beside predictions that are none; pass its full_tensor()")


def is_distributed(x: Any) -> bool:
    """Whether it is a DTensor, beside which only DTensors may stand."""
    return type(x) not in TYPES and hasattr(x, "device_mesh")


def replicated(x: Array, mesh: Any) -> Array:
    """A DTensor of which every device holds the whole."""
    from torch.distributed.tensor import DTensor, Replicate

    return DTensor.from_local(x, mesh, [Replicate()] * mesh.ndim, run_check=False)


def with_gradient_alike(x: Array) -> Array:
    """`x`, whose gradient will be laid over the devices as it is."""
    return x.redistribute(placements=x.placements) if is_distributed(x) and x.requires_grad else x


def summed_over_devices(x: Array) -> Array:
    """`x`; of a DTensor whose devices hold terms of a sum each, which is what item() would read, the sum on all."""
    if not is_distributed(x):
        return x
    from torch.distributed.tensor import Replicate

    return x.redistribute(placements=[Replicate() if laid.is_partial() else laid for laid in x.placements])


def is_traced() -> bool:
    """Whether what is called is written down, by a compiler, a tracer, or a mode that sees every operation."""
    return bool(torch.compiler.is_compiling() or torch.jit.is_tracing() or dispatch_modes())


def concrete(x: Any) -> np.ndarray | None:
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return None
    if not isinstance(x, torch.Tensor):
        return host_array(x)
    if not x.is_cpu or is_distributed(x):
        return None
    try:
        x = x.detach() if x.requires_grad else x
        return (x.float() if x.dtype == torch.bfloat16 else x).numpy()
    except (RuntimeError, TypeError):  # inside torch.vmap, a fake tensor, or a dtype that NumPy does not know
        return None


def constant(x: Any) -> np.ndarray | None:
    if not isinstance(x, torch.Tensor):
        return concrete(x)
    if is_traced() or is_transformed():
        return None
    differentiated = x.requires_grad and torch.is_grad_enabled()
    # item() also of bfloat16, which NumPy does not know.
    return np.asarray(x.item()) if x.is_cpu and type(x) in TYPES and not differentiated else None


def same_sizes(x: Array, axes: list[int], like: Array, like_axes: list[int], words: str) -> Array:
    return x  # shapes are always known


def widest(x: Array) -> str:
    return "float32" if x.device.type == "mps" else "float64"


# Sizes and dtypes.


def shape(x: Array) -> Shape:
    return tuple(x.shape)


def size(x: Array, axis: int, like: Array | None = None) -> Any:
    return x.shape[axis]


def dtype(x: Array) -> str:
    return str(x.dtype).removeprefix("torch.")


def cast(x: Array, dtype: str) -> Array:
    return x.to(getattr(torch, dtype))


# Element by element.

exp = torch.exp
log = torch.log
log1p = torch.log1p
power = torch.pow
abs = torch.abs
where = torch.where


def expm1(x: Array) -> Array:
    # torch.compile writes expm1 as exp(x) - 1 on CPUs, which has no digits near 0; this equal has them.
    return torch.tanh(0.5 * x) * (torch.exp(x) + 1) if torch.compiler.is_compiling() else torch.expm1(x)


def stop_gradient(x: Array) -> Array:
    return x.detach()


# Sums.


def sum(x: Array, axis: int | None = None, keepdims: bool = False) -> Array:
    return torch.sum(x) if axis is None else torch.sum(x, dim=axis, keepdim=keepdims)


def mean(x: Array) -> Array:
    count = x.numel()
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        # A tensor, because torch.export takes every unknown size for at least 2 and leaves out a maximum of sizes.
        return torch.sum(x) / torch.full((), count, device=x.device).clamp_min(1)
    return torch.sum(x) / (count or 1)


def count(condition: Array) -> Array:
    return torch.sum(condition)


def max(x: Array, axis: int) -> Array:
    return torch.amax(x, dim=axis, keepdim=True)


# One class of each row.


def argmax(x: Array, axis: int) -> Array:
    return torch.argmax(x, dim=axis)


def take(x: Array, labels: Array, axis: int) -> Array:
    # A sum fuses with what computes x, and its gradient is no scatter into zeros; and DTensor scatters nothing.
    if torch.compiler.is_compiling() or type(x) not in TYPES:
        return torch.sum(torch.where(one_hot(labels, x, axis), x, 0.0), dim=axis)
    return torch.gather(x, axis, labels.long().unsqueeze(axis)).squeeze(axis)


def put(x: Array, labels: Array, values: Array, axis: int) -> Array:
    return torch.where(one_hot(labels, x, axis), values, x)


def sum_but(x: Array, labels: Array, axis: int) -> Array:
    return torch.sum(torch.where(one_hot(labels, x, axis), 0.0, x), dim=axis)


def lookup(values: Array, labels: Array) -> Array:
    return values.reshape(-1)[labels]


def one_hot(labels: Array, like: Array, axis: int) -> Array:
    classes = torch.arange(like.shape[axis], device=like.device)
    if is_distributed(like):
        classes = replicated(classes, like.device_mesh)
    return classes.reshape([-1 if i == axis else 1 for i in range(like.ndim)]) == labels.unsqueeze(axis)


def gather(x: Array, indices: Array, axis: int) -> Array:
    return torch.gather(x, axis, indices.long())


def among(indices: Array, like: Array, axis: int) -> Array:
    return torch.zeros_like(like, dtype=torch.bool).scatter(axis, indices.long(), True)


def concatenate(x: Array, y: Array, axis: int) -> Array:
    return torch.cat([x, y], dim=axis)


# Shapes.

reshape = torch.reshape


def matmul(x: Array, y: Array, transpose: bool) -> Array:
    y = y.mT if transpose else y
    if not torch.amp.is_autocast_available(x.device.type):  # on the meta device
        return x @ y
    with torch.autocast(x.device.type, enabled=False):  # which would round to half precision
        return x @ y


def stack(arrays: Sequence[Array]) -> Array:
    return torch.stack(tuple(arrays), -1)


def column(x: Array, which: int) -> Array:
    return x[..., which]


def expand_dims(x: Array, axis: int) -> Array:
    return x.unsqueeze(axis)


def squeeze(x: Array, axis: int) -> Array:
    return x.squeeze(axis)


def reshape_as(x: Array, like: Array) -> Array:
    return x.reshape(like.shape)


def broadcast_to(x: Array, like: Array) -> Array:
    return x.expand(like.shape)


_OPS: Any = sys.modules[__name__]

# Derivatives: the one attachment of a rule. (torch_rows attaches those of the native rows.)


class Plan(NamedTuple):
    """What `ByRule` needs besides tensors."""

    rule: Rule
    axis: int | None
    options: dict[str, Any]  # numbers
    per_class: str  # the name of the option that is a tensor


class ByRule(torch.autograd.Function):
    """The losses of a rule and, not differentiable, its residuals. The derivatives of its gradients are its value's."""

    generate_vmap_rule = True

    @staticmethod
    def forward(target: Array, pred: Array, per_class: Array | None, plan: Plan) -> tuple[Array, ...]:
        losses, residuals = plan.rule.value(_OPS, target, pred, plan.axis, **_options(plan, per_class))
        return losses, *residuals

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Array, ...]) -> None:
        target, pred, per_class, ctx.plan = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(target, pred, per_class, *output[1:])

    @staticmethod
    def backward(ctx: Any, upstream: Array, *_: Any) -> tuple[Array | None, ...]:
        target, pred, per_class, *residuals = ctx.saved_tensors
        plan, needs = ctx.plan, ctx.needs_input_grad[:2]
        options = _options(plan, per_class)
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # a second derivative will be asked for
            inputs = [x for x, needed in zip((target, pred), needs, strict=True) if needed]
            losses = plan.rule.value(_OPS, target, pred, plan.axis, **options)[0]
            found = iter(torch.autograd.grad(losses, inputs, upstream, create_graph=True, materialize_grads=True))
            return *(next(found) if needed else None for needed in needs), None, None
        upstream = upstream if plan.axis is None else upstream.unsqueeze(plan.axis)
        assert plan.rule.gradients is not None
        gradients = plan.rule.gradients(_OPS, target, pred, plan.axis, tuple(residuals), needs, **options)
        return *(None if x is None else upstream * x for x in gradients), None, None


def _options(plan: Plan, per_class: Array | None) -> dict[str, Any]:
    return plan.options if per_class is None else {**plan.options, plan.per_class: per_class}
