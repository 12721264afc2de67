"""Records as the board reads them: grouped by row, with their per-query results, damaged ones shown as failed."""

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from fpbench.errors import InputError
from fpbench.records.cell import BASE, ORIGIN, PROTOCOL, Cell
from fpbench.records.record import Record
from fpbench.records.store import read_records

RowKey = tuple[str, str, str]  # model, fingerprint set, method


@dataclass(frozen=True)
class Measurement:
    """One record with its per-query results, which stand in ``path``."""

    record: Record
    path: Path

    @property
    def cell(self) -> Cell:
        """The record's cell."""
        return self.record.cell

    @property
    def reason(self) -> str | None:
        """The reason of a failure; ``None`` for a finished cell."""
        return self.record.reason

    @property
    def result(self) -> dict[str, Any]:
        """The figures of a finished cell."""
        return self.record.result

    @cached_property
    def queries(self) -> list[dict[str, Any]]:
        """The per-query results; none where the record names none. Most figures need none, and they are long."""
        if self.record.queries is None:
            return []
        lines = self.path.read_text(encoding="utf-8").split("\n")[:-1]
        # One call of the parser for all lines is several times faster than one for each.
        found: list[dict[str, Any]] = json.loads(f"[{','.join(lines)}]")
        return found


@dataclass
class Group:
    """All measurements of one row: condition and metric → one measurement a seed, in seed order.

    Attributes:
        submission: who handed the records in; ``None`` for those that were measured here.
    """

    key: RowKey
    submission: str | None = None
    cells: dict[tuple[str, str], list[Measurement]] = field(default_factory=lambda: defaultdict(list))

    def measurements(self) -> Iterator[Measurement]:
        """Yield every measurement."""
        yield from (each for found in self.cells.values() for each in found)

    def get(self, metric: str, condition: str = ORIGIN) -> list[Measurement]:
        """Return the measurements of one metric under one condition; none if the cell was never planned."""
        return self.cells.get((condition, metric), [])

    def finished(self, metric: str, condition: str = ORIGIN) -> list[Measurement]:
        """Return the same, or nothing if the cell failed under any seed."""
        found = self.get(metric, condition)
        return [] if any(each.reason for each in found) else found

    def failures(self) -> list[Measurement]:
        """Return every measurement that has no result."""
        return [each for each in self.measurements() if each.reason]


def group_records(records: Sequence[Record], folder: Path, submission: str | None = None) -> dict[RowKey, Group]:
    """Sort records, which lie in ``folder`` with their per-query results, into rows of one origin.

    Raises:
        InputError: for a record of another protocol version; a leaderboard never mixes them.
    """
    groups: dict[RowKey, Group] = {}
    for record in sorted(records, key=lambda record: str(sorted(vars(record.cell).items()))):
        cell = record.cell
        if record.protocol != PROTOCOL:
            raise InputError(
                f"record {cell} is of protocol {record.protocol}, this leaderboard of {PROTOCOL}: keep them apart."
            )
        key = (cell.model, cell.fingerprints, cell.method)
        group = groups.setdefault(key, Group(key, submission))
        group.cells[cell.condition, cell.metric].append(Measurement(record, folder / f"{cell.path}.jsonl"))
    return groups


def claimed_groups(folder: Path, method: str) -> list[Group]:
    """Read what a submitter measured: the rows of the method handed in, and of the base that it is compared with.

    Raises:
        InputError: for records of another method, which nobody may hand in here, or of another protocol version.
    """
    groups = group_records(read_records(folder), folder, method)
    for _, _, name in groups:
        if name not in (method, BASE):
            raise InputError(f"records of method {name!r} in {folder}: expected only those of {method!r} and {BASE!r}.")
    return list(groups.values())
