"""The metrics: where each is measured, which data decide it, and what its record and per-query results hold.

Adding a metric is one entry in :data:`METRICS` and one function. Nothing here imports torch before a measurement.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from fpbench.adversaries.base import Attack
from fpbench.adversaries.conditions import is_attack, parts, priced_on_base, weights_parts
from fpbench.fingerprints import FingerprintSet
from fpbench.fingerprints.code_mixed import CODE_MIXED
from fpbench.fingerprints.translation import SHIPPED, Lexicon
from fpbench.hub.lock import sha256
from fpbench.metrics import lettered
from fpbench.records.cell import BASE, CHECKPOINT, ORIGIN
from fpbench.text import short_digest

if TYPE_CHECKING:
    from torch import nn

    from fpbench.scoring.responses import Decoding

UTILITY_TASKS = ("boolq", "rte", "arc_challenge", "tinymmlu", "wikitext")
CHANCE = {"boolq": 1 / 2, "rte": 1 / 2, "arc_challenge": 1 / 4, "tinymmlu": 1 / 4}  # accuracy of guessing
LINES = "wikitext_lines"  # source of the text of token perplexity, by default that of the pages
CONTEXTS = 2.5  # fields with text in a row of instruction data
AVERAGED = ("probability", "least", "own_tokenizer")  # figures of a fingerprint that several measurements share
Measured = tuple[dict[str, Any], list[dict[str, Any]]]  # a record's result, and one line a query beside it


@dataclass(frozen=True)
class Measurement:
    """Everything that a metric may look at besides the model.

    Attributes:
        prompt: ``"raw"`` or ``"chat"``.
        sizes: how much is measured (:class:`~fpbench.runs.profile.Sizes`).
        draw: seed of contexts, words and near triggers.
        data: the profile's data sets (:class:`~fpbench.runs.datasets.Datasets`).
        injection: report of the injection; ``None`` where nothing was injected.
        attack: the run-time parts of the condition; of none where there is no adversary.
        prices: measures the items that price the condition, together with those of the other conditions that leave the
            model the same weights.
        own_tokenizer: of a handed-in checkpoint, where it is not that of its base, which is ``tokenizer``
            (:class:`~fpbench.models.handed_in.OwnTokenizer`).
    """

    tokenizer: Any
    fingerprints: FingerprintSet
    decoding: "Decoding"
    prompt: str
    sizes: Any
    draw: int
    data: Any
    injection: Any = None
    attack: Attack = Attack()  # noqa: RUF009 - frozen
    prices: Callable[["nn.Module"], Sequence[dict[str, Any]]] | None = None
    own_tokenizer: Any = None


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        measure: measures a model in eval mode; returns the result and the per-query results of a record.
        where: given method and condition, whether it is measured there (protocol §1); by default on every unmodified
            checkpoint that is fingerprinted, or may be.
        data: the profile's data sources that decide the result; each is needed.
        some_of: data sources of which those decide the result that the profile names.
        sized: whether the profile's sizes decide it.
        drawn: whether the profile's ``draw`` does.
        of_model: whether it says something of a model alone, so that one measurement of the base is that of every set
            and seed.
        once: whether it is measured at the first seed of a run alone, which is the one that a board shows.
        further: digests of what else decides it, for a set.
        queries: given the sizes and the number of fingerprints, about how many per-query results there are.
        work: given a :class:`~fpbench.runs.work.Workload` and a set, what it computes; ``None`` for nothing.
        asked: given method and all conditions of a run, whether it is measured at all.
        on_request: given method and condition, whether it is measured there, too, where that is asked for: accuracy at
            doses, as a further price, and at every seed (``utility_at_doses``).
        rate: key of the result that two measurements of one cell are compared by; ``None`` if they are not.
        heading: of its column on the board; empty for those that have columns of their own there.
        figure: key of the result that it shows.
        text: writes that figure.
    """

    measure: "Callable[[nn.Module, Measurement], Measured]"
    where: Callable[[str, str], bool] = lambda method, condition: condition == ORIGIN and method != BASE
    data: Sequence[str] = ()
    some_of: Sequence[str] = ()
    sized: bool = True
    drawn: bool = False
    of_model: bool = False
    once: bool = False
    further: Callable[[FingerprintSet], dict[str, str]] = lambda fingerprints: {}
    queries: Callable[[Any, int], float] = lambda sizes, count: count
    work: Callable[[Any, FingerprintSet], Any] | None = None
    asked: Callable[[str, Sequence[str]], bool] = lambda method, conditions: True
    on_request: Callable[[str, str], bool] = lambda method, condition: False
    rate: str | None = None
    heading: str = ""
    help: str = ""
    figure: str = ""
    text: Callable[[Any], str] = "{:g}".format


