"""NumPy: losses and their gradients in one pass over blocks of rows that fit a core's cache.

A row kernel computes a block in a few scratch arrays, and large inputs in several threads. The formulas have dozens of
intermediate arrays of the inputs' size, and allocating one costs more than the arithmetic that fills it. Where the
gradient is needed, the same pass writes it, times the factor that a mean of the losses passes back.

Rows whose loss is infinite or NaN in a row kernel are computed again by the formula. The arithmetic of a row depends on
that row alone, so that results are equal to the bit with any number of threads.

The kernels' derivations. For a row of logits z, with weights w_c (targets, smoothed, times class weights), W = Σ w_c:

(1) m = max z = z_k, s = Σ_{c≠k} e^(z_c − m). Then −log p_c = log1p(s) + m − z_c and 1 − p_k = s/(1 + s).
(2) loss = Σ_c w_c (m − z_c) + W·log1p(s); for one label y, log1p(s) + m − z_y.
(3) gradient_c = W·e^(z_c − m)/(1 + s) − w_c, and for k, where the two would cancel, ((W − w_k) − w_k·s)/(1 + s), with
    W − w_k summed as Σ_{c≠k} w_c.
(4) Smoothed labels: w_c = a_c + [c = y]·b, a_c = s/C·class_weight_c, b = (1 − s)·class_weight_y; neither W nor W − w_k
    needs an array of classes.

Of unnormalised probabilities x, p_c = clip(x_c/Σx, ε, 1 − ε):

(5) loss = Σ_c w_c (−log p_c), gradient_c = (V − w_c/p_c·[not clipped])/Σx, V = Σ w_c over the classes not clipped.

Focal, of logits, with l_c = −log p_c:

(6) loss = Σ_c w_c (1 − p_c)^γ l_c. The gradient is (3) with the weights w_c (1 − p_c)^(γ−1) (1 − p_c + γ p_c l_c).

KL(t ‖ p), δ_c = log(t_c/p_c):

(7) KL = Σ t_c δ_c, which cancels where t and p are close. There KL = Σ t_c (δ_c + e^(−δ_c) − 1), whose terms are ≥ 0,
    and in which an error of δ that is common to a row counts only by its square. gradient_c = p_c − t_c = t_c (e^(−δ_c)
    − 1).
(8) Where t and p are still closer, δ itself has lost its digits, and the row is computed in float64.

Bernoulli, of targets t with P = pos_weight·t and N = 1 − t (both smoothed):

(9) Of logits x: loss = P·max(−x, 0) + N·max(x, 0) + (P + N)·log1p(e^(−|x|)), gradient = N·p − P·(1 − p).
(10) Of probabilities p: loss = −P·log p − N·log1p(−p), gradient = N/(1 − p) − P/p.
(11) Focal, of logits, u = 1 − p_t = t·(1 − p) + (1 − t)·p and l the loss (9): loss = u^γ l,
     gradient = u^(γ−1) (u·dl/dx + γ l (1 − 2t) p (1 − p)).
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from lossbridge.frameworks import numpy_ops as ops
from lossbridge.maths import bernoulli, divergence, softmax
from lossbridge.maths.ops import Array
from lossbridge.spec import Request

# Elements of the arrays of one thread, 8 MiB of float32. With fewer, which a nearer cache would hold, NumPy's calls are
# so short that threads wait for Python's lock.
CACHE = 1 << 21
LARGE = 1 << 19  # elements from which threads save more than their start costs, about 0.1 ms

_NARROW, _WIDE = np.dtype(np.float32), np.dtype(np.float64)
Rows = Callable[..., Array]
Options = Mapping[str, Any]


class RowKernel(NamedTuple):
    """What computes a block of rows:

        rows(target, pred, scratch, out, scale, options) -> losses

    target (rows, classes), or labels (rows,); pred (rows, classes); scratch (n, rows, classes), n being the field
    below; losses (rows,). Where a gradient is needed, it is written to out (rows, classes), times scale, () or (rows,).
    All are contiguous, in the dtype of the computation. Targets and predictions are never written to.
    """

    rows: Rows
    scratch: int = 6  # arrays
    wide: bool = True  # also for float64


def refuses(r: Request) -> str:
    """Why no row kernel computes this request; "" if one does."""
    kernel = row_kernel(r)
    if kernel is None:
        smoothed = " with label smoothing" if r.options.get("label_smoothing") else ""
        steep = " of gamma < 1" if r.options.get("gamma", 1) < 1 else ""
        return f"no row kernel for {r.rule.name}{smoothed}{steep}"
    if r.dtype == "float64" and isinstance(kernel, RowKernel) and not kernel.wide:
        return f"the row kernel for {r.rule.name} is of float32"
    return refuses_rows(r)


def refuses_rows(r: Request) -> str:
    """Why this request is not computed in rows at all."""
    if isinstance(r.target, ops.Variable):
        return "the target is differentiated"
    return "an option is no array of one number a class" if _for_rows(r) is None else ""


def losses(r: Request) -> Array:
    """Computed by the row kernel of the request's rule."""
    kernel = row_kernel(r)
    assert kernel is not None
    return _recorded(r, kernel, _rule_rows(r)) if isinstance(kernel, RowKernel) else kernel(r)


