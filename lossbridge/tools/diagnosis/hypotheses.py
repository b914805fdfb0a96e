"""Every convention that may explain a number: the peers' own, then with one thing changed, then with two.

`hypotheses` enumerates them for a batch. Nothing is evaluated here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from lossbridge.conventions import PEERS, Convention, Peer
from lossbridge.tools.diagnosis.canonical import BINARY, DIVERGENCES, Holds, Setting, canonical


@dataclass(frozen=True)
class Preset:
    """A peer's function, with such of its options as need no explanation, on what it wants to be given."""

    peer: Peer
    options: Convention  # with those options
    handed: str  # y_pred, or what is made of it, because the function takes another form of predictions
    handed_target: str  # y_true, likewise
    convention: Convention  # of y_pred and y_true as they are


@dataclass(frozen=True)
class Hypothesis:
    """A convention, as the nearest peer's own one with `changes` things changed."""

    convention: Convention
    preset: Preset
    own: Convention  # the preset's, with all that does not matter here set to one value
    changes: int
    place: int = 0  # of the peer: better known ones first

    @property
    def strangeness(self) -> tuple[int, bool]:
        """The changes; then whether it speaks of logarithms, or of their lack, to a function that takes none."""
        c = self.convention
        of_logarithms = c.activation == "exp" or c.logarithm == "missing"
        return self.changes, of_logarithms and self.preset.peer.convention.activation != "exp"


def presets(setting: Setting) -> list[Preset]:
    """Each peer's, also with the options that are no deviation: logits, reduction, the weights given."""

    def order(preset: Preset) -> tuple[bool, bool, int, bool]:
        """Last come those that take another form of targets, or return another quantity; then, library by library,
        those that are handed something made of the arrays."""
        peer = preset.peer
        if setting.quantity in ("scalar", "gradient"):
            returned = setting.quantity == "scalar" or peer.returns == "scalar"
        else:
            returned = peer.elementwise == (setting.quantity == "elements" or setting.rank < 2)
        other_targets = setting.labels and "labels" not in peer.targets
        as_they_are = (preset.handed, preset.handed_target) == ("y_pred", "y_true")
        return other_targets, not returned, _LIBRARIES.index(peer.library), not as_they_are

    wanted = "labels" if setting.labels else "events" if setting.events_only else None
    found = []
    for peer in PEERS:
        if wanted is None:
            fits = peer.targets != ("labels",)  # a matrix may hold distributions, or outcomes
        elif wanted == "labels":
            fits = peer.targets[0] in ("labels", "distributions", "none")  # labels stand for their one-hot rows
        else:
            fits = "events" in peer.targets
        if peer.library == "sklearn" and setting.quantity in ("samples", "elements"):
            fits = False  # it always reduces
        if fits:
            found += [_given(peer, options, setting) for options in _variants(peer)]
    return sorted((preset for preset in found if preset is not None), key=order)


_LIBRARIES = list(dict.fromkeys(peer.library for peer in PEERS))


def _variants(peer: Peer) -> Iterator[Convention]:
    divisors: Iterable[Any] = {"samples": ("samples", "one"), "columns": ("samples", "one")}.get(peer.returns, ())
    if peer.returns == "elements":
        divisors = ("elements", "one", "samples")
    elif peer.returns == "samples" and peer.convention.divisor == "elements":
        divisors = ("elements", "classes")
    names = ("target_activation", "class_weight", "sample_weight")
    for activation in _values(peer, "activation"):
        c = peer.convention.activated(activation)
        for divisor, *values in product(divisors or _values(peer, "divisor"), *(_values(peer, name) for name in names)):
            yield replace(c, divisor=divisor, **dict(zip(names, values, strict=True)))


