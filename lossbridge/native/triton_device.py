"""What Triton compiles for the softmax, divergence and Bernoulli rules: functions on the device, then kernels.

Nothing of torch here: triton_kernels.py launches them. Compiled for GPUs, but run by Triton's interpreter alone so far.

Arrays are (N, V), with the classes contiguous and any stride between rows. A program computes a tile of R rows and C
columns. Forward, it reads its rows block by block, once (divergences: twice); every lane holds the statistics of the
columns that it has read, and they are combined after the last block, so that a row may be of any length. Backward, each
tile is independent of the others, because the statistics of the row are saved; it multiplies by the incoming gradient,
so that each gradient is written once.

Of logits z_c, with weights w_c (targets, smoothed, times class weights) that sum to W:

(1) m = max z = z_k, s = Σ_{c≠k} e^(z_c − m). Then −log p_c = log1p(s) + m − z_c.
(2) One pass (Milakov and Gimelshein, 2018). A logit z ≤ m adds e^(z − m) to s. A logit z > m becomes the maximum: the
    new s is (s + 1)·e^(m − z).
(3) loss = D + W·log1p(s), D = Σ_c w_c (m − z_c). Where the maximum rises to m', D grows by W·(m' − m).
(4) gradient_c = W·e^(z_c − m)/(1 + s) − w_c, and for k, where the two would cancel, ((W − w_k) − w_k·s)/(1 + s), with
    W − w_k summed as Σ_{c≠k} w_c.

KL(t ‖ p) of t = softmax(u/T), p = softmax(v/T), without the factor T² of the loss:

(5) δ_c = log(t_c/p_c) = (u_c − max u − v_c + max v)/T + log1p(s_p) − log1p(s_t). The two logarithms are rounded, by the
    same η for the whole row: δ̂ = δ + η.
(6) F = Σ t·(δ̂ + e^(−δ̂) − 1), whose terms are ≥ 0, and M = Σ t·δ̂ give F − M = Σ t·e^(−δ̂) − 1 = e^(−η) − 1.
(7) KL = M − η = F − g(F − M), g(x) = x − log1p(x) ≈ x²/2 for small x: nothing cancels, and nearly equal rows have all
    their digits.
(8) gradient_c = (p_c − t_c)/T, and where |δ| < 1 t_c·(e^(−δ) − 1)/T, with η taken out of δ̂.

Bernoulli, of logits x, with P = pos_weight·t and N = 1 − t (both smoothed), and a = e^(−|x|):

(9) loss = mean of P·(max(−x, 0) + log1p(a)) + N·(max(x, 0) + log1p(a)).
(10) gradient = (N·p − P·(1 − p))/V, where p and 1 − p are 1/(1 + a) and a/(1 + a) for x > 0, and the reverse for x ≤ 0.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

_INFINITY = tl.constexpr(math.inf)
_LOWEST = tl.constexpr(-3.4028234663852886e38)
_NO_COLUMN = tl.constexpr(2**31 - 1)


# Functions on the device. All arithmetic is float32.


@triton.jit
def _exp(x):
    """exp x of x ≤ 0, 0 in place of subnormal numbers.

    The hardware computes 2^(x·log₂e), and the rounding of that product costs digits where x is far from 0. So
    x = n·log 2 + r, and e^x = 2^n·e^r. Adding 1.5·2²³ leaves the rounded n in the last bits, which become the exponent.
    """
    underflows = x < -87.3
    shifted = tl.where(underflows, 0.0, x) * 1.4426950408889634 + 12582912.0
    n = shifted - 12582912.0
    r = (x - n * 0.693359375) - n * -2.12194440e-4  # log 2 in two parts; n times the first is exact
    power = (shifted.to(tl.int32, bitcast=True) << 23) + 0x3F800000
    return tl.where(underflows, 0.0, tl.exp(r) * power.to(tl.float32, bitcast=True))


@triton.jit
def _log1p(x):
    """log(1 + x) of x > −1, as log(u)·x/(u − 1) of the rounded u = 1 + x (Kahan)."""
    u = 1.0 + x
    tiny = u == 1.0
    return tl.where(tiny, x, tl.log(u) * (x / tl.where(tiny, 1.0, u - 1.0)))


@triton.jit
def _remainder(x):
    """x + e^(−x) − 1 of |x| ≤ 1: its power series, to the twelfth power."""
    series = 1 / 3628800 - x * (1 / 39916800 - x * (1 / 479001600))
    series = 1 / 40320 - x * (1 / 362880 - x * series)
    series = 1 / 720 - x * (1 / 5040 - x * series)
    series = 1 / 24 - x * (1 / 120 - x * series)
    return x * x * (0.5 - x * (1 / 6 - x * series))


@triton.jit
def _update(m, k, s, z, column, inverse):
    """(2), of logits divided by T = 1/inverse: m, its column k, and s of each lane, with one more logit."""
    above = z > m
    # Where z = m = −∞ this counts 1 too; the next finite maximum multiplies it by 0.
    factor = _exp(-tl.where(z == m, 0.0, tl.abs(z - m)) * inverse)
    s = tl.where(above, (s + 1.0) * factor, s + factor)
    return tl.where(above, z, m), tl.where(above, column, k), s


@triton.jit
def _combine(m, k, s, inverse):
    """(2): m, k and s of each row, from those of its lanes."""
    top = tl.max(m, 1)
    is_top = m == top[:, None]
    at = tl.min(tl.where(is_top, k, _NO_COLUMN), 1)
    factor = _exp(-tl.where(is_top, 0.0, top[:, None] - m) * inverse)
    return top, at, tl.sum(tl.where(k == at[:, None], s, (1.0 + s) * factor), 1)


@triton.jit
def _rows_of(valid_rows, rows, R: tl.constexpr):
    """The program's rows (64 bits, because they are multiplied by a stride), which exist, and which are valid."""
    row = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    exists = row < rows
    valid = exists
    if valid_rows is not None:
        valid = exists & (tl.load(valid_rows + row, mask=exists, other=0) != 0)
    return row, exists, valid


