"""NumPy: losses and their gradients in one pass over blocks of rows that stay in a core's cache.

A row kernel computes a block in a few scratch arrays, large inputs in several threads; a whole array as intermediate
result, of which the formulas have dozens, costs more than the arithmetic that fills it. Where the gradient is needed,
it is written in the same pass, times what a mean of the losses will pass back.

Rows of which a row kernel makes an infinity or NaN are computed again by the formula. A row's arithmetic depends on
nothing but the row, so that results are the same to the bit however the threads fall.
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

# Elements that a thread has in hand, 8 MiB of float32. Fewer would be nearer to the core, but then NumPy's calls would
# be so short that threads wait for Python's lock.
CACHE = 1 << 21
LARGE = 1 << 19  # elements from which threads are worth their start, about 0.1 ms

_NARROW, _WIDE = np.dtype(np.float32), np.dtype(np.float64)
Rows = Callable[..., Array]
Options = Mapping[str, Any]


class RowKernel(NamedTuple):
    """What computes a block of rows:

        rows(target, pred, scratch, out, scale, options) -> losses

    Targets (or labels) and predictions are never written to; `scratch` holds as many arrays as are asked for. Where a
    gradient is needed, it goes into `out`, times `scale`, one number or one a row. Arrays are contiguous, (rows,
    classes) each, in the dtype of the computation.
    """

    rows: Rows
    scratch: int = 6
    wide: bool = True  # also in float64


def refuses(r: Request) -> str:
    """Why no row kernel computes this request; "" if one does."""
    kernel = row_kernel(r)
    if kernel is None:
        return f"no row kernel for {r.rule.name} with these options"
    if r.dtype == "float64" and not kernel.wide:
        return f"the row kernel for {r.rule.name} is of float32"
    return refuses_rows(r)


def refuses_rows(r: Request) -> str:
    """Why this request is not computed in rows at all."""
    if isinstance(r.target, ops.Variable):
        return "the target is differentiated"
    return "an option is no array of one number a class" if _for_rows(r) is None else ""


def losses(r: Request) -> Array:
    """By the row kernel of the request's rule."""
    kernel = row_kernel(r)
    assert kernel is not None
    return label_entries(r) if kernel.rows is label_entries else _recorded(r, kernel, _rule_rows(r))


def rule_losses(r: Request) -> Array:
    """By the rule or the formula, on each block."""
    return _recorded(r, RowKernel(_rule_rows(r)), None)


def _rule_rows(r: Request) -> Rows:
    """The rule as the `rows` of a kernel; NumPy's tape differentiates what has no gradients."""
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
    again: Rows | None  # computes rows of which the kernel makes an infinity or NaN
    options: Options
    target: np.ndarray
    pred: np.ndarray
    axis: int | None
    samples: tuple[int, ...]
    width: int  # classes, or 1
    inner: int  # entries behind the axis
    invalid: np.ndarray | None  # flat
    dtype: np.dtype[Any]
    mean: Any  # what a mean of the losses passes back to each

    @property
    def labels(self) -> bool:
        return self.target.ndim < self.pred.ndim

    @property
    def block(self) -> int:
        """Elements of a block, for which all arrays in hand stay in the cache."""
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
    averaged = count if invalid is None else count - np.count_nonzero(invalid)
    mean = dtype.type(1) / dtype.type(averaged or 1)
    options = _for_rows(r) or {}
    return _Job(kernel, again, options, r.target, x, axis, samples, width, inner, invalid, dtype, mean)


def _for_rows(r: Request) -> dict[str, Any] | None:
    """The options as a block takes them, arrays of one number a class lying along its rows; None for any others."""
    found = {}
    for name, x in r.options.items():
        along = type(x) is np.ndarray and x.ndim > 0
        if type(x) is ops.Variable or (along and (r.axis is None or x.size != r.pred.shape[r.axis])):
            return None
        found[name] = x.reshape(1, -1) if along else x
    return found


def _recorded(r: Request, kernel: RowKernel, again: Rows | None) -> Array:
    """The losses, on the tape if the predictions are."""
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
    """The gradient, times what did flow back rather than what a mean passes back."""
    factor = upstream.reshape(-1)
    if job.invalid is not None:
        factor = np.where(job.invalid, job.mean, factor)  # whatever it is, there the gradient is 0
    if (factor != job.mean).any():
        if job.small or job.pred.dtype != job.dtype:
            _in_blocks(job, gradient, factor)
        else:  # only as it is large multiplied once more, and where no float16 loses digits by that
            factor = (factor / job.mean).reshape(job.samples)
            np.multiply(gradient, factor if job.axis is None else np.expand_dims(factor, job.axis), out=gradient)
    return gradient


