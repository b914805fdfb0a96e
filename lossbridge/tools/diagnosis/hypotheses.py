"""The conventions that may explain a number: those of the peers' functions, then with one thing changed, then two.

`hypotheses` enumerates them for a setting. Nothing is evaluated here.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from lossbridge.conventions import FURTHER, PEERS, Convention, Peer
from lossbridge.tools.diagnosis.batch import WEIGHTS
from lossbridge.tools.diagnosis.canonical import BINARY, DIVERGENCES, FOCAL, SMOOTHINGS, Holds, Setting, canonical
from lossbridge.tools.diagnosis.evaluate import FLOAT16_DTYPES
from lossbridge.tools.diagnosis.weightings import WEIGHTS_APART


@dataclass(frozen=True)
class Preset:
    """A peer's function, with its ordinary options, called on arrays of the form that it takes."""

    peer: Peer
    options: Convention  # the function's, with those options
    pred: str  # the argument: "y_pred", or an expression such as "log(y_pred)"
    target: str  # likewise for y_true
    convention: Convention  # of the whole expression, as a function of y_true and y_pred


@dataclass(frozen=True)
class Hypothesis:
    """A convention that differs from the nearest preset's in `changes` things. Both are in canonical form."""

    convention: Convention
    preset: Preset
    own: Convention  # the preset's
    changes: int
    place: int = 0  # of the preset: better known peers first
    other_family: bool = False  # a divergence or an entropy, where the targets suggest a cross-entropy

    @property
    def rarity(self) -> int:
        """What it counts besides its changes: that it is of another family, or of a library that fewer people have."""
        return self.other_family + self.preset.peer.is_further

    @property
    def strangeness(self) -> tuple[int, bool, bool]:
        """The order of hypotheses: the number of changes and its rarity; then whether it assumes log-probabilities for
        a function that takes none; of equals the better known, and last those with a β, which fits most numbers."""
        c = self.convention
        log_probabilities = c.activation == "exp" or c.logarithm == "missing"
        strange = log_probabilities and self.preset.peer.convention.activation != "exp"
        return self.changes + self.rarity, strange, self.rarity > 0 or c.beta != 0.5


def presets(setting: Setting) -> list[Preset]:
    """The presets of every peer, with the options that are no changes: logits, reduction, the given weights."""

    def order(preset: Preset) -> tuple[bool | int, ...]:
        """First what most people have, and of it the library that is preferred; then the functions that take such
        targets and return this quantity; then by library; then those that are called on the arrays themselves."""
        peer = preset.peer
        if setting.quantity in ("scalar", "gradient"):
            returned = setting.quantity == "scalar" or peer.returns == "scalar"
        else:
            returned = peer.elementwise == (setting.quantity == "elements" or setting.rank < 2)
        other_targets = setting.labels and "labels" not in peer.targets
        as_they_are = (preset.pred, preset.target) == ("y_pred", "y_true")
        return (
            peer.is_further,
            peer.library != setting.library,
            other_targets,
            not returned,
            _LIBRARIES.index(peer.library),
            not as_they_are,
        )

    targets = "labels" if setting.labels else "events" if setting.events_only else None
    found = []
    for peer in (*PEERS, *FURTHER):
        if targets is None:
            fits = peer.targets != ("labels",)  # a matrix may hold distributions, or outcomes
        elif targets == "labels":
            fits = peer.targets[0] in ("labels", "distributions", "none")  # labels can be made one-hot
        else:
            fits = "events" in peer.targets
        if fits and _takes(peer, setting):
            found += [_preset(peer, options, setting) for options in _variants(peer)]
    return sorted((preset for preset in found if preset is not None), key=order)


def _takes(peer: Peer, setting: Setting) -> bool:
    """Whether the function takes such arrays, and gives such a quantity."""
    if peer.library == "sklearn":  # reduces always; of outcomes it takes hard ones, and a matrix as classes
        of_matrix = "events" in peer.targets and not setting.events_only
        return setting.quantity not in ("samples", "elements") and setting.hard and not of_matrix
    by_weight = peer.name == "lossbridge.log_loss" or peer.convention.divisor in ("weights", "nonzero weights")
    if by_weight and "events" in peer.targets:
        return setting.events_only  # of a matrix it takes labels, or every entry is a sample
    return True


_LIBRARIES = list(dict.fromkeys(peer.library for peer in (*PEERS, *FURTHER)))


