"""Where `lossbridge.compat` departs from the library on purpose: data, with an example each that a test runs on both.

No code. The documentation's table of departures is generated from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Deviation:
    """One call, and what comes out of each. `theirs` is in words where the library raises, or returns no number."""

    function: str  # "torch.cross_entropy"
    words: str  # the rule, in one line
    arguments: tuple[Any, ...]  # nested lists, in the function's own order
    theirs: float | str
    ours: float | str
    options: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = "float32"  # of the floating-point arguments
    quantity: Literal["value", "gradient"] = "value"  # the first entry of the gradient for the predictions


KERAS: tuple[Deviation, ...] = ()

TORCH: tuple[Deviation, ...] = ()

OPTAX: tuple[Deviation, ...] = ()

SKLEARN: tuple[Deviation, ...] = ()

SCIPY: tuple[Deviation, ...] = ()

DEVIATIONS = (*KERAS, *TORCH, *OPTAX, *SKLEARN, *SCIPY)
