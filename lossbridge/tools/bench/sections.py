"""Which process measures which cells, and with what in its environment. Starts none."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from lossbridge.tools.bench import cells, thread_limits
from lossbridge.tools.bench.cells import Cell

# PyTorch's switch for huge pages on CPUs, which it reads when it is imported. Its own losses gain most by it.
OWN_HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"
TORCH_WITH_HUGE_PAGES = f"torch, {OWN_HUGE_PAGES}=1"


@dataclass(frozen=True)
class Section:
    """The cells that one process measures. `label`: the backend's name in the results, where sections with the same
    label stand as one; `environment`: what is added to the user's."""

    label: str
    backend: str
    cells: list[Cell]
    environment: Mapping[str, str] = field(default_factory=dict)


def sections(chosen: Mapping[str, list[Cell]], device: str) -> list[Section]:
    """One of each backend; on a CPU one for each number of threads, and PyTorch's large cells with huge pages."""
    if device != "cpu":
        return [Section(backend, backend, some) for backend, some in chosen.items()]
    found: list[Section] = []
    for backend, some in chosen.items():
        if backend != "torch":
            found += _by_threads(Section(backend, backend, some))
            continue
        found += _by_threads(Section(backend, backend, some, {OWN_HUGE_PAGES: "0"}))
        found += _by_threads(Section(TORCH_WITH_HUGE_PAGES, backend, _large(some), {OWN_HUGE_PAGES: "1"}))
    return found


def _by_threads(section: Section) -> Iterator[Section]:
    """One for each number of threads, which a process keeps for good."""
    for threads in sorted({cell.threads for cell in section.cells}):
        some = [cell for cell in section.cells if cell.threads == threads]
        yield replace(section, cells=some, environment={**section.environment, **thread_limits.environment(threads)})


def _large(some: Iterable[Cell]) -> list[Cell]:
    """With random data, on one thread, and eager: what compiles would compile once more."""
    shapes = [*cells.BIG_FORMS.items(), *(("CE, labels", shape) for shape in (cells.LLAMA, cells.GPT2))]
    large = {Cell(form, *shape).same for form, shape in shapes}
    return [replace(cell, ways="eager") for cell in some if cell.same in large and not cell.sweep]
