"""`python -m fastattn bench TABLE`: measure one of the papers' tables on this machine."""

import argparse
import importlib.util
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..report import ResultError, load, tables, to_text
from . import runtimes
from .memory import keep_freed_memory
from .resume import GrowingResult
from .run import Protocol, measure, threads, wanted
from .sizes import CHANNELS_LAST, CONTIGUOUS, FORWARD, MEMORY_FORMATS, TRAINING
from .tables import QUICK_ATTENTIONS, QUICK_BACKBONES, TABLES, Row, Setting, narrowed

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
WORKS = {"forward": FORWARD, "train": TRAINING}
NETWORKS = ("timm", "torchvision")
NEEDED = (*NETWORKS, "tqdm")
# images in a batch and rounds: the papers' protocol on a GPU, a smaller one on a CPU, and a quick look on either
BATCH, REPEATS = {"cuda": 32, "cpu": 8}, {"cuda": 100, "cpu": 10}
QUICK_BATCH, QUICK_REPEATS = 8, 5


class UsageError(ValueError):
    """What was asked for cannot be measured here; the message says why."""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m fastattn bench",
        description="Measure one of the papers' tables: images per second of each backbone and attention, eager, by "
        "torch.compile, by fastattn's kernels and by both, in turns. What is interrupted goes on where it stopped.",
    )
    made.add_argument("table", choices=TABLES, metavar="TABLE", help=f"one of {', '.join(TABLES)}")
    made.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="default: TABLE-DEVICE[-train][-amp][-quick].json"
    )
    made.add_argument("--fresh", action="store_true", help="measure everything anew, whatever the file holds")
    made.add_argument("--device", choices=("cpu", "cuda"), help="default: the GPU if there is one")
    made.add_argument("--batch", type=numbers, metavar="N[,N...]", help="images in a batch (default: 32, on a CPU 8)")
    made.add_argument("--size", type=numbers, metavar="N[,N...]", help="sides of the images (default: the paper's)")
    made.add_argument("--repeats", type=positive, metavar="N", help="rounds (default: 100, on a CPU 10)")
    made.add_argument("--dtype", choices=DTYPES, default="float32")
    made.add_argument("--format", choices=MEMORY_FORMATS, default=CONTIGUOUS, help="of images and weights in memory")
    made.add_argument("--channels-last", dest="format", action="store_const", const=CHANNELS_LAST, help="as --format")
    made.add_argument("--work", choices=WORKS, default="forward", help="train: with backward, in training mode")
    made.add_argument("--amp", action="store_true", help="under autocast to bfloat16, the weights in --dtype")
    made.add_argument("--threads", type=positive, metavar="N", help="PyTorch's threads (default: its own)")
    made.add_argument("--models", type=words, metavar="NAME[,NAME...]", help="these networks alone")
    made.add_argument("--attentions", type=words, metavar="NAME[,NAME...]", help="these attentions alone")
    made.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, default=True, help="let torch.compile take part"
    )
    made.add_argument(
        "--quick",
        action="store_true",
        help=f"batch {QUICK_BATCH}, {QUICK_REPEATS} rounds; of scsa-backbones {' and '.join(QUICK_BACKBONES)} alone, "
        f"with {', '.join(QUICK_ATTENTIONS)}",
    )
    return made


def numbers(text: str) -> tuple[int, ...]:
    return tuple(map(positive, text.split(",")))


def positive(text: str) -> int:
    if not text.strip().isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive number")
    return int(text)


def words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def chosen_rows(options: argparse.Namespace, setting: Setting) -> list[Row]:
    """The rows that were asked for."""
    names, attentions = options.models, options.attentions
    if options.table == "modules" and (options.size or names):
        raise UsageError("the modules have sizes of their own, and stand in no network: no --size, no --models")
    if options.quick and options.table == "scsa-backbones":
        names, attentions = names or QUICK_BACKBONES, attentions or QUICK_ATTENTIONS
    try:
        rows = narrowed(TABLES[options.table](setting), names, attentions)
    except (ImportError, ValueError) as error:
        raise UsageError(str(error)) from error
    if not rows:
        raise UsageError(f"none of these attentions stands in these networks: {', '.join(attentions)}")
    return rows


