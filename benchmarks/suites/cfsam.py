"""CFSAM and its attention alone, beside their reference, torch.compile, and torch's attention on permuted copies and on
the view that needs none."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastattn
from fastattn import functional, reference
from fastattn.bench.contest import COMPILE, EAGER, fast_backends
from fastattn.bench.devices import Cpu
from fastattn.bench.scene import Forward, Scene
from fastattn.bench.sizes import CHANNELS_LAST, CONTIGUOUS, FORWARD, MEMORY_FORMATS, SSD_LEVELS, TRAINING, WORKS
from fastattn.bench.suite import Selection, Suite, Table
from fastattn.cfsam.partition_attention import partition_attention
from fastattn.cfsam.reference import Affine
from fastattn.cfsam.token_gather import count_tokens, token_gather

from ..shapes import GPU_BATCH, GPU_DTYPES, case_facts, marked, paired
from .figures import (
    FAST,
    GPU_DTYPE,
    HOW,
    Record,
    Sample,
    describe_shape,
    gpu_speedup_row,
    launched,
    row,
    select,
    share_row,
    speedup_row,
)

CPU = Cpu()
COPIES, VIEW = "sdpa copies", "sdpa view"
MOST_SCORES = 2 << 30  # bytes that an explicit softmax may take for its scores
MOST_SCORES_ON_GPU = 16 << 30
CHECKED_TOKENS = 256  # where the scores of all would take more
CHECKED_IMAGES = 1

SMOKE_LEVELS = ((16, 5), (24, 3), (8, 1))
GPU_SMOKE_DIM = 128  # heads of 16, the least that Triton's kernels take
LONG = 20_000  # tokens
FULL = "LFE + GFE + fusion"
ABLATIONS: dict[str, dict[str, Any]] = {
    "LFE": {"depth": 0, "fusion": False},
    "LFE + GFE": {"fusion": False},
    FULL: {},
}
POSITIONS = ("shallow", "deep", "all")


@dataclass(frozen=True)
class AttentionCase:
    """Queries, keys and values (batch, tokens, heads * head_dim) whose tokens attend within parts."""

    batch: int = 4
    tokens: int = 1940
    parts: int = 2
    work: str = FORWARD
    heads: int = 8
    head_dim: int = 32
    dtype: torch.dtype = torch.float32
    memory_format = CONTIGUOUS
    suite = "attention"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.batch, self.tokens, self.heads * self.head_dim

    def __str__(self) -> str:
        shape = f"{self.batch}x{self.tokens}x{self.heads}x{self.head_dim}"
        return "-".join([shape, str(self.parts), *marked(self.dtype), self.work.replace(" ", "")])

    def facts(self) -> dict[str, object]:
        """What a result file says about it."""
        split = f"({self.batch}, {self.tokens}, {self.heads} × {self.head_dim})"
        return case_facts(self) | {"heads": self.heads, "parts": self.parts, "q, k, v": split}


@dataclass(frozen=True)
class PyramidCase:
    """The maps of a pyramid's levels (channels, side), what is done with them, what of CFSAM does it, and whether
    torch.compile takes part."""

    batch: int = 4
    memory_format: str = CONTIGUOUS
    work: str = FORWARD
    ablation: str = FULL
    levels: tuple[tuple[int, int], ...] = SSD_LEVELS
    dim: int = 256
    dtype: torch.dtype = torch.float32
    compiled: bool = True
    suite = "pyramid"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tokens."""
        return self.batch, sum(side * side for _, side in self.levels), self.dim

    def __str__(self) -> str:
        parts = [f"{self.batch}x{self.shape[1]}x{self.dim}", self.ablation.replace(" ", ""), self.memory_format]
        return "-".join([*parts, *marked(self.dtype), self.work.replace(" ", "")])

    def facts(self) -> dict[str, object]:
        """What a result file says about it."""
        levels = [f"{channels}@{side}" for channels, side in self.levels]
        return case_facts(self) | {"levels": levels, "ablation": self.ablation}


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
    return [*explicit, COPIES, VIEW, *fast_backends("partition_attention", device.type)]


