"""`python -m fastattn bench`: rows, what is measured of them, files that grow and go on, what cannot be measured."""

import json
import math
import signal
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fastattn
from fastattn import models
from fastattn.__main__ import main as package
from fastattn.bench import command, contest, resume, run, runtimes, tables
from fastattn.bench.command import main
from fastattn.bench.devices import Cpu
from fastattn.bench.run import Protocol, identity, implementations, measure
from fastattn.bench.sizes import TRAINING
from fastattn.bench.tables import QUICK_ATTENTIONS, QUICK_BACKBONES, TABLES, Row, Setting, Subject, narrowed
from fastattn.report import SCHEMA, ResultError, load

pytestmark = pytest.mark.cpu
EAGER_AND_NATIVE = Protocol(Setting(batches=(2,)), repeats=3, compiled=False)
native = pytest.mark.skipif(fastattn.core.native.status()[0] != "ok", reason="the extension is not built")


def small(module: nn.Module | None = None, *, attention: str = "scsa", fast: bool = True, **facts) -> Row:
    """A row with a module on two small maps, SCSA unless another is given."""

    def make(setting: Setting) -> Subject:
        torch.manual_seed(0)
        return Subject((module or fastattn.SCSA(16)).eval(), (setting.place(torch.randn(2, 16, 14, 14)),))

    return Row("modules", attention, (2, 16, 14, 14), make, fast=fast, **facts)


class Refusing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("no room\nfor more than a line")


