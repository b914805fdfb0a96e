"""The linear cross-entropy of classes split over processes: on each the value and the gradients of one device."""

from __future__ import annotations

import functools
import json
import os
import types
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_linear import BIAS, CLASS_WEIGHT, INPUTS, MASK, OPTIONS, SAMPLE_WEIGHT, C, N, agree, expected, problem
from torch import distributed
from torch.distributed import _functional_collectives as collectives_of_dtensor
from torch.distributed.tensor import DeviceMesh, DTensor, Replicate, Shard, distribute_tensor, init_device_mesh

import lossbridge as lb
from lossbridge.frameworks import torch_ops, torch_shards

TIMEOUT = 300
# The classes of each process: of different numbers, in another order than the ranks', and none.
SPLITS = {2: [(0, 4), (4, C)], 3: [(7, C), (0, 7), (7, 7)]}
EVERYTHING = {name: x for name, x in OPTIONS["all, sum"].items() if name not in ("reduction", "bias")}


def tensors(options: dict[str, Any]) -> dict[str, Any]:
    return {name: torch.tensor(x) if isinstance(x, np.ndarray) else x for name, x in options.items()}


class Process:
    """One of those that share the classes."""

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world, self.group = rank, world, distributed.group.WORLD
        self.start, self.stop = SPLITS[world][rank]

    def own(self, x: torch.Tensor) -> torch.Tensor:
        return x[self.start : self.stop]

    def loss(self, labels: Any, hidden: Any, weight: Any, **options: Any) -> Any:
        """Of this process's weight and bias."""
        given = {"group": self.group, "classes": (self.start, self.stop), **options}
        return lb.linear_crossentropy(labels, hidden, weight, **given)

    def same_on_all(self, x: torch.Tensor) -> None:
        found = [torch.empty_like(x) for _ in range(self.world)]
        distributed.all_gather(found, x.contiguous())
        for other in found:
            torch.testing.assert_close(other, x, rtol=0, atol=0, equal_nan=True)


Check = Callable[[Process], None]


