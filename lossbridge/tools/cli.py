"""The command `lossbridge`: arguments, progress, exit status. What it runs lives in the folders beside it."""

from __future__ import annotations

import difflib
import re
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NoReturn

import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

import lossbridge
from lossbridge.backend import BACKENDS
from lossbridge.conventions import PEERS
from lossbridge.tools.bench import bench_report, plots, results
from lossbridge.tools.bench import cells as bench_cells
from lossbridge.tools.parity import parity_report, vectors
from lossbridge.tools.parity.cases import DTYPES, LOSSES
from lossbridge.tools.parity.check import Outcome
from lossbridge.tools.parity.files import UnusableFile, case_of, load_arrays
from lossbridge.tools.parity.peers import missing
from lossbridge.tools.parity.processes import installed, run_workers

app = typer.Typer(
    help="One loss, four frameworks, the same number.", no_args_is_help=True, pretty_exceptions_enable=False
)
out = Console()
err = Console(stderr=True)

AGREED, DISAGREED, BAD_USAGE = 0, 1, 2


def _refuse(message: str) -> NoReturn:
    err.print(f"lossbridge: {message}", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(BAD_USAGE)


def _writable(path: Path) -> None:
    """Now, rather than after minutes of work. Leaves nothing behind."""
    existed = path.exists()
    try:
        with path.open("a"):
            pass
        if not existed:
            path.unlink()
    except OSError as error:
        _refuse(f"{path} cannot be written: {error.strerror}; name a file in a folder that exists")


def _writable_all(*paths: Path | None) -> None:
    for path in paths:
        if path is not None:
            _writable(path)


def _check_timeout(timeout: float) -> None:
    if not 0 < timeout < float("inf"):
        _refuse(f"--timeout is {timeout:g}; give seconds above 0")


def _known(option: str, given: list[str], known: Any, *, of: Any = None) -> None:
    """`of`: what the error names, if not all."""
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1, 0.4)
            hint = f"; did you mean {close[0]}?" if close else ""
            _refuse(f"{option} {name} is unknown; use one of {', '.join(of or known)}{hint}")


def _version(wanted: bool) -> None:
    if wanted:
        out.print(f"lossbridge {lossbridge.__version__}", highlight=False)
        raise typer.Exit()


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


