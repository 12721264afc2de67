"""Who measures the cells: ``serial``, in this process, or ``ray``, on a cluster. Both go through :class:`Worker`."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from fpbench.errors import InputError
from fpbench.records.cell import Cell
from fpbench.registry import unknown

if TYPE_CHECKING:
    from fpbench.runs.bench import Progress
    from fpbench.runs.worker import Job

ENGINES = ("serial", "ray")
Say = Callable[[str], None]


class Engine(Protocol):
    """Measures checkpoints of a job in any order and anywhere; records are all it leaves."""

    def check(self, job: "Job", cells: Sequence[Cell]) -> None:
        """See whether the cells of a job can be measured at all, before anything is written.

        Raises:
            InputError: if not.
        """

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

    def check(self, job: "Job", cells: Sequence[Cell]) -> None:
        """As :meth:`Engine.check`: this machine has to have the memory and the disk."""
        from fpbench.runs.memory import require_room

        require_room(job, cells)

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
            found, work = worker.measure(cells)
            for _ in work:
                pass
            names |= found
        return names


def create(name: str, ray_address: str | None = None) -> Engine:
    """The engine of a name.

    Args:
        name: ``serial`` or ``ray``.
        ray_address: of a running Ray cluster, ``auto`` for the one of this machine; by default one is started here.

    Raises:
        InputError: for an unknown name, an address without Ray, or Ray where it is not installed.
    """
    if name not in ENGINES:
        raise unknown("engine", name, list(ENGINES))
    if name == "ray":
        from fpbench.runs.ray import Ray

        return Ray(ray_address)
    if ray_address is not None:
        raise InputError(f"a Ray address ({ray_address}) is of no use to the engine {name!r}: add --engine ray.")
    return Serial()


def title(cell: Cell) -> str:
    """What a checkpoint is called while it is measured."""
    return f"{cell.model} · {cell.fingerprints} · {cell.method} · seed {cell.seed}"
