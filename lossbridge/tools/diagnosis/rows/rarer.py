"""Rows of the kinds 7 to 17."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from lossbridge.tools.diagnosis.rows import numbers as n
from lossbridge.tools.diagnosis.rows.numbers import Array
from lossbridge.tools.diagnosis.rows.row import (
    CROSS_ENTROPY,
    EPSILON,
    MIXTURE,
    TOTAL_VARIATION,
    Row,
    either,
    equals,
    every,
    larger_by,
    number,
    printed,
)


def kind_7() -> Iterator[Row]:
    """Which rows count."""
    shape: tuple[int, ...]
    row = partial(Row, 7)
    for seed, shape, left_out in ((110, (32, 10), 0), (111, (5, 3), 0), (112, (4, 6, 5), 0), (113, (32, 10), 4)):
        y, x = n.labels(seed, *shape)
        y.flat[0] = left_out
        says = rf"(?:class|label|index)\W*(?:of )?{left_out}\b"
        losses = n.ce(x, y)
        yield row(f"class {left_out} left out {shape}", y, x, losses[y != left_out].mean(), says)
    zeroed = np.where(y == left_out, 0, losses).mean()
    yield row(f"class {left_out} costs 0, ÷ all", y, x, zeroed, says)
    yield row(f"class {left_out} alone", y, x, losses[y == left_out].mean(), says)
    for seed, shape, count in ((114, (30, 7), 24), (115, (32, 10), 28)):
        y, x = n.labels(seed, *shape)
        losses, end = n.ce(x, y), shape[0] - count
        head = rf"first {count}|\[:{count}\]|last {end}|{count} of|\[:-{end}\]"
        yield row(f"the first {count} of {shape[0]}", y, x, losses[:count].mean(), head)
        tail = rf"last {count}|\[{end}:\]|first {end}|{count} of|\[-{count}:\]"
        yield row(f"the last {count} of {shape[0]}", y, x, losses[end:].mean(), tail)
    for seed, shape in ((116, (32, 10)), (117, (21,))):
        t, x = n.outcomes(seed, *shape)
        losses = n.bce_logits(t, x)
        yield row(f"positives alone {shape}", t, x, losses[t == 1].mean(), "positive|outcomes? 1")
        yield row(f"negatives alone {shape}", t, x, losses[t == 0].mean(), "negative|outcomes? 0|positives left out", 5)


def kind_8() -> Iterator[Row]:
    """Means in two steps."""
    shape: tuple[int, ...]
    row = partial(Row, 8)
    for seed, shape in ((120, (32, 10)), (121, (8, 3))):
        y, x = n.labels(seed, *shape)
        losses = n.ce(x, y)
        value = np.mean([losses[y == c].mean() for c in np.unique(y)])
        says = r"(?:each|per|every|a|by|of the|over the) class|classes' means|class means|balanced|macro"
        yield row(f"mean of the classes' means {shape}", y, x, value, says)
    t, x = n.outcomes(122, 21)
    losses = n.bce_logits(t, x)
    value = (losses[t == 1].mean() + losses[t == 0].mean()) / 2
    yield row("mean of the means of 0 and 1", t, x, value, rf"{says}|outcomes' means|(?:each|per|a) outcome")
    sequence = r"axis (?:1|0|-1)|sequence|(?:each|per|every) (?:row|sample)|first,? then|means"
    for seed, shape in ((123, (4, 6, 5)), (124, (2, 9, 7))):
        y, x = n.labels(seed, *shape)
        lengths = np.arange(shape[0]) + 3
        mask = np.arange(shape[1]) < lengths[:, None]
        value = ((n.ce(x, y) * mask).sum(1) / lengths).mean()
        yield row(f"mean a sequence, mask {shape}", y, x, value, sequence, options={"mask": mask})
        ignored = np.where(mask, y, -100)
        yield row(f"mean a sequence, −100 {shape}", ignored, x, value, sequence)
    y, x = n.images(125, 2, 3, 4, 4)
    losses = n.ce(x, y, 1)
    y[0, :2] = -1
    value = np.mean([losses[i][y[i] >= 0].mean() for i in range(2)])
    yield row("mean an image, −1", y, x, value, f"{sequence}|image")
    y, x = n.labels(126, 32, 10)
    losses = n.ce(x, y)
    y[:5] = y[9] = -100
    value = np.mean([losses[i : i + 8][y[i : i + 8] >= 0].mean() for i in range(0, 32, 8)])
    says = r"batch(?:es)? of 8|groups? of 8|\b8 rows|4 (?:groups|parts|micro-?batches|batches)"
    yield row("mean of micro-batches of 8, −100", y, x, value, says)


def kind_9() -> Iterator[Row]:
    """Weights that follow from the labels; two weights of outcomes."""
    shape: tuple[int, ...]
    row = partial(Row, 9, most=3)
    balanced = r"balanced|(?:each|per|every|a|by|over the) class|inverse"
    balanced += r"|1/n|frequenc|counts?\b|mean of the classes|class(?:es'?)? means|means? (?:of|per)"
    root = r"√|sqrt|root|\^-?\(?(?:0\.5|1/2)|\*\* ?-?0\.5"
    for seed, shape in ((130, (32, 10)), (131, (12, 3))):
        y, x = n.labels(seed, *shape)
        count = np.bincount(y, minlength=shape[1])[y]
        losses, size, classes = n.ce(x, y), shape[0], shape[1]
        weight = size / (classes * count)
        yield row(f"balanced ÷ N {shape}", y, x, (weight * losses).mean(), balanced)
        yield row(f"1/n ÷ N {shape}", y, x, (losses / count).mean(), balanced, 5)
        rooted = (losses / np.sqrt(count)).sum() / (1 / np.sqrt(count)).sum()
        yield row(f"√(1/n) ÷ Σw {shape}", y, x, rooted, root)
        yield row(f"√(1/n) ÷ N {shape}", y, x, (losses / np.sqrt(count)).mean(), root)
    t, x = n.outcomes(132, 30)
    p = n.f32(n.sigmoid(x))
    losses = n.bce(t, p)
    count = np.where(t == 1, t.sum(), 30 - t.sum())
    yield row("balanced outcomes", t, p, (30 / (2 * count) * losses).mean(), balanced)
    for pair, shape in (((1, 5), (32,)), ((0.4, 2.2), (16, 1)), ((1, 3), (8,))):
        t, x = n.outcomes(133, *shape)
        p = n.f32(n.sigmoid(x))
        weight = np.where(t == 1, pair[1], pair[0])
        losses = weight * n.bce(t, p)
        options = {"class_weight": list(pair)}
        yield row(f"class_weight={list(pair)} {shape}", t, p, losses.mean(), "class.weight", 6, options, most=1)
        value = losses.sum() / weight.sum()
        yield row(f"class_weight={list(pair)} ÷ Σw {shape}", t, p, value, "class.weight|sum of the weights", 5, options)


def kind_10() -> Iterator[Row]:
    """An ε of each logarithm."""
    row = partial(Row, 10)
    rng = np.random.default_rng(140)
    for count in (3, 12):
        t = n.f32(np.arange(count) % 3 == 2)
        p = n.f32(rng.uniform(0.1, 0.9, count))
        p[0], p[-1] = 1, 0
        of_one, of_zero = np.float64(p), 1 - np.float64(p)
        for floor, name in ((1e-15, "LightGBM"), (1e-16, "XGBoost"), (1e-12, "")):
            terms = np.maximum(np.where(t == 1, of_one, of_zero), floor)
            says = either(equals(EPSILON, floor), *([name] if name else []))
            yield row(f"each argument ≥ {floor} ({count},)", t, p, -np.log(terms).mean(), says, most=1)
        for added in (1e-4, 1e-12, 1e-20):
            value = -np.log(np.where(t == 1, of_one, of_zero) + added).mean()
            yield row(f"each argument + {added} ({count},)", t, p, value, equals(EPSILON, added), 5, most=1)
    y, x = n.labels(141, 32, 10)
    p = n.with_zeros(n.softmax(x), np.zeros((32, 10)))
    of_label = n.of_label(np.float64(p), y)
    for added in (1e-16, 1e-15, 1e-9, 1e-20):
        value = -np.log(of_label + added).mean()
        # The p that matter are 0, so that scikit-learn's former clipping gave the same.
        says = either(equals(EPSILON, added), *(["before_1_5"] if added == 1e-15 else []))
        yield row(f"log(p + {added})", y, p, value, says, 6, most=1)
    for low in (1e-9, 1e-5):
        value = -np.log(np.maximum(of_label, low)).mean()
        yield row(f"clipped at {low}", y, p, value, equals(EPSILON, low), 5, most=1)
    floor = np.minimum(-np.log(np.maximum(of_label, 1e-300)), 64).mean()
    yield row("log p ≥ −64", y, p, floor, r"[−-] ?64\b|Paddle", most=1)


def kind_11() -> Iterator[Row]:
    """The event, and the order of the classes."""
    shape: tuple[int, ...]
    row = partial(Row, 11)
    reversed_ = r"1 ?[−-] ?(?:t|y_true|y_pred|p)\b|revers|complement|exchang|flipped|inverted|event"
    for seed, shape in ((150, (32,)), (151, (16, 1)), (152, (5, 3))):
        t, x = n.outcomes(seed, *shape)
        p = n.f32(n.sigmoid(x))
        yield row(f"1 − t {shape}", t, p, n.bce(1 - t, p).mean(), reversed_)
    exchanged = r"exchang|swap|permut|order|reorder|columns"
    for seed, shape, order in (
        (153, (5, 3), (1, 0, 2)),
        (154, (32, 10), (0, 1, 7, 3, 4, 5, 6, 2, 8, 9)),
        (155, (32, 4), (1, 2, 3, 0)),
        (156, (30, 5), (4, 3, 2, 1, 0)),
    ):
        y, x = n.labels(seed, *shape)
        p = n.f32(n.softmax(x))
        yield row(
            f"classes in the order {order}",
            y,
            p,
            n.nll(p[:, order], y).mean(),
            exchanged,
            refused="y_pred read as targets",
        )
    y, x = n.labels(157, 40, 12)
    as_strings = np.argsort(np.argsort([str(c) for c in range(12)]))
    says = r"string|alphabet|lexic|sorted as"
    yield row("labels sorted as strings", y, x, n.ce(x, as_strings[y]).mean(), says)


def kind_12() -> Iterator[Row]:
    """Logits behind a saturated output: nothing can compute the number, but it can be said."""
    row = partial(Row, 12, fits=False)
    says = r"saturat|logits behind|behind (?:it|the output|them)|_keras_logits|takes the logits"
    for seed, logit in ((160, 40.0), (161, 30.0)):
        t, x = n.outcomes(seed, 8)
        t[2], x[2] = 0, logit
        yield row(f"sigmoid of {logit}", t, n.f32(n.sigmoid(x)), n.bce_logits(t, x).mean(), says)
    for seed, logit in ((162, 150.0), (163, 120.0)):
        y, x = n.labels(seed, 6, 3)
        y[0], x[0, 1] = 0, logit
        yield row(f"softmax of {logit}", y, n.f32(n.softmax(x)), n.ce(x, y).mean(), says)


def kind_13() -> Iterator[Row]:
    """SciPy as it is used: two vectors, counts, classes along axis 0."""
    rng = np.random.default_rng(170)

    def entropy(a: Array, b: Array) -> Array:
        """scipy.stats.entropy: both normalised along axis 0."""
        a, b = (np.asarray(v, np.float64) for v in (a, b))
        return n.kl(a / a.sum(0), b / b.sum(0)).sum(0)

    row = partial(Row, 13, most=1)
    scipys = r"SciPy's `entropy"
    called = r"^scipy scipy\.stats\.entropy"
    lesser = "KLDivergence.*renormalised"
    for size in (3, 6):
        a, b = rng.dirichlet(np.ones(size)), rng.uniform(0.1, 0.9, size)
        yield row(
            f"entropy(pk, qk), qk not normalised ({size},)", a, b, entropy(a, b), scipys, called=called, lesser=lesser
        )
        b = b / b.sum()
        yield row(f"entropy(pk, qk) ({size},)", a, b, entropy(a, b), r"SciPy|KL|entropy|rel_entr", 5)
        bits = entropy(a, b) / np.log(2)
        yield row(f"entropy(pk, qk, base=2) ({size},)", a, b, bits, r"base 2|bits", 5)
        counts, other = rng.integers(1, 20, size), rng.integers(1, 20, size)
        says = r"counts?\b|SciPy's `entropy|renormalised|normalis"
        yield row(f"entropy of counts ({size},)", counts, other, entropy(counts, other), says)
    counts, other = rng.integers(1, 20, (8, 4)), rng.integers(1, 20, (8, 4))
    yield row("entropy of rows of counts", counts, other, entropy(counts.T, other.T).mean(), says, most=2)


def kind_14() -> Iterator[Row]:
    """What has a call must print one."""
    shape: tuple[int, ...]
    row = partial(Row, 14)
    for seed, shape in ((180, (5, 3)), (181, (32, 10))):
        y, x = n.labels(seed, *shape)
        mask = np.arange(shape[0]) % 4 != 2
        options = {"mask": mask}
        value = n.ce(x, y)[mask].mean()
        yield row(f"mask {shape}", y, x, value, CROSS_ENTROPY, 6, options, 1, called="mask")
        one_hot = n.one_hot(y, shape[1])
        yield row(f"mask, one-hot {shape}", one_hot, x, value, CROSS_ENTROPY, 5, options, 1, called="mask")
    t, x = n.outcomes(182, 16)
    mask = np.arange(16) % 5 != 1
    value = n.bce_logits(t, x)[mask].mean()
    yield row("mask, outcomes", t, x, value, CROSS_ENTROPY, 6, {"mask": mask}, 1, called="mask")
    y, x = n.labels(183, 32, 10)
    p = n.with_zeros(n.softmax(x), np.zeros((32, 10)))
    value = -np.log(n.of_label(np.float64(p), y) + 1e-9).mean()
    yield row("log(p + 1e-9)", y, p, value, equals(EPSILON, 1e-9), most=1, called="1e-0?9")
    one_hot = n.one_hot(y, 10).T.copy()
    axis_0 = r"axis=0|dim=0|, 0\)|\.T\b|axes|transpose"
    yield row(
        "classes along axis 0", one_hot, x.T.copy(), n.ce(x, y).mean(), "axis 0|transpos", 6, most=1, called=axis_0
    )
    t, x = n.outcomes(184, 16)
    w = n.weights(184, 16)
    value = (w * n.bce_logits(t, x)).sum() / w.sum()
    yield row("weights of (N,)", t, x, value, "weight", 6, {"sample_weight": w}, 1, called="weight")


def kind_15() -> Iterator[Row]:
    """Numbers that `F.cross_entropy` of PyTorch 2.13 gave on a CPU, in 16 bits, for the logits of a seed."""
    for half, measured in (
        ("bfloat16", {2: "3.7656", 3: "3.3281", 4: "3.5781", 5: "3.7344", 9: "3.6406", 11: "3.4531"}),
        ("float16", {2: "3.7793", 5: "3.7207", 10: "2.9824"}),
    ):
        for seed, text in measured.items():
            rng = np.random.default_rng(seed)
            x = n.f32(2 * rng.normal(size=(32, 10)))
            y = rng.integers(0, 10, 32)
            says = r"bfloat16|bf16" if half == "bfloat16" else r"(?<!b)float16"
            yield Row(15, f"{half}, seed {seed}", y, x, float(text), says, 5, quoted=text)


def kind_16() -> Iterator[Row]:
    """Numbers that no convention gives: what is nearest must not mislead, and is compared with the plain loss."""
    shape: tuple[int, ...]
    for seed, shape, ratio, digits in (
        (190, (32, 10), 1.2347, 6), (191, (5, 3), 0.8611, 6), (192, (4, 6, 5), 1.7353, 5),
        (193, (32, 10), 0.5873, 5), (194, (30, 7), 2.3719, 6),
    ):  # fmt: skip
        y, x = n.labels(seed, *shape)
        plain = n.ce(x, y).mean()
        rounded = number(float(f"{ratio:.3g}")).removesuffix(r"(?![\d]|\.\d)")
        difference = first_digits(abs(ratio - 1) * plain)
        says = every("nothing fits", either(rounded, difference))
        yield Row(16, f"× {ratio} {shape}", y, x, ratio * plain, says, digits, fits=False, refused=", but ")


def first_digits(value: float) -> str:
    """The first three digits of a number."""
    return printed(value, 6)[:-3].replace(".", r"\.")


def kind_17() -> Iterator[Row]:
    """Quantities near by."""
    shape: tuple[int, ...]
    row = partial(Row, 17)
    for seed, shape, s in ((200, (5, 3), 0.1), (201, (32, 10), 0.2)):
        y, x = n.labels(seed, *shape)
        classes = shape[1]
        targets = n.one_hot(y, classes) * np.float64(1 - s / classes) + s / classes
        says = every("smooth|s/K", equals(r"\bs", s))
        yield row(f"t(1 − s/K) + s/K, s = {s}", y, x, n.soft_ce(x, targets).mean(), says)
    for seed, penalty in ((202, 0.05), (203, 0.5)):
        y, x = n.labels(seed, 32, 10)
        y2, x2 = n.labels(seed + 10, 24, 10)
        options = {"more": [(y2, x2, printed(n.ce(x2, y2).mean() + penalty, 6))]}
        says = larger_by(penalty)
        yield row(f"+ {penalty} on two batches", y, x, n.ce(x, y).mean() + penalty, says, 6, options, fits=False)
    for seed, shape in ((204, (16, 1)), (205, (8,))):
        t, x = n.outcomes(seed, *shape)
        p = n.f32(n.sigmoid(x))
        yield row(f"Brier {shape}", t, p, ((np.float64(p) - t) ** 2).mean(), "brier|square", 6 - seed % 2)
    t, x = n.soft(206, 32, 10)
    p = n.f32(n.softmax(x))
    squares = (np.float64(p) - t) ** 2
    yield row("Brier of distributions ÷ N", t, p, squares.sum(-1).mean(), "brier|square")
    yield row("mean squared error", t, p, squares.mean(), "brier|square", 5)
    for seed, shape in ((207, (5, 3)), (208, (32, 10))):
        t, x = n.soft(seed, *shape)
        p = n.f32(n.softmax(x))
        middle = (np.float64(t) + p) / 2
        value = (n.kl(t, middle) + n.kl(p, middle)).sum(-1).mean() / 2
        yield row(f"Jensen–Shannon {shape}", t, p, value, "jensen|JS")
    yield from _mixtures()


def _mixtures() -> Iterator[Row]:
    """Of probabilities, and of a teacher's and a student's logits; a sum of all positions divided by the sequences."""
    shape: tuple[int, ...]
    row = partial(Row, 17)
    for seed, beta, shape in ((209, 0.1, (5, 3)), (210, 0.3, (32, 10)), (211, 0.9, (4, 6, 5))):
        teacher, student = n.soft(seed, *shape)[1], n.labels(seed + 10, *shape)[1]
        t, p = n.f32(n.softmax(teacher)), n.f32(n.softmax(student))
        says = every(MIXTURE, equals("β", beta))
        losses = n.mixed(n.softmax(teacher), n.softmax(student), beta)
        yield row(f"Jensen–Shannon of probabilities, β = {beta}", t, p, n.mixed(t, p, beta).mean(), says)
        yield row(f"Jensen–Shannon of logits, β = {beta}", teacher, student, losses.mean(), says)
        scaled = every(says, r"scale|β \(1 − β\)")
        yield row(f"÷ β (1 − β), β = {beta}", teacher, student, losses.mean() / (beta * (1 - beta)), scaled)
        yield row(f"total variation {shape}", t, p, np.abs(t - np.float64(p)).sum(-1).mean() / 2, TOTAL_VARIATION, 5)
    yield row("Jensen–Shannon ÷ sequences, β = 0.9", teacher, student, losses.sum() / 4, says)


def rows() -> Iterator[Row]:
    for kind in (kind_7, kind_8, kind_9, kind_10, kind_11, kind_12, kind_13, kind_14, kind_15, kind_16, kind_17):
        yield from kind()
