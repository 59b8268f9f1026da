"""What LGA's compiled CPU path alone has: instruction sets, threads that share and split samples."""

import pytest
import torch

import fastattn
from tests.helpers import FORMATS, ISAS, draw, few, named, randomize, run
from tests.lga.test_module import check_draws

pytestmark = [pytest.mark.usefixtures("native"), pytest.mark.cpu]


@pytest.mark.parametrize("isa", ISAS, indirect=True)
@pytest.mark.parametrize("memory_format", few(FORMATS), ids=named)
@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        ("default", torch.float32),
        ("default", torch.bfloat16),
        ("default", torch.float16),
        ("two heads of twelve", torch.float32),
        ("five heads of three", torch.float32),
        ("heads not divisible by three", torch.float32),
        ("one row", torch.float32),
        ("released", torch.float32),
    ],
    ids=named,
)
def test_lga_on_every_instruction_set(case, dtype, memory_format, isa):
    check_draws(4, case, dtype=dtype, memory_format=memory_format)


@pytest.mark.parametrize("threads", few([3, 2, 5]))
@pytest.mark.parametrize("batch", few([1, 5, 2, 3], 2))
@pytest.mark.parametrize("options", [{}, {"contraction": "released"}], ids=str)
def test_lgas_threads_share_samples_and_split_them(options, batch, threads):
    module, x = randomize(fastattn.LocalGlobalAttention(40, 5, **options)), draw(batch, 40, 15, 16)
    alone = run(module, x, torch.ones_like(x), "native")
    torch.set_num_threads(threads)
    together = run(module, x, torch.ones_like(x), "native")
    again = run(module, x, torch.ones_like(x), "native")
    for name, tensor in alone.items():
        scale = float(tensor.abs().max())
        torch.testing.assert_close(together[name], tensor, rtol=0, atol=1e-4 * scale)
        assert torch.equal(together[name], again[name]), name
