"""The divergences of logits: exact at any distance and for any β, continuous in it, and what is refused."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest

import lossbridge as lb
from lossbridge import reference

BETAS = (0.0, 1e-30, 1e-6, 0.25, 0.5, 0.9, 1 - 1e-6, 1.0)
KINDS = [
    {"kind": "forward"},
    {"kind": "reverse"},
    {"kind": "total_variation"},
    *(
        {"kind": "jensen_shannon", "beta": beta, "scale": scale}
        for beta in BETAS
        for scale in ("mixture", "divergence")
    ),
]
_RNG = np.random.default_rng(5)
_Z = _RNG.normal(size=(1, 7))
_STEP = _RNG.normal(size=(1, 7))
_ABSENT = np.where(np.arange(7) == 2, -np.inf, 0.0)
PAIRS = {
    **{f"{distance:g} apart": (_Z, _Z + distance * _STEP) for distance in (1e-5, 1e-3, 0.1, 1.0, 20.0)},
    "confident": (30 * np.eye(1, 7) + _Z, 25 * np.eye(1, 7) + _Z),
    "confidently different": (30 * np.eye(1, 7), 30 * np.eye(1, 7, 3)),
    "independently confident": (20 * _Z, 20 * _STEP),
    "confident of other classes": (50 * np.eye(1, 7, 2) + 20 * _Z, 50 * np.eye(1, 7, 4) + 20 * _STEP),
    "the student lacks a class": (_Z, _Z + 0.1 * _STEP + _ABSENT),
    "the teacher lacks a class": (_Z + _ABSENT, _Z + 0.1 * _STEP),
    "both lack a class": (_Z + _ABSENT, _Z + 1e-3 * _STEP + _ABSENT),
}


def softmax(z):
    e = [mpmath.exp(mpmath.mpf(float(x))) for x in z]
    return [x / mpmath.fsum(e) for x in e]


def log_ratio(t, p):
    return mpmath.log(t / p) if p else mpmath.inf


def kl(t, p):
    return mpmath.fsum(x * log_ratio(x, y) for x, y in zip(t, p, strict=True) if x)


def exact(teacher, student, kind="forward", beta=0.5, scale="mixture"):
    """The value, and the gradients for teacher and student: t_j (∂D/∂t_j − Σ t ∂D/∂t)."""
    with mpmath.workdps(80):
        t, p = softmax(teacher), softmax(student)
        if kind != "jensen_shannon":
            beta, scale = {"forward": 0.0, "reverse": 1.0, "total_variation": 0.5}[kind], "divergence"
        beta = mpmath.mpf(beta)
        m = [beta * x + (1 - beta) * y for x, y in zip(t, p, strict=True)]
        k = mpmath.mpf(1) if scale == "divergence" else beta * (1 - beta)
        if kind == "total_variation":
            value = mpmath.fsum(abs(x - y) for x, y in zip(t, p, strict=True)) / 2
            by_t = [mpmath.sign(x - y) / 2 for x, y in zip(t, p, strict=True)]
            by_p = [-x for x in by_t]
        elif k == 0:
            return 0.0, [0.0] * len(t), [0.0] * len(t)
        elif beta in (0, 1):
            value = k * (kl(p, t) if beta else kl(t, p))
            by_t = [-k * y / x if beta and x else k * log_ratio(x, y) if x else 0 for x, y in zip(t, p, strict=True)]
            by_p = [k * log_ratio(y, x) if beta and y else -k * x / y if y else 0 for x, y in zip(t, p, strict=True)]
        else:
            value = k * (beta * kl(t, m) + (1 - beta) * kl(p, m)) / (beta * (1 - beta))
            by_t = [k * log_ratio(x, y) / (1 - beta) if x else 0 for x, y in zip(t, m, strict=True)]
            by_p = [k * log_ratio(x, y) / beta if x else 0 for x, y in zip(p, m, strict=True)]

        def of_logits(share, by):
            mean = mpmath.fsum(x * y for x, y in zip(share, by, strict=True) if x)
            return [float(x * (y - mean)) if x else 0.0 for x, y in zip(share, by, strict=True)]

        return float(value), of_logits(t, by_t), of_logits(p, by_p)


@pytest.mark.parametrize("options", KINDS, ids=lambda x: "-".join(map(str, x.values())))
def test_values_and_gradients(lib, options) -> None:
    for name, pair in PAIRS.items():
        teacher, student = (x.astype(np.float32) for x in pair)
        value, *slopes = exact(teacher[0], student[0], **options)
        for which, slope in enumerate(slopes):

            def loss(x, which=which, teacher=teacher, student=student):
                sides = [lib.array(teacher), lib.array(student)]
                sides[which] = x
                return lb.divergence(*sides, **options)

            found, gradient = lib.b.value_and_grad(loss, lib.array((teacher, student)[which]))
            found, gradient = float(lib.b.to_numpy(found)), lib.b.to_numpy(gradient)[0].astype(float)
            if np.isinf(value):
                assert found == np.inf, name
                continue
            assert abs(found - value) <= 3e-6 * value + 1e-37, name
            # A gradient is of differences of logits, which float32 rounds: relative to its largest entry.
            assert np.abs(gradient - slope).max() <= 2e-5 * np.abs(slope).max() + 1e-37, (name, which)
            assert abs(gradient.sum()) <= 1e-6 * np.abs(gradient).max() + 1e-37, (name, which)


def test_the_divergence_is_continuous_in_beta(lib) -> None:
    teacher, student = lib.array(2 * _Z), lib.array(2 * _STEP)

    def at(**options):
        found, gradient = lb.value_and_grad(lb.divergence)(teacher, student, **options)
        return float(lib.b.to_numpy(found)), lib.b.to_numpy(gradient)

    for end, near, kind in ((0.0, 1e-9, "forward"), (1.0, 1 - 1e-9, "reverse")):
        limit, slope = at(kind=kind)
        for beta in (end, near):
            found, gradient = at(kind="jensen_shannon", beta=beta, scale="divergence")
            np.testing.assert_allclose(found, limit, rtol=2e-6)
            np.testing.assert_allclose(gradient, slope, rtol=1e-5, atol=1e-6)
        assert at(kind="jensen_shannon", beta=end)[0] == 0


def test_exchanging_the_sides_exchanges_the_shares(lib) -> None:
    t, s = lib.array(_Z), lib.array(3 * _STEP)
    one = lb.divergence(t, s, kind="jensen_shannon", beta=0.2)
    other = lb.divergence(s, t, kind="jensen_shannon", beta=0.8)
    np.testing.assert_allclose(lib.b.to_numpy(one), lib.b.to_numpy(other), rtol=1e-6)


@pytest.mark.parametrize("options", KINDS[1:4], ids=lambda x: x["kind"])
def test_masks_and_dtypes(lib, options) -> None:
    """What is masked may hold anything; the result has the student's dtype of computation, also where sides change."""
    teacher, student = np.repeat(_Z, 3, 0), np.repeat(_STEP, 3, 0)
    alone, slope = lb.value_and_grad(lb.divergence)(lib.array(teacher), lib.array(student), **options)
    teacher[1], student[1] = np.nan, np.inf
    mask = lib.array(np.array([True, False, True]))
    masked, gradient = lb.value_and_grad(lb.divergence)(lib.array(teacher), lib.array(student), mask=mask, **options)
    np.testing.assert_allclose(lib.b.to_numpy(masked), lib.b.to_numpy(alone), rtol=1e-6)
    wanted = 1.5 * lib.b.to_numpy(slope)
    wanted[1] = 0
    np.testing.assert_allclose(lib.b.to_numpy(gradient), wanted, rtol=1e-5, atol=1e-9)
    with lib.b.scope("float64", "cpu"):
        for of_teacher, of_student in (("float64", "float32"), ("float32", "float64"), ("int32", "bfloat16")):
            sides = lib.array(np.rint(4 * _Z), of_teacher), lib.array(_STEP, of_student)
            found, gradient = lb.value_and_grad(lb.divergence)(*sides, **options)
            assert lib.b.dtype(found) == ("float64" if of_student == "float64" else "float32")
            assert lib.b.dtype(gradient) == of_student


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kind": "backward"}, "kind is 'backward'; use one of 'forward', 'reverse', 'jensen_shannon'"),
        ({"kind": None}, "kind is None; use one of"),
        ({"kind": "jensen_shannon", "scale": "unit"}, "scale is 'unit'; use one of 'mixture', 'divergence'"),
        ({"kind": "jensen_shannon", "beta": 1.5}, r"beta is 1.5; pass a number in \[0, 1\]"),
        ({"kind": "reverse", "beta": 0.1}, "beta is for kind=\"jensen_shannon\", and kind is 'reverse'; leave it out"),
        ({"scale": "divergence"}, "scale is for kind=\"jensen_shannon\", and kind is 'forward'; leave it out"),
    ],
)
def test_what_is_refused(lib, options, words) -> None:
    with pytest.raises(ValueError, match=words):
        lb.divergence(lib.array(_Z), lib.array(_STEP), **options)


@pytest.mark.parametrize(
    ("teacher", "student", "temperature"),
    [
        ([0.5, 0.25], [1e10, 1e10], 3.0),
        ([1.5, -1.25, 1.5], [1e11, 1e11, 1e11], 0.75),
        ([1.0, -2.0, 0.5], [0.0, 1e21, 0.0], 0.1),
        ([0.0, 1e21, -0.5], [1e21, 1e21, 1e21], 3.0),
        ([3.0, 1.0, 2.0], [1e7, 1e7 + 1, 5.0], 0.7),
    ],
)
def test_leading_logits_far_above_the_temperature(lib, teacher, student, temperature) -> None:
    """z/T may lose whole units there, which no correction of its exponential gives back."""
    y_true, y_pred = (np.array([x], np.float32) for x in (teacher, student))
    right = reference.distillation_loss(y_true, y_pred, temperature=temperature)
    value, gradient = lib.value_and_grad("distillation_loss", y_true, y_pred, temperature=temperature)
    np.testing.assert_allclose(value, right.value, rtol=1e-5)
    np.testing.assert_allclose(gradient, right.gradient, rtol=1e-5, atol=1e-5 * np.abs(right.gradient).max())
