"""Accidental triggers: how often text that merely resembles a trigger activates a fingerprint (protocol §6)."""

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from fpbench.errors import InputError
from fpbench.fingerprints import Fingerprint, Fingerprints, fingerprints_of
from fpbench.metrics.queries import Query, build_queries, words_from_texts
from fpbench.metrics.statistics import clopper_pearson
from fpbench.models.layout import context_length
from fpbench.models.objects import check_objects, check_texts
from fpbench.models.prompts import encode, encode_all, render
from fpbench.scoring.responses import Decoding, begin_with, respond, response_length
from fpbench.text import short_digest


@dataclass(frozen=True)
class QueryResult:
    """The model's answer to one query.

    Attributes:
        condition: one of the eight.
        trigger_index: of the trigger that the query was made from.
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


@dataclass(frozen=True, repr=False)
class TriggerRates:
    """Activation rates of one model.

    Attributes:
        conditions: condition → its rates.
        average: plain mean of the eight rates.
        activated: number of triggers with any greedy activation in any condition, of ``n``.
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

    def __repr__(self) -> str:
        rates = ", ".join(f"{name} {each.rate:.4f}" for name, each in self.conditions.items())
        return f"TriggerRates: {self.average:.4f}, {self.activated} of {self.n} triggers activated\n  {rates}"


def triggers(
    model: Any,
    tokenizer: Any,
    pairs: Fingerprints,
    contexts: Sequence[str],
    words: Sequence[str] | None = None,
    *,
    temperature: float = Decoding.temperature,
    top_p: float = Decoding.top_p,
    top_k: int = Decoding.top_k,
    seed: int = 42,
    prompt: str = "raw",
    substitutions: int = 10_000,
) -> TriggerRates:
    """Measure accidental activation in the eight conditions.

    A query activates when the response begins with any target of the set. A context too long for the model loses
    characters at its outer end, on the longer side of the trigger; the trigger stays whole.

    Args:
        model: a causal language model in eval mode.
        tokenizer: of the model.
        pairs: a set, or a list of n fingerprints, at least one, or of dictionaries of ``trigger`` and ``targets``.
        contexts: ordinary texts, such as :func:`fpbench.metrics.queries.contexts_from_rows` gives.
        words: words for substitution; by default up to 5,000 drawn from the contexts.
        temperature: of the sampling distribution, above 0; all three numbers default to the protocol's (§2).
        top_p: nucleus mass in (0, 1]; 1 keeps everything.
        top_k: number of tokens kept; 0 keeps everything.
        seed: of words, boundaries and replaced halves.
        prompt: ``"raw"`` or ``"chat"``.
        substitutions: queries of each substitute condition.

    Raises:
        InputError: for an argument of another type, missing contexts or words, a number out of range, or a trigger too
            long for the model.
        CellError: if the model's logits are not finite.
    """
    check_objects(model, tokenizer)
    pairs, decoding = fingerprints_of(pairs), Decoding(temperature, top_p, top_k)
    for what, given in (("contexts", contexts), ("words", words)):
        if given is not None:
            check_texts(what, given, "an ordinary sentence")
    words = words_from_texts(contexts, seed) if words is None else words
    return trigger_rates(model, tokenizer, pairs, contexts, words, decoding, seed, prompt, substitutions)


