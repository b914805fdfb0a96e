"""The targets: limits on ours over a named peer's, in one cell of one backend, as plain data; and whether they are met.

Limits are goals, not results: the benchmark prints both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from lossbridge.tools.bench.cells import CLASSIFIER, IMPORT, LM, LM_DENSE, SMALL, Cell
from lossbridge.tools.bench.contenders import IN_PLACE, OURS
from lossbridge.tools.bench.results import ENOUGH_BYTES, Measurement, Ratio, Run, quotient

Who = tuple[str, str]  # a contender's name, and the way it runs
NEVER_ABOVE = 1.05  # the limit for every cell, over the best peer
_ROUNDING = 0.005  # of a ratio of memory, which is measured in pages


@dataclass(frozen=True)
class Target:
    """`time`, `memory`: limits on ratios; `over_us`: on a difference of times in µs; `error`: on the value's error."""

    case: str
    backend: str
    cell: Cell
    ours: Who
    peer: Who
    time: float | None = None
    memory: float | None = None
    over_us: float | None = None
    error: float | None = None
    memory_of: Literal["extra_bytes", "temporary_bytes"] = "extra_bytes"


_CE, _CE16, _SMALL = Cell("CE, labels", *LM), Cell("CE, labels", *LM, dtype="bfloat16"), Cell("CE, labels", *SMALL)
_DENSE, _KL = Cell("CE, dense", *LM_DENSE), Cell("KL of logits", *LM_DENSE)
_CLASSES, _PROBABILITIES = (Cell(form, *CLASSIFIER, views=True) for form in ("CE, dense", "log loss"))
_LOG_LOSS = Cell("log loss", 4096, 1000, backward=False)
_F, _TF = "F.cross_entropy", "tf.nn.sparse_softmax_cross_entropy"
_KERAS = "keras.SparseCategoricalCrossentropy"
_OPTAX, _OPTAX_KL = "optax.softmax_cross_entropy", "optax.kl_divergence_with_log_targets"
_OPTAX_LABELS = f"{_OPTAX}_with_integer_labels"
_XLA: Literal["temporary_bytes"] = "temporary_bytes"
_EAGER, _COMPILE, _JIT, _FUNCTION = (OURS, "eager"), (OURS, "compile"), (OURS, "jit"), (OURS, "function")

TARGETS = (
    Target("CE / F.cross_entropy", "torch", _CE, _EAGER, (_F, "eager"), 0.45, 0.34),
    Target("CE inplace_gradient / F.cross_entropy", "torch", _CE, (IN_PLACE, "eager"), (_F, "eager"), 0.20, 0.0),
    Target("CE / compiled F.cross_entropy", "torch", _CE, _EAGER, (_F, "compile"), 0.80, 1.0),
    Target("CE compiled / compiled F.cross_entropy", "torch", _CE, _COMPILE, (_F, "compile"), 1.0, 1.0),
    Target("CE bfloat16 / F.cross_entropy", "torch", _CE16, _EAGER, (_F, "eager"), 0.55, 0.34, error=1e-5),
    Target("CE dense / F.cross_entropy", "torch", _DENSE, _EAGER, (_F, "eager"), 0.45, 0.34),
    Target("KL of logits / F.kl_div", "torch", _KL, _EAGER, ("F.kl_div", "eager"), 0.32, 0.21),
    Target("small batch over F.cross_entropy", "torch", _SMALL, _EAGER, (_F, "eager"), over_us=20),
    Target("CE jit / optax", "jax", _CE, _JIT, (_OPTAX_LABELS, "jit"), 1.0, 1.0, memory_of=_XLA),
    Target("CE dense jit / optax", "jax", _DENSE, _JIT, (_OPTAX, "jit"), 0.62, 0.02, memory_of=_XLA),
    Target("KL of logits jit / optax", "jax", _KL, _JIT, (_OPTAX_KL, "jit"), 0.50, 0.02, memory_of=_XLA),
    Target("CE tf.function / tf.nn in tf.function", "tensorflow", _CE, _FUNCTION, (_TF, "function"), 0.30, 1.0),
    Target("CE tf.function / tf.nn in jit_compile", "tensorflow", _CE, _FUNCTION, (_TF, "jit_compile"), 0.60, 0.50),
    Target("small batch / Keras' loss object", "tensorflow", _SMALL, _EAGER, (_KERAS, "eager"), 0.5),
    Target("CE value and gradient / plain NumPy", "numpy", _CE, _EAGER, ("textbook", "eager"), 0.25, 0.20),
    Target("log_loss / scikit-learn", "numpy", _LOG_LOSS, _EAGER, ("sklearn.log_loss", "eager"), 0.20, 0.50),
    *(
        Target(f"compat.{view} / lossbridge itself", "torch", cell, (f"{OURS}.compat.{view}", "eager"), _EAGER, 1.1)
        for view, cell in (("torch", _CLASSES), ("optax", _CLASSES), ("keras", _CLASSES), ("sklearn", _PROBABILITIES))
    ),
    Target("import lossbridge over import numpy", "numpy", Cell(IMPORT, 0, 0), _EAGER, ("numpy", "eager"), over_us=2e4),
)


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
    outcome = next((o for o in run.outcomes if o.cell.same == target.cell.same and not o.cell.sweep), None)
    ours, peer = (None if outcome is None else outcome.get(*who) for who in (target.ours, target.peer))
    words = ""
    if ours is None or peer is None:
        absent = target.ours if ours is None else target.peer
        words = "not measured" if outcome is None else f"lacks {', '.join(absent)}"
    return Judgement(target, tuple(_limits(target, ours, peer)), words)


def _limits(target: Target, ours: Measurement | None, peer: Measurement | None) -> Iterator[Limit]:
    if target.time is not None:
        yield Limit("time", target.time, quotient(ours.ms, peer.ms) if ours and peer else None)
    if target.memory is not None:
        yield Limit("memory", target.memory, _memory(target, ours, peer) if ours and peer else None)
    if target.over_us is not None:
        over = (ours.ms - peer.ms) * 1e3 if ours and peer and ours.ms and peer.ms else None
        yield Limit("µs over", target.over_us, over, ".0f")
    if target.error is not None:
        yield Limit("error", target.error, ours.value_error if ours else None, ".0e")


def _memory(target: Target, ours: Measurement, peer: Measurement) -> float | None:
    """Ours over the peer's; temporaries below ENOUGH_BYTES count as 0."""
    found = [getattr(m, target.memory_of) for m in (ours, peer)]
    if None in found:
        return None
    mine, others = (0 if target.memory_of == "temporary_bytes" and x < ENOUGH_BYTES else x for x in found)
    return quotient(mine, others)


def above(ratios: Iterable[Ratio], *whats: str) -> list[Ratio]:
    """The ratios above NEVER_ABOVE in "time" or "memory", or in either where neither is named; the worst first."""

    def worst(ratio: Ratio) -> float:
        return max(getattr(ratio, what) or 0.0 for what in whats or ("time", "memory"))

    return sorted((r for r in ratios if worst(r) > NEVER_ABOVE), key=worst, reverse=True)