@app.command()
def parity(
    file: Annotated[
        Path | None,
        typer.Argument(help="Your own arrays: an .npz file with y_true, y_pred, and sample_weight, mask if you like."),
    ] = None,
    backend: Annotated[list[str] | None, typer.Option(help="Only this backend; may be repeated.")] = None,
    loss: Annotated[list[str] | None, typer.Option(help="Only this loss; may be repeated. FILE needs one.")] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="Only cases of this dtype; may be repeated.")] = None,
    peers: Annotated[
        bool, typer.Option("--peers", help="lossbridge.compat against the libraries' own functions, where installed.")
    ] = False,
    device: Annotated[str, typer.Option(help="Where to compute: cpu, cuda, …")] = "cpu",
    json: Annotated[Path | None, typer.Option(help="Keep every outcome in this file.")] = None,
    html: Annotated[Path | None, typer.Option(help="Keep the table and a plot of errors in this page.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds of silence after which a backend counts as hung.")] = 600,
    from_logits: Annotated[bool | None, typer.Option(help="With FILE: y_pred holds logits.")] = None,
    label_smoothing: Annotated[float | None, typer.Option(help="With FILE.")] = None,
    axis: Annotated[int | None, typer.Option(help="With FILE: the axis of the classes.")] = None,
    epsilon: Annotated[float | None, typer.Option(help="With FILE: the clipping of probabilities.")] = None,
    ignore_class: Annotated[int | None, typer.Option(help="With FILE: a label to leave out.")] = None,
    temperature: Annotated[float | None, typer.Option(help="With FILE, for distillation_loss.")] = None,
    alpha: Annotated[float | None, typer.Option(help="With FILE, for the focal losses.")] = None,
    gamma: Annotated[float | None, typer.Option(help="With FILE, for the focal losses.")] = None,
    reduction: Annotated[str | None, typer.Option(help="With FILE.")] = None,
) -> None:
    """Check every backend against the reference: values and gradients, eager and compiled.

    With --peers every convention of other libraries against the library itself; --loss then names functions, as
    torch.kl_div, or whole libraries.

    Exit status: 0 if all that was asked for ran and agreed, 1 if not, 2 on bad usage.
    """
    backends, losses, dtypes = backend or [], loss or [], dtype or []
    _known("--backend", backends, BACKENDS)
    _known("--loss", losses, _peer_names() if peers else LOSSES, of=_libraries() if peers else None)
    _known("--dtype", dtypes, DTYPES)
    given = {
        "from_logits": from_logits,
        "label_smoothing": label_smoothing,
        "axis": axis,
        "epsilon": epsilon,
        "ignore_class": ignore_class,
        "temperature": temperature,
        "alpha": alpha,
        "gamma": gamma,
        "reduction": reduction,
    }
    options = {name: option for name, option in given.items() if option is not None}
    if peers and (file is not None or options):
        _refuse("--peers has arrays and options of its own; leave out FILE and what describes it")
    if peers and dtypes:
        _refuse("--dtype chooses among the built-in cases; --peers compares in float32")
    if file is None and options:
        _refuse(f"--{next(iter(options)).replace('_', '-')} describes your own arrays; name their .npz FILE too")
    if file is not None:
        if len(losses) != 1:
            _refuse(f"FILE needs one --loss; use one of {', '.join(LOSSES)}")
        if dtypes:
            _refuse("--dtype chooses among the built-in cases; FILE has the dtype of its y_pred")
        try:
            case_of(file, losses[0], options)
        except UnusableFile as error:
            _refuse(str(error))
    _check_timeout(timeout)
    _writable_all(json, html)

    request = {
        "device": device,
        "losses": losses,
        "dtypes": dtypes,
        "file": None if file is None else str(file),
        "options": options,
        "peers": peers,
    }
    with _progress() as progress:
        chosen = backends or _all_backends()
        bars = {name: progress.add_task(name, total=None) for name in chosen if installed(name)}
        runs = run_workers(
            list(dict.fromkeys(chosen)),
            request,
            worker="lossbridge.tools.parity.parity_worker",
            outcome=lambda found: Outcome(**found),
            timeout=timeout,
            on_total=lambda name, total: progress.update(bars[name], total=total),
            on_outcome=lambda name, outcome: progress.advance(bars[name]),
        )
    lacking = missing(losses) if peers else []
    agreed = _all_agreed(runs, backends) and not (losses and lacking)
    about = parity_report.PEERS if peers else parity_report.CASES
    absent = [f"{library}: not installed, and not compared" for library in lacking]
    absent += parity_report.not_by_a_library(runs) if peers else []
    out.print(about.title, highlight=False)
    out.print(parity_report.table(runs))
    out.print(about.legend, style="dim")
    for line in (*absent, *parity_report.closing_lines(runs, backends)):
        out.print(line, markup=False, highlight=False, soft_wrap=True)
    if json is not None:
        parity_report.write_json(json, runs, device, agreed)
    if html is not None:
        parity_report.write_html(html, runs, device, backends, about, more=absent)
    raise typer.Exit(AGREED if agreed else DISAGREED)


def _progress() -> Progress:
    """A line a backend."""
    columns = TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    return Progress(*columns, console=err)


def _all_backends() -> list[str]:
    return sorted(BACKENDS, key=lambda name: name != "numpy")


def _peer_names() -> list[str]:
    others = [peer for peer in PEERS if peer.library != "lossbridge"]
    return list(dict.fromkeys([*_libraries(), *(peer.name for peer in others)]))


def _libraries() -> list[str]:
    return list(dict.fromkeys(peer.library for peer in PEERS if peer.library != "lossbridge"))


def _all_agreed(runs: list[Any], named: list[str]) -> bool:
    """A backend nobody named may be missing, or lack the device; one that was named, or that started, may not."""
    absent = [] if named else [run for run in runs if run.status in ("missing", "no device")]
    present = [run for run in runs if run not in absent]
    return bool(present) and all(run.agreed for run in present)


