"""From a GPU's records to figures; the machine, parts on disk, and one result with the README's tables."""

import json
import subprocess
import sys
from itertools import product
from types import SimpleNamespace

import pytest
import torch

from benchmarks import conftest as session
from benchmarks import merge, shapes
from benchmarks.suites import gpu_summary
from benchmarks.suites.cfsam import AttentionCase, gpu_cfsam_cases
from benchmarks.suites.interaction import gpu_interaction_cases
from benchmarks.suites.lga import gpu_lga_cases
from fastattn.bench import machine
from fastattn.bench.sizes import CONTIGUOUS, FORWARD, GRAPH, LAUNCHES, MEMORY_FORMATS, STAGES, TRAINING


def gpu_record(rival: str, speedups: dict[str, float], **facts) -> dict:
    usual = {"suite": "module", "work": FORWARD, "dtype": "bfloat16", "format": CONTIGUOUS, "launch": LAUNCHES}
    speedup = {over: {"least": 2 * ratio, "median": ratio} for over, ratio in speedups.items()}
    times = {"least_ms": 0.5, "median_ms": 0.6, "quartiles_ms": [0.6, 0.6], "gb_per_s": 1.0, "images_per_s": 1e3}
    return usual | times | {"rival": rival, "speedup": speedup} | facts


def gpu_records() -> list[dict]:
    found = []
    for launch in (LAUNCHES, GRAPH):
        for layout in MEMORY_FORMATS:
            here = {"launch": launch, "format": layout}
            for stage in STAGES:
                for work in (FORWARD, TRAINING):
                    case = here | {"shape": [32, *stage], "work": work}
                    found.append(gpu_record("triton", {"eager": 8.0, "compile": 1.75}, **case))
                    found.append(gpu_record("triton", {"eager": 9.0, "max-autotune": 1.5}, suite="tuned", **case))
            found.append(gpu_record("triton", {"copy": 0.5}, shape=[256, 64, 56, 56], share_of_copy=0.5, **here))
            model = here | {"suite": "model", "model": "resnet50", "shape": [32, 3, 224, 224]}
            found.append(gpu_record("triton", {"plain": 0.9 if launch == LAUNCHES else 0.97}, **model))
            found.append(gpu_record("eager", {"plain": 0.6}, **model))
    return found + cfsam_records() + lga_records() + interaction_records()


def cfsam_records() -> list[dict]:
    found = []
    for launch, case in product((LAUNCHES, GRAPH), gpu_cfsam_cases("default")):
        facts = {"launch": launch, **case.facts()}
        if isinstance(case, AttentionCase):
            over = {"sdpa view": 1.25 if case.work == FORWARD else 0.75}
            found.append(gpu_record("triton", over, suite="attention", gflop_per_s=1.0, **facts))
        else:
            over = {"eager": 8.0 if case.memory_format == CONTIGUOUS else 2.0, "compile": 1.125}
            found.append(gpu_record("triton", over, suite="pyramid", **facts))
    return found


def lga_records() -> list[dict]:
    found = []
    for launch, case in product((LAUNCHES, GRAPH), gpu_lga_cases("default")):
        over = {"eager": 9.0 if case.memory_format == CONTIGUOUS else 4.0, "compile": 1.75}
        found.append(gpu_record("triton", over, suite="lga", launch=launch, **case.facts()))
    return found


def interaction_records() -> list[dict]:
    found = []
    for launch, case in product((LAUNCHES, GRAPH), gpu_interaction_cases("default")):
        over = {"eager": 8.0 if case.memory_format == CONTIGUOUS else 2.0, "compile": 1.25}
        found.append(gpu_record("triton", over, suite=case.suite, launch=launch, **case.facts()))
    return found


def test_gpu_summary_goes_by_the_median() -> None:
    rows = gpu_summary(gpu_records())
    assert all(row["measured"] is not None for row in rows)
    found = {(row["what"].split(",")[0], row["unit"]): row for row in rows if "CUDA graphs" in row["what"]}
    forward = found["SCSA forward", "times eager's speed"]
    assert (forward["measured"], forward["least"], forward["met"]) == (pytest.approx(8.0), pytest.approx(16.0), True)
    assert not found["SCSA forward", "times compile's speed"]["met"]
    assert found["SCSA forward + backward", "times compile's speed"]["met"]
    tuned = found["SCSA forward", "times max-autotune's speed"]
    assert tuned["measured"] == pytest.approx(1.5)
    assert "met" not in tuned
    share = [row for row in rows if "resnet50" in row["what"]]
    assert [row["met"] for row in share] == [False, False, True, True]
    assert {row["eager"] for row in share} == {0.6}
    assert [row["measured"] for row in rows if "copy" in row["unit"]] == [0.5] * 4


