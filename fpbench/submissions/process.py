"""A child process for a stranger's adapter, as its parent sees it: started bare, watched, killed at the end.

Everything that it hands back is a stranger's word: replies, and the weights that it says it changed.
"""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, TypeVar

import psutil
from pydantic import ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from fpbench.checks import Settings, first_error
from fpbench.errors import CellError
from fpbench.models.weights import Factors
from fpbench.submissions.child import CHANGES
from fpbench.submissions.folder import Submission
from fpbench.text import printable

POLL = 0.1  # seconds between two looks at the child
START = 120.0  # seconds that a bare Python may take to say that it is there
LARGEST_REPLY = 2**20  # bytes
PACKAGES = Path(__file__).parents[2]  # where fpbench itself is imported from
# What a process needs to find its libraries and its cards. No token, no proxy, no path of the user's.
KEPT = (
    "LANG", "LC_ALL", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "CUDA_HOME", "ROCR_VISIBLE_DEVICES", "OMP_NUM_THREADS",
)  # fmt: skip
Figure = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Message(Settings):
    """Base of everything that a child sends: of exactly these types, or the request fails."""

    model_config = ConfigDict(strict=True)


class Reply(Message):
    """A reply to one request."""

    status: str
    answer: dict[str, Any] = {}
    reason: str = ""
    traceback: str = ""
    adapter_seconds: Figure


class Description(Message):
    """The names that an adapter registers, its version, and the hyper-parameters that its Config refuses, by family."""

    names: list[str]
    version: str | None = None
    refused: dict[str, str] = {}


class Usage(Message):
    """Time and memory of an injection, as the child measured them."""

    seconds: dict[str, Figure]
    peak_memory: Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class Limits:
    """Limits of a child process."""

    seconds: float  # for one request
    memory: int  # bytes, of the child and everything it starts together
    file: int  # bytes of one file
    folder: int  # bytes of everything in its folder


FOLDER, LOCK = "fpbench-submission-", "parent.lock"


