"""Machine code of the CUDA C++ sources: NVRTC compiles it when it is first asked for, and a folder keeps it.

`cuda.bindings`, which torch's CUDA builds bring along with NVRTC, is imported with the first question. No driver and no
GPU are needed, and no header of CUDA's, of which NVRTC finds none: the sources include each other alone.
"""

import functools
import hashlib
import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from importlib import metadata
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parents[1]
Definitions = tuple[tuple[str, str], ...]  # macros: name, value


@functools.cache
def missing() -> list[str]:
    """Return what is missing to compile kernels, and what to install."""
    try:
        from cuda.bindings import nvrtc  # noqa: F401
    except ImportError as error:
        return [f"cuda-bindings does not load ({error}): pip install cuda-bindings, of torch's CUDA version"]
    try:
        version()
    except Exception as error:  # whatever its loader raises is its cause
        said = str(error).strip().partition("\n")[0]
        return [f"NVRTC does not load ({said}): pip install nvidia-cuda-nvrtc, of torch's CUDA version"]
    try:
        sources()
    except FileNotFoundError as error:
        return [str(error)]
    return []


@functools.cache
def version() -> tuple[int, int]:
    """Return NVRTC's version."""
    from cuda.bindings import nvrtc

    return tuple(_done(nvrtc.nvrtcVersion()))


@functools.cache
def package_version() -> str:
    """Return the version of the package that NVRTC came in, which tells its patches apart; "" where none is known."""
    for name in ("nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12"):
        with suppress(PackageNotFoundError):
            return metadata.version(name)
    return ""


@functools.cache
def newest() -> int:
    """Return the newest compute capability that NVRTC compiles for."""
    from cuda.bindings import nvrtc

    _, count = nvrtc.nvrtcGetNumSupportedArchs()
    return max(_done(nvrtc.nvrtcGetSupportedArchs())[:count])


@functools.cache
def sources() -> Path:
    """Return the folder of the CUDA sources, of an installed package or of a checkout; FileNotFoundError."""
    for folder in (PACKAGE / "csrc" / "cuda", PACKAGE.parent / "csrc" / "cuda"):
        if folder.is_dir():
            return folder
    raise FileNotFoundError("fastattn was installed without its CUDA sources")


def architecture(capability: int) -> str:
    """Return what a GPU is compiled for: from 9.0 on with what that architecture alone has."""
    return f"sm_{capability}{'a' if capability >= 90 else ''}"


@functools.cache
def cubin(source: str, definitions: Definitions, arch: str) -> bytes:
    """Return the machine code of a source, from disk where it is kept there; RuntimeError with NVRTC's words."""
    folder = cache_folder()
    if folder is None:
        return compiled(source, definitions, arch)
    file = folder / f"{_key(source, definitions, arch)}.cubin"
    code = _read(file)
    if code is None:
        code = compiled(source, definitions, arch)
        _keep(file, code)
    return code


def compiled(source: str, definitions: Definitions, arch: str) -> bytes:
    """Return what NVRTC makes of a source; RuntimeError with its words."""
    from cuda.bindings import nvrtc

    file = sources() / source
    options = [
        f"--gpu-architecture={arch}",
        "--std=c++17",
        f"--include-path={file.parent}",
        f"--include-path={sources()}",
        *(f"--define-macro={name}={value}" for name, value in definitions),
    ]
    program = _done(nvrtc.nvrtcCreateProgram(file.read_bytes(), source.encode(), 0, [], []))
    try:
        code, *_ = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
        if code != 0:
            log = bytearray(_done(nvrtc.nvrtcGetProgramLogSize(program)))
            _done(nvrtc.nvrtcGetProgramLog(program, log))
            said = log.rstrip(b"\0").decode(errors="replace").strip()
            raise RuntimeError(f"{code.name} in {source} for {arch}:\n{said}")
        made = bytearray(_done(nvrtc.nvrtcGetCUBINSize(program)))
        _done(nvrtc.nvrtcGetCUBIN(program, made))
        return bytes(made)
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _done(answer: Sequence[Any]) -> Any:
    """Return what a function of NVRTC gives; RuntimeError with the error's name."""
    code, *values = answer
    if code != 0:
        raise RuntimeError(code.name)
    return values[0] if len(values) == 1 else values


def cache_folder() -> Path | None:
    """Return where machine code is kept: FASTATTN_CACHE_DIR, or fastattn in the user's cache; None without a home."""
    if named := os.environ.get("FASTATTN_CACHE_DIR"):
        return Path(named)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastattn"
    except RuntimeError:
        return None


def _key(source: str, definitions: Definitions, arch: str) -> str:
    facts = source, definitions, arch, version(), package_version(), _digest_of_sources()
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:32]


def _digest_of_sources() -> str:
    """Return a digest of all sources: whichever includes which."""
    found = hashlib.sha256()
    for file in sorted(sources().rglob("*.cu*")):
        content = file.read_bytes()
        found.update(f"{file.relative_to(sources()).as_posix()} {len(content)}\n".encode() + content)
    return found.hexdigest()


def _read(file: Path) -> bytes | None:
    """Return the machine code of a file, if it is there and whole: a digest goes before it."""
    try:
        content = file.read_bytes()
    except OSError:
        return None
    digest, code = content[:32], content[32:]
    return code if digest == hashlib.sha256(code).digest() else None


def _keep(file: Path, code: bytes) -> None:
    """Write a file in one step, so that others find all of it or none; where that cannot be, do without."""
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent) as folder:
            part = Path(folder, file.name)
            part.write_bytes(hashlib.sha256(code).digest() + code)
            part.replace(file)
