from answers import answer
from kornia import losses
from torch_arrays import tensors

answer("kornia", {**vars(losses), **tensors})
