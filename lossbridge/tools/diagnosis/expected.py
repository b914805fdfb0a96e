"""Reads `expected`, a call as an explanation or code writes it, as a function of the registry with its options."""

from __future__ import annotations

import ast
import difflib
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from lossbridge.conventions import FURTHER, PEERS, Convention, Peer
from lossbridge.tools.diagnosis import wording
from lossbridge.tools.diagnosis.batch import WEIGHTS, Batch
from lossbridge.tools.diagnosis.canonical import FOCAL, Setting, canonical
from lossbridge.tools.diagnosis.expression import PREFIXES, our_function
from lossbridge.tools.diagnosis.hypotheses import Preset, presets

# What stands before a function's name in code, and the library's name in the registry.
_PREFIXES = {
    **{prefix: f"{library}." for library, prefix in PREFIXES.items()},
    "tf.keras.losses.": "keras.",
    "torch.nn.functional.": "torch.",
    "scipy.stats.": "scipy.",
    "scipy.special.": "scipy.",
    "nn.": "torch.",
    "torch.nn.": "torch.",
    "tf.compat.v1.losses.": "tf1.",
    "tensorflow.compat.v1.losses.": "tf1.",
    "paddle.nn.functional.": "paddle.",
    "mlx.nn.losses.": "mlx.",
    "nn.losses.": "mlx.",
    "mindspore.ops.": "mindspore.",
    "tinygrad.Tensor.": "tinygrad.",
    "Tensor.": "tinygrad.",
    "chainer.functions.": "chainer.",
    "mxnet.gluon.loss.": "mxnet.",
    "gluon.loss.": "mxnet.",
    "mxnet.metric.": "mxnet.",
    "timm.loss.": "timm.",
    "torchvision.ops.": "torchvision.",
    "monai.losses.": "monai.",
    "kornia.losses.": "kornia.",
    "smp.losses.": "smp.",
    "segmentation_models_pytorch.losses.": "smp.",
    "fastai.losses.": "fastai.",
    "torchmetrics.functional.": "torchmetrics.",
    "torchmetrics.functional.text.": "torchmetrics.",
    "ignite.metrics.": "ignite.",
    "river.metrics.": "river.",
    "thinc.api.": "thinc.",
    "statsmodels.genmod.families.": "statsmodels.",
}
_MODULES = {
    "torch.CrossEntropyLoss": "torch.cross_entropy",
    "torch.NLLLoss": "torch.nll_loss",
    "torch.KLDivLoss": "torch.kl_div",
    "torch.BCELoss": "torch.binary_cross_entropy",
    "torch.BCEWithLogitsLoss": "torch.binary_cross_entropy_with_logits",
}
# The valid values of the fields that an option sets to any number.
_RANGES: Mapping[str, Callable[[Any], bool]] = {
    "label_smoothing": lambda x: 0 <= x <= 1,
    "epsilon": lambda x: 0 <= x < 0.5,
    "gamma": lambda x: x >= 0,
    "z_loss": lambda x: x >= 0,
    "softcap": lambda x: x > 0,
    "logit_scale": lambda x: x > 0,
    "alpha": lambda x: True,
    "beta": lambda x: 0 < x < 1,
    "temperature": lambda x: x > 0,
    "base": lambda x: x > 0 and x != 1,
    "axis": lambda x: isinstance(x, int),
}


@dataclass(frozen=True)
class ParsedCall:
    """A function, the code of its options' values, and the reduction of its result."""

    function: str
    options: Mapping[str, str]
    reduction: str  # ".sum()"; empty for a mean

    @staticmethod
    def of(text: str) -> ParsedCall:
        try:
            node: ast.expr = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError):
            raise ValueError(f"expected is {text!r}, which is no call; pass one, such as 'torch.kl_div'") from None
        reduction = ""
        while isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("sum", "mean"):
            reduction = f".{node.func.attr}({', '.join(map(ast.unparse, node.args))}){reduction}"
            node = node.func.value
        calls: list[ast.Call] = []
        while isinstance(node, ast.Call):  # twice for a class: its constructor, and the call
            calls.append(node)
            node = node.func
        name = ast.unparse(node)
        prefix = max((p for p in _PREFIXES if name.startswith(p)), key=len, default="")
        name = _PREFIXES.get(prefix, "") + name.removeprefix(prefix)
        named = [(str(keyword.arg), keyword.value) for call in calls for keyword in call.keywords]
        options: dict[str, str] = {}
        for option, value in [*named, *_by_place(text, name, calls)]:
            if option in options:
                raise ValueError(f"expected {text!r} names {option} twice; name it once")
            options[option] = ast.unparse(value)
        return ParsedCall(_MODULES.get(name, name), options, reduction.removesuffix(".mean()"))


def _by_place(text: str, name: str, calls: list[ast.Call]) -> Iterator[tuple[str, ast.expr]]:
    """The options that are given by their place, with their names. The arrays, which do not matter, are left out."""
    if not calls:
        return
    peer = next((peer for peer in (*PEERS, *FURTHER) if peer.name == _MODULES.get(name, name)), None)
    constructed = name in _MODULES or (peer is not None and peer.is_class)
    places: list[tuple[tuple[str, ...], list[ast.expr], int]] = []  # names, arguments, and how many of those are arrays
    if constructed:
        takes = () if name in _MODULES else ("sample_weight",)
        places = [(takes, call.args, 2) for call in calls[:-1]]
    if peer is not None:
        parameters = _parameters(peer).values()
        own = tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)[0 if peer.is_class else 2 :]
        places.append((own, calls[-1].args, 0 if constructed else 2))
    for names, arguments, arrays in places:
        options = arguments[arrays:]
        nameless = [x for x in arguments[:arrays] if isinstance(x, ast.Constant)] + options[len(names) :]
        if nameless:
            raise ValueError(f"expected {text!r} gives {ast.unparse(nameless[0])} by its place; name it, as in axis=-1")
        yield from zip(names, options, strict=False)


