"""lossbridge.compat.sklearn on every backend, against scikit-learn's log loss; its gradients against closed forms."""

from __future__ import annotations

import doctest
import functools
import inspect
import warnings

import mpmath
import numpy as np
import peers
import pytest
import sklearn.metrics

from lossbridge.compat import sklearn as compat

RNG = np.random.default_rng(0)
P = RNG.dirichlet(np.ones(4), 6)
P[0], P[1] = [1, 0, 0, 0], [0, 0.25, 0.75, 0]
LABELS = np.array([0, 3, 2, 1, 1, 0])  # of probability 1, 0, …
WEIGHT = np.array([1.0, 2.0, 0.5, 0.0, 3.0, 1.0])
BINARY = np.array([1, 0, 0, 1, 1, 0])
COLUMN = np.array([1.0, 1.0, 0.25, 0.0, 0.9, 1e-9])
INDICATORS = np.array([[1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 1, 0, 1], [0, 0, 0, 1], [1, 1, 1, 1]])
NAMES = np.array(["ham", "jam", "lamb", "spam"])

# (y_true, y_proba, options)
CALLS = [
    (LABELS, P, {}),
    (LABELS, P, {"sample_weight": WEIGHT}),
    (LABELS, P, {"normalize": False}),
    (LABELS, P, {"normalize": False, "sample_weight": WEIGHT}),
    (LABELS % 2, P, {"labels": [0, 1, 2, 5]}),
    (10 * LABELS - 10, P, {"labels": [-10, 0, 10, 20]}),
    (BINARY, COLUMN, {}),
    (BINARY, COLUMN, {"sample_weight": WEIGHT}),
    (BINARY, COLUMN[:, None], {"labels": [0, 1]}),
    (2 * BINARY - 1, COLUMN, {"labels": [-1, 1]}),
    (0 * BINARY, COLUMN, {"labels": [0, 1]}),
    (INDICATORS, P, {}),
    (INDICATORS, P, {"sample_weight": WEIGHT}),
]
calls = pytest.mark.parametrize(("y_true", "y_proba", "options"), CALLS, ids=range(len(CALLS)))
# What only the host can read: strings, and labels that do not count from 0.
READABLE = [
    (NAMES[LABELS].tolist(), P),
    (NAMES[LABELS], P),
    (NAMES[LABELS].astype(object), P),
    (LABELS[:, None], P),
    (2.0 * LABELS - 1, P),
    (BINARY.astype(bool), COLUMN),
    (np.where(BINARY, "yes", "no"), COLUMN),
    (BINARY.tolist(), COLUMN),
    ((3 * BINARY).astype(np.int8), np.stack([1 - COLUMN, COLUMN], 1)),
]


def before_1_5(y_true, y_pred, eps=1e-15, normalize=True, sample_weight=None, labels=None):
    """What scikit-learn's code of then comes to, in the dtype of the probabilities."""
    if np.ndim(y_true) == 1:
        columns = np.unique(y_true if labels is None else labels)
        y_true = (np.asarray(y_true)[:, None] == columns).astype(float)
    p = np.clip(y_pred.reshape(len(y_pred), -1), eps, 1 - eps)
    p = np.append(1 - p, p, axis=1) if p.shape[1] == 1 else p
    p = p / p.sum(1, keepdims=True)
    cost = -(y_true * np.log(p)).sum(1)
    weight = np.ones(len(cost)) if sample_weight is None else sample_weight
    return (cost * weight).sum() / (weight.sum() if normalize else 1)


def loss(name):
    theirs = sklearn.metrics.log_loss if name == "log_loss" else before_1_5
    return getattr(compat, name), theirs


names = pytest.mark.parametrize("name", compat.__all__)


