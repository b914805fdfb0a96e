"""PyTorch on CPUs, eager: losses and their gradients in one sweep over blocks that stay in the cache. Defines no loss.

A sweep goes through the predictions once. For each block of rows it computes the per-sample losses and, where a
gradient is wanted, writes d loss / d prediction into the one large buffer that is allocated, times what a mean will
send back; backward multiplies that buffer only where something else arrives. PyTorch's own losses allocate three such
buffers, and to fill a fresh one costs more than the arithmetic.

torch.softmax is the fastest way to an exponential (torch.exp takes twice as long), but its sums of long rows lose
digits: every sweep divides by the sum of what it returned, which is nearly 1 and summed pairwise.

Under torch.compile, torch.func, forward mode and on other devices the formula is used; so it is for second derivatives.
CUDA tensors go to `triton`, if the environment asks for it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from lossbridge.backends import torch as b
from lossbridge.kernels import closed, torch_compiled

# Elements of a block: 2 MiB of float32, the size of two cores' caches.
BLOCK = 1 << 19

# (block of predictions, where its gradient goes, what multiplies it, block of targets) -> losses. No gradient is wanted
# where it is multiplied by 0. The classes lie along axis 1 of two or three, and stay there with size 1 in what is per
# sample.
Fill = Callable[..., Tensor]
Plain = Callable[[Tensor, Tensor], Tensor]
Block = tuple[slice, ...]


def _eager(*tensors: Any) -> bool:
    """Whether these are ordinary CPU tensors, with nothing at work but reverse-mode differentiation."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._are_functorch_transforms_active():
        return False
    if torch._C._len_torch_dispatch_stack():  # something looks at every operation: make_fx, say
        return False
    return all(
        type(x) in (Tensor, torch.nn.Parameter) and x.device.type == "cpu" and forward_ad.unpack_dual(x).tangent is None
        for x in tensors
        if x is not None
    )


# The sweep.


