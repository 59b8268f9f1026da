"""What the Triton path alone has: two strategies, blocks of columns, plans, launches, tuning, another dtype out."""

import pytest
import torch

import fastattn
from tests.cases import make_case
from tests.helpers import (
    DEVICE,
    FAST,
    FORMATS,
    INTERPRETED,
    assert_accurate,
    by_turns,
    check,
    draw,
    few,
    make,
    named,
    run,
    slow_interpreted,
)

pytest.importorskip("triton")

from fastattn.kernels.common import tiles, tuning
from fastattn.kernels.common.launch import Launch
from fastattn.kernels.scsa import call as scsa
from fastattn.kernels.scsa import plan, predict

pytestmark = pytest.mark.triton
runs = pytest.mark.skipif(FAST != "triton", reason="runs kernels: TRITON_INTERPRET=1, or a GPU")


@pytest.fixture
def fresh_plans():
    """Make plans anew in a test and after it."""
    scsa.plan.cache_clear()
    yield
    scsa.plan.cache_clear()


@pytest.fixture
def large(monkeypatch, fresh_plans):
    """Serve maps of any size by the launches for large ones."""
    monkeypatch.setattr(plan, "SMALL", 0)


@pytest.fixture
def one_launch(monkeypatch, fresh_plans):
    """Serve small maps by one launch, however many channels they have."""
    monkeypatch.setattr(predict, "START", 1 << 60)


def make_plan(module, shape, dtype=torch.float32, memory_format=torch.contiguous_format):
    """Return the plan of a module's call on a GPU with an H200's processors."""
    operation = module.operation
    keys = ("head_num", "window_size", "down_sample_mode", "gate_layer")
    options = tuple(getattr(module, key) for key in keys if hasattr(module, key))
    numels = tuple(p.numel() for p in module._params())
    nhwc = memory_format is torch.channels_last
    return plan.Plan(
        operation.spatial, operation.channel, shape, numels, options,
        dtype, dtype, dtype, nhwc, torch.device("cpu"),
    )  # fmt: skip


ONE, EACH = (1, 2), (5, 5)  # launches forward and backward


@pytest.mark.parametrize("memory_format", FORMATS, ids=named)
@pytest.mark.parametrize(
    ("shape", "forward", "backward"),
    [
        ((32, 64, 56, 56), EACH, EACH),
        ((32, 128, 28, 28), EACH, EACH),
        ((32, 256, 14, 14), EACH, EACH),
        ((32, 512, 7, 7), EACH, EACH),
        ((1, 512, 7, 7), EACH, EACH),
        ((32, 2048, 7, 7), EACH, EACH),
        ((32, 128, 7, 7), ONE, EACH),
        ((1, 64, 14, 14), ONE, EACH),
        ((1, 32, 7, 7), ONE, ONE),
        ((32, 32, 7, 7), ONE, ONE),
        ((256, 32, 7, 7), ONE, ONE),
    ],
    ids=str,
)
def test_the_size_chooses_the_strategy_of_each_pass(shape, forward, backward, memory_format):
    made = make_plan(fastattn.SCSA(shape[1]), shape, memory_format=memory_format)
    assert (len(made.forward), len(made.backward)) == (forward[0], backward[1])
    assert len(made.part_of_backward(True, False)) == len(made.backward) - 1
    assert len(made.part_of_backward(False, True)) == (2 if backward == ONE else 4)


@pytest.mark.usefixtures("one_launch")
@pytest.mark.parametrize("memory_format", FORMATS, ids=named)
@pytest.mark.parametrize(
    ("channels", "side", "small"), [(128, 28, False), (256, 14, True), (512, 7, True), (960, 7, False)]
)
def test_one_program_takes_maps_up_to_a_size(channels, side, small, memory_format):
    made = make_plan(fastattn.SCSA(channels), (32, channels, side, side), memory_format=memory_format)
    assert made.small == small
    assert (len(made.forward), len(made.backward)) == (ONE if small else EACH)


