from answers import answer
from torch_arrays import allow_torchvision, tensors

library = allow_torchvision()
from fastai import losses  # noqa: E402

names = ("LabelSmoothingCrossEntropy", "FocalLoss", "CrossEntropyLossFlat", "BCEWithLogitsLossFlat")
answer("fastai", {**{name: getattr(losses, name) for name in names}, **tensors})
