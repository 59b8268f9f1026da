"""ACP and CAT as modules, beside their reference, torch.compile, and torch's own operators rearranged."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

import fastattn
from fastattn import reference
from fastattn.bench.contest import COMPILE, EAGER, fast_backends
from fastattn.bench.devices import Cpu
from fastattn.bench.scene import Scene
from fastattn.bench.sizes import (
    ACP_SIZES,
    CAT_SIZES,
    CHANNELS_LAST,
    CONTIGUOUS,
    FORWARD,
    MEMORY_FORMATS,
    TRAINING,
    WORKS,
)
from fastattn.bench.suite import Selection, Suite, Table
from fastattn.interaction.acp import operation as acp
from fastattn.interaction.cat import operation as cat

from ..shapes import GPU_BATCH, GPU_DTYPES, case_facts, marked, paired
from .figures import GPU_DTYPE, HOW, Record, gpu_speedup_row, launched, share_row, speedup_row

CPU = Cpu()
COMPOSED = "composed"
CHECKED_IMAGES = 1
ACP_BATCH, ACP_LAYERS = 8, 2
CAT_BATCH = 4
CAT_TOKENS, CAT_CONCEPTS = ((197, 192), (3136, 192), (16384, 96)), (16, 64, 256)  # tokens with their channels
SMOKE_ACP, SMOKE_CAT = (8, 9), (40, 6, 8)
TRANSFORMERS = ("vit_tiny_patch16_224", "swin_tiny_patch4_window7_224")


@dataclass(frozen=True)
class AcpCase:
    """Maps (batch, dim, side, side), ACP's layers, what is done with them, and whether torch.compile takes part."""

    batch: int
    dim: int
    side: int
    layers: int = ACP_LAYERS
    work: str = FORWARD
    memory_format: str = CONTIGUOUS
    dtype: torch.dtype = torch.float32
    compiled: bool = True
    suite = "acp"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.batch, self.dim, self.side, self.side

    def __str__(self) -> str:
        parts = ["x".join(map(str, self.shape)), str(self.layers), self.memory_format]
        return "-".join([*parts, *marked(self.dtype), self.work.replace(" ", "")])

    def facts(self) -> dict[str, object]:
        """What a result file says about it."""
        return case_facts(self) | {"layers": self.layers}


@dataclass(frozen=True)
class CatCase:
    """Tokens (batch, tokens, dim), CAT's concepts, what is done with them, and whether torch.compile takes part."""

    batch: int
    tokens: int
    concepts: int
    dim: int
    work: str = FORWARD
    dtype: torch.dtype = torch.float32
    compiled: bool = True
    memory_format = CONTIGUOUS
    suite = "cat"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.batch, self.tokens, self.dim

    def __str__(self) -> str:
        parts = ["x".join(map(str, self.shape)), str(self.concepts), *marked(self.dtype)]
        return "-".join([*parts, self.work.replace(" ", "")])

    def facts(self) -> dict[str, object]:
        """What a result file says about it."""
        return case_facts(self) | {"concepts": self.concepts}