class Attend(nn.Module):
    """An attention in the parts and heads of a case."""

    def __init__(self, attention: Callable[..., Tensor], case: AttentionCase):
        super().__init__()
        self.attention, self.parts, self.heads = attention, case.parts, case.heads

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.attention(q, k, v, num_parts=self.parts, num_heads=self.heads)


def by(attention: Callable[..., Tensor]) -> Callable[[Scene], Forward]:
    """What computes a scene's attention."""
    return lambda scene: Attend(attention, scene.case)


class EagerCFSAM(nn.Module):
    """The reference on the parameters of a CFSAM module, without any dispatch."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, *maps: Tensor) -> list[Tensor]:
        m: Any = self.module
        return reference.cfsam(maps, *m.operands(), num_parts=m.num_parts, num_heads=m.num_heads)


def affine(module: Any) -> Affine:
    return module.weight, module.bias


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
    return Scene(case, module, inputs, grads, EagerCFSAM, images=CHECKED_IMAGES)


def pyramid_rivals(case: PyramidCase, device: Cpu = CPU) -> list[str]:
    """Who takes part; torch.compile, which takes its time, in the module as a whole where the case wants it."""
    compiled = case.compiled and case.ablation == FULL
    return [EAGER, *([COMPILE] if compiled else []), *fast_backends("cfsam", device.type)]


def of_maps(scene: Scene) -> Forward:
    """The module on its maps one by one."""
    return lambda *maps: scene.module(maps)


def attend(q: Tensor, k: Tensor, v: Tensor, case: AttentionCase) -> Tensor:
    """Partitioned attention by Triton's kernels, whatever serves the device."""
    return partition_attention(q, k, v, case.parts, case.heads, "triton")


