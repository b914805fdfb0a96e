"""The caller's own arrays: from an .npz file, or a table, to a case. Never unpickles."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from lossbridge import losses
from lossbridge.errors import real_numbers
from lossbridge.spec import LOSSES
from lossbridge.tools.parity.cases import Case, options_of, usual_tolerance
from lossbridge.tools.parity.tables import SUFFIXES, Check, UnusableFile, read_table

REQUIRED = ("y_true", "y_pred")
# Of y_pred: 4 GiB of float32, which a small file may inflate to.
MOST_ENTRIES = 2**30
OPTIONAL = ("sample_weight", "mask", "class_weight", "pos_weight")
_HOW = "write it with numpy.savez(file, y_true=…, y_pred=…)"


Shapes = Mapping[str, tuple[int, ...]]


def load_arrays(path: Path, optional: tuple[str, ...] = OPTIONAL) -> dict[str, np.ndarray]:
    """y_true and y_pred, and those of the optional arrays that the file holds. What it declares is checked first."""
    return _load(path, lambda names: _check_names(path, names, optional), lambda shapes: _check_sizes(path, shapes))


def load_run(path: Path, check_names: Check) -> dict[str, np.ndarray]:
    """The arrays of a step of training, of which some may be larger than y_pred."""
    return _load(path, check_names, lambda shapes: _check_total(path, shapes))


def _load(path: Path, check_names: Check, check_sizes: Callable[[Shapes], None]) -> dict[str, np.ndarray]:
    if path.suffix.lower() in SUFFIXES:
        found = read_table(path, check_names)
        check_sizes({name: x.shape for name, x in found.items()})
        return found
    try:
        with path.open("rb") as file:
            _check_kind(path, file)
            with zipfile.ZipFile(file) as archive:
                members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
                check_names(members)
                check_sizes({name: _declared(path, name, archive, info) for name, info in members.items()})
            file.seek(0)
            with np.load(file, allow_pickle=False) as data:
                return {name: data[name] for name in members}
    except UnusableFile:
        raise
    except OSError as error:
        raise UnusableFile(f"{path} cannot be read: {error.strerror or error}; name an .npz file") from None
    except Exception as error:  # for a damaged header zipfile and NumPy raise anything from KeyError to SyntaxError
        raise UnusableFile(f"{path} is damaged ({error or type(error).__name__}); {_HOW}") from None


def _check_kind(path: Path, file: IO[bytes]) -> None:
    start = file.read(6)
    if not start:
        raise UnusableFile(f"{path} is empty; {_HOW}")
    if start == b"\x93NUMPY":
        raise UnusableFile(f"{path} holds one array, and two are needed; {_HOW}")
    if not start.startswith(b"PK"):
        raise UnusableFile(f"{path} is no .npz file; {_HOW}")


def _check_names(path: Path, names: Iterable[str], optional: tuple[str, ...]) -> None:
    missing = [name for name in REQUIRED if name not in names]
    if missing:
        found = ", ".join(names) or "nothing"
        named = f"arrays {', '.join(REQUIRED)}"
        if path.suffix.lower() in SUFFIXES:
            named = "columns label or y_true, and y_pred or y_pred_0, y_pred_1, …"
        raise UnusableFile(f"{path} lacks {' and '.join(missing)}; it holds {found}; name the {named}")
    unknown = [name for name in names if name not in (*REQUIRED, *optional)]
    if unknown:
        raise UnusableFile(
            f"{path} holds {', '.join(unknown)}, which is not known here; "
            f"name the arrays {', '.join((*REQUIRED, *optional))}"
        )


def _declared(path: Path, name: str, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> tuple[int, ...]:
    """The shape of an array, by its header. Its dtype holds real numbers, and they are all there."""
    with archive.open(info) as member:
        version = np.lib.format.read_magic(member)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(member)
        held = info.file_size - member.tell()
    if dtype.hasobject:
        raise UnusableFile(f"{path} holds Python objects, which are never unpickled; save plain numbers")
    try:
        real_numbers(name, dtype.name)
    except TypeError as error:
        raise UnusableFile(f"{path}: {error}") from None
    if math.prod(shape) * dtype.itemsize != held:
        raise UnusableFile(f"{path} is damaged ({name} of shape {shape} and {dtype} is {held} bytes); {_HOW}")
    return shape


def _check_total(path: Path, shapes: Shapes) -> None:
    entries = sum(math.prod(shape) for shape in shapes.values())
    if entries > MOST_ENTRIES:
        raise UnusableFile(f"{path} holds arrays of {entries} entries; give at most {MOST_ENTRIES}")


def _check_sizes(path: Path, shapes: Shapes) -> None:
    entries = {name: math.prod(shape) for name, shape in shapes.items()}
    for name, count in entries.items():
        if count > max(entries["y_pred"], 1):
            raise UnusableFile(
                f"{path}: {name} has shape {shapes[name]} and y_pred {shapes['y_pred']}, and no array is larger than "
                "y_pred; correct one of them"
            )
    if entries["y_pred"] > MOST_ENTRIES:
        raise UnusableFile(f"{path}: y_pred has {entries['y_pred']} entries; give at most {MOST_ENTRIES}")


def case_of(path: Path, loss: str, options: Mapping[str, Any]) -> Case:
    """The file's arrays as a case of that loss. It is run once on NumPy, so that an error is reported once."""
    arrays = load_arrays(path)
    unknown = [name for name in (*arrays, *options) if name not in options_of(loss) and name not in REQUIRED]
    if unknown:
        raise UnusableFile(f"{loss} takes no {' or '.join(unknown)}; leave it out")
    y_true, y_pred = arrays.pop("y_true"), arrays.pop("y_pred")
    dtype = y_pred.dtype.name if y_pred.dtype.name in ("float16", "float64") else "float32"
    compute = np.float64 if dtype == "float64" else np.float32
    try:
        prepared = {name: x if x.dtype == bool else x.astype(compute) for name, x in arrays.items()}
        getattr(losses, loss)(y_true, y_pred, **prepared, **options)
    except (ValueError, TypeError) as error:
        raise UnusableFile(f"{path}: {error}") from None
    labels = y_true.ndim < y_pred.ndim
    return Case(
        path.name,
        loss,
        y_true.astype(np.int32) if labels else y_true.astype(dtype).astype(compute),
        y_pred.astype(compute),
        {**options, **prepared},
        dtype,
        usual_tolerance(loss, LOSSES[loss].form(options) == "logits"),
    )
