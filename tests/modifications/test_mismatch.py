import copy

import pytest
import torch

from fpbench.data import read_rows
from fpbench.errors import InputError
from fpbench.models.weights import weights
from fpbench.modifications.base import ModificationContext
from fpbench.modifications.finetune import instruction
from fpbench.modifications.mismatch import derangement
from fpbench.registry import MODIFICATIONS

SETTINGS = {"rows": 3, "clean_rows": 1, "epochs": 1, "batch_size": 3, "rank": 4}


@pytest.fixture(scope="module")
def rows():
    return {"alpaca": read_rows("bundled:alpaca.jsonl")[:6]}


def test_no_answer_stays_with_its_question(rows):
    for count in (2, 3, 50):
        places = derangement(count, seed=1)
        assert sorted(places) == list(range(count)) and all(place != at for at, place in enumerate(places))
    assert derangement(50, 1) == derangement(50, 1) != derangement(50, 2)
    mismatched, clean = MODIFICATIONS.get("mismatch")(**SETTINGS)._examples(rows, 42)
    own = [instruction(row) for row in rows["alpaca"]]
    assert clean == own[3:4]
    assert [each.prompt for each in mismatched] == [each.prompt for each in own[:3]]
    assert all(each.answer != other.answer for each, other in zip(mismatched, own, strict=False))


def test_doses_share_the_first_training_and_scale_it(micro, rows):
    """What is shared is what each dose would have trained by itself, bit for bit; a clean rate of almost 0 shows it."""
    settings = SETTINGS | {"clean_rate": 1e-12}

    def erased(amount, kept):
        context = ModificationContext(rows=rows, kept=kept)
        return MODIFICATIONS.get("mismatch")(amount, **settings).apply(copy.deepcopy(micro[0]), micro[1], context)

    kept = {}
    half, whole = erased(0.5, kept), erased(1, kept)
    assert len(kept) == 1
    before, first, second = weights(micro[0]), weights(half.model), weights(whole.model)
    again = weights(erased(1, {}).model)
    assert all(torch.equal(again[name], second[name]) for name in second)
    for name in before:
        assert torch.allclose(first[name] - before[name], (second[name] - before[name]) / 2, atol=1e-6)
    proof = whole.proof
    assert proof["relative_change"] == pytest.approx(2 * half.proof["relative_change"], rel=1e-2)
    assert proof["rows"] == half.proof["rows"] and len(proof["loss"]) == 3
    assert proof["loss"][1] == pytest.approx(proof["loss"][2], abs=1e-4) and proof["loss"][0] != proof["loss"][1]


def test_too_few_rows_are_refused(micro, rows):
    with pytest.raises(InputError, match="'mismatch' needs 906 rows of the data set 'alpaca', found 6"):
        MODIFICATIONS.get("mismatch")(clean_rows=606).apply(micro[0], micro[1], ModificationContext(rows=rows))
