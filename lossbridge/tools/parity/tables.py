"""Arrays from tables: .csv and .parquet, one row a sample, to the arrays that an .npz file would hold.

The columns NAME_0, NAME_1, … become one matrix NAME; a column `label` is y_true. The header is checked before any cell
is read, and files are not trusted: no cell is evaluated, and what would not fit into memory is refused.
"""

from __future__ import annotations

import csv
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import numpy as np

SUFFIXES = (".csv", ".parquet")
MOST_CELLS = 2**27  # 1 GiB of float64
_LONGEST_LINE = 2**24
_HOW = "write a header with y_true, and y_pred or y_pred_0, y_pred_1, …"
_COLUMN = re.compile(r"(.+)_(0|[1-9][0-9]{0,6})")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?(inf|infinity)|nan", re.ASCII | re.IGNORECASE)
_LARGEST_WHOLE = 2**53  # float64 does not represent every larger integer
_FLOAT32_DIGITS = 9  # float32 holds every number of so many digits to within half of its last place


class UnusableFile(ValueError):
    """The file holds no usable arrays. The message is one line."""


Check = Callable[[Iterable[str]], None]  # raises UnusableFile for names of arrays that are missing or not known


def read_table(path: Path, check_names: Check) -> dict[str, np.ndarray]:
    """The arrays of a .csv or .parquet file, each as long as the table."""
    read = _parquet if path.suffix.lower() == ".parquet" else _csv
    try:
        return read(path, check_names)
    except UnusableFile:
        raise
    except OSError as error:
        raise UnusableFile(
            f"{path} cannot be read: {error.strerror or error}; name an .npz, .csv or .parquet file"
        ) from None
    except UnicodeDecodeError:
        raise UnusableFile(f"{path} is no text in UTF-8; save it so") from None
    except Exception as error:  # for a damaged file the readers raise anything
        line = (str(error) or type(error).__name__).splitlines()[0]
        raise UnusableFile(f"{path} is damaged ({line}); {_HOW}") from None


def columns_of(path: Path, header: Sequence[str]) -> dict[str, list[int]]:
    """By array the places of its columns, in order. A single place: a vector."""
    numbered: dict[str, dict[int, int]] = {}  # a column without a number has the number -1
    for place, name in enumerate(header):
        name = "y_true" if name == "label" else name
        found = _COLUMN.fullmatch(name)
        group = numbered.setdefault(found[1] if found else name, {})
        number = int(found[2]) if found else -1
        if number in group:
            raise UnusableFile(f"{path} has two columns {name}; leave one of them out")
        group[number] = place
    for name, group in numbered.items():
        if -1 in group and len(group) > 1:
            raise UnusableFile(f"{path} has a column {name} and numbered ones; leave one of them out")
        missing = next((i for i in range(len(group)) if i not in group), None)
        if missing is not None and -1 not in group:
            raise UnusableFile(f"{path} lacks the column {name}_{missing}; number the columns from 0 without gaps")
    return {name: [group[i] for i in sorted(group)] for name, group in numbered.items()}


def _joined(places: dict[str, list[int]], column: Callable[[int], np.ndarray]) -> dict[str, np.ndarray]:
    found = {}
    for name, some in places.items():
        columns = [column(place) for place in some]
        found[name] = np.stack(columns, 1) if len(columns) > 1 else columns[0]
    return found


# CSV.


def _csv(path: Path, check_names: Check) -> dict[str, np.ndarray]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = csv.reader(_lines(path, file), strict=True)
        header = [name.strip() for name in next(lines, [])]
        if not header:
            raise UnusableFile(f"{path} is empty; {_HOW}")
        if len(header) == 1 and re.search("[;\t|]", header[0]):
            raise UnusableFile(f"{path} has no commas in its header; separate columns with commas")
        places = columns_of(path, header)
        check_names(places)
        columns = [_Column(path, name) for name in header]
        rows = 0
        for cells in _rows(path, lines, len(header)):
            rows += 1
            if rows * len(header) > MOST_CELLS:
                raise UnusableFile(f"{path} has more than {MOST_CELLS} cells; give fewer rows, or an .npz file")
            for column, cell in zip(columns, cells, strict=True):
                column.add(cell, lines.line_num)
    if not rows:
        raise UnusableFile(f"{path} has a header and no rows; write one row a sample")
    return _joined(places, lambda place: columns[place].values())


def _lines(path: Path, file: IO[str]) -> Iterator[str]:
    """No line is read that would not fit into memory as cells."""
    while line := file.readline(_LONGEST_LINE):
        if len(line) == _LONGEST_LINE:
            raise UnusableFile(f"{path} has a line of {_LONGEST_LINE} characters or more; give an .npz file")
        yield line


