import numpy as np
from answers import answer, arrays
from thinc.api import CategoricalCrossentropy


def array(x):
    x = np.asarray(x)
    return x.astype(np.float32 if x.dtype.kind == "f" else np.int32)


answer("thinc", {"CategoricalCrossentropy": CategoricalCrossentropy, **arrays(array)})
