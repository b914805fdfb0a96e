"""One case on one backend: value and gradient compared with the reference, in units in the last place (ULP).

Defines no case (cases.py) and no expected value (lossbridge.reference).
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from lossbridge import losses, reference
from lossbridge.frameworks.framework import Framework
from lossbridge.tools.parity.cases import Case, cases
from lossbridge.tools.parity.linear_cases import linear_cases
from lossbridge.tools.parity.signatures import SIGNATURES
from lossbridge.tools.parity.topk_cases import topk_cases

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
    """Those of the registry's losses, and of the functions that are not in it."""
    return (*cases(), *linear_cases(), *topk_cases())


def expected(case: Case) -> reference.Result:
    """The value and gradients of the reference."""
    signature = SIGNATURES[case.loss]
    options = signature.arguments(case)
    options.pop("memory", None)  # which changes no result
    positional = [options.pop(name) for name in signature.positional]
    return getattr(reference, case.loss)(*positional, **options, precision=case.compute_dtype)


def compared(case: Case) -> dict[str, str]:
    """The arguments whose gradients are compared, y_pred's first, and what the reference calls each gradient."""
    return SIGNATURES[case.loss].gradients(case)


def placed(b: Framework, case: Case, device: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The case's arguments by name: those that are arrays, on the backend, and those that are not."""
    signature = SIGNATURES[case.loss]
    inputs = {signature.target, signature.pred, *signature.layers}
    arrays, static = {}, {}
    for name, argument in signature.arguments(case).items():
        if isinstance(argument, np.ndarray | np.generic):
            x = np.asarray(argument)
            floats = case.dtype if name in inputs else case.compute_dtype
            arrays[name] = b.place(x, {"i": "int32", "b": "bool"}.get(x.dtype.kind, floats), device)
        else:
            static[name] = argument
    return arrays, static


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
            arrays, static = placed(self.b, case, self.device)
            function = self._function(case, mode, static)
            try:
                value, gradients = function(**arrays)
            except ValueError:
                if case.refused and mode == EAGER:
                    return Outcome(case.loss, case.name, mode, case.dtype)
                raise
            results = self.b.asarray(value), *gradients
            dtypes = tuple(map(self.b.dtype, results))
            value, *gradients = map(self.b.to_numpy, results)
        outcome = compare(case, mode, value, gradients, dtypes, expected(case))
        return replace(outcome, digest=digest(value, *gradients))

    def outcome(self, case: Case, mode: str) -> Outcome:
        """As `run`, but an exception becomes the outcome's fault."""
        try:
            return self.run(case, mode)
        except Exception as error:
            first_line = f"{type(error).__name__}: {error}".splitlines()[0]
            return Outcome(case.loss, case.name, mode, case.dtype, fault=first_line)

    def _function(self, case: Case, mode: str, static: dict[str, Any]) -> Callable[..., Any]:
        both = losses.value_and_grad(getattr(losses, case.loss), of=tuple(compared(case)))
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


def in_groups(cases: Iterable[Case]) -> list[list[Case]]:
    """The cases that share a compiled function, for each."""
    groups: dict[tuple[str, ...], list[Case]] = {}
    for case in cases:
        groups.setdefault(compile_key(case), []).append(case)
    return list(groups.values())


def in_order(cases: Iterable[Case]) -> list[Case]:
    """The cases, with those that share a compiled function next to each other, and otherwise in their order."""
    return [case for group in in_groups(cases) for case in group]


def compare(
    case: Case,
    mode: str,
    value: np.ndarray,
    gradients: Sequence[np.ndarray],
    dtypes: tuple[str, ...],
    exact: reference.Result,
) -> Outcome:
    """Compares a value and gradients of the given dtypes with the exact ones, within the case's tolerance."""
    outcome = functools.partial(Outcome, case.loss, case.name, mode, case.dtype)
    names, truths = compared(case), (np.asarray(exact.value), *(getattr(exact, x) for x in compared(case).values()))
    for name, x, dtype, truth in zip(("value", *names), (value, *gradients), dtypes, truths, strict=True):
        wanted = case.compute_dtype if name == "value" else case.dtype
        if dtype != wanted or x.shape != truth.shape:
            where = name if name == "value" else f"gradient of {name}"
            return outcome(fault=f"{where} is {dtype} of shape {x.shape}, expected {wanted} of {truth.shape}")

    exact_value, *exact_gradients = truths
    scale = np.maximum(np.abs(exact_value), case.tolerance.scale)
    value_error = _error(value, exact_value, scale, case.compute_dtype)
    faults = [] if value_error.ulp <= case.tolerance.value else [f"value {value_error.where}"]
    errors = [_gradient_error(case, exact_value, gradients[0], exact_gradients[0])]
    errors += [_layer_error(case, *pair) for pair in zip(gradients[1:], exact_gradients[1:], strict=True)]
    for name, error in zip(names, errors, strict=True):
        if not error.ulp <= case.tolerance.gradient:
            faults.append(f"gradient of {name} {error.where}")
    return outcome(
        value_error.ulp,
        value_error.relative,
        max(error.ulp for error in errors),
        max(error.relative for error in errors),
        result=float(value) if value.ndim == 0 and np.isfinite(value) else None,
        fault="; ".join(faults),
    )


def _gradient_error(case: Case, exact_value: np.ndarray, gradient: np.ndarray, exact: np.ndarray) -> _Error:
    """Of y_pred's gradient, at the largest entry of each row whose loss is finite."""
    comparable = _in_finite_rows(exact_value, exact.shape, case.axis)
    exact, gradient = np.where(comparable, exact, 0), np.where(comparable, gradient, 0)
    largest = np.abs(exact)
    if largest.size:
        row = -1 if case.axis is None else case.axis
        largest = np.broadcast_to(largest.max(row, keepdims=True), largest.shape)
    return _error(gradient, exact, largest, case.dtype)


def _layer_error(case: Case, gradient: np.ndarray, exact: np.ndarray) -> _Error:
    """Of a weight's or a bias' gradient, at its largest entry."""
    return _error(gradient, exact, np.full(exact.shape, np.abs(exact).max(initial=0.0)), case.dtype)


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
