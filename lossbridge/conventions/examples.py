"""The arrays that the further libraries' figures are of, by the names that stand in their calls.

Plain numbers and nothing of lossbridge: benchmarks/conventions reads this file inside each library's own environment.
"""

from __future__ import annotations

import math
from typing import Any, Dict  # noqa: UP035  for the old Python of the old libraries

_P = [[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]]
_S = [[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.1, 0.1, 0.8]]

ARRAYS: Dict[str, Any] = {  # noqa: UP006
    "P": _P,  # probabilities
    "L": [[math.log(p) for p in row] for row in _P],
    "X": [[2.0, 1.0, 0.1], [0.5, 2.5, 0.0], [1.0, 1.0, 3.0]],  # logits
    "V": [[90.0, 0.0, 0.0], [0.0, 0.0, 0.0], [1.0, 2.0, 90.0]],  # and sure ones
    "y": [0, 1, 1],  # labels
    "y_left_out": [0, -100, 1],
    "y_of_minus_1": [0, -1, 1],
    "T": [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0]],  # one-hot, of y
    "U": [[0.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],  # probabilities of which two are wrong
    "S": _S,  # soft targets
    "M": [[math.log(s) for s in row] for row in _S],
    "W": [1.0, 2.0, 5.0],  # weights of classes
    "w": [1.0, 0.0, 2.0],  # of samples
    "t": [1, 0, 1, 0],  # outcomes
    "h": [0.3, 0.6, 0.9, 0.2],  # and soft ones
    "q": [0.0, 0.5, 0.9, 1.0],  # their probabilities, of which two cannot be worse
    "r": [0.2, 0.5, 0.9, 0.6],
    "z": [-0.3, 0.6, 2.0, -1.0],  # their logits
    "w4": [1.0, 0.0, 2.0, 1.0],
}
