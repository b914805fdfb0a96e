"""Rows of what the libraries' functions give, and of the kinds 1 to 6, which people have most often."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import numpy as np

from lossbridge.tools.diagnosis.rows import numbers as n
from lossbridge.tools.diagnosis.rows.row import (
    ALPHA,
    CROSS_ENTROPY,
    DIVERGENCE,
    EPSILON,
    GAMMA,
    POSITIVE,
    SMOOTHING,
    SOFTCAP,
    TEMPERATURE,
    Z_LOSS,
    Row,
    either,
    equals,
    every,
    over,
    times,
)


def plain_labels() -> Iterator[Row]:
    """Kind 0: labels and one-hot targets."""
    shape: tuple[int, ...]
    plain = partial(Row, 0, most=0)
    for shape in ((32, 10), (5, 3), (4, 6, 5)):
        y, x = n.labels(1, *shape)
        yield plain(f"labels, logits {shape}", y, x, n.ce(x, y).mean(), CROSS_ENTROPY)
        p = n.f32(n.softmax(x))
        yield plain(f"labels, probabilities {shape}", y, p, n.nll(p, y).mean(), CROSS_ENTROPY, 5)
        one_hot = n.one_hot(y, shape[-1])
        total = n.ce(x, y).sum()
        yield plain(f"one-hot, logits, sum {shape}", one_hot, x, total, every(CROSS_ENTROPY, "sum"))
    y, x = n.images(2, 2, 3, 4, 4)
    yield plain("images, logits", y, x, n.ce(x, y, 1).mean(), CROSS_ENTROPY)
    y, x = n.labels(3, 32, 10)
    w, c = n.weights(3, 32), n.weights(4, 10)
    losses = n.ce(x, y)
    weighted = partial(Row, 0)
    by_sample, by_class = {"sample_weight": w}, {"class_weight": c}
    yield weighted("sample weights ÷ N", y, x, (w * losses).mean(), "sample.weight", 6, by_sample, 0)
    total = (w * losses).sum() / w.sum()
    yield weighted(
        "sample weights ÷ Σw",
        y,
        x,
        total,
        either("scikit", "sum of the weights", "mean_with_sample_weight"),
        6,
        by_sample,
        1,
    )
    total = (c[y] * losses).sum() / c[y].sum()
    yield weighted("class weights ÷ Σw", y, x, total, "PyTorch|sum of the weights", 6, by_class, 0)
    yield weighted("class weights ÷ N", y, x, (c[y] * losses).mean(), "class.weight", 6, by_class, 1)
    mask = np.arange(32) % 5 > 0
    yield weighted("a mask, removed", y, x, losses[mask].mean(), CROSS_ENTROPY, 6, {"mask": mask}, 1)
    ignored = np.where(mask, y, -100)
    yield weighted("−100, removed", ignored, x, losses[mask].mean(), CROSS_ENTROPY, most=0)
    counted = either("still counted", "zero", over(32))
    yield weighted("−100, counted", ignored, x, losses[mask].sum() / 32, counted, 5, most=1)
    yield weighted("smoothing .1", y, x, n.smoothed(x, y, 0.1).mean(), equals(SMOOTHING, 0.1), 5, most=1)
    yield weighted("bits", y, x, losses.mean() / math.log(2), r"bits|base 2", 5, most=1)
    yield weighted("perplexity", y, x, math.exp(losses.mean()), "perplexity|exp of", 5, most=1)
    twice = n.ce(n.f32(n.softmax(x)), y).mean()
    yield weighted("softmax twice", y, x, twice, "softmax applied twice|twice", 5, most=1)
    first = y % 10
    first[:2] = 0, 9
    yield weighted("labels from 1", first + 1, x, n.ce(x, first).mean(), "start at 1|from 1", 5, most=0)


def plain_others() -> Iterator[Row]:
    """Kind 0: outcomes and distributions."""
    shape: tuple[int, ...]
    plain = partial(Row, 0, most=0)
    for shape in ((16, 1), (8,), (32, 10)):
        t, x = n.outcomes(5, *shape)
        yield plain(f"outcomes, logits {shape}", t, x, n.bce_logits(t, x).mean(), CROSS_ENTROPY)
        p = n.f32(n.sigmoid(x))
        yield plain(f"outcomes, probabilities {shape}", t, p, n.bce(t, p).mean(), CROSS_ENTROPY, 5)
    t, x = n.outcomes(5, 16)
    total = n.bce_logits(t, x).sum()
    yield plain("outcomes, sum", t, x, total, every(CROSS_ENTROPY, "sum"))
    balanced = n.focal(t, x, 2, 0.25).mean()
    yield Row(0, "focal, α .25, γ 2", t, x, balanced, "focal", most=1)
    for shape in ((32, 10), (5, 3), (4, 6, 5)):
        t, x = n.soft(6, *shape)
        p = n.f32(n.softmax(x))
        yield plain(f"distributions, logits {shape}", t, x, n.soft_ce(x, t).mean(), CROSS_ENTROPY)
        yield plain(f"KL ÷ N {shape}", t, p, n.kl(t, p).sum(-1).mean(), DIVERGENCE)
        yield plain(f"KL ÷ N·C {shape}", t, p, n.kl(t, p).mean(), every(DIVERGENCE, r"N·C|elements|mean"), 5)
    yield plain("KL, sum", t, p, n.kl(t, p).sum(), every(DIVERGENCE, "sum"))
    yield Row(0, "KL swapped", t, p, n.kl(p, t).sum(-1).mean(), "swapped", 5, most=1)


def kind_1() -> Iterator[Row]:
    """An exact 0 off the target, which is NaN in some libraries' calls."""
    shape: tuple[int, ...]
    nan = r"^torch F\.cross_entropy\(torch\.log\(y_pred\), y_true\)|^optax .*jnp\.log\(y_pred\), y_true\)"
    nan += r"|(?:PyTorch's `cross_entropy|optax's `\w*(?:entropy|divergence)).*` of log\(y_pred\)"
    nan_of_labels = r"^optax .*softmax_cross_entropy\((?:jnp\.log\(y_pred\)|y_pred), jax\.nn\.one_hot"
    nan_of_labels += r"|^optax .*kl_divergence\(jnp\.log\(y_pred\), jax\.nn\.one_hot"
    for shape in ((5, 3), (32, 10), (4, 6, 5)):
        y, x = n.labels(11, *shape)
        one_hot = n.one_hot(y, shape[-1])
        p = n.with_zeros(n.softmax(x), one_hot)
        value = n.nll(p, y).mean()
        yield Row(1, f"one-hot, zeros {shape}", one_hot, p, value, CROSS_ENTROPY, most=0, refused=nan)
        yield Row(1, f"labels, zeros {shape}", y, p, value, CROSS_ENTROPY, 5, most=0, refused=nan_of_labels)
        with np.errstate(divide="ignore"):
            logits = np.log(p) + 1
        refused = r"^torch F\.cross_entropy\(y_pred(?:\.\S+)?, y_true(?:\.reshape\S+)?\)$"
        yield Row(1, f"one-hot, −∞ {shape}", one_hot, logits, value, CROSS_ENTROPY, most=0, refused=refused)
        yield Row(1, f"labels, −∞ {shape}", y, logits, value, CROSS_ENTROPY, most=0, refused=nan_of_labels)
        yield Row(1, f"NaN {shape}", one_hot, p, math.nan, "PyTorch|optax", most=0, refused="left undefined")
    for shape in ((5, 3), (32, 10)):
        t, x = n.soft(12, *shape)
        keep = np.arange(shape[-1]) % 2 == 0
        t = n.with_zeros(t, np.broadcast_to(keep, shape))
        p = n.with_zeros(n.softmax(x), t > 0)
        refused = r"^torch F\.kl_div\(torch\.log\(y_pred\)|^optax .*jnp\.log\(y_pred\), y_true"
        refused += r"|(?:PyTorch|optax)'s `.*` of log\(y_pred\)"
        yield Row(1, f"KL, zeros {shape}", t, p, n.kl(t, p).sum(-1).mean(), DIVERGENCE, most=0, refused=refused)


