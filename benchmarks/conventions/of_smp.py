from answers import answer
from torch_arrays import allow_torchvision, tensors

library = allow_torchvision()
from segmentation_models_pytorch import losses  # noqa: E402

answer("segmentation-models-pytorch", {**vars(losses), **tensors})
