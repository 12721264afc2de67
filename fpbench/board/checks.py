"""Checks before a figure is shown: impossible ones are refused, claimed ones compared, contested ones flagged."""

import tomllib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import exp, fsum, inf, isclose
from pathlib import Path
from statistics import fmean
from typing import Any

from fpbench.adversaries.conditions import dose_of, modifications, proofs
from fpbench.adversaries.price import summary
from fpbench.board.groups import Group, Measurement
from fpbench.errors import InputError
from fpbench.metrics.lettered import TASK as LETTERED
from fpbench.metrics.measure import METRICS, UTILITY_TASKS
from fpbench.metrics.statistics import BANDS, band, clopper_pearson, leniently
from fpbench.records.cell import ORIGIN, Cell
from fpbench.text import printable

# Figures that cannot be: a record that holds one is refused by name, whoever made it.

ERROR_BOUND = 1e-6  # protocol §3
PLACES = [f"{case}_{place}" for case in ("upper", "lower") for place in ("substitute", "prefix", "infix", "suffix")]
# What a result may hold; of further metrics nothing is known but that their numbers are finite.
KEYS = {
    "fsr": "mean interval greedy n primary error_bound lenient own_tokenizer",
    "near": "rate greedy n interval error_bound",
    "recombined": "rate greedy n interval error_bound",
    "triggers": "conditions average activated n interval error_bound cut",
    "bands": "mean deviation counts auc benign histogram edges",
    "utility": "accuracy tasks word_perplexity max_length token_perplexity",
    "price": "responses answers letters refused text",
    "cost": "seconds peak_memory fraction relative_norm bytes dense_bytes rank weights_digest text",
}
MOST_LOSS = 700.0  # nats a token; exp overflows at 710
TASK_KEYS = "accuracy accuracy_normalized n truncated data anchors"
TEXT_KEYS = "perplexity length windows predicted tokens"


def check(group: Group) -> None:
    """Check every finished measurement of a row: what it holds, and every figure that follows from its queries.

    Raises:
        InputError: for the first figure that cannot be, naming the record and the figure.
    """
    for measured in (each for each in group.measurements() if not each.reason):
        metric = measured.cell.metric
        if metric in KEYS:
            try:
                CHECKS[metric](measured)
                _known(measured, metric, measured.result, KEYS[metric].split())
            except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
                what = f"{metric} is not what its metric gives ({printable(repr(error))})"
                raise _impossible(measured, what) from None
        for name, value in measured.record.cost.items():
            if name != "token_budgets":
                _within(measured, f"cost: {printable(name)}", value, inf)
    injected = {each.cell.seed: each.result.get("weights_digest") for each in group.get("cost") if not each.reason}
    for measured in (each for each in group.get("fsr") if not each.reason):
        scored = measured.record.proof.get("weights_digest")
        if measured.cell.seed in injected and scored != injected[measured.cell.seed]:
            raise _impossible(measured, f"weights scored at origin {scored} are not those injected")


def _check_fsr(measured: Measurement) -> None:
    result, queries = measured.result, measured.queries
    if not queries:
        raise _impossible(measured, "fsr has no per-query results")
    _within(measured, "fsr", result.get("mean"), 1.0)
    _within(measured, "fsr of the primary target", result.get("primary"), 1.0)
    _within(measured, "error bound of fsr", result.get("error_bound"), ERROR_BOUND)
    for query in queries:
        _within(measured, "probability of a fingerprint", query["probability"], 1.0)
        for share in query["per_target"]:
            _within(measured, "probability of a target", share, 1.0)
    greedy, n = result.get("greedy"), result.get("n")
    k = _count(measured, queries, "greedy")
    if (greedy, n) != (k, len(queries)):
        raise _impossible(measured, f"fsr_greedy {greedy}/{n} is not the k/n of its queries, {k}/{len(queries)}")
    mean = fmean(query["probability"] for query in queries)
    if not isclose(result["mean"], mean, abs_tol=1e-9):
        raise _impossible(measured, f"fsr {result['mean']} is not the mean of its queries, {mean}")
    if (lenient := result.get("lenient")) is not None:  # which the first records of this schema lack
        hidden = [_within(measured, "probability of a hidden match", query["hidden"], 1.0) for query in queries]
        _within(measured, "error bound of fsr_lenient", lenient["error_bound"], 1.0 + ERROR_BOUND)
        expected = leniently([query["probability"] for query in queries], hidden, lenient["error_bound"])
        _known(measured, "fsr_lenient", lenient, expected)
        if (lenient["mean"] is None) != (expected["mean"] is None):
            raise _impossible(measured, "fsr_lenient is not what its error bound allows")
        if expected["mean"] is not None:
            _same(measured, "fsr_lenient", lenient["mean"], expected["mean"])
            _within(measured, "fsr_lenient", lenient["mean"], 1.0 + ERROR_BOUND)
    if own := result.get("own_tokenizer"):
        _known(measured, "fsr by its own tokenizer", own, ["mean", "interval"])
        _same(measured, "fsr by its own tokenizer", own["mean"], fmean(query["own_tokenizer"] for query in queries))
        _within(measured, "fsr by its own tokenizer", own["mean"], 1.0)
    # Each modification of the condition says what cannot be in its proof.
    proof = measured.record.proof.get("modification") or {}
    for part, own in proofs(measured.cell.condition, proof).items():
        if reason := modifications(part)[0].implausible(own, dose_of(part)):
            raise _impossible(measured, reason)


