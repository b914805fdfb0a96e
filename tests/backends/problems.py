"""Small smooth problems, one a loss and form, for the tests of derivatives: (id, loss, y_true, y_pred, options)."""

from __future__ import annotations

from typing import Any

import numpy as np

from lossbridge.tools.parity.cases import LOSSES, cases

PROBLEMS: list[tuple[str, str, np.ndarray, np.ndarray, dict[str, Any]]] = [
    (f"{case.loss}-{case.name}", case.loss, case.y_true[:3], case.y_pred[:3], dict(case.options))
    for case in cases()
    if case.dtype == "float64" and case.y_pred.ndim == 2
]
assert {loss for _, loss, *_ in PROBLEMS} == set(LOSSES)

# Logits at which one class has all but nothing, and equal ones: derivatives of any order must stay finite.
EDGES = np.array([[20.0, -20.0, 0.0], [0.0, 0.0, 0.0], [30.0, 0.0, 0.0]])
