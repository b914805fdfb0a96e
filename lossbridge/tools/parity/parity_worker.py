"""The parity command's worker: the checks that a request asks for."""

from __future__ import annotations

import gc
from functools import partial
from pathlib import Path
from typing import Any

from lossbridge.frameworks.framework import Framework
from lossbridge.tools.parity import peers
from lossbridge.tools.parity.cases import Case
from lossbridge.tools.parity.check import EAGER, Runner, all_cases, in_groups
from lossbridge.tools.parity.files import case_of
from lossbridge.tools.parity.repeats import is_repeated
from lossbridge.tools.processes import Job, serve


def selected(request: dict[str, Any]) -> list[Case]:
    """The file's case, or the built-in cases of these losses and dtypes."""
    if request["file"]:
        (loss,) = request["losses"]
        return [case_of(Path(request["file"]), loss, request["options"])]
    return [
        case
        for case in all_cases()
        if (not request["losses"] or case.loss in request["losses"])
        and (not request["dtypes"] or case.dtype in request["dtypes"])
    ]


def jobs(b: Framework, request: dict[str, Any]) -> tuple[list[Job], dict[str, Any]]:
    """Of every so many functions to compile, one is of this part."""
    mine, of = request["part"]
    if request["peers"]:
        checks: list[Job] = [
            (f"{call.peer.name}, {call.name}", partial(peers.outcome, b, call, request["device"]))
            for call in peers.all_calls()
            if peers.selected(call.peer, request["losses"])
        ]
        return checks[mine::of], {}
    runner = Runner(b, request["device"])
    checks = [
        (f"{case.loss}, {case.name}, {mode}", partial(runner.outcome, case, mode))
        for group in in_groups(selected(request))[mine::of]
        for case in group
        for mode in runner.modes()
        if mode == EAGER or request["everything"] or request["file"] or not is_repeated(case)
    ]
    return checks, {}


if __name__ == "__main__":
    gc.set_threshold(50_000, 20, 100)  # compilers make many objects, and looking through them takes a tenth of the time
    serve(jobs)
