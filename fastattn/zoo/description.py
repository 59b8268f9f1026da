"""What a gate computes, in three parts: statistics of x, the steps that lead from them to the gates, the product.

pool       columns of a channel's statistics
mean       its mean
weighted   the sum of its pixels times weights (C, H, W), the first parameter, a constant
mean_max   mean and maximum
mean_var   mean and variance
axes       the means of its rows, then of its columns

step                  from each column, channels being its entries
linear                weight (out, in) and bias; linear_no_bias without, linear_by_axis one each for rows, columns
along_channels        a convolution with `size` taps, zeros around
along_axes            along rows and columns, with `size` taps for each channel, zeros around
group_norm            over `size` groups, rows and columns each by themselves; `number` is epsilon
batch_norm            by the batch while training; `number` is epsilon
relu, silu, hard_swish, sigmoid, hard_sigmoid
sum                   of mean and maximum
shuffle               of `size` groups of channels, a half by their means, a half by normal pixels, to q, a, b
energy                q = 1 / (4 (variance of the sample + number)), a = 0, b = 1 / 2

product    x times
channels   the channel's gate
pixels     sigmoid(q d^2 + a d + b), d = x - mean of the channel
shuffled   the same; then the halves of the channels are interleaved
axes       the gates of channel and row, and of channel and column
space      the channel's gate; then a gate of the pixel, the sigmoid of the normalised convolution, of `kernel` x
           `kernel`, of its mean and maximum over the channels
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

POOLS = "mean", "weighted", "mean_max", "mean_var", "axes"
PRODUCTS = "channels", "pixels", "shuffled", "axes", "space"
ACTIVATIONS = "relu", "silu", "hard_swish", "sigmoid", "hard_sigmoid"
# by their numbers in the extension
STEPS = (
    *("linear", "linear_no_bias", "linear_by_axis", "along_channels", "along_axes", "group_norm"),
    *("batch_norm", "batch_norm_of_batch", *ACTIVATIONS, "sum", "shuffle", "energy"),
)


class Step(NamedTuple):
    """A step: its name, how many outputs, taps or groups it has, and the number that it takes."""

    name: str
    size: int = 1
    number: float = 0.0


@dataclass(frozen=True)
class Description:
    """A gate, as above. Its parameters are the pool's, each step's, the convolution's and the normalisation's."""

    pool: str
    steps: tuple[Step, ...]
    product: str
    kernel: int = 0
    epsilon: float = 0.0

    # pool, product, kernel, whether the pixels are normalised by the batch, and each step and its size; the same of a
    # normalisation by the batch's statistics; epsilon and each step's number
    program: tuple[int, ...] = field(init=False)
    program_of_batch: tuple[int, ...] = field(init=False)
    numbers: tuple[float, ...] = field(init=False)

    def __post_init__(self) -> None:
        own = vars(self)
        own["program"] = self._program("batch_norm", 0)
        own["program_of_batch"] = self._program("batch_norm_of_batch", int(self.product == "space"))
        own["numbers"] = self.epsilon, *(step.number for step in self.steps)

    def _program(self, batch_norm: str, of_batch: int) -> tuple[int, ...]:
        names = [batch_norm if step.name == "batch_norm" else step.name for step in self.steps]
        sizes = [step.size for step in self.steps]
        steps = (number for name, size in zip(names, sizes, strict=True) for number in (STEPS.index(name), size))
        return POOLS.index(self.pool), PRODUCTS.index(self.product), self.kernel, of_batch, *steps


def statistics_size(channels: int, program: Sequence[int]) -> int:
    """Return how many means and variances of the batch a program computes of so many channels."""
    size = 2 * program[3]
    for step, count in zip(program[4::2], program[5::2], strict=True):
        if STEPS[step].startswith("linear"):
            channels = count
        if STEPS[step] == "batch_norm_of_batch":
            size += 2 * channels
    return size


def saved_size(shape: Sequence[int], program: Sequence[int]) -> int:
    """Return how many floats the extension keeps for backward: the statistics of each channel, maps of the pixels, and
    the batch's statistics."""
    batch, channels, height, width = shape
    pool, space = POOLS[program[0]], PRODUCTS[program[1]] == "space"
    columns = {"mean": 1, "weighted": 1, "mean_max": 2, "mean_var": 2, "axes": height + width}[pool]
    each = columns * ((channels + 15) // 16 * 16) + 2 * height * width * space
    return batch * each + statistics_size(channels, program)
