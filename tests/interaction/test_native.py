"""What the CPU paths of ACP and CAT alone have: instruction sets, threads, the composition without the extension."""

import pytest
import torch

import fastattn
from fastattn.interaction import operation as interaction
from tests.helpers import DTYPES, FORMATS, ISAS, draw, few, named, run
from tests.interaction.test_module import ACP, BOTH, CAT, make_acp, make_both, make_cat
from tests.interaction.test_module import check as check_interaction

pytestmark = [pytest.mark.usefixtures("native"), pytest.mark.cpu]


@pytest.mark.parametrize("isa", ISAS, indirect=True)
@pytest.mark.parametrize("dtype", DTYPES, ids=named)
@pytest.mark.parametrize("case", ["default", "odd height and width", "windows of 3, overhanging", "larger"])
def test_acp_on_every_instruction_set(case, dtype, isa):
    for memory_format in FORMATS:
        check_interaction(*make_acp(case, dtype, memory_format))


@pytest.mark.parametrize("isa", ISAS, indirect=True)
@pytest.mark.parametrize("dtype", DTYPES, ids=named)
@pytest.mark.parametrize("case", CAT)
def test_cat_on_every_instruction_set(case, dtype, isa):
    check_interaction(*make_cat(case, dtype))


@pytest.mark.parametrize("threads", few([3, 2, 5]))
@pytest.mark.parametrize("batch", few([1, 5, 2, 3], 2))
@pytest.mark.parametrize("aggregate", ["concat", "sum"])
def test_acps_and_cats_threads_share_samples_and_split_them(aggregate, batch, threads):
    map_, tokens = draw(batch, 40, 23, 16), draw(batch, 700, 40, 1).squeeze(3)
    modules = fastattn.AggressiveConvPooling(40, aggregate=aggregate), fastattn.ConceptualAttention(40, 21)
    for module, x in zip(modules, (map_, tokens), strict=True):
        alone = run(module, x, torch.ones_like(x), "native")
        torch.set_num_threads(threads)
        together, again = (run(module, x, torch.ones_like(x), "native") for _ in range(2))
        torch.set_num_threads(1)
        for name, tensor in alone.items():
            torch.testing.assert_close(together[name], tensor, rtol=0, atol=1e-5 * float(tensor.abs().max()))
            assert torch.equal(together[name], again[name]), name


@pytest.mark.parametrize(
    ("make_case", "case"),
    [*((make_acp, case) for case in ACP), *((make_cat, case) for case in CAT), *((make_both, case) for case in BOTH)],
)
def test_interaction_without_the_extension(make_case, case, monkeypatch):
    monkeypatch.setattr(interaction, "_has_extension", lambda backend: False)
    check_interaction(*make_case(case))
