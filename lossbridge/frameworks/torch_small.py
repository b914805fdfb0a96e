"""PyTorch on CPUs, eager: losses of a few numbers, by PyTorch's own functions in float64.

So few that the number of operations decides, and float64 has digits to spare where the logits of a batch are near
enough to each other. (An autograd.Function of losses and gradients takes longer than PyTorch's nodes.)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lossbridge.maths import bernoulli, softmax
from lossbridge.spec import Request

# Up to so many elements; above, blocks are as quick.
MOST = 1 << 16
# Logits that are no further apart leave every loss, p and 1 − p at least 1e-8, and so eight digits of them.
WIDEST = 18.0

RULES = (softmax.LABELS.name, softmax.DISTRIBUTIONS.name, bernoulli.LOGITS.name)


def refuses(r: Request) -> str:
    """Why this request is not computed here; "" if it is. The arrays are ordinary CPU tensors, of MOST entries."""
    pred, target, rule = r.pred, r.target, r.rule.name
    if rule not in RULES:
        return f"none of PyTorch's functions is used for {rule}"
    if not pred.numel():
        return "there are no entries"
    if type(pred) is not Tensor or type(target) is not Tensor:
        return "a parameter of a module is given, not a plain tensor"
    if pred.dtype is not torch.float32:
        return f"the predictions are {str(pred.dtype).removeprefix('torch.')}, not float32"
    if pred.ndim != 2 or r.axis != 1 or pred.shape[1] < 2:
        return f"the predictions have shape {tuple(pred.shape)}, not (rows, classes) with two classes or more"
    dtype = torch.int64 if rule == softmax.LABELS.name else torch.float32
    if target.dtype is not dtype:
        return f"the target is {str(target.dtype).removeprefix('torch.')}, not {str(dtype).removeprefix('torch.')}"
    return _refuses_options(r, rule) or _refuses_spread(pred)


def _refuses_options(r: Request, rule: str) -> str:
    for name in ("class_weight", "pos_weight"):
        if r.options.get(name) is not None:
            return f"{name} is given"
    if r.weight is not None:
        return "sample_weight is given"
    if r.normalizer is not None:
        return "normalizer is given"
    if r.inplace_gradient:
        return "the gradient is written in place"
    if r.valid is not None and (rule != softmax.LABELS.name or not r.valid.any()):
        return "a mask is given" if rule != softmax.LABELS.name else "no label is valid"
    if r.reduction == "sum":  # a mean with a normalizer, which goes elsewhere, is the sum divided, to the bit
        return "the losses are summed, not averaged"
    if rule == bernoulli.LOGITS.name and (r.reduction in ("none", None) or r.options["label_smoothing"]):
        return "label_smoothing is given" if r.options["label_smoothing"] else "the losses are not averaged"
    return ""


def _refuses_spread(pred: Tensor) -> str:
    low, high = pred.detach().aminmax()
    spread = float(high) - float(low)
    return "" if spread < WIDEST else f"the logits span {spread:.3g}; float64 has digits to spare below {WIDEST:g}"


def losses(r: Request) -> Tensor:
    return _computed(r, "none")


def mean(r: Request) -> Tensor:
    return _computed(r, "mean")


def _computed(r: Request, reduction: str) -> Tensor:
    wide = r.pred.double()
    if r.rule.name == bernoulli.LOGITS.name:
        return F.binary_cross_entropy_with_logits(wide, r.target.double(), reduction=reduction).float()
    target = r.target.double() if r.rule.name == softmax.DISTRIBUTIONS.name else r.target
    if r.valid is not None:
        target = torch.where(r.valid, target, -100)  # which PyTorch ignores
    smoothing = r.options.get("label_smoothing", 0.0)
    return F.cross_entropy(wide, target, reduction=reduction, label_smoothing=smoothing).float()
