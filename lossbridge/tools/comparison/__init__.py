"""Where do two runs part? `lossbridge.compare`, described in docs/compare.md."""

from __future__ import annotations

from lossbridge.tools.comparison.comparison import Comparison, compare

__all__ = ["Comparison", "compare"]
