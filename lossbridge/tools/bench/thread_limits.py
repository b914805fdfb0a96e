"""How many threads a worker's calls use: by its environment, and by the cores that it may run on."""

from __future__ import annotations

import os
from collections.abc import Mapping

_COUNT = "LOSSBRIDGE_BENCH_THREADS"
_VARIABLES = (
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"),
    *("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", _COUNT),
)


def environment(threads: int) -> Mapping[str, str]:
    """For the worker's process, before it imports anything."""
    return dict.fromkeys(_VARIABLES, str(threads))


def keep() -> None:
    """In the worker. The cores bind what reads no variable: XLA's threads, NumPy's paths, threads that spin.

    Which ones depends on the process: two runs at a time would else share a core, and leave the others idle.
    """
    threads = int(os.environ.get(_COUNT, 0))
    if threads and hasattr(os, "sched_setaffinity"):
        allowed = sorted(os.sched_getaffinity(0))
        first = os.getpid() % len(allowed)
        os.sched_setaffinity(0, (allowed[first:] + allowed)[:threads])


def cores() -> int:
    """That this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
