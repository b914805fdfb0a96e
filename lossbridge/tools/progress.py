"""How far a command's workers are: a bar for each in a terminal, and a line now and then in a log or a pipe."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

SECONDS = 20.0  # between two lines


@contextmanager
def progress(console: Console) -> Iterator[Progress]:
    """Tasks to add, to update and to advance."""
    columns = TextColumn("{task.description:<12}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        if console.is_terminal:
            yield bars
            return
        ended = threading.Event()
        says = threading.Thread(target=_say, args=(console, bars, ended), daemon=True)
        says.start()
        try:
            yield bars
        finally:
            ended.set()
            says.join()


def _say(console: Console, bars: Progress, ended: threading.Event) -> None:
    began = time.monotonic()
    while not ended.wait(SECONDS):
        done = [
            f"{task.description} {task.percentage:.0f} %" if task.total else f"{task.description} starts"
            for task in bars.tasks
        ]
        console.print(f"{time.monotonic() - began:.0f} s: {', '.join(done)}", highlight=False, soft_wrap=True)
