#!/usr/bin/env bash
# keras 3.15.1: binary_crossentropy of float16 arrays is NaN for a perfect prediction on NumPy and JAX (and
# TensorFlow), and 6e-8 on PyTorch.
#
# Keras clips the prediction to [1e-7, 1 - 1e-7], but in float16 1 - 1e-7 is 1, so that a prediction of 1 stays 1, and
# (1 - t) log(1 - p) is 0 times -inf. The backend for PyTorch calls its framework's own function, which has no clip to
# lose. The function keeps the dtype of what it is given; the class keras.losses.BinaryCrossentropy casts to float32.
#
# Output seen: function numpy nan, jax nan, torch 5.96e-08; class 0.0 or less than 1e-6 on each.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet keras==3.15.1 jax==0.10.2 torch==2.13.0 numpy==2.4.6
for backend in numpy jax torch; do
  KERAS_BACKEND=$backend "$folder/venv/bin/python" - <<'PYTHON'
import keras
import numpy as np

TARGET, PREDICTION = (keras.ops.convert_to_tensor(np.array([[1.0, 0.0]], np.float16)) for _ in range(2))
found = float(keras.losses.binary_crossentropy(TARGET, PREDICTION)[0])
of_class = float(keras.losses.BinaryCrossentropy()(TARGET, PREDICTION))
backend = keras.backend.backend()
print(f"{backend}: the function {found:.3g}, the class {of_class:.3g}")
assert 0 < found < 1e-6 if backend == "torch" else np.isnan(found), backend
assert 0 <= of_class < 1e-6
PYTHON
done
