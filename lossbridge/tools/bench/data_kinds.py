"""Kinds of data: what models give a loss while they are trained, beside random numbers. Plain NumPy, seeded.

A kind changes random arrays, and names the options of the loss that it needs. Which kinds a form has is decided here;
which cells are measured, in cells.py. Predictions are an array, or, of the linear losses, a tuple: hidden states of
shape (rows, units), and the weight of a layer, (classes, units); so is a target that is a teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from lossbridge import distillation
from lossbridge.frameworks import linear_blocks
from lossbridge.spec import LOSSES, Loss, Target

Array = np.ndarray
RANDOM, IGNORED_ROWS, PADDED = "random", "a third ignored", "−∞ padding"
IGNORE, SMOOTHING = -100, 0.1


_OF_LAYERS: Mapping[str, Loss] = {"linear_crossentropy": linear_blocks.OF, "linear_distillation": distillation.OF}


class Form(NamedTuple):
    """A loss with the options that decide which formula it computes. `units`: of hidden states, if it takes them."""

    loss: str
    options: Mapping[str, Any] = {}
    units: int = 0

    @property
    def record(self) -> Loss:
        """Of a linear loss that of its logits' loss, whose options it has."""
        return _OF_LAYERS.get(self.loss) or LOSSES[self.loss]

    @property
    def from_logits(self) -> bool:
        return bool(self.units) or self.record.form(self.options) == "logits"

    @property
    def target(self) -> Target:
        """What y_true holds; of log_loss, which takes two kinds, the labels."""
        return next(iter(self.record.rules["logits" if self.from_logits else "probabilities"]))


@dataclass
class Data:
    """The arrays of a call. `pred`, if it is an array, and a target of logits hold logits until the kind is applied."""

    target: Any
    pred: Any
    options: dict[str, Any] = field(default_factory=dict)


Edit = Callable[[np.random.Generator, Form, Data], None]  # in place


def each(function: Callable[[Any], Any], pred: Any) -> Any:
    """The function of the predictions, or of each array of a tuple."""
    return tuple(map(function, pred)) if isinstance(pred, tuple) else function(pred)


def kinds(form: Form) -> list[str]:
    return [name for name, kind in KINDS.items() if kind.suits(form)]


def made(form: Form, shape: tuple[int, int], kind: str = RANDOM) -> Data:
    """The same for every backend."""
    rng = np.random.default_rng(0)
    if kind == RANDOM or form.units:
        data = Data(*_random(rng, form, shape))
        KINDS[kind].edit(rng, form, data)
        return data
    logits = rng.standard_normal(shape, np.float32)
    if not form.from_logits:
        np.clip(logits, -3, 3, out=logits)  # no probability below an epsilon of 1e-7
    data = Data(_targets(rng, form, shape), logits)
    KINDS[kind].edit(rng, form, data)
    if not form.from_logits:
        data.pred = _probabilities(form, data.pred)
    return data


def _random(rng: np.random.Generator, form: Form, shape: tuple[int, int]) -> tuple[Any, Any]:
    if form.units and form.target == "logits":
        return _layer(rng, form, shape), _layer(rng, form, shape)
    target = _targets(rng, form, shape)
    if form.units:
        return target, _layer(rng, form, shape)
    if form.from_logits:
        return target, rng.standard_normal(shape, np.float32)
    if form.target == "outcomes":
        return target, rng.uniform(0.05, 0.95, shape).astype(np.float32)
    return target, _distributions(rng, shape)


def _layer(rng: np.random.Generator, form: Form, shape: tuple[int, int]) -> tuple[Array, Array]:
    """Hidden states, and a weight with which the logits have a variance of 1."""
    hidden, weight = (rng.standard_normal((size, form.units), np.float32) for size in shape)
    weight /= np.float32(form.units**0.5)
    return hidden, weight


def _targets(rng: np.random.Generator, form: Form, shape: tuple[int, int]) -> Array:
    if form.target == "labels":
        return rng.integers(0, shape[1], shape[0])
    if form.target == "distributions":
        return _distributions(rng, shape)
    if form.target == "outcomes":
        return rng.random(shape, np.float32)
    return rng.standard_normal(shape, np.float32)


