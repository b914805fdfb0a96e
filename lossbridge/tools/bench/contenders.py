"""The contenders: lossbridge and every installed peer, each a function of a framework's own arrays. Measures nothing.

A function takes target and pred, of shape (rows, classes), or labels (rows,), and options that are arrays by name; it
returns the mean. Of the linear losses pred is a pair of hidden states and weight, and so is a teacher. Whatever varies
from batch to batch is an argument: a compiler folds what it knows. Every function is written out, because torch.compile
keeps one cache per code object, and contenders would share it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from lossbridge import losses
from lossbridge.compat import keras as compat_keras
from lossbridge.compat import optax as compat_optax
from lossbridge.compat import sklearn as compat_sklearn
from lossbridge.compat import torch as compat_torch
from lossbridge.frameworks import FRAMEWORKS
from lossbridge.frameworks.framework import Framework
from lossbridge.tools.bench import option_peers, textbook
from lossbridge.tools.bench.cells import FORMS, LINEAR, LINEAR_KL, NAMED_FORMS, Cell
from lossbridge.tools.bench.data_kinds import PADDED, RANDOM
from lossbridge.tools.processes import installed

Loss = Callable[..., Any]
Options = Mapping[str, Any]
LOG_2 = math.log(2)
OURS, IN_PLACE, OUT = "lossbridge", "lossbridge, inplace_gradient", "lossbridge, out="


@dataclass(frozen=True)
class Contender:
    """`with_gradient`: a function that returns value and gradient, where the framework has no usual way to one."""

    name: str
    loss: Loss
    with_gradient: Loss | None = None
    consumes: bool = False  # it overwrites the predictions: each call gets a copy
    eager_only: bool = False


def contenders(backend: str, cell: Cell, device: str = "cpu", options: Options | None = None) -> list[Contender]:
    """Ours first. A framework without known peers, or a form without any, is measured alone.

    `options`: the data's, in NumPy. Those that are arrays are arguments of each call. With data of a kind the peers are
    the framework's own functions, those that have the options.
    """
    options = options or {}
    ours = _ours(cell, {name: x for name, x in options.items() if not hasattr(x, "shape")})
    if cell.views:
        return [ours, *_views(backend, cell)]
    if backend not in _PEERS or cell.form not in NAMED_FORMS:
        return [ours]
    if options:
        return [ours, *(Contender(*peer) for peer in option_peers.peers(backend, cell.form, options))]
    if cell.data == PADDED and FORMS[cell.form].target != "labels":
        return [ours]  # the peers' 0·(−∞) is NaN
    peers = list(_PEERS[backend](cell, device))
    if cell.data == RANDOM and cell.sweep != "data":
        return [ours, *peers]
    return [ours, *(peer for peer in peers[:1] if not peer.name.startswith(("keras.", OURS)))]


def _ours(cell: Cell, given: Options) -> Contender:
    form = FORMS[cell.form]
    function, options = getattr(losses, form.loss), {**form.options, **given}
    if cell.form == LINEAR_KL:
        of_student = losses.value_and_grad(function, of=("student_hidden", "student_weight"))
        return Contender(
            OURS,
            lambda target, pred, **arrays: function(*target, *pred, **options, **arrays),
            lambda target, pred, **arrays: of_student(*target, *pred, **options, **arrays),
        )
    if form.units:
        of_layer = losses.value_and_grad(function, of=("hidden", "weight"))
        return Contender(
            OURS,
            lambda target, pred, **arrays: function(target, *pred, **options, **arrays),
            lambda target, pred, **arrays: of_layer(target, *pred, **options, **arrays),
        )
    both = losses.value_and_grad(function)
    return Contender(
        OURS,
        lambda target, pred, **arrays: function(target, pred, **options, **arrays),
        lambda target, pred, **arrays: both(target, pred, **options, **arrays),
    )


def _views(backend: str, cell: Cell) -> Iterator[Contender]:
    """lossbridge.compat: what its views cost beside the direct call."""
    b = FRAMEWORKS[backend]()
    labels = range(cell.classes)
    views: dict[str, dict[str, Loss]] = {
        "CE, labels": {
            "optax": lambda t, z: b.ops.mean(compat_optax.softmax_cross_entropy_with_integer_labels(z, t)),
            "torch": lambda t, z: compat_torch.cross_entropy(z, t),
            "keras": lambda t, z: b.ops.mean(compat_keras.sparse_categorical_crossentropy(t, z, from_logits=True)),
        },
        "CE, dense": {
            "optax": lambda t, z: b.ops.mean(compat_optax.softmax_cross_entropy(z, t)),
            "torch": lambda t, z: compat_torch.cross_entropy(z, t),
            "keras": lambda t, z: b.ops.mean(compat_keras.categorical_crossentropy(t, z, from_logits=True)),
        },
        "log loss": {"sklearn": lambda t, p: compat_sklearn.log_loss(t, p, labels=labels)},
    }
    for library, loss in views.get(cell.form, {}).items():
        yield Contender(f"{OURS}.compat.{library}", loss, partial(_value_and_grad, b, loss))


def _value_and_grad(b: Framework, loss: Loss, target: Any, pred: Any) -> Any:
    return b.value_and_grad(partial(loss, target), pred)


def _numpy(cell: Cell, device: str) -> Iterator[Contender]:
    form = cell.form
    both = textbook.WITH_GRADIENTS.get(form)
    if both is not None or not cell.backward:
        yield Contender("textbook", textbook.VALUES[form], both)
    if cell.backward:
        if form == "CE, labels":
            yield _out(cell)
        return  # the peers below have no gradients
    if installed("sklearn") and form == "log loss":
        from sklearn.metrics import log_loss

        labels = range(cell.classes)
        yield Contender("sklearn.log_loss", lambda t, p: log_loss(t, p, labels=labels))
    if installed("scipy"):
        import numpy as np
        from scipy.special import log_softmax, rel_entr
        from scipy.stats import entropy

        if form == "CE, labels":
            yield Contender("scipy.log_softmax", lambda t, z: -log_softmax(z, 1)[np.arange(len(t)), t].mean())
        if form == "CE, dense":
            yield Contender("scipy.log_softmax", lambda t, z: -(t * log_softmax(z, 1)).sum(1).mean())
        if form == "KL of probabilities":
            yield Contender("scipy.rel_entr", lambda t, p: rel_entr(t, p).sum(1).mean())
            yield Contender("scipy.entropy", lambda t, p: entropy(t, p, axis=1).mean())


def _out(cell: Cell) -> Contender:
    """Ours, with the gradient written to a buffer that the caller keeps."""
    import numpy as np

    form = FORMS[cell.form]
    function, options = getattr(losses, form.loss), dict(form.options)
    both = losses.value_and_grad(function)
    buffer = np.zeros((cell.rows, cell.classes), cell.dtype)
    return Contender(OUT, partial(function, **options), lambda t, pred: both(t, pred, out=buffer, **options))


def _torch(cell: Cell, device: str) -> Iterator[Contender]:
    import torch
    import torch.nn.functional as F

    def kl(s: Any, z: Any) -> Any:
        return F.kl_div(F.log_softmax(z, -1), F.log_softmax(s, -1), log_target=True, reduction="batchmean")

    def jensen_shannon(s: Any, z: Any) -> Any:
        log_t, log_p = F.log_softmax(s, -1), F.log_softmax(z, -1)
        log_m = torch.logaddexp(log_t, log_p) - LOG_2
        of_t, of_p = (F.kl_div(log_m, x, log_target=True, reduction="batchmean") for x in (log_t, log_p))
        return (of_t + of_p) / 2

    own: dict[str, tuple[str, Loss]] = {
        "CE, labels": ("F.cross_entropy", lambda t, z: F.cross_entropy(z, t)),
        "CE, dense": ("F.cross_entropy", lambda t, z: F.cross_entropy(z, t)),
        "KL of logits": ("F.kl_div", kl),
        "KL of probabilities": ("F.kl_div", lambda t, p: F.kl_div(p.log(), t, reduction="batchmean")),
        "distillation": ("F.kl_div", lambda s, z: 4 * kl(s / 2, z / 2)),
        "Jensen-Shannon": ("F.kl_div", jensen_shannon),
        "BCE of logits": ("F.binary_cross_entropy_with_logits", lambda t, z: F.binary_cross_entropy_with_logits(z, t)),
        "BCE of probabilities": ("F.binary_cross_entropy", lambda t, p: F.binary_cross_entropy(p, t)),
        "log loss": ("F.nll_loss", lambda t, p: F.nll_loss(p.log(), t)),
        LINEAR: ("F.cross_entropy of all logits", lambda t, p: F.cross_entropy(F.linear(*p), t)),
        LINEAR_KL: ("F.kl_div of all logits", lambda s, p: kl(F.linear(*s), F.linear(*p))),
    }
    if cell.form in own:
        yield Contender(*own[cell.form])
    if cell.form == LINEAR:
        yield from _torch_linear(device)
    if cell.backward and cell.form == "CE, labels":
        yield _in_place()
        if device == "cuda":
            yield from _liger()
    yield from _keras(cell, eager_only=True)  # as Keras itself trains on PyTorch


def _in_place() -> Contender:
    from lossbridge.torch import CrossEntropyLoss

    loss = CrossEntropyLoss(inplace_gradient=True)
    return Contender(IN_PLACE, lambda t, z: loss(z, t), consumes=True, eager_only=True)


def _torch_linear(device: str) -> Iterator[Contender]:
    """Those that do not keep all logits. Liger's and QuACK's have never been run here."""
    import torch
    import torch.nn.functional as F

    if hasattr(F, "linear_cross_entropy"):  # since PyTorch 2.13; without options it computes all logits
        own, name = torch.nn.LinearCrossEntropyOptions(), "F.linear_cross_entropy"
        yield Contender(name, lambda t, p: F.linear_cross_entropy(p[0], p[1], t, options=own), eager_only=True)
    if device == "cuda" and installed("liger_kernel"):
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy as liger

        yield Contender("liger_fused_linear_cross_entropy", lambda t, p: liger(*p, t), eager_only=True)
    if device == "cuda" and installed("quack"):
        from quack.linear_cross_entropy import chunked_linear_cross_entropy as quack

        yield Contender("quack.chunked_linear_cross_entropy", lambda t, p: quack(*p, t), eager_only=True)


def _liger() -> Iterator[Contender]:
    if installed("liger_kernel"):
        from liger_kernel.transformers.functional import liger_cross_entropy

        yield Contender("liger_cross_entropy", lambda t, z: liger_cross_entropy(z, t), consumes=True, eager_only=True)


def _tensorflow(cell: Cell, device: str) -> Iterator[Contender]:
    import tensorflow as tf

    def kl(s: Any, z: Any) -> Any:
        log_t = tf.nn.log_softmax(s)
        return tf.reduce_mean(tf.reduce_sum(tf.exp(log_t) * (log_t - tf.nn.log_softmax(z)), -1))

    def jensen_shannon(s: Any, z: Any) -> Any:
        log_t, log_p = tf.nn.log_softmax(s), tf.nn.log_softmax(z)
        log_m = tf.experimental.numpy.logaddexp(log_t, log_p) - LOG_2
        terms = tf.exp(log_t) * (log_t - log_m) + tf.exp(log_p) * (log_p - log_m)
        return tf.reduce_mean(tf.reduce_sum(terms, -1)) / 2

    own: dict[str, tuple[str, Loss]] = {
        "CE, labels": (
            "tf.nn.sparse_softmax_cross_entropy",
            lambda t, z: tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(t, z)),
        ),
        "CE, dense": (
            "tf.nn.softmax_cross_entropy",
            lambda t, z: tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(t, z)),
        ),
        "KL of logits": ("tf.nn.log_softmax", kl),
        "distillation": ("tf.nn.log_softmax", lambda s, z: 4 * kl(s / 2, z / 2)),
        "Jensen-Shannon": ("tf.nn.log_softmax", jensen_shannon),
        "BCE of logits": (
            "tf.nn.sigmoid_cross_entropy",
            lambda t, z: tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(t, z)),
        ),
        LINEAR: (
            "tf.nn.sparse_softmax_cross_entropy of all logits",
            lambda t, p: tf.reduce_mean(
                tf.nn.sparse_softmax_cross_entropy_with_logits(t, tf.linalg.matmul(*p, transpose_b=True))
            ),
        ),
        LINEAR_KL: (
            "tf.nn.log_softmax of all logits",
            lambda s, p: kl(tf.linalg.matmul(*s, transpose_b=True), tf.linalg.matmul(*p, transpose_b=True)),
        ),
    }
    if cell.form in own:
        yield Contender(*own[cell.form])
    yield from _keras(cell)


def _jax(cell: Cell, device: str) -> Iterator[Contender]:
    if installed("optax"):
        import jax.numpy as jnp
        import optax
        from jax.nn import log_softmax

        def kl(s: Any, z: Any) -> Any:
            return optax.losses.kl_divergence_with_log_targets(log_softmax(z), log_softmax(s)).mean()

        def jensen_shannon(s: Any, z: Any) -> Any:
            log_t, log_p = log_softmax(s), log_softmax(z)
            log_m = jnp.logaddexp(log_t, log_p) - LOG_2
            of_t, of_p = (optax.losses.kl_divergence_with_log_targets(log_m, x).mean() for x in (log_t, log_p))
            return (of_t + of_p) / 2

        def logits(layer: Any) -> Any:
            return jnp.matmul(layer[0], layer[1].T, preferred_element_type="float32")

        own: dict[str, tuple[str, Loss]] = {
            "CE, labels": (
                "optax.softmax_cross_entropy_with_integer_labels",
                lambda t, z: optax.softmax_cross_entropy_with_integer_labels(z, t).mean(),
            ),
            "CE, dense": ("optax.softmax_cross_entropy", lambda t, z: optax.softmax_cross_entropy(z, t).mean()),
            "KL of logits": ("optax.kl_divergence_with_log_targets", kl),
            "KL of probabilities": ("optax.kl_divergence", lambda t, p: optax.kl_divergence(jnp.log(p), t).mean()),
            "distillation": ("optax.kl_divergence_with_log_targets", lambda s, z: 4 * kl(s / 2, z / 2)),
            "Jensen-Shannon": ("optax.kl_divergence_with_log_targets", jensen_shannon),
            "BCE of logits": (
                "optax.sigmoid_binary_cross_entropy",
                lambda t, z: optax.sigmoid_binary_cross_entropy(z, t).mean(),
            ),
            "binary focal": ("optax.sigmoid_focal_loss", lambda t, z: optax.sigmoid_focal_loss(z, t).mean()),
            LINEAR: (
                "optax.softmax_cross_entropy_with_integer_labels of all logits",
                lambda t, p: optax.softmax_cross_entropy_with_integer_labels(logits(p), t).mean(),
            ),
            LINEAR_KL: (
                "optax.kl_divergence_with_log_targets of all logits",
                lambda s, p: kl(logits(s), logits(p)),
            ),
        }
        if cell.form in own:
            yield Contender(*own[cell.form])
    yield from _keras(cell)


def _keras(cell: Cell, *, eager_only: bool = False) -> Iterator[Contender]:
    """Keras on the backend of this worker, which has set KERAS_BACKEND."""
    if not installed("keras"):
        return
    import keras

    # Without a dtype Keras computes in float32, which suits float16 and bfloat16 better.
    dtype = {"dtype": "float64"} if cell.dtype == "float64" else {}
    made: dict[str, Callable[[], Any]] = {
        "CE, labels": lambda: keras.losses.SparseCategoricalCrossentropy(from_logits=True, **dtype),
        "CE, dense": lambda: keras.losses.CategoricalCrossentropy(from_logits=True, **dtype),
        "KL of logits": lambda: keras.losses.KLDivergence(**dtype),
        "KL of probabilities": lambda: keras.losses.KLDivergence(**dtype),
        "BCE of logits": lambda: keras.losses.BinaryCrossentropy(from_logits=True, **dtype),
        "BCE of probabilities": lambda: keras.losses.BinaryCrossentropy(**dtype),
        "log loss": lambda: keras.losses.SparseCategoricalCrossentropy(**dtype),
        "focal": lambda: keras.losses.CategoricalFocalCrossentropy(from_logits=True, **dtype),
        "binary focal": lambda: keras.losses.BinaryFocalCrossentropy(from_logits=True, **dtype),
    }
    if cell.form not in made or (cell.form == "log loss" and cell.backward):  # Keras differentiates p / Σ p
        return
    loss = made[cell.form]()
    name = f"keras.{type(loss).__name__}"
    if cell.form == "KL of logits":
        yield Contender(name, lambda s, z: loss(keras.ops.softmax(s), keras.ops.softmax(z)), eager_only=eager_only)
    else:
        yield Contender(name, lambda t, p: loss(t, p), eager_only=eager_only)


_PEERS: dict[str, Callable[[Cell, str], Iterator[Contender]]] = {
    "numpy": _numpy,
    "torch": _torch,
    "tensorflow": _tensorflow,
    "jax": _jax,
}
