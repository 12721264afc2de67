"""Leaderboard rows from records alone (protocol §8)."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import exp, inf
from pathlib import Path
from statistics import fmean
from typing import Any

from fpbench.adversaries.conditions import without_effect
from fpbench.board.checks import check, checked, compare, compare_prices, contested, covers
from fpbench.board.groups import Group, Measurement, RowKey, group_records
from fpbench.board.ranks import out, ranks, with_removal_ranks
from fpbench.board.removal import ClaimedThief, attacks, removal
from fpbench.board.reported import reported_rows
from fpbench.board.row import (
    MODIFICATIONS,
    Bands,
    Claim,
    Cost,
    Detectability,
    Difference,
    Failure,
    Near,
    Row,
    Triggers,
    Utility,
)
from fpbench.board.updates import alike
from fpbench.errors import InputError
from fpbench.metrics.claims import claim
from fpbench.metrics.lettered import TASK as LETTERED
from fpbench.metrics.measure import METRICS
from fpbench.metrics.statistics import clopper_pearson, mcnemar_exact, paired_bootstrap, retention
from fpbench.records.cell import BASE, CHECKPOINT, ORIGIN, PROTOCOL
from fpbench.records.record import Record
from fpbench.text import canonical

# From records to rows.


def rows_from_records(
    records: Sequence[Record],
    folder: Path,
    *,
    rescore: bool,
    claimed: Sequence[Group] = (),
    thieves: Sequence[Group] = (),
) -> list[Row]:
    """Make every row; the paper's own figures come last.

    Args:
        records: of any cells.
        folder: where they lie, with their per-query results and, where a method is contested, ``contested.toml``.
        rescore: recompute what is otherwise read from the records.
        claimed: what submitters measured of their own methods, and of their bases
            (:func:`~fpbench.board.groups.claimed_groups`). A row that ``records`` do not cover is shown with their
            figures, without a rank, and with the figures of ``records`` where both have some. A base judges only rows
            of its own origin: those of ``records``, or those of the submission that it was handed in with.
        thieves: what submitters measured of their adversaries, and of the bases
            (:func:`~fpbench.board.groups.claimed_attacks`). A row of ``records`` that was attacked shows what they
            leave of it beside its own figures, as long as not all of it was measured here.

    Raises:
        InputError: for a record of another protocol version or with a figure that cannot be, or a ``contested.toml``
            that cannot be read.
    """
    groups = group_records(records, folder)
    for group in groups.values():
        check(group)
    bases = {(each.submission, *each.key): each for each in (*claimed, *groups.values()) if each.key[2] == BASE}
    handed_in = {each.key: each for each in claimed if each.key[2] != BASE}
    asked = {key[:2]: attacks([each for each in groups.values() if each.key[:2] == key[:2]]) for key in groups}
    theirs = {
        each.key: claimed_row(
            each, bases.get((each.submission, *each.key[:2], BASE)), rescore, asked.get(each.key[:2], ())
        )
        for each in claimed
    }
    shown = {key: group for key, group in groups.items() if key not in handed_in or covers(group, handed_in[key])}
    rows = [_row(group, bases.get((None, *key[:2], BASE)), rescore, asked[key[:2]]) for key, group in shown.items()]
    places = ranks([row for row in rows if row.method != BASE and out(row) is None], groups)
    rows = with_removal_ranks(rows, groups)
    rows = [_with_claimed_thieves(row, groups, thieves, rescore) for row in rows]
    rows += [row for key, row in theirs.items() if key not in shown]
    reasons = contested(folder, {row.method for row in rows}) if rows else {}
    same = alike({each.key: each for each in (*claimed, *groups.values())}.values())
    rows = [
        replace(
            row,
            rank=places.get(row.key),
            out=None if row.method == BASE or row.key in places else out(row) or "no seed in common",
            checked=checked(groups[row.key], handed_in[row.key]) if row.key in groups.keys() & handed_in else None,
            unreliable=reasons.get(row.method),
            alike=same.get(row.key),
        )
        for row in rows
    ]
    rows.sort(key=lambda row: (row.model, row.fingerprints, row.method != BASE, row.rank or inf, -(row.avg or -1.0)))
    return rows + reported_rows()


def _with_claimed_thieves(row: Row, groups: Mapping[RowKey, Group], thieves: Sequence[Group], rescore: bool) -> Row:
    """Return a row with what submitted adversaries leave of it, by their submitters' own figures."""
    if row.removal is None:
        return row
    own, claimed = groups[row.key], {}
    bases = {each.submission: each for each in thieves if each.key == (*row.key[:2], BASE)}
    for theirs in (each for each in thieves if each.key == row.key and not covers(own, each)):
        found = claimed_row(theirs, bases.get(theirs.submission), rescore).removal
        compared = [*compare(own, theirs), *compare_prices(own, theirs)]
        attacked = [each for each in compared if each.cell.condition != ORIGIN]
        of = sum(each.cell.condition != ORIGIN for each in theirs.measurements())
        outside = sum(not each.within for each in attacked)
        for name, thief in found.adversaries.items() if found else ():
            claimed[name] = ClaimedThief(thief, of, len(attacked), outside)
    return replace(row, removal=replace(row.removal, claimed=claimed)) if claimed else row


