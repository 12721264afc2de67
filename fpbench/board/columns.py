"""The columns of every table: Markdown, CSV, LaTeX, the page and studies walk these lists."""

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

from fpbench.adversaries.conditions import JOINT, class_of, level, modifications
from fpbench.board.checks import Comparison
from fpbench.board.removal import WORST, Product, Removal, Thief, in_order
from fpbench.board.row import MODIFICATIONS, Failure, Row, Utility, further_conditions
from fpbench.metrics.lettered import TASK as LETTERED
from fpbench.metrics.measure import METRICS, Metric
from fpbench.metrics.removal import BUDGETS, RemovalPrice
from fpbench.metrics.statistics import BANDS
from fpbench.records.cell import ORIGIN, Cell

NONE = "–"
FAILED = "failed"
NO_EFFECT = "no effect"  # of a modification on this checkpoint
Value = float | str | None


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        text: a row's figure as it is written; an interval or a count stands in brackets after it.
        value: what it is sorted by; ``None`` sorts last.
        note: more about a figure, on hover.
        brief: the text on the page, where the rest is in the note; by default the whole text.
        submitted: whether it holds what a submitter wrote.
        latex: its heading in LaTeX; without one it is not shown there.
        better: +1 where more is better, -1 where less is.
    """

    name: str
    help: str
    text: Callable[[Row], str]
    value: Callable[[Row], Value]
    note: Callable[[Row], str] = lambda row: ""
    brief: Callable[[Row], str] | None = None
    condition: str | None = None
    submitted: bool = False
    latex: str | None = None
    better: int = 0


# How figures are written.


def percent(value: float | None, digits: int = 1, sign: str = "") -> str:
    """Write a fraction in per cent, or a dash; what rounds to zero has no minus."""
    return NONE if value is None else f"{100 * value:{sign}z.{digits}f}"


def with_minus(text: str) -> str:
    """Write a figure with a real minus in place of the hyphen."""
    return re.sub(r"-(?=\d)", "−", text)


def interval(bounds: Sequence[float] | None, digits: int = 1) -> str:
    """Write `` [low, high]`` in per cent, with the decimals of the estimate before it, where there is one."""
    return "" if bounds is None else f" [{percent(bounds[0], digits)}, {percent(bounds[1], digits)}]"


def missing(row: Row, metric: str) -> str:
    """Write what stands where there is no figure: that its measurement failed, or a dash."""
    return FAILED if any(failure.metric == metric for failure in row.failed) else NONE


def _spelled_out(bounds: Sequence[float] | None, digits: int = 1, sign: str = "") -> str:
    return "" if bounds is None else with_minus(" to ".join(percent(bound, digits, sign) for bound in bounds))


def _figure(metric: str, name: str) -> Callable[[Row], Value]:
    return lambda row: getattr(getattr(row, metric), name, None)


# Whose figures they are.

MODEL = Column("model", "Whose weights.", attrgetter("model"), attrgetter("model"), submitted=True)
METHOD = Column("method", "What injected the fingerprints.", attrgetter("method"), attrgetter("method"), submitted=True)
SET = Column(
    "set",
    "The fingerprints: if (garbled), nlf (natural language), cf (code-mixed), or a file of the user's.",
    attrgetter("fingerprints"),
    attrgetter("fingerprints"),
    submitted=True,
)
NAMES = [MODEL, METHOD, SET]


def _kinds(row: Row) -> dict[str, list[str]]:
    """Return the names of a row's data sets by where they were read from; several places of one are all named."""
    found: dict[str, list[str]] = {}
    for name, origins in row.data.items():
        for kind in sorted({origin.partition(":")[0] for origin in origins}):
            found.setdefault(kind, []).append(name)
    return dict(sorted(found.items()))


def _data(row: Row) -> str:
    kinds = _kinds(row)
    counted = (f"{kind} {len(names)}" for kind, names in kinds.items())
    return next(iter(kinds), NONE) if len(kinds) < 2 else ", ".join(counted)


def _data_note(row: Row) -> str:
    return "; ".join(f"{name}: {' / '.join(origins)}" for name, origins in row.data.items())


DATA = Column(
    "data",
    "Where the data sets were read from, and how many of each: hub, mirror of it, stand-in (other data in the place of "
    "the hub's), bundled (toy data of the micro model), or file (of the user's).",
    _data,
    _data,
    note=_data_note,
    submitted=True,
)
RANK = Column(
    "rank",
    "Within the same model and set, of rows within the bars of harmlessness; equal ranks are ties: not behind the best "
    "row both significantly and by more than 1 point. out: why a row has no rank.",
    lambda row: f"out: {row.out}" if row.out else NONE if row.rank is None else str(row.rank),
    attrgetter("rank"),
    note=lambda row: row.out or "",
    brief=lambda row: "out" if row.out else NONE if row.rank is None else str(row.rank),
)