@triton.jit
def _labels(target, row, stride, classes, valid, LABELS: tl.constexpr, R: tl.constexpr):
    """The labels, 0 without any; and which rows are valid and have a label in range."""
    label = tl.zeros([R], tl.int64)
    in_range = valid
    if LABELS:
        label = tl.load(target + row * stride, mask=valid, other=0).to(tl.int64)
        in_range = valid & (label >= 0) & (label < classes)
    return label, in_range


@triton.jit
def _load(x, row, stride, column, inside):
    return tl.load(x + row[:, None] * stride + column[None, :], mask=inside, other=-_INFINITY).to(tl.float32)


@triton.jit
def _weights(target, class_weight, row, stride, column, inside, label, hit, term, LABELS: tl.constexpr):
    """w_c: the target t·hit + term, hit = 1 − smoothing, term = smoothing/V, times the class weight; 0 outside."""
    if LABELS:
        weight = tl.where(column[None, :] == label[:, None], hit + term, term)
    else:
        weight = _load(target, row, stride, column, inside) * hit + term
    if class_weight is not None:
        weight = weight * tl.load(class_weight + column[None, :], mask=inside, other=0.0)
    return tl.where(inside, weight, 0.0)


@triton.jit
def _store_four(stats, row, exists, a, b, c, d):
    """The saved statistics of a row, for its gradient."""
    tl.store(stats + row * 4, a, mask=exists)
    tl.store(stats + row * 4 + 1, b, mask=exists)
    tl.store(stats + row * 4 + 2, c, mask=exists)
    tl.store(stats + row * 4 + 3, d, mask=exists)


# Cross-entropy (1) to (4).


@triton.jit
def _rise(mass, old, new):
    """W·(m' − m) of (3). Before the first finite logit m is −∞, and the lowest number stands for it."""
    return tl.where(mass == 0.0, 0.0, mass * (tl.maximum(new, _LOWEST) - tl.maximum(old, _LOWEST)))


