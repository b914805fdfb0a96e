"""Does every backend agree with the reference? Cases (plain data), the check, worker processes, the report."""
