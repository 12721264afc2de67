"""Leaderboard rows from records alone (protocol §8)."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from math import exp, inf
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar

from fpbench.adversaries.conditions import drift, is_attack, without_effect
from fpbench.board.checks import Checked, check, checked, compare, compare_prices, contested, covers
from fpbench.board.groups import Group, Measurement, RowKey, group_records
from fpbench.board.removal import ClaimedThief, Removal, attacks, prices_by_fingerprint, removal
from fpbench.board.updates import alike
from fpbench.errors import InputError
from fpbench.metrics.claims import claim
from fpbench.metrics.lettered import TASK as LETTERED
from fpbench.metrics.measure import METRICS
from fpbench.metrics.statistics import clopper_pearson, mcnemar_exact, paired_bootstrap, rank, retention
from fpbench.records.cell import BASE, CHECKPOINT, ORIGIN, PROTOCOL, Cell
from fpbench.records.record import Record
from fpbench.text import canonical

MODIFICATIONS = drift()

# Bars of harmlessness (protocol §8): a row is ranked only within them.
LEAST_ACCURACY = -0.05  # upper end of the interval of the difference from the base
MOST_PERPLEXITY = 0.25
MOST_TRIGGERS = 0.5
MOST_NEAR = 0.1
OTHER_TOKENIZER = "tokenizer differs from the base's"

# What a row holds. Rates are fractions, intervals are [low, high] and cover 95 %.


class Figures:
    """Figures by name. Their JSON leaves out what is ``None`` and not named in ``KEPT``."""

    KEPT: ClassVar[tuple[str, ...]] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as ``leaderboard.json`` has them."""
        return {name: _json(value) for name, value in vars(self).items() if value is not None or name in self.KEPT}


def _json(value: Any) -> Any:
    match value:
        case Figures() | Checked() | Removal():
            return value.to_dict()
        case dict():
            return {key: _json(each) for key, each in value.items()}
        case list():
            return [_json(each) for each in value]
    return value


@dataclass(frozen=True)
class Detectability(Figures):
    """FSR under one condition.

    Attributes:
        fsr: exact where measured, sampled where reported; ``None`` for a failure.
        interval: over fingerprints.
        greedy: how many of the ``n`` fingerprints greedy decoding answers.
        primary: FSR of the primary target alone.
        retention: of the FSR at origin; ``None`` where that is too small to compare with.
        proof: that the modification happened, a seed each.
        base_proof: the same figures of the base.
        no_effect: why the modification counts as none on this checkpoint; it is then not averaged.
        lenient: ``fsr_lenient``; ``None`` where it was not measured, as in the first records.
        own_tokenizer: FSR under a handed-in checkpoint's tokenizer, where that is not its base's, by which all else is
            measured.
    """

    fsr: float | None
    reason: str | None = None
    interval: list[float] | None = None
    greedy: int | None = None
    n: int | None = None
    primary: float | None = None
    retention: float | None = None
    error_bound: float | None = None
    proof: list[dict[str, Any] | None] | None = None
    base_proof: list[dict[str, Any] | None] | None = None
    no_effect: str | None = None
    lenient: float | None = None
    own_tokenizer: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return it with the FSR of a failure, and the retention of what was measured, even if ``None``."""
        kept = {"fsr": None} if self.interval is None else {"retention": None}
        return kept | super().to_dict()


@dataclass(frozen=True)
class Difference(Figures):
    """Utility less that of the base (protocol §5).

    Attributes:
        tasks: ``difference`` and ``p_value`` by task.
        accuracy: of the mean accuracy, paired by example; ``interval`` is its.
        token_perplexity: relative, paired by window; its interval is over ``windows`` of them.
    """

    tasks: dict[str, dict[str, float]] | None = None
    accuracy: float | None = None
    interval: list[float] | None = None
    token_perplexity: float | None = None
    token_perplexity_interval: list[float] | None = None
    windows: int | None = None


@dataclass(frozen=True)
class Utility(Figures):
    """Accuracy and perplexity; ``tasks`` are the record's, ``None`` where the figures are reported ones."""

    accuracy: float | None
    token_perplexity: dict[str, Any] | None
    word_perplexity: Any = None
    tasks: dict[str, dict[str, Any]] | None = None
    difference: Difference | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return it with every figure of a measurement, even if ``None``."""
        kept = () if self.tasks is None else ("accuracy", "token_perplexity", "word_perplexity")
        return dict.fromkeys(kept) | super().to_dict()


@dataclass(frozen=True)
class Triggers(Figures):
    """Accidental triggers: rates of eight kinds of text, and how many of the set's triggers any of them activates."""

    conditions: dict[str, dict[str, Any]]
    average: float
    activated: int
    n: int
    interval: list[float]
    error_bound: float | None = None
    cut: int | None = None


@dataclass(frozen=True)
class Near(Figures):
    """Never-injected texts, of the set's make or of its words: mean rate, and how many greedy decoding answers."""

    rate: float
    greedy: int
    n: int
    interval: list[float]
    error_bound: float | None = None


