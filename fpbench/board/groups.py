"""Records as the board reads them: grouped by row, with their per-query results, damaged ones shown as failed."""

import os
import stat
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from fpbench.adversaries import conditions
from fpbench.adversaries.conditions import JOINT, check, known, name_of, parts, weights_parts
from fpbench.adversaries.price import Price, compare
from fpbench.errors import InputError
from fpbench.metrics.measure import CHANCE, METRICS
from fpbench.records.cell import BASE, CHECKPOINT, ORIGIN, PROTOCOL, Cell
from fpbench.records.record import Record
from fpbench.records.store import LARGEST_RECORD, examine
from fpbench.registry import METHODS
from fpbench.text import parsed, printable

RowKey = tuple[str, str, str]  # model, fingerprint set, method
ATTACKED = ("fsr", "price")  # metrics of an adversary that is handed in
MOST_FILES = 5_000  # of a submission, folders among them
LONGEST_REASON = 2_000  # characters that a submitter's failed cell may show


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
        """The per-query results; none where the record names none. Most figures need none, and they are long.

        InputError if they are not as many JSON objects as the record says.
        """
        if self.record.queries is None:
            return []
        lines = self.path.read_text(encoding="utf-8").split("\n")[:-1]
        # One call of the parser for all lines is several times faster than one for each.
        try:
            found: list[dict[str, Any]] = parsed(f"[{','.join(lines)}]")
        except ValueError as error:
            raise InputError(f"record {self.cell}: its per-query results cannot be read ({error}).") from None
        if len(found) != self.record.queries.count or not all(isinstance(each, dict) for each in found):
            count = self.record.queries.count
            raise InputError(f"record {self.cell}: expected per-query results as {count} JSON objects, found others.")
        return found


def _answer(query: Mapping[str, Any]) -> dict[str, Any]:
    """Return an answer to a task as an item of a price."""
    task, index, correct = query["task"], query["index"], query["correct"]
    return {"channel": "tasks", "index": f"{task}/{index}", "task": task, "chance": CHANCE[task], "correct": correct}


@dataclass
class Group:
    """All measurements of one row: condition and metric → one measurement a seed, in seed order.

    Attributes:
        submission: who handed the records in; ``None`` for those that were measured here.
    """

    key: RowKey
    submission: str | None = None
    cells: dict[tuple[str, str], list[Measurement]] = field(default_factory=lambda: defaultdict(list))
    _prices: dict[str, dict[int, Price]] = field(default_factory=dict, repr=False)

    def measurements(self) -> Iterator[Measurement]:
        """Yield every measurement."""
        yield from (each for found in self.cells.values() for each in found)

    def only(self, seed: int) -> "Group":
        """Return the same row with the measurements of one seed."""
        own = {key: [each for each in found if each.cell.seed == seed] for key, found in self.cells.items()}
        return replace(self, cells={key: found for key, found in own.items() if found}, _prices={})

    def get(self, metric: str, condition: str = ORIGIN) -> list[Measurement]:
        """Return the measurements of one metric under one condition; none if the cell was never planned."""
        return self.cells.get((condition, metric), [])

    def finished(self, metric: str, condition: str = ORIGIN) -> list[Measurement]:
        """Return the same, or nothing if the cell failed under any seed."""
        found = self.get(metric, condition)
        return [] if any(each.reason for each in found) else found

    def by_seed(self, condition: str = ORIGIN) -> dict[int, list[float]]:
        """Return p_i of every fingerprint by seed; none if the cell failed under any seed."""
        finished = self.finished("fsr", condition)
        return {each.cell.seed: [query["probability"] for query in each.queries] for each in finished}

    def prices(self, condition: str) -> dict[int, Price]:
        """Return by seed what a condition costs on this row's own model, against itself at origin; none likewise.

        Raises:
            InputError: if the two do not have the same items.
        """
        if condition not in self._prices:
            origin = {each.cell.seed: each for each in self.finished("price")}
            before_tasks, tasks = self._answers(condition)
            found = {}
            for each in self.finished("price", condition):
                seed = each.cell.seed
                if (before := origin.get(seed)) is not None:
                    try:
                        unattacked = [*before.queries, *before_tasks.get(seed, [])]
                        found[seed] = compare(unattacked, [*each.queries, *tasks.get(seed, [])])
                    except InputError as error:
                        raise InputError(f"record {each.cell}: {error}") from None
            self._prices[condition] = found
        return self._prices[condition]

    def _answers(self, condition: str) -> list[dict[int, list[dict[str, Any]]]]:
        """Return by seed the answers to the tasks at origin, and with the weights of a condition.

        None of either, if they were not asked there. Run-time parts leave them as they are, so that those of the
        weights alone stand for all.
        """
        asked = self.finished("utility", JOINT.join(weights_parts(condition)))
        return [
            {each.cell.seed: [_answer(query) for query in each.queries if query["task"] in CHANCE] for each in found}
            for found in (self.finished("utility") if asked else [], asked)
        ]

    def failures(self) -> list[Measurement]:
        """Return every measurement that has no result."""
        return [each for each in self.measurements() if each.reason]


