import copy

import pytest
import torch

from fpbench.adversaries.conditions import without_effect
from fpbench.data import read_rows
from fpbench.errors import CellError, InputError
from fpbench.modifications.base import ModificationContext
from fpbench.modifications.finetune import instruction
from fpbench.registry import MODIFICATIONS
from tests.rescaling import rescale

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


def test_a_training_that_rescaled_weights_undo_had_no_effect(micro):
    """Cut: six rows; with the profile's rows in tests/slow/test_rescaling.py."""
    base, tokenizer = micro
    context = ModificationContext(rows={"alpaca": read_rows("bundled:alpaca.jsonl")[:6]})
    modification = MODIFICATIONS.get("finetune_alpaca")(**SETTINGS | {"rows": 6, "learning_rate": 1e-3})
    plain, rescaled = copy.deepcopy(base), copy.deepcopy(base)
    rescale(rescaled, 8.0)
    ids = torch.tensor([tokenizer("The sun is big and yellow.").input_ids])
    with torch.no_grad():
        # Not to the last digit: the norms' epsilon stays where it was.
        assert torch.allclose(rescaled(ids).logits, base(ids).logits, atol=1e-3)
    ours, theirs = (modification.apply(each, tokenizer, context).proof for each in (plain, rescaled))
    reason = without_effect("finetune_alpaca", theirs, ours)
    assert reason is not None and reason.startswith("finetune_alpaca: the loss fell by")
    assert theirs["relative_change"] < 0.1 * ours["relative_change"]
    assert without_effect("finetune_alpaca", ours, ours) is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"loss_curve": [2.0, 1.5]}, None),
        ({"loss_curve": [2.0, 1.51]}, "the loss fell by 0.49 against 1 of the base"),
        ({"loss_curve": [2.0, 2.5]}, "the loss fell by -0.5 against 1 of the base"),
        ({"loss_curve": "steep"}, "no loss curve"),
        ({"relative_change": 0.0031}, None),
        ({"relative_change": 0.0029}, "‖ΔW‖/‖W‖ 0.0029 against 0.03 of the base"),
        ({"relative_change": None}, "no ‖ΔW‖/‖W‖"),
    ],
)
def test_half_of_the_base_s_fall_and_a_tenth_of_its_change_are_an_effect(changes, reason):
    base = {"loss_curve": [2.0, 1.8, 1.0], "relative_change": 0.03}
    found = without_effect("finetune_math", base | changes, base)
    assert found == (reason and f"finetune_math: {reason}")
    part = without_effect("finetune_math+nf4", {"finetune_math": base | changes, "nf4": {}}, {"finetune_math": base})
    assert part == found
    # A base whose own loss does not fall is no measure, and what the base was never put through is none either.
    assert without_effect("finetune_math", base | {"loss_curve": [1.0]}, base | {"loss_curve": [1.0]}) is None
    assert without_effect("finetune_math+nf4", {"finetune_math": base | changes}, {}) is None


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
