import numpy as np
import onnxruntime
from answers import answer, arrays
from onnx import TensorProto, helper


def operator(name):
    """A function that runs a model of this one operator."""

    def run(scores, labels, weight=None, **attributes):
        feeds = {"scores": np.float32(scores), "labels": np.int64(labels)}
        if weight is not None:
            feeds["weight"] = np.float32(weight)
        kinds = {"f": TensorProto.FLOAT, "i": TensorProto.INT64}
        inputs = [helper.make_tensor_value_info(k, kinds[x.dtype.kind], x.shape) for k, x in feeds.items()]
        output = helper.make_tensor_value_info("loss", TensorProto.FLOAT, None)
        node = helper.make_node(name, list(feeds), ["loss"], **attributes)
        graph = helper.make_graph([node], "loss", inputs, [output])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        return onnxruntime.InferenceSession(model.SerializeToString()).run(None, feeds)[0]

    return run


names = ("SoftmaxCrossEntropyLoss", "NegativeLogLikelihoodLoss")
answer("onnxruntime", {**{name: operator(name) for name in names}, **arrays(np.asarray)})
