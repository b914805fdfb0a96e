"""The command: exit status, what it prints, what it refuses. With NumPy alone, so that it is quick."""

from __future__ import annotations

import importlib.util
import json
import re
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import lossbridge
from lossbridge.explanation import PREDICTIONS
from lossbridge.native import rows
from lossbridge.tools import cli, doctor_worker, processes
from lossbridge.tools.cli import app
from lossbridge.tools.parity.cases import DTYPES, LOSSES, cases
from lossbridge.tools.parity.check import Outcome, all_cases

runner = CliRunner()


def run(*arguments: object, code: int = 0):
    cli.out.width = cli.err.width = 160  # whatever the terminal was when they were made
    result = runner.invoke(app, [str(argument) for argument in arguments], env={"TERM": "xterm"})
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(6, 4)).astype(np.float32)
    return {"y_true": rng.integers(0, 4, 6), "y_pred": z}


def test_parity_on_the_built_in_cases_and_files(tmp_path) -> None:
    result = run(
        "parity",
        "--backend",
        "numpy",
        "--dtype",
        "float32",
        "--json",
        tmp_path / "p.json",
        "--html",
        tmp_path / "p.html",
    )
    assert result.stdout.index("Keras example") < result.stdout.index("sparse_categorical_crossentropy")
    assert "1.1769392" in result.stdout
    kept = json.loads((tmp_path / "p.json").read_text())
    assert kept["agreed"] is True
    outcomes = kept["backends"][0]["outcomes"]
    assert len(outcomes) == sum(case.dtype == "float32" for case in all_cases())
    assert outcomes[0]["case"] == "Keras example"
    page = (tmp_path / "p.html").read_text()
    assert "<svg" in page
    assert "1.1769392" in page
    # Self-contained: nothing is fetched. (Namespaces and metadata of SVG name addresses that no browser opens.)
    for opener in ("src=", "<link", "@import", "url(http", "<script"):
        assert opener not in page


@pytest.mark.parametrize("loss", LOSSES)
def test_parity_of_one_loss(loss) -> None:
    assert loss in run("parity", "--backend", "numpy", "--loss", loss, "--dtype", "float64").stdout


def test_parity_on_own_arrays(save, arrays) -> None:
    path = save(**arrays, sample_weight=np.arange(6.0), mask=np.arange(6) != 2)
    result = run("parity", path, "--loss", "sparse_categorical_crossentropy", "--from-logits", "--backend", "numpy")
    assert "1 checks, 0 wrong" in result.stdout
    more = ["--label-smoothing", 0.1, "--reduction", "none", "--ignore-class", -1, "--axis", -1]
    run("parity", path, "--loss", "sparse_categorical_crossentropy", "--from-logits", "--backend", "numpy", *more)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int64"])
def test_own_arrays_of_any_dtype(save, dtype) -> None:
    y_pred = np.array([[3, 1, 2], [0, 1, 5]], dtype)
    path = save(y_true=np.eye(2, 3), y_pred=y_pred)
    run("parity", path, "--loss", "categorical_crossentropy", "--from-logits", "--backend", "numpy")


def npy(header: str, data: bytes = b"") -> bytes:
    """A file of one array with this header, which need not be true."""
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


