"""Leaderboard rows from records alone (protocol §8)."""

import json
from collections import Counter
from collections.abc import Sequence
from functools import cache
from math import exp
from pathlib import Path
from statistics import fmean
from typing import Any

from fpbench.board.checks import check, contested, covers, summary
from fpbench.board.groups import Group, Measurement, RowKey, group_records
from fpbench.errors import InputError
from fpbench.metrics.claims import claim
from fpbench.metrics.statistics import clopper_pearson, mcnemar_exact, paired_bootstrap, rank, retention
from fpbench.modifications.base import drift
from fpbench.records.cell import BASE, CHECKPOINT
from fpbench.records.store import canonical

Row = dict[str, Any]
MODIFICATIONS = drift()
CLAIM_LEVEL = 1e-3


def rows_from_records(
    records: list[dict[str, Any]], folder: Path, *, rescore: bool, claimed: Sequence[Group] = ()
) -> list[Row]:
    """Every row: one a model, fingerprint set and method, seeds pooled; the paper's own figures last.

    Args:
        records: contents of record files.
        folder: where they lie, with their per-query results and, where a method is contested, ``contested.toml``.
        rescore: recompute what is otherwise read from the records.
        claimed: what submitters measured of their own methods, and of their bases
            (:func:`~fpbench.board.groups.claimed_groups`). A row that ``records`` do not cover is shown with their
            figures, without a rank, and with the figures of ``records`` where both have some.

    Raises:
        InputError: for a record of another protocol version or with a figure that cannot be, or a ``contested.toml``
            that cannot be read.
    """
    groups = group_records(records, folder)
    for group in groups.values():
        check(group)
    bases = {each.key: each for each in claimed if each.key[2] == BASE} | groups
    handed_in = {each.key: each for each in claimed if each.key[2] != BASE}
    theirs = {each.key: claimed_row(each, bases.get((*each.key[:2], BASE)), rescore) for each in claimed}
    shown = {key: group for key, group in groups.items() if key not in handed_in or covers(group, handed_in[key])}
    rows = [_row(group, bases.get((*key[:2], BASE)), rescore) for key, group in shown.items()]
    _add_ranks(rows, groups)
    rows += [row for key, row in theirs.items() if key not in shown]
    for row in rows:
        key = row["model"], row["fingerprints"], row["method"]
        both = key in groups and key in handed_in
        row["checked"] = summary(groups[key], handed_in[key]) if both else None
    reasons = contested(folder, {row["method"] for row in rows}) if rows else {}
    for row in rows:
        row["unreliable"] = reasons.get(row["method"])
    rows.sort(key=lambda row: (row["model"], row["fingerprints"], row["method"] != BASE, -(row["avg"] or -1.0)))
    return rows + reported_rows()


def _row(group: Group, base: Group | None, rescore: bool) -> Row:
    model, fingerprints, method = group.key
    conditions = {condition: _condition(group, condition) for condition, metric in group.cells if metric == "fsr"}
    modified = [conditions[name]["fsr"] for name in MODIFICATIONS if name in conditions]
    complete = len(modified) == len(MODIFICATIONS) and None not in modified
    return {
        "model": model,
        "method": method,
        "fingerprints": fingerprints,
        "trust": "re-scored" if method == CHECKPOINT else "re-run",
        "protocol": 1,
        "conditions": conditions,
        "avg": fmean(modified) if complete else None,
        "avg_interval": _average_interval(conditions) if complete else None,
        "utility": _utility(group, base),
        "triggers": _triggers(group, rescore),
        "near": _near(group, rescore),
        # Bands belong to the set and the base; they are shown on every row that uses both.
        "bands": _bands(base or group),
        "claim": _claim(group, base),
        "cost": _cost(group),
        "provenance": _provenance(group),
        "rank": None,
        "failed": [
            {name: getattr(each.cell, name) for name in ("condition", "metric", "seed")} | {"reason": each.reason}
            for each in group.failures()
        ],
        "cells": sorted(each.cell.path for found in group.cells.values() for each in found),
    }


