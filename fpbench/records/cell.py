"""The cell: what one record measures, and where it stands."""

import re
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, ClassVar, Literal

from pydantic import StrictInt

from fpbench.text import writable

BASE = "base"  # the method name of the unfingerprinted model
CHECKPOINT = "checkpoint"  # and of a checkpoint that somebody handed in
ORIGIN = "origin"  # the condition of an unmodified checkpoint
PROTOCOL: Literal[2] = 2


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

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    model: str
    fingerprints: str
    method: str
    seed: StrictInt
    condition: str
    metric: str

    @property
    def path(self) -> str:
        """The place of the cell's record below the records folder, without the ending."""
        return f"{self.model}/{self.fingerprints}/{self.method}/seed-{self.seed}/{self.condition}/{self.metric}"

    def __str__(self) -> str:
        return self.path

    @staticmethod
    def at(path: str) -> "Cell | None":
        """Return the cell whose :attr:`path` this is; ``None`` if none has it, or UTF-8 cannot hold it."""
        match path.split("/"):
            case [model, fingerprints, method, seed, condition, metric] if re.fullmatch(r"seed--?\d+", seed):
                cell = Cell(model, fingerprints, method, int(seed.removeprefix("seed-")), condition, metric)
                # Not of ``seed-042``, which would be a second place of one cell.
                return cell if cell.path == path and path == writable(path) else None
        return None


def label_of(fingerprints: str) -> str:
    """Return a set's name in records: its built-in name, or the stem of the user's file."""
    return PurePath(fingerprints).stem if fingerprints.endswith((".jsonl", ".json")) else fingerprints