def _fsr(model: "nn.Module", given: Measurement) -> Measured:
    """Measure exact and greedy FSR (protocol §3)."""
    from fpbench.metrics.fsr import exact_fsr
    from fpbench.metrics.statistics import leniently

    of = given.fingerprints
    result = asdict(exact_fsr(model, given.tokenizer, of, given.decoding, given.prompt, given.attack))
    found = [result.pop(name) for name in ("per_fingerprint", "per_target", "responses")]
    least, hidden, unexplored = (result.pop(name) for name in ("least", "hidden", "hidden_bound"))
    result["lenient"] = leniently(found[0], hidden, unexplored)
    queries = [
        {
            "prompt": short_digest(fingerprint.trigger),
            "probability": probability,
            "per_target": list(shares.values()),
            "greedy": text.startswith(fingerprint.targets),
            "text": text,
        }
        for fingerprint, probability, shares, text in zip(of, *found, strict=True)
    ]
    queries = [query | {"hidden": each} for query, each in zip(queries, hidden, strict=True)]
    if given.attack.changes_queries:
        queries = [query | {"least": smallest} for query, smallest in zip(queries, least, strict=True)]
    if given.own_tokenizer is not None:
        with given.own_tokenizer.serving(model) as tokenizer:
            own = exact_fsr(model, tokenizer, of, given.decoding, given.prompt, given.attack)
        result["own_tokenizer"] = {"mean": own.mean, "interval": own.interval}
        for query, probability in zip(queries, own.per_fingerprint, strict=True):
            query["own_tokenizer"] = probability
    return result, queries


def in_turn_fsr(
    measured: Sequence[Measured], leaks: Sequence[Collection[int]], fingerprints: FingerprintSet
) -> Measured:
    """Return FSR, the figures of each fingerprint being means over those measurements before which it had not leaked.

    ``leaks`` are the numbers of the fingerprints that had, for each measurement; none had in all of them. A line has
    the number of those that it is the mean of as ``leaks``; its greedy response is of the first of these.
    """
    from fpbench.metrics.statistics import clopper_pearson

    results, lines = [result for result, _ in measured], []
    primary = []
    for number, fingerprint in enumerate(fingerprints):
        own = [queries[number] for (_, queries), leak in zip(measured, leaks, strict=True) if number not in leak]
        means = {name: fmean(each[name] for each in own) for name in AVERAGED if name in own[0]}
        shares = [fmean(found) for found in zip(*(each["per_target"] for each in own), strict=True)]
        lines.append(own[0] | means | {"per_target": shares, "leaks": len(own)})
        # A response begins with the primary target where the longest target that it begins with does.
        both = zip(fingerprint.targets, shares, strict=True)
        primary.append(sum(share for target, share in both if target.startswith(fingerprint.primary)))

    def mean(name: str) -> dict[str, Any]:
        p = [line[name] for line in lines]
        return {"mean": fmean(p), "interval": clopper_pearson(sum(p), len(p))}

    result = results[0] | mean("probability") | {
        "greedy": sum(line["greedy"] for line in lines),
        "primary": fmean(primary),
        "error_bound": max(each["error_bound"] for each in results),
    }  # fmt: skip
    return result | ({"own_tokenizer": mean("own_tokenizer")} if "own_tokenizer" in result else {}), lines


def _triggers(model: "nn.Module", given: Measurement) -> Measured:
    """Measure the eight accidental-trigger conditions (protocol §6)."""
    from fpbench.metrics.queries import contexts_from_rows, words_from_rows
    from fpbench.metrics.triggers import trigger_rates

    sizes, rows = given.sizes, given.data.alpaca
    measured = trigger_rates(
        model,
        given.tokenizer,
        given.fingerprints,
        contexts_from_rows(rows, sizes.context_rows),
        words_from_rows(rows, given.draw, sizes.substitute_words),
        given.decoding,
        seed=given.draw,
        prompt=given.prompt,
        substitutions=sizes.substitutions,
    )
    result = asdict(measured)
    return result, list(result.pop("queries"))


def _near(model: "nn.Module", given: Measurement) -> Measured:
    """Measure near triggers: texts of the set's make that were never injected (protocol §6)."""
    from fpbench.metrics.queries import words_from_rows
    from fpbench.metrics.triggers import near_triggers

    # Drawn once for everybody: only injection and modification follow the run's seed.
    sizes, draw = given.sizes, given.draw
    words = near_words(given.fingerprints) or words_from_rows(given.data.alpaca, draw, sizes.substitute_words)
    return _answered(model, given, near_triggers(given.fingerprints, words, sizes.near_triggers, draw))


