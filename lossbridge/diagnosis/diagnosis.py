"""`diagnose`: from arrays and a number to its explanations, ranked. The steps are the other files of this package."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from lossbridge.conventions import Convention
from lossbridge.diagnosis import calls, explain, probes, reading
from lossbridge.diagnosis.canonical import Setting, canonical
from lossbridge.diagnosis.evaluate import Array, Batch, Quantity, scalars
from lossbridge.diagnosis.hypotheses import Preset, hypotheses, presets
from lossbridge.diagnosis.search import Fit, Observation, search

_SHOWN = 4  # explanations of the rest
_ASKED = 40  # explanations that calls and probes are made for


@dataclass(frozen=True)
class Explanation:
    """One convention that gives the number. `changes`: how many things differ from a library's own function."""

    words: str
    changes: int
    convention: Convention


@dataclass(frozen=True)
class EquivalenceClass:
    """Conventions that give the same number on this data; the simplest first."""

    explanations: tuple[Explanation, ...]
    _calls: Callable[[], dict[str, str]] = field(repr=False, compare=False)

    @property
    def changes(self) -> int:
        return self.explanations[0].changes

    @cached_property
    def calls(self) -> dict[str, str]:
        """The exact call that gives the number, a library each."""
        return self._calls()


@dataclass(frozen=True, repr=False)
class Probe:
    """A small batch on which the conventions that are left differ: compute your loss on it, and diagnose again."""

    y_true: Array
    y_pred: Array
    sample_weight: Array | None
    mask: Array | None
    predictions: tuple[tuple[str, float], ...]  # what each convention would give

    def arrays(self) -> dict[str, Array]:
        """Those that there are, by name."""
        named = {name: getattr(self, name) for name in ("y_true", "y_pred", "sample_weight", "mask")}
        return {name: x for name, x in named.items() if x is not None}

    def table(self) -> str:
        """What each convention gives on it, a line a number, the first of those that give it in words."""
        known: dict[str, list[str]] = {}
        for words, value in self.predictions:
            known.setdefault(f"{value:.7g}", []).append(words)
        width = max(map(len, known))
        return "\n".join(
            f"  {value:<{width}}  {said[0]}{f' (and {len(said) - 1} more)' if len(said) > 1 else ''}"
            for value, said in known.items()
        )

    def __str__(self) -> str:
        return "\n".join([*(f"{name} = {_array_text(x)}" for name, x in self.arrays().items()), self.table()])

    __repr__ = __str__


@dataclass(frozen=True, repr=False)
class Diagnosis:
    """What explains the number. `classes` are ranked; where none fits, `nearest` says what comes closest."""

    classes: tuple[EquivalenceClass, ...]
    nearest: tuple[str, ...]
    warnings: tuple[str, ...]
    meant: str  # where `expected` was named: what it gives, and the calls that give it
    tried: int
    shown: str  # the number, as given
    batches: tuple[Batch, ...]

    @property
    def fits(self) -> bool:
        return bool(self.classes)

    def probe(self) -> Probe | None:
        """A small batch that tells the explanations apart that the data could not; None where there are not two."""
        left = [explanation for group in self.classes[:3] for explanation in group.explanations][:_ASKED]
        if not self.classes or len(left) < 2:
            return None
        found = probes.separating(self.batches[0], [explanation.convention for explanation in left])
        if found is None:
            return None
        batch, values = found
        predictions = tuple((e.words, value) for e, value in zip(left, values, strict=True))
        return Probe(batch.y_true, batch.y_pred, batch.sample_weight, batch.mask, predictions)

    def __str__(self) -> str:
        lines = []
        if self.fits:
            first = self.classes[0]
            lines.append(f"{self.shown}: {first.explanations[0].words}")
            lines += _table(first.calls)
            same = [e.words for e in first.explanations[1:]]
            if same:
                lines.append(
                    f"This data cannot tell it from {len(same)} more (probe() gives a batch that can), such as"
                )
                lines += [f"  {words}" for words in same[:_SHOWN]]
            if len(self.classes) > 1:
                lines.append("Further explanations:")
                for place, group in enumerate(self.classes[1:4], 2):
                    more = f" (and {len(group.explanations) - 1} more)" if len(group.explanations) > 1 else ""
                    lines.append(f"  {place}. {group.explanations[0].words}{more}")
                if len(self.classes) > 4:
                    lines.append(f"  and {len(self.classes) - 4} more")
        else:
            lines.append(f"{self.shown}: nothing fits, of {self.tried} conventions. The nearest:")
            lines += [f"  {words}" for words in self.nearest]
        if self.meant:
            lines += self.meant.splitlines()
        lines += [f"Warning: {warning}" for warning in self.warnings]
        return "\n".join(lines)

    __repr__ = __str__


