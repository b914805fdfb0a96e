"""Means over nothing in programs that torch.export and torch.jit.trace write: 0, as eager."""

from __future__ import annotations

import pytest
import torch
from test_paths import FORMS, arrays

import lossbridge as lb
import lossbridge.torch as lt

ROWS = torch.export.Dim("rows", min=0)
WEIGHTED = {"weights": "sum_over_batch_size", "mask": "mean", "weights and mask": "mean_with_sample_weight"}


class Loss(torch.nn.Module):
    """A form of a loss, with weights and a mask where they are asked for."""

    def __init__(self, form, given="") -> None:
        super().__init__()
        self.form, self.given = form, given

    def forward(self, target, pred, weight, mask):
        options = {"reduction": WEIGHTED.get(self.given, "mean"), **self.form.options}
        if "weights" in self.given:
            options["sample_weight"] = weight
        if "mask" in self.given:
            options["mask"] = mask
        return getattr(lb, self.form.loss)(target, pred, **options)


class Divergence(torch.nn.Module):
    """Which divides by a size."""

    def forward(self, target, log_p):
        return lt.KLDivLoss(reduction="batchmean")(log_p, target)


def inputs(form) -> tuple[torch.Tensor, ...]:
    weight, mask = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([True, False, True])
    return *(torch.tensor(x) for x in arrays(form, 3, 4, "float32")), weight, mask


def exported(module, example, strict: bool = False):
    return torch.export.export(
        module, example, dynamic_shapes=tuple({0: ROWS} for _ in example), strict=strict
    ).module()


def traced(module, example):
    return torch.jit.trace(module, example)


def assert_right(program, module, example) -> None:
    for rows in (0, 1, 2):
        some = tuple(x[:rows] for x in example)
        expected = module(*some)
        assert rows or expected == 0
        torch.testing.assert_close(program(*some), expected)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_exported(form) -> None:
    module, example = Loss(form), inputs(form)
    assert_right(exported(module, example), module, example)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_traced_with_its_gradient(form) -> None:
    module, example = Loss(form), inputs(form)
    program = traced(module, example)
    assert_right(program, module, example)
    for rows in (0, 1, 2):
        target, pred, *others = (x[:rows] for x in example)
        pred = pred.clone().requires_grad_()
        got, expected = (torch.autograd.grad(f(target, pred, *others), pred)[0] for f in (program, module))
        torch.testing.assert_close(got, expected)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("given", WEIGHTED)
def test_weights_and_masks_of_nothing(given) -> None:
    form = FORMS["sparse_categorical_crossentropy, labels, logits"]
    module, example = Loss(form, given), inputs(form)
    for program in (exported(module, example), exported(module, example, strict=True), traced(module, example)):
        assert_right(program, module, example)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_a_size_as_the_denominator() -> None:
    example = torch.rand(3, 4), torch.rand(3, 4).log()
    for program in (exported(Divergence(), example), traced(Divergence(), example)):
        assert_right(program, Divergence(), example)
