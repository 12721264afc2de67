"""What a run will take: its work, the price of it, what was measured before; and what cannot fit is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import fpbench
from fpbench.adversaries.conditions import create
from fpbench.cli import main
from fpbench.fingerprints import find_set
from fpbench.methods.base import FingerprintMethod
from fpbench.micro import MODEL
from fpbench.models.costs import Phase, Room, Work
from fpbench.models.loading import Loading, load_architecture, load_tokenizer
from fpbench.models.meter import no_progress
from fpbench.registry import METHODS
from fpbench.runs import forecast as forecasting
from fpbench.runs.datasets import Datasets
from fpbench.runs.forecast import Estimate, Part, estimate, forecast, time, total
from fpbench.runs.injection import create_method
from fpbench.runs.memory import GAPS, LIBRARIES, Footprint, needs_of, peak, refuse
from fpbench.runs.plan import Job, plan
from fpbench.runs.profile import load_profile
from fpbench.runs.speed import Speed
from fpbench.runs.work import Workload
from fpbench.runs.worker import Worker
from fpbench.scoring.packing import rows_of

PARAMETERS = 6 * (4 * 256 * 256 + 3 * 256 * 768 + 2 * 256) + 4096 * 256 + 256


class Foreign(FingerprintMethod):
    """Somebody's own method."""

    name, version = "foreign", "1"

    def inject(self, model, tokenizer, fingerprints, context):
        raise NotImplementedError


@pytest.fixture(scope="module")
def workload(small_profile):
    profile = load_profile(small_profile)
    return Workload(profile, Datasets(profile), load_architecture(MODEL), load_tokenizer(MODEL))


def job(profile, out, **loading):
    return Job(load_profile(str(profile)), {"micro": MODEL}, Loading("cpu", **loading), Path(out))


def listing(folder):
    return sorted((str(path), path.stat().st_mtime_ns) for path in folder.rglob("*"))


def test_one_training_is_counted_for_all_doses_of_a_checkpoint(small_profile, tmp_path):
    def trained(*conditions):
        profile = load_profile(small_profile, conditions=["origin", *conditions])
        wanted = Job(profile, {"micro": MODEL}, Loading("cpu"), tmp_path)
        workload = Workload(profile, Datasets(profile), load_architecture(MODEL), load_tokenizer(MODEL))
        cells = [cell for cell in plan(profile) if (cell.method, cell.metric) == ("base", "fsr")]
        counted = forecasting._tasks("micro", cells, workload, forecasting._inspected(wanted, tmp_path))
        return sum(task.work.steps for task in counted if task.work)

    largest = trained("finetune_alpaca@40")
    assert largest == pytest.approx(40, rel=0.01)
    assert trained("finetune_alpaca@10", "finetune_alpaca@40", "finetune_alpaca@10+suppress@3") == largest
    assert trained("noise@0.1+finetune_alpaca@10", "finetune_alpaca@40") == pytest.approx(50, rel=0.01)


def test_what_is_done_for_each_leak_and_another_injection_are_counted(small_profile, tmp_path):
    conditions = ["origin", "unlearn_one@5", "overwrite@10"]
    profile = load_profile(small_profile, methods=["mcedit_a"], conditions=conditions)
    wanted = Job(profile, {"micro": MODEL}, Loading("cpu"), tmp_path)
    workload = Workload(profile, Datasets(profile), load_architecture(MODEL), load_tokenizer(MODEL))
    cells = [cell for cell in plan(profile) if (cell.method, cell.metric) == ("mcedit_a", "fsr")]
    tasks = list(forecasting._tasks("micro", cells, workload, forecasting._inspected(wanted, tmp_path)))
    origin, leaked, overwritten = (task.work.read for task in tasks if task.name == "fsr")
    assert (leaked, overwritten) == (10 * origin, origin)
    found = {task.name: task.work for task in tasks}
    assert found["overwrite@10"].steps == found["inject mcedit_a"].steps > 0 and found["unlearn_one@5"].steps == 10


def test_a_price_is_the_sum_over_units():
    speed = Speed(passes=1, read=2, scored=3, steps=5, trained=7, decomposed=11, handled=13, questions=17)
    assert speed.of(Work(passes=1, trained=2) + Work(read=10, scored=1) * 2) == 1 + 2 * (2 * 10 + 3) + 2 * 7
    assert speed.of(Work()) == 0


