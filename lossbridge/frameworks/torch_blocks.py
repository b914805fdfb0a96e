"""PyTorch on CPUs, eager: losses and their gradients in one pass over blocks that stay in the cache.

For each block of rows a row kernel computes the losses and, where a gradient is needed, writes it into the one large
buffer that is allocated, times what a mean will send back; backward multiplies that buffer only where something else
arrives. PyTorch's own losses allocate three such buffers, and to fill a fresh one costs more than the arithmetic.

torch.softmax is the fastest exponential (torch.exp takes twice as long), but its sums of long rows lose digits: the row
kernels that use it divide by the sum of what it returned, which is nearly 1 and summed pairwise. Their derivation is
that of lossbridge/maths/softmax.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lossbridge.frameworks import torch_ops as ops
from lossbridge.frameworks.framework import by_formula
from lossbridge.maths import bernoulli, divergence, softmax
from lossbridge.native import huge_pages
from lossbridge.reduction import reduced
from lossbridge.spec import Request

# Elements of a block: 2 MiB of float32, the size of two cores' caches.
BLOCK = 1 << 19

# (block of predictions, where its gradient goes, what multiplies it, block of targets) -> losses. No gradient is needed
# where it is multiplied by 0. The classes lie along axis 1 of two or three, and stay there with size 1 in what is per
# sample.
RowKernel = Callable[..., Tensor]
Block = tuple[slice, ...]


def refuses(r: Request) -> str:
    """Why this request does not go in blocks; "" if it does. The arrays are ordinary CPU tensors."""
    if r.rule.name not in KERNELS:
        return f"no row kernel for {r.rule.name}"
    if not r.pred.is_floating_point():
        return "the predictions are integers"
    if not r.pred.numel():
        return "there are no entries"
    per_class = r.options.get("class_weight", r.options.get("pos_weight"))
    needs = r.target.requires_grad or (isinstance(per_class, Tensor) and per_class.requires_grad)
    if needs and torch.is_grad_enabled():
        return "the target or a weight needs a gradient"
    return REFUSALS[r.rule.name](r) if r.rule.name in REFUSALS else ""


def losses(r: Request) -> Tensor:
    pred, valid = r.pred, r.valid
    target = r.target.long() if r.target.ndim < pred.ndim else r.target
    kernel = KERNELS[r.rule.name](r)
    needs_gradient = torch.is_grad_enabled() and pred.requires_grad
    if needs_gradient and r.inplace_gradient:
        _refuse_in_place(pred)
    expected = _expected(r) if needs_gradient else 0.0
    with torch.no_grad():
        found, gradient = _in_blocks(kernel, r, target, pred, expected)
    if needs_gradient:
        rest = r._replace(target=None, pred=None)  # autograd alone holds the arrays
        known = Known(
            losses=found,
            gradient=gradient,
            expected=expected,
            axis=r.axis,
            again=lambda target, pred: _in_blocks(kernel, rest, target, pred, expected)[1],
            formula=lambda target, pred: by_formula(ops, rest, target, pred),
            in_place=r.inplace_gradient,
        )
        found = WithGradient.apply(pred, target, valid, known)
    return _weighted(r, target, found)


def mean(r: Request) -> Tensor:
    found = losses(r)
    return found.sum() / found.numel() if r.valid is None else reduced(r, found)


def _weighted(r: Request, target: Tensor, losses: Tensor) -> Tensor:
    """Class weights of labels multiply the losses."""
    class_weight = r.options.get("class_weight")
    if class_weight is None or target.ndim == r.pred.ndim:
        return losses
    weight = ops.lookup(class_weight, target)
    return weight * torch.where((weight == 0) & (losses == math.inf), 0.0, losses)


# The pass.


def _in_blocks(
    kernel: RowKernel, r: Request, target: Tensor, pred: Tensor, expected: float
) -> tuple[Tensor, Tensor | None]:
    """The losses, and their gradients times `expected`, what will flow back, in the predictions' dtype.

    Where that is 0 there are no gradients. Rows that are not valid get none; their losses may be anything.
    """
    pred = pred.detach()
    shape, samples_shape = _shapes(pred, r.axis)
    dtype = pred.dtype if pred.dtype == torch.float64 else torch.float32
    rows = pred.reshape(shape)
    losses = _fresh(rows, samples_shape, dtype)
    gradient = None
    if expected:
        gradient = rows if r.inplace_gradient else _fresh(rows, shape, rows.dtype)
    target = target.reshape(samples_shape if target.ndim < pred.ndim else shape)
    valid = None if r.valid is None else r.valid.expand(_of_samples(pred, r.axis)).reshape(samples_shape)
    for block in _blocks(shape):
        x = rows[block]
        direct = gradient is not None and gradient.dtype == dtype
        part = gradient[block] if direct and gradient is not None else x.new_empty(x.shape, dtype=dtype)
        losses[block] = kernel(x, part, expected, target[block])
        if gradient is not None and valid is not None:
            _clear(part, valid[block])
        if gradient is not None and not direct:
            gradient[block] = part
    gradient = None if gradient is None else gradient.view(pred.shape)
    return losses.view(_of_samples(pred, r.axis)), gradient


def _fresh(like: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A buffer to fill, in huge pages if it is large: else its page faults cost more than the arithmetic."""
    buffer = like.new_empty(shape, dtype=dtype)
    if buffer.nbytes >= huge_pages.LEAST:
        huge_pages.advise(buffer.data_ptr(), buffer.nbytes)
    return buffer


