"""Worker processes, one or more per backend, because torch.compile aborts a process that has imported TensorFlow.

`run_workers` starts them, and survives those that crash or hang. `serve` is a worker's main program: it reads a
request from standard input and writes one line of JSON per event. What is checked or measured is not known here.
"""

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
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import IO, Any, Generic, Literal, Protocol, TypeVar

from lossbridge.frameworks import FRAMEWORKS
from lossbridge.frameworks.framework import Framework

Status = Literal["ran", "missing", "no device", "crashed", "hung"]
Part = tuple[str, int]  # a backend, and which of its workers


class Reported(Protocol):
    """The outcome of one job. `fault` says what is wrong, or is empty."""

    @property
    def fault(self) -> str: ...

    def as_dict(self) -> dict[str, Any]: ...


Outcome = TypeVar("Outcome", bound=Reported)


@dataclass
class BackendRun(Generic[Outcome]):
    """What a backend's worker did. `words`: why it did not finish; `facts`: what it reported before the first job."""

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

    def as_dict(self) -> dict[str, Any]:
        """Without outcomes and facts, whose names differ from command to command."""
        return {"backend": self.backend, "version": self.version, "status": self.status, "words": self.words}

    def absence(self, named: Iterable[str]) -> list[str]:
        """One line that says why it did not run; none if it ran. `named`: the backends asked for by name."""
        if self.status == "ran":
            return []
        asked = " (asked for)" if self.backend in named and self.status == "missing" else ""
        return [f"{self.backend}: {self.status}{asked}: {self.words}"]


def installed(library: str) -> bool:
    """Whether the library can be found; does not import it."""
    return importlib.util.find_spec(library) is not None


def run_workers(
    backends: Mapping[str, int],
    request: dict[str, Any],
    *,
    worker: str,
    outcome: Callable[[dict[str, Any]], Outcome],
    timeout: float,
    environment: Mapping[str, str] | None = None,
    on_total: Callable[[str, int], None] = lambda backend, total: None,
    on_outcome: Callable[[str, Outcome], None] = lambda backend, outcome: None,
) -> list[BackendRun[Outcome]]:
    """Sends the request to the backends' workers, all at once, and collects their outcomes.

    `backends`: among how many workers each one's jobs are divided; `worker`: the module to run; `environment`: what is
    added to this process's for it; `outcome`: makes an outcome from its dict; `timeout`: after how long a silent
    worker is killed and counts as hung, in seconds.
    """
    messages: queue.Queue[tuple[Part, dict[str, Any] | None]] = queue.Queue()
    runs: dict[Part, BackendRun[Outcome]] = {
        (name, i): _before(name) for name, count in backends.items() for i in range(count)
    }
    workers: dict[Part, _Worker] = {}
    totals: Counter[str] = Counter()
    try:
        for name, i in (key for key, run in runs.items() if run.status != "missing"):
            part = {"backend": name, "part": [i, backends[name]], "parent": os.getpid()}
            workers[name, i] = _Worker(worker, {**request, **part}, messages, environment or {})
        while workers:
            try:
                key, message = messages.get(timeout=1.0)
            except queue.Empty:
                key, message = ("", 0), {}
            heard = workers.get(key)
            if heard is not None:
                name, run = key[0], runs[key]
                heard.heard = time.monotonic()
                if message is None:
                    del workers[key]
                    _finish(run, heard)
                elif "outcome" in message:
                    run.outcomes.append(outcome(message["outcome"]))
                    on_outcome(name, run.outcomes[-1])
                else:
                    _take(message, run, heard)
                    if "total" in message:
                        totals[name] += message["total"]
                        on_total(name, totals[name])
            for key, silent in list(workers.items()):
                if time.monotonic() - silent.heard > timeout:
                    del workers[key]
                    _give_up(runs[key], silent, timeout)
    finally:
        for left in workers.values():
            left.process.kill()
            left.close()
    return [joined([run for (name, _), run in runs.items() if name == backend]) for backend in backends]


def _before(backend: str) -> BackendRun[Any]:
    """A run of which nothing has been heard."""
    if installed(backend):
        return BackendRun(backend, "crashed")
    return BackendRun(backend, "missing", words=f"not installed: pip install 'lossbridge[{backend}]'")


