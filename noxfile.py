"""`python -m nox -s tests` runs the tests, in less than half an hour; `python -m nox -l` lists the other sessions."""

import re
import shutil
from pathlib import Path

import nox

nox.options.sessions = ["tests"]
nox.options.reuse_existing_virtualenvs = True

# The registry decides which frameworks are tested.
FRAMEWORKS = "from lossbridge.frameworks import FRAMEWORKS; print(*FRAMEWORKS)"
# Two processes of one backend: torch.compile spends its time in Python.
PARALLEL = ("-n", "2", "--dist", "loadgroup")
# What `exhaustive` runs alone: more examples of what the others check by a few of each kind.
BRIEFLY = ("-m", "not exhaustive")
# A package without the native rows would pass most tests too, and so hide an error in their sources.
HAS_ROWS = "from lossbridge.native import rows; assert not rows.MISSING, rows.MISSING"
# From npm: they draw the site's formulas, and let its search run from file://.
SITE_SCRIPTS = ("katex@0.19.1", "iframe-worker@1.0.4")
PROJECT = nox.project.load_toml("pyproject.toml")
# pip, also where uv is installed: it honours a local build of the pinned torch, which spares GB of CUDA packages.
nox.options.default_venv_backend = "virtualenv"


def install(session: nox.Session, *groups: str, extras: str = "all") -> None:
    """The package, editable, and the given dependency groups, in one resolution so that the pins hold."""
    pinned = [requirement for group in groups for requirement in nox.project.dependency_groups(PROJECT, group)]
    session.install(*pinned, "-e", f".[{extras}]")


def install_for_tests(session: nox.Session, *groups: str, extras: str = "all") -> None:
    install(session, *groups, extras=extras)
    check_rows(session)


def check_rows(session: nox.Session) -> None:
    """That the native rows are there, where a compiler is."""
    if any(map(shutil.which, ("c++", "g++", "clang++", "cl"))):
        session.run("python", "-c", HAS_ROWS)


