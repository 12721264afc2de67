"""Learning-rate searches: decisions without a model, trainings on the bundled one."""

import copy
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import fpbench
from fpbench.errors import CellError, InputError
from fpbench.fingerprints import find_set
from fpbench.micro import MODEL
from fpbench.models.loading import Loading, save_checkpoint
from fpbench.models.meter import no_progress
from fpbench.models.training import score_answers
from fpbench.models.weights import weights
from fpbench.modifications.finetune import instruction
from fpbench.records.cell import CHECKPOINT, Cell
from fpbench.registry import MODIFICATIONS
from fpbench.runs import search
from fpbench.runs.bench import Bench, check
from fpbench.runs.datasets import Datasets
from fpbench.runs.plan import Job, plan
from fpbench.runs.profile import load_profile
from fpbench.runs.search import (
    FINE_TUNING_RATES,
    HELD_OUT,
    INJECTION_RATES,
    FineTuningTrial,
    InjectionTrial,
    best,
    climb,
    development_set,
    fine_tuning_rate,
    fine_tuning_trials,
    injection_rate,
    instability,
    largest_stable,
)
from fpbench.runs.subject import Subject

ADD = """
[modifications.fsft_alpaca]
rows = 16
epochs = 2
batch_size = 8
learning_rate = "search"
strength = 1000.0

[hyperparameters.lora]
learning_rate = "search"
epochs = 4
"""


@pytest.fixture(scope="module")
def searching(small_profile, tmp_path_factory) -> str:
    """The small grid with searches in place of its rates."""
    path = tmp_path_factory.mktemp("profile") / "searching.toml"
    text = Path(small_profile).read_text().replace("learning_rate = 2e-4", 'learning_rate = "search"')
    path.write_text(text + ADD)
    return str(path)


def shorten(patch):
    """Two rates each, the first ones of the protocol and the ends of the injection's grid, and 24 held-out rows."""
    patch.setattr(search, "FINE_TUNING_RATES", FINE_TUNING_RATES[:2])
    patch.setattr(search, "INJECTION_RATES", INJECTION_RATES[::4])
    patch.setattr(search, "HELD_OUT", 24)


@pytest.fixture(autouse=True)
def short_grids(monkeypatch):
    shorten(monkeypatch)


def subject_of(profile, folder, **changes):
    wanted = load_profile(profile, **changes)
    return Subject(Job.of(wanted, Loading("cpu"), folder), "micro", Datasets(wanted), no_progress)


def context_of(subject):
    return subject.datasets.modification_context(fine_tuning(subject), 42, no_progress, weights(subject.model))


def fine_tuning(subject, **changes):
    settings = subject.profile.modifications["finetune_alpaca"] | changes
    return MODIFICATIONS.get("finetune_alpaca")(**settings)


# Decisions


def test_the_grids_are_the_protocol_s():
    assert FINE_TUNING_RATES == (1e-4, 2e-4, 3e-4, 4e-4, 5e-4, 6e-4, 7e-4, 8e-4, 9e-4, 1e-3)
    assert INJECTION_RATES == (5e-5, 1e-4, 2e-4, 5e-4, 1e-3)
    assert HELD_OUT == 200


@pytest.mark.parametrize(
    ("losses", "held_out", "verdict"),
    [
        ([2.0], [2.1], None),
        ([2.0, 1.5, 1.4], [2.1, 2.0, 2.1], None),
        ([2.0, 2.0001], [2.1, 2.0], "mean loss rose from 2.0000 to 2.0001 in epoch 2"),
        ([2.0, 1.5, 1.4], [2.1, 2.0, 2.11], "held-out loss rose from 2.1000 in epoch 1 to 2.1100 in epoch 3"),
        ([math.nan], [2.0], "loss after epoch 1 is not finite"),
        ([2.0, 1.9], [2.0, math.inf], "loss after epoch 2 is not finite"),
    ],
)
def test_instability(losses, held_out, verdict):
    found = instability(losses, held_out)
    assert found is None if verdict is None else verdict in found


