"""Every operation by its kernels, output and each gradient by name, against the float64 reference on the same
device; three times, for what differs from call to call is a race."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import fastattn
from fastattn.bench.accuracy import errors, is_output
from fastattn.bench.sizes import MEMORY_FORMATS
from tests.helpers import draw, randomize

from ..suites.interaction import coarse
from .rows import DTYPES, FORMATS

REPEATS = 3
Shape = tuple[int, ...]


class Module(NamedTuple):
    """How a module is made, and the shapes of its inputs."""

    make: Callable[[], nn.Module]
    shapes: Sequence[Shape]


MODULES = {
    "scsa-56": Module(lambda: fastattn.SCSA(64), [(8, 64, 56, 56)]),
    "scsa-28": Module(lambda: fastattn.SCSA(128), [(8, 128, 28, 28)]),
    "scsa-14": Module(lambda: fastattn.SCSA(256), [(8, 256, 14, 14)]),
    "scsa-7": Module(lambda: fastattn.SCSA(512), [(8, 512, 7, 7)]),
    "scsa-7-batch": Module(lambda: fastattn.SCSA(512), [(32, 512, 7, 7)]),
    "scsa-heads": Module(lambda: fastattn.SCSA(128, head_num=4), [(3, 128, 28, 28)]),
    "scsa-odd": Module(lambda: fastattn.SCSA(48, window_size=5, qkv_bias=True), [(3, 48, 23, 31)]),
    "scsa-softmax": Module(lambda: fastattn.SCSA(48, gate_layer="softmax"), [(2, 48, 23, 31)]),
    "scsa-max": Module(lambda: fastattn.SCSA(32, down_sample_mode="max_pool"), [(2, 32, 20, 33)]),
    "scsa-global": Module(lambda: fastattn.SCSA(32, window_size=-1, head_num=4), [(2, 32, 12, 15)]),
    "scsa-tall": Module(lambda: fastattn.SCSA(72), [(2, 72, 600, 7)]),
    # beyond a cluster's shared memory in the CUDA backward
    "scsa-large": Module(lambda: fastattn.SCSA(256), [(2, 256, 128, 128)]),
    "smsa": Module(lambda: fastattn.SMSA(96), [(3, 96, 40, 24)]),
    "pcsa": Module(lambda: fastattn.PCSA(96, head_num=2), [(3, 96, 40, 24)]),
    "lga-24": Module(lambda: fastattn.LocalGlobalAttention(24, 6), [(4, 24, 20, 20)]),
    "lga-128": Module(lambda: fastattn.LocalGlobalAttention(128, 8), [(4, 128, 20, 20)]),
    "lga-released": Module(lambda: fastattn.LocalGlobalAttention(32, 4, contraction="released"), [(2, 32, 19, 23)]),
    "lga-scales": Module(lambda: fastattn.LocalGlobalAttention(12, 3, num_scales=5), [(2, 12, 18, 17)]),
    "cfsam": Module(
        lambda: fastattn.CFSAM([32, 64, 32], dim=64, num_heads=4),
        [(2, 32, 19, 19), (2, 64, 10, 10), (2, 32, 3, 3)],
    ),
    "cfsam-heads": Module(lambda: fastattn.CFSAM([64, 64], dim=256, num_heads=8), [(2, 64, 38, 38), (2, 64, 19, 19)]),
    "cfsam-parts": Module(
        lambda: fastattn.CFSAM([8, 12, 8], dim=128, num_heads=1, num_parts=5, depth=2, conv_bias=True),
        [(2, 8, 7, 6), (2, 12, 4, 3), (2, 8, 1, 1)],
    ),
    "acp-56": Module(lambda: fastattn.AggressiveConvPooling(96), [(4, 96, 56, 56)]),
    "acp-14": Module(lambda: fastattn.AggressiveConvPooling(192), [(4, 192, 14, 14)]),
    "acp-odd": Module(
        lambda: fastattn.AggressiveConvPooling(18, num_layers=3, aggregate="sum", pool_size=3), [(2, 18, 19, 31)]
    ),
    "cat-197": Module(lambda: fastattn.ConceptualAttention(192, 64), [(4, 197, 192)]),
    "cat-3136": Module(lambda: fastattn.ConceptualAttention(96, 64), [(2, 3136, 96)]),
    "cat-odd": Module(lambda: fastattn.ConceptualAttention(136, 70), [(2, 83, 136)]),
}
TINY = {  # to rehearse with
    "tiny scsa": Module(lambda: fastattn.SCSA(8), [(2, 8, 7, 8)]),
    "tiny cat": Module(lambda: fastattn.ConceptualAttention(8, 3), [(1, 9, 8)]),
}
# in float16 too
NARROW = "scsa-56", "scsa-7", "scsa-odd", "smsa", "pcsa", "lga-128", "cfsam-heads", "acp-56", "cat-197"
# which have CUDA kernels beside Triton's
CUDA = tuple(name for name in MODULES if name.startswith(("scsa", "smsa", "pcsa")))
# every kernel, in little: under the sanitizer
SMALL = "scsa-7", "scsa-odd", "scsa-max", "pcsa", "smsa", "lga-24", "cfsam", "acp-odd", "cat-odd"


def build(name: str, dtype: torch.dtype, layout: str) -> tuple[nn.Module, list[Tensor]]:
    """A module with random parameters and its inputs.

    ACP's are so coarse that convolutions do not round: where two pixels of a window differ by a rounding, their
    gradient may go to either.
    """
    found = (MODULES | TINY)[name]
    module: Any = randomize(found.make())
    inputs = [drawn(shape, seed) for seed, shape in enumerate(found.shapes, 1)]
    device = inputs[0].device
    with torch.no_grad():
        if module.operation in ("acp", "cat"):
            for parameter in module.parameters():
                if parameter.dim() > 1:
                    parameter /= parameter[0].numel() ** 0.5
        if module.operation == "acp":
            for parameter in module.convs.parameters():
                parameter.copy_(coarse(parameter, 2**-4))
            inputs = [coarse(x, 2**-3) for x in inputs]
    inputs = [laid(x.to(dtype), layout) for x in inputs]
    return module.to(device, dtype), inputs


def drawn(shape: Shape, seed: int) -> Tensor:
    """Random maps (B, C, H, W) or tokens (B, N, C)."""
    if len(shape) == 4:
        return draw(*shape, seed=seed)
    batch, count, channels = shape
    return draw(batch, channels, count, 1, seed=seed).squeeze(3).mT


def laid(x: Tensor, layout: str) -> Tensor:
    """Maps in a memory format; tokens as they are, dense."""
    return x.contiguous(memory_format=MEMORY_FORMATS[layout]) if x.dim() == 4 else x.contiguous()


def run(module: nn.Module, inputs: Sequence[Tensor], backend: str, grads: Sequence[Tensor] = ()) -> dict[str, Tensor]:
    """Outputs, the inputs' gradients and every parameter's, by name; the gradient of an output is the output itself,
    or one of `grads`."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    with fastattn.use_backend(backend):
        outs = module(inputs) if isinstance(module, fastattn.CFSAM) else module(*inputs)
        outs = [outs] if isinstance(outs, Tensor) else list(outs)
        leaves = {f"grad {i}": x for i, x in enumerate(inputs)} | dict(module.named_parameters())
        grads = [g.to(o.dtype) for g, o in zip(grads or outs, outs, strict=True)]
        found = torch.autograd.grad(outs, list(leaves.values()), [g.detach() for g in grads], allow_unused=True)
    named = {"out" if len(outs) == 1 else f"out {i}": out.detach() for i, out in enumerate(outs)}
    return named | {
        name: torch.zeros_like(leaf) if grad is None else grad
        for (name, leaf), grad in zip(leaves.items(), found, strict=True)
    }


