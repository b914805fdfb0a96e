"""A comparison as one self-contained HTML page: the sentence, what was compared, each side's loss, and a picture."""

from __future__ import annotations

import html
from pathlib import Path

import numpy as np

from lossbridge.tools.comparison.comparison import Comparison
from lossbridge.tools.comparison.quantities import Array, stage_of
from lossbridge.tools.comparison.relations import possessive
from lossbridge.tools.comparison.run_losses import RunLoss, calls_of
from lossbridge.tools.diagnosis.diagnosis_page import code_table
from lossbridge.tools.diagnosis.evaluate import whole
from lossbridge.tools.result_files import page, prose
from lossbridge.tools.sample_plot import sample_plot


def write_html(path: Path, found: Comparison) -> None:
    path.write_text(comparison_page(found), encoding="utf-8")


def comparison_page(found: Comparison) -> str:
    content = _table(found)
    for side in found.losses:
        content += f"<h2>{html.escape(possessive(side.run.name))} loss</h2>\n<p>{prose(side.words)}</p>\n"
        calls = calls_of(side)
        content += code_table(calls) if calls else ""
    content += _picture(found) + "".join(f"<p>{prose(note)}</p>\n" for note in found.notes)
    return page("lossbridge compare", [found.first], content, "cpu")


def _table(found: Comparison) -> str:
    lines = "<tr><th>quantity</th><th>is</th><th>how</th></tr>\n"
    for row in found.rows:
        css = ' class="wrong"' if row.quantity == found.parts_at else ""
        cells = "".join(f"<td{css}>{html.escape(text)}</td>" for text in (row.verdict, row.relation.words))
        lines += f"<tr><th>{html.escape(row.quantity)}</th>{cells}</tr>\n"
    return f'<h2>What was compared</h2>\n<table class="words">\n{lines}</table>\n'


def _picture(found: Comparison) -> str:
    """The losses sample by sample, as given or by what explains them; else the quantity at which the runs part."""
    names = (found.runs[0].name, found.runs[1].name)
    values = [_losses(run.arrays.get("losses"), found.losses, run.name) for run in found.runs]
    title, what = "Sample by sample", "loss in nats"
    if any(x is None for x in values):
        values, what = _predictions(found), f"mean of {found.parts_at}"
        title = f"{found.parts_at}, sample by sample"
    first, second = values
    if first is None or second is None:
        return ""
    picture = sample_plot(first, second, names, what)
    if not picture.html:
        return ""
    return f"<h2>{html.escape(title)}</h2>\n<p>{prose(picture.caption)}</p>\n<figure>{picture.html}</figure>\n"


def _losses(given: Array | None, sides: tuple[RunLoss, ...], name: str) -> Array | None:
    if given is not None:
        return given
    for side in sides:
        if side.run.name == name and side.diagnosis is not None and side.explanation is not None:
            return whole(side.diagnosis.batches[0], side.explanation.convention, "samples")
    return None


def _predictions(found: Comparison) -> list[Array | None]:
    """Of the quantity at which they part, the mean of each sample."""
    if stage_of(found.parts_at) in ("parameters", "gradients"):
        return [None, None]  # which have no samples
    means: list[Array | None] = []
    for run in found.runs:
        x = run.arrays.get(found.parts_at)
        means.append(None if x is None or not np.ndim(x) else x.reshape(len(x), -1).astype(np.float64).mean(1))
    return means
