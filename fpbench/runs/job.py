"""A run as plain data: what every process that measures cells of it has to know."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from fpbench.models.loading import Loading
from fpbench.runs.plan import Cell
from fpbench.runs.profile import Profile


@dataclass(frozen=True)
class Job:
    """Small, without torch, and the same on every node.

    Attributes:
        profile: what is measured.
        folders: checkpoint folders of the profile's models, by label; none for a base that is not known.
        loading: how models are loaded.
        out: folder of the store.
        handed_in: folder of a checkpoint that somebody hands in, in place of methods.
    """

    profile: Profile
    folders: dict[str, Path]
    loading: Loading
    out: Path
    handed_in: Path | None = None


def checkpoints(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Neighbouring cells of one checkpoint (model, set, method, seed) together."""
    key = lambda cell: (cell.model, cell.fingerprints, cell.method, cell.seed)  # noqa: E731
    return [list(group) for _, group in groupby(cells, key=key)]
