"""A worker as an actor of a cluster: what runs in its process."""

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
from typing import TYPE_CHECKING, Any

from fpbench.errors import InputError
from fpbench.models.meter import no_progress
from fpbench.records.cell import Cell
from fpbench.records.store import TEMPORARY, Store, held_back
from fpbench.registry import METHODS, Finder
from fpbench.runs.bench import Failed, record_of
from fpbench.runs.engine import Say, title
from fpbench.runs.plan import Job
from fpbench.scoring.engine import limited_to

if TYPE_CHECKING:
    from fpbench.runs.worker import Worker

Report = dict[str, str] | str | tuple[Cell, str | None]


class Member(logging.Handler):
    """Measures checkpoints and reports: what their records are called, lines of its log, and every finished cell."""

    def __init__(self, job: Job, folder: Path, mark: Path, finders: Sequence[Finder] = ()) -> None:
        """Do nothing yet: what is raised here would not reach the driver as itself.

        Args:
            job: what is measured.
            folder: the driver's working folder, in which relative paths hold.
            mark: a file that the driver put into the store.
            finders: of the driver's registry of methods.
        """
        super().__init__(logging.WARNING)
        self.job, self.folder, self.mark, self.finders = job, folder, mark, finders
        self._lines: list[str] = []

    def measure(self, cells: Sequence[Cell]) -> Iterator[Report]:
        """Measure the cells of one checkpoint that have no record yet.

        Raises:
            InputError: if this node does not see the driver's folder or the store.
            StorageError: if a record cannot be written.
        """
        yield {}  # this process is up: what ends it from now on is its work's doing
        with limited_to(self.job.loading.token_budget):
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

        for finder in self.finders:
            METHODS.add_finder(finder)
        logging.getLogger("fpbench").addHandler(self)
        return Worker(self.job, no_progress)

    def _unseen(self, folder: Path) -> str:
        return (
            f"node {socket.gethostname()} does not see {folder} of the driver: start where all nodes share a file "
            "system, and choose an --out on it."
        )


# The workers of a job on a Ray cluster: who measures what, what they report, and what happens when one is lost.


LOSSES = 3  # of the worker that measured a cell, after which the cell counts as failed
STARTS = 10  # workers in a row that may be lost before they begin, as while a node dies that Ray still counts on
POLL = 0.5  # seconds after which a signal is looked for
LOST = "the worker that measured it was lost three times"
# What a worker has to know besides the job. No token: what Ray is told stands in its logs.
ENVIRONMENT = (
    "FPBENCH_CACHE", "XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE",
    "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE",
)  # fmt: skip


@dataclass
class Post:
    """A worker and what it is at.

    Attributes:
        actor: the worker.
        first: a cell of its checkpoint.
        cells: those of its checkpoint that it has not reported yet, in their order.
        begun: whether it was heard of at all.
    """

    actor: Any
    first: Cell
    cells: list[Cell]
    begun: bool = False


