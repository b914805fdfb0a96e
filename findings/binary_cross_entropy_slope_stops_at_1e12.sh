#!/usr/bin/env bash
# torch 2.13.0: F.binary_cross_entropy has values of -log p for every p down to 4e-44, but slopes of at most 1e12.
#
# The value is clamped at 100, as documented, and follows -log p before; the slope stops at 1e12 from p = 1e-12 on,
# whether the value is clamped or not. At p = 0, where the value is constant by its clamp, the slope is -1e12 and not 0.
# In float64 as in float32. A check of gradients fails there, and the loss's own value says nothing of it.
#
# Output seen: p = 1e-20: value 46.05, slope -1e+12, where -1/p is -1e+20; p = 0: value 100, slope -1e+12.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import math

import torch
import torch.nn.functional as F

for dtype in (torch.float32, torch.float64):
    for number in (1e-6, 1e-20, 0.0):
        p = torch.tensor([number], dtype=dtype, requires_grad=True)
        loss = F.binary_cross_entropy(p, torch.ones_like(p))
        loss.backward()
        value, slope = loss.item(), p.grad.item()
        print(f"{dtype}, p = {number}: value {value:.6g}, slope {slope:.6g}")
        assert abs(value - (-math.log(number) if number else 100)) < 1e-4
        assert abs(slope / (-1e6 if number == 1e-6 else -1e12) - 1) < 1e-5
PYTHON