def _at_once(job: _Job, gradient: Array | None) -> Array | None:
    """All in one block, which needs no care but a look at the result; None where it has to go in blocks."""
    x = job.pred
    plain = job.invalid is None and job.inner == 1 and x.dtype == job.dtype and x.flags.c_contiguous
    if not (plain and job.small):
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
    """The losses of a block, 0 where nothing is valid, and its gradient in `out`."""
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
    """Where each block lies in what `_in_rows` gives, and which of the `count` rows those are."""
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
        with ops.quiet():  # which is a thread's own
            worker()

    threads = min(threads, len(blocks))
    if threads < 2:
        worker()
        return
    from concurrent.futures import ThreadPoolExecutor

    # A pool a call: nothing to share between callers, or to lose in a fork.
    with ThreadPoolExecutor(threads - 1) as pool:
        helpers = [pool.submit(helper) for _ in range(threads - 1)]
        worker()
    for done in helpers:
        done.result()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _column(x: Array) -> Array:
    """One number a row, to be multiplied with rows; or one for all."""
    return x[:, None] if x.ndim else x


# Softmax. Of a row z: k, the index of its maximum m, and s, the sum of exp(z − m) over all classes but k, as in
# formulas.softmax_costs: −log p is log1p(s) + m − z, and 1 − p_k is s/(1 + s). Indices are those of all the block.


def _softmax(z: Array, e: Array, d: Array | None = None, temperature: float = 1.0) -> tuple[Array, Array, Array]:
    """k, m and s; exp((z − m)/T) is left in `e`, but 0 at k; its exponent in `d`, NaN at k where m is infinite."""
    d = e if d is None else d
    k = np.arange(0, z.size, z.shape[1]) + z.argmax(1)
    m = z.reshape(-1)[k]
    np.subtract(z, m[:, None], out=d)
    if temperature != 1:
        d /= temperature
    np.exp(d, out=e)
    e.reshape(-1)[k] = 0
    return k, m, np.add.reduce(e, 1)


def _softmax_slope(e: Array, w: Array, k: Array, s: Array, scale: Array) -> Array:
    """scale · (p Σw − w) into `e`, where `_softmax` left its exponentials, and Σw. Writes to `w`.

    At k as (Σ of the other weights − w_k s)/(1 + s), where nothing cancels.
    """
    top, total, flat = w.reshape(-1)[k], 1 + s, e.reshape(-1)
    w.reshape(-1)[k] = 0
    others = np.add.reduce(w, 1)
    e *= ((others + top) / total)[:, None]
    e -= w
    flat[k] = (others - top * s) / total
    e *= _column(scale)
    return others + top


def _labels(labels: Array, z: Array, scratch: Array, out: Array | None, scale: Array, o: Options) -> Array:
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
    """Every class has its `share` of the smoothing, and the label's own `hit` besides."""
    label_smoothing, class_weight = o.get("label_smoothing", 0.0), o.get("class_weight")
    d, e = scratch
    e = e if out is None else out
    rows, classes = np.arange(0, z.size, z.shape[1]), z.shape[1]
    at = rows + labels
    k, m, s = _softmax(z, e, d)
    weight = np.ones((1, classes), z.dtype) if class_weight is None else class_weight
    share, hit = weight[0] * (label_smoothing / classes), weight[0, labels] * (1 - label_smoothing)
    shares = np.add.reduce(share, dtype=np.float64)
    total, norm = hit + shares.astype(z.dtype), 1 + s
    d *= share
    losses = hit * (m - z.reshape(-1)[at]) - np.add.reduce(d, 1) + total * np.log1p(s)
    if out is not None:
        flat, of_top = e.reshape(-1), share[k - rows]
        others = np.where(at == k, 0, hit) + (shares - of_top).astype(z.dtype)
        top = np.where(at == k, hit, 0) + of_top
        e *= (total / norm)[:, None]
        e -= share
        flat[at] -= hit
        flat[k] = (others - top * s) / norm
        e *= _column(scale)
    return losses


def _weights(target: Array, out: Array, label_smoothing: float, class_weight: Array | None) -> Array:
    """w_c t_c, the targets smoothed; in `out`, if it is another array than `target`."""
    if label_smoothing:
        np.multiply(target, 1 - label_smoothing, out=out)
        out += label_smoothing / target.shape[1]
        target = out
    return target if class_weight is None else np.multiply(target, class_weight, out=out)


