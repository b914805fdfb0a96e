from answers import answer
from torch_arrays import allow_torchvision, tensors

library = allow_torchvision()
from timm import loss  # noqa: E402

answer("timm", {**vars(loss), **tensors})
