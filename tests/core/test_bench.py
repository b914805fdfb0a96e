"""The benchmark: what it measures, what it refuses to time, what it shows. On NumPy and tiny shapes, to be quick.

That peers of the other frameworks compute the same is what the benchmark itself checks before it times them.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from lossbridge import reference
from lossbridge.frameworks import FRAMEWORKS
from lossbridge.tools import cli, processes
from lossbridge.tools.bench import bench_report as report
from lossbridge.tools.bench import (
    cells,
    contenders,
    data_kinds,
    measure,
    memory,
    plots,
    results,
    sections,
    targets,
    textbook,
    thread_limits,
)
from lossbridge.tools.bench.cells import Budget, Cell
from lossbridge.tools.bench.contenders import Contender
from lossbridge.tools.bench.results import Measurement, Outcome, Run
from lossbridge.tools.cli import app
from lossbridge.tools.parity.cases import DTYPES, LOSSES

runner = CliRunner()
BUDGET = Budget(least=3, most=5, seconds=0.05, memory=1)
NUMPY = FRAMEWORKS["numpy"]()
TINY = [
    Cell("CE, labels", 8, 5),
    Cell("log loss", 8, 5, backward=False),
    *(Cell("CE, labels", 8, classes, sweep="V") for classes in (16, 64, 256)),
    *(Cell("CE, labels", rows, 16, sweep="N") for rows in (16, 64, 256)),
]


def run(*arguments: object, code: int = 0):
    cli.out.width = cli.err.width = 160  # whatever the terminal was when they were made
    result = runner.invoke(app, ["bench", *map(str, arguments)], env={"TERM": "xterm"})
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def tiny(monkeypatch):
    """The command measures small cells, and in a moment."""
    monkeypatch.setattr(cells, "cells", lambda backend, quick=False: list(TINY))
    monkeypatch.setattr(cells, "FULL", BUDGET)


# The registry.


@pytest.mark.parametrize("backend", FRAMEWORKS)
@pytest.mark.parametrize("quick", [False, True])
def test_the_registry(backend, quick) -> None:
    chosen = cells.cells(backend, quick=quick)
    assert len(set(chosen)) == len(chosen)
    assert {cell.sweep for cell in chosen} == {"", "N", "V", "data"}
    assert {cell.threads for cell in chosen} == {1, 2}
    for cell in chosen:
        assert cell.form in (*cells.FORMS, cells.IMPORT)
        assert Cell(**cell.as_dict()) == cell  # plain data: it travels to the worker as JSON


def test_every_loss_and_every_target_is_measured() -> None:
    assert {form.loss for form in cells.FORMS.values()} == {*LOSSES, "linear_crossentropy", "linear_distillation"}
    assert set(textbook.VALUES) == set(cells.NAMED_FORMS)
    assert set(cells.ITEM_BYTES) == set(DTYPES)
    everything = sections.sections({backend: cells.cells(backend) for backend in FRAMEWORKS}, "cpu")
    for target in targets.TARGETS:
        some = [cell for section in everything if section.label == target.backend for cell in section.cells]
        measured = [cell.same for cell in some if not cell.sweep]
        for cell in (target.cell, target.peer_cell or target.cell):
            assert cell.same in measured, target.case


def test_sections() -> None:
    """A process for each number of threads, and one for PyTorch's large cells with its own huge pages."""
    chosen = {name: cells.cells(name, quick=True) for name in ("numpy", "torch")}
    found = sections.sections(chosen, "cpu")
    switched = "torch, THP_MEM_ALLOC_ENABLE=1"
    backends = [("numpy", "numpy")] * 2 + [("torch", "torch")] * 2 + [(switched, "torch")]
    assert [(section.label, section.backend) for section in found] == backends
    assert [{cell.threads for cell in section.cells} for section in found] == [{1}, {2}, {1}, {2}, {1}]
    assert [section.environment["OMP_NUM_THREADS"] for section in found] == ["1", "2", "1", "2", "1"]
    pages = [section.environment.get("THP_MEM_ALLOC_ENABLE") for section in found]
    assert pages == [None, None, "0", "0", "1"]
    for backend, some in chosen.items():
        measured = [cell for section in found if section.label == backend for cell in section.cells]
        assert sorted(measured, key=some.index) == some
    assert {cell.form for cell in found[-1].cells} == set(cells.BIG_FORMS)
    assert {(cell.ways, cell.dtype, cell.backward) for cell in found[-1].cells} == {("eager", "float32", True)}
    assert [section.environment for section in sections.sections(chosen, "cuda")] == [{}, {}]
    assert len(sections.sections({"torch": TINY}, "cpu")) == 1