class Wrong(nn.Module):
    """NaN, except in float64."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.dtype == torch.float64 else x * math.nan


@native
def test_a_row_has_a_record_for_each_implementation_with_its_spread_and_its_ratios() -> None:
    eager, fast = measure(small(), EAGER_AND_NATIVE)
    assert (eager["rival"], fast["rival"]) == ("eager", "native")
    for record in (eager, fast):
        first, third = record["quartiles_ms"]
        assert record["least_ms"] <= first <= record["median_ms"] <= third
        assert record["rounds"] == 3
        assert record["images_per_s"] == pytest.approx(2e3 / record["median_ms"])
        assert record["gb_per_s"] == pytest.approx(2 * 4 * 2 * 16 * 14 * 14 / record["median_ms"] / 1e6)
        assert record["parameters"] == 16 * 16
        assert "copy" in record["speedup"]
        assert record["relative_error"] < 1e-5
    assert eager["multiply_adds"] == fast["multiply_adds"] > 0
    assert fast["speedup"]["eager"]["least"] == pytest.approx(eager["least_ms"] / fast["least_ms"])


def test_what_does_not_run_is_a_failed_record_with_its_reason_in_one_line() -> None:
    (record,) = measure(small(Refusing(), fast=False), EAGER_AND_NATIVE)
    assert record["failed"] == "RuntimeError: no room"
    assert "median_ms" not in record


class Rounded(nn.Module):
    """Itself, and off by so much where it is compiled."""

    def __init__(self, compiled: float):
        super().__init__()
        self.compiled = compiled

    def forward(self, x: Tensor) -> Tensor:
        return x * (1 + self.compiled) if torch.compiler.is_compiling() else x + 0


@pytest.mark.full
@pytest.mark.parametrize(("off", "taken"), [(3e-5, True), (3e-3, False)], ids=["rounding", "another module"])
def test_a_compilers_rounding_is_its_own_but_not_another_result(off: float, taken: bool) -> None:
    _, compiled = measure(small(Rounded(off), fast=False), replace(EAGER_AND_NATIVE, compiled=True))
    assert compiled["rival"] == "compile"
    assert ("median_ms" in compiled) == taken
    assert taken or compiled["failed"].startswith("AssertionError: out: error 3.00e-03, allowed 1.00e-04")


def test_a_wrong_result_is_not_timed() -> None:
    (record,) = measure(small(Wrong(), fast=False), EAGER_AND_NATIVE)
    assert record["failed"].startswith("AssertionError: out: error nan")


class NoRoom(nn.Module):
    """Nothing on fake tensors, out of memory on real ones: for good, or from a call on."""

    def __init__(self, dtype: torch.dtype, calls: int = 0):
        super().__init__()
        self.dtype, self.calls = dtype, calls

    def forward(self, x: Tensor) -> Tensor:
        if type(x) is Tensor and x.dtype == self.dtype:
            self.calls -= 1
            if self.calls < 0:
                raise torch.OutOfMemoryError("no memory left")
        return x + 0


@pytest.mark.parametrize(
    "module", [NoRoom(torch.float64), NoRoom(torch.float32, 4)], ids=["for the truth", "in a round"]
)
def test_a_row_that_runs_out_of_memory_takes_no_other_with_it(module: nn.Module) -> None:
    (record,) = measure(small(module, fast=False), EAGER_AND_NATIVE)
    assert record["failed"] == "OutOfMemoryError: no memory left"
    (record,) = measure(small(nn.Identity(), fast=False), EAGER_AND_NATIVE)
    assert "failed" not in record


def test_what_cannot_be_counted_is_timed_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise NotImplementedError

    monkeypatch.setattr(run, "multiply_adds", refuse)
    (record,) = measure(small(fast=False), EAGER_AND_NATIVE)
    assert record["multiply_adds"] is None
    assert record["median_ms"] > 0


def test_a_fast_backend_that_is_missing_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (run, contest):
        monkeypatch.setattr(module, "unsupported_reasons", lambda name, call: [f"{name} is not here"])
    eager, fast = measure(small(), EAGER_AND_NATIVE)
    assert eager["rival"] == "eager"
    assert (fast["rival"], fast["failed"]) == ("native", "native is not here")


class Accelerator(Cpu):
    """A device with a stopwatch of its own, which counts what it times."""

    type = "cuda"

    def __init__(self) -> None:
        self.timed: list[int] = []
        self.stopwatch = self.seconds

    def seconds(self, call: Callable[[], object], calls: int) -> float:
        self.timed.append(calls)
        call()
        return 0.1 * calls


class Meter:
    """Telemetry that tells the clocks of what it watched, and energy where images are counted."""

    def __init__(self, watched: int):
        self.watched = watched

    def facts(self, images: int | None = None) -> dict:
        energy = {} if images is None else {"power_w": 300.0, "energy_per_image_j": 60.0 / images}
        return {"sm_mhz": {"least": self.watched, "median": self.watched, "most": self.watched}} | energy


def test_a_gpus_clocks_are_those_of_the_rounds_and_its_energy_of_a_second_of_each_rival(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hardware, blocks = Accelerator(), count(1)
    monkeypatch.setattr(run, "device_of", lambda protocol: hardware)
    monkeypatch.setattr(run, "watch", lambda kind: nullcontext(Meter(next(blocks))))
    first, second = measure(small(nn.Identity(), fast=False), replace(EAGER_AND_NATIVE, compiled=True))
    for record in (first, second):
        assert record["telemetry"]["sm_mhz"]["median"] == 1  # the first block: the rounds
        assert record["telemetry"]["energy_per_image_j"] == pytest.approx(60 / (2 * 10))  # 10 calls of 0.1 s
        assert record["telemetry"]["power_w"] == 300.0


def test_energy_that_cannot_be_measured_leaves_the_times(monkeypatch: pytest.MonkeyPatch) -> None:
    hardware = Accelerator()
    monkeypatch.setattr(run, "device_of", lambda protocol: hardware)
    monkeypatch.setattr(run, "watch", lambda kind: nullcontext(Meter(1)))
    monkeypatch.setattr(run.math, "ceil", lambda value: 1 / 0)
    (record,) = measure(small(nn.Identity(), fast=False), EAGER_AND_NATIVE)
    assert record["telemetry"]["unavailable"] == "energy: ZeroDivisionError: division by zero"
    assert record["median_ms"] > 0


def test_a_row_that_cannot_be_made_fails_for_every_implementation() -> None:
    def make(setting: Setting) -> Subject:
        raise MemoryError

    records = measure(replace(small(), make=make), replace(EAGER_AND_NATIVE, compiled=True))
    assert {record["rival"] for record in records} >= {"eager", "compile"}
    assert {record["failed"] for record in records} == {"MemoryError"}


def test_rivals_have_no_fast_implementation() -> None:
    assert implementations(small(fast=False), EAGER_AND_NATIVE) == ["eager"]
    assert implementations(small(fast=False), replace(EAGER_AND_NATIVE, compiled=True)) == ["eager", "compile"]


@native
def test_a_network_is_timed_beside_itself_without_attention() -> None:
    make = tables.make_network
    variant = tables.own("lga")
    row = Row(
        "lga-backbones",
        "lga",
        (1, 3, 64, 64),
        lambda setting: make("mobilenetv3_small_100", variant, 1, 64, setting),
        model="mobilenetv3_small_100",
        fast=True,
    )
    eager, fast = measure(row, replace(EAGER_AND_NATIVE, setting=Setting(batches=(1,))))
    plain = models.create("mobilenetv3_small_100")
    assert fast["speedup"].keys() == {"plain", "eager"}
    assert eager["parameters"] > sum(p.numel() for p in plain.parameters())
    assert "gb_per_s" not in fast


class Network(nn.Module):
    """A convolution, batch normalisation, an attention or none, and a convolution."""

    def __init__(self, attention: nn.Module):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), attention)
        self.classes = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.classes(self.features(x)).mean((2, 3))


def network(**facts) -> Row:
    """A row with a small network in it, and without."""

    def make(setting: Setting) -> Subject:
        torch.manual_seed(0)
        made = [setting.place(Network(part)) for part in (fastattn.SCSA(16), nn.Identity())]
        return Subject(made[0].eval(), (setting.place(torch.randn(4, 3, 28, 28)),), made[1].eval())

    return Row("scsa-backbones", "scsa", (4, 3, 28, 28), make, model="resnet50", fast=True, **facts)


@native
@pytest.mark.parametrize("compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.full)])
def test_a_network_is_compiled_around_the_fast_attention_too_and_beside_the_compiled_plain_one(
    compiler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=compiler))
    found = measure(network(), replace(EAGER_AND_NATIVE, compiled=True))
    assert [record["rival"] for record in found] == ["eager", "compile", "native", "native compiled"]
    assert not [record["failed"] for record in found if "failed" in record]
    others = {"plain", "plain compiled", "eager", "compile", "native"}
    assert found[-1]["speedup"].keys() == others
    assert all(record["peak_memory_bytes"] > 4 * 16 * 28 * 28 for record in found)


@native
@pytest.mark.parametrize("amp", [False, True], ids=["float32", "autocast"])
def test_training_is_timed_with_backward_in_training_mode(amp: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    forward = Network.forward

    def watching(self: Network, x: Tensor) -> Tensor:
        out = forward(self, x)
        seen.append((self.training, torch.is_grad_enabled(), out.dtype))
        return out

    monkeypatch.setattr(Network, "forward", watching)
    protocol = replace(EAGER_AND_NATIVE, work=TRAINING, amp=amp)
    eager, fast = measure(network(), protocol)
    assert (eager["work"], fast["work"]) == ("forward + backward",) * 2
    assert fast["speedup"].keys() == {"plain", "eager"}
    half = torch.bfloat16 if amp else torch.float32
    assert seen[-1] == (True, True, half)
    assert protocol.facts.get("amp") == ("bfloat16" if amp else None)
    forward_alone = measure(network(), EAGER_AND_NATIVE)[0]
    assert eager["peak_memory_bytes"] > forward_alone["peak_memory_bytes"]


@native
def test_a_module_alone_learns_its_input_too() -> None:
    eager, fast = measure(small(), replace(EAGER_AND_NATIVE, work=TRAINING))
    assert eager["bytes_moved_at_least"] == 5 * 4 * 2 * 16 * 14 * 14
    assert {"eager", "copy"} == fast["speedup"].keys()


@pytest.mark.parametrize(
    ("arguments", "work", "amp", "layout", "name"),
    [
        ([], "forward", False, "contiguous", "modules-cpu"),
        (
            ["--work", "train", "--amp", "--quick"],
            "forward + backward",
            True,
            "contiguous",
            "modules-cpu-train-amp-quick",
        ),
        (["--channels-last"], "forward", False, "channels_last", "modules-cpu"),
    ],
)
def test_work_autocast_and_format_are_chosen(arguments: list, work: str, amp: bool, layout: str, name: str) -> None:
    options = command.parser().parse_args(["modules", "--device", "cpu", *arguments])
    chosen = command.chosen_protocol(options)
    assert (chosen.work, chosen.amp, chosen.setting.format) == (work, amp, layout)
    assert command.default_name(options, "cpu") == name


def test_tables_have_rows_that_differ() -> None:
    for name, rows in TABLES.items():
        found = [str(row) for row in rows(Setting(batches=(1, 8)))]
        assert len(found) == len(set(found)) >= (10 if name != runtimes.TABLE else 4), name


def test_every_table_of_networks_begins_each_backbone_without_attention() -> None:
    for name in TABLES.keys() - {"modules", runtimes.TABLE}:  # whose rows hold the plain network too
        seen: list[str | None] = []
        for row in TABLES[name](Setting()):
            if row.model not in seen:
                assert row.attention == "none", f"{name}: {row}"
                seen.append(row.model)


def test_batches_and_sizes_multiply_the_rows() -> None:
    one = list(TABLES["cfsam-ssd300"](Setting()))
    many = list(TABLES["cfsam-ssd300"](Setting(batches=(1, 2), sizes=(300, 512))))
    assert len(many) == 4 * len(one)
    assert {row.shape for row in many} == {(b, 3, s, s) for b in (1, 2) for s in (300, 512)}


def test_quick_has_two_backbones_and_six_attentions() -> None:
    rows = narrowed(TABLES["scsa-backbones"](Setting()), QUICK_BACKBONES, QUICK_ATTENTIONS)
    assert [(row.model, row.attention) for row in rows] == [(m, a) for m in QUICK_BACKBONES for a in QUICK_ATTENTIONS]
    assert [row.attention for row in rows if row.fast] == [*QUICK_ATTENTIONS[1:]] * 2  # all but none


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A table of three rows, of which the second fails once; which were measured, in order."""
    measured: list[str] = []
    rows = [small(fast=False, variant=letter) for letter in "abc"]

    def counting(row: Row, protocol: Protocol) -> list[run.Record]:
        measured.append(str(row.variant))
        if row.variant == "b" and measured.count("b") == 1:
            return [identity(row, protocol) | {"rival": "eager", "failed": "RuntimeError: busy"}]
        return measure(row, protocol)

    monkeypatch.setitem(TABLES, "modules", lambda setting: iter(rows))
    monkeypatch.setattr(command, "measure", counting)
    return measured


