"""What a run needs from elsewhere, fetched before it: so far the item parameters of tinyMMLU, pinned and converted.

They live in ``$FPBENCH_CACHE``, by default ``fpbench`` in the user's cache folder, beside the lock file that holds the
SHA-256 of what was downloaded and of what was made of it. The first fetch writes it; every later one must match.
"""

import hashlib
import http.client
import json
import os
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

from fpbench.errors import InputError
from fpbench.metrics.plain_pickle import LARGEST
from fpbench.metrics.tinybenchmarks import convert
from fpbench.metrics.tinymmlu import Parameters
from fpbench.runs.store import write_bytes, write_text

# The authors' file (MIT), at one commit of their repository: a branch would move.
COMMIT = "e9a8b1031b0340571beb6c9ca3a27891be09a8fd"
SOURCE = f"https://raw.githubusercontent.com/felipemaiapolo/tinyBenchmarks/{COMMIT}/tinyBenchmarks/tinyBenchmarks.pkl"
SECONDS = 60


def cache() -> Path:
    """The folder of what was fetched; need not exist."""
    named = os.environ.get("FPBENCH_CACHE")
    if named:
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fpbench"


def parameters_file() -> Path:
    """Where the converted item parameters are, or would be."""
    return cache() / "tinymmlu.npz"


def lock_file() -> Path:
    """Where the digests are: URL → SHA-256 of the ``download`` and of the ``converted`` file."""
    return cache() / "lock.json"


def item_parameters(url: str) -> tuple[Parameters, str] | None:
    """The fetched item parameters of tinyMMLU and the SHA-256 of their file; ``None`` before they are fetched.

    Args:
        url: what they were fetched from, as a rule :data:`SOURCE`.

    Raises:
        InputError: if the file is not the one that was fetched, or damaged.
    """
    path = parameters_file()
    if not path.exists():
        return None
    digest = _sha256(path.read_bytes())
    locked = _lock().get(url, {}).get("converted")
    if digest != locked:
        raise InputError(
            f"{path}: expected the file that was fetched (SHA-256 {locked}), found {digest}; delete it and run "
            "`fpbench fetch` again."
        )
    return Parameters.load(path), digest


def fetch_item_parameters(url: str) -> Path:
    """Download, check and convert the item parameters of tinyMMLU, unless they are here.

    Args:
        url: of ``tinyBenchmarks.pkl``, as a rule :data:`SOURCE`.

    Returns:
        The converted file.

    Raises:
        InputError: if the download fails, differs from the locked digest or is not what it should be, or the cache
            cannot be written. What was there stays as it was.
    """
    if item_parameters(url) is not None:
        return parameters_file()
    _check_writable(cache())
    content = _download(url)
    lock, digest = _lock(), _sha256(content)
    known = lock.get(url, {}).get("download", digest)
    if digest != known:
        raise InputError(
            f"{url}: expected the file of the first fetch (SHA-256 {known}), found {digest}; do not use it, or delete "
            f"its entry in {lock_file()} if you know why it changed."
        )
    converted = convert(content, url)
    lock[url] = {"download": digest, "converted": _sha256(converted)}
    # The digest first: a file without one would be refused, a digest without its file is fetched again.
    write_text(lock_file(), json.dumps(lock, indent=1, sort_keys=True) + "\n")
    write_bytes(parameters_file(), converted)
    return parameters_file()


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


def _lock() -> dict[str, Any]:
    path = lock_file()
    try:
        lock = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(
            f"lock file {path} cannot be read ({error}): restore it, or delete it to start anew."
        ) from None
    if not isinstance(lock, dict) or not all(isinstance(entry, dict) for entry in lock.values()):
        raise InputError(f"lock file {path}: expected digests by URL; restore it, or delete it to start anew.")
    return lock


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(
            f"cache folder {folder} cannot be written ({error.strerror or error}): name another in FPBENCH_CACHE."
        ) from None


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
