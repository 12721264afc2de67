"""From a profile to an ordered list of cells, and the job that measures them. Loads no model and imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from fpbench.adversaries.conditions import against_base
from fpbench.metrics.measure import METRICS
from fpbench.models.checkpoints import resolve
from fpbench.models.loading import Loading
from fpbench.records.cell import BASE, ORIGIN, Cell
from fpbench.runs.profile import ModelSettings, Profile


def metrics_of(
    method: str, condition: str, conditions: Sequence[str], requested: bool = False, further: bool = False
) -> tuple[str, ...]:
    """Return the names of what is measured of a method under one of a run's conditions (protocol §1).

    With ``requested`` also what is measured there on request only; at a ``further`` seed less.
    """
    if method == BASE and condition != ORIGIN and against_base(condition):
        return ()  # merging the base with itself changes nothing
    return tuple(
        name
        for name, each in METRICS.items()
        if (each.where(method, condition) and each.asked(method, conditions) and not (each.once and further))
        or (requested and each.on_request(method, condition))
    )


def plan(profile: Profile, methods: Sequence[str] | None = None) -> list[Cell]:
    """Return every cell of the grid, by default of the base and the profile's methods."""
    # The work is cheapest where the cells of a checkpoint stand together, and of these those of a condition. Origin
    # first: it needs no modification, and what cannot be measured there need not be modified.
    conditions = sorted(profile.conditions, key=lambda condition: condition != ORIGIN)
    return [
        Cell(model.label, profile.set_label(fingerprints), method, seed, condition, metric)
        for model in profile.models
        for fingerprints in profile.fingerprints
        for seed in profile.seeds
        for method in methods or (BASE, *profile.methods)
        for condition in conditions
        for metric in metrics_of(
            method, condition, conditions, profile.utility_at_doses, further=seed != profile.seeds[0]
        )
    ]


def checkpoints(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Group neighbouring cells of one checkpoint (model, set, method, seed)."""
    key = lambda cell: (cell.model, cell.fingerprints, cell.method, cell.seed)  # noqa: E731
    return [list(group) for _, group in groupby(cells, key=key)]


def precise(loading: Loading, profile: Profile) -> Loading:
    """Return the loading options with the profile's dtype, unless another was asked for."""
    return replace(loading, dtype=loading.dtype or profile.dtype)


@dataclass(frozen=True)
class Job:
    """A run as plain data: small, and the same in every process and on every node that measures cells of it."""

    profile: Profile
    folders: dict[str, Path]  # checkpoints of the profile's models, by label; none for a base that is not known
    loading: Loading
    out: Path  # folder of the store
    handed_in: Path | None = None  # a checkpoint that is measured in place of methods

    @classmethod
    def of(cls, profile: Profile, loading: Loading, out: Path) -> "Job":
        """Return the job of a profile; :class:`InputError` if one of its models is not found or may not be loaded."""
        pickle, models = loading.allow_pickle, profile.models
        folders = {each.label: resolve(each.path, revision=each.revision, allow_pickle=pickle) for each in models}
        return cls(profile, folders, precise(loading, profile), out)

    def settings(self, label: str) -> ModelSettings:
        """Return the profile's settings of a model."""
        return next(each for each in self.profile.models if each.label == label)

    def folder(self, label: str, handed_in: bool) -> Path:
        """Return the folder of a model, or of the checkpoint that was handed in beside it."""
        folder = self.handed_in if handed_in else self.folders.get(label)
        assert folder is not None, "a job has a folder for each of its cells"
        return folder