def _rows(path: Path, lines: Any, width: int) -> Iterator[list[str]]:
    """Blank lines are left out."""
    for cells in lines:
        if not cells:
            continue
        if len(cells) != width:
            raise UnusableFile(
                f"{path}: line {lines.line_num} has {len(cells)} cells, and the header {width}; give every line as many"
            )
        yield cells


class _Column:
    """The numbers of a column, and what they can be held in without loss of a written digit."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        self.numbers = array("d")
        self.whole, self.truth, self.digits = True, True, 0

    def add(self, cell: str, line: int) -> None:
        cell = cell.strip().lower()
        if cell in ("true", "false"):
            self.numbers.append(cell == "true")
            return
        self.truth = False
        if not _NUMBER.fullmatch(cell):
            raise UnusableFile(f"{self.path}: {self.name} holds {cell[:40]!r} in line {line}, {_what(cell)}")
        number = float(cell)
        self.numbers.append(number)
        self.digits = max(self.digits, len(cell.partition("e")[0].replace(".", "").lstrip("+-0")))
        self.whole &= cell.lstrip("+-").isdecimal() and abs(number) < _LARGEST_WHOLE

    def values(self) -> np.ndarray:
        x = np.array(self.numbers)
        if self.truth:
            return x.astype(bool)
        if self.whole:
            return x.astype(np.int64)
        with np.errstate(over="ignore"):
            single = x.astype(np.float32)
        exact = np.array_equal(single, x, equal_nan=True)
        held = np.array_equal(np.isfinite(single), np.isfinite(x)) and self.digits <= _FLOAT32_DIGITS
        return single if exact or held else x


def _what(cell: str) -> str:
    if not cell:
        return "which is empty; write a number, or leave the row out"
    if re.search(r"\d[ij]\)?$", cell):
        return "which is complex; take the real part"
    return "which is no number; write numbers with a decimal point, and labels as integers"


# Parquet.


def _parquet(path: Path, check_names: Check) -> dict[str, np.ndarray]:
    with path.open("rb") as file:
        if file.read(4) != b"PAR1":
            raise UnusableFile(f"{path} is no .parquet file; write it with DataFrame.to_parquet")
    read = _by_pyarrow if find_spec("pyarrow") else _by_polars if find_spec("polars") else None
    if read is None:
        raise UnusableFile(f"{path} needs pyarrow or polars to be read: pip install 'lossbridge[parquet]'")
    header, rows, kinds, column = read(path)
    places = columns_of(path, header)
    check_names(places)
    if rows * len(header) > MOST_CELLS:
        raise UnusableFile(f"{path} has {rows * len(header)} cells; give at most {MOST_CELLS}, or an .npz file")
    if not rows:
        raise UnusableFile(f"{path} has no rows; write one row a sample")
    for name, kind in zip(header, kinds, strict=True):
        if not re.fullmatch(r"(u?int\d+|half_?float|float(16|32|64)?|double|bool(ean)?)", kind, re.IGNORECASE):
            raise UnusableFile(f"{path}: {name} has the type {kind}; write one number a cell: y_pred_0, y_pred_1, …")

    def values(place: int) -> np.ndarray:
        x, nulls = column(place)
        if nulls:
            raise UnusableFile(f"{path}: {header[place]} has {nulls} empty cells; write numbers, or leave the rows out")
        return x

    return _joined(places, values)


# Names of columns, number of rows, types as text, and a function: place → values and the number of nulls.
_Opened = tuple[list[str], int, list[str], Callable[[int], tuple[np.ndarray, int]]]


def _by_pyarrow(path: Path) -> _Opened:
    from pyarrow import parquet

    file = parquet.ParquetFile(path)
    schema = file.schema_arrow
    names = list(schema.names)

    def column(place: int) -> tuple[np.ndarray, int]:
        found = file.read(columns=[names[place]]).column(0)
        return (np.zeros(0), found.null_count) if found.null_count else (found.to_numpy(), 0)

    return names, file.metadata.num_rows, [str(field.type) for field in schema], column


def _by_polars(path: Path) -> _Opened:
    import polars

    frame = polars.scan_parquet(path, glob=False)
    schema = frame.collect_schema()
    names = schema.names()
    rows = int(frame.select(polars.len()).collect().item())

    def column(place: int) -> tuple[np.ndarray, int]:
        found = frame.select(names[place]).collect().to_series()
        return (np.zeros(0), found.null_count()) if found.null_count() else (found.to_numpy(), 0)

    return names, rows, [str(kind) for kind in schema.dtypes()], column
