"""Rows as tables, the same bytes from the same records on any machine; Markdown, CSV and JSON are written here."""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from fpbench.board import columns
from fpbench.board import columns as cells
from fpbench.board.escaping import markdown
from fpbench.board.rows import MODIFICATIONS, further_conditions
from fpbench.errors import InputError
from fpbench.text import visible, writable

if TYPE_CHECKING:
    from fpbench.board.figures import Drawing

Row = dict[str, Any]
Column = tuple[str, Callable[[Row], str]]
Escape = Callable[[str], str]


def render(rows: list[Row], kind: str, drawings: "Sequence[Drawing]" = ()) -> str:
    """All rows in one format.

    Args:
        rows: of the leaderboard, in its order.
        kind: ``md``, ``csv``, ``json``, ``html`` or ``latex``.
        drawings: figures for the page, which is complete without them; tables have none.

    Raises:
        InputError: for another format.
    """
    from fpbench.board.html import page
    from fpbench.board.latex import latex_tables

    kinds: dict[str, Callable[[list[Row]], str]] = {
        "md": _markdown,
        "csv": _csv,
        "json": _json,
        "html": lambda rows: page(rows, drawings),
        "latex": latex_tables,
    }
    if kind not in kinds:
        raise InputError(f"leaderboard format {kind!r} is not one of {', '.join(kinds)}.")
    return kinds[kind](rows)


def summary(rows: list[Row]) -> str:
    """The rows as they are printed to a terminal: what is detected, what it costs, what failed or is contested."""
    parts = ["Detectability: exact FSR, in % [95 % interval over fingerprints]", _table(rows, DETECTABILITY, visible)]
    if outside := _further(rows):
        parts += ["", FURTHER, _table(rows, [*NAMES, *outside], visible)]
    parts += ["", "Harmlessness, imperceptibility, cost", _table(rows, HARM, visible), "", LEGEND]
    if failures := _failures(rows, visible):
        parts += ["", "Failed cells", *failures]
    if both := _checked(rows, visible):
        parts += ["", CHECKED, *both]
    if reasons := _unreliable(rows, visible):
        parts += ["", "Unreliable", *reasons]
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
    ("trust", cells.trust),
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
CHECKED = "Cells that submitters handed in and that were measured here, too: both figures"


def _further(rows: list[Row]) -> list[Column]:
    return [_modification(name) for name in further_conditions(rows)]


def _table(rows: list[Row], columns: list[Column], escape: Escape) -> str:
    # Figures are written by us, and stay as they are: [intervals] need no escaping in a table.
    submitted = {name for name, _ in NAMES}
    lines = [[escape(shown(row)) if name in submitted else shown(row) for name, shown in columns] for row in rows]
    headers = [escape(name) for name, _ in columns]
    return str(tabulate(lines, headers=headers, tablefmt="github", disable_numparse=True))


def _failures(rows: list[Row], escape: Escape) -> list[str]:
    names = ("model", "fingerprints", "method")
    return [
        f"- {escape(' · '.join([*(row[name] for name in names), failure['condition'], failure['metric']]))}: "
        f"{escape(failure['reason'])}"
        for row in rows
        for failure in row["failed"]
    ]


def _checked(rows: list[Row], escape: Escape) -> list[str]:
    """Cells that were handed in and measured here, too."""
    return [f"- {escape(place)}: {both}" for row in rows for place, both in cells.both_figures(row)]


def _unreliable(rows: list[Row], escape: Escape) -> list[str]:
    """Contested methods, each once, with the reason."""
    found = {row["method"]: row["unreliable"] for row in rows if row["unreliable"]}
    return [f"- {escape(method)}: {escape(reason)}" for method, reason in sorted(found.items())]


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
        parts += [_table(measured, DETECTABILITY, markdown), ""]
        if outside := _further(measured):
            parts += [f"{FURTHER}.", "", _table(measured, [*NAMES, *outside], markdown), ""]
        parts += ["## Harmlessness, imperceptibility, cost", ""]
        parts += [_table(measured, HARM, markdown), "", LEGEND, ""]
    if failures := _failures(measured, markdown):
        parts += ["## Failed cells", "", *failures, ""]
    if both := _checked(measured, markdown):
        parts += ["## Claimed and re-run", "", f"{CHECKED}.", "", *both, ""]
    if reasons := _unreliable(measured, markdown):
        parts += ["## Unreliable", "", "Contested methods, and why.", "", *reasons, ""]
    if reported:
        parts += ["## Reported", "", f"{reported[0]['source']}. Sampled FSR in %.", ""]
        columns = [column for column in DETECTABILITY if column[0] != "rank"]
        parts += [_table(reported, [*columns, *HARM[3:5]], markdown), ""]
    return "\n".join(parts)


def _csv(rows: list[Row]) -> str:
    columns = [*DETECTABILITY, *_further(rows), *HARM[3:], ("unreliable", lambda row: row["unreliable"] or cells.NONE)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([_harmless(name) for name, _ in columns])
    for row in rows:
        writer.writerow([_harmless(shown(row)) for _, shown in columns])
    return text.getvalue()


def _harmless(text: str) -> str:
    """A cell that a spreadsheet takes for no formula; differences keep their sign, for they are nothing but figures."""
    formula = text[:1] in ("=", "@") or (text[:1] in ("+", "-") and not text[1:2].isdigit())
    return f"'{visible(text)}" if formula else visible(text)


def _json(rows: list[Row]) -> str:
    """One row a line: it shows in a diff which rows changed, and is written at the speed of the C encoder."""
    lines = ",\n".join(json.dumps(row, sort_keys=True, ensure_ascii=False, allow_nan=False) for row in rows)
    return f'{{"protocol": 1, "rows": [\n{writable(lines)}\n]}}\n'


# The table of a study: one line a variant, with what the paper reports for it.


HEADERS = [
    "model",
    "variant",
    "FSR at origin",
    "RIA 40 %",
    "AVG of six",
    "accuracy Δ",
    "perplexity Δ",
    "triggers",
    "PPL of triggers",
    "bands",
    "paper: RIA 40 %",
    "paper: accuracy",
]
STUDY_LEGEND = """\
Exact FSR in % [95 % interval over fingerprints]; Δ: difference from the unfingerprinted base; triggers: mean rate of
the eight accidental-trigger conditions, in % (and how many of the set's triggers any query activates); PPL: mean
perplexity of the set's triggers under the base; bands: triggers of normal/marginal/abnormal perplexity. The paper's
figures are its authors', for Llama-3.2-3B-Instruct with MCEdit_A on its own code-mixed set, sampled; what they can
share with ours is the direction, not the value."""


def study_table(question: str, variants: list[tuple[str, Row]], reported: Mapping[str, Any]) -> str:
    """A study as Markdown.

    Args:
        question: what it asks.
        variants: what each row is called in the study, with its leaderboard row.
        reported: what the paper has for a row, by the row's name in the study.
    """
    lines = []
    for name, row in variants:
        paper = reported.get(name, {})
        lines.append(
            [
                row["model"],
                name,
                columns.fsr(row, "origin"),
                columns.fsr(row, "ria40"),
                columns.average(row),
                columns.accuracy(row),
                columns.perplexity(row),
                columns.triggers(row),
                columns.trigger_perplexity(row),
                columns.bands(row),
                paper.get("detectability_ria40", columns.NONE),
                paper.get("accuracy", columns.NONE),
            ]
        )
    table = tabulate(lines, HEADERS, tablefmt="github", disable_numparse=True)
    return f"# {question}\n\n{table}\n\n{STUDY_LEGEND}\n"
