#!/usr/bin/env bash
# torch 2.11.0's torch.compile refuses a function marked with torch.compiler.assume_constant_result that takes a module.
#
# Expected: such a function is called once, while the model is traced, and its answer is a constant, as its documentation
# says; with an nn.Module for an argument too. Seen: InternalTorchDynamoError, "UnspecializedNNModuleVariable(Model) is not
# a constant", in fullgraph=True and without. As a method of the module, marked alike, the same function is served, and torch
# 2.14.1 takes both.
#
# Fails if torch 2.11.0 compiles the function or refuses the method.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.11.0 numpy
cat >"$folder/read.py" <<'PYTHON'
import torch


@torch.compiler.assume_constant_result
def sign(module):
    return module.sign


class Model(torch.nn.Module):
    sign = 1

    def __init__(self, by_method):
        super().__init__()
        self.by_method = by_method

    @torch.compiler.assume_constant_result
    def own_sign(self):
        return self.sign

    def forward(self, x):
        return x + (self.own_sign() if self.by_method else sign(self))


x = torch.zeros(2)
assert torch.equal(Model(by_method=False)(x), torch.ones(2))
assert torch.equal(torch.compile(Model(by_method=True), fullgraph=True, backend="eager")(x), torch.ones(2))
for fullgraph in (True, False):
    torch.compiler.reset()
    try:
        torch.compile(Model(by_method=False), fullgraph=fullgraph, backend="eager")(x)
    except Exception as error:
        print(f"fullgraph={fullgraph}: {type(error).__name__}: {str(error).splitlines()[0]}")
        assert "is not a constant" in str(error)
    else:
        raise AssertionError(f"fullgraph={fullgraph}: compiled")
PYTHON
"$folder/venv/bin/python" -W ignore "$folder/read.py"
