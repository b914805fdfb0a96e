"""`lossbridge explain`: which path computes a call, in a framework, eager and under each of its compilers.

The words are those of `lossbridge.explain`. A worker of its own for each framework asks it; the command prints `table`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from lossbridge.explanation import explain
from lossbridge.frameworks.framework import Framework
from lossbridge.spec import LOSSES
from lossbridge.tools.parity.cases import Case
from lossbridge.tools.parity.check import placed
from lossbridge.tools.parity.files import case_of
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


def case_of_shape(loss: str, shape: tuple[int, ...], dtype: str, options: Mapping[str, Any]) -> Case:
    """A call of that shape, whose numbers are all equal; labels where the loss takes them."""
    record, axis = LOSSES[loss], options.get("axis", -1)
    target = next(iter(record.rules[record.form(options)]))
    classes = shape[axis] if shape and -len(shape) <= axis < len(shape) else 1
    y_pred = np.full(shape, 0.0 if record.form(options) == "logits" else 1 / max(classes, 2), np.float32)
    if target == "labels":
        y_true = np.zeros([n for i, n in enumerate(shape) if i != axis % max(len(shape), 1)], np.int64)
    else:
        y_true = np.full(shape, {"outcomes": 1.0, "logits": 0.0}.get(target, 1 / classes), np.float32)
    return Case(f"{shape}", loss, y_true, y_pred, options, dtype)


def found(b: Framework, case: Case, device: str, under: str) -> Found:
    with b.scope(case.dtype, device):
        y_true, y_pred, arrays, static = placed(b, case, device)
        if case.y_true.dtype.kind == "i" and device == "cpu":
            y_true = case.y_true  # which the framework converts to labels of its usual dtype
        try:
            explained = explain(case.loss, y_true, y_pred, under=under, **arrays, **static)
        except (ValueError, TypeError) as error:
            return Found(under, fault=str(error))
    return Found(under, explained.path, tuple(str(explained).splitlines()[1:]))


def table(runs: Sequence[BackendRun[Found]], title: str) -> Table:
    """A row for each framework and way to call it, whose last column holds the sentences."""
    shown = Table(title=title, title_justify="left", show_lines=True)
    shown.add_column("call", no_wrap=True)
    shown.add_column("path", no_wrap=True)
    shown.add_column("value, gradient, and why not a faster path")
    for run in runs:
        for one in run.outcomes:
            words = "\n".join(one.lines) or one.fault
            shown.add_row(f"{run.backend} {run.version.split('+')[0]}\n{one.under or 'eager'}", one.path, words)
    return shown


def jobs(b: Framework, request: dict[str, Any]) -> tuple[list[Job], dict[str, Any]]:
    loss, options = request["loss"], request["options"]
    if request["file"]:
        case = case_of(Path(request["file"]), loss, options)
    else:
        case = case_of_shape(loss, tuple(request["shape"]), request["dtype"], options)
    return [
        (f"{loss}, {under or 'eager'}", partial(found, b, case, request["device"], under))
        for under in ("", *b.compilers())
    ], {}


if __name__ == "__main__":
    serve(jobs)
