"""The command `lossbridge`: its options, progress bars and exit status.

Holds no check, measurement or table of its own; they are in parity/, bench/, diagnosis/ and comparison/.
"""

from __future__ import annotations

import difflib
import itertools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn

import numpy as np
import typer
from rich.console import Console

from lossbridge.explanation import PREDICTIONS
from lossbridge.explanation import explain as paths_of
from lossbridge.frameworks import FRAMEWORKS
from lossbridge.native import rows
from lossbridge.spec import CHOICES
from lossbridge.tools import comparison, diagnosis, doctor_worker
from lossbridge.tools.bench import bench_report, plots, results
from lossbridge.tools.bench import cells as bench_cells
from lossbridge.tools.bench.sections import sections
from lossbridge.tools.comparison import comparison_page
from lossbridge.tools.diagnosis import diagnosis_page
from lossbridge.tools.explain_worker import Call, Found, call_of
from lossbridge.tools.explain_worker import table as explain_table
from lossbridge.tools.parity import parity_report, peers, vectors
from lossbridge.tools.parity.cases import DTYPES, LOSSES
from lossbridge.tools.parity.check import Outcome, all_cases
from lossbridge.tools.parity.files import case_of, load_arrays
from lossbridge.tools.parity.signatures import FURTHER, SIGNATURES
from lossbridge.tools.parity.tables import UnusableFile
from lossbridge.tools.printed_number import is_number
from lossbridge.tools.processes import BackendRun, installed, run_workers
from lossbridge.tools.progress import progress
from lossbridge.version import __version__

app = typer.Typer(
    help="One loss, four frameworks, the same number.", no_args_is_help=True, pretty_exceptions_enable=False
)
out = Console()
err = Console(stderr=True)

AGREED, DISAGREED, BAD_USAGE = 0, 1, 2
# Of the arrays that `explain` makes up, in each framework's process.
MOST_ENTRIES = 2**27


def number(given: str | float) -> float:
    """An option's number, or its default."""
    return _plain(given, float)


def whole_number(given: str | int) -> int:
    return _plain(given, int)


def _plain(given: object, kind: Any) -> Any:
    try:
        return kind(str(given) if is_number(str(given)) else "")
    except ValueError:
        what = "whole number" if kind is int else "number"
        raise typer.BadParameter(f"{given!r} is no {what}; give it in digits") from None


# Options that several commands share, or that take more than a line.
Backends = Annotated[list[str] | None, typer.Option(help="Only this backend; may be repeated.")]
Losses = Annotated[list[str] | None, typer.Option(help="Only this loss; may be repeated.")]
Device = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, …")]
Timeout = Annotated[float, typer.Option(parser=number, help="Seconds of silence after which a backend counts as hung.")]

OwnFile = Annotated[
    Path | None,
    typer.Argument(
        help="Your own arrays: an .npz, .csv or .parquet file with y_true and y_pred, and optionally sample_weight and "
        "mask."
    ),
]
Everything = Annotated[
    bool, typer.Option("--all", help="Compile every case, also those that compile again what another one does.")
]
Peers = Annotated[
    bool, typer.Option("--peers", help="Compare lossbridge.compat with the libraries' own functions, where installed.")
]

# Options of a loss, for commands that call one.
_PANEL: dict[str, Any] = {"rich_help_panel": "Options of the loss"}
FromLogits = Annotated[bool | None, typer.Option("--from-logits", help="y_pred holds logits.", **_PANEL)]
LabelSmoothing = Annotated[float | None, typer.Option(parser=number, help="In [0, 1].", **_PANEL)]
Axis = Annotated[int | None, typer.Option(parser=whole_number, help="The axis of the classes.", **_PANEL)]
Epsilon = Annotated[
    float | None, typer.Option(parser=number, help="The bound that probabilities are clipped to.", **_PANEL)
]
IgnoreClass = Annotated[int | None, typer.Option(parser=whole_number, help="A label to ignore.", **_PANEL)]
Temperature = Annotated[float | None, typer.Option(parser=number, help="The T of distillation.", **_PANEL)]
Kind = Annotated[str | None, typer.Option(help=f"Of divergence: {', '.join(CHOICES['kind'])}.", **_PANEL)]
Beta = Annotated[float | None, typer.Option(parser=number, help="The teacher's share in jensen_shannon.", **_PANEL)]
Scale = Annotated[str | None, typer.Option(help=f"Of jensen_shannon: {' or '.join(CHOICES['scale'])}.", **_PANEL)]
Alpha = Annotated[float | None, typer.Option(parser=number, help="Of the focal losses.", **_PANEL)]
Gamma = Annotated[float | None, typer.Option(parser=number, help="Of the focal losses.", **_PANEL)]
ClassBalancing = Annotated[
    bool | None, typer.Option("--apply-class-balancing", help="Of binary_focal_crossentropy.", **_PANEL)
]
Reduction = Annotated[str | None, typer.Option(help="mean, sum, none or mean_with_sample_weight.", **_PANEL)]
_OPTIONS = (
    *("from_logits", "label_smoothing", "axis", "epsilon", "ignore_class", "temperature", "alpha", "gamma"),
    *("apply_class_balancing", "kind", "beta", "scale", "reduction"),
)

