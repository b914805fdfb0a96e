"""Measures one cell on one backend: checks every contender's result, then times them in turn, then their memory.

Which contenders there are is in contenders.py, how they run in steps.py.
"""

from __future__ import annotations

import functools
import gc
import math
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lossbridge import reference
from lossbridge.frameworks.framework import Framework
from lossbridge.tools.bench import memory, steps, textbook
from lossbridge.tools.bench.cells import FORMS, IMPORT, Budget, Cell
from lossbridge.tools.bench.contenders import OURS, Contender, contenders
from lossbridge.tools.bench.results import ENOUGH_BYTES, Measurement, Outcome

Array = np.ndarray
# Wide enough for a peer's own rounding: for bfloat16 logits PyTorch's loss has an error of 6e-3.
TOLERANCE = {"float64": 1e-6, "float32": 1e-3, "float16": 5e-2, "bfloat16": 5e-2}
SAMPLE_SECONDS = 1e-3  # faster calls are repeated between two readings of the clock


def arrays(cell: Cell) -> tuple[Array, Array]:
    """(target, pred), the same for every backend."""
    rng = np.random.default_rng(0)
    form, shape = FORMS[cell.form], (cell.rows, cell.classes)

    def distributions() -> Array:
        p = rng.random(shape, np.float32) + np.float32(0.1)
        return p / p.sum(1, keepdims=True)

    if form.target == "labels":
        target: Array = rng.integers(0, cell.classes, cell.rows)
    elif form.target == "distributions":
        target = distributions()
    elif form.target == "outcomes":
        target = rng.random(shape, np.float32)
    else:
        target = rng.standard_normal(shape, np.float32)
    if form.from_logits:
        return target, rng.standard_normal(shape, np.float32)
    if form.target == "outcomes":
        return target, rng.uniform(0.05, 0.95, shape).astype(np.float32)
    return target, distributions()


@dataclass
class Entrant:
    """A contender that runs in one way, with its arrays."""

    contender: Contender
    way: str
    run: steps.Step
    target: Any
    pred: Any

    def fresh(self) -> Any:
        """Predictions that the contender may overwrite. In PyTorch they are no leaf, as a model's logits are none."""
        return self.pred * 1 if self.contender.consumes else self.pred

    def failed(self, error: Exception | str) -> Measurement:
        words = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
        return Measurement(self.contender.name, self.way, fault=words.strip().splitlines()[0])


def outcome(
    b: Framework, cell: Cell, budget: Budget, device: str = "cpu", *, competing: Sequence[Contender] | None = None
) -> Outcome:
    """The cell's measurements. `competing`: contenders to measure instead of all."""
    if cell.form == IMPORT:
        return Outcome(cell, import_times(max(7, budget.least)))
    with b.scope(cell.dtype, device), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # compilers warn about large constants, libraries about renamed functions
        return Outcome(cell, _measured(b, cell, budget, device, competing))


def _measured(
    b: Framework, cell: Cell, budget: Budget, device: str, competing: Sequence[Contender] | None
) -> list[Measurement]:
    y_true, y_pred = arrays(cell)
    labels = "int64" if b.name == "torch" else "int32"
    target = b.place(y_true, labels if y_true.dtype.kind == "i" else cell.dtype, device)
    pred = steps.leaf(b, b.place(y_pred, cell.dtype, device), cell.backward)
    entrants = [
        Entrant(contender, way, steps.step(b, contender, way, cell.backward), target, pred)
        for contender in (contenders(b.name, cell, device) if competing is None else competing)
        for way in steps.ways(b, cell, contender)
    ]
    exact = Exact(cell, y_true if y_true.dtype.kind == "i" else b.to_numpy(target), b.to_numpy(pred))
    del y_true, y_pred
    found = [_checked(b, entrant, exact, cell.dtype, device) for entrant in entrants]
    del exact
    racing = [i for i, m in enumerate(found) if not m.fault]
    warm = [found[i].way == steps.EAGER and (found[i].first_ms or 0) > 500 for i in racing]
    times = interleaved(b, [entrants[i] for i in racing], budget, device, warm)
    for i, seconds in zip(racing, times, strict=True):
        found[i] = _with_times(found[i], seconds)
    for i in racing:
        found[i] = _with_memory(b, found[i], entrants[i], cell, budget, device)
    return found


# Correctness.


