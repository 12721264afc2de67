"""Figures that cannot be: a record that holds one is refused by name, whoever made it."""

from collections.abc import Iterator
from math import isclose
from statistics import fmean
from typing import Any

from fpbench.board.records import Group, Measurement
from fpbench.errors import InputError

ERROR_BOUND = 1e-6  # protocol §3
SPARSITY = {"ria30": 0.30, "ria40": 0.40}
OFF_TARGET = 0.005


def check(group: Group) -> None:
    """Look at every finished measurement of a row.

    Raises:
        InputError: for the first figure that cannot be, naming the record and the figure.
    """
    for measured in (each for found in group.cells.values() for each in found if not each.reason):
        if measured.cell.metric == "fsr":
            _check_fsr(measured)
            _check_sparsity(measured)
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


def _check_sparsity(measured: Measurement) -> None:
    """Of a condition that prunes; a composition proves each of its parts under the part's name."""
    proof = measured.record.get("proof", {}).get("modification") or {}
    parts = {measured.cell.condition: proof} | {name: part for name, part in proof.items() if name in SPARSITY}
    for name, target in SPARSITY.items():
        if name in parts:
            achieved = parts[name].get("sparsity")
            if not _is_number(achieved) or not abs(achieved - target) <= OFF_TARGET:
                raise _impossible(measured, f"sparsity {achieved} is not within {OFF_TARGET} of {target}")


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
