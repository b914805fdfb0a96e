"""NumPy: faster ways to the per-sample losses of formulas.py (see Kernel in lossbridge/backend.py). No loss is defined.

A kernel sweeps over blocks of rows small enough to stay in a core's cache, in a few scratch arrays, large inputs in
several threads; a whole array as intermediate result, of which the formulas have dozens, costs more than the arithmetic
that fills it. Where the gradient is wanted, the same sweep writes it, times what a mean of the losses will pass back.

Rows that are out of the ordinary, of which the sweep makes an infinity or NaN, are done again by the formula. A row's
arithmetic depends on nothing but the row, so that results are the same to the bit however the threads fall.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from lossbridge import formulas
from lossbridge.backend import Kernel
from lossbridge.backends import numpy as b

Array = Any

# Elements that a thread has in hand, 8 MiB of float32. Fewer would be nearer to the core, but then NumPy's calls would
# be so short that threads wait for Python's lock.
CACHE = 1 << 21
LARGE = 1 << 19  # elements from which threads are worth their start, about 0.1 ms

_NARROW, _WIDE = np.dtype(np.float32), np.dtype(np.float64)

# What a sweep does with a block of rows:
#
#     sweep(target, pred, scratch, out, scale, **options) -> losses
#
# Targets (or labels) and predictions are never written to; `scratch` has as many arrays as the kernel was told. Where a
# gradient is wanted, it goes into `out`, times `scale`, one number or one a row. Arrays are contiguous, (rows, classes)
# each, in the dtype of the computation.
Sweep = Callable[..., Array]


def _kernel(
    formula: Callable[..., Array], by_hand: Sweep | None = None, scratch: int = 6, *, wide: bool = True
) -> Kernel:
    """The kernel of a formula whose blocks are done `by_hand`, or else by the formula too. `wide`: also in float64."""

    def kernel(
        plain: Callable[..., Array], target: Array, pred: Array, axis: int | None, kept: Array | None, **given: Any
    ) -> Array | None:
        x = b._value(pred)
        dtype = _WIDE if x.dtype == _WIDE else _NARROW
        known = by_hand if wide or dtype == _NARROW else None
        options = _for_rows(given, x, axis)
        block = CACHE // (scratch + 3)
        small = x.size <= min(block, LARGE)
        if options is None or isinstance(target, b.Variable) or (known is None and small):
            return None
        samples, width, inner = x.shape, 1, 1
        if axis is not None:
            samples, width, inner = x.shape[:axis] + x.shape[axis + 1 :], x.shape[axis], math.prod(x.shape[axis + 1 :])
        labels = target.ndim < x.ndim
        sweep = known or _by_formula(formula, axis)
        dropped = None if kept is None else ~np.broadcast_to(kept, samples).reshape(-1)
        count = math.prod(samples)
        averaged = count if dropped is None else count - np.count_nonzero(dropped)
        mean = dtype.type(1) / dtype.type(averaged or 1)  # what a mean of the losses passes back to each

        def whole(gradient: Array | None) -> Array | None:
            """All in one block, which needs no care but a look at the result."""
            t, z = target.reshape(-1), x.reshape(-1, width)
            if not labels:
                t = t.astype(dtype, copy=False).reshape(-1, width)
            out = None if gradient is None else gradient.reshape(-1, width)
            losses = sweep(t, z, np.empty((scratch, *z.shape), dtype), out, mean, **options)
            return losses if math.isfinite(np.add.reduce(losses)) else None

        def in_blocks(gradient: Array | None, scale: Array) -> Array:
            losses = np.empty(count, dtype)
            rows = _in_rows(x, width, inner)
            targets = target.reshape(-1) if labels else _in_rows(target, width, inner)
            gradients = None if gradient is None else _in_rows(gradient, width, inner)

            def work(where: Any, these: slice, buffers: Array) -> None:
                t = targets[these] if labels else _contiguous(targets[where], dtype, buffers[-1])
                z = _contiguous(rows[where], dtype, buffers[-2])
                up = scale[these] if scale.ndim else scale
                into = None if gradients is None else gradients[where]
                direct = into is None or (into.dtype == dtype and into.flags.c_contiguous)
                out = into if direct else buffers[-3][: len(z)]
                found = sweep(t, z, buffers[:scratch, : len(z)], out, up, **options)
                odd = ~np.isfinite(found)
                if dropped is not None:
                    odd &= ~dropped[these]
                    found[dropped[these]] = 0
                    if out is not None:
                        out[dropped[these]] = 0
                if known and odd.any():
                    again = None if out is None else np.empty_like(z[odd])
                    up = up[odd] if scale.ndim else up
                    found[odd] = _by_formula(formula, axis)(t[odd], z[odd], None, again, up, **options)
                    if out is not None:
                        out[odd] = again
                if into is not None and not direct:
                    into[...] = out
                losses[these] = found

            threads = _cores() if x.size >= LARGE else 1
            height = max(1, min(block // max(width, 1), -(-count // threads)))
            _sweep(_blocks(count, inner, height), work, threads, (scratch + 3, height, width), dtype)
            return losses

        gradient = None if x is pred else np.empty(x.shape, x.dtype)
        losses = None
        if small and dropped is None and inner == 1 and x.dtype == dtype and x.flags.c_contiguous:
            losses = whole(gradient)
        if losses is None:
            losses = in_blocks(gradient, mean)

        def pullback(g: Array) -> Array:
            assert gradient is not None
            upstream = g.reshape(-1)
            if dropped is not None:
                upstream = np.where(dropped, mean, upstream)  # whatever it is, there the gradient is 0
            if (upstream != mean).any():
                if small or x.dtype != dtype:
                    in_blocks(gradient, upstream)
                else:  # only as it is large multiplied once more, and where no half loses digits by that
                    factor = (upstream / mean).reshape(samples)
                    np.multiply(gradient, factor if axis is None else np.expand_dims(factor, axis), out=gradient)
            return gradient

        losses = losses.reshape(samples)[()]
        return losses if x is pred else b._record(losses, (pred, pullback))

    return kernel


def _by_formula(formula: Callable[..., Array], axis: int | None) -> Sweep:
    def sweep(target: Array, pred: Array, scratch: Array, out: Array, scale: Array, **options: Any) -> Array:
        found: list[Array] = []

        def scaled(pred: Array) -> Array:
            losses = formula(b, target, pred, None if axis is None else 1, **options)
            found.append(b.squeeze(losses, 1) if axis is None else losses)
            return found[0] * scale

        if out is None:
            scaled(pred)
        else:
            out[...] = b.value_and_grad(scaled, pred)[1]
        return b._value(found[0])

    return sweep


def _for_rows(options: dict[str, Any], pred: np.ndarray, axis: int | None) -> dict[str, Any] | None:
    """The options as a block takes them, arrays of one number a class lying along its rows; None for any others."""
    found = {}
    for name, x in options.items():
        along = type(x) is np.ndarray and x.ndim > 0
        if type(x) is b.Variable or (along and (axis is None or x.size != pred.shape[axis])):
            return None
        found[name] = x.reshape(1, -1) if along else x
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


def _sweep(
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
        with b.quiet():  # which is a thread's own
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


def _labels(
    labels: Array,
    z: Array,
    scratch: Array,
    out: Array,
    scale: Array,
    *,
    class_weight: Array | None = None,
    **_: Any,
) -> Array:
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


def _smoothed_labels(
    labels: Array,
    z: Array,
    scratch: Array,
    out: Array,
    scale: Array,
    *,
    label_smoothing: float,
    class_weight: Array | None,
    **_: Any,
) -> Array:
    """Every class has its `share` of the smoothing, and the label's own `hit` besides."""
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


