"""What a run will take: its work, the price of it, what was measured before; and what cannot fit is refused."""

import json
import re
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
from fpbench.models.checkpoints import shape_of
from fpbench.models.costs import Phase, Room, Work
from fpbench.models.loading import Loading, load_architecture, load_tokenizer
from fpbench.models.meter import no_progress
from fpbench.registry import METHODS
from fpbench.runs import forecast as forecasting
from fpbench.runs.datasets import Datasets
from fpbench.runs.forecast import Estimate, Part, _longest, estimate, forecast, time, total
from fpbench.runs.injection import create_method
from fpbench.runs.memory import GAPS, LIBRARIES, Footprint, needs_of, peak, refuse
from fpbench.runs.plan import Job, plan
from fpbench.runs.processes import Share
from fpbench.runs.profile import load_profile
from fpbench.runs.speed import Rate, Speed, _blocks_kept, count_speed
from fpbench.runs.unread import RoughTokenizer, with_stand_ins
from fpbench.runs.work import Workload
from fpbench.runs.worker import Worker
from fpbench.scoring.packing import rows_of
from tests.docs.markdown import read

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
        counted = forecasting._tasks(
            "micro", cells, workload, forecasting._inspected(wanted, Worker(wanted, no_progress))
        )
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
    run = forecasting._inspected(wanted, Worker(wanted, no_progress))
    tasks = list(forecasting._tasks("micro", cells, workload, run))
    origin, leaked, overwritten = (task.work.read for task in tasks if task.name == "fsr")
    assert (leaked, overwritten) == (10 * origin, origin)
    found = {task.name: task.work for task in tasks}
    assert found["overwrite@10"].steps == found["inject mcedit_a"].steps > 0 and found["unlearn_one@5"].steps == 10


def test_what_the_base_has_one_figure_of_is_counted_once(small_profile, tmp_path):
    profile = load_profile(small_profile, conditions=["origin"], fingerprints=["nlf", "cf_random"])
    wanted = Job(profile, {"micro": MODEL}, Loading("cpu"), tmp_path)
    workload = Workload(profile, Datasets(profile), load_architecture(MODEL), load_tokenizer(MODEL))
    run = forecasting._inspected(wanted, Worker(wanted, no_progress))
    tasks = [task.name for task in forecasting._tasks("micro", plan(profile), workload, run)]
    # Of two sets, each with the base and one method.
    assert (tasks.count("fsr"), tasks.count("utility"), tasks.count("bands")) == (4, 3, 2)


def test_a_price_is_the_sum_over_units():
    speed = Speed(passes=1, read=2, scored=3, steps=5, trained=7, decomposed=11, handled=13, questions=17)
    assert speed.of(Work(passes=1, trained=2) + Work(read=10, scored=1) * 2) == 1 + 2 * (2 * 10 + 3) + 2 * 7
    assert speed.of(Work()) == 0


def test_a_counted_speed_is_that_of_the_shape():
    speed = count_speed(load_architecture(MODEL), Loading("cpu"), Rate(operations=1e12, bytes=1e9, handled=1e9))
    weights = PARAMETERS - 2 * 6 * 256 - 256 - 4096 * 256  # those of the linear modules
    assert speed.read == pytest.approx(2 * weights / (0.65 * 1e12))
    assert speed.scored == pytest.approx(2 * 256 * 4096 / (0.65 * 1e12))
    assert speed.trained == 2 * speed.read and speed.steps == 2 * speed.passes
    assert speed.passes == pytest.approx(4 * weights / 1e9 + 6 * 5e-4)


@pytest.mark.parametrize("model", ["meta-llama/Llama-3.2-3B-Instruct", "Qwen/Qwen3-8B"])
def test_a_probe_has_two_blocks_however_large(model):
    """The last one computes no more than is asked for: a probe of one block alone read 8B models in no time."""
    assert _blocks_kept(load_architecture(shape_of(model))) == 2 < _blocks_kept(load_architecture(MODEL)) == 6


def test_modifications_are_counted_by_their_settings(workload):
    settings, tokenizer = workload.profile.modifications, workload.tokenizer
    tuning = create("finetune_alpaca", settings)
    trained = workload.modification(tuning)
    assert trained.steps == 2 * 16 / 8
    exact = sum(
        len(tokenizer(f"{each.prompt} {each.answer}{tokenizer.eos_token}")["input_ids"])
        for each in tuning.examples(workload.datasets.modification_context(tuning, 42, None, {}))
    )
    assert trained.trained == pytest.approx(2 * exact, rel=0.05)
    assert workload.modification(create("ria30", settings)).read == 2 * 2 * 512
    both = workload.modification(create("finetune_alpaca+ria30", settings))
    assert (both.steps, both.read) == (trained.steps, 2 * 2 * 512)
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