def claimed_row(group: Group, base: Group | None, rescore: bool = False) -> Row:
    """The row of what somebody handed in, whose records may hold anything.

    Raises:
        InputError: if they hold a figure that cannot be, or are not what this harness writes.
    """
    try:
        check(group)
        return _row(group, base, rescore) | {"trust": "claimed"}
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, ZeroDivisionError) as error:
        raise InputError(
            f"records of {' / '.join(group.key)} that were handed in are not what this harness writes "
            f"({type(error).__name__}: {error}): hand in those of `fpbench submit run`."
        ) from None


def further_conditions(rows: Sequence[Row]) -> list[str]:
    """Conditions that are none of the protocol's seven, such as ``merge`` or ``finetune_math+nf4``."""
    return sorted({name for row in rows for name in row["conditions"]} - {"origin", *MODIFICATIONS})


def _average_interval(conditions: dict[str, Row]) -> list[float] | None:
    """Interval over fingerprints, each with its mean over the six; ``None`` if not all have the same fingerprints."""
    found = [conditions[name] for name in MODIFICATIONS]
    n = found[0]["n"]
    if any(each["n"] != n for each in found):
        return None
    return list(clopper_pearson(fmean(each["fsr"] for each in found) * n, n))


def probabilities(measurements: Sequence[Measurement]) -> list[float]:
    """p_i of every fingerprint, seeds one after another."""
    return [query["probability"] for each in measurements for query in each.queries]


def _by_seed(group: Group, condition: str) -> dict[int, list[float]]:
    """p_i of every fingerprint, by seed."""
    return {each.cell.seed: probabilities([each]) for each in group.finished("fsr", condition)}


def _condition(group: Group, condition: str) -> Row:
    """FSR under one condition, with its interval over fingerprints and what is left of the origin's."""
    measured = group.finished("fsr", condition)
    if not measured:
        reasons = [each.reason for each in group.get("fsr", condition) if each.reason]
        return {"fsr": None, "reason": reasons[0]}
    p = probabilities(measured)
    paired = _by_seed(group, condition), _by_seed(group, "origin")
    seeds = sorted(paired[0].keys() & paired[1].keys())
    after, origin = ([p for seed in seeds for p in side[seed]] for side in paired)
    return {
        "fsr": fmean(p),
        "interval": list(clopper_pearson(sum(p), len(p))),
        "greedy": sum(query["greedy"] for each in measured for query in each.queries),
        "n": len(p),
        "primary": fmean(each.result["primary"] for each in measured),
        "retention": retention(after, origin) if seeds and condition != "origin" else None,
        "error_bound": max(each.result["error_bound"] for each in measured),
        "proof": [each.record["proof"].get("modification") for each in measured if condition != "origin"],
    }


def _utility(group: Group, base: Group | None) -> Row | None:
    """Accuracy and perplexity, and their paired differences from the base (protocol §5)."""
    measured = group.finished("utility")
    if not measured:
        return None
    first = measured[0]
    found: Row = {name: first.result[name] for name in ("accuracy", "tasks", "word_perplexity", "token_perplexity")}
    reference = base.finished("utility") if base is not None and base is not group else []
    if reference:
        found["difference"] = _difference(first, reference[0])
    return found


