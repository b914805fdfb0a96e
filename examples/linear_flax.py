"""A language model's head in Flax NNX without its logits, under nnx.jit: the same training as by the logits.

python examples/linear_flax.py
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import lossbridge as lb

TOKENS, HIDDEN, SEQUENCES, LENGTH, PADDING = 1000, 32, 8, 24, -100


class Model(nnx.Module):
    """Predicts the next token from the current one."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Embed(TOKENS, HIDDEN, rngs=rngs)
        self.dense = nnx.Linear(HIDDEN, HIDDEN, rngs=rngs)
        self.head = nnx.Linear(HIDDEN, TOKENS, rngs=rngs)

    def hidden(self, ids: jax.Array) -> jax.Array:
        return nnx.gelu(self.dense(self.embed(ids)))


def by_hidden_states(model: Model, ids: jax.Array, labels: jax.Array) -> jax.Array:
    """The head is not called: the loss takes its kernel, (hidden, tokens), whose axis 1 holds the classes."""
    kernel, bias = model.head.kernel[...], model.head.bias[...]
    return lb.linear_crossentropy(labels, model.hidden(ids), kernel, bias=bias, classes_axis=1, ignore_class=PADDING)


def by_logits(model: Model, ids: jax.Array, labels: jax.Array) -> jax.Array:
    logits = model.head(model.hidden(ids))
    return lb.sparse_categorical_crossentropy(labels, logits, from_logits=True, ignore_class=PADDING)


def batch(seed: int) -> tuple[jax.Array, jax.Array]:
    """Token ids (N, T), and the labels to predict, padded with −100 after each sequence's end."""
    of_lengths, of_ids = jax.random.split(jax.random.key(seed))
    lengths = jax.random.randint(of_lengths, (SEQUENCES, 1), 1, LENGTH + 1)
    ids = jax.random.randint(of_ids, (SEQUENCES, LENGTH), 0, 40)
    return ids, jnp.where(jnp.arange(LENGTH) < lengths, (7 * ids + 3) % TOKENS, PADDING)


def train(loss_of) -> list[float]:
    """The losses of 40 steps."""
    model = Model(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(0.01), wrt=nnx.Param)

    @nnx.jit
    def step(model: Model, optimizer: nnx.Optimizer, ids: jax.Array, labels: jax.Array) -> jax.Array:
        loss, gradients = nnx.value_and_grad(loss_of)(model, ids, labels)
        optimizer.update(model, gradients)
        return loss

    return [float(step(model, optimizer, *batch(i))) for i in range(40)]


def main() -> None:
    found = {"hidden states": train(by_hidden_states), "logits": train(by_logits)}
    for words, losses in found.items():
        print(f"by {words:13}: loss {losses[0]:.4f} at the first step, {losses[-1]:.4f} at the last")
    difference = max(abs(a - b) / b for a, b in zip(*found.values(), strict=True))
    print(f"largest relative difference of a step's loss: {difference:.1e}")


if __name__ == "__main__":
    main()