Batches = Annotated[
    list[Path],
    typer.Argument(
        help="One batch per file: an .npz, .csv or .parquet with y_true and y_pred, and optionally class_weight, "
        "sample_weight, mask and observed."
    ),
]
Observed = Annotated[
    list[str] | None,
    typer.Option(help="The number to explain, as it was printed; once per file. Default: the file's array observed."),
]
AnswerPage = Annotated[
    Path | None, typer.Option(help="Write the answer, and a picture of each sample's loss, to this HTML page.")
]
MayBe = Annotated[
    float | None,
    typer.Option(parser=number, help="A coefficient that may have been used; round ones are found without."),
]
MayBeUsual = Annotated[
    float | None, typer.Option(parser=number, help="One that may have been used; usual ones are found without.")
]
ProbeFile = Annotated[
    Path | None, typer.Option(help="Write a small batch on which the explanations differ to this .npz file.")
]

_RUN_ARRAYS = (
    "an .npz, .csv or .parquet file with what there is of inputs, y_true, param_…, logits, y_pred, sample_weight, "
    "class_weight, mask, losses, loss and grad_…"
)


def refuse(message: str) -> None:
    """Prints the one line."""
    err.print(f"lossbridge: {_visible(message)}", markup=False, highlight=False, soft_wrap=True)


def _refuse(message: str) -> NoReturn:
    refuse(message)
    raise typer.Exit(BAD_USAGE)


def _visible(text: str, kept: str = "") -> str:
    """Names of files and arrays may hold what a terminal obeys: shown as Python writes it."""
    return "".join(c if c.isprintable() or c in kept else repr(c)[1:-1] for c in text)


def _print_lines(*groups: Iterable[str]) -> None:
    """Verbatim: no markup, no line breaks."""
    for line in itertools.chain(*groups):
        out.print(_visible(line, "\n"), markup=False, highlight=False, soft_wrap=True)


def _check_writable(*paths: Path | None) -> None:
    """Refuses before the work rather than after it. Leaves no new file behind."""
    for path in paths:
        if path is None:
            continue
        try:
            existed = path.exists()
            with path.open("a"):
                pass
            if not existed:
                path.unlink()
        except OSError as error:
            _refuse(f"{path} cannot be written: {error.strerror}; name a file in a folder that exists")


def _check_timeout(timeout: float) -> None:
    if not 0 < timeout < float("inf"):
        _refuse(f"--timeout is {timeout:g}; give seconds above 0")


def _refuse_unknown(option: str, given: list[str], known: Iterable[str], *, listed: Iterable[str] = ()) -> None:
    """`listed`: the names that the error lists, if not all known ones."""
    known = list(known)
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1, 0.4)
            hint = f"; did you mean {close[0]}?" if close else ""
            _refuse(f"{option} {name} is unknown; use one of {', '.join(listed or known)}{hint}")


