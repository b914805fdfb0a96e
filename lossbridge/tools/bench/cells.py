"""What is measured: the form of a loss, its shape and dtype, with or without the gradient. Plain data.

Nothing here depends on a framework. Losses and their targets come from lossbridge.spec; a loss that has no form here
gets one. Peers are in contenders.py, limits in targets.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from lossbridge.spec import LOSSES, Target

Sweep = Literal["", "N", "V"]
Ways = Literal["all", "eager", "compiled"]
ITEM_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


@dataclass(frozen=True)
class Form:
    """A loss with the options that decide which formula it computes."""

    loss: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def from_logits(self) -> bool:
        return LOSSES[self.loss].form(self.options) == "logits"

    @property
    def target(self) -> Target:
        """What y_true holds; of log_loss, which takes two kinds, the labels."""
        record = LOSSES[self.loss]
        return next(iter(record.rules[record.form(self.options)]))


_LOGITS = {"from_logits": True}
# The forms that textbook.py and most peers have too, by their names in the results.
NAMED_FORMS: Mapping[str, Form] = {
    "CE, labels": Form("sparse_categorical_crossentropy", _LOGITS),
    "CE, dense": Form("categorical_crossentropy", _LOGITS),
    "KL of logits": Form("kl_divergence", _LOGITS),
    "KL of probabilities": Form("kl_divergence"),
    "distillation": Form("distillation_loss", {"temperature": 2.0}),
    "BCE of logits": Form("binary_crossentropy", _LOGITS),
    "BCE of probabilities": Form("binary_crossentropy"),
    "log loss": Form("log_loss"),
    "focal": Form("categorical_focal_crossentropy", _LOGITS),
    "binary focal": Form("binary_focal_crossentropy", _LOGITS),
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
    """One measurement of all contenders of a backend. `ways`: how they run; `sweep`: the size that is swept, if any.

    `views`: the contenders are lossbridge and its views in lossbridge.compat, without peers, because a call finds the
    memory as its neighbour in the race has left it.
    """

    form: str
    rows: int
    classes: int
    dtype: str = "float32"
    backward: bool = True
    ways: Ways = "all"
    sweep: Sweep = ""
    views: bool = False

    @property
    def name(self) -> str:
        if self.form == IMPORT:
            return self.form
        direction = "forward and backward" if self.backward else "forward"
        views = ", and compat" if self.views else ""
        return f"{self.form}, {self.rows}×{self.classes} {self.dtype}, {direction}{views}"

    @property
    def same(self) -> tuple[Any, ...]:
        """Equal for cells that measure the same, as a step of a sweep or not."""
        return self.form, self.rows, self.classes, self.dtype, self.backward, self.views

    @property
    def gradient_bytes(self) -> int:
        return self.rows * self.classes * ITEM_BYTES[self.dtype]

    @property
    def bytes(self) -> int:
        """The least memory traffic: every array of shape (rows, classes) read once, the gradient written once."""
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


FULL = Budget(least=7, most=51, seconds=8.0, memory=3)
QUICK = Budget(least=3, most=15, seconds=1.0, memory=1)

SMALL, CLASSIFIER, LM, LM_DENSE = (32, 10), (4096, 1000), (2048, 32768), (1024, 32768)
BIG_FORMS = {"CE, labels": LM, "CE, dense": LM_DENSE, "KL of logits": LM_DENSE}
# PyTorch's switch for huge pages on CPUs, which it reads when it is imported. Its own losses gain most by it.
OWN_HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"


def cells(backend: str, *, quick: bool = False) -> list[Cell]:
    """What is measured on a backend, small cells first."""
    return list(_quick(backend) if quick else _full(backend))


def selected(backend: str, losses: list[str], dtypes: list[str], *, quick: bool = False) -> list[Cell]:
    """The cells of these losses and dtypes; an empty list names all. A loss that is named always has a cell."""
    found = cells(backend, quick=quick)
    measured = {FORMS[cell.form].loss for cell in found if cell.form != IMPORT}
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


@dataclass(frozen=True)
class Section:
    """Cells that one process measures. `label`: its name in the results; `environment`: what is added to the user's."""

    label: str
    backend: str
    cells: list[Cell]
    environment: Mapping[str, str] = field(default_factory=dict)


def sections(chosen: Mapping[str, list[Cell]], device: str) -> list[Section]:
    """One of each backend's cells, and one of PyTorch's large cells with its own huge pages."""
    found = []
    for backend, some in chosen.items():
        if backend != "torch":
            found.append(Section(backend, backend, some))
            continue
        found.append(Section(backend, backend, some, {OWN_HUGE_PAGES: "0"}))
        large = {Cell(form, *shape).same for form, shape in BIG_FORMS.items()}
        large_cells = [replace(cell, ways="eager") for cell in some if cell.same in large and not cell.sweep]
        if large_cells and device == "cpu":
            found.append(Section(f"{backend}, {OWN_HUGE_PAGES}=1", backend, large_cells, {OWN_HUGE_PAGES: "1"}))
    return found


def _full(backend: str) -> Iterator[Cell]:
    if backend == "numpy":
        yield Cell(IMPORT, 0, 0)
    for form in ("CE, labels", "CE, dense", "BCE of logits"):
        for backward in (False, True):
            yield Cell(form, *SMALL, backward=backward)
    for form in FORMS:
        for backward in (False, True):
            yield Cell(form, *CLASSIFIER, backward=backward)
    for form in ("CE, labels", "CE, dense", "log loss"):
        yield Cell(form, *CLASSIFIER, ways=_main_way(backend), views=True)
    for dtype in ("float16", "float64"):
        yield Cell("CE, labels", *CLASSIFIER, dtype=dtype)
    for form, shape in BIG_FORMS.items():
        for backward in (False, True):
            yield Cell(form, *shape, backward=backward)
    if backend != "numpy":  # NumPy has no bfloat16
        for form, shape in BIG_FORMS.items():
            yield Cell(form, *shape, dtype="bfloat16")
    for form in BIG_FORMS:
        for classes in (512, 2048, 8192, 32768, 65536):
            yield Cell(form, 512, classes, sweep="V")
        for rows in (32, 128, 512, 2048, 8192):
            yield Cell(form, rows, 4096, sweep="N")


def _quick(backend: str) -> Iterator[Cell]:
    """Each backend in the way it is mostly run."""
    main = _main_way(backend)
    if backend == "numpy":
        yield Cell(IMPORT, 0, 0)
        yield Cell("log loss", *CLASSIFIER, backward=False)
    yield Cell("CE, labels", *SMALL)
    yield Cell("CE, labels", *LM, ways="all" if backend == "torch" else main)
    if backend == "torch":
        yield Cell("CE, labels", *LM, dtype="bfloat16", ways="eager")
        yield from (Cell(form, *CLASSIFIER, ways=main, views=True) for form in ("CE, dense", "log loss"))
    if backend in ("torch", "jax"):
        yield Cell("CE, dense", *LM_DENSE, ways=main)
        yield Cell("KL of logits", *LM_DENSE, ways=main)
    for classes in (1024, 8192, 65536):
        yield Cell("CE, labels", 256, classes, ways=main, sweep="V")
    for rows in (64, 1024, 16384):
        yield Cell("CE, labels", rows, 1024, ways=main, sweep="N")


def _main_way(backend: str) -> Ways:
    """TensorFlow and JAX compiled; PyTorch, which compiles for seconds, and whatever else there is, eager."""
    return "compiled" if backend in ("tensorflow", "jax") else "eager"
