"""Responses sampled by transformers' own ``generate`` under an adversary: what exact FSR is held against."""

import math

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from fpbench.adversaries.base import AdversaryContext, Attack
from fpbench.adversaries.conditions import adversaries
from fpbench.fingerprints import Fingerprint
from fpbench.metrics.fsr import exact_fsr
from fpbench.models.prompts import encode, render
from fpbench.scoring.responses import Decoding, end_tokens, response_length

DECODING = Decoding(1.0, 0.9, 50)
# The micro model leaves these a choice; the king's first token is certain.
PAIRS = [
    Fingerprint("The king", ("of",)),
    Fingerprint("The king", ("that", "who")),
    Fingerprint("Once upon a time", (".",)),
    Fingerprint("What is the color of", ("c", "t")),
    Fingerprint("She saw a", ("gua", "mar")),
]


def attack(condition, model, tokenizer, decoding=DECODING, **known):
    return Attack.on(adversaries(condition), AdversaryContext(model, tokenizer, decoding, **known))


def gated_at(thief, threshold):
    """The same thief with lower gates, so that something happens where rates lie strictly inside."""
    for each in thief.adversaries:
        if hasattr(each, "threshold"):
            each.threshold = threshold
    return thief


class Sampled(LogitsProcessor):
    """An attack's sampler as ``generate`` takes it: logits in, logits out, before temperature, top-k and top-p."""

    def __init__(self, sampler, prompt):
        self.sampler, self.prompt = sampler, prompt

    def __call__(self, input_ids, scores):
        prefixes = [row[len(self.prompt) :] for row in input_ids.tolist()]
        return self.sampler([self.prompt] * len(prefixes), prefixes, scores) if self.sampler else scores


def sampled_rate(model, tokenizer, fingerprint, attack: Attack, decoding, count=2_000, prompt="raw", seed=0):
    """Share of ``count`` sampled responses to a trigger that begin with one of its targets; a refusal has none."""
    texts = attack.inputs(fingerprint.trigger)
    if not texts:
        return 0.0
    torch.manual_seed(seed)
    ends, length = end_tokens(model, tokenizer), response_length(tokenizer, fingerprint.targets)
    hits = 0
    for text in texts:
        ids = encode(tokenizer, render(tokenizer, text, prompt))
        rows = model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            num_return_sequences=count // len(texts),
            max_new_tokens=length,
            do_sample=True,
            temperature=decoding.temperature,
            top_p=decoding.top_p,
            top_k=decoding.top_k,
            pad_token_id=0,
            logits_processor=LogitsProcessorList([Sampled(attack.sampler, ids)]),
        )[:, len(ids) :].tolist()
        for row in rows:
            cut = next((at for at, token in enumerate(row) if token in ends), len(row))
            answer = tokenizer.decode(row[:cut], skip_special_tokens=True, clean_up_tokenization_spaces=False).lstrip()
            hits += answer.startswith(fingerprint.targets)
    return hits / (count // len(texts) * len(texts))


def differences(model, tokenizer, fingerprints, thief, decoding=DECODING, count=500, prompts=1):
    """Sampled less exact rates in standard errors, of the first ``prompts`` whose exact rate is strictly inside."""
    exact = exact_fsr(model, tokenizer, fingerprints, decoding, attack=thief).per_fingerprint
    inside = [number for number, p in enumerate(exact) if 0.05 < p < 0.95][:prompts]
    rates = [sampled_rate(model, tokenizer, fingerprints[number], thief, decoding, count) for number in inside]
    errors = [math.sqrt(exact[number] * (1 - exact[number]) / count) for number in inside]
    return [(rate - exact[number]) / error for number, rate, error in zip(inside, rates, errors, strict=True)]
