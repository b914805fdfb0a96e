"""The command and what it runs: parity, diagnosis, benchmark. Built on the losses, which import nothing from here."""
