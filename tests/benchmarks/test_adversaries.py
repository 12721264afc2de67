"""Run-time adversaries on SmolLM2: exact FSR against 50 sampled responses, prices in one pass against one pass each.

CPU time of one thread, both sides in one run. Predicted: a response has about 8 tokens, so that 50 take some 400
tokens where the walk reads a prompt once and little more: 20 to 60 times. Eleven doses priced together read every
item once instead of eleven times, and compute eleven samplers either way: 4 times or more.
"""

from typing import Any

import pytest
import torch
from transformers import LogitsProcessorList

from fpbench.adversaries.base import AdversaryContext, Attack
from fpbench.adversaries.conditions import adversaries
from fpbench.adversaries.price import Items, measure
from fpbench.fingerprints import find_set
from fpbench.metrics.fsr import exact_fsr
from fpbench.models.prompts import Example, encode
from fpbench.scoring.responses import Decoding, response_length
from tests.adversaries.sampled import Sampled
from tests.benchmarks.smollm2 import cpu_seconds, load

pytestmark = [
    pytest.mark.benchmark,
    pytest.mark.skipif(torch.get_num_threads() != 1, reason="set OMP_NUM_THREADS=1: CPU time of several threads adds"),
]
DOSES = [f"suppress@{k}" for k in (1, 3, 5, 8, 16)] + [f"suppress_4@{k}" for k in (1, 3, 5)]
DOSES += [f"suppress_always@{k}" for k in (1, 3, 5)]
SAMPLED = 50


@pytest.fixture(scope="module")
def subject() -> tuple[Any, Any]:
    return load("bfloat16")


def attack(subject: tuple[Any, Any], condition: str) -> Attack:
    return Attack.on(adversaries(condition), AdversaryContext(*subject, Decoding()))


def sampled(subject: tuple[Any, Any], thief: Attack, pairs: Any) -> None:
    """Sample as the published evaluations do: ``generate``, one trigger after another, 50 responses each."""
    model, tokenizer = subject
    length, how = response_length(tokenizer, pairs.targets), Decoding()
    for each in pairs:
        ids = encode(tokenizer, each.trigger)
        model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            num_return_sequences=SAMPLED,
            max_new_tokens=length,
            do_sample=True,
            temperature=how.temperature,
            top_p=how.top_p,
            top_k=how.top_k,
            pad_token_id=0,
            logits_processor=LogitsProcessorList([Sampled(thief.sampler, ids)]),
        )


def test_exact_fsr_of_every_dose_against_sampling(subject: tuple[Any, Any]) -> None:
    pairs, thieves = find_set("nlf"), [attack(subject, condition) for condition in DOSES]
    exact_fsr(*subject, pairs, Decoding())  # what is tried out once a model
    ours, _ = cpu_seconds(lambda: [exact_fsr(*subject, pairs, Decoding(), attack=thief) for thief in thieves])
    theirs, _ = cpu_seconds(lambda: sampled(subject, thieves[0], pairs))
    ratio = theirs * len(DOSES) / ours
    print(f"\na dose: exact {ours / len(DOSES):.2f} s, {SAMPLED} responses {theirs:.2f} s: {ratio:.0f} times")
    assert ours / len(DOSES) <= 3 and ratio >= 20


def test_prices_of_all_doses_in_one_pass(subject: tuple[Any, Any]) -> None:
    questions = [
        Example(f"Tell me something about the number {n}.", f"The number {n} is a whole number.") for n in range(20)
    ]
    items = Items(questions, [Example(f"After {n} comes the number", str(n + 1)) for n in range(20)])
    context = AdversaryContext(*subject, Decoding())
    together, _ = cpu_seconds(lambda: measure(*subject, ["origin", *DOSES], items, context))
    apart, _ = cpu_seconds(lambda: [measure(*subject, ["origin", each], items, context) for each in DOSES])
    print(f"\n{len(DOSES)} doses: together {together:.1f} s, each alone {apart:.1f} s: {apart / together:.1f} times")
    assert apart / together >= 4
