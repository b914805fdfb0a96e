#!/usr/bin/env bash
# torch 2.13.0: under torch.compile(backend="eager"), the backend for debugging, a gradient penalty through a
# torch.autograd.Function loses its own gradient without an error or a warning.
#
# The function is x³, whose backward is differentiable, and the loss is f(x) + f'(x)². At x = 2 its derivative is
# f' + 2 f' f'' = 12 + 2·12·12 = 300, which is what the call gives without torch.compile. Compiled, create_graph=True
# returns a first gradient of the right value, 12, that does not require grad; so the penalty counts as a constant, and
# the derivative is 12. The backends "aot_eager" and "inductor" raise instead: they do not support double backward.
#
# Output seen: eager 300.0; backend eager 12.0, first gradient requires grad: False; backend aot_eager RuntimeError.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import torch


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, upstream):
        (x,) = ctx.saved_tensors
        return upstream * 3 * x**2


def derivative(function):
    """Of function(x) + function'(x)² at 2, and whether the first gradient can be differentiated."""
    x = torch.tensor(2.0, requires_grad=True)
    value = function(x)
    (first,) = torch.autograd.grad(value, x, create_graph=True)
    (value + first**2).backward()
    return x.grad.item(), first.requires_grad


def cube(x):
    return Cube.apply(x)


found = derivative(cube)
print("eager", found)
assert found == (300.0, True), found

found = derivative(torch.compile(cube, backend="eager", fullgraph=True))
print("backend eager", found)
assert found == (12.0, False), found

torch.compiler.reset()
try:
    found = derivative(torch.compile(cube, backend="aot_eager", fullgraph=True))
except RuntimeError as error:
    print("backend aot_eager RuntimeError:", str(error).splitlines()[0])
else:
    raise AssertionError(found)
PYTHON
