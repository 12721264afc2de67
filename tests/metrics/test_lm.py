"""The prefix-sharing lm-eval model against lm-eval's own, on lm-eval's own tasks and real rows."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from fpbench.metrics.lm import PrefixSharingLM
from fpbench.scoring.engine import limited_to
from tests.conftest import require

ROWS = 10
SUBJECTS = ("abstract_algebra", "anatomy", "philosophy", "professional_law", "high_school_world_history")
# Task, file below the data folder, and the split that lm-eval scores.
STOCK = {
    "boolq": ("boolq/validation_superglue.jsonl", "validation"),
    "rte": ("rte/validation.jsonl", "validation"),
    "arc_challenge": ("arc_challenge/test.jsonl", "test"),
    "arc_easy": ("arc_easy/test.jsonl", "test"),
    "piqa": ("piqa/validation.jsonl", "validation"),
    "openbookqa": ("openbookqa/validation.jsonl", "test"),
    "copa": ("copa/validation.jsonl", "validation"),
    "cb": ("cb/validation.jsonl", "validation"),
    "sst2": ("sst2/validation.jsonl", "validation"),
    "mrpc": ("mrpc/validation.jsonl", "validation"),
    **{f"mmlu_{subject}": ("mmlu/test.jsonl", "test") for subject in SUBJECTS},
}


@pytest.fixture(scope="module")
def scorers(stories: tuple[Any, Any]) -> tuple[Any, Any]:
    from lm_eval.models.huggingface import HFLM

    model, tokenizer = stories
    made = [kind(model, tokenizer=copy.deepcopy(tokenizer), max_length=512) for kind in (HFLM, PrefixSharingLM)]
    return made[0], made[1]


def answers(scorer: Any, task: Any) -> list[list[tuple[float, bool]]]:
    from lm_eval.evaluator import evaluate

    (samples,) = evaluate(scorer, task, bootstrap_iters=0)["samples"].values()
    return [sample["filtered_resps"] for sample in sorted(samples, key=lambda sample: sample["doc_id"])]


@pytest.fixture(scope="module")
def manager() -> Any:
    import lm_eval.tasks

    # Their folders alone: to index all of lm-eval's takes half a minute.
    folders = ("super_glue", "glue", "arc", "piqa", "openbookqa", "mmlu/default")
    there = Path(lm_eval.tasks.__file__).parent
    return lm_eval.tasks.TaskManager(include_path=[there / each for each in folders], include_defaults=False)


def stock_task(manager: Any, name: str, rows: list[dict[str, Any]], split: str, folder: Path) -> Any:
    """lm-eval's own task with a file in the place of its hub data."""
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    splits = {each: str(path) for each in ("train", "dev", "validation", "test")}
    source = {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": splits}}
    # A task named within a group takes the group's word over its own.
    tasks = manager.load([{"group": "stock", "task": [{"task": name, "num_fewshot": 0, **source}]}])["tasks"]
    (task,) = tasks.values()
    assert task.eval_docs.num_rows == len(rows) and split in (task.config.test_split, task.config.validation_split)
    return {"tasks": tasks}


@pytest.mark.parametrize("name", STOCK)
def test_log_likelihoods_are_those_of_hf(name: str, manager: Any, scorers: Any, shared: Path, tmp_path: Path) -> None:
    file, split = STOCK[name]
    with require(shared / "data" / file).open(encoding="utf-8") as lines:
        found = [json.loads(line) for line in lines]
    if name.startswith("mmlu_"):
        found = [row for row in found if row["subject"] == name.removeprefix("mmlu_")]
    task = stock_task(manager, name, found[:ROWS], split, tmp_path)
    theirs, ours = (answers(scorer, task) for scorer in scorers)
    assert len(ours) == min(ROWS, len(found)) and len({len(choices) for choices in ours}) >= 1
    for expected, measured in zip(theirs, ours, strict=True):
        assert len(expected) == len(measured) >= 2
        for (score, greedy), (own, own_greedy) in zip(expected, measured, strict=True):
            assert abs(own - score) <= max(1e-4, 1e-6 * abs(score))
            assert own_greedy == greedy


def test_neither_the_budget_nor_the_order_matters(scorers: Any) -> None:
    from lm_eval.api.instance import Instance

    texts = [("The dog", " was happy"), ("The dog", " ran"), ("", "Once upon a time"), ("Tom saw", " a big red ball")]
    requests = [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(texts)]
    expected = scorers[1].loglikelihood(requests, disable_tqdm=True)
    with limited_to(3):
        assert [score for score, _ in scorers[1].loglikelihood(requests, disable_tqdm=True)] == pytest.approx(
            [score for score, _ in expected], abs=1e-4
        )
    back = scorers[1].loglikelihood(requests[::-1], disable_tqdm=True)[::-1]
    assert [score for score, _ in back] == pytest.approx([score for score, _ in expected], abs=1e-4)
    assert len({score for score, _ in expected}) == len(texts)


def test_it_is_registered_beside_hf() -> None:
    from lm_eval.api.registry import get_model

    assert get_model("fpbench") is PrefixSharingLM
