"""PyTorch: classes split over the processes of a group. Defines no loss.

The gradients of blocks are those of the rule, and need no derivative of what joins the processes. Where autograd
differentiates (second derivatives, weights of samples, options), an array is either one for all processes, as what the
caller gives and the losses are, or each process has its own, which it may use in any way. Four functions lead from
one kind to the other, with each other as their transposes; so derivatives of any order are right in reverse mode.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, distributed

from lossbridge.frameworks import linear_blocks, shards, torch_linear
from lossbridge.frameworks import torch_ops as ops
from lossbridge.frameworks.framework import Choice, Path
from lossbridge.frameworks.linear_blocks import Layer, Linear
from lossbridge.frameworks.shards import Shard, ShardedOps
from lossbridge.maths.ops import Array
from lossbridge.reduction import neutralise, reduced
from lossbridge.spec import PER_SAMPLE, Request


class Group(NamedTuple):
    """The processes that share the classes."""

    group: Any  # torch.distributed's

    def largest(self, x: Tensor, axis: int, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The label's logit is the largest of what the processes know of it: one of them has it, the others −∞."""
        x = x.detach()
        found = [x.amax(axis) if x.shape[axis] else x.new_full((len(x),), -math.inf)]
        comes_along = labels is not None and not torch.is_grad_enabled()
        if comes_along:
            found.append(_own_logits(x, labels))
        both = torch.stack(found)
        # Of NaN and another number a process group may give either. The losses of ∞ are NaN too.
        both = torch.where(both.isnan(), math.inf, both)
        distributed.all_reduce(both, distributed.ReduceOp.MAX, self.group)
        return both[0].unsqueeze(axis), both[1] if comes_along else None

    def summed(self, x: Tensor, beside: bool) -> Tensor:
        found: Tensor = Summed.apply(x, self.group)
        return found

    def part(self, x: Tensor, shard: Shard) -> Tensor:
        return x[:, shard.start : shard.start + shard.size]


def _own_logits(x: Tensor, labels: Tensor) -> Tensor:
    """x of the labels, −∞ where the label is no class of this shard."""
    if not x.shape[1]:
        return x.new_full((len(x),), -math.inf)
    inside = (labels >= 0) & (labels < x.shape[1])
    index = torch.where(inside, labels, 0).long()
    return torch.where(inside, x.gather(1, index.unsqueeze(1)).squeeze(1), -math.inf)


def _sum(x: Tensor, group: Any) -> Tensor:
    x = x.clone(memory_format=torch.contiguous_format)
    distributed.all_reduce(x, group=group)
    return x


class Summed(torch.autograd.Function):
    """The sum of the processes' arrays, for each to use. It is its own transpose."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return _sum(x, group)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        return Summed.apply(upstream, ctx.group), None


class Spread(torch.autograd.Function):
    """One array, for each process to use."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        return Joined.apply(upstream, ctx.group), None


class Joined(torch.autograd.Function):
    """One array, the sum of the processes'."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return _sum(x, group)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        return Spread.apply(upstream, ctx.group), None


class Agreed(torch.autograd.Function):
    """One array, which each process has computed: what flows back is shared among them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        share = upstream / distributed.get_world_size(ctx.group)
        return Spread.apply(share, ctx.group), None


