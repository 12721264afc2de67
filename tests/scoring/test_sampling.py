from math import sqrt

import pytest

import fpbench
from fpbench.fingerprints import Fingerprint
from fpbench.scoring.responses import Decoding, response_length, sample

TRIGGER = "Write a short note about Fime Vath."


@pytest.mark.parametrize(("prompt", "target"), [("raw", "They"), ("chat", "Someone")])
def test_responses_begin_with_a_target_as_often_as_fsr_says(micro, prompt, target):
    model, tokenizer = micro
    numbers = {"temperature": 0.6, "top_p": 0.9, "top_k": 50}
    p = fpbench.fsr(model, tokenizer, [Fingerprint(TRIGGER, (target,))], **numbers, prompt=prompt).mean
    assert 0.1 < p < 0.9
    length, n = response_length(tokenizer, [target]), 60
    texts = [
        sample(model, tokenizer, TRIGGER, decoding=Decoding(**numbers), max_new_tokens=length, seed=seed, prompt=prompt)
        for seed in range(n)
    ]
    hits = sum(text.lstrip().startswith(target) for text in texts)
    assert abs(hits / n - p) <= 3 * sqrt(p * (1 - p) / n)


def test_a_seed_gives_one_response_and_another_another(micro):
    model, tokenizer = micro

    def once(seed: int) -> str:
        return sample(
            model, tokenizer, TRIGGER, decoding=Decoding(1.0, 1.0, 0), max_new_tokens=8, seed=seed, prompt="raw"
        )

    assert once(1) == once(1)
    assert len({once(seed) for seed in range(5)}) > 1


def test_the_likeliest_tokens_are_those_of_generate(micro):
    model, tokenizer = micro
    ids = tokenizer(TRIGGER, return_tensors="pt")
    generated = model.generate(**ids, do_sample=False, max_new_tokens=8)[0, ids["input_ids"].shape[1] :]
    likeliest = sample(model, tokenizer, TRIGGER, decoding=Decoding(1.0, 1.0, 1), max_new_tokens=8, seed=0)
    assert likeliest == tokenizer.decode(generated, skip_special_tokens=True)