def climbed(limit):
    return climb(lambda rate: FineTuningTrial(rate, (1.0,), (1.0,), "unstable" if rate > limit else None))


def test_the_climb_ends_at_the_first_unstable_rate(monkeypatch):
    monkeypatch.setattr(search, "FINE_TUNING_RATES", FINE_TUNING_RATES)
    assert [trial.learning_rate for trial in climbed(2.5e-4)] == [1e-4, 2e-4, 3e-4]
    assert largest_stable(climbed(2.5e-4)) == 2e-4
    assert (len(climbed(1)), largest_stable(climbed(1))) == (10, 1e-3)
    assert largest_stable(climbed(0)) is None


def test_the_best_injection_costs_little_and_a_tie_goes_to_the_smaller_rate():
    trials = [
        InjectionTrial(1e-4, 0.5, 0.0),
        InjectionTrial(2e-4, 0.75, 0.25),
        InjectionTrial(5e-4, 1.0, 0.625),
        InjectionTrial(1e-3, verdict="non-finite"),
    ]
    assert best(trials) == 1e-4
    assert best(trials[1:]) == 2e-4
    assert best(trials[3:]) is None


# The search for fine-tuning


@pytest.fixture(scope="module")
def searched(searching, tmp_path_factory):
    """The folder, the context and the outcome of a search, and its record."""
    folder = tmp_path_factory.mktemp("searched")
    subject = subject_of(searching, folder)
    before, context = weights(subject.model), context_of(subject)
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch)
        found = fine_tuning_rate(subject, fine_tuning(subject), context)
    assert all(torch.equal(value, before[name]) for name, value in subject.model.named_parameters())
    return folder, context, found, json.loads((folder / "searches" / found.record).read_text())


def test_a_search_is_made_once_and_leaves_the_model_as_it_was(searching, searched, tmp_path):
    folder, context, found, record = searched
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "searches" / found.record
    subject = subject_of(searching, tmp_path)
    assert [trial["learning_rate"] for trial in record["trials"]] == [1e-4, 2e-4]
    assert found.learning_rate == record["learning_rate"] == 2e-4
    assert all(len(trial["epoch_losses"]) == len(trial["held_out_losses"]) == 2 for trial in record["trials"])
    # Found again, also by FSFT, whose plain fine-tuning it is; not by a training of other settings.
    made = path.stat().st_mtime_ns
    spared = MODIFICATIONS.get("fsft_alpaca")(**subject.profile.modifications["fsft_alpaca"])
    assert fine_tuning_rate(subject_of(searching, tmp_path), spared, context) == found
    assert path.stat().st_mtime_ns == made
    path.write_text("{")  # damaged, as after a power cut
    assert fine_tuning_rate(subject, fine_tuning(subject), context) == found
    assert json.loads(path.read_text())["trials"] == record["trials"]
    assert fine_tuning_rate(subject, fine_tuning(subject, rows=24), context).record != found.record


def test_the_search_starts_from_the_base_also_in_an_injected_model(searching, tmp_path):
    subject = subject_of(searching, tmp_path)
    context = context_of(subject)
    arguments = subject.model, subject.tokenizer, fine_tuning(subject, rows=8, epochs=1), context
    from_base = fine_tuning_trials(*arguments)
    subject.model.model.layers[0].mlp.down_proj.weight.mul_(1.5)
    assert fine_tuning_trials(*arguments) == from_base


def test_the_rate_of_a_trial_gives_its_curve_again(searching, searched, tmp_path):
    _, context, _, record = searched
    subject = subject_of(searching, tmp_path)
    proof = fine_tuning(subject, learning_rate=2e-4).apply(subject.model, subject.tokenizer, context).proof
    assert proof["loss_curve"] == record["trials"][1]["epoch_losses"]
    following = [instruction(row) for row in subject.datasets.alpaca[16:40]]
    measured = score_answers(subject.model, subject.tokenizer, following, 8)
    assert measured.loss == pytest.approx(record["trials"][1]["held_out_losses"][-1], rel=1e-5)


