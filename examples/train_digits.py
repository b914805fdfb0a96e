"""Four frameworks learn the same model: `python examples/train_digits.py`.

A classifier of handwritten digits with one hidden layer is trained in NumPy, PyTorch, TensorFlow and JAX, from the same
weights, on the same batches, with lossbridge's loss and the framework's own layers, gradients and optimiser. The losses
of every step are compared with NumPy's. Needs: pip install 'lossbridge[all]' optax scikit-learn

Below: the data, the same training step four times, the process that runs one of them, the command. training_report.py
has the limits that the runs are checked against, the table and the picture.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from training_report import NAMES, Run, draw, faults, table, write_json

import lossbridge as lb

PIXELS, HIDDEN, CLASSES, BATCH = 64, 64, 10, 128
# Exact in binary: Keras rounds the momentum to float32, even where the model is float64.
LEARNING_RATE, MOMENTUM = 0.5, 0.875

# What a trainer returns: step(images, labels) -> loss, and logits(images).
Trainer = tuple[Callable[[np.ndarray, np.ndarray], float], Callable[[np.ndarray], np.ndarray]]


def problem(seed: int, steps: int) -> dict[str, np.ndarray]:
    """What all frameworks share: images (N, 64) in [0, 1], labels (N,), weights, and the images of each step."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    split = train_test_split(images / 16, labels.astype(np.int64), test_size=0.25, stratify=labels, random_state=seed)
    shared = dict(zip(("images", "test_images", "labels", "test_labels"), split, strict=True))
    rng = np.random.default_rng(seed)
    shared["w1"] = rng.normal(scale=PIXELS**-0.5, size=(PIXELS, HIDDEN))
    shared["w2"] = rng.normal(scale=HIDDEN**-0.5, size=(HIDDEN, CLASSES))
    shared |= {"b1": np.zeros(HIDDEN), "b2": np.zeros(CLASSES)}
    count = len(shared["images"])
    epochs = [rng.permutation(count) for _ in range(steps * BATCH // count + 1)]
    shared["batches"] = np.concatenate(epochs)[: steps * BATCH].reshape(steps, BATCH)
    return shared


# The same training step four times. The hidden layer is tanh, not ReLU: where float32 rounds a ReLU's input to the
# other side of 0, the unit is switched on or off, and the curves then differ by more than rounding.


def train_in_numpy(w1: np.ndarray, b1: np.ndarray, w2: np.ndarray, b2: np.ndarray, own_loss: bool) -> Trainer:
    weights = [w1, b1, w2, b2]
    velocities = [np.zeros_like(w) for w in weights]
    value_and_grad = lb.value_and_grad(lb.sparse_categorical_crossentropy)

    def forward(images):
        hidden = np.tanh(images @ w1 + b1)
        return hidden, hidden @ w2 + b2

    def step(images, labels):
        hidden, logits = forward(images)
        loss, d_logits = value_and_grad(labels, logits, from_logits=True)
        d_hidden = d_logits @ w2.T * (1 - hidden**2)
        gradients = [images.T @ d_hidden, d_hidden.sum(0), hidden.T @ d_logits, d_logits.sum(0)]
        for weight, velocity, gradient in zip(weights, velocities, gradients, strict=True):
            velocity *= MOMENTUM
            velocity += gradient
            weight -= LEARNING_RATE * velocity
        return float(loss)

    def logits(images):
        return forward(images)[1]

    return step, logits


def train_in_torch(w1: np.ndarray, b1: np.ndarray, w2: np.ndarray, b2: np.ndarray, own_loss: bool) -> Trainer:
    import torch

    model = torch.nn.Sequential(torch.nn.Linear(PIXELS, HIDDEN), torch.nn.Tanh(), torch.nn.Linear(HIDDEN, CLASSES))
    model.to(torch.from_numpy(w1).dtype)
    with torch.no_grad():
        for parameter, start in zip(model.parameters(), (w1.T, b1, w2.T, b2), strict=True):
            parameter.copy_(torch.from_numpy(start))
    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE, momentum=MOMENTUM)

    def loss_of(labels, logits):
        if own_loss:
            return torch.nn.functional.cross_entropy(logits, labels)
        return lb.sparse_categorical_crossentropy(labels, logits, from_logits=True)

    def step(images, labels):
        optimizer.zero_grad()
        loss = loss_of(torch.from_numpy(labels), model(torch.from_numpy(images)))
        loss.backward()
        optimizer.step()
        return loss.item()

    def logits(images):
        return model(torch.from_numpy(images)).detach().numpy()

    return step, logits


def train_in_tensorflow(w1: np.ndarray, b1: np.ndarray, w2: np.ndarray, b2: np.ndarray, own_loss: bool) -> Trainer:
    import keras
    import tensorflow as tf

    keras.config.set_floatx(w1.dtype.name)  # of inputs and hyperparameters
    keras.config.set_dtype_policy(w1.dtype.name)  # of layers; it follows the line above only until it is first read
    model = keras.Sequential(
        [keras.Input((PIXELS,)), keras.layers.Dense(HIDDEN, activation="tanh"), keras.layers.Dense(CLASSES)]
    )
    model.set_weights([w1, b1, w2, b2])
    optimizer = keras.optimizers.SGD(LEARNING_RATE, momentum=MOMENTUM)
    optimizer.build(model.trainable_variables)

    def loss_of(labels, logits):
        if own_loss:
            return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
        return lb.sparse_categorical_crossentropy(labels, logits, from_logits=True)

    @tf.function
    def update(images, labels):
        with tf.GradientTape() as tape:
            loss = loss_of(labels, model(images))
        optimizer.apply(tape.gradient(loss, model.trainable_variables))
        return loss

    def step(images, labels):
        return float(update(tf.constant(images), tf.constant(labels)))

    def logits(images):
        return model(images).numpy()

    return step, logits


def train_in_jax(w1: np.ndarray, b1: np.ndarray, w2: np.ndarray, b2: np.ndarray, own_loss: bool) -> Trainer:
    import jax
    import optax

    jax.config.update("jax_enable_x64", True)  # else float64 arrays become float32
    weights = jax.tree.map(jax.numpy.asarray, [w1, b1, w2, b2])
    optimizer = optax.sgd(LEARNING_RATE, momentum=MOMENTUM)
    state = optimizer.init(weights)

    def model(weights, images):
        w1, b1, w2, b2 = weights
        return jax.numpy.tanh(images @ w1 + b1) @ w2 + b2

    def loss_of(weights, images, labels):
        if own_loss:
            return optax.softmax_cross_entropy_with_integer_labels(model(weights, images), labels).mean()
        return lb.sparse_categorical_crossentropy(labels, model(weights, images), from_logits=True)

    @jax.jit
    def update(weights, state, images, labels):
        loss, gradients = jax.value_and_grad(loss_of)(weights, images, labels)
        changes, state = optimizer.update(gradients, state)
        return optax.apply_updates(weights, changes), state, loss

    def step(images, labels):
        nonlocal weights, state
        weights, state, loss = update(weights, state, images, labels)
        return float(loss)

    def logits(images):
        return np.asarray(model(weights, images))

    return step, logits


TRAINERS = {"numpy": train_in_numpy, "torch": train_in_torch, "tensorflow": train_in_tensorflow, "jax": train_in_jax}
REQUIRED = {"numpy": [], "torch": ["torch"], "tensorflow": ["tensorflow", "keras"], "jax": ["jax", "optax"]}


def child(backend: str, file: str, planned: str) -> None:
    """One framework's process: trains each (dtype, own loss) that is planned, and prints a line of JSON a step."""
    # Frameworks write to standard output as they like; the lines of JSON keep the original to themselves.
    lines = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    for dtype, own_loss in json.loads(planned):
        with np.load(file) as arrays:
            shared = {name: x.astype(dtype) if x.dtype.kind == "f" else x for name, x in arrays.items()}
        weights = [shared[name] for name in ("w1", "b1", "w2", "b2")]
        step, logits = TRAINERS[backend](*weights, own_loss=own_loss)
        for batch in shared["batches"]:
            images, labels = shared["images"][batch], shared["labels"][batch]
            start = time.perf_counter()
            loss = step(images, labels)
            print(json.dumps({"loss": loss, "seconds": time.perf_counter() - start}), file=lines)
        right = logits(shared["test_images"]).argmax(-1) == shared["test_labels"]
        print(json.dumps({"accuracy": float(right.mean())}), file=lines)


def train(planned: list[Run], file: Path, on_step: Callable[[], None]) -> list[str]:
    """Fills in one framework's runs, in a process of its own; returns what went wrong."""
    backend = planned[0].backend
    environment = {
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "OMP_NUM_THREADS": "1",  # more threads would wait for each other longer than such small products take
        **os.environ,
        "KERAS_BACKEND": "tensorflow",
        "CUDA_VISIBLE_DEVICES": "",  # GPUs may shorten float32 in matrix products
        "JAX_PLATFORMS": "cpu",
    }
    plan = json.dumps([(run.dtype, run.own_loss) for run in planned])
    command = [sys.executable, __file__, "child", backend, str(file), plan]
    runs = iter(planned)
    run = next(runs)
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=environment, encoding="utf-8") as process,
    ):
        for line in process.stdout:
            message = json.loads(line)
            if "accuracy" in message:
                run.accuracy = message["accuracy"]
                run = next(runs, run)
            else:
                run.losses.append(message["loss"])
                run.seconds.append(message["seconds"])
                on_step()
        status = process.wait()
        errors.seek(0)
        words = errors.read().strip().splitlines() or [""]
    if status == 0:
        return []
    return [f"{run.label}, {run.dtype}: exit status {status} after {len(run.losses)} steps: {words[-1].strip()}"]