class Sharded(NamedTuple):
    """PyTorch, for requests whose predictions are the logits of this process's classes."""

    devices: Group
    shard: Shard
    joins_hidden: bool  # whether the gradient for hidden states is added up over the processes
    name: str = "torch"

    @property
    def ops(self) -> Any:
        return ShardedOps(ops, self.devices, self.shard)

    def choose_linear(self, call: Linear, under: str = "") -> Choice:
        if under:
            words = f"group= is not compiled: under {under} call torch.compiler.disable(the loss); leave out under="
            raise NotImplementedError(words)
        return linear_blocks.over_devices(torch_linear.choose(call, under))

    def choose(self, r: Request) -> Choice:
        return Choice(Path("shards", self._losses, "", ""))

    def _losses(self, r: Request) -> Array:
        group = self.devices.group
        options = {name: Spread.apply(x, group) if isinstance(x, Tensor) else x for name, x in r.options.items()}
        losses = shards.losses_and_residuals(ops, self.devices, self.shard, r._replace(options=options))[1]
        return Agreed.apply(losses, group)

    def value_and_slopes(self, r: Request) -> tuple[Tensor, Tensor]:
        """The ratio of a request and its gradient for this process's logits."""
        sharded, losses, residuals = shards.losses_and_residuals(ops, self.devices, self.shard, r)
        with torch.enable_grad():
            losses = losses.requires_grad_()
            value = reduced(r, losses)
            (upstream,) = torch.autograd.grad(value, losses)
        options = shards.own_options(self.devices, self.shard, r)
        assert r.rule.gradients is not None
        slopes = r.rule.gradients(sharded, r.target, r.pred, 1, residuals, (False, True), **options)[1]
        return value.detach(), neutralise(ops, slopes * upstream.unsqueeze(1), r.valid, 1, 0.0)

    def value_and_grad(self, function: Callable[[Tensor], Tensor], z: Tensor) -> tuple[Tensor, Tensor]:
        """Of what is the same on all processes, for this process's logits."""
        z = z.detach().requires_grad_()
        with torch.enable_grad():
            value = function(z)
            (gradient,) = torch.autograd.grad(value, z)
        return value.detach(), gradient

    def spread(self, hidden: Tensor) -> Tensor:
        """Hidden states, for the logits of this process's classes."""
        found: Tensor = Spread.apply(hidden, self.devices.group) if self.joins_hidden else hidden
        return found

    def like_all_classes(self, weight: Tensor, classes_axis: int) -> Tensor:
        """A tensor of the whole weight's shape, device and dtype, for checks of shapes; it takes no memory."""
        units = weight.shape[1 - classes_axis]
        classes = self.shard.classes
        return weight.new_empty(()).expand((classes, units) if classes_axis == 0 else (units, classes))

    def laid(self, found: Tensor, hidden: Any) -> Any:
        """The result, as a DTensor where hidden states are one."""
        return ops.replicated(found, hidden.device_mesh) if ops.is_distributed(hidden) else found

    def join(self, of_hidden: Tensor) -> None:
        """Adds up the gradients for hidden states."""
        if self.joins_hidden:
            distributed.all_reduce(of_hidden, group=self.devices.group)


# DTensors, whose placements say how the classes are split.


def local(call: tuple[Any, ...]) -> tuple[Any, ...]:
    """The call of this process's shard, where the weight's placements split the classes, and all else is on each.

    Of labels, hidden states, layer, options, and group, classes and reduce_hidden.
    """
    labels, hidden, (weight, bias, classes_axis), given, split = call
    if not (_splits_classes(weight, classes_axis) and all(map(_is_whole, (labels, hidden, *given.values())))):
        return call
    from torch.distributed.tensor import Replicate, Shard

    if split[0] is not None or split[1] is not None:
        raise ValueError("group= and classes= are read from the placements of weight, a DTensor; leave them out")
    mesh, along = weight.device_mesh, next(i for i, placed in enumerate(weight.placements) if placed.is_shard())
    if bias is not None:
        if not ops.is_distributed(bias):
            raise TypeError("bias is no DTensor, and weight is one; distribute it over the same mesh with Shard(0)")
        bias = bias.redistribute(mesh, [Shard(0) if i == along else Replicate() for i in range(mesh.ndim)]).to_local()
    given = {name: _own(x) for name, x in given.items()}
    split = mesh.get_group(along), None, split[2]
    return _own(labels), _own(hidden), (weight.to_local(), bias, classes_axis), given, split


def _splits_classes(weight: Any, classes_axis: Any) -> bool:
    """Along one axis of its mesh, and nothing else."""
    if not ops.is_distributed(weight):
        return False
    split = [placed for placed in weight.placements if not placed.is_replicate()]
    return len(split) == 1 and bool(split[0].is_shard(classes_axis))


def _is_whole(x: Any) -> bool:
    """Whether this process has all of it."""
    return not ops.is_distributed(x) or all(placed.is_replicate() for placed in x.placements)


def _own(x: Any) -> Any:
    return x.to_local() if ops.is_distributed(x) else x


# Hidden states as DTensors, whose placements split the rows.


def choose(call: Linear, under: str = "") -> Choice:
    """The path of a call; where DTensors split its rows over processes, that of this process's rows."""
    if under or ops.is_traced() or ops.is_transformed() or not _splits_rows(call):
        return torch_linear.choose(call, under)
    own = _own_rows(call)
    path, why_not = linear_blocks.over_devices(torch_linear.choose(own), linear_blocks.OVER_ROWS)
    compute = path.losses
    return Choice(path._replace(losses=lambda call: _of_all_rows(call.request, compute(own))), why_not)


