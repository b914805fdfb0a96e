"""PyTorch on CPUs, eager: losses of a few numbers (see Shortcut in backend.py). Defines no loss.

So few that the number of operations decides: PyTorch's own functions in float64, which has digits to spare where the
logits of a batch are near enough to each other. Whatever is not plain takes the usual road; so do labels out of range,
which PyTorch refuses here by itself. (An autograd.Function of value and slope takes longer than PyTorch's nodes.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

# Up to so many elements; above, a sweep is as quick.
MOST = 1 << 16
# Logits that are no further apart leave every loss, p and 1 − p at least 1e-8, and so eight digits of them.
WIDEST = 18.0

# A sum is left to the usual road, which a mean with a normalizer takes: the two are to be the same to the bit.
_REDUCTIONS = {
    "sum_over_batch_size": "mean",
    "mean": "mean",
    "mean_with_sample_weight": "mean",
    "none": "none",
    None: "none",
}


def _plain(target: Any, pred: Any, axis: int) -> bool:
    """Whether these are ordinary float32 rows, few and near, with nothing at work but reverse-mode differentiation."""
    if not (type(pred) is Tensor and type(target) is Tensor) or torch.compiler.is_compiling():
        return False
    if pred.dtype is not torch.float32 or pred.ndim != 2 or type(axis) is not int or axis not in (-1, 1):
        return False
    if not 0 < pred.numel() <= MOST or pred.shape[1] < 2 or not (pred.is_cpu and target.is_cpu):
        return False
    if forward_ad._current_level >= 0 or torch.jit.is_tracing() or torch._C._are_functorch_transforms_active():
        return False
    if torch._C._len_torch_dispatch_stack():  # something looks at every operation
        return False
    low, high = pred.detach().aminmax()
    return bool(high - low < WIDEST)


def _labels(
    target: Any,
    pred: Any,
    axis: int,
    ignore_class: int | None,
    reduction: str | None,
    *,
    from_logits: bool,
    epsilon: float,
    label_smoothing: float = 0.0,
) -> Tensor | None:
    how = _REDUCTIONS.get(reduction)
    if not from_logits or how is None or not _plain(target, pred, axis):
        return None
    if target.dtype is not torch.int64 or target.shape != pred.shape[:1]:
        return None
    if ignore_class is None:
        ignored = -1
        if target.min() < 0:  # or PyTorch would ignore it
            return None
    elif type(ignore_class) is int and -(2**63) <= ignore_class < 2**63:
        ignored = ignore_class
    else:
        return None
    try:
        loss = F.cross_entropy(
            pred.double(), target, ignore_index=ignored, reduction=how, label_smoothing=label_smoothing
        )
    except IndexError:  # out of range
        return None
    if ignore_class is not None and how == "mean" and loss.isnan():  # a mean of nothing
        return None
    return loss.float()


def _distributions(
    target: Any,
    pred: Any,
    axis: int,
    ignore_class: None,
    reduction: str | None,
    *,
    from_logits: bool,
    epsilon: float,
    label_smoothing: float,
) -> Tensor | None:
    how = _REDUCTIONS.get(reduction)
    if not from_logits or how is None or not _plain(target, pred, axis):
        return None
    if target.dtype is not torch.float32 or target.shape != pred.shape:
        return None
    return F.cross_entropy(pred.double(), target.double(), reduction=how, label_smoothing=label_smoothing).float()


def _binary(
    target: Any,
    pred: Any,
    axis: int,
    ignore_class: None,
    reduction: str | None,
    *,
    from_logits: bool,
    epsilon: float,
    label_smoothing: float,
) -> Tensor | None:
    """The mean alone: ours is of rows, PyTorch's of entries."""
    if not from_logits or label_smoothing or not _plain(target, pred, axis):
        return None
    if target.dtype is not torch.float32 or target.shape != pred.shape or _REDUCTIONS.get(reduction) != "mean":
        return None
    return F.binary_cross_entropy_with_logits(pred.double(), target.double()).float()


SHORTCUTS: dict[str, Callable[..., Tensor | None]] = {
    "sparse_categorical_crossentropy": _labels,
    "label_log_loss": _labels,
    "categorical_crossentropy": _distributions,
    "binary_crossentropy": _binary,
}
