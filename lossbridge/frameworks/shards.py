"""Classes split over devices: the arithmetic with which a formula of all classes runs on the logits of one shard.

Each device holds the logits of its own classes. `ShardedOps` are the operations of a framework, of which those along
the classes are finished over the devices: a maximum or a sum of the shard, then the maximum or the sum of what the
devices found. So no formula stands here, and a rule of `lossbridge.maths` gives on every device the losses of all
classes, and the gradient for the device's own logits. No framework.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from lossbridge.frameworks.framework import prepared
from lossbridge.maths.elementary import in_range
from lossbridge.maths.ops import Array, Residuals
from lossbridge.spec import Request


class Shard(NamedTuple):
    """The classes of this device."""

    start: Any  # the first; traced in JAX
    size: int
    classes: int  # of all devices
    devices: int


class Devices(Protocol):
    """Those that share the classes, and what they do together. Every result is the same on all."""

    def largest(self, x: Array, axis: int, labels: Array | None) -> tuple[Array, Array | None]:
        """The maximum along the classes, which have size 1 in the result; and x of the labels, counted from the shard's
        first class, if it costs no more: else, and without labels, None."""
        ...

    def summed(self, x: Array, beside: bool) -> Array:
        """The sum of the devices' arrays, each of which is differentiated. `beside`: for use beside logits."""
        ...

    def part(self, x: Array, shard: Shard) -> Array:
        """Of one number a class, (1, C), those of this device's classes."""
        ...


class ShardedOps:
    """A framework's operations, of which those along the classes see all. Two collectives of a number a row for losses
    without smoothing: the maximum, with which the label's logit comes along, and the sum of the others."""

    def __init__(self, ops: Any, devices: Devices, shard: Shard, r: Request | None = None) -> None:
        """`r`: whose rule is computed."""
        self._ops, self._devices, self._shard = ops, devices, shard
        self._of_label: tuple[Array, Array] | None = None  # logits, and those of the labels
        self._largest: tuple[Array, Array] | None = None  # logits, and their maxima
        self._labels = self._per_class = None
        if r is not None:
            self._labels = in_range(self, r.target, r.pred, 1)[0]
            self._per_class = r.options.get("class_weight")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ops, name)

    def size(self, x: Array, axis: int, like: Array | None = None) -> int:
        return self._shard.classes

    def max(self, x: Array, axis: int) -> Array:
        if self._largest is None or self._largest[0] is not x:
            labels = None if self._labels is None else self._labels - self._shard.start
            m, of_label = self._devices.largest(x, axis, labels)
            self._largest = x, m
            self._of_label = None if of_label is None else (x, of_label)
        return self._largest[1]

    def sum(self, x: Array, axis: int | None = None, keepdims: bool = False) -> Array:
        found = self._ops.sum(x, axis, keepdims)
        return found if axis is None else self._devices.summed(found, keepdims)

    def take(self, x: Array, labels: Array, axis: int) -> Array:
        if self._of_label is not None and self._of_label[0] is x:
            return self._of_label[1]
        return self.sum(self._ops.where(self.one_hot(labels, x, axis), x, 0.0), axis)

    def put(self, x: Array, labels: Array, values: Array, axis: int) -> Array:
        return self._ops.where(self.one_hot(labels, x, axis), values, x)

    def sum_but(self, x: Array, labels: Array, axis: int) -> Array:
        return self.sum(self._ops.where(self.one_hot(labels, x, axis), 0.0, x), axis)

    def lookup(self, values: Array, labels: Array) -> Array:
        return self._ops.lookup(values if self._per_class is None else self._per_class, labels)

    def one_hot(self, labels: Array, like: Array, axis: int) -> Array:
        return self._ops.one_hot(labels - self._shard.start, like, axis)

    def argmax(self, x: Array, axis: int) -> Array:
        """The first class of the maximum, as a float; 0 in rows with a NaN."""
        ops, m, classes = self._ops, self.max(x, axis), self._shard.classes
        before = classes * (m != m)  # an array of zeros
        if self._shard.size:
            largest = ops.cast(x == m, ops.dtype(x))
            index = ops.expand_dims(ops.cast(ops.argmax(largest, axis), ops.dtype(x)), axis) + self._shard.start
            before = ops.where(ops.max(largest, axis) > 0, classes - index, 0.0)
        found = classes - self._devices.largest(ops.cast(before, ops.dtype(x)), axis, None)[0]
        return ops.squeeze(ops.where(found < classes, found, 0.0), axis)


def losses_and_residuals(ops: Any, devices: Devices, shard: Shard, r: Request) -> tuple[ShardedOps, Array, Residuals]:
    """The losses of a request whose predictions are this device's logits, and what their gradients need."""
    target, z = prepared(ops, r, r.target, r.pred)
    sharded = ShardedOps(ops, devices, shard, r._replace(pred=z))
    return sharded, *r.rule.value(sharded, target, z, 1, **own_options(devices, shard, r))


def own_options(devices: Devices, shard: Shard, r: Request) -> dict[str, Any]:
    """The rule's options, with the class weights of this device's classes."""
    per_class = r.options.get("class_weight")
    return dict(r.options) if per_class is None else {**r.options, "class_weight": devices.part(per_class, shard)}
