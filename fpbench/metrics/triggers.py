"""Accidental triggers: how often text that merely resembles a trigger activates a fingerprint (protocol §6)."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from fpbench.fingerprints import Fingerprint, FingerprintSet
from fpbench.metrics.queries import Query, build_queries, words_from_texts
from fpbench.metrics.statistics import clopper_pearson
from fpbench.models.decoding import Decoding
from fpbench.models.prompts import encode, encode_all, render
from fpbench.models.responses import begin_with, response_length
from fpbench.models.scoring import context_length


@dataclass(frozen=True)
class QueryResult:
    """What the model answered to one query.

    Attributes:
        condition: one of the eight.
        trigger_index: which trigger of the set the query was made from.
        source: index of the context, or of the substitution.
        digest: first 16 hexadecimal digits of the SHA-256 of the prompt text.
        probability: exact, that the response begins with any target of the set.
        own: the same for the trigger's own targets.
        greedy: whether the greedy response begins with any target of the set.
    """

    condition: str
    trigger_index: int
    source: int
    digest: str
    probability: float
    own: float
    greedy: bool


@dataclass(frozen=True)
class ConditionRate:
    """One condition: means over its queries, and how many of them the greedy response activates."""

    rate: float
    own: float
    greedy: int
    n: int


@dataclass(frozen=True)
class TriggerRates:
    """Activation rates of one model.

    Attributes:
        conditions: condition → its rates.
        average: plain mean of the eight rates.
        activated: number of triggers with any greedy activation in any condition, of ``n``.
        n: number of triggers.
        interval: Clopper–Pearson 95 % of ``activated`` of ``n``.
        error_bound: largest probability left unexplored for a query.
        cut: number of queries whose context was shortened to fit the model.
        queries: every query's result, in the order of the conditions.
    """

    conditions: dict[str, ConditionRate]
    average: float
    activated: int
    n: int
    interval: tuple[float, float]
    error_bound: float
    cut: int
    queries: tuple[QueryResult, ...]


def triggers(
    model: Any,
    tokenizer: Any,
    pairs: FingerprintSet | Sequence[Fingerprint],
    contexts: Sequence[str],
    words: Sequence[str] | None = None,
    *,
    temperature: float,
    top_p: float,
    top_k: int,
    seed: int = 42,
    prompt: str = "raw",
    substitutions: int = 10_000,
) -> TriggerRates:
    """Measure accidental activation in the eight conditions.

    A query activates when the response begins with any target of the set. A context too long for the model loses
    characters at its outer end, on the longer side of the trigger; the trigger stays whole.

    Args:
        model: a causal language model in eval mode.
        tokenizer: its tokenizer.
        pairs: the fingerprints.
        contexts: ordinary texts, such as :func:`fpbench.metrics.queries.contexts_from_rows` gives.
        words: words for substitution; by default up to 5,000 drawn from the contexts.
        temperature: of the sampling distribution, as are ``top_p`` and ``top_k``.
        top_p: nucleus mass; 1.0 keeps everything.
        top_k: number of tokens kept; 0 keeps everything.
        seed: of words, boundaries and replaced halves.
        prompt: ``"raw"`` or ``"chat"``.
        substitutions: queries of each substitute condition.

    Raises:
        InputError: for missing contexts or words, a number out of range, or a trigger too long for the model.
        CellError: if the model's logits are not finite.
    """
    fingerprints = list(pairs)
    if words is None:
        words = words_from_texts(contexts, seed)
    built = build_queries(contexts, [each.trigger for each in fingerprints], words, seed, substitutions)
    targets = list(dict.fromkeys(target for fingerprint in fingerprints for target in fingerprint.targets))
    limit, length = context_length(model), response_length(tokenizer, targets)
    room = None if limit is None else limit - length
    names = [name for name, queries in built.items() for _ in queries]
    wanted = [query for queries in built.values() for query in queries]
    texts = [render(tokenizer, query.text, prompt) for query in wanted]
    prompts, cut = encode_all(tokenizer, texts), 0
    for number, ids in enumerate(prompts):
        if room is not None and len(ids) > room:
            texts[number] = render(tokenizer, fit(wanted[number], room, tokenizer, prompt).text, prompt)
            prompts[number] = encode(tokenizer, texts[number])
            cut += 1
    decoding = Decoding(temperature, top_p, top_k)
    outcomes = begin_with(model, tokenizer, prompts, [targets] * len(prompts), decoding, length)
    results = tuple(
        QueryResult(
            condition=name,
            trigger_index=query.trigger_index,
            source=query.source,
            digest=hashlib.sha256(text.encode()).hexdigest()[:16],
            probability=outcome.probability,
            own=outcome.begins_with(fingerprints[query.trigger_index].targets),
            greedy=outcome.greedy is not None,
        )
        for name, query, text, outcome in zip(names, wanted, texts, outcomes, strict=True)
    )
    conditions = {name: _rate([result for result in results if result.condition == name]) for name in built}
    activated = len({result.trigger_index for result in results if result.greedy})
    return TriggerRates(
        conditions=conditions,
        average=fmean(condition.rate for condition in conditions.values()),
        activated=activated,
        n=len(fingerprints),
        interval=clopper_pearson(activated, len(fingerprints)),
        error_bound=max(outcome.error_bound for outcome in outcomes),
        cut=cut,
        queries=results,
    )


def _rate(results: Sequence[QueryResult]) -> ConditionRate:
    return ConditionRate(
        rate=fmean(result.probability for result in results),
        own=fmean(result.own for result in results),
        greedy=sum(result.greedy for result in results),
        n=len(results),
    )


def fit(query: Query, room: int, tokenizer: Any, prompt: str) -> Query:
    """Shorten the context, from the outer end of its longer side, until the prompt takes at most ``room`` tokens.

    Args:
        query: what to shorten.
        room: tokens of the prompt, BOS included.
        tokenizer: of the model.
        prompt: ``"raw"`` or ``"chat"``.
    """
    while query.before or query.after:
        excess = len(encode(tokenizer, render(tokenizer, query.text, prompt))) - room
        if excess <= 0:
            break
        if len(query.before) > len(query.after):
            query = replace(query, before=query.before[excess:])
        else:
            query = replace(query, after=query.after[:-excess])
    return query
