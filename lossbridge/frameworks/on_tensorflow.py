"""TensorFlow: which path computes a request, how a rule is attached, and how TensorFlow runs. Defines no loss.

Eager calls on the CPU use NumPy's paths on the memory of TensorFlow's arrays, because an operation of NumPy starts in
1 µs and one of TensorFlow in 15. In a graph a rule is one custom gradient, which needs few passes and buffers, and is
compiled by XLA where all sizes are known and large. Higher derivatives are those of the rule's value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import tensorflow as tf

from lossbridge.frameworks import numpy_ops, numpy_rows, on_numpy, tensorflow_linear, tensorflow_ops
from lossbridge.frameworks.framework import Choice, Path, by_formula, prepared
from lossbridge.maths import softmax
from lossbridge.maths.elementary import in_range, is_number, zero_if_unweighted
from lossbridge.maths.ops import Array
from lossbridge.reduction import reduced
from lossbridge.spec import Request

name = "tensorflow"
ops = tensorflow_ops
# Conversion and inspection of arrays.
asarray, cast, concrete, dtype = ops.asarray, ops.cast, ops.concrete, ops.dtype
owns, quiet, shape, widest = ops.owns, ops.quiet, ops.shape, ops.widest

_custom_gradient: Callable[[Callable[..., Any]], Callable[..., Any]] = tf.custom_gradient  # for the type checker

# Measured on two cores with 32 to 2048 rows of 10 to 32768 classes: below this, calling XLA costs more than it saves.
XLA_ELEMENTS = 2**16
# In XLA: elements of a block of rows, 1 MiB of float32, and of a part of a sum.
XLA_BLOCK = 2**18
XLA_PART = 2**10

# Bytes. TensorFlow copies memory that is less aligned.
_ALIGNMENT = 64


# The paths, the fastest first.


def choose(r: Request) -> Choice:
    """The first that does not refuse the request."""
    no_numpy = _refuses_numpy(r)
    if not no_numpy:
        return Choice(PATHS["numpy"])
    no_rule = _refuses_rule(r)
    if no_rule:
        return Choice(PATHS["formula"], (("numpy", no_numpy), ("xla", no_rule), ("rule", no_rule)))
    no_xla = _refuses_xla(r.pred)
    if not no_xla:
        return Choice(PATHS["xla"], (("numpy", no_numpy),))
    return Choice(PATHS["rule"], (("numpy", no_numpy), ("xla", no_xla)))


def chosen(request: Callable[[Array, Array], Request], target: Any, pred: Any, under: str) -> Choice:
    found: list[Choice] = []

    def traced(*arrays: Array) -> None:
        r = request(*arrays)
        choice = choose(r)
        found.append(_with_words_of_numpy(choice, r) if choice.path.name == "numpy" else choice)

    if under:
        tf.function(traced, autograph=False)(*(ops.asarray(x) for x in (target, pred)))
    else:
        traced(target, pred)
    return found[0]


def _with_words_of_numpy(choice: Choice, r: Request) -> Choice:
    """The path `numpy`, with the words of the one that NumPy itself takes."""
    there = on_numpy.choose(_on_numpy(r))
    value = f"NumPy's path {there.path.name}, on TensorFlow's memory: {there.path.value_words}"
    path = choice.path._replace(value_words=value, gradient_words=there.path.gradient_words)
    return Choice(path, tuple((f"NumPy's {name}", reason) for name, reason in there.why_not))


def _refuses_numpy(r: Request) -> str:
    others = [r.target, *_tensors(r.options)]
    if ops.in_forward_mode(r.pred, *others):
        return "forward-mode differentiation is on"
    if not ops.on_host(r.pred, *others, *([] if r.valid is None else [r.valid])):
        return "the call is traced" if not tf.executing_eagerly() else "the tensors are not on the CPU"
    return "the target or a weight is differentiated" if ops.is_recorded(others) else ""


def _refuses_rule(r: Request) -> str:
    if r.rule.gradients is None:
        return f"no derivative rule is written for {r.rule.name}"
    if ops.in_forward_mode(r.pred, r.target, *_tensors(r.options)):
        return "forward-mode differentiation is on"
    if ops.in_branch_of_cond():
        return "the call is in a branch of tf.cond"
    variable = _tensors({name: x for name, x in r.options.items() if name not in r.constant})
    return "a weight is a tensor, which may be differentiated" if variable and not _weighted_afterwards(r) else ""


def _weighted_afterwards(r: Request) -> bool:
    """Whether the class weights multiply the losses of labels."""
    return r.rule is softmax.LABELS and is_number(r.options.get("label_smoothing", 0), 0)


def _refuses_xla(pred: Array) -> str:
    """XLA is used on a CPU in graphs whose sizes are known, so that no later call recompiles.

    On a GPU XLA needs tools that TensorFlow may lack, and a strategy may place the operations on any device.
    """
    count = pred.shape.num_elements()
    if tf.executing_eagerly():
        return "not in a graph"
    if not count or count < XLA_ELEMENTS:
        return f"fewer than {XLA_ELEMENTS} entries, or their number is unknown"
    on_cpu = all(device.device_type == "CPU" for device in tf.config.list_logical_devices())
    return "" if on_cpu and not tf.distribute.has_strategy() else "a GPU or a strategy is there"


def _tensors(options: Mapping[str, Any]) -> list[Array]:
    return [x for x in options.values() if tf.is_tensor(x)]


def _by_formula(r: Request) -> Array:
    return by_formula(ops, r, r.target, r.pred)


def _ratio_by_formula(r: Request) -> Array:
    return reduced(r, _by_formula(r))


# Eager.


def _by_numpy(r: Request) -> Array:
    """NumPy's path, on the memory of TensorFlow's arrays."""
    there = _on_numpy(r)
    pred = there.pred

    def losses(x: Array) -> Array:
        with numpy_ops.quiet():
            r = there._replace(pred=x)
            return on_numpy.choose(r).path.losses(r)

    if not ops.is_recorded([r.pred]):
        return ops.from_numpy(np.asarray(losses(pred)), r.pred)
    leaf = numpy_ops.Variable(pred)
    found = [losses(leaf)]

    def pulled_back(upstream: np.ndarray) -> np.ndarray:
        once = found.pop() if found else losses(leaf)  # the residuals that a path has saved can be used once
        return numpy_ops.pulled_back(once, leaf, upstream)

    return ops.recorded(numpy_ops.value_of(found[0]), r.pred, pulled_back, partial(_gradient, _by_formula, r))


def _ratio_by_numpy(r: Request) -> Array:
    """The ratio in one pass of the native rows, into memory that becomes TensorFlow's; else of the losses above."""
    there = _on_numpy(r)
    weights = [x for x in (r.weight, r.normalizer) if x is not None]
    differentiated = weights and (ops.is_recorded(weights) or ops.in_forward_mode(*weights))
    if differentiated or not ops.on_host(*weights) or numpy_rows.refuses(there):
        return reduced(r, _by_numpy(r))
    if not ops.is_recorded([r.pred]):
        return ops.from_numpy(np.asarray(numpy_rows.computed(there, (False, False)).ratio), r.pred)
    done = numpy_rows.computed(there, (False, True), _aligned(there.pred))
    of_one = [done.gradients[1]]

    def pulled_back(upstream: np.ndarray) -> np.ndarray:
        gradient = of_one.pop() if of_one else None  # what was handed out is the caller's
        if gradient is None or not numpy_rows.is_one(upstream):
            gradient = _aligned(there.pred) if gradient is None else gradient
            numpy_rows.again(done, upstream, 1, gradient)
        return gradient

    return ops.recorded(np.asarray(done.ratio), r.pred, pulled_back, partial(_gradient, _ratio_by_formula, r))