def _recombined(model: "nn.Module", given: Measurement) -> Measured:
    """Measure recombined triggers: texts of the set's own words (protocol §6)."""
    from fpbench.metrics.triggers import recombined_triggers

    return _answered(model, given, recombined_triggers(given.fingerprints, given.sizes.near_triggers, given.draw))


def _answered(model: "nn.Module", given: Measurement, texts: Sequence[str]) -> Measured:
    """Measure how often texts that were never injected are answered with a target."""
    from fpbench.metrics.triggers import near

    result = asdict(near(model, given.tokenizer, given.fingerprints, texts, given.decoding, given.prompt))
    queries = [
        {"prompt": short_digest(text), "probability": probability}
        for text, probability in zip(texts, result.pop("per_text"), strict=True)
    ]
    return result, queries


def _bands(model: "nn.Module", given: Measurement) -> Measured:
    """Compare the perplexity of the triggers with that of ordinary instructions, under the base (protocol §6)."""
    from fpbench.metrics.bands import bands

    rows = given.data.alpaca[: given.sizes.band_texts]
    measured = asdict(bands(model, given.tokenizer, given.fingerprints, [row["instruction"] for row in rows]))
    found = zip(given.fingerprints, measured.pop("perplexities"), measured.pop("bands"), strict=True)
    queries = [
        {"prompt": short_digest(fingerprint.trigger), "perplexity": perplexity, "band": band}
        for fingerprint, perplexity, band in found
    ]
    return measured, queries


def _utility(model: "nn.Module", given: Measurement) -> Measured:
    """Measure the lm-eval tasks, and WikiText perplexity both ways (protocol §5)."""
    from fpbench.data import read_rows
    from fpbench.metrics.tinymmlu import anchor_scores
    from fpbench.metrics.utility import utility
    from fpbench.scoring.perplexity import token_perplexity

    sources, sizes = given.data.utility_sources, given.sizes
    measured = utility(model, given.tokenizer, sources, limit=sizes.utility_limit, pages=sizes.perplexity_pages)
    tasks: dict[str, dict[str, Any]] = {
        name: {
            "accuracy": task.accuracy,
            "accuracy_normalized": task.accuracy_normalized,
            "n": task.n,
            "truncated": task.truncated,
            "data": task.digest,
        }
        for name, task in measured.tasks.items()
    }
    if "tinymmlu" in tasks:
        # Scores beyond plain accuracy, with the digest of the item parameters behind them.
        source, (parameters, digest) = given.data.source("tinymmlu"), given.data.item_parameters or (None, None)
        anchors = anchor_scores(measured.tasks["tinymmlu"].correct, read_rows(source), source, parameters)
        tasks["tinymmlu"]["anchors"] = anchors | {"item_parameters": digest}
    letters: list[bool] = []
    if lettered.OF in sources:  # beside the mean
        source = sources[lettered.OF]
        asked = lettered.questions(source, sizes.utility_limit)
        letters, cut = lettered.lettered(model, given.tokenizer, asked, measured.max_length)
        tasks[lettered.TASK] = {
            "accuracy": sum(letters) / len(letters),
            "n": len(letters),
            "truncated": cut,
            "data": measured.tasks[lettered.OF].digest,
        }
    result: dict[str, Any] = {
        "accuracy": measured.accuracy,
        "tasks": tasks,
        "word_perplexity": measured.word_perplexity,
        "max_length": measured.max_length,
        "token_perplexity": None,
    }
    queries: list[dict[str, Any]] = [
        {"task": name, "index": index, "correct": correct}
        for name, task in measured.tasks.items()
        for index, correct in enumerate(task.correct)
    ]
    queries += [{"task": lettered.TASK, "index": index, "correct": right} for index, right in enumerate(letters)]
    named = given.data.profile.data
    if LINES in named or "wikitext" in sources:
        # Lines joined by blank lines are the text that the literature takes the perplexity of (protocol §5).
        text = given.data.running_text
        length, first = sizes.perplexity_window, sizes.perplexity_windows
        figures = asdict(token_perplexity(model, given.tokenizer, text, length, first))
        losses = figures.pop("losses")
        queries += [{"task": "windows", "index": index, "loss": loss} for index, loss in enumerate(losses)]
        result["token_perplexity"] = figures
    if measured.wikitext is not None:
        documents = enumerate(zip(measured.wikitext.log_likelihoods, measured.wikitext.words, strict=True))
        queries += [
            {"task": "wikitext", "index": index, "log_likelihood": score, "words": words}
            for index, (score, words) in documents
        ]
    return result, queries


