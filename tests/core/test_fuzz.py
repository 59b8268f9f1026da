"""The fuzzer: some seconds of it, and that it finds what is wrong."""

import itertools
import json
import os
import shlex

import pytest

from tests.fuzz import cases, runner
from tests.fuzz.faults import FAULTS
from tests.helpers import FULL

SECONDS = float(os.environ.get("FASTATTN_FUZZ_SECONDS") or (60 if FULL else 5))
PLAIN = {"order": [0, 1, 2, 3], "step": [1] * 4, "pad": [0] * 4, "offset": 0, "expand": []}
CASE = {
    "module": "SCSA",
    "options": {"dim": 16},
    "shapes": [[2, 16, 9, 11]],
    "dtype": "float32",
    "param_dtype": "float32",
    "autocast": None,
    "values": "normal",
    "weights": "normal",
    "layouts": [PLAIN],
    "grad_layouts": [PLAIN],
    "param_layout": "dense",
    "guard": "end",
    "grad": "all",
    "threads": 1,
    "isa": "avx2",
    "seed": 0,
}
# what is found of each, where tensors end at a forbidden page
FOUND = {
    "wrong input gradient": "grad_x",
    "wrong parameter gradient": "v.weight",
    "wrong element": "out",
    "not a number": "not finite in out",
    "unsteady": "out, run again",
    "writes beyond": "SIGSEGV",
    "writes before": "written beside a tensor",
    "reads beyond": "SIGSEGV",
    "changes its input": "input 0 was written to",
    "crashes": "SIGSEGV",
    "wrong error": "error",
    "refuses": "error",
}


@pytest.fixture(scope="module")
def child():
    with runner.Child() as child:
        yield child


def whats(answer):
    """Return what an answer finds, in short."""
    return [failure["what"] for failure in answer.get("failures", ())] or [*answer.values()]


@pytest.mark.cpu
@pytest.mark.usefixtures("native")
def test_calls_that_nobody_chose_end_no_process(capfd):
    """Numbers that are further off than allowed are printed, and are no failure of this test."""
    runner.fuzz(SECONDS, seed=2026)
    lines = capfd.readouterr().out.splitlines()
    _, tried, _, _, crashes = lines[-1].split()
    assert int(tried) > 0
    assert int(crashes) == 0, [line for line in lines if "crash" in line]


@pytest.mark.cpu
@pytest.mark.usefixtures("native")
def test_a_right_call_is_right(child):
    for guard in (None, "end", "start"):
        assert child.judge(CASE | {"guard": guard}) == {"failures": []}


@pytest.mark.cpu
@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(child, fault):
    answer = child.judge(CASE | {"plant": fault})
    found = whats(answer)
    assert any(what.startswith(FOUND[fault]) for what in found), answer
    assert child.judge(CASE) == {"failures": []}, "the next call is judged anew"


@pytest.mark.cpu
@pytest.mark.usefixtures("native")
@pytest.mark.parametrize(
    ("fault", "found"), [("writes beyond", "written beside a tensor"), ("writes before", "SIGSEGV")]
)
def test_a_fault_is_found_where_tensors_start_behind_a_forbidden_page(child, fault, found):
    assert any(what.startswith(found) for what in whats(child.judge(CASE | {"plant": fault, "guard": "start"})))


@pytest.mark.cpu
@pytest.mark.usefixtures("native")
def test_a_failure_is_a_line_that_runs_it_again(monkeypatch, capfd):
    """After a crash the next call is judged in a new process."""
    wrong = [CASE | {"plant": fault} for fault in ("crashes", "wrong error")]
    script = itertools.chain(wrong, itertools.repeat(CASE))
    monkeypatch.setattr(cases, "draw", lambda *_: next(script))
    monkeypatch.setattr(runner.time, "monotonic", itertools.count().__next__)
    assert not runner.fuzz(3)
    *lines, header, scsa, total = capfd.readouterr().out.splitlines()
    assert header.split() == ["module", "tried", "refused", "failures", "crashes"]
    assert scsa.split() == ["SCSA", "3", "0", "1", "1"]
    assert total.split() == ["all", "3", "0", "1", "1"]
    assert len(lines) == 2
    for case, line in zip(wrong, lines, strict=True):
        command, _, _ = line.partition("}': ")
        assert json.loads(shlex.split(command + "}'")[-1]) == case
    assert not runner.replay(wrong[1])
    assert runner.replay(CASE)


def test_draws_are_the_same_for_a_seed_and_reach_everything():
    drawn = [cases.draw(0, index) for index in range(600)]
    assert drawn == json.loads(json.dumps([cases.draw(0, index) for index in range(600)]))
    assert drawn != [cases.draw(1, index) for index in range(600)]
    for key, wanted in {
        "module": cases.DRAWS,
        "dtype": cases.DTYPES,
        "autocast": (None, "bfloat16", "float16"),
        "values": cases.VALUES,
        "guard": (None, "end", "start"),
        "grad": ("all", "x", "parameters", "some", "none", "inference"),
        "threads": (1, 2, 5),
        "isa": cases.LEVELS,
    }.items():
        assert {case[key] for case in drawn} >= {*wanted}, key
    assert {case["shapes"][0][0] for case in drawn} >= {0, 1, 2, 3, 4, 5}
    assert any(layout["expand"] for case in drawn for layout in case["layouts"])
