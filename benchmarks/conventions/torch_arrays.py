"""PyTorch's tensors of the examples, and what lets a torchvision of another build be imported."""

import torch
from answers import arrays

tensors = arrays(torch.tensor)


def allow_torchvision():
    """torchvision's Python is imported without its compiled operators, of which losses use none."""
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms(Tensor a, Tensor b, float c) -> Tensor", "roi_align() -> Tensor"):
        library.define(operator)
    return library
