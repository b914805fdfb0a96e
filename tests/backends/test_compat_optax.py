"""lossbridge.compat.optax on every backend, against Optax' own functions, and 40 digits where those lose theirs."""

from __future__ import annotations

import doctest
import functools
import inspect
import math

import jax
import mpmath
import numpy as np
import optax
import peers
import pytest

from lossbridge.compat import optax as compat

jax.config.update("jax_platforms", "cpu")
RNG = np.random.default_rng(0)
SHAPE = (4, 3, 5)
LOGITS = RNG.normal(size=SHAPE) * 3
T = RNG.dirichlet(np.ones(5), size=SHAPE[:2])
LOG_P = np.log(RNG.dirichlet(np.ones(5), size=SHAPE[:2]))
LABELS = RNG.integers(0, 5, SHAPE[:2])
WHERE = RNG.random(SHAPE) < 0.6
WHERE[0, 0], WHERE[1, 2] = False, True
ROWS = np.array([True, False, True, True])[:, None] & (RNG.random(SHAPE[:2]) < 0.7)
UNWANTED = np.where(WHERE, LOGITS, np.nan)

# (function, first argument, second, options)
CALLS = [
    *[
        ("softmax_cross_entropy", LOGITS, T, options)
        for options in ({}, {"axis": 1}, {"axis": (1, 2)}, {"axis": (2, 1)}, {"axis": (-1,)}, {"axis": None})
    ],
    *[("softmax_cross_entropy", LOGITS, T, {"where": where}) for where in (WHERE, ROWS, ROWS[..., None])],
    ("softmax_cross_entropy", LOGITS, T, {"axis": 0, "where": WHERE}),
    ("softmax_cross_entropy", LOGITS, T, {"axis": (1, 2), "where": WHERE}),
    ("softmax_cross_entropy", LOGITS, T, {"axis": (0, 1), "where": np.array([0, 1, 1, 0, 1], bool)}),
    ("softmax_cross_entropy", LOGITS, T, {"axis": None, "where": WHERE}),
    ("softmax_cross_entropy_with_integer_labels", LOGITS, LABELS, {}),
    ("softmax_cross_entropy_with_integer_labels", LOGITS, RNG.integers(0, 3, (4, 5)), {"axis": 1}),
    ("softmax_cross_entropy_with_integer_labels", LOGITS, np.array([0, 14, 7, 3]), {"axis": (1, 2)}),
    ("softmax_cross_entropy_with_integer_labels", LOGITS, LABELS, {"where": ROWS}),
    (
        "softmax_cross_entropy_with_integer_labels",
        LOGITS,
        LABELS,
        {"where": WHERE | (np.arange(5) == LABELS[..., None])},  # the label is never excluded
    ),
    ("safe_softmax_cross_entropy", LOGITS, T, {}),
    ("sigmoid_binary_cross_entropy", LOGITS, T, {}),
    ("sigmoid_focal_loss", LOGITS, T, {}),
    ("sigmoid_focal_loss", LOGITS, T.round(), {"alpha": 0.25, "gamma": 1.5}),
    ("poly_loss_cross_entropy", LOGITS, T, {}),
    ("poly_loss_cross_entropy", LOGITS, T, {"epsilon": -1.0, "axis": 1}),
    ("poly_loss_cross_entropy", LOGITS, T, {"where": WHERE}),
    ("poly_loss_cross_entropy", LOGITS, T, {"axis": (0, 1), "where": WHERE}),
    *[
        (name, LOG_P, target, options)
        for name, target in [
            ("kl_divergence", T),
            ("kl_divergence_with_log_targets", np.log(T)),
            ("generalized_kl_divergence", 2 * T),
            ("convex_kl_divergence", T),
        ]
        for options in ({}, {"axis": 1, "where": WHERE}, {"axis": None}, {"axis": (1, 2), "where": WHERE})
    ],
]
calls = pytest.mark.parametrize(
    ("name", "x", "target", "options"), CALLS, ids=[f"{c[0]}-{i}" for i, c in enumerate(CALLS)]
)
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*convex_kl_divergence:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:optax.*"),
]


def theirs(name):
    return getattr(optax.losses, name)


def of_optax(name, x, target, options):
    """Value, and gradients of its sum for both arguments, in float64."""
    where = {"where": options["where"]} if "where" in options else {}
    rest = tuple((key, value) for key, value in options.items() if key != "where")
    with jax.enable_x64(True):
        x, target = jax.numpy.asarray(x), jax.numpy.asarray(target)
        return tuple(np.asarray(result) for result in _optax(name, rest)(x, target, where))