def test_bytes_that_must_move() -> None:
    assert Cell("CE, labels", 10, 100, backward=False).bytes == 4000
    assert Cell("CE, labels", 10, 100).bytes == 8000
    assert Cell("CE, dense", 10, 100, "bfloat16").bytes == 6000
    assert Cell("linear CE", 10, 100).bytes == 2 * (10 + 100) * 512 * 4  # hidden states and weight, and their gradients


# A cell.


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("form", cells.FORMS)
def test_a_cell_of_every_form(form, backward) -> None:
    outcome = measure.outcome(NUMPY, Cell(form, 12, 7, backward=backward), BUDGET)
    assert not outcome.fault
    assert outcome.measurements[0].name == contenders.OURS
    for m in outcome.measurements:
        assert 3 <= m.rounds <= 5
        assert 0 < m.low_ms <= m.ms <= m.high_ms
        assert m.value_error < 1e-5
        assert (m.gradient_error is not None) == backward
    if form in textbook.WITH_GRADIENTS:
        assert outcome.peers("eager")


@pytest.mark.parametrize("form", cells.FORMS)
def test_every_kind_of_data(form) -> None:
    """Ours is right with all of them, and so is the peer where it has the option."""
    kinds = data_kinds.kinds(cells.FORMS[form])
    assert len(kinds) > (1 if form == cells.LINEAR_KL else 3)  # most are of logits
    for data in kinds:
        outcome = measure.outcome(NUMPY, Cell(form, 12, 40, sweep="data", data=data), BUDGET)
        assert not outcome.fault, data
        assert outcome.measurements[0].ms, data


def test_data_are_what_their_kind_says() -> None:
    def made_of(name: str, kind: str) -> data_kinds.Data:
        return data_kinds.made(cells.FORMS[name], (90, 40), kind)

    rows = np.arange(90)
    for lead in (0, 5, 30):
        data = made_of("CE, labels", f"leads by {lead}")
        true = data.pred[rows, data.target]
        data.pred[rows, data.target] = -np.inf
        assert true - data.pred.max(1) == pytest.approx(lead, abs=1e-5)
    data = made_of("KL of logits", "distance 1e-3")
    assert 1e-4 < np.abs(data.target - data.pred).mean() < 1e-3
    assert np.isinf(made_of("CE, labels", data_kinds.PADDED).pred[:, 30:]).all()
    assert 20 < (made_of("CE, labels", data_kinds.IGNORED_ROWS).target == data_kinds.IGNORE).sum() < 40
    assert 20 < (~made_of("KL of logits", data_kinds.IGNORED_ROWS).options["mask"]).sum() < 40


# The linear loss, whose predictions are hidden states and a weight.


@pytest.mark.parametrize("block", [1, measure.BLOCK])
@pytest.mark.parametrize("kind", data_kinds.kinds(cells.FORMS[cells.LINEAR]))
def test_the_linear_loss_is_held_to_the_reference(monkeypatch, kind, block) -> None:
    """With blocks of one row as with one of all: the value, and rows of both gradients."""
    monkeypatch.setattr(measure, "BLOCK", block)
    cell = Cell(cells.LINEAR, 9, 700, data=kind)
    data = data_kinds.made(cells.FORMS[cells.LINEAR], (9, 700), kind)
    target, pred = measure.placed(NUMPY, cell, data, "cpu")
    exact = reference.linear_crossentropy(target, *pred, **data.options)
    found = measure.exact(NUMPY, cell, data, target, pred)
    assert found.value == pytest.approx(exact.value, rel=1e-12)
    for (rows, some), whole in zip(found.gradients, (exact.gradient, exact.weight_gradient), strict=True):
        assert len(rows) >= 3
        np.testing.assert_allclose(some, whole[rows], rtol=1e-9, atol=1e-15)
    assert found.errors(NUMPY, exact.value, (exact.gradient, exact.weight_gradient))[1] < 1e-9


