"""The kernels compiled for four architectures, without a GPU: no spills, and wide loads and stores of tensors."""

import importlib.metadata
import math
import re
from collections import Counter
from dataclasses import replace

import pytest
import torch

from benchmarks import machine_code
from benchmarks.machine_code import (
    ACP_SIZES,
    ARCHITECTURES,
    CAT_SIZES,
    LGA_SIZES,
    Code,
    Compilation,
    acp_cases,
    assembly_of,
    attention_cases,
    cat_cases,
    compile_all,
    gather_cases,
    half_arithmetic,
    instructions,
    intermediate,
    intermediates,
    lga_cases,
    main,
    occupancy,
    rows,
    scsa_cases,
)
from benchmarks.suites.lga import PAPER, RELEASED
from benchmarks.suites.scsa import Case
from fastattn.bench.sizes import CHANNELS_LAST, CONTIGUOUS, MEMORY_FORMATS, STAGES, name_of
from tests.helpers import DEVICE, FULL, INTERPRETED, few, named

pytest.importorskip("triton")

pytestmark = pytest.mark.xdist_group("machine code")  # what a test compiles, the others ask about
needs_compiler = pytest.mark.skipif(
    INTERPRETED or DEVICE != "cpu", reason="compiles without a GPU, in minutes that a run on one does not have"
)

MAIN = 90  # compiled in all shapes by a full run, the other architectures there in the largest map and the smallest
READERS = {"axis_mean_kernel", "gated_pool_kernel", "gated_gather_kernel"}
WRITERS = {"gated_product_kernel", "input_gradient_kernel"}
SMALL = {"small_forward_kernel", "small_backward_kernel"}
FEW = (32, 7, 7)  # channels, which one launch serves
TWO = (torch.float32, torch.bfloat16)  # float16's code is bfloat16's but for the arithmetic
LARGE_HEADS = (64, 128)
OTHERS = tuple(arch for arch in ARCHITECTURES if arch != MAIN)
FIRST_MAIN = (MAIN, *OTHERS)
KINDS = [(torch.bfloat16, MAIN), *(pytest.param(torch.float32, arch, marks=pytest.mark.full) for arch in FIRST_MAIN)]
TYPES = few((torch.bfloat16, torch.float32, torch.float16))
LAYOUTS = few((CHANNELS_LAST, CONTIGUOUS))
SOME = (89, MAIN)  # the architecture with the least shared memory, and another


def compile_for(request, found):
    """Return the launches that this run's tests of a fixture ask about with their machine code; each distinct kernel is
    compiled once."""
    items = [item for item in request.session.items if item.path == request.path]  # others have names alike
    tests = [item for item in items if request.fixturename in item.fixturenames]
    asked = [test.callspec.params if hasattr(test, "callspec") else {"arch": MAIN} for test in tests]

    def is_asked(row):
        case = row.case
        facts = {"arch": row.compilation.arch, "dtype": case.dtype, "layout": case.memory_format}
        facts["head_dim"] = getattr(case, "head_dim", None)
        return any(all(facts.get(name, value) == value for name, value in params.items()) for params in asked)

    found = [row for row in found if is_asked(row)]
    codes = compile_all(row.compilation for row in found)
    return [(row, codes[row.compilation]) for row in found]


@pytest.fixture(scope="module")
def compiled(request):
    """The launches of SCSA."""
    ends = STAGES[0], STAGES[-1]
    stages = dict.fromkeys(ARCHITECTURES, ends) | {MAIN: (*(STAGES if FULL else STAGES[:1]), FEW)}
    found = [row for arch in ARCHITECTURES for row in rows(scsa_cases(stages=stages[arch]), [arch])]
    return compile_for(request, found)


def chosen(compiled, arch: int, dtype: torch.dtype, layout: str):
    return [
        (row, code)
        for row, code in compiled
        if (row.compilation.arch, row.case.dtype, row.case.memory_format) == (arch, dtype, layout)
    ]


def place(row) -> str:
    return f"{row.compilation.kernel} at {row.case.shape}"


def aligned(case: Case) -> bool:
    """Whether every row of x, or every pixel's channels, begins at a multiple of 16 bytes."""
    length = case.shape[1] if case.memory_format == CHANNELS_LAST else case.shape[3]
    return length * case.dtype.itemsize % 16 == 0


def fills(row) -> bool:
    """Whether a sample has 128 bits for each thread of a program."""
    return math.prod(row.case.shape[1:]) * row.case.dtype.itemsize >= 16 * 32 * row.compilation.warps