class _Sweep:
    """What is to be computed of predictions along `axis` (None: every entry is a sample).

    Targets are labels, of the per-sample shape, or of the predictions'. Rows that are not kept get no gradient; their
    losses may be anything.
    """

    def __init__(self, fill: Fill, axis: int | None) -> None:
        self.fill = fill
        self.axis = axis

    def __call__(
        self, target: Tensor, pred: Tensor, kept: Tensor | None, expected: float = 0.0, in_place: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """The losses, and their gradients times what is expected to flow back, in the predictions' dtype.

        Where that is 0 there are none; `in_place`: they are written over the predictions.
        """
        shape, samples_shape = self._shapes(pred)
        dtype = pred.dtype if pred.dtype == torch.float64 else torch.float32
        rows = pred.reshape(shape)
        loss = rows.new_empty(samples_shape, dtype=dtype)
        gradient = None
        if expected:
            gradient = rows if in_place else rows.new_empty(shape)
        target = target.reshape(samples_shape if target.ndim < pred.ndim else shape)
        keeping = None if kept is None else self._spread(kept, pred).reshape(samples_shape)
        for block in _blocks(shape):
            x = rows[block]
            direct = gradient is not None and gradient.dtype == dtype
            slope = gradient[block] if direct and gradient is not None else x.new_empty(x.shape, dtype=dtype)
            loss[block] = self.fill(x, slope, expected, target[block])
            if gradient is not None and keeping is not None:
                _clear(slope, keeping[block])
            if gradient is not None and not direct:
                gradient[block] = slope
        return loss.view(self.of_samples(pred.shape)), gradient

    def expected(self, pred: Tensor, kept: Tensor | None) -> float:
        """What flows back to each loss where only their mean is taken: 1 / their number.

        It is multiplied in while the gradient is in the cache. Not in float16, which has not the range.
        """
        if pred.dtype == torch.float16:
            return 1.0
        samples = pred.numel() if self.axis is None else pred.numel() // pred.shape[self.axis]
        return 1 / max(1, samples if kept is None else int(self._spread(kept, pred).count_nonzero()))

    def scaled(self, gradient: Tensor, expected: float, upstream: Tensor, kept: Tensor | None) -> Tensor:
        """The gradients times `expected`, now times what did flow back to the losses, in place."""
        if kept is not None:
            kept = kept.expand(upstream.shape)
            upstream = torch.where(kept, upstream, expected)  # whatever it is, there the gradient is 0
        if bool((upstream == expected).all()):
            return gradient
        factor = upstream.reshape((*gradient.shape[:1], 1, *gradient.shape[2:])) / expected
        if gradient.dtype == factor.dtype:
            return gradient.mul_(factor)
        for block in _blocks(gradient.shape):  # PyTorch multiplies tensors of two dtypes thirty times slower
            gradient[block] = gradient[block].to(factor.dtype).mul_(factor[block])
        return gradient

    def of_samples(self, shape: torch.Size) -> torch.Size:
        return shape if self.axis is None else shape[: self.axis] + shape[self.axis + 1 :]

    def _spread(self, kept: Tensor, pred: Tensor) -> Tensor:
        return kept.expand(self.of_samples(pred.shape))

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
    """The losses of a sweep, for autograd. `plain` is the formula, which can be differentiated further."""

    @staticmethod
    def forward(
        ctx: Any, pred: Tensor, target: Tensor, kept: Tensor | None, sweep: _Sweep, plain: Plain, in_place: bool
    ) -> Tensor:
        ctx.expected = sweep.expected(pred, kept)
        loss, ctx.gradient = sweep(target, pred, kept, ctx.expected, in_place)
        ctx.sweep, ctx.plain, ctx.in_place, ctx.shape = sweep, plain, in_place, pred.shape
        ctx.save_for_backward(None if in_place else pred, target, kept)
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradient, ctx.gradient = ctx.gradient, None  # the buffer serves once; for a second time it is computed again
        if ctx.in_place and (gradient is None or torch.is_grad_enabled()):
            raise RuntimeError(
                "inplace_gradient=True has written the gradient over the logits, which a second backward or derivative "
                "needs; leave it out"
            )
        pred, target, kept = ctx.saved_tensors
        if _batched(upstream):
            with torch.enable_grad():
                leaf = pred.detach().requires_grad_()
                found = torch.autograd.grad(ctx.plain(target, leaf), leaf, upstream)[0]
        elif torch.is_grad_enabled():  # a second derivative will be asked for
            found = torch.autograd.grad(ctx.plain(target, pred), pred, upstream, create_graph=True)[0]
        else:
            if gradient is None:
                _, gradient = ctx.sweep(target, pred, kept, ctx.expected)
            found = ctx.sweep.scaled(gradient, ctx.expected, upstream, kept).view(ctx.shape)
        return found, None, None, None, None, None


def _batched(upstream: Tensor) -> bool:
    """Whether these are many upstreams at once, as of a vectorised Jacobian."""
    functorch = torch._C._functorch
    return bool(functorch.is_legacy_batchedtensor(upstream) or functorch.is_batchedtensor(upstream))


def _swept(
    sweep: _Sweep, plain: Plain, target: Tensor, pred: Tensor, kept: Tensor | None, in_place: bool = False
) -> Tensor:
    if not (torch.is_grad_enabled() and pred.requires_grad):
        return sweep(target, pred, kept)[0]
    if in_place:
        _refuse_in_place(pred)
    return _Swept.apply(pred, target, kept, sweep, plain, in_place)


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


def _labels_fill(label_smoothing: float, in_place: bool) -> Fill:
    def fill(x: Tensor, p: Tensor, expected: float, y: Tensor) -> Tensor:
        x = x.to(p.dtype)
        z = x.gather(1, y)
        # What the softmax may be written over, and smoothing or a lost digit will ask for.
        top = x.amax(1, keepdim=True) if in_place or label_smoothing else None
        spread = (top - x).sum(1, keepdim=True) if label_smoothing and top is not None else None
        torch.softmax(x, 1, out=p)
        of_label = p.gather(1, y)
        largest = p.amax(1, keepdim=True) if top is not None else None
        p.scatter_(1, y, 0.0)
        others = p.sum(1, keepdim=True)
        total = others + of_label
        others = others / total
        leads = of_label > 0.5
        cost = torch.where(leads, -torch.log1p(-others), -torch.log(of_label / total))
        if spread is not None or not (of_label > _SMALLEST).all():
            if top is None or largest is None:
                top, largest = x.amax(1, keepdim=True), torch.maximum(p.amax(1, keepdim=True), of_label)
            rest = torch.where(leads, cost, -torch.log(largest / total))  # log Σ exp(x − top)
            cost = torch.where(leads, cost, top - z + rest)
            if spread is not None:
                smoothed = label_smoothing * (spread / x.shape[1] + rest)
                cost = smoothed if label_smoothing == 1 else (1 - label_smoothing) * cost + smoothed  # 0·∞ = 0
        if expected:
            p.mul_(expected / total)
            if label_smoothing:
                share = label_smoothing / x.shape[1]
                p.sub_(share * expected)
                others = others - label_smoothing + share
            p.scatter_(1, y, -others * expected)
        return cost

    return fill


# Of what is no less, a softmax in float32 has all its digits.
_SMALLEST = 1e-30


def _dense_fill(label_smoothing: float, class_weight: Tensor | None) -> Fill:
    def fill(x: Tensor, p: Tensor, expected: float, t: Tensor) -> Tensor:
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
        if expected:
            p.mul_(mass / total * expected).sub_(weight, alpha=expected)
            if top is not None:
                exact = weight.scatter(1, top, 0.0).sum(1, keepdim=True) - others * mass
                p.scatter_(1, top, torch.where(leads, exact * expected, p.gather(1, top)))
        return loss

    return fill


def _divergence_fill(temperature: float) -> Fill:
    """T² KL(t ‖ p) of t = softmax(z/T), p = softmax(x/T)."""

    def fill(x: Tensor, p: Tensor, expected: float, z: Tensor) -> Tensor:
        scale = expected * temperature
        x, z = (y.to(p.dtype) if temperature == 1 else y.to(p.dtype) / temperature for y in (x, z))
        ratio = (z - z.amax(1, keepdim=True)).sub_(x - x.amax(1, keepdim=True))
        t, total_t, rest_t = _softmax(z, torch.empty_like(p))
        p, total, rest = _softmax(x, p)
        t.div_(total_t)
        # Σ t log(t/p), where log(t/p) is `ratio` less what is the same for all classes.
        mean = ratio.mul_(t).sum(1, keepdim=True)
        loss = mean - (rest_t - rest)
        if expected:
            p.mul_(scale / total).sub_(t, alpha=scale)
        # Where the two differ by little it has no digits left.
        close = (~(loss >= 0.1 * (1 + mean.abs()))).squeeze(1)
        if close.any():
            z, x, t = (y.movedim(1, -1)[close] for y in (z, x, t))
            values, slope = _near_divergence(z, x, t)
            exact = ~values.isfinite()
            if exact.any():
                values[exact], slope[exact] = _any_divergence(z[exact], x[exact])
            loss.squeeze(1)[close] = values
            if expected:
                p.movedim(1, -1)[close] = slope.mul_(scale)
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
    series = closed.remainder_series(str(x.dtype).removeprefix("torch."))
    f = torch.full_like(a, series[-1])
    for coefficient in series[-2::-1]:
        f.mul_(a).add_(coefficient)
    f.mul_(a).mul_(a)
    grown = torch.where(near, (t * f).sum(1, keepdim=True), math.nan)
    return torch.log1p(grown)[:, 0], t * (f - a - grown) / (1 + grown)


def _any_divergence(z: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The same of any rows."""
    loss, known = closed.kl_of_logits_value(b, z, x, 1)
    return loss, closed.kl_of_logits_slopes(b, z, x, 1, known, (False, True))[1]


def _kl_fill(epsilon: float) -> Fill:
    """Σ t log(t/p) of probabilities, both clipped to [ε, 1]."""

    def fill(x: Tensor, p: Tensor, expected: float, t: Tensor) -> Tensor:
        x, t = x.to(p.dtype), t.to(p.dtype)
        target, t = t, t.clamp(epsilon, 1)
        ratio = t / x.clamp(epsilon, 1)
        none = None if epsilon else t == 0  # 0·log 0 = 0
        if none is not None:
            ratio.masked_fill_(none, 0.0)
        if expected:
            _clear_outside(torch.mul(ratio, -expected, out=p), x, epsilon, 1.0)
        if none is not None:
            ratio.masked_fill_(none, 1.0)
        loss = ratio.log_().mul_(t).sum(1, keepdim=True)
        # Where the two differ by little it has no digits left; where the ratio overflows, it is not infinite.
        close = (~(loss >= 0.1 * t.sum(1, keepdim=True).clamp_min(1)) | (loss == math.inf)).squeeze(1)
        if close.any():
            t, x = (y.movedim(1, -1)[close] for y in (target, x))
            loss.squeeze(1)[close] = closed.kl_value(b, t, x, 1, epsilon=epsilon)[0]
        return loss

    return fill


def _binary_fill(label_smoothing: float, pos_weight: Any, mean: bool) -> Fill:
    """pos·softplus(−x) + neg·softplus(x), softplus(x) being max(x, 0) + log1p(exp −|x|).

    Without comparisons of whole blocks: torch.where takes as long as twenty multiplications.
    """

    def fill(x: Tensor, p: Tensor, expected: float, t: Tensor) -> Tensor:
        x = x.to(p.dtype)
        positive, negative = _trials(t.to(p.dtype), label_smoothing, pos_weight)
        above = x.sign().clamp_min_(0)  # 1 where x > 0, else 0
        against = torch.lerp(positive, negative, above)  # either of them, exactly
        away = x.abs()
        small = away.neg().sigmoid_()  # of p and 1 − p the smaller
        loss = small.neg().log1p_().neg_()
        if pos_weight is not None:
            both = positive + negative
            loss.mul_(both)
            small.mul_(both)
        loss.addcmul_(against, away)
        if not loss.sum().isfinite():  # 0·∞ = 0, and the other cost is 0
            loss.masked_fill_((against == 0) & (away == math.inf), 0.0)
        if expected:
            # Where x > 0 neg·(1 − small) − pos·small, else neg·small − pos·(1 − small).
            scale = expected / x.shape[1] if mean else expected
            torch.mul(small.sub_(against), above.mul_(-2 * scale).add_(scale), out=p)
        return loss.mean(1, keepdim=True) if mean else loss

    return fill


def _binary_probabilities_fill(label_smoothing: float, pos_weight: Any, mean: bool, epsilon: float) -> Fill:
    """−pos·log p − neg·log(1 − p), p clipped to [ε, 1 − ε] with ε > 0."""

    def fill(x: Tensor, p: Tensor, expected: float, t: Tensor) -> Tensor:
        x = x.to(p.dtype)
        positive, negative = _trials(t.to(p.dtype), label_smoothing, pos_weight)
        share = x.clamp(epsilon, 1 - epsilon)
        loss = torch.log(share).mul_(positive).addcmul_(torch.log1p(-share), negative).neg_()
        if expected:
            scale = expected / x.shape[1] if mean else expected
            torch.sub(negative.div_(1 - share), positive / share, out=p)
            _clear_outside(p.mul_(scale), x, epsilon, 1 - epsilon)
        return loss.mean(1, keepdim=True) if mean else loss

    return fill


def _clear_outside(slope: Tensor, x: Tensor, low: float, high: float) -> None:
    """No gradient where x has been clipped, in place. (To look is cheap, to compare every entry is not.)"""
    if not (x.amin() >= low and x.amax() <= high):  # a NaN is nowhere
        slope.masked_fill_((x < low) | (x > high), 0.0)


def _trials(t: Tensor, label_smoothing: float, pos_weight: Any) -> tuple[Tensor, Tensor]:
    """What counts for the outcome, and, in a tensor of its own, what against it."""
    negative = 1 - t
    if label_smoothing:
        t = t * (1 - label_smoothing) + label_smoothing / 2
        negative.mul_(1 - label_smoothing).add_(label_smoothing / 2)
    return t if pos_weight is None else pos_weight * t, negative


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
    sweep = _Sweep(_labels_fill(label_smoothing, inplace_gradient), axis)
    loss = _swept(sweep, plain, labels, pred, kept, inplace_gradient)
    if class_weight is not None:
        weight = class_weight.reshape(-1)[labels]
        loss = weight * torch.where((weight == 0) & (loss == math.inf), 0.0, loss)
    return loss


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
    sweep = _Sweep(_dense_fill(label_smoothing, class_weight), axis)
    return _swept(sweep, plain, target, pred, kept, inplace_gradient)


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
    if from_logits:
        return _distillation_loss(plain, target, pred, axis, kept, temperature=1.0)
    if not _usable(target, pred, kept) or pred.dtype == torch.float16:  # whose range the slopes leave
        return None
    return _swept(_Sweep(_kl_fill(epsilon), axis), plain, target, pred, kept)


def _distillation_loss(
    plain: Plain, target: Tensor, pred: Tensor, axis: int, kept: Tensor | None, *, temperature: float
) -> Tensor | None:
    if not _usable(target, pred, kept):
        return None
    return _swept(_Sweep(_divergence_fill(temperature), axis), plain, target, pred, kept)


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
    weight: Any = None,
) -> Tensor | None:
    number = not isinstance(pos_weight, Tensor) or pos_weight.ndim == 0
    others = (kept, pos_weight) if isinstance(pos_weight, Tensor) else (kept,)
    if not number or weight is not None or not _usable(target, pred, *others):
        return None
    mean = axis is not None
    if from_logits:
        fill = _binary_fill(label_smoothing, pos_weight, mean)
    elif epsilon and pred.dtype != torch.float16:  # whose range the slopes leave
        fill = _binary_probabilities_fill(label_smoothing, pos_weight, mean, epsilon)
    else:
        return None
    return _swept(_Sweep(fill, axis), plain, target, pred, kept)


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
            in_closed_form = torch_compiled.KERNELS.get(name)
            usable = in_closed_form is not None and torch_compiled.differentiated_once()
            return in_closed_form(*arrays, **options) if usable and in_closed_form is not None else None
        if inplace_gradient:
            options["inplace_gradient"] = True
        return sweep(*arrays, **options)

    return kernel


KERNELS = {name: _road(name, sweep) for name, sweep in _SWEEPS.items()}
