"""The native rows as Python calls them: what they compute, and a call's arguments. Knows no framework.

The C++ sources lie in lossbridge/native/rows; `_rows` is the extension built of them. Without it every loss goes over
the framework's own operations.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from lossbridge.maths import bernoulli, divergence, softmax
from lossbridge.maths.ops import Rule
from lossbridge.spec import Request

# Why there are none; "" if they are there.
MISSING = ""
if os.environ.get("LOSSBRIDGE_NATIVE") == "0":
    MISSING = "the native rows are switched off by LOSSBRIDGE_NATIVE=0"
else:
    try:
        from lossbridge.native import _rows

        compute = _rows.run  # of the arguments of a `Call`
    except ImportError as error:
        if os.environ.get("LOSSBRIDGE_INSTRUCTION_SET"):
            raise  # who asks for one must not be given something else in silence
        absent = error.name == __package__  # it is the package that lacks the name
        MISSING = "the native rows are not built" if absent else f"the native rows cannot be loaded: {error}"

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


# The rules whose rows write a gradient for a dense target too.
WITH_TARGET_GRADIENT = tuple(
    rule.name
    for rule in (
        softmax.DISTRIBUTIONS,
        bernoulli.LOGITS,
        bernoulli.PROBABILITIES,
        divergence.LOGITS,
        divergence.PROBABILITIES,
    )
)
# The options that hold one number a class, or one for all.
PER_CLASS = ("class_weight", "pos_weight", "alpha")


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


def refuses(rule: Rule, dtype: str, target_dtype: str) -> str:
    """Why no rows compute this rule of these dtypes; "" if they do."""
    if MISSING:
        return MISSING
    if rule.name not in RULES:
        return f"there are no native rows for {rule.name}"
    if dtype not in ("float32", "float64", "float16", "bfloat16"):
        return f"the predictions are {dtype}"
    return "" if target_dtype in DTYPES else f"the target is {target_dtype}"


def call(r: Request, shape: tuple[int, ...], dtypes: tuple[str, str], addresses: tuple[int, int], **more: Any) -> Call:
    """The call of a request. An array among its options, the samples and what is written are fields of `more`.

    `shape`: of the predictions; `dtypes`, `addresses`: of predictions and target, whose arrays are contiguous.
    """
    axis = len(shape) - 1 if r.axis is None else r.axis
    elementwise = r.axis is None
    options = r.options
    number = next((x for name in PER_CLASS if isinstance(x := options.get(name), int | float)), 1.0)
    return Call(
        rule=RULES[r.rule.name],
        dtype=DTYPES[dtypes[0]],
        target_dtype=DTYPES[dtypes[1]],
        elementwise=elementwise,
        outer=1 if elementwise else math.prod(shape[:axis]),
        classes=math.prod(shape) if elementwise else shape[axis],
        inner=1 if elementwise else math.prod(shape[axis + 1 :]),
        pred=addresses[0],
        target=addresses[1],
        label_smoothing=options.get("label_smoothing", 0.0),
        epsilon=options.get("epsilon", 0.0),
        temperature=options.get("temperature", 1.0),
        gamma=options.get("gamma", 0.0),
        per_class_number=number,
        balanced=options.get("apply_class_balancing", False),
        **more,
    )


def per_class(options: Mapping[str, Any]) -> Any:
    """The option that is an array of one number a class, or None."""
    return next((x for name in PER_CLASS if not isinstance(x := options.get(name), int | float | None)), None)


def run(call: Call) -> None:
    _rows.run(*call)


def advise(address: int, size: int) -> None:
    """Asks for huge pages below a buffer of `size` bytes that nobody has touched yet."""
    _rows.advise(address, size)


def status() -> str:
    """For the first line of a report."""
    return MISSING or f"native rows with {_rows.instruction_set()}"
