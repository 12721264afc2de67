"""What measures the cells of a run in one process: the same under every engine."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch

from fpbench.errors import InputError
from fpbench.models.loading import Loading, check_ready
from fpbench.records.cell import CHECKPOINT, Cell
from fpbench.records.store import Store
from fpbench.runs.bench import Bench, Progress
from fpbench.runs.datasets import Materials
from fpbench.runs.profile import Profile
from fpbench.runs.sets import Sets, code_mixed, made_for_models, model_sets, written_sets

# A run as plain data: what every process that measures cells of it has to know.


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


class Worker:
    """Measures cells of a job, one checkpoint after another, with one model loaded at a time."""

    def __init__(self, job: Job, progress: Progress) -> None:
        """Read the written sets; nothing else is read yet.

        Raises:
            InputError: for an unknown or malformed set.
        """
        self.job, self.progress = job, progress
        self.store, self.materials = Store(job.out), Materials(job.profile)
        self._written = written_sets(job.profile)
        self._made: dict[str, Sets] = {}
        self._open: tuple[str, bool] | None = None
        if job.profile.threads:
            torch.set_num_threads(job.profile.threads)

    def check(self, cells: Sequence[Cell]) -> None:
        """Read every source, and build every method and modification for every model, without weights.

        Raises:
            InputError: for what is missing, malformed, unknown to a method, or cannot be loaded or asked here.
        """
        if self.job.handed_in and not self.job.folders:
            for name in code_mixed(self.job.profile):
                raise InputError(
                    f"set {name!r} is made for the unfingerprinted model: name it with --base, or give a file."
                )
        self.materials.check()
        for label, handed_in in sorted({(cell.model, cell.method == CHECKPOINT) for cell in cells}):
            bench = self.bench(label, handed_in)
            check_ready(bench.folder, self.job.profile.prompt, self.job.loading, bench.base)
            bench.check(self.job.profile.methods, self.job.profile.conditions)

    def measure(self, cells: Sequence[Cell]) -> tuple[dict[str, str], Iterator[tuple[Cell, str | None]]]:
        """Measure the cells of one checkpoint, as :meth:`Bench.measure` does."""
        first = cells[0]
        if first.model not in self._made:
            # Made for the base, also where a checkpoint of it was handed in.
            self._made[first.model] = model_sets(self.bench(first.model)) if made_for_models(self.job.profile) else {}
        sets = self._written | self._made[first.model]
        bench = self.bench(first.model, first.method == CHECKPOINT)
        return bench.measure(cells, sets[first.fingerprints, first.seed])

    def bench(self, label: str, handed_in: bool = False) -> Bench:
        """The bench of a model, or of the checkpoint that was handed in; the one before it is let go."""
        if self._open != (label, handed_in):
            job = self.job
            (settings,) = (each for each in job.profile.models if each.label == label)
            folder, base = job.folders.get(label), None
            if handed_in:
                folder, base = job.handed_in, folder
            assert folder is not None, "a job has a folder for each of its cells"
            shared = job.loading, self.materials, self.store, self.progress
            self._bench = Bench(job.profile, settings, folder, *shared, base)
            self._open = (label, handed_in)
        return self._bench