def diagnose(
    y_true: Any,
    y_pred: Any,
    observed: Any,
    *,
    expected: str | None = None,
    quantity: str | None = None,
    class_weight: Any = None,
    sample_weight: Any = None,
    mask: Any = None,
    ignore_class: int | None = None,
    label_smoothing: float | None = None,
    more: Sequence[tuple[Any, ...]] = (),
    advance: Callable[[float], None] = lambda share: None,
) -> Diagnosis:
    """Which convention explains a loss: the libraries' own, then those with one or two things changed.

    Args:
        y_true: labels, or targets of y_pred's shape; y_pred: probabilities, logits or log-probabilities. Arrays of any
            library, (N, C), (N,) or (N, …, C).
        observed: the number to explain, whose digits as written are taken to be all that is known of it (a text keeps
            its zeros: "1.20"); or per-sample values; or an array of y_pred's shape: a gradient, or a value an element.
        expected: what you meant, such as "keras.categorical_crossentropy" or "torch.kl_div(reduction='batchmean')".
        quantity: "gradient" or "value", where an array could be either.
        class_weight, sample_weight, mask, ignore_class: those that may have been used; all are tried with and without.
        label_smoothing: a coefficient that may have been used, beside 0.1, 0.05, 0.2 and 0.01.
        more: further batches (y_true, y_pred, observed), which narrow the explanations; as a fourth entry a dict with
            their sample_weight and mask, if any.
        advance: told the share of the work done, for a progress bar.

    Returns:
        A Diagnosis: print it; `.classes` are the explanations in groups that the data cannot tell apart, `.probe()` a
        small batch that can.

    Raises:
        ValueError: shapes that do not fit, an empty batch, an unknown `expected`. TypeError: no arrays of numbers.

    >>> y_true, y_pred = [[0, 1, 0], [0, 0, 1]], [[0.05, 0.95, 0.0], [0.1, 0.8, 0.1]]
    >>> print(diagnose(y_true, y_pred, 1.697965).classes[0].explanations[0].words)
    Keras' `CategoricalCrossentropy`, but logarithms to base 2 (bits)

    Source: the conventions of `lossbridge.conventions`; the table in docs/conventions.md.
    """
    if quantity not in (None, "gradient", "value"):
        raise ValueError(f"quantity is {quantity!r}; use 'gradient' or 'value'")
    batches: list[Batch] = []
    seen: list[Any] = []
    kinds: list[Quantity] = []  # what all of the observed arrays can be
    warnings: list[str] = []
    own = {"sample_weight": sample_weight, "mask": mask}
    for true, pred, number, options in _batches((y_true, y_pred, observed, own), more):
        batch, said = reading.batch_of(true, pred, class_weight=class_weight, ignore_class=ignore_class, **options)
        if batches and (batch.labels != batches[0].labels or batch.y_pred.ndim != batches[0].y_pred.ndim):
            raise ValueError("a further batch is of another form than the first; diagnose it on its own")
        number, can_be = reading.quantities(number, batch, quantity)
        kinds = [kind for kind in can_be if kind in kinds] if batches else can_be
        warnings += [words if not batches else f"further batch: {words}" for words in said if words not in warnings]
        batches.append(batch)
        seen.append(number)
    if not kinds:
        raise ValueError("the batches' observed arrays are of different kinds; diagnose each on its own")

    finite = all(np.isfinite(np.asarray(x, np.float64)).all() for x in seen)
    smoothings = () if label_smoothing is None else (label_smoothing,)
    found: list[list[Fit]] = []
    nearest: list[Fit] = []
    tried = 0
    for kind in kinds:
        setting = Setting.of(batches[0], kind, finite=finite, smoothings=smoothings)
        candidates = hypotheses(setting)
        tried += len(candidates)

        def step(share: float) -> None:
            advance(share / len(kinds))

        groups, near = search(candidates, batches, [Observation.of(x, kind) for x in seen], step)
        found += groups
        nearest += near
    found.sort(key=lambda group: (group[0].hypothesis.changes, group[0].hypothesis.place))
    batch, setting = batches[0], Setting.of(batches[0], kinds[0], finite=finite, smoothings=smoothings)
    meant = "" if expected is None else _meant(expected, batch, setting)
    return Diagnosis(
        classes=tuple(_explained(group, batch, setting) for group in found),
        nearest=tuple(_near(fit, batch) for fit in sorted(nearest, key=lambda fit: fit.misfit)[:3]),
        warnings=tuple(warnings),
        meant=meant,
        tried=tried,
        shown=_shown(seen[0]),
        batches=tuple(batches),
    )


