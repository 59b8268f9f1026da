"""What an install holds: every module of the tree, what reports are made of, and that the package is typed."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def files(folder: Path) -> set[str]:
    """Return the files of a package below its folder, without what Python and builds leave there."""
    found = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(folder).as_posix() for path in found if path.suffix not in (".so", ".pyd")}


def test_an_install_holds_every_file_of_the_package(tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    build = [sys.executable, "setup.py", "--quiet", "build_py", "--build-lib", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    installed = files(tmp_path / "fastattn")
    sources = {
        f"csrc/{name}" for name in files(ROOT / "csrc") if Path(name).suffix != ".md" and Path(name).name[0] != "."
    }
    assert installed == files(ROOT / "fastattn") | {f"kernels/{name}" for name in files(ROOT / "kernels")} | sources
    assert "py.typed" in installed
