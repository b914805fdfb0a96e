"""lossbridge.compat.scipy on every backend, against SciPy's own functions, and 40 digits: it has no gradients."""

from __future__ import annotations

import doctest
import functools
import inspect

import mpmath
import numpy as np
import peers
import pytest
import scipy.special
import scipy.stats

from lossbridge.compat import scipy as compat

RNG = np.random.default_rng(0)
X = RNG.dirichlet(np.ones(5), size=(3, 2)) * 3
Y = RNG.dirichlet(np.ones(5), size=(3, 2))
X[0, 0, 1] = X[1, 1, 2] = Y[1, 1, 2] = 0

# (function, arguments, options)
CALLS = [
    *[("entropy", (X,), options) for options in ({}, {"axis": -1}, {"axis": 1, "base": 2}, {"axis": None})],
    *[("entropy", (X, Y), options) for options in ({"axis": -1}, {"axis": 1, "base": 2}, {"axis": None, "base": 10})],
    ("entropy", (X + 1e-3, Y + 1e-3), {}),
    ("rel_entr", (X, Y), {}),
    ("kl_div", (X, Y), {}),
]
calls = pytest.mark.parametrize(("name", "arrays", "options"), CALLS, ids=[f"{c[0]}-{i}" for i, c in enumerate(CALLS)])


def theirs(name):
    return getattr(scipy.stats if name == "entropy" else scipy.special, name)


def exact(name):
    """On NumPy arrays of mpmath numbers."""

    def log(x):
        return peers.log(np.where(x == 0, mpmath.mpf(1), x))

    def ratio(x, y):
        return np.where(x == 0, mpmath.mpf(0), log(x) - log(y))

    def entropy(p, q=None, base=None, axis=0):
        if axis is None:
            p, q, axis = p.reshape(-1), None if q is None else q.reshape(-1), 0
        p = p / p.sum(axis, keepdims=True)
        terms = -p * log(p) if q is None else p * ratio(p, q / q.sum(axis, keepdims=True))
        return terms.sum(axis) / (1 if base is None else mpmath.log(base))

    return {
        "entropy": entropy,
        "rel_entr": lambda x, y: x * ratio(x, y),
        "kl_div": lambda x, y: x * ratio(x, y) - x + y,
    }[name]


def slope(name, arrays, options, i):
    """By differences in 40 digits, of the sum, for argument i; NaN where that is 0, the edge of what is defined."""
    step = mpmath.mpf(10) ** -15
    numbers = [peers.number(a) for a in arrays]
    result = np.full(arrays[i].shape, np.nan)
    for index in np.argwhere(arrays[i] != 0):
        sums = []
        for sign in (1, -1):
            moved = [n.copy() for n in numbers]
            moved[i][tuple(index)] += sign * step
            sums.append(np.sum(exact(name)(*moved, **options)))
        result[tuple(index)] = float((sums[0] - sums[1]) / (2 * step))
    return result


def compilers(lib):
    """The backend's, and TensorFlow's of unknown sizes."""
    if lib.b.name != "tensorflow":
        return lib.b.compilers()
    import tensorflow as tf

    def unknown(function):
        def call(*arrays):
            specs = [tf.TensorSpec([None] * len(x.shape), x.dtype) for x in arrays]
            return tf.function(function, input_signature=specs)(*arrays)

        return call

    return {**lib.b.compilers(), "unknown sizes": unknown}


