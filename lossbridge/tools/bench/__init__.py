"""How fast, and with how much memory? Cells (plain data), contenders, measurement, worker, targets, report, plots."""
