"""Methods whose figures somebody has contested: ``contested.toml`` beside the records, a method and a reason a line."""

import tomllib
from collections.abc import Collection, Iterator
from math import isclose
from pathlib import Path
from statistics import fmean
from typing import Any

from fpbench.board.groups import Group, Measurement
from fpbench.errors import InputError
from fpbench.modifications.base import classes, proofs
from fpbench.records.cell import Cell

FILE = "contested.toml"


def contested(folder: Path, methods: Collection[str]) -> dict[str, str]:
    """Why each contested method is unreliable; empty where there is no such file.

    Args:
        folder: of the records.
        methods: that have records there.

    Raises:
        InputError: if the file is no TOML of ``method = "reason"``, or names a method that has no record.
    """
    path = folder / FILE
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


# Figures that cannot be: a record that holds one is refused by name, whoever made it.


ERROR_BOUND = 1e-6  # protocol §3


def check(group: Group) -> None:
    """Look at every finished measurement of a row.

    Raises:
        InputError: for the first figure that cannot be, naming the record and the figure.
    """
    for measured in (each for found in group.cells.values() for each in found if not each.reason):
        if measured.cell.metric == "fsr":
            _check_fsr(measured)
            _check_proof(measured)
        elif measured.cell.metric in ("triggers", "near"):
            for name, figures in _rates(measured.result):
                _within(measured, name, figures.get("rate"), 1.0)
                _within(measured, f"{name}: greedy count", figures.get("greedy"), figures.get("n", 0))
            _within(measured, "error bound", measured.result.get("error_bound"), ERROR_BOUND)
    injected = {each.cell.seed: each.result.get("weights_digest") for each in group.get("cost") if not each.reason}
    for measured in (each for each in group.get("fsr") if not each.reason):
        scored = measured.record.get("proof", {}).get("weights_digest")
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


def _check_proof(measured: Measurement) -> None:
    """Ask each modification of the condition for what cannot be in its proof."""
    proof = measured.record.get("proof", {}).get("modification") or {}
    for name, own in proofs(measured.cell.condition, proof).items():
        if reason := classes(name)[0].implausible(own):
            raise _impossible(measured, reason)


def _rates(result: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Figures of every kind of text, by its name."""
    if "conditions" in result:
        yield from result["conditions"].items()
    else:
        yield "rate", result


def _within(measured: Measurement, name: str, value: Any, most: float) -> None:
    # Written so that a NaN is refused too.
    if not _is_number(value) or not 0 <= value <= most:
        raise _impossible(measured, f"{name} {value} is outside [0, {most:g}]")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _impossible(measured: Measurement, what: str) -> InputError:
    return InputError(f"record {measured.cell}: {what}; that cannot be: measure it again, or remove the record.")


# Figures that somebody handed in, beside our own of the same cells (how far a claim is to be believed).


Row = dict[str, Any]
ALLOWED, ALLOWED_AFTER_TRAINING = 0.02, 0.10
RATES = {"fsr": "mean", "near": "rate", "triggers": "average"}


def compare(own: Group, claimed: Group) -> list[Row]:
    """Every cell that both sides have measured, each on their own, with both figures.

    FSR may differ by 0.02, and by 0.10 after training, where an order of summation decides. Near and accidental
    triggers are drawn from a seed that the submitter does not know, so these are other texts: both rates are shown, and
    no difference is allowed or forbidden.

    Returns:
        One comparison per cell, in their order: the cell's condition, metric and seed, ``claimed`` and ``rerun``
        (``None`` for a cell that failed here), ``allowed`` (``None`` for none) and whether it is ``within``.
    """
    measured = {each.cell: each for found in own.cells.values() for each in found}
    handed_in = [each for found in claimed.cells.values() for each in found if each.cell.metric in RATES]
    return [
        _compared(each.cell, _figure(each), _figure(measured[each.cell]))
        for each in sorted(handed_in, key=lambda each: str(each.cell))
        if each.cell in measured and each.reason is None and not _one(each, measured[each.cell])
    ]


def summary(own: Group, claimed: Group) -> Row:
    """What came of re-running a part of what was handed in.

    Returns:
        ``compared``, as :func:`compare` gives it; ``of``, the number of cells handed in whose figure can be compared;
        ``outside``, the number of comparisons that are not within what is allowed.
    """
    found = compare(own, claimed)
    of = sum(each.cell.metric in RATES for cells in claimed.cells.values() for each in cells)
    return {"compared": found, "of": of, "outside": sum(not each["within"] for each in found)}


def covers(own: Group, claimed: Group) -> bool:
    """Whether everything that was handed in was measured here, too."""
    measured = {each.cell for found in own.cells.values() for each in found}
    return all(each.cell in measured for found in claimed.cells.values() for each in found)


def _one(claimed: Measurement, own: Measurement) -> bool:
    """Whether both are the same record: a copy of a measurement is no second one."""
    return "checksum" in own.record and own.record["checksum"] == claimed.record.get("checksum")


def _figure(measurement: Measurement) -> float | None:
    if measurement.reason is not None:
        return None
    return float(measurement.result[RATES[measurement.cell.metric]])


def _compared(cell: Cell, claimed: float | None, rerun: float | None) -> Row:
    assert claimed is not None, "what failed there is not compared"
    allowed = None if cell.metric != "fsr" else ALLOWED_AFTER_TRAINING if _trained(cell.condition) else ALLOWED
    within = rerun is not None and (allowed is None or abs(rerun - claimed) <= allowed)
    where = {"condition": cell.condition, "metric": cell.metric, "seed": cell.seed}
    return where | {"claimed": claimed, "rerun": rerun, "allowed": allowed, "within": within}


def _trained(condition: str) -> bool:
    return any(each.trains for each in classes(condition))
