"""`lossbridge doctor`: what is installed, and whether it works. What a report of a fault should show.

A worker of its own for each framework computes the Keras example and asks which paths calls take; the command prints
`lines` and `table`.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from lossbridge import losses
from lossbridge.explanation import explain
from lossbridge.frameworks.framework import Framework
from lossbridge.native import rows
from lossbridge.tools.parity.cases import KERAS_EXAMPLE
from lossbridge.tools.processes import BackendRun, Job, serve
from lossbridge.tools.result_files import versions
from lossbridge.version import __version__

EXAMPLE = "Keras example"
RIGHT = "1.1769392"
# Read by lossbridge or by a framework when it is imported; what a number or a path may depend on.
VARIABLES = (
    *("LOSSBRIDGE_NATIVE", "LOSSBRIDGE_INSTRUCTION_SET", "LOSSBRIDGE_TRITON", "OMP_NUM_THREADS", "KERAS_BACKEND"),
    *("THP_MEM_ALLOC_ENABLE", "TRITON_INTERPRET", "CUDA_VISIBLE_DEVICES", "JAX_PLATFORMS", "JAX_ENABLE_X64"),
    *("XLA_FLAGS", "TF_XLA_FLAGS", "TF_ENABLE_ONEDNN_OPTS", "TORCHDYNAMO_DISABLE"),
)


@dataclass(frozen=True)
class Found:
    """The number of the Keras example, or the path that a call takes."""

    what: str
    words: str = ""
    seconds: float = 0.0
    fault: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def lines() -> Iterator[str]:
    """Versions, machine, and what in the environment may change a result."""
    yield f"lossbridge {__version__}, {rows.status()}"
    yield f"Python {platform.python_version()}, {platform.platform()}, threads: {rows.threads()}"
    yield ", ".join(f"{library} {version}" for library, version in versions().items())
    given = [f"{name}={os.environ[name]}" for name in VARIABLES if name in os.environ]
    if given:
        yield f"environment: {', '.join(given)}"


def table(runs: Sequence[BackendRun[Found]]) -> Table:
    """A row for each framework: its devices, the example, and the path of a large call, eager and compiled."""
    shown = Table()
    for column in ("framework", "devices", EXAMPLE, "seconds", "path of a loss of logits, 4096×1000"):
        shown.add_column(column, justify="right" if column == "seconds" else "left")
    for run in runs:
        example = next((one for one in run.outcomes if one.what == EXAMPLE), None)
        paths = [f"{one.what}: {one.fault or one.words}" for one in run.outcomes if one.what != EXAMPLE]
        cells = [f"{run.backend} {run.version.split('+')[0]}".strip(), ", ".join(run.facts.get("devices", [])), "–", ""]
        if example is not None:
            cells[2:] = example.fault or example.words, f"{example.seconds:.1f}"
        shown.add_row(*map(Text, cells), Text("\n".join(paths) or run.words))
    return shown


def verdict(runs: Sequence[BackendRun[Found]]) -> str:
    ran = [run for run in runs if run.outcomes]
    right = [run.backend for run in ran if run.agreed]
    return f"{len(right)} of {len(ran)} frameworks give {RIGHT}"


def _example(b: Framework, device: str, started: float) -> Found:
    with b.scope("float32", device):
        y_true, y_pred = (b.place(x, "float32", device) for x in (KERAS_EXAMPLE.y_true, KERAS_EXAMPLE.y_pred))
        value, gradient = losses.value_and_grad(losses.categorical_crossentropy)(y_true, y_pred)
        found, finite = f"{float(b.to_numpy(value)):.7f}", bool(np.isfinite(b.to_numpy(gradient)).all())
    seconds = time.perf_counter() - started
    fault = "" if found == RIGHT and finite else f"{found}, and {RIGHT} is right"
    return Found(EXAMPLE, found, seconds, fault)


def _path(b: Framework, device: str, under: str) -> Found:
    with b.scope("float32", device):
        labels, logits = np.zeros(4096, np.int32), b.place(np.zeros((4096, 1000), np.float32), "float32", device)
        target = labels if device == "cpu" else b.place(labels, "int32", device)
        found = explain("sparse_categorical_crossentropy", target, logits, from_logits=True, under=under)
    return Found(under or "eager", found.path)


def _or_fault(what: str, job: Any) -> Found:
    try:
        found: Found = job()
    except Exception as error:
        return Found(what, fault=f"{type(error).__name__}: {error}".splitlines()[0])
    return found


def jobs(b: Framework, request: Mapping[str, Any]) -> tuple[list[Job], dict[str, Any]]:
    device = request["device"]
    todo = {EXAMPLE: partial(_example, b, device, time.perf_counter())}
    todo |= {under or "eager": partial(_path, b, device, under) for under in ("", *b.compilers())}
    return [(what, partial(_or_fault, what, job)) for what, job in todo.items()], {"devices": b.devices()}


if __name__ == "__main__":
    serve(jobs)