everywhere = [
    pytest.mark.parametrize("layout", LAYOUTS),
    pytest.mark.parametrize("dtype", TYPES, ids=named),
    pytest.mark.parametrize("arch", few(FIRST_MAIN), ids=lambda arch: f"sm_{arch}"),
]


def for_all_inputs(test):
    for mark in everywhere:
        test = mark(test)
    return needs_compiler(test)


# Each version of Triton has its own ptxas, and each of these spills a word or two of each thread somewhere else: one
# store and one load of each program, among thousands of instructions. In an innermost loop none may stand.
WORDS = 32  # bytes
MORE_WORDS = {  # of programs that hold a sample's vectors: once each, outside of innermost loops
    "3.6": {"small_backward_kernel": 52},
    "3.9": {"channel_attention_backward_kernel": 64},
}


def allowed(kernel: str) -> int:
    version = ".".join(importlib.metadata.version("triton").split(".")[:2])
    return MORE_WORDS.get(version, {}).get(kernel, WORDS)


def spilling(found) -> list[str]:
    """Name the launches that spill more than a few words of each thread, or any in an innermost loop."""
    return [
        f"{place(row)} spills {max(code.spilled, code.stack)} bytes, {code.spills_in_loops} times in innermost loops"
        for row, code in found
        if max(code.spilled, code.stack) > allowed(row.compilation.kernel) or code.spills_in_loops
    ]


@for_all_inputs
def test_every_kernel_compiles_and_keeps_its_values_in_registers(compiled, arch, dtype, layout) -> None:
    ours = chosen(compiled, arch, dtype, layout)
    assert {row.work for row, _ in ours} == {"forward", "backward"}
    assert not [f"{place(row)}: {code.error}" for row, code in ours if code.error]
    assert not spilling(ours)


@for_all_inputs
def test_passes_over_x_move_128_bits_at_a_time_where_x_is_aligned(compiled, arch, dtype, layout) -> None:
    ours = [(row, code) for row, code in chosen(compiled, arch, dtype, layout) if aligned(row.case) and fills(row)]
    passes = [(row, code) for row, code in ours if row.compilation.kernel in READERS | WRITERS | SMALL]
    assert {row.compilation.kernel for row, _ in passes} >= READERS | WRITERS
    narrow = [f"{place(row)} loads {dict(code.loads)}" for row, code in passes if not widest(code.loads) >= 128]
    narrow += [
        f"{place(row)} stores {dict(code.stores)}"
        for row, code in passes
        if row.compilation.kernel not in READERS and not widest(code.stores) >= 128
    ]
    assert not narrow


@for_all_inputs
def test_no_sum_is_atomic(compiled, arch, dtype, layout) -> None:
    assert not [place(row) for row, code in chosen(compiled, arch, dtype, layout) if code.atomics]


@pytest.fixture(scope="module")
def attention(request):
    """The launches of partitioned attention, in SSD300's 1940 tokens and batch 32."""
    found = rows(attention_cases([32]), ARCHITECTURES) + rows(attention_cases(LARGE_HEADS, TWO), SOME)
    return compile_for(request, found)


def of_heads(attention, arch: int, dtype: torch.dtype, head_dim: int):
    wanted = arch, dtype, head_dim
    ours = [(r, code) for r, code in attention if (r.compilation.arch, r.case.dtype, r.case.head_dim) == wanted]
    assert [row.work for row, _ in ours] == ["forward", "backward", "backward"]
    assert not [f"{place(row)}: {code.error}" for row, code in ours if code.error]
    return ours


@needs_compiler
@pytest.mark.parametrize("dtype", TYPES, ids=named)
@pytest.mark.parametrize("arch", few(FIRST_MAIN), ids=lambda arch: f"sm_{arch}")
def test_attention_of_the_modules_heads_stays_in_registers_and_moves_128_bits(attention, arch, dtype) -> None:
    ours = of_heads(attention, arch, dtype, 32)
    assert not spilling(ours)
    for row, code in ours:
        assert min(widest(code.loads), widest(code.stores)) == 128, place(row)
        assert code.occupancy > 0, place(row)
        assert not code.atomics, place(row)


@needs_compiler
@pytest.mark.full
@pytest.mark.parametrize("head_dim", LARGE_HEADS)
@pytest.mark.parametrize("dtype", TWO, ids=named)
@pytest.mark.parametrize("arch", [MAIN, 89], ids=lambda arch: f"sm_{arch}")
def test_attention_of_larger_heads_fits(attention, arch, dtype, head_dim) -> None:
    """In float32 it may spill."""
    ours = of_heads(attention, arch, dtype, head_dim)
    assert dtype == torch.float32 or not spilling(ours)
    for row, code in ours:
        assert code.occupancy > 0, place(row)
        assert not code.atomics, place(row)


