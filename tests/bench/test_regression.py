"""The benchmark job's verdict: lost speed fails, another machine or a slower day does not."""

import json

import pytest

from benchmarks import regression
from tests.report.cases import benchmark, result_of


@pytest.fixture
def verdict(tmp_path):
    """Return a function: the exit status for native's gain over eager, before and now, and another CPU or not."""

    def judge(before, now, slowdown=1.0, cpu="Some CPU"):
        paths = []
        for name, gain, factor in (("old", before, 1.0), ("new", now, slowdown)):
            members = [
                benchmark("eager", 10 * factor, {"native": 1 / gain}),
                benchmark("native", 10 * factor / gain, {"eager": gain}),
            ]
            result = result_of(members)
            if name == "new":
                result["machine_info"]["cpu"] = cpu
            paths.append(tmp_path / f"{name}.json")
            paths[-1].write_text(json.dumps(result))
        return regression.main([*map(str, paths)])

    return judge


@pytest.mark.parametrize(("now", "status"), [(10.0, 0), (9.1, 0), (8.9, 1), (20.0, 0)])
def test_a_tenth_may_be_lost(verdict, capsys, now, status):
    assert verdict(10.0, now) == status
    assert f"module: {now / 10:.2f}" in capsys.readouterr().out


def test_a_slower_day_is_no_regression(verdict):
    assert verdict(10.0, 10.0, slowdown=3.0) == 0


def test_another_machine_is_not_compared(verdict, capsys):
    assert verdict(10.0, 1.0, cpu="Another CPU") == 0
    assert "another machine" in capsys.readouterr().out
