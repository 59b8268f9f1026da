"""Run SCSA's CUDA kernels under ThreadSanitizer, to which each thread of a block is a thread, whole and with each of
their barriers left out in turn: `python -m tests.sanitize.cuda KERNEL [NUMBER ...]`, on an interpreter with libtsan in
it.

Prints one line a run, the barrier's number and what came out: "right", "wrong" or "stuck", after ThreadSanitizer's own
reports of that run. A barrier that is known to be missed is not left out in other ways.
"""

import sys
from collections.abc import Sequence

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


def run(kernel: str, numbers: Sequence[int] = ()) -> None:
    """Run one kernel in every way, then without each barrier, or without these alone."""
    torch.use_deterministic_algorithms(True)  # which fills new memory with NaN
    patch = pytest.MonkeyPatch()
    plans = scsa._candidates
    patch.setattr(scsa, "_candidates", lambda *given: (each for each in plans(*given) if each[1].blocks == 2))
    ways = [(name, capability) for name in OPTIONS for capability in (90, 80)]
    barriers = emulated.EmulatedKernel(f"scsa/{kernel}.cu", f"scsa_{kernel}", emulated.FLOATS).barriers()
    expected: dict[tuple[str, int], list[torch.Tensor]] = {}
    for number in (0, *(numbers or range(1, barriers + 1))):
        for name, capability in ways:
            emulated.install(patch, capability=capability, resident=2 if capability == 90 else 4, without=number)
            layout = torch.channels_last if capability == 80 and name == "smsa" else torch.contiguous_format
            try:
                found = results(name, kernel, layout)
            except RuntimeError:
                print(f"barrier {number}: stuck", file=sys.stderr, flush=True)
                break
            found = [tensor.nan_to_num(1e9) for tensor in found]  # what nothing is written to, of what is saved
            same = all(map(torch.equal, found, expected.setdefault((name, capability), found)))
            print(f"barrier {number}: {'right' if same else 'wrong'}", file=sys.stderr, flush=True)
            if not same:
                break


if __name__ == "__main__":
    run(sys.argv[1], [*map(int, sys.argv[2:])])