@functools.cache
def _optax(name, options):
    """Optax' function and its gradients as one program: eagerly each of its operations would be compiled by itself."""

    def both(x, target, where):
        function = functools.partial(theirs(name), **dict(options), **where)
        arguments = (0, 1) if target.dtype.kind == "f" else (0,)
        return function(x, target), *jax.grad(lambda *arrays: function(*arrays).sum(), arguments)(x, target)

    return jax.jit(both)


def arrays_of(lib, x, target, dtype="float64"):
    kind = dtype if target.dtype.kind == "f" else {"float64": "int64"}.get(dtype, "int32")
    return lib.array(x, dtype), lib.array(target, kind)


@calls
def test_value_and_gradients_are_optax(lib, name, x, target, options) -> None:
    value, *slopes = of_optax(name, x, target, options)
    with lib.b.scope("float64", "cpu"):
        arrays = arrays_of(lib, x, target)
        function = functools.partial(getattr(compat, name), **peers.placed(lib, options))
        ours, slope = lib.b.value_and_grad(lambda x: function(x, arrays[1]), arrays[0])
        assert lib.b.dtype(ours) == lib.b.dtype(slope) == "float64"
        np.testing.assert_allclose(lib.b.to_numpy(ours), value, rtol=1e-12)
        np.testing.assert_allclose(lib.b.to_numpy(slope), slopes[0], rtol=1e-10, atol=1e-15)
        if len(slopes) > 1 and not (name == "sigmoid_focal_loss" and target.max() == 1):
            _, slope = lib.b.value_and_grad(lambda target: function(arrays[0], target), arrays[1])
            # Optax has NaN and infinities for labels that `where` excludes.
            expected = np.where(np.isfinite(slopes[1]), slopes[1], 0)
            np.testing.assert_allclose(lib.b.to_numpy(slope), expected, rtol=1e-10, atol=1e-15)


# One call of a function with each of its options.
TO_COMPILE = {(name, *options): (name, x, target, options) for name, x, target, options in CALLS}


@pytest.mark.parametrize(("name", "x", "target", "options"), peers.to_compile(list(TO_COMPILE.values())))
def test_compiled(lib, name, x, target, options) -> None:
    value, slope, *_ = of_optax(name, x, target, options)
    with lib.b.scope("float64", "cpu"):
        function = functools.partial(getattr(compat, name), **peers.placed(lib, options))

        def both(x, target):
            return lib.b.value_and_grad(lambda x: function(x, target), x)

        for compile in peers.compilers(lib).values():
            ours = compile(both)(*arrays_of(lib, x, target))
            np.testing.assert_allclose(lib.b.to_numpy(ours[0]), value, rtol=1e-12)
            np.testing.assert_allclose(lib.b.to_numpy(ours[1]), slope, rtol=1e-10, atol=1e-15)


@calls
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_result_is_float32(lib, name, x, target, options, dtype) -> None:
    arrays = arrays_of(lib, x, target, dtype)
    value = getattr(compat, name)(*arrays, **peers.placed(lib, options))
    assert lib.b.dtype(value) == "float32"
    rounded = [lib.b.to_numpy(a) for a in arrays]
    exact, *_ = of_optax(name, *(r.astype(np.float64) if r.dtype.kind == "f" else r for r in rounded), options)
    np.testing.assert_allclose(lib.b.to_numpy(value), exact, rtol=4e-6, atol=2e-6)
    if options == {}:
        _, slope = lib.b.value_and_grad(lambda x: getattr(compat, name)(x, arrays[1]), arrays[0])
        assert lib.b.dtype(slope) == dtype


def test_signatures_are_optax() -> None:
    for name in compat.__all__:
        ours, of_them = (inspect.signature(getattr(m, name)).parameters.values() for m in (compat, optax.losses))
        assert [(p.name, p.kind, p.default) for p in ours] == [(p.name, p.kind, p.default) for p in of_them], name


def test_examples_in_docstrings() -> None:
    failed, tried = doctest.testmod(compat)
    assert (failed, tried) == (0, len(compat.__all__))


