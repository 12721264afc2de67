"""What earlier records say a piece of work takes on this machine: better than any estimate."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Any

from fpbench.runs.profile import ORIGIN
from fpbench.runs.provenance import machine
from fpbench.runs.store import canonical

# Of an identity, what decides how long each kind of work takes, whatever was injected.
DECISIVE = {
    "measured": ("model", "dtype", "condition", "metric", "sizes", "prompt", "metric_data"),
    "modified": ("model", "dtype", "modification"),
    "injected": ("model", "dtype", "method", "hyperparameters", "statistics_tokens"),
}


class Past:
    """Seconds of finished records that this machine measured."""

    def __init__(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Look at records; those of other machines, or with another number of threads, count for nothing."""
        self._seconds: dict[str, list[float]] = defaultdict(list)
        here = machine()
        for record in records:
            if record.get("status") != "done" or record["provenance"]["machine"] != here:
                continue
            identity, cost = record["identity"], record["cost"]
            self._note("measured", identity, cost["seconds"])
            if "modification_seconds" in cost and identity["condition"] != ORIGIN:
                self._note("modified", identity, cost["modification_seconds"])
            if identity["metric"] == "cost":
                result = record["result"]
                # Statistics are taken once a model, so they are no part of what another injection takes.
                seconds = result["seconds"]["total"] - result["seconds"].get("statistics", 0.0)
                self._note("injected", identity, seconds)

    def seconds(self, kind: str, identity: Mapping[str, Any]) -> float | None:
        """Mean seconds of what is alike; ``None`` if nothing was measured.

        Args:
            kind: ``"measured"``, ``"modified"`` or ``"injected"``.
            identity: of the record to come.
        """
        known = self._seconds.get(_key(kind, identity))
        return fmean(known) if known else None

    def _note(self, kind: str, identity: Mapping[str, Any], seconds: float) -> None:
        self._seconds[_key(kind, identity)].append(seconds)


def _key(kind: str, identity: Mapping[str, Any]) -> str:
    return canonical([kind, {name: identity.get(name) for name in DECISIVE[kind]}])