class Crew:
    """Hands out the checkpoints. A worker is a process that loads one model and gets one checkpoint after another."""

    def __init__(self, ray: Any, job: Job, checkpoints: Sequence[Sequence[Cell]], mark: Path, say: Say) -> None:
        """Start nothing yet.

        Args:
            ray: the module, connected.
            job: what is measured.
            checkpoints: cells, those of one checkpoint together.
            mark: a file in the store, by which workers see that it is the driver's.
            say: is told what happens.
        """
        self.ray, self.job, self.mark, self.say = ray, job, mark, say
        self.store = Store(job.out)
        self.waiting = deque(list(cells) for cells in checkpoints)
        self.total, self.done = sum(map(len, self.waiting)), 0
        self.names: dict[str, str] = {}
        self.losses: Counter[Cell] = Counter()
        self.stillborn = 0  # workers in a row that were lost before they began
        self.posts: dict[Any, Post] = {}  # by the stream of what the worker reports

    def measure(self) -> dict[str, str]:
        """Measure everything.

        Returns:
            What the record of each cell is called, by the cell's path.

        Raises:
            InputError: if no node can hold a worker, or none begins; and what a worker raises.
            StorageError: what a worker raises.
        """
        try:
            while self.waiting or self.posts:
                self._hire()
                with held_back():  # what a signal raises in the midst of Ray's code does not come out as it was
                    ready, _ = self.ray.wait(list(self.posts), num_returns=1, timeout=POLL)
                for stream in ready:
                    self._hear(stream)
            return self.names
        finally:
            for post in self.posts.values():
                self.ray.kill(post.actor)

    def _hire(self) -> None:
        """Start workers for checkpoints that wait, as many as the nodes can hold."""
        while self.waiting:
            wanted = request(self.job, self.waiting[0][0].model)
            room = capacity(self.ray.nodes(), wanted)
            if not room and not self.posts:
                units = {"CPU": (1, "cores"), "GPU": (1, "cards"), "memory": (2**30, "GiB of memory")}
                needs = ", ".join(
                    f"{wanted[name] / unit:g} {what}" for name, (unit, what) in units.items() if name in wanted
                )
                raise InputError(
                    f"no node of the Ray cluster can hold a worker (which needs {needs}): ask for less in the "
                    "profile's threads and [resources], or add nodes; finished records stay."
                )
            if len(self.posts) >= room:
                return
            worker = self.ray.remote(Member).options(
                num_cpus=wanted["CPU"],
                num_gpus=wanted.get("GPU"),
                memory=wanted.get("memory"),
                scheduling_strategy="SPREAD",
                runtime_env={"env_vars": {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}},
            )
            self._hand_out(worker.remote(self.job, Path.cwd(), self.mark, METHODS.finders), self.waiting.popleft())

    def _hand_out(self, actor: Any, cells: list[Cell]) -> None:
        self.posts[actor.measure.options(num_returns="streaming").remote(cells)] = Post(actor, cells[0], cells)

    def _hear(self, stream: Any) -> None:
        """Take one report of a worker: what its records are called, a line of its log, a cell; or its end or loss."""
        post = self.posts[stream]
        try:
            with held_back():
                reference = next(stream, None)
                report = None if reference is None else self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as error:  # what the worker raised, as itself
            raise error.cause from error
        except self.ray.exceptions.RayError:
            del self.posts[stream]
            self._lose(post)
            return
        post.begun, self.stillborn = True, 0
        match report:
            case None:
                del self.posts[stream]
                self._relieve(post)
            case dict():
                self.names |= report
            case str():
                self.say(f"{title(post.first)}: {report}")
            case (cell, failure):
                self._tick(post, cell, failure)

    def _tick(self, post: Post, cell: Cell, failure: str | None) -> None:
        """Count a cell that has its record."""
        post.cells.remove(cell)
        self.done += 1
        self.say(f"{cell}{f' failed: {failure}' if failure else ''} ({self.done}/{self.total} cells)")

    def _relieve(self, post: Post) -> None:
        """Hand a worker the next checkpoint of its model; where none waits it goes, and its memory with it."""
        following = next((cells for cells in self.waiting if cells[0].model == post.first.model), None)
        if following is None:
            self.ray.kill(post.actor)
        else:
            self.waiting.remove(following)
            self._hand_out(post.actor, following)

    def _lose(self, post: Post) -> None:
        """Have another worker finish what a lost one left; give up a cell that was lost too often."""
        self.ray.kill(post.actor)  # it may only be out of reach, and must not go on
        for cell in list(post.cells):
            if cell.path in self.names and self.store.find(cell, self.names[cell.path]):
                self._tick(post, cell, None)  # written, and lost before it was reported
        if not post.cells:
            return
        if not post.begun:
            self._count_stillborn()
            self.waiting.appendleft(post.cells)
            return
        running = post.cells[0]
        self.losses[running] += 1
        self.say(f"{running}: its worker was lost ({self.losses[running]} of {LOSSES} times)")
        if self.losses[running] == LOSSES:
            failed = Failed(LOST)
            self.store.write(record_of(self.job, running, None, failed), [])
            self._tick(post, running, failed.reason)
        if post.cells:
            self.waiting.appendleft(post.cells)

    def _count_stillborn(self) -> None:
        self.stillborn += 1
        self.say(f"a worker was lost before it began ({self.stillborn} of {STARTS} in a row)")
        if self.stillborn == STARTS:
            raise InputError(
                f"{STARTS} workers in a row were lost before they began: see whether every node has this fpbench, "
                "and what Ray's logs say (/tmp/ray/session_latest/logs); finished records stay."
            )


