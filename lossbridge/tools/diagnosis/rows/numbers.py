"""Losses in plain NumPy, in float64, a sample or an element each; and drawn arrays. Nothing of lossbridge is used.

The numbers of the rows are made of these, so that a mistake in the package is not repeated in what measures it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = Any


def log_softmax(x: Array, axis: int = -1) -> Array:
    x = np.asarray(x, np.float64)
    x = x - x.max(axis, keepdims=True)
    return x - np.log(np.exp(x).sum(axis, keepdims=True))


def softmax(x: Array, axis: int = -1) -> Array:
    return np.exp(log_softmax(x, axis))


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def of_label(values: Array, y: Array, axis: int = -1) -> Array:
    """The entry of each sample's class."""
    return np.take_along_axis(values, np.expand_dims(y, axis), axis).squeeze(axis)


def one_hot(y: Array, classes: int) -> Array:
    return np.eye(classes, dtype=np.float32)[y]


def ce(x: Array, y: Array, axis: int = -1) -> Array:
    """Of logits and labels."""
    return -of_label(log_softmax(x, axis), y, axis)


def nll(p: Array, y: Array, axis: int = -1) -> Array:
    """Of probabilities and labels."""
    return -np.log(of_label(np.asarray(p, np.float64), y, axis))


def z_loss(x: Array, coefficient: float) -> Array:
    """ζ·lse² of logits, a sample each."""
    return coefficient * np.log(np.exp(np.asarray(x, np.float64)).sum(-1)) ** 2


def capped(x: Array, cap: float) -> Array:
    return cap * np.tanh(np.asarray(x, np.float64) / cap)


def soft_ce(x: Array, t: Array, axis: int = -1) -> Array:
    """Of logits and distributions."""
    return -(t * log_softmax(x, axis)).sum(axis)


def smoothed(x: Array, y: Array, s: float) -> Array:
    """ce with s/K to every class."""
    return (1 - s) * ce(x, y) - s * log_softmax(x).mean(-1)


def smoothed_wrong(x: Array, y: Array, s: float) -> Array:
    """ce with s/(K − 1) to each wrong class."""
    wrong = s / (x.shape[-1] - 1)
    return (1 - s - wrong) * ce(x, y) - wrong * log_softmax(x).sum(-1)


def bce(t: Array, p: Array) -> Array:
    """Of outcomes and probabilities, an element each."""
    t, p = np.asarray(t, np.float64), np.asarray(p, np.float64)
    return -t * np.log(p) - (1 - t) * np.log(1 - p)


def bce_logits(t: Array, x: Array, positive: float = 1.0) -> Array:
    """Of outcomes and logits; `positive` weighs the outcomes 1."""
    t, x = np.asarray(t, np.float64), np.asarray(x, np.float64)
    return positive * t * np.logaddexp(0, -x) + (1 - t) * np.logaddexp(0, x)


def focal(t: Array, x: Array, gamma: float, alpha: float | None = None) -> Array:
    """Of outcomes 0 or 1 and logits, an element each; α for the outcomes 1, 1 − α for the others."""
    p = sigmoid(np.where(t == 1, x, -x))
    losses = (1 - p) ** gamma * bce_logits(t, x)
    return losses if alpha is None else losses * np.where(t == 1, alpha, 1 - alpha)


def kl(t: Array, p: Array) -> Array:
    """t log(t/p), an element each; 0 where t is 0."""
    t, p = np.asarray(t, np.float64), np.asarray(p, np.float64)
    return t * np.log(np.where(t > 0, t, 1) / np.where(t > 0, p, 1))


def mixed(t: Array, p: Array, beta: float) -> Array:
    """The generalised Jensen–Shannon divergence, a sample each."""
    middle = beta * np.float64(t) + (1 - beta) * np.float64(p)
    return beta * kl(t, middle).sum(-1) + (1 - beta) * kl(p, middle).sum(-1)


def distilled(teacher: Array, student: Array, temperature: float) -> Array:
    """KL of the softened distributions, a sample each, without T²."""
    return kl(softmax(teacher / np.float64(temperature)), softmax(student / np.float64(temperature))).sum(-1)


# Drawn arrays.


def labels(seed: int, *shape: int, scale: float = 1.5) -> tuple[Array, Array]:
    """Labels, and float32 logits of this shape; classes last."""
    rng = np.random.default_rng(seed)
    x = (scale * rng.normal(size=shape)).astype(np.float32)
    return rng.integers(0, shape[-1], shape[:-1]), x


def images(seed: int, *shape: int) -> tuple[Array, Array]:
    """Labels, and float32 logits with the classes along axis 1."""
    y, x = labels(seed, shape[0], *shape[2:], shape[1])
    return y, np.ascontiguousarray(np.moveaxis(x, -1, 1))


def outcomes(seed: int, *shape: int, scale: float = 1.5) -> tuple[Array, Array]:
    """Outcomes 0 and 1, about a third of them 1 and at least one of each, and logits; float32."""
    rng = np.random.default_rng(seed)
    t = (rng.random(shape) < 0.35).astype(np.float32)
    t.flat[0], t.flat[1] = 1, 0
    return t, (scale * rng.normal(size=shape)).astype(np.float32)


def soft(seed: int, *shape: int) -> tuple[Array, Array]:
    """Distributions, and logits; float32."""
    rng = np.random.default_rng(seed)
    t = rng.dirichlet(np.ones(shape[-1]), shape[:-1]).astype(np.float32)
    return t, (1.5 * rng.normal(size=shape)).astype(np.float32)


def with_zeros(p: Array, keep: Array) -> Array:
    """Rows of probabilities with an exact 0 in about a third of the places that are not to be kept; float32."""
    drawn = np.random.default_rng(7).random(p.shape) < 0.35
    p = np.where(drawn & ~np.asarray(keep, bool), 0, p)
    return f32(p / p.sum(-1, keepdims=True))


def f32(x: Array) -> Array:
    return np.asarray(x, np.float32)


def weights(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).uniform(0.3, 3, shape).astype(np.float32)
