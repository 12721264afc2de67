"""Locks on files: one driver a store, one maker an artefact. A lock ends with its holder, however that ends."""

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from fpbench.errors import InputError, StorageError


@contextlib.contextmanager
def driving(folder: Path) -> Iterator[None]:
    """Be the one process that runs cells into the store ``folder``.

    Raises:
        InputError: naming host and process of whoever is at it already, or if the file system knows no locks.
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
    """Wait until nobody else makes an artefact of the store ``folder``; whoever enters looks whether it is there now.

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
