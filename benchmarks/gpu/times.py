"""Times on the card: the device's bandwidth, the losses of lossbridge beside the frameworks' own, memory of each.

Peers are those of lossbridge.tools.bench.contenders. Each result is held to an exact one before it is timed, but a time
that belongs to a wrong result is written down too: there may be no second run.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import itertools
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gpu.job import Card, Job, Record, kernels_taken, torch_inputs, with_kernel, words_of
from lossbridge import reference
from lossbridge.frameworks import FRAMEWORKS
from lossbridge.tools.bench import contenders, data_kinds, measure, memory, steps
from lossbridge.tools.bench.cells import FORMS, ITEM_BYTES, Cell
from lossbridge.tools.bench.data_kinds import Form

# The machine.


def environment(card: Card) -> Iterator[Job]:
    yield Job("device", functools.partial(facts, card))
    for size in (1 << 22, 1 << 25) if card.rehearsal else (1 << 28, 1 << 30, 1 << 32):
        yield Job(f"copy of {size >> 20} MiB", functools.partial(copied, card, size), "uint8", (size,))


def facts(card: Card) -> Iterator[Record]:
    import torch

    if card.device != "cuda":
        found: Record = {"device": platform.processor() or platform.machine()}
    elif not torch.cuda.is_available():
        raise RuntimeError(f"torch {torch.__version__} sees no CUDA device; --rehearse runs on a CPU")
    else:
        device = torch.cuda.get_device_properties(0)
        free, total = torch.cuda.mem_get_info()
        found = {
            "device": device.name,
            "compute_capability": f"{device.major}.{device.minor}",
            "multiprocessors": device.multi_processor_count,
            "l2_bytes": l2_bytes(),
            "memory_bytes": total,
            "free_bytes": free,
            "cuda": torch.version.cuda,
            "nvidia_smi": nvidia_smi(),
        }
    yield {"status": "measured", "facts": found | {"cores": os.cpu_count()}}


def nvidia_smi() -> str | None:
    """Driver, memory, clocks and power limit as they are."""
    if shutil.which("nvidia-smi") is None:
        return None
    query = "--query-gpu=name,driver_version,memory.total,clocks.sm,clocks.mem,power.limit"
    said = subprocess.run(["nvidia-smi", query, "--format=csv,noheader"], capture_output=True, text=True, timeout=30)
    return said.stdout.strip() or said.stderr.strip()


def l2_bytes() -> int:
    import torch

    return int(getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 64 << 20))


def copied(card: Card, size: int) -> Iterator[Record]:
    """From device memory to device memory; bytes read and bytes written count. The largest copy is the limit."""
    import torch

    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=card.device)
    target = torch.empty_like(source)
    samples = [torch_clock(card, lambda: target.copy_(source))[0] for _ in range(20)]
    ms = statistics.median(samples[3:])
    yield {"status": "measured", "ms": ms, "gb_s": 2 * size / ms / 1e6, "facts": {"copy_gb_s": 2 * size / ms / 1e6}}


# Clocks.

AHEAD = 4_000_000  # cycles, about 2 ms, for which the device is kept from what the host enqueues meanwhile
Clock = Callable[[Callable[[], Any]], tuple[float, float]]
Errors = Callable[[Any, Any], tuple[float, float | None]]


def torch_clock(card: Card, call: Callable[[], Any]) -> tuple[float, float]:
    """Milliseconds on the device, between two events, and on the host, until the call came back.

    The device waits until the host has enqueued the call, so that the time of Python between two kernels is not counted
    as the kernels'. A host time above AHEAD means that the call itself waits for the device.
    """
    if card.device != "cuda":
        began = time.perf_counter()
        call()
        ms = (time.perf_counter() - began) * 1e3
        return ms, ms
    import torch

    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    if hasattr(torch.cuda, "_sleep"):
        torch.cuda._sleep(AHEAD)
    start.record()
    began = time.perf_counter()
    result = call()
    host = (time.perf_counter() - began) * 1e3
    end.record()
    end.synchronize()
    del result  # after the clock: where its memory goes is the next call's
    return start.elapsed_time(end), host


def jax_clock(call: Callable[[], Any], calls: int = 5) -> tuple[float, float]:
    """Milliseconds of one of several calls, of which the last is waited for; and on the host, until they came back."""
    import jax

    began = time.perf_counter()
    for _ in range(calls):
        result = call()
    host = time.perf_counter() - began
    jax.block_until_ready(result)
    return (time.perf_counter() - began) * 1e3 / calls, host * 1e3 / calls


# Races.

LEAST, MOST, SECONDS = 7, 25, 0.6  # rounds: until the seconds are over, but at least and at most so many
REHEARSED = 9  # one race of so many, of SMALL arrays
SMALL = (4, 300)
RIGHT = {"float32": (1e-5, 1e-5), "bfloat16": (1e-5, 5e-3)}  # relative errors of a mean, and of a gradient
GOAL = {"of_copy": 0.8, "of_liger": 0.9}  # the least share of a copy's bandwidth, the most of Liger's time


@dataclasses.dataclass(frozen=True)
class Entrant:
    """`run`: (target, predictions) -> value and gradient; `consumes`: it overwrites the predictions."""

    name: str
    way: str
    run: steps.Step
    consumes: bool = False

    def call(self, inputs: tuple[Any, Any]) -> tuple[Any, Any]:
        return self.run(*inputs)

    def fresh(self, inputs: tuple[Any, Any]) -> tuple[Any, Any]:
        return (inputs[0], inputs[1] * 1) if self.consumes else inputs


@dataclasses.dataclass(frozen=True)
class Race:
    """Entrants that take turns on the same inputs. `errors`: relative ones of value and gradient, of the first inputs.

    `bytes`: what has to move at the least. `kernels`: whether lossbridge's eager call is meant for a Triton kernel.
    """

    about: Record
    bytes: int
    entrants: list[Entrant]
    inputs: list[tuple[Any, Any]]
    errors: Errors
    clock: Clock
    peak: Callable[[Callable[[], Any]], int | None]
    kernels: bool = False
    goal: Record | None = None


def run(card: Card, race: Race) -> Iterator[Record]:
    first = [first_call(race, entrant, card.rehearsal) for entrant in race.entrants]
    racing = [(entrant, record) for entrant, (record, came_back) in zip(race.entrants, first, strict=True) if came_back]
    times = in_turn(race, [entrant for entrant, _ in racing], 0.0 if card.rehearsal else SECONDS)
    for (entrant, record), samples in zip(racing, times, strict=True):
        low, ms, high = (float(x) for x in np.percentile([device for device, _ in samples], (25, 50, 75)))
        host_ms = statistics.median(host for _, host in samples)
        record |= {"ms": ms, "low_ms": low, "high_ms": high, "host_ms": host_ms, "rounds": len(samples)}
        record |= {"bytes": race.bytes, "gb_s": race.bytes / ms / 1e6}
        inputs = entrant.fresh(race.inputs[0])
        record["extra_bytes"] = race.peak(functools.partial(entrant.call, inputs))
    for entrant, record in racing:
        if entrant.name == contenders.OURS:
            record["goal"] = race.goal
            record["ratio_to"] = {
                f"{other.name}, {other.way}": record["ms"] / theirs["ms"]
                for other, theirs in racing
                if other is not entrant
            }
    yield from (record for record, _ in first)


def first_call(race: Race, entrant: Entrant, rehearsal: bool) -> tuple[Record, bool]:
    """What it says of the result, and whether there was one. A peer's own error is written down, but is no fault."""
    ours = entrant.name == contenders.OURS
    watch = race.kernels and ours and entrant.way == steps.EAGER
    record = race.about | {"contender": entrant.name, "way": entrant.way, "status": "measured"}
    began = time.perf_counter()
    try:
        with kernels_taken(watch) as taken:
            result = entrant.call(entrant.fresh(race.inputs[0]))
        value_error, gradient_error = race.errors(*result)
    except Exception as error:
        detail = traceback.format_exc() if ours else None
        return record | {"status": "fail" if ours else "skipped", "fault": words_of(error), "detail": detail}, False
    first_ms = (time.perf_counter() - began) * 1e3
    record |= {"first_ms": first_ms, "value_relative": value_error, "gradient_relative": gradient_error}
    value_limit, gradient_limit = RIGHT[record["dtype"]]
    if rehearsal:  # Triton's interpreter cuts bfloat16 off in place of rounding it
        gradient_limit *= 2
    if ours and not (value_error <= value_limit and (gradient_error or 0.0) <= gradient_limit):
        record |= {"status": "fail", "fault": f"relative errors {value_error:.1e}, {gradient_error or 0.0:.1e}"}
    return with_kernel(record, taken) if watch else record, True


