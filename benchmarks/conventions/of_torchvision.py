from answers import answer
from torch_arrays import allow_torchvision, tensors

library = allow_torchvision()
from torchvision import ops  # noqa: E402

answer("torchvision", {"sigmoid_focal_loss": ops.sigmoid_focal_loss, **tensors})
