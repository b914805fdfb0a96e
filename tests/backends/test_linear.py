"""The linear cross-entropy: values and gradients against the reference, in blocks of every size, and what is refused.

Hidden states and weights are multiples of 1/8, so that every logit is exact in float32 and what is seen is the loss.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

import lossbridge as lb
from lossbridge import reference

H, C = 6, 11
INPUTS = ("hidden", "weight", "bias")
_RNG = np.random.default_rng(0)


def eighths(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(-16, 17, size=shape).astype(np.float32) / 8


def problem(shape: tuple[int, ...] = (13,), classes: int = C, width: int = H) -> dict[str, Any]:
    labels = np.random.default_rng(3).integers(0, classes, size=shape).astype(np.int32)
    return {"labels": labels, "hidden": eighths(*shape, width, seed=1), "weight": eighths(classes, width, seed=2)}


N = 13
BIAS = eighths(C, seed=4)
CLASS_WEIGHT = np.linspace(0, 2, C).astype(np.float32)
SAMPLE_WEIGHT = np.where(np.arange(N) % 4 == 1, 0, np.linspace(0.2, 3, N)).astype(np.float32)
MASK = np.arange(N) % 3 != 2
ALL = {
    "bias": BIAS,
    "label_smoothing": 0.1,
    "class_weight": CLASS_WEIGHT,
    "logit_scale": 0.5,
    "softcap": 3.0,
    "z_loss": 0.1,
    "sample_weight": SAMPLE_WEIGHT,
    "mask": MASK,
    "ignore_class": 4,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bias": {"bias": BIAS},
    "smoothing": {"label_smoothing": 0.1},
    "an ignored class": {"ignore_class": 4},
    "class weights": {"class_weight": CLASS_WEIGHT},
    "scale, cap, z-loss": {"logit_scale": 0.5, "softcap": 3.0, "z_loss": 0.1},
    "weights": {"sample_weight": SAMPLE_WEIGHT},
    "mask": {"mask": MASK},
    "all masked": {"mask": np.zeros(N, bool)},
    "normalizer": {"normalizer": 7.0},
    "all, sum": {**ALL, "reduction": "sum"},
    "all, mean": {**ALL, "reduction": "mean"},
    "all, mean by weight": {**ALL, "reduction": "mean_with_sample_weight"},
    "all, none": {**ALL, "reduction": "none"},
    "none": {"reduction": "none"},
}


def placed(lib: Any, x: Any, dtype: str) -> Any:
    if not isinstance(x, np.ndarray):
        return x
    return lib.array(x, dtype if x.dtype.kind == "f" else None)


def found(
    lib: Any, arguments: dict[str, Any], options: dict[str, Any], dtype: str = "float32", wrap: Any = None
) -> Any:
    """Value and gradients for what INPUTS there are."""
    given = {name: placed(lib, x, dtype) for name, x in arguments.items()}
    rest = {name: placed(lib, x, dtype if name in INPUTS else "float32") for name, x in options.items()}
    names = tuple(name for name in INPUTS if name in given or name in rest)
    both = lb.value_and_grad(lb.linear_crossentropy, of=names)

    def call(arrays: Any) -> Any:
        return both(**{**arrays, **{k: x for k, x in {**given, **rest}.items() if k not in arrays}})

    arrays = {name: ({**given, **rest})[name] for name in names}
    value, gradients = (wrap or (lambda f: f))(call)(arrays)
    return lib.b.to_numpy(value), dict(zip(names, map(lib.b.to_numpy, gradients), strict=True))


def expected(arguments: dict[str, Any], options: dict[str, Any]) -> Any:
    exact = {name: x for name, x in options.items() if name != "memory"}
    r = reference.linear_crossentropy(arguments["labels"], arguments["hidden"], arguments["weight"], **exact)
    return r.value, {"hidden": r.gradient, "weight": r.weight_gradient, "bias": r.bias_gradient}


def agree(result: Any, exact: Any, dtype: str = "float32", words: str = "") -> None:
    value, gradients = result
    wide = "float64" if dtype == "float64" else "float32"
    unit = np.spacing(np.abs(exact[0]).astype(wide))
    assert np.all(np.abs(value - exact[0]) <= 4 * unit), (words, value, exact[0])
    for name, gradient in gradients.items():
        # Sums of N products in float32, or of C, whose roundings are a random walk; and one to the gradient's dtype.
        roundings = max(8.0, exact[1]["weight"].shape[0] ** 0.5 / 2 if name == "hidden" else 0.0)
        step = {"float16": 2.0**-11, "bfloat16": 2.0**-8}.get(dtype, 0.0) + roundings * np.finfo(wide).eps
        bound = step * np.abs(exact[1][name]).max(initial=0) + (2.0**-24 if dtype == "float16" else 0)
        np.testing.assert_allclose(gradient, exact[1][name], rtol=0, atol=bound, err_msg=f"{words}, {name}")


def of_rows(rows: int, classes: int = C, size: int = 4) -> int:
    return rows * classes * size


@pytest.mark.parametrize("rows", [1, 5, None])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_values_and_gradients(lib, options, rows) -> None:
    given = options if rows is None else {**options, "memory": of_rows(rows)}
    agree(found(lib, problem(), given), expected(problem(), options))


@pytest.mark.parametrize("options", [OPTIONS["plain"], OPTIONS["all, mean by weight"], OPTIONS["all, none"]])
def test_compiled(lib, options) -> None:
    for name, compiler in lib.b.compilers().items():
        result = found(lib, problem(), {**options, "memory": of_rows(5)}, wrap=compiler)
        agree(result, expected(problem(), options), words=name)


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
@pytest.mark.parametrize("options", [OPTIONS["plain"], OPTIONS["all, mean"], OPTIONS["none"]])
def test_other_dtypes(lib, dtype, options) -> None:
    with lib.b.scope(dtype, "cpu"):
        arguments = {
            name: x.astype(dtype) if dtype == "float64" and x.dtype.kind == "f" else x for name, x in problem().items()
        }
        agree(found(lib, arguments, {**options, "memory": of_rows(4)}, dtype), expected(problem(), options), dtype)


@pytest.mark.parametrize("shape", [(0,), (1,), (3, 4), (2, 0)])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_shapes(lib, shape, reduction) -> None:
    options = {"reduction": reduction, "bias": BIAS}
    result = found(lib, problem(shape), {**options, "memory": of_rows(2)})
    assert result[0].shape == (shape if reduction == "none" else ())
    agree(result, expected(problem(shape), options))


@pytest.mark.parametrize("classes", [1, 2, 129])
def test_numbers_of_classes(lib, classes) -> None:
    agree(found(lib, problem(classes=classes), {"memory": of_rows(3, classes)}), expected(problem(classes=classes), {}))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("classes", [50_257, 128_256])
def test_vocabularies_of_language_models(lib, classes, dtype) -> None:
    """GPT-2's and Llama 3's, in blocks of 2, 2 and 1 rows."""
    arguments, options = problem((5,), classes, 64), {"label_smoothing": 0.1, "z_loss": 1e-4}
    with lib.b.scope(dtype, "cpu"):
        result = found(lib, arguments, {**options, "memory": of_rows(2, classes)}, dtype)
    agree(result, expected(arguments, options), dtype)


@pytest.mark.parametrize("name", ["plain", "all, mean", "all, none"])
def test_classes_along_axis_1(lib, name) -> None:
    arguments = problem()
    exact = expected(arguments, OPTIONS[name])
    exact[1]["weight"] = exact[1]["weight"].T
    arguments["weight"] = np.ascontiguousarray(arguments["weight"].T)
    agree(found(lib, arguments, {**OPTIONS[name], "classes_axis": 1, "memory": of_rows(5)}), exact)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_rows_that_do_not_count_may_hold_anything(lib, reduction) -> None:
    arguments, options = problem(), {"mask": MASK, "ignore_class": 4, "reduction": reduction, "memory": of_rows(5)}
    left_out = ~MASK | (arguments["labels"] == 4)
    exact = expected(arguments, options)
    arguments["hidden"][left_out] = np.array([np.nan, np.inf, -np.inf, 1e38, 0, 1], np.float32)
    arguments["labels"][~MASK] = -7
    agree(found(lib, arguments, options), exact)


def test_it_is_the_loss_of_the_logits(lib) -> None:
    """On numbers whose products round, as the same product gives them."""
    rng = np.random.default_rng(5)
    hidden, weight = rng.normal(size=(40, 64)).astype(np.float32), rng.normal(size=(129, 64)).astype(np.float32)
    labels = rng.integers(0, 129, 40).astype(np.int32)
    logits = lib.b.ops.matmul(lib.array(hidden), lib.array(weight), True)
    whole = lib.b.to_numpy(
        lb.sparse_categorical_crossentropy(lib.array(labels), logits, from_logits=True, reduction="none")
    )
    blocks = lb.linear_crossentropy(
        lib.array(labels), lib.array(hidden), lib.array(weight), reduction="none", memory=7 * 516
    )
    # One more rounding of a logit of 30 is 2e-6.
    np.testing.assert_allclose(lib.b.to_numpy(blocks), whole, rtol=0, atol=2e-5)


@pytest.mark.parametrize("reduction", ["sum", "mean_with_sample_weight", "none"])
def test_the_gradient_for_weights_is_that_of_the_loss_of_the_logits(lib, reduction) -> None:
    given = {name: placed(lib, x, "float32") for name, x in problem().items()}
    weight, class_weight = lib.array(SAMPLE_WEIGHT), lib.array(CLASS_WEIGHT)
    logits = lib.array(problem()["hidden"] @ problem()["weight"].T)
    options = {"class_weight": class_weight, "reduction": reduction}

    def of_hidden(weight: Any) -> Any:
        return lb.linear_crossentropy(**given, sample_weight=weight, memory=of_rows(5), **options)

    def of_logits(weight: Any) -> Any:
        return lb.sparse_categorical_crossentropy(
            given["labels"], logits, from_logits=True, sample_weight=weight, **options
        )

    found, exact = (lib.b.to_numpy(lib.b.value_and_grad(loss, weight)[1]) for loss in (of_hidden, of_logits))
    np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-6)


def test_what_flows_back_multiplies_before_rounding(lib) -> None:
    arguments = problem()
    given = {name: placed(lib, x, "float16") for name, x in arguments.items()}

    def scaled(weight: Any) -> Any:
        return lb.linear_crossentropy(given["labels"], given["hidden"], weight, memory=of_rows(5)) * 1e-6

    _, gradient = lib.b.value_and_grad(scaled, given["weight"])
    exact = expected(arguments, {})[1]["weight"] * 1e-6
    np.testing.assert_allclose(lib.b.to_numpy(gradient), exact, rtol=2**-10, atol=2.0**-25)


REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "the other axis": (
        {"weight": np.zeros((H, C), np.float32)},
        ValueError,
        "hidden has shape (13, 6), with 6 units, and weight (6, 11), with 11 along axis 1; its classes lie along the "
        "other axis: pass classes_axis=1",
    ),
    "no fit": ({"weight": np.zeros((C, 7), np.float32)}, ValueError, "with 7 along axis 1; make them equal"),
    "three axes": ({"weight": np.zeros((C, H, 1), np.float32)}, ValueError, "a weight has two axes"),
    "bias": ({"bias": np.zeros(H, np.float32)}, ValueError, "a bias has one number a class, (11,)"),
    "labels beyond": ({"labels": np.full(N, C, np.int32)}, ValueError, "label 11 at index 0 is out of range"),
    "labels' shape": ({"labels": np.zeros((N, 1), np.int32)}, ValueError, "drop the last axis with labels[..., 0]"),
    "float labels": ({"labels": np.zeros(N, np.float32)}, TypeError, "labels has dtype float32"),
    "no classes": ({"weight": np.zeros((0, H), np.float32)}, ValueError, "shape (0, 6); a layer has at least"),
    "no units": (
        {"hidden": np.zeros((N, 0), np.float32), "weight": np.zeros((C, 0), np.float32)},
        ValueError,
        "weight has shape (11, 0); a layer has at least one class and one unit",
    ),
    "axis": ({"classes_axis": -1}, ValueError, "classes_axis is -1; pass 0 for"),
    "fractional axis": ({"classes_axis": 1.0}, ValueError, "classes_axis is 1.0; pass 0 for"),
    "axes": ({"classes_axis": np.array([0, 1])}, ValueError, "; pass 0 for a weight of shape"),
    "memory": ({"memory": 0}, ValueError, "memory is 0; pass the bytes"),
    "fractional memory": ({"memory": 1e6}, ValueError, "memory is 1000000.0; pass the bytes"),
    "integers": (
        {"hidden": np.zeros((N, H), np.int32)},
        TypeError,
        "hidden has dtype int32",
    ),
    "labels and hidden states swapped": ({"hidden": np.zeros((N, H), np.int32)}, TypeError, "swap labels and hidden"),
    "class weights": (
        {"class_weight": np.ones(H, np.float32)},
        ValueError,
        "class_weight has shape (6,), and axis 0 of weight",
    ),
    "sample weights": ({"sample_weight": np.ones(C, np.float32)}, ValueError, "sample_weight has shape (11,)"),
    "cap": ({"softcap": 0.0}, ValueError, "softcap is 0.0; pass a number in"),
}


@pytest.mark.parametrize(("change", "kind", "words"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(lib, change, kind, words) -> None:
    given = {name: placed(lib, x, "float32") for name, x in {**problem(), **change}.items()}
    with pytest.raises(kind) as raised:
        lb.linear_crossentropy(**given)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("split", [{"group": "model"}, {"classes": (0, C)}, {"reduce_hidden": False}])
def test_classes_split_over_devices(lib, split) -> None:
    """On NumPy and TensorFlow they are not, and elsewhere by a group that is at work."""
    given = {name: placed(lib, x, "float32") for name, x in problem().items()}
    words = {"torch": "; pass a torch.distributed.ProcessGroup", "jax": "on JAX |group is 'model'"}.get(
        lib.b.name,
        f"PyTorch's process groups and JAX' meshes, and hidden is of {lib.b.name}; leave them out",
    )
    for call in (lb.linear_crossentropy, functools.partial(lb.explain, "linear_crossentropy")):
        with pytest.raises((TypeError, ValueError), match=words) as raised:
            call(given["labels"], given["hidden"], weight=given["weight"], **split)
        assert "\n" not in str(raised.value)


def test_integers_of_numpy(lib) -> None:
    given = {name: placed(lib, x, "float32") for name, x in problem().items()}
    value = lb.linear_crossentropy(**given, classes_axis=np.int64(0), memory=np.int64(of_rows(5)))
    np.testing.assert_allclose(lib.b.to_numpy(value), expected(problem(), {})[0], rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_lists_are_converted(lib, dtype) -> None:
    """Python numbers have no precision of their own: they take that of the hidden states."""
    with lib.b.scope(dtype, "cpu"):
        given = {name: placed(lib, x, dtype) for name, x in problem().items()}
        given |= {"weight": problem()["weight"].tolist(), "bias": BIAS.tolist()}
        value = lb.linear_crossentropy(**given)
        np.testing.assert_allclose(lib.b.to_numpy(value), expected(problem(), {"bias": BIAS})[0], rtol=1e-6)


def test_names_to_differentiate(lib) -> None:
    given = {name: placed(lib, x, "float32") for name, x in problem().items()}
    exact = expected(problem(), {"bias": BIAS})
    for of, words in {
        (): "of is (); pass a name",
        1: "of is 1; pass a name",
        ("hidden", 0): "of is ('hidden', 0); pass a name",
        ("weight", "weight"): "of names 'weight' twice",
        "wieght": "of names 'wieght', which was not given; given: labels, hidden, weight",
    }.items():
        with pytest.raises(TypeError) as raised:
            lb.value_and_grad(lb.linear_crossentropy, of=of)(**given)
        assert words in str(raised.value)

    def loss(labels: Any, hidden: Any, weight: Any, **more: Any) -> Any:
        return lb.linear_crossentropy(labels, hidden, weight, **more)

    value, gradient = lb.value_and_grad(loss, of="bias")(**given, bias=placed(lib, BIAS, "float32"))
    agree((lib.b.to_numpy(value), {"bias": lib.b.to_numpy(gradient)}), exact)


def test_the_second_argument_by_name(lib) -> None:
    """As without `of`: the hidden states, whatever the arguments are called."""
    given = {name: placed(lib, x, "float32") for name, x in problem().items()}
    value, gradient = lb.value_and_grad(lb.linear_crossentropy)(**given)
    agree((lib.b.to_numpy(value), {"hidden": lib.b.to_numpy(gradient)}), expected(problem(), {}))


def test_a_gradient_without_predictions(lib) -> None:
    labels = placed(lib, problem()["labels"], "float32")
    for loss in (lb.linear_crossentropy, lb.sparse_categorical_crossentropy):
        with pytest.raises(TypeError, match="differentiates the second of the loss' arguments; 1 given"):
            lb.value_and_grad(loss)(labels)


def test_what_the_caller_gave_is_unchanged(lib) -> None:
    arguments = {name: placed(lib, x, "float32") for name, x in {**problem(), "bias": BIAS}.items()}
    before = {name: lib.b.to_numpy(x).copy() for name, x in arguments.items()}
    lb.value_and_grad(lb.linear_crossentropy, of=INPUTS)(**arguments)
    for name, x in arguments.items():
        np.testing.assert_array_equal(lib.b.to_numpy(x), before[name])


@pytest.mark.parametrize("options", [{}, {"ignore_class": 4, "softcap": 3.0, "logit_scale": 0.5, "mask": MASK}])
def test_log_probabilities_of_tokens(lib, options) -> None:
    """By logits and by hidden states: the negative loss of each label, and its gradient."""
    arguments = problem((13,))
    given = {name: placed(lib, x, "float32") for name, x in arguments.items()}
    rest = {name: placed(lib, x, "float32") for name, x in options.items()}
    value, gradients = expected(arguments, {**options, "reduction": "none"})
    by_hidden, of_weight = lb.value_and_grad(lb.linear_token_log_probs, of="weight")(**given, **rest, memory=of_rows(5))
    agree((-lib.b.to_numpy(by_hidden), {"weight": -lib.b.to_numpy(of_weight)}), (value, gradients))
    logits = arguments["hidden"] @ arguments["weight"].T
    by_logits, of_logits = lb.value_and_grad(lb.token_log_probs)(given["labels"], lib.array(logits), **rest)
    exact = reference.sparse_categorical_crossentropy(
        arguments["labels"], logits, from_logits=True, reduction="none", **options
    )
    agree(
        (-lib.b.to_numpy(by_logits), {"logits": -lib.b.to_numpy(of_logits)}), (exact.value, {"logits": exact.gradient})
    )


@pytest.mark.parametrize(("option", "number"), [("logit_scale", 0.5), ("label_smoothing", 0.3)])
def test_a_number_in_an_array_is_not_compiled_in(lib, option, number) -> None:
    """A compiler traces it, so that no path takes it that takes numbers or an array of one number a class."""
    given = problem()
    labels, hidden, weight = (lib.array(given[name]) for name in ("labels", "hidden", "weight"))

    def both(number: Any) -> Any:
        return lib.b.value_and_grad(lambda h: lb.linear_crossentropy(labels, h, weight, **{option: number}), hidden)

    value, gradient = map(lib.b.to_numpy, both(number))
    for called in (both, *(compiler(both) for compiler in lib.b.compilers().values())):
        found = called(lib.array(np.float32(number)))
        np.testing.assert_allclose(lib.b.to_numpy(found[0]), value, rtol=2e-6)
        np.testing.assert_allclose(lib.b.to_numpy(found[1]), gradient, rtol=0, atol=2e-6 * np.abs(gradient).max())
