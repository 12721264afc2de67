"""The price of an adversary: what users of the stolen model lose (docs/adversaries.md §3).

Each channel is measured item by item, on the model as it is and under the adversary, and only then compared: a price is
a loss against the very same model at dose 0. What the model computes does not depend on a sampler, so that all doses of
all samplers are priced in one pass.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from math import exp, fsum
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from fpbench.adversaries.base import AdversaryContext, Attack
from fpbench.adversaries.conditions import adversaries, changes_weights
from fpbench.errors import CellError, InputError

if TYPE_CHECKING:
    from torch import nn

    from fpbench.models.prompts import Example
    from fpbench.scoring.responses import Sampler

    Line = dict[str, Any]  # one item of one channel, as the per-query results have it

ANSWERED = 64  # tokens of a reference answer that count
UNATTACKED = 0.01  # share of the model's own distribution, so that a forbidden token costs a finite amount
ALPACA = "### Instruction:\n{}\n\n### Response:\n"  # how a model without a chat template is asked
UNEXPLORED = 1e-3  # of the probability of an answer; blanks before it, under a flat distribution, have a long tail
LEAST_ANSWERED = 0.01  # mean probability of the right word below which nothing can be lost
ABOVE_CHANCE = 3  # standard errors by which the right letter has to be likelier than chance
REFUSED = {"probability": 0.0}  # of an answer
LONG, SHORT = ("responses", "text", "refused"), ("answers", "letters", "tasks", "refused")
RESAMPLES = 2_000


@dataclass(frozen=True)
class Items:
    """Hold the items that a price is measured on.

    Attributes:
        instructions: queries with reference answers, on which nothing is trained (``responses`` and ``refused``).
        answers: texts that one right word follows (``answers``).
        letters: questions that one right letter answers (``letters``), with the number of choices.
        text: ordinary language, read in windows (``text``); only weights are priced on it.
        window: tokens of a window.
        windows: how many; ``None`` takes all.
    """

    instructions: Sequence[Example]
    answers: Sequence[Example]
    letters: Sequence[tuple[Example, int]] = ()
    text: str = ""
    window: int = 2048
    windows: int | None = None


@dataclass(frozen=True)
class Loss:
    """Hold the loss of one channel, a fraction, with the paired bootstrap interval over its n items."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, repr=False)
class Price:
    """The price of an adversary at a dose.

    Attributes:
        long: of long answers, the largest of ``responses``, ``text`` and ``refused``; the headline.
        short: of short answers, the largest of ``answers``, ``letters``, ``tasks`` and ``refused``; ``None`` where the
            model at dose 0 knows too few of the words.
        channels: every loss by its channel. One below 0 is a gain, and counts as 0 in ``long`` and ``short``.
    """

    long: float
    short: float | None
    channels: Mapping[str, Loss] = field(default_factory=dict)

    def __repr__(self) -> str:
        short = "unknown" if self.short is None else f"{self.short:.2%}"
        channels = ", ".join(f"{name} {each.value:+.2%}" for name, each in self.channels.items())
        return f"Price: {self.long:.2%} of long answers, {short} of short ones ({channels})"


# Measuring.


