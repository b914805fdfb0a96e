"""What Triton compiles for the softmax, divergence and Bernoulli rules: functions on the device, then kernels.

Nothing of torch here: triton_kernels.py launches them. Never run on a GPU so far (see there).

Layout: arrays are (N, V), the classes next to each other, rows a stride apart. A program holds a tile of R rows and C
columns. Forward, it walks along its rows once (divergences: twice), every lane keeping the statistics of the columns
that it has seen, and puts them together at the end: no row is too long, and only the end needs other lanes. Backward,
tiles are independent: the row's statistics are known. The incoming gradient is multiplied in there, so that each
gradient is written once.
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

    The hardware's is 2^(x·log₂e), and the rounding of that product costs digits where x is far from 0. So x is taken
    apart into n·log 2 and a rest; 1.5·2²³ leaves n, rounded, in the last bits, and these are moved to the exponent.
    """
    none = x < -87.3
    shifted = tl.where(none, 0.0, x) * 1.4426950408889634 + 12582912.0
    n = shifted - 12582912.0
    rest = (x - n * 0.693359375) - n * -2.12194440e-4  # log 2 in two parts, the first times n exact
    power = (shifted.to(tl.int32, bitcast=True) << 23) + 0x3F800000
    return tl.where(none, 0.0, tl.exp(rest) * power.to(tl.float32, bitcast=True))


@triton.jit
def _log1p(x):
    """log(1 + x) of x > −1; what 1 + x rounds off is made good by the quotient (Kahan)."""
    u = 1.0 + x
    lost = u == 1.0
    return tl.where(lost, x, tl.log(u) * (x / tl.where(lost, 1.0, u - 1.0)))


@triton.jit
def _remainder(x):
    """x + exp(−x) − 1 of |x| ≤ 1: its power series, to the twelfth power."""
    series = 1 / 3628800 - x * (1 / 39916800 - x * (1 / 479001600))
    series = 1 / 40320 - x * (1 / 362880 - x * series)
    series = 1 / 720 - x * (1 / 5040 - x * series)
    series = 1 / 24 - x * (1 / 120 - x * series)
    return x * x * (0.5 - x * (1 / 6 - x * series))


@triton.jit
def _see(m, k, s, z, column, inverse):
    """A lane's largest logit m, its column k, and s = Σ exp((z − m)/T) of the others, with one more logit."""
    above = z > m
    step = _exp(-tl.where(z == m, 0.0, tl.abs(z - m)) * inverse)  # of −∞ and −∞ too; nothing remains of that
    s = tl.where(above, (s + 1.0) * step, s + step)
    return tl.where(above, z, m), tl.where(above, column, k), s


@triton.jit
def _gather(m, k, s, inverse):
    """The same of rows, from those of their lanes."""
    top = tl.max(m, 1)
    is_top = m == top[:, None]
    at = tl.min(tl.where(is_top, k, _NO_COLUMN), 1)
    step = _exp(-tl.where(is_top, 0.0, top[:, None] - m) * inverse)
    return top, at, tl.sum(tl.where(k == at[:, None], s, (1.0 + s) * step), 1)


@triton.jit
def _rows_of(valid_rows, rows, R: tl.constexpr):
    """The program's rows, in 64 bits since they will be multiplied by a stride, which exist, and which are valid."""
    row = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    exists = row < rows
    live = exists
    if valid_rows is not None:
        live = exists & (tl.load(valid_rows + row, mask=exists, other=0) != 0)
    return row, exists, live


@triton.jit
def _load(x, row, stride, column, inside):
    return tl.load(x + row[:, None] * stride + column[None, :], mask=inside, other=-_INFINITY).to(tl.float32)


@triton.jit
def _weights(target, class_weight, row, stride, column, inside, label, hit, term, LABELS: tl.constexpr):
    """The weight of each class: t·(1 − s) + s/V, times its class weight; 0 outside. `hit` is 1 − s, `term` s/V."""
    if LABELS:
        weight = tl.where(column[None, :] == label[:, None], hit + term, term)
    else:
        weight = _load(target, row, stride, column, inside) * hit + term
    if class_weight is not None:
        weight = weight * tl.load(class_weight + column[None, :], mask=inside, other=0.0)
    return tl.where(inside, weight, 0.0)


