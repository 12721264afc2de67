"""Metric by metric: what is computed, what the record keeps, and the per-query results beside it."""

import hashlib
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from fpbench.fingerprints import FingerprintSet
from fpbench.runs.injection import InjectionReport
from fpbench.runs.sets import near_words

if TYPE_CHECKING:
    from torch import nn

    from fpbench.runs.bench import Bench

Measured = tuple[dict[str, Any], list[dict[str, Any]]]
Metric = Callable[["Bench", "nn.Module", FingerprintSet, InjectionReport | None], Measured]


def prompt_digest(text: str) -> str:
    """Short SHA-256 of a query: records do not spell triggers out."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _fsr(bench: "Bench", model: "nn.Module", fingerprints: FingerprintSet, report: InjectionReport | None) -> Measured:
    """Exact and greedy FSR (protocol §3)."""
    from fpbench.metrics.fsr import fsr

    measured = fsr(model, bench.tokenizer, fingerprints, prompt=bench.profile.prompt, **bench.decoding)
    queries = [
        {
            "prompt": prompt_digest(fingerprint.trigger),
            "probability": probability,
            "per_target": list(shares.values()),
            "greedy": text.startswith(fingerprint.targets),
            "text": text,
        }
        for fingerprint, probability, shares, text in zip(
            fingerprints, measured.per_fingerprint, measured.per_target, measured.responses, strict=True
        )
    ]
    result = {
        "mean": measured.mean,
        "interval": list(measured.interval),
        "greedy": measured.greedy,
        "n": measured.n,
        "primary": measured.primary,
        "error_bound": measured.error_bound,
    }
    return result, queries


def _triggers(
    bench: "Bench", model: "nn.Module", fingerprints: FingerprintSet, report: InjectionReport | None
) -> Measured:
    """The eight accidental-trigger conditions (protocol §6)."""
    from fpbench.metrics.queries import contexts_from_rows, words_from_rows
    from fpbench.metrics.triggers import triggers

    sizes, rows = bench.profile.sizes, bench.materials.alpaca
    measured = triggers(
        model,
        bench.tokenizer,
        fingerprints,
        contexts_from_rows(rows, sizes.context_rows),
        words_from_rows(rows, bench.profile.draw, sizes.substitute_words),
        substitutions=sizes.substitutions,
        seed=bench.profile.draw,
        prompt=bench.profile.prompt,
        **bench.decoding,
    )
    result = {
        "conditions": {name: asdict(condition) for name, condition in measured.conditions.items()},
        "average": measured.average,
        "activated": measured.activated,
        "n": measured.n,
        "interval": list(measured.interval),
        "error_bound": measured.error_bound,
        "cut": measured.cut,
    }
    return result, [asdict(query) for query in measured.queries]


def _near(bench: "Bench", model: "nn.Module", fingerprints: FingerprintSet, report: InjectionReport | None) -> Measured:
    """Near triggers: texts of the set's make that were never injected (protocol §6)."""
    from fpbench.metrics.queries import words_from_rows
    from fpbench.metrics.triggers import near, near_triggers

    # Drawn once for everybody: only injection and modification follow the run's seed.
    sizes, draw = bench.profile.sizes, bench.profile.draw
    words = near_words(fingerprints) or words_from_rows(bench.materials.alpaca, draw, sizes.substitute_words)
    texts = near_triggers(fingerprints, words, sizes.near_triggers, draw)
    measured = near(model, bench.tokenizer, fingerprints, texts, prompt=bench.profile.prompt, **bench.decoding)
    result = {
        "rate": measured.rate,
        "greedy": measured.greedy,
        "n": measured.n,
        "interval": list(measured.interval),
        "error_bound": measured.error_bound,
    }
    queries = [
        {"prompt": prompt_digest(text), "probability": probability}
        for text, probability in zip(texts, measured.per_text, strict=True)
    ]
    return result, queries


def _bands(
    bench: "Bench", model: "nn.Module", fingerprints: FingerprintSet, report: InjectionReport | None
) -> Measured:
    """Perplexity of the triggers against that of ordinary instructions, under the base (protocol §6)."""
    from fpbench.metrics.bands import bands

    rows = bench.materials.alpaca[: bench.profile.sizes.band_texts]
    measured = asdict(bands(model, bench.tokenizer, fingerprints, [row["instruction"] for row in rows]))
    queries = [
        {"prompt": prompt_digest(fingerprint.trigger), "perplexity": perplexity, "band": band}
        for fingerprint, perplexity, band in zip(
            fingerprints, measured.pop("perplexities"), measured.pop("bands"), strict=True
        )
    ]
    return measured, queries


def _utility(
    bench: "Bench", model: "nn.Module", fingerprints: FingerprintSet, report: InjectionReport | None
) -> Measured:
    """The lm-eval tasks, and WikiText perplexity both ways (protocol §5)."""
    from fpbench.data import read_text
    from fpbench.metrics.utility import utility
    from fpbench.scoring.perplexity import token_perplexity

    sources, sizes = bench.materials.utility_sources, bench.profile.sizes
    measured = utility(model, bench.tokenizer, sources, limit=sizes.utility_limit)
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
        tasks["tinymmlu"]["anchors"] = _anchors(bench, measured.tasks["tinymmlu"].correct)
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
    if "wikitext" in sources:
        text = read_text(sources["wikitext"])
        figures = asdict(token_perplexity(model, bench.tokenizer, text, sizes.perplexity_window))
        losses = figures.pop("losses")
        queries += [{"task": "windows", "index": index, "loss": loss} for index, loss in enumerate(losses)]
        result["token_perplexity"] = figures
    if measured.wikitext is not None:
        queries += [
            {"task": "wikitext", "index": index, "log_likelihood": score, "words": words}
            for index, (score, words) in enumerate(
                zip(measured.wikitext.log_likelihoods, measured.wikitext.words, strict=True)
            )
        ]
    return result, queries


def _anchors(bench: "Bench", correct: tuple[bool, ...]) -> dict[str, Any]:
    """What tinyMMLU's anchors say beyond plain accuracy, and the digest of the item parameters it was said with."""
    from fpbench.data import read_rows
    from fpbench.metrics.tinymmlu import anchor_scores

    source = bench.materials.source("tinymmlu")
    parameters, digest = bench.materials.item_parameters or (None, None)
    return anchor_scores(correct, read_rows(source), source, parameters) | {"item_parameters": digest}


def _cost(bench: "Bench", model: "nn.Module", fingerprints: FingerprintSet, report: InjectionReport | None) -> Measured:
    """What the injection took and moved (protocol §7)."""
    assert report is not None, "only injected checkpoints have a cost"
    result = {
        "seconds": dict(report.seconds),
        "peak_memory": report.peak_memory,
        **report.changed,
        "weights_digest": report.delta.digest,
    }
    return result, []


METRICS: dict[str, Metric] = {
    "fsr": _fsr,
    "triggers": _triggers,
    "near": _near,
    "bands": _bands,
    "utility": _utility,
    "cost": _cost,
}
