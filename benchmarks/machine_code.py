"""What the compilers make of the kernels, for GPUs that need not be here: `python -m benchmarks.machine_code`.

Every launch of the default plans at batch 32, of SCSA in the shapes of ResNet-50's four stages, of CFSAM's attention
and token gather at SSD300's levels, of the own kernels of LGA, ACP and CAT at the maps and tokens of their backbones,
in three dtypes, both memory formats and for four architectures: registers, spills, shared memory, occupancy, and how
wide the loads and stores of global memory are, counted in the machine code that ptxas emits and nvdisasm prints. Triton
brings both tools. The CUDA kernels, which NVRTC compiles, are in `cubins`.
"""

import argparse
import functools
import importlib
import math
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby, product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

import fastattn
from fastattn.bench.scene import outputs
from fastattn.bench.sizes import ACP_SIZES, CAT_SIZES, CHANNELS_LAST, LGA_SIZES, MEMORY_FORMATS, STAGES, name_of
from fastattn.cfsam.partition_attention import HEAD_DIMS
from fastattn.report import Table, to_text

from .suites.cfsam import AttentionCase, PyramidCase, attend, gather_tokens, random_maps
from .suites.interaction import ACP_LAYERS, AcpCase, CatCase
from .suites.lga import CONTRACTIONS, LgaCase
from .suites.scsa import Case

BATCH = 32
DTYPES = {name_of(dtype): dtype for dtype in (torch.float32, torch.bfloat16, torch.float16)}
WORKS = ("forward", "backward")
OPERATIONS = ("scsa", "attention", "gather", "lga", "acp", "cat", "cuda")
TRITON_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.uint8: "u8"}

ComposedCase = AttentionCase | PyramidCase | LgaCase | AcpCase | CatCase
AnyCase = Case | ComposedCase
# pass -> launches, each with the dtypes of its tensors, a tuple for a tuple, and the bytes that it moves at least: of
# SCSA, those of the maps
Launches = dict[str, list[tuple[Any, list[Any], int]]]
MAPS = {"x", "out", "grad_out", "grad_x"}  # of SCSA

REGISTERS = 1 << 16  # of one multiprocessor
REGISTER_UNIT, SHARED_UNIT, SHARED_RESERVED = 256, 128, 1024  # per warp; bytes; bytes of every block
PARTITIONS = 4  # of a multiprocessor, each with its share of the registers and warps


@dataclass(frozen=True)
class Limits:
    """What a multiprocessor holds: warps, blocks, KiB of shared memory."""

    warps: int
    blocks: int
    shared: int


LIMITS = {
    80: Limits(64, 32, 164),
    89: Limits(48, 24, 100),
    90: Limits(64, 32, 228),
    100: Limits(64, 32, 228),
    120: Limits(48, 24, 100),
}
ARCHITECTURES = {arch: LIMITS[arch] for arch in (80, 89, 90, 100)}  # that Triton's kernels are compiled for


@dataclass(frozen=True)
class Compilation:
    """All that decides what a kernel is compiled to."""

    module: str
    kernel: str
    types: tuple[Any, ...]  # of the parameters, in their order, a tuple for a tuple
    constants: tuple[tuple[str, Any], ...]
    options: tuple[tuple[str, Any], ...]
    arch: int

    @property
    def warps(self) -> int:
        return dict(self.options)["num_warps"]


@dataclass(frozen=True)
class Code:
    """What a kernel was compiled to: per thread, per block, and instructions by their width in bits."""

    registers: int = 0
    stack: int = 0
    spilled: int = 0  # bytes that spill instructions move, each counted once
    spills_in_loops: int = 0  # those instructions that stand in an innermost loop
    shared: int = 0
    occupancy: float = 0.0
    loads: Counter[int] = field(default_factory=Counter)
    stores: Counter[int] = field(default_factory=Counter)
    generic: int = 0  # of either kind of memory, shared or global: the compiler could not tell
    atomics: int = 0
    error: str = ""


@dataclass(frozen=True)
class Row:
    """One launch of a plan, and its compilation."""

    case: AnyCase
    work: str
    programs: int
    compilation: Compilation
    sizes: tuple[int, ...] = ()  # that the kernel is given
    moved: int = 0  # bytes, each tensor's once


def scsa_cases(
    stages: Iterable[tuple[int, int, int]] = STAGES,
    dtypes: Iterable[torch.dtype] = tuple(DTYPES.values()),
    formats: Iterable[str] = tuple(MEMORY_FORMATS),
) -> list[Case]:
    """The inputs of SCSA."""
    return [Case((BATCH, *stage), dtype, layout) for dtype, layout, stage in product(dtypes, formats, stages)]


