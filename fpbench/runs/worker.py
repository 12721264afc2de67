"""The worker that measures the cells of a run in one process: the same under every engine."""

from collections.abc import Iterable, Sequence

import torch

from fpbench.errors import InputError
from fpbench.fingerprints import FingerprintSet
from fpbench.models.loading import check_ready
from fpbench.models.meter import Progress
from fpbench.records.cell import CHECKPOINT, Cell
from fpbench.records.record import Record
from fpbench.records.store import Store
from fpbench.runs.bench import Bench, check
from fpbench.runs.datasets import Datasets
from fpbench.runs.plan import Job
from fpbench.runs.sets import Sets, code_mixed, made_for_models, model_sets, written_sets
from fpbench.runs.subject import Subject
from fpbench.scoring.matching import check_spelled


class Worker:
    """Measures cells of a job, one checkpoint after another, with one model loaded at a time. One a process."""

    def __init__(self, job: Job, progress: Progress) -> None:
        """Read the written sets and nothing else yet; :class:`InputError` for an unknown or malformed set."""
        self.job, self.progress = job, progress
        self.store, self.datasets = Store(job.out), Datasets(job.profile)
        self.written = written_sets(job.profile)
        self._made: dict[str, Sets] = {}
        self._subject: Subject | None = None
        if job.profile.threads:
            torch.set_num_threads(job.profile.threads)

    def check(self, cells: Sequence[Cell]) -> None:
        """Read all sources, build all methods and modifications, without weights; :class:`InputError` if one fails."""
        profile = self.job.profile
        if self.job.handed_in and not self.job.folders:
            for name in code_mixed(profile):
                raise InputError(
                    f"set {name!r} is made for the unfingerprinted model: name it with --base, or give a file."
                )
        self.datasets.check()
        for label, handed_in in sorted({(cell.model, cell.method == CHECKPOINT) for cell in cells}):
            subject = self.subject(label, handed_in)
            tokenizer = check_ready(subject.folder, profile.prompt, self.job.loading, subject.tokenizer_of)
            for fingerprints in self.written.values():
                check_spelled(tokenizer, fingerprints.targets)
            check(subject, profile.methods, profile.conditions)

    def check_kept(self, cells: Sequence[Cell], records: Iterable[Record]) -> None:
        """Refuse to replace records of another checkpoint or set of the same name, and to count fingerprints twice.

        Raises:
            InputError: naming the folder, and what it holds already.
        """
        kept = {record.cell: record.identity for record in records if record.status == "done" and record.identity}
        seeds = {(cell.model, cell.fingerprints, kept[cell].get("fingerprints")): cell.seed for cell in kept}
        for cell in cells:
            own = self.written.get((cell.fingerprints, cell.seed))
            seed = seeds.get((cell.model, cell.fingerprints, own.digest), cell.seed) if own else cell.seed
            if seed != cell.seed:
                raise InputError(
                    f"output folder {self.job.out} holds records of the same {cell.fingerprints!r} at seed {seed}: at "
                    f"seed {cell.seed} its fingerprints would count twice; ask for both seeds together, where a set "
                    "that is drawn has other ones at the second, or choose another --out; nothing was written."
                )
        for cell in sorted(kept.keys() & set(cells), key=str):
            own, identity = self.written.get((cell.fingerprints, cell.seed)), kept[cell]
            if identity.get("model") != self.subject(cell.model, cell.method == CHECKPOINT).digest:
                what = f"checkpoint for {cell.model!r}" if cell.method == CHECKPOINT else f"model {cell.model!r}"
            elif own is not None and identity.get("fingerprints") != own.digest:
                what = f"set {cell.fingerprints!r}"
            else:
                continue
            raise InputError(
                f"output folder {self.job.out} holds records of another {what}, which would be replaced: choose "
                "another with --out, or remove the records; nothing was written."
            )

    def bench(self, cells: Sequence[Cell]) -> tuple[Bench, FingerprintSet]:
        """Return what measures the cells of one checkpoint, and their set, which is built if it is made for a model."""
        first = cells[0]
        if first.model not in self._made:
            # Made for the base, also where a checkpoint of it was handed in.
            made = made_for_models(self.job.profile)
            self._made[first.model] = model_sets(self.subject(first.model)) if made else {}
        sets = self.written | self._made[first.model]
        subject = self.subject(first.model, first.method == CHECKPOINT)
        others = {seed: found for (name, seed), found in sets.items() if name == first.fingerprints}
        return Bench(subject, others), sets[first.fingerprints, first.seed]

    def subject(self, label: str, handed_in: bool = False) -> Subject:
        """Return a model of the job, or the checkpoint that was handed in; the one before it is freed."""
        found = self._subject
        if found is None or (found.settings.label, found.handed_in) != (label, handed_in):
            found = self._subject = Subject(self.job, label, self.datasets, self.progress, handed_in)
        return found
