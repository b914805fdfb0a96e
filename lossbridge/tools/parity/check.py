"""One case on one backend: value and gradient compared with the reference, in units in the last place (ULP).

Defines no case (cases.py) and no expected value (lossbridge.reference).
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from lossbridge import losses, reference
from lossbridge.frameworks.framework import Framework
from lossbridge.tools.parity.cases import Case, cases
from lossbridge.tools.parity.linear_cases import LAYER, linear_cases

# Explicit mantissa bits and smallest normal exponent of each dtype.
_FORMATS = {"float16": (10, -14), "bfloat16": (7, -126), "float32": (23, -126), "float64": (52, -1022)}


EAGER = "eager"


@dataclass(frozen=True)
class Outcome:
    """The result of one check. Errors are the largest over all entries; `result` is the value if it is a finite scalar;
    `digest` is that of the bits of value and gradient; `fault` says what is wrong, or is empty."""

    loss: str
    case: str
    mode: str
    dtype: str
    value_ulp: float = 0.0
    value_relative: float = 0.0
    gradient_ulp: float = 0.0
    gradient_relative: float = 0.0
    result: float | None = None
    digest: str = ""
    fault: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def spacing(x: np.ndarray, dtype: str) -> np.ndarray:
    """The distance from |x| to the next larger number of that dtype: 1 ULP."""
    bits, smallest = _FORMATS[dtype]
    with np.errstate(divide="ignore"):
        exponent = np.floor(np.log2(np.abs(x, dtype=np.float64)))
    return np.exp2(np.maximum(exponent, smallest) - bits)


@functools.cache
def all_cases() -> tuple[Case, ...]:
    """Those of the registry's losses, and of the linear one."""
    return (*cases(), *linear_cases())


def expected(case: Case) -> reference.Result:
    """The value and gradients of the reference."""
    options = {name: option for name, option in case.options.items() if name != "memory"}  # which changes no result
    return getattr(reference, case.loss)(case.y_true, case.y_pred, **options, precision=case.compute_dtype)


def layer_of(case: Case) -> tuple[str, ...]:
    """The options whose gradients are compared too: weight and bias of the linear loss."""
    return tuple(name for name in LAYER if name in case.options)


def placed(b: Framework, case: Case, device: str) -> tuple[Any, Any, dict[str, Any], dict[str, Any]]:
    """The case on the backend: y_true, y_pred, the options that are arrays, and the options that are not."""
    label_dtype = "int32" if case.y_true.dtype.kind in "iu" else case.dtype
    arrays, static = {}, {}
    for name, option in case.options.items():
        if isinstance(option, np.ndarray | np.generic):
            x = np.asarray(option)
            dtype = case.dtype if name in LAYER else case.compute_dtype
            arrays[name] = b.place(x, "bool" if x.dtype == bool else dtype, device)
        else:
            static[name] = option
    return b.place(case.y_true, label_dtype, device), b.place(case.y_pred, case.dtype, device), arrays, static


class Runner:
    """Runs cases on one backend and device. Caches the last compiled function, which consecutive cases share."""

    def __init__(self, b: Framework, device: str = "cpu") -> None:
        self.b = b
        self.device = device
        self.compiled: dict[str, tuple[Any, Callable[..., Any]]] = {}

    def modes(self) -> list[str]:
        return [EAGER, *self.b.compilers()]

    def run(self, case: Case, mode: str) -> Outcome:
        with self.b.scope(case.dtype, self.device):
            y_true, y_pred, arrays, static = placed(self.b, case, self.device)
            function = self._function(case, mode, static, tuple(arrays))
            try:
                value, gradient = function(y_true, y_pred, **arrays)
            except ValueError:
                if case.refused and mode == EAGER:
                    return Outcome(case.loss, case.name, mode, case.dtype)
                raise
            gradient, *of_layer = gradient if layer_of(case) else (gradient,)
            dtypes = self.b.dtype(self.b.asarray(value)), self.b.dtype(gradient)
            layer_dtypes = tuple(map(self.b.dtype, of_layer))
            value, gradient, *of_layer = map(self.b.to_numpy, (value, gradient, *of_layer))
        exact = expected(case)
        outcome = compare(case, mode, value, gradient, dtypes, exact)
        if of_layer and not outcome.fault:
            outcome = compare_layer(outcome, case, of_layer, layer_dtypes, exact)
        return replace(outcome, digest=digest(value, gradient, *of_layer))

    def outcome(self, case: Case, mode: str) -> Outcome:
        """As `run`, but an exception becomes the outcome's fault."""
        try:
            return self.run(case, mode)
        except Exception as error:
            first_line = f"{type(error).__name__}: {error}".splitlines()[0]
            return Outcome(case.loss, case.name, mode, case.dtype, fault=first_line)

    def _function(self, case: Case, mode: str, static: dict[str, Any], arrays: tuple[str, ...]) -> Callable[..., Any]:
        loss, layer = getattr(losses, case.loss), layer_of(case)
        both = losses.value_and_grad(loss, of=("hidden", *layer) if layer else None)
        function = functools.partial(both, **static)
        if mode == EAGER:
            return function
        key = compile_key(case)
        if self.compiled.get(mode, (None, None))[0] != key:
            self.compiled[mode] = key, self.b.compilers()[mode](function)
        return self.compiled[mode][1]


def digest(*arrays: np.ndarray) -> str:
    """Equal for the same bits. Every NaN counts as the same, since IEEE 754 leaves its sign and payload open."""
    found = hashlib.blake2b(digest_size=8)
    for x in arrays:
        found.update(np.where(np.isnan(x), np.array(np.nan, x.dtype), x).tobytes())
    return found.hexdigest()


