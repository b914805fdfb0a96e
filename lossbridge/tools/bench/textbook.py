"""The losses as a textbook writes them, in NumPy: peers on NumPy, and in float64 the exact value for every contender.

Means over (rows, classes) arrays, without any care for boundaries; of the linear losses predictions are a pair of
hidden states and weight, and so is a teacher. Shares no code with the losses that it is compared with. NumPy does not
differentiate, so most losses have a function that returns the gradient too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Array = np.ndarray
Loss = Callable[[Any, Any], Any]


def _log_softmax(z: Array) -> Array:
    z = z - z.max(1, keepdims=True)
    return z - np.log(np.exp(z).sum(1, keepdims=True))


def _softplus(z: Array) -> Array:
    return np.maximum(z, 0) + np.log1p(np.exp(-np.abs(z)))


def _sigmoid(z: Array) -> Array:
    return 1 / (1 + np.exp(-z))


def _at(labels: Array, x: Array) -> Array:
    return x[np.arange(len(x)), labels]


def sparse_cross_entropy(labels: Array, z: Array) -> Any:
    return -_at(labels, _log_softmax(z)).mean()


def cross_entropy(t: Array, z: Array) -> Any:
    return -(t * _log_softmax(z)).sum(1).mean()


def kl_of_logits(s: Array, z: Array) -> Any:
    log_t = _log_softmax(s)
    return (np.exp(log_t) * (log_t - _log_softmax(z))).sum(1).mean()


def kl(t: Array, p: Array) -> Any:
    return (t * np.log(t / p)).sum(1).mean()


def distillation(s: Array, z: Array, temperature: float = 2.0) -> Any:
    return temperature**2 * kl_of_logits(s / temperature, z / temperature)


def jensen_shannon(s: Array, z: Array) -> Any:
    return _jensen_shannon_and_gradient(s, z)[0]


def bce_of_logits(t: Array, z: Array) -> Any:
    return (_softplus(z) - t * z).mean()


def bce(t: Array, p: Array) -> Any:
    return -(t * np.log(p) + (1 - t) * np.log1p(-p)).mean()


def log_loss(labels: Array, p: Array) -> Any:
    return -np.log(_at(labels, p)).mean()


def focal(t: Array, z: Array, alpha: float = 0.25, gamma: float = 2.0) -> Any:
    log_p = _log_softmax(z)
    return -(alpha * t * (1 - np.exp(log_p)) ** gamma * log_p).sum(1).mean()


def binary_focal(t: Array, z: Array, gamma: float = 2.0) -> Any:
    p = _sigmoid(z)
    p_true = t * p + (1 - t) * (1 - p)
    return ((1 - p_true) ** gamma * (_softplus(z) - t * z)).mean()


def linear_cross_entropy(labels: Array, pred: Array) -> Any:
    hidden, weight = pred
    return sparse_cross_entropy(labels, hidden @ weight.T)


def linear_distillation(teacher: tuple[Array, Array], student: tuple[Array, Array]) -> Any:
    (of_teacher, by_teacher), (hidden, weight) = teacher, student
    return kl_of_logits(of_teacher @ by_teacher.T, hidden @ weight.T)


def _sparse_cross_entropy_and_gradient(labels: Array, z: Array) -> tuple[Any, Array]:
    log_p = _log_softmax(z)
    gradient = np.exp(log_p)
    gradient[np.arange(len(z)), labels] -= 1
    return -_at(labels, log_p).mean(), gradient / len(z)


def _linear_cross_entropy_and_gradients(labels: Array, pred: Array) -> tuple[Any, tuple[Array, Array]]:
    hidden, weight = pred
    value, gradient = _sparse_cross_entropy_and_gradient(labels, hidden @ weight.T)
    return value, (gradient @ weight, gradient.T @ hidden)


def _cross_entropy_and_gradient(t: Array, z: Array) -> tuple[Any, Array]:
    log_p = _log_softmax(z)
    return -(t * log_p).sum(1).mean(), (np.exp(log_p) * t.sum(1, keepdims=True) - t) / len(z)


def _kl_of_logits_and_gradient(s: Array, z: Array) -> tuple[Any, Array]:
    log_t, log_p = _log_softmax(s), _log_softmax(z)
    t = np.exp(log_t)
    return (t * (log_t - log_p)).sum(1).mean(), (np.exp(log_p) - t) / len(z)


def _linear_distillation_and_gradients(
    teacher: tuple[Array, Array], student: tuple[Array, Array]
) -> tuple[Any, tuple[Array, Array]]:
    (of_teacher, by_teacher), (hidden, weight) = teacher, student
    value, gradient = _kl_of_logits_and_gradient(of_teacher @ by_teacher.T, hidden @ weight.T)
    return value, (gradient @ weight, gradient.T @ hidden)


def _distillation_and_gradient(s: Array, z: Array, temperature: float = 2.0) -> tuple[Any, Array]:
    value, gradient = _kl_of_logits_and_gradient(s / temperature, z / temperature)
    return temperature**2 * value, temperature * gradient


def _jensen_shannon_and_gradient(s: Array, z: Array) -> tuple[Any, Array]:
    log_t, log_p = _log_softmax(s), _log_softmax(z)
    t, p = np.exp(log_t), np.exp(log_p)
    log_m = np.logaddexp(log_t, log_p) - np.log(np.float32(2))
    of_p = p * (log_p - log_m)
    total = of_p.sum(1, keepdims=True)
    return (t * (log_t - log_m) + of_p).sum(1).mean() / 2, (of_p - p * total) / 2 / len(z)


def _bce_of_logits_and_gradient(t: Array, z: Array) -> tuple[Any, Array]:
    return bce_of_logits(t, z), (_sigmoid(z) - t) / z.size


def _kl_and_gradient(t: Array, p: Array) -> tuple[Any, Array]:
    return kl(t, p), -t / p / len(p)


def _bce_and_gradient(t: Array, p: Array) -> tuple[Any, Array]:
    return bce(t, p), (p - t) / (p * (1 - p)) / p.size


def _log_loss_and_gradient(labels: Array, p: Array) -> tuple[Any, Array]:
    gradient = np.zeros_like(p)
    gradient[np.arange(len(p)), labels] = -1 / _at(labels, p) / len(p)
    return log_loss(labels, p), gradient


# By the name of the form in cells.NAMED_FORMS.
VALUES: Mapping[str, Loss] = {
    "CE, labels": sparse_cross_entropy,
    "CE, dense": cross_entropy,
    "KL of logits": kl_of_logits,
    "KL of probabilities": kl,
    "distillation": distillation,
    "Jensen-Shannon": jensen_shannon,
    "BCE of logits": bce_of_logits,
    "BCE of probabilities": bce,
    "log loss": log_loss,
    "focal": focal,
    "binary focal": binary_focal,
    "linear CE": linear_cross_entropy,
    "linear distillation": linear_distillation,
}
WITH_GRADIENTS: Mapping[str, Loss] = {
    "CE, labels": _sparse_cross_entropy_and_gradient,
    "CE, dense": _cross_entropy_and_gradient,
    "KL of logits": _kl_of_logits_and_gradient,
    "KL of probabilities": _kl_and_gradient,
    "distillation": _distillation_and_gradient,
    "Jensen-Shannon": _jensen_shannon_and_gradient,
    "BCE of logits": _bce_of_logits_and_gradient,
    "BCE of probabilities": _bce_and_gradient,
    "log loss": _log_loss_and_gradient,
    "linear CE": _linear_cross_entropy_and_gradients,
    "linear distillation": _linear_distillation_and_gradients,
}


def exact_value(loss: Loss, target: Array, pred: Array, block: int = 1 << 17) -> float:
    """The mean of a loss in float64, computed in blocks of rows that stay in the cache."""
    rows, total = max(1, block // pred.shape[1]), 0.0
    for start in range(0, len(pred), rows):
        t, p = target[start : start + rows], pred[start : start + rows].astype(np.float64)
        total += float(loss(t if t.dtype.kind == "i" else t.astype(np.float64), p)) * len(p)
    return total / len(pred)
