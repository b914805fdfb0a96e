"""Which convention explains a number? `lossbridge.diagnose`, described in docs/diagnose.md."""

from __future__ import annotations

from lossbridge.tools.diagnosis.diagnosis import Diagnosis, Explanation, Probe, diagnose

__all__ = ["Diagnosis", "Explanation", "Probe", "diagnose"]
