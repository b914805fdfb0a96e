"""Parity, diagnosis, benchmark and the command: built on the losses, and imported by none of them."""
