"""The tables of the page: what each column shows, is sorted by and says on hover."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from fpbench.board.rows import MODIFICATIONS

# One cell of a table: how each figure of a row is written.


Row = dict[str, Any]
NONE = "–"
FAILED = "failed"
BANDS = ("normal", "marginal", "abnormal")


def percent(value: float | None, digits: int = 1, sign: str = "") -> str:
    """A fraction in per cent, or a dash."""
    return NONE if value is None else f"{100 * value:{sign}.{digits}f}"


def with_minus(text: str) -> str:
    """A figure with a real minus in place of the hyphen."""
    return re.sub(r"-(?=\d)", "−", text)


def interval(bounds: Sequence[float] | None) -> str:
    """`` [low, high]`` in per cent, where there is one."""
    return "" if bounds is None else f" [{percent(bounds[0], 0)}, {percent(bounds[1], 0)}]"


def fsr(row: Row, condition: str) -> str:
    """Exact FSR under a condition, with its interval over fingerprints."""
    found = row["conditions"].get(condition)
    if found is None:
        return NONE
    if found["fsr"] is None:
        return FAILED
    return percent(found["fsr"]) + interval(found.get("interval")) + _rerun(row, condition)


def _rerun(row: Row, condition: str) -> str:
    """What a re-run gave in place of a claimed figure, where it is another."""
    found = (row.get("checked") or {}).get("compared", ())
    outside = [each for each in found if each["condition"] == condition and not each["within"]]
    figures = [FAILED if each["rerun"] is None else percent(each["rerun"]) for each in outside]
    return f" (re-run: {', '.join(figures)})" if figures and row["trust"] == "claimed" else ""


def trust(row: Row) -> str:
    """How far the row's figures can be believed; contested ones are unreliable."""
    parts = [str(row["trust"])]
    if found := row.get("checked"):
        outside = f"{found['outside']} of them outside" if found["outside"] else "all within"
        parts += [f"{len(found['compared'])}/{found['of']} cells compared, {outside}"] if found["compared"] else []
    return ", ".join(parts + ["unreliable"] * bool(row["unreliable"]))


def both_figures(row: Row) -> list[tuple[str, str]]:
    """Cells of a row that were handed in and measured here, each with both figures."""
    found = (row.get("checked") or {}).get("compared", ())
    names = [row["model"], row["fingerprints"], row["method"]]
    return [(" · ".join([*names, each["condition"], each["metric"]]), _both(each)) for each in found]


def outside(row: Row) -> list[tuple[str, str]]:
    """Those of them that are outside what is allowed: method and condition, with both figures."""
    found = (row.get("checked") or {}).get("compared", ())
    return [(f"{row['method']}, {each['condition']}", _both(each)) for each in found if not each["within"]]


def _both(each: Row) -> str:
    rerun = FAILED if each["rerun"] is None else percent(each["rerun"])
    rule = "drawn anew, shown only" if each["allowed"] is None else f"{percent(each['allowed'], 0)} points allowed"
    verdict = "" if each["within"] else ", OUTSIDE"
    return f"claimed {percent(each['claimed'])} %, re-run {rerun} % ({rule}{verdict})"


def average(row: Row) -> str:
    """Mean of the six modified conditions likewise."""
    return percent(row["avg"]) + interval(row.get("avg_interval"))


def greedy(row: Row) -> str:
    """k/n of greedy decoding at origin."""
    found = row["conditions"].get("origin", {})
    return f"{found['greedy']}/{found['n']}" if "greedy" in found else NONE


def failed(row: Row, metric: str) -> bool:
    """Whether a measurement of this row could not be made."""
    return any(failure["metric"] == metric for failure in row["failed"])


def missing(row: Row, metric: str) -> str:
    """What stands where there is no figure: that its measurement failed, or a dash."""
    return FAILED if failed(row, metric) else NONE


def accuracy(row: Row) -> str:
    """Accuracy as a difference from the base with its interval, or (itself)."""
    found = row["utility"]
    if found is None or found["accuracy"] is None:
        return missing(row, "utility")
    difference = found.get("difference", {})
    if "accuracy" not in difference:
        return f"({percent(found['accuracy'])})"
    return f"{percent(difference['accuracy'], 1, '+')}{interval(difference.get('interval'))}"


def perplexity(row: Row) -> str:
    """Token perplexity likewise."""
    found = row["utility"]
    if found is None or not found["token_perplexity"]:
        return missing(row, "utility")
    difference = found.get("difference", {})
    if "token_perplexity" not in difference:
        return f"({found['token_perplexity']['perplexity']:.2f})"
    return f"{percent(difference['token_perplexity'], 1, '+')} %{interval(difference.get('token_perplexity_interval'))}"


def triggers(row: Row) -> str:
    """Mean rate of accidental triggers, and how many of the set's triggers any query activates, with the interval."""
    found = row["triggers"]
    if found is None:
        return missing(row, "triggers")
    return f"{percent(found['average'], 2)} ({found['activated']}/{found['n']}{interval(found['interval'])})"