@dataclass(frozen=True)
class Bands(Figures):
    """Perplexity of the set's triggers beside that of instructions."""

    counts: dict[str, int]
    trigger_mean: float
    mean: float
    auc: float
    deviation: float | None = None
    benign: int | None = None
    edges: list[float] | None = None
    histogram: list[int] | None = None


@dataclass(frozen=True)
class Claim(Figures):
    """Matches needed to claim ownership, ``None`` if all ``n`` are too few, and the power to get them (protocol §3)."""

    KEPT: ClassVar = ("threshold",)
    level: float
    threshold: int | None
    n: int
    p_value: float
    power: float
    largest_null: float


@dataclass(frozen=True)
class Cost(Figures):
    """Cost of the injection: seconds, bytes of memory, and the share of the weights that it changed.

    Attributes:
        seconds: of optimisation and write, without key statistics.
        statistics: seconds of the key statistics that these injections computed, for every later one on the model.
    """

    seconds: float
    peak_memory: float
    fraction: float
    relative_norm: float
    bytes: float
    statistics: float | None = None


@dataclass(frozen=True)
class Failure(Figures):
    """A cell that could not be measured."""

    condition: str
    metric: str
    seed: int
    reason: str


@dataclass(frozen=True)
class Row(Figures):
    """One model, fingerprint set and method, seeds pooled.

    Attributes:
        trust: ``re-run``, ``re-scored``, ``claimed`` or ``reported``.
        avg: mean FSR of the six modifications; ``None`` unless all are there.
        out: why the row has no rank; ``None`` if it has one, for a base, and where reported.
        checked: what re-running a part of a claimed row gave.
        unreliable: why the method is contested.
        alike: cosine of ΔW with that of a method whose update is nearly the same, by its name.
        unconfined: what the code of a submission could reach when it was run, as far as its records say.
        cells: paths of the records behind the row.
        data: where the data sets were read from, by name (:func:`fpbench.data.origin`); several where records differ.
        removal: what thieves leave and what it costs them; ``None`` where nobody attacked.
        others: figures of further metrics, by name.
        limited: items that a smoke run (``--limit``) cut its measurements to; such a row is never ranked.
        by_seed: where several seeds are pooled, the row of each alone, without rank.
    """

    model: str
    method: str
    fingerprints: str
    trust: str
    protocol: int | None
    conditions: dict[str, Detectability]
    avg: float | None
    avg_interval: list[float] | None = None
    utility: Utility | None = None
    triggers: Triggers | None = None
    near: Near | None = None
    recombined: Near | None = None
    bands: Bands | None = None
    claim: Claim | None = None
    cost: Cost | None = None
    provenance: list[dict[str, Any]] = field(default_factory=list)
    rank: int | None = None
    out: str | None = None
    failed: list[Failure] = field(default_factory=list)
    checked: Checked | None = None
    unreliable: str | None = None
    alike: dict[str, float] | None = None
    unconfined: list[str] | None = None
    cells: list[str] = field(default_factory=list)
    source: str | None = None
    removal: Removal | None = None
    others: dict[str, dict[str, Any]] = field(default_factory=dict)
    data: dict[str, list[str]] = field(default_factory=dict)
    limited: int | None = None
    by_seed: dict[int, "Row"] = field(default_factory=dict)

    @property
    def key(self) -> RowKey:
        """Model, set and method."""
        return self.model, self.fingerprints, self.method

    @property
    def seeds(self) -> list[int]:
        """Every seed that a record behind the row has; none where reported."""
        return sorted({cell.seed for path in self.cells if (cell := Cell.at(path))})

    def to_dict(self) -> dict[str, Any]:
        """Return every figure, even if ``None``, but those that reported, measured or unattacked rows never have."""
        optional = ("alike", "limited", "removal", "unconfined")
        absent = {"by_seed", "others"} | {name for name in optional if getattr(self, name) is None}
        absent |= {"avg_interval", "cells", "checked", "out"} if self.trust == "reported" else {"source"}
        return {name: _json(each) for name, each in vars(self).items() if name not in absent} | self.others


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
    ranks = _ranks([row for row in rows if row.method != BASE and _out(row) is None], groups)
    rows = _with_removal_ranks(rows, groups)
    rows = [_with_claimed_thieves(row, groups, thieves, rescore) for row in rows]
    rows += [row for key, row in theirs.items() if key not in shown]
    reasons = contested(folder, {row.method for row in rows}) if rows else {}
    same = alike({each.key: each for each in (*claimed, *groups.values())}.values())
    rows = [
        replace(
            row,
            rank=ranks.get(row.key),
            out=None if row.method == BASE or row.key in ranks else _out(row) or "no seed in common",
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


def further_conditions(rows: Sequence[Row]) -> list[str]:
    """Return the conditions that are none of the protocol's seven and no attack, such as ``finetune_math+nf4``."""
    found = {name for row in rows for name in row.conditions if not is_attack(name)}
    return sorted(found - {ORIGIN, *MODIFICATIONS})


def _average_interval(conditions: Mapping[str, Detectability], average: float) -> list[float] | None:
    """Return the interval over fingerprints, each with its mean over the six; ``None`` if their numbers differ."""
    n, *others = (conditions[name].n for name in MODIFICATIONS)
    return None if n is None or any(other != n for other in others) else list(clopper_pearson(average * n, n))


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


def _out(row: Row) -> str | None:
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


def _ranks(rows: Sequence[Row], groups: Mapping[RowKey, Group]) -> dict[RowKey, int]:
    """Rank rows within the same model and set."""
    tables: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        tables.setdefault((row.model, row.fingerprints), []).append(row)
    ranks: dict[RowKey, int] = {}
    for place, table in tables.items():
        measured = {row.method: [groups[row.key].by_seed(name) for name in MODIFICATIONS] for row in table}
        # Fingerprints are paired: only seeds that every row of the table has can be compared.
        seeds = sorted(set.intersection(*(set(found) for conditions in measured.values() for found in conditions)))
        means = {
            method: [fmean(p) for seed in seeds for p in zip(*(found[seed] for found in conditions), strict=True)]
            for method, conditions in measured.items()
        }
        ranks |= {(*place, method): each for method, each in (rank(means) if seeds else {}).items()}
    return ranks


def _with_removal_ranks(rows: Sequence[Row], groups: Mapping[RowKey, Group]) -> list[Row]:
    """Rank rows within the same model and set by what the removal of each fingerprint costs."""
    out = {row.key: _out_of_removal(row) for row in rows if row.removal and row.method != BASE}
    ranks: dict[RowKey, int] = {}
    for place in dict.fromkeys(key[:2] for key, reason in out.items() if reason is None):
        table = {key: groups[key] for key, reason in out.items() if reason is None and key[:2] == place}
        # Fingerprints are paired, and every thief tunes on as many seeds: only those that every row has count.
        seeds = sorted(set.intersection(*(set(group.by_seed()) for group in table.values())))
        base = groups.get((*place, BASE))
        prices = {key[2]: prices_by_fingerprint(group, base, seeds) for key, group in table.items()} if seeds else {}
        ranks |= {(*place, method): each for method, each in rank(prices).items()}

    def ranked(row: Row) -> Row:
        if row.removal is None or row.method == BASE:
            return row
        reason = out[row.key] or (None if row.key in ranks else "no seed in common")
        return replace(row, removal=replace(row.removal, rank=ranks.get(row.key), out=reason))

    return [ranked(row) for row in rows]


def _out_of_removal(row: Row) -> str | None:
    """Return why a row has no rank in the removal table, or ``None``."""
    assert row.removal is not None
    if unranked := _unranked(row):
        return ", ".join(unranked)
    reasons = _harm(row) + ["no claim at origin"] * (not row.removal.claimable)
    return ", ".join(reasons + ["incomplete"] * bool(row.removal.missing)) or None


# The paper's own figures as rows: reported by its authors, not reproduced here.

# Table 1 has one figure a method and condition and does not say which set the baselines used (docs/methods.md §6).
SET = "as published"


@cache
def published() -> dict[str, Any]:
    """Return all tables of arXiv 2509.03122v3 that name a figure, in its own units."""
    found: dict[str, Any] = json.loads(Path(__file__).with_name("reported.json").read_text(encoding="utf-8"))
    return found


def reported_rows() -> list[Row]:
    """Return one row a model and method of arXiv 2509.03122v3, fractions instead of per cent."""
    rows = []
    for key, model in published()["models"].items():
        utility = published()["effectiveness_and_utility"][key]
        for method, found in utility.items():
            modified = dict(published()["detectability_fsr_sampled"][key].get(method, {}))
            average = modified.pop("avg_of_six_modifications", None)
            # LoRA and the base stand only in the paper's effectiveness table.
            origin = modified.pop(ORIGIN, found["fsr_sampled"]) / 100
            conditions = {name: Detectability(value / 100) for name, value in modified.items()}
            conditions[ORIGIN] = Detectability(origin, greedy=found["fsr_greedy"] // 10, n=10)
            difference = Difference(
                accuracy=(found["accuracy_avg"] - utility["none"]["accuracy_avg"]) / 100,
                token_perplexity=found["wikitext2_ppl"] / utility["none"]["wikitext2_ppl"] - 1,
            )
            rows.append(
                Row(
                    model=model,
                    method=BASE if method == "none" else method,
                    fingerprints=SET,
                    trust="reported",
                    protocol=None,
                    conditions=conditions,
                    avg=None if average is None else average / 100,
                    utility=Utility(
                        accuracy=found["accuracy_avg"] / 100,
                        token_perplexity={"perplexity": found["wikitext2_ppl"], "length": 2048},
                        difference=None if method == "none" else difference,
                    ),
                    source=published()["source"],
                )
            )
    return rows