class Eager(nn.Module):
    """The reference on the parameters of a module, without any dispatch."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        m: Any = self.module
        if m.operation == "cat":
            return reference.conceptual_attention(x, *m.operands())
        return reference.aggressive_conv_pooling(x, *m.operands(), pool_size=m.pool_size, aggregate=m.aggregate)


class Composed(Eager):
    """The reference's algebra, by torch's own operators."""

    def forward(self, x: Tensor) -> Tensor:
        m: Any = self.module
        if m.operation == "cat":
            score, value, out = m.operands()
            return cat.compose(x, (score, *value, *out))
        convs, proj = m.operands()
        return acp.compose(x, convs, proj, m.pool_size)


def coarse(tensor: Tensor, step: float) -> Tensor:
    """The nearest multiples of a step."""
    return (tensor / step).round() * step


def make(case: AcpCase | CatCase) -> tuple[nn.Module, Tensor]:
    """A fresh module and its x.

    ACP's numbers are so coarse that no convolution rounds in float32: where two pixels of a window differ by a
    rounding, their gradient may go to either.
    """
    torch.manual_seed(0)
    if isinstance(case, CatCase):
        return fastattn.ConceptualAttention(case.dim, case.concepts), torch.randn(case.shape)
    module = fastattn.AggressiveConvPooling(case.dim, case.layers)
    with torch.no_grad():
        for parameter in module.convs.parameters():
            parameter.copy_(coarse(parameter, 2**-4))
    return module, coarse(torch.randn(case.shape), 2**-3)


def interaction_scene(case: AcpCase | CatCase, device: str = "cpu") -> Scene:
    """A module, its x, and the gradient of out; of a forward pass the first images are checked."""
    module, x = make(case)
    grad = torch.randn(case.shape)
    layout = MEMORY_FORMATS[case.memory_format]
    x, grad = (t.to(device, case.dtype) for t in (x, grad))
    module.to(device, case.dtype)
    if isinstance(case, AcpCase):
        module.to(memory_format=layout)
        x, grad = (t.contiguous(memory_format=layout) for t in (x, grad))
    return Scene(case, module, {"x": x}, [grad], Eager, images=CHECKED_IMAGES)


def interaction_rivals(case: AcpCase | CatCase, device: Cpu = CPU) -> list[str]:
    """Who takes part; torch.compile, which takes its time, where the case wants it, and on a CPU what serves one."""
    compiled = [COMPILE] if case.compiled else []
    composed = [COMPOSED] if device.launches == Cpu.launches else []
    return [EAGER, *compiled, *composed, *fast_backends(case.suite, device.type)]


def acp_cases(selection: Selection) -> list[AcpCase]:
    """ACP forward and in training; there torch.compile, which takes its time, in a full run alone."""
    if selection == "smoke":
        return [AcpCase(1, *SMOKE_ACP, work=work, compiled=work == FORWARD) for work in WORKS]
    if selection == "default":
        usual = product(WORKS, ACP_SIZES)
        return [AcpCase(ACP_BATCH, *size, work=work, compiled=work == FORWARD) for work, size in usual]
    order = product(ACP_SIZES, (1, 2, 3, 4), WORKS, MEMORY_FORMATS)
    return [AcpCase(ACP_BATCH, *size, layers, work, layout) for size, layers, work, layout in order]


def cat_cases(selection: Selection) -> list[CatCase]:
    """CAT forward and in training; there torch.compile, which takes its time, in a full run alone."""
    if selection == "smoke":
        return [CatCase(1, *SMOKE_CAT, work, compiled=work == FORWARD) for work in WORKS]
    if selection == "default":
        usual = product(WORKS, CAT_SIZES)
        return [CatCase(CAT_BATCH, *size, work, compiled=work == FORWARD) for work, size in usual]
    order = product(CAT_TOKENS, CAT_CONCEPTS, WORKS)
    return [CatCase(CAT_BATCH, tokens, concepts, dim, work) for (tokens, dim), concepts, work in order]


def gpu_interaction_cases(selection: Selection) -> list[AcpCase | CatCase]:
    """ACP and CAT on a GPU, what matters most first: forward, ACP in both formats, then training."""
    if selection == "smoke":
        acp = AcpCase(1, *SMOKE_ACP, work=TRAINING, memory_format=CHANNELS_LAST)
        return [CatCase(1, *SMOKE_CAT, dtype=torch.bfloat16), acp]
    cases: list[AcpCase | CatCase] = []
    for dtype, work in product(GPU_DTYPES, WORKS):
        order = product(MEMORY_FORMATS, ACP_SIZES)
        cases += [AcpCase(GPU_BATCH, *size, ACP_LAYERS, work, layout, dtype) for layout, size in order]
        cases += [CatCase(GPU_BATCH, *size, work, dtype) for size in CAT_SIZES]
    return cases


table = partial(
    Table,
    rate=("images/s", "images_per_s"),
    notes=("composed: torch's own operators, rearranged by the same algebra.",),
    yardsticks=(COMPOSED,),
    readme="all",
)
suite = partial(
    Suite,
    rivals=interaction_rivals,
    scene=interaction_scene,
    eager=lambda scene: Eager(scene.module),
    others={COMPOSED: lambda scene: Composed(scene.module)},
    budget=3.0,
)
SUITES = (
    suite(
        "acp",
        "test_acp",
        table(
            "ACP as a module",
            {name: name for name in ("shape", "layers", "dtype", "format", "work")},
            options=("layers",),
            label=("layers",),
            chart="ACP",
        ),
        acp_cases,
        operation="acp",
    ),
    suite(
        "cat",
        "test_cat",
        table(
            "CAT as a module",
            {"tokens": "shape", "concepts": "concepts", "dtype": "dtype", "work": "work"},
            options=("concepts",),
            label=("concepts",),
            chart="CAT",
        ),
        cat_cases,
        operation="cat",
    ),
)
PARTS = {"interaction": paired(gpu_interaction_cases)}


# What the project asked of ACP and CAT.
# None: for comparison.
ACP = (
    (FORWARD, "eager", 2.5),
    (FORWARD, "compile", 1.5),
    (FORWARD, "composed", None),
    (TRAINING, "eager", 1.7),
    (TRAINING, "composed", None),
)
CAT = (
    (FORWARD, "eager", 1.7),
    (FORWARD, "compile", 1.6),
    (FORWARD, "composed", None),
    (TRAINING, "eager", 1.7),
    (TRAINING, "composed", None),
)

# On a GPU.
GPU_SPEEDUPS = (
    (FORWARD, "eager", 3.0),
    (FORWARD, "compile", 1.3),
    (TRAINING, "eager", None),
    (TRAINING, "compile", None),
)


def summary(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Rows of ACP, CAT, and the models that have both."""
    return [
        *(acp_row(records, *asked) for asked in ACP),
        *(cat_row(records, *asked) for asked in CAT),
        *(model_row(records, model) for model in TRANSFORMERS),
    ]


