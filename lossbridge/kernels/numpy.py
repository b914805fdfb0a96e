"""NumPy: faster ways to the per-sample losses of formulas.py (see Kernel in lossbridge/backend.py). No loss is defined.

A kernel sweeps over blocks of rows small enough to stay in a core's cache, in a few scratch arrays, large inputs in
several threads; a whole array as intermediate result, of which the formulas have dozens, costs more than the arithmetic
that fills it. For the gradient it sweeps a second time, from what is kept of a row (its maximum, its sum), straight
into the one array that is handed out.

Rows that are out of the ordinary, of which the sweep makes an infinity or NaN, are done again by the formula. A row's
arithmetic depends on nothing but the row, so that results are the same to the bit however the threads fall.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lossbridge import formulas
from lossbridge.backend import Kernel
from lossbridge.backends import numpy as b
from lossbridge.reduction import neutralise

Array = Any
Options = Mapping[str, Any]

BLOCK = 1 << 17  # elements of a block: 512 KiB of float32, so that two stay in cache, and calls are few
_SCRATCH = 4  # arrays of its size that a block may use
LARGE = 1 << 19  # elements from which threads are worth their start, about 0.1 ms

# Of one block, in the dtype of the computation and contiguous: targets (or labels) and predictions, which are never
# written to, and scratch arrays of the predictions' shape.
#
# value(target, pred, scratch, **options) -> losses, what the slope wants to know of the rows
# slope(target, pred, scratch, known, upstream, out, **options): the gradient, times the rows' upstream, into `out`
Value = Callable[..., tuple[Array, Any]]
Slope = Callable[..., None]


def _kernel(
    formula: Callable[..., Array],
    value: Value | None = None,
    slope: Slope | None = None,
    *,
    wide: bool = True,
    saves: bool = False,
) -> Kernel:
    """The kernel of a formula whose blocks are done by `value` and `slope`, or else by the formula too.

    `wide`: they can do float64. `saves`: the first scratch array is of use to the slope, and is handed to it in `out`,
    which is then called with saved=True; so it costs no memory, and saves an exponential function of everything.
    """

    def kernel(
        plain: Callable[..., Array], target: Array, pred: Array, axis: int | None, kept: Array | None, **given: Any
    ) -> Array | None:
        x = b._value(pred)
        options = _for_rows(given, x, axis)
        if options is None or isinstance(target, b.Variable):
            return None
        dtype = np.dtype(np.float64 if x.dtype == np.float64 else np.float32)
        samples = x.shape if axis is None else x.shape[:axis] + x.shape[axis + 1 :]
        width = 1 if axis is None else x.shape[axis]
        inner = 1 if axis is None else math.prod(x.shape[axis + 1 :])
        rows, blocks = _in_rows(x, width, inner), _blocks(math.prod(samples), inner, width)
        labels = target.ndim < x.ndim
        targets = target.reshape(-1) if labels else _in_rows(target, width, inner)
        dropped = None if kept is None else ~np.broadcast_to(kept, samples).reshape(-1)
        values = np.empty(math.prod(samples), dtype)
        known: dict[int, Any] = {}
        saved = saves and x is not pred and x.dtype == dtype and inner == 1
        gradient = np.empty(x.shape, dtype) if saved else None
        by_hand = value is not None and slope is not None and (wide or dtype == np.float32)
        if not by_hand and len(blocks) < 2:
            return None

        def by_formula(target: Array, pred: Array) -> Array:
            losses = formula(b, target, pred, None if axis is None else 1, **options)
            return b.squeeze(losses, 1) if axis is None else losses

        def of_block(where: Any, count: slice, buffers: Array) -> tuple[Array, Array]:
            t = targets[count] if labels else _contiguous(targets[where], dtype, buffers[-1])
            return t, _contiguous(rows[where], dtype, buffers[-2])

        def forward(where: Any, count: slice, buffers: Array) -> None:
            t, z = of_block(where, count, buffers)
            if value is None or not by_hand:
                losses, of_rows, odd = by_formula(t, z), None, np.ones(len(z), bool)
            else:
                save_to = buffers[:1] if gradient is None else [_in_rows(gradient, width, inner)[where]]
                losses, of_rows = value(t, z, [*save_to, *buffers[1:_SCRATCH]], **options)
                odd = ~np.isfinite(losses)
            if dropped is not None:
                odd &= ~dropped[count]
                losses[dropped[count]] = 0
            if by_hand and odd.any():
                losses[odd] = by_formula(t[odd], z[odd])
            values[count] = losses
            if x is not pred:
                known[count.start] = of_rows, odd if odd.any() else None

        def pullback(g: np.ndarray) -> np.ndarray:
            upstream = g.reshape(-1)
            result = np.empty(x.shape, x.dtype) if gradient is None else gradient
            gradients = _in_rows(result, width, inner)
            how = {"saved": saved} if saves else {}

            def backward(where: Any, count: slice, buffers: Array) -> None:
                t, z = of_block(where, count, buffers)
                of_rows, odd = known[count.start]
                into, up = gradients[where], upstream[count]
                direct = into.dtype == dtype and into.flags.c_contiguous
                out = into if direct else buffers[-3][: len(z)]
                if slope is not None and by_hand:
                    slope(t, z, buffers, of_rows, up, out, **how, **options)
                if odd is not None:
                    t, up = t[odd], up[odd]
                    out[odd] = b.value_and_grad(lambda z: by_formula(t, z) * up, z[odd])[1]
                if dropped is not None:
                    out[dropped[count]] = 0
                if not direct:
                    into[...] = out

            _sweep(blocks, backward, width, _SCRATCH + 3, dtype)
            return result

        _sweep(blocks, forward, width, _SCRATCH + 2, dtype)
        values = values.reshape(samples)[()]
        return values if x is pred else b._record(values, (pred, pullback))

    return kernel


def _for_rows(options: dict[str, Any], pred: np.ndarray, axis: int | None) -> dict[str, Any] | None:
    """The options as a block takes them, arrays of one number a class lying along its rows; None for any others."""
    found = {}
    for name, x in options.items():
        along = isinstance(x, np.ndarray) and x.ndim > 0
        if isinstance(x, b.Variable) or (along and (axis is None or x.size != pred.shape[axis])):
            return None
        found[name] = x.reshape(1, -1) if along else x
    return found


def _in_rows(x: np.ndarray, width: int, inner: int) -> np.ndarray:
    """(…, rows of `width`, …) as (outer, inner, width), without a copy where the strides allow it."""
    return x.reshape(-1, width, inner).swapaxes(1, 2) if x.size else x.reshape(0, inner, width)


def _blocks(count: int, inner: int, width: int) -> list[tuple[Any, slice]]:
    """Where each block lies in what `_in_rows` gives, and which of the `count` rows those are."""
    step = max(1, BLOCK // max(width, 1))
    if inner == 1:
        return [((rows, 0), rows) for rows in (slice(i, min(i + step, count)) for i in range(0, count, step))]
    return [
        ((i // inner, slice(j, min(j + step, inner))), slice(i + j, i + min(j + step, inner)))
        for i in range(0, count, inner)
        for j in range(0, inner, step)
    ]


def _contiguous(x: np.ndarray, dtype: np.dtype[Any], buffer: np.ndarray) -> np.ndarray:
    if x.dtype == dtype and x.flags.c_contiguous:
        return x
    copy = buffer[: len(x)]
    copy[...] = x
    return copy


def _sweep(
    blocks: list[tuple[Any, slice]], work: Callable[..., None], width: int, scratch: int, dtype: np.dtype[Any]
) -> None:
    """`work` on every block, with scratch arrays of its own in each thread."""
    if not blocks:
        return
    height = max(rows.stop - rows.start for _, rows in blocks)
    waiting = deque(blocks)

    def worker() -> None:
        buffers = np.empty((scratch, height, width), dtype)
        while True:
            try:
                where, rows = waiting.popleft()
            except IndexError:
                return
            work(where, rows, buffers)

    def helper() -> None:
        with b.quiet():  # which is a thread's own
            worker()

    threads = min(_cores(), len(blocks)) if blocks[-1][1].stop * width >= LARGE else 1
    if threads == 1:
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


# Softmax. Of a row z: k, the index of its maximum m, and s, the sum of exp(z − m) over all classes but k, as in
# formulas.softmax_costs: −log p is log1p(s) + m − z, and 1 − p_k is s/(1 + s).


def _softmax(z: Array, e: Array, temperature: float = 1.0) -> tuple[Array, Array, Array]:
    """k, m and s; exp((z − m)/T) is left in `e`, but 0 at k. s is NaN where m is infinite."""
    each = np.arange(len(z))
    k = z.argmax(1)
    m = z[each, k]
    _exponent(z, m, e, temperature)
    np.exp(e, out=e)
    e[each, k] = 0
    return k, m, e.sum(1) + (m - m)


def _exponent(z: Array, m: Array, out: Array, temperature: float) -> None:
    np.subtract(z, m[:, None], out=out)
    if temperature != 1:
        np.divide(out, temperature, out=out)


def _scaled_softmax(
    z: Array, known: Any, scale: Array, out: Array, *, saved: bool = False, temperature: float = 1.0
) -> None:
    """scale · p into `out`. `saved`: there `_softmax` left its exponentials."""
    k, m, s = known
    if saved:
        out[np.arange(len(z)), k] = 1
    else:
        _exponent(z, m, out, temperature)
        np.exp(out, out=out)
    out *= (scale / (1 + s))[:, None]


def _label_value(
    labels: Array, z: Array, scratch: Array, *, class_weight: Array | None = None, **_: Any
) -> tuple[Array, Any]:
    k, m, s = _softmax(z, scratch[0][: len(z)])
    cost = b.log1p(s) + (m - z[np.arange(len(z)), labels])
    return cost if class_weight is None else class_weight[0, labels] * cost, (k, m, s)


def _label_slope(
    labels: Array,
    z: Array,
    scratch: Array,
    known: Any,
    g: Array,
    out: Array,
    *,
    saved: bool,
    class_weight: Array | None = None,
    **_: Any,
) -> None:
    k, _, s = known
    g = g if class_weight is None else class_weight[0, labels] * g
    _scaled_softmax(z, known, g, out, saved=saved)
    each = np.arange(len(z))
    out[each, labels] = np.where(labels == k, -g * (s / (1 + s)), out[each, labels] - g)


def _weights(target: Array, out: Array, label_smoothing: float, class_weight: Array | None) -> Array:
    """w_c t_c, the targets smoothed; in `out`, if it is another array than `target`."""
    if label_smoothing:
        np.multiply(target, 1 - label_smoothing, out=out)
        out += label_smoothing / target.shape[1]
        target = out
    return target if class_weight is None else np.multiply(target, class_weight, out=out)


def _dense_value(
    target: Array, z: Array, scratch: Array, *, label_smoothing: float, class_weight: Array | None, **_: Any
) -> tuple[Array, Any]:
    d, product, w = (x[: len(z)] for x in scratch[:3])
    w = _weights(target, w, label_smoothing, class_weight)
    k, m, s = _softmax(z, d)
    total = w.sum(1)
    np.subtract(m[:, None], z, out=product)
    product *= w
    return total * b.log1p(s) + product.sum(1), ((k, m, s), total)


def _dense_slope(
    target: Array,
    z: Array,
    scratch: Array,
    known: Any,
    g: Array,
    out: Array,
    *,
    saved: bool,
    label_smoothing: float,
    class_weight: Array | None,
    **_: Any,
) -> None:
    (k, m, s), total = known
    each, w = np.arange(len(z)), scratch[0][: len(z)]
    _scaled_softmax(z, (k, m, s), g * total, out, saved=saved)
    np.multiply(_weights(target, w, label_smoothing, class_weight), g[:, None], out=w)
    out -= w
    w_k = w[each, k]
    w[each, k] = 0
    out[each, k] = (w.sum(1) - w_k * s) / (1 + s)


def _share_value(
    labels: Array, p: Array, scratch: Array, *, epsilon: float, class_weight: Array | None, **_: Any
) -> tuple[Array, Any]:
    total = p.sum(1)
    share = p[np.arange(len(p)), labels] / total
    clipped = formulas.clip(b, share, epsilon, 1 - epsilon)
    weight = 1 if class_weight is None else class_weight[0, labels]
    slope = np.where(share == clipped, weight / total, 0)
    return weight * -b.log(clipped), (slope, clipped)


def _share_slope(labels: Array, p: Array, scratch: Array, known: Any, g: Array, out: Array, **_: Any) -> None:
    """The logarithm of the sum, the same for all classes, and that of the label's own."""
    slope, share = known
    out[...] = (g * slope)[:, None]
    out[np.arange(len(p)), labels] -= g * slope / share


