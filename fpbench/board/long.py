"""The board in long form: one line a figure, numbers as numbers, for pandas, R and spreadsheets."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fpbench.board.removal import Removal
from fpbench.board.row import Near, Row
from fpbench.metrics.measure import METRICS
from fpbench.metrics.removal import BUDGETS, LIMIT
from fpbench.metrics.statistics import BANDS
from fpbench.records.cell import ORIGIN

SHARE = "fraction"  # of 1, as records hold rates; tables show them in per cent
# Those that one cell gives: of these every seed has a line of its own where several are pooled.
DERIVED = ("avg", "retention", "accuracy_difference", "perplexity_difference", "claim_", "removal", "fsr_at_", "rank")


@dataclass(frozen=True)
class Figure:
    """One figure of a row.

    Attributes:
        seed: that the figure is of; ``None`` where several are pooled or, of a reported row, unknown.
        condition: under which it was measured; for what a thief leaves, the adversary or the threat level; ``None``
            where it is of several, as an average is.
        value: ``None`` of a removal price that no dose attains.
        low: 95 % interval; of a removal price the bracket in which it lies.
        n: fingerprints, examples, windows or texts behind it.
        unit: ``fraction``, ``perplexity``, ``s``, ``bytes``, ``count``, ``p``, ``AUC``, ``ratio`` or ``rank``.
    """

    model: str
    set: str
    method: str
    seed: int | None
    condition: str | None
    metric: str
    value: float | None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    unit: str = SHARE


COLUMNS = tuple(Figure.__dataclass_fields__)


def figures_of(rows: Sequence[Row]) -> list[Figure]:
    """Return every figure of the rows, in their order; of pooled rows, the figures of each seed follow."""
    found = []
    for row in rows:
        found += list(_figures(row, row.seeds[0] if len(row.seeds) == 1 else None))
        for seed, own in row.by_seed.items():
            found += [each for each in _figures(own, seed) if not each.metric.startswith(DERIVED)]
    return found


def _figures(row: Row, seed: int | None) -> Iterator[Figure]:
    for condition, metric, value, low, high, n, unit in _all(row):
        if value is not None or low is not None:
            place = row.model, row.fingerprints, row.method, seed, condition
            yield Figure(*place, metric, value, low, high, n, unit)


Line = tuple[str | None, str, float | None, float | None, float | None, int | None, str]


def _line(
    condition: str | None,
    metric: str,
    value: float | None,
    bounds: Sequence[float | None] | None = None,
    n: int | None = None,
    unit: str = SHARE,
) -> Line:
    low, high = bounds or (None, None)
    return condition, metric, value, low, high, n, unit


def _all(row: Row) -> Iterator[Line]:
    yield _line(None, "rank", row.rank, unit="rank")
    yield _line(None, "avg", row.avg, row.avg_interval, next((each.n for each in row.conditions.values()), None))
    for condition, found in row.conditions.items():
        yield _line(condition, "fsr", found.fsr, found.interval, found.n)
        yield _line(condition, "fsr_greedy", found.greedy, None, found.n, "count")
        yield _line(condition, "fsr_primary", found.primary, None, found.n)
        yield _line(condition, "retention", found.retention, None, found.n, "ratio")
    yield from _utility(row)
    yield from _imperceptibility(row)
    yield from _claim_and_cost(row)
    if row.removal:
        yield from _removal(row.removal)
    for name, own in row.others.items():
        value = own.get(METRICS[name].figure) if name in METRICS else None
        if isinstance(value, int | float):
            yield _line(ORIGIN, name, value, None, None, "")


def _utility(row: Row) -> Iterator[Line]:
    if (found := row.utility) is None:
        return
    tasks = found.tasks or {}
    examples = sum(task["n"] for task in tasks.values()) or None
    yield _line(ORIGIN, "accuracy", found.accuracy, None, examples)
    for name, task in sorted(tasks.items()):
        yield _line(ORIGIN, f"accuracy_{name}", task["accuracy"], None, task["n"])
    tokens = found.token_perplexity or {}
    yield _line(ORIGIN, "perplexity", tokens.get("perplexity"), unit="perplexity")
    if isinstance(found.word_perplexity, int | float):
        yield _line(ORIGIN, "word_perplexity", found.word_perplexity, unit="perplexity")
    if (away := found.difference) is not None:
        yield _line(ORIGIN, "accuracy_difference", away.accuracy, away.interval, examples)
        bounds = away.token_perplexity_interval
        yield _line(ORIGIN, "perplexity_difference", away.token_perplexity, bounds, away.windows)


def _imperceptibility(row: Row) -> Iterator[Line]:
    if found := row.triggers:
        queries = sum(each["n"] for each in found.conditions.values())
        yield _line(ORIGIN, "triggers", found.average, None, queries)
        yield _line(ORIGIN, "triggers_activated", found.activated / found.n, found.interval, found.n)
        for kind, each in sorted(found.conditions.items()):
            yield _line(ORIGIN, f"triggers_{kind}", each["rate"], None, each["n"])
    yield from _texts("near", row.near)
    yield from _texts("recombined", row.recombined)
    if row.bands:
        for name in BANDS:
            yield _line(ORIGIN, f"bands_{name}", row.bands.counts[name], unit="count")
        yield _line(ORIGIN, "trigger_perplexity", row.bands.trigger_mean, unit="perplexity")
        yield _line(ORIGIN, "bands_auc", row.bands.auc, unit="AUC")


def _texts(name: str, found: Near | None) -> Iterator[Line]:
    """Yield the mean rate, and the share that greedy decoding answers, whose interval it is."""
    if found:
        yield _line(ORIGIN, name, found.rate, None, found.n)
        yield _line(ORIGIN, f"{name}_greedy", found.greedy / found.n, found.interval, found.n)


def _claim_and_cost(row: Row) -> Iterator[Line]:
    if row.claim:
        yield _line(ORIGIN, "claim_matches", row.claim.threshold, None, row.claim.n, "count")
        yield _line(ORIGIN, "claim_power", row.claim.power, None, row.claim.n)
        yield _line(ORIGIN, "claim_p_value", row.claim.p_value, None, row.claim.n, "p")
    if row.cost:
        yield _line(ORIGIN, "injection_seconds", row.cost.seconds, unit="s")
        yield _line(ORIGIN, "injection_peak_memory", row.cost.peak_memory, unit="bytes")
        yield _line(ORIGIN, "changed_parameters", row.cost.fraction)
        yield _line(ORIGIN, "relative_norm", row.cost.relative_norm, unit="ratio")
        yield _line(ORIGIN, "delta_size", row.cost.bytes, unit="bytes")


def _removal(found: Removal) -> Iterator[Line]:
    yield _line(None, "removal_rank", found.rank, unit="rank")
    for condition, each in found.conditions.items():
        yield _line(condition, "price_long", each.long, each.long_interval)
        yield _line(condition, "price_short", each.short, each.short_interval)
        yield _line(condition, "price_tasks", each.tasks, each.tasks_interval)
    for name, thief in (*found.adversaries.items(), *((f"worst {level}", each) for level, each in found.worst.items())):
        for budget in BUDGETS:
            if (left := thief.within.get(f"{budget:g}")) is not None:
                yield _line(name, f"fsr_at_{100 * budget:g}_percent", left.fsr, left.interval)
    for product, price, missing in (("long", found.long, found.missing), ("short", found.short, found.unpriced)):
        if price is not None and not (price.high is None and missing):
            low = LIMIT if price.high is None else None if missing else price.low
            yield _line(None, f"removal_price_{product}", price.high, (low, price.high))


def as_columns(found: Sequence[Figure]) -> dict[str, list[Any]]:
    """Return the figures by column."""
    return {name: [getattr(each, name) for each in found] for name in COLUMNS}


def cells(figure: Figure) -> Mapping[str, Any]:
    """Return a figure by column, as CSV writes it: empty where there is none."""
    return {name: "" if (value := getattr(figure, name)) is None else value for name in COLUMNS}