@pytest.mark.parametrize("block", [1, measure.BLOCK])
@pytest.mark.parametrize("kind", data_kinds.kinds(cells.FORMS[cells.LINEAR_KL]))
def test_linear_distillation_is_held_to_the_reference(monkeypatch, kind, block) -> None:
    monkeypatch.setattr(measure, "BLOCK", block)
    cell = Cell(cells.LINEAR_KL, 9, 700, data=kind)
    data = data_kinds.made(cells.FORMS[cells.LINEAR_KL], (9, 700), kind)
    teacher, student = measure.placed(NUMPY, cell, data, "cpu")
    exact = reference.linear_distillation(*teacher, *student, **data.options)
    found = measure.exact(NUMPY, cell, data, teacher, student)
    assert found.value == pytest.approx(exact.value, rel=1e-12)
    for (rows, some), whole in zip(found.gradients, (exact.gradient, exact.weight_gradient), strict=True):
        np.testing.assert_allclose(some, whole[rows], rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("which", [0, 1])
def test_either_gradient_of_the_linear_loss_may_be_the_wrong_one(which) -> None:
    def wrong(t, pred):
        value, gradients = textbook.WITH_GRADIENTS[cells.LINEAR](t, pred)
        return value, tuple(x * 1.01 if i == which else x for i, x in enumerate(gradients))

    outcome = measure.outcome(NUMPY, Cell(cells.LINEAR, 12, 7), BUDGET, competing=[Contender("wrong", None, wrong)])
    assert "gradient has a relative error of 1.0e-02: not timed" in outcome.fault


@pytest.mark.parametrize("form", [cells.LINEAR, cells.LINEAR_KL])
@pytest.mark.parametrize("backend", FRAMEWORKS)
def test_the_linear_losses_on_every_framework(monkeypatch, tmp_path, backend, form) -> None:
    """Selected by its name, differentiated by both, beside the loss of all logits."""
    ways = "compiled" if backend in ("jax", "tensorflow") else "eager"
    some = [
        Cell("CE, labels", 8, 5),
        *(Cell(form, 8, 5, backward=backward, ways=ways) for backward in (False, True)),
    ]
    monkeypatch.setattr(cells, "cells", lambda backend, quick=False: some)
    monkeypatch.setattr(cells, "FULL", BUDGET)
    result = run("--backend", backend, "--loss", cells.FORMS[form].loss, "--json", tmp_path / "b.json")
    assert "2 cells, 0 contenders not timed" in result.stdout
    (found,) = json.loads((tmp_path / "b.json").read_text())["backends"]
    for cell in found["cells"]:
        names = {m["name"] for m in cell["measurements"]}
        assert any(name.endswith(" of all logits") or name == "textbook" for name in names)
        assert ("F.linear_cross_entropy" in names) == (backend == "torch" and form == cells.LINEAR)


def test_targets_of_the_linear_loss() -> None:
    cell = Cell(cells.LINEAR, 4096, 32768)
    peer = "optax.softmax_cross_entropy_with_integer_labels of all logits"
    measured = [
        Measurement(name, "jit", ms, cpu_ms=ms, extra_bytes=100 * size, temporary_bytes=size)
        for name, ms, size in ((contenders.OURS, 80, 15), (peer, 100, 100))
    ]
    found = judged("linear CE 4096×32768 / all logits", Run("jax", "ran", outcomes=[Outcome(cell, measured)]))
    assert [(limit.what, limit.found) for limit in found.limits] == [("time", 0.8), ("temporaries", 0.15)]
    assert found.reached


def test_what_varies_is_an_argument() -> None:
    """Arrays among the options go to each call: what a compiler knows, it folds."""
    seen = []
    one = Contender("one", None, lambda t, z, **arrays: (seen.append(sorted(arrays)), (0.0, z))[1])
    cell = Cell("KL of logits", 12, 7, data=data_kinds.IGNORED_ROWS)
    measure.outcome(NUMPY, cell, BUDGET, competing=[one])
    assert seen[0] == ["mask"]


def test_a_peer_may_lose_digits_that_are_nearly_nothing_and_we_may_not() -> None:
    def rounded(t, z):
        value, gradient = textbook.WITH_GRADIENTS["CE, labels"](t, z)
        return np.round(value, 6), gradient

    cell = Cell("CE, labels", 12, 7, data="leads by 30")
    peer, ours = (Contender(name, None, rounded) for name in ("peer", contenders.OURS))
    assert not measure.outcome(NUMPY, cell, BUDGET, competing=[peer]).fault
    assert "value has a relative error of 1.0e+00" in measure.outcome(NUMPY, cell, BUDGET, competing=[ours]).fault


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"loss": lambda t, z: textbook.sparse_cross_entropy(t, z) * 1.01}, "value has a relative error of 1.0e-02"),
        ({"loss": lambda t, z: np.float32(np.nan)}, "value has a relative error of inf"),
        ({"loss": lambda t, z: 1 / 0}, "ZeroDivisionError"),
    ],
)
def test_a_faulty_contender_is_reported_and_not_timed(fault, words) -> None:
    right = Contender("right", textbook.sparse_cross_entropy)
    wrong = replace(right, name="wrong", **fault)
    outcome = measure.outcome(NUMPY, Cell("CE, labels", 12, 7, backward=False), BUDGET, competing=[right, wrong])
    assert outcome.get("right", "eager") is not None
    assert outcome.get("wrong", "eager") is None
    assert f"wrong, eager: {words}" in outcome.fault