def _check_near(measured: Measurement) -> None:
    result, queries = measured.result, measured.queries
    _within(measured, "rate", result["rate"], 1.0)
    _within(measured, "rate: greedy count", result["greedy"], result["n"])
    _within(measured, "error bound", result["error_bound"], ERROR_BOUND)
    p = [_within(measured, "probability of a text", query["probability"], 1.0) for query in queries]
    _same(measured, "number of texts", result["n"], len(p))
    _same(measured, "rate", result["rate"], fmean(p))
    _interval(measured, result["greedy"], result["n"])


def _check_triggers(measured: Measurement) -> None:
    result, found = measured.result, defaultdict(list)
    _within(measured, "error bound", result["error_bound"], ERROR_BOUND)
    _known(measured, "triggers", result["conditions"], PLACES)
    for name, figures in result["conditions"].items():
        _known(measured, name, figures, ["rate", "own", "greedy", "n"])
        _within(measured, name, figures.get("rate"), 1.0)
        _within(measured, f"{name}: greedy count", figures.get("greedy"), figures.get("n", 0))
    for query in measured.queries:
        for each in ("probability", "own"):
            _within(measured, f"{each} of a query", query[each], 1.0)
        found[query["condition"]].append(query)
    if found.keys() != result["conditions"].keys():
        raise _impossible(measured, "its kinds of text are not those of its queries")
    for name, queries in found.items():
        figures = result["conditions"][name]
        _same(measured, f"{name}: number of queries", figures["n"], len(queries))
        _same(measured, f"{name}: greedy count", figures["greedy"], _count(measured, queries, "greedy"))
        _same(measured, name, figures["rate"], fmean(query["probability"] for query in queries))
        _same(measured, f"{name}: own", figures["own"], fmean(query["own"] for query in queries))
    _same(measured, "average", result["average"], fmean(each["rate"] for each in result["conditions"].values()))
    activated = len({query["trigger_index"] for query in measured.queries if query["greedy"]})
    _same(measured, "number of activated triggers", result["activated"], activated)
    _within(measured, "number of activated triggers", activated, result["n"])
    _within(measured, "number of cut texts", result["cut"], len(measured.queries))
    _interval(measured, activated, result["n"])


def _check_bands(measured: Measurement) -> None:
    result, queries = measured.result, measured.queries
    for name in ("mean", "deviation", "benign"):
        _within(measured, name, result[name], inf)
    _within(measured, "auc", result["auc"], 1.0)
    for query in queries:
        _within(measured, "perplexity of a trigger", query["perplexity"], inf)
    counted = Counter(band(query["perplexity"], result["mean"], result["deviation"]) for query in queries)
    if result["counts"] != {name: counted[name] for name in BANDS}:
        raise _impossible(
            measured, f"bands {printable(str(result['counts']))} are not those of its queries, {dict(counted)}"
        )
    _same(measured, "number of instructions", result["benign"], sum(result["histogram"]))
    _same(measured, "number of edges", len(result["edges"]), len(result["histogram"]) + 1)


def _check_utility(measured: Measurement) -> None:
    result, found = measured.result, defaultdict(list)
    for query in measured.queries:
        found[query["task"]].append(query)
    tasks, text = result["tasks"], result["token_perplexity"]
    _known(measured, "tasks", tasks, (*UTILITY_TASKS, LETTERED))
    if other := found.keys() - tasks.keys() - {"windows", "wikitext"}:
        raise _impossible(measured, f"no task {printable(str(min(other)))!r} beside its queries")
    for name, figures in tasks.items():
        _known(measured, name, figures, TASK_KEYS.split())
        _same(measured, f"{name}: number of examples", figures["n"], len(found[name]))
        right = _count(measured, found[name], "correct")
        _same(measured, f"accuracy of {name}", figures["accuracy"], right / figures["n"])
    if result["accuracy"] is not None:  # without one of the four tasks there is none
        _same(
            measured,
            "accuracy",
            result["accuracy"],
            fmean(tasks[name]["accuracy"] for name in tasks if name != LETTERED),
        )
    if (word := result["word_perplexity"]) is not None:
        total = fsum(query["log_likelihood"] for query in found["wikitext"])
        _same(measured, "word perplexity", word, exp(-total / sum(query["words"] for query in found["wikitext"])))
    if text is not None:
        _known(measured, "token perplexity", text, TEXT_KEYS.split())
        _within(measured, "token perplexity", text["perplexity"], inf)
        _within(measured, "length of a window", text["length"], inf)
        if losses := [query["loss"] for query in found["windows"]]:  # which the first records of this schema lack
            mean = fsum(losses) / (len(losses) * (text["length"] - 1))
            _same(measured, "token perplexity", text["perplexity"], exp(mean))


