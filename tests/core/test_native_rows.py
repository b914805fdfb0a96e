"""The native rows digit by digit, against the formulas of tests/exact_rows.py; sums and threads are in test_rows.py.

Accuracy, of float32: losses of softmax and Bernoulli within 4 units in the last place, divergences within 6, down to
1e-30, and never of the wrong sign; gradients within 5·2⁻²⁴(|g| + t). Float64, which no wider numbers help, may lose ten
bits.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from lossbridge.native import rows
from tests import exact_rows as exact
from tests.exact_rows import Truth, mp, number

pytestmark = pytest.mark.skipif(bool(rows.MISSING), reason=rows.MISSING)

LABELS, DISTRIBUTIONS = "softmax of labels", "softmax of distributions"
OF_LABELS = (LABELS, "probabilities of labels", "log loss of labels")
OF_SHARES = "divergence of probabilities"
MIXED, VARIATION = "Jensen-Shannon divergence of logits", "total variation of logits"
OF_LOGITS = ("divergence of logits", MIXED, VARIATION)  # whose target is logits too
IN_FLOAT = (LABELS, DISTRIBUTIONS, "Bernoulli of logits", "divergence of logits", OF_SHARES)
FLOAT32, FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)
# Units in the last place of the loss; relative error of the gradient.
ALLOWED = {FLOAT32: (4.0, 5 * 2.0**-24), FLOAT64: (2.0**4, 2.0**-43)}
OF_DIVERGENCES = {FLOAT32: 6.0, FLOAT64: 2.0**4}


def run(rule: str, pred: Any, target: Any, axis: int = -1, *, target_gradient: bool = False, **more: Any) -> list[Any]:
    """Losses, gradient, and gradient for the target or None. axis None: every entry is a sample."""
    pred, target = np.ascontiguousarray(pred), np.ascontiguousarray(target)
    shape, along = pred.shape, axis
    result = FLOAT64 if pred.dtype == FLOAT64 else FLOAT32
    if axis is None:
        samples, outer, classes, inner = shape, 1, pred.size, 1
    else:
        along = axis % pred.ndim
        samples, classes = shape[:along] + shape[along + 1 :], shape[along]
        outer, inner = int(np.prod(shape[:along])), int(np.prod(shape[along + 1 :]))
    losses = np.full(samples, 7, result)
    gradient = more.pop("gradient", np.full_like(pred, 7))
    of_target = np.full_like(target, 7) if target_gradient else None
    written = {"losses": losses, "gradient": gradient, "target_gradient": 0 if of_target is None else of_target}
    arrays = {name: memory(x) for name, x in (written | more).items()}
    dtypes = (rows.DTYPES[x.dtype.name] for x in (pred, target))
    rows.run(
        rows.Call(
            rows.RULES[rule], *dtypes, axis is None, outer, classes, inner, memory(pred), memory(target), **arrays
        )
    )
    return [losses, gradient, of_target]


def memory(x: Any) -> Any:
    return x.view(np.uint16) if isinstance(x, np.ndarray) and x.dtype == ml_dtypes.bfloat16 else x


# Accuracy.


def units(found: Any, exactly: Any) -> float:
    """The error of a loss in units in the last place; below the normal numbers, in those of the smallest."""
    if not np.isfinite(found) or mp.isinf(exactly):
        return 0.0 if float(found) == float(exactly) else np.inf
    least = np.finfo(found.dtype).tiny * 16
    unit = np.spacing(max(abs(found.dtype.type(float(exactly))), least))
    return float(abs(number(found) - exactly) / number(unit))


def relative(found: np.ndarray, exactly: list[Any], scale: list[Any]) -> float:
    """The largest error of a gradient, relative to |g| + scale."""
    least = number(np.finfo(found.dtype).tiny) * 64
    errors = [
        abs(number(f) - g) / (abs(g) + abs(s) + least) if np.isfinite(f) else mp.inf
        for f, g, s in zip(found.reshape(-1), exactly, scale, strict=True)
        if not mp.isinf(g)
    ]
    return float(max(errors, default=0))


def assert_close(found: list[Any], truth: Truth, where: str, most: float | None = None) -> None:
    """`found`: the loss of a row, its gradient, and that of the target."""
    loss, gradient, of_target = found
    ulp, relative_error = ALLOWED[loss.dtype]
    if most is not None and abs(truth.loss) < 1e-30:
        assert loss >= 0, where
    else:
        assert units(loss, truth.loss) <= (most or ulp), where
    assert relative(gradient, truth.of_pred, truth.scale) <= relative_error, where
    if of_target is not None:
        assert truth.of_target is not None
        assert truth.scale_of_target is not None
        assert relative(of_target, truth.of_target, truth.scale_of_target) <= 2 * relative_error, where


REGIMES = (
    *("N(0, 1)", "±80", "+1e4", "30x + 150", "leads by 8", "leads by 16", "leads by 24", "leads by 40"),
    *("misses by 16", "runner-up", "ascending", "equal", "−∞ off target", "subnormal"),
)


def logits(regime: str, n: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits and labels."""
    rng = np.random.default_rng(len(regime) + classes)
    z, labels = rng.normal(size=(n, classes)), rng.integers(0, classes, n)
    each = np.arange(n)
    if regime.startswith(("leads", "misses")):
        z[each, labels] = z.max(1) + float(regime.split()[-1])
        labels = labels if regime.startswith("leads") else (labels + 1) % classes
    elif regime == "runner-up":
        z = 5 * z - 60
        z[each, labels], z[each, (labels + 1) % classes] = 30, 19.7
    elif regime == "−∞ off target":
        z[:, ::2], labels = -np.inf, np.ones(n, int)
    changed = {
        "±80": lambda: rng.uniform(-80, 80, z.shape),
        "+1e4": lambda: z + 1e4,
        "30x + 150": lambda: 30 * z + 150,
        "ascending": lambda: np.sort(rng.uniform(-300, 600, z.shape), 1),
        "equal": lambda: np.zeros_like(z),
        "subnormal": lambda: z * 1e-41,
    }
    return changed.get(regime, lambda: z)(), labels


