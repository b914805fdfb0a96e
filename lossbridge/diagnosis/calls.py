"""The call of a library's function that gives a convention's number, as text; a test runs every one of them."""

from __future__ import annotations

import math
from collections.abc import Mapping

from lossbridge.conventions import PEERS, Convention, Peer
from lossbridge.diagnosis.canonical import Setting, canonical
from lossbridge.diagnosis.evaluate import Batch, divisor, sides

# How each library writes what stands around a loss. "rows": axis −1.
_WORDS: dict[str, dict[str, str]] = {
    "numpy": {
        "softmax": "scipy.special.softmax({}, axis=-1)",
        "log_softmax": "scipy.special.log_softmax({}, axis=-1)",
        "sigmoid": "scipy.special.expit({})",
        "log": "np.log({})",
        "exp": "np.exp({})",
        "clip": "np.clip({}, {low}, {high})",
        "share": "{x} / {x}.sum(-1, keepdims=True)",
        "one_hot": "np.eye({classes})[{}]",
        "cast": "{}.astype('{dtype}').astype('float32')",
    },
    "torch": {
        "softmax": "torch.softmax({}, -1)",
        "log_softmax": "torch.log_softmax({}, -1)",
        "sigmoid": "torch.sigmoid({})",
        "log": "torch.log({})",
        "exp": "torch.exp({})",
        "clip": "torch.clamp({}, {low}, {high})",
        "share": "{x} / {x}.sum(-1, keepdim=True)",
        "one_hot": "F.one_hot({}, {classes}).to(y_pred.dtype)",
        "cast": "{}.to(torch.{dtype}).to(y_pred.dtype)",
    },
    "keras": {
        "softmax": "keras.ops.softmax({})",
        "log_softmax": "keras.ops.log_softmax({})",
        "sigmoid": "keras.ops.sigmoid({})",
        "log": "keras.ops.log({})",
        "exp": "keras.ops.exp({})",
        "clip": "keras.ops.clip({}, {low}, {high})",
        "share": "{x} / keras.ops.sum({x}, -1, keepdims=True)",
        "one_hot": "keras.ops.one_hot({}, {classes})",
        "cast": "keras.ops.cast(keras.ops.cast({}, '{dtype}'), 'float32')",
    },
    "optax": {
        "softmax": "jax.nn.softmax({})",
        "log_softmax": "jax.nn.log_softmax({})",
        "sigmoid": "jax.nn.sigmoid({})",
        "log": "jnp.log({})",
        "exp": "jnp.exp({})",
        "clip": "jnp.clip({}, {low}, {high})",
        "share": "{x} / {x}.sum(-1, keepdims=True)",
        "one_hot": "jax.nn.one_hot({}, {classes})",
        "cast": "{}.astype('{dtype}').astype('float32')",
    },
}
_PREFIXES = {
    "lossbridge": "lb.",
    "keras": "keras.losses.",
    "torch": "F.",
    "optax": "optax.",
    "sklearn": "sklearn.metrics.",
}

# (what the function does to y_pred, what the convention does): what to hand over in place of y_pred.
_HANDED: dict[tuple[str, str], tuple[str, ...]] = {
    ("none", "softmax"): ("softmax",),
    ("none", "sigmoid"): ("sigmoid",),
    ("none", "exp"): ("exp",),
    ("none", "softmax twice"): ("softmax", "softmax"),
    ("none", "sigmoid twice"): ("sigmoid", "sigmoid"),
    ("softmax", "softmax twice"): ("softmax",),
    ("sigmoid", "sigmoid twice"): ("sigmoid",),
    ("exp", "none"): ("log",),
    ("exp", "softmax"): ("log_softmax",),
    ("exp", "softmax twice"): ("softmax", "log_softmax"),
}


def calls(c: Convention, batch: Batch, setting: Setting) -> dict[str, str]:
    """The shortest call in each library that gives the convention's number for this batch, where there is one."""
    found: dict[str, str] = {}
    for peer in PEERS:
        text = call(peer, c, batch, setting)
        if text is not None and (peer.library not in found or len(text) < len(found[peer.library])):
            found[peer.library] = text
    return found


