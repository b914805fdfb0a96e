"""Starts a worker process for each backend, listens to all of them, and survives those that crash or hang."""

from __future__ import annotations

import importlib.util
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, Any, Generic, Literal, Protocol, TypeVar

Status = Literal["ran", "missing", "no device", "crashed", "hung"]


class Reported(Protocol):
    """What a worker says of one thing that it was asked to do; `fault` says what is wrong, or is empty."""

    @property
    def fault(self) -> str: ...


Outcome = TypeVar("Outcome", bound=Reported)


@dataclass
class BackendRun(Generic[Outcome]):
    """What a backend's worker did. `words` says why it did not finish, `facts` what it said of itself."""

    backend: str
    status: Status
    version: str = ""
    words: str = ""
    outcomes: list[Outcome] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def agreed(self) -> bool:
        return self.status == "ran" and bool(self.outcomes) and not self.faults

    @property
    def faults(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.fault]


def installed(backend: str) -> bool:
    """Whether the framework can be found; does not import it."""
    return importlib.util.find_spec(backend) is not None


def run_workers(
    backends: list[str],
    request: dict[str, Any],
    *,
    worker: str,
    outcome: Callable[[dict[str, Any]], Outcome],
    timeout: float,
    on_total: Callable[[str, int], None] = lambda backend, total: None,
    on_outcome: Callable[[str, Outcome], None] = lambda backend, outcome: None,
) -> list[BackendRun[Outcome]]:
    """Runs the request on each backend, side by side. A worker silent for `timeout` seconds is stopped as hung.

    `worker`: the module that is run; `outcome` makes one of what it says.
    """
    messages: queue.Queue[tuple[str, dict[str, Any] | None]] = queue.Queue()
    runs: dict[str, BackendRun[Outcome]] = {name: BackendRun(name, "crashed") for name in backends}
    workers = {}
    for name in backends:
        if installed(name):
            workers[name] = _Worker(worker, name, {**request, "backend": name}, messages)
        else:
            runs[name] = BackendRun(name, "missing", words=f"not installed: pip install 'lossbridge[{name}]'")

    try:
        while workers:
            try:
                name, message = messages.get(timeout=1.0)
            except queue.Empty:
                name, message = "", {}
            heard = workers.get(name)
            if heard is not None:
                run = runs[name]
                heard.heard = time.monotonic()
                if message is None:
                    del workers[name]
                    _finish(run, heard)
                elif "outcome" in message:
                    run.outcomes.append(outcome(message["outcome"]))
                    on_outcome(name, run.outcomes[-1])
                elif "start" in message:
                    heard.doing = message["start"]
                elif "total" in message:
                    run.version, run.facts = message["version"], message.get("facts", {})
                    on_total(name, message["total"])
                elif "no_device" in message:
                    run.version, run.status, run.words = message["version"], "no device", message["no_device"]
                elif "done" in message:
                    run.status = "ran"
            for name, silent in list(workers.items()):
                if time.monotonic() - silent.heard > timeout:
                    del workers[name]
                    silent.process.kill()
                    runs[name].status = "hung"
                    runs[name].words = f"silent for {timeout:g} s in: {silent.doing}. {silent.close()}".strip()
    finally:
        for left in workers.values():
            left.process.kill()
            left.close()
    return list(runs.values())


def _finish(run: BackendRun[Any], worker: _Worker) -> None:
    code = worker.process.wait()
    words = worker.close()
    if run.status == "crashed" or (code and run.status == "ran"):
        run.status = "crashed"
        run.words = f"exit status {code} in: {worker.doing}. {words}".strip()


class _Worker:
    """A process, the thread that reads it, and when it was last heard."""

    def __init__(
        self,
        module: str,
        backend: str,
        request: dict[str, Any],
        messages: queue.Queue[tuple[str, dict[str, Any] | None]],
    ) -> None:
        self.backend = backend
        self.doing = "start"
        self.heard = time.monotonic()
        self.errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed by close())
        environment = {"TF_CPP_MIN_LOG_LEVEL": "3"} | dict(os.environ)
        self.process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env=environment,
            text=True,
            encoding="utf-8",
        )
        self.listener = threading.Thread(target=self._listen, args=(request, messages), daemon=True)
        self.listener.start()

    def _listen(self, request: dict[str, Any], messages: queue.Queue[tuple[str, dict[str, Any] | None]]) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            with self.process.stdin as stdin:
                json.dump(request, stdin)
        except BrokenPipeError:
            pass  # it died at once; its last words tell why
        with self.process.stdout as lines:
            for line in lines:
                try:
                    messages.put((self.backend, json.loads(line)))
                except json.JSONDecodeError:  # cut off in the middle of a line
                    break
        messages.put((self.backend, None))

    def close(self) -> str:
        """Waits for the end of a process that has ended or been killed; the last line of its standard error."""
        self.process.wait()
        self.listener.join()
        with self.errors as errors:
            errors.seek(0)
            lines = errors.read().decode("utf-8", errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else ""
