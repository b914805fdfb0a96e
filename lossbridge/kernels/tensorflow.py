"""TensorFlow: faster ways to the per-sample losses of formulas.py (see Kernel in lossbridge/backend.py).

Two roads. Outside of a graph, on the host, NumPy's kernels read TensorFlow's arrays where they lie. In a graph
cross-entropy of logits has a gradient of its own: few passes, few buffers, and where every size is known and large,
XLA. Everything else is left to the formulas, as are higher derivatives. Holds no definition of a loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow.python.eager import record

from lossbridge import formulas
from lossbridge.backend import Array, Kernel
from lossbridge.backends import numpy
from lossbridge.backends import tensorflow as b
from lossbridge.kernels import numpy as numpy_kernels
from lossbridge.reduction import neutralise
from lossbridge.validation import compute_dtype

_custom_gradient: Callable[[Callable[..., Any]], Callable[..., Any]] = tf.custom_gradient  # for the type checker

# Measured on two cores, 32 to 2048 rows of 10 to 32768 classes: below, calling XLA costs more than it saves.
XLA_ELEMENTS = 2**16
XLA_PART = 2**13


# Cross-entropy of integer labels and logits, in a graph.


class _Rows(NamedTuple):
    """What both directions need of (rows, classes) logits."""

    logits: Array  # as they came
    index: Array  # labels in range
    kept: Array | None
    valid: Array


def _sparse_in_graph(
    plain: Callable[[Array, Array], Array],
    labels: Array,
    pred: Array,
    axis: int,
    kept: Array | None,
    *,
    from_logits: bool,
    label_smoothing: float,
    epsilon: float,
    class_weight: Array | None,
) -> Array | None:
    """With y the label, m the largest logit, e = exp(z − m) and s = Σ_{j≠y} e_j, the loss is (m − z_y) + log(s + e_y),
    log1p(s) where y has the largest; the gradient e_j/(s + e_y), −s/(s + e_y) for y. Nothing cancels.
    """
    if not from_logits or label_smoothing or b.dtype(pred) not in ("float16", "bfloat16", "float32", "float64"):
        return None
    valid = (labels >= 0) & (labels < b.size(pred, axis, labels))
    index = tf.where(valid, labels, 0)
    xla = _pays_in_xla(pred)

    def rows_of(pred: Array) -> _Rows:
        return _Rows(
            _as_rows(pred, axis),
            tf.reshape(index, [-1]),
            None if kept is None else tf.reshape(tf.broadcast_to(kept, tf.shape(labels)), [-1]),
            tf.reshape(valid, [-1]),
        )

    forward = _compiled(partial(_sparse_forward, xla=xla), xla)
    backward = _compiled(partial(_sparse_backward, xla=xla), xla)

    @_custom_gradient
    def differentiable(pred: Array) -> Any:
        rows = rows_of(pred)
        loss, *saved = forward(rows)

        @_custom_gradient
        def slope(upstream: Array, pred: Array) -> Any:
            slopes = backward(tf.reshape(upstream, [-1]), rows, *saved)
            return _like(slopes, pred, axis), partial(_derivative_of_slope, partial(plain, labels), upstream, pred)

        return tf.reshape(loss, tf.shape(labels)), lambda upstream: slope(upstream, pred)

    loss = differentiable(pred)
    loss.set_shape(labels.shape)
    if class_weight is not None:
        weight = tf.gather(tf.reshape(class_weight, [-1]), index)
        loss = weight * formulas.affordable(b, weight, loss)
    return loss


def _sparse_forward(rows: _Rows, *, xla: bool) -> tuple[Array, ...]:
    """The losses, and what their gradient needs of the exponentials: in XLA, which computes them again, little."""
    z = tf.cast(rows.logits, compute_dtype(rows.logits.dtype.name))
    z = neutralise(b, z, rows.kept, 1, 0.5)
    largest = tf.reduce_max(z, axis=1)
    largest = tf.where(tf.math.is_finite(largest), largest, math.nan)
    of_label = tf.gather(z, rows.index, axis=1, batch_dims=1)
    if xla:
        sum_of_others, saved = _sum_of_others_in_xla(z, rows.index, largest), largest
    else:
        saved = tf.exp(z - largest[:, None])
        saved = tf.tensor_scatter_nd_update(saved, _places(rows.index), tf.zeros_like(of_label))
        sum_of_others = tf.reduce_sum(saved, axis=1)
    total = sum_of_others + tf.exp(of_label - largest)
    apart = largest - of_label
    loss = tf.where(apart == 0, tf.math.log1p(sum_of_others), apart + tf.math.log(total))
    loss = tf.where(rows.valid, loss, math.nan)
    return loss, sum_of_others, total, saved


def _sum_of_others_in_xla(z: Array, index: Array, largest: Array) -> Array:
    """In parts: XLA adds up a row in order, which costs 60 units in the last place at 32768 classes.

    (float64 would cost as much time, and a buffer of its own.)
    """
    sums = []
    for start in range(0, z.shape[1], XLA_PART):
        part = z[:, start : start + XLA_PART]
        e = tf.exp(part - largest[:, None])
        sums.append(tf.reduce_sum(tf.where(b.one_hot(index - start, part, 1), tf.zeros([], z.dtype), e), axis=1))
    return tf.add_n(sums)


def _sparse_backward(
    upstream: Array, rows: _Rows, sum_of_others: Array, total: Array, saved: Array, *, xla: bool
) -> Array:
    live = rows.valid if rows.kept is None else rows.valid & rows.kept
    share = tf.where(live, upstream / total, tf.zeros([], total.dtype))
    of_label = -sum_of_others * share
    if xla:
        z = neutralise(b, tf.cast(rows.logits, total.dtype), rows.kept, 1, 0.5)
        slopes = tf.exp(z - saved[:, None]) * share[:, None]
        return tf.cast(tf.where(b.one_hot(rows.index, z, 1), of_label[:, None], slopes), rows.logits.dtype)
    slopes = tf.tensor_scatter_nd_update(saved * share[:, None], _places(rows.index), of_label)
    return tf.cast(slopes, rows.logits.dtype)


def _places(index: Array) -> Array:
    return tf.stack([tf.range(tf.size(index, out_type=index.dtype), dtype=index.dtype), index], axis=1)


# What every kernel in a graph needs.


def _pays_in_xla(x: Array) -> bool:
    """Sizes are known, so that nothing is compiled anew for another batch, and the processor runs it.

    On a GPU XLA needs tools that TensorFlow can lack, and a strategy may place the operations anywhere.
    """
    count = x.shape.num_elements()
    if count is None or count < XLA_ELEMENTS or tf.distribute.has_strategy():
        return False
    return all(device.device_type == "CPU" for device in tf.config.list_logical_devices())


def _compiled(function: Callable[..., Any], xla: bool) -> Callable[..., Any]:
    """Not kept: what it traces goes when the graph around it goes."""
    return tf.function(function, jit_compile=True, autograph=False) if xla else function


def _as_rows(x: Array, axis: int) -> Array:
    rank = x.shape.rank
    if axis != rank - 1:
        x = tf.transpose(x, [i for i in range(rank) if i != axis] + [axis])
    classes = b.size(x, rank - 1, tf.constant(0))
    return tf.reshape(x, [tf.reduce_prod(tf.shape(x)[:-1]), classes])


def _like(rows: Array, x: Array, axis: int) -> Array:
    """Undoes _as_rows."""
    rank = x.shape.rank
    if axis == rank - 1:
        return tf.reshape(rows, tf.shape(x))
    sizes = tf.shape(x)
    moved = tf.reshape(rows, tf.stack([sizes[i] for i in range(rank) if i != axis] + [sizes[axis]]))
    back = list(range(rank - 1))
    back.insert(axis, rank - 1)
    return tf.transpose(moved, back)


def _slope(plain: Callable[[Array], Array], upstream: Array, pred: Array) -> Array:
    """The formula's, which can be differentiated further."""
    with tf.GradientTape() as tape:
        tape.watch(pred)
        loss = plain(pred)
    return tape.gradient(loss, pred, upstream)


