"""Team work for ThreadSanitizer: every compiled operation where several threads share a sample, forward and backward.

`python -m tests.sanitize.team` runs it; what is wrong is the sanitizer's to say.

PyTorch keeps to one thread, since its own teams are not instrumented; the extension is told of as many as a call names.
"""

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor, nn

import fastattn
from fastattn.core import native
from tests.helpers import FORMATS, draw, randomize

THREADS = (2, 3, 5)
PER_THREAD = 8192  # elements that wake one more thread: csrc/cpu/work.h


def calls() -> Iterator[tuple[nn.Module, Tensor]]:
    """Yield modules and inputs: a sample that all threads share, and samples that leave some over."""
    gates = [{}, {"gate_layer": "softmax"}]
    pools = [{}, {"window_size": -1, "head_num": 2}, {"down_sample_mode": "max_pool", "qkv_bias": True}]
    both = [pools[0], *(gates[1] | pool for pool in pools[1:])]
    for batch, layout in itertools.product((1, 2, 4), FORMATS):
        x = draw(batch, 40, 33, 32, memory_format=layout)
        modules = [fastattn.SMSA(40, **gate) for gate in gates]
        modules += [kind(40, **options) for kind in (fastattn.SCSA, fastattn.PCSA) for options in both]
        modules += [fastattn.AggressiveConvPooling(40, aggregate=aggregate) for aggregate in ("concat", "sum")]
        modules += [
            fastattn.LocalGlobalAttention(40, heads, (3, 5), 7, contraction=contraction)
            for heads, contraction in ((5, "paper"), (2, "released"))
        ]
        yield from ((module, x) for module in modules)
        yield fastattn.ConceptualAttention(40, 21), draw(batch, 40, 1100, 1).squeeze(3).mT.contiguous()


def main() -> None:
    torch.set_num_threads(1)
    extension = native.extension()
    levels = extension.isa_levels()
    for count, (module, x) in enumerate(calls(), 1):
        module, x = randomize(module), x.requires_grad_()
        for i, threads in enumerate(THREADS):
            assert x[0].numel() // PER_THREAD >= threads, "a sample must be worth its threads"
            extension.set_isa(levels[(count + i) % len(levels)])
            torch.get_num_threads = lambda threads=threads: threads
            with fastattn.use_backend("native"):
                module(x).backward(torch.ones_like(x))
    print(f"{count} calls on {', '.join(map(str, THREADS))} threads each; instruction sets: {', '.join(levels)}")


if __name__ == "__main__":
    main()