def _difference(after: Measurement, before: Measurement) -> Row:
    """Paired by example: exact McNemar a task, bootstrap for the plain mean of the tasks."""
    answers = [_answers(each.queries) for each in (after, before)]
    shared = [name for name in answers[0] if len(answers[0][name]) == len(answers[1].get(name, ()))]
    # Each example weighs 1/(tasks · n of its task), so that its mean is the plain mean of the tasks.
    total = sum(len(answers[0][name]) for name in shared)
    weighted = [
        [total / (len(shared) * len(side[name])) * right for name in shared for right in side[name]] for side in answers
    ]
    figures: Row = {
        "tasks": {
            name: {
                "difference": fmean(answers[0][name]) - fmean(answers[1][name]),
                "p_value": mcnemar_exact(answers[0][name], answers[1][name]),
            }
            for name in shared
        }
    }
    if after.result["accuracy"] is not None and before.result["accuracy"] is not None:
        figures["accuracy"] = after.result["accuracy"] - before.result["accuracy"]
        figures["interval"] = list(paired_bootstrap(weighted[0], weighted[1]))
    texts = [each.result["token_perplexity"] for each in (after, before)]
    # Perplexities over windows of different length, or over other tokens, are different metrics.
    cut = {each["tokens"] for each in texts if each and "tokens" in each}
    if all(texts) and texts[0]["length"] == texts[1]["length"] and len(cut) < 2:
        figures["token_perplexity"] = texts[0]["perplexity"] / texts[1]["perplexity"] - 1
        losses = [
            [query["loss"] / (texts[0]["length"] - 1) for query in each.queries if query["task"] == "windows"]
            for each in (after, before)
        ]
        if len(losses[0]) == len(losses[1]) > 1:
            figures["token_perplexity_interval"] = [exp(bound) - 1 for bound in paired_bootstrap(losses[0], losses[1])]
            figures["windows"] = len(losses[0])
    return figures


def _answers(queries: list[dict[str, Any]]) -> dict[str, list[bool]]:
    found: dict[str, list[bool]] = {}
    for query in queries:
        if "correct" in query:
            found.setdefault(query["task"], []).append(query["correct"])
    return found


def _triggers(group: Group, rescore: bool) -> Row | None:
    """Activation rates of the eight accidental-trigger conditions."""
    found = _first(group, "triggers")
    if found is None or not rescore:
        return found
    queries = [query for each in group.finished("triggers")[:1] for query in each.queries]
    conditions = {}
    for name in found["conditions"]:
        own = [query for query in queries if query["condition"] == name]
        conditions[name] = {
            "rate": fmean(query["probability"] for query in own),
            "own": fmean(query["own"] for query in own),
            "greedy": sum(query["greedy"] for query in own),
            "n": len(own),
        }
    activated = len({query["trigger_index"] for query in queries if query["greedy"]})
    return found | {
        "conditions": conditions,
        "average": fmean(condition["rate"] for condition in conditions.values()),
        "activated": activated,
        "interval": list(clopper_pearson(activated, found["n"])),
    }


def _near(group: Group, rescore: bool) -> Row | None:
    """Activation rate of texts of the set's make."""
    found = _first(group, "near")
    if found is None or not rescore:
        return found
    queries = group.finished("near")[0].queries
    return found | {"rate": fmean(query["probability"] for query in queries), "n": len(queries)}


def _bands(group: Group) -> Row | None:
    """Perplexity bands of the set's triggers, with their mean perplexity."""
    found = _first(group, "bands")
    if found is None:
        return None
    queries = group.finished("bands")[0].queries
    return found | {"trigger_mean": fmean(query["perplexity"] for query in queries)}


def _first(group: Group, metric: str) -> Row | None:
    """The figures of the first seed; contexts, words and bands do not follow the seed."""
    measured = group.finished(metric)
    return measured[0].result if measured else None


def _claim(group: Group, base: Group | None) -> Row | None:
    """Could the owner claim this checkpoint from one sampled response a fingerprint (protocol §3)?"""
    if base is None or base is group:
        return None
    null = _by_seed(base, "origin")
    measured = [each for each in group.finished("fsr") if each.cell.seed in null]
    if not measured:
        return None
    # Sets of several seeds are several tests; the first is shown, as is its set.
    first = measured[0]
    result = claim(probabilities([first]), [null[first.cell.seed]], CLAIM_LEVEL)
    return {
        "level": result.level,
        "threshold": result.threshold,
        "n": len(result.null),
        "p_value": result.p_value,
        "power": result.power,
        "largest_null": result.largest_null,
    }


