"""What the documents name exists, the architecture's tables are those of the tree, and the README is one page."""

import re
import tomllib
from operator import attrgetter
from pathlib import Path

import pytest
import torch

import fastattn

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("fastattn", "kernels", "csrc", "benchmarks", "tests", "docs", "examples", "findings", "reports")
PAGES = sorted({*ROOT.glob("*.md"), *(page for folder in FOLDERS[:-1] for page in (ROOT / folder).rglob("*.md"))})
PAGES.append(ROOT / "reports" / "example" / "report.md")  # the others there are everybody's own
MADE = ("benchmarks/results/latest.json",)  # by a command that the document names
ADDED = {"gate", "name"}  # what recipes call a folder that their reader adds
# by column
HOUSES = {"Python": "fastattn", "native": "csrc/cpu", "triton": "kernels", "cuda": "csrc/cuda", "tests": "tests"}
FAST = {"native", "triton", "cuda"}
SHARED = {"kernels/common", "csrc/cuda/host"}
MODULES = [
    f"{prefix}{name}"
    for prefix, house in (("", fastattn), ("zoo.", fastattn.zoo))
    for name, known in vars(house).items()
    if isinstance(known, type)
]


def plain(page: Path) -> str:
    """Return a page without its code."""
    return re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Return what a link may point to in a page: its headings, as they are made into addresses."""
    headings = re.findall(r"^#+ (.+)$", plain(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def tables(page: str) -> list[list[dict[str, str]]]:
    """Return the tables of a page of docs/, each as rows by column."""
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", (ROOT / "docs" / page).read_text(encoding="utf-8"), flags=re.MULTILINE):
        head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines())
        found.append([dict(zip(head, row, strict=True)) for row in rows])
    return found


def named(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    missing = []
    for target in re.findall(r"\]\(([^)\s]+)\)", plain(page)):
        path, _, anchor = target.partition("#")
        if path.startswith(("http://", "https://")):
            continue
        found = page.parent / path if path else page
        if not found.exists() or (anchor and anchor not in anchors(found)):
            missing.append(target)
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_files_that_are_named_exist(page: Path) -> None:
    """A path from the root, in text or in a command; one with <placeholders> is none."""
    paths = re.findall(rf"(?<![\w/.<-])(?:{'|'.join(FOLDERS)})/[\w./<>*-]*[\w>*]", page.read_text(encoding="utf-8"))
    paths = {path for path in paths if not set("<>*") & set(path) and not ADDED & set(path.split("/"))}
    assert not {path for path in paths - {*MADE} if not (ROOT / path).exists()}


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize("house", HOUSES)
def test_every_family_has_its_row(house: str) -> None:
    folder = HOUSES[house]
    shown = {path for row in tables("architecture.md")[0] for path in named(row[house])}
    known = {path.parent.name for path in (ROOT / "fastattn").glob("*/module.py")} - {"core"}
    if house in FAST:  # whose folders are one for each operation
        known = {path.name for path in (ROOT / folder).iterdir() if path.is_dir() and path.name[0] not in "._"}
    assert shown == {f"{folder}/{name}" for name in known} - SHARED


def test_every_folder_of_the_package_has_its_row() -> None:
    modules, others, *_ = tables("architecture.md")
    shown = {path for row in modules for path in named(row["Python"])}
    shown |= {path for row in others for path in named(row["folder"])}
    packages = {path.parent for path in (ROOT / "fastattn").glob("*/__init__.py") if not path.parent.is_symlink()}
    packages -= {ROOT / "fastattn" / "kernels"}
    assert {path.relative_to(ROOT).as_posix() for path in packages} <= shown


def test_every_module_has_its_row() -> None:
    rows = tables("architecture.md")[0]
    shown = {named(row["module"])[0]: named(row["operation"])[0] for row in rows}
    assert shown == {name: str(attrgetter(name)(fastattn).operation) for name in MODULES}


EXAMPLES = {
    "CFSAM": (lambda: fastattn.CFSAM([8], dim=32, num_heads=2), (1, 8, 4, 4)),
    "LocalGlobalAttention": (lambda: fastattn.LocalGlobalAttention(16, num_heads=2), (1, 16, 8, 8)),
    "ConceptualAttention": (lambda: fastattn.ConceptualAttention(16), (1, 9, 16)),
    "EnhancedInteraction": (lambda: fastattn.EnhancedInteraction(16), (1, 16, 16)),
    "zoo.FcaLayer": (lambda: fastattn.zoo.FcaLayer(16, 8, 8), (1, 16, 8, 8)),
}


@pytest.mark.parametrize("name", MODULES)
def test_a_module_is_served_by_the_backends_of_its_row(name: str, native) -> None:
    make, shape = EXAMPLES.get(name, (lambda: attrgetter(name)(fastattn)(16), (1, 16, 8, 8)))
    x = torch.empty(shape)
    lines = fastattn.explain(make(), [x] if name == "CFSAM" else x).splitlines()
    found = dict(line.strip().split(": ", 1) for line in lines[1:])
    not_here = "triton serves GPUs, and under TRITON_INTERPRET=1 the CPU for tests", "cuda serves NVIDIA GPUs"
    can = {"can serve", *(f"x is on cpu; {why}" for why in not_here)}
    serving = {backend for backend, said in found.items() if said in can}
    row = next(row for row in tables("architecture.md")[0] if named(row["module"]) == [name])
    assert serving == {column for column, cell in row.items() if cell != "-"} & FAST | {"reference"}


def test_every_backend_has_its_row() -> None:
    shown = {named(row["name"])[0] for row in tables("backends.md")[0]}
    assert set(fastattn.available_backends()) <= shown
    with pytest.raises(ValueError, match="unknown backend") as raised:
        fastattn.set_backend("unknown")
    assert shown <= {*str(raised.value).partition("one of ")[2].split(", ")}


def test_what_the_documents_install_is_there() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    used = re.findall(r'"\.\[(\w+)\]"', (ROOT / "README.md").read_text(encoding="utf-8"))
    assert used
    assert set(used) <= set(extras)


def test_the_targets_that_are_named_exist() -> None:
    known = set(re.findall(r"[\w-]+", (ROOT / "Makefile").read_text(encoding="utf-8")))
    used = [re.findall(r"(?:`|^)make ([\w-]+)", page.read_text(encoding="utf-8"), flags=re.MULTILINE) for page in PAGES]
    assert not set().union(*used) - known
