"""Figures that somebody handed in, beside our own of the same cells (how far a claim is to be believed)."""

from typing import Any

from fpbench.board.records import Group, Measurement
from fpbench.modifications.composition import parts
from fpbench.runs.plan import Cell

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
    return any(part.startswith(("finetune", "fsft")) for part in parts(condition))