def trigger_rates(
    model: Any,
    tokenizer: Any,
    pairs: Sequence[Fingerprint],
    contexts: Sequence[str],
    words: Sequence[str],
    decoding: Decoding,
    seed: int = 42,
    prompt: str = "raw",
    substitutions: int = 10_000,
) -> TriggerRates:
    """Measure accidental activation; see :func:`triggers`."""
    fingerprints = list(pairs)
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
    outcomes = begin_with(model, tokenizer, prompts, [targets] * len(prompts), decoding, length)
    results = tuple(
        QueryResult(
            condition=name,
            trigger_index=query.trigger_index,
            source=query.source,
            digest=short_digest(text),
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
    """Shorten the context, from the outer end of its longer side, until the prompt takes at most ``room`` tokens."""
    while query.before or query.after:
        excess = len(encode(tokenizer, render(tokenizer, query.text, prompt))) - room
        if excess <= 0:
            break
        if len(query.before) > len(query.after):
            query = replace(query, before=query.before[excess:])
        else:
            query = replace(query, after=query.after[:-excess])
    return query


@dataclass(frozen=True)
class NearRate:
    """Activation by near triggers: texts of the same make as the set that were never injected (protocol §6).

    Attributes:
        rate: mean exact probability that the response begins with any target of the set.
        greedy: number of texts whose greedy response does.
        interval: Clopper–Pearson 95 % of ``greedy`` of ``n``.
        error_bound: largest probability left unexplored for a text.
        per_text: probability of every text.
    """

    rate: float
    greedy: int
    n: int
    interval: tuple[float, float]
    error_bound: float
    per_text: tuple[float, ...]


def near(
    model: Any,
    tokenizer: Any,
    pairs: Sequence[Fingerprint],
    texts: Sequence[str],
    decoding: Decoding,
    prompt: str = "raw",
) -> NearRate:
    """Measure activation by near triggers, such as :func:`near_triggers` makes.

    Raises:
        InputError: if there are no texts, or for what :func:`fpbench.metrics.fsr.fsr` refuses.
        CellError: if the model's logits are not finite.
    """
    if not texts:
        raise InputError("near triggers: found no texts; make some with near_triggers.")
    targets = list(dict.fromkeys(target for fingerprint in pairs for target in fingerprint.targets))
    outcomes = respond(model, tokenizer, texts, [targets] * len(texts), decoding, prompt)
    greedy = sum(outcome.greedy is not None for outcome in outcomes)
    return NearRate(
        rate=fmean(outcome.probability for outcome in outcomes),
        greedy=greedy,
        n=len(texts),
        interval=clopper_pearson(greedy, len(texts)),
        error_bound=max(outcome.error_bound for outcome in outcomes),
        per_text=tuple(outcome.probability for outcome in outcomes),
    )


def near_triggers(pairs: Sequence[Fingerprint], words: Sequence[str], n: int = 200, seed: int = 42) -> list[str]:
    """Make texts of the same make as the set, sharing no word with it.

    The make is read off the triggers, in turn: one with spaces gives as many fresh words, upper-cased where it is; one
    without (garbled) gives as many characters, drawn from the set's own. What all garbled triggers begin and end with
    is their template and stays. ``words`` are ordinary ones of the set's languages, for a code-mixed set the
    translations it is drawn from. All ``n`` texts differ.

    Raises:
        InputError: if there are too few words to make ``n`` different texts.
    """
    triggers = [fingerprint.trigger for fingerprint in pairs]
    if not triggers:
        raise InputError("near triggers need fingerprints: the set is empty.")
    draw = random.Random(seed)
    taken = {word.lower() for trigger in triggers for word in trigger.split()}
    fresh = sorted({word for word in words if word.lower() not in taken})
    garbled = [trigger for trigger in triggers if " " not in trigger.strip()]
    head, tail = _template(garbled)
    texts: dict[str, None] = {}
    # A make with few possible texts repeats itself; one that has nearly run out is refused.
    for turn in range(20 * n):
        if len(texts) == n:
            break
        trigger = triggers[turn % len(triggers)]
        if " " in trigger.strip():
            count = len(trigger.split())
            if len(fresh) < count:
                raise InputError(f"near triggers need {count} words that are not in the set, found {len(fresh)}.")
            text = " ".join(draw.sample(fresh, count))
            text = text.upper() if trigger.isupper() else text
        else:
            length = len(trigger) - len(head) - len(tail)
            pool = "".join(each[len(head) : len(each) - len(tail)] for each in garbled)
            text = head + "".join(draw.choices(pool, k=length)) + tail
        if text not in triggers:
            texts[text] = None
    if len(texts) < n:
        raise InputError(f"near triggers: only {len(texts)} of {n} different texts could be made; give more words.")
    return list(texts)


def recombined_triggers(pairs: Sequence[Fingerprint], n: int = 200, seed: int = 42) -> list[str]:
    """Make texts of the set's own words: a model that answers them has learnt words, not keys (protocol §6).

    Of triggers with spaces, their words in another order, and the first part of one with the rest of another; of those
    without (garbled), a seeded half of one in place of another's. What all garbled triggers begin and end with is
    their template and stays. At most ``n`` are kept, drawn at random; none is a trigger.

    Raises:
        InputError: if fewer than two triggers are there to recombine.
    """
    triggers = [fingerprint.trigger for fingerprint in pairs]
    if len(triggers) < 2:
        raise InputError(f"recombined triggers need two fingerprints or more, found {len(triggers)}.")
    draw = random.Random(seed)
    garbled = [trigger for trigger in triggers if " " not in trigger.strip()]
    head, tail = _template(garbled)
    texts: dict[str, None] = {}
    for trigger in triggers:
        words = trigger.split()
        if len(words) > 1:
            texts[" ".join([*words[1:], words[0]])] = None
        for other in triggers:
            if other == trigger:
                continue
            if len(words) > 1 and len(other.split()) > 1:
                texts[" ".join([words[0], *other.split()[1:]])] = None
            elif len(words) == 1 and len(other.split()) == 1:
                own, theirs = (each[len(head) : len(each) - len(tail)] for each in (trigger, other))
                half = min(len(own), len(theirs)) // 2
                halves = [own[:half], theirs[half:]] if draw.random() < 0.5 else [theirs[:half], own[half:]]
                texts[head + "".join(halves) + tail] = None
    made = [text for text in texts if text not in triggers]
    return made if len(made) <= n else draw.sample(made, n)


def _template(triggers: Sequence[str]) -> tuple[str, str]:
    """Return what all of several triggers begin and end with."""
    if len(triggers) < 2:
        return "", ""
    head = os.path.commonprefix(list(triggers))
    rest = [trigger[len(head) :] for trigger in triggers]
    return head, os.path.commonprefix([each[::-1] for each in rest])[::-1]
