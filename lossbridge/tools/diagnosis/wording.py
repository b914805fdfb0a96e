"""Conventions in words. Evaluates nothing but the divisor that it prints."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import NamedTuple

from lossbridge.conventions import Convention, Cost, Peer
from lossbridge.tools.diagnosis.batch import Batch, Quantity
from lossbridge.tools.diagnosis.canonical import BINARY, DIVERGENCES, MIXTURES, holds
from lossbridge.tools.diagnosis.evaluate import as_read, divisor
from lossbridge.tools.diagnosis.hypotheses import Hypothesis, Preset
from lossbridge.tools.diagnosis.solving import counts

LIBRARIES = {
    "lossbridge": "lossbridge's",
    "keras": "Keras'",
    "torch": "PyTorch's",
    "optax": "optax's",
    "sklearn": "scikit-learn's",
    "scipy": "SciPy's",
    # Further ones, of which there are no calls.
    "tf1": "TensorFlow 1's",
    "paddle": "Paddle's",
    "mlx": "MLX's",
    "mindspore": "MindSpore's",
    "tinygrad": "tinygrad's",
    "onnx": "ONNX Runtime's",
    "onnx_reference": "ONNX reference's",
    "chainer": "Chainer's",
    "mxnet": "MXNet's",
    "timm": "timm's",
    "torchvision": "torchvision's",
    "monai": "MONAI's",
    "kornia": "Kornia's",
    "smp": "segmentation-models'",
    "fastai": "fastai's",
    "torchmetrics": "torchmetrics'",
    "ignite": "ignite's",
    "xgboost": "XGBoost's",
    "lightgbm": "LightGBM's",
    "catboost": "CatBoost's",
    "river": "river's",
    "statsmodels": "statsmodels'",
    "thinc": "thinc's",
    "vowpalwabbit": "Vowpal Wabbit's",
}

_ACTIVATIONS = {
    "none": "y_pred taken as probabilities",
    "softmax": "y_pred taken as logits (softmax)",
    "sigmoid": "y_pred taken as logits (sigmoid)",
    "exp": "y_pred taken as log-probabilities",
    "softmax twice": "softmax applied twice",
    "sigmoid twice": "sigmoid applied twice",
}
_TARGET_ACTIVATIONS = {
    "none": "y_true taken as probabilities",
    "softmax": "y_true taken as logits (softmax)",
    "exp": "y_true taken as log-probabilities",
}
# By what y_pred holds.
_MISTAKES = {
    ("probabilities", "softmax"): "softmax applied to y_pred, which holds probabilities already",
    ("probabilities", "sigmoid"): "sigmoid applied to y_pred, which holds probabilities already",
    ("probabilities", "exp"): "the logarithm missing: y_pred, which holds probabilities, taken as log-probabilities",
    ("logits", "none"): "y_pred, which holds logits, taken as probabilities",
    ("logits", "exp"): "y_pred, which holds logits, taken as log-probabilities (log_softmax missing)",
    ("log-probabilities", "none"): "y_pred, which holds log-probabilities, taken as probabilities",
}
_COSTS = {
    "squared": "the squared error (t − p)², as the Brier score, instead of logarithms",
    "jensen-shannon": "the Jensen–Shannon divergence: half the divergence of each from their mean",
    "total variation": "the total variation: half the sum of |t − p|",
}
_OUTCOMES = {"loss": "", "negated": "with the sign turned", "perplexity": "exp of it, the perplexity"}
_LEFT_OUT = {
    "removed": "what is left out not counted in the mean",
    "zero": "what is left out still counted in the mean",
    "kept": "nothing left out",
}


def name(preset: Preset, quantity: Quantity = "scalar") -> str:
    """Such as: PyTorch's `kl_div(reduction='batchmean')` of log(y_pred)."""
    expressions = [x for x in (preset.pred, preset.target) if x not in ("y_pred", "y_true")]
    of = f" of {' and '.join(expressions)}" if expressions else ""
    return f"{LIBRARIES[preset.peer.library]} `{written(preset.peer, preset.options, quantity)}`{of}"


def written(peer: Peer, c: Convention, quantity: Quantity = "scalar") -> str:
    """The function with the options that set `c`: "kl_div(reduction='batchmean')"."""
    unreduced = quantity in ("samples", "elements")
    texts = [text for text in options(peer, c, reduced=not unreduced) if text]
    if unreduced and peer.returns == "scalar":
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
    """How the options of the peer that choose among named values are written for `c`."""
    texts = []
    for field, values in peer.options.items():
        if isinstance(values, Mapping) and field not in ("left_out", "clip") and (reduced or field != "divisor"):
            texts.append(str(values.get(getattr(c, field), "")))
    return texts


