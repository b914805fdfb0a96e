"""One loss, four frameworks, the same number.

>>> import lossbridge as lb
>>> y_true, y_pred = [[0, 1, 0], [0, 0, 1]], [[0.05, 0.95, 0], [0.1, 0.8, 0.1]]
>>> round(float(lb.categorical_crossentropy(y_true, y_pred)), 7)
1.1769392

Imports NumPy and no framework: arrays of PyTorch, TensorFlow and JAX are recognised when they arrive.
"""

from lossbridge.losses import (
    binary_crossentropy,
    binary_focal_crossentropy,
    categorical_crossentropy,
    categorical_focal_crossentropy,
    distillation_loss,
    kl_divergence,
    log_loss,
    sparse_categorical_crossentropy,
    value_and_grad,
)

__version__ = "0.1.0"

__all__ = [
    "binary_crossentropy",
    "binary_focal_crossentropy",
    "categorical_crossentropy",
    "categorical_focal_crossentropy",
    "distillation_loss",
    "kl_divergence",
    "log_loss",
    "sparse_categorical_crossentropy",
    "value_and_grad",
]
