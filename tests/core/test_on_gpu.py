"""The one-shot check of a GPU, as far as it can be tried without one: its files, its survival, its sections rehearsed.

torch is imported by processes that the script starts, never here.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(FOLDER))

import on_gpu  # noqa: E402

needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
SECTION = on_gpu.Section("parity", "parity", True, 1, "for a test", patience=20)


def read(path: Path) -> dict:
    """Strictly: no NaN and no infinity."""
    return json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda name: pytest.fail(name))


def script(*arguments: object) -> list[str]:
    return [sys.executable, str(FOLDER / "on_gpu.py"), *map(str, arguments)]


# Without a framework: a section's process is a few lines.

TALK = """
import json, os, signal, sys, time
request = json.loads(sys.stdin.readline())
def say(**message): print(json.dumps(message), flush=True)
def job(number, record={}):
    say(start=number, about={"name": f"job {number}", "dtype": "float32"})
    say(record={"name": f"job {number}", "status": "pass", "value_ulp": 1.0, "gradient_ulp": 2.0} | record)
"""


def run_of(tmp_path: Path, talk: str) -> on_gpu.Run:
    book = on_gpu.Book(tmp_path / "out.json", {"complete": False, "facts": {}})
    request = {"device": "cpu", "rehearsal": True, "huge": False}
    return on_gpu.Run(book, on_gpu.Voice(), request, (sys.executable, "-c", TALK + talk))


def statuses(run: on_gpu.Run) -> list[tuple[str, str]]:
    assert read(run.book.path)["records"] == run.book.records
    return [(record["name"], record["status"]) for record in run.book.records]


def shown(run: on_gpu.Run, capsys) -> tuple[int, str]:
    """The exit status, and what is printed in the end."""
    capsys.readouterr()
    code = on_gpu.summary(run.book, on_gpu.arguments(["--out", str(run.book.path)]))
    return code, capsys.readouterr().out


def test_what_agrees(tmp_path, capsys) -> None:
    run = run_of(tmp_path, "[job(i) for i in range(3)]; say(done=True)")
    run.section(SECTION, time.monotonic() + 20)
    assert statuses(run) == [("job 0", "pass"), ("job 1", "pass"), ("job 2", "pass")]
    code, text = shown(run, capsys)
    assert code == 0
    assert "parity                 3    0" in text
    assert "3 records, 0 bad" in text


def test_a_fault_is_written_down_and_told(tmp_path, capsys) -> None:
    talk = 'job(0, {"status": "fail", "fault": "value 1, exact 2", "value_ulp": float("inf")}); job(1); say(done=True)'
    run = run_of(tmp_path, talk)
    run.section(SECTION, time.monotonic() + 20)
    assert "FAIL parity: job 0 : value 1, exact 2" in capsys.readouterr().out
    first, second = read(run.book.path)["records"]
    assert (first["status"], first["fault"], first["triton"]) == ("fail", "value 1, exact 2", True)
    assert "value_ulp" not in first
    assert second["status"] == "pass"
    assert shown(run, capsys)[0] == 1


def test_a_section_goes_on_behind_a_job_that_killed_it(tmp_path, capsys) -> None:
    run = run_of(
        tmp_path,
        """
for i in range(request["skip"], 4):
    if i == 1:
        say(start=i, about={"name": "job 1"})
        print("illegal memory access", file=sys.stderr)
        os.kill(os.getpid(), signal.SIGSEGV)
    job(i)
    if i == 2:
        say(lost=True)
        sys.exit()
