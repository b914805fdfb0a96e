"""The process of one section: reads a request, one line of JSON, and writes a line of JSON for all that happens.

A fault on a GPU takes the process' CUDA context with it, so after one the process ends, and on_gpu.py starts the
section again behind the job at fault.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from gpu import checks, linear, split, times
from gpu.job import Card, Job, Record, words_of
from lossbridge.frameworks import FRAMEWORKS

Say = Callable[..., None]


def jax_jobs(card: Card) -> Iterator[Job]:
    """Some checks, the times, and what there is time for."""
    under_jit = list(checks.compiled(card, "jax", "jit"))
    yield from [*under_jit[:6], *times.jax_times(card), *under_jit[6:], *checks.eager_basics(card, "jax")]


# By name: what a section is made of, and what has to be installed for it.
SECTIONS: dict[str, tuple[Callable[[Card], Iterator[Job]], str]] = {
    "environment": (times.environment, "torch"),
    "boundaries": (checks.boundaries, "torch"),
    "parity": (checks.parity, "torch"),
    "times": (times.torch_times, "torch"),
    "compiled": (checks.compiled, "torch"),
    "linear": (linear.jobs, "torch"),
    "split": (split.jobs, "torch"),
    "jax": (jax_jobs, "jax"),
    "transformers": (times.transformers_times, "transformers"),
}


def run(request: dict[str, Any], say: Say) -> None:
    """The jobs of a section from number `skip` on, while its seconds last."""
    ends = time.monotonic() + request["seconds"]
    make, library = SECTIONS[request["section"]]
    card = Card(request["device"], request["rehearsal"], request["triton"], request["huge"])
    absent = missing(card, library)
    if absent:
        say(record={"name": request["section"], "status": "skipped", "fault": absent})
        say(done=True)
        return
    warnings.simplefilter("ignore")  # what compilers say of their own code, and NumPy of infinities in the interpreter
    if card.rehearsal and card.triton:
        interpret()
    jobs, explained = list(make(card)), set[str]()
    for i in range(request["skip"], len(jobs)):
        if time.monotonic() > ends:
            words = f"no time was left for {len(jobs) - i} of {len(jobs)} jobs, from here on"
            say(record=jobs[i].about | {"status": "skipped", "fault": words})
            break
        say(start=i, about=jobs[i].about)
        faults = [record for record in attempted(jobs[i], explained, say) if record["status"] == "fail"]
        if faults and lost(card):
            say(lost=True)
            return
    say(done=True)


def missing(card: Card, library: str) -> str:
    """What the section cannot do without, in words."""
    for name in (library, "triton") if card.triton else (library,):
        if importlib.util.find_spec(name) is None:
            return f"{name} is not installed"
    if library == "jax":
        present = FRAMEWORKS["jax"]().devices()
        return "" if card.device in present else f"JAX has no device {card.device}, but {', '.join(present)}"
    return ""


def interpret() -> None:
    """Sends CPU tensors where CUDA tensors go, to kernels that Triton's interpreter runs; Inductor cannot be there."""
    import torch

    from lossbridge.frameworks import on_torch
    from lossbridge.native import triton_kernels

    on_torch._refuses_triton = triton_kernels.refuses

    def compile(function: Callable[..., Any]) -> Callable[..., Any]:
        torch.compiler.reset()
        return torch.compile(function, fullgraph=True, backend="aot_eager")

    on_torch.compilers = lambda: {"compile": compile}


def attempted(job: Job, explained: set[str], say: Say) -> list[Record]:
    """What the job says; what it raises is a record too. Tracebacks are kept where the words are new."""
    found: list[Record] = []

    def add(record: Record) -> None:
        detail = record.pop("detail", None)
        if detail and record["fault"] not in explained:
            explained.add(record["fault"])
            record["detail"] = detail[-4000:]
        found.append(job.about | record)
        say(record=found[-1])

    try:
        for record in job.run():
            add(record)
    except Exception as error:
        add({"status": "fail", "fault": words_of(error), "detail": traceback.format_exc()})
    return found


def lost(card: Card) -> bool:
    """Whether a fault has taken the CUDA context with it: then nothing runs in this process any more."""
    torch = sys.modules.get("torch")
    if card.device != "cuda" or torch is None or not torch.cuda.is_initialized():
        return False
    gc.collect()  # what the traceback held
    try:
        torch.cuda.empty_cache()
        return bool(torch.zeros(1, device="cuda").item())
    except Exception:
        return True


def end_with_parent() -> None:
    """The other end of standard input is held open by on_gpu.py; where that is killed, nothing may go on on the GPU."""
    sys.stdin.read()
    os._exit(1)


def main() -> None:
    # Frameworks write to standard output as they like; the lines of JSON keep the original to themselves.
    lines = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=end_with_parent, daemon=True).start()

    def say(**message: Any) -> None:
        print(json.dumps(message), file=lines, flush=True)

    run(request, say)
    os._exit(0)  # compilers' threads and pools are not waited for


if __name__ == "__main__":
    main()