def compile_key(case: Case) -> tuple[str, ...]:
    """Cases with equal keys share one compiled function, whatever their sizes and values."""
    options = {
        name: "array" if isinstance(option, np.ndarray | np.generic) else repr(option)
        for name, option in case.options.items()
    }
    return (case.loss, case.dtype, str(case.y_true.ndim), str(case.y_pred.ndim), repr(sorted(options.items())))


def in_order(cases: Iterable[Case]) -> list[Case]:
    """The cases, with those that share a compiled function next to each other, and otherwise in their order."""
    groups: dict[tuple[str, ...], list[Case]] = {}
    for case in cases:
        groups.setdefault(compile_key(case), []).append(case)
    return [case for group in groups.values() for case in group]


def compare(
    case: Case,
    mode: str,
    value: np.ndarray,
    gradient: np.ndarray,
    dtypes: tuple[str, str],
    exact: reference.Result,
) -> Outcome:
    """Compares a value and a gradient of the given dtypes with the exact ones, within the case's tolerance."""
    outcome = functools.partial(Outcome, case.loss, case.name, mode, case.dtype)
    exact_value, exact_gradient = np.asarray(exact.value), np.asarray(exact.gradient)
    if dtypes != (case.compute_dtype, case.dtype):
        return outcome(fault=f"value and gradient are {dtypes}, expected {(case.compute_dtype, case.dtype)}")
    if value.shape != exact_value.shape or gradient.shape != case.y_pred.shape:
        return outcome(fault=f"value and gradient have shapes {value.shape} and {gradient.shape}")

    value_error = _error(value, exact_value, np.maximum(np.abs(exact_value), case.tolerance.scale), case.compute_dtype)
    comparable = _in_finite_rows(exact_value, exact_gradient.shape, case.axis)
    exact_gradient, gradient = np.where(comparable, exact_gradient, 0), np.where(comparable, gradient, 0)
    largest = np.abs(exact_gradient)
    if largest.size:
        row = -1 if case.axis is None else case.axis
        largest = np.broadcast_to(largest.max(row, keepdims=True), largest.shape)
    gradient_error = _error(gradient, exact_gradient, largest, case.dtype)

    faults = []
    if not value_error.ulp <= case.tolerance.value:
        faults.append(f"value {value_error.where}")
    if not gradient_error.ulp <= case.tolerance.gradient:
        faults.append(f"gradient {gradient_error.where}")
    return outcome(
        value_error.ulp,
        value_error.relative,
        gradient_error.ulp,
        gradient_error.relative,
        result=float(value) if value.ndim == 0 and np.isfinite(value) else None,
        fault="; ".join(faults),
    )


def compare_layer(
    outcome: Outcome, case: Case, gradients: list[np.ndarray], dtypes: tuple[str, ...], exact: reference.Result
) -> Outcome:
    """With the errors of the gradients for the layer's arrays, at the largest entry of each."""
    for name, gradient, dtype in zip(layer_of(case), gradients, dtypes, strict=True):
        truth = getattr(exact, f"{name}_gradient")
        if dtype != case.dtype or gradient.shape != truth.shape:
            return replace(outcome, fault=f"the gradient of {name} is {dtype} of shape {gradient.shape}")
        error = _error(gradient, truth, np.full(truth.shape, np.abs(truth).max(initial=0.0)), case.dtype)
        outcome = replace(
            outcome,
            gradient_ulp=max(outcome.gradient_ulp, error.ulp),
            gradient_relative=max(outcome.gradient_relative, error.relative),
        )
        if not error.ulp <= case.tolerance.gradient:
            return replace(outcome, fault=f"gradient of {name} {error.where}")
    return outcome


def _in_finite_rows(values: np.ndarray, shape: tuple[int, ...], axis: int | None) -> np.ndarray:
    """Where the gradient is compared: in rows whose loss is finite."""
    finite = np.isfinite(values)
    if values.ndim and axis is not None:
        finite = np.expand_dims(finite, axis)
    return np.broadcast_to(finite, shape)


@dataclass(frozen=True)
class _Error:
    """The largest errors, and the entry with the most ULP."""

    ulp: float
    relative: float
    where: str


def _error(got: np.ndarray, exact: np.ndarray, scale: np.ndarray, dtype: str) -> _Error:
    """In ULP at `scale`, and relative to it. NaN equals NaN, and an infinity the same infinity."""
    if not exact.size:
        return _Error(0.0, 0.0, "")
    same = (got == exact) | (np.isnan(got) & np.isnan(exact))
    # XLA flushes subnormal float32, bfloat16 and float64 numbers to zero.
    same |= (dtype != "float16") & (got == 0) & (np.abs(exact) < np.exp2(_FORMATS[dtype][1]))
    with np.errstate(all="ignore"):
        difference = np.where(same, 0.0, np.abs(got.astype(np.float64) - exact))
        ulp = np.nan_to_num(np.where(same, 0.0, difference / spacing(scale, dtype)), nan=np.inf)
        relative = np.nan_to_num(np.where(same, 0.0, difference / scale), nan=np.inf)
    index = np.unravel_index(int(ulp.argmax()), ulp.shape)
    place = f" at {tuple(int(i) for i in index)}" if index else ""
    return _Error(float(ulp[index]), float(relative.max()), f"{got[index]:.9g}{place}, exact {exact[index]:.9g}")