def _cost(group: Group) -> Row | None:
    measured = group.finished("cost")
    if not measured:
        return None
    seconds = fmean(each.result["seconds"]["total"] for each in measured)
    names = ("peak_memory", "fraction", "relative_norm", "bytes")
    return {"seconds": seconds} | {name: fmean(each.result[name] for each in measured) for name in names}


def _provenance(group: Group) -> list[Row]:
    """Where the row's records come from: each code, set of packages and machine once, with its number of records."""
    records = [each.record for cells in group.cells.values() for each in cells]
    counted = Counter(canonical(record["provenance"]) for record in records if "provenance" in record)
    return [{"records": counted[text]} | json.loads(text) for text in sorted(counted)]


def _add_ranks(rows: list[Row], groups: dict[RowKey, Group]) -> None:
    """Rank the methods of the same model and set; a row without all six modified conditions has no rank."""
    tables: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row["method"] != BASE and row["avg"] is not None:
            tables.setdefault((row["model"], row["fingerprints"]), []).append(row)
    for table in tables.values():
        measured = {
            row["method"]: [
                _by_seed(groups[row["model"], row["fingerprints"], row["method"]], name) for name in MODIFICATIONS
            ]
            for row in table
        }
        # Fingerprints are paired: only seeds that every row of the table has can be compared.
        seeds = sorted(set.intersection(*(set(found) for conditions in measured.values() for found in conditions)))
        means = {
            method: [fmean(p) for seed in seeds for p in zip(*(found[seed] for found in conditions), strict=True)]
            for method, conditions in measured.items()
        }
        places = rank(means) if seeds else {}
        for row in table:
            row["rank"] = places.get(row["method"])


# The paper's own figures as rows: reported by its authors, not reproduced here.


FILE = Path(__file__).parent / "reported.json"
# Table 1 has one figure a method and condition and does not say which set the baselines used (docs/methods.md §6).
SET = "as published"


@cache
def figures() -> dict[str, Any]:
    """All tables of arXiv 2509.03122v3 that name a figure, in its own units."""
    found: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def reported_rows() -> list[dict[str, Any]]:
    """One row a model and method of arXiv 2509.03122v3, fractions instead of percent."""
    published = figures()
    rows = []
    for key, model in published["models"].items():
        utility = published["effectiveness_and_utility"][key]
        for method, found in utility.items():
            modified = published["detectability_fsr_sampled"][key].get(method, {})
            conditions = {
                name: {"fsr": value / 100} for name, value in modified.items() if name != "avg_of_six_modifications"
            }
            # LoRA and the base stand only in the paper's effectiveness table.
            conditions.setdefault("origin", {"fsr": found["fsr_sampled"] / 100})
            conditions["origin"] |= {"greedy": found["fsr_greedy"] // 10, "n": 10}
            average = modified.get("avg_of_six_modifications")
            rows.append(
                {
                    "model": model,
                    "method": "base" if method == "none" else method,
                    "fingerprints": SET,
                    "trust": "reported",
                    "protocol": None,
                    "conditions": conditions,
                    "avg": None if average is None else average / 100,
                    "utility": _reported_utility(found, utility["none"], method),
                    "triggers": None,
                    "near": None,
                    "bands": None,
                    "claim": None,
                    "cost": None,
                    "provenance": [],
                    "rank": None,
                    "failed": [],
                    "unreliable": None,
                    "source": published["source"],
                }
            )
    return rows


def _reported_utility(found: dict[str, Any], base: dict[str, Any], method: str) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "accuracy": found["accuracy_avg"] / 100,
        "token_perplexity": {"perplexity": found["wikitext2_ppl"], "length": 2048},
    }
    if method != "none":
        shown["difference"] = {
            "accuracy": (found["accuracy_avg"] - base["accuracy_avg"]) / 100,
            "token_perplexity": found["wikitext2_ppl"] / base["wikitext2_ppl"] - 1,
        }
    return shown