def _shares(p: Array, total: Array, out: Array, clipped: Array, epsilon: float) -> None:
    np.divide(p, total[:, None], out=out)
    _clip(out, epsilon, 1 - epsilon, clipped)


def _clip(x: Array, low: float, high: float, out: Array) -> None:
    np.maximum(x, low, out=out)
    np.minimum(out, high, out=out)


def _shares_value(
    target: Array,
    p: Array,
    scratch: Array,
    *,
    epsilon: float,
    label_smoothing: float,
    class_weight: Array | None,
    **_: Any,
) -> tuple[Array, Any]:
    share, w = (x[: len(p)] for x in scratch[:2])
    total = p.sum(1)
    _shares(p, total, share, share, epsilon)
    np.log(share, out=share)
    share *= _weights(target, w, label_smoothing, class_weight)
    return -share.sum(1), total


def _shares_slope(
    target: Array,
    p: Array,
    scratch: Array,
    total: Any,
    g: Array,
    out: Array,
    *,
    epsilon: float,
    label_smoothing: float,
    class_weight: Array | None,
    **_: Any,
) -> None:
    """(Σ_j w_j − w_c/p_c)/Σp, over the classes that are not clipped."""
    share, w, clipped = (x[: len(p)] for x in scratch[:3])
    _shares(p, total, share, clipped, epsilon)
    outside = share != clipped
    weights = _weights(target, w, label_smoothing, class_weight)
    if outside.any():
        np.copyto(w, weights)
        w[outside] = 0
        weights = w
    np.divide(weights, clipped, out=clipped)
    np.subtract(weights.sum(1)[:, None], clipped, out=out)
    out *= (g / total)[:, None]