def attention_cases(
    head_dims: Iterable[int] = HEAD_DIMS, dtypes: Iterable[torch.dtype] = tuple(DTYPES.values())
) -> list[AttentionCase]:
    """The inputs of partitioned attention."""
    order = product(dtypes, head_dims)
    return [AttentionCase(BATCH, head_dim=head_dim, dtype=dtype) for dtype, head_dim in order]


def gather_cases(
    dtypes: Iterable[torch.dtype] = tuple(DTYPES.values()), formats: Iterable[str] = tuple(MEMORY_FORMATS)
) -> list[PyramidCase]:
    """The maps of the token gather."""
    return [PyramidCase(BATCH, layout, dtype=dtype) for dtype, layout in product(dtypes, formats)]


def lga_cases(
    sizes: Iterable[tuple[int, int, int]] = LGA_SIZES,
    dtypes: Iterable[torch.dtype] = tuple(DTYPES.values()),
    formats: Iterable[str] = tuple(MEMORY_FORMATS),
    contractions: Iterable[str] = CONTRACTIONS,
) -> list[LgaCase]:
    """The inputs of LGA."""
    order = product(dtypes, formats, sizes, contractions)
    return [
        LgaCase(BATCH, *size, contraction=contraction, memory_format=layout, dtype=dtype)
        for dtype, layout, size, contraction in order
    ]


def acp_cases(
    sizes: Iterable[tuple[int, int]] = ACP_SIZES,
    dtypes: Iterable[torch.dtype] = tuple(DTYPES.values()),
    formats: Iterable[str] = tuple(MEMORY_FORMATS),
    layers: int = ACP_LAYERS,
) -> list[AcpCase]:
    """The inputs of ACP."""
    order = product(dtypes, formats, sizes)
    return [AcpCase(BATCH, *size, layers, memory_format=layout, dtype=dtype) for dtype, layout, size in order]


def cat_cases(
    sizes: Iterable[tuple[int, int, int]] = CAT_SIZES, dtypes: Iterable[torch.dtype] = tuple(DTYPES.values())
) -> list[CatCase]:
    """The inputs of CAT: tokens, concepts, channels."""
    return [CatCase(BATCH, *size, dtype=dtype) for dtype, size in product(dtypes, sizes)]


def rows(cases: Iterable[AnyCase], archs: Iterable[int], works: Iterable[str] = WORKS) -> list[Row]:
    """Every launch of the plans of these cases."""
    return [row for arch, case, work in product(archs, cases, works) for row in launches(case, work, arch)]


def default_plan(case: Case) -> Any:
    """The plan of a default SCSA, its parameters in the dtype of x."""
    from fastattn.kernels.scsa import call as scsa

    module: Any = fastattn.SCSA(case.shape[1])
    return scsa.plan(
        spatial=True,
        channel=True,
        shape=case.shape,
        numels=tuple(parameter.numel() for parameter in module._params()),
        options=(module.head_num, module.window_size, module.down_sample_mode, module.gate_layer),
        x_dtype=case.dtype,
        out_dtype=case.dtype,
        param_dtype=case.dtype,
        channels_last=case.memory_format == CHANNELS_LAST,
        device=torch.device("cpu"),
        alignment=0,
    )


def launches(case: AnyCase, work: str, arch: int) -> Iterator[Row]:
    """The launches of one pass."""
    made = scsa_launches(case) if isinstance(case, Case) else composed_launches(case)
    for launch, dtypes, moved in made[work]:
        given = map(kind, (*dtypes, *launch.sizes.values()))
        types = (*given, *["constexpr"] * len(launch.constants))
        constants = tuple(launch.constants.items())
        options = tuple(launch.options.items())
        compilation = Compilation(launch.kernel.__module__, launch.name, types, constants, options, arch)
        programs = launch.grid[0] * launch.grid[1] * launch.grid[2]
        yield Row(case, work, programs, compilation, leaves(launch.sizes.values()), moved)


def kind(value: Any) -> Any:
    """Return Triton's type of a pointer to a dtype, of a size, or of each of a tuple."""
    if isinstance(value, tuple):
        return tuple(map(kind, value))
    if isinstance(value, torch.dtype):
        return f"*{TRITON_NAMES[value]}"
    return "i32" if abs(value) < 1 << 31 else "i64"