def gpu_summary(records: Sequence[Record]) -> list[dict[str, Any]]:
    """The same on a GPU in bfloat16, launches and graphs each by themselves; by the median of the rounds."""
    return [
        gpu_row(found, launch, operation, *asked)
        for operation in ("acp", "cat")
        for asked in GPU_SPEEDUPS
        for launch, found in launched(records)
    ]


def model_row(records: Sequence[Record], model: str) -> dict[str, Any]:
    """For comparison."""
    what = f"{model} + ACP + CAT, batch {ACP_BATCH}"
    return share_row(records, what, None, batch=ACP_BATCH, model=model, work=FORWARD)


def acp_row(records: Sequence[Record], work: str, over: str, asked: float | None) -> dict[str, Any]:
    cases = [AcpCase(ACP_BATCH, *size, work=work) for size in ACP_SIZES]
    what = f"ACP {work}, {ACP_LAYERS} layers, two shapes, batch {ACP_BATCH}, geometric mean"
    return speedup_row(records, cases, over, asked, what)


def cat_row(records: Sequence[Record], work: str, over: str, asked: float | None) -> dict[str, Any]:
    cases = [CatCase(CAT_BATCH, *size, work) for size in CAT_SIZES]
    what = f"CAT {work}, three shapes, batch {CAT_BATCH}, geometric mean"
    return speedup_row(records, cases, over, asked, what)


def gpu_row(
    records: Sequence[Record], launch: str, operation: str, work: str, over: str, asked: float | None
) -> dict[str, Any]:
    cases: list[AcpCase | CatCase] = [CatCase(GPU_BATCH, *size, work, GPU_DTYPE) for size in CAT_SIZES]
    shapes = "three shapes"
    if operation == "acp":
        shapes = f"{ACP_LAYERS} layers, two shapes in both formats"
        cases = [
            AcpCase(GPU_BATCH, *size, ACP_LAYERS, work, layout, GPU_DTYPE)
            for layout in MEMORY_FORMATS
            for size in ACP_SIZES
        ]
    what = f"{operation.upper()} {work}, batch {GPU_BATCH}, {shapes}, {HOW[launch]}, geometric mean"
    return gpu_speedup_row(records, cases, over, asked, what)
