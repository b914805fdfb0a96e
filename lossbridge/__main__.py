"""`python -m lossbridge`, and the command `lossbridge`."""

import signal
import sys
from typing import NoReturn


def main() -> None:
    try:
        from lossbridge.tools import cli
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich", "matplotlib"):
            raise
        sys.exit(f"lossbridge: the command needs {error.name}; install it with: pip install 'lossbridge[cli]'")
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _end)
    try:
        try:
            cli.app(prog_name="lossbridge")
        finally:
            sys.stdout.flush()
    except OSError as error:  # a full disk, say
        where = f" ({error.filename})" if error.filename else ""
        cli.refuse(f"a file or the output cannot be used: {error.strerror or error}{where}; name another one")
        sys.stdout = None  # what is left in its buffer cannot be written either
        sys.exit(cli.BAD_USAGE)


def _end(number: int, frame: object) -> NoReturn:
    """As an exception, so that the worker processes are ended too."""
    sys.exit(128 + number)


if __name__ == "__main__":
    main()