def _dense(target: Array, z: Array, scratch: Array, out: Array | None, scale: Array, o: Options) -> Array:
    label_smoothing, class_weight = o.get("label_smoothing", 0.0), o.get("class_weight")
    w, d, e = scratch
    e = e if out is None else out
    weights = _weights(target, w, label_smoothing, class_weight)
    k, _m, s = _softmax(z, e, d)
    d *= weights
    fall = np.add.reduce(d, 1)
    if out is None:
        total = np.add.reduce(weights, 1)
    else:
        if weights is target:
            np.copyto(w, target)
        total = _softmax_slope(e, w, k, s, scale)
    return total * np.log1p(s) - fall


def _share(labels: Array, p: Array, scratch: Array, out: Array | None, scale: Array, o: Options) -> Array:
    """The logarithm of the sum, whose slope is the same for all classes, less that of the label's own."""
    epsilon, class_weight = o["epsilon"], o.get("class_weight")
    at = np.arange(0, p.size, p.shape[1]) + labels
    total = np.add.reduce(p, 1)
    share = p.reshape(-1)[at] / total
    clipped = share.clip(epsilon, 1 - epsilon)
    losses = -np.log(clipped)
    if class_weight is not None:
        weight = class_weight[0, labels]
        losses, scale = losses * weight, scale * weight
    if out is not None:
        slope = np.where(share == clipped, scale / total, 0)
        out[...] = slope[:, None]
        out.reshape(-1)[at] -= slope / clipped
    return losses


def _shares(target: Array, p: Array, scratch: Array, out: Array | None, scale: Array, o: Options) -> Array:
    """The gradient is (Σ_j w_j − w_c/p_c)/Σp, over the classes that are not clipped."""
    epsilon, label_smoothing, class_weight = o["epsilon"], o.get("label_smoothing", 0.0), o.get("class_weight")
    w, share, clipped, costs = scratch
    weights = _weights(target, w, label_smoothing, class_weight)
    total = np.add.reduce(p, 1)
    np.divide(p, total[:, None], out=share)
    share.clip(epsilon, 1 - epsilon, out=clipped)
    np.log(clipped, out=costs)
    costs *= weights
    if out is not None:
        outside = share != clipped
        if outside.any():
            np.copyto(share, weights)
            share[outside] = 0
            weights = share
        np.divide(weights, clipped, out=clipped)
        np.subtract(np.add.reduce(weights, 1)[:, None], clipped, out=out)
        out *= (scale / total)[:, None]
    return -np.add.reduce(costs, 1)


def _focal(target: Array, z: Array, scratch: Array, out: Array | None, scale: Array, o: Options) -> Array:
    """Σ w (1 − p)^γ c of the costs c = −log p, whose slope has w (1 − p)^(γ−1) (1 − p + γ c p) for a weight."""
    alpha, gamma, label_smoothing = o["alpha"], o["gamma"], o.get("label_smoothing", 0.0)
    w, costs, rest, power, p, e = scratch
    e = e if out is None else out
    np.multiply(_weights(target, w, label_smoothing, None), alpha, out=w)
    k, _m, s = _softmax(z, e, costs)
    np.subtract(np.log1p(s)[:, None], costs, out=costs)
    total = 1 + s
    np.divide(e, total[:, None], out=p)
    np.subtract(1, p, out=rest)
    p.reshape(-1)[k], rest.reshape(-1)[k] = 1 / total, s / total
    _power(rest, gamma - 1, power)
    power *= w
    np.multiply(power, rest, out=w)
    w *= costs
    losses = np.add.reduce(w, 1)
    if out is not None:
        p *= costs
        p *= gamma
        p += rest
        np.multiply(p, power, out=w)
        _softmax_slope(e, w, k, s, scale)
    return losses


def _power(x: Array, exponent: float, out: Array) -> None:
    if exponent == 1:
        np.copyto(out, x)
    else:
        np.power(x, exponent, out=out)


# Divergences. Σ t δ with δ = log(t/p) cancels where t and p are close; there it is Σ t (δ + exp(−δ) − 1), whose terms
# are not negative, and in which an error of δ that a whole row has, that of its normalisers, counts by its square.
# Where even δ has lost its digits, float64 has some to spare, for any two rows of float32.
_CLOSE, _CLOSEST = 0.25, 0.03


