"""Issued instructions: the count on code whose length is known, and the budgets of SCSA's kernels on sm_90."""

import math

import pytest
import torch

from benchmarks.issued import ARCH, Thread, busiest, issued, parse, per_element
from benchmarks.machine_code import launches, scsa_cases
from fastattn.bench.sizes import CONTIGUOUS
from tests.helpers import DEVICE, INTERPRETED

pytest.importorskip("triton")


def needs_compiler(test):
    reason = "compiles without a GPU, in minutes that a run on one does not have"
    return pytest.mark.full(pytest.mark.skipif(INTERPRETED or DEVICE != "cpu", reason=reason)(test))


LOOP = """
        /*0000*/                   MOV R2, c[0x0][0x210] ;
        /*0010*/                   IMAD.MOV.U32 R4, RZ, RZ, RZ ;
.L_x_1:
        /*0020*/                   VIADD R4, R4, 0x1 ;
        /*0030*/                   ISETP.GE.AND P0, PT, R4.reuse, R2, PT ;
        /*0040*/              @!P0 BRA `(.L_x_1) ;
        /*0050*/                   EXIT ;
"""
# the quotient of c[0x0][0x210] by 7, as the compiler divides by what it does not know, is the length of a loop
DIVISION = """
        /*0000*/                   I2F.U32.RP R0, 0x7 ;
        /*0010*/                   MUFU.RCP R0, R0 ;
        /*0020*/                   VIADD R0, R0, 0xffffffe ;
        /*0030*/                   F2I.FTZ.U32.TRUNC.NTZ R3, R0 ;
        /*0040*/                   HFMA2.MMA R2, -RZ, RZ, 0, 0 ;
        /*0050*/                   IMAD R5, R3, -0x7, RZ ;
        /*0060*/                   IMAD.HI.U32 R3, R3, R5, R2 ;
        /*0070*/                   IMAD.HI.U32 R4, R3, c[0x0][0x210], RZ ;
        /*0080*/                   IMAD R5, R4, -0x7, c[0x0][0x210] ;
        /*0090*/                   ISETP.GE.U32.AND P1, PT, R5, 0x7, PT ;
        /*00a0*/               @P1 IADD3 R4, R4, 0x1, RZ ;
.L_x_1:
        /*00b0*/                   IADD3 R4, R4, -0x1, RZ ;
        /*00c0*/                   ISETP.NE.AND P0, PT, R4, RZ, PT ;
        /*00d0*/               @P0 BRA `(.L_x_1) ;
        /*00e0*/                   EXIT ;
"""


def run(assembly: str, *words: int) -> int:
    return Thread({0x210 + 4 * place: word for place, word in enumerate(words)}).run(*parse(assembly))


@pytest.mark.parametrize("length", [1, 5, 56])
def test_a_loop_counts_as_often_as_it_runs(length: int) -> None:
    assert run(LOOP, length) == 2 + 3 * length + 1


@pytest.mark.parametrize("dividend", [7, 55, 56, 57, 1 << 30])
def test_quotients_are_exact(dividend: int) -> None:
    if dividend > 1 << 20:
        thread = Thread({0x210: dividend})
        code, labels = parse(DIVISION[: DIVISION.index(".L_x_1:")] + "        /*00b0*/                   EXIT ;\n")
        thread.run(code, labels)
        assert thread.registers["R4"] == dividend // 7
    else:
        assert run(DIVISION, dividend) == 11 + 3 * (dividend // 7) + 1


def test_a_loop_that_data_ends_is_refused() -> None:
    loop = LOOP.replace("VIADD R4, R4, 0x1", "LDG.E R4, desc[UR4][R6.64]")
    with pytest.raises(RuntimeError, match="unknown"):
        run(loop, 5)


def test_what_is_unknown_spreads_no_further_than_it_must() -> None:
    thread = Thread({})
    thread.run(
        *parse("""
        /*0000*/                   LDS R2, [R9] ;
        /*0010*/                   LOP3.LUT R3, R2, RZ, RZ, 0xc0, !PT ;
        /*0020*/                   LOP3.LUT R4, R2, 0xff, RZ, 0xc0, !PT ;
        /*0030*/                   FSETP.GT.AND P0, PT, R2, RZ, PT ;
        /*0040*/                   PLOP3.LUT P1, PT, P0, !PT, PT, 0x80, 0x0 ;
        /*0050*/               @P0 MOV R5, 0x1 ;
        /*0060*/                   EXIT ;
    """)
    )
    assert [thread.registers[name] for name in ("R2", "R3", "R4", "R5")] == [None, 0, None, None]
    assert [thread.predicates[name] for name in ("P0", "P1")] == [None, False]


def rows_of(stage: tuple[int, int, int], work: str):
    (case,) = scsa_cases([stage], [torch.bfloat16], [CONTIGUOUS])
    return list(launches(case, work, ARCH))


def row_of(stage: tuple[int, int, int], work: str, kernel: str):
    (row,) = [row for row in rows_of(stage, work) if row.compilation.kernel == kernel]
    return row


@needs_compiler
@pytest.mark.parametrize(
    ("work", "kernel", "most"),
    [("forward", "gated_pool_kernel", 0.4), ("backward", "gated_gather_kernel", 1.35)],
)
def test_window_sums_cost_few_instructions_per_element(work: str, kernel: str, most: float) -> None:
    """A masked sum for each window took 1.65 and 3.58."""
    assert per_element(row_of((64, 56, 56), work, kernel)) <= most


@needs_compiler
@pytest.mark.parametrize(
    ("stage", "work", "kernel", "most"),
    [
        ((64, 56, 56), "forward", "channel_attention_kernel", 22_000),  # pixel by pixel 53,000
        ((64, 56, 56), "backward", "channel_attention_backward_kernel", 56_000),  # 194,000
        ((128, 28, 28), "forward", "channel_attention_kernel", 22_000),  # 41,000
        ((128, 28, 28), "backward", "channel_attention_backward_kernel", 41_000),  # 110,000
    ],
)
def test_attention_of_many_pixels_keeps_its_budget(stage, work: str, kernel: str, most: int) -> None:
    assert busiest([row_of(stage, work, kernel)]) <= most


@needs_compiler
def test_small_maps_do_not_wait_for_one_processor() -> None:
    """One program for each sample issued 1,340,000 backward."""
    assert busiest(rows_of((512, 7, 7), "backward")) <= 400_000


@pytest.mark.triton
@needs_compiler
@pytest.mark.parametrize("work", ["forward", "backward"])
@pytest.mark.parametrize("stage", [(256, 14, 14), (512, 7, 7)], ids=str)
def test_the_prediction_is_what_is_counted(stage, work: str) -> None:
    from fastattn.kernels.scsa import predict

    rows = [row for row in rows_of(stage, work) if row.compilation.kernel != "batch_sum_kernel"]
    assert len(rows) > 1
    channels, height, width = stage
    sizes = channels, height, width, channels, (height // 7) * (width // 7)
    foretold = math.fsum(predict.instructions(row.compilation.kernel, *sizes) for row in rows)
    counted = sum(issued(row) * row.compilation.warps * row.programs for row in rows) / 32
    assert foretold == pytest.approx(counted, rel=0.2)