def options(path: Path, *more: str) -> list[str]:
    return ["modules", "--device", "cpu", "--quick", "--no-compile", "-o", str(path), *more]


def test_a_run_writes_a_result_that_the_report_reads(
    three: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new" / "result.json"
    assert main(options(path)) == 0
    result = load(path)
    assert result["fastattn"]["schema"] == SCHEMA
    assert result["fastattn"]["complete"] is True
    assert result["fastattn"]["protocol"]["repeats"] == command.QUICK_REPEATS
    assert [b["extra_info"]["variant"] for b in result["benchmarks"]] == ["a", "b", "c"]
    out = capsys.readouterr().out
    assert "RuntimeError: busy" in out
    assert f"python -m fastattn report {path}" in out


def test_a_second_run_measures_what_failed_and_nothing_else(three: list[str], tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    main(options(path))
    assert main(options(path)) == 0
    assert three == ["a", "b", "c", "b"]
    assert not [b for b in load(path)["benchmarks"] if "failed" in b["extra_info"]]


def test_a_row_that_failed_stays_until_it_is_measured(
    three: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, counting = tmp_path / "result.json", command.measure
    main(options(path))

    def interrupted(row: Row, protocol: Protocol) -> list[run.Record]:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "measure", interrupted)
    assert main(options(path)) == 130
    assert [b["extra_info"].get("failed") for b in load(path)["benchmarks"]] == [None, "RuntimeError: busy", None]
    assert load(path)["fastattn"]["complete"] is True
    monkeypatch.setattr(command, "measure", counting)
    assert main(options(path)) == 0
    assert [b["extra_info"]["variant"] for b in load(path)["benchmarks"]] == ["a", "b", "c"]


def test_a_narrower_run_does_not_complete_a_file(three: list[str], tmp_path: Path) -> None:
    path, rows = tmp_path / "result.json", list(TABLES["modules"](Setting()))
    known = [identity(row, EAGER_AND_NATIVE) | {"rival": "eager"} for row in rows]
    result = resume.GrowingResult(path, "modules", {}, wanted=known, selection="quick", device="cpu", kept=False)
    result.add(measure(rows[0], EAGER_AND_NATIVE))
    result.close()
    assert load(path)["fastattn"]["complete"] is False


def test_two_runs_do_not_write_to_one_file(three: list[str], tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    how = {"wanted": [], "selection": "quick", "device": "cpu", "kept": False}
    first = resume.GrowingResult(path, "modules", {}, **how)
    second = resume.GrowingResult(path, "modules", {}, **how)
    second.add([identity(small(fast=False), EAGER_AND_NATIVE) | {"rival": "eager", "failed": "x"}])
    with pytest.raises(ResultError, match="does another run write to it"):
        first.close()
    assert len(load(path)["benchmarks"]) == 1


def test_fresh_measures_everything_anew(three: list[str], tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    main(options(path))
    main(options(path, "--fresh"))
    assert three == [*"abc", *"abc"]


@pytest.mark.parametrize("how", [KeyboardInterrupt, signal.SIGTERM], ids=["Ctrl-C", "a scheduler's SIGTERM"])
def test_an_interrupted_run_keeps_its_rows_and_goes_on(
    three: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], how
) -> None:
    path, counting = tmp_path / "result.json", command.measure

    def interrupted(row: Row, protocol: Protocol) -> list[run.Record]:
        if row.variant == "c":
            if how is KeyboardInterrupt:
                raise KeyboardInterrupt
            signal.raise_signal(how)
        return counting(row, protocol)

    monkeypatch.setattr(command, "measure", interrupted)
    before = signal.getsignal(signal.SIGTERM)
    assert main(options(path)) == 130
    assert signal.getsignal(signal.SIGTERM) is before
    assert "goes on" in capsys.readouterr().err
    assert load(path)["fastattn"]["complete"] is False
    assert len(load(path)["benchmarks"]) == 2
    monkeypatch.setattr(command, "measure", counting)
    assert main(options(path)) == 0
    assert three == ["a", "b", "b", "c"]


@pytest.mark.parametrize("changed", ["commit", "commit's changes", "protocol", "threads"])
def test_a_file_of_another_run_is_not_mixed_with_this_one(
    three: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], changed: str
) -> None:
    path = tmp_path / "result.json"
    main(options(path))
    result = json.loads(path.read_text())
    place, name, value = {
        "commit": (result["commit_info"], "id", "another"),
        "commit's changes": (result["commit_info"], "changes", "another"),
        "protocol": (result["fastattn"]["protocol"], "repeats", 99),
        "threads": (result["machine_info"], "threads", 77),
    }[changed]
    place[name] = value
    path.write_text(json.dumps(result))
    assert main(options(path)) == 2
    assert "another " + changed.removesuffix("'s changes") in capsys.readouterr().err


@pytest.mark.parametrize("more", [[], ["--fresh"]], ids=["going on", "fresh"])
def test_what_is_no_result_is_not_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str]
) -> None:
    path = tmp_path / "thesis.json"
    path.write_text("{}")
    assert main(options(path, *more)) == 2
    assert "no result" in capsys.readouterr().err
    assert path.read_text() == "{}"


