"""The folder of a run: records written whole or not at all, also when a process is killed or the disk gives out.

A record is one JSON file a cell with its per-query results beside it. Locks see to it that one process drives a run and
that no artefact is made twice.
"""

import contextlib
import fcntl
import json
import logging
import os
import re
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from glob import escape
from itertools import chain, count
from pathlib import Path
from typing import Any

from fpbench.errors import InputError, StorageError
from fpbench.hub.lock import sha256
from fpbench.records.cell import PROTOCOL, Cell
from fpbench.records.record import SCHEMA, Queries, Record
from fpbench.text import canonical, digest, parsed, printable

# Of files that are being written; what a killed writer leaves is known by it, whatever else lies in the folder.
TEMPORARY = ".fpbench-temporary"
LEFTOVER = re.compile(rf"\..+\.[a-z0-9_]{{8}}{re.escape(TEMPORARY)}")
LARGEST_RECORD, LARGEST_QUERIES = 16 * 2**20, 256 * 2**20  # bytes
LEVELS = 6  # folders that are looked into below a folder of records: five hold cells, the sixth shows what is misplaced
UNKNOWN = "0" * 64  # stands for a record's checksum in the text that it is computed from
logger = logging.getLogger(__name__)


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Deliver SIGINT and SIGTERM only after the block; outside the main thread, which alone gets them, do nothing."""
    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    arrived: list[int] = []
    handlers = {number: signal.signal(number, lambda number, _: arrived.append(number)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for each in arrived:
            signal.raise_signal(each)


@contextlib.contextmanager
def written(path: Path, mode: int = 0o644) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path`` and rename it there, with ``mode``, once it is on disk.

    Raises:
        StorageError: if the disk is full, a limit is hit or the folder went away; nothing half-written remains.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=TEMPORARY)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(mode)
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise StorageError(f"{path} cannot be written ({error.strerror or error}): finished records stay.") from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a whole text file atomically; at no moment can others read it than ``mode`` allows."""
    write_bytes(path, text.encode(), mode)