@app.command()
def bench(
    backend: Annotated[list[str] | None, typer.Option(help="Only this backend; may be repeated.")] = None,
    loss: Annotated[list[str] | None, typer.Option(help="Only this loss; may be repeated.")] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="Only cells of this dtype; may be repeated.")] = None,
    device: Annotated[str, typer.Option(help="Where to compute: cpu, cuda, …")] = "cpu",
    quick: Annotated[bool, typer.Option("--quick", help="Fewer cells and rounds: 3 minutes on 2 cores.")] = False,
    json: Annotated[Path | None, typer.Option(help="Keep every measurement in this file.")] = None,
    html: Annotated[Path | None, typer.Option(help="Keep the tables and plots in this page.")] = None,
    plots_in: Annotated[Path | None, typer.Option("--plots", help="Keep the plots as PNG in this folder.")] = None,
    compare: Annotated[Path | None, typer.Option(help="An earlier --json: show what got slower or larger.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds of silence after which a backend counts as hung.")] = 600,
) -> None:
    """Time and memory of every loss beside every peer that is installed: eager and compiled, interleaved.

    Exit status: 0 if everything ran, 1 if not, or if --compare shows something worse, 2 on bad usage.
    """
    named, losses, dtypes = backend or [], loss or [], dtype or []
    _known("--backend", named, BACKENDS)
    _known("--loss", losses, LOSSES)
    _known("--dtype", dtypes, DTYPES)
    _check_timeout(timeout)
    _writable_all(json, html)
    if plots_in is not None and not (plots_in.is_dir() or (plots_in.parent.is_dir() and not plots_in.exists())):
        _refuse(f"--plots {plots_in} cannot be made; name a folder, or a new one in a folder that exists")
    try:
        old = [] if compare is None else bench_report.read(compare)
    except bench_report.UnusableResults as error:
        _refuse(str(error))
    chosen = list(dict.fromkeys(named or _all_backends()))
    todo = {name: bench_cells.selected(name, losses, dtypes, quick=quick) for name in chosen}
    chosen = [name for name in chosen if todo[name]]
    if not chosen:
        _refuse(f"no cell{' of --quick' if quick else ''} has this --loss and --dtype; leave one of them out")
    runs: list[results.Run] = []
    with _progress() as progress:
        bars = {name: progress.add_task(name, total=len(todo[name])) for name in chosen if installed(name)}
        for name in chosen:  # one after another: side by side they would slow each other
            runs += run_workers(
                [name],
                {
                    "device": device,
                    "cells": [cell.as_dict() for cell in todo[name]],
                    "budget": asdict(bench_cells.QUICK if quick else bench_cells.FULL),
                },
                worker="lossbridge.tools.bench.bench_worker",
                outcome=results.Outcome.of_dict,
                timeout=timeout,
                on_outcome=lambda name, outcome: progress.advance(bars[name]),
            )
    for table in (bench_report.of_ratios(runs), bench_report.of_slopes(runs), bench_report.of_targets(runs)):
        if table.rows:
            out.print(table.shown())
            out.print(table.legend, style="dim")
    lines = bench_report.closing_lines(runs, named)
    worse: list[str] = []
    if compare is not None:
        worse, compared = results.worse(old, runs)
        lines += [*worse, f"{compared} figures compared with {compare}, {len(worse)} got worse"]
    for line in lines:
        out.print(line, markup=False, highlight=False, soft_wrap=True)
    if json is not None:
        bench_report.write_json(json, runs, device, quick)
    if html is not None:
        bench_report.write_html(html, runs, device, lines)
    if plots_in is not None:
        plots.write_pngs(plots_in, runs)
    raise typer.Exit(AGREED if _all_agreed(runs, named) and not worse else DISAGREED)


