"""PyTorch: faster ways to the per-sample losses of formulas.py (see Kernel in lossbridge/backend.py)."""

from __future__ import annotations

from typing import Any

KERNELS: dict[str, Any] = {}
