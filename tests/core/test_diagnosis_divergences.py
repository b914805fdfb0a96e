"""The divergences of two distributions behind a number: Jensen–Shannon at any β and in both scales, total variation."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.special import log_softmax, logsumexp, rel_entr, softmax

import lossbridge as lb
from lossbridge.tools.diagnosis.canonical import Setting
from lossbridge.tools.diagnosis.hypotheses import hypotheses
from lossbridge.tools.diagnosis.reading import batch_of

RNG = np.random.default_rng(0)
TEACHER, STUDENT = (1.5 * RNG.normal(size=(24, 6)) for _ in range(2))
T, P = softmax(TEACHER, -1), softmax(STUDENT, -1)
JENSEN_SHANNON, TOTAL_VARIATION = r"[Jj]ensen.[Ss]hannon", r"total.variation"


def generalised(t, p, beta):
    """A value a row, from its definition."""
    m = beta * t + (1 - beta) * p
    return beta * rel_entr(t, m).sum(-1) + (1 - beta) * rel_entr(p, m).sum(-1)


def gkd(student, teacher, beta, temperature=1.0, early=False):
    """A value a class: `GKDTrainer.generalized_jsd_loss` of TRL 1.16, or of 0.14, line by line."""
    student_log_probs = log_softmax(student / temperature, -1)
    teacher_log_probs = log_softmax(teacher / temperature, -1)
    mixture_log_probs = logsumexp([student_log_probs + np.log1p(-beta), teacher_log_probs + np.log(beta)], axis=0)
    if early:
        mixture_log_probs = logsumexp([student_log_probs + np.log(beta), teacher_log_probs + np.log(1 - beta)], axis=0)
    kl_teacher = np.exp(teacher_log_probs) * (teacher_log_probs - mixture_log_probs)
    kl_student = np.exp(student_log_probs) * (student_log_probs - mixture_log_probs)
    return beta * kl_teacher + (1 - beta) * kl_student


def first(y_true, y_pred, number, words, **used):
    """The first explanation, which says `words`, and whose call by lossbridge is run and gives the number."""
    found = lb.diagnose(y_true, y_pred, number, **used)
    assert found.fits, str(found)
    group = found.classes[0]
    assert re.search(words, group.explanations[0].words), str(found)
    value = eval(group.calls["lossbridge"], {"lb": lb, "np": np, "math": math, "y_true": y_true, "y_pred": y_pred})
    assert "lb.divergence(" in group.calls["lossbridge"]
    np.testing.assert_allclose(value, np.float64(number), rtol=2e-5, atol=2e-6)
    return group


OPTIONS = [
    ({"kind": "jensen_shannon"}, JENSEN_SHANNON),
    ({"kind": "jensen_shannon", "scale": "divergence"}, f"{JENSEN_SHANNON}.*(scale='divergence'|β)"),
    ({"kind": "total_variation"}, TOTAL_VARIATION),
    *(
        ({"kind": "jensen_shannon", "beta": beta, "scale": scale}, f"{JENSEN_SHANNON}.*β = {beta}")
        for beta in (0.1, 0.3, 0.9)
        for scale in ("mixture", "divergence")
    ),
]


@pytest.mark.parametrize(("options", "words"), OPTIONS)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("form", ["logits", "probabilities", "distributions, logits", "log-probabilities"])
def test_the_number_of_a_call(options, words, reduction, form) -> None:
    y_true, y_pred = {
        "logits": (TEACHER, STUDENT),
        "probabilities": (T, P),
        "distributions, logits": (T, STUDENT),
        "log-probabilities": (np.log(T), np.log(P)),
    }[form]
    number = lb.divergence(TEACHER, STUDENT, **options, reduction=reduction)
    used = {"beta": options["beta"]} if "beta" in options and reduction == "sum" else {}  # of means it is solved for
    group = first(y_true, y_pred, f"{number:.7g}", words, **used)
    assert group.changes <= 2
    if options.get("scale") == "divergence":
        assert re.search(r"scale='divergence'|divided by β \(1 − β\)", group.explanations[0].words)


@pytest.mark.parametrize("form", ["float32", "float64"])
def test_the_definitions_of_others(form) -> None:
    t, p, teacher, student = (x.astype(form) for x in (T, P, TEACHER, STUDENT))
    squared = jensenshannon(T, P, axis=1) ** 2
    first(t, p, f"{squared.mean():.6f}", JENSEN_SHANNON)
    bits = jensenshannon(T, P, axis=1, base=2) ** 2
    first(t, p, f"{bits.mean():.6f}", f"{JENSEN_SHANNON}.*base 2")
    first(t, p, f"{np.abs(T - P).sum(-1).mean() / 2:.6f}", TOTAL_VARIATION)
    for beta in (0.1, 0.3, 0.9):
        words = f"{JENSEN_SHANNON}.*β = {beta}"
        first(t, p, f"{generalised(T, P, beta).mean():.6f}", words)
        first(teacher, student, f"{gkd(STUDENT, TEACHER, beta).sum() / 24:.6f}", words)
        first(t, p, f"{generalised(T, P, beta).mean() / (beta * (1 - beta)):.6f}", f"{words}.*divided by β")


@pytest.mark.parametrize("beta", [0.1, 0.3, 0.9])
def test_the_reductions_of_trl(beta) -> None:
    """Of sequences: by the positions, by the sequences, or by every class too; and the mixture of early versions."""
    teacher, student = TEACHER.reshape(4, 6, 6), STUDENT.reshape(4, 6, 6)
    values, words = gkd(student, teacher, beta), f"{JENSEN_SHANNON}.*β = {beta}"
    for divisor, says in ((24, ""), (4, r".*batchmean"), (values.size, "N·C")):
        found = lb.diagnose(teacher, student, f"{values.sum() / divisor:.7g}").classes[0]
        assert re.search(words, found.explanations[0].words)
        assert any(says in explanation.words for explanation in found.explanations) or says == ".*batchmean"
    early = gkd(STUDENT, TEACHER, beta, early=True).sum() / 24
    found = lb.diagnose(TEACHER, STUDENT, f"{early:.7g}").classes[0]
    assert re.search(f"{words}.*m = .1 − β. t . β p, as in TRL 0.14", found.explanations[0].words)
    assert not found.calls


def test_without_the_half() -> None:
    first(T, P, f"{2 * generalised(T, P, 0.5).mean():.6f}", f"{JENSEN_SHANNON}.*multiplied by 2")
    first(T, P, f"{np.abs(T - P).mean():.6f}", f"{TOTAL_VARIATION}.*multiplied by 2")
    first(TEACHER, STUDENT, f"{2 * generalised(T, P, 0.5).mean():.6f}", f"{JENSEN_SHANNON}.*multiplied by 2")


def test_hard_targets() -> None:
    """The total variation is then 1 − p of the label."""
    labels = np.arange(24) % 6
    one_hot, number = np.eye(6)[labels], f"{1 - P[np.arange(24), labels].mean():.6f}"
    first(one_hot, P, number, TOTAL_VARIATION)
    first(labels, P, number, TOTAL_VARIATION)
    first(one_hot, P, f"{generalised(one_hot, P, 0.5).mean():.6f}", JENSEN_SHANNON)
    first(one_hot, P, f"{generalised(one_hot, P, 0.1).mean():.6f}", f"{JENSEN_SHANNON}.*β = 0.1", beta=0.1)


def test_calls() -> None:
    """They are short, and those of probabilities say how these become logits, also where some are 0."""
    number = lb.divergence(TEACHER, STUDENT, kind="jensen_shannon", beta=0.1)
    calls = first(TEACHER, STUDENT, f"{number:.7g}", "β = 0.1").calls
    assert calls == {"lossbridge": "lb.divergence(y_true, y_pred, kind='jensen_shannon', beta=0.1)"}
    calls = first(T, P, f"{number:.7g}", "β = 0.1").calls
    assert calls == {"lossbridge": "lb.divergence(np.log(y_true), np.log(y_pred), kind='jensen_shannon', beta=0.1)"}
    t = np.where(T > 0.05, T, 0)
    t /= t.sum(-1, keepdims=True)
    calls = first(t, P, f"{np.abs(t - P).sum() / 2:.7g}", TOTAL_VARIATION).calls
    assert calls["lossbridge"].startswith(
        "lb.divergence(np.log(np.clip(y_true, 1e-30, 1)), np.log(y_pred), kind='total"
    )


def test_a_temperature() -> None:
    """lossbridge multiplies by T², TRL does not."""
    for beta, temperature in ((0.5, 2.0), (0.1, 2.0), (0.9, 0.8)):
        used = {} if beta == 0.5 else {"beta": beta, "temperature": temperature}
        options = {"kind": "jensen_shannon", "beta": beta, "temperature": temperature}
        number = f"{lb.divergence(TEACHER, STUDENT, **options):.7g}"
        words = f"{JENSEN_SHANNON}.*T = {temperature:g}, both logits divided by it"
        group = first(TEACHER, STUDENT, number, f"{words}, the result times T²", **used)
        assert f"temperature={temperature})" in group.calls["lossbridge"]
        first(TEACHER, STUDENT, f"{gkd(STUDENT, TEACHER, beta, temperature).sum() / 24:.7g}", words, **used)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_forward_and_the_reverse_divergence(temperature) -> None:
    for kind in ("forward", "reverse"):
        number = lb.divergence(TEACHER, STUDENT, kind=kind, temperature=temperature)
        number, words = f"{number:.7g}", "swapped" if kind == "reverse" else "KLDivergence"
        group = lb.diagnose(TEACHER, STUDENT, number).classes[0]
        assert words in group.explanations[0].words
        if temperature == 1:
            order = "y_pred, y_true" if kind == "reverse" else "y_true, y_pred"
            assert first(TEACHER, STUDENT, number, words).calls["lossbridge"] == f"lb.divergence({order})"


def test_arguments_in_the_other_order() -> None:
    """Give 1 − β of the same divergence."""
    number = generalised(P, T, 0.3).mean()
    first(TEACHER, STUDENT, f"{number:.7g}", "β = 0.7")


@pytest.mark.parametrize(("options", "words"), OPTIONS)
@pytest.mark.parametrize("quantity", ["samples", "gradient"])
def test_values_and_gradients(options, words, quantity) -> None:
    named = {"beta": options["beta"]} if "beta" in options else {}
    if quantity == "gradient":
        _, observed = lb.value_and_grad(lb.divergence)(TEACHER, STUDENT, **options, reduction="sum")
        found = lb.diagnose(TEACHER, STUDENT, observed, **named).classes[0]
    else:
        observed = lb.divergence(TEACHER, STUDENT, **options, reduction="none")
        found = first(TEACHER, STUDENT, observed, words, **named)
    assert re.search(words, found.explanations[0].words)


def test_a_beta_that_is_not_round_is_named() -> None:
    number = f"{lb.divergence(TEACHER, STUDENT, kind='jensen_shannon', beta=0.137):.6g}"
    said = str(lb.diagnose(TEACHER, STUDENT, number))
    assert "β" not in said
    first(TEACHER, STUDENT, number, "β = 0.137", beta=0.137)
    with pytest.raises(ValueError, match=r"beta is 1; pass a number between 0 and 1$"):
        lb.diagnose(TEACHER, STUDENT, number, beta=1)


@pytest.mark.parametrize("digits", [4, 5, 6])
def test_an_ordinary_loss_is_named_first(digits) -> None:
    """A free β fits many numbers: none of an ordinary loss, of a coefficient or of a factor is taken for it."""
    for seed in range(6):
        rng = np.random.default_rng(seed)
        teacher, student = 1.5 * rng.normal(size=(2, 16, 5))
        t, p = softmax(teacher, -1), softmax(student, -1)
        kl = rel_entr(t, p).sum(-1)
        numbers = [kl.mean(), kl.mean() / 5, kl.sum(), rel_entr(p, t).sum(-1).mean(), kl.mean() / np.log(2)]
        numbers += [
            2 * kl.mean(),
            kl.sum() / 15,
            lb.categorical_crossentropy(t, p),
            rel_entr(t, (t + p) / 2).sum() / 16,
        ]
        for number in numbers:
            for arrays in ((t, p), (teacher, student)):
                classes = lb.diagnose(*arrays, f"{number:.{digits}g}").classes
                assert not classes or "β" not in classes[0].explanations[0].words


def test_of_equally_simple_explanations_one_with_a_beta_is_the_last() -> None:
    plain = replace(hypotheses(Setting.of(batch_of(T, P)[0], "scalar"))[0], changes=1)
    mixed = replace(plain, convention=plain.convention.but(cost="jensen-shannon", beta=0.3))
    assert plain.strangeness < mixed.strangeness < replace(plain, changes=2).strangeness


def test_what_was_meant() -> None:
    for options in ("kind='jensen_shannon', beta=0.3", "kind='jensen_shannon', scale='divergence', temperature=2.0"):
        number = eval(f"lb.divergence(TEACHER, STUDENT, {options})")
        found = lb.diagnose(TEACHER, STUDENT, "1.0", expected=f"lb.divergence({options})")
        assert f"which gives {number:.9g}"[:22] in found.meant
        assert f"lb.divergence(y_true, y_pred, {options})"[:60] in found.meant
    for options in ("kind='reverse'", "temperature=2.0", "kind='total_variation', reduction='sum'"):
        number = eval(f"lb.divergence(TEACHER, STUDENT, {options})")
        meant = lb.diagnose(TEACHER, STUDENT, "1", expected=f"lb.divergence({options})").meant
        assert f"gives {number:.9g}"[:14] in meant
    with pytest.raises(ValueError, match=r"expected names beta=2, which lossbridge.divergence does not take"):
        lb.diagnose(TEACHER, STUDENT, "1", expected="lb.divergence(kind='jensen_shannon', beta=2)")
