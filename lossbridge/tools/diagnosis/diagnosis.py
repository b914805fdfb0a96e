"""`diagnose`: computes the ranked explanations of a number, and formats them.

The steps are in other files of this folder: reading, hypotheses, search, wording, calls, probes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from lossbridge.conventions import Convention
from lossbridge.tools.diagnosis import calls, probes, reading, readings, wording
from lossbridge.tools.diagnosis.batch import Array, Batch, Quantity
from lossbridge.tools.diagnosis.canonical import Setting, canonical, holds
from lossbridge.tools.diagnosis.evaluate import whole
from lossbridge.tools.diagnosis.expected import find_preset
from lossbridge.tools.diagnosis.hypotheses import hypotheses
from lossbridge.tools.diagnosis.readings import Depth
from lossbridge.tools.diagnosis.search import Fit, Observation, by_chance, search
from lossbridge.tools.diagnosis.solving import solved

_SHOWN = 4  # how many indistinguishable explanations are printed
_FEW_DIGITS = 1e-4  # a relative tolerance that many numbers meet by chance
_TO_TRY = (
    "Pass what was used, if you know it: temperature=, label_smoothing=, epsilon=, pos_weight=, gamma=, alpha=, "
    "beta=, logit_scale=, softcap=, z_loss=, class_weight=, sample_weight=, mask=; or a second batch with its number, "
    "more=."
)
# The same to the command's user.
_TO_TRY_THERE = (
    "Pass what was used, if you know it: --temperature, --label-smoothing, --epsilon, --pos-weight, --gamma, --alpha, "
    "--beta, --logit-scale, --softcap, --z-loss; class_weight, sample_weight or mask in the file; or a second file "
    "with its --observed."
)
_SATURATED = (
    "y_pred is saturated, exactly 0 or 1 where the target is not. If a sigmoid or softmax layer made it, Keras on "
    "TensorFlow takes the loss of the logits behind it, which these probabilities do not hold: pass the logits"
)
_USED = 40  # how many explanations calls and probes are made for


@dataclass(frozen=True)
class Explanation:
    """A convention that gives the number. `changes`: how many things differ from a library's own function."""

    words: str
    changes: int
    convention: Convention
    parts: wording.Words = field(repr=False, compare=False)


@dataclass(frozen=True)
class EquivalenceClass:
    """Conventions that give the same number on this data, the simplest first."""

    explanations: tuple[Explanation, ...]
    quantity: Quantity
    _calls: Callable[[], dict[str, str]] = field(repr=False, compare=False)

    @property
    def changes(self) -> int:
        return self.explanations[0].changes

    @cached_property
    def calls(self) -> dict[str, str]:
        """By library, the call that gives the number on the arrays of `Diagnosis.arrays`.

        For a gradient: the call whose gradient with respect to y_pred it is.
        """
        return self._calls()


@dataclass(frozen=True, repr=False)
class Probe:
    """A small batch on which the remaining explanations differ: compute your loss on it, and diagnose that number."""

    y_true: Array
    y_pred: Array
    sample_weight: Array | None
    mask: Array | None
    predictions: tuple[tuple[str, float], ...]  # (explanation, the number it gives)
    of: str  # what the numbers are; empty for losses

    def arrays(self) -> dict[str, Array]:
        """Its arrays by name."""
        named = {name: getattr(self, name) for name in ("y_true", "y_pred", "sample_weight", "mask")}
        return {name: x for name, x in named.items() if x is not None}

    def table(self) -> str:
        """One line per number, with the first explanation that gives it."""
        head = [f"  {self.of}:"] if self.of else []
        explanations: dict[str, list[str]] = {}
        for words, value in self.predictions:
            explanations.setdefault(f"{value:.7g}", []).append(words)
        width = max(map(len, explanations))
        lines = (f"  {value:<{width}}  {words[0]}{_more(words)}" for value, words in explanations.items())
        return "\n".join([*head, *lines])

    def __str__(self) -> str:
        return "\n".join([*(f"{name} = {_array_text(x)}" for name, x in self.arrays().items()), self.table()])

    __repr__ = __str__


