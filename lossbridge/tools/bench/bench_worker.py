"""The bench command's worker: the cells that a request asks for, and facts about the machine."""

from __future__ import annotations

import importlib.metadata
import os
from functools import partial
from typing import Any

from lossbridge.frameworks import FRAMEWORKS
from lossbridge.frameworks.framework import Framework
from lossbridge.tools.bench.cells import Budget, Cell
from lossbridge.tools.bench.measure import outcome
from lossbridge.tools.bench.memory import copy_bandwidth
from lossbridge.tools.processes import Job, serve

LIBRARIES = (*FRAMEWORKS, "scipy", "scikit-learn", "keras", "optax", "liger-kernel", "triton")


def versions() -> dict[str, str]:
    """Of the installed libraries that may compete."""
    found = {}
    for library in LIBRARIES:
        try:
            found[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def jobs(b: Framework, request: dict[str, Any]) -> tuple[list[Job], dict[str, Any]]:
    device, budget = request["device"], Budget(**request["budget"])
    cells = [Cell(**cell) for cell in request["cells"]]
    environment = {name: os.environ.get(name) for name in request["environment"]}
    facts = {
        "versions": versions(),
        "environment": environment,
        "copy_bytes_per_second": copy_bandwidth(b, device),
    }
    return [(cell.name, partial(outcome, b, cell, budget, device)) for cell in cells], facts


if __name__ == "__main__":
    serve(jobs)
