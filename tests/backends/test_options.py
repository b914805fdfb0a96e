"""Options that are one number, as NumPy scalars, as arrays of shape (), and traced: every loss and framework."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from problems import PROBLEMS

import lossbridge as lb
from lossbridge import reference
from lossbridge.spec import LOSSES, NUMBERS, OF_LOGITS
from lossbridge.tools.parity.cases import round_to

# A value of each, which float16 does not hold, and whose rounding to it shows.
VALUES = {"label_smoothing": 0.1, "temperature": 2.3, "gamma": 1.7, "epsilon": 0.07, "alpha": 0.3, "pos_weight": 1.9}
VALUES |= {"logit_scale": 1.7, "softcap": 2.3, "z_loss": 0.3, "beta": 0.3}
CASES = [
    pytest.param(loss, y_true, y_pred, given, option, id=f"{problem}-{option}")
    for problem, loss, y_true, y_pred, given in PROBLEMS
    for option in VALUES
    if option in LOSSES[loss].options and option not in (["epsilon"] if given.get("from_logits") else OF_LOGITS)
]
each = pytest.mark.parametrize(("loss", "y_true", "y_pred", "given", "option"), CASES)

SCALARS = [np.float16, np.float32, np.float64, np.longdouble]
INTEGERS = [np.int8, np.uint8, np.int32, np.int64, np.uint64]


def test_every_option_is_tested() -> None:
    assert set(NUMBERS) <= set(VALUES)
    assert {name for loss in LOSSES.values() for name in loss.options if name in VALUES} == set(VALUES)


def arrays(lib, y_true, y_pred, dtype="float32"):
    return lib.array(y_true, None if y_true.dtype.kind == "i" else dtype), lib.array(y_pred, dtype)


def balanced(loss, given):
    """With class balancing, where alpha would count for nothing else, and of the kind that has a β."""
    if "kind" in LOSSES[loss].options:
        return {**given, "kind": "jensen_shannon"}
    return {**given, "apply_class_balancing": True} if "apply_class_balancing" in LOSSES[loss].options else given


@each
def test_numpy_scalars_are_the_numbers_that_they_hold(lib, loss, y_true, y_pred, given, option) -> None:
    y_true, y_pred = arrays(lib, y_true, y_pred)
    function = lb.value_and_grad(getattr(lb, loss))
    given = balanced(loss, given)
    scalars = [kind(VALUES[option]) for kind in SCALARS]
    if option not in ("epsilon", "alpha"):
        scalars += [kind(1) for kind in INTEGERS]
    for scalar in scalars:
        expected = function(y_true, y_pred, **given, **{option: float(scalar)})
        for x in (scalar, np.array(scalar)):
            found = function(y_true, y_pred, **given, **{option: x})
            for got, wanted in zip(found, expected, strict=True):
                assert got.dtype == wanted.dtype
                np.testing.assert_array_equal(
                    lib.b.to_numpy(got), lib.b.to_numpy(wanted), err_msg=type(scalar).__name__
                )


@each
def test_arrays_of_one_number_are_that_number(lib, loss, y_true, y_pred, given, option) -> None:
    y_true, y_pred = arrays(lib, y_true, y_pred)
    function = lb.value_and_grad(getattr(lb, loss))
    given = balanced(loss, given)
    for dtype in ("float32", "bfloat16"):
        x = lib.array(np.array(VALUES[option]), dtype)
        held = float(round_to(np.array(VALUES[option]), dtype))
        expected = function(y_true, y_pred, **given, **{option: held})
        found = function(y_true, y_pred, **given, **{option: x})
        for got, wanted in zip(found, expected, strict=True):
            np.testing.assert_array_equal(lib.b.to_numpy(got), lib.b.to_numpy(wanted))


@each
def test_the_derivative_for_an_option(lib, loss, y_true, y_pred, given, option) -> None:
    """By finite differences of the loss with numbers, which takes another path."""
    given = balanced(loss, given)
    with lib.b.scope("float64", "cpu"):
        y_true, y_pred = arrays(lib, y_true, y_pred, "float64")

        def value(x):
            return getattr(lb, loss)(y_true, y_pred, **given, **{option: x})

        at, step = VALUES[option], 1e-5
        found, derivative = lib.b.value_and_grad(value, lib.array(np.array(at), "float64"))
        above, below = (float(lib.b.to_numpy(value(x))) for x in (at + step, at - step))
        np.testing.assert_allclose(lib.b.to_numpy(found), lib.b.to_numpy(value(at)), rtol=1e-12)
        np.testing.assert_allclose(lib.b.to_numpy(derivative), (above - below) / (2 * step), rtol=1e-6, atol=1e-9)


@each
def test_a_traced_option(lib, loss, y_true, y_pred, given, option) -> None:
    """One program for all values; outside its range NaN. PyTorch's compiler takes too long for all of them."""
    compilers = {} if lib.b.name == "torch" else lib.b.compilers()
    y_true, y_pred = arrays(lib, y_true, y_pred)
    given, traced = balanced(loss, given), []

    def step(pred, x):
        traced.append(x)
        return lb.value_and_grad(getattr(lb, loss))(y_true, pred, **given, **{option: x})

    for compiler in compilers.values():
        compiled = compiler(step)
        count = len(traced)
        for at in (VALUES[option], VALUES[option] / 2):
            found = compiled(y_pred, lib.array(np.array(at), "float32"))
            for got, wanted in zip(found, step(y_pred, at), strict=True):
                wanted = lib.b.to_numpy(wanted)
                np.testing.assert_allclose(lib.b.to_numpy(got), wanted, rtol=2e-6, atol=4e-7 * np.abs(wanted).max())
        assert len(traced) == count + 3  # the two beside it are eager
        if option != "pos_weight" and (option != "alpha" or "apply_class_balancing" in given):
            assert np.isnan(lib.b.to_numpy(compiled(y_pred, lib.array(np.array(-1.0), "float32"))[0]))


