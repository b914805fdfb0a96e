"""What becomes of the arrays of a file: the case that parity runs, and sizes at their limits."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest

from lossbridge.tools.parity import files
from lossbridge.tools.parity.cases import usual_tolerance

LOGITS = {"from_logits": True}


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int64"])
def test_a_case_has_the_predictions_dtype(save, dtype) -> None:
    """Dense targets are rounded to it, as they will be; weights are not, and a mask stays one."""
    targets = np.array([[0.1, 0.9], [1 / 3, 2 / 3]])
    path = save(
        y_true=targets,
        y_pred=np.array([[1, 2], [3, 4]], dtype),
        sample_weight=np.array([0.1, 0.7]),
        mask=np.array([True, False]),
    )
    case = files.case_of(path, "categorical_crossentropy", LOGITS)
    computed = "float64" if dtype == "float64" else "float32"
    rounded = "float32" if dtype == "int64" else dtype
    assert case.dtype == rounded
    np.testing.assert_array_equal(case.y_true, targets.astype(rounded))
    assert case.y_true.dtype == case.y_pred.dtype == case.options["sample_weight"].dtype == computed
    np.testing.assert_array_equal(case.options["sample_weight"], np.array([0.1, 0.7], computed))
    assert case.options["mask"].dtype == bool


@pytest.mark.parametrize("from_logits", [True, False])
def test_the_tolerance_is_that_of_the_form(save, from_logits) -> None:
    path = save(y_true=np.eye(2), y_pred=np.full((2, 2), 0.5))
    for loss in ("kl_divergence", "categorical_crossentropy", "binary_crossentropy"):
        case = files.case_of(path, loss, {"from_logits": from_logits})
        assert case.tolerance == usual_tolerance(loss, from_logits)


def test_an_option_that_the_loss_lacks(save) -> None:
    with pytest.raises(files.UnusableFile, match="kl_divergence takes no class_weight; leave it out"):
        files.case_of(save(y_true=np.eye(2), y_pred=np.eye(2), class_weight=np.ones(2)), "kl_divergence", {})
    path = save(y_true=[0, 1], y_pred=np.eye(2), class_weight=np.ones(2))
    assert "class_weight" in files.case_of(path, "sparse_categorical_crossentropy", LOGITS).options


def test_arrays_of_other_headers_and_sizes(tmp_path, save) -> None:
    with (tmp_path / "y_true.npy").open("wb") as file:
        np.lib.format.write_array(file, np.ones(3), version=(2, 0))
    path = save(y_pred=np.zeros((3, 2)))
    with zipfile.ZipFile(path, "a") as archive:
        archive.write(tmp_path / "y_true.npy", "y_true.npy")
    assert files.load_arrays(path)["y_true"].shape == (3,)
    # One weight for all, beside nothing.
    path = save(y_true=np.zeros((0, 2)), y_pred=np.zeros((0, 2)), sample_weight=np.array(2.0))
    assert files.load_arrays(path)["sample_weight"] == 2
    with pytest.raises(files.UnusableFile, match=r"sample_weight has shape \(2,\) and y_pred \(0, 2\)"):
        files.load_arrays(save(y_true=np.zeros((0, 2)), y_pred=np.zeros((0, 2)), sample_weight=np.ones(2)))
    same = save(y_true=np.zeros((3, 2)), y_pred=np.zeros((3, 2)), sample_weight=np.ones((3, 2)))
    assert files.load_arrays(same)["sample_weight"].shape == (3, 2)


def test_the_most_entries(save, monkeypatch) -> None:
    path = save(y_true=np.zeros(3), y_pred=np.zeros((3, 2)))
    for most, fits in ((6, True), (5, False)):
        monkeypatch.setattr(files, "MOST_ENTRIES", most)
        if fits:
            files.load_arrays(path)
        else:
            with pytest.raises(files.UnusableFile, match="y_pred has 6 entries; give at most 5"):
                files.load_arrays(path)
    for most, fits in ((9, True), (8, False)):
        monkeypatch.setattr(files, "MOST_ENTRIES", most)
        if fits:
            files.load_run(path, lambda names: None)
        else:
            with pytest.raises(files.UnusableFile, match="holds arrays of 9 entries; give at most 8"):
                files.load_run(path, lambda names: None)


def test_only_what_may_be_there_is_read(save) -> None:
    path = save(y_true=[0, 1], y_pred=np.eye(2), mask=np.ones(2, bool))
    assert "mask" in files.load_arrays(path)
    with pytest.raises(files.UnusableFile, match="holds mask, which is not known here"):
        files.load_arrays(path, optional=("sample_weight",))
    with pytest.raises(files.UnusableFile, match="lacks y_true and y_pred; it holds x"):
        files.load_arrays(save(x=np.ones(2)))