def leaves(values: Iterable[Any]) -> tuple[Any, ...]:
    """Return what is in values, with tuples laid open, as a kernel is given it."""
    return tuple(leaf for value in values for leaf in (value if isinstance(value, tuple) else (value,)))


def scsa_launches(case: Case) -> Launches:
    plan, size = default_plan(case), math.prod(case.shape) * case.dtype.itemsize
    return {
        work: [
            (launch, [plan.dtypes[name] for name in launch.tensors], size * len(MAPS & {*launch.tensors}))
            for launch in getattr(plan, work)
        ]
        for work in WORKS
    }


@functools.cache
def composed_launches(case: ComposedCase) -> Launches:
    """What attention, the first gather of a CFSAM, an LGA, ACP or CAT would launch for both passes."""
    forward: Callable[..., Any]
    if isinstance(case, AttentionCase):
        inputs = [torch.empty(case.shape, dtype=case.dtype) for _ in range(3)]
        forward = functools.partial(attend, case=case)
    elif isinstance(case, PyramidCase):
        inputs = random_maps(case, [case.dim] * len(case.levels))
        forward = functools.partial(gather_tokens, norm=torch.nn.LayerNorm(case.dim, dtype=case.dtype))
    else:
        layout = MEMORY_FORMATS[case.memory_format]
        inputs = [torch.empty(case.shape, dtype=case.dtype, device="meta", memory_format=layout)]
        forward = lga(case) if isinstance(case, LgaCase) else interaction(case)
    inputs = [x.requires_grad_() for x in inputs]
    with recorded() as forwards:
        outs = outputs(forward(*inputs))
    with recorded() as backwards:
        torch.autograd.grad(outs, inputs, [torch.empty_like(out) for out in outs])
    again = {launch.name for launch, *_ in forwards}  # LGA's backward begins with its forward
    return {"forward": forwards, "backward": [made for made in backwards if made[0].name not in again]}


def lga(case: LgaCase) -> Callable[..., Any]:
    """LGA by its own kernels, on no device."""
    from fastattn.lga.operation import local_global_attention

    module = fastattn.LocalGlobalAttention(case.dim, case.heads).to("meta", case.dtype)
    return lambda x: local_global_attention(
        x, *module.operands(), num_heads=case.heads, contraction=case.contraction, dtype=case.dtype, backend="triton"
    )


def interaction(case: AcpCase | CatCase) -> Callable[..., Any]:
    """ACP or CAT by its own kernels, on no device."""
    from fastattn.interaction.operation import aggressive_conv_pooling, conceptual_attention

    if isinstance(case, CatCase):
        cat = fastattn.ConceptualAttention(case.dim, case.concepts).to("meta", case.dtype)
        return lambda x: conceptual_attention(x, *cat.operands(), case.dtype, "triton")
    acp = fastattn.AggressiveConvPooling(case.dim, case.layers).to("meta", case.dtype)
    return lambda x: aggressive_conv_pooling(x, *acp.operands(), acp.pool_size, case.dtype, "triton")


@contextmanager
def recorded() -> Iterator[list[tuple[Any, list[Any], int]]]:
    """Launch nothing; note what would be launched, the dtypes of its tensors and their bytes."""
    from fastattn.kernels.common.launch import Launch

    made: list[tuple[Any, list[Any], int]] = []

    def note(launch: Launch, arguments: Sequence[Any]) -> None:
        tensors = launch.pick(arguments)
        distinct = {id(tensor): tensor.nbytes for tensor in leaves(tensors)}  # one may stand in for what is not there
        dtypes = [tuple(part.dtype for part in t) if isinstance(t, tuple) else t.dtype for t in tensors]
        made.append((launch, dtypes, sum(distinct.values())))

    with patch.object(Launch, "__call__", note):
        yield made


def compile_all(compilations: Iterable[Compilation], jobs: int | None = None) -> dict[Compilation, Code]:
    """Compile each distinct one once, on all cores."""
    return by_compilation(compile_one, compilations, jobs)


def intermediates(compilations: Iterable[Compilation], jobs: int | None = None) -> dict[Compilation, str]:
    """What Triton's front end makes of each distinct one, on all cores."""
    return by_compilation(intermediate, compilations, jobs)


def by_compilation(work: Callable[[Any], Any], compilations: Iterable[Any], jobs: int | None) -> dict:
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise RuntimeError("under TRITON_INTERPRET=1 nothing is compiled")
    distinct = list(dict.fromkeys(compilations))
    return dict(zip(distinct, processes(jobs or os.cpu_count()).map(work, distinct), strict=True))


