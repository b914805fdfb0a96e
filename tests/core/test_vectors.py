"""The vectors: written, read back, and refused where damaged."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from lossbridge.tools.cli import app
from lossbridge.tools.parity import vectors
from lossbridge.tools.parity.check import all_cases, compared, expected

SOME = tuple(case for case in all_cases() if case.y_pred.size < 1000)


@pytest.fixture
def file(tmp_path):
    vectors.write(tmp_path / "v.json", SOME)
    return tmp_path / "v.json"


def invoke(*arguments):
    return CliRunner().invoke(app, ["vectors", *map(str, arguments)])


def test_every_case_goes_out_and_comes_back(tmp_path) -> None:
    path = tmp_path / "all.json"
    result = invoke("--out", path)
    assert result.exit_code == 0
    assert f"{len(all_cases())} cases written" in result.stdout.replace("\n", "")
    result = invoke("--check", path)
    assert result.exit_code == 0
    assert f"{len(all_cases())} cases, 0 wrong" in result.stdout


def test_numbers_are_exact(file) -> None:
    """As another language reads it: no help of lossbridge's but the documented format."""
    content = json.loads(file.read_text())
    assert (content["format"], content["version"]) == ("lossbridge-vectors", 1)
    for entry, case in zip(content["cases"], SOME, strict=True):
        exact = expected(case)
        for name, truth in (
            ("y_true", case.y_true),
            ("y_pred", case.y_pred),
            ("value", exact.value),
            *((name, getattr(exact, name)) for name in compared(case).values()),
        ):
            read = np.array([float(x) for x in entry[name]["data"]]).reshape(entry[name]["shape"])
            np.testing.assert_array_equal(read, truth)


@pytest.mark.parametrize(
    ("loss", "name"),
    [
        ("categorical_crossentropy", "value"),
        ("categorical_crossentropy", "gradient"),
        ("linear_crossentropy", "weight_gradient"),
        ("linear_distillation", "bias_gradient"),
        ("topk_divergence", "gradient"),
    ],
)
def test_a_changed_number_is_found(file, loss, name) -> None:
    content = json.loads(file.read_text())
    case = next(case for case in content["cases"] if case["loss"] == loss and name in case)
    case[name]["data"][0] = "0.5"
    file.write_text(json.dumps(content))
    result = invoke("--check", file)
    assert result.exit_code == 1
    assert f"{name} is not the reference's" in result.stdout
    assert "1 wrong" in result.stdout


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("[1, 2]", "does not say"),
        ('{"format": "other"}', "does not say"),
        ('{"format": "lossbridge-vectors", "version": 99}', "of version 99"),
        ('{"format": "lossbridge-vectors", "version": 1}', "holds no cases"),
        ('{"format": "lossbridge-vectors", "version": 1, "cases": [{}]}', "case 0 cannot be read"),
        ('{"format": "lossbridge-vectors", "version": 1, "cases": [3]}', "case 0 cannot be read"),
    ],
)
def test_unusable_files(tmp_path, text, words) -> None:
    path = tmp_path / "v.json"
    path.write_text(text)
    result = invoke("--check", path)
    assert result.exit_code == 2
    assert words in result.stderr
    assert result.stderr.count("\n") == 1


def test_usage(tmp_path) -> None:
    assert invoke().exit_code == 2
    assert invoke("--out", "a.json", "--check", "b.json").exit_code == 2
    assert "cannot be read" in invoke("--check", tmp_path / "missing.json").stderr
    assert invoke("--check", tmp_path / "missing.json").exit_code == 2
    assert "cannot be written" in invoke("--out", tmp_path / "no" / "v.json").stderr
