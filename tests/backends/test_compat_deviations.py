"""The table of departures: what it says of ours, on every backend, and of the library."""

from __future__ import annotations

import importlib
import math
import warnings
from typing import Any

import numpy as np
import pytest

from lossbridge.compat.deviations import DEVIATIONS, Deviation
from lossbridge.frameworks.framework import Framework
from lossbridge.tools.parity import peers

every_deviation = pytest.mark.parametrize("deviation", DEVIATIONS, ids=lambda d: f"{d.function}: {d.words}")


def arrays(b: Framework, x: Any, dtype: str) -> Any:
    """A nested list as an array; a number that is no option as itself."""
    values = np.asarray(x)
    kind = {"f": dtype, "b": "bool"}.get(values.dtype.kind, "int64" if b.name == "torch" else "int32")
    return b.place(values, kind, "cpu")


def result(b: Framework, d: Deviation, function: Any) -> Any:
    """The first number, or the name of the error."""
    library, name = d.function.split(".")
    of_pred = 1 if library in ("keras", "sklearn", "scipy") and len(d.arguments) > 1 else 0
    try:
        with b.scope(d.dtype, "cpu"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            given = [arrays(b, x, d.dtype) for x in d.arguments]
            options = {key: arrays(b, x, d.dtype) if isinstance(x, list) else x for key, x in d.options.items()}
            if name[0].isupper():
                function, options = function(**options), {}

            def loss(pred: Any) -> Any:
                return function(*given[:of_pred], pred, *given[of_pred + 1 :], **options)

            value = b.value_and_grad(loss, given[of_pred])[1] if d.quantity == "gradient" else loss(given[of_pred])
            if d.quantity == "shape":
                return tuple(b.shape(value))
            value = b.cast(b.asarray(value), "float64" if d.dtype == "float64" else "float32")
            return float(np.ravel(b.to_numpy(value))[0])
    except Exception as error:  # whatever the library raises
        return error


def assert_is(found: Any, expected: Any) -> None:
    if expected == "broadcasts":
        assert isinstance(found, float), found
    elif isinstance(expected, str):
        assert isinstance(found, Exception), found
        assert expected in ("raises", type(found).__name__), repr(found)
    elif isinstance(expected, tuple):
        assert found == expected
    elif math.isnan(expected):
        assert isinstance(found, float)
        assert math.isnan(found)
    else:
        assert found == pytest.approx(expected, rel=2e-5, abs=0)  # JAX has no float64 for divergences


@every_deviation
def test_ours(lib, deviation) -> None:
    found = result(lib.b, deviation, peers.our_function(*deviation.function.split(".")))
    assert_is(found, deviation.ours)
    if isinstance(found, Exception):
        assert len(str(found).splitlines()) == 1


def is_of(library: str, version: str) -> bool:
    """Whether the library is of this version or a later one."""
    installed = importlib.import_module(library).__version__
    here, there = (tuple(map(int, text.split(".")[:2])) for text in (installed, version))
    return here >= there


@every_deviation
def test_theirs(deviation) -> None:
    library, name = deviation.function.split(".")
    b = peers.home(library)
    if deviation.quantity == "gradient" and b.name == "numpy":
        pytest.skip("the library has no gradients")
    expected = deviation.of_theirs(b.name, newer=deviation.newer is not None and is_of(library, deviation.newer[0]))
    if deviation.until and is_of(library, deviation.until):
        expected = deviation.ours
    found = result(b, deviation, peers.own_function(library, name))
    if isinstance(expected, float) and isinstance(found, float) and expected and math.isfinite(expected):
        assert found == pytest.approx(expected, rel=2e-3, abs=0)  # its own rounding differs between processors
        if isinstance(deviation.ours, float) and deviation.ours != expected:
            assert abs(found - expected) < abs(found - deviation.ours)
    else:
        assert_is(found, expected)
