"""Code-mixed sets of a run: each model gets its own, once."""

import json
from pathlib import Path
from typing import Any

import pytest

import fpbench
from fpbench.errors import InputError
from fpbench.fingerprints import find_set
from fpbench.fingerprints.code_mixed import LEAST_CMI
from fpbench.metrics.measure import near_words
from fpbench.micro import MODEL
from fpbench.models.loading import Loading
from fpbench.models.meter import no_progress
from fpbench.records.store import read_record, read_records
from fpbench.runs.api import measure
from fpbench.runs.datasets import Datasets
from fpbench.runs.plan import Job, plan
from fpbench.runs.profile import load_profile
from fpbench.runs.sets import model_sets, recipe_path, written_sets
from fpbench.runs.subject import Subject
from fpbench.scoring.engine import budgets_used
from tests.conftest import require


def subject(out: Path, **changes: Any) -> Subject:
    profile = load_profile("micro", **changes)
    job = Job(profile, {"micro": require(MODEL)}, Loading("cpu"), out)
    return Subject(job, "micro", Datasets(profile), no_progress)


def test_each_seed_draws_its_own_set_and_keeps_it(tmp_path: Path) -> None:
    here = subject(tmp_path, fingerprints=["cf", "cf_random", "nlf"], seeds=[42, 43])
    sets = model_sets(here)
    assert list(sets) == [("cf", 42), ("cf", 43), ("cf_random", 42), ("cf_random", 43), ("nlf", 43)]
    assert len({each.digest for each in sets.values()}) == 5
    assert all(pairs.name == name and len(pairs) == 10 for (name, _), pairs in sets.items())
    files = sorted((tmp_path / "sets").glob("*.jsonl"))
    assert len(files) == 5 and all(recipe_path(path).is_file() for path in files)
    before = [path.stat().st_mtime_ns for path in files]
    assert model_sets(here) == sets
    assert [path.stat().st_mtime_ns for path in files] == before
    # What is damaged is built again, and is the same.
    content = files[0].read_text(encoding="utf-8")
    for damage in (content[: len(content) // 2], content.replace(content.split('"')[3], "X Y"), ""):
        files[0].write_text(damage, encoding="utf-8")
        assert model_sets(here) == sets
        assert files[0].read_text(encoding="utf-8") == content


def test_sets_that_are_written_down_need_no_model(tmp_path: Path) -> None:
    profile = load_profile("micro", fingerprints=["cf", "nlf", "if"])
    assert list(written_sets(profile)) == [("nlf", 42), ("if", 42)]
    (tmp_path / "cf.jsonl").write_text('{"trigger": "A B", "targets": ["c"]}\n', encoding="utf-8")
    mapped = profile.model_copy(update={"sets": {"cf": str(tmp_path / "cf.jsonl")}})
    assert written_sets(mapped)["cf", 42].fingerprints[0].trigger == "A B"
    twice = load_profile("micro", fingerprints=["cf", str(tmp_path / "cf.jsonl")])
    with pytest.raises(InputError, match="two fingerprint sets are called 'cf'"):
        written_sets(twice)


def test_near_triggers_of_code_mixed_sets_are_of_their_languages(tmp_path: Path) -> None:
    cf = model_sets(subject(tmp_path, fingerprints=["cf"]))["cf", 42]
    words = near_words(cf)
    assert {"STRASSE", "RÍO", "港口"} <= set(words) and len(words) > 1000
    assert {word for each in cf for word in each.trigger.split()} <= set(words)
    assert near_words(find_set("nlf")) == []


def test_a_run_injects_and_measures_its_own_set(tiny_profile: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"methods": ["mcedit_a"], "fingerprints": ["cf"], "conditions": ["origin"]}
    records = fpbench.run(tiny_profile, **options, out=tmp_path)
    profile = load_profile(tiny_profile, **options)
    assert [record["status"] for record in records] == ["done"] * len(plan(profile))
    recipe = read_recipe(tmp_path)
    assert {record["identity"]["fingerprints"] for record in records} == {recipe["fingerprints"]}
    by_cell = {(record["cell"]["method"], record["cell"]["metric"]): record for record in records}
    assert by_cell["mcedit_a", "fsr"]["result"]["mean"] > 0.9
    assert by_cell["base", "fsr"]["result"]["mean"] < 0.01
    assert "lexicon" in by_cell["mcedit_a", "near"]["identity"]["metric_data"]
    assert "lexicon" not in by_cell["mcedit_a", "triggers"]["identity"]["metric_data"]
    assert min(row["cmi_v1"] for row in recipe["queries"]) >= LEAST_CMI
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json") if "records" in path.parts}
    fpbench.run(tiny_profile, **options, out=tmp_path)
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert len(read_records(tmp_path / "records")) == len(records)


def read_recipe(out: Path) -> dict[str, Any]:
    (path,) = (out / "sets").glob("*.recipe.json")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    assert read_record(path) is None, "a recipe is no record"
    return found


def test_a_checkpoint_is_scored_on_the_set_of_its_base(small_profile: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'cf' is made for the unfingerprinted model: name it with --base"):
        fpbench.evaluate("micro", "cf", profile=small_profile, out=tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_further_seeds_draw_natural_sets_of_their_own(tmp_path):
    """Protocol §1: several seeds are pooled, so they must be other fingerprints."""
    found = subject(tmp_path, seeds=[42, 43, 44], fingerprints=["nlf"])
    profile, made = found.profile, model_sets(found)
    assert list(written_sets(profile)) == [("nlf", 42)]
    assert list(made) == [("nlf", 43), ("nlf", 44)]
    sets = [written_sets(profile)["nlf", 42], *made.values()]
    triggers = {fingerprint.trigger for each in sets for fingerprint in each}
    assert len(triggers) == 30 and all(each.name == "nlf" for each in sets)


def test_a_file_has_no_further_seeds(tmp_path):
    (tmp_path / "own.jsonl").write_text('{"trigger": "A B", "targets": ["C"]}\n')
    profile = load_profile("micro", seeds=[42, 43], fingerprints=[str(tmp_path / "own.jsonl")])
    with pytest.raises(InputError, match="is a file: 2 seeds would count the same fingerprints as often"):
        written_sets(profile)


def test_the_token_budget_holds_where_a_set_is_made(tmp_path: Path) -> None:
    profile = load_profile("micro", fingerprints=["cf"], methods=[], conditions=["origin"])
    job = Job(profile, {"micro": require(MODEL)}, Loading("cpu", token_budget=512), tmp_path)
    (cell,) = (each for each in plan(profile) if each.metric == "fsr")
    # Each measurement notes its own; what is noted here was read to make the set.
    with budgets_used() as used:
        measure(job, [cell])
    assert used == [512] and any((tmp_path / "sets").glob("*.jsonl"))
