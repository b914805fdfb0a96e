"""What the tests against other libraries' own functions share: 40 exact digits, and how near is near enough."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mpmath
import numpy as np
import pytest

mpmath.mp.dps = 40

# Over arrays of mpmath numbers, as np.exp over floats.
number = np.vectorize(lambda x: mpmath.mpf(float(x)), otypes=[object])
exp = np.vectorize(mpmath.exp, otypes=[object])
log = np.vectorize(mpmath.log, otypes=[object])


def value_and_grad(lib: Any, function: Callable[[Any], Any], x: np.ndarray, dtype: str) -> tuple[Any, Any]:
    """function(x) on the backend under test, and the gradient of its sum, as NumPy arrays."""
    with lib.b.scope(dtype, "cpu"):
        value, gradient = lib.b.value_and_grad(function, lib.array(x, dtype))
        return lib.b.to_numpy(value), lib.b.to_numpy(gradient)


def near(ours: Any, theirs: Any, *, size: Any = None, ulps: float = 8) -> bool:
    """Whether all entries are within `ulps` units in the last place of float32."""
    return bool(_near(np.asarray(ours, np.float64), np.asarray(theirs, np.float64), size, ulps).all())


def near_rows(ours: np.ndarray, theirs: np.ndarray, *, ulps: float = 8) -> np.ndarray:
    """Which rows are within `ulps` units in the last place of the row's largest entry."""
    return _near(np.float64(ours), np.float64(theirs), np.abs(theirs).max(1, keepdims=True), ulps).all(1)


def _near(ours: np.ndarray, theirs: np.ndarray, size: Any, ulps: float) -> np.ndarray:
    assert ours.shape == theirs.shape
    size = np.maximum(np.abs(ours), np.abs(theirs)) if size is None else np.asarray(size).astype(np.float64)
    same = (ours == theirs) | (np.isnan(ours) & np.isnan(theirs))
    with np.errstate(invalid="ignore"):
        return same | (np.abs(ours - theirs) <= ulps * np.spacing(size.astype(np.float32)).astype(np.float64))


def assert_as_good(ours: Any, theirs: Any, truth: Any, *, size: Any = None, ulps: float = 8) -> None:
    """Within `ulps` units in the last place of theirs, or as near to the truth, entry by entry.

    The unit is that of `size`, else of the value itself: what a gradient is the difference of, where terms cancel.
    Where there is no library to compare with (None), within that of the truth.
    """
    ours, truth = np.asarray(ours, np.float64), np.asarray(truth, object)
    theirs = truth.astype(np.float64) if theirs is None else np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape == truth.shape
    for index in np.argwhere(~_near(ours, theirs, size, ulps)):
        i = tuple(index)
        error, their_error = abs(mpmath.mpf(ours[i]) - truth[i]), abs(mpmath.mpf(theirs[i]) - truth[i])
        assert error <= their_error, f"at {i}: {ours[i]!r}, theirs {theirs[i]!r}, exact {mpmath.nstr(truth[i], 20)}"


def placed(lib: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with their arrays on the backend under test."""
    return {key: lib.array(v) if isinstance(v, np.ndarray) else v for key, v in options.items()}


def to_compile(calls: Sequence[tuple[Any, ...]]) -> list[pytest.ParameterSet]:
    """Of (function, arguments …, options): a compiler takes seconds for a call, so `tests` has one of each function.

    It is the one with the most options. `exhaustive` has the others.
    """
    chosen = {call[0]: i for i, call in sorted(enumerate(calls), key=lambda numbered: len(numbered[1][-1]))}
    return [
        pytest.param(*call, id=f"{call[0]}-{i}", marks=[] if chosen[call[0]] == i else [pytest.mark.exhaustive])
        for i, call in enumerate(calls)
    ]


def compilers(lib: Any) -> Mapping[str, Any]:
    """The backend's, and TensorFlow's of unknown batch size."""
    if lib.b.name != "tensorflow":
        return lib.b.compilers()
    import tensorflow as tf

    def unknown(function):
        def call(*arrays):
            specs = [tf.TensorSpec([None, *x.shape[1:]], x.dtype) for x in arrays]
            return tf.function(function, input_signature=specs)(*arrays)

        return call

    return {**lib.b.compilers(), "unknown batch size": unknown}
