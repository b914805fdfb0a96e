"""Models of one of ONNX's operators, for what runs them."""

import numpy as np
from onnx import TensorProto, helper

OPERATORS = ("SoftmaxCrossEntropyLoss", "NegativeLogLikelihoodLoss")


def operator(name, run):
    """A function that makes a model of this one operator, and runs it: `run(model, feeds)`."""

    def call(scores, labels, weight=None, **attributes):
        feeds = {"scores": np.float32(scores), "labels": np.int64(labels)}
        if weight is not None:
            feeds["weight"] = np.float32(weight)
        kinds = {"f": TensorProto.FLOAT, "i": TensorProto.INT64}
        inputs = [helper.make_tensor_value_info(k, kinds[x.dtype.kind], x.shape) for k, x in feeds.items()]
        output = helper.make_tensor_value_info("loss", TensorProto.FLOAT, None)
        node = helper.make_node(name, list(feeds), ["loss"], **attributes)
        graph = helper.make_graph([node], "loss", inputs, [output])
        return run(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), feeds)

    return call