def _row(group: Group, base: Group | None, rescore: bool, asked: Sequence[str] = ()) -> Row:
    model, fingerprints, method = group.key
    seeds = sorted({each.cell.seed for each in group.measurements()})
    conditions = {condition: _condition(group, condition, base) for condition, metric in group.cells if metric == "fsr"}
    six = [conditions[name] for name in MODIFICATIONS if name in conditions]
    average = [each.fsr for each in six if each.fsr is not None and each.no_effect is None]
    complete = len(average) == len(MODIFICATIONS)
    return Row(
        model=model,
        method=method,
        fingerprints=fingerprints,
        trust="re-scored" if method == CHECKPOINT else "re-run",
        protocol=PROTOCOL,
        conditions=conditions,
        avg=fmean(average) if complete else None,
        avg_interval=_average_interval(conditions, fmean(average)) if complete else None,
        utility=_utility(group, base),
        triggers=_triggers(group, rescore),
        near=_near(group, "near", rescore),
        recombined=_near(group, "recombined", rescore),
        # Bands belong to the set and the base; they are shown on every row that uses both.
        bands=_bands(base or group),
        claim=_claim(group, base),
        cost=_cost(group),
        provenance=_provenance(group),
        data=_data(group),
        unconfined=_unconfined(group),
        failed=[
            Failure(each.cell.condition, each.cell.metric, each.cell.seed, each.reason or "")
            for each in group.failures()
        ],
        cells=sorted(each.cell.path for each in group.measurements()),
        removal=removal(group, base, asked, [name for name, found in conditions.items() if found.no_effect]),
        others={
            metric: found.result
            for metric in sorted({metric for _, metric in group.cells})
            if metric not in METRICS or METRICS[metric].heading
            if (found := _first(group, metric)) is not None
        },
        limited=_limited(group),
        by_seed={seed: _of_seed(group, base, seed, rescore) for seed in seeds} if len(seeds) > 1 else {},
    )


def _of_seed(group: Group, base: Group | None, seed: int, rescore: bool) -> Row:
    own = group.only(seed)
    return _row(own, own if base is group else base and base.only(seed), rescore)


def _limited(group: Group) -> int | None:
    """Return the least number of items that any of a row's measurements was cut to by ``--limit``."""
    cut = [(each.record.identity or {}).get("limit") for each in group.measurements()]
    return min((each for each in cut if isinstance(each, int)), default=None)


def claimed_row(group: Group, base: Group | None, rescore: bool = False, asked: Sequence[str] = ()) -> Row:
    """Make the row of what somebody handed in, whose records may hold anything; ``asked`` are its table's attacks.

    Raises:
        InputError: if they hold a figure that cannot be, or are not what this harness writes.
    """
    try:
        check(group)
        row = _row(group, base, rescore, asked)
        return replace(row, trust="claimed", removal=row.removal and replace(row.removal, out="claimed"))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, ZeroDivisionError) as error:
        raise InputError(
            f"records of {' / '.join(group.key)} that were handed in are not what this harness writes "
            f"({type(error).__name__}: {error}): hand in those of `fpbench submit run`."
        ) from None


