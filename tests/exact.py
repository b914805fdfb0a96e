"""What a convention gives, in 50 digits: the definitions as a textbook writes them, one row at a time.

Shares no code with lossbridge, and is slow: the truth that `lossbridge.compat`, `lossbridge.tools.diagnosis` and the
libraries themselves are held to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import mpmath
import numpy as np

from lossbridge.conventions import Convention

mpmath.mp.dps = 50
INFINITY = mpmath.inf
Row = list[Any]  # of mpmath numbers


def log(x: Any) -> Any:
    return -INFINITY if x == 0 else mpmath.log(x) if x > 0 else mpmath.nan


def clip(x: Any, low: Any, high: Any) -> Any:
    return low if x < low else high if x > high else x


def logits(x: Row, temperature: float, softcap: float | None) -> Row:
    """Divided by the temperature, then capped."""
    x = [z / mpmath.mpf(temperature) for z in x]
    return x if softcap is None else [softcap * mpmath.tanh(z / mpmath.mpf(softcap)) for z in x]


def activated(name: str, x: Row, temperature: float = 1.0, softcap: float | None = None) -> Row:
    if name.endswith(" twice"):
        once = name.removesuffix(" twice")
        return activated(once, activated(once, x), temperature)
    if name in ("softmax", "sigmoid"):
        x = logits(x, temperature, softcap)
    if name == "softmax":
        powers = [mpmath.exp(z) for z in x]
        return [power / mpmath.fsum(powers) for power in powers]
    if name == "sigmoid":
        return [1 / (1 + mpmath.exp(-z)) for z in x]
    return [mpmath.exp(z) for z in x] if name == "exp" else x


def weighed(c: Convention, weight: Any, cost: Any) -> Any:
    if weight == 0 and (c.undefined == "zero" or mpmath.isfinite(cost)):
        return mpmath.mpf(0)
    return weight * cost


def terms(c: Convention, target: Row, pred: Row, class_weight: Row | None, dtype: str) -> list[list[Row]]:
    """What a row's loss is the sum of, a list a class, each term as its factors. `dtype` is that of ε and 1 − ε."""
    binary, outcomes = c.cost in ("binary", "binary focal"), len(pred)
    epsilon = mpmath.mpf(c.epsilon)
    high = mpmath.mpf(float(np.asarray(1 if c.clip == "lower" else 1 - c.epsilon).astype(dtype)))
    low = mpmath.mpf(float(np.asarray(c.epsilon).astype(dtype)))

    t = activated(c.target_activation, target, c.temperature)
    if c.renormalise == "both":
        t = [x / mpmath.fsum(t) for x in t]
    if c.cost == "divergence" and c.clip in ("both", "lower"):
        t = [clip(x, low, high) for x in t]
    if c.label_smoothing:
        s, k = mpmath.mpf(c.label_smoothing), 2 if binary and c.smoothing_over != "C" else outcomes
        to_wrong = c.smoothing_over == "K-1"
        share = s / (k - 1 if to_wrong else k)
        if c.smoothing_over == "added":
            t = [x + (1 - x) * share for x in t]
        else:
            t = [x * (1 - s) + ((1 - x) * share if to_wrong else share) for x in t]

    p = unclipped = activated(c.activation, pred, c.temperature, c.softcap)
    steps: list[Callable[[Row], Row]] = []
    if c.renormalise != "no":
        steps.append(lambda p: [x / mpmath.fsum(p) for x in p])
    if c.clip in ("both", "lower"):
        steps.append(lambda p: [clip(x, low, high) for x in p])
    for step in reversed(steps) if c.clip_first else steps:
        p = step(p)

    def cost(x: Any) -> Any:
        value = log(x + epsilon) if c.clip == "added" else log(x)
        if c.clip == "arguments":
            value = max(value, mpmath.log(epsilon))
        if c.logarithm == "missing":
            return -x
        return -log(-value) if c.logarithm == "twice" else -value

    found = []
    for i in range(outcomes):
        weighted = class_weight is not None and c.class_weight and c.weighted == "terms"
        w = class_weight[i] if weighted else mpmath.mpf(1)
        if c.cost == "squared":
            found.append([[t[i] - p[i], t[i] - p[i]]])
            continue
        if c.cost == "jensen-shannon":
            beta = mpmath.mpf(c.beta)
            scale = beta * (1 - beta) if c.scale == "divergence" else 1
            of_t, sides = 1 - beta if c.crossed else beta, ((beta, t[i]), (1 - beta, p[i]))
            middle = of_t * t[i] + (1 - of_t) * p[i]
            found.append([[w * x * log(x / middle) / scale if x else mpmath.mpf(0)] for w, x in sides])
            continue
        if c.cost == "total variation":
            found.append([[abs(t[i] - p[i]) / 2]])
            continue
        if c.cost == "entropy":
            found.append([[weighed(c, p[i], cost(p[i]))]])
            continue
        if binary:
            shares = [w * t[i] * mpmath.mpf(c.pos_weight), w * (1 - t[i])]
            if c.cost == "binary focal" and c.alpha is not None:
                alpha = mpmath.mpf(c.alpha)
                shares = [share * (t[i] * alpha + (1 - t[i]) * (1 - alpha)) for share in shares]
            both = [[weighed(c, shares[0], cost(p[i]))], [weighed(c, shares[1], cost(1 - p[i]))]]
            if c.cost == "binary focal":
                wrong = t[i] * (1 - unclipped[i]) + (1 - t[i]) * unclipped[i]
                both = [[modulation(wrong, c.gamma), *term] for term in both]
            found.append(both)
            continue
        term = [weighed(c, w * t[i], cost(p[i]))]
        if c.cost == "focal":
            alpha = 1 if c.alpha is None else mpmath.mpf(c.alpha)
            found.append([[alpha * modulation(1 - p[i], c.gamma), *term]])
        elif c.cost == "poly":
            found.append([term, [mpmath.mpf(c.alpha or 0) * w * t[i] * (1 - p[i])]])
        elif c.cost in ("divergence", "convex divergence"):
            negentropy = mpmath.mpf(0) if t[i] == 0 else t[i] * log(t[i])
            found.append([[negentropy], term] + ([[p[i]], [-t[i]]] if c.cost == "convex divergence" else []))
        else:
            found.append([term])
    if c.z_loss:
        lse = log(mpmath.fsum(mpmath.exp(z) for z in logits(pred, c.temperature, c.softcap)))
        found.append([[mpmath.mpf(c.z_loss), lse, lse]])  # of the whole row
    return found