def _kl_logits(target: Array, z: Array, scratch: Array, out: Array | None, scale: Array, o: Options) -> Array:
    temperature = o.get("temperature", 1.0)
    t, ratio, other, p = scratch
    p = p if out is None else out
    k, m, s = _softmax(target, t, temperature=temperature)
    k_p, m_p, s_p = _softmax(z, p, temperature=temperature)
    total, total_p = 1 + s, 1 + s_p
    t.reshape(-1)[k] = 1
    # δ less a constant of the row: through the smaller numbers.
    across = np.abs(m - m_p) < 1
    np.subtract(target, np.where(across, 0, m)[:, None], out=ratio)
    np.subtract(z, np.where(across, 0, m_p)[:, None], out=other)
    ratio -= other
    constant = np.where(across, m.astype(np.float64) - m_p, 0)
    if temperature != 1:
        ratio /= temperature
        constant /= temperature
    constant += np.log1p(s, dtype=np.float64) - np.log1p(s_p, dtype=np.float64)
    np.multiply(t, ratio, out=other)
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
        t, delta, less = t[these], ratio[these], other[these]
        delta -= constant[these, None].astype(z.dtype)
        np.negative(delta, out=less)
        np.expm1(less, out=less)
        delta += less
        delta *= t
        kl[these] = np.add.reduce(delta, 1) / total[these]
        if out is not None:
            less *= t
            np.multiply(less, (1 / total[these])[:, None], out=out if close.all() else less)
            if not close.all():
                out[these] = less
    if out is not None:  # where one class leads both, from what the others have
        out.reshape(-1)[k] = np.where(k == k_p, s / total - s_p / total_p, out.reshape(-1)[k])
    if closest.any():
        wide = [x[closest].astype(np.float64) for x in (target, z)]
        slope = None if out is None else np.empty_like(wide[0])
        scratch = np.empty((4, *wide[0].shape))
        kl[closest] = _kl_logits(wide[0], wide[1], scratch, slope, _WIDE.type(1 / temperature), o)
        kl[closest] /= temperature**2
        if out is not None:
            out[closest] = slope
    if out is not None:
        out *= _column(temperature * scale)
    return (temperature**2 * kl).astype(z.dtype, copy=False)


def _kl_shares(target: Array, p: Array, scratch: Array, out: Array | None, scale: Array, o: Options) -> Array:
    """δ as log1p((t − p)/p), whose rounding is as small as t − p."""
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
        _flatten(out, p, clipped)
    return kl


def _flatten(slope: Array, p: Array, clipped: Array) -> None:
    """No slope where `p` was clipped."""
    outside = p != clipped
    if outside.any():
        slope[outside] = 0


# Bernoulli trials: a mean over rows, or, where rows are of size 1, one by one.


def _trials(target: Array, pos_weight: Array | float | None, label_smoothing: float, t: Array, rest: Array) -> Array:
    """What counts for the outcome, maybe in `t`; and what against it, in `rest`."""
    np.subtract(1, target, out=rest)
    if label_smoothing:
        rest *= 1 - label_smoothing
        rest += label_smoothing / 2
        target = np.multiply(target, 1 - label_smoothing, out=t)
        target += label_smoothing / 2
    return target if pos_weight is None else np.multiply(target, pos_weight, out=t)


def _mean(costs: Array) -> Array:
    return costs[:, 0] if costs.shape[1] == 1 else np.add.reduce(costs, 1) / costs.shape[1]


def _softplus_costs(
    target: Array, rest: Array, x: Array, low: Array, high: Array, costs: Array, part: Array, *, shares: bool
) -> None:
    """t·max(−x, 0) + r·max(x, 0) into `costs`; log1p(exp(−|x|)), which times t + r is the rest of them, into `part`.

    `shares`: also exp(min(x, 0)) into `low` and exp(−max(x, 0)) into `high`, whose shares in their sum are p and 1 − p.
    """
    x.clip(-math.inf, 0, out=low)
    x.clip(0, math.inf, out=high)
    np.multiply(rest, high, out=costs)
    np.multiply(target, low, out=part)
    costs -= part
    if shares:
        np.exp(low, out=low)
        np.negative(high, out=high)
        np.exp(high, out=high)
        np.multiply(low, high, out=part)  # one of them is 1
    else:
        np.subtract(low, high, out=part)
        np.exp(part, out=part)
    np.log1p(part, out=part)


