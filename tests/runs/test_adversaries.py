"""A run with adversaries: priced on the base, siblings injected, failures named, and the same records after a kill."""

import json
import shutil
from pathlib import Path

import pytest

import fpbench
from fpbench.adversaries.price import compare
from fpbench.models import training
from fpbench.records.store import Store, read_records
from fpbench.runs.profile import load_profile

CONDITIONS = ["origin", "suppress@0", "suppress@3", "ensemble@20", "quantize@8", "quantize@8+suppress@3"]
CONDITIONS += ["merge_sibling@0.5"]
CURVE = ["finetune_alpaca@2", "finetune_alpaca@5", "finetune_alpaca@2+suppress@3"]


@pytest.fixture(scope="module")
def profile(tmp_path_factory) -> Path:
    """Two seeds, three quick methods, half injected, and nothing but what adversaries need."""
    text = (Path(fpbench.__file__).parent / "profiles" / "micro.toml").read_text(encoding="utf-8")
    unused = ("math", "calibration", "rte", "arc_challenge", "tinymmlu")
    text = "\n".join(line for line in text.splitlines() if line.split(" = ")[0] not in unused)
    for old, new in {
        "seeds = [42]": "seeds = [42, 43]",
        "[sizes]": "[sizes]\nprice_instructions = 4\nprice_answers = 4\nperplexity_pages = 2\nutility_limit = 24",
        "perplexity_windows = 16": "perplexity_windows = 2",
        "substitutions = 500": "substitutions = 4",
        "context_rows = 16": "context_rows = 1",
        "near_triggers = 100": "near_triggers = 4",
        "batch_size = 8": "batch_size = 1",
        "band_texts = 600": "band_texts = 4",
        "statistics_tokens = 60000": "statistics_tokens = 2000",
    }.items():
        assert old in text
        text = text.replace(old, new)
    path = tmp_path_factory.mktemp("profile") / "attacked.toml"
    text += "\n".join(f"\n[hyperparameters.{name}]\nsteps = 4" for name in ("alphaedit", "fpedit", "mcedit_a")) + "\n"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def records(profile, tmp_path_factory):
    out = tmp_path_factory.mktemp("attacked") / "run"
    fpbench.run(str(profile), methods=["alphaedit", "fpedit", "mcedit_a"], conditions=CONDITIONS, out=out)
    return read_records(Store(out).records), out


def test_the_base_is_priced_once_for_all_seeds_but_where_siblings_answer(profile, records, tmp_path):
    _, done = records
    out = shutil.copytree(done, tmp_path / "run")
    again = ("origin", "suppress@3", "ensemble@20", "quantize@8")
    for condition in again:
        shutil.rmtree(Store(out).records / "micro/nlf/base/seed-43" / condition)
    fpbench.run(
        str(profile), methods=["alphaedit", "fpedit", "mcedit_a"], conditions=CONDITIONS, out=out, engine="serial"
    )
    base = [each for each in read_records(Store(out).records) if each.cell.method == "base"]
    of = {(each.cell.seed, each.cell.condition, each.cell.metric): each for each in base}
    own = {key[1:]: record for key, record in of.items() if key[0] == 43 and key[1] in again}
    taken = {key: record for key, record in own.items() if "measured_as" in record.provenance}
    assert taken.keys() == {("origin", "price"), ("suppress@3", "price")}
    assert own.keys() > taken.keys() | {("ensemble@20", "price"), ("quantize@8", "price")}
    for (condition, metric), record in taken.items():
        first = of[42, condition, metric]
        assert (record.result, lines_of(out, record)) == (first.result, lines_of(out, first))
        assert record.id != first.id and record.provenance["measured_as"] == first.cell.path


def lines_of(out, record):
    path = Store(out).records / f"{record.cell.path}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_no_cell_failed_and_run_time_parts_are_priced_on_the_base_alone(records):
    found, _ = records
    assert [str(each.cell) for each in found if each.status == "failed"] == []
    priced = {(each.cell.method, each.cell.condition) for each in found if each.cell.metric == "price"}
    weights = {(method, name) for method in ("alphaedit", "fpedit", "mcedit_a") for name in ("origin", *CONDITIONS[4:])}
    assert priced == {("base", name) for name in CONDITIONS} | weights


def test_tasks_are_asked_under_attacks_on_weights_where_that_is_wanted(records, profile, tmp_path):
    """In the folder of a finished run: its cells keep their records, and what is new is the tasks."""
    known, finished = records
    out = shutil.copytree(finished, tmp_path / "run")
    asked = tmp_path / profile.name
    asked.write_text(f"utility_at_doses = true\n{profile.read_text(encoding='utf-8')}", encoding="utf-8")
    conditions = ["origin", "quantize@8", "quantize@8+suppress@3", "suppress@3", "quantize@2"]
    found = fpbench.run(str(asked), methods=["alphaedit"], conditions=conditions, seeds=[42], out=out)
    before = {each.cell.path: each for each in known}
    new = [each.cell for each in found.records if each.cell.path not in before and each.cell.metric == "utility"]
    assert [(each.method, each.condition) for each in new] == [("alphaedit", "quantize@2"), ("alphaedit", "quantize@8")]
    assert all(before.get(each.cell.path, each) == each for each in found.records)
    (row,) = [each for each in found.rows if each["method"] == "alphaedit"]
    weights, both, sampler, coarse = (row["removal"]["conditions"][name] for name in conditions[1:])
    assert weights["tasks"] == both["tasks"] <= weights["short"] and "tasks" not in sampler
    of = {(each.cell.method, each.cell.condition): each for each in found.records if each.cell.metric == "utility"}
    before, after = (
        [line["correct"] for line in lines_of(out, of["alphaedit", name]) if line["task"] == "boolq"]
        for name in ("origin", "quantize@2")
    )
    assert len(before) == len(after) == 24
    assert coarse["tasks"] == pytest.approx(1 - (sum(after) / 24 - 0.5) / (sum(before) / 24 - 0.5))
    assert coarse["tasks_interval"][0] <= coarse["tasks"] <= coarse["tasks_interval"][1] and coarse["tasks"] > 0
    figures = found.to_pandas().set_index(["method", "condition", "metric"])["value"]
    assert figures["alphaedit", "quantize@2", "price_tasks"] == coarse["tasks"]
    assert "of which tasks, %" in (out / "leaderboard.html").read_text(encoding="utf-8")


