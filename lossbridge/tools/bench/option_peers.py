"""Peers with class weights, ignored labels and smoothing: a framework's own function where it has the option, else what
its users write around it. Means of sums over the rows that count. Measures nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from lossbridge.tools.bench.data_kinds import IGNORE, SMOOTHING
from lossbridge.tools.processes import installed

Loss = Callable[..., Any]


def peers(backend: str, form: str, options: Mapping[str, Any]) -> Iterator[tuple[str, Loss]]:
    """(name, loss) of those that have the option."""
    (option,) = options
    found = _PEERS[backend]().get((form, option)) if backend in _PEERS else None
    if found is not None:
        yield found


def _torch() -> dict[tuple[str, str], tuple[str, Loss]]:
    import torch.nn.functional as F

    ce, bce = "F.cross_entropy", "F.binary_cross_entropy_with_logits"
    return {
        ("CE, labels", "ignore_class"): (ce, lambda t, z: F.cross_entropy(z, t, ignore_index=IGNORE)),
        ("CE, labels", "class_weight"): (
            ce,
            lambda t, z, class_weight: F.cross_entropy(z, t, class_weight, reduction="sum") / len(t),
        ),
        ("CE, dense", "class_weight"): (ce, lambda t, z, class_weight: F.cross_entropy(z, t, class_weight)),
        ("CE, labels", "label_smoothing"): (ce, lambda t, z: F.cross_entropy(z, t, label_smoothing=SMOOTHING)),
        ("CE, dense", "label_smoothing"): (ce, lambda t, z: F.cross_entropy(z, t, label_smoothing=SMOOTHING)),
        ("BCE of logits", "pos_weight"): (
            bce,
            lambda t, z, pos_weight: F.binary_cross_entropy_with_logits(z, t, pos_weight=pos_weight),
        ),
    }


def _tensorflow() -> dict[tuple[str, str], tuple[str, Loss]]:
    import tensorflow as tf

    name = "tf.nn.sparse_softmax_cross_entropy"

    def ignored(t: Any, z: Any) -> Any:
        counts = t != IGNORE
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.where(counts, t, 0), z)
        return tf.reduce_sum(tf.where(counts, losses, 0)) / tf.reduce_sum(tf.cast(counts, losses.dtype))

    def weighted(t: Any, z: Any, class_weight: Any) -> Any:
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(t, z)
        return tf.reduce_mean(tf.gather(class_weight, t) * losses)

    return {("CE, labels", "ignore_class"): (name, ignored), ("CE, labels", "class_weight"): (name, weighted)}


def _jax() -> dict[tuple[str, str], tuple[str, Loss]]:
    if not installed("optax"):
        return {}
    import jax.numpy as jnp
    import optax

    name = "optax.softmax_cross_entropy_with_integer_labels"

    def ignored(t: Any, z: Any) -> Any:
        counts = t != IGNORE
        losses = optax.softmax_cross_entropy_with_integer_labels(z, jnp.where(counts, t, 0))
        return jnp.where(counts, losses, 0).sum() / counts.sum()

    def weighted(t: Any, z: Any, class_weight: Any) -> Any:
        return (class_weight[t] * optax.softmax_cross_entropy_with_integer_labels(z, t)).mean()

    return {
        ("CE, labels", "ignore_class"): (name, ignored),
        ("CE, labels", "class_weight"): (name, weighted),
        ("CE, dense", "label_smoothing"): (
            "optax.softmax_cross_entropy",
            lambda t, z: optax.softmax_cross_entropy(z, optax.smooth_labels(t, SMOOTHING)).mean(),
        ),
    }


_PEERS: dict[str, Callable[[], dict[tuple[str, str], tuple[str, Loss]]]] = {
    "torch": _torch,
    "tensorflow": _tensorflow,
    "jax": _jax,
}
