"""A test of the fast path that is not marked triton would never meet Triton's interpreter, and nobody would notice."""

import ast
from pathlib import Path

import pytest

FIXTURES = {"fast", "backend"}  # of conftest.py: what they return depends on who computes
HELPERS = {"FAST", "thin"}
KERNELS = ("fastattn.kernels", "benchmarks.traffic")
FOLDER = Path(__file__).parents[1]
FILES = sorted(FOLDER.rglob("test_*.py"))


def named(tree: ast.AST, name: str) -> list[ast.Call]:
    """The calls of what has this name, of a module or not."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [call for call in calls if name in (getattr(call.func, "attr", None), getattr(call.func, "id", None))]


def strings(nodes: list[ast.expr]) -> set[str]:
    return {part.value for node in nodes for part in ast.walk(node) if isinstance(part, ast.Constant)}


def marked(nodes: list[ast.expr]) -> bool:
    """Whether pytest.mark.triton is among decorators, or in what pytestmark is set to."""
    return any(ast.unparse(part) == "pytest.mark.triton" for node in nodes for part in ast.walk(node))


def fixtures(tree: ast.AST) -> set[str]:
    """Those of the fast path that are asked for, by a test or a fixture that does not parametrize the name itself."""
    found = strings([argument for call in named(tree, "usefixtures") for argument in call.args])
    found |= strings([argument for call in named(tree, "getfixturevalue") for argument in call.args])
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            own = strings([call.args[0] for mark in function.decorator_list for call in named(mark, "parametrize")])
            own = {name.strip() for names in own for name in names.split(",")}
            found |= {argument.arg for argument in function.args.args} - own
    return found & FIXTURES


def unmarked(source: str) -> list[str]:
    """What in a test module needs the marker and has none."""
    tree = ast.parse(source)
    assigned = [node for node in tree.body if isinstance(node, ast.Assign)]
    if marked([node.value for node in assigned if ast.unparse(node.targets[0]) == "pytestmark"]):
        return []
    tests = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test")]
    without = [test.name for test in tests if fixtures(test) and not marked(test.decorator_list)]
    if any(marked(test.decorator_list) for test in tests):
        return without
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    kernels = [node.module for node in imports if (node.module or "").startswith(KERNELS)]
    return without + kernels + [name.name for node in imports for name in node.names if name.name in HELPERS]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(FOLDER)))
def test_the_fast_path_is_interpreted(file: Path) -> None:
    missing = unmarked(file.read_text(encoding="utf-8"))
    assert not missing, f"{file.name} uses {', '.join(missing)}: mark it, or the tests, pytest.mark.triton"


@pytest.mark.parametrize(
    ("source", "missing"),
    [
        pytest.param("def test_a(fast): pass", ["test_a"], id="fixture"),
        pytest.param("def test_a(backend): pass\n@pytest.mark.triton\ndef test_b(fast): pass", ["test_a"], id="one"),
        pytest.param("@pytest.mark.usefixtures('fast')\ndef test_a(): pass", ["test_a"], id="usefixtures"),
        pytest.param("def test_a(request): request.getfixturevalue('fast')", ["test_a"], id="asked for inside"),
        pytest.param("from .helpers import FAST", ["FAST"], id="helper"),
        pytest.param("from fastattn.kernels import scsa", ["fastattn.kernels"], id="kernels"),
        pytest.param("from fastattn.kernels.common import maps", ["fastattn.kernels.common"], id="launch"),
        pytest.param("pytestmark = [pytest.mark.triton]\ndef test_a(fast): pass", [], id="module"),
        pytest.param("pytestmark = pytest.mark.cpu\ndef test_a(fast): pass", ["test_a"], id="another marker"),
        pytest.param("@pytest.mark.parametrize('a, backend', [])\ndef test_a(a, backend): pass", [], id="its own"),
    ],
)
def test_what_needs_the_marker(source: str, missing: list[str]) -> None:
    assert unmarked(source) == missing
