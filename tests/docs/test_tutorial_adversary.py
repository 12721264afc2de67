"""The tutorial's last section: the adversary that it shows is the template, and its script runs."""

import subprocess
import sys
from pathlib import Path

import pytest

from fpbench.contract.adversary import CHECKS
from tests.conftest import ROOT
from tests.docs.test_tutorial import written

TEMPLATE = ROOT / "submissions" / "_template_adversary" / "adversary.py"


def test_the_adversary_shown_is_the_template() -> None:
    assert written("adversary.py") == TEMPLATE.read_text(encoding="utf-8")


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