def test_gpu_summary_of_cfsam() -> None:
    rows = [row for row in gpu_summary(cfsam_records()) if row["measured"] is not None]
    found = [(row["what"].split(",")[0], row["unit"], row["asked"], row["measured"], row["met"]) for row in rows[::2]]
    assert found == [
        ("Attention forward", "times sdpa view's speed", 1.2, 1.25, True),
        ("Attention forward + backward", "times sdpa view's speed", 1.0, 0.75, False),
        ("CFSAM forward", "times eager's speed", 2.0, pytest.approx(4.0), True),
        ("CFSAM forward", "times compile's speed", 1.3, pytest.approx(1.125), False),
    ]
    assert [row["least"] for row in rows] == pytest.approx([2.5, 2.5, 1.5, 1.5, 8.0, 8.0, 2.25, 2.25])
    assert ["CUDA graphs" in row["what"] for row in rows] == [False, True] * 4


def test_gpu_summary_of_lga() -> None:
    rows = [row for row in gpu_summary(lga_records()) if row["measured"] is not None]
    found = [(row["what"].split(",")[0], row["asked"], row["measured"], row.get("met")) for row in rows[::2]]
    exactly = pytest.approx
    assert found == [
        ("LGA forward", 4.0, exactly(6.0), True),
        ("LGA forward", 2.0, exactly(1.75), False),
        ("LGA forward + backward", None, exactly(6.0), None),
        ("LGA forward + backward", None, exactly(1.75), None),
    ]
    assert ["CUDA graphs" in row["what"] for row in rows] == [False, True] * 4
    assert {row["what"].split(", ")[2] for row in rows} == {"batch 32"}


def test_gpu_summary_of_interaction() -> None:
    rows = [row for row in gpu_summary(interaction_records()) if row["measured"] is not None]
    found = [(row["what"].split(",")[0], row["asked"], row["measured"], row.get("met")) for row in rows[::2]]
    exactly = pytest.approx
    assert found == [
        ("ACP forward", 3.0, exactly(4.0), True),
        ("ACP forward", 1.3, exactly(1.25), False),
        ("ACP forward + backward", None, exactly(4.0), None),
        ("ACP forward + backward", None, exactly(1.25), None),
        ("CAT forward", 3.0, exactly(8.0), True),
        ("CAT forward", 1.3, exactly(1.25), False),
        ("CAT forward + backward", None, exactly(8.0), None),
        ("CAT forward + backward", None, exactly(1.25), None),
    ]
    assert ["CUDA graphs" in row["what"] for row in rows] == [False, True] * 8
    assert {row["what"].split(", ")[1] for row in rows} == {"batch 32"}


