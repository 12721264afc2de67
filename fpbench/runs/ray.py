"""The engine for Ray clusters: a driver hands out checkpoints, workers write records into the shared store."""

import contextlib
import logging
import os
import socket
import sys
import tempfile
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fpbench.errors import InputError
from fpbench.models.meter import no_progress
from fpbench.records.cell import Cell
from fpbench.records.store import TEMPORARY, Store, held_back
from fpbench.registry import Finder, add_finders, finders
from fpbench.runs.bench import Failed, record_of
from fpbench.runs.engine import Watch, title
from fpbench.runs.plan import Job
from fpbench.runs.worker import Worker
from fpbench.scoring.engine import limited_to

DEVICES = ("cpu", "cuda")
OBJECT_STORE = 80 * 2**20  # bytes, about the least that Ray takes: nothing large travels
LOSSES = 3  # of the worker that measured a cell, after which the cell counts as failed
STARTS = 10  # workers in a row that may be lost before they begin, as while a node dies that Ray still counts on
POLL = 0.5  # seconds after which a signal is looked for
LOST = "the worker that measured it was lost three times"
# What a worker has to know besides the job. No token: what Ray is told stands in its logs.
ENVIRONMENT = (
    "FPBENCH_CACHE", "XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE",
    "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE",
)  # fmt: skip
# Of a worker: the ids of its records by path, a line of its log, or a finished cell with why it failed.
Report = dict[str, str] | str | tuple[Cell, str | None]


class Ray:
    """As many workers as a Ray cluster has room for: one process and one model each."""

    def __init__(self, address: str | None = None) -> None:
        """Connect to nothing yet; ``auto`` is the running cluster of this machine, by default one is started here."""
        if find_spec("ray") is None:
            raise InputError("the engine 'ray' needs Ray, which is not installed: pip install 'fpbench[ray]'.")
        self.address = address

    def check(self, worker: Worker, cells: Sequence[Cell]) -> None:
        """Check the device, and that the cluster answers, as :meth:`~fpbench.runs.engine.Engine.check`."""
        if (device := worker.job.loading.device) not in DEVICES:
            raise InputError(
                f"device {device!r} cannot be chosen with Ray, which hands out the cards itself: "
                f"expected one of {', '.join(DEVICES)}."
            )
        if self.address:
            with self._connected():
                pass

    def measure(self, worker: Worker, checkpoints: Sequence[Sequence[Cell]], watch: Watch) -> dict[str, str]:
        """Measure on a cluster; :class:`InputError` if a node has no room or sees no store."""
        profile = worker.job.profile
        job = replace(worker.job, profile=profile.model_copy(update={"threads": profile.threads or 1}))
        # Ray prints on standard output which workers were lost; that is for the table.
        with (
            contextlib.redirect_stdout(sys.stderr),
            self._connected() as ray,
            tempfile.NamedTemporaryFile(dir=job.out, prefix=".driver.", suffix=TEMPORARY) as marker,
        ):
            return Driver(ray, job, checkpoints, Path(marker.name), watch).measure()

    @contextlib.contextmanager
    def _connected(self) -> Iterator[Any]:
        """Yield the module ``ray``, connected; what was started here ends with the block."""
        import ray

        if ray.is_initialized():  # this process is connected to a cluster already
            yield ray
            return
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if self.address and self.address != "auto":
            _check_reachable(self.address)
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if not self.address:
            options |= {"include_dashboard": False, "object_store_memory": OBJECT_STORE}
        try:
            try:
                with held_back():  # and keep our handler of SIGTERM, which Ray replaces
                    ray.init(self.address or "local", **options)
            except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
                reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
                raise InputError(
                    f"the Ray cluster {self.address!r} cannot be joined (is it one with token authentication? then set "
                    f"RAY_AUTH_MODE=token): {reason}"
                    if self.address
                    else f"Ray cannot be started: {reason}"
                ) from None
            yield ray
        finally:
            ray.shutdown()


