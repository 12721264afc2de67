"""Who measures the cells: ``serial``, in this process, or ``ray``, on a cluster. Both go through :class:`Worker`."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from fpbench.runs.plan import Cell

if TYPE_CHECKING:
    from fpbench.runs.bench import Progress
    from fpbench.runs.job import Job

ENGINES = ("serial", "ray")
Say = Callable[[str], None]


class Engine(Protocol):
    """Measures checkpoints of a job in any order and anywhere; records are all it leaves."""

    def measure(
        self, job: "Job", checkpoints: Sequence[Sequence[Cell]], progress: "Progress", say: Say
    ) -> dict[str, str]:
        """Measure every cell that has no record yet.

        Args:
            job: what is measured.
            checkpoints: cells, those of one checkpoint together.
            progress: wraps an iterable in a labelled progress bar.
            say: is told what is being measured.

        Returns:
            What the record of each cell is called, by the cell's path.

        Raises:
            StorageError: if a record cannot be written.
        """


class Serial:
    """One after another, in this process."""

    def measure(
        self, job: "Job", checkpoints: Sequence[Sequence[Cell]], progress: "Progress", say: Say
    ) -> dict[str, str]:
        """As :meth:`Engine.measure`."""
        from fpbench.runs.worker import Worker

        worker = Worker(job, progress)
        names: dict[str, str] = {}
        total = sum(len(cells) for cells in checkpoints)
        for cells in checkpoints:
            say(f"{title(cells[0])} ({len(names)}/{total} cells)")
            names |= worker.measure(cells)
        return names


def title(cell: Cell) -> str:
    """What a checkpoint is called while it is measured."""
    return f"{cell.model} · {cell.fingerprints} · {cell.method} · seed {cell.seed}"
