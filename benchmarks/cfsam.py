"""CFSAM's rivals, and those of its attention alone: eager and torch.compile of the reference, torch's attention on
permuted copies and on the view that needs none, and fastattn's own backends, on the same tensors."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastattn
from fastattn import functional, reference
from fastattn.bench.devices import Cpu
from fastattn.cfsam.partition_attention import partition_attention
from fastattn.cfsam.reference import Affine
from fastattn.cfsam.token_gather import count_tokens, token_gather

from .contest import Effort
from .scene import COMPILE, EAGER, Forward, Scene, SceneContest, fast_backends
from .shapes import ABLATIONS, FORWARD, FULL, MEMORY_FORMATS, AttentionCase, PyramidCase

CPU = Cpu()
COPIES, VIEW = "sdpa copies", "sdpa view"
MOST_SCORES = 2 << 30  # bytes that an explicit softmax may take for its scores
MOST_SCORES_ON_GPU = 16 << 30
CHECKED_TOKENS = 256  # where the scores of all would take more
CHECKED_IMAGES = 1  # float64 convolutions are slow; every image takes the same path


def sdpa_copies(q: Tensor, k: Tensor, v: Tensor, num_parts: int, num_heads: int) -> Tensor:
    """torch's attention on parts that are copied one behind the other."""
    batch, tokens, channels = q.shape
    length, head_dim = tokens // num_parts, channels // num_heads

    def parted(t: Tensor) -> Tensor:
        split = t.view(batch, length, num_parts, num_heads, head_dim).permute(0, 2, 3, 1, 4)
        return split.reshape(batch * num_parts, num_heads, length, head_dim)

    out = F.scaled_dot_product_attention(parted(q), parted(k), parted(v))
    out = out.view(batch, num_parts, num_heads, length, head_dim).permute(0, 3, 1, 2, 4)
    return out.reshape(batch, tokens, channels)


def sdpa_view(q: Tensor, k: Tensor, v: Tensor, num_parts: int, num_heads: int) -> Tensor:
    """torch's attention with the parts as further heads, which is a view."""
    batch, tokens, channels = q.shape
    shape = batch, tokens // num_parts, num_parts * num_heads, channels // num_heads
    q, k, v = (t.view(shape).transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, channels)


def attend_some(q: Tensor, k: Tensor, v: Tensor, num_parts: int, num_heads: int, *, tokens: Tensor) -> Tensor:
    """The explicit softmax of some tokens alone; the others' rows are zero."""
    out = q.new_zeros(q.shape)
    for part in range(num_parts):
        mine = tokens[tokens % num_parts == part]
        chosen = q[:, mine], k[:, part::num_parts], v[:, part::num_parts]
        queries, keys, values = (t.unflatten(2, (num_heads, -1)).transpose(1, 2) for t in chosen)
        weights = (queries @ keys.mT * keys.shape[-1] ** -0.5).softmax(dim=-1)
        out[:, mine] = (weights @ values).transpose(1, 2).flatten(2)
    return out


