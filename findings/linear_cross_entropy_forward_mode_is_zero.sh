#!/usr/bin/env bash
# torch 2.13.0: F.linear_cross_entropy with LinearCrossEntropyOptions(), which never makes all logits, has a derivative
# of 0 in forward mode, without an error or a warning: torch.func.jvp returns the tangent 0, and torch.func.jacfwd zeros.
#
# The function without options computes the same value, and has the right tangent. A dual tensor that requires grad
# raises NotImplementedError; one that does not comes back without a tangent, which counts as 0.
#
# Output seen: tangents 0.808391 without options and 0.000000 with; largest entry of jacfwd 0, of the gradient 0.519.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import torch
import torch.nn.functional as F

torch.manual_seed(0)
hidden, weight = torch.randn(8, 16, dtype=torch.float64), torch.randn(50, 16, dtype=torch.float64)
labels, step = torch.randint(50, (8,)), torch.randn(8, 16, dtype=torch.float64)
options = torch.nn.LinearCrossEntropyOptions()


def plain(x):
    return F.linear_cross_entropy(x, weight, labels)


def in_chunks(x):
    return F.linear_cross_entropy(x, weight, labels, options=options)


(value, tangent), (same, zero) = (torch.func.jvp(f, (hidden,), (step,)) for f in (plain, in_chunks))
gradient = torch.func.grad(plain)(hidden)
print(f"values {value:.6f} and {same:.6f}; tangents {tangent:.6f} and {zero:.6f}")
assert abs(value - same) < 1e-12
assert abs(tangent - (gradient * step).sum()) < 1e-12  # what the tangent is
assert zero == 0

forward, backward = torch.func.jacfwd(in_chunks)(hidden), gradient
print(f"largest entry of jacfwd {forward.abs().max():.3g}, of the gradient {backward.abs().max():.3g}")
assert not forward.any()
assert backward.abs().max() > 0.1
PYTHON
