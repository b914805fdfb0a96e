"""The distillation of two linear layers: equal to the divergence of their logits, at any size of a block."""

from __future__ import annotations

import numpy as np
import pytest

import lossbridge as lb
from lossbridge import reference
from lossbridge.frameworks import linear_blocks
from lossbridge.native import rows

N, C, OF_TEACHER, OF_STUDENT = 13, 11, 7, 5
BLOCKS = 5 * C * 8  # bytes: three blocks in float32, of both sides
KINDS = [
    {},
    {"kind": "reverse", "temperature": 2.0},
    {"kind": "jensen_shannon", "beta": 0.3},
    {"kind": "jensen_shannon", "beta": 0.9, "scale": "divergence", "temperature": 0.5},
    {"kind": "total_variation"},
]
STUDENT = ("student_hidden", "student_weight", "student_bias")
TEACHER = ("teacher_hidden", "teacher_weight", "teacher_bias")


def problem(classes_axis: int = 0, rows: tuple[int, ...] = (N,)) -> dict[str, np.ndarray]:
    """Multiples of 1/8, so that every logit is exact in float32."""
    rng = np.random.default_rng(2)
    shapes = {"teacher_hidden": (*rows, OF_TEACHER), "teacher_weight": (C, OF_TEACHER), "teacher_bias": (C,)}
    shapes |= {"student_hidden": (*rows, OF_STUDENT), "student_weight": (C, OF_STUDENT), "student_bias": (C,)}
    arrays = {name: rng.integers(-10, 11, size=shape) / 8 for name, shape in shapes.items()}
    return {name: x.T if "weight" in name and classes_axis else x for name, x in arrays.items()}


def exact(arrays, **options):
    a = dict(arrays)
    sides = [a.pop(name) for name in ("teacher_hidden", "teacher_weight", "student_hidden", "student_weight")]
    return reference.linear_distillation(*sides, **a, **{name: x for name, x in options.items() if name != "memory"})


def found(lib, arrays, of, dtype="float32", **options):
    own = {name: lib.array(x, dtype) for name, x in arrays.items()}
    value, gradients = lb.value_and_grad(lb.linear_distillation, of=of)(**own, **options)
    assert [lib.b.dtype(x) for x in gradients] == [dtype] * len(of)
    return lib.b.to_numpy(value), [lib.b.to_numpy(x) for x in gradients]


def assert_right(result, truth, rtol=2e-6) -> None:
    value, gradients = result
    np.testing.assert_allclose(value, truth.value, rtol=rtol)
    for gradient, wanted in zip(gradients, (truth.gradient, truth.weight_gradient, truth.bias_gradient), strict=True):
        np.testing.assert_allclose(gradient, wanted, rtol=0, atol=10 * rtol * np.abs(wanted).max() + 1e-30)


@pytest.mark.parametrize("memory", [None, BLOCKS, 1])
@pytest.mark.parametrize("options", KINDS, ids=lambda x: "-".join(map(str, x.values())))
def test_values_and_gradients(lib, options, memory) -> None:
    arrays = problem()
    assert_right(found(lib, arrays, STUDENT, memory=memory, **options), exact(arrays, **options))


def test_it_is_the_divergence_of_the_logits(lib) -> None:
    a = problem()
    z = [a[f"{side}_hidden"] @ a[f"{side}_weight"].T + a[f"{side}_bias"] for side in ("teacher", "student")]
    value, _ = found(lib, a, STUDENT, memory=BLOCKS)
    np.testing.assert_allclose(value, lib.value("divergence", *z), rtol=1e-6)


@pytest.mark.parametrize("reduction", ["sum", "none", "mean", "mean_with_sample_weight"])
def test_weights_masks_and_another_axis(lib, reduction) -> None:
    """What is masked may hold anything."""
    arrays = problem(classes_axis=1, rows=(3, 4))
    mask, weight = np.arange(12).reshape(3, 4) % 5 != 1, np.linspace(0.0, 2.0, 12).reshape(3, 4)
    options = {"classes_axis": 1, "reduction": reduction, "kind": "jensen_shannon", "beta": 0.25}
    truth = exact(arrays, mask=mask, sample_weight=weight, **options)
    for name in ("teacher_hidden", "student_hidden"):
        arrays[name][~mask] = np.nan
    more = {"mask": lib.array(mask), "sample_weight": lib.array(weight), "memory": BLOCKS}
    assert_right(found(lib, arrays, STUDENT, **more, **options), truth)


def test_nothing_counts(lib) -> None:
    for arrays, options in ((problem(rows=(0,)), {}), (problem(), {"mask": lib.array(np.zeros(N, bool))})):
        value, gradients = found(lib, arrays, STUDENT, **options)
        assert value == 0
        assert not any(x.any() for x in gradients)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_dtypes(lib, dtype) -> None:
    """The weights' gradients are rounded once."""
    arrays = problem()
    truth = exact(arrays)
    with lib.b.scope(dtype, "cpu"):
        value, gradients = found(lib, arrays, STUDENT, dtype, memory=BLOCKS)
    assert value.dtype == ("float64" if dtype == "float64" else "float32")
    np.testing.assert_allclose(value, truth.value, rtol=1e-13 if dtype == "float64" else 1e-6)
    step = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float64": 1e-13}[dtype]
    for gradient, wanted in zip(gradients, (truth.gradient, truth.weight_gradient, truth.bias_gradient), strict=True):
        np.testing.assert_allclose(
            gradient, wanted, rtol=step, atol=2e-6 * np.abs(wanted).max() if step > 1e-9 else step
        )


