"""Real faults of real machines: each costs the running cell at most, and is named (docs/faults.md)."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fpbench
from fpbench.cli import main
from fpbench.records.store import read_records
from tests.launch import launch

RUN = [sys.executable, "-m", "fpbench", "run"]


def in_a_namespace(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script that may mount, where nobody else sees it; skip where the system forbids that."""
    unshare = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    probe = subprocess.run([*unshare, "mount -t tmpfs tmpfs /mnt"], capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(f"no mount namespaces here: {probe.stderr.strip()}")
    return subprocess.run([*unshare, script, "sh", *arguments], capture_output=True, text=True)


def test_a_full_disk_costs_the_running_cell_alone(tiny_profile, tmp_path):
    """A disk that somebody else fills up as soon as the first cell is finished."""
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    disk.mkdir()
    script = """
        disk=$1 kept=$2; shift 2
        mount -t tmpfs -o size=40m tmpfs "$disk"
        "$@" & run=$!
        until [ -e "$disk/out/records/micro/nlf/base/seed-42/origin/bands.json" ]; do sleep 0.02; done
        cat /dev/zero > "$disk/filled" 2>/dev/null
        wait $run; code=$?
        cp -r "$disk/out" "$kept"; exit $code
    """
    command = [*RUN, "--profile", tiny_profile, "--out", str(disk / "out"), "--condition", "origin"]
    done = in_a_namespace(script, str(disk), str(kept), *command)
    assert done.returncode == 1, done.stderr
    assert "cannot be written (No space left on device): finished records stay" in done.stderr.splitlines()[-1]
    records = read_records(kept / "records")
    assert records and all(record.status == "done" for record in records)
    assert not list(kept.rglob(".*"))


def test_a_read_only_folder_is_refused_before_work(small_profile, tmp_path):
    script = 'mount -t tmpfs tmpfs "$1" && mount -o remount,ro "$1" && shift && "$@"'
    command = [*RUN, "--profile", small_profile, "--out", str(tmp_path / "out")]
    done = in_a_namespace(script, str(tmp_path), *command)
    assert done.returncode == 2, done.stderr
    assert "cannot be written (Read-only file system)" in done.stderr


@pytest.mark.parametrize("years", [-30, 10])
def test_a_clock_that_jumped_costs_nothing(small_run, small_profile, tmp_path, years):
    """Every file of the store comes from another time than its own, also from the future."""
    out = tmp_path / "out"
    shutil.copytree(small_run, out)
    files = [path for path in out.rglob("*") if path.is_file()]
    for path in files:
        time = path.stat().st_mtime_ns + years * 31_557_600 * 10**9
        os.utime(path, ns=(time, time))
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.glob("records/**/*") if path.is_file()}
    fpbench.run(small_profile, out=out)
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in before} == before


def test_memory_that_runs_out_makes_the_token_budget_smaller_and_changes_no_figure(tmp_path):
    done = launch("tests.runs.out_of_memory", "400", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["budgets"][0] == 1_000_000 and len(found["budgets"]) > 1
    assert found["budgets"] == sorted(found["budgets"], reverse=True)
    assert found["apart"] < 1e-6
    assert "out of memory: the token budget is" in done.stderr


def test_every_record_says_which_token_budget_it_was_measured_with(small_run):
    for record in read_records(small_run / "records"):
        scored = record.cell.metric != "cost"
        assert record.cost["token_budgets"] == ([4096] if scored else []), record.cell


def test_a_training_that_diverges_fails_its_cell_with_the_reason(tiny_profile, tmp_path, capsys):
    profile = tmp_path / "wild.toml"
    profile.write_text(Path(tiny_profile).read_text().replace("learning_rate = 2e-4", "learning_rate = 1e30"))
    command = ["run", "--profile", str(profile), "--out", str(tmp_path / "out"), "--condition", "origin"]
    assert main([*command, "finetune_alpaca", "--method", "mcedit_a"]) == 1
    assert "training became non-finite in epoch 1" in capsys.readouterr().out
    failed = [record for record in read_records(tmp_path / "out" / "records") if record.status == "failed"]
    assert {record.cell.condition for record in failed} == {"finetune_alpaca"} and len(failed) == 2