def _aligned(x: np.ndarray) -> np.ndarray:
    """Memory for an array like `x`, which TensorFlow will not copy if it is large."""
    if x.size < numpy_rows.SMALL:
        return np.empty(x.shape, x.dtype)
    raw = np.empty(x.nbytes + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + x.nbytes].view(x.dtype).reshape(x.shape)


def _on_numpy(r: Request) -> Request:
    """The request of the same ratio, of NumPy's arrays."""

    def array(x: Array | None) -> Any:
        return np.asarray(x) if tf.is_tensor(x) else x

    return r._replace(
        framework=on_numpy,
        target=array(r.target),
        pred=array(r.pred),
        weight=array(r.weight),
        counted=array(r.counted),
        valid=array(r.valid),
        normalizer=array(r.normalizer),
        options={key: array(x) for key, x in r.options.items()},
    )


def _gradient(function: Callable[[Request], Array], r: Request, upstream: Array) -> Array:
    """The gradient of function(r) for the predictions, which can be differentiated again."""
    with tf.GradientTape() as tape:
        tape.watch(r.pred)
        found = function(r)
    return tape.gradient(found, r.pred, upstream, unconnected_gradients=tf.UnconnectedGradients.ZERO)


# In a graph: one attachment of a derivative, for all rules.