@dataclass(frozen=True, repr=False)
class Diagnosis:
    """What explains the number. `classes` are ranked; where there is none, `nearest` says what comes closest."""

    classes: tuple[EquivalenceClass, ...]
    nearest: tuple[str, ...]
    warnings: tuple[str, ...]
    meant: str  # if `expected` was given: what it gives, and the calls that give it
    tried: int  # the number of conventions
    shown: str  # the observed number, as given
    batches: tuple[Batch, ...]
    by_chance: float = 0.0  # how many conventions as simple as the first fit any number of so few digits
    reading: str = ""  # how the arrays were read, where that is what explains the number

    @cached_property
    def arrays(self) -> Mapping[str, str]:
        """NumPy code that makes the arrays for the calls of the first class from those of the first batch."""
        given: Mapping[str, str] = {}
        if self.fits and self.classes[0].calls:
            given = calls.as_rows(self.batches[0], self.classes[0].explanations[0].convention)[0].given
        return {name: text for name, text in given.items() if text != f"np.asarray({name})"}

    @property
    def fits(self) -> bool:
        return bool(self.classes)

    def probe(self) -> Probe | None:
        """A small batch that tells apart explanations that the data could not; None where there is none."""
        return self._probe

    @cached_property
    def _probe(self) -> Probe | None:
        left = [explanation for group in self.classes[:3] for explanation in group.explanations][:_USED]
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
        """The first batch, with weights, mask and ignored label of the first batch that has them."""
        first = self.batches[0]
        for batch in self.batches[1:]:
            for name in ("sample_weight", "mask", "ignored"):
                if getattr(first, name) is None:
                    first = replace(first, **{name: getattr(batch, name)})
        return first

    def __str__(self) -> str:
        return self.text()

    def text(self, *, command: bool = False) -> str:
        """What is printed. `command`: it names the options of the command, not the arguments of `diagnose`."""
        lines = self._found(command) if self.fits else self._missed(command)
        lines += self.meant.splitlines()
        return "\n".join([*lines, *(f"Warning: {warning}" for warning in self.warnings if self._matters(warning))])

    def _matters(self, warning: str) -> bool:
        """Not that y_pred looks like logits, where what explains the number takes it for logits."""
        activation = self.classes[0].explanations[0].convention.activation if self.fits else "none"
        return activation == "none" or reading.OUTSIDE not in warning

    def _found(self, command: bool) -> list[str]:
        first, *others = self.classes
        of = f"{self.reading}: " if self.reading else ""
        lines = [f"{self.shown}: {of}{first.explanations[0].words}"]
        if self.arrays:
            made = ", ".join(f"{name} = {text}" for name, text in self.arrays.items())
            lines.append(f"  where {made}")
        if first.calls and first.quantity == "gradient":
            lines.append("  the gradient for y_pred of")
        lines += table(first.calls)
        alike, different = wording.alike([e.parts for e in first.explanations])
        if alike:
            lines.append(f"The same: {', '.join(alike[:_SHOWN])}{_and_more(len(alike) - _SHOWN)}")
        if different:
            can = "--probe FILE writes a batch that can" if command else "probe() gives a batch that can"
            hint = can if self.probe() else "nor can a small batch of the kind"
            lines.append(f"This data cannot tell it from {len(different)} more ({hint}), such as")
            lines += [f"  {words}" for words in different[:_SHOWN]]
        if self.by_chance >= 0.1:
            lines.append(
                f"So few digits say little: about {self.by_chance:.2g} conventions as simple fit a number by chance"
            )
        if others:
            lines.append("Further explanations:")
            for place, group in enumerate(others[:3], 2):
                lines.append(f"  {place}. {group.explanations[0].words}{_more(group.explanations)}")
            if len(others) > 3:
                lines.append(f"  and {len(others) - 3} more")
        return lines

    def _missed(self, command: bool) -> list[str]:
        tried = f"{self.shown}: nothing fits, of {self.tried} conventions"
        if holds(self.batches[0].y_pred) == "probabilities" and reading.saturated(self.batches[0]):
            return [f"{tried}: {_SATURATED}"]
        if not self.nearest:
            return [f"{tried}, none of which gives a finite number for this data"]
        near, to_try = (f"  {words}" for words in self.nearest), _TO_TRY_THERE if command else _TO_TRY
        return [f"{tried}. The functions that come nearest:", *near, to_try]

    __repr__ = __str__


_Given = tuple[Any, Any, Any, dict[str, Any]]  # y_true, y_pred, observed; sample_weight and mask


@dataclass(frozen=True)
class _Request:
    """The arguments of `diagnose` that concern all batches."""

    expected: str | None
    quantity: str | None
    class_weight: Any
    ignore_class: int | None
    coefficients: Mapping[str, float]  # that may have been used, by field of a convention


