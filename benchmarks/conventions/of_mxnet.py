import mxnet as mx
from answers import answer, arrays
from mxnet.gluon import loss


def metric(name):
    def run(labels, predictions):
        found = getattr(mx.metric, name)()
        found.update([labels], [predictions])
        return found.get()[1]

    return run


classes = {name: getattr(loss, name) for name in loss.__all__}


def reduced(cls):
    return lambda **options: lambda *arguments: cls(**options)(*arguments).mean().asscalar()


calls = {name: reduced(cls) for name, cls in classes.items()}
answer("mxnet", {**calls, "CrossEntropy": metric("CrossEntropy"), **arrays(mx.nd.array)})
