"""The trials of `lossbridge.diagnose` by rows: the rows are what they say; and, exhaustively, how often it is right."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

import lossbridge as lb
from lossbridge.spec import LOSSES
from lossbridge.tools.diagnosis import api_trial, row_trial
from lossbridge.tools.diagnosis.rows import GROUPS, KINDS, Row
from lossbridge.tools.diagnosis.rows import numbers as n
from lossbridge.tools.diagnosis.rows import row as wording

ROWS = [row for rows in GROUPS.values() for row in rows]


# The rows.


def test_every_kind_has_rows() -> None:
    for kind in KINDS:
        drawn = [row for row in GROUPS["drawn"] if row.kind == kind]
        assert len(drawn) >= 4, kind
    assert len(GROUPS["drawn"]) >= 150
    assert {row.kind for row in GROUPS["specification"]} == set(KINDS) - {0, 16}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.kind} {row.name}")
def test_a_row_says_its_number(row) -> None:
    """To half a unit of the last digit; of what was computed in float32, or in 16 bits, to that precision."""
    if math.isnan(row.value):
        assert row.text == "nan"
        return
    assert re.fullmatch(r"\d+(\.\d+)?", row.text), row.text
    digits = len(row.text.partition(".")[2])
    assert abs(float(row.text) - row.value) <= 0.5 * 10**-digits + 2e-7 * abs(row.value)
    assert 4 <= len(row.text.replace(".", "").lstrip("0")) <= 9
    re.compile(row.says), re.compile(row.refused), re.compile(row.called)


def test_names_are_unique() -> None:
    for rows in (*GROUPS.values(), tuple(api_trial.api_rows())):
        names = [(row.kind, row.name) for row in rows]
        assert len(set(names)) == len(names)


def test_the_expressions_give_the_losses() -> None:
    """Those that lossbridge has too."""
    y, x = n.labels(0, 6, 4)
    t, z = n.outcomes(0, 6, 4)
    soft, _ = n.soft(0, 6, 4)
    x, z, soft = (np.float64(a) for a in (x, z, soft))
    per_sample = {"from_logits": True, "reduction": "none"}
    mixture = {"kind": "jensen_shannon", "beta": 0.3}
    pairs = [
        (n.ce(x, y), lb.sparse_categorical_crossentropy(y, x, **per_sample)),
        (n.nll(n.softmax(x), y), lb.log_loss(y, n.softmax(x), epsilon=0, reduction="none")),
        (n.soft_ce(x, soft), lb.categorical_crossentropy(soft, x, **per_sample)),
        (n.smoothed(x, y, 0.3), lb.sparse_categorical_crossentropy(y, x, label_smoothing=0.3, **per_sample)),
        (n.bce(t, n.sigmoid(z)), lb.log_loss(t, z, **per_sample)),
        (n.bce_logits(t, z, 3).mean(-1), lb.binary_crossentropy(t, z, pos_weight=3, **per_sample)),
        (n.focal(t, z, 1.5).mean(-1), lb.binary_focal_crossentropy(t, z, gamma=1.5, **per_sample)),
        (n.kl(soft, n.softmax(x)).sum(-1), lb.kl_divergence(soft, n.softmax(x), epsilon=0, reduction="none")),
        (n.ce(n.capped(x, 2), y), lb.sparse_categorical_crossentropy(y, x, softcap=2, **per_sample)),
        (n.ce(x, y) + n.z_loss(x, 0.1), lb.sparse_categorical_crossentropy(y, x, z_loss=0.1, **per_sample)),
        (4 * n.distilled(x, z, 2), lb.distillation_loss(x, z, temperature=2, reduction="none")),
        (n.mixed(n.softmax(x), n.softmax(z), 0.3), lb.divergence(x, z, **mixture, reduction="none")),
    ]
    for mine, theirs in pairs:
        np.testing.assert_allclose(mine, theirs, rtol=1e-9)
    wrong = 0.3 / 3 * (1 - n.one_hot(y, 4).astype(np.float64)) + 0.7 * n.one_hot(y, 4)
    np.testing.assert_allclose(n.smoothed_wrong(x, y, 0.3), n.soft_ce(x, wrong))
    balanced = np.where(t == 1, 0.25, 0.75) * n.focal(t, z, 2)
    np.testing.assert_allclose(n.focal(t, z, 2, 0.25), balanced)


@pytest.mark.parametrize(
    ("pattern", "said", "other"),
    [
        (
            wording.equals(wording.TEMPERATURE, 2),
            ("T = 2.000", "temperature of 2", "temperature=2.0"),
            ("T = 2.5", "T = 20"),
        ),
        (wording.equals(wording.EPSILON, 1e-9), ("log(p + 1e-09)", "clipped to [1e-9, 1]"), ("log(p + 1e-10)",)),
        (wording.equals(wording.EPSILON, 0.01), ("[0.01, 1 − 0.01]", "ε = 1e-2"), ("ε = 0.001",)),
        (wording.equals(wording.SOFTCAP, 30), ("softcap c = 30, the logits", "softcap=30.0"), ("softcap c = 300",)),
        (
            wording.equals(wording.Z_LOSS, 1e-4),
            ("z-loss ζ = 0.0001", "z_loss=1e-4"),
            ("z-loss ζ = 0.001",),
        ),
        (wording.times(2), ("× 2, as with two steps", "multiplied by 2", "twice"), ("× 20", "× 2.5")),
        (wording.over(4), ("divided by the number of positives = 4", "÷ 4"), ("divided by 40", "divided by 0.4")),
    ],
)
def test_the_wordings_that_count_as_true(pattern, said, other) -> None:
    assert all(re.search(pattern, text) for text in said)
    assert not any(re.search(pattern, text) for text in other)


# How an answer is judged.

_Y, _X = n.labels(0, 8, 3)
_PLAIN = n.ce(_X, _Y).mean()


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (Row(0, "true", _Y, _X, _PLAIN, "Sparse", most=0), (True, True, False, False)),
        (Row(0, "a tie", _Y, _X, _PLAIN, "scikit-learn", most=0), (False, True, False, True)),
        (Row(0, "untrue", _Y, _X, _PLAIN, "focal"), (False, False, False, True)),
        (Row(0, "a call that is refused", _Y, _X, _PLAIN, "Sparse", refused="^torch"), (False, True, False, True)),
        (Row(0, "no call", _Y, _X, _PLAIN, "Sparse", called="nowhere"), (False, True, False, False)),
        (Row(16, "outside", _Y, _X, 12.3457 * _PLAIN, "nothing fits", fits=False), (True, True, False, False)),
        (Row(16, "a plain one", _Y, _X, _PLAIN, "nothing fits", fits=False), (False, False, False, True)),
        (Row(0, "refused", _Y[1:], _X, _PLAIN, "Sparse"), (False, False, True, False)),
    ],
    ids=lambda x: x.name if isinstance(x, Row) else "",
)
def test_answers_are_judged(row, expected) -> None:
    outcome = row_trial.ask(row)
    assert (outcome.first, outcome.shown, outcome.nothing, outcome.wrong) == expected, outcome.said


def test_plain_functions_are_named_first() -> None:
    outcomes = [row_trial.ask(row) for row in GROUPS["drawn"] if row.kind == 0][::8]
    assert all(outcome.first for outcome in outcomes)


# The public API.


def test_the_api_trial_covers_the_registry() -> None:
    names = {row.name.split(",")[0] for row in api_trial.api_rows()}
    assert names > set(LOSSES)


def test_an_option_without_a_value_is_an_error(monkeypatch) -> None:
    left = {name: values for name, values in api_trial.UNUSUAL.items() if name != "gamma"}
    monkeypatch.setattr(api_trial, "UNUSUAL", left)
    with pytest.raises(KeyError, match="option gamma of categorical_focal_crossentropy has no value"):
        list(api_trial.api_rows())


# The figures that are aimed at.


@pytest.mark.exhaustive
@pytest.mark.parametrize("group", GROUPS)
def test_what_people_ask_is_answered(group) -> None:
    outcomes = [row_trial.ask(row) for row in GROUPS[group]]
    first, shown, _, wrong = row_trial.shares(outcomes)
    assert [o.row.name for o in outcomes if o.wrong] == []
    assert wrong == 0
    assert first >= 0.85
    assert shown >= 0.95


@pytest.mark.exhaustive
def test_every_option_of_the_public_api_is_named() -> None:
    outcomes = [row_trial.ask(row) for row in api_trial.api_rows()]
    assert [o.row.name for o in outcomes if not o.first] == []


@pytest.mark.exhaustive
def test_numbers_from_outside_do_not_fit() -> None:
    """No more than before the search knew of coefficients and factors: of 150 numbers 4 at 4 digits, none at 5.

    At 3 digits the answer says how many fit by chance: test_diagnosis_kinds.py.
    """
    fits = row_trial.chance_fits(150)
    assert fits[5][0] == 0
    assert fits[4][0] <= 4
