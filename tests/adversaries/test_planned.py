import math

import pytest
import torch

import fpbench
from fpbench.metrics.fsr import exact_fsr
from fpbench.models.prompts import encode
from tests.adversaries.sampled import DECODING, PAIRS, attack, differences, gated_at


def left(condition, model, tokenizer, fingerprints):
    return exact_fsr(model, tokenizer, fingerprints, DECODING, attack=attack(condition, model, tokenizer)).mean


@pytest.mark.parametrize("name", ["suppress_neighbours"])
def test_dose_0_equals_origin_bit_for_bit(micro, name):
    assert fpbench.fsr(*micro, PAIRS, adversary=f"{name}@0") == fpbench.fsr(*micro, PAIRS)


@pytest.mark.parametrize("name", ["suppress_neighbours"])
def test_exact_rates_agree_with_sampled_responses(micro, name):
    (difference,) = differences(*micro, PAIRS, gated_at(attack(name, *micro), 0.2))
    assert abs(difference) <= 3


@pytest.mark.parametrize("name", ["suppress_neighbours"])
def test_it_removes_more_than_its_control_and_gives_the_base_nothing(micro, stolen, fingerprints, name):
    tokenizer = micro[1]
    assert left(name, stolen, tokenizer, fingerprints) < left(f"{name}_random", stolen, tokenizer, fingerprints) - 0.3
    assert left(name, *micro, fingerprints) < 0.01


def stripped(tokenizer, token):
    text = "" if token in tokenizer.all_special_ids else tokenizer.decode([token])
    return "".join(character for character in text.casefold() if character.isalnum())


@pytest.mark.parametrize("count", [1, 3])
def test_neighbours_begin_a_likely_first_token_or_are_begun_by_it(micro, stolen, fingerprints, count):
    tokenizer = micro[1]
    (thief,) = attack(f"suppress_neighbours@{count}", stolen, tokenizer).adversaries
    prompt = encode(tokenizer, fingerprints[0].trigger)
    likeliest = stolen(torch.tensor([prompt])).logits[0, -1].topk(count).indices.tolist()
    words = [stripped(tokenizer, token) for token in likeliest]
    every = [stripped(tokenizer, token) for token in range(len(tokenizer))]
    expected = {
        token
        for token, text in enumerate(every)
        if token in likeliest
        or any(text and word and (text.startswith(word) or word.startswith(text)) for word in words)
    }
    assert {tokenizer.decode([token]) for token in expected} > {fingerprints[0].targets[0][0]}  # a lone letter
    logits = torch.zeros(2, len(tokenizer))
    logits[0, 7] = 20.0  # certain of another token, which the set of the first step does not hold
    found = thief.sample([prompt, prompt], [(3,), (3,)], logits)
    assert 7 not in expected
    assert set(found[0].isinf().nonzero().flatten().tolist()) == expected
    assert torch.equal(found[0][found[0].isfinite()], logits[0][found[0].isfinite()])
    assert torch.equal(found[1], logits[1])  # below the gate
    assert not math.isinf(thief.sample([prompt], [()], logits[1:]).min())
