import numpy as np
from answers import answer, arrays
from onnx.reference import ReferenceEvaluator
from onnx_models import OPERATORS, operator


def run(model, feeds):
    return ReferenceEvaluator(model).run(None, feeds)[0]


answer("onnx", {**{name: operator(name, run) for name in OPERATORS}, **arrays(np.asarray)})