def _options(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a command's arguments that are options of a loss, and were given."""
    return {name: arguments[name] for name in _OPTIONS if arguments[name] is not None}


def _print_header() -> None:
    """Which lossbridge this is: a number says little without it."""
    _print_lines([f"lossbridge {__version__}, {rows.status()}"])


def _print_version(asked: bool) -> None:
    if asked:
        _print_header()
        raise typer.Exit()


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


@app.command()
def parity(
    file: OwnFile = None,
    backend: Backends = None,
    loss: Annotated[list[str] | None, typer.Option(help="Only this loss; may be repeated. FILE needs one.")] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="Only cases of this dtype; may be repeated.")] = None,
    peers: Peers = False,
    everything: Everything = False,
    device: Device = "cpu",
    json: Annotated[Path | None, typer.Option(help="Write every outcome to this JSON file.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the table and a plot of errors to this HTML page.")] = None,
    timeout: Timeout = 600,
    from_logits: FromLogits = None,
    label_smoothing: LabelSmoothing = None,
    axis: Axis = None,
    epsilon: Epsilon = None,
    ignore_class: IgnoreClass = None,
    temperature: Temperature = None,
    kind: Kind = None,
    beta: Beta = None,
    scale: Scale = None,
    alpha: Alpha = None,
    gamma: Gamma = None,
    apply_class_balancing: ClassBalancing = None,
    reduction: Reduction = None,
) -> None:
    """Compare values and gradients of every backend with the reference, eager and compiled.

    Every case runs eagerly. Of the cases that compile the same code one is compiled, with --all every one.

    With --peers, compare lossbridge.compat with the libraries themselves; --loss is then torch, or torch.kl_div.

    Exit status: 0 if everything asked for ran and agreed, 1 if not, 2 on bad usage.
    """
    options = _options(locals())
    request = _ParityRequest(device, loss or [], dtype or [], file, options, peers, everything)
    _refuse_unknown("--backend", backend or [], FRAMEWORKS)
    request.check_usage()
    _check_timeout(timeout)
    _check_writable(json, html)
    runs = _run_parity(list(dict.fromkeys(backend or _all_backends())), request, timeout)
    _report_parity(runs, request, backend or [], json, html)


@dataclass(frozen=True)
class _ParityRequest:
    """What the parity command is asked to check. Its fields travel to the workers."""

    device: str
    losses: list[str]
    dtypes: list[str]
    file: Path | None
    options: dict[str, Any]  # of the file's arrays
    peers: bool
    everything: bool

    def check_usage(self) -> None:
        file, options = self.file, self.options
        if self.peers:
            _refuse_unknown("--loss", self.losses, peers.names(), listed=peers.libraries())
        else:
            for loss in (loss for loss in self.losses if file is not None and loss in FURTHER):
                more = ", ".join(FURTHER[loss].more)
                _refuse(f"--loss {loss} takes {more} too, which FILE does not hold; leave out FILE")
            _refuse_unknown("--loss", self.losses, SIGNATURES)
        _refuse_unknown("--dtype", self.dtypes, DTYPES)
        if self.peers and (file is not None or options):
            _refuse("--peers has arrays and options of its own; leave out FILE and what describes it")
        if self.peers and self.dtypes:
            _refuse("--dtype chooses among the built-in cases; --peers compares in float32")
        if file is None and options:
            _refuse(f"--{next(iter(options)).replace('_', '-')} describes your own arrays; name their FILE too")
        if file is not None:
            if len(self.losses) != 1:
                _refuse(f"FILE needs one --loss; use one of {', '.join(LOSSES)}")
            if self.dtypes:
                _refuse("--dtype chooses among the built-in cases; FILE has the dtype of its y_pred")
            try:
                case_of(file, self.losses[0], options)
            except UnusableFile as error:
                _refuse(str(error))


# How many workers share a backend's cases: torch.compile works on one core, and for longer than the others together.
_WORKERS = {"torch": 2}


def _run_parity(backends: list[str], request: _ParityRequest, timeout: float) -> list[BackendRun[Outcome]]:
    """All backends side by side."""
    with progress(err) as bars:
        tasks = {name: bars.add_task(name, total=None) for name in backends if installed(name)}
        return run_workers(
            {name: _WORKERS.get(name, 1) if request.file is None else 1 for name in backends},
            {**vars(request), "file": None if request.file is None else str(request.file)},
            worker="lossbridge.tools.parity.parity_worker",
            outcome=lambda found: Outcome(**found),
            timeout=timeout,
            on_total=lambda name, total: bars.update(tasks[name], total=total),
            on_outcome=lambda name, outcome: bars.advance(tasks[name]),
        )