def test_a_faulty_gradient_is_reported() -> None:
    def swapped(t, z):
        value, gradient = textbook.WITH_GRADIENTS["CE, labels"](t, z)
        return value, -gradient

    wrong = Contender("wrong", textbook.sparse_cross_entropy, swapped)
    outcome = measure.outcome(NUMPY, Cell("CE, labels", 12, 7), BUDGET, competing=[wrong])
    assert "gradient has a relative error of 2.0e+00: not timed" in outcome.fault


def test_contenders_run_in_turn() -> None:
    calls = []
    slow = [
        Contender(name, lambda t, z, name=name: (calls.append(name), time.sleep(2e-3), 0.0)[2]) for name in ("a", "b")
    ]
    entrants = [measure.Entrant(c, "eager", lambda t, z, c=c: (c.loss(t, z), None), None, None) for c in slow]
    times = measure.interleaved(NUMPY, entrants, Budget(least=3, most=3, seconds=0, memory=1), "cpu", [False, False])
    # Each after one that is not measured; the first round tells how many calls make a sample.
    assert calls == ["a", "a", "b", "b"] * 4
    assert all(2e-3 <= t.wall < 1 for ts in times for t in ts)
    assert all(t.cpu < t.wall for ts in times for t in ts)  # it sleeps


def test_slow_calls_take_fewer_rounds(monkeypatch) -> None:
    calls = []
    entrants = [measure.Entrant(Contender("a", None), "eager", lambda t, z: (calls.append(0), None), None, None)]
    for seconds, rounds in ((1e9, 5), (0.0, measure.SLOW_ROUNDS)):
        monkeypatch.setattr(measure, "SLOW_SECONDS", seconds)
        (samples,) = measure.interleaved(NUMPY, entrants, Budget(least=5, most=9, seconds=0, memory=1), "cpu", [True])
        assert len(samples) == rounds


def test_time_of_all_cores_and_page_faults() -> None:
    size = 1 << 26  # which the C library takes from the system each time

    def fills(t, z):
        return np.zeros(size, np.uint8) + np.uint8(1), None

    entrant = measure.Entrant(Contender("fills", fills), "eager", fills, None, None)
    sample = measure._sample(NUMPY, entrant, 1, "cpu")
    assert 0 < sample.cpu <= sample.wall * 1.5
    assert 0 < sample.faults <= 2 * size / 4096 + 100  # fewer where the system has larger pages


def test_a_worker_keeps_to_its_threads() -> None:
    program = (
        "import os\n"
        "from lossbridge.tools.bench import thread_limits\n"
        "thread_limits.keep()\n"
        "print(thread_limits.cores(), os.environ['OMP_NUM_THREADS'])"
    )
    environment = {**os.environ, **thread_limits.environment(1)}
    said = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert said.stdout.split()[1] == "1"
    assert said.stdout.split()[0] == "1" or not hasattr(os, "sched_setaffinity")


def test_what_overwrites_its_input_gets_its_own() -> None:
    def destroys(t, z):
        value, gradient = textbook.WITH_GRADIENTS["CE, labels"](t, z)
        z[:] = np.nan
        return value, gradient

    one = Contender("destroys", textbook.sparse_cross_entropy, destroys, consumes=True)
    other = Contender("reads", textbook.sparse_cross_entropy, textbook.WITH_GRADIENTS["CE, labels"])
    assert not measure.outcome(NUMPY, Cell("CE, labels", 12, 7), BUDGET, competing=[one, other]).fault