def _check_reachable(address: str) -> None:
    """Connect to an address once, since Ray itself would wait there for minutes; :class:`InputError` if it fails."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError, OverflowError):
        raise InputError(
            f"no Ray cluster answers at {address!r}: expected 'auto', or the host:port that `ray start --head` told."
        ) from None


@dataclass
class Assignment:
    """A checkpoint that a worker measures."""

    actor: Any  # the worker
    first: Cell
    cells: list[Cell]  # those that the worker has not reported yet, in their order
    begun: bool = False  # whether the worker has reported anything


class Driver:
    """Starts workers, hands out the checkpoints, and replaces workers that are lost."""

    def __init__(self, ray: Any, job: Job, checkpoints: Sequence[Sequence[Cell]], marker: Path, watch: Watch) -> None:
        """Start nothing yet; ``ray`` is the connected module, ``marker`` a file by which workers know the store."""
        self.ray, self.job, self.marker, self.watch = ray, job, marker, watch
        self.store = Store(job.out)
        self.waiting = deque(list(cells) for cells in checkpoints)
        self.names: dict[str, str] = {}
        self.losses: Counter[Cell] = Counter()
        self.failed_starts = 0  # workers in a row that were lost before they began
        self.running: dict[Any, Assignment] = {}  # by the stream of what the worker reports

    def measure(self) -> dict[str, str]:
        """Return the records' ids by path once all is measured; :class:`InputError` if no worker begins, or theirs."""
        try:
            while self.waiting or self.running:
                self._start_workers()
                with held_back():  # what a signal raises in the midst of Ray's code does not come out as it was
                    ready, _ = self.ray.wait(list(self.running), num_returns=1, timeout=POLL)
                for stream in ready:
                    self._receive(stream)
            return self.names
        finally:
            for each in self.running.values():
                self.ray.kill(each.actor)

    def _start_workers(self) -> None:
        while self.waiting:
            wanted = request(self.job, self.waiting[0][0].model)
            room = capacity(self.ray.nodes(), wanted)
            if not room and not self.running:
                units = {"CPU": (1, "cores"), "GPU": (1, "cards"), "memory": (2**30, "GiB of memory")}
                needs = ", ".join(f"{amount / units[name][0]:g} {units[name][1]}" for name, amount in wanted.items())
                raise InputError(
                    f"no node of the Ray cluster can hold a worker (which needs {needs}): ask for less in the "
                    "profile's threads and [resources], or add nodes; finished records stay."
                )
            if len(self.running) >= room:
                return
            worker = self.ray.remote(RayWorker).options(
                num_cpus=wanted["CPU"],
                num_gpus=wanted.get("GPU"),
                memory=wanted.get("memory"),
                scheduling_strategy="SPREAD",
                runtime_env={"env_vars": {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}},
            )
            self._assign(worker.remote(self.job, Path.cwd(), self.marker, finders()), self.waiting.popleft())

    def _assign(self, actor: Any, cells: list[Cell]) -> None:
        self.watch.measuring(cells)
        self.running[actor.measure.options(num_returns="streaming").remote(cells)] = Assignment(actor, cells[0], cells)

    def _receive(self, stream: Any) -> None:
        assigned = self.running[stream]
        try:
            with held_back():
                reference = next(stream, None)
                report = None if reference is None else self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as error:  # what the worker raised, as itself
            raise error.cause from error
        except self.ray.exceptions.RayError:
            del self.running[stream]
            self._replace(assigned)
            return
        assigned.begun, self.failed_starts = True, 0
        match report:
            case None:
                del self.running[stream]
                self._next(assigned)
            case dict():
                self.names |= report
            case str():
                self.watch.say(f"{title(assigned.first)}: {report}")
            case (cell, failure):
                self._count(assigned, cell, failure)

    def _count(self, assigned: Assignment, cell: Cell, failure: str | None) -> None:
        assigned.cells.remove(cell)
        self.watch.measured(cell, failure)

    def _next(self, finished: Assignment) -> None:
        """Hand a worker the next checkpoint of its model; end it where none waits, which frees its memory."""
        following = next((cells for cells in self.waiting if cells[0].model == finished.first.model), None)
        if following is None:
            self.ray.kill(finished.actor)
        else:
            self.waiting.remove(following)
            self._assign(finished.actor, following)

    def _replace(self, lost: Assignment) -> None:
        """Have another worker finish what a lost one left; give up a cell whose worker was lost too often."""
        self.ray.kill(lost.actor)  # it may only be out of reach, and must not go on
        for cell in list(lost.cells):
            if cell.path in self.names and self.store.find(cell, self.names[cell.path]):
                self._count(lost, cell, None)  # written, and lost before it was reported
        if lost.cells and not lost.begun:
            self.failed_starts += 1
            self.watch.say(f"a worker was lost before it began ({self.failed_starts} of {STARTS} in a row)")
            if self.failed_starts == STARTS:
                raise InputError(
                    f"{STARTS} workers in a row were lost before they began: see whether every node has this fpbench, "
                    "and what Ray's logs say (/tmp/ray/session_latest/logs); finished records stay."
                )
        elif lost.cells:
            cell = lost.cells[0]
            self.losses[cell] += 1
            self.watch.say(f"{cell}: its worker was lost ({self.losses[cell]} of {LOSSES} times)")
            if self.losses[cell] == LOSSES:
                self.store.write(record_of(self.job, cell, None, Failed(LOST)), [])
                self._count(lost, cell, LOST)
        if lost.cells:
            self.waiting.appendleft(lost.cells)


