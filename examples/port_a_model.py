"""A model is ported from Keras to PyTorch and JAX, and the losses differ: `python examples/port_a_model.py`.

A classifier of handwritten digits computes one training step in each framework, from the same weights and on the same
images. The ports have three mistakes that people make. After each step `lb.compare` says where the port parts from
Keras first; that mistake is mended, and the step repeated, until nothing parts. Every run's arrays stay in a folder,
for `lossbridge compare`. Needs: pip install 'lossbridge[torch,jax,keras]' optax scikit-learn

Below: the data, the same step three times, the process that runs one of them, the story.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import lossbridge as lb

# As many hidden units as pixels: whether a square matrix is to be transposed, its shape does not tell.
PIXELS, HIDDEN, CLASSES, BATCH = 64, 64, 10, 128

Arrays = dict[str, np.ndarray]


def problem() -> Arrays:
    """What all frameworks share: images (N, 64) in [0, 1], labels (N,), and weights as Keras has them, (in, out)."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    return {
        "images": (images[:BATCH] / 16).astype(np.float32),
        "labels": labels[:BATCH],
        "hidden": rng.normal(scale=PIXELS**-0.5, size=(PIXELS, HIDDEN)).astype(np.float32),
        "out": rng.normal(scale=HIDDEN**-0.5, size=(HIDDEN, CLASSES)).astype(np.float32),
    }


# The same step three times. `mistakes`: those that this run still makes.


def step_in_keras(images: np.ndarray, labels: np.ndarray, hidden: np.ndarray, out: np.ndarray, mistakes: str) -> Arrays:
    """The original: it ends in a softmax, and its loss takes probabilities."""
    import jax
    import keras

    layers = [
        keras.layers.Dense(HIDDEN, activation="tanh", use_bias=False),
        keras.layers.Dense(CLASSES, activation="softmax", use_bias=False),
    ]
    model = keras.Sequential([keras.Input((PIXELS,)), *layers])
    model.set_weights([hidden, out])

    def loss_of(weights):
        p, _ = model.stateless_call(weights, [], images)
        losses = keras.losses.sparse_categorical_crossentropy(labels, p)
        return losses.mean(), (p, losses)

    weights = [variable.value for variable in model.trainable_variables]
    (loss, (p, losses)), gradients = jax.value_and_grad(loss_of, has_aux=True)(weights)
    return run(images, labels, weights, p, losses, loss, gradients)


def step_in_torch(images: np.ndarray, labels: np.ndarray, hidden: np.ndarray, out: np.ndarray, mistakes: str) -> Arrays:
    import torch
    from torch.nn.functional import cross_entropy

    model = torch.nn.Sequential(
        torch.nn.Linear(PIXELS, HIDDEN, bias=False), torch.nn.Tanh(), torch.nn.Linear(HIDDEN, CLASSES, bias=False)
    )
    with torch.no_grad():  # PyTorch's weights are (out, in)
        model[0].weight.copy_(torch.from_numpy(hidden if "kernel" in mistakes else hidden.T))
        model[2].weight.copy_(torch.from_numpy(out.T))
    y_pred = model(torch.from_numpy(images))
    if "softmax" in mistakes:  # as Keras' model ends; but cross_entropy applies another softmax
        y_pred = y_pred.softmax(-1)
    losses = cross_entropy(y_pred, torch.from_numpy(labels), reduction="none")
    losses.mean().backward()
    weights = list(model.parameters())
    return run(images, labels, weights, y_pred, losses, losses.mean(), [w.grad for w in weights])


def step_in_jax(images: np.ndarray, labels: np.ndarray, hidden: np.ndarray, out: np.ndarray, mistakes: str) -> Arrays:
    import jax
    import optax

    def loss_of(weights):
        hidden, out = weights
        logits = jax.numpy.tanh(images @ hidden) @ out
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.sum() if "sum" in mistakes else losses.mean(), (logits, losses)

    weights = [jax.numpy.asarray(w) for w in (hidden, out)]
    (loss, (logits, losses)), gradients = jax.value_and_grad(loss_of, has_aux=True)(weights)
    return run(images, labels, weights, logits, losses, loss, gradients)


def run(images, labels, weights, y_pred, losses, loss, gradients) -> Arrays:
    """A step's arrays under the names that `compare` knows."""

    def array(x) -> np.ndarray:
        return np.asarray(x.detach() if hasattr(x, "detach") else x)

    named = {"inputs": images, "y_true": labels, "y_pred": y_pred, "losses": losses, "loss": loss}
    for layer, weight, gradient in zip(("hidden", "out"), weights, gradients, strict=True):
        named |= {f"param_{layer}": weight, f"grad_{layer}": gradient}
    return {name: array(x) for name, x in named.items()}


STEPS = {"keras": step_in_keras, "torch": step_in_torch, "jax": step_in_jax}
# Of each port: the mistakes of one attempt after the other; where it then parts from Keras.
ATTEMPTS = {
    "torch": [("kernel, softmax", "param_hidden"), ("softmax", "losses"), ("", "")],
    "jax": [("sum", "loss"), ("", "")],
}


def child(framework: str, folder: str) -> None:
    """One framework's process: writes a file for every attempt."""
    for i, (mistakes, _) in enumerate(ATTEMPTS.get(framework, [("", "")]), 1):
        arrays = STEPS[framework](**problem(), mistakes=mistakes)
        np.savez(Path(folder) / (f"{framework}_{i}.npz" if framework in ATTEMPTS else f"{framework}.npz"), **arrays)


def compute(framework: str, folder: Path) -> None:
    """In a process of its own: not every two frameworks share one."""
    environment = os.environ | {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, __file__, "child", framework, str(folder)]
    result = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, errors="replace")
    if result.returncode:
        words = result.stderr.strip().splitlines() or [f"exit status {result.returncode}"]
        sys.exit(f"{framework}: {words[-1]}")


def main(folder: Path) -> int:
    """Exit status: 0 if every mistake was found where it was made, and nothing parts without them; 1 if not."""
    wrong = []
    for framework in STEPS:
        compute(framework, folder)
    for framework, attempts in ATTEMPTS.items():
        for i, (mistakes, place) in enumerate(attempts, 1):
            file = folder / f"{framework}_{i}.npz"
            found = lb.compare(folder / "keras.npz", file, names=("keras", framework))
            print(f"{framework}, attempt {i}: {found.first}\n")
            if found.parts_at != place:
                wrong.append(f"{file} with the mistakes {mistakes or 'none'} parts at {found.parts_at or 'nothing'}")
    print(f"the same, with every quantity: lossbridge compare {folder / 'keras.npz'} {folder / 'torch_1.npz'}")
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(*sys.argv[2:])
        sys.exit()
    parser = argparse.ArgumentParser(description="Ports a model, and finds three mistakes by comparing runs.")
    parser.add_argument("--folder", type=Path, help="Keep the runs' arrays here; by default in a new temporary folder.")
    given = parser.parse_args().folder
    if given is not None and not given.is_dir():
        parser.error(f"--folder {given} is no folder; name one that exists")
    sys.exit(main(given or Path(tempfile.mkdtemp(prefix="port_a_model_"))))
