"""The lock file: which commit and which content each fetched name has stood for since its first fetch.

It is ``$FPBENCH_CACHE/lock.json`` (by default in ``fpbench`` in the user's cache folder) and maps names to pins.

==========================================  ======================================================
name                                        files that its pin holds the SHA-256 of
==========================================  ======================================================
``model:owner/name@revision``               what was downloaded of the checkpoint
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

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from fpbench.errors import InputError


class Pin(BaseModel):
    """What a name stands for.

    Attributes:
        commit: hash of the commit that the revision stood for at the first fetch.
        files: SHA-256 by file name.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    commit: str = Field(pattern="^[0-9a-f]{40}$")
    files: dict[str, str] = Field(min_length=1)


_PINS = TypeAdapter(dict[str, Pin])


def cache() -> Path:
    """The folder of the lock file and of what is not in the hub's own cache; need not exist."""
    named = os.environ.get("FPBENCH_CACHE")
    if named:
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fpbench"


def lock_file() -> Path:
    """Where the pins are."""
    return cache() / "lock.json"


def model_name(repository: str, revision: str | None) -> str:
    """What the lock file calls a model; no revision means the hub's default branch."""
    return f"model:{repository}@{revision or 'main'}"


def rows_file(source: str) -> Path:
    """Where the rows of a hub data source are, or would be."""
    return cache() / "rows" / f"{quote(source.removeprefix('hub:'), safe='@')}.jsonl"


def pins() -> dict[str, Pin]:
    """Everything that was fetched, by name; empty before the first fetch.

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
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole file"
        raise InputError(
            f"lock file {path}: expected a commit and SHA-256 digests by name, found {where}: {first['msg']}; restore "
            "it, or delete it to start anew."
        ) from None


def text(entries: dict[str, Pin]) -> str:
    """The lock file that holds these pins."""
    return _PINS.dump_json(dict(sorted(entries.items())), indent=1).decode() + "\n"


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(what: str, folder: Path, pin: Pin) -> None:
    """Hold the files in a folder against their pin.

    Args:
        what: whose they are, for the message.
        folder: where they are.
        pin: of all of them.

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
            # The hub's cache holds links: what has to go is the file behind one.
            raise InputError(
                f"{what}: expected the file that was first fetched (SHA-256 {expected}), found {found}; delete "
                f"{path.resolve()} and run `fpbench fetch` again, or, if you know why it changed, delete the entry in "
                f"{lock_file()} first."
            )