def _derivative_of_slope(
    plain: Callable[[Array], Array], upstream: Array, pred: Array, cotangent: Array
) -> tuple[Array, Array]:
    with tf.GradientTape() as outer:
        outer.watch([upstream, pred])
        slope = _slope(plain, upstream, pred)
    return outer.gradient(slope, [upstream, pred], cotangent, unconnected_gradients=tf.UnconnectedGradients.ZERO)


# Outside of a graph.


def _kernel(
    name: str,
    in_graph: Kernel | None,
    plain: Callable[[Array, Array], Array],
    target: Array,
    pred: Array,
    axis: int | None,
    kept: Array | None,
    **named: Any,
) -> Array | None:
    others = [target, *(x for x in named.values() if isinstance(x, tf.Tensor))]
    if b.in_forward_mode(pred, *others):
        return None
    masks = [] if kept is None else [kept]
    if b.on_host(pred, *others, *masks) and not record.should_record_backprop(others):
        return _by_numpy(name, partial(plain, target), target, pred, axis, kept, named)
    return None if in_graph is None else in_graph(plain, target, pred, axis, kept, **named)


def _by_numpy(
    name: str,
    plain: Callable[[Array], Array],
    target: Array,
    pred: Array,
    axis: int | None,
    kept: Array | None,
    named: dict[str, Any],
) -> Array:
    """NumPy's kernels on the memory of TensorFlow's arrays: its operations start in 1 µs rather than in 15."""
    labels, logits = np.asarray(target), np.asarray(pred)
    keeping = None if kept is None else np.asarray(kept)
    options = {key: np.asarray(x) if isinstance(x, tf.Tensor) else x for key, x in named.items()}
    formula, kernel = getattr(formulas, name), numpy_kernels.KERNELS.get(name)
    dtype = compute_dtype(pred.dtype.name)

    def plain_numpy(target: Array, pred: Array) -> Array:
        if name not in _OF_LABELS:
            target = neutralise(numpy, numpy.cast(target, dtype), keeping, axis, 0.5)
        return formula(numpy, target, neutralise(numpy, numpy.cast(pred, dtype), keeping, axis, 0.5), axis, **options)

    def losses(x: Array) -> Array:
        with numpy.quiet():
            found = None if kernel is None else kernel(plain_numpy, labels, x, axis, keeping, **options)
            return plain_numpy(labels, x) if found is None else found

    if not record.should_record_backprop([pred]):
        return tf.convert_to_tensor(losses(logits))
    leaf = numpy.Variable(logits)
    swept = [losses(leaf)]

    def pulled_back(upstream: np.ndarray) -> np.ndarray:
        once = swept.pop() if swept else losses(leaf)  # what a kernel has saved serves once
        return numpy.pulled_back(once, leaf, upstream)

    return b.recorded(swept[0].value, pred, pulled_back, lambda upstream: _slope(plain, upstream, pred))


# What takes indices of classes as its target.
_OF_LABELS = ("sparse_categorical_crossentropy", "label_log_loss", "negative_log_likelihood")
_IN_GRAPH: dict[str, Kernel] = {"sparse_categorical_crossentropy": _sparse_in_graph}
_FORMULAS = (
    *_OF_LABELS,
    "categorical_crossentropy",
    "binary_crossentropy",
    "bernoulli_log_loss",
    "kl_divergence",
    "kl_from_logits",
    "distillation_loss",
    "categorical_focal_crossentropy",
    "binary_focal_crossentropy",
)
KERNELS: dict[str, Kernel] = {name: partial(_kernel, name, _IN_GRAPH.get(name)) for name in _FORMULAS}