def _binary_logits(target: Array, x: Array, scratch: Array, out: Array | None, scale: Array, o: Options) -> Array:
    """The slope is r·p − t·(1 − p), with r = 1 − t."""
    pos_weight, label_smoothing = o.get("pos_weight"), o.get("label_smoothing", 0.0)
    t, rest, low, high, costs, part = scratch
    target = _trials(target, pos_weight, label_smoothing, t, rest)
    _softplus_costs(target, rest, x, low, high, costs, part, shares=out is not None)
    if pos_weight is not None:
        part *= target + rest
    costs += part
    if out is not None:
        rest *= low
        low += high
        high *= target
        np.subtract(rest, high, out=out)
        out /= low
        out *= _column(scale / x.shape[1])
    return _mean(costs)


def _binary(target: Array, p: Array, scratch: Array, out: Array | None, scale: Array, o: Options) -> Array:
    epsilon, pos_weight, label_smoothing = o["epsilon"], o.get("pos_weight"), o.get("label_smoothing", 0.0)
    t, rest, clipped, costs, part = scratch
    target = _trials(target, pos_weight, label_smoothing, t, rest)
    p.clip(epsilon, 1 - epsilon, out=clipped)
    np.log(clipped, out=costs)
    costs *= target
    np.negative(clipped, out=part)
    np.log1p(part, out=part)
    part *= rest
    costs += part
    if out is not None:
        np.divide(target, clipped, out=part)
        np.subtract(1, clipped, out=out)
        np.divide(rest, out, out=out)
        out -= part
        out *= _column(scale / p.shape[1])
        _flatten(out, p, clipped)
    return -_mean(costs)


def _binary_focal(target: Array, x: Array, scratch: Array, out: Array | None, scale: Array, o: Options) -> Array:
    """The mean of u^γ c, u = tq + rp, r = 1 − t, q = 1 − p; the slope is u^(γ−1) · (u (rp − tq) + γ c (r − t) p q)."""
    alpha, gamma, label_smoothing = o["alpha"], o["gamma"], o.get("label_smoothing", 0.0)
    t, rest, p, q, costs, part = scratch
    target = _trials(target, None, label_smoothing, t, rest)
    _softplus_costs(target, rest, x, p, q, costs, part, shares=True)
    costs += part
    weight = target * alpha + rest * (1 - alpha) if o["apply_class_balancing"] else None
    if weight is not None:
        costs *= weight
    total = p + q
    p /= total
    q /= total
    u = np.multiply(target, q, out=total)
    np.multiply(rest, p, out=part)
    if out is not None:
        np.subtract(part, u, out=out)
    u += part
    if out is not None:
        out *= u
        if weight is not None:
            out *= weight
        p *= q
        rest -= target
        p *= rest
        p *= costs
        p *= gamma
        out += p
    _power(u, gamma - 1, part)
    if out is not None:
        out *= part
        out *= _column(scale / x.shape[1])
    costs *= u
    costs *= part
    return _mean(costs)


def label_entries(r: Request) -> Array:
    """The log loss of probabilities, which reads no entry but the label's."""
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


def row_kernel(r: Request) -> RowKernel | None:
    if r.options.get("gamma", 1) < 1:
        return None
    name = r.rule.name
    if r.options.get("label_smoothing") and r.rule in (softmax.LABELS, softmax.LABEL_PROBABILITIES):
        name += ", smoothed"
    return KERNELS.get(name)


KERNELS: Mapping[str, RowKernel] = {
    softmax.LABELS.name: RowKernel(_labels, 1),
    f"{softmax.LABELS.name}, smoothed": RowKernel(_smoothed_labels, 2),
    softmax.DISTRIBUTIONS.name: RowKernel(_dense, 3),
    softmax.LABEL_PROBABILITIES.name: RowKernel(_share, 1),
    softmax.PROBABILITIES.name: RowKernel(_shares, 4),
    softmax.LOG_LOSS.name: RowKernel(label_entries),
    softmax.FOCAL.name: RowKernel(_focal, 6),
    divergence.LOGITS.name: RowKernel(_kl_logits, 4, wide=False),
    divergence.PROBABILITIES.name: RowKernel(_kl_shares, 3, wide=False),
    bernoulli.LOGITS.name: RowKernel(_binary_logits, 6),
    bernoulli.PROBABILITIES.name: RowKernel(_binary, 5),
    bernoulli.FOCAL.name: RowKernel(_binary_focal, 6),
}
