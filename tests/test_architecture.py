"""The import graph of the architecture, read from the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fpbench

PACKAGE = Path(fpbench.__file__).parent
FREE = {"errors", "findings", "text", "registry", "data", "hub", "micro"}  # what everybody may import
MAY_IMPORT = {
    "errors": set(),
    "findings": set(),
    "text": set(),
    "registry": set(),
    "micro": set(),
    "data": set(),
    "hub": set(),
    "fingerprints": {"models"},
    "models": set(),
    "methods": {"fingerprints", "models"},
    "modifications": {"fingerprints", "models"},
    "metrics": {"fingerprints", "models"},
    "ownership": {"fingerprints", "models"},
    "runs": {"fingerprints", "models", "methods", "modifications", "metrics", "ownership", "board"},
    "board": {"metrics", "modifications", "ownership", "runs", "fingerprints"},
    "contract": {"fingerprints", "models", "methods", "metrics", "runs"},
    "submissions": {
        "fingerprints",
        "models",
        "methods",
        "metrics",
        "runs",
        "board",
        "contract",
    },
    "verbs": {
        "fingerprints",
        "models",
        "methods",
        "modifications",
        "metrics",
        "ownership",
        "runs",
        "board",
        "contract",
        "submissions",
    },
}


def imports(path: Path) -> set[tuple[str, bool]]:
    """Names of fpbench's parts that a file imports, and whether it does so at the top level."""
    found = set()
    tree = ast.parse(path.read_text())
    top = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the graph"
            names = [f"{node.module}.{alias.name}" if node.module == "fpbench" else node.module for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "fpbench" and len(parts) > 1:
                found.add((parts[1], id(node) in top))
    return found


def files_of(part: str) -> list[Path]:
    single = PACKAGE / f"{part}.py"
    return [single] if single.exists() else sorted((PACKAGE / part).rglob("*.py"))


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_each_part_imports_only_what_it_may(part):
    for path in files_of(part):
        for other, _ in imports(path):
            allowed = MAY_IMPORT[part] | FREE | {part}
            assert other in allowed or not (PACKAGE / other).exists() and not (PACKAGE / f"{other}.py").exists(), (
                f"{path.relative_to(PACKAGE)} imports fpbench.{other}; {part} may import {sorted(allowed)}"
            )


def test_the_graph_names_every_part():
    parts = {path.name for path in PACKAGE.iterdir() if path.is_dir() and list(path.glob("*.py"))}
    assert parts <= MAY_IMPORT.keys()


FRONT = [PACKAGE / "cli.py", PACKAGE / "__init__.py", PACKAGE / "__main__.py", *files_of("verbs")]


@pytest.mark.parametrize("path", FRONT, ids=lambda path: path.stem)
def test_the_front_imports_inside_functions(path):
    top = {part for part, top in imports(path) if top}
    assert top <= {"errors", "__version__", "cli", "verbs"}


@pytest.mark.parametrize("module", ["fpbench", "fpbench.cli", "fpbench.board.tables", "fpbench.runs.plan"])
def test_the_light_modules_do_not_load_torch(module):
    code = f"import sys, {module}; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
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


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_file_holds_more_than_one_idea(path):
    assert len(path.read_text().splitlines()) <= 350
