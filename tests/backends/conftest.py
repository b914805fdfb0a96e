"""The backend under test, and a few words to speak to it in NumPy."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lossbridge as lb
from lossbridge.frameworks import FRAMEWORKS
from lossbridge.frameworks.framework import Framework


class Both:
    """A framework and its arithmetic, under one name."""

    def __init__(self, framework: Framework) -> None:
        self._framework = framework

    def __getattr__(self, name: str) -> Any:
        return getattr(self._framework if hasattr(self._framework, name) else self._framework.ops, name)


@dataclasses.dataclass(frozen=True)
class Library:
    """Calls losses on the backend's arrays; takes and gives NumPy."""

    b: Any
    framework: Any

    def array(self, x: Any, dtype: str | None = None) -> Any:
        x = np.asarray(x)
        if dtype is None:
            halves = {"float16": "float16", "bfloat16": "bfloat16"}
            dtype = halves.get(x.dtype.name) or {"f": "float32", "i": "int32", "b": "bool"}[x.dtype.kind]
        return self.b.place(x, dtype, "cpu")

    def value(self, loss: str, y_true: Any, y_pred: Any, **options: Any) -> np.ndarray:
        return self.b.to_numpy(getattr(lb, loss)(*self._arrays(y_true, y_pred), **options))

    def value_and_grad(self, loss: str, y_true: Any, y_pred: Any, **options: Any) -> tuple[np.ndarray, np.ndarray]:
        value, gradient = lb.value_and_grad(getattr(lb, loss))(*self._arrays(y_true, y_pred), **options)
        return self.b.to_numpy(value), self.b.to_numpy(gradient)

    def grad(self, loss: str, y_true: Any, y_pred: Any, **options: Any) -> np.ndarray:
        return self.value_and_grad(loss, y_true, y_pred, **options)[1]

    def target_grad(self, loss: str, y_true: Any, y_pred: Any, **options: Any) -> np.ndarray:
        y_true, y_pred = self._arrays(y_true, y_pred)
        _, gradient = self.b.value_and_grad(lambda t: getattr(lb, loss)(t, y_pred, **options), y_true)
        return self.b.to_numpy(gradient)

    def _arrays(self, *arrays: Any) -> list[Any]:
        return [self.array(x) if isinstance(x, np.ndarray | list | float) else x for x in arrays]


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """test_only_torch.py and test_only_torch_modules.py run on torch alone, test_keras.py wherever Keras can train.

    Without --backend nothing here runs.
    """
    backend = config.getoption("--backend")
    name = collection_path.stem
    of_another = name.startswith("test_only_") and name.split("_")[2] != backend
    untrainable = name.startswith("test_keras") and backend not in ("torch", "tensorflow", "jax")
    return True if collection_path.suffix == ".py" and (backend is None or of_another or untrainable) else None


@pytest.fixture(scope="session")
def lib(pytestconfig: pytest.Config) -> Library:
    name = pytestconfig.getoption("--backend")
    if name not in FRAMEWORKS:
        raise pytest.UsageError(f"--backend {name} is unknown; use one of {', '.join(FRAMEWORKS)}")
    return Library(
        Both(FRAMEWORKS[name]()), FRAMEWORKS[name]()
    )  # a backend that is not installed fails here: it is never skipped