class Words(NamedTuple):
    """An explanation: the function, and what is said of it."""

    function: str
    said: str

    def __str__(self) -> str:
        return f"{self.function}{self.said}"


def words(h: Hypothesis, batch: Batch, quantity: Quantity) -> Words:
    """The whole explanation, in one line."""
    peer, options = h.preset.peer, h.preset.options
    if quantity == "samples" and batch.y_pred.ndim < 2:
        quantity = "elements"  # the values of a vector's samples
    function = name(h.preset, quantity)
    if quantity == "elements" and not peer.elementwise:
        function += " before its sum over the classes"
    phrases = []
    both = options.divisor == "elements" == h.convention.divisor and quantity in ("scalar", "gradient")
    if both and options.cost in DIVERGENCES:
        phrases.append(f": divides by N·C; {_remedy(peer, batch)}")
    if options.left_out == "zero" == h.convention.left_out:
        counted = "still counted in the mean" if quantity in ("scalar", "gradient") else "0"
        phrases.append(f": what is left out is {counted}")
    if peer.is_further:
        plain = Convention(activation=h.own.activation, target_activation=h.own.target_activation)
        without: dict[str, Cost] = {**dict.fromkeys(MIXTURES, "divergence"), "squared": "cross-entropy"}
        plain = replace(plain, cost=without.get(h.own.cost, h.own.cost))
        rules = differences(plain, _unchanged(h.own, h.convention, plain), batch)
        phrases += [f": {'; '.join(rules)}"] if rules else []
    differing = differences(h.own, h.convention, batch)
    if differing:
        phrases.append(("; and " if phrases else ", but ") + "; ".join(differing))
    return Words(function, "".join(phrases))


def _unchanged(own: Convention, new: Convention, plain: Convention) -> Convention:
    """`own`, but as `plain` in what `new` changes: that is said of `new`."""
    changed = [f.name for f in fields(Convention) if getattr(own, f.name) != getattr(new, f.name)]
    return replace(own, **{name: getattr(plain, name) for name in changed})


def alike(explanations: Sequence[Words]) -> tuple[list[str], list[str]]:
    """Of those after the first: the functions of which the same is said, and the explanations that say more."""
    functions = [words.function for words in explanations[1:] if words.said == explanations[0].said]
    return functions, [str(words) for words in explanations[1:] if words.said != explanations[0].said]


def _remedy(peer: Peer, batch: Batch) -> str:
    """What to do about a divergence that is divided by N·C instead of N."""
    multiply = f"multiply by C = {batch.classes}"
    if peer.library != "torch":
        return multiply
    if batch.y_pred.ndim < 3:
        return f"use `batchmean`, or {multiply}"
    return f"{multiply} (`batchmean` divides by the size of axis 0, {batch.y_pred.shape[0]}, alone)"