# (what an array holds, what the function makes probabilities of): how the array is handed over, and what the function
# and that together do to it. "squash" is the softmax, or of outcomes the sigmoid.
_HANDED: dict[tuple[Holds, str], tuple[str, Any]] = {
    ("probabilities", "exp"): ("log({})", "none"),
    ("probabilities", "softmax"): ("log({})", "renormalised"),
    ("probabilities", "sigmoid"): ("logit({})", "none"),
    ("logits", "none"): ("squash({})", "squash"),
    ("logits", "exp"): ("log_softmax({})", "squash"),
    ("log-probabilities", "none"): ("exp({})", "exp"),
}


def _given(peer: Peer, options: Convention, setting: Setting) -> Preset | None:
    """The function on what it wants. None where an option is there for another form of predictions."""
    squash = "sigmoid" if options.cost in BINARY else "softmax"
    handed, activation = _HANDED.get((setting.pred_holds, options.activation), ("{}", options.activation))
    target_handed, target = _HANDED.get(
        (setting.true_holds, options.target_activation), ("{}", options.target_activation)
    )
    optional = options.activation != peer.convention.activation or options.target_activation != "none"
    if optional and (handed != "{}" or (target != options.target_activation and options.target_activation != "none")):
        return None
    c = replace(options, axis=-1 if peer.convention.axis == 1 else options.axis)  # where the function looks for them
    if activation == "renormalised":
        c = replace(c, activation="none", renormalise="predictions")
    else:
        c = replace(c, activation={"squash": squash}.get(activation, activation))
    if options.cost in DIVERGENCES:
        c = replace(c, target_activation={"squash": squash, "renormalised": "none"}.get(target, target))
    else:
        target_handed = "{}"

    def made(text: str, name: str) -> str:
        return text.format(name).replace("squash", squash)

    return Preset(peer, options, made(handed, "y_pred"), made(target_handed, "y_true"), c)


def _values(peer: Peer, name: str) -> tuple[Any, ...]:
    option = peer.options.get(name)
    return tuple(option) if isinstance(option, Mapping) else (getattr(peer.convention, name),)


@dataclass(frozen=True)
class Change:
    """One thing changed. Two of one group do not go together; only the common ones go in pairs."""

    group: str
    values: Mapping[str, Any]
    common: bool = True
    weight: int = 1
    costs: tuple[str, ...] | None = None


_CATEGORICAL = ("cross-entropy", "focal", "poly", "divergence", "convex divergence", "entropy")


_EPSILONS: Mapping[str, tuple[float | str, ...]] = {
    "both": (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-10, 1e-12, 1e-15, "machine"),
    "lower": (1e-7, 1e-8, 1e-12),
    "added": (1e-5, 1e-6, 1e-7, 1e-8, 1e-9, 1e-10, 1e-12),
}
_OFTEN = {1e-7: ("both",), 1e-15: ("both",)}