@triton.jit(do_not_specialize=["rows"])
def cross_entropy(
    target,
    logits,
    valid_rows,
    class_weight,
    loss,
    stats,
    top,
    rows,
    classes,
    target_stride,
    stride,
    hit,
    term,
    LABELS: tl.constexpr,
    HARD: tl.constexpr,  # one class of each row counts: no weights have to be summed
    R: tl.constexpr,
    C: tl.constexpr,
):
    row, exists, valid = _rows_of(valid_rows, rows, R)
    label, in_range = _labels(target, row, target_stride, classes, valid, LABELS, R)
    m = tl.full([R, C], -_INFINITY, tl.float32)
    k = tl.full([R, C], -1, tl.int32)
    s = tl.zeros([R, C], tl.float32)
    below = tl.zeros([R, C], tl.float32)  # D
    weight_k = tl.zeros([R, C], tl.float32)
    others = tl.zeros([R, C], tl.float32)  # W − w_k
    for start in range(0, classes, C):
        column = start + tl.arange(0, C)
        inside = valid[:, None] & (column < classes)[None, :]
        z = _load(logits, row, stride, column, inside)
        old = m
        m, k, s = _update(m, k, s, z, column[None, :], 1.0)
        if not HARD:
            weight = _weights(target, class_weight, row, target_stride, column, inside, label, hit, term, LABELS)
            below += _rise(weight_k + others, old, m)
            below += tl.where(weight == 0.0, 0.0, weight * (tl.maximum(m, _LOWEST) - z))
            others += tl.where(z > old, weight_k, weight)
            weight_k = tl.where(z > old, weight, weight_k)

    row_m, row_k, row_s = _combine(m, k, s, 1.0)
    if HARD:
        z = tl.load(logits + row * stride + label, mask=in_range, other=0.0).to(tl.float32)
        mass = tl.where(in_range, 1.0, 0.0)
        if class_weight is not None:
            mass = tl.load(class_weight + label, mask=in_range, other=0.0)
        row_below = tl.where((mass == 0.0) & (z == -_INFINITY), 0.0, mass * (row_m - z))
        row_others = tl.where(label == row_k, 0.0, mass)
    else:
        row_below = tl.sum(below + _rise(weight_k + others, m, row_m[:, None]), 1)
        mass = tl.sum(weight_k + others, 1)
        row_others = tl.sum(others + tl.where(k == row_k[:, None], 0.0, weight_k), 1)
    value = row_below + mass * _log1p(row_s) + (row_m - row_m)  # an infinite maximum gives NaN
    value = tl.where(in_range, value, tl.where(valid, float("nan"), 0.0))
    tl.store(loss + row, value, mask=exists)
    tl.store(top + row, row_k, mask=exists)
    _store_four(stats, row, exists, row_m, row_s, mass, row_others)


@triton.jit(do_not_specialize=["rows"])
def cross_entropy_gradient(
    grad,
    target,
    logits,
    valid_rows,
    class_weight,
    stats,
    top,
    gradient,
    rows,
    classes,
    grad_stride,
    target_stride,
    stride,
    hit,
    term,
    LABELS: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
):
    """(4)"""
    row, exists, valid = _rows_of(valid_rows, rows, R)
    label, in_range = _labels(target, row, target_stride, classes, valid, LABELS, R)
    column = tl.program_id(1) * C + tl.arange(0, C)
    within = (column < classes)[None, :]
    inside = in_range[:, None] & within
    z = _load(logits, row, stride, column, inside)
    weight = _weights(target, class_weight, row, target_stride, column, inside, label, hit, term, LABELS)
    incoming = tl.load(grad + row * grad_stride, mask=in_range, other=0.0)
    m = tl.load(stats + row * 4, mask=in_range, other=0.0)[:, None]
    s = tl.load(stats + row * 4 + 1, mask=in_range, other=0.0)[:, None]
    mass = tl.load(stats + row * 4 + 2, mask=in_range, other=0.0)[:, None]
    others = tl.load(stats + row * 4 + 3, mask=in_range, other=0.0)[:, None]
    k = tl.load(top + row, mask=in_range, other=0)[:, None]
    of_others = mass * (_exp(z - m) / (1.0 + s)) - weight
    of_k = (others - weight * s) / (1.0 + s)
    each = incoming[:, None] * tl.where(column[None, :] == k, of_k, of_others)
    each = tl.where(inside, each, 0.0)
    address = gradient + row[:, None] * classes + column[None, :]
    tl.store(address, each.to(gradient.dtype.element_ty), mask=exists[:, None] & within)


