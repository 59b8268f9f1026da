"""One launch for a whole small map, or one for each stage: which is predicted to be faster.

A launch takes as long as its busiest processor, which issues the instructions of its programs, and slowly where these
have few warps, and besides its start. The only launch gives a sample's stages to one program, or, forward, to a few
that share attention and product and repeat the rest; a launch for each stage spreads it over many programs. The
numbers were counted in the machine code for sm_90 at (256, 14, 14) and (512, 7, 7), where they foretell the sum of a
sample's stages to 10%; the two of the processor are estimates.
"""

import math
from collections.abc import Mapping, Sequence

from ..common.launch import Launch
from ..common.tiles import power

START = 8_000  # of a launch, as instructions of warps: 2 to 3 microseconds at two in a cycle
WARPS = 16  # with which a processor issues two in a cycle; with fewer, proportionally fewer
SHARED = {"channel_attention_kernel", "gated_product_kernel"}  # by the programs that serve one sample forward
# instructions of a thread, per element of x in its tiles; per element of the vectors of both axes
PASSES = {
    "axis_mean_kernel": 25,
    "gated_pool_kernel": 25,
    "gated_product_kernel": 25,
    "gated_gather_kernel": 75,
    "input_gradient_kernel": 40,
}
AXES = {"axis_gate_kernel": 250, "axis_gate_backward_kernel": 740}
# per pair of channels of one head, and more for each pooled pixel
PAIRS = {"channel_attention_kernel": (92, 25), "channel_attention_backward_kernel": (66, 59)}
POOLED = {"pooled_gradient_kernel": 30}  # per pooled pixel and channel


def instructions(kernel: str, channels: int, height: int, width: int, head: int, pooled: int) -> float:
    """Return how many instructions the warps issue for one sample of a stage."""
    if kernel in PASSES:
        threads = PASSES[kernel] * channels * power(height) * power(width)
    elif kernel in AXES:
        threads = AXES[kernel] * channels * (power(height) + power(width))
    elif kernel in PAIRS:
        once, more = PAIRS[kernel]
        threads = (once + more * pooled) * channels * power(head)
    else:
        threads = POOLED[kernel] * channels * pooled
    return threads / 32


def one_launch_is_faster(
    whole: Launch, stages: Sequence[Launch], work: Mapping[str, float], samples: int, processors: int
) -> bool:
    """Compare one launch with a launch for each stage, of which `work` holds the instructions for one sample."""
    split = math.prod(whole.grid) / samples
    together = sum(count / (split if name in SHARED else 1) for name, count in work.items())
    apart = (_duration(stage, work[stage.name] * samples / math.prod(stage.grid), processors) for stage in stages)
    return _duration(whole, together, processors) <= sum(apart)


def _duration(launch: Launch, work: float, processors: int) -> float:
    """Return the time of a launch whose programs issue so many instructions, in instructions."""
    programs = -(-math.prod(launch.grid) // processors)
    return START + programs * work * max(1.0, WARPS / (programs * launch.num_warps))
