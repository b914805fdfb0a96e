"""Conventions in words. Computes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

from lossbridge.conventions import Convention, Peer
from lossbridge.tools.diagnosis.canonical import DIVERGENCES, holds
from lossbridge.tools.diagnosis.evaluate import Batch, Quantity, divisor, sides
from lossbridge.tools.diagnosis.hypotheses import Hypothesis, Preset

LIBRARIES = {
    "lossbridge": "lossbridge's",
    "keras": "Keras'",
    "torch": "PyTorch's",
    "optax": "optax's",
    "sklearn": "scikit-learn's",
    "scipy": "SciPy's",
}

_ACTIVATIONS = {
    "none": "y_pred taken as probabilities",
    "softmax": "y_pred taken as logits (softmax)",
    "sigmoid": "y_pred taken as logits (sigmoid)",
    "exp": "y_pred taken as log-probabilities",
    "softmax twice": "softmax applied twice",
    "sigmoid twice": "sigmoid applied twice",
}
# Where it is known what y_pred holds.
_MISTAKES = {
    ("probabilities", "softmax"): "softmax applied to y_pred, which holds probabilities already",
    ("probabilities", "sigmoid"): "sigmoid applied to y_pred, which holds probabilities already",
    ("probabilities", "exp"): "the logarithm missing: y_pred, which holds probabilities, taken as log-probabilities",
    ("logits", "none"): "y_pred, which holds logits, taken as probabilities",
    ("logits", "exp"): "y_pred, which holds logits, taken as log-probabilities (log_softmax missing)",
    ("log-probabilities", "none"): "y_pred, which holds log-probabilities, taken as probabilities",
}
_OUTCOMES = {"loss": "", "negated": "with the sign turned", "perplexity": "exp of it, the perplexity"}
_LEFT_OUT = {
    "removed": "what is left out not counted in the mean",
    "zero": "what is left out still counted in the mean",
    "kept": "nothing left out",
}


def name(preset: Preset, quantity: Quantity = "scalar") -> str:
    """PyTorch's `kl_div(reduction='batchmean')` of log(y_pred)."""
    made = [x for x in (preset.handed, preset.handed_target) if x not in ("y_pred", "y_true")]
    of = f" of {' and '.join(made)}" if made else ""
    return f"{LIBRARIES[preset.peer.library]} `{written(preset.peer, preset.options, quantity)}`{of}"


def written(peer: Peer, c: Convention, quantity: Quantity = "scalar") -> str:
    """The function with those of its options that `c` asks for: "kl_div(reduction='batchmean')"."""
    single = quantity in ("samples", "elements")
    texts = [text for text in options(peer, c, reduced=not single) if text]
    if single and peer.returns == "scalar":
        texts.append("reduction='none'")
    call = f"{peer.function}({', '.join(texts)})" if texts else peer.function
    return call + _reduced(peer, c, quantity)


def _reduced(peer: Peer, c: Convention, quantity: Quantity) -> str:
    mean = c.divisor == "elements"
    if quantity == "samples":
        return (".mean(-1)" if mean else ".sum(-1)") if peer.elementwise else ""
    if quantity == "elements" or peer.returns == "scalar":
        return ""
    if c.divisor == "one" or (c.divisor == "classes" and peer.returns == "samples"):
        return ".sum()"
    return ".sum(-1).mean()" if peer.returns == "elements" and c.divisor == "samples" else ".mean()"


def options(peer: Peer, c: Convention, *, reduced: bool = True) -> list[str]:
    """How the peer's own options of one-of-several kinds are written for `c`."""
    texts = []
    for field, known in peer.options.items():
        if isinstance(known, Mapping) and field not in ("left_out", "clip") and (reduced or field != "divisor"):
            texts.append(str(known.get(getattr(c, field), "")))
    return texts


def words(h: Hypothesis, batch: Batch, quantity: Quantity) -> str:
    """The whole explanation, in one line."""
    peer, options = h.preset.peer, h.preset.options
    if quantity == "samples" and batch.y_pred.ndim < 2:
        quantity = "elements"  # they are the same
    said = [name(h.preset, quantity)]
    if quantity == "elements" and not peer.elementwise:
        said[0] += " before its sum over the classes"
    both = options.divisor == "elements" == h.convention.divisor and quantity in ("scalar", "gradient")
    if both and options.cost in DIVERGENCES:
        said.append(f": divides by N·C; {_cure(peer, batch)}")
    if options.left_out == "zero" == h.convention.left_out:
        counted = "still counted in the mean" if quantity in ("scalar", "gradient") else "0"
        said.append(f": what is left out is {counted}")
    differing = differences(h.own, h.convention, batch)
    if differing:
        said.append((", but " if len(said) == 1 else "; and ") + "; ".join(differing))
    return "".join(said)


