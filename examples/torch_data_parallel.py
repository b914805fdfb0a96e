"""DistributedDataParallel on padded sequences: the step of two processes equals the step of one.

The processes hold sequences of different lengths, and so different numbers of tokens. A mean in each process, averaged
by DDP, gives the tokens of short batches more weight; with `normalizer` every token has the same weight.

    torchrun --standalone --nproc-per-node 2 examples/torch_data_parallel.py
"""

from __future__ import annotations

import copy

import torch
import torch.distributed as dist
from torch import nn

import lossbridge.torch

TOKENS, PADDING = 11, -100


def batch(lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids (N, T), and the labels to predict, padded with −100 after each sequence's end."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(TOKENS, (len(lengths), max(lengths)), generator=generator)
    labels = torch.randint(TOKENS, ids.shape, generator=generator)
    labels[torch.arange(max(lengths)) >= torch.tensor(lengths)[:, None]] = PADDING
    return ids, labels


def main() -> None:
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(TOKENS, 8), nn.Linear(8, TOKENS)).double()
    loss = lossbridge.torch.SparseCategoricalCrossentropy(from_logits=True, ignore_class=PADDING)

    all_ids, all_labels = batch([2, 3, 9, 1, 12, 10, 12, 8])  # what one process would see
    ids, labels = all_ids.chunk(world)[rank], all_labels.chunk(world)[rank]

    def gradients_of_one_process() -> list[torch.Tensor]:
        alone = copy.deepcopy(model)
        loss(all_labels, alone(all_ids)).backward()
        return [parameter.grad for parameter in alone.parameters()]

    def gradients(normalizer: torch.Tensor | None) -> list[torch.Tensor]:
        parallel = nn.parallel.DistributedDataParallel(copy.deepcopy(model))
        loss(labels, parallel(ids), normalizer=normalizer).backward()
        return [parameter.grad for parameter in parallel.parameters()]

    # DDP averages the gradients, hence the division by the number of processes.
    count = (labels != PADDING).sum()
    dist.all_reduce(count)
    right, wrong = gradients(count / world), gradients(None)
    if rank == 0:
        for words, found in (("normalizer = tokens of all / processes", right), ("mean of means", wrong)):
            pairs = zip(found, gradients_of_one_process(), strict=True)
            difference = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
            print(f"{words:40} largest relative difference of a gradient to one process: {difference:.1e}")
    dist.barrier()  # no process leaves while another still speaks to it
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
