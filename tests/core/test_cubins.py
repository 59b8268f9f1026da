"""The CUDA kernels compiled for five architectures, without a GPU: no spills, wide accesses, no floating atomics."""

import re

import pytest
import torch

from benchmarks import machine_code
from fastattn.bench.sizes import CONTIGUOUS, MEMORY_FORMATS
from tests.helpers import DEVICE, INTERPRETED, few, named

pytest.importorskip("triton")  # whose tools read machine code
pytest.importorskip("cuda.bindings")

from benchmarks import cubins
from benchmarks.suites.scsa import Case

pytestmark = pytest.mark.skipif(INTERPRETED or DEVICE != "cpu", reason="compiles without a GPU, for seconds")
STAGES = few([(64, 56, 56), (512, 7, 7)])
NAMES = {"forward": ["scsa_forward"], "backward": ["scsa_backward", "scsa_batch_sum"]}


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Keep machine code for this module's tests alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTATTN_CACHE_DIR", str(tmp_path_factory.mktemp("cubins")))
        yield


@pytest.mark.parametrize("stage", STAGES, ids=named)
@pytest.mark.parametrize("layout", few(MEMORY_FORMATS))
@pytest.mark.parametrize("dtype", few((torch.bfloat16, torch.float32, torch.float16)), ids=named)
@pytest.mark.parametrize("arch", few((90, 80, 89, 100, 120)), ids=lambda arch: f"sm_{arch}")
def test_kernels_keep_their_values_in_registers_and_move_128_bits(kept, arch, dtype, layout, stage):
    found = cubins.launches([Case((32, *stage), dtype, layout)], [arch])
    for work, names in NAMES.items():
        assert [launch.build.kernel.name for launch in found if launch.work == work] == names
    codes = {launch.build: cubins.build(launch.build) for launch in found}
    assert not [code.error for code in codes.values() if code.error]
    for what, code in codes.items():
        assert (code.spilled, code.stack) == (0, 0), what
        assert code.occupancy > 0
        assembly = machine_code.assembly_of(what.kernel.cubin(arch))
        assert not re.findall(r"\b(?:RED|ATOM)\w*\S*\.F(?:16|32|64)\S*", assembly)
    for launch in found:
        code, definitions = codes[launch.build], dict(launch.build.kernel.definitions)
        if definitions["WIDE"] == "1" and launch.build.kernel.name != "scsa_batch_sum":
            assert max(code.stores) >= 128, launch
            assert definitions["HELD"] == "0" or max(code.loads) >= 128, launch
    if arch == 90 and layout == CONTIGUOUS:
        definitions = dict(found[0].build.kernel.definitions)
        assert (definitions["WIDE"], definitions["HELD"], found[0].work) == ("1", "1", "forward")


def test_tables_show_what_is_launched_and_what_failed():
    (first, *_) = found = cubins.launches([Case((32, 64, 56, 56), torch.float32, CONTIGUOUS)], [89], ["forward"])
    code = machine_code.Code(64, 0, 0, 0, first.build.shared_bytes + 64, 0.5, generic=3)
    (table,) = cubins.tables(found, {first.build: code})
    assert table.title == "cuda, sm_89, float32, contiguous, (32, 64, 56, 56)"
    dynamic = str(first.build.shared_bytes)
    assert table.rows[0][4:] == ("64", "0", "64", dynamic, "50%", "-", "-", "3")
    (table,) = cubins.tables(found, {first.build: machine_code.Code(error="no such thing")})
    assert table.rows[0][-1] == "no such thing"
    assert len(table.rows[0]) == len(table.columns)


def test_a_part_of_what_a_tool_says_is_of_one_kernel():
    said = " Function a_kernel:\n REG:1\n Function a_kernel_more:\n REG:2\n Function b_kernel:\n REG:3\n"
    assert "REG:1" in machine_code.part_of(said, r"\bFunction ", "a_kernel")
    assert machine_code.part_of(said, r"\bFunction ", "b_kernel").strip().endswith("REG:3")


def test_what_does_not_compile_is_reported(kept):
    found = cubins.launches([Case((32, 64, 56, 56), torch.float32, CONTIGUOUS)], [90], ["forward"])
    wrong = cubins.Build(cubins.Kernel(found[0].build.kernel.source, "scsa_forward"), 90, 256, 0)
    assert "error: " in cubins.build(wrong).error
