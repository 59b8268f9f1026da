#!/usr/bin/env bash
# Two exporters turn Python's ceiling division of a dynamic size, -(-n // 4), into one that truncates, in silence.
#
# Expected: for n = 10 the exported file computes 3, as Python, eager PyTorch and the torch.export program do. Seen with
# torch 2.14.1: torch.onnx.export(dynamo=True) writes Neg, Div, Neg. ONNX's Div of integers truncates where // floors, so
# onnxruntime 1.32.0 gives 2. OpenVINO 2026.4.1, which converts the torch.export program by itself, gives 2 as well. Sizes
# that divide, and the size of the example with a fixed shape, are right, so that a check on the example finds nothing.
# (n + 3) // 4, whose operands are never negative, is right in both.
#
# It was met as the number of tokens in each part of a partitioned attention, whose outputs were 6.7% off at other sizes.
#
# Fails if either exporter floors.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.14.1 onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.32.0 openvino==2026.4.1
cat >"$folder/read.py" <<'PYTHON'
import sys

import onnx
import onnxruntime
import openvino
import torch


class Ceiling(torch.nn.Module):
    def __init__(self, of_negative):
        super().__init__()
        self.of_negative = of_negative

    def forward(self, x):
        n = x.shape[1]
        return x.new_zeros(1) + (-(-n // 4) if self.of_negative else (n + 3) // 4)


found = {}
for of_negative in (True, False):
    model = Ceiling(of_negative)
    shapes = {"x": {1: torch.export.Dim.DYNAMIC}}
    program = torch.export.export(model, (torch.zeros(2, 8),), dynamic_shapes=shapes)
    torch.onnx.export(program, (), sys.argv[1], dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    compiled = openvino.compile_model(openvino.convert_model(program), "CPU")
    print("(n + 3) // 4" if not of_negative else "-(-n // 4)", [node.op_type for node in onnx.load(sys.argv[1]).graph.node])
    for n in (8, 10, 13):
        x = torch.zeros(2, n)
        values = {
            "eager": model(x),
            "torch.export": program.module()(x),
            "onnxruntime": session.run(None, {name: x.numpy()})[0],
            "OpenVINO": compiled([x.numpy()])[0],
        }
        values = {who: int(value[0]) for who, value in values.items()}
        print(f"  n = {n}: {values}")
        found[of_negative, n] = [*values.values()]

assert found[True, 8] == [2, 2, 2, 2]
assert found[True, 10] == [3, 3, 2, 2]
assert found[True, 13] == [4, 4, 3, 3]
assert [found[False, n] for n in (8, 10, 13)] == [[2] * 4, [3] * 4, [4] * 4]
PYTHON
"$folder/venv/bin/python" -W ignore "$folder/read.py" "$folder/model.onnx"
