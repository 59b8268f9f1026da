"""Doing beforehand what the first call of a signature would do: compiling kernels, and tuning them on request."""

import contextlib
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def warmup(
    module: nn.Module,
    shapes: Iterable[Sequence[int] | Sequence[Sequence[int]]],
    *,
    dtype: torch.dtype | None = None,
    memory_format: torch.memory_format = torch.contiguous_format,
    backward: bool = True,
    tune: bool = False,
) -> None:
    """Run a module once on inputs of these shapes (B, C, H, W), so that later calls find their kernels compiled.

    For a module on a pyramid's maps, each is the list of their shapes.
    `dtype` is the input's, by default the parameters'. With `tune`, Triton's kernels are measured in a few
    configurations and the fastest kept, for sizes alike in this process and on disk. Gradients that the module holds
    are left as they are. RuntimeError with `tune` during the capture of a CUDA graph.
    """
    parameter = next(module.parameters())

    def draw(shape: Any) -> Tensor:
        x = torch.randn(tuple(shape), dtype=dtype or parameter.dtype, device=parameter.device)
        return x.contiguous(memory_format=memory_format).requires_grad_(backward)

    for shape in shapes:
        single = isinstance(shape[0], int)
        maps = [draw(shape)] if single else [draw(each) for each in shape]
        with _tuning(tune), torch.set_grad_enabled(backward):
            out = module(maps[0] if single else maps)
            if backward:
                outs = [out] if single else out
                wanted = [*maps, *(p for p in module.parameters() if p.requires_grad)]
                torch.autograd.grad(outs, wanted, [torch.randn_like(each) for each in outs])
                with torch.no_grad():  # which saves nothing: on cuda a kernel of its own
                    module(maps[0] if single else maps)


@contextlib.contextmanager
def _tuning(wanted: bool):
    if not wanted:
        yield
        return
    from ..kernels.common import tuning  # imports Triton

    with tuning.tuning():
        yield