def _origin(row: Row) -> str:
    """Write whose figures they are, and that a smoke run measured them on a few items only."""
    limited = f", limited to {row.limited} item{'s' * (row.limited != 1)}" if row.limited is not None else ""
    return row.trust + limited


def _trust(row: Row) -> str:
    parts = [_origin(row)]
    if row.checked and row.checked.compared:
        outside = f"{row.checked.outside} of them outside" if row.checked.outside else "all within"
        parts.append(f"{len(row.checked.compared)}/{row.checked.of} cells compared, {outside}")
    if row.unconfined:
        parts.append(f"UNCONFINED ({', '.join(row.unconfined)} not kept)")
    parts += [f"update like {name}'s (cosine {found:.4f})" for name, found in sorted((row.alike or {}).items())]
    return ", ".join(parts + ["unreliable"] * bool(row.unreliable))


TRUST = Column(
    "trust",
    "Where the figures come from.",
    _trust,
    attrgetter("trust"),
    note=lambda row: _trust(row) if row.checked or row.unconfined or row.alike else "",
    brief=lambda row: f"{_origin(row)}, UNCONFINED" if row.unconfined else _origin(row),
)
UNRELIABLE = Column(
    "unreliable", "Why it is contested.", lambda row: row.unreliable or NONE, attrgetter("unreliable"), submitted=True
)

# What survives.


def _greedy(row: Row) -> Value:
    found = row.conditions.get(ORIGIN)
    return None if found is None or found.greedy is None or not found.n else found.greedy / found.n


def _greedy_text(row: Row) -> str:
    found = row.conditions.get(ORIGIN)
    return NONE if found is None or found.greedy is None else f"{found.greedy}/{found.n}"


GREEDY = Column("greedy", "Fingerprints that greedy decoding answers, k of n.", _greedy_text, _greedy)


def fsr_column(condition: str, name: str = "", latex: str | None = None) -> Column:
    """Return the column of the exact FSR under a condition, with its interval over fingerprints."""

    def text(row: Row) -> str:
        found = row.conditions.get(condition)
        if found is None or found.fsr is None:
            return NONE if found is None else FAILED
        if found.no_effect:
            return NO_EFFECT
        # A claimed figure that a re-run did not confirm has the other one beside it.
        outside = [each for each in comparisons(row) if each.cell.condition == condition and not each.within]
        reruns = ", ".join(_rerun(each) for each in outside) if row.trust == "claimed" else ""
        hidden = found.lenient is not None and percent(found.lenient) != percent(found.fsr)
        more = f" (leniently: {percent(found.lenient)})" if hidden else ""
        own = "" if found.own_tokenizer is None else f" (own tokenizer: {percent(found.own_tokenizer)})"
        return percent(found.fsr) + interval(found.interval) + more + own + (f" (re-run: {reruns})" if reruns else "")

    def value(row: Row) -> Value:
        found = row.conditions.get(condition)
        return None if found is None or found.no_effect else found.fsr

    def note(row: Row) -> str:
        found = row.conditions.get(condition)
        if found is None or found.interval is None:
            return found.reason or "" if found else ""
        if found.no_effect:
            return f"{found.no_effect}; FSR {percent(found.fsr)} %"
        kept = "" if found.retention is None else f"; retention {percent(found.retention)} %"
        between = f"95 % interval over {found.n} fingerprints: {_spelled_out(found.interval)} %"
        return f"{between}; greedy {found.greedy}/{found.n}{kept}"

    where = "of the unmodified checkpoint" if condition == ORIGIN else f"after {condition}"
    help = (
        f"Fingerprint success rate {where}, in %: exact, or sampled where reported; (leniently: …) where case, "
        "invisible characters or marks before the answer hide matches."
    )
    return Column(name or condition, help, text, value, note, condition=condition, latex=latex, better=+1)


FSR = fsr_column(ORIGIN, "FSR", latex="FSR")
SIX = [fsr_column(condition, latex=modifications(condition)[0].heading) for condition in MODIFICATIONS]
AVERAGE = Column(
    "AVG",
    "Mean FSR of the six modifications, in %.",
    lambda row: percent(row.avg) + interval(row.avg_interval),
    attrgetter("avg"),
    note=lambda row: f"95 % interval over fingerprints: {_spelled_out(row.avg_interval)} %" if row.avg_interval else "",
    latex="AVG",
    better=+1,
)
DETECTABILITY = [RANK, *NAMES, DATA, TRUST, GREEDY, FSR, *SIX, AVERAGE]


