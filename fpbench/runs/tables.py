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
        write_tables(Path(out), rows)
    if plots is not None:
        from fpbench.board.figures import figures
        from fpbench.board.records import group_records

        drawn = figures(rows, group_records(found, folder))
        Store(Path(plots)).check_writable()
        for name, content in drawn:
            write_bytes(Path(plots) / name, content)
    return rows


def write_tables(folder: Path, rows: list[Row]) -> None:
    """Write the leaderboard in every format.

    Raises:
        StorageError: if the disk gives out.
    """
    from fpbench.board.tables import render

    for kind, path in table_files(folder).items():
        write_text(path, render(rows, kind))


def table_files(folder: Path) -> dict[str, Path]:
    """Where the leaderboard stands, by format."""
    return {kind: folder / f"leaderboard.{kind}" for kind in ("md", "csv", "json")}