# Divergences. KL = Σ t δ with δ = log(t/p) cancels where t and p are close: rows of less than this are done in float64,
# which has digits to spare for any two rows of float32.
_CLOSE = 0.25


def _kl_logits_value(
    target: Array, z: Array, scratch: Array, *, temperature: float = 1.0, **_: Any
) -> tuple[Array, Any]:
    e, difference, log_ratio = (x[: len(z)] for x in scratch[:3])
    known_p = _softmax(z, e, temperature)
    known_t = _softmax(target, e, temperature)
    delta_k = _log_ratio(target, z, known_t, known_p, log_ratio, difference, temperature)
    # Of the log-sum-exps the difference counts: in float64, or a long row would lose what is left of it.
    (_, _, s), normalisers = known_t, _difference_of_normalisers(known_t, known_p)
    log_ratio *= e
    kl = (log_ratio.sum(1, np.float64) + delta_k) / (1 + s) - normalisers
    close = kl < _CLOSE
    if close.any():
        kl[close] = _kl_of_close_logits(target[close], z[close], temperature)
    return (temperature**2 * kl).astype(z.dtype), (known_t, known_p, close)


def _log_ratio(
    target: Array, z: Array, known_t: Any, known_p: Any, out: Array, other: Array, temperature: float
) -> Array:
    """log(t/p) into `out`, but for the difference of the normalisers, which is the same for all; and that at k."""
    _exponent(target, known_t[1], out, 1.0)
    _exponent(z, known_p[1], other, 1.0)
    out -= other
    if temperature != 1:
        out /= temperature
    return out[np.arange(len(z)), known_t[0]]