def _by_rule(r: Request, *, xla: bool) -> Array:
    """Computed in rows, compiled by XLA or not."""
    weight = r.options.get("class_weight") if _weighted_afterwards(r) else None
    if weight is not None:
        r = r._replace(options={**r.options, "class_weight": None})
    losses = _attached(r, xla)
    if weight is not None:
        assert r.axis is not None
        weight = ops.lookup(weight, in_range(ops, r.target, r.pred, r.axis)[0])
        losses = weight * zero_if_unweighted(ops, weight, losses)
    return losses


def _attached(r: Request, xla: bool) -> Array:
    axis, pred = r.axis, r.pred
    sizes = tf.shape(pred)
    samples = sizes if axis is None else tf.concat([sizes[:axis], sizes[axis + 1 :]], 0)
    valid = () if r.valid is None else (tf.reshape(tf.broadcast_to(r.valid, samples), [-1]),)
    forward = _compiled(partial(_forward, r, xla), xla)
    of_labels = not r.target.dtype.is_floating

    @_custom_gradient
    def differentiable(*floats: Array) -> Any:
        # stop_gradient, so that no tape records the operations inside.
        t, z = (tf.stop_gradient(x) for x in ((r.target, *floats) if of_labels else floats))
        rows = _as_rows(t, axis) if t.shape.rank == z.shape.rank else tf.reshape(t, [-1]), _as_rows(z, axis), *valid
        found, *residuals = forward(*rows)

        def gradient(which: int, upstream: Array) -> Array:
            backward = _compiled(partial(_backward, r, xla, which), xla)

            @_custom_gradient
            def differentiable(upstream: Array, *floats: Array) -> Any:
                of_rows = backward(tf.reshape(tf.stop_gradient(upstream), [-1]), residuals, *rows)
                return _like(of_rows, (t, z)[which], axis), partial(_second_gradients, r, which, upstream, *floats)

            return differentiable(upstream, *floats)

        return tf.reshape(found, samples), lambda upstream: [
            gradient(which, upstream) for which in ((1,) if of_labels else (0, 1))
        ]

    result = differentiable(*([] if of_labels else [r.target]), pred)
    shape = list(pred.shape)
    result.set_shape(shape if axis is None else shape[:axis] + shape[axis + 1 :])
    return result


def _compiled(function: Callable[..., Any], xla: bool) -> Callable[..., Any]:
    """Not cached, so that what it traces is freed with the graph around it."""
    return tf.function(function, jit_compile=True, autograph=False) if xla else function


def _of_rows(r: Request, target: Array, pred: Array, valid: Array | None = None) -> Request:
    """The request of these rows, with options that lie along them."""
    options = {key: ops.reshape(x, (1, -1)) if tf.is_tensor(x) and x.shape.rank else x for key, x in r.options.items()}
    return r._replace(target=target, pred=pred, valid=valid, axis=1, options=options)


