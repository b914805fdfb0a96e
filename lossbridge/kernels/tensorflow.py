"""TensorFlow: faster ways to the per-sample losses of formulas.py (see Kernel in lossbridge/backend.py).

Two roads. Outside of a graph, on the host, NumPy's kernels read TensorFlow's arrays where they lie. In a graph all but
the focal losses have gradients of their own, in closed form: few passes, few buffers, and where every size is known and
large, XLA. Everything else is left to the formulas, as are higher derivatives. Holds no definition of a loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow.python.eager import record

from lossbridge import formulas
from lossbridge.backend import Array, Kernel
from lossbridge.backends import numpy
from lossbridge.backends import tensorflow as b
from lossbridge.kernels import closed
from lossbridge.kernels import numpy as numpy_kernels
from lossbridge.reduction import neutralise
from lossbridge.validation import compute_dtype

_custom_gradient: Callable[[Callable[..., Any]], Callable[..., Any]] = tf.custom_gradient  # for the type checker

# Measured on two cores, 32 to 2048 rows of 10 to 32768 classes: below, calling XLA costs more than it saves.
XLA_ELEMENTS = 2**16
# Elements of a block of rows, 1 MiB of float32, and of a part of a sum, both in XLA.
XLA_BLOCK = 2**18
XLA_PART = 2**10


# In a graph. Of each loss two functions, as in closed.py, of rows in the dtype of the computation; `x` are the
# primitives, those of XLA or of TensorFlow.


class _Loss(NamedTuple):
    value: Callable[..., tuple[Array, tuple[Array, ...]]]
    slopes: Callable[..., tuple[Array | None, Array | None]]


def _in_graph(
    loss: _Loss,
    plain: Callable[[Array, Array], Array],
    target: Array,
    pred: Array,
    axis: int | None,
    kept: Array | None,
    **options: Any,
) -> Array:
    """Derivatives of the slopes are the formula's."""
    sizes = tf.shape(pred)
    samples = sizes if axis is None else tf.concat([sizes[:axis], sizes[axis + 1 :]], 0)
    xla = _pays_in_xla(pred)
    masks = () if kept is None else (tf.reshape(tf.broadcast_to(kept, samples), [-1]),)
    forward = _compiled(partial(_forward, loss, options, xla), xla)
    floating = (target.dtype.is_floating, True)

    @_custom_gradient
    def differentiable(*floats: Array) -> Any:
        # Stopped, so that no tape writes down what happens inside.
        t, z = (tf.stop_gradient(x) for x in (floats if floating[0] else (target, *floats)))
        rows = _as_rows(t, axis) if t.shape.rank == z.shape.rank else tf.reshape(t, [-1]), _as_rows(z, axis), *masks
        found, *known = forward(*rows)

        def slope(which: int, upstream: Array) -> Array:
            backward = _compiled(partial(_backward, loss, options, xla, which), xla)

            @_custom_gradient
            def differentiable(upstream: Array, *floats: Array) -> Any:
                slopes = backward(tf.reshape(tf.stop_gradient(upstream), [-1]), known, *rows)
                derivative = partial(_derivative_of_slope, plain, which, target, upstream, *floats)
                return _like(slopes, (t, z)[which], axis), derivative

            return differentiable(upstream, *floats)

        gradients = [which for which in (0, 1) if floating[which]]
        return tf.reshape(found, samples), lambda upstream: [slope(which, upstream) for which in gradients]

    result = differentiable(*([target] if floating[0] else []), pred)
    shape = list(pred.shape)
    result.set_shape(shape if axis is None else shape[:axis] + shape[axis + 1 :])
    return result


def _forward(loss: _Loss, options: dict[str, Any], xla: bool, *rows: Array) -> tuple[Array, ...]:
    """The losses, and what is known of the rows."""
    if xla and rows[1].shape.num_elements() > XLA_BLOCK and rows[1].shape[1] > 1:
        return _in_blocks(lambda *block: _value(loss, options, xla, block), rows)
    return tuple(_value(loss, options, xla, rows))


