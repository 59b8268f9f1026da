"""Load a variant of the kernel repository and put its layers on eager modules: python use.py VARIANT.

It runs in an environment without fastattn, as a user of `kernels` has.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from kernels import (
    LocalLayerRepository,
    Mode,
    get_local_kernel,
    kernelize,
    use_kernel_forward_from_hub,
    use_kernel_mapping,
)

variant = Path(sys.argv[1])
kernel = get_local_kernel(variant)

import fastattn  # noqa: E402 (the repository's)
from fastattn.core import native  # noqa: E402

assert Path(fastattn.__file__).is_relative_to(variant), fastattn.__file__
assert native.status()[0] == ("ok" if "linux" in variant.name else "not built"), native.status()

CASES = {
    "SCSA": (fastattn.SCSA(32, qkv_bias=True), (2, 32, 15, 14)),
    "LocalGlobalAttention": (fastattn.LocalGlobalAttention(32, 4, (3,), 5), (2, 32, 15, 14)),
    "AggressiveConvPooling": (fastattn.AggressiveConvPooling(32), (2, 32, 15, 14)),
    "ConceptualAttention": (fastattn.ConceptualAttention(32, 6), (2, 50, 32)),
    "CFSAM": (fastattn.CFSAM([16, 32], dim=32), None),
}


def results(model: nn.Module, x: list[Tensor]) -> list[Tensor]:
    """Return a model's outputs and its gradients."""
    model.zero_grad()
    out = model(x if len(x) > 1 else x[0])
    outputs = list(out) if isinstance(out, list) else [out]
    sum(tensor.square().sum() for tensor in outputs).backward()
    return [*outputs, *(p.grad for p in model.parameters() if p.grad is not None)]


for name, (module, shape) in CASES.items():

    @use_kernel_forward_from_hub(name)
    class Eager(type(module)):  # type: ignore[misc]
        def forward(self, x):
            return self._through_children(x)

    module.__class__ = Eager
    x = [torch.randn(shape)] if shape else [torch.randn(2, 16, 8, 8), torch.randn(2, 32, 4, 4)]
    model = nn.Sequential(module)
    expected = results(model, x)
    with use_kernel_mapping({name: {"cpu": LocalLayerRepository(variant, layer_name=name)}}):
        kernelize(model, mode=Mode.TRAINING | Mode.TORCH_COMPILE, device="cpu", use_fallback=False)
    assert module.forward.__func__ is getattr(kernel.layers, name).forward
    largest = max(float(tensor.detach().abs().max()) for tensor in expected)  # some gradients are zero but for rounding
    for got, tensor in zip(results(model, x), expected, strict=True):
        torch.testing.assert_close(got, tensor, rtol=1e-4, atol=1e-5 * largest)
    print(f"{name}: kernelized, as eager")
