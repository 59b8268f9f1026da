#!/usr/bin/env bash
# timm 1.0.31's reparameterize_model freezes what it does not fuse: the attention inside of every RepVGG block.
#
# Expected: the branches of a block become one convolution, and the squeeze-and-excitation behind them, which stays in the
# block as it was, stays trainable. Seen on repvgg_d2se: of its 192 parameters of attention, all trainable before, none is
# afterwards. A block detaches all of its parameters once its branches are fused, the attention's too. Nothing is said, and
# fine-tuning goes on with the new convolutions and the classifier alone.
#
# The numbers computed are right. Fails if the attention's parameters stay trainable.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.14.1 timm==1.0.31
cat >"$folder/read.py" <<'PYTHON'
import timm
import torch
from timm.utils import reparameterize_model


def trainable(model, attention):
    found = [p.requires_grad for name, p in model.named_parameters() if (".attn." in name) == attention]
    return sum(found), len(found)


model = timm.create_model("repvgg_d2se").eval()
x = torch.randn(1, 3, 64, 64)
before, out = trainable(model, attention=True), model(x)
fused = reparameterize_model(model)
after, others = trainable(fused, attention=True), trainable(fused, attention=False)
error = float((fused(x) - out).norm() / out.norm())
print(f"of the attention's parameters are trainable: {before} before, {after} after; of the others {others}; error {error:.1e}")
assert before == (192, 192)
assert after == (0, 192)
assert others[0] == others[1]
assert error < 1e-3
PYTHON
"$folder/venv/bin/python" -W ignore "$folder/read.py"
