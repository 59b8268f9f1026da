"""The last lines of a test run, with tests that fail."""

import re

import pytest

FAILING = """
import pytest, torch
from tests.helpers import assert_accurate, assert_close

@pytest.mark.parametrize("case", ["odd height"])
def test_numbers(case):
    exact = {"out": torch.ones(4, dtype=torch.float64), "grad_x": torch.ones(4, dtype=torch.float64)}
    eager = {name: tensor.float() for name, tensor in exact.items()}
    assert_accurate({"out": 1.001 * eager["out"], "grad_x": 1.1 * eager["grad_x"]}, exact, eager)

def test_kernels():
    assert_close({"y": torch.full((4,), 1.01)}, {"y": torch.ones(4)}, 1e-5)

def test_torchs_own():
    torch.testing.assert_close(torch.full((4,), 1.5), torch.ones(4))

@pytest.fixture
def broken():
    raise RuntimeError("no such file")

def test_error(broken): pass

def test_passes(): pass
"""
LINES = [
    r"test_it\.py::test_error: RuntimeError: no such file",
    r"test_it\.py::test_numbers\[odd height\]: AssertionError: grad_x: error 1\.00e-01, allowed 1\.00e-05, "
    r"eager's 0\.00e\+00; out: error 1\.00e-03, allowed 1\.00e-05, eager's 0\.00e\+00",
    r"test_it\.py::test_kernels: AssertionError: y: error 1\.00e-02, allowed 1\.00e-05( .*)?",
    r"test_it\.py::test_torchs_own: AssertionError: Tensor-likes are not close! .*"
    r"Greatest absolute difference: 0\.5 at index \(0,\) \(up to 1e-05 allowed\) .*",
]


def test_a_failure_is_one_line_with_its_case_its_error_and_what_was_allowed(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    pytester.makeconftest("from tests.summary import pytest_terminal_summary")
    pytester.makepyfile(test_it=FAILING)
    done = pytester.runpytest_inprocess("-p", "no:cacheprovider", "-rs")
    done.assert_outcomes(failed=3, errors=1, passed=1)
    lines = done.outlines[next(i for i, line in enumerate(done.outlines) if "failures, one by one" in line) + 1 :]
    for pattern, line in zip(LINES, lines, strict=False):
        assert re.fullmatch(pattern, line), line
    assert "3 failed" in lines[len(LINES)]  # and nothing between
