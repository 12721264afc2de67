"""Submissions by name: those in the folder ``submissions`` of the working folder."""

from functools import cache
from pathlib import Path

from fpbench.registry import SUBMISSIONS
from fpbench.submissions.folder import Submission, accepted
from fpbench.submissions.manifest import FILE, NAME


def names() -> list[str]:
    """Of every submission, whatever is in it."""
    return sorted(path.parent.name for path in SUBMISSIONS.glob(f"*/{FILE}") if NAME.fullmatch(path.parent.name))


def find(name: str) -> type | None:
    """The method of a submission; ``None`` if there is none of this name.

    Raises:
        InputError: if there is something to find about it (`fpbench submit check` lists all of it).
    """
    if name not in names():
        return None
    folder = (SUBMISSIONS / name).absolute()
    files = ((path, path.lstat()) for path in Submission(folder).entries)
    return _method(folder, tuple((path, state.st_size, state.st_mtime_ns) for path, state in files))


@cache
def _method(folder: Path, state: object) -> type:
    """One class for one state of a submission, which is looked at once."""
    from fpbench.submissions.method import isolated

    return isolated(accepted(Submission(folder)))
