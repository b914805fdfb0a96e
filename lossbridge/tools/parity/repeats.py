"""Which cases the parity command compiles only with --all: those that compile again what another case has compiled.

Every case is checked eagerly. Of the cases of a loss that differ in nothing but the values of their options and their
shapes, one function is compiled: that which most of them share; and none for a lone case with options, if
another case has those and more.
"""

from __future__ import annotations

import functools
from collections import Counter
from typing import Any

import numpy as np

from lossbridge.tools.parity.cases import Case
from lossbridge.tools.parity.check import all_cases, compile_key
from lossbridge.tools.parity.signatures import SIGNATURES

Kind = tuple[Any, ...]
Options = frozenset[str]


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
    return case.loss, case.dtype, case.y_true.ndim, case.y_pred.ndim, case.options.get("from_logits")


def _options(case: Case) -> Options:
    """The names of its options; of a number in an array, which a compiler does not know, another name."""
    names = (f"{name} in an array" if isinstance(x, np.generic) else name for name, x in case.options.items())
    return frozenset(names) - {"from_logits", *SIGNATURES[case.loss].more}


def _function(case: Case) -> Kind:
    """What is compiled: XLA compiles anew for a shape."""
    return compile_key(case), case.y_pred.shape
