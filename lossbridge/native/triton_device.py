"""What Triton compiles for the softmax, divergence and Bernoulli rules: functions on the device, then kernels.

Nothing of torch here: triton_kernels.py launches them. Compiled for GPUs, but run by Triton's interpreter alone so far.

Arrays are (N, V), with the classes contiguous and any stride between rows. A program computes a tile of R rows and C
columns. Forward, it reads its rows block by block, once (divergences: twice); the sum of a block is float32, that of
the blocks float64, and so are the few operations on the sums of a row. Backward, each tile is independent of the
others, because the statistics of the row are saved; it multiplies by the incoming gradient, so that each gradient is
written once. On the GPU products and sums are fused, in the interpreter (tl.fma too) they are not: both are right.

Of logits z_c, divided by a temperature T in divergences:

(1) m = max z = z_k. Exponentials are counted in units of 2^M, M = round(m·log₂e): e_c = e^(z_c)·2^(−M), with
    z_c = n·log 2 + r. Nothing is subtracted from z_c, so nothing is rounded. From |m| = 208 on, e_c = e^(z_c − m): that
    difference is exact for all z_c that count.
(2) s = Σ_{c≠k} e_c. Where a block has a larger m, the sums so far are multiplied by the ratio of the units.
(3) −log p_c = log1p(s/e_k) + m − z_c.

Cross-entropy, with weights w_c (targets, smoothed, times class weights) that sum to W:

(4) loss = D + W·log1p(s/e_k), D = Σ_c w_c (m − z_c). Where the maximum rises to m', D grows by W·(m' − m).
(5) gradient_c = W·e_c/(s + e_k) − w_c, and for k, where the two would cancel, ((W − w_k)·e_k − w_k·s)/(s + e_k), with
    W − w_k summed as Σ_{c≠k} w_c.

KL(t ‖ p) of t = softmax(u/T), p = softmax(v/T), without the factor T² of the loss:

(6) a_c = (u_c − v_c)/T, with what that subtraction rounds off; μ = Σ t·a; σ = log Σ e^(u/T) − log Σ e^(v/T). Then
    δ_c = log(t_c/p_c) = a_c − σ, and KL = μ − σ. Of a, μ and σ one difference is taken off beforehand, a_k of the
    target's k or that of the maxima, so that a large one does not hide the digits of δ.
(7) F = Σ t·f(a − μ), f(b) = e^(−b) − 1 + b ≥ 0, is e^KL − 1, because t·e^(−a) = p·e^(−σ). So KL = log1p(F): nothing
    cancels, and the rounding of μ does not count to first order. From KL = 1/4 on, KL = Σ t·f(a − σ).
(8) t·f(a − c) is t times the series of f where |a − c| < 1, else t·(a − c) + p·e^(c − σ) − t.
(9) gradient_c = (p_c − t_c)/T, and where |δ| < 1 t_c·(e^(−δ) − 1)/T, with σ = μ − KL.

Bernoulli, of logits x, with P = pos_weight·t and N = 1 − t (both smoothed), and a = e^(−|x|):

(10) loss = mean of P·(max(−x, 0) + log1p(a)) + N·(max(x, 0) + log1p(a)).
(11) gradient = (N·p − P·(1 − p))/V, where p and 1 − p are 1/(1 + a) and a/(1 + a) for x > 0, and the reverse for x ≤ 0.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

_INFINITY = tl.constexpr(math.inf)
_LARGEST = tl.constexpr(3.4028234663852886e38)
# `scale`: log₂e/T; T·log 2 in two parts, of which the first has 9 bits, so that n times it is exact; 1/T.
_T_IS_1 = tl.constexpr((1.4426950408889634, 0.693359375, -2.12194440e-4, 1.0))


# Functions on the device. All arithmetic of elements is float32.


@triton.jit
def _exp(z, c, M, scale):
    """e^((z − c)/T)·2^(−M), at most 1.5; 0 below 2⁻¹²⁶.

    Adding 1.5·2²³ − M leaves the rounded n − M in the last bits, which become the exponent.
    """
    d = z - c
    magic = 12582912.0 - M
    shifted = d * scale[0] + magic
    n = shifted - magic
    r = ((d - n * scale[1]) - n * scale[2]) * scale[3]
    series = 0.0416684076 + r * (0.00836889539 + r * 0.00138141925)
    series = 0.49999994 + r * (0.166665196 + r * series)  # (e^r − 1 − r)/r² of |r| < 0.347, to 2⁻²⁸ of e^r
    power = (shifted.to(tl.int32, bitcast=True) << 23) + 0x3F800000
    e = (1.0 + (r + r * r * series)) * power.to(tl.float32, bitcast=True)
    return tl.where(shifted < 12582912.0 - 126.0, 0.0, e)


@triton.jit
def _unit(m, scale):
    """(1): c and M, of which one is 0.

    M is found more than once. So it must not be left to the compiler which of its operations it fuses.
    """
    near = tl.abs(m) * scale[0] < 300.0
    c = tl.minimum(tl.maximum(m, -_LARGEST), _LARGEST)
    M = tl.fma(m, scale[0], 12582912.0) - 12582912.0
    return tl.where(near, 0.0, c), tl.where(near, M, 0.0)


@triton.jit
def _log1p(x):
    """log(1 + x) of x > −1, as log(u)·x/(u − 1) of the rounded u = 1 + x (Kahan)."""
    u = 1.0 + x
    tiny = u == 1.0
    return tl.where(tiny, x, tl.log(u) * (x / tl.where(tiny, 1.0, u - 1.0)))


@triton.jit
def _sum(x):
    return tl.sum(x, 1).to(tl.float64)


@triton.jit
def _no_block(R: tl.constexpr):
    """m, k, s and e_k of rows of which nothing has been read."""
    nothing = tl.zeros([R], tl.float64)
    return tl.full([R], -_INFINITY, tl.float32), tl.full([R], -1, tl.int32), nothing, nothing


@triton.jit
def _block(z, start, column, m, k, s, e_k, scale):
    """(2): m, k, s and e_k of rows with one more block; its e; whether m rises; the ratio of the units."""
    top, at = tl.max(z, 1, return_indices=True)
    rises = top > m
    old_c, old_M = _unit(m, scale)
    m = tl.where(rises, top, m)
    c, M = _unit(m, scale)
    ratio = _exp(old_c, c, M - old_M, scale)
    e = _exp(z, c[:, None], M[:, None], scale)
    k = tl.where(rises, start + at, k)
    s = tl.where(rises, (s + e_k) * ratio, s) + _sum(tl.where(rises[:, None] & (column == k[:, None]), 0.0, e))
    return m, k, s, _exp(m, c, M, scale).to(tl.float64), e, rises, ratio


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
def _fractions(target, row, stride, column, inside):
    """Targets; NaN outside [0, 1] by more than rounding, which is that of lossbridge/maths/elementary.py."""
    t = _load(target, row, stride, column, inside)
    if target.dtype.element_ty == tl.bfloat16:
        rounding = 0.03125
    elif target.dtype.element_ty == tl.float16:
        rounding = 0.00390625
    else:
        rounding = 0.000244140625
    return tl.where((t < -rounding) | (t > 1.0 + rounding), float("nan"), t)


@triton.jit
def _weights(target, class_weight, row, stride, column, inside, label, hit, term, LABELS: tl.constexpr):
    """w_c: the target t·hit + term, hit = 1 − smoothing, term = smoothing/V, times the class weight; 0 outside."""
    if LABELS:
        weight = tl.where(column[None, :] == label[:, None], hit + term, term)
    else:
        weight = _fractions(target, row, stride, column, inside) * hit + term
    if class_weight is not None:
        weight = weight * tl.load(class_weight + column[None, :], mask=inside, other=0.0)
    return tl.where(inside, weight, 0.0)


@triton.jit
def _save(stats, row, numbers, valid, exists):
    for i in tl.static_range(len(numbers)):
        tl.store(stats + row * len(numbers) + i, tl.where(valid, numbers[i], 0.0), mask=exists)


@triton.jit
def _saved(statistic, valid):
    return tl.load(statistic, mask=valid, other=0.0)[:, None]


# Cross-entropy (4) and (5).


@triton.jit
def _rise(mass, old, new):
    """W·(m' − m) of (4). Before the first finite logit m is −∞, and the lowest number stands for it."""
    return tl.where(mass == 0.0, 0.0, mass * (tl.maximum(new, -_LARGEST).to(tl.float64) - tl.maximum(old, -_LARGEST)))


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
    m, k, s, e_k = _no_block(R)
    below, w_k, others = s, s, s  # D, w_k and W − w_k
    for start in range(0, classes, C):
        column = start + tl.arange(0, C)
        inside = valid[:, None] & (column < classes)[None, :]
        z = _load(logits, row, stride, column, inside)
        old = m
        m, k, s, e_k, _, rises, _ = _block(z, start, column, m, k, s, e_k, _T_IS_1)
        if not HARD:
            weight = _weights(target, class_weight, row, target_stride, column, inside, label, hit, term, LABELS)
            below += _rise(w_k + others, old, m)
            below += _sum(tl.where(weight == 0.0, 0.0, weight * (tl.maximum(m, -_LARGEST)[:, None] - z)))
            leads = rises[:, None] & (column == k[:, None])
            others += tl.where(rises, w_k, 0.0) + _sum(tl.where(leads, 0.0, weight))
            w_k = tl.where(rises, _sum(tl.where(leads, weight, 0.0)), w_k)

    if HARD:
        z = tl.load(logits + row * stride + label, mask=in_range, other=0.0).to(tl.float64)
        mass = tl.where(in_range, 1.0, 0.0)
        if class_weight is not None:
            mass = tl.load(class_weight + label, mask=in_range, other=0.0)
        below = tl.where((mass == 0.0) & (z == -_INFINITY), 0.0, mass * (m - z))
        w_k = tl.where(label == k, mass, 0.0)
        others = tl.where(label == k, 0.0, mass)
    mass = w_k + others
    value = below + mass * _log1p(s / e_k) + (m - m)  # an infinite maximum gives NaN
    value = tl.where(in_range, value, tl.where(valid, float("nan"), 0.0))
    tl.store(loss + row, value, mask=exists)
    tl.store(top + row, k, mask=exists)
    of_k = others * e_k - w_k * s
    _save(stats, row, (m, mass / (s + e_k), of_k / (s + e_k)), valid, exists)


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
    """(5)"""
    row, exists, valid = _rows_of(valid_rows, rows, R)
    label, in_range = _labels(target, row, target_stride, classes, valid, LABELS, R)
    column = tl.program_id(1) * C + tl.arange(0, C)
    within = (column < classes)[None, :]
    inside = in_range[:, None] & within
    z = _load(logits, row, stride, column, inside)
    weight = _weights(target, class_weight, row, target_stride, column, inside, label, hit, term, LABELS)
    incoming = tl.load(grad + row * grad_stride, mask=in_range, other=0.0)
    k = tl.load(top + row, mask=in_range, other=0)[:, None]
    c, M = _unit(_saved(stats + row * 3, in_range), _T_IS_1)
    of_others = _exp(z, c, M, _T_IS_1) * _saved(stats + row * 3 + 1, in_range) - weight
    of_k = _saved(stats + row * 3 + 2, in_range)
    each = incoming[:, None] * tl.where(column[None, :] == k, of_k, of_others)
    each = tl.where(inside, each, 0.0)
    address = gradient + row[:, None] * classes + column[None, :]
    tl.store(address, each.to(gradient.dtype.element_ty), mask=exists[:, None] & within)


# KL(t ‖ p) of logits (6) to (9).


@triton.jit
def _subtract(u, v):
    """u − v, and what its rounding takes away."""
    d = u - v
    back = d - u
    return d, (u - (d - back)) - (v + back)


@triton.jit
def _difference(u, v, u_0, v_0, high, low):
    """(u − v) − (u_0 − v_0) − (high + low)."""
    d, error = _subtract(u, v)
    d_0, error_0 = _subtract(u_0, v_0)
    return tl.where(tl.abs(d) < _INFINITY, ((d - d_0) - high) + ((error - error_0) - low), d)


@triton.jit
def _halves(x):
    """The float64 x as a sum of two float32."""
    high = x.to(tl.float32)
    return high, (x - high).to(tl.float32)


@triton.jit
def _remainder(b):
    """f(b) = e^(−b) − 1 + b of |b| ≤ 1, to 2⁻²⁵."""
    series = -0.000198440233 + b * (2.53548296e-05 + b * -2.77228355e-06)
    series = -0.00833331048 + b * (0.00138854515 + b * series)
    series = 0.5 + b * (-0.166666672 + b * (0.041666735 + b * series))
    return b * b * series


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
    scale,
    R: tl.constexpr,
    C: tl.constexpr,
):
    row, exists, valid = _rows_of(valid_rows, rows, R)
    m_t, k_t, s_t, e_t = _no_block(R)
    m_p, k_p, s_p, e_p = _no_block(R)
    total = s_t  # Σ e_t T·(a − a_k)
    v_k = tl.zeros([R], tl.float32)
    for start in range(0, classes, C):
        column = start + tl.arange(0, C)
        inside = valid[:, None] & (column < classes)[None, :]
        u = _load(target, row, target_stride, column, inside)
        v = _load(logits, row, stride, column, inside)
        old_m, old_v, mass = m_t, v_k, s_t + e_t
        m_t, k_t, s_t, e_t, e, rises, ratio = _block(u, start, column, m_t, k_t, s_t, e_t, scale)
        m_p, k_p, s_p, e_p, _, _, _ = _block(v, start, column, m_p, k_p, s_p, e_p, scale)
        at_k = tl.load(logits + row * stride + k_t, mask=valid & rises, other=0.0).to(tl.float32)
        v_k = tl.where(rises, tl.where(tl.abs(at_k) < _INFINITY, at_k, m_t), v_k)
        moved = (m_t.to(tl.float64) - old_m) - (v_k.to(tl.float64) - old_v)
        total = tl.where(mass > 0.0, (total - moved * mass) * ratio, 0.0)
        a = _difference(u, v, m_t[:, None], v_k[:, None], 0.0, 0.0)
        total += _sum(tl.where(e == 0.0, 0.0, e * tl.minimum(tl.maximum(a, -1e30), 1e30)))

    all_t, all_p = s_t + e_t, s_p + e_p
    T = (all_t * 0.0 + scale[1] + scale[2]) * 1.4426950408889634
    logs = T * (_log1p(s_t / e_t) - _log1p(s_p / e_p))  # T·σ − (m_t − m_p)
    mean, shift = total / all_t, v_k.to(tl.float64) - m_p + logs  # T·(μ − a_k), T·(σ − a_k)
    near = mean - shift < 0.25 * T
    high, low = _halves(tl.where(near, mean, logs))
    of_p = (all_t / all_p * tl.exp(tl.where(near, (mean - shift) / T, 0.0))).to(tl.float32)
    v_k = tl.where(near, v_k, m_p)

    f = tl.zeros([R], tl.float64)  # F·all_t
    c_t, M_t = _unit(m_t[:, None], scale)
    c_p, M_p = _unit(m_p[:, None], scale)
    for start in range(0, classes, C):
        column = start + tl.arange(0, C)
        inside = valid[:, None] & (column < classes)[None, :]
        u = _load(target, row, target_stride, column, inside)
        v = _load(logits, row, stride, column, inside)
        t = _exp(u, c_t, M_t, scale)
        p = _exp(v, c_p, M_p, scale) * of_p[:, None]
        b = _difference(u, v, m_t[:, None], v_k[:, None], high[:, None], low[:, None]) * scale[3]
        f += _sum(tl.where(tl.abs(b) < 1.0, t * _remainder(b), tl.where(t == 0.0, 0.0, t * b) + (p - t)))
    value = tl.where(near, _log1p(f / all_t), f / all_t) + (m_t - m_t) + (m_p - m_p)
    tl.store(loss + row, tl.where(valid, value, 0.0), mask=exists)
    high, low = _halves(tl.where(near, mean - T * value - (v_k.to(tl.float64) - m_p), logs))  # T·σ − (m_t − m_p)
    _save(stats, row, (m_t, 1.0 / all_t, m_p, 1.0 / all_p, high, low), valid, exists)


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
    scale,
    R: tl.constexpr,
    C: tl.constexpr,
):
    """(9)"""
    row, exists, valid = _rows_of(valid_rows, rows, R)
    column = tl.program_id(1) * C + tl.arange(0, C)
    within = (column < classes)[None, :]
    inside = valid[:, None] & within
    u = _load(target, row, target_stride, column, inside)
    v = _load(logits, row, stride, column, inside)
    incoming = tl.load(grad + row * grad_stride, mask=valid, other=0.0) * scale[3]
    m_t, m_p = _saved(stats + row * 6, valid), _saved(stats + row * 6 + 2, valid)
    c_t, M_t = _unit(m_t, scale)
    c_p, M_p = _unit(m_p, scale)
    t = _exp(u, c_t, M_t, scale) * _saved(stats + row * 6 + 1, valid)
    p = _exp(v, c_p, M_p, scale) * _saved(stats + row * 6 + 3, valid)
    high, low = _saved(stats + row * 6 + 4, valid), _saved(stats + row * 6 + 5, valid)
    delta = _difference(u, v, m_t, m_p, high, low) * scale[3]
    each = incoming[:, None] * tl.where(tl.abs(delta) < 1.0, t * (_remainder(delta) - delta), p - t)
    each = tl.where(inside, each, 0.0)
    address = gradient + row[:, None] * classes + column[None, :]
    tl.store(address, each.to(gradient.dtype.element_ty), mask=exists[:, None] & within)


