"""Workers: a backend's jobs divided among several, and those that crash or hang."""

from __future__ import annotations

import pytest

from lossbridge.tools.parity.check import Outcome
from lossbridge.tools.processes import BackendRun, run_workers

WORKER = """
import os, time
from lossbridge.tools.parity.check import Outcome
from lossbridge.tools.processes import serve

def job(name):
    if name == os.environ.get("CRASHES"):
        print("the last words", flush=True)
        os._exit(3)
    if name == os.environ.get("HANGS"):
        time.sleep(600)
    return Outcome("loss", name, "eager", "float32")

def jobs(b, request):
    first, count = request["part"]
    return [(name, lambda name=name: job(name)) for name in "abcde"[first::count]], {"part": first}

if __name__ == "__main__":
    serve(jobs)
"""


@pytest.fixture
def run(tmp_path):
    (tmp_path / "a_worker.py").write_text(WORKER)

    def run(count: int, timeout: float = 60, **environment: str) -> tuple[BackendRun[Outcome], list[int]]:
        totals: list[int] = []
        (found,) = run_workers(
            {"numpy": count},
            {"device": "cpu"},
            worker="a_worker",
            outcome=lambda outcome: Outcome(**outcome),
            timeout=timeout,
            environment={"PYTHONPATH": str(tmp_path), **environment},
            on_total=lambda name, total: totals.append(total),
        )
        return found, totals

    return run


def cases(found: BackendRun[Outcome]) -> str:
    return "".join(outcome.case for outcome in found.outcomes)


@pytest.mark.parametrize(("count", "order"), [(1, "abcde"), (2, "acebd"), (3, "adbec")])
def test_outcomes_of_all_workers_in_the_same_order_in_every_run(run, count, order) -> None:
    found, totals = run(count)
    assert (found.status, cases(found), totals[-1], len(totals)) == ("ran", order, 5, count)
    assert found.agreed


def test_one_of_two_workers_crashes(run) -> None:
    found, _ = run(2, CRASHES="d")
    assert (found.status, cases(found)) == ("crashed", "aceb")
    assert found.words == "exit status 3 in: d. the last words"
    assert not found.agreed


def test_one_of_two_workers_hangs(run) -> None:
    found, _ = run(2, timeout=5, HANGS="a")
    assert (found.status, cases(found)) == ("hung", "bd")
    assert found.words.startswith("silent for 5 s in: a.")
