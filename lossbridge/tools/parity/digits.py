"""Real inputs: the logits of two classifiers for scikit-learn's 1797 handwritten digits.

Each image's logits come from a model that was not trained on it (five folds).
`python -m lossbridge.tools.parity.digits` writes the file; it needs scikit-learn.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

FILE = Path(__file__).with_name("digits.npz")


def load() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels (1797,) int32, and logits (1797, 10) float32 under weak and under strong regularisation."""
    with np.load(FILE, allow_pickle=False) as data:
        return data["labels"], data["logits"], data["other_logits"]


def make() -> None:
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MinMaxScaler

    images, labels = load_digits(return_X_y=True)
    folds = StratifiedKFold(5, shuffle=True, random_state=0)

    def logits(strength: float) -> np.ndarray:
        model = make_pipeline(MinMaxScaler(), LogisticRegression(C=strength, max_iter=1000))
        scores = cross_val_predict(model, images, labels, cv=folds, method="decision_function")
        return scores.astype(np.float32)

    np.savez_compressed(FILE, labels=labels.astype(np.int32), logits=logits(1.0), other_logits=logits(0.01))


if __name__ == "__main__":
    make()