def test_focal_gradient_for_hard_labels(lib) -> None:
    """Of Optax' it lacks a term, where a label is exactly 0 or 1."""

    def exact(t):
        p = 1 / (1 + mpmath.exp(-1.5))
        cost = -t * mpmath.log(p) - (1 - t) * mpmath.log(1 - p)
        return (0.25 * t + 0.75 * (1 - t)) * (t * (1 - p) + (1 - t) * p) ** 1.5 * cost

    with lib.b.scope("float64", "cpu"):
        x, t = arrays_of(lib, np.array([1.5, 1.5]), np.array([0.0, 1.0]))
        _, slope = lib.b.value_and_grad(lambda t: compat.sigmoid_focal_loss(x, t, alpha=0.25, gamma=1.5), t)
        np.testing.assert_allclose(lib.b.to_numpy(slope), [float(mpmath.diff(exact, t)) for t in (0, 1)], rtol=1e-12)


def test_what_where_excludes_reaches_nothing(lib) -> None:
    """Masked is as sliced: NaN and infinity there reach neither value nor gradient."""
    target = np.where(WHERE, T, np.inf)
    for name, log in [
        ("softmax_cross_entropy", False),
        ("poly_loss_cross_entropy", False),
        ("kl_divergence", False),
        ("kl_divergence_with_log_targets", True),
        ("generalized_kl_divergence", False),
    ]:
        function = getattr(compat, name)
        with lib.b.scope("float64", "cpu"):
            x, t = arrays_of(lib, UNWANTED, np.where(WHERE, np.log(T), np.nan) if log else target)
            value, slope = lib.b.value_and_grad(lambda x: function(x, t, where=lib.array(WHERE)), x)  # noqa: B023
            _, target_slope = lib.b.value_and_grad(lambda t: function(x, t, where=lib.array(WHERE)), t)  # noqa: B023
            value, slope, target_slope = (lib.b.to_numpy(a) for a in (value, slope, target_slope))
        assert value[0, 0] == 0
        assert (slope[~WHERE] == 0).all()
        assert (target_slope[~WHERE] == 0).all()
        assert np.isfinite(target_slope).all()
        for i, j in np.ndindex(SHAPE[:2]):
            kept = WHERE[i, j]
            if kept.any():
                sliced = np.log(T[i, j, kept]) if log else T[i, j, kept]
                exact, exact_slope, _ = of_optax(name, LOGITS[i, j, kept], sliced, {})
                np.testing.assert_allclose(value[i, j], exact, rtol=1e-12)
                np.testing.assert_allclose(slope[i, j, kept], exact_slope, rtol=1e-10, atol=1e-15)


def test_an_excluded_integer_label_has_no_probability(lib) -> None:
    where, labels = lib.array([[True, True, False]] * 3 + [[False] * 3]), lib.array(np.array([0, 2, 1, 7]))
    value = compat.softmax_cross_entropy_with_integer_labels(lib.array(np.zeros((4, 3))), labels, where=where)
    np.testing.assert_allclose(lib.b.to_numpy(value), [math.log(2), math.inf, math.log(2), 0], rtol=1e-6)


def test_confident_rows_keep_their_digits(lib) -> None:
    for lead in (8, 14, 20, 30):
        logits = lib.array(np.array([[lead, 0.0], [lead + 1e4, 1e4]]))
        exact = mpmath.log1p(mpmath.exp(-lead))
        rest = 1 - mpmath.exp(-exact)
        one_hot = lib.array(np.array([[1.0, 0.0]] * 2))
        for value in (
            compat.softmax_cross_entropy(logits, one_hot),
            compat.softmax_cross_entropy_with_integer_labels(logits, lib.array(np.array([0, 0]))),
            compat.safe_softmax_cross_entropy(logits, one_hot),
            compat.sigmoid_binary_cross_entropy(lib.array(np.float32([lead, lead])), lib.array(np.ones(2))),
        ):
            np.testing.assert_allclose(lib.b.to_numpy(value), [float(exact)] * 2, rtol=1e-6)
        for epsilon in (2.0, -0.5, -1.0):
            value = compat.poly_loss_cross_entropy(logits, one_hot, epsilon=epsilon)
            np.testing.assert_allclose(lib.b.to_numpy(value), [float(exact + epsilon * rest)] * 2, rtol=2e-6)