@functools.cache
def processes(jobs: int) -> ProcessPoolExecutor:
    """Processes that compile, for as long as this one runs: to start one takes as long as a few kernels."""
    context = multiprocessing.get_context("spawn")  # a fork would inherit PyTorch's threads
    return ProcessPoolExecutor(jobs, mp_context=context)


def pointers(given: Any, place: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return the places of pointers in a parameter's type."""
    if isinstance(given, tuple):
        return [found for i, part in enumerate(given) for found in pointers(part, (*place, i))]
    return [place] if given.startswith("*") else []


def source_of(compilation: Compilation) -> Any:
    """Return a kernel with its types and constants, as Triton compiles it."""
    from triton.compiler import ASTSource

    kernel = getattr(importlib.import_module(compilation.module), compilation.kernel)
    attributes = {
        place: [["tt.divisibility", 16]]
        for i, given in enumerate(compilation.types)
        for place in pointers(given, (i,))
        if not kernel.params[i].do_not_specialize_on_alignment
    }
    signature = dict(zip(kernel.arg_names, compilation.types, strict=True))
    return ASTSource(kernel, signature, dict(compilation.constants), attributes)


def compiled(compilation: Compilation) -> Any:
    """Compile one kernel."""
    import triton
    from triton.backends.compiler import GPUTarget

    target = GPUTarget("cuda", compilation.arch, 32)
    return triton.compile(source_of(compilation), target=target, options=dict(compilation.options))


def compile_one(compilation: Compilation) -> Code:
    """Compile one kernel and read its machine code; what goes wrong is said in the result."""
    try:
        kernel = compiled(compilation)
        return read(
            kernel.asm["cubin"], compilation.kernel, kernel.metadata.shared, compilation.arch, compilation.warps
        )
    except Exception as error:  # reported with the others
        return Code(error=f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}")


def intermediate(compilation: Compilation) -> str:
    """Return the intermediate code of one kernel as Triton's front end writes it: all that the source says, no more."""
    from triton._C.libtriton import ir
    from triton.backends.compiler import GPUTarget
    from triton.compiler import make_backend

    target = GPUTarget("cuda", compilation.arch, 32)
    backend = make_backend(target)
    options = backend.parse_options(dict(compilation.options))
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    functions, modules = backend.get_codegen_implementation(options), backend.get_module_map()
    return str(source_of(compilation).make_ir(target, options, functions, modules, context))


# what may be done to a value of 16 bits: moved, converted, chosen, multiplied by a product that accumulates in float32
OF_HALVES = {
    *("arith.extf", "arith.truncf", "arith.uitofp", "arith.sitofp", "arith.constant", "arith.select", "ub.poison"),
    *("tt.load", "tt.store", "tt.splat", "tt.broadcast", "tt.expand_dims", "tt.trans", "tt.reshape", "tt.gather"),
    *("tt.func", "tt.call", "tt.return", "scf.if", "scf.for", "scf.while", "scf.condition", "scf.yield"),
}


def half_arithmetic(ir: str) -> list[str]:
    """Return the operations of intermediate code that compute in bfloat16 or float16."""
    found = []
    for line in re.sub(r"!tt\.ptr<b?f16>", "ptr", ir).splitlines():
        operation = re.search(r"\b(arith|math|scf|tt|ub)\.\w+", line)
        if re.search(r"b?f16\b", line) and operation:
            exact = operation[0] == "tt.dot" and re.search(r"-> tensor<[\dx]+xf32>", line)
            if not exact and operation[0] not in OF_HALVES:
                found.append(line.strip())
    return found


def read(cubin: bytes, kernel: str, dynamic: int, arch: int, warps: int) -> Code:
    """Read the machine code of one kernel, which is launched with this much dynamic shared memory."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        usage = said([knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name])
    usage = part_of(usage, r"\bFunction ", kernel)
    resources = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|SHARED):(\d+)", usage)}
    reserved = SHARED_RESERVED if arch >= 90 and resources["SHARED"] else 0  # counted there, of kernels that have any
    shared = dynamic + resources["SHARED"] - reserved
    assembly = part_of(assembly_of(cubin), r"\.section\s+\.text\.", kernel)
    counts = instructions(assembly)
    return Code(
        registers=resources["REG"],
        stack=resources["STACK"],
        spilled=sum(bits // 8 * number for bits, number in (counts["LDL"] + counts["STL"]).items()),
        spills_in_loops=spills_in_loops(assembly),
        shared=shared,
        occupancy=occupancy(LIMITS[arch], resources["REG"], shared, warps),
        loads=counts["LDG"] + counts["LDGSTS"],
        stores=counts["STG"],
        generic=counts["LD"].total() + counts["ST"].total(),
        atomics=sum(map(Counter.total, (counts["ATOM"], counts["ATOMG"], counts["RED"], counts["REDG"]))),
    )


def part_of(said: str, heading: str, kernel: str) -> str:
    """Return what a tool says of one kernel: from its heading on to the next one's."""
    _, *parts = re.split(heading, said)
    return next(part for part in parts if re.match(rf"{kernel}\b", part))


def assembly_of(cubin: bytes) -> str:
    """Disassemble one kernel."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        return said([knobs.nvidia.nvdisasm.path, "-c", "-ndf", file.name])


def said(command: Sequence[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def instructions(assembly: str) -> dict[str, Counter[int]]:
    """Memory instructions by mnemonic and width in bits: `@!P0 LDG.E.128.CONSTANT R4, ...` is one LDG of 128."""
    names = "LD", "LDG", "LDGSTS", "LDL", "ST", "STG", "STL", "ATOM", "ATOMG", "RED", "REDG"
    found = {name: Counter[int]() for name in names}
    for name, suffixes in re.findall(r"\b([A-Z]+)((?:\.\w+)*) ", assembly):
        if name in found:
            widths = [int(bits) for bits in re.findall(r"\.[US]?(8|16|64|128|256)\b", suffixes)]
            found[name][widths[0] if widths else 32] += 1
    return found


def spills_in_loops(assembly: str) -> int:
    """How many instructions move spilled registers in an innermost loop, where a few are slow."""
    labels: dict[str, int] = {}
    loops, spills, at = [], [], 0
    for line in assembly.splitlines():
        if label := re.match(r"\s*(\.L\w*):", line):
            labels[label[1]] = at
        elif found := re.search(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ +)?([A-Z]+)(.*)", line):
            name, rest = found.groups()
            target = re.search(r"\.L\w+", rest)
            if name == "BRA" and target and target[0] in labels:  # backward
                loops.append((labels[target[0]], at))
            elif name in ("LDL", "STL"):
                spills.append(at)
            at += 1
    inner = [(a, b) for a, b in loops if not any(a <= c and d <= b for c, d in loops if (c, d) != (a, b))]
    return sum(any(a <= spill <= b for a, b in inner) for spill in spills)


def occupancy(limits: Limits, registers: int, shared: int, warps: int) -> float:
    """The share of a multiprocessor's warps that can be resident."""
    per_warp = -(-registers * 32 // REGISTER_UNIT) * REGISTER_UNIT
    by_registers = REGISTERS // PARTITIONS // per_warp * PARTITIONS // warps
    by_shared = limits.shared * 1024 // (-(-(shared + SHARED_RESERVED) // SHARED_UNIT) * SHARED_UNIT)
    return min(limits.blocks, limits.warps // warps, by_registers, by_shared) * warps / limits.warps


def tables(rows: Sequence[Row], codes: dict[Compilation, Code]) -> Iterator[Table]:
    """One table for each architecture, dtype, format and shape."""
    columns = ("pass", "kernel", "programs", "warps", "registers", "spilled", "shared", "occupancy", "loads", "stores")
    for (arch, case), group in groupby(rows, lambda row: (row.compilation.arch, row.case)):
        shape = "(" + ", ".join(map(str, case.shape)) + ")"
        heads = ""
        if isinstance(case, AttentionCase):
            heads = f", {case.heads} heads in {case.parts} parts"
        elif isinstance(case, LgaCase):
            heads = f", {case.heads} heads, {case.contraction}"
        elif isinstance(case, AcpCase):
            heads = f", {case.layers} layers"
        elif isinstance(case, CatCase):
            heads = f", {case.concepts} concepts"
        yield Table(
            f"sm_{arch}, {name_of(case.dtype)}, {case.memory_format}, {shape}{heads}",
            columns,
            [tuple(cells(row, codes[row.compilation])) for row in group],
        )


def cells(row: Row, code: Code) -> list[str]:
    start = [row.work, row.compilation.kernel.removesuffix("_kernel"), str(row.programs), str(row.compilation.warps)]
    if code.error:
        return [*start, *["-"] * 5, code.error]
    measured = [str(code.registers), str(code.spilled or code.stack), str(code.shared), f"{code.occupancy:.0%}"]
    return [*start, *measured, by_width(code.loads), by_width(code.stores)]


def by_width(counts: Counter[int]) -> str:
    """Instructions by width, the widest first: 128 bits three times is 128:3."""
    return " ".join(f"{bits}:{counts[bits]}" for bits in sorted(counts, reverse=True)) or "-"


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.machine_code", description=__doc__.partition("\n")[0])
    stages = {"x".join(map(str, stage)): stage for stage in STAGES}

    def choice(name: str, choices: Iterable[Any], **options: Any) -> None:
        choices = list(choices)
        parser.add_argument(name, nargs="+", choices=choices, default=choices, metavar=str(choices[0]), **options)

    maps = {f"{dim}x{side}x{side}": (dim, heads, side) for dim, heads, side in LGA_SIZES}
    acp_maps = {f"{dim}x{side}x{side}": (dim, side) for dim, side in ACP_SIZES}
    tokens = {"x".join(map(str, size)): size for size in CAT_SIZES}
    choice("--operation", OPERATIONS, help=f"of {', '.join(OPERATIONS)}")
    choice("--arch", LIMITS, type=int, help=f"compute capabilities, of {list(LIMITS)}, the last for cuda alone")
    choice("--dtype", DTYPES, help=f"of {', '.join(DTYPES)}")
    choice("--format", MEMORY_FORMATS, help=f"of maps, of {', '.join(MEMORY_FORMATS)}")
    choice("--stage", stages, help=f"of scsa and cuda, channels x height x width, of {', '.join(stages)}")
    choice("--head-dim", HEAD_DIMS, type=int, help=f"of attention, of {list(HEAD_DIMS)}")
    choice("--map", maps, help=f"of lga, channels x height x width, of {', '.join(maps)}")
    choice("--contraction", CONTRACTIONS, help=f"of lga, of {', '.join(CONTRACTIONS)}")
    choice("--acp-map", acp_maps, help=f"of acp, channels x height x width, of {', '.join(acp_maps)}")
    choice("--tokens", tokens, help=f"of cat, tokens x concepts x channels, of {', '.join(tokens)}")
    choice("--pass", WORKS, dest="works", help=f"of {', '.join(WORKS)}")
    parser.add_argument("--jobs", type=int, help="processes (default: one per core)")
    options = parser.parse_args(arguments)
    options.stage = [stages[name] for name in options.stage]
    options.map = [maps[name] for name in options.map]
    options.acp_map = [acp_maps[name] for name in options.acp_map]
    options.tokens = [tokens[name] for name in options.tokens]
    options.dtype = [DTYPES[name] for name in options.dtype]
    return options


def main(arguments: Sequence[str]) -> int:
    """Print the tables; 1 if anything was not compiled."""
    options = parse(arguments)
    known: dict[str, Sequence[AnyCase]] = {
        "scsa": scsa_cases(options.stage, options.dtype, options.format),
        "attention": attention_cases(options.head_dim, options.dtype),
        "gather": gather_cases(options.dtype, options.format),
        "lga": lga_cases(options.map, options.dtype, options.format, options.contraction),
        "acp": acp_cases(options.acp_map, options.dtype, options.format),
        "cat": cat_cases(options.tokens, options.dtype),
    }
    cases = [case for name in options.operation if name in known for case in known[name]]
    chosen = rows(cases, [arch for arch in options.arch if arch in ARCHITECTURES], options.works)
    compilations = {row.compilation for row in chosen}
    print(f"compiling {len(compilations)} kernels for {len(chosen)} launches", file=sys.stderr)
    codes: dict[Any, Code] = compile_all((row.compilation for row in chosen), options.jobs)
    found = [*tables(chosen, codes)]
    if "cuda" in options.operation:
        from . import cubins

        scsa = scsa_cases(options.stage, options.dtype, options.format)
        made = cubins.launches(scsa, options.arch, options.works)
        codes |= (built := cubins.build_all(made, options.jobs))
        found += cubins.tables(made, built)
    for table in found:
        print(to_text(table), end="\n\n")
    print("registers: per thread. spilled: bytes of local memory. shared: bytes per block. occupancy: the share of a")
    print("multiprocessor's warps that fit. loads, stores: instructions on global memory, bits of each:how many.")
    print("generic: those of which the compiler could not tell whether the memory is global or shared.")
    return int(any(code.error for code in codes.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
