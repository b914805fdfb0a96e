import numpy as np
import onnxruntime
from answers import answer, arrays
from onnx_models import OPERATORS, operator


def run(model, feeds):
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, feeds)[0]


answer("onnxruntime", {**{name: operator(name, run) for name in OPERATORS}, **arrays(np.asarray)})