def call(peer: Peer, c: Convention, batch: Batch, setting: Setting) -> str | None:
    """None where the function cannot be brought to it by its options and a word around it."""
    own = canonical(peer.convention, setting)
    if own is None or own.cost != c.cost or c.dtype in ("float16", "bfloat16") or c.undefined != "zero":
        return None
    if setting.quantity != "scalar" or setting.rank > 2 or c.axis != -1:
        return None
    if setting.labels and not {"labels", "distributions"} & set(peer.targets):
        return None
    if not setting.labels and peer.targets == ("labels",):
        return None
    if peer.targets == ("none",) and c.cost != "entropy":
        return None
    w = _WORDS.get(peer.library, _WORDS["numpy"])
    options: list[str] = []

    pred = _handed(peer, own, c, w, options)
    if pred is None:
        return None
    target = "y_true"
    if setting.labels and "labels" not in peer.targets:
        target = w["one_hot"].format(target, classes=setting.classes)
    if c.target_activation != own.target_activation:
        known = peer.options.get("target_activation", {})
        handed = _HANDED.get((own.target_activation, c.target_activation))
        if isinstance(known, Mapping) and c.target_activation in known:
            options.append(known[c.target_activation])
        elif handed is not None:
            for word in handed:
                target = w[word].format(target)
        else:
            return None
    if c.dtype != "exact":
        half = c.dtype.split()[0]
        if half == "bfloat16" and w is _WORDS["numpy"]:
            return None
        pred = pred.replace("y_pred", w["cast"].format("y_pred", dtype=half))
        if not setting.hard:
            target = target.replace("y_true", w["cast"].format("y_true", dtype=half))

    for field in ("alpha", "gamma", "class_weight", "sample_weight", "left_out"):
        text = _option(peer, own, c, field, batch)
        if text is None:
            return None
        options.append(text)
    if c.label_smoothing:
        if "label_smoothing" not in peer.options:
            return None
        s = c.label_smoothing
        if c.smoothing_over == "K-1":
            outcomes = 2 if "binary" in c.cost else setting.classes
            s = s * outcomes / (outcomes - 1)
        options.append(f"label_smoothing={s:.10g}")

    if c.swapped:
        pred, target = (x.translate(str.maketrans({})) for x in (_exchange(pred), _exchange(target)))
    arguments = [target, pred] if peer.arguments[0] == "target" else [pred, target]
    if peer.targets == ("none",):
        arguments = [pred]
    after, reduction = _reduction(peer, own, c, batch)
    options.append(reduction)
    scaled = ""
    if c.base != math.e:
        if "base" in peer.options:
            options.append(f"base={c.base:g}")
        else:
            scaled = f" / math.log({c.base:g})"
    if peer.library == "scipy" and peer.function == "entropy":
        options.append("axis=-1")
    if peer.library == "torch" and setting.labels:
        arguments = [x if x != "y_true" else "y_true.long()" for x in arguments]
    written = [option for option in options if option]
    if peer.is_class:
        made = ", ".join(option for option in written if not option.startswith("sample_weight="))
        arguments += [option for option in written if option.startswith("sample_weight=")]
        text = f"{_called(peer)}({made})({', '.join(arguments)}){after}{scaled}"
    else:
        text = f"{_called(peer)}({', '.join([*arguments, *written])}){after}{scaled}"
    if c.outcome == "negated":
        return f"-{text}" if not scaled and "/" not in after else f"-({text})"
    if c.outcome == "perplexity":
        return f"math.exp({text.removesuffix(scaled)})"
    return text


def _exchange(text: str) -> str:
    return text.replace("y_true", "\0").replace("y_pred", "y_true").replace("\0", "y_pred")


def _called(peer: Peer) -> str:
    if peer.function == "log_loss_before_1_5":
        return "lossbridge.compat.sklearn.log_loss_before_1_5"
    if peer.library == "scipy":
        return f"scipy.{'stats' if peer.function == 'entropy' else 'special'}.{peer.function}"
    return _PREFIXES[peer.library] + peer.function


