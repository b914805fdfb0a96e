"""Functions of further libraries, which `lossbridge.compat` does not follow: named by a diagnosis, and in the docs."""

from __future__ import annotations

from lossbridge.conventions.convention import Peer

FURTHER: tuple[Peer, ...] = ()
