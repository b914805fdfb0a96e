"""The linear loss in blocks of rows: a resolved call, what a block of it is, and the way by all logits. No framework.

z = W h + b of N rows and C classes is the largest array of a language model's training step, and nobody needs it: only
the loss and the gradients G_h = S W, G_W = Sᵀ h and G_b = Σ S of its slopes S = d loss / dz. A block of rows goes from
hidden states to logits, by a loss of `lossbridge.spec` to its value and slopes, and on to its share of the gradients;
then its memory is used for the next. So the linear loss has no formula of its own, and every option of the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from lossbridge.frameworks.framework import Choice, Path
from lossbridge.frameworks.shards import Shard
from lossbridge.maths import softmax
from lossbridge.maths.ops import Array, Rule
from lossbridge.reduction import by_weight, denominator, has_mass, reduce
from lossbridge.spec import LOSSES, MEANS, PER_SAMPLE, Request

OF = LOSSES["sparse_categorical_crossentropy"]
# Numbers of a row that stand beside its loss: their rules, over the scaled and capped logits.
BESIDE: Mapping[str, Rule] = {
    "nll": softmax.LABELS,
    "lse": softmax.LOG_SUM_EXP,
    "entropy": softmax.ENTROPY,
    "prediction": softmax.PREDICTION,
}

# Logits of a block, where `memory` does not say: below so many rows matrix products are slow, and more bytes gain
# nothing (measured on two cores with 512 to 4096 rows, 512 hidden units and 32768 classes).
BYTES, ROWS = 1 << 25, 128


class Layer(NamedTuple):
    """A linear layer over the same classes."""

    weight: Array
    bias: Array | None


class Linear(NamedTuple):
    """A call, resolved."""

    request: Request  # of all rows: target, weight, counted and valid have N entries, pred is the hidden states, (N, H)
    weight: Array  # (C, H), or (H, C) where classes_axis is 1
    bias: Array | None  # (C,)
    classes_axis: int
    classes: int  # of all devices
    memory: int | None  # bytes for the logits of a block
    shard: Shard | None = None  # where classes are split over devices: weight and bias are of these alone
    teacher: Layer | None = None  # whose hidden states, (N, H'), are the request's target: of a block its logits are
    exchanged: bool = False  # the teacher's logits are the loss's predictions, and the student's its target
    columns: tuple[str, ...] = ()  # the result is (N, K): of every row its loss and of BESIDE what these name

    def shape(self, count: int) -> tuple[int, ...]:
        """Of the losses of so many rows."""
        return (count, len(self.columns)) if self.columns else (count,)

    @property
    def most_rows(self) -> int:
        """That a block may have."""
        # As on the other devices: the largest shard's, if all are about equal.
        columns = self.classes if self.shard is None else -(-self.classes // self.shard.devices)
        row = columns * (8 if self.request.dtype == "float64" else 4) * (1 if self.teacher is None else 2)
        return max(ROWS, BYTES // row) if self.memory is None else max(1, self.memory // row)

    def rows(self, count: int) -> int:
        """How many of so many rows a block has: about the same number in each."""
        blocks = max(1, -(-count // self.most_rows))
        return max(1, -(-count // blocks))


# Why blocks are refused on several frameworks.
DIFFERENTIATED = "a weight, the denominator, an option or the teacher needs a gradient"


def choice(blocks: Path, no_blocks: str) -> Choice:
    """The path in blocks, or all logits where blocks are refused."""
    return Choice(WHOLE, ((blocks.name, no_blocks),)) if no_blocks else Choice(blocks)


def in_blocks(losses: Callable[[Linear], Array]) -> Path:
    """The path of a framework's module."""
    return Path(
        "blocks",
        losses,
        "by the logits of a block of rows at a time, and the loss of logits",
        "computed with the value where the losses are summed, else by the logits of each block again",
    )


def whole(call: Linear) -> Array:
    """The loss by all logits at once, as the framework differentiates it."""
    r = call.request
    if call.shard is not None:
        r = r._replace(pred=r.framework.spread(r.framework.ops.cast(r.pred, r.dtype)))
    return of_logits(with_teacher(call, r), call.columns, logits(r, r.pred, Layer(call.weight, call.bias), call))


WHOLE = Path("all logits", whole, "by all logits at once, and their loss", "through the array of all logits")