def in_turn(race: Race, entrants: list[Entrant], seconds: float) -> list[list[tuple[float, float]]]:
    """A B C, A B C, …; before each call that is measured one that is not. Inputs rotate: no cache shall hold them."""
    times: list[list[tuple[float, float]]] = [[] for _ in entrants]
    turns = itertools.cycle(race.inputs)
    gc.collect()
    gc.disable()
    try:
        began = time.perf_counter()
        for done in range(MOST):
            if done >= LEAST and time.perf_counter() - began > seconds:
                break
            for samples, entrant in zip(times, entrants, strict=True):
                for measured in (False, True):
                    sample = race.clock(functools.partial(entrant.call, entrant.fresh(next(turns))))
                    if measured:
                        samples.append(sample)
    finally:
        gc.enable()
    return times


# PyTorch.

LM, LM_LARGE, LM_LONG, CLASSIFIER = (2048, 32_768), (512, 128_256), (8192, 50_257), (4096, 1000)
RACED = ("CE, labels", "CE, dense", "KL of logits", "BCE of logits")
GOALS_HOLD = ("CE, labels", "CE, dense", "KL of logits"), (32_768, 128_256)  # forms, classes


def torch_cells() -> Iterator[tuple[Cell, tuple[str, ...]]]:
    """What is raced, and which ways: eager all of it, then with what PyTorch's compiler makes."""
    for shape in (LM, LM_LARGE, CLASSIFIER):
        for form in RACED:
            for dtype in ("bfloat16", "float32"):
                yield Cell(form, *shape, dtype=dtype), (steps.EAGER,)
    for dtype in ("bfloat16", "float32"):
        for form in RACED:
            yield Cell(form, *LM, dtype=dtype, backward=False), (steps.EAGER,)
        yield Cell("CE, labels", *LM_LONG, dtype=dtype), (steps.EAGER,)
    for dtype in ("bfloat16", "float32"):
        for form in RACED:
            yield Cell(form, *LM, dtype=dtype), (steps.EAGER, "compile")


