"""Our task files against lm-eval's own tasks: recorded scores of version 0.4.13 (../shared/parity/README.md)."""

import json
from typing import Any

import numpy as np
import pytest

from fpbench.metrics.utility import ACCURACY_TASKS, TASKS, Utility, task_folder, utility
from tests.conftest import load_plain, require
from tests.parity import MODEL, Recording, sets

SETTINGS = {"documents", "num_fewshot", "batch_size", "prompt_templates", "prefix_token_id", "max_length"}


@pytest.fixture(scope="module", params=sets("lm_eval"))
def recording(request: pytest.FixtureRequest) -> Recording:
    found: Recording = request.param
    return found


@pytest.fixture(scope="module")
def model() -> tuple[Any, Any]:
    return load_plain(require(MODEL))


@pytest.fixture(scope="module")
def sources(recording: Recording, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The recorded documents as files, by task."""
    folder = tmp_path_factory.mktemp("documents")
    paths = {name: folder / f"{name}.jsonl" for name in recording.inputs["documents"]}
    for name, path in paths.items():
        path.write_text("\n".join(json.dumps(row) for row in recording.inputs["documents"][name]), encoding="utf-8")
    return {name: str(path) for name, path in paths.items()}


@pytest.fixture(scope="module")
def measured(recording: Recording, model: tuple[Any, Any], sources: dict[str, str]) -> Utility:
    known = {name: source for name, source in sources.items() if name in TASKS}
    return utility(*model, known, max_length=recording.inputs["max_length"])


def test_the_set_asks_for_what_is_implemented(recording: Recording, model: tuple[Any, Any]) -> None:
    inputs = recording.inputs
    assert inputs["documents"]
    for task in inputs["documents"]:
        recording.implemented("a task", task, TASKS)
    for name in inputs:
        recording.implemented("a setting", name, SETTINGS)
    recording.implemented("num_fewshot", inputs["num_fewshot"], [0])
    recording.implemented("prefix_token_id", inputs["prefix_token_id"], [model[1].bos_token_id])


@pytest.mark.parametrize("name", ["hf", "fpbench"])
def test_log_likelihoods_of_every_choice(
    name: str, recording: Recording, sources: dict[str, str], model: tuple[Any, Any], measured: Utility
) -> None:
    from lm_eval.api.registry import get_model
    from lm_eval.evaluator import evaluate
    from lm_eval.tasks import TaskManager

    scorer = get_model(name)(model[0], tokenizer=model[1], batch_size=8, max_length=recording.inputs["max_length"])
    for task in measured.tasks:
        manager = TaskManager(include_path=task_folder(), include_defaults=False, metadata={"source": sources[task]})
        samples = evaluate(scorer, manager.load(f"fpbench_{task}"), bootstrap_iters=0)["samples"][f"fpbench_{task}"]
        expected, greedy = recording[f"{task}.loglikelihood"].numpy(), recording[f"{task}.is_greedy"].numpy()
        for sample, row, is_greedy in zip(samples, expected, greedy, strict=True):
            ours, ours_greedy = zip(*sample["filtered_resps"], strict=True)
            np.testing.assert_allclose(ours, row[~np.isnan(row)], rtol=0, atol=1e-4, err_msg=task)
            assert ours_greedy == tuple(is_greedy[~np.isnan(row)]), task
        assert [sample["target"] for sample in samples] == recording[f"{task}.target"].tolist()


def test_correctness_of_every_example(recording: Recording, measured: Utility) -> None:
    for name, task in measured.tasks.items():
        assert task.correct == tuple((recording[f"{name}.acc"] == 1).tolist()), name
        normalized = recording.tensors.get(f"{name}.acc_norm")
        assert task.correct_normalized == (None if normalized is None else tuple((normalized == 1).tolist())), name
        assert task.accuracy == pytest.approx(recording.outputs["aggregates"][name]["acc,none"])


def test_word_perplexity(recording: Recording, measured: Utility) -> None:
    if "wikitext" not in recording.inputs["documents"]:
        pytest.skip(f"{recording.folder} holds no wikitext")
    found = measured.wikitext
    assert found is not None
    expected = recording["wikitext.loglikelihood"].numpy()
    np.testing.assert_allclose(found.log_likelihoods, expected, rtol=1e-7, atol=1e-4)
    assert list(found.words) == recording["wikitext.words"].tolist()
    assert found.word_perplexity == pytest.approx(
        recording.outputs["aggregates"]["wikitext"]["word_perplexity,none"], rel=1e-6
    )


def test_every_recorded_task_is_compared(recording: Recording, measured: Utility) -> None:
    recorded = {name.split(".")[0] for name in recording.tensors if name.endswith(".loglikelihood")}
    compared = measured.tasks.keys() | ({"wikitext"} if measured.wikitext else set())
    assert compared == recorded and measured.tasks.keys() <= set(ACCURACY_TASKS)
