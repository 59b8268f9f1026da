"""Packages and the compiled extension; everything declarative is in pyproject.toml.

Environment: FASTATTN_REQUIRE_NATIVE=1 makes a failing build an error instead of a warning; CMAKE_ARGS adds
arguments to CMake's configuration; CMAKE_BUILD_PARALLEL_LEVEL limits the compile jobs.
"""

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class NativeBuildError(Exception):
    """The extension cannot be built here; the message says what is missing or went wrong."""


def find_tool(name: str) -> str:
    # PATH first: an isolated build puts its own tools there. Then beside the interpreter.
    found = shutil.which(name) or shutil.which(name, path=sysconfig.get_path("scripts"))
    if found is None:
        raise NativeBuildError(f"{name} was not found")
    return found


def run(what: str, command: list[str]) -> None:
    print("+", shlex.join(command), flush=True)
    try:
        subprocess.run(command, check=True)
    except subprocess.CalledProcessError as error:
        raise NativeBuildError(f"{what} ended with status {error.returncode}, see above") from error
    except OSError as error:
        raise NativeBuildError(f"{what} did not start: {error}") from error


class CMakeBuild(build_ext):
    """Builds csrc/ with CMake and Ninja; where that fails the package is installed as pure Python."""

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.unlink(missing_ok=True)  # in the build folder: an old one must not stand in for a failure
        try:
            built = self.compile(target.name)
        except NativeBuildError as error:
            if os.environ.get("FASTATTN_REQUIRE_NATIVE", "0") not in ("", "0"):
                raise SystemExit(f"fastattn: the build failed (FASTATTN_REQUIRE_NATIVE): {error}") from error
            self.warn_pure_python(error, target.name)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(built, target)

    def compile(self, filename: str) -> Path:
        if not (ROOT / "csrc" / "CMakeLists.txt").is_file():
            raise NativeBuildError("csrc/CMakeLists.txt is missing")
        if importlib.util.find_spec("pybind11") is None:
            raise NativeBuildError("pybind11 was not found")
        import pybind11

        cmake, ninja = find_tool("cmake"), find_tool("ninja")
        # One folder for every kind of install, so that a second build compiles only what changed.
        build = ROOT / "build" / f"native-{sys.implementation.cache_tag}-{self.plat_name}"
        output = build / "out"
        # The tools of an isolated build lie in a folder that is gone next time; the cache would remember it.
        (build / "CMakeCache.txt").unlink(missing_ok=True)
        configure = [
            *(cmake, "-S", str(ROOT / "csrc"), "-B", str(build), "-G", "Ninja"),
            f"-DCMAKE_MAKE_PROGRAM={ninja}",
            f"-DCMAKE_BUILD_TYPE={'Debug' if self.debug else 'Release'}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={output}",
            "-DPYBIND11_FINDPYTHON=ON",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DPython3_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        ]
        run("CMake's configuration", configure)
        run("the compilation", [cmake, "--build", str(build), "--target", "_native"])
        if not (output / filename).is_file():
            raise NativeBuildError(f"the build made no {filename} in {output}")
        return output / filename

    def warn_pure_python(self, error: NativeBuildError, filename: str) -> None:
        lines = [
            f"fastattn: the compiled extension was not built: {error}",
            "fastattn: installing pure Python: everything works, on PyTorch's own operators, but slower.",
            "fastattn: the extension needs a C++17 compiler and Python's headers.",
            "fastattn: FASTATTN_REQUIRE_NATIVE=1 makes this an error.",
        ]
        present = ROOT / "fastattn" / filename
        if self.editable_mode and present.is_file():
            lines.append(f"fastattn: an earlier build is left in place: {present}")
        print("\n".join(f"WARNING: {line}" for line in lines), file=sys.stderr, flush=True)

    def copy_extensions_to_source(self) -> None:
        # Replaced in one step: a process that has the old file mapped keeps it, and nobody sees half a file.
        for ext in self.extensions:
            filename = self.get_ext_filename(ext.name)
            if (built := Path(self.build_lib) / filename).is_file():
                place = ROOT / filename
                partial = place.with_name(place.name + ".partial")
                shutil.copy2(built, partial)
                os.replace(partial, place)


setup(
    packages=[
        *find_packages(include=["fastattn", "fastattn.*"]),
        *("fastattn.kernels" + f".{name}".rstrip(".") for name in ["", *find_packages("kernels")]),
        "fastattn.csrc",  # for `python -m fastattn build-ops`
    ],
    package_dir={"fastattn.kernels": "kernels", "fastattn.csrc": "csrc"},
    package_data={
        "fastattn": ["py.typed"],
        "fastattn.csrc": ["CMakeLists.txt", "**/*.h", "**/*.cpp", "**/*.inc"],
        "fastattn.report": ["page.html", "page.css", "page.js", "papers.json"],
    },
    ext_modules=[Extension("fastattn._native", sources=[], optional=True)],
    cmdclass={"build_ext": CMakeBuild},
)
