"""Doing beforehand what the first call of a signature would do: compiling kernels, and tuning them on request."""

import contextlib
from collections.abc import Iterable, Sequence

import torch
from torch import nn


def warmup(
    module: nn.Module,
    shapes: Iterable[Sequence[int]],
    *,
    dtype: torch.dtype | None = None,
    memory_format: torch.memory_format = torch.contiguous_format,
    backward: bool = True,
    tune: bool = False,
) -> None:
    """Run a module once on inputs of these shapes (B, C, H, W), so that later calls find their kernels compiled.

    `dtype` is the input's, by default the parameters'. With `tune`, Triton's kernels are measured in a few
    configurations and the fastest kept, for sizes alike in this process and on disk. Gradients that the module holds
    are left as they are. RuntimeError with `tune` during the capture of a CUDA graph.
    """
    parameter = next(module.parameters())
    for shape in shapes:
        x = torch.randn(tuple(shape), dtype=dtype or parameter.dtype, device=parameter.device)
        x = x.contiguous(memory_format=memory_format).requires_grad_(backward)
        with _tuning(tune), torch.set_grad_enabled(backward):
            out = module(x)
            if backward:
                wanted = [x, *(p for p in module.parameters() if p.requires_grad)]
                torch.autograd.grad(out, wanted, torch.randn_like(out))


@contextlib.contextmanager
def _tuning(wanted: bool):
    if not wanted:
        yield
        return
    from .kernels import tuning  # imports Triton

    with tuning.tuning():
        yield
