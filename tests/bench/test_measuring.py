"""The benchmarks' own machinery: taking turns under a fake clock, correctness before time, figures from
records."""

import itertools
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from benchmarks.conftest import report
from benchmarks.suites import SUITES, cfsam, convergence, interaction, lga, summary, zoo
from benchmarks.suites import models as whole
from benchmarks.suites.cfsam import ABLATIONS, LONG, AttentionCase, PyramidCase, attention_cases, pyramid_cases
from benchmarks.suites.interaction import TRANSFORMERS, AcpCase, CatCase, acp_cases, cat_cases
from benchmarks.suites.lga import PAPER, RELEASED, LgaCase, lga_cases
from benchmarks.suites.models import ModelCase, model_cases
from benchmarks.suites.scsa import COMPILED_SHAPES, COPY_SHAPE, FIVE_SHAPES, SAVED_SHAPE, module_cases
from fastattn import reference
from fastattn.bench.contest import COMPILE, EAGER, Contest, Effort, fast_backends
from fastattn.bench.devices import Cpu
from fastattn.bench.interleave import Ratio, Rival, Timing, interleave, speedup
from fastattn.bench.measures import bytes_moved_at_least, peak_bytes, saved_bytes
from fastattn.bench.scene import setting
from fastattn.bench.sizes import CHANNELS_LAST, CONTIGUOUS, FORWARD, MEMORY_FORMATS, STAGES, TRAINING, WORKS
from tests.helpers import assert_accurate


