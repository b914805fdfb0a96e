"""Hugging Face's Trainer without the logits of a language model: the same training as with them.

A small Llama, made from its configuration, is trained twice from the same weights: by Trainer as it is, and by one
whose `compute_loss` takes the hidden states and the head's weight. Gradients are accumulated, and the batches hold
different numbers of tokens, so that `num_items_in_batch` matters.

Needs: pip install transformers accelerate; or run `nox -s transformers`. Nothing is downloaded.

    python examples/linear_trainer.py
"""

from __future__ import annotations

import sys
import tempfile
from importlib.util import find_spec

if find_spec("transformers") is None or find_spec("accelerate") is None:
    print("transformers or accelerate is not installed: pip install transformers accelerate", file=sys.stderr)
    sys.exit(2)

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, Trainer, TrainingArguments, set_seed

from lossbridge.torch import causal_lm_loss

TOKENS, SEQUENCES, LENGTH, PADDING, STEPS = 500, 64, 16, -100, 10


class WithoutLogits(Trainer):
    """For one process. In several, call the wrapped model, with logits_to_keep=1 and output_hidden_states=True, and
    multiply the loss by their number, as Trainer's own compute_loss does."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs["labels"]
        outputs = model.model(**{name: x for name, x in inputs.items() if name != "labels"})
        hidden, weight = outputs.last_hidden_state, model.lm_head.weight
        loss = causal_lm_loss(labels=labels, hidden=hidden, weight=weight, num_items_in_batch=num_items_in_batch)
        return (loss, outputs) if return_outputs else loss


def data() -> list[dict[str, torch.Tensor]]:
    """Sequences in which each token follows from the one before; labels of −100 after their end."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for _ in range(SEQUENCES):
        ids = [int(torch.randint(40, (), generator=generator))]
        while len(ids) < LENGTH:
            ids.append((3 * ids[-1] + 1) % 40)
        ids, length = torch.tensor(ids), int(torch.randint(2, LENGTH + 1, (), generator=generator))
        rows.append({"input_ids": ids, "labels": ids.where(torch.arange(LENGTH) < length, PADDING)})
    return rows


def losses(kind: type[Trainer]) -> list[float]:
    """Those that the trainer reports, a step each."""
    set_seed(0)
    config = LlamaConfig(
        vocab_size=TOKENS,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=STEPS,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            learning_rate=0.01,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        )
        trainer = kind(LlamaForCausalLM(config), arguments, train_dataset=data())
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def main() -> int:
    """Exit status: 0 if both learn the same, 1 if not."""
    found = {"without logits": losses(WithoutLogits), "with logits": losses(Trainer)}
    for words, each in found.items():
        print(f"{words:14}: loss {each[0]:.4f} at the first step, {each[-1]:.4f} at the last")
    difference = max(abs(a - b) / b for a, b in zip(*found.values(), strict=True))
    print(f"largest relative difference of a step's loss: {difference:.1e}")
    return int(len(found["with logits"]) != STEPS or difference > 1e-3)


if __name__ == "__main__":
    sys.exit(main())
