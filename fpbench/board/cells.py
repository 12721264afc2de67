"""One cell of a table: how each figure of a row is written."""

import re
from collections.abc import Sequence
from typing import Any

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