def with_member(p, a, name, content) -> None:
    """The arrays, with other bytes in place of one."""
    np.savez(p, **{key: x for key, x in a.items() if key != name})
    with zipfile.ZipFile(p, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{name}.npy", content)


HUGE = "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000, 1000000000)}"
SIX = "{'descr': '<f4', 'fortran_order': False, 'shape': (6,)}"
ZEROS = "{'descr': '|i1', 'fortran_order': False, 'shape': (400000000,)}"


REFUSED = {
    "missing file": (lambda p, a: None, "cannot be read"),
    "empty file": (lambda p, a: p.write_bytes(b""), "is empty"),
    "text": (lambda p, a: p.write_text("y_true,y_pred"), "no .npz file"),
    "npy": (lambda p, a: (np.save(p.with_suffix(".npy"), a["y_pred"]), p.with_suffix(".npy").rename(p)), "one array"),
    "truncated": (lambda p, a: (np.savez(p, **a), p.write_bytes(p.read_bytes()[:-60])), "damaged"),
    "cut inside": (lambda p, a: (np.savez(p, **a), p.write_bytes(p.read_bytes()[:200])), "damaged"),
    "another zip": (lambda p, a: zipfile.ZipFile(p, "w").writestr("readme.txt", "hello"), "lacks y_true and y_pred"),
    "lacks an array": (lambda p, a: np.savez(p, y_pred=a["y_pred"]), "lacks y_true; it holds y_pred"),
    "objects": (lambda p, a: np.savez(p, y_true=np.array([{}] * 6), y_pred=a["y_pred"]), "never unpickled"),
    "unknown array": (lambda p, a: np.savez(p, **a, sample_weights=np.ones(6)), "sample_weights"),
    "strings": (lambda p, a: np.savez(p, y_true=np.array(["a"] * 6), y_pred=a["y_pred"]), "y_true has dtype str"),
    "shapes": (lambda p, a: np.savez(p, y_true=a["y_true"][:5], y_pred=a["y_pred"]), r"(5,)"),
    "header": (lambda p, a: with_member(p, a, "y_pred", npy("{'descr': '<f4', 'shape': (")), "damaged"),
    "no header": (lambda p, a: with_member(p, a, "y_pred", b"\x93NUMPY\x01"), "damaged"),
    "no array": (lambda p, a: with_member(p, a, "y_pred", b"hello"), "damaged"),
    "huge shape": (lambda p, a: with_member(p, a, "y_pred", npy(HUGE)), "y_pred of shape (1000000000, 1000000000)"),
    "more than an array": (
        lambda p, a: with_member(p, a, "sample_weight", npy(SIX, bytes(40))),
        "damaged (sample_weight of shape (6,) and float32 is 40 bytes)",
    ),
    "large weights": (
        lambda p, a: with_member(p, a, "sample_weight", npy(ZEROS, bytes(400_000_000))),
        "sample_weight has shape (400000000,) and y_pred (6, 4), and no array is larger than y_pred",
    ),
    "weights of texts": (lambda p, a: np.savez(p, **a, sample_weight=["a"] * 6), "sample_weight has dtype str"),
    "complex weights": (lambda p, a: np.savez(p, **a, sample_weight=np.full(6, 1j)), "take the real part"),
    "escape sequence": (lambda p, a: np.savez(p, **a, **{"\x1b[31mkey\n": np.ones(6)}), r"holds \x1b[31mkey\n, which"),
    "labels": (lambda p, a: np.savez(p, y_true=a["y_true"] + 9, y_pred=a["y_pred"]), "out of range"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_unusable_files_are_refused_in_one_line(tmp_path, arrays, name) -> None:
    write, words = REFUSED[name]
    path = tmp_path / "own.npz"
    write(path, arrays)
    result = run("parity", path, "--loss", "sparse_categorical_crossentropy", "--from-logits", code=2)
    assert words in result.stderr
    assert result.stderr.startswith("lossbridge: ")
    assert result.stderr.count("\n") == 1
    assert not result.stdout


def test_an_unknown_array_is_not_read(tmp_path, arrays) -> None:
    """Nor inflated: its bytes are nonsense."""
    path = tmp_path / "own.npz"
    with_member(path, arrays, "surprise", b"no array")
    result = run("parity", path, "--loss", "log_loss", code=2)
    assert "holds surprise, which is not known here" in result.stderr


def test_options_that_a_float_cannot_hold(save, arrays) -> None:
    for option, value in (("--temperature", 1e300), ("--temperature", "inf"), ("--temperature", "nan")):
        path = save(y_true=arrays["y_pred"], y_pred=arrays["y_pred"])
        result = runner.invoke(app, ["parity", str(path), "--loss", "distillation_loss", option, str(value)])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception


# As a process: what the system refuses, and signals.


def process(*arguments: object, **options):
    command = [sys.executable, "-m", "lossbridge", *map(str, arguments)]
    return subprocess.Popen(command, text=True, stderr=subprocess.PIPE, **options)


def refused_by_process(*arguments: object, **options) -> str:
    with process(*arguments, **options) as command:
        error = command.communicate()[1]
        assert command.returncode == 2, error
    lines = [line for line in error.splitlines() if line.startswith("lossbridge: ")]
    assert len(lines) == 1, error
    assert "Traceback" not in error
    return lines[0]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_full_disk() -> None:
    checked = "parity", "--backend", "numpy", "--loss", "log_loss", "--dtype", "float16"
    for option in ("--json", "--html"):
        words = refused_by_process(*checked, option, "/dev/full", stdout=subprocess.DEVNULL)
        assert "No space left on device" in words
    with open("/dev/full", "w") as full:
        assert "No space left on device" in refused_by_process("--version", stdout=full)


def test_a_name_of_300_characters() -> None:
    name = "n" * 300
    for arguments in (
        ["parity", "--json", name],
        ["parity", name, "--loss", "log_loss"],
        ["diagnose", name],
        ["compare", name, name],
        ["explain", "log_loss", name],
        ["bench", "--plots", name],
        ["bench", "--compare", name],
        ["vectors", "--out", name],
        ["vectors", "--check", name],
    ):
        assert "name too long" in refused_by_process(*arguments, stdout=subprocess.DEVNULL), arguments


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes as Linux shows them")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_the_workers_end_with_the_command(how) -> None:
    with process("parity", "--backend", "numpy", stdout=subprocess.DEVNULL) as command:
        deadline = time.monotonic() + 60
        while not (workers := children(command.pid)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert workers
        command.send_signal(how)
        assert command.wait(60) == -how
    while any(map(runs, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(runs, workers))


def runs(pid: int) -> bool:
    """It exists, and is not only a name that nobody has asked for yet."""
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def children(pid: int) -> list[int]:
    return [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--backend", "mxnet"], "--backend mxnet is unknown; use one of"),
        (["--loss", "hinge"], "--loss hinge is unknown; use one of"),
        (["--dtype", "float8"], "--dtype float8 is unknown; use one of"),
        (["--epsilon", "0.1"], "--epsilon describes your own arrays"),
        (["own.npz"], "FILE needs one --loss"),
        (["own.npz", "--loss", "linear_crossentropy"], "--loss linear_crossentropy takes weight too, which FILE"),
        (["own.npz", "--loss", "linear_distillation"], "takes teacher_weight, student_weight too, which FILE"),
        (["own.npz", "--loss", "log_loss", "--dtype", "float32"], "--dtype chooses among"),
        (["own.npz", "--loss", "log_loss", "--loss", "kl_divergence"], "FILE needs one --loss"),
        (["--json", "nowhere/p.json"], "nowhere/p.json cannot be written: No such file or directory"),
        (["--html", "/"], "/ cannot be written: Is a directory"),
        (["--timeout", "-1"], "--timeout is -1; give seconds above 0"),
        (["--timeout", "nan"], "--timeout is nan; give seconds above 0"),
        (["--colour"], "No such option"),
        (["--timeout", "soon"], "Invalid value"),
    ],
)
def test_bad_usage(arguments, words) -> None:
    assert words in run("parity", *arguments, code=2).stderr


@pytest.mark.parametrize("command", ["parity", "explain", "diagnose", "compare", "vectors", "bench", "doctor"])
def test_help_fits_into_80_columns(command, monkeypatch) -> None:
    """No name is cut short."""
    monkeypatch.setenv("COLUMNS", "80")
    shown = run(command, "--help").stdout
    assert max(map(len, shown.splitlines())) == 80
    assert not re.search(r"[^\W\d_]…", shown.replace("param_…", "").replace("grad_…", ""))


def test_an_option_that_the_loss_lacks(save, arrays) -> None:
    result = run("parity", save(**arrays), "--loss", "log_loss", "--temperature", 2, code=2)
    assert "log_loss takes no temperature" in result.stderr
    result = run("parity", save(**arrays), "--loss", "log_loss", "--epsilon", 0.7, code=2)
    assert "epsilon is 0.7" in result.stderr


def test_a_missing_backend_is_named(monkeypatch) -> None:
    monkeypatch.setattr(processes, "installed", lambda name: name == "numpy")
    monkeypatch.setattr("lossbridge.tools.cli.installed", lambda name: name == "numpy")
    narrow = ["--loss", "log_loss", "--dtype", "float16"]
    result = run("parity", *narrow)  # nobody asked for it
    assert "torch: missing: not installed: pip install 'lossbridge[torch]'" in result.stdout
    result = run("parity", "--backend", "torch", "--backend", "numpy", *narrow, code=1)
    assert "torch: missing (asked for)" in result.stdout
    run("parity", "--backend", "torch", *narrow, code=1)


def test_a_missing_device_is_named() -> None:
    result = run("parity", "--backend", "numpy", "--device", "cuda", code=1)
    assert "no device cuda; present: cpu" in result.stdout


# --peers: the libraries' own functions. All four backends: `nox -s parity -- --peers`.


def test_peers(tmp_path) -> None:
    kept, page = tmp_path / "p.json", tmp_path / "p.html"
    names = ["--loss", "sklearn", "--loss", "torch.kl_div"]
    result = run("parity", "--peers", *names, "--backend", "numpy", "--json", kept, "--html", page)
    assert "lossbridge.compat compared with the libraries' own functions" in result.stdout
    assert "sklearn.log_loss_before_1_5" in result.stdout
    outcomes = json.loads(kept.read_text())["backends"][0]["outcomes"]
    assert {outcome["loss"] for outcome in outcomes} == {
        "sklearn.log_loss",
        "sklearn.log_loss_before_1_5",
        "torch.kl_div",
    }
    assert {"defaults", "reduction='batchmean'", "normalize=False"} <= {outcome["case"] for outcome in outcomes}
    assert "torch.kl_div" in page.read_text()


def test_peers_names_what_is_not_installed(monkeypatch) -> None:
    """Where it was asked for, that is no agreement."""
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "sklearn" else found(name))
    chosen = ("parity", "--peers", "--backend", "numpy", "--loss")
    assert "sklearn: not installed, and not compared" in run(*chosen, "sklearn.log_loss", code=1).stdout
    result = run(*chosen, "scipy.rel_entr").stdout
    assert "not installed" not in result
    assert "compared with the convention only" not in result


def test_peers_tells_what_no_library_judges() -> None:
    result = run("parity", "--peers", "--backend", "numpy", "--loss", "sklearn")
    words = "compared with the convention only, not with a library's own result: 4 checks, of calls of sklearn."
    assert f"{words}log_loss_before_1_5" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--loss", "kldiv"], "--loss kldiv is unknown; use one of keras, torch, sklearn, optax, scipy; did you mean"),
        (["--dtype", "float16"], "--peers compares in float32"),
        (["--epsilon", "0.1"], "leave out FILE and what describes it"),
        (["own.npz"], "leave out FILE and what describes it"),
    ],
)
def test_bad_usage_of_peers(arguments, words) -> None:
    assert words in run("parity", "--peers", *arguments, code=2).stderr


# diagnose.


@pytest.fixture
def keras_example(save):
    return save(y_true=[[0, 1, 0], [0, 0, 1]], y_pred=[[0.05, 0.95, 0], [0.1, 0.8, 0.1]])


def test_diagnose(keras_example, tmp_path, save) -> None:
    result = run("diagnose", keras_example, "--observed", "1.1769392")
    assert result.stdout.startswith("1.1769392: Keras' `CategoricalCrossentropy`\n")
    assert "sklearn.metrics.log_loss(y_true, y_pred)" in result.stdout
    probe = tmp_path / "probe.npz"
    y_true, y_pred = np.float32([[0.2, 0.7, 0.1], [0.3, 0.3, 0.4]]), np.float32([[0.1, 0.6, 0.3], [0.5, 0.2, 0.3]])
    number = f"{(y_true * np.log(y_true / y_pred)).sum() / 6:.6f}"
    soft = save(y_true=y_true, y_pred=y_pred)
    result = run("diagnose", soft, "--observed", number, "--expected", "torch.kl_div", "--probe", probe)
    assert "divides by N·C; use `batchmean`, or multiply by C = 3" in result.stdout
    assert "Meant: PyTorch's `kl_div`" in result.stdout
    assert f"Compute your loss on the batch in {probe}" in result.stdout
    with np.load(probe) as arrays:
        assert arrays["y_true"].shape == arrays["y_pred"].shape
        assert arrays["y_pred"].shape[1] == 3
    assert "(--probe FILE writes a batch that can)" in result.stdout
    missed = run("diagnose", keras_example, "--observed", "77777.777", code=1).stdout
    assert "nothing fits" in missed
    assert "--temperature, --label-smoothing, " in missed
    assert "a second file with its --observed." in missed
    assert "=," not in missed, "an argument of the function, which the command does not have"


def test_diagnose_what_the_file_holds(save) -> None:
    """Weights, per-sample values, and several batches."""
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(4), 6)
    labels, weight = rng.integers(0, 4, 6), rng.uniform(0.5, 2, 4)
    values = lossbridge.sparse_categorical_crossentropy(labels, p, class_weight=weight, reduction="none")
    path = save(y_true=labels, y_pred=p, class_weight=weight, observed=values)
    assert "class_weight" in run("diagnose", path).stdout
    path = save(y_true=labels, y_pred=p)
    mean = f"{lossbridge.sparse_categorical_crossentropy(labels, p):.4g}"
    run("diagnose", path, path, "--observed", mean, "--observed", mean)


