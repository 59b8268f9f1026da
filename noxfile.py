"""The test matrix: a part of the tests on other versions of Python and torch, instruction sets and numbers of threads.

make test-matrix runs every cell whose Python is there, make test-matrix CELLS=oldest one; nox --list lists them. Each
has an environment of its own in .nox, with its own torch: 3 GB and more where that is a build for CUDA. After make dist
the wheels are tested in each as well, in a fresh environment.
"""

import os
from pathlib import Path
from typing import NamedTuple

import nox


class Cell(NamedTuple):
    """What one environment has, and what its tests run with."""

    python: str
    requirements: tuple[str, ...]
    isa: str
    threads: int


# Not each with each: every value once
CELLS = {
    "oldest": Cell("3.11", ("torch==2.11.*", "numpy<2.4"), "baseline", 1),  # whose Triton, 3.6, needs that NumPy
    "middle": Cell("3.12", ("torch==2.14.1",), "avx2", 2),
    "newest": Cell("3.13", ("torch",), "avx512", 5),
}
NATIVE = ["tests/scsa", "tests/core/test_goldens.py", "tests/lga/test_native.py", "tests/interaction/test_native.py"]
INTERPRETED = ["tests/interaction/test_kernels.py"]

nox.options.reuse_venv = "yes"
nox.options.error_on_missing_interpreters = False


def run(session: nox.Session, cell: Cell) -> None:
    env = {"FASTATTN_CPU_ISA": cell.isa, "FASTATTN_TEST_THREADS": str(cell.threads), "FASTATTN_REQUIRE_NATIVE": "1"}
    session.install("--editable", ".[test]", *cell.requirements, env=env)
    session.run("python", "-m", "fastattn", "info", env=env)
    levels = "from fastattn.core import native; print(*native.extension().isa_levels())"
    if cell.isa not in session.run("python", "-c", levels, silent=True).split():
        session.skip(f"this CPU has no {cell.isa}")
    processes = max(1, (os.cpu_count() or 1) // cell.threads)
    pytest = ("python", "-m", "pytest", "--numprocesses", str(processes), "--dist", "loadgroup")
    session.run(*pytest, *NATIVE, *session.posargs, env=env)
    session.run(*pytest, *INTERPRETED, *session.posargs, env=env | {"TRITON_INTERPRET": "1"})
    if any(Path("dist").glob("*.whl")):  # make dist
        session.run("python", "wheels/check.py", "--wheels")


for name, cell in CELLS.items():

    def session(session: nox.Session, cell: Cell = cell) -> None:
        run(session, cell)

    session.__doc__ = f"Python {cell.python}, {', '.join(cell.requirements)}, {cell.isa}, threads: {cell.threads}"
    nox.session(session, name=name, python=cell.python)