@pytest.fixture(scope="module")
def gather(request):
    """The launches of the token gather, at SSD300's levels and batch 32."""
    found = rows(gather_cases(TWO), ARCHITECTURES)
    return compile_for(request, found)


@needs_compiler
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", TYPES[:2], ids=named)
@pytest.mark.parametrize("arch", few(FIRST_MAIN), ids=lambda arch: f"sm_{arch}")
def test_the_token_gather_stays_in_registers_and_moves_128_bits(gather, arch, dtype, layout) -> None:
    """Planes of odd sizes are read and written in what is aligned."""
    ours = chosen(gather, arch, dtype, layout)
    assert {row.work for row, _ in ours} == {"forward", "backward"}
    assert not [f"{place(row)}: {code.error}" for row, code in ours if code.error]
    for row, code in ours:
        assert code.spilled == code.stack == code.atomics == 0, place(row)
        assert code.occupancy > 0, place(row)
    passes = {row.compilation.kernel: code for row, code in ours}
    forward, backward = passes["token_gather_kernel"], passes["token_gather_backward_kernel"]
    assert widest(forward.stores) == widest(backward.loads) == 128
    if layout == CHANNELS_LAST:
        assert widest(forward.loads) == widest(backward.stores) == 128


@pytest.fixture(scope="module")
def lga(request):
    """The launches of LGA at ResNet-18's map and batch 32, the larger dtype on all architectures, and as released."""
    paper, sizes = [PAPER], [(128, 8, 20)]
    found = rows(lga_cases(sizes, [torch.float32], contractions=paper), ARCHITECTURES)
    found += rows(lga_cases(sizes, [torch.bfloat16], contractions=paper), [MAIN])
    found += rows(lga_cases(sizes, [torch.float32], [CONTIGUOUS], [RELEASED]), [MAIN])
    return compile_for(request, found)


everywhere_lga_is = [
    pytest.mark.parametrize("layout", LAYOUTS),
    pytest.mark.parametrize(
        ("dtype", "arch"),
        KINDS,
        ids=lambda value: f"sm_{value}" if isinstance(value, int) else named(value),
    ),
]


def of_lga(lga, arch: int, dtype: torch.dtype, layout: str):
    ours = [(row, code) for row, code in chosen(lga, arch, dtype, layout) if row.case.contraction == PAPER]
    assert {row.work for row, _ in ours} == {"forward", "backward"}
    assert not [f"{place(row)}: {code.error}" for row, code in ours if code.error]
    return ours


def for_lga(test):
    for mark in everywhere_lga_is:
        test = mark(test)
    return needs_compiler(test)


# ptxas may hold this kernel to 72 or 80 registers, so that three blocks and more are resident, and keep what its loops
# share, addresses above all, in local memory: a few words of each thread. Smaller blocks and other warps are no remedy
LGA_SPILLS = {"scale_mix_backward_kernel": 160}


@for_lga
def test_lga_fits_and_stays_in_registers(lga, arch, dtype, layout) -> None:
    for row, code in of_lga(lga, arch, dtype, layout):
        assert max(code.spilled, code.stack) <= LGA_SPILLS.get(row.compilation.kernel, 0), place(row)
        assert code.occupancy > 0, place(row)
        assert not code.atomics, place(row)


# what reads and writes x, z or features; in planes, neighbouring threads convolve neighbouring columns
LGA_READERS = {"scale_mix_kernel", "scale_mix_backward_kernel", "gram_attention_kernel", "gram_mix_kernel"}
LGA_READERS |= {"gram_attention_backward_kernel", "gram_mix_backward_kernel"}
LGA_WRITERS = LGA_READERS - {"gram_attention_kernel", "gram_attention_backward_kernel"}


