"""A one-shot check of a GPU: whether lossbridge agrees with its reference there, and how fast it is, in 7 minutes.

Needs this checkout, NumPy and torch; takes along Triton, JAX, transformers and Liger-Kernel where they are installed.
From the repository's root:

    python benchmarks/on_gpu.py --out on_gpu.json                 # on a machine with a CUDA device
    python benchmarks/on_gpu.py --out rehearsal.json --rehearse   # on a CPU: Triton's interpreter, small sizes
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer \\
        python benchmarks/on_gpu.py --out sanitizer.json --only boundaries --in-process

Sections (benchmarks/gpu) run one after another, each in a process of its own with a share of the time, which goes to
those after it where it was not needed. What is found goes into the JSON file at once, and the file is whole at any
moment: `complete` says whether the run came to its end. What is worth keeping goes to benchmarks/results/.

The exit status is 0 if all that ran agreed and nothing crashed, 1 if not, 2 on bad usage.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import importlib.metadata
import json
import math
import os
import platform
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
Record = dict[str, Any]

BAD = ("fail", "crashed", "hung")
LIBRARIES = ("numpy", "torch", "triton", "jax", "jaxlib", "optax", "transformers", "liger-kernel")
HEARTBEAT = 25.0  # seconds after which a line is printed anyway
RESTARTS = 3  # of a section whose process died
SHOWN = 10  # faults of a section that are printed; all are in the file


@dataclasses.dataclass(frozen=True)
class Section:
    """`runs`: its name in gpu/worker.py; `share`: of the time, in seconds of 7 minutes; `patience`: with silence."""

    name: str
    runs: str
    triton: bool | None
    share: float
    words: str
    patience: float = 60.0

    @property
    def request(self) -> Record:
        return {"section": self.runs, "triton": bool(self.triton)}


# What we most want to know first.
SECTIONS = (
    Section("environment", "environment", None, 20, "device, bandwidth of a copy", 90.0),
    Section("boundaries", "boundaries", True, 45, "V from 1 to 128 256, layouts, masks, with Triton's kernels"),
    Section("parity", "parity", True, 55, "every case of the registry, eager, with Triton's kernels"),
    Section("times", "times", True, 55, "beside the framework's own, with Triton's kernels", 120.0),
    Section("times-formula", "times", False, 40, "beside the framework's own, without Triton", 120.0),
    Section("parity-formula", "parity", False, 25, "every case of the registry, eager, without Triton"),
    Section("compiled", "compiled", True, 40, "cases under torch.compile, with Triton's kernels", 120.0),
    Section("compiled-formula", "compiled", False, 35, "cases under torch.compile, without Triton", 120.0),
    Section("linear", "linear", True, 40, "the linear cross-entropy: cases, time and memory", 120.0),
    Section("split", "split", None, 20, "the linear cross-entropy, its classes split over two processes", 120.0),
    Section("jax", "jax", None, 30, "JAX: cases and times under jit", 90.0),
    Section("transformers", "transformers", True, 15, "causal_lm_loss beside Hugging Face's own", 90.0),
)


class Book:
    """The JSON file: facts, then one record a line. It is written beside its place, and put there whole."""

    def __init__(self, path: Path, head: Record) -> None:
        self.path = path
        self.head = head
        self.records: list[Record] = []
        self._lines: list[str] = []

    def add(self, section: Section, record: Record) -> Record:
        kept = {"section": section.name, "triton": section.triton, **finite(record)}
        kept = {name: value for name, value in kept.items() if value not in (None, "")}
        self.records.append(kept)
        self._lines.append(json.dumps(kept, ensure_ascii=False))
        return kept

    def write(self) -> None:
        head = json.dumps(finite(self.head), ensure_ascii=False, indent=1).removesuffix("\n}")
        records = ",\n".join(f"  {line}" for line in self._lines)
        beside = self.path.with_name(self.path.name + ".part")
        beside.write_text(f'{head},\n "records": [\n{records}\n ]\n}}\n', encoding="utf-8")
        os.replace(beside, self.path)


def finite(x: Any) -> Any:
    """With six digits; None for infinities and NaN, which JSON does not have."""
    if isinstance(x, float):
        return float(f"{x:.6g}") if math.isfinite(x) else None
    if isinstance(x, dict):
        return {name: finite(value) for name, value in x.items()}
    return [finite(value) for value in x] if isinstance(x, list | tuple) else x


class Voice:
    """Lines for a human, who never waits for long."""

    def __init__(self) -> None:
        self.began = self.last = time.monotonic()

    def say(self, line: str) -> None:
        self.last = time.monotonic()
        print(f"[{self.last - self.began:4.0f} s] {line}", flush=True)

    def beat(self, line: str) -> None:
        if time.monotonic() - self.last > HEARTBEAT:
            self.say(line)


class Worker:
    """A section's process, and the thread that reads it. Its messages end with None."""

    def __init__(self, command: Sequence[str], request: Record, environment: dict[str, str]) -> None:
        self.messages: queue.Queue[Record | None] = queue.Queue()
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed by close())
        self.process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            encoding="utf-8",
        )
        self.listener = threading.Thread(target=self._listen, args=(request,), daemon=True)
        self.listener.start()

    def _listen(self, request: Record) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(OSError):  # it died at once; its last words tell why
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()  # and stays open: the process ends when it is closed
        for line in self.process.stdout:
            try:
                self.messages.put(json.loads(line))
            except json.JSONDecodeError:  # cut off in the middle of a line
                break
        self.messages.put(None)

    def close(self, kill: bool) -> str:
        """Ends it, or waits for its end; how it ended, and the last line of its standard error."""
        if kill:
            self.process.kill()
        try:
            code = self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self.listener.join(5)
        if not self.listener.is_alive():
            with contextlib.suppress(OSError):
                for pipe in filter(None, (self.process.stdin, self.process.stdout)):
                    pipe.close()
        with self.errors:
            self.errors.seek(0)
            lines = self.errors.read().decode("utf-8", errors="replace").strip().splitlines()
        how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        return f"{how}: {lines[-1].strip()[:400]}" if lines else how


