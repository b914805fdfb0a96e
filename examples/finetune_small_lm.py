"""A small language model is fine-tuned in PyTorch without its logits: `python examples/finetune_small_lm.py`.

The vocabulary has 50 257 tokens, as GPT-2's. A transformer of two layers first learns Python's documentation. Then it
is fine-tuned on the descriptions of scikit-learn's data sets, twice from the same weights: with all logits and
`F.cross_entropy`, and by `causal_lm_loss(hidden=, weight=)`, which never holds them. The losses of every step are
compared, and the peak memory of a step. Nothing is downloaded. The tokenizer is a stand-in: a token is a word or a
sign, and its id is drawn at random, so that labels lie all over the vocabulary as those of a real one do.
Needs Linux, which tells a process's peak memory; pip install 'lossbridge[torch]' scikit-learn matplotlib

Below: the text, the model, the two losses, the process of one of them, the story, the picture.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from matplotlib import rc_context
from pictures import BLUE, ORANGE, STYLE, plt, save
from torch import Tensor, nn
from torch.nn import functional as F

from lossbridge.torch import causal_lm_loss

VOCABULARY, HIDDEN, LENGTH = 50257, 64, 128


def texts() -> tuple[Tensor, Tensor]:
    """Token ids of Python's documentation, and of scikit-learn's descriptions."""
    from pydoc_data.topics import topics

    from sklearn import datasets

    names = ("iris", "wine", "breast_cancer", "diabetes", "digits", "linnerud")
    descriptions = [getattr(datasets, f"load_{name}")().DESCR for name in names]
    first, second = (re.findall(r"\w+|[^\w\s]", " ".join(parts)) for parts in (topics.values(), descriptions))
    words = sorted({*first, *second})
    id_of = dict(zip(words, np.random.default_rng(0).permutation(VOCABULARY), strict=False))
    return torch.tensor([id_of[word] for word in first]), torch.tensor([id_of[word] for word in second])


class Model(nn.Module):
    """Predicts the next token. The head's weight is the table of embeddings, as in GPT-2."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(VOCABULARY, HIDDEN), nn.Embedding(LENGTH, HIDDEN)
        layer = nn.TransformerEncoderLayer(HIDDEN, 4, 4 * HIDDEN, dropout=0.0, batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, 2, nn.LayerNorm(HIDDEN), enable_nested_tensor=False)
        nn.init.normal_(self.tokens.weight, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        """Hidden states (N, T, H) of token ids (N, T)."""
        mask = nn.Transformer.generate_square_subsequent_mask(LENGTH)
        return self.body(self.tokens(ids) + self.places.weight, mask=mask, is_causal=True)


# The two losses: the mean over the tokens that another one follows.


def of_logits(model: Model, ids: Tensor) -> Tensor:
    logits = model(ids)[:, :-1] @ model.tokens.weight.T
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def without_logits(model: Model, ids: Tensor) -> Tensor:
    return causal_lm_loss(labels=ids, hidden=model(ids), weight=model.tokens.weight)


LOSSES = {"with logits": of_logits, "without": without_logits}


def fit(model: Model, loss_of, text: Tensor, steps: int) -> list[float]:
    """The loss of each step, on two sequences each."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    generator, losses = torch.Generator().manual_seed(0), []
    for _ in range(steps):
        starts = torch.randint(len(text) - LENGTH, (2, 1), generator=generator)
        optimizer.zero_grad()
        loss = loss_of(model, text[starts + torch.arange(LENGTH)])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


# A process for each loss: the memory of one does not show in the other.


def resident(field: str) -> float:
    """Of this process, in MiB: what it holds now (VmRSS), or the most that it ever held (VmHWM)."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found, field
    return int(found[1]) / 1024


def peaks(model: Model, loss_of, text: Tensor, sequences: list[int]) -> list[float]:
    """What a step, the loss and its gradients, takes at its peak beyond what the process held before all, in MiB.

    From the shortest step to the longest: the most so far is then that of the last.
    """
    before, found = resident("VmRSS"), []
    for count in sequences:
        loss_of(model, text[: count * LENGTH].view(count, LENGTH)).backward()
        model.zero_grad()
        found.append(resident("VmHWM") - before)
    return found


def child(way: str, weights: str, steps: str, *sequences: str) -> None:
    model, (_, text) = Model(), texts()
    model.load_state_dict(torch.load(weights))
    memory = peaks(model, LOSSES[way], text, [int(count) for count in sequences])
    print(json.dumps({"memory": memory, "losses": fit(model, LOSSES[way], text, int(steps))}))


def main(out: Path, quick: bool) -> int:
    """Exit status: 0 if both learn the same and the logits take more memory, 1 if not."""
    before, steps, sequences = (3, 5, [1, 2]) if quick else (30, 20, [2, 4, 8, 16])
    torch.manual_seed(0)
    model, (documentation, descriptions) = Model(), texts()
    losses = fit(model, without_logits, documentation, before)
    print(f"learnt {len(documentation)} tokens of Python's documentation in {before} steps")
    print(f"  loss {losses[0]:.6f} at the first step, {losses[-1]:.6f} at the last")
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        torch.save(model.state_dict(), Path(folder) / "weights.pt")
        for way in LOSSES:
            command = [sys.executable, __file__, "child", way, f"{folder}/weights.pt", str(steps), *map(str, sequences)]
            found[way] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    print(f"fine-tuned on {len(descriptions)} tokens of scikit-learn's descriptions in {steps} steps")
    for way, each in found.items():
        print(f"  {way:11}  loss {each['losses'][0]:.6f} at the first step, {each['losses'][-1]:.6f} at the last")
    one, other = (np.array(found[way]["losses"]) for way in LOSSES)
    difference = abs(one / other - 1)
    print(f"  largest relative difference of a step's loss: {difference.max():.0e}")
    print("peak memory of a step, in MiB")
    for count, *pair in zip(sequences, *(found[way]["memory"] for way in LOSSES), strict=True):
        print(f"  {count * LENGTH:5} tokens  {pair[0]:6.0f} with logits  {pair[1]:6.0f} without")
    draw(found, difference, [count * LENGTH for count in sequences], out)
    print(f"picture: {out}")
    return int(difference.max() > 1e-3 or found["with logits"]["memory"][-1] < found["without"]["memory"][-1])


def draw(found: dict, difference: np.ndarray, tokens: list[int], path: Path) -> None:
    with rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
        for (way, each), colour, line in zip(found.items(), (ORANGE, BLUE), ("-", "--"), strict=True):
            left.plot(tokens, each["memory"], line, marker="o", color=colour, label=way)
            right.plot(range(1, len(each["losses"]) + 1), each["losses"], line, color=colour, label=way, linewidth=2)
        left.set(xlabel="tokens in a step", ylabel="peak memory of the step (MiB)", ylim=(0, None), xticks=tokens)
        left.set_title("What a step takes")
        right.set(xlabel="step", ylabel="loss (nats)")
        right.set_title(f"The same curve; relative difference at most {difference.max():.0e}")
        for axes in left, right:
            axes.legend()
        save(figure, path)


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(*sys.argv[2:])
        sys.exit()
    parser = argparse.ArgumentParser(description="Fine-tunes a small language model with its logits, and without.")
    parser.add_argument("--out", type=Path, default="finetune_small_lm.png", help="The picture to write.")
    parser.add_argument("--quick", action="store_true", help="A few steps of a few tokens.")
    given = parser.parse_args()
    sys.exit(main(given.out, given.quick))
