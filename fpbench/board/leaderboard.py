"""The leaderboard as files: rows from records, tables and figures from rows."""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fpbench.board.figures import Drawing, captions, figures
from fpbench.board.groups import Group, RowKey, claimed_attacks, claimed_groups, group_records
from fpbench.board.results import results
from fpbench.board.row import Row
from fpbench.board.rows import claimed_row, rows_from_records
from fpbench.board.tables import render
from fpbench.errors import InputError
from fpbench.records.cell import BASE
from fpbench.records.store import check_writable, write_bytes, write_text
from fpbench.registry import ADVERSARIES
from fpbench.text import printable

logger = logging.getLogger(__name__)


def leaderboard(
    records: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str] | None = None,
    plots: str | os.PathLike[str] | None = None,
    rescore: bool = False,
    claimed: str | os.PathLike[str] | None = None,
) -> list[dict[str, Any]]:
    """Regenerate the leaderboard from records alone; return its rows as ``leaderboard.json`` has them.

    Args:
        records: a run, its folder of records, or the records of one model or method.
        out: where ``leaderboard.md``, ``.csv`` (one line a figure), ``_wide.csv`` (one line a row), ``.json``,
            ``.html`` and ``.tex`` are written; nowhere by default.
        plots: where figures are written as SVG, which the page of ``out`` then shows too, and as PDF for papers, at the
            width of a column or of a page of two, with ``captions.md``; nowhere by default.
        rescore: recompute the figures from the per-query results beside the records.
        claimed: folder of submissions, whose own records are shown as claimed; none by default. One with records that
            are not what this harness writes is left out, with a warning that says why. Adversaries among them are known
            by name in ``submissions/`` of the working folder; the verb finds those of another folder too.

    Raises:
        InputError: if there are no records, one is of another protocol version or holds a figure that cannot be, or
            figures are asked for and matplotlib is not installed.
    """
    return [row.to_dict() for row in regenerate(records, out=out, plots=plots, rescore=rescore, claimed=claimed)]


def regenerate(
    records: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str] | None,
    plots: str | os.PathLike[str] | None,
    rescore: bool,
    claimed: str | os.PathLike[str] | None,
) -> list[Row]:
    """Do what :func:`leaderboard` does; return the rows themselves."""
    found = results(records)
    folder, own = found.root, found.records
    handed_in, thieves = ([], []) if claimed is None else _handed_in(Path(claimed), group_records(own, folder), rescore)
    rows = rows_from_records(own, folder, rescore=rescore, claimed=handed_in, thieves=thieves)
    drawings: list[Drawing] = []
    if plots is not None:
        drawings = figures(rows, {each.key: each for each in handed_in} | group_records(own, folder))
    for target in (out, plots):
        if target is not None:
            check_writable(Path(target))
    if out is not None:
        write_tables(Path(out), rows, drawings)
    if plots is not None:
        for each in drawings:
            write_bytes(Path(plots) / f"{each.name}.svg", each.content)
            write_bytes(Path(plots) / f"{each.name}.pdf", each.printed)
        write_text(Path(plots) / "captions.md", captions(drawings))
    return rows


def _handed_in(submissions: Path, own: Mapping[RowKey, Group], rescore: bool) -> tuple[list[Group], list[Group]]:
    """Return the rows of every method and those of every adversary that can be shown; warn of others, and why not."""
    if not submissions.is_dir():
        raise InputError(f"submissions folder {submissions} does not exist: expected one that holds NAME/records.")
    methods: list[Group] = []
    thieves: list[Group] = []
    adversaries = set(ADVERSARIES.names())
    # What begins with a dot is being written, or was when its writer was killed.
    for folder in sorted(each for each in submissions.glob("*/records") if not each.parent.name.startswith(".")):
        try:
            attacks = folder.parent.name in adversaries
            groups = (claimed_attacks if attacks else claimed_groups)(folder, folder.parent.name)
            theirs = {group.key: group for group in groups}
            for group in groups:
                base = (*group.key[:2], BASE)
                for reference in {id(each): each for each in (own.get(base), theirs.get(base))}.values():
                    claimed_row(group, reference, rescore)  # whichever judges it, its row can be made
        except (InputError, OSError) as error:
            name = printable(folder.parent.name, 100)
            logger.warning("submission %s is left out of the board: %s", name, printable(str(error), 1000))
        else:
            (thieves if attacks else methods).extend(groups)
    return methods, thieves


def write_tables(folder: Path, rows: Sequence[Row], drawings: Sequence[Drawing] = ()) -> None:
    """Write the leaderboard in every format, the page with the figures that are given.

    Raises:
        StorageError: if the disk gives out.
    """
    for kind, path in table_files(folder).items():
        write_text(path, render(rows, kind, drawings))


def table_files(folder: Path) -> dict[str, Path]:
    """Return where the leaderboard stands, by format."""
    endings = {"md": ".md", "csv": ".csv", "wide": "_wide.csv", "json": ".json", "html": ".html", "latex": ".tex"}
    return {kind: folder / f"leaderboard{ending}" for kind, ending in endings.items()}