def exactly(x: np.ndarray) -> list[Any]:
    return [number(y) for y in x]


def weights_of(target: list[Any], smoothing: float, per_class: list[Any] | None) -> tuple[list[Any], list[Any]]:
    """The weights of the classes, and what each is, per target."""
    per_class = per_class or [mp.mpf(1)] * len(target)
    smooth = [t * (1 - number(smoothing)) + number(smoothing) / len(target) for t in target]
    return [k * t for k, t in zip(per_class, smooth, strict=True)], [k * (1 - number(smoothing)) for k in per_class]


SIZES = [pytest.param(dtype, n, id=f"{dtype}-{n}") for dtype in (FLOAT32, FLOAT64) for n in (2, 10, 33)]


@pytest.mark.parametrize(("dtype", "classes"), SIZES)
@pytest.mark.parametrize("regime", REGIMES)
def test_softmax(regime, dtype, classes) -> None:
    z, labels = logits(regime, 2, classes)
    z = z.astype(dtype)
    rng = np.random.default_rng(classes)
    hot = np.eye(classes, dtype=dtype)[labels]
    soft = rng.dirichlet(np.ones(classes), 2).astype(dtype)
    soft[np.isinf(z)] = 0
    class_weight = (2 * rng.random(classes)).astype(dtype)
    for (target, dense), smoothing, weight in itertools.product(
        ((labels, hot), (soft, soft)), (0.0, 0.125), (None, class_weight)
    ):
        if smoothing and np.isinf(z).any():
            continue
        of_target = target is dense
        options = {"label_smoothing": smoothing, "per_class": 0 if weight is None else weight}
        found = run(DISTRIBUTIONS if of_target else LABELS, z, target, target_gradient=of_target, **options)
        for i in range(2):
            of_classes = weights_of(exactly(dense[i]), smoothing, None if weight is None else exactly(weight))
            truth = exact.softmax(exactly(z[i]), *of_classes)
            row = [found[0][i], found[1][i], found[2][i] if of_target else None]
            assert_close(row, truth, f"{options}, row {i}")


@pytest.mark.parametrize(("dtype", "classes"), SIZES)
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("gamma", [0, 0.5, 2, 2.5])
def test_softmax_focal(regime, dtype, classes, gamma) -> None:
    z, labels = logits(regime, 1, classes)
    z, hot = z.astype(dtype), np.eye(classes, dtype=dtype)[labels]
    alpha = np.random.default_rng(1).random(classes).astype(dtype)
    for options, per_class in (({"per_class_number": 0.25}, [number(0.25)] * classes), ({"per_class": alpha}, alpha)):
        loss, gradient, _ = run("focal softmax", z, hot, gamma=gamma, **options)
        weights, _ = weights_of(exactly(hot[0]), 0, [number(a) for a in per_class])
        assert_close([loss[0], gradient[0], None], exact.softmax_focal(exactly(z[0]), weights, gamma), str(options))


def bounds(dtype: np.dtype[Any], epsilon: float = 1e-7) -> tuple[Any, Any]:
    low = dtype.type(epsilon)
    return number(low), number(dtype.type(1) - low)