def kind_2() -> Iterator[Row]:
    """Names of functions that give another number, or refuse the arrays."""
    shape: tuple[int, ...]
    for shape in ((5, 3), (32, 10), (8, 4)):
        t, x = n.outcomes(21, *shape)
        summed = either("optax", r"sum\(-1\)", "summed over", "number of samples", over(shape[0]))
        value = n.bce_logits(t, x).sum(-1).mean()
        yield Row(2, f"outcomes {shape}, Σ over classes", t, x, value, summed, most=1, refused="scikit-learn|^sklearn")
    for count in (6, 16):
        rng = np.random.default_rng(22)
        t, p, w = (n.f32(rng.uniform(0.1, 0.9, count)) for _ in range(3))
        value = (w * n.bce(t, p)).sum() / w.sum()
        says, refused = "weight", "scikit-learn|^sklearn"
        options = {"sample_weight": w}
        yield Row(2, f"soft outcomes, Σw ({count},)", t, p, value, says, 6, options, 1, refused, called=r"\w")
    for count, dtype in ((8, "float32"), (16, "float64"), (30, "float32")):
        t, x = n.outcomes(23, count)
        t, p, w = t.astype(dtype), n.sigmoid(x).astype(dtype), n.weights(23, count)
        options = {"sample_weight": w}
        one = n.bce(t, p).mean() * w.mean(dtype=np.float64)
        says = either("Keras", "mean (?:of the )?weight", "one sample")
        yield Row(2, f"Keras, {dtype} ({count},), weights", t, p, one, says, 6, options, 1)
        refused = r"Keras' `BinaryCrossentropy\(sample_weight=…\)`|lossbridge's `binary_crossentropy"
        refused += r"|^lossbridge lb\.binary_crossentropy|^keras .*\(y_true, y_pred, sample_weight"
        value = (w * n.bce(t, p)).mean()
        yield Row(2, f"weights ÷ N, {dtype} ({count},)", t, p, value, "weight", 6, options, 1, refused)
    for shape in ((5, 3), (32, 10), (8, 4)):
        y, x = n.labels(24, *shape)
        one_hot = np.ascontiguousarray(n.one_hot(y, shape[-1]).T)
        axis = r"axis 0|transpos|first axis"
        yield Row(2, f"transposed {shape}", one_hot, x.T.copy(), n.ce(x, y).mean(), axis, 6, most=1)
    for shape in ((3, 4, 5, 6), (2, 3, 4, 4)):
        y, x = n.images(25, *shape)
        says = either("axis 0", "batch", "per image", over(shape[0]))
        yield Row(2, f"pixels summed {shape}", y, x, n.ce(x, y, 1).sum() / shape[0], says, 6, most=1, refused="kl_div")