@dataclass(frozen=True)
class _Data:
    """The batches as read, and the number or array observed on each."""

    batches: list[Batch]
    observed: list[Any]
    quantities: list[Quantity]  # what all of the observed arrays can be
    warnings: list[str]


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
    temperature: float | None = None,
    pos_weight: float | None = None,
    gamma: float | None = None,
    alpha: float | None = None,
    beta: float | None = None,
    logit_scale: float | None = None,
    softcap: float | None = None,
    z_loss: float | None = None,
    more: Sequence[tuple[Any, ...]] = (),
    advance: Callable[[float], None] = lambda fraction: None,
) -> Diagnosis:
    """Finds the conventions that explain a loss: the libraries' own, then those with one or two things changed.

    Args:
        y_true: labels, or targets of y_pred's shape; y_pred: probabilities, logits or log-probabilities. Arrays of any
            library, (N, C), (N,) or (N, …, C).
        observed: the number to explain, exact to half a unit of its last digit (a text keeps its zeros: "1.20"); or
            per-sample values; or an array of y_pred's shape: a gradient, or one value per element.
        expected: what you meant, such as "keras.categorical_crossentropy" or "torch.kl_div(reduction='batchmean')".
        quantity: "gradient" or "value", where an array could be either.
        class_weight, sample_weight, mask, ignore_class: those that may have been used; all are tried with and without.
        label_smoothing, epsilon, temperature, pos_weight, gamma, alpha, beta, logit_scale: may have been used; round
            ones are found too. softcap, z_loss: likewise, of logits; usual ones are found too, as 30 and 1e-4.
        more: further batches (y_true, y_pred, observed), which narrow the explanations down; optionally with a fourth
            entry, a dict with sample_weight, mask or both.
        advance: called with the fraction of the work that each step did, for a progress bar.

    Returns:
        A Diagnosis. Print it. `.classes` are groups of explanations that the data cannot tell apart; `.probe()` can.

    Raises:
        ValueError: shapes do not fit, a batch is empty, `expected` is unknown, weights are negative or not finite, or
            an option is out of range. TypeError: an argument is no array of numbers.

    >>> y_true, y_pred = [[0, 1, 0], [0, 0, 1]], [[0.05, 0.95, 0.0], [0.1, 0.8, 0.1]]
    >>> print(diagnose(y_true, y_pred, 1.697965).classes[0].explanations[0].words)
    Keras' `CategoricalCrossentropy`, but logarithms to base 2 (bits)

    Source: the conventions of `lossbridge.conventions`; the table in docs/conventions.md.
    """
    used = {"label_smoothing": label_smoothing, "epsilon": epsilon, "pos_weight": pos_weight, "softcap": softcap}
    used |= {"temperature": temperature, "logit_scale": logit_scale, "z_loss": z_loss}
    used |= {"gamma": gamma, "alpha": alpha, "beta": beta}
    request = _Request(expected, _quantity(quantity), class_weight, ignore_class, _coefficients(used))
    batches = [(y_true, y_pred, observed, {"sample_weight": sample_weight, "mask": mask}), *_further(more)]
    return _in_any_way(request, batches, advance)


def _in_any_way(request: _Request, batches: list[_Given], advance: Callable[[float], None]) -> Diagnosis:
    """As the arrays are; else, of one batch, in another interpretation of them; else with a constant added."""
    found = _diagnosed(request, batches, advance=advance)
    if not found.fits and len(batches) == 1:
        found = _with_another_reading(found, request, batches[0])
    with_constant = found if found.fits else _diagnosed(request, batches, depth="constants")
    return with_constant if with_constant.fits else found


def _with_another_reading(found: Diagnosis, request: _Request, given: _Given) -> Diagnosis:
    """A diagnosis of the arrays in another interpretation that explains the number; without one, `found`."""
    y_true, y_pred, observed, options = given
    seen = None if np.ndim(observed) else Observation.of(observed, "scalar")
    for other in readings.others(found.batches[0], y_true, y_pred):
        if seen is not None and not _is_believed(other, seen):
            continue
        try:
            again = _diagnosed(
                request,
                [(other.y_true, other.y_pred, observed, {**options, **_mask_of(other, found.batches[0])})],
                moved=other.moved,
                depth=other.depth,
                library=other.library,
            )
        except (ValueError, TypeError):
            continue  # weights, or an observed array, do not fit the shapes of this reading
        if again.fits:
            batch = other.of(again.batches[0])
            # With a mask it is a shift of labels, whose words say what is compared.
            own_words = other.depth == "plain" or other.library or other.mask is not None
            reading_of = other.words if own_words else again.reading
            return replace(
                again,
                batches=(batch,),
                reading=reading_of,
                warnings=tuple(dict.fromkeys((*found.warnings, other.words))),
            )
    return found