@dataclasses.dataclass
class Run:
    """The whole of it. `command` starts a section's process."""

    book: Book
    voice: Voice
    request: Record
    command: Sequence[str] = (sys.executable, "-m", "gpu.worker")
    about: Record = dataclasses.field(default_factory=dict)  # the job at work
    begun: int = -1  # its number
    faults: int = 0  # of the section at work

    def section(self, section: Section, ends: float) -> None:
        """Runs it until then; starts it again behind a job that took its process along."""
        self.enter(section)
        for _ in range(1 + RESTARTS):
            behind, seconds = self.begun, ends - time.monotonic()
            if seconds < 2:
                self.skipped(section, "no time was left")
                break
            # It stops by itself a little before it would be stopped.
            request = {**self.request, **section.request, "skip": behind + 1, "seconds": seconds - min(5, seconds / 4)}
            worker = Worker(self.command, request, environment(section, self.request["rehearsal"]))
            end = "killed"
            try:
                end = self.listen(worker, section, ends)
            finally:
                words = worker.close(kill=end not in ("done", "lost", "crashed"))
            if end == "done":
                break
            if end == "out of time":
                self.skipped(section, "no time was left to finish it")
                break
            if end != "lost":
                fault = f"silent for {section.patience:g} s" if end == "hung" else words
                self.add(section, self.about | {"status": end, "fault": fault})
            if self.begun == behind:  # it will not come further
                break
            self.voice.say(f"{section.name} goes on behind {self.about['name']}")
        else:
            self.skipped(section, f"given up after {1 + RESTARTS} processes; what comes behind it was not run")
        self.book.write()

    def enter(self, section: Section) -> None:
        self.begun, self.faults, self.about = -1, 0, {"name": section.name}

    def skipped(self, section: Section, fault: str) -> None:
        self.add(section, self.about | {"status": "skipped", "fault": fault})

    def listen(self, worker: Worker, section: Section, ends: float) -> str:
        """Until its end: done, lost (with the GPU's context), crashed, hung or out of time."""
        heard = time.monotonic()
        while True:
            try:
                message = worker.messages.get(timeout=0.5)
            except queue.Empty:
                now = time.monotonic()
                if now > ends or now - heard > section.patience:
                    return "out of time" if now > ends else "hung"
                self.voice.beat(f"{section.name}: job {self.begun + 1}, {self.about['name']}")
                continue
            heard = time.monotonic()
            if message is None:
                return "crashed"
            self.take(section, message)
            for end in ("done", "lost"):
                if end in message:
                    return end
            if worker.messages.empty():
                self.book.write()
            self.voice.beat(f"{section.name}: job {self.begun + 1}, {self.about['name']}")

    def take(self, section: Section, message: Record) -> None:
        """What a section says."""
        if "start" in message:
            self.begun, self.about = message["start"], message["about"]
        elif "record" in message:
            facts = message["record"].pop("facts", {})
            self.book.head["facts"] |= facts
            self.add(section, message["record"])

    def add(self, section: Section, record: Record) -> None:
        copy = self.book.head["facts"].get("copy_gb_s")
        if copy and record.get("gb_s") and record.get("contender"):
            record["of_copy"] = record["gb_s"] / copy
        kept = self.book.add(section, record)
        if kept["status"] in BAD:
            self.faults += 1
            if self.faults <= SHOWN:
                of = " ".join(str(kept[name]) for name in ("dtype", "shape", "way") if name in kept)
                self.voice.say(
                    f"{kept['status'].upper()} {section.name}: {kept['name']} {of}: {kept.get('fault')}"[:300]
                )
            elif self.faults == SHOWN + 1:
                self.voice.say(f"… more in {self.book.path}")

    def here(self, section: Section, seconds: float) -> None:
        """In this very process, as tools want it that look into one."""
        os.environ.pop("TRITON_INTERPRET", None)
        os.environ.update(environment(section, self.request["rehearsal"]))
        from gpu import worker

        def say(**message: Any) -> None:
            self.take(section, message)
            if "lost" in message:
                self.skipped(section, "a fault took the CUDA context along; what comes behind it was not run")
            self.book.write()
            self.voice.beat(f"{section.name}: job {self.begun + 1}, {self.about['name']}")

        self.enter(section)
        worker.run({**self.request, **section.request, "skip": 0, "seconds": seconds}, say)