def rule_losses(r: Request) -> Array:
    """Computed by the rule or the formula, block by block."""
    return _recorded(r, RowKernel(_rule_rows(r)), None)


def _rule_rows(r: Request) -> Rows:
    """The rule as the `rows` of a kernel; a rule without gradients is differentiated by the tape."""
    rule, axis = r.rule, None if r.axis is None else 1

    def rows(target: Array, pred: Array, scratch: Array, out: Array | None, scale: Array, o: Options) -> Array:
        if out is None:
            found = rule.value(ops, target, pred, axis, **o)[0]
        elif rule.gradients is None:
            leaf = ops.Variable(pred)
            on_tape = rule.value(ops, target, leaf, axis, **o)[0]
            found = ops.value_of(on_tape)
            upstream = np.broadcast_to(scale if axis else _column(scale), found.shape)
            out[...] = ops.pulled_back(on_tape, leaf, upstream.astype(pred.dtype))
        else:
            found, residuals = rule.value(ops, target, pred, axis, **o)
            gradient: Any = rule.gradients(ops, target, pred, axis, residuals, (False, True), **o)[1]
            np.multiply(gradient, _column(scale), out=out)
        return found if axis else found[:, 0]

    return rows


# The pass.


class _Job(NamedTuple):
    """A request, laid out in rows."""

    kernel: RowKernel
    again: Rows | None  # computes the rows whose loss is infinite or NaN in the kernel
    options: Options
    target: np.ndarray
    pred: np.ndarray
    axis: int | None
    samples: tuple[int, ...]  # the shape of the losses
    width: int  # classes, or 1
    inner: int  # the product of the sizes after the axis
    invalid: np.ndarray | None  # bool (samples,), flat
    dtype: np.dtype[Any]
    mean: np.floating[Any]  # 1/n, which a mean of the losses passes back to each

    @property
    def labels(self) -> bool:
        return self.target.ndim < self.pred.ndim

    @property
    def block(self) -> int:
        """Elements of a block, such that all arrays of a thread fit the cache."""
        return CACHE // (self.kernel.scratch + 3)

    @property
    def small(self) -> bool:
        return self.pred.size <= min(self.block, LARGE)


def _job(r: Request, kernel: RowKernel, again: Rows | None) -> _Job:
    x, axis = ops.value_of(r.pred), r.axis
    dtype = _WIDE if x.dtype == _WIDE else _NARROW
    samples, width, inner = x.shape, 1, 1
    if axis is not None:
        samples, width, inner = x.shape[:axis] + x.shape[axis + 1 :], x.shape[axis], math.prod(x.shape[axis + 1 :])
    invalid = None if r.valid is None else ~np.broadcast_to(r.valid, samples).reshape(-1)
    count = math.prod(samples)
    n = count if invalid is None else count - np.count_nonzero(invalid)
    mean = dtype.type(1) / dtype.type(n or 1)
    options = _for_rows(r) or {}
    return _Job(kernel, again, options, r.target, x, axis, samples, width, inner, invalid, dtype, mean)


def _for_rows(r: Request) -> dict[str, Any] | None:
    """The options as a block takes them: numbers, and arrays (C,) as (1, C). None if there are other arrays."""
    found = {}
    for name, x in r.options.items():
        along = type(x) is np.ndarray and x.ndim > 0
        if type(x) is ops.Variable or (along and (r.axis is None or x.size != r.pred.shape[r.axis])):
            return None
        found[name] = x.reshape(1, -1) if along else x
    return found