def _variants(peer: Peer) -> Iterator[Convention]:
    divisors: Iterable[Any] = {"samples": ("samples", "one"), "columns": ("samples", "one")}.get(peer.returns, ())
    if peer.returns == "elements":
        divisors = ("elements", "one", "samples")
    elif peer.returns == "samples" and peer.convention.divisor == "elements":
        divisors = ("elements", "classes")
    names = ["cost", "scale", "target_activation", "class_weight", "sample_weight"]
    names += ["alpha"] if peer.convention.cost == "binary focal" else []  # balanced or not
    for activation in _values(peer, "activation"):
        c = peer.convention.activated(activation)
        for divisor, *values in product(divisors or _values(peer, "divisor"), *(_values(peer, name) for name in names)):
            variant = replace(c, divisor=divisor, **dict(zip(names, values, strict=True)))
            if variant.cost == "jensen-shannon" or variant.scale == "mixture":
                yield variant


# (what an array holds, the activation that the function applies): the argument to pass, and the activation of both
# together. "squash" stands for softmax, or for sigmoid where the targets are outcomes.
_ARGUMENTS: dict[tuple[Holds, str], tuple[str, Any]] = {
    ("probabilities", "exp"): ("log({})", "none"),
    ("probabilities", "softmax"): ("log({})", "renormalised"),
    ("probabilities", "sigmoid"): ("logit({})", "none"),
    ("logits", "none"): ("squash({})", "squash"),
    ("logits", "exp"): ("log_softmax({})", "squash"),
    ("log-probabilities", "none"): ("exp({})", "exp"),
}


def _preset(peer: Peer, options: Convention, setting: Setting) -> Preset | None:
    """The function called on the form of arrays that it takes; None if one of its options is for another form."""
    squash = "sigmoid" if options.cost in BINARY else "softmax"
    pred, activation = _ARGUMENTS.get((setting.pred_holds, options.activation), ("{}", options.activation))
    target, target_activation = _ARGUMENTS.get(
        (setting.true_holds, options.target_activation), ("{}", options.target_activation)
    )
    optional = options.activation != peer.convention.activation or options.target_activation != "none"
    target_changed = options.target_activation not in ("none", target_activation)
    if optional and (pred != "{}" or target_changed):
        return None
    of_columns = peer.convention.axis == 0 and not setting.one_row
    if of_columns and setting.rank > 1 and (pred, target) != ("{}", "{}"):
        return None  # along which axis would its argument be a softmax?
    if peer.library == "lossbridge" and setting.rank < 2 and options.sample_weight and peer.function != "log_loss":
        return None  # the one axis is that of the outcomes, and so has one weight
    # The classes are moved to the end.
    c = replace(options, axis=options.axis if of_columns else -1 if peer.convention.axis in (0, 1) else options.axis)
    if options.activation in peer.nan_under:
        c = replace(c, undefined="nan")
    if peer.library == "keras" and setting.rank < 2 and options.sample_weight and setting.sample_weight:
        c = replace(c, rows=WEIGHTS_APART, sample_weight=False)  # a vector is one sample
    if activation == "renormalised":
        c = replace(c, activation="none", renormalise="predictions")
    else:
        c = replace(c, activation={"squash": squash}.get(activation, activation))
    if options.cost in DIVERGENCES:
        activations = {"squash": squash, "renormalised": "none"}
        c = replace(c, target_activation=activations.get(target_activation, target_activation))
    else:
        target = "{}"

    def expression(text: str, name: str) -> str:
        return text.format(name).replace("squash", squash)

    return Preset(peer, options, expression(pred, "y_pred"), expression(target, "y_true"), c)


def _values(peer: Peer, name: str) -> tuple[Any, ...]:
    option = peer.options.get(name)
    return tuple(option) if isinstance(option, Mapping) else (getattr(peer.convention, name),)


@dataclass(frozen=True)
class Change:
    """One thing changed. Pairs are tried of changes that are `common` and of different groups."""

    group: str
    values: Mapping[str, Any]
    common: bool = True
    weight: int = 1  # how many changes it counts as
    costs: tuple[str, ...] | None = None  # the costs that it applies to; None: all


_SQUARED = ("cross-entropy", "binary")
JENSEN_SHANNON: Mapping[str, Any] = {"cost": "jensen-shannon", "clip": "none", "epsilon": 0.0}
_CATEGORICAL = ("cross-entropy", "focal", "poly", "divergence", "convex divergence", "entropy")
_EPSILONS: Mapping[str, tuple[float | str, ...]] = {
    "both": (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-10, 1e-12, 1e-15, "machine"),
    "lower": (1e-7, 1e-8, 1e-12),
    "added": (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9, 1e-10, 1e-12, 1e-15, 1e-16, 1e-20, "machine"),
    "arguments": (math.exp(-100), 1e-12, 1e-15, 1e-16),
}
_COMMON_EPSILONS = {1e-7: ("both",), 1e-15: ("both",)}  # and the ways of clipping in which they are common