@names
@calls
def test_value_and_gradient(lib, name, y_true, y_proba, options) -> None:
    ours, theirs = loss(name)
    expected = theirs(y_true, y_proba, **options)
    # By differences, scikit-learn's own for the entries whose neighbours are probabilities, too.
    inside = (y_proba > 1e-3) & (y_proba < 1 - 1e-3)
    step = 1e-6
    slope = np.zeros(y_proba.shape)
    for index in np.argwhere(inside):
        up, down = y_proba.copy(), y_proba.copy()
        up[tuple(index)] += step
        down[tuple(index)] -= step
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            difference = theirs(y_true, up, **options) - theirs(y_true, down, **options)
        slope[tuple(index)] = difference / (2 * step)
    with lib.b.scope("float64", "cpu"):
        labels, p = lib.array(y_true, "int64"), lib.array(y_proba, "float64")
        function = functools.partial(ours, **peers.placed(lib, options))
        value, gradient = lib.b.value_and_grad(lambda p: function(labels, p), p)
        assert lib.b.shape(value) == ()
        assert lib.b.dtype(value) == lib.b.dtype(gradient) == "float64"
        gradient = lib.b.to_numpy(gradient)
        np.testing.assert_allclose(lib.b.to_numpy(value), expected, rtol=1e-12)
        np.testing.assert_allclose(gradient[inside], slope[inside], rtol=1e-6, atol=1e-8)
        if name == "log_loss":
            assert (gradient[(y_proba == 0) | (y_proba == 1)] == 0).all()  # clipped


@pytest.mark.parametrize(
    ("name", "y_true", "y_proba", "options"),
    peers.to_compile([(name, *call) for name in compat.__all__ for call in CALLS]),
)
def test_compiled(lib, name, y_true, y_proba, options) -> None:
    function = functools.partial(getattr(compat, name), **peers.placed(lib, options))

    def both(y, p):
        return lib.b.value_and_grad(lambda p: function(y, p), p)

    with lib.b.scope("float64", "cpu"):
        own = lib.array(y_true, "int64"), lib.array(y_proba, "float64")
        value, gradient = map(lib.b.to_numpy, both(*own))
        for compile in peers.compilers(lib).values():
            found = compile(both)(*own)
            np.testing.assert_allclose(lib.b.to_numpy(found[0]), value, rtol=1e-12)
            np.testing.assert_allclose(lib.b.to_numpy(found[1]), gradient, rtol=1e-12, atol=1e-15)


@names
@pytest.mark.parametrize(("y_true", "y_proba"), READABLE, ids=range(len(READABLE)))
def test_labels_of_all_kinds(lib, name, y_true, y_proba) -> None:
    ours, theirs = loss(name)
    flat = np.ravel(y_true)
    with lib.b.scope("float64", "cpu"):
        value = ours(y_true, lib.array(y_proba, "float64"))
        np.testing.assert_allclose(lib.b.to_numpy(value), theirs(flat, y_proba), rtol=1e-12)
        if np.asarray(y_true).dtype.kind in "ifb":
            dtype = {"i": "int32", "f": "float32", "b": "bool"}[np.asarray(y_true).dtype.kind]
            value = ours(lib.array(np.asarray(y_true), dtype), lib.array(y_proba, "float64"))
            np.testing.assert_allclose(lib.b.to_numpy(value), theirs(flat, y_proba), rtol=1e-12)


def test_labels_given(lib) -> None:
    p = lib.array(P.astype(np.float32))
    expected = sklearn.metrics.log_loss(LABELS, P.astype(np.float32))
    for labels in (NAMES, NAMES.tolist(), tuple(NAMES.tolist())):
        assert float(compat.log_loss(NAMES[LABELS], p, labels=labels)) == pytest.approx(expected, rel=1e-6)
    assert float(compat.log_loss(LABELS, p, labels=lib.array(np.arange(4)))) == pytest.approx(expected, rel=1e-6)
    # A name longer than any that y_true holds is no other's beginning.
    values = compat.log_loss(["a", "a"], lib.array(P[2:4, :2] / P[2:4, :2].sum(1, keepdims=True)), labels=["a", "ab"])
    assert float(values) == pytest.approx(-np.log(P[2:4, 0] / P[2:4, :2].sum(1)).mean(), rel=1e-6)
    with pytest.warns(UserWarning, match=r"labels \['spam', 'lamb', 'jam', 'ham'\] count in sorted order"):
        value = compat.log_loss(NAMES[LABELS], p, labels=NAMES[::-1].tolist())
    assert float(value) == pytest.approx(expected, rel=1e-6)