def test_diagnose_writes_the_file_that_is_named_or_none(keras_example, tmp_path) -> None:
    probe = tmp_path / "probe"
    run("diagnose", keras_example, "--observed", "1.1769392", "--probe", probe)
    assert sorted(path.name for path in tmp_path.iterdir()) == [keras_example.name, "probe"]
    with np.load(probe) as arrays:
        assert set(arrays) == {"y_true", "y_pred"}
    probe.unlink()
    result = run("diagnose", keras_example, "--observed", "77777.777", "--probe", probe, code=1)
    assert "no probe is written" in result.stdout
    assert not probe.exists()


def test_diagnose_tells_which_file_is_wrong(keras_example, tmp_path) -> None:
    other = tmp_path / "other.npz"
    with np.load(keras_example) as arrays:
        np.savez(other, y_true=arrays["y_true"][:1], y_pred=arrays["y_pred"])
        result = run("diagnose", keras_example, other, "--observed", 1, "--observed", 1, code=2)
        assert f"lossbridge: {other}: y_true has shape (1, 3), and targets" in result.stderr
        np.savez(other, y_true=arrays["y_true"], y_pred=arrays["y_pred"], class_weight=[1, 2, 3])
        result = run("diagnose", keras_example, other, "--observed", 1, "--observed", 1, code=2)
        assert f"lossbridge: {other} holds another class_weight than {keras_example}" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "holds no array observed; give the number to explain with --observed"),
        (["--observed", "one"], "observed is 'one', which is no number"),
        (["--observed", "1", "--observed", "2"], "--observed is given 2 times for 1 files; give it once a file"),
        (["--observed", "1", "--expected", "keras.hinge"], "expected 'keras.hinge' is unknown"),
        (["--observed", "1", "--quantity", "slope"], "quantity is 'slope'"),
        (["--observed", "1", "--label-smoothing", "7"], "label_smoothing is 7.0; pass a number between 0 and 1"),
        (["--observed", "1", "--epsilon", "0"], "epsilon is 0.0; pass a number between 0 and 0.5"),
        (["--observed", "1", "--probe", "nowhere/p.npz"], "nowhere/p.npz cannot be written"),
    ],
)
def test_bad_usage_of_diagnose(keras_example, arguments, words) -> None:
    result = run("diagnose", keras_example, *arguments, code=2)
    assert words in result.stderr
    assert not result.stdout