def _report_parity(
    runs: list[BackendRun[Outcome]], request: _ParityRequest, named: list[str], json: Path | None, html: Path | None
) -> NoReturn:
    """Prints, writes the files, and exits with the status."""
    about, more = parity_report.CASES, parity_report.compiled(runs)
    agreed = _all_agreed(runs, named)
    if request.peers:
        about, lacking = parity_report.PEERS, peers.missing(request.losses)
        agreed = agreed and not (request.losses and lacking)
        more = [f"{library}: not installed, and not compared" for library in lacking]
        more += parity_report.by_convention_only(runs)
    _print_header()
    out.print(about.title, highlight=False)
    out.print(parity_report.table(runs), "", sep="\n")
    out.print(about.legend, style="dim")
    _print_lines(more, parity_report.closing_lines(runs, named))
    if json is not None:
        parity_report.write_json(json, runs, request.device, agreed)
    if html is not None:
        parity_report.write_html(html, runs, request.device, named, about, more=more)
    raise typer.Exit(AGREED if agreed else DISAGREED)


def _all_backends() -> list[str]:
    return sorted(FRAMEWORKS, key=lambda name: name != "numpy")


def _all_agreed(runs: list[Any], named: list[str]) -> bool:
    """A backend may be missing, or lack the device, unless it was named on the command line."""
    absent = [] if named else [run for run in runs if run.status in ("missing", "no device")]
    present = [run for run in runs if run not in absent]
    return bool(present) and all(run.agreed for run in present)


@app.command()
def bench(
    backend: Backends = None,
    loss: Losses = None,
    dtype: Annotated[list[str] | None, typer.Option(help="Only cells of this dtype; may be repeated.")] = None,
    device: Device = "cpu",
    quick: Annotated[bool, typer.Option("--quick", help="Fewer cells and rounds.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write every measurement to this JSON file.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the tables and plots to this HTML page.")] = None,
    plots_in: Annotated[
        Path | None, typer.Option("--plots", help="Write the plots as PNG files to this folder.")
    ] = None,
    compare: Annotated[
        Path | None, typer.Option(help="A file of an earlier --json: show what got slower or larger.")
    ] = None,
    timeout: Timeout = 600,
) -> None:
    """Measure time and memory of every loss and of every installed peer, in turn, eager and compiled.

    With random data and such as trained models give, on one thread and on two.

    Exit status: 0 if everything ran, 1 if not, or if --compare finds something worse, 2 on bad usage.
    """
    named = backend or []
    _refuse_unknown("--backend", named, FRAMEWORKS)
    _refuse_unknown("--loss", loss or [], dict.fromkeys(form.loss for form in bench_cells.FORMS.values()))
    _refuse_unknown("--dtype", dtype or [], DTYPES)
    _check_timeout(timeout)
    _check_writable(json, html)
    if plots_in is not None and not (plots_in.is_dir() or (plots_in.parent.is_dir() and not plots_in.exists())):
        _refuse(f"--plots {plots_in} cannot be made; name a folder, or a new one in a folder that exists")
    try:
        old = [] if compare is None else bench_report.read(compare)
    except bench_report.UnusableResults as error:
        _refuse(str(error))
    chosen = dict.fromkeys(named or _all_backends())
    cells = {name: bench_cells.selected(name, loss or [], dtype or [], quick=quick, device=device) for name in chosen}
    cells = {name: some for name, some in cells.items() if some}
    if not cells:
        _refuse(f"no cell{' of --quick' if quick else ''} has this --loss and --dtype; leave one of them out")
    runs = _run_bench(cells, bench_cells.QUICK if quick else bench_cells.FULL, device, timeout)

    worse, compared = results.worse(old, runs)
    lines = bench_report.closing_lines(runs, named)
    if compare is not None:
        lines += [*worse, f"{compared} figures compared with {compare}, {len(worse)} got worse"]
    _print_header()
    for table in bench_report.tables(runs):
        out.print(table.shown())
        out.print(f"{table.legend}\n", style="dim")
    _print_lines(lines)
    if json is not None:
        bench_report.write_json(json, runs, device, quick)
    if html is not None:
        bench_report.write_html(html, runs, device, lines)
    if plots_in is not None:
        plots.write_pngs(plots_in, runs)
    raise typer.Exit(AGREED if _all_agreed(runs, named) and not worse else DISAGREED)


