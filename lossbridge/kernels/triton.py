"""PyTorch on CUDA: kernels in Triton for the softmax losses of formulas.py, as torch operators. No other loss.

So far this has been compiled for GPUs (sm_80, sm_90), but run by Triton's interpreter alone (TRITON_INTERPRET=1, on the
CPU), never on a GPU: the sizes of tiles are guesses, and no time has been taken.

Importing this module imports triton. From top to bottom: functions on the device, kernels, operators, KERNELS.

Layout: the operators take (N, V), the classes next to each other, rows a stride apart. A program holds a tile of R rows
and C columns. Forward, it walks along its rows once (divergences: twice), every lane keeping the statistics of the
columns that it has seen, and puts them together at the end: no row is too long, and only the end needs other lanes.
Backward, tiles are independent: the row's statistics are known. The incoming gradient is multiplied in there, so that
each gradient is written once. Second derivatives, and those for targets and class weights, are the plain formula's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl

from lossbridge import formulas
from lossbridge.backends import torch as b
from lossbridge.reduction import neutralise

# Elements of a tile, eight a thread, and its most columns.
TILE = 2048
COLUMNS = 2048
THREADS_OF_A_WARP = 32
DTYPES = (torch.float16, torch.bfloat16, torch.float32)

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
def _rows_of(kept, rows, R: tl.constexpr):
    """The program's rows, in 64 bits since they will be multiplied by a stride, and which of them count."""
    row = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    exists = row < rows
    live = exists
    if kept is not None:
        live = exists & (tl.load(kept + row, mask=exists, other=0) != 0)
    return row, exists, live


@triton.jit
def _load(x, row, stride, column, inside):
    return tl.load(x + row[:, None] * stride + column[None, :], mask=inside, other=-_INFINITY).to(tl.float32)


@triton.jit
def _weights(target, class_weight, row, stride, column, inside, label, hit, share, LABELS: tl.constexpr):
    """What each class counts: t·(1 − s) + s/V, `hit` being 1 − s and `share` s/V, times its weight; 0 outside."""
    if LABELS:
        weight = tl.where(column[None, :] == label[:, None], hit + share, share)
    else:
        weight = _load(target, row, stride, column, inside) * hit + share
    if class_weight is not None:
        weight = weight * tl.load(class_weight + column[None, :], mask=inside, other=0.0)
    return tl.where(inside, weight, 0.0)


# Cross-entropy: Σ_c w_c (m − z_c) + (Σ w)·log(1 + s), m = z_k being the largest logit, s = Σ_{c≠k} exp(z_c − m).