def remove_orphans() -> None:
    """Remove the folders of children whose parents were killed; each may hold a delta as large as the model.

    A parent that lives holds the lock in its folder, and nobody else's folder is touched.
    """
    for folder in Path(tempfile.gettempdir()).glob(f"{FOLDER}*"):
        with contextlib.suppress(OSError):
            found = folder.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
                continue
            handle = os.open(folder / LOCK, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(handle)


class ChildProcess:
    """A child process with a folder of its own, which is removed with it.

    ``folder`` holds a copy of the submission, requests, replies, and what the child hands back.
    """

    def __init__(self, submission: Submission, limits: Limits) -> None:
        """Start nothing yet."""
        self.submission, self.limits = submission, limits
        self.peak_memory = 0  # bytes that were resident at the highest point seen
        self.adapter_seconds = 0.0  # in the adapter's own code, as the child says
        self.confined: tuple[str, ...] = ()  # rights that the system took away (child.confine)
        self._number = 0

    def __enter__(self) -> "ChildProcess":
        remove_orphans()
        self._open_folder()
        try:
            self.submission.copy_code(self.folder / "submission")
            (self.folder / "work").mkdir()
            self._write("limits.json", json.dumps(asdict(self.limits)))
            with (self.folder / "log").open("wb") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-s", "-P", "-m", "fpbench.submissions.child", str(self.folder)],
                    cwd=self.folder / "work",
                    env=self._environment(),
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except BaseException:
            self._remove_folder()
            raise
        return self

    def _open_folder(self) -> None:
        """Make the folder, and hold a lock in it for as long as this process lives."""
        new = Path(tempfile.mkdtemp(prefix=f"new-{FOLDER}"))
        self._lock = os.open(new / LOCK, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        # Others look for this name, which it has only once it is locked.
        self.folder = new.with_name(new.name.removeprefix("new-"))
        new.rename(self.folder)

    def _remove_folder(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._kill()
        self._remove_folder()

    def _environment(self) -> dict[str, str]:
        home = str(self.folder / "work")
        bare = {"PATH": os.defpath, "HOME": home, "TMPDIR": home, "PYTHONPATH": str(PACKAGES)}
        calm = {"PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        return bare | calm | {name: os.environ[name] for name in KEPT if name in os.environ}

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """Have the child do something; return its answer, which is not to be trusted.

        Raises:
            CellError: if it fails, ends, hangs, takes more than its limits, or answers with something else.
        """
        if self._number == 0:
            self.confined = tuple(map(str, self._reply(START).answer.get("confined", ())))
            self._number = 1
        self._write(f"request-{self._number}.json", json.dumps({"do": do} | request))
        assert self._process.stdin is not None, "it was opened as a pipe"
        with contextlib.suppress(BrokenPipeError):  # it ended; the wait for its reply says how
            self._process.stdin.write(b"%d\n" % self._number)
            self._process.stdin.flush()
        reply = self._reply(self.limits.seconds)
        self._number += 1
        self.adapter_seconds += max(0.0, reply.adapter_seconds)
        if reply.status != "done":
            raise CellError(printable(reply.reason, 500) or "the child process failed without a word.")
        return reply.answer

    def _write(self, name: str, text: str) -> None:
        """Write a new file for the child, never through a link that it may have put there."""
        try:
            handle = os.open(self.folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise CellError(f"the child process put something where {name} belongs ({error.strerror}).") from None
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)

    def changes(self) -> bytes:
        """Read the file of changed weights that the child left."""
        return read_file(self.folder / CHANGES, self.limits.file)

    def _reply(self, seconds: float) -> Reply:
        path = self.folder / f"reply-{self._number}.json"
        end = time.monotonic() + seconds
        while not os.path.lexists(path):
            if self._process.poll() is not None and not os.path.lexists(path):
                raise CellError(f"the adapter's process ended ({self._exit()}) without an answer{self._last_words()}")
            self._look()
            if time.monotonic() > end:
                raise CellError(f"the adapter took longer than {seconds:g} s: make it quicker.")
            time.sleep(POLL)
        self._look()
        return validated(Reply, read_file(path, LARGEST_REPLY))

    def _exit(self) -> str:
        code = self._process.returncode
        return signal.strsignal(-code) or f"signal {-code}" if code < 0 else f"exit code {code}"

    def _last_words(self) -> str:
        with contextlib.suppress(CellError):
            said = read_file(self.folder / "log", self.limits.file + 1).decode("utf-8", "replace").strip().splitlines()
            return f"; its last words: {printable(said[-1])}" if said else "."
        return "."

    def _look(self) -> None:
        """Add up memory and disk of the child and all that it started; CellError if that exceeds a limit."""
        held = 0
        for process in self._family():
            with contextlib.suppress(psutil.Error):
                held += process.memory_info().rss
        self.peak_memory = max(self.peak_memory, held)
        for what, found, limit in (("memory", held, self.limits.memory), ("disk", self._written(), self.limits.folder)):
            if found > limit:
                raise CellError(
                    f"the adapter took more than {limit / 2**20:.0f} MiB of {what}: found {found / 2**20:.0f}; "
                    "make it smaller."
                )

    def _written(self) -> int:
        total = 0
        for parent, _, names in os.walk(self.folder):
            for name in names:
                with contextlib.suppress(OSError):
                    total += os.lstat(os.path.join(parent, name)).st_size
        return total

    def _family(self) -> Iterator[psutil.Process]:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(self._process.pid)
            yield from [process, *process.children(recursive=True)]

    def _kill(self) -> None:
        family = list(self._family())
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        for process in family:  # also those that left the group
            with contextlib.suppress(psutil.Error):
                process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()


# What a child handed back.
Kind = TypeVar("Kind", bound=Message)


def validated(kind: type[Kind], message: bytes | dict[str, Any]) -> Kind:
    """Return a child's message as one of a kind; CellError if it is not."""
    try:
        return kind.model_validate_json(message) if isinstance(message, bytes) else kind.model_validate(message)
    except ValidationError as error:
        reason = first_error(error)[1]
        raise CellError(f"the child process sent an invalid {kind.__name__.lower()} ({reason}).") from None


def read_file(path: Path, largest: int) -> bytes:
    """Read a regular file that the child wrote, without following a link or waiting for a pipe.

    Raises:
        CellError: if it is not a regular file or larger than ``largest`` bytes.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise CellError(f"the child process left no readable {path.name} ({error.strerror}).") from None
    with os.fdopen(handle, "rb") as file:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise CellError(f"the child process left a {path.name} that is no file.")
        if found.st_size > largest:
            raise CellError(f"{path.name}: expected at most {largest} bytes from the child, found {found.st_size}.")
        return file.read(largest + 1)


def read_changes(content: bytes, base: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Factors]]:
    """Return the new values of changed parameters, and the factors of those that were handed back as such.

    Args:
        content: of a safetensors file: a parameter under its name, or ``NAME.left`` [h, r] and ``NAME.right`` [d, r]
            for a change that is a product.
        base: the parameters with their present values.

    Raises:
        CellError: for a parameter that the base does not have, or of another shape or dtype, or not finite.
    """
    try:
        tensors = load(content)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CellError(f"the child process handed back no safetensors file ({error}).") from None
    values: dict[str, Tensor] = {}
    factors: dict[str, Factors] = {}
    for name, before in base.items():
        if name in tensors:
            values[name] = _alike(name, tensors.pop(name), tuple(before.shape), str(before.dtype))
        elif f"{name}.left" in tensors and f"{name}.right" in tensors and before.ndim == 2:
            left, right = tensors.pop(f"{name}.left"), tensors.pop(f"{name}.right")
            rank = left.shape[-1] if left.ndim == 2 else 0
            height, width = before.shape
            factors[name] = Factors(
                _alike(f"{name}.left", left, (height, rank), "torch.float32"),
                _alike(f"{name}.right", right, (width, rank), "torch.float32"),
            )
            values[name] = factors[name].added_to(before)
    if tensors:
        raise CellError(f"the adapter handed back {sorted(tensors)[0]}, which the base does not have.")
    for name, value in values.items():
        if not value.isfinite().all():
            raise CellError(f"the injection left non-finite weights in {name}.")
    return values, factors


def _alike(name: str, value: Tensor, shape: tuple[int, ...], dtype: str) -> Tensor:
    found = f"{tuple(value.shape)} {value.dtype}"
    if found != f"{shape} {dtype}":
        raise CellError(f"parameter {name}: expected {shape} {dtype}, found {found}.")
    return value
