"""`python -m fastattn build-ops`: fastattn's operators as a library for C++, which runs exported models without Python.

It stands on torch's stable ABI: one build serves torch 2.10 and newer.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

PACKAGE = Path(__file__).resolve().parent
TORCH = Path(torch.__file__).resolve().parent


class BuildError(Exception):
    """The library cannot be built here; the message says what is missing or went wrong."""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m fastattn build-ops",
        description="Build fastattn's operators as a library for C++ programs; a C++17 compiler and CMake are needed.",
    )
    made.add_argument("-o", "--output", type=Path, default=Path(), metavar="DIR", help="default: the current folder")
    return made


def build(output: Path) -> Path:
    """Build the library into a folder and return its path; BuildError."""
    sources = find_sources()
    if not (TORCH / "include/torch/csrc/stable/library.h").is_file():
        raise BuildError(f"torch {torch.__version__} in {TORCH} has no headers: torch/csrc/stable/library.h")
    cmake = find_tool("cmake")
    if cmake is None:
        raise BuildError("cmake was not found: pip install cmake")
    with build_folder(sources) as folder:
        build, made = Path(folder), Path(folder) / "out"
        (build / "CMakeCache.txt").unlink(missing_ok=True)  # it would remember tools that are gone
        configure = [
            *(cmake, "-S", str(sources), "-B", str(build)),
            *("-DCMAKE_BUILD_TYPE=Release", f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={made}"),
            *("-DFASTATTN_PYTHON=OFF", f"-DFASTATTN_TORCH={TORCH}"),
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        ]
        if ninja := find_tool("ninja"):
            configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        run("CMake's configuration", configure)
        jobs = [] if "CMAKE_BUILD_PARALLEL_LEVEL" in os.environ else ["-j", str(os.cpu_count() or 1)]
        run("the compilation", [cmake, "--build", str(build), "--target", "fastattn_ops", *jobs])
        (library,) = made.glob("*fastattn_ops.*")
        output.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy2(library, output))


def find_sources() -> Path:
    """Return the folder of the C++ sources, of an installed package or of a checkout."""
    for folder in (PACKAGE / "csrc", PACKAGE.parent / "csrc"):
        if (folder / "CMakeLists.txt").is_file():
            return folder
    raise BuildError(f"no C++ sources beside {PACKAGE}")


def build_folder(sources: Path) -> AbstractContextManager[Path | str]:
    """Return where to build: in a checkout where setup.py does, which has compiled the same kernels."""
    if sources.parent == PACKAGE:
        return tempfile.TemporaryDirectory()
    return nullcontext(PACKAGE.parent / "build" / f"native-{sysconfig.get_platform()}")


def find_tool(name: str) -> str | None:
    return shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)


def run(what: str, command: Sequence[str]) -> None:
    print("+", shlex.join(command), flush=True)
    try:
        subprocess.run(command, check=True)
    except subprocess.CalledProcessError as error:
        raise BuildError(f"{what} ended with status {error.returncode}, see above") from error


def main(argv: Sequence[str]) -> int:
    """Run the command line; 0 on success, 1 where the library cannot be built here."""
    options = parser().parse_args(argv)
    try:
        library = build(options.output)
    except (BuildError, OSError) as error:
        print(f"python -m fastattn build-ops: {error}", file=sys.stderr)
        return 1
    print(f"Written: {library.resolve()}")
    return 0