def measure(
    model: nn.Module, tokenizer: Any, conditions: Sequence[str], items: Items, context: AdversaryContext
) -> list[list[Line]]:
    """Measure every channel under each condition, item by item, on a model that has their weights parts already.

    Instructions are asked in the model's chat template; where it has none, in Alpaca's layout. Where a query becomes
    one of several, each item is asked in one of these, in turn.

    Raises:
        InputError: for a condition that is unknown or needs what ``context`` lacks, or an item that is too long.
        CellError: if logits are not finite.
    """
    from fpbench.models.prompts import render

    templated = bool(getattr(tokenizer, "chat_template", None))
    asked = replace(context, render=lambda text: render(tokenizer, text, "chat") if templated else ALPACA.format(text))
    plain = replace(context, render=lambda text: text)
    lines: list[list[Line]] = [[] for _ in conditions]
    attacks = [Attack.on(adversaries(condition), asked) for condition in conditions]
    losses = _of_each(attacks, items.instructions, partial(_response_losses, model, tokenizer, items, asked))
    for own, found in zip(lines, losses, strict=True):
        own += [{"channel": "responses", "index": index} | each for index, each in found.items()]
        numbers = range(len(items.instructions))
        own += [{"channel": "refused", "index": index, "refused": index not in found} for index in numbers]
    attacks = [Attack.on(adversaries(condition), plain) for condition in conditions]
    answers = _of_each(attacks, items.answers, partial(_answer_probabilities, model, tokenizer, items.answers, plain))
    for own, found in zip(lines, answers, strict=True):
        numbers = range(len(items.answers))
        own += [{"channel": "answers", "index": index} | found.get(index, REFUSED) for index in numbers]
    for own, letters in zip(lines, _letters(model, tokenizer, conditions, attacks, items, plain), strict=True):
        own += letters
    if items.text:
        windows = _window_losses(model, tokenizer, items)
        for own in lines:
            own += [{"channel": "text", "index": index} | each for index, each in enumerate(windows)]
    return lines


def _letters(
    model: nn.Module,
    tokenizer: Any,
    conditions: Sequence[str],
    attacks: Sequence[Attack],
    items: Items,
    context: AdversaryContext,
) -> list[list[Line]]:
    """Return the lines of ``letters`` under each condition; none where the model, with its own weights, knows none."""
    questions = [question for question, _ in items.letters]
    read = partial(_answer_probabilities, model, tokenizer, questions, context)

    def lines(found: Mapping[int, Line]) -> list[Line]:
        return [
            {"channel": "letters", "index": index, "choices": choices} | found.get(index, REFUSED)
            for index, (_, choices) in enumerate(items.letters)
        ]

    (alone,) = _of_each([Attack()], questions, read)
    known = _above_chance(lines(alone))
    # Changed weights may be why there is nothing to know: what they lost is seen against those of origin.
    asked = [number for number, name in enumerate(conditions) if known or changes_weights(name)]
    changing = [number for number in asked if attacks[number].sampler or attacks[number].changes_queries]
    attacked = dict(zip(changing, _of_each([attacks[number] for number in changing], questions, read), strict=True))
    return [lines(attacked.get(number, alone)) if number in asked else [] for number in range(len(conditions))]


def _of_each(
    attacks: Sequence[Attack],
    examples: Sequence[Example],
    read: Callable[[Sequence[tuple[int, str]], Sequence[tuple[Sampler | None, int | None]]], list[list[Line]]],
) -> list[dict[int, Line]]:
    """Return for every attack the line of each example that it does not refuse, by number.

    What several attacks ask is read once: by all samplers that leave the queries alone, and by all attacks without a
    sampler. ``read`` takes queries, each with the number of its example, and samplers, each with its last step.
    """
    alike = [index for index, attack in enumerate(attacks) if not attack.changes_queries]
    unsampled = [index for index, attack in enumerate(attacks) if attack.changes_queries and attack.sampler is None]
    others = [[index] for index in range(len(attacks)) if index not in (*alike, *unsampled)]
    found: dict[int, dict[int, Line]] = {}
    for group in (alike, unsampled, *others):
        asked = {index: _asked(attacks[index], examples) for index in group}
        queries = list(dict.fromkeys(query for each in asked.values() for query in each.items()))
        samplers = [(attacks[index].sampler, attacks[index].steps) for index in group if index not in unsampled]
        results = read(queries, samplers or [(None, None)]) if queries else [[]]
        for place, index in enumerate(group):
            of_query = dict(zip(queries, results[min(place, len(results) - 1)], strict=True))
            found[index] = {number: of_query[number, text] for number, text in asked[index].items()}
    return [found[index] for index in range(len(attacks))]