def _recorded(r: Request, kernel: RowKernel, again: Rows | None) -> Array:
    """The losses, recorded on the tape if the predictions are on it."""
    job = _job(r, kernel, again)
    gradient = None if job.pred is r.pred else np.empty(job.pred.shape, job.pred.dtype)
    found = _at_once(job, gradient)
    if found is None:
        found = _in_blocks(job, gradient, job.mean)
    found = found.reshape(job.samples)[()]
    if gradient is None:
        return found
    return ops.record(found, (r.pred, lambda upstream: _pulled_back(job, gradient, upstream)))


def _pulled_back(job: _Job, gradient: Array, upstream: Array) -> Array:
    """The gradient for this upstream gradient, where the pass assumed that of a mean."""
    factor = upstream.reshape(-1)
    if job.invalid is not None:
        factor = np.where(job.invalid, job.mean, factor)  # the gradient is 0 there for any factor
    if (factor != job.mean).any():
        if job.small or job.pred.dtype != job.dtype:
            _in_blocks(job, gradient, factor)
        else:  # one more multiplication costs less than computing a large array again; float16 would lose digits by it
            factor = (factor / job.mean).reshape(job.samples)
            np.multiply(gradient, factor if job.axis is None else np.expand_dims(factor, job.axis), out=gradient)
    return gradient


def _at_once(job: _Job, gradient: Array | None) -> Array | None:
    """The losses as one block, without copies; None if the input does not allow it, or a loss is infinite or NaN."""
    x = job.pred
    direct = job.invalid is None and job.inner == 1 and x.dtype == job.dtype and x.flags.c_contiguous
    if not (direct and job.small):
        return None
    z, target = x.reshape(-1, job.width), job.target.reshape(-1, *(() if job.labels else (job.width,)))
    if not job.labels:
        target = target.astype(job.dtype, copy=False)
    out = None if gradient is None else gradient.reshape(-1, job.width)
    scratch = np.empty((job.kernel.scratch, *z.shape), job.dtype)
    found = job.kernel.rows(target, z, scratch, out, job.mean, job.options)
    return found if job.again is None or math.isfinite(np.add.reduce(found)) else None


