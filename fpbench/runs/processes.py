"""The engine of one machine: a small model is measured by several processes of one thread each.

Two threads have little to share in the passes of a small model, and where another process is busy they wait for each
other; processes do not. A larger model, or one on a card, is measured in this process.
"""

import logging
import math
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import psutil

from fpbench.adversaries.conditions import name_of, weights_parts
from fpbench.errors import CellError, FpbenchError, InputError
from fpbench.models.meter import no_progress
from fpbench.records.cell import Cell
from fpbench.registry import Finder, add_finders, finders
from fpbench.runs.engine import Serial, Watch, title
from fpbench.runs.plan import Job

if TYPE_CHECKING:
    from fpbench.runs.worker import Worker

SMALL = 30_000_000  # parameters; the micro model has 6 million
LOOK = 0.5  # seconds for which the cores are watched before they are shared out
PATIENCE = 10.0  # seconds that a process has to end in
# Imported once, by the process that the others are forked from.
PRELOADED = ["fpbench.runs.preload"]
# Of a process: the ids of its records by path, a line of its log, a finished cell with why it failed, what ended its
# work, or nothing once all its cells are done.
Report = dict[str, str] | str | tuple[Cell, str | None] | FpbenchError | None


@dataclass(frozen=True)
class Share:
    """How many processes measure at once, and the threads of each."""

    processes: int
    threads: int

    def __str__(self) -> str:
        threads = "one thread" if self.threads == 1 else f"{self.threads} threads"
        return f"{self.processes} processes of {threads} each" if self.processes > 1 else f"one process, {threads}"


class Processes:
    """So many processes, or as many as a small model leaves room for, by the cores and the memory that are free."""

    def __init__(self, count: int | None = None) -> None:
        """Start nothing yet; :class:`InputError` unless ``count``, where it is given, is positive."""
        if count is not None and count < 1:
            raise InputError(f"{count} processes: expected 1 or more.")
        self.count = count

    def check(self, worker: "Worker", cells: Sequence[Cell]) -> None:
        """Check the machine, as the serial engine does."""
        Serial().check(worker, cells)

    def measure(self, worker: "Worker", checkpoints: Sequence[Sequence[Cell]], watch: Watch) -> dict[str, str]:
        """Measure as :meth:`~fpbench.runs.engine.Engine.measure`; a process that is lost ends the run.

        Raises:
            CellError: if a process was lost; finished records stay.
        """
        share = self.share(worker, checkpoints)
        watch.say(f"measured by {share}")
        if share.processes == 1:
            with limited_threads(share.threads):
                return Serial().measure(worker, checkpoints, watch)
        job = replace(worker.job, profile=worker.job.profile.model_copy(update={"threads": share.threads}))
        return Driver(job, checkpoints, share.processes, watch).measure()

    def share(self, worker: "Worker", checkpoints: Sequence[Sequence[Cell]]) -> Share:
        """Return how the work is shared out: among free cores, unless the number of processes was given."""
        if self.count is None:
            return share_of(worker, checkpoints)
        return Share(min(self.count, len(checkpoints)), worker.job.profile.threads or 1)


def one_process(worker: "Worker", checkpoints: Sequence[Sequence[Cell]]) -> Share:
    """Return what the serial engine takes."""
    import torch

    return Share(1, torch.get_num_threads())


