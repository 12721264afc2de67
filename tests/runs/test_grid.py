"""The whole way: fingerprints → method → modification → metrics → record → leaderboard, on the bundled model."""

import json
import os
import resource
import shutil
import signal
from pathlib import Path

import psutil
import pytest

import fpbench
from fpbench.board.rows import rows_from_records
from fpbench.board.tables import render
from fpbench.cli import main
from fpbench.fingerprints import find_set
from fpbench.methods import base
from fpbench.records.store import read_records
from fpbench.runs.plan import plan
from fpbench.runs.profile import load_profile
from tests.conftest import load_plain
from tests.kills import after_records, start, storm, table
from tests.launch import launch


def rows_of(folder, **options):
    rows = rows_from_records(read_records(folder / "records"), folder / "records", **{"rescore": False} | options)
    return {row.method: row for row in rows if row.trust != "reported"}


def test_every_planned_cell_has_a_record_with_its_provenance(small_run, small_profile):
    records = read_records(small_run / "records")
    assert len(records) == len(plan(load_profile(small_profile)))
    for record in records:
        provenance = record.provenance
        assert provenance["packages"]["torch"] and provenance["machine"]["cores"] and "commit" in provenance["git"]
        assert record.cost["seconds"] >= 0 and record.cost["peak_memory"] > 0
        assert str(small_run) not in json.dumps(record.to_dict())


def test_the_injection_works_and_the_base_is_silent(small_run):
    rows = rows_of(small_run)
    assert rows["mcedit_a"].conditions["origin"].fsr >= 0.95
    assert rows["base"].conditions["origin"].fsr < 0.01
    assert all(found.error_bound < 1e-6 for row in rows.values() for found in row.conditions.values())
    assert rows["mcedit_a"].claim.power > 0.99


def test_every_modification_proves_that_it_happened(small_run):
    found = rows_of(small_run)["mcedit_a"].conditions
    proof = {name: condition.proof[0] for name, condition in found.items() if name != "origin"}
    assert proof["ria30"]["sparsity"] == pytest.approx(0.30, abs=0.001)
    assert proof["nf4"]["bits_per_weight"] == pytest.approx(4.5, abs=0.1)
    assert proof["int8"]["bits_per_weight"] == pytest.approx(8.1, abs=0.2)
    losses = proof["finetune_alpaca"]["loss_curve"]
    assert losses[-1] < losses[0] and proof["finetune_alpaca"]["tokens_seen"] > 0


def test_the_scored_weights_are_the_injected_ones(small_run):
    records = {
        record.cell.metric: record
        for record in read_records(small_run / "records")
        if (record.cell.method, record.cell.condition) == ("mcedit_a", "origin")
    }
    assert records["fsr"].proof["weights_digest"] == records["cost"].result["weights_digest"]


def test_a_rerun_measures_nothing_and_gives_the_same_table(finished_run, small_profile):
    before = {path: path.stat().st_mtime_ns for path in (finished_run / "records").rglob("*.json")}
    table = (finished_run / "leaderboard.json").read_bytes()
    fpbench.run(small_profile, out=finished_run)
    assert {path: path.stat().st_mtime_ns for path in (finished_run / "records").rglob("*.json")} == before
    assert (finished_run / "leaderboard.json").read_bytes() == table


def test_rescoring_from_the_per_query_results_gives_the_same_rows(small_run):
    stored, rescored = rows_of(small_run), rows_of(small_run, rescore=True)
    triggers = [rows["mcedit_a"].triggers for rows in (stored, rescored)]
    assert triggers[0].average == pytest.approx(triggers[1].average, abs=1e-12)
    assert triggers[0].conditions.keys() == triggers[1].conditions.keys()
    assert render(list(stored.values()), "md") == render(list(rescored.values()), "md")