@pytest.mark.parametrize(("dtype", "classes"), SIZES)
@pytest.mark.parametrize("regime", ["N(0, 1)", "±80", "leads by 8", "leads by 24", "misses by 16", "equal"])
def test_probabilities(regime, dtype, classes) -> None:
    z, labels = logits(regime, 2, classes)
    p = np.exp(z - z.max(1, keepdims=True))
    p = (p / p.sum(1, keepdims=True)).astype(dtype)
    dense = np.random.default_rng(classes).dirichlet(np.ones(classes), 2).astype(dtype)
    hot = np.eye(classes, dtype=dtype)[labels]
    weight = np.linspace(0, 2, classes).astype(dtype)
    for rule, target, t, options in (
        ("probabilities of labels", labels, hot, {}),
        ("probabilities of labels", labels, hot, {"label_smoothing": 0.125, "per_class": weight}),
        ("probabilities of distributions", dense, dense, {}),
        ("focal probabilities", hot, hot, {"gamma": 2.0, "per_class_number": 0.25}),
        ("focal probabilities", dense, dense, {"gamma": 1.5, "label_smoothing": 0.125, "per_class": weight}),
    ):
        loss, gradient, _ = run(rule, p, target, epsilon=1e-7, **options)
        per_class = (
            exactly(weight) if "per_class" in options else [number(options.get("per_class_number", 1))] * classes
        )
        for i in range(2):
            weights, _ = weights_of(exactly(t[i]), options.get("label_smoothing", 0), per_class)
            truth = exact.probabilities(exactly(p[i]), weights, bounds(dtype), options.get("gamma", 0))
            assert_close([loss[i], gradient[i], None], truth, f"{rule} {options}")
    loss, gradient, _ = run("log loss of labels", p, labels, epsilon=1e-7)
    for i in range(2):
        truth = exact.log_loss(exactly(p[i]), labels[i], bounds(dtype))
        assert_close([loss[i], gradient[i], None], truth, "log loss")


def pairs_of_logits(regime: str, dtype: np.dtype[Any], classes: int) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Rows that have nothing to do with each other, down to rows that differ in the last place of a few logits."""
    rng = np.random.default_rng(classes)
    z = logits(regime, 1, classes)[0].astype(dtype)
    noise = rng.normal(size=z.shape)
    pairs = {
        "independent": 3 * noise,
        "1": z + noise,
        "1e-3": z * (1 + 1e-3 * noise),
        "1e-3, + 7.3": z * (1 + 1e-3 * noise) + 7.3,
        "1e-10": z * (1 + 1e-10 * noise),
        "last place": np.where(rng.random(z.shape) < 0.3, np.nextafter(z, dtype.type(1e9)), z),
        "half": 0.5 * z + 1,
        "opposite": np.where(np.isinf(z), z, -z),
        "far": noise + 1e10,
        "farther": 1e-3 * noise - 1e22,
    }
    for name, x in pairs.items():
        yield name, z, x.astype(dtype)


@pytest.mark.parametrize(("dtype", "classes"), SIZES)
@pytest.mark.parametrize("regime", REGIMES)
def test_divergence_of_logits(regime, dtype, classes) -> None:
    for (name, z, x), temperature in itertools.product(pairs_of_logits(regime, dtype, classes), (1.0, 2.0, 0.7)):
        if np.isinf(z).any() and temperature != 1:
            continue
        loss, gradient, of_target = run("divergence of logits", x, z, temperature=temperature, target_gradient=True)
        truth = exact.divergence(exactly(z[0]), exactly(x[0]), temperature)
        found = [loss[0], gradient[0], of_target[0]]
        assert_close(found, truth, f"{name}, T = {temperature}", OF_DIVERGENCES[dtype])


@pytest.mark.parametrize(("dtype", "far"), [(FLOAT32, 208), (FLOAT64, 1500)])
@pytest.mark.parametrize("temperature", [1.0, 1.3, 0.3])
def test_divergence_of_logits_where_far_from_0_begins(dtype, far, temperature) -> None:
    for top in (1, 1 - 1e-7, 1 - 1e-3, 1 + 1e-7):
        z = temperature * (far * top + np.array([[0, -1, -far]]))
        for target, pred in itertools.product((z, 0.1 * z, -z), repeat=2):
            target, pred = target.astype(dtype), pred.astype(dtype)
            found = run("divergence of logits", pred, target, temperature=temperature, target_gradient=True)
            truth = exact.divergence(exactly(target[0]), exactly(pred[0]), temperature)
            assert_close([x[0] for x in found], truth, f"{target}, {pred}", OF_DIVERGENCES[dtype])


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64])
@pytest.mark.parametrize("logit", [-30, -300, -2000])
def test_divergence_of_nearly_equal_rows_but_for_one_class(dtype, logit) -> None:
    """Where KL is not small, as the student has none of the teacher's leading class."""
    z = 0.1 * np.random.default_rng(4).normal(size=(1, 1000))
    z[0, 3] = 0.5
    pred = z + 0.01 * np.random.default_rng(5).normal(size=z.shape)
    pred[0, 3] = logit
    z, pred = z.astype(dtype), pred.astype(dtype)
    found = run("divergence of logits", pred, z, target_gradient=True)
    truth = exact.divergence(exactly(z[0]), exactly(pred[0]), 1.0)
    assert_close([x[0] for x in found], truth, "", OF_DIVERGENCES[dtype])


