"""The targets: limits on ours over a named peer's, in a cell of a backend, as plain data; and whether they are met.

Limits are goals, not results: the benchmark prints both. Those for CUDA stand in benchmarks/gpu, which measures them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from lossbridge.tools.bench.cells import (
    BINARY,
    CLASSIFIER,
    GPT2,
    HALF_LM,
    IMPORT,
    LINEAR,
    LLAMA,
    LM,
    LM_DENSE,
    SMALL,
    Cell,
)
from lossbridge.tools.bench.contenders import IN_PLACE, OURS, OUT
from lossbridge.tools.bench.results import Measurement, Ratio, Run, cost, quotient
from lossbridge.tools.bench.sections import TORCH_WITH_HUGE_PAGES

Who = tuple[str, str]  # a contender's name, and the way it runs
NEVER_ABOVE = 1.05  # the limit for every cell, over the best peer
MOST_SPREAD = 1.3  # of every loss: the slowest kind of data over the fastest
_ROUNDING = 0.005  # of a ratio of memory, which is measured in pages


@dataclass(frozen=True)
class Target:
    """`backend`: the label of a section. `time`, `memory`, `temporaries` (what a compiler plans besides the results):
    limits on ratios; `over_us`: on a difference of times in µs. `peer_cell`: where the peer is measured, if not in the
    same cell. Time is that of results.cost: the core's with one thread, else the clock's."""

    case: str
    backend: str
    cell: Cell
    ours: Who
    peer: Who
    time: float | None = None
    memory: float | None = None
    over_us: float | None = None
    peer_cell: Cell | None = None
    temporaries: float | None = None


_CE = "CE, labels"
_EAGER, _COMPILE, _JIT, _FUNCTION = (OURS, "eager"), (OURS, "compile"), (OURS, "jit"), (OURS, "function")
_JIT_COMPILE = OURS, "jit_compile"
_F, _KL_DIV, _BCE = ("F.cross_entropy", "eager"), ("F.kl_div", "eager"), ("F.binary_cross_entropy_with_logits", "eager")
_IN_PLACE = IN_PLACE, "eager"
_F_COMPILED = "F.cross_entropy", "compile"
_OPTAX_LABELS, _OPTAX = (
    ("optax.softmax_cross_entropy_with_integer_labels", "jit"),
    ("optax.softmax_cross_entropy", "jit"),
)
_OPTAX_KL = "optax.kl_divergence_with_log_targets", "jit"
_TF = "tf.nn.sparse_softmax_cross_entropy"
_TF_FUNCTION, _TF_JIT = (_TF, "function"), (_TF, "jit_compile")
_KERAS, _TEXTBOOK = ("keras.SparseCategoricalCrossentropy", "eager"), ("textbook", "eager")
_DENSE = (
    ("CE dense 1024×32768", "CE, dense", LM_DENSE, _F),
    ("KL 1024×32768", "KL of logits", LM_DENSE, _KL_DIV),
    ("BCE 4096×4096", "BCE of logits", BINARY, _BCE),
)
_THREADED = (
    ("CE 4096×1000", _CE, CLASSIFIER),
    ("CE 2048×32768", _CE, LM),
    *(big[:3] for big in _DENSE[:2]),
)
_SIZES = {f"{rows}×{classes}": (rows, classes) for rows, classes in (LM, LLAMA, GPT2)}


def _torch() -> Iterator[Target]:
    """Beside PyTorch's own functions, eager."""
    cell, small = Cell(_CE, *CLASSIFIER), Cell(_CE, *SMALL)
    for size, shape in _SIZES.items():
        yield Target(f"CE {size}", "torch", Cell(_CE, *shape), _EAGER, _F, 0.16)
    for size, shape in _SIZES.items():
        yield Target(f"CE {size}, gradient over the logits", "torch", Cell(_CE, *shape), _IN_PLACE, _F, 0.07, 0.0)
    for size, shape in _SIZES.items():
        yield Target(f"CE {size}, forward", "torch", Cell(_CE, *shape, backward=False), _EAGER, _F, 0.18)
    yield Target("CE 4096×1000", "torch", cell, _EAGER, _F, 0.23)
    yield Target("CE dense 4096×1000", "torch", replace(cell, form="CE, dense"), _EAGER, _F, 0.36)
    yield Target("KL 4096×1000", "torch", replace(cell, form="KL of logits"), _EAGER, _KL_DIV, 0.26)
    for dtype, most in (("bfloat16", 0.18), ("float16", 0.16)):
        yield Target(f"CE 2048×32768 {dtype}", "torch", Cell(_CE, *LM, dtype=dtype), _EAGER, _F, most)
    for dtype, limits in (("", (0.13, 0.10, 0.15)), (" bfloat16", (0.20, 0.14, 0.17))):
        for (name, form, shape, peer), most in zip(_DENSE, limits, strict=True):
            big = Cell(form, *shape, dtype=dtype.strip() or "float32")
            yield Target(f"{name}{dtype}", "torch", big, _EAGER, peer, most)
    for size, shape, most in (("1024×32768", LM_DENSE, 0.40), ("4096×1000", CLASSIFIER, 0.45)):
        compiled = Cell(_CE, *shape)
        yield Target(f"CE {size} / compiled F", "torch", compiled, _EAGER, _F_COMPILED, 0.32)
        yield Target(f"CE {size}, compiled / compiled F", "torch", compiled, _COMPILE, _F_COMPILED, most)
    yield Target("CE 32×10", "torch", small, _EAGER, _F, over_us=20)
    yield Target("CE 32×10, forward", "torch", replace(small, backward=False), _EAGER, _F, over_us=8)


