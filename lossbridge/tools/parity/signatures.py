"""How each function that has cases takes them: what its arguments are called, and whose gradients are compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from lossbridge.spec import LOSSES
from lossbridge.tools.parity.cases import Case


class Signature(NamedTuple):
    """The names of a function's arguments. What is neither y_true nor y_pred is among a case's options."""

    positional: tuple[str, ...]
    target: str  # that y_true is
    pred: str  # that y_pred is
    # Further arrays of the case's dtype, and what the reference calls the gradient of each; "" where none is compared.
    layers: Mapping[str, str] = {}

    @property
    def more(self) -> tuple[str, ...]:
        """The arrays that every call needs besides y_true and y_pred."""
        return tuple(name for name in self.positional if name not in (self.target, self.pred))

    def arguments(self, case: Case) -> dict[str, Any]:
        """All that the function is called with, by name."""
        return {self.target: case.y_true, self.pred: case.y_pred, **case.options}

    def gradients(self, case: Case) -> dict[str, str]:
        """The arguments whose gradients are compared, y_pred's first, and what the reference calls each gradient."""
        of_layers = {name: gradient for name, gradient in self.layers.items() if gradient and name in case.options}
        return {self.pred: "gradient", **of_layers}


# Functions that are no losses of the registry.
FURTHER: Mapping[str, Signature] = {
    "linear_crossentropy": Signature(
        ("labels", "hidden", "weight"),
        target="labels",
        pred="hidden",
        layers={"weight": "weight_gradient", "bias": "bias_gradient"},
    ),
    "linear_distillation": Signature(
        ("teacher_hidden", "teacher_weight", "student_hidden", "student_weight"),
        target="teacher_hidden",
        pred="student_hidden",
        layers={
            "teacher_weight": "",
            "teacher_bias": "",
            "student_weight": "weight_gradient",
            "student_bias": "bias_gradient",
        },
    ),
    "topk_divergence": Signature(("indices", "log_probs", "student_logits"), target="log_probs", pred="student_logits"),
}

SIGNATURES: Mapping[str, Signature] = {
    **{
        name: Signature((loss.names.target, loss.names.pred), loss.names.target, loss.names.pred)
        for name, loss in LOSSES.items()
    },
    **FURTHER,
}
