"""``fpbench submit new``: a passing example under a name of the submitter's."""

import shutil
from pathlib import Path

from fpbench.errors import InputError, StorageError
from fpbench.registry import METHODS, SUBMISSIONS
from fpbench.submissions.folder import GENERATED
from fpbench.submissions.manifest import NAME
from fpbench.text import printable

EXAMPLE = "last_block_tuning"


def template() -> Path:
    """Folder of the template, inside an installed package or at the root of a source checkout.

    Raises:
        InputError: if neither place has it.
    """
    package = Path(__file__).parents[1]
    for folder in (package / "submission_template", package.parent / "submissions" / "_template"):
        if (folder / "submission.toml").is_file():
            return folder
    raise InputError(f"template: expected a folder submission_template in {package}, found none; reinstall fpbench.")


def write_new(name: str) -> Path:
    """Write ``submissions/NAME`` and return it.

    Raises:
        InputError: if the name is malformed or taken, or there is such a folder.
        StorageError: if it cannot be written; nothing half-written remains.
    """
    if not NAME.fullmatch(name):
        raise InputError(
            f"name {printable(name)!r}: expected 2 to 40 lower-case letters, digits and underscores, a letter first; "
            "choose such a name."
        )
    if METHODS.taken(name):
        raise InputError(f"name {name!r} is that of a method already: choose another.")
    folder = SUBMISSIONS / name
    if folder.exists():
        raise InputError(f"{folder} exists: choose another name, nothing was overwritten.")
    unfinished = folder.with_name(f".{name}")
    try:
        unfinished.mkdir(parents=True)
        for source in sorted(template().iterdir()):
            if source.name not in GENERATED:
                text = source.read_text(encoding="utf-8").replace(EXAMPLE, name).replace(_class(EXAMPLE), _class(name))
                (unfinished / source.name).write_text(text, encoding="utf-8")
        unfinished.replace(folder)
    except OSError as error:
        raise StorageError(f"{folder} cannot be written ({error.strerror or error}): nothing was kept.") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _class(name: str) -> str:
    return "".join(word.capitalize() for word in name.split("_"))
