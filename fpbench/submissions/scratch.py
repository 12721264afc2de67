"""Folders of one process's own: removed when it is done, or by the next one if it was killed."""

import contextlib
import fcntl
import os
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

FOLDER, LOCK = "fpbench-submission-", "parent.lock"
UNFINISHED = f"new-{FOLDER}"
LONGEST = 3600.0  # seconds that one without its lock may be unfinished


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """Yield a new folder, in which this process holds a lock for as long as it lives; remove it at the end."""
    remove_orphans()
    new = Path(tempfile.mkdtemp(prefix=UNFINISHED))
    lock = os.open(new / LOCK, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    # Others look for this name, which it has only once it is locked.
    folder = new.with_name(new.name.removeprefix("new-"))
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        new.rename(folder)
        yield folder
    finally:
        _remove(folder)
        os.close(lock)


def remove_orphans() -> None:
    """Remove the folders of processes that were killed; each may hold an update as large as the model.

    One that lives holds the lock in its folder, and nobody else's folder is touched.
    """
    place = Path(tempfile.gettempdir())
    for folder in (*place.glob(f"{FOLDER}*"), *place.glob(f"{UNFINISHED}*")):
        with contextlib.suppress(OSError):
            found = folder.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
                continue
            if folder.name.startswith(UNFINISHED):
                if time.time() - found.st_mtime > LONGEST:
                    _remove(folder)
                continue
            handle = os.open(folder / LOCK, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(folder)
            finally:
                os.close(handle)


def _remove(folder: Path) -> None:
    """Remove a folder, also one that an unconfined child has nested more deeply than Python can follow."""
    try:
        shutil.rmtree(folder, ignore_errors=True)
    except RecursionError:
        subprocess.run(["rm", "-rf", "--", str(folder)], check=False)
