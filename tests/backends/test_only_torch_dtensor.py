"""Logits laid over two processes as DTensors: values and gradients are those of one process."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path

import pytest
import torch
from test_paths import FORMS, arrays
from torch import distributed
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor, init_device_mesh

import lossbridge as lb
import lossbridge.torch as lt

WORLD, TIMEOUT = 2, 600
SIZE = 5, 7  # shards of unequal size along both axes
PLACEMENTS = {"replicated": Replicate(), "batch": Shard(0), "classes": Shard(1)}
LABELS = "sparse_categorical_crossentropy, labels, logits"
CLASS_WEIGHT = [1.0, 2.0, 0.5, 1.0, 3.0, 0.0, 1.0]
OPTIONS = {
    "mean": {},
    "weighted": {"sample_weight": torch.arange(5.0), "mask": torch.arange(5) != 2, "reduction": "none"},
}
OF_LABELS = {
    "normalizer": {"sample_weight": torch.arange(5.0), "normalizer": torch.tensor(3.0)},
    "by weight": {"sample_weight": [3.0, 0.0, 1.0, 2.0, 1.0], "reduction": "mean_with_sample_weight"},
    "ignored": {"ignore_class": 3},
    "class weights": {"class_weight": CLASS_WEIGHT, "reduction": "mean_with_sample_weight", "label_smoothing": 0.1},
}
CASES = [(form, options) for form in FORMS for options in OPTIONS] + [(LABELS, options) for options in OF_LABELS]


def arguments(form, options: str) -> tuple[torch.Tensor, torch.Tensor, dict]:
    target, pred = (torch.tensor(x) for x in arrays(form, *SIZE, "float32"))
    given = {**OPTIONS, **OF_LABELS}[options]
    if form.loss == "log_loss" and form.target == "outcomes":  # one weight an entry, or a row
        given = {
            name: torch.as_tensor(x)[:, None] if name in ("mask", "sample_weight") else x for name, x in given.items()
        }
    return target, pred, given


def check(mesh, form, options: str, placement, beside: str) -> None:
    """`beside`: whether the target comes as a plain tensor or as a DTensor."""
    target, pred, given = arguments(form, options)
    loss = functools.partial(getattr(lb, form.loss), **form.options, **given)
    dense = target.is_floating_point()
    leaves = [pred.clone().requires_grad_(), target.clone().requires_grad_(dense)]
    value = loss(leaves[1], leaves[0])
    expected = torch.autograd.grad(value.sum(), leaves[: 1 + dense])
    laid = distribute_tensor(pred, mesh, [placement]).requires_grad_()
    if beside == "DTensor":
        of_target = Replicate() if placement.is_shard(target.ndim) else placement
        target = distribute_tensor(target, mesh, [of_target])
    target.requires_grad_(dense)
    got = loss(target, laid)
    gradients = torch.autograd.grad(got.sum(), [laid, target][: 1 + dense])
    assert gradients[0].placements == laid.placements
    assert not any(x.is_partial() for x in got.placements)
    if value.ndim == 0:
        torch.testing.assert_close(got.item(), value.item(), rtol=1.3e-6, atol=1e-5)
    for x, right in zip((got.detach(), *gradients), (value.detach(), *expected), strict=True):
        torch.testing.assert_close(x.full_tensor() if isinstance(x, DTensor) else x, right)


def check_labels_out_of_range(mesh) -> None:
    """An error where they can be read, else NaN."""
    labels, logits = torch.tensor([0, 9]), distribute_tensor(torch.zeros(2, 3), mesh, [Shard(1)])
    loss = functools.partial(lb.sparse_categorical_crossentropy, from_logits=True, reduction="none")
    with pytest.raises(ValueError, match="label 9 at index 1 is out of range"):
        loss(labels, logits)
    losses = loss(distribute_tensor(labels, mesh, [Replicate()]), logits).full_tensor()
    assert losses.isnan().tolist() == [False, True]


def check_beside_plain_predictions(mesh) -> None:
    labels = distribute_tensor(torch.tensor([0, 1]), mesh, [Replicate()])
    with pytest.raises(TypeError, match=r"^y_true is a DTensor beside predictions that are none; pass its full_tensor"):
        lb.sparse_categorical_crossentropy(labels, torch.zeros(2, 3), from_logits=True)


def check_modules(mesh) -> None:
    """Of torch.nn's names: with a weight, probabilities of which are read, and a shape that weights broadcast to."""
    z, labels, t = torch.randn(5, 7, generator=torch.manual_seed(0)), torch.arange(5), torch.full((5, 7), 1 / 7)
    weight = torch.tensor(CLASS_WEIGHT)
    for module, target, pred in (
        (lt.CrossEntropyLoss(weight, label_smoothing=0.1), labels, z),
        (lt.CrossEntropyLoss(), t, z),
        (lt.NLLLoss(weight, ignore_index=2), labels, z.log_softmax(1)),
        (lt.KLDivLoss(reduction="batchmean"), t, z.log_softmax(1)),
        (lt.BCELoss(weight), t, z.sigmoid()),
        (lt.BCEWithLogitsLoss(pos_weight=weight), t, z),
    ):
        for placement in PLACEMENTS.values():
            laid = distribute_tensor(pred, mesh, [placement]).requires_grad_()
            pred.requires_grad_()
            got, expected = module(laid, target), module(pred, target)
            torch.testing.assert_close(got.item(), expected.item(), rtol=1e-5, atol=1e-5)
            got, expected = torch.autograd.grad(got, laid)[0], torch.autograd.grad(expected, pred)[0]
            assert got.placements == laid.placements
            torch.testing.assert_close(got.full_tensor(), expected)


def work(rank: int, folder: str) -> None:
    """One process: writes what failed, by the name of the case."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD)
    mesh = init_device_mesh("cpu", (WORLD,))
    checks = {
        "labels out of range": check_labels_out_of_range,
        "plain predictions": check_beside_plain_predictions,
        "modules": check_modules,
    }
    for form, options in CASES:
        for placed, placement in PLACEMENTS.items():
            for beside in ("tensor", "DTensor"):
                checks[f"{form}, {options}, {placed}, {beside}"] = functools.partial(
                    check, form=FORMS[form], options=options, placement=placement, beside=beside
                )
    faults = {}
    for name, run in checks.items():
        try:
            run(mesh)
        except Exception as error:
            faults[name] = f"{type(error).__name__}: {error}"
    Path(folder, f"{rank}.json").write_text(json.dumps([list(checks), faults]))
    distributed.barrier()  # no process leaves while another still speaks to it
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> list:
    """Of each process: the names of its checks, and what failed."""
    folder = str(tmp_path_factory.mktemp("processes"))
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    processes = torch.multiprocessing.spawn(work, (folder,), WORLD, join=False)
    try:
        while not processes.join(timeout=TIMEOUT):
            pass
    finally:
        for process in processes.processes:
            process.kill()
    return [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(WORLD)]


def test_every_loss_laid_over_two_processes(results) -> None:
    for names, faults in results:
        assert len(names) == 3 + 6 * len(CASES)
        assert not faults