def _value(loss: _Loss, options: dict[str, Any], xla: bool, rows: tuple[Array, ...]) -> list[Array]:
    value, known = loss.value(_IN_XLA if xla else b, *_prepared(*rows), 1, **options)
    return [value, *known]


def _backward(
    loss: _Loss, options: dict[str, Any], xla: bool, which: int, upstream: Array, known: list[Array], *rows: Array
) -> Array:
    """One pass of arithmetic, which writes nothing but the slopes."""
    wanted = (which == 0, which == 1)
    slopes = loss.slopes(_IN_XLA if xla else b, *_prepared(*rows), 1, known, wanted, **options)[which]
    return tf.cast(slopes * upstream[:, None], rows[which].dtype)


def _prepared(target: Array, pred: Array, kept: Array | None = None) -> tuple[Array, Array]:
    dtype = compute_dtype(pred.dtype.name)
    if target.shape.rank == pred.shape.rank:
        target = neutralise(b, tf.cast(target, dtype), kept, 1, 0.5)
    return target, neutralise(b, tf.cast(pred, dtype), kept, 1, 0.5)


def _in_blocks(function: Callable[..., list[Array]], rows: tuple[Array, ...]) -> tuple[Array, ...]:
    """Of so many rows at a time as stay in the cache; the last block begins early enough to be as long as the others.

    XLA would store all that it sums up.
    """
    count, classes = rows[1].shape
    size = min(count, max(1, XLA_BLOCK // classes))
    blocks = -(-count // size)

    def of_block(start: Array) -> Array:
        found = function(*(tf.slice(x, [start, *[0] * (len(x.shape) - 1)], [size, *x.shape[1:]]) for x in rows))
        return tf.stack([tf.reshape(x, [size]) for x in found])

    starts = tf.minimum(tf.range(0, blocks * size, size), count - size)
    dtype = compute_dtype(rows[1].dtype.name)
    found = tf.map_fn(of_block, starts, fn_output_signature=tf.as_dtype(dtype))
    found = tf.reshape(tf.transpose(found, [1, 0, 2]), [-1, blocks * size])
    again = blocks * size - count
    found = tf.concat([found[:, : count - size + again], found[:, count - size + 2 * again :]], 1) if again else found
    losses, *known = tf.unstack(found)
    return losses, *(x[:, None] for x in known)


def _sum_in_xla(x: Array, axis: int, keepdims: bool = False) -> Array:
    """As products with ones, and in parts: XLA adds up a row in order, which takes three times as long, and costs 60
    units in the last place at 32768 classes.
    """
    rows, classes = x.shape
    part = max((n for n in range(1, XLA_PART + 1) if classes % n == 0), default=1)
    if part < XLA_PART // 16 < classes:  # all but a few classes, and these
        whole = classes - classes % XLA_PART
        total = _sum_in_xla(x[:, :whole], axis) + _sum_of_row(x[:, whole:])
    elif part < classes:
        parts = tf.reshape(_sum_of_row(tf.reshape(x, [rows * classes // part, part])), [rows, classes // part])
        total = _sum_in_xla(parts, axis)
    else:
        total = _sum_of_row(x)
    return total[:, None] if keepdims else total


def _sum_of_row(x: Array) -> Array:
    return tf.linalg.matvec(x, tf.ones([x.shape[1]], x.dtype))


_IN_XLA: Any = SimpleNamespace(**{**vars(b), "sum": _sum_in_xla})


# Cross-entropy of labels y. With m the largest logit, e = exp(z − m) and s = Σ_{j≠y} e_j, it is (m − z_y) +
# log(s + e_y), log1p(s) where y has the largest; the slope e_j/(s + e_y), −s/(s + e_y) for y. Nothing cancels.


def _of_labels_value(
    x: Any, labels: Array, z: Array, axis: int, *, label_smoothing: float
) -> tuple[Array, tuple[Array, ...]]:
    classes = x.size(z, 1, labels)
    valid = (labels >= 0) & (labels < classes)
    index = tf.where(valid, labels, 0)
    m = x.max(z, 1)
    m = tf.where(tf.math.is_finite(m), m, math.nan)
    of_label = tf.gather(z, index, axis=1, batch_dims=1)[:, None]
    e = tf.exp(z - m)
    saved: tuple[Array, ...] = ()
    if x is b:
        e = tf.tensor_scatter_nd_update(e, _places(index), tf.zeros_like(of_label[:, 0]))
        saved = (e,)
    else:
        e = x.where(x.one_hot(index, z, 1), 0.0, e)
    others = x.sum(e, 1, keepdims=True)
    total = others + tf.exp(of_label - m)
    apart = m - of_label
    rest = tf.where(apart == 0, tf.math.log1p(others), tf.math.log(total))
    loss = apart + rest
    if label_smoothing:
        share = label_smoothing / tf.cast(classes, z.dtype)
        smoothed = share * x.sum(m - z, 1, keepdims=True) + label_smoothing * rest
        loss = smoothed if label_smoothing == 1 else (1 - label_smoothing) * loss + smoothed  # 0·∞ = 0
    loss = tf.where(valid[:, None], loss, math.nan)
    return loss[:, 0], (m, others, total, *saved)


def _of_labels_slopes(
    x: Any,
    labels: Array,
    z: Array,
    axis: int,
    known: tuple[Array, ...],
    wanted: tuple[bool, bool],
    *,
    label_smoothing: float,
) -> tuple[None, Array]:
    m, others, total, *saved = known
    classes = x.size(z, 1, labels)
    valid = ((labels >= 0) & (labels < classes))[:, None]
    scale = tf.where(valid, 1 / total, tf.zeros([], z.dtype))
    of_label = -others * scale
    share: Any = 0.0
    if label_smoothing:
        share = label_smoothing * tf.where(valid, 1 / tf.cast(classes, z.dtype), tf.zeros([], z.dtype))
        of_label += tf.where(valid, label_smoothing - share, tf.zeros([], z.dtype))
    if x is b:
        slopes = saved[0] * scale - share if label_smoothing else saved[0] * scale
        index = tf.where(valid[:, 0], labels, 0)
        return None, tf.tensor_scatter_nd_update(slopes, _places(index), of_label[:, 0])
    slopes = tf.exp(z - m) * scale
    return None, tf.where(x.one_hot(labels, z, 1), of_label, slopes - share if label_smoothing else slopes)


def _places(index: Array) -> Array:
    return tf.stack([tf.range(tf.size(index, out_type=index.dtype), dtype=index.dtype), index], axis=1)


# Which loss it is.


def _of_labels(
    plain: Any,
    labels: Array,
    pred: Array,
    axis: int,
    kept: Array | None,
    *,
    from_logits: bool,
    epsilon: float,
    label_smoothing: float = 0.0,
    class_weight: Array | None = None,
) -> Array | None:
    if not from_logits or (label_smoothing and class_weight is not None):
        return None
    loss = _in_graph(_OF_LABELS_LOSS, plain, labels, pred, axis, kept, label_smoothing=label_smoothing)
    if class_weight is not None:
        index = tf.where((labels >= 0) & (labels < b.size(pred, axis, labels)), labels, 0)
        weight = tf.gather(tf.reshape(class_weight, [-1]), index)
        loss = weight * formulas.affordable(b, weight, loss)
    return loss


def _dense(
    plain: Any,
    target: Array,
    pred: Array,
    axis: int,
    kept: Array | None,
    *,
    from_logits: bool,
    epsilon: float,
    label_smoothing: float,
    class_weight: Array | None,
) -> Array | None:
    if not from_logits or class_weight is not None:
        return None
    return _in_graph(_DENSE, plain, target, pred, axis, kept, label_smoothing=label_smoothing)


def _divergence(
    plain: Any, target: Array, pred: Array, axis: int, kept: Array | None, *, from_logits: bool, epsilon: float
) -> Array:
    if from_logits:
        return _in_graph(_KL_OF_LOGITS, plain, target, pred, axis, kept)
    return _in_graph(_KL, plain, target, pred, axis, kept, epsilon=epsilon)


def _trials(
    plain: Any, target: Array, pred: Array, axis: int | None, kept: Array | None, **options: Any
) -> Array | None:
    if options.pop("weight", None) is not None or tf.is_tensor(options.get("pos_weight")):
        return None
    return _in_graph(_TRIALS, plain, target, pred, axis, kept, **options)


_OF_LABELS_LOSS = _Loss(_of_labels_value, _of_labels_slopes)
_DENSE = _Loss(closed.dense_value, closed.dense_slopes)
_KL = _Loss(closed.kl_value, closed.kl_slopes)
_KL_OF_LOGITS = _Loss(closed.kl_of_logits_value, closed.kl_of_logits_slopes)
_TRIALS = _Loss(closed.bernoulli_value, closed.bernoulli_slopes)


# What every kernel in a graph needs.


def _pays_in_xla(x: Array) -> bool:
    """In a graph whose sizes are known, so that nothing is compiled anew for another call, and the processor runs it.

    On a GPU XLA needs tools that TensorFlow can lack, and a strategy may place the operations anywhere. The gradient of
    a branch of tf.cond finds nothing of what its branch has handed to a compiled function.
    """
    count = x.shape.num_elements()
    if type(tf.compat.v1.get_default_graph()).__name__ == "CondBranchFuncGraph":
        return False
    if tf.executing_eagerly() or not count or count < XLA_ELEMENTS or tf.distribute.has_strategy():
        return False
    return all(device.device_type == "CPU" for device in tf.config.list_logical_devices())


def _compiled(function: Callable[..., Any], xla: bool) -> Callable[..., Any]:
    """Not kept: what it traces goes when the graph around it goes."""
    return tf.function(function, jit_compile=True, autograph=False) if xla else function


def _without(axis: int, rank: int) -> list[int]:
    return [i for i in range(rank) if i != axis]


def _as_rows(x: Array, axis: int | None) -> Array:
    """(rows, classes); without an axis, rows of one."""
    if axis is None:
        return tf.reshape(x, [-1, 1])
    rank = x.shape.rank
    if axis != rank - 1:
        x = tf.transpose(x, [*_without(axis, rank), axis])
    classes = b.size(x, rank - 1, tf.constant(0))
    return tf.reshape(x, [tf.reduce_prod(tf.shape(x)[:-1]), classes])


def _like(rows: Array, x: Array, axis: int | None) -> Array:
    """Undoes _as_rows."""
    rank = x.shape.rank
    if axis is None or axis == rank - 1:
        return tf.reshape(rows, tf.shape(x))
    moved = tf.reshape(rows, tf.gather(tf.shape(x), [*_without(axis, rank), axis]))
    back = list(range(rank - 1))
    back.insert(axis, rank - 1)
    return tf.transpose(moved, back)


def _slope(plain: Callable[[Array], Array], upstream: Array, pred: Array) -> Array:
    """The formula's, which can be differentiated further."""
    with tf.GradientTape() as tape:
        tape.watch(pred)
        loss = plain(pred)
    return tape.gradient(loss, pred, upstream, unconnected_gradients=tf.UnconnectedGradients.ZERO)


def _derivative_of_slope(
    plain: Callable[[Array, Array], Array], which: int, target: Array, upstream: Array, *floats_and_cotangent: Array
) -> list[Array]:
    """Of the slope for the target or the predictions, for upstream and the floating ones of the two."""
    *floats, cotangent = floats_and_cotangent

    def both(*floats: Array) -> Array:
        return plain(*floats) if len(floats) == 2 else plain(target, *floats)

    with tf.GradientTape() as outer:
        outer.watch([upstream, *floats])
        place = which if len(floats) == 2 else 0
        slope = _slope(lambda x: both(*floats[:place], x, *floats[place + 1 :]), upstream, floats[place])
    wanted = [upstream, *floats]
    found: list[Array] = outer.gradient(slope, wanted, cotangent, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    return found


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
_IN_GRAPH: dict[str, Kernel] = {
    "sparse_categorical_crossentropy": _of_labels,
    "label_log_loss": _of_labels,
    "categorical_crossentropy": _dense,
    "kl_divergence": _divergence,
    "distillation_loss": partial(_in_graph, _KL_OF_LOGITS),
    "binary_crossentropy": _trials,
    "bernoulli_log_loss": _trials,
}
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