def test_gpu_summary_measures_nothing_from_a_part_of_the_cases() -> None:
    some = [r for r in gpu_records() if r["format"] == CONTIGUOUS and r["suite"] == "module" and r["shape"][0] == 32]
    assert [row["measured"] for row in gpu_summary(some)] == [None] * len(gpu_summary([]))
    others = gpu_summary([record | {"dtype": "float32"} for record in gpu_records()])
    assert [row["measured"] for row in others] == [None] * len(others)


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(
        L2_cache_size=64, uuid="1234", major=9, minor=0, multi_processor_count=7, total_memory=1 << 30
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA Fake 100")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: properties)


class FakeNvml:
    NVML_CLOCK_SM, NVML_CLOCK_MEM = 1, 2

    def __init__(self) -> None:
        self.open = 0

    def nvmlInit(self) -> None:
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        assert self.open
        return uuid

    def nvmlSystemGetDriverVersion(self) -> str:
        return "1.2.3"

    def nvmlDeviceGetClockInfo(self, handle: str, kind: int) -> int:
        assert handle == "GPU-1234"
        return 1000 * kind

    def nvmlDeviceGetMaxClockInfo(self, handle: str, kind: int) -> int:
        return 1500 * kind


DRIVER = {"driver": "1.2.3", "sm": 1000.0, "max sm": 1500.0, "memory": 2000.0, "max memory": 3000.0}


def test_driver_and_clocks_through_nvml(fake_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert machine.query_driver() == DRIVER
    assert nvml.open == 0


@pytest.mark.parametrize(
    ("answer", "known"),
    [
        ("1.2.3, 1000, 1500, 2000, 3000\n", DRIVER),
        ("1.2.3, [N/A], 1500, [N/A], 3000\n", {k: v for k, v in DRIVER.items() if k not in ("sm", "memory")}),
        (None, {}),
    ],
    ids=["all", "clocks not told", "no nvidia-smi"],
)
def test_driver_and_clocks_through_nvidia_smi(
    answer: str | None, known: dict, fake_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(command: list[str], **_) -> SimpleNamespace:
        assert command[:2] == ["nvidia-smi", "--id=GPU-1234"]
        if answer is None:
            raise FileNotFoundError("nvidia-smi")
        return SimpleNamespace(stdout=answer)

    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setattr(subprocess, "run", run)
    assert machine.query_driver() == known


def test_the_machine_is_described_with_its_gpu(fake_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "query_driver", lambda: DRIVER)
    monkeypatch.setattr(machine, "_clocks", {"sm": [], "memory": []})
    machine.note_clocks()
    described = machine.describe(memory_kept=True)
    assert described["gpu"] == "NVIDIA Fake 100"
    details = described["gpu_details"]
    assert (details["driver"], details["capability"], details["l2_bytes"]) == ("1.2.3", "9.0", 64)
    assert details["clocks_mhz"] == {"sm": 1000.0, "memory": 2000.0}
    assert details["max_clocks_mhz"] == {"sm": 1500.0, "memory": 3000.0}


def part(name: str, records: list[dict], **changes) -> dict:
    benchmarks = [{"fullname": f"{name}[{i}]", "name": f"{i}", "extra_info": r} for i, r in enumerate(records)]
    return {
        "machine_info": {"gpu": "NVIDIA Fake 100", "versions": {"torch": "2.11.0"}, "gpu_details": {"driver": "1.2.3"}},
        "commit_info": {"id": "0123456789abcdef"},
        "datetime": "2026-01-01",
        "benchmarks": benchmarks,
        "fastattn": {"schema": 2, "selection": "default", "device": "cuda", "part": name, "summary": []} | changes,
    }


def parts() -> list[dict]:
    homes = {"model": "models", "attention": "cfsam", "pyramid": "cfsam", "lga": "lga"}
    homes |= {"acp": "interaction", "cat": "interaction"}
    found: dict[str, list[dict]] = {"models": [], "32": [], "interaction": [], "lga": [], "cfsam": []}
    for record in gpu_records():
        found[homes.get(record["suite"], "32")].append(record)
    return [part(name, records) for name, records in found.items()]


def test_parts_become_one_result_and_the_readmes_tables(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    for found in parts():
        (tmp_path / f"{found['fastattn']['part']}.json").write_text(json.dumps(found))
    assert merge.main([str(tmp_path), "-o", str(tmp_path / "results")]) == 0
    result = json.loads((tmp_path / "results" / "nvidia-fake-100.json").read_text())
    assert list(result["fastattn"]["parts"]) == ["32", "models", "cfsam", "lga", "interaction"]
    assert all(row["measured"] is not None for row in result["fastattn"]["summary"])
    text = capsys.readouterr().out
    assert "### Asked and measured" in text
    assert "NVIDIA Fake 100; driver 1.2.3" in text
    assert "(32, 64, 56, 56)" in text
    assert "(32, 1940, 8 × 32)" in text
    assert "resnet50" in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"machine_info": {"gpu": "Other", "versions": {"torch": "2.11.0"}}}, "differ in GPU"),
        ({"commit_info": {"id": "another"}}, "differ in commit"),
        ({"fastattn": {"selection": "smoke", "device": "cuda", "part": "32"}}, "differ in selection"),
    ],
    ids=["another GPU", "another commit", "a smoke run"],
)
def test_parts_that_do_not_belong_together(changes: dict, message: str) -> None:
    one, other, *_ = parts()
    with pytest.raises(merge.ResultError, match=message):
        merge.merge([one, other | changes])


def test_merging_nothing_or_a_cpus_result(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    assert merge.main([str(tmp_path)]) == 2
    assert "no part has run yet" in capsys.readouterr().err
    (tmp_path / "32.json").write_text(json.dumps(part("32", gpu_records(), device="cpu")))
    assert merge.main([str(tmp_path)]) == 2
    assert "did not run on a GPU" in capsys.readouterr().err
    assert merge.file_name("NVIDIA H100 80GB HBM3", "smoke") == "nvidia-h100-80gb-hbm3-smoke.json"


def test_a_part_is_written_while_it_runs(tmp_path) -> None:
    path = tmp_path / "new" / "32.json"
    record = {"fullname": "b", "extra_info": gpu_record("triton", {}, shape=[32, 64, 56, 56]), "stats": {"data": [1.0]}}
    hook = SimpleNamespace(
        pytest_benchmark_update_machine_info=lambda config, machine_info: machine_info.update(gpu="some"),
        pytest_benchmark_generate_commit_info=lambda config: {"id": "1", "branch": "b"},
        pytest_benchmark_update_commit_info=session.pytest_benchmark_update_commit_info,
        pytest_benchmark_generate_json=lambda benchmarks, machine_info, commit_info, **_: {
            "machine_info": machine_info,
            "commit_info": commit_info,
            "benchmarks": list(benchmarks),
        },
        pytest_benchmark_update_json=session.pytest_benchmark_update_json,
    )
    config = SimpleNamespace(
        hook=hook,
        stash={shapes.PART: "32", shapes.SELECTION: "default"},
        getoption=lambda name: str(path),
        _benchmarksession=SimpleNamespace(benchmarks=[]),
    )
    session.write_part(config)
    assert not path.exists()
    config._benchmarksession.benchmarks.append(record)
    session.write_part(config)
    written = json.loads(path.read_text())
    assert written["machine_info"] == {"gpu": "some"}
    assert written["commit_info"] == {"id": "1"}
    assert written["benchmarks"][0]["stats"] == {}
    assert written["fastattn"]["part"] == "32"
    assert [file.name for file in path.parent.iterdir()] == ["32.json"]