def gather_tokens(*maps: Tensor, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """Tokens and normalised tokens of maps, without resizing, by Triton's kernels."""
    length = count_tokens(maps)
    return token_gather(maps, None, affine(norm), length, "triton")


def attention_cases(selection: Selection) -> list[AttentionCase]:
    """Those of SSD300 in several parts, and in a full run long ones."""
    if selection == "smoke":
        return [AttentionCase(1, 40, 2, work) for work in WORKS]
    if selection == "default":
        return [*(AttentionCase(work=work) for work in WORKS), AttentionCase(1, parts=4)]
    short = [AttentionCase(batch, 1940, *how) for batch, how in product((1, 4), product((1, 2, 4), WORKS))]
    long = [AttentionCase(1, *how) for how in product((7760, LONG), (2, 4), WORKS)]
    return short + long


def pyramid_cases(selection: Selection) -> list[PyramidCase]:
    """CFSAM at SSD300's levels, and what its parts cost; by default torch.compile takes part in one case."""
    if selection == "smoke":
        return [PyramidCase(1, work=work, levels=SMOKE_LEVELS, dim=32) for work in WORKS]
    if selection == "full":
        return [PyramidCase(*parts) for parts in product((1, 4), MEMORY_FORMATS, WORKS, ABLATIONS)]
    asked = [PyramidCase(memory_format=layout, compiled=layout == CONTIGUOUS) for layout in MEMORY_FORMATS]
    ablations = [PyramidCase(1, ablation=ablation, compiled=False) for ablation in ABLATIONS]
    return [*asked, PyramidCase(1, work=TRAINING, compiled=False), *ablations]


def gpu_cfsam_cases(selection: Selection) -> list[AttentionCase | PyramidCase]:
    """CFSAM on a GPU, what matters most first: its attention in several parts and long, then the module in both
    formats."""
    cases: list[AttentionCase | PyramidCase] = []
    if selection == "smoke":
        for dtype, layout, work in ((torch.bfloat16, CONTIGUOUS, FORWARD), (torch.float32, CHANNELS_LAST, TRAINING)):
            cases.append(AttentionCase(1, 40, work=work, dtype=dtype))
            cases.append(PyramidCase(1, layout, work, levels=SMOKE_LEVELS, dim=GPU_SMOKE_DIM, dtype=dtype))
        return cases
    sizes = (GPU_BATCH, 1940, 2), (GPU_BATCH, 1940, 1), (GPU_BATCH, 1940, 4), (1, LONG, 2)
    for dtype in GPU_DTYPES:
        cases += [AttentionCase(*size, work, dtype=dtype) for size, work in product(sizes, WORKS)]
        cases += [PyramidCase(GPU_BATCH, layout, work, dtype=dtype) for work, layout in product(WORKS, MEMORY_FORMATS)]
    return cases


SUITES = (
    Suite(
        "attention",
        "test_attention",
        Table(
            "Partitioned attention",
            {"q, k, v": "q, k, v", "parts": "parts", "dtype": "dtype", "work": "work"},
            options=("heads", "parts"),
            label=("parts",),
            rate=("GFLOP/s", "gflop_per_s"),
            notes=(
                "GFLOP/s: multiplications and additions of the matrix products, two forward and five backward, by that "
                "time.",
                "The explicit softmax, eager's and compile's, is left out where its scores alone would not fit.",
            ),
            yardsticks=(COPIES, VIEW),
            chart="Partitioned attention",
            readme="all",
        ),
        attention_cases,
        attention_rivals,
        operation="partition_attention",
        scene=attention_scene,
        eager=by(reference.partition_attention),
        fast=by(functional.partition_attention),
        others={COPIES: by(sdpa_copies), VIEW: by(sdpa_view)},
        rates=lambda case, seconds: {"gflop_per_s": operations(case) / seconds / 1e9},
    ),
    Suite(
        "pyramid",
        "test_cfsam",
        Table(
            "CFSAM at SSD300's levels",
            {
                "batch": "shape.0",
                "tokens": "shape.1",
                "parts of it": "ablation",
                "dtype": "dtype",
                "format": "format",
                "work": "work",
            },
            options=("ablation", "levels"),
            label=("ablation",),
            rate=("images/s", "images_per_s"),
            notes=("LFE: local extraction; GFE: the transformer block over all levels; fusion of both.",),
            chart="CFSAM",
            readme="all",
        ),
        pyramid_cases,
        pyramid_rivals,
        operation="cfsam",
        scene=pyramid_scene,
        eager=lambda scene: EagerCFSAM(scene.module),
        fast=of_maps,
    ),
)
PARTS = {"cfsam": paired(gpu_cfsam_cases)}


# What the project asked of CFSAM.
# None: for comparison.
ATTENTION = (
    (FORWARD, "eager", 4.0),
    (FORWARD, "sdpa view", 1.0),
    (TRAINING, "eager", 2.5),
    (TRAINING, "sdpa view", None),
)
MODULE = 1.3
MEMORY = 2.0  # GiB
GATHER = 1.1
GATHER_PASSES = 3  # over the maps: they are read once, tokens are written twice
ATTENTION_PASSES = 4 / 3  # over q, k and v: and out

# On a GPU.
GPU_ATTENTION = ((FORWARD, 1.2), (TRAINING, 1.0))
GPU_MODULE = (("eager", 2.0), ("compile", 1.3))


def summary(records: Sequence[Record]) -> list[dict[str, Any]]:
    """CFSAM's rows."""
    return [
        *(attention_row(records, *asked) for asked in ATTENTION),
        *(module_row(records, layout) for layout in MEMORY_FORMATS),
        *(detector_row(records, levels) for levels in POSITIONS),
        *(memory_row(records, work) for work in WORKS),
        *(gather_row(records, layout) for layout in MEMORY_FORMATS),
        attention_traffic_row(records),
    ]


def gpu_summary(records: Sequence[Record]) -> list[dict[str, Any]]:
    """CFSAM's rows on a GPU in bfloat16, launches and graphs each by themselves; by the median of the rounds."""
    by_launch = launched(records)
    return [
        *(gpu_attention_row(found, launch, *asked) for asked in GPU_ATTENTION for launch, found in by_launch),
        *(gpu_module_row(found, launch, *asked) for asked in GPU_MODULE for launch, found in by_launch),
    ]


def gpu_attention_row(records: Sequence[Record], launch: str, work: str, asked: float) -> dict[str, Any]:
    case = AttentionCase(GPU_BATCH, work=work, dtype=GPU_DTYPE)
    return gpu_speedup_row(records, [case], VIEW, asked, f"{describe_attention(case)}, {HOW[launch]}")


def gpu_module_row(records: Sequence[Record], launch: str, over: str, asked: float) -> dict[str, Any]:
    cases = [PyramidCase(GPU_BATCH, layout, dtype=GPU_DTYPE) for layout in MEMORY_FORMATS]
    what = f"CFSAM forward, SSD300's levels, batch {GPU_BATCH} in both formats, {HOW[launch]}, geometric mean"
    return gpu_speedup_row(records, cases, over, asked, what)


def attention_row(records: Sequence[Record], work: str, over: str, asked: float | None) -> dict[str, Any]:
    case = AttentionCase(work=work)
    return speedup_row(records, [case], over, asked, describe_attention(case))


def describe_attention(case: AttentionCase) -> str:
    return f"Attention {case.work}, {case.parts} parts of {describe_shape(case.shape)}, {case.heads} heads"


def module_row(records: Sequence[Record], layout: str) -> dict[str, Any]:
    case = PyramidCase(memory_format=layout)
    what = f"CFSAM forward, SSD300's levels, batch {case.batch}, {layout}"
    return speedup_row(records, [case], "eager", MODULE, what)


def detector_row(records: Sequence[Record], levels: str) -> dict[str, Any]:
    """For comparison, in the largest batch that ran."""
    wanted = {"model": "ssd300_vgg16", "levels": levels, "format": CONTIGUOUS}
    batch = max((record["shape"][0] for record in select(records, suite="model", **wanted)), default=None)
    what = f"SSD300 + CFSAM on {levels} levels" + (f", batch {batch}" if batch else "")
    return share_row(records, what, None, batch=batch, **wanted)


def memory_row(records: Sequence[Record], work: str) -> dict[str, Any]:
    case = AttentionCase(1, LONG, work=work)
    found = select(records, suite="memory", backend=FAST, **case.facts())
    sizes = [record["peak_memory_bytes"] / 2**30 for record in found]
    what = f"Attention {work}, {case.parts} parts of {describe_shape(case.shape)}, memory at its peak"
    return row(what, "GiB", "<=", MEMORY, [Sample("", size, size) for size in sizes], cases=1)


def gather_row(records: Sequence[Record], layout: str) -> dict[str, Any]:
    found = select(records, suite="traffic", operation="gather", format=layout)
    what = f"Triton, counted traffic of the token gather, SSD300's levels, {layout}, float32"
    return row(what, "times maps + 2 × tokens", "<=", GATHER, moved(found, GATHER_PASSES), cases=1)


def attention_traffic_row(records: Sequence[Record]) -> dict[str, Any]:
    """For comparison: what the L2 serves is counted too."""
    found = select(records, suite="traffic", operation="attention")
    what = "Triton, counted traffic of attention forward, 2 parts of 1940 tokens, float32"
    return row(what, "times q + k + v + out", "<=", None, moved(found, ATTENTION_PASSES), cases=1)


def moved(records: Sequence[Record], passes: float) -> list[Sample]:
    sizes = [record["forward_traffic_over_x"] / passes for record in records]
    return [Sample("", size, size) for size in sizes]