def _run_bench(
    cells: dict[str, list[bench_cells.Cell]], budget: bench_cells.Budget, device: str, timeout: float
) -> list[results.Run]:
    """One section after another: side by side they would slow each other down."""
    runs: dict[str, list[results.Run]] = defaultdict(list)
    with progress(err) as bars:
        # What is not installed is reported once.
        todo = [s for s in sections(cells, device) if s.label == s.backend or installed(s.backend)]
        totals = Counter(section.backend for section in todo for _ in section.cells)
        tasks = {name: bars.add_task(name, total=total) for name, total in totals.items() if installed(name)}
        for section in todo:
            runs[section.label] += run_workers(
                {section.backend: 1},
                {"device": device, "cells": [cell.as_dict() for cell in section.cells], "budget": asdict(budget)},
                worker="lossbridge.tools.bench.bench_worker",
                outcome=results.Outcome.of_dict,
                timeout=timeout,
                environment=section.environment,
                on_outcome=lambda name, outcome: bars.advance(tasks[name]),
            )
    return [results.joined(label, parts) for label, parts in runs.items()]


@app.command()
def explain(
    loss: Annotated[str, typer.Argument(help="The loss that is called.")],
    file: OwnFile = None,
    shape: Annotated[
        str | None,
        typer.Option(help="Without FILE: that of y_pred, of logits or of hidden states, by default 4096,1000."),
    ] = None,
    classes: Annotated[
        int | None,
        typer.Option(parser=whole_number, help="Of a linear layer, by default 32768; or kept by topk_divergence, 64."),
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="Without FILE: y_pred's, by default float32.")] = None,
    backend: Backends = None,
    device: Device = "cpu",
    timeout: Timeout = 600,
    from_logits: FromLogits = None,
    label_smoothing: LabelSmoothing = None,
    axis: Axis = None,
    epsilon: Epsilon = None,
    ignore_class: IgnoreClass = None,
    temperature: Temperature = None,
    kind: Kind = None,
    beta: Beta = None,
    scale: Scale = None,
    alpha: Alpha = None,
    gamma: Gamma = None,
    apply_class_balancing: ClassBalancing = None,
    reduction: Reduction = None,
) -> None:
    """Say which path computes a call and its gradient in each framework, eager and compiled, and why not a faster one.

    Nothing is computed. Without FILE all entries of an array are equal.

    Exit status: 0 if every framework answered, 1 if not, 2 on bad usage.
    """
    named, options = backend or [], _options(locals())
    _refuse_unknown("LOSS", [loss], PREDICTIONS)
    _refuse_unknown("--backend", named, FRAMEWORKS)
    _refuse_unknown("--dtype", [dtype] if dtype else [], DTYPES)
    _check_timeout(timeout)
    request, call = _call_to_explain(loss, file, shape, classes, dtype, options)
    runs = run_workers(
        dict.fromkeys(named or _all_backends(), 1),
        {**request, "device": device},
        worker="lossbridge.tools.explain_worker",
        outcome=lambda found: Found(**found),
        timeout=timeout,
    )
    of_pred = f"{call.predictions.shape} of {call.dtype or call.predictions.dtype}"
    given = "".join(f", {name}={option!r}" for name, option in options.items())
    if any(run.outcomes for run in runs):
        out.print(explain_table(runs, f"{loss}, {of_pred}{given}"))
    _print_lines(*(run.absence(named) for run in runs))
    raise typer.Exit(AGREED if _all_agreed(runs, named) else DISAGREED)


def _call_to_explain(
    loss: str, file: Path | None, shape: str | None, classes: int | None, dtype: str | None, options: dict[str, Any]
) -> tuple[dict[str, Any], Call]:
    """What the workers are asked, and that call on NumPy, which is explained once so that an error is reported once."""
    if file is not None and (shape or dtype):
        _refuse("FILE has a shape and a dtype of its own; leave out --shape and --dtype")
    if file is not None and loss not in LOSSES:
        _refuse(f"FILE holds y_true and y_pred, and LOSS {loss} takes other arrays; leave out FILE")
    if classes is not None and not (loss.startswith("linear_") or loss == "topk_divergence"):
        _refuse(f"--classes is of linear losses and of topk_divergence; --shape holds those of {loss}")
    request: dict[str, Any] = {"loss": loss, "shape": _sizes(shape or "4096,1000", classes), "classes": classes}
    request |= {"dtype": dtype or "float32", "options": options, "file": None if file is None else str(file)}
    try:
        call = call_of(request)
        paths_of(loss, **call.arrays, **options)
    except (ValueError, TypeError) as error:
        _refuse(str(error))
    return request, call