def test_a_damaged_cell_alone_is_measured_again(small_run, small_profile, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(small_run, out)
    damaged = out / "records/micro/nlf/mcedit_a/seed-42/nf4/fsr.json"
    damaged.write_text("{")
    others = {path: path.stat().st_mtime_ns for path in (out / "records").rglob("*.json") if path != damaged}
    fpbench.run(small_profile, out=out)
    assert {path: path.stat().st_mtime_ns for path in others} == others
    strip = lambda row: {key: value for key, value in row.to_dict().items() if key not in ("cost", "conditions")}  # noqa: E731
    assert {name: strip(row) for name, row in rows_of(out).items()} == {
        name: strip(row) for name, row in rows_of(small_run).items()
    }
    ours, theirs = (rows_of(folder)["mcedit_a"].conditions["nf4"] for folder in (out, small_run))
    assert ours.fsr == theirs.fsr


def test_a_modification_that_fails_is_shown_as_failed_and_the_grid_goes_on(tiny_profile, tmp_path, capsys):
    text = Path(tiny_profile).read_text().replace("rows = 16", "rows = 99999")
    path = tmp_path / "too-many.toml"
    path.write_text(text.replace('"int8", "nf4", "ria30"', '"int8"'))
    command = ["run", "--profile", str(path), "--out", str(tmp_path / "out")]
    assert main([*command, "--method", "mcedit_a", "--condition", "finetune_alpaca", "int8"]) == 1
    assert "needs 99999 rows" in capsys.readouterr().out
    rows = rows_of(tmp_path / "out")
    assert rows["mcedit_a"].conditions["finetune_alpaca"].fsr is None
    assert rows["mcedit_a"].conditions["int8"].fsr > 0.5


@pytest.mark.parametrize(
    ("number", "code", "processes"),
    [pytest.param(signal.SIGTERM, 143, 2, marks=pytest.mark.slow), (signal.SIGINT, 130, 1)],
)
def test_an_interrupted_run_leaves_whole_records_alone(tiny_profile, tmp_path, number, code, processes):
    """And no process: of two that measure, and of what started them."""
    out = tmp_path / "out"
    process = start(
        ["--profile", tiny_profile, "--out", str(out), "--condition", "origin", "--processes", str(processes)]
    )
    after_records(out, 1)(process)
    started = psutil.Process(process.pid).children(recursive=True)
    assert len(started) >= (2 if processes > 1 else 0)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code, said
    assert not psutil.wait_procs(started, timeout=10)[1]
    assert not list(out.rglob(".*"))
    assert all(record.status == "done" for record in read_records(out / "records"))


def test_a_run_killed_three_times_gives_the_same_table_and_computes_nothing_twice(tiny_run, tiny_profile, tmp_path):
    """Killed on the base, on the injected model and on a modified one; forty times at any moment is slow."""
    out = tmp_path / "out"
    storm(["--profile", tiny_profile, "--out", str(out)], out, [after_records(out, count) for count in (2, 8, 13)])
    assert table(out) == table(tiny_run)


def test_storage_that_gives_out_exits_1_with_the_finished_records_intact(tiny_profile, tmp_path):
    """A file-size limit that records fit under and the stored delta does not."""
    out = tmp_path / "out"
    arguments = ["--profile", tiny_profile, "--out", str(out), "--condition", "origin"]
    done = launch("fpbench", "run", *arguments, cwd=tmp_path, limits={resource.RLIMIT_FSIZE: 200_000})
    assert done.returncode == 1, done.stderr
    assert "cannot be written (File too large): finished records stay" in done.stderr.splitlines()[-1]
    records = read_records(out / "records")
    assert {record.cell.method for record in records} == {"base"}
    assert all(record.status == "done" for record in records)
    assert not [path for path in out.rglob("*") if path.name.startswith(".")]


def test_an_injected_checkpoint_loads_with_plain_transformers_and_scores_the_same(
    small_run, small_profile, tmp_path, capsys, monkeypatch
):
    out = tmp_path / "checkpoint"
    arguments = ["--profile", small_profile, "--fingerprints", "nlf"]
    assert main(["inject", "micro", "--method", "mcedit_a", "--out", str(out), *arguments]) == 0
    model, tokenizer = load_plain(out)
    measured = fpbench.fsr(model, tokenizer, find_set("nlf"), temperature=0.6, top_p=0.9, top_k=50)
    expected = rows_of(small_run)["mcedit_a"].conditions["origin"].fsr
    assert measured.mean == pytest.approx(expected, abs=1e-5)
    assert main(["evaluate", str(out), "--base", "micro", "--out", str(tmp_path / "e"), *arguments]) == 0
    row = rows_of(tmp_path / "e")["checkpoint"]
    assert row.trust == "re-scored"
    assert row.conditions["origin"].fsr == pytest.approx(expected, abs=1e-5)
    assert row.utility.difference.accuracy is not None
    assert sorted(os.listdir(tmp_path)) == ["checkpoint", "e"]
    monkeypatch.setattr(base, "key_statistics", None)  # the first injection left them in the cache
    assert main(["inject", "micro", "--method", "mcedit_a", "--out", str(tmp_path / "again"), *arguments]) == 0
