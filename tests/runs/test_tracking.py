"""Trackio and Weights & Biases get the figures of finished cells; without them a run is refused in one line."""

import contextlib
import importlib.util
import json
import sqlite3
import sys
from pathlib import Path

import pytest

from fpbench.cli import main
from fpbench.errors import InputError
from fpbench.records.store import Store, read_records
from fpbench.runs.engine import Watch
from fpbench.runs.plan import checkpoints, plan
from fpbench.runs.profile import load_profile
from fpbench.runs.tracking import TRACKERS, Tracked


def told(tracker: str, run: Path, profile_file: str) -> dict[str, float]:
    """Tell a tracker of the finished cells of a run's one method, and return what their records hold at origin."""
    profile = load_profile(profile_file)
    _, injected = checkpoints(plan(profile))
    tracked = Tracked(Watch(), tracker, profile)
    tracked.begin(Store(run), injected, [])
    for cell in injected:
        tracked.measured(cell, None)
    tracked.end()
    records = {each.cell.path: each for each in read_records(Store(run).records)}
    place = f"{injected[0].model}/nlf/mcedit_a/seed-42/origin"
    fsr, triggers = records[f"{place}/fsr"].result, records[f"{place}/triggers"].result
    return {
        f"{place}/fsr/mean": fsr["mean"],
        f"{place}/triggers/conditions/upper_suffix/rate": triggers["conditions"]["upper_suffix"]["rate"],
    }


@pytest.mark.filterwarnings("ignore")  # of other packages
def test_trackio_gets_the_figures(small_run, small_profile, tmp_path, monkeypatch, capsys):
    if importlib.util.find_spec("trackio") is None:
        pytest.skip("needs trackio: pip install 'fpbench[trackio]'")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    expected = told("trackio", small_run, small_profile)
    import trackio

    (run,) = trackio.Api().runs("fpbench")
    (file,) = tmp_path.glob("*.db")
    with contextlib.closing(sqlite3.connect(file)) as database:
        logged = [json.loads(entry) for (entry,) in database.execute("SELECT metrics FROM metrics")]
    for name, value in expected.items():
        assert [each[name] for each in logged if name in each] == [value]
    assert run.config["methods"] == ["mcedit_a"] and run.config["name"] == load_profile(small_profile).name
    assert capsys.readouterr().out == ""
    assert "FINGERPRINT" not in str(run.config)


@pytest.mark.filterwarnings("ignore")  # of other packages
def test_weights_and_biases_gets_the_figures_offline(small_run, small_profile, tmp_path, monkeypatch, capsys):
    if importlib.util.find_spec("wandb") is None:
        pytest.skip("needs wandb: pip install 'fpbench[wandb]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    expected = told("wandb", small_run, small_profile)
    (written,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    content = written.read_bytes()
    for name, value in expected.items():
        assert name.encode() in content and str(value).encode() in content
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("tracker", TRACKERS)
def test_a_missing_package_is_one_line_and_nothing_is_written(tracker, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, tracker, None)  # as Python marks what cannot be imported
    out = tmp_path / "run"
    assert main(["run", "--track", tracker, "--condition", "origin", "--out", str(out)]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1].endswith(f"--track {tracker} needs the package {tracker}: pip install 'fpbench[{tracker}]'.")
    assert len(said) == 1 and not out.exists()


def test_an_unknown_tracker_is_refused(small_profile):
    with pytest.raises(InputError, match="'mlflow'.*trackio"):
        Tracked(Watch(), "mlflow", load_profile(small_profile))


class Failing:
    """A tracker whose server goes away after the first figures."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def init(self, **_: object) -> None:
        self.calls.append("init")

    def log(self, figures: dict[str, float]) -> None:
        self.calls.append("log")
        if len(self.calls) > 2:
            raise ConnectionError("gone\nlong")


def test_a_tracker_that_fails_is_named_once_and_the_run_goes_on(small_run, small_profile, monkeypatch):
    profile, said = load_profile(small_profile), []
    monkeypatch.setitem(sys.modules, "trackio", service := Failing())
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    tracked, cells = Tracked(shown := Watch(), "trackio", profile), plan(profile)
    shown.say = said.append
    tracked.begin(Store(small_run), cells, [])
    for cell in cells:
        tracked.measured(cell, None)
    tracked.end()
    assert service.calls == ["init", "log", "log"] and said == ["trackio gets nothing more of this run: gone"]
    tracked = Tracked(shown, "trackio", profile)
    tracked.begin(Store(small_run), cells, cells)  # nothing to measure: no run of the tracker
    tracked.end()
    assert service.calls == ["init", "log", "log"]
