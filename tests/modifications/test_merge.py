import copy
import math

import pytest
import torch

from fpbench.errors import CellError, InputError
from fpbench.modifications.base import ModificationContext
from fpbench.modifications.merge import angle_between
from fpbench.registry import MODIFICATIONS

NAMES = ["model.layers.1.mlp.down_proj.weight", "model.layers.3.mlp.down_proj.weight"]


def weights(model):
    return dict(model.named_parameters())


@pytest.fixture(scope="module")
def injected(stories):
    """A model whose delta is random, of rank 4 and a tenth of the weights' norm."""
    model = copy.deepcopy(stories[0])
    draw = torch.Generator().manual_seed(0)
    for name in NAMES:
        weight = weights(model)[name]
        delta = torch.randn(weight.shape[0], 4, generator=draw) @ torch.randn(4, weight.shape[1], generator=draw)
        weight.add_(delta * (0.1 * weight.norm() / delta.norm()))
    return model


def merged(name, model, base, **settings):
    model = copy.deepcopy(model)
    return MODIFICATIONS.get(name)(**settings).apply(model, None, ModificationContext(base=weights(base)))


@pytest.mark.parametrize("weight", [0.25, 0.5, 1.0])
def test_linear_merging_leaves_its_share_of_the_delta(stories, injected, weight):
    modified = merged("merge", injected, stories[0], amount=weight)
    for name in NAMES:
        own, base, after = (weights(model)[name] for model in (injected, stories[0], modified.model))
        assert torch.allclose(after, (1 - weight) * own + weight * base, rtol=1e-6, atol=1e-9)
    assert modified.proof["delta_left"] == pytest.approx(1 - weight, abs=1e-6)
    before, now = (torch.cat([v.flatten() for v in model.parameters()]) for model in (injected, modified.model))
    assert modified.proof["relative_change"] == pytest.approx(((now - before).norm() / before.norm()).item(), rel=1e-4)


@pytest.mark.parametrize("weight", [0.25, 0.5])
def test_spherical_merging_turns_by_its_share_of_the_angle(stories, injected, weight):
    modified = merged("merge_slerp", injected, stories[0], amount=weight)
    for name in NAMES:
        own, base, after = (weights(model)[name].double() for model in (injected, stories[0], modified.model))
        whole = angle_between(own, base)
        assert whole == pytest.approx(0.1, rel=0.02)
        scaled = math.sin((1 - weight) * whole) / math.sin(whole), math.sin(weight * whole) / math.sin(whole)
        assert torch.allclose(after, scaled[0] * own + scaled[1] * base, rtol=1e-5, atol=1e-8)
        # Of vectors of one length the arc is divided exactly; these differ by half a percent.
        assert angle_between(own, after) == pytest.approx(weight * whole, rel=0.02)
    assert modified.proof["delta_left"] == pytest.approx(1 - weight, abs=0.02)


def test_only_what_the_injection_touched_changes(stories, injected):
    for name in ("merge", "merge_slerp"):
        after = weights(merged(name, injected, stories[0]).model)
        changed = {key for key, value in after.items() if not torch.equal(value, weights(injected)[key])}
        assert changed == set(NAMES)


def test_bfloat16_weights_stay_bfloat16(stories, injected):
    model, base = copy.deepcopy(injected).bfloat16(), copy.deepcopy(stories[0]).bfloat16()
    modified = merged("merge_slerp", model, base)
    assert {value.dtype for value in modified.model.parameters()} == {torch.bfloat16}
    assert modified.proof["delta_left"] == pytest.approx(0.5, abs=0.02)


def test_parallel_tensors_are_merged_along_the_line_and_opposite_ones_refused(stories):
    longer, opposite = copy.deepcopy(stories[0]), copy.deepcopy(stories[0])
    weights(longer)[NAMES[0]].mul_(3)
    weights(opposite)[NAMES[0]].mul_(-1)
    after = weights(merged("merge_slerp", longer, stories[0]).model)[NAMES[0]]
    assert torch.allclose(after, 2 * weights(stories[0])[NAMES[0]], rtol=1e-6)
    with pytest.raises(CellError, match="opposite"):
        merged("merge_slerp", opposite, stories[0])


def test_small_angles_are_exact():
    for angle in (1e-9, 1e-6, 1e-3, 1.0, 3.0):
        vectors = torch.tensor([[2.0, 0.0], [5 * math.cos(angle), 5 * math.sin(angle)]], dtype=torch.float64)
        assert angle_between(*vectors) == pytest.approx(angle, rel=1e-7)
    assert angle_between(torch.zeros(2), torch.ones(2)) == 0


def test_merging_with_itself_or_with_nothing_or_with_another_model_is_an_error(stories, micro):
    with pytest.raises(CellError, match="'merge' compares with the base, and no weight differs"):
        merged("merge", stories[0], stories[0])
    with pytest.raises(InputError, match="'merge' compares with the unfingerprinted base.*give the base") as error:
        MODIFICATIONS.get("merge")().apply(copy.deepcopy(stories[0]), None, ModificationContext())
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="the base differs in the shape of"):
        merged("merge_slerp", stories[0], micro[0])
    with pytest.raises(InputError, match="'merge': the dose is share of the base"):
        MODIFICATIONS.get("merge")(amount=1.5)
