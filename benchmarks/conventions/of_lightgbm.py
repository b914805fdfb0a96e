import math

import lightgbm
import numpy as np
from answers import answer, arrays, logit


def metric(name, scores, labels, weight=None, **options):
    """The metric of scores that are given as they are: one tree, which has a single leaf of 0."""
    scores = np.asarray(scores, float)
    options = {"metric": name, "verbose": -1, "boost_from_average": False, "min_data_in_leaf": 10**6, **options}
    data = lightgbm.Dataset(np.zeros((len(labels), 1)), labels, weight=weight, init_score=scores, free_raw_data=False)
    seen = {}
    record = lightgbm.record_evaluation(seen)
    lightgbm.train(options, data, 1, valid_sets=[data], valid_names=["data"], callbacks=[record])
    return seen["data"][name][0]


def binary_logloss(labels, p, weight=None):
    return metric("binary_logloss", logit(p), labels, weight, objective="binary")


def cross_entropy(labels, p, weight=None):
    return metric("cross_entropy", logit(p), labels, weight, objective="cross_entropy")


def kullback_leibler(labels, p, weight=None):
    return metric("kullback_leibler", logit(p), labels, weight, objective="cross_entropy")


def multi_logloss(labels, p, weight=None):
    return metric(
        "multi_logloss",
        [[math.log(x) if x else -1000 for x in row] for row in p],
        labels,
        weight,
        objective="multiclass",
        num_class=len(p[0]),
    )


functions = (binary_logloss, cross_entropy, kullback_leibler, multi_logloss)
answer("lightgbm", {**{f.__name__: f for f in functions}, **arrays(np.asarray)})