def environment(section: Section, rehearsal: bool) -> dict[str, str]:
    """Of a section's process: whether Triton's kernels are used is decided when lossbridge's are imported."""
    found = {name: value for name, value in os.environ.items() if name not in ("TRITON_INTERPRET", "LOSSBRIDGE_TRITON")}
    found["LOSSBRIDGE_TRITON"] = "1" if section.triton else "0"
    if rehearsal and section.triton:
        found["TRITON_INTERPRET"] = "1"
    found["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), str(HERE), os.environ.get("PYTHONPATH")]))
    found["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # JAX would take most of the memory
    return found


# What is shown in the end.


def table_of_checks(records: Sequence[Record]) -> list[str]:
    lines = [f"{'section':<17}{'passed':>7}{'bad':>5}{'by kernel':>10}  worst errors, in units in the last place"]
    for section in SECTIONS:
        found = [record for record in records if record["section"] == section.name]
        if not found:
            continue
        bad = sum(record["status"] in BAD for record in found)
        passed = [record for record in found if record["status"] == "pass"]
        kernel = sum(record["kernel"] for record in passed if "kernel" in record) or "–"
        words = [record["fault"] for record in found if record["status"] == "skipped"]
        words += [worst(passed, key) for key in ("value", "gradient") if passed]
        lines.append(f"{section.name:<17}{len(passed):>7}{bad:>5}{kernel:>10}  {'; '.join(words)[:150]}".rstrip())
    return lines


def worst(passed: Sequence[Record], key: str) -> str:
    record = max(passed, key=lambda record: record[f"{key}_ulp"])
    return f"{key} {record[f'{key}_ulp']:.2g} ({record['name']}, {record.get('dtype')})"


def table_of_times(records: Sequence[Record]) -> list[str]:
    """Of lossbridge: ms, share of a copy's bandwidth, ratio to the framework's own of the same way; !: wrong."""
    rows: dict[str, dict[str, str]] = {}
    for record in records:
        if record.get("contender") == "lossbridge" and "ms" in record:
            peers = [ratio for label, ratio in record.get("ratio_to", {}).items() if label.endswith(record["way"])]
            share = f"{record['of_copy']:.0%}" if "of_copy" in record else "–"
            ratio = f"{peers[0]:.2f}" if peers else "–"
            name = record["name"].replace("forward and backward", "f+b")
            wrong = "!" if record["status"] in BAD else " "
            rows.setdefault(name, {})[column(record)] = f"{record['ms']:.3f} {share:>4} {ratio:>5}{wrong}"
    ways = list(dict.fromkeys(way for row in rows.values() for way in row))
    lines = [f"{'ms, share of a copy, ratio to the peer':<45}" + "".join(f"{way:>20}" for way in ways)] if rows else []
    return lines + [f"{name:<45}" + "".join(f"{row.get(way, ''):>20}" for way in ways) for name, row in rows.items()]


def column(record: Record) -> str:
    return f"{record['way']}, {'Triton' if record.get('triton') else 'formula'}"


# The command.


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="on_gpu.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [section.name for section in SECTIONS]
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the JSON file")
    parser.add_argument("--minutes", type=float, default=7.0, help="of all sections together (7)")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, in Triton's interpreter, small sizes")
    parser.add_argument("--only", nargs="+", choices=names, metavar="SECTION", help=f"of {', '.join(names)}")
    parser.add_argument("--in-process", action="store_true", help="runs the sections of --only in this very process")
    parser.add_argument("--huge", action="store_true", help="arrays of more than 2³¹ elements with --in-process too")
    found = parser.parse_args(given)
    if not 0 < found.minutes < math.inf:
        parser.error(f"--minutes is {found.minutes:g}; give minutes above 0")
    if found.out.is_dir() or not found.out.absolute().parent.is_dir():
        parser.error(f"--out {found.out} cannot be written; name a file in a folder that is there")
    chosen = names if found.only is None else found.only
    if found.in_process and found.only is None:
        parser.error("--in-process needs --only")
    if not found.in_process:  # the device's facts are always wanted
        chosen = ["environment", *chosen]
    found.sections = [section for section in SECTIONS if section.name in chosen]
    if found.in_process and len({bool(section.triton) for section in found.sections}) > 1:
        parser.error("--in-process takes sections with Triton's kernels or sections without, not both")
    return found


def head_of(options: argparse.Namespace, given: Sequence[str]) -> Record:
    sys.path.insert(0, str(ROOT))
    import lossbridge

    versions = {}
    for library in LIBRARIES:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "format": 1,
        "complete": False,
        "rehearsal": options.rehearse,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "lossbridge": lossbridge.__version__,
        "commit": commit(),
        "arguments": list(given),
        "machine": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
        "facts": {},
    }


def commit() -> str | None:
    """With a + where files have changed since; None where git or its folder is missing."""
    try:
        said = [
            subprocess.run(["git", "-C", str(ROOT), *command], capture_output=True, text=True, check=True, timeout=20)
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain"])
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    return said[0].stdout.strip() + ("+" if said[1].stdout.strip() else "")


def run_all(run: Run, chosen: Sequence[Section], seconds: float) -> None:
    """Each ends when its share and those before it are over; so what is not needed goes to those behind."""
    began, whole, planned = time.monotonic(), sum(section.share for section in chosen), 0.0
    for section in chosen:
        planned += section.share
        ends = began + seconds * planned / whole
        if section.name == "environment":  # nothing is worth much without it, and a first import of torch takes long
            ends = began + min(seconds, section.patience)
        run.voice.say(f"{section.name}: {section.words}; at most {max(0, ends - time.monotonic()):.0f} s")
        run.section(section, ends)
        if section.name == "environment" and run.faults:
            for other in chosen[1:]:
                run.enter(other)
                run.skipped(other, "there is no device")
            break


def main(given: Sequence[str] | None = None) -> int:
    given = sys.argv[1:] if given is None else list(given)
    options = arguments(given)
    book, voice = Book(options.out, head_of(options, given)), Voice()
    request = {"device": "cpu" if options.rehearse else "cuda", "rehearsal": options.rehearse}
    run = Run(book, voice, request | {"huge": options.huge or not options.in_process})
    seconds = 60 * options.minutes - 2
    try:
        book.write()
        if options.in_process:
            for section in options.sections:
                voice.say(f"{section.name}: {section.words}, in this process")
                run.here(section, seconds)
        else:
            run_all(run, options.sections, seconds)
        book.head["complete"] = True
    finally:
        book.write()
    return summary(book, options)


def summary(book: Book, options: argparse.Namespace) -> int:
    """What is shown in the end; the exit status."""
    bad, facts = sum(record["status"] in BAD for record in book.records), book.head["facts"]
    print("", *table_of_checks(book.records), "", *table_of_times(book.records), "", sep="\n")
    copy = f", where a copy moves {facts['copy_gb_s']:.0f} GB/s" if "copy_gb_s" in facts else ""
    where = f"{'REHEARSAL on ' if options.rehearse else ''}{facts.get('device', 'no device')}"
    print(f"{where}{copy}; {len(book.records)} records, {bad} bad, in {options.out}", flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    for stop in (signal.SIGTERM, signal.SIGINT):  # the section's process is ended on the way out
        signal.signal(stop, lambda number, _: sys.exit(128 + number))
    sys.exit(main())