def without_keras() -> None:
    """For `contenders` it is not installed: to import it takes longer than to race."""
    sys.modules["keras"] = None  # type: ignore[assignment]


def torch_times(card: Card) -> Iterator[Job]:
    without_keras()
    for cell, ways in list(torch_cells())[:: REHEARSED if card.rehearsal else 1]:
        if card.rehearsal:
            cell = dataclasses.replace(cell, rows=SMALL[0], classes=SMALL[1])
        name = f"{cell.name}, {ways[-1]}"
        yield Job(name, functools.partial(torch_race, card, cell, ways), cell.dtype, (cell.rows, cell.classes))


def torch_race(card: Card, cell: Cell, ways: tuple[str, ...]) -> Iterator[Record]:
    b = FRAMEWORKS["torch"]()
    # What writes over the logits does so on the CPU alone; Liger is eager.
    found = [c for c in contenders.contenders("torch", cell, card.device) if c.name != contenders.IN_PLACE]
    entrants = [
        Entrant(c.name, way, steps.step(b, c, way, cell.backward), c.consumes)
        for c in found
        for way in ways
        if way == steps.EAGER or not c.eager_only
    ]
    inputs = several(card, lambda: torch_inputs(card, FORMS[cell.form].target, (cell.rows, cell.classes), cell.dtype))
    for _, pred in inputs:
        pred.requires_grad_(cell.backward)
    forms, classes = GOALS_HOLD
    race = Race(
        {"name": cell.name, "dtype": cell.dtype, "shape": [cell.rows, cell.classes]},
        cell.bytes,
        entrants,
        inputs,
        errors_of_torch(FORMS[cell.form], found[1].loss, *inputs[0]),
        functools.partial(torch_clock, card),
        lambda call: memory.extra_bytes(call, b, card.device),
        kernels=card.triton,
        goal=GOAL if card.triton and cell.backward and cell.form in forms and cell.classes in classes else None,
    )
    yield from run(card, race)


