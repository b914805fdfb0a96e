"""A language model's head in PyTorch without its logits, in micro-batches: their gradients add up to the batch's.

The micro-batches hold different numbers of tokens that count. With `normalizer`, the count of the whole batch, every
token has the same weight; a mean of each micro-batch, averaged, gives the tokens of sparse ones more.

    python examples/linear_torch.py
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import lossbridge as lb

TOKENS, HIDDEN, SEQUENCES, LENGTH, PADDING = 1000, 32, 8, 24, -100


class Model(nn.Module):
    """Predicts the next token from the current one."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Embedding(TOKENS, HIDDEN), nn.Linear(HIDDEN, HIDDEN), nn.GELU())
        self.head = nn.Linear(HIDDEN, TOKENS)

    def loss(self, ids: Tensor, labels: Tensor, normalizer: Tensor | None = None) -> Tensor:
        """The head is not called: the loss takes its weights."""
        return lb.linear_crossentropy(
            labels,
            self.body(ids),
            self.head.weight,
            bias=self.head.bias,
            ignore_class=PADDING,
            normalizer=normalizer,
        )


def batch(seed: int) -> tuple[Tensor, Tensor]:
    """Token ids (N, T), and the labels to predict, padded with −100 after each sequence's end."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, LENGTH + 1, (SEQUENCES, 1), generator=generator)
    ids = torch.randint(40, (SEQUENCES, LENGTH), generator=generator)
    labels = (7 * ids + 3) % TOKENS
    return ids, labels.masked_fill(torch.arange(LENGTH) >= lengths, PADDING)


def accumulate(model: Model, ids: Tensor, labels: Tensor, parts: int, *, by_count: bool = True) -> float:
    """The loss of a batch in so many parts, whose gradients are added up in the parameters."""
    total, loss = (labels != PADDING).sum(), 0.0
    for some_ids, some_labels in zip(ids.chunk(parts), labels.chunk(parts), strict=True):
        part = model.loss(some_ids, some_labels, total) if by_count else model.loss(some_ids, some_labels) / parts
        part.backward()
        loss += float(part.detach())
    return loss


def gradients(model: Model, *arguments, **options) -> list[Tensor]:
    model.zero_grad()
    accumulate(model, *arguments, **options)
    return [parameter.grad.clone() for parameter in model.parameters()]


def main() -> None:
    torch.manual_seed(0)
    model = Model()
    whole = gradients(model, *batch(0), 1)
    for words, by_count in (("normalizer = tokens of the batch", True), ("mean of means", False)):
        pairs = zip(gradients(model, *batch(0), 4, by_count=by_count), whole, strict=True)
        difference = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
        print(f"{words:33} largest relative difference of a gradient to the whole batch's: {difference:.1e}")

    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(1, 41):
        optimizer.zero_grad()
        loss = accumulate(model, *batch(step), 4)
        optimizer.step()
        if step in (1, 40):
            print(f"step {step:2}: loss {loss:.4f}")


if __name__ == "__main__":
    main()