@triton.jit(do_not_specialize=["rows"])
def _cross_entropy(
    target,
    logits,
    kept,
    class_weight,
    loss,
    stats,
    top,
    rows,
    classes,
    target_stride,
    stride,
    hit,
    share,
    LABELS: tl.constexpr,
    HARD: tl.constexpr,  # one class of each row counts: no weights have to be summed
    R: tl.constexpr,
    C: tl.constexpr,
):
    row, exists, live = _rows_of(kept, rows, R)
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
            weight = _weights(target, class_weight, row, target_stride, column, inside, label, hit, share, LABELS)
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
def _cross_entropy_slope(
    grad,
    target,
    logits,
    kept,
    class_weight,
    stats,
    top,
    slope,
    rows,
    classes,
    grad_stride,
    target_stride,
    stride,
    hit,
    share,
    LABELS: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
):
    """p_c Σw − w_c; of the largest logit (Σ_{c≠k} w − w_k s)/(1 + s), so that p_k − 1 does not cancel."""
    row, exists, live = _rows_of(kept, rows, R)
    valid = live
    label = tl.zeros([R], tl.int64)
    if LABELS:
        label = tl.load(target + row * target_stride, mask=live, other=0).to(tl.int64)
        valid = live & (label >= 0) & (label < classes)
    column = tl.program_id(1) * C + tl.arange(0, C)
    within = (column < classes)[None, :]
    inside = valid[:, None] & within
    z = _load(logits, row, stride, column, inside)
    weight = _weights(target, class_weight, row, target_stride, column, inside, label, hit, share, LABELS)
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
    address = slope + row[:, None] * classes + column[None, :]
    tl.store(address, each.to(slope.dtype.element_ty), mask=exists[:, None] & within)


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
def _kl(
    target,
    logits,
    kept,
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
    row, exists, live = _rows_of(kept, rows, R)
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
def _kl_slope(
    grad,
    target,
    logits,
    kept,
    stats,
    slope,
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
    row, exists, live = _rows_of(kept, rows, R)
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
    address = slope + row[:, None] * classes + column[None, :]
    tl.store(address, each.to(slope.dtype.element_ty), mask=exists[:, None] & within)


# Operators. Only these are seen by torch.compile, torch.export, autograd and torch.vmap.


def _launch(kernel: Any, tiled: bool, logits: torch.Tensor, *arguments: Any, **constants: Any) -> None:
    """Runs a kernel over the rows of `logits`; `tiled`: over blocks of its columns too."""
    rows, classes = logits.shape
    if rows == 0:
        return
    columns = min(triton.next_power_of_2(classes), COLUMNS)
    tile = TILE // columns
    grid = (triton.cdiv(rows, tile), triton.cdiv(classes, columns) if tiled else 1)
    warps = max(1, min(8, TILE // (8 * THREADS_OF_A_WARP)))
    with torch.cuda.device_of(logits):
        kernel[grid](*arguments, **constants, R=tile, C=columns, num_warps=warps)


def _dense(x: torch.Tensor) -> torch.Tensor:
    """With neighbouring classes; rows may lie anywhere."""
    return x if x.ndim == 1 or x.stride(-1) == 1 else x.contiguous()


def _contiguous(*arrays: Any) -> list[Any]:
    return [None if x is None else x.contiguous() for x in arrays]


def _smoothing(label_smoothing: float, classes: int) -> tuple[float, float]:
    return 1 - label_smoothing, label_smoothing / classes


@torch.library.custom_op("lossbridge::cross_entropy", mutates_args=())
def cross_entropy(
    target: torch.Tensor,
    logits: torch.Tensor,
    kept: torch.Tensor | None,
    class_weight: torch.Tensor | None,
    label_smoothing: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Per-row losses, and what the gradient needs. Labels (N,) of integers, or weights (N, V); kept (N,); (V,)."""
    target, logits = _dense(target), _dense(logits)
    kept, class_weight = _contiguous(kept, class_weight)
    loss, stats, top = _statistics(logits)
    _launch(
        _cross_entropy,
        False,
        logits,
        target,
        logits,
        kept,
        class_weight,
        loss,
        stats,
        top,
        *logits.shape,
        target.stride(0),
        logits.stride(0),
        *_smoothing(label_smoothing, logits.shape[1]),
        LABELS=target.ndim == 1,
        HARD=target.ndim == 1 and label_smoothing == 0,
    )
    return loss, stats, top


@torch.library.custom_op("lossbridge::cross_entropy_slope", mutates_args=())
def cross_entropy_slope(
    grad: torch.Tensor,
    target: torch.Tensor,
    logits: torch.Tensor,
    kept: torch.Tensor | None,
    class_weight: torch.Tensor | None,
    label_smoothing: float,
    stats: torch.Tensor,
    top: torch.Tensor,
) -> torch.Tensor:
    target, logits = _dense(target), _dense(logits)
    kept, class_weight, stats, top = _contiguous(kept, class_weight, stats, top)
    slope = logits.new_empty(logits.shape)
    _launch(
        _cross_entropy_slope,
        True,
        logits,
        grad,
        target,
        logits,
        kept,
        class_weight,
        stats,
        top,
        slope,
        *logits.shape,
        grad.stride(0),
        target.stride(0),
        logits.stride(0),
        *_smoothing(label_smoothing, logits.shape[1]),
        LABELS=target.ndim == 1,
    )
    return slope


@torch.library.custom_op("lossbridge::kl_from_logits", mutates_args=())
def kl_from_logits(
    target: torch.Tensor, logits: torch.Tensor, kept: torch.Tensor | None, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Per-row divergences of two logit arrays (N, V), and what the gradient needs."""
    target, logits = _dense(target), _dense(logits)
    (kept,) = _contiguous(kept)
    loss, stats, _ = _statistics(logits)
    strides = target.stride(0), logits.stride(0)
    _launch(_kl, False, logits, target, logits, kept, loss, stats, *logits.shape, *strides, 1 / temperature)
    return loss, stats


@torch.library.custom_op("lossbridge::kl_from_logits_slope", mutates_args=())
def kl_from_logits_slope(
    grad: torch.Tensor,
    target: torch.Tensor,
    logits: torch.Tensor,
    kept: torch.Tensor | None,
    temperature: float,
    stats: torch.Tensor,
) -> torch.Tensor:
    target, logits = _dense(target), _dense(logits)
    kept, stats = _contiguous(kept, stats)
    slope = logits.new_empty(logits.shape)
    strides = grad.stride(0), target.stride(0), logits.stride(0)
    arguments = (grad, target, logits, kept, stats, slope, *logits.shape, *strides, 1 / temperature)
    _launch(_kl_slope, True, logits, *arguments)
    return slope


def _statistics(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Losses, four numbers a row, and the column of the largest logit; empty."""
    rows = logits.shape[0]
    loss = logits.new_empty((rows,), dtype=torch.float32)
    return loss, loss.new_empty((rows, 4)), loss.new_empty((rows,), dtype=torch.int32)


cross_entropy.register_fake(lambda target, logits, kept, class_weight, label_smoothing: _statistics(logits))
kl_from_logits.register_fake(lambda target, logits, kept, temperature: _statistics(logits)[:2])
cross_entropy_slope.register_fake(lambda grad, target, logits, *rest: logits.new_empty(logits.shape))
kl_from_logits_slope.register_fake(lambda grad, target, logits, *rest: logits.new_empty(logits.shape))


# Derivatives. What no kernel gives is that of the plain formula, on the same arguments.


def _plain_cross_entropy(target: Any, logits: Any, kept: Any, class_weight: Any, label_smoothing: float) -> Any:
    labels = target.ndim == 1
    formula: Any = formulas.sparse_categorical_crossentropy if labels else formulas.categorical_crossentropy
    if not labels:
        target = neutralise(b, target.float(), kept, 1, 0.5)
    logits = neutralise(b, logits.float(), kept, 1, 0.5)
    options = {"from_logits": True, "label_smoothing": label_smoothing, "epsilon": 0.0}
    return formula(b, target.long() if labels else target, logits, 1, **options, class_weight=class_weight)


def _plain_kl(target: Any, logits: Any, kept: Any, temperature: float) -> Any:
    target, logits = (neutralise(b, x.float(), kept, 1, 0.5) for x in (target, logits))
    return formulas.kl_from_logits(b, target, logits, 1, temperature=temperature)


def _pull(function: Callable[..., Any], arguments: tuple[Any, ...], which: list[int], grads: Any) -> dict[int, Any]:
    """The gradients of function(*arguments) for the arguments `which`. They can be differentiated again."""

    def of_chosen(*chosen: Any) -> Any:
        at = dict(zip(which, chosen, strict=True))
        return function(*(at.get(i, x) for i, x in enumerate(arguments)))

    _, pull = torch.func.vjp(of_chosen, *(arguments[i] for i in which))
    return dict(zip(which, pull(grads), strict=True))


# By autograd.Function, since torch.func refuses the operators of register_autograd; each written out in the module,
# since torch.compile follows no others. The first input is the number among the operators' arguments.


def _save_slope(ctx: Any, inputs: tuple[Any, ...], count: int) -> None:
    ctx.option = inputs[0]
    ctx.save_for_backward(*inputs[1 : count + 2])  # not the statistics: the formula has its own


def _second_derivatives(ctx: Any, grad: Any, plain: Callable[..., Any], count: int) -> Any:
    """Those of the gradient for the logits, for the incoming gradient and the `count` arrays."""

    def slope(grad: Any, *arrays: Any) -> Any:
        return _pull(lambda *arrays: plain(*arrays, ctx.option), arrays, [1], grad)[1]

    wanted = ctx.needs_input_grad[1:]
    which = [i for i in range(count + 1) if wanted[i]]
    grads = _pull(slope, ctx.saved_tensors, which, grad)
    return None, *(grads.get(i) for i in range(len(wanted)))


def _save_loss(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    ctx.option = inputs[0]
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*inputs[1:], *output[1:])


def _derivatives(ctx: Any, grad: Any, slope: Callable[..., Any], plain: Callable[..., Any], count: int) -> Any:
    """slope(grad, arrays, statistics) for the logits, the second of `count` arrays; for the others the formula's."""
    wanted = ctx.needs_input_grad[1:]
    others = [i for i in range(count) if wanted[i] and i != 1]
    grads = {}
    if others:
        grads = _pull(lambda *arrays: plain(*arrays, ctx.option), ctx.saved_tensors[:count], others, grad)
    if wanted[1]:
        grads[1] = slope(ctx.option, grad, *ctx.saved_tensors)
    return None, *(grads.get(i) for i in range(count))


class _CrossEntropySlope(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        option: float, grad: Any, target: Any, logits: Any, kept: Any, weight: Any, stats: Any, top: Any
    ) -> Any:
        return cross_entropy_slope(grad, target, logits, kept, weight, option, stats, top)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _save_slope(ctx, inputs, 4)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return _second_derivatives(ctx, grad, _plain_cross_entropy, 4)


class _CrossEntropy(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(option: float, target: Any, logits: Any, kept: Any, weight: Any) -> Any:
        return cross_entropy(target, logits, kept, weight, option)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _save_loss(ctx, inputs, output)

    @staticmethod
    def backward(ctx: Any, grad: Any, *_: Any) -> Any:
        return _derivatives(ctx, grad, _CrossEntropySlope.apply, _plain_cross_entropy, 4)


class _KlSlope(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(option: float, grad: Any, target: Any, logits: Any, kept: Any, stats: Any) -> Any:
        return kl_from_logits_slope(grad, target, logits, kept, option, stats)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _save_slope(ctx, inputs, 3)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return _second_derivatives(ctx, grad, _plain_kl, 3)


class _Kl(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(option: float, target: Any, logits: Any, kept: Any) -> Any:
        return kl_from_logits(target, logits, kept, option)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _save_loss(ctx, inputs, output)

    @staticmethod
    def backward(ctx: Any, grad: Any, *_: Any) -> Any:
        return _derivatives(ctx, grad, _KlSlope.apply, _plain_kl, 3)


def _register_vmap(operator: Any, shared: int | None = None) -> None:
    """A batch is more rows; only one of the argument `shared`, which all rows have in common, is a loop."""

    def batched(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> Any:
        size = info.batch_size
        if shared is not None and in_dims[shared] is not None:
            each = [
                operator(*(x if dim is None else x.select(dim, i) for x, dim in zip(arguments, in_dims, strict=True)))
                for i in range(size)
            ]
            many = isinstance(each[0], tuple)
            output = tuple(map(torch.stack, zip(*each, strict=True))) if many else torch.stack(each)
        else:

            def rows(i: int, x: Any) -> Any:
                if not isinstance(x, torch.Tensor) or i == shared:
                    return x
                dim = in_dims[i]
                return (x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)).flatten(0, 1)

            output = operator(*(rows(i, x) for i, x in enumerate(arguments)))
            many = isinstance(output, tuple)
            output = tuple(x.unflatten(0, (size, -1)) for x in output) if many else output.unflatten(0, (size, -1))
        return output, (0,) * len(output) if many else 0

    operator.register_vmap(batched)


_register_vmap(cross_entropy, shared=3)
_register_vmap(cross_entropy_slope, shared=4)
_register_vmap(kl_from_logits)
_register_vmap(kl_from_logits_slope)


# Kernels as lossbridge.backend defines them: `plain` is not needed, since the operators differentiate the formula.


@torch.compiler.assume_constant_result  # it is: what is compiled belongs to one nesting
def _nested() -> bool:
    """Whether more than one transform of torch.func is at work."""
    return bool(torch._C._functorch.get_dynamic_layer_stack_depth() > 1)


def _softmax_loss(losses: Any, target: Any, pred: Any, axis: int, kept: Any, option: float, *arrays: Any) -> Any:
    """The losses of rows, in the shape of the samples; None where the formula is to be used."""
    forward_mode = torch.autograd.forward_ad._current_level >= 0  # operators have no such derivative
    if forward_mode or pred.dtype not in DTYPES or pred.shape[axis] == 0:
        return None
    # torch.compile loses derivatives of derivatives of an autograd.Function, without a word.
    if torch.compiler.is_compiling() and _nested():
        return None
    classes = pred.shape[axis]
    sample_shape = pred.shape[:axis] + pred.shape[axis + 1 :]
    if target.ndim < pred.ndim:
        target = target.reshape(-1)
    else:
        target = target if target.dtype in DTYPES else target.float()
        target = target.movedim(axis, -1).reshape(-1, classes)
    if kept is not None:
        kept = kept.expand(sample_shape).reshape(-1)
    pred = pred.movedim(axis, -1).reshape(-1, classes)
    loss = losses.apply(option, target, pred, kept, *arrays)[0]
    return loss.reshape(sample_shape)


def _crossentropy_kernel(
    plain: Any,
    target: Any,
    pred: Any,
    axis: int,
    kept: Any,
    *,
    from_logits: bool,
    label_smoothing: float = 0.0,
    epsilon: float = 0.0,
    class_weight: Any = None,
) -> Any:
    if not from_logits:
        return None
    weight = None if class_weight is None else class_weight.reshape(-1)
    return _softmax_loss(_CrossEntropy, target, pred, axis, kept, float(label_smoothing), weight)


def _kl_divergence_kernel(
    plain: Any, target: Any, pred: Any, axis: int, kept: Any, *, from_logits: bool, epsilon: float = 0.0
) -> Any:
    return _softmax_loss(_Kl, target, pred, axis, kept, 1.0) if from_logits else None


def _distillation_kernel(plain: Any, target: Any, pred: Any, axis: int, kept: Any, *, temperature: float) -> Any:
    loss = _softmax_loss(_Kl, target, pred, axis, kept, float(temperature))
    return None if loss is None else temperature**2 * loss


KERNELS: dict[str, Callable[..., Any]] = {
    "categorical_crossentropy": _crossentropy_kernel,
    "sparse_categorical_crossentropy": _crossentropy_kernel,
    "label_log_loss": _crossentropy_kernel,
    "kl_divergence": _kl_divergence_kernel,
    "distillation_loss": _distillation_kernel,
}