def _asked(attack: Attack, examples: Sequence[Example]) -> dict[int, str]:
    """Return the query that reaches the model for each example that is not refused: of several, the next in turn."""
    wordings = {number: attack.inputs(each.prompt) for number, each in enumerate(examples)}
    return {number: texts[number % len(texts)] for number, texts in wordings.items() if texts}


def _response_losses(
    model: Any,
    tokenizer: Any,
    items: Items,
    context: AdversaryContext,
    asked: Sequence[tuple[int, str]],
    samplers: Sequence[tuple[Sampler | None, int | None]],
) -> list[list[Line]]:
    """Return −Σ log p (nats) of the first tokens of reference answers, which the model is given as if it were its."""
    from fpbench.models.prompts import encode_pair

    pairs = [encode_pair(tokenizer, context.render(text), items.instructions[number].answer) for number, text in asked]
    prompts, answers = [prompt for prompt, _ in pairs], [answer[:ANSWERED] for _, answer in pairs]
    return [
        [{"loss": loss, "tokens": len(answer)} for loss, answer in zip(losses, answers, strict=True)]
        for losses in _teacher_forced(model, prompts, answers, samplers)
    ]


def _answer_probabilities(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    context: AdversaryContext,
    asked: Sequence[tuple[int, str]],
    samplers: Sequence[tuple[Sampler | None, int | None]],
) -> list[list[Line]]:
    """Return the probability, exact to 1e-3, that a response begins with the right word or letter."""
    from fpbench.models.prompts import encode_all
    from fpbench.scoring.responses import begin_with_under, response_length

    prompts = encode_all(tokenizer, [context.render(text) for _, text in asked])
    targets = [[examples[number].answer] for number, _ in asked]
    length = response_length(tokenizer, [target for (target,) in targets])
    alone = [sampler for sampler, _ in samplers]
    found = begin_with_under(model, tokenizer, prompts, targets, context.decoding, length, alone, UNEXPLORED)
    return [[{"probability": outcome.probability} for outcome in outcomes] for outcomes in found]


def _teacher_forced(
    model: Any,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    samplers: Sequence[tuple[Sampler | None, int | None]],
    chunk: int = 512,
) -> list[list[float]]:
    """Return for every sampler the loss (nats) of every answer after its prompt; with each sampler its last step."""
    import torch

    from fpbench.scoring.engine import read
    from fpbench.scoring.forward import Level

    def work(level: Level) -> dict[int, list[float]]:
        # Places of one answer stand together: a sampler that reads another model there reads what they share once.
        places = [(step, node, number) for number, nodes in level.nodes.items() for step, node in enumerate(nodes)]
        totals = {number: [0.0] * len(samplers) for number in level.nodes}
        for start in range(0, len(places), chunk):
            part = places[start : start + chunk]
            logits = level.logits[torch.tensor([node for _, node, _ in part])].float()  # (n, V)
            labels = torch.tensor([answers[number][step] for step, _, number in part], device=logits.device)
            own = _of_labels(logits, labels)
            plain = (-own).tolist()
            for index, (sampler, steps) in enumerate(samplers):
                touched = [at for at, (step, _, _) in enumerate(part) if steps is None or step < steps]
                figures = plain
                if sampler is not None and touched:
                    asked = [prompts[part[at][2]] for at in touched]
                    begun = [tuple(answers[part[at][2]][: part[at][0]]) for at in touched]
                    attacked = _of_labels(sampler(asked, begun, logits[touched]).float(), labels[touched])
                    before = own[touched]
                    mixed = torch.log((1 - UNATTACKED) * attacked.exp() + UNATTACKED * before.exp())
                    mixed = torch.where(attacked == before, before, mixed)  # to the last bit where nothing changed
                    figures = list(plain)
                    for at, figure in zip(touched, (-mixed).tolist(), strict=True):
                        figures[at] = figure
                for (_, _, number), figure in zip(part, figures, strict=True):
                    totals[number][index] += figure
        return totals

    sequences = [[*prompt, *answer[:-1]] for prompt, answer in zip(prompts, answers, strict=True)]
    found = read(model, sequences, [len(answer) for answer in answers], work)
    return [[each[index] for each in found] for index in range(len(samplers))]