def _torch_with_huge_pages() -> Iterator[Target]:
    """Beside PyTorch's own function when it has the huge pages that ours ask for by themselves."""
    for size, shape in _SIZES.items():
        yield Target(f"CE {size}", TORCH_WITH_HUGE_PAGES, Cell(_CE, *shape), _EAGER, _F, 0.35)


def _others() -> Iterator[Target]:
    """Of JAX beside optax under jit, of TensorFlow, of NumPy."""
    lm, classifier, small = Cell(_CE, *LM), Cell(_CE, *CLASSIFIER), Cell(_CE, *SMALL)
    yield Target("CE 2048×32768 / optax", "jax", lm, _JIT, _OPTAX_LABELS, 0.30)
    yield Target("CE dense 512×32768 / optax", "jax", Cell("CE, dense", *HALF_LM), _JIT, _OPTAX, 0.20)
    yield Target("KL 512×32768 / optax", "jax", Cell("KL of logits", *HALF_LM), _JIT, _OPTAX_KL, 0.15)
    yield Target("CE 2048×32768 bfloat16 / optax", "jax", replace(lm, dtype="bfloat16"), _JIT, _OPTAX_LABELS, 0.12)
    yield Target("CE 32×10 / optax", "jax", small, _JIT, _OPTAX_LABELS, 0.35)
    yield Target("CE 4096×1000, eager / tf.function", "tensorflow", classifier, _EAGER, _TF_FUNCTION, 0.40)
    yield Target("CE 4096×1000, tf.function / the same", "tensorflow", classifier, _FUNCTION, _TF_FUNCTION, 0.30)
    yield Target("CE 4096×1000, tf.function / jit_compile", "tensorflow", classifier, _FUNCTION, _TF_JIT, 0.60)
    yield Target("CE 32×10, eager / Keras' loss", "tensorflow", small, _EAGER, _KERAS, 0.4)
    yield Target("CE 32×10, tf.function / the same", "tensorflow", small, _FUNCTION, _TF_FUNCTION, 1.05)
    yield Target("CE 4096×1000 / textbook", "numpy", classifier, _EAGER, _TEXTBOOK, 0.33, 0.34)
    yield Target("CE 2048×32768 / textbook", "numpy", lm, _EAGER, _TEXTBOOK, 0.31, 0.34)
    yield Target("CE 2048×32768, out= / textbook", "numpy", lm, (OUT, "eager"), _TEXTBOOK, 0.17, 0.0)
    yield Target("CE 32×10 / textbook", "numpy", small, _EAGER, _TEXTBOOK, 1.0)
    yield Target("import, over import numpy", "numpy", Cell(IMPORT, 0, 0), _EAGER, ("numpy", "eager"), over_us=15e3)


def _linear() -> Iterator[Target]:
    """Of the linear loss beside the loss of all logits, and beside PyTorch's own linear loss."""
    big, small = Cell(LINEAR, 4096, LM[1]), Cell(LINEAR, 1024, LM[1])
    halves = {rows: Cell(LINEAR, rows, LM[1], "bfloat16") for rows in (512, 1024)}
    f, optax, function, jit_compile = map(_of_all_logits, (_F, _OPTAX_LABELS, _TF_FUNCTION, _TF_JIT))
    own = "F.linear_cross_entropy", "eager"
    yield Target("linear CE 4096×32768 / all logits", "torch", big, _EAGER, f, 0.75, 0.07)
    yield Target("linear CE 1024×32768 / all logits", "torch", small, _EAGER, f, 0.75, 0.25)
    yield Target("linear CE 1024×32768 / PyTorch's own", "torch", small, _EAGER, own, 0.25, 0.75)
    yield Target("linear CE 512×32768 bfloat16 / PyTorch's own", "torch", halves[512], _EAGER, own, 0.10)
    yield Target("linear CE 4096×32768 / all logits", "jax", big, _JIT, optax, 0.85, temporaries=0.16)
    yield Target("linear CE 1024×32768 bfloat16 / all logits", "jax", halves[1024], _JIT, optax, 0.75, 0.5)
    yield Target("linear CE 4096×32768 / all logits", "tensorflow", big, _FUNCTION, function, 1.0, 0.2)
    yield Target(
        "linear CE 4096×32768, jit_compile / all logits", "tensorflow", big, _JIT_COMPILE, jit_compile, 1.15, 0.2
    )
    yield Target("linear CE 1024×32768 / textbook", "numpy", small, _EAGER, _TEXTBOOK, 0.70, 0.22)


