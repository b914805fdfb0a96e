"""A row: what someone gives `lossbridge.diagnose`, and how a true answer reads. Nothing of the diagnosis is used.

The truth is a regular expression without case, wide enough for any sensible wording. These functions make it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lossbridge.tools.diagnosis.rows.numbers import Array

# The kinds of docs: those of the specification, in its order; 0 is what the libraries' own functions give.
KINDS = {
    0: "plain functions",
    1: "calls that give NaN",
    2: "a name that gives another number",
    3: "a constant factor",
    4: "one coefficient, or two",
    5: "the package's own losses",
    6: "labels along time",
    7: "which rows count",
    8: "means in two steps",
    9: "weights from the labels",
    10: "ε, a floor for each logarithm",
    11: "the event, the order of classes",
    12: "logits behind the output",
    13: "SciPy as it is used",
    14: "no call where there is one",
    15: "bfloat16",
    16: "the nearest",
    17: "quantities near by",
}


@dataclass(frozen=True)
class Row:
    """A number with its arrays. A first line is true if it says `says` with at most `most` changes."""

    kind: int
    name: str
    y_true: Array
    y_pred: Array
    value: float  # computed here, in float64
    says: str
    digits: int = 6
    options: Mapping[str, Any] = field(default_factory=dict)  # of diagnose
    most: int = 2
    refused: str = ""  # what neither the line nor a call ("torch F.cross_entropy(…)") may say
    called: str = ""  # what one of the calls must say
    lesser: str = ""  # what a first line may say that is true too, but not what is asked for: it is not wrong
    quoted: str = ""  # the text, where it is not made of `value`
    fits: bool = True  # whether a convention gives the number; if not, the printed text says `says`

    @property
    def text(self) -> str:
        """What is given as the observed number."""
        return self.quoted or printed(self.value, self.digits)


def printed(value: float, digits: int) -> str:
    """With so many significant digits, as a program prints them."""
    if not math.isfinite(value) or abs(value) >= 10**digits:
        return f"{value:.{digits}g}"
    return f"{value:.{max(digits - 1 - math.floor(math.log10(abs(value))), 0)}f}"


# What a true answer says.


def number(value: float) -> str:
    """The number however it is written: 0.01, .010, 1e-2."""
    decimal = f"{value:.12f}".rstrip("0").rstrip(".")
    mantissa, _, exponent = f"{value:e}".partition("e")
    mantissa = mantissa.rstrip("0").rstrip(".")
    sign = "-" if exponent.startswith("-") else r"\+?"
    forms = [rf"{re.escape(mantissa)}e{sign}0*{abs(int(exponent))}"]
    if float(decimal) == value:
        forms.append("0?" + re.escape(decimal[1:]) + "0*" if 0 < value < 1 else re.escape(decimal))
    if "." not in decimal:
        forms[-1] += r"(?:\.0*)?"
    return rf"(?<![\d.])(?:{'|'.join(forms)})(?![\d]|\.\d)"


def equals(names: str, value: float) -> str:
    """Such as: T = 2, temperature 2.000, temperature of 2."""
    return rf"(?:{names})\W*(?:(?:of|is|at|to|by)\W*)?{number(value)}"


def times(factor: float) -> str:
    """Such as: × 2, 2 times, multiplied by 2."""
    words = {2: r"|\btwice\b|\bdoubled?\b", 0.5: r"|\bhalf\b|\bhalved\b"}.get(factor, "")
    by = r"(?:[×*·]|times|multipl\w+ (?:by|with)|scaled by|factor)"
    return rf"{by}\W*(?:(?:of|is)\W*)?{number(factor)}|{number(factor)}\W*(?:×|times){words}"


def over(divisor: float) -> str:
    """Such as: ÷ 4, divided by the number of positives = 4."""
    return rf"(?:÷|/|divi\w+|mean of|averaged)[^,;]*?{number(divisor)}"


def larger_by(offset: float) -> str:
    """Such as: larger by 0.05 on both; plus 0.05. Not a smoothing of 0.05."""
    return (
        rf"(?:larger|higher|greater|more|plus|offset|constant|adds?)[^\n;]{{0,30}}{number(offset)}|\+ {number(offset)}"
    )


def either(*patterns: str) -> str:
    return "|".join(f"(?:{pattern})" for pattern in patterns)


def every(*patterns: str) -> str:
    return "^" + "".join(f"(?=.*(?:{pattern}))" for pattern in patterns)


# The names of the libraries' functions for one loss.
CROSS_ENTROPY = r"cross_?entropy|log_loss|nll_loss"
DIVERGENCE = r"kl_?div|rel_entr|`entropy"
MIXTURE, TOTAL_VARIATION = r"jensen.shannon|\bJS", r"total.variation"
TEMPERATURE = r"temperature(?: T)?|\bT"
SMOOTHING = r"label[_ ]smoothing(?: s)?|smoothed|\bs"
POSITIVE = r"pos_weight|positives?(?: weigh\w*| outcomes)?|weight of (?:the )?(?:positives|outcomes 1)"
SOFTCAP = r"soft[-_ ]?cap(?: c)?|capped"
Z_LOSS = r"z[-_ ]loss(?: ζ)?|\bζ"
GAMMA, ALPHA = r"gamma|γ", r"alpha|α"
EPSILON = r"epsilon|ε|log\(p \+|\[|≥|floor|least|\beps|max\(p,"
