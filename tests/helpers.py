"""What the tests share: inputs, one run of a module, and the one assertion on its numbers."""

import copy
import os
import platform
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.backends import mkldnn

import fastattn
from fastattn.bench.accuracy import assert_accurate, errors

FULL = False  # whether --full was given: set by conftest.py before it is read
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = os.environ.get("FASTATTN_TEST_DEVICE") or "cpu"
THREADS = int(os.environ.get("FASTATTN_TEST_THREADS") or 1)  # one is what tiny tensors are fastest on
FAST = "triton" if INTERPRETED or DEVICE == "cuda" else "native"  # the fast path that the tests are about

FORMATS = (torch.contiguous_format, torch.channels_last)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ISAS = ("baseline", "neon") if platform.machine() in ("aarch64", "arm64") else ("baseline", "avx2", "avx512")
MODULES = {"scsa": fastattn.SCSA, "smsa": fastattn.SMSA, "pcsa": fastattn.PCSA}


def thin(values):
    """Return the values, or the first alone with Triton, where every case takes seconds to interpret or compile."""
    return values[:1] if FAST == "triton" else values


def few(values, count=1):
    """Return the values for parametrize: the first ones, and the others for a full run alone."""
    first, others = [*values][:count], [*values][count:]
    return [*first, *(pytest.param(value, marks=pytest.mark.full) for value in others)]


def few_interpreted(values, count=1):
    """Return the same where kernels are interpreted, which takes seconds, and elsewhere all values."""
    return few(values, count) if INTERPRETED else [*values]


def by_turns(cases, redundant=None):
    """Return (case, memory format) for parametrize: all pairs, and where kernels are interpreted each case in one
    format by turns, in the other in a full run; in which alone are cases that are redundant."""
    cases = [*cases]
    redundant = redundant or [False] * len(cases)
    pairs = product(enumerate(cases), enumerate(FORMATS))
    return [
        pytest.param(case, layout, marks=full(redundant[i] or (INTERPRETED and (i + j) % 2)))
        for (i, case), (j, layout) in pairs
    ]


def full(redundant):
    """Return the marks of a pytest.param that is for a full run alone where it is redundant."""
    return [pytest.mark.full] if redundant else []


# a test that takes long where kernels are interpreted: it is for a full run there
slow_interpreted = pytest.mark.full if INTERPRETED else lambda test: test

# the fixture's values where a test compiles a module: the reference, over which that takes longest, in a full run
by_fast_first = pytest.mark.parametrize("backend", few([FAST] if INTERPRETED else [FAST, "reference"]), indirect=True)


def named(value: object) -> str:
    """Return a short test id for a dtype, a memory format, a file or anything else."""
    if isinstance(value, Path):
        return value.stem
    return str(value).removeprefix("torch.").replace("contiguous_format", "nchw").replace("channels_last", "nhwc")


def make(name: str, dim: int, *, dtype: torch.dtype = torch.float32, seed: int = 0, **options) -> nn.Module:
    """Return a module with random parameters."""
    return randomize(MODULES[name](dim, **options), seed).to(DEVICE, dtype)


# layers whose sums are long: their weights are drawn smaller
SCALED = ("conv_d", "local_convs", "local.", "blocks", "fuse", "multi_scale", "global_conv", "scale_att", "out_conv")


