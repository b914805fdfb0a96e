#!/usr/bin/env bash
# torch 2.13.0: under torch.compile on a CPU, expm1 in float32 has no digits near 0: it is computed as exp(x) - 1.
#
# expm1 exists to keep those digits. Eager, and compiled in float64, it does; in float32 expm1(1e-9) is 0, and
# expm1(1e-5) is 1.4e-3 too large. log1p keeps its digits compiled. A loss that is written with expm1, so that it is
# exact for confident rows, is 0 there once it is compiled.
#
# Output seen: float32 1e-09 eager, 0.0 compiled; at 1e-05, 1.00136e-05 compiled; float64 1e-09 in both.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import torch


@torch.compile
def expm1(x):
    return torch.expm1(x)


@torch.compile
def log1p(x):
    return torch.log1p(x)


def first(function, x, dtype=torch.float32):
    return function(torch.full((64,), x, dtype=dtype))[0].item()


for x in (1e-9, 1e-5):
    print(f"float32, x = {x}: eager {first(torch.expm1, x):.6g}, compiled {first(expm1, x):.6g}")
print(f"float64, x = 1e-9: compiled {first(expm1, 1e-9, torch.float64):.6g}; log1p in float32 {first(log1p, 1e-9):.6g}")
assert abs(first(torch.expm1, 1e-9) - 1e-9) < 1e-15
assert first(expm1, 1e-9) == 0
assert first(expm1, 1e-5) > 1.001e-5
assert abs(first(expm1, 1e-9, torch.float64) - 1e-9) < 1e-15
assert abs(first(log1p, 1e-9) - 1e-9) < 1e-15
PYTHON