def near(row: Row) -> str:
    """Mean rate of near triggers, and how many of them are activated, with the interval."""
    found = row["near"]
    if found is None:
        return missing(row, "near")
    return f"{percent(found['rate'], 2)} ({found['greedy']}/{found['n']}{interval(found['interval'])})"


def bands(row: Row) -> str:
    """Triggers of normal, marginal and abnormal perplexity."""
    found = row["bands"]
    return NONE if found is None else "/".join(str(found["counts"][band]) for band in BANDS)


def trigger_perplexity(row: Row) -> str:
    """Mean perplexity of the set's triggers under the base."""
    found = row["bands"]
    return NONE if found is None else f"{found['trigger_mean']:.0f}"


def claim(row: Row) -> str:
    """Matches needed, and the power to get them."""
    found = row["claim"]
    if found is None:
        return NONE
    if found["threshold"] is None:
        return "impossible"
    return f"{found['threshold']} of {found['n']}, {percent(found['power'], 0)} %"


def cost(row: Row) -> str:
    """Seconds and peak memory of the injection."""
    found = row["cost"]
    if found is None:
        return missing(row, "cost")
    return f"{found['seconds']:.1f} s, {found['peak_memory'] / 2**20:.0f} MiB"


def rank(row: Row) -> str:
    """The rank, or a dash."""
    return NONE if row["rank"] is None else str(row["rank"])


Value = float | str | None


def _nothing(row: Row) -> str:
    return ""


@dataclass(frozen=True)
class Column:
    """A column beside the methods.

    Attributes:
        name: its header.
        hint: what it shows, in a sentence.
        text: a row's figure as it is written.
        value: what it is sorted by; ``None`` sorts last.
        note: more about a figure, on hover.
        condition: which condition it belongs to, if to one.
        submitted: whether it holds what a submitter wrote.
    """

    name: str
    hint: str
    text: Callable[[Row], str]
    value: Callable[[Row], Value]
    note: Callable[[Row], str] = _nothing
    condition: str | None = None
    submitted: bool = False


@dataclass(frozen=True)
class Cell:
    """One cell: its figure, what stands in brackets after it, and the rest of its column's attributes."""

    text: str
    aside: str
    value: Value
    note: str
    condition: str | None
    submitted: bool


@dataclass(frozen=True)
class Line:
    """One row of a table."""

    row: Row
    cells: list[Cell]


@dataclass(frozen=True)
class Table:
    """One table; its first column are the methods."""

    name: str
    title: str
    caption: str
    columns: list[Column]
    lines: list[Line]


def _table(name: str, title: str, caption: str, columns: list[Column], rows: Sequence[Row]) -> Table:
    method = Column("method", "What injected the fingerprints.", lambda row: row["method"], lambda row: row["method"])
    lines = [Line(row, [_cell(column, row) for column in columns]) for row in rows]
    return Table(name, title, caption, [method, *columns], lines)


def _cell(column: Column, row: Row) -> Cell:
    text, aside = column.text(row), ""
    if not column.submitted:
        text = with_minus(text)
        # An interval or a count stands in brackets after its figure.
        if found := re.fullmatch(r"(.+?) ([\[(].*)", text):
            text, aside = found.groups()
    return Cell(text, aside, column.value(row), column.note(row), column.condition, column.submitted)


MODEL = Column("model", "Whose weights.", lambda row: row["model"], lambda row: row["model"], submitted=True)
SET = Column(
    "set",
    "The fingerprints: if (garbled), nlf (natural language), cf (code-mixed), or a file of the user's.",
    lambda row: row["fingerprints"],
    lambda row: row["fingerprints"],
    submitted=True,
)
TRUST = Column(
    "trust",
    "Where the figures come from.",
    lambda row: row["trust"],
    lambda row: row["trust"],
    lambda row: trust(row) if row.get("checked") else "",
)
RANK = Column(
    "rank",
    "Within the same model and set; equal ranks are ties, not significantly behind the best row.",
    rank,
    lambda row: row["rank"],
)
AVERAGE = Column(
    "AVG", "Mean FSR of the six modifications, in %.", average, lambda row: row["avg"], lambda row: _average(row)
)


def _fsr(name: str, condition: str) -> Column:
    hint = "of the unmodified checkpoint" if condition == "origin" else f"after {condition}"
    return Column(
        name,
        f"Fingerprint success rate {hint}, in %: exact, or sampled where reported.",
        partial(fsr, condition=condition),
        lambda row: row["conditions"].get(condition, {}).get("fsr"),
        partial(_condition_note, condition=condition),
        condition,
    )


def _condition_note(row: Row, condition: str) -> str:
    found = row["conditions"].get(condition, {})
    if found.get("reason"):
        return str(found["reason"])
    if found.get("interval") is None:
        return ""
    low, high = (percent(bound) for bound in found["interval"])
    kept = found.get("retention")
    return f"95 % interval over {found['n']} fingerprints: {low} to {high} %; greedy {found['greedy']}/{found['n']}" + (
        f"; {percent(kept)} % of origin kept" if kept is not None else ""
    )