@each
def test_a_differentiated_option_leaves_the_gradient_as_it_is(lib, loss, y_true, y_pred, given, option) -> None:
    if lib.b.name != "torch":
        return  # elsewhere what is differentiated is traced, as above
    y_true, y_pred = arrays(lib, y_true, y_pred)
    function, given = lb.value_and_grad(getattr(lb, loss)), balanced(loss, given)
    found = function(y_true, y_pred, **given, **{option: lib.array(np.array(VALUES[option])).requires_grad_()})
    wanted = lib.b.to_numpy(function(y_true, y_pred, **given, **{option: VALUES[option]})[1])
    np.testing.assert_allclose(lib.b.to_numpy(found[1]), wanted, rtol=2e-6, atol=4e-7 * np.abs(wanted).max())


def test_gamma_is_annealed_to_nothing(lib) -> None:
    """At γ = 0 a focal loss is the cross-entropy, also where p is 1."""
    y_true, y_pred = lib.array([[1.0, 0.0], [0.0, 1.0]]), lib.array([[1.0, 0.0], [0.3, 0.7]])
    for compiler in lib.b.compilers().values():
        step = compiler(lambda x: lb.binary_focal_crossentropy(y_true, y_pred, gamma=x))
        exact = lb.binary_focal_crossentropy(y_true, y_pred, gamma=0.0)
        np.testing.assert_allclose(
            lib.b.to_numpy(step(lib.array(np.array(0.0)))), lib.b.to_numpy(exact), rtol=2e-6, atol=2e-8
        )


# Large numbers.

LARGE = {
    "1e200": 1e200,
    "10**400": 10**400,
    "-10**400": -(10**400),
    "10**5000": 10**5000,  # Python refuses to write it down
    "float64": np.float64(1e300),
    "longdouble": np.longdouble("1e4000"),
}


def test_a_large_float16(lib) -> None:
    """300² overflows float16."""
    rng = np.random.default_rng(0)
    teacher, student = rng.normal(size=(2, 3, 5)).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = lib.value("distillation_loss", teacher, student, temperature=np.float16(300))
    exact = reference.distillation_loss(teacher, student, temperature=300.0).value
    np.testing.assert_allclose(found, exact, rtol=1e-6)


@pytest.mark.parametrize("option", ["temperature", "gamma", "label_smoothing", "epsilon", "alpha"])
@pytest.mark.parametrize("number", LARGE.values(), ids=LARGE)
def test_numbers_beyond_a_range_are_refused_in_one_short_line(lib, option, number) -> None:
    loss = {"temperature": "distillation_loss"}.get(option, "binary_focal_crossentropy")
    pair = lib.array([[0.2, 0.8]]), lib.array([[0.5, 0.5]])
    options = {option: number, **({} if option == "temperature" else {"apply_class_balancing": True})}
    with pytest.raises(ValueError, match=f"^{option} is ") as raised:
        getattr(lb, loss)(*pair, **options)
    assert len(str(raised.value)) < 100


@pytest.mark.parametrize("number", [10**400, -(10**400)])
def test_numbers_for_all_classes_that_no_float_holds(lib, number) -> None:
    pair = lib.array([[0.2, 0.8]]), lib.array([[0.5, 0.5]])
    for loss, option in (("categorical_focal_crossentropy", "alpha"), ("binary_crossentropy", "pos_weight")):
        with pytest.raises(ValueError, match=f"^{option} is an integer (above|below) -?2\\*\\*64, and no float"):
            getattr(lb, loss)(*pair, from_logits=True, **{option: number})


@pytest.mark.parametrize("temperature", [1e-8, 1e-3, 1e3, 1e8, 1e15])
def test_temperatures_at_the_ends_of_their_range(lib, temperature) -> None:
    """The limit of T → ∞ is half the variance of the differences over the classes."""
    rng = np.random.default_rng(3)
    teacher, student = rng.normal(size=(2, 3, 5)).astype(np.float32)
    value, gradient = lib.value_and_grad("distillation_loss", teacher, student, temperature=temperature)
    assert np.isfinite(gradient).all()
    if temperature >= 1e8:
        difference = teacher.astype(np.float64) - student
        np.testing.assert_allclose(value, difference.var(axis=-1).mean() / 2, rtol=2e-6)
        off = difference.mean(axis=-1, keepdims=True) - difference
        np.testing.assert_allclose(gradient, off / 15, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("x", ["0.1", None, True, [0.1], np.array([0.1]), np.array(True), 1j, np.complex64(1)])
def test_what_is_no_number_is_refused(lib, x) -> None:
    pair = lib.array([[0.2, 0.8]]), lib.array([[0.5, 0.5]])
    with pytest.raises(TypeError, match=r"^label_smoothing is .*; pass a Python number in"):
        lb.categorical_crossentropy(*pair, label_smoothing=x)
