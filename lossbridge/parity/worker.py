"""One backend's worker process: reads a request from standard input, writes a line of JSON for all that happens.

One process a backend, because TensorFlow followed by torch.compile in one process aborts it.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from lossbridge.backend import BACKENDS
from lossbridge.parity.cases import Case, cases
from lossbridge.parity.check import Runner, in_order
from lossbridge.parity.files import case_of


def selected(request: dict[str, Any]) -> list[Case]:
    """The cases asked for."""
    if request["file"]:
        (loss,) = request["losses"]
        return [case_of(Path(request["file"]), loss, request["options"])]
    return [
        case
        for case in cases()
        if (not request["losses"] or case.loss in request["losses"])
        and (not request["dtypes"] or case.dtype in request["dtypes"])
    ]


def main() -> None:
    # Frameworks write to standard output as they like; the lines of JSON keep the original to themselves.
    lines = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    request = json.load(sys.stdin)

    def say(**message: Any) -> None:
        print(json.dumps(message), file=lines, flush=True)

    b = BACKENDS[request["backend"]]()
    if request["device"] not in b.devices():
        say(no_device=f"no device {request['device']}; present: {', '.join(b.devices())}", version=b.version())
        return
    runner = Runner(b, request["device"])
    todo = in_order(selected(request))
    say(version=b.version(), total=len(todo) * len(runner.modes()))
    for case in todo:
        for mode in runner.modes():
            say(start=f"{case.loss}, {case.name}, {mode}")
            say(outcome=runner.outcome(case, mode).as_dict())
    say(done=True)


if __name__ == "__main__":
    main()