# Bernoulli (10) and (11).


@triton.jit
def _outcomes(target, row, stride, column, inside, hit, term, pos_weight):
    """P and N, smoothed by hit = 1 − smoothing and term = smoothing/2; 0 outside."""
    t = tl.where(inside, _fractions(target, row, stride, column, inside), 0.0)
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
    total = tl.zeros([R], tl.float64)
    for start in range(0, classes, C):
        column = start + tl.arange(0, C)
        inside = valid[:, None] & (column < classes)[None, :]
        x = tl.where(inside, _load(logits, row, stride, column, inside), 0.0)
        positive, negative = _outcomes(target, row, target_stride, column, inside, hit, term, pos_weight)
        log1p_a = _log1p(_exp(-tl.abs(x), 0.0, 0.0, _T_IS_1))
        of_positive = _zero_if_unweighted(positive, tl.maximum(-x, 0.0) + log1p_a)
        total += _sum(of_positive + _zero_if_unweighted(negative, tl.maximum(x, 0.0) + log1p_a))
    tl.store(loss + row, total / classes, mask=exists)


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
    """(11)"""
    row, exists, valid = _rows_of(valid_rows, rows, R)
    column = tl.program_id(1) * C + tl.arange(0, C)
    within = (column < classes)[None, :]
    inside = valid[:, None] & within
    x = tl.where(inside, _load(logits, row, stride, column, inside), 0.0)
    positive, negative = _outcomes(target, row, target_stride, column, inside, hit, term, pos_weight)
    incoming = tl.load(grad + row * grad_stride, mask=valid, other=0.0) / classes
    a = _exp(-tl.abs(x), 0.0, 0.0, _T_IS_1)
    p = tl.where(x > 0.0, 1.0, a)  # both times 1 + a
    one_minus_p = tl.where(x > 0.0, a, 1.0)
    each = incoming[:, None] * ((negative * p - positive * one_minus_p) / (1.0 + a))
    each = tl.where(inside, each, 0.0)
    address = gradient + row[:, None] * classes + column[None, :]
    tl.store(address, each.to(gradient.dtype.element_ty), mask=exists[:, None] & within)
