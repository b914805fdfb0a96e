import tensorflow as tf
from answers import answer, arrays


def constant(x):
    return tf.constant(x)


losses = tf.compat.v1.losses
answer("tensorflow", {**{name: getattr(losses, name) for name in dir(losses)}, **arrays(constant)})