def outputs(found: Mapping[str, Tensor]) -> list[Tensor]:
    """The outputs of what `run` returns."""
    return [value for name, value in found.items() if is_output(name)]


def right(module: str, dtype: str, layout: str, backend: str = "triton") -> dict[str, Any]:
    """How near to the truth one module is, and whether it is the same thrice."""
    built, inputs = build(module, DTYPES[dtype], layout)
    outs = [out / 64 for out in outputs(run(built, inputs, "reference"))]  # whose sums float16 can hold
    runs = [run(built, inputs, backend, outs) for _ in range(REPEATS)]
    truth = run(deepcopy(built).double(), [x.double() for x in inputs], "reference", [out.double() for out in outs])
    others = [[laid(x, other) for x in inputs] for other in FORMATS]  # where eager sums in another order
    eager = [run(built, other, "reference", outs) for other in others]
    moving = [name for name in truth if any(not torch.equal(runs[0][name], again[name]) for again in runs[1:])]
    found = errors(runs[0], truth, *eager)
    worst = max(found, key=lambda name: found[name].share)
    wrong = {name: str(error) for name, error in found.items() if not error.share <= 1}
    return {
        "ok": not wrong and not moving,
        "worst": f"{worst}: {found[worst]}",
        "share": found[worst].share,
        **({"wrong": wrong} if wrong else {}),
        **({"moving": moving} if moving else {}),
    }
