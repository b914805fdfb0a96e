"""Other libraries' conventions on arrays of every backend: one module a library, which need not be installed."""

from __future__ import annotations

import importlib
from types import ModuleType


def __getattr__(name: str) -> ModuleType:
    """Imports a library's module on first use."""
    if name in ("keras", "optax", "scipy", "sklearn", "torch"):
        return importlib.import_module(f"lossbridge.compat.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
