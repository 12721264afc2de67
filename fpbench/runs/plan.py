"""From a profile to an ordered list of cells. Pure: reads no file, loads no model."""

from collections.abc import Sequence

from fpbench.modifications.base import against_base
from fpbench.records.cell import BASE, CHECKPOINT, ORIGIN, Cell, label_of
from fpbench.runs.profile import Profile


def metrics_of(method: str, condition: str) -> tuple[str, ...]:
    """What is measured where (protocol §1)."""
    if condition != ORIGIN:
        # Merging the base with itself changes nothing, and has no fingerprint to spare.
        return () if method == BASE and against_base(condition) else ("fsr",)
    if method == BASE:
        return ("bands", "fsr", "utility")
    measured = ("fsr", "triggers", "near", "utility")
    # What a handed-in checkpoint cost its maker cannot be seen from here.
    return measured if method == CHECKPOINT else ("cost", *measured)


def plan(profile: Profile, methods: Sequence[str] | None = None) -> list[Cell]:
    """Every cell of the grid, in the order in which the work is cheapest.

    All cells of one checkpoint stand together, and of these all cells of one condition.

    Args:
        profile: what to measure.
        methods: by default the base, which is always in the table, and the profile's methods.
    """
    # Origin first: it needs no modification, and what cannot be measured there need not be modified.
    conditions = sorted(profile.conditions, key=lambda condition: condition != ORIGIN)
    return [
        Cell(model.label, label_of(fingerprints), method, seed, condition, metric)
        for model in profile.models
        for fingerprints in profile.fingerprints
        for seed in profile.seeds
        for method in methods or (BASE, *profile.methods)
        for condition in conditions
        for metric in metrics_of(method, condition)
    ]