def run_tests(session: nox.Session) -> None:
    session.run("pytest", "tests/core", *PARALLEL, *BRIEFLY, *session.posargs)
    found = session.run("python", "-c", FRAMEWORKS, silent=True)
    for backend in (found or "").split():  # nothing ran with --install-only
        session.run("pytest", "tests/backends", "--backend", backend, *PARALLEL, *BRIEFLY, *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Lint, types, and the tests, each backend in its own process; `exhaustive` has more examples of some."""
    install_for_tests(session, "dev")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")
    run_tests(session)


@nox.session
def pure(session: nox.Session) -> None:
    """The tests without the native rows, as where no compiler was."""
    install(session, "dev")
    session.env["LOSSBRIDGE_NATIVE"] = "0"
    run_tests(session)


@nox.session
def backend(session: nox.Session) -> None:
    """The tests of the backends that are named: `nox -s backend -- torch`."""
    install_for_tests(session, "dev")
    for name in session.posargs:
        session.run("pytest", "tests/backends", "--backend", name, *PARALLEL, *BRIEFLY)


@nox.session
def exhaustive(session: nox.Session) -> None:
    """The examples that `tests` leaves out, of the parts named: `nox -s exhaustive -- core torch`."""
    install_for_tests(session, "dev")
    for name in session.posargs:
        what = ["tests/core"] if name == "core" else ["tests/backends", "--backend", name]
        session.run("pytest", *what, *PARALLEL, "-m", "exhaustive")


@nox.session
def lowest(session: nox.Session) -> None:
    """The NumPy backend with the oldest NumPy that the package allows."""
    install_for_tests(session, "test", extras="cli")
    session.install("numpy==2.0.*", "ml-dtypes")
    # What is compared with other libraries needs those, whose NumPy is another.
    others = ("--ignore-glob", "*/test_compat*.py", "--ignore", "tests/backends/test_diagnosis_calls.py")
    session.run("pytest", "tests/backends", "--backend", "numpy", *others)


@nox.session(python="3.13")  # the newest that every framework has builds for
def newest(session: nox.Session) -> None:
    """The tests with the newest release of every library, and Keras' nightly build; PyTorch stays at its pin."""
    groups = [nox.project.dependency_groups(PROJECT, group) for group in ("frameworks", "test")]
    # Of another torch than the pinned one pip finds only the build with GB of CUDA packages; triton is of its version.
    pinned = ("torch=", "triton=")
    newest = [x if x.startswith(pinned) else re.split("[=<>]", x)[0] for group in groups for x in group]
    session.install("--upgrade", *newest, "-e", ".[all]")
    check_rows(session)
    # Both distributions hold the package keras.
    session.run("python", "-m", "pip", "uninstall", "--yes", "keras", "keras-nightly")
    session.install("--no-deps", "--pre", "keras-nightly")
    run_tests(session)


def require(session: nox.Session, commands: dict[str, str]) -> None:
    """Programs that pip does not install, with Debian's packages of them."""
    for command, package in commands.items():
        if shutil.which(command) is None:
            session.error(f"{command} is missing; on Debian: apt-get install {package}")


def build_drivers(session: nox.Session, folder: str, *options: str) -> None:
    """Those of tests/fuzz."""
    session.install("cmake>=3.26", "ninja")
    session.run("cmake", "-S", "tests/fuzz", "-B", folder, "-G", "Ninja", *options)
    session.run("cmake", "--build", folder)


@nox.session
def sanitize(session: nox.Session) -> None:
    """Random calls of the rows under AddressSanitizer and UBSan, for 20 seconds or more: `nox -s sanitize -- 600`."""
    build_drivers(session, "build/sanitize", "-D", "LOSSBRIDGE_SANITIZE=ON")
    session.run("build/sanitize/fuzz_rows", *(session.posargs or ["20"]), external=True)


@nox.session
def aarch64(session: nox.Session) -> None:
    """What the rows compute here, with every instruction set and 1 to 3 threads, and on aarch64: the same bits."""
    require(session, {"aarch64-linux-gnu-g++": "g++-aarch64-linux-gnu", "qemu-aarch64-static": "qemu-user-static"})
    build_drivers(session, "build/fuzz")
    build_drivers(session, "build/aarch64", "--toolchain", "aarch64-linux-gnu.cmake")
    here, there = ["build/fuzz/digests"], ["qemu-aarch64-static", "build/aarch64/digests"]
    found = {}
    for digests in here, there:
        for name in session.run(*digests, silent=True, external=True).split():
            for threads in "123":
                found[name, threads] = session.run(*digests, name, threads, silent=True, external=True)
    if len(set(found.values())) > 1:
        for (name, threads), lines in found.items():
            Path(f"build/digests-{name}-{threads}.txt").write_text(lines)
        session.error("they differ; compare build/digests-*.txt")


@nox.session
def calls(session: nox.Session) -> None:
    """Every call that a diagnosis prints, made with the library that it names: no number is another."""
    install_for_tests(session, "dev")
    for name in ("numpy", "torch", "jax"):
        session.run("pytest", "tests/backends/test_diagnosis_calls.py", "--backend", name, *PARALLEL)


@nox.session
def parity(session: nox.Session) -> None:
    """Every backend against the reference; takes the command's options: `nox -s parity -- --backend torch`."""
    install(session, "frameworks")
    session.run("lossbridge", "parity", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Time and memory beside the peers; takes the command's options: `nox -s bench -- --quick --html bench.html`."""
    install(session, "frameworks")
    session.run("lossbridge", "bench", *session.posargs)


@nox.session
def trial(session: nox.Session) -> None:
    """How often a diagnosis is right: of what it knows, the table of docs/diagnose.md; and of what people ask."""
    install(session, extras="cli")
    session.run("python", "-m", "lossbridge.tools.diagnosis.trial")
    session.run("python", "-m", "lossbridge.tools.diagnosis.row_trial", *session.posargs)


@nox.session
def train(session: nox.Session) -> None:
    """Trains one model in four frameworks, and draws the picture of it; takes the example's options."""
    install(session, "frameworks")
    picture = "docs/figures/train_digits.png"
    session.run("python", "examples/train_digits.py", "--out", picture, *session.posargs)


@nox.session
def examples(session: nox.Session) -> None:
    """Runs the examples of docs/examples.md, and draws their pictures."""
    install(session, "frameworks")
    for name in ("port_a_model", "finetune_small_lm", "which_loss_was_it"):
        session.run("python", f"examples/{name}.py", "--out", f"docs/figures/{name}.png")


@nox.session
def transformers(session: nox.Session) -> None:
    """The example of Hugging Face's Trainer, with the newest of its libraries, which nothing else needs."""
    install(session, "frameworks")
    session.install("transformers", "accelerate")
    session.run("python", "examples/linear_trainer.py")


@nox.session
def lint(session: nox.Session) -> None:
    install(session, "lint", extras="cli")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    install(session, "types", extras="cli")
    session.run("mypy")


@nox.session
def docs(session: nox.Session) -> None:
    """Writes the tables of docs/conventions.md and docs/performance.md, and draws the pictures of docs/theory.md."""
    install(session, extras="cli")
    session.run("python", "docs/make_conventions.py")
    session.run("python", "docs/make_performance.py")
    session.run("python", "docs/make_figures.py")


@nox.session
def site(session: nox.Session) -> None:
    """Builds the documentation, build/site/index.html, and opens every page of it in a browser."""
    require(session, {"npm": "npm"})
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        session.error("chromium is missing; on Debian: apt-get install chromium")
    session.install(*nox.project.dependency_groups(PROJECT, "site"))
    session.run("npm", "install", "--prefix", "build/site-scripts", "--no-save", *SITE_SCRIPTS, external=True)
    session.run("mkdocs", "build", "--strict", "-f", "docs/site/mkdocs.yml", env={"NO_MKDOCS_2_WARNING": "1"})
    session.run("pytest", "tests/site", *session.posargs, env={"BROWSER": browser})