@pytest.mark.parametrize("name", [name for name in REFUSED if name != "labels"])
def test_diagnose_refuses_unusable_files(tmp_path, arrays, name) -> None:
    write, words = REFUSED[name]
    path = tmp_path / "own.npz"
    write(path, arrays)
    result = run("diagnose", path, "--observed", 1, code=2)
    assert words in result.stderr.splitlines()[-1]


# Pages that can be sent: nothing is fetched, and what a file holds is text.

OPENERS = ("src=", "<link", "@import", "url(http", "<script")


def check_page(path: Path, *words: str) -> str:
    page = path.read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    for opener in OPENERS:
        assert opener not in page
    for word in words:
        assert word in page
    return page


def test_the_page_of_a_diagnosis(keras_example, tmp_path) -> None:
    path = tmp_path / "page.html"
    run("diagnose", keras_example, "--observed", "1.697965", "--html", path)
    check_page(
        path,
        "1.697965: Keras&#x27; <code>CategoricalCrossentropy</code>, but logarithms to base 2 (bits)",
        "Meant is Keras&#x27; <code>CategoricalCrossentropy</code>, the plain loss that such arrays suggest.",
        "The largest difference is 1.019: meant 2.30259, computed 3.32193.",
        "<svg",
        "lb.categorical_crossentropy",
    )
    page = check_page(path)
    assert page.count("lb.categorical_crossentropy(y_true, y_pred)") == 1
    run("diagnose", keras_example, "--observed", 0.3923, "--expected", "torch.kl_div", "--html", path)
    words = "Sample by sample both give the same. Meant is divided by the number of elements"
    check_page(path, "as you expected", "of log(y_pred)")
    run("diagnose", keras_example, "--observed", "2.3538784", "--html", path)
    assert words.split(" Meant")[0] in check_page(path, "summed, not averaged")
    run("diagnose", keras_example, "--observed", "77777.777", "--html", path, code=1)
    assert "<svg" not in check_page(path, "nothing fits")