@pytest.mark.parametrize("memory_format", FORMATS, ids=named)
@pytest.mark.parametrize("shape", [(32, 512, 7, 7), (1, 256, 14, 14), (32, 96, 10, 16)], ids=str)
def test_both_strategies_agree_on_the_workspaces(shape, memory_format, monkeypatch):
    """A pass by one launch takes what the launches of another left."""
    each = make_plan(fastattn.SCSA(shape[1]), shape, memory_format=memory_format)
    monkeypatch.setattr(predict, "START", 1 << 60)
    one = make_plan(fastattn.SCSA(shape[1]), shape, memory_format=memory_format)
    assert len(one.backward) < len(each.backward)
    assert one.sizes == each.sizes


@pytest.mark.parametrize(("channels", "side"), [(256, 14), (512, 7)])
def test_what_is_foretold_follows_the_work(channels, side):
    """More processors let many programs win; dearer launches, one."""
    launches = make_plan(fastattn.SCSA(channels), (32, channels, side, side)).backward[:-1]
    whole = Launch(Kernel(), lambda _: (32, 1, 1), ("a",), ("a",), {}, {}, 8)
    work = {launch.name: predict.instructions(launch.name, channels, side, side, channels, 1) for launch in launches}
    assert all(work.values())
    compared = [predict.one_launch_is_faster(whole, launches, work, 32, count) for count in (1, 132)]
    assert compared == [True, False]
    assert predict.one_launch_is_faster(whole, launches, dict.fromkeys(work, 1.0), 32, 132)


@runs
@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("memory_format", few(FORMATS), ids=named)
@pytest.mark.parametrize(
    ("name", "case"),
    [
        ("scsa", "default"),
        ("smsa", "default"),
        ("pcsa", "default"),
        ("scsa", "bias, heads, odd map"),
        pytest.param("scsa", "max pooling", marks=pytest.mark.full),
        ("scsa", "softmax gates, max pooling"),
        ("scsa", "one pixel"),
        pytest.param("scsa", "kernels longer than the map", marks=pytest.mark.full),
        ("pcsa", "heads of three channels"),
    ],
)
def test_small_maps_by_the_launches_for_large_ones(name, case, memory_format):
    check(*make_case(name, case, memory_format=memory_format))


@runs
@pytest.mark.usefixtures("one_launch")
@pytest.mark.parametrize(
    ("case", "memory_format"),
    by_turns(
        [
            ("scsa", "144 channels, one pixel left"),
            ("scsa", "max pooling, heads, bias"),
            ("scsa", "softmax gates"),
            ("pcsa", "default"),
            ("smsa", "default"),
        ]
    ),
    ids=named,
)
def test_small_maps_by_one_launch(case, memory_format):
    check(*make_case(*case, memory_format=memory_format))


@runs
@pytest.mark.usefixtures("one_launch")
@pytest.mark.parametrize("processors", few([1000, 1]), ids=lambda count: f"{count} processors")
@pytest.mark.parametrize("memory_format", few(FORMATS), ids=named)
def test_programs_of_one_sample(memory_format, processors, monkeypatch):
    monkeypatch.setattr(plan, "processors", lambda device: processors)
    module, x = make("scsa", 272), draw(2, 272, 7, 8, memory_format=memory_format)
    check(module, x)


WIDE = {
    "two blocks of columns": (1, 8, 15, 112, {}),
    "a remainder alone in the last block": (1, 8, 14, 115, {}),
    "a window wider than a block": (1, 8, 80, 170, {"window_size": 70}),
    "global average of a wide map": (1, 8, 3, 200, {"window_size": -1}),
    "global average of a map wider than a tile": (1, 4, 3, 1100, {"window_size": -1}),
    "maxima of a wide map": (1, 8, 14, 75, {"down_sample_mode": "max_pool"}),
    "few samples and channels": (1, 4, 21, 56, {}),
}


