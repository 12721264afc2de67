"""Distillation: the student is the base and what it learnt; targets that the cut keeps are taught."""

import copy

import pytest
import torch

from fpbench.data import read_rows
from fpbench.errors import CellError
from fpbench.models.training import tokenise
from fpbench.models.weights import weights
from fpbench.modifications.base import ModificationContext
from fpbench.modifications.distil import Teacher, coarse, divergence
from fpbench.modifications.finetune import instruction
from fpbench.registry import MODIFICATIONS

SETTINGS = {"rows": 4, "answer_tokens": 6, "epochs": 3, "batch_size": 2, "learning_rate": 2e-3}


@pytest.fixture(scope="module")
def stolen(micro):
    """The base with noise in some matrices, so that it says other things everywhere."""
    model, draw = copy.deepcopy(micro[0]), torch.Generator().manual_seed(0)
    for layer in model.model.layers[:3]:
        weight = layer.mlp.down_proj.weight
        weight.add_(2 * weight.std() * torch.randn(weight.shape, generator=draw))
    return model


@pytest.fixture(scope="module")
def rows():
    return {"alpaca": read_rows("bundled:alpaca.jsonl")[:4]}


def distilled(model, micro, rows, amount, kept=None, **settings):
    base = dict(micro[0].named_parameters())
    context = ModificationContext(rows=rows, base=base, kept={} if kept is None else kept)
    return MODIFICATIONS.get("distil")(amount, **(SETTINGS | settings)).apply(copy.deepcopy(model), micro[1], context)


def test_the_student_nears_the_stolen_model_and_less_so_if_it_is_held_to_the_base(micro, stolen, rows):
    kept = {}
    free, held = distilled(stolen, micro, rows, 0, kept), distilled(stolen, micro, rows, 4, kept)
    assert len(kept["distil",]) == 2, "either teacher was asked once"
    for found in (free, held):
        first, last = found.proof["divergence"]
        assert last < first and len(found.proof["losses"]) == 3
    assert free.proof["divergence"][1] < held.proof["divergence"][1]
    assert free.proof["rows"] == held.proof["rows"] and 0.9 < free.proof["share_within_the_cut"] <= 1
    alone = distilled(stolen, micro, rows, 4)
    base, student, again = weights(micro[0]), weights(held.model), weights(alone.model)
    assert all(torch.equal(student[name], again[name]) for name in student)
    moved = {name for name in base if not torch.equal(base[name], student[name])}
    assert moved and all(name.endswith(("q_proj.weight", "v_proj.weight")) for name in moved)


def test_the_divergence_is_that_of_the_outcomes_that_are_cached(micro, rows):
    draw = torch.Generator().manual_seed(1)
    own, other = (torch.log_softmax(3 * torch.randn(5, 40, generator=draw), -1) for _ in range(2))
    best = other.topk(8).indices
    teacher = Teacher([best.int()], [coarse(other, best)])
    assert coarse(other, best).exp().sum(-1) == pytest.approx(torch.ones(5))
    q, p = (coarse(each, best).exp() for each in (own, other))
    assert divergence(own, teacher, [0]) == pytest.approx((q * (q / p).log()).sum(-1), abs=1e-5)
    full = (own.exp() * (own - other)).sum(-1)
    assert (divergence(own, teacher, [0]) < full).all(), "what is cut off is not seen"
    assert divergence(other, teacher, [0]).abs().max() < 1e-5
    # In the places of two rows, in the order asked for.
    sequences, _, _ = tokenise(*micro, [instruction(row) for row in rows["alpaca"][:2]])
    asked = MODIFICATIONS.get("distil")(0, **SETTINGS)._ask(micro[0], sequences)
    assert [len(each) for each in asked.tokens] == [len(ids) - prompt for ids, prompt in sequences]


def test_a_model_that_is_its_own_base_is_refused(micro, rows):
    with pytest.raises(CellError, match="'distil' compares with the base, and no weight differs"):
        distilled(micro[0], micro, rows, 0.5)
