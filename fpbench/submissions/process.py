"""A child process for a stranger's adapter, as its parent sees it: started bare, watched, killed at the end."""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

import psutil

from fpbench.errors import CellError, InputError
from fpbench.submissions import sandbox
from fpbench.submissions.confinement import TRIALS, Targets
from fpbench.submissions.folder import Submission
from fpbench.submissions.replies import Reply, validated
from fpbench.submissions.scratch import scratch
from fpbench.text import printable

POLL = 0.1  # seconds between two looks at the child
START = 120.0  # seconds that a bare Python may take to say that it is there
ENDING = 10.0  # seconds that killed processes may take to be gone
LARGEST_REPLY = 2**20  # bytes
HANDLES = 4096  # open files of one process
# What a process needs to find its libraries and its cards. No token, no proxy, no path of the user's.
KEPT = (
    "LANG", "LC_ALL", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "CUDA_HOME", "ROCR_VISIBLE_DEVICES", "OMP_NUM_THREADS",
)  # fmt: skip

NO_FILES: Mapping[str, bytes] = MappingProxyType({})
REQUEST = "request"
LONGEST_SOCKET = 107  # bytes of a UNIX socket's path, on every system that has them


@dataclass(frozen=True)
class Limits:
    """Limits of a child process."""

    seconds: float  # for one request
    memory: int  # bytes, of the child and everything it starts together, with what lies in its private folders
    file: int  # bytes of one file
    folder: int  # bytes of each private folder
    files: int = 20_000  # in each private folder
    processes: int = 1_000  # at once


# What each promise keeps a submission from, in the order in which they are shown.
PROMISES = {
    "reads": "see the run's store, your files or another program's",
    "writes": "change a file, its rights, owner or times outside its private folders",
    "network": "reach a network",
    "sockets": "reach another program by a UNIX socket",
    "processes": "see or touch a process outside, or leave one behind",
    "memory": "hoard in /tmp, /dev/shm or unnamed files",
    "calls": "make calls to the system that its work does not need",
}
assert PROMISES.keys() == TRIALS.keys()
REMEDY = "allow user namespaces (docs/submissions.md), or give --unconfined"


@dataclass(frozen=True)
class Confinement:
    """What a child could not do when it tried, before a stranger's code was there."""

    by: str | None  # what started it; None if nothing on this machine can start it apart
    landlock: int  # version that binds it as a second wall; 0 if there is none
    holds: tuple[str, ...]  # of PROMISES

    @property
    def missing(self) -> list[str]:
        """The promises that do not hold."""
        return [name for name in PROMISES if name not in self.holds]

    def told(self) -> list[str]:
        """Return a line on each promise, tried on this machine, and one on who keeps them."""
        lines = [f"{'could not' if name in self.holds else 'COULD'} {what}" for name, what in PROMISES.items()]
        by = f"started by {self.by}" if self.by else "started by nothing that sets it apart"
        second = f"Landlock {self.landlock} behind it" if self.landlock else "no Landlock behind it"
        return [*lines, f"{by}, {second}"]

    def warnings(self) -> list[str]:
        """Return a line on each promise that does not hold."""
        return [f"UNCONFINED: a submission can {PROMISES[name]} on this machine" for name in self.missing]

    def to_dict(self) -> dict[str, Any]:
        """Return it as provenance."""
        return {"by": self.by, "landlock": self.landlock, "holds": list(self.holds), "missing": self.missing}

    def unkept(self) -> str | None:
        """Return what a submission could do that it must not, and why this machine lets it; ``None`` if nothing."""
        if not self.missing:
            return None
        why = "; ".join(f"{name}: {printable(sandbox.fails(name) or 'works')}" for name in sandbox.STARTS)
        return f"it could {PROMISES[self.missing[0]]} (not kept: {', '.join(self.missing)}; {why})"

    def refused(self, unconfined: bool) -> str | None:
        """Return why a submission must not run here, unless it may run ``unconfined``."""
        if unconfined or not (found := self.unkept()):
            return None
        return f"this machine does not keep a submission from everything: {found}; {REMEDY}."


def confinement() -> Confinement:
    """Return what this machine keeps a submission from, tried by a child that runs none."""
    limits = Limits(seconds=START, memory=2**32, file=2**20, folder=2**20)
    with ChildProcess(None, limits, unconfined=True) as child:
        return child.start()


