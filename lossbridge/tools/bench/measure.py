"""Measures one cell on one backend: checks every contender's result, then times them in turn, then their memory.

Which contenders there are is in contenders.py, how they run in steps.py.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import math
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from lossbridge import reference
from lossbridge.frameworks.framework import Framework
from lossbridge.tools.bench import data_kinds, memory, steps, textbook
from lossbridge.tools.bench.cells import FORMS, IMPORT, Budget, Cell
from lossbridge.tools.bench.contenders import OURS, Contender, contenders
from lossbridge.tools.bench.data_kinds import RANDOM, Data, Form, each
from lossbridge.tools.bench.results import ENOUGH_BYTES, Measurement, Outcome

try:
    import resource
except ImportError:  # on Windows
    resource = None  # type: ignore[assignment]

Array = np.ndarray
# Wide enough for a peer's own rounding: for bfloat16 logits PyTorch's loss has an error of 6e-3.
TOLERANCE = {"float64": 1e-6, "float32": 1e-3, "float16": 5e-2, "bfloat16": 5e-2}
LEAST = 1e-34  # numbers below 1.2e-38 become 0 in XLA and TensorFlow: a focal loss of rows that lead by 30 has such
BLOCK = 1 << 20  # entries of float64 that the reference is given at a time
SAMPLE_SECONDS = 1e-3  # faster calls are repeated between two readings of the clock
SLOW_SECONDS, SLOW_ROUNDS = 30.0, 3  # after so many seconds so many rounds do: each call takes seconds itself


class Sample(NamedTuple):
    """Of one call: seconds of the clock, seconds of all cores together, and page faults; None where not known."""

    wall: float
    cpu: float | None = None
    faults: float | None = None


@dataclass
class Entrant:
    """A contender that runs in one way, with its arrays."""

    contender: Contender
    way: str
    run: steps.Step
    target: Any
    pred: Any
    arrays: dict[str, Any] = field(default_factory=dict)  # options of the loss

    def call(self, pred: Any) -> tuple[Any, Any]:
        return self.run(self.target, pred, **self.arrays)

    def fresh(self) -> Any:
        """Predictions that the contender may overwrite. In PyTorch they are no leaf, as a model's logits are none."""
        return each(lambda x: x * 1, self.pred) if self.contender.consumes else self.pred

    def failed(self, error: Exception | str) -> Measurement:
        words = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
        return Measurement(self.contender.name, self.way, fault=words.strip().splitlines()[0])


def outcome(
    b: Framework, cell: Cell, budget: Budget, device: str = "cpu", *, competing: Sequence[Contender] | None = None
) -> Outcome:
    """The cell's measurements. `competing`: contenders to measure instead of all."""
    if cell.form == IMPORT:
        return Outcome(cell, import_times(max(7, budget.least)))
    beside = _busy_process() if cell.busy else contextlib.nullcontext()
    with b.scope(cell.dtype, device), beside, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # compilers warn about large constants, libraries about renamed functions
        return Outcome(cell, _measured(b, cell, budget, device, competing))


def _measured(
    b: Framework, cell: Cell, budget: Budget, device: str, competing: Sequence[Contender] | None
) -> list[Measurement]:
    data = data_kinds.made(FORMS[cell.form], (cell.rows, cell.classes), cell.data)
    target, pred = placed(b, cell, data, device)
    pred = steps.leaf(b, pred, cell.backward)
    known = contenders(b.name, cell, device, data.options) if competing is None else competing
    arrays = {name: b.place(x, x.dtype.name, device) for name, x in data.options.items() if isinstance(x, np.ndarray)}
    entrants = [
        Entrant(contender, way, steps.step(b, contender, way, cell.backward), target, pred, arrays)
        for contender in known
        for way in steps.ways(b, cell, contender)
    ]
    judge = exact(b, cell, data, target, pred)
    del data
    found = [_checked(b, entrant, judge, cell, device) for entrant in entrants]
    del judge
    racing = [i for i, m in enumerate(found) if not m.fault]
    warm = [found[i].way == steps.EAGER and (found[i].first_ms or 0) > 500 for i in racing]
    times = interleaved(b, [entrants[i] for i in racing], budget, device, warm)
    for i, samples in zip(racing, times, strict=True):
        found[i] = _with_times(found[i], samples)
    for i in racing:
        found[i] = _with_memory(b, found[i], entrants[i], cell, budget, device)
    return found