def joined(parts: Sequence[BackendRun[Outcome]]) -> BackendRun[Outcome]:
    """Several workers' runs as one: all their outcomes, and the first status that is not "ran", if there is one."""
    first = next((run for run in parts if run.status != "ran"), parts[0])
    return replace(first, outcomes=[outcome for run in parts for outcome in run.outcomes])


def _take(message: dict[str, Any], run: BackendRun[Any], worker: _Worker) -> None:
    """What a message says of the run, other than an outcome."""
    if "start" in message:
        worker.doing = message["start"]
    elif "total" in message:
        run.version, run.facts = message["version"], message["facts"]
    elif "no_device" in message:
        run.version, run.status, run.words = message["version"], "no device", message["no_device"]
    elif "done" in message:
        run.status = "ran"


def _finish(run: BackendRun[Any], worker: _Worker) -> None:
    code = worker.process.wait()
    words = worker.close()
    if run.status == "crashed" or (code and run.status == "ran"):
        run.status = "crashed"
        run.words = f"exit status {code} in: {worker.doing}. {words}".strip()


def _give_up(run: BackendRun[Any], worker: _Worker, timeout: float) -> None:
    worker.process.kill()
    run.status = "hung"
    run.words = f"silent for {timeout:g} s in: {worker.doing}. {worker.close()}".strip()


class _Worker:
    """A process, the thread that reads its output, and the time of its last message."""

    def __init__(
        self,
        module: str,
        request: dict[str, Any],
        messages: queue.Queue[tuple[Part, dict[str, Any] | None]],
        environment: Mapping[str, str],
    ) -> None:
        self.part: Part = request["backend"], request["part"][0]
        self.doing = "start"
        self.heard = time.monotonic()
        self.errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed by close())
        self.process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env={"TF_CPP_MIN_LOG_LEVEL": "3", **os.environ, **environment},
            text=True,
            encoding="utf-8",
        )
        self.listener = threading.Thread(target=self._listen, args=(request, messages), daemon=True)
        self.listener.start()

    def _listen(self, request: dict[str, Any], messages: queue.Queue[tuple[Part, dict[str, Any] | None]]) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            with self.process.stdin as stdin:
                json.dump(request, stdin)
        except BrokenPipeError:
            pass  # it died at once; its standard error says why
        with self.process.stdout as lines:
            for line in lines:
                try:
                    messages.put((self.part, json.loads(line)))
                except json.JSONDecodeError:  # cut off in the middle of a line
                    break
        messages.put((self.part, None))

    def close(self) -> str:
        """Waits until the process has ended; returns the last line of its standard error."""
        self.process.wait()
        self.listener.join()
        with self.errors as errors:
            errors.seek(0)
            lines = errors.read().decode("utf-8", errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else ""


# In the worker.

Job = tuple[str, Callable[[], Reported]]  # a description, and the work


def serve(jobs: Callable[[Framework, dict[str, Any]], tuple[Sequence[Job], Mapping[str, Any]]]) -> None:
    """A worker's main program. `jobs` makes the jobs of the request's part, and facts to report before the first."""
    # Frameworks print to standard output: they get standard error instead, and the JSON lines keep the original.
    lines = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    request = json.load(sys.stdin)
    threading.Thread(target=_end_with, args=[request["parent"]], daemon=True).start()

    def say(**message: Any) -> None:
        print(json.dumps(message), file=lines, flush=True)

    os.environ["KERAS_BACKEND"] = keras_backend(request["backend"])  # before Keras is imported
    b, device = FRAMEWORKS[request["backend"]](), request["device"]
    if device not in b.devices():
        say(no_device=f"no device {device}; present: {', '.join(b.devices())}", version=b.version())
        return
    todo, facts = jobs(b, request)
    say(version=b.version(), total=len(todo), facts=facts)
    for words, job in todo:
        say(start=words)
        say(outcome=job().as_dict())
    say(done=True)


def _end_with(parent: int) -> None:
    """Ends this process soon after the one that sent the request, which a signal may end before it can tell."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def keras_backend(backend: str) -> str:
    """The backend that Keras runs on in this backend's worker.

    For NumPy another one, because Keras on NumPy has no gradients, and clips where its other backends do not; so too
    for a framework that Keras does not run on.
    """
    known = ("tensorflow", "torch", "jax")
    return backend if backend in known else next((name for name in known if installed(name)), "numpy")