def test_modifications_are_counted_by_their_settings(workload):
    settings, tokenizer = workload.profile.modifications, workload.tokenizer
    tuning = create("finetune_alpaca", settings)
    trained = workload.modification(tuning)
    assert trained.steps == 2 * 24 / 8
    exact = sum(
        len(tokenizer(f"{each.prompt} {each.answer}{tokenizer.eos_token}")["input_ids"])
        for each in tuning.examples(workload.datasets.modification_context(tuning, 42, None, {}))
    )
    assert trained.trained == pytest.approx(2 * exact, rel=0.05)
    assert workload.modification(create("ria30", settings)).read == 2 * 8 * 512
    both = workload.modification(create("finetune_alpaca+ria30", settings))
    assert (both.steps, both.read) == (trained.steps, 2 * 8 * 512)
    assert workload.parameters == PARAMETERS


def test_reading_is_counted_as_the_scoring_engine_packs_it(workload):
    texts = [row["instruction"] for row in workload.datasets.alpaca[:100]]
    ids = workload.tokenizer(texts)["input_ids"]
    rows = rows_of(dict(enumerate(ids)), [1] * len(ids), 4096, 1 / 768)
    bands = workload.metric("bands", find_set("nlf"))
    assert bands.read == bands.scored == sum(len(row.tokens) for row in rows) < sum(map(len, ids))


def test_an_injection_is_counted_by_its_hyper_parameters(workload):
    pairs = find_set("nlf")
    few, many = (create_method("lora", workload.model, {"epochs": epochs}) for epochs in (1, 4))
    assert workload.injection(many, pairs).trained == 4 * workload.injection(few, pairs).trained
    assert workload.injection(few, pairs).steps == 60 / 4
    one, all_of_them = (
        workload.injection(create_method("mcedit_a", workload.model, {"candidates": which}), pairs).trained
        for which in ("primary", "all")
    )
    assert 4 < all_of_them / one < 6
    assert workload.injection(Foreign(), pairs) is None


def test_statistics_are_counted_once_for_all_editors(workload):
    names = ("lora", "alphaedit", "mcedit_a", "rledit")
    methods = [create_method(name, workload.model, {}) for name in names]
    found = workload.statistics(methods)
    assert found == workload.statistics(methods[1:2])
    assert found.decomposed == 3 * 768**3
    assert workload.statistics([methods[0], methods[3]]) == Work()


