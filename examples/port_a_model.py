"""A model is ported from Keras to PyTorch and JAX, and the three train on: `python examples/port_a_model.py`.

Keras trains a classifier of handwritten digits, in which an eight counts three times, and its weights are carried over.
The ports make four mistakes that people make. After each attempt `lb.compare` says where the port parts from Keras
first; that is mended, until nothing parts. The last mistake of PyTorch's port is its own mean, which divides by the
weights, where Keras divides by the samples. Then all train on: the curves stay together, but for PyTorch's own loss.
The arrays of the attempts stay in a folder, for `lossbridge compare`.
Needs: pip install 'lossbridge[torch,jax,keras]' optax scikit-learn matplotlib

Below: the data, a process for each framework, the story, the picture. Keras runs on JAX.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from pictures import BLUE, GREEN, GREY, ORANGE, STYLE, plt, save

import lossbridge as lb

# As many hidden units as pixels: whether a square matrix is to be transposed, its shape does not tell.
PIXELS, HIDDEN, CLASSES, BATCH = 64, 64, 10, 128
LEARNING_RATE = 0.25
OWN = "torch, own loss"
CLASS_WEIGHT = np.array([1, 1, 1, 1, 1, 1, 1, 1, 3, 1], np.float32)

Curve = list[float]

# Of each port: the mistakes of one attempt after the other.
ATTEMPTS = {"torch": ["kernel, softmax, mean", "softmax, mean", "mean", ""], "jax": ["sum", ""]}


def problem(steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images (N, 64) in [0, 1], labels (N,), and the images of each step, of which the first are those compared."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    batches = np.random.default_rng(0).integers(0, len(images), (steps, BATCH))
    return (images / 16).astype(np.float32), labels, batches


def write(file: Path, images, labels, hidden, out, y_pred, losses, loss) -> None:
    """A step's arrays under the names that `compare` knows."""
    arrays = {"inputs": images, "y_true": labels, "param_hidden": hidden, "param_out": out, "y_pred": y_pred}
    arrays |= {"class_weight": CLASS_WEIGHT, "losses": losses, "loss": loss}
    np.savez(file, **{name: x.detach() if hasattr(x, "detach") else x for name, x in arrays.items()})


# A process for each framework: it writes the arrays of its attempts, and returns its curves.


def in_keras(folder: Path, steps: int) -> dict[str, Curve]:
    """The original. It ends in a softmax, its loss takes probabilities, and `fit` the weights of classes."""
    import keras

    images, labels, batches = problem(steps)
    keras.utils.set_random_seed(0)
    layers = [
        keras.layers.Dense(HIDDEN, activation="tanh", use_bias=False),
        keras.layers.Dense(CLASSES, activation="softmax", use_bias=False),
    ]
    model, loss_of = keras.Sequential([keras.Input((PIXELS,)), *layers]), keras.losses.SparseCategoricalCrossentropy
    weights = dict(enumerate(map(float, CLASS_WEIGHT)))
    model.compile(keras.optimizers.SGD(LEARNING_RATE), loss_of())
    model.fit(images, labels, batch_size=BATCH, epochs=5, class_weight=weights, verbose=0)

    x, y = images[batches[0]], labels[batches[0]]
    p = model.predict_on_batch(x)
    losses, loss = (loss_of(reduction=of)(y, p, CLASS_WEIGHT[y]) for of in ("none", "sum_over_batch_size"))
    write(folder / "keras.npz", x, y, *model.get_weights(), p, losses, loss)

    curve = []
    for batch in batches:
        model.reset_metrics()
        curve.append(float(model.train_on_batch(images[batch], labels[batch], class_weight=weights)))
    return {"keras": curve}


def in_torch(folder: Path, steps: int) -> dict[str, Curve]:
    import torch
    from torch.nn.functional import cross_entropy

    images, labels, batches = (torch.from_numpy(x) for x in problem(steps))
    weight = torch.from_numpy(CLASS_WEIGHT)
    keras = np.load(folder / "keras.npz")

    def module(mistakes: str = "") -> torch.nn.Sequential:
        model = torch.nn.Sequential(
            torch.nn.Linear(PIXELS, HIDDEN, bias=False), torch.nn.Tanh(), torch.nn.Linear(HIDDEN, CLASSES, bias=False)
        )
        hidden, out = (torch.from_numpy(keras[name]) for name in ("param_hidden", "param_out"))
        with torch.no_grad():  # PyTorch's weights are (out, in)
            model[0].weight.copy_(hidden if "kernel" in mistakes else hidden.T)
            model[2].weight.copy_(out.T)
        return model

    def own_mean(y, y_pred):
        return cross_entropy(y_pred, y, weight=weight)

    def keras_mean(y, y_pred):
        return lb.sparse_categorical_crossentropy(y, y_pred, from_logits=True, class_weight=weight)

    x, y = images[batches[0]], labels[batches[0]]
    for i, mistakes in enumerate(ATTEMPTS["torch"], 1):
        model = module(mistakes)
        y_pred = model(x)
        if "softmax" in mistakes:  # as Keras' model ends; but cross_entropy applies another softmax
            y_pred = y_pred.softmax(-1)
        losses = cross_entropy(y_pred, y, weight=weight, reduction="none")
        loss = (own_mean if "mean" in mistakes else keras_mean)(y, y_pred)
        write(folder / f"torch_{i}.npz", x, y, *model.parameters(), y_pred, losses, loss)

    curves: dict[str, Curve] = {}
    for name, loss_of in (("torch", keras_mean), (OWN, own_mean)):
        model, curves[name] = module(), []
        optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE)
        for batch in batches:
            optimizer.zero_grad()
            loss = loss_of(labels[batch], model(images[batch]))
            loss.backward()
            optimizer.step()
            curves[name].append(loss.item())
    return curves


