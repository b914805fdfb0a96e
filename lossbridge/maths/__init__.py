"""The losses of a sample: each formula with its derivative rule, once, over any framework's arithmetic."""
