"""What NumPy calls meet in a process: other modules of a framework's name, its end, and limits on threads.

Each in a process of its own. Arrays of other libraries, in tests/backends/test_foreign_arrays.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable

import pytest

# A loss and its gradient, large enough for several threads.
LARGE = """
import numpy as np
import lossbridge as lb

def large():
    logits = np.zeros((400, 1000), np.float32)
    value, gradient = lb.value_and_grad(lb.sparse_categorical_crossentropy)(
        np.zeros(400, np.int64), logits, from_logits=True
    )
    assert abs(value - np.log(1000)) < 1e-5, value
    assert abs(gradient[0, 0] + 0.999 / 400) < 1e-8, gradient[0, 0]
"""


def run(program: str, before: Callable[[], None] | None = None, **environment: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", LARGE + textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
        preexec_fn=before,
    )
    assert result.returncode == 0, result.stderr
    assert "done" in result.stdout, result.stderr
    assert not result.stderr, result.stderr


@pytest.mark.parametrize("first", ["", "large()"])
def test_a_large_loss_at_the_end_of_the_process(first) -> None:
    """When Python starts no more threads."""
    run(
        f"""
        import atexit
        def last():
            large()
            print("done")
        {first}
        atexit.register(last)
        """
    )


def no_threads() -> None:
    """In the child: the stack of a thread would take more memory than there may be."""
    import resource

    hard = resource.getrlimit(resource.RLIMIT_STACK)[1]
    if hard != resource.RLIM_INFINITY:
        os.write(2, b"the limit of stacks cannot be raised")
        os._exit(1)
    resource.setrlimit(resource.RLIMIT_STACK, (1 << 40, hard))
    resource.setrlimit(resource.RLIMIT_AS, (1 << 36, 1 << 36))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limits of Linux")
def test_a_large_loss_where_no_thread_can_be_started() -> None:
    run(
        """
        import threading
        try:
            threading.Thread(target=print).start()
        except RuntimeError:
            large()
            print("done")
        """,
        no_threads,
        OMP_NUM_THREADS="4",
        OPENBLAS_NUM_THREADS="1",
    )


@pytest.mark.parametrize("name", ["torch", "tensorflow", "jax"])
@pytest.mark.parametrize(
    "module", ["None", "types.ModuleType(name)", "types.SimpleNamespace()"], ids=["none", "empty", "stub"]
)
def test_other_modules_of_a_frameworks_name(name, module) -> None:
    run(
        f"""
        import sys, types
        name = {name!r}
        sys.modules[name] = {module}
        large()
        assert lb.log_loss([1, 0], [0.9, 0.2]) > 0
        try:
            lb.log_loss(object(), np.ones(2))
        except TypeError as error:
            assert "no array of" in str(error)
            print("done")
        """
    )


@pytest.mark.parametrize("name", ["torch", "tensorflow", "jax"])
def test_a_stub_on_the_path(name, tmp_path) -> None:
    """That a program imports, and that fails halfway."""
    (tmp_path / f"{name}.py").write_text("import sys\nhalf = sys.modules[__name__]\nimport use_of_numpy\n")
    (tmp_path / "use_of_numpy.py").write_text("from __main__ import large\nlarge()\n")
    run(
        f"""
        import sys
        sys.path.insert(0, {str(tmp_path)!r})
        import {name}
        large()
        print("done")
        """
    )
