"""Counted traffic: the instrument on kernels whose bytes are known, and the budgets of SCSA, LGA, ACP and CAT.

Needs TRITON_INTERPRET=1 from the start of the process.
"""

import inspect
import json
import os
from collections import Counter
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import fastattn
from benchmarks import interpreter, traffic
from benchmarks.machine_code import default_plan, interaction, recorded
from benchmarks.shapes import GPU_BATCH
from benchmarks.suites.cfsam import AttentionCase, PyramidCase
from benchmarks.suites.interaction import ACP_BATCH, ACP_LAYERS, AcpCase, CatCase
from benchmarks.suites.lga import LGA_BATCH, LgaCase
from benchmarks.suites.scsa import Case
from benchmarks.traffic import AccessError, Record, Traffic, as_extra_info, count, measure, planned_like
from fastattn.bench.sizes import CHANNELS_LAST, MEMORY_FORMATS
from tests.helpers import draw, few, make

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1"),
]

BATCH, SAMPLES = 32, 2
# times x: forward, backward
BUDGETS = {(64, 56, 56): (4.3, 5.05), (128, 28, 28): (4.6, 5.4)}
SMALL = ((16, 14, 14), (32, 7, 7))


@triton.jit
def copy_kernel(x, out, START, END, BLOCK: tl.constexpr):
    i = START + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i, mask=i < END), mask=i < END)


