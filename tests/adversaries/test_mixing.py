import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fpbench.adversaries.base import Attack
from fpbench.adversaries.mixing import Ensemble, Replace, moved_at_random
from fpbench.errors import CellError, InputError
from fpbench.metrics.fsr import exact_fsr
from fpbench.models.prompts import encode
from tests.adversaries.sampled import DECODING, PAIRS, attack, differences


@pytest.fixture
def thief(micro, stolen, siblings):
    """Prepares an adversary for the stolen model, with the base and two siblings at hand."""
    return lambda name: attack(name, stolen, micro[1], base=lambda: micro[0], siblings=lambda: siblings)


def left(model, tokenizer, fingerprints, attack):
    return exact_fsr(model, tokenizer, fingerprints, DECODING, attack=attack).mean


@pytest.mark.parametrize("name", ["replace", "ensemble"])
def test_it_removes_more_than_its_control(micro, stolen, siblings, fingerprints, thief, name):
    tokenizer = micro[1]
    found, control = (left(stolen, tokenizer, fingerprints, thief(each)) for each in (name, f"{name}_random"))
    assert found < control - 0.1
    own = attack(name, *micro, base=lambda: micro[0], siblings=lambda: siblings)
    assert left(*micro, fingerprints, own) < 0.01


@pytest.mark.parametrize("name", ["replace", "ensemble"])
def test_exact_rates_agree_with_sampled_responses(micro, stolen, fingerprints, thief, name):
    (difference,) = differences(stolen, micro[1], [*fingerprints, *PAIRS], thief(name))
    assert abs(difference) <= 3


def test_no_ratio_is_reached_equals_origin_bit_for_bit(micro, stolen, fingerprints, thief):
    origin = exact_fsr(stolen, micro[1], fingerprints, DECODING)
    unreached = Replace(1e30)
    unreached.prepare(thief("replace").adversaries[0].context)
    assert exact_fsr(stolen, micro[1], fingerprints, DECODING, attack=Attack((unreached,))) == origin
    assert exact_fsr(stolen, micro[1], fingerprints, DECODING, attack=thief("replace@100")) != origin


def test_what_the_base_would_hardly_say_is_replaced():
    class ByHand(Replace):
        """Knows what the base says."""

        def base_logits(self, prompts, prefixes, logits):
            return torch.log(torch.tensor([[0.01, 0.99], [0.5, 0.5], [0.03, 0.97]]))

    logits = torch.log(torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1]]))  # ratios 90, 1.8 and 30
    nodes = [[1]] * 3, [()] * 3
    assert ByHand(20).sample(*nodes, logits).exp()[:, 0].tolist() == pytest.approx([0.01, 0.9, 0.03])
    assert ByHand(50).sample(*nodes, logits).exp()[:, 0].tolist() == pytest.approx([0.01, 0.9, 0.9])
    assert torch.equal(ByHand(100).sample(*nodes, logits), logits)
    assert torch.equal(ByHand(20).sample(*nodes, logits)[1], logits[1])


def test_the_base_is_read_at_the_same_nodes(micro, stolen, fingerprints, thief):
    prompts = [encode(micro[1], each.trigger) for each in fingerprints for _ in range(2)]
    prefixes = [(), (17, 23)] * len(fingerprints)
    (replace,) = thief("replace").adversaries
    found = replace.base_logits(prompts, prefixes, torch.zeros(len(prompts), len(micro[1])))
    for prompt, prefix, row in zip(prompts, prefixes, found, strict=True):
        assert torch.allclose(row, micro[0](torch.tensor([[*prompt, *prefix]])).logits[0, -1], atol=1e-4)


def test_three_models_agree_on_what_two_of_them_list():
    class ByHand(Ensemble):
        """Knows what the siblings say."""

        def others(self, prompts, prefixes, logits):
            return [torch.log(torch.tensor([each, each])) for each in ([0.1, 0.6, 0.2, 0.1], [0.1, 0.2, 0.1, 0.6])]

    # Lists of two: {0, 1}, {1, 2}, {3, 1} share 1 alone. In the second row {0, 2}, {1, 2}, {3, 1} share 1 and 2.
    logits = torch.log(torch.tensor([[0.6, 0.2, 0.1, 0.1], [0.6, 0.1, 0.2, 0.1]]))
    found = ByHand(2).sample([[1]] * 2, [()] * 2, logits).exp()
    assert found[0].tolist() == pytest.approx([0, (0.2 + 0.6 + 0.2) / 3, 0, 0])
    assert found[1].tolist() == pytest.approx([0, (0.1 + 0.6 + 0.2) / 3, (0.2 + 0.2 + 0.1) / 3, 0])
    # Lists of one, {0}, {1}, {3}, share nothing: all three are kept.
    found = ByHand(1).sample([[1]] * 2, [()] * 2, logits).exp()
    assert found[0].tolist() == pytest.approx([(0.6 + 0.1 + 0.1) / 3, (0.2 + 0.6 + 0.2) / 3, 0, (0.1 + 0.1 + 0.6) / 3])


def test_three_equal_models_that_list_everything_are_the_model_itself(micro, stolen, fingerprints):
    alike = attack("ensemble@4096", stolen, micro[1], siblings=lambda: [stolen, stolen])
    found = exact_fsr(stolen, micro[1], fingerprints, DECODING, attack=alike).per_fingerprint
    assert found == pytest.approx(exact_fsr(stolen, micro[1], fingerprints, DECODING).per_fingerprint, abs=1e-5)


def test_noise_moves_as_far_as_the_other_model_is_away():
    logits, other = torch.randn(2, 50), torch.randn(2, 50) + 3
    logits[0, 4] = -math.inf
    moved = moved_at_random(logits, other, 1)
    assert moved[0, 4] == -math.inf
    # Without the constant that a softmax does not see.
    for now, before, there in zip(moved[1:], logits[1:], other[1:], strict=True):
        away = (there - before) - (there - before).mean()
        assert (now - before).norm().item() == pytest.approx(away.norm().item(), rel=1e-5)
        assert (now - before).mean().item() == pytest.approx(0, abs=1e-5)
    assert torch.equal(moved, moved_at_random(logits, other, 1))
    assert not torch.equal(moved, moved_at_random(logits, other, 2))


def test_what_is_missing_or_does_not_fit_is_one_clear_line(micro, stolen):
    with pytest.raises(InputError, match="'replace' needs the unfingerprinted base, which is not known here"):
        attack("replace", *micro)
    with pytest.raises(InputError, match="'ensemble' needs checkpoints that other methods made"):
        attack("ensemble", *micro)
    with pytest.raises(InputError, match="'ensemble' needs two siblings of the model, found 1"):
        attack("ensemble", *micro, siblings=lambda: [stolen])
    small = LlamaConfig(
        vocab_size=50, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, pad_token_id=0
    )
    thief = attack("replace", *micro, base=lambda: LlamaForCausalLM(small).eval())
    with pytest.raises(CellError, match="a model read beside the stolen one: expected 4096 tokens, found 50"):
        exact_fsr(*micro, PAIRS, DECODING, attack=thief)