def _in_blocks(job: _Job, gradient: Array | None, scale: Array) -> Array:
    count = math.prod(job.samples)
    losses = np.empty(count, job.dtype)
    rows = _in_rows(job.pred, job.width, job.inner)
    targets = job.target.reshape(-1) if job.labels else _in_rows(job.target, job.width, job.inner)
    gradients = None if gradient is None else _in_rows(gradient, job.width, job.inner)

    def work(where: Any, these: slice, buffers: Array) -> None:
        t = targets[these] if job.labels else _contiguous(targets[where], job.dtype, buffers[-1])
        z = _contiguous(rows[where], job.dtype, buffers[-2])
        into = None if gradients is None else gradients[where]
        direct = into is None or (into.dtype == job.dtype and into.flags.c_contiguous)
        out = into if direct else buffers[-3][: len(z)]
        up = scale[these] if scale.ndim else scale
        losses[these] = _block(job, t, z, buffers[: job.kernel.scratch, : len(z)], out, up, these)
        if into is not None and not direct:
            into[...] = out

    threads = _cores() if job.pred.size >= LARGE else 1
    height = max(1, min(job.block // max(job.width, 1), -(-count // threads)))
    buffers = (job.kernel.scratch + 3, height, job.width)
    _on_threads(_blocks(count, job.inner, height), work, threads, buffers, job.dtype)
    return losses


def _block(
    job: _Job, target: Array, pred: Array, scratch: Array, out: Array | None, scale: Array, these: slice
) -> Array:
    """The losses of a block, 0 in invalid rows, and its gradient in `out`."""
    found = job.kernel.rows(target, pred, scratch, out, scale, job.options)
    odd = ~np.isfinite(found)
    if job.invalid is not None:
        invalid = job.invalid[these]
        odd &= ~invalid
        found[invalid] = 0
        if out is not None:
            out[invalid] = 0
    if job.again is not None and odd.any():
        again = None if out is None else np.empty_like(pred[odd])
        found[odd] = job.again(target[odd], pred[odd], None, again, scale[odd] if scale.ndim else scale, job.options)
        if out is not None:
            out[odd] = again
    return found


def _in_rows(x: np.ndarray, width: int, inner: int) -> np.ndarray:
    """(…, rows of `width`, …) as (outer, inner, width), without a copy where the strides allow it."""
    return x.reshape(-1, width, inner).swapaxes(1, 2) if x.size else x.reshape(0, inner, width)


def _blocks(count: int, inner: int, height: int) -> list[tuple[Any, slice]]:
    """Of each block its index in the result of `_in_rows`, and which of the `count` rows it has."""
    if not count:
        return []
    if inner == 1:
        return [((rows, 0), rows) for rows in (slice(i, min(i + height, count)) for i in range(0, count, height))]
    return [
        ((i // inner, slice(j, min(j + height, inner))), slice(i + j, i + min(j + height, inner)))
        for i in range(0, count, inner)
        for j in range(0, inner, height)
    ]


def _contiguous(x: np.ndarray, dtype: np.dtype[Any], buffer: np.ndarray) -> np.ndarray:
    if x.dtype == dtype and x.flags.c_contiguous:
        return x
    copy = buffer[: len(x)]
    copy[...] = x
    return copy


def _on_threads(
    blocks: list[tuple[Any, slice]],
    work: Callable[..., None],
    threads: int,
    buffers: tuple[int, ...],
    dtype: np.dtype[Any],
) -> None:
    """`work` on every block, with scratch arrays of its own in each thread."""
    waiting = deque(blocks)

    def worker() -> None:
        own = np.empty(buffers, dtype)
        while True:
            try:
                where, rows = waiting.popleft()
            except IndexError:
                return
            work(where, rows, own)

    def helper() -> None:
        with ops.quiet():  # NumPy's error state is per thread
            worker()

    threads = min(threads, len(blocks))
    if threads < 2:
        worker()
        return
    from concurrent.futures import ThreadPoolExecutor

    # A pool for each call: shared by no callers, and safe after a fork.
    with ThreadPoolExecutor(threads - 1) as pool:
        helpers = [pool.submit(helper) for _ in range(threads - 1)]
        worker()
    for done in helpers:
        done.result()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _column(x: Array) -> Array:
    """(rows,) as (rows, 1), to multiply rows by; () unchanged."""
    return x[:, None] if x.ndim else x


# Softmax, (1) to (4). Indices are those of the flat block.


def _softmax(z: Array, e: Array, d: Array | None = None, temperature: float = 1.0) -> tuple[Array, Array, Array]:
    """(1): k, m and s. Writes e^((z − m)/T) to `e`, 0 at k, and the exponent to `d`, NaN at k for infinite m."""
    d = e if d is None else d
    k = np.arange(0, z.size, z.shape[1]) + z.argmax(1)
    m = z.reshape(-1)[k]
    np.subtract(z, m[:, None], out=d)
    if temperature != 1:
        d /= temperature
    np.exp(d, out=e)
    e.reshape(-1)[k] = 0
    return k, m, np.add.reduce(e, 1)


def _softmax_gradient(e: Array, w: Array, k: Array, s: Array, scale: Array) -> Array:
    """(3), times scale, into `e`, which holds the exponentials of `_softmax`. Returns W. Overwrites `w`."""
    top, total, flat = w.reshape(-1)[k], 1 + s, e.reshape(-1)
    w.reshape(-1)[k] = 0
    others = np.add.reduce(w, 1)
    e *= ((others + top) / total)[:, None]
    e -= w
    flat[k] = (others - top * s) / total
    e *= _column(scale)
    return others + top


def _labels(labels: Array, z: Array, scratch: Array, out: Array | None, scale: Array, o: Options) -> Array:
    """(2) and (3) of one label."""
    class_weight = o.get("class_weight")
    e = scratch[0] if out is None else out
    at = np.arange(0, z.size, z.shape[1]) + labels
    k, m, s = _softmax(z, e)
    losses = np.log1p(s) + (m - z.reshape(-1)[at])
    if class_weight is not None:
        weight = class_weight[0, labels]
        losses, scale = losses * weight, scale * weight
    if out is not None:
        flat, total = e.reshape(-1), 1 + s
        flat[k] = 1
        e *= _column(scale / total)
        flat[at] = np.where(at == k, -scale * (s / total), flat[at] - scale)
    return losses


def _smoothed_labels(labels: Array, z: Array, scratch: Array, out: Array | None, scale: Array, o: Options) -> Array:
    """(4): a_c is `term`, and b `of_label`."""
    label_smoothing, class_weight = o.get("label_smoothing", 0.0), o.get("class_weight")
    d, e = scratch
    e = e if out is None else out
    rows, classes = np.arange(0, z.size, z.shape[1]), z.shape[1]
    at = rows + labels
    k, m, s = _softmax(z, e, d)
    weight = np.ones((1, classes), z.dtype) if class_weight is None else class_weight
    term, of_label = weight[0] * (label_smoothing / classes), weight[0, labels] * (1 - label_smoothing)
    terms = np.add.reduce(term, dtype=np.float64)
    total, norm = of_label + terms.astype(z.dtype), 1 + s
    d *= term
    losses = of_label * (m - z.reshape(-1)[at]) - np.add.reduce(d, 1) + total * np.log1p(s)
    if out is not None:
        flat, of_top = e.reshape(-1), term[k - rows]
        others = np.where(at == k, 0, of_label) + (terms - of_top).astype(z.dtype)
        top = np.where(at == k, of_label, 0) + of_top
        e *= (total / norm)[:, None]
        e -= term
        flat[at] -= of_label
        flat[k] = (others - top * s) / norm
        e *= _column(scale)
    return losses


def _weights(target: Array, out: Array, label_smoothing: float, class_weight: Array | None) -> Array:
    """w_c: the targets, smoothed and times class weights. Written to `out`, unless it is `target` itself."""
    if label_smoothing:
        np.multiply(target, 1 - label_smoothing, out=out)
        out += label_smoothing / target.shape[1]
        target = out
    return target if class_weight is None else np.multiply(target, class_weight, out=out)


def _dense(target: Array, z: Array, scratch: Array, out: Array | None, scale: Array, o: Options) -> Array:
    """(2) and (3)."""
    label_smoothing, class_weight = o.get("label_smoothing", 0.0), o.get("class_weight")
    w, d, e = scratch
    e = e if out is None else out
    weights = _weights(target, w, label_smoothing, class_weight)
    k, _m, s = _softmax(z, e, d)
    d *= weights
    weighted = np.add.reduce(d, 1)
    if out is None:
        total = np.add.reduce(weights, 1)
    else:
        if weights is target:
            np.copyto(w, target)
        total = _softmax_gradient(e, w, k, s, scale)
    return total * np.log1p(s) - weighted


def _label_probabilities(labels: Array, p: Array, scratch: Array, out: Array | None, scale: Array, o: Options) -> Array:
    """(5) of one label: log Σx − log x_y where not clipped, so that all other classes have the gradient 1/Σx."""
    epsilon, class_weight = o["epsilon"], o.get("class_weight")
    at = np.arange(0, p.size, p.shape[1]) + labels
    total = np.add.reduce(p, 1)
    p_label = p.reshape(-1)[at] / total
    clipped = p_label.clip(epsilon, 1 - epsilon)
    losses = -np.log(clipped)
    if class_weight is not None:
        weight = class_weight[0, labels]
        losses, scale = losses * weight, scale * weight
    if out is not None:
        of_sum = np.where(p_label == clipped, scale / total, 0)
        out[...] = of_sum[:, None]
        out.reshape(-1)[at] -= of_sum / clipped
    return losses


def _probabilities(target: Array, p: Array, scratch: Array, out: Array | None, scale: Array, o: Options) -> Array:
    """(5)"""
    epsilon, label_smoothing, class_weight = o["epsilon"], o.get("label_smoothing", 0.0), o.get("class_weight")
    w, ratio, clipped, log_p = scratch
    weights = _weights(target, w, label_smoothing, class_weight)
    total = np.add.reduce(p, 1)
    np.divide(p, total[:, None], out=ratio)
    ratio.clip(epsilon, 1 - epsilon, out=clipped)
    np.log(clipped, out=log_p)
    log_p *= weights
    if out is not None:
        outside = ratio != clipped
        if outside.any():
            np.copyto(ratio, weights)
            ratio[outside] = 0
            weights = ratio
        np.divide(weights, clipped, out=clipped)
        np.subtract(np.add.reduce(weights, 1)[:, None], clipped, out=out)
        out *= (scale / total)[:, None]
    return -np.add.reduce(log_p, 1)


def _focal(target: Array, z: Array, scratch: Array, out: Array | None, scale: Array, o: Options) -> Array:
    """(6)"""
    alpha, gamma, label_smoothing = o["alpha"], o["gamma"], o.get("label_smoothing", 0.0)
    w, neg_log_p, one_minus_p, power, p, e = scratch
    e = e if out is None else out
    np.multiply(_weights(target, w, label_smoothing, None), alpha, out=w)
    k, _m, s = _softmax(z, e, neg_log_p)
    np.subtract(np.log1p(s)[:, None], neg_log_p, out=neg_log_p)
    total = 1 + s
    np.divide(e, total[:, None], out=p)
    np.subtract(1, p, out=one_minus_p)
    p.reshape(-1)[k], one_minus_p.reshape(-1)[k] = 1 / total, s / total
    _power(one_minus_p, gamma - 1, power)
    power *= w
    np.multiply(power, one_minus_p, out=w)
    w *= neg_log_p
    losses = np.add.reduce(w, 1)
    if out is not None:
        p *= neg_log_p
        p *= gamma
        p += one_minus_p
        np.multiply(p, power, out=w)
        _softmax_gradient(e, w, k, s, scale)
    return losses


def _power(x: Array, exponent: float, out: Array) -> None:
    if exponent == 1:
        np.copyto(out, x)
    else:
        np.power(x, exponent, out=out)


# Divergences, (7) and (8): the values of KL below which rows are close, and closer still.
_CLOSE, _CLOSEST = 0.25, 0.03


def _kl_logits(target: Array, z: Array, scratch: Array, out: Array | None, scale: Array, o: Options) -> Array:
    """(7) and (8), of t = softmax(target/T), p = softmax(z/T), times T²."""
    temperature = o.get("temperature", 1.0)
    t, delta, other, p = scratch
    p = p if out is None else out
    k, m, s = _softmax(target, t, temperature=temperature)
    k_p, m_p, s_p = _softmax(z, p, temperature=temperature)
    total, total_p = 1 + s, 1 + s_p
    t.reshape(-1)[k] = 1
    # δ without the row's constant, subtracted in the order whose intermediate results are smaller.
    across = np.abs(m - m_p) < 1
    np.subtract(target, np.where(across, 0, m)[:, None], out=delta)
    np.subtract(z, np.where(across, 0, m_p)[:, None], out=other)
    delta -= other
    constant = np.where(across, m.astype(np.float64) - m_p, 0)
    if temperature != 1:
        delta /= temperature
        constant /= temperature
    constant += np.log1p(s, dtype=np.float64) - np.log1p(s_p, dtype=np.float64)
    np.multiply(t, delta, out=other)
    kl = np.add.reduce(other, 1, np.float64) / total - constant
    if t.dtype == _WIDE:
        close, closest = np.ones(len(z), bool), np.zeros(len(z), bool)
    else:
        close, closest = kl < _CLOSE, kl < _CLOSEST
    if out is not None and not close.all():
        out.reshape(-1)[k_p] = 1
        out *= (1 / total_p)[:, None]
        np.multiply(t, (1 / total)[:, None], out=other)
        out -= other
    if close.any():
        these = slice(None) if close.all() else close
        t, delta, expm1 = t[these], delta[these], other[these]
        delta -= constant[these, None].astype(z.dtype)
        np.negative(delta, out=expm1)
        np.expm1(expm1, out=expm1)
        delta += expm1
        delta *= t
        kl[these] = np.add.reduce(delta, 1) / total[these]
        if out is not None:
            expm1 *= t
            np.multiply(expm1, (1 / total[these])[:, None], out=out if close.all() else expm1)
            if not close.all():
                out[these] = expm1
    if out is not None:  # p_k − t_k as the difference of 1 − t_k and 1 − p_k, which does not cancel
        out.reshape(-1)[k] = np.where(k == k_p, s / total - s_p / total_p, out.reshape(-1)[k])
    if closest.any():
        wide = [x[closest].astype(np.float64) for x in (target, z)]
        gradient = None if out is None else np.empty_like(wide[0])
        scratch = np.empty((4, *wide[0].shape))
        kl[closest] = _kl_logits(wide[0], wide[1], scratch, gradient, _WIDE.type(1 / temperature), o)
        kl[closest] /= temperature**2
        if out is not None:
            out[closest] = gradient
    if out is not None:
        out *= _column(temperature * scale)
    return (temperature**2 * kl).astype(z.dtype, copy=False)


def _kl_probabilities(target: Array, p: Array, scratch: Array, out: Array | None, scale: Array, o: Options) -> Array:
    """(7) with δ = log1p((t − p)/p), whose rounding error is proportional to t − p; and (8)."""
    epsilon = o["epsilon"]
    t, clipped, ratio = scratch
    target.clip(epsilon, 1, out=t)
    p.clip(epsilon, 1, out=clipped)
    np.subtract(t, clipped, out=ratio)
    ratio /= clipped
    np.log1p(ratio, out=ratio)
    ratio *= t
    kl = np.add.reduce(ratio, 1)
    closest = kl < _CLOSEST * np.maximum(np.add.reduce(t, 1), 1)
    if closest.any():
        wide_t, wide_p = t[closest].astype(np.float64), clipped[closest].astype(np.float64)
        delta = np.log1p((wide_t - wide_p) / wide_p)
        delta *= wide_t
        kl[closest] = np.add.reduce(delta, 1)
    if out is not None:
        np.divide(t, clipped, out=out)
        out *= _column(-scale)
        _zero_where_clipped(out, p, clipped)
    return kl


def _zero_where_clipped(gradient: Array, p: Array, clipped: Array) -> None:
    outside = p != clipped
    if outside.any():
        gradient[outside] = 0


# Bernoulli, (9) to (11): the mean of each row.


def _outcomes(
    target: Array, pos_weight: Array | float | None, label_smoothing: float, t: Array, negative: Array
) -> Array:
    """P, in `t` or the target itself; and N, in `negative`."""
    np.subtract(1, target, out=negative)
    if label_smoothing:
        negative *= 1 - label_smoothing
        negative += label_smoothing / 2
        target = np.multiply(target, 1 - label_smoothing, out=t)
        target += label_smoothing / 2
    return target if pos_weight is None else np.multiply(target, pos_weight, out=t)


def _mean(x: Array) -> Array:
    return x[:, 0] if x.shape[1] == 1 else np.add.reduce(x, 1) / x.shape[1]


def _softplus_terms(
    positive: Array, negative: Array, x: Array, low: Array, high: Array, loss: Array, part: Array, *, gradient: bool
) -> None:
    """(9): P·max(−x, 0) + N·max(x, 0) into `loss`, and log1p(e^(−|x|)) into `part`.

    `gradient`: also e^min(x, 0) into `low` and e^(−max(x, 0)) into `high`; p and 1 − p are these over their sum.
    """
    x.clip(-math.inf, 0, out=low)
    x.clip(0, math.inf, out=high)
    np.multiply(negative, high, out=loss)
    np.multiply(positive, low, out=part)
    loss -= part
    if gradient:
        np.exp(low, out=low)
        np.negative(high, out=high)
        np.exp(high, out=high)
        np.multiply(low, high, out=part)  # one of them is 1
    else:
        np.subtract(low, high, out=part)
        np.exp(part, out=part)
    np.log1p(part, out=part)


def _binary_logits(target: Array, x: Array, scratch: Array, out: Array | None, scale: Array, o: Options) -> Array:
    """(9)"""
    pos_weight, label_smoothing = o.get("pos_weight"), o.get("label_smoothing", 0.0)
    t, negative, low, high, loss, part = scratch
    positive = _outcomes(target, pos_weight, label_smoothing, t, negative)
    _softplus_terms(positive, negative, x, low, high, loss, part, gradient=out is not None)
    if pos_weight is not None:
        part *= positive + negative
    loss += part
    if out is not None:
        negative *= low
        low += high
        high *= positive
        np.subtract(negative, high, out=out)
        out /= low
        out *= _column(scale / x.shape[1])
    return _mean(loss)


def _binary(target: Array, p: Array, scratch: Array, out: Array | None, scale: Array, o: Options) -> Array:
    """(10)"""
    epsilon, pos_weight, label_smoothing = o["epsilon"], o.get("pos_weight"), o.get("label_smoothing", 0.0)
    t, negative, clipped, loss, part = scratch
    positive = _outcomes(target, pos_weight, label_smoothing, t, negative)
    p.clip(epsilon, 1 - epsilon, out=clipped)
    np.log(clipped, out=loss)
    loss *= positive
    np.negative(clipped, out=part)
    np.log1p(part, out=part)
    part *= negative
    loss += part
    if out is not None:
        np.divide(positive, clipped, out=part)
        np.subtract(1, clipped, out=out)
        np.divide(negative, out, out=out)
        out -= part
        out *= _column(scale / p.shape[1])
        _zero_where_clipped(out, p, clipped)
    return -_mean(loss)


def _binary_focal(target: Array, x: Array, scratch: Array, out: Array | None, scale: Array, o: Options) -> Array:
    """(11), with q = 1 − p."""
    alpha, gamma, label_smoothing = o["alpha"], o["gamma"], o.get("label_smoothing", 0.0)
    t, negative, p, q, loss, part = scratch
    positive = _outcomes(target, None, label_smoothing, t, negative)
    _softplus_terms(positive, negative, x, p, q, loss, part, gradient=True)
    loss += part
    weight = positive * alpha + negative * (1 - alpha) if o["apply_class_balancing"] else None
    if weight is not None:
        loss *= weight
    total = p + q
    p /= total
    q /= total
    u = np.multiply(positive, q, out=total)
    np.multiply(negative, p, out=part)
    if out is not None:
        np.subtract(part, u, out=out)
    u += part
    if out is not None:
        out *= u
        if weight is not None:
            out *= weight
        p *= q
        negative -= positive
        p *= negative
        p *= loss
        p *= gamma
        out += p
    _power(u, gamma - 1, part)
    if out is not None:
        out *= part
        out *= _column(scale / x.shape[1])
    loss *= u
    loss *= part
    return _mean(loss)


def label_entries(r: Request) -> Array:
    """The log loss of probabilities, −log clip(p_y): reads only the label's entry of each row."""
    x, axis, epsilon, valid = ops.value_of(r.pred), r.axis, r.options["epsilon"], r.valid
    assert axis is not None
    labels: Any = np.expand_dims(r.target, axis)
    in_order = axis == x.ndim - 1 and x.flags.c_contiguous
    if in_order:
        labels = np.arange(0, x.size, x.shape[axis]) + r.target.reshape(-1)
        entry = x.reshape(-1)[labels].reshape(r.target.shape)
    else:
        entry = np.take_along_axis(x, labels, axis).squeeze(axis)
    if entry.dtype != _WIDE:
        entry = entry.astype(_NARROW, copy=False)
    if valid is not None:
        entry = np.where(valid, entry, entry.dtype.type(0.5))
    clipped = entry.clip(epsilon, 1 - epsilon)

    def pullback(upstream: np.ndarray) -> np.ndarray:
        of_entry = np.where((entry < clipped) | (entry > clipped), 0, -upstream / clipped)
        if valid is not None:
            of_entry = np.where(valid, of_entry, 0)
        gradient = np.zeros(x.shape, x.dtype)
        if in_order:
            gradient.reshape(-1)[labels] = of_entry.reshape(-1)
        else:
            np.put_along_axis(gradient, labels, np.expand_dims(of_entry, axis).astype(x.dtype), axis)
        return gradient

    found = -np.log(clipped)
    return found if x is r.pred else ops.record(found, (r.pred, pullback))


# Which row kernel computes a rule.


def row_kernel(r: Request) -> RowKernel | Callable[[Request], Array] | None:
    if r.options.get("gamma", 1) < 1:
        return None
    name = r.rule.name
    if r.options.get("label_smoothing") and r.rule in (softmax.LABELS, softmax.LABEL_PROBABILITIES):
        name += ", smoothed"
    return KERNELS.get(name)


# Most compute blocks of rows; a function of the request reads the labels' entries alone.
KERNELS: Mapping[str, RowKernel | Callable[[Request], Array]] = {
    softmax.LABELS.name: RowKernel(_labels, 1),
    f"{softmax.LABELS.name}, smoothed": RowKernel(_smoothed_labels, 2),
    softmax.DISTRIBUTIONS.name: RowKernel(_dense, 3),
    softmax.LABEL_PROBABILITIES.name: RowKernel(_label_probabilities, 1),
    softmax.PROBABILITIES.name: RowKernel(_probabilities, 4),
    softmax.LOG_LOSS.name: label_entries,
    softmax.FOCAL.name: RowKernel(_focal, 6),
    divergence.LOGITS.name: RowKernel(_kl_logits, 4, wide=False),
    divergence.PROBABILITIES.name: RowKernel(_kl_probabilities, 3, wide=False),
    bernoulli.LOGITS.name: RowKernel(_binary_logits, 6),
    bernoulli.PROBABILITIES.name: RowKernel(_binary, 5),
    bernoulli.FOCAL.name: RowKernel(_binary_focal, 6),
}