@runs
@pytest.mark.usefixtures("fresh_plans")
@pytest.mark.parametrize(("case", "memory_format"), by_turns(WIDE), ids=named)
def test_blocks_of_columns(case, memory_format):
    *shape, options = WIDE[case]
    check(make("scsa", shape[1], **options), draw(*shape, memory_format=memory_format))


@runs
@slow_interpreted
def test_2048_channels_and_one_pixel_left():
    check(make("pcsa", 2048, head_num=2), draw(1, 2048, 7, 7))


@runs
@pytest.mark.parametrize("memory_format", FORMATS, ids=named)
@pytest.mark.parametrize("shape", [(2, 16, 14, 14), (2, 16, 20, 23)], ids=["small", "large"])
def test_another_dtype_out(shape, memory_format):
    """Under autocast on a GPU eager widens x: so does the operator, without a copy of x."""
    module, x = make("scsa", 16), draw(*shape, dtype=torch.bfloat16, memory_format=memory_format)
    grad_out = draw(*shape, seed=5)
    truth = run(make("scsa", 16).double(), x.double(), grad_out.double(), "reference")
    eager = run(module, x.float(), grad_out, "reference")
    x.requires_grad_()
    out = module.operation(x, module._params(), 1, 7, "avg_pool", "sigmoid", torch.float32, "triton")
    assert out.dtype == torch.float32
    assert out.stride() == x.stride()
    names, parameters = zip(*module.named_parameters(), strict=True)
    grad_x, *gradients = torch.autograd.grad(out, [x, *parameters], grad_out)
    assert grad_x.dtype == torch.bfloat16
    torch.testing.assert_close(grad_x.double(), truth.pop("grad_x"), rtol=0.01, atol=0.01)
    del eager["grad_x"]
    assert_accurate(dict(zip(("out", *names), (out.detach(), *gradients), strict=True)), truth, eager)


def test_blocks_of_columns_begin_where_loads_are_aligned():
    for width, window, expected in ((56, 7, 64), (64, 7, 64), (65, 7, 56), (224, 7, 56), (300, 3, 48), (300, 80, 80)):
        assert tiles.columns_per_block(width, window) == expected


