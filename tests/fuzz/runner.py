"""The parent: hands calls to a child process until the time is over, and says what came of them."""

import itertools
import json
import os
import select
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from typing import Any

from . import cases

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
PATIENCE = 600 if INTERPRETED else 120  # seconds that one call may take


class Child:
    """A process that judges calls one by one, and is started anew after a crash."""

    def __init__(self) -> None:
        self.command = [sys.executable, "-m", "tests.fuzz", "--child"]
        self.process: subprocess.Popen | None = None
        self.stderr = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the child)
        self._running()

    def judge(self, case: cases.Case) -> dict[str, Any]:
        """Return the child's answer: "failures", "refused" with the reason, or of one that ends or hangs "crash"."""
        process = self._running()
        self.stderr.truncate(0)
        process.stdin.write(json.dumps(case) + "\n")
        process.stdin.flush()
        in_time, _, _ = select.select([process.stdout], [], [], PATIENCE)
        answer = process.stdout.readline() if in_time else ""
        if answer:
            return json.loads(answer)
        if not in_time:
            process.kill()
        status, self.process = process.wait(), None
        process.stdin.close()
        process.stdout.close()
        what = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        self.stderr.seek(0)
        last = self.stderr.read().decode(errors="replace").strip().splitlines()[-1:]
        return {"crash": ": ".join([what if in_time else f"no answer in {PATIENCE} s", *last])}

    def _running(self) -> subprocess.Popen:
        if self.process is None:
            pipe = subprocess.PIPE
            # idle threads of a team sleep: more of them than cores would wait for one another otherwise
            environment = {"OMP_WAIT_POLICY": "passive", **os.environ}
            self.process = subprocess.Popen(
                self.command, stdin=pipe, stdout=pipe, stderr=self.stderr, text=True, env=environment
            )
            self.process.stdout.readline()  # it is ready
        return self.process

    def close(self) -> None:
        if self.process is not None:
            self.process.stdin.close()
            self.process.wait()
            self.process.stdout.close()
        self.stderr.close()

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def fuzz(seconds: float, seed: int = 0, only: str | None = None) -> bool:
    """Draw calls for some seconds, print failures and a summary, and return whether there is no failure."""
    counts: Counter = Counter()
    with Child() as child:
        end = time.monotonic() + seconds
        for index in itertools.count():
            if time.monotonic() > end:
                break
            _report(cases.draw(seed, index, only, INTERPRETED), child, counts)
    print(summary(counts))
    return not failed(counts)


def replay(case: cases.Case) -> bool:
    """Run one call, print what is wrong with it, and return whether it is right."""
    counts: Counter = Counter()
    with Child() as child:
        answer = _report(case, child, counts)
    if not failed(counts):
        print(f"refused: {answer['refused']}" if "refused" in answer else "right")
    return not failed(counts)


def _report(case: cases.Case, child: Child, counts: Counter) -> dict[str, Any]:
    answer = child.judge(case)
    for kind in ("tried", *(["refused"] if "refused" in answer else ())):
        counts[case["module"], kind] += 1
    found = [f"crash: {answer['crash']}, allowed none"] if "crash" in answer else []
    found += ["{what}: {error}, allowed {allowed}".format(**failure) for failure in answer.get("failures", [])]
    if found:
        counts[case["module"], "crashes" if "crash" in answer else "failures"] += 1
        print(f"{command(case)}: {' '.join('; '.join(found).split())}", flush=True)
    return answer


def command(case: cases.Case) -> str:
    """Return what a shell runs a call again with."""
    prefix = "TRITON_INTERPRET=1 " if INTERPRETED else ""
    return f"{prefix}python -m tests.fuzz --replay {shlex.quote(json.dumps(case, separators=(',', ':')))}"


def failed(counts: Counter) -> int:
    return sum(number for (_, kind), number in counts.items() if kind in ("failures", "crashes"))


def summary(counts: Counter) -> str:
    """Return a table: how many calls of each module were tried, refused, wrong, and ended the process."""
    kinds = ("tried", "refused", "failures", "crashes")
    rows = [[name, *(counts[name, kind] for kind in kinds)] for name in cases.DRAWS if counts[name, "tried"]]
    rows.append(["all", *(sum(counts[name, kind] for name in cases.DRAWS) for kind in kinds)])
    return "\n".join("{:22}{:>9}{:>9}{:>9}{:>9}".format(*row) for row in [["module", *kinds], *rows])
