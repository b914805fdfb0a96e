"""`diagnose`: from arrays and a number to its explanations, ranked. The steps are the other files of this package."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from lossbridge.conventions import Convention
from lossbridge.tools.diagnosis import calls, probes, reading, wording
from lossbridge.tools.diagnosis.canonical import Setting, canonical
from lossbridge.tools.diagnosis.evaluate import Array, Batch, Quantity, whole
from lossbridge.tools.diagnosis.expected import named
from lossbridge.tools.diagnosis.hypotheses import hypotheses
from lossbridge.tools.diagnosis.search import Fit, Observation, search

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
    quantity: Quantity
    _calls: Callable[[], dict[str, str]] = field(repr=False, compare=False)

    @property
    def changes(self) -> int:
        return self.explanations[0].changes

    @cached_property
    def calls(self) -> dict[str, str]:
        """The exact call that gives the number, a library each: of the arrays as `Diagnosis.arrays` makes them.

        Of a gradient: the call whose gradient for y_pred it is.
        """
        return self._calls()


@dataclass(frozen=True, repr=False)
class Probe:
    """A small batch on which the conventions that are left differ: compute your loss on it, and diagnose again."""

    y_true: Array
    y_pred: Array
    sample_weight: Array | None
    mask: Array | None
    predictions: tuple[tuple[str, float], ...]  # what each convention would give
    of: str  # what the numbers are, in words

    def arrays(self) -> dict[str, Array]:
        """Those that there are, by name."""
        named = {name: getattr(self, name) for name in ("y_true", "y_pred", "sample_weight", "mask")}
        return {name: x for name, x in named.items() if x is not None}

    def table(self) -> str:
        """What each convention gives on it, a line a number, the first of those that give it in words."""
        head = [f"  {self.of}:"] if self.of else []
        known: dict[str, list[str]] = {}
        for words, value in self.predictions:
            known.setdefault(f"{value:.7g}", []).append(words)
        width = max(map(len, known))
        lines = (
            f"  {value:<{width}}  {said[0]}{f' (and {len(said) - 1} more)' if len(said) > 1 else ''}"
            for value, said in known.items()
        )
        return "\n".join([*head, *lines])

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

    @cached_property
    def arrays(self) -> Mapping[str, str]:
        """What NumPy makes of the first batch's arrays for the calls of the first class, if there are any."""
        given = calls.as_rows(self.batches[0]).given if self.fits and self.classes[0].calls else {}
        return {name: text for name, text in given.items() if text != f"np.asarray({name})"}

    @property
    def fits(self) -> bool:
        return bool(self.classes)

    def probe(self) -> Probe | None:
        """A small batch that tells the explanations apart that the data could not; None where there are not two."""
        return self._probe

    @cached_property
    def _probe(self) -> Probe | None:
        left = [explanation for group in self.classes[:3] for explanation in group.explanations][:_ASKED]
        if not self.classes or len(left) < 2:
            return None
        quantity = self.classes[0].quantity
        found = probes.separating(self._with_all_weights(), [explanation.convention for explanation in left], quantity)
        if found is None:
            return None
        batch, values = found
        predictions = tuple((e.words, value) for e, value in zip(left, values, strict=True))
        of = {"scalar": "", "gradient": "the loss whose gradient it is"}.get(quantity, "the mean of the values")
        return Probe(*batch.as_given(), batch.sample_weight, batch.mask, predictions, of)

    def _with_all_weights(self) -> Batch:
        """The first batch, with such weights, a mask and a label to ignore as any batch has."""
        first = self.batches[0]
        for batch in self.batches[1:]:
            for name in ("sample_weight", "mask", "ignored"):
                if getattr(first, name) is None:
                    first = replace(first, **{name: getattr(batch, name)})
        return first

    def __str__(self) -> str:
        lines = self._found() if self.fits else self._missed()
        lines += self.meant.splitlines()
        return "\n".join([*lines, *(f"Warning: {warning}" for warning in self.warnings)])

    def _found(self) -> list[str]:
        first, *others = self.classes
        lines = [f"{self.shown}: {first.explanations[0].words}"]
        if self.arrays:
            made = ", ".join(f"{name} = {text}" for name, text in self.arrays.items())
            lines.append(f"  where {made}")
        if first.calls and first.quantity == "gradient":
            lines.append("  the gradient for y_pred of")
        lines += _table(first.calls)
        same = [e.words for e in first.explanations[1:]]
        if same:
            cure = "probe() gives a batch that can" if self.probe() else "nor can a small batch of the kind"
            lines.append(f"This data cannot tell it from {len(same)} more ({cure}), such as")
            lines += [f"  {words}" for words in same[:_SHOWN]]
        if others:
            lines.append("Further explanations:")
            for place, group in enumerate(others[:3], 2):
                more = f" (and {len(group.explanations) - 1} more)" if len(group.explanations) > 1 else ""
                lines.append(f"  {place}. {group.explanations[0].words}{more}")
            if len(others) > 3:
                lines.append(f"  and {len(others) - 3} more")
        return lines

    def _missed(self) -> list[str]:
        tried = f"{self.shown}: nothing fits, of {self.tried} conventions"
        if not self.nearest:
            return [f"{tried}, none of which gives a finite number for this data"]
        return [f"{tried}. The nearest:", *(f"  {words}" for words in self.nearest)]

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
    epsilon: float | None = None,
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
        epsilon: a bound of clipping, or an addend in log(p + ε), that may have been used, beside powers of ten.
        more: further batches (y_true, y_pred, observed), which narrow the explanations; as a fourth entry a dict with
            their sample_weight and mask, if any.
        advance: told the share of the work done, for a progress bar.

    Returns:
        A Diagnosis: print it; `.classes` are the explanations in groups that the data cannot tell apart, `.probe()` a
        small batch that can.

    Raises:
        ValueError: shapes that do not fit, an empty batch, an unknown `expected`, weights that are none, options out of
            range. TypeError: no arrays of numbers.

    >>> y_true, y_pred = [[0, 1, 0], [0, 0, 1]], [[0.05, 0.95, 0.0], [0.1, 0.8, 0.1]]
    >>> print(diagnose(y_true, y_pred, 1.697965).classes[0].explanations[0].words)
    Keras' `CategoricalCrossentropy`, but logarithms to base 2 (bits)

    Source: the conventions of `lossbridge.conventions`; the table in docs/conventions.md.
    """
    options: dict[str, Any] = {
        "expected": expected,
        "quantity": quantity,
        "class_weight": class_weight,
        "sample_weight": sample_weight,
        "mask": mask,
        "ignore_class": ignore_class,
        "label_smoothing": label_smoothing,
        "epsilon": epsilon,
    }
    found = _diagnosed(y_true, y_pred, observed, **options, more=more, advance=advance)
    for other in () if found.fits or more else reading.others(found.batches[0], y_true, y_pred):
        try:
            again = _diagnosed(other.y_true, other.y_pred, observed, **options, moved=other.moved)
        except (ValueError, TypeError):
            continue  # weights, or an array, of another shape than this reading's
        if other.for_another_axis:
            another = [group for group in again.classes if group.explanations[0].convention.axis != -1]
            again = replace(again, classes=tuple(another))
        if again.fits:
            batch = other.of(again.batches[0])
            return replace(again, batches=(batch,), warnings=(*found.warnings, other.words))
    return found


def _diagnosed(
    y_true: Any,
    y_pred: Any,
    observed: Any,
    *,
    expected: str | None,
    quantity: str | None,
    class_weight: Any,
    sample_weight: Any,
    mask: Any,
    ignore_class: int | None,
    label_smoothing: float | None,
    epsilon: float | None,
    moved: bool = False,
    more: Sequence[tuple[Any, ...]] = (),
    advance: Callable[[float], None] = lambda share: None,
) -> Diagnosis:
    """Of the arrays as `reading.batch_of` takes them."""
    if quantity not in (None, "gradient", "value"):
        raise ValueError(f"quantity is {quantity!r}; use 'gradient' or 'value'")
    smoothings, epsilons = _between("label_smoothing", label_smoothing, 1), _between("epsilon", epsilon, 0.5)
    batches: list[Batch] = []
    seen: list[Any] = []
    kinds: list[Quantity] = []  # what all of the observed arrays can be
    warnings: list[str] = []
    own = {"sample_weight": sample_weight, "mask": mask}
    for place, (true, pred, number, options) in enumerate([(y_true, y_pred, observed, own), *_further(more)]):
        try:
            batch, said = reading.batch_of(
                true, pred, class_weight=class_weight, ignore_class=ignore_class, moved=moved, **options
            )
            number, can_be = reading.quantities(number, batch, quantity)
        except (ValueError, TypeError) as error:
            raise type(error)(f"further batch {place}: {error}" if place else str(error)) from None
        if place and batch.form != batches[0].form:
            raise ValueError(f"further batch {place}: it is of another form than the first; diagnose it on its own")
        kinds = [kind for kind in can_be if kind in kinds] if batches else can_be
        warnings += [words if not place else f"further batch {place}: {words}" for words in said]
        batches.append(batch)
        seen.append(number)
    if not kinds:
        raise ValueError("the batches' observed arrays are of different kinds; diagnose each on its own")

    batch = batches[0]
    dtype = batch.half or batch.y_pred.dtype.name
    finite = all(np.isfinite(np.asarray(x, np.float64)).all() for x in seen)
    settings = [
        Setting.of(batch, kind, more=batches[1:], finite=finite, smoothings=smoothings, epsilons=epsilons)
        for kind in kinds
    ]
    meant = "" if expected is None else _meant(expected, batch, settings[0])
    found: list[tuple[Fit, EquivalenceClass]] = []
    near: list[tuple[tuple[int, float], str]] = []
    tried = 0

    def step(share: float) -> None:
        advance(share / len(kinds))

    for kind, setting in zip(kinds, settings, strict=True):
        candidates = hypotheses(setting)
        tried += len(candidates)
        groups, closest = search(candidates, batches, [Observation.of(x, kind, dtype=dtype) for x in seen], step)
        found += [(group[0], _explained(group, batch, setting)) for group in groups]
        near += [(fit.distance, _near(fit, batch, kind)) for fit in closest]
    found.sort(key=lambda one: (one[0].hypothesis.strangeness, one[0].hypothesis.place))
    return Diagnosis(
        classes=tuple(group for _, group in found),
        nearest=tuple(words for _, words in sorted(near)[:3]),
        warnings=tuple(dict.fromkeys(warnings)),
        meant=meant,
        tried=tried,
        shown=_shown(seen[0]),
        batches=tuple(batches),
    )


def _between(name: str, x: Any, end: float) -> tuple[float, ...]:
    if x is None:
        return ()
    if isinstance(x, bool) or not isinstance(x, int | float | np.floating):
        raise TypeError(f"{name} is {x!r}; pass one number")
    if not 0 < x < end:
        raise ValueError(f"{name} is {x}; pass a number between 0 and {end}")
    return (float(x),)


def _further(more: Any) -> Iterator[tuple[Any, Any, Any, dict[str, Any]]]:
    """(y_true, y_pred, observed, its weights and mask)."""
    if not isinstance(more, list | tuple):
        raise TypeError(f"more is {more!r}; pass a list of (y_true, y_pred, observed)")
    for one in more:
        if not isinstance(one, list | tuple) or len(one) not in (3, 4):
            count = f"{len(one)} things" if isinstance(one, list | tuple) else f"a {type(one).__name__}"
            raise ValueError(f"more holds {count}; give (y_true, y_pred, observed) for each further batch")
        options = one[3] if len(one) == 4 else {}
        if not isinstance(options, Mapping) or options.keys() - {"sample_weight", "mask"}:
            raise ValueError("the fourth entry of a further batch is a dict with sample_weight, mask or both")
        yield one[0], one[1], one[2], dict(options)


def _explained(fits: Sequence[Fit], batch: Batch, setting: Setting) -> EquivalenceClass:
    explanations = tuple(
        Explanation(wording.words(f.hypothesis, batch, setting.quantity), f.hypothesis.changes, f.hypothesis.convention)
        for f in fits
    )

    def of_the_first() -> dict[str, str]:
        return _calls([f.hypothesis.convention for f in fits[:_ASKED]], batch, setting)

    return EquivalenceClass(explanations, setting.quantity, of_the_first)


def _calls(conventions: list[Convention], batch: Batch, setting: Setting) -> dict[str, str]:
    """In the order of the libraries."""
    known = calls.texts(conventions, batch, setting)
    return {library: known[library] for library in wording.LIBRARIES if library in known}


def _near(fit: Fit, batch: Batch, quantity: Quantity) -> str:
    words = wording.words(fit.hypothesis, batch, quantity)
    if fit.values:
        return f"{words}: fits {len(fit.values)} of the batches, then {fit.misfit:.2g} off, relatively"
    return f"{words}: {fit.misfit:.2g} off, relatively"


def _meant(expected: str, batch: Batch, setting: Setting) -> str:
    """What the named function gives, and the call of it in each library."""
    preset, more = named(expected, batch, setting)
    c = canonical(preset.convention, setting)
    assert c is not None
    options = f" with {', '.join(more)}" if more else ""
    gives = f", which gives {float(whole(batch, c, 'scalar')[0]):.9g}" if setting.quantity == "scalar" else ""
    return "\n".join([f"Meant: {wording.name(preset)}{options}{gives}", *_table(_calls([c], batch, setting))])


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