def further_columns(rows: Sequence[Row]) -> list[Column]:
    """Return a column for each condition outside the protocol's seven."""
    return [fsr_column(condition) for condition in further_conditions(rows)]


# What is left of it, and what removal costs.

ONE_IN_A_HUNDRED, ONE_IN_TEN = (f"{budget:g}" for budget in BUDGETS)  # as rows name the budgets
INCOMPLETE = "incomplete"


def _remarks(row: Row, missing: Sequence[str], claimed: str = "") -> str:
    """Write in brackets what weakens a figure: it is a claim, not everything was tried, the thief knew too much."""
    oracle = row.removal is not None and row.removal.thief == "oracle"
    found = [claimed] * bool(claimed) + [INCOMPLETE] * bool(missing) + ["oracle"] * oracle
    return f" ({', '.join(found)})" if found else ""


def _left_column(
    name: str, help: str, thief: Callable[[Removal], Thief | None], claimed: Callable[[Removal], str] = lambda of: ""
) -> Column:
    """Return the column of what a thief leaves who gives up at most 10 % of long answers; whether that is a claim."""

    def found(row: Row) -> Thief | None:
        return thief(row.removal) if row.removal else None

    def text(row: Row) -> str:
        if (of := found(row)) is None or not (of.within or of.missing):
            return NONE
        if not of.within:
            return INCOMPLETE
        left = of.within[ONE_IN_TEN]
        remarks = _remarks(row, of.missing, claimed(row.removal) if row.removal else "")
        return percent(left.fsr) + interval(left.interval) + remarks

    def value(row: Row) -> Value:
        of = found(row)
        return of.within[ONE_IN_TEN].fsr if of and of.within else None

    def note(row: Row) -> str:
        if (of := found(row)) is None:
            return ""
        said = []
        if of.within:
            left, less = of.within[ONE_IN_TEN], of.within[ONE_IN_A_HUNDRED]
            said = [
                f"by {', '.join(dict.fromkeys(left.chosen))} at a price of {percent(left.price)} %",
                f"95 % interval: {_spelled_out(left.interval)} %",
                f"within 1 %: {percent(less.fsr)} %",
            ]
        if of.edge:
            said.append(f"tuned on these very fingerprints: {percent(of.edge[ONE_IN_TEN])} %")
        if of.missing:
            said.append(f"failed or not measured: {', '.join(of.missing)}")
        return "; ".join(said)

    return Column(name, help, text, value, note, better=+1)


def _price_column(product: Product, what: str) -> Column:
    """Return the column of a removal price, as the bracket of the doses between which the claim is lost."""

    def found(row: Row) -> tuple[RemovalPrice | None, Sequence[str]]:
        if (of := row.removal) is None:
            return None, ()
        return (of.long, of.missing) if product == "long" else (of.short, of.unpriced)

    def text(row: Row) -> str:
        price, missing = found(row)
        if price is None:
            return NONE
        if price.high is None and missing:
            return INCOMPLETE + _remarks(row, ())
        low, high = percent(price.low), percent(price.high)
        shown = "> 25" if price.high is None else f"≤ {high}" if missing else high if low == high else f"{low}–{high}"
        return f"{shown} %{_remarks(row, missing)}"

    def value(row: Row) -> Value:
        price, missing = found(row)
        # A censored one stands above every price, and one that may yet be found nowhere.
        return None if price is None or (missing and price.high is None) else 1.0 if price.high is None else price.high

    def note(row: Row) -> str:
        _, missing = found(row)
        return f"failed or not measured: {', '.join(missing)}" if missing else ""

    help = (
        f"What a thief who serves {what} loses, in % of its quality, until ownership can be claimed less often than "
        "every other time: between the last dose at which it can be claimed and the first at which it cannot. "
        "> 25 %: no dose that was tried does it for less."
    )
    return Column(f"removal price, {product}", help, text, value, note, better=+1)


def _removal_rank(row: Row) -> Value:
    return row.removal.rank if row.removal else None


def _removal_rank_text(row: Row) -> str:
    if row.removal is not None and row.removal.out:
        return f"out: {row.removal.out}"
    found = _removal_rank(row)
    return NONE if found is None else str(found)


REMOVAL_RANK = Column(
    "removal rank",
    "As rank, by what the removal of each fingerprint costs, at most 25 %; out: why a row has no rank.",
    _removal_rank_text,
    _removal_rank,
)
PRICES = [_price_column("long", "long answers"), _price_column("short", "short answers")]


