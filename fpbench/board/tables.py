"""Rows as text: Markdown, CSV and JSON, and the table of a study."""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tabulate import tabulate

from fpbench.board import columns, terminal
from fpbench.board.columns import DETECTABILITY, NAMES, Column
from fpbench.board.escaping import markdown
from fpbench.board.figures import Drawing
from fpbench.board.html import page
from fpbench.board.latex import latex_tables
from fpbench.board.long import COLUMNS, cells, figures_of
from fpbench.board.row import Row
from fpbench.board.terminal import summary as summary
from fpbench.errors import InputError
from fpbench.records.cell import PROTOCOL
from fpbench.text import visible, writable

Escape = Callable[[str], str]
FURTHER = "Further conditions: outside the six and outside AVG, exact FSR in %"
CHECKED = "Cells that submitters handed in and that were measured here, too: both figures"
LEGEND = """\
greedy: k of n fingerprints. AVG: mean of the six modifications. Δ: difference from the base, paired by example or
window; in (brackets) the value itself. triggers: mean rate, in %, at which eight kinds of ordinary text are answered
with a target (and how many of the set's triggers any of them activates); near: the same for texts of the set's make
(and how many of these). bands: triggers of normal/marginal/abnormal perplexity. claim: matches needed for 1e-3, and
the power to get them from one response a fingerprint. [Intervals] cover 95 %. Equal ranks are ties: not behind the
best row both significantly and by more than 1 point. out: why there is no rank. Ranked are re-run rows with accuracy Δ
≥ -5 points (upper end of the interval), perplexity Δ ≤ +25 %, triggers ≤ 50 %, near ≤ 10 %."""
REMOVAL = "exact FSR in % that a thief leaves who gives up at most 10 % of the quality of long answers"
REMOVAL_LEGEND = """\
The thief knows the method and tunes on fingerprints of his own, those of the other seeds; (oracle): there is one seed,
and he tunes on the very fingerprints that are scored. worst: of all adversaries up to a threat level (L1: knows the
method; L3: also has other models and the base). removal price: what the thief loses, in % of the quality of long or of
short answers, until ownership can be claimed (at 1e-3) less often than every other time: from the last dose at which it
can to the first at which it cannot; > 25 %: no dose that was tried does it for less. incomplete: cells failed or were
not measured, so a thief may do better. removal rank: as rank, by the price of each single fingerprint."""
STATISTICS = "cost is without key statistics, which are computed once a model"


def render(rows: Sequence[Row], kind: str, drawings: Sequence[Drawing] = ()) -> str:
    """Write all rows in one format: the same bytes from the same records on any machine.

    The drawings are for the page (``html``), which is complete without them.

    Raises:
        InputError: for another format.
    """
    kinds: dict[str, Callable[[Sequence[Row]], str]] = {
        "md": _markdown,
        "csv": _long,
        "wide": _wide,
        "json": _json,
        "html": lambda rows: page(rows, drawings),
        "latex": latex_tables,
    }
    if kind not in kinds:
        raise InputError(f"leaderboard format {kind!r} is not one of {', '.join(kinds)}.")
    return kinds[kind](rows)


def _markdown(rows: Sequence[Row]) -> str:
    measured = [row for row in rows if row.trust != "reported"]
    reported = [row for row in rows if row.trust == "reported"]
    parts = [
        "# Leaderboard",
        f"Protocol {PROTOCOL}. Generated from records by `fpbench leaderboard`; not edited by hand.",
    ]
    if measured:
        parts += ["## Overview", *_by_place(measured, terminal.overview)]
        said = "Exact FSR in % [95 % interval over fingerprints]."
        parts += ["## Detectability", said, *_by_place(measured, lambda rows, _: _detectability(rows))]
        if further := [row for row in measured if columns.further_columns([row])]:
            own = _by_place(further, lambda rows, _: [columns.METHOD, *columns.further_columns(rows)])
            parts += [f"{FURTHER}.", *own]
        harm = _by_place(measured, lambda rows, _: [columns.METHOD, *columns.harm_columns(rows)])
        parts += ["## Harmlessness, imperceptibility, cost", *harm]
        parts += ["\n".join([LEGEND, *_statistics(measured, markdown)])]
    if attacked := [row for row in measured if row.removal]:
        tables = _by_place(attacked, lambda rows, _: _removal(rows))
        parts += ["## Removal", f"{REMOVAL[0].upper()}{REMOVAL[1:]}.", *tables, REMOVAL_LEGEND]
    if found := _failures(measured, markdown):
        parts += ["## Failed cells", "\n".join(found)]
    if found := _checked(measured, markdown):
        parts += ["## Claimed and re-run", f"{CHECKED}.", "\n".join(found)]
    if found := _unreliable(measured, markdown):
        parts += ["## Unreliable", "Contested methods, and why.", "\n".join(found)]
    if reported:
        shown = [column for column in DETECTABILITY if column not in (columns.RANK, columns.DATA)]
        parts += ["## Reported", f"{reported[0].source}. Sampled FSR in %."]
        parts += [_table(reported, [*shown, columns.ACCURACY, columns.PERPLEXITY], markdown)]
    return "\n\n".join(parts) + "\n"


def _by_place(rows: Sequence[Row], shown: Callable[[Sequence[Row], Sequence[Column]], Sequence[Column]]) -> list[str]:
    """Return a table for each model and set: above it what all of its rows share, without columns that are empty."""
    parts = []
    for place in dict.fromkeys((row.model, row.fingerprints) for row in rows):
        own = [row for row in rows if (row.model, row.fingerprints) == place]
        said, varying = terminal.constants(own)
        columns_shown = [column for column in shown(own, varying) if terminal.known(column, own)]
        parts += [f"**{markdown(said)}**", _table(own, columns_shown, markdown)]
    return parts