class Exact:
    """The exact value, and the exact gradient of a few rows, for the inputs as rounded to the cell's dtype."""

    def __init__(self, cell: Cell, target: Array, pred: Array) -> None:
        form = FORMS[cell.form]
        oracle = functools.partial(getattr(reference, form.loss), **form.options)
        plain = textbook.VALUES.get(cell.form, lambda t, p: oracle(t, p).value)
        self.value = textbook.exact_value(plain, target, pred)
        self.rows = sorted({0, cell.rows // 2, cell.rows - 1})
        result = oracle(target[self.rows], pred[self.rows])
        self.gradient = result.gradient * (len(self.rows) / cell.rows)  # of the mean over all rows

    def errors(self, b: Framework, value: Any, gradient: Any) -> tuple[float, float | None]:
        """Relative errors, the gradient's to the largest entry of its row. NaN counts as an infinite error."""
        error = abs(float(value) - self.value) / abs(self.value)
        if gradient is None:
            return _or_infinite(error), None
        some = np.stack([b.to_numpy(gradient[row]) for row in self.rows]).astype(np.float64)
        size = np.abs(self.gradient).max(1, keepdims=True)
        return _or_infinite(error), _or_infinite(float((np.abs(some - self.gradient) / size).max()))


def _or_infinite(error: float) -> float:
    return math.inf if math.isnan(error) else error


def _checked(b: Framework, entrant: Entrant, exact: Exact, dtype: str, device: str) -> Measurement:
    """The first call, which compiles: its time and errors, or the fault."""
    pred = entrant.fresh()
    start = time.perf_counter()
    try:
        result = entrant.run(entrant.target, pred)
        steps.wait(b, result, device)
        first = (time.perf_counter() - start) * 1e3
        value_error, gradient_error = exact.errors(b, *result)
    except Exception as error:
        return entrant.failed(error)
    for quantity, off in (("value", value_error), ("gradient", gradient_error or 0.0)):
        if not off <= TOLERANCE[dtype]:
            return entrant.failed(f"{quantity} has a relative error of {off:.1e}: not timed")
    name, way = entrant.contender.name, entrant.way
    return Measurement(name, way, first_ms=first, value_error=value_error, gradient_error=gradient_error)


# Time.


def interleaved(
    b: Framework, entrants: Sequence[Entrant], budget: Budget, device: str, warm: Sequence[bool]
) -> list[list[float]]:
    """Seconds per call of each, run in turn (A B C, A B C, …), so that a machine that slows down slows all of them.

    The first round warms up, and sets how many calls make a sample. `warm`: entrants that skip it, because their slow
    first call has warmed them up.
    """
    calls = [
        1 if done else _calls_a_sample(_sample(b, entrant, 1, device), entrant)
        for entrant, done in zip(entrants, warm, strict=True)
    ]
    times: list[list[float]] = [[] for _ in entrants]
    gc.collect()
    gc.disable()
    try:
        start = time.perf_counter()
        for done in range(budget.most):
            if done >= budget.least and time.perf_counter() - start > budget.seconds:
                break
            for i, entrant in enumerate(entrants):
                times[i].append(_sample(b, entrant, calls[i], device))
    finally:
        gc.enable()
    return times


def _calls_a_sample(seconds: float, entrant: Entrant) -> int:
    return 1 if entrant.contender.consumes else max(1, min(1000, math.ceil(SAMPLE_SECONDS / seconds)))


def _sample(b: Framework, entrant: Entrant, calls: int, device: str) -> float:
    run, target, pred = entrant.run, entrant.target, entrant.fresh()
    steps.wait(b, pred, device)
    start = time.perf_counter()
    for _ in range(calls):
        result = run(target, pred)
        steps.wait(b, result, device)
    seconds = (time.perf_counter() - start) / calls
    del result  # not timed: some frameworks free its memory at once, others later
    return seconds


def _with_times(m: Measurement, seconds: Sequence[float]) -> Measurement:
    low, median, high = np.percentile(np.array(seconds) * 1e3, (25, 50, 75))
    return replace(m, ms=float(median), low_ms=float(low), high_ms=float(high), rounds=len(seconds))


# Memory.


def _with_memory(
    b: Framework, m: Measurement, entrant: Entrant, cell: Cell, budget: Budget, device: str
) -> Measurement:
    """With its memory, where the cell is large enough to tell it from noise."""
    if cell.gradient_bytes < ENOUGH_BYTES:
        return m
    peaks = [memory.extra_bytes(_once(b, entrant, device), b, device) for _ in range(budget.memory)]
    planned = steps.planned_bytes(b, entrant.run, entrant.target, entrant.pred)
    # Memory that the framework keeps from before lowers a measured peak, and nothing raises it: the largest counts.
    measured = [peak for peak in (*peaks, planned and sum(planned)) if peak is not None]
    return replace(m, extra_bytes=max(measured, default=None), temporary_bytes=planned and planned[0])


def _once(b: Framework, entrant: Entrant, device: str) -> Callable[[], Any]:
    pred = entrant.fresh()

    def call() -> Any:
        result = entrant.run(entrant.target, pred)
        steps.wait(b, result, device)
        return result

    return call


# Import.


def import_times(rounds: int) -> list[Measurement]:
    """Times of `import lossbridge` and `import numpy`, in turn, each in a fresh Python whose own start is not counted.

    From bytecode, as after an installation by pip: a first round, which does not count, writes it.
    """
    names = (OURS, "numpy")
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as cache:
        environment = {name: x for name, x in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        environment["PYTHONPYCACHEPREFIX"] = cache
        for _ in range(1 + rounds):
            for name in names:
                program = f"import time; t = time.perf_counter(); import {name}; print(time.perf_counter() - t)"
                said = subprocess.run(
                    [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment
                )
                seconds[name].append(float(said.stdout))
    return [_with_times(Measurement(name, steps.EAGER), seconds[name][1:]) for name in names]