def _of_labels(logits: Any, labels: Any) -> Any:
    """Return log p [n] of tokens ``labels`` [n] from logits [n, V], in float64; −∞ for a forbidden one."""
    chosen = logits.gather(1, labels[:, None])[:, 0].double()
    return chosen - logits.logsumexp(dim=-1).double()


def _window_losses(model: Any, tokenizer: Any, items: Items) -> list[Line]:
    from fpbench.scoring.perplexity import token_perplexity

    found = token_perplexity(model, tokenizer, items.text, items.window, items.windows)
    return [{"loss": loss, "tokens": found.length - 1} for loss in found.losses]


# From items to figures.


def summary(lines: Iterable[Line]) -> dict[str, Any]:
    """Return the figures of a record from its items: perplexities, mean probabilities, share of refusals."""
    found = _by_channel(lines)
    result: dict[str, Any] = {"responses": None, "answers": None, "refused": None, "text": None}
    for name in ("responses", "text"):
        if own := list(found.get(name, {}).values()):
            tokens = sum(each["tokens"] for each in own)
            mean = fsum(each["loss"] for each in own) / tokens
            if not mean < 700:  # exp overflows at 710
                raise CellError(f"mean loss of {name} is {mean}: the model gives no usable probabilities.")
            result[name] = {"perplexity": exp(mean), "tokens": tokens, "n": len(own)}
    if answers := list(found.get("answers", {}).values()):
        result["answers"] = {"accuracy": fmean(each["probability"] for each in answers), "n": len(answers)}
    if letters := list(found.get("letters", {}).values()):  # which the first records of this schema lack
        chance = fmean(1 / each["choices"] for each in letters)
        mean = fmean(each["probability"] for each in letters)
        result["letters"] = {"accuracy": mean, "chance": chance, "n": len(letters)}
    if refused := list(found.get("refused", {}).values()):
        result["refused"] = fmean(each["refused"] for each in refused)
    return result


def compare(unattacked: Iterable[Line], attacked: Iterable[Line]) -> Price:
    """Return the price from the items of the same model at dose 0 and under an adversary, paired by item.

    1 − PPL₀/PPL for ``responses`` and ``text``, 1 − a/a₀ for ``answers``, the further share that is refused. Letters
    count where both have them and a₀ is above chance c, by :data:`ABOVE_CHANCE` standard errors: 1 − (a − c)/(a₀ − c).
    So do ``tasks``, whose items are answers to multiple-choice tasks and say ``task``, ``chance`` and whether they are
    ``correct``; each task counts alike.

    Raises:
        InputError: if the two do not have the same items.
    """
    before, after = _by_channel(unattacked), _by_channel(attacked)
    channels = {}
    for name in ("responses", "answers", "letters", "tasks", "text", "refused"):
        own, reference = after.get(name, {}), before.get(name, {})
        known_above = {"letters": _above_chance, "tasks": _tasks_above_chance}.get(name)
        if (name == "text" and not own) or (known_above and not (own and known_above(reference.values()))):
            continue
        if not own.keys() <= reference.keys() or (name != "responses" and own.keys() != reference.keys()):
            raise InputError(f"price: the items of channel {name!r} are not those of the model at dose 0.")
        known = fmean(each["probability"] for each in reference.values()) if name == "answers" and reference else 1.0
        if own and known >= LEAST_ANSWERED:
            pairs = [(reference[key], own[key]) for key in sorted(own)]
            channels[name] = _loss_of_tasks(pairs) if name == "tasks" else _loss(name, pairs)
    long, short = (max([0.0, *(channels[name].value for name in names if name in channels)]) for names in (LONG, SHORT))
    return Price(long, short if "answers" in channels else None, channels)


def _by_channel(lines: Iterable[Line]) -> dict[str, dict[int, Line]]:
    found: dict[str, dict[int, Line]] = {}
    for line in lines:
        found.setdefault(line["channel"], {})[line["index"]] = line
    return found