def _forward(r: Request, xla: bool, *rows: Array) -> tuple[Array, ...]:
    """The losses, and the residuals."""
    if xla and rows[1].shape.num_elements() > XLA_BLOCK and rows[1].shape[1] > 1:
        return _in_blocks(r, lambda *block: _value(r, xla, block), rows)
    return tuple(_value(r, xla, rows))


def _value(r: Request, xla: bool, rows: tuple[Array, ...]) -> list[Array]:
    r = _of_rows(r, *rows)
    target, pred = prepared(ops, r, r.target, r.pred)
    losses, residuals = r.rule.value(_IN_XLA if xla else ops, target, pred, 1, **r.options)
    return [losses, *residuals]


def _backward(r: Request, xla: bool, which: int, upstream: Array, residuals: list[Array], *rows: Array) -> Array:
    """The gradient for the target or the predictions."""
    r = _of_rows(r, *rows)
    target, pred = prepared(ops, r, r.target, r.pred)
    needs = (which == 0, which == 1)
    assert r.rule.gradients is not None
    found = r.rule.gradients(_IN_XLA if xla else ops, target, pred, 1, tuple(residuals), needs, **r.options)[which]
    return tf.cast(found * upstream[:, None], rows[which].dtype)


def _second_gradients(r: Request, which: int, upstream: Array, *floats_and_cotangent: Array) -> list[Array]:
    """The gradients of the gradient for one input, with respect to upstream and the floating inputs."""
    *floats, cotangent = floats_and_cotangent

    def losses(*floats: Array) -> Array:
        return by_formula(ops, r, *(floats if len(floats) == 2 else (r.target, *floats)))

    with tf.GradientTape() as outer:
        outer.watch([upstream, *floats])
        with tf.GradientTape() as inner:
            inner.watch(floats)
            value = losses(*floats)
        place = which if len(floats) == 2 else 0
        zero = tf.UnconnectedGradients.ZERO
        gradient = inner.gradient(value, floats[place], upstream, unconnected_gradients=zero)
    found: list[Array] = outer.gradient(gradient, [upstream, *floats], cotangent, unconnected_gradients=zero)
    return found