@pytest.fixture
def two_runs(tmp_path, arrays):
    """Of which the second takes the mean for the sum."""
    losses = lossbridge.sparse_categorical_crossentropy(**arrays, from_logits=True, reduction="none")
    np.savez(tmp_path / "keras.npz", **arrays, losses=losses, loss=losses.sum())
    np.savez(tmp_path / "torch.npz", **arrays, losses=losses, loss=losses.mean())
    return tmp_path / "keras.npz", tmp_path / "torch.npz"


def test_compare(two_runs, tmp_path) -> None:
    keras, torch = two_runs
    page = tmp_path / "page.html"
    result = run("compare", keras, torch, "--html", page, code=1)
    assert result.stdout.startswith("They part at loss: keras has ")
    assert "keras has torch's × 6 = the number of samples; keras' is the sum of its losses, torch's is" in result.stdout
    check_page(page, "They part at loss", "<svg", "Sample by sample, keras and torch give the same.", 'class="wrong"')
    result = run("compare", keras, keras, "--html", page)
    assert result.stdout.startswith("Nothing parts: all 4 quantities are equal.\n")
    check_page(page, "Nothing parts")


def test_compare_tables(tmp_path) -> None:
    for name, scale in (("keras", 1), ("torch", 2)):
        rows = "".join(f"{i % 2},{0.3 * scale * i - 1},{scale * 0.1 * i}\n" for i in range(1, 9))
        (tmp_path / f"{name}.csv").write_text("label,logits_0,logits_1\n" + rows)
    assert "y_true  equal" in run("compare", tmp_path / "keras.csv", tmp_path / "torch.csv", code=1).stdout


