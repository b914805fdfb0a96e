"""Writes the tables of docs/performance.md from the results in benchmarks/results, of all files cpu*.json together.

`python docs/make_performance.py`, or `nox -s docs`. A test holds the page to what this writes.
"""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from lossbridge.tools.bench import bench_report as report
from lossbridge.tools.bench import results, targets

PAGE = Path(__file__).with_name("performance.md")
RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
SAID = {True: "yes", False: "**no**", None: ""}


@functools.cache
def runs() -> list[results.Run]:
    """One of each backend, with its cells in all files."""
    parts: dict[str, list[results.Run]] = defaultdict(list)
    for file in sorted(RESULTS.glob("cpu*.json")):
        for run in report.read(file):
            parts[run.backend].append(run)
    return [results.joined(backend, some) for backend, some in parts.items()]


def goals() -> Iterator[str]:
    yield "| | backend | measured | to be reached | reached |"
    yield "|---|---|---|---|---|"
    for judgement in targets.judge(runs()):
        target = judgement.target
        found = ", ".join(f"{limit.what} {_number(limit.found, limit.form)}" for limit in judgement.limits)
        most = ", ".join(f"{limit.what} ≤ {limit.most:g}" for limit in judgement.limits)
        said = judgement.words or SAID[judgement.reached]
        yield f"| {target.case} | {target.backend} | {found} | {most} | {said} |"


def _number(x: float | None, form: str = ".2f") -> str:
    return "–" if x is None else format(x, form)


def cells() -> Iterator[str]:
    yield "| backend | cell | way | CPU | clock | fastest peer | memory / leanest peer | page faults |"
    yield "|---|---|---|---|---|---|---|---|"
    for r in results.ratios(runs()):
        if r.peer is not None and not r.cell.sweep:
            cpu, clock, memory = (_number(x) for x in (r.cpu, r.wall, r.memory))
            faults = " / ".join(_number(x, ".0f") for x in (r.ours.faults, r.peer.faults))
            yield f"| {r.backend} | {r.cell.name} | {r.way} | {cpu} | {clock} | {r.peer.name} | {memory} | {faults} |"


def data() -> Iterator[str]:
    yield "| backend | contender | loss | way | factor | slowest | fastest | kinds |"
    yield "|---|---|---|---|---|---|---|---|"
    for s in results.spreads(runs()):
        factor = f"**{s.factor:.2f}**" if s.factor > targets.MOST_SPREAD else f"{s.factor:.2f}"
        yield f"| {s.backend} | {s.name} | {s.form} | {s.way} | {factor} | {s.slowest} | {s.fastest} | {s.kinds} |"


def growth() -> Iterator[str]:
    yield "| backend | loss | way | over | overall | at the end |"
    yield "|---|---|---|---|---|---|"
    for slope in results.slopes(runs()):
        if slope.name == results.OURS:
            yield (
                f"| {slope.backend} | {slope.form} | {slope.way} | {slope.sweep} | {slope.overall:.2f} "
                f"| {slope.end:.2f} |"
            )


TABLES = {"goals": goals, "cells": cells, "data": data, "growth": growth}


def filled(text: str) -> str:
    """The page with its tables as they are now."""
    for name, lines in TABLES.items():
        marked = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        assert marked.search(text), name
        text = marked.sub(lambda found, lines=lines: found[1] + "\n" + "\n".join(lines()) + "\n\n" + found[2], text)
    return text


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
