"""Measures a job on a Ray cluster: the driver hands out checkpoints, workers write records into the shared store."""

import contextlib
import logging
import os
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fpbench.errors import InputError
from fpbench.runs.engines.crew import Crew
from fpbench.runs.engines.engine import Say
from fpbench.runs.interruption import held_back
from fpbench.runs.job import Job
from fpbench.runs.plan import Cell

if TYPE_CHECKING:
    from fpbench.runs.bench import Progress

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

    def check(self, job: Job, cells: Sequence[Cell]) -> None:
        """As :meth:`~fpbench.runs.engines.engine.Engine.check`: the device, and that the cluster answers.

        Raises:
            InputError: if not.
        """
        if job.loading.device not in DEVICES:
            raise InputError(
                f"device {job.loading.device!r} cannot be chosen with Ray, which hands out the cards itself: "
                f"expected one of {', '.join(DEVICES)}."
            )
        if self.address:
            with self._connected():
                pass

    def measure(
        self, job: Job, checkpoints: Sequence[Sequence[Cell]], progress: "Progress", say: Say
    ) -> dict[str, str]:
        """Measure on a cluster, as :class:`~fpbench.runs.engines.engine.Engine`; bars cannot travel, so cells are said.

        Raises:
            InputError: if no node can hold a worker, or a node does not see the store or the data.
            StorageError: if a record cannot be written.
        """
        job = replace(job, profile=job.profile.model_copy(update={"threads": job.profile.threads or 1}))
        # Ray prints on standard output whom it lost; that is for the table.
        with (
            contextlib.redirect_stdout(sys.stderr),
            self._connected() as ray,
            tempfile.NamedTemporaryFile(dir=job.out, prefix=".driver.") as mark,
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