def test_pages_escape_what_files_hold(tmp_path) -> None:
    evil = "param_<script>alert(1)</script>$x_{$"
    for name in ("<b>a", "$b$"):
        np.savez(tmp_path / f"{name}.npz", **{evil: np.arange(4.0) * len(name), "y_pred": np.arange(4.0) ** len(name)})
    page = tmp_path / "page.html"
    run("compare", tmp_path / "<b>a.npz", tmp_path / "$b$.npz", "--html", page, code=1)
    text = check_page(page, "param_&lt;script&gt;")
    assert "<b>a" not in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.npz"], "nowhere.npz cannot be read: No such file or directory"),
        (["OWN", "--tolerance", "2"], "tolerance is 2.0; pass a number from 0 to below 1"),
        (["OWN", "--tolerance", "1_0"], "'1_0' is no"),
        (["OWN", "--html", "nowhere/p.html"], "nowhere/p.html cannot be written"),
        ([], "Missing argument 'B'"),
    ],
)
def test_bad_usage_of_compare(keras_example, arguments, words) -> None:
    given = [keras_example if x == "OWN" else x for x in arguments]
    result = run("compare", keras_example, *given, code=2)
    assert words in result.stderr
    assert not result.stdout


@pytest.mark.parametrize(
    "name", [n for n in REFUSED if n not in ("labels", "lacks an array", "shapes", "large weights")]
)
def test_compare_refuses_unusable_files(tmp_path, arrays, name) -> None:
    write, words = REFUSED[name]
    path = tmp_path / "own.npz"
    write(path, arrays)
    result = run("compare", path, path, code=2)
    words = {"another zip": "holds readme.txt, which is not known here"}.get(name, words)
    assert words in result.stderr.splitlines()[-1]