def _difference_of_normalisers(known_t: Any, known_p: Any) -> Array:
    return np.log1p(known_t[2], dtype=np.float64) - np.log1p(known_p[2], dtype=np.float64)


def _kl_of_close_logits(target: Array, z: Array, temperature: float) -> Array:
    """Σ t (δ + exp(−δ) − 1), in float64, where the first-order parts of δ are gone before they are summed."""
    target, z = target.astype(np.float64), z.astype(np.float64)
    t, delta, other = (np.empty_like(z) for _ in range(3))
    known_p = _softmax(z, t, temperature)
    known_t = _softmax(target, t, temperature)
    t[np.arange(len(z)), known_t[0]] = 1
    _log_ratio(target, z, known_t, known_p, delta, other, temperature)
    delta -= _difference_of_normalisers(known_t, known_p)[:, None]
    np.negative(delta, out=other)
    delta += np.expm1(other, out=other)
    delta *= t
    return delta.sum(1) / (1 + known_t[2])


def _kl_logits_slope(
    target: Array,
    z: Array,
    scratch: Array,
    known: Any,
    g: Array,
    out: Array,
    *,
    temperature: float = 1.0,
    **_: Any,
) -> None:
    known_t, known_p, close = known
    if not close.all():
        _p_less_t(target, z, known_t, known_p, temperature * g, out, scratch[0][: len(z)], temperature)
    if close.any():
        target, z = target[close].astype(np.float64), z[close].astype(np.float64)
        wide, other = np.empty_like(z), np.empty_like(z)
        known_t, known_p = _softmax(target, other, temperature), _softmax(z, wide, temperature)
        _p_less_t(target, z, known_t, known_p, temperature * g[close], wide, other, temperature, saved=True)
        out[close] = wide


