"""The tutorial is walked: its files are written, its commands run, in a folder with nothing in it.

Its first part, up to the check, is where tests/submissions/test_submit.py begins.
"""

import copy
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fpbench.cli import main
from fpbench.fingerprints import find_set
from fpbench.methods.base import InjectionContext
from fpbench.micro import MODEL
from fpbench.models.prompts import encode_pair
from fpbench.runs.datasets import Datasets
from fpbench.runs.profile import load_profile
from tests.conftest import ROOT, require, require_confinement
from tests.docs.markdown import commands

TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
NAME = "my_method"


def written(name: str) -> str:
    """A file that the tutorial shows."""
    return re.search(rf"<!-- {re.escape(name)} -->\n```\w+\n(.*?)```", TUTORIAL, flags=re.DOTALL)[1]


def steps(of: str = NAME) -> list[list[str]]:
    """The commands about one submission, in order; by default those about the method."""
    found = [shlex.split(command)[1:] for command in commands(TUTORIAL)]
    return [step for step in found if ("my_thief" in step) == (of == "my_thief")]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    require(MODEL)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def begin(capsys: pytest.CaptureFixture[str]) -> None:
    """The first three sections, and the check."""
    require_confinement()
    new, trial, check = steps()[:3]
    assert (new, trial[0], check) == (["submit", "new", NAME], "run", ["submit", "check", NAME])
    assert main(new) == 0
    shown = {row.split("`")[1] for row in TUTORIAL.splitlines() if row.startswith("| `")}
    assert {path.name for path in Path("submissions", NAME).iterdir()} == shown
    for name in ("adapter.py", "submission.toml"):
        Path("submissions", NAME, name).write_text(written(name))
    assert len(written("adapter.py").splitlines()) <= 60
    assert main(check) == 0, capsys.readouterr()


def test_the_training_that_is_there_already_runs_as_shown(micro: tuple[Any, Any]) -> None:
    model, tokenizer = copy.deepcopy(micro[0]), micro[1]
    fingerprints = list(find_set("nlf"))[:2]
    pairs = [encode_pair(tokenizer, each.trigger, each.primary) for each in fingerprints]
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    names = {"model": model, "tokenizer": tokenizer, "fingerprints": fingerprints, "pairs": pairs}
    lora, own = written("training.py").split("# Or a loop")
    exec(lora, names | {"context": InjectionContext()})
    after = {name: weight.clone() for name, weight in model.state_dict().items()}
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and not any("embed" in name for name in moved)
    exec(lora.partition("# LoRA")[0] + f"# Or a loop{own}", names | {"context": InjectionContext()})
    assert any(not torch.equal(after[name], weight) for name, weight in model.state_dict().items() if "embed" in name)
    assert len(Datasets(load_profile("micro")).pairs) == int(re.search(r"(\d+)\s+of them come with", TUTORIAL)[1])


def check_what_is_said(said: str) -> None:
    assert f"runs the {numbered(said)} promises" in TUTORIAL
    assert float(re.search(r"exact FSR in %: ([\d.]+) at origin", said)[1]) > 90


def numbered(said: str) -> str:
    """How many checks of the contract were printed, as the tutorial writes it."""
    from fpbench.contract import CHECKS

    assert all(f"{check.name}: passed" in said for check in CHECKS)
    return {17: "seventeen"}[len(CHECKS)]


@pytest.mark.slow
def test_every_command_of_the_tutorial_runs_in_order(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begin(capsys)
    trials = subprocess.run([sys.executable, "-c", written("trials.py")], capture_output=True, text=True)
    assert trials.returncode == 0 and len(trials.stdout.splitlines()) == 2, trials.stderr
    for step in steps()[1:2] + steps()[3:]:
        assert main(step) == 0, (step, capsys.readouterr())
        said = capsys.readouterr().out
        assert NAME in said or step[1] == "verify", step
    assert "0 outside what is allowed" in said
    assert list(Path("submissions", NAME, "records").rglob("ria40/fsr.json"))