@pytest.mark.parametrize("kind", ["forward", "reverse"])
def test_the_teacher_is_differentiated_too(lib, kind) -> None:
    arrays = problem()
    truth = exact(arrays, kind=kind)
    value, (of_hidden, of_weight, of_bias) = found(lib, arrays, TEACHER, kind=kind, memory=BLOCKS)
    np.testing.assert_allclose(value, truth.value, rtol=2e-6)
    np.testing.assert_allclose(of_hidden, truth.target_gradient, rtol=0, atol=1e-6)
    z = [
        arrays[f"{side}_hidden"] @ arrays[f"{side}_weight"].T + arrays[f"{side}_bias"]
        for side in ("teacher", "student")
    ]
    slopes = reference.divergence(*z, kind=kind).target_gradient
    np.testing.assert_allclose(of_weight, slopes.T @ arrays["teacher_hidden"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(of_bias, slopes.sum(0), rtol=0, atol=1e-6)


def test_compiled(lib) -> None:
    arrays = problem()
    truth = exact(arrays, kind="jensen_shannon")
    names = list(arrays)
    for compiler in lib.b.compilers().values():

        def loss(*own):
            return lb.linear_distillation(**dict(zip(names, own, strict=True)), kind="jensen_shannon", memory=BLOCKS)

        loss = compiler(loss)
        own = {name: lib.array(x) for name, x in arrays.items()}

        def of_student(student, loss=loss, own=own):
            now = {**own, **dict(zip(STUDENT, student, strict=True))}
            return loss(*(now[name] for name in names))

        value, gradients = lib.b.value_and_grad(of_student, tuple(own[name] for name in STUDENT))
        assert_right((lib.b.to_numpy(value), [lib.b.to_numpy(x) for x in gradients]), truth)


def test_the_path_is_in_blocks_unless_the_teacher_learns(lib, monkeypatch) -> None:
    taken = []
    monkeypatch.setattr(
        linear_blocks,
        "WHOLE",
        linear_blocks.WHOLE._replace(losses=lambda call: taken.append("all logits") or linear_blocks.whole(call)),
    )
    found(lib, problem(), STUDENT)
    assert not taken
    own = {name: lib.array(x) for name, x in problem().items()}
    assert lb.explain(lb.linear_distillation, **own).path == "blocks"
    for under in lib.b.compilers():
        assert lb.explain(lb.linear_distillation, **own, under=under).path == "blocks"
    found(lib, problem(), TEACHER)
    assert bool(taken) == (lib.b.name != "jax")


@pytest.mark.skipif(bool(rows.MISSING), reason=rows.MISSING)
def test_the_reverse_divergence_of_a_block_is_that_of_the_native_rows(lib, monkeypatch) -> None:
    """Its sides are exchanged, so that the rows' gradient is that of their target."""
    taken, choose = set(), lib.framework.choose

    def watched(r, **more):
        found = choose(r, **more)
        taken.add(found.path.name)
        return found

    monkeypatch.setattr(lib.framework, "choose", watched)
    found(lib, problem(), STUDENT, kind="reverse")
    assert taken == {"rule" if lib.b.name == "tensorflow" else "rows"}


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        (
            {"teacher_hidden": np.zeros((N + 1, OF_TEACHER))},
            ValueError,
            r"teacher_hidden has shape \(14, 7\) and student_h",
        ),
        (
            {"teacher_weight": np.zeros((OF_TEACHER, C))},
            ValueError,
            "teacher_hidden has.*teacher_weight.*classes_axis=1",
        ),
        ({"student_weight": np.zeros((C, 2))}, ValueError, "student_hidden has shape .* and student_weight"),
        (
            {"student_weight": np.zeros((3, 5)), "student_bias": np.zeros(3)},
            ValueError,
            "teacher has 11 classes and the stud",
        ),
        ({"teacher_bias": np.zeros(3)}, ValueError, r"teacher_bias has shape \(3,\) and teacher_weight"),
        ({"student_hidden": np.zeros((N, OF_STUDENT), np.int32)}, TypeError, "student_hidden has dtype int32"),
        *(
            ({name: None}, TypeError, f"{name} is None; pass an array")
            for name in ("teacher_hidden", "teacher_weight", "student_weight")
        ),
    ],
)
def test_what_is_refused(lib, changes, error, words) -> None:
    arrays = {name: x if x is None else lib.array(x) for name, x in {**problem(), **changes}.items()}
    with pytest.raises(error, match=words):
        lb.linear_distillation(**arrays)


def test_options_are_refused_as_by_the_divergence(lib) -> None:
    arrays = {name: lib.array(x) for name, x in problem().items()}
    with pytest.raises(ValueError, match="kind is 'both'; use one of 'forward'"):
        lb.linear_distillation(**arrays, kind="both")
    with pytest.raises(ValueError, match="beta is for kind"):
        lb.linear_distillation(**arrays, beta=0.1)