def test_labels_as_bytes(lib) -> None:
    """As TensorFlow gives strings back."""
    values = NAMES[LABELS].astype("S")
    for y_true in (values, values.astype(object)):
        value = compat.log_loss(y_true, lib.array(P), labels=NAMES.tolist())
        assert float(value) == pytest.approx(sklearn.metrics.log_loss(LABELS, np.float32(P)), rel=1e-6)


def test_traced_labels(lib) -> None:
    """What is none of them is NaN; without `labels` they are columns."""
    p, column = lib.array(P[2:]), lib.array(COLUMN[2:])
    for compile in peers.compilers(lib).values():
        for y_true, labels, good in [
            ([0, 1, 2, 3], None, True),
            ([0, 1, 4, 3], None, False),
            ([0, -1, 2, 3], None, False),
            ([5, 6, 8, 9], [5, 6, 8, 9], True),
            ([5, 6, 7, 9], [5, 6, 8, 9], False),
        ]:
            function = functools.partial(compat.log_loss, labels=labels)
            value = float(compile(function)(lib.array(np.array(y_true)), p))
            assert np.isnan(value) != good
            if good:
                assert value == pytest.approx(sklearn.metrics.log_loss(range(4), P[2:]), rel=1e-5)
        for y_true, good in [([0, 1, 1, 0], True), ([0, 2, 1, 0], False), ([0, -1, 1, 0], False)]:
            value = float(compile(compat.log_loss)(lib.array(np.array(y_true)), column))
            assert np.isnan(value) != good
        floats = compile(functools.partial(compat.log_loss, labels=[0.5, 1.5]))
        value = float(floats(lib.array(np.array([0.5, 1.5, 1.5, 0.5])), column))
        assert value == pytest.approx(sklearn.metrics.log_loss([0, 1, 1, 0], np.float32(COLUMN[2:])), rel=1e-5)


@names
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_halves(lib, name, dtype) -> None:
    """Clipped at their own machine epsilon, and computed in float32."""
    epsilon = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23}[dtype]
    options = {} if name == "log_loss" else {"eps": "auto"}
    for y_true, p, exact in [
        (BINARY, COLUMN, before_1_5),
        (LABELS, P, before_1_5 if options else None),
    ]:
        array = lib.array(p, dtype)
        rounded = lib.b.to_numpy(array).astype(np.float64)
        if exact is None:
            expected = -np.log(np.clip(rounded[np.arange(6), y_true], epsilon, 1 - epsilon)).mean()
        else:
            expected = exact(y_true, rounded, eps=epsilon)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value, gradient = lib.b.value_and_grad(lambda p: loss(name)[0](y_true, p, **options), array)  # noqa: B023
        assert lib.b.dtype(value) == "float32"
        assert lib.b.dtype(gradient) == dtype
        np.testing.assert_allclose(float(value), expected, rtol=2e-6)


def test_integers_are_of_the_widest_dtype(lib) -> None:
    """As scikit-learn takes them; of JAX without float64 that is float32, and its machine epsilon."""
    dtype = lib.b.widest(lib.array(np.ones(1)))
    for p in ([[0, 1], [1, 0]], [1, 0]):
        value = compat.log_loss([0, 1], lib.array(np.array(p)))
        assert lib.b.dtype(value) == dtype
        assert float(value) == pytest.approx(sklearn.metrics.log_loss([0, 1], np.array(p, dtype)), rel=1e-6)