def _p_less_t(
    target: Array,
    z: Array,
    known_t: Any,
    known_p: Any,
    scale: Array,
    out: Array,
    other: Array,
    temperature: float,
    *,
    saved: bool = False,
) -> None:
    """scale · (p − t) into `out`; where one class leads both, from what the others have.

    `saved`: `_softmax` left its exponentials in `out` and `other`.
    """
    (k, _, s), (k_p, _, s_p) = known_t, known_p
    _scaled_softmax(z, known_p, scale, out, temperature=temperature, saved=saved)
    _scaled_softmax(target, known_t, scale, other, temperature=temperature, saved=saved)
    out -= other
    each = np.arange(len(z))
    out[each, k] = np.where(k == k_p, scale * (s / (1 + s) - s_p / (1 + s_p)), out[each, k])


def _kl_value(target: Array, p: Array, scratch: Array, *, epsilon: float, **_: Any) -> tuple[Array, Any]:
    t, ratio = (x[: len(p)] for x in scratch[:2])
    _clip(target, epsilon, 1.0, t)
    _clip(p, epsilon, 1.0, ratio)
    np.divide(t, ratio, out=ratio)
    np.log(ratio, out=ratio)
    ratio *= t
    kl = ratio.sum(1)
    close = kl < _CLOSE * np.maximum(t.sum(1), 1)
    if close.any():
        # t − p is exact there, and so δ = log1p((t − p)/p) has all its digits.
        wide_t, wide_p = t[close].astype(np.float64), p[close].astype(np.float64)
        _clip(wide_p, float(p.dtype.type(epsilon)), 1.0, wide_p)
        delta = np.log1p((wide_t - wide_p) / wide_p)
        delta *= wide_t
        kl[close] = delta.sum(1)
    return kl, None


def _kl_slope(
    target: Array, p: Array, scratch: Array, known: Any, g: Array, out: Array, *, epsilon: float, **_: Any
) -> None:
    clipped = scratch[0][: len(p)]
    _clip(p, epsilon, 1.0, clipped)
    outside = p != clipped
    _clip(target, epsilon, 1.0, out)
    out /= clipped
    out *= -g[:, None]
    if outside.any():
        out[outside] = 0


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
    return costs[:, 0] if costs.shape[1] == 1 else costs.sum(1) / costs.shape[1]


def _binary_logits_value(
    target: Array,
    x: Array,
    scratch: Array,
    *,
    pos_weight: Array | float | None = None,
    label_smoothing: float = 0.0,
    **_: Any,
) -> tuple[Array, Any]:
    """(t + r)·log1p(exp(−|x|)) + t·max(−x, 0) + r·max(x, 0), with r = 1 − t."""
    t, rest, part, costs = (y[: len(x)] for y in scratch[:4])
    target = _trials(target, pos_weight, label_smoothing, t, rest)
    np.maximum(x, 0, out=costs)
    costs *= rest
    rest += target
    np.minimum(x, 0, out=part)
    part *= target
    costs -= part
    np.abs(x, out=part)
    np.negative(part, out=part)
    np.exp(part, out=part)
    np.log1p(part, out=part)
    part *= rest
    costs += part
    return _mean(costs), None


def _binary_logits_slope(
    target: Array,
    x: Array,
    scratch: Array,
    known: Any,
    g: Array,
    out: Array,
    *,
    pos_weight: Array | float | None = None,
    label_smoothing: float = 0.0,
    **_: Any,
) -> None:
    """r·p − t·(1 − p), where p and 1 − p are a/(a + c) and c/(a + c) of a = exp(min(x, 0)) and c = exp(−max(x, 0))."""
    t, rest, a, c = (y[: len(x)] for y in scratch[:4])
    target = _trials(target, pos_weight, label_smoothing, t, rest)
    np.minimum(x, 0, out=a)
    np.exp(a, out=a)
    np.maximum(x, 0, out=c)
    np.negative(c, out=c)
    np.exp(c, out=c)
    rest *= a
    a += c
    c *= target
    np.subtract(rest, c, out=out)
    out /= a
    out *= (g / x.shape[1])[:, None]


