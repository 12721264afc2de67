"""Local files in the place of hub data sets: FPBENCH_MIRROR names their folder, its ``mirror.toml`` says what is what.

Each table has the key ``hub:OWNER/NAME/CONFIG:SPLIT``, a source without its revision; one without ``/CONFIG`` holds for
every configuration that has no table of its own. ``path`` names the file, relative to the folder; ``stand_in`` says how
it differs from the data set, and is left out where the rows are the data set's own.
"""

import os
import tomllib
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from fpbench.checks import Settings, first_error
from fpbench.errors import InputError
from fpbench.hub.download import HubSource

VARIABLE = "FPBENCH_MIRROR"


class Mirrored(Settings):
    """A file in the place of a hub data set."""

    path: Path
    stand_in: str | None = None


_TABLES = TypeAdapter(dict[str, Mirrored])


def mirrored(source: HubSource) -> Mirrored | None:
    """Return what the mirror has in the place of a source; ``None`` if it has nothing, or there is no mirror.

    Raises:
        InputError: if the mirror's file is missing or malformed.
    """
    named = os.environ.get(VARIABLE)
    if not named:
        return None
    tables, split = _tables(Path(named).expanduser()), source.split
    for name in (f"{source.name}/{source.config}", source.name):
        if (found := tables.get(f"hub:{name}:{split}")) is not None:
            return found
    return None


def _tables(folder: Path) -> dict[str, Mirrored]:
    file = folder / "mirror.toml"
    try:
        tables = _TABLES.validate_python(tomllib.loads(file.read_text(encoding="utf-8-sig")))
    except ValidationError as error:
        where, reason = first_error(error)
        raise InputError(f"{file}, key {where!r}: {reason}; correct it.") from None
    except (OSError, ValueError) as error:
        raise InputError(
            f"{VARIABLE} names {folder}: expected a folder with a readable mirror.toml, found: {error}; correct the "
            "variable or the file."
        ) from None
    return {key: each.model_copy(update={"path": folder / each.path}) for key, each in tables.items()}