def _detectability(rows: Sequence[Row]) -> list[Column]:
    return [columns.RANK, columns.METHOD, columns.TRUST, columns.GREEDY, columns.FSR, *columns.SIX, columns.AVERAGE]


def _removal(rows: Sequence[Row]) -> list[Column]:
    return [column for column in columns.removal_columns(rows) if column not in (columns.MODEL, columns.SET)]


def _table(rows: Sequence[Row], shown: Sequence[Column], escape: Escape) -> str:
    # Figures are written by us, and stay as they are: [intervals] need no escaping in a table.
    cells = [[escape(each.text(row)) if each.submitted else each.text(row) for each in shown] for row in rows]
    return _tabulated(cells, [escape(column.name) for column in shown])


def _tabulated(cells: Sequence[Sequence[str]], headers: Sequence[str]) -> str:
    return str(tabulate(cells, headers=headers, tablefmt="github", disable_numparse=True))


def _statistics(rows: Sequence[Row], escape: Escape) -> list[str]:
    found = ", ".join(f"{escape(model)} {seconds}" for model, seconds in columns.statistics(rows))
    return [f"{STATISTICS}: {found}."] if found else []


def _failures(rows: Sequence[Row], escape: Escape) -> list[str]:
    return [f"- {escape(place)}: {escape(reason)}" for place, reason in columns.failures(rows)]


def _checked(rows: Sequence[Row], escape: Escape) -> list[str]:
    return [f"- {escape(place)}: {both}" for place, both in columns.checked(rows)]


def _unreliable(rows: Sequence[Row], escape: Escape) -> list[str]:
    found = {row.method: row.unreliable for row in rows if row.unreliable}
    return [f"- {escape(method)}: {escape(reason)}" for method, reason in sorted(found.items())]


def _long(rows: Sequence[Row]) -> str:
    """Write one line a figure, numbers as numbers (:mod:`fpbench.board.long`), and whose figures they are."""
    lines: list[list[Any]] = [[*COLUMNS, columns.TRUST.name]]
    for row in rows:
        trust = (columns.TRUST.brief or columns.TRUST.text)(row) + ", unreliable" * bool(row.unreliable)
        lines += [[*cells(each).values(), trust] for each in figures_of([row])]
    return _comma_separated(lines)


def _wide(rows: Sequence[Row]) -> str:
    """Write one line a row, with the columns of every table, as they are read."""
    shown = [*DETECTABILITY, *columns.further_columns(rows), *columns.harm_columns(rows)]
    shown += [column for column in columns.removal_columns(rows) if column not in NAMES]
    shown += [columns.UNRELIABLE]
    lines = [[column.name for column in shown], *([column.text(row) for column in shown] for row in rows)]
    return _comma_separated(lines)


def _comma_separated(lines: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([_harmless(cell) for cell in line] for line in lines)
    return text.getvalue()


def _harmless(cell: Any) -> Any:
    """Quote text that a spreadsheet would take for a formula; differences keep their sign, for they are figures."""
    if not isinstance(text := cell, str):
        return cell
    formula = text[:1] in ("=", "@") or (text[:1] in ("+", "-") and not text[1:2].isdigit())
    return f"'{visible(text)}" if formula else visible(text)


def _json(rows: Sequence[Row]) -> str:
    """Write one row a line: a diff shows which rows changed, and the C encoder is fast."""
    lines = ",\n".join(json.dumps(each.to_dict(), sort_keys=True, ensure_ascii=False, allow_nan=False) for each in rows)
    return f'{{"protocol": {PROTOCOL}, "rows": [\n{writable(lines)}\n]}}\n'


# A study: one line a variant, with what the paper reports for it.

STUDY = [
    replace(columns.FSR, name="FSR at origin"),
    replace(columns.SIX[-1], name="RIA 40 %"),
    replace(columns.AVERAGE, name="AVG of six"),
    columns.ACCURACY,
    columns.PERPLEXITY,
    columns.TRIGGERS,
    columns.TRIGGER_PERPLEXITY,
    columns.BAND_COUNTS,
]
PAPER = {"paper: RIA 40 %": "detectability_ria40", "paper: accuracy": "accuracy"}
STUDY_LEGEND = """\
Exact FSR in % [95 % interval over fingerprints]; Δ: difference from the unfingerprinted base; triggers: mean rate of
the eight accidental-trigger conditions, in % (and how many of the set's triggers any query activates); PPL: mean
perplexity of the set's triggers under the base; bands: triggers of normal/marginal/abnormal perplexity. The paper's
figures are its authors', for Llama-3.2-3B-Instruct with MCEdit_A on its own code-mixed set, sampled; what they can
share with ours is the direction, not the value."""


def study_table(question: str, variants: Sequence[tuple[str, Row]], reported: Mapping[str, Any]) -> str:
    """Write a study as Markdown: each variant's name and row, and what the paper reports for that name."""
    lines = []
    for name, row in variants:
        paper = [reported.get(name, {}).get(key, columns.NONE) for key in PAPER.values()]
        lines.append([row.model, name, *(column.text(row) for column in STUDY), *paper])
    table = _tabulated(lines, [columns.MODEL.name, "variant", *(column.name for column in STUDY), *PAPER])
    return f"# {question}\n\n{table}\n\n{STUDY_LEGEND}\n"
