"""The caller's own arrays: from an .npz file to a case. Never unpickles."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lossbridge import losses
from lossbridge.spec import LOSSES
from lossbridge.tools.parity.cases import Case, options_of, usual_tolerance

REQUIRED = ("y_true", "y_pred")
OPTIONAL = ("sample_weight", "mask", "class_weight", "pos_weight")
_HOW = "write it with numpy.savez(file, y_true=…, y_pred=…)"


class UnusableFile(ValueError):
    """The file holds no usable arrays. The message is one line."""


def load_arrays(path: Path, optional: tuple[str, ...] = OPTIONAL) -> dict[str, np.ndarray]:
    """y_true and y_pred, and those of the optional arrays that the file holds."""
    try:
        if path.stat().st_size == 0:
            raise UnusableFile(f"{path} is empty; {_HOW}")
        with path.open("rb") as file:
            data = np.load(file, allow_pickle=False)
            if not isinstance(data, np.lib.npyio.NpzFile):
                raise UnusableFile(f"{path} holds one array, and two are needed; {_HOW}")
            arrays = {name: data[name] for name in data.files}
    except UnusableFile:
        raise
    except OSError as error:
        raise UnusableFile(f"{path} cannot be read: {error.strerror or error}; name an .npz file") from None
    except (ValueError, zipfile.BadZipFile, zlib.error, EOFError, KeyError) as error:
        if "allow_pickle" not in str(error):
            raise UnusableFile(f"{path} is damaged ({error}); {_HOW}") from None
        if zipfile.is_zipfile(path):
            raise UnusableFile(f"{path} holds Python objects, which are never unpickled; save plain numbers") from None
        raise UnusableFile(f"{path} is no .npz file; {_HOW}") from None
    missing = [name for name in REQUIRED if name not in arrays]
    if missing:
        found = ", ".join(arrays) or "nothing"
        raise UnusableFile(
            f"{path} lacks {' and '.join(missing)}; it holds {found}; name the arrays {', '.join(REQUIRED)}"
        )
    unknown = [name for name in arrays if name not in (*REQUIRED, *optional)]
    if unknown:
        raise UnusableFile(
            f"{path} holds {', '.join(unknown)}, which is not known here; "
            f"name the arrays {', '.join((*REQUIRED, *optional))}"
        )
    return arrays


def case_of(path: Path, loss: str, options: Mapping[str, Any]) -> Case:
    """The file's arrays as a case of that loss. It is run once on NumPy, so that an error is reported once."""
    arrays = load_arrays(path)
    unknown = [name for name in (*arrays, *options) if name not in options_of(loss) and name not in REQUIRED]
    if unknown:
        raise UnusableFile(f"{loss} takes no {' or '.join(unknown)}; leave it out")
    y_true, y_pred = arrays.pop("y_true"), arrays.pop("y_pred")
    dtype = y_pred.dtype.name if y_pred.dtype.name in ("float16", "float64") else "float32"
    compute = np.float64 if dtype == "float64" else np.float32
    prepared = {name: x if x.dtype == bool else x.astype(compute) for name, x in arrays.items()}
    try:
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
