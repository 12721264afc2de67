import copy

import pytest
import torch

from fpbench.adversaries.conditions import check, without_effect
from fpbench.data import read_rows
from fpbench.errors import CellError, InputError
from fpbench.models.training import tokenise
from fpbench.models.weights import weights
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


def curve_of(doses, model, tokenizer, rows, asked=None):
    """Fine-tune copies of a model to several doses, as a run does: one after another, with what is kept."""
    context = ModificationContext(rows={"alpaca": rows}, doses={("finetune_alpaca",): asked or doses})
    found = {}
    for dose in doses:
        modified = MODIFICATIONS.get("finetune_alpaca")(dose, **SETTINGS).apply(
            copy.deepcopy(model), tokenizer, context
        )
        found[dose] = modified.proof, weights(modified.model)
    return found, context.kept


@pytest.fixture(scope="module")
def curve(stories):
    """Eleven steps, beyond the warm-up, pass over the rows five times; the larger dose is asked for first."""
    return curve_of([11, 3], *stories, ROWS)


def test_every_step_of_a_training_is_the_end_of_a_training_of_so_many_steps(stories, curve):
    together, kept = curve
    assert sorted(kept) == [("finetune_alpaca", 3), ("finetune_alpaca", 11)]
    (proof, reached), alone = together[3], curve_of([3], *stories, ROWS)[0][3]
    assert alone[0] == proof
    assert all(torch.equal(value, reached[name]) for name, value in alone[1].items())
    assert together[11][0]["rows_digest"] != proof["rows_digest"]


def test_one_training_passes_all_doses_that_are_asked_for(stories, monkeypatch):
    from fpbench.models import training

    trained, original = [], training.train_on_the_way
    monkeypatch.setattr(
        training,
        "train_on_the_way",
        lambda *given, **more: trained.append(sorted(given[4])) or original(*given, **more),
    )
    curve_of([2, 5], *stories, ROWS, asked=[2, 5, 9])
    assert trained == [[2, 5, 9]]


def test_a_training_that_diverges_fails_the_doses_after_alone(stories, monkeypatch):
    """At such a rate the third loss is no number; what the first step gives does not depend on what else was asked."""
    monkeypatch.setitem(SETTINGS, "learning_rate", 1e9)
    context = ModificationContext(rows={"alpaca": ROWS}, doses={("finetune_alpaca",): [1, 4]})

    def proof(dose, context):
        modification = MODIFICATIONS.get("finetune_alpaca")(dose, **SETTINGS)
        return modification.apply(copy.deepcopy(stories[0]), stories[1], context).proof

    with pytest.raises(CellError, match="non-finite at step 3 at learning rate 1e"):
        proof(4, context)
    assert proof(1, context) == proof(1, ModificationContext(rows={"alpaca": ROWS}))


def test_the_proof_of_a_dose_proves_its_step(stories, curve):
    (model, tokenizer), found = stories, curve[0]
    (short, after), (long, _) = found[3], found[11]
    assert (short["steps"], short["rows"], short["learning_rate"]) == (3, 3, 3e-3)
    assert (long["steps"], len(short["loss_curve"]), len(long["loss_curve"])) == (11, 1, 3)
    assert long["loss_curve"][0] > long["loss_curve"][-1]
    lengths = [len(tokenise(model, tokenizer, [instruction(row)])[0][0][0]) for row in ROWS[:3]]
    assert sum(lengths) < short["tokens_seen"] < 2 * sum(lengths) and 5 * sum(lengths) < long["tokens_seen"]
    own = MODIFICATIONS.get("finetune_alpaca")
    assert own.implausible(short, 3) is None and own.implausible(short) is None
    assert own.implausible(short, 11) == "3 steps, and not the 11 of its dose"
    before = weights(model)
    moved = sum((after[name] - value).square().sum() for name, value in before.items())
    norm = sum(value.square().sum() for value in before.values())
    assert short["relative_change"] == pytest.approx((moved / norm).sqrt().item(), rel=1e-3)


def test_without_a_dose_it_is_the_protocol_s(stories):
    """The identity is that of the records that are there."""
    plain = MODIFICATIONS.get("finetune_alpaca")(**SETTINGS)
    assert plain.identity == {"version": "2", "settings": SETTINGS | {"rank": 32, "alpha": 64}}
    assert MODIFICATIONS.get("finetune_alpaca")(50, **SETTINGS).identity == plain.identity | {"dose": 50}
    assert apply("finetune_alpaca", copy.deepcopy(stories[0]), stories[1], {"alpaca": ROWS}).proof["steps"] == 6
    for wrong in ("0", "2.5", "-1"):
        with pytest.raises(InputError, match="the dose is optimiser steps, a whole number from 1"):
            check(f"finetune_alpaca@{wrong}")
    with pytest.raises(InputError, match="takes no dose"):
        check("fsft_alpaca@25")


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