def modulation(rest: Any, gamma: float) -> Any:
    return mpmath.mpf(1) if gamma == 0 else mpmath.mpf(0) if rest == 0 else rest ** mpmath.mpf(gamma)


def total(found: Iterable[Row]) -> Any:
    return mpmath.fsum(mpmath.fprod(factors) if 0 not in factors else 0 for factors in found)


def numbers(x: np.ndarray) -> Row:
    return [mpmath.mpf(float(value)) for value in x]


def matrix(x: np.ndarray, axis: int) -> np.ndarray:
    return x[:, None] if x.ndim == 1 else np.moveaxis(x, axis, -1).reshape(-1, x.shape[axis])


class Problem:
    """A convention on targets and predictions of one shape (labels as one-hot rows), with weights a row.

    `kept`: false for rows that are masked, or whose label is ignored.
    """

    def __init__(
        self,
        c: Convention,
        target: np.ndarray,
        pred: np.ndarray,
        *,
        class_weight: np.ndarray | None = None,
        sample_weight: np.ndarray | None = None,
        kept: np.ndarray | None = None,
        dtype: str = "float32",
    ) -> None:
        self.c, self.shape, self.dtype = c, pred.shape, dtype
        if c.swapped:
            target, pred = pred, target
        self.target = [numbers(row) for row in matrix(target, c.axis)]
        self.pred = [numbers(row) for row in matrix(pred, c.axis)]
        self.rows, self.classes = len(self.pred), len(self.pred[0])
        self.class_weight = None if class_weight is None else numbers(class_weight)
        ones = np.ones(self.rows)
        self.kept = ones.astype(bool) if kept is None or c.left_out == "kept" else kept.reshape(-1)
        weight = sample_weight if c.sample_weight and sample_weight is not None else ones
        self.weight = [mpmath.mpf(float(w)) * bool(k) for w, k in zip(weight.reshape(-1), self.kept, strict=True)]

    def row(self, i: int, pred: Row | None = None) -> list[list[Row]]:
        return terms(self.c, self.target[i], self.pred[i] if pred is None else pred, self.class_weight, self.dtype)

    def sums(self) -> list[Any]:
        """The weighted sum of every row."""
        return [
            w * self.mass(i) * total(term for entry in self.row(i) for term in entry) if w else w
            for i, w in self.weights()
        ]

    def mass(self, i: int) -> Any:
        """The factor of a row that its class weights are."""
        if self.c.weighted == "terms" or not self.c.class_weight or self.class_weight is None:
            return mpmath.mpf(1)
        return mpmath.fsum(w * t for w, t in zip(self.class_weight, self.smoothed(i), strict=True))

    def smoothed(self, i: int) -> Row:
        s, row = mpmath.mpf(self.c.label_smoothing), activated(self.c.target_activation, self.target[i])
        if self.c.smoothing_over == "added":
            return [x + (1 - x) * s / self.classes for x in row]
        if self.c.smoothing_over == "K-1":
            return [x * (1 - s) + (1 - x) * s / (self.classes - 1) for x in row]
        return [x * (1 - s) + s / self.classes for x in row]

    def weights(self) -> Iterator[tuple[int, Any]]:
        return enumerate(self.weight)

    def factor(self, returns: str) -> Any:
        """What sums are multiplied by in the result; 0 in a mean over nothing."""
        unit = mpmath.mpf(self.c.factor) / (mpmath.log(self.c.base) if self.c.base != math.e else 1)
        if returns == "scalar":
            divisor = self.divisor()
            return unit / divisor if divisor else divisor
        return unit / self.classes if returns == "samples" and self.c.divisor == "elements" else unit

    def divisor(self) -> Any:
        count = sum(bool(k) for k in self.kept) if self.c.left_out == "removed" else self.rows
        if self.c.divisor == "nonzero weights":
            return mpmath.mpf(sum(w * self.mass(i) != 0 for i, w in self.weights()))
        if self.c.divisor == "weights" and self.c.weighted == "rows":
            return mpmath.fsum(w * self.mass(i) for i, w in self.weights())
        if self.c.divisor == "weights":
            masses = [mpmath.mpf(1)] * self.rows
            if self.c.class_weight and self.class_weight is not None:
                masses = [
                    mpmath.fsum(w * t for w, t in zip(self.class_weight, row, strict=True)) for row in self.target
                ]
            return mpmath.fsum(w * m for w, m in zip(self.weight, masses, strict=True))
        sizes = {"samples": count, "elements": count * self.classes, "classes": self.classes, "axis 0": self.shape[0]}
        sizes["squared samples"] = count * count
        return mpmath.mpf(sizes.get(self.c.divisor, 1))

    def value(self, returns: str = "scalar") -> np.ndarray:
        """The number; or a value a row, or a class of every row, in the order of `matrix`."""
        if returns == "elements":
            return np.array([[total(entry) for entry in self.row(i)] for i in range(self.rows)], object)
        values = np.array([x * self.factor(returns) for x in self.sums()], object)
        if returns != "scalar":
            return values
        value = mpmath.fsum(values)
        if self.c.outcome == "perplexity":
            factor = mpmath.mpf(self.c.factor)
            value = mpmath.exp(value / factor * mpmath.log(self.c.base)) * factor
        value = -value if self.c.outcome == "negated" else value
        return np.array(value + mpmath.mpf(self.c.offset), object)

    def gradient(self, returns: str = "scalar", rows: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Of the sum of the value for the predictions, (rows, classes); and the sum of the sizes of what it is made of:
        of every term, and of every factor of a product. `rows`: which of them are wanted, True for each; the others
        are left 0.

        By differences in so many digits that 60 remain. At a bound of clipping the slope is that of the inside.
        """
        step = mpmath.mpf(10) ** -60
        slopes, sizes = np.full((2, self.rows, self.classes), mpmath.mpf(0), object)
        with mpmath.workdps(150):
            for i, weight in self.weights():
                if rows is not None and not rows[i]:
                    continue
                here = [term for entry in self.row(i) for term in entry]
                p = activated(self.c.activation, self.pred[i], self.c.temperature)
                for j in range(self.classes if weight else 0):
                    moved, inwards = list(self.pred[i]), -step if p[j] > 0.5 else step
                    moved[j] += inwards
                    there = [term for entry in self.row(i, moved) for term in entry]
                    each = [
                        (x - y) / inwards * mpmath.fprod(old[:k] + old[k + 1 :])
                        for new, old in zip(there, here, strict=True)
                        for k, (x, y) in enumerate(zip(new, old, strict=True))
                    ]
                    slopes[i, j] = weight * self.mass(i) * mpmath.fsum(each)
                    sizes[i, j] = weight * self.mass(i) * mpmath.fsum(abs(x) for x in each)
        return slopes * self.factor(returns), sizes * self.factor(returns)
