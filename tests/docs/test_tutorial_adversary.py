"""The tutorial's last sections: the adversary that it shows is the template, its script runs, and it is handed in."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from fpbench.cli import main
from fpbench.contract.adversary import CHECKS
from fpbench.micro import MODEL
from tests.conftest import ROOT, require, require_confinement
from tests.docs.test_tutorial import steps, written

TEMPLATE = ROOT / "submissions" / "_template_adversary" / "adversary.py"
NAME = "my_thief"


def test_the_adversary_shown_is_the_template() -> None:
    assert written("adversary.py") == TEMPLATE.read_text(encoding="utf-8")


def test_handing_it_in_begins_with_the_files_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    new, *others = steps(NAME)
    assert [step[:2] for step in others] == [["submit", part] for part in ("check", "run", "verify")]
    assert main(new) == 0
    folder = tmp_path / "submissions" / NAME
    shown = tomllib.loads(written("submission_of_a_thief.toml"))
    assert tomllib.loads((folder / "submission.toml").read_text()) == shown
    named = written("adversary.py").replace("level_first", NAME).replace("LevelFirst", "MyThief")
    assert (folder / "adversary.py").read_text() == named
    assert main(["list"]) == 0


@pytest.mark.slow
def test_every_command_of_handing_it_in_runs_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    require_confinement()
    require(MODEL)
    monkeypatch.chdir(tmp_path)
    for step in steps(NAME):
        assert main(step) == 0, (step, capsys.readouterr())
    said = capsys.readouterr().out
    assert "0 outside what is allowed. The sample was drawn with seed" in said
    records = Path("submissions", NAME, "records", "micro", "nlf")
    cells = {str(path.relative_to(records).with_suffix("")) for path in records.rglob("*.json")}
    conditions = ("origin", "my_thief@1", "my_thief@4")
    assert cells == {f"{method}/seed-42/{c}/fsr" for method in ("base", "fpedit") for c in conditions} | {
        f"base/seed-42/{c}/price" for c in conditions
    }
    board = ["leaderboard", "--records", "fpbench-verification", "--claimed", "submissions"]
    assert main(board) == 0
    assert "(claimed, 1/2 cells compared, oracle)" in capsys.readouterr().out


@pytest.mark.slow
def test_the_thief_runs(tmp_path: Path) -> None:
    for name in ("adversary.py", "thief.py"):
        (tmp_path / name).write_text(written(name), encoding="utf-8")
    done = subprocess.run([sys.executable, "thief.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *findings, none, one, four = done.stdout.splitlines()
    assert findings == [f"{each.name}: passed" for each in CHECKS]
    rates = [float(line.split()[1]) for line in (none, one, four)]
    assert [line.split()[0] for line in (none, one, four)] == ["0", "1", "4"]
    assert rates[0] > 0.9 and max(rates[1:]) < rates[0] / 2
