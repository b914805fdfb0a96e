"""`--backend NAME` says which backend the tests under tests/backends run on: one process a backend."""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow is imported anywhere


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--backend", help="the backend that tests/backends runs on")


def pytest_configure(config: pytest.Config) -> None:
    backend = config.getoption("--backend")
    if backend in ("torch", "tensorflow", "jax"):  # where Keras trains
        os.environ["KERAS_BACKEND"] = backend  # before Keras is imported anywhere