def _in_blocks(r: Request, function: Callable[..., list[Array]], rows: tuple[Array, ...]) -> tuple[Array, ...]:
    """The function of blocks of rows that fit the cache, because XLA would store the terms of a sum.

    The last block overlaps the one before, so that all have one size.
    """
    count, classes = rows[1].shape
    size = min(count, max(1, XLA_BLOCK // classes))
    blocks = -(-count // size)

    def of_block(start: Array) -> Array:
        found = function(*(tf.slice(x, [start, *[0] * (len(x.shape) - 1)], [size, *x.shape[1:]]) for x in rows))
        return tf.stack([tf.reshape(x, [size]) for x in found])

    starts = tf.minimum(tf.range(0, blocks * size, size), count - size)
    found = tf.map_fn(of_block, starts, fn_output_signature=tf.as_dtype(r.dtype))
    found = tf.reshape(tf.transpose(found, [1, 0, 2]), [-1, blocks * size])
    overlap = blocks * size - count
    if overlap:
        found = tf.concat([found[:, : count - size + overlap], found[:, count - size + 2 * overlap :]], 1)
    losses, *residuals = tf.unstack(found)
    return losses, *(x[:, None] for x in residuals)


def _sum_in_xla(x: Array, axis: int, keepdims: bool = False) -> Array:
    """A sum as matrix products with ones, in parts.

    XLA sums a row in order, which takes three times as long, and has an error of 60 units in the last place at 32768
    classes.
    """
    rows, classes = x.shape
    part = max((n for n in range(1, XLA_PART + 1) if classes % n == 0), default=1)
    if part < XLA_PART // 16 < classes:  # a multiple of XLA_PART, and the remaining classes
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


def _sum_but_in_xla(x: Array, labels: Array, axis: int) -> Array:
    return _sum_in_xla(ops.where(ops.one_hot(labels, x, axis), 0.0, x), axis)


def _put_in_xla(x: Array, labels: Array, values: Array, axis: int) -> Array:
    return ops.where(ops.one_hot(labels, x, axis), values, x)


# In XLA these are faster in another form; it fuses no scatter, for one.
_IN_XLA: Any = SimpleNamespace(**{**vars(ops), "sum": _sum_in_xla, "sum_but": _sum_but_in_xla, "put": _put_in_xla})


# Rows.


def _without(axis: int, rank: int) -> list[int]:
    return [i for i in range(rank) if i != axis]


def _as_rows(x: Array, axis: int | None) -> Array:
    """`x` as (rows, classes); without an axis as (entries, 1)."""
    if axis is None:
        return tf.reshape(x, [-1, 1])
    rank = x.shape.rank
    if axis != rank - 1:
        x = tf.transpose(x, [*_without(axis, rank), axis])
    classes = ops.size(x, rank - 1, tf.constant(0))
    return tf.reshape(x, [tf.reduce_prod(tf.shape(x)[:-1]), classes])


def _like(rows: Array, x: Array, axis: int | None) -> Array:
    """The inverse of _as_rows, to the shape of `x`."""
    rank = x.shape.rank
    if axis is None or axis == rank - 1:
        return tf.reshape(rows, tf.shape(x))
    moved = tf.reshape(rows, tf.gather(tf.shape(x), [*_without(axis, rank), axis]))
    back = list(range(rank - 1))
    back.insert(axis, rank - 1)
    return tf.transpose(moved, back)


PATHS: Mapping[str, Path] = {
    path.name: path
    for path in (
        Path(
            "numpy",
            _by_numpy,
            "NumPy's path, on TensorFlow's memory",
            "NumPy's, on TensorFlow's memory",
            ratio=_ratio_by_numpy,
        ),
        Path(
            "xla",
            partial(_by_rule, xla=True),
            "the formula, over TensorFlow's operations, compiled by XLA in blocks of rows",
            "the derivative rule, compiled by XLA",
        ),
        Path(
            "rule",
            partial(_by_rule, xla=False),
            "the formula, over TensorFlow's operations",
            "the derivative rule, over TensorFlow's operations",
        ),
        Path(
            "formula",
            _by_formula,
            "the formula, over TensorFlow's operations",
            "automatic differentiation, of the formula",
        ),
    )
}


choose_linear = tensorflow_linear.choose
shards: Any = None  # no classes are split over devices


# Running.


def value_and_grad(function: Callable[[Any], Array], x: Any) -> tuple[Array, Any]:
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = function(x) if tf.executing_eagerly() else ops.call_rewritten(function, x)
    return value, tape.gradient(value, x, unconnected_gradients=tf.UnconnectedGradients.ZERO)


def compilers() -> Mapping[str, Callable[[Callable[..., Any]], Callable[..., Any]]]:
    return {"function": tf.function, "jit_compile": partial(tf.function, jit_compile=True)}


def devices() -> list[str]:
    kinds = {device.device_type for device in tf.config.list_logical_devices()}
    return sorted({"GPU": "cuda"}.get(kind, kind.lower()) for kind in kinds)


def place(x: np.ndarray, dtype: str, device: str) -> Array:
    with tf.device(_device_name(device)):
        return tf.constant(x, dtype=dtype)


def _device_name(device: str) -> str:
    return "GPU" if device == "cuda" else device.upper()


def to_numpy(x: Array) -> np.ndarray:
    x = np.asarray(x.numpy() if tf.is_tensor(x) else x)  # of one bfloat16 its __array__ gives no array
    return x.astype(np.float32) if x.dtype.name == "bfloat16" else x


def scope(dtype: str, device: str) -> AbstractContextManager[object]:
    return tf.device(_device_name(device))


def version() -> str:
    return str(tf.__version__)
