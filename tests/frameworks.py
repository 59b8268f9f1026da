"""README's table of other people's software, from the tests that run here: `python -m tests.frameworks --write`.

Rows of what is not installed stay as they are, so that several environments fill the table in turn.
"""

import re
import sys
from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- frameworks: begin -->\n", "<!-- frameworks: end -->"
HEAD = "| package | version | tried |\n| --- | --- | --- |\n"
EXPORT, DETECTORS = "tests/export/test_export.py", "tests/models/test_detectors.py"
BACKBONES = "tests/integrations/test_backbones.py::test_it_trains_and_its_checkpoint_loads"
# by the name on the package index
TESTS = {
    "timm": ["tests/integrations/test_timm.py"],
    "torchvision": [f"{DETECTORS}::test_a_step_of_training_and_a_detection"],
    "ultralytics": ["tests/integrations/test_ultralytics.py"],
    "mmengine": ["tests/integrations/test_openmmlab.py"],
    "segmentation-models-pytorch": [f"{BACKBONES}[unet]"],
    "transformers": [f"{BACKBONES}[resnet]"],
    "onnxruntime": [f"{EXPORT}::test_onnx"],
    "openvino": [f"{EXPORT}::test_openvino"],
    "torchao": ["tests/export/test_quantisation.py"],
    "grad-cam": [
        "tests/export/test_counters.py::test_grad_cam_on_a_stage_and_on_a_child",
        "tests/test_explain_model.py::test_the_command_writes_pictures_of_a_plain_network_and_one_with_attention",
    ],
}


class Outcomes:
    """What pytest reports: by test, how many of its cases passed and failed."""

    def __init__(self) -> None:
        self.passed: Counter[str] = Counter()
        self.failed: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.append(report.nodeid)
        elif report.when == "call" and report.passed:
            name = report.nodeid.partition("::")[2].partition("[")[0]
            self.passed[name.removeprefix("test_").replace("_", " ")] += 1


def row(package: str) -> str | None:
    """Return a package's row, or None where it is not installed; RuntimeError where a test fails."""
    try:
        found = version(package)
    except PackageNotFoundError:
        return None
    outcomes = Outcomes()
    pytest.main(["-q", "--full", "-p", "no:cacheprovider", *TESTS[package]], plugins=[outcomes])
    if outcomes.failed or not outcomes.passed:
        raise RuntimeError(f"{package} {found}: failed: {', '.join(outcomes.failed) or 'nothing ran'}")
    tried = (f"{name} ({count} cases)" if count > 1 else name for name, count in outcomes.passed.items())
    return f"| {package} | {found} | {'; '.join(tried)} |"


def main() -> None:
    page = ROOT / "README.md"
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    table, _, after = rest.partition(END)
    rows = {line.split("|")[1].strip(): line for line in table.splitlines() if re.match(r"\| [\w-]+ \| \d", line)}
    rows |= {package: made for package in TESTS if (made := row(package))}
    table = HEAD + "".join(f"{rows[package]}\n" for package in TESTS if package in rows)
    print(table)
    if "--write" in sys.argv:
        page.write_text(f"{before}{BEGIN}{table}{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