OVER_CLASSES = "; maxima and sums over the classes are joined over the devices"
OVER_ROWS = "; sums over the rows are joined over the devices"


def over_devices(choice: Choice, joined: str = OVER_CLASSES) -> Choice:
    """The same path, named as what it is where classes or rows are split over devices."""

    def named(name: str) -> str:
        return f"{name} of a shard"

    path, why_not = choice
    path = path._replace(name=named(path.name), value_words=path.value_words + joined)
    return Choice(path, tuple((named(name), reason) for name, reason in why_not))


def logits(r: Request, hidden: Array, layer: Layer, call: Linear) -> Array:
    """z = W h + b of some rows, in the dtype of the computation."""
    ops = r.framework.ops
    z = ops.matmul(ops.cast(hidden, r.dtype), ops.cast(layer.weight, r.dtype), call.classes_axis == 0)
    return z if layer.bias is None else z + ops.reshape(ops.cast(layer.bias, r.dtype), (1, -1))


def with_teacher(call: Linear, r: Request) -> Request:
    """The request of some rows with the teacher's logits on their side, if there is a teacher."""
    return r if call.teacher is None else beside(r, logits(r, r.target, call.teacher, call), call.exchanged)


def beside(r: Request, of_teacher: Array, exchanged: bool) -> Request:
    """The request with the teacher's logits; that side lacks an array which the student's belong on."""
    return r._replace(target=None, pred=of_teacher) if exchanged else r._replace(target=of_teacher, pred=None)


def with_logits(r: Request, z: Array) -> Request:
    """The request of these logits of a layer: a student's may be the loss's target."""
    return r._replace(target=z) if r.target is None else r._replace(pred=z)


def of_teacher(call: Linear) -> tuple[Array, ...]:
    """The teacher's arrays, for which no block computes a gradient."""
    if call.teacher is None:
        return ()
    return tuple(x for x in (call.request.target, *call.teacher) if x is not None)


def of_logits(r: Request, columns: tuple[str, ...], z: Array) -> Array:
    """The loss of these logits, or of each row the columns; of a sum the columns' sum, each by its own weights."""
    if not columns:
        return reduce(with_logits(r, z))
    found = [reduce(with_logits(_of_column(r, which, name), z)) for which, name in enumerate(columns)]
    return r.framework.ops.stack(found) if r.reduction in PER_SAMPLE else sum(found[1:], start=found[0])


def _of_column(r: Request, which: int, name: str) -> Request:
    weight = None if r.weight is None else r.weight[:, which]
    if name == "loss":
        return r._replace(weight=weight)
    options = {option: x for option, x in r.options.items() if option in ("logit_scale", "softcap")}
    return r._replace(rule=BESIDE[name], options=options, weight=weight)


def with_divisor(call: Linear) -> Linear:
    """The call with a number as the denominator, if there is any: a block does not see the other rows."""
    r, ops = call.request, call.request.framework.ops
    if r.reduction not in MEANS:
        return call
    each_row = r.target if call.teacher is None else ops.column(r.target, 0)
    counting = r if r.counted is not None else r._replace(counted=(each_row == each_row) | (each_row != each_row))
    mass = r.loss.mass
    if by_weight(r) and has_mass(r) and mass is not None:  # of rows, whose logits are not there
        options = {name: r.options[name] for name in mass.options if name in r.options}
        each = mass.value(ops, r.target, call.weight, call.classes_axis, **options)[0]
        counting = counting._replace(weight=each if r.weight is None else each * r.weight, options={})
    divisor = denominator(ops, counting, ops.cast(each_row, r.dtype))
    return call._replace(request=r._replace(reduction="mean", normalizer=divisor))


def of_rows(r: Request, rows: Any) -> Request:
    """The request of some rows, without their logits. `rows`: what an array is indexed with."""
    target, weight, counted, valid = (None if x is None else x[rows] for x in (r.target, r.weight, r.counted, r.valid))
    return r._replace(target=target, weight=weight, counted=counted, valid=valid)


def pulled_back(r: Request, upstream: Array) -> Request:
    """The request whose gradients are those of losses of rows to which `upstream` flows back."""
    return r._replace(weight=upstream if r.weight is None else r.weight * upstream, reduction="sum")
