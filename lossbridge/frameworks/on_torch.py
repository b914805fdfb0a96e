"""PyTorch: which path computes a request, and how PyTorch runs. Defines no loss."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lossbridge.frameworks import (
    torch_linear_operator,
    torch_operator,
    torch_ops,
    torch_rows,
    torch_shards,
)
from lossbridge.frameworks.framework import Choice, Path, by_formula, prepared
from lossbridge.maths.ops import Array
from lossbridge.native import rows
from lossbridge.reduction import by_weight, has_mass, reduce, reduced
from lossbridge.spec import PER_SAMPLE, Request

name = "torch"
ops = torch_ops
# How arrays come in.
asarray, cast, concrete, dtype = ops.asarray, ops.cast, ops.concrete, ops.dtype
owns, quiet, shape, widest = ops.owns, ops.quiet, ops.shape, ops.widest

# Whether CUDA tensors go to lossbridge.native.triton_kernels, which have never run on a GPU.
TRITON = os.environ.get("LOSSBRIDGE_TRITON") == "1"

# Without weights these divide by the number of samples that count.
PLAIN_MEANS = ("sum_over_batch_size", "mean")

# Entries from which a compiled program is faster with an operator than with the operations of a rule.
OPERATOR = 1 << 19


# The paths, the fastest first.


def choose(r: Request, *, compiled: bool = False) -> Choice:
    """The first that does not refuse the request. `compiled`: as under torch.compile, which is not at work."""
    compiled = compiled or torch.compiler.is_compiling()
    no_triton = _refuses_triton(r)
    if not no_triton:
        return Choice(PATHS["triton"])
    no_rows = _refuses_rows(r, compiled)
    if not no_rows:
        return Choice(PATHS["rows"], (("triton", no_triton),))
    no_rule = _refuses_rule(r, compiled)
    faster = (("triton", no_triton), ("rows", no_rows))
    if not no_rule:
        return Choice(PATHS["rule"], faster)
    return Choice(PATHS["formula"], (*faster, ("rule", no_rule)))


def chosen(request: Callable[[Array, Array], Request], target: Any, pred: Any, under: str) -> Choice:
    transformed = ops.functorch_is_active() or ops.forward_level() >= 0
    if pred.is_floating_point() and not pred.requires_grad and not transformed:
        pred = pred.detach().requires_grad_()
    return choose(request(target, pred), compiled=bool(under))


def _refuses_triton(r: Request) -> str:
    if not r.pred.is_cuda:
        return "the tensors are not on CUDA"
    if not TRITON:
        return "the environment does not say LOSSBRIDGE_TRITON=1"
    from lossbridge.native import triton_kernels

    return r.in_arrays or triton_kernels.refuses(r)


def _refuses_rows(r: Request, compiled: bool) -> str:
    if r.in_arrays:
        return r.in_arrays
    _, per_class = _per_class(r)
    for x in (r.pred, r.target, r.valid, r.weight, r.normalizer, per_class):
        if x is not None and not x.is_cpu:
            return f"a tensor is on {x.device.type}"
    if rows.MISSING or r.rule.name not in rows.RULES or not r.pred.is_floating_point():
        return rows.refuses(r.rule, ops.dtype(r.pred), "float32")  # a target of other numbers is cast
    if per_class is not None and per_class.ndim and r.axis is None:
        return "an option is no array of one number a class"
    if torch.is_grad_enabled():
        if r.target.requires_grad and r.rule.name not in rows.WITH_TARGET_GRADIENT:
            return f"the native rows for {r.rule.name} write no gradient for the target"
        if per_class is not None and per_class.requires_grad:
            return "a weight needs a gradient"
    return _refuses_operator(r) if compiled else _refuses_ordinary(r, per_class)


def _refuses_operator(r: Request) -> str:
    """Why an operator would not do in what is compiled."""
    compiling, small = torch.compiler.is_compiling(), r.pred.numel() < OPERATOR
    if compiling and torch.compiler.is_exporting():
        return "what torch.export writes runs without lossbridge"
    if compiling and ops.is_transformed():
        return "torch.func or forward mode transforms the call"
    if type(r.pred) not in ops.TYPES or type(r.target) not in ops.TYPES:
        return "a tensor is of a subclass"
    # A size that is a symbol must not be held to this limit.
    return f"an operator pays from {OPERATOR} entries on" if (ops.is_known(small) if compiling else small) else ""


def _refuses_rule(r: Request, compiled: bool) -> str:
    if r.rule.gradients is None:
        return f"no derivative rule is written for {r.rule.name}"
    if r.in_arrays:
        return r.in_arrays
    _, per_class = _per_class(r)
    if per_class is not None and per_class.requires_grad:
        return "a weight needs a gradient"
    if compiled:
        once = not torch.compiler.is_compiling() or ops.differentiated_once()
        return "" if once else "further derivatives may be asked of what is compiled"
    if not torch.is_grad_enabled() or not (r.pred.requires_grad or r.target.requires_grad):
        return "no gradient is needed"
    return _refuses_ordinary(r, per_class)


def _refuses_ordinary(r: Request, per_class: Tensor | None) -> str:
    """What else is at work than reverse-mode differentiation of plain tensors; "" if nothing."""
    if torch.jit.is_tracing() or ops.dispatch_modes():
        return "the call is traced"
    if ops.functorch_is_active():
        return "torch.func transforms the call"
    for x in (r.target, r.pred, r.valid, per_class, r.weight, r.normalizer):
        if x is not None and type(x) not in ops.TYPES:
            return "a tensor is of a subclass"
    if ops.forward_level() >= 0:
        return "forward-mode differentiation is on"
    return ""


def _per_class(r: Request) -> tuple[str, Tensor | None]:
    """The name and value of the option of one number a class that is a tensor: no rule has two."""
    for name in rows.PER_CLASS:
        if isinstance(r.options.get(name), Tensor):
            return name, r.options[name]
    return "", None


def _by_triton(r: Request) -> Tensor:
    from lossbridge.native import triton_kernels

    return triton_kernels.losses(r)


def _ratio_by_rows(r: Request) -> Tensor:
    """With its gradient, unless more than predictions and target is differentiated."""
    plain_mean = r.reduction in PLAIN_MEANS and r.weight is r.normalizer is None
    if torch.compiler.is_compiling():
        return _by_operator(r, True) if plain_mean else reduced(r, _losses_by_rows(r))
    if plain_mean or not (r.reduction in PER_SAMPLE or _divisor_is_differentiated(r)):
        return _by_rows(r)
    return reduced(r, _losses_by_rows(r))


def _divisor_is_differentiated(r: Request) -> bool:
    """It, or the weights."""
    if not torch.is_grad_enabled():
        return False
    by_mass = r.target.requires_grad and by_weight(r) and has_mass(r)
    return by_mass or any(x is not None and x.requires_grad for x in (r.weight, r.normalizer))


def _losses_by_rows(r: Request) -> Tensor:
    if torch.compiler.is_compiling():
        return _by_operator(r, False)
    return _by_rows(r._replace(reduction="none", weight=None, counted=r.valid))


def _by_operator(r: Request, averaged: bool) -> Tensor:
    return torch_operator.computed(r, _per_class(r)[1], averaged)


def _by_rows(r: Request) -> Tensor:
    return torch_rows.computed(*_job(r))


def _job(r: Request) -> tuple[torch_rows.Job, torch_rows.Arrays]:
    pred, target = r.pred, r.target
    if target.ndim == pred.ndim and not target.is_floating_point():
        target = ops.cast(target, r.dtype)
    name, per_class = _per_class(r)
    divides, divisor = rows.divides(r)
    if divides == rows.GIVEN and isinstance(divisor, Tensor):
        r, divisor = r._replace(normalizer=divisor.detach()), divisor.item()
    rest = r
    if torch.is_grad_enabled():  # autograd will hold it, and must hold no array by it
        rest = r._replace(target=None, pred=None, valid=None, counted=None, weight=None)
    if per_class is not None:
        rest = rest._replace(options={option: x for option, x in r.options.items() if option != name})
    dtypes = ops.DTYPES[pred.dtype], ops.DTYPES[target.dtype]
    call = rows.call(rest, pred.shape, dtypes, (0, 0), divides=divides, divisor=divisor)
    job = torch_rows.Job(call, rest, name)
    return job, (pred, target, r.counted, per_class, r.weight)


def value_and_slopes(r: Request) -> tuple[Tensor, Tensor]:
    """The ratio of a request and its gradient for the predictions, which may be written over them."""
    if not _refuses_rows(r, compiled=False):
        job, arrays = _job(r)
        return torch_rows.value(job, arrays, arrays[0]), arrays[0]
    return value_and_grad(lambda z: reduce(r._replace(pred=z)), r.pred)


choose_linear = torch_shards.choose
torch_linear_operator.define(sys.modules[__name__])
shards = torch_shards


def _by_rule(r: Request) -> Tensor:
    target, pred = prepared(ops, r, r.target, r.pred)
    per_class, weight = _per_class(r)
    options = {name: x for name, x in r.options.items() if name != per_class}
    plan = ops.Plan(r.rule, r.axis, options, per_class)
    losses: Tensor = ops.ByRule.apply(target, pred, weight, plan)[0]
    return losses


def _ratio_by_formula(r: Request) -> Tensor:
    return ops.summed_over_devices(reduced(r, _by_formula(r)))


def _by_formula(r: Request) -> Tensor:
    return by_formula(ops, r, ops.with_gradient_alike(r.target), ops.with_gradient_alike(r.pred))


PATHS: Mapping[str, Path] = {
    path.name: path
    for path in (
        Path("triton", _by_triton, "Triton kernels", "Triton kernels"),
        Path(
            "rows",
            _losses_by_rows,
            "the native rows, in one pass",
            "written in the same pass where the losses are summed, else by a second pass",
            _ratio_by_rows,
        ),
        Path(
            "rule", _by_rule, "the formula, over PyTorch's operations", "the derivative rule, over PyTorch's operations"
        ),
        Path(
            "formula",
            _by_formula,
            "the formula, over PyTorch's operations",
            "automatic differentiation, of the formula",
            _ratio_by_formula,
        ),
    )
}


# Running.


def value_and_grad(function: Callable[[Any], Array], x: Any) -> tuple[Array, Any]:
    traced = torch.compiler.is_compiling() or ops.functorch_is_active()
    arrays = x if isinstance(x, tuple) else (x,)
    if not traced and not (torch.is_grad_enabled() and any(one.requires_grad for one in arrays)):
        leaves = tuple(one.detach().requires_grad_() for one in arrays)
        with torch.enable_grad():
            value = function(leaves if isinstance(x, tuple) else leaves[0])
            if value.requires_grad:
                found = torch.autograd.grad(value.sum(), leaves, materialize_grads=True)
            else:  # it does not depend on x
                found = tuple(torch.zeros_like(one) for one in arrays)
        return value.detach(), found if isinstance(x, tuple) else found[0]

    def summed(x: Array) -> tuple[Array, Array]:  # what composes with torch.func, and with an outer graph
        value = function(x)
        return value.sum(), value

    gradient, (_, value) = torch.func.grad_and_value(summed, has_aux=True)(x)
    return value, gradient


def compilers() -> Mapping[str, Callable[[Callable[..., Any]], Callable[..., Any]]]:
    """None without a C++ compiler, which PyTorch's own needs."""

    def compile(function: Callable[..., Any]) -> Callable[..., Any]:
        torch.compiler.reset()  # every function starts cold: compiled ones that share a line of code would add up
        return torch.compile(function, fullgraph=True)

    usual = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    return {"compile": compile} if shutil.which(os.environ.get("CXX", usual)) else {}


def devices() -> list[str]:
    return ["cpu", *(["cuda"] if torch.cuda.is_available() else []), *(["mps"] if torch.mps.is_available() else [])]


def place(x: np.ndarray, dtype: str, device: str) -> Array:
    return torch.tensor(x, dtype=getattr(torch, dtype), device=device)


def to_numpy(x: Array) -> np.ndarray:
    x = torch.as_tensor(x).detach().cpu()
    return (x.float() if x.dtype == torch.bfloat16 else x).numpy()


def scope(dtype: str, device: str) -> AbstractContextManager[object]:
    return nullcontext()


def version() -> str:
    return str(torch.__version__)