@for_lga
def test_lga_moves_128_bits_at_a_time_where_maps_are_aligned(lga, arch, dtype, layout) -> None:
    ours = of_lga(lga, arch, dtype, layout)
    passes = [(row, code) for row, code in ours if aligned(row.case) or "gram" in row.compilation.kernel]
    if layout == CHANNELS_LAST:
        convolutions = [code for row, code in ours if row.compilation.kernel == "depthwise_kernel"]
        four = 4 * 8 * dtype.itemsize  # channels of a thread
        assert [min(widest(code.loads), widest(code.stores)) for code in convolutions] == [four, four]
    narrow = [
        f"{place(row)}: loads {dict(code.loads)}, stores {dict(code.stores)}"
        for row, code in passes
        if (row.compilation.kernel in LGA_READERS and widest(code.loads) < 128)
        or (row.compilation.kernel in LGA_WRITERS and widest(code.stores) < 128)
    ]
    assert not narrow
    assert {row.compilation.kernel for row, _ in passes} >= {name for name in LGA_READERS if "gram" in name}


@needs_compiler
@pytest.mark.full
def test_lga_as_released_reads_no_map_for_its_attention(lga) -> None:
    released, paper = (
        next(
            code
            for row, code in lga
            if (row.case.contraction, row.compilation.kernel) == (contraction, "gram_attention_kernel")
            and (row.compilation.arch, row.case.dtype, row.case.memory_format) == (MAIN, torch.float32, CONTIGUOUS)
        )
        for contraction in (RELEASED, PAPER)
    )
    assert not released.error
    assert released.loads.total() < paper.loads.total() / 2
    assert widest(released.stores) == 128


@pytest.fixture(scope="module")
def interaction(request):
    """The launches of ACP at ViT-Tiny's map and of CAT at its finer tokens, in batch 32; the largest of each dtype's
    configurations on all architectures, the others on one."""
    size, tokens = (192, 14), (3136, 64, 192)
    found = rows(acp_cases([size], TWO), [MAIN]) + rows(acp_cases([size], [torch.float32]), OTHERS)
    found += rows(cat_cases([tokens], TWO), ARCHITECTURES)
    return compile_for(request, found)


# a word or two of each thread in float32, where ptxas uses all 255 registers or saves some for another block
ACP_SPILLS = {
    ("pyramid_project_kernel", 89, CONTIGUOUS): 48,
    ("pyramid_project_kernel", 89, CHANNELS_LAST): 32,
    ("conv_pool_params_kernel", 100, CHANNELS_LAST): 8,
}


def of_operation(interaction, operation: str, arch: int, dtype: torch.dtype, layout: str = CONTIGUOUS):
    ours = [(row, code) for row, code in chosen(interaction, arch, dtype, layout) if row.case.suite == operation]
    assert {row.work for row, _ in ours} == {"forward", "backward"}
    assert not [f"{place(row)}: {code.error}" for row, code in ours if code.error]
    for row, code in ours:
        allowed = ACP_SPILLS.get((row.compilation.kernel, arch, layout), 0) if dtype == torch.float32 else 0
        assert max(code.spilled, code.stack) <= allowed, f"{place(row)}: {code}"
        assert code.occupancy > 0, place(row)
        assert not code.atomics, place(row)
    return {(row.work, row.compilation.kernel): code for row, code in ours}


@needs_compiler
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("dtype", "arch"),
    KINDS,
    ids=lambda value: f"sm_{value}" if isinstance(value, int) else named(value),
)
def test_acp_stays_in_registers_and_moves_128_bits_where_channels_are_neighbours(
    interaction, arch, dtype, layout
) -> None:
    """In planes, neighbouring threads convolve neighbouring windows."""
    codes = of_operation(interaction, "acp", arch, dtype, layout)
    assert {kernel for work, kernel in codes if work == "forward"} == {"conv_pool_kernel", "pyramid_project_kernel"}
    project = codes["forward", "pyramid_project_kernel"]
    assert widest(project.loads) == 128
    if layout == CHANNELS_LAST:
        four = 4 * 8 * dtype.itemsize  # channels of a thread
        convolved = codes["forward", "conv_pool_kernel"], codes["backward", "conv_pool_input_kernel"]
        assert [(widest(code.loads), widest(code.stores)) for code in convolved] == [(four, four)] * 2
        assert widest(codes["backward", "conv_pool_params_kernel"].loads) == four
        assert widest(project.stores) == 128


@needs_compiler
@pytest.mark.parametrize("dtype", TYPES[:2], ids=named)
@pytest.mark.parametrize("arch", few(FIRST_MAIN), ids=lambda arch: f"sm_{arch}")
def test_cat_stays_in_registers_and_moves_128_bits(interaction, arch, dtype) -> None:
    codes = of_operation(interaction, "cat", arch, dtype)
    assert len(codes) == 6
    narrow = {name: code for name, code in codes.items() if min(widest(code.loads), widest(code.stores)) < 128}
    assert not narrow


