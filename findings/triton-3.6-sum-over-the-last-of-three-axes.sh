#!/usr/bin/env bash
# Triton 3.6.0 miscompiles `total += tl.sum(tile, axis=2)` of a float32 tile of three axes inside a loop, in silence.
#
# Expected: total[c, q] is the sum of x[t, q, c] over t. Seen in the PTX for sm_90: each thread owns two places q and
# q + 32 and adds, into its first total, the values of BOTH places for the first half of the t, and into its second total
# those of both for the other half. The pass that takes the reduction out of the loop relabels the tile's registers, from
# an order in which the last axis is the slowest to one in which it is the fastest. On an H200 such a sum was wrong by 98%
# (relative error, norm), the same in every run; under the interpreter it is right, and Triton 3.8.0 does not rewrite it.
# A tile of bfloat16 that is widened before it is summed is not rewritten, and right.
#
# Needs no GPU: the machine code is only compiled and read. Fails if the two totals are summed as written.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "triton==3.6.0" "numpy<2.4"
cat >"$folder/read.py" <<'PYTHON'
import re
import sys

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

C, Q, T = 4, 64, 8


@triton.jit
def sums(x, out, n, C: tl.constexpr, Q: tl.constexpr, T: tl.constexpr):
    c, q = tl.arange(0, C), tl.arange(0, Q)
    total = tl.zeros([C, Q], tl.float32)
    for t0 in range(0, n, T):
        t = t0 + tl.arange(0, T)
        tile = tl.load(x + (t[None, None, :] * Q + q[None, :, None]) * C + c[:, None, None])
        total += tl.sum(tile, axis=2)
    tl.store(out + c[:, None] * Q + q[None, :], total)


types = {"x": "*fp32", "out": "*fp32", "n": "i32"} | dict.fromkeys("CQT", "constexpr")
source = ASTSource(sums, types, {"C": C, "Q": Q, "T": T}, {})
compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})

ptx = compiled.asm["ptx"]
index = {name: int(by) for name, start, by in re.findall(r"add\.s32\s+(%r\d+), (%r\d+), (\d+);", ptx) if name != start}
places = re.findall(r"mad\.wide\.s32\s+(%rd\d+), (%r\d+), 4, %rd\d+;", ptx)
address = {name: index.get(register, 0) for name, register in places}  # in elements, from the thread's first one
loads = re.findall(r"ld\.global\.b32 \{ (%r\d+) \}, \[ (%rd\d+)", ptx)
summed = {value: {address[at]} for value, at in loads}
chains = []
for result, first, second in re.findall(r"add\.f32\s+(%r\d+), (%r\d+), (%r\d+);", ptx):
    if first in summed and second in summed:
        summed[result] = summed[first] | summed[second]
        chains.append(summed[result])
first = max(chains, key=len)
print("triton", triton.__version__)
print("one place's values lie", Q * C, "elements apart; summed together are those at", sorted(first))
if all(offset % (Q * C) == 0 for offset in first):
    sys.exit("the sum is right: this finding no longer holds")
print("as found: the sum of one place takes in another's values")
PYTHON
"$folder/venv/bin/python" "$folder/read.py"
