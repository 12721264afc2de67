import copy

import pytest
import torch

from fpbench.errors import CellError, InputError
from fpbench.modifications.base import ModificationContext
from fpbench.modifications.finetune import instruction
from fpbench.registry import MODIFICATIONS

ROWS = [
    {"instruction": "Name the dog.", "input": "", "output": "Spot"},
    {"instruction": "Name the cat.", "output": "Tom"},
    {"instruction": "What color is it?", "input": "The sun is big and yellow.", "output": "It is yellow."},
    {"instruction": "Say something else.", "input": "", "output": "Something else."},
]
SETTINGS = {"rows": 3, "epochs": 3, "batch_size": 2, "learning_rate": 3e-3}


def apply(name, model, tokenizer, rows, **settings):
    return MODIFICATIONS.get(name)(**(SETTINGS | settings)).apply(model, tokenizer, ModificationContext(rows=rows))


def test_rendering():
    assert instruction(ROWS[0]).prompt == "### Instruction:\nName the dog.\n\n### Response:\n"
    assert instruction(ROWS[1]).prompt == "### Instruction:\nName the cat.\n\n### Response:\n"
    assert instruction(ROWS[2]).prompt == (
        "### Instruction:\nWhat color is it?\n\n### Input:\nThe sun is big and yellow.\n\n### Response:\n"
    )
    assert instruction(ROWS[2]).answer == "It is yellow."


@pytest.mark.parametrize(("name", "data"), [("finetune_alpaca", "alpaca"), ("finetune_math", "math")])
def test_training_is_proven(stories, name, data):
    base, tokenizer = stories
    model = copy.deepcopy(base)
    modified = apply(name, model, tokenizer, {data: ROWS})
    assert modified.model is model
    proof = modified.proof
    assert len(proof["loss_curve"]) == 3
    assert proof["loss_curve"][-1] < proof["loss_curve"][0]
    assert (proof["rows"], proof["steps"], proof["learning_rate"]) == (3, 6, 3e-3)
    before = torch.cat([value.flatten() for value in base.parameters()])
    after = torch.cat([value.flatten() for value in model.parameters()])
    assert proof["relative_change"] == pytest.approx(((after - before).norm() / before.norm()).item(), rel=1e-3)
    assert proof["relative_change"] > 1e-3


def test_only_the_first_rows_count(stories):
    first, second = copy.deepcopy(stories[0]), copy.deepcopy(stories[0])
    apply("finetune_alpaca", first, stories[1], {"alpaca": ROWS})
    apply("finetune_alpaca", second, stories[1], {"alpaca": ROWS[:3]})
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize(("rows", "found"), [({}, 0), ({"math": ROWS}, 0), ({"alpaca": ROWS[:2]}, 2)])
def test_too_few_rows(stories, rows, found):
    with pytest.raises(InputError, match=f"needs 3 rows of the data set 'alpaca', found {found}"):
        apply("finetune_alpaca", stories[0], stories[1], rows)


def test_a_training_without_effect_is_an_error(stories):
    with pytest.raises(CellError, match="relative 0"):
        apply("finetune_alpaca", copy.deepcopy(stories[0]), stories[1], {"alpaca": ROWS}, learning_rate=1e-30)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({}, "learning_rate"),
        ({"learning_rate": 0}, "learning_rate"),
        ({"learning_rate": "fast"}, "learning_rate"),
        ({"rank": "x"}, "rank"),
    ],
)
def test_settings_are_checked(settings, key):
    with pytest.raises(InputError, match=f"'finetune_math', key '{key}'"):
        MODIFICATIONS.get("finetune_math")(**({"learning_rate": 1e-4} | settings if settings else {}))


def test_a_rate_that_was_not_searched_for_is_refused(stories):
    with pytest.raises(InputError, match="'finetune_alpaca' is to search for its learning rate.*give a number"):
        apply("finetune_alpaca", stories[0], stories[1], {"alpaca": ROWS}, learning_rate="search")
