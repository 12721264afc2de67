"""Rows as tables: Markdown, CSV and JSON, the same bytes from the same records on any machine."""

import csv
import io
import json
from collections.abc import Callable
from typing import Any

from tabulate import tabulate

from fpbench.board import cells
from fpbench.board.rows import MODIFICATIONS
from fpbench.errors import InputError

Row = dict[str, Any]
Column = tuple[str, Callable[[Row], str]]


def render(rows: list[Row], kind: str) -> str:
    """All rows as ``md``, ``csv`` or ``json``.

    Raises:
        InputError: for another kind.
    """
    kinds: dict[str, Callable[[list[Row]], str]] = {"md": _markdown, "csv": _csv, "json": _json}
    if kind not in kinds:
        raise InputError(f"leaderboard format {kind!r} is not one of {', '.join(kinds)}.")
    return kinds[kind](rows)


def summary(rows: list[Row]) -> str:
    """The rows as they are printed to a terminal: what is detected, what it costs, what failed."""
    parts = ["Detectability: exact FSR, in % [95 % interval over fingerprints]", _table(rows, DETECTABILITY)]
    if outside := _further(rows):
        parts += ["", FURTHER, _table(rows, [*NAMES, *outside])]
    parts += ["", "Harmlessness, imperceptibility, cost", _table(rows, HARM), "", LEGEND]
    if failures := _failures(rows):
        parts += ["", "Failed cells", *failures]
    return "\n".join(parts)


LEGEND = """\
greedy: k of n fingerprints. AVG: mean of the six modifications. Δ: difference from the base, paired by example or
window; in (brackets) the value itself. triggers: mean rate, in %, at which eight kinds of ordinary text are answered
with a target (and how many of the set's triggers any of them activates); near: the same for texts of the set's make
(and how many of these). bands: triggers of normal/marginal/abnormal perplexity. claim: matches needed for 1e-3, and
the power to get them from one response a fingerprint. [Intervals] cover 95 %. Equal ranks are ties: not significantly
behind the best row."""


def _modification(name: str) -> Column:
    return name, lambda row: cells.fsr(row, name)


NAMES: list[Column] = [
    ("model", lambda row: row["model"]),
    ("method", lambda row: row["method"]),
    ("set", lambda row: row["fingerprints"]),
]
DETECTABILITY: list[Column] = [
    ("rank", cells.rank),
    *NAMES,
    ("trust", lambda row: row["trust"]),
    ("greedy", cells.greedy),
    ("FSR", lambda row: cells.fsr(row, "origin")),
    *[_modification(name) for name in MODIFICATIONS],
    ("AVG", cells.average),
]
HARM: list[Column] = [
    *NAMES,
    ("accuracy Δ", cells.accuracy),
    ("perplexity Δ", cells.perplexity),
    ("triggers", cells.triggers),
    ("near", cells.near),
    ("bands", cells.bands),
    ("claim", cells.claim),
    ("cost", cells.cost),
]


FURTHER = "Further conditions: outside the six and outside AVG, exact FSR in %"


def _further(rows: list[Row]) -> list[Column]:
    """A column for each condition that is none of the protocol's seven, such as ``merge`` or ``finetune_math+nf4``."""
    names = {name for row in rows for name in row["conditions"]} - {"origin", *MODIFICATIONS}
    return [_modification(name) for name in sorted(names)]


def _table(rows: list[Row], columns: list[Column]) -> str:
    lines = [[_escape(shown(row)) for _, shown in columns] for row in rows]
    return str(tabulate(lines, headers=[name for name, _ in columns], tablefmt="github", disable_numparse=True))


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _failures(rows: list[Row]) -> list[str]:
    return [
        f"- {row['model']} · {row['fingerprints']} · {row['method']} · {failure['condition']} · {failure['metric']}: "
        f"{_escape(failure['reason'])}"
        for row in rows
        for failure in row["failed"]
    ]


def _markdown(rows: list[Row]) -> str:
    measured = [row for row in rows if row["trust"] != "reported"]
    reported = [row for row in rows if row["trust"] == "reported"]
    parts = [
        "# Leaderboard",
        "",
        "Protocol 1. Generated from records by `fpbench leaderboard`; not edited by hand.",
        "",
    ]
    if measured:
        parts += ["## Detectability", "", "Exact FSR in % [95 % interval over fingerprints].", ""]
        parts += [_table(measured, DETECTABILITY), ""]
        if outside := _further(measured):
            parts += [f"{FURTHER}.", "", _table(measured, [*NAMES, *outside]), ""]
        parts += ["## Harmlessness, imperceptibility, cost", ""]
        parts += [_table(measured, HARM), "", LEGEND, ""]
    if failures := _failures(measured):
        parts += ["## Failed cells", "", *failures, ""]
    if reported:
        parts += ["## Reported", "", f"{reported[0]['source']}. Sampled FSR in %.", ""]
        columns = [column for column in DETECTABILITY if column[0] != "rank"]
        parts += [_table(reported, [*columns, *HARM[3:5]]), ""]
    return "\n".join(parts)


def _csv(rows: list[Row]) -> str:
    columns = [*DETECTABILITY, *_further(rows), *HARM[3:]]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([name for name, _ in columns])
    for row in rows:
        writer.writerow([_harmless(shown(row)) for _, shown in columns])
    return text.getvalue()


def _harmless(text: str) -> str:
    """A cell that a spreadsheet does not take for a formula."""
    return f"'{text}" if text[:1] in ("=", "@") else text


def _json(rows: list[Row]) -> str:
    """One row a line: it shows in a diff which rows changed, and is written at the speed of the C encoder."""
    lines = ",\n".join(json.dumps(row, sort_keys=True, ensure_ascii=False, allow_nan=False) for row in rows)
    return f'{{"protocol": 1, "rows": [\n{lines}\n]}}\n'