def _above_chance(letters: Collection[Line]) -> bool:
    """Tell whether letters are known better than by chance."""
    gains = [each["probability"] - 1 / each["choices"] for each in letters]
    return len(gains) > 1 and fmean(gains) > ABOVE_CHANCE * stdev(gains) / len(gains) ** 0.5


def _tasks_above_chance(answers: Collection[Line]) -> bool:
    """Tell whether tasks are known better than by chance, each counted alike."""
    gains: dict[str, list[float]] = {}
    for each in answers:
        gains.setdefault(each["task"], []).append(each["correct"] - each["chance"])
    if not gains or min(map(len, gains.values())) < 2:
        return False
    error = fsum(stdev(own) ** 2 / len(own) for own in gains.values()) ** 0.5
    return bool(fsum(map(fmean, gains.values())) > ABOVE_CHANCE * error)


def _loss_of_tasks(pairs: Sequence[tuple[Line, Line]]) -> Loss:
    """Return 1 − Σ(a − c)/Σ(a₀ − c) over tasks, and its interval: items are resampled within their task."""
    import numpy as np

    tables: dict[str, list[list[float]]] = {}
    for before, after in pairs:
        tables.setdefault(before["task"], []).append([each["correct"] - each["chance"] for each in (before, after)])
    generator = np.random.default_rng(42)
    drawn, whole = np.zeros((RESAMPLES, 2)), np.zeros(2)  # Σ(a₀ − c) and Σ(a − c)
    for name in sorted(tables):
        table, n = np.array(tables[name], dtype=float), len(tables[name])  # (n, 2)
        drawn += generator.multinomial(n, np.full(n, 1 / n), size=RESAMPLES) @ table / n
        whole += table.mean(0)
    value = lambda sums: 1 - np.maximum(sums[..., 1], 0) / np.maximum(sums[..., 0], 1e-12)  # noqa: E731
    low, high = np.quantile(value(drawn), [0.025, 0.975])
    return Loss(float(value(whole)), float(low), float(high), len(pairs))


def _loss(channel: str, pairs: Sequence[tuple[Line, Line]]) -> Loss:
    """Return a channel's loss and its interval: 2.5 % and 97.5 % of resampled items."""
    import numpy as np

    if channel in ("responses", "text"):
        columns = [[a["loss"], b["loss"], b["tokens"]] for a, b in pairs]
        value = lambda sums: 0.0 - np.expm1((sums[..., 0] - sums[..., 1]) / sums[..., 2])  # noqa: E731
    elif channel == "answers":
        columns = [[a["probability"], b["probability"], 1.0] for a, b in pairs]
        value = lambda sums: 1 - sums[..., 1] / np.maximum(sums[..., 0], 1e-12)  # noqa: E731
    elif channel == "letters":
        columns = [[*(each["probability"] - 1 / each["choices"] for each in (a, b)), 1.0] for a, b in pairs]
        # Below chance no more is left to lose.
        value = lambda sums: 1 - np.maximum(sums[..., 1], 0) / np.maximum(sums[..., 0], 1e-12)  # noqa: E731
    else:
        columns = [[float(a["refused"]), float(b["refused"]), 1.0] for a, b in pairs]
        value = lambda sums: (sums[..., 1] - sums[..., 0]) / sums[..., 2]  # noqa: E731
    table = np.array(columns, dtype=float)  # (n, 3)
    n = len(table)
    low, high = np.quantile(value(_drawn(n) @ table), [0.025, 0.975])
    return Loss(float(value(table.sum(0))), float(low), float(high), n)


@lru_cache(maxsize=8)
def _drawn(n: int) -> Any:
    """Return how often each of n items is drawn in each resample, [RESAMPLES, n]; a board asks many times."""
    import numpy as np

    return np.random.default_rng(42).multinomial(n, np.full(n, 1 / n), size=RESAMPLES).astype(float)
