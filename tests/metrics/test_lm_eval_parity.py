"""Our task files against lm-eval's own tasks: the recorded scores of version 0.4.13 on 24 documents a task."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from fpbench.metrics.utility import Utility, task_folder, utility
from tests.conftest import PARITY, load_plain, require

TASKS = ("boolq", "rte", "arc_challenge")


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    folder = require(PARITY / "lm_eval" / "a")
    return {
        "documents": json.loads((folder / "inputs.json").read_text(encoding="utf-8"))["documents"],
        "aggregates": json.loads((folder / "outputs.json").read_text(encoding="utf-8"))["aggregates"],
        **load_file(folder / "outputs.safetensors"),
    }


@pytest.fixture(scope="module")
def model() -> tuple[Any, Any]:
    return load_plain(require(PARITY / "model"))


@pytest.fixture(scope="module")
def sources(recorded: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    folder = tmp_path_factory.mktemp("documents")
    paths = {name: folder / f"{name}.jsonl" for name in recorded["documents"]}
    for name, path in paths.items():
        path.write_text("\n".join(json.dumps(row) for row in recorded["documents"][name]), encoding="utf-8")
    yield {name: str(path) for name, path in paths.items()}


@pytest.fixture(scope="module")
def measured(model: tuple[Any, Any], sources: dict[str, str]) -> Utility:
    return utility(*model, sources, batch_size=8)


@pytest.mark.parametrize("task", TASKS)
def test_log_likelihoods_of_every_choice(
    task: str, recorded: dict[str, Any], sources: dict[str, str], model: tuple[Any, Any]
) -> None:
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=task_folder(), include_defaults=False, metadata={"source": sources[task]})
    scorer = HFLM(model[0], tokenizer=model[1], batch_size=8)
    samples = evaluate(scorer, manager.load(f"fpbench_{task}"), bootstrap_iters=0)["samples"][f"fpbench_{task}"]
    expected = recorded[f"{task}.loglikelihood"]
    for sample, row in zip(samples, expected, strict=True):
        ours = [score for score, _ in sample["filtered_resps"]]
        np.testing.assert_allclose(ours, row[~np.isnan(row)], rtol=0, atol=1e-4)
    assert [sample["target"] for sample in samples] == recorded[f"{task}.target"].tolist()


@pytest.mark.parametrize("task", TASKS)
def test_correctness_of_every_example(task: str, recorded: dict[str, Any], measured: Utility) -> None:
    assert measured.tasks[task].correct == tuple(recorded[f"{task}.acc"] == 1)
    normalized = measured.tasks[task].correct_normalized
    assert normalized is None or normalized == tuple(recorded[f"{task}.acc_norm"] == 1)
    assert (normalized is not None) == (task == "arc_challenge")


def test_word_perplexity(recorded: dict[str, Any], measured: Utility) -> None:
    assert measured.wikitext is not None
    np.testing.assert_allclose(measured.wikitext.log_likelihoods, recorded["wikitext.loglikelihood"], rtol=0, atol=1e-4)
    assert list(measured.wikitext.words) == recorded["wikitext.words"].tolist()
    expected = recorded["aggregates"]["wikitext"]["word_perplexity,none"]
    assert measured.word_perplexity == pytest.approx(expected, rel=1e-6)
