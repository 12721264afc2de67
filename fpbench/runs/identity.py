"""Everything that decides a result, and so names its record: read from files and architecture, never from weights."""

from collections.abc import Mapping
from dataclasses import asdict
from types import MappingProxyType
from typing import Any

from fpbench.adversaries.conditions import adversaries, needs_siblings
from fpbench.fingerprints import FingerprintSet
from fpbench.fingerprints.translation import SHIPPED
from fpbench.hub.lock import sha256
from fpbench.metrics.measure import METRICS
from fpbench.records.cell import CHECKPOINT, ORIGIN, Cell
from fpbench.records.record import cell_id
from fpbench.runs.profile import DRAW, SEARCH
from fpbench.runs.search import rate_identity
from fpbench.runs.subject import Subject

# Which data decide a result: a record is valid only for the very same ones.
DATA_OF_METHODS = ("statistics", "zsre")
NO_SETS: Mapping[int, FingerprintSet] = MappingProxyType({})


def cell_identity(
    subject: Subject,
    cell: Cell,
    fingerprints: FingerprintSet,
    sets: Mapping[int, FingerprintSet] = MappingProxyType({}),
) -> dict[str, Any]:
    """Return everything that decides a result, and nothing else: no batch size, engine, path or time.

    ``sets`` are the same set at every seed, with which a thief's siblings are fingerprinted.
    """
    profile, datasets, metric = subject.profile, subject.datasets, METRICS[cell.metric]
    identity = injection_identity(subject, cell.method, fingerprints, cell.seed) | {
        "fingerprints": fingerprints.digest,
        "condition": cell.condition,
        "metric": cell.metric,
        "prompt": profile.prompt,
        "decoding": asdict(subject.settings.decoding),
    }
    if cell.method == CHECKPOINT and subject.base:  # whose tokenizer scores it
        identity["tokenizer"] = subject.base_digest
    if cell.condition != ORIGIN:
        modification, thieves = subject.modification(cell.condition), adversaries(cell.condition)
        if modification.parts:
            identity["modification"] = modification.identity | {"data": datasets.digests(*modification.data)}
        if "method" in modification.needs:  # its thief's set is drawn from it
            identity["lexicon"] = sha256(SHIPPED)
        if thieves:
            benign = ["alpaca"] if any("instructions" in each.needs for each in thieves) else []
            identity["adversaries"] = [{"name": each.name} | each.identity for each in thieves]
            identity["adversary_data"] = datasets.digests(*benign)
        if needs_siblings(cell.condition):
            named = profile.siblings(cell.method, cell.seed)
            identity["siblings"] = [
                injection_identity(subject, method, sets[seed], seed) for method, seed in named if seed in sets
            ]
        reads_base = modification.needs_base or any("base" in each.needs for each in thieves)
        if cell.method == CHECKPOINT and reads_base:
            identity["base"] = subject.base_digest if subject.base else None
    if metric.sized:
        identity["sizes"] = profile.sizes.model_dump(mode="json")
        names = [*metric.data, *(name for name in metric.some_of if name in profile.data)]
        identity["metric_data"] = datasets.digests(*names) | metric.further(fingerprints)
    if metric.drawn and profile.draw != DRAW:  # the protocol's need not be named
        identity["draw"] = profile.draw
    return identity


def injection_identity(subject: Subject, method: str, fingerprints: FingerprintSet, seed: int) -> dict[str, Any]:
    """Return everything that decides the weights of a checkpoint."""
    profile = subject.profile
    identity = subject.identity | {"model": subject.digest, "method": profile.method_of(method)[0], "seed": seed}
    if method in profile.methods:
        adapter = subject.method(method)
        identity |= {
            "version": adapter.version,
            "hyperparameters": adapter.config.model_dump(mode="json"),
            "fingerprints": fingerprints.digest,
            "prompt": profile.prompt,
            "statistics_tokens": profile.sizes.statistics_tokens,
            "data": subject.datasets.digests(*(name for name in DATA_OF_METHODS if name in profile.data)),
        }
        if profile.searches_rate(method):
            # The settings as given: an identity needs no training.
            identity["hyperparameters"]["learning_rate"] = SEARCH
            identity["search"] = rate_identity(subject, method, fingerprints)
    return identity


def delta_name(subject: Subject, method: str, fingerprints: FingerprintSet, seed: int) -> str:
    """Return the name of a stored injection in the run's folder, without the ending."""
    name = cell_id(injection_identity(subject, method, fingerprints, seed))
    return f"{subject.settings.label}-{fingerprints.name}-{method}-{seed}-{name}"