def _check_price(measured: Measurement) -> None:
    result = measured.result
    found: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
    for query in measured.queries:
        channel, index = query["channel"], query["index"]
        if channel not in KEYS["price"].split() or index in found[channel]:
            raise _impossible(measured, f"item {printable(repr(index))} of channel {printable(repr(channel))}")
        found[channel][index] = query
        if channel in ("answers", "letters"):
            _within(measured, "probability of an answer", query["probability"], 1.0)
        elif channel != "refused":
            _within(measured, f"tokens of an item of {channel}", query["tokens"], inf)
            _within(measured, f"loss of an item of {channel}", query["loss"], MOST_LOSS * query["tokens"])
    _count(measured, list(found["refused"].values()), "refused")
    # What is refused has no response, and everything else has one.
    answered = {index for index, query in found["refused"].items() if not query["refused"]}
    if found["responses"].keys() != answered:
        raise _impossible(measured, "its responses are not those to the instructions that were not refused")
    for name, expected in summary(measured.queries).items():
        given = result[name]
        if not isinstance(expected, dict):
            expected, given = {"share": expected}, {"share": given}
        _known(measured, name, given, list(expected))
        for figure, value in expected.items():
            if value is None and given[figure] is not None:
                raise _impossible(measured, f"{name} without an item")
            if value is not None:
                _same(measured, f"{name}: {figure}", given[figure], value)


def _check_cost(measured: Measurement) -> None:
    for name, value in measured.result["seconds"].items():
        _within(measured, f"seconds of {printable(name)}", value, inf)
    _within(measured, "fraction", measured.result["fraction"], 1.0)
    for name, value in measured.result.get("text", {}).items():
        _within(measured, f"text of key statistics: {printable(name)}", value, inf)
    for name in measured.result.keys() - {"seconds", "weights_digest", "text"}:
        _within(measured, name, measured.result[name], inf)


CHECKS = {
    "fsr": _check_fsr,
    "near": _check_near,
    "recombined": _check_near,
    "triggers": _check_triggers,
    "bands": _check_bands,
    "utility": _check_utility,
    "price": _check_price,
    "cost": _check_cost,
}


def _known(measured: Measurement, name: str, found: Mapping[str, Any], known: Collection[str]) -> None:
    if unknown := found.keys() - set(known):
        raise _impossible(
            measured, f"{name} with a figure {printable(min(unknown))!r}, which is none of {', '.join(known)}"
        )


def _count(measured: Measurement, queries: Sequence[Mapping[str, Any]], name: str) -> int:
    if not all(isinstance(query[name], bool) for query in queries):
        raise _impossible(measured, f"{name} of a query is neither true nor false")
    return sum(query[name] for query in queries)


def _interval(measured: Measurement, k: int, n: int) -> None:
    for name, value, expected in zip(("from", "to"), measured.result["interval"], clopper_pearson(k, n), strict=True):
        _same(measured, f"interval {name}", value, expected)


def _same(measured: Measurement, name: str, value: Any, expected: float) -> None:
    # True is no number, as for _within.
    if isinstance(value, bool) or not isclose(value, expected, rel_tol=1e-9, abs_tol=1e-9):
        raise _impossible(measured, f"{name} {value} is not that of its queries, {expected}")


def _within(measured: Measurement, name: str, value: Any, most: float) -> float:
    # Written so that a NaN is refused too.
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= most:
        raise _impossible(measured, f"{name} {value} is outside [0, {most:g}]")
    return value


def _impossible(measured: Measurement, what: str) -> InputError:
    return InputError(f"record {measured.cell}: {what}; that cannot be: measure it again, or remove the record.")


# Figures that somebody handed in, beside ours of the same cells.

ALLOWED, ALLOWED_AFTER_TRAINING = 0.02, 0.10


def rate_of(metric: str) -> str:
    """Return the name of the figure by which two measurements of a cell are compared; empty if they are not."""
    return (METRICS[metric].rate or "") if metric in METRICS else ""