# KL(t ‖ p) of logits (5) to (8).


@triton.jit
def _log_ratio(u, v, m_t, m_p, shift, inverse):
    """(5), with shift = log1p(s_p) − log1p(s_t); subtracted in whichever order has the smaller intermediate results."""
    across, below_t, below_p = u - v, u - m_t, v - m_p
    across_top = m_t - m_p
    across_is_smaller = tl.abs(across) + tl.abs(across_top) < tl.abs(below_t) + tl.abs(below_p)
    return tl.where(across_is_smaller, across - across_top, below_t - below_p) * inverse + shift


@triton.jit(do_not_specialize=["rows"])
def kl(
    target,
    logits,
    valid_rows,
    loss,
    stats,
    rows,
    classes,
    target_stride,
    stride,
    inverse,
    R: tl.constexpr,
    C: tl.constexpr,
):
    row, exists, valid = _rows_of(valid_rows, rows, R)
    m_t = tl.full([R, C], -_INFINITY, tl.float32)
    k_t = tl.full([R, C], -1, tl.int32)
    s_t = tl.zeros([R, C], tl.float32)
    m_p, k_p, s_p = m_t, k_t, s_t
    for start in range(0, classes, C):
        column = start + tl.arange(0, C)
        inside = valid[:, None] & (column < classes)[None, :]
        u = _load(target, row, target_stride, column, inside)
        v = _load(logits, row, stride, column, inside)
        m_t, k_t, s_t = _update(m_t, k_t, s_t, u, column[None, :], inverse)
        m_p, k_p, s_p = _update(m_p, k_p, s_p, v, column[None, :], inverse)
    top_t, _, s_row_t = _combine(m_t, k_t, s_t, inverse)
    top_p, _, s_row_p = _combine(m_p, k_p, s_p, inverse)
    shift = _log1p(s_row_p) - _log1p(s_row_t)
    scale_t = 1.0 / (1.0 + s_row_t)
    scale_p = tl.exp(-shift) * scale_t  # with the same η as δ̂

    f = tl.zeros([R, C], tl.float32)  # F
    mean = tl.zeros([R, C], tl.float32)  # M
    for start in range(0, classes, C):
        column = start + tl.arange(0, C)
        inside = valid[:, None] & (column < classes)[None, :]
        u = _load(target, row, target_stride, column, inside)
        v = _load(logits, row, stride, column, inside)
        t = _exp((u - top_t[:, None]) * inverse) * scale_t[:, None]
        p = _exp((v - top_p[:, None]) * inverse) * scale_p[:, None]
        delta = _log_ratio(u, v, top_t[:, None], top_p[:, None], shift[:, None], inverse)
        near = tl.abs(delta) < 1.0
        first = tl.where(t == 0.0, 0.0, t * delta)
        f += tl.where(near, t * _remainder(tl.where(near, delta, 0.0)), first + (p - t))
        mean += first
    value = tl.sum(f, 1)
    near = value < 0.25
    drift = tl.where(near, value - tl.sum(mean, 1), 0.0)  # exp(−η) − 1
    value = tl.where(near, value - drift * drift * (0.5 - drift * (1 / 3 - drift * 0.25)), value)
    value = tl.where(value < 0.0, 0.0, value) + (top_t - top_t) + (top_p - top_p)
    tl.store(loss + row, tl.where(valid, value, 0.0), mask=exists)
    _store_four(stats, row, exists, top_t, top_p, s_row_t, shift + _log1p(drift))


