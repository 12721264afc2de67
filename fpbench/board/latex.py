"""Rows as LaTeX tables, ready for a paper: one a model and fingerprint set, best in bold, second best underlined."""

from collections.abc import Sequence
from itertools import groupby

from fpbench.adversaries.conditions import modifications
from fpbench.board.columns import (
    DETECTABILITY,
    HARM,
    NAMES,
    NONE,
    PRICES,
    REMOVAL_RANK,
    Column,
    both_figures,
    comparisons,
    removal_columns,
)
from fpbench.board.escaping import latex
from fpbench.board.row import MODIFICATIONS, Row
from fpbench.records.cell import BASE

COLUMNS = [column for column in (*DETECTABILITY, *HARM) if column.latex]
PREAMBLE = r"""% Generated from records by `fpbench leaderboard --format latex`; not edited by hand.
% Needs \usepackage{booktabs} and \usepackage[T1]{fontenc}. Bold: best of the column; underlined: second best;
% figures that are equal as shown share a place. The unfingerprinted base and rows without a rank take no part.
"""


def _head() -> str:
    """Return the lines above the figures: the kinds of modification, each over its own, and every column."""
    kinds, rules, column = [], [], 3  # after method and FSR
    for family, own in groupby(modifications(name)[0].family for name in MODIFICATIONS):
        width = len(list(own))
        kinds.append(rf"\multicolumn{{{width}}}{{c}}{{{family}}}")
        rules.append(rf"\cmidrule(lr){{{column}-{column + width - 1}}}")
        column += width
    names = ("Method", *(str(column.latex) for column in COLUMNS))
    lines = (r"\toprule", rf"& & {' & '.join(kinds)} \\", " ".join(rules), rf"{' & '.join(names)} \\", r"\midrule")
    return "\n".join(f"    {line}" for line in lines)


def latex_tables(rows: Sequence[Row]) -> str:
    """Write every table, rows in the order of the leaderboard."""
    tables: dict[tuple[str, str, bool], list[Row]] = {}
    for row in rows:
        tables.setdefault((row.model, row.fingerprints, row.trust == "reported"), []).append(row)
    attacked = [[row for row in table if row.removal] for table in tables.values()]
    return "\n".join([PREAMBLE, *map(_table, tables.values()), *(_removal_table(table) for table in attacked if table)])


def _table(rows: Sequence[Row]) -> str:
    bases = [row for row in rows if row.method == BASE]
    methods = [row for row in rows if row.method != BASE]
    judged = [not row.out for row in methods]
    columns = [_marked(column, methods, judged) for column in COLUMNS]
    lines = [_line(row, [_typeset(_figure(column, row)) for column in COLUMNS]) for row in bases]
    lines += [r"    \midrule"] if bases and methods else []
    lines += [_line(row, figures) for row, *figures in zip(methods, *columns, strict=True)]
    start = [r"\begin{table}", r"  \centering", r"  \small", f"  \\caption{{{_caption(rows)}}}"]
    start += [f"  \\begin{{tabular}}{{l{'r' * len(COLUMNS)}}}", _head()]
    return "\n".join([*start, *lines, r"    \bottomrule", r"  \end{tabular}", r"\end{table}", ""])


