"""A diagnosis as one self-contained HTML page: the sentence, the calls, what was meant and what was computed."""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path

from lossbridge.conventions import Convention
from lossbridge.tools.diagnosis import wording
from lossbridge.tools.diagnosis.batch import Batch
from lossbridge.tools.diagnosis.canonical import Setting, canonical
from lossbridge.tools.diagnosis.diagnosis import Diagnosis
from lossbridge.tools.diagnosis.evaluate import whole
from lossbridge.tools.diagnosis.expected import find_preset
from lossbridge.tools.diagnosis.hypotheses import hypotheses
from lossbridge.tools.result_files import page, prose
from lossbridge.tools.sample_plot import sample_plot


def write_html(path: Path, found: Diagnosis, expected: str | None = None) -> None:
    path.write_text(diagnosis_page(found, expected), encoding="utf-8")


def diagnosis_page(found: Diagnosis, expected: str | None = None) -> str:
    """The page. `expected`: the call that was meant, as `diagnose` was given it."""
    sentence, *others = str(found).splitlines()
    calls = found.classes[0].calls if found.fits else {}
    rest = [line for line in others if line.split(maxsplit=1) not in [list(call) for call in calls.items()]]
    content = _calls(found) + _picture(found, expected)
    if rest:
        content += f"<h2>What else was found</h2>\n<pre>{html.escape(chr(10).join(rest))}</pre>\n"
    return page("lossbridge diagnose", [sentence], content, "cpu")


def code_table(rows: Mapping[str, str]) -> str:
    """Texts and code, a row each."""
    lines = (f"<tr><th>{html.escape(a)}</th><td><code>{html.escape(b)}</code></td></tr>\n" for a, b in rows.items())
    return f'<table class="words">\n{"".join(lines)}</table>\n'


def _calls(found: Diagnosis) -> str:
    if not found.fits or not found.classes[0].calls:
        return ""
    title = "The calls that give it"
    if found.classes[0].quantity == "gradient":
        title = "The calls whose gradient for y_pred it is"
    made = code_table(found.arrays) if found.arrays else ""
    arrays = f"<p>In which the arrays are made from yours:</p>\n{made}" if made else ""
    return f"<h2>{title}</h2>\n{code_table(found.classes[0].calls)}{arrays}"


def _picture(found: Diagnosis, expected: str | None) -> str:
    """Sample by sample, what was meant and what was computed, in the first batch."""
    if not found.fits:
        return ""
    batch, explanation = found.batches[0], found.classes[0].explanations[0]
    meant, words = _meant(batch, expected)
    picture = sample_plot(
        whole(batch, meant, "samples"),
        whole(batch, explanation.convention, "samples"),
        ("meant", "computed"),
    )
    caption = picture.caption
    if meant.divisor != explanation.convention.divisor and "give the same" in caption:
        ends = [wording.division(c, batch) for c in (meant, explanation.convention)]
        caption = f"Sample by sample both give the same. Meant is {ends[0]}; computed is {ends[1]}."
    source = "as you expected" if expected is not None else "the plain loss that such arrays suggest"
    text = prose(f"Meant is {words}, {source}. Computed is {explanation.words}. {caption}")
    return f"<h2>Sample by sample</h2>\n<p>{text}</p>\n<figure>{picture.html}</figure>\n"


def _meant(batch: Batch, expected: str | None) -> tuple[Convention, str]:
    """The convention that was meant, in words: as expected, or else the first that changes nothing."""
    setting = Setting.of(batch, "scalar")
    if expected is not None:
        preset, more = find_preset(expected, batch, setting)
        c = canonical(preset.convention, setting)
        assert c is not None
        return c, wording.name(preset) + (f" with {', '.join(more)}" if more else "")
    plain = min(hypotheses(setting), key=lambda h: (h.strangeness, h.place))
    return plain.convention, str(wording.words(plain, batch, "scalar"))