def randomize(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give a module random parameters, so that no gradient is hidden by a one or a zero."""
    generator = torch.Generator("cpu").manual_seed(seed)
    with torch.no_grad():
        for key, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, device="cpu")
            if "norm" in key:
                noise = noise * 0.2 + (1 if key.endswith("weight") else 0)
            elif parameter.dim() > 1 and key.startswith(SCALED):
                noise = noise / parameter[0].numel() ** 0.5
            parameter.copy_(noise)
    return module


def draw(
    *shape: int, dtype: torch.dtype = torch.float32, memory_format=torch.contiguous_format, seed: int = 1
) -> Tensor:
    """Return normal numbers with a mean that differs from channel to channel, as after a convolution."""
    generator = torch.Generator("cpu").manual_seed(seed)
    x = torch.randn(shape, generator=generator, device="cpu")
    x += 0.5 * torch.randn(shape[1], 1, 1, generator=generator, device="cpu")
    return x.to(DEVICE, dtype).contiguous(memory_format=memory_format)


def run(module: nn.Module, x: Tensor, grad_out: Tensor, backend: str, *, onednn: bool = True) -> dict[str, Tensor]:
    """Return the output, the input gradient and every parameter gradient of one pass, by name."""
    x = x.detach().requires_grad_()
    parameters = dict(module.named_parameters())
    # oneDNN never comes back from building some float16 depthwise convolutions (4 groups, kernel 15, length
    # 34)
    usable = mkldnn.flags(enabled=onednn and x.dtype != torch.float16, allow_tf32=None)
    with fastattn.use_backend(backend), usable:
        out = module(x)
        gradients = torch.autograd.grad(out, [x, *parameters.values()], grad_out)
    return dict(zip(("out", "grad_x", *parameters), (out.detach(), *gradients), strict=True))


def run_in_other_orders(module: nn.Module, x: Tensor, grad_out: Tensor) -> list[dict[str, Tensor]]:
    """Return what the reference computes by PyTorch's own convolutions, and of transposed maps and kernels,
    transposed back.

    Where rows and columns are treated alike, as in LGA, the order of the sums is all that differs.
    """
    twin = copy.deepcopy(module)
    for parameter in twin.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.mT.contiguous()
    found = run(twin, x.mT.contiguous(), grad_out.mT.contiguous(), "reference")
    transposed = {name: tensor.mT if tensor.dim() == 4 else tensor for name, tensor in found.items()}
    return [transposed, run(module, x, grad_out, "reference", onednn=False)]


def measure(module: nn.Module, x: Tensor, backend: str = FAST, *, more_orders: bool = False) -> list[dict[str, Tensor]]:
    """Return a backend's output and gradients, in x's memory format, the truth, and eager's own in several orders."""
    grad_out = torch.randn(x.shape, generator=torch.Generator("cpu").manual_seed(2), device="cpu").to(x)
    truth = run(copy.deepcopy(module).double(), x.double(), grad_out.double(), "reference")
    eager = [run(module, x.contiguous(memory_format=layout), grad_out, "reference") for layout in FORMATS]
    if more_orders:
        eager += run_in_other_orders(module, x, grad_out)
    return [run(module, x, grad_out, backend), truth, *eager]


def check(module: nn.Module, x: Tensor, backend: str = FAST) -> dict[str, Tensor]:
    """Assert that a backend's output and gradients are accurate, in x's memory format, and return them."""
    return check_together([(module, x)], backend)


def check_together(
    cases: Sequence[tuple[nn.Module, Tensor]], backend: str = FAST, *, more_orders: bool = False
) -> dict[str, Tensor]:
    """Assert the accuracy of several draws together, and return the first's output and gradients.

    Where a sum cancels, or a row of scores stands between two channels, one rounding outweighs all others: the error is
    chance, eager's as well. So what errs little more than it may is measured with its neighbours: their errors together
    have a size, and most of them are right. What errs more than `CHANCE` times what it may is wrong.
    """
    draws = [measure(module, x, backend, more_orders=more_orders) for module, x in cases]
    try:
        assert_together(draws)
    except AssertionError:
        shares = [max(error.share for error in errors(*draw).values()) for draw in draws]
        if max(shares) > CHANCE:
            raise
        for (module, x), share in zip(cases, shares, strict=True):
            if share <= 1 < max(shares):
                continue
            near = [measure(module, nudge(x, i), backend, more_orders=more_orders) for i in range(NEIGHBOURS)]
            wrong = sum(any(error.share > 1 for error in errors(*each).values()) for each in near)
            assert wrong <= NEIGHBOURS // 2, f"{wrong} of {NEIGHBOURS} neighbours are wrong, too"
            draws += near
        assert_together(draws)
    return draws[0][0]


NEIGHBOURS = 2 if INTERPRETED else 16
CHANCE = 4.0


def nudge(x: Tensor, seed: int) -> Tensor:
    """Return a neighbour of x, dense, some 32 roundings away, or of 16 bits one."""
    noise = torch.randn(x.shape, generator=torch.Generator("cpu").manual_seed(seed), device="cpu")
    return x + x * torch.empty_like(x).copy_(noise) * min(32 * torch.finfo(x.dtype).eps, 1e-2)


def assert_together(draws: Sequence[Sequence[dict[str, Tensor]]]) -> None:
    """Assert the accuracy of what `measure` returns, over all draws."""
    runs = zip(*draws, strict=True)  # the backend's, the truth's, eager's
    assert_accurate(*({name: torch.stack([part[name] for part in parts]) for name in parts[0]} for parts in runs))


def assert_close(got: dict[str, Tensor], expected: dict[str, Tensor], limit: float) -> None:
    """Assert that what kernels compute is as far as `limit` allows, relative to its norm, from what is expected."""
    wrong = []
    for name, tensor in got.items():
        exact = expected[name].detach().double().cpu()
        assert tensor.shape == exact.shape, f"{name}: shape {tuple(tensor.shape)}, expected {tuple(exact.shape)}"
        error = float((tensor.double().cpu() - exact).norm() / max(float(exact.norm()), 1e-3))
        if not error <= limit:
            wrong.append(f"{name}: error {error:.2e}, allowed {limit:.2e}")
    assert not wrong, "; ".join(wrong)