_NO_FOCAL = r"focal.*(?:γ|gamma) ?= ?0|focal\w*\(gamma=0"


def kind_3() -> Iterator[Row]:
    """A constant factor: accumulation, world sizes, counts of the batch."""
    shape: tuple[int, ...]
    row = partial(Row, 3, most=1, refused=_NO_FOCAL)
    for seed, (shape, factor, digits) in enumerate(
        (
            ((32, 10), 2, 6), ((32, 10), 4, 5), ((5, 3), 3, 6), ((4, 6, 5), 8, 6), ((32, 10), 16, 5),
            ((32, 10), 1024, 6), ((30, 7), 65536, 6), ((5, 3), 6, 5),
        )
    ):  # fmt: skip
        y, x = n.labels(30 + seed, *shape)
        says = either(times(factor), over(y.size / factor))
        yield row(f"mean × {factor} {shape}", y, x, factor * n.ce(x, y).mean(), says, digits)
    for seed, (shape, divisor, digits) in enumerate(
        (((32, 10), 4, 6), ((5, 3), 2, 6), ((4, 6, 5), 8, 5), ((30, 7), 3, 5))
    ):
        y, x = n.labels(40 + seed, *shape)
        p = n.f32(n.softmax(x))
        says = either(over(divisor), times(1 / divisor), over(divisor * y.size))
        yield row(f"mean ÷ {divisor} {shape}", y, p, n.nll(p, y).mean() / divisor, says, digits)
    for shape in ((32, 10), (8, 4)):
        y, x = n.labels(45, *shape)
        losses, count = n.ce(x, y), shape[0]
        yield row(
            f"Σ/(N − 1) {shape}", y, x, losses.sum() / (count - 1), either(r"N ?[−-] ?1", "one less", over(count - 1))
        )
        squared = either("N²", r"N\^2", r"N ?[·*] ?N", "twice by", over(count**2), over(count), times(1 / count))
        yield row(f"Σ/N² {shape}", y, x, losses.sum() / count**2, squared)
        deviance = either("deviance", times(2), times(2 * count))
        yield row(f"2Σ {shape}", y, x, 2 * losses.sum(), deviance, 5)
    t, x = n.outcomes(46, 21)
    yield row("outcomes, Σ/(N − 1)", t, x, n.bce_logits(t, x).sum() / 20, either(r"N ?[−-] ?1", "one less", over(20)))
    yield row("outcomes × 2", t, n.f32(n.sigmoid(x)), 2 * n.bce(t, n.f32(n.sigmoid(x))).mean(), times(2))
    yield row("scalar weights=0.4", t, x, 0.4 * n.bce_logits(t, x).mean(), either(times(0.4), equals("weights?", 0.4)))
    for shape in ((5, 3), (32, 10)):
        t, x = n.outcomes(55, *shape)
        positives = int(t.sum())
        says = either("positive", over(positives))
        yield row(f"BCE ÷ positives {shape}", t, x, n.bce_logits(t, x).sum() / positives, says)
        yield row(f"focal ÷ positives {shape}", t, x, n.focal(t, x, 2, 0.25).sum() / positives, says, refused="")
    y, x = n.labels(48, 4, 6, 5)
    yield row(
        "sequences, Σ ÷ batch", y, x, n.ce(x, y).sum() / 4, either("axis 0", "batch", "sequences", over(4), times(6))
    )
    y, x = n.images(49, 2, 3, 4, 5)
    pixels = either("pixels", "positions", over(20), times(2))
    yield row("images, Σ ÷ pixels", y, x, n.ce(x, y, 1).sum() / 20, pixels)
    t, x = n.soft(50, 32, 10)
    p = n.f32(n.softmax(x))
    yield row("KL × T² = 9", t, p, 9 * n.kl(t, p).sum(-1).mean(), either(times(9), "T²"))
    yield row("KL ÷ 4", t, p, n.kl(t, p).sum(-1).mean() / 4, either(over(4), times(0.25), over(128)), 5)
    yield row("soft × 8", t, x, 8 * n.soft_ce(x, t).mean(), either(times(8), over(4)), 5)


