"""A finished grid of thousands of cells: what it takes to see that nothing is left to do, and to show it."""

import subprocess
import sys
from pathlib import Path
from time import perf_counter

import pytest

from fpbench.runs.plan import plan
from fpbench.runs.profile import load_profile
from tests.many_cells import finish, profile_of

pytestmark = pytest.mark.benchmark


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[str, Path, int]:
    folder = tmp_path_factory.mktemp("many")
    profile = profile_of(folder / "many.toml", models=7, seeds=5)
    return profile, folder / "out", finish(profile, folder / "out")


def seconds(*arguments: str) -> float:
    start = perf_counter()
    done = subprocess.run([sys.executable, "-m", "fpbench", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return perf_counter() - start


def test_a_finished_grid_returns_at_once(finished):
    profile, out, count = finished
    start = perf_counter()
    cells = plan(load_profile(profile))
    planned = perf_counter() - start
    assert len(cells) == count >= 5_000
    first = seconds("run", "--profile", profile, "--out", str(out))
    again = min(seconds("run", "--profile", profile, "--out", str(out)) for _ in range(3))
    board = min(seconds("leaderboard", "--records", str(out / "records")) for _ in range(3))
    print(
        f"\n{count} cells: plan {planned:.2f} s, finished run {again:.2f} s (the first time, which computes what the "
        f"records are called, {first:.1f} s), leaderboard {board:.2f} s"
    )
    assert planned < 1 and again < 2 and board < 2
