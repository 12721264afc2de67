"""Utility of real models on cuts of real data, through lm-eval."""

import copy
import json
import logging
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from fpbench.data import digest
from fpbench.errors import CellError, InputError
from fpbench.metrics.utility import ACCURACY_TASKS, Accuracy, Utility, task_folder, utility
from fpbench.micro import DATA, MODEL
from fpbench.scoring.engine import limited_to
from tests.conftest import require
from tests.launch import launch

REAL = {
    "boolq": "boolq/validation.jsonl",
    "rte": "rte/validation.jsonl",
    "arc_challenge": "arc_challenge/test.jsonl",
    "tinymmlu": "tiny_mmlu_anchors/test.jsonl",
}
TWINS = {"boolq": "boolq", "rte": "rte", "arc_challenge": "arc", "tinymmlu": "mmlu"}


@pytest.fixture(scope="module")
def sources(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Eight rows of each real task and the first lines of WikiText-2."""
    folder = tmp_path_factory.mktemp("cuts")
    for name, path in REAL.items():
        lines = (shared / "data" / path).read_text(encoding="utf-8").split("\n")[:8]
        (folder / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    wiki = (shared / "data" / "wikitext2" / "wiki.test.raw").read_text(encoding="utf-8")
    (folder / "wikitext.txt").write_text(wiki[:6000], encoding="utf-8")
    return {path.stem: str(path) for path in folder.iterdir()}


@pytest.fixture(scope="module")
def measured(stories: tuple[Any, Any], sources: dict[str, str]) -> Utility:
    return utility(*stories, sources)


def test_all_tasks_are_measured(measured: Utility, sources: dict[str, str]) -> None:
    assert tuple(measured.tasks) == ACCURACY_TASKS
    assert measured.max_length == 512
    for name, task in measured.tasks.items():
        assert task.n == 8 and 0 <= task.accuracy <= 1
        assert task.digest == digest(sources[name])
    assert measured.accuracy == pytest.approx(sum(task.accuracy for task in measured.tasks.values()) / 4)
    assert measured.examples["rte"] == measured.tasks["rte"].correct
    assert measured.word_perplexity is not None and 1_000 < measured.word_perplexity < 1_000_000


def test_repeated_and_differently_batched_runs_agree(
    stories: tuple[Any, Any], sources: dict[str, str], measured: Utility
) -> None:
    chosen = {name: sources[name] for name in ("rte", "wikitext")}
    again = utility(*stories, chosen)
    assert again.tasks["rte"] == measured.tasks["rte"] and again.wikitext == measured.wikitext
    with limited_to(1):
        single = utility(*stories, chosen)
    assert single.tasks["rte"].correct == measured.tasks["rte"].correct
    assert single.word_perplexity == pytest.approx(measured.word_perplexity, rel=1e-4)


def test_correct_is_the_likelier_answer(stories: tuple[Any, Any], sources: dict[str, str], measured: Utility) -> None:
    model, tokenizer = stories
    for line, correct in zip(Path(sources["rte"]).read_text().split("\n"), measured.examples["rte"], strict=True):
        row = json.loads(line)
        prompt = f"{row['sentence1']}\nQuestion: {row['sentence2']} True or False?\nAnswer:"
        scores = []
        for answer in (" True", " False"):
            start, ids = len(tokenizer(prompt).input_ids), tokenizer(prompt + answer, return_tensors="pt").input_ids
            logs = model(ids).logits.log_softmax(-1)[0, :-1].gather(-1, ids[0, 1:, None])
            scores.append(logs[start - 1 :].sum().item())
        assert correct == (scores.index(max(scores)) == row["label"])


def test_a_subset_has_no_mean_of_four(stories: tuple[Any, Any], sources: dict[str, str]) -> None:
    part = utility(*stories, {"tinymmlu": sources["tinymmlu"]}, limit=3)
    assert part.tasks["tinymmlu"].n == 3 and part.accuracy is None
    assert part.wikitext is None and part.word_perplexity is None


def test_a_damaged_model_scores_worse(stories: tuple[Any, Any], sources: dict[str, str], measured: Utility) -> None:
    model = copy.deepcopy(stories[0])
    model.model.layers[2].mlp.down_proj.weight.mul_(-3)
    damaged = utility(model, stories[1], {"wikitext": sources["wikitext"]})
    assert damaged.word_perplexity is not None and measured.word_perplexity is not None
    assert damaged.word_perplexity > 2 * measured.word_perplexity


@pytest.mark.parametrize("value", [float("nan"), 1e30])
def test_a_broken_model_fails_the_cell(stories: tuple[Any, Any], sources: dict[str, str], value: float) -> None:
    model = copy.deepcopy(stories[0])
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight) * value, requires_grad=False)
    head = model.lm_head.weight
    with pytest.raises(CellError, match="(the model is|its weights are) broken"):
        utility(model, stories[1], {"wikitext": sources["wikitext"]})
    assert model.lm_head.weight is head  # a head of its own is not tied to the embeddings again


def test_the_window_is_respected_and_cut_prompts_are_counted(stories: tuple[Any, Any], sources: dict[str, str]) -> None:
    short = utility(*stories, {name: sources[name] for name in ("boolq", "wikitext")}, max_length=64)
    assert short.max_length == 64
    assert short.tasks["boolq"].truncated == 8
    assert utility(*stories, {"arc_challenge": sources["arc_challenge"]}).tasks["arc_challenge"].truncated == 0


def test_both_forms_of_boolq_give_the_same(
    stories: tuple[Any, Any], sources: dict[str, str], measured: Utility, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in Path(sources["boolq"]).read_text(encoding="utf-8").split("\n")]
    glue = [{"question": r["question"], "passage": r["passage"], "label": int(r["answer"])} for r in rows]
    (tmp_path / "glue.jsonl").write_text("\n".join(map(json.dumps, glue)), encoding="utf-8")
    again = utility(*stories, {"boolq": str(tmp_path / "glue.jsonl")})
    assert again.examples["boolq"] == measured.examples["boolq"]


def test_no_socket_no_cache_no_noise_no_trace(
    stories: tuple[Any, Any],
    sources: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.chdir(tmp_path)
    tokenizer = copy.deepcopy(stories[1])
    state, random_state = str(tokenizer), torch.get_rng_state()
    levels = [logging.getLogger(name).level for name in ("lm_eval", "datasets", "transformers")]
    capfd.readouterr()
    utility(stories[0], tokenizer, {name: sources[name] for name in ("boolq", "wikitext")}, limit=2)
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []
    assert str(tokenizer) == state and torch.equal(torch.get_rng_state(), random_state)
    assert [logging.getLogger(name).level for name in ("lm_eval", "datasets", "transformers")] == levels


@pytest.mark.parametrize(
    ("task", "row", "reason"),
    [
        ("rte", '{"sentence1": "a", "label": 0}', "row 1: expected the field 'sentence2'"),
        ("boolq", '{"passage": "a", "question": "b"}', "row 1: expected the field 'label'"),
        ("rte", '{"sentence1": "a", "sentence2": "b", "label": -1}', "row 1.*gold answer -1 is none of the 2"),
        ("tinymmlu", '{"question": "a", "choices": ["x"], "answer": 0}', "row 1: expected a row of tinymmlu"),
        ("arc_challenge", '{"question": "a", "choices": {"text": ["x"], "label": ["A"]}, "answerKey": "B"}', "row 1.*"),
        ("wikitext", '{"words": "a"}', "row 1: expected the field 'text'"),
        ("rte", '{"sentence1": ', "line 1.*broken JSON"),
    ],
)
def test_data_that_do_not_fit_are_refused(
    stories: tuple[Any, Any], tmp_path: Path, task: str, row: str, reason: str
) -> None:
    (tmp_path / "rows.jsonl").write_text(row, encoding="utf-8")
    with pytest.raises(InputError, match=reason) as caught:
        utility(*stories, {task: str(tmp_path / "rows.jsonl")})
    assert "\n" not in str(caught.value)


def test_the_row_with_no_answer_is_named(stories: tuple[Any, Any], sources: dict[str, str], tmp_path: Path) -> None:
    lines = Path(sources["tinymmlu"]).read_text(encoding="utf-8").split("\n")
    lines[5] = json.dumps(json.loads(lines[5]) | {"answer": 4})
    (tmp_path / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(InputError, match="row 6.*gold answer 4 is none of the 4 choices"):
        utility(*stories, {"tinymmlu": str(tmp_path / "rows.jsonl")})


@pytest.mark.parametrize(
    ("sources", "limit", "reason"),
    [
        ({"mmlu": "x.jsonl"}, None, "boolq, rte, arc_challenge, tinymmlu, wikitext, found mmlu"),
        ({}, None, "found none"),
        ({"rte": "x.jsonl"}, 0, "found 0"),
        ({"rte": "absent.jsonl"}, None, "No such file"),
    ],
)
def test_wrong_requests_are_refused(sources: dict[str, str], limit: int | None, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        utility(None, None, sources, limit=limit)


def test_accuracies() -> None:
    task = Accuracy((True, False, False, True), (True, True, True, False), 0, "")
    assert (task.n, task.accuracy, task.accuracy_normalized) == (4, 0.5, 0.75)


def test_every_task_file_is_known_to_lm_eval() -> None:
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=task_folder(), include_defaults=False)
    assert {path.stem for path in task_folder().glob("*.yaml")} <= {*manager.all_subtasks, *manager.all_groups}
    micro = manager.load("micro_utility")["tasks"]
    assert sorted(micro) == ["micro_arc", "micro_boolq", "micro_mmlu", "micro_prose", "micro_rte"]
    for name, twin in TWINS.items():
        assert len(micro[f"micro_{twin}"].eval_docs) >= 300, name


def run_lm_eval(model: Path, out: Path, tasks: str, *options: str) -> dict[str, Any]:
    """Run lm-eval's own command on our task files; returns its results by task."""
    command = ["run", "--include_path", str(task_folder()), "--tasks", tasks]
    command += ["--model", "hf", "--model_args", f"pretrained={model},dtype=float32", "--device", "cpu"]
    command += ["--batch_size", "32", "--output_path", str(out), *options]
    finished = launch("lm_eval", *command, cwd=out)
    assert finished.returncode == 0, finished.stderr[-3000:]
    (results,) = out.rglob("results_*.json")
    found: dict[str, Any] = json.loads(results.read_text())["results"]
    return found


def test_plain_lm_eval_gives_the_same_on_real_data(
    shared: Path, stories: tuple[Any, Any], sources: dict[str, str], measured: Utility, tmp_path: Path
) -> None:
    option = json.dumps({"source": sources["arc_challenge"]})
    found = run_lm_eval(shared / "models" / "stories3M", tmp_path, "fpbench_arc_challenge", "--metadata", option)
    assert found["fpbench_arc_challenge"]["acc,none"] == measured.tasks["arc_challenge"].accuracy
    assert found["fpbench_arc_challenge"]["acc_norm,none"] == measured.tasks["arc_challenge"].accuracy_normalized


@pytest.mark.slow
def test_plain_lm_eval_gives_the_same_on_micro_data(micro: tuple[Any, Any], tmp_path: Path) -> None:
    sources = {name: f"bundled:{twin}.jsonl" for name, twin in TWINS.items()} | {"wikitext": "bundled:prose.txt"}
    ours = utility(*micro, sources, limit=40)
    found = run_lm_eval(require(MODEL), tmp_path, "micro_utility", "--limit", "40")
    for name, twin in TWINS.items():
        assert found[f"micro_{twin}"]["acc,none"] == pytest.approx(ours.tasks[name].accuracy)
    assert found["micro_prose"]["word_perplexity,none"] == pytest.approx(ours.word_perplexity, rel=1e-4)


def test_the_micro_twins_show_that_the_micro_model_can(micro: tuple[Any, Any]) -> None:
    require(DATA / "arc.jsonl")
    found = utility(*micro, {name: f"bundled:{twin}.jsonl" for name, twin in TWINS.items()}, limit=40)
    chance = {"boolq": 0.5, "rte": 0.5, "arc_challenge": 0.25, "tinymmlu": 0.25}
    assert all(task.accuracy > chance[name] + 0.15 for name, task in found.tasks.items()), found.examples
