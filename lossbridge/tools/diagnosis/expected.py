"""What was meant, as a text: a function of the registry with its options, as an explanation or code writes it."""

from __future__ import annotations

import ast
import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from lossbridge.conventions import Convention, Peer
from lossbridge.tools.diagnosis import wording
from lossbridge.tools.diagnosis.calls import PREFIXES, WEIGHTS, function_of
from lossbridge.tools.diagnosis.canonical import Setting, canonical
from lossbridge.tools.diagnosis.evaluate import Batch
from lossbridge.tools.diagnosis.hypotheses import Preset, presets

# How code calls a library's functions: what stands before them, or in their place.
_PREFIXES = {
    **{prefix: f"{library}." for library, prefix in PREFIXES.items()},
    "tf.keras.losses.": "keras.",
    "torch.nn.functional.": "torch.",
    "scipy.stats.": "scipy.",
    "scipy.special.": "scipy.",
    "nn.": "torch.",
    "torch.nn.": "torch.",
}
_MODULES = {
    "torch.CrossEntropyLoss": "torch.cross_entropy",
    "torch.NLLLoss": "torch.nll_loss",
    "torch.KLDivLoss": "torch.kl_div",
    "torch.BCELoss": "torch.binary_cross_entropy",
    "torch.BCEWithLogitsLoss": "torch.binary_cross_entropy_with_logits",
}
# Fields of a convention that an option sets to any number: which make sense.
_RANGES: Mapping[str, Callable[[Any], bool]] = {
    "label_smoothing": lambda x: 0 <= x <= 1,
    "epsilon": lambda x: 0 <= x < 0.5,
    "gamma": lambda x: x >= 0,
    "alpha": lambda x: True,
    "base": lambda x: x > 0 and x != 1,
    "axis": lambda x: isinstance(x, int),
}


@dataclass(frozen=True)
class Asked:
    """A text, read: a function, its options as code writes their values, and what is done to the result."""

    function: str
    options: Mapping[str, str]
    after: str  # ".sum()"; a mean goes without saying

    @staticmethod
    def of(text: str) -> Asked:
        try:
            node: ast.expr = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError):
            raise ValueError(f"expected is {text!r}, which is no call; pass one, such as 'torch.kl_div'") from None
        after = ""
        while isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("sum", "mean"):
            after = f".{node.func.attr}({', '.join(map(ast.unparse, node.args))}){after}"
            node = node.func.value
        options: dict[str, str] = {}
        while isinstance(node, ast.Call):  # of a class twice: made, and called with arrays, which do not count
            for keyword in node.keywords:
                if keyword.arg in options:
                    raise ValueError(f"expected {text!r} names {keyword.arg} twice; name it once")
                options[str(keyword.arg)] = ast.unparse(keyword.value)
            node = node.func
        name = ast.unparse(node)
        prefix = max((p for p in _PREFIXES if name.startswith(p)), key=len, default="")
        name = _PREFIXES.get(prefix, "") + name.removeprefix(prefix)
        return Asked(_MODULES.get(name, name), options, after.removesuffix(".mean()"))


def named(expected: Any, batch: Batch, setting: Setting) -> tuple[Preset, list[str]]:
    """The preset that is meant, and its options that are no preset's. Raises ValueError for what is not known."""
    if not isinstance(expected, str):
        raise TypeError(f"expected is {expected!r}; pass a text, such as 'torch.kl_div'")
    asked = Asked.of(expected)
    for name, value in asked.options.items():
        if value in WEIGHTS and getattr(batch, value) is None:
            raise ValueError(f"expected names {name}={value}, and none is given; pass {value}= too")
    known: dict[str, None] = {}
    found: list[tuple[Preset, list[str]]] = []
    for preset in presets(setting):
        if canonical(preset.convention, setting) is None:
            continue
        text = f"{preset.peer.library}.{wording.written(preset.peer, preset.options)}"
        known[text] = None
        own = Asked.of(text)
        same = (own.function, own.after) == (asked.function, asked.after)
        if not same or not own.options.items() <= asked.options.items():
            continue
        rest = {
            name: value
            for name, value in asked.options.items()
            if name not in own.options and not _goes_without_saying(preset.peer, name, value, setting)
        }
        c = _with(preset.convention, rest, preset.peer, batch)
        if c is not None and canonical(c, setting) is not None:
            found.append((replace(preset, convention=c), [f"{name}={value}" for name, value in rest.items()]))
    if not found:
        close = " or ".join(difflib.get_close_matches(expected, known, 3, 0))
        raise ValueError(f"expected {expected!r} is unknown for such arrays; did you mean {close}?")
    return min(found, key=lambda one: len(one[1]))


def _goes_without_saying(peer: Peer, name: str, value: str, setting: Setting) -> bool:
    """The default; and of values that they are not reduced."""
    if (name, value) == ("reduction", "'none'"):
        return setting.quantity in ("samples", "elements")
    default = inspect.signature(function_of(peer)).parameters.get(name)
    return default is not None and (value == repr(default.default) or (name, value) == ("reduction", "'mean'"))


def _with(c: Convention, rest: Mapping[str, str], peer: Peer, batch: Batch) -> Convention | None:
    """With the options that a peer writes so; None where it has no such."""
    changed: dict[str, Any] = {}
    for name, value in rest.items():
        field, key = _meant(peer, name, value)
        if field == "":
            return None
        if field == "left_out":
            _refuse_other_label(name, value, batch)
        elif field in WEIGHTS:
            if getattr(batch, field) is None:
                raise ValueError(f"expected names {name}={value}, and none is given; pass {field}= too")
            changed[field] = True
        elif field in _RANGES and not (isinstance(key, int | float) and _RANGES[field](key)):
            raise ValueError(f"expected names {name}={value}, which {peer.name} does not take; correct it")
        else:
            changed[field] = key
    return replace(c, **changed)


def _meant(peer: Peer, name: str, value: str) -> tuple[str, Any]:
    """The field of a convention that the option sets, and to what; an empty one where there is none."""
    for field, known in peer.options.items():
        if isinstance(known, str):
            if known.partition("=")[0] == name:
                try:
                    return field, ast.literal_eval(value)
                except ValueError:
                    return field, None
        elif field in ("left_out", *WEIGHTS):
            if any(text.partition("=")[0] == name for text in known.values()):
                return field, None
        elif f"{name}={value}" in known.values():
            return field, next(key for key, text in known.items() if text == f"{name}={value}")
    return "", None


def _refuse_other_label(name: str, value: str, batch: Batch) -> None:
    """Labels are left out as they are for all hypotheses; one that does not occur may be named."""
    try:
        label = ast.literal_eval(value)
    except ValueError:
        label = None
    if label is not None and label != batch.ignored and (batch.y_true == label).any():
        raise ValueError(f"expected names {name}={value}; pass ignore_class={value} too, so that it can be tried")
