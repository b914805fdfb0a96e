"""The same bits: value and gradient of every loss with native rows, over frameworks, threads and instruction sets.

Each framework and instruction set has a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from lossbridge.frameworks import FRAMEWORKS
from lossbridge.native import rows
from lossbridge.spec import LOSSES
from lossbridge.tools.parity.cases import Case, cases
from lossbridge.tools.parity.check import Runner

pytestmark = pytest.mark.skipif(bool(rows.MISSING), reason=rows.MISSING)

SETS = ("baseline", "avx2", "avx512", "neon")
THREADS = ("1", "2", "3")


def chosen() -> list[Case]:
    """Some cases, those whose class weights are summed, and one of each loss and form for three threads."""
    found = [case for i, case in enumerate(cases()) if i % 8 == 0 or case.name.startswith("class and sample weights")]
    for case in cases():
        if case.name.startswith("1000 classes"):
            y_true, y_pred = (np.concatenate([x] * 64) for x in (case.y_true, case.y_pred))
            for reduction in ("mean", "none"):
                options = {**case.options, "reduction": reduction}
                found.append(replace(case, name=f"large {reduction}", y_true=y_true, y_pred=y_pred, options=options))
    return found


def has_rows(case: Case, framework: str) -> bool:
    """Where a loss has several kinds, some are computed over each framework's own operations.

    On TensorFlow the reverse one too, because its gradient is that of the rule's target.
    """
    kinds, kind = LOSSES[case.loss].kinds, case.options.get("kind", "forward")
    if not kinds:
        return True
    return kinds[kind].name in rows.RULES and (framework, kind) != ("tensorflow", "reverse")


def digests(framework: str) -> dict[str, str]:
    """Of each number of threads and case. What was compiled for another number of threads is forgotten."""
    b, found = FRAMEWORKS[framework](), {}
    for threads in THREADS:
        os.environ["OMP_NUM_THREADS"] = threads
        if framework == "torch":
            import torch

            torch.set_num_threads(int(threads))
        elif framework == "jax":
            import jax

            jax.clear_caches()
        runner = Runner(b)
        for case in (case for case in chosen() if has_rows(case, framework)):
            outcome = runner.run(case, "eager")
            key = f"{case.loss}, {case.name}, {case.dtype}, {case.options.get('from_logits')}"
            found[f"{key}, threads {threads}"] = f"{key}: {outcome.digest}"
    return found


def _process(framework: str, instruction_set: str) -> dict[str, str] | str:
    """The digests; or why there are none: this processor lacks the instruction set."""
    run = subprocess.run(
        [sys.executable, __file__, framework],
        capture_output=True,
        text=True,
        env=os.environ | {"LOSSBRIDGE_INSTRUCTION_SET": instruction_set, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    if run.returncode == 0:
        return json.loads(run.stdout)
    return run.stderr.splitlines()[-1]


def test_value_and_gradient_are_the_same_everywhere() -> None:
    each = [(framework, name) for name in SETS for framework in FRAMEWORKS]
    with ThreadPoolExecutor(2) as pool:
        found = dict(zip(each, pool.map(lambda which: _process(*which), each), strict=True))
    lacking = {which: words for which, words in found.items() if isinstance(words, str)}
    assert all("which this processor and this build have" in words for words in lacking.values()), lacking
    assert {framework for framework, _ in found.keys() - lacking.keys()} == set(FRAMEWORKS)
    expected = found["numpy", rows._rows.instruction_set()]
    assert len(set(expected.values())) * len(THREADS) == len(expected)
    for which in found.keys() - lacking.keys():
        differing = [key for key, digest in found[which].items() if digest != expected[key]]
        assert not differing, (which, differing)


if __name__ == "__main__":
    print(json.dumps(digests(sys.argv[1])))