def write_bytes(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Write a whole file atomically."""
    with written(path, mode) as temporary:
        temporary.write_bytes(content)


def check_writable(folder: Path) -> None:
    """Try to write where the folder is or would be created; leave nothing behind.

    Raises:
        InputError: if it cannot be created or written, before any work starts.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        why = error.strerror or error
        raise InputError(f"output folder {folder} cannot be written ({why}): choose another with --out.") from None


class Store:
    """The folder of one run: ``records/`` (source of truth), ``deltas/``, ``statistics/`` and the generated tables."""

    # Every sub-folder that a run makes; a folder with one of them is taken for a run's.
    FOLDERS = ("records", "deltas", "statistics", "searches", "sets", "plans", "locks")

    def __init__(self, folder: Path) -> None:
        """Use ``folder``; nothing is created yet."""
        self.folder = folder
        self.records = folder / "records"
        self.deltas = folder / "deltas"
        self.statistics = folder / "statistics"
        self._damaged: set[Path] = set()

    def check(self) -> None:
        """See whether the folder is new, empty or a store, and can be written; leave nothing behind.

        Raises:
            InputError: if not: what somebody else keeps there is not mixed with records.
        """
        check_writable(self.folder)
        known = any((self.folder / name).is_dir() for name in self.FOLDERS)
        if not known and self.folder.exists() and any(self.folder.iterdir()):
            raise InputError(
                f"output folder {self.folder} is not empty and holds no run of fpbench: choose a new or empty folder "
                "with --out; nothing was written."
            )

    def sweep(self) -> None:
        """Remove what killed writers left half-written, and nothing else. For whoever drives the store alone."""
        own = (path for name in self.FOLDERS for path in (self.folder / name).rglob(f".*{TEMPORARY}"))
        for path in (*self.folder.glob(f".*{TEMPORARY}"), *own):
            if LEFTOVER.fullmatch(path.name) and path.is_file() and not path.is_symlink():
                path.unlink()

    def record_path(self, cell: Cell) -> Path:
        """Return the record file of a cell."""
        return self.records / f"{cell.path}.json"

    def find(self, cell: Cell, name: str) -> Record | None:
        """Return the finished record of the measurement ``name`` (:func:`cell_id`); none if damaged, with a warning."""
        path = self.record_path(cell)
        try:
            record = _record(path, cell)
        except FileNotFoundError:
            return None
        except ValueError as error:
            logger.warning("record %s %s: it counts for nothing, and the cell is measured again.", path, error)
            self._damaged.add(path)
            return None
        return record if record.id == name and record.status == "done" else None

    def elsewhere(self, cell: Cell, identity: Mapping[str, Any]) -> tuple[Record, list[dict[str, Any]]] | None:
        """Return the finished record of the same measurement with another set or seed, and its per-query results.

        Its identity differs from ``identity`` in nothing but these. ``None`` if there is none.
        """
        model, condition = escape(cell.model), escape(cell.condition)
        for path in sorted(self.records.glob(f"{model}/*/{cell.method}/seed-*/{condition}/{cell.metric}.json")):
            try:
                record = _record(path, Cell.at(path.relative_to(self.records).with_suffix("").as_posix()))
            except (FileNotFoundError, ValueError):  # whoever measures that cell warns of it
                continue
            apart = {name: identity.get(name) for name in ("seed", "fingerprints")}
            if record.status == "done" and record.identity is not None and record.identity | apart == identity:
                lines = path.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines() if record.queries else []
                return record, [parsed(line) for line in lines]
        return None

    def write(self, record: Record, queries: list[dict[str, Any]]) -> None:
        """Write per-query results, then the record that names their digest; a signal waits until both are written.

        What :meth:`find` found damaged there is set aside.

        Raises:
            StorageError: if the disk gives out.
        """
        path = self.record_path(record.cell)
        with held_back():
            for each in (path, path.with_suffix(".jsonl")):
                if path in self._damaged or each.is_dir():
                    set_aside(each)
            self._damaged.discard(path)
            if queries:
                lines = "".join(canonical(query) + "\n" for query in queries)
                write_text(path.with_suffix(".jsonl"), lines)
                record = replace(record, queries=Queries(len(queries), digest(lines)))
            write_record(path, record.to_dict())
            if not queries:
                path.with_suffix(".jsonl").unlink(missing_ok=True)


def set_aside(path: Path) -> None:
    """Rename what is damaged, or a folder in the place of a file, to ``*.damaged``, with a warning; nothing if gone.

    Raises:
        StorageError: if it cannot be renamed.
    """
    names = (path.with_name(f"{path.name}.damaged{number}") for number in chain([""], count(2)))
    target = next(each for each in names if not os.path.lexists(each))
    try:
        path.rename(target)
    except FileNotFoundError:
        return
    except OSError as error:
        raise StorageError(f"{path} is damaged and cannot be moved ({error.strerror}): remove it.") from None
    logger.warning("%s is damaged: it is set aside as %s.", path, target.name)


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write a JSON object with the version of its format and the checksum of its text; set aside a folder there.

    Raises:
        StorageError: if the disk gives out.
    """
    complete = dict(record) | {"schema": SCHEMA, "checksum": UNKNOWN}
    text = json.dumps(complete, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    if path.is_dir():
        set_aside(path)
    write_text(path, text.replace(UNKNOWN, digest(text), 1))


def read_record(path: Path) -> dict[str, Any] | None:
    """Read what :func:`write_record` wrote; ``None`` if it is missing, damaged or of another schema, with a warning."""
    try:
        return _content(path)
    except FileNotFoundError:
        return None
    except ValueError as error:
        logger.warning("record %s %s: it counts for nothing.", path, error)
        return None


def _content(path: Path) -> dict[str, Any]:
    """Return what :func:`write_record` wrote; ValueError, which says what is wrong, if it is damaged."""
    try:
        # Looked at before it is opened: a pipe would never end.
        if not path.is_file() and path.stat():
            raise ValueError("no file")
        if path.stat().st_size > LARGEST_RECORD:
            raise ValueError(f"more than {LARGEST_RECORD} bytes")
        text = path.read_text(encoding="utf-8")
        record = parsed(text)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot be read ({error})") from None
    if not isinstance(record, dict):
        raise ValueError("is no JSON object")
    if record.get("schema") != SCHEMA:
        raise ValueError(f"is of schema {printable(str(record.get('schema')), 20)}, not {SCHEMA}")
    if digest(text.replace(found := str(record.get("checksum")), UNKNOWN, 1)) != found:
        raise ValueError("does not match its checksum")
    return record


def _record(path: Path, cell: Cell | None) -> Record:
    """Return the record at the place of a cell; ValueError, which says what is wrong, unless it is whole."""
    record, queries = Record.from_dict(_content(path)), path.with_suffix(".jsonl")
    if cell is None:
        raise ValueError("is not at the place of a cell")
    if record.cell != cell:
        raise ValueError("is of another cell than its place says")
    if record.queries is not None:
        try:
            whole = queries.is_file() and queries.stat().st_size <= LARGEST_QUERIES
            whole = whole and sha256(queries) == record.queries.sha256
        except OSError:
            whole = False
        if not whole:
            raise ValueError("has per-query results that are missing or not those that the record names")
    return record


def find_records(folder: Path) -> tuple[Path, Path]:
    """Return where records are below a folder, and the root that their places count from.

    The folder is that of a run, its ``records``, or a part of these, such as one model's.

    Raises:
        InputError: if it does not exist.
    """
    if not folder.is_dir():
        raise InputError(
            f"records folder {folder} does not exist: expected a run, its records/, or the records of one model."
        )
    if folder.name != "records" and (folder / "records").is_dir():
        folder /= "records"
    whole = folder.absolute()
    deeper = (each for depth in range(3) for each in sorted(whole.glob("*/" * depth + "seed-*")))
    for seed in chain((whole, *whole.parents), deeper):
        if seed.name.startswith("seed-") and len(seed.parents) > 3 and any(seed.glob("*/*.json")):
            return whole, seed.parents[3]  # above model, set and method
    if runs := sorted(each.parent.name for each in folder.glob("*/records") if each.is_dir()):
        raise InputError(
            f"records folder {folder} holds no records but those of {len(runs)} runs, in {' and '.join(runs)}: name "
            "one of them, or copy what their records folders hold into one."
        )
    return folder, folder


def examine(folder: Path, root: Path | None = None) -> Iterator[tuple[Path, Cell | None, Record | ValueError]]:
    """Yield whatever below a folder has the name of a record, in path order, with the cell of its place, if any.

    Places count from ``root``, by default the folder itself. The record is an error, which says what is wrong, if it is
    damaged, at another place than its cell's, or its per-query results are not there.
    """
    found, pending = [], [(str(folder), 0)]
    while pending:
        parent, depth = pending.pop()
        with contextlib.suppress(OSError), os.scandir(parent) as entries:
            for each in entries:
                if each.name.endswith(".json"):
                    found.append(each.path)
                elif depth < LEVELS and ".json.damaged" not in each.name and each.is_dir():
                    pending.append((each.path, depth + 1))
    for name in sorted(found):
        cell = Cell.at(name.removesuffix(".json").removeprefix(f"{root or folder}/"))
        record: Record | ValueError
        try:
            record = _record(Path(name), cell)
        except FileNotFoundError as error:
            record = ValueError(f"cannot be read ({error.strerror})")
        except ValueError as error:
            record = error
        yield Path(name), cell, record


def read_records(folder: Path, root: Path | None = None) -> list[Record]:
    """Read all cells' records below a folder, in path order; damaged ones stand as failed, with a warning."""
    found = []
    for path, cell, record in examine(folder, root):
        if isinstance(record, Record):
            found.append(record)
            continue
        logger.warning("record %s %s: it counts for nothing.", printable(str(path)), record)
        if cell is not None:
            found.append(
                Record(cell, "failed", PROTOCOL, None, reason=f"the record is damaged: it {record}; run again")
            )
    return found


# Locks on files: one driver a store, one maker an artefact. A lock ends with its holder, however that ends.


@contextlib.contextmanager
def driving(folder: Path) -> Iterator[None]:
    """Hold the lock of the one process that runs cells into the store ``folder``.

    Raises:
        InputError: naming host and process of the one that holds it, or if the file system knows no locks.
    """
    with _opened(folder / "locks" / "driver.json") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"another run writes to {folder} ({_holder(handle)}): wait for it, stop it, or choose another --out."
            ) from None
        except OSError as error:
            raise InputError(
                f"{folder} cannot be locked ({error.strerror}): its file system knows no locks; choose another --out."
            ) from None
        os.truncate(handle, 0)
        os.pwrite(handle, json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode(), 0)
        yield