def _average_interval(conditions: Mapping[str, Detectability], average: float) -> list[float]:
    """Return the interval over fingerprints, each with its mean over the six; of as many as each of these has."""
    counted = [n for name in MODIFICATIONS if (n := conditions[name].n) is not None]
    return list(clopper_pearson(average * min(counted), min(counted)))


def _condition(group: Group, condition: str, base: Group | None) -> Detectability:
    measured = group.finished("fsr", condition)
    if not measured:
        return Detectability(None, next(each.reason for each in group.get("fsr", condition) if each.reason))
    paired = group.by_seed(condition), group.by_seed()
    p = [each for found in paired[0].values() for each in found]
    seeds = sorted(paired[0].keys() & paired[1].keys())
    own = [each.result["own_tokenizer"]["mean"] for each in measured if "own_tokenizer" in each.result]
    lenient = [mean for each in measured if (mean := (each.result.get("lenient") or {}).get("mean")) is not None]
    after, origin = ([p for seed in seeds for p in side[seed]] for side in paired)
    proofs = _proofs(group, condition)
    others = _proofs(base, condition) if base is not None and base is not group else {}
    shared = [(proof, other) for seed, proof in proofs.items() if proof and (other := others.get(seed))]
    none = [reason for proof, other in shared if (reason := without_effect(condition, proof, other))]
    return Detectability(
        fsr=fmean(p),
        interval=list(clopper_pearson(sum(p), len(p))),
        greedy=sum(query["greedy"] for each in measured for query in each.queries),
        n=len(p),
        primary=fmean(each.result["primary"] for each in measured),
        retention=retention(after, origin) if seeds and condition != ORIGIN else None,
        error_bound=max(each.result["error_bound"] for each in measured),
        proof=list(proofs.values()),
        base_proof=[others.get(seed) for seed in proofs] if shared else None,
        no_effect=none[0] if none else None,
        lenient=fmean(lenient) if len(lenient) == len(measured) else None,
        own_tokenizer=fmean(own) if own else None,
    )


def _proofs(group: Group, condition: str) -> dict[int, dict[str, Any] | None]:
    """Return what a modification's proof holds, by seed; nothing for an unmodified checkpoint."""
    measured = [] if condition == ORIGIN else group.finished("fsr", condition)
    return {each.cell.seed: each.record.proof.get("modification") for each in measured}


def _utility(group: Group, base: Group | None) -> Utility | None:
    if (first := _first(group, "utility")) is None:
        return None
    reference = _first(base, "utility") if base is not None and base is not group else None
    return Utility(
        **{name: first.result[name] for name in ("accuracy", "tasks", "word_perplexity", "token_perplexity")},
        difference=_difference(first, reference) if reference else None,
    )


def _difference(after: Measurement, before: Measurement) -> Difference:
    """Pair by example: exact McNemar a task, bootstrap for the plain mean of the tasks."""
    answers: list[dict[str, list[bool]]] = [{}, {}]
    for each, found in zip((after, before), answers, strict=True):
        for query in (query for query in each.queries if "correct" in query):
            found.setdefault(query["task"], []).append(query["correct"])
    paired = [name for name in answers[0] if len(answers[0][name]) == len(answers[1].get(name, ()))]
    shared = [name for name in paired if name != LETTERED]  # which is no part of the mean
    # Means over other tasks, or over other examples, are different metrics.
    comparable = shared and set(shared) == (answers[0].keys() | answers[1].keys()) - {LETTERED}
    # Each example weighs 1/(tasks · n of its task), so that its mean is the plain mean of the tasks.
    total = sum(len(answers[0][name]) for name in shared)
    weighted = [
        [total / (len(shared) * len(side[name])) * right for name in shared for right in side[name]] for side in answers
    ]
    pairs = {name: (answers[0][name], answers[1][name]) for name in paired}
    tasks = {
        name: {"difference": fmean(a) - fmean(b), "p_value": mcnemar_exact(a, b)} for name, (a, b) in pairs.items()
    }
    figures: dict[str, Any] = {"tasks": tasks}
    if comparable and after.result["accuracy"] is not None and before.result["accuracy"] is not None:
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
    return Difference(**figures)


