"""PyTorch on CPUs, eager: losses and their gradients in one sweep over blocks that stay in the cache. Defines no loss.

A sweep goes through the predictions once. For each block of rows it computes the per-sample losses and, where a
gradient is wanted, writes d loss / d prediction into the one large buffer that is allocated; backward multiplies that
buffer by the gradient that arrives. PyTorch's own losses allocate three such buffers, and to fill a fresh one costs
more than the arithmetic.

torch.softmax is the fastest way to an exponential (torch.exp takes twice as long), but its sums of long rows lose
digits: every sweep divides by the sum of what it returned, which is nearly 1 and summed pairwise.

Under torch.compile, torch.func, forward mode and on other devices the formula is used; so it is for second derivatives.
CUDA tensors go to `triton`, if the environment asks for it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from lossbridge.kernels import torch_compiled

# Elements of a block: 2 MiB of float32, the size of two cores' caches.
BLOCK = 1 << 19
# Up to so many elements a few operations of PyTorch on float64 are quicker than a sweep.
SMALL = 1 << 12

# (block of predictions, where its gradient goes, whether it is wanted, blocks of further arrays) -> losses. The classes
# lie along axis 1 of two or three, and stay there with size 1 in what is per sample.
Fill = Callable[..., Tensor]
Plain = Callable[[Tensor, Tensor], Tensor]
Block = tuple[slice, ...]


def _eager(*tensors: Any) -> bool:
    """Whether these are ordinary CPU tensors, with nothing at work but reverse-mode differentiation."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._are_functorch_transforms_active():
        return False
    return all(
        type(x) in (Tensor, torch.nn.Parameter) and x.device.type == "cpu" and forward_ad.unpack_dual(x).tangent is None
        for x in tensors
        if x is not None
    )


# The sweep.


