"""The leaderboard as files: rows from records, tables and figures from rows."""

import os
from pathlib import Path
from typing import Any

from fpbench.errors import InputError
from fpbench.runs.store import Store, read_records, write_bytes, write_text

Row = dict[str, Any]


def leaderboard(
    records: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str] | None = None,
    plots: str | os.PathLike[str] | None = None,
    rescore: bool = False,
) -> list[Row]:
    """Regenerate the rows of the leaderboard from records alone.

    Args:
        records: folder of records.
        out: where ``leaderboard.md``, ``.csv`` and ``.json`` are written; nowhere by default.
        plots: where figures are written as SVG and PNG; nowhere by default.
        rescore: recompute the figures from the per-query results beside the records.

    Raises:
        InputError: if there are no records, their per-query results do not fit them, or figures are asked for and
            matplotlib is not installed.
    """
    from fpbench.board.rows import rows_from_records

    folder = Path(records)
    if not folder.is_dir():
        raise InputError(f"records folder {folder} does not exist: expected the records/ of a run; give it --records.")
    found = read_records(folder)
    if not found:
        raise InputError(f"records folder {folder} holds no records: run `fpbench run` first, or check the path.")
    rows = rows_from_records(found, folder, rescore=rescore)
    if out is not None:
        Store(Path(out)).check_writable()
        _write_tables(Path(out), rows)
    if plots is not None:
        from fpbench.board.figures import figures
        from fpbench.board.records import group_records

        drawn = figures(rows, group_records(found, folder))
        Store(Path(plots)).check_writable()
        for name, content in drawn:
            write_bytes(Path(plots) / name, content)
    return rows


def tables(store: Store, paths: set[str]) -> list[Row]:
    """Write the tables of everything in the store; return the rows that hold one of the cells asked for."""
    from fpbench.board.rows import rows_from_records

    rows = rows_from_records(read_records(store.records), store.records, rescore=False)
    _write_tables(store.folder, rows)
    return [row for row in rows if any(path in paths for path in row.get("cells", ()))]


def _write_tables(folder: Path, rows: list[Row]) -> None:
    from fpbench.board.tables import render

    for kind in ("md", "csv", "json"):
        write_text(folder / f"leaderboard.{kind}", render(rows, kind))