@pytest.mark.parametrize("look", [memory._host, memory._sampled])
def test_extra_memory(look) -> None:
    """The peak, not what is left: 64 MiB for a moment and 32 MiB as the result."""
    size = 1 << 23

    def call():
        first = np.ones(size, np.float32)
        time.sleep(0.02)  # the sampler's eyes are slower than the kernel's
        result = first + 1
        time.sleep(0.02)
        return result

    call()
    assert look(call) / 2**20 == pytest.approx(64, abs=4)


def test_copy_bandwidth() -> None:
    assert 1e8 < memory.copy_bandwidth(NUMPY, "cpu", 1 << 22, 3) < 1e13


def test_import_times() -> None:
    ours, numpy = measure.import_times(1)
    assert (ours.name, numpy.name) == (contenders.OURS, "numpy")
    assert ours.ms > 0 < numpy.ms


# What follows from measurements.


def made(ours, peer, other, *, extra=(1, 3, 2), cell=None, backend="torch") -> Run:
    """A run with one cell: times in ms, of the core and of the clock; extra memory in units of 100 MiB."""
    cell = cell or targets.TARGETS[0].cell
    names = (contenders.OURS, "F.cross_entropy", "textbook")
    measurements = [
        Measurement(name, "eager", ms, ms * 0.99, ms * 1.01, ms, 0.0, 7, 1.0, size * 100 * 2**20, None, 1e-7, 1e-7)
        for name, ms, size in zip(names, (ours, peer, other), extra, strict=True)
    ]
    facts = {"copy_bytes_per_second": {"1": 1e10}}
    return Run(backend, "ran", "2.13", outcomes=[Outcome(cell, measurements)], facts=facts)


def test_ratios_are_to_the_best_peer() -> None:
    (ratio,) = results.ratios([made(50, 200, 100)])
    assert (ratio.time, ratio.memory, ratio.peer.name) == (0.5, 0.5, "textbook")
    assert ratio.limit_ms == pytest.approx(2 * 2048 * 32768 * 4 / 1e7)
    assert not targets.above([ratio])
    (ratio,) = targets.above(results.ratios([made(110, 200, 100)]))
    assert ratio.time == 1.1


def judged(case: str, *runs: Run):
    return next(j for j in targets.judge(runs) if j.target.case == case)


def test_targets() -> None:
    big = "CE 2048×32768"
    found = judged(big, made(30, 200, 100))
    assert [(limit.what, limit.found, limit.most) for limit in found.limits] == [("time", 0.15, 0.16)]
    assert found.reached
    assert judged(big, made(40, 200, 100)).reached is False
    switched = made(30, 200, 100, backend="torch, THP_MEM_ALLOC_ENABLE=1")
    assert [limit.most for limit in judged(big, switched).limits] == [0.35]
    others = [j for j in targets.judge([made(30, 200, 100)]) if j.target.case != big]
    assert others
    assert all(j.reached is None and j.words for j in others)
    over = judged("CE 32×10", made(0.03, 0.02, 1, cell=Cell("CE, labels", *cells.SMALL)))
    assert over.limits[0].found == pytest.approx(10)
    assert over.reached
    memory = [made(30, 200, 100, extra=(size, 3, 3), backend="numpy") for size in (1, 2)]
    assert [judged(f"{big} / textbook", run).reached for run in memory] == [True, False]


def test_the_core_counts_with_one_thread_and_the_clock_with_two() -> None:
    one, two = Cell("CE, labels", *cells.CLASSIFIER), Cell("CE, labels", *cells.CLASSIFIER, threads=2)

    def run(cell: Cell, ms: float, cpu_ms: float) -> Run:
        return Run("torch", "ran", outcomes=[Outcome(cell, [Measurement(contenders.OURS, "eager", ms, cpu_ms=cpu_ms)])])

    parts = [run(one, 100, 80), run(two, 60, 110)]
    assert [results.cost(part.outcomes[0].measurements[0], part.outcomes[0].cell) for part in parts] == [80, 60]
    both = results.joined("torch", parts)
    assert both.status == "ran"
    assert judged("CE 4096×1000, two threads / one", both).limits[0].found == 0.6
    crashed = results.joined("torch", [parts[0], replace(parts[1], status="crashed", words="exit status 1")])
    assert (crashed.status, len(crashed.outcomes)) == ("crashed", 2)