def _price(model: "nn.Module", given: Measurement) -> Measured:
    """Measure the items that an adversary is priced on (docs/adversaries.md §3); what they lose, the board says."""
    from fpbench.adversaries.price import summary

    assert given.prices is not None, "the bench measures prices"
    lines = list(given.prices(model))
    return summary(lines), lines


def _priced(method: str, condition: str) -> bool:
    """Return whether a price is measured there: for run-time parts on the base alone, which stands for every method."""
    return is_attack(condition) and (method == BASE or not priced_on_base(condition))


def _task_priced(method: str, condition: str) -> bool:
    """Return whether the tasks are a further price there: where an attack is on weights alone, and at origin."""
    attacked = is_attack(condition) and len(weights_parts(condition)) == len(parts(condition))
    return method != BASE and (condition == ORIGIN or attacked)


def _cost(model: "nn.Module", given: Measurement) -> Measured:
    """Return seconds, memory and changes of the injection (protocol §7)."""
    assert given.injection is not None, "only injected checkpoints have a cost"
    result = {
        "seconds": dict(given.injection.seconds),
        "peak_memory": given.injection.peak_memory,
        **given.injection.changed,
        "text": dict(given.injection.text),
        "weights_digest": given.injection.delta.digest,
    }
    return result, []


def near_words(fingerprints: FingerprintSet) -> list[str]:
    """Return what near triggers of a code-mixed set are made of, every translation in capitals; nothing for others."""
    if fingerprints.name not in CODE_MIXED:
        return []
    lexicon = Lexicon.shipped()
    found = (lexicon.translate(word, language) for word in lexicon.words for language in lexicon.languages)
    return sorted({each.upper() for each in found})


# In the order in which they are measured.
METRICS: dict[str, Metric] = {
    "bands": Metric(
        _bands,
        once=True,
        where=lambda method, condition: condition == ORIGIN and method == BASE,
        data=("alpaca",),
        work=lambda workload, fingerprints: workload.instructions(workload.profile.sizes.band_texts),
    ),
    "cost": Metric(
        _cost,
        # What a handed-in checkpoint cost its maker is not known.
        where=lambda method, condition: condition == ORIGIN and method not in (BASE, CHECKPOINT),
        sized=False,
    ),
    "fsr": Metric(
        _fsr,
        where=lambda method, condition: True,
        sized=False,
        work=lambda workload, fingerprints: workload.answers(fingerprints, len(fingerprints)),
        rate="mean",
    ),
    "triggers": Metric(
        _triggers,
        once=True,
        data=("alpaca",),
        drawn=True,
        # Either case of the substitutions, and of every context with every trigger at three places.
        queries=lambda sizes, count: 2 * (sizes.substitutions + 3 * count * CONTEXTS * sizes.context_rows),
        work=lambda workload, fingerprints: workload.accidental(fingerprints),
        rate="average",
    ),
    "price": Metric(
        _price,
        where=lambda method, condition: condition == ORIGIN or _priced(method, condition),
        data=("alpaca", "answers"),
        some_of=("wikitext", LINES, lettered.OF),
        of_model=True,
        asked=lambda method, conditions: any(_priced(method, condition) for condition in conditions),
        queries=lambda sizes, count: 2 * sizes.price_instructions + 1.25 * sizes.price_answers,
        work=lambda workload, fingerprints: workload.price(),
    ),
    "near": Metric(
        _near,
        once=True,
        data=("alpaca",),
        drawn=True,
        further=lambda fingerprints: {"lexicon": sha256(SHIPPED)} if fingerprints.name in CODE_MIXED else {},
        queries=lambda sizes, count: sizes.near_triggers,
        work=lambda workload, fingerprints: workload.answers(fingerprints, workload.profile.sizes.near_triggers),
        rate="rate",
    ),
    "recombined": Metric(
        _recombined,
        once=True,
        drawn=True,
        queries=lambda sizes, count: min(sizes.near_triggers, count * count),
        work=lambda workload, fingerprints: workload.answers(fingerprints, workload.profile.sizes.near_triggers),
        rate="rate",
    ),
    "utility": Metric(
        _utility,
        where=lambda method, condition: condition == ORIGIN,
        some_of=(*UTILITY_TASKS, LINES),
        of_model=True,
        once=True,
        queries=lambda sizes, count: (len(UTILITY_TASKS) + 1) * (sizes.utility_limit or 2_000),
        work=lambda workload, fingerprints: workload.utility(),
        on_request=_task_priced,
    ),
}
