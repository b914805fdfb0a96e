"""The bench command's worker: the cells of one section, and facts."""

from __future__ import annotations

import importlib.metadata
import os
from functools import partial
from typing import Any

from lossbridge.frameworks import FRAMEWORKS
from lossbridge.frameworks.framework import Framework
from lossbridge.tools.bench import thread_limits
from lossbridge.tools.bench.cells import Budget, Cell
from lossbridge.tools.bench.measure import outcome
from lossbridge.tools.bench.memory import copy_bandwidth
from lossbridge.tools.bench.sections import OWN_HUGE_PAGES
from lossbridge.tools.processes import Job, serve

LIBRARIES = (*FRAMEWORKS, "scipy", "scikit-learn", "keras", "optax", "liger-kernel", "quack-kernels", "triton")


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
    speeds = {str(threads): copy_bandwidth(b, device) for threads in {cell.threads for cell in cells}}
    # Also where the user has set it, and no section.
    environment = {name: os.environ[name] for name in (OWN_HUGE_PAGES,) if name in os.environ}
    facts = {"versions": versions(), "environment": environment, "copy_bytes_per_second": speeds}
    return [(cell.name, partial(outcome, b, cell, budget, device)) for cell in cells], facts


if __name__ == "__main__":
    thread_limits.keep()
    serve(jobs)
