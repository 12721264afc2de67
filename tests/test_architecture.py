"""The import graph of the architecture, read from the source: one direction between folders, no circle of files."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import fpbench

PACKAGE = Path(fpbench.__file__).parent
# From the top to the ground: each folder or file of the top level imports only what stands below it. What shares a line
# may import its neighbours, as long as no files form a circle.
ORDER = (
    ("__main__",),
    ("cli",),
    ("verbs",),
    ("submissions",),
    ("ownership", "contract"),
    ("runs",),
    ("board",),
    ("methods", "metrics", "modifications", "adversaries"),
    ("fingerprints",),
    ("scoring",),
    ("models",),
    ("records", "data"),
    ("hub", "http", "micro"),
    ("registry", "checks", "text"),
    ("errors",),
)
LEVEL = {part: number for number, parts in enumerate(ORDER) for part in parts}
INDEPENDENT = ("methods", "metrics", "modifications")  # of one level, and of no use to each other
FRONT = ("cli", "__init__", "__main__", "verbs")  # what answers --help, and imports the rest when it is needed


def modules(package: Path) -> dict[str, Path]:
    """Every module below a package by its dotted name, which begins with that of the package."""
    named = {}
    for path in sorted(package.rglob("*.py")):
        parts = [package.name, *path.relative_to(package).with_suffix("").parts]
        named[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return named


def imported(path: Path, known: dict[str, Path], top_only: bool = False) -> set[str]:
    """The modules among ``known`` that a file imports, anywhere in it or at its top level alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()
    for node in tree.body if top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the graph"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in known else str(node.module) for name in names}
    return found & known.keys()


def graph(package: Path = PACKAGE) -> dict[str, set[str]]:
    """What every module imports of its package; its own folder's ``__init__`` and the package itself left out."""
    known = modules(package)
    return {
        name: {other for other in imported(path, known) if other not in (name, package.name)}
        for name, path in known.items()
    }


def part(module: str) -> str:
    """The folder or file of the top level that a module belongs to."""
    return module.split(".")[1]


def circle(edges: dict[str, set[str]]) -> list[str] | None:
    """Modules that import each other in a circle, if any do."""
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        return list(error.args[1])
    return None


def upward(edges: dict[str, set[str]]) -> list[str]:
    """Imports that lead upwards, or from one independent folder to another."""
    return [
        f"{module} imports {other}"
        for module, others in edges.items()
        for other in others
        if "." in module and part(module) != part(other)
        if LEVEL[part(other)] < LEVEL[part(module)] or (part(module) in INDEPENDENT and part(other) in INDEPENDENT)
    ]


def test_no_files_import_each_other_in_a_circle():
    assert circle(graph()) is None


def test_no_folder_imports_what_stands_above_it():
    assert upward(graph()) == []


def test_the_order_names_every_part():
    parts = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or list(path.glob("*.py"))}
    assert parts - {"__init__"} == LEVEL.keys()


def test_a_circle_or_an_upward_import_would_be_found(tmp_path):
    package = tmp_path / "fpbench"
    for name, line in {
        "models/weights": "from fpbench.models import layout",
        "models/layout": "def f():\n    from fpbench.models.weights import g",
        "scoring/engine": "from fpbench.runs.bench import Bench",
        "runs/bench": "",
    }.items():
        path = package / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(line)
    found = graph(package)
    assert set(circle(found) or ()) == {"fpbench.models.weights", "fpbench.models.layout"}
    assert upward(found) == ["fpbench.scoring.engine imports fpbench.runs.bench"]


def test_the_front_imports_inside_functions():
    known = modules(PACKAGE)
    for module, path in known.items():
        if module == "fpbench" or part(module) in FRONT:
            tops = {part(other) for other in imported(path, known, top_only=True) if "." in other}
            assert tops <= {"errors", "cli", "verbs"}, path


@pytest.mark.parametrize("module", ["fpbench", "fpbench.cli", "fpbench.board.tables", "fpbench.runs.api"])
def test_the_light_modules_do_not_load_torch(module):
    code = f"import sys, {module}; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_precedes_the_options_does_not_load_the_hub_s_client():
    """It reads once, when it is imported, whether it may go online (``--offline``)."""
    code = "import sys, fpbench.cli, fpbench.submissions.discovery; assert 'huggingface_hub' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_help_does_not_load_torch():
    code = "import sys; from fpbench.cli import parser; parser().format_help(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_resolves():
    assert set(fpbench._WHERE) == set(fpbench.__all__)
    for name in fpbench.__all__:
        assert getattr(fpbench, name).__module__.startswith("fpbench"), name
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        fpbench.nonsense  # noqa: B018