def _sizes(shape: str, classes: int | None) -> tuple[int, ...]:
    try:
        sizes = tuple(int(size) for size in shape.split(",") if size)
    except ValueError:
        sizes = (-1,)
    if not sizes or min(sizes) < 0:
        _refuse(f"--shape is {shape!r}; give sizes with commas between, as 4096,1000")
    entries = math.prod(sizes)
    if entries > MOST_ENTRIES:
        _refuse(f"--shape {shape} has {entries} entries; give at most {MOST_ENTRIES}, above which no path changes")
    if classes is not None and not 1 <= classes * max(sizes[-1], 1) <= MOST_ENTRIES:
        _refuse(f"--classes is {classes}; give at least 1, and at most {MOST_ENTRIES // max(sizes[-1], 1)}")
    return sizes


@app.command()
def doctor(backend: Backends = None, device: Device = "cpu", timeout: Timeout = 120) -> None:
    """Say what is installed, what is native, and which paths calls take; compute the Keras example everywhere.

    Add its output to a report of a fault.

    Exit status: 0 if every framework gave 1.1769392, 1 if not, 2 on bad usage.
    """
    named = backend or []
    _refuse_unknown("--backend", named, FRAMEWORKS)
    _check_timeout(timeout)
    _print_lines(doctor_worker.lines())
    runs = run_workers(
        dict.fromkeys(named or _all_backends(), 1),
        {"device": device},
        worker="lossbridge.tools.doctor_worker",
        outcome=lambda found: doctor_worker.Found(**found),
        timeout=timeout,
    )
    out.print(doctor_worker.table(runs))
    _print_lines(*(run.absence(named) for run in runs), [doctor_worker.verdict(runs)])
    raise typer.Exit(AGREED if _all_agreed(runs, named) else DISAGREED)


@app.command()
def diagnose(
    files: Batches,
    observed: Observed = None,
    expected: Annotated[
        str | None, typer.Option(help="The function that was meant, such as keras.CategoricalCrossentropy.")
    ] = None,
    quantity: Annotated[
        str | None, typer.Option(help="What an array of y_pred's shape holds: gradient or value.")
    ] = None,
    ignore_class: Annotated[
        int | None, typer.Option(parser=whole_number, help="A label that may have been ignored.")
    ] = None,
    label_smoothing: MayBe = None,
    epsilon: MayBe = None,
    temperature: MayBe = None,
    pos_weight: MayBe = None,
    gamma: MayBe = None,
    alpha: MayBe = None,
    beta: MayBe = None,
    logit_scale: MayBe = None,
    softcap: MayBeUsual = None,
    z_loss: MayBeUsual = None,
    probe: ProbeFile = None,
    html: AnswerPage = None,
) -> None:
    """Find the conventions that explain a loss: the libraries' own, and those with one or two things changed.

    Exit status: 0 if a convention explains it, 1 if none does, 2 on bad usage.
    """
    batches, class_weight = _batches(files, observed or [])
    _check_writable(probe, html)
    y_true, y_pred, number, options = batches[0]
    used = {"label_smoothing": label_smoothing, "epsilon": epsilon, "temperature": temperature}
    used |= {"pos_weight": pos_weight, "gamma": gamma, "alpha": alpha, "beta": beta}
    used |= {"logit_scale": logit_scale, "softcap": softcap, "z_loss": z_loss}
    try:
        with progress(err) as bars:
            task = bars.add_task("comparing conventions", total=1.0)
            found = diagnosis.diagnose(
                y_true,
                y_pred,
                number,
                **options,
                class_weight=class_weight,
                expected=expected,
                quantity=quantity,
                ignore_class=ignore_class,
                **used,
                more=batches[1:],
                advance=lambda fraction: bars.advance(task, fraction),
            )
            bars.update(task, completed=1.0)
    except (ValueError, TypeError) as error:
        place = re.match(r"further batch (\d+): ", str(error))
        _refuse(f"{files[int(place[1]) if place else 0]}: {str(error)[place.end() if place else 0 :]}")
    _print_lines([found.text(command=True)])
    _write_probe(probe, found)
    if html is not None:
        diagnosis_page.write_html(html, found, expected)
    raise typer.Exit(AGREED if found.fits else DISAGREED)