def _cure(peer: Peer, batch: Batch) -> str:
    """Of a divergence that was divided by the classes too."""
    multiply = f"multiply by C = {batch.classes}"
    if peer.library != "torch":
        return multiply
    if batch.y_pred.ndim < 3:
        return f"use `batchmean`, or {multiply}"
    return f"{multiply} (`batchmean` divides by the size of axis 0, {batch.y_pred.shape[0]}, alone)"


def differences(old: Convention, new: Convention, batch: Batch) -> list[str]:
    """What is done otherwise under `new`, a phrase a thing."""
    changed = {f.name for f in fields(Convention) if getattr(old, f.name) != getattr(new, f.name)}
    if new.activation != old.activation and old.activated(new.activation).clip == new.clip:
        changed -= {"clip", "epsilon", "renormalise"}  # from logits nothing is clipped: no news of its own
    said = []
    if "swapped" in changed:
        said.append("the arguments swapped: y_pred read as targets, y_true as predictions")
    if "axis" in changed:
        said.append(f"classes along axis {new.axis}")
    if "activation" in changed:
        said.append(_MISTAKES.get((holds(batch.y_pred), new.activation), _ACTIVATIONS[new.activation]))
    if "target_activation" in changed:
        said.append(
            {
                "none": "y_true taken as probabilities",
                "softmax": "y_true taken as logits (softmax)",
                "exp": "y_true taken as log-probabilities",
            }[new.target_activation]
        )
    if changed & {"renormalise", "clip_first"}:
        both = "targets and predictions" if new.renormalise == "both" else "rows"
        order = " after clipping" if new.clip_first else ""
        said.append("rows not renormalised" if new.renormalise == "no" else f"{both} renormalised to sum 1{order}")
    if changed & {"clip", "epsilon"}:
        said.append(clipping(new))
    if "logarithm" in changed:
        said.append("the logarithm missing" if new.logarithm == "missing" else "the logarithm taken twice")
    if changed & {"label_smoothing", "smoothing_over"}:
        said.append(smoothing(new))
    said += [f"{sign} = {getattr(new, field)}" for field, sign in (("alpha", "α"), ("gamma", "γ")) if field in changed]
    if "class_weight" in changed:
        said.append("the class weights used" if new.class_weight else "the class weights not used")
    if "sample_weight" in changed:
        said.append("the sample weights used" if new.sample_weight else "the sample weights not used")
    if "left_out" in changed:
        said.append(_LEFT_OUT[new.left_out])
    if "base" in changed:
        said.append({2.0: "logarithms to base 2 (bits)", 10.0: "logarithms to base 10"}.get(new.base, "in nats"))
    if "divisor" in changed:
        said.append(division(new, batch))
    if "dtype" in changed:
        dtype = "float64" if new.dtype == "exact" else new.dtype.split()[0]
        said.append(f"inputs rounded to {dtype}" if new.dtype.endswith("inputs") else f"computed in {dtype}")
    if "outcome" in changed:
        said.append(_OUTCOMES[new.outcome])
    if "undefined" in changed:
        said.append("0·∞, and a mean over nothing, left undefined")
    return said


def clipping(c: Convention) -> str:
    epsilon = c.epsilon if isinstance(c.epsilon, str) else f"{c.epsilon:.3g}"
    return {
        "none": "nothing clipped",
        "both": f"probabilities clipped to [{epsilon}, 1 − {epsilon}]",
        "lower": f"probabilities clipped to [{epsilon}, 1]",
        "added": f"log(p + {epsilon})",
        "floor": "logarithms of at least −100",
    }[c.clip]


def smoothing(c: Convention) -> str:
    if not c.label_smoothing:
        return "no label smoothing"
    share = "s/K to every class" if c.smoothing_over == "K" else "s/(K − 1) to each wrong class"
    return f"label smoothing s = {c.label_smoothing:g}, {share}"


def division(c: Convention, batch: Batch) -> str:
    """What the sum is divided by, with the number."""
    if c.divisor == "one":
        return "summed, not averaged"
    side = sides(c, batch)
    number = f"{divisor(c, side, side.rows(c.axis)):.7g}"
    meant = {
        "samples": "the number of samples, N",
        "elements": "the number of elements, N·C",
        "weights": "the sum of the weights",
        "classes": "the number of classes, C",
        "axis 0": "the size of axis 0",
    }[c.divisor]
    return f"divided by {meant} = {number}"