@pytest.mark.parametrize(("dtype", "classes"), SIZES)
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("beta", [0.5, 0.25, 0.9, 1e-6, 1e-30, 1 - 2.0**-40])
def test_jensen_shannon(regime, dtype, classes, beta) -> None:
    for i, (name, z, x) in enumerate(pairs_of_logits(regime, dtype, classes)):
        temperature = (1.0, 2.0, 0.7)[i % 3]
        loss, gradient, of_target = run(MIXED, x, z, temperature=temperature, beta=beta, target_gradient=True)
        truth = exact.jensen_shannon(exactly(z[0]), exactly(x[0]), beta, temperature)
        found = [loss[0], gradient[0], of_target[0]]
        assert_close(found, truth, f"{name}, T = {temperature}", OF_DIVERGENCES[dtype])


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64])
def test_jensen_shannon_at_the_ends(dtype) -> None:
    """The Kullback-Leibler divergence, or 0."""
    for _, z, x in pairs_of_logits("N(0, 1)", dtype, 33):
        forward = run("divergence of logits", x.astype(float), z.astype(float), temperature=2.0, target_gradient=True)
        reverse = run("divergence of logits", z.astype(float), x.astype(float), temperature=2.0, target_gradient=True)
        for beta, expected in ((0.0, forward), (1.0, [reverse[0], *reverse[:0:-1]])):
            options = {"beta": beta, "temperature": 2.0, "target_gradient": True}
            found = run(MIXED, x, z, **options)
            assert_same(found, [y.astype(dtype) for y in expected])
            assert not any(np.any(y) for y in run(MIXED, x, z, mixture_scaling=0.0, **options))


def test_the_scale_of_jensen_shannon() -> None:
    _, z, x = next(pairs_of_logits("N(0, 1)", FLOAT64, 33))
    whole, part = (run(MIXED, x, z, mixture_scaling=k, target_gradient=True) for k in (1.0, 0.25))
    assert_same([4 * y for y in part], whole)


@pytest.mark.parametrize(("dtype", "classes"), SIZES)
@pytest.mark.parametrize("regime", REGIMES)
def test_total_variation(regime, dtype, classes) -> None:
    for i, (name, z, x) in enumerate(pairs_of_logits(regime, dtype, classes)):
        temperature = (1.0, 2.0, 0.7)[i % 3]
        loss, gradient, of_target = run(VARIATION, x, z, temperature=temperature, target_gradient=True)
        truth = exact.total_variation(exactly(z[0]), exactly(x[0]), temperature)
        if truth.loss < 1e-41:  # the signs of t − p are lost
            assert loss >= 0
            continue
        found = [loss[0], gradient[0], of_target[0]]
        assert_close(found, truth, f"{name}, T = {temperature}", OF_DIVERGENCES[dtype])


def shares(classes: int, dtype: np.dtype[Any]) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """A target and probabilities, from rows that have nothing to do with each other to rows that are nearly equal."""
    rng = np.random.default_rng(classes)
    t = rng.dirichlet(np.ones(classes), 1).astype(dtype)
    noise = rng.normal(size=t.shape)
    yield "independent", t, rng.dirichlet(np.ones(classes), 1)
    for spread in (8, 30):
        z = spread * rng.normal(size=t.shape)
        peaked = [x / x.sum() for x in (np.exp(y - y.max()) for y in (z, z + noise))]
        yield f"peaked by {spread}", *peaked
    for size in (0.3, 1e-2, 1e-3, 1e-4, 1e-6):
        p = t * (1 + size * noise)
        yield f"{size:g}", t, p
        p = (p / p.sum()).astype(dtype)
        yield f"{size:g}, of the same sum", t, p
        p[0, t.argmax()] += (t * (np.log(t / p.astype(float)))).sum() * 0.9
        yield f"{size:g}, sums that cancel", t, p
    yield "far by 2", t, np.where(rng.random(t.shape) < 0.5, 2 * t, t / 2)
    yield "last place", t, np.where(rng.random(t.shape) < 0.3, np.nextafter(t, dtype.type(2)), t)
    yield "equal", t, t
    yield "clipped", t, np.where(rng.random(t.shape) < 0.3, 0, t)
    yield "zeros in the target", np.where(rng.random(t.shape) < 0.5, 0, t), t
    yield "above 1", t, t * 1.7
    some, least = rng.random(t.shape) < 0.5, np.finfo(dtype)
    yield "tiny", t, np.where(some, 8 * float(least.tiny), t)
    yield "subnormal", *(np.where(some, n * float(least.smallest_subnormal), t) for n in (3000, 1000))


