#!/usr/bin/env bash
# OpenVINO 2026.4.1's CPU plugin computes softmax(q k^T) v wrongly, in silence, where q, k and v are parts of a convolution's
# output.
#
# Expected: the module below, a 1x1 convolution whose output is cut into q, k and v (B, heads, d, HW), attends among channels
# as PyTorch does. Seen: the error is as large as the result (norms), at full precision
# (INFERENCE_PRECISION_HINT=f32) and by default. The same attention on the convolution's output as the model's input is right
# to 1e-7, and so are the convolution alone, its scores after the softmax, and q k^T v without the softmax. The plugin runs
# the attention as one generated "Subgraph" behind the convolution, whose output it keeps in its own layout.
#
# Fails if the attention behind the convolution is right.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.14.1 openvino==2026.4.1
cat >"$folder/read.py" <<'PYTHON'
import openvino
import torch
from torch import nn

HEADS, DIM = 4, 16


def attend(y, softmax=True):
    batch, _, height, width = y.shape
    q, k, v = (part.reshape(batch, HEADS, DIM // HEADS, height * width) for part in y.chunk(3, dim=1))
    scores = q @ k.transpose(2, 3)
    return ((scores.softmax(dim=3) if softmax else scores) @ v).reshape(batch, DIM, height, width)


class Model(nn.Module):
    def __init__(self, convolves, attends, softmax=True):
        super().__init__()
        self.conv = nn.Conv2d(DIM, 3 * DIM, 1) if convolves else nn.Identity()
        self.attends, self.softmax = attends, softmax

    def forward(self, x):
        y = self.conv(x)
        return attend(y, self.softmax) if self.attends else y


def error(model, hint=None):
    model = model.eval().requires_grad_(False)
    x = torch.randn(2, DIM if isinstance(model.conv, nn.Conv2d) else 3 * DIM, 8, 10)
    config = {"INFERENCE_PRECISION_HINT": hint} if hint else {}
    compiled = openvino.compile_model(openvino.convert_model(model, example_input=x), "CPU", config)
    expected = model(x)
    return float((torch.from_numpy(compiled([x.numpy()])[0]) - expected).norm() / expected.norm())


torch.manual_seed(0)
found = {
    "convolution and attention": error(Model(True, True), "f32"),
    "the same, default precision": error(Model(True, True)),
    "attention alone": error(Model(False, True), "f32"),
    "convolution alone": error(Model(True, False), "f32"),
    "without the softmax": error(Model(True, True, softmax=False), "f32"),
}
for name, value in found.items():
    print(f"{name}: {value:.1e}")
wrong, default, *right = found.values()
assert wrong > 0.5
assert default > 0.5
assert max(right) < 1e-5
PYTHON
"$folder/venv/bin/python" -W ignore "$folder/read.py"