def changes(setting: Setting) -> list[Change]:
    """All changes that are tried; of changes that give the same convention the first is used."""
    return [*_changes_of_any_data(setting), *_changes_of_some_data(setting)]


def _changes_of_any_data(setting: Setting) -> Iterator[Change]:
    named = setting.tried("epsilon", ())
    clips_of = {**_COMMON_EPSILONS, **dict.fromkeys(named, tuple(_EPSILONS))}
    yield Change("activation", {"activation": "none"})
    yield Change("activation", {"activation": "softmax"})
    yield Change("activation", {"activation": "softmax twice"}, costs=_CATEGORICAL)
    yield Change("activation", {"activation": "sigmoid"})
    yield Change("activation", {"activation": "sigmoid twice"}, costs=BINARY)
    yield Change("activation", {"activation": "exp"})
    yield Change("renormalise", {"renormalise": "no"})
    yield Change("renormalise", {"renormalise": "predictions"})
    yield Change("renormalise", {"renormalise": "predictions", "clip_first": True}, common=False)
    yield Change("clip", {"clip": "none", "epsilon": 0.0})
    for clip, epsilons in _EPSILONS.items():
        for epsilon in dict.fromkeys((*named, *epsilons)):
            common = epsilon in clips_of and clip in clips_of[epsilon]
            costs = BINARY if clip == "arguments" else None  # without 1 − p it is "lower"
            yield Change("clip", {"clip": clip, "epsilon": epsilon}, common=common, costs=costs)
    for base in (2.0, 10.0):
        yield Change("base", {"base": base})
    smoothings = setting.tried("label_smoothing", SMOOTHINGS)
    for s, over in product(smoothings, ("K", "K-1", "C")):
        values = {"label_smoothing": s, "smoothing_over": over}
        yield Change("smoothing", values, common=s == smoothings[0], costs=BINARY if over == "C" else None)
    for temperature in (*setting.tried("temperature", ()), *(1 / a for a in setting.tried("logit_scale", ()))):
        yield Change("temperature", {"temperature": temperature})
        yield Change("temperature", {"temperature": temperature, "factor": temperature**2}, costs=DIVERGENCES)
    for name, cost in (("pos_weight", "binary"), ("softcap", "cross-entropy"), ("z_loss", "cross-entropy")):
        for value in setting.tried(name, ()):
            yield Change(name, {name: value}, costs=(cost,))
    for divisor in ("samples", "elements", "weights", "nonzero weights", "classes", "axis 0", "one"):
        yield Change("divisor", {"divisor": divisor}, common=divisor != "nonzero weights")
    yield Change("cost", {"cost": "squared", "clip": "none", "epsilon": 0.0}, common=False, costs=_SQUARED)
    yield from _changes_to_mixtures(setting)
    if setting.sample_weight and setting.classes > 1:
        by_weight = {"sample_weight": True, "divisor": "weights", "factor": 1 / setting.classes}
        yield Change("sample_weight", by_weight, common=False, costs=BINARY)
    if setting.class_weight:
        yield Change("class_weight", {"class_weight": True, "divisor": "weights"}, common=False)
    yield Change("logarithm", {"logarithm": "missing"})
    yield Change("logarithm", {"logarithm": "twice"}, common=False)
    yield Change("outcome", {"outcome": "negated"})
    yield Change("outcome", {"outcome": "perplexity"}, common=False)
    yield Change("dtype", {"dtype": "exact"})
    yield Change("dtype", {"dtype": "float32"})
    for dtype in FLOAT16_DTYPES:
        yield Change("dtype", {"dtype": f"{dtype} inputs"}, common=False)
    for dtype in FLOAT16_DTYPES:
        yield Change("dtype", {"dtype": dtype}, common=False, weight=0 if dtype == setting.half else 2)
    for gamma in setting.tried("gamma", (1.0, 2.0, 5.0)):
        yield Change("gamma", {"gamma": gamma}, common=bool(setting.tried("gamma", ())), costs=FOCAL)
    yield Change("gamma", {"gamma": 0.0}, common=False, costs=("binary focal",))  # of classes it is a factor α
    for alpha in (*setting.tried("alpha", (0.25, 0.5, 0.75, 1.0)), None):
        yield Change("alpha", {"alpha": alpha}, common=bool(setting.tried("alpha", ())), costs=FOCAL)
    for alpha in (1.0, -1.0):
        yield Change("alpha", {"alpha": alpha}, common=False, costs=("poly",))