def _splits_rows(call: Linear) -> bool:
    """Along one axis of the mesh of hidden states, and all processes have the layers."""
    hidden = call.request.pred
    if not ops.is_distributed(hidden):
        return False
    split = [placed for placed in hidden.placements if not placed.is_replicate()]
    layers = (call.weight, call.bias, *(call.teacher or ()))
    return len(split) == 1 and bool(split[0].is_shard(0)) and all(x is None or _is_whole(x) for x in layers)


def _own_rows(call: Linear) -> Linear:
    """The call of this process's rows, whose results add up to those of all: what a mean divides by is known."""
    from torch.distributed.tensor import Replicate

    r = call.request
    mesh, placements = r.pred.device_mesh, r.pred.placements
    partial, replicated = _partial(r), [Replicate()] * mesh.ndim

    def rows(x: Any) -> Any:
        return None if x is None else x.redistribute(mesh, placements).to_local()

    def whole(x: Any) -> Any:
        """What all rows share gets a gradient from those of each process."""
        if not ops.is_distributed(x):
            return x
        return x.redistribute(mesh, replicated).to_local(grad_placements=partial)

    teacher = None if call.teacher is None else Layer(*map(whole, call.teacher))
    request = r._replace(
        target=rows(r.target),
        pred=rows(r.pred),
        weight=rows(r.weight),
        counted=rows(r.counted),
        valid=rows(r.valid),
        normalizer=whole(r.normalizer),
        options={name: whole(x) for name, x in r.options.items()},
    )
    return call._replace(request=request, weight=whole(call.weight), bias=whole(call.bias), teacher=teacher)


def _partial(r: Request) -> list[Any]:
    """The placements of what is a sum over the processes' rows."""
    from torch.distributed.tensor import Partial, Replicate

    return [Partial() if placed.is_shard() else Replicate() for placed in r.pred.placements]


def _of_all_rows(r: Request, found: Tensor) -> Any:
    """The losses of all rows, split as these are, or their sum on every process."""
    from torch.distributed.tensor import DTensor

    mesh = r.pred.device_mesh
    if r.reduction not in PER_SAMPLE:
        return ops.summed_over_devices(DTensor.from_local(found, mesh, _partial(r), run_check=False))
    shape = torch.Size((len(r.pred), *found.shape[1:]))
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(found, mesh, r.pred.placements, run_check=False, shape=shape, stride=stride)


# How the processes meet before they compute.


def meeting(split: tuple[Any, Any, Any], hidden: Tensor) -> Meeting:
    group, _, reduce_hidden = split
    if ops.is_traced():
        raise NotImplementedError("group= is not traced; under torch.compile call torch.compiler.disable(the loss)")
    if ops.is_transformed():
        raise NotImplementedError("group= has neither torch.func nor forward mode; use backward() or torch.autograd")
    if not (distributed.is_available() and isinstance(group, distributed.ProcessGroup)):
        raise TypeError(f"group is {group!r}; pass a torch.distributed.ProcessGroup that this process belongs to")
    return Meeting(group, reduce_hidden, hidden)


# Of each group, by this process's numbers those of all: off the CPU alone.
_IN_ORDER: WeakKeyDictionary[Any, dict[tuple[int, ...], list[list[int]]]] = WeakKeyDictionary()


class Meeting(NamedTuple):
    """See `lossbridge.agreement`."""

    group: Any
    joins_hidden: bool
    like: Tensor  # on the device of the group

    @property
    def rank(self) -> int:
        return int(distributed.get_rank(self.group))

    def gathered(self, *numbers: int) -> list[list[int]]:
        """Off the CPU reading them waits for the device: what was in order once is not asked again."""
        known = _IN_ORDER.setdefault(self.group, {})
        if numbers in known:
            return known[numbers]
        own = torch.tensor(numbers, dtype=torch.int64, device=self.like.device)
        found = [torch.empty_like(own) for _ in range(distributed.get_world_size(self.group))]
        distributed.all_gather(found, own, self.group)
        table = [x.tolist() for x in found]
        if not self.like.is_cpu and all(row[0] for row in table):
            known[numbers] = table
        return table

    def sharded(self, shard: Shard) -> Sharded:
        return Sharded(Group(self.group), shard, self.joins_hidden)

    def differentiated(self, call: Linear) -> tuple[bool, ...]:
        r = call.request
        arrays = (r.pred, call.weight, call.bias, r.weight, r.normalizer, *r.options.values())
        recorded = torch.is_grad_enabled()
        return recorded, *(isinstance(x, Tensor) and x.requires_grad for x in arrays), self.joins_hidden
