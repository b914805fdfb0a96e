"""One backend's worker process: reads a request from standard input, writes a line of JSON for all that happens.

One process a backend, because TensorFlow followed by torch.compile in one process aborts it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from lossbridge.backend import BACKENDS, Backend
from lossbridge.tools.parity import peers
from lossbridge.tools.parity.cases import Case, cases
from lossbridge.tools.parity.check import Outcome, Runner, in_order
from lossbridge.tools.parity.files import case_of


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


def jobs(b: Backend, request: dict[str, Any]) -> list[tuple[str, Callable[[], Outcome]]]:
    """What is to be checked: words for it, and what checks it."""
    if request["peers"]:
        return [
            (f"{call.peer.name}, {call.name}", partial(peers.outcome, b, call, request["device"]))
            for call in peers.all_calls()
            if peers.wanted(call.peer, request["losses"])
        ]
    runner = Runner(b, request["device"])
    return [
        (f"{case.loss}, {case.name}, {mode}", partial(runner.outcome, case, mode))
        for case in in_order(selected(request))
        for mode in runner.modes()
    ]


def main() -> None:
    # Frameworks write to standard output as they like; the lines of JSON keep the original to themselves.
    lines = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    request = json.load(sys.stdin)

    def say(**message: Any) -> None:
        print(json.dumps(message), file=lines, flush=True)

    if request["peers"]:
        os.environ["KERAS_BACKEND"] = peers.keras_backend(request["backend"])  # before Keras is imported
    b = BACKENDS[request["backend"]]()
    if request["device"] not in b.devices():
        say(no_device=f"no device {request['device']}; present: {', '.join(b.devices())}", version=b.version())
        return
    todo = jobs(b, request)
    say(version=b.version(), total=len(todo))
    for words, check in todo:
        say(start=words)
        say(outcome=check().as_dict())
    say(done=True)


if __name__ == "__main__":
    main()