def kind_4() -> Iterator[Row]:
    """A coefficient that is in no list, or two."""
    shape: tuple[int, ...]
    shapes = ((32, 10), (5, 3), (4, 6, 5), (30, 7))
    row = partial(Row, 4, most=1)
    for i, temperature in enumerate((1.5, 2, 2.5, 3, 4, 5, 8, 20, 0.7)):
        y, x = n.labels(60 + i, *shapes[i % 4], scale=3)
        value = n.ce(x / np.float64(temperature), y).mean()
        yield row(f"T = {temperature}", y, x, value, equals(TEMPERATURE, temperature), 5 + i % 2)
    for i, s in enumerate((0.02, 0.25, 0.3, 0.15)):
        y, x = n.labels(70 + i, *shapes[i])
        yield row(f"s = {s}", y, x, n.smoothed(x, y, s).mean(), equals(SMOOTHING, s), 6 - i % 2)
    y, x = n.labels(74, 32, 10)
    says = every(equals(SMOOTHING, 0.12), r"K ?[−-] ?1|wrong")
    yield row("s = 0.12, wrong classes", y, x, n.smoothed_wrong(x, y, 0.12).mean(), says)
    t, x = n.outcomes(75, 16, 1)
    yield row("outcomes, s = 0.3", t, x, n.bce_logits(t * 0.7 + 0.15, x).mean(), equals(SMOOTHING, 0.3))
    for i, (weight, shape) in enumerate(((1.5, (32,)), (3, (16, 1)), (7, (8,)), (10, (32, 10)))):
        t, x = n.outcomes(76 + i, *shape)
        yield row(
            f"pos_weight = {weight}", t, x, n.bce_logits(t, x, weight).mean(), equals(POSITIVE, weight), 6 - i % 2
        )
    for i, (gamma, shape) in enumerate(((0.5, (32,)), (1.5, (16, 1)), (3, (32, 10)), (4, (8,)))):
        t, x = n.outcomes(80 + i, *shape)
        yield row(f"γ = {gamma}", t, x, n.focal(t, x, gamma).mean(), every("focal", equals(GAMMA, gamma)), 6 - i % 2)
    for i, (alpha, shape) in enumerate(((0.3, (32,)), (0.6, (16, 1)), (0.9, (32, 10)))):
        t, x = n.outcomes(84 + i, *shape)
        says = every("focal", equals(ALPHA, alpha))
        yield row(f"α = {alpha}, γ = 2", t, x, n.focal(t, x, 2, alpha).mean(), says, 6 - i % 2)
    y, x = n.labels(88, 32, 10)
    p = n.with_zeros(n.softmax(x), np.zeros((32, 10)))
    of_label = n.of_label(np.float64(p), y)
    for epsilon in (1e-2, 3e-5, 1e-14):
        value = -np.log(np.clip(of_label, epsilon, 1 - epsilon)).mean()
        yield row(f"clipped at {epsilon}", y, p, value, equals(EPSILON, epsilon))
    for epsilon in (1e-3, 1e-13, 1e-16):
        yield row(f"log(p + {epsilon})", y, p, -np.log(of_label + epsilon).mean(), equals(EPSILON, epsilon), 5)
    softened = n.ce(n.softmax(x) / 0.1, y).mean()
    yield Row(4, "softmax(softmax(x)/0.1)", y, x, softened, every("twice|softmax", equals(TEMPERATURE, 0.1)))
    for i, (temperature, s) in enumerate(((2, 0.1), (4, 0.05))):
        y, x = n.labels(330 + i, *shapes[i], scale=3)
        says = every(equals(TEMPERATURE, temperature), equals(SMOOTHING, s))
        yield row(f"T = {temperature}, s = {s}", y, x, n.smoothed(x / temperature, y, s).mean(), says, 7, most=2)
    t, x = n.outcomes(332, 32)
    says = every("focal", equals(GAMMA, 1.5), equals(ALPHA, 0.6))
    yield row("γ = 1.5, α = 0.6", t, x, n.focal(t, x, 1.5, 0.6).mean(), says, 7, most=2)