def _description(adversary: str) -> str:
    """Return what the adversary does, in its own words, and its threat level."""
    said = (inspect.getdoc(class_of(name)) or "" for name in adversary.split(JOINT))
    does = " ".join(each.partition("\n")[0] for each in said)
    return f"{does} Level {level(adversary)}; FSR in % where it costs at most 10 % of long answers."


def removal_columns(rows: Sequence[Row]) -> list[Column]:
    """Return the columns of the third table, or none where no row was attacked."""
    attacked = [row.removal for row in rows if row.removal]
    if not attacked:
        return []
    names = in_order({name for each in attacked for name in (*each.adversaries, *each.claimed)})

    def alone(name: str) -> Callable[[Removal], Thief | None]:
        return lambda found: found.claimed[name].thief if name in found.claimed else found.adversaries.get(name)

    def told(name: str) -> Callable[[Removal], str]:
        return lambda found: found.claimed[name].told if name in found.claimed else ""

    def upto(most: str) -> Callable[[Removal], Thief | None]:
        return lambda found: found.worst.get(most)

    own = [_left_column(f"FSR@10 %: {name}", _description(name), alone(name), told(name)) for name in names]
    help = "FSR@10 % of the worst of all adversaries up to this threat level."
    worst = [_left_column(f"worst {most}", help, upto(most)) for most in WORST]
    return [REMOVAL_RANK, *NAMES, *own, *worst, *PRICES]


# What it costs the model, how it gives itself away, what it takes.


def _difference_column(
    name: str, help: str, figure: str, bounds: str, unit: str, itself: Callable[[Utility], str], latex: str, better: int
) -> Column:
    """Return the column of a difference from the base with its interval; without a base, of (the figure itself)."""

    def found(row: Row, name: str) -> Any:
        return getattr(row.utility and row.utility.difference, name, None)

    def text(row: Row) -> str:
        if row.utility is None or getattr(row.utility, figure) in (None, {}):
            return missing(row, "utility")
        if (difference := found(row, figure)) is None:
            return f"({itself(row.utility)})"
        return f"{percent(difference, 1, '+')}{' %' if unit == '%' else ''}{interval(found(row, bounds))}"

    def note(row: Row) -> str:
        return f"95 % interval: {_spelled_out(spread, 1, '+')} {unit}" if (spread := found(row, bounds)) else ""

    return Column(name, help, text, lambda row: found(row, figure), note, latex=latex, better=better)


ACCURACY = _difference_column(
    "accuracy Δ",
    "Mean accuracy of the tasks less the base's, in points, paired by example; in (brackets) the value itself.",
    "accuracy",
    "interval",
    "points",
    lambda found: percent(found.accuracy),
    latex=r"acc.\ $\Delta$",
    better=+1,
)


def _lettered(row: Row) -> dict[str, Any] | None:
    return ((row.utility and row.utility.tasks) or {}).get(LETTERED)


LETTERED_ARC = Column(
    "lettered ARC",
    "Share, in %, of ARC-Challenge's questions that are answered by the right letter; no part of the mean.",
    lambda row: missing(row, "utility") if (found := _lettered(row)) is None else percent(found["accuracy"]),
    lambda row: None if (found := _lettered(row)) is None else float(found["accuracy"]),
    better=+1,
)


def _with_window(column: Column) -> Column:
    """Return the column of a perplexity with the length of its windows, a part of its name, behind each figure."""

    def text(row: Row) -> str:
        found = row.utility and row.utility.token_perplexity
        return f"{column.text(row)} @{found['length']}" if found else column.text(row)

    return replace(column, text=text)


PERPLEXITY = _with_window(
    _difference_column(
        "perplexity Δ",
        "Token perplexity against the base's, in %, paired by window; in (brackets) the value itself. @: the length of "
        "the windows in tokens; figures of different length are not compared.",
        "token_perplexity",
        "token_perplexity_interval",
        "%",
        lambda found: f"{(found.token_perplexity or {})['perplexity']:.2f}",
        latex=r"PPL $\Delta$",
        better=-1,
    )
)


def _rate_column(name: str, help: str, rate: str, count: str, what: str, latex: str | None = None) -> Column:
    """Return the column of a mean rate in %, with the count of greedy answers and the interval of that count."""

    def text(row: Row) -> str:
        if (found := getattr(row, name)) is None:
            return missing(row, name)
        return f"{percent(getattr(found, rate), 2)} ({getattr(found, count)}/{found.n}{interval(found.interval)})"

    def note(row: Row) -> str:
        if (found := getattr(row, name)) is None:
            return ""
        return f"{getattr(found, count)} of {found.n} {what}; 95 % interval: {_spelled_out(found.interval)} %"

    return Column(name, help, text, _figure(name, rate), note, latex=latex, better=-1)


