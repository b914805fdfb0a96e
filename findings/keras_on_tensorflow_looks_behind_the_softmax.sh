#!/usr/bin/env bash
# keras 3.15.1 on tensorflow 2.21.0: inside a tf.function, and so in fit, the categorical cross-entropy of probabilities
# depends on which operation made the tensor, not on its values alone. Directly behind a softmax Keras takes the logits
# that went in; behind anything else, even tf.identity, it clips the probabilities to [1e-7, 1 - 1e-7].
#
# One row of logits 0 and 40, whose label is the first: 40 nats from the softmax's own output, 16.118 from the same
# tensor after tf.identity, and 16.118 outside of a tf.function. From the logits the gradient of the first is -1; from
# the clipped probability it is 0, so that a model ending in a saturated softmax learns in the one case and not in the
# other.
#
# Output seen: graph 40.0, behind tf.identity 16.118095, eager 16.118095; gradients -1.0, 0.0, 0.0.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet keras==3.15.1 tensorflow==2.21.0 numpy==2.4.6
KERAS_BACKEND=tensorflow TF_CPP_MIN_LOG_LEVEL=3 "$folder/venv/bin/python" - <<'PYTHON'
import keras
import tensorflow as tf

LOGITS, TARGET = tf.constant([[0.0, 40.0]]), tf.constant([[1.0, 0.0]])


def loss_and_slope(between):
    """Of the softmax, after `between`; the slope is that of the first logit."""
    with tf.GradientTape() as tape:
        tape.watch(LOGITS)
        loss = keras.losses.categorical_crossentropy(TARGET, between(tf.nn.softmax(LOGITS)))
    return loss[0], tape.gradient(loss, LOGITS)[0, 0]


def directly(p):
    return p


found = {
    "graph": tf.function(lambda: loss_and_slope(directly), autograph=False)(),
    "graph, behind tf.identity": tf.function(lambda: loss_and_slope(tf.identity), autograph=False)(),
    "eager": loss_and_slope(directly),
}
found = {name: tuple(round(float(x), 6) for x in pair) for name, pair in found.items()}
for name, (loss, slope) in found.items():
    print(f"{name}: loss {loss}, gradient {slope}")
assert found["graph"] == (40.0, -1.0), found
assert found["graph, behind tf.identity"] == (16.118095, 0.0), found
assert found["eager"] == (16.118095, 0.0), found
PYTHON
