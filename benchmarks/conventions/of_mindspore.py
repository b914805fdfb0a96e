import mindspore as ms
import numpy as np
from answers import answer, arrays


def tensor(x):
    x = np.asarray(x)
    return ms.Tensor(x.astype(np.float32 if x.dtype.kind == "f" else np.int32))


answer("mindspore", {**vars(ms.ops), **arrays(tensor), "float32": ms.float32, "None": None})