def _mask_of(other: readings.Reading, batch: Batch) -> dict[str, Any]:
    """The mask option, where the reading leaves something out."""
    if other.mask is None:
        return {}
    mask = other.mask if batch.mask is None else other.mask & (batch.rows(-1).valid.reshape(other.mask.shape))
    return {"mask": mask}


def _is_believed(other: readings.Reading, seen: Observation) -> bool:
    """Whether the number has digits enough for a reading that has so many alternatives."""
    if other.alternatives > readings.MANY:
        return seen.has_more_digits
    return other.alternatives == 1 or seen.has_many_digits


def _diagnosed(
    request: _Request,
    given: Sequence[_Given],
    *,
    moved: bool = False,
    depth: Depth = "all",
    library: str = "",
    advance: Callable[[float], None] = lambda fraction: None,
) -> Diagnosis:
    data = _read(request, given, moved)
    batch, *further = data.batches
    dtype = batch.half or batch.y_pred.dtype.name
    finite = all(np.isfinite(np.asarray(x, np.float64)).all() for x in data.observed)
    settings = {
        quantity: Setting.of(batch, quantity, more=further, finite=finite, given=request.coefficients, library=library)
        for quantity in data.quantities
    }
    meant = "" if request.expected is None else _meant(request.expected, batch, settings[data.quantities[0]])
    found: list[tuple[Fit, EquivalenceClass]] = []
    near: list[tuple[tuple[int, float], str]] = []
    count, chance = 0, 0.0
    for quantity, setting in settings.items():
        every = hypotheses(setting, plain=depth in ("plain", "constants"))
        candidates = [h for h in every if depth != "another axis" or h.convention.axis != -1]
        count += len(candidates)
        observations = [Observation.of(x, quantity, dtype=dtype) for x in data.observed]
        groups, closest = search(
            candidates, data.batches, observations, lambda fraction: advance(fraction / len(settings))
        )
        if depth in ("all", "constants") and (not groups or groups[0][0].hypothesis.strangeness[:2] > (1, False)):
            constants = depth == "constants"
            new = solved(candidates, batch, setting, observations[0], sure=bool(further), last=constants)
            if new:
                groups = [*search(new, data.batches, observations)[0], *groups]
        found += [(group[0], _explained(group, batch, setting)) for group in groups]
        near += [(fit.distance, _near_text(fit, data, quantity)) for fit in closest]
        few_digits = quantity == "scalar" and observations[0].tight > _FEW_DIGITS * abs(float(observations[0].values))
        if groups and few_digits and not further:
            simple = [h for h in candidates if h.changes <= groups[0][0].hypothesis.changes]
            chance = by_chance(simple, batch, observations[0])
    found.sort(key=lambda one: (one[0].hypothesis.strangeness, one[0].hypothesis.place))
    return Diagnosis(
        classes=tuple(group for _, group in found),
        nearest=tuple(words for _, words in sorted(near)[:3]),
        warnings=tuple(dict.fromkeys(data.warnings)),
        meant=meant,
        tried=count,
        shown=_shown(data.observed[0]),
        by_chance=chance,
        reading=next((words for words in data.warnings if words.endswith(reading.ALONG_AXIS_0)), ""),
        batches=tuple(data.batches),
    )


def _read(request: _Request, given: Sequence[_Given], moved: bool) -> _Data:
    """Raises ValueError or TypeError; the message names the further batch that is wrong."""
    batches: list[Batch] = []
    numbers: list[Any] = []
    quantities: list[Quantity] = []
    warnings: list[str] = []
    for place, (y_true, y_pred, observed, options) in enumerate(given):
        which = f"further batch {place}: " if place else ""
        options = {**options, "class_weight": request.class_weight, "ignore_class": request.ignore_class}
        try:
            batch, found = reading.batch_of(y_true, y_pred, moved=moved, **options)
            observed, can_be = reading.quantities(observed, batch, request.quantity)
        except (ValueError, TypeError) as error:
            raise type(error)(f"{which}{error}") from None
        if place and batch.form != batches[0].form:
            raise ValueError(f"{which}it is of another form than the first; diagnose it on its own")
        quantities = [quantity for quantity in can_be if quantity in quantities or not place]
        warnings += [which + words for words in found]
        batches.append(batch)
        numbers.append(observed)
    if not quantities:
        raise ValueError("the batches' observed arrays are of different kinds; diagnose each on its own")
    return _Data(batches, numbers, quantities, warnings)


