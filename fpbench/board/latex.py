"""Rows as LaTeX tables, ready for a paper: one a model and fingerprint set, best in bold, second best underlined."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from typing import Any

from fpbench.board import columns as cells
from fpbench.board.escaping import latex
from fpbench.board.rows import MODIFICATIONS
from fpbench.modifications.base import classes
from fpbench.records.cell import BASE

Row = dict[str, Any]
# What is shown of a row: its figure, and +1 where more is better, −1 where less is.
Column = tuple[Callable[[Row], str], int]

PREAMBLE = r"""% Generated from records by `fpbench leaderboard --format latex`; not edited by hand.
% Needs \usepackage{booktabs} and \usepackage[T1]{fontenc}. Bold: best of the column; underlined: second best;
% figures that are equal as shown share a place. The unfingerprinted base takes no part.
"""


def _figure(shown: Callable[[Row], str]) -> Callable[[Row], str]:
    """The figure alone, without unit, interval or counts; the base's own figures stay in their brackets."""
    return lambda row: shown(row).split(" ")[0]


COLUMNS: list[Column] = [
    *[(_figure(partial(cells.fsr, condition=name)), +1) for name in ("origin", *MODIFICATIONS)],
    (_figure(cells.average), +1),
    (_figure(cells.accuracy), +1),
    (_figure(cells.perplexity), -1),
    (_figure(cells.triggers), -1),
]


def _head() -> str:
    """Return the lines above the figures: the kinds of modification, each over its own, and every column."""
    six = [classes(name)[0] for name in MODIFICATIONS]
    kinds, rules, column = [], [], 3  # after method and FSR
    for family, own in groupby(six, key=lambda each: each.family):
        width = len(list(own))
        kinds.append(rf"\multicolumn{{{width}}}{{c}}{{{family}}}")
        rules.append(rf"\cmidrule(lr){{{column}-{column + width - 1}}}")
        column += width
    last = ("AVG", r"acc.\ $\Delta$", r"PPL $\Delta$", "triggers")
    names = ("Method", "FSR", *(each.heading for each in six), *last)
    lines = (r"\toprule", rf"& & {' & '.join(kinds)} \\", " ".join(rules), rf"{' & '.join(names)} \\", r"\midrule")
    return "\n".join(f"    {line}" for line in lines)


def latex_tables(rows: list[Row]) -> str:
    """Every table, rows in the order of the leaderboard."""
    tables: dict[tuple[str, str, bool], list[Row]] = {}
    for row in rows:
        tables.setdefault((row["model"], row["fingerprints"], row["trust"] == "reported"), []).append(row)
    return "\n".join([PREAMBLE, *map(_table, tables.values())])


def _table(rows: list[Row]) -> str:
    """One model and set."""
    bases = [row for row in rows if row["method"] == BASE]
    methods = [row for row in rows if row["method"] != BASE]
    judged = [row["trust"] != "claimed" for row in methods]
    columns = [_marked([shown(row) for row in methods], better, judged) for shown, better in COLUMNS]
    lines = [_line(row, [_typeset(shown(row)) for shown, _ in COLUMNS]) for row in bases]
    lines += [r"    \midrule"] if bases and methods else []
    lines += [_line(row, figures) for row, *figures in zip(methods, *columns, strict=True)]
    parts = [
        r"\begin{table}",
        r"  \centering",
        r"  \small",
        f"  \\caption{{{_caption(rows)}}}",
        f"  \\begin{{tabular}}{{l{'r' * len(COLUMNS)}}}",
        _head(),
        *lines,
        r"    \bottomrule",
        r"  \end{tabular}",
        r"\end{table}",
        "",
    ]
    return "\n".join(parts)


def _line(row: Row, figures: Sequence[str]) -> str:
    mark = r"\textsuperscript{\dag}" if row["unreliable"] else ""
    mark += r"\textsuperscript{\ddag}" if row["trust"] == "claimed" else ""
    return f"    {latex(row['method'])}{mark} & {' & '.join(figures)} \\\\"


def _marked(figures: Sequence[str], better: int, judged: Sequence[bool]) -> list[str]:
    """A column with its best and second best set off, among those that are judged: claims are not."""
    values = [_value(figure) if counts else None for figure, counts in zip(figures, judged, strict=True)]
    order = sorted({value for value in values if value is not None}, reverse=better > 0)
    marks = dict(zip(order, (r"\textbf", r"\underline"), strict=False))
    found = []
    for figure, value in zip(figures, values, strict=True):
        mark = marks.get(value) if value is not None else None
        found.append(f"{mark}{{{_typeset(figure)}}}" if mark else _typeset(figure))
    return found


def _value(figure: str) -> float | None:
    try:
        return float(figure)
    except ValueError:
        return None


def _typeset(figure: str) -> str:
    """A figure with a real minus."""
    return f"$-${latex(figure[1:])}" if figure.startswith("-") else latex(figure)


def _caption(rows: list[Row]) -> str:
    first = rows[0]
    what = f"Fingerprint set \\texttt{{{latex(first['fingerprints'])}}} in \\texttt{{{latex(first['model'])}}}: "
    if first["trust"] == "reported":
        return f"{what}sampled FSR in \\%, reported in {latex(first['source'].partition(';')[0])}."
    n = max((found.get("n", 0) for row in rows for found in row["conditions"].values()), default=0)
    what += (
        f"exact FSR in \\% over {n} fingerprints; AVG: mean of the six modifications; $\\Delta$: difference from the "
    )
    what += (
        "base, in points of accuracy and in \\% of perplexity; triggers: mean activation rate of ordinary text in \\%."
    )
    reasons = {row["method"]: row["unreliable"] for row in rows if row["unreliable"]}
    for method, reason in reasons.items():
        what += f" \\textsuperscript{{\\dag}}{latex(method)} is unreliable: {latex(reason)}"
    claimed = [row for row in rows if row["trust"] == "claimed"]
    what += " \\textsuperscript{\\ddag}Claimed by whoever handed it in." if claimed else ""
    for row in claimed:
        for place, both in cells.outside(row):
            what += f" {latex(place)}: {latex(both)}."
    return what
