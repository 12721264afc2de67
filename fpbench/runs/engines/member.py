"""A worker as an actor of a cluster: what runs in its process."""

import logging
import os
import socket
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from fpbench.errors import InputError
from fpbench.models.progress import no_progress
from fpbench.runs.job import Job
from fpbench.runs.plan import Cell

if TYPE_CHECKING:
    from fpbench.runs.worker import Worker

Report = dict[str, str] | str | tuple[Cell, str | None]


class Member(logging.Handler):
    """Measures checkpoints and reports: what their records are called, lines of its log, and every finished cell."""

    def __init__(self, job: Job, folder: Path, mark: Path) -> None:
        """Do nothing yet: what is raised here would not reach the driver as itself.

        Args:
            job: what is measured.
            folder: the driver's working folder, in which relative paths hold.
            mark: a file that the driver put into the store.
        """
        super().__init__(logging.WARNING)
        self.job, self.folder, self.mark = job, folder, mark
        self._lines: list[str] = []

    def measure(self, cells: Sequence[Cell]) -> Iterator[Report]:
        """Measure the cells of one checkpoint that have no record yet.

        Raises:
            InputError: if this node does not see the driver's folder or the store.
            StorageError: if a record cannot be written.
        """
        yield {}  # this process is up: what ends it from now on is its work's doing
        names, work = self._worker.measure(cells)
        yield names
        for finished in work:
            yield from self._taken()
            yield finished
        yield from self._taken()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line of the log until it is reported."""
        self._lines.append(record.getMessage())

    def _taken(self) -> list[str]:
        lines, self._lines = self._lines, []
        return lines

    @cached_property
    def _worker(self) -> "Worker":
        try:
            os.chdir(self.folder)
        except OSError:
            raise InputError(self._unseen(self.folder)) from None
        if not self.mark.exists():
            raise InputError(self._unseen(self.mark.parent))
        from fpbench.runs.worker import Worker

        logging.getLogger("fpbench").addHandler(self)
        return Worker(self.job, no_progress)

    def _unseen(self, folder: Path) -> str:
        return (
            f"node {socket.gethostname()} does not see {folder} of the driver: start where all nodes share a file "
            "system, and choose an --out on it."
        )
