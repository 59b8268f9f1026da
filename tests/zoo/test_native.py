"""What the CPU path of the gates alone has: instruction sets, threads, and plans that refuse what does not fit."""

import pytest
import torch

from fastattn.core import native as loader
from tests.helpers import DTYPES, FORMATS, ISAS, check, draw, few, named, run
from tests.zoo.test_module import CASES, NORMALISED, made

pytestmark = [pytest.mark.usefixtures("native"), pytest.mark.cpu]


@pytest.mark.parametrize("isa", ISAS, indirect=True)
@pytest.mark.parametrize("dtype", few(DTYPES), ids=named)
@pytest.mark.parametrize("case", CASES)
def test_every_instruction_set(case, dtype, isa):
    for memory_format in FORMATS:
        check(*made(case, dtype, memory_format), "native")


@pytest.mark.parametrize("threads", few([3, 2, 5]))
@pytest.mark.parametrize("batch", few([1, 4, 2, 3], 2))
@pytest.mark.parametrize("case", CASES)
def test_threads_share_samples_and_split_them(case, batch, threads):
    for memory_format in FORMATS:
        for training in (False, True) if case in NORMALISED else (True,):
            module, x = made(case, training=training)
            side = int((24576 / x.shape[1]) ** 0.5) + 1  # pixels enough for three threads
            x = draw(batch, x.shape[1], side, side + 1, memory_format=memory_format)
            alone = run(module, x, torch.ones_like(x), "native")
            torch.set_num_threads(threads)
            together, again = (run(module, x, torch.ones_like(x), "native") for _ in range(2))
            torch.set_num_threads(1)
            sums = [float(t.abs().max()) for name, t in alone.items() if name not in ("out", "grad_x")]
            for name, tensor in alone.items():
                largest = float(tensor.abs().max()) if name in ("out", "grad_x") else max(sums)
                torch.testing.assert_close(together[name], tensor, rtol=0, atol=2e-5 * largest, msg=name)
                assert torch.equal(together[name], again[name]), name


@pytest.mark.parametrize("threads", few([3, 2, 5]))
@pytest.mark.parametrize("case", CASES)
def test_a_sample_does_not_depend_on_its_batch(case, threads):
    """To the last bit, as a threads' part of it ends where a vector does not."""
    torch.set_num_threads(threads)
    for memory_format in FORMATS:
        module, x = made(case, training=False)
        side = int((49152 / x.shape[1]) ** 0.5) + 1  # pixels enough for five threads
        x, grad = draw(6, x.shape[1], side, side + 2), draw(1, x.shape[1], side, side + 2)
        x, grad = (t.contiguous(memory_format=memory_format) for t in (x, grad.expand_as(x)))
        every = run(module, x, grad, "native")
        for i in range(len(x)):
            alone = run(module, x[i : i + 1], grad[i : i + 1], "native")
            for name in ("out", "grad_x"):
                assert torch.equal(alone[name], every[name][i : i + 1]), (name, memory_format)


FLAT = {"far": lambda x: x + 1000, "equal": lambda x: 0 * x + 3, "tiny": lambda x: x * 1e-10}


@pytest.mark.parametrize("memory_format", FORMATS, ids=named)
@pytest.mark.parametrize("change", few(FLAT, 2))
@pytest.mark.parametrize("case", CASES)
def test_maps_that_hardly_vary(case, change, memory_format):
    if case.startswith("ECA") and change == "far":
        pytest.skip("the sigmoid of a sum of thousands is nothing, or all")
    for training in (False, True) if case in NORMALISED else (True,):
        module, x = made(case, training=training)
        x = FLAT[change](draw(2, x.shape[1], 40, 40)).contiguous(memory_format=memory_format)
        check(module, x, "native")


@pytest.mark.parametrize(
    ("program", "numels", "message"),
    [
        ([9, 0, 0, 0], [], "unknown pool"),
        ([0, 7, 0, 0], [], "unknown product"),
        ([0, 0, 0], [], "a program is four numbers"),
        ([0, 0, 0, 0, 0, 4], [64, 4], "the steps do not lead to what the product takes"),
        ([0, 0, 0, 0, 3, 4], [4], "an odd convolution takes one column"),
        ([0, 0, 0, 0, 3, 3], [4], "the parameters do not fit the program"),
        ([4, 3, 0, 0, 5, 3], [16, 16], "the groups must divide the channels"),
        ([2, 4, 4, 0, 13, 1], [32, 1, 1, 1, 1], "kernel sizes must be odd"),
        ([0, 3, 0, 0], [], "the steps do not lead to what the product takes"),
        ([0, 0, 0, 0, 99, 1], [], "unknown step"),
    ],
)
def test_a_plan_refuses_what_does_not_fit(program, numels, message):
    numbers = [0.0] * max(len(program) // 2 - 1, 1)
    with pytest.raises(ValueError, match=message):
        loader.extension().GatesPlan(2, 16, 5, 6, program, numbers, numels, 0, 0, False)
