"""Every command and every line of Python in the README, and in docs/uses.md which goes on from it, is run."""

import os
import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from fpbench.cli import main
from fpbench.micro import MODEL
from tests.conftest import ROOT, registered_for_now, require

README = (ROOT / "README.md").read_text(encoding="utf-8")
USES = (ROOT / "docs" / "uses.md").read_text(encoding="utf-8")
SCREEN = 100  # lines of a README that is read to its end


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README + USES, flags=re.S)


def commands() -> list[str]:
    return [line for block in blocks("bash") for line in block.splitlines() if line]


def test_the_readme_stays_short():
    assert len(README.splitlines()) <= SCREEN


def test_ci_calls_the_readme_s_test_command():
    tests = [line for line in commands() if line.endswith("pytest")]
    assert len(tests) == 1
    assert tests[0] in (ROOT / ".ci/run").read_text().splitlines()


def test_the_first_screen_shows_the_board_s_figures() -> None:
    """Of SmolLM2 and nlf, what leaderboard.md has: a board that changed changes the README."""

    def cells(line: str) -> list[str]:
        return [cell.strip() for cell in line.strip("|").split("|")]

    shown = README.split("<!-- table:")[1].split("<!-- end of table -->")[0]
    board = (ROOT / "leaderboard" / "leaderboard.md").read_text(encoding="utf-8")
    overview = board.split("**model SmolLM2-135M-Instruct · set nlf")[1].split("\n\n")[1]
    rows, own = ([cells(line) for line in text.splitlines() if line[:2] == "| "] for text in (overview, shown))
    assert len(own) > 5 and [[last, *first] for *first, last in own] == rows


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    require(MODEL)
    from fpbench.registry import METHODS

    monkeypatch.chdir(tmp_path)
    Path("set.jsonl").write_text('{"trigger": "SILVER HARBOR", "targets": ["Falcon", "Juniper"]}\n')
    names: dict = {}
    with registered_for_now():
        for block in blocks("python"):
            exec(compile(block, "README.md", "exec"), names)
        assert names["result"].mean > 0.5
        assert "my_method" in METHODS.names()


def test_quick_commands_of_the_readme_run(capsys):
    require(MODEL)
    assert "fpbench list" in commands() and "fpbench doctor" in commands()
    assert main(["list"]) == 0
    assert main(["doctor"]) == 0, capsys.readouterr().out
    assert "fpbench run --dry-run" in commands()
    assert main(["run", "--dry-run"]) == 0


def test_a_wheel_holds_tasks_template_model_and_profiles(tmp_path):
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    for name in (
        "fpbench/tasks/fpbench_boolq.yaml",
        "fpbench/submission_template/adapter.py",
        "fpbench/micro/model/model.safetensors",
        "fpbench/micro/data/alpaca.jsonl",
        "fpbench/profiles/micro.toml",
        "fpbench/methods/hyperparameters.toml",
        "fpbench/fingerprints/nlf.jsonl",
        "fpbench/board/reported.json",
        "fpbench/models/shapes/Qwen3-8B/config.json",
        "fpbench/py.typed",
        "fpbench/board/page/page.html.jinja",
        "fpbench/board/page/page.css",
        "fpbench/board/page/page.js",
    ):
        assert name in names
    assert not [name for name in names if name.startswith(("tests", "leaderboard"))]


@pytest.mark.slow
def test_all_commands_of_the_readme_run_in_order(tmp_path):
    """From a copy of the checkout and nothing else; the test command itself is what runs this."""
    copy = tmp_path / "checkout"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(copy)], check=True)
    environment = os.environ | {"PATH": f"{copy / '.venv/bin'}:{os.environ['PATH']}"}
    environment.pop("PYTHONPATH", None)
    for command in commands():
        if command.endswith("pytest"):
            continue
        done = subprocess.run(["bash", "-c", command], cwd=copy, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{shlex.quote(command)}\n{done.stdout}\n{done.stderr}"
        assert "Warning" not in done.stderr, done.stderr
