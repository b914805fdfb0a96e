"""One backend's worker process: reads cells from standard input, writes a line of JSON for each. As in parity."""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
from typing import Any

from lossbridge.backend import BACKENDS
from lossbridge.tools.bench.cells import Budget, Cell
from lossbridge.tools.bench.measure import outcome
from lossbridge.tools.bench.memory import copy_bandwidth

LIBRARIES = ("numpy", "scipy", "scikit-learn", "torch", "tensorflow", "jax", "keras", "optax", "liger-kernel", "triton")


def versions() -> dict[str, str]:
    """Of what is installed and may compete."""
    found = {}
    for library in LIBRARIES:
        try:
            found[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def main() -> None:
    # Frameworks write to standard output as they like; the lines of JSON keep the original to themselves.
    lines = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    request = json.load(sys.stdin)

    def say(**message: Any) -> None:
        print(json.dumps(message), file=lines, flush=True)

    if request["backend"] != "numpy":
        os.environ["KERAS_BACKEND"] = request["backend"]  # before Keras is imported
    b, device = BACKENDS[request["backend"]](), request["device"]
    if device not in b.devices():
        say(no_device=f"no device {device}; present: {', '.join(b.devices())}", version=b.version())
        return
    cells = [Cell(**cell) for cell in request["cells"]]
    facts = {"versions": versions(), "copy_bytes_per_second": copy_bandwidth(b, device)}
    say(version=b.version(), total=len(cells), facts=facts)
    for cell in cells:
        say(start=cell.name)
        say(outcome=outcome(b, cell, Budget(**request["budget"]), device).as_dict())
    say(done=True)


if __name__ == "__main__":
    main()