def _triggers(group: Group, rescore: bool) -> Triggers | None:
    if (measured := _first(group, "triggers")) is None:
        return None
    found = Triggers(**measured.result)
    if not rescore:
        return found
    queries = measured.queries
    conditions = {}
    for name in found.conditions:
        own = [query for query in queries if query["condition"] == name]
        conditions[name] = {
            "rate": fmean(query["probability"] for query in own),
            "own": fmean(query["own"] for query in own),
            "greedy": sum(query["greedy"] for query in own),
            "n": len(own),
        }
    activated = len({query["trigger_index"] for query in queries if query["greedy"]})
    return replace(
        found,
        conditions=conditions,
        average=fmean(condition["rate"] for condition in conditions.values()),
        activated=activated,
        interval=list(clopper_pearson(activated, found.n)),
    )


def _near(group: Group, metric: str, rescore: bool) -> Near | None:
    if (measured := _first(group, metric)) is None:
        return None
    found = Near(**measured.result)
    if rescore:
        p = [query["probability"] for query in measured.queries]
        found = replace(found, rate=fmean(p), n=len(p))
    return found


def _bands(group: Group) -> Bands | None:
    if (measured := _first(group, "bands")) is None:
        return None
    return Bands(**measured.result, trigger_mean=fmean(query["perplexity"] for query in measured.queries))


def _first(group: Group, metric: str) -> Measurement | None:
    """Return the measurement of the first seed; data, words and bands do not follow the seed."""
    return next(iter(group.finished(metric)), None)


def _claim(group: Group, base: Group | None) -> Claim | None:
    if base is None or base is group:
        return None
    null, own = base.by_seed(), group.by_seed()
    # Sets of several seeds are several tests; the first is shown, as is its set.
    seed = next((each for each in own if each in null), None)
    if seed is None:
        return None
    found = claim(own[seed], [null[seed]])
    return Claim(found.level, found.threshold, len(found.null), found.p_value, found.power, found.largest_null)


def _cost(group: Group) -> Cost | None:
    measured = group.finished("cost")
    if not measured:
        return None
    names = ("peak_memory", "fraction", "relative_norm", "bytes")
    # Whichever method comes first computes the key statistics; they are the model's, and no cost of that method.
    seconds = [each.result["seconds"] for each in measured]
    statistics = [each.get("statistics", 0.0) for each in seconds]
    return Cost(
        seconds=fmean(each["total"] - apart for each, apart in zip(seconds, statistics, strict=True)),
        statistics=sum(statistics) or None,
        **{name: fmean(each.result[name] for each in measured) for name in names},
    )


def _provenance(group: Group) -> list[dict[str, Any]]:
    """Return each code, set of packages and machine that measured, once, with its number of records."""
    counted = Counter(canonical(each.record.provenance) for each in group.measurements() if each.record.provenance)
    return [{"records": counted[text]} | json.loads(text) for text in sorted(counted)]


def _data(group: Group) -> dict[str, list[str]]:
    """Return where each data set of the row's records was read from."""
    found: dict[str, set[str]] = {}
    for each in group.measurements():
        for name, origin in dict(each.record.provenance.get("data") or {}).items():
            found.setdefault(str(name), set()).add(str(origin))
    return {name: sorted(found[name]) for name in sorted(found)}


def _unconfined(group: Group) -> list[str] | None:
    """Return what a submission was not kept from in any of its records; ``None`` if nothing, or none says."""
    kept = [each.record.provenance.get("confinement") for each in group.measurements()]
    missing = [each.get("missing") for each in kept if isinstance(each, dict)]
    names = {name for each in missing if isinstance(each, list) for name in each if isinstance(name, str)}
    return sorted(name for name in names if name.isascii() and name.isalpha() and len(name) < 20) or None