def test_gradients_of_weights_and_indicators(lib) -> None:
    with lib.b.scope("float64", "cpu"):
        p, w, t = (lib.array(x, "float64") for x in (P[2:], WEIGHT[2:], INDICATORS[2:].astype(float)))
        loss_of = functools.partial(compat.log_loss, LABELS[2:], p, labels=[0, 1, 2, 3])
        _, slope = lib.b.value_and_grad(lambda w: loss_of(sample_weight=w), w)
        cost = -np.log(P[np.arange(2, 6), LABELS[2:]])
        mean = (cost * WEIGHT[2:]).sum() / WEIGHT[2:].sum()
        expected = (cost - mean) / WEIGHT[2:].sum()
        np.testing.assert_allclose(lib.b.to_numpy(slope)[[0, 2, 3]], expected[[0, 2, 3]], rtol=1e-12)  # weights not 0
        _, slope = lib.b.value_and_grad(lambda t: compat.log_loss(t, p), t)
        np.testing.assert_allclose(lib.b.to_numpy(slope), -np.log(P[2:]) / 4, rtol=1e-12)


def test_a_confident_column_keeps_its_digits(lib) -> None:
    """scikit-learn takes 1 − p first, whose logarithm has none left."""
    p = np.float32([1e-5, 3e-6])
    value = compat.log_loss([0, 0], lib.array(p), labels=[0, 1])
    exact = -sum(mpmath.log1p(-mpmath.mpf(float(x))) for x in p) / 2
    assert float(value) == pytest.approx(float(exact), rel=1e-6)


def test_what_weighs_nothing_is_left_out(lib) -> None:
    p = P.copy()
    p[3] = np.nan
    for name in compat.__all__:
        function = functools.partial(getattr(compat, name), LABELS, sample_weight=WEIGHT)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            value, gradient = lib.b.value_and_grad(function, lib.array(p))
        expected = float(function(lib.array(P)))
        assert float(value) == pytest.approx(expected, rel=1e-6)
        assert (lib.b.to_numpy(gradient)[3] == 0).all()
        assert np.isnan(float(getattr(compat, name)(LABELS, lib.array(p))))


def test_nothing_to_average_is_zero(lib) -> None:
    for name in compat.__all__:
        function = getattr(compat, name)
        assert float(function([], lib.array(np.zeros((0, 3))))) == 0
        assert float(function(np.zeros(0, int), lib.array(np.zeros(0)), labels=[0, 1])) == 0
        assert float(function([0, 1], lib.array(np.full(2, 0.5)), sample_weight=[0, 0])) == 0


def test_sums(lib) -> None:
    p = np.array([[0.5, 0.5], [0.5, 0.4]])
    with pytest.warns(UserWarning, match=r"y_proba sums to 0.9 in row 1, not to 1"):
        value = compat.log_loss([0, 1], lib.array(p))
    with pytest.warns(UserWarning, match="do not sum to one"):
        assert float(value) == pytest.approx(sklearn.metrics.log_loss([0, 1], np.float32(p)), rel=1e-6)
    assert float(compat.log_loss_before_1_5([0, 1], lib.array(p))) == pytest.approx(before_1_5([0, 1], p), rel=1e-6)
    near = np.float32([[0.5, 0.5003]])
    assert np.isfinite(float(compat.log_loss([0], lib.array(near), labels=[0, 1])))  # within the root of the epsilon


def test_before_1_5_in_float32_had_no_upper_bound(lib) -> None:
    """1 − 1e-15 is 1 in float32."""
    p = np.float32([1, 0.5])
    assert float(compat.log_loss_before_1_5([0, 1], lib.array(p))) == np.inf
    with np.errstate(divide="ignore"):
        assert before_1_5([0, 1], p) == np.inf


