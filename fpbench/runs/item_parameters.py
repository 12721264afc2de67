"""The item parameters of tinyMMLU: fetched from its authors, pinned, and converted to plain arrays."""

import hashlib
import http.client
import urllib.request
from pathlib import Path

from fpbench.errors import InputError
from fpbench.hub import lock
from fpbench.hub.lock import Pin
from fpbench.metrics.plain_pickle import LARGEST
from fpbench.metrics.tinybenchmarks import convert
from fpbench.metrics.tinymmlu import Parameters
from fpbench.runs.fetch import check_cache, record
from fpbench.runs.store import write_bytes

# The authors' file (MIT), at one commit of their repository: a branch would move.
COMMIT = "e9a8b1031b0340571beb6c9ca3a27891be09a8fd"
DOWNLOADED = "tinyBenchmarks.pkl"
SOURCE = f"https://raw.githubusercontent.com/felipemaiapolo/tinyBenchmarks/{COMMIT}/tinyBenchmarks/{DOWNLOADED}"
SECONDS = 60


def file() -> Path:
    """Where the converted item parameters are, or would be."""
    return lock.cache() / "tinymmlu.npz"


def read(url: str) -> tuple[Parameters, str] | None:
    """The fetched item parameters of tinyMMLU and the SHA-256 of their file; ``None`` before they are fetched.

    Args:
        url: what they were fetched from, as a rule :data:`SOURCE`.

    Raises:
        InputError: if the file is not the one that was fetched, or damaged.
    """
    path = file()
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


def fetch(url: str) -> Path:
    """Download, check and convert the item parameters of tinyMMLU, unless they are here.

    Args:
        url: of ``tinyBenchmarks.pkl``, as a rule :data:`SOURCE`.

    Returns:
        The converted file.

    Raises:
        InputError: if the download fails, differs from the locked digest or is not what it should be, or the cache
            cannot be written. What was there stays as it was.
    """
    path = file()
    if read(url) is not None:
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
    # The digest first: a file without one would be refused, a digest without its file is fetched again.
    files = {DOWNLOADED: digest, path.name: hashlib.sha256(converted).hexdigest()}
    record(url, Pin(commit=COMMIT, files=files))
    write_bytes(path, converted)
    return path


def _download(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=SECONDS) as response:
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