def test_dose_0_equals_origin_bit_for_bit(records):
    found, out = records
    of = {(each.cell.method, each.cell.seed, each.cell.condition, each.cell.metric): each for each in found}
    for method in ("base", "alphaedit", "mcedit_a"):
        nothing, origin = of[method, 42, "suppress@0", "fsr"], of[method, 42, "origin", "fsr"]
        assert nothing.result == origin.result and lines_of(out, nothing) == lines_of(out, origin)
    price = compare(
        lines_of(out, of["base", 42, "origin", "price"]), lines_of(out, of["base", 42, "suppress@0", "price"])
    )
    assert price.long == 0


def test_the_base_answers_nothing_under_any_adversary(records):
    assert all(
        each.result["mean"] < 0.01 for each in records[0] if (each.cell.method, each.cell.metric) == ("base", "fsr")
    )


def test_siblings_are_other_methods_with_another_seed_s_set(records):
    found, out = records
    (cell,) = (
        each for each in found
        if (each.cell.method, each.cell.seed, each.cell.condition) == ("alphaedit", 42, "ensemble@20")
    )  # fmt: skip
    siblings = cell.identity["siblings"]
    merged = next(
        each for each in found
        if (each.cell.method, each.cell.seed, each.cell.condition) == ("alphaedit", 42, "merge_sibling@0.5")
    )  # fmt: skip
    assert merged.identity["siblings"] == siblings and len(merged.proof["modification"]["siblings"]) == 1
    assert [(each["method"], each["seed"]) for each in siblings] == [("fpedit", 43), ("mcedit_a", 43)]
    own = {each.cell.seed: each.identity["fingerprints"] for each in found if each.cell.method == "fpedit"}
    assert {each["fingerprints"] for each in siblings} == {own[43]} != {own[42]}
    assert len(list((out / "deltas").glob("*.safetensors"))) == 6, "each was injected once"


def test_a_second_run_measures_nothing_and_gives_the_same_table(records, profile):
    _, out = records
    before = {path: path.stat().st_mtime_ns for path in Store(out).records.rglob("*.json")}
    table = (out / "leaderboard.md").read_bytes()
    fpbench.run(str(profile), methods=["alphaedit", "fpedit", "mcedit_a"], conditions=CONDITIONS, out=out)
    assert {path: path.stat().st_mtime_ns for path in Store(out).records.rglob("*.json")} == before
    assert (out / "leaderboard.md").read_bytes() == table and b"Removal" in table


def test_one_seed_has_no_siblings_and_says_so(profile):
    assert load_profile(str(profile), seeds=[42]).siblings("alphaedit", 42) == []
    wanted = load_profile(str(profile))
    assert wanted.siblings("mcedit_r", 43) == [("lora", 42), ("alphaedit", 42)]
    assert wanted.siblings("base", 42) == [("lora", 43), ("alphaedit", 43)]


@pytest.fixture(scope="module")
def curve(profile, tmp_path_factory):
    """Fine-tuning of the base to two doses; the steps of each training, and each merge."""
    out, trained, merged = tmp_path_factory.mktemp("curve") / "run", [], []
    original, merge = training.train_on_the_way, training.merge

    def counted(model, tokenizer, examples, config, steps, **more):
        trained.append(sorted(steps))
        return original(model, tokenizer, examples, config, steps, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "train_on_the_way", counted)
        patch.setattr(training, "merge", lambda model, updates: merged.append(updates) or merge(model, updates))
        fpbench.run(str(profile), methods=[], seeds=[42], conditions=CURVE, out=out)
    return out, trained, merged


def results(out):
    """The records of a run without what a machine and its hour decide."""
    found = {str(each.cell): each for each in read_records(Store(out).records)}
    assert all(each.status == "done" for each in found.values()), found
    return {name: (each.id, each.result, each.proof) for name, each in found.items()}


def test_one_training_serves_a_curve(curve):
    out, trained, merged = curve
    assert trained == [[2, 5]] and len(merged) == 2, "conditions of the same weights are measured on the same model"
    found = results(out)
    proofs = [found[f"micro/nlf/base/seed-42/{name}/fsr"][2]["modification"] for name in CURVE]
    assert [proof["steps"] for proof in proofs] == [2, 5, 2] and proofs[0] == proofs[2]
    assert {f"micro/nlf/base/seed-42/{name}/price" for name in CURVE} <= found.keys()


def test_a_run_that_was_stopped_inside_a_curve_gives_the_same_records(curve, profile, tmp_path, caplog):
    complete = results(curve[0])
    out = shutil.copytree(curve[0], tmp_path / "run")
    shutil.rmtree(Store(out).records / "micro" / "nlf" / "base" / "seed-42" / CURVE[1])
    fpbench.run(str(profile), methods=[], seeds=[42], conditions=CURVE, out=out)
    assert results(out) == complete
    assert f"the price of {', '.join(sorted(CURVE))} stays unknown: it is measured against origin" in caplog.text