class _Sweep:
    """What is to be computed of predictions along `axis` (None: every entry is a sample); calling it computes it.

    Of the further arrays `samples` are of the per-sample shape, `dense` of the predictions'. Rows that are not kept get
    no gradient; their losses may be anything.
    """

    def __init__(
        self,
        fill: Fill,
        axis: int | None,
        kept: Tensor | None,
        *,
        samples: tuple[Tensor, ...] = (),
        dense: tuple[Tensor, ...] = (),
    ) -> None:
        self.fill = fill
        self.axis = axis
        self.kept = kept
        self.samples = samples
        self.dense = dense

    def __call__(self, pred: Tensor, wanted: bool, in_place: bool = False) -> tuple[Tensor, Tensor | None]:
        """The losses, and if wanted the gradient of each in the predictions' dtype; `in_place`: written over them."""
        shape, samples_shape = self._shapes(pred)
        dtype = pred.dtype if pred.dtype == torch.float64 else torch.float32
        rows = pred.reshape(shape)
        loss = torch.empty(samples_shape, dtype=dtype)
        gradient = None
        if wanted:
            gradient = rows if in_place else torch.empty(shape, dtype=pred.dtype)
        further = [x.reshape(samples_shape) for x in self.samples] + [x.reshape(shape) for x in self.dense]
        kept = None if self.kept is None else self.kept.expand(self.of_samples(pred.shape)).reshape(samples_shape)
        for block in _blocks(shape):
            x = rows[block]
            direct = gradient is not None and gradient.dtype == dtype
            slope = gradient[block] if direct and gradient is not None else torch.empty(x.shape, dtype=dtype)
            loss[block] = self.fill(x, slope, wanted, *(y[block] for y in further))
            if gradient is not None and kept is not None:
                _clear(slope, kept[block])
            if gradient is not None and not direct:
                gradient[block] = slope
        return loss.view(self.of_samples(pred.shape)), gradient

    def scaled(self, gradient: Tensor, upstream: Tensor, shape: torch.Size) -> Tensor:
        """The gradient of the losses, times what flows back to them, in place; of that shape."""
        factor = upstream.reshape((*gradient.shape[:1], 1, *gradient.shape[2:]))
        if gradient.dtype == factor.dtype:
            gradient.mul_(factor)
        else:  # in blocks: PyTorch multiplies tensors of two dtypes thirty times slower
            for block in _blocks(gradient.shape):
                gradient[block] = gradient[block].to(factor.dtype).mul_(factor[block])
        return gradient.view(shape)

    def of_samples(self, shape: torch.Size) -> torch.Size:
        return shape if self.axis is None else shape[: self.axis] + shape[self.axis + 1 :]

    def _shapes(self, pred: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of the predictions with the classes along axis 1, and of what is per sample."""
        if self.axis is None:
            return (pred.numel(), 1), (pred.numel(), 1)
        groups, classes = math.prod(pred.shape[: self.axis]), pred.shape[self.axis]
        inner = math.prod(pred.shape[self.axis + 1 :])
        return ((groups, classes), (groups, 1)) if inner == 1 else ((groups, classes, inner), (groups, 1, inner))


def _blocks(shape: tuple[int, ...]) -> Iterator[Block]:
    """Slices of the first axis; also of the third, where one step along the first is too large."""
    groups, step = shape[0], math.prod(shape[1:])
    if step > BLOCK and len(shape) == 3:
        size = max(1, BLOCK // shape[1])
        for group in range(groups):
            for start in range(0, shape[2], size):
                yield slice(group, group + 1), slice(None), slice(start, start + size)
        return
    size = max(1, BLOCK // step)
    for start in range(0, groups, size):
        yield (slice(start, start + size),)


def _clear(slope: Tensor, kept: Tensor) -> None:
    """No gradient where nothing is kept, in place."""
    if slope.ndim == 2:  # masked_fill_ reads everything
        slope.index_fill_(0, (~kept[:, 0]).nonzero()[:, 0], 0.0)
    else:
        slope.masked_fill_(~kept, 0.0)


class _Swept(torch.autograd.Function):
    """The losses of a sweep, for autograd."""

    @staticmethod
    def forward(ctx: Any, pred: Tensor, sweep: _Sweep, plain: Callable[[Tensor], Tensor], in_place: bool) -> Tensor:
        loss, ctx.gradient = sweep(pred, True, in_place)
        ctx.sweep, ctx.plain, ctx.in_place, ctx.shape = sweep, plain, in_place, pred.shape
        if not in_place:
            ctx.save_for_backward(pred)
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradient, ctx.gradient = ctx.gradient, None  # the buffer serves once; for a second time it is computed again
        if ctx.in_place and (gradient is None or torch.is_grad_enabled()):
            raise RuntimeError(
                "inplace_gradient=True has written the gradient over the logits, which a second backward or derivative "
                "needs; leave it out"
            )
        if not ctx.in_place:
            (pred,) = ctx.saved_tensors
            if torch.is_grad_enabled():  # a second derivative will be asked for
                return torch.autograd.grad(ctx.plain(pred), pred, upstream, create_graph=True)[0], None, None, None
            if gradient is None:
                _, gradient = ctx.sweep(pred, True)
        return ctx.sweep.scaled(gradient, upstream, ctx.shape), None, None, None


def _swept(sweep: _Sweep, plain: Callable[[Tensor], Tensor], pred: Tensor, in_place: bool = False) -> Tensor:
    if not (torch.is_grad_enabled() and pred.requires_grad):
        return sweep(pred, False)[0]
    if in_place:
        _refuse_in_place(pred)
    return _Swept.apply(pred, sweep, plain, in_place)


def _refuse_in_place(pred: Tensor) -> None:
    if pred.is_leaf or (pred._base is not None and pred._base.is_leaf):
        raise ValueError(
            "inplace_gradient=True writes over the logits, and these are a leaf, whose values are yours; leave it out, "
            "or pass what a model computed"
        )
    if not pred.is_contiguous():
        raise ValueError(
            f"inplace_gradient=True writes over the logits, and these have strides {tuple(pred.stride())} for shape "
            f"{tuple(pred.shape)}; leave it out, or pass logits.contiguous()"
        )


# What the sweeps compute of a block x, with its gradient in p.


def _softmax(x: Tensor, p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """softmax(x) up to a common factor, in p; its sum; and log Σ exp(x − max x), except where one p is nearly 1."""
    torch.softmax(x, 1, out=p)
    total = p.sum(1, keepdim=True)
    return p, total, -torch.log(p.amax(1, keepdim=True) / total)


def _labels_fill(label_smoothing: float) -> Fill:
    def fill(x: Tensor, p: Tensor, wanted: bool, y: Tensor) -> Tensor:
        x = x.to(p.dtype)
        top = x.amax(1, keepdim=True)
        below = top - x.gather(1, y)
        spread = (top - x).sum(1, keepdim=True) if label_smoothing else None  # before the gradient is written over x
        torch.softmax(x, 1, out=p)
        of_label = p.gather(1, y)
        largest = p.amax(1, keepdim=True)
        p.scatter_(1, y, 0.0)
        others = p.sum(1, keepdim=True)
        total = others + of_label
        others = others / total
        # log Σ exp(x − top); where the label leads, from the others' share.
        leads = of_label > 0.5
        rest = torch.where(leads, -torch.log1p(-others), -torch.log(largest / total))
        cost = torch.where(leads, rest, below + rest)
        if spread is not None:
            share = label_smoothing / x.shape[1]
            smoothed = share * spread + label_smoothing * rest
            cost = smoothed if label_smoothing == 1 else (1 - label_smoothing) * cost + smoothed  # 0·∞ = 0
        if wanted:
            p.div_(total)
            if label_smoothing:
                p.sub_(share)
                others = others - label_smoothing + share
            p.scatter_(1, y, -others)
        return cost

    return fill


def _dense_fill(label_smoothing: float, class_weight: Tensor | None) -> Fill:
    def fill(x: Tensor, p: Tensor, wanted: bool, t: Tensor) -> Tensor:
        weight = t.to(p.dtype)
        if label_smoothing:
            weight = weight * (1 - label_smoothing) + label_smoothing / x.shape[1]
        if class_weight is not None:
            weight = class_weight.reshape((-1,) + (1,) * (x.ndim - 2)) * weight
        mass = weight.sum(1, keepdim=True)
        x = x.to(p.dtype)
        below = x.amax(1, keepdim=True) - x
        cost = (weight * below).sum(1, keepdim=True)
        p, total, rest = _softmax(x, p)
        leads = p.amax(1, keepdim=True) > 0.5 * total
        top = None
        if leads.any():
            # Where one class has most of the mass, its own digits are found from those of the others.
            top = p.argmax(1, keepdim=True)
            of_top = p.gather(1, top)
            p.scatter_(1, top, 0.0)
            others = p.sum(1, keepdim=True)
            total = others + of_top
            others = others / total
            rest = torch.where(leads, -torch.log1p(-others), rest)
            p.scatter_(1, top, of_top)
        loss = cost + mass * rest
        if not loss.sum().isfinite():  # 0·∞ = 0
            cost = torch.where((weight == 0) & (below == math.inf), 0.0, weight * below).sum(1, keepdim=True)
            loss = cost + mass * rest
        if wanted:
            p.mul_(mass / total).sub_(weight)
            if top is not None:
                exact = weight.scatter(1, top, 0.0).sum(1, keepdim=True) - others * mass
                p.scatter_(1, top, torch.where(leads, exact, p.gather(1, top)))
        return loss

    return fill


def _divergence_fill(temperature: float) -> Fill:
    """T² KL(t ‖ p) of t = softmax(z/T), p = softmax(x/T)."""

    def fill(x: Tensor, p: Tensor, wanted: bool, z: Tensor) -> Tensor:
        x, z = (y.to(p.dtype) if temperature == 1 else y.to(p.dtype) / temperature for y in (x, z))
        ratio = (z - z.amax(1, keepdim=True)).sub_(x - x.amax(1, keepdim=True))
        t, total_t, rest_t = _softmax(z, torch.empty_like(p))
        p, total, rest = _softmax(x, p)
        t.div_(total_t)
        # Σ t log(t/p), where log(t/p) is `ratio` less what is the same for all classes.
        mean = ratio.mul_(t).sum(1, keepdim=True)
        loss = mean - (rest_t - rest)
        if wanted:
            p.div_(total).sub_(t)
        # Where the two differ by little it has no digits left.
        close = (~(loss >= 0.1 * (1 + mean.abs()))).squeeze(1)
        if close.any():
            z, x, t = (y.movedim(1, -1)[close] for y in (z, x, t))
            values, slope = _near_divergence(z, x, t)
            exact = ~values.isfinite()
            if exact.any():
                values[exact], slope[exact] = _exact_divergence(z[exact], x[exact])
            loss.squeeze(1)[close] = values
            if wanted:
                p.movedim(1, -1)[close] = slope
        if wanted and temperature != 1:
            p.mul_(temperature)
        return loss if temperature == 1 else temperature**2 * loss

    return fill


def _near_divergence(z: Tensor, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """KL of rows that are near each other, and its gradient p − t; NaN in rows that are not near.

    With a = z − x less its mean under t, KL = log Σ t exp(−a) = log1p(Σ t f(a)), f(a) = exp(−a) − 1 + a: a sum of
    positive terms, in which the rounding of the mean is of second order. f is summed as a series.
    """
    a = z - x
    mean = (t * a).sum(1, keepdim=True)
    a.sub_(mean)
    farthest = a.abs().amax(1, keepdim=True)
    near = (farthest <= 1) & (mean.abs() <= 8 * farthest)
    f = torch.full_like(a, _SERIES[-1])
    for coefficient in _SERIES[-2::-1]:
        f.mul_(a).add_(coefficient)
    f.mul_(a).mul_(a)
    grown = torch.where(near, (t * f).sum(1, keepdim=True), math.nan)
    return torch.log1p(grown)[:, 0], t * (f - a - grown) / (1 + grown)


# exp(−a) − 1 + a = a² Σ_n (−a)^n / (n + 2)!, to the last digit of float32 for |a| ≤ 1.
_SERIES = [(-1) ** n / math.factorial(n + 2) for n in range(10)]


def _exact_divergence(z: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The same of any rows, in float64, where plain arithmetic has digits to spare."""
    neither = (z == -math.inf) & (x == -math.inf)
    log_t, log_p = torch.log_softmax(z.double(), 1), torch.log_softmax(x.double(), 1)
    t, p = log_t.exp(), log_p.exp()
    none = neither | (t == 0)
    delta = log_t.masked_fill(none, 0.0) - log_p.masked_fill(none, 0.0)
    near = delta.abs() < 0.25
    terms = torch.where(near, t * (delta + torch.expm1(-delta.where(near, 0.0))), t * delta + (p - t))
    return terms.sum(1).to(x.dtype), (p - t).to(x.dtype)


def _binary_fill(label_smoothing: float, pos_weight: Any, mean: bool) -> Fill:
    """pos·softplus(−x) + neg·softplus(x), softplus(x) being max(x, 0) + log1p(exp −|x|)."""

    def fill(x: Tensor, p: Tensor, wanted: bool, t: Tensor) -> Tensor:
        x, positive = x.to(p.dtype), t.to(p.dtype)
        negative = 1 - positive
        if label_smoothing:
            positive = positive * (1 - label_smoothing) + label_smoothing / 2
            negative.mul_(1 - label_smoothing).add_(label_smoothing / 2)
        if pos_weight is not None:
            positive = pos_weight * positive
        above, below = torch.sigmoid(x), torch.sigmoid(-x)
        loss = torch.minimum(above, below).neg_().log1p_().neg_()
        if pos_weight is not None:
            loss.mul_(positive + negative)
        up, down = x.clamp_min(0), (-x).clamp_min(0)
        loss.addcmul_(positive, down).addcmul_(negative, up)
        if not loss.sum().isfinite():
            none = (positive == 0) & (down == math.inf) | (negative == 0) & (up == math.inf)
            loss.masked_fill_(none, 0.0)  # 0·∞ = 0, and the other cost is 0
        if wanted:
            torch.mul(negative, above, out=p).addcmul_(positive, below, value=-1)
            if mean:
                p.div_(x.shape[1])
        return loss.mean(1, keepdim=True) if mean else loss

    return fill


# The kernels.


def _of_labels(
    plain: Plain,
    target: Tensor,
    pred: Tensor,
    axis: int,
    kept: Tensor | None,
    *,
    from_logits: bool,
    epsilon: float,
    label_smoothing: float = 0.0,
    class_weight: Tensor | None = None,
    inplace_gradient: bool = False,
) -> Tensor | None:
    weighed_and_smoothed = class_weight is not None and label_smoothing
    if not from_logits or weighed_and_smoothed or not _usable(target, pred, kept, class_weight):
        return None
    labels = target.long()
    if pred.numel() <= SMALL and pred.dtype != torch.float64 and not label_smoothing and not inplace_gradient:
        loss = _small(labels, pred, axis, kept)
    else:
        loss = None
    if loss is None:
        sweep = _Sweep(_labels_fill(label_smoothing), axis, kept, samples=(labels,))
        loss = _swept(sweep, partial(plain, target), pred, inplace_gradient)
    if class_weight is not None:
        weight = class_weight.reshape(-1)[labels]
        loss = weight * torch.where((weight == 0) & (loss == math.inf), 0.0, loss)
    return loss


def _small(labels: Tensor, pred: Tensor, axis: int, kept: Tensor | None) -> Tensor | None:
    """PyTorch's own cross-entropy in float64, if no loss is so small that it loses digits there too."""
    if kept is not None and not kept.all():
        return None
    logits = pred.double() if axis == 1 or pred.ndim == 1 else pred.double().movedim(axis, 1)
    loss = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    return loss.float() if loss.min() > 1e-8 else None


def _of_distributions(
    plain: Plain,
    target: Tensor,
    pred: Tensor,
    axis: int,
    kept: Tensor | None,
    *,
    from_logits: bool,
    epsilon: float,
    label_smoothing: float,
    class_weight: Tensor | None,
    inplace_gradient: bool = False,
) -> Tensor | None:
    if not from_logits or not _usable(target, pred, kept, class_weight):
        return None
    if class_weight is not None:
        class_weight = class_weight.reshape(-1)
    sweep = _Sweep(_dense_fill(label_smoothing, class_weight), axis, kept, dense=(target,))
    return _swept(sweep, partial(plain, target), pred, inplace_gradient)


def _kl_divergence(
    plain: Plain,
    target: Tensor,
    pred: Tensor,
    axis: int,
    kept: Tensor | None,
    *,
    from_logits: bool,
    epsilon: float,
) -> Tensor | None:
    return _distillation_loss(plain, target, pred, axis, kept, temperature=1.0) if from_logits else None


def _distillation_loss(
    plain: Plain, target: Tensor, pred: Tensor, axis: int, kept: Tensor | None, *, temperature: float
) -> Tensor | None:
    if pred.dtype == torch.float64 or not _usable(target, pred, kept):
        return None
    sweep = _Sweep(_divergence_fill(temperature), axis, kept, dense=(target,))
    return _swept(sweep, partial(plain, target), pred)


def _binary(
    plain: Plain,
    target: Tensor,
    pred: Tensor,
    axis: int | None,
    kept: Tensor | None,
    *,
    from_logits: bool,
    epsilon: float,
    label_smoothing: float = 0.0,
    pos_weight: Any = None,
) -> Tensor | None:
    if isinstance(pos_weight, Tensor) and pos_weight.ndim:
        return None
    if not from_logits or not _usable(target, pred, kept):
        return None
    sweep = _Sweep(_binary_fill(label_smoothing, pos_weight, axis is not None), axis, kept, dense=(target,))
    return _swept(sweep, partial(plain, target), pred)


def _usable(target: Tensor, pred: Tensor, *others: Any) -> bool:
    """Whether a sweep can do it: there is something, and the targets need no gradient."""
    if not _eager(target, pred, *others) or not pred.is_floating_point() or not pred.numel():
        return False
    return not (torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (target, *others)))