def in_jax(folder: Path, steps: int) -> dict[str, Curve]:
    import jax
    import optax

    images, labels, batches = problem(steps)
    keras = np.load(folder / "keras.npz")
    weights = [jax.numpy.asarray(keras[name]) for name in ("param_hidden", "param_out")]

    def model(weights, x):
        return jax.numpy.tanh(x @ weights[0]) @ weights[1]

    def loss_of(weights, x, y):
        return lb.sparse_categorical_crossentropy(y, model(weights, x), from_logits=True, class_weight=CLASS_WEIGHT)

    x, y = images[batches[0]], labels[batches[0]]
    logits = model(weights, x)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, y) * CLASS_WEIGHT[y]
    for i, mistakes in enumerate(ATTEMPTS["jax"], 1):
        loss = losses.sum() if "sum" in mistakes else loss_of(weights, x, y)
        write(folder / f"jax_{i}.npz", x, y, *weights, logits, losses, loss)

    curve, step = [], jax.jit(jax.value_and_grad(loss_of))
    for batch in batches:
        loss, gradients = step(weights, images[batch], labels[batch])
        weights = [w - LEARNING_RATE * gradient for w, gradient in zip(weights, gradients, strict=True)]
        curve.append(float(loss))
    return {"jax": curve}


FRAMEWORKS = {"keras": in_keras, "torch": in_torch, "jax": in_jax}


def compute(framework: str, folder: Path, steps: int) -> dict[str, Curve]:
    """In a process of its own: not every two frameworks share one."""
    environment = os.environ | {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, __file__, "child", framework, str(folder), str(steps)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace")
    if result.returncode:
        words = result.stderr.strip().splitlines() or [f"exit status {result.returncode}"]
        sys.exit(f"{framework}: {words[-1]}")
    return json.loads(result.stdout.splitlines()[-1])


def main(folder: Path, steps: int, out: Path) -> None:
    curves: dict[str, Curve] = {}
    for framework in FRAMEWORKS:
        curves |= compute(framework, folder, steps)
    for framework, attempts in ATTEMPTS.items():
        for i in range(1, len(attempts) + 1):
            found = lb.compare(folder / "keras.npz", folder / f"{framework}_{i}.npz", names=("keras", framework))
            print(textwrap.fill(f"{framework}, attempt {i}: {found.first}", 84, subsequent_indent="  "))
    keras, torch = np.load(folder / "keras.npz"), np.load(folder / "torch_3.npz")
    named = lb.diagnose(keras["y_true"], torch["y_pred"], keras["loss"], class_weight=CLASS_WEIGHT)
    print(f"PyTorch computes Keras' loss by\n  {named.classes[0].calls['torch']}")
    print(f"{steps} further steps: the last loss, and how far any step's is from Keras', relatively")
    for name, curve in curves.items():
        print(f"  {name:15}  {curve[-1]:.6f}  {difference(curve, curves).max():.0e}")
    draw(curves, out)
    print(f"picture: {out}\nevery quantity: lossbridge compare {folder / 'keras.npz'} {folder / 'torch_3.npz'}")


def difference(curve: Curve, curves: dict[str, Curve]) -> np.ndarray:
    return abs(np.array(curve) / np.array(curves["keras"]) - 1)


def draw(curves: dict[str, Curve], path: Path) -> None:
    looks = {"keras": (GREY, 5, "-"), "torch": (ORANGE, 2, "-"), "jax": (GREEN, 2, "--"), OWN: (BLUE, 2, "-")}
    with rc_context(STYLE):
        figure, (above, below) = plt.subplots(2, 1, figsize=(9, 6.4), sharex=True, layout="constrained")
        for name, (colour, width, line) in looks.items():
            steps = range(1, len(curves[name]) + 1)
            above.plot(steps, curves[name], color=colour, linewidth=width, linestyle=line, label=name)
            if name != "keras":
                below.plot(steps, difference(curves[name], curves), ".", color=colour, markersize=4)
        above.set(ylabel="loss of the batch (nats)", title="The three train on from the same weights", ylim=(0, None))
        above.legend(ncols=2)
        below.set(yscale="log", xlabel="step", ylabel="relative difference", title="How far each is from Keras' curve")
        save(figure, path)


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        print(json.dumps(FRAMEWORKS[sys.argv[2]](Path(sys.argv[3]), int(sys.argv[4]))))
        sys.exit()
    parser = argparse.ArgumentParser(description="Ports a model, finds the mistakes by comparing runs, and trains on.")
    parser.add_argument("--folder", type=Path, help="Keep the runs' arrays here; by default in a new temporary folder.")
    parser.add_argument("--steps", type=int, default=200, help="How many steps to train on.")
    parser.add_argument("--out", type=Path, default="port_a_model.png", help="The picture to write.")
    given = parser.parse_args()
    if given.folder is not None and not given.folder.is_dir():
        parser.error(f"--folder {given.folder} is no folder; name one that exists")
    main(given.folder or Path(tempfile.mkdtemp(prefix="port_a_model_")), given.steps, given.out)
