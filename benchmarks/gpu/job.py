"""What all sections share: what they know of the run, jobs, records, and which path a call took. No loss, no clock."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

# One thing that was found: its name, what it is of, and `status`, which is pass or fail of a check, measured of a time,
# skipped where there was nothing to run; `fault` says why it is none of the good ones. None says nothing.
Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Card:
    """The device, and what the run asks of it. `huge`: arrays of more than 2³¹ elements too."""

    device: str
    rehearsal: bool = False
    triton: bool = False
    huge: bool = False


@dataclasses.dataclass(frozen=True)
class Job:
    """What is lost as a whole where something crashes. Its records may name themselves more closely."""

    name: str
    run: Callable[[], Iterable[Record]]
    dtype: str | None = None
    shape: tuple[int, ...] | None = None

    @property
    def about(self) -> Record:
        return {"name": self.name, "dtype": self.dtype, "shape": self.shape and list(self.shape)}


def words_of(error: BaseException) -> str:
    """The first and the last line: Triton's compiler begins with the place and ends with the reason."""
    lines = [line.strip() for line in f"{type(error).__name__}: {error}".splitlines() if line.strip()]
    return " … ".join([lines[0], *lines[1:][-1:]])[:600]


class Taken:
    """How many calls the Triton kernels computed."""

    calls = 0


@contextmanager
def kernels_taken(watch: bool) -> Iterator[Taken]:
    """Counts them: a result that is right by the formula says nothing of a kernel. Not for what is compiled."""
    taken = Taken()
    if not watch:
        yield taken
        return
    from lossbridge.frameworks import on_torch

    own = on_torch.PATHS

    def counting(request: Any) -> Any:
        taken.calls += 1
        return own["triton"].losses(request)

    on_torch.PATHS = {**own, "triton": own["triton"]._replace(losses=counting)}
    try:
        yield taken
    finally:
        on_torch.PATHS = own


def with_kernel(record: Record, taken: Taken) -> Record:
    """For a call that is meant for a kernel: a fault if none took it."""
    if taken.calls:
        return record | {"kernel": True}
    fault = "; ".join(filter(None, [record.get("fault"), "no Triton kernel took it"]))
    return record | {"kernel": False, "status": "fail", "fault": fault}


def torch_inputs(card: Card, target: str, shape: tuple[int, int], dtype: str) -> tuple[Any, Any]:
    """A random target of this kind (see lossbridge.tools.bench.cells) and predictions, made on the device."""
    import torch

    of = {"device": card.device, "dtype": getattr(torch, dtype)}
    pred = torch.randn(shape, **of)
    if target == "labels":
        return torch.randint(shape[1], shape[:1], device=card.device), pred
    if target == "outcomes":
        return torch.rand(shape, **of), pred
    other = torch.randn(shape, **of)
    return (torch.softmax(other, 1) if target == "distributions" else other), pred