@needs_compiler
@pytest.mark.parametrize(
    ("options", "title", "forwards", "backwards"),
    [
        (["acp", "--acp-map", "96x56x56"], "(32, 96, 56, 56), 2 layers", 3, 7),
        (["cat", "--tokens", "16384x64x96"], "(32, 16384, 96), 64 concepts", 3, 3),
    ],
    ids=["acp", "cat"],
)
def test_the_command_prints_what_acp_and_cat_launch(
    options, title, forwards, backwards, monkeypatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine_code, "compile_all", lambda compilations, jobs: dict.fromkeys(compilations, Code()))
    assert main(["--operation", *options, "--arch", "90", "--dtype", "float16", "--format", CONTIGUOUS]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert f"sm_90, float16, contiguous, {title}" in printed
    assert sum(line.startswith("forward") for line in printed) == forwards
    assert sum(line.startswith("backward") for line in printed) == backwards


@needs_compiler
def test_the_command_prints_what_an_lga_launches(monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    codes = {}

    def compile_nothing(compilations, jobs):
        codes.update(dict.fromkeys(compilations, Code()))
        return codes

    monkeypatch.setattr(machine_code, "compile_all", compile_nothing)
    options = ["--arch", "90", "--dtype", "float16", "--format", CONTIGUOUS, "--map", "64x80x80", "--contraction"]
    assert main(["--operation", "lga", *options, RELEASED]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert "sm_90, float16, contiguous, (32, 64, 80, 80), 8 heads, released" in printed
    assert sum(line.startswith("forward") for line in printed) == 5
    assert sum(line.startswith("backward") for line in printed) == 14
    assert {compilation.kernel for compilation in codes} >= LGA_READERS


def widest(counts: Counter[int]) -> int:
    return max(counts, default=0)


def test_spills_count_where_they_are_repeated() -> None:
    assembly = """
        /*0000*/                   STL [R1], R42 ;
.L_x_0:
        /*0010*/                   LDL R42, [R1] ;
.L_x_1:
        /*0020*/              @!P1 LDL.64 R6, [R1+0x8] ;
        /*0030*/               @P0 BRA `(.L_x_1) ;
        /*0040*/                   BRA P2, `(.L_x_0) ;
        /*0050*/               @P3 BRA `(.L_x_2) ;
        /*0060*/                   LDL.LU R42, [R1] ;
.L_x_2:
        /*0070*/                   EXIT ;
    """
    assert machine_code.spills_in_loops(assembly) == 1


def test_instructions_are_told_apart_by_name_and_width() -> None:
    assembly = """
        /*0040*/                   ULDC.64 UR8, c[0x0][0x208] ;
        /*0100*/               @P0 LDG.E.128.CONSTANT R4, desc[UR8][R2.64] ;
        /*0110*/                   LDG.E.LTC128B R5, desc[UR8][R2.64+0x10] ;
        /*0120*/              @!P1 LDG.E.U16 R6, [R2.64] ;
        /*0130*/                   LDGSTS.E.BYPASS.128 [R7], [R2.64] ;
        /*0140*/                   STG.E.64 desc[UR8][R8.64], R4 ;
        /*0150*/                   STL.64 [R1+0x18], R42 ;
        /*0160*/                   LDL.LU R42, [R1+0x18] ;
        /*0170*/                   LDS.128 R4, [R9] ;
        /*0180*/                   RED.E.ADD.F32.FTZ.RN [R8.64], R4 ;
    """
    found = instructions(assembly)
    assert found["LDG"] == {128: 1, 32: 1, 16: 1}
    assert found["LDGSTS"] == {128: 1}
    assert found["STG"] == {64: 1}
    assert (found["STL"], found["LDL"]) == ({64: 1}, {32: 1})
    assert found["RED"].total() == 1


@pytest.mark.parametrize(
    ("arch", "registers", "shared", "warps", "expected"),
    [
        pytest.param(90, 32, 0, 4, 1.0, id="warps"),
        pytest.param(90, 33, 0, 4, 48 / 64, id="registers, in units of 256 per warp"),
        pytest.param(90, 255, 0, 8, 8 / 64, id="one block"),
        pytest.param(90, 32, 57 << 10, 8, 24 / 64, id="shared memory, 1 KiB of it reserved"),
        pytest.param(89, 32, 0, 1, 24 / 48, id="blocks"),
        pytest.param(80, 32, 164 << 10, 4, 0.0, id="more shared memory than there is"),
    ],
)
def test_occupancy_is_what_the_scarcest_resource_leaves(arch, registers, shared, warps, expected) -> None:
    assert occupancy(ARCHITECTURES[arch], registers, shared, warps) == expected


@needs_compiler
@pytest.mark.parametrize(
    ("options", "title", "lines"),
    [
        pytest.param(
            ["--operation", "scsa", "--format", CONTIGUOUS, "--stage", "512x7x7"], "(32, 512, 7, 7)", 5, id="scsa"
        ),
        pytest.param(
            ["--operation", "attention", "--head-dim", "16"], "(32, 1940, 128), 8 heads in 2 parts", 2, id="attention"
        ),
    ],
)
def test_the_command_prints_a_row_for_each_launch(options, title, lines, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*options, "--arch", "90", "--dtype", "float16", "--pass", "backward"]) == 0
    printed = capsys.readouterr().out
    assert f"sm_90, {name_of(torch.float16)}, {CONTIGUOUS}, {title}" in printed
    assert sum(line.startswith("backward") for line in printed.splitlines()) == lines
    assert max(map(len, printed.splitlines())) <= 120


def half_cases():
    """Every operation in 16 bits; more formats and shapes compute likewise."""
    dtypes = [torch.bfloat16, torch.float16] if FULL else [torch.bfloat16]
    formats = list(MEMORY_FORMATS) if FULL else [CHANNELS_LAST]
    return [
        *scsa_cases(stages=(STAGES[0], FEW), dtypes=dtypes, formats=formats),
        *attention_cases(head_dims=(32,), dtypes=dtypes),
        *gather_cases(dtypes=dtypes, formats=formats),
        *lga_cases(sizes=LGA_SIZES[:1], dtypes=dtypes, formats=formats),
        *acp_cases(sizes=ACP_SIZES[:1], dtypes=dtypes, formats=formats),
        *cat_cases(sizes=CAT_SIZES[:1], dtypes=dtypes),
    ]


@pytest.fixture(scope="module")
def sources():
    """Intermediate code of every kernel, for launches that overlap."""
    found = intermediates(overlapping(row.compilation) for row in rows(half_cases(), [MAIN]))
    assert {compilation.kernel for compilation in found} > READERS | WRITERS
    return found


def overlapping(compilation: Compilation) -> Compilation:
    """The same for a launch that may start before the one ahead of it is complete."""
    return replace(compilation, options=(*compilation.options, ("launch_pdl", True)))


@needs_compiler
def test_nothing_is_computed_in_16_bits(sources):
    """Compiled sums of bfloat16 accumulate in bfloat16, and under the interpreter its arithmetic proves nothing."""
    wrong = {compilation.kernel: half_arithmetic(ir) for compilation, ir in sources.items()}
    assert not {kernel: lines for kernel, lines in wrong.items() if lines}


@needs_compiler
def test_a_launch_that_overlaps_waits_before_it_touches_memory(sources):
    for compilation, ir in sources.items():
        before, *after = re.split(r"griddepcontrol\.wait|tt\.grid_dependency_wait", ir)  # the latter from Triton 3.9 on
        assert after, compilation.kernel
        assert re.search(r"griddepcontrol\.launch_|tt\.grid_dependency_launch_", after[0]), compilation.kernel
        assert not re.search(r"tt\.(load|store|atomic)", before), compilation.kernel


@needs_compiler
def test_machine_code_waits_only_for_a_launch_that_overlaps(sources):
    kernel = next(compilation for compilation in sources if compilation.kernel == "axis_gate_kernel")
    alone = replace(kernel, options=kernel.options[:-1])
    early, code = (assembly_of(machine_code.compiled(each).asm["cubin"]) for each in (kernel, alone))
    wait, end = "ACQBULK", "PREEXIT"  # griddepcontrol.wait and .launch_dependents
    before, _, after = early.partition(wait)
    assert not any(instructions(before).values())
    assert end in after
    assert wait not in code
    assert end not in code


@needs_compiler
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize(
    ("kernel", "seen"), [("adds_kernel", "arith.addf"), ("sums_kernel", "tt.reduce"), ("widens_kernel", "")]
)
def test_what_is_computed_in_16_bits_is_seen(kernel, seen, dtype):
    options = (("num_warps", 4), ("num_stages", 3), ("enable_fp_fusion", True))
    made = Compilation("tests.half_kernels", kernel, (f"*{dtype}", "constexpr"), (("N", 64),), options, MAIN)
    found = half_arithmetic(intermediate(made))
    assert any(seen in line for line in found) if seen else not found