def chosen_protocol(options: argparse.Namespace) -> Protocol:
    """How they are timed; UsageError for a GPU that is not there."""
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("PyTorch sees no GPU here: --device cpu")
    batches = options.batch or (QUICK_BATCH if options.quick else BATCH[device],)
    repeats = options.repeats or (QUICK_REPEATS if options.quick else REPEATS[device])
    setting = Setting(device, DTYPES[options.dtype], options.format, batches, options.size)
    protocol = Protocol(setting, repeats, options.compile, WORKS[options.work], options.amp)
    if options.table == runtimes.TABLE:
        try:
            runtimes.check(protocol)
        except ValueError as error:
            raise UsageError(str(error)) from error
    return protocol


def check_packages(table: str) -> None:
    needed = [name for name in NEEDED if table != "modules" or name not in NETWORKS]
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"this needs {', '.join(missing)}: pip install 'fastattn[bench]'")


def chosen_threads(options: argparse.Namespace) -> int:
    """PyTorch's threads; UsageError for more than there are CPUs."""
    most = os.cpu_count() or 1
    if (options.threads or 1) > most:
        raise UsageError(f"--threads {options.threads}: this machine has {most} CPUs")
    return options.threads or torch.get_num_threads()


def run(options: argparse.Namespace) -> Path:
    """Measure the rows that the file lacks, and return its path; UsageError, ResultError, OSError."""
    from tqdm import tqdm

    protocol = chosen_protocol(options)
    rows = chosen_rows(options, protocol.setting)
    device = protocol.setting.device
    path = options.output or Path(f"{default_name(options, device)}.json")
    exported = options.table == runtimes.TABLE
    records_of, measured = (runtimes.wanted, runtimes.measure) if exported else (wanted, measure)
    records = {row: records_of(row, protocol) for row in rows}
    facts = protocol.facts | {"sizes": sizes(rows), "inputs": inputs_of(options.table)}
    result = GrowingResult(
        path,
        options.table,
        facts,
        wanted=[record for some in records.values() for record in some],
        selection="quick" if options.quick else "default",
        device=device,
        kept=device == "cpu" and keep_freed_memory(),
        fresh=options.fresh,
    )
    bar = tqdm(rows, unit="row", file=sys.stderr, dynamic_ncols=True)
    try:
        for row in bar:
            bar.set_description(str(row))
            if not result.has(records[row]):
                result.add(measured(row, protocol))
    finally:
        bar.close()
        result.close()
    return path


def default_name(options: argparse.Namespace, device: str) -> str:
    """A result's name: the table, the device, and what of the run is not the usual."""
    unusual = {"train": options.work == "train", "amp": options.amp, "quick": options.quick}
    return "-".join([options.table, device, *(name for name, is_so in unusual.items() if is_so)])


def sizes(rows: Sequence[Row]) -> list[int]:
    """The sides of the images."""
    return sorted({row.shape[-1] for row in rows if row.model})


@contextmanager
def terminable() -> Iterator[None]:
    """Where a scheduler ends the run, it ends as if by Ctrl-C: what was measured stays."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def inputs_of(table: str) -> str:
    """What the networks see."""
    if table == "modules":
        return "normal noise"
    shipped = all(importlib.util.find_spec(name) for name in ("skimage", "sklearn"))
    return "photographs" if shipped else "noise (scikit-image and scikit-learn, which ship photographs, are missing)"


def show(path: Path) -> None:
    """The tables of a result on the screen, and how to make a report of it."""
    result: dict[str, Any] = load(path)
    for table in tables(result):
        print(f"\n{to_text(table)}")
    print(f"\nWritten: {path}. A report: python -m fastattn report {path} -o DIR")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 0 on success, 1 where every row failed, 2 for what cannot be measured here, 130 where it
    was interrupted: the same command goes on."""
    options = parser().parse_args(argv)
    try:
        check_packages(options.table)
        with terminable(), threads(chosen_threads(options)):
            path = run(options)
    except (UsageError, ResultError, OSError) as error:
        print(f"python -m fastattn bench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on with the rows that are missing", file=sys.stderr)
        return 130
    show(path)
    return 0 if any("failed" not in b["extra_info"] for b in load(path)["benchmarks"]) else 1
