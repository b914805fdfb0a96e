"""Numbers as programs print them. Python's own float also reads 1_0 as 10, and the digits of every script."""

from __future__ import annotations

import re

_NUMBER = re.compile(r"[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|inf|infinity|nan)", re.ASCII | re.IGNORECASE)


def is_number(text: str) -> bool:
    return _NUMBER.fullmatch(text.strip()) is not None