def request(job: Job, model: str) -> dict[str, float]:
    """What a worker on a model asks for, under Ray's names: cores, share of a card, bytes of memory."""
    resources = job.settings(model).resources or job.profile.resources
    wanted: dict[str, float] = {"CPU": job.profile.threads or 1}
    if job.loading.device != "cpu":
        wanted["GPU"] = resources.gpus
    if resources.memory_gb:
        wanted["memory"] = round(resources.memory_gb * 2**30)
    return wanted


def capacity(nodes: Iterable[Mapping[str, Any]], wanted: Mapping[str, float]) -> int:
    """How many workers fit on the living nodes at once, each whole on one node.

    Args:
        nodes: as ``ray.nodes()`` lists them.
        wanted: what a worker asks for.
    """
    # Shares of a card need not be exact: ten workers of 0.1 fit on one.
    fitting = lambda has: min(int(has.get(name, 0) / amount + 1e-6) for name, amount in wanted.items())  # noqa: E731
    return sum(fitting(node["Resources"]) for node in nodes if node["Alive"])


# Measures a job on a Ray cluster: the driver hands out checkpoints, workers write records into the shared store.


DEVICES = ("cpu", "cuda")
OBJECT_STORE = 80 * 2**20  # bytes, about the least that Ray takes: nothing large travels


class Ray:
    """As many workers as a Ray cluster has room for: one process and one model each."""

    def __init__(self, address: str | None = None) -> None:
        """Connect to nothing yet.

        Args:
            address: of a running cluster, ``auto`` for the one of this machine; by default one is started in this
                process. Where this process is connected already, that cluster is used.

        Raises:
            InputError: if Ray is not installed.
        """
        if find_spec("ray") is None:
            raise InputError("the engine 'ray' needs Ray, which is not installed: pip install 'fpbench[ray]'.")
        self.address = address

    def check(self, worker: "Worker", cells: Sequence[Cell]) -> None:
        """As :meth:`~fpbench.runs.engine.Engine.check`: the device, and that the cluster answers.

        Raises:
            InputError: if not.
        """
        if (device := worker.job.loading.device) not in DEVICES:
            raise InputError(
                f"device {device!r} cannot be chosen with Ray, which hands out the cards itself: "
                f"expected one of {', '.join(DEVICES)}."
            )
        if self.address:
            with self._connected():
                pass

    def measure(self, worker: "Worker", checkpoints: Sequence[Sequence[Cell]], say: Say) -> dict[str, str]:
        """Measure on a cluster, as :class:`~fpbench.runs.engine.Engine`; bars cannot travel, so cells are said.

        Raises:
            InputError: if no node can hold a worker, or a node does not see the store or the data.
            StorageError: if a record cannot be written.
        """
        profile = worker.job.profile
        job = replace(worker.job, profile=profile.model_copy(update={"threads": profile.threads or 1}))
        # Ray prints on standard output whom it lost; that is for the table.
        with (
            contextlib.redirect_stdout(sys.stderr),
            self._connected() as ray,
            tempfile.NamedTemporaryFile(dir=job.out, prefix=".driver.", suffix=TEMPORARY) as mark,
        ):
            return Crew(ray, job, checkpoints, Path(mark.name), say).measure()

    @contextlib.contextmanager
    def _connected(self) -> Iterator[Any]:
        """The module ``ray``, connected; what was connected or started here ends with the block."""
        import ray

        if ray.is_initialized():
            yield ray
            return
        try:
            self._connect(ray)
            yield ray
        finally:
            ray.shutdown()

    def _connect(self, ray: Any) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if self.address and self.address != "auto":
            _reach(self.address)
        quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
        try:
            with held_back():  # and keep our handler of SIGTERM, which Ray replaces
                if self.address:
                    ray.init(self.address, **quiet)
                else:
                    ray.init("local", include_dashboard=False, object_store_memory=OBJECT_STORE, **quiet)
        except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise InputError(
                f"the Ray cluster {self.address!r} cannot be joined (is it one with token authentication? then set "
                f"RAY_AUTH_MODE=token): {reason}"
                if self.address
                else f"Ray cannot be started: {reason}"
            ) from None


def _reach(address: str) -> None:
    """Knock at an address: Ray itself would wait there for minutes.

    Raises:
        InputError: if nobody answers.
    """
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError, OverflowError):
        raise InputError(
            f"no Ray cluster answers at {address!r}: expected 'auto', or the host:port that `ray start --head` told."
        ) from None