def _dense(
    target: Array,
    z: Array,
    scratch: Array,
    out: Array,
    scale: Array,
    *,
    label_smoothing: float,
    class_weight: Array | None,
    **_: Any,
) -> Array:
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


def _share(
    labels: Array,
    p: Array,
    scratch: Array,
    out: Array,
    scale: Array,
    *,
    epsilon: float,
    class_weight: Array | None,
    **_: Any,
) -> Array:
    """The logarithm of the sum, whose slope is the same for all classes, less that of the label's own."""
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


def _shares(
    target: Array,
    p: Array,
    scratch: Array,
    out: Array,
    scale: Array,
    *,
    epsilon: float,
    label_smoothing: float,
    class_weight: Array | None,
    **_: Any,
) -> Array:
    """The gradient is (Σ_j w_j − w_c/p_c)/Σp, over the classes that are not clipped."""
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


def _focal(
    target: Array,
    z: Array,
    scratch: Array,
    out: Array,
    scale: Array,
    *,
    alpha: Array,
    gamma: float,
    label_smoothing: float,
    **_: Any,
) -> Array:
    """Σ w (1 − p)^γ c of the costs c = −log p, whose slope has w (1 − p)^(γ−1) (1 − p + γ c p) for a weight."""
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


def _kl_logits(
    target: Array, z: Array, scratch: Array, out: Array, scale: Array, *, temperature: float = 1.0, **_: Any
) -> Array:
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
        kl[closest] = _kl_logits(wide[0], wide[1], scratch, slope, _WIDE.type(1 / temperature), temperature=temperature)
        kl[closest] /= temperature**2
        if out is not None:
            out[closest] = slope
    if out is not None:
        out *= _column(temperature * scale)
    return (temperature**2 * kl).astype(z.dtype, copy=False)


def _kl_shares(target: Array, p: Array, scratch: Array, out: Array, scale: Array, *, epsilon: float, **_: Any) -> Array:
    """δ as log1p((t − p)/p), whose rounding is as small as t − p."""
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