@triton.jit(do_not_specialize=["rows"])
def kl_gradient(
    grad,
    target,
    logits,
    valid_rows,
    stats,
    gradient,
    rows,
    classes,
    grad_stride,
    target_stride,
    stride,
    inverse,
    R: tl.constexpr,
    C: tl.constexpr,
):
    """(8)"""
    row, exists, valid = _rows_of(valid_rows, rows, R)
    column = tl.program_id(1) * C + tl.arange(0, C)
    within = (column < classes)[None, :]
    inside = valid[:, None] & within
    u = _load(target, row, target_stride, column, inside)
    v = _load(logits, row, stride, column, inside)
    incoming = tl.load(grad + row * grad_stride, mask=valid, other=0.0) * inverse
    top_t = tl.load(stats + row * 4, mask=valid, other=0.0)[:, None]
    top_p = tl.load(stats + row * 4 + 1, mask=valid, other=0.0)[:, None]
    scale_t = 1.0 / (1.0 + tl.load(stats + row * 4 + 2, mask=valid, other=0.0)[:, None])
    shift = tl.load(stats + row * 4 + 3, mask=valid, other=0.0)[:, None]
    t = _exp((u - top_t) * inverse) * scale_t
    p = _exp((v - top_p) * inverse) * (tl.exp(-shift) * scale_t)
    delta = _log_ratio(u, v, top_t, top_p, shift, inverse)
    near = tl.abs(delta) < 1.0
    close = tl.where(near, delta, 0.0)
    each = incoming[:, None] * tl.where(near, t * (_remainder(close) - close), p - t)
    each = tl.where(inside, each, 0.0)
    address = gradient + row[:, None] * classes + column[None, :]
    tl.store(address, each.to(gradient.dtype.element_ty), mask=exists[:, None] & within)


# Bernoulli (9) and (10).


@triton.jit
def _outcomes(target, row, stride, column, inside, hit, term, pos_weight):
    """P and N, smoothed by hit = 1 − smoothing and term = smoothing/2; 0 outside."""
    t = tl.where(inside, _load(target, row, stride, column, inside), 0.0)
    positive, negative = pos_weight * (t * hit + term), (1.0 - t) * hit + term
    return tl.where(inside, positive, 0.0), tl.where(inside, negative, 0.0)


@triton.jit
def _zero_if_unweighted(weight, cost):
    """weight · cost; 0 · ∞ = 0."""
    return tl.where((weight == 0.0) & (cost == _INFINITY), 0.0, weight * cost)


@triton.jit(do_not_specialize=["rows"])
def bernoulli(
    target,
    logits,
    valid_rows,
    loss,
    rows,
    classes,
    target_stride,
    stride,
    hit,
    term,
    pos_weight,
    R: tl.constexpr,
    C: tl.constexpr,
):
    row, exists, valid = _rows_of(valid_rows, rows, R)
    total = tl.zeros([R, C], tl.float32)
    for start in range(0, classes, C):
        column = start + tl.arange(0, C)
        inside = valid[:, None] & (column < classes)[None, :]
        x = tl.where(inside, _load(logits, row, stride, column, inside), 0.0)
        positive, negative = _outcomes(target, row, target_stride, column, inside, hit, term, pos_weight)
        log1p_a = _log1p(_exp(-tl.abs(x)))
        total += _zero_if_unweighted(positive, tl.maximum(-x, 0.0) + log1p_a)
        total += _zero_if_unweighted(negative, tl.maximum(x, 0.0) + log1p_a)
    tl.store(loss + row, tl.sum(total, 1) / classes, mask=exists)


@triton.jit(do_not_specialize=["rows"])
def bernoulli_gradient(
    grad,
    target,
    logits,
    valid_rows,
    gradient,
    rows,
    classes,
    grad_stride,
    target_stride,
    stride,
    hit,
    term,
    pos_weight,
    R: tl.constexpr,
    C: tl.constexpr,
):
    """(10)"""
    row, exists, valid = _rows_of(valid_rows, rows, R)
    column = tl.program_id(1) * C + tl.arange(0, C)
    within = (column < classes)[None, :]
    inside = valid[:, None] & within
    x = tl.where(inside, _load(logits, row, stride, column, inside), 0.0)
    positive, negative = _outcomes(target, row, target_stride, column, inside, hit, term, pos_weight)
    incoming = tl.load(grad + row * grad_stride, mask=valid, other=0.0) / classes
    a = _exp(-tl.abs(x))
    p = tl.where(x > 0.0, 1.0, a)  # both times 1 + a
    one_minus_p = tl.where(x > 0.0, a, 1.0)
    each = incoming[:, None] * ((negative * p - positive * one_minus_p) / (1.0 + a))
    each = tl.where(inside, each, 0.0)
    address = gradient + row[:, None] * classes + column[None, :]
    tl.store(address, each.to(gradient.dtype.element_ty), mask=exists[:, None] & within)
