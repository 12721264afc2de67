"""Engines that measure the cells: ``serial``, in this process; ``processes``, in several; ``ray``, on a cluster.

All go through a worker, and tell a :class:`Watch` how far they are.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from fpbench.records.cell import Cell
from fpbench.records.store import Store

if TYPE_CHECKING:
    from fpbench.runs.worker import Worker

ENGINES = ("processes", "serial", "ray")


class Watch:
    """Is told how a run goes on, and shows nothing: :class:`fpbench.runs.display.Display` does."""

    def bar(self, iterable: Iterable[Any], label: str) -> Iterable[Any]:
        """Iterate, and show how far a part of the work is; a :data:`fpbench.models.meter.Progress`."""
        return iterable

    def begin(self, store: Store, planned: Sequence[Cell], finished: Sequence[Cell]) -> None:
        """Begin a run of ``planned`` cells, some of which have their record in ``store``."""

    def measuring(self, checkpoint: Sequence[Cell]) -> None:
        """Note that the cells of a checkpoint are being measured, in this order."""

    def measured(self, cell: Cell, failure: str | None) -> None:
        """Note that the record of a cell is there, and why it failed, if it did."""

    def say(self, line: str) -> None:
        """Note anything else."""

    def end(self) -> None:
        """End the run, also where it was interrupted."""


class Engine(Protocol):
    """Measures checkpoints of a job in any order and anywhere; records are all it leaves."""

    def check(self, worker: "Worker", cells: Sequence[Cell]) -> None:
        """Check that a job can be measured at all, before anything is written; :class:`InputError` if not."""

    def measure(self, worker: "Worker", checkpoints: Sequence[Sequence[Cell]], watch: Watch) -> dict[str, str]:
        """Measure every cell that has no record yet; return the id of each cell's record, by the cell's path.

        The cells of one checkpoint stand together; the worker is of this process. :class:`StorageError` if a record
        cannot be written.
        """


class Serial:
    """Measures one checkpoint after another, in this process."""

    def check(self, worker: "Worker", cells: Sequence[Cell]) -> None:
        """Check that this machine has the memory and the disk, as :meth:`Engine.check`; reads no weights."""
        from fpbench.runs.memory import by_model, needs_of, refuse

        refuse([needs_of(label, worker, own) for label, own in by_model(cells)], worker.job)

    def measure(self, worker: "Worker", checkpoints: Sequence[Sequence[Cell]], watch: Watch) -> dict[str, str]:
        """Measure as :meth:`Engine.measure`."""
        from fpbench.scoring.engine import limited_to

        names: dict[str, str] = {}
        with limited_to(worker.job.loading.token_budget):
            for cells in checkpoints:
                watch.measuring(cells)
                bench, fingerprints = worker.bench(cells)
                found, work = bench.measure(cells, fingerprints)
                for cell, failure in work:
                    watch.measured(cell, failure)
                names |= found
        return names


def title(cell: Cell) -> str:
    """Return what a checkpoint is called while it is measured."""
    return f"{cell.model} · {cell.fingerprints} · {cell.method} · seed {cell.seed}"