# Cross-entropy: Σ_c w_c (m − z_c) + (Σ w)·log(1 + s), m = z_k being the largest logit, s = Σ_{c≠k} exp(z_c − m).


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
    row, exists, live = _rows_of(valid_rows, rows, R)
    label = tl.zeros([R], tl.int64)
    valid = live
    if LABELS:
        label = tl.load(target + row * target_stride, mask=live, other=0).to(tl.int64)
        valid = live & (label >= 0) & (label < classes)

    m = tl.full([R, C], -_INFINITY, tl.float32)
    k = tl.full([R, C], -1, tl.int32)
    s = tl.zeros([R, C], tl.float32)
    fall = tl.zeros([R, C], tl.float32)  # Σ w_c (m − z_c)
    at_top = tl.zeros([R, C], tl.float32)  # the weight of m's class, and of all the others
    others = tl.zeros([R, C], tl.float32)
    for start in range(0, classes, C):
        column = start + tl.arange(0, C)
        inside = live[:, None] & (column < classes)[None, :]
        z = _load(logits, row, stride, column, inside)
        old = m
        m, k, s = _see(m, k, s, z, column[None, :], 1.0)
        if not HARD:
            weight = _weights(target, class_weight, row, target_stride, column, inside, label, hit, term, LABELS)
            # Where m is −∞, what it will rise by is no number: the lowest one stands for it.
            before, now = tl.maximum(old, _LOWEST), tl.maximum(m, _LOWEST)
            seen = at_top + others
            fall += tl.where(seen == 0.0, 0.0, seen * (now - before))
            fall += tl.where(weight == 0.0, 0.0, weight * (now - z))
            above = z > old
            others += tl.where(above, at_top, weight)
            at_top = tl.where(above, weight, at_top)

    top_z, top_k, top_s = _gather(m, k, s, 1.0)
    if HARD:
        z = tl.load(logits + row * stride + label, mask=valid, other=0.0).to(tl.float32)
        total = tl.where(valid, 1.0, 0.0)
        if class_weight is not None:
            total = tl.load(class_weight + label, mask=valid, other=0.0)
        row_fall = tl.where((total == 0.0) & (z == -_INFINITY), 0.0, total * (top_z - z))
        row_others = tl.where(label == top_k, 0.0, total)
    else:
        seen = at_top + others
        rise = tl.maximum(top_z, _LOWEST)[:, None] - tl.maximum(m, _LOWEST)
        row_fall = tl.sum(fall + tl.where(seen == 0.0, 0.0, seen * rise), 1)
        total = tl.sum(seen, 1)
        row_others = tl.sum(others + tl.where(k == top_k[:, None], 0.0, at_top), 1)
    value = row_fall + total * _log1p(top_s) + (top_z - top_z)  # an infinite largest logit: NaN
    value = tl.where(valid, value, tl.where(live, float("nan"), 0.0))
    tl.store(loss + row, value, mask=exists)
    tl.store(top + row, top_k, mask=exists)
    tl.store(stats + row * 4, top_z, mask=exists)
    tl.store(stats + row * 4 + 1, top_s, mask=exists)
    tl.store(stats + row * 4 + 2, total, mask=exists)
    tl.store(stats + row * 4 + 3, row_others, mask=exists)


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
    """p_c Σw − w_c; of the largest logit (Σ_{c≠k} w − w_k s)/(1 + s), so that p_k − 1 does not cancel."""
    row, exists, live = _rows_of(valid_rows, rows, R)
    valid = live
    label = tl.zeros([R], tl.int64)
    if LABELS:
        label = tl.load(target + row * target_stride, mask=live, other=0).to(tl.int64)
        valid = live & (label >= 0) & (label < classes)
    column = tl.program_id(1) * C + tl.arange(0, C)
    within = (column < classes)[None, :]
    inside = valid[:, None] & within
    z = _load(logits, row, stride, column, inside)
    weight = _weights(target, class_weight, row, target_stride, column, inside, label, hit, term, LABELS)
    incoming = tl.load(grad + row * grad_stride, mask=valid, other=0.0)
    m = tl.load(stats + row * 4, mask=valid, other=0.0)[:, None]
    s = tl.load(stats + row * 4 + 1, mask=valid, other=0.0)[:, None]
    total = tl.load(stats + row * 4 + 2, mask=valid, other=0.0)[:, None]
    others = tl.load(stats + row * 4 + 3, mask=valid, other=0.0)[:, None]
    k = tl.load(top + row, mask=valid, other=0)[:, None]
    usual = total * (_exp(z - m) / (1.0 + s)) - weight
    largest = (others - weight * s) / (1.0 + s)
    each = incoming[:, None] * tl.where(column[None, :] == k, largest, usual)
    each = tl.where(inside, each, 0.0)
    address = gradient + row[:, None] * classes + column[None, :]
    tl.store(address, each.to(gradient.dtype.element_ty), mask=exists[:, None] & within)


