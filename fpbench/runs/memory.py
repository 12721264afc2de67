"""How much memory and disk a run takes: what is resident when, counted from the architecture alone."""

import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from fpbench.errors import InputError
from fpbench.methods.base import FingerprintMethod
from fpbench.metrics.measure import METRICS
from fpbench.models.costs import TRAINING_LENGTH, Phase, Room, Shape
from fpbench.records.cell import CHECKPOINT, ORIGIN, Cell
from fpbench.runs.plan import Job, checkpoints
from fpbench.runs.sets import COUNT
from fpbench.runs.worker import Worker
from fpbench.scoring.engine import LOGIT_BUDGET, token_budget

MIB, GIB = 2**20, 2**30
# Resident once torch, transformers, peft, lm-eval and bitsandbytes are imported; measured on Linux without a card.
LIBRARIES = 640 * MIB
SCORED_AT_ONCE = 256  # logits that are in float32 at once, twice
# While answers are walked, rows of the cache are copied for what continues them: so often that of a full batch, as
# measured on the micro model where every query activates.
WALKED = 8
# Without a card, the C library's heap keeps gaps between what is in use; measured likewise, without and with it.
GAPS = 1.5


class Residency(Shape):
    """What is resident when, for one model."""

    def resident(self) -> Phase:
        """The model, and the copies of its weights that every modification is undone with."""
        return Phase("model", Room(self.weights), Room(self.weights))

    def scoring(self, walking: bool) -> Phase:
        """A full batch: what is read, and the logits that are asked for.

        Args:
            walking: whether answers of many queries are walked, with copies of their keys and values.
        """
        tokens = self.loading.token_budget or token_budget()
        copies = WALKED * tokens * self.blocks * self.cached * self.bytes if walking else 0
        # Logits, and what of them is in float32 at the moment.
        logits = min(tokens * self.vocabulary, LOGIT_BUDGET) * self.bytes + SCORED_AT_ONCE * self.vocabulary * 8
        return Phase("scoring", Room(passing=self.reading(tokens) + max(logits, copies)))

    def spectra(self, methods: Iterable[FingerprintMethod]) -> float:
        """Bytes of the key statistics of all modules that some methods ask for, in main memory and on disk."""
        modules = {self.model.get_submodule(name) for each in methods for name in each.statistics_of(self.model)}
        return float(sum(4 * each.in_features**2 for each in modules))  # type: ignore[operator, misc, arg-type]


def peak(phases: Sequence[Phase], card: bool) -> tuple[Room, Room]:
    """Most that is taken at once: in main memory, libraries included, and on the card.

    Args:
        phases: the first stays, the others come one after another.
        card: whether ``device`` means a card.
    """
    stays, others = phases[0], phases[1:] or [Phase("", Room())]
    libraries = Room(LIBRARIES)
    if not card:
        most = _most(each.device + each.main for each in others)
        return libraries + stays.device + stays.main + Room(most.fixed, GAPS * most.passing), Room()
    main, device = _most(each.main for each in others), _most(each.device for each in others)
    return libraries + stays.main + main, stays.device + device


def _most(rooms: Iterable[Room]) -> Room:
    """Most of each kind: what may not fit and what always must can belong to different phases."""
    found = list(rooms)
    fixed = max(room.fixed for room in found)
    return Room(fixed, max(room.total for room in found) - fixed)


def free_memory() -> float:
    """Bytes of main memory that nobody uses, this process's own included."""
    return float(psutil.virtual_memory().available + psutil.Process().memory_info().rss)


def free_card(device: str) -> float:
    """Bytes of a card that nobody uses."""
    return float(torch.cuda.mem_get_info(device)[0])


