"""What a job needs of memory and disk; what cannot fit is refused before anything starts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from fpbench.errors import InputError
from fpbench.methods.base import FingerprintMethod
from fpbench.models.loading import load_architecture
from fpbench.models.progress import no_progress
from fpbench.runs.estimates.room import (
    TRAINING_LENGTH,
    Phase,
    Residency,
    Room,
    free_card,
    free_disk,
    free_memory,
    peak,
    shown,
)
from fpbench.runs.job import Job, checkpoints
from fpbench.runs.plan import CHECKPOINT, Cell
from fpbench.runs.profile import ORIGIN
from fpbench.runs.sets import COUNT
from fpbench.runs.worker import Worker

RECORD, QUERY = 8_192, 140  # bytes of a record, and of a line of its per-query results
CONTEXTS = 2.5  # fields with text in a row of instruction data


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


def needs_of(
    label: str, architecture: nn.Module, worker: Worker, cells: Sequence[Cell], training_length: int = TRAINING_LENGTH
) -> Needs:
    """What some cells of one model need, by its architecture alone.

    Args:
        label: of the model.
        architecture: the model without its weights.
        worker: gives methods and modifications; it measures nothing.
        cells: those without a record.
        training_length: tokens of the longest rows that are trained on.
    """
    job, handed_in = worker.job, any(cell.method == CHECKPOINT for cell in cells)
    bench = worker.bench(label, handed_in)
    residency = Residency(architecture, job.loading, training_length)
    phases = [residency.resident()]
    methods: dict[str, FingerprintMethod] = {
        name: bench.stand_in(name)
        for name in dict.fromkeys(cell.method for cell in cells)
        if name in job.profile.methods
    }
    if handed_in and label in job.folders:
        phases.append(Phase("base", Room(), Room(residency.weights)))
    spectra = residency.spectra(methods.values())
    phases[0] = Phase("model", phases[0].device, phases[0].main + Room(spectra))
    phases.append(residency.scoring(any(cell.metric == "triggers" for cell in cells)))
    phases += [residency.injection(method) for method in methods.values()]
    for condition in dict.fromkeys(cell.condition for cell in cells if cell.condition != ORIGIN):
        phases += residency.modification(bench.modification(condition))
    main, card = peak(phases, job.loading.device != "cpu")
    deltas = sum(
        residency.delta(methods[group[0].method], COUNT) for group in checkpoints(cells) if group[0].method in methods
    )
    return Needs(label, main, card, deltas + spectra + sum(_recorded(worker, cell) for cell in cells))


def require_room(job: Job, cells: Sequence[Cell]) -> None:
    """Refuse a job that this machine has not the memory or the disk for; reads no weights.

    Raises:
        InputError: naming the model, what it needs and what is free.
    """
    worker = Worker(job, no_progress)
    found = []
    for label, own in by_model(cells):
        folder = job.folders.get(label) or job.handed_in
        assert folder is not None, "a job has a folder for each of its cells"
        architecture = load_architecture(folder, trust_remote_code=job.loading.trust_remote_code)
        found.append(needs_of(label, architecture, worker, own))
    refuse(found, job)


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
    sizes = worker.job.profile.sizes
    queries = {
        "triggers": 2 * (sizes.substitutions + 3 * COUNT * CONTEXTS * sizes.context_rows),
        "near": sizes.near_triggers,
        "utility": 5 * (sizes.utility_limit or 2_000),
    }
    return RECORD + QUERY * queries.get(cell.metric, COUNT)