def test_an_output_that_cannot_be_written_is_said_before_anything_runs(
    three: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main(options(tmp_path / "file" / "result.json")) == 2
    assert "python -m fastattn bench:" in capsys.readouterr().err
    assert three == []


def test_a_missing_gpu_and_missing_packages_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["modules", "--device", "cuda"]) == 2
    assert "no GPU" in capsys.readouterr().err
    monkeypatch.setattr(command, "NEEDED", ("timm", "no_such_package"))
    assert main(["modules"]) == 2
    assert "this needs no_such_package: pip install 'fastattn[bench]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["scsa-backbones", "--models", "resnet51"], "no model resnet51 in this table, which has resnet50"),
        (["scsa-backbones", "--attentions", "sce"], "no attention sce in this table, which has none"),
        (["modules", "--size", "300"], "no --size"),
        (["modules", "--models", "resnet50"], "no --models"),
        (["modules", "--threads", "100000"], "this machine has"),
    ],
    ids=["model", "attention", "a size of modules", "a model of modules", "threads"],
)
def test_rows_that_are_not_there_are_named(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments, "--device", "cpu"]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["no-such-table"], ["modules", "--batch", "0"], ["modules", "--dtype", "int8"], []]
)
def test_a_command_line_that_makes_no_sense_ends_with_status_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        package(["bench", *arguments])
    assert ended.value.code == 2


def test_the_papers_protocol_is_a_gpus_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    chosen = command.chosen_protocol(command.parser().parse_args(["scsa-backbones"]))
    assert (chosen.setting.device, chosen.setting.batches, chosen.repeats) == ("cuda", (32,), 100)
    quick = command.chosen_protocol(command.parser().parse_args(["scsa-backbones", "--quick"]))
    assert (quick.setting.batches, quick.repeats, quick.compiled) == ((8,), 5, True)
    without = command.chosen_protocol(command.parser().parse_args(["scsa-backbones", "--no-compile"]))
    assert not without.compiled


def test_a_commit_is_known_in_the_checkout_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(resume, "ROOT", tmp_path)
    assert resume.commit() == {"id": "unknown"}
