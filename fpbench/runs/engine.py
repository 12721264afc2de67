"""Engines that measure the cells: ``serial``, in this process, or ``ray``, on a cluster. Both go through a worker."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from fpbench.records.cell import Cell

if TYPE_CHECKING:
    from fpbench.runs.worker import Worker

ENGINES = ("serial", "ray")
Log = Callable[[str], None]
"""Takes a line on what is being measured."""


class Engine(Protocol):
    """Measures checkpoints of a job in any order and anywhere; records are all it leaves."""

    def check(self, worker: "Worker", cells: Sequence[Cell]) -> None:
        """Check that a job can be measured at all, before anything is written; :class:`InputError` if not."""

    def measure(self, worker: "Worker", checkpoints: Sequence[Sequence[Cell]], log: Log) -> dict[str, str]:
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

    def measure(self, worker: "Worker", checkpoints: Sequence[Sequence[Cell]], log: Log) -> dict[str, str]:
        """Measure as :meth:`Engine.measure`."""
        from fpbench.scoring.engine import limited_to

        names: dict[str, str] = {}
        total = sum(len(cells) for cells in checkpoints)
        with limited_to(worker.job.loading.token_budget):
            for cells in checkpoints:
                log(f"{title(cells[0])} ({len(names)}/{total} cells)")
                bench, fingerprints = worker.bench(cells)
                found, work = bench.measure(cells, fingerprints)
                for _ in work:
                    pass
                names |= found
        return names


def title(cell: Cell) -> str:
    """Return what a checkpoint is called while it is measured."""
    return f"{cell.model} · {cell.fingerprints} · {cell.method} · seed {cell.seed}"
