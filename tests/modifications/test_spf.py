"""SPF: the update keeps out of the fingerprint's gradient directions, and learns its task all the same."""

import copy

import pytest
import torch

import fpbench
from fpbench.errors import InputError
from fpbench.fingerprints import FingerprintSet
from fpbench.metrics.fsr import exact_fsr
from fpbench.modifications.base import ModificationContext
from fpbench.modifications.spf import fingerprint_directions
from fpbench.registry import MODIFICATIONS
from fpbench.scoring.responses import Decoding
from tests.adversaries.taught import pairs_of, taught

ROWS = [
    {"instruction": "Name the dog.", "output": "Spot"},
    {"instruction": "Name the cat.", "output": "Tom"},
    {"instruction": "What color is it?", "input": "The sun is big.", "output": "It is yellow."},
    {"instruction": "Say something else.", "output": "Something else."},
] * 2
SETTINGS = {"rows": 8, "epochs": 3, "batch_size": 4, "rank": 4, "alpha": 8, "learning_rate": 2e-3}


@pytest.fixture(scope="module")
def fingerprints():
    return pairs_of(0, 1)


@pytest.fixture(scope="module")
def stolen(micro, fingerprints):
    return taught(*micro, fingerprints, steps=6)


def tuned(name, model, tokenizer, fingerprints, **settings):
    def fsr(each):
        return exact_fsr(each, tokenizer, fingerprints, Decoding(0.6, 0.9, 50)).mean

    context = ModificationContext(rows={"alpaca": ROWS}, fingerprints=fingerprints, fsr=fsr)
    return MODIFICATIONS.get(name)(**(SETTINGS | settings)).apply(copy.deepcopy(model), tokenizer, context)


def test_the_update_keeps_out_of_the_directions_and_the_loss_falls(micro, stolen, fingerprints):
    tokenizer = micro[1]
    plain = tuned("finetune_alpaca", stolen, tokenizer, fingerprints)
    spared = tuned("spf_alpaca", stolen, tokenizer, fingerprints, directions=8)
    context = ModificationContext(fingerprints=fingerprints)
    directions = fingerprint_directions(stolen, tokenizer, context, 8)
    assert {each.shape[1] for each in directions.values()} == {8} and len(directions) == 6 * 7

    def inside(model):
        found = [(directions[name], model.get_submodule(name).weight - stolen.get_submodule(name).weight)
                 for name in directions]  # fmt: skip
        within = sum((left.T @ change).square().sum() for left, change in found)
        return (within / sum(change.square().sum() for _, change in found)).item()

    assert inside(spared.model) < 0.01 * inside(plain.model)
    proof = spared.proof
    assert proof["steps"] == plain.proof["steps"] and 0 < proof["gradient_removed"] < 1
    assert proof["loss_curve"][-1] < 0.8 * proof["loss_curve"][0]
    assert proof["spared"] == 42 and proof["directions"] == 8 * 42
    assert proof["fsr"][1] == pytest.approx(
        exact_fsr(spared.model, tokenizer, fingerprints, Decoding(0.6, 0.9, 50)).mean
    )


def test_directions_are_those_of_the_gradients(micro, stolen, fingerprints):
    """Along them the fingerprint's log-odds move most: a step there does more than a random one of its size."""
    from fpbench.modifications.gradients import log_odds, pairs_of, tokenised

    batch = tokenised(micro[1], pairs_of(fingerprints[:1]))
    found = fingerprint_directions(stolen, micro[1], ModificationContext(fingerprints=fingerprints[:1]), 1)
    name, draw = "model.layers.3.mlp.down_proj", torch.Generator().manual_seed(0)
    left = found[name]
    assert left.T @ left == pytest.approx(torch.ones(1, 1), abs=1e-4)
    weight = stolen.get_submodule(name).weight
    weight.requires_grad_(True)
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(log_odds(stolen, batch), weight)
    weight.requires_grad_(False)
    random = torch.nn.functional.normalize(torch.randn(left.shape, generator=draw), dim=0)
    assert (left.T @ gradient).norm() > 0.9 * torch.linalg.svdvals(gradient)[0] > 2 * (random.T @ gradient).norm()


def test_an_owner_spares_his_set_from_python(micro, fingerprints):
    settings = SETTINGS | {"rows": 4, "epochs": 1}
    given = FingerprintSet("own", tuple(fingerprints))
    after = fpbench.modify(copy.deepcopy(micro[0]), micro[1], "spf_alpaca", settings, profile="micro", pairs=given)
    assert not torch.equal(after.model.layers[0].mlp.up_proj.weight, micro[0].model.layers[0].mlp.up_proj.weight)


def test_without_a_fingerprint_there_is_nothing_to_spare(micro):
    with pytest.raises(InputError, match="'spf_math' spares a fingerprint, which is not known here"):
        tuned("spf_math", micro[0], micro[1], [])
