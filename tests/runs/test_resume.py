"""What is left of a run, known by files alone."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fpbench
from fpbench.cli import main
from fpbench.models.loading import Loading
from fpbench.records.store import Store, driving, read_records
from fpbench.runs.plan import Job, plan
from fpbench.runs.profile import load_profile
from fpbench.runs.resume import Resume
from fpbench.runs.sets import written_sets

FINISHED = """
import sys
from fpbench.cli import main
code = main(sys.argv[1:])
heavy = {"torch", "transformers", "lm_eval", "peft"} & set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else code)
"""


def run_finished(*arguments):
    return subprocess.run([sys.executable, "-c", FINISHED, "run", *arguments], capture_output=True, text=True)


def resume_of(profile, folder, out):
    return Resume(Job(profile, {"micro": folder}, Loading("cpu"), out), written_sets(profile))


def test_a_finished_grid_returns_its_table_without_torch(finished_run, small_profile):
    before = {path: path.stat().st_mtime_ns for path in (finished_run / "records").rglob("*")}
    done = run_finished("--profile", small_profile, "--out", str(finished_run))
    assert done.returncode == 0, done.stderr
    assert "mcedit_a" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in (finished_run / "records").rglob("*")} == before


def test_only_what_has_no_record_is_pending(small_run, small_profile, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(small_run, out)
    profile = load_profile(small_profile)
    cells = plan(profile)
    resume = resume_of(profile, fpbench.micro.MODEL, out)
    assert (
        resume.names.keys() == {cell.path for cell in cells}
        and resume.pending(cells, read_records(out / "records")) == []
    )
    store = Store(out)
    store.record_path(cells[3]).unlink()
    store.record_path(cells[5]).write_text("{")
    assert resume.pending(cells, read_records(store.records)) == [cells[3], cells[5]]


@pytest.fixture
def remembered(small_profile, tmp_path):
    """A profile on copies of its model and a data set, with names that were computed for just these."""
    model, rows = tmp_path / "model", tmp_path / "alpaca.jsonl"
    shutil.copytree(fpbench.micro.MODEL, model)
    shutil.copy(fpbench.micro.DATA / "alpaca.jsonl", rows)
    text = Path(small_profile).read_text().replace("bundled:alpaca.jsonl", str(rows))
    path = tmp_path / "profile.toml"
    path.write_text(text)

    def resume(**changes):
        return resume_of(load_profile(str(path), **changes), model, tmp_path / "out")

    resume().remember({"a/b/c/seed-1/d/e": "0123"})
    assert resume().names == {"a/b/c/seed-1/d/e": "0123"}
    return resume, model, rows


def test_names_hold_only_for_the_very_same_files_and_profile(remembered):
    resume, model, rows = remembered
    assert resume(seeds=[1]).names == {}
    for path in (model / "config.json", rows):
        before = path.stat().st_mtime_ns
        os.utime(path, ns=(before + 1, before + 1))
        assert resume().names == {}
        os.utime(path, ns=(before, before))
        assert resume().names
    (model / "another.json").write_text("{}")
    assert resume().names == {}


def test_names_hold_whatever_was_made_in_the_cache_but_not_for_other_downloads(remembered, tmp_path, monkeypatch):
    monkeypatch.setenv("FPBENCH_CACHE", str(tmp_path / "cache"))
    resume, _, _ = remembered
    resume().remember({"a/b/c/seed-1/d/e": "0123"})
    for name in ("locks/lock.json", "statistics/keys.safetensors"):  # as another process leaves them
        path = tmp_path / "cache" / name
        path.parent.mkdir(parents=True)
        path.write_text("{}")
        assert resume().names
    (tmp_path / "cache" / "lock.json").write_text("{}")
    assert resume().names == {}


def test_names_of_an_adapter_hold_only_for_the_files_of_its_base(remembered, small_profile, tmp_path):
    _, base, _ = remembered
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    (adapter / "adapter_model.safetensors").write_bytes(b"")

    def resume():
        return resume_of(load_profile(small_profile), adapter, tmp_path / "other")

    resume().remember({"a/b/c/seed-1/d/e": "0123"})
    assert resume().names
    before = (base / "config.json").stat().st_mtime_ns
    os.utime(base / "config.json", ns=(before + 1, before + 1))
    assert resume().names == {}


def test_damaged_names_are_computed_again(remembered, caplog):
    resume, _, _ = remembered
    path = resume().path
    path.write_text(path.read_text().replace("0123", "9999"))
    assert resume().names == {}
    assert "checksum" in caplog.text


def test_a_second_driver_on_one_store_exits_2_and_names_the_first(small_profile, tmp_path, capsys):
    with driving(tmp_path / "out"):
        assert main(["run", "--profile", small_profile, "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"process {os.getpid()} on " in line and "another run writes to" in line
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["locks"]