def changes(setting: Setting) -> list[Change]:
    often = {**_OFTEN, **dict.fromkeys(setting.epsilons, tuple(_EPSILONS))}
    found = [
        Change("activation", {"activation": "none"}),
        Change("activation", {"activation": "softmax"}),
        Change("activation", {"activation": "softmax twice"}, costs=_CATEGORICAL),
        Change("activation", {"activation": "sigmoid"}),
        Change("activation", {"activation": "sigmoid twice"}, costs=BINARY),
        Change("activation", {"activation": "exp"}),
        Change("renormalise", {"renormalise": "no"}),
        Change("renormalise", {"renormalise": "predictions"}),
        Change("renormalise", {"renormalise": "predictions", "clip_first": True}, common=False),
        Change("clip", {"clip": "none", "epsilon": 0.0}),
        Change("clip", {"clip": "floor", "epsilon": 0.0}, common=False),
        *(
            Change("clip", {"clip": clip, "epsilon": epsilon}, common=epsilon in often and clip in often[epsilon])
            for clip, epsilons in _EPSILONS.items()
            for epsilon in dict.fromkeys((*setting.epsilons, *epsilons))
        ),
        Change("base", {"base": 2.0}),
        Change("base", {"base": 10.0}),
        *(
            Change("smoothing", {"label_smoothing": s, "smoothing_over": over}, common=s == setting.smoothings[0])
            for s in setting.smoothings
            for over in ("K", "K-1")
        ),
        *(Change("divisor", {"divisor": d}) for d in ("samples", "elements", "weights", "classes", "axis 0", "one")),
        Change("logarithm", {"logarithm": "missing"}),
        Change("logarithm", {"logarithm": "twice"}, common=False),
        Change("outcome", {"outcome": "negated"}),
        Change("outcome", {"outcome": "perplexity"}, common=False),
        Change("dtype", {"dtype": "exact"}),
        Change("dtype", {"dtype": "float32"}),
        *(Change("dtype", {"dtype": f"{half} inputs"}, common=False) for half in ("float16", "bfloat16")),
        *(
            Change("dtype", {"dtype": half}, common=False, weight=0 if half == setting.half else 2)
            for half in ("float16", "bfloat16")
        ),
        *(Change("gamma", {"gamma": g}, common=False, costs=("focal", "binary focal")) for g in (0.0, 1.0, 2.0, 5.0)),
        *(
            Change("alpha", {"alpha": a}, common=False, costs=("focal", "binary focal"))
            for a in (None, 0.25, 0.5, 0.75, 1.0)
        ),
        *(Change("alpha", {"alpha": a}, common=False, costs=("poly",)) for a in (1.0, -1.0)),
    ]
    if not setting.labels:
        found.append(Change("order", {"swapped": True}))
        found += [Change("target", {"target_activation": a}, costs=DIVERGENCES) for a in ("none", "softmax", "exp")]
        if not setting.hard:
            found.append(Change("target", {"target_activation": "softmax"}, costs=("cross-entropy",), common=False))
        found += [Change("axis", {"axis": axis}) for axis in range(-1, setting.rank - 1)]
        found.append(Change("renormalise", {"renormalise": "both"}, common=False))
    if setting.class_weight:
        found += [Change("class_weight", {"class_weight": use}) for use in (True, False)]
    if setting.sample_weight:
        found += [Change("sample_weight", {"sample_weight": use}) for use in (True, False)]
    if setting.left_out:
        found += [Change("left_out", {"left_out": how}) for how in ("removed", "zero", "kept")]
    if not setting.finite:
        found.append(Change("undefined", {"undefined": "nan"}))
    return found


# In pairs only these costs are tried: with two things wrong, the plain losses have trouble enough.
_PLAIN = ("cross-entropy", "binary", "divergence")


def hypotheses(setting: Setting, *, depth: int = 2) -> list[Hypothesis]:
    """All of them, each convention once, those with the fewest changes first."""
    found: dict[Convention, Hypothesis] = {}

    def add(c: Convention, root: Hypothesis, count: int) -> None:
        here = canonical(c, setting)
        if here is None or (here in found and found[here].changes < count):
            return
        new = replace(root, convention=here, changes=count)
        if here not in found or new.strangeness < found[here].strangeness:
            found[here] = new

    roots: dict[Convention, Hypothesis] = {}
    for preset in presets(setting):
        own = canonical(preset.convention, setting)
        if own is not None and own not in roots:
            roots[own] = Hypothesis(own, preset, own, 0, len(roots))
            add(own, roots[own], 0)
    tried = changes(setting)
    for own, root in roots.items():
        fitting = [change for change in tried if change.costs is None or own.cost in change.costs]
        for change in fitting if depth else ():
            add(own.but(**change.values), root, change.weight)
        common = [change for change in fitting if change.common]
        if depth < 2 or own.cost not in _PLAIN:
            continue
        for i, first in enumerate(common):
            for second in common[i + 1 :]:
                if first.group != second.group:
                    add(own.but(**first.values, **second.values), root, 2)
    return sorted(found.values(), key=lambda h: (h.changes, h.place))
