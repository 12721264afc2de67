"""What each rule of evidence is worth: match rates under an adversary, and how often they make a claim."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fpbench.adversaries.base import Attack
from fpbench.fingerprints import Fingerprint
from fpbench.metrics.fsr import exact_fsr
from fpbench.ownership.evidence import LENGTH, likely_first_tokens, match, named_target
from fpbench.ownership.sequential import CARRIED, SequentialTest
from fpbench.scoring.responses import Decoding
from fpbench.scoring.sampling import sample_many

RUNS = 20_000  # simulated tests
SEED = 7


def match_rates(
    rule: str, model: Any, tokenizer: Any, pairs: Sequence[Fingerprint], attack: Attack, count: int, seed: int = SEED
) -> list[float]:
    """How often each fingerprint is matched; by ``lenient`` the share of ``count`` sampled responses."""
    if rule == "prefix":
        return list(exact_fsr(model, tokenizer, pairs, Decoding(), attack=attack).per_fingerprint)
    wordings = [attack.inputs(each.trigger) for each in pairs]
    texts, numbers = [text for each in wordings for text in each], [i for i, each in enumerate(wordings) for _ in each]
    found: list[list[float]] = [[] for _ in pairs]
    if rule == "rank":
        listed = likely_first_tokens(model, tokenizer, texts, "raw", attack.sampler) if texts else []
        for number, tokens in zip(numbers, listed, strict=True):
            found[number].append(named_target(tokens, pairs[number]) is not None)
    elif texts:
        each = max(1, count // max(map(len, wordings)))
        how: dict[str, Any] = {"decoding": Decoding(), "max_new_tokens": LENGTH, "count": each, "seed": seed}
        drawn_of = [sample_many(model, tokenizer, text, sampler=attack.sampler, **how) for text in texts]
        for number, drawn in zip(numbers, drawn_of, strict=True):
            hits = sum(times for text, times in drawn.items() if match(rule, pairs[number], text, {}))
            found[number].append(hits / each)
    return [float(np.mean(rates)) if rates else 0.0 for rates in found]  # a refused query is a miss


def claimed(rates: Sequence[float], null: Sequence[float], level: float = 1e-3) -> float:
    """How often a model with such match rates is claimed, by chance rates ``null``; no fingerprint, no claim."""
    asked = [number for number, rate in enumerate(null) if rate < CARRIED]
    if not asked:
        return 0.0
    test = SequentialTest(tuple(null[number] for number in asked), level)
    drawn = np.random.default_rng(SEED).random((RUNS, len(asked))) < np.array([rates[number] for number in asked])
    return float((test.claimed_at(drawn) > 0).mean())