def _binary_logits(
    target: Array,
    x: Array,
    scratch: Array,
    out: Array,
    scale: Array,
    *,
    pos_weight: Array | float | None = None,
    label_smoothing: float = 0.0,
    **_: Any,
) -> Array:
    """The slope is r·p − t·(1 − p), with r = 1 − t."""
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


def _binary(
    target: Array,
    p: Array,
    scratch: Array,
    out: Array,
    scale: Array,
    *,
    epsilon: float,
    pos_weight: Array | float | None = None,
    label_smoothing: float = 0.0,
    **_: Any,
) -> Array:
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


def _binary_focal(
    target: Array,
    x: Array,
    scratch: Array,
    out: Array,
    scale: Array,
    *,
    apply_class_balancing: bool,
    alpha: float,
    gamma: float,
    label_smoothing: float,
    **_: Any,
) -> Array:
    """The mean of u^γ c, u = tq + rp, r = 1 − t, q = 1 − p; the slope is u^(γ−1) · (u (rp − tq) + γ c (r − t) p q)."""
    t, rest, p, q, costs, part = scratch
    target = _trials(target, None, label_smoothing, t, rest)
    _softplus_costs(target, rest, x, p, q, costs, part, shares=True)
    costs += part
    weight = target * alpha + rest * (1 - alpha) if apply_class_balancing else None
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


def _entry_alone(plain: Any, labels: Array, pred: Array, axis: int, kept: Array | None, **options: Any) -> Array | None:
    """The log loss of probabilities, which reads no entry but the label's."""
    x, epsilon = b._value(pred), options["epsilon"]
    if isinstance(labels, b.Variable):
        return None
    at: Any = np.expand_dims(labels, axis)
    in_order = axis == x.ndim - 1 and x.flags.c_contiguous
    if in_order:
        at = np.arange(0, x.size, x.shape[axis]) + labels.reshape(-1)
        entry = x.reshape(-1)[at].reshape(labels.shape)
    else:
        entry = np.take_along_axis(x, at, axis).squeeze(axis)
    if entry.dtype != _WIDE:
        entry = entry.astype(_NARROW, copy=False)
    if kept is not None:
        entry = np.where(kept, entry, entry.dtype.type(0.5))
    clipped = entry.clip(epsilon, 1 - epsilon)
    losses = -np.log(clipped)

    def pullback(g: np.ndarray) -> np.ndarray:
        slope = np.where((entry < clipped) | (entry > clipped), 0, -g / clipped)
        if kept is not None:
            slope = np.where(kept, slope, 0)
        gradient = np.zeros(x.shape, x.dtype)
        if in_order:
            gradient.reshape(-1)[at] = slope.reshape(-1)
        else:
            np.put_along_axis(gradient, at, np.expand_dims(slope, axis).astype(x.dtype), axis)
        return gradient

    return losses if x is pred else b._record(losses, (pred, pullback))


def _choice(formula: Callable[..., Array], logits: Any, probabilities: Any, smoothed: Any = None) -> Any:
    """By what the predictions are; the formula, in blocks, for what neither knows of. `smoothed`: labels, of logits."""
    otherwise = _kernel(formula)

    def kernel(*arrays: Any, from_logits: bool, **options: Any) -> Array | None:
        chosen = logits if from_logits else probabilities
        if smoothed and options["label_smoothing"]:
            chosen = smoothed if from_logits else otherwise
        elif options.get("weight") is not None or options.get("gamma", 1) < 1:
            chosen = otherwise
        return chosen(*arrays, from_logits=from_logits, **options)

    return kernel


def _kernels() -> dict[str, Kernel]:
    f = formulas
    binary = (_binary_logits, 6), (_binary, 5)
    by_hand: dict[Callable[..., Array], tuple[Any, ...]] = {
        f.sparse_categorical_crossentropy: ((_labels, 1), (_share, 1), (_smoothed_labels, 2)),
        f.categorical_crossentropy: ((_dense, 3), (_shares, 4)),
        f.binary_crossentropy: binary,
        f.bernoulli_log_loss: binary,
        f.categorical_focal_crossentropy: ((_focal, 6), ()),
        f.binary_focal_crossentropy: ((_binary_focal, 6), ()),
    }
    kernels = {
        formula.__name__: _choice(formula, *(_kernel(formula, *sweep) for sweep in sweeps))
        for formula, sweeps in by_hand.items()
    }
    log_loss, kl, distillation = f.label_log_loss, f.kl_divergence, f.distillation_loss
    kl_logits, kl_shares = _kernel(kl, _kl_logits, 4, wide=False), _kernel(kl, _kl_shares, 3, wide=False)
    return kernels | {
        "label_log_loss": _choice(log_loss, _kernel(log_loss, _labels, 1), _entry_alone),
        "kl_divergence": _choice(kl, kl_logits, kl_shares),
        "distillation_loss": _kernel(distillation, _kl_logits, 4, wide=False),
    }


KERNELS = _kernels()
