"""`lossbridge explain`: which path computes a call, in a framework, eager and under each of its compilers.

The words are those of `lossbridge.explain`. A worker of its own for each framework asks it; the command prints `table`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table
from rich.text import Text

from lossbridge import losses
from lossbridge.explanation import PREDICTIONS, explain
from lossbridge.frameworks.framework import Framework
from lossbridge.spec import LOSSES, Loss
from lossbridge.tools.parity.files import load_arrays
from lossbridge.tools.processes import BackendRun, Job, serve

# Of the arrays that are made up: the classes of a linear layer, and those that topk_divergence keeps.
CLASSES, KEPT = 32_768, 64


@dataclass(frozen=True)
class Found:
    """What `lossbridge.explain` says of a call under one compiler, "" for eager; or why it said nothing."""

    under: str
    path: str = ""
    lines: tuple[str, ...] = ()
    fault: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Call(NamedTuple):
    """A call of a loss, of arrays in their own dtypes; with `dtype`, of floating-point ones in that."""

    loss: str
    arrays: Mapping[str, Any]  # NumPy's, by the names of the loss's arguments
    options: Mapping[str, Any]
    dtype: str = ""

    @property
    def predictions(self) -> np.ndarray:
        return np.asarray(self.arrays[PREDICTIONS[self.loss]])


def call_of(request: Mapping[str, Any]) -> Call:
    """Of the request's file, or of its shape."""
    loss, options = request["loss"], request["options"]
    if not request["file"]:
        arrays = _made(loss, tuple(request["shape"]), request["classes"], options)
        return Call(loss, arrays, options, request["dtype"])
    arrays = load_arrays(Path(request["file"]))
    record = LOSSES[loss]
    names = {"y_true": record.names.target, "y_pred": record.names.pred}
    return Call(loss, {names.get(name, name): x for name, x in arrays.items()}, options)


def _made(loss: str, shape: tuple[int, ...], classes: int | None, options: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """What the loss takes by position, of predictions of that shape. All numbers of an array are equal."""
    if loss in LOSSES:
        return _of_record(LOSSES[loss], shape, options)
    axis = options.get("axis", -1)
    size = shape[axis] if shape and -len(shape) <= axis < len(shape) else 1
    rows = [n for i, n in enumerate(shape) if i != axis % max(len(shape), 1)]
    kept = KEPT if classes is None else classes
    places = np.expand_dims(np.arange(kept), [i for i in range(len(shape)) if i != axis % len(shape)])
    of_kept = [kept if i == axis % len(shape) else n for i, n in enumerate(shape)]
    weight = (CLASSES if classes is None else classes, size)
    made: Mapping[str, Callable[[], np.ndarray]] = {
        "labels": lambda: np.zeros(rows, np.int64),
        "indices": lambda: np.broadcast_to(places, of_kept),
        "log_probs": lambda: np.full(of_kept, -np.log(size), np.float32),
        **dict.fromkeys(("weight", "teacher_weight", "student_weight"), lambda: np.zeros(weight, np.float32)),
    }
    parameters = inspect.signature(getattr(losses, loss)).parameters.values()
    names = [x.name for x in parameters if x.default is x.empty]
    return {name: made[name]() if name in made else np.zeros(shape, np.float32) for name in names}


def _of_record(record: Loss, shape: tuple[int, ...], options: Mapping[str, Any]) -> dict[str, np.ndarray]:
    axis, form = options.get("axis", -1), record.form(options)
    target = next(iter(record.rules[form]))
    classes = shape[axis] if shape and -len(shape) <= axis < len(shape) else 1
    y_pred = np.full(shape, 0.0 if form == "logits" else 1 / max(classes, 2), np.float32)
    if target == "labels":
        y_true = np.zeros([n for i, n in enumerate(shape) if i != axis % max(len(shape), 1)], np.int64)
    else:
        y_true = np.full(shape, {"outcomes": 1.0, "logits": 0.0}.get(target, 1 / classes), np.float32)
    return {record.names.target: y_true, record.names.pred: y_pred}


def found(b: Framework, call: Call, device: str, under: str) -> Found:
    def place(x: np.ndarray) -> Any:
        if x.dtype.kind in "iu" and device == "cpu":
            return x  # NumPy's labels, which each framework takes as they are
        return b.place(x, call.dtype if call.dtype and x.dtype.kind == "f" else x.dtype.name, device)

    with b.scope(call.dtype or call.predictions.dtype.name, device):
        arrays = {name: place(x) for name, x in call.arrays.items()}
        try:
            explained = explain(call.loss, under=under, **arrays, **call.options)
        except (ValueError, TypeError) as error:
            return Found(under, fault=str(error))
    return Found(under, explained.path, tuple(str(explained).splitlines()[1:]))


def table(runs: Sequence[BackendRun[Found]], title: str) -> Table:
    """A row for each framework and way to call it, whose last column holds the sentences."""
    shown = Table(title=Text(title), title_justify="left", show_lines=True)
    shown.add_column("call", no_wrap=True)
    shown.add_column("path", no_wrap=True)
    shown.add_column("value, gradient, and why not a faster path")
    for run in runs:
        for one in run.outcomes:
            words = "\n".join(one.lines) or one.fault
            call = f"{run.backend} {run.version.split('+')[0]}\n{one.under or 'eager'}"
            shown.add_row(*(Text(x) for x in (call, one.path, words)))  # no markup: texts hold brackets
    return shown


def jobs(b: Framework, request: dict[str, Any]) -> tuple[list[Job], dict[str, Any]]:
    call = call_of(request)
    return [
        (f"{call.loss}, {under or 'eager'}", partial(found, b, call, request["device"], under))
        for under in ("", *b.compilers())
    ], {}


if __name__ == "__main__":
    serve(jobs)
