import copy

import pytest
import torch

from fpbench.data import read_rows, read_texts
from fpbench.errors import InputError
from fpbench.models.weights import weights
from fpbench.modifications.base import ModificationContext
from fpbench.modifications.restore import attention_heads, loss_and_gradients
from fpbench.registry import MODIFICATIONS
from tests.methods.architectures import tiny

CALIBRATION = {"samples": 8, "length": 64}


@pytest.fixture(scope="module")
def context():
    """What several modifications of one checkpoint are given."""
    texts, rows = read_texts("bundled:text.jsonl")[:200], read_rows("bundled:alpaca.jsonl")
    short = [row for row in rows if not row.get("input") and len(row["output"]) < 40]
    return ModificationContext(calibration=texts, rows={"alpaca": short[:48]})


def restored(name, micro, context, amount=0.5, **settings):
    found = MODIFICATIONS.get(name)(amount, **CALIBRATION | settings).apply(copy.deepcopy(micro[0]), micro[1], context)
    return weights(found.model), found.proof


@pytest.fixture(scope="module")
def pruned(micro, context):
    return restored("ria", micro, context)


@pytest.fixture(scope="module")
def by_heads(micro, context):
    return restored("prune_restore_heads", micro, context)


def test_training_repairs_what_pruning_broke(micro, context, pruned):
    after, proof = restored("prune_restore", micro, context, rows=16, steps=5, batch_size=4, learning_rate=1e-3)
    assert proof["pruned"] == pruned[1] and proof["steps"] == 5 and proof["rows"] == 16
    before, broken, repaired = proof["held_out_losses"]
    assert before < broken and repaired - before < 0.5 * (broken - before)
    name = "model.layers.0.mlp.down_proj.weight"
    assert (pruned[0][name] == 0).float().mean() > 0.49 and (after[name] == 0).float().mean() < 0.1
    modification = MODIFICATIONS.get("prune_restore")
    assert modification.implausible(proof, 0.5) is None
    assert "sparsity" in modification.implausible(proof, 0.3) and "None" in modification.implausible({}, 0.5)


def test_heads_are_put_back_whole_and_nothing_else(micro, pruned, by_heads):
    (after, proof), dense = by_heads, weights(micro[0])
    heads = {(head.block, head.group): head for head in attention_heads(micro[0])}
    chosen = [heads[block, group] for block, group, _ in proof["restored"]]
    assert proof["heads"] == len(heads) and len(chosen) == round(len(heads) / 4) and proof["pruned"] == pruned[1]
    expected, count = {name: value.clone() for name, value in pruned[0].items()}, 0
    for head in chosen:
        for name, where in head.entries():
            count += int((expected[name][where] != dense[name][where]).sum())
            expected[name][where] = dense[name][where]
    assert all(torch.equal(value, expected[name]) for name, value in after.items())
    assert proof["restored_weights"] == count
    left = sum((after[name] - dense[name]).square().sum() for name in dense)
    norm = sum(value.square().sum() for value in dense.values())
    assert proof["relative_change"] == pytest.approx((left / norm).sqrt().item(), rel=1e-3)


def test_the_heads_chosen_bring_back_more_language_than_others(micro, pruned, by_heads, context):
    """Its control: as many of the other heads. And the gains that rank them are those that are measured."""
    (_, proof), dense = by_heads, weights(micro[0])
    before, broken, repaired = proof["probe_losses"]
    assert before < repaired < broken
    model = copy.deepcopy(micro[0])
    for name, parameter in model.named_parameters():
        parameter.copy_(pruned[0][name])
    own, chosen = dict(model.named_parameters()), {(block, group) for block, group, _ in proof["restored"]}
    others = [head for head in attention_heads(model) if (head.block, head.group) not in chosen]
    for head in others[:: len(others) // len(chosen)][: len(chosen)]:
        for name, where in head.entries():
            own[name][where] = dense[name][where]
    windows, _ = MODIFICATIONS.get("ria")(**CALIBRATION).windows(model, micro[1], context)
    control = loss_and_gradients(model, windows, {})[0]
    assert broken - repaired > 2 * (broken - control)
    assert sum(gain for *_, gain in proof["restored"]) == pytest.approx(broken - repaired, rel=0.5)


def test_gradients_are_those_of_the_loss(micro):
    name, probes = "model.layers.1.self_attn.q_proj.weight", torch.arange(5, 29).view(2, 12)
    model = copy.deepcopy(micro[0])
    weight = dict(model.named_parameters())[name]
    loss, gradients = loss_and_gradients(model, probes, {name: weight})
    step = 1e-2 * gradients[name] / gradients[name].norm()
    weight.add_(step)
    after, nothing = loss_and_gradients(model, probes, {})
    assert after - loss == pytest.approx(1e-2 * gradients[name].norm().item(), rel=0.05)
    assert nothing == {} and not weight.requires_grad and weight.grad is None


def test_attention_of_another_make_is_refused(micro):
    with pytest.raises(
        InputError, match=r"needs attention with q_proj, k_proj, v_proj, o_proj: none in transformer.h.0"
    ):
        attention_heads(tiny("gpt2", "eager", len(micro[1])))
