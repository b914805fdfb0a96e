"""torch.autograd.detect_anomaly is silent on healthy data."""

from __future__ import annotations

import pytest
import torch
from test_only_torch_kernels import force, needs_rows
from test_paths import FORMS, arrays

import lossbridge as lb


@pytest.fixture(params=[pytest.param("rows", marks=needs_rows), "rule", "formula"])
def path(request, monkeypatch) -> str:
    force(request.param, monkeypatch)
    return request.param


def problem(form, hard: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Targets soft or hard; predictions of which a few are confident."""
    target, pred = (torch.tensor(x) for x in arrays(form, 6, 5, "float32"))
    if hard and form.target in ("distributions", "outcomes"):
        target = (target == target.amax(1, keepdim=True)).float()
    if form.logits:
        pred[::2] *= 30
    return target, pred


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard"])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_no_anomaly(form, hard, masked, path) -> None:
    """In values, gradients of predictions and target, and their derivatives."""
    target, pred = problem(form, hard)
    leaves = [pred.requires_grad_()]
    if target.is_floating_point() and not hard:
        leaves.append(target.requires_grad_())
    mask = None
    if masked:
        mask = torch.arange(6) % 3 > 0
        mask = mask if form.loss != "log_loss" or form.target == "labels" else mask[:, None]
    with torch.autograd.detect_anomaly(check_nan=True):
        for reduction in ("mean", "none"):
            for create_graph in (False, True):
                value = getattr(lb, form.loss)(target, pred, mask=mask, reduction=reduction, **form.options).sum()
                gradients = torch.autograd.grad(value, leaves, create_graph=create_graph)
                assert all(x.isfinite().all() for x in gradients)
            size = sum((x**2).sum() for x in gradients)
            second = torch.autograd.grad(size, leaves, materialize_grads=True)
            assert all(x.isfinite().all() for x in second)