@calls
def test_value_and_gradients(lib, name, arrays, options) -> None:
    expected = theirs(name)(*arrays, **options)
    ours = functools.partial(getattr(compat, name), **options)
    with lib.b.scope("float64", "cpu"):
        own = [lib.array(a, "float64") for a in arrays]
        value = ours(*own)
        assert lib.b.dtype(value) == "float64"
        np.testing.assert_allclose(lib.b.to_numpy(value), expected, rtol=1e-12, atol=1e-15)

        def both(i, *own):
            return lib.b.value_and_grad(lambda z: ours(*own[:i], z, *own[i + 1 :]), own[i])

        for i in range(len(arrays)):
            slopes = lib.b.to_numpy(both(i, *own)[1])
            assert np.isfinite(slopes).all()
            wanted = slope(name, arrays, options, i)
            known = np.isfinite(wanted)
            np.testing.assert_allclose(slopes[known], wanted[known], rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(("name", "arrays", "options"), peers.to_compile(CALLS))
def test_compiled(lib, name, arrays, options) -> None:
    """The value, and the gradients for all arguments, in one program."""
    ours = functools.partial(getattr(compat, name), **options)

    def all_of_them(*own):
        return [lib.b.value_and_grad(lambda z, i=i: ours(*own[:i], z, *own[i + 1 :]), own[i]) for i in range(len(own))]

    with lib.b.scope("float64", "cpu"):
        own = [lib.array(a, "float64") for a in arrays]
        for compile in compilers(lib).values():
            for found, wanted in zip(compile(all_of_them)(*own), all_of_them(*own), strict=True):
                for compiled, eager, atol in zip(found, wanted, (1e-15, 1e-14), strict=True):
                    np.testing.assert_allclose(lib.b.to_numpy(compiled), lib.b.to_numpy(eager), rtol=1e-12, atol=atol)


# Almost the largest and smallest that float32 holds; quotients, and slopes of quotients, leave its range.
NUMBERS = np.float32([0, 2e-38, 1e-30, 1.1e-30, 2e-20, 7e-20, 1e-3, 0.7, 1, 1.2, 1.6, 3, 1e6, 1e30])


@pytest.mark.parametrize("name", ["rel_entr", "kl_div"])
def test_numbers_of_all_sizes(lib, name) -> None:
    x, y = (a.ravel() for a in np.meshgrid(NUMBERS, NUMBERS))
    own = lib.array(x), lib.array(y)
    value = lib.b.to_numpy(getattr(compat, name)(*own))
    expected = theirs(name)(x.astype(np.float64), y.astype(np.float64))
    with np.errstate(over="ignore"):
        expected = expected.astype(np.float32)
    kept = (y == 0) | (x == 0) | (np.abs(expected) > 1e-37) | (expected == 0)  # others are subnormal
    np.testing.assert_allclose(value[kept], expected[kept], rtol=1e-6)
    for i in (0, 1):
        _, slopes = lib.b.value_and_grad(
            lambda z: getattr(compat, name)(*(own[j] if j != i else z for j in (0, 1))),  # noqa: B023
            own[i],
        )
        x64, y64 = x.astype(np.float64), y.astype(np.float64)
        with np.errstate(all="ignore"):
            wanted = [np.log(x64 / y64) + (name == "rel_entr"), (name == "kl_div") - x64 / y64][i]
        inside = (x > 0) & (y > 0) & (np.abs(wanted) < 1e38)
        slopes = lib.b.to_numpy(slopes)
        np.testing.assert_allclose(slopes[inside], wanted[inside], rtol=2e-6, atol=1e-6)
        assert np.isfinite(slopes[(x == 0) | (y == 0)]).all()


@pytest.mark.parametrize("name", ["rel_entr", "kl_div"])
def test_edges_are_scipys(lib, name) -> None:
    numbers = np.float32([-np.inf, -1, -0.0, 0, 0.5, 2, np.inf, np.nan])
    x, y = (a.ravel() for a in np.meshgrid(numbers, numbers))
    value = lib.b.to_numpy(getattr(compat, name)(lib.array(x), lib.array(y)))
    np.testing.assert_allclose(value, theirs(name)(x, y), rtol=1e-6)


def test_edges_of_entropy(lib) -> None:
    for pk, qk in [
        ([-1, 3], None),
        ([0, 0], None),
        ([0, 2], None),
        ([np.nan, 1], None),
        ([1, 1], [-1, 3]),
        ([-1, 3], [1, 1]),
        ([1, 1], [0, 1]),
        ([0, 1], [0, 1]),
        ([0, 1], [1, 1]),
        ([0, 0], [1, 1]),
        (np.zeros((0, 3)), None),
        (np.zeros((3, 0)), np.zeros((3, 0))),
    ]:
        arrays = [np.array(a, np.float32) for a in (pk, qk) if a is not None]
        value = lib.b.to_numpy(compat.entropy(*(lib.array(a) for a in arrays)))
        with np.errstate(all="ignore"):
            np.testing.assert_allclose(value, scipy.stats.entropy(*arrays), rtol=1e-6)


def test_nearly_equal_keep_their_digits(lib) -> None:
    rng = np.random.default_rng(1)
    x = rng.dirichlet(np.ones(6), 8).astype(np.float32)
    for distance in (1e-1, 1e-3, 1e-5):
        y = (x * (1 + distance * rng.normal(size=x.shape))).astype(np.float32)
        for name, options, relative in [
            ("rel_entr", {}, 1e-6),
            ("kl_div", {}, 1e-6),
            ("entropy", {"axis": 1}, 1e-6 / distance),  # shares are rounded
        ]:
            truth = exact(name)(peers.number(x), peers.number(y), **options).astype(float)
            value = lib.b.to_numpy(getattr(compat, name)(lib.array(x), lib.array(y), **options))
            np.testing.assert_allclose(value, truth, rtol=relative)
            if name != "rel_entr":
                assert (value >= 0).all()
    assert (lib.b.to_numpy(compat.entropy(lib.array(x), lib.array(x))) == 0).all()


def test_dtypes(lib) -> None:
    for name, arrays, options in CALLS:
        function = functools.partial(getattr(compat, name), **options)
        for dtype in ("float16", "bfloat16", "float32"):
            own = [lib.array(a, dtype) for a in arrays]
            value, slopes = lib.b.value_and_grad(lambda x, own=own, f=function: f(x, *own[1:]), own[0])
            assert lib.b.dtype(value) == "float32"
            assert lib.b.dtype(slopes) == dtype
            rounded = [lib.b.to_numpy(a).astype(np.float64) for a in own]
            np.testing.assert_allclose(lib.b.to_numpy(value), theirs(name)(*rounded, **options), rtol=2e-5, atol=1e-7)
    counts = lib.array(np.array([9, 10, 1]))
    value = compat.entropy(counts)
    assert lib.b.dtype(value) == lib.b.widest(counts)
    assert float(value) == pytest.approx(scipy.stats.entropy([9, 10, 1]), rel=1e-6)
    with lib.b.scope("float64", "cpu"):
        wide, narrow = lib.array(X, "float64"), lib.array(Y, "float32")
        for x, y in [(wide, narrow), (narrow, wide)]:
            assert lib.b.dtype(compat.rel_entr(x, y)) == "float64"


def test_either_argument_decides_the_library(lib) -> None:
    own, numbers = lib.array(Y), X.astype(np.float32)
    for other in (numbers, numbers.tolist(), lib.array(X), 0.5, 1):
        # Beside an array of NumPy a list is one of its, of float64; beside a framework's it is converted.
        wide = lib.b.name == "numpy" and isinstance(other, list)
        for function in (compat.rel_entr, compat.kl_div):
            for swapped in (False, True):
                value = function(other, own) if swapped else function(own, other)
                assert lib.b.owns(value)
                assert lib.b.dtype(value) == ("float64" if wide else "float32")
                arrays = [np.float32(Y), np.float32(other if isinstance(other, list | float | int) else X)]
                expected = theirs(function.__name__)(*(arrays[::-1] if swapped else arrays))
                np.testing.assert_allclose(lib.b.to_numpy(value), expected, rtol=2e-6, atol=1e-7)
    assert lib.b.owns(compat.entropy(X.tolist(), lib.array(X)))
    assert lib.b.owns(compat.entropy(lib.array(X), X.tolist()))


def test_arguments_are_left_as_they_are(lib) -> None:
    for name, arrays, options in CALLS:
        before, own = [a.copy() for a in arrays], [lib.array(a) for a in arrays]
        copies = [lib.b.to_numpy(a).copy() for a in own]
        getattr(compat, name)(*arrays, **options)
        getattr(compat, name)(*own, **options)
        assert all((a == b).all() for a, b in zip(arrays, before, strict=True))
        assert all((lib.b.to_numpy(a) == b).all() for a, b in zip(own, copies, strict=True))


def test_signatures() -> None:
    """rel_entr and kl_div are ufuncs; of entropy's, the keywords that SciPy's decorator adds are missing."""
    ours, of_them = (list(inspect.signature(f).parameters.values()) for f in (compat.entropy, scipy.stats.entropy))
    assert [(p.name, p.kind, p.default) for p in ours] == [(p.name, p.kind, p.default) for p in of_them[:4]]
    assert [p.name for p in of_them[4:]] == ["nan_policy", "keepdims"]
    for name in ("rel_entr", "kl_div"):
        assert list(inspect.signature(getattr(compat, name)).parameters) == ["x", "y"]
        assert theirs(name).nin == 2


def test_examples_in_docstrings() -> None:
    failed, tried = doctest.testmod(compat)
    assert (failed, tried) == (0, len(compat.__all__) + 1)


def test_errors(lib) -> None:
    x = lib.array(X)
    with pytest.raises(
        ValueError, match=r"x has shape \(3, 2, 5\) and y \(2, 5\), and nothing is broadcast; give both"
    ):
        compat.rel_entr(x, lib.array(X[0]))
    with pytest.raises(ValueError, match=r"pk has shape \(3, 2, 5\) and qk \(3, 2, 1\), and nothing is broadcast"):
        compat.entropy(x, lib.array(X[..., :1]))
    with pytest.raises(ValueError, match=r"axis 3 is out of range: pk has shape \(3, 2, 5\); use -3 to 2"):
        compat.entropy(x, axis=3)
    with pytest.raises(TypeError, match="axis is tuple; pass one integer"):
        compat.entropy(x, axis=(0, 1))
    for base in (0, 1, -2, "2", True):
        with pytest.raises(ValueError, match=r"base is .*; pass a number above 0 other than 1"):
            compat.entropy(x, base=base)
    with pytest.raises(TypeError, match=r"pk .* no real numbers"):
        compat.entropy(["a", "b"])
    with pytest.raises(TypeError, match=r"y is None|y is builtins\.NoneType"):
        compat.rel_entr(x, None)