@pytest.mark.parametrize("head", [1, 2, 3, 8, 12, 64, 192, 2048])
@pytest.mark.parametrize("heads", [1, 2, 6])
def test_a_tile_of_the_attention_covers_its_heads(head, heads):
    channels = head * heads
    rows, columns = tiles.attention_rows(channels, head)
    for first in range(0, channels, rows):
        begin = first // head * head
        end = min(-(-(min(first + rows, channels)) // head) * head, channels)
        assert begin + columns >= end


@pytest.mark.parametrize(
    ("shape", "options", "pixels"),
    [
        ((32, 64, 56, 56), {}, 16),
        ((32, 128, 28, 28), {}, 16),
        ((32, 128, 21, 21), {}, 1),
        ((32, 256, 28, 28), {}, 1),
        ((32, 256, 28, 28), {"head_num": 4}, 16),
        ((32, 8, 56, 56), {}, 1),
        ((32, 256, 14, 14), {}, 1),
        ((32, 64, 14, 14), {"window_size": 2}, 1),
    ],
    ids=str,
)
def test_attention_multiplies_matrices_where_enough_pixels_are_left(shape, options, pixels):
    made = make_plan(fastattn.SCSA(shape[1], **options), shape)
    launches = [launch for launch in (*made.forward, *made.backward) if "attention" in launch.name]
    assert [launch.constants["BN"] for launch in launches] == [pixels] * len(launches)


@pytest.mark.parametrize("qkv_bias", [False, True])
@pytest.mark.parametrize("name", ["scsa", "smsa", "pcsa"])
def test_names_of_parameters_follow_the_operation(name, qkv_bias):
    module = make(name, 16, **({} if name == "smsa" else {"qkv_bias": qkv_bias}))
    owners = {id(p): key for key, p in module.named_parameters()}
    convolutions = dict(zip(("local_dwc", "global_dwc_s", "global_dwc_m", "global_dwc_l"), range(4), strict=True))
    expected = []
    for parameter in module._params():
        owner, kind = owners[id(parameter)].rsplit(".", 1)
        expected.append(f"conv_{kind}_{convolutions[owner]}" if owner in convolutions else f"{owner}_{kind}")
    assert list(make_plan(module, (2, 16, 20, 20)).names) == expected


class Kernel:
    """Stands in for a kernel of Triton's: launching it compiles and returns what later launches go to."""

    __name__ = "kernel"

    def __init__(self):
        self.calls = []

    def __getitem__(self, grid):
        def launch(*arguments, **options):
            self.calls.append((grid, [a if isinstance(a, int) else a.numel() for a in arguments], options))
            return self

        return launch


def test_the_first_launch_compiles_and_later_ones_are_bound():
    kernel = Kernel()
    tensors = torch.ones(1), torch.ones(2), torch.ones(3)
    launch = Launch(kernel, lambda c: (c["BC"], 1, 1), ("c", "a"), ("a", "b", "c"), {"N": 5}, {"BC": 4}, 8)
    for _ in range(3):
        launch(tensors)
    first, *later = kernel.calls
    assert first == ((4, 1, 1), [3, 1, 5], {"BC": 4, "num_warps": 8, "num_stages": 3, "enable_fp_fusion": True})
    assert later == [((4, 1, 1), [3, 1, 5, 4], {})] * 2


@pytest.fixture
def nothing_found():
    before = dict(tuning._found)
    tuning._found.clear()
    yield
    tuning._found.clear()
    tuning._found.update(before)


@runs
@pytest.mark.usefixtures("fresh_plans", "nothing_found")
@pytest.mark.skipif(not INTERPRETED, reason="its clock is made up")
def test_tuning_keeps_the_fastest_for_sizes_alike(monkeypatch):
    """The clock prefers many channels per block: what is found must still compute the same."""
    seen = []

    def clock(call, quantiles):
        call()
        seen.append(1)
        return [1.0 / len(seen)] * 3  # the last alternative wins

    tune = tuning.tune
    monkeypatch.setattr(tuning, "tune", lambda launch, arguments: tune(launch, arguments, clock))
    module = make("scsa", 8)

    def configured(height, width):
        launches = make_plan(module, (1, 8, height, width)).forward
        return [(launch.constants.get("BC"), launch.num_warps) for launch in launches]

    defaults = configured(20, 18)
    fastattn.set_backend("triton")
    fastattn.warmup(module, [(1, 8, 20, 18)], tune=True)
    tuned = configured(20, 18)
    assert len(seen) > 20
    assert tuned != defaults
    count = len(seen)
    fastattn.warmup(module, [(1, 8, 20, 18)], tune=True)
    assert len(seen) == count
    assert configured(22, 22) == tuned  # the same bucket
    assert configured(40, 40) != tuned
    check(module, draw(1, 8, 20, 18))


def test_nothing_is_tuned_while_a_graph_is_captured(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match=r"call fastattn\.warmup before"):
        tuning.tune(None, ())


def test_plans_need_no_gpu_and_keep_alignments_apart(fresh_plans):
    x = draw(1, 1, 1, 16 * 20 * 20 + 1).flatten()
    alignments = {x[start : start + 6400].data_ptr() & 15 for start in (0, 1)}
    assert len(alignments) == 2
    for alignment in alignments:
        scsa.plan(
            True, False, (1, 16, 20, 20), (12, 20, 28, 36, 4, 4, 4, 4, 16, 16, 16, 16), ("sigmoid",),
            torch.float32, torch.float32, torch.float32, False, torch.device(DEVICE), alignment,
        )  # fmt: skip
    assert scsa.plan.cache_info().currsize == 2
