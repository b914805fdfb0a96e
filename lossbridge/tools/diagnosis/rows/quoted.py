"""The examples of the specification, with the numbers that it quotes; `value` is what the expressions here give."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from lossbridge.tools.diagnosis.rows import numbers as n
from lossbridge.tools.diagnosis.rows.row import (
    ALPHA,
    CROSS_ENTROPY,
    EPSILON,
    GAMMA,
    POSITIVE,
    SMOOTHING,
    TEMPERATURE,
    Row,
    either,
    equals,
    every,
    larger_by,
    over,
    times,
)

x = n.f32([[1, 0, -1], [0.5, 2, 0], [0, 0.2, 0.4], [-1, 1, 1.5], [0.3, -0.2, 0.1]])
y = np.array([0, 1, 0, 2, 2])
t, q = n.f32([1, 0, 0, 1, 1]), n.f32([0.7, 0.2, 0.6, 0.45, 0.9])
w = n.f32([1, 2, 3, 4, 5])
ml = n.f32([[1, 0, 1], [0, 1, 0], [0, 0, 0], [1, 0, 0], [0, 0, 0]])
losses, p = n.ce(x, y), n.f32(n.softmax(x))
mean, summed = losses.mean(), losses.sum()
# Labels with a probability of 0, and outcomes with logits, of kinds 4 and 10.
y3, p3 = np.array([0, 0, 1]), n.f32([[0.9, 0.1], [0, 1], [0.3, 0.7]])
of_label = n.of_label(p3.astype(np.float64), y3)
t4, x4 = n.f32([1, 0, 0, 1]), n.f32([0.5, -1, 2, -0.3])


def untrue_names() -> Iterator[tuple[str, Row]]:
    """Kinds 1 and 2."""
    zeros, first_two = n.f32([[0.7, 0.3, 0], [0.2, 0.8, 0]]), np.array([0, 1])
    value = n.nll(zeros, first_two).mean()
    nan = r"^torch F\.cross_entropy\(torch\.log\(y_pred\), y_true\)|^optax .*jnp\.log\(y_pred\), y_true\)"
    nan += r"|(?:PyTorch's `cross_entropy|optax's `\w*(?:entropy|divergence)).*` of log\(y_pred\)"
    one_hot = n.one_hot(first_two, 3)
    yield "0.289909", Row(1, "one-hot, zeros", one_hot, zeros, value, CROSS_ENTROPY, most=0, refused=nan)
    of_labels = r"^optax .*jnp\.log\(y_pred\), jax\.nn\.one_hot"
    yield "0.289909", Row(1, "labels, zeros", first_two, zeros, value, CROSS_ENTROPY, most=0, refused=of_labels)
    nan_row = Row(1, "NaN", one_hot, zeros, math.nan, "PyTorch|optax", most=0, refused="left undefined")
    yield "nan", nan_row
    says = either("optax", r"sum\(-1\)", "number of samples", over(5))
    sklearn = "scikit-learn|^sklearn"
    yield "2.608590", Row(2, "events, Σ/5", ml, x, n.bce_logits(ml, x).sum() / 5, says, most=1, refused=sklearn)
    chances = np.array([0.3, 0.8, 0.6])
    soft = np.array([-0.25 * np.log(0.3) - 0.75 * np.log(0.7), -np.log(0.8), -0.5 * np.log(0.6 * 0.4)])
    weights = np.array([1.0, 2, 4])
    options = {"sample_weight": weights}
    arguments = np.array([0.25, 1, 0.5]), chances, weights @ soft / 7, "weight"
    yield "0.552717", Row(2, "soft outcomes, weights", *arguments, 6, options, 1, sklearn, called=r"\w")
    options = {"sample_weight": w}
    keras = r"Keras' `BinaryCrossentropy\(sample_weight=…\)`|lossbridge's `binary_crossentropy"
    yield "1.454534", Row(2, "weights ÷ N", t, q, (w * n.bce(t, q)).mean(), "weight", 6, options, 1, keras)
    one = n.bce(t, q).mean() * w.mean()
    says = either("Keras", "mean (?:of the )?weight", "one sample")
    yield "1.439986", Row(2, "Keras, (N,) with weights", t, q, one, says, 6, options, 1)
    transposed = n.one_hot(y, 3).T.copy(), x.T.copy()
    yield "0.727142", Row(2, "transposed", *transposed, mean, "axis 0|transpos|first axis", most=1)


def factors() -> Iterator[tuple[str, Row]]:
    """Kind 3."""
    no_focal = r"focal.*(?:γ|gamma) ?= ?0|focal\w*\(gamma=0"
    of_events = n.bce_logits(ml, x).sum() / 4
    focal = n.focal(ml, x, 2, 0.25).sum() / 4
    positives = either("positive", over(4))
    row_of: dict[str, Any] = {"most": 1, "refused": no_focal}
    yield "1.454285", Row(3, "mean × 2", y, x, 2 * mean, times(2), **row_of)
    yield "0.181786", Row(3, "mean ÷ 4", y, x, mean / 4, either(over(4), times(0.25), over(20)), **row_of)
    yield "0.908928", Row(3, "Σ/(N − 1)", y, x, summed / 4, either(r"N ?[−-] ?1", "one less", over(4)), **row_of)
    yield "0.145428", Row(3, "Σ/N²", y, x, summed / 25, either("N²", r"N\^2", over(5), over(25), times(0.2)), **row_of)
    yield "744.593713", Row(3, "× 1024", y, x, 1024 * mean, times(1024), **row_of)
    yield "7.271423", Row(3, "2Σ", y, x, 2 * summed, either("deviance", times(2), times(10)), **row_of)
    yield "3.260738", Row(3, "BCE Σ ÷ positives", ml, x, of_events, positives, **row_of)
    yield "0.822996", Row(3, "focal Σ ÷ positives", ml, x, focal, positives, most=1)


def coefficients() -> Iterator[tuple[str, Row]]:
    """Kinds 4 and 5."""
    yield "0.860913", Row(4, "T = 2", y, x, n.ce(x / np.float64(2), y).mean(), equals(TEMPERATURE, 2), most=1)
    yield "0.877142", Row(4, "s = 0.25", y, x, n.smoothed(x, y, 0.25).mean(), equals(SMOOTHING, 0.25), most=1)
    clipped = -np.log(np.clip(of_label, 0.01, 0.99)).mean()
    yield "1.689069", Row(4, "ε = 0.01", y3, p3, clipped, equals(EPSILON, 0.01), most=1)
    yield "1.606372", Row(4, "pos_weight = 3", t4, x4, n.bce_logits(t4, x4, 3).mean(), equals(POSITIVE, 3), most=1)
    yield "0.570957", Row(4, "γ = 1.5", t4, x4, n.focal(t4, x4, 1.5).mean(), equals(GAMMA, 1.5), most=1)
    yield "0.219698", Row(4, "α = 0.6", t4, x4, n.focal(t4, x4, 2, 0.6).mean(), equals(ALPHA, 0.6), most=1)
    teacher, student = n.f32([[2, 0, -1], [0, 1, 0.5]]), n.f32([[1, 0.5, -0.5], [0.2, 0.1, 0.9]])
    distilled = 4 * n.distilled(teacher, student, 2).mean()
    yield "0.224136", Row(5, "distillation, T = 2", teacher, student, distilled, equals(TEMPERATURE, 2), most=3)


def samples() -> Iterator[tuple[str, Row]]:
    """Kinds 6 to 9."""
    shifted = r"shift|t \+ 1|next|later|earlier|previous"
    after = n.ce(x[:-1], y[1:])
    yield "1.162443", Row(6, "next label", y[None], x[None], after.mean(), shifted)
    yield "0.929954", Row(6, "next label, Σ/T", y[None], x[None], after.sum() / 5, shifted)
    wrapped = np.array([0, 1, 0, -1, -1])
    yield "0.727142", Row(6, "−1 wraps", wrapped, x, mean, "wrap|last class|from the end")
    yield "0.638735", Row(7, "class 0 left out", y, x, losses[y != 0].mean(), r"(?:class|label|index)\W*(?:of )?0\b")
    head = r"first 4|\[:4\]|last (?:1|one|row|sample)|4 of|\[:-1\]"
    yield "0.637443", Row(7, "the first 4 of 5", y, x, losses[:4].mean(), head)
    yield "0.766678", Row(7, "positives alone", ml, x, n.bce_logits(ml, x)[ml == 1].mean(), "positive|outcomes? 1")
    classes = r"class means|classes' means|(?:each|per|every|a|by|over the) class|balanced|macro|inverse|frequenc"
    means = np.mean([losses[y == c].mean() for c in range(3)])
    yield "0.657011", Row(8, "mean of the classes' means", y, x, means, classes, most=3)
    balanced = (5 / (3 * np.bincount(y)[y]) * losses).mean()
    yield "0.657011", Row(9, "balanced ÷ N", y, x, balanced, classes, most=3)
    pair = (np.where(t == 1, 5, 1) * n.bce(t, q)).mean()
    yield "1.488430", Row(9, "class_weight=[1, 5]", t, q, pair, "class.weight", 6, {"class_weight": [1, 5]}, 1)


def others() -> Iterator[tuple[str, Row]]:
    """Kinds 10 to 14."""
    outcome, chance = n.f32([0, 0, 1]), n.f32([1, 0.2, 0.9])
    terms = np.maximum(np.where(outcome == 1, np.float64(chance), 1 - np.float64(chance)), 1e-15)
    says = either(equals(EPSILON, 1e-15), "LightGBM")
    yield "11.622427", Row(10, "each argument ≥ 1e-15", outcome, chance, -np.log(terms).mean(), says, most=1)
    added = -np.log(of_label + 1e-16).mean()
    yield "12.434466", Row(10, "log(p + 1e-16)", y3, p3, added, equals(EPSILON, 1e-16), most=1)
    clipped = -np.log(np.maximum(of_label, 1e-9)).mean()
    yield "7.061767", Row(10, "clipped at 1e-9", y3, p3, clipped, equals(EPSILON, 1e-9), most=1)
    says = r"1 ?[−-] ?(?:t|y_true|y_pred|p)\b|revers|complement|exchang|flipped|inverted|event"
    yield "1.244932", Row(11, "1 − t", t, q, n.bce(1 - t, q).mean(), says)
    exchanged = n.nll(p[:, [1, 0, 2]], y).mean()
    yield "1.187142", Row(11, "columns 0 and 1 exchanged", y, p, exchanged, "exchang|swap|permut|order|columns")
    logits = n.f32([40, -1, 0.5])
    behind = n.bce_logits(outcome, logits).mean()
    says = r"saturat|logits behind|behind (?:it|the output|them)|takes the logits"
    yield "13.595780", Row(12, "sigmoid of 40", outcome, n.f32(n.sigmoid(logits)), behind, says, fits=False)
    a, b = np.array([0.1, 0.4, 0.5]), np.array([0.3, 0.3, 0.2])
    called = r"^scipy scipy\.stats\.entropy"
    entropy = n.kl(a, b / b.sum()).sum()
    lesser = "KLDivergence.*renormalised"
    yield (
        "0.240213",
        Row(13, "entropy(pk, qk)", a, b, entropy, "SciPy's `entropy", most=1, called=called, lesser=lesser),
    )
    a, b = np.array([3, 5, 2]), np.array([4, 4, 4])
    says = r"counts?\b|SciPy's `entropy|renormalised|normalis"
    yield "0.068959", Row(13, "entropy of counts", a, b, n.kl(a / 10, b / 12).sum(), says, most=1)
    mask = np.array([1, 1, 0, 1, 1])
    value = losses[mask == 1].mean()
    yield "0.580953", Row(14, "mask", y, x, value, CROSS_ENTROPY, 6, {"mask": mask}, 1, called="mask")


def near_by() -> Iterator[tuple[str, Row]]:
    """Kinds 15 and 17."""
    rng = np.random.default_rng(2)
    logits = n.f32(2 * rng.normal(size=(32, 10)))
    labels = rng.integers(0, 10, 32)
    yield "3.7656", Row(15, "bfloat16, seed 2", labels, logits, 3.765625, "bfloat16")
    targets = n.one_hot(y, 3) * np.float64(1 - 0.1 / 3) + 0.1 / 3
    says = every("smooth|s/K", equals(r"\bs", 0.1))
    yield "0.835618", Row(17, "t(1 − s/K) + s/K", y, x, n.soft_ce(x, targets).mean(), says)
    brier = ((np.float64(q) - t) ** 2).mean()
    yield "0.160500", Row(17, "Brier", t, q, brier, "brier|square")
    a, b = np.array([[0.2, 0.8], [0.5, 0.5]]), np.array([[0.3, 0.7], [0.9, 0.1]])
    middle = (a + b) / 2
    jensen_shannon = (n.kl(a, middle) + n.kl(b, middle)).sum(-1).mean() / 2
    yield "0.054226", Row(17, "Jensen–Shannon", a, b, jensen_shannon, "jensen|JS")
    more = [(y[:4], x[:4], f"{losses[:4].mean() + 0.05:.6f}")]
    yield (
        "0.777142",
        Row(17, "+ 0.05 on two batches", y, x, mean + 0.05, larger_by(0.05), 6, {"more": more}, fits=False),
    )


def rows() -> Iterator[Row]:
    for kind in (untrue_names, factors, coefficients, samples, others, near_by):
        for text, row in kind():
            yield replace(row, quoted=text)
