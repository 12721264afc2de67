"""The results of a run as one object: its records, the board's rows, and tables for pandas."""

import os
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from fpbench.board.groups import group_records
from fpbench.board.long import COLUMNS, as_columns, figures_of
from fpbench.board.row import Row
from fpbench.board.rows import rows_from_records
from fpbench.errors import InputError
from fpbench.models.objects import shown
from fpbench.records.record import Record
from fpbench.records.store import find_records, read_records

if TYPE_CHECKING:
    from pandas import DataFrame


class Results(Sequence[dict[str, Any]]):
    """The records of a run, each a dictionary as its JSON file holds it, in the order of their paths.

    ``results[0]["result"]`` are the figures of one cell, ``results.rows`` those of the board, and
    ``results.to_pandas()`` has one line a figure.

    Attributes:
        records: the same as :class:`~fpbench.records.record.Record`.
        root: the folder that they lie below.
    """

    def __init__(self, records: Sequence[Record], root: Path) -> None:
        """Keep records that lie below ``root``; their per-query results are read when they are asked for."""
        self.records, self.root = list(records), root

    @overload
    def __getitem__(self, place: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, place: slice) -> "Results": ...
    def __getitem__(self, place: int | slice) -> "dict[str, Any] | Results":
        if isinstance(place, slice):
            return Results(self.records[place], self.root)
        return self.records[place].to_dict()

    def __len__(self) -> int:
        return len(self.records)

    def __repr__(self) -> str:
        counted = Counter(each.status for each in self.records)
        lines = [f"Results: {counted['done']} finished and {counted['failed']} failed records in {self.root}"]
        for row in self._rows[:8]:
            average = "–" if row.avg is None else f"{100 * row.avg:.1f} %"
            lines.append(f"  {row.model} · {row.fingerprints} · {row.method}: AVG {average}")
        more = len(self._rows) - 8
        return "\n".join(lines + [f"  … and {more} more rows"] * (more > 0) + ["  .to_pandas() .per_query() .rows"])

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The board's rows, ranked, as ``leaderboard.json`` has them; rates are fractions."""
        return [row.to_dict() for row in self._rows]

    @cached_property
    def _rows(self) -> list[Row]:
        found = rows_from_records(self.records, self.root, rescore=False)
        return [row for row in found if row.trust != "reported"]

    def to_pandas(self) -> "DataFrame":
        """Return one line a figure: model, set, method, seed, condition, metric, value, low, high, n, unit.

        It is what ``leaderboard.csv`` holds: docs/leaderboard.md says what each metric is. Rates are fractions.
        ``seed`` is empty where several are pooled; each of them then has lines of its own, too. Failed cells have no
        figure.
        """
        from pandas import DataFrame

        found = DataFrame(as_columns(figures_of(self._rows)), columns=list(COLUMNS))
        numbers = {"value": "float64", "low": "float64", "high": "float64", "seed": "Int64", "n": "Int64"}
        return found.astype(numbers)

    def per_query(self) -> "DataFrame":
        """Return one line a per-query result: model, set, method, seed, condition, metric, and what the metric keeps.

        Of ``fsr`` these are the probability that fingerprint i is answered with a target, the greedy response, and each
        target's share; of ``triggers``, ``kind`` is the kind of ordinary text. ``line`` counts from 0 in the file.

        Raises:
            InputError: if per-query results are not those that their record names.
        """
        from pandas import DataFrame

        lines = []
        for key, group in group_records(self.records, self.root).items():
            for each in group.measurements():
                cell = each.cell
                place = {"model": key[0], "set": key[1], "method": key[2], "seed": cell.seed}
                place |= {"condition": cell.condition, "metric": cell.metric}
                for number, query in enumerate(each.queries):
                    own = {"kind" if name == "condition" else name: value for name, value in query.items()}
                    lines.append({**own, **place, "line": number})
        first = ["model", "set", "method", "seed", "condition", "metric", "line"]
        found = DataFrame(lines)
        return found[first + [name for name in found.columns if name not in first]] if lines else found


def results(folder: str | os.PathLike[str] = "fpbench-run") -> Results:
    """Read what a run has measured: its folder, the ``records`` in it, or the records of one model or method.

    Raises:
        InputError: if there are no records there.
    """
    if not isinstance(folder, str | os.PathLike):
        raise InputError(f"expected a folder of records, found {shown(folder)}: give the folder of a run.")
    found, root = find_records(Path(folder))
    if not (records := read_records(found, root)):
        raise InputError(f"records folder {found} holds no records: run `fpbench run` first, or check the path.")
    return Results(records, root)
