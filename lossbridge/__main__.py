"""`python -m lossbridge`, and the command `lossbridge`."""

import sys


def main() -> None:
    try:
        from lossbridge.tools import cli
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich", "matplotlib"):
            raise
        sys.exit(f"lossbridge: the command needs {error.name}; install it with: pip install 'lossbridge[cli]'")
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


if __name__ == "__main__":
    main()