def test_nearly_equal_distributions_keep_their_digits(lib) -> None:
    rng = np.random.default_rng(1)
    t = rng.dirichlet(np.ones(5), 6).astype(np.float32)
    log_p = np.log(t * (1 + 1e-3 * rng.normal(size=t.shape))).astype(np.float32)
    t_exact, log_exact = peers.number(t), peers.number(log_p)
    kl = t_exact * (peers.log(t_exact) - log_exact)
    generalized = (kl - t_exact + peers.exp(log_exact)).sum(1).astype(float)
    value = lib.b.to_numpy(compat.generalized_kl_divergence(lib.array(log_p), lib.array(t)))
    assert (value > 0).all()
    # Without float64 (JAX) what is left is the rounding of log t: 1e-7 of 1e-3, twice.
    np.testing.assert_allclose(value, generalized, rtol=1e-6 if lib.b.widest(lib.array(t)) == "float64" else 2e-3)
    if lib.b.widest(lib.array(t)) == "float64":
        value = lib.b.to_numpy(compat.kl_divergence(lib.array(log_p), lib.array(t)))
        np.testing.assert_allclose(value, kl.sum(1).astype(float), rtol=1e-6)


def test_edges(lib) -> None:
    """0·∞ is 0, in every gradient too; +∞ where there is mass and no probability."""
    infinite = np.array([[0.0, -np.inf, 1.0], [0.0, -np.inf, 1.0]])
    t = np.array([[0.25, 0.0, 0.75], [0.0, 1.0, 0.0]])
    with np.errstate(divide="ignore"):
        log_t = np.log(t)
    for name, target in [
        ("softmax_cross_entropy", t),
        ("safe_softmax_cross_entropy", t),
        ("poly_loss_cross_entropy", t),
        ("kl_divergence", t),
        ("kl_divergence_with_log_targets", log_t),
        ("generalized_kl_divergence", t),
    ]:
        function = getattr(compat, name)
        for both in (0, 1):
            x, y = lib.array(infinite), lib.array(target)

            def one(z, function=function, x=x, y=y, both=both):
                return function(z, y) if both == 0 else function(x, z)

            value, slope = (lib.b.to_numpy(a) for a in lib.b.value_and_grad(one, (x, y)[both]))
            assert np.isfinite(value[0])
            assert value[1] == np.inf
            assert np.isfinite(slope[0]).all(), (name, both)
    for name in ("sigmoid_binary_cross_entropy", "sigmoid_focal_loss"):
        x, y = lib.array(np.array([-np.inf, np.inf, np.inf])), lib.array(np.array([0.0, 1.0, 0.0]))
        value, slope = lib.b.value_and_grad(lambda x: getattr(compat, name)(x, y), x)  # noqa: B023
        np.testing.assert_array_equal(lib.b.to_numpy(value), [0, 0, np.inf])
        assert (lib.b.to_numpy(slope)[:2] == 0).all()


def test_empty_batch(lib) -> None:
    for name in compat.__all__:
        integers = name.endswith("labels")
        target = np.zeros((0,), np.int32) if integers else np.zeros((0, 3))
        value = getattr(compat, name)(lib.array(np.zeros((0, 3))), lib.array(target))
        assert lib.b.shape(value) == ((0, 3) if name.startswith("sigmoid") else (0,))


def test_labels_out_of_range(lib) -> None:
    function = compat.softmax_cross_entropy_with_integer_labels
    x, labels = lib.array(np.zeros((3, 2))), lib.array(np.array([0, -1, 2]))
    with pytest.raises(ValueError, match=r"label -1 at index 1 is out of range: .* leave it out with where="):
        function(x, labels)
    for compile in peers.compilers(lib).values():
        value = lib.b.to_numpy(compile(function)(x, labels))
        assert np.isnan(value[1:]).all()
        assert value[0] == pytest.approx(math.log(2))
    kept = function(x, labels, where=lib.array(np.array([True, False, False])))
    np.testing.assert_allclose(lib.b.to_numpy(kept), [math.log(2), 0, 0], rtol=1e-6)


def test_lists_and_numpy_adopt_the_logits(lib) -> None:
    x = lib.array(LOGITS[0, :, :3])
    value = compat.softmax_cross_entropy(x, np.eye(3), where=np.ones((3, 3), bool))
    assert lib.b.owns(value)
    assert lib.b.dtype(value) == "float32"
    np.testing.assert_allclose(
        lib.b.to_numpy(compat.softmax_cross_entropy_with_integer_labels(x, [0, 1, 2])), lib.b.to_numpy(value), rtol=1e-6
    )