@pytest.mark.parametrize(("dtype", "classes"), SIZES)
@pytest.mark.parametrize("epsilon", [1e-7, 0])
def test_divergence_of_probabilities(dtype, classes, epsilon) -> None:
    for name, t, p in shares(classes, dtype):
        if epsilon == 0 and name == "clipped":
            continue
        t, p = t.astype(dtype), p.astype(dtype)
        loss, gradient, of_target = run(OF_SHARES, p, t, epsilon=epsilon, target_gradient=True)
        truth = exact.divergence_of_probabilities(exactly(t[0]), exactly(p[0]), bounds(dtype, epsilon)[0])
        found = [loss[0], gradient[0], of_target[0]]
        assert_close(found, truth, name, 4.0 if dtype == FLOAT32 else OF_DIVERGENCES[dtype])


@pytest.mark.parametrize("classes", [2, 33, 100])
def test_divergences_of_probabilities_do_not_depend_on_the_gradients_wanted(classes) -> None:
    """Some gradients of float32 are computed in double, which reads what a gradient may lie over."""
    for name, t, p in shares(classes, FLOAT32):
        t, p = t.astype(np.float32), p.astype(np.float32)
        both = run(OF_SHARES, p, t, epsilon=1e-7, target_gradient=True)
        assert_same(run(OF_SHARES, p, t, epsilon=1e-7), [*both[:2], None])
        assert_same(run(OF_SHARES, p, t, epsilon=1e-7, gradient=0)[:1], both[:1])
        over = p.copy()
        assert_same(run(OF_SHARES, over, t, epsilon=1e-7, gradient=over), [*both[:2], None])
        assert name == "above 1" or not np.isnan(both[1]).any()


@pytest.mark.parametrize("upstream", [1e30, 1e15, 1e-15, 1e-30, 0])
def test_a_large_or_small_factor_of_a_divergence_of_probabilities(upstream) -> None:
    t, p = np.array([[1, 0.5, 1e-38]], np.float32), np.array([[1e-6, 0.5, 2e-38]], np.float32)
    losses, gradient, of_target = run(OF_SHARES, p, t, upstream=upstream, target_gradient=True)
    factor = np.float64(np.float32(upstream))
    np.testing.assert_allclose(gradient, (-t / p.astype(float) * factor).astype(np.float32), rtol=3e-7)
    np.testing.assert_allclose(of_target, ((np.log(t / p.astype(float)) + 1) * factor).astype(np.float32), rtol=3e-7)
    assert losses == run(OF_SHARES, p, t)[0]