@dataclass(frozen=True)
class Comparison:
    """A cell that both sides measured.

    Attributes:
        rerun: our figure; ``None`` where the cell failed here.
        allowed: how far it may be from the claimed one; ``None`` for texts that are drawn again, which are not judged.
        within: whether it is that near.
    """

    cell: Cell
    claimed: float
    rerun: float | None
    allowed: float | None
    within: bool

    def to_dict(self) -> dict[str, Any]:
        """Return it as it stands in a row, which names model, set and method."""
        where = {name: getattr(self.cell, name) for name in ("condition", "metric", "seed")}
        return where | {name: each for name, each in vars(self).items() if name != "cell"}


@dataclass(frozen=True)
class Checked:
    """A claimed row beside our re-run of a part of it.

    Attributes:
        of: number of cells handed in whose figure can be compared.
        outside: number of comparisons that are not within what is allowed.
    """

    compared: list[Comparison]
    of: int
    outside: int

    def to_dict(self) -> dict[str, Any]:
        """Return it as it stands in a row."""
        return vars(self) | {"compared": [each.to_dict() for each in self.compared]}


def compare(own: Group, claimed: Group) -> list[Comparison]:
    """Compare every cell that both sides have measured, each on their own.

    FSR may differ by 0.02, and by 0.10 after training, where an order of summation decides. Near and accidental
    triggers are drawn from a seed that the submitter does not know, so these are other texts: both rates are shown, and
    no difference is allowed or forbidden. A copy of a record is no second measurement.
    """
    found = []
    for ours, theirs in _measured_twice(own, claimed):
        cell, figure = theirs.cell, rate_of(theirs.cell.metric)
        if not figure or theirs.reason is not None:
            continue
        rate, rerun = float(theirs.result[figure]), None if ours.reason else float(ours.result[figure])
        trained = any(each.trains for each in modifications(cell.condition))
        allowed = None if cell.metric != "fsr" else ALLOWED_AFTER_TRAINING if trained else ALLOWED
        within = rerun is not None and (allowed is None or abs(rerun - rate) <= allowed)
        found.append(Comparison(cell, rate, rerun, allowed, within))
    return found


def compare_prices(own: Group, claimed: Group) -> list[Comparison]:
    """Compare the long price of every attack whose items both sides have measured on a row; it may differ by 0.02."""
    found = []
    for _, theirs in _measured_twice(own, claimed):
        cell = theirs.cell
        price = claimed.prices(cell.condition).get(cell.seed) if cell.metric == "price" else None
        if cell.condition == ORIGIN or price is None:
            continue
        again = own.prices(cell.condition).get(cell.seed)
        rerun = None if again is None else again.long
        within = rerun is not None and abs(rerun - price.long) <= ALLOWED
        found.append(Comparison(cell, price.long, rerun, ALLOWED, within))
    return found


def _measured_twice(own: Group, claimed: Group) -> Iterator[tuple[Measurement, Measurement]]:
    """Yield our measurement and theirs of every cell that has both, sorted by cell; a copy is no second one."""
    measured = {each.cell: each for each in own.measurements()}
    for theirs in sorted(claimed.measurements(), key=lambda each: str(each.cell)):
        ours = measured.get(theirs.cell)
        if ours is None or (ours.record.checksum is not None and ours.record.checksum == theirs.record.checksum):
            continue
        yield ours, theirs


def checked(own: Group, claimed: Group) -> Checked:
    """Compare what was handed in with what was measured here of the same row."""
    found, of = compare(own, claimed), sum(rate_of(each.cell.metric) != "" for each in claimed.measurements())
    return Checked(found, of, sum(not each.within for each in found))


def covers(own: Group, claimed: Group) -> bool:
    """Return whether everything that was handed in was measured here, too."""
    return {each.cell for each in claimed.measurements()} <= {each.cell for each in own.measurements()}


# Methods whose figures somebody has contested: ``contested.toml`` beside the records.

CONTESTED = "contested.toml"


def contested(folder: Path, methods: Collection[str]) -> dict[str, str]:
    """Return why each contested method is unreliable; empty where the folder of the records has no such file.

    Raises:
        InputError: if the file is no TOML of ``method = "reason"``, or names a method that has no record.
    """
    path = folder / CONTESTED
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a readable TOML file: {error}") from None
    for method, reason in found.items():
        if not isinstance(reason, str) or not reason.strip():
            raise InputError(f'{path}, key {method!r}: expected a reason, as in {method} = "why", found {reason!r}.')
        if method not in methods:
            raise InputError(f"{path} contests method {method!r}, of which there is no record: remove it.")
    return found