def group_records(records: Sequence[Record], folder: Path, submission: str | None = None) -> dict[RowKey, Group]:
    """Sort records, which lie in ``folder`` with their per-query results, into rows of one origin.

    Raises:
        InputError: for a record of another protocol version, which a leaderboard never mixes, or of the fingerprints
            of another seed, which would count twice.
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
    for group in groups.values():
        seeds: dict[str, int] = {}
        for each in group.measurements():
            digest = (each.record.identity or {}).get("fingerprints")
            if isinstance(digest, str) and (seed := seeds.setdefault(digest, each.cell.seed)) != each.cell.seed:
                raise InputError(
                    f"record {each.cell} is of the same fingerprints as those of seed {seed}: pooled they would count "
                    "twice; keep one of the two seeds."
                )
    return groups


def taken(name: str) -> bool:
    """Return True for a name that no submission may have: a method's, or one that records use otherwise."""
    return name in (BASE, CHECKPOINT) or METHODS.taken(name)


def claimed_groups(folder: Path, method: str) -> list[Group]:
    """Read what a submitter measured: the rows of the method handed in, and of the base that it is compared with.

    Raises:
        InputError: for a name that is taken, a link or anything but files and folders, a record that is damaged, too
            large, at another place than its cell's or of another method, which nobody may hand in here, a metric or
            modification that is not known here, or another protocol version.
    """
    if taken(method):
        raise InputError(f"{folder.parent}: method {method!r} is taken: rename the folder and the method.")

    def foreign(cell: Cell) -> str | None:
        if cell.method in (method, BASE):
            return None
        return f"records of method {cell.method!r} in {folder}: expected only those of {method!r} and {BASE!r}."

    return _handed_in(folder, method, foreign)


def claimed_attacks(folder: Path, adversary: str) -> list[Group]:
    """Read what a submitter measured of an adversary: rows of methods known here, and of their base, under it.

    Raises:
        InputError: as :func:`claimed_groups`; for a record of another metric than :data:`ATTACKED`, or of a condition
            that is neither the origin nor names the adversary.
    """
    if conditions.taken(adversary):
        raise InputError(f"{folder.parent}: adversary {adversary!r} is taken: rename the folder and the adversary.")
    methods = (BASE, *METHODS.names())

    def foreign(cell: Cell) -> str | None:
        if cell.method not in methods:
            return f"record {cell}: method {printable(cell.method)!r} is not known here."
        if cell.metric not in ATTACKED:
            return f"record {cell}: expected one of {' and '.join(ATTACKED)} of an adversary."
        if cell.condition != ORIGIN and not names(cell.condition, adversary):
            return f"record {cell}: expected {ORIGIN!r}, or a condition that names {adversary!r}."
        return None

    return _handed_in(folder, adversary, foreign)


def names(condition: str, adversary: str) -> bool:
    """Return whether a condition has an adversary among its parts."""
    return adversary in map(name_of, parts(condition))


def _handed_in(folder: Path, submission: str, foreign: Callable[[Cell], str | None]) -> list[Group]:
    """Read the records of a submission; ``foreign`` says why a cell must not be among them, or ``None``."""
    _check_entries(folder)
    records = []
    for path, _, record in examine(folder):
        if not isinstance(record, Record):
            raise InputError(f"record {printable(str(path))} {record}: hand in those of `fpbench submit run`.")
        cell = record.cell
        if why := foreign(cell):
            raise InputError(why)
        if cell.metric not in METRICS:
            raise InputError(f"record {cell}: metric {printable(cell.metric)!r} is not known here.")
        if cell.condition != ORIGIN:
            if unknown := [part for part in parts(cell.condition) if name_of(part) not in known()]:
                raise InputError(f"record {cell}: modification {printable(unknown[0])!r} is not known here.")
            check(cell.condition)
        if record.identity is not None and record.identity.get("method") != cell.method:
            raise InputError(
                f"record {cell}: its identity is of method {printable(str(record.identity.get('method')))!r}."
            )
        if len(record.reason or "") > LONGEST_REASON:
            raise InputError(f"record {cell}: expected a reason of at most {LONGEST_REASON} characters.")
        records.append(record)
    return list(group_records(records, folder, submission).values())


def _check_entries(folder: Path) -> None:
    """Refuse links, what is neither file nor folder, too many entries and too large files of a submission's records."""
    pending = [folder.parent, folder]
    for path in pending:
        mode = path.lstat().st_mode
        shown = printable(str(path))
        if stat.S_ISLNK(mode) or not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise InputError(
                f"{shown}: expected files and folders of its own, found a link, pipe or device: remove it."
            )
        if stat.S_ISREG(mode) and path.lstat().st_size > LARGEST_RECORD:
            raise InputError(f"{shown}: expected at most {LARGEST_RECORD} bytes: remove it.")
        if len(pending) > MOST_FILES:
            raise InputError(f"{folder}: expected at most {MOST_FILES} files: remove what is no record.")
        if stat.S_ISDIR(mode) and path != folder.parent:
            pending += [path / name for name in os.listdir(path)]
