"""What people ask: numbers with their arrays, and what is true of them. `row_trial` asks `lossbridge.diagnose`."""

from __future__ import annotations

from lossbridge.tools.diagnosis.rows import frequent, quoted, rarer
from lossbridge.tools.diagnosis.rows.row import KINDS, Row

# By group: made here of seeded arrays; quoted from the specification.
GROUPS = {"drawn": (*frequent.rows(), *rarer.rows()), "specification": tuple(quoted.rows())}

__all__ = ["GROUPS", "KINDS", "Row"]
