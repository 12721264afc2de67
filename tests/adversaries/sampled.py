"""Responses sampled by transformers' own ``generate`` under an adversary: what exact FSR is held against."""

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from fpbench.adversaries.base import Attack
from fpbench.models.prompts import encode, render
from fpbench.scoring.responses import end_tokens, response_length


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
