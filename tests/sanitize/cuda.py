"""Run SCSA's CUDA kernels under a sanitizer, `python -m tests.sanitize.cuda` on an interpreter with its library in it.

KERNEL [NUMBER ...]   whole, and with each of their barriers left out in turn, or these; to ThreadSanitizer each thread
                      of a block is a thread
KERNEL --short BYTES  once, in blocks with so much shared memory less than they were planned with, which
                      AddressSanitizer has to see

The first prints one line a run, the barrier's number, 0 where none is left out, and what came out: "right", "wrong",
"stuck" or "ended" with the process, after the sanitizer's own reports of that run. A barrier that is known to be missed
is not left out in other ways.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from fastattn.scsa import cuda as scsa
from tests import emulated
from tests.helpers import draw, make

OPTIONS = {
    "scsa": ((1, 4, "avg_pool", "sigmoid"), {}),
    "softmax": ((1, 4, "max_pool", "softmax"), {}),
    "smsa": (("sigmoid",), {}),
    "pcsa": ((1, 4, "avg_pool", "sigmoid"), {}),
}


def results(name: str, kernel: str, memory_format: torch.memory_format) -> list[torch.Tensor]:
    """Return what forward computes, or backward after a whole forward, on teams that take several samples."""
    options, _ = OPTIONS[name]
    module = make(name if name in ("smsa", "pcsa") else "scsa", 8)
    x, params = draw(5, 8, 9, 8, memory_format=memory_format), [p.detach() for p in module._params()]
    without, emulated.machine.without = emulated.machine.without, 0
    if kernel == "forward":
        emulated.machine.without = without
        return [*scsa.forward(module.operation, x, params, options, x.dtype, True)]
    out, saved = scsa.forward(module.operation, x, params, options, x.dtype, True)
    emulated.machine.without = without
    return [*scsa.backward(module.operation, out, x, saved, params, options, True, True)]


def say(number: int, outcome: str) -> None:
    print(f"barrier {number}: {outcome}", file=sys.stderr, flush=True)


def leave_out(number: int, kernel: str, expected: dict[tuple[str, int], list[torch.Tensor]]) -> None:
    """Run a kernel in every way without one barrier, until it is missed; what comes first of a way is expected."""
    for name in OPTIONS:
        for capability in (90, 80):
            resident = 2 if capability == 90 else 4
            emulated.install(pytest.MonkeyPatch(), capability=capability, resident=resident, without=number)
            layout = torch.channels_last if capability == 80 and name == "smsa" else torch.contiguous_format
            try:
                found = results(name, kernel, layout)
            except RuntimeError:
                return say(number, "stuck")
            found = [tensor.nan_to_num(1e9) for tensor in found]  # what nothing is written to, of what is saved
            same = all(map(torch.equal, found, expected.setdefault((name, capability), found)))
            say(number, "right" if same else "wrong")
            if not same:
                return None
    return None


def run(kernel: str, numbers: Sequence[int] = ()) -> None:
    """Run one kernel whole, then without each barrier, or without these alone, each in a process of its own."""
    expected: dict[tuple[str, int], list[torch.Tensor]] = {}
    leave_out(0, kernel, expected)
    barriers = emulated.EmulatedKernel(f"scsa/{kernel}.cu", f"scsa_{kernel}", emulated.FLOATS).barriers()
    for number in numbers or range(1, barriers + 1):
        if (child := os.fork()) == 0:
            leave_out(number, kernel, expected)
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            say(number, "ended")


def run_short(kernel: str, missing: int) -> None:
    """Run one kernel in blocks with fewer bytes of shared memory than they were planned with."""
    emulated.install(pytest.MonkeyPatch())
    plan = scsa.plan

    def short(known, facts, backward=False):
        found = plan(known, facts, backward)
        return replace(found, shared_bytes=found.shared_bytes - missing * (backward == (kernel == "backward")))

    scsa.plan = short
    results("scsa", kernel, torch.contiguous_format)


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kernel", choices=("forward", "backward"))
    parser.add_argument("numbers", nargs="*", type=int)
    parser.add_argument("--short", type=int)
    given = parser.parse_args(argv)
    torch.use_deterministic_algorithms(True)  # which fills new memory with NaN
    plans = scsa._candidates
    scsa._candidates = lambda *call: [each for each in plans(*call) if each[1].blocks == 2]
    if given.short is None:
        run(given.kernel, given.numbers)
    else:
        run_short(given.kernel, given.short)


if __name__ == "__main__":
    main(sys.argv[1:])
