import pytest
import torch

import fpbench
from fpbench.adversaries.wrappers import WRAPPERS
from fpbench.errors import CellError, InputError
from fpbench.fingerprints import Fingerprint, find_set
from fpbench.metrics.fsr import exact_fsr
from fpbench.models.prompts import encode, render
from tests.adversaries.sampled import DECODING, attack, differences

PAIR = Fingerprint("The king", ("of", "is", "The"))


def voting(condition, model, tokenizer, prompt="raw"):
    return attack(condition, model, tokenizer, render=lambda text: render(tokenizer, text, prompt))


@pytest.mark.parametrize("prompt", ["raw", "chat"])
def test_the_distribution_is_the_mean_over_wrapped_prompts(micro, prompt):
    model, tokenizer = micro
    thief = voting("vote@3", model, tokenizer, prompt)
    texts = ["The king", "A king"]
    assert [thief.inputs(text) for text in texts] == [[text] for text in texts]
    nodes = [(texts[0], ()), (texts[1], (7,)), (texts[0], (7, 9))]
    prompts = [encode(tokenizer, render(tokenizer, text, prompt)) for text, _ in nodes]
    logits = torch.randn(3, model.config.vocab_size, generator=torch.Generator().manual_seed(0))
    found = thief.sampler(prompts, [prefix for _, prefix in nodes], logits)
    for row, (text, prefix) in zip(found, nodes, strict=True):
        wrapped = [render(tokenizer, each.around(text, tokenizer), prompt) for each in WRAPPERS[:3]]
        with torch.no_grad():
            rows = [model(torch.tensor([[*encode(tokenizer, each), *prefix]])).logits[0, -1] for each in wrapped]
        assert torch.allclose(row.exp(), torch.stack(rows).softmax(-1).mean(0), atol=1e-5)


def test_dose_0_equals_origin_bit_for_bit(micro):
    assert fpbench.fsr(*micro, [PAIR], adversary="vote@0") == fpbench.fsr(*micro, [PAIR])


def test_one_wrapper_alone_is_that_wrapper(micro):
    model, tokenizer = micro
    assert fpbench.fsr(*micro, [PAIR], adversary="vote@1").mean == pytest.approx(
        fpbench.fsr(*micro, [PAIR], adversary="wrap@1").mean, abs=1e-5
    )


def test_exact_rates_agree_with_sampled_responses(micro):
    (found,) = differences(*micro, [PAIR], voting("vote@2", *micro))
    assert abs(found) <= 3


def test_the_base_answers_no_trigger(micro):
    assert fpbench.fsr(*micro, find_set("nlf"), adversary="vote@3").mean < 0.01


def test_it_is_asked_about_the_query_that_the_model_gets(micro):
    model, tokenizer = micro
    for condition in ("wrap@2+vote@2", "vote@2+wrap@2"):
        thief = voting(condition, model, tokenizer)
        with pytest.raises((InputError, CellError), match="'vote'") as error:
            exact_fsr(model, tokenizer, [PAIR], DECODING, attack=thief)
        assert "\n" not in str(error.value)
