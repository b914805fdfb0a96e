"""Tensors whose entries do not lie in one block are refused in one line, which says what to pass, at every size."""

from __future__ import annotations

import pytest
import torch

import lossbridge as lb
import lossbridge.torch as lt
from lossbridge.spec import LOSSES

LAYOUTS = {
    "coo": lambda x: x.to_sparse(),
    "csr": lambda x: x.to_sparse_csr() if x.ndim == 2 else x.to_sparse(),
    "nested": lambda x: torch.nested.nested_tensor(list(x)),
    "jagged": lambda x: torch.nested.nested_tensor(list(torch.atleast_2d(x)), layout=torch.jagged),
    "masked": lambda x: torch.masked.masked_tensor(x, x == x),
}
WORDS = {
    "coo": r"is a sparse tensor; pass its to_dense\(\)",
    "csr": r"is a sparse tensor; pass its to_dense\(\)",
    "nested": "is a nested tensor; pass it padded",
    "jagged": "is a nested tensor; pass it padded",
    "masked": r"is a torch.masked tensor; pass its get_data\(\), and its get_mask\(\) as mask=",
}


def problem(loss: str, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    labels = LOSSES[loss].targets == ("labels",)
    return torch.arange(size) if labels else torch.eye(size), torch.full((size, size), 1 / size)


@pytest.mark.filterwarnings("ignore:.*(prototype|beta state)")
@pytest.mark.parametrize("size", [3, 800])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("loss", LOSSES)
def test_refused(loss, layout, size) -> None:
    target, pred = problem(loss, size)
    names, other = LOSSES[loss].names, LAYOUTS[layout]
    function, weight = getattr(lb, loss), torch.ones(size)
    for name, call in (
        (names.target, lambda: function(other(target), pred)),
        (names.pred, lambda: function(target, other(pred))),
        ("sample_weight", lambda: function(target, pred, sample_weight=other(weight))),
        ("mask", lambda: function(target, pred, mask=other(weight))),
    ):
        with pytest.raises(TypeError, match=f"^{name} {WORDS[layout]}") as error:
            call()
        assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore:.*(prototype|beta state)")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_refused_by_modules(layout) -> None:
    pred, target = torch.zeros(3, 3), torch.tensor([0, 1, 2])
    with pytest.raises(TypeError, match=f"^input {WORDS[layout]}"):
        lt.CrossEntropyLoss()(LAYOUTS[layout](pred), target)
    with pytest.raises(TypeError, match=f"^weight {WORDS[layout]}"):
        lt.CrossEntropyLoss(weight=LAYOUTS[layout](torch.ones(3)))(pred, target)