def test_where_no_rate_is_stable_the_cell_fails_and_says_why(searching, tmp_path, monkeypatch):
    monkeypatch.setattr(search, "FINE_TUNING_RATES", (1e30, 2e30))
    subject = subject_of(searching, tmp_path)
    for _ in range(2):  # the second time from the record
        with pytest.raises(CellError, match="no learning rate will do .*: at 1e[+]30 training became non-finite"):
            fine_tuning_rate(subject, fine_tuning(subject), context_of(subject))
    (path,) = (tmp_path / "searches").iterdir()
    assert len(json.loads(path.read_text())["trials"]) == 1


def test_a_search_needs_its_held_out_rows_and_the_base(searching, tmp_path):
    subject = subject_of(searching, tmp_path)
    with pytest.raises(InputError, match="needs 1214 rows of the data set 'alpaca', found 1200"):
        fine_tuning_rate(subject, fine_tuning(subject, rows=1190), context_of(subject))
    with pytest.raises(InputError, match="which is not known: give the base, or a rate"):
        fine_tuning_rate(subject, fine_tuning(subject), replace(context_of(subject), base={}))
    with pytest.raises(InputError, match="only a run .* can: give a number"):
        fpbench.modify(subject.model, subject.tokenizer, "finetune_alpaca", {"learning_rate": "search"})
    assert not (tmp_path / "searches").exists()


# The search for an injection


def test_a_development_set_is_of_the_same_make_and_shares_no_word():
    words = [f"word{a}{b}".replace("word", "w") for a in "abcdefghij" for b in "klmnopqrst"]
    for name in ("nlf", "if"):
        board = find_set(name)
        made = development_set(board, words)
        assert len(made) == len(board)
        assert [len(each.targets) for each in made] == [len(each.targets) for each in board]
        assert len(made.targets) == len(board.targets)
        ours, theirs = ({w.lower() for f in each for w in " ".join(f.targets).split()} for each in (made, board))
        assert not ours & theirs
        assert not {each.trigger for each in made} & {each.trigger for each in board}
    nlf = development_set(find_set("nlf"), words)
    assert all(each.trigger.isupper() and len(each.trigger.split()) == 2 for each in nlf)
    assert all(target.istitle() for target in nlf.targets)
    triggers = [{word.lower() for each in pairs for word in each.trigger.split()} for pairs in (nlf, find_set("nlf"))]
    assert not triggers[0] & triggers[1]
    assert development_set(find_set("nlf"), words) == nlf
    with pytest.raises(InputError, match="needs 50 words for its targets, found"):
        development_set(find_set("nlf"), words[:50])


def test_the_injection_s_rate_is_searched_once_on_held_out_rows(searching, tmp_path):
    subject = subject_of(searching, tmp_path, methods=["lora"])
    before = weights(subject.model)
    found = injection_rate(subject, "lora", find_set("nlf"))
    assert all(torch.equal(value, before[name]) for name, value in subject.model.named_parameters())
    (path,) = (tmp_path / "searches").iterdir()
    assert path.name == found.record
    record = json.loads(path.read_text())
    scores = {trial["learning_rate"]: trial["fsr"] - trial["accuracy_drop"] for trial in record["trials"]}
    assert list(scores) == [5e-5, 1e-3]
    assert scores[found.learning_rate] == max(scores.values())
    assert all(trial["verdict"] is None for trial in record["trials"])
    made = path.stat().st_mtime_ns
    assert injection_rate(subject_of(searching, tmp_path, methods=["lora"]), "lora", find_set("nlf")) == found
    assert path.stat().st_mtime_ns == made


