"""`--backend NAME` says which backend the tests under tests/backends run on: one process a backend."""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow is imported anywhere
# Threads of PyTorch that wait for work would spin and take the core from another process: before it is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--backend", help="the backend that tests/backends runs on")


def pytest_configure(config: pytest.Config) -> None:
    # `nox -s tests` leaves them out, `nox -s exhaustive` runs them, on one machine of CI for each backend and the core.
    config.addinivalue_line("markers", "exhaustive: more of what another test checks by a few examples of each kind")
    backend = config.getoption("--backend")
    if backend in ("torch", "tensorflow", "jax"):  # where Keras trains
        os.environ["KERAS_BACKEND"] = backend  # before Keras is imported anywhere
    keep_what_xla_compiles(config)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Skips what calls PyTorch's compiler on a machine that has no C++ compiler for it."""
    try:
        return (yield)
    except Exception as error:
        if "No working C++ compiler found" in str(error):  # PyTorch's words, so that it is there
            from lossbridge.frameworks import on_torch

            if not on_torch.compilers():
                pytest.skip("PyTorch compiles with a C++ compiler, and there is none")
        raise


def keep_what_xla_compiles(config: pytest.Config) -> None:
    """JAX keeps executables by the program that they were compiled from: two processes and several tests share them.

    Most programs are single operations, which eager JAX compiles once a shape, and each process of xdist anew.
    """
    if not hasattr(config, "cache"):  # pytest -p no:cacheprovider
        return
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(config.cache.mkdir("xla")))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
    # One process may read while the other still writes: then it compiles.
    config.addinivalue_line("filterwarnings", "ignore:Error (reading|writing) persistent compilation cache entry")
