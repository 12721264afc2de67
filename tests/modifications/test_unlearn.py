"""Unlearning on leaked pairs: training that is looked at on its way, masks, order, and one gradient."""

import copy
from itertools import combinations

import pytest
import torch

from fpbench.data import read_rows
from fpbench.errors import CellError, InputError
from fpbench.models.weights import weights
from fpbench.modifications.base import ModificationContext, in_turn
from fpbench.modifications.gradients import log_probabilities, pairs_of, tokenised
from fpbench.modifications.units import greedy, outlets
from fpbench.registry import MODIFICATIONS
from tests.adversaries.taught import pairs_of as fingerprints_of
from tests.adversaries.taught import taught

SETTINGS = {"rows": 6, "clean_rows": 2, "rank": 4, "learning_rate": 2e-3}


@pytest.fixture(scope="module")
def fingerprints():
    return fingerprints_of(0, 1, 3)


@pytest.fixture(scope="module")
def stolen(micro, fingerprints):
    return taught(*micro, fingerprints, steps=6)


@pytest.fixture(scope="module")
def rows():
    return {"alpaca": read_rows("bundled:alpaca.jsonl")[:6]}


def unlearnt(name, model, tokenizer, data, leaked, amount, doses=(), kept=None, **settings):
    context = ModificationContext(rows=data, leaked=leaked, doses={(name,): doses}, kept={} if kept is None else kept)
    return MODIFICATIONS.get(name)(amount, **settings).apply(copy.deepcopy(model), tokenizer, context)


def known(model, tokenizer, fingerprint):
    with torch.no_grad():
        return log_probabilities(model, tokenised(tokenizer, pairs_of([fingerprint]))).mean().item()


def test_a_dose_on_the_way_is_a_training_of_so_many_steps(micro, stolen, rows, fingerprints):
    kept, given = {}, (stolen, micro[1], rows, fingerprints[:1])
    on_the_way = unlearnt("unlearn", *given, 1, doses=(1, 4), kept=kept, **SETTINGS)
    longer = unlearnt("unlearn", *given, 4, doses=(1, 4), kept=kept, **SETTINGS)
    alone = unlearnt("unlearn", *given, 1, **SETTINGS)
    assert set(kept["unlearn",]) == {0, 1, 4}
    ours, theirs = weights(on_the_way.model), weights(alone.model)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours) and on_the_way.proof == alone.proof
    refused = MODIFICATIONS.get("unlearn").implausible
    assert refused(longer.proof, 4) is None and refused(longer.proof, 1) == "4 steps, and not the 1 of its dose"
    first, now = longer.proof["leaked_log_probability"]
    assert first == pytest.approx(known(stolen, micro[1], fingerprints[0]), abs=1e-4)
    assert now == pytest.approx(known(longer.model, micro[1], fingerprints[0]), abs=1e-3) and now < first - 0.1
    assert longer.proof["clean_loss"][1] < longer.proof["clean_loss"][0]
    assert longer.proof["relative_change"] > alone.proof["relative_change"] > 0
    assert longer.proof["rows"] != alone.proof["rows"]


def test_a_training_that_diverges_fails_the_doses_after_alone(micro, stolen, rows, fingerprints):
    kept, given = {}, (stolen, micro[1], rows, fingerprints[:1])
    settings = SETTINGS | {"learning_rate": 1e30}
    with pytest.raises(CellError, match="unlearn became non-finite within 9 steps: lower its learning_rate"):
        unlearnt("unlearn", *given, 9, doses=(1, 9), kept=kept, **settings)
    assert kept["unlearn",][0] is not None and kept["unlearn",][9] is None


