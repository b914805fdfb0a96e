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
        return f"PyTorch has no {rule}"
    if not pred.numel():
        return "there are no entries"
    if type(pred) is not Tensor or type(target) is not Tensor or pred.dtype is not torch.float32:
        return "not plain tensors of float32"
    if pred.ndim != 2 or r.axis != 1 or pred.shape[1] < 2:
        return "not rows of two classes or more"
    if target.dtype is not (torch.int64 if rule == softmax.LABELS.name else torch.float32):
        return "labels are not int64, or targets not float32"
    return _refuses_options(r, rule) or _refuses_spread(pred)


def _refuses_options(r: Request, rule: str) -> str:
    if r.weight is not None or r.normalizer is not None or r.inplace_gradient:
        return "weights, a normalizer or a gradient in place"
    if r.valid is not None and (rule != softmax.LABELS.name or not r.valid.any()):
        return "a mask"
    if r.options.get("class_weight") is not None or r.options.get("pos_weight") is not None:
        return "class weights or pos_weight"
    if r.reduction == "sum":  # a mean with a normalizer, which goes elsewhere, is the sum divided, to the bit
        return "a sum"
    if rule == bernoulli.LOGITS.name and (r.reduction in ("none", None) or r.options["label_smoothing"]):
        return "not the mean of outcomes as they are"
    return ""


def _refuses_spread(pred: Tensor) -> str:
    low, high = pred.detach().aminmax()
    return "" if float(high) - float(low) < WIDEST else f"logits lie {WIDEST:g} or more apart, or are no numbers"


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