def several(card: Card, make: Callable[[], tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """As many inputs as together take three times the second cache, up to 16."""
    first = make()
    size = sum(x.numel() * x.element_size() for x in first)
    cache = l2_bytes() if card.device == "cuda" else size // 2
    return [first, *(make() for _ in range(min(16, math.ceil(3 * cache / size)) - 1))]


def errors_of_torch(form: Form, peer: Callable[..., Any], target: Any, pred: Any, **options: Any) -> Errors:
    """Of rows of predictions: held to the peer's value in float64, and to the reference's gradient of three rows."""
    import torch

    b = FRAMEWORKS["torch"]()
    with torch.no_grad():
        exact = float(peer(target.double() if target.is_floating_point() else target, pred.double()))
    rows = sorted({0, len(pred) // 2, len(pred) - 1})
    options = {"normalizer": len(pred), **form.options, **options}
    gradient = getattr(reference, form.loss)(b.to_numpy(target[rows]), b.to_numpy(pred[rows]), **options).gradient

    def errors(value: Any, got: Any) -> tuple[float, float | None]:
        error = relative(np.array(float(value)), np.array(exact))
        return error, None if got is None else relative(b.to_numpy(got.reshape(pred.shape)[rows]), gradient)

    return errors


def relative(got: np.ndarray, exact: np.ndarray) -> float:
    """The largest difference to the largest entry of its row, if that is not 0; infinite for NaN."""
    scale = np.abs(exact).max(-1, keepdims=True) if exact.ndim else np.abs(exact)
    error = float((np.abs(got.astype(np.float64) - exact) / np.where(scale == 0, 1, scale)).max())
    return math.inf if math.isnan(error) else error


# Hugging Face's loss of causal language models, which its Trainer calls.


def transformers_times(card: Card) -> Iterator[Job]:
    shapes = ((2, *SMALL),) if card.rehearsal else ((2, 1024, 50_257), (4, 512, 32_768), (1, 512, 128_256))
    for shape in shapes:
        for dtype in ("bfloat16", "float32"):
            yield Job(causal_name(shape, dtype), functools.partial(transformers_race, card, shape, dtype), dtype, shape)


def causal_name(shape: tuple[int, int, int], dtype: str) -> str:
    return f"causal LM loss, {'×'.join(map(str, shape))} {dtype}"


def transformers_race(card: Card, shape: tuple[int, int, int], dtype: str) -> Iterator[Record]:
    import torch.nn.functional as F
    from transformers.loss.loss_utils import ForCausalLMLoss

    from lossbridge.torch import causal_lm_loss

    b, classes = FRAMEWORKS["torch"](), shape[2]
    found = (
        contenders.Contender(contenders.OURS, lambda labels, z: causal_lm_loss(z, labels)),
        contenders.Contender("ForCausalLMLoss", lambda labels, z: ForCausalLMLoss(z, labels, classes)),
    )

    def make() -> tuple[Any, Any]:
        labels, logits = torch_inputs(card, "labels", (shape[0] * shape[1], classes), dtype)
        labels[::5] = -100
        return labels.reshape(shape[:2]), logits.reshape(shape).requires_grad_()

    inputs = several(card, make)
    labels, logits = inputs[0]
    shifted = F.pad(labels[:, 1:], (0, 1), value=-100).reshape(-1)
    left = {"ignore_class": -100, "normalizer": int((shifted != -100).sum())}
    race = Race(
        {"name": causal_name(shape, dtype), "dtype": dtype, "shape": list(shape)},
        2 * math.prod(shape) * ITEM_BYTES[dtype],
        [Entrant(c.name, steps.EAGER, steps.step(b, c, steps.EAGER, True)) for c in found],
        inputs,
        errors_of_torch(
            FORMS["CE, labels"], lambda t, z: F.cross_entropy(z, t), shifted, logits.detach().flatten(0, 1), **left
        ),
        functools.partial(torch_clock, card),
        lambda call: memory.extra_bytes(call, b, card.device),
        kernels=card.triton,
    )
    yield from run(card, race)


# JAX.


def jax_times(card: Card) -> Iterator[Job]:
    without_keras()
    for form, dtype in itertools.product(("CE, labels", "KL of logits", "CE, dense"), ("bfloat16", "float32")):
        cell = Cell(form, *(SMALL if card.rehearsal else LM), dtype=dtype)
        yield Job(f"{cell.name}, jit", functools.partial(jax_race, card, cell), dtype, (cell.rows, cell.classes))


def jax_race(card: Card, cell: Cell) -> Iterator[Record]:
    b = FRAMEWORKS["jax"]()
    data = data_kinds.made(FORMS[cell.form], (cell.rows, cell.classes))
    inputs = measure.placed(b, cell, data, card.device)
    judge = measure.exact(b, cell, data, *inputs)
    found = contenders.contenders("jax", cell, card.device)
    race = Race(
        {"name": cell.name, "dtype": cell.dtype, "shape": [cell.rows, cell.classes]},
        cell.bytes,
        [Entrant(c.name, "jit", steps.step(b, c, "jit", cell.backward), c.consumes) for c in found],
        [inputs],
        functools.partial(judge.errors, b),
        jax_clock,
        lambda call: None,  # JAX cannot start its peak anew
    )
    yield from run(card, race)
