"""PyTorch's tensors of the examples, and what lets a torchvision of another build be imported."""

import torch
from answers import arrays

tensors = arrays(torch.tensor)


def allow_torchvision():
    """torchvision's Python is imported without its compiled operators, of which losses use none."""
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor boxes, Tensor scores, float threshold) -> Tensor")
    return library