def differences(old: Convention, new: Convention, batch: Batch) -> list[str]:
    """What `new` does differently from `old`, one phrase per change."""
    changed = {f.name for f in fields(Convention) if getattr(old, f.name) != getattr(new, f.name)}
    if new.activation != old.activation and old.activated(new.activation).clip == new.clip:
        changed -= {"clip", "epsilon", "renormalise"}  # these follow from the activation: logits are not clipped
    phrases = _losses(changed, new)
    if "cost" in changed and new.cost in _COSTS:
        changed -= {"clip", "epsilon", "renormalise"}  # there is no logarithm to be finite
    if "swapped" in changed:
        phrases.append("the arguments swapped: y_pred read as targets, y_true as predictions")
    if "axis" in changed:
        phrases.append(f"classes along axis {new.axis}")
    if "activation" in changed:
        phrases.append(_MISTAKES.get((holds(batch.y_pred), new.activation), _ACTIVATIONS[new.activation]))
    if "target_activation" in changed:
        phrases.append(_TARGET_ACTIVATIONS[new.target_activation])
    if changed & {"renormalise", "clip_first"}:
        both = "targets and predictions" if new.renormalise == "both" else "rows"
        order = " after clipping" if new.clip_first else ""
        phrases.append("rows not renormalised" if new.renormalise == "no" else f"{both} renormalised to sum 1{order}")
    if changed & {"clip", "epsilon"}:
        phrases.append(clipping(new))
    if "logarithm" in changed:
        phrases.append("the logarithm missing" if new.logarithm == "missing" else "the logarithm taken twice")
    if changed & {"label_smoothing", "smoothing_over"}:
        phrases.append(smoothing(new))
    squared = new.factor not in (1.0, old.factor) and math.isclose(new.factor, new.temperature**2)
    changed -= {"factor"} if squared and "temperature" in changed else set()
    phrases += _logits(changed, new, squared)
    if "pos_weight" in changed and new.pos_weight:
        phrases.append(f"pos_weight = {new.pos_weight:g}")
    for coefficient, sign in (("alpha", "α"), ("gamma", "γ")):
        if coefficient in changed:
            x = getattr(new, coefficient)
            phrases.append(f"{sign} = {x:g}" if x is not None else f"no {sign}")
    if "class_weight" in changed:
        phrases.append("the class weights used" if new.class_weight else "the class weights not used")
    if "sample_weight" in changed:
        phrases.append("the sample weights used" if new.sample_weight else "the sample weights not used")
    if "weighted" in changed:
        phrases.append("the class weights as weights of rows" if new.weighted == "rows" else "weights of terms")
    if "rows" in changed:
        phrases.append(new.rows)
    if "left_out" in changed:
        phrases.append(_LEFT_OUT[new.left_out])
    if "base" in changed:
        phrases.append({2.0: "logarithms to base 2 (bits)", 10.0: "logarithms to base 10"}.get(new.base, "in nats"))
    phrases += _sizes(changed, new, batch)
    if "dtype" in changed:
        dtype = "float64" if new.dtype == "exact" else new.dtype.split()[0]
        phrases.append(f"inputs rounded to {dtype}" if new.dtype.endswith("inputs") else f"computed in {dtype}")
    if "outcome" in changed:
        phrases.append(_OUTCOMES[new.outcome])
    if "undefined" in changed:
        left = "left undefined" if new.undefined == "nan" else "taken as 0"
        phrases.append(f"0·∞, and a mean over nothing, {left}")
    return phrases


def _losses(changed: set[str], new: Convention) -> list[str]:
    """Another loss; and of the Jensen–Shannon divergence β, and its scale."""
    phrases = [_COSTS[new.cost]] if "cost" in changed and new.cost in _COSTS else []
    if "beta" in changed and new.cost == "jensen-shannon":
        m = "(1 − β) t + β p, as in TRL 0.14" if new.crossed else "β t + (1 − β) p"
        mixture = f"β KL(t ‖ m) + (1 − β) KL(p ‖ m), m = {m}"
        phrases = [f"{'the Jensen–Shannon divergence with ' if phrases else ''}β = {new.beta:g}: {mixture}"]
    if "scale" in changed and new.cost == "jensen-shannon":
        divided = "divided by" if new.scale == "divergence" else "not divided by"
        phrases.append(f"{divided} β (1 − β) = {new.beta * (1 - new.beta):g}")
    return phrases


def _logits(changed: set[str], new: Convention, squared: bool) -> list[str]:
    """What is done with logits besides softmax or sigmoid. `squared`: the result is multiplied by T²."""
    phrases = []
    if "temperature" in changed:
        divided = "the logits divided by it" if new.target_activation != "softmax" else "both logits divided by it"
        phrases.append(f"temperature T = {_temperature(new)}, {divided}{', the result times T²' if squared else ''}")
    if "softcap" in changed:
        phrases.append(f"softcap c = {new.softcap:g}, the logits z taken as c·tanh(z / c)")
    if "z_loss" in changed:
        phrases.append(f"z-loss ζ = {new.z_loss:g}, ζ·lse² added, lse = log Σ exp z")
    return phrases


def _temperature(c: Convention) -> str:
    """With its inverse where that is what is round: 0.333333 = 1/3."""
    temperature, scale = f"{c.temperature:g}", f"{c.logit_scale:.3g}"
    is_round = math.isclose(float(f"{c.temperature:.3g}"), c.temperature)
    return temperature if is_round or not math.isclose(float(scale), c.logit_scale) else f"{temperature} = 1/{scale}"


