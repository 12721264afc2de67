"""Rows as tables: Markdown, CSV and JSON, the same bytes from the same records on any machine."""

import csv
import io
import json
from collections.abc import Callable
from typing import Any

from tabulate import tabulate

from fpbench.board.rows import MODIFICATIONS
from fpbench.errors import InputError

Row = dict[str, Any]
NONE = "–"
FAILED = "failed"


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
    parts += ["", "Harmlessness, imperceptibility, cost", _table(rows, HARM), "", LEGEND]
    if failures := _failures(rows):
        parts += ["", "Failed cells", *failures]
    return "\n".join(parts)


LEGEND = """\
AVG: mean of the six modifications. Δ: difference from the base, paired by example; in (brackets) the value itself.
triggers: mean rate, in %, at which eight kinds of ordinary text are answered with a target; near: the same for texts
of the set's make. bands: triggers of normal/marginal/abnormal perplexity. claim: matches needed for 1e-3, and the
power to get them from one response a fingerprint. Equal ranks are ties: not significantly behind the best row."""


def _percent(value: float | None, digits: int = 1, sign: str = "") -> str:
    return NONE if value is None else f"{100 * value:{sign}.{digits}f}"


def _interval(found: Row) -> str:
    return f" [{_percent(found['interval'][0], 0)}, {_percent(found['interval'][1], 0)}]" if "interval" in found else ""


def _fsr(row: Row, condition: str) -> str:
    found = row["conditions"].get(condition)
    if found is None:
        return NONE
    return FAILED if found["fsr"] is None else _percent(found["fsr"])


def _origin(row: Row) -> str:
    found = row["conditions"].get("origin")
    if found is None or found["fsr"] is None:
        return _fsr(row, "origin")
    return _percent(found["fsr"]) + _interval(found)


def _greedy(row: Row) -> str:
    found = row["conditions"].get("origin", {})
    return f"{found['greedy']}/{found['n']}" if "greedy" in found else NONE


def _failed(row: Row, metric: str) -> bool:
    return any(failure["metric"] == metric for failure in row["failed"])


def _accuracy(row: Row) -> str:
    found = row["utility"]
    if found is None or found["accuracy"] is None:
        return FAILED if _failed(row, "utility") else NONE
    difference = found.get("difference", {})
    if "accuracy" not in difference:
        return f"({_percent(found['accuracy'])})"
    return f"{_percent(difference['accuracy'], 1, '+')}{_interval(difference)}"


def _perplexity(row: Row) -> str:
    found = row["utility"]
    if found is None or not found["token_perplexity"]:
        return FAILED if _failed(row, "utility") else NONE
    difference = found.get("difference", {})
    if "token_perplexity" not in difference:
        return f"({found['token_perplexity']['perplexity']:.2f})"
    return f"{_percent(difference['token_perplexity'], 1, '+')} %"


def _rate(row: Row, metric: str) -> str:
    found = row[metric]
    if found is None:
        return FAILED if _failed(row, metric) else NONE
    return _percent(found["average" if metric == "triggers" else "rate"], 2)


def _bands(row: Row) -> str:
    found = row["bands"]
    return NONE if found is None else "/".join(str(count) for count in found["counts"].values())


def _claim(row: Row) -> str:
    found = row["claim"]
    if found is None:
        return NONE
    if found["threshold"] is None:
        return "impossible"
    return f"{found['threshold']} of {found['n']}, {_percent(found['power'], 0)} %"


def _cost(row: Row) -> str:
    found = row["cost"]
    if found is None:
        return FAILED if _failed(row, "cost") else NONE
    return f"{found['seconds']:.1f} s, {found['peak_memory'] / 2**20:.0f} MiB"


def _rank(row: Row) -> str:
    return NONE if row["rank"] is None else str(row["rank"])


Column = tuple[str, Callable[[Row], str]]


def _modification(name: str) -> Column:
    return name, lambda row: _fsr(row, name)


NAMES: list[Column] = [
    ("model", lambda row: row["model"]),
    ("method", lambda row: row["method"]),
    ("set", lambda row: row["fingerprints"]),
]
DETECTABILITY: list[Column] = [
    ("rank", _rank),
    *NAMES,
    ("trust", lambda row: row["trust"]),
    ("greedy", _greedy),
    ("FSR", _origin),
    *[_modification(name) for name in MODIFICATIONS],
    ("AVG", lambda row: _percent(row["avg"])),
]
HARM: list[Column] = [
    *NAMES,
    ("accuracy Δ", _accuracy),
    ("perplexity Δ", _perplexity),
    ("triggers", lambda row: _rate(row, "triggers")),
    ("near", lambda row: _rate(row, "near")),
    ("bands", _bands),
    ("claim", _claim),
    ("cost", _cost),
]


def _table(rows: list[Row], columns: list[Column]) -> str:
    cells = [[_escape(shown(row)) for _, shown in columns] for row in rows]
    return str(tabulate(cells, headers=[name for name, _ in columns], tablefmt="github", disable_numparse=True))


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
        parts += [_table(measured, DETECTABILITY), "", "## Harmlessness, imperceptibility, cost", ""]
        parts += [_table(measured, HARM), "", LEGEND, ""]
    if failures := _failures(measured):
        parts += ["## Failed cells", "", *failures, ""]
    if reported:
        parts += ["## Reported", "", f"{reported[0]['source']}. Sampled FSR in %.", ""]
        columns = [column for column in DETECTABILITY if column[0] != "rank"]
        parts += [_table(reported, [*columns, *HARM[3:5]]), ""]
    return "\n".join(parts)


def _csv(rows: list[Row]) -> str:
    columns = [*DETECTABILITY, *HARM[3:]]
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
    return json.dumps({"protocol": 1, "rows": rows}, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