def _quantity(name: str | None) -> str | None:
    """Itself. Raises ValueError for one that is unknown."""
    if name not in (None, "gradient", "value"):
        raise ValueError(f"quantity is {name!r}; use 'gradient' or 'value'")
    return name


_ENDS = {"label_smoothing": 1.0, "epsilon": 0.5, "alpha": 1.0, "beta": 1.0}


def _coefficients(numbers: Mapping[str, Any]) -> dict[str, float]:
    """Those that are given, which lie above 0 and below their ends."""
    found: dict[str, float] = {}
    for name, x in numbers.items():
        if x is None:
            continue
        if isinstance(x, bool) or not isinstance(x, int | float | np.floating):
            raise TypeError(f"{name} is {x!r}; pass one number")
        end = _ENDS.get(name, 1e15)
        if not 0 < x < end:
            raise ValueError(f"{name} is {x}; pass a number between 0 and {end:g}")
        found[name] = float(x)
    return found


def _further(more: Any) -> Iterator[_Given]:
    """Checks the form of `more`."""
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
    said = [wording.words(f.hypothesis, batch, setting.quantity) for f in fits]
    explanations = tuple(
        Explanation(str(words), f.hypothesis.changes, f.hypothesis.convention, words)
        for words, f in zip(said, fits, strict=True)
    )

    conventions = [f.hypothesis.convention for f in fits[:_USED]]
    return EquivalenceClass(explanations, setting.quantity, partial(_calls, conventions, batch, setting))


def _calls(conventions: list[Convention], batch: Batch, setting: Setting) -> dict[str, str]:
    """By library, in the order of wording.LIBRARIES."""
    texts = calls.texts(conventions, batch, setting)
    return {library: texts[library] for library in wording.LIBRARIES if library in texts}


def _near_text(fit: Fit, data: _Data, quantity: Quantity) -> str:
    words = wording.words(fit.hypothesis, data.batches[0], quantity)
    fits = f"fits {len(fit.values)} of the batches, then " if fit.values else ""
    if quantity != "scalar":
        return f"{words}: {fits}{fit.misfit:.2g} off, relatively"
    gives, observed = float(np.asarray(fit.last)), float(data.observed[len(fit.values)])
    ratio = f"the number is {observed / gives:.6g} times that, or {observed - gives:+.6g}" if gives else ""
    return f"{words}: {fits}gives {gives:.7g}; {ratio}"


def _meant(expected: str, batch: Batch, setting: Setting) -> str:
    """What the expected function gives, and how each library is called for it."""
    preset, more = find_preset(expected, batch, setting)
    c = canonical(preset.convention, setting)
    assert c is not None
    options = f" with {', '.join(more)}" if more else ""
    gives = f", which gives {float(whole(batch, c, 'scalar')[0]):.9g}" if setting.quantity == "scalar" else ""
    return "\n".join([f"Meant: {wording.name(preset)}{options}{gives}", *table(_calls([c], batch, setting))])


def table(texts: Mapping[str, str]) -> list[str]:
    """A line for each library, with its call."""
    width = max((len(library) for library in texts), default=0)
    return [f"  {library:<{width}}  {text}" for library, text in texts.items()]


def _shown(observed: Any) -> str:
    if isinstance(observed, str):
        return observed
    return f"{float(observed):.10g}" if np.ndim(observed) == 0 else f"an array of shape {np.shape(observed)}"


def _and_more(count: int) -> str:
    return f" and {count} more" if count > 0 else ""


def _more(group: Sequence[Any]) -> str:
    return f" (and {len(group) - 1} more)" if len(group) > 1 else ""


def _array_text(x: Array) -> str:
    return np.array2string(x, separator=", ", threshold=200, floatmode="unique").replace("\n", "\n         ")


__all__ = ["Diagnosis", "EquivalenceClass", "Explanation", "Probe", "Quantity", "diagnose"]