def test_arguments(lib) -> None:
    """The older name of y_proba; NumPy beside an array of the backend; nothing is changed."""
    p = lib.array(P)
    assert float(compat.log_loss(LABELS, y_pred=p)) == float(compat.log_loss(LABELS, p))
    assert lib.b.owns(compat.log_loss(LABELS.tolist(), p, sample_weight=WEIGHT.tolist()))
    arrays = [np.array(x) for x in (LABELS, P, WEIGHT)]
    own = [lib.array(x) for x in arrays]
    for name in compat.__all__:
        for y_true, y_proba, weight in (arrays, own):
            getattr(compat, name)(y_true, y_proba, sample_weight=weight, labels=[0, 1, 2, 3])
    for array, copy, original in zip(arrays, own, (LABELS, P, WEIGHT), strict=True):
        assert (array == original).all()
        assert (lib.b.to_numpy(copy) == lib.b.to_numpy(lib.array(original))).all()


def test_signature_is_scikit_learns() -> None:
    ours, theirs = (inspect.signature(f).parameters.values() for f in (compat.log_loss, sklearn.metrics.log_loss))
    assert [(p.name, p.kind, p.default) for p in ours] == [(p.name, p.kind, p.default) for p in theirs]
    old = list(inspect.signature(compat.log_loss_before_1_5).parameters)
    assert old == ["y_true", "y_pred", "eps", "normalize", "sample_weight", "labels"]


def test_examples_in_docstrings() -> None:
    failed, tried = doctest.testmod(compat)
    assert (failed, tried) == (0, len(compat.__all__))


@pytest.mark.parametrize(
    ("y_true", "y_proba", "options", "words"),
    [
        ([0, 1], [[0.5, 0.5], [1.5, -0.5]], {}, r"y_proba holds 1.5 at index \(1, 0\), .* in \[0, 1\]; logits go"),
        ([0, 1], [[[0.5, 0.5]]], {}, r"y_proba has shape \(1, 1, 2\); pass \(N, C\), or \(N,\)"),
        ([1, 1], [0.5, 0.5], {}, "y_true holds one label alone, 1; pass all labels as labels="),
        ([1, 1], [0.5, 0.5], {"labels": ["a"]}, r"labels holds \['a'\], and log loss needs two labels at least"),
        ([0, 1, 2], [0.5, 0.5, 0.5], {}, "y_true holds 3 labels, and y_proba has columns for 2; pass all labels"),
        (["a", "b"], [[1, 0, 0], [0, 1, 0]], {}, "y_true holds 2 labels, and y_proba has columns for 3"),
        ([0, 1], [0.5, 0.5], {"labels": [0, 1, 2]}, "labels holds 3 labels, and y_proba has columns for 2"),
        (
            ["a", "c"],
            [0.5, 0.5],
            {"labels": ["a", "b"]},
            r"y_true holds 'c' at index 1, not among the labels \['a', 'b'",
        ),
        ([0, 1], [0.5, 0.5], {"labels": ["a", "b"]}, r"y_true holds 0 at index 0, not among the labels \['a', 'b'\]"),
        ([0.0, 0.3], [0.5, 0.5], {}, "y_true holds 0.3 at index 1, no label; soft targets go to binary_crossentropy"),
        ([[1, 0], [0.5, 0.5]], [[1, 0], [0, 1]], {}, r"y_true holds 0.5 at index \(1, 0\), no entry of an indicator"),
        (
            [[1, 0], [0, 1]],
            [[1, 0], [0, 1]],
            {"labels": [0, 1]},
            r"the columns of y_true, of shape \(2, 2\), are the la",
        ),
        ([[1, 0], [0, 1]], [0.5, 0.5], {}, r"y_true has shape \(2, 2\) and y_proba \(2,\), and nothing is broadcast"),
        ([0, 1, 1], [0.5, 0.5], {}, r"y_true has shape \(3,\) and y_proba \(2,\), and nothing is broadcast"),
        ([0, 1, 1], [[1, 0], [0, 1]], {}, r"y_true has shape \(3,\) and y_proba \(2, 2\).* must have shape \(2,\)"),
        ([0, 1], [0.5, 0.5], {"sample_weight": [1, 2, 3]}, r"sample_weight has shape \(3,\)"),
    ],
)
def test_errors(lib, y_true, y_proba, options, words) -> None:
    for y in (y_true, lib.array(y_true)) if np.asarray(y_true).dtype.kind in "if" else (y_true,):
        if np.asarray(y_true).dtype.kind == "f" and "0.3" in words and y is not y_true:
            words = words.replace("0.3", "0.3[0-9]*")  # of float32
        with pytest.raises(ValueError, match=words):
            compat.log_loss(y, lib.array(np.array(y_proba, np.float32)), **options)


