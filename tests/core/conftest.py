"""What several files of tests here start from."""

from __future__ import annotations

import numpy as np
import pytest


@pytest.fixture
def save(tmp_path):
    """Writes arrays to a file, and gives its path."""

    def save(**arrays):
        np.savez(tmp_path / "own.npz", **arrays)
        return tmp_path / "own.npz"

    return save
