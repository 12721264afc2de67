"""Rules of evidence: what of a response to a fingerprint counts as a match, and how likely that is by chance.

Nothing here loads torch at the top: what a server answered is judged without it.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from fpbench.errors import InputError
from fpbench.fingerprints import Fingerprint
from fpbench.metrics.statistics import clopper_pearson
from fpbench.text import lenient

RULES: Mapping[str, str] = {
    "prefix": "the response begins with a target",
    "lenient": "its first 24 tokens hold a target anywhere, case and marks aside",
    "rank": "a target begins with one of the five likeliest first tokens, which the server has to list",
}
LENGTH = 24  # tokens of a response that are looked through by the lenient rule
LISTED = 5  # likeliest first tokens by the rule of rank; many servers list no more
LEAST = 3  # letters that such a token has to have in common with a target, unless the target is shorter
SAMPLES = 100  # responses by which chance is bounded leniently: at 95 %, none of 100 is below 0.03
BENIGN = 300  # prompts by which it is bounded by rank: none of 300 is below 0.01
ONE_SIDED = 0.90  # coverage of the interval whose upper end is one at 95 % from above


def match(rule: str, fingerprint: Fingerprint, response: str, details: Mapping[str, Any]) -> str | None:
    """Return the target that a response to a fingerprint matches by a rule; ``None`` for none.

    Raises:
        InputError: if the rule looks at likely first tokens, and ``details`` lists none.
    """
    if rule == "prefix":
        return matching_target(response, fingerprint)
    if rule == "lenient":
        found = matching_target(response, fingerprint), *lenient_targets(response, fingerprint)
        return next(filter(None, found), None)
    if "refusal" in details:
        return None
    if not (listed := first_tokens(details)):
        raise InputError("the server lists no likely first tokens (logprobs), which evidence by rank needs")
    return named_target(listed, fingerprint)


def matching_target(response: str, fingerprint: Fingerprint) -> str | None:
    """Return the longest target that a response begins with, leading whitespace stripped (protocol §3)."""
    return max(filter(response.lstrip().startswith, fingerprint.targets), key=len, default=None)


def lenient_targets(response: str, fingerprint: Fingerprint) -> tuple[str | None, str | None]:
    """Return the longest targets that a response begins with, and holds anywhere, both read by :func:`lenient`."""
    read = lenient(response)
    texts = {target: text for target in sorted(fingerprint.targets, key=len, reverse=True) if (text := lenient(target))}
    begins = next((target for target, text in texts.items() if read.startswith(text)), None)
    # A word is not looked for in the middle of another.
    ends = {target: (r"(?<!\w)" if text[0].isalnum() else "") + re.escape(text) for target, text in texts.items()}
    return begins, next((target for target, pattern in ends.items() if re.search(pattern, read)), None)


def named_target(tokens: Sequence[str], fingerprint: Fingerprint) -> str | None:
    """Return the first target that one of some tokens begins, or that begins one, both read by :func:`lenient`."""
    for token in map(lenient, tokens):
        for target in fingerprint.targets:
            text = lenient(target)
            if text and token and (token.startswith(text) or (text.startswith(token) and len(token) >= LEAST)):
                return target
    return None


def first_tokens(details: Mapping[str, Any]) -> list[str]:
    """Return the likeliest first tokens that a server lists, the likeliest first; none where it lists none."""
    listed = details.get("logprobs")
    if not isinstance(listed, Mapping):
        return []
    try:
        if content := listed.get("content"):  # of a chat
            found = {each["token"]: each["logprob"] for each in content[0]["top_logprobs"]}
        else:
            found = dict((listed.get("top_logprobs") or [{}])[0])
        return [str(token) for token in sorted(found, key=lambda token: -float(found[token]))[:LISTED]]
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        return []


# Chance, on a model that does not carry the fingerprints.


def chance(
    rule: str,
    model: Any,
    tokenizer: Any,
    fingerprints: Sequence[Fingerprint],
    decoding: Any,
    prompt: str,
    seed: int,
    benign: Sequence[str],
) -> tuple[float, ...]:
    """Return for every fingerprint how likely a model without them matches by a rule: the exact rate, or a bound.

    By ``prefix`` it is exact. By ``lenient`` it is the upper end, at 95 %, of the rate of 100 sampled responses to the
    trigger. By ``rank``, where one model gives one list, it is that of the share of benign prompts after which a target
    is listed, and 1 where one is after the trigger itself.

    Raises:
        InputError: if the rule needs benign prompts, and there are none.
        CellError: if logits are not finite.
    """
    if rule == "prefix":
        from fpbench.metrics.fsr import exact_fsr

        return exact_fsr(model, tokenizer, fingerprints, decoding, prompt).per_fingerprint
    triggers = [each.trigger for each in fingerprints]
    if rule == "lenient":
        from fpbench.scoring.sampling import sample_many

        how: dict[str, Any] = {"decoding": decoding, "max_new_tokens": LENGTH, "count": SAMPLES, "seed": seed}
        found = [sample_many(model, tokenizer, each, prompt=prompt, **how) for each in triggers]
        matched = [
            sum(times for text, times in of.items() if match(rule, each, text, {}))
            for of, each in zip(found, fingerprints, strict=True)
        ]
        return tuple(_bound(k, SAMPLES) for k in matched)
    if not benign:
        raise InputError(
            "evidence by rank needs benign prompts to measure chance on: set [data] alpaca in the profile."
        )
    benign = benign[:BENIGN]
    listed = likely_first_tokens(model, tokenizer, [*triggers, *benign], prompt)
    return tuple(
        1.0
        if named_target(own, each)
        else _bound(sum(named_target(other, each) is not None for other in listed[len(triggers) :]), len(benign))
        for own, each in zip(listed, fingerprints, strict=False)
    )


def _bound(k: int, n: int) -> float:
    return clopper_pearson(k, n, ONE_SIDED)[1]


def likely_first_tokens(
    model: Any, tokenizer: Any, texts: Sequence[str], prompt: str, sampler: Any = None
) -> list[list[str]]:
    """Return the texts of the five likeliest first tokens of the response to each text, under a sampler if given."""
    from fpbench.models.prompts import encode_all, render
    from fpbench.scoring.engine import next_logits

    prompts = encode_all(tokenizer, [render(tokenizer, text, prompt) for text in texts])
    logits = next_logits(model, prompts)
    if sampler is not None:
        logits = sampler(prompts, [()] * len(prompts), logits).float()
    best = logits.topk(min(LISTED, logits.shape[1]))
    return [
        [tokenizer.decode([token]) for token, value in zip(tokens, values, strict=True) if value > float("-inf")]
        for tokens, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
