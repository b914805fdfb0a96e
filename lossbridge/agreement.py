"""Processes that share the classes of one layer agree on the call before they compute: none waits for one that raised.

Two small all_gathers: of the shards, without which no process knows the number of classes, and of checksums of what has
to be alike. What one process refuses is refused by all.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from lossbridge import errors
from lossbridge.frameworks.linear_blocks import Linear
from lossbridge.frameworks.shards import Shard
from lossbridge.maths.ops import Array

# The first class of this process and the last + 1, or −1 and −1 where they are not said; and how many the weight has.
Own = Callable[[], tuple[int, int, int]]
Resolve = Callable[[Any], tuple[Linear, Array]]


class Meeting(Protocol):
    """The processes, and what this one brings."""

    rank: int

    def gathered(self, *numbers: int) -> list[list[int]]:
        """Of every process, in the order of the ranks."""
        ...

    def sharded(self, shard: Shard) -> Any:
        """The framework, for this shard."""
        ...

    def differentiated(self, call: Linear) -> tuple[bool, ...]: ...


def resolved(meeting: Meeting, own: Own, given: Mapping[str, Any], resolve: Resolve) -> tuple[Linear, Array]:
    """The call that `resolve` makes for the framework of this process's shard. `given`: the options."""
    said, error = _attempted(own)
    table = meeting.gathered(error is None, *(said or (0, 0, 0)))
    _raise_for_all(error, [bool(row[0]) for row in table])
    shard = shard_of(meeting.rank, [(row[1], row[2], row[3]) for row in table])
    names = (*sorted(given), *ALIKE)

    def checked() -> tuple[tuple[Linear, Array], list[int]]:
        found = resolve(meeting.sharded(shard))
        alike = (*(_of_option(given[name]) for name in sorted(given)), *_what_is_alike(meeting, found[0]))
        return found, [_checksum(x) for x in alike]

    found, error = _attempted(checked)
    table = meeting.gathered(error is None, *(found[1] if found else (0,) * len(names)))
    _raise_for_all(error, [bool(row[0]) for row in table])
    errors.alike(names, [row[1:] for row in table])
    call: tuple[Linear, Array] = found[0]
    return call


def _attempted(function: Callable[[], Any]) -> tuple[Any, Exception | None]:
    try:
        return function(), None
    except Exception as error:
        return None, error


def _raise_for_all(error: Exception | None, right: list[bool]) -> None:
    if error is not None:
        raise error
    errors.other_ranks([rank for rank, is_right in enumerate(right) if not is_right])


def shard_of(rank: int, table: list[tuple[int, int, int]]) -> Shard:
    """This rank's classes. `table`: of each rank the first class and the last + 1, or −1, and how many it has."""
    said = [start >= 0 for start, _, _ in table]
    if not any(said):  # in the order of the ranks
        stops = [sum(size for _, _, size in table[: i + 1]) for i in range(len(table))]
        table = [(stop - size, stop, size) for stop, (_, _, size) in zip(stops, table, strict=True)]
    else:
        errors.said_by_all(said)
    errors.shards([(start, stop) for start, stop, _ in table])
    start, stop, _ = table[rank]
    return Shard(start, stop - start, max(stop for _, stop, _ in table), len(table))


# What the checksums are of besides options, as errors name it.
ALIKE = ("the shape of hidden", "the labels", "the dtypes", "memory", "what needs a gradient")


def _what_is_alike(meeting: Meeting, call: Linear) -> list[Any]:
    """Of ALIKE; labels where they can be read."""
    r = call.request
    ops = r.framework.ops
    labels = ops.concrete(r.target)
    dtypes = ops.dtype(r.pred), ops.dtype(call.weight), call.bias is None
    of_labels = b"" if labels is None else labels.tobytes()
    return [ops.shape(r.pred), of_labels, dtypes, call.memory, meeting.differentiated(call)]


def _of_option(x: Any) -> Any:
    """A number or names; of an array its shape."""
    if isinstance(x, int | float):
        return float(x)
    of_names = isinstance(x, list | tuple) and all(isinstance(name, str) for name in x)
    return tuple(x) if of_names else x if x is None or isinstance(x, str) else tuple(np.shape(x))


def _checksum(x: Any) -> int:
    return zlib.crc32(x if isinstance(x, bytes) else repr(x).encode())