def test_every_dtype_is_covered() -> None:
    assert {case.dtype for case in cases()} == set(DTYPES)


def test_the_command_without_its_extra(tmp_path) -> None:
    (tmp_path / "typer.py").write_text("raise ModuleNotFoundError('no', name='typer')")
    result = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import lossbridge.__main__ as m; m.main()",
        ],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert "pip install 'lossbridge[cli]'" in result.stderr


def test_version() -> None:
    assert run("--version").stdout == f"lossbridge {lossbridge.__version__}, {rows.status()}\n"


def test_explain_says_the_path_and_why_not_a_faster_one(save, monkeypatch) -> None:
    result = run("explain", "categorical_crossentropy", "--backend", "numpy", "--from-logits", "--shape", "64,10")
    assert "categorical_crossentropy, (64, 10) of float32, from_logits=True" in result.stdout
    assert ("│ rule" if rows.MISSING else "│ rows │ value: native rows") in result.stdout
    monkeypatch.setenv("LOSSBRIDGE_NATIVE", "0")
    focal = run("explain", "categorical_focal_crossentropy", "--backend", "numpy")
    assert "│ formula │" in focal.stdout
    assert "not rows: the native rows are switched off by LOSSBRIDGE_NATIVE=0" in focal.stdout
    own = save(y_true=np.eye(3, dtype=np.float32), y_pred=np.full((3, 3), 1 / 3, np.float32), sample_weight=np.ones(3))
    assert "kl_divergence, (3, 3) of float32" in run("explain", "kl_divergence", own, "--backend", "numpy").stdout


@pytest.mark.parametrize("loss", PREDICTIONS)
def test_explain_makes_arrays_for_every_loss(loss) -> None:
    options = ["--classes", "2"] if loss.startswith("linear_") or loss == "topk_divergence" else []
    options += [] if loss.startswith("linear_") else ["--axis", "1"]
    assert "gradient: " in run("explain", loss, "--backend", "numpy", "--shape", "2,3,4", *options).stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["crossentropy"], "LOSS crossentropy is unknown; use one of categorical_crossentropy, "),
        (["linear_crossentropy", "nothing.npz"], "FILE holds y_true and y_pred, and LOSS linear_crossentropy takes"),
        (["linear_crossentropy", "--classes", "0"], "--classes is 0; give at least 1, and at most 134217"),
        (
            ["log_loss", "--classes", "3"],
            "--classes is of linear losses and of topk_divergence; --shape holds those",
        ),
        (["topk_divergence", "--shape", "2,3"], "64 classes are kept of 3"),
        (["log_loss", "--shape", "4,x"], "--shape is '4,x'; give sizes with commas between, as 4096,1000"),
        (["log_loss", "--shape", "-4"], "--shape is '-4'; give sizes with commas between, as 4096,1000"),
        (["log_loss", "--axis", "2"], "axis 2 is out of range: y_pred has shape (4096, 1000); use -2 to 1"),
        (["log_loss", "--gamma", "2"], "log_loss takes no gamma; leave it out"),
        (["log_loss", "--dtype", "int8"], "--dtype int8 is unknown; use one of "),
        (["log_loss", "nothing.npz"], "nothing.npz cannot be read: "),
        (["log_loss", "nothing.npz", "--dtype", "float16"], "FILE has a shape and a dtype of its own; leave out "),
        (["log_loss", "--shape", "3000000,3000000"], "--shape 3000000,3000000 has 9000000000000 entries; give at"),
    ],
)
def test_explain_refuses(arguments, words) -> None:
    assert words in run("explain", *arguments, "--backend", "numpy", code=2).stderr