# KL(t ‖ p) of t = softmax(u/T), p = softmax(v/T). With δ̂ = δ + η, δ = log(t/p) and η the rounding of the two
# logarithms of sums, the same for a whole row: F = Σ t·(δ̂ + exp(−δ̂) − 1), whose terms are ≥ 0, and M = Σ t δ̂ give
# Σ t exp(−δ̂) − 1 = F − M = exp(−η) − 1 and KL = M − η = M + log1p(F − M). The latter for small F as F − g(F − M),
# g(x) = x − log1p(x) ≈ x²/2: nothing cancels, and the digits of nearly equal rows remain.


@triton.jit
def _log_ratio(u, v, m_t, m_p, shift, inverse):
    """log(t/p), `shift` being log1p(s_p) − log1p(s_t). Both orders are right; through smaller numbers is more exact."""
    across, down_t, down_p = u - v, u - m_t, v - m_p
    across_top = m_t - m_p
    across_is_smaller = tl.abs(across) + tl.abs(across_top) < tl.abs(down_t) + tl.abs(down_p)
    return tl.where(across_is_smaller, across - across_top, down_t - down_p) * inverse + shift


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
    row, exists, live = _rows_of(valid_rows, rows, R)
    m_t = tl.full([R, C], -_INFINITY, tl.float32)
    k_t = tl.full([R, C], -1, tl.int32)
    s_t = tl.zeros([R, C], tl.float32)
    m_p, k_p, s_p = m_t, k_t, s_t
    for start in range(0, classes, C):
        column = start + tl.arange(0, C)
        inside = live[:, None] & (column < classes)[None, :]
        u = _load(target, row, target_stride, column, inside)
        v = _load(logits, row, stride, column, inside)
        m_t, k_t, s_t = _see(m_t, k_t, s_t, u, column[None, :], inverse)
        m_p, k_p, s_p = _see(m_p, k_p, s_p, v, column[None, :], inverse)
    top_t, _, others_t = _gather(m_t, k_t, s_t, inverse)
    top_p, _, others_p = _gather(m_p, k_p, s_p, inverse)
    shift = _log1p(others_p) - _log1p(others_t)
    scale_t = 1.0 / (1.0 + others_t)
    scale_p = tl.exp(-shift) * scale_t  # with the same η as δ̂

    positive = tl.zeros([R, C], tl.float32)  # F
    mean = tl.zeros([R, C], tl.float32)  # M
    for start in range(0, classes, C):
        column = start + tl.arange(0, C)
        inside = live[:, None] & (column < classes)[None, :]
        u = _load(target, row, target_stride, column, inside)
        v = _load(logits, row, stride, column, inside)
        t = _exp((u - top_t[:, None]) * inverse) * scale_t[:, None]
        p = _exp((v - top_p[:, None]) * inverse) * scale_p[:, None]
        delta = _log_ratio(u, v, top_t[:, None], top_p[:, None], shift[:, None], inverse)
        near = tl.abs(delta) < 1.0
        first = tl.where(t == 0.0, 0.0, t * delta)
        positive += tl.where(near, t * _remainder(tl.where(near, delta, 0.0)), first + (p - t))
        mean += first
    value = tl.sum(positive, 1)
    near = value < 0.25
    drift = tl.where(near, value - tl.sum(mean, 1), 0.0)  # exp(−η) − 1
    value = tl.where(near, value - drift * drift * (0.5 - drift * (1 / 3 - drift * 0.25)), value)
    value = tl.where(value < 0.0, 0.0, value) + (top_t - top_t) + (top_p - top_p)
    tl.store(loss + row, tl.where(live, value, 0.0), mask=exists)
    tl.store(stats + row * 4, top_t, mask=exists)
    tl.store(stats + row * 4 + 1, top_p, mask=exists)
    tl.store(stats + row * 4 + 2, others_t, mask=exists)
    tl.store(stats + row * 4 + 3, shift + _log1p(drift), mask=exists)


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
    """(p − t)/T; where they are near each other as t·(exp(−δ) − 1)/T."""
    row, exists, live = _rows_of(valid_rows, rows, R)
    column = tl.program_id(1) * C + tl.arange(0, C)
    within = (column < classes)[None, :]
    inside = live[:, None] & within
    u = _load(target, row, target_stride, column, inside)
    v = _load(logits, row, stride, column, inside)
    incoming = tl.load(grad + row * grad_stride, mask=live, other=0.0) * inverse
    top_t = tl.load(stats + row * 4, mask=live, other=0.0)[:, None]
    top_p = tl.load(stats + row * 4 + 1, mask=live, other=0.0)[:, None]
    scale_t = 1.0 / (1.0 + tl.load(stats + row * 4 + 2, mask=live, other=0.0)[:, None])
    shift = tl.load(stats + row * 4 + 3, mask=live, other=0.0)[:, None]
    t = _exp((u - top_t) * inverse) * scale_t
    p = _exp((v - top_p) * inverse) * (tl.exp(-shift) * scale_t)
    delta = _log_ratio(u, v, top_t, top_p, shift, inverse)
    near = tl.abs(delta) < 1.0
    close = tl.where(near, delta, 0.0)
    each = incoming[:, None] * tl.where(near, t * (_remainder(close) - close), p - t)
    each = tl.where(inside, each, 0.0)
    address = gradient + row[:, None] * classes + column[None, :]
    tl.store(address, each.to(gradient.dtype.element_ty), mask=exists[:, None] & within)