def _removal_table(rows: Sequence[Row]) -> str:
    """Write what adversaries leave turned on its side, since there are more of them than a page is wide."""
    methods = [row for row in rows if row.method != BASE]
    reasons = {row.method: row.removal.out for row in methods if row.removal and row.removal.out}
    heads = [latex(row.method) + r"\textsuperscript{\S}" * (row.method in reasons) for row in methods]
    lines = [rf"    {' & '.join(['', *heads])} \\", r"    \midrule"]
    for column in removal_columns(methods):
        if column in NAMES:
            continue
        if column is REMOVAL_RANK:
            figures = [latex(NONE if row.removal and row.removal.out else column.text(row)) for row in methods]
        elif column in PRICES:
            figures = [latex(column.text(row).partition(" (")[0]) for row in methods]
        else:
            figures = _marked(column, methods, [row.method not in reasons for row in methods])
        lines.append(rf"    {latex(column.name)} & {' & '.join(figures)} \\")
    caption = (
        f"{_what(rows[0])}exact FSR in \\% that an adversary leaves who gives up at most 10\\,\\% of the quality of "
        "long answers; worst: of all up to a threat level; removal price: quality lost, in \\%, where ownership can no "
        "longer be claimed at $10^{-3}$."
    )
    if any(row.removal and row.removal.thief == "oracle" for row in methods):
        caption += " With one seed, adversaries tune on the very fingerprints that are scored."
    if incomplete := [row.method for row in methods if row.removal and row.removal.missing]:
        caption += f" Incomplete, so that an adversary may do better: {latex(', '.join(incomplete))}."
    if reasons:
        said = "; ".join(f"{method} ({reason})" for method, reason in reasons.items())
        caption += f" \\textsuperscript{{\\S}}Not ranked: {latex(said)}."
    start = [r"\begin{table}", r"  \centering", r"  \small", f"  \\caption{{{caption}}}"]
    start += [f"  \\begin{{tabular}}{{l{'r' * len(methods)}}}", r"    \toprule"]
    return "\n".join([*start, *lines, r"    \bottomrule", r"  \end{tabular}", r"\end{table}", ""])


def _line(row: Row, figures: Sequence[str]) -> str:
    mark = r"\textsuperscript{\dag}" if row.unreliable else ""
    mark += r"\textsuperscript{\ddag}" if row.trust == "claimed" else r"\textsuperscript{\S}" if row.out else ""
    return f"    {latex(row.method)}{mark} & {' & '.join(figures)} \\\\"


def _figure(column: Column, row: Row) -> str:
    """Return the figure alone, without unit, interval or counts; the base's own figures stay in their brackets."""
    return column.text(row).split(" ")[0]


def _marked(column: Column, rows: Sequence[Row], judged: Sequence[bool]) -> list[str]:
    """Return a column with its best and second best set off; rows without a rank, such as claims, are not judged."""
    figures = [_figure(column, row) for row in rows]
    values = [_value(figure) if own else None for figure, own in zip(figures, judged, strict=True)]
    order = sorted({value for value in values if value is not None}, reverse=column.better > 0)
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
    # With a real minus.
    return f"$-${latex(figure[1:])}" if figure.startswith("-") else latex(figure)


def _what(row: Row) -> str:
    return f"Fingerprint set \\texttt{{{latex(row.fingerprints)}}} in \\texttt{{{latex(row.model)}}}: "


def _caption(rows: Sequence[Row]) -> str:
    first = rows[0]
    what = _what(first)
    if first.source is not None:
        return f"{what}sampled FSR in \\%, reported in {latex(first.source.partition(';')[0])}."
    n = max((found.n or 0 for row in rows for found in row.conditions.values()), default=0)
    what += (
        f"exact FSR in \\% over {n} fingerprints; AVG: mean of the six modifications; $\\Delta$: difference from the "
        "base, in points of accuracy and in \\% of perplexity; triggers: mean activation rate of ordinary text in \\%."
    )
    for method, reason in {row.method: row.unreliable for row in rows if row.unreliable}.items():
        what += f" \\textsuperscript{{\\dag}}{latex(method)} is unreliable: {latex(reason)}"
    if out := [f"{row.method} ({row.out})" for row in rows if row.out and row.trust != "claimed"]:
        what += f" \\textsuperscript{{\\S}}Not ranked: {latex('; '.join(out))}."
    claimed = [row for row in rows if row.trust == "claimed"]
    what += " \\textsuperscript{\\ddag}Claimed by whoever handed it in." if claimed else ""
    for row in claimed:
        for each in comparisons(row):
            if not each.within:
                what += f" {latex(f'{row.method}, {each.cell.condition}')}: {latex(both_figures(each))}."
    return what