def test_explain_on_a_device_that_is_not_there() -> None:
    result = run("explain", "log_loss", "--backend", "numpy", "--device", "cuda", code=1)
    assert "numpy: no device: no device cuda; present: cpu" in result.stdout
    assert "path" not in result.stdout


@pytest.mark.parametrize("option", ["--timeout", "--label-smoothing", "--axis"])
def test_numbers_are_read_as_they_are_written(option, save, arrays) -> None:
    # Python would read 1_0 as 10.
    result = run("parity", save(**arrays), "--loss", "log_loss", option, "1_0", code=2)
    assert "'1_0' is no" in result.output


def test_diagnose_takes_what_was_used(save, arrays) -> None:
    number = lossbridge.sparse_categorical_crossentropy(arrays["y_true"], arrays["y_pred"] / 1.737, from_logits=True)
    path = save(**arrays)
    result = run("diagnose", path, "--observed", f"{number:.6f}", "--temperature", 1.737)
    assert "temperature T = 1.737" in result.output
    result = run("diagnose", path, "--observed", f"{number:.6f}", "--logit-scale", 1 / 1.737)
    assert "temperature T = 1.737" in result.output
    capped = {"from_logits": True, "softcap": 2.37, "z_loss": 0.033}
    number = lossbridge.sparse_categorical_crossentropy(arrays["y_true"], arrays["y_pred"], **capped)
    result = run("diagnose", path, "--observed", f"{number:.6f}", "--softcap", 2.37, "--z-loss", 0.033)
    assert "softcap c = 2.37, the logits z taken as c·tanh(z / c); z-loss ζ = 0.033" in result.output
    coefficients = ("--pos-weight", "--gamma", "--alpha", "--beta", "--label-smoothing", "--epsilon")
    for option in (*coefficients, "--logit-scale", "--softcap", "--z-loss"):
        result = run("diagnose", path, "--observed", "1.0", option, -1, code=2)
        assert f"{option[2:].replace('-', '_')} is -1.0; pass a number between 0 and" in result.stderr


# doctor.


def test_doctor_says_what_is_there_and_computes_the_example(monkeypatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    result = run("doctor", "--backend", "numpy")
    assert f"lossbridge {lossbridge.__version__}, {rows.status()}" in result.stdout
    assert f"numpy {np.__version__}" in result.stdout
    assert "threads: 1\n" in result.stdout
    assert "OMP_NUM_THREADS=1" in result.stdout
    assert "1.1769392" in result.stdout
    path = "rule" if rows.MISSING else "rows"
    assert f"eager: {path}" in result.stdout
    assert "1 of 1 frameworks give 1.1769392" in result.stdout


def test_parity_says_what_was_compiled(monkeypatch) -> None:
    outcomes = [Outcome("log_loss", "a case", mode, "float32") for mode in ("eager", "compile")]
    for some, words in ((outcomes, "compiled: torch (compile)"), (outcomes[:1], "compiled: nothing")):
        shown = [processes.BackendRun("torch", "ran", outcomes=some)]
        monkeypatch.setattr(cli, "run_workers", lambda *_, shown=shown, **__: shown)
        assert words in run("parity", "--backend", "torch").stdout.splitlines()


def test_doctor_says_what_is_missing() -> None:
    result = run("doctor", "--backend", "numpy", "--device", "cuda", code=1)
    assert "numpy: no device: no device cuda; present: cpu" in result.stdout
    assert "0 of 0 frameworks" in result.stdout
    assert "--backend numby is unknown" in run("doctor", "--backend", "numby", code=2).stderr


def test_doctor_shows_a_wrong_number(monkeypatch) -> None:
    wrong = [doctor_worker.Found(doctor_worker.EXAMPLE, "1.2", fault="1.2, and 1.1769392 is right")]
    shown = [processes.BackendRun("numpy", "ran", outcomes=wrong, facts={"devices": ["cpu"]})]
    monkeypatch.setattr(cli, "run_workers", lambda *_, **__: shown)
    result = run("doctor", "--backend", "numpy", code=1)
    assert "1.2, and 1.1769392 is right" in result.stdout
    assert "0 of 1 frameworks give 1.1769392" in result.stdout
