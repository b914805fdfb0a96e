"""`lossbridge explain`: which path computes a call, in a framework, eager and under each of its compilers.

The words are those of `lossbridge.explain`. A worker of its own for each framework asks it; the command prints `table`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table
from rich.text import Text

from lossbridge.explanation import explain
from lossbridge.frameworks.framework import Framework
from lossbridge.spec import LOSSES
from lossbridge.tools.parity.files import load_arrays
from lossbridge.tools.processes import BackendRun, Job, serve


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
    y_true: np.ndarray
    y_pred: np.ndarray
    arrays: Mapping[str, np.ndarray]  # sample_weight, mask, …
    options: Mapping[str, Any]
    dtype: str = ""


def call_of(request: Mapping[str, Any]) -> Call:
    """Of the request's file, or of its shape."""
    loss, options = request["loss"], request["options"]
    if not request["file"]:
        return _call_of_shape(loss, tuple(request["shape"]), request["dtype"], options)
    arrays = load_arrays(Path(request["file"]))
    return Call(loss, arrays.pop("y_true"), arrays.pop("y_pred"), arrays, options)


def _call_of_shape(loss: str, shape: tuple[int, ...], dtype: str, options: Mapping[str, Any]) -> Call:
    """Of arrays whose numbers are all equal; labels where the loss takes them."""
    record, axis = LOSSES[loss], options.get("axis", -1)
    target = next(iter(record.rules[record.form(options)]))
    classes = shape[axis] if shape and -len(shape) <= axis < len(shape) else 1
    y_pred = np.full(shape, 0.0 if record.form(options) == "logits" else 1 / max(classes, 2), np.float32)
    if target == "labels":
        y_true = np.zeros([n for i, n in enumerate(shape) if i != axis % max(len(shape), 1)], np.int64)
    else:
        y_true = np.full(shape, {"outcomes": 1.0, "logits": 0.0}.get(target, 1 / classes), np.float32)
    return Call(loss, y_true, y_pred, {}, options, dtype)


def found(b: Framework, call: Call, device: str, under: str) -> Found:
    def place(x: np.ndarray) -> Any:
        return b.place(x, call.dtype if call.dtype and x.dtype.kind == "f" else x.dtype.name, device)

    with b.scope(call.dtype or call.y_pred.dtype.name, device):
        labels = call.y_true.dtype.kind in "iu" and device == "cpu"  # NumPy's, which each framework takes as they are
        y_true, y_pred = call.y_true if labels else place(call.y_true), place(call.y_pred)
        arrays = {name: place(x) for name, x in call.arrays.items()}
        try:
            explained = explain(call.loss, y_true, y_pred, under=under, **arrays, **call.options)
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
