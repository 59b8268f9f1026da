"""Triton kernels compiled for a GPU that is not here: `python -m benchmarks.precompile --arch 90 -o FILE`.

Every row of `benchmarks.gpu_first` that launches kernels is run on the stand-in driver, with the versions of Python,
torch and Triton of this process: a GPU's Triton finds them if it has the same.
"""

import argparse
import json
import os
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

FOLDER = Path("build/triton-90")
MOST = 40 << 20  # bytes of an archive
KEPT = (".cubin", ".json", ".so")  # what a launch reads of Triton's cache


def pack(folder: Path, archive: Path) -> int:
    """Archive a cache folder without what a launch does not read; return the archive's bytes."""
    with tarfile.open(archive, "w:gz") as tar:
        for path in sorted(folder.glob("*/*")):
            if path.suffix in KEPT:
                tar.add(path, path.relative_to(folder))
    return archive.stat().st_size


def unpack(archive: Path, folder: Path) -> Path:
    """Lay out an archive as a cache folder, whose entries name each other by their whole paths; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    for group in folder.glob("*/__grp__*"):
        paths = json.loads(group.read_text())["child_paths"]
        here = {name: str(group.with_name(name)) for name in paths if group.with_name(name).exists()}
        group.write_text(json.dumps({"child_paths": here}))
    return folder


def works() -> dict[str, Callable[[], Any]]:
    """What is launched, by the row's name."""
    from fastattn.bench.sizes import CONTIGUOUS

    from .gpu_first.rows import OVERLAPPED, contests, rows

    found: dict[str, Callable[[], Any]] = {}
    for row in rows("right"):
        if row.task == "right" and "backend" not in row.arguments:  # Triton's
            found[row.name] = partial(launch_module, **row.arguments)
    for name in contests():
        found[name] = partial(launch_contest, name)
    for row in rows("fast"):
        if row.task == "overlapped":
            found[row.name] = partial(launch_overlapping, launch_contest, row.arguments["contest"])
    for name in OVERLAPPED:
        found[f"overlapped {name}"] = partial(launch_overlapping, launch_module, name, "bfloat16", CONTIGUOUS)
    return found


def launch_overlapping(launch: Callable[..., None], *arguments: str) -> None:
    """The same as launches that overlap, which the CPU's tensors of the stand-in driver never ask for."""
    from .gpu_first.overlap import overlapping

    with overlapping(lambda kernel, device: True):
        launch(*arguments)


def launch_module(module: str, dtype: str, layout: str) -> None:
    from .gpu_first.right import build, run
    from .gpu_first.rows import DTYPES

    run(*build(module, DTYPES[dtype], layout), "triton")


def launch_contest(name: str) -> None:
    """One call of a contest's work; of a network each of its attentions, whose sizes repeat."""
    import fastattn
    from fastattn.bench.scene import setting

    from .gpu_first.rows import contests
    from .suites import SUITES
    from .suites.models import ModelCase

    case: Any = contests()[name]
    if isinstance(case, ModelCase):
        launch_model(case)
        return
    suite = SUITES[case.suite]
    assert suite.scene is not None
    scene = suite.scene(case)
    with setting(case.work, "triton"), fastattn.use_backend("triton"):
        scene.call(suite.forward(scene, "triton"))()


def launch_model(case: Any) -> None:
    """The attentions of a network on maps of its sizes, found by a forward pass of one image."""
    import torch

    import fastattn
    from fastattn import models
    from fastattn.bench.sizes import MEMORY_FORMATS

    model = models.create(case.model, attention=case.attention).eval()
    found: dict[tuple[int, ...], Any] = {}

    def note(module: Any, inputs: Any) -> None:
        found[tuple(inputs[0].shape[1:])] = module

    handles = [m.register_forward_pre_hook(note) for m in model.modules() if isinstance(m, fastattn.SCSA)]
    with torch.no_grad():
        with fastattn.use_backend("reference"):
            model(torch.zeros(1, 3, case.side, case.side))
        for handle in handles:
            handle.remove()
        for shape, module in found.items():
            x = torch.zeros((case.batch, *shape), dtype=case.dtype)
            with fastattn.use_backend("triton"):
                module.to(case.dtype)(x.contiguous(memory_format=MEMORY_FORMATS[case.memory_format]))


def compile_some(names: Sequence[str], arch: int, folder: str) -> dict[str, Any]:
    """Launch these rows on the stand-in driver; hits, misses and launches by row, or what went wrong."""
    os.environ |= {"TRITON_CACHE_DIR": folder, "TRITON_STORE_BINARY_ONLY": "1"}
    import torch

    from .gpu_first import standin

    torch.set_num_threads(1)
    all_works = works()
    found: dict[str, Any] = {}
    with standin.driver(arch) as counts:
        for name in names:
            counts.clear()
            began = time.perf_counter()
            try:
                all_works[name]()
                found[name] = dict(counts)
            except Exception as error:  # noted, and the others compiled
                found[name] = {"failed": f"{type(error).__name__}: {error}"[:300]}
            print(f"{time.perf_counter() - began:6.1f} s {name}: {found[name]}", flush=True)
    return found


def parts(names: Sequence[str], count: int) -> Iterator[Sequence[str]]:
    """Runs of neighbours, which share kernels."""
    size = -(-len(names) // count)
    return (names[i : i + size] for i in range(0, len(names), size))


def main(arguments: Sequence[str]) -> int:
    """Compile, pack, and say how many kernels were found; 1 where a row failed or the archive is too large."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.precompile", description=__doc__)
    parser.add_argument("--arch", type=int, default=90, help="compute capability (default: 90)")
    parser.add_argument("--folder", type=Path, default=FOLDER, help=f"Triton's cache (default: {FOLDER})")
    parser.add_argument("-o", "--output", type=Path, help="the archive (default: build/precompiled-sm<arch>.tar.gz)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--only", nargs="+", default=[""], help="rows whose name holds one of these")
    options = parser.parse_args(arguments)
    output = options.output or Path(f"build/precompiled-sm{options.arch}.tar.gz")
    output.parent.mkdir(parents=True, exist_ok=True)
    names = [name for name in works() if any(part in name for part in options.only)]
    found: dict[str, Any] = {}
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        work = partial(compile_some, arch=options.arch, folder=str(options.folder.resolve()))
        for some in pool.map(work, parts(names, 4 * options.jobs)):
            found |= some
    size = pack(options.folder, output)
    total = sum((Counter({k: v for k, v in one.items() if k != "failed"}) for one in found.values()), Counter())
    failed = [name for name, one in found.items() if "failed" in one]
    print(f"{total['launch']} launches, {total['hit']} kernels found, {total['miss']} compiled; "
          f"{size / 2**20:.1f} MiB in {output}; {len(failed)} rows failed: {failed}")  # fmt: skip
    return int(bool(failed) or size > MOST)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
