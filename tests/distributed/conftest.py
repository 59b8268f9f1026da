"""Groups of processes, which all tests of a world size share."""

import pytest
import torch

from tests.helpers import DEVICE

from .processes import Processes


def _processes(world):
    if DEVICE != "cpu" or not torch.distributed.is_available():
        pytest.skip("gloo's processes compute on the CPU")
    found = Processes(world)
    yield found
    found.close()


@pytest.fixture(scope="session")
def two():
    """Return a group of two processes."""
    yield from _processes(2)


@pytest.fixture(scope="session")
def four():
    """Return a group of four processes."""
    yield from _processes(4)


@pytest.fixture(params=[2, pytest.param(4, marks=pytest.mark.full)])
def processes(request):
    """Return a group of two processes, and of four in a full run."""
    return request.getfixturevalue("two" if request.param == 2 else "four")