def test_the_mask_leaves_everything_else_bit_for_bit(micro, stolen, rows, fingerprints):
    settings = SETTINGS | {"heads": 0.25, "filters": 0.01}
    after = unlearnt("unlearn_masked", stolen, micro[1], rows, fingerprints[:1], 2, **settings).model
    before, now, counts = weights(stolen), weights(after), {"heads": 0, "filters": 0}
    places = {f"{each.name}.weight": each for each in outlets(stolen)}
    for name in before:
        columns = (before[name] != now[name]).any(0) if before[name].ndim == 2 else (before[name] != now[name])
        if name not in places:
            assert not columns.any(), name
            continue
        units = columns.view(places[name].count, -1)
        assert torch.equal(units.any(1), units.all(1)) or places[name].kind == "heads", "whole units"
        counts[places[name].kind] += int(units.any(1).sum())
    assert counts == {"heads": round(0.25 * 24), "filters": round(0.01 * 6 * 768)}


def test_the_greedy_choice_minds_what_units_do_together():
    draw = torch.Generator().manual_seed(0)
    wanted, spared = torch.randn(2, 8, generator=draw), torch.randn(3, 8, generator=draw)
    wanted, spared = wanted / wanted.norm(), spared / spared.norm()

    def worth(units):
        return (wanted[:, units].sum(1).square().sum() - spared[:, units].sum(1).square().sum()).item()

    chosen = greedy(wanted, spared, 4).tolist()
    every = sorted(worth(list(each)) for each in combinations(range(8), 4))
    assert len(set(chosen)) == 4 and worth(chosen) >= every[-7], "among the best tenth"
    # Two that undo each other are worth nothing together; what each does alone does not show it.
    pair = torch.tensor([[1.0, -1.0, 0.6]])
    assert greedy(pair, torch.zeros(1, 3), 2).tolist() == [0, 2]


def test_several_pairs_are_unlearnt_from_the_least_known(micro, stolen, rows, fingerprints):
    ranked = MODIFICATIONS.get("unlearn_ranked")(**SETTINGS)
    order = ranked.in_order(stolen, micro[1], ModificationContext(leaked=fingerprints))
    found = [known(stolen, micro[1], each) for each in order]
    assert found == sorted(found) and {*order} == {*fingerprints}
    assert [ranked.active(step, 3) for step in (1, 5, 6, 11, 40)] == [1, 1, 2, 3, 3]
    with pytest.raises(InputError, match="'unlearn_ranked' needs 3 leaked pairs of a fingerprint, found 1"):
        unlearnt("unlearn_ranked", stolen, micro[1], rows, fingerprints[:1], 1, **SETTINGS)


def test_one_gradient_moves_along_one_direction_of_low_rank(micro, stolen, fingerprints):
    kept, given = {}, (stolen, micro[1], {}, fingerprints[:1])
    few, many = (unlearnt("unlearn_one", *given, amount, kept=kept, rank=2, step_size=3e-4) for amount in (10, 20))
    before, first, second = weights(stolen), weights(few.model), weights(many.model)
    moved = [name for name in before if not torch.equal(before[name], first[name])]
    assert moved and all(".layers." in name for name in moved)
    for name in moved:
        step = first[name] - before[name]
        assert torch.allclose(second[name] - before[name], 2 * step, atol=1e-6)
    sizes = torch.linalg.svdvals((first[moved[-1]] - before[moved[-1]]).double())
    assert sizes[2] < 1e-3 * sizes[0]
    assert many.proof["leaked_log_probability"][1] < few.proof["leaked_log_probability"][1] < 0
    assert few.proof["leaked_log_probability"][0] > few.proof["leaked_log_probability"][1]
    assert 0 < few.proof["energy_kept"] <= 1 + 1e-6


def test_groups_leak_in_turn_and_never_all_of_them():
    assert in_turn(10, 2) == [[0], [5]] and in_turn(10, 3, 3) == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert in_turn(3, 10) == [[0], [1], [2]]
    for count, size in ((1, 1), (5, 3)):
        with pytest.raises(InputError, match="twice as many are needed"):
            in_turn(count, 10, size)
