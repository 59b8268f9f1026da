#!/usr/bin/env bash
# torch 2.14.1: whether torch.compile takes a custom operator depends on the environment variable CI.
#
# An operator with kernels, a fake and a decomposition (torch._decomp.register_decomposition, which the ONNX exporter
# reads and without which it stops at an unknown operator) compiles everywhere: Inductor has no lowering of it, makes
# one that calls it, and leaves the decomposition aside. Where CI is set to anything, as every continuous integration
# service sets it, the same program raises InductorError: "make_fallback(...): a decomposition exists, we should switch
# to it", advice that is meant for PyTorch's own developers. So a project's tests pass on every desk and fail in CI, and
# its users' likewise. Telling Inductor before it asks, by torch._inductor.lowering.make_fallback(operator, warn=False),
# works in both.
#
# Expected: an environment variable of the service does not decide what compiles. Fails if that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "torch==2.14.1" "numpy<2.5"
cat >"$folder/compile.py" <<'PYTHON'
import sys

import torch
from torch._decomp import register_decomposition


@torch.library.custom_op("desk::double", mutates_args=())
def double(x: torch.Tensor) -> torch.Tensor:
    return x * 2


double.register_fake(torch.empty_like)
register_decomposition(torch.ops.desk.double.default)(lambda x: x + x)
if sys.argv[1:] == ["told"]:
    from torch._inductor import lowering

    lowering.make_fallback(torch.ops.desk.double.default, lowering.constrain_to_fake_tensors, warn=False)
x = torch.ones(4)
try:
    compiled = torch.compile(lambda x: torch.ops.desk.double(x) + 1, fullgraph=True)
    torch.testing.assert_close(compiled(x), 2 * x + 1)
    print("compiles")
except torch._inductor.exc.InductorError as error:
    print("raises:", str(error).splitlines()[0].split(" To fix")[0])
PYTHON
export TORCHINDUCTOR_FORCE_DISABLE_CACHES=1
run() { printf '%s: ' "$1" && shift && "$@"; }
python=$folder/venv/bin/python
{
    run "CI unset" env -u CI "$python" "$folder/compile.py"
    run "CI=true" env CI=true "$python" "$folder/compile.py"
    run "CI=true, Inductor told before" env CI=true "$python" "$folder/compile.py" told
} | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN' || { echo "this finding no longer holds"; exit 1; }
CI unset: compiles
CI=true: raises: AssertionError: make_fallback(desk.double.default): a decomposition exists, we should switch to it.
CI=true, Inductor told before: compiles
SEEN
echo "as found"
