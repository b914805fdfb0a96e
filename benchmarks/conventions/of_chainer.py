import chainer.functions as F
import numpy as np
from answers import answer, arrays


def array(x):
    x = np.asarray(x)
    return x.astype(np.float32 if x.dtype.kind == "f" else np.int32)


class Numbers:
    """chainer's functions, whose results are variables that float() does not take."""

    def __getattr__(self, name):
        return lambda *args, **options: getattr(F, name)(*args, **options).array.mean()


functions = ("softmax_cross_entropy", "sigmoid_cross_entropy", "mean_squared_error")
answer("chainer", {**{name: getattr(Numbers(), name) for name in functions}, **arrays(array)})