def _batches(first: tuple[Any, ...], more: Sequence[tuple[Any, ...]]) -> Iterator[tuple[Any, Any, Any, dict[str, Any]]]:
    """(y_true, y_pred, observed, its weights and mask)."""
    yield first[0], first[1], first[2], first[3]
    for one in more:
        if len(one) not in (3, 4):
            raise ValueError(f"more holds {len(one)} things; give (y_true, y_pred, observed) for each further batch")
        yield one[0], one[1], one[2], one[3] if len(one) == 4 else {}


def _explained(fits: Sequence[Fit], batch: Batch, setting: Setting) -> EquivalenceClass:
    explanations = tuple(
        Explanation(explain.words(f.hypothesis, batch), f.hypothesis.changes, f.hypothesis.convention) for f in fits
    )

    def of_the_first() -> dict[str, str]:
        some = fits[:_ASKED] if setting.quantity == "scalar" else ()
        return _calls([f.hypothesis.convention for f in some], [float(f.values[0]) for f in some], batch, setting)

    return EquivalenceClass(explanations, of_the_first)


def _calls(conventions: list[Convention], values: list[float], batch: Batch, setting: Setting) -> dict[str, str]:
    """In the order of the libraries."""
    known = calls.texts(conventions, values, batch, setting)
    return {library: known[library] for library in explain.LIBRARIES if library in known}


def _near(fit: Fit, batch: Batch) -> str:
    return f"{explain.words(fit.hypothesis, batch)}: {fit.misfit:.2g} off, relatively"


def _meant(expected: str, batch: Batch, setting: Setting) -> str:
    """What the named function gives, and the call of it in each library."""
    known: dict[str, Preset] = {}
    for preset in presets(setting):
        if canonical(preset.convention, setting) is not None:
            known.setdefault(f"{preset.peer.library}.{explain.written(preset.peer, preset.options)}", preset)
    for text in list(known):
        known.setdefault(text.removesuffix(".mean()"), known[text])
    if expected not in known:
        close = difflib.get_close_matches(expected, known, 3, 0.3)
        raise ValueError(f"expected {expected!r} is unknown for such arrays; did you mean {' or '.join(close)}?")
    c = canonical(known[expected].convention, setting)
    assert c is not None
    lines = [f"Meant: {explain.name(known[expected])}"]
    if setting.quantity != "scalar":
        return lines[0]
    value = float(scalars(batch, [c])[0])
    lines[0] += f", which gives {value:.9g}"
    return "\n".join([*lines, *_table(_calls([c], [value], batch, setting))])


def _table(texts: dict[str, str]) -> list[str]:
    width = max((len(library) for library in texts), default=0)
    return [f"  {library:<{width}}  {text}" for library, text in texts.items()]


def _shown(seen: Any) -> str:
    if isinstance(seen, str):
        return seen
    return f"{float(seen):.10g}" if np.ndim(seen) == 0 else f"an array of shape {np.shape(seen)}"


def _array_text(x: Array) -> str:
    return np.array2string(x, separator=", ", threshold=200, floatmode="unique").replace("\n", "\n         ")


__all__ = ["Diagnosis", "EquivalenceClass", "Explanation", "Probe", "Quantity", "diagnose"]
