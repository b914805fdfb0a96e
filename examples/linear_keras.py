"""A language model's head in Keras that adds its loss without the logits: `fit` on TensorFlow, PyTorch and JAX.

Two models share their layers. One takes tokens and labels, and trains; the other takes tokens alone, and gives logits.
Keras runs on one backend in a process, so each has a process of its own, and all start from the same weights.

    python examples/linear_keras.py
"""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np

TOKENS, HIDDEN, SEQUENCES, LENGTH, PADDING = 200, 16, 64, 12, -100
BACKENDS = ("tensorflow", "torch", "jax")


def data() -> tuple[np.ndarray, np.ndarray]:
    """Token ids (N, T), and the labels to predict, padded with −100 after each sequence's end."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 40, (SEQUENCES, LENGTH))
    lengths = rng.integers(1, LENGTH + 1, (SEQUENCES, 1))
    return ids, np.where(np.arange(LENGTH) < lengths, (7 * ids + 3) % TOKENS, PADDING)


def train() -> None:
    """On the backend that KERAS_BACKEND names: prints the losses of the epochs, and how many predictions are right."""
    import keras

    import lossbridge.keras as lk

    tokens, labels = keras.Input((LENGTH,), dtype="int32"), keras.Input((LENGTH,), dtype="int32")
    embedding, head = keras.layers.Embedding(TOKENS, HIDDEN), lk.LinearCrossentropyHead(TOKENS, ignore_class=PADDING)
    hidden = keras.layers.Dense(HIDDEN, "tanh")(embedding(tokens))
    training = keras.Model([tokens, labels], head(hidden, labels))
    predicting = keras.Model(tokens, head(hidden))

    rng = np.random.default_rng(1)
    training.set_weights([rng.normal(size=w.shape, scale=w.shape[0] ** -0.5) for w in training.get_weights()])
    # With Adam and an Embedding, Keras reaches other weights on TensorFlow, with its own layers and losses too.
    training.compile(keras.optimizers.SGD(2.0))
    x, y = data()
    losses = training.fit([x, y], batch_size=8, epochs=20, shuffle=False, verbose=0).history["loss"]
    right = (predicting.predict(x, verbose=0).argmax(-1) == y)[y != PADDING].mean()
    print(
        f"{keras.backend.backend():10}  loss {losses[0]:.5f} in the first epoch, {losses[-1]:.5f} in the last", end=""
    )
    print(f"; {right:.1%} of the tokens right")


def main() -> int:
    for backend in BACKENDS:
        environment = os.environ | {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
        command = [sys.executable, __file__, "child"]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace")
        if result.returncode:
            print(f"{backend}: {(result.stderr.strip().splitlines() or ['failed'])[-1]}", file=sys.stderr)
            return 1
        print(result.stdout, end="", flush=True)
    return 0


if __name__ == "__main__":
    if sys.argv[1:] == ["child"]:
        train()
        sys.exit()
    sys.exit(main())