_SWEEPS: dict[str, Callable[..., Tensor | None]] = {
    "sparse_categorical_crossentropy": _of_labels,
    "label_log_loss": _of_labels,
    "categorical_crossentropy": _of_distributions,
    "kl_divergence": _kl_divergence,
    "distillation_loss": _distillation_loss,
    "binary_crossentropy": _binary,
    "bernoulli_log_loss": _binary,
}

# Whether CUDA tensors go to lossbridge.kernels.triton, which has never been run on a GPU, rather than to the formula.
TRITON = os.environ.get("LOSSBRIDGE_TRITON") == "1"


def _road(name: str, sweep: Callable[..., Tensor | None]) -> Callable[..., Tensor | None]:
    """By the device, and whether the compiler is at work."""

    def kernel(*arrays: Any, inplace_gradient: bool = False, **options: Any) -> Tensor | None:
        if arrays[2].device.type == "cuda" and TRITON:
            from lossbridge.kernels import triton

            return triton.KERNELS[name](*arrays, **options) if name in triton.KERNELS else None
        if torch.compiler.is_compiling():
            closed = torch_compiled.KERNELS.get(name)
            return None if closed is None or not torch_compiled.differentiable_once() else closed(*arrays, **options)
        if inplace_gradient:
            options["inplace_gradient"] = True
        return sweep(*arrays, **options)

    return kernel


KERNELS = {name: _road(name, sweep) for name, sweep in _SWEEPS.items()}