def _distributions(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
    return _normalised(rng.random(shape, np.float32) + np.float32(0.1))


def _normalised(x: Array) -> Array:
    x /= x.sum(1, keepdims=True)
    return x


def _probabilities(form: Form, logits: Array) -> Array:
    """Softmax, or of outcomes the logistic function."""
    if form.target == "outcomes":
        logistic: Array = 1 / (1 + np.exp(-logits))
        return logistic
    return _normalised(np.exp(logits - logits.max(1, keepdims=True)))


# The kinds.


def _lead(by: float, rng: np.random.Generator, form: Form, data: Data) -> None:
    """The true class leads the others by so much; a teacher is as sure, and the targets of logits are one-hot."""
    if form.target == "outcomes":
        data.target = np.round(data.target)
        data.pred += np.float32(by) * (2 * data.target - 1)
        return
    rows = np.arange(len(data.pred))
    true = data.target if form.target == "labels" else rng.integers(0, data.pred.shape[1], len(rows))
    teacher = data.target if form.target == "logits" else data.pred[:, ::-1].copy()
    for x in (data.pred, teacher):
        x[rows, true] = -np.inf
        x[rows, true] = x.max(1) + np.float32(by)
    if form.target == "distributions" and form.from_logits:
        data.target = np.zeros_like(data.pred)
        data.target[rows, true] = 1
    elif form.target == "distributions":
        data.target = _probabilities(form, teacher)


def _near(scale: float, noise: float, rng: np.random.Generator, form: Form, data: Data) -> None:
    """The teacher's logits are scale·z + noise, whether the target holds them or their probabilities."""
    teacher = np.float32(scale) * data.pred + np.float32(noise) * rng.standard_normal(data.pred.shape, np.float32)
    data.target = teacher if form.target == "logits" else _probabilities(form, teacher)


def _ignored(rng: np.random.Generator, form: Form, data: Data) -> None:
    """By ignore_class where the loss has it, else by a mask. The first row counts."""
    mask = rng.random(len(data.pred[0] if form.units else data.target)) < 2 / 3
    mask[0] = True
    if "ignore_class" in form.record.options:
        data.target[~mask] = IGNORE
        data.options["ignore_class"] = IGNORE
    else:
        data.options["mask"] = mask


def _weights(option: str, rng: np.random.Generator, form: Form, data: Data) -> None:
    classes = data.pred[1].shape[0] if form.units else data.pred.shape[1]
    data.options[option] = rng.uniform(0.5, 2, classes).astype(np.float32)


def _smoothed(rng: np.random.Generator, form: Form, data: Data) -> None:
    data.options["label_smoothing"] = SMOOTHING


def _padded(rng: np.random.Generator, form: Form, data: Data) -> None:
    """The last quarter of the classes is none: a vocabulary that was rounded up."""
    real = max(1, data.pred.shape[1] * 3 // 4)
    data.pred[:, real:] = -np.inf
    if form.target == "labels":
        data.target %= real
    else:
        data.target[:, real:] = -np.inf if form.target == "logits" else 0
    if form.target == "distributions":
        _normalised(data.target)


def _scaled(rng: np.random.Generator, form: Form, data: Data) -> None:
    data.pred *= 30
    if form.target == "logits":
        data.target *= 30


_DENSE: tuple[Target, ...] = ("distributions", "outcomes", "logits")
_CLASSES: tuple[Target, ...] = ("labels", "distributions", "logits")


@dataclass(frozen=True)
class Kind:
    """What it does to the arrays, the targets it is for, an option that the loss must have, and whether it is for
    logits alone: probabilities of such data are clipped, and peers clip otherwise. `hidden`: for hidden states too,
    because it leaves the predictions as they are."""

    edit: Edit
    targets: tuple[Target, ...] = ("labels", *_DENSE)
    option: str = ""
    logits: bool = False
    hidden: bool = False

    def suits(self, form: Form) -> bool:
        has_option = not self.option or self.option in form.record.options
        has_form = form.from_logits or not self.logits
        return form.target in self.targets and has_option and has_form and (self.hidden or not form.units)


KINDS: Mapping[str, Kind] = {
    RANDOM: Kind(lambda rng, form, data: None, hidden=True),
    "leads by 0": Kind(partial(_lead, 0.0)),
    "leads by 5": Kind(partial(_lead, 5.0)),
    "leads by 30": Kind(partial(_lead, 30.0), logits=True),
    "distance 0.3": Kind(partial(_near, 1.0, 0.3), _DENSE),
    "distance 1e-3": Kind(partial(_near, 1.0, 1e-3), _DENSE),
    "teacher half as sure": Kind(partial(_near, 0.5, 0.0), _DENSE),
    "scaled by 30": Kind(_scaled, logits=True),
    PADDED: Kind(_padded, _CLASSES, logits=True),
    IGNORED_ROWS: Kind(_ignored, hidden=True),
    "class weights": Kind(partial(_weights, "class_weight"), option="class_weight", hidden=True),
    "positive weights": Kind(partial(_weights, "pos_weight"), option="pos_weight"),
    "smoothing": Kind(_smoothed, option="label_smoothing", hidden=True),
}
# Of `--quick`: where kernels are likeliest to change their way.
QUICK = (RANDOM, "leads by 30", "distance 1e-3")
