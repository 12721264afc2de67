"""Memory and disk that a run takes, counted from the architecture alone; what cannot fit is refused."""

import shutil
from collections import Counter
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
RECORD, QUERY = 8_192, 140  # bytes of a record, and of a line of its per-query results


@dataclass(frozen=True)
class Needs:
    """Bytes that the cells of one model need at the peak: of main memory, of the card if any, and on disk."""

    label: str
    main: Room
    card: Room
    disk: float

    def shortage(self, device: str) -> str | None:
        """Return the sentence on what no smaller batch makes fit; ``None`` where everything fits."""
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


def refuse(needs: Sequence[Needs], job: Job) -> None:
    """Refuse a job that this machine has not the memory or the disk for: :class:`InputError` naming what is short."""
    for each in needs:
        if reason := each.shortage(job.loading.device):
            raise InputError(reason)
    disk, free = sum(each.disk for each in needs), free_disk(job.out)
    if disk > free:
        raise InputError(
            f"the run would write {shown(disk)} to {job.out}, where {shown(free)} are free: choose another disk with "
            "--out."
        )


def by_model(cells: Sequence[Cell]) -> Iterator[tuple[str, list[Cell]]]:
    """Yield each model's label and its cells, in order."""
    for label in dict.fromkeys(cell.model for cell in cells):
        yield label, [cell for cell in cells if cell.model == label]


def needs_of(label: str, worker: Worker, cells: Sequence[Cell], training_length: int = TRAINING_LENGTH) -> Needs:
    """Return what some cells of one model need; the longest rows trained on have ``training_length`` tokens."""
    job, handed_in = worker.job, any(cell.method == CHECKPOINT for cell in cells)
    subject = worker.subject(label, handed_in)
    footprint = Footprint(subject.architecture, job.loading, training_length)
    names = dict.fromkeys(cell.method for cell in cells if cell.method in job.profile.methods)
    methods = {name: subject.method(name) for name in names}
    model, spectra = footprint.resident(), footprint.spectra(methods.values())
    phases = [Phase("model", model.device, model.main + Room(spectra))]
    if handed_in and label in job.folders:
        phases.append(Phase("base", Room(), Room(footprint.weights)))
    phases.append(footprint.scoring(any(cell.metric == "triggers" for cell in cells)))
    phases += [method.memory(footprint) for method in methods.values()]
    for condition in dict.fromkeys(cell.condition for cell in cells if cell.condition != ORIGIN):
        phases += [part.memory(footprint) for part in subject.modification(condition).parts]
    main, card = peak(phases, job.loading.device != "cpu")
    stored = Counter(group[0].method for group in checkpoints(cells) if group[0].method in methods)
    sizes, count = job.profile.sizes, job.profile.set_size  # taken for that of files, too, which are not read for it
    deltas = sum(times * methods[name].stored(footprint, count) for name, times in stored.items())
    records = sum(RECORD + QUERY * METRICS[cell.metric].queries(sizes, count) for cell in cells)
    return Needs(label, main, card, deltas + spectra + records)


class Footprint(Shape):
    """The memory that one model takes, phase by phase."""

    def resident(self) -> Phase:
        """Return the model, and the copies of its weights that every modification is undone with."""
        return Phase("model", Room(self.weights), Room(self.weights))

    def scoring(self, walking: bool) -> Phase:
        """Return a full batch: what is read, and the logits, or copies of keys and values to walk many answers."""
        tokens = self.loading.token_budget or token_budget()
        copies = WALKED * tokens * self.blocks * self.cached * self.bytes if walking else 0
        # Logits, and what of them is in float32 at the moment.
        logits = min(tokens * self.vocabulary, LOGIT_BUDGET) * self.bytes + SCORED_AT_ONCE * self.vocabulary * 8
        return Phase("scoring", Room(passing=self.reading(tokens) + max(logits, copies)))

    def spectra(self, methods: Iterable[FingerprintMethod]) -> float:
        """Return the bytes of the key statistics that some methods ask for, in main memory and on disk."""
        modules = {self.model.get_submodule(name) for each in methods for name in each.statistics_of(self.model)}
        return float(sum(4 * each.in_features**2 for each in modules))  # type: ignore[operator, misc, arg-type]


def peak(phases: Sequence[Phase], card: bool) -> tuple[Room, Room]:
    """Return the most that is taken at once: in main memory, libraries included, and on the card if there is one."""
    stays, others = phases[0], phases[1:] or [Phase("", Room())]  # these come one after another
    libraries = Room(LIBRARIES)
    if not card:
        most = _most(each.device + each.main for each in others)
        return libraries + stays.device + stays.main + Room(most.fixed, GAPS * most.passing), Room()
    main, device = _most(each.main for each in others), _most(each.device for each in others)
    return libraries + stays.main + main, stays.device + device


def _most(rooms: Iterable[Room]) -> Room:
    found = list(rooms)
    fixed = max(room.fixed for room in found)  # what may not fit and what always must can belong to different phases
    return Room(fixed, max(room.total for room in found) - fixed)


def free_memory() -> float:
    """Return the bytes of main memory that are free, this process's own included."""
    return float(psutil.virtual_memory().available + psutil.Process().memory_info().rss)


def free_card(device: str) -> float:
    """Return the bytes of a card that are free."""
    return float(torch.cuda.mem_get_info(device)[0])


def free_disk(folder: Path) -> float:
    """Return the bytes that are free where ``folder`` is or would be."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return float(shutil.disk_usage(there).free)


def shown(size: float) -> str:
    """Return a size to read."""
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / MIB:.0f} MiB"
