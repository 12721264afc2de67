"""Checks before a figure is shown: impossible ones are refused, claimed ones compared, contested ones flagged."""

import tomllib
from collections.abc import Collection
from dataclasses import dataclass
from math import isclose
from pathlib import Path
from statistics import fmean
from typing import Any

from fpbench.board.groups import Group, Measurement
from fpbench.errors import InputError
from fpbench.metrics.measure import METRICS
from fpbench.modifications.base import classes, proofs
from fpbench.records.cell import Cell

# Figures that cannot be: a record that holds one is refused by name, whoever made it.

ERROR_BOUND = 1e-6  # protocol §3


def check(group: Group) -> None:
    """Check every finished measurement of a row.

    Raises:
        InputError: for the first figure that cannot be, naming the record and the figure.
    """
    for measured in (each for each in group.measurements() if not each.reason):
        if measured.cell.metric == "fsr":
            _check_fsr(measured)
        elif measured.cell.metric in ("triggers", "near"):
            for name, figures in measured.result.get("conditions", {"rate": measured.result}).items():
                _within(measured, name, figures.get("rate"), 1.0)
                _within(measured, f"{name}: greedy count", figures.get("greedy"), figures.get("n", 0))
            _within(measured, "error bound", measured.result.get("error_bound"), ERROR_BOUND)
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
    _within(measured, "error bound of fsr", result.get("error_bound"), ERROR_BOUND)
    for query in queries:
        _within(measured, "probability of a fingerprint", query["probability"], 1.0)
    greedy, n = result.get("greedy"), result.get("n")
    k = sum(query["greedy"] for query in queries)
    if (greedy, n) != (k, len(queries)):
        raise _impossible(measured, f"fsr_greedy {greedy}/{n} is not the k/n of its queries, {k}/{len(queries)}")
    mean = fmean(query["probability"] for query in queries)
    if not isclose(result["mean"], mean, abs_tol=1e-9):
        raise _impossible(measured, f"fsr {result['mean']} is not the mean of its queries, {mean}")
    # Each modification of the condition says what cannot be in its proof.
    proof = measured.record.proof.get("modification") or {}
    for name, own in proofs(measured.cell.condition, proof).items():
        if reason := classes(name)[0].implausible(own):
            raise _impossible(measured, reason)


def _within(measured: Measurement, name: str, value: Any, most: float) -> None:
    # Written so that a NaN is refused too.
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= most:
        raise _impossible(measured, f"{name} {value} is outside [0, {most:g}]")


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
    measured = {each.cell: each for each in own.measurements()}
    found = []
    for theirs in sorted(claimed.measurements(), key=lambda each: str(each.cell)):
        cell, ours, figure = theirs.cell, measured.get(theirs.cell), rate_of(theirs.cell.metric)
        if not figure or ours is None or theirs.reason is not None:
            continue
        if ours.record.checksum is not None and ours.record.checksum == theirs.record.checksum:
            continue
        rate, rerun = float(theirs.result[figure]), None if ours.reason else float(ours.result[figure])
        trained = any(each.trains for each in classes(cell.condition))
        allowed = None if cell.metric != "fsr" else ALLOWED_AFTER_TRAINING if trained else ALLOWED
        within = rerun is not None and (allowed is None or abs(rerun - rate) <= allowed)
        found.append(Comparison(cell, rate, rerun, allowed, within))
    return found


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
