"""The caller's arrays from .csv and .parquet: what is read, and what is refused in one line."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from typer.testing import CliRunner

import lossbridge as lb
from lossbridge.tools import cli
from lossbridge.tools.parity import tables
from lossbridge.tools.parity.files import load_arrays
from lossbridge.tools.parity.tables import UnusableFile

OWN = "label,y_pred_0,y_pred_1,y_pred_2\n1,0.05,0.95,0\n\n2,0.1,0.8,0.1\n"


@pytest.fixture
def write(tmp_path):
    def write(text: str | bytes, name: str = "own.csv"):
        path = tmp_path / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


def test_labels_and_a_matrix(write) -> None:
    arrays = load_arrays(write(OWN))
    assert arrays["y_true"].dtype == np.int64
    assert arrays["y_true"].tolist() == [1, 2]
    np.testing.assert_array_equal(arrays["y_pred"], np.float32([[0.05, 0.95, 0], [0.1, 0.8, 0.1]]))


def test_columns_in_any_order_with_bom_spaces_and_quotes(write) -> None:
    header = '\ufeffy_true_1, y_true_0 ,"y_pred_1",y_pred_0,mask,sample_weight'
    arrays = load_arrays(write(f"{header}\r\n1,0,.25,7.5e-1,True,2\r\n0,1,1,0,false,1\r\n"), ("mask", "sample_weight"))
    assert arrays["y_true"].tolist() == [[0, 1], [1, 0]]
    assert arrays["y_pred"].tolist() == [[0.75, 0.25], [0, 1]]
    assert arrays["mask"].tolist() == [True, False]
    assert arrays["mask"].dtype == bool
    assert arrays["sample_weight"].tolist() == [2, 1]


@pytest.mark.parametrize(
    ("cells", "dtype"),
    [
        (("0.1", "0.25"), np.float32),
        (("0.123456789", "1e-7"), np.float32),
        (("0.1234567891", "0.5"), np.float64),
        (("0.10000000149011612", "0.5"), np.float32),  # 0.1 in float32, printed as float64
        (("1e300", "0.5"), np.float64),  # which float32 does not hold
        (("nan", "-inf"), np.float32),
        (("1", "2"), np.int64),
        (("True", "FALSE"), bool),
        (("True", "0.5"), np.float32),
    ],
)
def test_the_dtype_that_holds_every_written_digit(write, cells, dtype) -> None:
    found = load_arrays(write("y_true,y_pred\n0,{}\n1,{}\n".format(*cells)))["y_pred"]
    assert found.dtype == dtype


REFUSED = {
    "missing": (None, "cannot be read: No such file or directory; name an .npz, .csv or .parquet file"),
    "empty": ("", "is empty; write a header"),
    "no rows": ("y_true,y_pred\n", "has a header and no rows; write one row a sample"),
    "no y_true": (
        "y_pred\n1\n",
        "lacks y_true; it holds y_pred; name the columns label or y_true",
    ),
    "unknown": ("y_true,y_pred,id\n1,1,a\n", "holds id, which is not known here; name the arrays y_true, y_pred"),
    "semicolons": ("y_true;y_pred\n1;1\n", "has no commas in its header; separate columns with commas"),
    "ragged": ("y_true,y_pred\n1,1\n1,1,1\n", "line 3 has 3 cells, and the header 2"),
    "short": ("y_true,y_pred\n1\n", "line 2 has 1 cells, and the header 2"),
    "text": ("label,y_pred\n1,1\ncat,1\n", "label holds 'cat' in line 3, which is no number"),
    "complex": ("y_true,y_pred\n1,1+2j\n", "y_pred holds '1+2j' in line 2, which is complex; take the real part"),
    "blank cell": ("y_true,y_pred\n1,\n", "y_pred holds '' in line 2, which is empty; write a number"),
    "underscore": ("y_true,y_pred\n1,1_0\n", "'1_0' in line 2, which is no number"),
    "other digits": ("y_true,y_pred\n1,١\n", "in line 2, which is no number"),
    "twice": ("y_true,y_pred,y_pred\n1,1,1\n", "has two columns y_pred; leave one of them out"),
    "label twice": ("y_true,label,y_pred\n1,1,1\n", "has two columns y_true"),
    "both": ("y_true,y_pred,y_pred_0\n1,1,1\n", "has a column y_pred and numbered ones"),
    "gap": ("y_true,y_pred_0,y_pred_2\n1,1,1\n", "lacks the column y_pred_1; number the columns from 0"),
    "from 1": ("y_true,y_pred_1,y_pred_2\n1,1,1\n", "lacks the column y_pred_0"),
    "no text": (b"y_true,y_pred\n1,\xff\n", "is no text in UTF-8; save it so"),
    "quote": ('y_true,y_pred\n1,"1\n', "is damaged (unexpected end of data)"),
    "long cell": ("y_true,y_pred\n1," + "1" * 200_000 + "\n", "is damaged (field larger than field limit"),
    "long line": ("y_true,y_pred\n" + "1," * 2**23 + "\n", "has a line of 16777216 characters or more"),
    "formula": ("y_true,y_pred\n1,=1+1\n", "'=1+1' in line 2, which is no number"),
    "escape": ("y_true,y_pred,\x1b[31mx\n1,1,1\n", "which is not known here"),
    "not parquet": ("y_true,y_pred\n", "is no .parquet file; write it with DataFrame.to_parquet"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(write, tmp_path, name) -> None:
    text, words = REFUSED[name]
    file = "own.parquet" if name == "not parquet" else "own.csv"
    path = tmp_path / file if text is None else write(text, file)
    with pytest.raises(UnusableFile) as raised:
        load_arrays(path)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_more_cells_than_fit_into_memory(write, monkeypatch) -> None:
    monkeypatch.setattr(tables, "MOST_CELLS", 7)
    with pytest.raises(UnusableFile, match="has more than 7 cells; give fewer rows"):
        load_arrays(write(OWN))


def test_the_commands_take_tables(write) -> None:
    def run(*arguments: object) -> str:
        result = CliRunner().invoke(cli.app, [str(x) for x in arguments])
        assert result.exit_code == 0, result.output
        return result.stdout

    path = write(OWN)
    assert run("diagnose", path, "--observed", "1.1769392").startswith("1.1769392: Keras' `SparseCategoricalCross")
    assert "1 checks, 0 wrong" in run("parity", path, "--loss", "sparse_categorical_crossentropy", "--backend", "numpy")
    assert "numpy" in run("explain", "sparse_categorical_crossentropy", path, "--backend", "numpy")


def test_a_column_of_observed_values(write) -> None:
    values = lb.binary_crossentropy([[0], [1], [1]], np.float32([[0.1], [0.8], [0.3]]), reduction="none")
    rows = "".join(f"{t},{p},{float(x)!r}\n" for t, p, x in zip((0, 1, 1), (0.1, 0.8, 0.3), values, strict=True))
    result = CliRunner().invoke(cli.app, ["diagnose", str(write("y_true,y_pred,observed\n" + rows))])
    assert result.exit_code == 0, result.output


# Parquet.


READERS = ("pyarrow", "polars")


def only(reader: str, monkeypatch) -> None:
    pytest.importorskip(reader)
    found = importlib.util.find_spec
    monkeypatch.setattr(tables, "find_spec", lambda name: found(name) if name == reader else None)


def parquet(path, **columns):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(arrow.table(columns), path)
    return path


@pytest.mark.parametrize("reader", READERS)
def test_parquet(tmp_path, monkeypatch, reader) -> None:
    only(reader, monkeypatch)
    path = tmp_path / "own.parquet"
    parquet(path, y_pred_1=np.float32([0.25, 1]), y_pred_0=np.float32([0.75, 0]), label=np.int32([0, 1]))
    arrays = load_arrays(path)
    assert arrays["y_true"].tolist() == [0, 1]
    assert arrays["y_true"].dtype == np.int32
    assert arrays["y_pred"].tolist() == [[0.75, 0.25], [0, 1]]
    assert arrays["y_pred"].dtype == np.float32


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"y_true": [1], "y_pred": ["a"]}, "y_pred has the type "),
        ({"y_true": [1], "y_pred": [[0.5, 0.5]]}, "write one number a cell: y_pred_0, y_pred_1, …"),
        ({"y_true": [1, None], "y_pred": [0.5, 0.5]}, "y_true has 1 empty cells; write numbers"),
        ({"y_true": [1]}, "lacks y_pred; it holds y_true"),
        ({"y_true": np.zeros(0), "y_pred": np.zeros(0)}, "has no rows; write one row a sample"),
        ({"y_true": np.zeros(9), "y_pred": np.zeros(9)}, "has 18 cells; give at most 16"),
    ],
)
def test_parquet_that_is_refused(tmp_path, monkeypatch, reader, columns, words) -> None:
    only(reader, monkeypatch)
    monkeypatch.setattr(tables, "MOST_CELLS", 16)
    path = parquet(tmp_path / "own.parquet", **columns)
    with pytest.raises(UnusableFile) as raised:
        load_arrays(path)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("reader", READERS)
def test_damaged_parquet(tmp_path, monkeypatch, reader) -> None:
    only(reader, monkeypatch)
    path = parquet(tmp_path / "own.parquet", y_true=[1, 2], y_pred=[0.5, 0.5])
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UnusableFile, match=r"is damaged \(|cannot be read"):
        load_arrays(path)


def test_parquet_without_a_reader(write, monkeypatch) -> None:
    monkeypatch.setattr(tables, "find_spec", lambda name: None)
    with pytest.raises(UnusableFile, match=r"needs pyarrow or polars to be read: pip install 'lossbridge\[parquet\]'"):
        load_arrays(write(b"PAR1", "own.parquet"))
