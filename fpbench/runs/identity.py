"""What decides a result, and so names its record. Needs files and architecture of a model, never its weights."""

from typing import TYPE_CHECKING, Any

from fpbench.fingerprints import FingerprintSet
from fpbench.models.checkpoints import tokenizer_source
from fpbench.records.cell import CHECKPOINT, ORIGIN, Cell
from fpbench.runs.profile import DRAW
from fpbench.runs.search import SEARCH, injection_searches, rate_identity
from fpbench.runs.sets import data_of_near

if TYPE_CHECKING:
    from fpbench.runs.bench import Bench

# Which data decide a result: a record is valid only for the very same ones.
DATA_OF_METHODS = ("statistics", "zsre")
DRAWN = ("triggers", "near")  # from a seed of their own; the protocol's need not be named
DATA_OF_METRICS = {"triggers": ("alpaca",), "near": ("alpaca",), "bands": ("alpaca",)}


def injection_identity(bench: "Bench", method: str, fingerprints: FingerprintSet, seed: int) -> dict[str, Any]:
    """Everything that decides the weights of a checkpoint."""
    name, _ = bench.profile.method_of(method)
    identity = bench.base_identity() | {"model": bench.digest, "method": name, "seed": seed}
    if method in bench.profile.methods:
        adapter = bench.stand_in(method)
        identity |= {
            "version": adapter.version,
            "hyperparameters": adapter.config.model_dump(mode="json"),
            "fingerprints": fingerprints.digest,
            "prompt": bench.profile.prompt,
            "statistics_tokens": bench.profile.sizes.statistics_tokens,
            "data": bench.materials.digests(*(name for name in DATA_OF_METHODS if name in bench.profile.data)),
        }
        if injection_searches(bench, method):
            # The settings as given: an identity needs no training.
            identity["hyperparameters"]["learning_rate"] = SEARCH
            identity["search"] = rate_identity(bench, method, fingerprints)
    return identity


def cell_identity(bench: "Bench", cell: Cell, fingerprints: FingerprintSet) -> dict[str, Any]:
    """Everything that decides a result, and nothing else: no batch size, engine, path or time."""
    identity = injection_identity(bench, cell.method, fingerprints, cell.seed) | {
        "fingerprints": fingerprints.digest,
        "condition": cell.condition,
        "metric": cell.metric,
        "prompt": bench.profile.prompt,
        "decoding": bench.decoding,
    }
    if cell.method == CHECKPOINT and bench.base and tokenizer_source(bench.folder) is None:
        identity["tokenizer"] = bench.base_digest
    if cell.condition != ORIGIN:
        modification = bench.modification(cell.condition)
        identity["modification"] = modification.identity | {"data": bench.materials.digests(*modification.data)}
        if cell.method == CHECKPOINT and modification.needs_base:
            identity["base"] = bench.base_digest if bench.base else None
    if cell.metric not in ("fsr", "cost"):
        names = DATA_OF_METRICS.get(cell.metric, ()) or tuple(bench.materials.utility_sources)
        identity["sizes"] = bench.profile.sizes.model_dump(mode="json")
        if cell.metric in DRAWN and bench.profile.draw != DRAW:
            identity["draw"] = bench.profile.draw
        identity["metric_data"] = bench.materials.digests(*names) | data_of_near(cell.metric, fingerprints)
    return identity
