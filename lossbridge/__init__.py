"""One loss, four frameworks, the same number.

>>> import lossbridge as lb
>>> y_true, y_pred = [[0, 1, 0], [0, 0, 1]], [[0.05, 0.95, 0], [0.1, 0.8, 0.1]]
>>> round(float(lb.categorical_crossentropy(y_true, y_pred)), 7)
1.1769392

Imports NumPy and no framework: arrays of PyTorch, TensorFlow and JAX are recognised by their types.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lossbridge.explanation import explain
from lossbridge.losses import (
    binary_crossentropy,
    binary_focal_crossentropy,
    categorical_crossentropy,
    categorical_focal_crossentropy,
    distillation_loss,
    divergence,
    entropy_from_logits,
    kl_divergence,
    linear_crossentropy,
    linear_distillation,
    linear_token_log_probs,
    log_loss,
    sparse_categorical_crossentropy,
    token_log_probs,
    topk_divergence,
    value_and_grad,
)
from lossbridge.version import __version__ as __version__

if TYPE_CHECKING:
    from lossbridge.tools.comparison import compare
    from lossbridge.tools.diagnosis import diagnose

__all__ = [
    "binary_crossentropy",
    "binary_focal_crossentropy",
    "categorical_crossentropy",
    "categorical_focal_crossentropy",
    "compare",
    "diagnose",
    "distillation_loss",
    "divergence",
    "entropy_from_logits",
    "explain",
    "kl_divergence",
    "linear_crossentropy",
    "linear_distillation",
    "linear_token_log_probs",
    "log_loss",
    "sparse_categorical_crossentropy",
    "token_log_probs",
    "topk_divergence",
    "value_and_grad",
]


def __getattr__(name: str) -> Any:
    """Imports what follows on first use: `diagnose` and `compare` would double the time of the import."""
    if name == "diagnose":
        from lossbridge.tools.diagnosis import diagnose

        return diagnose
    if name == "compare":
        from lossbridge.tools.comparison import compare

        return compare
    if name == "compat":  # as the calls that are printed write it: lossbridge.compat.sklearn.log_loss_before_1_5
        return importlib.import_module("lossbridge.compat")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
