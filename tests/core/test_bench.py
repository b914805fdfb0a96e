"""The benchmark: what it measures, what it refuses to time, what it shows. On NumPy and tiny shapes, to be quick.

That peers of the other frameworks compute the same is what the benchmark itself checks before it times them.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from lossbridge.frameworks import FRAMEWORKS
from lossbridge.tools.bench import bench_report as report
from lossbridge.tools.bench import cells, contenders, measure, memory, plots, results, targets, textbook
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
    result = runner.invoke(app, ["bench", *map(str, arguments)], env={"COLUMNS": "160"})
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
    assert {cell.sweep for cell in chosen} == {"", "N", "V"}
    for cell in chosen:
        assert cell.form in (*cells.FORMS, cells.IMPORT)
        assert Cell(**cell.as_dict()) == cell  # plain data: it travels to the worker as JSON


def test_every_loss_and_every_target_is_measured() -> None:
    assert {form.loss for form in cells.FORMS.values()} == set(LOSSES)
    assert set(textbook.VALUES) == set(cells.NAMED_FORMS)
    assert set(cells.ITEM_BYTES) == set(DTYPES)
    for target in targets.TARGETS:
        measured = [cell for cell in cells.cells(target.backend) if not cell.sweep]
        assert target.cell.same in [cell.same for cell in measured], target.case


def test_pytorch_is_measured_with_its_own_huge_pages_too() -> None:
    chosen = {name: cells.cells(name, quick=True) for name in ("numpy", "torch")}
    numpy, plain, switched = cells.sections(chosen, "cpu")
    assert (numpy.label, numpy.cells, numpy.environment) == ("numpy", chosen["numpy"], {})
    assert (plain.label, plain.cells, plain.environment) == ("torch", chosen["torch"], {"THP_MEM_ALLOC_ENABLE": "0"})
    assert (switched.label, switched.backend) == ("torch, THP_MEM_ALLOC_ENABLE=1", "torch")
    assert switched.environment == {"THP_MEM_ALLOC_ENABLE": "1"}
    assert {cell.form for cell in switched.cells} == set(cells.BIG_FORMS)
    assert {(cell.ways, cell.dtype, cell.backward) for cell in switched.cells} == {("eager", "float32", True)}
    assert len(cells.sections(chosen, "cuda")) == 2
    assert len(cells.sections({"torch": TINY}, "cpu")) == 1


def test_bytes_that_must_move() -> None:
    assert Cell("CE, labels", 10, 100, backward=False).bytes == 4000
    assert Cell("CE, labels", 10, 100).bytes == 8000
    assert Cell("CE, dense", 10, 100, "bfloat16").bytes == 6000


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
    assert calls == ["a", "b"] * 4  # one to warm up, which also tells how many calls make a sample
    assert all(2e-3 <= t < 1 for ts in times for t in ts)


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


def made(ours: float, peer: float, other: float, *, extra: tuple[int, int, int] = (1, 3, 2), cell=None) -> Run:
    """A run with one cell: times in ms, extra memory in units of 100 MiB."""
    cell = cell or targets.TARGETS[0].cell
    names = (contenders.OURS, "F.cross_entropy", "keras.SparseCategoricalCrossentropy")
    measurements = [
        Measurement(name, "eager", ms, ms * 0.99, ms * 1.01, 7, 1.0, size * 100 * 2**20, None, 1e-7, 1e-7)
        for name, ms, size in zip(names, (ours, peer, other), extra, strict=True)
    ]
    facts = {"copy_bytes_per_second": 1e10}
    return Run("torch", "ran", "2.13", outcomes=[Outcome(cell, measurements)], facts=facts)


def test_ratios_are_to_the_best_peer() -> None:
    (ratio,) = results.ratios([made(50, 200, 100)])
    assert (ratio.time, ratio.memory, ratio.peer.name) == (0.5, 0.5, "keras.SparseCategoricalCrossentropy")
    assert ratio.limit_ms == pytest.approx(2 * 2048 * 32768 * 4 / 1e7)
    assert not targets.above([ratio])
    (ratio,) = targets.above(results.ratios([made(110, 200, 100)]))
    assert ratio.time == 1.1


def test_targets() -> None:
    first, *rest = targets.judge([made(80, 200, 100)])
    assert [(limit.what, limit.found) for limit in first.limits] == [("time", 0.4), ("memory", 1 / 3)]
    assert first.reached
    assert all(judgement.reached is None and judgement.words for judgement in rest)
    assert targets.judge([made(100, 200, 100)])[0].reached is False
    assert targets.judge([made(80, 200, 100, extra=(2, 3, 2))])[0].reached is False
    small = targets._SMALL
    over = next(j for j in targets.judge([made(0.03, 0.02, 1, cell=small)]) if j.target.over_us)
    assert over.limits[0].found == pytest.approx(10)
    assert over.reached


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
    runs = [made(50, 200, 100, extra=(1, 0, 0))]
    assert math.isinf(targets.judge(runs)[0].limits[1].found)
    assert "∞" in report.target_table(runs).rows[2]
    report.write_json(tmp_path / "b.json", runs, "cpu", True)
    assert json.loads((tmp_path / "b.json").read_text())["targets"][0]["limits"][1]["found"] is None


# The command.


def test_bench(tiny, tmp_path) -> None:
    kept, page, pictures = tmp_path / "b.json", tmp_path / "b.html", tmp_path / "plots"
    result = run("--backend", "numpy", "--json", kept, "--html", page, "--plots", pictures)
    assert "CE, labels 8×5 " in result.stdout
    assert "8 cells, 0 contenders not timed" in result.stdout
    found = json.loads(kept.read_text())
    for key in ("format", "lossbridge", "machine", "processor", "cores", "python", "device", "quick"):
        assert key in found
    (backend,) = found["backends"]
    assert backend["copy_bytes_per_second"] > 0
    assert backend["versions"]["numpy"] == np.__version__
    assert [cell["cell"]["classes"] for cell in backend["cells"]] == [cell.classes for cell in TINY]
    assert {m["name"] for m in backend["cells"][1]["measurements"]} >= {"lossbridge", "textbook", "sklearn.log_loss"}
    assert len(found["ratios"]) == len(TINY)
    assert {s["sweep"] for s in found["slopes"]} == {"N", "V"}
    assert all(t["reached"] is None for t in found["targets"])  # other cells than these
    (again,) = report.read(kept)
    assert again.outcomes == [Outcome.of_dict(cell) for cell in json.loads(kept.read_text())["backends"][0]["cells"]]

    text = page.read_text()
    assert text.count("<svg") == 2  # no memory in cells this small
    assert "textbook" in text
    for opener in ("src=", "<link", "@import", "url(http", "<script"):
        assert opener not in text
    assert {path.name for path in pictures.iterdir()} == {"time_over_v_ce_labels.png", "time_over_n_ce_labels.png"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures.iterdir())


def test_bench_of_pytorch_with_its_own_huge_pages(monkeypatch, tmp_path) -> None:
    """Two processes, two sections, and the environment that each one had."""
    monkeypatch.setattr(cells, "BIG_FORMS", {"CE, labels": (8, 5)})
    monkeypatch.setattr(cells, "cells", lambda backend, quick=False: [Cell("CE, labels", 8, 5, ways="eager")])
    monkeypatch.setattr(cells, "FULL", BUDGET)
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "1")  # of the user's: each section says what it has
    kept = tmp_path / "b.json"
    result = run("--backend", "torch", "--json", kept)
    assert "2 cells, 0 contenders not timed" in result.stdout
    lines = [line.strip() for line in result.stdout.splitlines()]
    assert lines.index("torch") < lines.index("torch, THP_MEM_ALLOC_ENABLE=1")
    found = json.loads(kept.read_text())
    labels = ["torch", "torch, THP_MEM_ALLOC_ENABLE=1"]
    assert [ratio["backend"] for ratio in found["ratios"]] == labels
    assert [backend["backend"] for backend in found["backends"]] == labels
    assert [backend["environment"]["THP_MEM_ALLOC_ENABLE"] for backend in found["backends"]] == ["0", "1"]


def test_compare(tiny, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(cells, "cells", lambda backend, quick=False: TINY[:1])
    kept = tmp_path / "b.json"
    run("--backend", "numpy", "--json", kept)
    old = json.loads(kept.read_text())
    for cell in old["backends"][0]["cells"]:
        for m in cell["measurements"]:
            if m["name"] == "lossbridge":
                m |= {key: m[key] / 1000 for key in ("ms", "low_ms", "high_ms")}
    kept.write_text(json.dumps(old))
    result = run("--backend", "numpy", "--compare", kept, code=1)
    assert "numpy: CE, labels, 8×5 float32, forward and backward: lossbridge / textbook, eager, time:" in result.stdout
    for cell in old["backends"][0]["cells"]:
        for m in cell["measurements"]:
            if m["name"] == "lossbridge":
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


def test_pictures_of_several_backends() -> None:
    def swept(backend: str) -> Run:
        steps = [
            Outcome(
                Cell("CE, labels", 512, v, sweep="V"),
                [
                    Measurement(name, way, v * scale, extra_bytes=v * 2048 * scale)
                    for name, scale in ((contenders.OURS, 1), ("peer", 3))
                    for way in ("eager", "compile")
                ],
            )
            for v in (512, 4096, 32768)
        ]
        return Run(backend, "ran", "1.0", outcomes=steps, facts={"copy_bytes_per_second": 1e10})

    figures = plots.figures([swept(name) for name in ("numpy", "torch", "jax")], "CE, labels")
    assert list(figures) == ["time_over_v_ce_labels", "memory_over_v_ce_labels"]
    for figure in figures.values():
        assert len(figure.axes) == 3
        labels = figure.axes[0].get_legend_handles_labels()[1]
        assert labels[0] == "lossbridge, eager"
        assert labels[-1].startswith("limit: ")