say(done=True)
""",
    )
    run.section(SECTION, time.monotonic() + 30)
    assert statuses(run) == [("job 0", "pass"), ("job 1", "crashed"), ("job 2", "pass"), ("job 3", "pass")]
    assert run.book.records[1]["fault"] == "SIGSEGV: illegal memory access"
    assert shown(run, capsys)[0] == 1


def test_a_section_that_cannot_begin_is_left(tmp_path) -> None:
    run = run_of(tmp_path, "raise RuntimeError('no driver')")
    run.section(SECTION, time.monotonic() + 20)
    assert statuses(run) == [("parity", "crashed")]
    assert run.book.records[0]["fault"] == "exit status 1: RuntimeError: no driver"


def test_a_section_that_always_dies_is_given_up(tmp_path) -> None:
    run = run_of(tmp_path, "job(request['skip']); os._exit(3)")
    run.section(SECTION, time.monotonic() + 20)
    assert [status for _, status in statuses(run)] == ["pass", "crashed"] * 4 + ["skipped"]
    assert "given up after 4 processes" in run.book.records[-1]["fault"]


def test_what_is_silent_is_hung(tmp_path) -> None:
    run = run_of(tmp_path, "request['skip'] or (job(0), time.sleep(60)); job(1); say(done=True)")
    run.section(on_gpu.dataclasses.replace(SECTION, patience=1), time.monotonic() + 20)
    assert statuses(run) == [("job 0", "pass"), ("job 0", "hung"), ("job 1", "pass")]


def test_the_end_of_the_time_is_no_fault(tmp_path, capsys) -> None:
    run = run_of(tmp_path, "job(0); time.sleep(60)")
    run.section(SECTION, time.monotonic() + 3)
    assert statuses(run) == [("job 0", "pass"), ("job 0", "skipped")]
    run.section(SECTION, time.monotonic())
    assert run.book.records[-1]["fault"] == "no time was left"
    assert shown(run, capsys)[0] == 0


def test_time_that_is_left_goes_to_the_sections_behind(tmp_path, monkeypatch) -> None:
    ends = []
    run = run_of(tmp_path, "")
    monkeypatch.setattr(run, "section", lambda section, end: ends.append(end - time.monotonic()))
    shares = [on_gpu.dataclasses.replace(SECTION, share=share) for share in (10, 30, 60)]
    on_gpu.run_all(run, shares, 100)
    assert ends == pytest.approx([10, 40, 100], abs=1)


def test_times_are_shown_beside_a_copy_and_the_peer(tmp_path, capsys) -> None:
    run = run_of(tmp_path, "")
    run.take(SECTION, {"record": {"name": "copy", "status": "measured", "facts": {"copy_gb_s": 3000.0}}})
    race = {"name": "CE, 8×5 float32, forward", "shape": [8, 5], "dtype": "float32", "way": "eager", "gb_s": 2400.0}
    ours = {"contender": "lossbridge", "status": "measured", "ms": 0.5, "ratio_to": {"F.cross_entropy, eager": 0.25}}
    run.take(SECTION, {"record": race | ours})
    run.take(SECTION, {"record": race | {"contender": "F.cross_entropy", "status": "measured", "ms": 2.0}})
    assert run.book.records[1]["of_copy"] == 0.8
    assert "0.500  80%  0.25" in shown(run, capsys)[1]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "--out"),
        (["--out", "out.json", "--minutes", "0"], "--minutes is 0; give minutes above 0"),
        (["--out", "out.json", "--minutes", "nan"], "--minutes is nan; give minutes above 0"),
        (["--out", "out.json", "--only", "speed"], "invalid choice: 'speed'"),
        (["--out", "out.json", "--in-process"], "--in-process needs --only"),
        (["--out", "out.json", "--in-process", "--only", "parity", "parity-formula"], "not both"),
        (["--out", "nowhere/out.json"], "--out nowhere/out.json cannot be written"),
        (["--out", "/"], "--out / cannot be written"),
    ],
)
def test_bad_usage(given, words, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        on_gpu.main(given)
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


# With torch, in processes of its own.


@needs_torch
@needs_triton
def test_rehearsal(tmp_path) -> None:
    out = tmp_path / "out.json"
    command = script("--out", out, "--rehearse", "--only", "boundaries", "transformers")
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    found = read(out)
    assert found["complete"]
    assert found["rehearsal"]
    assert found["facts"]["copy_gb_s"] > 0
    assert found["versions"]["torch"]
    checks = [record for record in found["records"] if record["section"] == "boundaries"]
    assert {record["shape"][-1] for record in checks} >= {1, 31, 33, 1000}
    assert {record["dtype"] for record in checks} == {"float16", "bfloat16", "float32"}
    assert sum("more than" in record["name"] for record in checks) == 3
    assert all(record["kernel"] and record["status"] == "pass" for record in checks)
    assert "REHEARSAL" in result.stdout


@needs_torch
def test_a_race(tmp_path) -> None:
    """What the times are taken with: a section's first job, in this way and that."""
    code = """
import json, sys
from gpu import times
from gpu.job import Card
jobs = list(times.torch_times(Card("cpu", rehearsal=True)))
json.dump([job.about | record for job in jobs[:1] for record in job.run()], sys.stdout)
"""
    environment = on_gpu.environment(on_gpu.SECTIONS[4], rehearsal=True)
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    ours, peer = json.loads(result.stdout)
    assert (ours["contender"], peer["contender"]) == ("lossbridge", "F.cross_entropy")
    assert ours["status"] == "measured"
    assert ours["rounds"] >= 7
    assert ours["value_relative"] < 1e-6
    assert ours["ratio_to"]["F.cross_entropy, eager"] == pytest.approx(ours["ms"] / peer["ms"])


@needs_torch
def test_a_run_that_is_killed_leaves_a_whole_file(tmp_path) -> None:
    out = tmp_path / "out.json"
    run = subprocess.Popen(
        script("--out", out, "--rehearse", "--only", "parity-formula"), stdout=subprocess.PIPE, text=True
    )
    with run, run.stdout:
        ends = time.monotonic() + 120
        while time.monotonic() < ends and '"status": "pass"' not in (out.read_text() if out.exists() else ""):
            assert run.poll() is None
            time.sleep(0.05)
        workers = children(run.pid)
        run.kill()
    found = read(out)
    assert not found["complete"]
    assert any(record["status"] == "pass" for record in found["records"])
    while time.monotonic() < ends and any(Path(f"/proc/{pid}/cmdline").exists() for pid in workers):
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}/cmdline").exists() for pid in workers)  # nothing goes on on the GPU


def children(pid: int) -> list[int]:
    """Empty where the system does not tell."""
    listed = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in listed.read_text().split()] if listed.exists() else []


@needs_torch
def test_without_a_gpu_it_says_so(tmp_path) -> None:
    out = tmp_path / "out.json"
    nothing = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(script("--out", out), capture_output=True, text=True, env=nothing, timeout=120)
    assert result.returncode == 1
    assert "sees no CUDA device; --rehearse runs on a CPU" in result.stdout
    device, *others = read(out)["records"]
    assert device["status"] == "fail"
    assert others[-1]["fault"] == "there is no device"