def test_a_gradient_in_the_callers_buffer() -> None:
    cell = Cell("CE, labels", 12, 7)
    (out,) = [c for c in contenders.contenders("numpy", cell) if c.name == contenders.OUT]
    first, second = (out.with_gradient(np.arange(12) % 7, np.ones((12, 7), np.float32))[1] for _ in range(2))
    assert first is second
    outcome = measure.outcome(NUMPY, cell, BUDGET)
    assert not outcome.fault
    assert outcome.get(contenders.OUT, "eager") is not None


def test_why_a_target_is_not_judged() -> None:
    case, big = "CE 2048×32768, out= / textbook", Cell("CE, labels", *cells.LM)
    for outcomes, words in (([], "not measured"), ([Outcome(big)], "lacks lossbridge, out=, eager")):
        found = judged(case, Run("numpy", "ran", outcomes=outcomes))
        assert (found.words, found.reached) == (words, None)


def test_what_was_not_compared_is_not_reached() -> None:
    alone = Outcome(Cell("CE, labels", 9, 9), [Measurement(contenders.OURS, "eager", 1.0)])
    table = report.target_table([Run("torch", "ran", outcomes=[alone])])
    assert "any cell / best peer" not in [row[0] for row in table.rows]
    assert "any cell / best peer" in [row[0] for row in report.target_table([made(50, 200, 100)]).rows]


def test_how_time_depends_on_the_data() -> None:
    def outcome(data: str, ms: float) -> Outcome:
        cell = Cell("CE, labels", 9, 9, sweep="data", data=data)
        return Outcome(cell, [Measurement(name, "eager", ms * k) for name, k in ((contenders.OURS, 1), ("peer", 2))])

    outcomes = [outcome("random", 2.0), outcome("leads by 30", 3.0), outcome(data_kinds.IGNORED_ROWS, 1.0)]
    runs = [Run("torch", "ran", outcomes=outcomes)]
    ours, peer = results.spreads(runs)
    assert (ours.name, ours.factor, ours.slowest, ours.fastest) == (contenders.OURS, 1.5, "leads by 30", "random")
    assert (peer.name, peer.factor) == ("peer", 1.5)
    table = report.data_table(runs)
    assert list(table.good) == [None, False]
    assert table.rows[1] == ("CE, labels", "eager", "1.50", "leads by 30", "random", "3", "1.50", "0.50")
    assert ("worst of 1: torch, CE, labels, eager, leads by 30", "time", "1.50", "1.3", "1 above") in [
        tuple(row) for row in report.target_table(runs).rows
    ]


def test_slopes() -> None:
    steps = [
        Outcome(Cell("CE, labels", n, 16, sweep="N"), [Measurement("a", "eager", 0.1 * n**0.5)]) for n in (4, 64, 16)
    ]
    (slope,) = results.slopes([Run("numpy", "ran", outcomes=steps)])
    assert (slope.sweep, slope.fixed) == ("N", 16)
    assert (slope.overall, slope.end) == (pytest.approx(0.5), pytest.approx(0.5))


def test_what_got_worse() -> None:
    old = [made(50, 200, 100)]
    assert results.worse(old, old) == ([], 4)
    assert results.worse(old, [made(51, 200, 100)])[0] == []
    slower, _ = results.worse(old, [made(60, 200, 100)])
    assert len(slower) == 3  # beside two peers, and beside the copy
    assert "lossbridge / F.cross_entropy, eager, time: 0.25 became 0.3, 1.20 times as much" in slower[0]
    larger, _ = results.worse(old, [made(50, 200, 100, extra=(2, 3, 2))])
    assert len(larger) == 1
    assert "extra memory" in larger[0]
    assert results.worse(old, [made(50, 200, 100, cell=Cell("CE, labels", 9, 9))]) == ([], 0)


def test_memory_below_noise_counts_as_noise() -> None:
    """A peer that takes nothing gives no infinite ratio."""
    assert results.ratios([made(50, 200, 100, extra=(1, 0, 0))])[0].memory == 25
    assert results.ratios([made(50, 200, 100, extra=(0, 1, 1))])[0].memory == 1 / 25
    assert results.ratios([made(50, 200, 100, extra=(0, 0, 0))])[0].memory is None