def _expected(r: Request) -> float:
    """What flows back to each loss where only their mean is taken: 1 / their number.

    It is multiplied in while the gradient is in the cache. Not in float16, which has not the range.
    """
    if r.pred.dtype == torch.float16:
        return 1.0
    samples = _of_samples(r.pred, r.axis)
    return 1 / max(1, samples.numel() if r.valid is None else int(r.valid.expand(samples).count_nonzero()))


def _of_samples(pred: Tensor, axis: int | None) -> torch.Size:
    return pred.shape if axis is None else pred.shape[:axis] + pred.shape[axis + 1 :]


def _shapes(pred: Tensor, axis: int | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of the predictions with the classes along axis 1, and of what is per sample."""
    if axis is None:
        return (pred.numel(), 1), (pred.numel(), 1)
    groups, classes = math.prod(pred.shape[:axis]), pred.shape[axis]
    inner = math.prod(pred.shape[axis + 1 :])
    return ((groups, classes), (groups, 1)) if inner == 1 else ((groups, classes, inner), (groups, 1, inner))


def _blocks(shape: tuple[int, ...]) -> list[Block]:
    """Slices of the first axis; also of the third, where one step along the first is too large."""
    groups, step = shape[0], math.prod(shape[1:])
    if step > BLOCK and len(shape) == 3:
        size = max(1, BLOCK // shape[1])
        columns = [slice(start, start + size) for start in range(0, shape[2], size)]
        return [(slice(group, group + 1), slice(None), some) for group in range(groups) for some in columns]
    size = max(1, BLOCK // step)
    return [(slice(start, start + size),) for start in range(0, groups, size)]


def _clear(gradient: Tensor, valid: Tensor) -> None:
    """No gradient where nothing is valid, in place."""
    if gradient.ndim == 2:  # masked_fill_ reads everything
        gradient.index_fill_(0, (~valid[:, 0]).nonzero()[:, 0], 0.0)
    else:
        gradient.masked_fill_(~valid, 0.0)


def _refuse_in_place(pred: Tensor) -> None:
    base = ops.base_of(pred)
    if pred.is_leaf or (base is not None and base.is_leaf):
        raise ValueError(
            "inplace_gradient=True writes over the logits, and these are a leaf, whose values are yours; leave it out, "
            "or pass what a model computed"
        )
    if not pred.is_contiguous():
        raise ValueError(
            f"inplace_gradient=True writes over the logits, and these have strides {tuple(pred.stride())} for shape "
            f"{tuple(pred.shape)}; leave it out, or pass logits.contiguous()"
        )


# The attachment of a gradient that is computed with the losses.


class Known(NamedTuple):
    """Losses, and their gradients times what is expected to flow back to each."""

    losses: Tensor | None  # None: autograd has them
    gradient: Tensor | None  # None: it has been handed out
    expected: float
    axis: int | None
    again: Callable[[Tensor, Tensor], Tensor | None]  # the same gradient of target and predictions, computed anew
    formula: Callable[[Tensor, Tensor], Tensor]  # the losses of target and predictions, to be differentiated further
    in_place: bool  # the gradient lies where the predictions were


class WithGradient(torch.autograd.Function):
    """The losses of `known`, whose gradient serves once; for a second time it is computed again."""

    @staticmethod
    def forward(ctx: Any, pred: Tensor, target: Tensor, valid: Tensor | None, known: Known) -> Tensor:
        ctx.known = known._replace(losses=None)  # they have ctx: a circle would keep the arrays until it is collected
        ctx.save_for_backward(None if known.in_place else pred, target, valid)
        assert known.losses is not None
        return known.losses

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        known = ctx.known
        ctx.known = known._replace(gradient=None)
        if known.in_place and (known.gradient is None or torch.is_grad_enabled()):
            raise RuntimeError(
                "inplace_gradient=True has written the gradient over the logits, which a second backward or derivative "
                "needs; leave it out"
            )
        pred, target, valid = ctx.saved_tensors  # raises if one has been changed in place
        if ops.is_legacy_batched(upstream) or ops.is_batched(upstream):  # many at once, as of a vectorised Jacobian
            with torch.enable_grad():
                leaf = pred.detach().requires_grad_()
                found = torch.autograd.grad(known.formula(target, leaf), leaf, upstream)[0]
        elif torch.is_grad_enabled():  # a second derivative will be asked for
            found = torch.autograd.grad(known.formula(target, pred), pred, upstream, create_graph=True)[0]
        else:
            gradient = known.again(target, pred) if known.gradient is None else known.gradient
            found = _scaled(gradient, upstream, known, valid)
        return found, None, None, None


def _scaled(gradient: Tensor, upstream: Tensor, known: Known, valid: Tensor | None) -> Tensor:
    """The gradient times what did flow back, divided by what was expected, in place."""
    if valid is not None:
        upstream = torch.where(valid.expand(upstream.shape), upstream, known.expected)  # whatever it is, there it is 0
    if bool((upstream == known.expected).all()):
        return gradient
    factor = upstream / known.expected
    factor = factor if known.axis is None else factor.unsqueeze(known.axis)
    if gradient.dtype == factor.dtype:
        return gradient.mul_(factor)
    rows = max(1, BLOCK * len(gradient) // gradient.numel())
    for some, by in zip(gradient.split(rows), factor.split(rows), strict=True):
        some.copy_(some.to(factor.dtype).mul_(by))  # PyTorch multiplies tensors of two dtypes thirty times slower
    return gradient


# The row kernels: of a block x, with its gradient in p.


def _softmax(x: Tensor, p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """softmax(x) up to a common factor, in p; its sum; and log Σ exp(x − max x), except where one p is nearly 1."""
    torch.softmax(x, 1, out=p)
    total = p.sum(1, keepdim=True)
    return p, total, -torch.log(p.amax(1, keepdim=True) / total)


def _labels(label_smoothing: float, in_place: bool) -> RowKernel:
    def rows(x: Tensor, p: Tensor, expected: float, y: Tensor) -> Tensor:
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

    return rows


# A softmax output of at least this keeps all digits of float32.
_SMALLEST = 1e-30


def _dense(label_smoothing: float, class_weight: Tensor | None) -> RowKernel:
    def rows(x: Tensor, p: Tensor, expected: float, t: Tensor) -> Tensor:
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
            p_top = p.gather(1, top)
            p.scatter_(1, top, 0.0)
            others = p.sum(1, keepdim=True)
            total = others + p_top
            others = others / total
            rest = torch.where(leads, -torch.log1p(-others), rest)
            p.scatter_(1, top, p_top)
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

    return rows


def _divergence(temperature: float) -> RowKernel:
    """T² KL(t ‖ p) of t = softmax(z/T), p = softmax(x/T)."""

    def rows(x: Tensor, p: Tensor, expected: float, z: Tensor) -> Tensor:
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
            values, gradient = _near_divergence(z, x, t)
            exact = ~values.isfinite()
            if exact.any():
                values[exact], gradient[exact] = _any_divergence(z[exact], x[exact])
            loss.squeeze(1)[close] = values
            if expected:
                p.movedim(1, -1)[close] = gradient.mul_(scale)
        return loss if temperature == 1 else temperature**2 * loss

    return rows


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
    series = divergence.remainder_series(str(x.dtype).removeprefix("torch."))
    f = torch.full_like(a, series[-1])
    for coefficient in series[-2::-1]:
        f.mul_(a).add_(coefficient)
    f.mul_(a).mul_(a)
    grown = torch.where(near, (t * f).sum(1, keepdim=True), math.nan)
    return torch.log1p(grown)[:, 0], t * (f - a - grown) / (1 + grown)


def _any_divergence(z: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The same of any rows."""
    loss, residuals = divergence.kl_of_logits(ops, z, x, 1)
    return loss, divergence.kl_of_logits_gradients(ops, z, x, 1, residuals, (False, True))[1]


def _kl(epsilon: float) -> RowKernel:
    """Σ t log(t/p) of probabilities, both clipped to [ε, 1]."""

    def rows(x: Tensor, p: Tensor, expected: float, t: Tensor) -> Tensor:
        x, t = x.to(p.dtype), t.to(p.dtype)
        target, t = t, t.clamp(epsilon, 1)
        ratio = t / x.clamp(epsilon, 1)
        none = None if epsilon else t == 0  # 0·log 0 = 0
        if none is not None:
            ratio.masked_fill_(none, 0.0)
        if expected:
            _clear_clipped(torch.mul(ratio, -expected, out=p), x, epsilon, 1.0)
        if none is not None:
            ratio.masked_fill_(none, 1.0)
        loss = ratio.log_().mul_(t).sum(1, keepdim=True)
        # Where the two differ by little it has no digits left; where the ratio overflows, it is not infinite.
        close = (~(loss >= 0.1 * t.sum(1, keepdim=True).clamp_min(1)) | (loss == math.inf)).squeeze(1)
        if close.any():
            t, x = (y.movedim(1, -1)[close] for y in (target, x))
            loss.squeeze(1)[close] = divergence.kl_of_probabilities(ops, t, x, 1, epsilon=epsilon)[0]
        return loss

    return rows


def _binary(label_smoothing: float, pos_weight: Any, mean: bool) -> RowKernel:
    """pos·softplus(−x) + neg·softplus(x), softplus(x) being max(x, 0) + log1p(exp −|x|).

    Without comparisons of whole blocks: torch.where takes as long as twenty multiplications.
    """

    def rows(x: Tensor, p: Tensor, expected: float, t: Tensor) -> Tensor:
        x = x.to(p.dtype)
        positive, negative = _outcomes(t.to(p.dtype), label_smoothing, pos_weight)
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

    return rows


def _binary_probabilities(label_smoothing: float, pos_weight: Any, mean: bool, epsilon: float) -> RowKernel:
    """−pos·log p − neg·log(1 − p), p clipped to [ε, 1 − ε] with ε > 0."""

    def rows(x: Tensor, p: Tensor, expected: float, t: Tensor) -> Tensor:
        x = x.to(p.dtype)
        positive, negative = _outcomes(t.to(p.dtype), label_smoothing, pos_weight)
        share = x.clamp(epsilon, 1 - epsilon)
        loss = torch.log(share).mul_(positive).addcmul_(torch.log1p(-share), negative).neg_()
        if expected:
            scale = expected / x.shape[1] if mean else expected
            torch.sub(negative.div_(1 - share), positive / share, out=p)
            _clear_clipped(p.mul_(scale), x, epsilon, 1 - epsilon)
        return loss.mean(1, keepdim=True) if mean else loss

    return rows


def _clear_clipped(gradient: Tensor, x: Tensor, low: float, high: float) -> None:
    """No gradient where x has been clipped, in place. (To look is cheap, to compare every entry is not.)"""
    if not (x.amin() >= low and x.amax() <= high):  # a NaN is nowhere
        gradient.masked_fill_((x < low) | (x > high), 0.0)


def _outcomes(t: Tensor, label_smoothing: float, pos_weight: Any) -> tuple[Tensor, Tensor]:
    """What counts for the outcome, and, in a tensor of its own, what against it."""
    negative = 1 - t
    if label_smoothing:
        t = t * (1 - label_smoothing) + label_smoothing / 2
        negative.mul_(1 - label_smoothing).add_(label_smoothing / 2)
    return t if pos_weight is None else pos_weight * t, negative


# Which row kernel computes a rule, and what it does not take.


def _refuses_weighted_smoothing(r: Request) -> str:
    both = r.options.get("class_weight") is not None and r.options.get("label_smoothing")
    return "class weights and label smoothing together" if both else ""


def _refuses_columns(r: Request) -> str:
    pos_weight = r.options.get("pos_weight")
    return "pos_weight differs by column" if isinstance(pos_weight, Tensor) and pos_weight.ndim else ""


def _refuses_float16(r: Request) -> str:
    return "gradients of float16 probabilities leave its range" if r.pred.dtype == torch.float16 else ""


def _refuses_probabilities(r: Request) -> str:
    return _refuses_columns(r) or _refuses_float16(r) or ("" if r.options["epsilon"] else "epsilon is 0")


REFUSALS: dict[str, Callable[[Request], str]] = {
    softmax.LABELS.name: _refuses_weighted_smoothing,
    divergence.PROBABILITIES.name: _refuses_float16,
    bernoulli.LOGITS.name: _refuses_columns,
    bernoulli.PROBABILITIES.name: _refuses_probabilities,
}


def _labels_of(r: Request) -> RowKernel:
    return _labels(r.options.get("label_smoothing", 0.0), r.inplace_gradient)


def _dense_of(r: Request) -> RowKernel:
    weight = r.options.get("class_weight")
    return _dense(r.options["label_smoothing"], None if weight is None else weight.reshape(-1))


def _binary_of(r: Request) -> RowKernel:
    return _binary(r.options.get("label_smoothing", 0.0), r.options.get("pos_weight"), r.axis is not None)


def _binary_probabilities_of(r: Request) -> RowKernel:
    smoothing, pos_weight = r.options.get("label_smoothing", 0.0), r.options.get("pos_weight")
    return _binary_probabilities(smoothing, pos_weight, r.axis is not None, r.options["epsilon"])


KERNELS: dict[str, Callable[[Request], RowKernel]] = {
    softmax.LABELS.name: _labels_of,
    softmax.DISTRIBUTIONS.name: _dense_of,
    divergence.LOGITS.name: lambda r: _divergence(r.options.get("temperature", 1.0)),
    divergence.PROBABILITIES.name: lambda r: _kl(r.options["epsilon"]),
    bernoulli.LOGITS.name: _binary_of,
    bernoulli.PROBABILITIES.name: _binary_probabilities_of,
}
