"""The wheels as a repository for Hugging Face's `kernels`, which loads it with `get_local_kernel`."""

import json
import re
import shutil
import zipfile
from collections.abc import Iterable
from pathlib import Path

TORCH = "211"  # from which on: the extension knows nothing of torch


def variants(wheel: str) -> dict[str, str]:
    """Return the variants that a wheel becomes, and their backends."""
    if machine := re.search(r"abi3-manylinux\w*?_(x86_64|aarch64)\.whl$", wheel):
        return {f"torch-stable-abi{TORCH}-cpu-{machine[1]}-linux": "cpu"}
    return {"torch-cuda": "cuda", "torch-cpu": "cpu"} if "none-any" in wheel else {}


def build(wheels: Iterable[Path], repository: Path) -> None:
    """Unpack the wheels as variants of a new repository."""
    shutil.rmtree(repository, ignore_errors=True)
    for wheel in wheels:
        version = wheel.name.split("-")[1]
        for name, backend in variants(wheel.name).items():
            folder = repository / "build" / name
            with zipfile.ZipFile(wheel) as packed:
                files = [file for file in packed.namelist() if file.startswith("fastattn/")]
                packed.extractall(folder, files)
            shutil.copy(Path(__file__).with_name("entry.py"), folder / "__init__.py")
            metadata = {
                "id": re.sub(r"\W", "_", f"fastattn_{version}_{name}"),
                "name": "fastattn",
                "version": int(version.split(".")[0]),
                "license": "MIT",
                "python-depends": [],
                "backend": {"type": backend},
            }
            (folder / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n")
