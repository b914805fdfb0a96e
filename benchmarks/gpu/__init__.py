"""The sections of benchmarks/on_gpu.py, which run on the card, each in a process of its own."""
