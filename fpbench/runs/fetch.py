"""Having what a profile names on the hub here: each model and data set downloaded, pinned, and held against its pin.

The first fetch pins the commit and the content in the lock file (:mod:`fpbench.hub.lock`). Every later one must match,
and downloads only what is missing. A pin is written after its thing is here, so that an interrupted fetch goes on where
it was. A data set's pin alone comes a moment before its rows: rows without one could not be told from anybody's.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fpbench.errors import InputError
from fpbench.hub import datasets, lock
from fpbench.hub.lock import Pin
from fpbench.models.loading import HUB_FILES, check_checkpoint, quiet
from fpbench.runs.store import canonical, write_text, written

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Fetched:
    """Something of the hub that is here now.

    Attributes:
        commit: the commit it is pinned to.
        size: bytes of what is here of it.
    """

    commit: str
    size: int

    def __str__(self) -> str:
        return f"{self.commit}, {self.size / 1e6:.1f} MB"


def fetch_model(repository: str, revision: str | None) -> Fetched:
    """Download and pin a model, unless it is here.

    Args:
        repository: ``owner/name``.
        revision: branch, tag or commit; ``None`` is the default branch.

    Raises:
        InputError: if it cannot be had, is no checkpoint of safetensors or not what was first fetched, or the cache
            cannot be written. The lock file stays as it was.
    """
    from fpbench.hub import models

    name = lock.model_name(repository, revision)
    pin = lock.pins().get(name)
    with quiet():
        if pin is not None:
            folder = models.pinned(repository, pin)
        else:
            check_cache()
            folder, pin = models.fetch(repository, revision, HUB_FILES)
            check_checkpoint(repository, folder)
            record(name, pin)
    return Fetched(pin.commit, sum((folder / file).stat().st_size for file in pin.files))


def fetch_rows(source: datasets.HubSource) -> Fetched:
    """Download and pin the rows of a data set, unless they are here.

    Raises:
        InputError: if they cannot be had, are not what was first fetched or have no form in JSON, or the cache cannot
            be written. The lock file stays as it was.
    """
    name = str(source)
    path, pin = lock.rows_file(name), lock.pins().get(name)
    if pin is None or not path.exists():
        check_cache()
        commit = pin.commit if pin else datasets.commit_of(source)
        with quiet():
            rows = datasets.load(source, commit)
        with written(path) as temporary:
            _write_rows(name, rows, temporary)
            found = Pin(commit=commit, files={path.name: lock.sha256(temporary)})
            if pin is not None and found != pin:
                raise InputError(
                    f"data source {name!r}: expected the rows that were first fetched (SHA-256 "
                    f"{pin.files[path.name]}), found {found.files[path.name]}; do not use them, or, if you know why "
                    f"they changed, delete the entry in {lock.lock_file()}."
                )
            record(name, found)
        pin = found
    lock.verify(f"data source {name!r}", path.parent, pin)
    return Fetched(pin.commit, path.stat().st_size)


def _write_rows(name: str, rows: "Dataset", path: Path) -> None:
    """One row of canonical JSON a line."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for number, row in enumerate(rows, 1):
            try:
                file.write(canonical(row) + "\n")
            except (TypeError, ValueError) as error:
                raise InputError(
                    f"data source {name!r}, row {number}: expected texts, numbers, lists and objects, found what JSON "
                    f"cannot hold ({error}); convert the data set to a .jsonl file."
                ) from None


def record(name: str, pin: Pin) -> None:
    """Put a pin into the lock file, whole or not at all."""
    write_text(lock.lock_file(), lock.text(lock.pins() | {name: pin}))


def check_cache() -> None:
    """Look whether fpbench's cache can be written, before anything is downloaded.

    Raises:
        InputError: if not.
    """
    folder = lock.cache()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(
            f"cache folder {folder} cannot be written ({error.strerror or error}): name another in FPBENCH_CACHE."
        ) from None
