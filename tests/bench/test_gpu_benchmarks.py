"""The GPU benchmarks' machinery without a GPU: a fake one for the clock and the graphs, the CPU for the rest."""

import signal
import time
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import fastattn
from benchmarks.conftest import report
from benchmarks.shapes import PART, SELECTION
from benchmarks.suites import PARTS, SUITES, cfsam, interaction, lga, models, scsa
from benchmarks.suites.cfsam import AttentionCase, PyramidCase
from benchmarks.suites.interaction import AcpCase, CatCase
from benchmarks.suites.lga import PAPER, RELEASED, LgaCase
from benchmarks.suites.models import ModelCase
from benchmarks.suites.scsa import Case
from fastattn.bench import contest as engine
from fastattn.bench import devices, machine
from fastattn.bench.contest import Contest, Effort, Graphed, fast_backends, key_of
from fastattn.bench.devices import Cpu, Gpu, Rehearsal
from fastattn.bench.interleave import Rival
from fastattn.bench.limit import TimeUp, time_limit
from fastattn.bench.sizes import (
    ACP_SIZES,
    CAT_SIZES,
    CHANNELS_LAST,
    CONTIGUOUS,
    FORWARD,
    GRAPH,
    LAUNCHES,
    LGA_SIZES,
    STAGES,
    TRAINING,
)

QUICK = Effort(rounds=3, round_seconds=0.0, pedantic_rounds=1)


