"""What every registered operator promises to torch's compilers."""

import torch
from torch._inductor import config, lowering

import fastattn
from tests.helpers import draw


def test_inductor_takes_an_operator_where_ci_is_set(monkeypatch):
    """Inductor refuses an operator that has a decomposition where the environment sets CI, unless it is told before."""
    for operator in (torch.ops.fastattn.smsa_forward.default, torch.ops.fastattn.smsa_backward.default):
        monkeypatch.delitem(lowering.lowerings, operator, raising=False)  # as in a process that compiles its first
    monkeypatch.setenv("CI", "true")
    torch.compiler.reset()
    module, x = fastattn.SMSA(16), draw(2, 16, 8, 8).requires_grad_()
    with config.patch(force_disable_caches=True):
        out = torch.compile(module, fullgraph=True)(x)
        out.sum().backward()
    torch.testing.assert_close(out, module(x))