def _binary_value(
    target: Array,
    p: Array,
    scratch: Array,
    *,
    epsilon: float,
    pos_weight: Array | float | None = None,
    label_smoothing: float = 0.0,
    **_: Any,
) -> tuple[Array, Any]:
    t, rest, clipped, costs = (y[: len(p)] for y in scratch[:4])
    target = _trials(target, pos_weight, label_smoothing, t, rest)
    _clip(p, epsilon, 1 - epsilon, clipped)
    np.log(clipped, out=costs)
    costs *= target
    np.negative(clipped, out=clipped)
    np.log1p(clipped, out=clipped)
    clipped *= rest
    costs += clipped
    return -_mean(costs), None


def _binary_slope(
    target: Array,
    p: Array,
    scratch: Array,
    known: Any,
    g: Array,
    out: Array,
    *,
    epsilon: float,
    pos_weight: Array | float | None = None,
    label_smoothing: float = 0.0,
    **_: Any,
) -> None:
    t, rest, clipped = (y[: len(p)] for y in scratch[:3])
    target = _trials(target, pos_weight, label_smoothing, t, rest)
    _clip(p, epsilon, 1 - epsilon, clipped)
    outside = p != clipped
    np.divide(target, clipped, out=t)
    np.subtract(1, clipped, out=clipped)
    rest /= clipped
    np.subtract(rest, t, out=out)
    out *= (g / p.shape[1])[:, None]
    if outside.any():
        out[outside] = 0


def _entry_alone(plain: Any, labels: Array, pred: Array, axis: int, kept: Array | None, **options: Any) -> Array | None:
    """The log loss of probabilities, which reads no entry but the label's: as that of one class.

    The formula does so too, but for what is done to all entries before.
    """
    if kept is None and b.dtype(pred) in ("float32", "float64"):
        return None
    entry = b.expand_dims(b.take(pred, labels, axis), axis)
    dtype = "float64" if b.dtype(entry) == "float64" else "float32"
    entry = neutralise(b, b.cast(entry, dtype), kept, axis, 0.5)
    return formulas.label_log_loss(b, np.zeros_like(labels), entry, axis, **options)


def _choice(logits: Any, probabilities: Any, formula: Any) -> Any:
    """By what the predictions are; the formula, in blocks, for what neither knows of."""

    def kernel(*arrays: Any, from_logits: bool, **options: Any) -> Array | None:
        weighed = options.get("weight") is not None
        smoothed = formula is formulas.sparse_categorical_crossentropy and options["label_smoothing"]
        chosen = _kernel(formula) if weighed or smoothed else logits if from_logits else probabilities
        return chosen(*arrays, from_logits=from_logits, **options)

    return kernel


def _kernels() -> dict[str, Any]:
    f = formulas
    sparse, dense, log_loss = f.sparse_categorical_crossentropy, f.categorical_crossentropy, f.label_log_loss
    binary, trials, kl = f.binary_crossentropy, f.bernoulli_log_loss, f.kl_divergence
    kl_logits, kl_shares = (_kl_logits_value, _kl_logits_slope), (_kl_value, _kl_slope)
    kernels: dict[Callable[..., Array], Any] = {
        sparse: _choice(
            _kernel(sparse, _label_value, _label_slope, saves=True), _kernel(sparse, _share_value, _share_slope), sparse
        ),
        dense: _choice(
            _kernel(dense, _dense_value, _dense_slope, saves=True), _kernel(dense, _shares_value, _shares_slope), dense
        ),
        log_loss: _choice(_kernel(log_loss, _label_value, _label_slope, saves=True), _entry_alone, log_loss),
        kl: _choice(_kernel(kl, *kl_logits, wide=False), _kernel(kl, *kl_shares, wide=False), kl),
        f.distillation_loss: _kernel(f.distillation_loss, *kl_logits, wide=False),
        f.categorical_focal_crossentropy: _kernel(f.categorical_focal_crossentropy),
        f.binary_focal_crossentropy: _kernel(f.binary_focal_crossentropy),
    }
    for formula in (binary, trials):
        logits = _kernel(formula, _binary_logits_value, _binary_logits_slope)
        kernels[formula] = _choice(logits, _kernel(formula, _binary_value, _binary_slope), formula)
    return {formula.__name__: kernel for formula, kernel in kernels.items()}


KERNELS = _kernels()