class FakeCuda:
    """A GPU with a queue: work that was launched takes its time when somebody waits for it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.now, self.queue = 0.0, 0.0
        self.log: list[str] = []
        fakes = {
            "Event": lambda enable_timing: FakeEvent(self),
            "Stream": lambda: SimpleNamespace(wait_stream=lambda stream: self.log.append("side waits")),
            "stream": lambda stream: self.scope("side"),
            "current_stream": lambda: SimpleNamespace(wait_stream=lambda stream: self.log.append("waits for side")),
            "set_stream": lambda stream: self.log.append("back"),
            "CUDAGraph": lambda: SimpleNamespace(replay=lambda: self.launch("replay", 0.001)),
            "graph": lambda graph: self.scope("capture"),
            "synchronize": self.synchronize,
            "empty_cache": lambda: self.log.append("empty cache"),
            "is_available": lambda: True,
            "is_initialized": lambda: True,
            "get_device_properties": lambda: SimpleNamespace(L2_cache_size=64),
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)
        monkeypatch.setattr(Gpu, "type", "cpu")

    def launch(self, name: str, seconds: float) -> None:
        self.log.append(name)
        self.queue += seconds

    def synchronize(self) -> None:
        self.now, self.queue = self.now + self.queue, 0.0

    @contextmanager
    def scope(self, name: str):
        self.log.append(f"{name} begins")
        yield
        self.log.append(f"{name} ends")


class FakeEvent:
    def __init__(self, cuda: FakeCuda):
        self.cuda, self.at = cuda, 0.0

    def record(self) -> None:
        self.at = self.cuda.now + self.cuda.queue  # reached after what was launched before

    def synchronize(self) -> None:
        self.cuda.synchronize()

    def elapsed_time(self, end: "FakeEvent") -> float:
        assert self.cuda.queue == 0, "read before the device was there"
        return (end.at - self.at) * 1e3


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    return FakeCuda(monkeypatch)


def test_the_gpus_stopwatch_counts_its_calls_and_nothing_launched_before(cuda: FakeCuda) -> None:
    device = Gpu()
    cuda.launch("earlier", 5.0)
    assert device.seconds(lambda: cuda.launch("call", 0.25), 4) == pytest.approx(1.0)
    assert cuda.log == ["earlier"] + ["call"] * 4


def test_the_l2_is_overwritten_before_a_round(cuda: FakeCuda) -> None:
    device = Gpu()
    device.eviction.fill_(7)
    assert device.eviction.nbytes == 4 * 64
    device.before_round()
    assert not device.eviction.any()


def test_a_capture_follows_warm_calls_on_a_side_stream(cuda: FakeCuda) -> None:
    def work() -> str:
        cuda.log.append("work")
        return "results"

    replay, results = Gpu().capture(work)
    warm = ["side waits", "side begins", *["work"] * 3, "side ends", "waits for side"]
    assert cuda.log == [*warm, "capture begins", "work", "capture ends", "back"]
    assert results == "results"
    replay()
    assert cuda.log[-1] == "replay"


def test_a_capture_that_fails_leaves_no_stream_behind(cuda: FakeCuda) -> None:
    def work() -> None:
        if "capture begins" in cuda.log:
            raise RuntimeError("not while capturing")

    with pytest.raises(RuntimeError, match="not while capturing"):
        Gpu().capture(work)
    assert cuda.log[-1] == "back"


def test_a_graph_is_captured_once(cuda: FakeCuda) -> None:
    graphed = Graphed(Gpu(), lambda: {"out": torch.ones(1)})
    for _ in range(3):
        graphed()
    assert graphed.answers()["out"] == 1
    assert cuda.log.count("capture begins") == 1
    assert cuda.log.count("replay") == 4


def test_the_wall_clock_waits_for_the_gpu(cuda: FakeCuda) -> None:
    cuda.launch("work", 1.0)
    first = devices.wall_clock()
    assert (cuda.now, cuda.queue) == (1.0, 0.0)
    assert devices.wall_clock() >= first


def test_the_device_is_a_gpu_where_pytorch_sees_one(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(devices.device.__wrapped__(), Gpu)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert type(devices.device.__wrapped__()) is Rehearsal


def test_a_contest_takes_the_devices_stopwatch_and_lets_it_go(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "query_driver", lambda: {"sm": 1000.0})
    clocks: dict[str, list[float]] = {"sm": [], "memory": []}
    monkeypatch.setattr(machine, "_clocks", clocks)
    contest = Contest(Gpu(), QUICK)
    exact = {"out": torch.ones(2, dtype=torch.float64)}

    def call() -> dict[str, torch.Tensor]:
        cuda.launch("call", 0.5)
        return {"out": torch.ones(2)}

    contest.enter("some", call, call, Rival("", call).context, exact, {"out": torch.ones(2)})
    contest.run()
    assert contest.timings["some-launches"].median == pytest.approx(0.5)
    assert contest.timings["some-graph"].median == pytest.approx(0.001)
    assert clocks["sm"] == [1000.0]
    contest.close()
    assert not contest.rivals
    assert cuda.log[-1] == "empty cache"


def test_a_time_limit_passes_through_those_who_catch_exceptions() -> None:
    before = signal.getsignal(signal.SIGALRM)

    def stubborn() -> None:
        try:
            time.sleep(30)
        except Exception:
            time.sleep(30)

    with pytest.raises(TimeUp), time_limit(0.05):
        stubborn()
    with time_limit(30):
        pass
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_backward_can_be_stopped() -> None:
    class Slow(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            time.sleep(30)

    def answers() -> dict[str, torch.Tensor]:
        x = torch.ones(1, requires_grad=True)
        Slow.apply(x).backward()
        return {"grad": x}

    contest = Contest(Cpu(), QUICK)
    contest.admit(Rival("slow", answers), answers, {}, {}, seconds=0.05)
    assert contest.late == {"slow": "no answer within 0 s"}


def test_who_is_late_is_skipped_and_not_tried_again_as_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(engine.LIMITS, "max-autotune", 0.05)
    tries = []

    def answers() -> dict[str, torch.Tensor]:
        tries.append(1)
        time.sleep(30)
        return {}

    contest = Contest(Rehearsal(), QUICK)
    contest.enter("max-autotune", answers, answers, Rival("", answers).context, {}, {})
    assert tries == [1]
    for launch in (LAUNCHES, GRAPH):
        with pytest.raises(pytest.skip.Exception, match="no answer"):
            report(contest, key_of("max-autotune", launch), None)


def test_limits_shrink_when_the_parts_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    given = []
    monkeypatch.setattr(Contest, "admit", lambda self, *arguments: given.append(arguments[-1]))
    nothing = Rival("", dict).context
    for until in (float("inf"), time.monotonic() - 1):
        contest = Contest(Rehearsal(), Effort(until=until))
        contest.enter("compile", dict, dict, nothing, {}, {})
    assert given == [engine.LIMITS["compile"]] * 2 + [engine.LAST_LIMIT] * 2


@pytest.mark.parametrize("batch", [32, 256])
def test_what_is_asked_for_runs_first(batch: int) -> None:
    cases = scsa.gpu_cases(batch, "default")
    assert len(cases) == len(set(map(str, cases))) == len(STAGES) * 2 * 2 * 2
    assert [case.dtype for case in cases] == [torch.bfloat16] * 16 + [torch.float32] * 16
    assert [case.work for case in cases[:16]] == [FORWARD] * 8 + [TRAINING] * 8
    tuned = scsa.gpu_cases(batch, "default", tuned=True)
    assert set(tuned) == set(cases)
    assert [case.memory_format for case in tuned[:16]] == [CONTIGUOUS] * 8 + [CHANNELS_LAST] * 8
    names = [str(case) for case in models.gpu_model_cases("default")]
    assert len(set(names)) == len(names) == 8


def test_what_is_asked_of_cfsam_runs_first() -> None:
    cases = cfsam.gpu_cfsam_cases("default")
    assert len(cases) == len(set(map(str, cases))) == 2 * (4 * 2 + 2 * 2)
    assert [case.dtype for case in cases] == [torch.bfloat16] * 12 + [torch.float32] * 12
    assert cases[:2] == [AttentionCase(32, work=work, dtype=torch.bfloat16) for work in (FORWARD, TRAINING)]
    modules = [PyramidCase(32, layout, dtype=torch.bfloat16) for layout in (CONTIGUOUS, CHANNELS_LAST)]
    assert cases[8:10] == modules


def test_what_is_asked_of_lga_runs_first() -> None:
    cases = lga.gpu_lga_cases("default")
    assert len(cases) == len(set(map(str, cases))) == 2 * 5 * 5
    assert [case.dtype for case in cases] == [torch.bfloat16] * 25 + [torch.float32] * 25
    asked = [
        LgaCase(32, *size, PAPER, FORWARD, layout, torch.bfloat16)
        for layout in (CONTIGUOUS, CHANNELS_LAST)
        for size in LGA_SIZES
    ]
    assert cases[:10] == asked
    assert {(case.contraction, case.work) for case in cases[10:15]} == {(RELEASED, FORWARD)}


def test_what_is_asked_of_acp_and_cat_runs_first() -> None:
    cases = interaction.gpu_interaction_cases("default")
    assert len(cases) == len(set(map(str, cases))) == 2 * 2 * (4 + 3)
    assert [case.dtype for case in cases] == [torch.bfloat16] * 14 + [torch.float32] * 14
    asked = [
        AcpCase(32, *size, 2, FORWARD, layout, torch.bfloat16)
        for layout in (CONTIGUOUS, CHANNELS_LAST)
        for size in ACP_SIZES
    ]
    assert cases[:4] == asked
    assert cases[4:7] == [CatCase(32, *size, FORWARD, torch.bfloat16) for size in CAT_SIZES]
    assert {case.work for case in cases[7:14]} == {TRAINING}
    assert all(case.compiled for case in cases)


@pytest.mark.parametrize("work", [FORWARD, TRAINING])
def test_scsa_contest_compares_like_with_like(work: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled, steps = [], []

    def compile_nothing(forward, *, mode: str | None = None, dynamic: bool):
        compiled.append(mode)
        return forward

    monkeypatch.setattr(torch, "compile", compile_nothing)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: steps.append(1))
    names = ["eager", "compile", "max-autotune", "copy", *fast_backends("scsa", "cpu")]
    tf32 = torch.backends.cudnn.allow_tf32
    suite = replace(SUITES["module"], rivals=lambda case, device: names)
    contest = suite.hold(Case((2, 8, 8, 8), memory_format=CHANNELS_LAST, work=work), QUICK, Rehearsal())
    assert compiled == [None, "max-autotune", "max-autotune-no-cudagraphs"]
    assert len(steps) >= 3
    assert not contest.wrong | contest.broken | contest.late
    assert set(contest.timings) == {key_of(name, launch) for name in names for launch in (LAUNCHES, GRAPH)}
    assert set(contest.speedups("eager-graph")) == set(names) - {"eager"}
    ours, copied = contest.record("eager-graph"), contest.record("copy-graph")
    assert (ours["rival"], ours["launch"], ours["format"]) == ("eager", GRAPH, CHANNELS_LAST)
    size = 2 * 8 * 8 * 8 * 4
    assert ours["bytes_moved_at_least"] == size * (2 if work == FORWARD else 5)
    assert copied["bytes_moved_at_least"] == size * 2
    assert copied["share_of_copy"] == pytest.approx(1)
    assert ours["share_of_copy"] == pytest.approx(ours["gb_per_s"] / copied["gb_per_s"])
    contest.close()
    assert torch.backends.cudnn.allow_tf32 is tf32


@pytest.mark.parametrize("case", cfsam.gpu_cfsam_cases("smoke"), ids=str)
def test_cfsam_contest_compares_like_with_like(
    case: AttentionCase | PyramidCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda forward, *, dynamic: forward)
    alone = isinstance(case, AttentionCase)
    fast = fast_backends("cfsam", "cpu")
    names = ["eager", "compile", *(["sdpa copies", "sdpa view"] if alone else []), *fast]
    contest = SUITES[case.suite].hold(case, QUICK, Rehearsal())
    assert not contest.wrong | contest.broken | contest.late
    assert set(contest.timings) == {key_of(name, launch) for name in names for launch in (LAUNCHES, GRAPH)}
    assert set(contest.speedups("eager-graph")) == set(names) - {"eager"}
    facts = contest.record("compile-graph")
    assert facts["suite"] == ("attention" if alone else "pyramid")
    operation = "partition_attention" if alone else "cfsam"
    assert facts.items() >= {**case.facts(), "operation": operation, "rival": "compile", "launch": GRAPH}.items()
    seconds = contest.timings["compile-graph"].median
    if alone:
        size = 1 * 40 * 256 * case.dtype.itemsize
        assert facts["bytes_moved_at_least"] == size * (4 if case.work == FORWARD else 11)
        products = 2 if case.work == FORWARD else 7
        assert facts["gflop_per_s"] == pytest.approx(products * 2 * 8 * 40 * 20 * 32 / seconds / 1e9)
    else:
        assert facts["images_per_s"] == pytest.approx(1 / seconds)
    contest.close()


@pytest.mark.parametrize("case", lga.gpu_lga_cases("smoke"), ids=str)
def test_lga_contest_compares_like_with_like(case: LgaCase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda forward, *, dynamic: forward)
    names = ["eager", *(["compile"] if case.contraction == PAPER else []), *fast_backends("lga", "cpu")]
    contest = SUITES[case.suite].hold(case, QUICK, Rehearsal())
    assert not contest.wrong | contest.broken | contest.late
    assert set(contest.timings) == {key_of(name, launch) for name in names for launch in (LAUNCHES, GRAPH)}
    assert set(contest.speedups("eager-graph")) == set(names) - {"eager"}
    facts = contest.record("eager-graph")
    assert facts["suite"] == "lga"
    assert facts.items() >= {**case.facts(), "operation": "lga", "rival": "eager", "launch": GRAPH}.items()
    size = 8 * 9 * 9 * case.dtype.itemsize
    assert facts["bytes_moved_at_least"] == size * (2 if case.work == FORWARD else 5)
    contest.close()


def test_scenes_of_lga_lie_on_the_device() -> None:
    for case in lga.gpu_lga_cases("smoke"):
        scene = lga.lga_scene(case, "meta")
        assert all(tensor.is_meta for tensor in (*scene.leaves.values(), *scene.grads))
        assert all(found.is_meta for found in scene.results(scene.exact(scene.module)).values())


@pytest.mark.parametrize("case", interaction.gpu_interaction_cases("smoke"), ids=str)
def test_interaction_contest_compares_like_with_like(case: AcpCase | CatCase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda forward, *, dynamic: forward)
    names = ["eager", "compile", *fast_backends(case.suite, "cpu")]
    contest = SUITES[case.suite].hold(case, QUICK, Rehearsal())
    assert not contest.wrong | contest.broken | contest.late
    assert set(contest.timings) == {key_of(name, launch) for name in names for launch in (LAUNCHES, GRAPH)}
    assert set(contest.speedups("eager-graph")) == set(names) - {"eager"}
    facts = contest.record("eager-graph")
    assert facts["suite"] == case.suite
    assert facts.items() >= {**case.facts(), "operation": case.suite, "rival": "eager", "launch": GRAPH}.items()
    size = (8 * 9 * 9 if isinstance(case, AcpCase) else 40 * 8) * case.dtype.itemsize
    assert facts["bytes_moved_at_least"] == size * (2 if case.work == FORWARD else 5)
    contest.close()


def test_scenes_of_acp_and_cat_lie_on_the_device() -> None:
    for case in interaction.gpu_interaction_cases("smoke"):
        scene = interaction.interaction_scene(case, "meta")
        assert all(tensor.is_meta for tensor in (*scene.leaves.values(), *scene.grads))
        assert all(found.is_meta for found in scene.results(scene.exact(scene.module)).values())


def test_scenes_of_cfsam_lie_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    *_, attention, pyramid = cfsam.gpu_cfsam_cases("smoke")
    whole, module = cfsam.attention_scene(attention, "meta"), cfsam.pyramid_scene(pyramid, "meta")
    monkeypatch.setattr(cfsam, "MOST_SCORES_ON_GPU", 0)
    some = cfsam.attention_scene(attention, "meta")
    for scene in (whole, module, some):
        assert all(tensor.is_meta for tensor in (*scene.leaves.values(), *scene.grads))
    for scene in (whole, module):
        assert all(found.is_meta for found in scene.results(scene.exact(scene.module)).values())


def test_a_gpu_has_room_for_longer_explicit_attention() -> None:
    cases = [case for case in cfsam.gpu_cfsam_cases("default") if isinstance(case, AttentionCase)]
    assert all(cfsam.explicit_fits(case, "cuda") for case in cases)
    assert not all(cfsam.explicit_fits(case, "cpu") for case in cases)
    assert not cfsam.explicit_fits(AttentionCase(32, 20_000), "cuda")


def test_model_contest(monkeypatch: pytest.MonkeyPatch) -> None:
    def create(name: str, attention: str | None) -> nn.Module:
        attentions = [fastattn.SCSA(8)] if attention else []
        layers = [nn.Conv2d(3, 8, 3, 8), nn.BatchNorm2d(8), nn.ReLU(), *attentions]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())

    monkeypatch.setattr(models.models, "create", create)
    case = ModelCase("some", 4, CHANNELS_LAST, torch.bfloat16)
    contest = SUITES[case.suite].hold(case, QUICK, Rehearsal())
    assert not contest.wrong | contest.broken | contest.late
    facts = contest.facts("plain-launches")
    assert (facts["attention"], facts["shape"], facts["dtype"]) == ("none", [4, 3, 224, 224], "bfloat16")
    assert "plain" in contest.speedups("eager-graph")
    contest.close()
    assert not torch.backends.cudnn.benchmark


def test_rows_of_every_part_and_none_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pytest_benchmark")  # its marker
    pytest.importorskip("timm")
    from benchmarks import bench_gpu

    monkeypatch.setattr(bench_gpu, "device", Rehearsal)
    for name, cases in PARTS.items():
        pairs = cases("default")
        suites = {"models": {"model"}, "cfsam": {"attention", "pyramid"}, "lga": {"lga"}, "interaction": {"acp", "cat"}}
        tuned = name.endswith("-tuned")
        assert {suite for suite, _ in pairs} == suites.get(name, {"tuned" if tuned else "module"})
        assert len(pairs) == {"models": 8, "cfsam": 24, "lga": 50, "interaction": 28}.get(name, 32)
        rivals = {rival for suite, case in pairs for rival in SUITES[suite].rivals(case, Rehearsal())}
        assert ("sdpa view" in rivals) == (name == "cfsam")
        assert ("max-autotune" in rivals) == tuned
        assert ("compile" in rivals) == (name != "models" and not tuned)
        assert "composed" not in rivals
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    asked: list[tuple] = []

    def generate(part: str | None, selection: str) -> list[tuple]:
        asked.clear()
        stash = {PART: part, SELECTION: selection}
        parametrize = lambda *arguments, **options: asked.append((*arguments, options))  # noqa: E731
        bench_gpu.pytest_generate_tests(SimpleNamespace(config=SimpleNamespace(stash=stash), parametrize=parametrize))
        return asked

    for part, reason in ((None, "--part 32"), ("32", "no GPU")):
        [(_, [none], _)] = generate(part, "default")
        assert none.marks[0].name == "skip"
        assert reason in none.marks[0].kwargs["reason"]
    (_, contests, _), (_, names, _) = generate("32", "smoke")
    assert len(contests) == 2
    assert names[0] == "eager-launches"
    assert len(names) == len(set(names))
