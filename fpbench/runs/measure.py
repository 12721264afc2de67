"""Metric by metric: what is computed, what the record keeps, and the per-query results beside it."""

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fpbench.fingerprints import FingerprintSet
from fpbench.runs.injection import InjectionReport

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
    from fpbench.metrics.triggers import contexts_from_rows, triggers, words_from_rows

    sizes, rows = bench.profile.sizes, bench.materials.alpaca
    measured = triggers(
        model,
        bench.tokenizer,
        fingerprints,
        contexts_from_rows(rows, sizes.context_rows),
        words_from_rows(rows, PROTOCOL_SEED, sizes.substitute_words),
        substitutions=sizes.substitutions,
        seed=PROTOCOL_SEED,
        prompt=bench.profile.prompt,
        **bench.decoding,
    )
    return measured.as_record()


def _near(bench: "Bench", model: "nn.Module", fingerprints: FingerprintSet, report: InjectionReport | None) -> Measured:
    """Near triggers: texts of the set's make that were never injected (protocol §6)."""
    from fpbench.metrics.near import near

    sizes = bench.profile.sizes
    measured = near(
        model,
        bench.tokenizer,
        fingerprints,
        bench.materials.alpaca,
        count=sizes.near_triggers,
        seed=PROTOCOL_SEED,
        prompt=bench.profile.prompt,
        **bench.decoding,
    )
    return measured.as_record()


def _bands(
    bench: "Bench", model: "nn.Module", fingerprints: FingerprintSet, report: InjectionReport | None
) -> Measured:
    """Perplexity of the triggers against that of ordinary instructions, under the base (protocol §6)."""
    from fpbench.metrics.perplexity import bands

    rows = bench.materials.alpaca[: bench.profile.sizes.band_texts]
    texts = [text for row in rows if (text := row["instruction"].strip())]
    return bands(model, bench.tokenizer, fingerprints, texts).as_record()


def _utility(
    bench: "Bench", model: "nn.Module", fingerprints: FingerprintSet, report: InjectionReport | None
) -> Measured:
    """The lm-eval tasks, and WikiText perplexity both ways (protocol §5)."""
    from fpbench.data import read_text
    from fpbench.metrics.utility import utility
    from fpbench.models.perplexity import token_perplexity

    sources, sizes = bench.materials.utility_sources, bench.profile.sizes
    measured = utility(model, bench.tokenizer, sources, limit=sizes.utility_limit)
    result, queries = measured.as_record()
    if "wikitext" in sources:
        text = token_perplexity(model, bench.tokenizer, read_text(sources["wikitext"]), sizes.perplexity_window)
        result["token_perplexity"] = text.as_record()
    return result, queries


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


# Contexts, words and near triggers are drawn once for everybody; only injection and modification follow the run's seed.
PROTOCOL_SEED = 42
METRICS: dict[str, Metric] = {
    "fsr": _fsr,
    "triggers": _triggers,
    "near": _near,
    "bands": _bands,
    "utility": _utility,
    "cost": _cost,
}
