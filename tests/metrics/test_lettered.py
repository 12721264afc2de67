"""The letter that a model answers with, against lm-eval's own generation and verdict."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fpbench.errors import InputError
from fpbench.metrics.lettered import Question, lettered, questions, verdict
from fpbench.metrics.utility import _quiet, _scorer, task_folder

ROW = {"question": " Which is blue? ", "choices": {"text": ["sky", "coal", "milk"], "label": ["1", "2", "3"]}}


@pytest.fixture
def source(tmp_path: Path) -> str:
    """Three choices and four, numbered and lettered answers, and five of which the last is right, which is left out."""
    four = {"text": ["a", "b", "c", "d"], "label": [*"ABCD"]}
    five = {"text": [*"abcde"], "label": [*"ABCDE"]}
    rows = [ROW | {"answerKey": "1"}, {"question": "Two?", "choices": four, "answerKey": "D"}]
    rows.append({"question": "Three?", "choices": five, "answerKey": "E"})
    (tmp_path / "arc.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(tmp_path / "arc.jsonl")


@pytest.mark.parametrize(
    ("text", "ended", "found"),
    [
        (" A", False, None),
        (" A.", False, True),
        (" a)\n\nsince", False, True),
        ("**A**", True, True),
        (" B", False, False),
        (" A b", False, False),
        ("", False, None),
        ("", True, False),
        (" (\ufffd", False, None),
        ("A\n", False, None),
        (".A", False, False),
    ],
)
def test_a_response_is_decided_as_soon_as_it_can_be(text: str, ended: bool, found: bool | None) -> None:
    assert verdict(text, "A", ended) is found


def test_prompts_and_verdicts_are_those_of_lm_eval(micro: tuple[Any, Any], source: str) -> None:
    """Held against ``arc_challenge_chat`` as lm-eval generates and scores it, on a model made to say a letter."""
    from lm_eval.evaluator import evaluate
    from lm_eval.tasks import TaskManager

    model, tokenizer = copy.deepcopy(micro[0]), micro[1]
    asked = questions(source)
    assert [each.letter for each in asked] == ["A", "D", "E"] and [each.choices for each in asked] == [3, 4, 4]
    head = model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone(), requires_grad=False)
    (letter,), (stop,) = (tokenizer(text, add_special_tokens=False)["input_ids"][-1:] for text in (" D", "."))
    hidden = model.model(torch.tensor([tokenizer(asked[1].prompt)["input_ids"]])).last_hidden_state[0, -1]
    head[letter] = 100 * hidden / hidden.norm()  # the answer to the second
    after = model.model(torch.tensor([[*tokenizer(asked[1].prompt)["input_ids"], letter]])).last_hidden_state[0, -1]
    head[stop] = 400 * (after - hidden) / after.norm()
    with _quiet():
        manager = TaskManager(include_path=task_folder(), include_defaults=False, metadata={"source": source})
        task = manager.load("fpbench_arc_challenge_chat")["tasks"]["fpbench_arc_challenge_chat"]
        scorer = _scorer(model, tokenizer, 2048)
        samples = evaluate(scorer, {"arc": task}, bootstrap_iters=0)["samples"]["arc"]
    samples.sort(key=lambda sample: sample["doc_id"])
    assert [each.prompt for each in asked] == [sample["arguments"][0][0] for sample in samples]
    found, cut = lettered(model, tokenizer, asked, scorer.max_length)
    assert found == [sample["exact_match"] == 1 for sample in samples] and cut == 0
    assert found[1], "nothing was right: the test shows nothing"


def test_long_prompts_lose_their_beginning(micro: tuple[Any, Any]) -> None:
    asked = [Question("word " * 600, "A", 4), Question("short", "A", 4)]
    found, cut = lettered(*micro, asked, 512)
    assert len(found) == 2 and cut == 1


def test_a_row_that_is_no_question_is_named(tmp_path: Path) -> None:
    (tmp_path / "arc.jsonl").write_text(json.dumps(ROW | {"choices": "sky", "answerKey": "A"}), encoding="utf-8")
    with pytest.raises(InputError, match=r"row 1: expected a question with choices and an answer"):
        questions(str(tmp_path / "arc.jsonl"))