def _changes_to_mixtures(setting: Setting) -> Iterator[Change]:
    """Other divergences than Kullback's; those of hard targets are sought beside the cross-entropy."""
    total_variation = {**JENSEN_SHANNON, "cost": "total variation"}
    costs = ("divergence", "cross-entropy") if setting.hard else ("divergence",)
    yield Change("cost", JENSEN_SHANNON, common=False, costs=("divergence",))
    yield Change("cost", total_variation, common=False, costs=costs)
    yield Change("cost", {**JENSEN_SHANNON, "scale": "divergence"}, common=False, costs=("divergence",))
    yield Change("cost", {**JENSEN_SHANNON, "base": 2.0}, common=False, weight=2, costs=("divergence",))
    for without_half in (JENSEN_SHANNON, total_variation):
        yield Change("cost", {**without_half, "factor": 2.0}, common=False, costs=("divergence",))
    for beta in setting.tried("beta", ()):
        for values in ({}, {"scale": "divergence"}, {"crossed": True}):
            mixture = {**JENSEN_SHANNON, "beta": beta, **values}
            yield Change("cost", mixture, costs=(*costs, "jensen-shannon"))


def _changes_of_some_data(setting: Setting) -> Iterator[Change]:
    """Changes that need targets of y_pred's shape, weights, a mask or ignored label, or a number that is not finite."""
    if not setting.labels:
        yield Change("order", {"swapped": True})
        for activation in ("none", "softmax", "exp"):
            yield Change("target", {"target_activation": activation}, costs=DIVERGENCES)
        if not setting.hard:
            yield Change("target", {"target_activation": "softmax"}, costs=("cross-entropy",), common=False)
        for axis in range(-1, setting.rank - 1):
            yield Change("axis", {"axis": axis})
        yield Change("renormalise", {"renormalise": "both"}, common=False)
    for name in WEIGHTS:
        if getattr(setting, name):
            yield Change(name, {name: True})
            yield Change(name, {name: False})
    if setting.left_out:
        for how in ("removed", "zero", "kept"):
            yield Change("left_out", {"left_out": how})
    if not setting.finite:
        yield Change("undefined", {"undefined": "nan"})


# Pairs of changes are tried for these costs only, which keeps the number of hypotheses small.
_PAIRED = ("cross-entropy", "binary", "divergence")


@functools.lru_cache(maxsize=16)  # of other readings of the arrays many are alike
def hypotheses(setting: Setting, *, plain: bool = False) -> tuple[Hypothesis, ...]:
    """Every convention once, in canonical form and with its simplest explanation; fewest changes first.

    `plain`: the best-known functions alone, with nothing changed but how they count what is left out.
    """
    found: dict[Convention, Hypothesis] = {}

    def add(c: Convention, start: Hypothesis, count: int) -> None:
        here = canonical(c, setting)
        if here is None or (here in found and found[here].changes + found[here].rarity < count + start.rarity):
            return
        new = replace(start, convention=here, changes=count)
        if here not in found or new.strangeness < found[here].strangeness:
            found[here] = new

    starts: dict[Convention, Hypothesis] = {}
    for preset in presets(setting):
        if plain and preset.peer.is_further:
            continue
        own = canonical(preset.convention, setting)
        if own is not None and own not in starts:
            of_divergence = preset.peer.convention.cost in ("divergence", "convex divergence", "entropy")
            other = of_divergence and (setting.labels or setting.one_hot)
            starts[own] = Hypothesis(own, preset, own, 0, len(starts), other)
            add(own, starts[own], 0)
    tried = [change for change in changes(setting) if not plain or change.group == "left_out"]
    for own, start in starts.items():
        if own.undefined == "nan" and setting.finite:
            continue  # it gives NaN, and what is changed in a function that does not is found there
        if start.other_family:
            continue  # of hard targets a divergence is a cross-entropy, of which the changes are tried
        fitting = [change for change in tried if change.costs is None or own.cost in change.costs]
        further = start.preset.peer.is_further
        if further:  # what is changed besides their options is looked for in the functions that most people know
            options = {*start.preset.peer.options, "activation", "smoothing_over"}
            fitting = [change for change in fitting if change.values.keys() <= options]
            fitting = [change for change in fitting if "twice" not in change.values.get("activation", "")]
        for change in fitting:
            add(own.but(**change.values), start, change.weight)
        common = [change for change in fitting if change.common]
        if own.cost not in _PAIRED or further:
            continue
        for i, first in enumerate(common):
            for second in common[i + 1 :]:
                if first.group != second.group and not first.values.keys() & second.values.keys():
                    add(own.but(**first.values, **second.values), start, 2)
    return tuple(sorted(found.values(), key=lambda h: (h.changes, h.place)))