def scores_bytes(case: AttentionCase) -> int:
    """What the scores of an explicit softmax take."""
    return case.batch * case.heads * case.tokens * (case.tokens // case.parts) * case.dtype.itemsize


def explicit_fits(case: AttentionCase, device: str) -> bool:
    """Whether an explicit softmax takes part: where its scores fit."""
    return scores_bytes(case) <= (MOST_SCORES if device == "cpu" else MOST_SCORES_ON_GPU)


def operations(case: AttentionCase) -> int:
    """Multiplications and additions of the matrix products."""
    products = 2 if case.work == FORWARD else 7  # scores and out; backward the scores again and four gradients
    return 2 * products * case.shape[2] * case.batch * case.tokens * (case.tokens // case.parts)


def attention_scene(case: AttentionCase, device: str = "cpu") -> Scene:
    """q, k, v and the gradient of out; of long ones some tokens are checked, the only ones with a gradient."""
    generator = torch.Generator().manual_seed(0)
    *inputs, grad = (torch.randn(case.shape, generator=generator).to(device, case.dtype) for _ in range(4))
    named = dict(zip("qkv", inputs, strict=True))
    options: dict[str, Any] = {"num_parts": case.parts, "num_heads": case.heads}
    if explicit_fits(case, device):
        whole = partial(reference.partition_attention, **options)
        return Scene(case, nn.Module(), named, [grad], lambda _: whole)
    tokens = torch.randperm(case.tokens, generator=generator)[:CHECKED_TOKENS].to(device)
    some = partial(attend_some, **options, tokens=tokens)
    grad = torch.zeros_like(grad).index_copy(1, tokens, grad[:, tokens])
    return Scene(case, nn.Module(), named, [grad], lambda _: some, lambda out: out[:, tokens])


def attention_rivals(case: AttentionCase, device: Cpu = CPU) -> list[str]:
    """Who takes part: an explicit softmax only where its scores fit."""
    explicit = [EAGER, COMPILE] if explicit_fits(case, device.type) else []
    return [*explicit, COPIES, VIEW, *fast_backends(device, "partition_attention")]


def attention_forward(case: AttentionCase, name: str) -> Forward:
    """What a rival calls."""
    forward: Forward = functional.partition_attention
    if name == COMPILE:
        forward = torch.compile(reference.partition_attention, dynamic=False)
    elif name in (known := {EAGER: reference.partition_attention, COPIES: sdpa_copies, VIEW: sdpa_view}):
        forward = known[name]
    return partial(forward, num_parts=case.parts, num_heads=case.heads)


class AttentionContest(SceneContest):
    """Partitioned attention alone."""

    operation = "partition_attention"

    def __init__(self, case: AttentionCase, effort: Effort):
        super().__init__()
        torch._dynamo.reset()  # the cases before count towards a limit of recompilations
        scene = attention_scene(case)
        for name in attention_rivals(case):
            self.enter(name, scene, attention_forward(case, name), name)
        self.check_and_run(effort)

    def facts(self, name: str) -> dict[str, object]:
        """Beside the usual: multiplications and additions of the matrix products by time."""
        found, (scene, _, _) = super().facts(name), self.entries[name]
        return found | {"gflop_per_s": operations(scene.case) / self.timings[name].least / 1e9}


class EagerCFSAM(nn.Module):
    """The reference on the parameters of a CFSAM module, without any dispatch."""

    def __init__(self, module: fastattn.CFSAM):
        super().__init__()
        self.module = module

    def forward(self, *maps: Tensor) -> list[Tensor]:
        m: Any = self.module
        return reference.cfsam(maps, *m.operands(), num_parts=m.num_parts, num_heads=m.num_heads)


def affine(module: Any) -> Affine:
    return module.weight, module.bias


class OnSome(EagerCFSAM):
    """The same on the first images alone."""

    def forward(self, *maps: Tensor) -> list[Tensor]:
        return super().forward(*(x[:CHECKED_IMAGES] for x in maps))


def random_maps(case: PyramidCase, channels: Sequence[int], device: str = "cpu") -> list[Tensor]:
    generator, layout = torch.Generator().manual_seed(0), MEMORY_FORMATS[case.memory_format]
    shapes = [(case.batch, count, side, side) for count, (_, side) in zip(channels, case.levels, strict=True)]
    return [
        torch.randn(shape, generator=generator).to(device, case.dtype).contiguous(memory_format=layout)
        for shape in shapes
    ]


def pyramid_scene(case: PyramidCase, device: str = "cpu") -> Scene:
    """A CFSAM module and its maps; of a forward pass the first images are checked."""
    channels = [count for count, _ in case.levels]
    torch.manual_seed(0)
    module = fastattn.CFSAM(channels, dim=case.dim, **ABLATIONS[case.ablation])
    for norm in (part for part in module.modules() if isinstance(part, nn.LayerNorm)):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, -0.5, 0.5)
    module.to(device, case.dtype).to(memory_format=MEMORY_FORMATS[case.memory_format])
    maps = random_maps(case, channels, device)
    inputs = {f"map {i}": x for i, x in enumerate(maps)}
    grads = [x.flip(0).neg() for x in maps]
    if case.work == FORWARD:
        return Scene(case, module, inputs, grads, OnSome, lambda out: out[:CHECKED_IMAGES])
    return Scene(case, module, inputs, grads, EagerCFSAM)


def pyramid_rivals(case: PyramidCase, device: Cpu = CPU) -> list[str]:
    """Who takes part; torch.compile, which takes its time, in the module as a whole where the case wants it."""
    compiled = case.compiled and case.ablation == FULL
    return [EAGER, *([COMPILE] if compiled else []), *fast_backends(device, "cfsam")]


def pyramid_forward(scene: Scene, name: str) -> Forward:
    """What a rival calls."""
    module: Any = scene.module
    eager = EagerCFSAM(module)
    if name == COMPILE:
        return torch.compile(eager, dynamic=False)
    return eager if name == EAGER else lambda *maps: module(maps)


class PyramidContest(SceneContest):
    """CFSAM as a module."""

    operation = "cfsam"

    def __init__(self, case: PyramidCase, effort: Effort):
        super().__init__()
        torch._dynamo.reset()
        scene = pyramid_scene(case)
        for name in pyramid_rivals(case):
            self.enter(name, scene, pyramid_forward(scene, name), name)
        self.check_and_run(effort)


def attend(q: Tensor, k: Tensor, v: Tensor, case: AttentionCase) -> Tensor:
    """Partitioned attention by Triton's kernels, whatever serves the device."""
    return partition_attention(q, k, v, case.parts, case.heads, "triton")


def gather_tokens(*maps: Tensor, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """Tokens and normalised tokens of maps, without resizing, by Triton's kernels."""
    length = count_tokens(maps)
    return token_gather(maps, None, affine(norm), length, "triton")