@app.command()
def diagnose(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="A batch each: an .npz file with y_true and y_pred, and with class_weight, sample_weight, mask and "
            "observed if there are any."
        ),
    ],
    observed: Annotated[
        list[str] | None,
        typer.Option(
            help="The number to explain, as it was printed; one a file. Or an array of that name in the file."
        ),
    ] = None,
    expected: Annotated[str | None, typer.Option(help="What was meant, as keras.CategoricalCrossentropy.")] = None,
    quantity: Annotated[str | None, typer.Option(help="Of an array of y_pred's shape: gradient or value.")] = None,
    ignore_class: Annotated[int | None, typer.Option(help="A label that may have been left out.")] = None,
    label_smoothing: Annotated[float | None, typer.Option(help="A coefficient that may have been used.")] = None,
    epsilon: Annotated[float | None, typer.Option(help="An ε that may have been used.")] = None,
    probe: Annotated[
        Path | None, typer.Option(help="Write a small batch that tells apart what is left to this .npz file.")
    ] = None,
) -> None:
    """Which convention explains a loss: the libraries' own, or one with something changed.

    Exit status: 0 if something explains it, 1 if nothing does, 2 on bad usage.
    """
    batches = [_batch(path, observed or [], i, len(files)) for i, path in enumerate(files)]
    weights = [options.pop("class_weight", None) for *_, options in batches]
    for path, weight in zip(files[1:], weights[1:], strict=True):
        if weight is not None and not np.array_equal(weight, weights[0]):
            _refuse(f"{path} holds another class_weight than {files[0]}; diagnose it on its own")
    if probe is not None:
        _writable(probe)
    true, pred, seen, options = batches[0]
    columns = TextColumn("comparing conventions"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn()
    with Progress(*columns, console=err) as progress:
        bar = progress.add_task("", total=1.0)
        try:
            found = lossbridge.diagnose(
                true,
                pred,
                seen,
                **options,
                class_weight=weights[0],
                expected=expected,
                quantity=quantity,
                ignore_class=ignore_class,
                label_smoothing=label_smoothing,
                epsilon=epsilon,
                more=batches[1:],
                advance=lambda share: progress.advance(bar, share),
            )
        except (ValueError, TypeError) as error:
            problem = str(error)
        else:
            problem = ""
            progress.update(bar, completed=1.0)
    if problem:
        further = re.match(r"further batch (\d+): ", problem)
        _refuse(f"{files[int(further[1]) if further else 0]}: {problem[further.end() if further else 0 :]}")
    out.print(str(found), markup=False, highlight=False, soft_wrap=True)
    if probe is not None:
        separating = found.probe()
        if separating is None:
            out.print(
                "There are not two explanations that a small batch tells apart; no probe is written.", soft_wrap=True
            )
        else:
            with probe.open("wb") as file:
                np.savez(file, allow_pickle=False, **separating.arrays())
            out.print(f"\nCompute your loss on the batch in {probe}, and diagnose that number with it:", soft_wrap=True)
            out.print(separating.table(), markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(AGREED if found.fits else DISAGREED)


def _batch(path: Path, observed: list[str], place: int, count: int) -> tuple[Any, Any, Any, dict[str, Any]]:
    """(y_true, y_pred, observed, weights and mask) of a file."""
    try:
        arrays = load_arrays(path, ("class_weight", "sample_weight", "mask", "observed"))
    except UnusableFile as error:
        _refuse(str(error))
    seen: Any = arrays.pop("observed", None)
    if observed and len(observed) != count:
        _refuse(f"--observed is given {len(observed)} times for {count} files; give it once a file")
    if observed:
        seen = observed[place]
    if seen is None:
        _refuse(f"{path} holds no array observed; give the number to explain with --observed")
    return arrays.pop("y_true"), arrays.pop("y_pred"), seen, dict(arrays)


@app.command("vectors")
def write_or_check_vectors(
    output: Annotated[Path | None, typer.Option("--out", help="Write the cases with their exact results.")] = None,
    check: Annotated[Path | None, typer.Option(help="Read such a file back and compare it with the reference.")] = None,
) -> None:
    """The cases with inputs, options and exact results as JSON, for implementations in other languages."""
    if (output is None) == (check is None):
        _refuse("give one of --out FILE.json and --check FILE.json")
    if output is not None:
        try:
            count = vectors.write(output)
        except OSError as error:
            _refuse(f"{output} cannot be written: {error.strerror}; name a file in a folder that exists")
        out.print(f"{count} cases written to {output}", highlight=False, soft_wrap=True)
        return
    assert check is not None
    try:
        count, faults = vectors.check(check)
    except vectors.UnusableVectors as error:
        _refuse(str(error))
    for fault in faults:
        out.print(fault, markup=False, highlight=False, soft_wrap=True)
    out.print(f"{count} cases, {len(faults)} wrong", highlight=False)
    raise typer.Exit(DISAGREED if faults else AGREED)
