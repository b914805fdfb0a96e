"""What libraries compute, as data: a `Convention` is one way to get a number, a `Peer` one library's function.

`lossbridge.diagnose` searches these, the tests hold them to the libraries' own numbers, and the tables of
docs/conventions.md are generated from them. Nothing else of lossbridge is imported.
"""

from __future__ import annotations

from lossbridge.conventions.compatible import PEERS
from lossbridge.conventions.convention import (
    Activation,
    Clip,
    Convention,
    Cost,
    Divisor,
    Options,
    Peer,
    Seen,
    Targets,
)
from lossbridge.conventions.further import FURTHER

__all__ = [
    "FURTHER",
    "PEERS",
    "Activation",
    "Clip",
    "Convention",
    "Cost",
    "Divisor",
    "Options",
    "Peer",
    "Seen",
    "Targets",
]