FSR = _fsr("FSR", "origin")
SIX = [_fsr(name, name) for name in MODIFICATIONS]


def _average(row: Row) -> str:
    if row.get("avg_interval") is None:
        return ""
    low, high = (percent(bound) for bound in row["avg_interval"])
    return f"95 % interval over fingerprints: {low} to {high} %"


def _greedy(row: Row) -> Value:
    found = row["conditions"].get("origin", {})
    return found["greedy"] / found["n"] if found.get("n") else None


def _difference(name: str) -> Callable[[Row], Value]:
    return lambda row: ((row["utility"] or {}).get("difference") or {}).get(name)


def _interval_note(name: str, unit: str) -> Callable[[Row], str]:
    def note(row: Row) -> str:
        bounds = _difference(name)(row)
        if not isinstance(bounds, list):
            return ""
        low, high = (with_minus(percent(bound, 1, "+")) for bound in bounds)
        return f"95 % interval: {low} to {high} {unit}"

    return note


def _within(name: str, figure: str) -> Callable[[Row], Value]:
    return lambda row: None if row[name] is None else row[name][figure]


def _count_note(name: str, count: str, what: str) -> Callable[[Row], str]:
    def note(row: Row) -> str:
        found = row[name]
        if found is None:
            return ""
        low, high = (percent(bound) for bound in found["interval"])
        return f"{found[count]} of {found['n']} {what}; 95 % interval: {low} to {high} %"

    return note


ACCURACY = Column(
    "accuracy Δ",
    "Mean accuracy of the tasks less the base's, in points, paired by example; in (brackets) the value itself.",
    accuracy,
    _difference("accuracy"),
    _interval_note("interval", "points"),
)
PERPLEXITY = Column(
    "perplexity Δ",
    "Token perplexity against the base's, in %, paired by window; in (brackets) the value itself.",
    perplexity,
    _difference("token_perplexity"),
    _interval_note("token_perplexity_interval", "%"),
)
HARM = [
    ACCURACY,
    PERPLEXITY,
    Column(
        "triggers",
        "Mean rate, in %, at which eight kinds of ordinary text are answered with a target (and how many of the set's "
        "triggers any of them activates).",
        triggers,
        _within("triggers", "average"),
        _count_note("triggers", "activated", "triggers activated"),
    ),
    Column(
        "near",
        "The same for texts of the set's make that were never injected (and how many of these).",
        near,
        _within("near", "rate"),
        _count_note("near", "greedy", "texts activate"),
    ),
    Column(
        "bands",
        "Triggers of normal, marginal and abnormal perplexity under the unfingerprinted model.",
        bands,
        lambda row: None if row["bands"] is None else float(row["bands"]["counts"]["abnormal"]),
    ),
    Column(
        "claim",
        "Matches needed to claim ownership at 1e-3, and the power to get them from one response a fingerprint.",
        claim,
        _within("claim", "power"),
    ),
    Column("cost", "Seconds and peak memory of the injection.", cost, _within("cost", "seconds")),
]


def detectability(rows: Sequence[Row]) -> Table:
    """What survives."""
    greedy_column = Column("greedy", "Fingerprints that greedy decoding answers, k of n.", greedy, _greedy)
    columns = [RANK, MODEL, SET, TRUST, greedy_column, FSR, *SIX, AVERAGE]
    caption = "FSR in % with its 95 % interval over fingerprints: exact where measured, sampled where reported."
    return _table("detectability", "Detectability", caption, columns, rows)


def harm(rows: Sequence[Row]) -> Table:
    """What it costs the model, how it gives itself away, what it takes."""
    caption = "Differences from the unfingerprinted base; rates in %; 95 % intervals in square brackets."
    return _table("harm", "Harmlessness, imperceptibility, cost", caption, [MODEL, SET, TRUST, *HARM], rows)


def further(rows: Sequence[Row], conditions: Sequence[str]) -> Table:
    """Conditions outside the protocol's six."""
    columns = [MODEL, SET, *[_fsr(name, name) for name in conditions]]
    caption = "Outside the six and outside AVG; exact FSR in % with its 95 % interval."
    return _table("further", "Further conditions", caption, columns, rows)


def compared(rows: Sequence[Row]) -> Table:
    """The paper's figures and ours, method by method."""
    order = sorted(rows, key=lambda row: (row["method"], row["trust"] != "reported"))
    caption = (
        "The authors' sampled figures beside exact ones measured here, method by method. Only rows of one model can "
        "agree in value; across models they can agree in direction."
    )
    columns = [TRUST, MODEL, SET, FSR, *SIX, AVERAGE, ACCURACY, PERPLEXITY]
    return _table("compared", "Reported against reproduced", caption, columns, order)


def legend(tables: Sequence[Table]) -> list[Column]:
    """Every column once, for the notes; the six modifications and further conditions speak for themselves."""
    found = {each.name: each for table in tables for each in table.columns if each.condition in (None, "origin")}
    del found["trust"]
    return list(found.values())