# Bernoulli trials: mean over a row of t·w·softplus(−x) + (1 − t)·softplus(x), t and 1 − t smoothed, w the weight of t.


@triton.jit
def _outcomes(target, row, stride, column, inside, hit, term, pos_weight):
    """What counts for the outcome and what against it, `hit` being 1 − s and `term` s/2; 0 outside."""
    t = tl.where(inside, _load(target, row, stride, column, inside), 0.0)
    for_it, against = pos_weight * (t * hit + term), (1.0 - t) * hit + term
    return tl.where(inside, for_it, 0.0), tl.where(inside, against, 0.0)


@triton.jit
def _zero_if_unweighted(weight, cost):
    """weight · cost, where what has no weight may cost infinitely much."""
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
    row, exists, live = _rows_of(valid_rows, rows, R)
    total = tl.zeros([R, C], tl.float32)
    for start in range(0, classes, C):
        column = start + tl.arange(0, C)
        inside = live[:, None] & (column < classes)[None, :]
        x = tl.where(inside, _load(logits, row, stride, column, inside), 0.0)
        positive, negative = _outcomes(target, row, target_stride, column, inside, hit, term, pos_weight)
        remainder = _log1p(_exp(-tl.abs(x)))
        total += _zero_if_unweighted(positive, tl.maximum(-x, 0.0) + remainder)
        total += _zero_if_unweighted(negative, tl.maximum(x, 0.0) + remainder)
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
    """(1 − t)·p − t·w·(1 − p), where p and 1 − p are 1/(1 + a) and a/(1 + a), or the reverse, of a = exp(−|x|)."""
    row, exists, live = _rows_of(valid_rows, rows, R)
    column = tl.program_id(1) * C + tl.arange(0, C)
    within = (column < classes)[None, :]
    inside = live[:, None] & within
    x = tl.where(inside, _load(logits, row, stride, column, inside), 0.0)
    positive, negative = _outcomes(target, row, target_stride, column, inside, hit, term, pos_weight)
    incoming = tl.load(grad + row * grad_stride, mask=live, other=0.0) / classes
    small = _exp(-tl.abs(x))
    up = tl.where(x > 0.0, 1.0, small)
    down = tl.where(x > 0.0, small, 1.0)
    each = incoming[:, None] * ((negative * up - positive * down) / (1.0 + small))
    each = tl.where(inside, each, 0.0)
    address = gradient + row[:, None] * classes + column[None, :]
    tl.store(address, each.to(gradient.dtype.element_ty), mask=exists[:, None] & within)