def _of_all_logits(peer: Who) -> Who:
    return f"{peer[0]} of all logits", peer[1]


def _threads() -> Iterator[Target]:
    """By the clock: two threads over one, alone on the machine, and beside a process that is always busy."""
    ways = {"numpy": _EAGER, "torch": _EAGER, "tensorflow": _FUNCTION, "jax": _JIT}
    for backend, ours in ways.items():
        for case, form, shape in _THREADED:
            two, one = Cell(form, *shape, threads=2), Cell(form, *shape)
            yield Target(f"{case}, two threads / one", backend, two, ours, ours, 0.65, peer_cell=one)
        two, one = (Cell(_CE, *CLASSIFIER, threads=threads, busy=True) for threads in (2, 1))
        yield Target("CE 4096×1000, two threads / one, busy machine", backend, two, ours, ours, 1.1, peer_cell=one)


NOT_MEASURED = "not measured"
TARGETS = (*_torch(), *_torch_with_huge_pages(), *_others(), *_linear(), *_threads())


@dataclass(frozen=True)
class Limit:
    """One limit of a target, and what was measured."""

    what: str
    most: float
    found: float | None
    form: str = ".2f"

    @property
    def reached(self) -> bool:
        slack = _ROUNDING if self.what == "memory" else 0.0
        return self.found is not None and self.found <= self.most + slack


@dataclass(frozen=True)
class Judgement:
    target: Target
    limits: tuple[Limit, ...]
    words: str = ""  # why it was not measured, if so

    @property
    def reached(self) -> bool | None:
        return None if self.words else all(limit.reached for limit in self.limits)


def judge(runs: Iterable[Run]) -> list[Judgement]:
    """The targets of the backends that ran."""
    of_backend = {run.backend: run for run in runs}
    return [_judged(target, of_backend[target.backend]) for target in TARGETS if target.backend in of_backend]


def _judged(target: Target, run: Run) -> Judgement:
    ours, mine = _measured(run, target.cell, target.ours)
    peer, theirs = _measured(run, target.peer_cell or target.cell, target.peer)
    return Judgement(target, tuple(_limits(target, ours, peer)), mine or theirs)


def _measured(run: Run, cell: Cell, who: Who) -> tuple[Measurement | None, str]:
    """The measurement, or why there is none."""
    outcomes = [o for o in run.outcomes if o.cell.same == cell.same and not o.cell.sweep]
    found = next((m for o in outcomes if (m := o.get(*who))), None)
    if found is not None:
        return found, ""
    return None, f"lacks {', '.join(who)}" if outcomes else NOT_MEASURED


def _limits(target: Target, ours: Measurement | None, peer: Measurement | None) -> Iterator[Limit]:
    mine, theirs = (_time(target, m) for m in (ours, peer))
    if target.time is not None:
        yield Limit("time", target.time, quotient(mine, theirs))
    if target.memory is not None:
        found = quotient(ours.extra_bytes, peer.extra_bytes) if ours and peer else None
        yield Limit("memory", target.memory, found)
    if target.temporaries is not None:
        found = quotient(ours.temporary_bytes, peer.temporary_bytes) if ours and peer else None
        yield Limit("temporaries", target.temporaries, found)
    if target.over_us is not None:
        yield Limit("µs over", target.over_us, (mine - theirs) * 1e3 if mine and theirs else None, ".0f")


def _time(target: Target, m: Measurement | None) -> float | None:
    if m is None:
        return None
    return m.ms if target.peer_cell else cost(m, target.cell)


def above(ratios: Iterable[Ratio], *whats: str) -> list[Ratio]:
    """The ratios above NEVER_ABOVE in "time" or "memory", or in either where neither is named; the worst first."""

    def worst(ratio: Ratio) -> float:
        return max(getattr(ratio, what) or 0.0 for what in whats or ("time", "memory"))

    return sorted((r for r in ratios if worst(r) > NEVER_ABOVE), key=worst, reverse=True)
