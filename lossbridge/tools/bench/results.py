"""Measurements as plain data, and what follows from them by arithmetic: ratios, growth with size, regressions.

Measures nothing and prints nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from lossbridge.tools import processes
from lossbridge.tools.bench.cells import IMPORT, Cell
from lossbridge.tools.bench.contenders import OURS
from lossbridge.tools.bench.data_kinds import IGNORED_ROWS
from lossbridge.tools.processes import BackendRun

WORSE = 1.10  # a figure counts as worse from this factor on
ENOUGH_BYTES = 1 << 22  # below, memory is not told from noise, and time is not bound by bandwidth


@dataclass(frozen=True)
class Measurement:
    """One contender, run in one way. `ms`, `low_ms`, `high_ms`: median and quartiles of a call; `cpu_ms`, `faults`:
    medians of its time on all cores together, user's and system's, and of its page faults; `first_ms`: the first call,
    with compilation. Errors are relative, the gradient's to the largest entry of its row. `fault`: why it was not
    timed."""

    name: str
    way: str
    ms: float | None = None
    low_ms: float | None = None
    high_ms: float | None = None
    cpu_ms: float | None = None
    faults: float | None = None
    rounds: int = 0
    first_ms: float | None = None
    extra_bytes: int | None = None
    temporary_bytes: int | None = None
    value_error: float | None = None
    gradient_error: float | None = None
    fault: str = ""


@dataclass(frozen=True)
class Outcome:
    """The measurements of a cell on a backend."""

    cell: Cell
    measurements: list[Measurement] = field(default_factory=list)

    @property
    def fault(self) -> str:
        return "; ".join(f"{m.name}, {m.way}: {m.fault}" for m in self.measurements if m.fault)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"bytes": self.cell.bytes}

    @classmethod
    def of_dict(cls, found: dict[str, Any]) -> Outcome:
        return cls(Cell(**found["cell"]), [Measurement(**m) for m in found["measurements"]])

    def get(self, name: str, way: str) -> Measurement | None:
        """The contender's measurement, if it was timed."""
        return next((m for m in self.measurements if (m.name, m.way) == (name, way) and m.ms is not None), None)

    def peers(self, way: str) -> list[Measurement]:
        return [m for m in self.measurements if m.way == way and m.ms and not m.name.startswith(OURS)]


Run = BackendRun[Outcome]


def joined(label: str, runs: Sequence[Run]) -> Run:
    """The runs of the sections of this label, which differ in the number of threads, as one."""
    speeds = [run.facts.get("copy_bytes_per_second", {}) for run in runs]
    copies = {threads: speed for found in speeds for threads, speed in found.items()}
    return replace(processes.joined(runs), backend=label, facts={**runs[0].facts, "copy_bytes_per_second": copies})


def bandwidth(run: Run, threads: int = 1) -> float:
    """Bytes per second of a copy by so many threads; 0 where unknown."""
    return float(run.facts.get("copy_bytes_per_second", {}).get(str(threads), 0))


def limit_ms(run: Run, cell: Cell) -> float | None:
    """The time of a copy of the bytes that the cell must move; None where that is too short to tell anything."""
    speed = bandwidth(run, cell.threads)
    return cell.bytes / speed * 1e3 if speed and cell.bytes >= ENOUGH_BYTES else None


def cost(m: Measurement, cell: Cell) -> float | None:
    """The time that is compared: of the core where there is one thread, because the clock also counts what else runs on
    the machine; of the clock with more threads, and on a device."""
    return m.ms if m.cpu_ms is None or cell.threads > 1 else m.cpu_ms


@dataclass(frozen=True)
class Ratio:
    """Ours over the best peer's, run in the same way. None where there is no peer, or too little memory to compare.

    `wall`, `cpu`: of both kinds of time; `time`: of the kind that counts.
    """

    backend: str
    cell: Cell
    way: str
    ours: Measurement
    limit_ms: float | None
    peer: Measurement | None = None  # the fastest
    wall: float | None = None
    cpu: float | None = None
    time: float | None = None
    memory: float | None = None  # over the peer with the least


def quotient(ours: float | None, peer: float | None) -> float | None:
    if ours is None or peer is None:
        return None
    return ours / peer if peer else 1.0 if not ours else math.inf


def memory_quotient(ours: int | None, peer: int | None) -> float | None:
    """Both count as at least ENOUGH_BYTES; None where both are below it."""
    if ours is None or peer is None or max(ours, peer) < ENOUGH_BYTES:
        return None
    return max(ours, ENOUGH_BYTES) / max(peer, ENOUGH_BYTES)


def ratios(runs: Iterable[Run]) -> list[Ratio]:
    found = []
    for run in runs:
        for outcome in run.outcomes:
            for m in outcome.measurements:
                if m.name != OURS or m.ms is None or outcome.cell.form == IMPORT:
                    continue
                peers = outcome.peers(m.way)
                cell = outcome.cell
                costs = {peer.name: cost(peer, cell) or math.inf for peer in peers}
                fastest = min(peers, key=lambda peer: costs[peer.name], default=None)
                least = min((p.extra_bytes for p in peers if p.extra_bytes is not None), default=None)
                found.append(
                    Ratio(
                        run.backend,
                        cell,
                        m.way,
                        m,
                        limit_ms(run, cell),
                        fastest,
                        quotient(m.ms, fastest.ms) if fastest else None,
                        quotient(m.cpu_ms, fastest.cpu_ms) if fastest else None,
                        quotient(cost(m, cell), cost(fastest, cell)) if fastest else None,
                        memory_quotient(m.extra_bytes, least),
                    )
                )
    return found