@pytest.mark.slow
def test_other_settings_than_before_are_estimated(small_profile, small_run, tmp_path):
    profile = tmp_path / "other.toml"
    profile.write_text(Path(small_profile).read_text().replace("samples = 2", "samples = 3"))
    task = job(profile, small_run)
    found = estimate(task, plan(task.profile), {})
    assert found.pending == 2  # of the base, and of the method
    assert not next(part for part in found.parts if part.name == "ria30").measured


def test_a_method_of_unknown_cost_is_said_to_be_so():
    parts = (Part("m", "inject foreign", 1, None, False), Part("m", "fsr", 2, 61.0, True))
    found = Estimate(3, 3, parts, (), {"other": "it is not here."}, Share(2, 1), {})
    text = forecast(found, Job(load_profile("micro"), {}, Loading("cpu"), Path("run")))
    assert "| unknown | nobody but its author knows" in text
    assert "without 1 of unknown cost" in text
    assert "no time for other: it is not here." in text
    assert 30 < total(found) < 61 and "in 2 processes of one thread each" in text
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


def test_the_paper_s_grid_is_a_summary_that_rests_on_bundled_shapes(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    assert main(["run", "--profile", "paper", "--dry-run"]) == 0
    captured = capsys.readouterr()
    assert captured.err.startswith(
        "972 cells, 972 of them to do: 3 models × 4 sets × 1 seed × (the base and 6 methods)"
    )
    summary = captured.err.splitlines()[1:6]
    assert re.match(r"time    \d+ days in one process, .* other work aside \(estimated\)$", summary[0])
    hours = summary[1].split()[0]
    assert 75 < float(hours) < 95 and f": {float(hours):.0f} h for the whole grid" in read("paper-grid.md")
    assert summary[1].endswith("two thirds of an A100's data sheet (assumed)")
    assert "bundled shapes, at the " in summary[2] and "measured on this machine now" in summary[2]
    assert summary[3].endswith("by the usual lengths of their texts: alpaca, math, calibration and 9 more")
    assert summary[4].strip() == "surer once they are here: fpbench fetch paper"
    assert "unknown" not in captured.err and max(map(len, captured.err.splitlines())) <= 130
    for shape in ("6.0 GiB to download", "13.5 GiB to download", "15.3 GiB to download"):  # docs/paper-grid.md
        assert shape in captured.err
    assert captured.out.startswith("Llama-3.2-3B-Instruct/if/base/seed-42/origin/bands")
    assert "disk    0 MiB" not in captured.err and captured.out.splitlines()[-1] == "… and 966 more cells"
    assert len((captured.err + captured.out).splitlines()) <= 40
    assert list(tmp_path.iterdir()) == []


def test_a_model_of_unknown_shape_is_named_and_left_out(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    assert main(["run", "--profile", "paper", "--model", "nobody/knows", "--condition", "origin", "--dry-run"]) == 0
    said = capsys.readouterr().err
    assert "time    unknown until models and data are here: fpbench fetch paper" in said
    assert "no time for knows: " in said and "A100" not in said


def test_stand_ins_are_as_long_as_the_data_sets(shared, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    profile, model, tokenizer = load_profile("paper"), load_architecture(MODEL), RoughTokenizer()
    datasets, stood_in = with_stand_ins(Datasets(profile), tmp_path)
    assert stood_in == list(profile.data)
    counted = Workload(profile, datasets, model, tokenizer)
    monkeypatch.setenv("FPBENCH_MIRROR", str(shared))
    assert with_stand_ins(here := Datasets(profile), tmp_path) == (here, [])
    known = Workload(profile, here, model, tokenizer)
    # RTE has 277 rows there, and not 2,490, which is all that is missing; Alpaca is the one with short answers.
    for metric, share in (("bands", 1.0), ("near", 1.0), ("triggers", 0.8), ("price", 1.0), ("utility", 0.75)):
        expected, found = (each.metric(metric, find_set("nlf")) for each in (known, counted))
        assert expected.read == pytest.approx(share * found.read, rel=0.2), metric


def test_a_token_is_four_bytes_and_equal_beginnings_are_equal_tokens():
    one, other = RoughTokenizer()(["the same words, then one", "the same words, then another"])["input_ids"]
    assert len(one) == 1 + 24 / 4 and one[:6] == other[:6] and one[6] != other[6]
    assert RoughTokenizer()("word")["input_ids"] == one[:0] + RoughTokenizer()(["word"])["input_ids"][0][1:]


def test_a_long_table_of_work_ends_in_one_line_of_what_takes_least():
    parts = [Part("micro", f"part {number}", 2, float(number), False) for number in range(30)]
    parts[3] = Part("micro", "nobody knows", 1, None, False)
    found = _longest(parts)
    assert len(found) <= 17 and found[-1].name == "14 shorter ones" and found[-1].times == 28
    assert "nobody knows" in [each.name for each in found]
    assert sum(each.seconds or 0 for each in found) == sum(each.seconds or 0 for each in parts)


def test_every_method_of_the_package_can_be_counted(workload):
    for name in METHODS.own:
        found = workload.injection(create_method(name, workload.model, {}), find_set("nlf"))
        assert found is not None and found.steps > 0
