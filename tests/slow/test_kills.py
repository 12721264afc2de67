"""A grid of about forty cells, measured by two processes that are killed forty times in succession."""

import subprocess
from pathlib import Path
from time import perf_counter

import pytest

from fpbench.runs.plan import plan
from fpbench.runs.profile import load_profile
from tests.kills import COMMAND, at_random, storm, table
from tests.runs.grids import SMALL

pytestmark = pytest.mark.slow


def test_a_grid_killed_forty_times(tmp_path: Path) -> None:
    profile = tmp_path / "forty.toml"
    text = SMALL.replace('methods = ["mcedit_a"]', 'threads = 1\nmethods = ["alphaedit", "fpedit", "mcedit_a"]')
    text = text.replace('"int8", "nf4", "ria30"', '"finetune_math", "int8", "nf4", "ria30", "ria40"')
    tuned = text[text.index("[modifications.finetune_alpaca]") : text.index("[modifications.ria30]")]
    pruned = text[text.index("[modifications.ria30]") :]
    profile.write_text(text + tuned.replace("alpaca", "math") + pruned.replace("ria30", "ria40"))
    cells = len(plan(load_profile(str(profile))))
    assert 38 <= cells <= 44
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    command = [*COMMAND, "--profile", str(profile), "--out"]
    start = perf_counter()
    assert subprocess.run([*command, str(undisturbed)], capture_output=True).returncode == 0
    longest = (perf_counter() - start) / 4
    killable = ["--profile", str(profile), "--out", str(killed), "--processes", "2"]
    counts = storm(killable, killed, at_random(40, longest))
    print(f"\n{cells} cells; files of finished cells at each of 40 kills: {counts}")
    assert table(killed) == table(undisturbed)
