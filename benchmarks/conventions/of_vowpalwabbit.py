from answers import answer, arrays
from vowpalwabbit import Workspace

# A score is that of a single feature, of weight 1, which is not learned.
_GIVEN = "--loss_function logistic --noconstant --initial_weight 1 --sgd --learning_rate 0 --quiet"


def logistic(scores, outcomes, importance=None):
    workspace = Workspace(_GIVEN)
    for i, (score, outcome) in enumerate(zip(scores, outcomes, strict=True)):
        weight = 1.0 if importance is None else importance[i]
        workspace.learn(f"{1 if outcome else -1} {weight} | score:{score}")
    total, weights = workspace.get_sum_loss(), workspace.get_weighted_examples()
    workspace.finish()
    return total / weights


answer("vowpalwabbit", {"logistic": logistic, **arrays(list)})
