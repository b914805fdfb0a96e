"""Every convention that may explain a number: the peers' own, then with one thing changed, then with two.

`hypotheses` enumerates them for a batch. Nothing is evaluated here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from lossbridge.conventions import PEERS, Convention, Peer
from lossbridge.diagnosis.canonical import BINARY, DIVERGENCES, Setting, canonical


@dataclass(frozen=True)
class Hypothesis:
    """A convention, as the nearest peer's own one with `changes` things changed."""

    convention: Convention
    peer: Peer
    variant: Convention  # the peer's own, with such of its options as need no explanation
    preset: Convention  # the same, with all that does not matter here set to one value
    changes: int
    place: int = 0  # of the peer: better known ones first


def presets(setting: Setting) -> Iterator[tuple[Peer, Convention]]:
    """Each peer's convention, also with the options that are no deviation: logits, reduction, the weights given."""

    def foreign(peer: Peer) -> tuple[bool, bool]:
        """Last come those that take another form of targets, or return another quantity."""
        returned = peer.returns == ("scalar" if setting.quantity in ("scalar", "gradient") else setting.quantity)
        return setting.labels and "labels" not in peer.targets, setting.quantity != "scalar" and not returned

    for peer in sorted(PEERS, key=foreign):
        wanted = "labels" if setting.labels else "events" if setting.events_only else None
        if wanted is None:
            fits = peer.targets != ("labels",)  # a matrix may hold distributions, or outcomes
        elif wanted == "labels":
            fits = peer.targets[0] in ("labels", "distributions", "none")  # labels stand for their one-hot rows
        else:
            fits = "events" in peer.targets
        if not fits:
            continue
        for c in _variants(peer):
            yield peer, c


def _variants(peer: Peer) -> Iterator[Convention]:
    divisors: Iterable[Any] = {"samples": ("samples", "one"), "columns": ("samples", "one")}.get(peer.returns, ())
    if peer.returns == "elements":
        divisors = ("elements", "one", "samples")
    elif peer.returns == "samples" and peer.convention.divisor == "elements":
        divisors = ("elements", "classes")
    options: dict[str, Iterable[Any]] = {"divisor": divisors or _values(peer, "divisor")}
    for name in ("activation", "target_activation", "class_weight", "sample_weight"):
        options[name] = _values(peer, name)
    for divisor in options["divisor"]:
        for activation in options["activation"]:
            for target_activation in options["target_activation"]:
                for class_weight in options["class_weight"]:
                    for sample_weight in options["sample_weight"]:
                        yield replace(
                            peer.convention.activated(activation),
                            divisor=divisor,
                            target_activation=target_activation,
                            class_weight=class_weight,
                            sample_weight=sample_weight,
                        )


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


def changes(setting: Setting) -> list[Change]:
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
            Change("clip", {"clip": clip, "epsilon": epsilon}, common=clip == "both" and epsilon in (1e-7, 1e-15))
            for clip, epsilons in {
                "both": (1e-3, 1e-5, 1e-6, 1e-7, 1e-8, 1e-12, 1e-15, "machine"),
                "lower": (1e-7, 1e-8, 1e-12),
                "added": (1e-5, 1e-6, 1e-7, 1e-8, 1e-10, 1e-12),
            }.items()
            for epsilon in epsilons
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
        *(Change("dtype", {"dtype": half}, common=False, weight=2) for half in ("float16", "bfloat16")),
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
        if here is not None and (here not in found or found[here].changes > count):
            found[here] = replace(root, convention=here, changes=count)

    roots: dict[Convention, Hypothesis] = {}
    for peer, variant in presets(setting):
        preset = canonical(variant, setting)
        if preset is not None and preset not in roots:
            roots[preset] = Hypothesis(preset, peer, variant, preset, 0, len(roots))
            add(preset, roots[preset], 0)
    tried = changes(setting)
    for preset, root in roots.items():
        fitting = [change for change in tried if change.costs is None or preset.cost in change.costs]
        for change in fitting if depth else ():
            add(replace(preset, **change.values), root, change.weight)
        common = [change for change in fitting if change.common]
        if depth < 2 or preset.cost not in _PLAIN:
            continue
        for i, first in enumerate(common):
            for second in common[i + 1 :]:
                if first.group != second.group:
                    add(replace(preset, **first.values, **second.values), root, 2)
    return sorted(found.values(), key=lambda h: (h.changes, h.place))
