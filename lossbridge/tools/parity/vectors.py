"""The cases with their exact results as JSON, for other implementations. The format is described in docs/vectors.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from lossbridge import reference
from lossbridge.tools.parity.cases import Case, Tolerance
from lossbridge.tools.parity.check import compared, expected

FORMAT = "lossbridge-vectors"
VERSION = 1


class UnusableVectors(ValueError):
    """The file holds no vectors of a known version. The message is one line."""


def write(path: Path, chosen: tuple[Case, ...]) -> int:
    """Writes the cases, and returns their number. One case per line, so that files can be compared and streamed."""
    with path.open("w", encoding="utf-8") as file:
        file.write(f'{{"format": "{FORMAT}", "version": {VERSION}, "cases": [\n')
        for i, case in enumerate(chosen):
            file.write((",\n" if i else "") + json.dumps(_as_json(case), ensure_ascii=False))
        file.write("\n]}\n")
    return len(chosen)


def check(path: Path) -> tuple[int, list[str]]:
    """The number of cases in the file, and one line per result that differs from the reference."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UnusableVectors(
            f"{path} cannot be read: {error.strerror}; name a file that `vectors --out` wrote"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UnusableVectors(f"{path} is no JSON ({error}); name a file that `vectors --out` wrote") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UnusableVectors(f'{path} does not say "format": "{FORMAT}"; name a file that `vectors --out` wrote')
    if content.get("version") != VERSION:
        raise UnusableVectors(f"{path} is of version {content.get('version')}, this reads {VERSION}; write it again")
    entries = content.get("cases")
    if not isinstance(entries, list) or not entries:
        raise UnusableVectors(f"{path} holds no cases; write it again")
    faults = []
    for i, entry in enumerate(entries):
        try:
            case = _from_json(entry)
            exact = expected(case)
            names = ["value", *compared(case).values()]
            found = {name: _decode(entry[name]) for name in names}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UnusableVectors(f"{path}: case {i} cannot be read ({type(error).__name__}: {error})") from None
        for name, x in found.items():
            if not _same(x, np.asarray(getattr(exact, name))):
                faults.append(f"{case.loss}, {case.name}: {name} is not the reference's")
    return len(entries), faults


def _same(found: np.ndarray, truth: np.ndarray) -> bool:
    """Equal up to the rounding of another machine's logarithm."""
    return found.shape == truth.shape and np.allclose(found, truth, rtol=1e-9, atol=1e-15, equal_nan=True)


def _as_json(case: Case) -> dict[str, Any]:
    exact: reference.Result = expected(case)
    return {
        "name": case.name,
        "loss": case.loss,
        "dtype": case.dtype,
        "compute_dtype": case.compute_dtype,
        "options": {
            name: _encode(np.asarray(option)) if isinstance(option, np.ndarray | np.generic) else option
            for name, option in case.options.items()
        },
        "y_true": _encode(case.y_true),
        "y_pred": _encode(case.y_pred),
        "value": _encode(np.asarray(exact.value)),
        **{name: _encode(getattr(exact, name)) for name in compared(case).values()},
        "tolerance": {
            "value_ulp": case.tolerance.value,
            "gradient_ulp": case.tolerance.gradient,
            "scale": case.tolerance.scale,
        },
        "refused": case.refused,
    }


def _from_json(entry: dict[str, Any]) -> Case:
    tolerance = entry["tolerance"]
    return Case(
        entry["name"],
        entry["loss"],
        _decode(entry["y_true"]),
        _decode(entry["y_pred"]),
        {name: _decode(x) if isinstance(x, dict) else x for name, x in entry["options"].items()},
        entry["dtype"],
        Tolerance(tolerance["value_ulp"], tolerance["gradient_ulp"], tolerance["scale"]),
        entry["refused"],
    )


def _encode(x: np.ndarray) -> dict[str, Any]:
    """Shape, dtype, and the entries in row-major order as the shortest decimals that float64 reads back exactly."""
    return {"shape": list(x.shape), "dtype": x.dtype.name, "data": [_decimal(entry) for entry in x.ravel().tolist()]}


def _decimal(x: float | int | bool) -> str:
    return str(int(x)) if isinstance(x, bool | int) else repr(x)


def _decode(x: dict[str, Any]) -> np.ndarray:
    dtype = x["dtype"]
    if dtype not in ("float32", "float64", "int32", "bool"):
        raise ValueError(f"unknown dtype {dtype}")
    numbers = [float(entry) for entry in x["data"]]
    return np.array(numbers, np.float64).reshape(x["shape"]).astype(dtype)
