"""`python -m lossbridge`, and the command `lossbridge`."""

import sys


def main() -> None:
    try:
        from lossbridge.tools.cli import app
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich", "matplotlib"):
            raise
        sys.exit(f"lossbridge: the command needs {error.name}; install it with: pip install 'lossbridge[cli]'")
    app(prog_name="lossbridge")


if __name__ == "__main__":
    main()
