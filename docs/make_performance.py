"""Writes the tables of docs/performance.md from the results in benchmarks/results.

`python docs/make_performance.py`, or `nox -s docs`. A test holds the page to what this writes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from lossbridge.tools.bench import bench_report as report
from lossbridge.tools.bench import results, targets

PAGE = Path(__file__).with_name("performance.md")
RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "cpu.json"
SAID = {True: "yes", False: "**no**", None: "not measured"}


def goals() -> Iterator[str]:
    yield "| | backend | measured | to be reached | reached |"
    yield "|---|---|---|---|---|"
    for judgement in targets.judge(report.read(RESULTS)):
        target = judgement.target
        found = ", ".join(f"{limit.what} {_number(limit)}" for limit in judgement.limits)
        most = ", ".join(f"{limit.what} ≤ {limit.most:g}" for limit in judgement.limits)
        yield f"| {target.case} | {target.backend} | {found} | {most} | {SAID[judgement.reached]} |"


def _number(limit: targets.Limit) -> str:
    return "–" if limit.found is None else format(limit.found, limit.form)


def cells() -> Iterator[str]:
    yield "| backend | cell | way | time / best peer | fastest peer | memory / leanest peer |"
    yield "|---|---|---|---|---|---|"
    for ratio in results.ratios(report.read(RESULTS)):
        if ratio.peer is not None and not ratio.cell.sweep:
            time, memory = ("–" if x is None else f"{x:.2f}" for x in (ratio.time, ratio.memory))
            yield f"| {ratio.backend} | {ratio.cell.name} | {ratio.way} | {time} | {ratio.peer.name} | {memory} |"


def growth() -> Iterator[str]:
    yield "| backend | loss | way | over | overall | at the end |"
    yield "|---|---|---|---|---|---|"
    for slope in results.slopes(report.read(RESULTS)):
        if slope.name == results.OURS:
            yield (
                f"| {slope.backend} | {slope.form} | {slope.way} | {slope.sweep} | {slope.overall:.2f} "
                f"| {slope.end:.2f} |"
            )


TABLES = {"goals": goals, "cells": cells, "growth": growth}


def filled(text: str) -> str:
    """The page with its tables as they are now."""
    for name, lines in TABLES.items():
        marked = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        assert marked.search(text), name
        text = marked.sub(lambda found, lines=lines: found[1] + "\n" + "\n".join(lines()) + "\n\n" + found[2], text)
    return text


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
