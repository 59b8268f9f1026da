"""What an issue is told: everything about the software, nothing about whose machine it is."""

import getpass
import platform
from pathlib import Path

import pytest
import torch

import fastattn
from fastattn import __main__ as command
from fastattn import bug_report
from fastattn.core import native

pytestmark = pytest.mark.cpu


@pytest.fixture
def text(capsys, monkeypatch):
    monkeypatch.setenv("FASTATTN_GOLDENS", "/home/alice/secret project/goldens")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    cause = "/home/alice/env/lib/python3.12/site-packages/fastattn/_native.abi3.so: undefined symbol: omp_get_x"
    monkeypatch.setattr(native, "status", lambda: ("failed to load", f"ImportError: {cause}"))
    assert command.main(["info", "--bug-report"]) == 0
    return capsys.readouterr().out


def test_it_says_what_runs(text):
    assert text.startswith("```\nfastattn")
    for known in (fastattn.__version__, torch.__version__, platform.python_version(), "OpenMP: lib", "cpu: "):
        assert known in text
    assert "ImportError: _native.abi3.so: undefined symbol: omp_get_x" in text


def test_it_says_nothing_private(text):
    for private in ("alice", "secret", "hunter2", platform.node(), str(Path.home()), str(Path(torch.__file__).parent)):
        assert private not in text
    assert getpass.getuser() not in text.split()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a/b of /usr/lib/x.so, C:\\Users\\Bob\\y.pyd", "a/b of x.so, y.pyd"),
        ("4 MB/s, 1 / 2", "4 MB/s, 1 / 2"),
    ],
)
def test_folders_are_cut_off(line, expected):
    assert bug_report.without_folders(line) == expected
