"""The registry of further libraries: the figures that they gave, without the libraries.

`benchmarks/measure_conventions.py` asks the libraries themselves.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lossbridge as lb
from lossbridge.conventions import FURTHER, PEERS, Convention, Peer, Seen
from lossbridge.conventions.examples import ARRAYS
from lossbridge.conventions.further import VERSIONS
from lossbridge.tools.diagnosis import wording
from lossbridge.tools.diagnosis.batch import Batch
from lossbridge.tools.diagnosis.canonical import Setting, canonical
from lossbridge.tools.diagnosis.evaluate import scalars
from lossbridge.tools.diagnosis.expected import ParsedCall, find_preset
from lossbridge.tools.diagnosis.reading import batch_of
from lossbridge.tools.diagnosis.wording import LIBRARIES

# Options that a diagnosis takes for a part of the function; it counts each of the others as a change.
PARTS = {"target_activation", "divisor"}
FIGURES = [pytest.param(peer, seen, id=f"{peer.library}: {seen.call}") for peer in FURTHER for seen in peer.seen]


def given(seen: Seen) -> dict[str, Any]:
    """The arguments of a diagnosis, other than the number."""
    weights = {"class_weight": seen.class_weight, "sample_weight": seen.sample_weight}
    options: dict[str, Any] = {name: np.array(ARRAYS[of]) for name, of in weights.items() if of}
    return options | ({} if seen.ignored is None else {"ignore_class": seen.ignored})


def arrays_of(seen: Seen) -> tuple[np.ndarray, np.ndarray]:
    return np.array(ARRAYS[seen.target]), np.array(ARRAYS[seen.pred])


def same(a: Convention, b: Convention, batch: Batch) -> bool:
    setting = Setting.of(batch, "scalar")
    return canonical(a, setting) == canonical(b, setting)


@pytest.mark.parametrize(("peer", "seen"), FIGURES)
def test_the_convention_gives_the_figure(peer: Peer, seen: Seen) -> None:
    """To the digits of float32, also where a small number is left of terms near 1."""
    batch, _ = batch_of(*arrays_of(seen), **given(seen))
    found = scalars(batch, [seen.convention(peer.convention)])[0]
    assert found == pytest.approx(seen.figure, rel=1e-6, abs=6e-8)


@pytest.mark.parametrize(("peer", "seen"), FIGURES)
def test_a_diagnosis_names_the_function(peer: Peer, seen: Seen) -> None:
    """Or another library's that computes the same; nothing simpler comes first."""
    found = lb.diagnose(*arrays_of(seen), f"{seen.figure:.6g}", **given(seen))
    most = len(seen.options.keys() - PARTS)
    simple = [e for group in found.classes for e in group.explanations if e.changes <= most + 1]
    # A function that more people have comes first, also where one of its options is set.
    assert found.classes[0].changes <= most + 1, found.classes[0].explanations[0].words
    convention, (batch, *_) = seen.convention(peer.convention), found.batches
    assert any(same(e.convention, convention, batch) for e in simple), simple


def test_every_function_was_run() -> None:
    assert {peer.library for peer in FURTHER} == set(VERSIONS)
    for peer in FURTHER:
        assert peer.seen, peer.name
        assert peer.version, peer.name


def test_every_library_has_its_name_and_can_be_measured() -> None:
    snippets = Path(__file__).parents[2] / "benchmarks" / "conventions"
    assert {path.stem.removeprefix("of_") for path in snippets.glob("of_*.py")} == set(VERSIONS)
    assert set(LIBRARIES) == {peer.library for peer in (*PEERS, *FURTHER)}


def written(peer: Peer, seen: Seen) -> str:
    """The call without its arrays: the function with the options that were set, by name."""
    c = seen.convention(peer.convention)
    texts = []
    for field, values in peer.options.items():
        value = getattr(c, field)
        if field == "left_out":
            text = next(iter(values.values()))
            texts += [text.format(ignored=seen.ignored)] if seen.ignored not in (None, -100) else []
        elif isinstance(values, str):
            texts += [values.format(value)] if value != getattr(peer.convention, field) else []
        else:
            texts.append(values.get(value, ""))
    reduction = ParsedCall.of(f"{peer.library}.{wording.written(peer, c)}").reduction
    return f"{peer.name}({', '.join(filter(None, texts))}){reduction}"


MEANT = [one for one in FIGURES if "activation" not in one.values[1].options]  # which one takes for a mistake


@pytest.mark.parametrize(("peer", "seen"), MEANT)
def test_what_was_meant_may_be_such_a_function(peer: Peer, seen: Seen) -> None:
    batch, _ = batch_of(*arrays_of(seen), **given(seen))
    preset, _ = find_preset(written(peer, seen), batch, Setting.of(batch, "scalar"))
    assert preset.peer.library == peer.library
    assert scalars(batch, [preset.convention])[0] == pytest.approx(seen.figure, rel=1e-6, abs=6e-8)


@pytest.mark.parametrize(
    "expected",
    ["paddle.nn.functional.cross_entropy(reduction='mean')", "tinygrad.Tensor.cross_entropy", "mlx.cross_entropy()"],
)
def test_such_a_function_may_be_written_as_in_code(expected: str) -> None:
    seen = Seen("", 0.95110297, "y", "X")
    found = lb.diagnose(*arrays_of(seen), "0.951103", expected=expected)
    assert found.meant.partition("which gives ")[2].startswith("0.95110"), found.meant


def test_an_option_by_its_place_is_to_be_named() -> None:
    with pytest.raises(ValueError, match="by its place; name it"):
        lb.diagnose(*arrays_of(Seen("", 0, "y", "X")), "0.951103", expected="paddle.cross_entropy(X, y, W)")
