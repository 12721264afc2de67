"""Methods and modifications of an installed package are found by entry points: a real package, really installed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch import launch
from tests.runs.grids import write_tiny

PROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "somebody-elses-methods"
version = "1.2"

[project.entry-points."fpbench.methods"]
elsewhere = "somebody_elsewhere:Elsewhere"
broken = "somebody_elsewhere.broken:Broken"

[project.entry-points."fpbench.modifications"]
halved = "somebody_elsewhere.halved:Halved"

[tool.hatch.build.targets.wheel]
packages = ["somebody_elsewhere"]
"""
METHOD = """\
import fpbench

class Elsewhere(fpbench.FingerprintMethod):
    version = "1"
    hyperparameters = {"small": {"scale": 2.0}}

    class Config(fpbench.MethodConfig):
        scale: float = 1.5

    def inject(self, model, tokenizer, fingerprints, context):
        import torch
        with torch.no_grad():
            model.get_parameter("model.norm.weight").mul_(self.config.scale)
"""
MODIFICATION = """\
from fpbench.modifications.base import Modification, Modified

class Halved(Modification):
    def apply(self, model, tokenizer, context):
        import torch
        with torch.no_grad():
            model.get_parameter("model.norm.weight").mul_(0.5)
        return Modified(model, {"relative_change": 0.5})
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Builds the package and installs it into a folder, in which it is found."""
    folder = tmp_path_factory.mktemp("package")
    (folder / "pyproject.toml").write_text(PROJECT)
    (folder / "somebody_elsewhere").mkdir()
    (folder / "somebody_elsewhere" / "__init__.py").write_text(METHOD)
    (folder / "somebody_elsewhere" / "broken.py").write_text("import nothing_of_this_name\n")
    (folder / "somebody_elsewhere" / "halved.py").write_text(MODIFICATION)
    target = folder / "site"
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*install, "--target", str(target), str(folder)], check=True, capture_output=True)
    return target


def fpbench(site: Path, cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return launch("fpbench", *words, cwd=cwd, path=(str(site),))


def test_it_is_listed(installed: Path, tmp_path: Path) -> None:
    done = fpbench(installed, tmp_path, "list")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    names = [line.split()[0] for line in lines]
    assert names.index("mcedit_r") < names.index("broken") < names.index("elsewhere") < names.index("modifications:")
    assert names.index("modifications:") < names.index("halved") < names.index("adversaries:")
    # One that cannot be imported is listed as that, and hides no other.
    assert (
        "cannot be imported (ModuleNotFoundError: No module named 'nothing_of_this_name')"
        in lines[names.index("broken")]
    )


def test_its_modification_is_a_condition(installed: Path, tmp_path: Path) -> None:
    profile = write_tiny(tmp_path / "tiny.toml", ("origin",))
    words = ("evaluate", "micro", "--fingerprints", "nlf", "--condition", "halved", "--out", "x")
    done = fpbench(installed, tmp_path, *words, "--profile", str(profile))
    assert done.returncode == 0, done.stderr
    (record,) = (tmp_path / "x" / "records").rglob("halved/fsr.json")
    assert json.loads(record.read_text())["proof"]["modification"] == {"relative_change": 0.5}


def test_it_injects_with_the_hyperparameters_that_it_declares(installed: Path, tmp_path: Path) -> None:
    done = fpbench(
        installed, tmp_path, "inject", "micro", "--method", "elsewhere", "--fingerprints", "nlf", "--out", "x"
    )
    assert done.returncode == 0, done.stderr
    assert "elsewhere injected nlf" in done.stdout and "by 100.00% of their norm" in done.stdout


def test_its_name_is_taken(installed: Path, tmp_path: Path) -> None:
    done = fpbench(installed, tmp_path, "submit", "new", "elsewhere")
    assert done.returncode == 2 and "'elsewhere' is that of a method or a condition already" in done.stderr


def test_one_that_cannot_be_imported_is_named_with_its_package(installed: Path, tmp_path: Path) -> None:
    done = fpbench(installed, tmp_path, "inject", "micro", "--method", "broken", "--fingerprints", "nlf", "--out", "x")
    assert done.returncode == 2
    assert "method 'broken' of somebody-elses-methods cannot be imported (ModuleNotFoundError" in done.stderr
    assert done.stderr.count("\n") == 1
