"""Does every backend agree with the reference? Cases (plain data), check, peers, worker, report, test vectors."""
