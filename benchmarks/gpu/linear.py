"""The linear cross-entropy on the card: every case of it, and its time and memory beside the loss of all logits."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

from gpu import times
from gpu.checks import judged
from gpu.job import Card, Job, Record
from lossbridge.frameworks import FRAMEWORKS
from lossbridge.tools.bench import contenders, memory, steps
from lossbridge.tools.bench.cells import LINEAR, Cell
from lossbridge.tools.parity import check
from lossbridge.tools.parity.cases import Case
from lossbridge.tools.parity.linear_cases import linear_cases

Layer = tuple[Any, Any]  # hidden states (rows, units) and weight (classes, units)
# Rows, units, classes, dtype. The first is a step of a model with 8 billion parameters.
SIZES = (
    (4096, 4096, 128_256, "bfloat16"),
    (2048, 2048, 32_768, "bfloat16"),
    (2048, 2048, 32_768, "float16"),
    (2048, 2048, 32_768, "float32"),
)
REHEARSED = ((64, 16, 300, "float32"), (64, 16, 300, "bfloat16"))
COMPILED = 5  # cases, of every dtype: each is compiled for itself
BLOCK = 1 << 26  # logits of float64 at a time


def jobs(card: Card) -> Iterator[Job]:
    """Cases first, which take a second each at most."""
    times.without_keras()
    runner = check.Runner(FRAMEWORKS["torch"](), card.device)
    for case in [*every_case()][:: 5 if card.rehearsal else 1]:
        run = functools.partial(lambda case: [judged(case, runner.run(case, "eager"))], case)
        yield Job(f"{case.loss}/{case.name}", run, case.dtype, case.y_pred.shape)
    for case in linear_cases()[: 1 if card.rehearsal else COMPILED]:
        run = functools.partial(lambda case: [judged(case, runner.run(case, "compile"))], case)
        yield Job(f"compile of {case.loss}/{case.name}", run, case.dtype, case.y_pred.shape)
    for rows, units, classes, dtype in REHEARSED if card.rehearsal else SIZES:
        cell = Cell(LINEAR, rows, classes, dtype=dtype)
        name = f"linear CE, {rows}×{units}×{classes} {dtype}"
        yield Job(name, functools.partial(race, card, cell, units, name), dtype, (rows, units, classes))


def every_case() -> Iterator[Case]:
    """Those of float32 also in half precision, which has their numbers, and whose products are others on the card."""
    yield from linear_cases()
    for dtype in ("bfloat16", "float16"):
        yield from (dataclasses.replace(case, dtype=dtype) for case in linear_cases() if case.dtype == "float32")


def race(card: Card, cell: Cell, units: int, name: str) -> Iterator[Record]:
    """One set of inputs: the weight alone is larger than any cache."""
    b = FRAMEWORKS["torch"]()
    labels, pred = inputs(card, cell, units)
    found = contenders.contenders("torch", cell, card.device)
    entrants = [
        times.Entrant(c.name, steps.EAGER, steps.step(b, c, steps.EAGER, True), c.consumes)
        for c in found
        if c.name != contenders.IN_PLACE
    ]
    made = times.Race(
        {"name": name, "dtype": cell.dtype, "shape": [cell.rows, units, cell.classes]},
        2 * sum(x.numel() * x.element_size() for x in pred),
        entrants,
        [(labels, pred)],
        errors_of_layer(labels, pred),
        functools.partial(times.torch_clock, card),
        lambda call: memory.extra_bytes(call, b, card.device),
    )
    yield from times.run(card, made)


def inputs(card: Card, cell: Cell, units: int) -> tuple[Any, Layer]:
    import torch

    of = {"device": card.device, "dtype": getattr(torch, cell.dtype)}
    hidden = torch.randn((cell.rows, units), **of).requires_grad_()
    weight = (torch.randn((cell.classes, units), **of) / units**0.5).requires_grad_()
    return torch.randint(cell.classes, (cell.rows,), device=card.device), (hidden, weight)


def errors_of_layer(labels: Any, pred: Layer) -> times.Errors:
    """Of the mean, and of the gradients for three hidden states and for the classes of three labels, in float64."""
    import torch

    b = FRAMEWORKS["torch"]()
    hidden, weight = (x.detach() for x in pred)
    rows = sorted({0, len(hidden) // 2, len(hidden) - 1})
    classes = labels[rows].unique()
    loss, of_hidden = 0.0, torch.zeros(len(rows), hidden.shape[1], dtype=torch.float64, device=hidden.device)
    of_weight = torch.zeros(len(classes), weight.shape[1], dtype=torch.float64, device=hidden.device)
    step = max(1, BLOCK // len(weight))
    wide = weight.double()
    for start in range(0, len(hidden), step):
        h, y = hidden[start : start + step].double(), labels[start : start + step]
        log_p = torch.log_softmax(h @ wide.T, 1)
        loss -= float(log_p.gather(1, y[:, None]).sum())
        slopes = log_p.exp_()
        slopes[torch.arange(len(y)), y] -= 1
        of_weight += slopes[:, classes].T @ h
        for i, row in enumerate(rows):
            if start <= row < start + len(h):
                of_hidden[i] = slopes[row - start] @ wide
    exact = [b.to_numpy(x / len(hidden)) for x in (of_hidden, of_weight)]

    def errors(value: Any, got: tuple[Any, Any]) -> tuple[float, float | None]:
        some = [b.to_numpy(got[0][rows]), b.to_numpy(got[1][classes])]
        relative = max(times.relative(x, y) for x, y in zip(some, exact, strict=True))
        return times.relative(b.to_numpy(value), b.to_numpy(torch.tensor(loss / len(hidden)))), relative

    return errors
