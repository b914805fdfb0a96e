import numpy as np
from answers import answer, arrays
from catboost.utils import eval_metric


def metric(labels, scores, name, weight=None):
    return eval_metric(np.asarray(labels), np.asarray(scores), name, weight=weight)[0]


answer("catboost", {"eval_metric": metric, **arrays(np.asarray)})