def kind_4_of_logits() -> Iterator[Row]:
    """Scales and caps of logits, and the z-loss."""
    row = partial(Row, 4, most=1)
    for i, scale in enumerate((3, 64, 30)):
        y, x = n.labels(340 + i, 32, 10, scale=1 if scale < 10 else 0.1)
        yield row(f"logits × {scale}", y, x, n.ce(x * np.float64(scale), y).mean(), rf"\bT = .* = 1/{scale}\b")
    shape: tuple[int, ...]
    for i, (cap, shape) in enumerate(((30, (32, 10)), (15, (30, 50)), (50, (4, 6, 5)))):
        y, x = n.labels(343 + i, *shape, scale=4)
        yield row(f"capped at {cap}", y, x, n.ce(n.capped(x, cap), y).mean(), equals(SOFTCAP, cap))
    for i, (zeta, shape) in enumerate(((1e-4, (32, 10)), (1e-3, (5, 3)), (1e-4, (2, 20, 500)))):
        y, x = n.labels(346 + i, *shape)
        yield row(f"z-loss {zeta}, {shape}", y, x, (n.ce(x, y) + n.z_loss(x, zeta)).mean(), equals(Z_LOSS, zeta))
    t, x = n.soft(349, 32, 10)
    losses = n.soft_ce(n.capped(x, 20), t) + n.z_loss(n.capped(x, 20), 1e-3)
    says = every(equals(SOFTCAP, 20), equals(Z_LOSS, 1e-3))
    yield row("capped at 20, z-loss 0.001", t, x, losses.mean(), says, 7, most=2)


