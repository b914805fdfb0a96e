import torchmetrics.functional as functional
from answers import answer
from torch_arrays import tensors
from torchmetrics.functional.text import perplexity

answer("torchmetrics", {**vars(functional), "perplexity": perplexity, **tensors})