def against_the_reference(p: Process, options: dict[str, Any], axis: int, rows: int | None, dtype: str) -> None:
    arguments, given = problem(), tensors(options)
    bias = given.pop("bias", None)
    leaves = {"hidden": torch.tensor(arguments["hidden"]), "weight": p.own(torch.tensor(arguments["weight"]))}
    leaves |= {} if bias is None else {"bias": p.own(bias)}
    leaves = {name: x.to(getattr(torch, dtype)) for name, x in leaves.items()}
    leaves["weight"] = leaves["weight"] if axis == 0 else leaves["weight"].T.contiguous()
    leaves = {name: x.clone().requires_grad_() for name, x in leaves.items()}
    if rows is not None:
        given["memory"] = rows * -(-C // p.world) * (8 if dtype == "float64" else 4)
    value = p.loss(torch.tensor(arguments["labels"]), **leaves, **given, classes_axis=axis)
    value.sum().backward()
    exact, gradients = expected(arguments, options)
    gradients |= {name: p.own(gradients[name]) for name in ("weight", "bias")}
    gradients["weight"] = gradients["weight"].T if axis else gradients["weight"]
    found = {name: x.grad.double().numpy() for name, x in leaves.items()}
    if p.start == p.stop:
        assert all(found.pop(name).size == 0 for name in ("weight", "bias") if name in found)
    agree((value.detach().numpy(), found), (exact, gradients), dtype)
    p.same_on_all(value.detach())
    p.same_on_all(leaves["hidden"].grad)


def as_one_device(p: Process, function: Callable[..., torch.Tensor], names: tuple[str, ...]) -> None:
    """Two derivatives of `function(loss, **leaves)`, for the leaves of these names, are those of one device."""
    labels = torch.tensor(problem()["labels"])
    whole = {name: torch.tensor(x).double() for name, x in problem().items() if name != "labels"}
    whole |= {"bias": torch.tensor(BIAS).double(), "class_weight": torch.tensor(CLASS_WEIGHT).double()}
    whole |= {"sample_weight": torch.tensor(SAMPLE_WEIGHT).double(), "normalizer": torch.tensor(5.0).double()}
    whole |= {"logit_scale": torch.tensor(0.5).double(), "softcap": torch.tensor(3.0).double()}
    whole |= {"z_loss": torch.tensor(0.1).double(), "label_smoothing": torch.tensor(0.1).double()}
    whole = {name: x for name, x in whole.items() if name in ("hidden", "weight", "bias") or name in names}
    results = []
    for loss in (lb.linear_crossentropy, p.loss):
        own = {name: p.own(x) if loss == p.loss and name in ("weight", "bias") else x for name, x in whole.items()}
        leaves = {name: x.clone().requires_grad_(name in names) for name, x in own.items()}
        wanted = [leaves[name] for name in names]
        first = torch.autograd.grad(function(loss, labels, leaves), wanted, create_graph=True)
        one = torch.stack([(x**2).sum() for name, x in zip(names, first, strict=True) if name not in INPUTS[1:]])
        results.append((first, torch.autograd.grad(one.sum(), wanted)))
    for expected_, found in zip(*results, strict=True):
        for name, right, x in zip(names, expected_, found, strict=True):
            right = p.own(right) if name in ("weight", "bias") else right
            torch.testing.assert_close(x, right, rtol=1e-9, atol=1e-14, msg=lambda words, name=name: f"{name}: {words}")


def mean(loss: Any, labels: Any, leaves: dict[str, Any]) -> torch.Tensor:
    smoothing = {} if "label_smoothing" in leaves else {"label_smoothing": 0.1}
    return loss(labels, **{"z_loss": 0.1, "softcap": 3.0, **smoothing, **leaves}, memory=1)


def losses(loss: Any, labels: Any, leaves: dict[str, Any]) -> torch.Tensor:
    return (loss(labels, **leaves, reduction="none", memory=1) ** 2).sum()


RETURNS = ("loss", "nll", "lse", "entropy", "z_loss", "prediction", "correct")


def what_else_is_returned(p: Process) -> None:
    """Of the same largest logit on two ranks, the first class is the prediction."""
    labels, hidden, weight = (torch.tensor(x) for x in problem().values())
    weight[7:] = weight[:4]
    results = []
    for loss, own in ((lb.linear_crossentropy, lambda x: x), (p.loss, p.own)):
        h, w = hidden.clone().requires_grad_(), own(weight).clone().requires_grad_()
        found = loss(labels, h, w, **tensors(EVERYTHING), returns=RETURNS, memory=40)
        total = sum((x.float() ** 2).sum() for x in found if x.is_floating_point())
        total.backward()
        results.append(([x.detach() for x in found], h.grad, w.grad))
    (right, of_hidden, of_weight), (found, of_h, of_w) = results
    for x, y in zip(found, right, strict=True):
        torch.testing.assert_close(x, y)
        p.same_on_all(x.to(torch.float32))
    torch.testing.assert_close(of_h, of_hidden, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(of_w, p.own(of_weight), rtol=1e-5, atol=1e-5)
    by_label = lb.linear_token_log_probs(labels, hidden, p.own(weight), group=p.group, classes=(p.start, p.stop))
    torch.testing.assert_close(by_label, lb.linear_token_log_probs(labels, hidden, weight))


def hidden_left_to_the_caller(p: Process) -> None:
    """By blocks, and by what autograd differentiates."""
    labels, hidden, weight = (torch.tensor(x) for x in problem().values())
    exact = expected(problem(), {})[1]["hidden"]
    for recorded in (False, True):
        hidden = hidden.detach().requires_grad_()
        ones = torch.ones(N, requires_grad=recorded)
        p.loss(labels, hidden, p.own(weight), sample_weight=ones, reduce_hidden=False).backward()
        distributed.all_reduce(hidden.grad)
        torch.testing.assert_close(hidden.grad.double(), torch.tensor(exact), rtol=0, atol=1e-6)


def in_the_order_of_the_ranks(p: Process) -> None:
    labels, hidden, weight = (torch.tensor(x) for x in problem().values())
    parts = weight.tensor_split(p.world)
    value = lb.linear_crossentropy(labels, hidden, parts[p.rank], group=p.group)
    np.testing.assert_allclose(value, expected(problem(), {})[0], rtol=1e-6)


def rows_that_do_not_count_may_hold_anything(p: Process) -> None:
    arguments, options = problem(), {"mask": MASK, "ignore_class": 4}
    exact = expected(arguments, options)
    left_out = ~MASK | (arguments["labels"] == 4)
    arguments["hidden"][left_out] = np.array([np.nan, np.inf, -np.inf, 1e38, 0, 1], np.float32)
    arguments["labels"][~MASK] = -7
    labels, hidden, weight = (torch.tensor(x) for x in arguments.values())
    hidden.requires_grad_()
    value = p.loss(labels, hidden, p.own(weight), **tensors(options), memory=40)
    value.backward()
    agree((value.detach().numpy(), {"hidden": hidden.grad.numpy()}), exact)
    bias, own = torch.full((C,), 200.0), p.own(weight).clone().requires_grad_()  # e^200 is ∞ in float32
    p.loss(labels, hidden, own, bias=p.own(bias), **tensors(options)).backward()
    right = p.own(torch.tensor(exact[1]["weight"])).float()
    torch.testing.assert_close(own.grad, right, rtol=0, atol=1e-4)


def infinities(p: Process) -> None:
    """A logit that is NaN or ∞ makes its loss NaN on all, wherever it is; −∞ is probability 0, of a label too."""
    hidden, bias = torch.ones(4, 1), torch.zeros(C)
    labels = torch.tensor([0, 5, 9, 10])
    for i in range(C):
        for bad in (torch.nan, torch.inf, -torch.inf):
            bias = torch.zeros(C).index_fill(0, torch.tensor(i), bad)
            weight = torch.zeros(C, 1)
            with torch.no_grad():
                right = lb.linear_crossentropy(labels, hidden, weight, bias=bias, reduction="none")
                found = p.loss(labels, hidden, p.own(weight), bias=p.own(bias), reduction="none")
            torch.testing.assert_close(found, right, equal_nan=True)
    found = p.loss(labels, hidden, p.own(weight), bias=p.own(torch.full((C,), -torch.inf)), reduction="none")
    assert found.isnan().all()


def no_rows(p: Process) -> None:
    weight = p.own(torch.zeros(C, 3)).requires_grad_()
    hidden = torch.zeros(0, 3, requires_grad=True)
    value = p.loss(torch.zeros(0, dtype=torch.int64), hidden, weight)
    value.backward()
    assert value == 0
    assert not weight.grad.any()


def collectives(p: Process) -> None:
    """Two of a number a row for the value, and one of hidden states; with smoothing five more. None in backward."""
    counted, original = [], distributed.all_reduce

    def all_reduce(x: torch.Tensor, *more: Any, **options: Any) -> Any:
        counted.append(x.numel())
        return original(x, *more, **options)

    labels, hidden, weight = (torch.tensor(x) for x in problem().values())
    hidden.requires_grad_()
    distributed.all_reduce = all_reduce
    try:
        for smoothing, right in ((0.0, [2 * N, N, hidden.numel()]), (0.1, [2 * N, *[N] * 6, hidden.numel()])):
            counted.clear()
            p.loss(labels, hidden, p.own(weight), label_smoothing=smoothing).backward()
            assert counted == right, counted
    finally:
        distributed.all_reduce = original


def asked_once_off_the_cpu(p: Process) -> None:
    """There reading what the others say waits for the device. What was not in order is asked again."""
    asked, original = [], distributed.all_gather
    distributed.all_gather = lambda *arguments: (asked.append(1), original(*arguments))
    try:
        for is_cpu, in_order, times in ((True, 1, 2), (False, 1, 1), (False, 0, 2)):
            asked.clear()
            place = types.SimpleNamespace(device=torch.device("cpu"), is_cpu=is_cpu)
            for _ in range(2):
                table = torch_shards.Meeting(p.group, True, place).gathered(in_order, p.rank)
                assert table == [[in_order, rank] for rank in range(p.world)]
            assert len(asked) == times
    finally:
        distributed.all_gather = original


def value_and_grad(p: Process) -> None:
    labels, hidden, weight = (torch.tensor(x) for x in problem().values())
    both = lb.value_and_grad(lb.linear_crossentropy, of=("hidden", "weight"))
    value, gradients = both(labels, hidden, p.own(weight), group=p.group, classes=(p.start, p.stop))
    exact, right = expected(problem(), {})
    np.testing.assert_allclose(value, exact, rtol=1e-6)
    for found, name in zip(gradients, INPUTS, strict=False):
        wanted = torch.tensor(right[name])
        wanted = p.own(wanted) if name == "weight" else wanted
        torch.testing.assert_close(found.double(), wanted, rtol=0, atol=1e-6)


def without_all_logits(p: Process) -> None:
    """Of 2048 rows and 4096 classes they would take 32 MiB."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = [0]

    class Watched(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            found = function(*args, **(kwargs or {}))
            for x in found if isinstance(found, tuple | list) else (found,):
                largest[0] = max(largest[0], x.nbytes if isinstance(x, torch.Tensor) else 0)
            return found

    labels, hidden = torch.zeros(2048, dtype=torch.int64), torch.ones(2048, 8, requires_grad=True)
    weight = torch.ones(4096 // p.world, 8, requires_grad=True)
    modes = torch_ops.dispatch_modes
    torch_ops.dispatch_modes = lambda: 0  # this one only looks
    try:
        with Watched():
            lb.linear_crossentropy(labels, hidden, weight, group=p.group, memory=1 << 20).backward()
    finally:
        torch_ops.dispatch_modes = modes
    assert largest[0] <= 1 << 20


def explained(p: Process) -> None:
    labels, hidden, weight = (torch.tensor(x) for x in problem().values())
    given = {"weight": p.own(weight), "group": p.group, "classes": (p.start, p.stop)}
    found = lb.explain(lb.linear_crossentropy, labels, hidden, **given)
    assert found.path == "blocks of a shard"
    assert found.value.endswith("; maxima and sums over the classes are joined over the devices")
    ones = torch.ones(N, requires_grad=True)
    found = lb.explain(lb.linear_crossentropy, labels, hidden, **given, sample_weight=ones)
    assert found.path == "all logits of a shard"
    assert list(found.why_not) == ["blocks of a shard"]


def placements(p: Process) -> None:
    """A DTensor's say the group and the classes."""
    for axis, sizes, others in ((0, (p.world,), []), (1, (1, p.world), [Replicate()])):
        mesh = init_device_mesh("cpu", sizes)
        arguments = problem()
        labels, hidden, weight = (torch.tensor(x) for x in arguments.values())
        weight = weight if axis == 0 else weight.T.contiguous()
        weight = distribute_tensor(weight, mesh, [*others, Shard(axis)]).requires_grad_()
        bias = distribute_tensor(torch.tensor(BIAS), mesh, [*others, Shard(0)]).requires_grad_()
        exact, gradients = expected(arguments, {"bias": BIAS, **EVERYTHING})
        for laid in (hidden, distribute_tensor(hidden, mesh, [*others, Replicate()])):
            laid = laid.detach().requires_grad_()
            options = {**tensors(EVERYTHING), "bias": bias, "classes_axis": axis}
            assert lb.explain("linear_crossentropy", labels, laid, weight=weight, **options).path == "blocks of a shard"
            weight.grad = bias.grad = None
            value = lb.linear_crossentropy(labels, laid, weight, **options)
            assert type(value) is type(laid)
            value.backward()
            assert weight.grad.placements == weight.placements
            whole = {"hidden": laid.grad, "weight": weight.grad, "bias": bias.grad}
            found = {name: np.asarray(x if type(x) is torch.Tensor else x.full_tensor()) for name, x in whole.items()}
            found["weight"] = found["weight"].T if axis else found["weight"]
            agree((value.item(), found), (exact, gradients))
    for change, words in (
        ({"group": p.group}, "group= and classes= are read from the placements of weight, a DTensor; leave them out"),
        ({"bias": torch.tensor(BIAS)}, "bias is no DTensor, and weight is one; distribute it over the same mesh"),
    ):
        with pytest.raises((TypeError, ValueError), match=words):
            lb.linear_crossentropy(labels, hidden, weight, **{**options, **change})


@functools.cache
def mesh_of(world: int) -> DeviceMesh:
    return init_device_mesh("cpu", (world,))


def whole(x: torch.Tensor) -> torch.Tensor:
    return x.full_tensor() if isinstance(x, DTensor) else x


def rows_of_hidden_states(p: Process, options: dict[str, Any], beside: str) -> None:
    """Split over the processes, beside a weight that each of them has: plain tensors, or DTensors."""
    mesh, arguments, given = mesh_of(p.world), problem(), tensors(options)
    split, on_all = [Shard(0)], [Replicate()]
    laid = {
        "labels": distribute_tensor(torch.tensor(arguments["labels"]), mesh, split if beside == "DTensors" else on_all),
        "hidden": distribute_tensor(torch.tensor(arguments["hidden"]), mesh, split),
        "weight": distribute_tensor(torch.tensor(arguments["weight"]), mesh, on_all),
    }
    bias = given.pop("bias", None)
    laid |= {} if bias is None else {"bias": distribute_tensor(bias, mesh, on_all)}
    if beside == "tensors":
        laid |= {name: x.full_tensor() for name, x in laid.items() if name != "hidden"}
    for name in INPUTS:
        if name in laid:
            laid[name] = laid[name].detach().requires_grad_()
    assert lb.explain("linear_crossentropy", **laid, **given).path == "blocks of a shard"
    value = lb.linear_crossentropy(**laid, **given, memory=2 * C * 4)
    assert value.placements == (Shard(0) if options.get("reduction") == "none" else Replicate(),)
    value.sum().backward()
    assert laid["hidden"].grad.placements == laid["hidden"].placements
    found = {name: laid[name].grad for name in INPUTS if name in laid}
    found = {name: whole(x) for name, x in found.items()}
    exact, gradients = expected(arguments, options)
    agree((value.full_tensor().detach().numpy(), {name: x.numpy() for name, x in found.items()}), (exact, gradients))


def rows_of_sequences(p: Process) -> None:
    """Two derivatives, of all arrays, and what else is returned, are those of one device; on a mesh of two axes too."""
    arguments = problem((2 * p.world, 3))
    labels, hidden, weight = (torch.tensor(x) for x in arguments.values())
    more = {"sample_weight": torch.linspace(0.5, 2, 2 * p.world), "class_weight": torch.tensor(CLASS_WEIGHT)}
    leaves = {"hidden": hidden, "weight": weight, **more}

    def derivatives(**arrays: Any) -> list[torch.Tensor]:
        given = {name: x.detach().requires_grad_() for name, x in arrays.items()}
        loss = lb.linear_crossentropy(labels, **given, reduction="mean_with_sample_weight", z_loss=0.1, memory=88)
        first = torch.autograd.grad(loss, given.values(), create_graph=True)
        size = sum((whole(x) ** 2).sum() for x in first)
        second = torch.autograd.grad(size, [given[name] for name in ("hidden", "weight")])
        return [x.detach() for x in (loss, *first, *second)]

    exact = derivatives(**leaves)
    found = lb.linear_crossentropy(labels, hidden, weight, returns=RETURNS)
    for mesh, placements in (
        (mesh_of(p.world), [Shard(0)]),
        (init_device_mesh("cpu", (1, p.world)), [Replicate(), Shard(0)]),
    ):
        laid = {**leaves, "hidden": distribute_tensor(hidden, mesh, placements)}
        for x, right in zip(derivatives(**laid), exact, strict=True):
            torch.testing.assert_close(whole(x), right, rtol=1e-5, atol=1e-6)
        of_rows = lb.linear_crossentropy(labels, laid["hidden"], weight, returns=RETURNS)
        for x, right in zip(of_rows, found, strict=True):
            torch.testing.assert_close(x.full_tensor(), right)


def rows_of_a_student(p: Process) -> None:
    g = torch.Generator().manual_seed(0)
    shapes = {"teacher_hidden": (5, 4), "teacher_weight": (C, 4), "student_hidden": (5, 3), "student_weight": (C, 3)}
    arrays = {name: torch.randn(shape, generator=g) for name, shape in shapes.items()}
    laid = {
        name: distribute_tensor(x, mesh_of(p.world), [Shard(0)]) if "hidden" in name else x
        for name, x in arrays.items()
    }
    names = ("student_hidden", "student_weight")
    for kind in ("reverse", "jensen_shannon"):
        results = []
        for each in (arrays, laid):
            each = {name: x.detach().requires_grad_(name in names) for name, x in each.items()}
            loss = lb.linear_distillation(**each, kind=kind, memory=2 * C * 8)
            found = (loss, *torch.autograd.grad(loss, [each[name] for name in names]))
            results.append([whole(x) for x in found])
        for x, y in zip(*results, strict=True):
            torch.testing.assert_close(x, y)


def rows_are_joined_by_one_sum(p: Process) -> None:
    """A number of the losses, and in the backward pass one gradient each of weight and bias."""
    labels, hidden, weight = (torch.tensor(x) for x in problem().values())
    hidden = distribute_tensor(hidden, mesh_of(p.world), [Shard(0)]).requires_grad_()
    weight, bias = (
        distribute_tensor(x, mesh_of(p.world), [Replicate()]).requires_grad_() for x in (weight, torch.tensor(BIAS))
    )
    counted, original = [], collectives_of_dtensor.all_reduce

    def all_reduce(x: torch.Tensor, *more: Any, **options: Any) -> Any:
        counted.append(x.numel())
        return original(x, *more, **options)

    collectives_of_dtensor.all_reduce = all_reduce
    try:
        loss = lb.linear_crossentropy(labels, hidden, weight, bias=bias)
        assert counted == [1], counted
        loss.backward()
    finally:
        collectives_of_dtensor.all_reduce = original
    assert sorted(counted) == [1, bias.numel(), weight.numel()], counted
    assert weight.grad.placements == bias.grad.placements == (Replicate(),)


# Of rank 0 or of all: what is changed; what the error says there, and what on the other ranks.
DIFFERS = "; all but weight, bias and classes= are alike on every rank"
ONE_REFUSED = r"rank 0 of the group refused the arguments of this call; the error there says why"
REFUSED: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "overlap": ("one", {"classes": (0, 5), "weight": torch.zeros(5, 6)}, "class 4 is on two ranks of the group: rank 0 "
                r"\(0, 5\), rank 1 \(4, 11\); pass classes= that meet without gap and overlap, from 0", ""),
    "gap": ("one", {"classes": (0, 3), "weight": torch.zeros(3, 6)}, r"class 3 is on no rank of the group", ""),
    "not from 0": ("one", {"classes": (1, 4), "weight": torch.zeros(3, 6)}, "class 0 is on no rank of the group", ""),
    "no fit": ("one", {"classes": (0, 5)}, r"classes is \(0, 5\) and weight has shape \(4, 6\); give", ONE_REFUSED),
    "no pair": ("one", {"classes": 4}, r"classes is 4; pass \(start, stop\)", ONE_REFUSED),
    "not on all": ("one", {"classes": None}, "rank 0 of the group passed no classes=, and others did", ""),
    "backwards": ("one", {"classes": (4, 0)}, r"classes is \(4, 0\); pass .* 0 ≤ start ≤ stop", ONE_REFUSED),
    "label": ("all", {"labels": torch.full((N,), C)}, "label 11 at index 0 is out of range", ""),
    "labels": ("one", {"labels": torch.zeros(N, dtype=torch.int64)}, f"the labels: rank 1 .*{DIFFERS}", ""),
    "rows": ("one", {"labels": torch.arange(2), "hidden": torch.zeros(2, 6)}, "the shape of hidden: rank 1", ""),
    "options": ("one", {"z_loss": 0.5}, f"z_loss: rank 1 of the group differs from rank 0{DIFFERS}", ""),
    "reduction": ("one", {"reduction": "none"}, "reduction: rank 1 of the group differs", ""),
    "memory": ("one", {"memory": 17}, "memory: rank 1 of the group differs", ""),
    "gradient": ("one", {"weight": torch.zeros(4, 6, requires_grad=True)}, "what needs a gradient: rank 1", ""),
    "reduce_hidden": ("one", {"reduce_hidden": False}, "what needs a gradient: rank 1", ""),
    "no switch": ("all", {"reduce_hidden": 1.0}, "reduce_hidden is 1.0; pass True or False", ""),
    "class weights of the shard": ("all", {"class_weight": torch.ones(4)}, r"class_weight has shape \(4,\)", ""),
    "one's bias": ("one", {"bias": torch.zeros(C)}, r"bias has shape \(11,\) and weight \(4, 6\)", ONE_REFUSED),
    "returns": ("one", {"returns": ("loss", "lse")}, "returns: rank 1 of the group differs", ""),
    "no name": ("all", {"returns": "lse"}, 'returns is .lse.; pass "loss", or a tuple of names', ""),
    "mean": ("one", {"reduction": "mean_with_sample_weight"}, "reduction: rank 1 of the group differs", ""),
    "weights": ("one", {"sample_weight": torch.ones(N)}, "sample_weight: rank 1 of the group differs", ""),
    "the other axis": ("all", {"classes_axis": 1}, r"give it \d along axis 1", ""),
    "no group": ("all", {"group": "model"}, "group is 'model'; pass a torch.distributed.ProcessGroup", ""),
    "classes alone": ("all", {"group": None}, "group is None; pass a torch.distributed.ProcessGroup", ""),
}  # fmt: skip


def refused(p: Process, name: str) -> None:
    """One line on every rank, and nobody waits."""
    who, change, words, elsewhere = REFUSED[name]
    labels, hidden, weight = (torch.tensor(x) for x in problem().values())
    given = {"labels": labels, "hidden": hidden, "weight": p.own(weight)}
    given |= change if who == "all" or p.rank == 0 else {}
    with pytest.raises((TypeError, ValueError), match=elsewhere if elsewhere and p.rank else words) as raised:
        p.loss(**given)
    assert "\n" not in str(raised.value)


def transformed(p: Process) -> None:
    """What is not computed says so."""
    from torch.autograd import forward_ad

    labels, hidden, weight = (torch.tensor(x) for x in problem().values())
    loss = functools.partial(p.loss, labels, weight=p.own(weight))
    with pytest.raises(NotImplementedError, match=r"group= has neither torch\.func nor forward mode; use backward"):
        torch.func.grad(lambda h: loss(hidden=h))(hidden)
    with pytest.raises(NotImplementedError, match=r"group= has neither torch\.func nor"), forward_ad.dual_level():
        loss(hidden=forward_ad.make_dual(hidden, hidden))
    hidden.requires_grad_()
    value = loss(hidden=hidden, reduction="none")
    with pytest.raises(NotImplementedError, match="many gradients at once are not computed over a group"):
        torch.autograd.grad(value, hidden, torch.eye(N), is_grads_batched=True)
    under_compile = r"group= is not compiled: under compile call torch\.compiler|has these compilers: none"
    with pytest.raises((NotImplementedError, ValueError), match=under_compile):
        lb.explain(lb.linear_crossentropy, labels, hidden, weight=p.own(weight), group=p.group, under="compile")
    disabled = torch.compiler.disable(p.loss)

    def step(hidden: torch.Tensor) -> torch.Tensor:
        return 2 * disabled(labels, 2 * hidden, p.own(weight))

    found, right = torch.compile(step, backend="eager")(hidden), 2 * p.loss(labels, 2 * hidden, p.own(weight))
    torch.testing.assert_close(torch.autograd.grad(found, hidden), torch.autograd.grad(right, hidden))


def checks(world: int) -> dict[str, Check]:
    found: dict[str, Check] = {}
    for name, options in OPTIONS.items():
        for axis, rows in ((0, 5), (1, None)):
            found[f"{name}, axis {axis}, {rows} rows"] = functools.partial(
                against_the_reference, options=options, axis=axis, rows=rows, dtype="float32"
            )
    for dtype in ("float64", "float16", "bfloat16"):
        for name in ("plain", "all, mean", "none"):
            found[f"{name}, {dtype}"] = functools.partial(
                against_the_reference, options=OPTIONS[name], axis=0, rows=4, dtype=dtype
            )
    for name, options in OPTIONS.items():
        for beside in ("tensors", "DTensors"):
            found[f"rows, {name}, {beside}"] = functools.partial(rows_of_hidden_states, options=options, beside=beside)
    options = ("sample_weight", "normalizer", "class_weight", "logit_scale", "softcap", "z_loss", "label_smoothing")
    for name, function, names in (
        ("second derivatives", mean, INPUTS),
        ("second derivatives of losses", losses, INPUTS),
        ("options", mean, ("hidden", "weight", *options)),
    ):
        found[name] = functools.partial(as_one_device, function=function, names=names)
    more = (
        what_else_is_returned, hidden_left_to_the_caller, in_the_order_of_the_ranks, infinities,
        rows_that_do_not_count_may_hold_anything, rows_of_sequences, rows_of_a_student, rows_are_joined_by_one_sum,
        no_rows, collectives, asked_once_off_the_cpu, value_and_grad, without_all_logits, explained, placements,
    )  # fmt: skip
    found |= {function.__name__: function for function in more}
    if world == 2:
        found |= {f"refused: {name}": functools.partial(refused, name=name) for name in REFUSED}
        found["transformed"] = transformed
    return found


def work(rank: int, world: int, folder: str) -> None:
    """One process: writes what failed, by the name of the check."""
    torch.set_num_threads(1)
    wait = timedelta(seconds=60)
    meet = f"file://{folder}/meet"
    distributed.init_process_group("gloo", init_method=meet, rank=rank, world_size=world, timeout=wait)
    faults = {}
    for name, check in checks(world).items():
        try:
            check(Process(rank, world))
        except BaseException as error:  # what pytest.raises fails with is no Exception
            faults[name] = f"{type(error).__name__}: {error}"
            if "timed out" in str(error).lower():
                break
    else:
        distributed.barrier()  # no process leaves while another still speaks to it
    Path(folder, f"{rank}.json").write_text(json.dumps(faults))
    distributed.destroy_process_group()


@pytest.mark.parametrize("world", SPLITS)
def test_classes_split_over_processes(world, tmp_path) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    processes = torch.multiprocessing.spawn(work, (world, str(tmp_path)), world, join=False)
    try:
        while not processes.join(timeout=TIMEOUT):
            pass
    finally:
        for process in processes.processes:
            process.kill()
    for rank in range(world):
        assert not json.loads(Path(tmp_path, f"{rank}.json").read_text())