def _write_probe(path: Path | None, found: diagnosis.Diagnosis) -> None:
    probe = found.probe() if path is not None else None
    if path is None:
        return
    if probe is None:
        out.print("No small batch tells two of the explanations apart; no probe is written.", soft_wrap=True)
        return
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **probe.arrays())
    words = f"\nCompute your loss on the batch in {path}, and diagnose that number with it:"
    _print_lines([words, probe.table()])


def _batches(files: list[Path], observed: list[str]) -> tuple[list[Any], Any]:
    """Those of the files, and the class weights, which are of all of them."""
    batches = [_batch(path, observed, i, len(files)) for i, path in enumerate(files)]
    weights = [options.pop("class_weight", None) for *_, options in batches]
    for path, weight in zip(files[1:], weights[1:], strict=True):
        if weight is not None and not np.array_equal(weight, weights[0]):
            _refuse(f"{path} holds another class_weight than {files[0]}; diagnose it on its own")
    return batches, weights[0]


def _batch(path: Path, observed: list[str], place: int, count: int) -> tuple[Any, Any, Any, dict[str, Any]]:
    """A file's (y_true, y_pred, observed, weights and mask)."""
    try:
        arrays = load_arrays(path, ("class_weight", "sample_weight", "mask", "observed"))
    except UnusableFile as error:
        _refuse(str(error))
    number: Any = arrays.pop("observed", None)
    if observed and len(observed) != count:
        _refuse(f"--observed is given {len(observed)} times for {count} files; give it once a file")
    if observed:
        number = observed[place]
    if number is None:
        _refuse(f"{path} holds no array observed; give the number to explain with --observed")
    return arrays.pop("y_true"), arrays.pop("y_pred"), number, dict(arrays)


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help=f"The arrays of a run: {_RUN_ARRAYS}.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Those of the other, of the same batch.")],
    tolerance: Annotated[
        float, typer.Option(parser=number, help="The relative difference that counts as rounding.")
    ] = 1e-5,
    html: Annotated[Path | None, typer.Option(help="Write the answer and a picture to this HTML page.")] = None,
) -> None:
    """Find where two frameworks' runs of one training step part first, and say how.

    Exit status: 0 if nothing parts, 1 if they part, 2 on bad usage.
    """
    _check_writable(html)
    try:
        found = comparison.compare(a, b, tolerance=tolerance)
    except (ValueError, TypeError) as error:
        _refuse(str(error))
    _print_lines([str(found)])
    if html is not None:
        comparison_page.write_html(html, found)
    raise typer.Exit(DISAGREED if found.parts_at else AGREED)


@app.command("vectors")
def write_or_check_vectors(
    output: Annotated[Path | None, typer.Option("--out", help="Write the cases with their exact results.")] = None,
    check: Annotated[Path | None, typer.Option(help="Read such a file back and compare it with the reference.")] = None,
    loss: Annotated[list[str] | None, typer.Option(help="With --out: only this loss; may be repeated.")] = None,
) -> None:
    """Write or check the cases with inputs, options and exact results, as JSON for other implementations."""
    if (output is None) == (check is None):
        _refuse("give one of --out FILE.json and --check FILE.json")
    _refuse_unknown("--loss", loss or [], SIGNATURES)
    if check is not None and loss:
        _refuse("--loss chooses what --out writes; --check compares every case of its file")
    if output is not None:
        try:
            count = vectors.write(output, tuple(case for case in all_cases() if not loss or case.loss in loss))
        except OSError as error:
            _refuse(f"{output} cannot be written: {error.strerror}; name a file in a folder that exists")
        _print_lines([f"{count} cases written to {output}"])
        return
    assert check is not None
    try:
        count, faults = vectors.check(check)
    except vectors.UnusableVectors as error:
        _refuse(str(error))
    _print_lines(faults)
    out.print(f"{count} cases, {len(faults)} wrong", highlight=False)
    raise typer.Exit(DISAGREED if faults else AGREED)
