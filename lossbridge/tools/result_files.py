"""The files that commands write: JSON, and HTML pages with plots. Knows no losses."""

from __future__ import annotations

import html
import importlib.metadata
import io
import json
import math
import platform
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lossbridge.frameworks import FRAMEWORKS
from lossbridge.native import rows
from lossbridge.version import __version__


def facts(device: str) -> dict[str, str]:
    """Where results come from: versions, machine and device."""
    return {
        "lossbridge": __version__,
        "rows": rows.status(),
        "machine": platform.platform(),
        "python": platform.python_version(),
        "device": device,
    }


def versions() -> dict[str, str]:
    """Of the installed frameworks, and of libraries that compute with them or are compared with."""
    found = {}
    for library in (
        *FRAMEWORKS,
        "keras",
        "optax",
        "flax",
        "scipy",
        "scikit-learn",
        "triton",
        "liger-kernel",
        "quack-kernels",
    ):
        try:
            found[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def write_results(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(_finite(content), indent=1, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def _finite(x: Any) -> Any:
    """JSON has neither infinity nor NaN: they become null."""
    if isinstance(x, dict):
        return {name: _finite(entry) for name, entry in x.items()}
    if isinstance(x, list | tuple):
        return [_finite(entry) for entry in x]
    return None if isinstance(x, float) and not math.isfinite(x) else x


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #1b1f24 }}
table {{ border-collapse: collapse; margin: 1rem 0 }}
th, td {{ border: 1px solid #d0d7de; padding: .35rem .7rem; text-align: left; vertical-align: top }}
td {{ white-space: nowrap }}
th {{ background: #f6f8fa }}
tr th:first-child::first-line {{ color: #1b1f24 }}
tr th:first-child {{ color: #57606a; font-weight: 500 }}
caption {{ text-align: left; white-space: nowrap; padding-bottom: .4rem; color: #57606a }}
td {{ font-variant-numeric: tabular-nums }}
td.wrong {{ background: #ffebe9; color: #82071e }}
td.none {{ color: #6e7781 }}
small, p.legend {{ color: #57606a }}
p.legend {{ white-space: pre-line }}
svg {{ max-width: 100%; height: auto }}
p {{ overflow-wrap: anywhere }}
table.words td {{ white-space: normal; overflow-wrap: anywhere }}
figure {{ margin: 1rem 0; overflow-x: auto }}
figure svg {{ min-width: 34rem }}
pre {{ white-space: pre-wrap; overflow-wrap: anywhere; background: #f6f8fa; padding: .7rem }}
</style>
<h1>{title}</h1>
<p>{verdict}</p>
{content}
<p><small>lossbridge {lossbridge}, {rows}, {machine}, Python {python}, device {device}</small></p>
</html>
"""


def page(title: str, verdict: Iterable[str], content: str, device: str) -> str:
    """A self-contained HTML page. `verdict`: lines of text; `content`: HTML."""
    escaped = {name: html.escape(text) for name, text in {"title": title, **facts(device)}.items()}
    return _PAGE.format(**escaped, verdict="<br>".join(map(prose, verdict)), content=content)


def prose(text: str) -> str:
    """A sentence as HTML, in which what stands between backticks is code."""
    return re.sub("`([^`]*)`", r"<code>\1</code>", html.escape(text))


def svg(figure: Any) -> str:
    """A Matplotlib figure as an HTML element."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()[file.getvalue().index("<svg") :]
