"""The workflows call the project's own commands, which are there."""

import re
from pathlib import Path

import pytest

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([a-z][a-z -]*):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_there_are_workflows():
    assert {path.stem for path in WORKFLOWS} == {"tests", "release", "benchmarks"}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_they_call_what_make_has(path):
    jobs = yaml.safe_load(path.read_text())["jobs"]
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    called = [words.split()[1] for words in commands if words.startswith("make ")]
    assert called
    assert set(called) <= {name for names in TARGETS for name in names.split()}


def test_the_issue_form_names_the_command_there_is():
    from fastattn.__main__ import USAGE

    command = re.search(r"python -m fastattn info --[a-z-]+", (ROOT / ".github/ISSUE_TEMPLATE/bug.md").read_text())[0]
    assert command.split()[-1] in USAGE
