"""`bench export-runtimes`: networks plain and with an attention as they are deployed, each runtime beside the others.

Eager, torch.compile and AOTInductor run fastattn's kernels, ONNX Runtime and OpenVINO standard operators. One contest
holds a network with and without its attention in all runtimes: each share of a plain network is of the same runtime.
"""

import importlib.util
import math
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import export
from ..report.throughput import plain_like
from .contest import COMPILE, EAGER, RUNTIMES, Contest, Effort, reason
from .networks import answers, first, inference
from .run import Protocol, Record, describe, device_of, identity, truths
from .sizes import FORWARD
from .tables import NONE, Row, Subject
from .telemetry import watch

TABLE = "export-runtimes"
NAMES = (EAGER, COMPILE, *RUNTIMES)
AOTI, ONNX_RUNTIME, OPENVINO = RUNTIMES
Run = Callable[[Tensor], Tensor]


def check(protocol: Protocol) -> None:
    """ValueError for what the runtimes are not compared in."""
    setting = protocol.setting
    if setting.device != "cpu" or setting.dtype is not torch.float32 or protocol.work != FORWARD or protocol.amp:
        raise ValueError("the runtimes are compared on the CPU, forward and in float32: --device cpu")


def wanted(row: Row, protocol: Protocol) -> list[Record]:
    """What tells the records of a row apart: the network without its attention and with it, in each runtime."""
    own = identity(row, protocol)
    plain = {key: value for key, value in own.items() if key != "note"} | {"attention": NONE, "operation": NONE}
    return [facts | {"rival": name} for facts in (plain, own) for name in NAMES]


def measure(row: Row, protocol: Protocol) -> list[Record]:
    """The records of a row; a runtime that is not installed, fails or computes something else says so."""
    records = wanted(row, protocol)
    try:
        subject = row.make(protocol.setting)
    except Exception as error:  # a missing package, memory
        return [record | {"failed": reason(error)} for record in records]
    try:
        return timed(subject, records, protocol)
    finally:
        torch._dynamo.reset()


def timed(subject: Subject, records: list[Record], protocol: Protocol) -> list[Record]:
    """The records of a network and its plain one, all runtimes in turns."""
    assert subject.plain is not None
    (x,) = subject.inputs
    contest = Contest(device_of(protocol), Effort(rounds=protocol.repeats, budget_seconds=math.inf), launches=(None,))
    missing: dict[str, str] = {}
    found = []
    with tempfile.TemporaryDirectory() as folder:
        networks = {
            record["attention"]: subject.plain if record["attention"] == NONE else subject.module for record in records
        }
        for attention, model in networks.items():
            own = Subject(model, subject.inputs)
            known = describe(own, FORWARD, alone=False)
            truth, eager = truths(own, protocol)
            for record in (record for record in records if record["attention"] == attention):
                record |= known
                key = f"{record['rival']} {attention}"
                try:
                    with torch.no_grad():
                        run = prepared(record["rival"], model, x, Path(folder) / attention)
                except Exception as error:  # not installed, or an exporter's
                    missing[key] = reason(error)
                    continue
                call = partial(answers, run, x)
                contest.enter(key, call, partial(first, call), partial(inference, "auto"), truth, eager)
        with watch(contest.device.type) as seen:
            contest.run()
        for record in records:
            key = f"{record['rival']} {record['attention']}"
            failed = missing | contest.failed
            facts = {"failed": failed[key]} if key in failed else figures(key, contest, x.shape[0])
            found.append(record | facts | {"telemetry": seen.facts()})
        contest.close()
    return found


def figures(key: str, contest: Contest, batch: int) -> Record:
    """Times, images per second by the median, and ratios: over the other runtimes of the same network, and over the
    plain network in the same runtime, under the name that the report reads."""
    name, _, attention = key.partition(" ")
    ratios = {}
    for other, ratio in contest.speedups(key).items():
        over, _, its = other.partition(" ")
        if its == attention:
            ratios[over] = ratio.facts()
        elif over == name and its == NONE:
            ratios[plain_like(name)] = ratio.facts()
    rate = batch / contest.timings[key].median
    return contest.times(key) | {"images_per_s": rate, "speedup": ratios}


def prepared(name: str, model: nn.Module, x: Tensor, path: Path) -> Run:
    """A network as a runtime takes it, on as many threads as PyTorch has."""
    if name in (ONNX_RUNTIME, OPENVINO) and importlib.util.find_spec(name) is None:
        raise ModuleNotFoundError(f"{name} is not installed")
    if name == EAGER:
        return model
    if name == COMPILE:
        return torch.compile(model, dynamic=False)
    return {AOTI: aoti, ONNX_RUNTIME: onnx_runtime, OPENVINO: openvino}[name](model, x, path)


def aoti(model: nn.Module, x: Tensor, path: Path) -> Run:
    package = path.with_suffix(".pt2")
    export.to_aoti(model, x, package, verify=False)
    return torch._inductor.aoti_load_package(str(package))


def onnx_runtime(model: nn.Module, x: Tensor, path: Path) -> Run:
    import onnxruntime

    file = path.with_suffix(".onnx")
    export.to_onnx(model, x, file, verify=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.force_spinning_stop", "1")  # or its threads spin through the next turn
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: x.numpy()}
    return lambda _: torch.from_numpy(session.run(None, feed)[0])


def openvino(model: nn.Module, x: Tensor, path: Path) -> Run:
    import openvino

    file = path.with_suffix(".xml")
    export.to_openvino(model, x, file, verify=False)
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = openvino.compile_model(str(file), "CPU", settings)
    return lambda _: torch.from_numpy(compiled([x.numpy()])[0])