def require(unconfined: bool) -> Confinement:
    """Return :func:`confinement`; InputError if a promise does not hold, unless submissions may run ``unconfined``."""
    found = confinement()
    if why := found.refused(unconfined):
        raise InputError(why)
    return found


class ChildProcess:
    """A child process with a folder of its own, which is removed with it.

    ``folder`` holds what the child is given, its log, and what it hands back; only the first is shown to it.
    """

    def __init__(
        self, submission: Submission | None, limits: Limits, base: Path | None = None, *, unconfined: bool = False
    ) -> None:
        """Start nothing yet.

        Args:
            submission: whose adapter is run; ``None`` to try the promises alone.
            limits: of the child and everything it starts.
            base: checkpoint that it is shown; ``None`` for none but the bundled.
            unconfined: whether it may run where a promise does not hold.
        """
        self._submission, self.limits, self.base, self.unconfined = submission, limits, base, unconfined
        self.peak_memory = 0  # bytes at the highest point seen, from its first moment on
        self.adapter_seconds = 0.0  # in the adapter's own code, as the child says
        self.confinement: Confinement | None = None  # known once it was started
        self._process: subprocess.Popen[bytes] | None = None
        self._number = 1  # of the next request
        self._deaf = False  # whether it closed its end
        self._looked = -POLL  # when it was looked at last
        self._heard = b""  # of a reply that is not whole yet
        self._open = contextlib.ExitStack()

    @property
    def submission(self) -> Submission:
        """The submission whose adapter is run."""
        assert self._submission is not None, "a child that tries the promises alone is asked nothing"
        return self._submission

    def __enter__(self) -> "ChildProcess":
        self.folder = self._open.enter_context(scratch())
        for name in ("given", "root", "work"):
            (self.folder / name).mkdir()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._kill(self._process)
        self._open.close()

    def start(self) -> Confinement:
        """Start the process, if it was not, and return what it could not do.

        Raises:
            CellError: if it does not start, or a promise does not hold and it may not run unconfined.
        """
        found = self.tried()
        if why := found.refused(self.unconfined):
            raise CellError(why)
        return found

    def tried(self) -> Confinement:
        """Start the process, if it was not, and return what it could not do, whatever that is; CellError if it fails.

        Where nothing sets it apart, and it may not run unconfined, it is not even started.
        """
        if self.confinement is None:
            self._by = sandbox.best()
            if self._by is None and not self.unconfined:
                return Confinement(None, 0, ())
            answer = self._reply(self._start(), START).answer
            self.confinement = Confinement(self._by, int(answer["landlock"]), tuple(answer["holds"]))
        return self.confinement

    def _start(self) -> subprocess.Popen[bytes]:
        given, limits = self.folder / "given", self.limits
        if self._submission is not None:
            self._submission.copy_code(given / "submission")
        # A private folder may hold no more than all memory that it may take.
        room = min(limits.folder, limits.memory)
        shown = [given, *(sandbox.files_of(self.base) if self.base else [])]
        seen = sandbox.view(self.folder / "root", shown, room, limits.files)
        private = seen.private if self._by else (str(self.folder / "work"),)
        told = {
            "limits": {"memory": limits.memory, "file": limits.file, "handles": HANDLES},
            "alone": self._by is None,
            "targets": asdict(self._targets(private, room)),
        }
        self._write("limits.json", json.dumps(told).encode())
        self._changes = self._file("changes.safetensors")
        self._log = self._file("log")
        self._replies, theirs = os.pipe()
        os.set_blocking(self._replies, False)
        self._open.callback(os.close, self._replies)
        command = [sys.executable, "-s", "-P", "-m", "fpbench.submissions.child"]
        command += [str(given), str(theirs), str(self._changes)]
        try:
            self._process = subprocess.Popen(
                sandbox.STARTS[self._by](seen, command) if self._by else command,
                cwd=self.folder / "work",
                env=self._environment(private[0]),
                stdin=subprocess.PIPE,
                stdout=self._log,
                stderr=subprocess.STDOUT,
                pass_fds=(theirs, self._changes),
                start_new_session=True,
            )
        finally:
            os.close(theirs)
        return self._process

    def _file(self, name: str) -> int:
        """Open a new file in the folder, which the child is handed open."""
        handle = os.open(self.folder / name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._open.callback(os.close, handle)
        return handle

    def _targets(self, private: tuple[str, ...], room: int) -> Targets:
        """Put what a child must not reach where it would: a file, and sockets that listen while it lives."""
        secret, path = self.folder / "secret", str(self.folder / "socket")
        secret.write_text("of the parent's")
        if len(os.fsencode(path)) > LONGEST_SOCKET:
            raise InputError(
                f"the folder of temporary files is too deep: expected at most {LONGEST_SOCKET} bytes for {path}; set "
                "TMPDIR to a shorter one."
            )
        internet, named, abstract = socket.socket(), socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
        for listening in (internet, named, abstract):
            self._open.callback(listening.close)
        internet.bind(("127.0.0.1", 0))
        named.bind(path)
        if sys.platform.startswith("linux"):
            abstract.bind(f"\0{path}")
            abstract.listen()
        for listening in (internet, named):
            listening.listen()
        processes = Path("/proc/self/ns/pid")
        return Targets(
            file=str(secret),
            listening=internet.getsockname()[1],
            socket=path,
            processes=os.readlink(processes) if processes.is_symlink() else "",
            read_only=[str(self.folder / "given" / "limits.json")],
            private=list(private),
            bytes=room,
        )

    def _environment(self, home: str) -> dict[str, str]:
        bare = {"PATH": os.defpath, "HOME": home, "TMPDIR": home, "PYTHONPATH": str(sandbox.PACKAGES)}
        calm = {"PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        return bare | calm | {name: os.environ[name] for name in KEPT if name in os.environ}

    def ask(self, do: str, files: Mapping[str, bytes] = NO_FILES, /, **request: Any) -> dict[str, Any]:
        """Have the child do something; return its answer, which is not to be trusted.

        ``files`` are given to it for as long as that takes, by the names of arguments, which get their paths.

        Raises:
            CellError: if it fails, ends, hangs, takes more than its limits, or answers with something else.
        """
        self.start()
        given = {key: f"{key}-{self._number}" for key in files} | {REQUEST: f"{REQUEST}-{self._number}.json"}
        told = {"do": do} | request | {key: name for key, name in given.items() if key != REQUEST}
        for key, name in given.items():
            self._write(name, files[key] if key in files else json.dumps(told).encode())
        assert self._process is not None and self._process.stdin is not None, "it was started with a pipe"
        with contextlib.suppress(BrokenPipeError):  # it ended; the wait for its reply says how
            self._process.stdin.write(b"%d\n" % self._number)
            self._process.stdin.flush()
        reply = self._reply(self._process, self.limits.seconds)
        for name in given.values():  # of which there may be thousands
            (self.folder / "given" / name).unlink(missing_ok=True)
        self._number += 1
        self.adapter_seconds += max(0.0, reply.adapter_seconds)
        if reply.status != "done":
            raise CellError(printable(reply.reason, 500) or "the child process failed without a word.")
        return reply.answer

    def _write(self, name: str, content: bytes) -> None:
        """Write a new file for the child, never through a link that an unconfined one may have put there."""
        try:
            handle = os.open(self.folder / "given" / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise CellError(f"the child process put something where {name} belongs ({error.strerror}).") from None
        with os.fdopen(handle, "wb") as file:
            file.write(content)

    def changes(self) -> bytes:
        """Read the changed weights or logits that the child left; CellError if they are larger than a file may be."""
        return _content(self._changes, "what was changed", self.limits.file)

    def _reply(self, process: subprocess.Popen[bytes], seconds: float) -> Reply:
        end = time.monotonic() + seconds
        while (line := self._line()) is None:
            if process.poll() is not None:
                if (line := self._line()) is not None:  # its last word
                    break
                raise CellError(
                    f"the adapter's process ended ({self._exit(process.returncode)}) without an answer"
                    f"{self._last_words()}"
                )
            self._look(process)
            if time.monotonic() > end:
                raise CellError(f"the adapter took longer than {seconds:g} s: make it quicker.")
            if self._deaf:
                time.sleep(POLL)
            else:
                select.select([self._replies], [], [], POLL)
        self._look(process)
        return validated(Reply, line)

    def _line(self) -> bytes | None:
        """Return the next line that the child has written, without waiting for it; ``None`` if it is not whole."""
        while b"\n" not in self._heard and len(self._heard) <= LARGEST_REPLY:
            try:
                more = os.read(self._replies, 2**16)
            except BlockingIOError:
                return None
            if not more:
                self._deaf = True
                return None
            self._heard += more
        line, _, self._heard = self._heard.partition(b"\n")
        if len(line) > LARGEST_REPLY:
            raise CellError(f"a reply: expected at most {LARGEST_REPLY} bytes from the child, found more.")
        return line

    def _exit(self, code: int) -> str:
        # What starts it apart tells the signal that ended it as a shell does.
        number = -code if code < 0 else code - 128 if self._by and code > 128 else 0
        return signal.strsignal(number) or f"signal {number}" if number else f"exit code {code}"

    def _last_words(self) -> str:
        with contextlib.suppress(CellError):
            content = _content(self._log, "the log", self.limits.file + 1)
            said = content.decode("utf-8", "replace").strip().splitlines()
            return f"; its last words: {printable(said[-1])}" if said else "."
        return "."

    def _look(self, process: subprocess.Popen[bytes]) -> None:
        """Add up, every so often, what the child and all that it started take; CellError if that exceeds a limit."""
        if time.monotonic() < self._looked + POLL:
            return
        self._looked = time.monotonic()
        family, held = self._family(process.pid), 0
        for each in family:
            with contextlib.suppress(psutil.Error):
                held += each.memory_info().rss
        kept, files = self._kept(family)
        held += kept if self._by else 0  # private folders are memory then, and on the disk otherwise
        self.peak_memory = max(self.peak_memory, held)
        places, limits = len(sandbox.PRIVATE) if self._by else 1, self.limits
        for what, found, limit, unit in (
            ("MiB of memory", held, limits.memory, 2**20),
            ("MiB of disk", kept, limits.folder * places, 2**20),
            ("files", files, limits.files * places, 1),
            ("processes", len(family), limits.processes, 1),
        ):
            if found > limit:
                raise CellError(
                    f"the adapter took more than {limit / unit:.0f} {what}: found {found / unit:.0f}; make it smaller."
                )

    def _kept(self, family: list[psutil.Process]) -> tuple[int, int]:
        """Return bytes and number of files in the private folders, with those that have no name any more."""
        if self._by is None:
            return self._on_disk()
        if self.confinement is None:  # it may not have entered its own root yet
            return 0, 0
        for each in family:  # which share one root; some may have ended
            with contextlib.suppress(OSError):
                found = [os.statvfs(f"/proc/{each.pid}/root{path}") for path in sandbox.PRIVATE]
                used = sum((each.f_blocks - each.f_bfree) * each.f_frsize for each in found)
                return used, sum(each.f_files - each.f_ffree for each in found)
        return 0, 0

    def _on_disk(self) -> tuple[int, int]:
        """Return bytes and number of the files that an unconfined child has put into its folder."""
        try:
            entries = [os.path.join(parent, name) for parent, _, names in os.walk(self.folder) for name in names]
        except RecursionError:
            raise CellError("the adapter nested folders without end; make do with a few levels.") from None
        sizes = []
        for path in entries:
            with contextlib.suppress(OSError):
                sizes.append(os.lstat(path).st_size)
        return sum(sizes), len(sizes)

    def _family(self, pid: int) -> list[psutil.Process]:
        """Return the child and everything that it started, also what left its parent: all below what started it."""
        with contextlib.suppress(psutil.Error):
            first = psutil.Process(pid)
            below = first.children(recursive=True)
            if self._by is None:
                return [first, *below]
            # A namespace's processes without parents go to its first one, which is none of the child's.
            return [each for each in below if each.ppid() != first.pid]
        return []

    def _kill(self, process: subprocess.Popen[bytes]) -> None:
        everything = []
        with contextlib.suppress(psutil.Error):
            everything = psutil.Process(process.pid).children(recursive=True)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        for each in everything:  # also those that left the group
            with contextlib.suppress(psutil.Error):
                each.kill()
        process.wait()
        psutil.wait_procs(everything, timeout=ENDING)
        if process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()


def _content(handle: int, what: str, largest: int) -> bytes:
    """Read an open file that the child wrote to from its beginning; CellError if it is larger than ``largest``."""
    if (found := os.fstat(handle).st_size) > largest:
        raise CellError(f"{what}: expected at most {largest} bytes from the child, found {found}.")
    with open(handle, "rb", closefd=False) as file:
        file.seek(0)
        return file.read(largest + 1)
