"""What is measured: the form of a loss, its shape, dtype and data, with or without the gradient. Plain data.

Nothing here depends on a framework. Losses and their targets come from lossbridge.spec; a loss that has no form here
gets one. Data are in data_kinds.py, peers in contenders.py, limits in targets.py, the processes that measure in
sections.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from lossbridge.spec import LOSSES
from lossbridge.tools.bench import data_kinds
from lossbridge.tools.bench.data_kinds import RANDOM, Form

Sweep = Literal["", "N", "V", "data"]
Ways = Literal["all", "eager", "compiled"]
ITEM_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


_LOGITS = {"from_logits": True}
LINEAR, LINEAR_KL, UNITS = "linear CE", "linear distillation", 512  # of hidden states and a weight
# The forms that textbook.py and most peers have too, by their names in the results.
NAMED_FORMS: Mapping[str, Form] = {
    "CE, labels": Form("sparse_categorical_crossentropy", _LOGITS),
    "CE, dense": Form("categorical_crossentropy", _LOGITS),
    "KL of logits": Form("kl_divergence", _LOGITS),
    "KL of probabilities": Form("kl_divergence"),
    "distillation": Form("distillation_loss", {"temperature": 2.0}),
    "Jensen-Shannon": Form("divergence", {"kind": "jensen_shannon"}),
    "BCE of logits": Form("binary_crossentropy", _LOGITS),
    "BCE of probabilities": Form("binary_crossentropy"),
    "log loss": Form("log_loss"),
    "focal": Form("categorical_focal_crossentropy", _LOGITS),
    "binary focal": Form("binary_focal_crossentropy", _LOGITS),
    LINEAR: Form("linear_crossentropy", units=UNITS),
    LINEAR_KL: Form("linear_distillation", units=UNITS),
}


def _unnamed_forms() -> Iterator[tuple[str, Form]]:
    """One of each loss that has none above: of logits, if it takes them."""
    named = {form.loss for form in NAMED_FORMS.values()}
    for loss, record in LOSSES.items():
        if loss not in named:
            form = "logits" if "logits" in record.rules else "probabilities"
            yield f"{loss} of {form}", Form(loss, _LOGITS if len(record.rules) > 1 else {})


FORMS: Mapping[str, Form] = {**NAMED_FORMS, **dict(_unnamed_forms())}
IMPORT = "import"  # the form of the cell that measures the package's import instead of a loss


@dataclass(frozen=True)
class Cell:
    """One measurement of all contenders of a backend. `ways`: how they run; `sweep`: what is swept, if anything.

    `views`: the contenders are lossbridge and its views in lossbridge.compat, without peers, because a call finds the
    memory as its neighbour in the race has left it. `data`: a kind of data_kinds.KINDS. `threads`: how many a call may
    use. `busy`: beside another process that never rests.
    """

    form: str
    rows: int
    classes: int
    dtype: str = "float32"
    backward: bool = True
    ways: Ways = "all"
    sweep: Sweep = ""
    views: bool = False
    data: str = RANDOM
    threads: int = 1
    busy: bool = False

    @property
    def name(self) -> str:
        if self.form == IMPORT:
            return self.form
        direction = "forward and backward" if self.backward else "forward"
        views = ", and compat" if self.views else ""
        return f"{self.form}, {self.rows}×{self.classes} {self.dtype}, {direction}{views}{self.circumstances}"

    @property
    def circumstances(self) -> str:
        """Data, threads and a busy machine, where they are not the usual ones."""
        data = f", {self.data}" if self.data != RANDOM or self.sweep == "data" else ""
        threads = f", {self.threads} threads" if self.threads > 1 else ""
        return f"{data}{threads}{', busy' if self.busy else ''}"

    @property
    def same(self) -> tuple[Any, ...]:
        """Equal for cells that measure the same, as a step of a sweep or not."""
        shape = self.rows, self.classes, self.dtype
        return self.form, *shape, self.backward, self.views, self.data, self.threads, self.busy

    @property
    def gradient_bytes(self) -> int:
        """Of all predictions."""
        units = FORMS[self.form].units
        entries = (self.rows + self.classes) * units if units else self.rows * self.classes
        return entries * ITEM_BYTES[self.dtype]

    @property
    def bytes(self) -> int:
        """The least memory traffic: predictions, and targets of their shape, read once, the gradient written once."""
        if self.form == IMPORT:
            return 0
        arrays = 1 if FORMS[self.form].target == "labels" else 2
        return (arrays + self.backward) * self.gradient_bytes

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Budget:
    """How long a cell may take: between `least` and `most` rounds, none of them begun after `seconds`."""

    least: int
    most: int
    seconds: float
    memory: int  # calls whose peak memory is measured


FULL = Budget(least=5, most=51, seconds=1.5, memory=2)
QUICK = Budget(least=3, most=15, seconds=0.5, memory=1)

SMALL, CLASSIFIER, LM, LM_DENSE = (32, 10), (4096, 1000), (2048, 32768), (1024, 32768)
LLAMA, GPT2, BINARY, HALF_LM = (512, 128256), (1024, 50257), (4096, 4096), (512, 32768)
BIG_FORMS = {"CE, labels": LM, "CE, dense": LM_DENSE, "KL of logits": LM_DENSE, "BCE of logits": BINARY}
SWEPT = "CE, labels", "CE, dense", "KL of logits"
# The rows and dtypes of the linear loss' large cells.
LINEAR_ROWS = {
    "numpy": ((1024, "float32"),),
    "torch": ((4096, "float32"), (1024, "float32"), (512, "bfloat16")),
    "tensorflow": ((4096, "float32"),),
    "jax": ((4096, "float32"), (1024, "bfloat16")),
}
DATA_SHAPE, QUICK_DATA_SHAPE = (256, 32768), (64, 32768)


def cells(backend: str, *, quick: bool = False) -> list[Cell]:
    """What is measured on a backend, small cells first."""
    return list(dict.fromkeys(_quick(backend) if quick else _full(backend)))


def selected(
    backend: str, losses: list[str], dtypes: list[str], *, quick: bool = False, device: str = "cpu"
) -> list[Cell]:
    """The cells of these losses and dtypes; an empty list names all. A loss that is named always has a cell."""
    found = [cell for cell in cells(backend, quick=quick) if device == "cpu" or cell.threads == 1]
    measured = {FORMS[cell.form].loss for cell in found if cell.form != IMPORT and not cell.sweep}
    found += [
        Cell(name, *CLASSIFIER, ways=_main_way(backend))
        for name, form in FORMS.items()
        if form.loss in losses and form.loss not in measured
    ]
    return [
        cell
        for cell in found
        if not (losses and (cell.form == IMPORT or FORMS[cell.form].loss not in losses))
        and not (dtypes and (cell.form == IMPORT or cell.dtype not in dtypes))
    ]


def _full(backend: str) -> Iterator[Cell]:
    main = _main_way(backend)
    if backend == "numpy":
        yield Cell(IMPORT, 0, 0)
    for form in ("CE, labels", "CE, dense", "BCE of logits"):
        for backward in (False, True):
            yield Cell(form, *SMALL, backward=backward)
    for form in FORMS:
        for backward in (False, True):
            yield Cell(form, *CLASSIFIER, backward=backward)
    for form in ("CE, labels", "CE, dense", "log loss"):
        yield Cell(form, *CLASSIFIER, ways=main, views=True)
    for dtype in ("float16", "float64"):
        yield Cell("CE, labels", *CLASSIFIER, dtype=dtype)
    for form, shape in BIG_FORMS.items():
        for backward in (False, True):
            yield Cell(form, *shape, backward=backward, ways=main)
    if backend != "numpy":  # NumPy has no bfloat16, and computes float16 without instructions for it
        for dtype in ("bfloat16", "float16"):
            for form, shape in list(BIG_FORMS.items())[: 1 if backend == "tensorflow" else None]:
                yield Cell(form, *shape, dtype=dtype, ways=main)
    yield from _of_targets(backend)
    for form in SWEPT:
        for classes in (512, 2048, 8192, 32768, 65536):
            yield Cell(form, 256, classes, ways=main, sweep="V")
        for rows in (32, 128, 512, 2048, 8192):
            yield Cell(form, rows, 2048, ways=main, sweep="N")
    for classes in (512, 2048, 8192, 32768, 65536):
        yield Cell(LINEAR, 1024, classes, ways=main, sweep="V")  # with fewer rows the logits are not much of the memory
    yield Cell(LINEAR_KL, *LM_DENSE, ways=main)
    yield from _data(backend, data_kinds.KINDS, DATA_SHAPE)
    yield from _two_threads(backend, SWEPT)


def _of_targets(backend: str) -> Iterator[Cell]:
    """The large cells that targets.py names, besides those that every backend has."""
    for rows, dtype in LINEAR_ROWS.get(backend, ()):
        yield Cell(LINEAR, rows, LM[1], dtype=dtype, ways=_main_way(backend))
    if backend == "torch":
        for shape in (LLAMA, GPT2):
            for backward in (False, True):
                yield Cell("CE, labels", *shape, backward=backward, ways="eager")
        yield Cell("CE, labels", *LM_DENSE)
    if backend == "jax":
        for form in ("CE, dense", "KL of logits"):
            yield Cell(form, *HALF_LM, ways="compiled")


def _data(backend: str, kinds: Iterable[str], shape: tuple[int, int]) -> Iterator[Cell]:
    """Every loss with each of these kinds of data that suits it."""
    for name, form in FORMS.items():
        for kind in data_kinds.kinds(form):
            if kind in kinds:
                yield Cell(name, *shape, ways=_main_way(backend), sweep="data", data=kind)


def _two_threads(backend: str, big: Iterable[str]) -> Iterator[Cell]:
    """Beside the cells of one thread; and with one and with two beside a process that is always busy."""
    main = _main_way(backend)
    yield Cell("CE, labels", *CLASSIFIER, ways=main, threads=2)
    for form in big:
        yield Cell(form, *BIG_FORMS[form], ways=main, threads=2)
    for threads in (1, 2):
        yield Cell("CE, labels", *CLASSIFIER, ways=main, threads=threads, busy=True)


def _quick(backend: str) -> Iterator[Cell]:
    """Each backend in the way it is mostly run."""
    main = _main_way(backend)
    if backend == "numpy":
        yield Cell(IMPORT, 0, 0)
        yield Cell("log loss", *CLASSIFIER, backward=False)
    for backward in (False, True):
        yield Cell("CE, labels", *SMALL, backward=backward)
    yield Cell("CE, labels", *CLASSIFIER)
    yield Cell(LINEAR, *CLASSIFIER, ways=main)
    yield Cell("CE, labels", *LM, ways=main)
    if backend == "torch":
        yield from (Cell(form, *CLASSIFIER, ways=main) for form in ("CE, dense", "KL of logits"))
        yield from (Cell(form, *CLASSIFIER, ways=main, views=True) for form in ("CE, dense", "log loss"))
        yield Cell("CE, labels", *LM, backward=False, ways=main)
        yield from (Cell("CE, labels", *LM, dtype=dtype, ways=main) for dtype in ("bfloat16", "float16"))
        for dtype in ("float32", "bfloat16"):
            yield from (Cell(form, *BIG_FORMS[form], dtype=dtype, ways=main) for form in list(BIG_FORMS)[1:])
        yield Cell("CE, labels", *LM_DENSE, ways="all")
    if backend == "jax":
        yield from (Cell(form, *HALF_LM, ways=main) for form in ("CE, dense", "KL of logits"))
        yield Cell("CE, labels", *LM, dtype="bfloat16", ways=main)
    for classes in (1024, 8192, 65536):
        yield Cell("CE, labels", 256, classes, ways=main, sweep="V")
    for rows in (64, 1024, 16384):
        yield Cell("CE, labels", rows, 1024, ways=main, sweep="N")
    yield from _data(backend, data_kinds.QUICK, QUICK_DATA_SHAPE)
    yield from _two_threads(backend, ())


def _main_way(backend: str) -> Ways:
    """TensorFlow and JAX compiled; PyTorch, which compiles for seconds, and whatever else there is, eager."""
    return "compiled" if backend in ("tensorflow", "jax") else "eager"