class FakeClock:
    """Time that passes only when a rival works."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def __call__(self) -> float:
        return self.now

    def rival(self, name: str, seconds: float | Callable[[], float], **options) -> Rival:
        def work() -> None:
            self.log.append(name)
            self.now += seconds() if callable(seconds) else seconds

        return Rival(name, work, **options)


def test_each_round_times_every_rival_and_rotates_who_begins() -> None:
    clock = FakeClock()
    rivals = [clock.rival(name, 1.0) for name in "abc"]
    interleave(rivals, rounds=3, round_seconds=0.5, budget_seconds=1e9, clock=clock)
    warming, rounds = clock.log[:9], clock.log[9:]
    assert warming == ["a"] * 3 + ["b"] * 3 + ["c"] * 3
    assert rounds == [*"abc", *"bca", *"cab"]


def test_times_are_per_call_and_short_rivals_are_called_until_a_round_is_full() -> None:
    clock = FakeClock()
    rivals = [clock.rival("slow", 2.0), clock.rival("fast", 0.25)]
    timings = interleave(rivals, rounds=4, round_seconds=1.0, budget_seconds=1e9, clock=clock)
    assert timings["slow"] == Timing((2.0,) * 4, calls=1)
    assert timings["fast"] == Timing((0.25,) * 4, calls=4)


def test_a_drift_that_hits_both_rivals_leaves_their_ratio_alone() -> None:
    clock = FakeClock()

    def drifting(seconds: float) -> Callable[[], float]:
        return lambda: seconds * (1 + clock.now / 100)

    rivals = [clock.rival("slow", drifting(3.0)), clock.rival("fast", drifting(1.0))]
    timings = interleave(rivals, rounds=20, round_seconds=0.1, budget_seconds=1e9, clock=clock)
    assert max(timings["slow"].rounds) > 2 * min(timings["slow"].rounds)
    assert speedup(timings, "fast", "slow").median == pytest.approx(3.0, rel=0.05)


def test_one_disturbed_round_moves_neither_the_least_nor_the_median() -> None:
    timings = {"fast": Timing((1.0, 1.0, 1.0), 1), "slow": Timing((4.0, 400.0, 4.0), 1)}
    faster, slower = speedup(timings, "fast", "slow"), speedup(timings, "slow", "fast")
    assert (faster.least, faster.median) == (4.0, 4.0)
    assert (slower.least, slower.median) == (0.25, 0.25)


def test_quartiles_are_of_the_rounds_and_of_the_ratios_inside_them() -> None:
    timings = {"fast": Timing((1.0, 2.0, 1.0, 1.0, 1.0), 1), "slow": Timing((5.0, 4.0, 3.0, 2.0, 1.0), 1)}
    assert timings["slow"].quartiles == (2.0, 4.0)
    ratio = speedup(timings, "fast", "slow")  # 5, 2, 3, 2, 1
    assert ratio == Ratio(least=1.0, median=2.0, quartiles=(2.0, 3.0))
    assert ratio.facts() == {"least": 1.0, "median": 2.0, "quartiles": [2.0, 3.0]}
    assert Timing((3.0,), 1).quartiles == (3.0, 3.0)


def test_the_budget_ends_the_rounds_but_not_before_three() -> None:
    clock = FakeClock()
    rivals = [clock.rival("a", 10.0), clock.rival("b", 10.0)]
    assert len(interleave(rivals, rounds=50, budget_seconds=0.0, clock=clock)["a"].rounds) == 3
    clock = FakeClock()
    timings = interleave([clock.rival("a", 10.0)], rounds=50, budget_seconds=100.0, clock=clock)
    assert len(timings["a"].rounds) == 8  # three calls warmed up: 30 s of the 100


def test_contexts_surround_the_rounds_outside_of_the_clock() -> None:
    clock = FakeClock()

    @contextmanager
    def expensive():
        clock.now += 100.0
        clock.log.append("enter")
        yield
        clock.now += 100.0

    rivals = [clock.rival("a", 1.0, context=expensive), clock.rival("b", 1.0)]
    timings = interleave(rivals, rounds=3, round_seconds=0.5, budget_seconds=1e9, clock=clock)
    assert timings["a"].rounds == timings["b"].rounds == (1.0,) * 3
    assert clock.log.count("enter") == 4


def test_a_devices_own_stopwatch_replaces_the_clock() -> None:
    clock = FakeClock()
    timings = interleave(
        [clock.rival("a", 1.0)], rounds=3, round_seconds=6.0, clock=clock, stopwatch=lambda call, calls: 3.0 * calls
    )
    assert timings["a"] == Timing((3.0,) * 3, calls=2)


def test_before_round_runs_before_each_rival_outside_of_the_clock() -> None:
    clock = FakeClock()

    def flush() -> None:
        clock.now += 100.0
        clock.log.append("flush")

    rivals = [clock.rival(name, 1.0) for name in "ab"]
    timings = interleave(rivals, rounds=2, round_seconds=0.5, clock=clock, before_round=flush)
    assert clock.log[6:] == ["flush", "a", "flush", "b", "flush", "b", "flush", "a"]
    assert timings["a"].rounds == timings["b"].rounds == (1.0,) * 2


@pytest.mark.parametrize(
    ("names", "rounds"),
    [((), 5), (("a",), 0), (("a", "a"), 5)],
    ids=["no rival", "no round", "one name twice"],
)
def test_interleave_refuses(names: tuple[str, ...], rounds: int) -> None:
    clock = FakeClock()
    with pytest.raises(ValueError, match="rival"):
        interleave([clock.rival(name, 1.0) for name in names], rounds=rounds, clock=clock)


class Square(Contest):
    """Rivals that square a number, one of them wrongly and one not at all."""

    def __init__(self) -> None:
        super().__init__(Cpu(), Effort(rounds=1, round_seconds=0.0, pedantic_rounds=1))
        x = torch.arange(1.0, 5.0)
        truth, eager = {"out": x.double() ** 2}, {"out": x**2}
        for name, compute in {"right": lambda: x * x, "wrong": lambda: x + x, "compile": self.fail}.items():
            self.enter(name, compute, lambda compute=compute: {"out": compute()}, nullcontext, truth, eager)
        self.run()

    def fail(self) -> torch.Tensor:
        raise RuntimeError("no compiler")

    def record(self, name: str) -> dict[str, object]:
        return {"rival": name, "shape": [4]} | self.times(name)


class FakeBenchmark:
    def __init__(self) -> None:
        self.extra_info: dict[str, object] = {}
        self.calls = 0

    def pedantic(self, call, *, rounds: int, iterations: int, warmup_rounds: int) -> None:
        self.calls += 1
        call()


def test_a_wrong_rival_fails_and_is_never_timed() -> None:
    contest, benchmark = Square(), FakeBenchmark()
    assert set(contest.timings) == {"right"}
    with pytest.raises(pytest.fail.Exception, match=r"wrong is wrong.*out: error"):
        report(contest, "wrong", benchmark)
    with pytest.raises(pytest.skip.Exception, match="no compiler"):
        report(contest, "compile", benchmark)
    assert benchmark.calls == 0
    report(contest, "right", benchmark)
    assert benchmark.extra_info["rival"] == "right"
    assert benchmark.extra_info["speedup"] == {}
    assert benchmark.calls == 1
    assert contest.failed.keys() == {"wrong", "compile"}
    assert contest.failed["compile"] == "RuntimeError: no compiler"


def test_saved_bytes_count_each_storage_once_and_leave_parameters_out() -> None:
    x = torch.randn(8, 4, requires_grad=True)
    weight = torch.randn(4, requires_grad=True)
    assert saved_bytes(lambda: (x * weight) * x, []) == (32 + 4 + 32) * 4
    assert saved_bytes(lambda: (x * weight) * x, [weight]) == (32 + 32) * 4


def test_peak_bytes_sees_what_is_held_at_once() -> None:
    x = torch.ones(1 << 20)
    x.sin()
    size = x.numel() * 4
    assert size <= peak_bytes(lambda: x.sin()) < 1.1 * size
    assert 2 * size <= peak_bytes(lambda: x.sin().cos()) < 2.1 * size


def test_bytes_moved_at_least() -> None:
    x = torch.zeros(2, 3, 4, 5, dtype=torch.bfloat16)
    assert bytes_moved_at_least([x], [x], FORWARD) == 2 * 240
    assert bytes_moved_at_least([x], [x], TRAINING) == 5 * 240
    assert bytes_moved_at_least([x, x, x], [x], FORWARD) == 4 * 240  # q, k, v and out
    assert bytes_moved_at_least([x, x, x], [x], TRAINING) == (4 + 4 + 3) * 240


@pytest.mark.parametrize(
    "cases", [module_cases, attention_cases, pyramid_cases, lga_cases, acp_cases, cat_cases, model_cases]
)
def test_selections_grow(cases: Callable) -> None:
    smoke, default, full = ([str(case) for case in cases(selection)] for selection in ("smoke", "default", "full"))
    assert 0 < len(smoke) < len(default) < len(full) == len(set(full))
    assert set(default) <= set(full)


def test_module_cases_are_the_five_shapes_in_both_formats() -> None:
    assert len(list(module_cases("default"))) == 2 * 2 * len(FIVE_SHAPES)
    assert len(list(module_cases("full"))) == 12 * 2 * 2 * 2


def test_torchs_compiler_takes_part_in_some_cases_by_default_and_in_all_of_a_full_run() -> None:
    for cases in (module_cases, pyramid_cases, lga_cases, acp_cases, cat_cases):
        assert {case.compiled for case in cases("default")} == {True, False}
        assert all(case.compiled for case in cases("full"))
    compiled = [case for case in module_cases("default") if case.compiled]
    assert Counter(case.shape for case in compiled) == dict.fromkeys(COMPILED_SHAPES, 2 + 1)


SMALL_ATTENTION = AttentionCase(2, 24, 3, TRAINING, heads=2, head_dim=4)


def test_rivals_of_attention_without_dispatch_are_the_reference() -> None:
    case = SMALL_ATTENTION
    q, k, v = torch.randn(3, *case.shape, dtype=torch.float64)
    expected = reference.partition_attention(q, k, v, case.parts, case.heads)
    for rival in (cfsam.sdpa_copies, cfsam.sdpa_view):
        torch.testing.assert_close(rival(q, k, v, case.parts, case.heads), expected)
    tokens = torch.tensor([22, 3, 4, 0])
    some = cfsam.attend_some(q, k, v, case.parts, case.heads, tokens=tokens)
    torch.testing.assert_close(some[:, tokens], expected[:, tokens])
    assert some.count_nonzero() == expected[:, tokens].numel()


def test_long_attention_is_checked_in_some_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    case = SMALL_ATTENTION
    assert cfsam.attention_rivals(case)[:2] == [EAGER, COMPILE]
    exact, _ = cfsam.attention_scene(case).truths()
    monkeypatch.setattr(cfsam, "MOST_SCORES", 0)
    monkeypatch.setattr(cfsam, "CHECKED_TOKENS", 5)
    assert not {EAGER, COMPILE} & set(cfsam.attention_rivals(case))
    scene = cfsam.attention_scene(case)
    found, _ = scene.truths()
    assert found["out"].shape == (2, 5, 8)
    assert torch.isin(found["out"], exact["out"]).all()
    attend = partial(reference.partition_attention, num_parts=case.parts, num_heads=case.heads)
    with setting(TRAINING, EAGER):
        assert_accurate(scene.answers(attend), found, scene.answers(scene.exact(scene.module)))
    assert scene.grads[0].count_nonzero() == 2 * 5 * 8


@pytest.mark.parametrize("work", [FORWARD, TRAINING])
@pytest.mark.parametrize("ablation", ABLATIONS)
def test_a_pyramids_reference_is_the_modules(ablation: str, work: str) -> None:
    case = PyramidCase(2, CHANNELS_LAST, work, ablation, ((6, 3), (4, 1)), dim=16)
    scene = cfsam.pyramid_scene(case)
    with setting(work, "reference"):
        found = scene.answers(lambda *maps: scene.module(maps))
    exact, eager = scene.truths()
    assert_accurate(found, exact, eager)
    checked = 1 if work == FORWARD else 2
    assert [exact[f"out {i}"].shape for i in range(2)] == [(checked, 6, 3, 3), (checked, 4, 1, 1)]
    assert ("grad map 1" in exact) == (work == TRAINING)
    assert case.facts()["levels"] == ["6@3", "4@1"]


@pytest.mark.parametrize("layout", MEMORY_FORMATS)
@pytest.mark.parametrize("work", WORKS)
@pytest.mark.parametrize("contraction", [PAPER, RELEASED])
def test_lgas_reference_is_the_modules(contraction: str, work: str, layout: str) -> None:
    case = LgaCase(3, 6, 2, 7, contraction, work, layout)
    scene = lga.lga_scene(case)
    with setting(work, "reference"):
        found = scene.answers(scene.module)
    exact, eager = scene.truths()
    assert_accurate(found, exact, eager)
    assert exact["out"].shape == (1 if work == FORWARD else 3, 6, 7, 7)
    assert ("grad x" in exact) == ("grad learnable_alpha_local" in exact) == (work == TRAINING)
    assert scene.inputs["x"].is_contiguous(memory_format=MEMORY_FORMATS[layout])


def test_lga_is_compared_with_compile_in_the_papers_contraction() -> None:
    assert lga.lga_rivals(LgaCase(1, 6, 2, 7))[:2] == [EAGER, COMPILE]
    assert COMPILE not in lga.lga_rivals(LgaCase(1, 6, 2, 7, RELEASED))


INTERACTION = [AcpCase(3, 6, 7, 2), AcpCase(3, 6, 9, 1, memory_format=CHANNELS_LAST), CatCase(3, 20, 5, 6)]


@pytest.mark.parametrize("work", WORKS)
@pytest.mark.parametrize("case", INTERACTION, ids=str)
def test_rivals_of_acp_and_cat_compute_the_modules(case: AcpCase | CatCase, work: str) -> None:
    case = replace(case, work=work)
    scene = interaction.interaction_scene(case)
    exact, eager = scene.truths()
    with setting(work, "reference"):
        assert_accurate(scene.answers(scene.module), exact, eager)
    with setting(work, interaction.COMPOSED):
        assert_accurate(scene.answers(SUITES[case.suite].forward(scene, interaction.COMPOSED)), exact, eager)
    assert exact["out"].shape == (1 if work == FORWARD else 3, *case.shape[1:])
    assert ("grad x" in exact) == (work == TRAINING)
    assert len(exact) == (1 if work == FORWARD else 2 + len(list(scene.module.parameters())))
    assert scene.inputs["x"].is_contiguous(memory_format=MEMORY_FORMATS[case.memory_format])


def test_no_convolution_of_acps_scene_rounds() -> None:
    scene = interaction.interaction_scene(AcpCase(1, 16, 28, 2))
    x, exact = scene.inputs["x"], scene.in_float64()
    y = exact.inputs["x"]
    with torch.no_grad():
        for conv, twin in zip(scene.module.convs, exact.module.convs, strict=True):
            x, y = (torch.nn.functional.max_pool2d(layer(t), 2, ceil_mode=True) for layer, t in ((conv, x), (twin, y)))
            assert torch.equal(x.double(), y)
    assert y.abs().max() > 0.1


def test_compile_takes_part_in_interaction_where_the_case_wants_it() -> None:
    for case in (AcpCase(1, 6, 7), CatCase(1, 20, 5, 6)):
        fast = fast_backends(case.suite, "cpu")
        assert interaction.interaction_rivals(case) == [EAGER, COMPILE, "composed", *fast]
        assert COMPILE not in interaction.interaction_rivals(replace(case, compiled=False))


def test_compile_takes_part_in_cfsam_and_lga_where_the_case_wants_it() -> None:
    pyramid, maps = PyramidCase(1), LgaCase(1, 8, 4, 9)
    for rivals, case, other in (
        (cfsam.pyramid_rivals, pyramid, replace(pyramid, ablation="LFE")),
        (lga.lga_rivals, maps, replace(maps, contraction=RELEASED)),
    ):
        assert COMPILE in rivals(case)
        assert COMPILE not in rivals(replace(case, compiled=False)) + rivals(other)


def test_a_model_in_training_has_gradients_and_is_compiled_where_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    def create(case: ModelCase, attention: str | None) -> nn.Module:
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 4, 3, 8), nn.ReLU(), *([nn.Conv2d(4, 4, 1)] if attention else [])]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())

    compiled = []
    monkeypatch.setattr(whole, "create", create)
    monkeypatch.setattr(whole, "photographs", lambda batch, side: torch.randn(batch, 3, 32, 32))
    monkeypatch.setattr(torch, "compile", lambda model, dynamic: compiled.append(model) or model)
    case = ModelCase("some", 3, attention="interaction", work=TRAINING, compiled=True)
    names = ["plain", EAGER, COMPILE, *fast_backends("interaction", "cpu")]
    assert whole.model_rivals(case) == names
    contest = SUITES["model"].hold(case, Effort(rounds=3, round_seconds=0.0), Cpu())
    assert not contest.wrong | contest.broken | contest.late
    assert list(contest.timings) == names
    assert compiled == [contest.networks["interaction"]]
    assert all(p.grad.norm() > 0 for model in contest.networks.values() for p in model.parameters())
    assert contest.facts(COMPILE).items() >= {"work": TRAINING, "operation": "interaction", "model": "some"}.items()
    assert str(case) == "some-3-contiguous-forward+backward"
    assert COMPILE not in whole.model_rivals(ModelCase("some"))


def test_the_first_losses_are_compared() -> None:
    losses = [2.0] * convergence.FIRST
    assert convergence.apart([*losses, 7.0], [*losses, 1.0]) == 0
    assert convergence.apart([1.0, 2.2, 4.0], [1.0, 2.0, 5.0]) == pytest.approx(0.2)


def record(**facts) -> dict:
    usual = {"suite": "module", "rival": "native", "work": FORWARD, "dtype": "float32", "format": CONTIGUOUS}
    return usual | facts


def both(least: float) -> dict[str, float]:
    return {"least": least, "median": least / 2}


def all_records() -> list[dict]:
    found = []
    for shape, layout in itertools.product(FIVE_SHAPES, MEMORY_FORMATS):
        case = {"shape": list(shape), "format": layout}
        over = {"eager": both(16.0 if layout == CONTIGUOUS else 9.0), "compile": both(8.0)}
        found.append(record(**case, speedup=over))
        sizes = {"saved_for_backward_bytes": 104, "bytes_of_x": 100}
        found.append(record(**case, work=TRAINING, speedup=over, **sizes))
        found.append(
            record(**case, suite="precision", rival="bfloat16", dtype="bfloat16", speedup={"float32": both(1.5)})
        )
    for layout in MEMORY_FORMATS:
        found.append(record(suite="copy", shape=list(COPY_SHAPE), format=layout, speedup={"copy": both(0.2)}))
        for model, batch in itertools.product(("resnet50", "mobilenetv2_100"), (8, 32)):
            case = {"suite": "model", "model": model, "shape": [batch, 3, 224, 224], "format": layout}
            found.append(record(**case, speedup={"plain": both(0.98 if batch == 8 else 0.5)}))
            found.append(record(**case, rival="eager", speedup={"plain": both(0.8)}))
        for stage in STAGES:
            moved = {"forward_traffic_over_x": 4.2, "backward_traffic_over_x": 5.2}
            found.append({"suite": "traffic", "operation": "scsa", "shape": [1, *stage], "format": layout, **moved})
    for stage, work in itertools.product(STAGES, ("inference", "training")):
        found.append({"suite": "python", "shape": [2, *stage], "work": work, "least_us": 20.0, "median_us": 30.0})
    modules = cfsam_records() + lga_records() + interaction_records() + zoo_records()
    return found + modules + trainings() + measured_tools()


def cfsam_records() -> list[dict]:
    over = {"eager": both(5.0), "sdpa view": both(0.99)}
    found = [record(**case.facts(), suite="attention", speedup=over) for case in attention_cases("default")]
    over = {"eager": both(1.25)}
    found += [record(**case.facts(), suite="pyramid", speedup=over) for case in pyramid_cases("default")]
    for levels, batch in (("all", 1), ("all", 4), ("shallow", 1), ("deep", 1)):
        case = {"suite": "model", "model": "ssd300_vgg16", "levels": levels, "shape": [batch, 3, 300, 300]}
        found += [record(**case, speedup={"plain": both(0.7 + batch / 100)})]
        found += [record(**case, rival="eager", speedup={"plain": both(0.5)})]
    for work, size in zip(WORKS, (1, 3), strict=True):
        facts = AttentionCase(1, LONG, work=work).facts()
        found.append(facts | {"suite": "memory", "backend": "native", "peak_memory_bytes": size << 30})
    counted = ("gather", CONTIGUOUS, 3.15), ("gather", CHANNELS_LAST, 3.6), ("attention", CONTIGUOUS, 8)
    for operation, layout, moved in counted:
        facts = {"suite": "traffic", "operation": operation, "shape": [1, 1940, 256], "format": layout}
        found.append(facts | {"forward_traffic_over_x": moved})
    return found


def lga_records() -> list[dict]:
    found = []
    for case in lga_cases("default"):
        over = {"eager": both(6.0), "compile": both(3.0 if case.work == FORWARD else 1.25)}
        sizes = {"saved_for_backward_bytes": 2 * case.dim + 2 * case.side, "bytes_of_x": case.dim}
        found.append(record(**case.facts(), suite="lga", speedup=over, **sizes))
    return found


def zoo_records(selection: str = "default") -> list[dict]:
    found = []
    for case in zoo.cases(selection):
        over = {"eager": both(4.0)} | ({"compile": both(2.0)} if case.compiled else {})
        sizes = {"saved_for_backward_bytes": 105, "bytes_of_x": 100}
        found.append(record(**case.facts(), suite="zoo", speedup=over, **sizes))
    return found


def interaction_records() -> list[dict]:
    found = []
    for case in acp_cases("default") + cat_cases("default"):
        composed = 1.25 if case.suite == "acp" else 0.75
        over = {"eager": both(3.0 if case.work == FORWARD else 1.5), "composed": both(composed)}
        over |= {"compile": both(1.55)} if case.compiled else {}
        found.append(record(**case.facts(), suite=case.suite, speedup=over))
    for model, work in itertools.product(TRANSFORMERS, WORKS):
        share = 0.8 if work == FORWARD else 0.5
        case = {"suite": "model", "model": model, "shape": [8, 3, 224, 224], "work": work}
        found.append(record(**case, speedup={"plain": both(share)}))
        found.append(record(**case, rival="eager", speedup={"plain": both(share / 2)}))
    return found


def trainings() -> list[dict]:
    runs = {"scsa": (1.00005, 0.975), "lga": (1.01, 0.96)}
    usual = {"suite": "convergence", "shape": [48, 1, 8, 8]}
    found = []
    for attention, (loss, accuracy) in runs.items():
        for backend, *run in (("reference", 1.0, 0.98), ("native", loss, accuracy)):
            facts = {"operation": attention, "backend": backend, "losses": [2.0, run[0]], "accuracy": run[1]}
            found.append(usual | facts)
    return found


def measured_tools() -> list[dict]:
    overhead = {"suite": "tools", "operation": "overhead", "measured": 0.5}
    report = {"suite": "tools", "operation": "report", "rows": 500, "measured": 25.0}
    return [overhead, report, report | {"rows": 20, "measured": 1.0}]


def test_the_tools_part_of_the_summary() -> None:
    rows = [row for row in summary(all_records()) if row["what"].startswith(("Harness", "Report"))]
    assert [(row["asked"], row["measured"], row["met"]) for row in rows] == [(2.0, 0.5, True), (20.0, 25.0, False)]


def test_summary_of_a_whole_run() -> None:
    rows = summary(all_records())
    assert all(row["measured"] is not None for row in rows)
    forward = rows[0]
    assert forward["measured"] == pytest.approx(12.0)
    assert forward["median"] == pytest.approx(6.0)
    assert forward["worst"]["value"] == 9.0
    assert CHANNELS_LAST in forward["worst"]["case"]
    measured = {(row["what"], row["unit"]): (row["measured"], row.get("met")) for row in rows}
    copies = [value for (what, _), value in measured.items() if "(8, 256, 56, 56)" in what]
    assert copies == [(pytest.approx(5.0), False)] * 2
    shares = [row for row in rows if "+ SCSA, batch 8" in row["what"]]
    assert [row["measured"] for row in shares] == [pytest.approx(0.98)] * 4
    assert [row["eager"] for row in shares] == [0.8] * 4
    saved = next(row for row in rows if "saved for backward" in row["what"])
    assert (saved["measured"], saved["met"]) == (pytest.approx(1.04), True)
    assert str(SAVED_SHAPE) in saved["what"]
    python = next(row for row in rows if "Python" in row["what"])
    assert (python["measured"], python["median"], python["met"]) == (pytest.approx(20.0), pytest.approx(30.0), True)
    traffic = [row["met"] for row in rows if "traffic of SCSA" in row["what"]]
    assert traffic == [True, False, True, True]


def test_cfsams_part_of_the_summary() -> None:
    rows = {(row["what"], row["unit"]): row for row in summary(all_records())}

    def measured(what: str) -> list[tuple]:
        return [(row["measured"], row.get("met")) for (name, _), row in rows.items() if what in name]

    exactly = pytest.approx
    assert measured("Attention forward, 2 parts of (4, 1940") == [(exactly(5), True), (exactly(0.99), False)]
    assert measured("Attention forward + backward, 2 parts of (4") == [(exactly(5), True), (exactly(0.99), None)]
    assert measured("CFSAM forward") == [(exactly(1.25), False)] * 2
    assert measured("SSD300 + CFSAM on all levels, batch 4") == [(exactly(0.74), None)]
    assert measured("(1, 20000, 256), memory") == [(exactly(1), True), (exactly(3), False)]
    assert measured("token gather") == [(exactly(1.05), True), (exactly(1.2), False)]
    assert measured("traffic of attention") == [(exactly(6), None)]


def test_the_zoos_part_of_the_summary() -> None:
    rows = {(row["what"].partition(",")[0], row["unit"]): row for row in summary(all_records())}
    for gate, forward, training in (("SE", True, True), ("CBAM", False, True)):
        assert rows[f"{gate} forward", "times eager's speed"]["met"] is forward
        assert rows[f"{gate} forward + backward", "times compile's speed"]["met"] is training
    assert rows["The zoo", "times the size of x"]["measured"] == 1.05


@pytest.mark.parametrize(("selection", "where"), [("default", "one stage"), ("full", "four stages")])
def test_the_zoos_rows_are_about_the_stages_that_were_measured(selection: str, where: str) -> None:
    rows = zoo.summary(zoo_records(selection))
    assert all(row["measured"] for row in rows)
    assert all(where in row["what"] for row in rows[:-1])


def test_lgas_part_of_the_summary() -> None:
    rows = [row for row in summary(all_records()) if row["what"].startswith(("LGA forward", "LGA, saved"))]
    found = [(row["what"].partition(" shape")[0], row["asked"], row["measured"], row["met"]) for row in rows]
    exactly = pytest.approx
    assert found == [
        ("LGA forward, paper, five", 4.0, exactly(6), True),
        ("LGA forward, paper, two", 2.0, exactly(3), True),
        ("LGA forward, released, five", 5.0, exactly(6), True),
        ("LGA forward + backward, paper, three", 3.0, exactly(6), True),
        ("LGA forward + backward, paper, one", 1.5, exactly(1.25), False),
        ("LGA, saved for backward, the most of three", 3.0, exactly(2 + 40 / 24), False),
    ]
    larger = [r | {"shape": [32, *r["shape"][1:]]} if r["suite"] == "lga" else r for r in all_records()]
    assert [row["measured"] for row in summary(larger) if row["what"].startswith("LGA forward")] == [None] * 5


def test_interactions_part_of_the_summary() -> None:
    rows = [row for row in summary(all_records()) if row["what"].startswith(("ACP ", "CAT "))]
    found = [(row["what"].partition(",")[0], row["asked"], row["measured"], row.get("met")) for row in rows]
    exactly = pytest.approx
    assert found == [
        ("ACP forward", 2.5, exactly(3.0), True),
        ("ACP forward", 1.5, exactly(1.55), True),
        ("ACP forward", None, exactly(1.25), None),
        ("ACP forward + backward", 1.7, exactly(1.5), False),
        ("ACP forward + backward", None, exactly(1.25), None),
        ("CAT forward", 1.7, exactly(3.0), True),
        ("CAT forward", 1.6, exactly(1.55), False),
        ("CAT forward", None, exactly(0.75), None),
        ("CAT forward + backward", 1.7, exactly(1.5), False),
        ("CAT forward + backward", None, exactly(0.75), None),
    ]
    shares = [row for row in summary(all_records()) if "+ ACP + CAT" in row["what"]]
    assert [(row["what"].partition(" ")[0], row["measured"], row["eager"]) for row in shares] == [
        (model, exactly(0.8), exactly(0.4)) for model in TRANSFORMERS
    ]
    others = [r | {"layers": 3, "concepts": 16} if r["suite"] in ("acp", "cat") else r for r in all_records()]
    rows = [row for row in summary(others) if row["what"].startswith(("ACP ", "CAT "))]
    assert [row["measured"] for row in rows] == [None] * 10


def test_the_worst_of_cat_goes_by_its_concepts() -> None:
    found = interaction_records()
    for r in found:
        if r.get("concepts") == 256:
            r["speedup"] |= {"eager": both(1.25)}
    [forward, training] = [row for row in summary(found) if row["what"].startswith("CAT") and "eager" in row["unit"]]
    worst = {"value": 1.25, "case": "(4, 3136, 192) contiguous, 256 concepts"}
    assert forward["worst"] == training["worst"] == worst


def test_summary_of_trainings() -> None:
    rows = [row for row in summary(all_records()) if "training on digits" in row["what"]]
    found = [(row["what"][:4], row["unit"], row["measured"], row["met"]) for row in rows]
    exactly = pytest.approx
    assert found == [
        ("SCSA", "millionths apart", exactly(50), True),
        ("SCSA", "points apart", exactly(0.5), True),
        ("LGA,", "millionths apart", exactly(1e4), False),
        ("LGA,", "points apart", exactly(2.0), False),
    ]
    same = [r | {"losses": [1.0], "accuracy": 0.5} if r["suite"] == "convergence" else r for r in all_records()]
    assert [row["measured"] for row in summary(same) if "training on digits" in row["what"]] == [0.0] * 4
    alone = [r for r in trainings() if r["backend"] == "reference"]
    assert all(row["measured"] is None for row in summary(alone))


def test_summary_measures_nothing_from_a_part_of_the_cases() -> None:
    some = [r for r in all_records() if r["suite"] == "module" and r["format"] == CONTIGUOUS]
    some = [r for r in some if r["shape"] != list(COMPILED_SHAPES[-1])]
    assert [row["measured"] for row in summary(some)] == [None] * len(summary([]))