def _handed(peer: Peer, own: Convention, c: Convention, w: dict[str, str], options: list[str]) -> str | None:
    """What is handed over in place of y_pred, so that activation, renormalisation and clipping are the convention's."""
    known = peer.options.get("activation", {})
    pred = "y_pred"
    if isinstance(known, Mapping) and c.activation in known and c.activation != own.activation:
        options.append(known[c.activation])
        own = own.activated(c.activation)
    if own.activation == "exp" and c.logarithm == "missing":  # it takes logarithms, and is given none
        if c.activation == "none":
            return pred if _same_clip(own, c) else None
        if c.activation in ("softmax", "sigmoid"):
            return w[c.activation].format(pred) if _same_clip(own, c) else None
        return None
    if c.logarithm == "missing":
        return None
    if own.activation != c.activation:
        handed = _HANDED.get((own.activation, c.activation))
        if handed is None:
            return None
        inner, last = handed[:-1], handed[-1]
        for word in inner:
            pred = w[word].format(pred)
        if own.activation == "exp" and last == "log":
            moved = _moved(own, c, pred, w)
            return None if moved is None else w["log"].format(moved)
        pred = w[last].format(pred)
    if c.logarithm == "twice":
        if own.activation != "none" or c.activation != "none" or not _same_clip(own, c) or own.clip != "none":
            return None
        return f"-{w['log'].format(pred)}"
    if _same_clip(own, c):
        return pred
    if "epsilon" in peer.options and own.renormalise == c.renormalise and own.clip_first == c.clip_first:
        clips = peer.options.get("clip", {})
        if isinstance(clips, Mapping) and c.clip in clips and own.clip != "none":
            options.append(f"epsilon={c.epsilon if c.clip != 'none' else 0:.10g}")
            return pred
    return _moved(own, c, pred, w) if own.activation == "none" else None


def _same_clip(own: Convention, c: Convention) -> bool:
    names = ("renormalise", "clip", "epsilon", "clip_first")
    return all(getattr(own, name) == getattr(c, name) for name in names)


def _moved(own: Convention, c: Convention, pred: str, w: dict[str, str]) -> str | None:
    """`pred` renormalised and clipped before it is handed over, where the function itself does neither."""
    if own.clip != "none" or own.renormalise != "no" or c.renormalise == "both" or c.clip_first:
        return None
    if c.clip == "floor" or (c.clip == "added" and c.cost != "cross-entropy"):
        return None
    if c.clip in ("both", "lower") and c.cost in ("divergence", "convex divergence"):
        return None  # the targets would have to be clipped too
    if c.renormalise == "predictions":
        pred = w["share"].format(x=pred)
        pred = f"({pred})" if c.clip == "added" else pred
    if c.clip in ("both", "lower"):
        high = f"1 - {c.epsilon:.10g}" if c.clip == "both" else "1"
        return w["clip"].format(pred, low=f"{c.epsilon:.10g}", high=high)
    return f"{pred} + {c.epsilon:.10g}" if c.clip == "added" else pred


def _option(peer: Peer, own: Convention, c: Convention, field: str, batch: Batch) -> str | None:
    """The text that sets one field; None where nothing does."""
    wanted, known = getattr(c, field), peer.options.get(field)
    if isinstance(known, str):
        return "" if wanted == getattr(own, field) else known.format(wanted)
    if isinstance(known, Mapping):
        text = known.get(wanted)
        if field == "left_out":
            if batch.mask is None and batch.ignored is None:
                return ""
            return None if batch.mask is not None or text is None else text.format(ignored=batch.ignored)
        return text
    if field in ("alpha", "gamma", "class_weight", "sample_weight"):
        return "" if wanted == getattr(own, field) else None
    return "" if batch.mask is None and batch.ignored is None else None


def _reduction(peer: Peer, own: Convention, c: Convention, batch: Batch) -> tuple[str, str]:
    """What follows the call, and the option in it."""
    side = sides(c, batch)
    number = f"{divisor(c, side, side.rows(c.axis)):.10g}"
    events = batch.y_pred.ndim < 2
    weighted = c.class_weight or c.sample_weight
    if peer.returns == "scalar":
        known = peer.options.get("divisor", {})
        assert isinstance(known, Mapping)
        if c.divisor in known:
            return "", known[c.divisor]
        for same in ("weights",) if not weighted else ():
            if c.divisor == "samples" and same in known:
                return "", known[same]
        if c.divisor == "samples" and "axis 0" in known and batch.y_pred.ndim == 2:
            return "", known["axis 0"]
        if events and c.divisor == "samples" and "elements" in known:
            return "", known["elements"]
        if "one" in known:
            return f" / {number}", known["one"]
        classes = side.rows(c.axis).pred.shape[1]  # a sum of row means
        return f" * {classes / float(number):.10g}", known["classes"]
    if c.divisor == "one" and not (own.divisor == "elements" and peer.returns == "samples"):
        return ".sum()", ""
    natural = "elements" if peer.returns == "elements" or own.divisor == "elements" else "samples"
    if c.divisor == natural or (events and c.divisor == "samples"):
        return ".mean()", ""
    if peer.returns == "samples" and natural == "elements":
        classes = side.rows(c.axis).pred.shape[1]
        return f".sum() * {classes / float(number):.10g}", ""
    return f".sum() / {number}", ""