def free_disk(folder: Path) -> float:
    """Bytes that are free where ``folder`` is or would be."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return float(shutil.disk_usage(there).free)


def shown(size: float) -> str:
    """A size to read."""
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / MIB:.0f} MiB"


# What a job needs of memory and disk; what cannot fit is refused before anything starts.


RECORD, QUERY = 8_192, 140  # bytes of a record, and of a line of its per-query results


@dataclass(frozen=True)
class Needs:
    """What the cells of one model need at the peak.

    Attributes:
        label: of the model.
        main: of main memory.
        card: of the card; nothing without one.
        disk: in the folder of the store, bytes.
    """

    label: str
    main: Room
    card: Room
    disk: float

    def short(self, device: str) -> str | None:
        """What no smaller batch makes fit, in a sentence; ``None`` where everything fits."""
        for what, room, free in (
            ("main memory", self.main.fixed, free_memory()),
            ("memory on the card", self.card.fixed, free_card(device) if self.card.fixed else 0.0),
        ):
            if room > free:
                return (
                    f"model {self.label!r} cannot be run here: weights, copies and statistics need {shown(room)} of "
                    f"{what}, {shown(free)} are free; take a smaller model, --dtype bfloat16 or another machine, or "
                    "leave out methods and conditions."
                )
        return None


def needs_of(label: str, worker: Worker, cells: Sequence[Cell], training_length: int = TRAINING_LENGTH) -> Needs:
    """What some cells of one model need, by its architecture alone.

    Args:
        label: of the model.
        worker: gives methods and modifications; it measures nothing.
        cells: those without a record.
        training_length: tokens of the longest rows that are trained on.
    """
    job, handed_in = worker.job, any(cell.method == CHECKPOINT for cell in cells)
    subject = worker.subject(label, handed_in)
    residency = Residency(subject.architecture, job.loading, training_length)
    phases = [residency.resident()]
    methods: dict[str, FingerprintMethod] = {
        name: subject.method(name)
        for name in dict.fromkeys(cell.method for cell in cells)
        if name in job.profile.methods
    }
    if handed_in and label in job.folders:
        phases.append(Phase("base", Room(), Room(residency.weights)))
    spectra = residency.spectra(methods.values())
    phases[0] = Phase("model", phases[0].device, phases[0].main + Room(spectra))
    phases.append(residency.scoring(any(cell.metric == "triggers" for cell in cells)))
    phases += [method.memory(residency) for method in methods.values()]
    for condition in dict.fromkeys(cell.condition for cell in cells if cell.condition != ORIGIN):
        phases += [part.memory(residency) for part in subject.modification(condition).parts]
    main, card = peak(phases, job.loading.device != "cpu")
    deltas = sum(
        methods[group[0].method].stored(residency, COUNT) for group in checkpoints(cells) if group[0].method in methods
    )
    return Needs(label, main, card, deltas + spectra + sum(_recorded(worker, cell) for cell in cells))


def require_room(worker: Worker, cells: Sequence[Cell]) -> None:
    """Refuse a job that this machine has not the memory or the disk for; reads no weights.

    Raises:
        InputError: naming the model, what it needs and what is free.
    """
    refuse([needs_of(label, worker, own) for label, own in by_model(cells)], worker.job)


def refuse(needs: Sequence[Needs], job: Job) -> None:
    """Refuse what this machine has not the memory or the disk for.

    Raises:
        InputError: naming what is short of what.
    """
    for each in needs:
        if reason := each.short(job.loading.device):
            raise InputError(reason)
    out = job.out
    disk, free = sum(each.disk for each in needs), free_disk(out)
    if disk > free:
        raise InputError(
            f"the run would write {shown(disk)} to {out}, where {shown(free)} are free: choose another disk with --out."
        )


def by_model(cells: Sequence[Cell]) -> Iterator[tuple[str, list[Cell]]]:
    """The cells of each model, in order."""
    for label in dict.fromkeys(cell.model for cell in cells):
        yield label, [cell for cell in cells if cell.model == label]


def _recorded(worker: Worker, cell: Cell) -> float:
    """Bytes of a cell's record and its per-query results."""
    return RECORD + QUERY * METRICS[cell.metric].queries(worker.job.profile.sizes, COUNT)
