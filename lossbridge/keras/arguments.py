"""The arguments of Keras' users: options in a form that can be saved, and arrays as a framework has them. No maths."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from lossbridge import errors
from lossbridge.compat.keras import without_last
from lossbridge.maths.ops import Array

# Options, checked when a loss is made.


def saved_option(name: str, x: Any) -> Any:
    """An option in a form that can be saved: a Python number, or a NumPy array of one number a class."""
    if isinstance(x, np.generic):
        return x.item()
    if name not in ("class_weight", "pos_weight", "alpha") or x is None or isinstance(x, bool | int | float):
        return x
    if isinstance(x, dict):
        raise TypeError(f"{name} is a dict, as fit(class_weight=) takes it; here give one number a class, in order")
    try:
        array = np.asarray(keras.ops.convert_to_numpy(x))
        if array.dtype.kind in "US":
            raise TypeError
        array = array.astype(np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"{name} is {type(x).__name__} of no numbers; give it one number a class, in order") from None
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds {array[~np.isfinite(array)][0]}; give it finite numbers")
    if array.ndim == 0:
        return array.item()
    if array.ndim > 1:
        raise ValueError(f"{name} has shape {array.shape}; give it one number a class, in order")
    return array


def check_options(options: dict[str, Any]) -> None:
    errors.options(options)
    normalizer = options["normalizer"]
    if isinstance(options.get("class_weight"), bool | int | float):
        raise ValueError(f"class_weight is {options['class_weight']}; give it one number a class, in order")
    if normalizer is not None and (isinstance(normalizer, bool) or not isinstance(normalizer, int | float)):
        raise TypeError(f"normalizer is {type(normalizer).__name__}; pass a number here, or an array in each call")
    if normalizer is not None and not 0 < normalizer < float("inf"):
        raise ValueError(f"normalizer is {normalizer}; pass a number above 0 and finite")


# Arrays, in each call. Labels are not cast: bfloat16 would turn 257 into 256.


def given_array(x: Any, name: str) -> Array:
    """Keras' variables and tensors on Keras' device, lists as NumPy arrays."""
    if x is None:
        raise TypeError(f"{name} is None; pass an array")
    if isinstance(x, keras.KerasTensor):
        raise TypeError(f"{name} is a symbolic KerasTensor; call the loss inside a Layer, or give it to model.compile")
    if isinstance(x, keras.Variable):
        x = x.value
    if keras.ops.is_tensor(x):
        return keras.ops.convert_to_tensor(x)
    return x if hasattr(x, "shape") else np.asarray(x)


def without_last_axis(x: Any, rank: int, name: str) -> Any:
    return None if x is None else without_last(given_array(x, name), rank, name)