def test_infinite_figures_are_shown_and_kept(tmp_path) -> None:
    runs = [made(50, 200, 100, extra=(1, 0, 0), backend="numpy")]
    found = judged("CE 2048×32768 / textbook", *runs)
    assert math.isinf(found.limits[1].found)
    assert any("∞" in row for row in report.target_table(runs).rows)
    report.write_json(tmp_path / "b.json", runs, "cpu", True)
    kept = {target["target"]["case"]: target for target in json.loads((tmp_path / "b.json").read_text())["targets"]}
    assert kept["CE 2048×32768 / textbook"]["limits"][1]["found"] is None


# The command.


def test_bench(tiny, tmp_path) -> None:
    kept, page, pictures = tmp_path / "b.json", tmp_path / "b.html", tmp_path / "plots"
    result = run("--backend", "numpy", "--json", kept, "--html", page, "--plots", pictures)
    assert "8×5 " in result.stdout
    assert "8 cells, 0 contenders not timed" in result.stdout
    found = json.loads(kept.read_text())
    assert f"lossbridge {found['lossbridge']}, {found['rows']}" in result.stdout
    for key in ("format", "lossbridge", "rows", "machine", "processor", "cores", "python", "device", "quick"):
        assert key in found
    (backend,) = found["backends"]
    assert backend["copy_bytes_per_second"]["1"] > 0
    assert backend["cells"][0]["measurements"][0]["cpu_ms"] > 0
    assert backend["versions"]["numpy"] == np.__version__
    assert [cell["cell"]["classes"] for cell in backend["cells"]] == [cell.classes for cell in TINY]
    assert {m["name"] for m in backend["cells"][1]["measurements"]} >= {"lossbridge", "textbook", "sklearn.log_loss"}
    assert len(found["ratios"]) == len(TINY)
    assert {s["sweep"] for s in found["slopes"]} == {"N", "V"}
    assert all(t["reached"] is None for t in found["targets"])  # other cells than these
    (again,) = report.read(kept)
    assert again.outcomes == [Outcome.of_dict(cell) for cell in json.loads(kept.read_text())["backends"][0]["cells"]]

    text = page.read_text()
    assert found["rows"] in text
    assert text.count("<svg") == 2  # no memory in cells this small
    assert "textbook" in text
    for opener in ("src=", "<link", "@import", "url(http", "<script"):
        assert opener not in text
    assert {path.name for path in pictures.iterdir()} == {"time_over_v_ce_labels.png", "time_over_n_ce_labels.png"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures.iterdir())


def test_bench_of_pytorch_by_sections(monkeypatch, tmp_path) -> None:
    """Three processes: with one thread and with two, which stand together, and with PyTorch's own huge pages."""
    some = [Cell("CE, labels", 8, 5, ways="eager", threads=threads) for threads in (1, 2)]
    monkeypatch.setattr(cells, "BIG_FORMS", {"CE, labels": (8, 5)})
    monkeypatch.setattr(cells, "cells", lambda backend, quick=False: some)
    monkeypatch.setattr(cells, "FULL", BUDGET)
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "1")  # the user's: each section says what it has
    kept = tmp_path / "b.json"
    result = run("--backend", "torch", "--json", kept)
    assert "3 cells, 0 contenders not timed" in result.stdout
    lines = [line.strip() for line in result.stdout.splitlines()]
    assert lines.index("torch") < lines.index("torch, THP_MEM_ALLOC_ENABLE=1")
    found = json.loads(kept.read_text())
    labels = ["torch", "torch, THP_MEM_ALLOC_ENABLE=1"]
    assert [ratio["backend"] for ratio in found["ratios"]] == ["torch", *labels]
    assert [backend["backend"] for backend in found["backends"]] == labels
    assert [backend["environment"]["THP_MEM_ALLOC_ENABLE"] for backend in found["backends"]] == ["0", "1"]
    assert [list(backend["copy_bytes_per_second"]) for backend in found["backends"]] == [["1", "2"], ["1"]]