def test_arguments_are_left_as_they_are(lib) -> None:
    for name, x, target, options in CALLS:
        before = [x.copy(), target.copy(), options["where"].copy() if "where" in options else None]
        arrays = *arrays_of(lib, x, target, "float32"), peers.placed(lib, options).get("where")
        copies = [None if a is None else lib.b.to_numpy(a).copy() for a in arrays]
        getattr(compat, name)(*arrays[:2], **peers.placed(lib, options | {} if arrays[2] is None else options))
        getattr(compat, name)(x, target, **options)
        for array, copy in zip(arrays, copies, strict=True):
            assert array is None or (lib.b.to_numpy(array) == copy).all()
        for array, copy in zip((x, target, options.get("where")), before, strict=True):
            assert array is None or (array == copy).all()


def test_errors(lib) -> None:
    x, t, labels = lib.array(LOGITS), lib.array(T), lib.array(LABELS)
    with pytest.raises(ValueError, match=r"labels has shape \(5,\) and logits \(4, 3, 5\), and nothing is broadcast"):
        compat.softmax_cross_entropy(x, lib.array(T[0, 0]))
    with pytest.raises(ValueError, match=r"labels has shape \(4, 3\).*use softmax_cross_entropy_with_integer_labels"):
        compat.softmax_cross_entropy(x, labels)
    with pytest.raises(TypeError, match=r"logits has dtype int32, and logits .* swap logits and labels"):
        compat.softmax_cross_entropy_with_integer_labels(labels, x)
    with pytest.raises(TypeError, match=r"labels has dtype float32, and class labels are integers"):
        compat.softmax_cross_entropy_with_integer_labels(x, t[:, :, 0])
    with pytest.raises(TypeError, match=r"labels has dtype int32, .* floating-point"):
        compat.poly_loss_cross_entropy(x, lib.array(np.round(T).astype(int)))
    with pytest.raises(TypeError, match=r"targets has dtype int32"):
        compat.kl_divergence(x, lib.array(np.round(T).astype(int)))
    with pytest.raises(ValueError, match=r"where has shape \(4, 3\) and log_predictions \(4, 3, 5\)"):
        compat.kl_divergence(x, t, where=lib.array(ROWS))
    with pytest.raises(ValueError, match=r"where has shape \(3,\) and the losses \(4, 3\), and nothing is broadcast"):
        compat.softmax_cross_entropy(x, t, where=lib.array(ROWS[0]))
    with pytest.raises(ValueError, match=r"where has shape \(4, 1, 5\) and logits \(4, 3, 5\)"):
        compat.softmax_cross_entropy(x, t, where=lib.array(WHERE[:, :1]))
    with pytest.raises(ValueError, match=r"axes \(0, 2\) do not lie side by side in logits, of shape \(4, 3, 5\)"):
        compat.softmax_cross_entropy(x, t, axis=(0, 2))
    with pytest.raises(ValueError, match=r"axes \(1, 1\) do not lie side by side"):
        compat.softmax_cross_entropy(x, t, axis=(1, 1))
    with pytest.raises(TypeError, match="axis is list; pass an integer, a tuple of them, or None"):
        compat.softmax_cross_entropy(x, t, axis=[1])
    with pytest.raises(ValueError, match=r"axis \(2, 1\) is not in ascending order"):
        compat.softmax_cross_entropy_with_integer_labels(x, labels[:, 0], axis=(2, 1))
    with pytest.raises(TypeError, match="axis is None, and integer labels"):
        compat.softmax_cross_entropy_with_integer_labels(x, labels, axis=None)
    with pytest.raises(ValueError, match=r"gamma is -1\.0; pass a number in \[0, 1e15\]"):
        compat.sigmoid_focal_loss(x, t, gamma=-1.0)
    with pytest.raises(ValueError, match=r"alpha is 2; pass a number in \[0, 1\]"):
        compat.sigmoid_focal_loss(x, t, alpha=2)
    with pytest.raises(TypeError, match="epsilon is None; pass a Python number"):
        compat.poly_loss_cross_entropy(x, t, epsilon=None)


def test_a_padded_row_is_safe(lib) -> None:
    """Of nothing but −∞, and with no label: 0, and so is its gradient."""
    logits = np.array([[1.0, 2.0, -np.inf], [-np.inf] * 3], np.float32)
    labels = np.array([[1, 0, 0], [0, 0, 0]], np.float32)
    value, gradient = peers.value_and_grad(
        lib, lambda x: compat.safe_softmax_cross_entropy(x, lib.array(labels)), logits, "float32"
    )
    np.testing.assert_allclose(value, [np.log1p(np.e), 0], rtol=1e-6)
    p = 1 / (1 + np.e)
    np.testing.assert_allclose(gradient, [[p - 1, 1 - p, 0], [0, 0, 0]], rtol=1e-6)
