"""Which rows have a rank, and which one (protocol §8)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import inf
from statistics import fmean

from fpbench.board.groups import Group, RowKey
from fpbench.board.removal import attacked_seeds, prices_by_fingerprint
from fpbench.board.row import MODIFICATIONS, Difference, Row
from fpbench.metrics.statistics import rank
from fpbench.records.cell import BASE

# Bars of harmlessness (protocol §8): a row is ranked only within them.
LEAST_ACCURACY = -0.05  # upper end of the interval of the difference from the base
MOST_PERPLEXITY = 0.25
MOST_TRIGGERS = 0.5
MOST_NEAR = 0.1
BARS = (
    f"A rank needs all of AVG; accuracy Δ whose interval reaches {100 * LEAST_ACCURACY:.0f}; perplexity at most "
    f"{100 * MOST_PERPLEXITY:.0f} % up; at most {100 * MOST_TRIGGERS:.0f} % of triggers and {100 * MOST_NEAR:.0f} % of "
    "near triggers answered."
)
OTHER_TOKENIZER = "tokenizer differs from the base's"


def out(row: Row) -> str | None:
    """Return why a row of a method must not be ranked (protocol §8), or ``None``."""
    if unranked := _unranked(row):
        return ", ".join(unranked)
    idle = [name for name in MODIFICATIONS if name in row.conditions and row.conditions[name].no_effect]
    reasons = [f"{name} without effect" for name in idle]
    if row.avg is None and not idle:
        reasons.append("AVG incomplete")
    return ", ".join([*reasons, *_harm(row)]) or None


def _unranked(row: Row) -> list[str]:
    """Return why a row is ranked in no table, whatever its figures are."""
    unranked = [row.trust] * (row.trust != "re-run")
    if any(each.own_tokenizer is not None for each in row.conditions.values()):
        unranked.append(OTHER_TOKENIZER)
    return unranked + [f"smoke run of {row.limited}"] * (row.limited is not None)


def _harm(row: Row) -> list[str]:
    """Return what puts a row out for harm: what is beyond its bar, or was not measured."""
    found = row.utility.difference if row.utility and row.utility.difference else Difference()
    # A loss of accuracy is one where even the upper end of its interval says so.
    loss, perplexity = -found.interval[1] if found.interval else None, found.token_perplexity
    triggers, near = row.triggers.average if row.triggers else None, row.near.rate if row.near else None
    recombined = row.recombined.rate if row.recombined else None
    judged = (
        ("accuracy", "utility", loss, -LEAST_ACCURACY, f"{100 * (found.accuracy or 0):+.1f}"),
        ("perplexity", "utility", perplexity, MOST_PERPLEXITY, f"{100 * (perplexity or 0):+.1f} %"),
        ("triggers", "triggers", triggers, MOST_TRIGGERS, f"{100 * (triggers or 0):.1f} %"),
        ("near", "near", near, MOST_NEAR, f"{100 * (near or 0):.1f} %"),
        ("recombined", "recombined", recombined, inf, ""),  # shown, without a bar
    )
    reasons = []
    for name, metric, figure, most, shown in judged:
        if figure is None:
            failed = any(each.metric == metric for each in row.failed)
            missing = "not measured" if getattr(row, metric) is None else "not compared with a base"
            reasons.append(f"{name} {'failed' if failed else missing}")
        # Written so that a NaN is out, and a figure at the bar is not by its rounding.
        elif not figure <= most + 1e-9:
            reasons.append(f"{name} {shown}")
    return reasons


def ranks(rows: Sequence[Row], groups: Mapping[RowKey, Group]) -> dict[RowKey, int]:
    """Rank rows within the same model and set."""
    tables: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        tables.setdefault((row.model, row.fingerprints), []).append(row)
    placed: dict[RowKey, int] = {}
    for place, table in tables.items():
        measured = {row.method: [groups[row.key].by_seed(name) for name in MODIFICATIONS] for row in table}
        # Fingerprints are paired: only seeds that every row of the table has can be compared.
        seeds = sorted(set.intersection(*(set(found) for conditions in measured.values() for found in conditions)))
        means = {
            method: [fmean(p) for seed in seeds for p in zip(*(found[seed] for found in conditions), strict=True)]
            for method, conditions in measured.items()
        }
        placed |= {(*place, method): each for method, each in (rank(means) if seeds else {}).items()}
    return placed


def with_removal_ranks(rows: Sequence[Row], groups: Mapping[RowKey, Group]) -> list[Row]:
    """Rank rows within the same model and set by what the removal of each fingerprint costs."""
    reasons = {row.key: _out_of_removal(row) for row in rows if row.removal and row.method != BASE}
    placed: dict[RowKey, int] = {}
    for place in dict.fromkeys(key[:2] for key, reason in reasons.items() if reason is None):
        table = {key: groups[key] for key, reason in reasons.items() if reason is None and key[:2] == place}
        # Fingerprints are paired, and every thief tunes on as many seeds: only those that every row has count.
        seeds = sorted(set.intersection(*(set(attacked_seeds(group)) for group in table.values())))
        base = groups.get((*place, BASE))
        prices = {key[2]: prices_by_fingerprint(group, base, seeds) for key, group in table.items()} if seeds else {}
        placed |= {(*place, method): each for method, each in rank(prices).items()}

    def ranked(row: Row) -> Row:
        if row.removal is None or row.method == BASE:
            return row
        reason = reasons[row.key] or (None if row.key in placed else "no seed in common")
        return replace(row, removal=replace(row.removal, rank=placed.get(row.key), out=reason))

    return [ranked(row) for row in rows]


def _out_of_removal(row: Row) -> str | None:
    """Return why a row has no rank in the removal table, or ``None``."""
    assert row.removal is not None
    if unranked := _unranked(row):
        return ", ".join(unranked)
    reasons = _harm(row) + ["no claim at origin"] * (not row.removal.claimable)
    return ", ".join(reasons + ["incomplete"] * bool(row.removal.missing)) or None
