"""Records as the board reads them: grouped by row, with their per-query results, damaged ones shown as failed."""

import json
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fpbench.errors import InputError
from fpbench.runs.plan import Cell
from fpbench.runs.profile import PROTOCOL
from fpbench.runs.store import queries_fit

RowKey = tuple[str, str, str]  # model, fingerprint set, method


@dataclass(frozen=True)
class Measurement:
    """One record with its per-query results.

    Attributes:
        cell: what was measured.
        record: the record file's content.
        queries: lines of the ``.jsonl`` beside it; empty where there are none.
        reason: why there is no result; ``None`` for a finished cell.
    """

    cell: Cell
    record: dict[str, Any]
    queries: list[dict[str, Any]]
    reason: str | None

    @property
    def result(self) -> dict[str, Any]:
        """The figures of a finished cell."""
        found: dict[str, Any] = self.record["result"]
        return found


@dataclass
class Group:
    """All measurements of one row: condition and metric → one measurement a seed, in seed order."""

    key: RowKey
    cells: dict[tuple[str, str], list[Measurement]] = field(default_factory=lambda: defaultdict(list))

    def get(self, metric: str, condition: str = "origin") -> list[Measurement]:
        """The measurements of one metric under one condition; none if the cell was never planned."""
        return self.cells.get((condition, metric), [])

    def finished(self, metric: str, condition: str = "origin") -> list[Measurement]:
        """The same, or nothing if the cell failed under any seed."""
        found = self.get(metric, condition)
        return [] if any(each.reason for each in found) else found

    def failures(self) -> list[Measurement]:
        """Every measurement that has no result."""
        return [each for found in self.cells.values() for each in found if each.reason]


def group_records(records: list[dict[str, Any]], folder: Path) -> dict[RowKey, Group]:
    """Sort records into rows.

    Args:
        records: contents of record files.
        folder: where they and their per-query results lie.

    Raises:
        InputError: for a record of another protocol version; a leaderboard never mixes them.
    """
    groups: dict[RowKey, Group] = {}
    for record in sorted(records, key=lambda record: str(sorted(record["cell"].items()))):
        cell = Cell(**record["cell"])
        if record["protocol"] != PROTOCOL:
            raise InputError(
                f"record {cell} is of protocol {record['protocol']}, this leaderboard of {PROTOCOL}: keep them apart."
            )
        queries, reason = _queries(record, folder / f"{cell.path}.jsonl")
        if record["status"] != "done":
            reason = record["reason"]
        key = (cell.model, cell.fingerprints, cell.method)
        group = groups.setdefault(key, Group(key))
        group.cells[cell.condition, cell.metric].append(Measurement(cell, record, queries, reason))
    return groups


def _queries(record: dict[str, Any], path: Path) -> tuple[list[dict[str, Any]], str | None]:
    """The per-query results that a record names, or the reason why they cannot be trusted."""
    if "queries" not in record:
        return [], None
    if not queries_fit(record, path):
        return [], f"per-query results {path.name} are missing or not those that the record names: run again"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line], None