@contextlib.contextmanager
def making(folder: Path, artefact: str) -> Iterator[None]:
    """Hold the lock of an artefact of the store ``folder``; look whether it was made while you waited.

    Raises:
        StorageError: if the folder cannot be written, or its file system knows no locks.
    """
    with _opened(folder / "locks" / artefact) as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            raise StorageError(f"{folder} cannot be locked ({error.strerror}): finished records stay.") from None
        yield


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise StorageError(f"{path} cannot be written ({error.strerror}): finished records stay.") from None
    try:
        yield handle
    finally:
        os.close(handle)  # and with it the lock


def _holder(handle: int) -> str:
    try:
        holder = json.loads(os.pread(handle, 1000, 0))
        return f"process {holder['pid']} on {holder['host']}"
    except (ValueError, KeyError, TypeError):
        return "a process that has just started"


class Digests:
    """SHA-256 of large files, so that a checkpoint of 16 GB is not read whole at every resume.

    They are kept in one JSON file: path → size, time of last change in nanoseconds, SHA-256.
    """

    def __init__(self, path: Path) -> None:
        """Read what is known from the JSON file; one that cannot be read is as good as none."""
        self.path = path
        self._known: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError):
            known = json.loads(path.read_text(encoding="utf-8"))
            self._known = known if isinstance(known, dict) else {}

    def of(self, path: Path) -> str:
        """Return the SHA-256 of a file; read it only if its size or time is not that of the last reading.

        Raises:
            StorageError: if it was read and cannot be remembered.
        """
        found, name = path.stat(), str(path.resolve())
        state = [found.st_size, found.st_mtime_ns]
        match self._known.get(name):
            case [size, time, str(digest)] if [size, time] == state:
                return digest
        self._known[name] = [*state, found_digest := sha256(path)]
        write_text(self.path, json.dumps(self._known, indent=1, sort_keys=True) + "\n")
        return found_digest