def main(
    steps: Annotated[int, typer.Option(min=2, help="Steps of training.")] = 600,
    dtype: Annotated[Literal["float64", "float32", "both"], typer.Option(help="Of weights and images.")] = "both",
    native: Annotated[bool, typer.Option("--native", help="Train with each framework's own loss, too.")] = False,
    out: Annotated[Path, typer.Option(help="The picture to write.")] = Path("train_digits.png"),
    json: Annotated[Path | None, typer.Option(help="Keep every step's loss in this file.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of the split, the weights and the batches.")] = 0,
    backend: Annotated[list[str] | None, typer.Option(help="Beside NumPy only this one; may be repeated.")] = None,
) -> None:
    """Train the same classifier in four frameworks and compare the loss of every step with NumPy's.

    Exit status: 0 if all curves agree within the limits, 1 if not, 2 on bad usage.
    """
    for name in backend or []:
        if name not in TRAINERS:
            raise typer.BadParameter(f"--backend {name} is unknown; use one of {', '.join(TRAINERS)}")
    if out.suffix.lower() != ".png":
        raise typer.BadParameter(f"--out {out} does not end in .png, and the picture is one; name it so")
    if json is not None and json.resolve() == out.resolve():
        raise typer.BadParameter(f"--json and --out are the same file, {out}; name two")
    for path in filter(None, (out, json)):
        try:  # now, rather than after the training
            path.open("a").close()
        except OSError as error:
            raise typer.BadParameter(f"{path} cannot be written: {error.strerror}; name another file") from None

    dtypes = ["float64", "float32"] if dtype == "both" else [dtype]
    planned, left_out = {}, []
    for name in [name for name in TRAINERS if not backend or name in ("numpy", *backend)]:
        own_losses = [False, True] if native and name != "numpy" else [False]
        missing = [module for module in REQUIRED[name] if find_spec(module) is None]
        if missing:
            left_out.append(f"{NAMES[name]}: left out, not installed: pip install {' '.join(missing)}")
        else:
            planned[name] = [Run(name, dtype, own_loss) for dtype in dtypes for own_loss in own_losses]
    wrong = list(left_out) if backend else []

    columns = TextColumn("{task.description:<10}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps")
    with tempfile.TemporaryDirectory() as folder, Progress(*columns, console=Console(stderr=True)) as progress:
        file = Path(folder) / "shared.npz"
        np.savez(file, **problem(seed, steps))
        bars = {name: progress.add_task(NAMES[name], total=steps * len(runs)) for name, runs in planned.items()}
        for name, runs in planned.items():  # one after the other, so that none slows another's steps
            wrong += train(runs, file, on_step=lambda bar=bars[name]: progress.advance(bar))

    runs = [run for runs in planned.values() for run in runs if run.accuracy is not None]
    wrong += faults(runs)
    draw(runs, out)
    if json is not None:
        write_json(json, runs, wrong)
    console = Console()
    console.print(table(runs))
    for line in (*left_out, *(line for line in wrong if line not in left_out), f"picture: {out}"):
        console.print(line, style="red" if line in wrong else "", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(1 if wrong else 0)


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(*sys.argv[2:])
    else:
        typer.run(main)
