"""What every registered operator promises to torch's compilers."""

import pytest
import torch
from torch import nn
from torch._inductor import config, lowering

import fastattn
from fastattn.scsa.operation import SMSA
from tests.helpers import draw


def test_inductor_takes_an_operator_where_ci_is_set_and_lays_maps_as_the_convolutions_around_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Inductor refuses an operator that has a decomposition where the environment sets CI, unless it is told before.

    On a CPU it lays convolutions channels_last whatever was traced: an operator held to that would be between copies.
    """
    for operator in (torch.ops.fastattn.smsa_forward.default, torch.ops.fastattn.smsa_backward.default):
        monkeypatch.delitem(lowering.lowerings, operator, raising=False)  # as in a process that compiles its first
    monkeypatch.setenv("CI", "true")
    laid, serve = [], SMSA.serve

    def watching(server, x, *rest):
        laid.append(x.is_contiguous(memory_format=torch.channels_last))
        return serve(server, x, *rest)

    monkeypatch.setattr(SMSA, "serve", watching)
    torch.compiler.reset()
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 16, 3), fastattn.SMSA(16), nn.Conv2d(16, 4, 1))
    x = draw(2, 3, 10, 10).requires_grad_()
    found = {}
    with config.patch(force_disable_caches=True):
        for name, module in (("compiled", torch.compile(network, fullgraph=True)), ("eager", network)):
            out = module(x)
            found[name] = [out.detach(), *torch.autograd.grad(out.square().sum(), [x, *network.parameters()])]
    assert laid[0]  # in the compiled network
    for one, other in zip(found["compiled"], found["eager"], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert found["compiled"][0].stride() == found["eager"][0].stride()