@triton.jit
def reread_kernel(x, out, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    value = tl.load(x + i) + tl.load(x + i // 2) + tl.load(x + i + 1) + tl.load(x)
    tl.store(out + i, value)
    tl.store(out + i, value + 1)


@triton.jit
def bytewise_kernel(x, out, BYTES: tl.constexpr, BLOCK: tl.constexpr):
    text = x.to(tl.pointer_type(tl.int8))
    tl.store(out + tl.arange(0, BLOCK), tl.load(x + tl.arange(0, BLOCK)) + tl.load(text + tl.arange(0, BYTES)).sum())


@triton.jit
def narrow_kernel(x, integers, nearest, product, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    at = i[:, None] * BLOCK + i[None, :]
    values = tl.load(x + at).to(tl.bfloat16)
    tl.store(nearest + at, values)
    tl.store(integers + at, tl.load(integers + at).to(tl.bfloat16).to(tl.int32))
    tl.store(product + at, tl.dot(values, tl.trans(values)))


@triton.jit
def misaligned_kernel(x, out):
    tl.store(out, tl.load((x.to(tl.pointer_type(tl.int8)) + 2).to(tl.pointer_type(tl.float32))))


@triton.jit
def atomic_kernel(x, out, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.atomic_add(out + i % 4, tl.load(x + i), mask=i < BLOCK // 2)


def tensors(elements: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """Two tensors with room around them, so that going astray does no harm."""
    storage = torch.zeros(8 * elements, dtype=dtype)
    return storage[elements : 2 * elements], storage[5 * elements : 6 * elements]


def launch(kernel, programs: int, x: torch.Tensor, out: torch.Tensor, sizes=(), **constants):
    """Count one launch and return its record."""
    from fastattn.kernels.common.launch import Launch

    run = Launch(kernel, lambda constants: (programs, 1, 1), ("x", "out"), ("out", "x"), dict(sizes), constants, 4)
    with count() as records:
        run((out, x))
    (record,) = records
    return record


def test_lanes_that_are_masked_out_count_nothing() -> None:
    x, out = tensors(100)
    record = launch(copy_kernel, 4, x, out, {"START": 0, "END": 100}, BLOCK=32)
    assert (record.kernel, record.programs) == ("copy_kernel", 4)
    assert record.read == {"x": 400}
    assert record.written == {"out": 400}
    assert record.bytes == 800


def test_a_byte_counts_once_for_each_program_that_touches_it() -> None:
    x, out = tensors(65)
    record = launch(reread_kernel, 3, x, out, BLOCK=64)
    assert record.read == {"x": 3 * 65 * 4}
    assert record.written == {"out": 3 * 64 * 4}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_elements_have_their_own_size(dtype: torch.dtype) -> None:
    record = launch(copy_kernel, 1, *tensors(64, dtype), {"START": 0, "END": 64}, BLOCK=64)
    assert record.bytes == 2 * 64 * 2


@pytest.mark.parametrize(("count_of_bytes", "expected"), [(128, 256), (512, 512)])
def test_accesses_of_several_sizes_overlap(count_of_bytes: int, expected: int) -> None:
    x, out = tensors(128)
    assert launch(bytewise_kernel, 1, x, out, BYTES=count_of_bytes, BLOCK=64).read == {"x": expected}


@pytest.mark.parametrize(
    ("start", "end", "message"),
    [
        pytest.param(0, 65, "copy_kernel: read outside of the tensors, 4 bytes beyond x", id="after the tensor"),
        pytest.param(-1, 64, "before every tensor", id="before the tensor"),
    ],
)
def test_an_access_outside_of_the_tensors_raises(start: int, end: int, message: str) -> None:
    x, out = tensors(64)
    with pytest.raises(AccessError, match=message):
        launch(copy_kernel, 2, x, out, {"START": start, "END": end}, BLOCK=64)


def test_a_write_outside_of_the_tensors_raises_before_it_happens() -> None:
    x, out = tensors(64)
    x, beyond = x[:32], torch.as_strided(out, (1,), (1,), out.storage_offset() + 32)
    beyond += 7
    with pytest.raises(AccessError, match="write outside of the tensors, 4 bytes beyond out"):
        launch(copy_kernel, 1, torch.cat([x, x]), out[:32], {"START": 0, "END": 33}, BLOCK=64)
    assert beyond.item() == 7


def test_misaligned_access_raises() -> None:
    with pytest.raises(AccessError, match="misaligned"):
        launch(misaligned_kernel, 1, *tensors(64))


def test_atomics_are_for_integers() -> None:
    record = launch(atomic_kernel, 1, *tensors(64, torch.int32), BLOCK=64)
    assert record.read == {"x": 256, "out": 16}
    assert record.written == {"out": 16}
    with pytest.raises(AccessError, match="floating-point atomic"):
        launch(atomic_kernel, 1, *tensors(64), BLOCK=64)


def test_nothing_is_watched_afterwards() -> None:
    from triton.runtime.interpreter import InterpreterBuilder

    from fastattn.kernels.common.launch import Launch

    names = ("set_grid_idx", "create_masked_load", "create_masked_store", "create_atomic_rmw", "create_atomic_cas")
    watched = [(Launch, "__call__"), *((InterpreterBuilder, name) for name in names)]
    before = [getattr(*method) for method in watched]
    with count():
        assert all(getattr(*method) is not old for method, old in zip(watched, before, strict=True))
    assert [getattr(*method) for method in watched] == before


def test_the_quick_interpreter_replaces_as_much(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.runtime.interpreter import InterpreterBuilder

    left: list[str] = []
    set_grid_idx = InterpreterBuilder.set_grid_idx

    def watch(builder, *place):
        members = [(package, *member) for package in (tl, tl.tensor, tl.math) for member in inspect.getmembers(package)]
        left.extend(f"{package.__name__}.{name}" for package, name, value in members if tl.core.is_builtin(value))
        return set_grid_idx(builder, *place)

    monkeypatch.setattr(InterpreterBuilder, "set_grid_idx", watch)
    for _ in range(2):
        launch(bytewise_kernel, 1, *tensors(128), BYTES=128, BLOCK=64)  # a sum is a function that Triton defines
        launch(copy_kernel, 1, *tensors(64), {"START": 0, "END": 64}, BLOCK=64)
    assert interpreter.builtins(tl)
    assert left == []


def test_bfloat16_is_a_gpus() -> None:
    """Conversions are to the nearest, and what is multiplied is numbers."""
    x, integers = torch.randn(32, 32), torch.arange(1024, dtype=torch.int32).view(32, 32)
    ties = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, 1.9999, -1.9999, 3.4e38, float("inf"), float("nan"), 1e-40, -0.0])
    x[0, : len(ties)] = ties
    found = integers.clone(), torch.empty(32, 32, dtype=torch.bfloat16), torch.empty(32, 32)
    narrow_kernel[(1,)](x, *found, BLOCK=32)
    exact = x.bfloat16()
    for got, expected in zip(found, (integers.bfloat16(), exact, exact.float() @ exact.float().T), strict=True):
        torch.testing.assert_close(got.to(expected.dtype), expected, equal_nan=True)
    torch.testing.assert_close(found[1].view(torch.int16)[1:], exact.view(torch.int16)[1:], rtol=0, atol=0)


def test_counting_needs_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET=1"), count():
        pass


@pytest.mark.parametrize("as_json", [False, True])
def test_the_command_prints_each_launch_or_the_totals(as_json: bool, monkeypatch, capsys) -> None:
    records = [Record("copy_kernel", 4, {"x": 50}, {"out": 100}), Record("sum_kernel", 1, {"out": 100}, {})]
    found = {"forward": Traffic(records, 100)}
    monkeypatch.setattr(traffic, "measure", lambda forward, inputs, parameters, backward: found)
    assert traffic.main(["--shape", "64x56x56", "--format", "contiguous", *["--json"] * as_json]) == 0
    printed = capsys.readouterr().out
    if as_json:
        (facts,) = json.loads(printed)
        assert (facts["shape"], facts["format"]) == ([1, 64, 56, 56], "contiguous")
        assert {name: facts[name] for name in as_extra_info(found)} == as_extra_info(found)
    else:
        cells = [line.split() for line in printed.splitlines() if line.startswith("forward")]
        assert cells[0] == ["forward", "copy", "4", "0.500", "1.000", "1.500"]
        assert cells[-1] == ["forward", "all", "-", "-", "-", "2.500"]


def configurations(case: Case) -> list[tuple]:
    """What the traffic of a plan depends on, for each sample."""
    plan = default_plan(case)
    return [
        (launch.name, launch.num_warps, launch.constants, launch.grid[0] / case.shape[0], launch.grid[1:])
        for launch in (*plan.forward, *plan.backward)
        if launch.name != "batch_sum_kernel"
    ]


@pytest.fixture
def tiles_of_a_batch():
    """Two samples stand for 32 and take a sixteenth of the time."""
    with planned_like(BATCH, SAMPLES):
        yield


@pytest.mark.parametrize("layout", MEMORY_FORMATS)
@pytest.mark.parametrize("stage", [*BUDGETS, (256, 14, 14), (512, 7, 7), *SMALL], ids=str)
def test_two_samples_can_stand_for_a_batch(stage, layout, request: pytest.FixtureRequest) -> None:
    batch = configurations(Case((BATCH, *stage), memory_format=layout))
    request.getfixturevalue("tiles_of_a_batch")
    assert configurations(Case((SAMPLES, *stage), memory_format=layout)) == batch


@pytest.mark.usefixtures("tiles_of_a_batch")
@pytest.mark.parametrize("layout", few(MEMORY_FORMATS))
@pytest.mark.parametrize("stage", few(sorted(BUDGETS, reverse=True)), ids=str)
def test_scsa_keeps_its_budget(stage, layout) -> None:
    x = draw(SAMPLES, *stage, memory_format=MEMORY_FORMATS[layout])
    module = make("scsa", stage[0])
    found = measure(module, [x], module.parameters(), backward=True)
    forward, backward = BUDGETS[stage]
    assert found["forward"].in_a_batch(SAMPLES, BATCH) <= forward, describe(found["forward"])
    assert found["backward"].in_a_batch(SAMPLES, BATCH) <= backward, describe(found["backward"])
    assert found["forward"].launches <= 5
    assert found["backward"].launches <= 7


@pytest.mark.usefixtures("tiles_of_a_batch")
@pytest.mark.parametrize("layout", MEMORY_FORMATS)
@pytest.mark.parametrize("stage", SMALL, ids=str)
def test_small_maps_take_one_launch_forward_and_two_backward(stage, layout) -> None:
    x = draw(SAMPLES, *stage, memory_format=MEMORY_FORMATS[layout])
    module = make("scsa", stage[0])
    found = as_extra_info(measure(module, [x], module.parameters(), backward=True))
    assert found["forward_launches"] == 1
    assert found["backward_launches"] == 2
    assert found["forward_traffic_over_x"] == found["forward_traffic_bytes"] / (x.numel() * 4)


@pytest.mark.parametrize("as_json", [False, True])
def test_the_command_counts_cfsams_gather_in_both_formats(as_json: bool, monkeypatch, capsys) -> None:
    monkeypatch.setattr(traffic, "PyramidCase", partial(PyramidCase, levels=((16, 3), (16, 1)), dim=16))
    assert traffic.main(["--operation", "gather", *["--json"] * as_json]) == 0
    printed = capsys.readouterr().out
    if as_json:
        found = json.loads(printed)
        assert [(facts["operation"], facts["format"]) for facts in found] == [("gather", f) for f in MEMORY_FORMATS]
        assert all(facts["shape"] == [1, 10, 16] and facts["bytes_of_x"] == 640 for facts in found)
        assert all(facts["forward_traffic_over_x"] >= 3 for facts in found)
    else:
        assert sum(line.startswith("forward") for line in printed.splitlines()) == 2 * 2


def test_attentions_traffic_is_that_of_a_head_in_a_batch() -> None:
    found = traffic.attention(AttentionCase(1, 64), like_batch=32)
    assert found["forward"].bytes_of_x == 3 * 64 * 32 * 4
    assert [record.kernel for record in found["forward"].records] == ["attention_forward_kernel"]
    # every row of a part in one program: q, k, v are read once, out is written
    assert found["forward"].times_x == pytest.approx(4 / 3 + 1 / 96)
    assert found["backward"].launches == 2


class Largest(TorchDispatchMode):
    """Note the most bytes that a tensor's memory has, of all that are made, and how many all of them have."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        results = function(*args, **(kwargs or {}))
        own = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        found = [t.untyped_storage() for t in tree_leaves(results) if isinstance(t, torch.Tensor)]
        self.bytes = max([self.bytes, *(storage.nbytes() for storage in found)])
        self.total += sum(storage.nbytes() for storage in found if storage._cdata not in own)
        return results


LGA = LgaCase(1, 6, 3, 20)  # two channels in each of three heads
QUARTERS = 1 + 1 / 4 + 1 / 16  # x: the maps of the three scales
# times x, of the maps in each launch; least and most of what a depthwise pass reads in parts, with the rows around each
LGA_FORWARD = {
    "depthwise x": (1, 1.15),
    "depthwise ys": QUARTERS,
    "scale_mix x": 1,
    "scale_mix us": QUARTERS,
    "scale_mix shares": 4 / LGA.dim,
    "scale_mix z": 1,
    "depthwise 2 x": (1, 1.6),
    "depthwise 2 ys": 4,
    "gram_attention features": 4 * 2,  # for each head the slices for q and k, which are a third each
    "gram_mix features": 4 / 3,
    "gram_mix x": 1,
    "gram_mix mixed": 1,
}
LGA_BACKWARD = {
    "gram_attention_backward features": 4,
    "gram_attention_backward grad_mixed": 4,
    "gram_attention_backward x": 1,
    "gram_mix_backward features": 4 * 2 / 3,
    "gram_mix_backward grad_mixed": 4,
    "gram_mix_backward grads": 4,
    "depthwise_input grads": (4, 1.35 * 4),
    "depthwise_input grad_x": 1,
    "depthwise_params x": (1, 2.4),
    "depthwise_params grads": 4,
    "scale_mix_backward grad_z": 1,
    "scale_mix_backward x": 1,
    "scale_mix_backward us": QUARTERS,
    "scale_mix_backward shares": 4 / LGA.dim,
    "scale_mix_backward grad_us": QUARTERS,
    "scale_mix_backward grad_x": 1,
    "encoding_gradient grad_z": 1,
    "depthwise_input 2 grads": (QUARTERS, 1.35 * QUARTERS),
    "depthwise_input 2 grad_x": 1,
    "depthwise_params 2 x": (1, 1.35),
    "depthwise_params 2 grads": QUARTERS,
}


def keeps(moved: Traffic, budget) -> bool:
    """Whether each array of the budget moves so often; a kernel's second launch has a number."""
    found, seen = {}, Counter()
    for record in moved.records:
        kernel = record.kernel.removesuffix("_kernel")
        seen[kernel] += 1
        for array, sizes in record.arrays().items():
            name = f"{kernel} {array}" if seen[kernel] == 1 else f"{kernel} {seen[kernel]} {array}"
            found[name] = sum(sizes) / moved.bytes_of_x
    least_most = {name: size if isinstance(size, tuple) else (size, size) for name, size in budget.items()}
    return all(least - 1e-6 <= found[name] <= most + 1e-6 for name, (least, most) in least_most.items())


@pytest.mark.parametrize("layout", few(MEMORY_FORMATS))
def test_lga_reads_each_map_once_and_never_has_queries_keys_and_values(layout, monkeypatch) -> None:
    """Backward, which takes longer, in one format."""
    # show the mode what operators do inside
    monkeypatch.setattr("fastattn.core.tensors.watched", lambda *tensors: False)
    backward = layout == CHANNELS_LAST
    with Largest() as largest:
        found = traffic.lga(replace(LGA, memory_format=layout), LGA_BATCH, backward=backward)
    assert largest.bytes < 3 * found["forward"].bytes_of_x
    assert keeps(found["forward"], LGA_FORWARD), describe(found["forward"])
    assert found["forward"].times_x <= 27
    assert found["forward"].launches == 5
    if backward:  # which begins with forward's launches, in two segments
        assert keeps(found["backward"], LGA_BACKWARD), describe(found["backward"])
        assert found["backward"].launches == 5 + 14


def test_the_reference_has_lgas_queries_keys_and_values() -> None:
    """What the test above looks for is seen where it is."""
    x = draw(*LGA.shape)
    with Largest() as largest, torch.no_grad(), fastattn.use_backend("reference"):
        fastattn.LocalGlobalAttention(LGA.dim, LGA.heads)(x)
    assert largest.bytes >= 3 * x.nbytes


def test_the_command_counts_lga_array_by_array(monkeypatch, capsys) -> None:
    record = Record("gram_mix_kernel", 4, {"feature_0": 50, "feature_7": 150, "x": 100}, {"mixed": 100})
    asked = []

    def counted(case, like_batch, backward):
        asked.append((case.shape, case.heads, case.memory_format, like_batch, backward))
        return {"forward": Traffic([record], 100)}

    monkeypatch.setattr(traffic, "lga", counted)
    assert traffic.main(["--operation", "lga", "--map", "256x20x20", "--forward", "--format", "contiguous"]) == 0
    assert asked == [((1, 256, 20, 20), 16, "contiguous", LGA_BATCH, False)]
    cells = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("forward")]
    assert cells[0] == ["forward", "gram_mix", "4", "feature", "2.000", "0.000", "2.000"]
    assert [row[3] for row in cells] == ["feature", "x", "mixed", "-"]
    assert cells[-1] == ["forward", "all", "-", "-", "-", "-", "4.000"]


ACP_CONVOLUTIONS, ACP_BUDGET = 1.7, 4.25
# By the side of the map: the products of float32 are of tiles of 32 pixels, as a warpgroup's, of 64, overwrite what is
# still multiplied (Triton 3.6), so that the matrix is read twice as often as it was; it comes from the cache.
ACP_WITH_THE_MATRIX_FOR_EACH_TILE = {56: 7.6, 14: 24.8}
# Of 8 maps of 14 x 14 the 32 tiles would leave 100 of 132 multiprocessors idle: output channels are in 3 parts, each of
# which reads x and the levels. In one part all maps were within the budget, at 4.08, and with the matrix, which is 0.37
# times so few maps, at 4.44.
ACP_IN_THREE_PARTS, ACP_MAPS_IN_ONE_PART = 7.2, 4.1


@pytest.mark.parametrize("layout", few(sorted(MEMORY_FORMATS)))
@pytest.mark.parametrize(("dim", "side"), [pytest.param(32, 56, id="32x56x56"), pytest.param(192, 14, id="192x14x14")])
def test_acp_reads_each_map_for_its_convolution_and_its_projection(dim, side, layout, monkeypatch) -> None:
    """Nor is a product torch's. In the budget the projection's matrix, which stays in the cache, counts once for a
    batch; every tile reads it."""
    monkeypatch.setattr("fastattn.core.tensors.watched", lambda *tensors: False)
    case = AcpCase(1, dim, side, memory_format=layout)
    with FlopCounterMode(display=False) as products:
        moved = traffic.interaction(case, GPU_BATCH, backward=False)["forward"]
    assert products.get_total_flops() == 0
    assert [record.kernel for record in moved.records] == ["conv_pool_kernel"] * 2 + ["pyramid_project_kernel"]
    convolutions = sum(record.bytes for record in moved.records[:2])
    assert convolutions <= ACP_CONVOLUTIONS * moved.bytes_of_x, describe(moved)
    again = moved.records[2].read["weight"] - 3 * dim * dim * 4 / GPU_BATCH
    assert again >= 0
    assert moved.bytes - again <= ACP_BUDGET * moved.bytes_of_x, describe(moved)
    assert moved.times_x <= ACP_WITH_THE_MATRIX_FOR_EACH_TILE[side], describe(moved)


@pytest.mark.full
def test_acp_reads_few_small_maps_again_so_that_multiprocessors_have_work() -> None:
    case, parts = AcpCase(1, 192, 14), 3
    moved = traffic.interaction(case, ACP_BATCH, backward=False)["forward"]
    read, matrix = moved.records[2].read, (ACP_LAYERS + 1) * case.dim**2 * 4 / ACP_BATCH
    assert moved.bytes - read["weight"] + matrix <= ACP_IN_THREE_PARTS * moved.bytes_of_x, describe(moved)
    again = sum(size for name, size in read.items() if name == "x" or name.startswith("maps_")) * (1 - 1 / parts)
    assert moved.bytes - read["weight"] - again <= ACP_MAPS_IN_ONE_PART * moved.bytes_of_x, describe(moved)
    assert matrix > (ACP_BUDGET - ACP_MAPS_IN_ONE_PART) * moved.bytes_of_x


FIRST, SECOND = 49 / 196, 16 / 196  # pixels of ACP's levels, of 14 x 14
AGAIN = 2 / 14  # levels of 7 and 4 rows are not nested: two parts of four read a row of their neighbours'
# times x; indices are bytes. A level's gradient is added to what the projection gave it
ACP_BACKWARD = {
    "resized_sums grad": (1, 1 + AGAIN),
    "resized_sums sums": FIRST + SECOND,
    "conv_pool_input grad": SECOND,
    "conv_pool_input index": SECOND / 4,
    "conv_pool_input grad_x": 2 * FIRST,
    "conv_pool_params grad": SECOND,
    "conv_pool_params index": SECOND / 4,
    "conv_pool_params x": (FIRST, 1.3 * FIRST),  # in parts, with the rows around each
    "conv_pool_input 2 grad": (FIRST, 1.4 * FIRST),  # likewise
    "conv_pool_input 2 index": (FIRST / 4, 1.4 * FIRST / 4),
    "conv_pool_input 2 grad_x": 2,
    "conv_pool_params 2 grad": FIRST,
    "conv_pool_params 2 index": FIRST / 4,
    "conv_pool_params 2 x": (1, 1.3),
}
ACP_PARAMETERS = ("weights", "scratch", "grad_params")


@pytest.mark.parametrize("layout", few(MEMORY_FORMATS))
def test_acps_backward_reads_the_gradient_once_and_a_levels_for_each_convolution(layout, monkeypatch) -> None:
    """Apart from the products of the projection, which are the library's, and the convolutions' few parameters."""
    monkeypatch.setattr("fastattn.core.tensors.watched", lambda *tensors: False)
    moved = traffic.interaction(AcpCase(1, 24, 14, memory_format=layout), GPU_BATCH)["backward"]
    assert keeps(moved, ACP_BACKWARD), describe(moved)
    few = sum(sum(record.arrays().get(name, (0, 0))) for record in moved.records for name in ACP_PARAMETERS)
    least = 4 + 6.5 * FIRST + 3.5 * SECOND
    assert least * moved.bytes_of_x <= moved.bytes - few <= (least + AGAIN + 0.3) * moved.bytes_of_x
    assert few <= 0.7 * moved.bytes_of_x, describe(moved)
    assert moved.launches == 1 + 2 * 3


CAT = CatCase(1, 64, 48, 16)  # more concepts than channels, in two blocks
# times x; a program has a block of concepts, or of tokens
CAT_FORWARD = {"gather x": 2, "spread x": 1, "spread out": 1}
CAT_BACKWARD = {
    "value_gradient x": 2,
    "value_gradient grad": 2,
    "token_gradient x": 1,
    "token_gradient grad": 1,
    "token_gradient grad_x": 1,
    "score_gradient x": 2,
    "score_gradient grad": 2,
}


def test_cat_neither_has_nor_writes_what_is_as_large_as_its_scores(monkeypatch) -> None:
    monkeypatch.setattr("fastattn.core.tensors.watched", lambda *tensors: False)
    scores = CAT.tokens * CAT.concepts * 4
    with Largest() as largest:
        found = traffic.interaction(CAT, like_batch=1)
    assert largest.bytes < scores
    for moved in found.values():
        assert all(max(record.written.values()) < scores for record in moved.records), describe(moved)
    assert keeps(found["forward"], CAT_FORWARD), describe(found["forward"])
    assert keeps(found["backward"], CAT_BACKWARD), describe(found["backward"])
    assert (found["forward"].launches, found["backward"].launches) == (3, 3)


def test_the_reference_has_cats_scores() -> None:
    """What the tests around this one look for is seen where it is."""
    with Largest() as largest, torch.no_grad(), fastattn.use_backend("reference"):
        fastattn.ConceptualAttention(CAT.dim, CAT.concepts)(torch.randn(CAT.shape))
    assert largest.bytes >= CAT.tokens * CAT.concepts * 4


def memory_of_cat(case: CatCase) -> Largest:
    """What both passes have on a GPU, where nothing is launched."""
    x = torch.empty(case.shape, dtype=case.dtype, device="meta", requires_grad=True)
    forward = interaction(case)
    with Largest() as largest, recorded():
        torch.autograd.grad(forward(x), x, torch.empty_like(x))
    return largest


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cats_memory_grows_with_tokens_and_with_concepts_but_not_with_both(dtype, monkeypatch) -> None:
    monkeypatch.setattr("fastattn.core.tensors.watched", lambda *tensors: False)
    sizes = [(tokens, concepts) for tokens in (1 << 15, 1 << 16) for concepts in (256, 512)]
    found = {size: memory_of_cat(CatCase(1, *size, 32, dtype=dtype)) for size in sizes}
    (few, many), (small, large) = (1 << 15, 1 << 16), (256, 512)
    assert all(largest.bytes < tokens * concepts * dtype.itemsize for (tokens, concepts), largest in found.items())
    total = {size: largest.total for size, largest in found.items()}
    both = total[many, large] - total[many, small] - total[few, large] + total[few, small]
    assert both < (many - few) * (large - small) * dtype.itemsize / 1000, total


@pytest.mark.parametrize(
    ("options", "shapes"),
    [
        (["acp", "--acp-map", "96x56x56"], [((1, 96, 56, 56), layout) for layout in MEMORY_FORMATS]),
        (["cat", "--concepts", "16", "64"], [((1, 197, 192), 16), ((1, 197, 192), 64)]),
    ],
    ids=["acp", "cat"],
)
def test_the_command_counts_acp_and_cat_array_by_array(options, shapes, monkeypatch, capsys) -> None:
    record = Record("merge_kernel", 4, {"map_0": 50, "map_3": 150}, {"out": 100})
    asked = []

    def counted(case, like_batch, backward):
        asked.append((case.shape, case.concepts if isinstance(case, CatCase) else case.memory_format))
        assert (like_batch, backward) == (32, False)
        return {"forward": Traffic([record], 100)}

    monkeypatch.setattr(traffic, "interaction", counted)
    assert traffic.main(["--operation", *options, "--like-batch", "32", "--forward"]) == 0
    assert asked == shapes
    cells = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("forward")]
    assert cells[0] == ["forward", "merge", "4", "map", "2.000", "0.000", "2.000"]


def describe(moved: Traffic) -> str:
    """Which launch moves how much, in times x."""
    lines = []
    for record in moved.records:
        parts = [("reads", record.read), ("writes", record.written)]
        shares = {f"{kind} {name}": size / moved.bytes_of_x for kind, part in parts for name, size in part.items()}
        large = ", ".join(f"{name} {share:.3f}" for name, share in shares.items() if share > 0.005)
        lines.append(f"{record.kernel} {sum(shares.values()):.3f}: {large}")
    return "\n".join(lines)
