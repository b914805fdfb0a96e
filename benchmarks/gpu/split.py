"""Classes split over two processes, which share the card: every case of the linear cross-entropy, on each of them.

Each process holds the weight of its own classes, a third and two thirds of them. They speak through gloo, since NCCL
gives a card to one process alone.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

from gpu.checks import judged
from gpu.job import Card, Job, Record
from gpu.linear import every_case
from lossbridge import losses
from lossbridge.frameworks import FRAMEWORKS
from lossbridge.tools.parity import check
from lossbridge.tools.parity.cases import Case

PROCESSES, SECONDS = 2, 90


def jobs(card: Card) -> Iterator[Job]:
    yield Job(f"classes split over {PROCESSES} processes", functools.partial(started, card))


def started(card: Card) -> Iterator[Record]:
    """What both processes find."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "gpu.split", card.device, str(Path(folder) / "meeting")]
        processes = [
            subprocess.Popen(
                [*command, str(rank)],
                cwd=Path(__file__).parents[1],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(PROCESSES)
        ]
        try:
            ends = [process.communicate(timeout=SECONDS) for process in processes]
        finally:
            for process in processes:
                process.kill()
    for process, (lines, errors) in zip(processes, ends, strict=True):
        yield from map(json.loads, lines.splitlines())
        if process.returncode:
            raise RuntimeError(errors.strip().splitlines()[-1] if errors.strip() else f"exit {process.returncode}")


def found(case: Case, device: str, rank: int) -> Record:
    """Of the classes of this process, the value and the gradients beside the reference's."""
    from torch import distributed

    b = FRAMEWORKS["torch"]()
    arrays, static = check.placed(b, case, device)
    axis = static.get("classes_axis", 0)
    classes = arrays["weight"].shape[axis]
    start, stop = ((0, classes // 3), (classes // 3, classes))[rank]
    own = {"weight": (slice(start, stop), slice(None))[:: -1 if axis else 1], "bias": slice(start, stop)}
    arrays |= {name: arrays[name][some] for name, some in own.items() if name in arrays}
    exact = check.expected(case)
    of_own = {f"{name}_gradient": getattr(exact, f"{name}_gradient")[own[name]] for name in own if name in arrays}
    both = losses.value_and_grad(losses.linear_crossentropy, of=tuple(check.compared(case)))
    value, gradients = both(**arrays, **static, group=distributed.group.WORLD, classes=(start, stop))
    results = [b.asarray(value), *gradients]
    value, *gradients = map(b.to_numpy, results)
    truth = dataclasses.replace(exact, **of_own)
    outcome = check.compare(case, f"process {rank}", value, gradients, tuple(map(b.dtype, results)), truth)
    return judged(case, outcome)


def main() -> None:
    from torch import distributed

    device, meeting, rank = sys.argv[1], sys.argv[2], int(sys.argv[3])
    store = distributed.FileStore(meeting, PROCESSES)
    distributed.init_process_group(
        "gloo", store=store, rank=rank, world_size=PROCESSES, timeout=timedelta(seconds=SECONDS)
    )
    for case in every_case():
        if case.loss == "linear_crossentropy" and not case.refused:
            print(json.dumps(found(case, device, rank)), flush=True)
    distributed.barrier()  # none leaves while the other still speaks to it
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
