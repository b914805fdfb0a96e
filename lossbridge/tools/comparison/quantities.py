"""The arrays of a run: what each of them is, and which of two runs' arrays belong together. Compares no values."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lossbridge.tools.diagnosis.reading import array
from lossbridge.tools.parity.files import load_run
from lossbridge.tools.parity.tables import UnusableFile
from lossbridge.tools.printed_number import is_number

Array = np.ndarray
Stage = Literal["inputs", "targets", "parameters", "predictions", "weights", "losses", "loss", "gradients"]

# In the order in which a training step computes them.
_NAMES: dict[Stage, str] = {
    "inputs": r"inputs?([_.\d].*)?|x(_.+)?",
    "targets": r"y_true",
    "parameters": r"(param|params|weight|weights)_.+",
    "predictions": r"logits|y_pred",
    "weights": r"sample_weight|class_weight|mask",
    "losses": r"losses",
    "loss": r"loss",
    "gradients": r"(grad|grads|gradient|gradients)([_.].+)?",
}
STAGES = tuple(_NAMES)
_HOW = (
    "name the arrays inputs, y_true, param_…, logits, y_pred, sample_weight, class_weight, mask, losses (one a "
    "sample), loss (a number) and grad_…"
)


def stage_of(name: str) -> Stage | None:
    return next((stage for stage, pattern in _NAMES.items() if re.fullmatch(pattern, name, re.DOTALL)), None)


def check_names(side: str, names: Iterable[str]) -> None:
    names = list(names)
    unknown = [name for name in names if stage_of(name) is None]
    if unknown:
        raise UnusableFile(f"{side} holds {', '.join(unknown)}, which is not known here; {_HOW}")
    if not names:
        raise UnusableFile(f"{side} holds no arrays; {_HOW}")


@dataclass(frozen=True)
class Run:
    """One side: its name and its arrays. `loss` stays as it is given, because a printed number has only its digits."""

    name: str
    arrays: Mapping[str, Any]

    @staticmethod
    def of(given: Any, name: str) -> Run:
        """From a mapping of arrays of any framework, or from a file."""
        if isinstance(given, str | Path):
            path = Path(given)
            given = load_run(path, lambda names: check_names(str(path), names))
        if not isinstance(given, Mapping):
            raise TypeError(
                f"{name} is {type(given).__name__}; pass a mapping of names to arrays, or an .npz file's name"
            )
        if not all(isinstance(key, str) for key in given):
            raise TypeError(f"{name} has names that are no texts; {_HOW}")
        check_names(name, given)
        return Run(name, dict(_read(given, name)))

    def get(self, stage: Stage) -> dict[str, Any]:
        return {name: x for name, x in self.arrays.items() if stage_of(name) == stage}

    def counts(self) -> dict[str, float]:
        """What losses are divided by, in words."""
        arrays = self.arrays
        pred = arrays.get("y_pred", arrays.get("logits"))
        true, mask, weight, of_class = (
            arrays.get(name) for name in ("y_true", "mask", "sample_weight", "class_weight")
        )
        found: dict[str, float] = {}
        if pred is not None and pred.ndim:
            samples = pred.shape[:-1] if pred.ndim > 1 else pred.shape
            classes = pred.shape[-1] if pred.ndim > 1 else 1
            count = float(np.prod(samples))
            found["the number of samples"] = count
            found["the number of classes"] = float(classes)
            found["the number of elements"] = count * classes
            found["the size of axis 0"] = float(pred.shape[0])
            if true is not None and true.ndim == pred.ndim - 1:
                found["the number of labels that are not ignored"] = float(((true >= 0) & (true < classes)).sum())
        if mask is not None:
            found["the number of samples that the mask counts"] = float(mask.sum())
        if weight is not None:
            found["the sum of the weights"] = float(weight.sum())
        if true is not None and pred is not None and of_class is not None and of_class.shape == pred.shape[-1:]:
            found["the sum of the labels' class weights"] = _weight_of(true, of_class, true.shape == pred.shape)
        return {words: x for words, x in found.items() if x > 0}


def _weight_of(true: Array, class_weight: Array, dense: bool) -> float:
    """Of all labels together, or of all rows: Σ w_c t_c."""
    if dense:
        return float((true * class_weight).sum())
    labels = true[(true >= 0) & (true < len(class_weight))].astype(np.int64)
    return float(class_weight[labels].sum())


def _read(given: Mapping[str, Any], side: str) -> Iterator[tuple[str, Any]]:
    for name in given:
        x = given[name]
        if name == "loss" and isinstance(x, str | int | float) and not isinstance(x, bool | np.generic):
            try:
                if isinstance(x, str) and not is_number(x):
                    raise ValueError
                yield name, x if np.isfinite(float(x)) or isinstance(x, float) else float(x)
            except (ValueError, OverflowError):
                raise ValueError(f"{side}: loss is {str(x)[:40]!r}, which is no number; pass one") from None
            continue
        try:
            read = array(x, name)
        except (ValueError, TypeError) as error:
            raise type(error)(f"{side}: {error}") from None
        if name == "loss" and read.size != 1:
            if read.ndim != 1 or "losses" in given:
                raise ValueError(f"{side}: loss has shape {read.shape}; pass one number, and values a sample as losses")
            yield "losses", read
            continue
        if not read.size:
            raise ValueError(f"{side}: {name} has shape {read.shape}, which holds nothing; leave it out")
        yield name, read.reshape(()) if name == "loss" else read


@dataclass(frozen=True)
class Shared:
    """What both runs have."""

    quantity: str  # its name; both names where they differ
    stage: Stage
    x: Any
    y: Any


def shared(a: Run, b: Run) -> tuple[list[Shared], list[str]]:
    """What both runs have, in the order of a training step, and notes on what only one has."""
    found: list[Shared] = []
    notes: list[str] = []
    for stage in STAGES:
        left, right = a.get(stage), b.get(stage)
        for name in sorted([name for name in left if name in right], key=lambda name: name == "y_pred"):
            found.append(Shared(name, stage, left.pop(name), right.pop(name)))
        if _belong_together(stage, left, right, any(one.stage == stage for one in found)):
            for (name, x), (other, y) in zip(left.items(), right.items(), strict=True):
                found.append(Shared(f"{name} / {other}", stage, x, y))
            continue
        notes += [f"only in {run.name}: {', '.join(rest)}" for run, rest in ((a, left), (b, right)) if rest]
    return found, notes


def _belong_together(stage: Stage, left: Mapping[str, Array], right: Mapping[str, Array], some: bool) -> bool:
    """Whether arrays of different names are pairs, in their order."""
    if not left or len(left) != len(right):
        return False
    if stage in ("inputs", "predictions"):
        return len(left) == 1 and not some
    shapes = [(sorted(x.shape), sorted(y.shape)) for x, y in zip(left.values(), right.values(), strict=True)]
    return stage in ("parameters", "gradients") and all(x == y for x, y in shapes)