def kind_5() -> Iterator[Row]:
    """The package's own losses, with their options."""
    shape: tuple[int, ...]
    rng = np.random.default_rng(90)
    for i, (temperature, shape) in enumerate(((2.5, (32, 10)), (4, (5, 3)), (3, (4, 6, 5)))):
        teacher, student = (n.f32(2 * rng.normal(size=shape)) for _ in range(2))
        losses = n.distilled(teacher, student, temperature)
        squared = losses * temperature**2
        says = equals(TEMPERATURE, temperature)
        row = partial(Row, 5, most=3)
        yield row(f"distillation, T = {temperature}, T²", teacher, student, squared.mean(), says)
        yield row(f"distillation, T = {temperature}", teacher, student, losses.mean(), says, 6 - i % 2)
        yield row(f"distillation ÷ N·C, T = {temperature}", teacher, student, squared.mean() / shape[-1], says)
        swapped = temperature**2 * n.distilled(student, teacher, temperature).mean()
        yield row(f"student ‖ teacher, T = {temperature}", teacher, student, swapped, every("swapped", says))
    t, x = n.outcomes(91, 32, 5)
    yield Row(5, "binary_crossentropy(pos_weight=2.2)", t, x, n.bce_logits(t, x, 2.2).mean(), equals(POSITIVE, 2.2))
    yield Row(5, "binary_focal(gamma=2.5)", t, x, n.focal(t, x, 2.5).mean(), equals(GAMMA, 2.5))
    both = every(equals(GAMMA, 1.5), equals(ALPHA, 0.6))
    yield Row(5, "binary_focal(gamma=1.5, alpha=.6)", t, x, n.focal(t, x, 1.5, 0.6).mean(), both, most=3)
    y, x = n.labels(92, 32, 10)
    p = n.softmax(x)
    focal = 0.25 * ((1 - n.of_label(p, y)) ** 3 * n.ce(x, y)).mean()
    one_hot = n.one_hot(y, 10)
    yield Row(5, "categorical_focal(gamma=3)", one_hot, x, focal, every("focal", equals(GAMMA, 3)))
    for seed in (93, 94):
        y, x = n.labels(seed, 3, 8, 11)
        y[0, 6:] = -100
        losses = n.ce(x[:, :-1], np.maximum(y[:, 1:], 0))
        value = losses[y[:, 1:] >= 0].mean()
        yield Row(5, f"causal_lm_loss {seed}", y, x, value, r"shift|t \+ 1|next|causal", 6 - seed % 2)


def kind_6() -> Iterator[Row]:
    """Labels along time, and labels that wrap round."""
    shape: tuple[int, ...]
    shifted = r"shift|t \+ 1|next|later|earlier|previous"
    for shape in ((32, 10), (5, 3)):
        y, x = n.labels(100, *shape)
        losses = n.ce(x[:-1], y[1:])
        yield Row(6, f"next label {shape}", y, x, losses.mean(), shifted)
        yield Row(6, f"next label ÷ all {shape}", y, x, losses.sum() / shape[0], shifted)
        yield Row(6, f"previous label {shape}", y, x, n.ce(x[1:], y[:-1]).mean(), shifted, 5)
    for shape in ((4, 6, 5), (2, 9, 7)):
        y, x = n.labels(101, *shape)
        losses = n.ce(x[:, :-1], y[:, 1:])
        yield Row(6, f"next label {shape}", y, x, losses.mean(), shifted)
        yield Row(6, f"next label ÷ all {shape}", y, x, losses.sum() / y.size, shifted, 5)
        padded = y.copy()
        padded[0, 4:] = -100
        value = losses[padded[:, 1:] >= 0].mean()
        yield Row(6, f"next label, −100 {shape}", padded, x, value, shifted)
    for shape in ((5, 3), (32, 10)):
        y, x = n.labels(102, *shape)
        y[-2:] = shape[-1] - 1
        wrapped = np.where(np.arange(shape[0]) < shape[0] - 2, y, -1)
        says = r"wrap|last class|from the end"
        yield Row(6, f"label −1 is the last class {shape}", wrapped, x, n.ce(x, y).mean(), says)


def rows() -> Iterator[Row]:
    for kind in (plain_labels, plain_others, kind_1, kind_2, kind_3, kind_4, kind_4_of_logits, kind_5, kind_6):
        yield from kind()
