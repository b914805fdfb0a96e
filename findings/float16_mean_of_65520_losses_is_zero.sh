#!/usr/bin/env bash
# torch 2.13.0 on CPUs and tensorflow 2.21.0: the mean loss of 65 520 or more rows in float16 is 0.
#
# Both sum the losses, which may fit, and count the rows in float16, whose largest number is 65 504: 65 520 rounds to
# infinity, and a finite sum over infinity is 0. In torch that is F.cross_entropy itself (and F.nll_loss), and the gradient
# is 0 with it, so that training stands still with a perfect loss; in TensorFlow it is reduce_mean, of which the mean of
# as many ones is NaN. 32 sequences of 2048 tokens are 65 536 rows. torch.mean is not concerned.
#
# Output seen: torch 0.1271 for 65 519 rows, 0.0 with gradient 0.0 for 65 520; tensorflow 0.1 (as 0.0998) and 0.0.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 tensorflow==2.21.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import torch
import torch.nn.functional as F

ROW = torch.tensor([[2.0, 0.0]], dtype=torch.float16)  # of label 0: the loss is 0.1269


def loss_and_gradient(rows):
    logits = ROW.repeat(rows, 1).requires_grad_()
    loss = F.cross_entropy(logits, torch.zeros(rows, dtype=torch.int64))
    loss.backward()
    return round(loss.item(), 4), logits.grad.abs().max().item(), round(torch.mean(logits.detach()).item(), 4)


found = {rows: loss_and_gradient(rows) for rows in (65_519, 65_520)}
for rows, (loss, gradient, mean) in found.items():
    print(f"torch, {rows} rows: loss {loss}, largest gradient {gradient:.3g}; torch.mean of the logits {mean}")
assert found[65_519][0] == 0.1271
assert found[65_519][1] > 0
assert found[65_520] == (0.0, 0.0, 1.0)
PYTHON
TF_CPP_MIN_LOG_LEVEL=3 "$folder/venv/bin/python" - <<'PYTHON'
import math

import tensorflow as tf


def mean(number, rows):
    return round(float(tf.reduce_mean(tf.fill([rows], tf.constant(number, tf.float16)))), 4)


found = [mean(0.1, 65_519), mean(0.1, 65_520), mean(1, 65_520)]
print(f"tensorflow: {found[0]} of 65519 rows of 0.1, {found[1]} of 65520, {found[2]} of 65520 rows of 1")
assert found[:2] == [0.0998, 0.0]
assert math.isnan(found[2])
PYTHON
