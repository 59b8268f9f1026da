"""A whole training on small images, by the reference and by the fast path: do the losses follow the same curve?"""

from collections.abc import Iterator

import pytest
import torch

from fastattn.bench.contest import fast_backends

from .shapes import SELECTION
from .suites.convergence import ATTENTIONS, BATCH, EPOCHS, train

pytest.importorskip("sklearn")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """What tiny tensors are fastest on."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("attention", "backend"),
    [(name, backend) for name in ATTENTIONS for backend in ("reference", *fast_backends(name, "cpu"))],
)
def test_convergence(attention, backend, request, benchmark) -> None:
    epochs = 1 if request.config.stash[SELECTION] == "smoke" else EPOCHS
    training = benchmark.pedantic(train, (attention, backend), {"epochs": epochs}, rounds=1)
    facts = {"operation": attention, "backend": backend, "shape": [BATCH, 1, 8, 8]}
    benchmark.extra_info.update(suite="convergence", **facts, **training._asdict())
