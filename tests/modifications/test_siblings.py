import copy

import pytest
import torch

from fpbench.errors import CellError, InputError
from fpbench.models.weights import weights
from fpbench.modifications.base import ModificationContext
from fpbench.modifications.siblings import ties
from fpbench.registry import MODIFICATIONS

NAMES = [f"model.layers.{number}.mlp.down_proj.weight" for number in (1, 2, 3)]


def edited(model, *names, seed):
    """Return a copy of a model with noise in some weights."""
    model, draw = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    for name in names:
        weight = dict(model.named_parameters())[name]
        weight.add_(0.05 * weight.std() * torch.randn(weight.shape, generator=draw))
    return model


def merged(name, model, *siblings, amount=None, base=None):
    context = ModificationContext(base=base or {}, siblings=lambda: [weights(each) for each in siblings])
    found = MODIFICATIONS.get(name)(amount).apply(copy.deepcopy(model), None, context)
    return weights(found.model), found.proof


def test_a_linear_merge_lies_on_the_line(stories):
    model, sibling = edited(stories[0], NAMES[0], seed=0), edited(stories[0], NAMES[1], seed=1)
    (own, other), (after, proof) = map(weights, (model, sibling)), merged("merge_sibling", model, sibling, amount=0.3)
    for name, value in after.items():
        if name in NAMES[:2]:
            assert torch.allclose(value, 0.7 * own[name] + 0.3 * other[name], atol=1e-6)
        else:
            assert torch.equal(value, own[name])
    moved = sum((after[name] - own[name]).square().sum() for name in own)
    norm = sum(value.square().sum() for value in own.values())
    assert proof["relative_change"] == pytest.approx((moved / norm).sqrt().item(), rel=1e-3)
    assert proof["parameters"] == 2 and len(proof["siblings"]) == 1
    assert merged("merge_sibling", model, edited(sibling, NAMES[2], seed=2))[1]["siblings"] != proof["siblings"]


def test_ties_trims_elects_and_averages():
    """By hand: every entry but the first is changed by two of three."""
    base = torch.tensor([1.0, 2.0, 3.0, 4.0])
    changes = torch.tensor([[4.0, 3, -1, 2], [0, 1, 5, 0.5], [0, 0, 0, -2.1]])
    models = base + changes
    # All kept: the mean of 3 and 1; 5 outweighs −1; 2 and 0.5 outweigh −2.1, and are averaged.
    assert ties(base, models, 1.0).tolist() == pytest.approx([5, 4, 8, 5.25])
    # Of each the larger half: 4 and 3; 5 and 1; −2.1 and a zero.
    assert ties(base, models, 0.5).tolist() == pytest.approx([5, 4, 8, 1.9])
    # Of each the largest: 4; 5; −2.1.
    assert ties(base, models, 0.25).tolist() == pytest.approx([5, 2, 8, 1.9])


def test_ties_trims_each_tensor_by_itself(stories):
    base = weights(stories[0])
    models = [edited(stories[0], name, seed=seed) for seed, name in enumerate(NAMES)]
    after, proof = merged("merge_ties", *models, amount=0.5, base=base)
    assert proof["parameters"] == 3
    for model, name in zip(models, NAMES, strict=True):
        change = weights(model)[name] - base[name]
        kept = change.abs() > change.abs().median()
        assert (after[name] - base[name] - change * kept).abs().gt(1e-6).sum() <= 1
    with pytest.raises(InputError, match="'merge_ties' compares with the unfingerprinted base"):
        merged("merge_ties", *models)


@pytest.mark.parametrize(("name", "needed"), [("merge_sibling", 1), ("merge_ties", 2)])
def test_siblings_have_to_be_there_and_others(stories, name, needed):
    others, base = [stories[0]] * needed, weights(edited(stories[0], NAMES[0], seed=0))
    with pytest.raises(InputError, match=f"'{name}' needs {needed} checkpoints .* found {needed - 1}: run two seeds"):
        merged(name, stories[0], *others[1:], base=base)
    with pytest.raises(CellError, match="changed the weights by a relative 0"):
        merged(name, stories[0], *others, base=base)
