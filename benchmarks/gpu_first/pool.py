"""Rows in processes of their own: one that fails, hangs or breaks its CUDA context costs its row alone."""

import contextlib
import json
import os
import queue
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from .rows import Row

START = 60.0  # seconds until a worker is ready
Result = dict[str, Any]


class Worker:
    """One process."""

    def __init__(self, device: str, log: Path):
        self.device, self.log = device, log
        self.process: subprocess.Popen[str] | None = None

    def start(self, seconds: float) -> None:
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.gpu_first.worker", self.device]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment,
                start_new_session=True,
            )  # fmt: skip
        self.read(seconds)

    def read(self, seconds: float) -> str:
        """The next line; TimeoutError where it does not come in time, EOFError where the process ended."""
        assert self.process is not None
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            if not selector.select(max(0.0, seconds)):
                raise TimeoutError(f"no answer within {seconds:.0f} s")
        line = self.process.stdout.readline()
        if not line:
            raise EOFError(f"the process ended with status {self.process.wait()}: {self.tail()}")
        return line

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-1500:]

    def run(self, row: Row, seconds: float) -> Result:
        """What a row finds within these seconds."""
        began = time.monotonic()
        try:
            if self.process is None:
                self.start(min(START, seconds))
                seconds -= time.monotonic() - began
            assert self.process is not None
            print(row.line(), file=self.process.stdin, flush=True)
            found = json.loads(self.read(min(row.seconds, seconds)))
        except (OSError, EOFError, ValueError) as error:
            found = {"ok": False, "failed": str(error), "broken": True, "seconds": round(time.monotonic() - began, 2)}
        if found.get("broken"):
            self.stop()
        return found

    def stop(self) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, 9)
            self.process.wait()
            self.process = None


def run(
    rows: Iterable[Row], device: str, processes: int, until: float, logs: Path, note: Callable[[Row, Result], None]
) -> None:
    """Run rows side by side, the first ones first, and note each result as it falls; after `until` on the monotonic
    clock none begins, and what runs is given up."""
    waiting: queue.SimpleQueue[Row] = queue.SimpleQueue()
    for row in rows:
        waiting.put(row)
    noting = threading.Lock()
    logs.mkdir(parents=True, exist_ok=True)

    def work(index: int) -> None:
        worker = Worker(device, logs / f"{index}.log")
        try:
            while True:
                row = waiting.get_nowait()
                left = until - time.monotonic()
                found = worker.run(row, left) if left > 1 else {"ok": False, "failed": "time", "seconds": 0.0}
                with noting:
                    note(row, found)
        except queue.Empty:
            pass
        finally:
            worker.stop()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(max(1, min(processes, waiting.qsize())))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