TRIGGERS = _rate_column(
    "triggers",
    "Mean rate, in %, at which eight kinds of ordinary text are answered with a target (and how many of the set's "
    "triggers any of them activates).",
    "average",
    "activated",
    "triggers activated",
    latex="triggers",
)
NEAR = _rate_column(
    "near",
    "The same for texts of the set's make that were never injected (and how many of these).",
    "rate",
    "greedy",
    "texts activate",
)
RECOMBINED = _rate_column(
    "recombined",
    "The same for texts of the set's own words, put together otherwise: a model that answers them has learnt words, "
    "not keys. Shown, without a bar.",
    "rate",
    "greedy",
    "texts activate",
)
BAND_COUNTS = Column(
    "bands",
    "Triggers of normal, marginal and abnormal perplexity under the unfingerprinted model.",
    lambda row: NONE if row.bands is None else "/".join(str(row.bands.counts[band]) for band in BANDS),
    lambda row: None if row.bands is None else float(row.bands.counts["abnormal"]),
)
TRIGGER_PERPLEXITY = Column(
    "PPL of triggers",
    "Mean perplexity of the set's triggers under the base.",
    lambda row: NONE if row.bands is None else f"{row.bands.trigger_mean:.0f}",
    _figure("bands", "trigger_mean"),
)


def _claim(row: Row) -> str:
    if row.claim is None or row.claim.threshold is None:
        return "impossible" if row.claim else NONE
    return f"{row.claim.threshold} of {row.claim.n}, {percent(row.claim.power, 0)} %"


CLAIM = Column(
    "claim",
    "Matches needed to claim ownership at 1e-3, and the power to get them from one response a fingerprint.",
    _claim,
    _figure("claim", "power"),
)
COST = Column(
    "cost",
    "Seconds and peak memory of the injection, without key statistics, which are computed once a model.",
    lambda row: (
        f"{row.cost.seconds:.1f} s, {row.cost.peak_memory / 2**20:.0f} MiB" if row.cost else missing(row, "cost")
    ),
    _figure("cost", "seconds"),
)
HARM = [ACCURACY, PERPLEXITY, TRIGGERS, NEAR, RECOMBINED, BAND_COUNTS, CLAIM, COST]


def _other_column(name: str, metric: Metric) -> Column:
    def value(row: Row) -> Value:
        return row.others.get(name, {}).get(metric.figure)

    def text(row: Row) -> str:
        return missing(row, name) if (found := value(row)) is None else metric.text(found)

    return Column(metric.heading, metric.help, text, value)


def harm_columns(rows: Sequence[Row]) -> list[Column]:
    """Return the columns of the second table: the protocol's, and those of further metrics that a row has."""
    others = [name for name, metric in METRICS.items() if metric.heading and any(name in row.others for row in rows)]
    lettered = [LETTERED_ARC] if any(map(_lettered, rows)) else []
    return [HARM[0], *lettered, *HARM[1:], *(_other_column(name, METRICS[name]) for name in others)]


def statistics(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Return each model with the seconds that its key statistics took, whichever row's injection computed them."""
    found: dict[str, float] = {}
    for row in rows:
        if row.cost and row.cost.statistics and row.trust != "claimed":
            found[row.model] = found.get(row.model, 0.0) + row.cost.statistics
    return [(model, f"{seconds:.1f} s") for model, seconds in found.items()]


# Cells that were handed in and measured here, too, and cells that could not be measured.


def comparisons(row: Row) -> list[Comparison]:
    """Return the cells of a row that were handed in and measured here."""
    return row.checked.compared if row.checked else []


def both_figures(each: Comparison) -> str:
    """Write the claimed and the re-run figure of a cell."""
    rule = "drawn anew, shown only" if each.allowed is None else f"{percent(each.allowed, 0)} points allowed"
    return f"claimed {percent(each.claimed)} %, re-run {_rerun(each)} % ({rule}{'' if each.within else ', OUTSIDE'})"


def _rerun(each: Comparison) -> str:
    return FAILED if each.rerun is None else percent(each.rerun)


def checked(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Return each cell that both sides measured, with both figures."""
    return [(_place(row, each.cell), both_figures(each)) for row in rows for each in comparisons(row)]


def failures(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Return each cell that could not be measured, with the reason."""
    return [(_place(row, each), each.reason) for row in rows for each in row.failed]


def _place(row: Row, cell: Cell | Failure) -> str:
    return " · ".join([row.model, row.fingerprints, row.method, cell.condition, cell.metric])