@dataclass(frozen=True)
class Slope:
    """The exponent a in cost ∝ size^a, the slope in a log-log plot: fitted to all steps of a sweep (`overall`), and
    between the two largest (`end`)."""

    backend: str
    form: str
    sweep: str
    fixed: int
    name: str
    way: str
    overall: float
    end: float


def slopes(runs: Iterable[Run]) -> list[Slope]:
    found = []
    for run in runs:
        for form, sweep, outcomes in sweeps(run):
            fixed = outcomes[0].cell.rows if sweep == "V" else outcomes[0].cell.classes
            keys = dict.fromkeys((m.name, m.way) for o in outcomes for m in o.measurements)
            for name, way in keys:
                found_at = [(o.cell, m) for o in outcomes if (m := o.get(name, way))]
                points = [(size_of(cell), ms) for cell, m in found_at if (ms := cost(m, cell))]
                if len(points) < 2:
                    continue
                x, y = np.log(np.array(points, float)).T
                end = (y[-1] - y[-2]) / (x[-1] - x[-2])
                found.append(
                    Slope(run.backend, form, sweep, fixed, name, way, float(np.polyfit(x, y, 1)[0]), float(end))
                )
    return found


@dataclass(frozen=True)
class Spread:
    """How much time depends on the data: the cost of the slowest kind over that of the fastest. A kind that leaves rows
    out is never the fastest: it has less to do."""

    backend: str
    form: str
    name: str
    way: str
    factor: float
    slowest: str
    fastest: str
    kinds: int


def spreads(runs: Iterable[Run]) -> list[Spread]:
    """Of each contender and loss with at least two kinds of data, in the order of the losses, ours first."""
    found = []
    for run in runs:
        outcomes = [o for o in run.outcomes if o.cell.sweep == "data"]
        keys = dict.fromkeys((o.cell.form, m.way, m.name) for o in outcomes for m in o.measurements)
        for form, way, name in keys:
            costs = {
                o.cell.data: cost(m, o.cell) or math.nan
                for o in outcomes
                if o.cell.form == form and (m := o.get(name, way))
            }
            whole = {data: ms for data, ms in costs.items() if data != IGNORED_ROWS}
            if not whole or len(costs) < 2:
                continue
            slowest, fastest = max(costs, key=costs.__getitem__), min(whole, key=whole.__getitem__)
            factor = costs[slowest] / costs[fastest]
            found.append(Spread(run.backend, form, name, way, factor, slowest, fastest, len(costs)))
    return found


def sweeps(run: Run) -> Iterator[tuple[str, str, list[Outcome]]]:
    """(form, "N" or "V", outcomes in order of size) of every sweep with at least two steps."""
    keys = dict.fromkeys((o.cell.form, o.cell.sweep) for o in run.outcomes if o.cell.sweep in ("N", "V"))
    for form, sweep in keys:
        steps = [o for o in run.outcomes if (o.cell.form, o.cell.sweep) == (form, sweep)]
        if len(steps) > 1:
            yield form, sweep, sorted(steps, key=lambda o: size_of(o.cell))


def size_of(cell: Cell) -> int:
    return cell.rows if cell.sweep == "N" else cell.classes


# Comparison with an earlier run, perhaps on another machine: only ratios within each run are compared.


def worse(old: Iterable[Run], new: Iterable[Run]) -> tuple[list[str], int]:
    """One line per figure that got worse, and the number of figures compared.

    Worse: the median is more than a tenth above the old one, and the lower quartile above the old upper one.
    """
    before = {(run.backend, o.cell.same): (run, o) for run in old for o in run.outcomes}
    lines, compared = [], 0
    for run in new:
        for outcome in run.outcomes:
            if (run.backend, outcome.cell.same) not in before:
                continue
            old_figures = dict(_figures(*before[run.backend, outcome.cell.same]))
            for words, (median, low, _) in _figures(run, outcome):
                if words not in old_figures:
                    continue
                compared += 1
                old_median, _, old_high = old_figures[words]
                if median > WORSE * old_median and low > old_high:
                    factor = median / old_median
                    lines.append(
                        f"{run.backend}: {outcome.cell.name}: {words}: {old_median:.3g} became {median:.3g}, "
                        f"{factor:.2f} times as much"
                    )
    return lines, compared


def _figures(run: Run, outcome: Outcome) -> Iterator[tuple[str, tuple[float, float, float]]]:
    """(description, (median, lower and upper quartile)) of ours, in units of this run's peers and of its copy."""
    limit = limit_ms(run, outcome.cell)
    for m in outcome.measurements:
        if not m.name.startswith(OURS) or m.ms is None or m.low_ms is None or m.high_ms is None:
            continue
        units = {peer.name: peer.ms or math.nan for peer in outcome.peers(m.way)}
        for name, unit in (units | {"copy": limit} if limit else units).items():
            yield f"{m.name} / {name}, {m.way}, time", (m.ms / unit, m.low_ms / unit, m.high_ms / unit)
        if m.extra_bytes is not None and outcome.cell.gradient_bytes >= ENOUGH_BYTES:
            ratio = max(m.extra_bytes, ENOUGH_BYTES) / outcome.cell.gradient_bytes
            yield f"{m.name} / predictions, {m.way}, extra memory", (ratio, ratio, ratio)
