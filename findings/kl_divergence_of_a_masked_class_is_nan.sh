#!/usr/bin/env bash
# torch 2.13.0, optax 0.2.8, scipy 1.17.1: the KL divergence is NaN where both sides mask a class, and finite in SciPy.
#
# A masked class has the logit -inf, so probability 0 and log-probability -inf. With target 0 there its term is
# 0 log(0 / 0) = 0 by definition. F.kl_div and optax.losses.kl_divergence treat a target of 0, but then multiply it by
# -inf. The gradients for the logits are right in both, so that training goes on well under a loss of NaN.
#
# Output seen: torch nan, gradient [0.25, -0.25, 0.0]; optax the same; scipy 0.130812.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 jax==0.10.2 optax==0.2.8 scipy==1.17.1 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import torch.nn.functional as F
from scipy.special import rel_entr

LOGITS, TARGET = [0.0, 0.0, -np.inf], [0.25, 0.75, 0.0]

logits = torch.tensor(LOGITS, requires_grad=True)
loss = F.kl_div(F.log_softmax(logits, -1), torch.tensor(TARGET), reduction="sum")
loss.backward()
print(f"torch {loss.item()}, gradient {logits.grad.tolist()}")
assert torch.isnan(loss)
assert logits.grad.tolist() == [0.25, -0.25, 0.0]


def of_optax(z):
    return optax.losses.kl_divergence(jax.nn.log_softmax(z), jnp.array(TARGET))


loss, slope = jax.value_and_grad(of_optax)(jnp.array(LOGITS))
print(f"optax {loss}, gradient {slope.tolist()}")
assert jnp.isnan(loss)
assert slope.tolist() == [0.25, -0.25, 0.0]

exact = rel_entr(TARGET, [0.5, 0.5, 0.0]).sum()
print(f"scipy {exact:.6f}")
assert abs(exact - (0.25 * np.log(0.5) + 0.75 * np.log(1.5))) < 1e-12
PYTHON