def trials(dtype: np.dtype[Any]) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Logits and targets."""
    rng = np.random.default_rng(5)
    for spread in (1, 8, 30, 100):
        x = (spread * rng.normal(size=60)).astype(dtype)
        yield f"{spread}, soft", x, rng.random(60).astype(dtype)
        hard = (rng.random(60) < 0.5).astype(dtype)
        x[:4], hard[2:4] = [0, -0.0, np.inf, -np.inf], [1, 0]
        yield f"{spread}, hard", x, hard


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64])
def test_bernoulli(dtype) -> None:
    for name, x, t in trials(dtype):
        for smoothing, pos_weight in ((0.0, 1.0), (0.0, 3.0), (0.125, 3.0)):
            if smoothing and np.isinf(x).any():
                continue
            options = {"label_smoothing": smoothing, "per_class_number": pos_weight}
            found = run("Bernoulli of logits", x, t, None, target_gradient=True, **options)
            for loss, gradient, of_target, logit, outcome in zip(*found, x, t, strict=True):
                truth = exact.bernoulli(number(logit), number(outcome), smoothing, pos_weight)
                one = [np.asarray(g) for g in (gradient, of_target)]
                assert_close([loss, *one], truth, f"{name}, {options}, x = {logit}, t = {outcome}")


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64])
@pytest.mark.parametrize(("gamma", "balanced"), [(2.0, False), (1.5, True), (0.5, False), (0, True)])
def test_bernoulli_focal(dtype, gamma, balanced) -> None:
    options = {"gamma": gamma, "balanced": balanced, "per_class_number": 0.25}
    for name, x, t in trials(dtype):
        x = np.where(np.isinf(x), 1, x).astype(dtype)
        losses, gradients, _ = run("focal Bernoulli of logits", x, t, None, **options)
        for loss, gradient, logit, outcome in zip(losses, gradients, x, t, strict=True):
            truth = exact.bernoulli_focal(number(logit), number(outcome), options)
            assert_close([loss, np.asarray(gradient), None], truth, f"{name}, x = {logit}, t = {outcome}")


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64])
@pytest.mark.parametrize("hard", [False, True])
def test_bernoulli_of_probabilities(dtype, hard) -> None:
    rng = np.random.default_rng(6)
    parts = [0, 1, 1e-7, 0.5, 1 - 1e-7], rng.random(30), 1e-6 * rng.random(20), 1 - 1e-6 * rng.random(20)
    p = np.concatenate(parts).astype(dtype)
    t = (rng.random(p.size) < 0.5 if hard else rng.random(p.size)).astype(dtype)
    focal = {"gamma": 2.0, "balanced": True, "per_class_number": 0.25}
    plain = run("Bernoulli of probabilities", p, t, None, epsilon=1e-7, label_smoothing=0.125, per_class_number=2.0)
    focused = run("focal Bernoulli of probabilities", p, t, None, epsilon=1e-7, **focal)
    for i, (x, outcome) in enumerate(zip(p, t, strict=True)):
        where = f"p = {x}, t = {outcome}"
        truth = exact.bernoulli(number(x), number(outcome), 0.125, 2.0, bounds(dtype))
        assert_close([plain[0][i], plain[1][i : i + 1], None], truth, where)
        truth = exact.bernoulli_focal(number(x), number(outcome), focal, bounds(dtype))
        assert_close([focused[0][i], focused[1][i : i + 1], None], truth, where)


@pytest.mark.parametrize("rule", [LABELS, DISTRIBUTIONS, "divergence of logits"])
@pytest.mark.parametrize("spread", [1, 30])
def test_long_rows(rule, spread) -> None:
    """Beside float80's straightforward formulas, which have the digits here."""
    rng = np.random.default_rng(spread)
    z = (spread * rng.normal(size=(2, 50_257))).astype(np.float32)
    target = (
        rng.integers(0, z.shape[1], 2) if rule == LABELS else rng.dirichlet(np.ones(z.shape[1]), 2).astype(np.float32)
    )
    if rule == "divergence of logits":
        target = (z + 0.1 * rng.normal(size=z.shape)).astype(np.float32)
    losses, gradient, _ = run(rule, z, target)
    wide = z.astype(np.longdouble)
    p, cost = softmax_in(wide)
    if rule == LABELS:
        t = np.eye(1, z.shape[1], 0, dtype=np.longdouble).repeat(2, 0) * 0
        t[np.arange(2), target] = 1
    else:
        t = softmax_in(target.astype(np.longdouble))[0] if target.min() < 0 else target.astype(np.longdouble)
    truth = (t * cost).sum(1)
    if rule == "divergence of logits":
        truth = truth - (t * softmax_in(target.astype(np.longdouble))[1]).sum(1)
    assert (np.abs(losses - truth) <= 6 * np.spacing(losses)).all()
    exactly = p * t.sum(1, keepdims=True) - t
    assert (np.abs(gradient - exactly) <= 5 * 2.0**-24 * (np.abs(exactly) + t) + 1e-44).all()