def test_a_finished_run_leaves_nothing_and_what_is_missing_is_known(small_profile, small_run, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(small_run, out)
    task = job(small_profile, out)
    assert estimate(task, plan(task.profile), {}).pending == 0
    for path in (out / "records").rglob("*"):
        if path.parent.name == "ria30" and "mcedit_a" in path.parts:
            path.unlink()
    before = listing(out)
    found = estimate(task, plan(task.profile), {})
    assert (found.cells, found.pending) == (len(plan(task.profile)), 1)
    parts = {part.name: part for part in found.parts}
    assert parts["ria30"].measured and parts["fsr"].measured
    assert "inject mcedit_a" not in parts and "key statistics" not in parts
    records = [json.loads(path.read_text()) for path in (out / "records").rglob("ria30/fsr.json")]
    assert parts["ria30"].seconds == pytest.approx(records[0]["cost"]["modification_seconds"])
    assert listing(out) == before


def test_other_settings_than_before_are_estimated(small_profile, small_run, tmp_path):
    profile = tmp_path / "other.toml"
    profile.write_text(Path(small_profile).read_text().replace("samples = 8", "samples = 9"))
    task = job(profile, small_run)
    found = estimate(task, plan(task.profile), {})
    assert found.pending == 2  # of the base, and of the method
    assert not next(part for part in found.parts if part.name == "ria30").measured


def test_a_method_of_unknown_cost_is_said_to_be_so():
    parts = (Part("m", "inject foreign", 1, None, False), Part("m", "fsr", 2, 61.0, True))
    found = Estimate(3, 3, parts, (), {"other": "it is not here."})
    text = forecast(found, Job(load_profile("micro"), {}, Loading("cpu"), Path("run")))
    assert "| unknown | nobody but its author knows" in text
    assert "without 1 of unknown cost" in text
    assert "no time for other: it is not here." in text
    assert total(found) > 61
    assert [time(each) for each in (0.04, 59, 61, 7199, 9000)] == ["0.0 s", "59 s", "2 min", "2.0 h", "2.5 h"]


def test_what_is_resident_adds_up():
    architecture = load_architecture(MODEL)
    footprint = Footprint(architecture, Loading("cpu"))
    weights = 4 * PARAMETERS
    assert footprint.resident() == Phase("model", Room(weights), Room(weights))
    assert Footprint(architecture, Loading("cpu", "bfloat16")).weights == weights / 2
    training = create("finetune_alpaca", {"finetune_alpaca": {"learning_rate": 1e-3}}).memory(footprint)
    assert training.main == Room(weights)
    editor, other = (create_method(name, architecture, {}) for name in ("alphaedit", "rledit"))
    assert footprint.spectra([editor, editor, other]) == 3 * 4 * 768**2
    assert editor.stored(footprint, 10) == 3 * 8 * 10 * (256 + 768)
    one = Phase("one", Room(1, 8), Room(30, 0))
    two = Phase("two", Room(4, 1), Room(20, 0))
    stays = Phase("stays", Room(100), Room(1000))
    assert peak([stays, one, two], card=True) == (Room(LIBRARIES + 1030, 0), Room(104, 5))
    assert peak([stays, one, two], card=False)[0] == Room(LIBRARIES + 1131, GAPS * 8)


@pytest.fixture
def giant(tmp_path):
    """A checkpoint folder of a model that no machine holds: a config and a tokenizer, no weights to speak of."""
    from transformers import AutoTokenizer, LlamaConfig

    folder = tmp_path / "giant"
    LlamaConfig(
        hidden_size=3072, intermediate_size=50_000_000, num_hidden_layers=28, num_attention_heads=24,
        num_key_value_heads=8, vocab_size=4096, bos_token_id=1, eos_token_id=2,
    ).save_pretrained(folder)  # fmt: skip
    AutoTokenizer.from_pretrained(MODEL).save_pretrained(folder)
    save_file({"none": torch.zeros(1)}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_what_cannot_fit_is_refused_before_anything_starts(capsys, tmp_path, monkeypatch, giant, more):
    monkeypatch.chdir(tmp_path)
    code = main(
        ["run", "--profile", "micro", "--model", str(giant), "--method", "mcedit_a", "--condition", "origin", *more]
    )
    captured = capsys.readouterr()
    last = captured.err.strip().splitlines()[-1]
    assert code == 2
    assert last.startswith("fpbench: model 'giant' cannot be run here: weights, copies and statistics need ")
    assert "of main memory" in last
    assert bool(captured.out) == bool(more)
    assert [path.name for path in tmp_path.iterdir()] == ["giant"]


def test_an_8b_model_needs_its_weights_twice(tmp_path):
    from transformers import LlamaConfig

    LlamaConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, vocab_size=128_256,
    ).save_pretrained(tmp_path)  # fmt: skip
    profile = load_profile("micro", methods=[], conditions=["origin", "nf4"])
    task = Job(profile, {"micro": tmp_path}, Loading("cpu", "bfloat16"), tmp_path / "out")
    needs = needs_of("micro", Worker(task, no_progress), plan(profile))
    assert 2 * 16.06e9 < needs.main.fixed < 2 * 16.06e9 + 2e9
    assert needs.card == Room()


def test_a_full_disk_is_refused(small_profile, tmp_path):
    task = job(small_profile, tmp_path)
    needs = needs_of("micro", Worker(task, no_progress), plan(task.profile))
    refuse([needs], task)
    with pytest.raises(fpbench.errors.InputError, match=r"would write \d+\.\d GiB to .*: choose another disk"):
        refuse([type(needs)("micro", Room(), Room(), 1e18)], task)


def test_models_that_are_not_here_keep_their_cells(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    assert main(["run", "--profile", "paper", "--dry-run", "--method", "lora", "--condition", "origin"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("Llama-3.2-3B-Instruct/if/base/seed-42/origin/bands")
    assert "no time for Qwen3-8B: model 'Qwen/Qwen3-8B'" in captured.err
    assert list(tmp_path.iterdir()) == []


def test_every_method_of_the_package_can_be_counted(workload):
    for name in METHODS.own:
        found = workload.injection(create_method(name, workload.model, {}), find_set("nlf"))
        assert found is not None and found.steps > 0