def test_more_errors(lib) -> None:
    p = lib.array(P)
    with pytest.raises(ValueError, match="y_pred is the older name of y_proba, and both are given"):
        compat.log_loss(LABELS, p, y_pred=p)
    with pytest.raises(TypeError, match="y_true is None; pass labels"):
        compat.log_loss(None, p)
    with pytest.raises(TypeError, match="normalize is 1; pass True or False"):
        compat.log_loss(LABELS, p, normalize=1)
    with pytest.raises(ValueError, match=r"epsilon is 0\.7"):
        compat.log_loss_before_1_5(LABELS, p, eps=0.7)
    with pytest.raises(ValueError, match=r"y_pred has shape \(6, 4, 1\)"):
        compat.log_loss_before_1_5(LABELS, lib.array(P[..., None]))
    with pytest.raises(TypeError, match="epsilon is ndarray; pass a Python number"):
        compat.log_loss_before_1_5(LABELS, p, eps=np.array([1e-3, 2]))


@pytest.mark.parametrize(
    ("y_true", "options", "error", "words"),
    [
        ([1, "a", "a"], {}, TypeError, "y_true holds 'a' and 1; labels are all texts, or all numbers"),
        ([None, 1, 1], {}, TypeError, "y_true holds None; labels are texts, or numbers"),
        (np.array([1, "a", "a"], object), {}, TypeError, "y_true holds 'a' and 1; labels are all texts"),
        ([0, 1, 1], {"labels": [None, 0]}, TypeError, "labels holds None; labels are texts, or numbers"),
        ([0, 1, 1], {"labels": [0, "a"]}, TypeError, "labels holds 'a' and 0; labels are all texts, or all numbers"),
        ([0, 1, 1], {"labels": [[0, 1]]}, ValueError, r"labels has shape \(1, 2\); pass a list, one label a column"),
        ([0, 1, 1], {"labels": np.array([[0, 1]])}, ValueError, r"labels has shape \(1, 2\); pass a list"),
        ([0, 1, 1], {"labels": 1}, ValueError, r"labels has shape \(\); pass a list, one label a column"),
    ],
)
def test_labels_that_have_no_order(lib, y_true, options, error, words) -> None:
    with pytest.raises(error, match=words) as raised:
        compat.log_loss(y_true, lib.array(np.array([0.3, 0.6, 0.2], np.float32)), **options)
    assert len(str(raised.value).splitlines()) == 1


def test_labels_of_every_kind() -> None:
    p = [0.3, 0.6, 0.2]
    expected = float(compat.log_loss([0, 1, 0], p))
    for y_true in (
        [False, True, False],
        [np.int64(0), np.int64(1), 0],
        ["a", "b", "a"],
        [b"a", b"b", b"a"],
        [0, 1.0, 0],
    ):
        assert float(compat.log_loss(y_true, p)) == expected
    for labels in ([0, 1], (0, 1), range(2), np.arange(2)):
        assert float(compat.log_loss([0, 1, 0], p, labels=labels)) == expected