def softmax_in(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """p and −log p in the dtype of z."""
    shifted = z - z.max(1, keepdims=True)
    total = np.exp(shifted).sum(1, keepdims=True)
    return np.exp(shifted) / total, np.log(total) - shifted


# What holds of every rule, to the bit.


def problem(rule: str, shape: tuple[int, ...], dtype: Any = np.float32) -> tuple[np.ndarray, np.ndarray]:
    """Predictions and a target of a rule, of classes along the last axis."""
    rng = np.random.default_rng(7)
    pred = (
        rng.normal(size=shape)
        if "logits" in rule or "softmax" in rule
        else rng.dirichlet(np.ones(shape[-1]), shape[:-1])
    )
    if rule in OF_LABELS:
        return pred.astype(dtype), rng.integers(0, shape[-1], shape[:-1])
    target = rng.normal(size=shape) if rule in OF_LOGITS else rng.dirichlet(np.ones(shape[-1]), shape[:-1])
    return pred.astype(dtype), target.astype(dtype)


OPTIONS = {"beta": 0.25, "epsilon": 1e-7, "gamma": 2.0, "temperature": 2.0, "label_smoothing": 0.125}
every_rule = pytest.mark.parametrize("rule", rows.RULES)


def assert_same(found: list[Any], expected: list[Any]) -> None:
    for x, y in zip(found, expected, strict=True):
        assert (x is None) == (y is None)
        assert x is None or np.ascontiguousarray(x).tobytes() == np.ascontiguousarray(y).tobytes()


@every_rule
@pytest.mark.parametrize("shape", [(2, 5, 19), (3, 2, 18), (2, 18, 6), (1, 35, 37), (2, 17, 16)])  # every rest of four
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
def test_another_axis_is_the_transposed_call(rule, dtype, shape) -> None:
    pred, target = problem(rule, shape, dtype)
    gradient = rule in rows.WITH_TARGET_GRADIENT
    losses, *last = run(rule, pred, target, target_gradient=gradient, **OPTIONS)
    moved = [np.moveaxis(x, -1, 1) if x.ndim == 3 else x for x in (pred, target)]
    found = run(rule, *moved, axis=1, target_gradient=gradient, **OPTIONS)
    assert_same(found, [losses, *(None if x is None else np.moveaxis(x, -1, 1) for x in last)])


@every_rule
def test_what_does_not_count_is_not_read(rule) -> None:
    pred, target = problem(rule, (9, 40))
    weight, counted = np.array([1, 0, 2, 0.5] * 2 + [3], np.float32), np.arange(9) % 3 > 0
    read = counted & (weight != 0)
    losses, gradient, _ = run(rule, pred[read], target[read], weight=weight[read], **OPTIONS)
    dirty = pred.copy()
    dirty[~read] = np.nan
    if rule in OF_LABELS:
        target[~read] = 1000
    found = run(rule, dirty, target, weight=weight, counted=counted, **OPTIONS)
    assert_same([x[read] for x in found[:2]], [losses, gradient])
    assert not any(x[~read].any() for x in found[:2])


@every_rule
def test_what_flows_back_is_a_factor_of_the_weights(rule) -> None:
    """A power of two, so that multiplying rounds nothing."""
    pred, target = problem(rule, (9, 40))
    each = 2.0 ** np.arange(-4, 5, dtype=np.float32)
    _, gradient, _ = run(rule, pred, target, **OPTIONS)
    flows = run(rule, pred, target, upstream=0.5, upstream_each=each, **OPTIONS)[1]
    np.testing.assert_array_equal(flows, gradient * (each / 2)[:, None])
    weighed = run(rule, pred, target, weight=each, **OPTIONS)
    np.testing.assert_array_equal(weighed[1], gradient * each[:, None])


@every_rule
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
def test_the_gradient_over_the_predictions(rule, dtype) -> None:
    for axis in (-1, 0):
        pred, target = problem(rule, (9, 40), dtype)
        pred, target = (x if axis or x.ndim == 1 else np.ascontiguousarray(x.T) for x in (pred, target))
        losses, gradient, _ = run(rule, pred, target, axis, **OPTIONS)
        over = run(rule, pred, target, axis, gradient=pred, **OPTIONS)
        assert over[1] is pred
        assert_same([x.view(np.uint8) for x in over[:2]], [x.view(np.uint8) for x in (losses, gradient)])


@every_rule
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_computed_in_float32_and_rounded_once(rule, dtype) -> None:
    pred, target = problem(rule, (9, 40), dtype)
    losses, gradient, _ = run(rule, pred, target, upstream=1 / 3, **OPTIONS)
    dense = target if rule in OF_LABELS else target.astype(np.float32)
    exactly, narrow, _ = run(rule, pred.astype(np.float32), dense, upstream=1 / 3, **OPTIONS)
    assert_same([losses], [exactly])
    apart = np.abs(gradient.view(np.int16).astype(int) - narrow.astype(dtype).view(np.int16))
    assert apart.max() <= (0 if rule in IN_FLOAT else 1)  # what is computed in double is rounded once here, there twice


@every_rule
def test_a_target_of_another_dtype(rule) -> None:
    pred, target = problem(rule, (9, 40))
    if rule in OF_LABELS:
        assert_same(run(rule, pred, target.astype(np.int32), **OPTIONS), run(rule, pred, target, **OPTIONS))
        return
    narrow = target.astype(np.float16)
    expected = run(rule, pred, narrow.astype(np.float32), **OPTIONS)
    for dtype in (np.float16, np.float64):
        assert_same(run(rule, pred, narrow.astype(dtype), **OPTIONS), expected)


# Infinities, NaN, and 0·∞.

INF, NAN = np.inf, np.nan


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("rule", "pred", "target", "loss", "gradient"),
    [
        (LABELS, [0, -INF, -INF], 0, 0, [0, 0, 0]),
        (LABELS, [0, -INF, 0], 1, INF, [0.5, -1, 0.5]),
        (LABELS, [-INF, -INF, -INF], 0, NAN, [NAN] * 3),
        (LABELS, [INF, 0, 0], 0, NAN, [NAN] * 3),
        (LABELS, [NAN, 0, 0], 1, NAN, [NAN] * 3),
        (LABELS, [0, 0, 0], 3, NAN, [0, 0, 0]),
        (LABELS, [0, 0, 0], -1, NAN, [0, 0, 0]),
        (DISTRIBUTIONS, [0, -INF, -INF], [1, 0, 0], 0, [0, 0, 0]),
        (DISTRIBUTIONS, [0, -INF, 0], [0, 1, 0], INF, [0.5, -1, 0.5]),
        (DISTRIBUTIONS, [0, 0, NAN], [1, 0, 0], NAN, [NAN] * 3),
        ("focal softmax", [0, -INF, 0], [0, 1, 0], INF, None),
        ("focal softmax", [0, -INF, -INF], [1, 0, 0], 0, [0, 0, 0]),
        ("probabilities of labels", [1, 0, 0], 0, 0, [0, 1, 1]),
        ("probabilities of labels", [0.5, 0.5, 0], 2, INF, None),
        ("probabilities of distributions", [1, 0, 0], [1, 0, 0], 0, [0, 1, 1]),
        ("probabilities of distributions", [0.5, 0.5, 0], [1, 0, 0], np.log(2), [-1, 1, 1]),
        ("log loss of labels", [1, 0, 0], 0, 0, [-1, 0, 0]),
        ("log loss of labels", [1, 0, 0], 1, INF, None),
        ("Bernoulli of logits", [INF, -INF, 0], [1, 0, 0.5], np.log(2) / 3, [0, 0, 0]),
        ("Bernoulli of logits", [INF, 0, 0], [0, 0, 0], INF, None),
        ("Bernoulli of probabilities", [1, 0, 0.5], [1, 0, 0.5], np.log(2) / 3, None),
        ("Bernoulli of probabilities", [0, 0.5, 0.5], [1, 0, 0], INF, None),
        ("divergence of logits", [0, -INF, 0], [0, -INF, 0], 0, [0, 0, 0]),
        ("divergence of logits", [0, -INF, 0], [0, 0, 0], INF, [1 / 6, -1 / 3, 1 / 6]),
        ("divergence of logits", [-INF, 0, 0], [5, 0, 0], INF, None),
        ("divergence of logits", [0, 0, 0], [-INF, 0, 0], np.log(1.5), [1 / 3, -1 / 6, -1 / 6]),
        ("divergence of logits", [0, 0, NAN], [0, 0, 0], NAN, [NAN] * 3),
        (MIXED, [0, -INF, 0], [0, -INF, 0], 0, [0, 0, 0]),
        (MIXED, [0, -INF, 0], [0, 0, 0], 4 / 3 * np.log(0.8) + 2 / 3 * np.log(2) + 2 * np.log(1.2), [0, 0, 0]),
        (MIXED, [0, -INF, -INF], [-INF, 0, -INF], 4 * np.log(2), [0, 0, 0]),
        (MIXED, [0, -INF, 0], [0, NAN, 0], NAN, [NAN] * 3),
        (MIXED, [-INF, -INF, -INF], [0, 0, 0], NAN, [NAN] * 3),
        (VARIATION, [0, 0, 0], [1, 1, 1], 0, [0, 0, 0]),
        (VARIATION, [0, -INF, 0], [0, 0, 0], 1 / 3, [0, 0, 0]),
        (VARIATION, [0, 0, 0], [-INF, 0, 0], 1 / 3, [2 / 9, -1 / 9, -1 / 9]),
        (VARIATION, [0, -INF, -INF], [-INF, 0, -INF], 1, [0, 0, 0]),
        (VARIATION, [0, 0, INF], [0, 0, 0], NAN, [NAN] * 3),
        (OF_SHARES, [1, 0, 0], [1, 0, 0], 0, [-1, 0, 0]),
        (OF_SHARES, [1, 0, 0], [0.5, 0.5, 0], INF, None),
        (OF_SHARES, [0.5, 0.5, NAN], [0.5, 0.5, 0], NAN, [-1, -1, NAN]),
        (OF_SHARES, [0.5, 0.5, 0], [0.5, NAN, 0], NAN, [-1, NAN, 0]),
    ],
)
def test_infinities_and_nan(rule, pred, target, loss, gradient, dtype) -> None:
    target = np.array([target]) if rule in OF_LABELS else np.array([target], dtype)
    losses, of_pred, _ = run(rule, np.array([pred], dtype), target, gamma=2.0)
    np.testing.assert_allclose(losses[0], loss, rtol=1e-6)
    if gradient is not None:
        np.testing.assert_allclose(of_pred[0], gradient, rtol=1e-6, atol=1e-7)
