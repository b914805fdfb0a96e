"""Writes the tables of docs/conventions.md: what each library computes, and where lossbridge.compat differs from it.

Of further libraries, which lossbridge.compat does not follow, with the figures that they gave.

`python docs/make_conventions.py`, or `nox -s docs`. A test holds the page to what this writes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lossbridge.compat.deviations import DEVIATIONS, Deviation, Result
from lossbridge.conventions import FURTHER, PEERS, Convention, Peer
from lossbridge.conventions.further_rules import RULES
from lossbridge.tools.diagnosis.wording import LIBRARIES, floor

PAGE = Path(__file__).with_name("conventions.md")
NAMES = {library: name.rstrip("'").removesuffix("'s") for library, name in LIBRARIES.items()}

COSTS = {
    "cross-entropy": "Σ t (−log p)",
    "binary": "−t log p − (1 − t) log(1 − p)",
    "divergence": "Σ t log(t/p)",
    "convex divergence": "Σ t log(t/p) − t + p",
    "focal": "Σ α t (1 − p)^γ (−log p)",
    "binary focal": "(1 − p_t)^γ times the binary one",
    "poly": "Σ t (−log p + ε₁ (1 − p))",
    "entropy": "Σ p (−log p)",
    "squared": "Σ (t − p)²",
    "jensen-shannon": "Jensen–Shannon divergence",
}
TARGETS = {"labels": "labels", "distributions": "distributions", "events": "outcomes", "none": "–"}
ACTIVATIONS = {"none": "probabilities", "softmax": "logits", "sigmoid": "logits", "exp": "log-probabilities"}
DIVISORS = {
    "samples": "samples",
    "elements": "elements",
    "weights": "Σ weights",
    "nonzero weights": "weights that are not 0",
    "classes": "classes",
    "axis 0": "size of axis 0",
    "squared samples": "samples²",
    "one": "–",
}


def conventions() -> str:
    lines = [
        "| function | of | takes | clipped | rows made to sum 1 | result; a mean divides by | axis | options compared"
        " |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for peer in PEERS:
        if peer.library != "lossbridge":
            lines.append(f"| {' | '.join(_row(peer))} |")
    notes = [f"- `{peer.name}`: {peer.note}" for peer in PEERS if peer.note and peer.library != "lossbridge"]
    return "\n".join([*lines, "", *dict.fromkeys(notes)])


def _row(peer: Peer) -> Iterator[str]:
    c = peer.convention
    yield f"{NAMES[peer.library]} `{peer.function}`"
    yield COSTS[c.cost]
    targets = " or ".join(TARGETS[target] for target in peer.targets)
    arguments = {"target": targets, "pred": ACTIVATIONS[c.activation]}
    yield ", ".join(arguments[name] for name in peer.arguments if arguments[name] != "–")
    yield _clipping(c)
    yield {"no": "no", "predictions": "predictions", "both": "both"}[c.renormalise]
    returns = {"scalar": "a number", "samples": "one a sample", "elements": "one an element", "columns": "one a column"}
    yield returns[peer.returns] + (f"; {DIVISORS[c.divisor]}" if peer.returns == "scalar" else "")
    each = peer.elementwise or (peer.library == "sklearn" and c.cost == "binary")
    yield "any" if each else {-1: "last"}.get(c.axis, str(c.axis))
    yield ", ".join(f"`{text}`" for text in _options(peer)) or "–"


def further() -> str:
    lines = [
        "| library | function | of | takes | ε | a mean divides by | smoothing | weights | figure |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for peer in FURTHER:
        seen = "<br>".join(f"`{one.call}` {_number(float(f'{one.figure:.7g}'))}" for one in peer.seen)
        lines.append(f"| {' | '.join(_further_row(peer))} | {seen} |")
    notes = [f"- {NAMES[peer.library]} `{peer.function}`: {peer.note}" for peer in FURTHER if peer.note]
    return "\n".join([*lines, "", *dict.fromkeys(notes)])


def rules() -> str:
    lines = ["| library | call | figure | rule |", "|---|---|---|---|"]
    for rule in RULES:
        lines.append(f"| {NAMES[rule.library]} | `{rule.call}` | {_number(rule.figure)} | {rule.words} |")
    return "\n".join(lines)


def _further_row(peer: Peer) -> Iterator[str]:
    c = peer.convention
    yield f"{NAMES[peer.library]} {peer.version}"
    yield f"`{peer.function}`"
    sign = {"loss": "", "negated": "−1 times ", "perplexity": "exp of "}[c.outcome]
    yield sign + COSTS[c.cost] + _coefficients(c)
    targets = " or ".join(TARGETS[target] for target in peer.targets)
    of_targets = {"none": "", "softmax": " as logits", "exp": " as logarithms"}[c.target_activation]
    arguments = {"target": targets + of_targets, "pred": ACTIVATIONS[c.activation]}
    yield ", ".join(arguments[name] for name in peer.arguments) + ("; made to sum 1" if c.renormalise != "no" else "")
    yield _clipping(c)
    yield DIVISORS[c.divisor] if peer.returns == "scalar" else "no mean"
    yield _smoothing(peer)
    yield _weights(peer)


def _coefficients(c: Convention) -> str:
    if "focal" not in c.cost:
        return ""
    return f", γ = {c.gamma:g}, " + ("no α" if c.alpha is None else f"α = {c.alpha:g}")


def _smoothing(peer: Peer) -> str:
    c = peer.convention
    if not c.label_smoothing and "label_smoothing" not in peer.options:
        return "–"
    outcomes = {"K": "s/2", "K-1": "s/(K − 1)", "C": "s/K"} if "binary" in c.cost else {"K": "s/K", "K-1": "s/(K − 1)"}
    return outcomes[c.smoothing_over] + (f", s = {c.label_smoothing:g} by default" if c.label_smoothing else "")


def _weights(peer: Peer) -> str:
    found = []
    if "class_weight" in peer.options:
        found.append("of rows, Σ t·w of classes" if peer.convention.weighted == "rows" else "of classes")
    if "sample_weight" in peer.options:
        found.append("of samples")
    return ", ".join(found) or "–"


def _clipping(c: Convention) -> str:
    if c.clip == "arguments" or (c.clip == "lower" and c.cost == "cross-entropy"):  # which are the same there
        return floor(float(c.epsilon)).replace("logarithms of at least", "log p ≥").partition(":")[0]
    epsilon = "machine ε" if c.epsilon == "machine" else f"{float(c.epsilon):g}"
    return {
        "none": "no",
        "both": f"[{epsilon}, 1 − {epsilon}]",
        "lower": f"[{epsilon}, 1], targets too",
        "added": f"p + {epsilon}",
    }[c.clip]


def _options(peer: Peer) -> Iterator[str]:
    for known in peer.options.values():
        texts = [known] if isinstance(known, str) else known.values()
        yield from dict.fromkeys(text.partition("=")[0] for text in texts if text)


def departures() -> str:
    lines = ["| function | rule | example | the library | here |", "|---|---|---|---|---|"]
    for d in DEVIATIONS:
        functions = ", ".join(f"`{name}`" for name in (d.function, *d.also))
        lines.append(f"| {functions} | {d.words} | {_example(d)} | {_theirs(d)} | {_number(d.ours)} |")
    return "\n".join(lines)


def _example(d: Deviation) -> str:
    texts = [_plain(x) for x in d.arguments] + [f"{name}={_plain(x)}" for name, x in d.options.items()]
    of = "" if d.quantity == "value" else f"{d.quantity} of "
    dtype = "" if d.dtype == "float32" else f", {d.dtype}"
    text = ", ".join(texts)
    return f"{of}`({text})`{dtype}" if len(text) <= 110 else f"{of}a longer one, in the table's source"


def _plain(x: Any) -> str:
    return re.sub(r"\.0\b", "", str(x)).replace("inf", "∞").replace("nan", "NaN").replace("-∞", "−∞")


def _theirs(d: Deviation) -> str:
    if d.until:
        return f"{_number(d.of_theirs(''))}, before {d.until}"
    if not isinstance(d.theirs, Mapping):
        return _number(d.theirs)
    names = {"numpy": "on NumPy", "torch": "on PyTorch", "tensorflow": "on TensorFlow", "jax": "on JAX"}
    return ", ".join(f"{names.get(backend, backend)} {_number(x)}" for backend, x in d.theirs.items())


def _number(x: Result) -> str:
    if isinstance(x, tuple):
        return str(x)
    if isinstance(x, str):
        return x if x in ("raises", "broadcasts") else f"`{x}`"
    if not math.isfinite(x):
        return "NaN" if math.isnan(x) else "∞"
    return f"{x:.7g}".replace("-", "−")


TABLES = {"conventions": conventions, "further": further, "rules": rules, "departures": departures}


def filled(page: str) -> str:
    """The page with its tables replaced."""
    for name, table in TABLES.items():
        between = re.compile(rf"(<!-- generated: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        assert between.search(page), f"no place for {name}"
        page = between.sub(lambda match, table=table: f"{match[1]}\n{table()}\n\n{match[2]}", page)
    return page


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