def _parameters(peer: Peer) -> Mapping[str, inspect.Parameter]:
    """Those of the function, with their defaults; none of a further library, of which we have no functions."""
    if peer.is_further:
        return {}
    return inspect.signature(our_function(peer.library, peer.function)).parameters


def find_preset(expected: Any, batch: Batch, setting: Setting) -> tuple[Preset, list[str]]:
    """The preset that is meant, and the options that it does not have itself. Raises ValueError for an unknown call."""
    if not isinstance(expected, str):
        raise TypeError(f"expected is {expected!r}; pass a text, such as 'torch.kl_div'")
    meant = ParsedCall.of(expected)
    for name, value in meant.options.items():
        if value in WEIGHTS and getattr(batch, value) is None:
            raise ValueError(f"expected names {name}={value}, and none is given; pass {value}= too")
    texts: dict[str, None] = {}
    found: list[tuple[Preset, list[str]]] = []
    for preset in presets(setting):
        if canonical(preset.convention, setting) is None:
            continue
        text = f"{preset.peer.library}.{wording.written(preset.peer, preset.options)}"
        texts[text] = None
        own = ParsedCall.of(text)
        same = (own.function, own.reduction) == (meant.function, meant.reduction)
        if not same or not own.options.items() <= meant.options.items():
            continue
        more = {
            name: value
            for name, value in meant.options.items()
            if name not in own.options and not _is_default(preset.peer, name, value, setting)
        }
        c = _with_options(preset.convention, more, preset.peer, batch)
        if c is not None and canonical(c, setting) is not None:
            found.append((replace(preset, convention=c), [f"{name}={value}" for name, value in more.items()]))
    if not found:
        close = " or ".join(difflib.get_close_matches(expected, texts, 3, 0))
        raise ValueError(f"expected {expected!r} is unknown for such arrays; did you mean {close}?")
    return min(found, key=lambda one: len(one[1]))


def _is_default(peer: Peer, name: str, value: str, setting: Setting) -> bool:
    """Whether the option changes nothing: it has its default, or asks for the values that are observed."""
    if (name, value) == ("reduction", "'none'"):
        return setting.quantity in ("samples", "elements")
    if peer.is_further:
        mean = (name, value) == ("reduction", "'mean'") and peer.convention.divisor != "one"
        return mean or (name in _RANGES and value == repr(getattr(peer.convention, name)))
    default = _parameters(peer).get(name)
    return default is not None and (value == repr(default.default) or (name, value) == ("reduction", "'mean'"))


def _with_options(c: Convention, options: Mapping[str, str], peer: Peer, batch: Batch) -> Convention | None:
    """The convention with the peer's options; None where it does not have one of them."""
    changed: dict[str, Any] = {}
    for name, value in options.items():
        field, key = _field_and_value(peer, name, value)
        if field == "":
            return None
        if field == "left_out":
            _refuse_other_label(name, value, batch)
            changed |= {} if key is None else {field: key}
        elif field in WEIGHTS:
            if getattr(batch, field) is None:
                raise ValueError(f"expected names {name}={value}, and none is given; pass {field}= too")
            changed[field] = True
        elif field == "alpha" and c.cost in FOCAL and (value == "None" or (type(key) in (int, float) and key < 0)):
            changed[field] = None
        elif field in _RANGES and not (type(key) in (int, float) and _RANGES[field](key)):
            raise ValueError(f"expected names {name}={value}, which {peer.name} does not take; correct it")
        elif field == "logit_scale":
            changed["temperature"] = 1 / key
        elif field == "temperature":
            changed |= {field: key, "factor": key * key}
        else:
            changed[field] = key
    return replace(c, **changed)


def _field_and_value(peer: Peer, name: str, value: str) -> tuple[str, Any]:
    """The convention's field that the option sets, and its value; an empty name where there is none."""
    for field, texts in peer.options.items():
        if isinstance(texts, str):
            if texts.partition("=")[0] == name:
                try:
                    return field, ast.literal_eval(value)
                except ValueError:
                    return field, None
        elif field == "left_out":
            of_class = f"{name}={{class}}" if value.isdecimal() else ""
            if any(text.partition("=")[0] == name for text in texts.values()):
                return field, next((key for key, text in texts.items() if text == of_class), None)
        elif field in WEIGHTS:
            if any(text.partition("=")[0] == name for text in texts.values()):
                return field, None
        elif f"{name}={value}" in texts.values():
            return field, next(key for key, text in texts.items() if text == f"{name}={value}")
    return "", None


def _refuse_other_label(name: str, value: str, batch: Batch) -> None:
    """All hypotheses ignore the same label. Another one may be named only if it does not occur."""
    try:
        label = ast.literal_eval(value)
    except ValueError:
        label = None
    if label is not None and label != batch.ignored and (batch.y_true == label).any():
        raise ValueError(f"expected names {name}={value}; pass ignore_class={value} too, so that it can be tried")
