#!/usr/bin/env bash
# trl 1.16.0: GKDTrainer.generalized_jsd_loss jumps at the ends of beta: near 0 the loss is near 0, and at 0 it is the
# whole KL divergence; the same at 1.
#
# The generalised Jensen-Shannon divergence tends to 0 with beta, as beta times the KL divergence, and trl returns the KL
# divergence itself at 0 and 1. So beta = 1e-6, meant as "almost the forward divergence", has a loss and gradients that
# are a million times smaller than those of beta = 0. Divided by beta (1 - beta) it would go to both ends continuously.
#
# Output seen: beta 0: 9.992; 1e-6: 9.98e-06; 0.5: 0.6926; 1 - 1e-6: 1.01e-05; 1: 10.005.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 trl==1.16.0
TRL_EXPERIMENTAL_SILENCE=1 "$folder/venv/bin/python" - <<'PYTHON'
import torch
from trl.experimental.gkd import GKDTrainer

STUDENT, TEACHER = torch.tensor([[[10.0, 0, 0, -5]]]), torch.tensor([[[0.0, 10, 0, 5]]])
found = {}
for beta in (0, 1e-6, 0.5, 1 - 1e-6, 1):
    found[beta] = GKDTrainer.generalized_jsd_loss(STUDENT, TEACHER, beta=beta).item()
    print(f"beta {beta}: {found[beta]:.4g}")
assert abs(found[0] - 9.9919) < 1e-3
assert 0 < found[1e-6] < 2e-5
assert abs(found[0.5] - 0.6926) < 1e-3
assert 0 < found[1 - 1e-6] < 2e-5
assert abs(found[1] - 10.0053) < 1e-3
PYTHON
