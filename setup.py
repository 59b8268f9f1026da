"""Packages and the compiled extension; everything declarative is in pyproject.toml.

Environment: FASTATTN_REQUIRE_NATIVE=1 makes a failing build an error instead of a warning; FASTATTN_PURE_PYTHON=1
builds no extension; CMAKE_ARGS adds arguments to CMake's configuration; CMAKE_BUILD_PARALLEL_LEVEL limits the compile
jobs; SOURCE_DATE_EPOCH is the time that files in the archives get.
"""

import gzip
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.sdist import sdist

ROOT = Path(__file__).resolve().parent
# One extension serves every Python from 3.11 on, except free-threaded ones, which have no stable ABI before 3.15.
STABLE_ABI = not sysconfig.get_config_var("Py_GIL_DISABLED")


def wanted(variable: str) -> bool:
    return os.environ.get(variable, "0") not in ("", "0")


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
            if wanted("FASTATTN_REQUIRE_NATIVE"):
                raise SystemExit(f"fastattn: the build failed (FASTATTN_REQUIRE_NATIVE): {error}") from error
            self.warn_pure_python(error, target.name)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(built, target)

    def compile(self, filename: str) -> Path:
        if not (ROOT / "csrc" / "CMakeLists.txt").is_file():
            raise NativeBuildError("csrc/CMakeLists.txt is missing")
        cmake, ninja = find_tool("cmake"), find_tool("ninja")
        # One folder for every kind of install and Python, so that a second build compiles only what changed.
        build = ROOT / "build" / f"native-{self.plat_name}"
        output = build / "out"
        # The tools of an isolated build lie in a folder that is gone next time; the cache would remember it.
        (build / "CMakeCache.txt").unlink(missing_ok=True)
        configure = [
            *(cmake, "-S", str(ROOT / "csrc"), "-B", str(build), "-G", "Ninja"),
            f"-DCMAKE_MAKE_PROGRAM={ninja}",
            f"-DCMAKE_BUILD_TYPE={'Debug' if self.debug else 'Release'}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={output}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DPython_INCLUDE_DIR={sysconfig.get_path('include')}",  # which is not looked for in cross compilation
            f"-DFASTATTN_STABLE_ABI={'ON' if STABLE_ABI else 'OFF'}",
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
                if STABLE_ABI:  # what was built for one version alone would be found before it
                    for old in place.parent.glob("_native.cpython-*"):
                        old.unlink()


class Sdist(sdist):
    """A source archive that depends on nothing but its files: the same bytes whoever makes it, and when."""

    def make_archive(self, base_name: str, format: str, root_dir=None, base_dir=None, owner=None, group=None) -> str:
        epoch = int(os.environ.get("SOURCE_DATE_EPOCH", "315532800"))  # as ZIP files begin: 1980

        def same(entry: tarfile.TarInfo) -> tarfile.TarInfo:
            entry.mtime, entry.uid, entry.gid, entry.uname, entry.gname = epoch, 0, 0, "", ""
            entry.mode = 0o755 if entry.isdir() or entry.mode & 0o100 else 0o644
            return entry

        path = f"{base_name}.tar.gz"
        with (
            open(path, "wb") as file,
            gzip.GzipFile("", "wb", mtime=epoch, fileobj=file) as packed,
            tarfile.open(fileobj=packed, mode="w") as archive,
        ):
            archive.add(base_dir, filter=same)  # in the order of names
        return path


setup(
    packages=[
        *find_packages(include=["fastattn", "fastattn.*"]),
        *("fastattn.kernels" + f".{name}".rstrip(".") for name in ["", *find_packages("kernels")]),
        "fastattn.csrc",  # for `python -m fastattn build-ops`, and what NVRTC compiles
    ],
    package_dir={"fastattn.kernels": "kernels", "fastattn.csrc": "csrc"},
    package_data={
        "fastattn": ["py.typed"],
        "fastattn.csrc": ["CMakeLists.txt", "**/*.h", "**/*.cpp", "**/*.inc", "**/*.cu", "**/*.cuh"],
        "fastattn.report": ["page.html", "page.css", "page.js", "papers.json"],
    },
    ext_modules=(
        []
        if wanted("FASTATTN_PURE_PYTHON")
        else [Extension("fastattn._native", sources=[], optional=True, py_limited_api=STABLE_ABI)]
    ),
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if STABLE_ABI else {},
    cmdclass={"build_ext": CMakeBuild, "sdist": Sdist},
)