def placed(b: Framework, cell: Cell, data: Data, device: str) -> tuple[Any, Any]:
    """Target and predictions as arrays of the framework."""
    labels = "int64" if b.name == "torch" else "int32"

    def place(x: Array) -> Any:
        return b.place(x, labels if x.dtype.kind == "i" else cell.dtype, device)

    return each(place, data.target), each(place, data.pred)


@contextlib.contextmanager
def _busy_process() -> Iterator[None]:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            yield
        finally:
            process.kill()


# Correctness.


def exact(b: Framework, cell: Cell, data: Data, target: Any, pred: Any) -> Exact:
    """For the arrays as the framework has rounded them."""
    labels = FORMS[cell.form].target == "labels"
    return Exact(cell, data.target if labels else each(b.to_numpy, target), each(b.to_numpy, pred), data.options)


class Exact:
    """The exact value, and the exact gradient of a few rows of each array of predictions, for the inputs as rounded to
    the cell's dtype."""

    def __init__(self, cell: Cell, target: Any, pred: Any, options: Mapping[str, Any]) -> None:
        form = FORMS[cell.form]
        # What one entry can add to a mean, and to its gradient: for peers that have no digits of less than that.
        elements = cell.rows * cell.classes if form.target == "outcomes" else cell.rows
        self.least_value, self.least_gradient = 1.0, 1.0 / elements
        counted = options.get("mask", target != options["ignore_class"] if "ignore_class" in options else None)
        count = cell.rows if counted is None else int(counted.sum())
        rows = _some(cell.rows)
        if form.units:
            labels = [target[0]] if form.target == "labels" else []  # also a class that is a label
            some = rows, [*labels, *_some(cell.classes)]
            total, gradients = _of_layer(form, target, pred, {**form.options, **options}, some)
            self.value = total / count
        else:
            oracle = functools.partial(getattr(reference, form.loss), **form.options, **_without_mask(options))
            if cell.data == RANDOM:
                plain = textbook.VALUES.get(cell.form, lambda t, p: oracle(t, p).value)
                self.value = textbook.exact_value(plain, target, pred)
            else:
                self.value = _sum_of_rows(oracle, target, pred, options.get("mask")) / count
            mask = None if "mask" not in options else options["mask"][rows]
            gradients = ((rows, oracle(target[rows], pred[rows], mask=mask, reduction="sum").gradient),)
        self.gradients = [(rows, gradient / count) for rows, gradient in gradients]

    def errors(self, b: Framework, value: Any, gradient: Any) -> tuple[float, float | None]:
        """Relative errors, the gradient's to the largest entry of its row. NaN counts as an infinite error."""
        return self._errors(b, value, gradient, LEAST, LEAST)

    def rough_errors(self, b: Framework, value: Any, gradient: Any) -> tuple[float, float | None]:
        """Relative to no less than a loss of 1: a peer may lose the digits of a loss that is nearly 0."""
        return self._errors(b, value, gradient, self.least_value, self.least_gradient)

    def _errors(
        self, b: Framework, value: Any, gradient: Any, least_value: float, least_gradient: float
    ) -> tuple[float, float | None]:
        error = abs(float(value) - self.value) / max(abs(self.value), least_value)
        if gradient is None:
            return _or_infinite(error), None
        worst = 0.0
        found = gradient if isinstance(gradient, tuple) else (gradient,)
        for array, (rows, exact) in zip(found, self.gradients, strict=True):
            some = np.stack([b.to_numpy(array[row]) for row in rows]).astype(np.float64)
            size = np.maximum(np.abs(exact).max(1, keepdims=True), least_gradient)
            worst = max(worst, _or_infinite(float((np.abs(some - exact) / size).max())))
        return _or_infinite(error), worst