def request(job: Job, model: str) -> dict[str, float]:
    """Return what a worker on a model asks for, under Ray's names: cores, share of a card, bytes of memory."""
    resources = job.settings(model).resources or job.profile.resources
    wanted: dict[str, float] = {"CPU": job.profile.threads or 1}
    if job.loading.device != "cpu":
        wanted["GPU"] = resources.gpus
    if resources.memory_gb:
        wanted["memory"] = round(resources.memory_gb * 2**30)
    return wanted


def capacity(nodes: Iterable[Mapping[str, Any]], wanted: Mapping[str, float]) -> int:
    """Return how many workers fit at once on the living nodes of ``ray.nodes()``, each whole on one node."""
    # Shares of a card need not be exact: ten workers of 0.1 fit on one.
    fitting = lambda has: min(int(has.get(name, 0) / amount + 1e-6) for name, amount in wanted.items())  # noqa: E731
    return sum(fitting(node["Resources"]) for node in nodes if node["Alive"])


class RayWorker(logging.Handler):
    """A worker as an actor of the cluster: measures checkpoints of one model and reports to the driver."""

    def __init__(self, job: Job, folder: Path, marker: Path, finders: Sequence[tuple[str, Finder]] = ()) -> None:
        """Do nothing yet: what is raised here would not reach the driver as itself."""
        super().__init__(logging.WARNING)
        # Relative paths hold in the driver's folder; the marker is a file that it put into the store.
        self.job, self.folder, self.marker, self.finders = job, folder, marker, finders
        self._lines: list[str] = []

    def measure(self, cells: Sequence[Cell]) -> Iterator[Report]:
        """Measure the cells of one checkpoint; :class:`InputError` if the driver's folder or store is not seen here."""
        yield {}  # this process is up: what ends it from now on is its work's doing
        with limited_to(self.job.loading.token_budget):
            bench, fingerprints = self._worker.bench(cells)
            names, work = bench.measure(cells, fingerprints)
            yield names
            for finished in work:
                yield from self._reported_lines()
                yield finished
            yield from self._reported_lines()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line of the log until it is reported."""
        self._lines.append(record.getMessage())

    def _reported_lines(self) -> list[str]:
        lines, self._lines = self._lines, []
        return lines

    @cached_property
    def _worker(self) -> Worker:
        try:
            os.chdir(self.folder)
        except OSError:
            unseen: Path | None = self.folder
        else:
            unseen = None if self.marker.exists() else self.marker.parent
        if unseen is not None:
            raise InputError(
                f"node {socket.gethostname()} does not see {unseen} of the driver: start where all nodes share a file "
                "system, and choose an --out on it."
            )
        add_finders(self.finders)
        logging.getLogger("fpbench").addHandler(self)
        return Worker(self.job, no_progress)
