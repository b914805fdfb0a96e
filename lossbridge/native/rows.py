"""The native rows as Python calls them: what they compute, and a call's arguments. Knows no framework.

The C++ sources lie in lossbridge/native/rows; `_rows` is the extension built of them. Without it every loss goes over
the framework's own operations.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from lossbridge.maths import bernoulli, divergence, softmax

# Why there are none; "" if they are there.
MISSING = ""
if os.environ.get("LOSSBRIDGE_NATIVE") == "0":
    MISSING = "the native rows are switched off by LOSSBRIDGE_NATIVE=0"
else:
    try:
        import lossbridge.native._rows as _rows
    except ModuleNotFoundError:
        MISSING = "the native rows are not built"
    except ImportError as error:
        if os.environ.get("LOSSBRIDGE_INSTRUCTION_SET"):
            raise  # who asks for one must not be given something else in silence
        MISSING = f"the native rows cannot be loaded: {error}"

# The numbers of `Rule` in rows/call.h.
RULES: Mapping[str, int] = {
    rule.name: number
    for number, rule in enumerate(
        (
            softmax.LABELS,
            softmax.DISTRIBUTIONS,
            softmax.LABEL_PROBABILITIES,
            softmax.PROBABILITIES,
            softmax.LOG_LOSS,
            softmax.FOCAL,
            softmax.FOCAL_PROBABILITIES,
            bernoulli.LOGITS,
            bernoulli.PROBABILITIES,
            bernoulli.FOCAL,
            bernoulli.FOCAL_PROBABILITIES,
            divergence.LOGITS,
            divergence.PROBABILITIES,
        )
    )
}
# The numbers of `Dtype`.
DTYPES: Mapping[str, int] = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 3, "int32": 4, "int64": 5}
# The numbers of `Divisor`.
NO_SUM, COUNTED, WEIGHTS, GIVEN = range(4)


class Call(NamedTuple):
    """The arguments of `_rows.run`, in order, as rows/call.h explains them. Addresses are integers; 0 is null."""

    rule: int
    dtype: int
    target_dtype: int
    elementwise: bool
    outer: int
    classes: int
    inner: int
    pred: int
    target: int
    label_smoothing: float = 0.0
    epsilon: float = 0.0
    temperature: float = 1.0
    gamma: float = 0.0
    per_class_number: float = 1.0
    per_class: int = 0
    balanced: bool = False
    counted: int = 0
    weight: int = 0
    divides: int = NO_SUM
    divisor: float = 1.0
    upstream: float = 1.0
    upstream_each: int = 0
    losses: int = 0
    result: int = 0
    gradient: int = 0
    target_gradient: int = 0
    threads: int = 1


def run(call: Call) -> None:
    _rows.run(*call)


def advise(address: int, size: int) -> None:
    """Asks for huge pages below a buffer of `size` bytes that nobody has touched yet."""
    _rows.advise(address, size)


def status() -> str:
    """For the first line of a report."""
    return MISSING or f"native rows with {_rows.instruction_set()}"