def _some(count: int) -> list[int]:
    return sorted({0, count // 2, count - 1})


def _without_mask(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: x for name, x in options.items() if name != "mask"}


def _sum_of_rows(oracle: Callable[..., Any], target: Array, pred: Array, mask: Array | None) -> float:
    """Of the reference, in blocks of rows."""
    rows, total = max(1, BLOCK // pred.shape[1]), 0.0
    for start in range(0, len(pred), rows):
        these = slice(start, start + rows)
        counted = None if mask is None else mask[these]
        total += float(oracle(target[these], pred[these], mask=counted, reduction="sum").value)
    return total


def _of_layer(
    form: Form, target: Any, pred: tuple[Array, Array], options: Mapping[str, Any], some: tuple[list[int], list[int]]
) -> tuple[float, tuple[tuple[list[int], Array], ...]]:
    """The sum of the losses, and its gradients for some rows of hidden states and of weight, in blocks of rows.

    They are G W and Gᵀ h of the reference's gradient G for the logits of a block.
    """
    given = _without_mask(options) | ({"from_logits": True} if "from_logits" in form.record.options else {})
    oracle = functools.partial(getattr(reference, form.record.name), reduction="sum", **given)
    hidden, weight = (x.astype(np.float64) for x in pred)
    teacher = tuple(x.astype(np.float64) for x in target) if form.target == "logits" else ()
    rows, classes = some
    step, total = max(1, BLOCK // len(weight)), 0.0
    of_hidden, of_weight = np.zeros((len(rows), form.units)), np.zeros((len(classes), form.units))
    for start in range(0, len(hidden), step):
        these = slice(start, start + step)
        h, mask = hidden[these], options["mask"][these] if "mask" in options else None
        found = oracle(teacher[0][these] @ teacher[1].T if teacher else target[these], h @ weight.T, mask=mask)
        total += float(found.value)
        of_weight += found.gradient[:, classes].T @ h
        for i, row in enumerate(rows):
            if start <= row < start + len(h):
                of_hidden[i] = found.gradient[row - start] @ weight
    return total, ((rows, of_hidden), (classes, of_weight))


def _or_infinite(error: float) -> float:
    return math.inf if math.isnan(error) else error


def _checked(b: Framework, entrant: Entrant, judge: Exact, cell: Cell, device: str) -> Measurement:
    """The first call, which compiles: its time and errors, or the fault."""
    name, way = entrant.contender.name, entrant.way
    pred = entrant.fresh()
    start = time.perf_counter()
    try:
        result = entrant.call(pred)
        steps.wait(b, result, device)
        first = (time.perf_counter() - start) * 1e3
        value_error, gradient_error = judge.errors(b, *result)
        rough = cell.data != RANDOM and not name.startswith(OURS)
        judged = judge.rough_errors(b, *result) if rough else (value_error, gradient_error)
    except Exception as error:
        return entrant.failed(error)
    for quantity, off in zip(("value", "gradient"), judged, strict=True):
        if not (off or 0.0) <= TOLERANCE[cell.dtype]:
            return entrant.failed(f"{quantity} has a relative error of {off:.1e}: not timed")
    return Measurement(name, way, first_ms=first, value_error=value_error, gradient_error=gradient_error)


# Time.


def interleaved(
    b: Framework, entrants: Sequence[Entrant], budget: Budget, device: str, warm: Sequence[bool]
) -> list[list[Sample]]:
    """Samples of each, run in turn (A B C, A B C, …), so that a machine that slows down slows all of them.

    The first round warms up, and sets how many calls make a sample. `warm`: entrants that skip it, because their slow
    first call has warmed them up.
    """
    calls = [
        1 if done else _calls_a_sample(_sample(b, entrant, 1, device).wall, entrant)
        for entrant, done in zip(entrants, warm, strict=True)
    ]
    times: list[list[Sample]] = [[] for _ in entrants]
    gc.collect()
    gc.disable()
    try:
        start = time.perf_counter()
        for done in range(budget.most):
            taken = time.perf_counter() - start
            if taken > budget.seconds and done >= (budget.least if taken < SLOW_SECONDS else SLOW_ROUNDS):
                break
            for i, entrant in enumerate(entrants):
                times[i].append(_sample(b, entrant, calls[i], device))
    finally:
        gc.enable()
    return times


def _calls_a_sample(seconds: float, entrant: Entrant) -> int:
    return 1 if entrant.contender.consumes else max(1, min(1000, math.ceil(SAMPLE_SECONDS / seconds)))


def _sample(b: Framework, entrant: Entrant, calls: int, device: str) -> Sample:
    """Of so many calls. One that is not measured comes before them: a call finds the memory as another has left it."""
    steps.wait(b, entrant.call(entrant.fresh()), device)
    pred = entrant.fresh()
    steps.wait(b, pred, device)
    faults, cpu, start = page_faults(), time.process_time(), time.perf_counter()
    for _ in range(calls):
        result = entrant.call(pred)
        steps.wait(b, result, device)
    wall, cpu, more = time.perf_counter() - start, time.process_time() - cpu, page_faults()
    del result  # not timed: some frameworks free its memory at once, others later
    if device != "cpu":
        return Sample(wall / calls)
    return Sample(wall / calls, cpu / calls, None if faults is None or more is None else (more - faults) / calls)


def page_faults() -> int | None:
    """Of this process so far, those that read nothing from a disk; None where the system does not count them."""
    return None if resource is None else resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def _with_times(m: Measurement, samples: Sequence[Sample]) -> Measurement:
    low, median, high = (float(x) for x in np.percentile([1e3 * s.wall for s in samples], (25, 50, 75)))
    cpu = [1e3 * s.cpu for s in samples if s.cpu is not None]
    faults = [s.faults for s in samples if s.faults is not None]
    return replace(
        m,
        ms=median,
        low_ms=low,
        high_ms=high,
        cpu_ms=float(np.median(cpu)) if cpu else None,
        faults=float(np.median(faults)) if faults else None,
        rounds=len(samples),
    )


# Memory.


def _with_memory(
    b: Framework, m: Measurement, entrant: Entrant, cell: Cell, budget: Budget, device: str
) -> Measurement:
    """With its memory, where the cell is large enough to tell it from noise."""
    if cell.gradient_bytes < ENOUGH_BYTES:
        return m
    peaks = [memory.extra_bytes(_once(b, entrant, device), b, device) for _ in range(budget.memory)]
    planned = steps.planned_bytes(b, entrant.run, entrant.target, entrant.pred, **entrant.arrays)
    # Memory that the framework keeps from before lowers a measured peak, and nothing raises it: the largest counts.
    measured = [peak for peak in (*peaks, planned and sum(planned)) if peak is not None]
    return replace(m, extra_bytes=max(measured, default=None), temporary_bytes=planned and planned[0])


def _once(b: Framework, entrant: Entrant, device: str) -> Callable[[], Any]:
    pred = entrant.fresh()

    def call() -> Any:
        result = entrant.call(pred)
        steps.wait(b, result, device)
        return result

    return call


# Import.


def import_times(rounds: int) -> list[Measurement]:
    """Times of `import lossbridge` and `import numpy`, in turn, each in a fresh Python whose own start is not counted.

    From bytecode, as after an installation by pip: a first round, which does not count, writes it.
    """
    names = (OURS, "numpy")
    samples: dict[str, list[Sample]] = {name: [] for name in names}
    clocks = "time.perf_counter(), time.process_time()"
    with tempfile.TemporaryDirectory() as cache:
        environment = {name: x for name, x in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        environment["PYTHONPYCACHEPREFIX"] = cache
        for _ in range(1 + rounds):
            for name in names:
                program = f"import time; t, u = {clocks}; import {name}; v, w = {clocks}; print(v - t, w - u)"
                said = subprocess.run(
                    [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment
                )
                samples[name].append(Sample(*map(float, said.stdout.split())))
    return [_with_times(Measurement(name, steps.EAGER), samples[name][1:]) for name in names]
