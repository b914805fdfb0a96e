"""The native rows as Python calls them: what they compute, and a call's arguments. Knows no framework.

The C++ sources lie in lossbridge/native/rows; `_rows` is the extension built of them. Without it every loss goes over
the framework's own operations.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from lossbridge.maths import bernoulli, divergence, mixture, softmax
from lossbridge.maths.ops import Array, Rule
from lossbridge.reduction import by_weight, has_mass, total_weight
from lossbridge.spec import PER_SAMPLE, Request

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
            softmax.LABEL_MASS,
            softmax.CLASS_MASS,
            mixture.JENSEN_SHANNON,
            mixture.TOTAL_VARIATION,
        )
    )
}
# The numbers of `Dtype`.
DTYPES: Mapping[str, int] = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 3, "int32": 4, "int64": 5}
FLOATS = tuple(DTYPES)[:4]
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
        mixture.JENSEN_SHANNON,
        mixture.TOTAL_VARIATION,
    )
)
# The options that hold one number a class, or one for all.
PER_CLASS = ("class_weight", "pos_weight", "alpha")
# Memory: an address, 0 for null, or an object with a buffer. The caller keeps it alive.
Memory = Any


class Call(NamedTuple):
    """The arguments of `_rows.run`, in order, as rows/call.h explains them."""

    rule: int
    dtype: int
    target_dtype: int
    elementwise: bool
    outer: int
    classes: int
    inner: int
    pred: Memory
    target: Memory
    label_smoothing: float = 0.0
    epsilon: float = 0.0
    temperature: float = 1.0
    gamma: float = 0.0
    logit_scale: float = 1.0
    softcap: float = 0.0
    z_loss: float = 0.0
    beta: float = 0.5
    mixture_scaling: float = 1.0
    per_class_number: float = 1.0
    per_class: Memory = 0
    balanced: bool = False
    domain: bool = False
    counted: Memory = 0
    weight: Memory = 0
    divides: int = NO_SUM
    divisor: float = 1.0
    upstream: float = 1.0
    upstream_each: Memory = 0
    losses: Memory = 0
    result: Memory = 0
    gradient: Memory = 0
    target_gradient: Memory = 0
    threads: int = 1


def refuses(rule: Rule, dtype: str, target_dtype: str) -> str:
    """Why no rows compute this rule of these dtypes; "" if they do."""
    if MISSING:
        return MISSING
    if rule.name not in RULES:
        return f"there are no native rows for {rule.name}"
    if dtype not in FLOATS:
        return f"the predictions are {dtype}"
    return "" if target_dtype in DTYPES else f"the target is {target_dtype}"


def call(
    r: Request, shape: tuple[int, ...], dtypes: tuple[str, str], memory: tuple[Memory, Memory], **more: Any
) -> Call:
    """The call of a request. What is read besides, and what is written, are fields of `more`.

    `shape`: of the predictions; `dtypes`, `memory`: of predictions and target, whose arrays are contiguous.
    """
    axis, options = r.axis, r.options
    if "per_class_number" not in more:
        more["per_class_number"] = per_class(options)[0]
    if axis is None:
        outer, classes, inner = 1, math.prod(shape), 1
    else:
        outer, classes, inner = math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])
    return Call(
        RULES[r.rule.name],
        DTYPES[dtypes[0]],
        DTYPES[dtypes[1]],
        axis is None,
        outer,
        classes,
        inner,
        memory[0],
        memory[1],
        options.get("label_smoothing", 0.0),
        options.get("epsilon", 0.0),
        options.get("temperature", 1.0),
        options.get("gamma", 0.0),
        options.get("logit_scale", 1.0),
        options.get("softcap", 0.0),
        options.get("z_loss", 0.0),
        *of_mixture(options),
        balanced=options.get("apply_class_balancing", False),
        domain=r.domain,
        **more,
    )


def of_mixture(options: Mapping[str, Any]) -> tuple[float, float]:
    """β, and what the divergence that goes to the Kullback-Leibler ones is multiplied by; of another rule, anything."""
    if "beta" not in options:
        return 0.5, 1.0
    return options["beta"], mixture.scaling(options["beta"], options["scale"])


def per_class(options: Mapping[str, Any]) -> tuple[float, Any]:
    """The number that holds for all classes, and the array of one a class, or None. No rule has two such options."""
    for name in PER_CLASS:
        x = options.get(name)
        if x is not None:
            return (1.0, x) if len(getattr(x, "shape", ())) else (float(x), None)
    return 1.0, None


def divides(r: Request) -> tuple[int, Array]:
    """What the sum of the losses is divided by, and the number where it is GIVEN."""
    if r.reduction in PER_SAMPLE:
        return NO_SUM, 1.0
    if r.reduction == "sum":
        return GIVEN, 1.0
    if r.normalizer is not None:
        return GIVEN, r.normalizer
    if r.reduction != "mean_with_sample_weight" or not by_weight(r):
        return COUNTED, 1.0
    return (GIVEN, total_weight(r)) if has_mass(r) else (WEIGHTS, 1.0)


def threads() -> int:
    """How many threads a call may use: OMP_NUM_THREADS, as for OpenMP's programs, else one a core of this process."""
    wanted = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if wanted.isdecimal() and int(wanted):
        return int(wanted)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run(call: Call) -> None:
    _rows.run(*call)


def xla_handlers() -> tuple[object, object]:
    """Capsules with the functions that XLA calls, of rows/xla.cpp: the rows, and the ratio of losses."""
    return _rows.xla_rows(), _rows.xla_ratio()


def advise(address: int, size: int) -> None:
    """Asks for huge pages below a buffer of `size` bytes that nobody has touched yet."""
    _rows.advise(address, size)


def status() -> str:
    """For the first line of a report."""
    return MISSING or f"native rows with {_rows.instruction_set()}"
