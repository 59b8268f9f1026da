"""make dist-test: the archives in dist/ as their users meet them, on the interpreter that runs this.

The wheel is installed into a fresh environment that sees this one's torch and pytest, without a compiler, and some of
the tests run on it outside of the tree. The wheel without the extension must compute, and say what is missing. From the
source archive alone, without network and git, the wheel is built again: the same bytes.
"""

import argparse
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"
REPOSITORY = ROOT / "build" / "kernel"
LARGEST = 5e6  # bytes
OLDEST_GLIBC = 28  # 2.28, that every wheel serves
TESTS = ("tests/core/test_goldens.py", "tests/core/test_threads.py", "tests/interaction/test_native.py")


def examine(wheel: Path) -> None:
    """Assert that a wheel is small, says which Linux it serves, and holds its licence, its extension and the kernels'
    sources, and nobody else's library."""
    names = zipfile.ZipFile(wheel).namelist()
    assert wheel.stat().st_size < LARGEST, wheel.stat().st_size
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    libraries = [name for name in names if ".so" in Path(name).suffixes or ".libs/" in name]
    assert len(libraries) == (0 if "none-any" in wheel.name else 1), libraries
    kernels = {f"fastattn/{source.relative_to(ROOT)}" for source in (ROOT / "csrc").rglob("*.cu*")}
    assert kernels <= {*names}, kernels - {*names}
    if "linux" in wheel.name:
        glibc = re.search(r"manylinux_2_(\d+)_", wheel.name)
        assert glibc, f"{wheel.name} serves the Linux that it was built on alone"
        assert int(glibc[1]) <= OLDEST_GLIBC, wheel.name


class Environment:
    """A fresh environment, which sees what this interpreter has installed but fastattn."""

    def __init__(self, folder: Path):
        self.folder = folder
        subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
        (site,) = (folder / "venv").glob("[Ll]ib/**/site-packages")
        (site / "base.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
        self.bin = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")

    def python(self, *arguments: str | Path, **environment: str) -> str:
        # no compiler on PATH
        env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "FASTATTN_CPU_ISA")}
        command = [str(self.bin / "python"), *map(str, arguments)]
        done = subprocess.run(
            command, cwd=self.folder, env=env | {"PATH": str(self.bin)} | environment, capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
        return done.stdout

    def install(self, what: Path) -> float:
        """Install a wheel and return the processor's time: a busy machine does not count."""
        before = os.times()
        # the environment that is seen may have fastattn itself
        self.python("-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--ignore-installed", what)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system


def check_wheel(folder: Path, wheel: Path) -> None:
    """Install the wheel of this machine, and run some of the tests on it."""
    environment = Environment(folder)
    seconds = environment.install(wheel)
    place = environment.python("-c", "import fastattn; print(fastattn.__file__)")
    assert Path(place).is_relative_to(environment.folder), place
    for name in ("tests", "benchmarks", "conftest.py", "pyproject.toml"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    print(environment.python("-m", "fastattn", "info"))
    tests = environment.python("-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS, FASTATTN_REQUIRE_NATIVE="1")
    print(tests)
    print(f"installed in {seconds:.1f} s of the processor; users are promised five")


def check_pythons(folder: Path, wheel: Path) -> None:
    """Call the extension from every Python that is on the path: the same bits."""
    extension = zipfile.ZipFile(wheel).extract("fastattn/_native.abi3.so", folder)
    env = os.environ | {"LD_LIBRARY_PATH": str(Path(torch.__file__).parent / "lib")}  # its OpenMP
    found = {}
    for python in ("python3.11", "python3.12", "python3.13", "python3.14", "python3.15", sys.executable):
        starts = [python, "-c", ""]  # a version manager's may not
        if shutil.which(python) and subprocess.run(starts, capture_output=True).returncode == 0:
            call = [python, ROOT / "wheels" / "bare.py", extension]
            found[python] = subprocess.run(call, env=env, check=True, capture_output=True, text=True).stdout
            print(python, found[python], end="")
    assert len(set(found.values())) == 1, found


def check_pure(folder: Path, wheel: Path) -> None:
    """Install the wheel without the extension: it computes, and says what is missing."""
    environment = Environment(folder)
    environment.install(wheel)
    lines = environment.python("-m", "fastattn", "info")
    assert "extension  not built" in lines, lines
    environment.python("-c", "import torch, fastattn; fastattn.SCSA(8)(torch.ones(1, 8, 7, 7)).sum().backward()")


def check_kernel(folder: Path, repository: Path) -> None:
    """Load the kernel repository where fastattn is not installed, and put its layers on modules."""
    environment = Environment(folder)
    for variant in sorted((repository / "build").iterdir()):
        if "linux" not in variant.name or f"-{platform.machine()}-" in variant.name:
            print(environment.python(ROOT / "wheels" / "kernel" / "use.py", variant))


def check_rebuild(folder: Path, archive: Path, wheel: Path) -> None:
    """Build the wheel from the source archive alone and compare it with the one that there is."""
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    (tree,) = folder.iterdir()
    env = os.environ | {"PIP_NO_INDEX": "1", "GIT_DIR": str(folder / "none")}
    env.pop("SOURCE_DATE_EPOCH", None)
    subprocess.run([sys.executable, tree / "wheels" / "build.py", "native"], cwd=tree, env=env, check=True)
    assert (tree / "dist" / wheel.name).read_bytes() == wheel.read_bytes(), "another build gave other bytes"


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheels", action="store_true", help="leave out the source archive, which takes minutes")
    only_wheels = parser.parse_args(argv).wheels
    wheels = sorted(DIST.glob("*.whl"))
    if not wheels:
        parser.error("there is no wheel in dist/: make dist")
    for wheel in wheels:
        examine(wheel)
    native = [wheel for wheel in wheels if f"_{platform.machine()}." in wheel.name]
    pure = [wheel for wheel in wheels if "none-any" in wheel.name]
    checks = [*((check_wheel, wheel) for wheel in native), *((check_pure, wheel) for wheel in pure)]
    checks += [(check_pythons, wheel) for wheel in native if "-abi3-" in wheel.name]
    if REPOSITORY.exists() and importlib.util.find_spec("kernels"):
        checks.append((check_kernel, REPOSITORY))
    if not only_wheels:
        checks += [(check_rebuild, archive, wheel) for archive in DIST.glob("*.tar.gz") for wheel in native]
    for check, *files in checks:
        with tempfile.TemporaryDirectory() as folder:
            check(Path(folder), *files)
        print(f"{check.__name__}: {', '.join(file.name for file in files)}: as it should be")


if __name__ == "__main__":
    main(sys.argv[1:])
