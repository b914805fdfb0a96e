"""Which cases the parity command compiles only with --all: those that compile again what another case has compiled.

Every case is checked eagerly. One function is compiled, that which most cases share, of the cases that have in common

- what computes them: a rule, whichever loss has it; or, of weights, masks, normalizers and axes, the one code that
  applies them to every rule, for labels, for other targets, and in blocks;
- the rank and the dtype; float16 stands for bfloat16 where nothing is multiplied in it;
- the options of the rule, whatever their values, in float32: another dtype is other casts of the same code.

None is compiled for a lone case with options, if another case has those and more.
"""

from __future__ import annotations

import functools
from collections import Counter
from typing import Any

import numpy as np

from lossbridge.request import COMMON, rule_of
from lossbridge.spec import LOSSES
from lossbridge.tools.parity.cases import Case
from lossbridge.tools.parity.check import all_cases, compile_key
from lossbridge.tools.parity.signatures import FURTHER, SIGNATURES

Kind = tuple[Any, ...]
Options = frozenset[str]
_IN_BLOCKS = ("linear_crossentropy", "linear_distillation")


def is_repeated(case: Case) -> bool:
    """Whether another case's compiled function is as good."""
    kind, options, functions = _kind(case), _options(case), _functions()
    ((most, shared),) = functions[kind, options].most_common(1)
    if _function(case) != most:
        return True
    return shared == 1 and bool(options) and any(kind == other and options < more for other, more in functions)


@functools.cache
def _functions() -> dict[tuple[Kind, Options], Counter[Kind]]:
    """How many cases share each function, by what they have in common."""
    found: dict[tuple[Kind, Options], Counter[Kind]] = {}
    for case in all_cases():
        found.setdefault((_kind(case), _options(case)), Counter())[_function(case)] += 1
    return found


def _kind(case: Case) -> Kind:
    what = what_computes(case)
    dtype = "float16" if case.dtype == "bfloat16" and what not in _IN_BLOCKS else case.dtype
    return what, dtype, case.y_pred.ndim


def what_computes(case: Case) -> str:
    """The rule of its loss, or a function outside the registry; or that any will do, as only the options matter."""
    options = _options(case)
    # Rows of which nothing is reduced are there for their values.
    if options and options <= {*COMMON} and not (options == {"reduction"} and case.y_pred.ndim == 2):
        labels = "labels" if case.y_true.dtype.kind == "i" else "other targets"
        return f"any of {'blocks' if case.loss in _IN_BLOCKS else labels}"
    if case.loss in FURTHER:
        return case.loss
    loss = LOSSES[case.loss]
    return rule_of(loss, {**loss.options, **case.options}, case.y_true.ndim != case.y_pred.ndim)[1].name


def _options(case: Case) -> Options:
    """The names of its own options, or if it has none, of those of all losses.

    Of a number in an array, which a compiler does not know, another name.
    """
    given = case.options.keys() - {"from_logits", "memory", *SIGNATURES[case.loss].more}
    own = given - COMMON.keys() if case.dtype == "float32" else set()
    arrays = {name for name in own if isinstance(case.options[name], np.generic)}
    return frozenset(f"{name} in an array" if name in arrays else name for name in own or given & COMMON.keys())


def _function(case: Case) -> Kind:
    """What is compiled: XLA compiles anew for a shape."""
    return compile_key(case), case.y_pred.shape
