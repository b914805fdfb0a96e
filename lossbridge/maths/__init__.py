"""Per-sample losses: each formula with its derivative rule, once, over the arithmetic of any framework."""
