"""The leaderboard as files: rows from records, tables and figures from rows."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fpbench.errors import InputError
from fpbench.runs.store import Store, read_records, write_bytes, write_text

if TYPE_CHECKING:
    from fpbench.board.figures import Drawing

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
        out: where ``leaderboard.md``, ``.csv``, ``.json``, ``.html`` and ``.tex`` are written; nowhere by default.
        plots: where figures are written as SVG and PNG, which the page of ``out`` then shows too; nowhere by default.
        rescore: recompute the figures from the per-query results beside the records.

    Raises:
        InputError: if there are no records, one is of another protocol version or holds a figure that cannot be, or
            figures are asked for and matplotlib is not installed.
    """
    from fpbench.board.rows import rows_from_records

    folder = Path(records)
    if not folder.is_dir():
        raise InputError(f"records folder {folder} does not exist: expected the records/ of a run; give it --records.")
    found = read_records(folder)
    if not found:
        raise InputError(f"records folder {folder} holds no records: run `fpbench run` first, or check the path.")
    rows = rows_from_records(found, folder, rescore=rescore)
    drawings: list[Drawing] = []
    if plots is not None:
        from fpbench.board.figures import figures
        from fpbench.board.records import group_records

        drawings = figures(rows, group_records(found, folder))
    for target in (out, plots):
        if target is not None:
            Store(Path(target)).check_writable()
    if out is not None:
        write_tables(Path(out), rows, drawings)
    if plots is not None:
        for each in drawings:
            for kind, content in each.files.items():
                write_bytes(Path(plots) / f"{each.name}.{kind}", content)
    return rows


def write_tables(folder: Path, rows: list[Row], drawings: "Sequence[Drawing]" = ()) -> None:
    """Write the leaderboard in every format, the page with the figures that are given.

    Raises:
        StorageError: if the disk gives out.
    """
    from fpbench.board.tables import render

    for kind, path in table_files(folder).items():
        write_text(path, render(rows, kind, drawings))


def table_files(folder: Path) -> dict[str, Path]:
    """Where the leaderboard stands, by format."""
    endings = {"md": "md", "csv": "csv", "json": "json", "html": "html", "latex": "tex"}
    return {kind: folder / f"leaderboard.{ending}" for kind, ending in endings.items()}