def _sizes(changed: set[str], new: Convention, batch: Batch) -> list[str]:
    """What the sum is divided and multiplied by, and what is added."""
    phrases = []
    known = counts(batch) if "factor" in changed and new.divisor == "one" else {}
    count = next((n for n in known if math.isclose(n * new.factor, 1, rel_tol=1e-9)), None)
    if "cost" in changed and new.cost == "cross-entropy" and new.divisor == "one":
        return [f"only the positives, divided by their number, {1 / new.factor:g}"]
    if "pos_weight" in changed and new.pos_weight == 0 and new.divisor == "one":
        return [f"only the negatives, divided by their number, {1 / new.factor:g}"]
    if count is not None:
        return [f"divided by {known[count]} = {count:g}"]
    if new.divisor == "one" and "factor" in changed and new.factor < 1 and _is_whole(1 / new.factor):
        count = 1 / new.factor
        if new.cost in BINARY and batch.classes > 1 and _is_whole(count / batch.classes):
            return [f"divided by {count / batch.classes:.0f} times C, a normalizer of means over the classes"]
        return [f"divided by {count:.0f}, a normalizer such as the tokens of the whole batch"]
    if new.divisor == "weights" and math.isclose(new.factor * batch.classes, 1) and batch.classes > 1:
        return ["divided by the sum of the weights times C"]
    if "divisor" in changed:
        phrases.append(division(new, batch))
    if "factor" in changed:
        phrases.append(multiplication(new.factor))
    if "offset" in changed:
        added = "added" if new.offset > 0 else "subtracted"
        phrases.append(f"{abs(new.offset):g} {added}, a constant such as a penalty")
    return phrases


def _is_whole(x: float) -> bool:
    return abs(x - round(x)) < 1e-9 * max(abs(x), 1)


def multiplication(factor: float) -> str:
    """Such as: multiplied by 4, as the sum over 4 accumulation steps or processes."""
    if factor < 0:
        return f"{multiplication(-factor)}; with the sign turned"
    k = factor if factor > 1 else 1 / factor
    if not _is_whole(k):
        return f"multiplied by {factor:g}, as by a weight of the whole loss"
    if factor < 1:
        return f"divided by {k:g} (multiplied by {factor:g}), as a mean over {k:g} accumulation steps or processes"
    why = f"as the sum over {k:g} accumulation steps or processes"
    if k == 2:
        why = "as a deviance, or two accumulation steps"
    return f"multiplied by {k:g}, {'as by loss scaling' if k > 64 else why}"


def clipping(c: Convention) -> str:
    if c.clip == "arguments":
        return floor(float(c.epsilon))
    epsilon = c.epsilon if isinstance(c.epsilon, str) else f"{c.epsilon:.3g}"
    return {
        "none": "nothing clipped",
        "both": f"probabilities clipped to [{epsilon}, 1 − {epsilon}]",
        "lower": f"probabilities clipped to [{epsilon}, 1]",
        "added": f"log(p + {epsilon})",
    }[c.clip]


def floor(epsilon: float) -> str:
    """Of each logarithm, or of its argument."""
    lowest = math.log(epsilon)
    if epsilon < 1e-20 and abs(lowest - round(lowest)) < 1e-6:
        return f"logarithms of at least −{-lowest:.0f}"
    return f"each logarithm's argument at least {epsilon:.3g}: log(max(p, {epsilon:.3g})), and so of 1 − p"


def smoothing(c: Convention) -> str:
    if not c.label_smoothing:
        return "no label smoothing"
    outcomes = "s/2 to both outcomes" if "binary" in c.cost else "s/K to every class"
    term = {"K": outcomes, "K-1": "s/(K − 1) to each wrong class", "C": "s/C to every outcome, of C classes"}
    term["added"] = "s/K added to each wrong class, and nothing taken from the right one: t (1 − s/K) + s/K"
    return f"label smoothing s = {c.label_smoothing:g}, {term[c.smoothing_over]}"


def division(c: Convention, batch: Batch) -> str:
    """What the sum is divided by, in words and as a number."""
    if c.divisor == "one":
        return "summed, not averaged"
    read = as_read(c, batch)
    number = f"{divisor(c, read, read.rows(c.axis)):.7g}"
    words = {
        "samples": "the number of samples, N",
        "elements": "the number of elements, N·C",
        "weights": "the sum of the weights",
        "nonzero weights": "the number of weights that are not 0",
        "classes": "the number of classes, C",
        "axis 0": "the size of axis 0",
        "squared samples": "the square of the number of samples, N²",
    }[c.divisor]
    return f"divided by {words} = {number}"