def test_what_is_not_installed_is_reported_once(monkeypatch) -> None:
    some = [Cell("CE, labels", *cells.LM, threads=threads) for threads in (1, 2)]
    monkeypatch.setattr(cells, "cells", lambda backend, quick=False: some)
    for module in (cli, processes):
        monkeypatch.setattr(module, "installed", lambda library: False)
    result = run("--backend", "torch", code=1)
    assert result.stdout.count("torch: missing (asked for): not installed") == 1
    assert "THP_MEM_ALLOC_ENABLE" not in result.stdout


def test_compare(tiny, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(cells, "cells", lambda backend, quick=False: TINY[:1])
    kept = tmp_path / "b.json"
    run("--backend", "numpy", "--json", kept)
    old = json.loads(kept.read_text())
    for cell in old["backends"][0]["cells"]:
        for m in cell["measurements"]:
            if m["name"].startswith("lossbridge"):
                m |= {key: m[key] / 1000 for key in ("ms", "low_ms", "high_ms")}
    kept.write_text(json.dumps(old))
    result = run("--backend", "numpy", "--compare", kept, code=1)
    assert "numpy: CE, labels, 8×5 float32, forward and backward: lossbridge / textbook, eager, time:" in result.stdout
    for cell in old["backends"][0]["cells"]:
        for m in cell["measurements"]:
            if m["name"].startswith("lossbridge"):
                m |= {key: m[key] * 1e6 for key in ("ms", "low_ms", "high_ms")}
    kept.write_text(json.dumps(old))
    assert "0 got worse" in run("--backend", "numpy", "--compare", kept).stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--backend", "mxnet"], "--backend mxnet is unknown; use one of"),
        (["--loss", "hinge"], "--loss hinge is unknown; use one of"),
        (["--dtype", "float8"], "--dtype float8 is unknown; use one of"),
        (["--backend", "numpy", "--dtype", "bfloat16"], "no cell has this --loss and --dtype"),
        (["--quick", "--dtype", "float64"], "no cell of --quick has this --loss and --dtype"),
        (["--timeout", "0"], "--timeout is 0; give seconds above 0"),
        (["--json", "nowhere/b.json"], "nowhere/b.json cannot be written: No such file or directory"),
        (["--html", "/"], "/ cannot be written: Is a directory"),
        (["--plots", "nowhere/plots"], "--plots nowhere/plots cannot be made; name a folder"),
        (["--compare", "nowhere.json"], "nowhere.json cannot be read: No such file or directory"),
        (["--compare", "pyproject.toml"], "pyproject.toml is no JSON file"),
    ],
)
def test_bad_usage(arguments, words) -> None:
    result = run(*arguments, code=2)
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
    assert not result.stdout


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{}", "is no result of this lossbridge bench"),
        ("[1]", "is no result of this lossbridge bench"),
        ('{"format": 1, "backends": [{"backend": "numpy"}]}', "is damaged: 'cells'"),
    ],
)
def test_unusable_results_are_refused(tmp_path, text, words) -> None:
    (tmp_path / "old.json").write_text(text)
    assert words in run("--compare", tmp_path / "old.json", code=2).stderr


def test_a_missing_device_is_named(tiny) -> None:
    assert "no device cuda; present: cpu" in run("--backend", "numpy", "--device", "cuda", code=1).stdout


@pytest.mark.parametrize(("form", "file"), [("CE, labels", "ce_labels"), (cells.LINEAR, "linear_ce")])
def test_pictures_of_several_backends(form, file) -> None:
    def swept(backend: str) -> Run:
        steps = [
            Outcome(
                Cell(form, 512, v, sweep="V"),
                [
                    Measurement(name, way, v * scale, extra_bytes=v * 2048 * scale)
                    for name, scale in ((contenders.OURS, 1), ("peer", 3))
                    for way in ("eager", "compile")
                ],
            )
            for v in (512, 4096, 32768)
        ]
        return Run(backend, "ran", "1.0", outcomes=steps, facts={"copy_bytes_per_second": {"1": 1e10}})

    figures = plots.figures([swept(name) for name in ("numpy", "torch", "jax")], form)
    assert list(figures) == [f"time_over_v_{file}", f"memory_over_v_{file}"]
    for figure in figures.values():
        assert len(figure.axes) == 3
        labels = figure.axes[0].get_legend_handles_labels()[1]
        assert labels[0] == "lossbridge, eager"
        assert labels[-1].startswith("limit: ")
