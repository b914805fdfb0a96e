"""The frameworks: one `on_X` module each, which says which path computes a call, over the arithmetic in `X_ops`.

The registry. No framework is imported before one of its arrays arrives: each has a function that imports it, because
torch.compile can trace a literal import, and not importlib.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping

from lossbridge.frameworks.framework import Framework


def _torch() -> Framework:
    from lossbridge.frameworks import on_torch

    return on_torch


def _tensorflow() -> Framework:
    from lossbridge.frameworks import on_tensorflow

    return on_tensorflow


def _jax() -> Framework:
    from lossbridge.frameworks import on_jax

    return on_jax


def _numpy() -> Framework:
    from lossbridge.frameworks import on_numpy

    return on_numpy


# The key is also the name of the framework's top-level module. NumPy, which also takes lists and scalars, stands first:
# its calls must not meet what else a program calls torch, tensorflow or jax.
FRAMEWORKS: Mapping[str, Callable[[], Framework]] = {
    "numpy": _numpy,
    "torch": _torch,
    "tensorflow": _tensorflow,
    "jax": _jax,
}


def is_traced_by_torch() -> bool:
    """Whether torch.compile or torch.export reads what Python does: what it changes then is part of their program."""
    compiler = getattr(sys.modules.get("torch"), "compiler", None)
    return compiler is not None and compiler.is_compiling()