def share_of(worker: "Worker", checkpoints: Sequence[Sequence[Cell]]) -> Share:
    """Share out the free cores: to single threads for small models, else to one process."""
    import torch

    from fpbench.runs.memory import by_model, free_memory, needs_of

    job, cells = worker.job, [cell for each in checkpoints for cell in each]
    threads = job.profile.threads
    if job.loading.device != "cpu":
        return Share(1, threads or torch.get_num_threads())
    free = free_cores()
    models = [label for label, _ in by_model(cells)]
    if max(_parameters(worker, label) for label in models) > SMALL or job.handed_in:
        return Share(1, threads or min(free, torch.get_num_threads()))
    need = max(needs_of(label, worker, own).main.total for label, own in by_model(cells))
    fitting = min(free // (threads or 1), len(checkpoints), int(free_memory() // need))
    return Share(max(1, fitting), threads or 1)


def free_cores() -> int:
    """Return how many of the cores that this process may use are idle, at least 1; ``OMP_NUM_THREADS`` limits them."""
    own = sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else list(range(os.cpu_count() or 1))
    limit = os.environ.get("OMP_NUM_THREADS", "")
    most = int(limit) if limit.isdecimal() and int(limit) else len(own)
    if min(most, len(own)) == 1:
        return 1
    busy = psutil.cpu_percent(LOOK, percpu=True)
    idle = float(sum(1 - busy[core] / 100 for core in own if core < len(busy)))
    return max(1, min(most, math.floor(idle + 0.5)))


def _parameters(worker: "Worker", label: str) -> int:
    return sum(int(each.numel()) for each in worker.subject(label).architecture.parameters())


@contextmanager
def limited_threads(count: int) -> Iterator[None]:
    """Have torch take so many threads inside."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def pieces(checkpoint: Sequence[Cell]) -> list[list[Cell]]:
    """Split a checkpoint by which parts of its conditions change weights: all doses of a part are one piece.

    They may share one training, and conditions of the same weights are priced in one pass.
    """
    found: dict[tuple[str, ...], list[Cell]] = {}
    for cell in checkpoint:
        found.setdefault(tuple(map(name_of, weights_parts(cell.condition))), []).append(cell)
    return list(found.values())


@dataclass
class _Measurer:
    """A process that measures: the cells that it has, and the pieces of its checkpoint that wait for it."""

    process: BaseProcess
    pipe: Connection
    cells: Sequence[Cell] = ()
    waiting: deque[list[Cell]] = field(default_factory=deque)


class Driver:
    """Starts processes, hands out the checkpoints, and ends all processes with itself."""

    def __init__(self, job: Job, checkpoints: Sequence[Sequence[Cell]], processes: int, watch: Watch) -> None:
        """Start nothing yet."""
        self.job, self.processes, self.watch = job, processes, watch
        # The longest first, so that the last ones to end are short.
        self.waiting = deque(sorted(checkpoints, key=len, reverse=True))
        self.names: dict[str, str] = {}
        self.measurers: list[_Measurer] = []

    def measure(self) -> dict[str, str]:
        """Return the ids of all records by path; raise what a process raised, or that it was lost."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        measurers = self.measurers
        try:
            for _ in range(self.processes):
                pipe, other = context.Pipe()
                given = other, self.job, finders(), logging.getLogger("fpbench").getEffectiveLevel()
                process = context.Process(target=_measure, args=given, daemon=True)
                process.start()
                other.close()
                measurers.append(_Measurer(process, pipe))
                self._hand_out(measurers[-1])
            while busy := {each.pipe: each for each in measurers if each.cells}:
                ready = wait(list(busy))
                for pipe, measurer in busy.items():
                    if pipe in ready:
                        self._receive(measurer)
            return self.names
        finally:
            _end(measurers)

    def _hand_out(self, measurer: _Measurer) -> None:
        """Give a process the next piece of its checkpoint, else another checkpoint, else a piece of another's."""
        if not measurer.waiting and self.waiting:
            checkpoint = self.waiting.popleft()
            self.watch.measuring(checkpoint)
            measurer.waiting.extend(pieces(checkpoint))
        if measurer.waiting:
            measurer.cells = measurer.waiting.popleft()
        else:
            slowest = max(self.measurers, key=lambda each: len(each.waiting))
            measurer.cells = slowest.waiting.pop() if slowest.waiting else ()
        if measurer.cells:
            measurer.pipe.send(measurer.cells)

    def _receive(self, measurer: _Measurer) -> None:
        try:
            report: Report = measurer.pipe.recv()
        except (EOFError, ConnectionError):
            measurer.process.join(PATIENCE)
            raise CellError(
                f"{title(measurer.cells[0])}: the process that measured it was lost "
                f"(exit code {measurer.process.exitcode}): finished records stay; run the same command again to resume."
            ) from None
        match report:
            case None:
                self._hand_out(measurer)
            case dict():
                self.names |= report
            case str():
                self.watch.say(report)
            case FpbenchError():
                raise report
            case (cell, failure):
                self.watch.measured(cell, failure)


def _end(measurers: Sequence[_Measurer]) -> None:
    """End all processes: those that do not listen by force."""
    for each in measurers:
        each.process.terminate()
    for each in measurers:
        each.process.join(PATIENCE)
        if each.process.is_alive():
            each.process.kill()
            each.process.join()
        each.pipe.close()


# In the processes.


class _Lines(logging.Handler):
    """Sends the lines of the log to the driver."""

    def __init__(self, pipe: Connection) -> None:
        super().__init__()
        self.pipe = pipe

    def emit(self, record: logging.LogRecord) -> None:
        self.pipe.send(record.getMessage())


def _measure(pipe: Connection, job: Job, found: Sequence[tuple[str, Finder]], level: int) -> None:
    """Measure cells, those of one checkpoint at a time, as the driver hands them out, and report."""
    from fpbench.runs.worker import Worker
    from fpbench.scoring.engine import limited_to

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the driver too, which ends this process
    signal.signal(signal.SIGTERM, _leave)
    threading.Thread(target=_leave_with_the_driver, daemon=True).start()
    add_finders(found)
    logger = logging.getLogger("fpbench")
    logger.setLevel(level)
    logger.addHandler(_Lines(pipe))
    try:
        worker = Worker(job, no_progress)
        with limited_to(job.loading.token_budget):
            while True:
                cells = pipe.recv()
                bench, fingerprints = worker.bench(cells)
                names, work = bench.measure(cells, fingerprints)
                pipe.send(names)
                for finished in work:
                    pipe.send(finished)
                pipe.send(None)
    except EOFError:  # the driver is gone
        return
    except FpbenchError as error:  # ends the run, as itself
        pipe.send(error)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)  # through every finally clause


def _leave_with_the_driver() -> None:
    """End this process as soon as its driver is gone, also where that was killed."""
    driver: Any = multiprocessing.parent_process()
    driver.join()
    os._exit(1)