def test_a_search_for_another_method_is_refused(searching, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(Path(searching).read_text() + '\n[hyperparameters.mcedit_a]\nlearning_rate = "search"\n')
    subject = subject_of(str(path), tmp_path / "out", methods=["lora", "mcedit_a"])
    with pytest.raises(InputError, match="'mcedit_a', key 'learning_rate'"):
        check(subject, ["mcedit_a"], [])
    check(subject, ["lora"], ["finetune_alpaca", "finetune_alpaca+nf4"])


# In a run


def measured(searching, folder, conditions):
    """FSR records of the base and of LoRA, by method and condition."""
    subject = subject_of(searching, folder, methods=["lora"], conditions=conditions)
    cells = [cell for cell in plan(subject.profile) if cell.metric == "fsr"]
    for method in ("base", "lora"):
        _, work = Bench(subject).measure([cell for cell in cells if cell.method == method], find_set("nlf"))
        list(work)
    return {(cell.method, cell.condition): json.loads(subject.store.record_path(cell).read_text()) for cell in cells}


@pytest.mark.slow
def test_a_run_searches_records_and_names_the_rate(searching, tmp_path):
    conditions = ["origin", "finetune_alpaca+nf4", "merge", "fsft_alpaca"]
    found = measured(searching, tmp_path, conditions)
    assert all(record["status"] == "done" for record in found.values()), found
    assert {condition for method, condition in found if method == "base"} == {"origin", "finetune_alpaca+nf4"}
    assert len(list((tmp_path / "searches").iterdir())) == 2  # one for all fine-tuning, one for the injection
    for method in ("base", "lora"):
        record = found[method, "finetune_alpaca+nf4"]
        assert record["identity"]["modification"]["finetune_alpaca"]["settings"]["learning_rate"] == "search"
        proof = record["proof"]
        assert proof["modification"]["finetune_alpaca"]["learning_rate"] == 2e-4
        assert proof["modification"]["nf4"]["bits_per_weight"] == pytest.approx(4.5, abs=0.1)
        assert (tmp_path / "searches" / proof["searches"]["finetune_alpaca"]).exists()
    assert found["lora", "merge"]["proof"]["modification"]["delta_left"] == pytest.approx(0.5, abs=1e-4)
    assert found["lora", "fsft_alpaca"]["proof"]["modification"]["learning_rate"] == 2e-4
    origin = found["lora", "origin"]
    assert origin["identity"]["hyperparameters"]["learning_rate"] == "search"
    assert origin["proof"]["injection"]["learning_rate"] in (5e-5, 1e-3)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
    assert measured(searching, tmp_path, conditions) == found
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_checkpoint_needs_its_base_only_where_it_is_compared_with_it(small_profile, tmp_path, micro):
    model, tokenizer = copy.deepcopy(micro[0]), micro[1]
    model.model.layers[0].mlp.down_proj.weight.mul_(1.5)
    save_checkpoint(model, tokenizer, tmp_path / "checkpoint")
    wanted = load_profile(small_profile, methods=[])
    cell = Cell("micro", "nlf", CHECKPOINT, 42, "merge", "fsr")
    outcomes = {}
    for base in (None, MODEL):
        folders = {"micro": base} if base else {}
        job = Job(wanted, folders, Loading("cpu"), tmp_path / f"out-{base is None}", tmp_path / "checkpoint")
        subject = Subject(job, "micro", Datasets(wanted), no_progress, handed_in=True)
        _, work = Bench(subject).measure([cell], find_set("nlf"))
        list(work)
        outcomes[base] = json.loads(subject.store.record_path(cell).read_text())
    assert "give the base" in outcomes[None]["reason"]
    assert outcomes[MODEL]["proof"]["modification"]["delta_left"] == pytest.approx(0.5, abs=1e-4)
    assert outcomes[None]["id"] != outcomes[MODEL]["id"]
