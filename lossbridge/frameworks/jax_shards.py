"""JAX: classes split over the devices of a mesh axis, inside jax.shard_map. Defines no loss.

The types of shard_map say what is alike on all devices and what varies, and JAX joins derivatives accordingly: of
hidden states that are alike the gradient is a sum over the devices, of those that vary each device's own.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
from jax import lax

from lossbridge.frameworks import jax_linear, jax_ops, linear_blocks, shards
from lossbridge.frameworks.framework import Choice, Path
from lossbridge.frameworks.linear_blocks import Linear
from lossbridge.frameworks.shards import Shard, ShardedOps
from lossbridge.maths.ops import Array
from lossbridge.spec import Request


class Axis(NamedTuple):
    """The devices along a mesh axis."""

    name: Any

    def largest(self, x: Array, axis: int, labels: Array | None) -> tuple[Array, None]:
        return lax.pmax(jax_ops.max(lax.stop_gradient(x), axis), self.name), None

    def summed(self, x: Array, beside: bool) -> Array:
        found = lax.psum(x, self.name)
        # Cast while it has one number a row: beside logits JAX would, and add up a derivative of as many numbers.
        return lax.pcast(found, self.name, to="varying") if beside else found

    def part(self, x: Array, shard: Shard) -> Array:
        return lax.dynamic_slice_in_dim(x, shard.start, shard.size, 1)


class Sharded(NamedTuple):
    """JAX, for requests whose predictions are the logits of this device's classes. A static argument of programs."""

    devices: Axis
    shard: Shard  # whose start is 0 on all
    name: str = "jax"

    @property
    def here(self) -> Shard:
        return self.shard._replace(start=lax.axis_index(self.devices.name) * self.shard.size)

    @property
    def ops(self) -> Any:
        return ShardedOps(jax_ops, self.devices, self.here)

    def choose_linear(self, call: Linear, under: str = "") -> Choice:
        axis, r = self.devices.name, call.request
        if not self._varies(call.weight):
            raise ValueError(
                f"weight is alike along the mesh axis {axis!r}, and group= takes shards; split its classes with "
                "in_specs= of jax.shard_map, and leave check_vma=True"
            )
        if any(x is not None and self._varies(x) for x in (r.target, r.weight, r.valid, r.normalizer)):
            raise ValueError(
                f"labels, weights of samples, mask or normalizer differ along the mesh axis {axis!r} of the classes; "
                "in_specs= of jax.shard_map gives each device all of them"
            )
        return linear_blocks.over_devices(jax_linear.choose(call))

    def choose(self, r: Request) -> Choice:
        return Choice(Path("shards", self._losses, "", ""))

    def _losses(self, r: Request) -> Array:
        found = shards.losses_and_residuals(jax_ops, self.devices, self.here, r)[1]
        # Each device has computed the same, of sums beside its logits: what flows back is shared among them.
        return lax.pmean(found, self.devices.name) if self._varies(found) else found

    def _varies(self, x: Array) -> bool:
        """Whether its type says that it may differ along the axis."""
        axis = self.devices.name
        return set((axis,) if isinstance(axis, str) else axis) <= jax.typeof(x).mat.varying

    def spread(self, hidden: Array) -> Array:
        return hidden

    def laid(self, found: Array, hidden: Any) -> Array:
        return found

    def like_all_classes(self, weight: Array, classes_axis: int) -> Any:
        """The whole weight's shape and dtype."""
        units, classes = weight.shape[1 - classes_axis], self.shard.classes
        return jax.ShapeDtypeStruct((classes, units) if classes_axis == 0 else (units, classes), weight.dtype)


def local(call: tuple[Any, ...]) -> tuple[Any, ...]:
    """The call as it is: XLA splits what arrays say of their devices."""
    return call


def meeting(split: tuple[Any, Any, Any], hidden: Array) -> Meeting:
    group, classes, reduce_hidden = split
    if classes is not None:
        raise ValueError("on JAX the devices hold equally many classes, in the order of their axis; leave out classes=")
    if reduce_hidden is False:
        raise ValueError(
            "on JAX the type of hidden says whether its gradient is added up: leave out reduce_hidden=, and pass "
            'jax.lax.pcast(hidden, axis, to="varying") for each device\'s own'
        )
    try:
        return Meeting(Axis(group), int(lax.axis_size(group)))
    except (NameError, TypeError, ValueError):
        raise ValueError(
            f"group is {group!r}, and no mesh axis of this name is at work; call the loss inside jax.shard_map"
        ) from None


class Meeting(NamedTuple):
    """See `lossbridge.agreement`. One program says the same on every device."""

    devices: Axis
    size: int
    rank: int = 0

    def gathered(self, *numbers: int) -> list[list[int]]:
        return [list(numbers)] * self.size

    def sharded(self, shard: Shard) -> Sharded:
        return Sharded(self.devices, shard)

    def differentiated(self, call: Linear) -> tuple[bool, ...]:
        return ()
