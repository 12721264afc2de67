"""From a profile to an ordered list of cells. Pure: reads no file, loads no model."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

from fpbench.modifications.composition import against_base
from fpbench.runs.profile import ORIGIN, Profile

BASE = "base"  # the method name of the unfingerprinted model
CHECKPOINT = "checkpoint"  # and of a checkpoint that somebody handed in


@dataclass(frozen=True)
class Cell:
    """One measurement of one checkpoint under one condition (protocol §1).

    Attributes:
        model: label of the model.
        fingerprints: name of the set.
        method: what injected it, or ``base``.
        seed: seed of injection and modification.
        condition: ``origin`` or a modification.
        metric: ``fsr``, ``utility``, ``triggers``, ``near``, ``bands`` or ``cost``.
    """

    model: str
    fingerprints: str
    method: str
    seed: int
    condition: str
    metric: str

    @property
    def path(self) -> str:
        """Where the cell's record stands below the records folder, without the ending."""
        return f"{self.model}/{self.fingerprints}/{self.method}/seed-{self.seed}/{self.condition}/{self.metric}"

    def __str__(self) -> str:
        return self.path

    @staticmethod
    def at(path: str) -> "Cell | None":
        """The cell whose :attr:`path` this is; ``None`` if none has it."""
        match path.split("/"):
            case [model, fingerprints, method, seed, condition, metric] if re.fullmatch(r"seed--?\d+", seed):
                return Cell(model, fingerprints, method, int(seed.removeprefix("seed-")), condition, metric)
        return None


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


def label_of(fingerprints: str) -> str:
    """What records call a set: its built-in name, or the stem of the user's file."""
    return PurePath(fingerprints).stem if fingerprints.endswith(".jsonl") else fingerprints


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
