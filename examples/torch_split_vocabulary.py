"""A head whose vocabulary is split over two processes: its loss and gradients equal those of one process.

Each process holds the weight of its own classes, here of unequal numbers, and no process holds a row of all logits. It
gets a few numbers a token of the others and, in training, the sum of the gradients for hidden states.

    torchrun --standalone --nproc-per-node 2 examples/torch_split_vocabulary.py
"""

from __future__ import annotations

import torch
import torch.distributed as dist

import lossbridge as lb

TOKENS, UNITS, CLASSES, PADDING = 40, 16, 1001, -100


def main() -> None:
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    generator = torch.Generator().manual_seed(0)  # the same hidden states and labels in every process
    hidden = torch.randn(TOKENS, UNITS, generator=generator, dtype=torch.float64).requires_grad_()
    table = torch.randn(CLASSES, UNITS, generator=generator, dtype=torch.float64)
    labels = torch.randint(CLASSES, (TOKENS,), generator=generator)
    labels[::7] = PADDING
    options = {"ignore_class": PADDING, "label_smoothing": 0.1, "softcap": 30.0, "z_loss": 1e-4}

    start = rank * CLASSES // world
    stop = (rank + 1) * CLASSES // world
    shard = table[start:stop].clone().requires_grad_()
    loss = lb.linear_crossentropy(labels, hidden, shard, group=dist.group.WORLD, classes=(start, stop), **options)
    of_hidden, of_shard = torch.autograd.grad(loss, (hidden, shard))

    whole = table.requires_grad_()
    alone = lb.linear_crossentropy(labels, hidden, whole, **options)
    alone_of_hidden, of_whole = torch.autograd.grad(alone, (hidden, whole))
    for words, found, expected in (
        ("loss", loss, alone),
        ("gradient for hidden states", of_hidden, alone_of_hidden),
        (f"gradient for classes {start} to {stop - 1}", of_shard, of_whole[start:stop]),
    ):
        difference = float((found - expected).abs().max() / expected.abs().max())
        print(f"rank {rank}: {words:32} relative difference to one process: {difference:.1e}")
    dist.barrier()  # no process leaves while another still speaks to it
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
