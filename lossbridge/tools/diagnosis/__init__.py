"""Which convention explains a number: `lossbridge.diagnose`. See docs/diagnose.md."""

from __future__ import annotations

from lossbridge.tools.diagnosis.diagnosis import Diagnosis, Explanation, diagnose

__all__ = ["Diagnosis", "Explanation", "diagnose"]
